"""Examples of several supplies, in the languages that ByT5 has read.

A Mixture stands for its parts as one supplies.Maker does for its supply: the
example at a position is a part's, in the language that the apportionment says,
and each part gives its examples of a language in a shuffled order, all of them
before any comes again.
"""

import functools
import hashlib
import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from byt5_diffusion.data import (
  annotated,
  apportionment,
  languages,
  pictures,
  supplies,
)
from byt5_diffusion.data import captions as captions_lib

_log = logging.getLogger(__name__)
_VERSION = "1"  # Of the order: another one refuses places that were saved.


class Part(NamedTuple):
  """A source of a mixture.

  Attributes:
    name: of its task, for messages.
    weight: share of the mixture that it should be; 0: only what others lack.
    maker: of its examples.
  """

  name: str
  weight: float
  maker: supplies.Maker


class Places(NamedTuple):
  """Where a mixture's examples come from.

  Attributes:
    part: number of the part, int64 [n].
    language: row of languages.TABLE, int64 [n].
    example: number in the part's split; of an endless part, in this language.
      int64 [n].
  """

  part: np.ndarray
  language: np.ndarray
  example: np.ndarray


class Plan(NamedTuple):
  """What a split is made of.

  Attributes:
    allocation: its shares.
    counts: examples that parts have, [parts, 107]; inf: without end.
    unknown: [parts], examples whose language is none of the table's.
  """

  allocation: apportionment.Allocation
  counts: np.ndarray
  unknown: np.ndarray


class Mixture:
  """A supply and its maker at once; see the top of the file.

  Attributes:
    parts: its sources.
    max_repeats: how often an example may come among `sizes` of a split.
    plans: {split: its plan}.
    endless: always; another seed is another order.
    supply, picture, captions: see supplies.Maker; all parts' pictures and
      captions are alike.
  """

  endless = True

  def __init__(
    self,
    name: str,
    parts: Sequence[Part],
    *,
    max_repeats: float = 4.0,
    num_train: int = 10_000_000,
    num_validation: int = 1000,
  ):
    """Asks the parts for their languages.

    Args:
      name: for messages.
      parts: at least one.
      max_repeats: of a validation split it is 1.
      num_train: how many examples training will see: after so many, the same
        ones come again.
      num_validation: likewise of the split "validation".

    Raises:
      ValueError: parts do not fit each other, or are too small; see
        apportionment.allocate.
    """
    if max_repeats < 1 or num_train < 1 or num_validation < 0:
      raise ValueError(
        f"{name}: {max_repeats=} and {num_train=} must be 1 or more, "
        f"{num_validation=} not negative."
      )
    self.name = name
    self.parts = tuple(parts)
    self.max_repeats = max_repeats
    self._check_alike()
    self.supply = self
    # Patches of several sizes may be mixed: the largest must have room.
    self.picture: pictures.Picture = max(
      (part.maker.picture for part in parts),
      key=lambda picture: getattr(picture, "max_patches", 0),
    )
    self.captions: captions_lib.Captions = parts[0].maker.captions
    self.plans: dict[str, Plan] = {}
    sizes: dict[str, int] = {}
    for split, size, repeats in (
      ("train", num_train, max_repeats),
      ("validation", num_validation, 1.0),
    ):
      if size and any(part.maker.supply.sizes.get(split) for part in parts):
        self.plans[split] = self._plan(split, size, repeats)
        sizes[split] = size
    self.sizes: Mapping[str, int] = sizes
    settings = [_VERSION, max_repeats, num_train, num_validation]
    listing = repr(
      settings
      + [(x.name, x.weight, x.maker.supply.fingerprint) for x in self.parts]
    )
    self.fingerprint = hashlib.sha256(listing.encode("utf-8")).hexdigest()
    self._schedule = functools.lru_cache(maxsize=4)(self._make_schedule)
    self._found = functools.lru_cache(maxsize=16)(self._find)
    self._sorted = functools.cache(self._sort)

  def _check_alike(self) -> None:
    if not self.parts:
      raise ValueError(f"{self.name}: a mixture needs at least one source.")
    first = self.parts[0]
    for part in self.parts[1:]:
      ours, theirs = first.maker.picture, part.maker.picture
      if ours.name != theirs.name or ours.shape != theirs.shape:
        raise ValueError(
          f"{self.name}: {part.name} gives {theirs.name} {theirs.shape}, "
          f"{first.name} gives {ours.name} {ours.shape}. A mixture's "
          "pictures are of one kind and size: write the same behind each @."
        )
      if ours.features != theirs.features or (
        first.maker.captions != part.maker.captions
      ):
        raise ValueError(
          f"{self.name}: {part.name} and {first.name} have other features or "
          "make tokens of captions in another way."
        )

  def _plan(self, split: str, size: int, max_repeats: float) -> Plan:
    counts = np.zeros((len(self.parts), len(languages.TABLE)))
    unknown = np.zeros(len(self.parts), np.int64)
    for i, part in enumerate(self.parts):
      supply = part.maker.supply
      if not supply.sizes.get(split):
        continue
      rows = supply.languages(split)
      if rows is None:
        raise ValueError(
          f"{self.name}: nobody knows the languages of {part.name}, so it "
          "cannot be mixed by language."
        )
      known = rows[rows != languages.OTHER]
      if supply.endless:
        counts[i, known] = np.inf
      else:
        counts[i] = np.bincount(known, minlength=len(languages.TABLE))
        unknown[i] = len(rows) - len(known)
    # A count may exceed its share a little, and yet no example its repeats.
    room = np.maximum(counts * max_repeats - apportionment.MAX_EXCESS, 0)
    window = apportionment.WINDOW
    room /= -(-size // window) * window
    try:
      allocation = apportionment.allocate(
        languages.percents(), [part.weight for part in self.parts], room
      )
    except ValueError as error:
      raise ValueError(f"{self.name}, split {split!r}: {error}") from None
    lacking = np.flatnonzero(allocation.lacking > 1e-9)
    if len(lacking):
      _log.warning(
        "%s, split %r: no source can give all of %s, %.2f %% of what ByT5 has "
        "read; the other languages make up for it.",
        self.name,
        split,
        " ".join(languages.TABLE[row].code for row in lacking),
        100 * allocation.lacking.sum(),
      )
    return Plan(allocation, counts, unknown)

  def languages(self, split: str) -> np.ndarray:
    """Rows that the split has, each once."""
    goal = self.plans[split].allocation.goal
    return np.flatnonzero(goal > 0).astype(np.uint8)

  def places(self, split: str, seed: int, positions: np.ndarray) -> Places:
    """Where the examples at some positions come from: a pure function.

    Args:
      split, seed: of the order.
      positions: int64 [n], from 0.
    """
    blocks, inside = np.divmod(positions, apportionment.BLOCK)
    columns = [np.empty(len(positions), np.int64) for _ in Places._fields]
    for block in np.unique(blocks).tolist():
      here = blocks == block
      found = self._found(split, seed, block)
      for column, values in zip(columns, found, strict=True):
        column[here] = values[inside[here]]
    return Places(*columns)

  def _make_schedule(self, split: str, seed: int) -> apportionment.Schedule:
    key = hashlib.sha256(f"{split}/{seed}".encode()).digest()
    return apportionment.Schedule(
      self.plans[split].allocation.shares, int.from_bytes(key[:6], "big")
    )

  def _find(self, split: str, seed: int, number: int) -> Places:
    """The places of a block."""
    block = self._schedule(split, seed).block(number)
    index = block.rank.copy()
    order = np.lexsort((block.language, block.source))
    kinds = block.source[order] * 256 + block.language[order]
    for places in np.split(order, np.flatnonzero(np.diff(kinds)) + 1):
      part, row = int(block.source[places[0]]), int(block.language[places[0]])
      if not self.parts[part].maker.supply.endless:
        order_of, starts = self._sorted(split, part)
        examples = order_of[starts[row] : starts[row + 1]]
        key = hashlib.sha256(f"{split}/{seed}/{part}/{row}".encode()).digest()
        shuffled = apportionment.shuffled(
          index[places], len(examples), int.from_bytes(key[:8], "big")
        )
        index[places] = examples[shuffled]
    return Places(block.source, block.language, index)

  def _sort(self, split: str, part: int) -> tuple[np.ndarray, np.ndarray]:
    """(a finite part's examples, language by language; where each begins)."""
    rows = self.parts[part].maker.supply.languages(split)
    assert rows is not None  # _plan has looked.
    order = np.argsort(rows, kind="stable")
    ends = np.cumsum(np.bincount(rows, minlength=256))
    return (
      order.astype(np.uint32 if len(rows) < 2**32 else np.int64),
      np.concatenate([[0], ends]),
    )

  def _at(self, split: str, position: int, seed: int) -> tuple[Part, int, str]:
    """(part, index, language to write in) of one position."""
    block, inside = divmod(position, apportionment.BLOCK)
    found = self._found(split, seed, block)
    part = self.parts[int(found.part[inside])]
    code = languages.TABLE[int(found.language[inside])].code
    wanted = code if part.maker.supply.endless else ""
    return part, int(found.example[inside]), wanted

  def read(
    self, split: str, index: int, seed: int = 0, language: str = ""
  ) -> annotated.Annotated:
    """See supplies.Supply; the language is the mixture's to choose."""
    del language
    part, number, wanted = self._at(split, index, seed)
    return part.maker.supply.read(split, number, seed, wanted)

  def make(
    self,
    split: str,
    index: int,
    seed: int,
    lengths: Mapping[str, int],
    language: str = "",
  ) -> dict[str, np.ndarray] | None:
    """See supplies.Maker; the language is the mixture's to choose."""
    del language
    part, number, wanted = self._at(split, index, seed)
    return part.maker.make(split, number, seed, lengths, wanted)
