"""JSON files of any size, read with little memory.

`elements` gives the elements of a file's top-level lists (or objects) one by
one, so that two gigabytes of annotations cost as much memory as the largest of
them, and unpacks what gzip packed, whatever the file is called;
`load` reads a whole small file and refuses a large one.
"""

import gzip
import io
import json
import os
import pathlib
import stat
import zlib
from collections.abc import Collection, Iterator
from typing import Any, BinaryIO, TextIO, cast

from byt5_diffusion.data.rows import files

_CHUNK = 2**20  # Characters read at a time.
MAX_ELEMENT = 2**22  # Characters of one element.
MAX_FILE = 2**24  # Bytes of a file that is read whole.
_SPACE = " \t\n\r"
_GZIP = b"\x1f\x8b"


class BrokenJson(ValueError):
  """A file that is no JSON, or not of the shape that was expected."""


def load(path: str | os.PathLike[str], max_bytes: int = MAX_FILE) -> Any:
  """The value of a small file.

  Raises:
    BrokenJson: it is not UTF-8, no JSON, nested too deeply, or too large.
    OSError: it cannot be read.
  """
  with _open(path) as file:
    raw = file.read(max_bytes + 1)
  if len(raw) > max_bytes:
    raise BrokenJson(f"{path}: more than {max_bytes} bytes of JSON.")
  try:
    return json.loads(raw.decode("utf-8-sig"))
  except UnicodeDecodeError:
    raise BrokenJson(f"{path}: is not UTF-8.") from None
  except (ValueError, RecursionError) as error:
    raise BrokenJson(f"{path}: is no JSON ({error}).") from None


def _open(path: str | os.PathLike[str] | files.File) -> BinaryIO:
  if isinstance(path, files.File):
    return path.open()
  # A pipe or a device would block or never end.
  if not stat.S_ISREG(pathlib.Path(path).stat().st_mode):
    raise BrokenJson(f"{path}: is no regular file.")
  return pathlib.Path(path).open("rb")


def elements(
  path: str | os.PathLike[str] | files.File, keys: Collection[str]
) -> Iterator[tuple[str, Any]]:
  """(key, element) of the lists `keys` of a file whose value is an object.

  Args:
    path: the file, maybe one behind an address; packed by gzip, or not.
    keys: of the lists; the object's other members are passed by. If one is an
      object itself, its elements are pairs (name, value).

  Raises:
    BrokenJson: it is not UTF-8, no JSON object, a member is neither, or an
      element is longer than MAX_ELEMENT.
    OSError: it cannot be read.
  """
  name = path.path if isinstance(path, files.File) else os.fspath(path)
  with _open(path) as raw:
    packed = raw.read(2) == _GZIP
    raw.seek(0)
    unpacked = gzip.GzipFile(fileobj=raw) if packed else raw
    file = io.TextIOWrapper(cast(BinaryIO, unpacked), encoding="utf-8-sig")
    try:
      yield from _members(_Parser(file), keys)
    except (EOFError, zlib.error, gzip.BadGzipFile):
      raise BrokenJson(f"{name}: what gzip packed is broken.") from None
    except UnicodeDecodeError:
      raise BrokenJson(f"{name}: is not UTF-8.") from None
    except BrokenJson as error:
      raise BrokenJson(f"{name}: {error}") from None


def _members(
  parser: "_Parser", keys: Collection[str]
) -> Iterator[tuple[str, Any]]:
  parser.take("{")
  if parser.peek() == "}":
    return
  while True:
    key = parser.value()
    if not isinstance(key, str):
      raise BrokenJson("an object's key is no string.")
    parser.take(":")
    opening = parser.peek()
    if opening in ("[", "{"):
      for element in (_list if opening == "[" else _object)(parser):
        if key in keys:
          yield key, element
    elif key in keys:
      raise BrokenJson(f"{key!r} is no list.")
    else:
      parser.value()
    if parser.take(",}") == "}":
      return


def _list(parser: "_Parser") -> Iterator[Any]:
  parser.take("[")
  if parser.peek() == "]":
    parser.take("]")
    return
  while True:
    yield parser.value()
    if parser.take(",]") == "]":
      return


def _object(parser: "_Parser") -> Iterator[Any]:
  parser.take("{")
  if parser.peek() == "}":
    parser.take("}")
    return
  while True:
    name = parser.value()
    parser.take(":")
    yield name, parser.value()
    if parser.take(",}") == "}":
      return


class _Parser:
  """A place in a file's text; `_buffer` holds what was read of the rest."""

  def __init__(self, file: TextIO):
    self._file = file
    self._buffer = ""
    self._place = 0
    self._ended = False
    self._decode = json.JSONDecoder().raw_decode

  def peek(self) -> str:
    """The next character that is no white space; "" at the end."""
    while True:
      while self._place < len(self._buffer):
        character = self._buffer[self._place]
        if character not in _SPACE:
          return character
        self._place += 1
      if not self._more():
        return ""

  def take(self, expected: str) -> str:
    """Passes one of the expected characters by."""
    found = self.peek()
    if not found or found not in expected:
      raise BrokenJson(
        f"is no JSON: {found!r} where one of {expected!r} should be."
        if found
        else "is cut off."
      )
    self._place += 1
    return found

  def value(self) -> Any:
    """The next value, of at most MAX_ELEMENT characters."""
    self.peek()
    while True:
      try:
        value, end = self._decode(self._buffer, self._place)
      except json.JSONDecodeError as error:
        reason = error.msg
      except (ValueError, RecursionError) as error:
        raise BrokenJson(f"is no JSON ({error}).") from None
      else:
        # The text may go on: 12 of 123.
        if end < len(self._buffer) or self._ended:
          self._place = end
          return value
        self._more()
        continue
      if len(self._buffer) - self._place > MAX_ELEMENT:
        raise BrokenJson(
          f"has an element of more than {MAX_ELEMENT} characters, or is no "
          "JSON."
        )
      if not self._more():
        raise BrokenJson(f"is cut off or no JSON ({reason}).")

  def _more(self) -> bool:
    """Reads on; as much again as there is, so that retries stay few."""
    if self._ended:
      return False
    rest = self._buffer[self._place :]
    read = self._file.read(max(_CHUNK, len(rest)))
    self._ended = not read
    self._buffer, self._place = rest + read, 0
    return bool(read)
