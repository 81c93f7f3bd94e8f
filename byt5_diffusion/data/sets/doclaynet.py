"""DocLayNet's and PubLayNet's folders: COCO's annotations of pages.

DocLayNet (Pfitzmann et al. 2022), the core archive and, for text and the pages'
true proportions, the extra one:

  COCO/train.json, val.json, test.json    PNG/<page>.png    JSON/<page>.json

PubLayNet (Zhong et al. 2019):

  train.json, val.json    train/<page>.jpg, val/<page>.jpg

Any other folder of the same kind: *.json with the pictures beside them.
"""

import dataclasses
import functools
import hashlib
import logging
import os
import pathlib
from typing import Any

from byt5_diffusion.data import (
  images,
  text,
)
from byt5_diffusion.data.rows import json_stream
from byt5_diffusion.data.sets import (
  coco,
  documents,
)

_log = logging.getLogger(__name__)

# Of a page's JSON file.
_MAX_BYTES = 2**23
_DOCLAYNET = ("doc_category",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CocoPages:
  """Pages of an annotation file.

  Attributes:
    name: of the data set; part of the pages' keys.
    annotations: the file's.
    pictures: folder of the pages' pictures.
    extras: folder of the pages' JSON files (cells, sizes); None: there is none.
  """

  name: str
  annotations: coco.Coco
  pictures: pathlib.Path
  extras: pathlib.Path | None

  @property
  def has_text(self) -> bool:
    return self.extras is not None

  @functools.cached_property
  def fingerprint(self) -> str:
    """Of the annotations, and of how many pages have a JSON file."""
    made = [self.name, self.annotations.fingerprint]
    if self.extras is not None:
      made.append(str(sum(1 for _ in os.scandir(self.extras))))
    return hashlib.sha256(repr(made).encode()).hexdigest()[:16]

  def __len__(self) -> int:
    return len(self.annotations)

  def page(self, index: int, extras: bool = True) -> documents.Page:
    """See documents.Pages."""
    of = self.annotations
    file = of.files[index]
    regions = of.regions(index)
    picture = documents.inside(self.pictures, file)
    if len(regions) > documents.MAX_PARTS:
      raise images.BadImage(file, f"more than {documents.MAX_PARTS} regions")
    height, width = of.sizes[index].tolist()
    cells: tuple[documents.Cell, ...] = ()
    aspect = None
    if self.extras is not None and extras:
      extra = _read_extra(self.extras, file)
      aspect = _aspect(extra, file)
      cells = _cells(extra, (height, width), file)
    return documents.Page(
      key=f"{self.name}/{file}",
      picture=picture,
      parts=tuple(documents.Part(box, label) for box, label in regions),
      cells=cells,
      frame=(float(height), float(width)),
      aspect=aspect,
      subject=_subject(of.facts[index].get("doc_category", "")),
    )


def _subject(category: str) -> str:
  """ "financial_reports" -> "financial reports"; strange ones are left out."""
  words = category.replace("_", " ")
  return words if words.replace(" ", "").isalpha() and len(words) < 50 else ""


def _read_extra(folder: pathlib.Path, file: str) -> dict[str, Any]:
  name = str(pathlib.PurePosixPath(file).with_suffix(".json"))
  path = documents.inside(folder, name)
  try:
    extra = json_stream.load(path, _MAX_BYTES)
  except FileNotFoundError:
    raise images.BadImage(str(path), "a page without its JSON") from None
  except (json_stream.BrokenJson, OSError):
    raise images.BadImage(str(path), "a page whose JSON is broken") from None
  if not isinstance(extra, dict):
    raise images.BadImage(str(path), "a page whose JSON is broken")
  return extra


def _aspect(extra: dict[str, Any], where: str) -> float:
  """The page's proportions before it was made a square."""
  metadata = extra.get("metadata")
  if not isinstance(metadata, dict):
    metadata = {}
  return documents.checked_aspect(
    metadata.get("original_width"), metadata.get("original_height"), where
  )


def _cells(
  extra: dict[str, Any], frame: tuple[int, int], where: str
) -> tuple[documents.Cell, ...]:
  """The page's text; cells' boxes are of the square picture, as COCO's are."""
  found = extra.get("cells", [])
  if not isinstance(found, list) or len(found) > documents.MAX_CELLS:
    raise images.BadImage(where, "a page whose cells are no list, or too many")
  metadata = extra["metadata"]
  squeezed = [
    metadata.get(key, side)
    for key, side in zip(("coco_height", "coco_width"), frame, strict=True)
  ]
  if not all(coco.is_number(side) and side > 0 for side in squeezed):
    raise images.BadImage(where, "a page without a size")
  scale_y, scale_x = (a / b for a, b in zip(frame, squeezed, strict=True))
  cells = []
  for cell in found:
    if not isinstance(cell, dict) or not isinstance(cell.get("text"), str):
      raise images.BadImage(where, "a cell without text")
    if not coco.is_box(cell.get("bbox")):
      raise images.BadImage(where, "a cell whose bbox is no box")
    left, top, width, height = cell["bbox"]
    box = (
      left * scale_x,
      top * scale_y,
      (left + width) * scale_x,
      (top + height) * scale_y,
    )
    cells.append(documents.Cell(box, text.to_text(cell["text"])))
  return tuple(cells)


def is_doclaynet(folder: pathlib.Path) -> bool:
  """Whether it is laid out as DocLayNet's archives are."""
  return (folder / "COCO").is_dir() and (folder / "PNG").is_dir()


def open_doclaynet(folder: pathlib.Path) -> dict[str, CocoPages]:
  """{split: pages} of DocLayNet. ValueError: there are none."""
  extras: pathlib.Path | None = folder / "JSON"
  if not (folder / "JSON").is_dir():
    _log.warning(
      "%s has no folder JSON (DocLayNet's extra archive): its pages stay "
      "squares, and have no text.",
      folder,
    )
    extras = None
  return _open("doclaynet", folder / "COCO", folder / "PNG", extras)


def is_coco(folder: pathlib.Path) -> bool:
  """Whether it has annotation files at its top, as PubLayNet has."""
  return any(folder.glob("*.json"))


def open_publaynet(folder: pathlib.Path) -> dict[str, CocoPages]:
  """{split: pages} of PubLayNet, or of a folder like it."""
  return _open("publaynet", folder, None, None)


def _open(
  name: str,
  annotations: pathlib.Path,
  pictures: pathlib.Path | None,
  extras: pathlib.Path | None,
) -> dict[str, CocoPages]:
  files = sorted(annotations.glob("*.json"))
  found: dict[str, CocoPages] = {}
  for file in files:
    split = documents.SPLITS.get(file.stem, "")
    if not split and len(files) > 1:
      continue  # Something else that lies there.
    beside = file.with_suffix("")
    found[split] = CocoPages(
      name=name if pictures or beside.is_dir() else "coco",
      annotations=coco.read(file, keep=_DOCLAYNET),
      pictures=pictures or (beside if beside.is_dir() else annotations),
      extras=extras,
    )
  if not found:
    raise ValueError(
      f"{annotations}: has no annotation file: expected "
      "train.json, val.json or test.json."
    )
  return found
