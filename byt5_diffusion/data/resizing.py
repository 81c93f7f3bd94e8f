"""How pictures are brought to another size: three ways, by name.

  lanczos  Lanczos' filter over all pixels: the finest, and the default
  area     averages of k x k pixels, k = floor(scale), then Lanczos for the rest
  scaled   as area, but a JPEG may be decoded to a half, a quarter or an eighth
           (images.decode), and the rest is Hamming's filter, or the bicubic one
           where no more than a quarter is left out

All take in every pixel that they leave out (antialiasing). docs/benchmarks.md
says how fast they are, and how near to the first.
"""

from PIL import Image

LANCZOS, AREA, SCALED = WAYS = ("lanczos", "area", "scaled")
_LITTLE = 4 / 3
Box = tuple[float, float, float, float]


def check(way: str) -> None:
  """Raises ValueError for another way than WAYS."""
  if way not in WAYS:
    raise ValueError(f"resize={way!r} must be one of {', '.join(WAYS)}.")


def resize(
  image: Image.Image, box: Box, size: tuple[int, int], way: str
) -> Image.Image:
  """The part of an image inside of a box, brought to another size.

  Args:
    image: of mode RGB, RGBX or L.
    box: left, top, right, bottom in its pixels; whole numbers for "lanczos".
    size: columns and rows wanted, as Pillow has it.
    way: one of WAYS.
  """
  check(way)
  whole = box == (0, 0, *image.size)
  if whole and image.size == size:
    return image
  if way == LANCZOS:
    # Cut out first: the filter must not see what is outside.
    part = image if whole else image.crop(box)
    return part.resize(size, Image.Resampling.LANCZOS)
  factors = tuple(
    max(1, int((end - start) / side))
    for start, end, side in zip(box[:2], box[2:], size, strict=True)
  )
  if max(factors) > 1:
    image, box = _reduce(image, box, factors)
  rest = Image.Resampling.LANCZOS
  if way == SCALED:
    rest = _quick_filter((box[2] - box[0]) / size[0])
  return image.resize(size, rest, box=box)


def _quick_filter(scale: float) -> Image.Resampling:
  """Hamming's has half the taps, but moves edges where little is left out."""
  if scale > _LITTLE:
    return Image.Resampling.HAMMING
  return Image.Resampling.BICUBIC


def _reduce(
  image: Image.Image, box: Box, factors: tuple[int, ...]
) -> tuple[Image.Image, Box]:
  """Averages of whole pixels, and the box in them."""
  outer = (
    int(box[0]),
    int(box[1]),
    min(image.width, -int(-box[2] // 1)),
    min(image.height, -int(-box[3] // 1)),
  )
  reduced = image.reduce((factors[0], factors[1]), box=outer)
  inner = [(edge - outer[i % 2]) / factors[i % 2] for i, edge in enumerate(box)]
  return reduced, (inner[0], inner[1], inner[2], inner[3])
