"""Which example is number i of an epoch, without a list of all of them.

Data lie in blocks (row groups, pieces of tars), and reading one row of a block
costs as much as reading it whole. So an epoch permutes the blocks, puts some of
them at a time into a window, and permutes the examples of every window. A
reader holds a window's blocks, and an order O(blocks + window) numbers.

All is a pure function of (key of the epoch, i): places need no memory.
Permutations are orders of hashes, which no library's next version changes.
"""

import collections
import threading
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np

from byt5_diffusion.data.rows import block_cache

WINDOW_EXAMPLES = 2**18
# Two windows are read at once where one ends and the next begins.
WINDOW_BYTES = block_cache.MAX_BYTES // 2
_ONE = 2**32
_KEPT = 4


class Blocks(NamedTuple):
  """How a split's examples lie, one block behind the other.

  Attributes:
    sizes: examples of every block.
    bytes: memory that it takes while some of them are read.
  """

  sizes: Sequence[int] | np.ndarray
  bytes: Sequence[int] | np.ndarray


def even(count: int, size: int = 1024) -> Blocks:
  """Blocks of examples that lie anywhere, and are cheap to read alone."""
  sizes = [min(size, count - start) for start in range(0, count, size)]
  return Blocks(sizes, [0] * len(sizes))


class _Epoch(NamedTuple):
  first: np.ndarray  # Of every block in the epoch's order: its first example.
  size: np.ndarray
  window: np.ndarray  # [windows + 1] its first block
  start: np.ndarray  # [windows + 1] its first place


class Order:
  """Orders of a split's examples. Thread-safe."""

  def __init__(
    self,
    blocks: Blocks,
    *,
    window_examples: int = WINDOW_EXAMPLES,
    window_bytes: int = WINDOW_BYTES,
  ):
    """Nothing is made yet.

    Args:
      blocks: how the examples lie.
      window_examples: a window has so many, or little more.
      window_bytes: its blocks take so much, or little more.
    """
    self._size = np.asarray(blocks.sizes, np.int64)
    self._first = np.cumsum(self._size) - self._size
    # A block's share of a window, in fixed point: hosts must agree.
    self._cost = np.maximum(
      self._size * _ONE // window_examples,
      np.asarray(blocks.bytes, np.int64) * 2**20 // max(1, window_bytes >> 12),
    )
    self._lock = threading.Lock()
    self._made: collections.OrderedDict[Hashable, Any] = (
      collections.OrderedDict()
    )

  def __len__(self) -> int:
    return int(self._size.sum())

  def examples(
    self, key: int, places: Sequence[int] | np.ndarray
  ) -> np.ndarray:
    """The examples at these places of the epoch of a key, int64.

    Args:
      key: of the epoch; see `epoch_key`.
      places: from 0 to len(self) - 1, in any order.
    """
    at = np.asarray(places, np.int64)
    if at.size and not (at.min() >= 0 and at.max() < len(self)):
      raise IndexError(f"An epoch has {len(self)} places.")
    epoch = self._kept(("epoch", key), lambda: self._epoch(key))
    windows = np.searchsorted(epoch.start, at, side="right") - 1
    found = np.empty_like(at)
    for window in np.unique(windows):
      mine = windows == window
      order = self._kept(
        ("window", key, int(window)),
        lambda window=window: self._window(epoch, key, int(window)),
      )
      found[mine] = order[at[mine] - epoch.start[window]]
    return found

  def _kept(self, name: Hashable, make: Any) -> Any:
    with self._lock:
      if name not in self._made:
        self._made[name] = make()
        if len(self._made) > _KEPT:
          self._made.popitem(last=False)
      self._made.move_to_end(name)
      return self._made[name]

  def _epoch(self, key: int) -> _Epoch:
    blocks = permutation(len(self._size), key)
    size, cost = self._size[blocks], self._cost[blocks]
    number = (np.cumsum(cost) - cost) // _ONE
    begins = np.flatnonzero(np.diff(number, prepend=-1))
    ends = np.cumsum(size)
    start = np.append((ends - size)[begins], ends[-1:])
    return _Epoch(
      self._first[blocks], size, np.append(begins, len(blocks)), start
    )

  def _window(self, epoch: _Epoch, key: int, window: int) -> np.ndarray:
    """The examples of a window in their order."""
    mine = slice(*epoch.window[window : window + 2])
    size = epoch.size[mine]
    # Of every example: its block's first one, and its place in the block.
    offset = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
    inside = np.repeat(epoch.first[mine], size) + offset
    return inside[permutation(len(inside), key, 1 + window)]


def epoch_key(seed: int, epoch: int) -> int:
  """A key for epoch number `epoch` of a run's seed."""
  return int(_mix(_mix(np.uint64(seed % 2**64)) ^ np.uint64(epoch)))


def permutation(count: int, key: int, *salt: int) -> np.ndarray:
  """The numbers below `count` in the order of their hashes, int64 [count]."""
  start = np.uint64(key % 2**64)
  for one in salt:
    start = _mix(start) ^ np.uint64(one)
  hashes = _mix(_mix(start) ^ np.arange(count, dtype=np.uint64))
  return np.argsort(hashes, kind="stable")


def _mix(value: Any) -> Any:
  """SplitMix64's finalizer (Steele et al. 2014) of uint64."""
  with np.errstate(over="ignore"):
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
