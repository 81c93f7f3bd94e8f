"""How well a page was read: boxes, masks, answers.

  box_scores      mean average precision of boxes, as COCO counts it
  mask_scores     intersection over union of masks, class by class
  anls            average normalised Levenshtein similarity of answers

Character error rates are in spelling.py, layouts in data/sets/layout_text.py.
"""

import contextlib
import io
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from byt5_diffusion import spelling
from byt5_diffusion.data import (
  annotated,
  images,
  regions,
)
from byt5_diffusion.data.sets import (
  documents,
  docvqa,
  layout_text,
)

_log = logging.getLogger(__name__)

ANLS_THRESHOLD = 0.5
_MAX_BOXES = 100  # COCO looks at that many of a picture and class.
_SIDE = 1000.0  # Pixels of the pages that COCO's evaluation is told of.
_MASK_SIDE = 512
Layout = Sequence[documents.Part]


# --- Boxes -------------------------------------------------------------------


def box_scores(
  targets: Sequence[Layout],
  found: Sequence[Layout],
  confidences: Sequence[Sequence[float]] | None = None,
) -> dict[str, Any]:
  """Average precision of boxes, as COCO's evaluation computes it.

  AP of a class = mean of the interpolated precision at recalls 0, 0.01 ... 1,
  averaged over the overlaps (IoU) that a box needs to be right; mAP = its mean
  over the classes that the targets have (Lin et al. 2014).

  Args:
    targets: every page's true boxes, in shares of its width and height.
    found: the boxes to be judged.
    confidences: of the found ones; None: all alike. Then the pages' order
      matters a little: boxes that are equally sure are judged in it.

  Returns:
    {"map": over IoU 0.50:0.05:0.95, "map_50", "map_75", "by_class": {label:
    AP}}; NaN if the targets have no boxes.

  Raises:
    ImportError: pycocotools is not installed.
    ValueError: as many pages of both are needed.
  """
  if len(targets) != len(found):
    raise ValueError(f"{len(targets)} pages, but {len(found)} readings.")
  cocoeval = _cocoeval()
  if not any(map(len, targets)):
    nothing = float("nan")
    return {
      "map": nothing,
      "map_50": nothing,
      "map_75": nothing,
      "by_class": {},
    }
  labels = sorted({p.label for page in targets for p in page})
  # Something else than the targets' classes is wrong, but nobody's recall.
  detections = [
    _record(part, labels, image, score)
    for image, page in enumerate(found)
    for part, score in zip(
      page,
      confidences[image] if confidences else [1.0] * len(page),
      strict=True,
    )
    if part.label in labels
  ]
  precision = np.zeros((10, 101, len(labels)))
  if detections:
    precision = _precision(cocoeval, targets, detections, labels)
  by_class = precision.mean(axis=(0, 1))
  return {
    "map": float(by_class.mean()),
    "map_50": float(precision[0].mean()),
    "map_75": float(precision[5].mean()),
    "by_class": dict(zip(labels, map(float, by_class), strict=True)),
  }


def _cocoeval() -> Any:
  try:
    from pycocotools import cocoeval
  except ImportError as error:
    raise ImportError(
      "Average precision of boxes needs pycocotools. Install it with "
      '`pip install "byt5-diffusion[scores]"`.'
    ) from error
  return cocoeval


def _record(
  part: documents.Part, labels: list[str], image: int, score: float
) -> dict[str, Any]:
  left, top, right, bottom = (edge * _SIDE for edge in part.box)
  width, height = right - left, bottom - top
  return {
    "image_id": image + 1,
    "category_id": labels.index(part.label) + 1,
    "bbox": [left, top, width, height],
    "area": width * height,
    "iscrowd": 0,
    "score": score,
  }


def _precision(
  cocoeval: Any,
  targets: Sequence[Layout],
  detections: list[dict[str, Any]],
  labels: list[str],
) -> np.ndarray:
  """Interpolated precision [IoU, recall, class], boxes of any size."""
  from pycocotools import coco

  with contextlib.redirect_stdout(io.StringIO()):  # It prints.
    truth = coco.COCO()
    truth.dataset = {
      "info": {},
      "images": [{"id": i + 1} for i in range(len(targets))],
      "categories": [{"id": i + 1} for i in range(len(labels))],
      "annotations": [
        _record(part, labels, image, 1.0)
        for image, page in enumerate(targets)
        for part in page
      ],
    }
    for number, annotation in enumerate(truth.dataset["annotations"], 1):
      annotation["id"] = number
    truth.createIndex()
    evaluation = cocoeval.COCOeval(truth, truth.loadRes(detections), "bbox")
    evaluation.params.areaRng = [[0, 1e10]]
    evaluation.params.areaRngLbl = ["all"]
    evaluation.params.maxDets = [_MAX_BOXES]
    evaluation.evaluate()
    evaluation.accumulate()
  return evaluation.eval["precision"][:, :, :, 0, 0]


# --- Masks -------------------------------------------------------------------


def mask_of(page: Layout, height: int, width: int) -> np.ndarray:
  """Boxes in shares of a page as "region_mask": uint8 [height, width]."""
  parts = [
    annotated.Region(
      box=(
        part.box[0] * width,
        part.box[1] * height,
        part.box[2] * width,
        part.box[3] * height,
      ),
      label=part.label,
    )
    for part in page
  ]
  example = annotated.Annotated(
    key="", image=b"", text="", regions=tuple(parts)
  )
  size = (height, width)
  return regions.features(example, size, size, "pad")["region_mask"]


def mask_scores(
  targets: Sequence[np.ndarray], found: Sequence[np.ndarray]
) -> dict[str, Any]:
  """IoU = |both| / |either| of a class's pixels, over all pages together.

  Args:
    targets: true masks, places in annotated.LABELS, uint8 [H, W] each.
    found: the masks to be judged, of the same sizes.

  Returns:
    {"mean_iou": over the classes that occur, "by_class": {label: IoU}}; pixels
    of no class count where the other mask has one. NaN if no class occurs.

  Raises:
    ValueError: other numbers or sizes of masks.
  """
  both = np.zeros(256, np.int64)
  either = np.zeros(256, np.int64)
  for target, mask in zip(targets, found, strict=True):
    if target.shape != mask.shape:
      raise ValueError(f"masks of {target.shape} and {mask.shape}.")
    shared = np.bincount(target[target == mask].ravel(), minlength=256)
    both += shared
    either += np.bincount(target.ravel(), minlength=256) - shared
    either += np.bincount(mask.ravel(), minlength=256)
  by_class = {
    label: float(both[i] / either[i])
    for i, label in enumerate(annotated.LABELS)
    if i and either[i]
  }
  mean = np.mean(list(by_class.values())) if by_class else float("nan")
  return {"mean_iou": float(mean), "by_class": by_class}


# --- Answers -----------------------------------------------------------------


def anls(
  answers: Sequence[Sequence[str]],
  readings: Sequence[str],
  threshold: float = ANLS_THRESHOLD,
) -> float:
  """Mean over questions of max over answers of s (Biten et al. 2019).

  s = 1 - d if d < threshold, else 0; d = edit distance of the characters (code
  points) / length of the longer one. Upper and lower case are the same, and so
  are one space and several; outer ones don't count.

  Args:
    answers: all right answers of every question, at least one.
    readings: what was read.
    threshold: d at which an answer is plainly wrong.
  """
  if not answers or not all(answers):
    raise ValueError("every question needs an answer.")
  scores = [
    max(_similarity(_plain(answer), _plain(reading)) for answer in right)
    for right, reading in zip(answers, readings, strict=True)
  ]
  return float(np.mean([s if s > 1 - threshold else 0.0 for s in scores]))


def _plain(answer: str) -> str:
  return " ".join(answer.lower().split())


def _similarity(answer: str, reading: str) -> float:
  longer = max(len(answer), len(reading))
  if not longer:
    return 1.0
  return 1.0 - spelling.edit_distance(answer, reading) / longer


# --- Of what a reader wrote --------------------------------------------------


def of_layouts(
  targets: Sequence[str], readings: Sequence[str]
) -> dict[str, Any]:
  """Scores of layouts as texts: of their boxes, and of the masks they paint.

  Returns:
    {"boxes": box_scores, "masks": mask_scores, "malformed": share of readings
    that are not regions and nothing else}. "boxes" is None without pycocotools,
    and both are where the targets have no regions.
  """
  wanted = [layout_text.parse(text) for text in targets]
  read = [layout_text.parse(text) for text in readings]
  malformed = float(np.mean([not layout_text.is_layout(x) for x in readings]))
  if not any(wanted):
    return {"boxes": None, "masks": None, "malformed": malformed}
  try:
    boxes = box_scores(wanted, read)
  except ImportError as error:
    _log.warning("%s", error)
    boxes = None
  masks = [
    [mask_of(page, _MASK_SIDE, _MASK_SIDE) for page in pages]
    for pages in (wanted, read)
  ]
  return {
    "boxes": boxes,
    "masks": mask_scores(*masks),
    "malformed": malformed,
  }


def of_answers(
  answers: Mapping[str, Sequence[str]],
  readings: Sequence[str],
  example_ids: Sequence[str],
) -> dict[str, Any]:
  """{"anls", "count"} of the readings whose examples have answers."""
  pairs = [
    (answers[name], reading)
    for name, reading in zip(example_ids, readings, strict=True)
    if name in answers
  ]
  if not pairs:
    raise ValueError("the answers are of none of the examples that were read.")
  right, read = zip(*pairs, strict=True)
  return {"anls": anls(right, read), "count": len(pairs)}


def docvqa_answers(*, folder: str) -> Mapping[str, Sequence[str]]:
  """All right answers of DocVQA's questions, for reading.read_data.

  Args:
    folder: of the data set, as the task document_question names it.
  """
  try:
    return docvqa.answers(folder)
  except images.BadImage as error:
    raise ValueError(str(error)) from None
