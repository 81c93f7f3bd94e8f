"""Row groups: decoded once, within bounds, broken ones alone."""

import os
import resource
import sys

import numpy as np
import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("fsspec")

import pyarrow
import pyarrow.parquet
import table_files

from byt5_diffusion.data import images
from byt5_diffusion.data.rows import (
  block_cache,
  parquet_table,
  tables,
)


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


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
  problems = table_files.problems(tables.open_table(path))
  assert set(problems) == set(range(20, 40))
  assert problems[20] == ("a.parquet:20", "in a broken row group")


def test_a_dictionary_is_no_bomb(tmp_path):
  path = tmp_path / "a.parquet"
  count = 50_000
  texts = pyarrow.DictionaryArray.from_arrays(
    np.zeros(count, np.int32), [b"x" * 2**20]
  )
  image = pyarrow.StructArray.from_arrays([texts], names=["bytes"])
  table = pyarrow.table({"text": texts, "image": image})
  pyarrow.parquet.write_table(
    table, path, store_schema=False, row_group_size=count
  )
  assert path.stat().st_size < 2**18  # And 100 GiB of text.
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  rows = tables.open_table(path)
  assert rows.read(count - 1)["image"]["bytes"] == b"x" * 2**20
  assert len(next(rows.scan(("text",)))[1]["text"]) == 2**20
  more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
  assert more < 1200 * 2**10  # KiB


def test_groups_of_too_many_rows_are_refused(tmp_path, monkeypatch):
  table_files.write("parquet", tmp_path / "a.parquet")
  for name, words in (("VALUES", "6 values"), ("BYTES", "100 bytes")):
    limit = int(words.partition(" ")[0])
    with monkeypatch.context() as patch:
      patch.setattr(f"{parquet_table.__name__}.MAX_GROUP_{name}", limit)
      block_cache.SHARED.forget()
      problems = table_files.problems(
        tables.open_table(tmp_path), ("jpg", "txt")
      )
    assert {words in reason for _, reason in problems.values()} == {True}


def test_names_and_texts_that_are_no_utf_8(tmp_path):
  path = tmp_path / "a.parquet"
  bad = pyarrow.Array.from_buffers(
    pyarrow.string(), 2, pyarrow.array([b"fine", b"\xff\xff"]).buffers()
  )
  pyarrow.parquet.write_table(pyarrow.table({"column": bad}), path)
  table = tables.open_table(path)
  assert table.read(0) == {"column": "fine"}
  with pytest.raises(images.BadImage, match="not UTF-8"):
    table.read(1)
  (first, row), (second, fault) = table.scan(("column",))
  assert (first, row, second) == (0, {"column": "fine"}, 1)
  assert str(fault) == "a.parquet:1: not UTF-8"
  # The name is in the schema, in every chunk, and in what Arrow keeps of it.
  raw = path.read_bytes()
  places = [i for i in range(len(raw)) if raw.startswith(b"column", i)]
  assert len(places) > 1
  for number, place in enumerate(places):
    for letter in b"\xffx":
      folder = tmp_path / f"{number} {letter}"
      folder.mkdir()
      odd = raw[:place] + bytes([letter]) + raw[place + 1 :]
      (folder / "a.parquet").write_bytes(odd)
      try:
        table = tables.open_table(folder)
        list(table.scan(table.columns))
        table.read(0)
      except images.BadImage as error:
        assert error.reason == "in a broken row group"
      except ValueError as error:
        assert "not a parquet file" in str(error)


def test_an_index_alone_is_of_no_use(tmp_path, monkeypatch):
  path = tmp_path / "a.parquet"
  pyarrow.parquet.write_table(pyarrow.table({"a": [1]}), path)
  assert len(tables.open_table(path)) == 1
  monkeypatch.setitem(sys.modules, "pyarrow", None)
  with pytest.raises(ImportError, match=r"pip install .byt5-diffusion\[data\]"):
    tables.open_table(path)
