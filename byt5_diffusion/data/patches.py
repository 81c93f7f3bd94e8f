"""Pictures of any size as patches: Pix2Struct's variable resolution.

(Lee et al. 2023, section 2.1.) A picture is scaled, up or down, so that as many
patches of p x p pixels as possible fit into max_patches:

  rows    = floor(sqrt(max_patches height / width)), at least 1
  columns = floor(sqrt(max_patches width / height)), at least 1

So its proportions are kept but for the rounding to whole patches, and whatever
they are, rows times columns is at most max_patches. Only a ribbon (one side
more than max_patches times the other) is squeezed, into a single row or column.

byt5_diffusion/patches.py says what a patch is, and cuts images of one size
inside a model. No JAX here.
"""

import math

import numpy as np
from PIL import Image

from byt5_diffusion import feature_converters
from byt5_diffusion.data import images, resizing

# Rows and columns are kept as int16.
MAX_PATCHES = 2**15 - 1
# How much finer than the result a picture is at least brought to by plain
# averages before the filter: it bounds the filter's memory for huge pictures.
_REDUCING_GAP = 3.0


def grid(height: int, width: int, max_patches: int) -> tuple[int, int]:
  """Rows and columns of patches of a picture, as the formulas above say."""
  if not 1 <= max_patches <= MAX_PATCHES:
    raise ValueError(f"{max_patches=} must be in [1, {MAX_PATCHES}].")
  # Whole numbers: floor(sqrt(x)) is isqrt(floor(x)), and nothing is rounded.
  rows = math.isqrt(max_patches * height // width)
  columns = math.isqrt(max_patches * width // height)
  return (
    min(max(rows, 1), max_patches),
    min(max(columns, 1), max_patches),
  )


def sides(
  size: tuple[int, int], patch_size: int, max_patches: int
) -> tuple[int, int]:
  """Height and width to which `scale` brings a picture of `size` (h, w)."""
  rows, columns = grid(size[0], size[1], max_patches)
  return rows * patch_size, columns * patch_size


def scale(
  image: np.ndarray | images.Decoded,
  patch_size: int,
  max_patches: int,
  resize: str = resizing.LANCZOS,
) -> np.ndarray:
  """Brings uint8 [h, w, 3] to the rows and columns of `grid`, in pixels.

  Lanczos' filter, as wide as the scale demands (so fine lines are averaged, not
  skipped), or another of resizing.WAYS. An array that has the size already is
  returned as it is.
  """
  if isinstance(image, np.ndarray):
    size = (image.shape[0], image.shape[1])
    if size == sides(size, patch_size, max_patches):
      return image
    image = images.from_pixels(image)
  height, width = sides(image.size, patch_size, max_patches)
  number = image.denominator
  whole = (0.0, 0.0, image.size[1] / number, image.size[0] / number)
  if resize != resizing.LANCZOS:
    return images.to_pixels(
      resizing.resize(image.image, whole, (width, height), resize)
    )
  resized = image.image.resize(
    (width, height), Image.Resampling.LANCZOS, reducing_gap=_REDUCING_GAP
  )
  return images.to_pixels(resized)


def cut(image: np.ndarray, patch_size: int) -> np.ndarray:
  """uint8 [H, W, 3] -> the task feature "patches": [P, 2 + 3 p^2] int16.

  A row holds its patch's row and column, from 1, then its pixels, 0..255.

  Raises:
    ValueError: the sides are no multiples of patch_size.
  """
  height, width = image.shape[:2]
  if patch_size < 1 or height % patch_size or width % patch_size:
    raise ValueError(
      f"A picture of {height} x {width} pixels is not made of whole patches of "
      f"{patch_size} x {patch_size}."
    )
  rows, columns = height // patch_size, width // patch_size
  pixels = image.reshape(rows, patch_size, columns, patch_size, 3)
  pixels = pixels.transpose(0, 2, 1, 3, 4).reshape(rows * columns, -1)
  places = np.indices((rows, columns)).reshape(2, -1).T + 1
  return np.concatenate([places, pixels], axis=1, dtype=np.int16)


def fit(image: np.ndarray, patch_size: int, max_patches: int) -> np.ndarray:
  """Patches of a picture of any size, as a row of a batch has them, unpadded.

  Args:
    image: uint8 [H, W, 3].
    patch_size: p, pixels of a patch's side.
    max_patches: the most patches wanted, at most MAX_PATCHES.

  Returns:
    [<= max_patches, 2 + 3 p^2] float32, none of them padding. The same bits as
    patches.extract's where `scale` changes nothing.
  """
  scaled = scale(image, patch_size, max_patches)
  return feature_converters.patch_rows(cut(scaled, patch_size))
