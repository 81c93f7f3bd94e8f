"""Training on your own pictures: a folder with captions (data/folder.py).

One binding names the folder and the size of the pictures, height x width:

  MIXTURE_OR_TASK_NAME = "image_caption_folder:/home/me/photos@64x64"
  MIXTURE_OR_TASK_MODULE = "byt5_diffusion.tasks.image_caption_folder"
  TASK_FEATURE_LENGTHS = {"image": 64, "text_tokens": 128, "example_id": 2}

data/live.py asks this module's `register` for such names. `@64x64crop` fills
the frame with the picture's centre; otherwise all of it is shown, on white.

Other programs (T5X) know SeqIO's names only; in their gin files, `task`
registers a folder and gives its name:

  from byt5_diffusion.tasks import image_caption_folder

  MIXTURE_OR_TASK_NAME = @image_caption_folder.task()
  image_caption_folder.task:
    folder = "/home/me/photos"
    height = 64
    width = 64

Splits: train, validation. Pictures that cannot be used are skipped, counted and
named; more than 5 % of them end the run.
"""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from byt5_diffusion import feature_converters
from byt5_diffusion.data import folder as folder_source
from byt5_diffusion.data import images

OUTPUT_FEATURES = {
  "image": seqio.ContinuousFeature(dtype=tf.uint8, rank=3),
  "text_tokens": seqio.Feature(
    vocabulary=seqio.ByteVocabulary(), add_eos=True, dtype=tf.int32
  ),
  "example_id": seqio.ContinuousFeature(dtype=tf.uint32, rank=1),
}

_NAME = "image_caption_folder"
_PATTERN = re.compile(
  _NAME
  + r":(?P<folder>.+)@(?P<height>\d{1,5})x(?P<width>\d{1,5})(?P<crop>crop)?"
)
_registered: dict[str, dict[str, Any]] = {}


class PlaceSource(seqio.DataSource):
  """Places 0..n-1 of a split, shuffled as a whole: pictures stay on disk.

  Attributes:
    fingerprint: of all paths and captions; a saved place in other data is
      refused by it (data/live.py).
  """

  def __init__(self, pairs: Mapping[str, Sequence[folder_source.Pair]]):
    listing = json.dumps({split: sorted(pairs[split]) for split in pairs})
    self.fingerprint = hashlib.sha256(listing.encode("ascii")).hexdigest()
    num_examples = {split: len(pairs[split]) for split in pairs}
    super().__init__(
      splits=[split for split, count in num_examples.items() if count],
      num_input_examples=num_examples,
      performs_internal_shuffling=True,
    )

  @property
  def supports_arbitrary_sharding(self) -> bool:
    return True

  def list_shards(self, split: str) -> list[str]:
    return [split]

  def get_dataset(
    self,
    split: str = "train",
    shuffle: bool = True,
    seed: int | None = None,
    shard_info: seqio.ShardInfo | None = None,
    **unused: Any,
  ) -> tf.data.Dataset:
    """Every shard shuffles all places alike, then takes its own of them."""
    count = self.num_input_examples(split)
    ds = tf.data.Dataset.range(count)
    if shuffle:
      ds = ds.shuffle(count, seed=0 if seed is None else seed)
    if shard_info is not None:
      ds = ds.shard(shard_info.num_shards, shard_info.index)
    return ds.map(lambda place: {"place": place, "split": split})


@dataclasses.dataclass(frozen=True, kw_only=True)
class PictureLoader:
  """Place in a split -> example; `load_all` is a SeqIO preprocessor."""

  source: folder_source.FolderSource
  height: int
  width: int
  fit: str

  def read(self, place: int, split: bytes, max_length: int) -> tuple[Any, ...]:
    """OUTPUT_FEATURES' arrays and True; of a bad picture, zeros and False."""
    ledger = self.source.ledger()
    try:
      example = self.source.read(
        split.decode(),
        int(place),
        height=self.height,
        width=self.width,
        max_length=int(max_length),
        fit=self.fit,
      )
    except images.BadImage as error:
      ledger.reject(error.file, error.reason)
      empty = np.zeros((self.height, self.width, 3), np.uint8)
      return empty, np.zeros(0, np.int32), np.zeros(2, np.uint32), False
    ledger.accept()
    return *(example[key] for key in OUTPUT_FEATURES), True

  def load_all(
    self, ds: tf.data.Dataset, sequence_length: Mapping[str, int] | None
  ) -> tf.data.Dataset:
    """Examples of the places in `ds`, without the bad pictures."""
    lengths = sequence_length or {}  # T5X measures them by asking without any.
    max_length = lengths.get("text_tokens") or 2**20
    if lengths.get("image") not in (None, self.height):
      raise ValueError(
        f'TASK_FEATURE_LENGTHS["image"] is {lengths["image"]}, but the '
        f"pictures of {self.source.name!r} have {self.height} rows."
      )

    def load(features: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
      image, tokens, key, good = tf.numpy_function(
        self.read,
        [features["place"], features["split"], max_length],
        [tf.uint8, tf.int32, tf.uint32, tf.bool],
        stateful=False,  # The same place gives the same example: resumable.
      )
      return {
        "image": tf.ensure_shape(image, [self.height, self.width, 3]),
        "text_tokens": tf.ensure_shape(tokens, [None]),
        "example_id": tf.ensure_shape(key, [2]),
        "good": tf.ensure_shape(good, []),
      }

    ds = ds.map(load, num_parallel_calls=tf.data.AUTOTUNE)
    ds = ds.filter(lambda example: example["good"])
    return ds.map(lambda ex: {key: ex[key] for key in OUTPUT_FEATURES})


def add_image_caption_folder_task(
  name: str,
  folder: str | os.PathLike[str],
  height: int,
  width: int,
  *,
  fit: str = "pad",
  validation_share: float = 0.05,
  max_rejected_share: float = 0.05,
) -> None:
  """Registers a SeqIO task that reads a folder of captioned pictures.

  Args:
    name: of the task.
    folder: see data/folder.py.
    height: rows of every picture; TASK_FEATURE_LENGTHS["image"] must be equal.
    width: columns of every picture.
    fit: "pad" or "crop" (data/images.py).
    validation_share: share of the pictures kept for validation.
    max_rejected_share: more unusable records than this end the run.

  Raises:
    ValueError: the folder is empty or absent, or the name is taken.
  """
  if height < 1 or width < 1:
    raise ValueError(f"{height=} and {width=} must be positive.")
  images.fit(np.zeros((height, width, 3), np.uint8), height, width, fit)
  source = folder_source.FolderSource(
    folder,
    validation_share=validation_share,
    max_rejected_share=max_rejected_share,
  )
  loader = PictureLoader(source=source, height=height, width=width, fit=fit)
  seqio.TaskRegistry.add(
    name,
    source=PlaceSource(source.pairs),
    preprocessors=[loader.load_all],
    output_features=OUTPUT_FEATURES,
    shuffle_buffer_size=None,
  )


def task(
  *,
  folder: str,
  height: int,
  width: int,
  name: str = "image_caption_folder",
  fit: str = "pad",
  validation_share: float = 0.05,
  max_rejected_share: float = 0.05,
) -> str:
  """Registers the folder's task once; returns its name. For gin: see above.

  Raises:
    ValueError: the name stands for another folder or size already.
  """
  options: dict[str, Any] = {
    "folder": str(folder),
    "height": height,
    "width": width,
    "fit": fit,
    "validation_share": validation_share,
    "max_rejected_share": max_rejected_share,
  }
  if name not in _registered:
    add_image_caption_folder_task(name, **options)
    _registered[name] = options
  elif _registered[name] != options:
    raise ValueError(
      f"The task {name!r} has been registered with {_registered[name]}; give "
      f"another `name` to the one with {options}."
    )
  return name


def register(name: str) -> str:
  """Registers "image_caption_folder:<folder>@<height>x<width>[crop]".

  Returns:
    The SeqIO name of that folder's task; any other name as it is.

  Raises:
    ValueError: the name is of this kind but says too little, or the folder is
      of no use.
  """
  if name in seqio.TaskRegistry.names() or not name.startswith(_NAME):
    return name
  found = _PATTERN.fullmatch(name)
  if not found:
    raise ValueError(
      f"{name!r} names no folder and size. Write MIXTURE_OR_TASK_NAME = "
      f'"{_NAME}:/path/to/photos@64x64" (height x width).'
    )
  digest = hashlib.blake2b(name.encode("utf-8"), digest_size=4).hexdigest()
  return task(
    folder=found["folder"],
    height=int(found["height"]),
    width=int(found["width"]),
    fit="crop" if found["crop"] else "pad",
    name=f"{_NAME}_{digest}",
  )


assert set(OUTPUT_FEATURES) == {
  feature.task_name for feature in feature_converters.FEATURES
}
