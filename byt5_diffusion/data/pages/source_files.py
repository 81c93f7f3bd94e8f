"""A user's own HTML or SVG files as a supply: each is drawn when it is asked
for, in a process without rights (sandbox.py), for they may be strangers'.

  poster.html   drawn
  poster.txt    its caption; without one, the text that is on it is the caption

What is refused, too slow or too large is a bad record: skipped, counted, named.
"""

import dataclasses
import functools
import hashlib
import posixpath
from collections.abc import Mapping
from typing import ClassVar, cast

import numpy as np

from byt5_diffusion.data import (
  annotated,
  images,
  languages,
  supplies,
)
from byt5_diffusion.data.pages import sandbox
from byt5_diffusion.data.rows import files

EXTENSIONS = {"html": (".html", ".htm", ".xhtml"), "svg": (".svg",)}
_MAX_CAPTION = 64 * 1024
_MAX_REGIONS = 2000


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceFiles:
  """supplies.Supply of a folder of sources.

  Attributes:
    path: folder, file, glob or braces (data/rows/files.py).
    kind: "html" or "svg".
    height, width: pixels of the pictures; of pages, CSS pixels of the page.
    seconds: until a source is given up.
    validation_share: of the files, by their names' hash.
    language: mC4's code of all of them; "und": unknown.
  """

  endless: ClassVar[bool] = False

  path: str
  kind: str
  height: int
  width: int
  seconds: float = 10.0
  validation_share: float = 0.01
  language: str = "und"

  def __post_init__(self) -> None:
    if not 0 <= self.validation_share < 1:
      raise ValueError(f"{self.validation_share=} must be in [0, 1).")
    if min(self.height, self.width) < 1 or self.seconds <= 0:
      raise ValueError(f"{self.height=}, {self.width=}, {self.seconds=}.")
    if self.language != "und" and languages.row(self.language) < 0:
      raise ValueError(f"language={self.language!r} is no language of mC4.")
    _ = self._listed

  @property
  def name(self) -> str:
    return f"{self.kind} files of {self.path}"

  @functools.cached_property
  def _listed(
    self,
  ) -> tuple[dict[str, list[files.File]], dict[str, files.File]]:
    """{split: sources}, {name without extension: caption}."""
    sources: dict[str, list[files.File]] = {"train": [], "validation": []}
    captions: dict[str, files.File] = {}
    for file in files.find(self.path):
      stem, extension = posixpath.splitext(file.name or file.path)
      if extension.lower() in EXTENSIONS[self.kind]:
        digest = hashlib.blake2b(stem.encode(), digest_size=8).digest()
        share = int.from_bytes(digest, "big") / 2**64
        held = share < self.validation_share
        sources["validation" if held else "train"].append(file)
      elif extension.lower() == ".txt":
        captions[stem] = file
    if not any(sources.values()):
      raise ValueError(
        f"{self.path} holds no files {', '.join(EXTENSIONS[self.kind])}."
      )
    return sources, captions

  @functools.cached_property
  def sizes(self) -> Mapping[str, int]:
    return {split: len(found) for split, found in self._listed[0].items()}

  @functools.cached_property
  def fingerprint(self) -> str:
    sources, captions = self._listed
    listed = [*sources["train"], *sources["validation"], *captions.values()]
    parts = [(file.name, file.size) for file in listed]
    options = (self.kind, self.height, self.width, self.validation_share)
    return hashlib.sha256(repr((parts, options)).encode("utf-8")).hexdigest()

  def languages(self, split: str) -> np.ndarray | None:
    row = languages.row(self.language)
    number = languages.OTHER if row < 0 else row
    return np.full(self.sizes[split], number, np.uint8)

  def read(
    self, split: str, index: int, seed: int = 0, language: str = ""
  ) -> annotated.Annotated:
    """See supplies.Supply.read."""
    del seed, language
    file = self._listed[0][split][index]
    name = file.name or file.path
    pool = sandbox.pool(sandbox.Limits(seconds=self.seconds))
    source = _read(file, pool.limits.source_bytes)
    drawn = pool.draw(
      self.kind, source, name=name, height=self.height, width=self.width
    )
    lines = [r.text for r in drawn.regions if r.label == "line"]
    written = "\n".join(lines) or drawn.facts.get("text", "")
    stem = posixpath.splitext(name)[0]
    return annotated.Annotated(
      key=f"typography_{self.kind}_files/{name}",
      image=drawn.image,
      text=self._caption(stem) or written,
      transcription=written,
      language=self.language,
      regions=drawn.regions[:_MAX_REGIONS],
    )

  def _caption(self, stem: str) -> str:
    file = self._listed[1].get(stem)
    if file is None:
      return ""
    try:
      return _read(file, _MAX_CAPTION).decode("utf-8-sig").strip()
    except UnicodeDecodeError:
      raise images.BadImage(file.name, "caption is not UTF-8") from None


def _read(file: files.File, most: int) -> bytes:
  """A file of at most so many bytes."""
  name = file.name or file.path
  try:
    raw = file.read(0, most + 1)
  except OSError as error:
    raise images.BadImage(name, error.strerror or "cannot be opened") from None
  if len(raw) > most:
    raise images.BadImage(name, f"more than {most} bytes")
  if not raw.strip():
    raise images.BadImage(name, "empty file")
  return raw


def open_html(
  path: str,
  *,
  height: int = 1024,
  width: int = 768,
  seconds: float = 10.0,
  validation_share: float = 0.01,
  language: str = "und",
) -> supplies.Supply:
  """Opens a folder of HTML files: see SourceFiles."""
  made = SourceFiles(
    path=path,
    kind="html",
    height=height,
    width=width,
    seconds=seconds,
    validation_share=validation_share,
    language=language,
  )
  return cast(supplies.Supply, made)


def open_svg(
  path: str,
  *,
  height: int = 512,
  width: int = 512,
  seconds: float = 10.0,
  validation_share: float = 0.01,
  language: str = "und",
) -> supplies.Supply:
  """Opens a folder of SVG files: see SourceFiles."""
  made = SourceFiles(
    path=path,
    kind="svg",
    height=height,
    width=width,
    seconds=seconds,
    validation_share=validation_share,
    language=language,
  )
  return cast(supplies.Supply, made)
