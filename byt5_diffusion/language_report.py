"""Which languages a run's examples are in: `inspect --languages`.

The source of the recipe's task is asked for the numbers of its examples, in the
order in which training takes them, and each is looked up; no picture is made.
What filters leave out has no number, so it is not among them. A picture that
turns out to be broken is, although training skips it.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from byt5_diffusion import inspection, recipes
from byt5_diffusion.data import languages, mixture

Facts = dict[str, Any]
NUM_IDS = 1_000_000


def report(
  recipe: str,
  gin_bindings: Sequence[str] = (),
  *,
  split: str = "train",
  num_ids: int = NUM_IDS,
  seed: int | None = None,
  say: Callable[[str], None] = lambda line: None,
) -> Facts:
  """Counts the languages of the first examples of a split.

  Args:
    recipe: a gin file, or a task's name.
    gin_bindings: "NAME=VALUE".
    split: of the data.
    num_ids: how many examples; fewer where one pass has fewer.
    seed: RANDOM_SEED; None keeps the recipe's.
    say: gets a line per stage.

  Returns:
    What docs/data/languages.md lists; JSON.

  Raises:
    config.ConfigError: the recipe.
    ValueError: the task is none whose languages are known.
  """
  arguments = inspection.recipe_arguments(recipe, gin_bindings, seed)
  say(f"opening {recipe} ...")
  opened = recipes.open_data(
    arguments["train_data"],
    arguments["batch_size"],
    split=split,
    prepared_dir=None,
  )
  try:
    identity = opened.producer.identity
    source = getattr(opened.producer.provider, "source", None)
    supply = getattr(source, "supply", None)
    say(f"counting {num_ids:,} examples ...")
    numbers = opened.producer.numbers(num_ids)
    found = _places(supply, identity["task"], split, numbers)
  finally:
    recipes.close(opened)
  facts = {"recipe": recipe, "task": identity["task"], "split": split}
  return facts | count(found, supply, split)


def _places(
  supply: Any,
  task: str,
  split: str,
  numbers: Iterator[tuple[np.ndarray, int]],
) -> mixture.Places:
  """Where examples come from, and their languages."""
  found: list[mixture.Places] = []
  if isinstance(supply, mixture.Mixture):
    found += [supply.places(split, seed, index) for index, seed in numbers]
  elif supply is not None and not supply.endless:
    rows = supply.languages(split)
    if rows is None:
      raise ValueError(f"{task!r}: nobody knows the languages of its examples.")
    found += [
      mixture.Places(np.zeros_like(index), rows[index].astype(np.int64), index)
      for index, _ in numbers
    ]
  else:
    raise ValueError(
      f"{task!r} is no data set whose languages are known, nor a mixture of "
      "such: multilingual:<weight> <task> | ... (docs/data/languages.md)."
    )
  return mixture.Places(*map(np.concatenate, zip(*found, strict=True)))


def count(places: mixture.Places, supply: Any, split: str) -> Facts:
  """The report's figures.

  Args:
    places: of examples.
    supply: a mixture, or a data set that is all of it.
    split: of both.
  """
  total, size = len(places.language), len(languages.TABLE)
  keys = (places.part << 56) | (places.language << 48) | places.example
  seen, times = np.unique(keys, return_counts=True)
  row_of, part_of = (seen >> 48) & 255, seen >> 56
  counts = np.bincount(places.language, minlength=256)
  known = counts[:size]
  target = languages.percents()
  achieved = known / total
  names = _names(supply)
  per_part = np.zeros((len(names), 256), np.int64)
  np.add.at(per_part, (places.part, places.language), 1)
  return {
    "ids": total,
    "total_variation": float(
      (np.abs(achieved - target).sum() + 1 - achieved.sum()) / 2
    ),
    "unknown_language": int(counts[size:].sum()),
    "max_repeats": getattr(supply, "max_repeats", None),
    "languages": [
      {
        "code": language.code,
        "name": language.name,
        "target": float(target[row]),
        "achieved": float(achieved[row]),
        "count": int(known[row]),
        **_repeats(times[row_of == row]),
        "from": {
          name: int(column[row])
          for name, column in zip(names, per_part, strict=True)
          if column[row]
        },
      }
      for row, language in enumerate(languages.TABLE)
    ],
    "sources": [
      {
        "name": name,
        "count": int(per_part[part].sum()),
        "share": float(per_part[part].sum() / total),
        **_repeats(times[part_of == part]),
        **_offered(supply, split, part),
      }
      for part, name in enumerate(names)
    ],
  }


def _names(supply: Any) -> list[str]:
  if isinstance(supply, mixture.Mixture):
    return [part.name for part in supply.parts]
  return [supply.name]


def _repeats(times: np.ndarray) -> Facts:
  """How often examples came, of those that did."""
  return {
    "examples": len(times),
    "repeats_max": int(times.max(initial=0)),
    "repeats_mean": float(times.mean()) if len(times) else 0.0,
  }


def _offered(supply: Any, split: str, part: int) -> Facts:
  """What a source has, after filters; None: without end."""
  if not isinstance(supply, mixture.Mixture):
    return {"weight": 1.0, "available": supply.sizes[split]}
  plan = supply.plans[split]
  available = float(plan.counts[part].sum())
  weights = sum(one.weight for one in supply.parts)
  return {
    "weight": supply.parts[part].weight / weights,
    "available": int(available) if np.isfinite(available) else None,
    "unknown_language": int(plan.unknown[part]),
  }


def to_text(facts: Facts) -> str:
  """The report as a table for a terminal."""
  lines = [
    f"{facts['task']}, split {facts['split']}: {facts['ids']:,} examples",
    "",
    f"{'':9}{'target %':>9}{'achieved %':>11}{'count':>10}{'examples':>10}"
    f"{'repeats':>9}{'mean':>7}  from",
  ]
  for row in facts["languages"]:
    parts = ", ".join(
      f"{_brief(name)} {100 * count / row['count']:.0f} %"
      for name, count in sorted(row["from"].items(), key=lambda x: -x[1])
    )
    lines.append(
      f"{row['code']:9}{100 * row['target']:9.3f}{100 * row['achieved']:11.3f}"
      f"{row['count']:10,}{row['examples']:10,}{row['repeats_max']:9}"
      f"{row['repeats_mean']:7.2f}  {parts}"
    )
  lines.append("")
  for source in facts["sources"]:
    available = source["available"]
    lines.append(
      f"{source['name']}: {100 * source['share']:.2f} % (wished "
      f"{100 * source['weight']:.2f} %), {source['examples']:,} of "
      f"{'endless' if available is None else f'{available:,}'} examples, at "
      f"most {source['repeats_max']} times, {source['repeats_mean']:.2f} on "
      "average"
    )
  none = [row["code"] for row in facts["languages"] if not row["count"]]
  if none:
    lines.append(f"no example at all: {' '.join(none)}")
  if facts["unknown_language"]:
    lines.append(f"in none of these: {facts['unknown_language']:,}")
  lines.append(
    "total variation distance to what ByT5 has read: "
    f"{100 * facts['total_variation']:.3f} %"
  )
  return "\n".join(lines)


def _brief(name: str) -> str:
  return name.partition(":")[0]
