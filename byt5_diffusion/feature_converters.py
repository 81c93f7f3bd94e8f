"""Task features -> model batch: the list of batch keys, shapes and dtypes.

`FEATURES` is the only place where they are written down. Two roads lead from a
task's example to a batch, and give the same bits:

  live      SeqIO dataset -> TextToImageFeatureConverter -> batch
  prepared  record of an ArrayRecord shard -> convert -> batch

Shapes: B batch, H height, W width, L the caption's bytes + 1 (static, padded).
Importing this module imports no TensorFlow; calling
TextToImageFeatureConverter does.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from byt5_diffusion.data import text

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
    padded: whether its length is an upper bound, and a batch is padded to it.
  """

  task_name: str
  task_dtype: str
  task_shape: tuple[str | int, ...]
  batch_name: str
  batch_dtype: str
  batch_shape: tuple[str | int, ...]
  meaning: str
  padded: bool = False


FEATURES = (
  Feature(
    task_name="image",
    task_dtype="uint8",
    task_shape=("H", "W", 3),
    batch_name="images",
    batch_dtype="float32",
    batch_shape=("B", "H", "W", 3),
    meaning="pixels; 0..255 on disk, [-1, 1] in a batch",
  ),
  Feature(
    task_name="text_tokens",
    task_dtype="int32",
    task_shape=("<= L",),
    batch_name="text_tokens",
    batch_dtype="int32",
    batch_shape=("B", "L"),
    meaning="caption: byte + 3, then 1 = end of sequence, then 0 = padding",
    padded=True,
  ),
  Feature(
    task_name="example_id",
    task_dtype="uint32",
    task_shape=(2,),
    batch_name="example_id",
    batch_dtype="uint32",
    batch_shape=("B", 2),
    meaning="names the example in every run: see `example_id`",
  ),
)

# float of every pixel value. A table, because a compiler may turn x / 127.5
# into x * (1 / 127.5), and then the two roads differ in the last bit.
PIXELS = (np.arange(256) / 127.5 - 1.0).astype(np.float32)


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


def convert(
  example: Mapping[str, np.ndarray], task_feature_lengths: Mapping[str, int]
) -> dict[str, np.ndarray]:
  """Task features of one example -> one row of the batch, by numpy alone.

  Args:
    example: {task_name: array}; see FEATURES.
    task_feature_lengths: {task_name: length}; longer tokens are an error of the
      task (it was given the same lengths), shorter ones are padded.

  Returns:
    {batch_name: array without the batch axis}.

  Raises:
    ValueError: a feature is absent, or of another dtype, rank or length.
  """
  check_lengths(task_feature_lengths)
  for feature in FEATURES:
    _check(feature, example, task_feature_lengths)
  tokens = np.full(task_feature_lengths["text_tokens"], text.PAD_ID, np.int32)
  tokens[: len(example["text_tokens"])] = example["text_tokens"]
  return {
    "images": PIXELS[example["image"]],
    "text_tokens": tokens,
    "example_id": np.array(example["example_id"], np.uint32),
  }


def check_lengths(task_feature_lengths: Mapping[str, int]) -> None:
  """Raises ValueError unless all features have a length, and no others."""
  names = {feature.task_name for feature in FEATURES}
  if set(task_feature_lengths) != names:
    raise ValueError(
      f"TASK_FEATURE_LENGTHS names {sorted(task_feature_lengths)}, the model's "
      f'features are {sorted(names)}: for example {{"image": 64, '
      '"text_tokens": 128, "example_id": 2}.'
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


class TextToImageFeatureConverter:
  """Makes the SeqIO feature converter of FEATURES.

  Calling it gives a `seqio.FeatureConverter`; naming it (in a gin file, on a
  machine without TensorFlow) imports nothing. `convert` is its twin without
  TensorFlow, used for prepared data.
  """

  convert = staticmethod(convert)

  def __new__(
    cls, pack: bool = False, use_custom_packing_ops: bool = False
  ) -> "seqio.FeatureConverter":
    """`pack` must stay False: an image cannot share its row with another."""
    from byt5_diffusion.data import seqio_converter

    return seqio_converter.TextToImageFeatureConverter(
      pack=pack, use_custom_packing_ops=use_custom_packing_ops
    )
