"""Numbered pictures in files of real formats, and their SeqIO task."""

import io

import numpy as np
import table_files
from PIL import Image

from byt5_diffusion.data import (
  annotated,
  pipeline,
  seqio_tasks,
  supplies,
)
from byt5_diffusion.data.rows import (
  catalogue,
  tables,
)

LENGTHS = {"image": 4, "text_tokens": 16, "example_id": 2}


def _picture(number: int) -> bytes:
  raw = io.BytesIO()
  Image.new("RGB", (4, 4), (number, 0, 0)).save(raw, "PNG")
  return raw.getvalue()


def rows(count: int, broken: tuple[int, ...] = ()) -> list[dict]:
  """Numbered rows of a picture and its caption; some pictures are none."""
  return [
    {
      "__key__": f"{i:05d}",
      "png": b"none" if i in broken else _picture(i),
      "txt": f"number {i}".encode(),
    }
    for i in range(count)
  ]


def write(kind: str, folder, count: int, broken: tuple[int, ...] = ()) -> None:
  """Three files of a format with `count` rows together."""
  for i, part in enumerate(np.array_split(rows(count, broken), 3)):
    table_files.WRITERS[kind](folder / f"{i:05d}.{kind}", list(part))


def _describe(row):
  return [catalogue.Entry(row["txt"].decode(), language="en")]


def _make(row, part):
  del part
  text = row["txt"].decode()
  return annotated.Annotated(key=text, image=row["png"], text=text)


def _open(path: str) -> catalogue.TableSupply:
  return catalogue.TableSupply(
    f"numbered {path}",
    tables.open_table(path, columns=("png", "txt")),
    columns=("txt",),
    describe=_describe,
    make=_make,
    version="1",
    split="train",
  )


TABLE = {"numbered": supplies.Kind(_open)}


def register(name: str) -> str:
  """As the modules of tasks/ do it."""
  return seqio_tasks.register(TABLE, name)


def open_data(folder, **options) -> pipeline.Batches:
  """The batches of a folder that `write` has written."""
  return pipeline.open_data(
    mixture_or_task_name=f"numbered:{folder}@4x4",
    mixture_or_task_module="table_task",
    task_feature_lengths=LENGTHS,
    split="train",
    **options,
  )


def ids(batch) -> np.ndarray:
  """The numbers of a batch's pictures: their red."""
  return np.round((batch["images"][:, 0, 0, 0] + 1) * 127.5).astype(int)
