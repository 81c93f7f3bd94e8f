"""Arrays that took long to make, kept on disk: indexes and catalogues.

  ~/.cache/byt5_diffusion/<kind>/<hash of all that they depend on>

No pickle. A file appears when it is complete; a damaged one is made again.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import mmap
import os
import pathlib
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

_MAGIC = b"byt5_diffusion arrays 1\n"
_KINDS = ("b", "i", "u", "f")
_MAPPED = 2**20  # Smaller files are read.
Item = TypeVar("Item")
Made = TypeVar("Made")
_log = logging.getLogger(__name__)


class Kept(NamedTuple):
  """What is kept: JSON, and arrays that may be mapped from a file."""

  header: dict[str, Any]
  arrays: dict[str, np.ndarray]


def folder(kind: str) -> pathlib.Path:
  """Where things of a kind are kept; made if absent."""
  home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  path = pathlib.Path(home) / "byt5_diffusion" / kind
  path.mkdir(parents=True, exist_ok=True)
  return path


def path_of(kind: str, *depends_on: str) -> pathlib.Path:
  """The file of what depends on these strings."""
  key = json.dumps([kind, *depends_on]).encode("utf-8", "surrogatepass")
  return folder(kind) / hashlib.blake2b(key, digest_size=16).hexdigest()


class Busy(Exception):
  """Another process is making what is asked for."""


def kept(
  kind: str,
  depends_on: tuple[str, ...],
  make: Callable[[], Kept],
  *,
  wait: bool = True,
) -> Kept:
  """What is kept of `kind`, made now if it is not there or damaged.

  A cache that cannot be written costs time and nothing else.

  Args:
    kind, depends_on: see `path_of`.
    make: makes it.
    wait: until another process that makes it is done.

  Raises:
    Busy: there is such a process, and nobody wants to wait.
  """
  try:
    path = path_of(kind, *depends_on)
  except OSError as error:
    _log.warning("The cache cannot be used: %s", error)
    return make()
  found = _load(path)
  if found is not None:
    return found
  with _claimed(path, wait=wait):
    made = _load(path) or make()
    try:
      save(path, made)
      return load(path)  # Mapped, so that the memory can be given back.
    except OSError as error:
      _log.warning("Nothing can be kept in the cache: %s", error)
      return made


def _load(path: pathlib.Path) -> Kept | None:
  try:
    return load(path)
  except FileNotFoundError:
    return None
  except (OSError, ValueError, KeyError, TypeError) as error:
    _log.warning("%s is made again: %s", path, error)
    return None


@contextlib.contextmanager
def _claimed(path: pathlib.Path, *, wait: bool) -> Iterator[None]:
  """This process alone makes a file. Busy: another one is at it.

  A process that dies claims nothing. Where files cannot be locked, everybody
  makes his own.
  """
  with contextlib.ExitStack() as stack:
    try:
      claim = path.with_suffix(".lock")
      lock = stack.enter_context(claim.open("w"))
      fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
      stack.callback(claim.unlink, missing_ok=True)
    except BlockingIOError:
      raise Busy from None
    except OSError:
      pass
    yield


def share(
  items: Sequence[Item], make: Callable[[Item, bool], Made]
) -> list[Made]:
  """make(item, wait) of all: at first those that no other process is at."""
  made: dict[int, Made] = {}
  for wait in (False, True):
    for number, item in enumerate(items):
      if number not in made:
        with contextlib.suppress(Busy):
          made[number] = make(item, wait)
  return [made[number] for number in range(len(items))]


def forget(kind: str, depends_on: tuple[str, ...]) -> None:
  """Drops what is kept of `kind`, if anything is."""
  with contextlib.suppress(OSError):
    path_of(kind, *depends_on).unlink(missing_ok=True)


def save(path: pathlib.Path, what: Kept) -> None:
  """Writes a file in one step, so that no reader sees half of it."""
  arrays = {
    key: np.ascontiguousarray(array) for key, array in what.arrays.items()
  }
  specs = [[k, a.dtype.str, a.size] for k, a in arrays.items()]
  head = json.dumps({"header": what.header, "arrays": specs}).encode("utf-8")
  crc = zlib.crc32(head)
  for array in arrays.values():
    crc = zlib.crc32(array.view(np.uint8).data, crc)
  handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".")
  try:
    with os.fdopen(handle, "wb") as file:
      file.write(_MAGIC + struct.pack("<QQ", crc, len(head)) + head)
      for array in arrays.values():
        file.write(b"\0" * (-file.tell() % 8))
        file.write(array.view(np.uint8).data)
    os.replace(temporary, path)
  except BaseException:
    os.unlink(temporary)
    raise


def load(path: pathlib.Path) -> Kept:
  """Inverse of `save`; its arrays are mapped and cannot be written to.

  Raises:
    FileNotFoundError: there is none.
    ValueError: it is damaged.
  """
  with path.open("rb") as file:
    size = os.fstat(file.fileno()).st_size
    if size < len(_MAGIC) + 16:
      raise ValueError("cut short")
    if size < _MAPPED:  # A process has few maps, and may have many files.
      view = memoryview(file.read())
    else:
      mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
      view = memoryview(mapped)
  at = len(_MAGIC) + 16
  if bytes(view[: len(_MAGIC)]) != _MAGIC:
    raise ValueError("of another format")
  crc, size = struct.unpack("<QQ", view[len(_MAGIC) : at])
  head = view[at : at + size]
  found = json.loads(bytes(head))
  at, sum_ = at + size, zlib.crc32(head)
  arrays = {}
  for key, dtype, count in found["arrays"]:
    if np.dtype(dtype).kind not in _KINDS:
      raise ValueError("arrays of no numbers")
    at += -at % 8
    arrays[key] = (
      np.frombuffer(view, dtype, count, at) if count else (np.zeros(0, dtype))
    )
    end = at + arrays[key].nbytes
    sum_ = zlib.crc32(view[at:end], sum_)
    at = end
  if sum_ != crc:
    raise ValueError("checksum")
  return Kept(found["header"], arrays)


def digest(made: Kept, *parts: bytes) -> str:
  """Of arrays, and of what is given besides."""
  hashed = hashlib.blake2b(digest_size=8)
  for part in parts:
    hashed.update(part)
  for array in made.arrays.values():
    hashed.update(np.ascontiguousarray(array).view(np.uint8).data)
  return hashed.hexdigest()


def strings(values: list[str]) -> Mapping[str, np.ndarray]:
  """Strings as two arrays: {"text": UTF-8, "ends": where each ends}."""
  raw = [value.encode("utf-8", "surrogatepass") for value in values]
  return {
    "text": np.frombuffer(b"".join(raw), np.uint8),
    "ends": np.cumsum([len(one) for one in raw], dtype=np.int64),
  }


def string(arrays: Mapping[str, np.ndarray], index: int) -> str:
  """Inverse of `strings`, for one of them."""
  start = int(arrays["ends"][index - 1]) if index else 0
  raw = arrays["text"][start : int(arrays["ends"][index])].tobytes()
  return raw.decode("utf-8", "surrogatepass")
