"""Where rows of text end, and what they say: JSON, and fields in quotes."""

import csv
import io
import json
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

# Python's objects of a row may take twenty times as much.
MAX_ROW_BYTES = 16 * 2**20
_MAX_EMPTY = 4096  # Lines between two rows.
_BOM = "\ufeff"


class Record(NamedTuple):
  """A row as it lies in the file.

  Attributes:
    raw: its bytes, line end and all.
    value: what it says.
    problem: why it says nothing.
    place: where in the row that is, for its name.
  """

  raw: bytes
  value: Any
  problem: str = ""
  place: str = ""


Split = Callable[[Iterator[bytes]], Iterator[Record]]


def lines(opened: BinaryIO) -> Iterator[bytes]:
  """Lines with their ends; a longer one than a row may be comes in pieces."""
  while line := opened.readline(MAX_ROW_BYTES + 1):
    yield line


def lines_of(raw: bytes) -> Iterator[bytes]:
  """The same, of bytes."""
  return lines(io.BytesIO(raw))


def split_json(lines: Iterator[bytes]) -> Iterator[Record]:
  """One object per line. An empty line belongs to the row before or after."""
  empty: list[bytes] = []
  last: Record | None = None
  for line in lines:
    if len(line) < 3 and not line.strip() and len(empty) < _MAX_EMPTY:
      empty.append(line)
      continue
    if last is not None:
      yield last
    last = _json(b"".join([*empty, line]), line)
    empty.clear()
  if last is not None:
    yield last._replace(raw=b"".join([last.raw, *empty]))


def _json(raw: bytes, line: bytes) -> Record:
  try:
    value = json.loads(line.decode("utf-8").removeprefix(_BOM))
  except UnicodeDecodeError as error:
    return Record(raw, None, "not UTF-8", f" (byte {error.start})")
  except (ValueError, RecursionError):
    return Record(raw, None, "not JSON")
  if not isinstance(value, dict):
    return Record(raw, None, "not a JSON object")
  return Record(raw, value)


def split_tsv(lines: Iterator[bytes]) -> Iterator[Record]:
  """Fields between tabs."""
  return _split(lines, "\t")


def split_csv(lines: Iterator[bytes]) -> Iterator[Record]:
  """Fields between commas."""
  return _split(lines, ",")


def _split(lines: Iterator[bytes], delimiter: str) -> Iterator[Record]:
  """Rows as Python's csv has them (QUOTE_MINIMAL): fields may hold lines."""
  csv.field_size_limit(max(MAX_ROW_BYTES, csv.field_size_limit()))
  taken: list[bytes] = []

  def texts() -> Iterator[str]:
    for line in lines:
      taken.append(line)
      # What is no UTF-8 must not lose the rows around it.
      yield line.decode("utf-8", "surrogateescape").removeprefix(_BOM)

  reader = csv.reader(texts(), delimiter=delimiter, strict=True)
  while True:
    try:
      fields = next(reader)
    except StopIteration:
      return
    except csv.Error as error:
      yield Record(b"".join(taken), None, f"not a row: {error}")
      reader = csv.reader(texts(), delimiter=delimiter, strict=True)
      taken.clear()
      continue
    if not fields and len(taken) < _MAX_EMPTY:
      continue  # An empty line belongs to the next row.
    raw = b"".join(taken)
    taken.clear()
    try:
      raw.decode("utf-8")
      yield Record(raw, fields)
    except UnicodeDecodeError as error:
      yield Record(raw, None, "not UTF-8", f" (byte {error.start})")
