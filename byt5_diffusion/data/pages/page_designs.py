"""How made-up pages look: fonts, colours, and the HTML around them.

  Writer   (page_writer.py) words, sentences, prices and dates of one language
  Style    fonts of its script, colours that go together, measures
  DESIGNS  (page_kinds.py, page_papers.py) posters, invoices... made of both

Lengths are in rem, the size of the root's font, so that a page
whose text does not fit can be tried smaller.
"""

import colorsys
import dataclasses
import functools
import html
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import uharfbuzz as hb

from byt5_diffusion.data.pages import (
  page_boxes,
  page_writer,
)
from byt5_diffusion.data.writing import (
  font_styles,
  fonts,
)

Color = tuple[int, int, int]

# -- Looks -------------------------------------------------------------------

# Paper, ink, accent, what goes behind: hues that are seen in print.
_PALETTES = (
  "ffffff 1b1b1b c0392b f4f1ea",
  "fdf6e3 3b2f2f b5651d eee0c4",
  "f7f9fb 14213d 2563eb dbe7f5",
  "ffffff 222222 0f766e d8f0ec",
  "fffdf7 2d2a32 d1495b f3dfc1",
  "f5f5f0 26302b 4f772d dfe8cf",
  "101820 f5f5f5 f2aa4c 24303c",
  "1d1e2c f4f1de e07a5f 2f3147",
  "fef9ef 3d348b 7678ed efe6f7",
  "ffffff 000000 e63946 eeeeee",
  "fff8f0 4a1c40 a63d40 f2ddd0",
  "0b3d2e f1f7ed f4d35e 14583f",
  "faf3dd 2b2d42 ef6f6c e4dcc0",
  "e8f1f2 13293d 006494 c9dde4",
  "2b0f0f f7ede2 f28482 451d1d",
  "f0f4ef 344966 a8632d d9e2d8",
  "fcecc9 3a2618 9b2915 f0d59b",
  "ffffff 2c2c54 706fd3 ececf8",
  "003049 fdf0d5 f77f00 0c4565",
  "f6f0ff 2e1a47 8e44ad e6d7f7",
)
# Distance of baselines, in em: marks above and below want room.
_LEADING = {
  "Arab": 1.7, "Beng": 1.5, "Deva": 1.55, "Ethi": 1.5, "Gujr": 1.5,
  "Guru": 1.5, "Hans": 1.6, "Hant": 1.6, "Hebr": 1.4, "Jpan": 1.6,
  "Khmr": 1.9, "Knda": 1.6, "Kore": 1.5, "Laoo": 1.7, "Mlym": 1.6,
  "Mymr": 2.0, "Sinh": 1.55, "Taml": 1.55, "Telu": 1.7, "Thai": 1.65,
  "Tibt": 1.8,
}  # fmt: skip
DOWN_LEADING = 1.12  # Of headlines that run downwards.
_MIN_CONTRAST = 4.5  # Of WCAG 2, level AA.


def css(color: Color) -> str:
  """ "#rrggbb"."""
  return f"#{color[0]:02x}{color[1]:02x}{color[2]:02x}"


def luminance(color: Color) -> float:
  """Relative luminance of WCAG 2, 0 to 1."""
  linear = [
    c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4
    for c in color
  ]
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: Color, other: Color) -> float:
  """Contrast of WCAG 2, 1 to 21."""
  dark, light = sorted((luminance(one), luminance(other)))
  return (light + 0.05) / (dark + 0.05)


def readable_on(paper: Color, *wanted: Color) -> Color:
  """The first of `wanted` that can be read on it; black or white if none."""
  for ink in wanted:
    if contrast(ink, paper) >= _MIN_CONTRAST:
      return ink
  return max(((0, 0, 0), (255, 255, 255)), key=lambda c: contrast(c, paper))


class Family(NamedTuple):
  """A font family.

  Attributes:
    name: in CSS.
    style: what its file's name says.
    strong: its bold face, or the regular one where there is none.
  """

  name: str
  style: font_styles.Style
  strong: fonts.Font

  @property
  def bold(self) -> bool:
    return self.strong.style == "bold"


@functools.lru_cache(maxsize=512)
def family_of(font: fonts.Font) -> str:
  """The family's name as CSS knows it: the typographic one, if there is."""
  face, names = fonts.face(font), hb.OTNameIdPredefined
  return str(
    face.get_name(names.TYPOGRAPHIC_FAMILY) or face.get_name(names.FONT_FAMILY)
  )


@functools.lru_cache(maxsize=64)
def families(script: str) -> tuple[Family, ...]:
  """Those of a script that have a regular face.

  Raises:
    fonts.MissingFont: there is none.
  """
  every = font_styles.variants(script)
  bold = {family_of(font): font for font in every if font.style == "bold"}
  found = {
    (name := family_of(font)): Family(
      name, font_styles.style_of(font), bold.get(name, font)
    )
    for font in every
    if font.style == "regular"
  }
  return tuple(found.values())


@functools.lru_cache(maxsize=4096)
def _advance(text: str, font: fonts.Font) -> float:
  """How many em a text is wide; what the font lacks counts as one em."""
  shaper = hb.Font(fonts.face(font))
  buffer = hb.Buffer()
  buffer.add_str(page_writer.seen(text))
  buffer.guess_segment_properties()
  hb.shape(shaper, buffer)
  width = sum(position.x_advance for position in buffer.glyph_positions)
  lost = sum(info.codepoint == 0 for info in buffer.glyph_infos)
  return width / shaper.face.upem + lost


@dataclasses.dataclass(frozen=True, kw_only=True)
class Style:
  """Looks of a page.

  Attributes:
    paper, ink, accent, soft: colours; `soft` lies behind text as paper does.
    on_accent: ink that can be read on the accent.
    strong: the accent if it can be read on the paper, else the ink.
    body, head: of running text and of headlines.
    tracking: between letters of headlines, in em.
    leading: from baseline to baseline, in em.
    radius: of corners, in rem.
    justified: whether paragraphs are.
  """

  paper: Color
  ink: Color
  accent: Color
  soft: Color
  body: Family
  head: Family
  tracking: float
  leading: float
  radius: float
  justified: bool

  @property
  def on_accent(self) -> Color:
    return readable_on(self.accent, self.paper, self.ink)

  @property
  def strong(self) -> Color:
    return readable_on(self.paper, self.accent, self.ink)

  def size_for(
    self, text: str, room: float, most: float, lines: int = 2
  ) -> float:
    """Size in rem at which a headline fits `room` rem in so many lines."""
    extra = 1.03 + 2 * self.tracking
    font = self.head.strong
    whole = _advance(text, font) * extra
    # Lines are not filled to their ends.
    needed = whole if lines == 1 else whole * 1.2 / lines
    for word in text.replace(page_writer.BREAK, " ").split():
      if not page_boxes.breaks_anywhere(word):
        needed = max(needed, _advance(word, font) * extra)
    most *= min(1.0, 1.35 / head_leading(self))
    return round(min(most, room / max(needed, 0.5)), 3)


def style(rng: np.random.Generator, script: str) -> Style:
  """One of many looks for a script."""
  row = _PALETTES[int(rng.integers(len(_PALETTES)))].split()
  colors = [bytes.fromhex(part) for part in row]
  turn = float(rng.normal(0, 0.04))
  paper, ink, accent, soft = (_turned(tuple(c), turn) for c in colors)
  known = families(script)
  # A page of Nastaliq takes seconds to lay out: it is for headlines.
  plain = [family for family in known if "Nastaliq" not in family.name] or known
  body = plain[int(rng.integers(len(plain)))]
  head = known[int(rng.integers(len(known)))] if rng.uniform() < 0.5 else body
  # Letters that join, or carry marks, are not pulled apart.
  loose = script in ("Latn", "Cyrl", "Grek", "Armn", "Hans", "Hant", "Jpan")
  leading = _LEADING.get(script, float(rng.uniform(1.3, 1.55)))
  if "Nastaliq" in head.name:  # Its lines run aslant.
    leading = 2.6
  return Style(
    paper=paper,
    ink=readable_on(paper, ink),
    accent=accent,
    soft=soft if contrast(ink, soft) >= _MIN_CONTRAST else paper,
    body=body,
    head=head,
    tracking=float(rng.choice([0, 0, 0.03, 0.08])) if loose else 0.0,
    leading=leading,
    radius=float(rng.choice([0.0, 0.3, 0.8])),
    justified=bool(rng.uniform() < 0.5),
  )


def _turned(color: Sequence[int], turn: float) -> Color:
  """The same colour with another hue."""
  hue, light, full = colorsys.rgb_to_hls(*(c / 255 for c in color))
  red, green, blue = colorsys.hls_to_rgb((hue + turn) % 1, light, full)
  return (round(255 * red), round(255 * green), round(255 * blue))


# -- HTML --------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Design:
  """A page before it is drawn.

  Attributes:
    kind: what it is, for captions: one of caption_words.KINDS, or "".
    body: HTML inside of <body>.
    css: of it.
    quoted: the strings that a caption quotes, in reading order.
    proportion: width / height.
    root: size of the root's font, in shares of the page's shorter side.
    head_size: rem of the headline.
    head_ink, head_paper: its colours; None: the accent's and the page's.
    vertical: whether the headline runs from top to bottom.
    headed: how many of `quoted`, from the first on, look as the headline does.
    numbers: of annotated.STYLE, where the headline is not as Style has it.
  """

  kind: str
  body: str
  css: str
  quoted: tuple[str, ...]
  proportion: float = 0.75
  root: float = 1 / 36
  head_size: float = 2.0
  head_ink: Color | None = None
  head_paper: Color | None = None
  vertical: bool = False
  headed: int = 1
  numbers: Mapping[str, float] = dataclasses.field(default_factory=dict)


def block(label: str, text: str, kind: str = "", tag: str = "div") -> str:
  """An element that is a region of the page."""
  return (
    f'<{tag} class="{kind}" {page_boxes.LABEL}="{label}">'
    f"{html.escape(text)}</{tag}>\n"
  )


def head_leading(style: Style) -> float:
  """From baseline to baseline of headlines, in em."""
  return max(1.15, style.leading * 0.85)


def document(design: Design, style: Style, writer: page_writer.Writer) -> str:
  """The whole page."""
  direction = "rtl" if writer.rtl else "ltr"
  own = "he" if writer.language == "iw" else writer.language
  tag = {"Hans": "zh-Hans", "Hant": "zh-Hant"}.get(writer.script, own)
  justify = "justify" if style.justified and writer.space == " " else "start"
  fallback = '"Noto Sans", "DejaVu Sans"'
  return (
    f'<!DOCTYPE html><html lang="{tag}" dir="{direction}">'
    '<meta charset="utf-8">'
    f"<style>@page{{margin:0;background:{css(style.paper)}}}"
    "html,body{margin:0;height:100%}"
    f"html{{background:{css(style.paper)}}}"
    f'body{{font-family:"{style.body.name}",{fallback};color:{css(style.ink)};'
    f"line-height:{style.leading};overflow-wrap:anywhere}}"
    "h1,h2,h3,p,ul,ol,table{margin:0;padding:0}"
    f'h1,h2,h3,.head{{font-family:"{style.head.name}",{fallback};'
    f"font-weight:{'bold' if style.head.bold else 'normal'};"
    f"line-height:{head_leading(style):.3f}}}"
    f"h1{{letter-spacing:{style.tracking}em}}"
    f".down b{{display:block;font-weight:inherit;line-height:{DOWN_LEADING};"
    "text-align:center;width:1.1em;margin:0 auto;"
    "font-feature-settings:'vert'}"
    f".p{{text-align:{justify}}}.num{{white-space:nowrap}}"
    f"{design.css}</style><body>{design.body}</body></html>"
  )
