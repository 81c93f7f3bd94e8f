"""What stands on made-up pages: words, sentences, prices, dates.

Everything is a function of a random generator, so a page is made again from
its number.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from byt5_diffusion.data import languages
from byt5_diffusion.data.writing import (
  cldr,
  fonts,
  phrase_lists,
  phrases,
  romanization,
)

_MAX_DRAWS = 1000
# Between words that have no space: a place where a line may be broken.
BREAK = "\u200b"
BREAKABLE = frozenset(("Khmr", "Laoo", "Mymr", "Thai", "Tibt"))
_IDEOGRAPHIC = frozenset(("Hans", "Hant", "Jpan"))
_CASED = frozenset(("Latn", "Cyrl", "Grek", "Armn"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Writer:
  """Writes in one language and one script.

  Attributes:
    rng: decides what.
    texts: where strings come from.
    language: mC4's code.
    script: ISO 15924 code.
    digits: whether numbers take the script's own digits.
  """

  rng: np.random.Generator
  texts: phrases.Texts
  language: str
  script: str
  digits: bool = False

  @functools.cached_property
  def _known(self) -> tuple[str, ...]:
    if isinstance(self.texts, phrases.Phrases):
      return phrases.vocabulary(self.language, self.script)
    return ()

  @property
  def space(self) -> str:
    """What stands between two words."""
    if self.script in _IDEOGRAPHIC:
      return ""
    return BREAK if self.script in BREAKABLE else " "

  @property
  def rtl(self) -> bool:
    return self.script in languages.RIGHT_TO_LEFT

  @property
  def vertical(self) -> bool:
    """Whether the script is also written from top to bottom."""
    return self.script in _IDEOGRAPHIC

  @functools.cached_property
  def marks(self) -> tuple[str, str, str]:
    """Comma, full stop and question mark."""
    found = phrase_lists.PUNCTUATION.get(self.language, (",", ".", "?"))
    return found[0] or " ", found[1], found[2]

  def _words(self, count: int) -> list[str]:
    if self._known:
      picked = self.rng.integers(len(self._known), size=count)
      return [self._known[int(i)] for i in picked]
    found: list[str] = []
    for _ in range(_MAX_DRAWS):
      drawn = self.texts.draw(self.rng, self.language)
      if drawn.script == self.script:
        found += drawn.text.split() if self.space == " " else [drawn.text]
      if len(found) >= count:
        break
    return found[:count]

  def word(self) -> str:
    """One word, as it stands alone."""
    return self._capital(self._words(1)[0])

  def words(self, low: int, high: int) -> str:
    """Some words in a row, the first one as at a sentence's start."""
    count = int(self.rng.integers(low, high + 1))
    return self._capital(self.space.join(self._words(count)))

  def sentence(self, low: int = 4, high: int = 11) -> str:
    """Words with punctuation."""
    count = int(self.rng.integers(low, high + 1))
    drawn = self._words(count)
    comma, stop, _ = self.marks
    if count > 6 and comma.strip():
      drawn[count // 2] += comma
    text = self.space.join(drawn)
    if comma.strip() in ("、", "，"):
      text = text.replace(comma + " ", comma)
    return self._capital(text) + stop

  def paragraph(self, low: int, high: int) -> str:
    """Sentences."""
    count = int(self.rng.integers(low, high + 1))
    between = "" if self.script in _IDEOGRAPHIC else " "
    return between.join(self.sentence() for _ in range(count))

  def name(self) -> str:
    """Two words with capitals."""
    between = " " if self.space != "" else ""
    return between.join(self._capital(word) for word in self._words(2))

  def _capital(self, text: str) -> str:
    if self.script in _CASED and self.language not in ("tr", "az"):
      return text[:1].upper() + text[1:]
    return text

  # Numbers.

  def _spoken(self) -> tuple[str, str]:
    """Language and script as numbers are written: a romanised one's own."""
    if self.language in romanization.CODES:
      spoken = self.language.partition("-")[0]
      return spoken, phrases.scripts(spoken)[0][0]
    return self.language, self.script

  def _finish(self, text: str) -> str:
    if self.language in romanization.CODES:
      return romanization.romanize(text, self.language)
    return cldr.native_digits(self.language, text) if self.digits else text

  def price(self) -> str:
    return self._finish(cldr.price(*self._spoken(), self.rng))

  def date(self) -> str:
    return self._finish(cldr.date(*self._spoken(), self.rng))

  def time(self) -> str:
    return self._finish(cldr.time(*self._spoken(), self.rng))

  def number(self, low: int, high: int) -> str:
    return self._finish(str(int(self.rng.integers(low, high + 1))))

  def amount(self, cents: int) -> str:
    """A sum of money without its currency."""
    return self._finish(f"{cents // 100}.{cents % 100:02}")

  def chance(self, share: float) -> bool:
    return bool(self.rng.uniform() < share)

  def pick(self, items: Sequence[Any]) -> Any:
    return items[int(self.rng.integers(len(items)))]


def seen(text: str) -> str:
  """A text as it is read, without marks that nobody sees."""
  return text.replace(BREAK, "")


def pick_script(
  rng: np.random.Generator, language: str, texts: phrases.Texts
) -> str:
  """A script of a language that this machine has fonts for.

  Raises:
    fonts.MissingFont: none of its scripts has one.
  """
  if not isinstance(texts, phrases.Phrases):
    script = texts.draw(rng, language).script
    fonts.fonts_for(script)
    return script
  known = phrases.scripts(language)
  here = set(fonts.available_scripts([script for script, _ in known]))
  kept = [(script, share) for script, share in known if script in here]
  if not kept:
    fonts.fonts_for(known[0][0])  # Raises, and says what to install.
  shares = np.cumsum([share for _, share in kept])
  place = np.searchsorted(shares / shares[-1], rng.uniform(), side="right")
  return kept[min(int(place), len(kept) - 1)][0]
