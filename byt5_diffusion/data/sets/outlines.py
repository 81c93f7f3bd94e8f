"""Outlines of writing in a picture: cutting it out upright, and hiding it.

An outline is the (x, y) corners of a word, a line or a character in pixels,
from the corner where its writing begins, clockwise as one sees it. Two corners
are never an outline; data sets that give boxes use `of_box`.
"""

import math
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from byt5_diffusion.data import annotated

Outline = tuple[tuple[float, float], ...]

MIN_SIDE = 2.0  # Pixels; what is thinner cannot be read by anyone.
MAX_CORNERS = 1000
_NUMBERS = frozenset({int, float})  # No bool.
MAX_COORDINATE = 1e6
# A crop has at most this many pixels; a larger one is scaled down.
MAX_CROP_PIXELS = 16_000_000
# Share of an outline's box that must lie inside the picture.
MIN_INSIDE = 0.5


class BadOutline(ValueError):
  """An outline that nothing can be cut out by; says why in constant words."""


def of_box(x: float, y: float, width: float, height: float) -> Outline:
  """Corners of a box whose left upper corner is (x, y)."""
  return checked(
    ((x, y), (x + width, y), (x + width, y + height), (x, y + height))
  )


def of_numbers(numbers: object) -> Outline:
  """Corners of [x1, y1, x2, y2, ...] or [[x1, y1], [x2, y2], ...]."""
  if not isinstance(numbers, list) or len(numbers) > 2 * MAX_CORNERS:
    raise BadOutline("no list of corners")
  flat = numbers
  if numbers and isinstance(numbers[0], list):
    if any(type(corner) is not list or len(corner) != 2 for corner in numbers):
      raise BadOutline("no list of corners")
    flat = [number for corner in numbers for number in corner]
  if len(flat) % 2 or not set(map(type, flat)) <= _NUMBERS:
    raise BadOutline("no list of corners")
  try:
    values = list(map(float, flat))
  except OverflowError:
    raise BadOutline("corners without a place") from None
  return checked(tuple(zip(values[::2], values[1::2], strict=True)))


def checked(corners: Outline) -> Outline:
  """The corners, clockwise and from the same one; BadOutline if there is none.

  A mirrored outline would give mirrored writing.
  """
  if not 3 <= len(corners) <= MAX_CORNERS:
    raise BadOutline("fewer than three corners, or a thousand")
  xs, ys = zip(*corners, strict=True)
  # A sum with NaN or an infinite number in it is none that is finite.
  if not math.isfinite(sum(xs) + sum(ys)):
    raise BadOutline("corners without a place")
  left, top, right, bottom = min(xs), min(ys), max(xs), max(ys)
  if max(-left, -top, right, bottom) > MAX_COORDINATE:
    raise BadOutline("corners without a place")
  if right - left < MIN_SIDE or bottom - top < MIN_SIDE:
    raise BadOutline("no area")
  # Twice the area; positive for clockwise as one sees it: y grows downwards.
  twice, (x0, y0) = 0.0, corners[-1]
  for x1, y1 in corners:
    twice += x0 * y1 - x1 * y0
    x0, y0 = x1, y1
  return corners if twice >= 0 else (corners[0], *reversed(corners[1:]))


def box(corners: Outline) -> annotated.Box:
  """left, top, right, bottom."""
  xs, ys = zip(*corners, strict=True)
  return (min(xs), min(ys), max(xs), max(ys))


def thickness(corners: Outline) -> float:
  """How high its writing is, or how wide if it runs from top to bottom."""
  if len(corners) == 4:
    a, b, c = corners[:3]
    return min(math.dist(a, b), math.dist(b, c))
  left, top, right, bottom = box(corners)
  return min(right - left, bottom - top)


def inside(corners: Outline, size: tuple[int, int]) -> Outline:
  """The outline with corners outside of the picture drawn to its edge.

  Args:
    corners: the outline.
    size: the picture's (rows, columns).

  Raises:
    BadOutline: more than half of it lies outside.
  """
  clamped = tuple(
    (min(max(x, 0.0), float(size[1])), min(max(y, 0.0), float(size[0])))
    for x, y in corners
  )
  if clamped == corners:
    return corners
  whole, rest = box(corners), box(clamped)
  if _area(rest) < MIN_INSIDE * _area(whole):
    raise BadOutline("outside of the picture")
  return checked(clamped)


def _area(of: annotated.Box) -> float:
  return (of[2] - of[0]) * (of[3] - of[1])


class Crop(NamedTuple):
  """What was cut out.

  Attributes:
    pixels: uint8 [H, W, 3].
    matrix: [3, 3]; a place (x, y, 1) in the picture, times it, divided by the
      third number, is the place in the crop.
  """

  pixels: np.ndarray
  matrix: np.ndarray

  def place(self, corners: Outline) -> Outline:
    """Where the crop has corners of the picture."""
    points = np.array([(x, y, 1.0) for x, y in corners]) @ self.matrix.T
    return tuple((float(x / w), float(y / w)) for x, y, w in points)


def cut(image: np.ndarray, corners: Outline, margin: float = 0.0) -> Crop:
  """Cuts an outline out of uint8 [H, W, 3], turned and stretched upright.

  Four corners become the crop's (a perspective view is undone); of a curve, the
  smallest rectangle around it is taken. Upright boxes are cut pixel by pixel.

  Args:
    image: the picture.
    corners: the outline.
    margin: added on every side, in shares of the shorter one.

  Raises:
    BadOutline: more than half of it lies outside.
  """
  corners = inside(corners, image.shape[:2])
  if _is_upright(corners):
    return _cut_box(image, box(corners), margin)
  quad = np.array(corners if _is_convex_quad(corners) else rectangle(corners))
  width = max(math.dist(quad[0], quad[1]), math.dist(quad[3], quad[2]))
  height = max(math.dist(quad[0], quad[3]), math.dist(quad[1], quad[2]))
  if min(width, height) < MIN_SIDE:
    raise BadOutline("no area")
  added = margin * min(width, height)
  shrink = min(1.0, math.sqrt(MAX_CROP_PIXELS / (width * height)))
  columns = max(1, round((width + 2 * added) * shrink))
  rows = max(1, round((height + 2 * added) * shrink))
  edge = added * shrink
  target = np.array(
    [
      (edge, edge),
      (columns - edge, edge),
      (columns - edge, rows - edge),
      (edge, rows - edge),
    ]
  )
  matrix = homography(quad, target)
  back = np.linalg.inv(matrix)
  pixels = Image.fromarray(image).transform(
    (columns, rows),
    Image.Transform.PERSPECTIVE,
    tuple((back / back[2, 2]).ravel()[:8]),
    resample=Image.Resampling.BICUBIC,
    fillcolor=(255, 255, 255),
  )
  return Crop(np.array(pixels), matrix)


def _cut_box(image: np.ndarray, of: annotated.Box, margin: float) -> Crop:
  added = margin * min(of[2] - of[0], of[3] - of[1])
  left, top = (max(0, math.floor(one - added)) for one in of[:2])
  right = min(image.shape[1], math.ceil(of[2] + added))
  bottom = min(image.shape[0], math.ceil(of[3] + added))
  if right <= left or bottom <= top:
    raise BadOutline("outside of the picture")
  matrix = np.array([[1.0, 0.0, -left], [0.0, 1.0, -top], [0.0, 0.0, 1.0]])
  return Crop(image[top:bottom, left:right].copy(), matrix)


def _is_upright(corners: Outline) -> bool:
  if len(corners) != 4:
    return False
  left, top, right, bottom = box(corners)
  return corners == ((left, top), (right, top), (right, bottom), (left, bottom))


def _is_convex_quad(corners: Outline) -> bool:
  """Whether a perspective view of a rectangle can look so."""
  if len(corners) != 4:
    return False
  for i in range(4):
    (ax, ay), (bx, by), (cx, cy) = (corners[(i + k) % 4] for k in range(3))
    if (bx - ax) * (cy - by) - (by - ay) * (cx - bx) <= 0:
      return False
  return True


def homography(source: np.ndarray, target: np.ndarray) -> np.ndarray:
  """[3, 3] that takes four places [4, 2] to four others."""
  rows, values = [], []
  for (x, y), (u, v) in zip(source, target, strict=True):
    rows += [
      [x, y, 1, 0, 0, 0, -u * x, -u * y],
      [0, 0, 0, x, y, 1, -v * x, -v * y],
    ]
    values += [u, v]
  try:
    solved = np.linalg.solve(np.array(rows), np.array(values))
  except np.linalg.LinAlgError:
    raise BadOutline("no area") from None
  return np.append(solved, 1.0).reshape(3, 3)


def rectangle(corners: Outline) -> Outline:
  """The smallest rectangle around corners, from the corner next to the first.

  One of its sides lies on a side of the convex hull (Freeman and Shapira 1975).
  """
  points = np.array(corners)
  best, least = points[:1], math.inf
  for start, end in _hull_sides(corners):
    along = (end - start) / math.dist(start, end)
    axes = np.array([along, (-along[1], along[0])])
    turned = points @ axes.T
    low, high = turned.min(axis=0), turned.max(axis=0)
    area = float(np.prod(high - low))
    if area < least:
      least = area
      found = np.array([
        low, (high[0], low[1]), high, (low[0], high[1])
      ])  # fmt: skip
      best = found @ axes
  if not 0 < least < math.inf:
    raise BadOutline("no area")
  first = int(np.argmin(((best - points[0]) ** 2).sum(axis=1)))
  ordered = np.roll(best, -first, axis=0)
  return tuple((float(x), float(y)) for x, y in ordered)


def upright(corners: Outline) -> Outline:
  """The smallest rectangle around an outline that begins anywhere.

  Its writing is taken to run from left to right, or down, not upside down: the
  first side is the one that points most to the right.
  """
  found = rectangle(corners)
  first = max(range(4), key=lambda i: _rightness(found[i], found[(i + 1) % 4]))
  return (*found[first:], *found[:first])


def _rightness(start: tuple[float, float], end: tuple[float, float]) -> float:
  return (end[0] - start[0]) / max(math.dist(start, end), 1e-9)


def _hull_sides(corners: Outline) -> list[tuple[np.ndarray, np.ndarray]]:
  """Sides of the convex hull (Andrew's monotone chain)."""

  def half(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    chain: list[tuple[float, float]] = []
    for x, y in points:
      while len(chain) > 1:
        (ax, ay), (bx, by) = chain[-2:]
        if (bx - ax) * (y - by) - (by - ay) * (x - bx) > 0:
          break
        chain.pop()
      chain.append((x, y))
    return chain[:-1]

  points = sorted(set(corners))
  hull = half(points) + half(points[::-1])
  return [
    (np.array(hull[i]), np.array(hull[(i + 1) % len(hull)]))
    for i in range(len(hull))
  ]


def hide(image: np.ndarray, hidden: list[Outline]) -> np.ndarray:
  """A copy of uint8 [H, W, 3] whose outlines are blurred beyond reading.

  The blur is as wide as the writing is high, so that a stroke leaves no trace
  but the surface keeps its colours; nothing is made up.
  """
  picture = Image.fromarray(image)
  for corners in hidden:
    try:
      corners = inside(corners, image.shape[:2])
      sides = rectangle(corners)
    except BadOutline:
      continue  # Not in this picture: nothing to hide.
    radius = min(math.dist(sides[0], sides[1]), math.dist(sides[1], sides[2]))
    reach = math.ceil(2 * radius)
    left, top, right, bottom = box(corners)
    area = (
      max(0, math.floor(left) - reach),
      max(0, math.floor(top) - reach),
      min(picture.width, math.ceil(right) + reach),
      min(picture.height, math.ceil(bottom) + reach),
    )
    part = picture.crop(area)
    mask = Image.new("L", part.size)
    ImageDraw.Draw(mask).polygon(
      [(x - area[0], y - area[1]) for x, y in corners], fill=255
    )
    # A little more than the outline: it often cuts strokes off.
    grown = 2 * min(10, max(1, round(radius / 10))) + 1
    mask = mask.filter(ImageFilter.MaxFilter(grown))
    part.paste(part.filter(ImageFilter.GaussianBlur(radius)), mask=mask)
    picture.paste(part, area[:2])
  return np.array(picture)
