"""Image files from strangers -> uint8 [H, W, 3], or a `BadImage` saying why.

Only the formats of `FORMATS` are tried, the pixel count is judged from the
header before anything is decoded, and whatever Pillow raises becomes a
`BadImage`. What has no single right picture (animations, several pages, 32-bit
pixels without a stated range) is refused rather than guessed.
"""

import contextlib
import io
import os
import pathlib
import stat
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, features

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP") + (
  ("AVIF",) if features.check("avif") else ()
)
# A phone's JPEG may be followed by a depth or gain map (MPO): still one photo.
_ONE_FRAME = ("JPEG", "MPO", "BMP")
_CONVERTIBLE = ("1", "L", "P", "RGB", "RGBX", "YCbCr", "CMYK")
_ALPHA = ("RGBA", "RGBa", "LA", "La", "PA")
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
_WHITE = 255


class BadImage(ValueError):
  """An image that cannot be used.

  Attributes:
    file: its name, as the caller knows it.
    reason: why, in a few words; the same words for the same cause.
  """

  def __init__(self, file: str, reason: str):
    super().__init__(f"{file}: {reason}")
    self.file = file
    self.reason = reason


class _Refused(Exception):
  """A reason, on its way to becoming a BadImage."""


def decode_image(
  source: bytes | str | os.PathLike[str],
  *,
  name: str | None = None,
  max_pixels: int = 64_000_000,
  max_bytes: int = 32 * 2**20,
) -> np.ndarray:
  """Decodes one image to uint8 [H, W, 3], upright, over white.

  EXIF rotation is applied; transparent pixels are blended with white; 16-bit
  gray levels are scaled (x / 257); CMYK is converted without its ICC profile.

  Args:
    source: the file's bytes, or its path.
    name: what to call it in errors; the path by default.
    max_pixels: width x height above this is refused from the header alone.
    max_bytes: larger files are not read.

  Raises:
    BadImage: whatever is wrong with it.
  """
  if isinstance(source, bytes):
    name = name or "<bytes>"
  else:
    name = name or os.fspath(source)
  try:
    raw = _read(source, max_bytes)
    with Image.open(io.BytesIO(raw), formats=FORMATS) as image:
      _check_size(image, max_pixels)
      _check_single_frame(image)
      image.load()
      _check_size(image, max_pixels)
      return _to_rgb(image)
  except _Refused as refusal:
    raise BadImage(name, str(refusal)) from None
  except (Image.DecompressionBombError, Image.DecompressionBombWarning):
    raise BadImage(name, f"more than {max_pixels} pixels") from None
  except Image.UnidentifiedImageError:
    raise BadImage(name, "not an image of a known format") from None
  except Exception as error:  # A hostile file may raise anything at all.
    raise BadImage(name, f"broken: {_words(error)}") from error


def _words(error: Exception) -> str:
  """What went wrong without the numbers and paths that vary by file."""
  cause = getattr(error, "strerror", None) or str(error).split(" (")[0]
  return cause or type(error).__name__


def _read(source: bytes | str | os.PathLike[str], max_bytes: int) -> bytes:
  if isinstance(source, bytes):
    raw = source
  else:
    path = pathlib.Path(source)
    # A pipe or a device would block or never end.
    if not stat.S_ISREG(path.stat().st_mode):
      raise _Refused("not a regular file")
    with path.open("rb") as file:
      raw = file.read(max_bytes + 1)
  if not raw:
    raise _Refused("empty file")
  if len(raw) > max_bytes:
    raise _Refused(f"more than {max_bytes} bytes")
  return raw


def _check_size(image: Image.Image, max_pixels: int) -> None:
  if image.width * image.height > max_pixels:
    raise _Refused(f"more than {max_pixels} pixels")


def _check_single_frame(image: Image.Image) -> None:
  if image.format in _ONE_FRAME:
    return
  try:
    image.seek(1)  # Cheaper than counting all frames of a hostile file.
  except EOFError:
    image.seek(0)
    return
  raise _Refused("several pages" if image.format == "TIFF" else "animated")


def _to_rgb(image: Image.Image) -> np.ndarray:
  """Decoded image of any mode -> uint8 [H, W, 3]."""
  # A PNG of "I" is 16-bit gray, as older Pillows call it.
  gray_png = image.format == "PNG" and image.mode == "I"
  # The pixels may be good where the EXIF block is not.
  with contextlib.suppress(Exception):
    image = ImageOps.exif_transpose(image)
  if image.mode in _SIXTEEN_BIT or gray_png:
    levels = np.asarray(image).astype(np.uint32)
    gray = ((levels + 128) // 257).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=-1)
  if image.mode in _ALPHA or "transparency" in image.info:
    layer = image.convert("RGBA")
    paper = Image.new("RGB", layer.size, (_WHITE, _WHITE, _WHITE))
    paper.paste(layer, mask=layer.getchannel("A"))
    return np.array(paper)
  if image.mode not in _CONVERTIBLE:
    raise _Refused(f"pixels of mode {image.mode}")
  return np.array(image.convert("RGB"))


def check_mode(mode: str) -> None:
  """Raises ValueError for another mode than `fit` knows."""
  if mode not in ("pad", "crop"):
    raise ValueError(f'{mode=} must be "pad" or "crop".')


class Placement(NamedTuple):
  """Where `fit` puts a picture: x' = x * scale_x + left, y alike.

  Attributes:
    scale_y, scale_x: pixels of the frame per pixel of the picture.
    top, left: of the picture's corner in the frame; negative if cropped away.
  """

  scale_y: float
  scale_x: float
  top: float
  left: float


def placement(
  size: tuple[int, int], height: int, width: int, mode: str = "pad"
) -> Placement:
  """Where `fit` puts a picture of `size` (rows, columns)."""
  check_mode(mode)
  if size == (height, width):
    return Placement(1.0, 1.0, 0.0, 0.0)
  scales = (height / size[0], width / size[1])
  if mode == "pad":
    rows = max(1, round(size[0] * min(scales)))
    columns = max(1, round(size[1] * min(scales)))
    return Placement(
      rows / size[0],
      columns / size[1],
      (height - rows) // 2,
      (width - columns) // 2,
    )
  rows = min(max(1, round(height / max(scales))), size[0])
  columns = min(max(1, round(width / max(scales))), size[1])
  scale_y, scale_x = height / rows, width / columns
  return Placement(
    scale_y,
    scale_x,
    -((size[0] - rows) // 2) * scale_y,
    -((size[1] - columns) // 2) * scale_x,
  )


def fit(
  image: np.ndarray, height: int, width: int, mode: str = "pad"
) -> np.ndarray:
  """Resizes uint8 [h, w, 3] to [height, width, 3], keeping the proportions.

  Args:
    image: the picture; returned as it is if it has the size already.
    height: rows wanted.
    width: columns wanted.
    mode: "pad" shows all of it, centred on white; "crop" fills the frame with
      its centre.
  """
  check_mode(mode)
  if image.shape[:2] == (height, width):
    return image
  scales = (height / image.shape[0], width / image.shape[1])
  scale = min(scales) if mode == "pad" else max(scales)
  rows = max(1, round(image.shape[0] * scale))
  columns = max(1, round(image.shape[1] * scale))
  # Cropping before resizing: one side of a ribbon may be enormous.
  if mode == "crop":
    image = _crop(image, round(height / scale), round(width / scale))
    rows, columns = height, width
  resized = np.asarray(
    Image.fromarray(image).resize((columns, rows), Image.Resampling.LANCZOS)
  )
  if resized.shape[:2] == (height, width):
    return np.array(resized)
  canvas = np.full((height, width, 3), _WHITE, np.uint8)
  top, left = (height - rows) // 2, (width - columns) // 2
  canvas[top : top + rows, left : left + columns] = resized
  return canvas


def _crop(image: np.ndarray, rows: int, columns: int) -> np.ndarray:
  rows = min(max(1, rows), image.shape[0])
  columns = min(max(1, columns), image.shape[1])
  top = (image.shape[0] - rows) // 2
  left = (image.shape[1] - columns) // 2
  return image[top : top + rows, left : left + columns]
