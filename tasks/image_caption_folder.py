"""Training on your own pictures: a folder with captions (data/folder.py).

One binding names the folder and the size of the pictures, height x width:

  MIXTURE_OR_TASK_NAME = "image_caption_folder:/home/me/photos@64x64"
  MIXTURE_OR_TASK_MODULE = "byt5_diffusion.tasks.image_caption_folder"
  TASK_FEATURE_LENGTHS = {"image": 64, "text_tokens": 128, "example_id": 2}

data/live.py asks this module's `register` for such names. `@64x64crop` fills
the frame with the picture's centre; otherwise all of it is shown, on white.

To read the pictures instead, of any size and proportions, say how many patches
they become at most, and of how many pixels each (256 of 16 x 16):

  MIXTURE_OR_TASK_NAME = "image_caption_folder_reading:/home/me/scans@256x16"
  TASK_FEATURE_LENGTHS = {"patches": 256, "text_tokens": 128, "example_id": 2}

Where two encoders read the caption (docs/conditioning.md), say how, and where
the second one's SentencePiece model lies:

  MIXTURE_OR_TASK_NAME = "image_caption_folder:photos@64x64+quoted=spiece.model"
  TASK_FEATURE_LENGTHS = {
    "image": 64, "text_tokens": 64, "example_id": 2, "semantic_tokens": 128,
  }

Other programs (T5X) know SeqIO's names only; in their gin files, `task` or
`reading_task` registers a folder and gives its name:

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

from byt5_diffusion.data import captions as captions_lib
from byt5_diffusion.data import folder as folder_source
from byt5_diffusion.data import images, pictures, seqio_tasks, task_metrics

_NAME = "image_caption_folder"
_READING = "image_caption_folder_reading"
_PATTERN = re.compile(
  rf"(?P<kind>{_NAME}|{_READING}):(?P<folder>.+)"
  r"@(?P<first>\d{1,5})x(?P<second>\d{1,5})(?P<crop>crop)?"
)
_registered: dict[str, dict[str, Any]] = {}


class PlaceSource(seqio_tasks.NumberedSource):
  """Places 0..n-1 of a split, shuffled as a whole: pictures stay on disk.

  Attributes:
    fingerprint: of all paths and captions; a saved place in other data is
      refused by it (data/live.py).
  """

  def __init__(self, pairs: Mapping[str, Sequence[folder_source.Pair]]):
    listing = json.dumps({split: sorted(pairs[split]) for split in pairs})
    self.fingerprint = hashlib.sha256(listing.encode("ascii")).hexdigest()
    super().__init__({split: len(pairs[split]) for split in pairs})

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
  picture: pictures.Picture
  captions: captions_lib.Captions = captions_lib.BYT5_ONLY

  def read(
    self,
    place: int,
    split: bytes,
    max_length: int,
    max_semantic_length: int | None = None,
  ) -> dict[str, np.ndarray] | None:
    """The example, or None if its picture is bad."""
    ledger = self.source.ledger()
    try:
      example = self.source.read(
        split.decode(),
        int(place),
        picture=self.picture,
        max_length=max_length,
        captions=self.captions,
        max_semantic_length=max_semantic_length,
      )
    except images.BadImage as error:
      ledger.reject(error.file, error.reason)
      return None
    ledger.accept()
    return example

  def load_all(
    self, ds: tf.data.Dataset, sequence_length: Mapping[str, int] | None
  ) -> tf.data.Dataset:
    """Examples of the places in `ds`, without the bad pictures."""
    lengths = sequence_length or {}  # T5X measures them by asking without any.
    self.picture.check_lengths(lengths, self.source.name)
    max_length = lengths.get("text_tokens") or 2**20
    max_semantic_length = lengths.get("semantic_tokens") or 2**20

    def make(place: int, split: bytes) -> dict[str, np.ndarray] | None:
      return self.read(place, split, max_length, max_semantic_length)

    keys = ["place", "split"]
    features = self.captions.features_with(self.picture.features)
    return seqio_tasks.make_examples(ds, make, keys, self.picture, features)


def add_image_caption_folder_task(
  name: str,
  folder: str | os.PathLike[str],
  picture: pictures.Picture,
  *,
  captions: captions_lib.Captions = captions_lib.BYT5_ONLY,
  validation_share: float = 0.05,
  max_rejected_share: float = 0.05,
) -> None:
  """Registers a SeqIO task that reads a folder of captioned pictures.

  Args:
    name: of the task.
    folder: see data/folder.py.
    picture: what becomes of a picture, and so which features the task has.
    captions: what becomes of a caption, likewise.
    validation_share: share of the pictures kept for validation.
    max_rejected_share: more unusable records than this end the run.

  Raises:
    ValueError: the folder is empty or absent, or the name is taken.
  """
  source = folder_source.FolderSource(
    folder,
    validation_share=validation_share,
    max_rejected_share=max_rejected_share,
  )
  loader = PictureLoader(source=source, picture=picture, captions=captions)
  seqio.TaskRegistry.add(
    name,
    source=PlaceSource(source.pairs),
    preprocessors=[loader.load_all],
    output_features=seqio_tasks.output_features(
      captions.features_with(picture.features), captions.semantic
    ),
    metric_fns=[task_metrics.mean_loss],
    shuffle_buffer_size=None,
  )
  captions_lib.register(name, captions)


def task(
  *,
  folder: str,
  height: int,
  width: int,
  name: str = _NAME,
  fit: str = "pad",
  conditioning: str = "",
  validation_share: float = 0.05,
  max_rejected_share: float = 0.05,
) -> str:
  """Registers the folder's task once; returns its name. For gin: see above.

  Args:
    folder: see data/folder.py.
    height: rows of every picture; TASK_FEATURE_LENGTHS["image"] must be equal.
    width: columns of every picture.
    name: of the task.
    fit: "pad" or "crop" (data/images.py).
    conditioning: "", or "quoted=<path>" or "concat=<path>" of a SentencePiece
      model (data/captions.py).
    validation_share: share of the pictures kept for validation.
    max_rejected_share: more unusable records than this end the run.

  Raises:
    ValueError: the name stands for another folder or size already.
  """
  return _register_once(
    name,
    folder=str(folder),
    picture=pictures.Frame(height=height, width=width, fit=fit),
    captions=captions_lib.from_text(conditioning),
    validation_share=validation_share,
    max_rejected_share=max_rejected_share,
  )


def reading_task(
  *,
  folder: str,
  patch_size: int,
  max_patches: int,
  name: str = _READING,
  validation_share: float = 0.05,
  max_rejected_share: float = 0.05,
) -> str:
  """As `task`, for reading: pictures become patches (data/patches.py).

  Args:
    folder: as of `task`.
    patch_size: pixels of a patch's side.
    max_patches: the most of a picture; TASK_FEATURE_LENGTHS["patches"] must
      have room for them.
    name: as of `task`.
    validation_share: as of `task`.
    max_rejected_share: as of `task`.

  Raises:
    ValueError: as of `task`.
  """
  return _register_once(
    name,
    folder=str(folder),
    picture=pictures.PatchGrid(patch_size=patch_size, max_patches=max_patches),
    validation_share=validation_share,
    max_rejected_share=max_rejected_share,
  )


def _register_once(name: str, **options: Any) -> str:
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

  "+quoted=<path>" or "+concat=<path>" may follow.

  Or "image_caption_folder_reading:<folder>@<max_patches>x<patch_size>".

  Returns:
    The SeqIO name of that folder's task; any other name as it is.

  Raises:
    ValueError: the name is of these kinds but says too little, or the folder is
      of no use.
  """
  if name in seqio.TaskRegistry.names() or not name.startswith(_NAME):
    return name
  plain, conditioning = captions_lib.split_name(name)
  found = _PATTERN.fullmatch(plain)
  reading = name.startswith(_READING)
  if not found or (reading and (found["crop"] or conditioning)):
    raise ValueError(
      f"{name!r} names no folder and size. Write MIXTURE_OR_TASK_NAME = "
      + (
        f'"{_READING}:/path/to/scans@256x16" (patches x pixels of their side).'
        if reading
        else f'"{_NAME}:/path/to/photos@64x64" (height x width).'
      )
    )
  digest = hashlib.blake2b(name.encode("utf-8"), digest_size=4).hexdigest()
  first, second = int(found["first"]), int(found["second"])
  called = f"{found['kind']}_{digest}"
  if reading:
    return reading_task(
      folder=found["folder"], max_patches=first, patch_size=second, name=called
    )
  return task(
    folder=found["folder"],
    height=first,
    width=second,
    fit="crop" if found["crop"] else "pad",
    conditioning=conditioning,
    name=called,
  )
