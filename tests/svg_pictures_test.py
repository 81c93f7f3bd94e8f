"""Vector graphics with text: boxes, outlines, peers that draw the same."""

import dataclasses
import re

import numpy as np
import pytest

pytest.importorskip("resvg_py")
pytest.importorskip("weasyprint")
pytest.importorskip("pypdfium2")

from byt5_diffusion import quotes
from byt5_diffusion.data import (
  annotated,
  images,
  languages,
  supplies,
)
from byt5_diffusion.data.pages import (
  chromium,
  made_vectors,
  page_designs,
  page_writer,
  sandbox,
  svg_designs,
  svg_kinds,
  svg_pictures,
)
from byt5_diffusion.data.writing import (
  fonts,
  phrases,
  words,
)

_HAVE = set(fonts.available_scripts())
needs_fonts = pytest.mark.skipif(
  not {"Latn", "Arab", "Deva", "Hebr", "Jpan"} <= _HAVE,
  reason="fonts are missing: python tools/fetch_fonts.py",
)
_TEXTS = {
  "en": "fjord quay",
  "ar": "نص عربي!",
  "hi": "हिन्दी कि",
  "iw": "שלום עולם",
  "ja": "東京、夜",
}

_WAYS = ("text", "outlines", "turned", "downward")


def _canvas(code: str) -> svg_designs.Canvas:
  rng = np.random.default_rng(0)
  script = phrases.scripts(code)[0][0]
  writer = page_writer.Writer(
    rng=rng, texts=phrases.Phrases(), language=code, script=script
  )
  style = page_designs.style(rng, script)
  return svg_designs.Canvas(width=300, height=300, style=style, writer=writer)


def _draw(svg: str, size: int = 300) -> np.ndarray:
  return (
    sandbox.pool()
    .draw("svg", svg.encode(), name="test", height=size, width=size)
    .image
  )


def _ink(picture: np.ndarray) -> np.ndarray:
  dark = picture.min(axis=2) < 200
  rows, columns = np.flatnonzero(dark.any(1)), np.flatnonzero(dark.any(0))
  assert rows.size, "nothing was drawn"
  return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


@needs_fonts
@pytest.mark.parametrize(
  "code, way",
  [(code, way) for code in sorted(_TEXTS) for way in _WAYS[:3]]
  + [("ja", "downward")],
)
def test_the_ink_of_a_text_fills_its_box(code: str, way: str) -> None:
  canvas = _canvas(code)
  options = {
    "text": {},
    "outlines": {"outlines": True},
    "turned": {"matrix": svg_designs.turn(25, 150, 150)},
    "downward": {"vertical": True},
  }[way]
  canvas.text(_TEXTS[code], 150, 150, 36, "black", **options)
  [line] = [r for r in canvas.regions if r.label == "line"]
  source = canvas.svg()
  assert ("<text" in source) == (way in ("text", "turned"))
  if way != "turned":
    assert np.allclose(_ink(_draw(source)), line.box, atol=1.6)
    return
  # The outline is a turned rectangle: turned back, it is the ink's box.
  rows, columns = np.nonzero(_draw(source).min(axis=2) < 200)
  back = svg_designs.turn(-25, 150, 150)
  ink = np.stack(svg_designs.apply(back, columns + 0.5, rows + 0.5))
  corners = np.array([svg_designs.apply(back, *c) for c in line.polygon]).T
  for end in (np.min, np.max):
    assert np.allclose(end(ink, axis=1), end(corners, axis=1), atol=1.6)


@needs_fonts
def test_outlines_and_text_are_the_same_shapes() -> None:
  for code, text in _TEXTS.items():
    drawn = []
    for outlines in (False, True):
      canvas = _canvas(code)
      canvas.text(text, 150, 150, 40, "black", outlines=outlines)
      drawn.append(_draw(canvas.svg()).astype(int))
    assert np.abs(drawn[0] - drawn[1]).mean() < 0.3, code


@needs_fonts
def test_text_along_a_circle_lies_on_it() -> None:
  canvas = _canvas("en")
  canvas.circle("over the top", 150, 150, 100, 24, "black")
  top = _ink(_draw(canvas.svg()))
  [line] = [r for r in canvas.regions if r.label == "line"]
  assert np.allclose(top, line.box, atol=7.0)
  assert abs((top[0] + top[2]) / 2 - 150) < 8 and 20 < top[1] < 55
  below = _canvas("en")
  below.circle("over the top", 150, 150, 100, 24, "black", below=True)
  bottom = _ink(_draw(below.svg()))
  assert abs((bottom[0] + bottom[2]) / 2 - 150) < 8 and 245 < bottom[3] < 280


@needs_fonts
def test_text_leaves_neither_the_picture_nor_its_room() -> None:
  canvas = _canvas("en")
  assert canvas.text("a long enough text", 150, 150, 60, "red", most=200) < 30
  [line] = [r for r in canvas.regions if r.label == "line"]
  assert line.box[2] - line.box[0] <= 200
  with pytest.raises(svg_designs.CannotPlace):
    canvas.text("out", 2, 150, 60, "red")
  with pytest.raises(svg_designs.CannotPlace):
    canvas.text("\U00012000", 150, 150, 60, "red")  # Cuneiform.


@needs_fonts
@pytest.mark.parametrize("design", sorted(svg_kinds.DESIGNS))
def test_a_design_is_the_same_again_and_marks_its_texts(design: str) -> None:
  supply = made_vectors.MadeVectors(side=256, designs=(design,))
  code = "ja" if design in ("banner", "poem") else "en"
  one, again = (
    supply.read("train", 2, 5, code),
    supply.read("train", 2, 5, code),
  )
  assert np.array_equal(one.image, again.image) and one.text == again.text
  assert max(one.image.shape) == 256
  quoted = quotes.strings(one.text)
  assert quoted and words.split_of(quoted[0]) == "train"
  lines = [r for r in one.regions if r.label == "line"]
  assert {r.text for r in lines} >= set(quoted)
  encoded = one.text.encode("utf-8")
  for region in lines:
    if region.span:
      start, end = region.span
      assert encoded[start:end].decode() == region.text
  assert one.transcription == "\n".join(
    r.text for r in supply_lines(supply, code)
  )
  assert set(one.style) <= set(annotated.STYLE)
  # Where a box is, there is ink: not all of it is of one colour.
  for region in lines:
    left, top, right, bottom = (round(edge) for edge in region.box)
    assert one.image[top:bottom, left:right].std() > 8, region


def supply_lines(
  supply: made_vectors.MadeVectors, code: str
) -> list[annotated.Region]:
  """Lines of the canvas that example 2 was drawn from."""
  key = f"{supply.name}/train/5/2/{code}"
  rng = words.generator(supply.VERSION, key)
  canvas = supply.canvas("train", code, rng)
  return [r for r in canvas.regions if r.label == "line"]


@needs_fonts
def test_the_source_of_an_example_can_be_had() -> None:
  supply = made_vectors.MadeVectors(side=480, designs=("badge",))
  source = supply.source("train", 2, 5, "en")
  assert source.startswith("<svg") and "<text" in source
  height, width, _ = supply.read("train", 2, 5, "en").image.shape
  drawn = sandbox.pool().draw(
    "svg", source.encode(), name="a", height=height, width=width
  )
  assert np.array_equal(drawn.image, supply.read("train", 2, 5, "en").image)
  # Each <text> has one font, one script and no children: resvg's rule.
  for family, text in re.findall(r'font-family="([^"]*)".*?>([^<]*)<', source):
    assert "," not in family
    assert {words.script_of(c) for c in text} <= {"Latn", words.COMMON}


@needs_fonts
def test_a_name_opens_vector_graphics() -> None:
  table = {"typography_svg": supplies.Kind(made_vectors.open_vectors)}
  name = "typography_svg_reading:built_in@64x16+languages=de,ka"
  parsed = supplies.parse(table, name)
  assert parsed is not None
  rows = parsed.supply.languages("train")
  assert [languages.TABLE[row].code for row in rows] == ["de", "ka"]
  maker = supplies.Maker(supply=parsed.supply, picture=parsed.picture)
  made = maker.make("validation", 0, 0, {"text_tokens": 1024})
  assert made is not None and made["patches"].shape[1] == 2 + 3 * 16 * 16


def test_text_of_files_is_found() -> None:
  svg = (
    '<svg xmlns="http://www.w3.org/2000/svg"><title>no</title>'
    "<text>one <tspan>two</tspan></text><desc>no</desc></svg>"
  )
  assert svg_pictures.texts(svg.encode(), "a") == "one two"
  with pytest.raises(images.BadImage, match="no XML"):
    svg_pictures.texts(b"<svg><text></svg>", "a")


@pytest.mark.slow
@needs_fonts
def test_every_design_is_drawn_in_every_script() -> None:
  seen = {}
  for language in languages.TABLE:
    for script, _ in phrases.scripts(language.code):
      seen.setdefault(script, language.code)
  for design in svg_kinds.DESIGNS:
    supply = made_vectors.MadeVectors(designs=(design,), side=256)
    for code in sorted(set(seen.values())):
      assert supply.read("train", 0, 0, code).regions, (design, code)


@pytest.mark.slow
@needs_fonts
@pytest.mark.skipif(not chromium.find(), reason="Chromium is not installed")
@pytest.mark.parametrize("code", ["en", "ar", "hi", "ja", "th"])
def test_chromium_draws_the_same(code: str) -> None:
  for design in ("badge", "logo", "icons", "poem"):
    supply = made_vectors.MadeVectors(designs=(design,))
    source = supply.source("train", 1, 1, code)
    found = re.search(r'width="([\d.]+)" height="([\d.]+)"', source)
    assert found
    width, height = (round(float(number)) for number in found.groups())
    theirs = chromium.draw(source, height=height, width=width, suffix=".svg")
    ours = sandbox.pool().draw(
      "svg", source.encode(), name="a", height=height, width=width
    )
    difference = np.abs(ours.image.astype(int) - theirs)
    assert difference.mean() < 2.5, (design, code)
    assert (difference.max(axis=2) > 128).mean() < 0.01, (design, code)


@needs_fonts
@pytest.mark.skipif("Thai" not in _HAVE, reason="no font of Thai")
def test_what_a_family_lacks_is_drawn_as_outlines() -> None:
  """Noto Looped Thai has no Latin digits: another font stands in."""
  canvas = _canvas("th")
  for family in page_designs.families("Thai"):
    if "Looped" in family.name:
      canvas.style = dataclasses.replace(canvas.style, head=family)
  canvas.text("27", 150, 150, 40, "black")
  [line] = [r for r in canvas.regions if r.label == "line"]
  assert np.allclose(_ink(_draw(canvas.svg())), line.box, atol=1.6)
  latin = _canvas("en")
  latin.style = dataclasses.replace(
    latin.style, head=page_designs.families("Latn")[0]
  )
  latin.text("27", 150, 150, 40, "black")
  if "<path" in canvas.svg():  # Of the same font as Latin's own.
    difference = _draw(canvas.svg()).astype(int) - _draw(latin.svg())
    assert np.abs(difference).mean() < 1.5
