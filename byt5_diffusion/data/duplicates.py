"""What comes again: exact copies, captions that occur too often, like pictures.

first(keys)            which of many keys are the first of their kind
Occurrences            how often a caption occurs, in bounded memory
difference_hash(image) 64 bits that small changes of a picture leave alone
near(hashes)           which pictures are almost those of others
"""

import hashlib
import unicodedata

import numpy as np

_ROWS = 3
_AT_ONCE = 1 << 16
_BANDS = 4  # Of 16 bits: two hashes that differ in at most 3 bits share one.
MAX_DISTANCE = _BANDS - 1
_PAIRS_AT_ONCE = 1 << 22


def key(value: str | bytes) -> int:
  """64 bits of a hash of an address, a caption or a file.

  Captions that differ only in white space, case or Unicode form have the same.
  """
  if isinstance(value, str):
    plain = unicodedata.normalize("NFKC", " ".join(value.split())).casefold()
    value = plain.encode("utf-8", "surrogatepass")
  return int.from_bytes(hashlib.blake2b(value, digest_size=8).digest(), "big")


def first(keys: np.ndarray) -> np.ndarray:
  """Which keys no earlier one is equal to, bool [n]; 24 bytes per key."""
  kept = np.zeros(len(keys), bool)
  kept[np.unique(keys, return_index=True)[1]] = True
  return kept


class Occurrences:
  """How often captions occurred: never too few, and hardly ever too many.

  A count-min sketch (Cormode and Muthukrishnan 2005) of 3 to 6 bytes per
  caption that is expected. Counts end at 255.
  """

  def __init__(self, expected: int):
    """Takes its memory.

    Args:
      expected: how many different captions there may be. With as many, one in
        ten million is counted five times too often.

    Raises:
      ValueError: not a sensible number.
    """
    if not 0 < expected <= 1 << 32:
      raise ValueError(f"{expected=} must be in [1, 2^32].")
    width = 1 << max(10, (expected - 1).bit_length())
    self._counts: np.ndarray = np.zeros((_ROWS, width), np.uint8)
    self._waiting: list[int] = []

  @classmethod
  def of(cls, counts: np.ndarray) -> "Occurrences":
    """What `counts` of another one said, to be asked only."""
    made = cls(1)
    made._counts = counts.reshape(_ROWS, -1)
    return made

  @property
  def counts(self) -> np.ndarray:
    """All that it knows, uint8 [rows, width]."""
    self._settle()
    return self._counts

  def add(self, value: str | bytes) -> None:
    """Counts one caption."""
    self._waiting.append(key(value))
    if len(self._waiting) >= _AT_ONCE:
      self._settle()

  def count(self, value: str | bytes) -> int:
    """How often a caption was added, up to 255."""
    self._settle()
    places = self._places(np.array([key(value)], np.uint64))[:, 0]
    return int(self._counts[np.arange(_ROWS), places].min())

  def _settle(self) -> None:
    if not self._waiting:
      return
    keys = np.array(self._waiting, np.uint64)
    for row, places in zip(self._counts, self._places(keys), strict=True):
      cells, added = np.unique(places, return_counts=True)
      row[cells] = np.minimum(row[cells] + added, 255)
    self._waiting = []

  def _places(self, keys: np.ndarray) -> np.ndarray:
    """[rows, n]: each row mixes the bits in another way."""
    odd = [(0x9E3779B97F4A7C15 + 2 * row * 0x94D049BB) for row in range(_ROWS)]
    mixed = keys[None] * np.array(odd, np.uint64)[:, None]
    mixed ^= mixed >> np.uint64(32)
    return mixed & np.uint64(self._counts.shape[1] - 1)


def difference_hash(image: np.ndarray) -> int:
  """64 bits: whether each of 9 x 8 grey fields is brighter than the next.

  dHash (Krawetz 2013), each field the mean of its pixels.

  Args:
    image: uint8 [H, W, 3].

  Raises:
    ValueError: another shape, or an empty one.
  """
  if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
    raise ValueError(f"An image of shape {image.shape} is not [H, W, 3].")
  # ITU-R BT.601.
  grey = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
  small = _means(_means(grey, 8).T, 9).T
  bits = small[:, 1:] > small[:, :-1]
  return int.from_bytes(np.packbits(bits.reshape(-1)).tobytes(), "big")


def _means(values: np.ndarray, count: int) -> np.ndarray:
  """Means of `count` equal stretches of rows, by parts of rows too."""
  size = len(values)
  sums = np.concatenate([np.zeros((1, values.shape[1])), values.cumsum(axis=0)])
  edges = np.arange(count + 1) * size / count
  low = np.minimum(edges.astype(np.int64), size - 1)
  at = sums[low] + (edges - low)[:, None] * values[low]
  return np.diff(at, axis=0) * count / size


def near(hashes: np.ndarray, max_distance: int = MAX_DISTANCE) -> np.ndarray:
  """For every hash an earlier one that is almost it, or its own place.

  Args:
    hashes: uint64 [n].
    max_distance: bits that may differ, at most 3.

  Returns:
    int64 [n]: of the earliest within max_distance. Hashes that share a quarter
    are compared pair by pair, so flat pictures (0) cost only one comparison
    each once exact copies are put aside.

  Raises:
    ValueError: a distance for which four quarters are too few.
  """
  if not 0 <= max_distance <= MAX_DISTANCE:
    raise ValueError(f"{max_distance=} must be in [0, {MAX_DISTANCE}].")
  values, firsts, back = np.unique(
    np.asarray(hashes, np.uint64), return_index=True, return_inverse=True
  )
  best = firsts.copy()
  for band in range(_BANDS):
    part = (values >> np.uint64(16 * band)) & np.uint64(0xFFFF)
    order = np.argsort(part, kind="stable")
    for group in np.split(order, np.flatnonzero(np.diff(part[order])) + 1):
      _compare(group, values, firsts, best, max_distance)
  return best[back]


def _compare(
  group: np.ndarray,
  values: np.ndarray,
  firsts: np.ndarray,
  best: np.ndarray,
  max_distance: int,
) -> None:
  """Lowers best[i] to the earliest of the group's that is near enough."""
  if len(group) < 2:
    return
  step = max(1, _PAIRS_AT_ONCE // len(group))
  for start in range(0, len(group), step):
    some = group[start : start + step]
    differ = values[some][:, None] ^ values[group][None]
    close = np.bitwise_count(differ) <= max_distance
    earliest = np.where(close, firsts[group][None], np.iinfo(np.int64).max)
    best[some] = np.minimum(best[some], earliest.min(axis=1))
