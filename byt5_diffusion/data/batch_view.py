"""Batches as people read them: captions, scripts, pictures, and their figures.

Works from the arrays that a model gets and from nothing else, so what is shown
is what is learnt from. No JAX, no TensorFlow.
"""

import collections
import dataclasses
import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from byt5_diffusion import feature_converters
from byt5_diffusion.data import (
  pieces,
  records,
  rejections,
  text,
)
from byt5_diffusion.data.writing import words

Batch = Mapping[str, np.ndarray]
FEATURES = {
  feature.batch_name: feature
  for feature in (
    *feature_converters.SEMANTIC_FEATURES,
    *feature_converters.ANNOTATED_FEATURES,
    *feature_converters.READING_FEATURES,
  )
}
_BARS = 8  # Of a histogram.
_ENOUGH_BYTES = 2**26  # Before compression, to judge a data set's size by.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """One example of a batch.

  Attributes:
    batch, index: place: batch number and row in it, from 0.
    arrays: {batch key: the example's part of it}.
    semantic: what semantic_tokens are of, where it is known.
  """

  batch: int
  index: int
  arrays: Mapping[str, np.ndarray]
  semantic: pieces.Pieces | None = None

  @property
  def tokens(self) -> np.ndarray:
    """text_tokens without the padding at the end; [] without such a key."""
    return _unpadded(self.arrays.get("text_tokens", _NO_TOKENS))

  @property
  def semantic_tokens(self) -> np.ndarray:
    """As tokens, of the semantic encoder."""
    return _unpadded(self.arrays.get("semantic_tokens", _NO_TOKENS))

  @property
  def semantic_text(self) -> str:
    """What the semantic encoder reads, as its model spells it; or ""."""
    if self.semantic is None:
      return ""
    return self.semantic.decode(self.semantic_tokens)

  @property
  def text(self) -> str:
    """The caption; bytes that are no UTF-8 are U+FFFD."""
    return text.decode(self.tokens)

  @property
  def num_bytes(self) -> int:
    """Bytes of the caption, the end of sequence not counted."""
    low, high = text.BYTE_OFFSET, text.BYTE_OFFSET + 256
    return int(np.sum((self.tokens >= low) & (self.tokens < high)))

  @property
  def script(self) -> str:
    """ISO 15924 code of the caption's script."""
    return words.script_of(self.text)

  @property
  def example_id(self) -> str:
    """Its two words as 16 hexadecimal digits; "" without such a key."""
    return "".join(f"{x:08x}" for x in self.arrays.get("example_id", ()))

  @property
  def picture(self) -> np.ndarray | None:
    """uint8 [H, W, 3]; patches are put back to their places."""
    if "images" in self.arrays:
      return feature_converters.to_pixels(self.arrays["images"])
    if "patches" in self.arrays:
      return join(self.arrays["patches"])
    return None

  @property
  def size(self) -> str:
    """Of the picture, as the model gets it; its bucket."""
    if "images" in self.arrays:
      height, width = self.arrays["images"].shape[:2]
      return f"{height}x{width}"
    if "patches" in self.arrays:
      rows, columns = grid(self.arrays["patches"])
      return f"{rows}x{columns} patches"
    return ""


_NO_TOKENS = np.zeros(0, np.int32)


def _unpadded(tokens: np.ndarray) -> np.ndarray:
  used = np.flatnonzero(tokens)
  return tokens[: used[-1] + 1 if used.size else 0]


def rows(
  batches: Iterable[Batch], semantic: pieces.Pieces | None = None
) -> list[Row]:
  """Every example of the batches, in order; semantic as of Row."""
  found = []
  for number, batch in enumerate(batches):
    arrays = {name: np.asarray(value) for name, value in batch.items()}
    for index in range(len(next(iter(arrays.values())))):
      parts = {name: value[index] for name, value in arrays.items()}
      found.append(
        Row(batch=number, index=index, arrays=parts, semantic=semantic)
      )
  return found


# --- Pictures ----------------------------------------------------------------


def grid(patches: np.ndarray) -> tuple[int, int]:
  """Rows and columns of the picture that patches [P, 2 + 3 p^2] make up."""
  if not len(patches):
    return 0, 0
  most = patches[:, :2].max(axis=0)
  return max(int(most[0]), 0), max(int(most[1]), 0)


def join(patches: np.ndarray) -> np.ndarray:
  """The picture of patches [P, 2 + 3 p^2]: uint8 [rows p, columns p, 3].

  Each patch goes where its row and column say, whatever their order; where no
  patch goes it is grey. Padding (row 0) is left out.

  Raises:
    ValueError: 3 p^2 numbers for no whole p, or places beyond P patches.
  """
  side = math.isqrt(max(patches.shape[1] - 2, 0) // 3)
  if side < 1 or 3 * side * side != patches.shape[1] - 2:
    raise ValueError(f"patches of {patches.shape[1]} numbers, not 2 + 3 p^2.")
  height, width = grid(patches)
  if height * width > 4 * len(patches):  # A broken place must not fill memory.
    raise ValueError(
      f"patches name a place in {height} x {width}, but are {len(patches)}."
    )
  picture = np.full((max(height, 1), max(width, 1), side, side, 3), 128, "u1")
  for patch in patches[patches[:, 0] > 0]:
    row, column = int(patch[0]) - 1, int(patch[1]) - 1
    pixels = feature_converters.to_pixels(patch[2:])
    picture[row, column] = pixels.reshape(side, side, 3)
  return picture.transpose(0, 2, 1, 3, 4).reshape(
    picture.shape[0] * side, picture.shape[1] * side, 3
  )


# --- Figures -----------------------------------------------------------------


def survey(
  examples: Sequence[Row], max_length: int | None = None
) -> dict[str, Any]:
  """What the examples hold, in numbers: plain JSON.

  Args:
    examples: of `rows`.
    max_length: the L of text_tokens, to tell how many captions fill it.
  """
  lengths = [row.num_bytes for row in examples]
  scripts = collections.Counter(row.script for row in examples)
  sizes = collections.Counter(row.size for row in examples)
  facts: dict[str, Any] = {
    "examples": len(examples),
    "different_ids": len({row.example_id for row in examples}),
    "empty_captions": sum(not length for length in lengths),
    "caption_bytes": _quantiles(lengths),
    "caption_bytes_histogram": histogram(lengths),
    "scripts": dict(scripts.most_common()),
    "sizes": dict(sizes.most_common()),
  }
  if max_length is not None:
    facts["captions_that_fill_all_bytes"] = sum(
      len(row.tokens) >= max_length for row in examples
    )
  return facts


def _quantiles(values: Sequence[int]) -> dict[str, float]:
  if not values:
    return {}
  shares = {"min": 0, "median": 50, "p90": 90, "p99": 99, "max": 100}
  found = {k: float(np.percentile(values, q)) for k, q in shares.items()}
  return found | {"mean": float(np.mean(values))}


def histogram(values: Sequence[int]) -> list[dict[str, int]]:
  """[{"from", "to", "count"}]: bars of whole, equal widths, ends included."""
  if not values:
    return []
  low, high = min(values), max(values)
  width = math.ceil((high - low + 1) / _BARS)
  counts = collections.Counter((value - low) // width for value in values)
  return [
    {
      "from": low + i * width,
      "to": low + (i + 1) * width - 1,
      "count": counts.get(i, 0),
    }
    for i in range(math.ceil((high - low + 1) / width))
  ]


Ledgers = dict[str, tuple[int, collections.Counter[str]]]


def ledgers_now() -> Ledgers:
  """Accepted and rejected so far, for `rejected_since`."""
  return {
    (summary := ledger.summary())["source"]: (
      summary["accepted"],
      collections.Counter(summary["reasons"]),
    )
    for ledger in rejections.ledgers()
  }


def rejected_since(before: Ledgers) -> dict[str, Any]:
  """What the process's ledgers counted since `before`: plain JSON."""
  accepted, reasons = 0, collections.Counter[str]()
  for source, (count, counted) in ledgers_now().items():
    old_count, old = before.get(source, (0, collections.Counter[str]()))
    accepted += count - old_count
    reasons.update(counted - old)
  return {
    "accepted": accepted,
    "rejected": sum(reasons.values()),
    "reasons": dict(reasons.most_common()),
  }


# --- Size on disk ------------------------------------------------------------


def prepared_bytes(examples: Sequence[Row]) -> float:
  """Bytes per example of a prepared data set, by preparing these.

  Small ones several times over, so that what a file costs whatever it holds
  hardly counts; records are compressed one by one, so that saves nothing.
  """
  stored = [_task_features(row) for row in examples]
  size = sum(value.nbytes for row in stored for value in row.values())
  stored *= max(1, _ENOUGH_BYTES // max(size, 1))
  specs = {
    name: {"dtype": value.dtype.name, "shape": [None] * value.ndim}
    for name, value in stored[0].items()
  }
  with tempfile.TemporaryDirectory() as folder:
    manifest = records.write(
      f"{folder}/sample",
      task="sample",
      task_feature_lengths={},
      splits={"sample": stored},
      features=specs,
      num_shards=1,
    )
  [shard] = manifest["splits"]["sample"]["shards"]
  return shard["bytes"] / len(stored)


def _task_features(row: Row) -> dict[str, np.ndarray]:
  """The row as a prepared data set keeps it: bytes, without padding."""
  stored = {}
  for name, value in row.arrays.items():
    feature = FEATURES.get(name)
    if feature is not None and feature.encoding == "pixels":
      value = feature_converters.to_pixels(value)
    elif feature is not None and feature.encoding == "patches":
      used = value[value[:, 0] > 0]
      pixels = feature_converters.to_pixels(used[:, 2:])
      value = np.concatenate([used[:, :2], pixels], axis=1).astype(np.int16)
    elif name in ("boxes", "box_labels", "box_spans"):
      value = value[: np.count_nonzero(row.arrays["box_labels"])]
    elif feature is not None and feature.padded:
      value = _unpadded(value)
    stored[name] = value
  return stored


def take(
  batches: Iterable[dict[str, np.ndarray]], num_examples: int
) -> list[dict[str, np.ndarray]]:
  """The first batches, until they hold num_examples or end."""
  taken = []
  seen = 0
  for batch in batches:
    taken.append(batch)
    seen += len(next(iter(batch.values())))
    if seen >= num_examples:
      break
  return taken
