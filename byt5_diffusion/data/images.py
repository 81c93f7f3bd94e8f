"""Image files from strangers -> uint8 [H, W, 3], or a `BadImage` saying why.

Only the formats of `FORMATS` are tried, the pixel count is judged from the
header before anything is decoded, what a file may cost besides is limited by
image_limits.py, and whatever Pillow raises becomes a `BadImage`. What has no
single right picture (animations, several pages, 32-bit pixels without a stated
range) is refused rather than guessed.
"""

import contextlib
import math
import os
import pathlib
import stat
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageFile, features

from byt5_diffusion.data import image_limits, jpeg, resizing

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP") + (
  ("AVIF",) if features.check("avif") else ()
)
# A phone's JPEG may be followed by a depth or gain map (MPO): still one photo.
# Of a TIFF's pages, image_limits.check_tiff knows.
_ONE_FRAME = (*jpeg.FORMATS, "BMP", "TIFF")
_CONVERTIBLE = ("1", "L", "P", "RGB", "RGBX", "YCbCr", "CMYK")
_ALPHA = ("RGBA", "RGBa", "LA", "La", "PA")
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
_WHITE = 255
# EXIF 2.3, table 6: what is to be done to a stored picture.
_UPRIGHT = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}
# A file may have thousands of bad EXIF entries, each worth a warning to Pillow.
# What matters is in the ledger (rejections.py).
warnings.filterwarnings(
  "ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin"
)
# The fewest rows and columns wanted of a picture of a size (rows, columns).
Needed = Callable[[tuple[int, int]], tuple[int, int]]


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


class Decoded(NamedTuple):
  """A picture, perhaps smaller than its file says.

  Attributes:
    image: of mode RGB, RGBX (the last byte means nothing) or L; upright.
    size: rows and columns of the picture at full size, upright.
    denominator: a pixel of `image` stands for so many of the picture in a row,
      and in a column; the last ones for fewer, if they do not divide the size.
  """

  image: Image.Image
  size: tuple[int, int]
  denominator: int = 1

  def pixels(self) -> np.ndarray:
    """uint8 [h, w, 3] of `image`."""
    return to_pixels(self.image)


def from_pixels(pixels: np.ndarray) -> Decoded:
  """uint8 [H, W, 3] as a picture."""
  return Decoded(Image.fromarray(pixels), (pixels.shape[0], pixels.shape[1]))


def to_pixels(image: Image.Image) -> np.ndarray:
  """uint8 [h, w, 3] of an image of a mode that Decoded may have."""
  if image.mode == "L":
    return np.repeat(np.asarray(image)[..., None], 3, axis=-1)
  raw = image.tobytes("raw", "RGB")
  return np.frombuffer(raw, np.uint8).reshape(image.height, image.width, 3)


def decode(
  source: bytes | str | os.PathLike[str],
  *,
  name: str | None = None,
  max_pixels: int = 64_000_000,
  max_bytes: int = 32 * 2**20,
  needed: Needed | None = None,
) -> Decoded:
  """Decodes one image, upright, over white.

  EXIF rotation is applied; transparent pixels are blended with white; 16-bit
  gray levels are scaled (x / 257); CMYK is converted without its ICC profile.

  Args:
    source: the file's bytes, or its path.
    name: what to call it in errors; the path by default.
    max_pixels: width x height above this is refused from the header alone.
    max_bytes: larger files are not read.
    needed: says how large it has to be at least. Then a JPEG is decoded to a
      half, a quarter or an eighth of its size where that is large enough; with
      simplejpeg and without to the same bits. None: all pixels.

  Raises:
    BadImage: whatever is wrong with it.
  """
  with _naming(source, name, max_pixels):
    raw = _read(source, max_bytes)
    made, size, number = _decode(raw, max_pixels, needed, "RGBX")
    if isinstance(made, np.ndarray):  # Shares the memory.
      shape = (made.shape[1], made.shape[0])
      made = Image.frombuffer("RGBX", shape, made, "raw", "RGBX", 0, 1)
    return Decoded(made, size, number)


def decode_image(
  source: bytes | str | os.PathLike[str],
  *,
  name: str | None = None,
  max_pixels: int = 64_000_000,
  max_bytes: int = 32 * 2**20,
) -> np.ndarray:
  """As `decode`, all pixels, as uint8 [H, W, 3]."""
  with _naming(source, name, max_pixels):
    made = _decode(_read(source, max_bytes), max_pixels, None, "RGB")[0]
    return made if isinstance(made, np.ndarray) else to_pixels(made)


@contextlib.contextmanager
def _naming(
  source: bytes | str | os.PathLike[str], name: str | None, max_pixels: int
) -> Iterator[None]:
  """Makes a BadImage of whatever is raised."""
  if name is None:
    name = "<bytes>" if isinstance(source, bytes) else os.fspath(source)
  try:
    yield
  except image_limits.Refused as refusal:
    raise BadImage(name, str(refusal)) from None
  except (Image.DecompressionBombError, Image.DecompressionBombWarning):
    raise BadImage(name, f"more than {max_pixels} pixels") from None
  except Image.UnidentifiedImageError:
    raise BadImage(name, "not an image of a known format") from None
  except Exception as error:  # A hostile file may raise anything at all.
    raise BadImage(name, f"broken: {_words(error)}") from error


def _decode(
  raw: bytes, max_pixels: int, needed: Needed | None, colours: str
) -> tuple[Image.Image | np.ndarray, tuple[int, int], int]:
  """Decoded's fields, but the picture as an array where it comes as one."""
  # Importing WeasyPrint sets it: half a picture would be a gray one below.
  ImageFile.LOAD_TRUNCATED_IMAGES = False
  image_limits.check_tiff(raw, max_pixels)
  file = image_limits.MeteredFile(raw)
  with Image.open(file, formats=FORMATS) as image:
    _check_size(image, max_pixels)
    if image.format in jpeg.FORMATS:
      return _decode_jpeg(raw, image, needed, colours)
    _check_single_frame(image)
    image.load()
    _check_size(image, max_pixels)
    # Behind `load`: a PNG may say it at its end.
    made = _upright(_to_rgb(image), _orientation(image))
    return made, (made.height, made.width), 1


def _decode_jpeg(
  raw: bytes, image: Image.Image, needed: Needed | None, colours: str
) -> tuple[Image.Image | np.ndarray, tuple[int, int], int]:
  image_limits.check_scans(raw)
  orientation = _orientation(image)
  turned = orientation >= 5
  size = image.size if turned else image.size[::-1]
  number = jpeg.denominator(size, needed(size)) if needed else 1
  if orientation > 1 and (size[0] % number or size[1] % number):
    number = 1  # What is incomplete would not be at the end.
  pixels = jpeg.decode(raw, image, number, colours)
  if pixels is not None:
    if orientation == 1:
      return pixels, size, number
    made = Image.fromarray(pixels[..., :3])
  else:
    if number > 1:
      image.draft(None, (image.width // number, image.height // number))
    image.load()
    made = _to_rgb(image)
  return _upright(made, orientation), size, number


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
      raise image_limits.Refused("not a regular file")
    with path.open("rb") as file:
      raw = file.read(max_bytes + 1)
  if not raw:
    raise image_limits.Refused("empty file")
  if len(raw) > max_bytes:
    raise image_limits.Refused(f"more than {max_bytes} bytes")
  return raw


def _check_size(image: Image.Image, max_pixels: int) -> None:
  if image.width * image.height > max_pixels:
    raise image_limits.Refused(f"more than {max_pixels} pixels")


def _check_single_frame(image: Image.Image) -> None:
  if image.format in _ONE_FRAME:
    return
  try:
    image.seek(1)  # Cheaper than counting all frames of a hostile file.
  except EOFError:
    image.seek(0)
    return
  raise image_limits.Refused("animated")


def _orientation(image: Image.Image) -> int:
  """1 to 8, as EXIF or XMP say."""
  # The pixels may be good where the EXIF block is not.
  with contextlib.suppress(Exception):
    number = image.getexif().get(ExifTags.Base.Orientation)
    return int(number) if number in _UPRIGHT else 1
  return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
  turn = _UPRIGHT.get(orientation)
  return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
  """Decoded image of any mode -> RGB or L."""
  # A PNG of "I" is 16-bit gray, as older Pillows call it.
  gray_png = image.format == "PNG" and image.mode == "I"
  if image.mode in _SIXTEEN_BIT or gray_png:
    levels = np.asarray(image).astype(np.uint32)
    return Image.fromarray(((levels + 128) // 257).astype(np.uint8))
  if image.mode in _ALPHA or "transparency" in image.info:
    layer = image if image.mode == "RGBA" else image.convert("RGBA")
    paper = Image.new("RGB", layer.size, (_WHITE, _WHITE, _WHITE))
    paper.paste(layer, mask=layer.getchannel("A"))
    return paper
  if image.mode not in _CONVERTIBLE:
    raise image_limits.Refused(f"pixels of mode {image.mode}")
  if image.mode in ("RGB", "L"):
    return image
  return image.convert("RGB")


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


class _Frame(NamedTuple):
  """Rows and columns of the picture that are shown, and where they go."""

  box: tuple[int, int, int, int]  # left, top, right, bottom
  rows: int
  columns: int
  top: int
  left: int


def _frame(size: tuple[int, int], height: int, width: int, mode: str) -> _Frame:
  check_mode(mode)
  whole = (0, 0, size[1], size[0])
  if size == (height, width):
    return _Frame(whole, height, width, 0, 0)
  scales = (height / size[0], width / size[1])
  if mode == "pad":
    rows = max(1, round(size[0] * min(scales)))
    columns = max(1, round(size[1] * min(scales)))
    return _Frame(
      whole, rows, columns, (height - rows) // 2, (width - columns) // 2
    )
  # Cropping before resizing: one side of a ribbon may be enormous.
  rows = min(max(1, round(height / max(scales))), size[0])
  columns = min(max(1, round(width / max(scales))), size[1])
  top, left = (size[0] - rows) // 2, (size[1] - columns) // 2
  return _Frame((left, top, left + columns, top + rows), height, width, 0, 0)


def placement(
  size: tuple[int, int], height: int, width: int, mode: str = "pad"
) -> Placement:
  """Where `fit` puts a picture of `size` (rows, columns)."""
  frame = _frame(size, height, width, mode)
  left, top, right, bottom = frame.box
  scale_y = frame.rows / (bottom - top)
  scale_x = frame.columns / (right - left)
  return Placement(
    scale_y, scale_x, frame.top - top * scale_y, frame.left - left * scale_x
  )


def needed(
  size: tuple[int, int], height: int, width: int, mode: str = "pad"
) -> tuple[int, int]:
  """Rows and columns of a picture of `size` below which `fit` would enlarge."""
  place = placement(size, height, width, mode)
  rows, columns = size[0] * place.scale_y, size[1] * place.scale_x
  return math.ceil(round(rows, 6)), math.ceil(round(columns, 6))


def fit(
  image: np.ndarray | Decoded,
  height: int,
  width: int,
  mode: str = "pad",
  resize: str = resizing.LANCZOS,
) -> np.ndarray:
  """Resizes uint8 [h, w, 3] to [height, width, 3], keeping the proportions.

  Args:
    image: the picture; an array is returned as it is if it has the size. One
      that was decoded to less than its full size goes where it would at that.
    height: rows wanted.
    width: columns wanted.
    mode: "pad" shows all of it, centred on white; "crop" fills the frame with
      its centre.
    resize: one of resizing.WAYS.
  """
  check_mode(mode)
  if isinstance(image, np.ndarray):
    if image.shape[:2] == (height, width):
      return image
    image = from_pixels(image)
  frame = _frame(image.size, height, width, mode)
  left, top, right, bottom = (edge / image.denominator for edge in frame.box)
  box, shown = (left, top, right, bottom), (frame.columns, frame.rows)
  resized = to_pixels(resizing.resize(image.image, box, shown, resize))
  if resized.shape[:2] == (height, width):
    return resized
  canvas = np.full((height, width, 3), _WHITE, np.uint8)
  end = (frame.top + frame.rows, frame.left + frame.columns)
  canvas[frame.top : end[0], frame.left : end[1]] = resized
  return canvas
