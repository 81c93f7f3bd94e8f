"""WiT: pictures of Wikipedia with captions in 108 languages.

Three publications, told apart by their columns:

  wikimedia/wit_base   parquet; a row is a picture of 300 pixels' width, with
                       parallel lists over the pages that show it
  google/wit           TSV; a row is one page's use of a picture, an address:
                       the picture itself is what `byt5-diffusion download` made
  wit_kaggle           TFDS's records: google/wit's columns and the picture

Every language's caption of a picture is an example: its key has the picture's
address, the language and the page, and is the same in all three. All captions
of a picture are in the same split.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from byt5_diffusion.data import (
  annotated,
  filters,
  images,
  languages,
)
from byt5_diffusion.data.rows import (
  catalogue,
  tables,
)
from byt5_diffusion.data.sets import (
  fetched,
  image_addresses,
  wit_captions,
)

# google/wit's columns, in order.
COLUMNS = (
  "language", "page_url", "image_url", "page_title", "section_title",
  "hierarchical_section_title", "caption_reference_description",
  "caption_attribution_description", "caption_alt_text_description",
  "mime_type", "original_height", "original_width", "is_main_image",
  "attribution_passes_lang_id", "page_changed_recently",
  "context_page_description", "context_section_description",
)  # fmt: skip
_READ = (
  "language", "page_url", "image_url", *wit_captions.CAPTIONS.values(),
  "original_height", "original_width", "is_main_image",
  "attribution_passes_lang_id",
)  # fmt: skip
_BASE = ("image_url", "wit_features")
_FEATURES = "wit_features"
_BASE_WIDTH = 300


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
  """Which captions are wanted.

  Attributes:
    captions: keys of CAPTIONS; the first one that a use has is taken.
    main_images_only: leave out what a page shows further down.
    rules: of text and size.
  """

  captions: tuple[str, ...] = tuple(wit_captions.CAPTIONS)
  main_images_only: bool = False
  rules: filters.Rules = dataclasses.field(default_factory=filters.Rules)


def open_wit(
  path: str,
  *,
  images: str = "",
  captions: str = "reference,alt_text,attribution",
  main_images_only: bool = False,
  min_side: int = 100,
  max_aspect: float = 3.0,
  validation_share: float = 0.01,
) -> catalogue.TableSupply:
  """Opens WiT, whichever publication of it lies there; see supplies.Supply.

  Args:
    path: wit_base's parquet, google/wit's TSV, or TFDS's records.
    images: of google/wit: what `byt5-diffusion download` made of its TSV.
    captions: which of a page's captions are taken, the first one that is there.
    main_images_only: leave out what a page shows further down.
    min_side, max_aspect: of the picture that is there, in pixels.
    validation_share: of the pictures, by their address.

  Raises:
    ValueError: columns or pictures are missing.
  """
  chosen = tuple(x for x in captions.split(",") if x)
  if not chosen or set(chosen) - set(wit_captions.CAPTIONS):
    raise ValueError(
      f"{captions=} must be of {', '.join(wit_captions.CAPTIONS)}."
    )
  rules = filters.Rules(min_side=min_side, max_aspect=max_aspect)
  choice = Choice(
    captions=chosen, main_images_only=main_images_only, rules=rules
  )
  reader, table, columns = _reader(path, images, choice)
  return catalogue.TableSupply(
    f"wit:{path}",
    table,
    columns=columns,
    describe=reader.describe,
    make=reader.make,
    version=f"wit 1 {choice} {reader.depends_on}",
    validation_share=validation_share,
  )


def _reader(
  path: str, folder: str, choice: Choice
) -> tuple["_Reader", tables.Table, tuple[str, ...]]:
  table = tables.open_table(path)
  columns = fetched.columns_of(table)
  if _FEATURES in columns:
    wanted = [*_BASE, "image"]
    _check_columns(path, columns, wanted)
    sizes = [x for x in ("original_height", "original_width") if x in columns]
    attribution = [
      x for x in (wit_captions.CAPTIONS["attribution"],) if x in columns
    ]
    scanned = (*_BASE, *sizes, *attribution)
    table = tables.open_table(path, columns=(*scanned, "image"))
    return _Base(choice), table, scanned
  _check_columns(path, columns, _READ)
  if "image" in columns:
    # A missing picture is a picture of one pixel, so descriptions look at it.
    return _Kaggle(choice), table, (*_READ, "image")
  if not folder:
    raise ValueError(
      f"{path} has addresses and no pictures. Fetch them: `byt5-diffusion "
      f"download {path} --output_dir FOLDER`, then name wit:{path}@...+images="
      "FOLDER"
    )
  _check_booleans(path, table)
  addresses = image_addresses.ImageAddresses(folder)
  return _Addresses(choice, addresses), table, _READ


def _check_columns(path: str, columns: set[str], wanted: Sequence[str]) -> None:
  absent = [name for name in wanted if name not in columns]
  if absent:
    raise ValueError(
      f"{path} has no column {', '.join(absent)}; it has "
      f"{', '.join(sorted(columns))}. WiT is wikimedia/wit_base (parquet), "
      "google/wit (TSV) or TFDS's wit_kaggle."
    )


def _check_booleans(path: str, table: tables.Table) -> None:
  """Raises ValueError for numbers, which only a wrong converter writes."""
  for _, row in table.scan(("is_main_image",)):
    if isinstance(row, dict):
      if type(row.get("is_main_image")) is int:
        raise ValueError(
          f"{path}: these are records of TFDS's wit, whose booleans are wrong "
          '("false" was taken for true). Read google/wit\'s own TSV.'
        )
      return


class _Reader:
  """row -> entries, (row, part) -> example; what all publications share.

  Attributes:
    depends_on: of what the entries depend on besides the row.
  """

  depends_on = ""

  def __init__(self, choice: Choice):
    self.choice = choice

  def uses(self, row: Mapping[str, Any]) -> Iterator[wit_captions.Use]:
    """The pages that show a row's picture."""
    raise NotImplementedError

  def picture(self, row: Mapping[str, Any], name: str) -> bytes:
    """The row's picture. images.BadImage: there is none."""
    raise NotImplementedError

  def size(self, row: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """(width, height) of the picture that is there, as far as known."""
    return _original_size(row)

  def describe(self, row: Mapping[str, Any]) -> list[catalogue.Entry]:
    """The captions of a row that are wanted.

    Raises:
      filters.Filtered: none is; the reason is of the last one.
      images.BadImage: it is no row of WiT.
    """
    url = _address(row)
    width, height = self.size(row)
    self.choice.rules.check(width=width, height=height)
    found, seen = [], set()
    reason = filters.Filtered("no caption")
    for use in self.uses(row):
      try:
        text = self._wanted(use)
      except filters.Filtered as error:
        reason = error
        continue
      # Several pages of one language may say the same.
      if (use.language, text) not in seen:
        seen.add((use.language, text))
        code = languages.code(use.language)
        found.append(catalogue.Entry(f"wit/{url}", use.part, code))
    if not found:
      raise reason
    return found

  def _wanted(self, use: wit_captions.Use) -> str:
    if self.choice.main_images_only and not use.is_main:
      raise filters.Filtered("not the page's main picture")
    text = wit_captions.caption_of(use, self.choice.captions)
    if not text:
      raise filters.Filtered("no caption")
    self.choice.rules.check(text, language=languages.code(use.language))
    return text

  def make(self, row: Mapping[str, Any], part: int) -> annotated.Annotated:
    """The example of a row's part. images.BadImage: there is none."""
    url = _address(row)
    use = next((x for x in self.uses(row) if x.part == part), None)
    if use is None:
      raise images.BadImage(url, f"no part {part}")
    return annotated.Annotated(
      key=f"wit/{url} {use.language} {use.page_url}",
      image=self.picture(row, url),
      text=wit_captions.caption_of(use, self.choice.captions),
      language=languages.code(use.language),
    )


class _Base(_Reader):
  """wikimedia/wit_base: lists over pages, and the picture's bytes."""

  def uses(self, row: Mapping[str, Any]) -> Iterator[wit_captions.Use]:
    attribution = row.get(wit_captions.CAPTIONS["attribution"])
    for part, page in enumerate(_pages(row.get(_FEATURES), _address(row))):
      # The attribution is the picture's, and may be in any language.
      yield wit_captions.use_of(
        part, {wit_captions.CAPTIONS["attribution"]: attribution, **page}
      )

  def picture(self, row: Mapping[str, Any], name: str) -> bytes:
    held = row.get("image")
    raw = held.get("bytes") if isinstance(held, dict) else held
    if not isinstance(raw, bytes) or not raw:
      raise images.BadImage(name, "no picture")
    return raw

  def size(self, row: Mapping[str, Any]) -> tuple[int | None, int | None]:
    width, height = _original_size(row)
    if not width or not height:
      return None, None
    scale = min(1.0, _BASE_WIDTH / width)
    return round(width * scale), max(1, round(height * scale))


class _Flat(_Reader):
  """One use in a row, by google/wit's columns."""

  def uses(self, row: Mapping[str, Any]) -> Iterator[wit_captions.Use]:
    yield wit_captions.use_of(0, row)


class _Kaggle(_Flat):
  """TFDS's wit_kaggle: the picture, or one white pixel, in the row."""

  def describe(self, row: Mapping[str, Any]) -> list[catalogue.Entry]:
    if is_placeholder(row.get("image")):
      raise filters.Filtered("no picture")
    return super().describe(row)

  def picture(self, row: Mapping[str, Any], name: str) -> bytes:
    raw = row.get("image")
    if not isinstance(raw, bytes) or is_placeholder(raw):
      raise images.BadImage(name, "no picture")
    return raw


class _Addresses(_Flat):
  """google/wit's TSV, and pictures that were fetched."""

  def __init__(self, choice: Choice, addresses: image_addresses.ImageAddresses):
    super().__init__(choice)
    self._addresses = addresses
    self.depends_on = addresses.fingerprint

  def describe(self, row: Mapping[str, Any]) -> list[catalogue.Entry]:
    if _address(row) not in self._addresses:
      raise filters.Filtered("not downloaded")
    return super().describe(row)

  def picture(self, row: Mapping[str, Any], name: str) -> bytes:
    return self._addresses.picture(_address(row))


def is_placeholder(raw: Any) -> bool:
  """Whether a PNG is one pixel, which stands for no picture."""
  return (
    not isinstance(raw, bytes)
    or not raw
    or (raw[:8] == b"\x89PNG\r\n\x1a\n" and raw[16:24] == b"\0\0\0\1" * 2)
  )


def _address(row: Mapping[str, Any]) -> str:
  url = wit_captions.string(row.get("image_url"))
  if not url:
    raise images.BadImage("a row", "no image_url")
  return url


def _original_size(
  row: Mapping[str, Any],
) -> tuple[int | None, int | None]:
  return _integer(row.get("original_width")), _integer(
    row.get("original_height")
  )


def _pages(held: Any, name: str) -> list[Mapping[str, Any]]:
  """A struct of parallel lists as a list of structs; nulls stay in place."""
  if isinstance(held, list):  # Other writers of parquet turn them over.
    return [page for page in held if isinstance(page, dict)]
  if not isinstance(held, dict) or not isinstance(held.get("language"), list):
    raise images.BadImage(name, "wit_features of another form")
  count = len(held["language"])
  lists = {
    k: v for k, v in held.items() if isinstance(v, list) and len(v) == count
  }
  if len(lists) < sum(v is not None for v in held.values()):
    raise images.BadImage(name, "lists of different lengths")
  return [{k: v[i] for k, v in lists.items()} for i in range(count)]


def _integer(value: Any) -> int | None:
  if isinstance(value, (str, bytes)):
    text = wit_captions.string(value)
    return int(text) if text.isdecimal() and len(text) < 10 else None
  number = fetched.number(value)
  return round(number) if number else None
