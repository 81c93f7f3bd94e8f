"""Pages with writing on them, as many data sets have them, and their parts.

An adapter (hiertext.py, kuzushiji.py, ...) reads its own format into `Page`s,
and page_supply.py makes examples of them.
"""

import dataclasses
import itertools
import json
import re
from collections.abc import Callable
from typing import NamedTuple

from byt5_diffusion.data import text
from byt5_diffusion.data.sets import outlines

PARTS = ("glyph", "word", "line")
_MAX_TEXT = 2**16  # Characters of a line.
SPLITS = ("train", "validation", "test")
_SPLIT_NAMES = {
  "validation": ("validation", "val", "valid", "dev"),
  "test": ("test", "testing"),
  "train": ("train", "training", "tr"),
}


class Mark(NamedTuple):
  """Something written on a page.

  Attributes:
    label: one of PARTS.
    outline: its corners (data/sets/outlines.py).
    text: what it says; "" if nobody can read it.
    legible: whether it can be read.
    vertical: whether it runs from top to bottom.
    language: mC4's code, "und" if unknown.
    parent: number of the line that this is a part of; -1 for none.
  """

  label: str
  outline: outlines.Outline
  text: str = ""
  legible: bool = True
  vertical: bool = False
  language: str = "und"
  parent: int = -1


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Page:
  """A picture, and what is written on it.

  Attributes:
    key: what the data set calls it; unique among its pages.
    picture: the name of its picture, with or without folders and extension.
    marks: in reading order, parts behind the line that they belong to.
    split: as published, one of SPLITS; "": it says none.
    together: pages of the same name here are in the same split; "": the key.
    spaced: whether the parts of a line stand apart: words, not characters.
    problems: (name, reason) of what could not become a mark.
  """

  key: str
  picture: str
  marks: tuple[Mark, ...]
  split: str = ""
  together: str = ""
  spaced: bool = True
  problems: tuple[tuple[str, str], ...] = ()

  @property
  def readable(self) -> list[int]:
    """Numbers of the marks that together say all that can be read.

    Lines, if there are any; of a line that is legible in parts, those parts.
    """
    marks = self.marks
    part = "line" if any(mark.label == "line" for mark in marks) else "word"
    found = []
    for number, mark in enumerate(marks):
      if not mark.legible or not mark.text:
        continue
      if mark.label == part or (
        mark.parent >= 0 and not marks[mark.parent].legible
      ):
        found.append(number)
    return found

  @property
  def parts(self) -> dict[int, list[int]]:
    """{number of a line: numbers of what belongs to it}."""
    found: dict[int, list[int]] = {}
    for number, mark in enumerate(self.marks):
      if mark.parent >= 0:
        found.setdefault(mark.parent, []).append(number)
    return found

  @property
  def written(self) -> tuple[str, dict[int, int]]:
    """All that can be read, and where each of `readable` begins in it.

    A line for each; what belongs to the same line stands in one.
    """
    written, before = "", -2
    starts: dict[int, int] = {}
    for number in self.readable:
      line = self.marks[number].parent
      if starts:
        same = line >= 0 and line == before
        written += (" " if self.spaced else "") if same else "\n"
      starts[number] = len(written)
      written += self.marks[number].text
      before = line
    return written, starts

  @property
  def text(self) -> str:
    """All that can be read."""
    return self.written[0]

  @property
  def language(self) -> str:
    """The language of most of it, "und" if unknown."""
    sizes: dict[str, int] = {}
    for number in self.readable:
      mark = self.marks[number]
      sizes[mark.language] = sizes.get(mark.language, 0) + len(mark.text)
    return max(sizes, key=lambda code: sizes[code]) if sizes else "und"

  def pack(self) -> bytes:
    """As compact JSON: a page of a hundred words is a few kilobytes."""
    marks = [
      (
        PARTS.index(mark.label),
        list(itertools.chain.from_iterable(mark.outline)),
        mark.text,
        int(mark.legible),
        int(mark.vertical),
        mark.language,
        mark.parent,
      )
      for mark in self.marks
    ]
    return json.dumps(
      [self.key, self.picture, marks, self.split, int(self.spaced)],
      separators=(",", ":"),
    ).encode("ascii")

  @classmethod
  def unpack(cls, raw: bytes) -> "Page":
    key, picture, marks, split, spaced = json.loads(raw)
    return cls(
      key=key,
      picture=picture,
      marks=tuple(
        Mark(
          PARTS[label],
          tuple(zip(numbers[::2], numbers[1::2], strict=True)),
          text,
          bool(legible),
          bool(vertical),
          language,
          parent,
        )
        for label, numbers, text, legible, vertical, language, parent in marks
      ),
      split=split,
      spaced=bool(spaced),
    )


class Draft:
  """A page in the making: marks are added one by one."""

  def __init__(
    self,
    key: str,
    picture: str,
    split: str = "",
    *,
    together: str = "",
    spaced: bool = True,
  ):
    self._together = together
    self._spaced = spaced
    self._key = key
    self._picture = picture
    self._split = split
    self._marks: list[Mark] = []
    self._problems: list[tuple[str, str]] = []
    self._seen: set[Mark] = set()

  def add(
    self,
    name: str,
    label: str,
    corners: outlines.Outline | Callable[[], outlines.Outline],
    written: object,
    *,
    legible: bool = True,
    vertical: bool = False,
    language: str = "und",
    parent: int = -1,
  ) -> int:
    """Adds a mark and gives its number; -1 if it is unusable, which is noted.

    Args:
      name: of the mark, for the note.
      label: see Mark, as the others.
      corners: the outline, or what gives it: its BadOutline is caught.
      written: what it says, if that is a string.
      legible, vertical, language, parent: see Mark.
    """
    if not isinstance(written, str):
      return self.note(name, "its text is no string")
    if len(written) > _MAX_TEXT:
      return self.note(name, f"more than {_MAX_TEXT} characters")
    try:
      outline = corners() if callable(corners) else corners
    except outlines.BadOutline as error:
      return self.note(name, str(error))
    said = clean(written)
    mark = Mark(
      label=label,
      outline=outline,
      text=said,
      legible=legible and bool(said),
      vertical=vertical,
      language=language,
      parent=parent,
    )
    if mark in self._seen:
      return self.note(name, "listed twice")
    self._seen.add(mark)
    self._marks.append(mark)
    return len(self._marks) - 1

  def note(self, name: str, reason: str) -> int:
    """Notes something that cannot be used; -1."""
    self._problems.append((name, reason))
    return -1

  def page(self) -> Page:
    """The page of all that was added."""
    return Page(
      key=self._key,
      picture=self._picture,
      marks=tuple(self._marks),
      split=self._split,
      together=self._together,
      spaced=self._spaced,
      problems=tuple(self._problems),
    )


def split_of(name: str) -> str:
  """The split that a file's or a folder's name says; "" if none."""
  words = re.split(r"[^a-z]+", name.lower())
  for split, names in _SPLIT_NAMES.items():
    if any(word in names for word in words):
      return split
  return ""


def clean(written: str) -> str:
  """A transcription as one line: white space made single, surrogates gone."""
  return " ".join(text.to_text(written).split())
