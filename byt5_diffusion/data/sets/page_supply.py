"""Examples of pages with writing: whole ones, or a crop per word or line.

Pictures are looked up by name (picture_folder.py), and decoded once for all the
crops that are asked for one behind the other.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import tqdm

from byt5_diffusion.data import (
  annotated,
  images,
  languages,
)
from byt5_diffusion.data.rows import (
  cached_arrays,
  files,
  order,
)
from byt5_diffusion.data.sets import (
  descriptions,
  outlines,
  page_captions,
  page_languages,
  page_listing,
  picture_folder,
  written_pages,
)

_VERSION = "pages 3"
_SPLITS = ("", *written_pages.SPLITS)
_PAGE_BYTES = 12 * 2**20  # Of a decoded picture, about.


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
  min_confidence: float = 0.8

  def __post_init__(self) -> None:
    if not 0 <= self.margin <= 1:
      raise ValueError(f"margin={self.margin} must be in [0, 1].")
    if self.max_bytes < 0 or self.max_quotes < 0:
      raise ValueError("max_bytes and max_quotes must not be negative.")


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
    sources: Sequence[files.File] = (),
    validation_share: float = 0.02,
    max_rejected_share: float = 0.05,
  ):
    """Looks at all pages, or at what is kept of them, but at no picture.

    Args:
      name: of the data set, for messages.
      pages: see written_pages.Page.
      pictures: where the pictures are.
      form: what becomes of a page.
      key: as the name, but for good: the examples' keys begin with it.
      sources: the files that the pages are read from; what was found in them is
        kept (data/rows/cached_arrays.py). Without any, nothing is.
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
    if sources:
      depends_on = (
        _VERSION, name, key, repr(form), pictures.fingerprint,
        *(file.identity for file in sources),
      )  # fmt: skip
      kept = cached_arrays.kept("pages", depends_on, lambda: self._scan(pages))
    else:
      kept = self._scan(pages)
    header = kept.header
    page_listing.count(name, header, max_rejected_share)
    if not header["kept"]:
      raise ValueError(
        f"{name}: there is no {form.part or 'picture'} that can be read in "
        f"{header['pages']} annotated pictures."
      )
    self._bytes, self._ends = kept.arrays["pages"], kept.arrays["ends"]
    self.fingerprint: str = header["fingerprint"]
    rows = kept.arrays["rows"].reshape(-1, 3)
    splits = _splits(kept.arrays["split"], kept.arrays["at"], validation_share)
    split_of = splits[rows[:, 0]]
    self._rows = {
      split: rows[split_of == number]
      for number, split in enumerate(written_pages.SPLITS)
    }
    self.sizes: Mapping[str, int] = {s: len(r) for s, r in self._rows.items()}

  def _scan(self, pages: Iterable[written_pages.Page]) -> cached_arrays.Kept:
    """All pages, packed, with what is an example and what is not."""
    listing = page_listing.Listing()
    digest = hashlib.blake2b(
      f"{_VERSION}\n{self._form}\n{self._pictures.fingerprint}\n".encode(),
      digest_size=16,
    )
    rows: list[int] = []
    packed, split, at = bytearray(), [], []
    ends: list[int] = []
    shown = tqdm.tqdm(pages, f"reading {self.name}", unit=" p", disable=None)
    for page in shown:
      if self._form.identify:
        page = page_languages.identified(page, self._form.min_confidence)
      listing.note(page)
      entries = self._entries(page, listing)
      if not entries:
        continue
      for number, code in entries:
        rows += (len(ends), number, code)
      raw = page.pack()
      digest.update(raw)
      packed += raw
      ends.append(len(packed))
      split.append(_SPLITS.index(page.split))
      at.append(_position(page.together or page.key))
    return cached_arrays.Kept(
      {
        **listing.header(),
        "kept": len(rows) // 3,
        "fingerprint": digest.hexdigest(),
      },
      {
        "pages": np.frombuffer(bytes(packed), np.uint8),
        "ends": np.array(ends, np.int64),
        "rows": np.array(rows, np.int64),
        "split": np.array(split, np.uint8),
        "at": np.array(at, np.float64),
      },
    )

  def _page(self, row: int) -> written_pages.Page:
    start = self._ends[row - 1] if row else 0
    return written_pages.Page.unpack(
      self._bytes[start : self._ends[row]].tobytes()
    )

  def languages(self, split: str) -> np.ndarray | None:
    """See supplies.Supply."""
    return self._rows[split][:, 2].astype(np.uint8)

  def blocks(self, split: str) -> order.Blocks:
    """The crops of a page are read together, so that it is decoded once."""
    if not self._form.part:
      return order.even(self.sizes[split])
    _, sizes = np.unique(self._rows[split][:, 0], return_counts=True)
    return order.Blocks(sizes, [_PAGE_BYTES] * len(sizes))

  def read(
    self, split: str, index: int, seed: int = 0, language: str = ""
  ) -> annotated.Annotated:
    """See supplies.Supply. The key chooses the caption's sentence."""
    row, number, _ = (int(one) for one in self._rows[split][index])
    page = self._page(row)
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

  def _entries(
    self, page: written_pages.Page, listing: page_listing.Listing
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
    if not mark.legible or not mark.text.strip():
      return "illegible"
    if outlines.thickness(mark.outline) < self._form.min_side:
      return "too small"
    return self._too_long(mark.text)

  def _too_long(self, text: str) -> str:
    limit = self._form.max_bytes
    return "too long" if 0 < limit < len(text.encode("utf-8")) else ""

  def _useless(self, page: written_pages.Page) -> str:
    if not page.readable:
      return "nothing legible"
    if self._form.max_quotes and not page_captions.quotable(page):
      return "nothing to quote"
    written = [mark.outline for mark in page.marks if mark.parent < 0]
    illegible = sum(map(_area, page_captions.hidden(page)))
    if illegible > self._form.max_illegible * sum(map(_area, written)):
      return "mostly illegible"
    return self._too_long(page.text)

  def _whole(
    self, key: str, page: written_pages.Page, image: np.ndarray
  ) -> annotated.Annotated:
    form = self._form
    if form.hidden:
      image = outlines.hide(image, page_captions.hidden(page))
    chosen, strings = page.readable, [page.text]
    if form.max_quotes:
      chosen = page_captions.largest(page, form.max_quotes)
      strings = [page.marks[number].text for number in chosen]
    caption = descriptions.write(form.kind, strings, page.language, _seed(key))
    spans = page_captions.spans(
      page, chosen, caption, whole=not form.max_quotes
    )
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
    spans = page_captions.spans(page, [number], caption, whole=False)
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


def _area(outline: outlines.Outline) -> float:
  left, top, right, bottom = outlines.box(outline)
  return (right - left) * (bottom - top)


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


def _splits(published: np.ndarray, at: np.ndarray, share: float) -> np.ndarray:
  """Place in written_pages.SPLITS of every page.

  Args:
    published: place in _SPLITS of every page [n].
    at: position in [0, 1) of every page [n].
    share: to be held out for validation, if nothing else is.
  """
  train, validation, _ = range(3)
  # Those that say none are for training.
  splits = np.maximum(published.astype(np.int64) - 1, train)
  free = splits == train
  if not share or (splits == validation).any() or free.sum() < 2:
    return splits
  limit = max(share, float(np.nextafter(at[free].min(), 1.0)))
  return np.where(free & (at < limit), validation, splits)


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
