"""A picture and what is known of it, whichever data set it comes from.

Data sets (data/sets/laion.py, ...) read their own formats into these;
supplies.py makes task features of them.
"""

import dataclasses

import numpy as np

# What a region is. Its place is its number in "box_labels" and "region_mask";
# 0 is no region. Append only: prepared data sets hold the numbers.
LABELS = (
  "",
  # Writing.
  "glyph",
  "word",
  "line",
  "block",
  # DocLayNet's classes, in its order, then PubLayNet's own and FUNSD's.
  "caption",
  "footnote",
  "formula",
  "list-item",
  "page-footer",
  "page-header",
  "picture",
  "section-header",
  "table",
  "text",
  "title",
  "list",
  "figure",
  "question",
  "answer",
  "header",
  "other",
)
# What "style" holds, number by number; NaN where it is unknown.
STYLE = (
  "family",  # A number that stands for the font family: see family_number.
  "weight",  # 100 to 900
  "slant",  # 0 upright, 1 italic
  "size",  # of an em, in shares of the picture's height
  "tracking",  # added between letters, in em
  "leading",  # from baseline to baseline, in em
  "right_to_left",  # 0 or 1
  "vertical",  # 0 horizontal lines, 1 vertical ones
  "ink_red",  # colours from 0 to 1
  "ink_green",
  "ink_blue",
  "paper_red",
  "paper_green",
  "paper_blue",
)
Box = tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Region:
  """A part of a picture.

  Attributes:
    box: left, top, right, bottom in the picture's pixels, inside of it.
    label: what it is, one of LABELS but "".
    text: what is written in it; "" if nothing, or nobody can read it.
    polygon: outline as (x, y) corners; () means the box.
    span: where Annotated.text has this text, (start, end) in bytes of UTF-8;
      None if it does not.
    legible: whether its text can be read.
    vertical: whether its lines run from top to bottom.
  """

  box: Box
  label: str
  text: str = ""
  polygon: tuple[tuple[float, float], ...] = ()
  span: tuple[int, int] | None = None
  legible: bool = True
  vertical: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Annotated:
  """One example of a data set.

  Attributes:
    key: its name for good, "<data set>/<what the data set calls it>": hashed to
      "example_id".
    image: an image file's bytes, or pixels uint8 [H, W, 3].
    text: the caption to draw by, or the text to be read.
    language: mC4's code of `text` (data/languages.py); "und": unknown.
    regions: parts of the picture, in reading order where there is one.
    style: {a name of STYLE: number}, as far as known.
    transcription: the text to be read, where `text` is a caption that says
      more; None: `text` serves for both.
  """

  key: str
  image: bytes | np.ndarray
  text: str
  language: str = "und"
  regions: tuple[Region, ...] = ()
  style: dict[str, float] = dataclasses.field(default_factory=dict)
  transcription: str | None = None
