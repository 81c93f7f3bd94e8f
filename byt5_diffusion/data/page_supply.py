"""Examples of pages with writing: whole ones, or a crop per word or line.

Pictures are looked up by name (data/picture_folder.py), and decoded once for
all the crops that are asked for one behind the other.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping

import numpy as np

from byt5_diffusion.data import (
  annotated,
  descriptions,
  images,
  languages,
  outlines,
  picture_folder,
  rejections,
  supplies,
  written_pages,
)

# Quoted as one of several strings: more is no sign that one reads in passing.
_MAX_QUOTE = 80  # characters


@dataclasses.dataclass(frozen=True, kw_only=True)
class Form:
  """What becomes of pages.

  Attributes:
    part: "glyph", "word" or "line": one crop for each; "": the whole page.
    kind: of descriptions.KINDS, for the captions.
    margin: around a crop, in shares of its shorter side.
    min_side: crops whose shorter side has fewer pixels are left out.
    hidden: whether illegible writing on whole pages is blurred.
    max_quotes: strings that a whole page's caption quotes, the largest ones;
      0: all that is written, as one string.
    max_illegible: whole pages with a larger share of their writing illegible,
      by area, are left out.
    max_bytes: pages and parts with a longer text are left out; 0: none.
    identify: whether pages of an unknown language are looked at for it; a page
      whose language is surer than `min_confidence` lends it to its words.
  """

  part: str
  kind: str
  margin: float = 0.05
  min_side: float = 8.0
  hidden: bool = False
  max_quotes: int = 0
  max_illegible: float = 1.0
  max_bytes: int = 0
  identify: bool = False
  min_confidence: float = 0.9


class PageSupply:
  """Whole pages or their parts; see supplies.Supply.

  A page is in the split that is published for it. If none is published for
  validation, a share of the others is held out, by the hash of the page's key,
  so that the parts of a page stay together.
  """

  endless = False

  def __init__(
    self,
    name: str,
    pages: Iterable[written_pages.Page],
    pictures: picture_folder.PictureFolder,
    form: Form,
    *,
    key: str,
    validation_share: float = 0.02,
    max_rejected_share: float = 0.05,
  ):
    """Looks at all pages; pictures are opened later.

    Args:
      name: of the data set, for messages.
      key: the same for good: the examples' keys begin with it.
      pages: see written_pages.Page.
      pictures: where the pictures are.
      form: what becomes of a page.
      validation_share: probability of a page to be held out.
      max_rejected_share: share of unusable marks that is put up with.

    Raises:
      ValueError: there is nothing to be read.
      rejections.TooManyRejections: too many marks are unusable.
    """
    self.name = name
    self._key = key
    self._pictures = pictures
    self._form = form
    self._pages: list[bytes] = []
    listing = _Listing(name, max_rejected_share)
    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"pages 1\n{form}\n{pictures.fingerprint}\n".encode())
    found: list[tuple[int, int, int]] = []
    places = []
    for page in pages:
      page = self._with_language(page)
      listing.note(page)
      entries = self._entries(page, listing)
      if entries:
        found += [(len(self._pages), *entry) for entry in entries]
        places.append((page.split, _position(page.key)))
        self._pages.append(page.pack())
        digest.update(self._pages[-1])
    listing.judge()
    if not found:
      raise ValueError(
        f"{name}: nothing that can be read was found "
        f"({listing.num_pages} pages)."
      )
    self.fingerprint = digest.hexdigest()
    rows = np.array(found, np.int64)
    split_of = np.array(_splits(places, validation_share))[rows[:, 0]]
    self._rows = {s: rows[split_of == s] for s in written_pages.SPLITS}
    self.sizes: Mapping[str, int] = {s: len(r) for s, r in self._rows.items()}

  def languages(self, split: str) -> np.ndarray | None:
    """See supplies.Supply."""
    return self._rows[split][:, 2].astype(np.uint8)

  def read(
    self, split: str, index: int, seed: int = 0, language: str = ""
  ) -> annotated.Annotated:
    """See supplies.Supply. The seed chooses the caption's sentence."""
    row, number, _ = (int(one) for one in self._rows[split][index])
    page = written_pages.Page.unpack(self._pages[row])
    key = f"{self._key}/{page.key}" + (f"/{number}" if number >= 0 else "")
    try:
      image = self._pictures.decode(page.picture)
      if number < 0:
        return self._whole(key, page, image)
      return self._part(key, page, number, image)
    except images.BadImage as error:
      raise images.BadImage(key, error.reason) from None
    except outlines.BadOutline as error:
      raise images.BadImage(key, str(error)) from None

  def _with_language(self, page: written_pages.Page) -> written_pages.Page:
    if not self._form.identify or page.language != "und" or not page.text:
      return page
    code, confidence = languages.identify(page.text)
    if confidence < self._form.min_confidence or code == "und":
      return page
    marks = tuple(
      mark._replace(language=code) if mark.language == "und" else mark
      for mark in page.marks
    )
    return dataclasses.replace(page, marks=marks)

  def _entries(
    self, page: written_pages.Page, listing: "_Listing"
  ) -> list[tuple[int, int]]:
    """(number of a mark, or -1; row of its language) of every example."""
    form = self._form
    if not form.part:
      if reason := self._useless(page):
        listing.leave_out(page.key, reason)
        return []
      return [(-1, _row(page.language))]
    entries = []
    for number, mark in enumerate(page.marks):
      if mark.label != form.part:
        continue
      if reason := self._unreadable(mark):
        listing.leave_out(f"{page.key}/{number}", reason)
      else:
        entries.append((number, _row(mark.language)))
    return entries

  def _unreadable(self, mark: written_pages.Mark) -> str:
    """Why a mark becomes no example, "" if it does."""
    left, top, right, bottom = outlines.box(mark.outline)
    if not mark.legible or not mark.text.strip():
      return "illegible"
    if min(right - left, bottom - top) < self._form.min_side:
      return "too small"
    return self._too_long(mark.text)

  def _too_long(self, text: str) -> str:
    limit = self._form.max_bytes
    return "too long" if 0 < limit < len(text.encode("utf-8")) else ""

  def _useless(self, page: written_pages.Page) -> str:
    if not page.readable:
      return "nothing legible"
    if self._form.max_quotes and not _quotable(page):
      return "nothing to quote"
    areas = {True: 0.0, False: 0.0}
    for mark in page.marks:
      if mark.parent < 0:
        left, top, right, bottom = outlines.box(mark.outline)
        areas[mark.legible] += (right - left) * (bottom - top)
    if areas[False] > self._form.max_illegible * sum(areas.values()):
      return "mostly illegible"
    return self._too_long(page.text)

  def _whole(
    self, key: str, page: written_pages.Page, image: np.ndarray
  ) -> annotated.Annotated:
    form = self._form
    if form.hidden:
      image = outlines.hide(image, _hidden(page))
    chosen = page.readable
    if form.max_quotes:
      chosen = _largest(page, form.max_quotes)
      strings = [page.marks[number].text for number in chosen]
    else:
      strings = [page.text]
    caption = descriptions.write(form.kind, strings, page.language, _seed(key))
    spans = _spans(page, chosen, strings, caption)
    regions = []
    for number, mark in enumerate(page.marks):
      try:
        outline = outlines.inside(mark.outline, image.shape[:2])
      except outlines.BadOutline:
        continue  # One of many; the page is good without it.
      regions.append(_region(mark, outline, spans.get(number)))
    return annotated.Annotated(
      key=key,
      image=image,
      text=caption.text,
      language=page.language,
      regions=tuple(regions),
      style=_style(page.marks),
      transcription=page.text,
    )

  def _part(
    self, key: str, page: written_pages.Page, number: int, image: np.ndarray
  ) -> annotated.Annotated:
    mark = page.marks[number]
    crop = outlines.cut(image, mark.outline, self._form.margin)
    caption = descriptions.write(
      self._form.kind, [mark.text], mark.language, _seed(key)
    )
    spans = _spans(page, [number], [mark.text], caption)
    size = crop.pixels.shape[:2]
    regions = []
    for other, part in enumerate(page.marks):
      if other != number and part.parent != number:
        continue
      try:
        outline = outlines.inside(crop.place(part.outline), size)
      except outlines.BadOutline:
        continue
      regions.append(_region(part, outline, spans.get(other)))
    return annotated.Annotated(
      key=key,
      image=crop.pixels,
      text=caption.text,
      language=mark.language,
      regions=tuple(regions),
      style=_style([mark]),
      transcription=mark.text,
    )


class _Listing:
  """Counts what a data set's annotations hold, and what is left out."""

  def __init__(self, name: str, max_rejected_share: float):
    self.num_pages = 0
    self._name = name
    self._max_share = max_rejected_share
    self._num_marks = 0
    self._problems: list[tuple[str, str]] = []
    self._left_out: list[tuple[str, str]] = []

  def note(self, page: written_pages.Page) -> None:
    self.num_pages += 1
    self._num_marks += max(1, len(page.marks) + len(page.problems))
    self._problems += [(f"{page.key}/{k}", why) for k, why in page.problems]

  def leave_out(self, key: str, reason: str) -> None:
    self._left_out.append((key, reason))

  def judge(self) -> None:
    """Raises TooManyRejections if too much of it is broken."""
    rejections.Ledger(
      f"{self._name} (annotations)",
      max_share=self._max_share,
      num_records=max(1, self._num_marks),
    ).reject_all(self._problems)
    source = f"{self._name} (filters)"
    rejections.forget(source)
    rejections.ledger(
      source, max_share=1.0, num_records=max(1, self._num_marks)
    ).reject_all(self._left_out)


def _row(code: str) -> int:
  row = languages.row(code)
  return row if row >= 0 else languages.OTHER


def _position(key: str) -> float:
  """A number in [0, 1) that depends on the page alone."""
  raw = key.encode("utf-8", "surrogatepass")
  digest = hashlib.blake2b(raw, digest_size=8, person=b"split").digest()
  return int.from_bytes(digest, "little") / 2**64


def _seed(key: str) -> int:
  raw = key.encode("utf-8", "surrogatepass")
  return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little")


def _splits(places: list[tuple[str, float]], share: float) -> list[str]:
  """The split of every page, from (published split, position)."""
  splits = [split or "train" for split, _ in places]
  free = [
    at
    for split, (_, at) in zip(splits, places, strict=True)
    if split == "train"
  ]
  if "validation" in splits or not share or len(free) < 2:
    return splits
  limit = max(share, float(np.nextafter(min(free), 1.0)))
  return [
    "validation" if split == "train" and at < limit else split
    for split, (_, at) in zip(splits, places, strict=True)
  ]


def _quotable(page: written_pages.Page) -> list[int]:
  """Marks that a caption may quote: short, and with a letter or a digit."""
  return [
    number
    for number in page.readable
    if len(page.marks[number].text) <= _MAX_QUOTE
    and any(one.isalnum() for one in page.marks[number].text)
  ]


def _largest(page: written_pages.Page, count: int) -> list[int]:
  """The `count` marks with the tallest writing, in reading order."""

  def height(number: int) -> float:
    left, top, right, bottom = outlines.box(page.marks[number].outline)
    return min(right - left, bottom - top)

  chosen = sorted(_quotable(page), key=height, reverse=True)[:count]
  return sorted(chosen)


def _hidden(page: written_pages.Page) -> list[outlines.Outline]:
  """Illegible writing; of a line with parts, those of the parts."""
  lines = page.parts
  return [
    mark.outline
    for number, mark in enumerate(page.marks)
    if not mark.legible and number not in lines
  ]


def _spans(
  page: written_pages.Page,
  chosen: list[int],
  strings: list[str],
  caption: descriptions.Caption,
) -> dict[int, tuple[int, int]]:
  """Where the caption has the text of marks, {number: (start, end)} in bytes.

  Args:
    page: of the marks.
    chosen: numbers of the marks that are quoted.
    strings: as they are quoted: one for each, or one for all of them.
    caption: that quotes them.
  """
  starts = [span[0] for span in caption.spans]
  if len(strings) == 1:  # All of them, one line each.
    for number in chosen[:-1]:
      size = len(page.marks[number].text.encode("utf-8"))
      starts.append(starts[-1] + size + 1)
  spans, parts = {}, page.parts
  for number, start in zip(chosen, starts, strict=True):
    text = page.marks[number].text
    inside = parts.get(number, [])
    strings = [page.marks[part].text for part in inside]
    found = supplies.spans(text, strings)
    spans[number] = (start, start + len(text.encode("utf-8")))
    for part, span in zip(inside, found, strict=True):
      if span is not None:
        spans[part] = (start + span[0], start + span[1])
  return spans


def _region(
  mark: written_pages.Mark,
  outline: outlines.Outline,
  span: tuple[int, int] | None,
) -> annotated.Region:
  return annotated.Region(
    box=outlines.box(outline),
    label=mark.label,
    text=mark.text if mark.legible else "",
    polygon=outline,
    span=span,
    legible=mark.legible,
    vertical=mark.vertical,
  )


def _style(marks: Iterable[written_pages.Mark]) -> dict[str, float]:
  """Whether the writing is vertical, where all of it agrees."""
  directions = {mark.vertical for mark in marks}
  if len(directions) != 1:
    return {}
  return {"vertical": float(directions.pop())}
