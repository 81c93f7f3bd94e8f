"""What supplies of made-up pictures with text share (pages, vector graphics).

Example `index` of a split is drawn from a random generator of its own, in a
language by mC4's shares. It belongs to the split that words.split_of says of
its headline; one that cannot be drawn gives its place to another.
"""

import abc
import dataclasses
import functools
import hashlib
import logging
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from byt5_diffusion.data import (
  annotated,
  images,
  languages,
)
from byt5_diffusion.data.pages import (
  page_designs,
  page_writer,
)
from byt5_diffusion.data.writing import (
  caption_writer,
  corpora,
  fonts,
  phrases,
  words,
)

_log = logging.getLogger(__name__)
BUILT_IN = "built_in"
_MAX_TRIES = 60
_MAX_HEADS = 2000


@dataclasses.dataclass(frozen=True, kw_only=True)
class MadePictures(abc.ABC):
  """supplies.Supply; a subclass says what is made.

  Attributes:
    texts: where strings come from.
    side: pixels of the longer side.
    designs: names of the table's designs that are drawn; () = all.
    codes: mC4's codes of the languages that are drawn; () = all.
    max_bytes: of all that stands on a picture; 0 = any number.
    max_caption: bytes of a caption; 0 = any number.
    num_train, num_validation: examples until the same ones come again.
  """

  TABLE: ClassVar[Mapping[str, tuple[Any, float]]]
  VERSION: ClassVar[str]  # Another one draws other pictures.
  name: ClassVar[str]
  endless: ClassVar[bool] = True

  texts: phrases.Texts = dataclasses.field(default_factory=phrases.Phrases)
  side: int = 768
  designs: tuple[str, ...] = ()
  codes: tuple[str, ...] = ()
  max_bytes: int = 0
  max_caption: int = 0
  num_train: int = 1_000_000
  num_validation: int = 1_000

  def __post_init__(self) -> None:
    if not 64 <= self.side <= 4000:
      raise ValueError(f"{self.name}: side={self.side} must be 64 to 4000.")
    for given, known in (
      (self.designs, tuple(self.TABLE)),
      (self.codes, self.texts.codes),
    ):
      unknown = sorted(set(given) - set(known))
      if unknown:
        raise ValueError(
          f"{self.name}: there is no {unknown[0]!r}; there are {list(known)}."
        )

  @functools.cached_property
  def sizes(self) -> Mapping[str, int]:
    return {"train": self.num_train, "validation": self.num_validation}

  @functools.cached_property
  def drawn(self) -> tuple[str, ...]:
    """Codes that this machine has fonts for, of those that are asked for."""
    wanted = self.codes or self.texts.codes
    here = set(fonts.available_scripts())
    kept = tuple(
      code
      for code in wanted
      if any(script in here for script, _ in phrases.scripts(code))
    )
    missing = sorted(set(wanted) - set(kept))
    if missing:
      _log.warning(
        "%s goes without %s: no font here covers them. Run `python "
        "tools/fetch_fonts.py` (needs no root) to have them.",
        self.name,
        " ".join(missing),
      )
    if not kept:
      fonts.fonts_for(phrases.scripts(wanted[0])[0][0])  # Raises.
    return kept

  @functools.cached_property
  def fingerprint(self) -> str:
    parts = (
      self.name,
      self.VERSION,
      self.texts.fingerprint,
      self.side,
      self.designs,
      self.drawn,
      self.max_bytes,
      self.max_caption,
      self.num_train,
      self.num_validation,
    )
    return hashlib.sha256(repr(parts).encode("utf-8")).hexdigest()

  def languages(self, split: str) -> np.ndarray | None:
    del split
    return np.array([languages.row(code) for code in self.drawn], np.uint8)

  def read(
    self, split: str, index: int, seed: int = 0, language: str = ""
  ) -> annotated.Annotated:
    """See supplies.Supply.read."""
    code = language or phrases.language_at(split, seed, index, self.drawn)
    key = f"{self.name}/{split}/{seed}/{index}/{code}"
    rng = words.generator(self.VERSION, key)
    for _ in range(_MAX_TRIES):
      try:
        return self._draw(key, split, code, rng)
      except images.BadImage as error:
        reason = error.reason
      except caption_writer.CannotQuote as error:
        reason = str(error)
    raise images.BadImage(key, reason)

  def pick(
    self, code: str, rng: np.random.Generator
  ) -> tuple[Any, page_designs.Style, page_writer.Writer]:
    """A design's maker, a look and a writer for one picture."""
    script = page_writer.pick_script(rng, code, self.texts)
    writer = page_writer.Writer(
      rng=rng,
      texts=self.texts,
      language=code,
      script=script,
      digits=bool(rng.uniform() < 0.4),
    )
    makers = [self.TABLE[name] for name in self.designs or self.TABLE]
    shares = np.cumsum([share for _, share in makers])
    place = np.searchsorted(shares / shares[-1], rng.uniform(), side="right")
    style = page_designs.style(rng, script)
    return makers[min(int(place), len(makers) - 1)][0], style, writer

  def of_split(self, split: str, code: str, make: Any, headline: Any) -> Any:
    """What `make` makes, as soon as its headline belongs to the split.

    Raises:
      ValueError: unknown split, or the texts have too few different strings.
    """
    if split not in words.SPLITS:
      raise ValueError(f"{split=} must be one of {words.SPLITS}.")
    for _ in range(_MAX_HEADS):
      made = make()
      if words.split_of(page_writer.seen(headline(made))) == split:
        return made
    raise ValueError(
      f"{self.name}: no headline in {code!r} for split {split!r} among "
      f"{_MAX_HEADS}: the texts have too few different strings."
    )

  def check_length(self, caption: str, said: str) -> None:
    """Raises images.BadImage if a picture has more text than is wanted."""
    for text, most in ((caption, self.max_caption), (said, self.max_bytes)):
      if most and len(text.encode("utf-8")) > most:
        raise images.BadImage(self.name, f"more than {most} bytes of text")

  @abc.abstractmethod
  def _draw(
    self, key: str, split: str, code: str, rng: np.random.Generator
  ) -> annotated.Annotated:
    """One picture. images.BadImage: another one may do."""


def open_texts(
  path: str, language: str = "", max_megabytes: float = 1024.0
) -> phrases.Texts:
  """Texts that a task's name says: "built_in", or the user's files."""
  if path == BUILT_IN:
    return phrases.Phrases()
  return corpora.Corpus(
    path=path, language=language, max_megabytes=max_megabytes
  )


def listed(written: str) -> tuple[str, ...]:
  """ "a,b" -> ("a", "b"); "" -> ()."""
  return tuple(part.strip() for part in written.split(",") if part.strip())


def look(
  kind: str,
  style: page_designs.Style,
  ink: page_designs.Color,
  paper: page_designs.Color,
  vertical: bool,
  bold: bool | None = None,
) -> caption_writer.Look:
  """What a caption may say of headlines; `bold`: None as the style says."""
  return caption_writer.Look(
    kind=kind,
    family=style.head.style.kind,
    bold=style.head.bold if bold is None else bold,
    vertical=vertical or None,
    ink=ink,
    paper=paper,
  )


def told(
  quoted: list[str],
  headed: int,
  look: caption_writer.Look,
  rng: np.random.Generator,
) -> tuple[list[str], caption_writer.Look]:
  """What a caption quotes, and what it may say of all of that.

  Args:
    quoted: all that it may quote.
    headed: how many of them, from the first on, look as `look` says. If not
      all do, either those are quoted, or nothing is said of the letters.
    look: of headlines.
  """
  if headed == len(quoted):
    return quoted, look
  if headed and rng.uniform() < 0.5:
    return quoted[:headed], look
  return quoted, caption_writer.Look(kind=look.kind)
