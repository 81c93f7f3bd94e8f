"""Handwritten lines and words with transcriptions: IAM's form, and PAGE-XML.

  IAM (Marti and Bunke 2002)
    lines.txt   a01-000u-00 ok 154 19 408 746 1661 89 A|MOVE|to|stop
    words.txt   a01-000u-00-00 ok 154 408 768 27 51 AT A
    pictures    a01-000u-00.png of single lines and words, or forms a01-000u.png
  PAGE-XML (data/sets/page_xml.py), as Muharaf and many archives give it
    *.xml, and the pictures that they name

Comments of IAM's files begin with "#"; numbers are the gray level, then (where
there are five) the number of components, then x, y, width and height.
"""

import posixpath
import re
from collections.abc import Iterator
from typing import NamedTuple

from byt5_diffusion.data.rows import files
from byt5_diffusion.data.sets import (
  outlines,
  page_supply,
  page_xml,
  picture_folder,
  written_pages,
  xml_trees,
)

_HEAD = 4096  # Bytes that tell an XML file's kind.
_MAX_BYTES = 2**28
_PARTS = {"lines.txt": "line", "words.txt": "word"}
_NUMBERS = re.compile(r"-?\d{1,6}(?:\.\d{1,6})?")


def lines(
  path: str,
  *,
  language: str = "",
  images: str = "",
  margin: float = 0.1,
  max_bytes: int = 0,
) -> page_supply.PageSupply:
  """Single lines, cut out.

  Args:
    path: a folder with IAM's lines.txt, or with PAGE-XML files.
    language: mC4's code of all that is written; "": as the files say, and
      English for IAM.
    images: the pictures' folder, if it is another one.
    margin: around a line, in shares of its height.
    max_bytes: longer texts are left out; 0: none.
  """
  return _open(path, "line", language, images, margin, max_bytes)


def words(
  path: str,
  *,
  language: str = "",
  images: str = "",
  margin: float = 0.1,
  max_bytes: int = 0,
) -> page_supply.PageSupply:
  """Single words, as `lines`; by IAM's words.txt."""
  return _open(path, "word", language, images, margin, max_bytes)


def pages(
  path: str, *, language: str = "", images: str = "", max_bytes: int = 0
) -> page_supply.PageSupply:
  """Whole pages, as `lines`; of IAM, its forms."""
  return _open(path, "", language, images, 0.0, max_bytes)


def _open(
  path: str,
  part: str,
  language: str,
  images: str,
  margin: float,
  max_bytes: int,
) -> page_supply.PageSupply:
  listed = files.find(path)
  pictures = picture_folder.PictureFolder(images or path)
  kind = f"hand_{part or 'page'}"
  wanted = [f for f in listed if _PARTS.get(_name(f)) == (part or "line")]
  if wanted:
    items = [one for file in wanted for one in _iam(file)]
    # Pictures of the lines themselves, or of forms that they are cut out of?
    whole = bool(part) and any(pictures.has(item.name) for item in items)
    pages = _cut_ones(items, part) if whole else _forms(items, part or "line")
    form_part = "" if whole else part
  else:
    wanted = _xml_files(path, listed)
    pages, form_part = _of_xml(wanted, language), part
  return page_supply.PageSupply(
    f"{kind}:{path}" + (f"+language={language}" if language else ""),
    pages,
    pictures,
    page_supply.Form(
      part=form_part, kind=kind, margin=margin, max_bytes=max_bytes
    ),
    key="hand",
    sources=wanted,
  )


def _name(file: files.File) -> str:
  return posixpath.basename(file.path).lower()


def _xml_files(path: str, listed: list[files.File]) -> list[files.File]:
  found = [
    file
    for file in listed
    if _name(file).endswith(".xml") and page_xml.is_page(file.read(0, _HEAD))
  ]
  if not found:
    raise ValueError(
      f"{path}: there is no PAGE-XML file (*.xml with PcGts), and none of "
      f"IAM's {sorted(_PARTS)}."
    )
  return found


def _of_xml(
  found: list[files.File], language: str
) -> Iterator[written_pages.Page]:
  for file in found:
    key = posixpath.splitext(file.name)[0]
    try:
      yield page_xml.page(file, key, language)
    except xml_trees.BrokenXml as error:
      draft = written_pages.Draft(key, key)
      draft.note("file", str(error).removeprefix(f"{file.path}: "))
      yield draft.page()


class _Item(NamedTuple):
  """A line of IAM's files; `problem` says why it is none."""

  name: str
  text: str = ""
  box: tuple[float, ...] = ()
  good: bool = True
  problem: str = ""

  @property
  def form(self) -> str:
    """ "a01-000u-00-03" -> "a01-000u"."""
    return "-".join(self.name.split("-")[:2])


def _iam(file: files.File) -> list[_Item]:
  """The lines of lines.txt or words.txt.

  Raises:
    ValueError: the file is too large, or not UTF-8.
  """
  raw = file.read(0, _MAX_BYTES + 1)
  if len(raw) > _MAX_BYTES:
    raise ValueError(f"{file.path}: more than {_MAX_BYTES} bytes.")
  try:
    lines = raw.decode("utf-8-sig").splitlines()
  except UnicodeDecodeError:
    raise ValueError(f"{file.path}: is not UTF-8.") from None
  part = _PARTS[_name(file)]
  return [
    _item(line, number, part)
    for number, line in enumerate(lines, 1)
    if line.strip() and not line.startswith("#")
  ]


def _item(line: str, number: int, part: str) -> _Item:
  name, *rest = line.split()
  numbers: list[float] = []
  while len(rest) > 1 and _NUMBERS.fullmatch(rest[1]) and len(numbers) < 6:
    numbers.append(float(rest.pop(1)))
  # words.txt has a grammatical tag, lines.txt has none; the gray level, then
  # what may be the number of components, come before the box.
  said = rest[1:] if part == "line" else rest[2:]
  if not rest or len(numbers) not in (5, 6) or not said:
    return _Item(f"line {number}", problem="is not of IAM's form")
  text = " ".join(said).replace("|", " ")
  return _Item(name, text, tuple(numbers[-4:]), rest[0] == "ok")


def _cut_ones(items: list[_Item], part: str) -> Iterator[written_pages.Page]:
  """Pages that are single lines or words."""
  for item in items:
    draft = written_pages.Draft(item.name, item.name, together=item.form)
    width, height = item.box[2:] if item.box else (0.0, 0.0)
    _add(draft, item, part, (0.0, 0.0, width, height))
    yield draft.page()


def _forms(items: list[_Item], part: str) -> Iterator[written_pages.Page]:
  """Pages that hold many."""
  forms: dict[str, list[_Item]] = {}
  for item in items:
    forms.setdefault(item.form, []).append(item)
  for form, some in forms.items():
    draft = written_pages.Draft(form, form)
    for item in some:
      _add(draft, item, part, item.box)
    yield draft.page()


def _add(
  draft: written_pages.Draft,
  item: _Item,
  part: str,
  box: tuple[float, ...],
) -> None:
  if item.problem:
    draft.note(item.name, item.problem)
    return
  draft.add(
    item.name,
    part,
    lambda: outlines.of_box(*box),
    item.text,
    legible=item.good,
    language="en",
  )
