"""Shaping and drawing one line of text: HarfBuzz, or Pango or Skia as peers.

A backend is a function (text, rtl, fonts) -> Line. It shapes once, at no size
in particular; the line then says where its ink is, in units of the em, and
draws itself at any scale without hinting, so that a small and a large picture
hold the same shapes. `fonts` are tried in order, for each grapheme cluster.

HarfBuzz needs nothing of the system, gives glyph ids, and is by far the
fastest; it is the default. Pango (the system's libpango and libcairo) and Skia
(the system's libGL, libEGL and libexpat) are independent opinions.
"""

import ctypes
import functools
import importlib
import threading
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import uharfbuzz as hb

from byt5_diffusion.data import text as texts
from byt5_diffusion.data.writing import bidi
from byt5_diffusion.data.writing import fonts as font_files

_REFERENCE = 256  # Pixels per em at which Pango and Skia lay out.
_PANGO_SCALE = 1024  # Pango units per pixel.
# Skia puts glyphs on whole pixels, so it draws on a grid finer by this.
_SKIA_SAMPLES = 4


class Ink(NamedTuple):
  """Box of the drawn shapes in em, y downward, origin on the baseline."""

  left: float
  top: float
  right: float
  bottom: float


class Line(Protocol):
  """A shaped line; its pen starts at x = 0 on the baseline y = 0."""

  ink: Ink | None  # None: nothing to draw (spaces).
  missing: bool  # Some character has no glyph.

  def draw(
    self, height: int, width: int, *, scale: float, x: float, y: float
  ) -> np.ndarray:
    """Coverage uint8 [height, width]; `scale` pixels per em, pen at (x, y)."""
    ...


Backend = Callable[[str, bool, tuple[font_files.Font, ...]], Line]


# -- HarfBuzz ----------------------------------------------------------------


def font_of(cluster: str, last: int, fonts: tuple[font_files.Font, ...]) -> int:
  """First font with all of the cluster; spaces and such stay with `last`."""
  order = list(range(len(fonts)))
  if not any(unicodedata.category(c)[0] in "LM" for c in cluster):
    order.insert(0, last)
  for index in order:
    if not lacking(cluster, fonts[index : index + 1]):
      return index
  return 0


def _runs(
  text: str, rtl: bool, fonts: tuple[font_files.Font, ...]
) -> Iterator[bidi.Run]:
  levels = bidi.levels(text, rtl)
  start, index, last = 0, 0, (-1, 0)
  for cluster in texts.graphemes(text):
    font = 0 if len(fonts) == 1 else font_of(cluster, last[1], fonts)
    here = levels[index], font
    if index and here != last:
      yield bidi.Run(start, index, *last)
      start = index
    last = here
    index += len(cluster)
  if index:
    yield bidi.Run(start, index, *last)


@functools.lru_cache(maxsize=512)
def _hb_font(font: font_files.Font) -> hb.Font:
  # Never changed after it is made, so threads may share it.
  return hb.Font(font_files.face(font))


class HarfBuzzLine:
  """A shaped line.

  Attributes:
    glyphs: (HarfBuzz font, glyph id, x, y) from left to right; em, y upward.
  """

  def __init__(
    self, text: str, rtl: bool, fonts: tuple[font_files.Font, ...]
  ) -> None:
    self.glyphs: list[tuple[hb.Font, int, float, float]] = []
    boxes = []
    pen = 0.0
    for run in bidi.visual_order(list(_runs(text, rtl, fonts))):
      font = _hb_font(fonts[run.font])
      em = font.face.upem
      buffer = hb.Buffer()
      # The whole text, so that letters join across a change of font.
      buffer.add_str(text, run.start, run.end - run.start)
      buffer.guess_segment_properties()
      buffer.direction = "rtl" if run.level % 2 else "ltr"
      hb.shape(font, buffer)
      for info, position in zip(
        buffer.glyph_infos, buffer.glyph_positions, strict=True
      ):
        x = pen + position.x_offset / em
        y = position.y_offset / em
        self.glyphs.append((font, info.codepoint, x, y))
        box = font.get_glyph_extents(info.codepoint)
        if box is not None and box.width and box.height:
          left, top = x + box.x_bearing / em, -y - box.y_bearing / em
          boxes.append(
            (left, top, left + box.width / em, top - box.height / em)
          )
        pen += position.x_advance / em
    self.missing = any(glyph == 0 for _, glyph, _, _ in self.glyphs)
    self.ink: Ink | None = None
    if boxes:
      left, top, right, bottom = zip(*boxes, strict=True)
      self.ink = Ink(min(left), min(top), max(right), max(bottom))

  def draw(
    self, height: int, width: int, *, scale: float, x: float, y: float
  ) -> np.ndarray:
    raster = hb.RasterDraw()
    raster.extents = hb.RasterExtents(0, 0, width, height, 0)
    for font, glyph, glyph_x, glyph_y in self.glyphs:
      unit = scale / font.face.upem
      raster.transform = (
        *(unit, 0.0, 0.0, unit),
        x + glyph_x * scale,
        height - y + glyph_y * scale,
      )
      raster.draw_glyph(font, glyph)
    image = raster.render()
    rows = np.frombuffer(image.buffer, np.uint8)
    # Rows come from the bottom up.
    return rows.reshape(height, image.extents.stride)[::-1, :width]


# -- Pango -------------------------------------------------------------------

_of_thread = threading.local()


def _per_thread(make: Callable[..., Any], *key: Any) -> Any:
  """make(*key), once per thread: these libraries' objects are not shared."""
  made = _of_thread.__dict__.setdefault("made", {})
  if (make, key) not in made:
    made[make, key] = make(*key)
  return made[make, key]


def _import(name: str, backend: str, wanted: str) -> Any:
  try:
    return importlib.import_module(name)
  except (ImportError, OSError) as error:
    raise ImportError(
      f"Backend {backend!r} needs {wanted} ({error}). Backend 'harfbuzz' "
      "needs nothing of the system."
    ) from error


def _pango_modules() -> tuple[Any, Any, Any]:
  wanted = (
    "pip's cairocffi and pangocairocffi, and Debian's libpangocairo-1.0-0"
  )
  names = ("cairocffi", "pangocffi", "pangocairocffi")
  cairo, pango, pangocairo = (_import(n, "pango", wanted) for n in names)
  return cairo, pango, pangocairo


def _pango_context(fonts: tuple[font_files.Font, ...]) -> tuple[Any, str]:
  """A context that knows these files and no others, and their family list."""
  cairo, pango, pangocairo = _pango_modules()
  fontconfig = ctypes.CDLL("libfontconfig.so.1")
  fontconfig.FcConfigCreate.restype = ctypes.c_void_p
  config = ctypes.c_void_p(fontconfig.FcConfigCreate())
  for font in fonts:
    fontconfig.FcConfigAppFontAddFile(config, font.path.encode())
  font_map = pangocairo.PangoCairoFontMap()
  pointer = int(pangocairo.ffi.cast("uintptr_t", font_map.pointer))
  ctypes.CDLL("libpangoft2-1.0.so.0").pango_fc_font_map_set_config(
    ctypes.c_void_p(pointer), config
  )
  # The binding's create_context mixes up two C types.
  context = pango.Context.from_pointer(
    pango.pango.pango_font_map_create_context(
      pango.ffi.cast("PangoFontMap *", pointer)
    ),
    gc=True,
  )
  options = cairo.FontOptions(
    hint_style=cairo.HINT_STYLE_NONE,
    hint_metrics=cairo.HINT_METRICS_OFF,
    antialias=cairo.ANTIALIAS_GRAY,
  )
  pangocairo.set_font_options(
    context, pangocairo.ffi.cast("cairo_font_options_t *", options._pointer)
  )
  pango.pango.pango_context_set_round_glyph_positions(context.pointer, False)
  name = hb.OTNameIdPredefined.FONT_FAMILY
  families = [font_files.face(font).get_name(name) for font in fonts]
  return (context, font_map, options), ",".join(families)


class PangoLine:
  """A line laid out by Pango and drawn by cairo."""

  def __init__(
    self, text: str, rtl: bool, fonts: tuple[font_files.Font, ...]
  ) -> None:
    _, pango, _ = _pango_modules()
    (context, *_), families = _per_thread(_pango_context, fonts)
    direction = 1 if rtl else 0  # PANGO_DIRECTION_RTL, PANGO_DIRECTION_LTR
    pango.pango.pango_context_set_base_dir(context.pointer, direction)
    self._layout = layout = pango.Layout(context)
    pango.pango.pango_layout_set_auto_dir(layout.pointer, False)
    description = pango.FontDescription()
    description.family = families
    # Each family has one file here; asked for its own weight, Pango has no
    # reason to embolden it.
    bold = "bold" in fonts[0].style
    description.weight = pango.Weight.BOLD if bold else pango.Weight.NORMAL
    description.set_absolute_size(_REFERENCE * _PANGO_SCALE)
    layout.font_description = description
    layout.text = text
    unit = _REFERENCE * _PANGO_SCALE
    box, _ = layout.get_extents()
    self._baseline = layout.get_baseline() / unit
    count = pango.pango.pango_layout_get_unknown_glyphs_count(layout.pointer)
    self.missing = count > 0
    self.ink: Ink | None = None
    if box.width and box.height:
      left, top = box.x / unit, box.y / unit - self._baseline
      right, bottom = left + box.width / unit, top + box.height / unit
      self.ink = Ink(left, top, right, bottom)

  def draw(
    self, height: int, width: int, *, scale: float, x: float, y: float
  ) -> np.ndarray:
    cairo, _, pangocairo = _pango_modules()
    stride = cairo.ImageSurface.format_stride_for_width(cairo.FORMAT_A8, width)
    pixels = np.zeros((height, stride), np.uint8)
    surface = cairo.ImageSurface(
      cairo.FORMAT_A8, width, height, pixels.reshape(-1).data, stride
    )
    context = cairo.Context(surface)
    context.translate(x, y - self._baseline * scale)
    context.scale(scale / _REFERENCE, scale / _REFERENCE)
    # As a path: cairo puts glyph images on whole pixels.
    pangocairo.layout_path(context, self._layout)
    context.fill()
    surface.finish()
    return pixels[:, :width]


# -- Skia --------------------------------------------------------------------


def _skia() -> Any:
  wanted = "pip's skia-python, and Debian's libgl1, libegl1 and libexpat1"
  return _import("skia", "skia", wanted)


def _skia_fonts(fonts: tuple[font_files.Font, ...]) -> tuple[Any, list[str]]:
  skia = _skia()
  provider = skia.textlayout.TypefaceFontProvider()
  names = []
  for index, font in enumerate(fonts):
    typeface = skia.Typeface.MakeFromFile(font.path, font.index)
    provider.registerTypeface(typeface, f"font{index}")
    names.append(f"font{index}")
  collection = skia.textlayout.FontCollection()
  collection.setDefaultFontManager(provider)
  return (collection, provider, skia.Unicodes.ICU.Make()), names


class SkiaLine:
  """A line laid out by Skia's paragraph module."""

  def __init__(
    self, text: str, rtl: bool, fonts: tuple[font_files.Font, ...]
  ) -> None:
    skia = _skia()
    (collection, _, icu), names = _per_thread(_skia_fonts, fonts)
    style = skia.textlayout.TextStyle()
    style.setFontFamilies(names)
    style.setFontSize(_REFERENCE)
    style.setColor(skia.ColorBLACK)
    paragraph_style = skia.textlayout.ParagraphStyle()
    paragraph_style.setTextStyle(style)
    builder = skia.textlayout.ParagraphBuilder.make(
      paragraph_style, collection, icu
    )
    builder.pushStyle(style)
    # The binding cannot set a paragraph's direction; an isolate can.
    isolate = "\N{RIGHT-TO-LEFT ISOLATE}", "\N{POP DIRECTIONAL ISOLATE}"
    builder.addText(text.join(isolate) if rtl else text)
    self._paragraph = builder.Build()
    self._paragraph.layout(1e6)
    self._baseline = self._paragraph.AlphabeticBaseline / _REFERENCE
    # Skia counts what it cannot resolve, but the binding does not tell.
    self.missing = bool(lacking(text, fonts))
    self.ink = self._find_ink()

  def _find_ink(self) -> Ink | None:
    """The box by looking, a little too large: the binding has no ink bounds."""
    scale, room = 64.0, 2.0
    height = int(scale * 2 * room)
    width = int(scale * (2 * room + self._paragraph.LongestLine / _REFERENCE))
    pixels = self._draw(height, width, scale, room * scale, room * scale)
    rows = np.flatnonzero(pixels.any(axis=1))
    columns = np.flatnonzero(pixels.any(axis=0))
    if not rows.size:
      return None
    left, right = columns[0] - 1, columns[-1] + 2
    top, bottom = rows[0] - 1, rows[-1] + 2
    return Ink(*(edge / scale - room for edge in (left, top, right, bottom)))

  def draw(
    self, height: int, width: int, *, scale: float, x: float, y: float
  ) -> np.ndarray:
    n = _SKIA_SAMPLES
    pixels = self._draw(height * n, width * n, scale * n, x * n, y * n)
    blocks = pixels.reshape(height, n, width, n)
    return np.rint(blocks.mean(axis=(1, 3))).astype(np.uint8)

  def _draw(
    self, height: int, width: int, scale: float, x: float, y: float
  ) -> np.ndarray:
    skia = _skia()
    pixels = np.zeros((height, width), np.uint8)
    info = skia.ImageInfo.MakeA8(width, height)
    surface = skia.Surface.MakeRasterDirect(info, pixels, width)
    canvas = surface.getCanvas()
    canvas.translate(x, y - self._baseline * scale)
    canvas.scale(scale / _REFERENCE, scale / _REFERENCE)
    self._paragraph.paint(canvas, 0, 0)
    return pixels


# -- All of them -------------------------------------------------------------

BACKENDS: dict[str, Backend] = {
  "harfbuzz": HarfBuzzLine,
  "pango": PangoLine,
  "skia": SkiaLine,
}


def _is_ignorable(character: str) -> bool:
  """Joiners, bidi controls and variation selectors need no glyph."""
  return (
    unicodedata.category(character) == "Cf"
    or "\ufe00" <= character <= "\ufe0f"
    or character == "\N{COMBINING GRAPHEME JOINER}"
  )


@functools.lru_cache(maxsize=65536)
def _has(character: str, font: font_files.Font) -> bool:
  covered = font_files.coverage(font)
  return ord(character) in covered or (
    # A shaper composes from the parts if the font lacks the whole.
    all(ord(c) in covered for c in unicodedata.normalize("NFD", character))
  )


def lacking(text: str, fonts: tuple[font_files.Font, ...]) -> list[str]:
  """Characters of `text` that none of `fonts` has, in order."""
  return [
    character
    for character in dict.fromkeys(text)
    if not _is_ignorable(character)
    and not any(_has(character, font) for font in fonts)
  ]
