"""Rows of text files: JSON lines, and tables with tabs or commas.

A file is read in blocks of whole rows. Compressed files have no random access:
their rows are kept in the cache folder, block by block, compressed again.
"""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from byt5_diffusion.data import block_cache, cached_arrays, files, images

BLOCK_BYTES = 2**20
MAX_ROW_BYTES = 64 * 2**20
_MAX_FIELD = 16 * 2**20  # characters
_BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


class Record(NamedTuple):
  """A row as it lies in the file, and what it says or why it says nothing."""

  raw: bytes
  value: Any
  problem: str = ""


Split = Callable[[Iterator[bytes]], Iterator[Record]]


def open_jsonl(file: files.File, columns: tuple[str, ...] = ()) -> "Text":
  """Rows of JSON lines: an object per line. files.BadFile: it is no text."""
  return Text(file, columns, "jsonl", split_json, has_header=False)


def open_tsv(file: files.File, columns: tuple[str, ...] = ()) -> "Text":
  """Rows between tabs, quoted where need be; the first one names them."""
  return Text(file, columns, "tsv", split_tsv, has_header=True)


def open_csv(file: files.File, columns: tuple[str, ...] = ()) -> "Text":
  """Rows between commas, quoted where need be; the first one names them."""
  return Text(file, columns, "csv", split_csv, has_header=True)


def split_json(lines: Iterator[bytes]) -> Iterator[Record]:
  """One object per line; empty lines are no rows."""
  for line in lines:
    if not line.strip():
      continue
    try:
      value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
      yield Record(line, None, f"not UTF-8 (byte {error.start})")
    except (ValueError, RecursionError):
      yield Record(line, None, "not JSON")
    else:
      good = isinstance(value, dict)
      yield Record(line, value, "" if good else "not a JSON object")


def split_tsv(lines: Iterator[bytes]) -> Iterator[Record]:
  """Fields between tabs."""
  return _split(lines, "\t")


def split_csv(lines: Iterator[bytes]) -> Iterator[Record]:
  """Fields between commas."""
  return _split(lines, ",")


def _split(lines: Iterator[bytes], delimiter: str) -> Iterator[Record]:
  csv.field_size_limit(max(_MAX_FIELD, csv.field_size_limit()))
  taken: list[bytes] = []

  def texts() -> Iterator[str]:
    for line in lines:
      taken.append(line)
      # What is no UTF-8 must not lose the rows around it.
      yield line.decode("utf-8", "surrogateescape")

  reader = csv.reader(texts(), delimiter=delimiter)
  while True:
    taken.clear()
    try:
      fields = next(reader)
    except StopIteration:
      return
    except csv.Error as error:
      yield Record(b"".join(taken), None, f"not a row: {error}")
      reader = csv.reader(texts(), delimiter=delimiter)
      continue
    raw = b"".join(taken)
    if fields:
      yield Record(raw, fields, _not_utf8(raw))


def _not_utf8(raw: bytes) -> str:
  try:
    raw.decode("utf-8")
  except UnicodeDecodeError as error:
    return f"not UTF-8 (byte {error.start})"
  return ""


class Text:
  """A tables.Shard of a text file."""

  def __init__(
    self,
    file: files.File,
    columns: tuple[str, ...],
    kind: str,
    split: Split,
    *,
    has_header: bool,
  ):
    self.file = file
    self._split = split
    self._has_header = has_header
    self._wanted = columns
    if not file.size:
      raise files.BadFile(file.name, "empty file")
    header, arrays = cached_arrays.kept(
      "indexes", (f"{kind} 1", file.identity), self._index
    )
    self.digest = header["digest"]
    self._fields = tuple(header["columns"])
    self.columns = self._fields
    self.blocks = tuple(arrays["rows"].tolist())
    self._starts = arrays["starts"]
    self._sizes = arrays["sizes"]
    self._ends = np.cumsum(arrays["rows"])
    # Python's objects take several times their text.
    self.block_bytes = tuple((4 * arrays["sizes"]).tolist())

  def _index(self) -> cached_arrays.Kept:
    """Where blocks of rows begin, and how many rows they have."""
    rows, starts, sizes = [], [], []
    columns: list[str] = []
    at = block = count = 0
    with self.file.open() as opened:
      first = opened.read(3)
      if first[:2] in _UTF16:
        raise files.BadFile(self.file.name, "UTF-16, not UTF-8")
      at = block = len(_BOM) if first == _BOM else 0
      opened.seek(at)
      for record in self._split(_lines(opened)):
        if not columns and not record.problem:
          columns = list(record.value)
          if self._has_header:
            at = block = at + len(record.raw)
            continue
        at, count = at + len(record.raw), count + 1
        if at - block >= BLOCK_BYTES:
          rows.append(count), starts.append(block), sizes.append(at - block)
          block, count = at, 0
    if count:
      rows.append(count), starts.append(block), sizes.append(at - block)
    return cached_arrays.Kept(
      {"columns": columns, "digest": self.file.digest()},
      {
        "rows": np.array(rows, np.int64),
        "starts": np.array(starts, np.int64),
        "sizes": np.array(sizes, np.int64),
      },
    )

  def read(self, row: int) -> dict[str, Any]:
    """A row. images.BadImage: it is broken."""
    block = int(np.searchsorted(self._ends, row, side="right"))
    records = block_cache.SHARED.get(
      (self.file.identity, block), lambda: self._decode(block)
    )
    first = int(self._ends[block]) - self.blocks[block]
    value = self._row(row, records[row - first])
    if isinstance(value, images.BadImage):
      raise value
    wanted = self._wanted
    return {k: value[k] for k in wanted if k in value} if wanted else value

  def _decode(self, block: int) -> tuple[list[Record], int]:
    start, size = int(self._starts[block]), int(self._sizes[block])
    raw = self.file.read(start, size)
    return list(self._split(iter(raw.splitlines(keepends=True)))), 4 * size

  def _row(self, row: int, record: Record) -> dict[str, Any] | images.BadImage:
    name = f"{self.file.name}:{row}"
    if record.problem:
      return images.BadImage(name, record.problem)
    if not self._has_header:
      return record.value
    if len(record.value) != len(self._fields):
      return images.BadImage(name, f"not {len(self._fields)} fields")
    return dict(zip(self._fields, record.value, strict=True))

  def scan(
    self, columns: Sequence[str]
  ) -> Iterator[dict[str, Any] | images.BadImage]:
    """All rows in order; see tables.Table."""
    row = 0
    for block in range(len(self.blocks)):
      for record in self._decode(block)[0]:
        value = self._row(row, record)
        if not isinstance(value, images.BadImage):
          value = {key: value[key] for key in columns if key in value}
        yield value
        row += 1


def _lines(opened: Any) -> Iterator[bytes]:
  while line := opened.readline(MAX_ROW_BYTES + 1):
    yield line
