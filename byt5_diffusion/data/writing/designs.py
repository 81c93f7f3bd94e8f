"""A style at random for lines of a script: font, size, spacing, colours.

Which styles there are is the machine's fonts' (font_styles.py); all else is
drawn here. Letters keep contrast to the paper: WCAG 2's ratio of luminances.
"""

import dataclasses

import numpy as np

from byt5_diffusion.data.writing import (
  caption_words,
  caption_writer,
  font_styles,
  typesetting,
)

Color = tuple[int, int, int]
_LUMINANCE = np.array([0.2126, 0.7152, 0.0722])
_JITTER = 14  # Of a named colour, on each channel.
_OBLIQUE = 0.21  # tan 12 degrees


@dataclasses.dataclass(frozen=True, kw_only=True)
class Designs:
  """What may be drawn.

  Attributes:
    colors: "named" (near caption_words.COLORS), "any", or "black" on white.
    vertical: share of vertical lines where the script may have them.
    oblique: share of upright fonts that are slanted.
    tracked: share of lines with space between the letters.
    smallest, largest: size of an em in shares of the picture's height.
    margin: pixels; each side has from two to that many more without ink.
    min_size: pixels of an em; what would be smaller is not drawn.
    min_contrast: of ink and paper, 1 to 21.
    black: share of black on white where colours are named or any.
  """

  colors: str = "named"
  vertical: float = 0.35
  oblique: float = 0.05
  tracked: float = 0.2
  smallest: float = 0.08
  largest: float = 0.6
  margin: int = 12
  min_size: float = 9.0
  min_contrast: float = 3.0
  black: float = 0.25

  def __post_init__(self) -> None:
    if self.colors not in ("named", "any", "black"):
      raise ValueError(f"{self.colors=} must be named, any or black.")
    if not 0 < self.smallest <= self.largest:
      raise ValueError(f"{self.smallest=} must be at most {self.largest=}.")
    if self.margin < 1 or self.min_size <= 0:
      raise ValueError(f"{self.margin=} and {self.min_size=}: more than 0.")
    if not 1 <= self.min_contrast <= 7:
      raise ValueError(f"{self.min_contrast=} must be from 1 to 7.")

  def draw(self, rng: np.random.Generator, script: str) -> typesetting.Style:
    """A style for a script; fonts.MissingFont: none has it."""
    variants = font_styles.variants(script)
    font = variants[int(rng.integers(len(variants)))]
    # As many of one size as of another, in octaves.
    size = float(
      np.exp(rng.uniform(np.log(self.smallest), np.log(self.largest)))
    )
    may_stand = script in typesetting.VERTICAL
    vertical = bool(rng.uniform() < self.vertical) and may_stand
    italic = font_styles.style_of(font).italic
    slanted = bool(rng.uniform() < self.oblique) and not vertical and not italic
    tracked = bool(rng.uniform() < self.tracked)
    tracking = float(rng.uniform(0.02, 0.3)) if tracked else 0.0
    ink, paper = self._colors(rng)
    return typesetting.Style(
      font=font,
      size=size,
      tracking=round(tracking, 3),
      leading=float(rng.uniform(1.1, 1.8)),
      alignment=typesetting.ALIGNMENTS[int(rng.integers(3))],
      vertical=vertical,
      slant=_OBLIQUE if slanted else 0.0,
      ink=ink,
      paper=paper,
      height_share=float(rng.uniform()),
      margin=int(rng.integers(2, 2 + self.margin)),
      min_size=self.min_size,
    )

  def _colors(self, rng: np.random.Generator) -> tuple[Color, Color]:
    if self.colors == "black" or rng.uniform() < self.black:
      return (0, 0, 0), (255, 255, 255)
    while True:
      ink, paper = self._color(rng), self._color(rng)
      if contrast(ink, paper) >= self.min_contrast:
        return ink, paper

  def _color(self, rng: np.random.Generator) -> Color:
    if self.colors == "any":
      red, green, blue = rng.integers(0, 256, size=3)
    else:
      named = list(caption_words.COLORS.values())
      anchor = np.array(named[int(rng.integers(len(named)))])
      shift = rng.integers(-_JITTER, _JITTER + 1, size=3)
      red, green, blue = np.clip(anchor + shift, 0, 255)
    return int(red), int(green), int(blue)


def contrast(first: Color, second: Color) -> float:
  """(lighter + 0.05) / (darker + 0.05), luminances in [0, 1] (WCAG 2)."""
  share = np.array([first, second]) / 255.0
  linear = np.where(
    share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4
  )
  low, high = sorted(linear @ _LUMINANCE)
  return float((high + 0.05) / (low + 0.05))


def look(style: typesetting.Style) -> caption_writer.Look:
  """What a caption may say of lines in a style."""
  font = font_styles.style_of(style.font)
  # "Left" of vertical lines is the top.
  told = "" if style.vertical else style.alignment
  return caption_writer.Look(
    family=font.kind,
    bold=font.bold,
    italic=font.italic or style.slant > 0,
    vertical=style.vertical,
    alignment=told,
    ink=style.ink,
    paper=style.paper,
  )
