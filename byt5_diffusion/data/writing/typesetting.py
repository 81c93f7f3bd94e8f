"""Lines in one style, horizontal or vertical, with the box of each part.

  lines = shape(string, fonts of the style)            shaping.py
  scale = min(style.size * height, what fits the width, what fits the height)
  image = paper + (ink - paper) * coverage

Horizontal lines lie one below the other; vertical ones stand from right to
left. Everything is a function of the arguments: the same ones give the same
pixels, in any thread and on any machine that has the same fonts.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import regex

from byt5_diffusion.data import annotated
from byt5_diffusion.data import text as texts
from byt5_diffusion.data.writing import (
  font_styles,
  fonts,
  rasterizers,
  shaping,
  typography,
  words,
)

VERTICAL = ("Hans", "Hant", "Jpan", "Kore")
ALIGNMENTS = ("left", "center", "right")
Color = tuple[int, int, int]
_WORD = re.compile(r"\S+")
# What stays on one line: "8 769", "12 kg", "9,50 €".
_KEPT = regex.compile(r"\S+(?:(?:(?<=\d)\s+|\s+(?=\p{Sc}))\S+)*")
_GAP = 0.08  # em, the least between the ink of two lines.
# The least that stays on one line without spaces: a grapheme cluster or a
# number or a Latin word, with opening marks before it, closing ones behind it,
# and Thai and Lao vowels on the side where their consonant stands.
_UNBROKEN = regex.compile(
  r"\s*[\p{Ps}\p{Pi}]*(?:[\p{Latin}\p{Nd}.,:/-]+|[เแโใไເແໂໃໄ]*\X)"
  r"[\p{Pe}\p{Pf}\p{Po}%ー々ぁぃぅぇぉっゃゅょァィゥェォッャュョะาๅๆະາຽໆ]*\s*"
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Style:
  """How lines look.

  Attributes:
    font: their font; characters that it lacks come from others.
    size: of an em, in shares of the picture's height; less if the lines do not
      fit.
    tracking: between letters, in em; scripts whose letters join have none.
    leading: from baseline to baseline in em; more where ink would touch.
    alignment: of lines to each other, and of all in the picture; of vertical
      ones "left" is the top.
    vertical: from top to bottom, the next line to the left.
    slant: of upright letters: how far 1 em above the baseline goes right.
    ink, paper: colours, red, green, blue to 255.
    height_share: where the lines stand in the room that is left across them:
      0 at the top (vertical: at the right), 1 at the other end.
    margin: pixels without ink on each side.
    min_size: pixels; smaller letters raise typography.Illegible.
  """

  font: fonts.Font
  size: float = 0.3
  tracking: float = 0.0
  leading: float = 1.2
  alignment: str = "left"
  vertical: bool = False
  slant: float = 0.0
  ink: Color = (0, 0, 0)
  paper: Color = (255, 255, 255)
  height_share: float = 0.5
  margin: int = 2
  min_size: float = 8.0


class Set(NamedTuple):
  """A line in its place: its pen in pixels, y downward."""

  line: shaping.Line
  x: int
  y: int


class Composition(NamedTuple):
  """A picture of lines.

  Attributes:
    image: uint8 [H, W, 3].
    lines: in their places.
    scale: pixels per em.
    leading: from baseline to baseline, in em.
  """

  image: np.ndarray
  lines: tuple[Set, ...]
  scale: float
  leading: float


def compose(
  strings: Sequence[str],
  script: str,
  style: Style,
  height: int,
  width: int,
  *,
  language: str = "und",
) -> Composition:
  """Sets and draws lines.

  Args:
    strings: the lines, each with some ink.
    script: of their writing, ISO 15924.
    style: how they look.
    height, width: of the picture, in pixels.
    language: mC4's code or BCP 47's.

  Raises:
    typography.MissingGlyph, typography.Illegible, typography.CannotDraw: these
      lines cannot be drawn so.
  """
  lines = [_shape(string, script, style, language) for string in strings]
  inks = [_ink(line) for line in lines]
  leading = max(style.leading, _least_leading(inks, style.vertical))
  pens = _pens(lines, leading, style)
  whole = shaping.union(
    rasterizers.Ink(box.left + x, box.top + y, box.right + x, box.bottom + y)
    for box, (x, y) in zip(inks, pens, strict=True)
  )
  assert whole is not None
  scale = _scale(whole, style, height, width, len(pens))
  left, top = _corner(whole, style, scale, height, width)
  # Whole pixels, so that equal letters of a column or line look equal.
  placed = tuple(
    Set(line, round(left + x * scale), round(top + y * scale))
    for line, (x, y) in zip(lines, pens, strict=True)
  )
  glyphs = [
    (glyph, item.x, item.y) for item in placed for glyph in item.line.glyphs
  ]
  coverage = shaping.draw(glyphs, height, width, scale)
  image = typography.blend(coverage, np.array(style.ink), np.array(style.paper))
  return Composition(image, placed, scale, leading)


def unbroken(text: str) -> list[str]:
  """Text without spaces between words, in the least parts of a line."""
  return _UNBROKEN.findall(text)


def wrap(text: str, script: str, per_line: int) -> list[tuple[int, int]]:
  """Where lines of about the same length begin and end; spaces between go.

  Args:
    text: one string.
    script: of its writing; it says where lines may end.
    per_line: grapheme clusters, which one long word may exceed.
  """
  if script in words.UNSPACED:
    places = [match.span() for match in _UNBROKEN.finditer(text)]
  else:
    places = [match.span() for match in _KEPT.finditer(text)]
  total = len(texts.graphemes(text))
  count = min(len(places), math.ceil(total / max(1, per_line)))
  lines: list[tuple[int, int]] = []
  for start, end in places:
    # The line that the middle of this word would be in, were all equal.
    number = int((start + end) / 2 * count / max(1, len(text)))
    if lines and number < len(lines):
      lines[-1] = (lines[-1][0], end)
    else:
      lines.append((start, end))
  return [
    (end - len(text[start:end].lstrip()), start + len(text[start:end].rstrip()))
    for start, end in lines
    if text[start:end].strip()
  ]


def per_line(style: Style, script: str, height: int, width: int) -> int:
  """Grapheme clusters of a line that fits a picture at the style's size."""
  em = style.size * height
  advance = (1.0 if script in VERTICAL else 0.6) + style.tracking
  room = (height if style.vertical else width) - 2 * style.margin - 2
  return max(1, int(room / (em * advance)))


def _shape(
  string: str, script: str, style: Style, language: str
) -> shaping.Line:
  chosen: tuple[fonts.Font, ...] = (style.font,)
  if rasterizers.lacking(string, chosen):
    chosen += font_styles.fallbacks(script)
    if missing := rasterizers.lacking(string, chosen):
      named = ", ".join(f"U+{ord(c):04X} {c!r}" for c in missing[:5])
      raise typography.MissingGlyph(
        f"Script {script}: no glyph for {named} in {string!r}."
      )
  line = shaping.shape(
    string,
    chosen,
    script=script,
    language=language,
    vertical=style.vertical,
    tracking=style.tracking,
    slant=style.slant,
  )
  if line.missing:
    raise typography.MissingGlyph(
      f"Script {script}: {style.font.path} has no glyph for a part of "
      f"{string!r}."
    )
  return line


def _ink(line: shaping.Line) -> rasterizers.Ink:
  ink = line.ink()
  if ink is None:
    raise typography.CannotDraw(f"{line.text!r} leaves no ink.")
  return ink


def _least_leading(inks: Sequence[rasterizers.Ink], vertical: bool) -> float:
  """The least from line to line, in em, for which no ink touches another's."""
  if vertical:
    steps = [b.right - a.left for a, b in itertools.pairwise(inks)]
  else:
    steps = [a.bottom - b.top for a, b in itertools.pairwise(inks)]
  return max(steps, default=0.0) + _GAP


def _pens(
  lines: Sequence[shaping.Line], leading: float, style: Style
) -> list[tuple[float, float]]:
  """Each line's pen in em, y downward."""
  longest = max(line.advance for line in lines)
  share = ALIGNMENTS.index(style.alignment) / 2
  pens = []
  for number, line in enumerate(lines):
    along, across = share * (longest - line.advance), number * leading
    pens.append((-across, along) if style.vertical else (along, across))
  return pens


def _scale(
  ink: rasterizers.Ink, style: Style, height: int, width: int, lines: int
) -> float:
  """Pixels per em that leave the margin free, and two pixels to round with."""
  room = 2 * style.margin + 2
  scale = min(
    style.size * height,
    (width - room) / (ink.right - ink.left),
    (height - room) / (ink.bottom - ink.top),
  )
  if scale < style.min_size:
    raise typography.Illegible(
      f"{lines} lines fit {height}x{width} pixels only at {scale:.1f} pixels "
      f"per em, less than {style.min_size}."
    )
  return scale


def _corner(
  ink: rasterizers.Ink, style: Style, scale: float, height: int, width: int
) -> tuple[float, float]:
  """Where the first line's origin is, in pixels."""
  free_x = width - 2 * style.margin - 2 - (ink.right - ink.left) * scale
  free_y = height - 2 * style.margin - 2 - (ink.bottom - ink.top) * scale
  share_x = ALIGNMENTS.index(style.alignment) / 2
  share_y = style.height_share
  if style.vertical:
    share_x, share_y = 1 - style.height_share, share_x
  return (
    style.margin + 1 + share_x * free_x - ink.left * scale,
    style.margin + 1 + share_y * free_y - ink.top * scale,
  )


# --- What is where ----------------------------------------------------------


def regions(
  composition: Composition,
  spans: Sequence[tuple[int, int] | None],
  labels: Sequence[str] = ("line", "word", "glyph"),
) -> tuple[annotated.Region, ...]:
  """Boxes of the lines, then of all words, then of all grapheme clusters.

  Args:
    composition: what was drawn.
    spans: where the caption has each line, in bytes.
    labels: which of the three are wanted.
  """
  found: list[annotated.Region] = []
  for label in ("line", "word", "glyph"):
    if label in labels:
      for item, span in zip(composition.lines, spans, strict=True):
        found += _regions(item, composition.scale, span, label)
  return tuple(found)


def _regions(
  item: Set, scale: float, span: tuple[int, int] | None, label: str
) -> Iterator[annotated.Region]:
  text = item.line.text
  for (start, end), glyphs in _parts(item.line, label):
    ink = shaping.union(glyph.ink for glyph in glyphs)
    if ink is None:
      continue
    box = (
      item.x + ink.left * scale,
      item.y + ink.top * scale,
      item.x + ink.right * scale,
      item.y + ink.bottom * scale,
    )
    inside = None
    if span is not None:
      before = span[0] + len(text[:start].encode("utf-8"))
      inside = (before, before + len(text[start:end].encode("utf-8")))
    yield annotated.Region(
      box=box,
      label=label,
      text=text[start:end],
      span=inside,
      vertical=item.line.vertical,
    )


def _parts(
  line: shaping.Line, label: str
) -> list[tuple[tuple[int, int], list[shaping.Glyph]]]:
  """((start, end), glyphs) of each part, in the order of the text."""
  if label == "line":
    return [((0, len(line.text)), list(line.glyphs))]
  clusters: dict[int, list[shaping.Glyph]] = {}
  for glyph in line.glyphs:
    clusters.setdefault(glyph.start, []).append(glyph)
  if label == "word":
    places = [match.span() for match in _WORD.finditer(line.text)]
  else:
    # HarfBuzz's clusters may be parts of a grapheme cluster, or several.
    lengths = map(len, texts.graphemes(line.text))
    edges = [
      edge
      for edge in itertools.accumulate(lengths, initial=0)
      if edge in clusters or edge == len(line.text)
    ]
    places = list(itertools.pairwise(edges))
  return [
    (
      (start, end),
      [g for index in range(start, end) for g in clusters.get(index, ())],
    )
    for start, end in places
  ]


def numbers(
  composition: Composition, style: Style, script: str
) -> dict[str, float]:
  """annotated.STYLE of what was drawn."""
  font = font_styles.style_of(style.font)
  tracked = style.tracking if script not in shaping.UNTRACKED else 0.0
  found: dict[str, float] = {
    "family": font_styles.family_number(font.family),
    "weight": font.weight,
    "slant": float(font.italic or style.slant > 0),
    "size": composition.scale / composition.image.shape[0],
    "tracking": tracked,
    "leading": composition.leading,
    "right_to_left": float(script in shaping.RIGHT_TO_LEFT),
    "vertical": float(style.vertical),
  }
  for name, color in (("ink", style.ink), ("paper", style.paper)):
    for channel, value in zip(("red", "green", "blue"), color, strict=True):
      found[f"{name}_{channel}"] = value / 255
  return found
