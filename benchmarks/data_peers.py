"""What data.py compares with: webdataset, parquet and tf.data, from the disk.

Every road reads its own form of the same pictures (data.write), and gives them
as 256 x 256, with their captions' bytes as tokens.
"""

import io
import pathlib
import tarfile
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

SIDE, LENGTH = 256, 128
# The examples of a road, one after the other, so many times.
Road = Callable[[int], Iterator[tuple[np.ndarray, np.ndarray]]]


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

  def road(passes: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    data = webdataset.WebDataset(str(folder / "0.tar"), shardshuffle=False)
    data = data.decode("pil").to_tuple("jpg", "txt")
    data = data.map_tuple(by_pillow, lambda text: tokens(text.encode()))
    for _ in range(passes):
      yield from data

  return road


def pillow_road(folder: pathlib.Path) -> Road:
  """Pillow out of the tar, by the standard library; no framework's overhead."""

  def one_pass() -> Iterator[tuple[np.ndarray, np.ndarray]]:
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

  return lambda passes: (x for _ in range(passes) for x in one_pass())


def parquet_road(folder: pathlib.Path) -> Road:
  """Pillow out of parquet: what Hugging Face's datasets does."""
  import pyarrow.parquet

  def one_pass() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    file = pyarrow.parquet.ParquetFile(folder / "0.parquet")
    for batch in file.iter_batches(16):
      for row in batch.to_pylist():
        image = Image.open(io.BytesIO(row["jpg"]))
        yield by_pillow(image), tokens(row["txt"])

  return lambda passes: (x for _ in range(passes) for x in one_pass())


# Name -> (how it decodes, method, antialias). "fraction": as "scaled" does it,
# by its fast transform and without smooth chroma.
TF_FORMS = {
  "lanczos3": ("whole", "lanczos3", True),
  "bilinear": ("whole", "bilinear", True),
  "area": ("whole", "area", False),
  "area, cropped while decoding": ("crop", "area", False),
  "fraction, lanczos3": ("fraction", "lanczos3", True),
  "fraction, bilinear": ("fraction", "bilinear", True),
  "fraction, area": ("fraction", "area", False),
  "fraction, bilinear, aliased": ("fraction", "bilinear", False),
}


def tf_road(folder: pathlib.Path, form: str, short: int) -> Road:
  """tf.data with one thread, of pictures whose shorter side is `short`."""
  import tensorflow as tf

  how, method, antialias = TF_FORMS[form]
  options = {"channels": 3}
  if how == "fraction":
    options |= {
      "ratio": max(n for n in (1, 2, 4, 8) if short // n >= SIDE),
      "dct_method": "INTEGER_FAST",
      "fancy_upscaling": False,
    }

  def decode(raw: tf.Tensor) -> tf.Tensor:
    if how != "crop":
      image = tf.io.decode_jpeg(raw, **options)
      size = tf.shape(image)
    else:
      size = tf.io.extract_jpeg_shape(raw)
    short = tf.minimum(size[0], size[1])
    top, left = (size[0] - short) // 2, (size[1] - short) // 2
    if how == "crop":
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

  # Built once: compiling is not what is measured.
  data = tf.data.TFRecordDataset(str(folder / "0.tfrecord")).map(make)
  threads = tf.data.Options()
  threads.threading.private_threadpool_size = 1
  threads.threading.max_intra_op_parallelism = 1
  data = data.with_options(threads)
  return lambda passes: iter(data.repeat(passes).as_numpy_iterator())
