"""Lines are whole, apart, where their style says, and in their boxes."""

import dataclasses
import itertools

import numpy as np
import pytest

from byt5_diffusion.data import (
  annotated,
  text,
)
from byt5_diffusion.data.writing import (
  designs,
  font_styles,
  fonts,
  shaping,
  typesetting,
  typography,
  words,
)

LINES = {
  "Arab": ["مرحبا بكم", "قرن ۱۲"],
  "Deva": ["मित्र क्षत्रिय", "हिन्दी"],
  "Hant": ["漢字書法", "電話號碼"],
  "Jpan": ["縦書きの「文字」", "第3号、です。"],
  "Khmr": ["ស្ត្រី", "ភ្នំពេញ"],
  "Latn": ["Größe fi", "AVA", "yogurt"],
  "Thai": ["ที่นี่", "น้ำ ปี่"],
}
SIDE = 256


def style_of(script: str, **options) -> typesetting.Style:
  try:
    font = font_styles.variants(script)[0]
  except fonts.MissingFont as error:
    pytest.skip(str(error))
  return typesetting.Style(**{"font": font, "size": 0.15, **options})


def composed(script: str, **options) -> typesetting.Composition:
  return typesetting.compose(
    LINES[script], script, style_of(script, **options), SIDE, SIDE
  )


def dark(image: np.ndarray) -> np.ndarray:
  return image.min(axis=2) < 255


def cells(box: annotated.Box) -> tuple[slice, slice]:
  """Rows and columns of the pixels that a box touches."""
  left, top, right, bottom = box
  return (
    slice(int(np.floor(top)), int(np.ceil(bottom))),
    slice(int(np.floor(left)), int(np.ceil(right))),
  )


CASES = [
  *((script, {}) for script in LINES),
  *((script, {"vertical": True}) for script in ("Hant", "Jpan")),
  ("Latn", {"tracking": 0.2, "slant": 0.2}),
  ("Latn", {"size": 9.0}),  # As large as fits.
  ("Arab", {"slant": 0.2, "alignment": "right"}),
]


@pytest.mark.parametrize(("script", "options"), CASES)
@pytest.mark.parametrize("label", ["line", "word", "glyph"])
def test_all_ink_is_in_boxes_and_every_box_holds_ink(script, options, label):
  made = composed(script, **options)
  found = typesetting.regions(made, [None] * len(made.lines), [label])
  ink = dark(made.image)
  outside = ink.copy()
  for region in found:
    assert region.label == label and region.text
    assert region.vertical == options.get("vertical", False)
    left, top, right, bottom = region.box
    assert 0 <= left < right <= SIDE and 0 <= top < bottom <= SIDE
    part = ink[cells(region.box)]
    # Ink on each of the sides: the box is no larger than it has to be.
    assert part[:2].any() and part[-2:].any()
    assert part[:, :2].any() and part[:, -2:].any()
    outside[cells(region.box)] = False
  assert ink.any() and not outside.any()


@pytest.mark.parametrize(("script", "options"), CASES)
def test_the_margin_is_free(script, options):
  made = composed(script, margin=9, **options)
  ink = dark(made.image)
  assert not ink[:9].any() and not ink[-9:].any()
  assert not ink[:, :9].any() and not ink[:, -9:].any()


@pytest.mark.parametrize("script", LINES)
def test_lines_do_not_touch_however_small_the_leading(script):
  made = composed(script, leading=0.1)
  boxes = [
    region.box
    for region in typesetting.regions(made, [None] * len(made.lines), ["line"])
  ]
  for above, below in itertools.pairwise(boxes):
    assert above[3] <= below[1]
  assert made.leading > 0.1


def test_texts_of_regions_are_the_strings_parts():
  made = composed("Latn")
  spans = [(10, 20), (30, 33), None]
  found = typesetting.regions(made, spans)
  by_label = {
    label: [r for r in found if r.label == label]
    for label in ("line", "word", "glyph")
  }
  assert [r.text for r in by_label["line"]] == LINES["Latn"]
  assert [r.text for r in by_label["word"]] == ["Größe", "fi", "AVA", "yogurt"]
  assert "".join(r.text for r in by_label["glyph"]) == "GrößefiAVAyogurt"
  assert [r.span for r in by_label["line"]] == spans
  # ö and ß have two bytes each.
  assert [r.span for r in by_label["word"]] == [
    (10, 17), (18, 20), (30, 33), None,
  ]  # fmt: skip
  assert by_label["glyph"][2].span == (12, 14)


@pytest.mark.parametrize("script", ["Arab", "Deva", "Khmr", "Thai"])
def test_regions_of_glyphs_are_whole_grapheme_clusters(script):
  made = composed(script)
  found = typesetting.regions(made, [None] * 2, ["glyph"])
  starts = set(
    itertools.accumulate(
      [len(c) for c in text.graphemes("".join(LINES[script]))], initial=0
    )
  )
  place = 0
  whole = "".join(LINES[script])
  for region in found:
    place = whole.index(region.text, place)
    assert place in starts and place + len(region.text) in starts
    place += len(region.text)


def test_alignment_is_where_the_ink_is():
  def sides(script: str, alignment: str, **options):
    made = composed(script, alignment=alignment, **options)
    boxes = [
      r.box
      for r in typesetting.regions(made, [None] * len(made.lines), ["line"])
    ]
    return np.array(boxes)

  left, right = sides("Latn", "left"), sides("Latn", "right")
  middle = sides("Latn", "center")
  assert np.ptp(left[:, 0]) < 4 and left[:, 0].max() < 12
  assert np.ptp(right[:, 2]) < 4 and right[:, 2].min() > SIDE - 12
  assert np.ptp(middle[:, 0] + middle[:, 2]) < 8
  assert np.abs((middle[:, 0] + middle[:, 2]) / 2 - SIDE / 2).max() < 6
  top = sides("Hant", "left", vertical=True)
  bottom = sides("Hant", "right", vertical=True)
  assert top[:, 1].max() < 12 and bottom[:, 3].min() > SIDE - 12


def test_vertical_lines_go_from_right_to_left():
  made = composed("Jpan", vertical=True)
  first, second = (
    r.box for r in typesetting.regions(made, [None] * 2, ["line"])
  )
  assert second[2] <= first[0]
  assert first[3] - first[1] > 3 * (first[2] - first[0])
  flat = composed("Jpan")
  above, below = (
    r.box for r in typesetting.regions(flat, [None] * 2, ["line"])
  )
  assert above[3] <= below[1]


def test_letters_have_the_size_that_is_asked_for_or_that_fits():
  assert composed("Latn").scale == pytest.approx(0.15 * SIDE)
  made = composed("Latn", size=3.0)
  ink = dark(made.image)
  rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
  spans = rows[-1] - rows[0], columns[-1] - columns[0]
  assert max(spans) > SIDE - 14  # Nothing larger would fit.
  with pytest.raises(typography.Illegible, match=r"than 8\.0"):
    typesetting.compose(["x" * 200], "Latn", style_of("Latn"), SIDE, SIDE)


def test_colours_are_the_styles_where_all_or_no_ink_is():
  made = composed("Latn", ink=(10, 200, 30), paper=(250, 5, 90), size=0.4)
  pixels = {tuple(pixel) for pixel in made.image.reshape(-1, 3)}
  assert (10, 200, 30) in pixels and tuple(made.image[0, 0]) == (250, 5, 90)


def test_what_cannot_be_drawn_is_said():
  with pytest.raises(typography.MissingGlyph, match=r"U\+10FFFF"):
    typesetting.compose(["a\U0010ffff"], "Latn", style_of("Latn"), SIDE, SIDE)
  with pytest.raises(typography.CannotDraw, match="no ink"):
    typesetting.compose(["  "], "Latn", style_of("Latn"), SIDE, SIDE)


def test_other_fonts_stand_in_for_what_a_font_lacks():
  made = typesetting.compose(["ກຂ (ABC)"], "Laoo", style_of("Laoo"), SIDE, SIDE)
  assert len({id(glyph.font) for glyph in made.lines[0].line.glyphs}) > 1


def test_style_numbers_are_of_what_was_drawn():
  style = style_of("Jpan", vertical=True, tracking=0.1, ink=(255, 0, 51))
  made = typesetting.compose(LINES["Jpan"], "Jpan", style, SIDE, SIDE)
  numbers = typesetting.numbers(made, style, "Jpan")
  assert set(numbers) == set(annotated.STYLE)
  assert numbers["vertical"] == 1 and numbers["right_to_left"] == 0
  assert numbers["size"] == pytest.approx(made.scale / SIDE)
  assert numbers["ink_blue"] == pytest.approx(0.2) and numbers["paper_red"] == 1
  assert numbers["weight"] == font_styles.style_of(style.font).weight
  arabic = style_of("Arab", tracking=0.1)
  made = typesetting.compose(LINES["Arab"], "Arab", arabic, SIDE, SIDE)
  numbers = typesetting.numbers(made, arabic, "Arab")
  assert numbers["tracking"] == 0 and numbers["right_to_left"] == 1


# --- Where lines end ----------------------------------------------------------


@pytest.mark.parametrize(
  ("string", "script", "length", "lines"),
  [
    ("one two three four", "Latn", 100, ["one two three four"]),
    ("one two three four", "Latn", 9, ["one two", "three four"]),
    ("a bb ccc", "Latn", 1, ["a", "bb", "ccc"]),
    ("costs 8 769 € now", "Latn", 6, ["costs", "8 769 €", "now"]),
    ("日本語学校です", "Jpan", 4, ["日本語", "学校です"]),
    ("時刻20:10です", "Jpan", 3, ["時刻", "20:10", "です"]),
    ("「日本」、「中国」。", "Jpan", 3, ["「日", "本」、", "「中", "国」。"]),
    ("ที่นี่น้ำมี", "Thai", 2, ["ที่นี่", "น้ำมี"]),
  ],
)
def test_a_string_is_cut_between_words_or_clusters(
  string, script, length, lines
):
  places = typesetting.wrap(string, script, length)
  assert [string[start:end] for start, end in places] == lines


def test_vowels_of_thai_and_lao_stay_with_their_consonants():
  for string in ("เสรีภาพและเสมอภาค", "ເສລີພາບ ແລະ ໃນ", "时间：20:10。"):
    units = typesetting.unbroken(string)
    assert "".join(units) == string and len(units) > 2
    for unit in units:
      assert unit.rstrip()[-1] not in "เแโใไເແໂໃໄ"
      assert unit[0] not in "ะາະ。："


@pytest.mark.parametrize("script", ["Latn", "Jpan", "Thai"])
def test_nothing_is_lost_at_the_ends_of_lines(script):
  string = " ".join(LINES[script] * 3)
  for length in range(1, 40):
    places = typesetting.wrap(string, script, length)
    joined = "".join(string[start:end] for start, end in places)
    assert joined.replace(" ", "") == string.replace(" ", "")
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(places))


# --- Fonts' names and random styles -----------------------------------------


@pytest.mark.parametrize(
  ("name", "style", "weight", "italic", "kind"),
  [
    ("NotoSans-Regular", "regular", 400, False, "sans-serif"),
    ("NotoSerif-ExtraLightItalic", "extralightitalic", 200, True, "serif"),
    (
      "NotoSans-CondensedSemiBold",
      "condensedsemibold",
      600,
      False,
      "sans-serif",
    ),
    ("DejaVuSansMono-BoldOblique", "boldoblique", 700, True, "monospace"),
    ("Amiri-Slanted", "slanted", 400, True, "serif"),
    ("NotoKufiArabic-Black", "black", 900, False, ""),
  ],
)
def test_a_files_name_says_the_style(name, style, weight, italic, kind):
  found = font_styles.style_of(fonts.Font(path=f"/x/{name}.ttf", style=style))
  assert (found.weight, found.italic, found.kind) == (weight, italic, kind)
  assert found.bold == (weight >= 600) and found.family == name.split("-")[0]


@pytest.fixture
def variable_font(tmp_path):
  """A font whose letters are boxes, wider the bolder they are."""
  builder = pytest.importorskip("fontTools.fontBuilder")
  pens = pytest.importorskip("fontTools.pens.ttGlyphPen")
  tables = pytest.importorskip("fontTools.ttLib.tables.TupleVariation")
  letters = "abcdefghijklmnopqrstuvwxyz"

  def box(width: int):
    pen = pens.TTGlyphPen(None)
    pen.moveTo((100, 0))
    for corner in ((100, 500), (100 + width, 500), (100 + width, 0)):
      pen.lineTo(corner)
    pen.closePath()
    return pen.glyph()

  font = builder.FontBuilder(1000, isTTF=True)
  font.setupGlyphOrder([".notdef", *letters])
  font.setupCharacterMap({ord(c): c for c in letters})
  font.setupGlyf({name: box(200) for name in [".notdef", *letters]})
  font.setupHorizontalMetrics(dict.fromkeys([".notdef", *letters], (600, 100)))
  font.setupHorizontalHeader(ascent=800, descent=-200)
  font.setupNameTable({"familyName": "NotoSans", "styleName": "Regular"})
  font.setupOS2(sTypoAscender=800, sTypoDescender=-200)
  font.setupPost()
  font.setupFvar([("wght", 300, 400, 800, "Weight")], [])
  wider = [(0, 0), (0, 0), (200, 0), (200, 0), *[(0, 0)] * 4]
  font.setupGvar(
    {c: [tables.TupleVariation({"wght": (0, 1, 1)}, wider)] for c in letters}
  )
  font.save(tmp_path / "NotoSans[wght].ttf")
  return tmp_path


def test_a_variable_font_is_as_many_styles(variable_font, monkeypatch):
  monkeypatch.setattr(fonts, "directories", lambda: (str(variable_font),))
  found = font_styles.variants("Latn")
  weights = [font_styles.style_of(font).weight for font in found]
  assert weights == [300, 400, 500, 600, 700, 800]
  assert font_styles.style_of(found[0]).family == "NotoSans"
  boxes = [
    shaping.shape("a", (font,), script="Latn").glyphs[0].box for font in found
  ]
  widths = [box.right - box.left for box in boxes]
  assert widths[0] == widths[1] == pytest.approx(0.2)
  assert widths[-1] == pytest.approx(0.4) and widths[1] < widths[3] < widths[-1]
  inks = [
    (
      typesetting.compose(
        ["abc"], "Latn", typesetting.Style(font=font, size=0.2), 64, 128
      ).image
      == 0
    ).sum()
    for font in (found[1], found[-1])
  ]
  assert inks[1] > 1.5 * inks[0]


def test_family_numbers_tell_the_families_apart():
  families = {row[0] for rows in fonts.TABLE.values() for row in rows} | set(
    itertools.chain(*font_styles.MORE.values())
  )
  numbers = {font_styles.family_number(family) for family in families}
  assert len(numbers) == len(families) and max(numbers) < 2**16
  assert font_styles.family_number("NotoSans") == 28640  # For good.


def test_designs_have_contrast_and_vertical_lines_only_where_they_exist():
  design = designs.Designs(min_contrast=4.0)
  vertical = 0
  for number in range(300):
    rng = words.generator("design", number)
    script = ("Latn", "Jpan")[number % 2]
    style_of(script)
    style = design.draw(rng, script)
    assert designs.contrast(style.ink, style.paper) >= 4.0
    assert script == "Jpan" or not style.vertical
    assert not (style.slant and font_styles.style_of(style.font).italic)
    vertical += style.vertical
    again = design.draw(words.generator("design", number), script)
    assert dataclasses.astuple(again) == dataclasses.astuple(style)
  assert 0.2 < vertical / 150 < 0.5


def test_contrast_is_wcags():
  assert designs.contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
  assert designs.contrast((119, 119, 119), (255, 255, 255)) == pytest.approx(
    4.48, abs=0.01
  )


@pytest.mark.parametrize(
  "options",
  [{"colors": "red"}, {"smallest": 0.7}, {"min_contrast": 9.0}, {"margin": 0}],
)
def test_impossible_designs_are_refused(options):
  with pytest.raises(ValueError, match=next(iter(options))):
    designs.Designs(**options)


def test_shaped_lines_are_the_pictures():
  """compose and a single shaping.draw give the same pixels."""
  style = style_of("Deva")
  made = typesetting.compose(LINES["Deva"][:1], "Deva", style, 64, 256)
  item = made.lines[0]
  line = shaping.shape(LINES["Deva"][0], (style.font,), script="Deva")
  coverage = shaping.draw(
    [(g, item.x, item.y) for g in line.glyphs], 64, 256, made.scale
  )
  assert np.array_equal(made.image[..., 0], 255 - coverage)
