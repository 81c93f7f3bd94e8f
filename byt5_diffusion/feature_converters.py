"""Task features -> model batch: the list of batch keys, shapes and dtypes.

`FEATURES` (a caption to draw), `SEMANTIC_FEATURES` (the same for two encoders),
`ANNOTATED_FEATURES` (with boxes, masks and style) and `READING_FEATURES` (a
picture to read) are the only places where they are written down. Two roads lead
from a task's example to a batch, and give the same bits:

  live      SeqIO dataset -> the converter that the class makes -> batch
  prepared  record of an ArrayRecord shard -> its `convert` -> batch

Shapes: B batch, H height, W width, P patches, p pixels of a patch's side, L the
caption's bytes + 1, S the caption's pieces + 1; P, L and S are static, padded.
Importing this module imports no TensorFlow; calling a converter class does.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
  import seqio


@dataclasses.dataclass(frozen=True, kw_only=True)
class Feature:
  """One feature on both sides of the converter.

  Attributes:
    task_name: key in a task's example, and in TASK_FEATURE_LENGTHS.
    task_dtype: numpy dtype there.
    task_shape: symbols or sizes there; the first one is "the length".
    batch_name: key in a model's batch.
    batch_dtype: numpy dtype there.
    batch_shape: symbols or sizes there.
    meaning: one line.
    encoding: how its numbers become the batch's; one of ENCODINGS.
    padded: whether its length is an upper bound, and a batch is padded to it.
  """

  task_name: str
  task_dtype: str
  task_shape: tuple[str | int, ...]
  batch_name: str
  batch_dtype: str
  batch_shape: tuple[str | int, ...]
  meaning: str
  encoding: str = "same"
  padded: bool = False


TEXT_TOKENS = Feature(
  task_name="text_tokens",
  task_dtype="int32",
  task_shape=("<= L",),
  batch_name="text_tokens",
  batch_dtype="int32",
  batch_shape=("B", "L"),
  meaning="caption: byte + 3, then 1 = end of sequence, then 0 = padding",
  padded=True,
)
SEMANTIC_TOKENS = Feature(
  task_name="semantic_tokens",
  task_dtype="int32",
  task_shape=("<= S",),
  batch_name="semantic_tokens",
  batch_dtype="int32",
  batch_shape=("B", "S"),
  meaning="caption: SentencePiece ids, then 1 = end of sequence, 0 = padding",
  padded=True,
)
_EXAMPLE_ID = Feature(
  task_name="example_id",
  task_dtype="uint32",
  task_shape=(2,),
  batch_name="example_id",
  batch_dtype="uint32",
  batch_shape=("B", 2),
  meaning="names the example in every run: see `example_id`",
)
FEATURES = (
  Feature(
    task_name="image",
    task_dtype="uint8",
    task_shape=("H", "W", 3),
    batch_name="images",
    batch_dtype="float32",
    batch_shape=("B", "H", "W", 3),
    meaning="pixels; 0..255 on disk, [-1, 1] in a batch",
    encoding="pixels",
  ),
  TEXT_TOKENS,
  _EXAMPLE_ID,
)
# Where two encoders read the text (data/captions.py).
SEMANTIC_FEATURES = (*FEATURES, SEMANTIC_TOKENS)
READING_FEATURES = (
  Feature(
    task_name="patches",
    task_dtype="int16",
    task_shape=("<= P", "2 + 3 p^2"),
    batch_name="patches",
    batch_dtype="float32",
    batch_shape=("B", "P", "2 + 3 p^2"),
    meaning="row and column from 1, then pixels as of images; 0 = padding",
    encoding="patches",
    padded=True,
  ),
  TEXT_TOKENS,
  _EXAMPLE_ID,
)

# FEATURES, and what is known of the picture besides (data/annotated.py). Boxes
# and the mask are of the picture as the model gets it.
ANNOTATED_FEATURES = (
  *FEATURES,
  Feature(
    task_name="boxes",
    task_dtype="float32",
    task_shape=("<= N", 4),
    batch_name="boxes",
    batch_dtype="float32",
    batch_shape=("B", "N", 4),
    meaning="left, top, right, bottom as shares of width and height; 0 = none",
    padded=True,
  ),
  Feature(
    task_name="box_labels",
    task_dtype="int32",
    task_shape=("<= N",),
    batch_name="box_labels",
    batch_dtype="int32",
    batch_shape=("B", "N"),
    meaning="what each box is: place in annotated.LABELS; 0 = padding",
    padded=True,
  ),
  Feature(
    task_name="box_spans",
    task_dtype="int32",
    task_shape=("<= N", 2),
    batch_name="box_spans",
    batch_dtype="int32",
    batch_shape=("B", "N", 2),
    meaning="first token of the box's text in text_tokens, and the one behind "
    "its last; 0, 0 = not there",
    padded=True,
  ),
  Feature(
    task_name="region_mask",
    task_dtype="uint8",
    task_shape=("H", "W"),
    batch_name="region_mask",
    batch_dtype="uint8",
    batch_shape=("B", "H", "W"),
    meaning="what lies at each pixel: place in annotated.LABELS; 0 = nothing",
  ),
  Feature(
    task_name="style",
    task_dtype="float32",
    task_shape=(14,),
    batch_name="style",
    batch_dtype="float32",
    batch_shape=("B", 14),
    meaning="the numbers of annotated.STYLE; NaN = unknown",
  ),
  Feature(
    task_name="language",
    task_dtype="int32",
    task_shape=(1,),
    batch_name="language",
    batch_dtype="int32",
    batch_shape=("B", 1),
    meaning="row of languages.TABLE; -1 = none of them",
  ),
)

# float of every pixel value. A table, because a compiler may turn x / 127.5
# into x * (1 / 127.5), and then the two roads differ in the last bit.
PIXELS = (np.arange(256) / 127.5 - 1.0).astype(np.float32)


def to_pixels(values: ArrayLike) -> np.ndarray:
  """[-1, 1] to 0..255, rounded: PIXELS backwards; NaN becomes 0."""
  scaled = np.nan_to_num(np.asarray(values, np.float32), nan=-1.0)
  return np.rint(np.clip((scaled + 1) * 127.5, 0, 255)).astype(np.uint8)


def example_id(key: str) -> np.ndarray:
  """The first 8 bytes of blake2b(key), as two uint32 [2].

  Args:
    key: what names the example for good: "<task>/<split>/<relative path>" of a
      folder, task, split, string and index of typography; never its position.
  """
  # A file's name may hold bytes that are no UTF-8 (as lone surrogates).
  raw = key.encode("utf-8", "surrogatepass")
  digest = hashlib.blake2b(raw, digest_size=8).digest()
  return np.frombuffer(digest, "<u4").astype(np.uint32)


def patch_rows(patches: np.ndarray) -> np.ndarray:
  """Patches of a task, int16, -> of a batch: [P, 2 + 3 p^2] float32."""
  places = patches[:, :2].astype(np.float32)
  return np.concatenate([places, PIXELS[patches[:, 2:]]], axis=1)


# Feature.encoding -> its numpy form; data/seqio_converter.py has TensorFlow's.
ENCODINGS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
  "same": np.array,
  "pixels": lambda image: PIXELS[image],
  "patches": patch_rows,
}


def convert(
  example: Mapping[str, np.ndarray],
  task_feature_lengths: Mapping[str, int],
  features: tuple[Feature, ...] = FEATURES,
) -> dict[str, np.ndarray]:
  """Task features of one example -> one row of the batch, by numpy alone.

  Args:
    example: {task_name: array}; see `features`.
    task_feature_lengths: {task_name: length}; longer tokens are an error of the
      task (it was given the same lengths), shorter ones are padded.
    features: FEATURES or READING_FEATURES.

  Returns:
    {batch_name: array without the batch axis}.

  Raises:
    ValueError: a feature is absent, or of another dtype, rank or length.
  """
  check_lengths(task_feature_lengths, features)
  row = {}
  for feature in features:
    _check(feature, example, task_feature_lengths)
    array = ENCODINGS[feature.encoding](example[feature.task_name])
    if feature.padded:
      missing = task_feature_lengths[feature.task_name] - len(array)
      # Zero stands for padding in tokens (PAD_ID) and in patches alike.
      array = np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1))
    row[feature.batch_name] = array
  return row


def check_lengths(
  task_feature_lengths: Mapping[str, int],
  features: tuple[Feature, ...] = FEATURES,
) -> None:
  """Raises ValueError unless all features have a length, and no others."""
  names = [feature.task_name for feature in features]
  if set(task_feature_lengths) != set(names):
    raise ValueError(
      f"TASK_FEATURE_LENGTHS names {sorted(task_feature_lengths)}, the model's "
      f"features are {sorted(names)}: for example "
      f"{dict(zip(names, (64, 128, 2, 64), strict=False))}."
    )
  for name, length in task_feature_lengths.items():
    if length < 1:
      raise ValueError(
        f'TASK_FEATURE_LENGTHS["{name}"] = {length} must be positive.'
      )


def _check(
  feature: Feature,
  example: Mapping[str, np.ndarray],
  lengths: Mapping[str, int],
) -> None:
  name, length = feature.task_name, lengths[feature.task_name]
  if name not in example:
    raise ValueError(f"Feature {name!r} is absent; found {sorted(example)}.")
  array, rank = example[name], len(feature.task_shape)
  if array.dtype != feature.task_dtype or array.ndim != rank:
    raise ValueError(
      f"Feature {name!r} is {array.dtype} of rank {array.ndim}, expected "
      f"{feature.task_dtype} of rank {rank}."
    )
  if len(array) > length or (len(array) < length and not feature.padded):
    raise ValueError(
      f"Feature {name!r} has length {len(array)}, TASK_FEATURE_LENGTHS says "
      f"{length}."
    )


class FeatureConverter:
  """Makes the SeqIO feature converter of a class's FEATURES.

  Calling it gives a `seqio.FeatureConverter`; naming it (in a gin file, on a
  machine without TensorFlow) imports nothing. `convert` is its twin without
  TensorFlow, used for prepared data.
  """

  FEATURES: ClassVar[tuple[Feature, ...]]

  def __new__(
    cls, pack: bool = False, use_custom_packing_ops: bool = False
  ) -> "seqio.FeatureConverter":
    """`pack` must stay False: an image cannot share its row with another."""
    from byt5_diffusion.data import seqio_converter

    return seqio_converter.FeatureConverter(
      cls.FEATURES, pack=pack, use_custom_packing_ops=use_custom_packing_ops
    )

  @classmethod
  def convert(
    cls,
    example: Mapping[str, np.ndarray],
    task_feature_lengths: Mapping[str, int],
  ) -> dict[str, np.ndarray]:
    """The function `convert`, of this class's features."""
    return convert(example, task_feature_lengths, cls.FEATURES)


class TextToImageFeatureConverter(FeatureConverter):
  """What a model of images learns from: FEATURES."""

  FEATURES: ClassVar[tuple[Feature, ...]] = FEATURES


class ReadingFeatureConverter(FeatureConverter):
  """What a reader of patches learns from: READING_FEATURES."""

  FEATURES: ClassVar[tuple[Feature, ...]] = READING_FEATURES


class AnnotatedFeatureConverter(FeatureConverter):
  """As TextToImageFeatureConverter, with ANNOTATED_FEATURES."""

  FEATURES: ClassVar[tuple[Feature, ...]] = ANNOTATED_FEATURES


class SemanticFeatureConverter(FeatureConverter):
  """What a model of images with two text encoders learns from."""

  FEATURES: ClassVar[tuple[Feature, ...]] = SEMANTIC_FEATURES
