"""The SeqIO side of feature_converters. Imports TensorFlow."""

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from byt5_diffusion import feature_converters
from byt5_diffusion.data import native_logs

with native_logs.quiet():
  import seqio
  import tensorflow as tf

_SPEC = seqio.FeatureConverter.FeatureSpec


def _pixels(levels: tf.Tensor) -> tf.Tensor:
  # In float64 all 256 round to the table's bits, divided or multiplied by the
  # reciprocal; four times as fast as looking them up.
  return tf.cast(tf.cast(levels, tf.float64) / 127.5 - 1.0, tf.float32)


def _patch_rows(patches: tf.Tensor) -> tf.Tensor:
  places = tf.cast(patches[:, :2], tf.float32)
  return tf.concat([places, _pixels(patches[:, 2:])], axis=1)


# As feature_converters.ENCODINGS, bit for bit.
ENCODINGS: Mapping[str, Callable[[tf.Tensor], tf.Tensor]] = {
  "same": tf.identity,
  "pixels": _pixels,
  "patches": _patch_rows,
}


class FeatureConverter(seqio.FeatureConverter):
  """The features' task side -> their batch side, one example at a time."""

  PACKING_FEATURE_DTYPES: ClassVar[dict] = {}

  def __init__(
    self,
    features: Sequence[feature_converters.Feature],
    pack: bool = False,
    use_custom_packing_ops: bool = False,
  ):
    if pack:
      raise ValueError(
        "Images cannot be packed: bind pack = False for training and "
        "evaluation (some T5X run files set it to True)."
      )
    self._features = tuple(features)
    self.TASK_FEATURES = {
      feature.task_name: _SPEC(
        dtype=tf.as_dtype(feature.task_dtype), rank=len(feature.task_shape)
      )
      for feature in features
    }
    # SeqIO batches after conversion, so a row has one axis less than a batch.
    self.MODEL_FEATURES = {
      feature.batch_name: _SPEC(
        dtype=tf.as_dtype(feature.batch_dtype),
        rank=len(feature.batch_shape) - 1,
      )
      for feature in features
    }
    super().__init__(pack=False, use_custom_packing_ops=use_custom_packing_ops)

  def _convert_features(
    self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
  ) -> tf.data.Dataset:
    def convert(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
      row = {}
      for feature in self._features:
        value = ENCODINGS[feature.encoding](example[feature.task_name])
        if feature.padded:
          length = task_feature_lengths[feature.task_name]
          value = _padded(value, length)
        row[feature.batch_name] = value
      return row

    return ds.map(convert, num_parallel_calls=tf.data.AUTOTUNE)

  def get_model_feature_lengths(
    self, task_feature_lengths: Mapping[str, int]
  ) -> Mapping[str, int]:
    return {
      feature.batch_name: task_feature_lengths[feature.task_name]
      for feature in self._features
    }


def _padded(value: tf.Tensor, length: int) -> tf.Tensor:
  """Zeros after the first axis' end, up to a static length."""
  missing = [[0, length - tf.shape(value)[0]]]
  others = value.shape[1:]
  value = tf.pad(value, missing + [[0, 0]] * len(others))
  return tf.ensure_shape(value, [length, *others])
