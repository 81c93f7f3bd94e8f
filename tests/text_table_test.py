"""Rows of text: bad ones, long ones, compressed ones."""

import csv
import gzip
import tracemalloc

import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("fsspec")

import table_files

from byt5_diffusion.data import rejections
from byt5_diffusion.data.rows import (
  block_cache,
  cached_arrays,
  tables,
)


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def test_bad_rows_of_text_are_named_and_lose_no_others(tmp_path):
  (tmp_path / "a.tsv").write_bytes(
    b"\xef\xbb\xbfid\ttext\n0\tgood\n\n1\tb\xffd\n2\tmore\tfields\n3\n"
    b'4\t"lines\nand ""quotes"""\r\n5\tgood'
  )
  table = tables.open_table(tmp_path / "a.tsv")
  assert table_files.problems(table) == {
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
  assert table_files.problems(table) == {
    1: ("a.jsonl:1", "not a JSON object"),
    2: ("a.jsonl:2 (byte 6)", "not UTF-8"),
    3: ("a.jsonl:3", "not JSON"),
    4: ("a.jsonl:4", "not JSON"),
  }
  assert (table.read(0), table.read(5)) == ({"a": 1}, {"b": 2})
  assert table.columns == ("a", "b")


def test_quotes_that_are_wrong_are_bad_rows(tmp_path):
  (tmp_path / "a.csv").write_text('a,b\n1,"x"y\n2,"z"\n3,"never closed\n')
  problems = table_files.problems(tables.open_table(tmp_path))
  assert set(problems) == {0, 2}
  assert problems[0][1].startswith("not a row: ")


@pytest.mark.parametrize("kind", ["tsv", "csv", "jsonl"])
def test_other_encodings_are_named(kind, tmp_path):
  table_files.write(kind, tmp_path / f"a.{kind}")
  raw = (tmp_path / f"a.{kind}").read_text("utf-8")
  (tmp_path / f"a.{kind}").write_text(raw, "utf-16")
  with pytest.raises(ValueError, match=rf"a\.{kind}: UTF-16, not UTF-8"):
    tables.open_table(tmp_path)


def test_long_fields_and_many_blocks(tmp_path, monkeypatch):
  monkeypatch.setattr("byt5_diffusion.data.rows.text_table.BLOCK_BYTES", 1000)
  rows = [{"id": str(i), "text": "é\n" * (i * 97 % 300)} for i in range(60)]
  rows[7]["text"] = "x" * 300_000  # csv's own limit is 131,072.
  for kind in ("tsv", "csv.gz", "jsonl", "jsonl.gz"):
    table_files.write(kind, tmp_path / f"a.{kind}", rows)
    table = tables.open_table(tmp_path / f"a.{kind}")
    assert len(table.blocks) > 10
    assert [table.read(i) for i in range(60)] == rows
    assert [row for _, row in table.scan(("id", "text"))] == rows


def test_a_quote_that_never_ends_is_one_bad_row(tmp_path, monkeypatch):
  limit = "byt5_diffusion.data.rows.text_rows.MAX_ROW_BYTES"
  monkeypatch.setattr(limit, 200_000)
  before = csv.field_size_limit(1000)
  lines = [f"{i}\tgood {'x' * 90}\n" for i in range(9000)]
  lines[3] = '3\t"never closed\n'
  (tmp_path / "a.tsv").write_text("id\ttext\n" + "".join(lines))
  table = tables.open_table(tmp_path)
  problems = table_files.problems(table)
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
  rows = table_files.write("tsv.gz", tmp_path / "a.tsv.gz")
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
