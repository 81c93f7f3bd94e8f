"""Regions of a picture -> the features "boxes", "region_mask" and so on."""

import math

import numpy as np
from PIL import Image, ImageDraw

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
  mask = Image.new("L", (frame[1], frame[0]))
  draw = ImageDraw.Draw(mask)
  for region in example.regions:
    box = _in_frame(region.box, place, frame)
    if box is None:
      continue
    number = _NUMBERS[region.label]
    _paint(draw, region, place, number)
    if max_regions is not None and len(boxes) >= max_regions:
      continue
    boxes.append([box[0] / frame[1], box[1] / frame[0]])
    boxes[-1] += [box[2] / frame[1], box[3] / frame[0]]
    labels.append(number)
    spans.append(_span(region.span, max_length))
  return {
    "boxes": np.array(boxes, np.float32).reshape(-1, 4),
    "box_labels": np.array(labels, np.int32),
    "box_spans": np.array(spans, np.int32).reshape(-1, 2),
    "region_mask": np.array(mask),
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
  left = max(0.0, box[0] * place.scale_x + place.left)
  top = max(0.0, box[1] * place.scale_y + place.top)
  right = min(float(frame[1]), box[2] * place.scale_x + place.left)
  bottom = min(float(frame[0]), box[3] * place.scale_y + place.top)
  return (left, top, right, bottom) if right > left and bottom > top else None


def _paint(
  draw: ImageDraw.ImageDraw,
  region: annotated.Region,
  place: images.Placement,
  number: int,
) -> None:
  """Fills the region; pixels whose centres lie inside of a box are filled."""
  if region.polygon:
    outline = [
      (
        x * place.scale_x + place.left - 0.5,
        y * place.scale_y + place.top - 0.5,
      )
      for x, y in region.polygon
    ]
    draw.polygon(outline, fill=number)
    return
  left, top, right, bottom = (
    math.ceil(edge * scale + offset - 0.5)
    for edge, scale, offset in zip(
      region.box,
      (place.scale_x, place.scale_y) * 2,
      (place.left, place.top) * 2,
      strict=True,
    )
  )
  if right > left and bottom > top:
    draw.rectangle((left, top, right - 1, bottom - 1), fill=number)


def _span(
  span: tuple[int, int] | None, max_length: int | None
) -> tuple[int, int]:
  if span is None or (max_length is not None and span[1] >= max_length):
    return (0, 0)
  return span
