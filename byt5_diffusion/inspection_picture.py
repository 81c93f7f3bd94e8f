"""inspection.View as one PNG, its text drawn with the project's own shaping.

So Arabic joins, Devanagari reorders and Thai stacks as on the HTML page, on any
machine, whatever its viewer can do. A character that no font here has is drawn
as its code point.
"""

import functools
import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from byt5_diffusion import inspection
from byt5_diffusion.data import (
  batch_view,
  fonts,
  rasterizers,
  text,
  typography,
  words,
)

_WIDTH = 1200
_MARGIN = 16
_GAP = 12
_CELL = 220  # Pixels: the narrowest cell, so that its text has room.
_SMALL, _LARGE = 12.0, 19.0  # Pixels per em.
_MAX_LINES = 4
_GREY, _BLACK = 110, 0


def to_png(view: inspection.View, max_rows: int = 32) -> bytes:
  """The PNG file: summary, then the first max_rows examples of every batch."""
  inner = _WIDTH - 2 * _MARGIN
  blocks = [paragraph(f"{view.recipe}: {view.split}", inner, _LARGE)]
  for line in _summary(view):
    blocks.append(paragraph(line, inner, _SMALL, _GREY))
  for number, rows in view.batches():
    title = f"Batch {number + 1}: {inspection.shown(rows, max_rows)}"
    blocks.append(paragraph(title, inner, _LARGE))
    cells = [_cell(row, inner) for row in rows[:max_rows]]
    blocks.append(_flow(cells, inner))
  page = _stack(blocks, inner, gap=8)
  page = np.pad(
    page, ((_MARGIN,) * 2, (_MARGIN,) * 2, (0, 0)), constant_values=255
  )
  file = io.BytesIO()
  Image.fromarray(page).save(file, "PNG", optimize=True)
  return file.getvalue()


def _summary(view: inspection.View) -> list[str]:
  lines = [
    ", ".join(
      f"{name} {' x '.join(map(str, shape))} {dtype}"
      for name, (shape, dtype) in view.shapes.items()
    )
  ]
  for title, counts in inspection.histograms(view.facts):
    listed = ", ".join(f"{name}: {count}" for name, count in counts)
    lines.append(f"{title}: {listed}")
  rejected = view.facts["rejected"]
  reasons = "".join(
    f", {n} {why}" for why, n in sorted(rejected["reasons"].items())
  )
  lines.append(f"rejected: {rejected['rejected']}{reasons}")
  return lines


def _cell(row: batch_view.Row, max_width: int) -> np.ndarray:
  picture = row.picture
  parts = []
  width = _CELL
  if picture is not None:
    scale = inspection.scale_of(picture)
    if picture.shape[1] > max_width:  # Larger than the page.
      height = max(1, picture.shape[0] * max_width // picture.shape[1])
      resized = Image.fromarray(picture).resize((max_width, height))
      picture = np.asarray(resized)
    large = picture.repeat(scale, axis=0).repeat(scale, axis=1)
    large = large[:, :max_width]
    width = max(width, large.shape[1] + 2)
    parts.append(np.pad(large, ((1, 1), (1, 1), (0, 0)), constant_values=221))
  width = min(width, max_width)
  parts.append(paragraph(row.text or "(no text)", width, _LARGE))
  parts.append(paragraph(inspection.described(row), width, _SMALL, _GREY))
  return _stack(parts, width, gap=2)


def _flow(cells: Sequence[np.ndarray], width: int) -> np.ndarray:
  """Cells from left to right, in as many lines as they need."""
  lines: list[list[np.ndarray]] = [[]]
  used = 0
  for cell in cells:
    if lines[-1] and used + cell.shape[1] > width:
      lines.append([])
      used = 0
    lines[-1].append(cell)
    used += cell.shape[1] + _GAP
  return _stack([_beside(line) for line in lines if line], width, gap=_GAP)


def _beside(cells: Sequence[np.ndarray]) -> np.ndarray:
  height = max(cell.shape[0] for cell in cells)
  parts = [
    np.pad(
      cell,
      ((0, height - cell.shape[0]), (0, _GAP), (0, 0)),
      constant_values=255,
    )
    for cell in cells
  ]
  return np.concatenate(parts, axis=1)


def _stack(blocks: Sequence[np.ndarray], width: int, gap: int) -> np.ndarray:
  parts = [
    np.pad(
      block[:, :width],
      ((0, gap), (0, max(0, width - block.shape[1])), (0, 0)),
      constant_values=255,
    )
    for block in blocks
  ]
  return np.concatenate(parts, axis=0)


# --- Text --------------------------------------------------------------------


def paragraph(
  string: str, width: int, size: float, ink: int = _BLACK
) -> np.ndarray:
  """A text in lines, dark on white: uint8 [H, width, 3].

  Args:
    string: any text; direction and fonts follow its script.
    width: pixels; longer lines are broken, and after a few cut.
    size: pixels per em.
    ink: grey of the letters, 0 = black.
  """
  rtl = words.script_of(string) in typography.RIGHT_TO_LEFT
  string = spelled(string)
  rows = []
  for part in _lines(string, width - 2, size, rtl):
    line = _shaped(part, rtl)
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


def spelled(string: str) -> str:
  """The text with what cannot be drawn or seen as [U+XXXX]."""
  string = "".join(
    f"[{part}]" if is_point else part
    for part, is_point in inspection.visible(string)
  )
  missing = set(rasterizers.lacking(string, _fonts(string)))
  return "".join(
    f"[U+{ord(character):04X}]" if character in missing else character
    for character in string
  )


@functools.lru_cache(maxsize=4096)
def _fonts(string: str) -> tuple[fonts.Font, ...]:
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


def _shaped(string: str, rtl: bool) -> rasterizers.Line:
  return rasterizers.HarfBuzzLine(string, rtl, _fonts(string))


def _lines(string: str, width: int, size: float, rtl: bool) -> list[str]:
  """Parts that fit, broken at spaces where there are any."""

  def fits(part: str) -> bool:
    ink = _shaped(part, rtl).ink
    return ink is None or (ink.right - ink.left) * size <= width

  lines: list[str] = []
  rest = text.graphemes(string) or [" "]
  while rest and len(lines) < _MAX_LINES:
    low, high = 1, len(rest)
    while low < high:  # The most clusters that fit.
      middle = (low + high + 1) // 2
      if fits("".join(rest[:middle])):
        low = middle
      else:
        high = middle - 1
    spaces = [i for i in range(low, 0, -1) if rest[i - 1] == " "]
    end = spaces[0] if low < len(rest) and spaces else low
    lines.append("".join(rest[:end]).rstrip())
    rest = rest[end:]
  if rest:
    lines[-1] = "".join(text.graphemes(lines[-1])[:-4]) + "..."
  return [line or " " for line in lines]
