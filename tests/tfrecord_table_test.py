"""Records, their sums, and examples without TensorFlow."""

import numpy as np
import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("fsspec")

import table_files

from byt5_diffusion.data.rows import (
  crc32c,
  tables,
  tf_example,
)


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def test_checksums_of_known_bytes():
  assert crc32c.crc32c(b"123456789") == 0xE3069283
  assert crc32c.crc32c(b"\0" * 32) == 0x8A9136AA  # RFC 3720, B.4
  assert crc32c.crc32c(b"\xff" * 32) == 0x62A8AB43
  assert crc32c.crc32c(b"") == 0
  raw = np.random.default_rng(0).bytes(600_001)
  register = 0xFFFFFFFF
  for byte in raw[:1000]:
    register ^= byte
    for _ in range(8):
      register = (register >> 1) ^ (register & 1) * 0x82F63B78
  assert crc32c.crc32c(raw[:1000]) == register ^ 0xFFFFFFFF
  # Parts of other lengths put together otherwise give the same whole.
  joined = crc32c._advance(crc32c.crc32c(raw[:77]), len(raw) - 77)
  assert joined ^ crc32c.crc32c(raw[77:]) == crc32c.crc32c(raw)


@pytest.mark.slow
def test_examples_and_records_of_tensorflow(tmp_path):
  tf = pytest.importorskip("tensorflow")
  row = {
    "jpg": b"x" * 300,
    "key": "né".encode(),
    "width": -5,
    "score": 0.25,
    "many": [1, -(2**62), 2**62],
    "scores": [0.5, -1.5],
    "none": [],
    "texts": [b"a", b""],
  }
  feature = {
    "jpg": tf.train.Feature(bytes_list=tf.train.BytesList(value=[row["jpg"]])),
    "key": tf.train.Feature(bytes_list=tf.train.BytesList(value=[row["key"]])),
    "width": tf.train.Feature(int64_list=tf.train.Int64List(value=[-5])),
    "score": tf.train.Feature(float_list=tf.train.FloatList(value=[0.25])),
    "many": tf.train.Feature(int64_list=tf.train.Int64List(value=row["many"])),
    "scores": tf.train.Feature(
      float_list=tf.train.FloatList(value=row["scores"])
    ),
    "none": tf.train.Feature(),
    "texts": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"a", b""])),
  }
  example = tf.train.Example(features=tf.train.Features(feature=feature))
  with tf.io.TFRecordWriter(str(tmp_path / "a.tfrecord")) as writer:
    writer.write(example.SerializeToString())
  assert tables.open_table(tmp_path).read(0) == row
  # And TensorFlow reads what tests write.
  again = tf.train.Example.FromString(tf_example.encode(row))
  del feature["none"]
  assert {k: again.features.feature[k] for k in feature} == feature
  table_files.write_tfrecord(tmp_path / "b.tfrecord", [row])
  (raw,) = tf.data.TFRecordDataset(str(tmp_path / "b.tfrecord"))
  assert tf_example.decode(raw.numpy()) == row


def test_an_example_by_hand():
  # {"a": [1, 300] packed, "b": 0.5}
  raw = bytes.fromhex(
    "0a1d0a0c0a016112071a050a0301ac020a0d0a0162120812060a040000003f"
  )
  assert tf_example.decode(raw) == {"a": [1, 300], "b": 0.5}
  assert tf_example.decode(tf_example.encode({"x": -1, "y": [b"", b"z"]})) == {
    "x": -1, "y": [b"", b"z"]
  }  # fmt: skip
  with pytest.raises(ValueError, match="cut short"):
    tf_example.decode(raw[:-1])


def test_what_is_no_example_is_a_value_error():
  good = tf_example.encode({"a": 1, "b": [0.5, 1.5], "c": b"x" * 200})
  rng = np.random.default_rng(0)
  failed = 0
  for _ in range(300):
    raw = bytearray(good)
    raw[rng.integers(len(raw))] = rng.integers(256)
    try:
      tf_example.decode(bytes(raw[: rng.integers(len(raw) + 1)]))
    except ValueError:
      failed += 1
  assert failed > 50


def test_a_wrong_checksum_is_one_bad_row(tmp_path):
  path = tmp_path / "a.tfrecord"
  table_files.write("tfrecord", path)
  raw = bytearray(path.read_bytes())
  raw[-10] ^= 1
  path.write_bytes(raw)
  assert list(table_files.problems(tables.open_table(path)).values()) == [
    ("a.tfrecord:19", "wrong checksum")
  ]
  raw[3] ^= 1  # The first one's length.
  path.write_bytes(raw)
  with pytest.raises(ValueError, match=r"a\.tfrecord: not a TFRecord file"):
    tables.open_table(path)
