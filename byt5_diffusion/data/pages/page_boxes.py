"""Where blocks, lines and words of a page lie, from WeasyPrint's layout.

The layout is a tree of boxes whose leaves are texts of one line and one style.
A text is shaped again, as for drawing, and each glyph gives the box of its ink;
the glyphs of a word, joined, are the word's.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import regex

from byt5_diffusion.data import annotated, text

Point = tuple[float, float]
# Marks of blocks in the source: see draw of html_pages.py.
LABEL, VERTICAL = "data-label", "data-vertical"
# Blocks that are as large as they are drawn, not as their text.
_WHOLE = ("table", "picture", "figure")
# Words end there: white space, and where a line may be broken without one.
_WORD = regex.compile(r"[^\s\u200b]+")
# Written without spaces: every character counts for itself.
_CHARACTERS = regex.compile(
  r"[\p{Han}\p{Hiragana}\p{Katakana}ー々〆、。，．・：；！？「」『』（）]"
)
# What a line never ends within: behind a hyphen it may.
_WHOLE_PART = regex.compile(r"[^\s\u200b\-\u2010-\u2015/]+")
# Lines end between any two of them, Hangul too; and behind Ethiopic commas.
_BREAKABLE = regex.compile(
  r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}ー々〆、。，．・：；！？፡-፨]"
)
# Share of a line's box that one of another block may cover.
_MAX_COMMON = 0.1
_LEAST_INK = 16  # Levels between ink and paper at a line's ends.
_UNSEEN = dict.fromkeys(map(ord, "\u200b\u00ad\u2060\ufeff"))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
  """A part of a page on its way to a Region; box may leave the page.

  Attributes:
    label, text, box: as a Region's.
    polygon: corners where the page turns it; () means the box.
    vertical: whether its lines run from top to bottom.
  """

  label: str
  text: str
  box: annotated.Box
  polygon: tuple[Point, ...] = ()
  vertical: bool = False


@dataclasses.dataclass(slots=True)
class _Line:
  """Text of a line with the ink of its glyphs, by place in the text."""

  block: int
  vertical: bool
  matrix: Any
  text: str = ""
  ink: list[tuple[int, annotated.Box]] = dataclasses.field(default_factory=list)


def breaks_anywhere(word: str) -> bool:
  """Whether a line may end within a word: of East Asia, and of Ethiopia."""
  return _BREAKABLE.search(word) is not None


class Found(NamedTuple):
  """What is known of a page.

  Attributes:
    pieces: blocks, then lines, then words.
    missing: characters without a glyph.
    torn: words of blocks that are broken or absent for want of room.
    crowded: whether lines of different blocks lie on each other.
  """

  pieces: list[Piece]
  missing: str
  torn: list[str]
  crowded: bool


def find(page: Any, boxes: Any, pango: Any) -> Found:
  """Where everything is on a page.

  Args:
    page: weasyprint's Page.
    boxes: the module weasyprint.formatting_structure.boxes.
    pango: the module weasyprint.text.ffi.
  """
  walk = _Walk(boxes, pango)
  walk.visit(page._page_box, None, 0, None)
  lines: list[Piece] = []
  words: list[Piece] = []
  inside: dict[int, list[Piece]] = {}
  texts: dict[int, list[str]] = {}
  for line in walk.lines:
    whole = _piece("line", line, 0, len(line.text))
    if whole is None:
      continue
    lines.append(whole)
    inside.setdefault(line.block, []).append(whole)
    texts.setdefault(line.block, []).append(line.text)
    words.extend(_words(line))
  blocks = [
    block
    for number, element in walk.blocks.items()
    if (block := _block(element, inside.get(number, []), walk.areas[number]))
  ]
  torn = [
    word
    for element in _labelled(page._page_box)
    for word in _torn(element, texts.get(id(element), []))
  ]
  missing = "".join(dict.fromkeys(walk.missing))
  crowded = _crowded([(i, line) for i in inside for line in inside[i]])
  return Found([*blocks, *lines, *words], missing, torn, crowded)


class _Walk:
  """Goes through the tree once, and notes what it sees."""

  def __init__(self, boxes: Any, pango: Any) -> None:
    self._boxes = boxes
    self._blocks = (
      boxes.BlockLevelBox,
      boxes.InlineBlockBox,
      boxes.TableCellBox,
    )
    self._pango = pango
    self.lines: list[_Line] = []
    self.blocks: dict[int, Any] = {}  # Elements with a label.
    self.areas: dict[int, list[Piece]] = {}
    self.missing: list[str] = []
    self._ink = pango.ffi.new("PangoRectangle *")

  def visit(self, box: Any, matrix: Any, block: int, line: Any) -> None:
    box = getattr(box, "_box", box)  # What stands for a positioned box.
    if box.transformation_matrix:
      own = box.transformation_matrix
      matrix = own @ matrix if matrix else own
    element = box.element
    if element is not None and hasattr(element, "get"):
      if label := element.get(LABEL):
        block = id(element)
        self.blocks.setdefault(block, element)
        self.areas.setdefault(block, [])
        if line is not None and not line.vertical:
          line = _Line(block, False, matrix)  # A block within a line.
          self.lines.append(line)
        if label in _WHOLE:
          self.areas[block].append(_area(box, matrix))
      if element.get(VERTICAL) and (line is None or not line.vertical):
        line = _Line(block, True, matrix)
        self.lines.append(line)
    if isinstance(box, self._boxes.TextBox):
      if line is not None and box.style["visibility"] == "visible":
        self._read(box, line)
      return
    if isinstance(box, self._boxes.LineBox):
      if line is None or not line.vertical:
        line = _Line(block, False, matrix)
        self.lines.append(line)
    elif isinstance(box, self._blocks):
      line = line if line is not None and line.vertical else None
    for child in getattr(box, "children", ()):
      self.visit(child, matrix, block, line)

  def _read(self, box: Any, line: _Line) -> None:
    """Adds a text box's characters and the ink of its glyphs to its line."""
    bullet = str(box.element_tag).endswith("::marker")
    if bullet and not any(map(str.isalnum, box.text)):
      return
    ffi, pango = self._pango.ffi, self._pango.pango
    unit = self._pango.FROM_UNITS
    layout = box.pango_layout
    layout.reactivate(box.style)
    pango.pango_layout_set_single_paragraph_mode(layout.layout, True)
    first, _ = layout.get_first_line()
    places = _characters(layout.text)
    start = len(line.text)
    x, y = box.position_x, box.position_y + box.baseline
    ink = self._ink
    run = first.runs[0] if first.runs != ffi.NULL else ffi.NULL
    while run != ffi.NULL:
      item = run.data
      run = run.next
      font, offset = item.item.analysis.font, item.item.offset
      glyphs, clusters = item.glyphs.glyphs, item.glyphs.log_clusters
      for i in range(item.glyphs.num_glyphs):
        glyph = glyphs[i].glyph
        place = places[offset + clusters[i]]
        if glyph & pango.PANGO_GLYPH_UNKNOWN_FLAG:
          self.missing.append(layout.text[place])
        elif glyph != pango.PANGO_GLYPH_EMPTY:
          pango.pango_font_get_glyph_extents(font, glyph, ink, ffi.NULL)
          if ink.width and ink.height:
            left = x + (glyphs[i].geometry.x_offset + ink.x) * unit
            top = y + (glyphs[i].geometry.y_offset + ink.y) * unit
            right, bottom = left + ink.width * unit, top + ink.height * unit
            line.ink.append((start + place, (left, top, right, bottom)))
        x += glyphs[i].geometry.width * unit
    line.text += layout.text
    layout.deactivate()


def _characters(string: str) -> range | list[int]:
  """Byte of UTF-8 -> character."""
  if string.isascii():
    return range(len(string) + 1)
  places: list[int] = []
  for i, character in enumerate(string):
    places.extend([i] * len(character.encode("utf-8", "surrogatepass")))
  return [*places, len(string)]


def _piece(label: str, line: _Line, start: int, end: int) -> Piece | None:
  """Characters [start, end) of a line; None if they left no ink."""
  ink = [box for place, box in line.ink if start <= place < end]
  written = line.text[start:end].translate(_UNSEEN).strip()
  if not ink or not written:
    return None
  lefts, tops, rights, bottoms = zip(*ink, strict=True)
  box = (min(lefts), min(tops), max(rights), max(bottoms))
  return _turned(label, written, box, line.matrix, line.vertical)


def _turned(
  label: str, written: str, box: annotated.Box, matrix: Any, vertical: bool
) -> Piece:
  """The piece where a matrix of CSS transforms puts it."""
  if not matrix:
    return Piece(label=label, text=written, box=box, vertical=vertical)
  corners = [(box[0], box[1]), (box[2], box[1])]
  corners += [(box[2], box[3]), (box[0], box[3])]
  polygon = tuple(matrix.transform_point(*corner) for corner in corners)
  return Piece(
    label=label,
    text=written,
    box=_around(polygon),
    polygon=polygon,
    vertical=vertical,
  )


def _around(points: tuple[Point, ...]) -> annotated.Box:
  xs, ys = zip(*points, strict=True)
  return (min(xs), min(ys), max(xs), max(ys))


def _words(line: _Line) -> Iterator[Piece]:
  """What lies between spaces; of Chinese and Japanese, every character."""
  for word in _WORD.finditer(line.text):
    start = word.start()
    for label, part in _parts(word[0]):
      piece = _piece(label, line, start, start + len(part))
      start += len(part)
      if piece is not None:
        yield piece


def _parts(word: str) -> Iterator[tuple[str, str]]:
  """ "東京A1" -> ("glyph", "東"), ("glyph", "京"), ("word", "A1")."""
  if not _CHARACTERS.search(word):
    yield "word", word
    return
  held = ""
  for cluster in text.graphemes(word):
    if _CHARACTERS.match(cluster):
      if held:
        yield "word", held
      held = ""
      yield "glyph", cluster
    else:
      held += cluster
  if held:
    yield "word", held


def _area(box: Any, matrix: Any) -> Piece:
  """A box with its border."""
  left, top = box.border_box_x(), box.border_box_y()
  right, bottom = left + box.border_width(), top + box.border_height()
  return _turned("", "", (left, top, right, bottom), matrix, False)


def _labelled(page_box: Any) -> Iterator[Any]:
  """All blocks of the document, whether they are on the page or not."""
  for box in page_box.children:
    if getattr(box.element, "tag", None) == "html":
      yield from (e for e in box.element.iter() if e.get(LABEL))


def _crowded(lines: list[tuple[int, Piece]]) -> bool:
  """Whether lines of different blocks overlap by much of the smaller one."""
  boxes = np.array([line.box for _, line in lines]).reshape(-1, 4)
  blocks = np.array([block for block, _ in lines])
  low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
  high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
  common = np.clip(high - low, 0, None).prod(axis=2)
  areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
  least = np.minimum(areas[:, None], areas[None, :])
  others = blocks[:, None] != blocks[None, :]
  return bool(np.any(others & (common > _MAX_COMMON * least)))


def _torn(element: Any, lines: list[str]) -> list[str]:
  """Words of an element that its lines do not have, or not as a whole."""
  wanted = _WHOLE_PART.findall("".join(element.itertext()))
  there = [word for line in lines for word in _WHOLE_PART.findall(line)]
  if "".join(wanted) != "".join(there):
    return wanted
  known = set(there)
  return [
    word for word in wanted if word not in known and not breaks_anywhere(word)
  ]


def _block(
  element: Any, lines: list[Piece], areas: list[Piece]
) -> Piece | None:
  """A labelled element, around its lines or as large as it is drawn."""
  label = element.get(LABEL)
  parts = areas or lines
  if label not in annotated.LABELS[1:] or not parts:
    return None
  corners = [
    corner for part in parts for corner in (part.box[:2], part.box[2:])
  ]
  written = "".join(element.itertext()).translate(_UNSEEN)
  polygon = parts[0].polygon if len(parts) == 1 else ()
  return Piece(
    label=label,
    text=" ".join(written.split()),
    box=_around(tuple(corners)),
    polygon=polygon,
    vertical=all(line.vertical for line in lines) and bool(lines),
  )


# -- Pixels ------------------------------------------------------------------


def tightened(pixels: np.ndarray, box: annotated.Box) -> annotated.Box:
  """The box without edges that look like what is outside of them.

  HarfBuzz (6 as well as 15) counts the control points of a CFF font's
  curves to its glyphs: boxes of East Asian fonts with serifs are too large.
  """
  edges = [round(edge) for edge in box]
  for side, step in ((0, 1), (1, 1), (2, -1), (3, -1)):
    most = max(2, round(0.2 * (edges[3] - edges[1])))
    for _ in range(most):
      left, top, right, bottom = edges
      along = slice(top, bottom) if side % 2 == 0 else slice(left, right)
      at = edges[side] if step > 0 else edges[side] - 1
      beside = at - step
      limit = pixels.shape[1 - side % 2]
      if not (min(at, beside) >= 0 and max(at, beside) < limit):
        break
      rows = pixels if side % 2 else pixels.swapaxes(0, 1)
      inner, outer = (rows[i, along].astype(int) for i in (at, beside))
      alike = np.abs(inner - outer).max(initial=0) < _LEAST_INK
      flat = np.ptp(inner, axis=0).max(initial=0) < _LEAST_INK
      room = edges[2 + side % 2] - edges[side % 2] > 3
      if not (alike and flat and room) or inner.shape[0] == 0:
        break
      edges[side] += step
  tight = [
    float(edge) if edge != round(old) else old
    for edge, old in zip(edges, box, strict=True)
  ]
  return (tight[0], tight[1], tight[2], tight[3])


def as_laid_out(pixels: np.ndarray, pieces: Sequence[Piece]) -> bool:
  """Whether both ends of each line have ink where the layout has it.

  A font's marks may confuse a PDF's writer so that glyphs lie on each other.
  """
  for piece in pieces:
    if piece.label != "line" or piece.polygon or piece.vertical:
      continue
    left, top, right, bottom = map(round, piece.box)
    for x in (left, right):
      strip = pixels[max(0, top) : bottom, max(0, x - 3) : x + 3].astype(int)
      if strip.size and np.ptp(strip, axis=(0, 1)).max() < _LEAST_INK:
        return False
  return True
