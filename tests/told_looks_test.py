"""What captions tell of made-up pages and graphics is what is drawn there."""

import numpy as np
import pytest

pytest.importorskip("weasyprint")
pytest.importorskip("pypdfium2")
pytest.importorskip("resvg_py")

from byt5_diffusion import quotes
from byt5_diffusion.data import annotated
from byt5_diffusion.data.pages import (
  made_pages,
  made_vectors,
  page_kinds,
  svg_kinds,
)
from byt5_diffusion.data.writing import caption_writer, fonts, words

needs_fonts = pytest.mark.skipif(
  not {"Latn", "Jpan"} <= set(fonts.available_scripts()),
  reason="fonts are missing: python tools/fetch_fonts.py",
)
_FEW = ("sign", "poster", "letter", "quotation")
_NEAR = 36  # Levels: gradients are of the same colour.


class _Spy:
  """Notes what a caption was to tell."""

  def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
    self.told: list[tuple[list[str], caption_writer.Look]] = []
    write = caption_writer.write

    def noting(strings, look, rng, language="en"):
      self.told.append((list(strings), look))
      return write(strings, look, rng, language)

    monkeypatch.setattr(caption_writer, "write", noting)


def _share(pixels: np.ndarray, color: tuple[int, int, int]) -> float:
  """Share of pixels of a colour."""
  distance = np.abs(pixels.astype(int) - color).max(axis=-1)
  return float((distance < _NEAR).mean())


def _check(
  example: annotated.Annotated, strings: list[str], look: caption_writer.Look
) -> None:
  assert quotes.strings(example.text) == strings
  found: dict[str, annotated.Region] = {}
  for region in example.regions:
    found.setdefault(region.text, region)
  assert set(strings) <= set(found)
  if look.ink is None:  # Nothing is told of the letters.
    assert look == caption_writer.Look(kind=look.kind)
    return
  for string in strings:
    left, top, right, bottom = (round(edge) for edge in found[string].box)
    pixels = example.image[top:bottom, left:right]
    assert _share(pixels, look.ink) > 0.02, (string, look)
    assert _share(pixels, look.paper) > 0.1, (string, look)
  for name, color in (("ink", look.ink), ("paper", look.paper)):
    told = [example.style[f"{name}_{c}"] for c in ("red", "green", "blue")]
    assert np.allclose(np.multiply(told, 255), color)
  assert (example.style["weight"] == 700) == bool(look.bold)


@needs_fonts
@pytest.mark.parametrize("design", sorted(svg_kinds.DESIGNS))
def test_graphics_have_the_colours_and_sizes_that_are_told(
  design: str, monkeypatch: pytest.MonkeyPatch
) -> None:
  spy = _Spy(monkeypatch)
  supply = made_vectors.MadeVectors(side=720, designs=(design,))
  for index in range(4):
    example = supply.read("train", index, 7, "en")
    _check(example, *spy.told[-1])
    # A line is as high as its letters: half an em to one and a half.
    strings, look = spy.told[-1]
    lines = [r for r in example.regions if r.text in strings]
    if design in ("map", "ribbon", "banner", "badge") or look.ink is None:
      continue  # Lines that are turned.
    heights = [r.box[3] - r.box[1] for r in lines if r.label == "line"]
    size = example.style["size"] * example.image.shape[0]
    assert 0.5 * size < max(heights) < 1.6 * size


@needs_fonts
@pytest.mark.parametrize(
  "design",
  [
    pytest.param(design, marks=() if design in _FEW else pytest.mark.slow)
    for design in sorted(page_kinds.DESIGNS)
  ],
)
def test_pages_have_the_colours_that_are_told(
  design: str, monkeypatch: pytest.MonkeyPatch
) -> None:
  spy = _Spy(monkeypatch)
  supply = made_pages.MadePages(side=720, designs=(design,))
  for index in range(3):
    for code in ("en", "ja") if index else ("en",):
      _check(supply.read("train", index, 7, code), *spy.told[-1])


def test_headlines_are_quoted_alone_or_nothing_is_told() -> None:
  look = caption_writer.Look(kind="page", bold=True, ink=(0, 0, 0))
  both, one = ["Head", "body"], ["Head"]
  bare = caption_writer.Look(kind="page")
  told = made_pages.made_pictures.told
  rng = words.generator(1)
  assert told(both, 2, look, rng) == (both, look)
  assert told(both, 0, look, rng) == (both, bare)
  seen = [told(both, 1, look, rng) for _ in range(30)]
  assert (one, look) in seen and (both, bare) in seen
  assert all(item in [(one, look), (both, bare)] for item in seen)
