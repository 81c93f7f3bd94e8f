"""Pictures as CLIP's image tower wants them."""

import numpy as np
from PIL import Image

# Of CLIP's training pictures, in [0, 1]; red, green, blue (Radford et al.'s
# published code).
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def preprocess(image: np.ndarray, size: int = 224) -> np.ndarray:
  """Scales the short side to `size`, cuts the middle square out, normalises.

  Args:
    image: [H, W, 3] uint8.
    size: of the tower's pictures, in pixels.

  Returns:
    [size, size, 3] float32, (x / 255 - MEAN) / STD.

  Raises:
    ValueError: another shape or dtype.
  """
  if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8:
    raise ValueError(
      "CLIP's pictures are made from [H, W, 3] uint8, not from"
      f" {list(image.shape)} {image.dtype}."
    )
  height, width = image.shape[:2]
  short = min(height, width)
  if not short:
    raise ValueError(f"a picture of {height} x {width} pixels has none.")
  scaled = (size * width // short, size * height // short)
  pixels = np.asarray(
    Image.fromarray(image).resize(scaled, Image.Resampling.BICUBIC)
  )
  top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
  pixels = pixels[top : top + size, left : left + size]
  values = pixels.astype(np.float32) / 255
  mean, std = np.array(MEAN, np.float32), np.array(STD, np.float32)
  return (values - mean) / std
