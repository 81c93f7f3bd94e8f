"""Runs a task once and keeps what it made: live data -> prepared data set.

A prepared data set (data/records.py) is read without TensorFlow, by random
access, and a resumed run finds its place in it at once.
"""

import itertools
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tqdm

from byt5_diffusion import feature_converters
from byt5_diffusion.data import pipeline, records, rejections

_log = logging.getLogger(__name__)


def prepare(
  *,
  mixture_or_task_name: str,
  task_feature_lengths: Mapping[str, int],
  output_dir: str,
  splits: Sequence[str] = ("train", "validation"),
  num_examples: int | Mapping[str, int] | None = None,
  num_shards: int = 8,
  seed: int = 0,
  mixture_or_task_module: str | None = None,
  feature_converter_cls: type[feature_converters.FeatureConverter] = (
    feature_converters.TextToImageFeatureConverter
  ),
  show_progress: bool = True,
) -> dict[str, Any]:
  """Writes splits of a SeqIO task or mixture as shards; returns the manifest.

  The folder appears when it is complete. If the program is killed, nothing has
  appeared, and the next call starts anew.

  Args:
    mixture_or_task_name: what to run.
    task_feature_lengths: lengths that the training run will ask for.
    output_dir: must not exist, or be empty.
    splits: which splits.
    num_examples: at most so many of every split (or {split: so many}); needed
      where a split has no end. None = all.
    num_shards: files per split.
    seed: of random preprocessing and mixing.
    mixture_or_task_module: imported first, so that it registers the task.
    feature_converter_cls: that of the training run; its FEATURES are kept.
    show_progress: a bar per split.

  Raises:
    FileExistsError: output_dir holds something.
    ImportError: SeqIO or TensorFlow is not installed.
    ValueError: an unknown task or split, an endless one without a number, or a
      number that is not positive.
  """
  limits = {
    split: num_examples.get(split)
    if isinstance(num_examples, Mapping)
    else num_examples
    for split in splits
  }
  for split, limit in limits.items():
    if limit is not None and limit < 1:
      raise ValueError(
        f"num_examples = {limit} of split {split!r} must be positive."
      )
  live = pipeline.import_live(mixture_or_task_name)
  features = feature_converter_cls.FEATURES
  feature_converters.check_lengths(task_feature_lengths, features)
  streams = {
    split: live.examples(
      mixture_or_task_name,
      task_feature_lengths,
      split,
      seed=seed,
      module=mixture_or_task_module,
      endless=limits[split] is not None,
    )
    for split in splits
  }
  # The first example is looked at for its shapes, before anything is written.
  first = next(streams[splits[0]], None)
  if first is None:
    raise ValueError(
      f"Split {splits[0]!r} of {mixture_or_task_name!r} gave no example."
    )
  streams[splits[0]] = itertools.chain([first], streams[splits[0]])
  manifest = records.write(
    output_dir,
    task=mixture_or_task_name,
    task_feature_lengths=task_feature_lengths,
    splits={
      split: _bounded(stream, split, limits[split], show_progress)
      for split, stream in streams.items()
    },
    features=_specs(first, task_feature_lengths, features),
    num_shards=num_shards,
    notes={"seed": seed},
    files=live.captions_of(
      mixture_or_task_name, mixture_or_task_module
    ).files(),
  )
  _report(output_dir, manifest)
  return manifest


def _specs(
  example: Mapping[str, np.ndarray],
  lengths: Mapping[str, int],
  features: tuple[feature_converters.Feature, ...],
) -> dict[str, dict[str, Any]]:
  """The manifest's "features", from an example that the converter accepts."""
  feature_converters.convert(example, lengths, features)
  specs = {}
  for feature in features:
    shape: list[int | None] = list(example[feature.task_name].shape)
    if feature.padded:
      shape[0] = None
    specs[feature.task_name] = {"dtype": feature.task_dtype, "shape": shape}
  return specs


def _bounded(
  stream: Iterator[dict[str, np.ndarray]],
  split: str,
  limit: int | None,
  show_progress: bool,
) -> Iterator[dict[str, np.ndarray]]:
  """At most `limit` examples, counted on the screen."""
  yield from tqdm.tqdm(
    itertools.islice(stream, limit),
    desc=f"prepare {split}",
    total=limit,
    unit="examples",
    disable=not show_progress,
  )


def _report(
  output_dir: str | os.PathLike[str], manifest: Mapping[str, Any]
) -> None:
  for split, part in manifest["splits"].items():
    size = sum(shard["bytes"] for shard in part["shards"])
    _log.info(
      "%s: %d examples of %r, %.1f MB",
      output_dir,
      part["num_examples"],
      split,
      size / 1e6,
    )
  for ledger in rejections.ledgers():
    summary = ledger.summary()
    if summary["rejected"]:
      _log.warning("%s: skipped %s", summary["source"], summary["reasons"])
