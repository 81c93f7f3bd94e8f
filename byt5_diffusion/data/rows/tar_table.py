"""Samples of a tar, as webdataset and img2dataset write them.

Members of one name up to its first dot, one behind the other, are a sample:
000.jpg, 000.txt, 000.json. Headers alone are read to find them, and nothing is
ever extracted: a member's name is a key and leads nowhere.
"""

import re
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from byt5_diffusion.data.rows import (
  cached_arrays,
  files,
  indexed_table,
)

_BLOCK = 512
_END = bytes(_BLOCK)
_MAX_NAME = 2**16  # Bytes of a long name or of a pax header.
_MAX_EXTENSIONS = 1000
_SPLIT = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)
_META = re.compile(r"__[^/]*__")


def open_file(file: files.File, *, wait: bool = True) -> "Tar":
  """The samples of a tar; see parquet_table.open_file."""
  return Tar(file, "tar 2", _index, wait=wait)


class Member(NamedTuple):
  """A regular file in a tar, or what is wrong with what is there.

  Attributes:
    name: with its folders.
    start, size: of its data.
    fault: "" if it can be read.
  """

  name: str
  start: int
  size: int
  fault: str = ""


class _Broken(ValueError):
  """Nothing behind this place can be found."""


def members(opened: BinaryIO, end: int) -> Iterator[Member]:
  """All members but folders, by their headers. _Broken: not a tar's header."""
  at = 0
  long: dict[str, str] = {}
  if end < _BLOCK:
    raise _Broken("cut short")
  while at + _BLOCK <= end:
    opened.seek(at)
    head = opened.read(_BLOCK)
    if head == _END:
      return
    kind, size = _header(head)
    at += _BLOCK
    if kind in (b"x", b"L"):
      long |= _long(opened, kind, size)
    elif kind not in (b"g", b"K"):
      size = int(long.get("size", size))
      name = long.get("path") or _name(head)
      if kind != b"5":
        fault = _fault(kind, name, long)
        if at + size > end:
          fault = "cut short"
        yield Member(name, at, size, fault)
      size = size if kind in (b"0", b"\0", b"7", b"S") else 0
      long = {}
    at += -(-size // _BLOCK) * _BLOCK


def _header(head: bytes) -> tuple[bytes, int]:
  """A header's kind and size, once its sum has been checked."""
  try:
    said = int(head[148:156].strip(b" \0") or b"0", 8)
    if said != sum(head) - sum(head[148:156]) + 8 * 32:
      raise ValueError
    if head[124] & 128:  # GNU's way to write sizes of 8 GiB and more.
      size = int.from_bytes(head[125:136], "big")
    else:
      size = int(head[124:136].strip(b" \0") or b"0", 8)
    if size < 0:
      raise ValueError
  except ValueError:
    raise _Broken("damaged from here on") from None
  return head[156:157], size


def _name(head: bytes) -> str:
  name = _text(head[:100])
  if head[345] and head[257:263] == b"ustar\0":  # GNU keeps other things there.
    return f"{_text(head[345:500])}/{name}"
  return name


def _text(raw: bytes) -> str:
  return raw.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _long(opened: BinaryIO, kind: bytes, size: int) -> dict[str, str]:
  """What GNU's long name or pax's records say of the next member."""
  if size > _MAX_NAME:
    raise _Broken("a header that is far too long")
  raw = opened.read(size)
  if kind == b"L":
    return {"path": _text(raw)}
  found = {}
  while raw:
    length = raw.partition(b" ")[0]
    if not length.isdigit() or not len(length) < int(length) <= len(raw):
      raise _Broken("damaged from here on")
    record = raw[len(length) + 1 : int(length) - 1]
    key, _, value = record.partition(b"=")
    found[_text(key)] = _text(value)
    raw = raw[int(length) :]
  if not found.get("size", "0").isdigit():
    raise _Broken("damaged from here on")
  return found


def _fault(kind: bytes, name: str, long: dict[str, str]) -> str:
  if kind in (b"1", b"2"):
    return "a link"
  if kind == b"S" or any(key.startswith("GNU.sparse") for key in long):
    return "a sparse file"
  if kind not in (b"0", b"\0", b"7"):
    return "not a regular file"
  if name.startswith("/") or ".." in name.split("/"):
    return "a name that leads out of the tar"
  try:
    name.encode("utf-8")
  except UnicodeError:
    return "a name that is not UTF-8"
  return ""


class _Samples:
  """Members, put together."""

  def __init__(self) -> None:
    self.keys: list[str] = []
    self.counts: list[int] = []
    self.faults: list[str] = []
    self.extensions: dict[str, int] = {}
    self.members: list[tuple[int, int, int]] = []  # extension, start, size
    self._seen: set[str] = set()
    self._have: set[str] = set()

  def add(self, member: Member) -> None:
    found = _SPLIT.fullmatch(member.name)
    if found is None or _META.fullmatch(member.name):
      return  # As webdataset does.
    key, extension = found[1], found[2].lower()
    if not self.keys or key != self.keys[-1]:
      self._begin(key)
    if extension in self._have:
      self.faults[-1] = "two members of one name"
    self._have.add(extension)
    number = self.extensions.setdefault(extension, len(self.extensions))
    if number >= _MAX_EXTENSIONS:
      raise _Broken(f"more than {_MAX_EXTENSIONS} kinds of members")
    self.members.append((number, member.start, member.size))
    self.counts[-1] += 1
    self.faults[-1] = self.faults[-1] or member.fault

  def _begin(self, key: str, fault: str = "") -> None:
    self.keys.append(key)
    self.counts.append(0)
    self.faults.append("a key that was there before" * (key in self._seen))
    self._seen.add(key)
    self._have = set()

  def end(self, fault: str) -> None:
    """Counts what cannot be found as one broken sample."""
    self._begin("")
    self.faults[-1] = fault


def _index(file: files.File) -> cached_arrays.Kept:
  samples = _Samples()
  try:
    with file.open() as opened:
      for member in members(opened, file.size):
        samples.add(member)
  except _Broken as error:
    if not samples.keys:
      raise files.BadFile(file.name, "not a tar, or compressed") from error
    samples.end(str(error))
  if not samples.keys:
    raise files.BadFile(file.name, "no samples in it")
  problems = indexed_table.Problems()
  names = cached_arrays.strings(samples.keys)
  extension, start, size = zip(*samples.members or [(0, 0, 0)], strict=True)
  fault = [problems.number(fault) for fault in samples.faults]
  return indexed_table.kept(
    file,
    ["__key__", *samples.extensions],
    problems,
    {
      **names,
      "last": indexed_table.numbers(samples.counts).cumsum(),
      "extension": indexed_table.numbers(extension, "<u2"),
      "start": indexed_table.numbers(start),
      "size": indexed_table.numbers(size, "<u8"),
      "problem": indexed_table.numbers(fault, "<u1"),
    },
  )


class Tar(indexed_table.Indexed):
  """A tables.Shard of a tar: {"__key__": str, extension: bytes}."""

  def _row(
    self, row: int, columns: tuple[str, ...], read: indexed_table.Read
  ) -> dict[str, Any]:
    arrays = self.arrays
    first = int(arrays["last"][row - 1]) if row else 0
    found: dict[str, Any] = {"__key__": cached_arrays.string(arrays, row)}
    spans = {}
    for place in range(first, int(arrays["last"][row])):
      name = self.columns[1 + int(arrays["extension"][place])]
      if not columns or name in columns:
        spans[name] = (int(arrays["start"][place]), int(arrays["size"][place]))
    if not spans:
      return found
    size = sum(size for _, size in spans.values())
    if size > indexed_table.MAX_ROW_BYTES:
      raise ValueError(f"more than {indexed_table.MAX_ROW_BYTES} bytes")
    begin = min(start for start, _ in spans.values())
    end = max(start + size for start, size in spans.values())
    if end - begin > 2 * size + 64 * 2**10:  # Much else between them.
      return found | {k: read(*span) for k, span in spans.items()}
    raw = read(begin, end - begin)
    return found | {
      name: raw[start - begin : start - begin + size]
      for name, (start, size) in spans.items()
    }
