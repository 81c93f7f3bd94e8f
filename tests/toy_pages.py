"""Folders of documents in the published formats, small and made up."""

import json
import pathlib

import numpy as np
from PIL import Image

SIDE = 1025  # DocLayNet's squares.
# The page's true size in points.
WIDTH, HEIGHT = 612, 792
CLASSES = (
  "Caption",
  "Footnote",
  "Formula",
  "List-item",
  "Page-footer",
  "Page-header",
  "Picture",
  "Section-header",
  "Table",
  "Text",
  "Title",
)


def square(left, top, right, bottom):
  """A box in the page's points as [left, top, width, height] of the square."""
  x, y = SIDE / WIDTH, SIDE / HEIGHT
  return [left * x, top * y, (right - left) * x, (bottom - top) * y]


def picture(path, width=SIDE, height=SIDE, inked=(), size=(WIDTH, HEIGHT)):
  """A white page with black boxes, given in points, squeezed to a size."""
  page = np.full((size[1], size[0], 3), 255, np.uint8)
  for left, top, right, bottom in inked:
    page[top:bottom, left:right] = 0
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(page).resize((width, height)).save(path)


# A page of two columns below a title: (class, box in points, lines).
PAGE = (
  ("Text", (320, 100, 580, 160), ("right one", "right two")),
  ("Title", (100, 20, 500, 50), ("The Title",)),
  ("Text", (30, 100, 290, 160), ("left one", "left two")),
  ("Page-footer", (290, 770, 320, 780), ("7",)),
  ("Picture", (30, 400, 580, 600), ()),
)


def annotation(number, image, name, box, **more):
  return {
    "id": number,
    "image_id": image,
    "category_id": CLASSES.index(name) + 1,
    "bbox": square(*box),
    "segmentation": [],
    "area": 1.0,
    "iscrowd": 0,
    "precedence": 0,
    **more,
  }


def cells_of(page=PAGE):
  """Every word of a page as a cell, in no order."""
  cells = []
  for _, (left, top, right, bottom), lines in page:
    step = (bottom - top) / max(len(lines), 1)
    for row, line in enumerate(lines):
      words = line.split()
      wide = (right - left) / len(words)
      for column, word in enumerate(words):
        x, y = left + column * wide, top + row * step
        box = square(x, y, x + 0.8 * wide, y + 0.9 * step)
        cells.append({"bbox": box, "text": word, "font": {"size": 9}})
  return cells[::-1]


def extra(cells=None):
  return {
    "metadata": {
      "page_hash": "x",
      "original_width": WIDTH,
      "original_height": HEIGHT,
      "coco_width": SIDE,
      "coco_height": SIDE,
    },
    "cells": cells_of() if cells is None else cells,
  }


def coco(images, annotations, classes=CLASSES):
  return {
    "images": images,
    "annotations": annotations,
    "categories": [
      {"supercategory": name, "id": i, "name": name}
      for i, name in enumerate(classes, 1)
    ],
  }


def image(number, name, **more):
  return {
    "id": number,
    "width": SIDE,
    "height": SIDE,
    "file_name": name,
    "doc_category": "financial_reports",
    "collection": "c",
    "doc_name": "d.pdf",
    "page_no": 1,
    "precedence": 0,
    **more,
  }


def doclaynet(folder: pathlib.Path, count=2, extras=True) -> pathlib.Path:
  """DocLayNet with `count` pages to train on and one to validate by."""
  for split, numbers in {"train": range(count), "val": [count]}.items():
    images, annotations = [], []
    for number in numbers:
      name = f"page{number}.png"
      images.append(image(number, name))
      annotations += [
        annotation(100 * number + i, number, kind, box)
        for i, (kind, box, _) in enumerate(PAGE)
      ]
      picture(folder / "PNG" / name, inked=[box for _, box, _ in PAGE])
      if extras:
        write(folder / "JSON" / f"page{number}.json", extra())
    write(folder / "COCO" / f"{split}.json", coco(images, annotations))
  return folder


def write(path: pathlib.Path, value) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(value), "utf-8")


def funsd(folder: pathlib.Path) -> pathlib.Path:
  """FUNSD with one form to train on and one to test by."""
  form = [
    {
      "id": 1,
      "text": "R 1",
      "box": [120, 20, 160, 40],
      "label": "answer",
      "linking": [[0, 1]],
      "words": [
        {"text": "R", "box": [120, 20, 135, 40]},
        {"text": "1", "box": [140, 20, 160, 40]},
      ],
    },
    {
      "id": 0,
      "text": "Registration No.",
      "box": [10, 20, 100, 40],
      "label": "question",
      "linking": [[0, 1]],
      "words": [
        {"text": "Registration", "box": [10, 20, 70, 40]},
        {"text": "No.", "box": [75, 20, 100, 40]},
      ],
    },
  ]
  for part in ("training_data", "testing_data"):
    home = folder / "dataset" / part
    write(home / "annotations" / f"{part}.json", {"form": form})
    picture(home / "images" / f"{part}.png", 200, 100, size=(200, 100))
  return folder


def docvqa(folder: pathlib.Path) -> pathlib.Path:
  """DocVQA with two questions to train on, one to validate, one to test by."""

  def question(number, split, **more):
    return {
      "questionId": number,
      "question": f"What is question {number} about, and why?",
      "question_types": ["layout"],
      "image": f"documents/{split}_1.png",
      "docId": 1,
      "ucsf_document_id": split,
      "ucsf_document_page_no": "1",
      "data_split": split,
      **more,
    }

  found = {
    "train": [
      question(1, "train", answers=["One", "the one"]),
      question(2, "train", answers=["Two"]),
    ],
    "val": [question(3, "val", answers=["Three"])],
    "test": [question(4, "test")],
  }
  for split, data in found.items():
    write(
      folder / "spdocvqa_qas" / f"{split}_v1.0_withQT.json",
      {"dataset_name": "SP-DocVQA", "data": data},
    )
    picture(folder / "spdocvqa_images" / f"{split}_1.png", 306, 396)
  return folder
