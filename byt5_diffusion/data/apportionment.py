"""How much of each language comes from where, and which example is number i.

  allocate -> shares [sources, languages] that match a target distribution
  Schedule(shares, seed).block(b) -> (source, language, n-th of its kind) of the
    examples b * BLOCK, ..., a pure function

Nothing is drawn by lot: example k takes the language whose interval holds
frac(k g + phase), g the golden ratio, and its sources' intervals likewise
divide the examples of a language. So the counts of any stretch from the start
are within a few of the shares (discrepancy log n / n; Kuipers and Niederreiter
1974, chapter 2.3), and how often an interval was met before k has a closed
form. Then every WINDOW examples are shuffled.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from byt5_diffusion.data.writing import words

WINDOW = 1 << 10
BLOCK = 64 * WINDOW
_RANGE = 1 << 32
_STEP = 2654435769  # 2^32 / golden ratio, odd.
_MAX_ROUNDS = 300
_CLOSE = 1e-7
# The most by which a count exceeds its share, found by trial.
MAX_EXCESS = 6


class Allocation(NamedTuple):
  """What comes from where.

  Attributes:
    shares: [sources, languages], sum 1.
    goal: [languages], their sums: the target as far as it can be met.
    lacking: [languages], the shares of the target that nothing can give.
  """

  shares: np.ndarray
  goal: np.ndarray
  lacking: np.ndarray


def allocate(
  target: np.ndarray, weights: Sequence[float], limits: np.ndarray
) -> Allocation:
  """Shares whose languages are the target's, and whose sources weigh as wished.

  Languages come first, then the limits, then the weights: a source that lacks a
  language is made up for by those that have it, in proportion to their weights,
  and the weights within the other languages are adapted (iterative proportional
  fitting; Deming and Stephan 1940) so that every source still has its weight in
  all, as far as its limits let it. One of weight 0 gives what no other can.

  Args:
    target: [languages], sum 1.
    weights: [sources], not negative.
    limits: [sources, languages], the largest shares of the mixture; inf where
      there is no end.

  Raises:
    ValueError: impossible weights, or all sources together cannot fill the
      mixture.
  """
  wished = np.asarray(weights, np.float64)
  if not np.isfinite(wished).all() or (wished < 0).any() or not wished.sum():
    raise ValueError(f"weights {list(weights)} must be >= 0, one of them > 0.")
  wished = wished / wished.sum()
  goal = _reachable(target, limits.sum(axis=0))
  pulls = np.maximum(wished, 1e-12)
  for _ in range(_MAX_ROUNDS):
    shares = _fill(goal, pulls, limits)
    got = shares.sum(axis=1)
    if np.abs(got - wished).max() < _CLOSE:
      break
    ratio = np.where(got > 0, wished / np.maximum(got, 1e-15), 1.0)
    pulls = np.clip(pulls * np.maximum(ratio, 1e-3), 1e-12, 1e12)
    pulls[wished == 0] = 1e-12
    pulls /= pulls.max()
    pulls = np.maximum(pulls, 1e-12)
  return Allocation(shares, goal, np.maximum(target - goal, 0))


def _reachable(target: np.ndarray, reach: np.ndarray) -> np.ndarray:
  """The target; what cannot be reached is spread over the other languages."""
  if reach.sum() < 1:
    raise ValueError(
      "All sources together have too few examples: they fill "
      f"{reach.sum():.1%} of the mixture. Ask for fewer examples (num_train), "
      "raise max_repeats, or add a source without an end (synthetic "
      "typography)."
    )
  goal = np.minimum(target, reach)
  while (missing := 1 - goal.sum()) > 1e-12:
    free = (target > 0) & (goal < reach)
    if not free.any():
      raise ValueError(
        "The languages that the table has fill only "
        f"{goal.sum():.1%} of the mixture: ask for fewer examples (num_train), "
        "raise max_repeats, or add a source without an end."
      )
    more = goal[free] * (1 + missing / goal[free].sum())
    goal[free] = np.minimum(more, reach[free])
  return goal


def _fill(
  goal: np.ndarray, pulls: np.ndarray, limits: np.ndarray
) -> np.ndarray:
  """Every language's goal, in proportion to the pulls, within the limits."""
  full = limits <= 0
  shares = np.zeros(limits.shape)
  for _ in range(len(pulls) + 1):
    held = np.where(full, np.where(limits > 0, limits, 0), 0)
    open_pulls = np.where(full, 0, pulls[:, None])
    total = open_pulls.sum(axis=0)
    left = np.maximum(goal - held.sum(axis=0), 0)
    shares = held + open_pulls * (left / np.where(total > 0, total, 1))
    over = (shares > limits) & ~full
    if not over.any():
      break
    full |= over
  return np.minimum(shares, limits)


def floor_sum(count: int, modulus: int, step: int, start: int) -> int:
  """Sum of floor((step k + start) / modulus) over 0 <= k < count; all >= 0."""
  total = 0
  while count:
    total += (count - 1) * count // 2 * (step // modulus)
    total += count * (start // modulus)
    step, start = step % modulus, start % modulus
    last = step * count + start
    if last < modulus:
      break
    count, start = divmod(last, modulus)
    step, modulus = modulus, step
  return total


def _met(count: int, bound: int, phase: int) -> int:
  """How many k < count have (k _STEP + phase) mod _RANGE < bound."""
  if bound <= 0:
    return 0
  if bound >= _RANGE:
    return count
  return (
    floor_sum(count, _RANGE, _STEP, phase)
    - floor_sum(count, _RANGE, _STEP, phase - bound + _RANGE)
    + count
  )


def _bounds(shares: np.ndarray) -> np.ndarray:
  """Ends of intervals of [0, _RANGE) in proportion to shares, uint64."""
  total = shares.sum()
  ends = np.rint(np.cumsum(shares) / total * _RANGE).astype(np.uint64)
  ends[np.flatnonzero(shares)[-1] :] = _RANGE
  return ends


def _follow(
  start: int, count: int, ends: np.ndarray, phase: int
) -> tuple[np.ndarray, np.ndarray]:
  """Intervals of steps start, ..., and how often each was met before it."""
  steps = np.arange(count, dtype=np.uint64) + np.uint64(start % _RANGE)
  at = (steps * np.uint64(_STEP) + np.uint64(phase)) % np.uint64(_RANGE)
  which = np.searchsorted(ends, at, side="right")
  met = [_met(start, int(end), phase) for end in ends]
  before = np.diff(np.array([0, *met], dtype=np.int64))
  ranks = np.empty(count, np.int64)
  order = np.argsort(which, kind="stable")
  sizes = np.bincount(which, minlength=len(ends))
  firsts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
  ranks[order] = np.arange(count) - np.repeat(firsts, sizes)
  return which, ranks + before[which]


class Block(NamedTuple):
  """BLOCK examples.

  Attributes:
    source, language: columns and rows of the shares, int64 [BLOCK].
    rank: how many examples of this source and language came before, int64.
  """

  source: np.ndarray
  language: np.ndarray
  rank: np.ndarray


class Schedule:
  """Sources and languages of all examples, for ever."""

  def __init__(self, shares: np.ndarray, seed: int):
    self._seed = int(seed)
    per_language = shares.sum(axis=0)
    self._ends = _bounds(per_language)
    self._sources = {
      int(row): _bounds(shares[:, row]) for row in np.flatnonzero(per_language)
    }
    phases = words.generator("apportionment", self._seed).integers(
      _RANGE, size=shares.shape[1] + 1
    )
    self._phase = int(phases[-1])
    self._phases = [int(phase) for phase in phases[:-1]]
    self.block = functools.lru_cache(maxsize=16)(self._block)

  def _block(self, number: int) -> Block:
    """The examples number * BLOCK, ..., in their order."""
    start = number * BLOCK
    language, rank = _follow(start, BLOCK, self._ends, self._phase)
    source = np.empty(BLOCK, np.int64)
    order = np.argsort(language, kind="stable")
    rows, firsts = np.unique(language[order], return_index=True)
    for row, places in zip(
      rows.tolist(), np.split(order, firsts[1:]), strict=True
    ):
      source[places], rank[places] = _follow(
        int(rank[places[0]]),
        len(places),
        self._sources[row],
        self._phases[row],
      )
    rng = words.generator("order", self._seed, number)
    shuffle = rng.permuted(np.arange(BLOCK).reshape(-1, WINDOW), axis=1)
    shuffle = shuffle.reshape(-1)
    return Block(source[shuffle], language[shuffle], rank[shuffle])


def shuffled(ranks: np.ndarray, count: int, key: int) -> np.ndarray:
  """Elements of a shuffled range(count), round after round, each differently.

  Args:
    ranks: int64 [n]; element rank mod count of round rank // count.
    count: of the range.
    key: another key, another order.

  Returns:
    int64 [n] in [0, count): a Feistel permutation, walked until it falls into
    the range (Black and Rogaway 2002).
  """
  half = max(1, math.ceil((count - 1).bit_length() / 2))
  rounds, places = np.divmod(ranks.astype(np.uint64), np.uint64(count))
  keys = _mixed(rounds + np.uint64(key % 2**64))
  out = places.copy()
  walking = np.arange(len(out))
  while len(walking):
    out[walking] = _feistel(out[walking], keys[walking], half)
    walking = walking[out[walking] >= count]
  return out.astype(np.int64)


def _feistel(values: np.ndarray, keys: np.ndarray, half: int) -> np.ndarray:
  """A permutation of range(4 ** half) for each key."""
  width, mask = np.uint64(half), np.uint64((1 << half) - 1)
  left, right = values >> width, values & mask
  for number in range(6):
    mixed = _mixed(right + keys * np.uint64(2 * number + 1))
    left, right = right, left ^ (mixed & mask)
  return (left << width) | right


def _mixed(values: np.ndarray) -> np.ndarray:
  """SplitMix64's finalizer (Steele et al. 2014): bits depend on all bits."""
  mixed = values + np.uint64(0x9E3779B97F4A7C15)
  mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return mixed ^ (mixed >> np.uint64(31))
