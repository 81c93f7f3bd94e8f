"""inspection.View as one PNG, its text drawn with the project's own shaping.

So Arabic joins, Devanagari reorders and Thai stacks as on the HTML page, on any
machine, whatever its viewer can do. A character that no font here has is drawn
as its code point.
"""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from byt5_diffusion import inspection
from byt5_diffusion.data import (
  annotation_view,
  batch_view,
)
from byt5_diffusion.data.writing import (
  paragraphs,
  rasterizers,
)

_WIDTH = 1200
_MARGIN = 16
_GAP = 12
_CELL = 220  # Pixels: the narrowest cell, so that its text has room.
_SMALL, _LARGE = 12.0, 19.0  # Pixels per em.
_GREY, _BLACK = 110, 0
_MARK = 16  # Pixels: the width of a colour's mark.


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
  parts = []
  if row.picture is not None:
    parts.append(_framed(row.picture, max_width))
  annotations = annotation_view.is_annotated(row)
  if annotations:
    parts.append(_framed(annotation_view.overlaid(row), max_width))
  width = min(max([_CELL, *(part.shape[1] for part in parts)]), max_width)
  if annotations:
    parts += _legend(row, width)
  parts.append(paragraph(row.text or "(no text)", width, _LARGE))
  parts.append(paragraph(inspection.described(row), width, _SMALL, _GREY))
  return _stack(parts, width, gap=2)


def _framed(picture: np.ndarray, max_width: int) -> np.ndarray:
  """A picture in a thin frame, larger if tiny, no wider than the page."""
  room = max_width - 2
  if picture.shape[1] > room:
    height = max(1, picture.shape[0] * room // picture.shape[1])
    picture = np.asarray(Image.fromarray(picture).resize((room, height)))
  scale = min(inspection.scale_of(picture), room // picture.shape[1])
  large = picture.repeat(scale, axis=0).repeat(scale, axis=1)
  return np.pad(large, ((1, 1), (1, 1), (0, 0)), constant_values=221)


def _legend(row: batch_view.Row, width: int) -> list[np.ndarray]:
  """What the colours of an annotated picture mean, and what else is known."""
  parts = []
  for label, color, count in annotation_view.legend(row):
    said = paragraph(f"{label} {count}", width - _MARK, _SMALL, _GREY)
    mark = np.full((said.shape[0], _MARK, 3), 255, np.uint8)
    mark[2:-2, : _MARK - 4] = color
    parts.append(np.concatenate([mark, said], axis=1))
  found = annotation_view.described(row)
  return [*parts, paragraph(found, width, _SMALL, _GREY)]


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
  return paragraphs.draw(spelled(string), width, size, ink)


def spelled(string: str) -> str:
  """The text with what cannot be drawn or seen as [U+XXXX]."""
  string = "".join(
    f"[{part}]" if is_point else part
    for part, is_point in inspection.visible(string)
  )
  missing = set(rasterizers.lacking(string, paragraphs.fonts_of(string)))
  return "".join(
    f"[U+{ord(character):04X}]" if character in missing else character
    for character in string
  )
