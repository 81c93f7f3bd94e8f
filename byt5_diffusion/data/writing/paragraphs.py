"""Text in lines, dark on white, in any script: for what people read.

Lines are broken at spaces where there are any; a text may mix scripts. Each of
its characters needs a font of this machine.
"""

import functools
import math

import numpy as np

from byt5_diffusion.data import text
from byt5_diffusion.data.writing import (
  fonts,
  rasterizers,
  typography,
  words,
)

MAX_LINES = 4
_BLACK = 0


def draw(
  string: str,
  width: int,
  size: float,
  ink: int = _BLACK,
  max_lines: int = MAX_LINES,
) -> np.ndarray:
  """A text in lines: uint8 [H, width, 3].

  Args:
    string: any text; direction and fonts follow its script.
    width: pixels; longer lines are broken.
    size: pixels per em.
    ink: grey of the letters, 0 = black.
    max_lines: what is more is left out, and three dots say so.
  """
  rtl = words.script_of(string) in typography.RIGHT_TO_LEFT
  rows = []
  for part in lines(string, width - 2, size, rtl, max_lines):
    line = shaped(part, rtl)
    box = line.ink or rasterizers.Ink(0, 0, 0, 0)
    # As high as usual lines, and higher where marks stand above or below.
    above = math.ceil(max(1.1, -box.top) * size) + 1
    below = math.ceil(max(0.4, box.bottom) * size) + 1
    coverage = np.zeros((above + below, width), np.uint8)
    if line.ink is not None:
      x = width - 1 - box.right * size if rtl else 1 - box.left * size
      coverage = line.draw(above + below, width, scale=size, x=x, y=above)
    rows.append(255 - (coverage.astype(np.uint16) * (255 - ink) // 255))
  grey = np.concatenate(rows).astype(np.uint8)
  return np.repeat(grey[:, :, None], 3, axis=2)


@functools.lru_cache(maxsize=4096)
def fonts_of(string: str) -> tuple[fonts.Font, ...]:
  """The best fonts of the text's own script, of its characters', and Latin's.

  Raises:
    fonts.MissingFont: not even Latin has one.
  """
  scripts = [words.script_of(string), *map(words.script_of, string)]
  found: list[fonts.Font] = []
  for script in dict.fromkeys(scripts):
    if script in fonts.TABLE and script != "Latn":
      try:
        found.append(fonts.fonts_for(script)[0])
      except fonts.MissingFont:
        continue
  return tuple(dict.fromkeys([*found, fonts.fonts_for("Latn")[0]]))


def shaped(string: str, rtl: bool) -> rasterizers.Line:
  """One line of it."""
  return rasterizers.HarfBuzzLine(string, rtl, fonts_of(string))


def lines(
  string: str, width: int, size: float, rtl: bool, max_lines: int = MAX_LINES
) -> list[str]:
  """Parts that fit into `width` pixels, broken at spaces where possible."""

  def fits(part: str) -> bool:
    ink = shaped(part, rtl).ink
    return ink is None or (ink.right - ink.left) * size <= width

  found: list[str] = []
  rest = text.graphemes(string) or [" "]
  while rest and len(found) < max_lines:
    low, high = 1, len(rest)
    while low < high:  # The most clusters that fit.
      middle = (low + high + 1) // 2
      if fits("".join(rest[:middle])):
        low = middle
      else:
        high = middle - 1
    spaces = [i for i in range(low, 0, -1) if rest[i - 1] == " "]
    end = spaces[0] if low < len(rest) and spaces else low
    found.append("".join(rest[:end]).rstrip())
    rest = rest[end:]
  if rest:
    found[-1] = "".join(text.graphemes(found[-1])[:-4]) + "..."
  return [line or " " for line in found]
