"""Pages of old Japanese books, with a box and a code point per character.

  CODH's books (doi:10.20676/00000341)
    <book>/images/*.jpg
    <book>/<book>_coordinate.csv
      Unicode,Image,X,Y,Block ID,Char ID,Width,Height
      U+3082,100249476_00003_2,236,1830,B0001,C0133,47,108

  kuzushiji-recognition (Kaggle)
    train.csv       image_id,labels      labels: "U+306F 1231 3465 133 53 ..."
    train_images/*.jpg

One reads CODH's characters block by block, in the order of their numbers; where
the writing goes back up, a new column begins. Kaggle's come in no order: there,
columns are chains of characters that stand below each other, and are read from
right to left.
"""

import contextlib
import csv
import io
import posixpath
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from byt5_diffusion.data.rows import files
from byt5_diffusion.data.sets import (
  outlines,
  page_supply,
  picture_folder,
  written_pages,
)

COLUMNS = (
  "Unicode", "Image", "X", "Y", "Block ID", "Char ID", "Width", "Height"
)  # fmt: skip
KAGGLE_COLUMNS = ("image_id", "labels")
# "〓" stands for a character that Unicode lacks, or that nobody could read.
GETA = "\u3013"
_LANGUAGE = "ja"
_CODE = re.compile(r"(?:U\+[0-9A-Fa-f]{4,6})+")
_MAX_BYTES = 2**29  # Of a CSV file: all of CODH's rows take a tenth.
_MAX_GLYPHS = 5000  # Of a page.


class Glyph(NamedTuple):
  """A character on a page."""

  name: str
  text: str
  box: tuple[float, float, float, float]  # x, y, width, height
  order: tuple[int, int] = (0, 0)  # Block, place.


def characters(code: str) -> str:
  """ "U+3082" -> "も"; "U+304BU+309A" -> "か゚".

  Raises:
    ValueError: it is no code point of a character; constant words say why.
  """
  if not _CODE.fullmatch(code.strip()):
    raise ValueError("no code point like U+3082")
  found = [int(one, 16) for one in code.strip().split("U+")[1:]]
  if max(found) > sys.maxunicode:
    raise ValueError("a code point beyond U+10FFFF")
  if any(0xD800 <= one <= 0xDFFF or one < 0x20 for one in found):
    raise ValueError("a code point that is no character")
  return "".join(map(chr, found))


def _open(
  path: str, part: str, kind: str, images: str, margin: float, max_bytes: int
) -> page_supply.PageSupply:
  form = page_supply.Form(
    part=part, kind=kind, margin=margin, min_side=4.0, max_bytes=max_bytes
  )
  found = [(file, read) for file in _tables(path) if (read := _reader(file))]
  if not found:
    raise ValueError(
      f"{path}: there is no CSV file with the columns {list(COLUMNS)} (CODH's "
      f"books) or {list(KAGGLE_COLUMNS)} (kuzushiji-recognition)."
    )
  return page_supply.PageSupply(
    f"{kind}:{path}",
    (page for file, read in found for page in read(file)),
    picture_folder.PictureFolder(
      images or path, None if images else _pictures(file for file, _ in found)
    ),
    form,
    key="kuzushiji",
    sources=[file for file, _ in found],
  )


def _tables(path: str) -> list[files.File]:
  """CSV files of a folder and of those in it; no deeper: see `_pictures`."""
  if path.endswith(".csv"):
    return files.find(path)
  found = []
  for pattern in (f"{path}/*.csv", f"{path}/*/*.csv"):
    with contextlib.suppress(ValueError):  # None of them there.
      found += files.find(pattern)
  return found


def _pictures(tables: Iterable[files.File]) -> Iterator[files.File]:
  """Pictures of pages beside CSV files.

  Beside them, CODH's books have a folder of a million characters, cut out.
  """
  for folder in sorted({posixpath.dirname(table.path) for table in tables}):
    for pattern in ("images", "train_images", "*.*"):
      try:
        yield from files.find(f"{folder}/{pattern}")
        break
      except ValueError:
        continue


def glyphs(
  path: str, *, images: str = "", margin: float = 0.05
) -> page_supply.PageSupply:
  """Single characters, cut out.

  Args:
    path: a book's folder, one of many books, or Kaggle's.
    images: the pictures' folder, if it is another one.
    margin: around a character, in shares of its shorter side.
  """
  return _open(path, "glyph", "kuzushiji_character", images, margin, 0)


def lines(
  path: str, *, images: str = "", margin: float = 0.05, max_bytes: int = 0
) -> page_supply.PageSupply:
  """Vertical columns, as `glyphs`; longer texts than max_bytes are left out."""
  return _open(path, "line", "kuzushiji_line", images, margin, max_bytes)


def pages(
  path: str, *, images: str = "", max_bytes: int = 0
) -> page_supply.PageSupply:
  """Whole pages, as `lines`."""
  return _open(path, "", "kuzushiji_page", images, 0.0, max_bytes)


_Reader = Callable[[files.File], Iterator[written_pages.Page]]


def _reader(file: files.File) -> _Reader | None:
  """What reads a CSV file, by its header; None if nothing does.

  Raises:
    ValueError: it is one of CODH's by its name, and lacks columns.
  """
  head = file.read(0, 4096).decode("utf-8-sig", "replace").splitlines()[:1]
  header = [one.strip() for one in head[0].split(",")] if head else []
  if set(COLUMNS) <= set(header):
    return codh
  if set(KAGGLE_COLUMNS) <= set(header):
    return kaggle
  if file.path.endswith("_coordinate.csv"):
    missing = [one for one in COLUMNS if one not in header]
    raise ValueError(f"{file.path}: no columns {missing}; there are {header}.")
  return None


def _rows(file: files.File) -> Iterator[tuple[int, dict[str, str]]]:
  """(number of a line, row) of a CSV file; lines without a row are empty."""
  raw = file.read(0, _MAX_BYTES + 1)
  if len(raw) > _MAX_BYTES:
    raise ValueError(f"{file.path}: more than {_MAX_BYTES} bytes.")
  try:
    lines = io.StringIO(raw.decode("utf-8-sig"), newline="")
  except UnicodeDecodeError:
    raise ValueError(f"{file.path}: is not UTF-8.") from None
  try:
    reader = csv.DictReader(lines)
    for row in reader:
      yield (
        reader.line_num,
        {
          (key or "").strip(): value
          for key, value in row.items()
          if isinstance(value, str)
        },
      )
  except csv.Error as error:
    raise ValueError(f"{file.path}: is no CSV ({error}).") from None


def codh(file: files.File) -> Iterator[written_pages.Page]:
  """The pages of a book's CSV file."""
  found: dict[str, list[Glyph]] = {}
  problems: dict[str, list[tuple[str, str]]] = {}
  for number, row in _rows(file):
    image = row.get("Image", "").strip()
    try:
      glyph = _glyph(f"line {number}", row)
    except ValueError as error:
      problems.setdefault(image, []).append((f"line {number}", str(error)))
      continue
    found.setdefault(image, []).append(glyph)
  for image in list({**found, **problems}):
    once = _once(found.get(image, []), problems.setdefault(image, []))
    glyphs = sorted(once, key=lambda one: one.order)
    blocks: dict[int, list[Glyph]] = {}
    for glyph in glyphs:
      blocks.setdefault(glyph.order[0], []).append(glyph)
    columns = [one for block in blocks.values() for one in _columns(block)]
    yield _page(image, columns, problems[image])


def _glyph(name: str, row: Mapping[str, str]) -> Glyph:
  if not row.get("Image", "").strip():
    raise ValueError("no Image")
  text = characters(row.get("Unicode", ""))
  try:
    x, y, width, height = (
      float(row.get(key, "")) for key in ("X", "Y", "Width", "Height")
    )
  except ValueError:
    raise ValueError("X, Y, Width, Height: no four numbers") from None
  order = (_digits(row.get("Block ID", "")), _digits(row.get("Char ID", "")))
  return Glyph(name, text, (x, y, width, height), order)


def _digits(written: str) -> int:
  """ "C0133" -> 133."""
  found = re.search(r"\d{1,9}", written)
  return int(found[0]) if found else 0


def _columns(block: list[Glyph]) -> list[list[Glyph]]:
  """A block's characters, column by column: a new one begins further up."""
  columns: list[list[Glyph]] = []
  for glyph in block:
    if columns:
      _, y, _, height = columns[-1][-1].box
      if glyph.box[1] + glyph.box[3] / 2 >= y - 0.25 * height:
        columns[-1].append(glyph)
        continue
    columns.append([glyph])
  return columns


def kaggle(file: files.File) -> Iterator[written_pages.Page]:
  """The pages of kuzushiji-recognition's train.csv."""
  for _, row in _rows(file):
    image, labels = row.get("image_id", ""), row.get("labels", "").split()
    glyphs: list[Glyph] = []
    problems: list[tuple[str, str]] = []
    if len(labels) % 5:
      problems.append(("labels", "not five words for each character"))
      labels = []
    if len(labels) > 5 * _MAX_GLYPHS:
      problems.append(("labels", f"more than {_MAX_GLYPHS} characters"))
      labels = []
    for start in range(0, len(labels), 5):
      code, *numbers = labels[start : start + 5]
      name = f"label {start // 5}"
      try:
        text = characters(code)
        x, y, width, height = (int(one) for one in numbers)
      except ValueError as error:
        number = str(error).startswith("invalid literal")
        problems.append((name, "no four numbers" if number else str(error)))
        continue
      glyphs.append(Glyph(name, text, (x, y, width, height)))
    yield _page(image, chains(_once(glyphs, problems)), problems)


def _once(glyphs: list[Glyph], problems: list[tuple[str, str]]) -> list[Glyph]:
  """Without those that are listed twice, which are noted."""
  seen, kept = set(), []
  for glyph in glyphs:
    if (glyph.text, glyph.box) in seen:
      problems.append((glyph.name, "listed twice"))
    else:
      seen.add((glyph.text, glyph.box))
      kept.append(glyph)
  return kept


def chains(glyphs: list[Glyph]) -> list[list[Glyph]]:
  """Columns of characters in no order, from right to left.

  A character is followed by the nearest one below that shares half of the
  narrower one's width and is no further away than a character is high; of
  several that would be followed by the same one, the lowest is.
  """
  if not glyphs:
    return []
  x, y, width, height = np.array([one.box for one in glyphs], float).T
  middle = y + height / 2
  after: dict[int, int] = {}
  before: dict[int, int] = {}
  for i in np.argsort(-middle, kind="stable"):
    shared = np.minimum(x + width, x[i] + width[i]) - np.maximum(x, x[i])
    gap = y - (y[i] + height[i])
    fits = (
      (shared >= 0.5 * np.minimum(width, width[i]))
      & (gap <= np.maximum(height, height[i]))
      & (middle > middle[i])
    )
    if fits.any():
      below = int(np.argmin(np.where(fits, middle, np.inf)))
      if below not in before:  # Else a lower one has it.
        before[below], after[int(i)] = int(i), below
  columns = []
  for i in range(len(glyphs)):
    if i in before:
      continue
    chain = [i]
    while chain[-1] in after:
      chain.append(after[chain[-1]])
    columns.append(chain)
  columns.sort(key=lambda chain: -float(np.mean((x + width / 2)[chain])))
  return [[glyphs[i] for i in chain] for chain in columns]


def _page(
  image: str, columns: list[list[Glyph]], problems: list[tuple[str, str]]
) -> written_pages.Page:
  draft = written_pages.Draft(image, image, spaced=False)
  for name, reason in problems:
    draft.note(name, reason)
  for number, column in enumerate(columns):
    good = []
    for glyph in column:
      try:
        good.append((glyph, outlines.of_box(*glyph.box)))
      except outlines.BadOutline as error:
        draft.note(glyph.name, str(error))
    if not good:
      continue
    boxes = np.array([outlines.box(outline) for _, outline in good])
    low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    text = "".join(glyph.text for glyph, _ in good)
    parent = draft.add(
      f"column {number}",
      "line",
      outlines.of_box(*map(float, low), *map(float, high - low)),
      text,
      legible=GETA not in text,
      vertical=True,
      language=_LANGUAGE,
    )
    for glyph, outline in good:
      draft.add(
        glyph.name,
        "glyph",
        outline,
        glyph.text,
        legible=glyph.text != GETA,
        vertical=True,
        language=_LANGUAGE,
        parent=parent,
      )
  return draft.page()
