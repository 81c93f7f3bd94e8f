"""Pictures that were fetched from addresses: what img2dataset writes.

  format      a picture            what is known of it
  webdataset  .jpg in 00000.tar    .json beside it, the caption in .txt, too
  parquet     the column "jpg"     the other columns
  tfrecord    the feature "jpg"    the other features, "" for none

(or "png", "webp", by what it was told to write). Known are the columns of the
list that were kept, and its own: url, caption, key, status, error_message,
width, height, original_width, original_height, sha256. Only parquet has rows of
pictures that could not be had.
"""

import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from byt5_diffusion.data import (
  filters,
  images,
)
from byt5_diffusion.data.rows import tables

PICTURES = ("jpg", "png", "webp", "jpeg")
_STATS = "_stats.json"
_MAX_METADATA = 2**20  # Bytes of one picture's.
_MAX_TEXT = 2**20


def open_table(
  path: str, wanted: Iterable[str], data_set: str
) -> tables.Shards:
  """The rows of img2dataset's output, without what it has not finished.

  Args:
    path: its folder, or some of its files.
    wanted: columns of the list that the data set cannot do without.
    data_set: its name, for errors.

  Raises:
    ValueError: only addresses are there, or the columns are not.
  """
  table = tables.open_table(complete(path))
  columns = columns_of(table)
  if not columns & {*PICTURES, "json"} and columns & {"URL", "url"}:
    raise ValueError(
      f"{path} has addresses and no pictures. Fetch them: `byt5-diffusion "
      f"download {path} --output_dir FOLDER`, then name {data_set}:FOLDER@..."
    )
  absent = [name for name in wanted if name not in columns]
  if not columns & set(PICTURES):
    absent = [" or ".join(PICTURES)]
  if absent:
    raise ValueError(
      f"{path} has no {', '.join(absent)}: {data_set} wants what "
      "`byt5-diffusion download` writes. It has "
      f"{', '.join(sorted(columns))}."
    )
  return table


def columns_of(table: tables.Table) -> set[str]:
  """Its columns, with what the first good row's JSON or features have."""
  columns = set(table.columns)
  if "json" in columns or not columns:
    for number, row in table.scan(("json",) if columns else ()):
      if not isinstance(row, images.BadImage):
        return columns | set(known(row) if columns else table.read(number))
  return columns


def complete(path: str) -> str:
  """A folder's shards with pictures, as braces, where others are among them.

  img2dataset writes 00000_stats.json when 00000.tar is complete. A shard of
  which no address was good is an empty tar.

  Raises:
    ValueError: no shard has a picture.
  """
  folder = pathlib.Path(path).expanduser()
  if "://" in path or "{" in path or not folder.is_dir():
    return path
  pictures = {
    stats.name.removesuffix(_STATS): _successes(stats)
    for stats in folder.glob(f"*{_STATS}")
  }
  for ending in ("tar", "tfrecord", "parquet"):
    shards = {shard.stem for shard in folder.glob(f"*.{ending}")}
    if not pictures or not shards:
      continue
    kept = sorted(shard for shard in shards if pictures.get(shard))
    if not kept:
      raise ValueError(f"{path}: none of its shards has a picture yet.")
    if len(kept) == len(shards):
      return path
    return os.path.join(path, f"{{{','.join(kept)}}}.{ending}")
  return path


def _successes(stats: pathlib.Path) -> int:
  """Pictures of a shard, as img2dataset has counted them."""
  try:
    return int(json.loads(stats.read_text("utf-8"))["successes"])
  except (OSError, ValueError, KeyError, TypeError):
    return 0


def known(row: Mapping[str, Any]) -> dict[str, Any]:
  """What is known of a picture, by img2dataset's names; not the picture.

  Raises:
    images.BadImage: it is not as img2dataset writes it.
  """
  if "json" not in row:
    return {
      key: _decoded(value) for key, value in row.items() if key not in PICTURES
    }
  raw = row["json"]
  if len(raw) > _MAX_METADATA:
    raise images.BadImage(_name(row), "metadata of more than 1 MiB")
  try:
    found = json.loads(raw.decode("utf-8"))
  except (ValueError, RecursionError):
    raise images.BadImage(_name(row), "metadata that are not JSON") from None
  if not isinstance(found, dict):
    raise images.BadImage(_name(row), "metadata that are no object")
  if found.get("caption") is None and row.get("txt"):
    found["caption"] = _decoded(row["txt"])
  return found


def _decoded(value: Any) -> Any:
  """Bytes (of TFRecords) as a string; "" as None."""
  if isinstance(value, bytes):
    return value[:_MAX_TEXT].decode("utf-8", "replace") or None
  return value


def _name(row: Mapping[str, Any]) -> str:
  return str(row.get("__key__") or row.get("key") or "a row")[:100]


def picture(row: Mapping[str, Any], name: str) -> bytes:
  """The picture's file. images.BadImage: there is none."""
  for key in PICTURES:
    if isinstance(row.get(key), bytes) and row[key]:
      return row[key]
  raise images.BadImage(name, "no picture")


def check_status(found: Mapping[str, Any]) -> None:
  """Raises filters.Filtered for a picture that could not be had."""
  if found.get("status") not in (None, "success"):
    raise filters.Filtered("not downloaded")


def size(found: Mapping[str, Any]) -> tuple[int | None, int | None]:
  """(width, height) of the picture before img2dataset scaled it."""
  for names in (("original_width", "original_height"), ("width", "height")):
    width, height = (number(found.get(name)) for name in names)
    if width and height:
      return round(width), round(height)
  return None, None


def text(found: Mapping[str, Any], name: str) -> str:
  """A string; "" where there is none."""
  value = found.get(name)
  return value if isinstance(value, str) else ""


def number(value: Any) -> float | None:
  """A finite number; None for all else, "" and NaN among it."""
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    return None
  return float(value) if math.isfinite(value) else None
