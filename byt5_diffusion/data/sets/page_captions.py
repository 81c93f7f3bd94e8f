"""What a caption quotes of a page, and where the page's parts stand in it."""

from byt5_diffusion.data import supplies
from byt5_diffusion.data.sets import (
  descriptions,
  outlines,
  written_pages,
)

# Quoted as one of several strings: more is no sign that one reads in passing.
_MAX_QUOTE = 80  # characters


def quotable(page: written_pages.Page) -> list[int]:
  """Marks that a caption may quote: short, and with a letter or a digit."""
  return [
    number
    for number in page.readable
    if len(page.marks[number].text) <= _MAX_QUOTE
    and any(one.isalnum() for one in page.marks[number].text)
  ]


def largest(page: written_pages.Page, count: int) -> list[int]:
  """The `count` marks with the tallest writing, in reading order."""

  def height(number: int) -> float:
    return outlines.thickness(page.marks[number].outline)

  chosen = sorted(quotable(page), key=height, reverse=True)[:count]
  return sorted(chosen)


def hidden(page: written_pages.Page) -> list[outlines.Outline]:
  """Illegible writing; of a line with parts, those of the parts."""
  lines = page.parts
  return [
    mark.outline
    for number, mark in enumerate(page.marks)
    if not mark.legible and number not in lines
  ]


def spans(
  page: written_pages.Page,
  chosen: list[int],
  caption: descriptions.Caption,
  *,
  whole: bool,
) -> dict[int, tuple[int, int]]:
  """Where the caption has the text of marks, {number: (start, end)} in bytes.

  Args:
    page: of the marks.
    chosen: numbers of the marks that are quoted.
    caption: that quotes each of them; or, if `whole`, all that is written.
  """
  if whole:
    written, places = page.written
    starts = [
      caption.spans[0][0] + len(written[: places[number]].encode("utf-8"))
      for number in chosen
    ]
  else:
    starts = [span[0] for span in caption.spans]
  spans, parts = {}, page.parts
  for number, start in zip(chosen, starts, strict=True):
    text = page.marks[number].text
    inside = parts.get(number, [])
    found = supplies.spans(text, [page.marks[part].text for part in inside])
    spans[number] = (start, start + len(text.encode("utf-8")))
    for part, span in zip(inside, found, strict=True):
      if span is not None:
        spans[part] = (start + span[0], start + span[1])
  return spans
