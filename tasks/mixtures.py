"""Mixtures of data sets, in the languages that ByT5 has read.

  multilingual:3 <task> | 1 <task> | 0 <task> | max_repeats=4

are examples of the tasks, as often as their weights say and in mC4's shares
(data/languages.py). Languages come first: what the data of a language cannot
give, because nobody may see an example more than max_repeats times, comes from
the other tasks that have it. A task of weight 0 gives only that, so a synthetic
one of weight 0 keeps all languages at their shares.

Behind the tasks, each with a default:

  max_repeats=4          times that an example may come while training
  num_train=10000000     examples that training will see, batch size x steps
  num_validation=1000    examples of the split "validation", each once

The tasks are any of this package whose languages are known, with pictures of
one size ("@256x256"). `byt5-diffusion inspect RECIPE --languages` counts what
is achieved. T5X's recipes call `multilingual`, which takes the same as a dict.
"""

import functools
import importlib
import pkgutil
import re
from collections.abc import Mapping
from typing import Any

from byt5_diffusion.data import mixture, native_logs, seqio_tasks, supplies

with native_logs.quiet():
  import seqio

KIND = "multilingual"
_OPTIONS = {"max_repeats": float, "num_train": int, "num_validation": int}
_SOURCE = re.compile(r"(?P<weight>[0-9.]+(e-?\d+)?) +(?P<task>\w+:.+)", re.S)
_OPTION = re.compile(r"(?P<key>\w+) *= *(?P<value>[0-9.]+(e\d+)?)")
_EXAMPLE = (
  '"multilingual:3 laion_high_resolution:/data/laion@256x256 | '
  '1 typography_phrases:built_in@256x256 | max_repeats=4"'
)


def multilingual(
  sources: Mapping[str, float],
  *,
  max_repeats: float = 4.0,
  num_train: int = 10_000_000,
  num_validation: int = 1000,
) -> str:
  """Registers a mixture, once.

  Args:
    sources: {task: weight}.
    max_repeats, num_train, num_validation: see mixture.Mixture.

  Returns:
    SeqIO's name of it.

  Raises:
    ValueError: see mixture.Mixture; or an unknown task.
  """
  written = [f"{weight:.12g} {task}" for task, weight in sources.items()]
  options: dict[str, Any] = {
    "max_repeats": float(max_repeats),
    "num_train": int(num_train),
    "num_validation": int(num_validation),
  }
  written += [f"{key}={value:.12g}" for key, value in options.items()]
  name = " | ".join(written)
  short = seqio_tasks.short_name(KIND, name)
  if short not in seqio.TaskRegistry.names():
    parts = [
      mixture.Part(task, float(weight), _maker(task))
      for task, weight in sources.items()
    ]
    made = mixture.Mixture(KIND, parts, **options)
    seqio_tasks.add_supply_task(short, made)
  return short


def register(name: str) -> str:
  """Registers "multilingual:<weight> <task> | ... [| option=value]...".

  Returns:
    SeqIO's name of it; any other name as it is.

  Raises:
    ValueError: see multilingual; or it is written wrongly.
  """
  kind, _, written = name.partition(":")
  if kind != KIND:
    return name
  sources: dict[str, float] = {}
  options: dict[str, Any] = {}
  for item in re.split(r"\s+\|\s+", written.strip()):
    if (source := _SOURCE.fullmatch(item)) and _is_number(source["weight"]):
      if source["task"] in sources:
        raise ValueError(f"{name!r} has {source['task']!r} twice.")
      sources[source["task"]] = float(source["weight"])
      continue
    option = _OPTION.fullmatch(item)
    if not option or option["key"] not in _OPTIONS:
      raise ValueError(
        f"{name!r}: {item!r} is neither '<weight> <task>' nor one of "
        f"{sorted(_OPTIONS)} with a number. An example: {_EXAMPLE}."
      )
    try:
      options[option["key"]] = _OPTIONS[option["key"]](option["value"])
    except ValueError:
      raise ValueError(f"{name!r}: {item!r} is no number.") from None
  return multilingual(sources, **options)


def _is_number(text: str) -> bool:
  try:
    return float(text) >= 0
  except ValueError:
    return False


def _maker(task: str) -> supplies.Maker:
  for table in _tables():
    parsed = supplies.parse(table, task)
    if parsed is not None:
      return supplies.Maker(
        supply=parsed.supply, picture=parsed.picture, captions=parsed.captions
      )
  kinds = sorted({kind for table in _tables() for kind in table})
  raise ValueError(
    f"{task!r} cannot be mixed by language. Tasks of a mixture are written "
    f"<kind>:<path>@<height>x<width>; kinds: {', '.join(kinds)}."
  )


@functools.cache
def _tables() -> list[Mapping[str, supplies.Kind]]:
  """The tables of all families."""
  package = __name__.rpartition(".")[0]
  names = sorted(
    f"{package}.{module.name}"
    for module in pkgutil.iter_modules(
      importlib.import_module(package).__path__
    )
  )
  modules = [importlib.import_module(n) for n in names if n != __name__]
  return [found for m in modules if (found := getattr(m, "TABLE", None))]
