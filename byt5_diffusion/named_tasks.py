"""A task's name alone, as data that can be opened: no recipe is needed.

  byt5-diffusion inspect "wit:/data/wit@256x256" --out page.png

The modules of the package's tasks are asked, one after the other, whose name it
is; which features it has says what reads it.
"""

import functools
import importlib
import pkgutil
import re
from typing import Any

from byt5_diffusion import feature_converters
from byt5_diffusion.data import pipeline

_TASKS = "byt5_diffusion.tasks"
_BATCH_SIZE = 16
_MOST_PATCHES = 2048
# Room for what has no length of its own.
_LENGTHS = {
  "text_tokens": 512,
  "semantic_tokens": 512,
  "boxes": 128,
  "box_labels": 128,
  "box_spans": 128,
}
_CONVERTERS = (
  feature_converters.TextToImageFeatureConverter,
  feature_converters.SemanticFeatureConverter,
  feature_converters.AnnotatedFeatureConverter,
  feature_converters.ReadingFeatureConverter,
)


def is_name(recipe: str) -> bool:
  """Whether this is a task's name rather than a gin file's."""
  return not recipe.endswith(".gin")


def arguments(name: str, seed: int = 0) -> dict[str, Any]:
  """What inspection needs of a program's arguments: data and batch size.

  Args:
    name: of a task of the package, with its path and size where it has one.
    seed: of the order.

  Raises:
    ValueError: no task is called so, or its data cannot be used.
    ImportError: SeqIO is not installed.
  """
  live = pipeline.import_live(name)
  module = _module(live, name)
  try:
    task, split = live.load(name, module, "train"), "train"
  except pipeline.EmptySplit:  # Prompts are to test by, and nothing else.
    task, split = live.load(name, module, "test"), "test"
  found = set(task.output_features)
  converter = next(
    one
    for one in _CONVERTERS
    if {feature.task_name for feature in one.FEATURES} == found
  )
  spec = task.get_dataset(None, split, shuffle=False).element_spec
  lengths = {
    key: spec[key].shape[0] or _LENGTHS.get(key) or _patches(name)
    for key in (feature.task_name for feature in converter.FEATURES)
  }
  return {
    "batch_size": _BATCH_SIZE,
    "train_data": functools.partial(
      pipeline.open_data,
      mixture_or_task_name=name,
      mixture_or_task_module=module,
      task_feature_lengths=lengths,
      split="train",
      seed=seed,
      feature_converter_cls=converter,
    ),
  }


def _patches(name: str) -> int:
  """The most patches of a picture, where the name says them."""
  found = re.search(r"@(\d+)x", name)
  return int(found[1]) if found else _MOST_PATCHES


def _module(live: Any, name: str) -> str:
  """The module of tasks whose task it is."""
  modules = [
    f"{_TASKS}.{found.name}"
    for found in pkgutil.iter_modules(importlib.import_module(_TASKS).__path__)
  ]
  for module in modules:
    if live.is_registered(live.registered(name, module)):
      return module
  kinds = sorted(
    {
      kind
      for module in modules
      for kind in getattr(importlib.import_module(module), "TABLE", ())
    }
  )
  raise ValueError(
    f"{name!r} is neither a gin file nor a task. Tasks of data on this machine "
    f"are written <kind>:<path>@<height>x<width>; kinds: {', '.join(kinds)}."
  )
