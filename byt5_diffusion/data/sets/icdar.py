"""Annotations of the robust reading competitions and their like -> pages.

One text file per picture, one word or line in each of its lines:

  MLT17, MLT19  x1,y1,x2,y2,x3,y3,x4,y4,script,transcription
  ICDAR15       x1,y1,x2,y2,x3,y3,x4,y4,transcription
  Total-Text    x: [[1 2 ...]], y: [[...]], ornt: [u'c'], transcriptions: [u'A']

or one XML file for all (Street View Text):

  <tagset><image><imageName>img/1.jpg</imageName><taggedRectangles>
    <taggedRectangle x="1" y="2" width="3" height="4"><tag>A</tag>...

A transcription may hold commas. "###" (Total-Text: "#") stands for what nobody
can read. Files may begin with a byte order mark.
"""

import os
import pathlib
import re
from collections.abc import Iterator
from typing import NamedTuple

from byt5_diffusion.data.rows import files
from byt5_diffusion.data.sets import (
  outlines,
  reading_order,
  written_pages,
  xml_trees,
)

_MAX_BYTES = 2**22
# MLT's scripts and what language they tell, if one alone.
SCRIPTS = {
  "Arabic": "ar",
  "Bangla": "bn",
  "Chinese": "zh",
  "Hindi": "hi",
  "Japanese": "ja",
  "Korean": "ko",
  "Latin": "und",
  "Mixed": "und",
  "None": "und",
  "Symbols": "und",
}
_ILLEGIBLE = "###"
_TOTAL_TEXT_ILLEGIBLE = "#"
_PREFIXES = ("poly_gt_", "gt_")
_NUMBER = r"\s*-?\d{1,7}(?:\.\d{1,9})?\s*"
_QUAD = re.compile(rf"({_NUMBER}(?:,{_NUMBER}){{7}}),(.*)", re.DOTALL)
_TOTAL_TEXT = re.compile(
  r"x:\s*\[\[([\d\s.,-]*)\]\],\s*y:\s*\[\[([\d\s.,-]*)\]\],"
  r"\s*ornt:\s*\[u?'([^']*)'\],"
  r"\s*transcriptions:\s*\[u?(?:'(.*)'|\"(.*)\")\]\s*"
)
FORMATS = ("icdar15", "mlt", "total_text")


class _Word(NamedTuple):
  """One line of a file."""

  name: str
  outline: outlines.Outline
  text: str
  legible: bool
  language: str = "und"


def guess(lines: list[str]) -> str:
  """Which of FORMATS lines are of; "" if none.

  It is MLT's only if all have a script: a word of ICDAR15 may be "Latin, too".
  """
  lines = [line for line in lines if line.strip()]
  if not lines:
    return ""
  if lines[0].startswith("x:"):
    return "total_text"
  quads = [_QUAD.fullmatch(line) for line in lines]
  if not all(quads):
    return ""
  scripts = [quad[2].partition(",") for quad in quads if quad]
  mlt = all(comma and script in SCRIPTS for script, comma, _ in scripts)
  return "mlt" if mlt else "icdar15"


def read_lines(file: files.File) -> list[str]:
  """The lines of a small UTF-8 file; ValueError says why it has none."""
  raw = file.read(0, _MAX_BYTES + 1)
  if len(raw) > _MAX_BYTES:
    raise ValueError(f"more than {_MAX_BYTES} bytes")
  try:
    # Not splitlines(): transcriptions may hold other line separators.
    return raw.decode("utf-8-sig").replace("\r\n", "\n").split("\n")
  except UnicodeDecodeError:
    raise ValueError("is not UTF-8") from None


def pages(
  annotations: list[files.File], kind: str
) -> Iterator[written_pages.Page]:
  """The pages of text files, one each.

  Args:
    annotations: the files.
    kind: one of FORMATS.
  """
  for file in annotations:
    stem = pathlib.PurePosixPath(file.name).stem
    for prefix in _PREFIXES:
      stem = stem.removeprefix(prefix)
    name = str(pathlib.PurePosixPath(file.name).with_name(stem))
    draft = written_pages.Draft(name, name, written_pages.split_of(file.name))
    try:
      lines = read_lines(file)
    except (ValueError, OSError) as error:
      draft.note("file", str(error))
      yield draft.page()
      continue
    words = _total_text if kind == "total_text" else _quads
    _add(draft, list(words(lines, kind, draft)))
    yield draft.page()


def _quads(
  lines: list[str], kind: str, draft: written_pages.Draft
) -> Iterator[_Word]:
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    found = _QUAD.fullmatch(line)
    if found is None:
      draft.note(f"line {number}", "no eight numbers and a transcription")
      continue
    text, language = found[2], "und"
    if kind == "mlt":
      script, comma, text = text.partition(",")
      if not comma or script not in SCRIPTS:
        draft.note(f"line {number}", "no script of MLT's")
        continue
      language = SCRIPTS[script]
    try:
      outline = outlines.of_numbers([float(one) for one in found[1].split(",")])
    except outlines.BadOutline as error:
      draft.note(f"line {number}", str(error))
      continue
    legible = text.strip() != _ILLEGIBLE
    yield _Word(f"line {number}", outline, text, legible, language)


def _total_text(
  lines: list[str], kind: str, draft: written_pages.Draft
) -> Iterator[_Word]:
  del kind
  # A long list of numbers goes on in the next line.
  records = " ".join(lines).replace(" x: [[", "\nx: [[").split("\n")
  for number, record in enumerate(records, 1):
    if not record.strip():
      continue
    found = _TOTAL_TEXT.fullmatch(record.strip())
    try:
      if found is None:
        raise outlines.BadOutline("is not of Total-Text's form")
      xs, ys = (
        [float(one) for one in found[k].replace(",", " ").split()]
        for k in (1, 2)
      )
      if len(xs) != len(ys):
        raise outlines.BadOutline("x and y differ in number")
      outline = outlines.of_numbers(
        [number for pair in zip(xs, ys, strict=True) for number in pair]
      )
    except ValueError as error:  # BadOutline is one.
      bad = isinstance(error, outlines.BadOutline)
      draft.note(
        f"record {number}", str(error) if bad else "no list of corners"
      )
      continue
    text = _unescaped(found[4] if found[4] is not None else found[5])
    legible = text.strip() not in (_TOTAL_TEXT_ILLEGIBLE, _ILLEGIBLE)
    yield _Word(f"record {number}", outline, text, legible)


_ESCAPE = re.compile(
  r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8})|(.))", re.IGNORECASE
)


def _unescaped(written: str) -> str:
  """What Python 2 wrote as a literal: "caf\\xe9" -> "café"."""

  def one(match: re.Match[str]) -> str:
    digits = match[1] or match[2] or match[3]
    if digits is None:
      return {"n": " ", "t": " ", "r": " "}.get(match[4], match[4])
    return chr(int(digits, 16)) if int(digits, 16) <= 0x10FFFF else "\ufffd"

  return _ESCAPE.sub(one, written)


def _add(draft: written_pages.Draft, words: list[_Word]) -> None:
  """Adds words in the order in which one reads them."""
  boxes = [outlines.box(word.outline) for word in words]
  for line in reading_order.lines(boxes):
    for i in line:
      word = words[i]
      draft.add(
        word.name,
        "word",
        word.outline,
        word.text,
        legible=word.legible,
        language=word.language,
      )


def xml_pages(
  path: str | os.PathLike[str] | files.File,
) -> Iterator[written_pages.Page]:
  """The pages of Street View Text's XML.

  Raises:
    xml_trees.BrokenXml: the file as a whole cannot be used.
  """
  tree = xml_trees.read(path)
  file = path.path if isinstance(path, files.File) else os.fspath(path)
  split = written_pages.split_of(os.path.basename(file))
  for number, image in enumerate(tree.iter("image")):
    name = (image.findtext("imageName") or "").strip()
    draft = written_pages.Draft(
      f"{split or 'all'}/{name or number}", name, split
    )
    if not name:
      draft.note("imageName", "no imageName")
    words = []
    for place, rectangle in enumerate(image.iter("taggedRectangle")):
      text = rectangle.findtext("tag") or ""
      try:
        numbers = [
          float(rectangle.get(key, "nan"))
          for key in ("x", "y", "width", "height")
        ]
        words.append(
          _Word(f"word {place}", outlines.of_box(*numbers), text, bool(text))
        )
      except ValueError as error:
        bad = isinstance(error, outlines.BadOutline)
        draft.note(f"word {place}", str(error) if bad else "no box")
    _add(draft, words)
    yield draft.page()
