"""In which order the boxes of a page are read, by cutting it where it is empty.

The recursive X-Y cut (Nagy and Seth 1984): a group of boxes that an empty
column divides is read column by column, one that empty rows divide band by
band. Bands that have a column between them in common are read as one, so that
two columns of paragraphs are not read across where the paragraphs happen to end
together.
"""

import itertools
import unicodedata
from collections.abc import Sequence

from byt5_diffusion.data import annotated

# Boxes drawn by hand overlap a little: each is made smaller by this share.
_SHRUNK = 0.05
# A page that needs more cuts inside each other is no page.
_MAX_DEPTH = 64
_X, _Y = 0, 1
# A box of less share of a line's height than this is not on it.
_ON_THE_LINE = 0.5
_GLUED = 0.1  # Of a line's height: what is nearer belongs to the same word.


def order(
  boxes: Sequence[annotated.Box], right_to_left: bool = False
) -> list[int]:
  """Places of the boxes in reading order, downwards column by column."""
  if right_to_left:  # In a mirror, the first column is the left one.
    boxes = [(-box[2], box[1], -box[0], box[3]) for box in boxes]
  return _order(list(range(len(boxes))), boxes, 0)


def is_right_to_left(text: str) -> bool:
  """Whether most of its letters are of scripts such as Arabic."""
  found = [unicodedata.bidirectional(character) for character in text]
  return sum(x in ("R", "AL") for x in found) > found.count("L")


def _order(
  group: list[int], boxes: Sequence[annotated.Box], depth: int
) -> list[int]:
  if len(group) < 2:
    return group
  columns = _cut(group, boxes, _X)
  if depth >= _MAX_DEPTH:
    parts = []
  elif len(columns) > 1:
    parts = columns
  else:
    parts = _bands(group, boxes)
  if len(parts) < 2:
    return sorted(group, key=lambda i: (boxes[i][1], boxes[i][0], i))
  return [i for part in parts for i in _order(part, boxes, depth + 1)]


def _bands(group: list[int], boxes: Sequence[annotated.Box]) -> list[list[int]]:
  """Bands from top to bottom; neighbours with a column in common are one."""
  bands: list[list[int]] = []
  for band in _cut(group, boxes, _Y):
    if bands and len(_cut(bands[-1] + band, boxes, _X)) > 1:
      bands[-1] = bands[-1] + band
    else:
      bands.append(band)
  return bands


def _cut(
  group: Sequence[int], boxes: Sequence[annotated.Box], axis: int
) -> list[list[int]]:
  """Groups between which there is an empty strip across `axis`."""
  extents = []
  for i in group:
    low, high = boxes[i][axis], boxes[i][axis + 2]
    less = _SHRUNK * (high - low)
    extents.append((low + less, high - less, i))
  extents.sort()
  parts: list[list[int]] = []
  end = float("-inf")
  for low, high, i in extents:
    if not parts or low >= end:
      parts.append([])
    parts[-1].append(i)
    end = max(end, high)
  return parts


def lines(boxes: Sequence[annotated.Box]) -> list[list[int]]:
  """Places of the boxes of a block, line by line from left to right."""
  found: list[list[int]] = []
  top = bottom = 0.0
  for i in sorted(range(len(boxes)), key=lambda i: _middle(boxes[i])):
    height = min(boxes[i][3] - boxes[i][1], bottom - top)
    shared = min(boxes[i][3], bottom) - max(boxes[i][1], top)
    if found and shared >= _ON_THE_LINE * height:
      found[-1].append(i)
    else:
      found.append([i])
      top, bottom = boxes[i][1], boxes[i][3]
  return [sorted(line, key=lambda i: (boxes[i][0], i)) for line in found]


def _middle(box: annotated.Box) -> float:
  return (box[1] + box[3]) / 2


def text_of(pieces: Sequence[tuple[annotated.Box, str]]) -> str:
  """The text of a block's pieces, line by line.

  Args:
    pieces: (box, text), words or parts of lines, in any order. Those that touch
      are parts of a word; others are parted by a space.
  """
  pieces = [(box, " ".join(text.split())) for box, text in pieces]
  pieces = [piece for piece in pieces if piece[1]]
  written = []
  for line in lines([box for box, _ in pieces]):
    if is_right_to_left("".join(pieces[i][1] for i in line)):
      line = line[::-1]
    parts = [pieces[line[0]][1]]
    for before, i in itertools.pairwise(line):
      (box, text), (last, _) = pieces[i], pieces[before]
      gap = max(box[0] - last[2], last[0] - box[2])
      parts += ["" if gap < _GLUED * (box[3] - box[1]) else " ", text]
    written.append("".join(parts))
  return "\n".join(written)
