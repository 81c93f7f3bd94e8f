"""Supplies of pages: what tasks/document_layout.py makes tasks of.

Every function here opens a folder and says what becomes of its pages. A page
that a task has no use for (without regions, without text, with more text than
fits) is left out when the folder is first opened, and counted by reason.
"""

import hashlib
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from byt5_diffusion.data import (
  annotated,
  filters,
  images,
  languages,
  supplies,
)
from byt5_diffusion.data.rows import catalogue
from byt5_diffusion.data.sets import (
  doclaynet,
  documents,
  docvqa,
  funsd,
  layout_text,
)

FORMATS = ("auto", "doclaynet", "publaynet", "funsd")
UNITS = ("page", "region", "line")
# Their text is no running text, in whichever order its pieces are.
_NO_TEXT = ("picture", "figure", "table", "formula")
_FEW = 2000  # Pages; of fewer, more are kept to validate by.
_ENOUGH = 2000  # Characters of a page to tell its language by.
_MARGIN = 0.004  # Of a page's longer side, around what is cut out of it.
_Row = Mapping[str, Any]


class SplitSupply:
  """A supplies.Supply of several, each with splits of its own."""

  endless = False

  def __init__(self, name: str, parts: Sequence[catalogue.TableSupply]):
    self.name = name
    self.sizes: Mapping[str, int] = {
      k: n for part in parts for k, n in part.sizes.items()
    }
    self._of = {split: part for part in parts for split in part.sizes}
    made = repr([part.fingerprint for part in parts])
    self.fingerprint = hashlib.sha256(made.encode()).hexdigest()[:16]

  def read(
    self, split: str, index: int, seed: int = 0, language: str = ""
  ) -> annotated.Annotated:
    """See supplies.Supply."""
    return self._of[split].read(split, index, seed, language)

  def languages(self, split: str) -> np.ndarray | None:
    """See supplies.Supply."""
    return self._of[split].languages(split)


class _Table:
  """A tables.Table of what a function gives for a number."""

  columns: tuple[str, ...] = ("page", "extras")

  def __init__(
    self, name: str, fingerprint: str, count: int, row: Callable[..., Any]
  ):
    self.name = name
    self.fingerprint = fingerprint
    self._count = count
    self._row = row
    self.blocks = (1,) * count  # Every page is a file of its own.
    self.block_bytes = (0,) * count

  def __len__(self) -> int:
    return self._count

  def read(self, row: int) -> dict[str, Any]:
    return {"page": self._row(row, True)}

  def scan(
    self, columns: Sequence[str]
  ) -> Iterator[tuple[int, dict[str, Any] | images.BadImage]]:
    for number in range(self._count):
      try:
        yield number, {"page": self._row(number, "extras" in columns)}
      except images.BadImage as error:
        yield number, error


def pages_in(path: str, format: str) -> dict[str, documents.Pages]:
  """{split: pages} of a folder; the split "" has to be divided.

  Raises:
    ValueError: it is no folder, or of no known layout.
  """
  if format not in FORMATS:
    raise ValueError(f"{format=} must be one of {list(FORMATS)}.")
  folder = pathlib.Path(path).expanduser()
  if not folder.is_dir():
    raise ValueError(f"{path}: there is no such folder.")
  found: Mapping[str, documents.Pages]
  if format == "doclaynet" or doclaynet.is_doclaynet(folder):
    found = doclaynet.open_doclaynet(folder)
  elif format == "funsd" or (format == "auto" and funsd.is_funsd(folder)):
    found = funsd.open_funsd(folder)
  elif format == "publaynet" or doclaynet.is_coco(folder):
    found = doclaynet.open_publaynet(folder)
  else:
    raise ValueError(
      f"{path}: is laid out neither as DocLayNet (COCO/train.json, PNG/) nor "
      "as PubLayNet (train.json, train/) nor as FUNSD "
      "(training_data/annotations, training_data/images)."
    )
  return dict(found)


def _supply(
  name: str,
  splits: Mapping[str, Any],
  row: Callable[[Any], Callable[..., Any]],
  split: str,
  *,
  describe: Callable[[_Row], list[catalogue.Entry]],
  make: Callable[[dict[str, Any], int], annotated.Annotated],
  version: str,
  extras: bool = True,
) -> SplitSupply:
  """One TableSupply per published split, or of one that is divided by keys."""
  if split and split not in splits:
    raise ValueError(f"{name}: has no split {split!r}, only {sorted(splits)}.")
  parts = []
  for called, found in splits.items():
    if split and called != split:
      continue
    # A set without a split to validate by gives a part of what it trains on.
    divided = not called or (called == "train" and "validation" not in splits)
    table = _Table(
      f"{name} ({called or 'all'})", found.fingerprint, len(found), row(found)
    )
    parts.append(
      catalogue.TableSupply(
        table.name,
        table,
        columns=("page", "extras") if extras else ("page",),
        describe=describe,
        make=make,
        version=version,
        validation_share=0.1 if len(found) < _FEW else 0.01,
        split=None if divided else called,
      )
    )
  return SplitSupply(name, parts)


def _page_row(pages: documents.Pages) -> Callable[..., documents.Page]:
  return lambda index, extras: pages.page(index, extras)


def _regions(
  parts: Sequence[documents.Part], caption: str = ""
) -> tuple[annotated.Region, ...]:
  """Parts as regions, with the places of their texts in a caption."""
  texts = [" ".join(part.text.split()) for part in parts]
  found = supplies.spans(caption, texts) if caption else [None] * len(parts)
  return tuple(
    annotated.Region(box=part.box, label=part.label, text=part.text, span=span)
    for part, span in zip(parts, found, strict=True)
  )


# --- Pages -------------------------------------------------------------------


def _written(
  kind: str,
  path: str,
  format: str,
  split: str,
  write: Callable[[Sequence[documents.Part], str], str],
  *,
  max_bytes: int,
  extras: bool,
  language: str,
  options: str,
  quotes: bool = False,
) -> SplitSupply:
  """Whole pages, with a text that `write` makes of their regions."""

  def describe(row: _Row) -> list[catalogue.Entry]:
    page = documents.arranged(row["page"])
    if not page.parts:
      raise filters.Filtered("no regions")
    # Boxes of a form are for a picture that is not open yet: any will do.
    anywhere = [part._replace(box=(0.0, 0.0, 1.0, 1.0)) for part in page.parts]
    longest = len(write(anywhere, page.subject).encode("utf-8"))
    if longest > max_bytes:
      raise filters.Filtered("text longer than max_bytes", longest)
    return [catalogue.Entry(page.key, language=language)]

  def make(row: dict[str, Any], part: int) -> annotated.Annotated:
    del part
    page = documents.arranged(row["page"])
    loaded = documents.load(page)
    caption = write(loaded.shares(), page.subject)
    return annotated.Annotated(
      key=page.key,
      image=loaded.image,
      text=caption,
      language=language,
      regions=_regions(loaded.parts, caption if quotes else ""),
    )

  return _supply(
    f"{kind}:{path}",
    pages_in(path, format),
    _page_row,
    split,
    describe=describe,
    make=make,
    version=f"1 {kind} {max_bytes} {options}",
    extras=extras,
  )


def segmentation(
  path: str,
  *,
  format: str = "auto",
  split: str = "",
  texts: bool = False,
  max_bytes: int = 1023,
) -> SplitSupply:
  """Pages to read as boxes (data/sets/layout_text.py).

  Args:
    path: the folder.
    format: one of FORMATS; "auto" looks at the folder.
    split: the only one to use; "" uses all.
    texts: with what is written in each box.
    max_bytes: pages with longer texts are left out.
  """
  return _written(
    "document_layout_segmentation",
    path,
    format,
    split,
    lambda parts, subject: layout_text.write(parts, texts),
    max_bytes=max_bytes,
    extras=texts,
    language="und",
    options=f"{texts}",
  )


def layout(
  path: str,
  *,
  format: str = "auto",
  split: str = "",
  max_quote: int = 80,
) -> SplitSupply:
  """Pages with a caption that counts their regions; boxes as annotations.

  Args:
    path, format, split: see segmentation.
    max_quote: titles of more bytes are not quoted.
  """
  return _written(
    "document_layout",
    path,
    format,
    split,
    lambda parts, subject: layout_text.summary(parts, subject, max_quote),
    max_bytes=2**20,
    extras=True,
    language="en",
    options=f"{max_quote}",
    quotes=True,
  )


def drawing(
  path: str,
  *,
  format: str = "auto",
  split: str = "",
  max_quote: int = 80,
  max_bytes: int = 1023,
) -> SplitSupply:
  """Pages to draw from a caption that says what is where.

  Args:
    path, format, split, max_bytes: see segmentation.
    max_quote: texts of more bytes are not quoted.
  """
  return _written(
    "document_layout_drawing",
    path,
    format,
    split,
    lambda parts, subject: layout_text.drawing(parts, subject, max_quote),
    max_bytes=max_bytes,
    extras=True,
    language="en",
    options=f"{max_quote}",
    quotes=True,
  )


# --- Text --------------------------------------------------------------------


def ocr(
  path: str,
  *,
  format: str = "auto",
  split: str = "",
  unit: str = "region",
  max_bytes: int = 1023,
) -> SplitSupply:
  """Pages, or parts cut out of them, to read the text of.

  Args:
    path, format, split: see segmentation.
    unit: one of UNITS: what a picture shows. Pictures, tables and formulas are
      read as parts of pages only: their text has no order of its own.
    max_bytes: longer texts are left out.
  """
  if unit not in UNITS:
    raise ValueError(f"{unit=} must be one of {list(UNITS)}.")
  splits = pages_in(path, format)
  if not all(pages.has_text for pages in splits.values()):
    raise ValueError(
      f"{path}: has no text. DocLayNet's is in its extra archive: unpack the "
      "folder JSON beside PNG; PubLayNet has none."
    )

  def describe(row: _Row) -> list[catalogue.Entry]:
    parts, language = _readable(row["page"], unit)
    sizes = [len(part.text.encode("utf-8")) for part in parts]
    entries = [
      catalogue.Entry(row["page"].key, number, language)
      for number, size in enumerate(sizes)
      if 0 < size <= max_bytes
    ]
    if not entries:
      longer = any(sizes)
      raise filters.Filtered(
        "text longer than max_bytes" if longer else "no text",
        max(sizes, default=0),
      )
    return entries

  def make(row: dict[str, Any], number: int) -> annotated.Annotated:
    page = row["page"]
    parts, language = _readable(row["page"], unit)
    part, key = parts[number], page.key
    if unit == "page":
      loaded = documents.load(documents.arranged(page, loose=True))
      image, regions = loaded.image, _regions(loaded.parts)
    else:
      image, region = _cut_out(page, part)
      key, regions = f"{key}/{unit}/{number}", (region,)
    return annotated.Annotated(
      key=key,
      image=image,
      text=part.text,
      language=language,
      regions=regions,
    )

  return _supply(
    f"document_ocr:{path} ({unit})",
    splits,
    _page_row,
    split,
    describe=describe,
    make=make,
    version=f"1 document_ocr {unit} {max_bytes}",
  )


def _readable(
  page: documents.Page, unit: str
) -> tuple[list[documents.Part], str]:
  """What can be read of a page, each with its box, and in which language."""
  page = documents.arranged(page, loose=True)
  whole = documents.text_of(page.parts)
  # Of the whole page: a line is too little to tell a language by.
  language = languages.identify(whole[:_ENOUGH])[0]
  if unit == "page":
    return [documents.Part((0, 0, 0, 0), "block", whole)], language
  if unit == "region":
    return [p for p in page.parts if p.label not in _NO_TEXT], language
  return documents.lines_of(page), language


def _cut_out(
  page: documents.Page, part: documents.Part
) -> tuple[np.ndarray, annotated.Region]:
  """A part's pixels with a little of what is around, and where it is there."""
  image, parts = documents.load(
    documents.Page(
      key=page.key,
      picture=page.picture,
      parts=(part,),
      frame=page.frame,
      aspect=page.aspect,
    )
  )
  if not parts:
    raise images.BadImage(page.key, "a region outside of its page")
  left, top, right, bottom = parts[0].box
  margin = _MARGIN * max(image.shape[:2])
  x, y = max(0, int(left - margin)), max(0, int(top - margin))
  cut = image[
    y : int(np.ceil(bottom + margin)), x : int(np.ceil(right + margin))
  ]
  box = (left - x, top - y, right - x, bottom - y)
  return cut, annotated.Region(
    box=box,
    label=part.label,
    text=part.text,
    span=(0, len(part.text.encode("utf-8"))),
  )


# --- Questions ---------------------------------------------------------------


def question(
  path: str, *, split: str = "", max_bytes: int = 1023
) -> SplitSupply:
  """DocVQA's pages with a question above, to read the answer of.

  Args:
    path: the folder.
    split: the only one to use; "" uses all that have answers.
    max_bytes: longer answers are left out.
  """
  folder = pathlib.Path(path).expanduser()

  def row(questions: docvqa.Questions) -> Callable[..., docvqa.Record]:
    def get(index: int, extras: bool) -> docvqa.Record:
      del extras
      found = questions.records[index]
      if isinstance(found, images.BadImage):
        raise found
      return found

    return get

  def describe(found: _Row) -> list[catalogue.Entry]:
    record: docvqa.Record = found["page"]
    if len(record.answers[0].encode("utf-8")) > max_bytes:
      raise filters.Filtered("text longer than max_bytes")
    # All questions about a page are in the same split.
    return [catalogue.Entry(record.picture, language="en")]

  def make(found: dict[str, Any], part: int) -> annotated.Annotated:
    del part
    made = docvqa.make(folder, found["page"])
    return made

  return _supply(
    f"document_question:{path}",
    docvqa.open_docvqa(folder),
    row,
    split,
    describe=describe,
    make=make,
    version=f"1 document_question {max_bytes}",
  )
