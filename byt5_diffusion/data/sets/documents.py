"""Pages with their parts and text, whichever data set they come from.

  Pages.page(index) -> Page      data/sets/doclaynet.py, data/sets/funsd.py
  load(page) -> Loaded           this file: pixels, and boxes in them

A page's boxes are given in its `frame`; the picture may be of another size, and
squeezed (DocLayNet's are 1025 x 1025, whatever the page's shape). What `load`
gives has the page's own proportions, and its boxes are inside of it.
"""

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from PIL import Image

from byt5_diffusion.data import (
  annotated,
  images,
)
from byt5_diffusion.data.sets import reading_order

# Read before the other parts, and behind them.
_PLACES = {"page-header": 0, "page-footer": 2}
MAX_PARTS, MAX_CELLS = 1000, 20_000  # Of a page.
_ENOUGH = 2000  # Characters of a page to tell its direction by.
_MAX_ASPECT = 20.0  # Width by height of a page, or the other way round.
# How far proportions may be from others and still be the same.
_SAME_SHAPE = 0.03
# Which folders and files are called how.
SPLITS = {
  "train": "train",
  "training": "train",
  "training_data": "train",
  "val": "validation",
  "valid": "validation",
  "validation": "validation",
  "dev": "validation",
  "test": "test",
  "testing": "test",
  "testing_data": "test",
}


class Part(NamedTuple):
  """A part of a page: its box, its class and, where it is known, its text."""

  box: annotated.Box
  label: str
  text: str = ""


class Cell(NamedTuple):
  """A piece of a line's text."""

  box: annotated.Box
  text: str


_Piece = TypeVar("_Piece", Part, Cell)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Page:
  """What is known of a page before its picture is opened.

  Attributes:
    key: its name for good.
    picture: the picture's file.
    parts, cells: boxes in the frame's units; they may lie outside of it.
    frame: rows and columns that the boxes are for; None: the picture's own.
    aspect: width by height of the page, if the picture is squeezed.
    subject: what the page is of, in words; "" where it is unknown.
  """

  key: str
  picture: pathlib.Path
  parts: tuple[Part, ...]
  cells: tuple[Cell, ...] = ()
  frame: tuple[float, float] | None = None
  aspect: float | None = None
  subject: str = ""


class Pages(Protocol):
  """Pages of one split.

  Attributes:
    name: of the data set.
    fingerprint: of the annotations.
    has_text: whether pages have cells.
  """

  @property
  def name(self) -> str: ...

  @property
  def fingerprint(self) -> str: ...

  @property
  def has_text(self) -> bool: ...

  def __len__(self) -> int: ...

  def page(self, index: int, extras: bool = True) -> Page:
    """A page. BadImage: it cannot be used.

    Args:
      index: which.
      extras: with its cells and its proportions, which may cost a file.
    """


class Loaded(NamedTuple):
  """A page as it looks: pixels uint8 [H, W, 3], boxes in them."""

  image: np.ndarray
  parts: tuple[Part, ...]

  def shares(self) -> list[Part]:
    """The parts with boxes in shares of the page's width and height."""
    height, width = self.image.shape[:2]
    return [
      part._replace(
        box=(
          part.box[0] / width,
          part.box[1] / height,
          part.box[2] / width,
          part.box[3] / height,
        )
      )
      for part in self.parts
    ]


def inside(folder: pathlib.Path, name: str) -> pathlib.Path:
  """The file that a data set's file calls `name`, which must be in `folder`.

  Raises:
    images.BadImage: it is somewhere else, or no name of a file.
  """
  parts = pathlib.PurePosixPath(name).parts
  odd = "\0" in name or "\\" in name or not parts
  if odd or name.startswith("/") or ".." in parts:
    raise images.BadImage(repr(name)[:200], "no file inside of the data set")
  path = folder.joinpath(*parts)
  try:
    # A user may link the folder to another disk; a file may not lead away.
    home = os.path.realpath(folder)
    if os.path.commonpath([home, os.path.realpath(path)]) != home:
      raise images.BadImage(str(path), "no file inside of the data set")
  except (OSError, ValueError):
    raise images.BadImage(str(path), "no file inside of the data set") from None
  return path


def load(page: Page) -> Loaded:
  """Opens a page's picture and puts its boxes into it.

  A squeezed page gets its proportions back: its longer side keeps its pixels.
  Boxes are cut to the page, and those outside of it left out.

  Raises:
    images.BadImage: the picture cannot be used, or is not the one that the
      boxes are for.
  """
  image = images.decode_image(page.picture)
  frame = page.frame or image.shape[:2]
  image = _unsqueezed(image, frame[1] / frame[0], page)
  scale = (image.shape[1] / frame[1], image.shape[0] / frame[0])
  size = image.shape[1], image.shape[0]
  boxes = [clipped(part.box, scale, size) for part in page.parts]
  return Loaded(
    image,
    tuple(
      part._replace(box=box)
      for box, part in zip(boxes, page.parts, strict=True)
      if box is not None
    ),
  )


def _unsqueezed(
  image: np.ndarray, frame_aspect: float, page: Page
) -> np.ndarray:
  """The picture with the page's proportions."""
  height, width = image.shape[:2]
  if not _alike(width / height, frame_aspect):
    # Not squeezed, or no longer. A square says nothing of the page's shape.
    square = page.aspect is None and frame_aspect == 1
    if square or (page.aspect and _alike(width / height, page.aspect)):
      return image
    raise images.BadImage(
      str(page.picture), "other proportions than its annotations have"
    )
  rows, columns = stretched((height, width), page.aspect or frame_aspect)
  if page.aspect is None or (rows, columns) == (height, width):
    return image
  return np.array(
    Image.fromarray(image).resize(
      (columns, rows), Image.Resampling.LANCZOS, reducing_gap=3.0
    )
  )


def _alike(aspect: float, other: float) -> bool:
  return abs(aspect / other - 1) <= _SAME_SHAPE


def stretched(size: tuple[int, int], aspect: float) -> tuple[int, int]:
  """Rows and columns of width / height = aspect; the longer side stays."""
  longer = max(size)
  if aspect >= 1:
    return max(1, round(longer / aspect)), longer
  return longer, max(1, round(longer * aspect))


def clipped(
  box: annotated.Box,
  scale: tuple[float, float] = (1.0, 1.0),
  size: tuple[float, float] = (1.0, 1.0),
) -> annotated.Box | None:
  """The part of a scaled box inside of (width, height); None: there is none."""
  left, right = (min(max(x * scale[0], 0.0), size[0]) for x in box[0::2])
  top, bottom = (min(max(y * scale[1], 0.0), size[1]) for y in box[1::2])
  return (left, top, right, bottom) if right > left and bottom > top else None


def checked_aspect(width: object, height: object, where: str) -> float:
  """width / height of a page. BadImage: they are no sizes of a page."""
  numbers = (int, float)
  if type(width) in numbers and type(height) in numbers:
    w, h = float(width), float(height)  # type: ignore[arg-type]
    if 0 < w < 1e6 and 0 < h < 1e6 and 1 / _MAX_ASPECT <= w / h <= _MAX_ASPECT:
      return w / h
  raise images.BadImage(where, "a page without a size")


# --- Text --------------------------------------------------------------------


def arranged(page: Page, loose: bool = False) -> Page:
  """The page with its parts cut to it, with their text, in reading order.

  A cell belongs to the smallest part that its middle lies in. Parts that have a
  text keep it.

  Args:
    page: of any frame.
    loose: a cell that lies in no part becomes one, so that no text is lost.
  """
  parts, cells = _cut(page, page.parts), _cut(page, page.cells)
  owned, rest = _owners(parts, cells)
  found = [
    part
    if part.text or not inner
    else part._replace(text=reading_order.text_of(inner))
    for part, inner in zip(parts, owned, strict=True)
  ]
  if loose:
    rest = [cell for cell in rest if cell.text.strip()][:MAX_PARTS]
    found += [Part(c.box, "text", " ".join(c.text.split())) for c in rest]
  text = "".join(part.text for part in found)[:_ENOUGH]
  order = reading_order.order(
    [part.box for part in found], reading_order.is_right_to_left(text)
  )
  # What stands in a margin is no column of the page.
  order.sort(key=lambda i: _PLACES.get(found[i].label, 1))
  return dataclasses.replace(
    page, parts=tuple(found[i] for i in order), cells=tuple(cells)
  )


def lines_of(page: Page) -> list[Part]:
  """The lines of an arranged page's parts, in reading order."""
  owned, rest = _owners(page.parts, page.cells)
  found = []
  for inner in [*owned, *([cell] for cell in rest)]:
    for line in reading_order.lines([cell.box for cell in inner]):
      cells = [inner[i] for i in line]
      boxes = np.array([cell.box for cell in cells])
      left, top = boxes[:, :2].min(0).tolist()
      right, bottom = boxes[:, 2:].max(0).tolist()
      found.append(
        Part((left, top, right, bottom), "line", reading_order.text_of(cells))
      )
  return [line for line in found if line.text]


def _cut(page: Page, pieces: Sequence[_Piece]) -> list[_Piece]:
  """Parts or cells inside of the frame, as far as it is known."""
  if page.frame is None:
    size = (float("inf"), float("inf"))
  else:
    size = (page.frame[1], page.frame[0])
  boxes = [clipped(piece.box, size=size) for piece in pieces]
  return [
    piece._replace(box=box)
    for box, piece in zip(boxes, pieces, strict=True)
    if box is not None
  ]


def _owners(
  parts: Sequence[Part], cells: Sequence[Cell]
) -> tuple[list[list[Cell]], list[Cell]]:
  """The cells of each part, and those of none."""
  owned: list[list[Cell]] = [[] for _ in parts]
  rest = []
  boxes = np.array([part.box for part in parts], float).reshape(-1, 4)
  left, top, right, bottom = boxes.T
  areas = (right - left) * (bottom - top)
  for cell in cells:
    x, y = (cell.box[0] + cell.box[2]) / 2, (cell.box[1] + cell.box[3]) / 2
    there = (left <= x) & (x <= right) & (top <= y) & (y <= bottom)
    if there.any():
      owned[int(np.argmin(np.where(there, areas, np.inf)))].append(cell)
    else:
      rest.append(cell)
  return owned, rest


def text_of(parts: Sequence[Part]) -> str:
  """The page's text: parts one below the other, an empty line between them."""
  return "\n\n".join(part.text for part in parts if part.text.strip())
