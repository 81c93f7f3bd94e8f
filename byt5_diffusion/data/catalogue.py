"""Which examples a table of rows holds: found by one scan, kept on disk.

A data set describes its rows without looking at pixels; what it leaves out is
counted by reason. What is kept of an example are thirteen bytes: its row, which
part of the row it is, and its language. So hundreds of millions can be had.
"""

import collections
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tqdm

from byt5_diffusion.data import (
  annotated,
  cached_arrays,
  filters,
  images,
  languages,
  order,
  rejections,
  tables,
)

_SHOWN = 20  # Names kept of every reason.


class Entry(NamedTuple):
  """An example that a row holds.

  Attributes:
    key: says which split it is in: examples that must not be in different ones
      (captions of one picture) have the same.
    part: which example of the row it is.
    language: mC4's code.
  """

  key: str
  part: int = 0
  language: str = "und"


Describe = Callable[[Mapping[str, Any]], Sequence[Entry]]


class Catalogue(NamedTuple):
  """The examples of a split, in the order of their rows.

  Attributes:
    row: int64 [n] of the table.
    part: int32 [n] which example of the row it is.
    language: uint8 [n] row of languages.TABLE; 255: none of them.
  """

  row: np.ndarray
  part: np.ndarray
  language: np.ndarray


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
  ):
    """Describes all rows, unless that has been done before.

    Args:
      name: for messages and of the ledger.
      table: data/tables.py.
      columns: all that `describe` looks at.
      describe: row -> its examples. filters.Filtered: a filter leaves it out;
        images.BadImage: it is broken.
      make: (row, part) -> the example. images.BadImage: it is broken.
      version: says all that `describe`'s answers depend on besides the row:
        its code's version and its options.
      validation_share: probability of a key to be in "validation".
      split: the one that all examples are in; None: "train" and "validation".
      max_rejected_share: more broken rows than this end the run.

    Raises:
      rejections.TooManyRejections: too many rows are broken.
      ValueError: no example is left.
    """
    if not 0 <= validation_share < 1:
      raise ValueError(f"{validation_share=} must be in [0, 1).")
    self.name = name
    self.table = table
    self._make = make
    depends = (table.fingerprint, version, str(validation_share), str(split))
    made = hashlib.sha256(repr(depends).encode()).hexdigest()[:16]
    self.fingerprint = made
    scan = _Scan(describe, validation_share, split)
    header, arrays = cached_arrays.kept(
      "catalogues",
      ("1", table.name, *depends, *(row.code for row in languages.TABLE)),
      lambda: scan.run(name, table, columns),
    )
    self._catalogues = {
      key: Catalogue(*(arrays[f"{key}/{f}"] for f in Catalogue._fields))
      for key in header["splits"]
    }
    self.sizes = {k: len(v.row) for k, v in self._catalogues.items()}
    _count(name, header, sum(self.sizes.values()), max_rejected_share)

  def read(
    self, split: str, index: int, seed: int = 0, language: str = ""
  ) -> annotated.Annotated:
    """Example `index` of a split; see supplies.Supply."""
    del seed, language
    found = self._catalogues[split]
    row = self.table.read(int(found.row[index]))
    return self._make(row, int(found.part[index]))

  def languages(self, split: str) -> np.ndarray:
    """Row of languages.TABLE of every example, uint8 [n]."""
    return self._catalogues[split].language

  def blocks(self, split: str) -> order.Blocks:
    """How a split's examples lie in the table's blocks."""
    rows = np.cumsum(self.table.blocks)
    ends = np.searchsorted(self._catalogues[split].row, rows)
    return order.Blocks(np.diff(ends, prepend=0), self.table.block_bytes)

  def catalogue(self, split: str) -> Catalogue:
    """Rows, parts and languages of a split's examples."""
    return self._catalogues[split]


def _count(
  name: str, header: Mapping[str, Any], num_kept: int, max_share: float
) -> None:
  """Tells the ledgers what the scan has left out."""
  for called, key, share in (
    (f"{name} (rows)", "broken", max_share),
    (f"{name} (filters)", "filtered", 1.0),
  ):
    rejections.forget(called)
    rejections.ledger(
      called, max_share=share, num_records=header["rows"]
    ).count(num_kept, header[key], header[f"{key}_names"])
  if not num_kept:
    raise ValueError(
      f"{name}: no example is left of {header['rows']} rows. Left out: "
      f"{header['filtered'] or 'none'}; broken: {header['broken'] or 'none'}."
    )


class _Scan:
  """One pass over the rows."""

  def __init__(
    self, describe: Describe, validation_share: float, split: str | None
  ):
    self._describe = describe
    self._share = validation_share
    self._split = split
    self._codes = {row.code: i for i, row in enumerate(languages.TABLE)}

  def run(
    self, name: str, table: tables.Table, columns: Sequence[str]
  ) -> cached_arrays.Kept:
    """What is kept of a table."""
    names = (self._split,) if self._split else ("train", "validation")
    found: dict[str, list[tuple[int, int, int]]] = {n: [] for n in names}
    counts = {k: collections.Counter[str]() for k in ("broken", "filtered")}
    shown: dict[str, list[tuple[str, str]]] = {k: [] for k in counts}
    for number, row in tqdm.tqdm(
      table.scan(columns), name, len(table), unit="row", disable=None
    ):
      for kind, value in self._one(row):
        if kind in found:
          found[kind].append((number, value.part, self._code(value.language)))
          continue
        counts[kind][value] += 1
        if counts[kind][value] <= _SHOWN:
          shown[kind].append((f"{table.name}:{number}", value))
    arrays = {}
    for key, rows in found.items():
      columns_ = np.array(rows, np.int64).reshape(-1, 3)
      for i, (field, dtype) in enumerate(
        zip(Catalogue._fields, ("<i8", "<i4", "<u1"), strict=True)
      ):
        arrays[f"{key}/{field}"] = columns_[:, i].astype(dtype)
    header = {"splits": names, "rows": len(table), **counts}
    return cached_arrays.Kept(
      header | {f"{k}_names": v for k, v in shown.items()}, arrays
    )

  def _one(self, row: Any) -> Iterator[tuple[str, Any]]:
    """(split, entry), or ("broken" or "filtered", reason)."""
    try:
      if isinstance(row, images.BadImage):
        raise row
      for entry in self._describe(row):
        yield self._split_of(entry.key), entry
    except images.BadImage as error:
      yield "broken", error.reason
    except filters.Filtered as error:
      yield "filtered", error.reason

  def _split_of(self, key: str) -> str:
    if self._split:
      return self._split
    raw = key.encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(raw, digest_size=8, person=b"split").digest()
    at = int.from_bytes(digest, "little") / 2**64
    return "validation" if at < self._share else "train"

  def _code(self, language: str) -> int:
    return self._codes.get(language, languages.OTHER)
