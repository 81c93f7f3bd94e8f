"""Rows of a parquet file: its row groups are decoded one at a time."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from byt5_diffusion.data import block_cache, cached_arrays, files, images

_BATCH = 2048
# A group is decoded as a whole; nobody writes larger ones, except to do harm.
MAX_GROUP_BYTES = 4 * 2**30


def open_file(file: files.File) -> "Parquet":
  """The rows of a parquet file.

  Raises:
    files.BadFile: it is none, or cut short.
    ImportError: pyarrow is not installed.
  """
  return Parquet(file)


def _pyarrow() -> Any:
  try:
    import pyarrow
    import pyarrow.parquet
  except ImportError as error:
    raise ImportError(
      "Parquet files need pyarrow. Install it with "
      '`pip install "byt5-diffusion[data]"`.'
    ) from error
  return pyarrow


def _index(file: files.File) -> cached_arrays.Kept:
  """What the footer says: columns, and of every group rows and bytes."""
  pyarrow = _pyarrow()
  if not file.size:
    raise files.BadFile(file.name, "empty file")
  try:
    with file.open() as opened, pyarrow.parquet.ParquetFile(opened) as parquet:
      meta = parquet.metadata
      columns = parquet.schema_arrow.names
      groups = [meta.row_group(i) for i in range(meta.num_row_groups)]
      leaves = [meta.schema.column(i).path for i in range(meta.num_columns)]
      size = [
        [group.column(i).total_uncompressed_size for i in range(len(leaves))]
        for group in groups
      ]
  except (pyarrow.ArrowException, OSError) as error:
    if isinstance(error, FileNotFoundError | PermissionError):
      raise
    raise files.BadFile(
      file.name, "not a parquet file, or cut short"
    ) from error
  made = cached_arrays.Kept(
    {"columns": columns, "leaves": leaves},
    {
      "rows": np.array([group.num_rows for group in groups], np.int64),
      "bytes": np.array(size, np.int64).reshape(-1),
    },
  )
  made.header["digest"] = cached_arrays.digest(made, file.ends())
  return made


class Parquet:
  """A tables.Shard of a parquet file."""

  def __init__(self, file: files.File):
    self.file = file
    self.header, self.arrays = cached_arrays.kept(
      "indexes", ("parquet 2", file.identity), lambda: _index(file)
    )
    self.digest: str = self.header["digest"]
    self.columns = tuple(self.header["columns"])
    self.blocks = tuple(self.arrays["rows"].tolist())
    self._ends = np.cumsum(self.arrays["rows"])
    self.wanted = ()

  @property
  def wanted(self) -> tuple[str, ...]:
    """Columns that `read` gives; "image.bytes" is a part of "image"."""
    return self._wanted

  @wanted.setter
  def wanted(self, columns: tuple[str, ...]) -> None:
    self._wanted = columns
    self._read = self._there(columns) if columns else list(self.columns)
    leaves = self.header["leaves"]
    mine = [
      any(leaf == c or leaf.startswith(f"{c}.") for c in self._read)
      for leaf in leaves
    ]
    sizes = self.arrays["bytes"].reshape(len(self.blocks), len(leaves))
    self.block_bytes = tuple(sizes[:, mine].sum(axis=1).tolist())

  def _there(self, columns: Sequence[str]) -> list[str]:
    return [c for c in columns if c.partition(".")[0] in self.columns]

  def read(self, row: int) -> dict[str, Any]:
    """A row. images.BadImage: its group cannot be decoded."""
    group = int(np.searchsorted(self._ends, row, side="right"))
    key = (self.file.identity, *self._read, group)
    block = block_cache.SHARED.get(key, lambda: self._decode(group))
    if isinstance(block, str):
      raise images.BadImage(f"{self.file.name}:{row}", block)
    first = int(self._ends[group]) - self.blocks[group]
    return block.slice(row - first, 1).to_pylist()[0]

  def _decode(self, group: int) -> tuple[Any, int]:
    """A group as a table, or why it is none, and its bytes."""
    pyarrow = _pyarrow()
    if self.block_bytes[group] > MAX_GROUP_BYTES:
      return f"in a row group of more than {MAX_GROUP_BYTES} bytes", 0
    try:
      with self.file.open() as opened:
        parquet = pyarrow.parquet.ParquetFile(opened)
        table = parquet.read_row_group(group, columns=self._read)
    except (pyarrow.ArrowException, OSError):
      return "in a broken row group", 0
    return table.combine_chunks(), table.nbytes

  def scan(
    self, columns: Sequence[str]
  ) -> Iterator[dict[str, Any] | images.BadImage]:
    """All rows in order; see tables.Table."""
    pyarrow = _pyarrow()
    wanted = self._there(columns)
    for group, count in enumerate(self.blocks):
      done = 0
      try:
        with self.file.open() as opened:
          parquet = pyarrow.parquet.ParquetFile(opened)
          for batch in parquet.iter_batches(
            _BATCH, row_groups=[group], columns=wanted
          ):
            yield from batch.to_pylist()
            done += batch.num_rows
      except (pyarrow.ArrowException, OSError):
        pass
      first = int(self._ends[group]) - count
      for row in range(first + done, first + count):
        yield images.BadImage(
          f"{self.file.name}:{row}", "in a broken row group"
        )
