"""Regions of a picture -> the features "boxes", "region_mask" and so on."""

import math
from collections.abc import Sequence

import numpy as np

from byt5_diffusion.data import annotated, images, languages

_NUMBERS = {label: i for i, label in enumerate(annotated.LABELS)}


def features(
  example: annotated.Annotated,
  size: tuple[int, int],
  frame: tuple[int, int],
  fit: str,
  *,
  max_regions: int | None = None,
  max_length: int | None = None,
) -> dict[str, np.ndarray]:
  """ANNOTATED_FEATURES but for the picture, its text and its id.

  A pixel of the mask belongs to a region if its centre does; where several lie,
  to that with the smallest box, of equal ones to the last. So a word is seen on
  its line, and a line on its page, in whichever order they come.

  Args:
    example: regions in pixels of the picture before it was fitted.
    size: rows and columns of that picture.
    frame: rows and columns of the picture as the model gets it.
    fit: "pad" or "crop" (images.fit).
    max_regions: further ones are left out; None: all are kept.
    max_length: of text_tokens; a span that goes beyond is left out.
  """
  place = images.placement(size, *frame, fit)
  boxes: list[list[float]] = []
  labels: list[int] = []
  spans: list[tuple[int, int]] = []
  visible = []
  for region in example.regions:
    box = _in_frame(region.box, place, frame)
    if box is None:
      continue
    visible.append((_area(box), region))
    if max_regions is not None and len(boxes) >= max_regions:
      continue
    boxes.append([box[0] / frame[1], box[1] / frame[0]])
    boxes[-1] += [box[2] / frame[1], box[3] / frame[0]]
    labels.append(_NUMBERS[region.label])
    spans.append(_span(region.span, max_length))
  mask = np.zeros(frame, np.uint8)
  for _, region in sorted(visible, key=lambda one: -one[0]):
    _paint(mask, region, place)
  return {
    "boxes": np.array(boxes, np.float32).reshape(-1, 4),
    "box_labels": np.array(labels, np.int32),
    "box_spans": np.array(spans, np.int32).reshape(-1, 2),
    "region_mask": mask,
    "style": np.array(
      [example.style.get(name, math.nan) for name in annotated.STYLE],
      np.float32,
    ),
    "language": np.array([languages.row(example.language)], np.int32),
  }


def _in_frame(
  box: annotated.Box, place: images.Placement, frame: tuple[int, int]
) -> annotated.Box | None:
  """The box in the frame's pixels; None if nothing of it is there."""
  left = max(box[0] * place.scale_x + place.left, 0.0)
  top = max(box[1] * place.scale_y + place.top, 0.0)
  right = min(box[2] * place.scale_x + place.left, float(frame[1]))
  bottom = min(box[3] * place.scale_y + place.top, float(frame[0]))
  # Not so if one is NaN.
  return (left, top, right, bottom) if right > left and bottom > top else None


def _area(box: annotated.Box) -> float:
  return (box[2] - box[0]) * (box[3] - box[1])


def _paint(
  mask: np.ndarray, region: annotated.Region, place: images.Placement
) -> None:
  """Fills the region's polygon, or its box if it has none of use."""
  corners = np.array(region.polygon, np.float64).reshape(-1, 2)
  number = _NUMBERS[region.label]
  if len(corners) > 2 and np.isfinite(corners).all():
    x = corners[:, 0] * place.scale_x + place.left
    y = corners[:, 1] * place.scale_y + place.top
    _fill(mask, x, y, number)
    return
  left, top, right, bottom = region.box
  columns = _centres([left, right], place.scale_x, place.left, mask.shape[1])
  rows = _centres([top, bottom], place.scale_y, place.top, mask.shape[0])
  mask[rows[0] : rows[1], columns[0] : columns[1]] = number


def _centres(
  edges: Sequence[float], scale: float, offset: float, count: int
) -> np.ndarray:
  """The first of `count` pixels whose centre lies behind each edge."""
  first = np.ceil(np.asarray(edges) * scale + offset - 0.5)
  return np.clip(first, 0, count).astype(int)


def _fill(mask: np.ndarray, x: np.ndarray, y: np.ndarray, number: int) -> None:
  """Fills a polygon by the even-odd rule.

  Every edge that crosses the centres of a row changes, from there on, whether
  its pixels are inside.
  """
  top, bottom = _centres([y.min(), y.max()], 1.0, 0.0, mask.shape[0])
  left, right = _centres([x.min(), x.max()], 1.0, 0.0, mask.shape[1])
  if top >= bottom or left >= right:
    return
  crossed = np.zeros((bottom - top, right - left + 1), np.int32)
  for x0, y0, x1, y1 in zip(x, y, np.roll(x, -1), np.roll(y, -1), strict=True):
    ends = _centres([min(y0, y1), max(y0, y1)], 1.0, -float(top), bottom - top)
    rows = np.arange(*ends)
    if len(rows):
      at = x0 + (rows + top + 0.5 - y0) * ((x1 - x0) / (y1 - y0))
      columns = _centres(at, 1.0, -float(left), right - left)
      crossed[rows, columns] += 1
  inside = np.cumsum(crossed[:, :-1], axis=1) % 2 == 1
  mask[top:bottom, left:right][inside] = number


def _span(
  span: tuple[int, int] | None, max_length: int | None
) -> tuple[int, int]:
  """A span of bytes is one of tokens: one byte, one token."""
  if span is None or not 0 <= span[0] < span[1]:
    return (0, 0)
  cut_off = max_length is not None and span[1] >= max_length  # The end's mark.
  return (0, 0) if cut_off else span
