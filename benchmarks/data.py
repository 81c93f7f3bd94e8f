"""Examples per second of one core's CPU time, ours beside other roads.

  python benchmarks/data.py               everything
  python benchmarks/data.py pictures      pictures and captions out of a tar
  python benchmarks/data.py pipeline      batches of a task, all included
  python benchmarks/data.py made          drawn words, pages, SVG

Pictures: made-up photographs of --width x --height (1024 x 768), JPEG quality
90, some 250 KiB each, with a caption; they become 256 x 256 (short side 256,
its centre) and bytes of text. Every road reads its own form of the same data
from the disk, on one core; rounds alternate, and a ratio is the median over the
rounds. What is not installed is named and left out.
"""

import argparse
import io
import os
import pathlib
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import data_peers
import fidelity
import numpy as np

SIDE, LENGTH = data_peers.SIDE, data_peers.LENGTH

CAPTION = (
  "A made-up picture of nothing at all, number {}: größer, больше, 大きい"
)


def cpu_seconds() -> float:
  """CPU time of this process and of all that it has started, and they."""
  parents, ticks = {}, {}
  for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
    try:
      fields = stat.read_text().rpartition(")")[2].split()
    except OSError:  # It has ended.
      continue
    parents[stat.parent.name] = fields[1]
    # Its own, and of its children that have ended.
    ticks[stat.parent.name] = sum(int(field) for field in fields[11:15])
  family = {str(os.getpid())}
  while more := {k for k, v in parents.items() if v in family} - family:
    family |= more
  total = sum(ticks[pid] for pid in family)
  return total / os.sysconf("SC_CLK_TCK")


# -- Pictures ----------------------------------------------------------------


def write(folder: pathlib.Path, count: int, height: int, width: int) -> None:
  """A tar, a TFRecord file and a parquet file of the same pictures."""
  from byt5_diffusion.data.rows import (
    crc32c,
    tf_example,
  )

  rng = np.random.default_rng(0)
  rows = [
    {
      "jpg": fidelity.as_jpeg(fidelity.photograph(rng, height, width)),
      "txt": CAPTION.format(i).encode(),
    }
    for i in range(count)
  ]
  with tarfile.open(folder / "0.tar", "w") as tar:
    for i, row in enumerate(rows):
      for extension, data in row.items():
        member = tarfile.TarInfo(f"{i:05d}.{extension}")
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
  with open(folder / "0.tfrecord", "wb") as file:
    for row in rows:
      raw = tf_example.encode(row)
      for part in (len(raw).to_bytes(8, "little"), raw):
        file.write(part + crc32c.masked(part).to_bytes(4, "little"))
  try:
    import pyarrow
    import pyarrow.parquet
  except ImportError as error:
    print(error)
  else:
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, folder / "0.parquet")
  size = sum(len(row["jpg"]) for row in rows) / count / 1024
  print(f"{count} pictures of {width} x {height}, {size:.0f} KiB each")


def open_numbered(path: str) -> Any:
  """A supply of the tar's pictures and captions."""
  from byt5_diffusion.data import annotated
  from byt5_diffusion.data.rows import (
    catalogue,
    tables,
  )

  def make(row: dict[str, Any], part: int) -> annotated.Annotated:
    del part
    caption = row["txt"].decode()
    return annotated.Annotated(key=caption, image=row["jpg"], text=caption)

  return catalogue.TableSupply(
    f"benchmark {path}",
    tables.open_table(path, columns=("jpg", "txt")),
    columns=("txt",),
    describe=lambda row: [catalogue.Entry(row["txt"].decode(), 0, "en")],
    make=make,
    version="1",
    split="train",
  )


def ours(folder: pathlib.Path, resize: str) -> data_peers.Road:
  """What a task does for each of its examples."""
  from byt5_diffusion.data import pictures, supplies

  frame = pictures.Frame(height=SIDE, width=SIDE, fit="crop", resize=resize)
  supply = open_numbered(str(folder / "0.tar"))
  maker = supplies.Maker(supply=supply, picture=frame)

  def road(passes: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for i in range(passes * supply.sizes["train"]):
      place = i % supply.sizes["train"]
      made = maker.make("train", place, 0, {"text_tokens": LENGTH})
      assert made is not None
      yield made["image"], made["text_tokens"]

  return road


def roads(folder: pathlib.Path, short: int) -> dict[str, data_peers.Road]:
  """All that can be had here, by name; the first is what they are held to."""
  makers: dict[str, Callable[[], data_peers.Road]] = {
    "webdataset + Pillow, lanczos": lambda: data_peers.webdataset_road(folder),
    "tarfile + Pillow, lanczos": lambda: data_peers.pillow_road(folder),
    "parquet + Pillow, lanczos": lambda: data_peers.parquet_road(folder),
    **{
      f"ours, resize={way}": lambda way=way: ours(folder, way)
      for way in ("lanczos", "area", "scaled")
    },
    **{
      f"tf.data, {form}": lambda form=form: data_peers.tf_road(
        folder, form, short
      )
      for form in data_peers.TF_FORMS
    },
  }
  found = {}
  for name, make in makers.items():
    try:
      found[name] = make()
    except ImportError as error:
      print(f"{name}: {error}")
  return found


def rates(
  found: dict[str, data_peers.Road], rounds: int, passes: int
) -> dict[str, list[float]]:
  """Seconds of CPU time per example, round by round."""
  seconds: dict[str, list[float]] = {name: [] for name in found}
  for number in range(rounds + 1):
    for name, road in found.items():
      start, count = time.process_time(), 0
      for image, text in road(passes):
        assert image.shape == (SIDE, SIDE, 3) and text[-1] == 1
        count += 1
      if number:  # The first pass compiles and fills caches.
        seconds[name].append((time.process_time() - start) / count)
  return seconds


def pictures(args: argparse.Namespace) -> None:
  """Rates of all roads, and how each compares with the first."""
  with tempfile.TemporaryDirectory() as folder:
    write(pathlib.Path(folder), args.pictures, args.height, args.width)
    short = min(args.height, args.width)
    found = roads(pathlib.Path(folder), short)
    seconds = rates(found, args.rounds, args.passes)
  first = next(iter(seconds.values()))
  best = min(
    (values for name, values in seconds.items() if "tf.data" in name),
    key=statistics.median,
    default=None,
  )
  print(f"{'':38s} /s per core  times the first  times the best tf.data")
  for name, values in seconds.items():
    line = f"{name:38s} {1 / statistics.median(values):11.1f}"
    for other in (first, best):
      if other is not None:
        ratios = [b / a for a, b in zip(values, other, strict=True)]
        line += f"  {statistics.median(ratios):5.2f}"
        line += f" ({min(ratios):.2f} to {max(ratios):.2f})"
    print(line)


# -- The whole pipeline, and drawing -----------------------------------------


def register(name: str) -> str:
  """Adds the tar's task: pipeline.open_data calls it."""
  from byt5_diffusion.data import seqio_tasks, supplies

  return seqio_tasks.register({"tar": supplies.Kind(open_numbered)}, name)


def pipeline(args: argparse.Namespace) -> None:
  """Batches of a tar's task as a training program receives them."""
  from byt5_diffusion.data import pipeline as pipeline_lib

  with tempfile.TemporaryDirectory() as folder:
    write(pathlib.Path(folder), args.pictures, args.height, args.width)
    for way in ("lanczos", "area", "scaled"):
      data = pipeline_lib.open_data(
        mixture_or_task_name=f"tar:{folder}/0.tar@{SIDE}x{SIDE}crop"
        f"+resize={way}",
        mixture_or_task_module=__name__,
        task_feature_lengths={
          "image": SIDE,
          "text_tokens": LENGTH,
          "example_id": 2,
        },
        split="train",
        batch_size=16,
      )
      for _ in range(8):
        next(data)
      counts = []
      for _ in range(args.rounds):
        start = time.process_time()
        for _ in range(8):
          next(data)
        counts.append(8 * 16 / (time.process_time() - start))
      data.close()
      rate = statistics.median(counts)
      print(f"pipeline, batches of 16, resize={way:8s} {rate:8.1f} /s per core")


def made(args: argparse.Namespace) -> None:
  """Examples that are drawn, by task; their worker processes count, too."""
  from byt5_diffusion.data import pipeline as pipeline_lib

  tasks: Sequence[tuple[str, str, int]] = (
    ("typography_words_tiny", "typography", 16),
    ("typography_words", "typography", 64),
    ("typography_phrases:built_in@256x256", "typography_phrases", 256),
    ("typography_layout:built_in@768x768", "typography_layout", 768),
    ("typography_svg:built_in@512x512", "typography_svg", 512),
  )
  for name, module, side in tasks:
    batch = 64 if side <= 256 else 4
    try:
      data = pipeline_lib.open_data(
        mixture_or_task_name=name,
        mixture_or_task_module=f"byt5_diffusion.tasks.{module}",
        task_feature_lengths={
          "image": side,
          "text_tokens": 1024,
          "example_id": 2,
        },
        split="train",
        batch_size=batch,
        prefetch=1,
      )
      for _ in range(2):
        next(data)
    except (ImportError, ValueError) as error:
      print(f"{name}: {error}")
      continue
    counts = []
    for _ in range(args.rounds):
      start = cpu_seconds()
      for _ in range(8):
        next(data)
      counts.append(8 * batch / (cpu_seconds() - start))
    data.close()
    print(f"{name:36s} {statistics.median(counts):8.1f} /s per core")


PARTS = {
  "pictures": pictures,
  "pipeline": pipeline,
  "made": made,
}


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("parts", nargs="*", help=", ".join(PARTS))
  parser.add_argument("--pictures", type=int, default=48)
  parser.add_argument("--height", type=int, default=768)
  parser.add_argument("--width", type=int, default=1024)
  parser.add_argument("--passes", type=int, default=3, help="in a round")
  parser.add_argument("--rounds", type=int, default=7)
  parser.add_argument("--core", type=int, default=0, help="the one to run on")
  args = parser.parse_args()
  if unknown := set(args.parts) - set(PARTS):
    parser.error(f"no such part: {', '.join(sorted(unknown))}")
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
  if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {args.core})
  for part in args.parts or PARTS:
    print(f"-- {part}; load {os.getloadavg()[0]:.1f}", flush=True)
    PARTS[part](args)


if __name__ == "__main__":
  main()
