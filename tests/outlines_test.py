"""Outlines of writing: cut out upright, kept in the picture, hidden."""

import math

import numpy as np
import pytest
from PIL import Image, ImageDraw

from byt5_diffusion.data.sets import outlines

RED, BLUE = (200, 0, 0), (0, 0, 200)
BOX = ((20, 10), (80, 10), (80, 30), (20, 30))


def quad(
  middle: tuple[float, float], width: float, height: float, angle: float
) -> tuple[tuple[float, float], ...]:
  """A turned rectangle, from where its writing begins, clockwise."""
  cos, sin = math.cos(angle), math.sin(angle)
  return tuple(
    (
      middle[0] + x * cos - y * sin,
      middle[1] + x * sin + y * cos,
    )
    for x, y in (
      (-width / 2, -height / 2),
      (width / 2, -height / 2),
      (width / 2, height / 2),
      (-width / 2, height / 2),
    )
  )


def half(
  outline: tuple[tuple[float, float], ...],
) -> tuple[tuple[float, float], ...]:
  """The half in which the writing begins."""
  (a, b, c, d) = (np.array(corner) for corner in outline)
  return tuple(map(tuple, (a, (a + b) / 2, (d + c) / 2, d)))


@pytest.mark.parametrize("degrees", [0, 20, 90, 180, 265])
@pytest.mark.parametrize("mirrored", [False, True])
def test_crops_are_turned_upright(degrees: int, mirrored: bool) -> None:
  """Whatever way a word is turned, its beginning is on the left."""
  outline = quad((100, 100), 120, 30, math.radians(degrees))
  image = Image.new("RGB", (200, 200), "white")
  draw = ImageDraw.Draw(image)
  draw.polygon(outline, fill=RED)
  draw.polygon(half(outline), fill=BLUE)
  given = (outline[0], *outline[:0:-1]) if mirrored else outline
  assert outlines.checked(given) == outline
  crop = outlines.cut(np.array(image), outlines.checked(given))
  height, width = crop.pixels.shape[:2]
  assert abs(width - 120) <= 2 and abs(height - 30) <= 2
  assert tuple(crop.pixels[height // 2, width // 4]) == BLUE
  assert tuple(crop.pixels[height // 2, 3 * width // 4]) == RED
  placed = crop.place(outlines.checked(given))
  np.testing.assert_allclose(placed[0], (0, 0), atol=1)
  np.testing.assert_allclose(placed[2], (width, height), atol=1)


def test_a_perspective_is_undone() -> None:
  trapezoid = ((40, 40), (160, 70), (160, 130), (40, 160))
  image = np.full((200, 200, 3), 255, np.uint8)
  matrix = outlines.homography(np.array(trapezoid), np.array(BOX))
  for corner, expected in zip(trapezoid, BOX, strict=True):
    x, y, w = matrix @ (*corner, 1.0)
    np.testing.assert_allclose((x / w, y / w), expected, atol=1e-6)
  crop = outlines.cut(image, outlines.checked(trapezoid))
  assert crop.pixels.shape[:2] == (120, 124)
  # Sides of 120 and 60 are seen at distances of 1 and 2; half way the height is
  # 90, seen at 4/3, a third of the way.
  x, _, w = crop.matrix @ (100.0, 100.0, 1.0)
  np.testing.assert_allclose(x / w, 124 / 3)


def test_a_curve_gets_the_smallest_rectangle() -> None:
  turned = np.array(quad((100, 100), 120, 30, math.radians(30)))
  middle = (turned[0] + turned[1]) / 2
  curve = tuple(map(tuple, (turned[0], middle, *turned[1:])))
  found = outlines.rectangle(curve)
  np.testing.assert_allclose(found, turned, atol=1e-6)
  # A hand-drawn outline begins anywhere; writing is taken to be upright.
  shifted = (*curve[2:], *curve[:2])
  np.testing.assert_allclose(outlines.upright(shifted), turned, atol=1e-6)


@pytest.mark.parametrize("degrees", [0, 30, 90, 200])
def test_writing_is_as_high_when_it_is_turned(degrees: int) -> None:
  outline = quad((100, 100), 120, 30, math.radians(degrees))
  assert outlines.thickness(outline) == pytest.approx(30)


@pytest.mark.parametrize(
  ("numbers", "reason"),
  [
    ([0, 0, 10, 0, 10, 0, 0, 0], "no area"),
    ([0, 0, 10, 0, 10], "no list of corners"),
    ([0, 0, 10, float("nan"), 10, 10], "corners without a place"),
    ([0, 0, 1e300, 0, 10, 10], "corners without a place"),
    ("0,0,10,0", "no list of corners"),
    ([[0, 0], [10, True], [5, 5]], "no list of corners"),
    ([0, 0, 10, 10], "fewer than three"),
  ],
)
def test_bad_outlines(numbers: object, reason: str) -> None:
  with pytest.raises(outlines.BadOutline, match=reason):
    outlines.of_numbers(numbers)


def test_outlines_that_leave_the_picture() -> None:
  inside = outlines.inside(((-5, 0), (20, 0), (20, 20), (-5, 20)), (50, 50))
  assert outlines.box(inside) == (0, 0, 20, 20)
  with pytest.raises(outlines.BadOutline, match="outside"):
    outlines.inside(((40, 0), (90, 0), (90, 20), (40, 20)), (50, 50))
  image = np.zeros((50, 50, 3), np.uint8)
  with pytest.raises(outlines.BadOutline, match="outside"):
    outlines.cut(image, ((60, 0), (90, 0), (90, 20), (60, 20)))


def test_hidden_writing_cannot_be_seen() -> None:
  """Stripes become one gray; what is around keeps its pixels."""
  image = np.full((100, 200, 3), 255, np.uint8)
  image[40:60, 50:150:4] = image[40:60, 51:150:4] = 0
  hidden = outlines.hide(image, [((50, 40), (150, 40), (150, 60), (50, 60))])
  assert hidden[45:55, 70:130].std() < 0.05 * image[45:55, 70:130].std()
  np.testing.assert_array_equal(hidden[:30], image[:30])
  outside = ((300, 300), (400, 300), (400, 400), (300, 400))
  np.testing.assert_array_equal(outlines.hide(image, [outside]), image)
