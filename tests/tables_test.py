"""Rows of every format, of files that are whole and of files that are not."""

import csv
import fcntl
import gzip
import io
import os
import resource
import tarfile
import tracemalloc

import numpy as np
import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("fsspec")

import fsspec
import pyarrow
import pyarrow.parquet
import table_files

from byt5_diffusion.data import (
  block_cache,
  cached_arrays,
  crc32c,
  files,
  images,
  parquet_table,
  rejections,
  tables,
  tar_table,
  tf_example,
)

ROWS = [
  {
    "__key__": f"{i:03d}",
    "jpg": bytes([i]) * (i + 1),
    "txt": f"né {i}".encode(),
  }
  for i in range(20)
]
TEXTS = [{"id": str(i), "text": f'né "{i}"\n\tx, y'} for i in range(20)]
KINDS = list(table_files.WRITERS)


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def _write(kind, path, rows=None):
  """Writes a file; what its rows are when they come back."""
  if rows is None:
    rows = ROWS if kind in table_files.BINARY else TEXTS
  table_files.WRITERS[kind](path, rows)
  if kind in ("tfrecord", "array_record"):  # They know bytes alone.
    rows = [row | {"__key__": row["__key__"].encode()} for row in rows]
  return rows


def _problems(table, columns=()):
  """{row: (name, reason)} of the broken ones, by reading and by scanning."""
  found = {}
  for row, value in table.scan(columns or table.columns):
    if isinstance(value, images.BadImage):
      found[row] = (value.file, value.reason)
      with pytest.raises(images.BadImage) as caught:
        table.read(row)
      assert (caught.value.file, caught.value.reason) == found[row]
    else:
      table.read(row)
  return found


@pytest.mark.parametrize("kind", KINDS)
def test_rows_come_back_as_they_were_written(kind, tmp_path):
  for number in range(2):
    rows = _write(kind, tmp_path / f"{number}.{kind}")
  for _ in range(2):  # Again, by the indexes that were kept.
    table = tables.open_table(tmp_path)
    assert len(table) == sum(table.blocks) == 40
    assert len(table.block_bytes) == len(table.blocks)
    for row in (0, 13, 19, 20, 39):
      assert table.read(row) == rows[row % 20]
    assert [row for row, _ in table.scan(())] == list(range(40))
    some = table.columns[-1]
    scanned = [row[some] for _, row in table.scan((some, "absent"))]
    assert scanned == [row[some] for row in rows] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_columns_are_chosen_and_missed(kind, tmp_path):
  rows = _write(kind, tmp_path / f"a.{kind}")
  last = list(rows[0])[-1]
  table = tables.open_table(tmp_path, columns=(last,), optional=("more",))
  assert table.read(3)[last] == rows[3][last]
  assert set(table.read(3)) - {"__key__"} == {last}
  with pytest.raises(ValueError, match=rf"a\.{kind} has no column 'no', 'nor'"):
    tables.open_table(tmp_path, columns=("no", last, "nor"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_file_is_named(kind, tmp_path):
  path = tmp_path / f"a.{kind}"
  _write(kind, path)
  whole = path.read_bytes()
  for size in (len(whole) * 2 // 3, len(whole) // 3, 5, 1):
    path.write_bytes(whole[:size])
    try:
      table = tables.open_table(tmp_path)
    except ValueError as error:
      assert f"a.{kind}" in str(error)
      continue
    problems = _problems(table)
    assert len(table) < 20 or problems
    assert all(name.startswith(f"a.{kind}:") for name, _ in problems.values())
    assert len(problems) <= 2


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_never_do_worse_than_bad_rows(kind, tmp_path):
  path = tmp_path / f"a.{kind}"
  _write(kind, path)
  whole = path.read_bytes()
  rng = np.random.default_rng(1)
  for number in range(12):
    raw = bytearray(whole)
    for place in rng.integers(0, len(raw), 3):
      raw[place] = rng.integers(256)
    path = tmp_path / str(number) / f"a.{kind}"
    path.parent.mkdir()
    path.write_bytes(raw)
    try:
      table = tables.open_table(path)
    except ValueError as error:
      assert f"a.{kind}" in str(error)
      continue
    _problems(table)


@pytest.mark.parametrize("kind", KINDS)
def test_empty_files_are_left_out_and_counted(kind, tmp_path):
  for number in range(20):
    _write(kind, tmp_path / f"{number:02d}.{kind}")
  (tmp_path / f"05.{kind}").write_bytes(b"")
  assert len(tables.open_table(tmp_path)) == 19 * 20
  (tmp_path / f"06.{kind}").write_bytes(b"")
  with pytest.raises(rejections.TooManyRejections, match=f"06.{kind}: empty"):
    tables.open_table(tmp_path)


def test_paths(tmp_path):
  for name in ("a-00.jsonl", "a-01.jsonl", "a-02.jsonl", "deep/b[1].jsonl"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text('{"a": 1}\n')
  (tmp_path / ".hidden.jsonl").write_text("{}")
  (tmp_path / "notes.txt").write_text("hello")
  for path, count in [
    ("", 4),
    ("a-{00..01}.jsonl", 2),
    ("a-0{0,2}.jsonl", 2),
    ("a-*.jsonl", 3),
    ("**/*.jsonl", 4),
    ("deep/b[1].jsonl", 1),
    ("{deep,a-01.jsonl}", 2),
  ]:
    assert len(tables.open_table(f"{tmp_path}/{path}")) == count, path
  for path, message in [
    ("nowhere", "nowhere: there is no such file"),
    ("a-{00..07}.jsonl", "a-03.jsonl: there is no such file"),
    ("a-{07..00}.jsonl", "counts up"),
    ("{0..9}{0..9}{0..9}{0..9}{0..9}{0..9}", "more than 100000"),
    ("notes.txt", "none of its 1 files is of a known format"),
    ("*.none", "no such file"),
  ]:
    with pytest.raises(ValueError, match=message):
      tables.open_table(f"{tmp_path}/{path}")
  os.mkfifo(tmp_path / "pipe.jsonl")
  with pytest.raises(ValueError, match="not a regular file"):
    tables.open_table(tmp_path / "pipe.jsonl")
  assert files.expand("x{1..3}y{a,b}") == [
    f"x{i}y{c}" for i in (1, 2, 3) for c in "ab"
  ]


def test_endings():
  for path, ending in [
    ("c4-xx.tfrecord-00000-of-00001.json.gz", "json.gz"),
    ("set-train.tfrecord-00003-of-00010", "tfrecord"),
    ("part-0-c000.snappy.parquet", "parquet"),
    ("A.TAR", "tar"),
    ("00000_stats.json", None),
    ("a.tar.gz", None),
  ]:
    found = tables._format(path)
    assert (found.ending if found else None) == ending, path


def test_a_folder_of_several_formats(tmp_path):
  _write("tar", tmp_path / "00000.tar")
  _write("parquet", tmp_path / "00000.parquet")
  (tmp_path / "00000_stats.json").write_text("{}")
  table = tables.open_table(tmp_path)  # As img2dataset leaves it.
  assert table.columns == ("__key__", "jpg", "txt")
  _write("parquet", tmp_path / "00001.parquet")
  with pytest.raises(ValueError, match=r"1 \.tar"):
    tables.open_table(tmp_path)
  assert len(tables.open_table(f"{tmp_path}/*.parquet")) == 40


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "array_record"])
def test_addresses_of_fsspec(kind, tmp_path):
  rows = _write(kind, tmp_path / f"0.{kind}")
  memory = fsspec.filesystem("memory")
  memory.pipe_file(
    f"/set/{kind}/0.{kind}", (tmp_path / f"0.{kind}").read_bytes()
  )
  for path in (f"memory://set/{kind}", f"memory://set/{kind}/*.{kind}"):
    table = tables.open_table(path)
    assert [table.read(i) for i in range(20)] == rows
  local = tables.open_table(tmp_path)
  assert table.fingerprint == local.fingerprint  # A copy is the same data.
  with pytest.raises(ValueError, match="no such file"):
    tables.open_table("memory://set/nothing")
  with pytest.raises(ValueError, match="nosuch"):
    tables.open_table("nosuch://x/y.tar")


def test_a_fingerprint_is_of_the_rows(tmp_path):
  _write("tar", tmp_path / "a.tar")
  before = tables.open_table(tmp_path).fingerprint
  os.utime(tmp_path / "a.tar", (1, 1))
  assert tables.open_table(tmp_path).fingerprint == before
  _write("tar", tmp_path / "a.tar", [*ROWS[:-1], ROWS[-1] | {"txt": b"other"}])
  assert tables.open_table(tmp_path).fingerprint != before
  rows = tables.from_rows("x", ROWS)
  assert rows.fingerprint == tables.from_rows("y", ROWS).fingerprint
  assert rows.fingerprint != tables.from_rows("x", ROWS[1:]).fingerprint
  assert rows.read(2) == ROWS[2] and len(rows) == sum(rows.blocks) == 20
  assert next(row for _, row in rows.scan(("txt", "no"))) == {
    "txt": "né 0".encode()
  }


# Tars.


def _tar(path, *members, **options):
  with tarfile.open(path, "w", **options) as file:
    for name, raw in members:
      member = (
        name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
      )
      member.size = len(raw)
      file.addfile(member, io.BytesIO(raw))


@pytest.mark.slow
@pytest.mark.parametrize(
  "format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
)
def test_tars_are_grouped_as_webdataset_does(format, tmp_path):
  webdataset = pytest.importorskip("webdataset")
  long = "" if format == tarfile.USTAR_FORMAT else "x" * 120
  _tar(
    tmp_path / "a.tar",
    ("a/0.jpg", b"1"), ("a/0.cls.JSON", b"2"), ("a/0.txt", b"3"),
    (f"{'d' * 90}/{'e' * 60}{long}.jpg", b"4"),
    ("ünï.txt", b"5"), ("ünï.jpg", b""),
    ("__meta__", b"6"), ("noext", b"7"), (".hidden", b"8"),
    ("./9.jpg", b"9"),
    format=format,
  )  # fmt: skip
  table = tables.open_table(tmp_path)
  mine = [table.read(i) for i in range(len(table))]
  theirs = webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False)
  assert mine == [
    {k: v for k, v in sample.items() if k not in ("__url__", "__local_path__")}
    for sample in theirs
  ]


def test_long_names_of_every_kind(tmp_path):
  for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
    name = "d" * 90 + "/" + "é" * 99
    _tar(
      tmp_path / "a.tar",
      (f"{name}.jpg", b"1"),
      (f"{name}.Seg.PNG", b"2"),
      ("1.jpg", b"3"),
      format=format,
    )
    table = tables.open_table(tmp_path)
    assert [table.read(i) for i in range(len(table))] == [
      {"__key__": name, "jpg": b"1", "seg.png": b"2"},
      {"__key__": "1", "jpg": b"3"},
    ]


def _special(name, kind, link=""):
  member = tarfile.TarInfo(name)
  member.type, member.linkname = kind, link
  return member, b""


def test_hostile_members_make_bad_rows(tmp_path):
  _tar(
    tmp_path / "a.tar",
    ("0.jpg", b"good"),
    _special("1.jpg", tarfile.SYMTYPE, "/etc/passwd"),
    _special("2.jpg", tarfile.LNKTYPE, "0.jpg"),
    _special("3.jpg", tarfile.CHRTYPE),
    _special("4.jpg", tarfile.FIFOTYPE),
    ("../5.jpg", b"x"),
    ("/etc/6.jpg", b"x"),
    ("7.jpg", b"x"), ("7.jpg", b"y"),
    ("0.jpg", b"again"),
    _special("folder.jpg", tarfile.DIRTYPE),
    ("9.jpg", b"good"),
  )  # fmt: skip
  before = set(tmp_path.rglob("*"))
  table = tables.open_table(tmp_path)
  assert [reason for _, reason in _problems(table).values()] == [
    "a link",
    "a link",
    "not a regular file",
    "not a regular file",
    "a name that leads out of the tar",
    "a name that leads out of the tar",
    "two members of one name",
    "a key that was there before",
  ]
  assert table.read(0)["jpg"] == table.read(len(table) - 1)["jpg"] == b"good"
  assert set(tmp_path.rglob("*")) == before


def test_members_that_lie_about_their_size(tmp_path):
  path = tmp_path / "a.tar"
  huge = tarfile.TarInfo("1.jpg")
  huge.size = 2**40
  _tar(path, ("0.jpg", b"good"))
  raw = path.read_bytes()[:1024]
  for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
    path.write_bytes(raw + huge.tobuf(format) + b"x" * 512)
    table = tables.open_table(path)
    assert list(_problems(table).values()) == [("a.tar:1", "cut short")]
  huge.size = 65 * 2**20
  with path.open("wb") as file:
    file.write(raw + huge.tobuf())
    file.truncate(file.tell() + huge.size + 1024)
  assert _problems(tables.open_table(path))[1][1].startswith(
    "more than 67108864"
  )
  long = tarfile.TarInfo("x")
  long.type, long.size = b"L", 2**30
  path.write_bytes(raw + long.tobuf() + b"x" * 2048)
  problems = _problems(tables.open_table(path))
  assert problems == {1: ("a.tar:1", "a header that is far too long")}


def test_a_compressed_tar_is_refused(tmp_path):
  _tar(tmp_path / "b.tar", ("0.jpg", b"good"))
  (tmp_path / "a.tar").write_bytes(
    gzip.compress((tmp_path / "b.tar").read_bytes())
  )
  with pytest.raises(
    rejections.TooManyRejections, match="not a tar, or compres"
  ):
    tables.open_table(tmp_path / "a.tar")


# TFRecords.


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
  _write("tfrecord", path)
  raw = bytearray(path.read_bytes())
  raw[-10] ^= 1
  path.write_bytes(raw)
  assert list(_problems(tables.open_table(path)).values()) == [
    ("a.tfrecord:19", "wrong checksum")
  ]
  raw[3] ^= 1  # The first one's length.
  path.write_bytes(raw)
  with pytest.raises(ValueError, match=r"a\.tfrecord: not a TFRecord file"):
    tables.open_table(path)


# Text.


def test_bad_rows_of_text_are_named_and_lose_no_others(tmp_path):
  (tmp_path / "a.tsv").write_bytes(
    b"\xef\xbb\xbfid\ttext\n0\tgood\n\n1\tb\xffd\n2\tmore\tfields\n3\n"
    b'4\t"lines\nand ""quotes"""\r\n5\tgood'
  )
  table = tables.open_table(tmp_path / "a.tsv")
  assert _problems(table) == {
    1: ("a.tsv:1 (byte 4)", "not UTF-8"),  # The empty line is its first byte.
    2: ("a.tsv:2", "not 2 fields"),
    3: ("a.tsv:3", "not 2 fields"),
  }
  assert table.read(0) == {"id": "0", "text": "good"}
  assert table.read(4) == {"id": "4", "text": 'lines\nand "quotes"'}
  assert table.read(5) == {"id": "5", "text": "good"}
  (tmp_path / "a.jsonl").write_bytes(
    b'\n{"a": 1}\n[1]\n{"a": \xe9}\n{"a"\n\n' + b"[" * 100_000 + b'\n{"b": 2}'
  )
  table = tables.open_table(tmp_path / "a.jsonl")
  assert _problems(table) == {
    1: ("a.jsonl:1", "not a JSON object"),
    2: ("a.jsonl:2 (byte 6)", "not UTF-8"),
    3: ("a.jsonl:3", "not JSON"),
    4: ("a.jsonl:4", "not JSON"),
  }
  assert (table.read(0), table.read(5)) == ({"a": 1}, {"b": 2})
  assert table.columns == ("a", "b")


def test_quotes_that_are_wrong_are_bad_rows(tmp_path):
  (tmp_path / "a.csv").write_text('a,b\n1,"x"y\n2,"z"\n3,"never closed\n')
  problems = _problems(tables.open_table(tmp_path))
  assert set(problems) == {0, 2}
  assert problems[0][1].startswith("not a row: ")


@pytest.mark.parametrize("kind", ["tsv", "csv", "jsonl"])
def test_other_encodings_are_named(kind, tmp_path):
  _write(kind, tmp_path / f"a.{kind}")
  raw = (tmp_path / f"a.{kind}").read_text("utf-8")
  (tmp_path / f"a.{kind}").write_text(raw, "utf-16")
  with pytest.raises(ValueError, match=rf"a\.{kind}: UTF-16, not UTF-8"):
    tables.open_table(tmp_path)


def test_long_fields_and_many_blocks(tmp_path, monkeypatch):
  monkeypatch.setattr("byt5_diffusion.data.text_table.BLOCK_BYTES", 1000)
  rows = [{"id": str(i), "text": "é\n" * (i * 97 % 300)} for i in range(60)]
  rows[7]["text"] = "x" * 300_000  # csv's own limit is 131,072.
  for kind in ("tsv", "csv.gz", "jsonl", "jsonl.gz"):
    _write(kind, tmp_path / f"a.{kind}", rows)
    table = tables.open_table(tmp_path / f"a.{kind}")
    assert len(table.blocks) > 10
    assert [table.read(i) for i in range(60)] == rows
    assert [row for _, row in table.scan(("id", "text"))] == rows


def test_a_quote_that_never_ends_is_one_bad_row(tmp_path, monkeypatch):
  monkeypatch.setattr("byt5_diffusion.data.text_rows.MAX_ROW_BYTES", 200_000)
  before = csv.field_size_limit(1000)
  lines = [f"{i}\tgood {'x' * 90}\n" for i in range(9000)]
  lines[3] = '3\t"never closed\n'
  (tmp_path / "a.tsv").write_text("id\ttext\n" + "".join(lines))
  table = tables.open_table(tmp_path)
  problems = _problems(table)
  assert 1 <= len(problems) <= 3
  assert problems[3][1].startswith("not a row: field larger")
  assert 6000 < len(table) < 9000
  csv.field_size_limit(before)


def test_a_bomb_is_refused_in_bounded_memory(tmp_path):
  path = tmp_path / "a.jsonl.gz"
  with gzip.open(path, "wb") as file:
    for _ in range(160):
      file.write(b" " * 2**20 + b"\n")
  assert path.stat().st_size < 2**18
  tracemalloc.start()
  with pytest.raises(rejections.TooManyRejections, match="more than 100 times"):
    tables.open_table(path)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 100 * 2**20
  assert not list(cached_arrays.folder("rows").iterdir())


def test_packed_rows_that_are_lost_are_packed_again(tmp_path):
  rows = _write("tsv.gz", tmp_path / "a.tsv.gz")
  table = tables.open_table(tmp_path)
  (packed,) = cached_arrays.folder("rows").iterdir()
  packed.unlink()
  block_cache.SHARED.forget()
  table = tables.open_table(tmp_path)
  assert [table.read(i) for i in range(20)] == rows
  with gzip.open(tmp_path / "a.tsv.gz", "ab") as file:
    file.write(b"20\tmore\n")
  table = tables.open_table(tmp_path)
  assert table.read(20) == {"id": "20", "text": "more"}


# Parquet.


def test_row_groups_are_decoded_once_and_within_bounds(tmp_path, monkeypatch):
  cache = block_cache.BlockCache(max_bytes=30_000)
  monkeypatch.setattr(block_cache, "SHARED", cache)
  texts = [bytes([i]) * 1000 for i in range(100)]
  table = pyarrow.table({"a": texts, "b": list(range(100))})
  pyarrow.parquet.write_table(
    table, tmp_path / "a.parquet", row_group_size=10, use_dictionary=False
  )
  made = []
  read = pyarrow.parquet.ParquetFile.read_row_group
  monkeypatch.setattr(
    pyarrow.parquet.ParquetFile,
    "read_row_group",
    lambda self, group, **k: made.append((group, k)) or read(self, group, **k),
  )
  rows = tables.open_table(tmp_path, columns=("a", "b"))
  assert rows.blocks == (10,) * 10
  assert min(rows.block_bytes) > 10_000
  for i in range(100):
    assert rows.read(i)["b"] == i
    assert cache.num_bytes <= 30_000
  assert cache.num_bytes > 15_000
  assert [group for group, _ in made] == list(range(10))
  made.clear()
  few = tables.open_table(tmp_path, columns=("b",))
  assert max(few.block_bytes) < 1000
  assert few.read(55) == {"b": 55} and few.read(54) == {"b": 54}
  assert made == [(5, {"columns": ["b"]})]


def test_parts_of_structs_can_be_chosen(tmp_path):
  image = [{"bytes": b"jpeg", "path": "a.jpg"}, None]
  table = pyarrow.table({"image": image, "n": [1, 2]})
  pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
  rows = tables.open_table(tmp_path, columns=("image.bytes",))
  assert rows.read(0) == {"image": {"bytes": b"jpeg"}}
  assert rows.read(1) == {"image": None}


def test_a_broken_row_group_leaves_the_others(tmp_path):
  path = tmp_path / "a.parquet"
  table = pyarrow.table({"a": [os.urandom(50) for _ in range(40)]})
  pyarrow.parquet.write_table(
    table, path, row_group_size=20, compression="gzip", use_dictionary=False
  )
  offset = pyarrow.parquet.read_metadata(path).row_group(1).column(0)
  raw = bytearray(path.read_bytes())
  start = offset.data_page_offset + 40
  raw[start : start + 200] = b"\xff" * 200
  path.write_bytes(raw)
  problems = _problems(tables.open_table(path))
  assert set(problems) == set(range(20, 40))
  assert problems[20] == ("a.parquet:20", "in a broken row group")


def test_a_dictionary_is_no_bomb(tmp_path):
  path = tmp_path / "a.parquet"
  count = 200_000
  texts = pyarrow.DictionaryArray.from_arrays(
    np.zeros(count, np.int32), [b"x" * 2**20]
  )
  image = pyarrow.StructArray.from_arrays([texts], names=["bytes"])
  table = pyarrow.table({"text": texts, "image": image})
  pyarrow.parquet.write_table(
    table, path, store_schema=False, row_group_size=count
  )
  assert path.stat().st_size < 2**18  # And 400 GiB of text.
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  rows = tables.open_table(path)
  assert rows.read(count - 1)["image"]["bytes"] == b"x" * 2**20
  assert len(next(rows.scan(("text",)))[1]["text"]) == 2**20
  more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
  assert more < 1200 * 2**10  # KiB


def test_groups_of_too_many_rows_are_refused(tmp_path, monkeypatch):
  _write("parquet", tmp_path / "a.parquet")
  for name, words in (("VALUES", "6 values"), ("BYTES", "100 bytes")):
    limit = int(words.partition(" ")[0])
    with monkeypatch.context() as patch:
      patch.setattr(f"{parquet_table.__name__}.MAX_GROUP_{name}", limit)
      block_cache.SHARED.forget()
      problems = _problems(tables.open_table(tmp_path), ("jpg", "txt"))
    assert {words in reason for _, reason in problems.values()} == {True}


# The cache of indexes.


def test_a_damaged_index_is_made_again(tmp_path, caplog):
  rows = _write("tar", tmp_path / "a.tar")
  tables.open_table(tmp_path)
  (index,) = cached_arrays.folder("indexes").iterdir()
  whole = index.read_bytes()
  for damaged in (b"", whole[:30], whole[:-9], whole[:-1] + b"\1", b"x" * 500):
    index.write_bytes(damaged)
    assert tables.open_table(tmp_path).read(3) == rows[3]
    assert index.read_bytes() == whole
  assert "is made again" in caplog.text


def test_processes_share_the_indexing(tmp_path, monkeypatch):
  """A file that another process is at comes last, and is not read twice."""
  for number in range(3):
    rows = _write("tar", tmp_path / f"{number}.tar")
  first = files.find(tmp_path)[0]
  claim = cached_arrays.path_of("indexes", "tar 2", first.identity)
  read: list[str] = []
  index = tar_table._index

  def indexed(file):
    read.append(file.name)
    if len(read) == 2:  # The other process is done.
      cached_arrays.save(claim, index(first))
      fcntl.flock(other, fcntl.LOCK_UN)
    return index(file)

  monkeypatch.setattr(tar_table, "_index", indexed)
  with claim.with_suffix(".lock").open("w") as other:
    fcntl.flock(other, fcntl.LOCK_EX)
    table = tables.open_table(tmp_path)
  assert read == ["1.tar", "2.tar"]
  assert [table.read(i) for i in range(60)] == rows * 3


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path, monkeypatch):
  rows = _write("tar", tmp_path / "a.tar")
  (tmp_path / "file").write_text("")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
  assert tables.open_table(tmp_path / "a.tar").read(3) == rows[3]
  _write("tsv.gz", tmp_path / "b.tsv.gz")
  with pytest.raises(ValueError, match="XDG_CACHE_HOME"):
    tables.open_table(tmp_path / "b.tsv.gz")
