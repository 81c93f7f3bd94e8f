"""Writers of small files in all formats that tables read."""

import csv
import gzip
import io
import json
import tarfile

import pytest

from byt5_diffusion.data import images
from byt5_diffusion.data.rows import (
  crc32c,
  tf_example,
)


def write_parquet(path, rows) -> None:
  """Row groups of seven."""
  import pyarrow
  import pyarrow.parquet

  columns = {key: [row[key] for row in rows] for key in rows[0]}
  table = pyarrow.table(columns)
  pyarrow.parquet.write_table(table, path, row_group_size=7)


def write_tar(path, rows) -> None:
  """As webdataset has it."""
  with tarfile.open(path, "w") as file:
    for row in rows:
      for extension in [key for key in row if key != "__key__"]:
        member = tarfile.TarInfo(f"{row['__key__']}.{extension}")
        member.size = len(row[extension])
        file.addfile(member, io.BytesIO(row[extension]))


def write_tfrecord(path, rows) -> None:
  """tf.train.Examples."""
  with open(path, "wb") as file:
    for row in rows:
      raw = tf_example.encode(row)
      size = len(raw).to_bytes(8, "little")
      for part in (size, raw):
        file.write(part + crc32c.masked(part).to_bytes(4, "little"))


def write_array_record(path, rows) -> None:
  """tf.train.Examples."""
  from array_record.python import array_record_module

  writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
  for row in rows:
    writer.write(tf_example.encode(row))
  writer.close()


def _opened(path):
  opener = gzip.open if str(path).endswith(".gz") else open
  return opener(path, "wt", encoding="utf-8", newline="")


def write_jsonl(path, rows) -> None:
  """An object per line."""
  with _opened(path) as file:
    for row in rows:
      file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _write_fields(path, rows, delimiter) -> None:
  with _opened(path) as file:
    writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)


def write_tsv(path, rows) -> None:
  """Between tabs."""
  _write_fields(path, rows, "\t")


def write_csv(path, rows) -> None:
  """Between commas."""
  _write_fields(path, rows, ",")


WRITERS = {
  "parquet": write_parquet,
  "tar": write_tar,
  "tfrecord": write_tfrecord,
  "array_record": write_array_record,
  "jsonl": write_jsonl,
  "tsv": write_tsv,
  "csv": write_csv,
  "jsonl.gz": write_jsonl,
  "tsv.gz": write_tsv,
  "csv.gz": write_csv,
}
BINARY = ("parquet", "tar", "tfrecord", "array_record")


ROWS = [
  {
    "__key__": f"{i:03d}",
    "jpg": bytes([i]) * (i + 1),
    "txt": f"né {i}".encode(),
  }
  for i in range(20)
]
TEXTS = [{"id": str(i), "text": f'né "{i}"\n\tx, y'} for i in range(20)]


def write(kind, path, rows=None) -> list[dict]:
  """Writes a file; what its rows are when they come back."""
  if rows is None:
    rows = ROWS if kind in BINARY else TEXTS
  WRITERS[kind](path, rows)
  if kind in ("tfrecord", "array_record"):  # They know bytes alone.
    rows = [row | {"__key__": row["__key__"].encode()} for row in rows]
  return rows


def problems(table, columns=()) -> dict[int, tuple[str, str]]:
  """{row: (name, reason)} of the broken ones, by reading and by scanning."""
  found = {}
  for row, value in table.scan(columns or table.columns):
    if isinstance(value, images.BadImage):
      found[row] = (value.file, value.reason)
      with pytest.raises(images.BadImage) as caught:
        table.read(row)
      assert (caught.value.file, caught.value.reason) == found[row]
    else:
      table.read(row)
  return found
