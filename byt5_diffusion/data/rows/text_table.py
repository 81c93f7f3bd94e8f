"""Rows of text files: JSON lines, and tables with tabs or commas.

A file is read in blocks of whole rows. Compressed files have no random access:
their rows are packed again into the cache folder, every block by itself.
"""

from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np

from byt5_diffusion.data import images
from byt5_diffusion.data.rows import (
  block_cache,
  cached_arrays,
  files,
  packed_rows,
  text_rows,
)

BLOCK_BYTES = 2**20
_MAX_COLUMNS = 1000
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def open_jsonl(
  file: files.File, *, packed: bool = False, wait: bool = True
) -> "Text":
  """Rows of JSON lines: an object per line.

  Args:
    file: which.
    packed: whether it is compressed by gzip.
    wait: for another process that makes its index.

  Raises:
    files.BadFile: it is no text.
    cached_arrays.Busy: there is such a process, and nobody wants to wait.
  """
  return Text(
    file, "jsonl 2", text_rows.split_json, packed, wait, has_header=False
  )


def open_tsv(
  file: files.File, *, packed: bool = False, wait: bool = True
) -> "Text":
  """Rows between tabs, named by the first one; see open_jsonl."""
  return Text(file, "tsv 2", text_rows.split_tsv, packed, wait, has_header=True)


def open_csv(
  file: files.File, *, packed: bool = False, wait: bool = True
) -> "Text":
  """Rows between commas, named by the first one; see open_jsonl."""
  return Text(file, "csv 2", text_rows.split_csv, packed, wait, has_header=True)


class Text:
  """A tables.Shard of a text file."""

  def __init__(
    self,
    file: files.File,
    kind: str,
    split: text_rows.Split,
    packed: bool,
    wait: bool,
    *,
    has_header: bool,
  ):
    self.file = file
    self.wanted: tuple[str, ...] = ()
    self._split = split
    self._has_header = has_header
    self._packed = packed_rows.Packed(file) if packed else None
    if not file.size:
      raise files.BadFile(file.name, "empty file")
    depends = (kind, file.identity)
    header, arrays = cached_arrays.kept(
      "indexes", depends, self._index, wait=wait
    )
    if self._packed and not self._packed.is_whole(header["packed"]):
      cached_arrays.forget("indexes", depends)
      header, arrays = cached_arrays.kept("indexes", depends, self._index)
    self.digest: str = header["digest"]
    self.columns: tuple[str, ...] = tuple(header["columns"])
    self.blocks: tuple[int, ...] = tuple(arrays["rows"].tolist())
    self._starts, self._sizes = arrays["starts"], arrays["sizes"]
    self._ends = np.cumsum(arrays["rows"])
    # Python's objects take several times their text.
    self.block_bytes = tuple((4 * arrays["bytes"]).tolist())

  def _index(self) -> cached_arrays.Kept:
    """Where blocks of rows begin, and how many rows they have."""
    if self._packed is None:
      with self.file.open() as opened:
        return self._find(opened, None)
    with self._packed.unpacked() as opened, self._packed.writer() as writer:
      return self._find(opened, writer)

  def _find(
    self, opened: BinaryIO, writer: packed_rows.Writer | None
  ) -> cached_arrays.Kept:
    """The index; blocks of compressed files are given to `writer`."""
    columns: dict[str, None] = {}
    blocks: list[tuple[int, int, int, int]] = []  # rows, start, size, bytes
    waiting: list[bytes] = []
    at = rows = waits = 0

    def end_block() -> None:
      start, size = at - waits, waits
      if writer:
        start, size = writer.add(b"".join(waiting))
      blocks.append((rows, start, size, waits))

    for record in self._split(self._lines(opened)):
      raw = record.raw
      if self._has_header and not columns:
        columns.update(dict.fromkeys(self._header(record)))
        at += len(raw)
        continue
      if not (self._has_header or record.problem):
        columns.update(dict.fromkeys(record.value))
      at, rows, waits = at + len(raw), rows + 1, waits + len(raw)
      if writer:
        waiting.append(raw)
      if waits >= BLOCK_BYTES:
        end_block()
        waiting, rows, waits = [], 0, 0
    if rows:
      end_block()
    table = np.array(blocks, np.int64).reshape(-1, 4).T
    names = ("rows", "starts", "sizes", "bytes")
    made = cached_arrays.Kept({}, dict(zip(names, table, strict=True)))
    made.header.update(
      columns=list(columns)[:_MAX_COLUMNS],
      digest=cached_arrays.digest(made, self.file.ends()),
      packed=writer.end if writer else 0,
    )
    return made

  def _header(self, record: text_rows.Record) -> list[str]:
    if record.problem:
      raise files.BadFile(self.file.name, f"its header: {record.problem}")
    names = record.value
    if len(set(names)) != len(names):
      raise files.BadFile(self.file.name, "two columns of one name")
    return names

  def _lines(self, opened: BinaryIO) -> Iterator[bytes]:
    """Lines; the byte order mark stays, because places are counted by it."""
    first = opened.readline(text_rows.MAX_ROW_BYTES + 1)
    if first[:2] in _UTF16:
      raise files.BadFile(self.file.name, "UTF-16, not UTF-8")
    yield first
    yield from text_rows.lines(opened)

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
    wanted = self.wanted
    return {k: value[k] for k in wanted if k in value} if wanted else value

  def _decode(self, block: int) -> tuple[list[text_rows.Record], int]:
    start, size = int(self._starts[block]), int(self._sizes[block])
    source = self._packed or self.file
    raw = source.read(start, size)
    found = list(self._split(text_rows.lines_of(raw)))
    if len(found) != self.blocks[block]:
      fault = text_rows.Record(b"", None, "the file has changed")
      found = [fault] * self.blocks[block]
    return found, 4 * len(raw)

  def _row(
    self, row: int, record: text_rows.Record
  ) -> dict[str, Any] | images.BadImage:
    name = f"{self.file.name}:{row}"
    if record.problem:
      return images.BadImage(name + record.place, record.problem)
    if not self._has_header:
      return record.value
    if len(record.value) != len(self.columns):
      return images.BadImage(name, f"not {len(self.columns)} fields")
    return dict(zip(self.columns, record.value, strict=True))

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
