"""Which examples a table of rows holds: found by one scan, kept on disk.

A data set describes its rows without looking at pixels; what it leaves out is
counted by reason. What is kept of an example are nine bytes on disk: its row,
which part of the row it is, and its language. So there can be hundreds of
millions. Every file is kept by itself: a scan that was killed goes on behind
the last whole file, and processes that scan at once share the files.
"""

import array
import collections
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tqdm

from byt5_diffusion.data import (
  annotated,
  duplicates,
  filters,
  images,
  languages,
  rejections,
)
from byt5_diffusion.data.rows import (
  cached_arrays,
  order,
  tables,
)

_SHOWN = 20  # Names kept of every reason.
_WIDTH = 80
_CODES = {row.code: i for i, row in enumerate(languages.TABLE)}


class Entry(NamedTuple):
  """An example that a row holds.

  Attributes:
    key: says which split it is in: examples that must not be in different ones
      (captions of one picture) have the same.
    part: which example of the row it is.
    language: mC4's code.
    content: 64 bits that copies have in common (duplicates.key).
  """

  key: str
  part: int = 0
  language: str = "und"
  content: int = 0


Describe = Callable[[Mapping[str, Any]], Sequence[Entry]]


class Piece(NamedTuple):
  """Rows that are described and kept together: those of a file.

  Attributes:
    name: for messages.
    key: what they depend on.
    first_row: its number in the table.
    blocks: of the rows.
    rows: scans them, with some columns.
  """

  name: str
  key: str
  first_row: int
  blocks: tuple[int, ...]
  rows: Callable[[Sequence[str]], Iterable[Any]]


class TableSupply:
  """A supplies.Supply of the rows of a table.

  Attributes:
    name, fingerprint, sizes, endless: see supplies.Supply.
    table: the rows.
  """

  endless = False

  def __init__(
    self,
    name: str,
    table: tables.Table,
    *,
    columns: Sequence[str],
    describe: Describe,
    make: Callable[[dict[str, Any], int], annotated.Annotated],
    version: str,
    validation_share: float = 0.01,
    split: str | None = None,
    max_rejected_share: float = 0.05,
    drop_copies: bool = False,
  ):
    """Describes all rows, unless that has been done before.

    Args:
      name: for messages and of the ledger.
      table: data/rows/tables.py.
      columns: all that `describe` looks at.
      describe: row -> its examples. filters.Filtered: a filter leaves it out;
        images.BadImage: it is broken.
      make: (row, part) -> the example. images.BadImage: it is broken.
      version: says all that `describe`'s answers depend on besides the row:
        its code's version and its options.
      validation_share: probability of a key to be in "validation".
      split: the one that all examples are in; None: "train" and "validation".
      max_rejected_share: more broken rows than this end the run.
      drop_copies: whether of examples with the same content the first one is
        kept, one of "validation" before those of "train": eight bytes more of
        each on disk, and 24 in memory while they are compared.

    Raises:
      rejections.TooManyRejections: too many rows are broken.
      ValueError: no example is left.
    """
    if not 0 <= validation_share < 1:
      raise ValueError(f"{validation_share=} must be in [0, 1).")
    self.name = name
    self.table = table
    self._make = make
    depends: tuple[str, ...] = (
      version,
      repr(validation_share),
      repr(split),
    )
    if drop_copies:
      depends += ("without copies",)
    made = repr((table.fingerprint, *depends)).encode()
    self.fingerprint = hashlib.sha256(made).hexdigest()[:16]
    scan = Scan(tuple(columns), describe, validation_share, split, drop_copies)
    self._pieces = _pieces(table)
    self._kept = _describe_all(
      name, len(table), self._pieces, scan, depends, max_rejected_share
    )
    if drop_copies:
      self._kept = _without_copies(name, self._kept, scan.splits[::-1])
    self._ends = {
      split: np.cumsum([len(x.arrays[f"{split}/row"]) for x in self._kept])
      for split in scan.splits
    }
    self.sizes: Mapping[str, int] = {
      split: int(ends[-1]) for split, ends in self._ends.items()
    }

  def read(
    self, split: str, index: int, seed: int = 0, language: str = ""
  ) -> annotated.Annotated:
    """Example `index` of a split; see supplies.Supply."""
    del seed, language
    row, part = self.place(split, index)
    return self._make(self.table.read(row), part)

  def place(self, split: str, index: int) -> tuple[int, int]:
    """An example's row of the table, and which part of the row it is."""
    ends = self._ends[split]
    if not 0 <= index < ends[-1]:
      raise IndexError(f"{self.name}: {split} has no example {index}.")
    piece = int(np.searchsorted(ends, index, side="right"))
    arrays = self._kept[piece].arrays
    at = index - (int(ends[piece - 1]) if piece else 0)
    first = self._pieces[piece].first_row
    row = first + int(arrays[f"{split}/row"][at])
    return row, int(arrays[f"{split}/part"][at])

  def languages(self, split: str) -> np.ndarray:
    """Row of languages.TABLE of every example, uint8 [n]."""
    return np.concatenate([x.arrays[f"{split}/language"] for x in self._kept])

  def blocks(self, split: str) -> order.Blocks:
    """How a split's examples lie in the table's blocks."""
    sizes = []
    for piece, kept in zip(self._pieces, self._kept, strict=True):
      ends = np.cumsum(piece.blocks, dtype=np.int64)
      before = np.searchsorted(kept.arrays[f"{split}/row"], ends)
      sizes.append(np.diff(before, prepend=0))
    return order.Blocks(np.concatenate(sizes), self.table.block_bytes)


def _pieces(table: tables.Table) -> list[Piece]:
  if isinstance(table, tables.Shards):
    return [
      Piece(
        shard.file.name,
        shard.file.identity,
        table.first_row(i),
        shard.blocks,
        shard.scan,
      )
      for i, shard in enumerate(table.shards)
    ]

  def rows(columns: Sequence[str]) -> Iterator[Any]:
    return (row for _, row in table.scan(columns))

  return [Piece(table.name, table.fingerprint, 0, table.blocks, rows)]


def _describe_all(
  name: str,
  num_rows: int,
  pieces: Sequence[Piece],
  scan: "Scan",
  depends: tuple[str, ...],
  max_share: float,
) -> list[cached_arrays.Kept]:
  """What is kept of all pieces; ledgers are told what was left out."""
  ledgers = {}
  for what, share in (("rows", max_share), ("filters", 1.0)):
    rejections.forget(f"{name} ({what})")
    ledgers[what] = rejections.ledger(
      f"{name} ({what})", max_share=share, num_records=num_rows
    )
  with tqdm.tqdm(total=num_rows, desc=name, unit="row", disable=None) as bar:
    done = 0

    def describe(piece: Piece, wait: bool) -> cached_arrays.Kept:
      nonlocal done
      key = ("2", piece.key, *depends, *_CODES)
      run = functools.partial(scan.run, piece, bar)
      one = cached_arrays.kept("catalogues", key, run, wait=wait)
      done += one.header["rows"]
      bar.update(done - bar.n)
      _count(ledgers, one.header)
      return one

    kept = cached_arrays.share(pieces, describe)
  if not any(len(v) for x in kept for v in x.arrays.values()):
    reasons = {k: v.summary()["reasons"] for k, v in ledgers.items()}
    raise ValueError(
      f"{name}: no example is left of {num_rows} rows; {reasons}."
    )
  return kept


def _without_copies(
  name: str, kept: Sequence[cached_arrays.Kept], splits: Sequence[str]
) -> list[cached_arrays.Kept]:
  """The pieces without what an earlier example, split by split, has, too."""
  places = [(split, piece) for split in splits for piece in kept]
  contents = [piece.arrays[f"{split}/content"] for split, piece in places]
  first = duplicates.first(np.concatenate(contents))
  ends = np.cumsum([len(one) for one in contents])[:-1]
  arrays: list[dict[str, np.ndarray]] = [{} for _ in kept]
  for number, mask in enumerate(np.split(first, ends)):
    split, piece = places[number]
    arrays[number % len(kept)] |= {
      f"{split}/{field}": piece.arrays[f"{split}/{field}"][mask]
      for field in ("row", "part", "language")
    }
  copies = int(len(first) - first.sum())
  ledger = rejections.ledger(f"{name} (filters)")
  ledger.count(-copies, {"copy of another picture": copies} if copies else {})
  return [
    cached_arrays.Kept(piece.header, mine)
    for piece, mine in zip(kept, arrays, strict=True)
  ]


def _count(
  ledgers: Mapping[str, rejections.Ledger], header: Mapping[str, Any]
) -> None:
  """Tells the ledgers what was left out of a piece."""
  good = header["rows"] - sum(header["broken"].values())
  ledgers["rows"].count(good, header["broken"], header["broken_names"])
  good -= sum(header["filtered"].values())
  ledgers["filters"].count(good, header["filtered"], header["filtered_names"])


class Scan(NamedTuple):
  """What is done with every row; see TableSupply."""

  columns: tuple[str, ...]
  describe: Describe
  validation_share: float
  split: str | None
  contents: bool = False

  @property
  def splits(self) -> tuple[str, ...]:
    """Names of the splits."""
    return (self.split,) if self.split else ("train", "validation")

  def run(self, piece: Piece, bar: tqdm.tqdm) -> cached_arrays.Kept:
    """What is kept of a piece."""
    found = {split: _Columns(self.contents) for split in self.splits}
    left_out = {"broken": _LeftOut(), "filtered": _LeftOut()}
    number = -1
    for number, row in enumerate(piece.rows(self.columns)):
      if number % 1024 == 0:
        bar.update(1024)
      name = f"{piece.name}:{number}"
      try:
        if isinstance(row, images.BadImage):
          raise row
        for entry in self.describe(row):
          found[self._split_of(entry.key)].add(number, entry)
      except images.BadImage as error:
        left_out["broken"].add(name, error.reason)
      except filters.Filtered as error:
        left_out["filtered"].add(_shown(name, error.value), error.reason)
    header: dict[str, Any] = {"rows": number + 1}
    for kind, one in left_out.items():
      header |= {kind: dict(one.counts), f"{kind}_names": one.names}
    arrays = {
      f"{split}/{field}": values
      for split, columns in found.items()
      for field, values in columns.arrays().items()
    }
    return cached_arrays.Kept(header, arrays)

  def _split_of(self, key: str) -> str:
    if self.split:
      return self.split
    raw = key.encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(raw, digest_size=8, person=b"split").digest()
    at = int.from_bytes(digest, "little") / 2**64
    return "validation" if at < self.validation_share else "train"


class _Columns:
  """Examples of a split, number by number and not object by object."""

  def __init__(self, contents: bool) -> None:
    self._content = array.array("Q") if contents else None
    self._row = array.array("I")
    self._part = array.array("i")
    self._language = array.array("B")

  def add(self, row: int, entry: Entry) -> None:
    self._row.append(row)
    self._part.append(entry.part)
    self._language.append(_CODES.get(entry.language, languages.OTHER))
    if self._content is not None:
      self._content.append(entry.content)

  def arrays(self) -> dict[str, np.ndarray]:
    content = {}
    if self._content is not None:
      content["content"] = np.frombuffer(self._content, "<u8")
    return content | {
      "row": np.frombuffer(self._row, "<u4"),
      "part": np.frombuffer(self._part, "<i4"),
      "language": np.frombuffer(self._language, "<u1"),
    }


class _LeftOut:
  """Rows that are left out: how many for which reason, and some names."""

  def __init__(self) -> None:
    self.counts: collections.Counter[str] = collections.Counter()
    self.names: list[tuple[str, str]] = []

  def add(self, name: str, reason: str) -> None:
    self.counts[reason] += 1
    if self.counts[reason] <= _SHOWN and len(self.names) < 50 * _SHOWN:
      self.names.append((name, reason))


def _shown(name: str, value: object) -> str:
  """A row's name with what the filter saw."""
  return name if value is None else f"{name} {str(value)[:_WIDTH]!r}"
