"""Typography of phrases: lines in many languages and styles, with their boxes.

Example `index` of a split is a pure function of (split, seed, index, language)
and of the machine's fonts. Its language is drawn by mC4's shares; the strings
are in the split that words.split_of says, each for itself. A string that is too
long for its letters' size goes on on the next line.
"""

import dataclasses
import functools
import hashlib
import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from byt5_diffusion import quotes
from byt5_diffusion.data import (
  annotated,
  images,
  languages,
  rejections,
)
from byt5_diffusion.data.writing import (
  caption_writer,
  corpora,
  designs,
  fonts,
  phrases,
  typesetting,
  typography,
  words,
)

_log = logging.getLogger(__name__)
NAME = "typography_phrases"
BUILT_IN = "built_in"
_MAX_TRIES = 50  # Before an example is given up.
_CAPTIONS = ("mixed", "text", "described")
_BOXES = {"all": ("line", "word", "glyph")} | {
  label: (label,) for label in ("line", "word", "glyph")
}


@dataclasses.dataclass(kw_only=True)
class TypographyPhrases:
  """Pictures of one or several lines: a Supply (data/supplies.py).

  Attributes:
    texts: where the strings come from.
    height, width: of the pictures, in pixels.
    max_strings: of a picture; each begins a line.
    max_bytes: of the lines together in UTF-8, and of a caption: a longer one
      gives its place to the text alone.
    captions: "text", "described" (styles and quotes), or "mixed": both.
    boxes: the kind of regions: "line", "word", "glyph" or "all".
    design: how lines may look.
    num_train, num_validation: examples until the same ones come again.
    fingerprint: of the texts and the options; not of the fonts.
  """

  texts: phrases.Texts
  height: int = 256
  width: int = 256
  max_strings: int = 3
  max_bytes: int = 255
  captions: str = "mixed"
  boxes: str = "all"
  design: designs.Designs = dataclasses.field(default_factory=designs.Designs)
  num_train: int = 1_000_000
  num_validation: int = 1_000
  name: str = NAME
  endless: bool = True
  sizes: Mapping[str, int] = dataclasses.field(init=False)
  fingerprint: str = dataclasses.field(init=False)

  def __post_init__(self) -> None:
    if self.captions not in _CAPTIONS:
      raise ValueError(f"captions={self.captions!r} is none of {_CAPTIONS}.")
    if self.boxes not in _BOXES:
      raise ValueError(f"boxes={self.boxes!r} is none of {tuple(_BOXES)}.")
    if self.max_strings < 1 or self.max_bytes < 16:
      raise ValueError(
        f"{self.max_strings=} must be 1 or more, {self.max_bytes=} 16."
      )

    counts = {"train": self.num_train, "validation": self.num_validation}
    self.sizes = counts
    options = [
      (field.name, getattr(self, field.name))
      for field in dataclasses.fields(self)
      if field.init and field.name != "texts"
    ]
    listing = repr((self.texts.fingerprint, options))
    self.fingerprint = hashlib.sha256(listing.encode("utf-8")).hexdigest()

  @functools.cached_property
  def _scripts(self) -> frozenset[str]:
    """Those of the texts' languages that a font here has; warns of others."""
    wanted = sorted(
      {s for code in self.texts.codes for s, _ in phrases.scripts(code)}
    )
    drawable = fonts.available_scripts(wanted)
    missing = sorted(set(wanted) - set(drawable))
    if missing:
      _log.warning(
        "%s goes without %s: no font here covers them. Run `python "
        "tools/fetch_fonts.py` (needs no root) to have them.",
        self.name,
        " ".join(missing),
      )
    if not drawable:
      fonts.fonts_for(missing[0])  # Raises, and says what to install.
    return frozenset(drawable)

  @functools.cached_property
  def codes(self) -> tuple[str, ...]:
    """Languages that can be drawn here, in the table's order."""
    return tuple(
      language.code
      for language in languages.TABLE
      if language.code in self.texts.codes
      and any(s in self._scripts for s, _ in phrases.scripts(language.code))
    )

  def languages(self, split: str) -> np.ndarray | None:
    """Rows of languages.TABLE that can be drawn, uint8."""
    del split
    return np.array([languages.row(code) for code in self.codes], np.uint8)

  def read(
    self, split: str, index: int, seed: int = 0, language: str = ""
  ) -> annotated.Annotated:
    """Example `index`: see supplies.Supply.

    Raises:
      images.BadImage: many strings in a row cannot be drawn.
      ValueError: a language that has no text or no font here.
    """
    code = language or phrases.language_at(split, seed, index, self.codes)
    if code not in self.codes:
      raise ValueError(
        f"{self.name} cannot write {code!r}: it has no text or no font for it. "
        f"It can write {' '.join(self.codes)}."
      )
    key = f"{self.name}/{split}/{int(seed)}/{int(index)}/{code}"
    rng = words.generator("design", key)
    strings = phrases.strings_at(self.texts, split, seed, index, code)
    drawable = (s for s in strings if s.script in self._scripts)
    reason = ""
    for _ in range(_MAX_TRIES):
      lines = self._lines(drawable, rng)
      ledger = rejections.ledger(
        f"{self.name}/{lines[0].script}", max_share=1.0
      )
      try:
        example = self._draw(key, lines, rng)
      except typography.Illegible as error:  # Too long for its picture.
        reason = str(error)
        continue
      except typography.CannotDraw as error:
        reason = str(error)
        ledger.reject(lines[0].text, type(error).__name__)
        continue
      ledger.accept()
      return example
    raise images.BadImage(key, f"nothing can be drawn ({reason})")

  def _lines(
    self, strings: Iterator[words.Sample], rng: np.random.Generator
  ) -> list[words.Sample]:
    """The lines of a picture, all of one script, within max_bytes."""
    # One line is as frequent as all other numbers together.
    wanted = 1
    if rng.uniform() < 0.5:
      wanted = int(rng.integers(1, self.max_strings + 1))
    lines: list[words.Sample] = []
    room = self.max_bytes
    for sample in itertools.islice(strings, 4 * wanted + 20):
      size = len(sample.text.encode("utf-8")) + 1
      if size <= room + 1 and (not lines or sample.script == lines[0].script):
        lines.append(sample)
        room -= size
      if len(lines) == wanted:
        break
    if not lines:
      raise images.BadImage(self.name, f"no string of {self.max_bytes} bytes")
    return lines

  def _draw(
    self, key: str, lines: Sequence[words.Sample], rng: np.random.Generator
  ) -> annotated.Annotated:
    strings = [sample.text for sample in lines]
    script, code = lines[0].script, lines[0].language
    style = self.design.draw(rng, script)
    length = typesetting.per_line(style, script, self.height, self.width)
    caption = self._caption(strings, style, code, rng)
    places = spans_of(caption, strings)
    pieces: list[str] = []
    spans: list[tuple[int, int] | None] = []
    for string, place in zip(strings, places, strict=True):
      for start, end in typesetting.wrap(string, script, length):
        pieces.append(string[start:end])
        spans.append(_inside(place, string, start, end))
    transcription = caption_writer.plain(pieces)
    if len(transcription.encode("utf-8")) > self.max_bytes:
      # Ends of lines between letters came to it.
      raise typography.Illegible(f"more than {self.max_bytes} bytes")
    made = typesetting.compose(
      pieces, script, style, self.height, self.width, language=code
    )
    return annotated.Annotated(
      key="/".join([key, *strings]),
      image=made.image,
      text=caption,
      language=code,
      regions=typesetting.regions(made, spans, _BOXES[self.boxes]),
      style=typesetting.numbers(made, style, script),
      transcription=transcription,
    )

  def _caption(
    self,
    strings: Sequence[str],
    style: typesetting.Style,
    code: str,
    rng: np.random.Generator,
  ) -> str:
    text = caption_writer.plain(strings)
    share = {"text": 1.0, "described": 0.0, "mixed": 0.3}[self.captions]
    if rng.uniform() < share:
      return text
    try:
      caption = caption_writer.write(strings, designs.look(style), rng, code)
    except caption_writer.CannotQuote:
      return text
    return caption if len(caption.encode("utf-8")) <= self.max_bytes else text


def _inside(
  place: tuple[int, int] | None, string: str, start: int, end: int
) -> tuple[int, int] | None:
  """Bytes of string[start:end], where the string itself is at `place`."""
  if place is None:
    return None
  before = place[0] + len(string[:start].encode("utf-8"))
  return before, before + len(string[start:end].encode("utf-8"))


def spans_of(
  caption: str, strings: Sequence[str]
) -> list[tuple[int, int] | None]:
  """Where a caption has each drawn string, in bytes of UTF-8.

  Args:
    caption: the strings themselves, a line each, or one that quotes them.
    strings: what is drawn, in the caption's order.
  """
  if caption == caption_writer.plain(strings):
    found, start = [], 0
    for string in strings:
      size = len(string.encode("utf-8"))
      found.append((start, start + size))
      start += size + 1
    return list(found)
  quoted = [span for span in quotes.spans(caption) if span.depth == 0]
  places: list[tuple[int, int] | None] = []
  for span, string in zip(quoted, strings, strict=False):
    if span.text != string:  # Escaped, or of a caption that is another's.
      places.append(None)
      continue
    before = len(caption[: span.start].encode("utf-8"))
    places.append((before, before + len(string.encode("utf-8"))))
  return places + [None] * (len(strings) - len(places))


def open_phrases(
  path: str,
  *,
  height: int = 256,
  width: int = 256,
  max_strings: int = 3,
  max_words: int = 6,
  max_bytes: int = 255,
  captions: str = "mixed",
  boxes: str = "all",
  colors: str = "named",
  vertical: float = 0.35,
  min_size: float = 9.0,
  smallest: float = 0.08,
  largest: float = 0.6,
  language: str = "",
  max_megabytes: float = 256.0,
  num_train: int = 1_000_000,
  num_validation: int = 1_000,
) -> TypographyPhrases:
  """Opens the supply that a task's name says.

  Args:
    path: "built_in", or the user's texts (data/writing/corpora.py).
    height, width: of the pictures as they are drawn.
    max_words: of a phrase.
    language: mC4's code of the user's texts, where their names don't say it.
    max_megabytes: of the user's texts that are read.
    Others: see TypographyPhrases and designs.Designs.
  """
  texts: phrases.Texts
  if path == BUILT_IN:
    texts = phrases.Phrases(max_words=max_words)
  else:
    texts = corpora.Corpus(
      path=path,
      language=language,
      cutter=corpora.Cutter(max_words=max_words),
      max_megabytes=max_megabytes,
    )
  return TypographyPhrases(
    texts=texts,
    height=height,
    width=width,
    max_strings=max_strings,
    max_bytes=max_bytes,
    captions=captions,
    boxes=boxes,
    design=designs.Designs(
      colors=colors,
      vertical=vertical,
      min_size=min_size,
      smallest=smallest,
      largest=largest,
    ),
    num_train=num_train,
    num_validation=num_validation,
  )
