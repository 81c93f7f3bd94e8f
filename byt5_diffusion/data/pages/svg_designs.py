"""Made-up vector graphics with text: the SVG, and where each word of it is.

Text is shaped by HarfBuzz (shaping.py), so boxes are the ink's own. It is
written as <text> of one script and one font where that is certain to be drawn
alike by every renderer, and as outlines where not: vertical lines, text along
a circle, lines that mix fonts. Groups are marked with the text that they hold.
"""

import dataclasses
import functools
import html
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import uharfbuzz as hb

from byt5_diffusion.data import annotated
from byt5_diffusion.data.pages import (
  page_designs,
  page_writer,
)
from byt5_diffusion.data.writing import (
  font_styles,
  fonts,
  rasterizers,
  shaping,
)

Matrix = tuple[float, float, float, float, float, float]
_MAX_TEXTS = 10
IDENTITY: Matrix = (1.0, 0.0, 0.0, 1.0, 0.0, 0.0)
# Letters that stand alone, and may be set along a curve one by one.
LOOSE = frozenset(("Armn", "Cyrl", "Geor", "Grek", "Hans", "Hant", "Hebr"))
LOOSE |= {"Jpan", "Kore", "Latn"}


class Written(NamedTuple):
  """How a line is written: size in the view box's units, paint, weight."""

  size: float
  fill: str
  bold: bool


class CannotPlace(ValueError):
  """A text that has no glyphs here, or no room; another one may."""


def compose(outer: Matrix, inner: Matrix) -> Matrix:
  """The matrix of SVG that does `inner` first."""
  a, b, c, d, e, f = outer
  g, h, i, j, k, m = inner
  return (
    a * g + c * h,
    b * g + d * h,
    a * i + c * j,
    b * i + d * j,
    a * k + c * m + e,
    b * k + d * m + f,
  )


def turn(degrees: float, x: float, y: float) -> Matrix:
  """A turn about a point, clockwise as one sees it."""
  cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
  return (cos, sin, -sin, cos, x - cos * x + sin * y, y - sin * x - cos * y)


def apply(matrix: Matrix, x: float, y: float) -> tuple[float, float]:
  a, b, c, d, e, f = matrix
  return (a * x + c * y + e, b * x + d * y + f)


@dataclasses.dataclass(kw_only=True)
class Canvas:
  """An SVG file in the making.

  Attributes:
    width, height: of its view box.
    style, writer: looks and words.
    parts: what is in it so far.
    regions: of all text, in the view box's units.
    written: {line: how it is written}, when it came first.
    quoted: what a caption quotes.
    ink, paper: colours of the headline, which is the first one quoted.
    numbers: of annotated.STYLE.
  """

  width: float
  height: float
  style: page_designs.Style
  writer: page_writer.Writer
  kind: str = ""
  parts: list[str] = dataclasses.field(default_factory=list)
  regions: list[annotated.Region] = dataclasses.field(default_factory=list)
  written: dict[str, Written] = dataclasses.field(default_factory=dict)
  quoted: list[str] = dataclasses.field(default_factory=list)
  ink: page_designs.Color = (0, 0, 0)
  paper: page_designs.Color = (255, 255, 255)
  numbers: dict[str, float] = dataclasses.field(default_factory=dict)
  _ids: int = 0

  def add(self, markup: str) -> None:
    self.parts.append(markup)

  def name(self) -> str:
    """A new id."""
    self._ids += 1
    return f"d{self._ids}"

  def fonts(self, bold: bool) -> tuple[fonts.Font, ...]:
    family = self.style.head
    script = self.writer.script
    regular = [
      font
      for font in font_styles.variants(script)
      if font.style == ("bold" if bold and family.bold else "regular")
      and page_designs.family_of(font) == family.name
    ]
    return (*regular, *font_styles.fallbacks(script))

  def shaped(self, text: str, bold: bool, vertical: bool) -> shaping.Line:
    line = shaping.shape(
      page_writer.seen(text),
      self.fonts(bold),
      script=self.writer.script,
      language=self.writer.language,
      vertical=vertical,
    )
    if line.missing or line.ink() is None:
      raise CannotPlace(text)
    return line

  def fitting(self, draw: Callable[[], str], size: float, most: float) -> str:
    """A text that fits `most` at two thirds of a size; else the shortest."""
    texts = []
    for _ in range(_MAX_TEXTS):
      text = draw()
      texts.append((self.shaped(text, True, False).advance, text))
      if texts[-1][0] * size * 2 / 3 <= most:
        return text
    return min(texts)[1]

  def text(
    self,
    text: str,
    x: float,
    y: float,
    size: float,
    fill: str,
    *,
    anchor: str = "middle",
    most: float = math.inf,
    bold: bool = True,
    matrix: Matrix = IDENTITY,
    vertical: bool = False,
    outlines: bool = False,
    label: str = "line",
  ) -> float:
    """Writes a line; returns the size that it got, at most `size`.

    Args:
      x, y: of the baseline's start, middle or end (`anchor`); of a vertical
        line, the top of its axis.
      most: length that the line may have.
      fill: a colour or paint of SVG.
      matrix: what happens to it then.
      outlines: as paths, not as <text>.
    """
    line = self.shaped(text, bold, vertical)
    size = min(size, most / max(line.advance, 1e-6))
    if not vertical:
      x -= {"start": 0.0, "middle": 0.5, "end": 1.0}[anchor] * (
        line.advance * size
      )
    elif anchor == "middle":
      y -= line.advance * size / 2
    placed = [(glyph, (size, 0.0, 0.0, size, x, y)) for glyph in line.glyphs]
    plain = not vertical and not outlines
    if plain and not rasterizers.lacking(line.text, self.fonts(bold)[:1]):
      self.add(self._text_element(line.text, x, y, size, fill, matrix, bold))
    else:
      self.add(_outlines(line.text, placed, fill, matrix))
    self._note(line, placed, matrix, label)
    self.written.setdefault(text, Written(size, fill, bold))
    return size

  def _text_element(
    self,
    text: str,
    x: float,
    y: float,
    size: float,
    fill: str,
    matrix: Matrix,
    bold: bool,
  ) -> str:
    weight = "bold" if bold and self.style.head.bold else "normal"
    moved = "" if matrix == IDENTITY else f' transform="{_css(matrix)}"'
    if self.writer.rtl:  # Marks that no one sees hold the ends to the right.
      text = f"\u200f{text}\u200f"
    return (
      f'<text x="{x:.3f}" y="{y:.3f}" font-family="{self.style.head.name}" '
      f'font-size="{size:.3f}" font-weight="{weight}" fill="{fill}" '
      f'xml:space="preserve"{moved}>{html.escape(text)}</text>'
    )

  def circle(
    self,
    text: str,
    x: float,
    y: float,
    radius: float,
    size: float,
    fill: str,
    *,
    below: bool = False,
    most: float = 150.0,
  ) -> None:
    """Writes along a circle: over its top, or along its bottom.

    Args:
      x, y, radius: of the circle that is the baseline.
      most: degrees that it may fill.
    """
    line = self.shaped(text, True, False)
    if below:
      radius += 0.7 * size
    length = math.radians(most) * radius
    size = min(size, length / line.advance)
    placed = []
    for start, end, left, right in _clusters(line):
      angle = ((left + right) / 2 - line.advance / 2) * size / radius
      spot = (
        x + radius * math.sin(angle),
        y + (radius if below else -radius) * math.cos(angle),
      )
      angle = -angle if below else angle
      cos, sin = math.cos(angle) * size, math.sin(angle) * size
      own = compose(
        (cos, sin, -sin, cos, *spot), (1, 0, 0, 1, -(left + right) / 2, 0)
      )
      placed += [(g, own) for g in line.glyphs if start <= g.start < end]
    self.add(_outlines(line.text, placed, fill, IDENTITY))
    self._note(line, placed, IDENTITY, "line")
    self.written.setdefault(text, Written(size, fill, True))

  def _note(
    self,
    line: shaping.Line,
    placed: Sequence[tuple[shaping.Glyph, Matrix]],
    matrix: Matrix,
    label: str,
  ) -> None:
    """Regions of the line and of its words."""
    spans = [(label, 0, len(line.text))]
    position = 0
    for word in line.text.split(" "):
      spans.append(("word", position, position + len(word)))
      position += len(word) + 1
    for name, start, end in spans:
      points = [
        apply(own, px, py)
        for glyph, own in placed
        if start <= glyph.start < end and (ink := glyph.ink) is not None
        for px in (ink.left, ink.right)
        for py in (ink.top, ink.bottom)
      ]
      if not points:
        continue
      xs, ys = zip(*points, strict=True)
      left, top, right, bottom = min(xs), min(ys), max(xs), max(ys)
      corners = ((left, top), (right, top), (right, bottom), (left, bottom))
      polygon = tuple(apply(matrix, px, py) for px, py in corners)
      xs, ys = zip(*polygon, strict=True)
      if min(*xs, *ys) < 0 or max(xs) > self.width or max(ys) > self.height:
        raise CannotPlace(line.text)
      self.regions.append(
        annotated.Region(
          label=name,
          text=line.text[start:end],
          box=(min(xs), min(ys), max(xs), max(ys)),
          polygon=() if matrix == IDENTITY else polygon,
          vertical=line.vertical,
        )
      )

  def headed(self) -> int:
    """How many of what is quoted, from the first on, have a headline's look."""
    ink, count = page_designs.css(self.ink), 0
    for text in self.quoted:
      if self.written[text].fill != ink or not self.written[text].bold:
        break
      count += 1
    return count

  def svg(self) -> str:
    """The whole file."""
    # Advances are the font's own, whatever a renderer's habits.
    rendering = 'direction="ltr" text-rendering="geometricPrecision"'
    return (
      '<svg xmlns="http://www.w3.org/2000/svg" '
      f'viewBox="0 0 {self.width:g} {self.height:g}" '
      f'width="{self.width:g}" height="{self.height:g}" {rendering}>'
      + "\n".join(self.parts)
      + "</svg>"
    )


def _css(matrix: Matrix) -> str:
  return "matrix(" + " ".join(f"{n:.6g}" for n in matrix) + ")"


def _clusters(
  line: shaping.Line,
) -> list[tuple[int, int, float, float]]:
  """(start, end, left, right in em) of each cluster, from left to right."""
  starts: dict[int, tuple[int, float]] = {}
  for glyph in line.glyphs:
    if glyph.start not in starts:
      starts[glyph.start] = (glyph.end, glyph.x)
  ordered = sorted(starts.items(), key=lambda item: item[1][1])
  found = []
  for i, (start, (end, left)) in enumerate(ordered):
    after = ordered[i + 1][1][1] if i + 1 < len(ordered) else line.advance
    found.append((start, end, left, after))
  return found


def _outlines(
  text: str,
  placed: Sequence[tuple[shaping.Glyph, Matrix]],
  fill: str,
  matrix: Matrix,
) -> str:
  """Glyphs as paths."""
  moved = "" if matrix == IDENTITY else f' transform="{_css(matrix)}"'
  paths = []
  for glyph, own in placed:
    drawn = _outline(glyph.font, glyph.id)
    if not drawn:
      continue
    unit = 1 / glyph.font.face.upem
    inner: Matrix = (unit, 0.0, 0.0, -unit, glyph.x, -glyph.y)
    if glyph.lying:
      inner = (0.0, unit, unit, 0.0, glyph.x, -glyph.y)
    paths.append(f'<path transform="{_css(compose(own, inner))}" d="{drawn}"/>')
  label = html.escape(text, quote=True)
  return f'<g fill="{fill}" aria-label="{label}"{moved}>{"".join(paths)}</g>'


@functools.lru_cache(maxsize=8192)
def _outline(font: hb.Font, glyph: int) -> str:
  """A glyph's path, in font units, y upward."""
  steps: list[str] = []

  def note(letter: str, *numbers: float) -> None:
    steps.append(letter + " ".join(f"{n:g}" for n in numbers))

  functions = hb.DrawFuncs()
  functions.set_move_to_func(lambda x, y, _: note("M", x, y))
  functions.set_line_to_func(lambda x, y, _: note("L", x, y))
  functions.set_quadratic_to_func(lambda *n: note("Q", *n[:4]))
  functions.set_cubic_to_func(lambda *n: note("C", *n[:6]))
  functions.set_close_path_func(lambda _: note("Z"))
  font.draw_glyph(glyph, functions, None)
  return "".join(steps)


def paint(canvas: Canvas, one: str, other: str) -> str:
  """A gradient from one colour to another, defined and named."""
  name = canvas.name()
  angle = canvas.writer.pick((0, 30, 60, 90))
  canvas.add(
    f'<defs><linearGradient id="{name}" gradientTransform="rotate({angle})">'
    f'<stop offset="0" stop-color="{one}"/>'
    f'<stop offset="1" stop-color="{other}"/></linearGradient></defs>'
  )
  return f"url(#{name})"


def background(canvas: Canvas, color: str) -> None:
  """Fills the whole picture."""
  canvas.add(
    f'<rect width="{canvas.width:g}" height="{canvas.height:g}" '
    f'fill="{color}"/>'
  )


def star(x: float, y: float, radius: float, points: int, depth: float) -> str:
  """A star's corners for <polygon>."""
  corners = []
  for i in range(2 * points):
    length = radius * (depth if i % 2 else 1)
    angle = math.pi * i / points
    corners.append(
      f"{x + length * math.sin(angle):.2f},{y - length * math.cos(angle):.2f}"
    )
  return " ".join(corners)


def shares(rng: np.random.Generator, count: int) -> np.ndarray:
  """Positive numbers that sum to one, none of them tiny."""
  drawn = rng.uniform(0.4, 1.6, count)
  return np.asarray(drawn / drawn.sum())
