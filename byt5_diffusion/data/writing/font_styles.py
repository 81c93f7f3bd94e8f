"""All styles that this machine has of a script's fonts, and what they are.

fonts.py says which font is best for a script; here are all its families (those
of fonts.TABLE and of MORE) in all weights, widths and slants, by their files'
names: "NotoSans-CondensedBoldItalic.ttf". A variable font (NotoSans[wght].ttf,
NotoSans-Italic-VariableFont_wdth,wght.ttf) stands for as many styles.
"""

import dataclasses
import functools
import hashlib
import itertools
import pathlib
import re

from byt5_diffusion.data.writing import fonts

_CORE = "fonts-noto-core"
# script -> further families, of the same packages.
MORE: dict[str, tuple[str, ...]] = {
  "Arab": ("NotoKufiArabic", "NotoNastaliqUrdu"),
  "Cyrl": ("NotoSansDisplay", "NotoSerifDisplay"),
  "Grek": ("NotoSansDisplay", "NotoSerifDisplay"),
  "Laoo": ("NotoLoopedLao",),
  "Latn": ("NotoSansDisplay", "NotoSerifDisplay"),
  "Thai": ("NotoLoopedThai",),
}
# CSS's numbers, by what OpenType's subfamilies are called.
WEIGHTS = {
  "thin": 100,
  "hairline": 100,
  "extralight": 200,
  "ultralight": 200,
  "demilight": 350,
  "light": 300,
  "medium": 500,
  "semibold": 600,
  "demibold": 600,
  "extrabold": 800,
  "ultrabold": 800,
  "bold": 700,
  "black": 900,
  "heavy": 900,
}
# Of a variable font's weights, those that are drawn.
_INSTANCES = {
  100: "thin", 200: "extralight", 300: "light", 400: "regular", 500: "medium",
  600: "semibold", 700: "bold", 800: "extrabold", 900: "black",
}  # fmt: skip
_SLANTED = ("italic", "oblique", "slanted")
_BOLD = 600  # From here on letters are called bold.


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Style:
  """What a file's name says of its letters.

  Attributes:
    family: the name without the style, "NotoSans".
    weight: 100 to 900; 400 is regular.
    italic: italic or oblique.
    kind: "serif", "sans-serif", "monospace", or "" for what is neither.
  """

  family: str
  weight: int
  italic: bool
  kind: str

  @property
  def bold(self) -> bool:
    return self.weight >= _BOLD


@functools.lru_cache(maxsize=1024)
def style_of(font: fonts.Font) -> Style:
  """What the font's name says."""
  family = re.split(r"[-\[]", pathlib.PurePath(font.path).stem)[0]
  name = font.style.lower()
  weight = next((w for key, w in WEIGHTS.items() if key in name), 400)
  italic = any(word in name for word in _SLANTED)
  return Style(family=family, weight=weight, italic=italic, kind=_kind(family))


def _kind(family: str) -> str:
  name = family.lower()
  if "mono" in name:
    return "monospace"
  if "sans" in name:
    return "sans-serif"
  # Naskh is to Arabic what letters with serifs are to Latin.
  if "serif" in name or re.search("naskh|amiri", name):
    return "serif"
  return ""


def family_number(family: str) -> int:
  """A number below 65536 that stands for a family's name, the same for good."""
  digest = hashlib.blake2b(family.lower().encode(), digest_size=2).digest()
  return int.from_bytes(digest, "big")


def _instances(font: fonts.Font) -> list[fonts.Font]:
  """The font; of a variable one, its weights, and as many of them condensed."""
  name = pathlib.PurePath(font.path).stem.lower()
  if "[" not in name and "variablefont" not in name:
    return [font]
  ranges = {
    axis.tag: (axis.min_value, axis.max_value)
    for axis in fonts.face(font).axis_infos
  }
  low, high = ranges.get("wght", (400.0, 400.0))
  weights = [w for w in _INSTANCES if low <= w <= high] or [400]
  narrow, _ = ranges.get("wdth", (100.0, 100.0))
  widths = {
    "": 100.0,
    **({"condensed": max(narrow, 75.0)} if narrow < 90 else {}),
  }
  slanted = "italic" if any(word in name for word in _SLANTED) else ""
  made = []
  for (called, width), weight in itertools.product(widths.items(), weights):
    axes = {"wght": float(weight), "wdth": width}
    made.append(
      dataclasses.replace(
        font,
        style=f"{called}{_INSTANCES[weight]}{slanted}",
        variations=tuple((tag, axes[tag]) for tag in axes if tag in ranges),
      )
    )
  return made


@functools.lru_cache(maxsize=256)
def _variants(script: str, folders: tuple[str, ...]) -> tuple[fonts.Font, ...]:
  files = fonts.found_files(folders)
  rows = list(fonts.TABLE[script])
  rows += [(family, 0, _CORE) for family in MORE.get(script, ())]
  found = []
  for family, index, package in rows:
    for (name, style), path in sorted(files.items()):
      if name.partition("[")[0] == family.lower():
        font = fonts.Font(
          path=path,
          index=index,
          style=style,
          package=package,
          licence=fonts.PACKAGES[package],
        )
        found += _instances(font)
  return tuple(font for font in found if fonts.covers(font, script))


def variants(script: str) -> tuple[fonts.Font, ...]:
  """Every family and style of a script, the table's order, then by style.

  Where none of the families is here: the regular font that fonts.py finds.

  Raises:
    ValueError, fonts.MissingFont: see fonts.fonts_for.
  """
  if script not in fonts.TABLE:
    fonts.fonts_for(script)  # Raises, and says what to do.
  return _variants(script, fonts.directories()) or fonts.fonts_for(script)


@functools.lru_cache(maxsize=256)
def _fallbacks(script: str, folders: tuple[str, ...]) -> tuple[fonts.Font, ...]:
  del folders  # Where the fonts below are looked for.
  found = list(fonts.fonts_for(script))
  for other in ("Latn", "Grek", "Cyrl", "Deva", "Arab", "Hans"):
    try:
      found += fonts.fonts_for(other)[:2]
    except fonts.MissingFont:
      continue
  return tuple(dict.fromkeys(found))


def fallbacks(script: str) -> tuple[fonts.Font, ...]:
  """The regular fonts that stand in for characters that a font lacks."""
  return _fallbacks(script, fonts.directories())
