"""Variable resolution: closed forms, extreme proportions, true pictures."""

import fractions

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from byt5_diffusion import feature_converters
from byt5_diffusion.data import patches

SIDES = strategies.integers(1, 2**31)


@pytest.mark.parametrize(
  ("height", "width", "max_patches", "expected"),
  [
    (16, 40, 40, (4, 10)),  # The typography tasks: exactly their pixels.
    (64, 256, 256, (8, 32)),
    (100, 100, 2048, (45, 45)),
    (480, 640, 2048, (39, 52)),  # sqrt(1536), sqrt(2730.7)
    (640, 480, 2048, (52, 39)),
    (1, 1, 1, (1, 1)),
    (3, 2, 1, (1, 1)),
    (1, 100, 16, (1, 16)),  # Ribbons are squeezed.
    (10**9, 1, 2048, (2048, 1)),
  ],
)
def test_grid_closed_form(height, width, max_patches, expected):
  assert patches.grid(height, width, max_patches) == expected


@hypothesis.settings(deadline=None)
@hypothesis.given(SIDES, SIDES, strategies.integers(1, 4096))
def test_grid_is_as_large_as_fits_and_keeps_proportions(height, width, limit):
  rows, columns = patches.grid(height, width, limit)
  assert rows >= 1 and columns >= 1 and rows * columns <= limit
  assert patches.grid(width, height, limit) == (columns, rows)
  if max(height, width) > limit * min(height, width):
    assert sorted([rows, columns]) == [1, limit]
    return
  # The exact sides are sqrt(limit h / w) and its inverse: whole parts of them.
  square = fractions.Fraction(limit * height, width)
  assert rows**2 <= max(square, 1) and (rows + 1) ** 2 > square
  square = fractions.Fraction(limit * width, height)
  assert columns**2 <= max(square, 1) and (columns + 1) ** 2 > square


@hypothesis.settings(deadline=None)
@hypothesis.given(
  strategies.integers(1, 12),
  strategies.integers(1, 12),
  strategies.integers(1, 9),
)
def test_nothing_is_scaled_that_fits_exactly(rows, columns, size):
  picture = np.zeros((rows * size, columns * size, 3), np.uint8)
  assert patches.scale(picture, size, rows * columns) is picture


def test_cut_and_fit_closed_form():
  levels = np.arange(4 * 6 * 3).reshape(4, 6, 3).astype(np.uint8)
  cut = patches.cut(levels, 2)
  assert cut.dtype == np.int16 and cut.shape == (6, 14)
  np.testing.assert_array_equal(cut[:, 0], [1, 1, 1, 2, 2, 2])
  np.testing.assert_array_equal(cut[:, 1], [1, 2, 3, 1, 2, 3])
  np.testing.assert_array_equal(cut[4, 2:], levels[2:4, 2:4].ravel())
  row = patches.fit(levels, 2, 6)
  assert row.dtype == np.float32
  np.testing.assert_array_equal(row[:, :2], cut[:, :2])
  np.testing.assert_array_equal(
    row[:, 2:], feature_converters.PIXELS[cut[:, 2:]]
  )


def _picture(rows, size):
  """A picture from its patches."""
  height, width = (int(rows[:, i].max()) * size for i in range(2))
  image = np.zeros((height, width, 3), rows.dtype)
  for place_row, place_column, *pixels in rows:
    top, left = (int(place_row) - 1) * size, (int(place_column) - 1) * size
    block = np.reshape(pixels, (size, size, 3))
    image[top : top + size, left : left + size] = block
  return image


@pytest.mark.parametrize("shape", [(50, 90), (200, 31), (400, 720)])
def test_the_patches_show_the_picture(shape):
  """Red grows to the right, green downwards, in any size."""
  height, width = shape
  image = np.zeros((height, width, 3), np.uint8)
  image[..., 0] = np.linspace(0, 255, width)
  image[..., 1] = np.linspace(0, 255, height)[:, None]
  shown = _picture(patches.cut(patches.scale(image, 4, 64), 4), 4)
  ratio = shown.shape[1] / shown.shape[0] / (width / height)
  assert 0.7 < ratio < 1.4
  across = np.linspace(0, 255, shown.shape[1])
  down = np.linspace(0, 255, shown.shape[0])[:, None]
  np.testing.assert_allclose(shown[..., 0] - across, 0, atol=12)
  np.testing.assert_allclose(shown[..., 1] - down, 0, atol=12)
  assert not shown[..., 2].any()


def test_fine_lines_are_averaged_not_skipped():
  image = np.full((256, 256, 3), 255, np.uint8)
  image[:, ::2] = 0
  small = patches.scale(image, 4, 64)
  assert small.shape == (32, 32, 3)
  np.testing.assert_allclose(small.astype(int), 127.5, atol=4)


@pytest.mark.parametrize(
  "shape", [(1, 1), (1, 300_000), (300_000, 1), (1, 7), (7, 1), (2000, 3000)]
)
@pytest.mark.parametrize(("size", "limit"), [(16, 2048), (4, 1)])
def test_extreme_pictures(shape, size, limit):
  image = np.full((*shape, 3), 200, np.uint8)
  rows = patches.fit(image, size, limit)
  assert 1 <= len(rows) <= limit
  assert rows[:, :2].min() == 1 and rows[:, :2].max() <= limit
  np.testing.assert_array_equal(rows[:, 2:], feature_converters.PIXELS[200])


def test_what_cannot_be_is_named():
  with pytest.raises(ValueError, match="max_patches=0 must be in"):
    patches.grid(4, 4, 0)
  with pytest.raises(ValueError, match="32767"):
    patches.grid(4, 4, 40_000)
  with pytest.raises(ValueError, match=r"5 x 8 pixels .* 4 x 4"):
    patches.cut(np.zeros((5, 8, 3), np.uint8), 4)
