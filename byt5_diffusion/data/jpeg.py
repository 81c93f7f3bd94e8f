"""JPEG pixels by simplejpeg, where it is installed and sure to agree.

It gives the very bits that Pillow gives, sooner: both run libjpeg-turbo with
its accurate transform and its smooth chroma. What is not an ordinary picture in
grey or colour, and whatever simplejpeg objects to, is left to Pillow.
"""

import functools
import types

import numpy as np
from PIL import Image

# Fractions of the width and height that libjpeg-turbo decodes to directly, and
# faster than the whole. Others (3/8, 5/8, ...) it has, but they are no faster.
DENOMINATORS = (8, 4, 2)
# Below, two fractions may round to one size, and be taken for each other.
_MIN_SIDE = 64
FORMATS = ("JPEG", "MPO")


@functools.cache
def _simplejpeg() -> types.ModuleType | None:
  try:
    import simplejpeg
  except ImportError:
    return None
  return simplejpeg


def denominator(size: tuple[int, int], needed: tuple[int, int]) -> int:
  """The largest of DENOMINATORS that keeps a picture as large as needed, or 1.

  Args:
    size: its rows and columns.
    needed: the fewest rows and columns.
  """
  if min(size) < _MIN_SIDE:
    return 1
  for number in DENOMINATORS:
    if size[0] // number >= needed[0] and size[1] // number >= needed[1]:
      return number
  return 1


def decode(
  raw: bytes, image: Image.Image, number: int, colours: str
) -> np.ndarray | None:
  """Pixels uint8 [ceil(H / number), ceil(W / number), 3 or 4].

  Args:
    raw: the file.
    image: the same as Pillow has opened it, not loaded yet.
    number: 1, or the `denominator` of the fraction to decode.
    colours: "RGB" or "RGBX".

  Returns:
    None where it should be left to Pillow.
  """
  library = _simplejpeg()
  if library is None or image.mode not in ("RGB", "L"):
    return None
  rows, columns = -(-image.height // number), -(-image.width // number)
  try:
    # What two readers take for the header of one file may not be the same.
    if library.decode_jpeg_header(raw)[:2] != (image.height, image.width):
      return None
    least = {"min_height": rows, "min_width": columns} if number > 1 else {}
    pixels: np.ndarray = library.decode_jpeg(raw, colours, **least)
  except Exception:  # Of any kind: Pillow will say what, or know better.
    return None
  return pixels if pixels.shape[:2] == (rows, columns) else None
