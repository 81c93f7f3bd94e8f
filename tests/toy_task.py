"""A tiny SeqIO task of numbered pictures, for tests of the data pipeline."""

import functools

import numpy as np
import seqio
import tensorflow as tf

from byt5_diffusion import feature_converters
from byt5_diffusion.data import text

NUM_EXAMPLES = {"train": 50, "validation": 21}
LENGTHS = {"image": 4, "text_tokens": 12, "example_id": 2}
FEATURES = {
  "image": seqio.ContinuousFeature(dtype=tf.uint8, rank=3),
  "text_tokens": seqio.ContinuousFeature(dtype=tf.int32, rank=1),
  "example_id": seqio.ContinuousFeature(dtype=tf.uint32, rank=1),
}


def example(index: int, split: str = "train") -> dict[str, np.ndarray]:
  """Number `index` of a split, as task features; its caption names it."""
  image = np.full((4, 6, 3), index, np.uint8)
  image[0, 0] = [0, 127, 255]
  return {
    "image": image,
    "text_tokens": text.encode(f"{split} {index}", 12),
    "example_id": np.array([index, len(split)], np.uint32),
  }


def _source(counts):
  def numbers(split, shuffle_files, seed=None):
    ds = tf.data.Dataset.range(counts[split])
    ds = ds.shuffle(counts[split], seed) if shuffle_files else ds
    return ds.map(lambda i: {"index": i, "split": split})

  return numbers


def _draw(make, features):
  def draw(index, split):
    made = make(int(index), split.decode())
    return made["image"], made["text_tokens"], made["example_id"]

  image, tokens, key = tf.numpy_function(
    draw,
    [features["index"], features["split"]],
    [tf.uint8, tf.int32, tf.uint32],
    stateful=False,
  )
  return {
    "image": tf.ensure_shape(image, [4, 6, 3]),
    "text_tokens": tf.ensure_shape(tokens, [None]),
    "example_id": tf.ensure_shape(key, [2]),
  }


def add(name: str, make=example, counts=None) -> None:
  """Registers the task once."""
  counts = counts or NUM_EXAMPLES
  if name in seqio.TaskRegistry.names():
    return
  source = seqio.FunctionDataSource(
    _source(counts), splits=list(counts), num_input_examples=counts
  )
  seqio.TaskRegistry.add(
    name,
    source=source,
    preprocessors=[seqio.map_over_dataset(functools.partial(_draw, make))],
    output_features=FEATURES,
    shuffle_buffer_size=8,
  )


def ids(batches, count: int) -> list[int]:
  """The numbers of the examples of `count` batches, in order."""
  return [
    int(number)
    for _ in range(count)
    for number in next(batches)["example_id"][:, 0]
  ]


assert set(FEATURES) == {f.task_name for f in feature_converters.FEATURES}
