"""Where data sets lie: files, folders, globs, braces, and fsspec's addresses.

  /data/laion                              a folder, with all below it
  /data/laion/part-{00000..00127}.parquet  braces: a range, or {one,other}
  /data/laion/*.parquet                    a glob
  gs://bucket/laion/*.parquet              what fsspec knows (memory://, s3://)

Files are only ever read, a range of bytes at a time.
"""

import dataclasses
import functools
import glob
import os
import re
import stat
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MAX_EXPANDED = 100_000
# What tells two versions of a remote file apart, the surest first.
_STAMPS = (
  "etag", "ETag", "generation", "md5Hash", "mtime", "LastModified",
  "last_modified", "updated", "created",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class File:
  """A file that was found.

  Attributes:
    path: absolute, or an address with "://".
    name: what errors call it: its path below the folder that was asked for.
    size: bytes.
    stamp: changes when the file does: time of change, or an etag.
  """

  path: str
  name: str
  size: int
  stamp: str

  @property
  def identity(self) -> str:
    """Of this version of the file, wherever it was looked up from."""
    return f"{self.path}\n{self.size}\n{self.stamp}"

  def open(self) -> BinaryIO:
    """For reading from its beginning."""
    if _remote(self.path):
      system, path = _file_system(self.path)
      return cast(BinaryIO, system.open(path, "rb"))
    return open(self.path, "rb")

  def read(self, offset: int, size: int) -> bytes:
    """Up to `size` bytes from `offset` on. Any thread may."""
    if _remote(self.path):
      system, path = _file_system(self.path)
      return system.cat_file(path, start=offset, end=offset + size)
    with open(self.path, "rb", buffering=0) as file:
      parts = []
      while size > 0 and (part := os.pread(file.fileno(), size, offset)):
        parts.append(part)
        offset, size = offset + len(part), size - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)

  def ends(self) -> bytes:
    """Its size, beginning and end: another copy of the file has the same."""
    first, last = self.read(0, 4096), self.read(max(0, self.size - 4096), 4096)
    return b"%d " % self.size + first + last


def find(path: str | os.PathLike[str]) -> list[File]:
  """All files that a path names, in order of their paths.

  Args:
    path: see the top of the file. Names that begin with "." are not looked at
      inside of folders.

  Raises:
    ValueError: there are none; it says where it looked.
    ImportError: an address, and fsspec is not installed.
  """
  path = os.fspath(path)
  found: dict[str, File] = {}
  for one in expand(path):
    listed = list(_find_remote(one) if _remote(one) else _find_local(one))
    if not listed:
      raise ValueError(f"{one}: there is no such file or folder.")
    found.update((file.path, file) for file in listed)
  root = _common_folder(list(found))
  return [
    dataclasses.replace(file, name=key[len(root) :])
    for key, file in sorted(found.items())
  ]


def expand(path: str) -> list[str]:
  """Braces as a shell has them: "a{00..02}" -> ["a00", "a01", "a02"]."""
  done, waiting = [], [path]
  while waiting:
    one = waiting.pop()
    match = _BRACES.search(one)
    if match is None:
      done.append(one)
    else:
      before, after = one[: match.start()], one[match.end() :]
      waiting += [before + part + after for part in _alternatives(match[1])]
    if len(done) + len(waiting) > _MAX_EXPANDED:
      raise ValueError(f"{path}: more than {_MAX_EXPANDED} files in braces.")
  return sorted(done)


def _alternatives(inside: str) -> list[str]:
  if found := _RANGE.fullmatch(inside):
    first, last = int(found[1]), int(found[2])
    if not 0 <= last - first < _MAX_EXPANDED:
      raise ValueError(
        f"{{{inside}}}: a range counts up, by at most {_MAX_EXPANDED}."
      )
    return [f"{i:0{len(found[1])}}" for i in range(first, last + 1)]
  return inside.split(",")


def _remote(path: str) -> bool:
  return "://" in path


@functools.lru_cache(maxsize=1024)
def _file_system(path: str) -> tuple[Any, str]:
  try:
    import fsspec
  except ImportError as error:
    raise ImportError(
      f"{path}: addresses need fsspec. Install it with "
      '`pip install "byt5-diffusion[data]"`.'
    ) from error
  try:
    return fsspec.core.url_to_fs(path)
  except (ValueError, ImportError) as error:
    raise ValueError(f"{path}: {error}") from error


def _find_local(path: str) -> Iterator[File]:
  path = os.path.abspath(os.path.expanduser(path))
  there = os.path.exists(path)  # A name may have brackets of its own.
  for one in [path] if there else glob.glob(path, recursive=True):
    if os.path.isdir(one):
      yield from _walk(one)
    else:
      yield _local(one)


def _walk(folder: str) -> Iterator[File]:
  def stop(error: OSError) -> None:
    raise error  # A folder that cannot be listed must not look empty.

  for root, folders, names in os.walk(folder, onerror=stop):
    folders[:] = [name for name in folders if not name.startswith(".")]
    for name in names:
      path = os.path.join(root, name)
      if not name.startswith(".") and os.path.isfile(path):
        yield _local(path)


def _local(path: str) -> File:
  found = os.stat(path)
  if not stat.S_ISREG(found.st_mode):  # A pipe would block.
    raise ValueError(f"{path} is not a regular file.")
  return File(
    path=path, name=path, size=found.st_size, stamp=str(found.st_mtime_ns)
  )


def _find_remote(path: str) -> Iterator[File]:
  if "::" in path:
    raise ValueError(
      f"{path}: chains of addresses are not read. Name the last one alone; its "
      "files are read range by range."
    )
  system, inner = _file_system(path)
  if glob.has_magic(inner):
    listed = list(system.glob(inner, detail=True).values())
  elif system.isdir(inner):
    listed = [{"name": inner, "type": "directory"}]
  elif system.exists(inner):
    listed = [system.info(inner)]
  else:
    return
  for info in listed:
    below = [info]
    if info["type"] == "directory":
      below = list(system.find(info["name"], detail=True).values())
    for one in below:
      yield File(
        path=system.unstrip_protocol(one["name"]),
        name=one["name"],
        size=int(one["size"] or 0),
        stamp=next((str(one[k]) for k in _STAMPS if one.get(k)), ""),
      )


def _common_folder(paths: list[str]) -> str:
  """What all paths begin with, up to and with its last "/"."""
  # Characters, not components: an address has two slashes.
  common = os.path.commonprefix(paths)  # noqa: RUF071
  return common.rpartition("/")[0] + "/"


class BadFile(ValueError):
  """A file that cannot be opened as what its name says.

  Attributes:
    file: its name.
    reason: why, in a few words.
  """

  def __init__(self, file: str, reason: str):
    super().__init__(f"{file}: {reason}")
    self.file = file
    self.reason = reason
