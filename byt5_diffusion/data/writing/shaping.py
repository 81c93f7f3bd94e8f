"""A line of text as glyphs with boxes, by HarfBuzz.

  text -> runs of one direction, script, font and posture -> HarfBuzz -> glyphs

HarfBuzz is told script, language and direction. Lengths are in em; x grows to
the right and y upward. A horizontal line's pen starts at the left of its
baseline; a vertical one's at the top of its axis, which goes through the
middles of upright characters. In vertical lines wide characters (Unicode
Standard Annex 11: W and F) stand upright, in the forms that the font has for
it; others lie on their right side.

rasterizers.py has the plainer line that the tasks of words draw.
"""

import functools
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import uharfbuzz as hb

from byt5_diffusion.data import languages
from byt5_diffusion.data import text as texts
from byt5_diffusion.data.writing import (
  bidi,
  glyph_ink,
  rasterizers,
  words,
)
from byt5_diffusion.data.writing import fonts as font_files

RIGHT_TO_LEFT = languages.RIGHT_TO_LEFT
# Above the baseline of letters that lie: half way between the top and the
# bottom of an ideograph's square (0.88 above, 0.12 below).
_MIDDLE = 0.38
# Letters of these join, or hang from one line: nothing is put between them.
UNTRACKED = ("Arab", "Beng", "Deva", "Guru", "Tibt")
# mC4's codes -> BCP 47's.
_LANGUAGES = {"iw": "he", "no": "nb", "und": ""}


class Glyph(NamedTuple):
  """A glyph in its place.

  Attributes:
    font: HarfBuzz's.
    id: of the glyph in it.
    x, y: of its origin.
    lying: turned by a quarter, clockwise.
    start, end: the characters that it stands for, with others of its cluster.
    box: room that lines leave to it, y downward as pixels' is; None if it has
      no ink. It is HarfBuzz's: see glyph_ink.py.
  """

  font: hb.Font
  id: int
  x: float
  y: float
  lying: bool
  start: int
  end: int
  box: rasterizers.Ink | None

  @property
  def ink(self) -> rasterizers.Ink | None:
    """Box of the ink itself, as `box`."""
    extents = (
      None if self.box is None else glyph_ink.extents(self.font, self.id)
    )
    return _placed(extents, self.x, self.y, self.lying)


class Run(NamedTuple):
  """Characters that are shaped by one call of HarfBuzz."""

  start: int
  end: int
  level: int
  font: int
  script: str
  lying: bool


class Line(NamedTuple):
  """A shaped line.

  Attributes:
    text: what it says.
    glyphs: from left to right, or from top to bottom.
    advance: its length along the way of writing.
    vertical: whether it runs from top to bottom.
    missing: whether some character has no glyph.
  """

  text: str
  glyphs: tuple[Glyph, ...]
  advance: float
  vertical: bool

  @property
  def missing(self) -> bool:
    return any(glyph.id == 0 for glyph in self.glyphs)

  def ink(self) -> rasterizers.Ink | None:
    """Room for all the ink; None if there is none."""
    return union(glyph.box for glyph in self.glyphs)


def union(boxes: Iterator[rasterizers.Ink | None]) -> rasterizers.Ink | None:
  """The box of all boxes."""
  found = [box for box in boxes if box is not None]
  if not found:
    return None
  left, top, right, bottom = zip(*found, strict=True)
  return rasterizers.Ink(min(left), min(top), max(right), max(bottom))


def bcp47(language: str, script: str = "") -> str:
  """mC4's code as fonts know it: "iw" -> "he", ("zh", "Hant") -> "zh-Hant"."""
  if language == "zh" and script in ("Hans", "Hant"):
    return f"zh-{script}"
  return _LANGUAGES.get(language, language)


def shape(
  text: str,
  fonts: tuple[font_files.Font, ...],
  *,
  script: str,
  language: str = "und",
  vertical: bool = False,
  tracking: float = 0.0,
  slant: float = 0.0,
) -> Line:
  """Shapes one line.

  Args:
    text: without line breaks.
    fonts: tried in order, for each grapheme cluster.
    script: of the line, ISO 15924; it settles the line's direction.
    language: mC4's code or BCP 47's: letters' forms may depend on it.
    vertical: from top to bottom.
    tracking: between grapheme clusters; scripts whose letters join have none.
    slant: how far a point 1 em above the baseline moves to the right.
  """
  tracking = 0.0 if script in UNTRACKED else tracking
  rtl = script in RIGHT_TO_LEFT and not vertical
  runs = list(_runs(text, rtl, fonts, script, vertical))
  glyphs: list[Glyph] = []
  pen = 0.0
  for run in runs if vertical else _visual_order(runs):
    font = _hb_font(fonts[run.font], slant)
    buffer = _shaped(text, run, font, language, vertical, tracking != 0)
    placed, pen = _place(buffer, run, font, pen, vertical, tracking)
    glyphs.extend(placed)
  return Line(text, tuple(glyphs), pen, vertical)


def _visual_order(runs: list[Run]) -> list[Run]:
  if all(run.level == 0 for run in runs):
    return runs
  order = bidi.visual_order(
    [bidi.Run(i, i + 1, run.level) for i, run in enumerate(runs)]
  )
  return [runs[place.start] for place in order]


@functools.lru_cache(maxsize=2048)
def _hb_font(font: font_files.Font, slant: float) -> hb.Font:
  # Never changed after it is made, so threads may share it.
  made = hb.Font(font_files.face(font))
  if font.variations:
    made.set_variations(dict(font.variations))
  if slant:
    made.synthetic_slant = slant
  return made


# --- Runs ---------------------------------------------------------------------


@functools.lru_cache(maxsize=65536)
def stands(cluster: str) -> bool:
  """Whether a grapheme cluster stands upright in vertical lines."""
  return unicodedata.east_asian_width(cluster[0]) in "WF"


def _runs(
  text: str,
  rtl: bool,
  fonts: tuple[font_files.Font, ...],
  script: str,
  vertical: bool,
) -> Iterator[Run]:
  """Longest runs of one level, script, font and posture, in order."""
  levels = bidi.levels(text, rtl)
  clusters = texts.graphemes(text)
  scripts = _scripts(clusters, script)
  start, index = 0, 0
  last: tuple[int, int, str, bool] | None = None
  for cluster, written in zip(clusters, scripts, strict=True):
    font = 0
    if len(fonts) > 1:
      font = rasterizers.font_of(cluster, last[1] if last else 0, fonts)
    here = (levels[index], font, written, vertical and not stands(cluster))
    if last is not None and here != last:
      yield Run(start, index, *last)
      start = index
    last = here
    index += len(cluster)
  if last is not None:
    yield Run(start, index, *last)


def _scripts(clusters: list[str], script: str) -> list[str]:
  """Each cluster's own script; of common ones, that of those before them."""
  own = {"Jpan": "Hani", "Hans": "Hani", "Hant": "Hani", "Kore": "Hang"}
  last = own.get(script, script)
  found = []
  for cluster in clusters:
    written = words.script_of_character(cluster[0])
    if written not in (words.COMMON, words.UNKNOWN):
      last = written
    found.append(last)
  return found


# --- HarfBuzz -----------------------------------------------------------------


def _shaped(
  text: str, run: Run, font: hb.Font, language: str, vertical: bool, loose: bool
) -> hb.Buffer:
  buffer = hb.Buffer()
  # The whole text, so that letters join across a change of font.
  buffer.add_str(text, run.start, run.end - run.start)
  buffer.script = run.script
  buffer.language = bcp47(language) or "und"
  if vertical and not run.lying:
    buffer.direction = "ttb"
  else:
    buffer.direction = "rtl" if run.level % 2 else "ltr"
  # A ligature between spaced letters would stick out.
  features = {"liga": False, "clig": False} if loose else {}
  hb.shape(font, buffer, features)
  return buffer


def _place(
  buffer: hb.Buffer,
  run: Run,
  font: hb.Font,
  pen: float,
  vertical: bool,
  tracking: float,
) -> tuple[list[Glyph], float]:
  """The run's glyphs from `pen` on, and where the pen is then."""
  em = font.face.upem
  infos, positions = buffer.glyph_infos, buffer.glyph_positions
  ends = _ends([info.cluster for info in infos], run.end)
  placed = []
  for number, (info, position) in enumerate(zip(infos, positions, strict=True)):
    along, across = position.x_offset / em, position.y_offset / em
    if not vertical:
      x, y, step = pen + along, across, position.x_advance / em
    elif run.lying:
      x, y, step = across - _MIDDLE, -pen - along, position.x_advance / em
    else:
      x, y, step = along, -pen + across, -position.y_advance / em
    box = _placed(_extents(font, info.codepoint), x, y, run.lying)
    end = ends[info.cluster]
    placed.append(
      Glyph(font, info.codepoint, x, y, run.lying, info.cluster, end, box)
    )
    pen += step
    last = number + 1 == len(infos)
    if tracking and (last or infos[number + 1].cluster != info.cluster):
      pen += tracking
  return placed, pen


def _ends(clusters: list[int], end: int) -> dict[int, int]:
  """{first character of a cluster: behind its last one}."""
  starts = sorted(set(clusters))
  return dict(zip(starts, [*starts[1:], end], strict=True))


def _placed(
  extents: glyph_ink.Extents | None, x: float, y: float, lying: bool
) -> rasterizers.Ink | None:
  if extents is None:
    return None
  left, top, right, bottom = extents
  if lying:  # (u, v) -> (v, -u), y upward.
    return rasterizers.Ink(x + bottom, -y + left, x + top, -y + right)
  return rasterizers.Ink(x + left, -y - top, x + right, -y - bottom)


@functools.lru_cache(maxsize=65536)
def _extents(font: hb.Font, glyph: int) -> glyph_ink.Extents | None:
  """What HarfBuzz says."""
  em = font.face.upem
  box = font.get_glyph_extents(glyph)
  # Of a slanted font, a blank glyph has a size below nought.
  if box is None or box.width <= 0 or box.height >= 0:
    return None
  left, top = box.x_bearing / em, box.y_bearing / em
  return left, top, left + box.width / em, top + box.height / em


def draw(
  glyphs: Sequence[tuple[Glyph, float, float]],
  height: int,
  width: int,
  scale: float,
) -> np.ndarray:
  """Coverage uint8 [height, width] of glyphs, without hinting.

  Args:
    glyphs: each with the place of its line's pen, in pixels, y downward.
    height, width: in pixels.
    scale: pixels per em.
  """
  raster = hb.RasterDraw()
  raster.extents = hb.RasterExtents(0, 0, width, height, 0)
  for glyph, x, y in glyphs:
    unit = scale / glyph.font.face.upem
    turn = (0.0, -unit, unit, 0.0) if glyph.lying else (unit, 0.0, 0.0, unit)
    raster.transform = (
      *turn,
      x + glyph.x * scale,
      height - y + glyph.y * scale,
    )
    raster.draw_glyph(glyph.font, glyph.id)
  image = raster.render()
  rows = np.frombuffer(image.buffer, np.uint8)
  # Rows come from the bottom up.
  return rows.reshape(height, image.extents.stride)[::-1, :width]
