"""TextOCR's and COCO-Text's annotations -> pages: both are like COCO's API.

  {"imgs": {id: {"id", "width", "height", "set", "file_name" or "filename"}},
   "anns": {id: {"id", "image_id", "utf8_string", "bbox": [x, y, w, h], ...}},
   "imgToAnns" (or "img2Anns"): {image id: [annotation ids]}}

Where they differ:

  outline   TextOCR: "points"; COCO-Text: "mask"; "bbox" if neither is there
  illegible TextOCR: "." for a text; COCO-Text: "legibility"
  language  COCO-Text: english, not english, na

Which image an annotation belongs to, it says itself.
"""

import json
import os
from collections.abc import Iterator
from typing import Any

from byt5_diffusion.data.rows import (
  files,
  json_stream,
)
from byt5_diffusion.data.sets import (
  outlines,
  reading_order,
  written_pages,
)

_ILLEGIBLE = "."  # TextOCR's.
_LANGUAGES = {"english": "en"}
_SETS = {"train": "train", "val": "validation", "test": "test"}
_OUTLINES = ("points", "mask")


def pages(
  path: str | os.PathLike[str] | files.File,
) -> Iterator[written_pages.Page]:
  """The pages of one file, in the order of its "imgs".

  Raises:
    json_stream.BrokenJson, OSError: the file as a whole cannot be used.
  """
  pictures: dict[str, Any] = {}
  words: dict[str, list[bytes]] = {}
  for key, element in json_stream.elements(path, ["imgs", "anns"]):
    if not isinstance(element, tuple):
      where = path.path if isinstance(path, files.File) else path
      raise json_stream.BrokenJson(f"{where}: {key!r} is no object of objects.")
    name, value = element
    if key == "imgs":
      pictures[name] = value
      continue
    image = str(value.get("image_id")) if isinstance(value, dict) else ""
    # A million words as Python's objects would need gigabytes.
    words.setdefault(image, []).append(json.dumps([name, value]).encode())
  for name, value in pictures.items():
    yield _page(name, value, words.pop(name, []))
  if words:  # Of pictures that are not listed.
    draft = written_pages.Draft("words without a picture", "")
    for image, some in words.items():
      for raw in some:
        draft.note(f"{image}/{json.loads(raw)[0]}", "no such image_id")
    yield draft.page()


def _page(name: str, picture: Any, words: list[bytes]) -> written_pages.Page:
  picture = picture if isinstance(picture, dict) else {}
  file = picture.get("file_name") or picture.get("filename") or name
  split = _SETS.get(str(picture.get("set")), "")
  draft = written_pages.Draft(f"{split or 'all'}/{name}", str(file), split)
  usable = []
  for raw in words:
    word, annotation = json.loads(raw)
    try:
      usable.append((word, annotation, _outline(annotation)))
    except outlines.BadOutline as error:
      draft.note(word, str(error))
  boxes = [outlines.box(outline) for _, _, outline in usable]
  for line in reading_order.lines(boxes):
    for i in line:
      word, annotation, outline = usable[i]
      draft.add(
        word,
        "word",
        outline,
        annotation.get("utf8_string"),
        legible=_is_legible(annotation),
        language=_LANGUAGES.get(str(annotation.get("language")), "und"),
      )
  return draft.page()


def _outline(annotation: dict[str, Any]) -> outlines.Outline:
  for key in _OUTLINES:
    if annotation.get(key):
      return outlines.of_numbers(annotation[key])
  bbox = annotation.get("bbox")
  numbers = isinstance(bbox, list) and all(
    isinstance(one, (int, float)) for one in bbox
  )
  if not isinstance(bbox, list) or len(bbox) != 4 or not numbers:
    raise outlines.BadOutline("no bbox of four numbers")
  return outlines.of_box(*(float(one) for one in bbox))


def _is_legible(annotation: dict[str, Any]) -> bool:
  if "legibility" in annotation:
    return annotation["legibility"] == "legible"
  return annotation.get("utf8_string") != _ILLEGIBLE
