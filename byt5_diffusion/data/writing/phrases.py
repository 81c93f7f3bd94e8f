"""Strings in all the languages that ByT5 has read, without any files.

  Phrases().draw(rng, "fa")        -> Sample("۲۵ مهٔ ۱۹۷۸", "Arab", "fa")
  language_at("train", 0, 17)      -> "pl", by mC4's shares

Words are the built-in ones (word_lists.py, phrase_lists.py) and CLDR's names
(cldr.py); strings are single words, some of them in a row, lists, sentences
with their script's punctuation, dates, times, prices and quantities.
"""

import dataclasses
import functools
import hashlib
import itertools
import unicodedata
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from byt5_diffusion.data import languages
from byt5_diffusion.data import text as texts
from byt5_diffusion.data.writing import (
  cldr,
  phrase_lists,
  romanization,
  word_lists,
  words,
)

_LATIN = (("Latn", 1.0),)
# The language that a romanised one is made of.
_SPOKEN = {code: code.partition("-")[0] for code in romanization.CODES}
# In these a capital is not the small letter's, or has another place.
_NO_CAPITALS = ("az", "el", "el-Latn", "ga", "gd", "hmn", "lt", "tr", "zu")


class Texts(Protocol):
  """Draws strings of a language.

  Attributes:
    fingerprint: of all that `draw` depends on.
    codes: mC4's codes of the languages that it has.
  """

  @property
  def fingerprint(self) -> str: ...

  @property
  def codes(self) -> tuple[str, ...]: ...

  def draw(self, rng: np.random.Generator, language: str) -> words.Sample:
    """A string; ValueError if `language` is none of `codes`."""


def scripts(language: str) -> tuple[tuple[str, float], ...]:
  """(ISO 15924 code, share) of a language's writings."""
  return phrase_lists.SCRIPTS.get(language, _LATIN)


@functools.cache
def vocabulary(language: str, script: str) -> tuple[str, ...]:
  """A language's words and names in a script, NFC, each once, in one order."""
  spoken = _SPOKEN.get(language)
  if spoken is not None:
    found = vocabulary(spoken, scripts(spoken)[0][0])
    return tuple(
      dict.fromkeys(romanization.romanize(word, language) for word in found)
    )
  key = f"{'he' if language == 'iw' else language}-{script}"
  built_in = word_lists.LANGUAGES.get(key, phrase_lists.WORDS.get(language, ""))
  plain = (word.replace("_", " ") for word in built_in.split())
  every = itertools.chain(plain, cldr.names(language, script))
  return tuple(
    dict.fromkeys(unicodedata.normalize("NFC", word) for word in every)
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phrases:
  """Built-in strings of every language of languages.TABLE.

  Attributes:
    max_words: of a phrase; it has at least two.
    max_graphemes: longer strings are not drawn.
    native_digits: share of the numbers with the script's own digits.
    capitals: share of the words and phrases that are all capitals.
  """

  max_words: int = 6
  max_graphemes: int = 60
  native_digits: float = 0.5
  capitals: float = 0.1

  def __post_init__(self) -> None:
    if self.max_words < 1 or self.max_graphemes < 12:
      raise ValueError(
        f"{self.max_words=} must be 1 or more, {self.max_graphemes=} 12."
      )

  @property
  def fingerprint(self) -> str:
    listing = repr((self, cldr.version(), phrase_lists.WORDS))
    return hashlib.sha256(listing.encode("utf-8")).hexdigest()

  @property
  def codes(self) -> tuple[str, ...]:
    return tuple(language.code for language in languages.TABLE)

  def draw(self, rng: np.random.Generator, language: str) -> words.Sample:
    """A string in one of the language's scripts, NFC, one line.

    Raises:
      ValueError: not one of mC4's codes.
    """
    if languages.row(language) < 0:
      raise ValueError(
        f"{language!r} is none of mC4's codes (data/languages.py): "
        f"{' '.join(self.codes)}."
      )
    names, shares = zip(*scripts(language), strict=True)
    script = str(names[int(np.searchsorted(np.cumsum(shares), rng.uniform()))])
    while True:
      drawn = unicodedata.normalize("NFC", self._string(rng, language, script))
      if 0 < len(texts.graphemes(drawn)) <= self.max_graphemes:
        return words.Sample(drawn, script, language)

  def _string(
    self, rng: np.random.Generator, language: str, script: str
  ) -> str:
    kind = rng.uniform()
    if kind < 0.8:
      return self._of_words(rng, language, script, kind / 0.8)
    spoken = _SPOKEN.get(language, language)
    written = scripts(spoken)[0][0] if spoken != language else script
    if kind < 0.87:
      drawn = cldr.date(spoken, written, rng)
    elif kind < 0.9:
      drawn = cldr.time(spoken, written, rng)
    elif kind < 0.95:
      drawn = cldr.price(spoken, written, rng)
    else:
      drawn = cldr.quantity(spoken, written, rng)
    if spoken != language:
      return romanization.romanize(drawn, language)
    if rng.uniform() < self.native_digits:
      drawn = cldr.native_digits(language, drawn)
    return drawn

  def _of_words(
    self, rng: np.random.Generator, language: str, script: str, kind: float
  ) -> str:
    """A word, a phrase, a list or a sentence; kind in [0, 1) says which."""
    known = vocabulary(language, script)
    space = "" if script in words.UNSPACED else " "
    count = (
      1 if kind < 0.35 else int(rng.integers(2, max(2, self.max_words) + 1))
    )
    chosen = [known[int(rng.integers(len(known)))] for _ in range(count)]
    comma, stop, question = phrase_lists.PUNCTUATION.get(
      language, (",", ".", "?")
    )
    if 0.75 <= kind < 0.9 and count < 5:
      after = " " if comma in ",،፣" else ""
      return (comma + after).join(chosen)
    drawn = space.join(_cut(chosen, self.max_graphemes))
    if kind < 0.9:
      big = rng.uniform() < self.capitals and language not in _NO_CAPITALS
      return drawn.upper() if big and script in ("Latn", "Cyrl") else drawn
    if language not in _NO_CAPITALS and script in ("Latn", "Cyrl"):
      drawn = drawn[:1].upper() + drawn[1:]
    if rng.uniform() < 0.7 or not question:
      return drawn + stop
    before, behind = phrase_lists.QUESTIONS.get(language, ("", question))
    return before + drawn + behind


def _cut(chosen: list[str], max_graphemes: int) -> list[str]:
  """As many of the words as fit, one at least."""
  kept, length = chosen[:1], len(chosen[0])
  for word in chosen[1:]:
    length += 1 + len(word)
    if length > max_graphemes - 2:
      break
    kept.append(word)
  return kept


@functools.cache
def _shares(codes: tuple[str, ...]) -> np.ndarray:
  """Cumulative shares of the languages, the last one 1."""
  percent = [languages.TABLE[languages.row(code)].percent for code in codes]
  total = np.cumsum(np.array(percent))
  return total / total[-1]


@functools.cache
def _all_codes() -> tuple[str, ...]:
  return tuple(language.code for language in languages.TABLE)


def language_at(
  split: str, seed: int, index: int, codes: tuple[str, ...] | None = None
) -> str:
  """The language of example `index`, as often as ByT5 has read it.

  Args:
    split, seed, index: which example.
    codes: the languages to choose from; None = all. Their shares are those of
      the table, made to sum to one.
  """
  key = repr(("language", split, int(seed), int(index))).encode("utf-8")
  digest = hashlib.blake2b(key, digest_size=8).digest()
  place = int.from_bytes(digest, "big") / 2**64
  codes = _all_codes() if codes is None else codes
  found = int(np.searchsorted(_shares(codes), place, side="right"))
  return codes[min(found, len(codes) - 1)]


def strings_at(
  source: Texts, split: str, seed: int, index: int, language: str
) -> Iterator[words.Sample]:
  """The string of a language's example `index`, then others for its place.

  A string belongs to the split that words.split_of says, whichever example it
  is drawn for.

  Raises:
    ValueError: unknown split, or the source has (almost) nothing for it.
  """
  rng = words.generator("phrase", split, int(seed), int(index), language)
  return words.in_split(lambda: source.draw(rng, language), split, str(source))
