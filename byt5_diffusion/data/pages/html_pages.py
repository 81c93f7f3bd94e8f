"""HTML and CSS -> a picture, and where each block, line and word of it is.

  layout   WeasyPrint, text shaped by Pango and HarfBuzz
  pixels   PDFium, from WeasyPrint's PDF
  boxes    the layout's own glyphs: ink of every glyph of a word, joined

So boxes hold for whatever script and direction, and are as tight as the ink.
No script runs, and nothing outside the source is read: a page that refers to
other files is refused, fonts are those of fonts.py and no others (a private
configuration of fontconfig), and small pictures may be in data: addresses.

An element with the attribute data-label (one of annotated.LABELS) is a block.
Nothing here is safe from memory and time that a page takes: see sandbox.py.
"""

import base64
import dataclasses
import functools
import hashlib
import io
import logging
import os
import pathlib
import tempfile
import urllib.parse
from collections.abc import Sequence
from typing import Any, NamedTuple
from xml.sax import saxutils

import numpy as np
from PIL import Image

from byt5_diffusion.data import (
  annotated,
  images,
)
from byt5_diffusion.data.pages import page_boxes
from byt5_diffusion.data.writing import (
  font_styles,
  fonts,
)

_WANTED = (
  "Pages of HTML need WeasyPrint and PDFium: pip install "
  "'byt5-diffusion[layouts]', and the system's libpango-1.0-0, "
  "libpangoft2-1.0-0 and libharfbuzz-subset0"
)
# A picture in a data: address.
_MAX_DATA_BYTES, _MAX_DATA_PIXELS = 2**20, 4_000_000
_MAX_REGIONS = 20_000
_MAX_DEPTH = 150  # Of elements in each other.
_ROOM = 0.5  # Pixels by which ink may leave the page.


# -- Fonts -------------------------------------------------------------------


@functools.cache
def font_files() -> tuple[str, ...]:
  """The files of the fonts that are here of all scripts (font_styles.py)."""
  found: dict[str, None] = {}
  for script in fonts.available_scripts():
    found.update(dict.fromkeys(f.path for f in font_styles.variants(script)))
  return tuple(found)


@functools.cache
def configure_fonts() -> str:
  """Folder of a fontconfig configuration that knows font_files() alone.

  It is made once per set of files, below the cache of fonts.py or, where that
  cannot be written to, in a new folder for this process.
  """
  files = font_files()
  if not files:
    raise ImportError("No fonts are here: run `python tools/fetch_fonts.py`.")
  key = hashlib.blake2b("\n".join(files).encode(), digest_size=8).hexdigest()
  try:
    folder = fonts.cache_dir().parent / "fontconfig" / key
    folder.mkdir(parents=True, exist_ok=True)
  except OSError:
    folder = pathlib.Path(tempfile.mkdtemp(prefix="byt5_diffusion_fonts_"))
  links = folder / "fonts"
  links.mkdir(exist_ok=True)
  for number, path in enumerate(files):
    link = links / f"{number}{os.path.splitext(path)[1]}"
    if not link.is_symlink():
      temporary = links / f".{os.getpid()}_{number}"
      temporary.symlink_to(path)
      temporary.replace(link)  # Another process may do the same.
  (folder / "cache").mkdir(exist_ok=True)
  written = folder / f".{os.getpid()}.conf"
  written.write_text(
    '<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd">\n'
    f"<fontconfig><dir>{saxutils.escape(str(links))}</dir>"
    f"<cachedir>{saxutils.escape(str(folder / 'cache'))}</cachedir>"
    "</fontconfig>\n",
    "utf-8",
  )
  written.replace(folder / "fonts.conf")
  return str(folder)


def prepare() -> list[str]:
  """Loads the libraries and all fonts; must come before the first picture.

  Returns:
    Folders and files that drawing will read.

  Raises:
    ImportError: a library is absent; says what to install.
  """
  folder = configure_fonts()
  os.environ["FONTCONFIG_FILE"] = os.path.join(folder, "fonts.conf")
  logging.getLogger("weasyprint").setLevel(logging.CRITICAL)
  logging.getLogger("fontTools").setLevel(logging.CRITICAL)
  _libraries()
  # What is imported late is imported now, while files can still be opened.
  source = '<p style="hyphens: auto" lang="en">x<table><tr><td>1</table>'
  draw(source.encode(), name="first page", height=64, width=64)
  return [folder, *{os.path.realpath(path) for path in font_files()}]


class _Libraries(NamedTuple):
  weasyprint: Any
  boxes: Any
  pango: Any  # With its ffi.
  pdfium: Any
  fonts: Any  # One configuration for all pages: making it costs the most.


@functools.cache
def _libraries() -> _Libraries:
  try:
    import pypdfium2
    import weasyprint
    from weasyprint.formatting_structure import boxes
    from weasyprint.text import ffi
    from weasyprint.text import fonts as weasyprint_fonts
  except (ImportError, OSError) as error:
    raise ImportError(f"{_WANTED} ({error}).") from error
  configuration = weasyprint_fonts.FontConfiguration()
  return _Libraries(weasyprint, boxes, ffi, pypdfium2, configuration)


# -- What a page may refer to ------------------------------------------------


def _no_fetcher() -> Any:
  """WeasyPrint's way to other files: none, but small pictures in data:."""
  weasyprint = _libraries().weasyprint
  base: Any = weasyprint.urls.URLFetcher

  class Fetcher(base):
    def fetch(self, url: str, headers: Any = None) -> Any:
      del headers
      try:
        raw, kind = data_address(url)
      except images.BadImage as error:
        # An Exception would be taken for a picture that is not there.
        raise weasyprint.urls.FatalURLFetchingError(error.reason) from None
      return weasyprint.urls.URLFetcherResponse(
        "data:", raw, {"Content-Type": kind}
      )

    __call__ = fetch

  return Fetcher()


def data_address(url: str) -> tuple[bytes, str]:
  """The picture in a data: address. BadImage: it is none, or too large."""
  scheme, _, rest = url.partition(":")
  if scheme.lower() != "data":
    raise images.BadImage("", f"refers to {_shown(url)}, outside of itself")
  kind, _, body = rest.partition(",")
  if len(body) > 2 * _MAX_DATA_BYTES:
    raise images.BadImage("", f"a data: address of {len(body)} bytes")
  try:
    raw = urllib.parse.unquote_to_bytes(body)
    if kind.endswith(";base64"):
      raw = base64.b64decode(raw)
    with Image.open(io.BytesIO(raw), formats=images.FORMATS) as picture:
      size, format_ = picture.size, picture.format or ""
  except Exception:  # A hostile picture may raise anything at all.
    raise images.BadImage("", "a data: address that is no picture") from None
  if size[0] * size[1] > _MAX_DATA_PIXELS:
    raise images.BadImage("", "a data: address of a huge picture")
  return raw, Image.MIME.get(format_, "image/png")


def _shown(url: str) -> str:
  """Scheme and host of an address: the rest varies, and may be long."""
  parts = urllib.parse.urlsplit(url)
  return f"{parts.scheme or 'a file'}://{parts.hostname or ''}"[:100]


# -- Drawing -----------------------------------------------------------------


def draw(
  source: bytes,
  *,
  name: str,
  height: int,
  width: int,
  fit: Sequence[float] = (),
  strict: bool = False,
) -> tuple[np.ndarray, list[Any], dict[str, Any]]:
  """Draws the first page of a document.

  Args:
    source: the HTML.
    name: for errors.
    height, width: pixels of the picture, and CSS pixels of the page.
    fit: sizes of the root element's font, CSS pixels, to be tried until the
      text fits the page; () leaves it as the document has it.
    strict: text that leaves the page, or has no glyph, is an error.

  Returns:
    uint8 [height, width, 3]; regions as (label, text, box, polygon, vertical):
    blocks first, then lines, then words (of Chinese and Japanese, characters),
    each in reading order; {"pages": number, "root_size": of `fit`, or None}.

  Raises:
    images.BadImage: refused, or strict and it does not fit.
  """
  _check_depth(source, name)
  made = _libraries()
  for size in fit or (None,):
    document = _lay_out(source, name, height, width, size)
    page = document.pages[0]
    found = page_boxes.find(page, made.boxes, made.pango)
    pieces = found.pieces
    out = [piece for piece in pieces if _leaves(piece.box, height, width)]
    fits = not out and not found.torn and not found.crowded
    fits = fits and len(document.pages) == 1
    if not fit or fits:
      break
  if strict and found.missing:
    raise images.BadImage(name, f"no glyph for {found.missing!r}")
  if strict and not fits:
    raise images.BadImage(name, "its text does not fit the page")
  if len(pieces) > _MAX_REGIONS:
    raise images.BadImage(name, f"more than {_MAX_REGIONS} words and lines")
  try:
    pdf = document.copy([page]).write_pdf(uncompressed_pdf=True)
  except made.weasyprint.urls.FatalURLFetchingError as error:
    raise images.BadImage(name, str(error)) from None
  pixels = _rasterize(made, pdf, height, width)
  pieces = [
    dataclasses.replace(piece, box=page_boxes.tightened(pixels, piece.box))
    if page_boxes.breaks_anywhere(piece.text) and not piece.polygon
    else piece
    for piece in pieces
  ]
  if strict and not page_boxes.as_laid_out(pixels, pieces):
    raise images.BadImage(name, "drawn otherwise than it was laid out")
  regions = [
    (piece.label, piece.text, box, piece.polygon, piece.vertical)
    for piece in pieces
    if (box := _clipped(piece.box, height, width))
  ]
  facts = {"pages": len(document.pages), "root_size": size}
  return pixels, regions, facts


def _check_depth(source: bytes, name: str) -> None:
  """Refuses many elements in each other before a library recurses into them.

  Tags are counted, not parsed: one that is never closed counts, too.
  """
  if source.count(b"<") < _MAX_DEPTH:
    return
  depth = deepest = 0
  for part in source.split(b"<")[1:]:
    if part[:1] == b"/":
      depth = max(0, depth - 1)
    elif part[:1].isalpha() and not part.lower().startswith(
      tuple(_CLOSE_THEMSELVES)
    ):
      depth += b"/>" not in part[:1000]
      deepest = max(deepest, depth)
  if deepest > _MAX_DEPTH:
    raise images.BadImage(name, "nested too deeply")


_CLOSE_THEMSELVES = (
  b"area base br col dd dt hr img input li link meta option p tbody td tfoot "
  b"th thead tr wbr"
).split()


def _lay_out(
  source: bytes, name: str, height: int, width: int, root: float | None
) -> Any:
  made = _libraries()
  weasyprint = made.weasyprint
  # Paper's margins are not a screen's; a document may have its own.
  sheet = f"@page {{ size: {width}px {height}px !important; margin: 0 }}"
  if root is not None:
    sheet += f"html {{ font-size: {root:.4f}px !important }}"
  fetcher = _no_fetcher()
  try:
    # What can be UTF-8 is, whatever it says or does not say.
    source.decode("utf-8-sig")
    encoding = "utf-8"
  except UnicodeDecodeError:
    encoding = None
  try:
    return weasyprint.HTML(
      file_obj=io.BytesIO(source),
      encoding=encoding,
      base_url="about:blank",
      url_fetcher=fetcher,
    ).render(
      font_config=made.fonts,
      stylesheets=[weasyprint.CSS(string=sheet, url_fetcher=fetcher)],
    )
  except weasyprint.urls.FatalURLFetchingError as error:
    raise images.BadImage(name, str(error)) from None


def _rasterize(
  made: _Libraries, pdf: bytes, height: int, width: int
) -> np.ndarray:
  """uint8 [height, width, 3] of a document of one page."""
  document = made.pdfium.PdfDocument(pdf)
  try:
    page = document[0]
    # A page is written in points, rounded; the picture's size is asked for.
    bitmap = page.render(scale=4 / 3, rev_byteorder=True)
    pixels = bitmap.to_numpy()[:height, :width, :3]
    canvas = np.full((height, width, 3), 255, np.uint8)
    canvas[: pixels.shape[0], : pixels.shape[1]] = pixels
    return canvas
  finally:
    document.close()


def _leaves(box: annotated.Box, height: int, width: int) -> bool:
  return (
    box[0] < -_ROOM
    or box[1] < -_ROOM
    or box[2] > width + _ROOM
    or box[3] > height + _ROOM
  )


def _clipped(
  box: annotated.Box, height: int, width: int
) -> annotated.Box | None:
  """What of the box is on the page, None if nothing is."""
  left, top = max(0.0, box[0]), max(0.0, box[1])
  right, bottom = min(float(width), box[2]), min(float(height), box[3])
  return (left, top, right, bottom) if right > left and bottom > top else None
