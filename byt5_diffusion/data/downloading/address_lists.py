"""Lists of addresses whose pictures are to be fetched (downloads.py).

A list is any table; what is tried of it is written to <folder>/.urls, where
http and https alone come, each address with the columns that are kept.
"""

import collections
import contextlib
import dataclasses
import itertools
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tqdm

from byt5_diffusion.data import images
from byt5_diffusion.data.downloading import public_addresses
from byt5_diffusion.data.rows import tables

FORMATS = ("webdataset", "parquet", "tfrecord")
URLS, _UNFINISHED, _SETTINGS = ".urls", ".urls.partial", "settings.json"
_URL_COLUMNS = ("URL", "url", "image_url")
_CAPTION_COLUMNS = ("TEXT", "caption", "text")
# Names that img2dataset keeps for itself.
_TAKEN = frozenset({
  "key", "caption", "url", "width", "height", "original_width",
  "original_height", "status", "error_message", "exif", "md5", "sha256",
  "sha512",
})  # fmt: skip
_ROWS_AT_ONCE = 50_000
_ROWS_OF_A_FILE = 1_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """What is fetched, and how it is kept. A folder has one of them for good.

  Attributes:
    url_column, caption_column: of the list; None: found by its usual name.
    columns: further ones that are kept; None: all of them, none of WiT's.
    output_format: one of FORMATS.
    image_size: longer shorter sides are scaled down to it; 0: nothing is.
    samples_per_shard: addresses of a shard.
  """

  url_column: str | None = None
  caption_column: str | None = None
  columns: tuple[str, ...] | None = None
  output_format: str = "webdataset"
  image_size: int = 1024
  samples_per_shard: int = 10_000

  def __post_init__(self) -> None:
    if self.output_format not in FORMATS:
      raise ValueError(
        f"output_format={self.output_format!r} must be one of {FORMATS}."
      )
    if self.samples_per_shard < 2 or self.image_size < 0:
      raise ValueError("samples_per_shard and image_size must be larger.")

  def of_table(self, name: str, columns: Sequence[str]) -> "Settings":
    """With the columns that a list really has.

    Raises:
      ValueError: it lacks one.
    """
    url = self.url_column or _first(_URL_COLUMNS, columns)
    if url is None:
      raise ValueError(
        f"{name} has no column of addresses that is called "
        f"{' or '.join(_URL_COLUMNS)}; it has {', '.join(columns)}. Name it: "
        "--url_column."
      )
    # WiT's list has a row for each language; its captions are read from there.
    wit = url == "image_url" and self.columns is None
    usual = None if wit else _first(_CAPTION_COLUMNS, columns)
    caption = self.caption_column or usual
    others = self.columns
    if others is None:
      others = () if wit else tuple(columns)
      others = tuple(c for c in others if c not in {url, caption, *_TAKEN})
    absent = [c for c in (url, caption, *others) if c and c not in columns]
    if absent:
      raise ValueError(
        f"{name} has no column {absent[0]!r}; it has {', '.join(columns)}."
      )
    if taken := _TAKEN & set(others):
      raise ValueError(
        f"{name}: img2dataset keeps {sorted(taken)[0]!r} for a column of its "
        "own; leave it out of --columns."
      )
    return dataclasses.replace(
      self, url_column=url, caption_column=caption, columns=others
    )


def write_list(
  table: tables.Table, folder: pathlib.Path, settings: Settings
) -> dict[str, int]:
  """Writes <folder>/.urls, unless it is there: {reason: what is left out}.

  Raises:
    ValueError: the folder has files of somebody else, or other addresses.
  """
  record = {
    **dataclasses.asdict(settings),
    "list": table.fingerprint,
    "version": 1,
  }
  record = json.loads(json.dumps(record))  # Tuples are lists there.
  finished, unfinished = folder / URLS, folder / _UNFINISHED
  for path in (finished, unfinished):
    if (path / _SETTINGS).is_file():
      _check_same(path / _SETTINGS, record)
  if finished.is_dir():
    return json.loads((finished / "left_out.json").read_text("utf-8"))
  if folder.exists() and not (unfinished / _SETTINGS).is_file():
    strangers = sorted(path.name for path in folder.iterdir())
    if strangers:
      raise ValueError(
        f"{folder} has files that no download has made ({strangers[0]}): name "
        "a new folder."
      )
  unfinished.mkdir(parents=True, exist_ok=True)
  (unfinished / _SETTINGS).write_text(json.dumps(record, indent=1), "utf-8")
  left_out = collections.Counter[str]()
  _write_parquet(_wanted(table, settings, left_out), unfinished)
  path = unfinished / "left_out.json"
  path.write_text(json.dumps(left_out, indent=1), "utf-8")
  unfinished.rename(finished)
  return dict(left_out)


def _check_same(path: pathlib.Path, record: Mapping[str, Any]) -> None:
  found = json.loads(path.read_text("utf-8"))
  for key, value in record.items():
    if found.get(key) != value:
      what = "another list" if key == "list" else f"{key}={found.get(key)!r}"
      raise ValueError(
        f"{path.parent.parent} was begun with {what}: go on as it was begun, "
        "or name a new folder."
      )


def _wanted(
  table: tables.Table,
  settings: Settings,
  left_out: collections.Counter[str],
) -> Iterator[dict[str, Any]]:
  """Rows whose addresses are tried; each address once where it stands alone."""
  assert settings.url_column
  others = settings.columns or ()
  columns = [settings.url_column, *others]
  columns += [settings.caption_column] if settings.caption_column else []
  seen: set[int] | None = None if len(columns) > 1 else set()
  rows = tqdm.tqdm(
    table.scan(columns), "listing", len(table), unit="row", disable=None
  )
  for _, row in rows:
    if isinstance(row, images.BadImage):
      left_out[row.reason] += 1
      continue
    url = row.get(settings.url_column)
    fault = public_addresses.url_fault(url)
    if fault is None and seen is not None:
      fault = "seen before" if hash(url) in seen else None
      seen.add(hash(url))
    if fault is not None:
      left_out[fault] += 1
      continue
    listed = {"url": url}
    if settings.caption_column:
      listed["caption"] = row.get(settings.caption_column)
    yield listed | {key: row.get(key) for key in others}


def _write_parquet(
  rows: Iterator[dict[str, Any]], folder: pathlib.Path
) -> None:
  import pyarrow as pa
  import pyarrow.parquet as pq

  schema, count, writer = None, 0, None
  with contextlib.ExitStack() as stack:
    while part := list(itertools.islice(rows, _ROWS_AT_ONCE)):
      made = pa.Table.from_pylist(part, schema=schema)
      if schema is None:
        # Of what is never there, the kind matters to nobody.
        schema = pa.schema(
          pa.field(f.name, pa.string() if pa.types.is_null(f.type) else f.type)
          for f in made.schema
        )
        made = made.cast(schema)
      if writer is None or count % _ROWS_OF_A_FILE == 0:
        path = folder / f"{count // _ROWS_OF_A_FILE:05d}.parquet"
        writer = stack.enter_context(pq.ParquetWriter(path, schema))
      writer.write_table(made)
      count += len(part)
  if not count:
    raise ValueError("the list has no address that could be tried.")


def _first(names: Sequence[str], columns: Sequence[str]) -> str | None:
  return next((name for name in names if name in columns), None)
