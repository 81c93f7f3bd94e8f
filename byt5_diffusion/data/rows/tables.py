"""Rows of strangers' files, by number: parquet, tars, TFRecords, lines.

  table = open_table("/data/laion/*.parquet", columns=("URL", "TEXT"))
  table.read(3)           {"URL": ..., "TEXT": ...}
  table.scan(("TEXT",))   all rows in order, of cheap columns

A file's ending says what it is: see FORMATS. What a row holds:

  .parquet                  its columns, as pyarrow gives them
  .tar                      "__key__", and the members by extension: bytes
  .tfrecord, .array_record  features of a tf.train.Example: bytes, int, float,
                            or lists of them where there is not exactly one
  .jsonl[.gz], .json.gz     the object
  .tsv[.gz], .csv[.gz]      strings by the header's names

The whole list of files is one table; a file that cannot be opened is left out,
named and counted, and more than 5 % of them end the run.
"""

import functools
import hashlib
import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import tqdm

from byt5_diffusion.data import (
  images,
  rejections,
)
from byt5_diffusion.data.rows import (
  cached_arrays,
  files,
  parquet_table,
  tar_table,
  text_table,
  tfrecord_table,
)

Row = dict[str, Any]


class Table(Protocol):
  """Rows by number. Thread-safe.

  Attributes:
    name: what the user called it.
    fingerprint: of all rows, as far as sizes, names and ends of files tell.
    columns: those of which is known that there are some.
    blocks: rows that are cheap to read together, one behind the other.
    block_bytes: memory that a block takes while some of its rows are read.
  """

  name: str
  fingerprint: str
  columns: tuple[str, ...]
  blocks: tuple[int, ...]
  block_bytes: tuple[int, ...]

  def __len__(self) -> int: ...

  def read(self, row: int) -> Row:
    """A row. images.BadImage: it is broken."""

  def scan(
    self, columns: Sequence[str]
  ) -> Iterator[tuple[int, Row | images.BadImage]]:
    """All rows in order, with these columns alone; absent ones are left out."""


class Shard(Protocol):
  """The rows of one file: a Table without a name, and with rows from 0 on.

  Attributes:
    file: which.
    digest: of the file's content.
    wanted: columns that `read` gives; () all of them.
  """

  file: files.File
  digest: str
  wanted: tuple[str, ...]
  columns: tuple[str, ...]
  blocks: tuple[int, ...]
  block_bytes: tuple[int, ...]

  def read(self, row: int) -> Row: ...

  def scan(self, columns: Sequence[str]) -> Iterator[Row | images.BadImage]: ...


class Format(NamedTuple):
  """How files with an ending are opened.

  Attributes:
    ending: of a file's name, without what many shards add behind it.
    open: (file, wait) -> its rows. files.BadFile: it is of another format;
      cached_arrays.Busy: another process makes its index, and wait is False.
  """

  ending: str
  open: Callable[..., Shard]


FORMATS = (
  Format("tar", tar_table.open_file),
  Format("tfrecord", tfrecord_table.open_tfrecord),
  Format("tfrecords", tfrecord_table.open_tfrecord),
  Format("array_record", tfrecord_table.open_array_record),
  Format("arrayrecord", tfrecord_table.open_array_record),
  Format("parquet", parquet_table.open_file),
  Format("jsonl", text_table.open_jsonl),
  Format("jsonl.gz", functools.partial(text_table.open_jsonl, packed=True)),
  Format("json.gz", functools.partial(text_table.open_jsonl, packed=True)),
  Format("tsv", text_table.open_tsv),
  Format("tsv.gz", functools.partial(text_table.open_tsv, packed=True)),
  Format("csv", text_table.open_csv),
  Format("csv.gz", functools.partial(text_table.open_csv, packed=True)),
)
_SHARD = re.compile(r"-\d+-of-\d+$")


def open_table(
  path: str | os.PathLike[str],
  *,
  columns: Sequence[str] = (),
  optional: Sequence[str] = (),
  max_rejected_share: float = 0.05,
) -> "Shards":
  """The rows of all files that a path names (data/rows/files.py).

  Args:
    path: file, folder, glob, braces, or an address that fsspec knows.
    columns: those that `read` is to give; () gives all.
    optional: `read` gives them too where they are.
    max_rejected_share: of files that cannot be opened.

  Raises:
    ValueError: no such files, of several formats, or without the columns.
    rejections.TooManyRejections: too many of them cannot be opened.
  """
  name = os.fspath(path)
  format_, found = _of_one_format(name, files.find(name))
  ledger = rejections.Ledger(
    f"{name} (files)", max_share=max_rejected_share, num_records=len(found)
  )
  with tqdm.tqdm(  # Silent where nobody looks, or it takes no time.
    desc="opening",
    total=len(found),
    unit="file",
    disable=True if len(found) < 8 else None,
  ) as bar:

    def opened(file: files.File, wait: bool) -> Shard | None:
      try:
        shard = format_.open(file, wait=wait)
      except files.BadFile as error:
        ledger.reject(error.file, error.reason)
        shard = None
      bar.update()
      return shard

    shards = [s for s in cached_arrays.share(found, opened) if s is not None]
  for shard in shards:
    _check_columns(shard, columns, name)
    shard.wanted = (*columns, *optional)
  return Shards(name, shards)


def _check_columns(shard: Shard, columns: Sequence[str], name: str) -> None:
  absent = [c for c in columns if c.partition(".")[0] not in shard.columns]
  if absent:
    raise ValueError(
      f"{name}: {shard.file.name} has no column {', '.join(map(repr, absent))};"
      f" it has {', '.join(map(repr, shard.columns))}."
    )


def _of_one_format(
  name: str, found: list[files.File]
) -> tuple[Format, list[files.File]]:
  by_format: dict[str, list[files.File]] = {}
  for file in found:
    if format_ := _format(file.path):
      by_format.setdefault(format_.ending, []).append(file)
  if not by_format:
    raise ValueError(
      f"{name}: none of its {len(found)} files is of a known format: "
      + ", ".join(f".{one.ending}" for one in FORMATS)
      + "."
    )
  pairs = set(by_format) - {"parquet"}
  if len(by_format) == 2 and len(pairs) == 1:
    # img2dataset leaves a parquet file of addresses beside every file of
    # pictures.
    stems = {_stem(file) for file in by_format[pairs.pop()]}
    if stems >= {_stem(file) for file in by_format["parquet"]}:
      del by_format["parquet"]
  if len(by_format) > 1:
    raise ValueError(
      f"{name} has files of several formats: "
      + ", ".join(f"{len(v)} .{k}" for k, v in sorted(by_format.items()))
      + ". Name those of one: folder/*.parquet"
    )
  (ending, chosen), *_ = by_format.items()
  return next(one for one in FORMATS if one.ending == ending), chosen


def _stem(file: files.File) -> str:
  return file.name.rpartition(".")[0]


def _format(path: str) -> Format | None:
  plain = _SHARD.sub("", path.lower())
  return next((f for f in FORMATS if plain.endswith("." + f.ending)), None)


class Shards:
  """A Table of the rows of many files, one behind the other."""

  def __init__(self, name: str, shards: Sequence[Shard]):
    if not shards:
      raise ValueError(f"{name}: none of its files can be read.")
    self.name = name
    self.shards = tuple(shards)
    digests = "\n".join(f"{s.file.name} {s.digest}" for s in shards)
    self.fingerprint = hashlib.sha256(digests.encode()).hexdigest()[:16]
    self.columns = tuple(dict.fromkeys(c for s in shards for c in s.columns))
    self.blocks = tuple(itertools.chain(*(s.blocks for s in shards)))
    self.block_bytes = tuple(itertools.chain(*(s.block_bytes for s in shards)))
    self._ends = np.cumsum([sum(s.blocks) for s in shards], dtype=np.int64)

  def __len__(self) -> int:
    return int(self._ends[-1])

  def first_row(self, shard: int) -> int:
    """The number of a file's first row."""
    return int(self._ends[shard - 1]) if shard else 0

  def read(self, row: int) -> Row:
    """A row. images.BadImage: it is broken."""
    if not 0 <= row < len(self):
      raise IndexError(f"{self.name} has {len(self)} rows, and no row {row}.")
    shard = int(np.searchsorted(self._ends, row, side="right"))
    return self.shards[shard].read(row - self.first_row(shard))

  def scan(
    self, columns: Sequence[str]
  ) -> Iterator[tuple[int, Row | images.BadImage]]:
    """All rows in order, with these columns alone; absent ones are left out."""
    number = itertools.count()
    for shard in self.shards:
      for row in shard.scan(columns):
        yield next(number), row


class Rows:
  """A Table of rows in memory."""

  def __init__(self, name: str, rows: Sequence[Mapping[str, Any]]):
    self.name = name
    self._rows = rows
    made = hashlib.sha256()
    for row in rows:
      made.update(repr(sorted(row.items())).encode("utf-8", "surrogatepass"))
    self.fingerprint = made.hexdigest()[:16]
    self.columns = tuple(rows[0]) if rows else ()
    sizes = [min(1024, len(rows) - i) for i in range(0, len(rows), 1024)]
    self.blocks = tuple(sizes)
    self.block_bytes = (0,) * len(sizes)

  def __len__(self) -> int:
    return len(self._rows)

  def read(self, row: int) -> Row:
    """A row."""
    return dict(self._rows[row])

  def scan(
    self, columns: Sequence[str]
  ) -> Iterator[tuple[int, Row | images.BadImage]]:
    """All rows in order, with these columns alone; absent ones are left out."""
    for number, row in enumerate(self._rows):
      yield number, {key: row[key] for key in columns if key in row}


def from_rows(name: str, rows: Sequence[Mapping[str, Any]]) -> Rows:
  """A table of rows that are in memory already, such as a JSON document's."""
  return Rows(name, rows)
