"""Rows of a parquet file: its row groups are decoded one at a time.

A stranger's file of some kilobytes may stand for terabytes: one long string,
and a million times its number in a dictionary. So dictionaries are kept as
such, and what a group says of itself is looked at before it is decoded.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from byt5_diffusion.data import images
from byt5_diffusion.data.rows import (
  block_cache,
  cached_arrays,
  files,
)

_BATCH = 2048
_MAX_PLAIN_BYTES = 2**28  # Of a batch.
_MAX_BATCH_BYTES = 2**30  # If every row had the longest of all values.
# A group is decoded as a whole; nobody writes larger ones, except to do harm.
MAX_GROUP_BYTES = 4 * 2**30
MAX_GROUP_VALUES = 2**26  # Of a column.
_BROKEN = "in a broken row group"
_NO_TEXT = "not UTF-8"
# What pyarrow raises besides its own: names that are no text or not there.
_MORE_FAULTS = (OSError, KeyError, ValueError)


def open_file(file: files.File, *, wait: bool = True) -> "Parquet":
  """The rows of a parquet file.

  Args:
    file: which.
    wait: for another process that makes its index.

  Raises:
    cached_arrays.Busy: there is one, and nobody wants to wait.
    files.BadFile: it is none, or cut short.
    ImportError: pyarrow is not installed.
  """
  return Parquet(file, wait=wait)


def _pyarrow() -> Any:
  try:
    import pyarrow
    import pyarrow.compute
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
      made = _described(parquet.metadata, parquet.schema_arrow.names)
  except (pyarrow.ArrowException, *_MORE_FAULTS) as error:
    if isinstance(error, FileNotFoundError | PermissionError):
      raise
    raise files.BadFile(
      file.name, "not a parquet file, or cut short"
    ) from error
  made.header["digest"] = cached_arrays.digest(made, file.ends())
  return made


def _described(meta: Any, columns: list[str]) -> cached_arrays.Kept:
  """A footer as JSON and arrays."""
  groups = [meta.row_group(i) for i in range(meta.num_row_groups)]
  chunks = [[g.column(i) for i in range(meta.num_columns)] for g in groups]
  first = chunks[0] if chunks else []
  return cached_arrays.Kept(
    {
      "columns": columns,
      "leaves": [chunk.path_in_schema for chunk in first],
      "dictionaries": [
        chunk.path_in_schema
        for chunk in first
        if chunk.physical_type == "BYTE_ARRAY"
      ],
    },
    {
      "rows": np.array([group.num_rows for group in groups], np.int64),
      "bytes": _table([c.total_uncompressed_size for c in g] for g in chunks),
      "values": _table([c.num_values for c in g] for g in chunks),
    },
  )


def _table(rows: Iterable[list[int]]) -> np.ndarray:
  return np.array(list(rows), np.int64).reshape(-1)


class Parquet:
  """A tables.Shard of a parquet file."""

  def __init__(self, file: files.File, *, wait: bool):
    _pyarrow()  # Now, even if the index is kept already.
    self.file = file
    self.header, self.arrays = cached_arrays.kept(
      "indexes",
      ("parquet 3", file.identity),
      lambda: _index(file),
      wait=wait,
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
    self.block_bytes = tuple(self._sum("bytes", self._read).tolist())

  def _sum(self, what: str, columns: Sequence[str]) -> np.ndarray:
    """Bytes or values of these columns, of every group."""
    leaves = self.header["leaves"]
    mine = [
      any(leaf == c or leaf.startswith(f"{c}.") for c in columns)
      for leaf in leaves
    ]
    whole = self.arrays[what].reshape(len(self.blocks), len(leaves))
    return whole[:, mine].sum(axis=1)

  def _there(self, columns: Sequence[str]) -> list[str]:
    return [c for c in columns if c.partition(".")[0] in self.columns]

  def _fault(self, group: int, columns: Sequence[str]) -> str:
    """Why a group is not decoded."""
    if self._sum("bytes", columns)[group] > MAX_GROUP_BYTES:
      return f"in a row group of more than {MAX_GROUP_BYTES} bytes"
    values = max(self._sum("values", [column])[group] for column in columns)
    if max(values, self.blocks[group]) > MAX_GROUP_VALUES:
      return f"in a row group of more than {MAX_GROUP_VALUES} values"
    return ""

  def _opened(self, opened: Any) -> Any:
    return _pyarrow().parquet.ParquetFile(
      opened, read_dictionary=self.header["dictionaries"]
    )

  def read(self, row: int) -> dict[str, Any]:
    """A row. images.BadImage: its group cannot be decoded."""
    group = int(np.searchsorted(self._ends, row, side="right"))
    key = (self.file.identity, *self._read, group)
    block = block_cache.SHARED.get(key, lambda: self._decode(group))
    if isinstance(block, str):
      raise images.BadImage(f"{self.file.name}:{row}", block)
    at = row - int(self._ends[group]) + self.blocks[group]
    try:
      return {name: column[at].as_py() for name, column in block.items()}
    except UnicodeDecodeError:
      raise images.BadImage(f"{self.file.name}:{row}", _NO_TEXT) from None

  def _decode(self, group: int) -> tuple[Any, int]:
    """A group's columns, or why there are none, and their bytes."""
    pyarrow = _pyarrow()
    if fault := self._fault(group, self._read):
      return fault, 0
    try:
      with self.file.open() as opened:
        table = self._opened(opened).read_row_group(group, columns=self._read)
    except (pyarrow.ArrowException, *_MORE_FAULTS):
      return _BROKEN, 0
    table = table.combine_chunks()
    return dict(
      zip(table.column_names, table.columns, strict=True)
    ), table.nbytes

  def scan(
    self, columns: Sequence[str]
  ) -> Iterator[dict[str, Any] | images.BadImage]:
    """All rows in order; see tables.Table."""
    wanted = self._there(columns)
    first = 0
    for group, count in enumerate(self.blocks):
      done = 0
      fault = self._fault(group, wanted) if wanted else ""
      if not fault:
        for row in self._rows(group, wanted):
          if row is None:
            name = f"{self.file.name}:{first + done}"
            yield images.BadImage(name, _NO_TEXT)
          else:
            yield row
          done += 1
      for number in range(first + done, first + count):
        yield images.BadImage(f"{self.file.name}:{number}", fault or _BROKEN)
      first += count

  def _rows(
    self, group: int, columns: Sequence[str]
  ) -> Iterator[dict[str, Any] | None]:
    """A group's rows, as far as they can be decoded; None is not UTF-8."""
    size = int(self._sum("bytes", columns)[group])
    few = min(_BATCH, 1 + _MAX_BATCH_BYTES // max(1, size))
    try:
      with self.file.open() as opened:
        for batch in self._opened(opened).iter_batches(
          _BATCH, row_groups=[group], columns=columns
        ):
          plain = _plain(batch)
          step = few if plain is None else _BATCH
          for start in range(0, batch.num_rows, step):
            yield from _listed((plain or batch).slice(start, step))
    except (_pyarrow().ArrowException, *_MORE_FAULTS):
      return


def _listed(batch: Any) -> list[dict[str, Any] | None]:
  """Rows; None stands for one whose text is not UTF-8."""
  try:
    return batch.to_pylist()
  except UnicodeDecodeError:
    if batch.num_rows == 1:
      return [None]
    rows = (batch.slice(i, 1) for i in range(batch.num_rows))
    return [found for row in rows for found in _listed(row)]


def _plain(batch: Any) -> Any:
  """The same without dictionaries; None where nobody knows how long that is."""
  pyarrow = _pyarrow()
  columns = []
  for column in batch.columns:
    if pyarrow.types.is_nested(column.type):
      return None
    if pyarrow.types.is_dictionary(column.type):
      lengths = pyarrow.compute.binary_length(column.dictionary)
      taken = pyarrow.compute.sum(lengths.take(column.indices)).as_py()
      if taken and taken > _MAX_PLAIN_BYTES:
        return None
      column = column.dictionary_decode()
    columns.append(column)
  return pyarrow.RecordBatch.from_arrays(columns, names=batch.schema.names)
