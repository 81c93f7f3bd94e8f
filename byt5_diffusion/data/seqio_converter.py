"""The SeqIO side of feature_converters. Imports TensorFlow."""

from collections.abc import Mapping
from typing import ClassVar

from byt5_diffusion import feature_converters
from byt5_diffusion.data import native_logs

with native_logs.quiet():
  import seqio
  import tensorflow as tf

_SPEC = seqio.FeatureConverter.FeatureSpec


class TextToImageFeatureConverter(seqio.FeatureConverter):
  """FEATURES' task side -> their batch side, one example at a time."""

  TASK_FEATURES: ClassVar = {
    feature.task_name: _SPEC(
      dtype=tf.as_dtype(feature.task_dtype), rank=len(feature.task_shape)
    )
    for feature in feature_converters.FEATURES
  }
  # SeqIO batches after conversion, so a row has one axis less than a batch.
  MODEL_FEATURES: ClassVar = {
    feature.batch_name: _SPEC(
      dtype=tf.as_dtype(feature.batch_dtype), rank=len(feature.batch_shape) - 1
    )
    for feature in feature_converters.FEATURES
  }
  PACKING_FEATURE_DTYPES: ClassVar[dict] = {}

  def __init__(self, pack: bool = False, use_custom_packing_ops: bool = False):
    if pack:
      raise ValueError(
        "Images cannot be packed: bind pack = False for training and "
        "evaluation (some T5X run files set it to True)."
      )
    super().__init__(pack=False, use_custom_packing_ops=use_custom_packing_ops)

  def _convert_features(
    self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
  ) -> tf.data.Dataset:
    pixels = tf.constant(feature_converters.PIXELS)
    length = task_feature_lengths["text_tokens"]

    def convert(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
      tokens = example["text_tokens"]
      tokens = tf.pad(tokens, [[0, length - tf.shape(tokens)[0]]])
      return {
        "images": tf.gather(pixels, tf.cast(example["image"], tf.int32)),
        "text_tokens": tf.ensure_shape(tokens, [length]),
        "example_id": example["example_id"],
      }

    return ds.map(convert, num_parallel_calls=tf.data.AUTOTUNE)

  def get_model_feature_lengths(
    self, task_feature_lengths: Mapping[str, int]
  ) -> Mapping[str, int]:
    return {
      feature.batch_name: task_feature_lengths[feature.task_name]
      for feature in feature_converters.FEATURES
    }
