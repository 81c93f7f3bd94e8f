"""What the SeqIO tasks of tasks/ have in common. Imports TensorFlow.

Their sources give numbers, and a Python function makes an example of each.
"""

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from byt5_diffusion import feature_converters
from byt5_diffusion.data import captions as captions_lib
from byt5_diffusion.data import (
  mixture,
  native_logs,
  pictures,
  pieces,
  supplies,
  task_metrics,
)
from byt5_diffusion.data.rows import order

with native_logs.quiet():
  import seqio
  import tensorflow as tf

Example = Mapping[str, np.ndarray]
_PLACES = 1024  # Ordered by one call.


def output_features(
  features: Sequence[feature_converters.Feature],
  semantic: pieces.Pieces | None = None,
) -> dict[str, seqio.Feature]:
  """SeqIO's description of the features' task side.

  Args:
    features: of the task.
    semantic: the SentencePiece model of "semantic_tokens", where there is one.
  """
  return {
    feature.task_name: _output_feature(feature, semantic)
    for feature in features
  }


def _output_feature(
  feature: feature_converters.Feature, semantic: pieces.Pieces | None
) -> seqio.Feature:
  dtype = tf.as_dtype(feature.task_dtype)
  if feature.task_name == "semantic_tokens" and semantic is not None:
    return seqio.Feature(
      vocabulary=seqio.SentencePieceVocabulary(semantic.name),
      add_eos=True,
      dtype=dtype,
    )
  if feature.task_name == "text_tokens":
    return seqio.Feature(
      vocabulary=seqio.ByteVocabulary(), add_eos=True, dtype=dtype
    )
  return seqio.ContinuousFeature(dtype=dtype, rank=len(feature.task_shape))


class NumberedSource(seqio.DataSource):
  """Numbers 0..n-1 of each split; a subclass's `get_dataset` gives them.

  Any number of shards can be taken, because numbers cost nothing.
  """

  def __init__(self, num_examples: Mapping[str, int]):
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


def make_examples(
  ds: tf.data.Dataset,
  make: Callable[..., Example | None],
  arguments: Sequence[str],
  picture: pictures.Picture,
  features: Sequence[feature_converters.Feature],
) -> tf.data.Dataset:
  """The task features that `make` makes of each element.

  Args:
    ds: of dicts of scalars.
    make: pure function (values of `arguments`) -> example, or None for what is
      to be left out. TensorFlow calls it on its threads.
    arguments: keys of the dicts; strings arrive as bytes.
    picture: says which feature is the picture, and of what shape.
    features: all of the task's.
  """
  shapes = {
    feature.task_name: picture.shape
    if feature.task_name == picture.name
    else tuple(n if isinstance(n, int) else None for n in feature.task_shape)
    for feature in features
  }

  def call(*values: Any) -> tuple[Any, ...]:
    example = make(*values)
    if example is not None:
      return *(example[feature.task_name] for feature in features), True
    empty = (
      np.zeros([n or 0 for n in shapes[feature.task_name]], feature.task_dtype)
      for feature in features
    )
    return *empty, False

  def convert(element: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    # Without state: the same arguments give the same example, so a checkpoint
    # of the iterator need not hold it.
    *made, good = tf.numpy_function(
      call,
      [element[key] for key in arguments],
      [*(tf.as_dtype(feature.task_dtype) for feature in features), tf.bool],
      stateful=False,
    )
    return {
      name: tf.ensure_shape(value, shape)
      for (name, shape), value in zip(shapes.items(), made, strict=True)
    } | {"good": tf.ensure_shape(good, [])}

  ds = ds.map(convert, num_parallel_calls=tf.data.AUTOTUNE)
  ds = ds.filter(lambda example: example["good"])
  return ds.map(lambda example: {name: example[name] for name in shapes})


class SupplySource(NumberedSource):
  """Numbers of a supply's examples, with their split and a seed.

  Attributes:
    supply: whose they are.
    fingerprint: see Supply.
  """

  def __init__(self, supply: supplies.Supply):
    self.supply = supply
    self.fingerprint = supply.fingerprint
    self._orders: dict[str, order.Order] = {}
    super().__init__(dict(supply.sizes))

  def get_dataset(
    self,
    split: str = "train",
    shuffle: bool = True,
    seed: int | None = None,
    shard_info: seqio.ShardInfo | None = None,
    **unused: Any,
  ) -> tf.data.Dataset:
    """Shard s of V has places s, s + V, ... of the one order of all.

    Every pass over the data set has another order (data/rows/order.py).
    """
    count = self.num_input_examples(split)
    seed = 0 if seed is None or not shuffle else seed
    shards = shard_info or seqio.ShardInfo(0, 1)
    orders = None
    if shuffle and not self.supply.endless:
      orders = self._order(split)

    def convert(key: tf.Tensor, start: tf.Tensor) -> tf.Tensor:
      places = tf.range(
        start, tf.minimum(start + _PLACES * shards.num_shards, count)
      )
      return tf.numpy_function(
        functools.partial(_examples, orders, seed),
        [key, places[:: shards.num_shards]],
        tf.int64,
        stateful=False,
      )

    # Drawn anew whenever SeqIO repeats the data set, and part of its snapshots.
    keys = tf.data.Dataset.random(
      seed=seed, rerandomize_each_iteration=True
    ).take(1)
    ds = keys.flat_map(
      lambda key: tf.data.Dataset.range(
        shards.index, count, _PLACES * shards.num_shards
      ).map(lambda start: convert(key, start))
    ).unbatch()
    return ds.map(
      lambda index: {
        "split": tf.constant(split),
        "index": tf.ensure_shape(index, []),
        "seed": tf.cast(seed, tf.int64),
      }
    )

  def _order(self, split: str) -> order.Order:
    if split not in self._orders:
      blocks = getattr(self.supply, "blocks", None)
      count = self.num_input_examples(split)
      self._orders[split] = order.Order(
        blocks(split) if blocks else order.even(count)
      )
    return self._orders[split]


def _examples(
  orders: order.Order | None, seed: int, key: int, places: np.ndarray
) -> np.ndarray:
  """The examples at these places of an epoch."""
  if orders is None:
    return places
  return orders.examples(order.epoch_key(seed, int(key)), places)


def _make_all(
  ds: tf.data.Dataset,
  sequence_length: Mapping[str, int] | None = None,
  *,
  maker: supplies.Maker | mixture.Mixture,
) -> tf.data.Dataset:
  """Preprocessor: {split, index, seed} -> the task's features."""
  lengths = sequence_length or {}  # T5X measures them by asking without any.
  maker.picture.check_lengths(lengths, maker.supply.name)

  def make(split: bytes, index: int, seed: int) -> Example | None:
    return maker.make(split.decode(), int(index), int(seed), lengths)

  features = maker.captions.features_with(maker.picture.features)
  keys = ["split", "index", "seed"]
  return make_examples(ds, make, keys, maker.picture, features)


def short_name(kind: str, said: str) -> str:
  """SeqIO's name, where few characters may be, of all that a name says."""
  digest = hashlib.blake2b(said.encode("utf-8"), digest_size=4).hexdigest()
  return f"{kind}_{digest}"


def add_supply_task(name: str, maker: supplies.Maker | mixture.Mixture) -> None:
  """Registers the SeqIO task of a supply."""
  features = maker.captions.features_with(maker.picture.features)
  seqio.TaskRegistry.add(
    name,
    source=SupplySource(maker.supply),
    preprocessors=[functools.partial(_make_all, maker=maker)],
    output_features=output_features(features, maker.captions.semantic),
    metric_fns=[task_metrics.mean_loss],
    # The source shuffles numbers; pictures need not wait in memory.
    shuffle_buffer_size=None,
  )
  captions_lib.register(name, maker.captions)


def register(table: Mapping[str, supplies.Kind], name: str) -> str:
  """Registers what a name says (data/supplies.py), once.

  Args:
    table: of a module of tasks/.
    name: of a task.

  Returns:
    SeqIO's name of the task; a name of no kind of the table as it is.

  Raises:
    ValueError: see supplies.parse.
  """
  if name in seqio.TaskRegistry.names():
    return name
  short = short_name(name.partition(":")[0], name)
  if short in seqio.TaskRegistry.names():
    return short
  parsed = supplies.parse(table, name)
  if parsed is None:
    return name
  supply, picture, captions = parsed
  maker = supplies.Maker(supply=supply, picture=picture, captions=captions)
  add_supply_task(short, maker)
  return short
