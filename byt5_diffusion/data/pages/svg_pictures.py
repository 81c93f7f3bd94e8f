"""SVG -> a picture, by resvg; what is not safe to draw is refused first.

A file is walked through once by an XML parser that expands nothing: entities,
DTDs, XInclude, scripts, styles with @import and references to anything outside
of the file end it, as do too many or too deep elements. Fonts are those of
fonts.py. Memory and time are bounded by sandbox.py.
"""

import functools
import io
import re
from typing import Any
from xml.parsers import expat

import numpy as np
from PIL import Image

from byt5_diffusion.data import images
from byt5_diffusion.data.pages import (
  html_pages,
  page_designs,
)
from byt5_diffusion.data.writing import (
  font_styles,
  fonts,
  words,
)

_MAX_ELEMENTS, _MAX_DEPTH, _MAX_SHOWN = 50_000, 100, 4000
_REFUSED = {"script", "foreignobject", "include", "iframe", "handler", "audio"}
_REFUSED |= {"video", "embed", "object", "set", "animate", "animatetransform"}
_URL = re.compile(r"url\(\s*['\"]?\s*([^)'\"\s]*)", re.IGNORECASE)
# Filters and patterns are drawn at sizes that the file says.
_PLAIN = "Noto Sans"
_SIZES = ("width", "height", "viewbox", "stddeviation", "scale")
_MAX_NUMBER = 1e7
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?", re.IGNORECASE)


class _Check:
  """Looks at every element; `refused` is why a file is not drawn."""

  def __init__(self, name: str) -> None:
    self._name = name
    self._depth = self._count = self._uses = 0
    self.text: list[str] = []
    self._inside = 0

  def run(self, source: bytes) -> None:
    parser = expat.ParserCreate()
    parser.SetParamEntityParsing(expat.XML_PARAM_ENTITY_PARSING_NEVER)
    parser.StartDoctypeDeclHandler = self._doctype
    parser.EntityDeclHandler = self._doctype
    parser.StartElementHandler = self._start
    parser.EndElementHandler = self._end
    parser.CharacterDataHandler = self._characters
    parser.ProcessingInstructionHandler = self._instruction
    try:
      parser.Parse(source, True)
    except expat.ExpatError as error:
      words_ = expat.errors.messages.get(error.code, "unknown")
      self._refuse(f"no XML: {words_}")

  def _refuse(self, reason: str) -> None:
    raise images.BadImage(self._name, reason)

  def _doctype(self, *unused: Any) -> None:
    # A plain "<!DOCTYPE svg PUBLIC ...>" of old editors would be harmless, but
    # what it names lies elsewhere.
    self._refuse("has a DTD or entities")

  def _instruction(self, target: str, data: str) -> None:
    del data
    if target.lower() == "xml-stylesheet":
      self._refuse("has a style sheet outside of itself")

  def _start(self, tag: str, attributes: dict[str, str]) -> None:
    local = tag.rpartition(":")[2].lower()
    self._count += 1
    self._depth += 1
    if self._count == 1 and local != "svg":
      self._refuse("no SVG")
    if self._count > _MAX_ELEMENTS or self._depth > _MAX_DEPTH:
      self._refuse("too many elements, or nested too deeply")
    if local in _REFUSED:
      self._refuse(f"has <{local}>, which is never drawn")
    self._uses += local == "use"
    if self._uses > 1000:
      self._refuse("more than 1000 <use>")
    self._inside += local in ("text", "style")
    for key, value in attributes.items():
      self._attribute(key.lower(), value, local)

  def _attribute(self, key: str, value: str, tag: str) -> None:
    if key.startswith("on") and key.isalpha():
      self._refuse("has scripts")
    if key.rpartition(":")[2] == "href":
      if value.strip().startswith("#") or tag == "a":
        return
      self._refer(value, picture=tag in ("image", "feimage"))
    numbers = _NUMBER.findall(value) if key in _SIZES else ()
    if any(abs(float(n)) > _MAX_NUMBER for n in numbers):
      self._refuse("sizes beyond all bounds")
    self._style(value)

  def _style(self, text: str) -> None:
    if "@import" in text.lower():
      self._refuse("has @import")
    for url in _URL.findall(text):
      if not url.startswith("#"):
        self._refer(url, picture=True)

  def _refer(self, url: str, *, picture: bool) -> None:
    try:
      html_pages.data_address(url)
    except images.BadImage as error:
      self._refuse(error.reason)
    if not picture:
      self._refuse("refers to a data: address")

  def _end(self, tag: str) -> None:
    self._depth -= 1
    self._inside -= tag.rpartition(":")[2].lower() in ("text", "style")

  def _characters(self, data: str) -> None:
    if self._inside:
      self._style(data)
      self.text.append(data)


def texts(source: bytes, name: str) -> str:
  """What a file says, in its order. BadImage: it is not safe to draw."""
  check = _Check(name)
  check.run(source)
  return " ".join("".join(check.text).split())


def prepare() -> list[str]:
  """Loads resvg. Returns the files that drawing reads.

  Raises:
    ImportError: it is absent; says what to install.
  """
  _resvg()
  return []  # html_pages.prepare names the fonts.


@functools.cache
def _resvg() -> Any:
  try:
    import resvg_py
  except ImportError as error:
    raise ImportError(
      "Pictures of SVG need resvg: pip install 'byt5-diffusion[layouts]'."
    ) from error
  return resvg_py


@functools.lru_cache(maxsize=256)
def _files_for(scripts: frozenset[str], strange: bool) -> tuple[str, ...]:
  """Fonts of the scripts: resvg reads each file for each picture."""
  if strange:
    return html_pages.font_files()
  found: dict[str, None] = {}
  for script in sorted(scripts | {"Latn"}):
    try:
      listed = font_styles.variants(script)
    except (fonts.MissingFont, ValueError):
      continue
    found.update((font.path, None) for font in listed)
  return tuple(found)


def draw(
  source: bytes, *, name: str, height: int, width: int
) -> tuple[np.ndarray, list[Any], dict[str, Any]]:
  """Draws a file over white, as large as fits the size, in its middle.

  Args:
    source: the SVG, UTF-8 or what its XML declaration says.
    name: for errors.
    height, width: pixels of the picture.

  Returns:
    uint8 [height, width, 3]; no regions; {"text": what the file says}.

  Raises:
    images.BadImage: refused, or resvg cannot draw it.
  """
  said = texts(source, name)
  try:
    decoded = source.decode("utf-8-sig")
  except UnicodeDecodeError:
    raise images.BadImage(name, "not UTF-8") from None
  families = re.findall(r"font-family\s*[=:]\s*[\"']?([^\"';>]+)", decoded)
  scripts = {words.script_of(character) for character in said}
  known = scripts <= set(fonts.TABLE) | {words.COMMON}
  files = (
    named_files(tuple(sorted(set(families))))
    or _files_for(frozenset(scripts), not known)
    if said
    else ()
  )
  try:
    png = _resvg().svg_to_bytes(
      svg_string=decoded,
      background="white",
      skip_system_fonts=True,
      # What names no family, or one that is not here.
      font_family=_PLAIN,
      serif_family=_PLAIN,
      sans_serif_family=_PLAIN,
      monospace_family=_PLAIN,
      width=width,
      height=height,
      font_files=list(files),
    )
  except (ValueError, RuntimeError) as error:
    raise images.BadImage(name, f"broken: {str(error)[:80]}") from None
  with Image.open(io.BytesIO(bytes(png)), formats=("PNG",)) as picture:
    drawn = picture.convert("RGB")
  canvas = Image.new("RGB", (width, height), "white")
  canvas.paste(
    drawn, ((width - drawn.width) // 2, (height - drawn.height) // 2)
  )
  return np.array(canvas), [], {"text": said[:_MAX_SHOWN]}


@functools.lru_cache(maxsize=1024)
def named_files(families: tuple[str, ...]) -> tuple[str, ...]:
  """The files of these families; () if one of them is not ours."""
  every = _families()
  found: dict[str, None] = {}
  for family in families:
    for name in family.split(","):
      files = every.get(name.strip(" '\""))
      if files is None:
        return ()
      found.update(dict.fromkeys(files))
  return tuple(found)


@functools.cache
def _families() -> dict[str, tuple[str, ...]]:
  """{family for CSS: its files} of all fonts that are here."""
  found: dict[str, dict[str, None]] = {}
  for script in fonts.available_scripts():
    for font in font_styles.variants(script):
      name = page_designs.family_of(font)
      found.setdefault(name, {})[font.path] = None
  return {name: tuple(files) for name, files in found.items()}
