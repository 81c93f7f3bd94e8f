"""Blocks of rows that were decoded, as many as fit into a share of memory."""

import collections
import threading
from collections.abc import Callable, Hashable
from typing import Any

MAX_BYTES = 512 * 2**20


class BlockCache:
  """The blocks used last. Thread-safe; a block is made by one thread only.

  The last block stays whatever its size: without it every row of it would have
  to be decoded anew.
  """

  def __init__(self, max_bytes: int = MAX_BYTES):
    self.max_bytes = max_bytes
    self.num_bytes = 0
    self._lock = threading.Lock()
    self._blocks: collections.OrderedDict[Hashable, tuple[Any, int]] = (
      collections.OrderedDict()
    )
    self._making: dict[Hashable, threading.Lock] = {}

  def get(self, key: Hashable, make: Callable[[], tuple[Any, int]]) -> Any:
    """The block of a key; `make` gives it and its bytes if it is not there."""
    with self._lock:
      if key in self._blocks:
        self._blocks.move_to_end(key)
        return self._blocks[key][0]
      making = self._making.setdefault(key, threading.Lock())
    with making:
      with self._lock:
        if key in self._blocks:  # Another thread was faster.
          return self._blocks[key][0]
      try:
        block, size = make()
      finally:
        with self._lock:
          self._making.pop(key, None)
      self._keep(key, block, size)
      return block

  def _keep(self, key: Hashable, block: Any, size: int) -> None:
    with self._lock:
      self._blocks[key] = (block, size)
      self.num_bytes += size
      while self.num_bytes > self.max_bytes and len(self._blocks) > 1:
        _, (_, freed) = self._blocks.popitem(last=False)
        self.num_bytes -= freed

  def forget(self) -> None:
    """Drops all blocks."""
    with self._lock:
      self._blocks.clear()
      self.num_bytes = 0


# One for the whole process: the bound is on memory, not on a data set's share.
SHARED = BlockCache()
