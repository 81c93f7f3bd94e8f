"""Pictures of text in any script, right in shape, never clipped.

  line = backend(text, fonts of the script)      rasterizers.py
  size = min(font_size, what fits the width, what fits the height)
  image = paper + (ink - paper) * coverage

Everything is a function of (text, script, rng): the same arguments give the
same pixels, in any thread and on any machine that has the same fonts.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np
import uharfbuzz as hb

from byt5_diffusion.data.writing import fonts as font_files
from byt5_diffusion.data.writing import (
  rasterizers,
  words,
)

RIGHT_TO_LEFT = ("Arab", "Hebr")
_LUMA = np.array([0.299, 0.587, 0.114])  # Rec. 601
_SLACK = 1 / 64  # Pixels; drawing rounds coordinates (cairo to 1 / 256).
_MIN_CONTRAST = 100.0  # Luma between ink and paper, of 255.
_UNUSED = np.random.default_rng(0)  # Nothing is ever drawn from it.
BLACK, WHITE = np.zeros(3), np.full(3, 255.0)


class CannotDraw(ValueError):
  """This text has no picture here; another one may."""


class MissingGlyph(CannotDraw):
  """No font of the script has some character of the text."""


class Illegible(CannotDraw):
  """The text would have to be smaller than min_font_size."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Renderer:
  """Draws one line of text into a picture of fixed size.

  With the defaults there is one font per script, black on white, nothing
  random, and `render` needs no rng.

  Attributes:
    height, width: of the picture, in pixels.
    backend: "harfbuzz", or "pango" or "skia" (see rasterizers.py).
    font_size: pixels per em; None = 0.6 height. Text that doesn't fit is drawn
      smaller.
    min_font_size: text that would be smaller raises `Illegible`.
    margin: pixels without ink on each side.
    align: "start" (right for right-to-left scripts), "left", "center".
    num_fonts: pick among that many fonts of the script; 1 = the best.
    styles: pick among these styles, for example ("regular", "bold").
    random_colors: any ink on any paper with enough contrast.
    size_jitter: size is multiplied by 1 - U(0, size_jitter).
    offset_jitter: the line moves by up to that share of its free room.
  """

  height: int
  width: int
  backend: str = "harfbuzz"
  font_size: float | None = None
  min_font_size: float = 0.0
  margin: int = 1
  align: str = "start"
  num_fonts: int = 1
  styles: Sequence[str] = ("regular",)
  random_colors: bool = False
  size_jitter: float = 0.0
  offset_jitter: float = 0.0

  def __post_init__(self) -> None:
    if self.backend not in rasterizers.BACKENDS:
      raise ValueError(
        f"{self.backend=} must be one of {list(rasterizers.BACKENDS)}."
      )
    if self.align not in ("start", "left", "center"):
      raise ValueError(f"{self.align=} must be start, left or center.")
    if self.margin < 0 or min(self.height, self.width) < 2 * self.margin + 4:
      raise ValueError(
        f"No room: {self.height=}, {self.width=}, {self.margin=}."
      )
    if self.num_fonts < 1 or not self.styles:
      raise ValueError(f"{self.num_fonts=} and {self.styles=}: at least one.")
    for name in ("size_jitter", "offset_jitter"):
      if not 0 <= getattr(self, name) < 1 and name == "size_jitter":
        raise ValueError(f"{name} must be in [0, 1).")
      if not 0 <= getattr(self, name) <= 1:
        raise ValueError(f"{name} must be in [0, 1].")

  def render(
    self, text: str, script: str, rng: np.random.Generator | None = None
  ) -> np.ndarray:
    """The picture of `text`.

    Args:
      text: one line.
      script: ISO 15924 code of its writing; "Zyyy" (digits...) goes as Latn.
      rng: what is random is drawn from it; None if nothing is.

    Returns:
      uint8 [height, width, 3].

    Raises:
      MissingGlyph, Illegible, CannotDraw: this text cannot be drawn.
      fonts.MissingFont: this machine has no font for the script.
      ValueError: unknown script, or `rng` is needed.
    """
    if rng is None:
      if self._is_random():
        raise ValueError("This renderer draws at random and needs an rng.")
      rng = _UNUSED
    if script in (words.COMMON, words.UNKNOWN):
      script = "Latn"
    font = self._font(script, rng)
    line, box = _line(self.backend, text, script, font)
    size = self._size(box, text, rng)
    x, y = self._place(box, size, font, script, rng)
    coverage = line.draw(self.height, self.width, scale=size, x=x, y=y)
    ink, paper = self._colors(rng)
    return blend(coverage, ink, paper)

  def _is_random(self) -> bool:
    return (
      self.num_fonts > 1
      or len(self.styles) > 1
      or self.random_colors
      or self.size_jitter > 0
      or self.offset_jitter > 0
    )

  def _font(self, script: str, rng: np.random.Generator) -> font_files.Font:
    """One of num_fonts families in each of the styles that the script has."""
    if self.num_fonts == len(self.styles) == 1:
      return font_files.fonts_for(script, styles=tuple(self.styles))[0]
    found: list[font_files.Font] = []
    for style in self.styles:
      try:
        fonts = font_files.fonts_for(script, styles=(style,))
      except font_files.MissingFont:
        continue
      found.extend(fonts[: self.num_fonts])
    found = found or list(font_files.fonts_for(script)[: self.num_fonts])
    return found[int(rng.integers(len(found)))]

  def _size(
    self, ink: rasterizers.Ink, text: str, rng: np.random.Generator
  ) -> float:
    """Pixels per em that leave the margin free, and a pixel to round with."""
    room = 2 * (self.margin + _SLACK) + 1
    size = min(
      self.font_size or 0.6 * self.height,
      (self.width - room) / (ink.right - ink.left),
      (self.height - room) / (ink.bottom - ink.top),
    )
    if self.size_jitter:
      size *= 1 - rng.uniform(0, self.size_jitter)
    if size < self.min_font_size:
      raise Illegible(
        f"{text!r} fits {self.height}x{self.width} pixels only at {size:.1f} "
        f"pixels per em, less than {self.min_font_size=}."
      )
    return size

  def _place(
    self,
    ink: rasterizers.Ink,
    size: float,
    font: font_files.Font,
    script: str,
    rng: np.random.Generator,
  ) -> tuple[int, int]:
    """Pen and baseline, whole pixels, so that equal letters look equal.

    The baseline is where the font's own line box puts it, whatever the word,
    and moves only if the ink would leave the picture.
    """
    margin = self.margin + _SLACK
    low_x = math.ceil(margin - ink.left * size)
    high_x = math.floor(self.width - margin - ink.right * size)
    low_y = math.ceil(margin - ink.top * size)
    high_y = math.floor(self.height - margin - ink.bottom * size)
    ascent, descent = _line_box(font)
    y = round((self.height + (ascent - descent) * size) / 2)
    y = min(max(y, low_y), high_y)
    at_right = self.align == "start" and script in RIGHT_TO_LEFT
    x = high_x if at_right else low_x
    if self.align == "center":
      x = (low_x + high_x) // 2
    if self.offset_jitter:
      share_x, share_y = rng.uniform(0, self.offset_jitter, size=2)
      x += round(share_x * ((low_x if at_right else high_x) - x))
      up = rng.uniform() < 0.5
      y += round(share_y * ((low_y if up else high_y) - y))
    return x, y

  def _colors(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    if not self.random_colors:
      return BLACK, WHITE
    while True:
      ink, paper = rng.integers(0, 256, size=(2, 3)).astype(np.float64)
      if abs(_LUMA @ (ink - paper)) >= _MIN_CONTRAST:
        return ink, paper


def blend(
  coverage: np.ndarray, ink: np.ndarray, paper: np.ndarray
) -> np.ndarray:
  """paper + (ink - paper) * coverage / 255, rounded: [H, W] -> [H, W, 3]."""
  levels = np.arange(256) / 255.0
  image = np.empty((*coverage.shape, 3), np.uint8)
  raw = coverage.tobytes()  # bytes.translate is the fastest table look-up.
  for channel in range(3):
    start, end = paper[channel], ink[channel]
    table = np.rint(start + (end - start) * levels).astype(np.uint8)
    mapped = np.frombuffer(raw.translate(table.tobytes()), np.uint8)
    image[:, :, channel] = mapped.reshape(coverage.shape)
  return image


@functools.lru_cache(maxsize=512)
def _line_box(font: font_files.Font) -> tuple[float, float]:
  """Ascent and descent of the font, in em, both positive."""
  face = font_files.face(font)
  extents = hb.Font(face).get_font_extents("ltr")
  return extents.ascender / face.upem, -extents.descender / face.upem


def _line(
  backend: str, text: str, script: str, font: font_files.Font
) -> tuple[rasterizers.Line, rasterizers.Ink]:
  """The shaped line and its ink.

  In `font`; if that lacks a character, in another font of the script; if all
  do, in fonts of the scripts that occur in the text.
  """
  fonts: tuple[font_files.Font, ...] = (font,)
  if rasterizers.lacking(text, fonts):
    fonts += font_files.fonts_for(script, styles=(font.style,))
    whole = [f for f in fonts if not rasterizers.lacking(text, (f,))]
    fonts = (whole[0],) if whole else fonts[:1] + _fallbacks(text, font.style)
    if missing := rasterizers.lacking(text, fonts):
      named = ", ".join(f"U+{ord(c):04X} {c!r}" for c in missing[:5])
      raise MissingGlyph(f"Script {script}: no glyph for {named} in {text!r}.")
  line = rasterizers.BACKENDS[backend](text, script in RIGHT_TO_LEFT, fonts)
  if line.missing:
    raise MissingGlyph(
      f"Script {script}: {font.path} has no glyph for a part of {text!r}."
    )
  if line.ink is None:
    raise CannotDraw(f"{text!r} leaves no ink.")
  return line, line.ink


def _fallbacks(text: str, style: str) -> tuple[font_files.Font, ...]:
  """The best fonts of the scripts that occur in `text`, and Latin's."""
  scripts = {words.script_of(character) for character in text}
  scripts = (scripts - {words.COMMON, words.UNKNOWN}) | {"Latn"}
  found: list[font_files.Font] = []
  for script in sorted(scripts):
    for styles in ((style,), ("regular",)):
      try:
        found.append(font_files.fonts_for(script, styles=styles)[0])
        break
      except font_files.MissingFont:
        continue
  return tuple(dict.fromkeys(found))
