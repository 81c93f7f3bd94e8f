"""Rows of every format, of files that are whole and of files that are not."""

import fcntl
import os

import numpy as np
import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("fsspec")

import fsspec
import table_files

from byt5_diffusion.data import rejections
from byt5_diffusion.data.rows import (
  cached_arrays,
  files,
  tables,
  tar_table,
)

KINDS = list(table_files.WRITERS)


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_come_back_as_they_were_written(kind, tmp_path):
  for number in range(2):
    rows = table_files.write(kind, tmp_path / f"{number}.{kind}")
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
  rows = table_files.write(kind, tmp_path / f"a.{kind}")
  last = list(rows[0])[-1]
  table = tables.open_table(tmp_path, columns=(last,), optional=("more",))
  assert table.read(3)[last] == rows[3][last]
  assert set(table.read(3)) - {"__key__"} == {last}
  with pytest.raises(ValueError, match=rf"a\.{kind} has no column 'no', 'nor'"):
    tables.open_table(tmp_path, columns=("no", last, "nor"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_file_is_named(kind, tmp_path):
  path = tmp_path / f"a.{kind}"
  table_files.write(kind, path)
  whole = path.read_bytes()
  for size in (len(whole) * 2 // 3, len(whole) // 3, 5, 1):
    path.write_bytes(whole[:size])
    try:
      table = tables.open_table(tmp_path)
    except ValueError as error:
      assert f"a.{kind}" in str(error)
      continue
    problems = table_files.problems(table)
    assert len(table) < 20 or problems
    assert all(name.startswith(f"a.{kind}:") for name, _ in problems.values())
    assert len(problems) <= 2


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_never_do_worse_than_bad_rows(kind, tmp_path):
  path = tmp_path / f"a.{kind}"
  table_files.write(kind, path)
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
    table_files.problems(table)


@pytest.mark.parametrize("kind", KINDS)
def test_empty_files_are_left_out_and_counted(kind, tmp_path):
  for number in range(20):
    table_files.write(kind, tmp_path / f"{number:02d}.{kind}")
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
  table_files.write("tar", tmp_path / "00000.tar")
  table_files.write("parquet", tmp_path / "00000.parquet")
  (tmp_path / "00000_stats.json").write_text("{}")
  table = tables.open_table(tmp_path)  # As img2dataset leaves it.
  assert table.columns == ("__key__", "jpg", "txt")
  table_files.write("parquet", tmp_path / "00001.parquet")
  with pytest.raises(ValueError, match=r"1 \.tar"):
    tables.open_table(tmp_path)
  assert len(tables.open_table(f"{tmp_path}/*.parquet")) == 40


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "array_record"])
def test_addresses_of_fsspec(kind, tmp_path):
  rows = table_files.write(kind, tmp_path / f"0.{kind}")
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
  with pytest.raises(ValueError, match="chains of addresses"):
    tables.open_table(f"simplecache::memory://set/{kind}")
  with pytest.raises(ValueError, match="nosuch"):
    tables.open_table("nosuch://x/y.tar")


def test_a_fingerprint_is_of_the_rows(tmp_path):
  table_files.write("tar", tmp_path / "a.tar")
  before = tables.open_table(tmp_path).fingerprint
  os.utime(tmp_path / "a.tar", (1, 1))
  assert tables.open_table(tmp_path).fingerprint == before
  table_files.write(
    "tar",
    tmp_path / "a.tar",
    [*table_files.ROWS[:-1], table_files.ROWS[-1] | {"txt": b"other"}],
  )
  assert tables.open_table(tmp_path).fingerprint != before
  rows = tables.from_rows("x", table_files.ROWS)
  assert rows.fingerprint == tables.from_rows("y", table_files.ROWS).fingerprint
  assert (
    rows.fingerprint != tables.from_rows("x", table_files.ROWS[1:]).fingerprint
  )
  assert (
    rows.read(2) == table_files.ROWS[2] and len(rows) == sum(rows.blocks) == 20
  )
  assert next(row for _, row in rows.scan(("txt", "no"))) == {
    "txt": "né 0".encode()
  }


def test_a_damaged_index_is_made_again(tmp_path, caplog):
  rows = table_files.write("tar", tmp_path / "a.tar")
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
    rows = table_files.write("tar", tmp_path / f"{number}.tar")
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
  rows = table_files.write("tar", tmp_path / "a.tar")
  (tmp_path / "file").write_text("")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
  assert tables.open_table(tmp_path / "a.tar").read(3) == rows[3]
  table_files.write("tsv.gz", tmp_path / "b.tsv.gz")
  with pytest.raises(ValueError, match="XDG_CACHE_HOME"):
    tables.open_table(tmp_path / "b.tsv.gz")
