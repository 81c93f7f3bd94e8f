"""HierText's annotations (Long et al. 2022, arXiv 2203.15143) -> pages.

gt/train.jsonl.gz is, despite its name, one JSON object:

  {"info": {...}, "annotations": [{"image_id", "image_width", "image_height",
    "paragraphs": [{"vertices", "legible", "lines": [{"vertices", "text",
      "legible", "handwritten", "vertical", "words": [{... the same ...}]}]}]}]}

Words stand in reading order, lines do not. A line is legible if all its words
are; an illegible word's text is "".
"""

import os
from collections.abc import Iterator
from typing import Any

from byt5_diffusion.data.rows import (
  files,
  json_stream,
)
from byt5_diffusion.data.sets import (
  outlines,
  written_pages,
)


def pages(
  path: str | os.PathLike[str] | files.File,
) -> Iterator[written_pages.Page]:
  """The pages of one file.

  Raises:
    json_stream.BrokenJson, OSError: the file as a whole cannot be used.
  """
  name = path.path if isinstance(path, files.File) else os.fspath(path)
  split = written_pages.split_of(os.path.basename(name))
  found = json_stream.elements(path, ["annotations"])
  for number, (_, annotation) in enumerate(found):
    yield _page(annotation, f"annotation {number}", split)


def _page(annotation: Any, name: str, split: str) -> written_pages.Page:
  image_id = _get(annotation, "image_id", str)
  if not image_id:
    draft = written_pages.Draft(name, "", split)
    draft.note("image_id", "no image_id")
    return draft.page()
  draft = written_pages.Draft(f"{split or 'all'}/{image_id}", image_id, split)
  for p, paragraph in enumerate(_get(annotation, "paragraphs", list) or []):
    lines = enumerate(_get(paragraph, "lines", list) or [])
    named = [(f"{p}.{number}", line) for number, line in lines]
    down = _down(named[0][1]) if named else (0.0, 1.0)
    for place, line in sorted(named, key=lambda one: _depth(one[1], down)):
      words = _get(line, "words", list) or []
      # By its definition; a line that says otherwise is not believed.
      whole = all(_get(word, "legible", bool) is not False for word in words)
      parent = _add(draft, place, "line", line, legible=whole)
      for w, word in enumerate(words):
        _add(draft, f"{place}.{w}", "word", word, parent=parent)
  return draft.page()


def _add(
  draft: written_pages.Draft,
  name: str,
  label: str,
  item: Any,
  *,
  legible: bool = True,
  parent: int = -1,
) -> int:
  return draft.add(
    name,
    label,
    lambda: outlines.of_numbers(_get(item, "vertices", list)),
    _get(item, "text", str),
    legible=legible and _get(item, "legible", bool) is not False,
    vertical=bool(_get(item, "vertical", bool)),
    parent=parent,
  )


def _get(item: Any, key: str, kind: type) -> Any:
  """A member of a JSON object if it is there and of that kind."""
  value = item.get(key) if isinstance(item, dict) else None
  return value if isinstance(value, kind) else None


def _down(line: Any) -> tuple[float, float]:
  """The way from a line to the next one: across its writing.

  Downwards for upright lines, to the left for vertical ones.
  """
  try:
    (x0, y0), (x1, y1), *_ = outlines.of_numbers(_get(line, "vertices", list))
  except outlines.BadOutline:
    return (0.0, 1.0)  # It will be noted where it is added.
  if _get(line, "vertical", bool):
    return (-1.0, 0.0)
  return (y0 - y1, x1 - x0)


def _depth(line: Any, down: tuple[float, float]) -> float:
  """How far down its paragraph a line's middle is."""
  try:
    xs, ys = zip(
      *outlines.of_numbers(_get(line, "vertices", list)), strict=True
    )
  except outlines.BadOutline:
    return 0.0
  return (sum(xs) * down[0] + sum(ys) * down[1]) / len(xs)
