"""Made-up vector graphics as a supply: badges, charts, maps, in any language.

  design   svg_kinds.DESIGNS      SVG and boxes, of a random generator
  picture  sandbox.Pool           resvg, in other processes
  caption  caption_writer.write

`source` gives the SVG itself, to be looked at or kept.
"""

import dataclasses
from typing import ClassVar, cast

import numpy as np

from byt5_diffusion.data import (
  annotated,
  images,
  supplies,
)
from byt5_diffusion.data.pages import (
  made_pictures,
  page_boxes,
  sandbox,
  svg_designs,
  svg_kinds,
)
from byt5_diffusion.data.writing import (
  caption_writer,
  font_styles,
  words,
)

NAME = "typography_svg"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MadeVectors(made_pictures.MadePictures):
  """supplies.Supply of made-up vector graphics: see MadePictures."""

  TABLE: ClassVar = svg_kinds.DESIGNS
  VERSION: ClassVar[str] = "1"
  name: ClassVar[str] = NAME

  def canvas(
    self, split: str, code: str, rng: np.random.Generator
  ) -> svg_designs.Canvas:
    """A drawn canvas of a split. images.BadImage: a text cannot be placed."""
    draw, style, writer = self.pick(code, rng)

    def make() -> svg_designs.Canvas:
      made = svg_designs.Canvas(
        width=512, height=512, style=style, writer=writer
      )
      draw(made)
      return made

    try:
      return self.of_split(split, code, make, lambda made: made.quoted[0])
    except svg_designs.CannotPlace as error:
      raise images.BadImage(
        self.name, f"no glyphs or no room for {error}"
      ) from None

  def source(self, split: str, index: int, seed: int, language: str) -> str:
    """The SVG of an example, as `read` draws it first."""
    key = f"{self.name}/{split}/{seed}/{index}/{language}"
    rng = words.generator(self.VERSION, key)
    return self.canvas(split, language, rng).svg()

  def _draw(
    self, key: str, split: str, code: str, rng: np.random.Generator
  ) -> annotated.Annotated:
    canvas = self.canvas(split, code, rng)
    scale = self.side / max(canvas.width, canvas.height)
    height, width = round(canvas.height * scale), round(canvas.width * scale)
    quoted = [text.replace("\u200b", "") for text in canvas.quoted]
    vertical = canvas.numbers["vertical"] > 0
    look = made_pictures.look(
      canvas.kind, canvas.style, canvas.ink, canvas.paper, vertical
    )
    quoted, look = made_pictures.told(quoted, canvas.headed(), look, rng)
    caption = caption_writer.write(quoted, look, rng, code)
    lines = [r.text for r in canvas.regions if r.label == "line"]
    self.check_length(caption, "\n".join(lines))
    drawn = sandbox.pool().draw(
      "svg",
      canvas.svg().encode("utf-8"),
      name=key,
      height=height,
      width=width,
    )
    spans = dict(zip(quoted, supplies.spans(caption, quoted), strict=True))
    regions = tuple(
      moved
      for region in canvas.regions
      if (moved := _moved(region, scale, height, width, spans))
    )
    regions = tuple(
      dataclasses.replace(
        region, box=page_boxes.tightened(drawn.image, region.box)
      )
      if page_boxes.breaks_anywhere(region.text) and not region.polygon
      else region
      for region in regions
    )
    return annotated.Annotated(
      key=key,
      image=drawn.image,
      text=caption,
      transcription="\n".join(lines),
      language=code,
      regions=tuple(sorted(regions, key=lambda region: region.label)),
      style=_numbers(canvas),
    )


def _moved(
  region: annotated.Region,
  scale: float,
  height: int,
  width: int,
  spans: dict[str, tuple[int, int] | None],
) -> annotated.Region | None:
  """The region in the picture's pixels; None if it is not on it."""
  left, top, right, bottom = (edge * scale for edge in region.box)
  left, top = max(0.0, left), max(0.0, top)
  right, bottom = min(float(width), right), min(float(height), bottom)
  if right <= left or bottom <= top:
    return None
  span = spans.get(region.text) if region.label == "line" else None
  return dataclasses.replace(
    region,
    box=(left, top, right, bottom),
    polygon=tuple((x * scale, y * scale) for x, y in region.polygon),
    span=span,
  )


def _numbers(canvas: svg_designs.Canvas) -> dict[str, float]:
  """annotated.STYLE of what a caption quotes."""
  head = canvas.style.head
  return {
    **canvas.numbers,
    "family": float(font_styles.family_number(head.style.family)),
    "weight": 700.0 if head.bold else 400.0,
    "slant": 0.0,
    "tracking": 0.0,
    "right_to_left": float(canvas.writer.rtl),
  }


def open_vectors(
  path: str,
  *,
  side: int = 512,
  designs: str = "",
  languages: str = "",
  language: str = "",
  max_megabytes: float = 1024.0,
  max_bytes: int = 0,
  max_caption: int = 0,
  num_train: int = 1_000_000,
  num_validation: int = 1_000,
) -> supplies.Supply:
  """Opens the supply that a task's name says: see made_pages.open_pages."""
  made = MadeVectors(
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
