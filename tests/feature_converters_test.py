"""Both roads give the same bits; wrong examples are named."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest

from byt5_diffusion import feature_converters
from byt5_diffusion.data import text

LENGTHS = {"image": 4, "text_tokens": 12, "example_id": 2}


def _example():
  pixels = np.arange(4 * 64 * 3) % 256
  return {
    "image": pixels.reshape(4, 64, 3).astype(np.uint8),
    "text_tokens": text.encode("naïve", 12),
    "example_id": feature_converters.example_id("a/b.png"),
  }


def test_convert_closed_form():
  row = feature_converters.convert(_example(), LENGTHS)
  assert {key: (a.dtype.name, a.shape) for key, a in row.items()} == {
    "images": ("float32", (4, 64, 3)),
    "text_tokens": ("int32", (12,)),
    "example_id": ("uint32", (2,)),
  }
  assert row["images"].min() == -1.0 and row["images"].max() == 1.0
  np.testing.assert_array_equal(
    row["text_tokens"], text.encode_batch(["naïve"], 12)[0]
  )


def test_every_pixel_value_comes_back():
  values = np.arange(256)
  back = np.round((feature_converters.PIXELS + 1.0) * 127.5)
  np.testing.assert_array_equal(back, values)
  # -1 and 1 are exact, and the middle is symmetric: x and 255 - x are opposite.
  np.testing.assert_allclose(
    feature_converters.PIXELS, -feature_converters.PIXELS[::-1], atol=1e-7
  )


def test_both_roads_agree_bit_for_bit():
  pytest.importorskip("seqio")
  import tensorflow as tf

  example = _example()
  ds = tf.data.Dataset.from_tensors(example)
  converter = feature_converters.TextToImageFeatureConverter(
    pack=False, use_custom_packing_ops=False
  )
  (live,) = converter(ds, LENGTHS).as_numpy_iterator()
  prepared = feature_converters.TextToImageFeatureConverter.convert(
    example, LENGTHS
  )
  assert live.keys() == prepared.keys()
  for key in live:
    assert live[key].dtype == prepared[key].dtype
    assert live[key].tobytes() == prepared[key].tobytes(), key


def test_is_a_seqio_converter_and_refuses_packing():
  seqio = pytest.importorskip("seqio")
  make = feature_converters.TextToImageFeatureConverter
  assert isinstance(make(), seqio.FeatureConverter)
  with pytest.raises(ValueError, match="pack = False"):
    make(pack=True)


def test_example_id_is_blake2b():
  # blake2b with an 8 byte digest, of the empty string.
  expected = bytes.fromhex("e4a6a0577479b2b4")
  assert feature_converters.example_id("").astype("<u4").tobytes() == expected
  ids = {tuple(feature_converters.example_id(str(i))) for i in range(10_000)}
  assert len(ids) == 10_000


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"image": np.zeros((4, 4, 3), np.float32)}, "'image' is float32"),
    ({"image": np.zeros((4, 4), np.uint8)}, "rank 2"),
    ({"image": np.zeros((5, 4, 3), np.uint8)}, "length 5"),
    ({"image": np.zeros((3, 4, 3), np.uint8)}, "length 3"),
    ({"text_tokens": np.zeros(13, np.int32)}, "length 13"),
    ({"example_id": np.zeros(2, np.int32)}, "'example_id' is int32"),
  ],
)
def test_wrong_features_are_named(change, message):
  with pytest.raises(ValueError, match=message):
    feature_converters.convert(_example() | change, LENGTHS)


def test_missing_features_and_lengths_are_named():
  example = _example()
  del example["example_id"]
  with pytest.raises(ValueError, match="'example_id' is absent"):
    feature_converters.convert(example, LENGTHS)
  with pytest.raises(ValueError, match="TASK_FEATURE_LENGTHS names"):
    feature_converters.check_lengths({"image": 4, "targets": 2})


def test_gin_can_name_it_where_tensorflow_is_absent():
  program = textwrap.dedent("""
    import sys
    sys.modules["tensorflow"] = sys.modules["seqio"] = None
    import gin
    gin.parse_config('''
      from __gin__ import dynamic_registration
      from byt5_diffusion import feature_converters
      CONVERTER = @feature_converters.TextToImageFeatureConverter
    ''')
    cls = gin.query_parameter("CONVERTER/macro.value").configurable
    assert cls.wrapped.convert is not None
  """)
  subprocess.run([sys.executable, "-c", program], check=True)
