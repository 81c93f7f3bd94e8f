"""What ways of resizing lose.

  python benchmarks/fidelity.py

PSNR in dB and SSIM of pictures resized by "area" and "scaled"
(data/resizing.py), against Lanczos' filter over all pixels of the same JPEG.
"""

import io

import numpy as np
from PIL import Image


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


def page(rng: np.random.Generator, size: int, height: int = 1536) -> np.ndarray:
  """White paper full of words of many scripts, `size` pixels high."""
  from byt5_diffusion.data.writing import (
    fonts,
    typography,
    words,
  )

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


def main() -> None:
  """PSNR and SSIM against Lanczos' filter over all pixels of the same JPEG."""
  from byt5_diffusion.data import pictures as pictures_lib

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


if __name__ == "__main__":
  main()
