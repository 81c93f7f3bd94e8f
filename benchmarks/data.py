"""Examples per second of one core's CPU time, ours beside other roads.

  python benchmarks/data.py               everything
  python benchmarks/data.py pictures      pictures and captions out of a tar
  python benchmarks/data.py fidelity      how near the ways of resizing are
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

import numpy as np
from PIL import Image

SIDE, LENGTH = 256, 128
CAPTION = (
  "A made-up picture of nothing at all, number {}: größer, больше, 大きい"
)
# The examples of a road, one after the other.
Road = Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]]


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


def photograph(
  rng: np.random.Generator, height: int = 768, width: int = 1024
) -> np.ndarray:
  """Colours whose amplitude falls with frequency as photographs' do."""
  y, x = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
  frequency = np.hypot(y, x)
  frequency[0, 0] = np.inf

  def plane() -> np.ndarray:
    noise = rng.normal(size=frequency.shape) + 1j * rng.normal(
      size=frequency.shape
    )
    values = np.fft.irfft2(noise / frequency**1.33, (height, width))
    return values / values.std()

  light = plane()
  planes = [128 + 45 * (light + 0.35 * plane()) for _ in range(3)]
  return np.clip(np.stack(planes, -1), 0, 255).astype(np.uint8)


def as_jpeg(pixels: np.ndarray, quality: int = 90) -> bytes:
  raw = io.BytesIO()
  Image.fromarray(pixels).save(raw, "JPEG", quality=quality)
  return raw.getvalue()


def write(folder: pathlib.Path, count: int, height: int, width: int) -> None:
  """A tar, a TFRecord file and a parquet file of the same pictures."""
  from byt5_diffusion.data import crc32c, tf_example

  rng = np.random.default_rng(0)
  rows = [
    {
      "jpg": as_jpeg(photograph(rng, height, width)),
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
  size = sum(len(row["jpg"]) for row in rows) / count / 1024
  print(f"{count} pictures of {width} x {height}, {size:.0f} KiB each")


def open_numbered(path: str) -> Any:
  """A supply of the tar's pictures and captions."""
  from byt5_diffusion.data import annotated, catalogue, tables

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


def ours(folder: pathlib.Path, resize: str) -> Road:
  """What a task does for each of its examples."""
  from byt5_diffusion.data import pictures, supplies

  frame = pictures.Frame(height=SIDE, width=SIDE, fit="crop", resize=resize)
  supply = open_numbered(str(folder / "0.tar"))
  maker = supplies.Maker(supply=supply, picture=frame)

  def road() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for i in range(supply.sizes["train"]):
      made = maker.make("train", i, 0, {"text_tokens": LENGTH})
      assert made is not None
      yield made["image"], made["text_tokens"]

  return road


def by_pillow(image: Image.Image) -> np.ndarray:
  """Resizes, then crops, as torchvision does."""
  image = image.convert("RGB")
  scale = SIDE / min(image.size)
  width, height = (round(side * scale) for side in image.size)
  image = image.resize((width, height), Image.Resampling.LANCZOS)
  left, top = (width - SIDE) // 2, (height - SIDE) // 2
  return np.array(image.crop((left, top, left + SIDE, top + SIDE)))


def tokens(raw: bytes) -> np.ndarray:
  return np.append(np.frombuffer(raw[: LENGTH - 1], np.uint8) + 3, 1)


def webdataset_road(folder: pathlib.Path) -> Road:
  """decode("pil"), to_tuple, map_tuple: as its documentation has it."""
  import webdataset

  def road() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    data = webdataset.WebDataset(str(folder / "0.tar"), shardshuffle=False)
    data = data.decode("pil").to_tuple("jpg", "txt")
    yield from data.map_tuple(by_pillow, lambda text: tokens(text.encode()))

  return road


def pillow_road(folder: pathlib.Path) -> Road:
  """Pillow out of the tar, by the standard library; no framework's overhead."""

  def road() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    with tarfile.open(folder / "0.tar") as tar:
      image = None
      for member in tar:
        file = tar.extractfile(member)
        assert file is not None
        if member.name.endswith("jpg"):
          image = by_pillow(Image.open(file))
        else:
          assert image is not None
          yield image, tokens(file.read())

  return road


# Name -> (ratio, method, antialias, fast transform and chroma).
TF_FORMS = {
  "lanczos3": (1, "lanczos3", True, False),
  "bilinear": (1, "bilinear", True, False),
  "area": (1, "area", False, False),
  "area, cropped while decoding": (0, "area", False, False),
  "half, lanczos3": (2, "lanczos3", True, True),
  "half, bilinear": (2, "bilinear", True, True),
  "half, area": (2, "area", False, True),
  "half, bilinear, aliased": (2, "bilinear", False, True),
}


def tf_road(folder: pathlib.Path, form: str) -> Road:
  """tf.data with one thread."""
  import tensorflow as tf

  ratio, method, antialias, fast = TF_FORMS[form]
  options = {"channels": 3}
  if fast:
    options |= {"dct_method": "INTEGER_FAST", "fancy_upscaling": False}

  def decode(raw: tf.Tensor) -> tf.Tensor:
    if ratio:
      image = tf.io.decode_jpeg(raw, ratio=ratio, **options)
      size = tf.shape(image)
    else:
      size = tf.io.extract_jpeg_shape(raw)
    short = tf.minimum(size[0], size[1])
    top, left = (size[0] - short) // 2, (size[1] - short) // 2
    if not ratio:
      return tf.io.decode_and_crop_jpeg(
        raw, [top, left, short, short], **options
      )
    return image[top : top + short, left : left + short]

  def make(raw: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    names = {
      key: tf.io.FixedLenFeature([], tf.string) for key in ("jpg", "txt")
    }
    row = tf.io.parse_single_example(raw, names)
    image = decode(row["jpg"])
    image = tf.image.resize(image, (SIDE, SIDE), method, antialias=antialias)
    image = tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)
    text = tf.cast(tf.io.decode_raw(row["txt"], tf.uint8), tf.int32) + 3
    return image, tf.concat([text[: LENGTH - 1], [1]], 0)

  def road() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    data = tf.data.TFRecordDataset(str(folder / "0.tfrecord")).map(make)
    threads = tf.data.Options()
    threads.threading.private_threadpool_size = 1
    threads.threading.max_intra_op_parallelism = 1
    yield from data.with_options(threads).as_numpy_iterator()

  return road


def roads(folder: pathlib.Path) -> dict[str, Road]:
  """All that can be had here, by name; the first is what they are held to."""
  makers: dict[str, Callable[[], Road]] = {
    "webdataset + Pillow, lanczos": lambda: webdataset_road(folder),
    "tarfile + Pillow, lanczos": lambda: pillow_road(folder),
    **{
      f"ours, resize={way}": lambda way=way: ours(folder, way)
      for way in ("lanczos", "area", "scaled")
    },
    **{
      f"tf.data, {form}": lambda form=form: tf_road(folder, form)
      for form in TF_FORMS
    },
  }
  found = {}
  for name, make in makers.items():
    try:
      found[name] = make()
    except ImportError as error:
      print(f"{name}: {error}")
  return found


def rates(found: dict[str, Road], rounds: int) -> dict[str, list[float]]:
  """Seconds of CPU time per example, round by round."""
  seconds: dict[str, list[float]] = {name: [] for name in found}
  for number in range(rounds + 1):
    for name, road in found.items():
      start, count = time.process_time(), 0
      for image, text in road():
        assert image.shape == (SIDE, SIDE, 3) and text[-1] == 1
        count += 1
      if number:  # The first pass compiles and fills caches.
        seconds[name].append((time.process_time() - start) / count)
  return seconds


def pictures(args: argparse.Namespace) -> None:
  """Rates of all roads, and how each compares with the first."""
  with tempfile.TemporaryDirectory() as folder:
    write(pathlib.Path(folder), args.pictures, args.height, args.width)
    seconds = rates(roads(pathlib.Path(folder)), args.rounds)
  first = next(iter(seconds.values()))
  best = min(
    (values for name, values in seconds.items() if "tf.data" in name),
    key=statistics.median,
    default=None,
  )
  print(f"{'':32s} /s per core  times the first  times the best tf.data")
  for name, values in seconds.items():
    line = f"{name:32s} {1 / statistics.median(values):11.1f}"
    for other in (first, best):
      if other is not None:
        ratios = [b / a for a, b in zip(values, other, strict=True)]
        line += f"  {statistics.median(ratios):5.2f}"
        line += f" ({min(ratios):.2f} to {max(ratios):.2f})"
    print(line)


# -- Fidelity ----------------------------------------------------------------


def page(rng: np.random.Generator, size: int, height: int = 1536) -> np.ndarray:
  """White paper full of words of many scripts, `size` pixels high."""
  from byt5_diffusion.data import fonts, typography, words

  source = words.Words(only_scripts=fonts.available_scripts())
  renderer = typography.Renderer(height=2 * size, width=8 * size)
  paper = np.full((height, height * 4 // 3, 3), 255, np.uint8)
  index = int(rng.integers(1000))
  for top in range(0, height - 2 * size + 1, 2 * size):
    for left in range(0, paper.shape[1] - 8 * size + 1, 8 * size):
      word = words.string_at(source, "train", 0, index)
      picture = renderer.render(word.text, word.script)
      paper[top : top + 2 * size, left : left + 8 * size] = picture
      index += 1
  return paper


def sign(rng: np.random.Generator) -> np.ndarray:
  """Words over a photograph."""
  photo, words = photograph(rng, 1536, 2048), page(rng, 64)
  return np.where(words > 128, photo, words)


def flat(rng: np.random.Generator) -> np.ndarray:
  """Rectangles of plain colours."""
  picture = np.zeros((1536, 2048, 3), np.uint8)
  for _ in range(60):
    y, x = rng.integers(0, 1400), rng.integers(0, 1900)
    picture[y : y + 300, x : x + 300] = rng.integers(0, 256, 3)
  return picture


def lines(rng: np.random.Generator) -> np.ndarray:
  """A zone plate: every frequency in every direction; the worst there is."""
  del rng
  y, x = np.mgrid[-768:768, -1024:1024] / 768
  wave = 127.5 + 127.5 * np.cos(np.pi * 768 / 2 * (x**2 + y**2))
  return np.repeat(wave.astype(np.uint8)[..., None], 3, -1)


def likeness(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
  """PSNR in dB, and mean SSIM of the luma (Wang et al. 2004, sigma 1.5)."""
  from scipy import ndimage

  error = np.mean((a.astype(float) - b) ** 2)
  psnr = 10 * np.log10(255**2 / max(error, 1e-9))
  x, y = (picture @ np.array([0.299, 0.587, 0.114]) for picture in (a, b))

  def mean(values: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_filter(values, 1.5)

  mx, my = mean(x), mean(y)
  xx, yy, xy = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
  c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
  ssim = (2 * mx * my + c1) * (2 * xy + c2)
  ssim /= (mx**2 + my**2 + c1) * (xx + yy + c2)
  return float(psnr), float(ssim.mean())


def fidelity(args: argparse.Namespace) -> None:
  """PSNR and SSIM against Lanczos' filter over all pixels of the same JPEG."""
  from byt5_diffusion.data import pictures as pictures_lib

  del args
  rng = np.random.default_rng(1)
  kinds = {
    "photograph": photograph(rng, 1536, 2048),
    "page, words of 96 pixels": page(rng, 96),
    "page, words of 48 pixels": page(rng, 48),
    "words over a photograph": sign(rng),
    "flat colours": flat(rng),
    "zone plate": lines(rng),
  }
  print("2048 x 1536, JPEG quality 90; PSNR in dB / SSIM against lanczos")
  for side in (256, 512, 640, 1024):
    for kind, pixels in kinds.items():
      raw, line = as_jpeg(pixels), f"{kind:26s} -> {side:4d}"
      exact = None
      for way in ("lanczos", "area", "scaled"):
        frame = pictures_lib.Frame(
          height=side, width=side, fit="crop", resize=way
        )
        made = frame.make(pictures_lib.decode(raw, frame, kind))
        if exact is None:
          exact = made
          continue
        psnr, ssim = likeness(made, exact)
        line += f"  {way} {psnr:5.1f} / {ssim:.4f}"
      print(line, flush=True)


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
  "fidelity": fidelity,
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
