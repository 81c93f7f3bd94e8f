"""Which string is example number `index`: a pure function, split by hash.

A source draws strings; `string_at` makes one of them of (split, seed, index)
alone, so that any host, at any time, can make the same example again. A string
belongs to the training or the validation split by a hash of itself, whatever
source, seed or index it came from: what is measured was never seen.
"""

import dataclasses
import functools
import hashlib
import pathlib
import unicodedata
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import regex

from byt5_diffusion.data.writing import word_lists

SPLITS = ("train", "validation")
_VALIDATION_PERCENT = 10
_MAX_DRAWS = 1000

# script -> its letters, separated by spaces.
ALPHABETS = word_lists.ALPHABETS
# Written without spaces between words.
UNSPACED = ("Hans", "Hant", "Jpan", "Khmr", "Laoo", "Mymr", "Thai")
# Between words. Others put a space there.
_SEPARATORS = dict.fromkeys(UNSPACED, "") | {
  "Tibt": "\N{TIBETAN MARK INTERSYLLABIC TSHEG}"
}

# Codes of languages' writing, not of characters.
_WRITINGS = {"Hans", "Hant", "Jpan", "Kore"}
_BY_CHARACTER = sorted(
  (set(ALPHABETS) - _WRITINGS) | {"Hang", "Hani", "Hira", "Kana"}
)
_SCRIPT = regex.compile(
  "|".join(rf"(?P<{code}>\p{{Script={code}}})" for code in _BY_CHARACTER)
)
UNKNOWN = "Zzzz"
COMMON = "Zyyy"
_COMMON = regex.compile(r"\p{Script=Common}|\p{Script=Inherited}")


class Sample(NamedTuple):
  """One string: NFC text, ISO 15924 script, language ("und" = unknown)."""

  text: str
  script: str
  language: str


class Source(Protocol):
  """Draws strings.

  `scripts` are those it may draw, `only` the same source with fewer of them.
  """

  @property
  def scripts(self) -> tuple[str, ...]: ...

  def only(self, scripts: Collection[str]) -> "Source": ...

  def draw(self, rng: np.random.Generator) -> Sample: ...


def split_of(text: str) -> str:
  """ "validation" for a tenth of all strings, by blake2b of the NFC text."""
  normal = unicodedata.normalize("NFC", text).encode("utf-8")
  digest = hashlib.blake2b(normal, digest_size=8).digest()
  percent = int.from_bytes(digest, "big") % 100
  return "validation" if percent < _VALIDATION_PERCENT else "train"


def generator(*key: object) -> np.random.Generator:
  """A random generator that is a function of `key` on any machine."""
  digest = hashlib.blake2b(repr(key).encode("utf-8"), digest_size=16).digest()
  return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))


def strings_at(
  source: Source, split: str, seed: int, index: int
) -> Iterator[Sample]:
  """The string of example `index`, then others to take in its place.

  Draws until a string falls into the split, so one for validation costs ten
  draws on average.

  Raises:
    ValueError: unknown split, or the source has (almost) nothing for it.
  """
  rng = generator("string", split, int(seed), int(index))
  return in_split(lambda: source.draw(rng), split, str(source))


def in_split(
  draw: Callable[[], Sample], split: str, source: str
) -> Iterator[Sample]:
  """Those of the strings drawn that belong to the split.

  Raises:
    ValueError: unknown split, or none of very many strings belongs to it.
  """
  if split not in SPLITS:
    raise ValueError(f"{split=} must be one of {SPLITS}.")
  misses = 0
  while misses < _MAX_DRAWS:
    sample = draw()
    if split_of(sample.text) == split:
      misses = 0
      yield sample
    else:
      misses += 1
  raise ValueError(
    f"{_MAX_DRAWS} strings drawn from {source}, none of them in split "
    f"{split!r}. The source has too few different strings: allow longer ones, "
    "more letters or more lines."
  )


def string_at(source: Source, split: str, seed: int, index: int) -> Sample:
  """Example `index` of a split: a pure function of its arguments."""
  return next(strings_at(source, split, seed, index))


def script_of(text: str) -> str:
  """ISO 15924 code of most of the text's characters.

  Punctuation, digits and marks that all scripts share don't count; "Zyyy" if
  there is nothing else, "Zzzz" if the script has no row in ALPHABETS. Kana
  makes a text Jpan, Hangul makes it Kore, and Han alone is taken for Hans.
  """
  counts: dict[str, int] = {}
  for character in text:
    script = script_of_character(character)
    counts[script] = counts.get(script, 0) + 1
  counts.pop(COMMON, None)
  if not counts:
    return COMMON
  kana = counts.pop("Hira", 0) + counts.pop("Kana", 0)
  for script, own in (("Jpan", kana), ("Kore", counts.pop("Hang", 0))):
    if own:
      counts[script] = own + counts.get("Hani", 0)
  best = max(counts, key=lambda script: counts[script])
  return "Hans" if best == "Hani" else best


@functools.lru_cache(maxsize=65536)
def script_of_character(character: str) -> str:
  """ISO 15924 code of a character's script; Hani, Hira, Kana, Hang of those."""
  if match := _SCRIPT.match(character):
    return str(match.lastgroup)
  return COMMON if _COMMON.match(character) else UNKNOWN


def _chosen(known: Collection[str], wanted: Sequence[str] | None) -> list[str]:
  """`wanted` in its order, all if None; ValueError names unknown ones."""
  unknown = set(wanted or ()) - set(known)
  if unknown:
    raise ValueError(f"Unknown {sorted(unknown)}; known are {sorted(known)}.")
  return sorted(known) if wanted is None else list(wanted)


def _pick(rng: np.random.Generator, items: Sequence[str]) -> str:
  return items[int(rng.integers(len(items)))]


@functools.cache
def _vocabulary() -> dict[str, dict[str, tuple[str, ...]]]:
  """{script: {language: its different words, in the table's order}}."""
  table: dict[str, dict[str, tuple[str, ...]]] = {}
  for tag, entries in sorted(word_lists.LANGUAGES.items()):
    language, script = tag.split("-")
    normal = unicodedata.normalize("NFC", entries)
    words = dict.fromkeys(word.replace("_", " ") for word in normal.split())
    table.setdefault(script, {})[language] = tuple(words)
  return table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Words:
  """Built-in words: a script at random, one of its languages, then words.

  Attributes:
    only_scripts: ISO 15924 codes to draw from; None = all there are.
    min_words, max_words: how many words a string has, both included.
  """

  only_scripts: Sequence[str] | None = None
  min_words: int = 1
  max_words: int = 2

  def __post_init__(self) -> None:
    _check_range("words", self.min_words, self.max_words)
    _ = self.scripts

  @functools.cached_property
  def scripts(self) -> tuple[str, ...]:
    return tuple(_chosen(_vocabulary(), self.only_scripts))

  def only(self, scripts: Collection[str]) -> "Words":
    kept = [script for script in self.scripts if script in scripts]
    return dataclasses.replace(self, only_scripts=kept)

  def draw(self, rng: np.random.Generator) -> Sample:
    script = _pick(rng, self.scripts)
    words = _vocabulary()[script]
    language = _pick(rng, list(words))
    count = int(rng.integers(self.min_words, self.max_words + 1))
    chosen = [_pick(rng, words[language]) for _ in range(count)]
    text = _SEPARATORS.get(script, " ").join(chosen)
    return Sample(unicodedata.normalize("NFC", text), script, language)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Glyphs:
  """Random letters: no language to guess from, so only spelling helps.

  Attributes:
    only_scripts: ISO 15924 codes to draw from; None = all there are.
    alphabet_size: only the first letters of each alphabet; None = all.
    min_length, max_length: grapheme clusters of a string, both included.
  """

  only_scripts: Sequence[str] | None = None
  alphabet_size: int | None = None
  min_length: int = 1
  max_length: int = 4

  def __post_init__(self) -> None:
    _check_range("length", self.min_length, self.max_length)
    if self.alphabet_size is not None and self.alphabet_size < 1:
      raise ValueError(f"{self.alphabet_size=} must be positive.")
    _ = self.scripts

  @functools.cached_property
  def scripts(self) -> tuple[str, ...]:
    return tuple(_chosen(ALPHABETS, self.only_scripts))

  def only(self, scripts: Collection[str]) -> "Glyphs":
    kept = [script for script in self.scripts if script in scripts]
    return dataclasses.replace(self, only_scripts=kept)

  def draw(self, rng: np.random.Generator) -> Sample:
    script = _pick(rng, self.scripts)
    letters = ALPHABETS[script].split()[: self.alphabet_size]
    count = int(rng.integers(self.min_length, self.max_length + 1))
    text = "".join(_pick(rng, letters) for _ in range(count))
    return Sample(unicodedata.normalize("NFC", text), script, "und")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextFile:
  """Lines of a UTF-8 file, drawn at random, every different line equally.

  White space is collapsed and empty lines are left out; a line that is not
  UTF-8 is left out and counted in `bad_lines`.

  Attributes:
    path: the file; read once, when first needed.
    only_scripts: lines of other scripts are left out; None = keep all.
  """

  path: str
  only_scripts: Sequence[str] | None = None

  @functools.cached_property
  def _read(self) -> tuple[list[Sample], int]:
    kept: dict[str, Sample] = {}
    bad = 0
    for raw in pathlib.Path(self.path).expanduser().read_bytes().splitlines():
      try:
        line = raw.decode("utf-8-sig")
      except UnicodeDecodeError:
        bad += 1
        continue
      text = unicodedata.normalize("NFC", " ".join(line.split()))
      script = script_of(text)
      wanted = self.only_scripts is None or script in self.only_scripts
      if text and wanted:
        kept[text] = Sample(text, script, "und")
    if not kept:
      raise ValueError(
        f"{self.path}: no usable line (one string per line, UTF-8; {bad} lines "
        f"are not UTF-8; scripts wanted: {self.only_scripts or 'any'})."
      )
    return list(kept.values()), bad

  @property
  def bad_lines(self) -> int:
    return self._read[1]

  @functools.cached_property
  def scripts(self) -> tuple[str, ...]:
    return tuple(sorted({sample.script for sample in self._read[0]}))

  def only(self, scripts: Collection[str]) -> "TextFile":
    kept = [script for script in self.scripts if script in scripts]
    return dataclasses.replace(self, only_scripts=kept)

  def draw(self, rng: np.random.Generator) -> Sample:
    lines = self._read[0]
    return lines[int(rng.integers(len(lines)))]


def _check_range(name: str, low: int, high: int) -> None:
  if not 1 <= low <= high:
    raise ValueError(f"min_{name}={low}, max_{name}={high}: 1 <= min <= max.")
