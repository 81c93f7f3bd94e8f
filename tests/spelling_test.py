"""Scores in closed form; readers on pictures whose text is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from byt5_diffusion import spelling


@pytest.mark.parametrize(
  ("first", "second", "distance"),
  [
    ("", "", 0),
    ("abc", "", 3),
    ("kitten", "sitting", 3),
    ("flaw", "lawn", 2),
    ("कि", "की", 1),  # one cluster of two code points
    ("e\u0301", "é", 0),  # NFD and NFC are the same letter
  ],
)
def test_edit_distance_counts_letters(
  first: str, second: str, distance: int
) -> None:
  letters = spelling.letters
  assert spelling.edit_distance(letters(first), letters(second)) == distance


@settings(max_examples=60, deadline=None)
@given(st.text("abc", max_size=6), st.text("abc", max_size=6))
def test_edit_distance_is_a_metric(first: str, second: str) -> None:
  distance = spelling.edit_distance(first, second)
  assert distance == spelling.edit_distance(second, first)
  assert (distance == 0) == (first == second)
  assert abs(len(first) - len(second)) <= distance
  assert distance <= max(len(first), len(second))


def test_scores_of_a_known_reading() -> None:
  targets, readings = ["abc", "de", "क्षत्रिय"], ["abx", "de", "क्षत्रिय"]
  total = sum(len(spelling.letters(target)) for target in targets)
  assert spelling.character_error_rate(targets, readings) == 1 / total
  assert spelling.exact_match(targets, readings) == 2 / 3
  with pytest.raises(ValueError, match="no letters"):
    spelling.character_error_rate([""], ["a"])


def test_nearest_reader_reads_noisy_pictures_of_its_own() -> None:
  rng = np.random.default_rng(0)
  pictures = rng.integers(0, 256, (20, 8, 12, 3), np.uint8)
  texts = [str(i) for i in range(20)]
  reader = spelling.NearestReader(pictures, texts)
  noisy = pictures + rng.normal(0, 20, pictures.shape)
  assert reader.read(np.clip(noisy, 0, 255).astype(np.uint8)) == texts
  # Brightness differs, so the nearest by product alone would be another one.
  flat = np.stack([np.full((8, 12, 3), v, np.uint8) for v in (10, 120, 250)])
  reader = spelling.NearestReader(flat, ["dark", "grey", "light"])
  assert reader.read(flat) == ["dark", "grey", "light"]


def test_tesseract_is_named_when_it_is_missing(
  monkeypatch: pytest.MonkeyPatch,
) -> None:
  monkeypatch.setenv("PATH", "")
  assert spelling.tesseract_models() == set()
  with pytest.raises(ValueError, match="tesseract-ocr"):
    spelling.TesseractReader("Latn")


def test_tesseract_reads_clean_english(shared_data) -> None:
  if "eng" not in spelling.tesseract_models():
    pytest.skip("Tesseract with its English model is not installed")
  from PIL import Image

  image = Image.open(shared_data / "fixtures/tesseract/HelloGoogle.tif")
  picture = np.asarray(image.convert("RGB"))[None]
  read = spelling.TesseractReader("Latn").read(picture)[0]
  assert "Google" in read
