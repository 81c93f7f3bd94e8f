"""Made-up pages as a supply: example `index` of a split, in any language.

design   page_kinds.DESIGNS     what stands on it, of a random generator
picture  sandbox.Pool           HTML -> pixels and boxes, in other processes
caption  caption_writer.write   quotes the headline and the like
"""

import dataclasses
import html
import re
from typing import ClassVar, cast

import numpy as np

from byt5_diffusion.data import (
  annotated,
  supplies,
)
from byt5_diffusion.data.pages import (
  made_pictures,
  page_designs,
  page_kinds,
  page_writer,
  sandbox,
)
from byt5_diffusion.data.writing import (
  caption_writer,
  font_styles,
)

NAME = "typography_layout"
# Sizes that are tried, as shares of the first one.
_SIZES = (1.0, 0.87, 0.75, 0.64, 0.54)
_TAG = re.compile("<[^>]*>")
_INSIDE = ("line", "word", "glyph")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MadePages(made_pictures.MadePictures):
  """supplies.Supply of made-up pages: see MadePictures."""

  TABLE: ClassVar = page_kinds.DESIGNS
  VERSION: ClassVar[str] = "1"
  name: ClassVar[str] = NAME

  def page(
    self, split: str, code: str, rng: np.random.Generator
  ) -> tuple[page_designs.Design, page_designs.Style, page_writer.Writer]:
    """A page before it is drawn, of a split."""
    make, style, writer = self.pick(code, rng)
    design = self.of_split(
      split, code, lambda: make(writer, style), lambda made: made.quoted[0]
    )
    return design, style, writer

  def _draw(
    self, key: str, split: str, code: str, rng: np.random.Generator
  ) -> annotated.Annotated:
    design, style, writer = self.page(split, code, rng)
    height, width = _size(self.side, design.proportion)
    root = min(height, width) * design.root * rng.uniform(0.92, 1.2)
    source = page_designs.document(design, style, writer)
    quoted = [page_writer.seen(text) for text in design.quoted]
    look = made_pictures.look(
      design.kind,
      style,
      design.head_ink or style.strong,
      design.head_paper or style.paper,
      design.vertical,
      design.numbers.get("weight", 700.0) >= 700 and style.head.bold,
    )
    quoted, look = made_pictures.told(quoted, design.headed, look, rng)
    caption = caption_writer.write(quoted, look, rng, code)
    self.check_length(caption, _said(design))
    drawn = sandbox.pool().draw(
      "html",
      source.encode("utf-8"),
      name=key,
      height=height,
      width=width,
      fit=[root * size for size in _SIZES],
      strict=True,
    )
    spans = dict(zip(quoted, supplies.spans(caption, quoted), strict=True))
    regions = tuple(
      dataclasses.replace(region, span=spans.get(region.text))
      if region.label not in _INSIDE
      else region
      for region in drawn.regions
    )
    blocks = [r.text for r in regions if r.label not in _INSIDE and r.text]
    return annotated.Annotated(
      key=key,
      image=drawn.image,
      text=caption,
      transcription="\n".join(blocks),
      language=code,
      regions=regions,
      style=_numbers(design, style, writer, drawn.facts["root_size"] / height),
    )


def open_pages(
  path: str,
  *,
  side: int = 768,
  designs: str = "",
  languages: str = "",
  language: str = "",
  max_megabytes: float = 1024.0,
  max_bytes: int = 0,
  max_caption: int = 0,
  num_train: int = 1_000_000,
  num_validation: int = 1_000,
) -> supplies.Supply:
  """Opens the supply that a task's name says.

  Args:
    path: "built_in", or the user's texts (data/writing/corpora.py).
    side: pixels of a page's longer side.
    designs: names of page_kinds.DESIGNS, joined by commas; "" = all.
    languages: mC4's codes, joined by commas; "" = all that the texts have.
    language: mC4's code of the user's texts, where their names don't say it.
    max_megabytes: of the user's texts that are read.
    max_bytes: of all that stands on a page; 0 = any number.
    max_caption: bytes of a caption; 0 = any number.
    num_train, num_validation: examples until the same ones come again.
  """
  made = MadePages(
    texts=made_pictures.open_texts(path, language, max_megabytes),
    side=side,
    designs=made_pictures.listed(designs),
    codes=made_pictures.listed(languages),
    max_bytes=max_bytes,
    max_caption=max_caption,
    num_train=num_train,
    num_validation=num_validation,
  )
  return cast(supplies.Supply, made)


def _said(design: page_designs.Design) -> str:
  """What stands on a page that is not drawn yet."""
  return " ".join(html.unescape(_TAG.sub("", design.body)).split())


def _size(side: int, proportion: float) -> tuple[int, int]:
  """Height and width; the longer one is `side`."""
  if proportion < 1:
    return side, max(1, round(side * proportion))
  return max(1, round(side / proportion)), side


def _numbers(
  design: page_designs.Design,
  style: page_designs.Style,
  writer: page_writer.Writer,
  rem: float,
) -> dict[str, float]:
  """annotated.STYLE of the headline; `rem` in shares of the height."""
  ink = design.head_ink or style.strong
  paper = design.head_paper or style.paper
  found = {
    "family": float(font_styles.family_number(style.head.style.family)),
    "weight": 700.0 if style.head.bold else 400.0,
    "slant": 0.0,
    "size": design.head_size * rem,
    "tracking": style.tracking,
    "leading": page_designs.head_leading(style),
    "right_to_left": float(writer.rtl),
    "vertical": float(design.vertical),
  }
  for name, color in (("ink", ink), ("paper", paper)):
    for channel, value in zip(("red", "green", "blue"), color, strict=True):
      found[f"{name}_{channel}"] = value / 255
  return {**found, **design.numbers}
