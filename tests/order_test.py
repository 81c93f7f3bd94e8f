"""Orders of examples that need no list of them, and streams that keep them."""

import numpy as np
import pytest

from byt5_diffusion.data.rows import order


def _order(sizes, **options):
  return order.Order(order.Blocks(sizes, [1] * len(sizes)), **options)


def test_every_example_once_per_epoch():
  sizes = [0, 7, 1, 300, 0, 64, 5, 0]
  orders = _order(sizes, window_examples=50)
  epochs = [
    orders.examples(order.epoch_key(3, epoch), range(377)) for epoch in range(3)
  ]
  for epoch in epochs:
    np.testing.assert_array_equal(np.sort(epoch), np.arange(377))
  assert (epochs[0] != epochs[1]).any() and (epochs[1] != epochs[2]).any()
  assert len(orders) == 377
  other = orders.examples(order.epoch_key(4, 0), range(377))
  assert (other != epochs[0]).any()


def test_an_order_is_a_pure_function_of_key_and_place():
  sizes = np.random.default_rng(0).integers(0, 90, 40)
  count = sizes.sum()
  whole = _order(sizes, window_examples=100).examples(5, np.arange(count))
  places = np.random.default_rng(1).permutation(count)
  fresh = _order(sizes, window_examples=100)
  fresh.examples(6, places[:10])  # Another epoch is in its memory.
  np.testing.assert_array_equal(fresh.examples(5, places), whole[places])
  one = [int(fresh.examples(5, [place])[0]) for place in places[:30]]
  assert one == whole[places[:30]].tolist()


def test_the_order_is_the_same_in_every_version():
  # A run that is resumed after an upgrade must find its place again.
  np.testing.assert_array_equal(
    order.permutation(8, 1), [6, 0, 7, 3, 5, 2, 4, 1]
  )


def test_a_window_has_few_blocks():
  orders = _order([100] * 50, window_examples=400)
  found = orders.examples(1, range(5000)) // 100
  for start in range(0, 4800, 400):
    assert len(set(found[start : start + 400])) == 4
  blocks = [found[start] for start in range(0, 4800, 400)]
  assert blocks != sorted(blocks)
  # Rows of the window's blocks are mixed, not one block after another.
  assert (np.diff(found[:400]) != 0).mean() > 0.5


def test_windows_are_not_mixed_alike():
  orders = _order([100] * 10, window_examples=100)
  found = (orders.examples(1, range(1000)) % 100).reshape(10, 100)
  assert len({tuple(window) for window in found.tolist()}) == 10


def test_a_window_is_bounded_by_memory_too():
  blocks = order.Blocks([10] * 64, [2**26] * 64)
  orders = order.Order(blocks, window_bytes=2**28)
  found = orders.examples(1, range(640)) // 10
  for start in range(0, 640, 40):
    assert len(set(found[start : start + 40])) == 4


def test_places_are_evenly_shuffled():
  orders = _order([64] * 8, window_examples=10**6)
  counts = np.zeros([512, 8])
  for key in range(200):
    found = orders.examples(order.epoch_key(0, key), range(512))
    counts[np.arange(512), found // 64] += 1
  # Each of 8 blocks is at each place 25 times, give or take: chi square.
  chi = ((counts - 25) ** 2 / 25).sum(axis=1)
  assert 6 < chi.mean() < 8  # 7 degrees of freedom


def test_many_examples_take_little_memory_and_time():
  orders = _order([1_000_000] * 170, window_examples=2**18)
  found = orders.examples(1, np.arange(10))
  assert len(set((found // 1_000_000).tolist())) == 1
  assert len(orders) == 170_000_000


def test_a_place_beyond_the_end_is_an_error():
  with pytest.raises(IndexError, match="377 places"):
    _order([377]).examples(0, [377])
