"""Rows of gzip files, packed again so that any block can be read alone.

gzip has no random access. The rows of a file are kept in the cache folder, in
blocks that zlib packs one by one; they take about as much room as the file.
"""

import contextlib
import gzip
import io
import os
import pathlib
import tempfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO, cast

from byt5_diffusion.data.rows import (
  cached_arrays,
  files,
)

# Text becomes 3 to 20 times as long. What becomes longer still is no text.
MAX_EXPANSION = 100
_MAX_BLOCK = 128 * 2**20


class Packed:
  """Packed rows of a file."""

  def __init__(self, file: files.File):
    self.file = file
    try:
      self.path = cached_arrays.path_of("rows", file.identity)
    except OSError as error:
      raise ValueError(
        f"{file.path}: compressed rows need a cache folder that can be written "
        f"({error}). Set XDG_CACHE_HOME, or decompress the file."
      ) from error

  def is_whole(self, size: int) -> bool:
    """Whether the file of packed rows is there, and of this size."""
    try:
      return self.path.stat().st_size == size
    except OSError:
      return False

  def unpacked(self) -> "BinaryIO":
    """The rows from the beginning, as long as they are no bomb."""
    limit = MAX_EXPANSION * self.file.size + 2**20
    return cast(BinaryIO, io.BufferedReader(_Bounded(self.file, limit), 2**20))

  @contextlib.contextmanager
  def writer(self) -> Iterator["Writer"]:
    """Takes blocks; the file appears when the last one was written."""
    handle, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=".")
    try:
      with os.fdopen(handle, "wb") as opened:
        yield Writer(opened, self.file)
      os.replace(temporary, self.path)
    except BaseException:
      pathlib.Path(temporary).unlink(missing_ok=True)
      raise

  def read(self, start: int, size: int) -> bytes:
    """A block."""
    with self.path.open("rb") as opened:
      opened.seek(start)
      packed = opened.read(size)
    try:
      return zlib.decompressobj().decompress(packed, _MAX_BLOCK)
    except zlib.error:
      raise ValueError(
        f"{self.path}, the cache of {self.file.path}, is damaged. Remove it."
      ) from None


class Writer:
  """Packs blocks, one behind the other."""

  def __init__(self, opened: BinaryIO, file: files.File):
    self._opened = opened
    self._file = file
    self.end = 0

  def add(self, block: bytes) -> tuple[int, int]:
    """Where a block lies now, and its size."""
    packed = zlib.compress(block, 1)
    try:
      self._opened.write(packed)
    except OSError as error:
      raise ValueError(
        f"{self._file.path}: its rows cannot be kept in the cache folder "
        f"({error.strerror}). Set XDG_CACHE_HOME to a larger disk, or "
        "decompress the file."
      ) from error
    self.end += len(packed)
    return self.end - len(packed), len(packed)


class _Bounded(io.RawIOBase):
  """What a gzip file holds, up to a limit."""

  def __init__(self, file: files.File, limit: int):
    self._file = file
    self._opened = file.open()
    self._gzip = gzip.GzipFile(fileobj=self._opened)
    self._left = limit

  def readable(self) -> bool:
    return True

  def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
    name = self._file.name
    try:
      part = self._gzip.read(len(buffer))
    except EOFError:
      raise files.BadFile(name, "cut short") from None
    except (OSError, zlib.error):
      raise files.BadFile(name, "not gzip, or damaged") from None
    self._left -= len(part)
    if self._left < 0:
      raise files.BadFile(
        name, f"more than {MAX_EXPANSION} times as long as it is packed"
      )
    buffer[: len(part)] = part
    return len(part)

  def close(self) -> None:
    self._opened.close()
    super().close()
