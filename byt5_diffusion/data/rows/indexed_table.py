"""What formats share whose rows can be found one by one."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from byt5_diffusion.data import images
from byt5_diffusion.data.rows import (
  cached_arrays,
  files,
)

BLOCK = 1024  # Rows; each is read alone, so a block takes no memory.
Read = Callable[[int, int], bytes]  # (start, size)
MAX_ROW_BYTES = 64 * 2**20


class Indexed:
  """A tables.Shard with an index of where every row lies.

  A subclass gives `_find` and `_row`.

  Attributes:
    header, arrays: what `_find` found; arrays["problem"] is 0, or the place of
      a row's fault in header["problems"], counted from 1.
  """

  def __init__(
    self,
    file: files.File,
    kind: str,
    find: Callable[[files.File], cached_arrays.Kept],
    *,
    wait: bool,
  ):
    self.file = file
    self.wanted: tuple[str, ...] = ()
    if not file.size:
      raise files.BadFile(file.name, "empty file")
    self.header, self.arrays = cached_arrays.kept(
      "indexes", (kind, file.identity), lambda: find(file), wait=wait
    )
    self.digest: str = self.header["digest"]
    self.columns = tuple(self.header["columns"])
    count = len(self.arrays["problem"])
    sizes = [min(BLOCK, count - i) for i in range(0, count, BLOCK)]
    self.blocks = tuple(sizes)
    self.block_bytes = (0,) * len(sizes)

  def read(self, row: int) -> dict[str, Any]:
    """A row. images.BadImage: it is broken."""
    return self._checked(row, self.wanted, self.file.read)

  def scan(
    self, columns: Sequence[str]
  ) -> Iterator[dict[str, Any] | images.BadImage]:
    """All rows in order; see tables.Table."""
    with self.file.open() as opened:  # What is far away is read ahead.

      def read(start: int, size: int) -> bytes:
        opened.seek(start)
        return opened.read(size)

      for row in range(sum(self.blocks)):
        try:
          yield self._checked(row, tuple(columns), read)
        except images.BadImage as error:
          yield error

  def _checked(
    self, row: int, columns: tuple[str, ...], read: Read
  ) -> dict[str, Any]:
    name = f"{self.file.name}:{row}"
    problem = int(self.arrays["problem"][row])
    if problem:
      raise images.BadImage(name, self.header["problems"][problem - 1])
    try:
      return self._row(row, columns, read)
    except (ValueError, OSError) as error:
      words = getattr(error, "strerror", None) or str(error)
      raise images.BadImage(name, words) from error

  def _row(
    self, row: int, columns: tuple[str, ...], read: Read
  ) -> dict[str, Any]:
    """A row, of these columns; () of all. ValueError: why it is broken."""
    raise NotImplementedError


class Problems:
  """Faults of rows as small numbers; 0 is none."""

  def __init__(self) -> None:
    self.words: list[str] = []

  def number(self, words: str) -> int:
    """The number of a fault."""
    if words and words not in self.words:
      self.words.append(words)
    return self.words.index(words) + 1 if words else 0


def kept(
  file: files.File,
  columns: Sequence[str],
  problems: Problems,
  arrays: dict[str, np.ndarray],
) -> cached_arrays.Kept:
  """What `find` gives."""
  made = cached_arrays.Kept({}, arrays)
  made.header.update(
    columns=list(columns),
    problems=problems.words,
    digest=cached_arrays.digest(made, file.ends()),
  )
  return made


def numbers(values: Sequence[int], dtype: str = "<i8") -> np.ndarray:
  """A list of numbers as an array."""
  return np.array(values, dtype)
