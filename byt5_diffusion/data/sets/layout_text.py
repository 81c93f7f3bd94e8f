"""Boxes of a page as text, and back: what a model that reads layouts writes.

  x071130374258 p424000999575 c205030374068

A region is a letter for its class (MARKS) and twelve digits: left, top, right
and bottom, each in thousandths of the page's width or height (0 the left or top
edge, 999 the other one). Regions stand in reading order, a space between them:
14 bytes each. A page without any is EMPTY.

With texts, every region has a line of its own, and its text behind a space:

  s071109349122 Balance Sheet Growth

Letters and digits never change places, so a reader finds its way again behind
any damage: `parse` takes every whole region that it finds, and nothing else.
"""

import re
from collections.abc import Sequence

from byt5_diffusion.data import (
  annotated,
  captions,
)
from byt5_diffusion.data.sets import documents

LEVELS = 1000
EMPTY = "-"
# Append only: models have learnt these.
MARKS = {
  "glyph": "g",
  "word": "w",
  "line": "l",
  "block": "b",
  "caption": "c",
  "footnote": "n",
  "formula": "m",
  "list-item": "i",
  "page-footer": "f",
  "page-header": "h",
  "picture": "p",
  "section-header": "s",
  "table": "r",
  "text": "x",
  "title": "t",
  "list": "k",
  "figure": "v",
  "question": "q",
  "answer": "a",
  "header": "z",
  "other": "o",
}
_LABELS = {mark: label for label, mark in MARKS.items()}
_REGION = rf"([{''.join(_LABELS)}])([0-9]{{12}})"
# A letter before or a digit behind: a part of something else.
_ANYWHERE = re.compile(rf"(?<![A-Za-z]){_REGION}(?![0-9])")
_LINE = re.compile(rf"[ \t]*{_REGION}(?![0-9])(?: (.*))?")
_WHOLE = re.compile(rf"{_REGION}(?: {_REGION})*|{re.escape(EMPTY)}")


def quantize(share: float) -> int:
  """A coordinate in [0, 1] as one of LEVELS: round(share * 999)."""
  return round(min(max(share, 0.0), 1.0) * (LEVELS - 1))


def numbers(box: annotated.Box) -> tuple[int, int, int, int]:
  """A box in shares of the page as levels; it keeps at least one of each."""
  left, right = _apart(quantize(box[0]), quantize(box[2]))
  top, bottom = _apart(quantize(box[1]), quantize(box[3]))
  return left, top, right, bottom


def _apart(low: int, high: int) -> tuple[int, int]:
  if high > low:
    return low, high
  return (low, low + 1) if low < LEVELS - 1 else (low - 1, low)


def write(parts: Sequence[documents.Part], texts: bool = False) -> str:
  """The text of a page's regions.

  Args:
    parts: boxes in shares of the page's width and height, in reading order.
    texts: with what is written in them.
  """
  if not parts:
    return EMPTY
  written = [
    MARKS[part.label] + "".join(f"{n:03d}" for n in numbers(part.box))
    for part in parts
  ]
  if not texts:
    return " ".join(written)
  return "\n".join(
    f"{mark} {' '.join(part.text.split())}".rstrip()
    for mark, part in zip(written, parts, strict=True)
  )


def parse(text: str, texts: bool = False) -> list[documents.Part]:
  """The regions that a text names, whatever else is in it.

  Regions that are cut off, of no known letter, with a digit too few or too
  many, or without any extent are left out.

  Args:
    text: as `write` makes it, or as a model does.
    texts: it was written with texts. Then regions stand at lines' beginnings,
      and a line without one goes on with the text of the last.

  Returns:
    Boxes in shares of the page's width and height.
  """
  if not texts:
    found = _ANYWHERE.finditer(text)
    return [part for match in found if (part := _part(match[1], match[2]))]
  parts: list[documents.Part] = []
  for line in text.split("\n"):
    match = _LINE.fullmatch(line)
    part = _part(match[1], match[2], match[3] or "") if match else None
    if part is not None:
      parts.append(part)
    elif match is None and parts and line.strip():
      joined = f"{parts[-1].text} {' '.join(line.split())}".strip()
      parts[-1] = parts[-1]._replace(text=joined)
  return parts


def _part(mark: str, digits: str, text: str = "") -> documents.Part | None:
  left, top, right, bottom = (int(digits[i : i + 3]) for i in (0, 3, 6, 9))
  if left >= right or top >= bottom:
    return None
  unit = LEVELS - 1
  box = (left / unit, top / unit, right / unit, bottom / unit)
  return documents.Part(box, _LABELS[mark], " ".join(text.split()))


def is_layout(text: str) -> bool:
  """Whether a text is regions without texts, and nothing else."""
  return _WHOLE.fullmatch(text) is not None


# --- Captions ----------------------------------------------------------------


def page_of(subject: str) -> str:
  """The words that a caption begins with."""
  return f"a page of {subject}" if subject else "a document page"


def summary(
  parts: Sequence[documents.Part], subject: str, max_quote: int = 80
) -> str:
  """A caption that counts a page's regions and quotes its first title."""
  counts: dict[str, int] = {}
  for part in parts:
    counts[part.label] = counts.get(part.label, 0) + 1
  listed = [
    f"{count} {label.replace('-', ' ')}{'s' if count > 1 else ''}"
    for label, count in counts.items()
  ]
  caption = page_of(subject)
  if listed:
    caption += " with " + ", ".join(listed)
  titles = [
    quoted
    for part in parts
    if part.label in ("title", "section-header", "header")
    and (quoted := _quoted(part.text, max_quote))
  ]
  return f"{caption}, titled {titles[0]}" if titles else caption


def drawing(
  parts: Sequence[documents.Part], subject: str, max_quote: int = 80
) -> str:
  """A caption that says where each region is, and what is written there.

  a page of forms: question 100,210,203,231 “Registration No.”; answer ...

  Coordinates are as in `write`.

  Args:
    parts: boxes in shares of the page, in reading order.
    subject: of the page; "" where it is unknown.
    max_quote: texts of more bytes are not quoted.
  """
  said = []
  for part in parts:
    where = ",".join(map(str, numbers(part.box)))
    quoted = _quoted(part.text, max_quote)
    said.append(f"{part.label} {where}" + (f" {quoted}" if quoted else ""))
  return f"{page_of(subject)}: {'; '.join(said)}" if said else page_of(subject)


def _quoted(text: str, max_quote: int) -> str:
  """The text in quotation marks; "" if it is too long, or has no marks."""
  text = " ".join(text.split())
  if not text or len(text.encode("utf-8", "replace")) > max_quote:
    return ""
  try:
    return captions.in_marks(text)
  except ValueError:
    return ""
