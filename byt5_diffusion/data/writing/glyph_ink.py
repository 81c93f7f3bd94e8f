"""Where a glyph's ink ends: the extremes of its outline.

HarfBuzz counts the control points of curves to a glyph's extents if a font has
PostScript outlines, and believes other fonts' tables, which may do likewise:
boxes that are too large by up to an eighth of an em (Noto Serif CJK).
"""

import functools
from typing import Any

import numpy as np
import uharfbuzz as hb

# Left, top, right, bottom in em, y upward.
Extents = tuple[float, float, float, float]


@functools.lru_cache(maxsize=65536)
def extents(font: hb.Font, glyph: int) -> Extents | None:
  """Box of a glyph's outline at the origin; None if it has no area."""
  points, curves = _outline(font, glyph)
  ends = np.array(points, np.float64).reshape(-1, 2)
  if len(curves):
    ends = np.concatenate([ends, *_extremes(np.array(curves, np.float64))])
  if not len(ends):
    return None
  left, bottom = (ends.min(axis=0) / font.face.upem).tolist()
  right, top = (ends.max(axis=0) / font.face.upem).tolist()
  return (left, top, right, bottom) if left < right and bottom < top else None


def _outline(
  font: hb.Font, glyph: int
) -> tuple[list[tuple[float, float]], list[tuple[float, ...]]]:
  """(points that the outline goes through, its cubic Bezier curves)."""
  points: list[tuple[float, float]] = []
  curves: list[tuple[float, ...]] = []
  pen = (0.0, 0.0)

  def move(x: float, y: float, _: Any) -> None:
    nonlocal pen  # Contours of one point leave no ink.
    pen = (x, y)

  def line(x: float, y: float, _: Any) -> None:
    nonlocal pen
    if (x, y) != pen:
      points.extend((pen, (x, y)))
    pen = (x, y)

  def cubic(*numbers: Any) -> None:
    curves.append((*pen, *numbers[:6]))
    line(numbers[4], numbers[5], None)

  def quadratic(*numbers: Any) -> None:
    (x, y), (u, v, to_x, to_y) = pen, numbers[:4]
    # The same curve, one degree higher.
    cubic(
      *((x + 2 * u) / 3, (y + 2 * v) / 3),
      *((to_x + 2 * u) / 3, (to_y + 2 * v) / 3),
      *(to_x, to_y),
    )

  functions = hb.DrawFuncs()
  functions.set_move_to_func(move)
  functions.set_line_to_func(line)
  functions.set_quadratic_to_func(quadratic)
  functions.set_cubic_to_func(cubic)
  font.draw_glyph(glyph, functions, None)
  return points, curves


def _extremes(curves: np.ndarray) -> list[np.ndarray]:
  """Points of curves [N, 8] where x or y turns: B'(t) = 0, 0 < t < 1."""
  p0, p1, p2, p3 = curves.reshape(-1, 4, 2).swapaxes(0, 1)
  a, b, c = p3 - p0 + 3 * (p1 - p2), 2 * (p0 - 2 * p1 + p2), p1 - p0
  root = np.sqrt(np.maximum(b * b - 4 * a * c, 0))
  # The quotients of both signs, without loss where a is small.
  q = -0.5 * (b + np.where(b < 0, -root, root))
  found = []
  with np.errstate(divide="ignore", invalid="ignore"):
    for t in (q / a, c / q):
      t = np.where((t > 0) & (t < 1), t, 0.0)  # Else the curve's start.
      for axis in (0, 1):
        at = t[:, axis, None]
        found.append(
          (1 - at) ** 3 * p0
          + 3 * (1 - at) ** 2 * at * p1
          + 3 * (1 - at) * at**2 * p2
          + at**3 * p3
        )
  return found
