"""FUNSD's folders: forms, their entries and words (Jaume et al. 2019).

  dataset/training_data/annotations/<form>.json, images/<form>.png
  dataset/testing_data/...

An entry is {"id", "text", "box": [left, top, right, bottom], "label": question,
answer, header or other, "linking", "words": [{"text", "box"}]}.
"""

import dataclasses
import functools
import hashlib
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

_MAX_BYTES = 2**23
_LABELS = ("question", "answer", "header", "other")
_PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forms:
  """Forms of a folder with the folders annotations and images.

  Attributes:
    name: "funsd"; part of the pages' keys.
    files: the annotations', one per form.
    pictures: {form: its picture's file}.
  """

  name: str
  files: tuple[pathlib.Path, ...]
  pictures: dict[str, pathlib.Path]
  has_text: bool = True

  @functools.cached_property
  def fingerprint(self) -> str:
    """Of the annotations' content."""
    made = hashlib.sha256()
    for file in self.files:
      made.update(file.name.encode("utf-8", "surrogateescape"))
      with file.open("rb") as opened:
        made.update(opened.read(_MAX_BYTES))
    return made.hexdigest()[:16]

  def __len__(self) -> int:
    return len(self.files)

  def page(self, index: int, extras: bool = True) -> documents.Page:
    """See documents.Pages."""
    file = self.files[index]
    try:
      found = json_stream.load(file, _MAX_BYTES)
    except (json_stream.BrokenJson, OSError):
      raise images.BadImage(str(file), "a form whose JSON is broken") from None
    entries = found.get("form") if isinstance(found, dict) else None
    if not isinstance(entries, list):
      raise images.BadImage(str(file), "a form without entries")
    if len(entries) > documents.MAX_PARTS:
      raise images.BadImage(
        str(file), f"more than {documents.MAX_PARTS} regions"
      )
    if file.stem not in self.pictures:
      raise images.BadImage(str(file), "a form without a picture")
    picture = self.pictures[file.stem]
    return documents.Page(
      key=f"{self.name}/{file.stem}",
      picture=documents.inside(picture.parent, picture.name),
      parts=tuple(_entry(entry, str(file)) for entry in entries),
      cells=_words(entries, str(file)) if extras else (),
      subject="forms",
    )


def _entry(entry: Any, where: str) -> documents.Part:
  if not isinstance(entry, dict) or entry.get("label") not in _LABELS:
    raise images.BadImage(where, f"an entry whose label is none of {_LABELS}")
  written = entry.get("text", "")
  if not isinstance(written, str):
    raise images.BadImage(where, "an entry whose text is no text")
  return documents.Part(
    _box(entry.get("box"), where),
    entry["label"],
    " ".join(text.to_text(written).split()),
  )


def _words(entries: list[Any], where: str) -> tuple[documents.Cell, ...]:
  cells = []
  for entry in entries:
    words = entry.get("words", [])
    if not isinstance(words, list):
      raise images.BadImage(where, "an entry whose words are no list")
    for word in words:
      if not isinstance(word, dict) or not isinstance(word.get("text"), str):
        raise images.BadImage(where, "a word without text")
      cells.append(
        documents.Cell(_box(word.get("box"), where), text.to_text(word["text"]))
      )
  if len(cells) > documents.MAX_CELLS:
    raise images.BadImage(where, f"more than {documents.MAX_CELLS} words")
  return tuple(cells)


def _box(value: Any, where: str) -> tuple[float, float, float, float]:
  """Corners, in whichever order; no size is left out when a page is loaded."""
  if (
    not isinstance(value, list)
    or len(value) != 4
    or not all(coco.is_number(x) for x in value)
  ):
    raise images.BadImage(where, "a box of other than four numbers")
  left, top, right, bottom = map(float, value)
  return min(left, right), min(top, bottom), max(left, right), max(top, bottom)


def _folders(folder: pathlib.Path) -> list[pathlib.Path]:
  places = [folder, *sorted(folder.glob("*")), *sorted(folder.glob("*/*"))]
  return [
    place
    for place in places
    if (place / "annotations").is_dir() and (place / "images").is_dir()
  ]


def is_funsd(folder: pathlib.Path) -> bool:
  """Whether it has folders of annotations and images, at most two below."""
  return bool(_folders(folder))


def open_funsd(folder: pathlib.Path) -> dict[str, Forms]:
  """{split: forms}. ValueError: there are none."""
  found: dict[str, Forms] = {}
  for place in _folders(folder):
    split = documents.SPLITS.get(place.name, "")
    found_files = (place / "annotations").glob("*.json")
    files = tuple(sorted(path for path in found_files if path.is_file()))
    pictures = {
      path.stem: path
      for path in sorted((place / "images").iterdir())
      if path.suffix.lower() in _PICTURES
    }
    if files:
      found[split] = Forms(name="funsd", files=files, pictures=pictures)
  if not found:
    raise ValueError(
      f"{folder}: has no forms: expected dataset/training_data/annotations and "
      "images."
    )
  return found
