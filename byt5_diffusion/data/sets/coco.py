"""COCO's annotation files: which boxes lie on which picture.

Read element by element and held as arrays. A file of PubLayNet's size (336,000
pages, 3.3 million boxes) takes a quarter of a minute, and 250 MB of memory once
it is read, 430 MB at most before.
"""

import array
import collections
import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeGuard

import numpy as np
import tqdm

from byt5_diffusion.data import (
  annotated,
  images,
)
from byt5_diffusion.data.rows import json_stream

_MAX_SIDE = 2**16
_MAX_ID = 2**63
_MAX_CATEGORIES = 1000
_KEYS = ("images", "annotations", "categories")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Coco:
  """An annotation file's pictures and boxes.

  Attributes:
    name: of the file, for messages.
    files: every picture's file, as the annotations call it.
    sizes: rows and columns, int32 [n, 2].
    facts: {"doc_category": ...}: what else is said of a picture, as far as
      `keep` asked for it.
    starts: picture i has boxes starts[i] to starts[i + 1], int64 [n + 1].
    boxes: left, top, right, bottom in pixels as the file says them (they may
      lie outside of the picture), float32 [m, 4].
    labels: places in annotated.LABELS, uint8 [m].
    categories: how often the file's own class names occur.
    problems: {i: why picture i cannot be used}.
  """

  name: str
  files: list[str]
  sizes: np.ndarray
  facts: list[dict[str, str]]
  starts: np.ndarray
  boxes: np.ndarray
  labels: np.ndarray
  categories: Mapping[str, int]
  problems: Mapping[int, str]

  def __len__(self) -> int:
    return len(self.files)

  @functools.cached_property
  def fingerprint(self) -> str:
    """Of all that it holds."""
    made = hashlib.sha256()
    for array_ in (self.sizes, self.starts, self.boxes, self.labels):
      made.update(np.ascontiguousarray(array_).data)
    made.update("\0".join(self.files).encode("utf-8", "surrogatepass"))
    made.update(repr((self.facts, sorted(self.problems.items()))).encode())
    return made.hexdigest()[:16]

  def regions(self, index: int) -> list[tuple[annotated.Box, str]]:
    """(box, label) of a picture, in the file's order.

    Raises:
      images.BadImage: see `problems`.
    """
    if index in self.problems:
      raise images.BadImage(
        f"{self.name}: {self.files[index]}", self.problems[index]
      )
    part = slice(int(self.starts[index]), int(self.starts[index + 1]))
    return [
      ((box[0], box[1], box[2], box[3]), annotated.LABELS[label])
      for box, label in zip(
        self.boxes[part].tolist(), self.labels[part].tolist(), strict=True
      )
    ]


def label_of(category: str) -> str | None:
  """The word of annotated.LABELS for a data set's class name, or None.

  By name and not by number: data sets number the same classes differently.
  """
  name = category.strip().lower().replace(" ", "-").replace("_", "-")
  return name if name and name in annotated.LABELS else None


def read(path: str | os.PathLike[str], *, keep: tuple[str, ...] = ()) -> Coco:
  """Reads a file of {"images", "annotations", "categories"}.

  Pictures and annotations whose "precedence" is not 0 are repeats of others
  (DocLayNet) and left out.

  Args:
    path: the file.
    keep: of a picture's record: what Coco.facts holds.

  Raises:
    json_stream.BrokenJson, OSError: the file as a whole cannot be used.
    ValueError: it has no pictures, or classes that LABELS has no word for.
  """
  reader = _Reader(os.fspath(path), keep)
  for key, element in tqdm.tqdm(
    json_stream.elements(path, _KEYS),
    f"reading {os.path.basename(path)}",
    disable=None,
    unit=" records",
    leave=False,
  ):
    reader.ADD[key](reader, element)
  return reader.finish()


class _Reader:
  """What was read so far; the three lists come in any order."""

  def __init__(self, name: str, keep: tuple[str, ...]):
    self._name = name
    self._keep = keep
    self._rows: dict[int, int] = {}  # A picture's id -> its place.
    self._files: list[str] = []
    self._sizes = array.array("i")
    self._facts: list[dict[str, str]] = []
    self._words: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}
    self._repeats: set[int] = set()  # Ids of pictures that are left out.
    self._problems: dict[int, str] = {}
    self._categories: dict[int, str] = {}
    self._of_picture = array.array("q")
    self._of_category = array.array("q")
    self._boxes = array.array("f")
    self._broken: dict[int, str] = {}  # By the picture's id.

  def add_image(self, record: Any) -> None:
    place = len(self._files)
    if not isinstance(record, dict):
      record = {}
    number, file = record.get("id"), record.get("file_name")
    if _is_id(number) and record.get("precedence", 0) != 0:
      self._repeats.add(number)
      return
    self._files.append(file if isinstance(file, str) else "")
    sides = [record.get("height"), record.get("width")]
    good = all(_is_id(side) and 0 < side <= _MAX_SIDE for side in sides)
    self._sizes.extend(sides if good else (0, 0))
    known = tuple(
      (key, record[key])
      for key in self._keep
      if isinstance(record.get(key), str)
    )
    # The same few on every page.
    self._facts.append(self._words.setdefault(known, dict(known)))
    if not _is_id(number):
      self._problems[place] = "a record without an id"
    elif not self._files[place]:
      self._problems[place] = "a record without a file_name"
    elif number in self._rows:
      self._problems[place] = "an id that another picture has"
      self._problems[self._rows[number]] = self._problems[place]
    elif not good:
      self._problems[place] = "a record without width and height"
    if _is_id(number):
      self._rows.setdefault(number, place)

  def add_annotation(self, record: Any) -> None:
    if not isinstance(record, dict) or not _is_id(record.get("image_id")):
      raise json_stream.BrokenJson(
        f"{self._name}: an annotation without an image_id: "
        f"{str(record)[:100]!r}."
      )
    if record.get("precedence", 0) != 0:
      return
    picture, category = record["image_id"], record.get("category_id")
    box = record.get("bbox")
    if not _is_id(category):
      self._broken[picture] = "an annotation without a category_id"
    elif not is_box(box):
      self._broken[picture] = "an annotation whose bbox is no box"
    else:
      left, top, width, height = box
      if not width or not height:
        return  # A line or a point: nothing lies there.
      self._of_picture.append(picture)
      self._of_category.append(category)
      self._boxes.extend((left, top, left + width, top + height))

  def add_category(self, record: Any) -> None:
    number = record.get("id") if isinstance(record, dict) else None
    name = record.get("name") if isinstance(record, dict) else None
    if not _is_id(number) or not isinstance(name, str):
      raise json_stream.BrokenJson(
        f"{self._name}: a category without an id and a name: "
        f"{str(record)[:100]!r}."
      )
    if len(self._categories) >= _MAX_CATEGORIES:
      raise json_stream.BrokenJson(
        f"{self._name}: has more than {_MAX_CATEGORIES} categories."
      )
    if self._categories.setdefault(number, name) != name:
      raise json_stream.BrokenJson(
        f"{self._name}: categories {name!r} and {self._categories[number]!r} "
        f"have the same id, {number}."
      )

  ADD: ClassVar[dict[str, Callable[..., None]]] = {
    "images": add_image,
    "annotations": add_annotation,
    "categories": add_category,
  }

  def finish(self) -> Coco:
    if not self._files:
      raise ValueError(
        f"{self._name}: has no images: is it an annotation file of COCO's "
        'form, {"images", "annotations", "categories"}?'
      )
    owners = np.frombuffer(self._of_picture, np.int64)
    ids = np.fromiter(self._rows, np.int64, len(self._rows))
    places = np.fromiter(self._rows.values(), np.int64, len(self._rows))
    order = np.argsort(ids)
    known, rows = np.zeros(len(owners), bool), np.zeros(len(owners), np.int64)
    if len(ids):
      found = np.searchsorted(ids[order], owners)
      found = np.minimum(found, len(ids) - 1)
      known, rows = ids[order][found] == owners, places[order][found]
    for picture, reason in self._broken.items():
      if picture in self._rows:
        self._problems.setdefault(self._rows[picture], reason)
    labels, counts = self._labels(known, rows)
    kept = np.flatnonzero(known)
    kept = kept[np.argsort(rows[kept], kind="stable")]
    count = len(self._files)
    return Coco(
      name=self._name,
      files=self._files,
      sizes=np.array(self._sizes, np.int32).reshape(-1, 2),
      facts=self._facts,
      starts=np.searchsorted(rows[kept], np.arange(count + 1)),
      boxes=np.frombuffer(self._boxes, np.float32).reshape(-1, 4)[kept],
      labels=labels[kept],
      categories=counts,
      problems=self._problems,
    )

  def _labels(
    self, known: np.ndarray, rows: np.ndarray
  ) -> tuple[np.ndarray, dict[str, int]]:
    """Every annotation's place in LABELS, and how often a class occurs."""
    numbers = np.frombuffer(self._of_category, np.int64)
    labels = np.zeros(len(numbers), np.uint8)
    counts: dict[str, int] = collections.Counter()
    unknown = known.copy()
    for number, name in self._categories.items():
      these = known & (numbers == number)
      counts[name] += int(np.sum(these))
      label = label_of(name)
      if label is not None:
        labels[these] = annotated.LABELS.index(label)
      elif np.any(these):
        raise ValueError(
          f"{self._name}: there is no label for the category {name!r}; there "
          f"are {list(annotated.LABELS[1:])}. Rename or remove it."
        )
      unknown &= ~these
    for row in rows[unknown].tolist():
      self._problems.setdefault(row, "an annotation of an unknown category")
    return labels, dict(counts)


def _is_id(value: Any) -> TypeGuard[int]:
  """A whole number that fits 64 bits; True and 1.0 are none."""
  return type(value) is int and -_MAX_ID <= value < _MAX_ID


def is_box(value: Any) -> TypeGuard[list[float]]:
  """Whether it is [left, top, width, height] in pixels."""
  return (
    isinstance(value, list)
    and len(value) == 4
    and all(is_number(x) for x in value)
    and value[2] >= 0
    and value[3] >= 0
  )


def is_number(value: Any) -> TypeGuard[float]:
  """A finite number of a size that pixels may have; True is none."""
  return type(value) in (int, float) and abs(value) < 2**24
