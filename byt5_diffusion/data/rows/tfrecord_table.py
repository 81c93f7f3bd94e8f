"""Rows of TFRecord and ArrayRecord files: tf.train.Examples."""

import struct
import threading
from typing import Any

import numpy as np

from byt5_diffusion.data.rows import (
  cached_arrays,
  crc32c,
  files,
  indexed_table,
  tf_example,
)


def open_tfrecord(file: files.File, *, wait: bool = True) -> "TfRecord":
  """The rows of a TFRecord file; see parquet_table.open_file."""
  return TfRecord(file, "tfrecord 2", _index, wait=wait)


def open_array_record(file: files.File, *, wait: bool = True) -> "ArrayRecord":
  """The rows of a local ArrayRecord file; see parquet_table.open_file."""
  return ArrayRecord(file, wait=wait)


def _index(file: files.File) -> cached_arrays.Kept:
  """Where records begin: 8 bytes of length, 4 of its sum, data, 4 of theirs."""
  places: list[tuple[int, int]] = []
  fault, at = "", 0
  with file.open() as opened:
    while at < file.size and not fault:
      opened.seek(at)
      head = opened.read(12)
      size = struct.unpack("<Q", head[:8])[0] if len(head) == 12 else 0
      if len(head) == 12 and head[8:] != _sum(head[:8]):
        fault = "damaged from here on"
      elif len(head) < 12 or at + 16 + size > file.size:
        fault = "cut short"
      if fault and not places:
        raise files.BadFile(file.name, f"not a TFRecord file, or {fault}")
      places.append((at + 12, 0 if fault else size))
      at += 16 + size
  problems = indexed_table.Problems()
  problem = np.zeros(len(places), np.uint8)
  problem[-1] = problems.number(fault)
  starts, sizes = np.array(places, np.int64).T
  return indexed_table.kept(
    file,
    _columns(file, places),
    problems,
    {"starts": starts, "sizes": sizes, "problem": problem},
  )


def _sum(raw: bytes) -> bytes:
  return struct.pack("<I", crc32c.masked(raw))


def _columns(file: files.File, places: list[tuple[int, int]]) -> list[str]:
  """The names of the first good record's features."""
  for start, size in places[:100]:
    try:
      return list(_example(file.read, start, size))
    except ValueError:
      continue
  raise files.BadFile(file.name, "no tf.train.Example in it")


def _example(read: indexed_table.Read, start: int, size: int) -> dict[str, Any]:
  if size > indexed_table.MAX_ROW_BYTES:
    raise ValueError(f"more than {indexed_table.MAX_ROW_BYTES} bytes")
  raw = read(start, size + 4)
  if raw[size:] != _sum(raw[:size]):
    raise ValueError("wrong checksum")
  return _decode(raw[:size])


def _decode(raw: bytes) -> dict[str, Any]:
  try:
    return tf_example.decode(raw)
  except ValueError:
    raise ValueError("not a tf.train.Example") from None


def _some(row: dict[str, Any], columns: tuple[str, ...]) -> dict[str, Any]:
  return {c: row[c] for c in columns if c in row} if columns else row


class TfRecord(indexed_table.Indexed):
  """A tables.Shard of a TFRecord file."""

  def _row(
    self, row: int, columns: tuple[str, ...], read: indexed_table.Read
  ) -> dict[str, Any]:
    start, size = self.arrays["starts"][row], self.arrays["sizes"][row]
    return _some(_example(read, int(start), int(size)), columns)


class ArrayRecord(indexed_table.Indexed):
  """A tables.Shard of an ArrayRecord file."""

  def __init__(self, file: files.File, *, wait: bool):
    if "://" in file.path:
      raise ValueError(
        f"{file.path}: ArrayRecord files must lie on a disk. Copy them first."
      )
    self._lock = threading.Lock()
    self._reader: Any = None
    super().__init__(file, "array_record 2", self._find, wait=wait)

  def _find(self, file: files.File) -> cached_arrays.Kept:
    try:
      count = self._opened().num_records()
      columns = list(_decode(self._opened().read([0])[0])) if count else []
    except ValueError as error:
      raise files.BadFile(file.name, str(error)) from error
    except Exception as error:  # The reader's own kinds.
      raise files.BadFile(file.name, "not an ArrayRecord file") from error
    none = indexed_table.Problems()
    problem = np.zeros(count, np.uint8)
    return indexed_table.kept(file, columns, none, {"problem": problem})

  def _opened(self) -> Any:
    if self._reader is None:
      from array_record.python import array_record_module

      self._reader = array_record_module.ArrayRecordReader(
        self.file.path, "readahead_buffer_size:0"
      )
    return self._reader

  def _row(
    self, row: int, columns: tuple[str, ...], read: indexed_table.Read
  ) -> dict[str, Any]:
    del read
    try:
      with self._lock:
        raw = self._opened().read([row])[0]
    except Exception:
      raise ValueError("damaged") from None
    return _some(_decode(raw), columns)
