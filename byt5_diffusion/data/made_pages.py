"""Made-up pages as a supply: example `index` of a split, in any language.

  design   page_kinds.DESIGNS     what stands on it, of a random generator
  picture  sandbox.Pool           HTML -> pixels and boxes, in other processes
  caption  caption_writer.write   quotes the headline and the like

A page belongs to the split that words.split_of says of its headline. A page
whose text cannot be made to fit gives its place to another one.
"""

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Mapping

import numpy as np

from byt5_diffusion.data import (
  annotated,
  caption_writer,
  font_styles,
  fonts,
  images,
  languages,
  page_designs,
  page_kinds,
  page_writer,
  phrases,
  sandbox,
  supplies,
  words,
)

_log = logging.getLogger(__name__)

# Sizes that are tried, as shares of the design's own.
_SIZES = (1.0, 0.87, 0.75, 0.64, 0.54)
_MAX_TRIES = 12
_MAX_HEADS = 2000
_VERSION = "1"  # Another one draws other pages of the same numbers.


@dataclasses.dataclass(frozen=True, kw_only=True)
class MadePages:
  """supplies.Supply of made-up pages.

  Attributes:
    texts: where strings come from.
    side: pixels of a page's longer side.
    designs: names of page_kinds.DESIGNS that are drawn.
    codes: mC4's codes of the languages that are drawn.
    num_train, num_validation: examples until the same ones come again.
  """

  texts: phrases.Texts = dataclasses.field(default_factory=phrases.Phrases)
  side: int = 768
  designs: tuple[str, ...] = tuple(page_kinds.DESIGNS)
  codes: tuple[str, ...] = ()
  num_train: int = 1_000_000
  num_validation: int = 1_000

  name = "typography_layout"
  endless = True

  @functools.cached_property
  def sizes(self) -> Mapping[str, int]:
    return {"train": self.num_train, "validation": self.num_validation}

  @functools.cached_property
  def drawn(self) -> tuple[str, ...]:
    """Codes that this machine has fonts for, of those that are asked for."""
    wanted = self.codes or self.texts.codes
    here = set(fonts.available_scripts())
    kept = tuple(
      code
      for code in wanted
      if any(script in here for script, _ in phrases.scripts(code))
    )
    missing = sorted(set(wanted) - set(kept))
    if missing:
      _log.warning(
        "%s goes without %s: no font here covers them. Run `python "
        "tools/fetch_fonts.py` (needs no root) to have them.",
        self.name,
        " ".join(missing),
      )
    if not kept:
      fonts.fonts_for(phrases.scripts(wanted[0])[0][0])  # Raises.
    return kept

  @functools.cached_property
  def fingerprint(self) -> str:
    parts = (
      _VERSION,
      self.texts.fingerprint,
      self.side,
      self.designs,
      self.drawn,
      self.num_train,
      self.num_validation,
    )
    return hashlib.sha256(repr(parts).encode("utf-8")).hexdigest()

  def languages(self, split: str) -> np.ndarray | None:
    del split
    return np.array([languages.row(code) for code in self.drawn], np.uint8)

  def read(
    self, split: str, index: int, seed: int = 0, language: str = ""
  ) -> annotated.Annotated:
    """See supplies.Supply.read."""
    code = language or phrases.language_at(split, seed, index, self.drawn)
    rng = words.generator("page", _VERSION, split, int(seed), int(index), code)
    key = f"{self.name}/{split}/{seed}/{index}/{code}"
    for _ in range(_MAX_TRIES):
      try:
        return self._draw(key, split, code, rng)
      except images.BadImage as error:
        reason = error.reason
      except caption_writer.CannotQuote as error:
        reason = str(error)
    raise images.BadImage(key, reason)

  def page(
    self, split: str, code: str, rng: np.random.Generator
  ) -> tuple[page_designs.Design, page_designs.Style, page_writer.Writer]:
    """A page before it is drawn, of a split. ValueError: no headline is."""
    script = page_writer.pick_script(rng, code)
    writer = page_writer.Writer(
      rng=rng,
      texts=self.texts,
      language=code,
      script=script,
      digits=bool(rng.uniform() < 0.4),
    )
    makers = [page_kinds.DESIGNS[name] for name in self.designs]
    shares = np.cumsum([share for _, share in makers])
    place = np.searchsorted(shares / shares[-1], rng.uniform(), side="right")
    make = makers[min(int(place), len(makers) - 1)][0]
    style = page_designs.style(rng, script)
    for _ in range(_MAX_HEADS):
      design = make(writer, style)
      if words.split_of(page_writer.seen(design.quoted[0])) == split:
        return design, style, writer
    raise ValueError(
      f"{self.name}: no headline in {code!r} for split {split!r} among "
      f"{_MAX_HEADS}: the texts have too few different strings."
    )

  def _draw(
    self, key: str, split: str, code: str, rng: np.random.Generator
  ) -> annotated.Annotated:
    design, style, writer = self.page(split, code, rng)
    height, width = _size(self.side, design.proportion)
    root = min(height, width) * design.root * rng.uniform(0.92, 1.2)
    html = page_designs.document(design, style, writer)
    drawn = sandbox.pool().draw(
      "html",
      html.encode("utf-8"),
      name=key,
      height=height,
      width=width,
      fit=[root * size for size in _SIZES],
      strict=True,
    )
    quoted = [page_writer.seen(text) for text in design.quoted]
    caption = caption_writer.write(quoted, _look(design, style), rng, code)
    spans = supplies.spans(caption, quoted)
    places = dict(zip(quoted, spans, strict=True))
    regions = tuple(
      dataclasses.replace(region, span=places.get(region.text))
      if region.label not in ("line", "word", "glyph")
      else region
      for region in drawn.regions
    )
    blocks = (
      r.text for r in regions if r.label not in ("line", "word", "glyph")
    )
    root = drawn.facts["root_size"]
    return annotated.Annotated(
      key=key,
      image=drawn.image,
      text=caption,
      transcription="\n".join(text for text in blocks if text),
      language=code,
      regions=regions,
      style=_numbers(design, style, writer, root / height),
    )


def _size(side: int, proportion: float) -> tuple[int, int]:
  """Height and width; the longer one is `side`."""
  if proportion < 1:
    return side, max(1, round(side * proportion))
  return max(1, round(side / proportion)), side


def _look(
  design: page_designs.Design, style: page_designs.Style
) -> caption_writer.Look:
  return caption_writer.Look(
    kind=design.kind,
    family=style.head.style.kind,
    bold=style.head.bold,
    vertical=design.vertical or None,
    ink=design.head_ink or style.strong,
    paper=design.head_paper or style.paper,
  )


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
  return found
