"""Shares of languages and sources, and the order of a mixture's examples."""

import numpy as np
import pytest

from byt5_diffusion.data import apportionment, languages

TABLE = languages.percents()


def _limits(*counts, examples=1):
  return np.array(counts, np.float64) / examples


def test_shares_meet_target_limits_and_weights():
  rng = np.random.default_rng(0)
  limits = np.zeros((3, 107))
  limits[0, :40] = rng.uniform(0, 0.05, 40)
  limits[1, 20:80] = rng.uniform(0, 0.05, 60)
  limits[2] = np.inf
  found = apportionment.allocate(TABLE, [2, 1, 1], limits)
  np.testing.assert_allclose(found.shares.sum(axis=0), TABLE, atol=1e-9)
  assert (found.shares <= limits + 1e-12).all()
  np.testing.assert_allclose(
    found.shares.sum(axis=1), [0.5, 0.25, 0.25], atol=1e-5
  )
  assert not found.lacking.any()


def test_a_source_of_weight_zero_fills_only_gaps():
  limits = _limits([0.2, np.inf, 0], [np.inf] * 3)
  found = apportionment.allocate(np.array([0.5, 0.3, 0.2]), [1, 0], limits)
  np.testing.assert_allclose(
    found.shares, [[0.2, 0.3, 0], [0.3, 0, 0.2]], atol=1e-9
  )


def test_what_nothing_can_give_is_spread_and_said():
  limits = _limits([np.inf, np.inf, 0, 0.05])
  target = np.array([0.4, 0.2, 0.3, 0.1])
  found = apportionment.allocate(target, [1], limits)
  np.testing.assert_allclose(found.goal, [0.95 * 2 / 3, 0.95 / 3, 0, 0.05])
  np.testing.assert_allclose(found.lacking, [0, 0, 0.3, 0.05])


def test_too_few_examples_are_refused():
  with pytest.raises(ValueError, match=r"60\.0%"):
    apportionment.allocate(np.array([0.5, 0.5]), [1], _limits([0.3, 0.3]))
  with pytest.raises(ValueError, match="fill only"):
    apportionment.allocate(np.array([1.0, 0.0]), [1], _limits([0.3, 9.0]))
  with pytest.raises(ValueError, match="weights"):
    apportionment.allocate(TABLE, [-1], np.full((1, 107), np.inf))


@pytest.mark.parametrize("seed", range(5))
def test_floor_sum_is_the_sum(seed):
  rng = np.random.default_rng(seed)
  count, modulus, step, start = (int(rng.integers(1, 300)) for _ in range(4))
  wanted = sum((step * k + start) // modulus for k in range(count))
  assert apportionment.floor_sum(count, modulus, step, start) == wanted


def _columns(schedule, blocks):
  return apportionment.Block(
    *map(np.concatenate, zip(*map(schedule.block, blocks), strict=True))
  )


def test_counts_are_within_rounding_and_ranks_have_no_gap():
  rng = np.random.default_rng(1)
  shares = rng.dirichlet(np.full(3 * 107, 0.3)).reshape(3, 107)
  shares[:, 5] = 0
  shares /= shares.sum()
  found = _columns(apportionment.Schedule(shares, 3), range(3))
  total = len(found.rank)
  cells = found.source * 107 + found.language
  counts = np.bincount(cells, minlength=321)
  assert (
    np.abs(counts - total * shares.reshape(-1)).max() < apportionment.MAX_EXCESS
  )
  language = counts.reshape(3, 107).sum(axis=0)
  assert np.abs(language - total * shares.sum(axis=0)).max() < 4
  assert not counts.reshape(3, 107)[:, 5].any()
  order = np.lexsort((found.rank, cells))
  starts = np.repeat(np.cumsum(counts) - counts, counts)
  np.testing.assert_array_equal(found.rank[order], np.arange(total) - starts)


def test_blocks_are_functions_of_seed_and_number():
  one = apportionment.Schedule(TABLE[None], 7)
  two = apportionment.Schedule(TABLE[None], 7)
  two.block(2)
  for a, b in zip(one.block(41), two.block(41), strict=True):
    np.testing.assert_array_equal(a, b)
  other = apportionment.Schedule(TABLE[None], 8).block(41)
  assert (one.block(41).language != other.language).mean() > 0.5
  # No pattern: neighbours are of one language as often as chance has it.
  language = one.block(0).language
  same = (language[1:] == language[:-1]).mean()
  assert abs(same - (TABLE**2).sum()) < 0.004


@pytest.mark.parametrize("count", [1, 2, 3, 10, 1000, 4097])
def test_every_round_has_every_element_once(count):
  ranks = np.arange(3 * count)
  found = apportionment.shuffled(ranks, count, key=5).reshape(3, count)
  np.testing.assert_array_equal(np.sort(found, axis=1)[0], np.arange(count))
  np.testing.assert_array_equal(np.sort(found, axis=1)[2], np.arange(count))
  if count >= 1000:
    assert (found[0] != found[1]).mean() > 0.9
    correlation = np.corrcoef(found[0], np.arange(count))[0, 1]
    assert abs(correlation) < 5 / count**0.5
  alone = [apportionment.shuffled(ranks[[i]], count, 5)[0] for i in (0, -1)]
  assert alone == [found[0, 0], found[2, -1]]
