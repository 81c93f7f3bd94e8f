"""Captions that describe drawn text and quote it exactly.

  write(["OPEN"], Look(bold=True, ink=(200, 30, 30)), rng)
    -> A sign that says “OPEN”, bold letters, red on white.

Whatever is said is true of the picture, and quotes.strings of a caption are the
drawn strings, in order: a caption for which this fails is not given. Captions
are in the strings' own language where LANGUAGES has it, else in English.
What describes stands in labels ("Farbe: Rot auf Weiß"), so that no language
needs to inflect a word.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from byt5_diffusion import quotes
from byt5_diffusion.data.writing import caption_words

Color = tuple[int, int, int]
LANGUAGES = tuple(caption_words.LANGUAGES)
# Quotation marks, the most usual first; the first that work are taken.
_MARKS = ("“”", "«»", "「」", "『』", "„“", "‹›", '""', "《》", "〈〉", "〝〟")
# A colour is named if it is that near to the table's, in CIELAB units, and the
# next one in the table is farther by so much.
_NEAR, _CLEAR = 30.0, 8.0
# And what has a hue is neither of these: the chroma that they may have.
_GRAYS = ("black", "white", "gray")
_MOST_CHROMA = 12.0


class CannotQuote(ValueError):
  """Strings that no quotation marks can hold."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Look:
  """What is known of drawn text; what is None or "" is not spoken of.

  Attributes:
    kind: what it stands on, one of caption_words.KINDS ("sign", "page"...).
    family: "serif", "sans-serif", "monospace" or "handwriting".
    bold, italic, vertical: of all of the letters.
    alignment: "left", "center" or "right".
    ink, paper: colours of letters and background, red, green, blue to 255.
  """

  kind: str = ""
  family: str = ""
  bold: bool | None = None
  italic: bool | None = None
  vertical: bool | None = None
  alignment: str = ""
  ink: Color | None = None
  paper: Color | None = None


def plain(strings: Sequence[str]) -> str:
  """The text alone: a string a line."""
  return "\n".join(strings)


def write(
  strings: Sequence[str],
  look: Look,
  rng: np.random.Generator,
  language: str = "en",
) -> str:
  """A caption that quotes `strings`, one of many that say the same.

  Args:
    strings: what is drawn, line by line.
    look: what is true of it; the caption tells some of it.
    rng: decides what is told and how; the same one gives the same caption.
    language: mC4's code of the strings.

  Raises:
    CannotQuote: a string begins or ends with a space, is empty, or has all
      marks in it.
  """
  known = caption_words.LANGUAGES.get(language)
  if known is None or rng.uniform() < 0.2:
    known = caption_words.LANGUAGES["en"]
  template = _pick(rng, known.openings)
  kind = known.kinds.get(look.kind, known.kinds[""])
  told = _details(look, known)
  share = rng.uniform()
  told = [phrase for phrase in told if rng.uniform() < share]
  order = rng.permutation(len(told))
  details = known.comma.join(told[i] for i in order)
  if known.told.startswith("{caption}."):
    details = details[:1].upper() + details[1:]
  for marks in dict.fromkeys((known.marks, *_MARKS)):
    quoted = [f"{marks[:1]}{string}{marks[1:]}" for string in strings]
    caption = template.format(kind=kind, strings=_listed(quoted, known))
    if details:
      caption = known.told.format(caption=caption, details=details)
    if quotes.strings(caption) == list(strings):
      return caption
  return _bare(strings)


def _bare(strings: Sequence[str]) -> str:
  """The quoted strings alone, each in marks that can hold it."""
  caption = ""
  for i, string in enumerate(strings):
    for marks in _MARKS:
      longer = f"{caption} {marks[:1]}{string}{marks[1:]}".strip()
      if quotes.strings(longer) == list(strings[: i + 1]):
        caption = longer
        break
    else:
      raise CannotQuote(f"{string!r} cannot be put into quotation marks.")
  return caption


def _pick(rng: np.random.Generator, items: Sequence[str]) -> str:
  return items[int(rng.integers(len(items)))]


def _listed(quoted: Sequence[str], known: caption_words.Language) -> str:
  """A, B and C."""
  if len(quoted) == 1:
    return quoted[0]
  return known.comma.join(quoted[:-1]) + known.both + quoted[-1]


def _details(look: Look, known: caption_words.Language) -> list[str]:
  """Each thing that is known, in words."""
  told = []
  letters = [known.words[look.family]] if look.family in known.words else []
  letters += [known.words["bold"]] if look.bold else []
  letters += [known.words["italic"]] if look.italic else []
  if letters:
    told.append(known.font.format(known.comma.join(letters)))
  if look.vertical is not None and (look.vertical or known.tells_horizontal):
    told.append(known.words["vertical" if look.vertical else "horizontal"])
  if look.alignment in known.words:
    told.append(known.words[look.alignment])
  ink = color_name(look.ink) if look.ink else ""
  paper = color_name(look.paper) if look.paper else ""
  if ink and paper:
    colors = known.colors
    told.append(known.ink_on_paper.format(ink=colors[ink], paper=colors[paper]))
  return told


# --- Colours ----------------------------------------------------------------


def color_name(color: Color) -> str:
  """A key of caption_words.COLORS; "" if the colour has no plain name."""
  names, places = _anchors()
  lab = _lab(np.array([color]))
  distances = np.linalg.norm(places - lab, axis=1)
  nearest, second = np.argsort(distances)[:2]
  if distances[nearest] > _NEAR:
    return ""
  if distances[second] - distances[nearest] < _CLEAR:
    return ""
  if names[nearest] in _GRAYS and np.hypot(*lab[0, 1:]) > _MOST_CHROMA:
    return ""
  return names[nearest]


@functools.cache
def _anchors() -> tuple[tuple[str, ...], np.ndarray]:
  colors = caption_words.COLORS
  return tuple(colors), _lab(np.array(list(colors.values())))


def _lab(colors: np.ndarray) -> np.ndarray:
  """sRGB [N, 3] to 255 -> CIELAB under D65 (IEC 61966-2-1, CIE 15)."""
  share = colors / 255.0
  linear = np.where(
    share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4
  )
  matrix = np.array(
    [
      [0.4124, 0.3576, 0.1805],
      [0.2126, 0.7152, 0.0722],
      [0.0193, 0.1192, 0.9505],
    ]
  )
  xyz = linear @ matrix.T / np.array([0.95047, 1.0, 1.08883])
  cube = np.where(
    xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29
  )
  x, y, z = cube.T
  return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)
