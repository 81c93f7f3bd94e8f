"""How well a drawn text is spelt: readers, and scores over what they read.

Scores count grapheme clusters of the NFC text, what a reader of any script
would call letters. A reader is `read(images uint8 [N, H, W, 3]) -> [str]`.
"""

import io
import shutil
import subprocess
import unicodedata
from collections.abc import Sequence

import numpy as np
from PIL import Image

from byt5_diffusion.data import text as text_lib

# Tesseract's model for each ISO 15924 script.
TESSERACT_MODELS = {
  "Arab": "ara",
  "Armn": "hye",
  "Beng": "ben",
  "Cyrl": "rus",
  "Deva": "hin",
  "Ethi": "amh",
  "Geor": "kat",
  "Grek": "ell",
  "Gujr": "guj",
  "Guru": "pan",
  "Hans": "chi_sim",
  "Hant": "chi_tra",
  "Hebr": "heb",
  "Jpan": "jpn",
  "Khmr": "khm",
  "Kore": "kor",
  "Laoo": "lao",
  "Latn": "eng",
  "Mymr": "mya",
  "Taml": "tam",
  "Telu": "tel",
  "Thai": "tha",
}
# Tesseract wants letters of 30 pixels or more, and air around them.
_MIN_HEIGHT = 64
_SECONDS_PER_IMAGE = 20


def letters(text: str) -> list[str]:
  """Grapheme clusters of the NFC text, without outer white space."""
  return text_lib.graphemes(unicodedata.normalize("NFC", text).strip())


def edit_distance(first: Sequence[str], second: Sequence[str]) -> int:
  """Fewest insertions, deletions and replacements (Levenshtein 1966)."""
  row = list(range(len(second) + 1))
  for i, a in enumerate(first, 1):
    previous, row[0] = row[0], i
    for j, b in enumerate(second, 1):
      previous, row[j] = (
        row[j],
        min(row[j] + 1, row[j - 1] + 1, previous + (a != b)),
      )
  return row[-1]


def character_error_rate(
  targets: Sequence[str], readings: Sequence[str]
) -> float:
  """Edit distance over the letters of all targets, in [0, inf)."""
  pairs = [
    (letters(a), letters(b)) for a, b in zip(targets, readings, strict=True)
  ]
  total = sum(len(target) for target, _ in pairs)
  if not total:
    raise ValueError("the targets have no letters to be wrong about.")
  return sum(edit_distance(a, b) for a, b in pairs) / total


def exact_match(targets: Sequence[str], readings: Sequence[str]) -> float:
  """Share of texts read without a single error, in [0, 1]."""
  if not targets:
    raise ValueError("there is nothing to match.")
  hits = [
    letters(a) == letters(b) for a, b in zip(targets, readings, strict=True)
  ]
  return sum(hits) / len(hits)


class NearestReader:
  """Reads an image as the text whose own picture is nearest in mean square.

  It can say only what is among its pictures, so its errors are the drawer's and
  not its own; by chance it is right once in `len(texts)` times.
  """

  def __init__(self, images: np.ndarray, texts: Sequence[str]):
    """Learns pictures uint8 [N, H, W, 3] of N texts."""
    if len(images) != len(texts) or not texts:
      raise ValueError(f"{len(images)} images for {len(texts)} texts.")
    self.texts = list(texts)
    self._pictures = self._flat(images)
    self._norms = np.square(self._pictures).sum(1)

  @staticmethod
  def _flat(images: np.ndarray) -> np.ndarray:
    gray = np.asarray(images, np.float32).mean(axis=-1) / 255.0
    return gray.reshape(len(images), -1)

  def read(self, images: np.ndarray) -> list[str]:
    """One text per image uint8 [N, H, W, 3]."""
    # |a - b|^2 without |a|^2, which no choice of b changes.
    scores = self._norms - 2.0 * self._flat(images) @ self._pictures.T
    return [self.texts[i] for i in scores.argmin(axis=1)]


def tesseract_models() -> set[str]:
  """The models of the Tesseract on this machine; empty without one."""
  program = shutil.which("tesseract")
  if program is None:
    return set()
  listed = subprocess.run(
    [program, "--list-langs"],
    capture_output=True,
    text=True,
    timeout=_SECONDS_PER_IMAGE,
    check=False,
  )
  return set(listed.stdout.split("\n")[1:]) - {"", "osd"}


class TesseractReader:
  """Tesseract, one line of one script at a time."""

  def __init__(self, script: str):
    """Raises ValueError where Tesseract or the script's model is missing."""
    self._model = TESSERACT_MODELS.get(script, "")
    if self._model not in tesseract_models():
      raise ValueError(
        f"Tesseract cannot read {script} here: install the Debian packages "
        f"tesseract-ocr and tesseract-ocr-{self._model.replace('_', '-')}."
      )

  def read(self, images: np.ndarray) -> list[str]:
    """One text per image uint8 [N, H, W, 3]."""
    return [self._read_one(image) for image in images]

  def _read_one(self, image: np.ndarray) -> str:
    scale = -(-_MIN_HEIGHT // image.shape[0])
    border = ((scale * 4,) * 2, (scale * 4,) * 2, (0, 0))
    picture = Image.fromarray(image)
    picture = picture.resize(
      (picture.width * scale, picture.height * scale), Image.Resampling.BICUBIC
    )
    padded = np.pad(np.asarray(picture), border, constant_values=255)
    png = io.BytesIO()
    Image.fromarray(padded).save(png, "PNG")
    command = ["tesseract", "stdin", "stdout", "-l", self._model, "--psm", "7"]
    try:
      done = subprocess.run(
        command,
        input=png.getvalue(),
        capture_output=True,
        timeout=_SECONDS_PER_IMAGE,
        check=True,
      )
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError):
      return ""
    return done.stdout.decode("utf-8", "replace").strip()
