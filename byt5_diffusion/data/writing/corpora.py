"""Phrases out of a user's texts: plain text and mC4's JSON lines, gzip or not.

  Corpus("/data/mc4/c4-{de,th}.*.json.gz").draw(rng, "th")

A file is read once, as a stream and in bounded memory: of every language the
phrases whose hashes are the smallest are kept, so that what is kept depends
neither on the files' order nor on where a phrase stands. A file's language is
in its name (c4-th-validation.00000.json.gz, th.txt, wiki.th.jsonl), or said by
an option, or found by languages.identify for every text.

Phrases end where sentences, clauses or words do; in scripts without spaces, at
punctuation, or between grapheme clusters.
"""

import dataclasses
import functools
import gzip
import hashlib
import heapq
import json
import math
import re
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from typing import IO, cast

import numpy as np
import regex
import tqdm

from byt5_diffusion.data import languages
from byt5_diffusion.data import text as texts
from byt5_diffusion.data.rows import files
from byt5_diffusion.data.writing import (
  cldr,
  phrases,
  typesetting,
  words,
)

_MAX_LINE = 1 << 20  # Bytes; what is behind them on a line is not read.
_LEAST = 10  # Phrases of a language, to be worth its name.
# Ends of sentences and clauses, of all scripts.
_ENDS = regex.compile(r"(?<=[.!?…。！？।॥။።՝։؟۔៕།\n])\s*|(?<=[；;:：])\s+")
_CLAUSES = regex.compile(r"(?<=[、，၊។\s])")
_UNUSABLE = regex.compile(r"[\p{Cc}\p{Co}\p{Cn}\p{Cs}\ufffd\u2028\u2029]")
_HAS_LETTER = regex.compile(r"[\p{L}\p{N}]")
_CODE = re.compile(r"[a-z]{2,3}(?:-latn)?")
_SUFFIXES = re.compile(r"(?i)\.(?:txt|text|jsonl?|ndjson|gz)\b")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cutter:
  """Cuts texts into phrases.

  Attributes:
    max_words: of a phrase, in scripts with spaces.
    max_graphemes: of any phrase.
  """

  max_words: int = 8
  max_graphemes: int = 48

  def phrases(self, text: str, script: str) -> Iterator[str]:
    """NFC phrases of a text, in order; most of the text is in one."""
    for raw in _ENDS.split(text):
      sentence = cldr.plain(unicodedata.normalize("NFC", raw))
      if not sentence or _UNUSABLE.search(sentence):
        continue
      if script in words.UNSPACED:
        found = self._unspaced(sentence)
      else:
        found = self._spaced(sentence)
      for phrase in found:
        if _HAS_LETTER.search(phrase):
          yield phrase

  def _spaced(self, sentence: str) -> Iterator[str]:
    """Words, from one to max_words; how many says the first of them."""
    waiting = sentence.split(" ")
    while waiting:
      wanted = 1 + zlib.crc32(" ".join(waiting[:2]).encode()) % self.max_words
      taken = waiting[:wanted]
      waiting = waiting[wanted:]
      while taken and self._length(" ".join(taken)) > self.max_graphemes:
        waiting.insert(0, taken.pop())
      if taken:
        yield " ".join(taken)
      elif waiting:  # One word that is too long.
        waiting.pop(0)

  def _unspaced(self, sentence: str) -> Iterator[str]:
    """Clauses; longer ones in parts of the same length."""
    for clause in _CLAUSES.split(sentence):
      units = typesetting.unbroken(clause.strip())
      length = self._length(clause)
      wanted = math.ceil(length / self.max_graphemes)
      start = 0
      for number in range(1, wanted + 1):
        end = round(len(units) * number / wanted)
        taken = "".join(units[start:end]).strip()
        start = end
        if taken and self._length(taken) <= self.max_graphemes:
          yield taken

  def _length(self, text: str) -> int:
    # Clusters are no more than characters, which are counted sooner.
    if len(text) <= self.max_graphemes:
      return len(text)
    return len(texts.graphemes(text))


class _Kept:
  """The phrases with the smallest hashes, at most so many."""

  def __init__(self, limit: int) -> None:
    self._limit = limit
    self._heap: list[tuple[int, str, str]] = []
    self._known: set[int] = set()

  def add(self, phrase: str, code: str) -> None:
    """Keeps a phrase of a language, if it is one of those."""
    digest = hashlib.blake2b(
      phrase.encode("utf-8"), digest_size=8, person=b"corpus"
    ).digest()
    number = -int.from_bytes(digest, "big")
    full = len(self._heap) >= self._limit
    if number in self._known or (full and number <= self._heap[0][0]):
      return
    script = _script(phrase, code)
    if not script:
      return
    self._known.add(number)
    heapq.heappush(self._heap, (number, phrase, script))
    if full:
      self._known.discard(heapq.heappop(self._heap)[0])

  def sorted(self) -> tuple[tuple[str, str], ...]:
    """(phrase, script), the smallest hash first."""
    ordered = sorted(self._heap, reverse=True)
    return tuple((phrase, script) for _, phrase, script in ordered)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus:
  """Phrases of files; implements phrases.Texts.

  Attributes:
    path: a file, a folder, a glob or braces (data/rows/files.py).
    language: mC4's code of all of it; "" = by the files' names, or by what
      languages.identify says of each text.
    cutter: makes phrases of texts.
    phrases_per_language: at most so many are kept.
    max_megabytes: of unpacked text that are read of all files together.
  """

  path: str
  language: str = ""
  cutter: Cutter = Cutter()
  phrases_per_language: int = 10_000
  max_megabytes: float = 256.0

  def __post_init__(self) -> None:
    if self.language and languages.row(self.language) < 0:
      raise ValueError(
        f"{self.path}: language={self.language!r} is none of mC4's codes "
        "(data/languages.py)."
      )
    _ = self._kept

  @functools.cached_property
  def _files(self) -> list[files.File]:
    return files.find(self.path)

  @functools.cached_property
  def fingerprint(self) -> str:
    """Of the files' ends and sizes, and of how they are cut."""
    parts = [file.ends() for file in self._files]
    options = (self.language, self.cutter, self.phrases_per_language)
    listing = repr((sorted(parts), options, self.max_megabytes))
    return hashlib.sha256(listing.encode("utf-8")).hexdigest()

  @functools.cached_property
  def _kept(self) -> dict[str, tuple[tuple[str, str], ...]]:
    kept: dict[str, _Kept] = {}
    budget = int(self.max_megabytes * 2**20 / max(1, len(self._files)))
    for file in tqdm.tqdm(self._files, desc=self.path, disable=None):
      named = self.language or language_of_name(file.name or file.path)
      for text in read_texts(file, budget):
        code = named or languages.identify(text)[0]
        if languages.row(code) < 0:
          continue
        pool = kept.setdefault(code, _Kept(self.phrases_per_language))
        for phrase in self.cutter.phrases(text, _usual(code)):
          pool.add(phrase, code)
    found = {code: pool.sorted() for code, pool in sorted(kept.items())}
    found = {code: pool for code, pool in found.items() if _enough(pool)}
    if not found:
      raise ValueError(
        f"{self.path}: no language has {_LEAST} phrases. Plain text (UTF-8) or "
        'JSON lines with "text" are read, .gz too; if the files\' names do not '
        "say their language (c4-de.json.gz, de.txt), +language=de does."
      )
    return found

  @property
  def codes(self) -> tuple[str, ...]:
    return tuple(self._kept)

  def draw(self, rng: np.random.Generator, language: str) -> words.Sample:
    """One of the language's phrases, each as often."""
    pool = self._kept.get(language)
    if pool is None:
      raise ValueError(
        f"{self.path} has no text in {language!r}; it has "
        f"{' '.join(self.codes)}."
      )
    phrase, script = pool[int(rng.integers(len(pool)))]
    return words.Sample(phrase, script, language)


def _enough(pool: Sequence[tuple[str, str]]) -> bool:
  """Whether there are some phrases, and some of either split."""
  splits = {words.split_of(phrase) for phrase, _ in pool}
  return len(pool) >= _LEAST and len(splits) == len(words.SPLITS)


def _usual(code: str) -> str:
  return phrases.scripts(code)[0][0]


def _script(phrase: str, code: str) -> str:
  """The phrase's script, "" if its language is not written in it."""
  known = [script for script, _ in phrases.scripts(code)]
  written = words.script_of(phrase)
  if written == words.COMMON:
    return known[0]
  if written == "Hans" and known[0] in ("Jpan", "Kore"):  # Han alone.
    return known[0]
  return written if written in known else ""


def language_of_name(name: str) -> str:
  """mC4's code in a file's name, "" if there is none.

  "c4-th-validation.00000.json.gz", "multilingual/c4-zh.tfrecord-00000.json.gz",
  "th.txt", "wiki.th.jsonl".
  """
  base = name.lower().replace("\\", "/").rpartition("/")[2]
  if found := re.match(r"(?:m?c4)[-_]([a-z]{2,3}(?:-latn)?)(?=[-_.])", base):
    return languages.code(found[1]) if languages.code(found[1]) != "und" else ""
  parts = _SUFFIXES.sub("", base).split(".")
  for part in reversed(parts):
    if _CODE.fullmatch(part):
      code = languages.code(part)
      if code != "und":
        return code
  return ""


def read_texts(file: files.File, max_bytes: int) -> Iterator[str]:
  """A file's texts, a line or a JSON line's "text" each, as a stream.

  Args:
    file: plain text or JSON lines, gzip or not, told by their beginning.
    max_bytes: of what is unpacked; the rest is not read.

  Raises:
    ValueError: a damaged gzip stream, or a file of neither kind.
  """
  with file.open() as raw:
    packed = raw.read(2) == b"\x1f\x8b"
    raw.seek(0)
    stream = cast(IO[bytes], gzip.GzipFile(fileobj=raw) if packed else raw)
    try:
      yield from _texts(stream, max_bytes, file.path)
    except (OSError, EOFError, zlib.error) as error:
      raise ValueError(f"{file.path} is damaged: {error}.") from error


def _texts(stream: IO[bytes], max_bytes: int, path: str) -> Iterator[str]:
  bad = good = 0
  for line in _lines(stream, max_bytes):
    text = _text(line)
    if text:
      good += 1
      yield text
    elif text is None:
      bad += 1
      if bad >= 100 and bad > 20 * good:
        raise ValueError(
          f"{path}: {bad} of its first {bad + good} lines are neither UTF-8 "
          'text nor JSON with "text".'
        )


def _lines(stream: IO[bytes], max_bytes: int) -> Iterator[bytes]:
  """Lines, none longer than _MAX_LINE: what is behind that is skipped."""
  beginning = True
  while max_bytes > 0 and (line := stream.readline(_MAX_LINE)):
    max_bytes -= len(line)
    if beginning:
      yield line
    beginning = line.endswith(b"\n")


def _text(line: bytes) -> str | None:
  """A line's text; None: it is no text."""
  if b"\x00" in line:
    return None
  text = line.decode(
    "utf-8-sig", "ignore" if len(line) == _MAX_LINE else "replace"
  )
  if "\ufffd" in text:
    return None
  if not text.lstrip().startswith("{"):
    return text.strip()
  try:
    record = json.loads(text)
  except (ValueError, RecursionError):
    return None
  found = record.get("text") if isinstance(record, dict) else None
  return found if isinstance(found, str) else None
