"""Glyphs are HarfBuzz's own, upright and lying, and their boxes hold their ink.

The same strings go through another road: HarfBuzz asked once for the whole
text (by its binding, and by Debian's hb-shape where that is installed).
"""

import csv
import functools
import re
import shutil
import subprocess
import unicodedata

import numpy as np
import pytest
import uharfbuzz as hb

from byt5_diffusion.data.writing import (
  font_styles,
  fonts,
  glyph_ink,
  phrases,
  rasterizers,
  shaping,
  words,
)

# What the whole line's script is called by OpenType.
SCRIPTS = {"Jpan": "Hani", "Hans": "Hani", "Hant": "Hani", "Kore": "Hang"}
LANGUAGES = {
  "Arab": ("ar", "fa", "ur", "sd", "ps"),
  "Armn": ("hy",),
  "Beng": ("bn",),
  "Cyrl": ("ru", "sr", "mk", "bg"),
  "Deva": ("hi", "mr", "ne"),
  "Ethi": ("am",),
  "Geor": ("ka",),
  "Grek": ("el",),
  "Gujr": ("gu",),
  "Guru": ("pa",),
  "Hans": ("zh",),
  "Hant": ("zh",),
  "Hebr": ("iw", "yi"),
  "Jpan": ("ja",),
  "Khmr": ("km",),
  "Knda": ("kn",),
  "Kore": ("ko",),
  "Laoo": ("lo",),
  "Latn": ("vi", "ro", "tr", "yo"),
  "Mlym": ("ml",),
  "Mymr": ("my",),
  "Sinh": ("si",),
  "Taml": ("ta",),
  "Telu": ("te",),
  "Thai": ("th",),
  "Tibt": ("bo",),
}
CASES = [(s, code) for s, codes in LANGUAGES.items() for code in codes]
TIBETAN = (
  "འགྲོ་བ་མི་རིགས་ཡོངས་ལ་སྐྱེས་ཙམ་ཉིད་ནས་",
  "བསྒྲུབས་པ། རྒྱལ་སྤྱི། སྙིང་རྗེ། བརྩེ་བ།",
  "ཀློག་འགྲེལ།",
  "རྡོ་རྗེ་སེམས་དཔའ་",
  "ཨོཾ་མ་ཎི་པདྨེ་ཧཱུྃ།",
)


def fonts_of(script: str) -> tuple[fonts.Font, ...]:
  try:
    return font_styles.variants(script)
  except fonts.MissingFont as error:
    pytest.skip(str(error))


@functools.cache
def strings_of(script: str, code: str) -> tuple[str, ...]:
  """At least five strings of one direction, the longest of many."""
  if code == "bo":
    return TIBETAN
  rng = words.generator("shaping", code)
  source = phrases.Phrases()
  found = {source.draw(rng, code) for _ in range(150)}
  plain = [
    sample.text
    for sample in found
    if sample.script == script
    # Digits and marks of other scripts make runs of their own.
    and all(
      unicodedata.category(c)[0] in "LMZ" or c in "\u200c\u200d"
      for c in sample.text
    )
  ]
  return tuple(sorted(plain, key=lambda text: (len(text), text))[-8:])


def declaration(folder, code: str) -> list[str]:
  """Articles of the Declaration of Human Rights, as far as one run goes."""
  path = folder / "fixtures/udhr/udhr_mc4_langs.tsv"
  with path.open(encoding="utf-8", newline="") as file:
    rows = list(csv.DictReader(file, delimiter="\t"))
  found = [row for row in rows if row["mc4_code"] == code]
  texts = [
    row[name] or "" for row in found for name in ("article1", "article3")
  ]
  return [
    unicodedata.normalize("NFC", part.strip())
    for text in texts
    for part in text.replace("،", ".").replace("、", ".").split(".")
    if part.strip()
  ]


def whole(
  text: str, font: fonts.Font, script: str, code: str, direction: str
) -> list[int]:
  """Glyph ids of one call for all of the text."""
  buffer = hb.Buffer()
  buffer.add_str(text)
  buffer.script = SCRIPTS.get(script, script)
  buffer.language = shaping.bcp47(code)
  buffer.direction = direction
  hb.shape(hb.Font(fonts.face(font)), buffer)
  return [info.codepoint for info in buffer.glyph_infos]


def ids(line: shaping.Line) -> list[int]:
  return [glyph.id for glyph in line.glyphs]


def direction_of(script: str) -> str:
  return "rtl" if script in shaping.RIGHT_TO_LEFT else "ltr"


@pytest.mark.parametrize(("script", "code"), CASES)
def test_glyphs_are_those_of_one_call_for_the_whole_text(script, code):
  strings = strings_of(script, code)
  assert len(strings) >= 5
  for font in fonts_of(script)[:2]:
    for text in strings:
      line = shaping.shape(text, (font,), script=script, language=code)
      expected = whole(text, font, script, code, direction_of(script))
      assert ids(line) == expected, text
      assert 0 not in ids(line) and not line.missing


@pytest.mark.parametrize(("script", "code"), CASES)
def test_real_texts_have_harfbuzzs_glyphs(script, code, shared_data):
  font = fonts_of(script)[0]
  texts = declaration(shared_data, code)
  if script in ("Hant", "Tibt"):
    pytest.skip("The fixture has no text of this script.")
  texts = [t for t in texts if words.script_of(t) in (script, "Hans")]
  assert texts or code in ("sd", "sr")  # Which are in other letters there.
  compared = 0
  for text in texts:
    line = shaping.shape(
      text,
      (font, *font_styles.fallbacks(script)),
      script=script,
      language=code,
    )
    assert 0 not in ids(line)
    # What the font has whole, and what is one run.
    for part in re.findall(r"[\w\s\u0300-\U000e01ef]+", text):
      part = part.strip()
      if part and not rasterizers.lacking(part, (font,)):
        line = shaping.shape(part, (font,), script=script, language=code)
        expected = whole(part, font, script, code, direction_of(script))
        assert ids(line) == expected, part
        compared += len(part)
  assert compared >= 0.8 * len("".join(texts))


@pytest.mark.parametrize(("script", "code"), CASES)
def test_glyphs_are_those_of_debians_program(script, code, tmp_path):
  if shutil.which("hb-shape") is None:
    pytest.skip("hb-shape is not installed (Debian's libharfbuzz-bin).")
  font, strings = fonts_of(script)[0], strings_of(script, code)
  (tmp_path / "text").write_text("\n".join(strings) + "\n", "utf-8")
  for direction in {
    direction_of(script),
    *(["ttb"] if script in SCRIPTS else []),
  }:
    command = [
      "hb-shape", "--no-positions", "--no-glyph-names", "--no-clusters",
      f"--script={SCRIPTS.get(script, script)}", f"--direction={direction}",
      f"--language={shaping.bcp47(code)}", f"--face-index={font.index}",
      f"--text-file={tmp_path / 'text'}", font.path,
    ]  # fmt: skip
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    for text, row in zip(strings, found.stdout.splitlines(), strict=True):
      if direction == "ttb" and not all(map(shaping.stands, text)):
        continue
      line = shaping.shape(
        text,
        (font,),
        script=script,
        language=code,
        vertical=direction == "ttb",
      )
      assert ids(line) == [int(n) for n in row.strip("[]").split("|")], text


# --- Vertical lines -----------------------------------------------------------


@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_upright_glyphs_are_harfbuzzs_of_top_to_bottom(script):
  code = LANGUAGES[script][0]
  texts = [
    "".join(c for c in text if shaping.stands(c))
    for text in strings_of(script, code)
  ] + ["「漢字」。、ー…（一）"[:6], "ー、。「」（）"]
  for font in fonts_of(script)[:2]:
    for text in filter(None, texts):
      line = shaping.shape(
        text, (font,), script=script, language=code, vertical=True
      )
      assert ids(line) == whole(text, font, script, code, "ttb"), text
      assert 0 not in ids(line) and line.vertical


def test_punctuation_has_other_forms_in_vertical_lines():
  font = fonts_of("Jpan")[0]
  for text in "ー、。「（ァ":
    upright = shaping.shape(text, (font,), script="Jpan", language="ja")
    vertical = shaping.shape(
      text, (font,), script="Jpan", language="ja", vertical=True
    )
    assert ids(upright) != ids(vertical), text


def test_vertical_characters_stand_under_each_other_around_the_axis():
  font = fonts_of("Jpan")[0]
  line = shaping.shape("日本語", (font,), script="Jpan", vertical=True)
  assert line.advance == pytest.approx(3.0)
  for number, glyph in enumerate(line.glyphs):
    assert not glyph.lying
    box = glyph.box
    assert number <= box.top < box.bottom <= number + 1
    assert abs(box.left + box.right) < 0.1


def test_latin_letters_of_a_vertical_line_lie():
  """Their glyphs are the horizontal line's, turned by a quarter."""
  font = fonts_of("Jpan")[0]
  lying = shaping.shape("Ab", (font,), script="Jpan", vertical=True)
  flat = shaping.shape("Ab", (font,), script="Jpan")
  assert ids(lying) == ids(flat) and all(g.lying for g in lying.glyphs)
  assert lying.advance == pytest.approx(flat.advance)
  for one, other in zip(lying.glyphs, flat.glyphs, strict=True):
    assert one.box.top == pytest.approx(other.box.left)
    assert one.box.bottom == pytest.approx(other.box.right)
    width = other.box.bottom - other.box.top
    assert one.box.right - one.box.left == pytest.approx(width)


def test_lying_pictures_are_the_flat_ones_turned():
  font = fonts_of("Jpan")[0]
  lying = shaping.shape("Rg", (font,), script="Jpan", vertical=True)
  flat = shaping.shape("Rg", (font,), script="Jpan")
  middle = shaping._MIDDLE * 50
  turned = shaping.draw([(g, 40, 10) for g in lying.glyphs], 100, 80, 50)
  straight = shaping.draw(
    [(g, 10, 40 + middle) for g in flat.glyphs], 80, 100, 50
  )
  expected = np.rot90(straight, -1)
  assert np.abs(turned.astype(int) - expected).max() <= 8


# --- Languages, directions, spaces ------------------------------------------


@pytest.mark.parametrize(
  ("script", "name", "text", "code", "other"),
  [
    ("Cyrl", "NotoSerif-Italic", "гдпт", "sr", "ru"),
    ("Cyrl", "NotoSans-Regular", "б", "mk", "bg"),
    ("Latn", "NotoSans-Regular", "şţ", "ro", "tr"),
    ("Arab", "NotoSansArabic-Regular", "۴۶۷", "ur", "fa"),
    ("Deva", "NotoSansDevanagari-Regular", "लश", "mr", "hi"),
    ("Deva", "NotoSansDevanagari-Regular", "झ", "ne", "hi"),
  ],
)
def test_letters_have_their_languages_forms(script, name, text, code, other):
  font = [f for f in fonts_of(script) if f.path.endswith(f"{name}.ttf")]
  if not font:
    pytest.skip(f"{name} is not here.")
  made = [
    ids(shaping.shape(text, tuple(font), script=script, language=language))
    for language in (code, other)
  ]
  assert len(made[0]) == len(made[1]) == len(text)
  assert all(a != b for a, b in zip(*made, strict=True))


@pytest.mark.parametrize(
  ("code", "script", "tag"),
  [
    ("iw", "", "he"),
    ("no", "", "nb"),
    ("zh", "Hant", "zh-Hant"),
    ("fa", "Arab", "fa"),
    ("und", "", ""),
  ],
)
def test_codes_are_told_as_fonts_know_them(code, script, tag):
  assert shaping.bcp47(code, script) == tag


def test_a_mixed_line_is_in_visual_order():
  font = fonts_of("Arab")
  latin = font_styles.fallbacks("Arab")
  line = shaping.shape("سلام ABC ۱۲", (font[0], *latin), script="Arab")
  starts = [glyph.start for glyph in line.glyphs]
  assert starts.index(5) < starts.index(6) < starts.index(7)
  assert starts.index(9) < starts.index(10) < starts.index(0)
  assert starts.index(3) < starts.index(0)


def test_tracking_parts_letters_but_not_joined_ones():
  font = fonts_of("Latn")[0]
  plain = shaping.shape("office", (font,), script="Latn")
  loose = shaping.shape("office", (font,), script="Latn", tracking=0.25)
  assert len(loose.glyphs) == 6  # No ligatures.
  assert loose.advance == pytest.approx(
    shaping.shape("office", (font,), script="Latn", tracking=1e-9).advance
    + 6 * 0.25
  )
  assert plain.advance < loose.advance
  arabic = fonts_of("Arab")[0]
  joined = [
    shaping.shape("سلام", (arabic,), script="Arab", tracking=tracking).advance
    for tracking in (0.0, 0.25)
  ]
  assert joined[0] == joined[1]


@pytest.mark.parametrize("slant", [0.0, 0.21])
@pytest.mark.parametrize("script", ["Arab", "Deva", "Latn", "Thai", "Jpan"])
def test_ink_of_each_glyph_is_inside_its_box_and_touches_its_sides(
  script, slant
):
  code = LANGUAGES[script][0]
  for vertical in {False, script in SCRIPTS and not slant}:
    for font in fonts_of(script)[:3]:
      line = shaping.shape(
        strings_of(script, code)[-1][:12],
        (font,),
        script=script,
        language=code,
        vertical=vertical,
        slant=slant,
      )
      for glyph in line.glyphs:
        check_box(glyph)


@pytest.mark.parametrize("script", ["Hans", "Latn", "Arab", "Deva"])
def test_ink_is_the_outlines_whatever_a_font_says(script):
  """At 400 pixels an em, in every font; control points would be off by 50."""
  strings = {
    "Hans": "黄河买永",
    "Latn": "Officu",
    "Arab": "نص عر",
    "Deva": "हिन्दी",
  }
  for font in font_styles.variants(script):
    line = shaping.shape(strings[script], (font,), script=script)
    for glyph in line.glyphs:
      if glyph.ink is None:
        continue
      x, y = 600 - glyph.x * 400, 800 + glyph.y * 400
      ink = shaping.draw([(glyph, x, y)], 1500, 1800, 400.0)
      rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
      box = np.array(glyph.ink) * 400 + [x, y, x, y]
      found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
      assert np.abs(np.array(found) - box).max() < 1.01, (font.path, glyph.id)


def test_extremes_of_curves_are_where_they_turn():
  # (0,0) (0,4) (4,4) (4,0): y = 12 t (1 - t), 3 at most, at t = 1/2, x = 2.
  found = np.array(glyph_ink._extremes(np.array([[0, 0, 0, 4, 4, 4, 4, 0.0]])))
  assert found[..., 1].max() == pytest.approx(3.0)
  assert found.min() >= 0 and found[..., 0].max() <= 4


def check_box(glyph: shaping.Glyph, scale: float = 60.0, side: int = 240):
  x = side / 2 - glyph.x * scale
  y = side / 2 + glyph.y * scale
  ink = shaping.draw([(glyph, x, y)], side, side, scale)
  rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
  assert (glyph.box is None) == (glyph.ink is None)
  if glyph.ink is None:
    assert not rows.size
    return
  box = np.array(glyph.ink) * scale + [x, y, x, y]
  found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
  # All ink is inside, and the box is no larger than a pixel's rounding.
  assert np.all(found[:2] >= np.floor(box[:2] - 0.05))
  assert np.all(found[2:] <= np.ceil(box[2:] + 0.05))
  assert np.abs(np.array(found) - box).max() < 1.2
  room = np.array(glyph.box) * scale + [x, y, x, y]
  assert np.all(room[:2] <= box[:2] + 0.06)
  assert np.all(room[2:] >= box[2:] - 0.06)
