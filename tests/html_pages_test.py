"""Pages of HTML: boxes hold their words' ink, captions what is on the page."""

import dataclasses
import difflib
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("weasyprint")
pytest.importorskip("pypdfium2")

from byt5_diffusion import quotes
from byt5_diffusion.data import (
  annotated,
  images,
  languages,
  pictures,
  supplies,
)
from byt5_diffusion.data.pages import (
  chromium,
  html_pages,
  made_pages,
  page_boxes,
  page_designs,
  page_kinds,
  page_writer,
  sandbox,
)
from byt5_diffusion.data.writing import (
  fonts,
  phrases,
  words,
)

_HAVE = set(fonts.available_scripts())
needs_fonts = pytest.mark.skipif(
  not {"Latn", "Arab", "Deva", "Thai", "Jpan"} <= _HAVE,
  reason="fonts are missing: python tools/fetch_fonts.py",
)
# A word to be hidden, in the middle of a line of its script.
_LINES = {
  "Latn": ("The quick", "fjord", "jumps over"),
  "Arab": ("هذا نص", "عربي", "طويل"),
  "Deva": ("यह एक", "हिन्दी", "वाक्य है"),
  "Thai": ("ที่ นี่", "น้ำใจ", "ดี มาก"),
  "Jpan": ("吾輩は", "猫", "である。"),
  "Hans": ("黄河", "买", "永远"),
}


def _draw(html: str, **options: object) -> sandbox.Drawn:
  size = {"height": 200, "width": 400, **options}
  return sandbox.pool().draw("html", html.encode(), name="test", **size)


def _ink(one: np.ndarray, other: np.ndarray) -> tuple[int, int, int, int]:
  """Box of the pixels in which two pictures differ."""
  differs = np.abs(one.astype(int) - other).max(axis=2) > 24
  rows, columns = np.flatnonzero(differs.any(1)), np.flatnonzero(differs.any(0))
  assert rows.size, "nothing was hidden"
  return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


@needs_fonts
@pytest.mark.parametrize("script", sorted(_LINES))
@pytest.mark.parametrize("css", ["", "transform: rotate(12deg)"])
def test_the_ink_of_a_word_is_in_its_box_and_fills_it(
  script: str, css: str
) -> None:
  before, word, after = _LINES[script]
  # Of the East Asian ones with serifs, whose outlines have more to them.
  family = page_designs.families(script)[-(script == "Hans")].name
  space = "" if script in ("Hans", "Jpan") else " "
  direction = "rtl" if script == "Arab" else "ltr"
  html = (
    f'<body dir="{direction}" style="margin:60px;font:40px \'{family}\'">'
    f'<div style="{css}">{before}{space}<span style="visibility:SEEN">{word}'
    f"</span>{space}{after}</div>"
  )
  page = "<style>@page{margin:0}</style>" + html
  drawn = _draw(page.replace("SEEN", "visible"), width=600)
  hidden = _draw(page.replace("SEEN", "hidden"), width=600)
  label = "glyph" if script in ("Hans", "Jpan") else "word"
  [box] = [r.box for r in drawn.regions if (r.label, r.text) == (label, word)]
  assert not [r for r in hidden.regions if (r.label, r.text) == (label, word)]
  left, top, right, bottom = _ink(drawn.image, hidden.image)
  assert left >= box[0] - 1.5 and right <= box[2] + 1.5
  assert top >= box[1] - 1.5 and bottom <= box[3] + 1.5
  if not css:  # The box around a turned one is larger than its ink.
    assert np.allclose((left, top, right, bottom), box, atol=2.0)


@needs_fonts
def test_regions_are_blocks_then_lines_then_words_in_reading_order() -> None:
  drawn = _draw(
    '<style>@page{margin:0}</style><h1 data-label="title">Two words</h1>'
    '<table data-label="table" style="border:3px solid"><tr><td>cell</table>'
    "<p>free</p>"
  )
  found = [(region.label, region.text) for region in drawn.regions]
  assert found == [
    ("title", "Two words"),
    ("table", "cell"),
    ("line", "Two words"),
    ("line", "cell"),
    ("line", "free"),
    ("word", "Two"),
    ("word", "words"),
    ("word", "cell"),
    ("word", "free"),
  ]
  table, cell = drawn.regions[1].box, drawn.regions[3].box
  assert table[0] < cell[0] - 2 and table[2] > cell[2] + 2  # With its border.


@needs_fonts
def test_text_is_made_smaller_until_it_fits() -> None:
  html = (
    "<style>@page{margin:0}body{margin:0;font-size:1rem;overflow-wrap:anywhere}"
    '</style><p data-label="text">' + "unpronounceable " * 6
  )
  fit = [40.0, 30.0, 20.0, 14.0]
  drawn = _draw(html, fit=fit, strict=True)
  assert drawn.facts == {"pages": 1, "root_size": 20.0}
  with pytest.raises(images.BadImage, match="does not fit"):
    _draw(html, fit=fit[:2], strict=True)
  # A word that is torn, lines of different blocks on each other, and a line
  # that the layout left out do not fit either.
  for bad in (
    '<p data-label="text" style="width:40px;overflow-wrap:anywhere">torn-apart'
    "ness</p>",
    '<p data-label="text">one</p><p data-label="text" '
    'style="margin-top:-34px">two</p>',
    '<p data-label="text" style="display:none">gone</p>',
  ):
    with pytest.raises(images.BadImage, match="does not fit"):
      _draw(bad, fit=[16.0], strict=True)


@needs_fonts
def test_what_has_no_glyph_is_refused_where_pages_are_ours() -> None:
  html = '<p data-label="text">a\U00012000b'  # Cuneiform.
  with pytest.raises(images.BadImage, match="no glyph for '\U00012000'"):
    _draw(html, strict=True)
  assert _draw(html).image.shape == (200, 400, 3)


def test_only_fonts_of_the_table_are_known() -> None:
  listed = html_pages.font_files()
  assert listed and len(set(listed)) == len(listed)
  assert all("Noto" in p or "DejaVu" in p or "Amiri" in p for p in listed)


# -- Made-up pages -----------------------------------------------------------


@needs_fonts
@pytest.mark.parametrize("code", ["en", "ar", "hi", "th", "ja"])
def test_a_page_is_the_same_again_and_says_what_its_caption_quotes(
  code: str,
) -> None:
  supply = made_pages.MadePages(side=400, designs=("poster", "menu", "sign"))
  page = supply.read("train", 3, 7, code)
  again = supply.read("train", 3, 7, code)
  assert np.array_equal(page.image, again.image) and page.text == again.text
  assert (
    not np.array_equal(page.image, supply.read("train", 4, 7, code).image)
    or page.text != supply.read("train", 4, 7, code).text
  )
  quoted = quotes.strings(page.text)
  assert quoted and page.language == code
  assert page.transcription is not None
  for text in quoted:
    assert text in page.transcription.split("\n")
  assert words.split_of(quoted[0]) == "train"
  encoded = page.text.encode("utf-8")
  spans = [r for r in page.regions if r.span]
  assert {r.text for r in spans} >= set(quoted)
  for region in spans:
    start, end = region.span
    assert encoded[start:end].decode("utf-8") == region.text
  height, width, _ = page.image.shape
  for region in page.regions:
    left, top, right, bottom = region.box
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    assert region.label in annotated.LABELS
  assert set(page.style) == set(annotated.STYLE)


@needs_fonts
def test_headlines_of_the_splits_differ() -> None:
  supply = made_pages.MadePages(designs=("sign",))
  for index in range(40):
    rng = words.generator("test", index)
    design, _, _ = supply.page("validation", "en", rng)
    assert words.split_of(design.quoted[0]) == "validation"
  with pytest.raises(ValueError, match="split"):
    supply.page("test", "en", words.generator("test"))


@needs_fonts
def test_a_name_opens_pages_and_gives_features() -> None:
  table = {"typography_layout": supplies.Kind(made_pages.open_pages)}
  name = "typography_layout_annotated:built_in@128x128+designs=sign+side=256"
  parsed = supplies.parse(table, name)
  assert parsed is not None
  assert isinstance(parsed.picture, pictures.AnnotatedFrame)
  maker = supplies.Maker(supply=parsed.supply, picture=parsed.picture)
  made = maker.make("train", 0, 0, {"text_tokens": 512})
  assert made is not None and made["image"].shape == (128, 128, 3)
  assert len(made["boxes"]) == len(made["box_labels"]) > 0
  assert not np.isnan(made["style"]).any()
  with pytest.raises(ValueError, match="there is no 'postr'"):
    supplies.parse(table, "typography_layout:built_in@64x64+designs=postr")
  with pytest.raises(ValueError, match="side=7"):
    supplies.parse(table, "typography_layout:built_in@64x64+side=7")


def test_the_users_texts_stand_on_pages(tmp_path) -> None:
  lines = [f"zebra{i} quagga{i} okapi{i}" for i in range(300)]
  (tmp_path / "en.txt").write_text("\n".join(lines), "utf-8")
  supply = made_pages.open_pages(str(tmp_path / "en.txt"), designs="sign")
  assert [languages.TABLE[i].code for i in supply.languages("train")] == ["en"]
  page = supply.read("train", 0)
  found = [r.text for r in page.regions if r.label == "word"]
  assert found and all(
    word.lower().startswith(("zebra", "quagga", "okapi")) for word in found
  )


def test_colours_can_be_read() -> None:
  """WCAG's example pairs, and every palette on every ground it is used on."""
  assert page_designs.contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
  grey = page_designs.contrast((118, 118, 118), (255, 255, 255))
  assert grey == pytest.approx(4.54, abs=0.01)
  for seed in range(100):
    style = page_designs.style(np.random.default_rng(seed), "Latn")
    for ink, paper in (
      (style.ink, style.paper),
      (style.strong, style.paper),
      (style.on_accent, style.accent),
    ):
      assert page_designs.contrast(ink, paper) >= 4.5
    assert page_designs.contrast(style.ink, style.soft) >= 3.5


# -- All of them -------------------------------------------------------------


@pytest.mark.slow
@needs_fonts
@pytest.mark.parametrize("design", sorted(page_kinds.DESIGNS))
def test_every_design_is_drawn_in_every_script(design: str) -> None:
  supply = made_pages.MadePages(designs=(design,))
  seen = {}
  for language in languages.TABLE:
    for script, _ in phrases.scripts(language.code):
      seen.setdefault(script, language.code)
  for code in sorted(set(seen.values())):
    page = supply.read("train", 1, 1, code)
    assert page.image.std() > 3, (design, code)
    assert [r for r in page.regions if r.label in ("word", "glyph")]


@pytest.mark.slow
@needs_fonts
def test_pages_of_all_languages() -> None:
  supply = made_pages.MadePages(side=512)
  for index, language in enumerate(languages.TABLE):
    page = supply.read("train", index, 2, language.code)
    assert page.language == language.code


def _words_of(picture: np.ndarray, model: str, path) -> list[str]:
  Image.fromarray(picture).resize(
    (2 * picture.shape[1], 2 * picture.shape[0])
  ).save(path)
  command = ["tesseract", str(path), "-", "-l", model, "--psm", "6"]
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  return done.stdout.split()


_PEERS = {
  "en": ("eng", "The five boxing wizards jump quickly over the lazy dog"),
  "ar": ("ara", "هذا نص عربي طويل لتجربة رسم الصفحات"),
  "hi": ("hin", "यह एक लंबा हिन्दी वाक्य है"),
  "ja": ("jpn", "吾輩は猫である名前はまだ無い"),
}


@pytest.mark.slow
@needs_fonts
@pytest.mark.skipif(not chromium.find(), reason="Chromium is not installed")
@pytest.mark.parametrize("code", sorted(_PEERS))
def test_chromium_draws_the_same_page(code: str, tmp_path) -> None:
  """Same words in the same places; and Tesseract reads both alike."""
  model, text = _PEERS[code]
  script = phrases.scripts(code)[0][0]
  family = page_designs.families(script)[0].name
  html = (
    f'<!DOCTYPE html><html lang="{code}" dir="'
    f'{"rtl" if code == "ar" else "ltr"}"><meta charset="utf-8"><style>'
    "@page{margin:0}html,body{margin:0}"
    f'p{{font:30px/60px "{family}";margin:20px}}</style><p>{text}</p>'
  )
  ours = _draw(html, height=200, width=700).image
  theirs = chromium.draw(html, height=200, width=700)
  dark = [picture.min(axis=2) < 128 for picture in (ours, theirs)]
  boxes = [
    (np.flatnonzero(d.any(0))[[0, -1]], np.flatnonzero(d.any(1))[[0, -1]])
    for d in dark
  ]
  assert np.abs(np.array(boxes[0]) - np.array(boxes[1])).max() <= 3
  assert np.abs(ours.astype(int) - theirs).mean() < 6.0
  if shutil.which("tesseract"):
    read = [
      "".join(_words_of(picture, model, tmp_path / "a.png"))
      for picture in (ours, theirs)
    ]
    # What it makes of Arabic at this size is little, but the same.
    assert difflib.SequenceMatcher(None, *read).ratio() > 0.9, read
    assert code == "ar" or len(read[0]) > 0.8 * len(text.replace(" ", ""))


@pytest.mark.slow
@needs_fonts
@pytest.mark.skipif(not chromium.find(), reason="Chromium is not installed")
def test_characters_below_each_other_look_as_in_vertical_lines() -> None:
  """WeasyPrint has no vertical writing mode; page_kinds.down stands in."""
  text = "日本語、東京。「夜ー」"
  family = page_designs.families("Jpan")[0].name
  style = f'@page{{margin:0}}html,body{{margin:0}}*{{font-family:"{family}"}}'
  theirs = chromium.draw(
    f'<!DOCTYPE html><meta charset="utf-8"><html lang="ja"><style>{style}'
    "p{writing-mode:vertical-rl;font-size:40px;text-spacing-trim:space-all;"
    "margin:0;"
    f"position:absolute;left:20px;top:20px;line-height:60px}}</style><p>{text}",
    height=520,
    width=100,
  )
  design = page_designs.Design(
    kind="",
    body=page_kinds.down("title", text, "v"),
    css=".v{position:absolute;left:20px;top:20px;width:60px;font-size:40px}"
    ".down b{font-weight:normal!important;line-height:40px!important}",
    quoted=(text,),
  )
  look = dataclasses.replace(
    page_designs.style(np.random.default_rng(0), "Jpan"),
    paper=(255, 255, 255),
    ink=(0, 0, 0),
    head=page_designs.families("Jpan")[0],
  )
  writer = page_writer.Writer(
    rng=np.random.default_rng(0),
    texts=phrases.Phrases(),
    language="ja",
    script="Jpan",
  )
  html = page_designs.document(design, look, writer).replace(
    "font-weight:bold", "font-weight:normal"
  )
  drawn = _draw(html, height=520, width=100)
  [block] = [r for r in drawn.regions if r.label == "title"]
  assert block.vertical and block.text == text
  for i in range(len(text)):  # Character by character, within its own em.
    cells = [
      picture[20 + 40 * i : 60 + 40 * i].min(axis=2) < 128
      for picture in (drawn.image, theirs)
    ]
    spots = [np.argwhere(cell).mean(axis=0) for cell in cells]
    assert np.abs(spots[0] - spots[1]).max() < 4, text[i]


@needs_fonts
def test_no_more_text_stands_on_a_page_than_is_wanted() -> None:
  supply = made_pages.MadePages(side=400, max_bytes=150, max_caption=120)
  for index in range(4):
    page = supply.read("train", index, 0, "en")
    assert len(page.transcription.encode()) <= 150
    assert len(page.text.encode()) <= 120
  hopeless = dataclasses.replace(supply, max_bytes=1, max_caption=0)
  with pytest.raises(images.BadImage, match="more than 1 bytes"):
    hopeless.read("train", 0, 0, "en")


@needs_fonts
def test_bullets_are_no_words_and_lines_may_end_behind_hyphens() -> None:
  html = (
    "<style>@page{margin:0}body{overflow-wrap:anywhere;font-size:1rem}</style>"
    '<ul><li data-label="list-item" style="width:7em">one two-hundred</ul>'
  )
  drawn = _draw(html, fit=[30.0], strict=True)
  assert [r.text for r in drawn.regions if r.label == "word"] == [
    "one",
    "two-",
    "hundred",
  ]
  assert drawn.regions[0].text == "one two-hundred"


@needs_fonts
@pytest.mark.parametrize("design", sorted(page_kinds.DESIGNS))
def test_every_design_fits_at_the_first_tries(design: str) -> None:
  """A design that never fits would give its place to others, unseen."""
  supply = made_pages.MadePages(designs=(design,), side=400)
  drawn = 0
  for index in range(3):
    rng = words.generator("fits", design, index)
    try:
      drawn += supply._draw("key", "train", "en", rng).image.size > 0
    except images.BadImage as error:
      assert "does not fit" in error.reason
  assert drawn


def test_lines_without_ink_at_their_ends_are_noticed() -> None:
  pixels = np.full((40, 100, 3), 200, np.uint8)
  pixels[10:20, 20:80] = 30
  line = page_boxes.Piece(label="line", text="a", box=(20, 10, 80, 20))
  assert page_boxes.as_laid_out(pixels, [line])
  longer = dataclasses.replace(line, box=(20, 10, 92, 20))
  assert not page_boxes.as_laid_out(pixels, [line, longer])
  turned = dataclasses.replace(longer, polygon=((0, 0), (1, 0), (1, 1)))
  assert page_boxes.as_laid_out(pixels, [turned])


@needs_fonts
def test_marks_above_marks_are_drawn_right_or_not_at_all() -> None:
  """Of some fonts, WeasyPrint draws letters behind raised marks too early."""
  html = (
    "<style>@page{margin:0}p{font:40px 'Noto Looped Thai'}</style>"
    '<p data-label="text">มากาซาร์สี่อีโด'
  )
  loose = _draw(html)
  [line] = [r for r in loose.regions if r.label == "line"]
  right = _ink(loose.image, np.full_like(loose.image, 255))[2]
  if abs(right - line.box[2]) > 3:
    with pytest.raises(images.BadImage, match="drawn otherwise"):
      _draw(html, strict=True)
