"""What is known of a batch's pictures, as people see it: boxes, masks, style.

Works from ANNOTATED_FEATURES as a model gets them (data/batch_view.py's rows),
so a box that is beside its word here is beside it there.
"""

import colorsys
import functools
import math
from typing import Any, NamedTuple

import numpy as np

from byt5_diffusion.data import (
  annotated,
  batch_view,
  languages,
  text,
)
from byt5_diffusion.data.writing import paragraphs

Color = tuple[int, int, int]

_SHOWN = 400  # Pixels: a picture whose sides are less is shown larger.
_TINT = 0.35  # Of the mask's colour over the picture.
_LETTERS = 10.0  # Pixels per em of a box's label.
# Neighbours in LABELS get hues that are far apart.
_GOLDEN = (math.sqrt(5) - 1) / 2


class Shown(NamedTuple):
  """A region: its label, its box in shares, its text where that is known."""

  label: str
  box: tuple[float, float, float, float]
  text: str


def is_annotated(row: batch_view.Row) -> bool:
  """Whether there is anything to be shown."""
  return "boxes" in row.arrays and "images" in row.arrays


def regions(row: batch_view.Row) -> list[Shown]:
  """The row's regions, in its order."""
  if not is_annotated(row):
    return []
  found = []
  for box, number, span in zip(
    row.arrays["boxes"],
    row.arrays["box_labels"],
    row.arrays["box_spans"],
    strict=True,
  ):
    if number > 0:
      tokens = row.arrays["text_tokens"][int(span[0]) : int(span[1])]
      left, top, right, bottom = (float(edge) for edge in box)
      found.append(
        Shown(
          label(int(number)), (left, top, right, bottom), text.decode(tokens)
        )
      )
  return found


def label(number: int) -> str:
  """Name of a place in annotated.LABELS; of one behind them, its number."""
  return (
    annotated.LABELS[number]
    if 0 <= number < len(annotated.LABELS)
    else str(number)
  )


@functools.cache
def color(name: str) -> Color:
  """The label's colour, the same on every page."""
  place = annotated.LABELS.index(name) if name in annotated.LABELS else 0
  dark = 0.95 if place % 2 else 0.7
  rgb = colorsys.hsv_to_rgb(place * _GOLDEN % 1.0, 0.85, dark)
  return (round(rgb[0] * 255), round(rgb[1] * 255), round(rgb[2] * 255))


def legend(row: batch_view.Row) -> list[tuple[str, Color, int]]:
  """(label, colour, how many boxes) of what the row has, in LABELS' order."""
  counts = dict.fromkeys(annotated.LABELS[1:], 0)
  for region in regions(row):
    counts[region.label] = counts.get(region.label, 0) + 1
  masked = np.unique(row.arrays["region_mask"]) if is_annotated(row) else ()
  painted = {label(int(number)) for number in masked if number}
  return [
    (name, color(name), count)
    for name, count in counts.items()
    if count or name in painted
  ]


def facts(row: batch_view.Row) -> dict[str, Any]:
  """{"language": mC4's code or "und", a name of STYLE: number}; if known."""
  if not is_annotated(row):
    return {}
  place = int(row.arrays["language"][0])
  known = 0 <= place < len(languages.TABLE)
  found: dict[str, Any] = {
    "language": languages.TABLE[place].code if known else "und"
  }
  for name, value in zip(annotated.STYLE, row.arrays["style"], strict=True):
    if math.isfinite(value):
      found[name] = round(float(value), 4)
  return found


def described(row: batch_view.Row) -> str:
  """The facts in one line; colours as HTML has them."""
  found = facts(row)
  parts = []
  for name in ("ink", "paper"):
    shares = [found.pop(f"{name}_{c}", None) for c in ("red", "green", "blue")]
    if None not in shares:
      levels = (round(255 * min(max(share, 0), 1)) for share in shares)
      parts.append(f"{name} #" + "".join(f"{level:02x}" for level in levels))
  code = found.pop("language", None)
  said = [f"language {code}"] if code else []
  said += [f"{name} {value:g}" for name, value in found.items()]
  return ", ".join(said + parts)


def scale_of(height: int, width: int) -> int:
  """How many times larger a small picture is shown."""
  return max(1, _SHOWN // max(height, width, 1))


def overlaid(row: batch_view.Row) -> np.ndarray:
  """The picture with its mask tinted and its boxes drawn, uint8 [H, W, 3].

  `scale_of` times as large as the picture. A box has its label in its corner
  where there is room.
  """
  picture, mask = row.picture, row.arrays["region_mask"]
  assert picture is not None
  height, width = picture.shape[:2]
  tinted = picture.astype(np.float32)
  for number in np.unique(mask):
    if number:
      where = mask == number
      tint = np.array(color(label(int(number))), np.float32)
      tinted[where] += _TINT * (tint - tinted[where])
  scale = scale_of(height, width)
  page = tinted.astype(np.uint8).repeat(scale, axis=0).repeat(scale, axis=1)
  for region in regions(row):
    _outline(page, region)
  return page


def _outline(page: np.ndarray, region: Shown) -> None:
  height, width = page.shape[:2]
  box = np.clip(np.nan_to_num(region.box), 0.0, 1.0)
  left, right = np.rint(box[0::2] * (width - 1)).astype(int).tolist()
  top, bottom = np.rint(box[1::2] * (height - 1)).astype(int).tolist()
  ink = color(region.label)
  page[[top, bottom], left : right + 1] = ink
  page[top : bottom + 1, [left, right]] = ink
  tag = _tag(region.label)
  if 2 * tag.shape[0] < bottom - top and tag.shape[1] < right - left:
    there = page[
      top + 1 : top + 1 + tag.shape[0], left + 1 : left + 1 + tag.shape[1]
    ]
    paper = tag.astype(np.float32) / 255
    there[:] = 255 * (1 - paper) + paper * np.array(ink, np.float32)


@functools.cache
def _tag(name: str) -> np.ndarray:
  """A label, dark on white, no wider than it has to be."""
  drawn = paragraphs.draw(name, 160, _LETTERS)
  used = np.flatnonzero((drawn < 255).any(axis=(0, 2)))
  return drawn[:, : used[-1] + 2] if used.size else drawn[:, :1]
