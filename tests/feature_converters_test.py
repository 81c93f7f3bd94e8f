"""Both roads give the same bits; wrong examples are named."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest

from byt5_diffusion import feature_converters
from byt5_diffusion.data import patches, text

LENGTHS = {"image": 4, "text_tokens": 12, "example_id": 2}


def _example():
  pixels = np.arange(4 * 64 * 3) % 256
  return {
    "image": pixels.reshape(4, 64, 3).astype(np.uint8),
    "text_tokens": text.encode("naïve", 12),
    "example_id": feature_converters.example_id("a/b.png"),
  }


READING_LENGTHS = {"patches": 9, "text_tokens": 12, "example_id": 2}


def _reading_example():
  pixels = np.arange(16 * 24 * 3) % 256
  return {
    "patches": patches.cut(pixels.reshape(16, 24, 3).astype(np.uint8), 8),
    "text_tokens": text.encode("naïve", 12),
    "example_id": feature_converters.example_id("a/b.png"),
  }


CONVERTERS = [
  (feature_converters.TextToImageFeatureConverter, _example(), LENGTHS),
  (
    feature_converters.ReadingFeatureConverter,
    _reading_example(),
    READING_LENGTHS,
  ),
]


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


def test_convert_reading_closed_form():
  example = _reading_example()
  row = feature_converters.ReadingFeatureConverter.convert(
    example, READING_LENGTHS
  )
  assert {key: (a.dtype.name, a.shape) for key, a in row.items()} == {
    "patches": ("float32", (9, 2 + 3 * 64)),
    "text_tokens": ("int32", (12,)),
    "example_id": ("uint32", (2,)),
  }
  rows = row["patches"]
  np.testing.assert_array_equal(rows[:6, :2], example["patches"][:, :2])
  np.testing.assert_array_equal(
    rows[:6, 2:], feature_converters.PIXELS[example["patches"][:, 2:]]
  )
  assert not rows[6:].any()


@pytest.mark.parametrize(("make", "example", "lengths"), CONVERTERS)
def test_the_features_say_what_a_row_is(make, example, lengths):
  row = make.convert(example, lengths)
  assert list(row) == [feature.batch_name for feature in make.FEATURES]
  for feature in make.FEATURES:
    assert example[feature.task_name].dtype == feature.task_dtype
    assert row[feature.batch_name].dtype == feature.batch_dtype
    assert row[feature.batch_name].ndim == len(feature.batch_shape) - 1


def test_every_pixel_value_comes_back():
  values = np.arange(256)
  back = np.round((feature_converters.PIXELS + 1.0) * 127.5)
  np.testing.assert_array_equal(back, values)
  # -1 and 1 are exact, and the middle is symmetric: x and 255 - x are opposite.
  np.testing.assert_allclose(
    feature_converters.PIXELS, -feature_converters.PIXELS[::-1], atol=1e-7
  )


@pytest.mark.parametrize(("make", "example", "lengths"), CONVERTERS)
def test_both_roads_agree_bit_for_bit(make, example, lengths):
  pytest.importorskip("seqio")
  import tensorflow as tf

  ds = tf.data.Dataset.from_tensors(example)
  converter = make(pack=False, use_custom_packing_ops=False)
  (live,) = converter(ds, lengths).as_numpy_iterator()
  prepared = make.convert(example, lengths)
  assert live.keys() == prepared.keys()
  for key in live:
    assert live[key].dtype == prepared[key].dtype
    assert live[key].tobytes() == prepared[key].tobytes(), key


@pytest.mark.parametrize("make", [converter for converter, *_ in CONVERTERS])
def test_is_a_seqio_converter_and_refuses_packing(make):
  seqio = pytest.importorskip("seqio")
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


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"patches": np.zeros((4, 14), np.uint8)}, "'patches' is uint8"),
    ({"patches": np.zeros((10, 14), np.int16)}, "length 10"),
    ({"patches": np.zeros(14, np.int16)}, "rank 1"),
  ],
)
def test_wrong_patches_are_named(change, message):
  with pytest.raises(ValueError, match=message):
    feature_converters.ReadingFeatureConverter.convert(
      _reading_example() | change, READING_LENGTHS
    )


def test_missing_features_and_lengths_are_named():
  example = _example()
  del example["example_id"]
  with pytest.raises(ValueError, match="'example_id' is absent"):
    feature_converters.convert(example, LENGTHS)
  with pytest.raises(ValueError, match="TASK_FEATURE_LENGTHS names"):
    feature_converters.check_lengths({"image": 4, "targets": 2})
  with pytest.raises(ValueError, match=r"\['example_id', 'patches', 'text_t"):
    feature_converters.check_lengths(
      LENGTHS, feature_converters.READING_FEATURES
    )


def test_gin_can_name_it_where_tensorflow_is_absent():
  program = textwrap.dedent("""
    import sys
    sys.modules["tensorflow"] = sys.modules["seqio"] = None
    import gin
    from byt5_diffusion import feature_converters
    gin.parse_config('''
      from __gin__ import dynamic_registration
      from byt5_diffusion import feature_converters
      CONVERTER = @feature_converters.ReadingFeatureConverter
    ''')
    cls = gin.get_bindings("CONVERTER/gin.macro")["value"]
    assert cls.convert is not None
    assert cls.FEATURES == feature_converters.READING_FEATURES
  """)
  subprocess.run([sys.executable, "-c", program], check=True)
