"""PAGE-XML (Pletschacher and Antonacopoulos 2010) -> pages.

What transcription programs write, and Muharaf, the cBAD and READ collections
are given in: one XML file per page.

  <PcGts><Page imageFilename="a.jpg" imageWidth="750" imageHeight="1141">
    <ReadingOrder><OrderedGroup><RegionRefIndexed index="0" regionRef="r1"/>...
    <TextRegion id="r1"><Coords points="195,385 195,795 513,795"/>
      <TextLine id="l1"><Coords points="..."/>
        <Word><Coords points="..."/><TextEquiv><Unicode>...
        <TextEquiv><Unicode>what the line says</Unicode></TextEquiv>

Any version's name space is taken, and the older Coords of <Point x= y=/>. A
file is read as a stranger's: see data/sets/xml_trees.py.
"""

import functools
import os
import re
from collections.abc import Iterator
from xml.etree import ElementTree

from byt5_diffusion.data import languages
from byt5_diffusion.data.rows import files
from byt5_diffusion.data.sets import (
  outlines,
  written_pages,
  xml_trees,
)

_MAX_CORNERS = 10_000
_VERTICAL = ("top-to-bottom", "bottom-to-top")
_PLACE = re.compile(r"readingOrder\s*\{\s*index\s*:\s*(\d{1,6})")


def is_page(head: bytes) -> bool:
  """Whether the first bytes of an XML file are of a PAGE-XML file."""
  return b"<PcGts" in head or b":PcGts" in head


def page(
  path: str | os.PathLike[str] | files.File, key: str, language: str = ""
) -> written_pages.Page:
  """The page of one file.

  Args:
    path: the file.
    key: what to call the page.
    language: mC4's code of all that is written; "": as the file says.

  Raises:
    xml_trees.BrokenXml: the file as a whole cannot be used.
  """
  file = path.path if isinstance(path, files.File) else os.fspath(path)
  found = xml_trees.read(path).find("Page")
  if found is None:
    raise xml_trees.BrokenXml(f"{file}: has no Page: is no PAGE-XML")
  name = found.get("imageFilename", "").replace("\\", "/")
  name = name or os.path.splitext(os.path.basename(file))[0]
  draft = written_pages.Draft(key, name, written_pages.split_of(key))
  spoken = language or _language(found)
  for region in _regions(found):
    for line in _in_order(region.findall("TextLine")):
      _add_line(draft, line, region, language or _language(region) or spoken)
  return draft.page()


def _language(element: ElementTree.Element) -> str:
  for key in ("primaryLanguage", "language"):
    if element.get(key):
      return languages.code(element.get(key))
  return ""


def _regions(found: ElementTree.Element) -> list[ElementTree.Element]:
  """Regions of text, those inside of others too, in reading order."""
  regions = list(found.iter("TextRegion"))
  order = found.find("ReadingOrder")
  if order is None:
    return regions
  places = {ref: place for place, ref in enumerate(_references(order)) if ref}
  # Those that the order leaves out come last, as they stand.
  return sorted(
    regions, key=lambda one: places.get(one.get("id", ""), len(places))
  )


def _references(group: ElementTree.Element) -> Iterator[str]:
  """Names of regions, group by group; what has an index is sorted by it."""
  children = sorted(group, key=lambda one: _index(one.get("index", "")))
  for child in children:
    if child.get("regionRef"):
      yield child.get("regionRef", "")
    yield from _references(child)


def _index(written: str) -> int:
  return int(written) if re.fullmatch(r"\d{1,6}", written) else 0


def _in_order(lines: list[ElementTree.Element]) -> list[ElementTree.Element]:
  """Lines by the order that Transkribus notes, else as they stand."""
  found = [_PLACE.search(line.get("custom", "")) for line in lines]
  if not all(found):
    return lines
  places = [int(one[1]) for one in found if one]
  return [lines[i] for i in sorted(range(len(lines)), key=places.__getitem__)]


def _add_line(
  draft: written_pages.Draft,
  line: ElementTree.Element,
  region: ElementTree.Element,
  language: str,
) -> None:
  direction = line.get("readingDirection") or region.get("readingDirection")
  vertical = direction in _VERTICAL
  name = line.get("id", "line")
  parent = draft.add(
    name,
    "line",
    functools.partial(_outline, line),
    _text(line),
    vertical=vertical,
    language=language or "und",
  )
  if parent < 0:
    return
  for word in line.findall("Word"):
    draft.add(
      word.get("id", f"{name}/word"),
      "word",
      functools.partial(_outline, word),
      _text(word),
      vertical=vertical,
      language=language or "und",
      parent=parent,
    )


def _text(element: ElementTree.Element) -> str:
  """Of several readings, the one of the lowest index, then the first."""
  readings = element.findall("TextEquiv")
  for one in sorted(readings, key=lambda one: _index(one.get("index", ""))):
    if text := one.findtext("Unicode") or one.findtext("PlainText"):
      return text
  return ""


def _outline(element: ElementTree.Element) -> outlines.Outline:
  """The smallest rectangle: where an outline begins says nothing here."""
  coords = element.find("Coords")
  if coords is None:
    raise outlines.BadOutline("no Coords")
  written = coords.get("points")
  if written is None:
    pairs = [(p.get("x", ""), p.get("y", "")) for p in coords.findall("Point")]
  else:
    pairs = [tuple(one.split(",", 1)) for one in written.split() if "," in one]  # type: ignore[misc]
  if not 3 <= len(pairs) <= _MAX_CORNERS:
    raise outlines.BadOutline("fewer than three corners, or far too many")
  try:
    corners = tuple((float(x), float(y)) for x, y in pairs)
  except ValueError:
    raise outlines.BadOutline("corners without a place") from None
  step = -(-len(corners) // outlines.MAX_CORNERS)
  return outlines.upright(outlines.checked(corners[::step]))
