"""Arrays of strangers: MNIST's idx files and NumPy's npz, without pickles.

A header is believed only as far as there are bytes behind it: nothing is made
room for that the file does not hold.
"""

import gzip
import io
import math
import struct
import zipfile
import zlib
from typing import BinaryIO, cast

import numpy as np

from byt5_diffusion.data.rows import files

MAX_BYTES = 2**31  # Of an array: eight times Kuzushiji-49.
_GZIP = b"\x1f\x8b"
_UBYTE = 0x08  # Of idx files' types, the only one that pictures need.
_MAX_DIMENSIONS = 4
_CHUNK = 2**20


class BadArray(ValueError):
  """A file that holds no array, or another one than it says."""


def read_idx(file: files.File, max_bytes: int = MAX_BYTES) -> np.ndarray:
  """uint8 array of an idx file: 0, 0, 8, dimensions, sizes, values.

  Args:
    file: packed by gzip, or not, whatever it is called.
    max_bytes: of the array.

  Raises:
    BadArray: whatever is wrong with it; names the file.
  """
  try:
    with file.open() as raw:
      packed = raw.read(2) == _GZIP
      raw.seek(0)
      opened = gzip.GzipFile(fileobj=raw) if packed else raw
      return _idx(cast(BinaryIO, opened), max_bytes)
  except BadArray as error:
    raise BadArray(f"{file.path}: {error}") from None
  except (EOFError, zlib.error, gzip.BadGzipFile):
    raise BadArray(f"{file.path}: what gzip packed is broken.") from None


def _idx(opened: BinaryIO, max_bytes: int) -> np.ndarray:
  head = opened.read(4)
  if len(head) < 4 or head[:2] != b"\0\0":
    raise BadArray("is no idx file (it begins with two zero bytes).")
  kind, dimensions = head[2], head[3]
  if kind != _UBYTE or not 1 <= dimensions <= _MAX_DIMENSIONS:
    raise BadArray(
      f"holds type {kind} in {dimensions} dimensions; bytes (8) are read."
    )
  sizes = opened.read(4 * dimensions)
  if len(sizes) < 4 * dimensions:
    raise BadArray("is cut off.")
  shape = struct.unpack(f">{dimensions}I", sizes)
  return _values(opened, shape, max_bytes)


def _values(
  opened: BinaryIO, shape: tuple[int, ...], max_bytes: int
) -> np.ndarray:
  wanted = math.prod(shape)
  if wanted > max_bytes:
    raise BadArray(f"says that it holds {shape}: more than {max_bytes} bytes.")
  parts, size = [], 0
  while size <= wanted:
    part = opened.read(min(_CHUNK, wanted + 1 - size))
    if not part:
      break
    parts.append(part)
    size += len(part)
  if size != wanted:
    more = "more" if size > wanted else str(size)
    raise BadArray(
      f"says that it holds {shape}, {wanted} bytes, and holds {more}."
    )
  return np.frombuffer(b"".join(parts), np.uint8).reshape(shape)


def read_npz(
  file: files.File, name: str = "arr_0", max_bytes: int = MAX_BYTES
) -> np.ndarray:
  """uint8 array of an npz file.

  Args:
    file: the file.
    name: of the array in it.
    max_bytes: of the array.

  Raises:
    BadArray: it holds Python's objects, or whatever else is wrong with it.
  """
  try:
    with file.open() as raw, zipfile.ZipFile(raw) as archive:
      members = {info.filename: info for info in archive.infolist()}
      member = members.get(f"{name}.npy")
      if member is None:
        raise BadArray(f"has no array {name!r}; there are {sorted(members)}.")
      with archive.open(member) as opened:
        return _npy(cast(BinaryIO, opened), max_bytes)
  except BadArray as error:
    raise BadArray(f"{file.path}: {error}") from None
  except (
    zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError,
    RuntimeError,
  ):  # fmt: skip
    raise BadArray(f"{file.path}: is no zip file, or a broken one.") from None


def _npy(opened: BinaryIO, max_bytes: int) -> np.ndarray:
  # The header is short; what comes behind it is not read with it.
  head = io.BytesIO(opened.read(10))
  try:
    version = np.lib.format.read_magic(head)
    if version != (1, 0):
      raise BadArray("is of another version of npy than 1.0.")
    (length,) = struct.unpack("<H", head.read(2))
    header = io.BytesIO(struct.pack("<H", length) + opened.read(length))
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(header)
  except BadArray:
    raise
  except (ValueError, struct.error):
    raise BadArray("holds no array of NumPy's.") from None
  if dtype.hasobject:
    raise BadArray("holds objects of Python's, which could run anything.")
  if dtype != np.uint8 or fortran or len(shape) > _MAX_DIMENSIONS:
    raise BadArray(f"holds {dtype} {shape}; uint8 is read.")
  return _values(opened, tuple(int(one) for one in shape), max_bytes)
