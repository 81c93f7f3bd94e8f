"""Pictures of text are right in shape, whole, and the same every time.

Right in shape means three things here. Facts about each writing system, read
off the glyphs (Arabic letters join, a vowel sign moves before its consonant);
agreement with two other shaping and drawing stacks, Pango and Skia, where they
are installed; and no glyph that stands for "missing".
"""

import concurrent.futures
import itertools
import unicodedata

import numpy as np
import pytest

from byt5_diffusion.data.writing import (
  bidi,
  fonts,
  rasterizers,
  typography,
  words,
)

SCRIPTS = sorted(fonts.TABLE)
STRINGS = 5
# Marks that stand where another mark would be, one above the other.
MARKED = {
  "Arab": ["مُحَمَّدٌ", "كِتَابٌ", "بِسْمِ"],
  "Deva": ["क्षिं", "र्मि"],
  "Hebr": ["שָׁלוֹם", "בְּרֵאשִׁית"],
  "Khmr": ["ស្ត្រី"],
  "Laoo": ["ນ້ຳ", "ທີ່"],
  "Latn": ["Việt", "ạ̊b", "x̂y"],
  "Mymr": ["မြန်မာ"],
  "Thai": ["น้ำ", "ปี่", "ที่นี่", "กู้"],
  "Tibt": ["བསྒྲུབས"],
}


def font_of(script: str) -> fonts.Font:
  try:
    return fonts.fonts_for(script)[0]
  except fonts.MissingFont as error:
    pytest.skip(str(error))


def strings_of(script: str, count: int = STRINGS) -> list[str]:
  """The longest built-in words, the most shaping, that the best font has."""
  found = itertools.chain(*words._vocabulary()[script].values())
  drawable = [
    w for w in found if not rasterizers.lacking(w, (font_of(script),))
  ]
  return sorted(drawable, key=len)[-count:]


def glyph_ids(text: str, script: str) -> list[int]:
  rtl = script in typography.RIGHT_TO_LEFT
  line = rasterizers.HarfBuzzLine(text, rtl, (font_of(script),))
  return [glyph for _, glyph, _, _ in line.glyphs]


def ink_box(image: np.ndarray) -> tuple[int, int, int, int]:
  dark = image.min(axis=2) < 128
  rows, columns = np.flatnonzero(dark.any(1)), np.flatnonzero(dark.any(0))
  return columns[0], rows[0], columns[-1], rows[-1]


def likeness(first: rasterizers.Line, second: rasterizers.Line) -> float:
  """Cosine of the lines' coverage, 1 if equal; a pixel's shift is forgiven."""
  drawn = [
    line.draw(96, 600, scale=32, x=20, y=60).astype(float)
    for line in (first, second)
  ]
  shifts = itertools.product((-1, 0, 1), repeat=2)
  best = max((np.roll(drawn[0], s, (0, 1)) * drawn[1]).sum() for s in shifts)
  return best / np.sqrt((drawn[0] ** 2).sum() * (drawn[1] ** 2).sum())


def renderer(**options) -> typography.Renderer:
  return typography.Renderer(**{"height": 64, "width": 256, **options})


# -- Right in shape ----------------------------------------------------------


@pytest.mark.parametrize("text", ["بيت", "كتاب", "جبل", "شمس", "سماء"])
def test_arabic_letters_join(text):
  isolated = [glyph_ids(letter, "Arab")[0] for letter in text]
  joined = glyph_ids(text, "Arab")
  assert len(set(joined) & set(isolated)) < len(set(isolated)) / 2
  apart = renderer().render("\N{ZERO WIDTH NON-JOINER}".join(text), "Arab")
  together = renderer().render(text, "Arab")
  width = [box[2] - box[0] for box in map(ink_box, (together, apart))]
  assert width[0] < width[1]


@pytest.mark.parametrize("text", ["אב", "בית", "اد"])
def test_right_to_left_text_starts_at_the_right(text):
  script = words.script_of(text)
  assert glyph_ids(text, script)[-1] == glyph_ids(text[0], script)[0]
  right = ink_box(renderer().render(text, script))[2]
  assert right in (256 - 3, 256 - 2)  # One pixel of margin, one of rounding.


@pytest.mark.parametrize("consonant", list("कतनमस"))
def test_devanagari_short_i_goes_before_its_consonant(consonant):
  marks = glyph_ids(f"{consonant}\N{DEVANAGARI VOWEL SIGN I}", "Deva")
  plain = glyph_ids(consonant, "Deva")
  assert len(marks) == 2
  assert marks[1] == plain[0] != marks[0]


@pytest.mark.parametrize("text", ["क्ष", "त्र", "ज्ञ", "श्र", "द्ध"])
def test_devanagari_consonants_combine(text):
  virama = glyph_ids("\N{DEVANAGARI SIGN VIRAMA}", "Deva")[-1]
  combined = glyph_ids(text, "Deva")
  assert len(combined) < len(text)
  assert virama not in combined


@pytest.mark.parametrize("base", list("กทดนม"))
def test_thai_tone_mark_climbs_over_a_vowel(base):
  def top(text):
    line = rasterizers.HarfBuzzLine(text, False, (font_of("Thai"),))
    assert line.ink is not None
    return line.ink.top

  vowel, tone = "\N{THAI CHARACTER SARA II}", "\N{THAI CHARACTER MAI EK}"
  assert top(base + vowel + tone) < top(base + tone) < top(base)


@pytest.mark.parametrize("text", ["ខ្មែរ", "ភ្នែក", "ឆ្កែ", "ផ្កា", "ភ្លើង"])
def test_khmer_coeng_makes_a_subscript(text):
  coeng = "\N{KHMER SIGN COENG}"
  below = text[text.index(coeng) + 1]
  shaped = glyph_ids(text, "Khmr")
  assert glyph_ids(coeng, "Khmr")[-1] not in shaped
  assert glyph_ids(below, "Khmr")[0] not in shaped


@pytest.mark.parametrize("text", ["မြေ", "ကြောင်", "မြစ်", "ခြောက်", "မြင်း"])
def test_burmese_medial_ra_goes_before_its_consonant(text):
  plain = glyph_ids(text[0], "Mymr")[0]
  # The vowel sign E, where there is one, goes before both.
  place = 2 if "\N{MYANMAR VOWEL SIGN E}" in text else 1
  assert glyph_ids(text, "Mymr").index(plain) == place


@pytest.mark.parametrize("character", list("骨直令角戶"))
def test_han_is_drawn_as_its_language_writes_it(character):
  images = {}
  for script in ("Hans", "Hant", "Jpan"):
    if character not in "".join(map(chr, fonts.coverage(font_of(script)))):
      pytest.skip(f"{script}'s font lacks {character}")
    images[script] = renderer().render(character, script).tobytes()
  assert len(set(images.values())) >= 2


@pytest.mark.parametrize("text", ["한", "글", "강", "물", "빵"])
def test_hangul_letters_compose(text):
  apart = unicodedata.normalize("NFD", text)
  assert len(apart) > 1
  assert glyph_ids(apart, "Kore") == glyph_ids(text, "Kore")


@pytest.mark.parametrize("text", ["é", "ệ", "ñ", "ü", "ž"])
def test_latin_accents_compose(text):
  apart = unicodedata.normalize("NFD", text)
  first = renderer().render(text, "Latn").astype(int)
  second = renderer().render(apart, "Latn").astype(int)
  assert np.abs(first - second).mean() < 1


@pytest.mark.parametrize("peer", ["pango", "skia"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_peers_draw_the_same(script, peer):
  chosen = (font_of(script),)
  rtl = script in typography.RIGHT_TO_LEFT
  for text in strings_of(script) + MARKED.get(script, []):
    ours = rasterizers.HarfBuzzLine(text, rtl, chosen)
    try:
      theirs = rasterizers.BACKENDS[peer](text, rtl, chosen)
    except ImportError as error:
      pytest.skip(str(error))
    assert ours.ink is not None and theirs.ink is not None
    pixels = 32 * np.abs(np.subtract(ours.ink, theirs.ink))
    assert pixels.max() < 1.5, text
    assert likeness(ours, theirs) > 0.985, text


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_built_in_word_has_a_missing_glyph(script):
  if not font_of(script).package.startswith("fonts-noto"):
    pytest.skip("not the fonts that tools/fetch_fonts.py gets")
  for text in itertools.chain(*words._vocabulary()[script].values()):
    image = renderer(height=16, width=48).render(text, script)
    assert image.min() < 128, text  # MissingGlyph otherwise


# -- Lines of mixed direction ------------------------------------------------


@pytest.mark.parametrize(
  ("text", "rtl", "levels"),
  [
    ("ab 12", False, [0, 0, 0, 0, 0]),
    ("אב 12", True, [1, 1, 1, 2, 2]),
    ("אב 12 גד", False, [1, 1, 1, 2, 2, 1, 1, 1]),
    ("a אב b", False, [0, 0, 1, 1, 0, 0]),
    ("א ab ג", True, [1, 1, 2, 2, 1, 1]),
    ("אב!", False, [1, 1, 0]),
    ("אב!", True, [1, 1, 1]),
    ("1,234", True, [2, 2, 2, 2, 2]),
    ("א 20%", True, [1, 1, 2, 2, 2]),
    ("12 אב", False, [0, 0, 0, 1, 1]),
    ("ab  ", True, [2, 2, 1, 1]),
    # Brackets go with what they hold, or with what stands before them (N0).
    ("אב cd(e)", True, [1, 1, 1, 2, 2, 2, 2, 2]),
    ("a (b גד) ה", False, [0, 0, 0, 0, 0, 1, 1, 0, 0, 1]),
    ("a (b גד) ה", True, [2, 1, 1, 2, 1, 1, 1, 1, 1, 1]),
    ("א (b] ג", True, [1, 1, 1, 2, 1, 1, 1]),
    ("א [b(]) ג", True, [1, 1, 1, 2, 1, 1, 1, 1, 1]),
    ("", True, []),
  ],
)
def test_bidi_levels(text, rtl, levels):
  assert bidi.levels(text, rtl) == levels


def test_visual_order_reverses_nested_levels():
  runs = [bidi.Run(i, i + 1, level) for i, level in enumerate([0, 1, 2, 1, 0])]
  order = [run.start for run in bidi.visual_order(runs)]
  assert order == [0, 3, 2, 1, 4]


@pytest.mark.parametrize(
  "text", ["שלום 123", "abc שלום", "שלום abc דג", "12 שלום, דג!", "a1 ב2 c3"]
)
@pytest.mark.parametrize("rtl", [False, True])
def test_mixed_lines_are_ordered_as_pango_does(text, rtl):
  chosen = (font_of("Hebr"), font_of("Latn"))
  ours = rasterizers.HarfBuzzLine(text, rtl, chosen)
  try:
    theirs = rasterizers.PangoLine(text, rtl, chosen)
  except ImportError as error:
    pytest.skip(str(error))
  # A space may come from either font, and be a little wider in one.
  assert likeness(ours, theirs) > 0.9


# -- Whole, and the same every time ------------------------------------------


@pytest.mark.parametrize("backend", list(rasterizers.BACKENDS))
@pytest.mark.parametrize(("height", "width"), [(16, 48), (64, 256)])
def test_nothing_is_clipped(backend, height, width):
  drawer = renderer(backend=backend, height=height, width=width)
  for script in fonts.available_scripts(SCRIPTS):
    long = " ".join(strings_of(script, 6))
    for text in [*strings_of(script, 2), long]:
      try:
        image = drawer.render(text, script)
      except ImportError as error:
        pytest.skip(str(error))
      assert image.shape == (height, width, 3) and image.dtype == np.uint8
      border = np.ones((height, width), bool)
      border[1:-1, 1:-1] = False
      assert (image[border] == 255).all(), text
      assert (image < 255).any(), text


def test_long_text_gets_smaller_and_short_text_does_not():
  heights = []
  for text in ("xx", "x" * 8, "x" * 60):
    _, top, _, bottom = ink_box(renderer().render(text, "Latn"))
    heights.append(bottom - top)
  assert heights[0] == heights[1] > 2 * heights[2]


def test_equal_letters_stand_on_one_baseline():
  boxes = [ink_box(renderer().render(t, "Latn")) for t in ("a", "ab", "axe")]
  assert len({box[3] for box in boxes}) == 1


def test_pictures_do_not_depend_on_what_was_drawn_before():
  font_of("Latn")
  drawer = renderer()
  first = drawer.render("first", "Latn")
  for script in fonts.available_scripts(SCRIPTS):
    drawer.render(strings_of(script, 1)[0], script)
  np.testing.assert_array_equal(drawer.render("first", "Latn"), first)
  np.testing.assert_array_equal(renderer().render("first", "Latn"), first)


@pytest.mark.parametrize("backend", list(rasterizers.BACKENDS))
def test_threads_draw_the_same(backend):
  samples = [
    (text, script)
    for script in fonts.available_scripts(SCRIPTS)
    for text in strings_of(script, 2)
  ]
  drawer = renderer(backend=backend, height=32, width=96)
  try:
    alone = [drawer.render(*sample).tobytes() for sample in samples]
  except ImportError as error:
    pytest.skip(str(error))
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    several = list(pool.map(lambda s: drawer.render(*s).tobytes(), samples * 3))
  assert several == alone * 3


def test_variation_is_a_function_of_the_rng():
  font_of("Latn")
  drawer = renderer(
    num_fonts=3,
    styles=("regular", "bold"),
    random_colors=True,
    size_jitter=0.3,
    offset_jitter=1.0,
  )

  def draw(seed):
    return drawer.render("word", "Latn", np.random.default_rng(seed))

  np.testing.assert_array_equal(draw(1), draw(1))
  images = [draw(seed) for seed in range(20)]
  assert len({image.tobytes() for image in images}) == 20
  for image in images:
    luma = image @ np.array([0.299, 0.587, 0.114])
    assert luma.max() - luma.min() > 90
    edges = [image[0], image[-1], image[:, 0], image[:, -1]]
    assert all((edge == edge[0]).all() for edge in edges)
  with pytest.raises(ValueError, match="needs an rng"):
    drawer.render("word", "Latn")


def test_by_default_it_is_black_on_white():
  image = renderer().render("word", "Latn")
  assert (image.min(), image.max()) == (0, 255)
  assert (image == image[:, :, :1]).all()


# -- What cannot be drawn ----------------------------------------------------


@pytest.mark.parametrize("backend", list(rasterizers.BACKENDS))
def test_a_missing_glyph_is_refused(backend, monkeypatch):
  latin = font_of("Latn")
  monkeypatch.setattr(
    fonts, "fonts_for", lambda script, styles=("regular",): (latin,)
  )
  drawer = renderer(backend=backend)
  try:
    drawer.render("word", "Latn")
  except ImportError as error:
    pytest.skip(str(error))
  for text in ("한글", "a字", "ꯀ", "tab\there"):
    with pytest.raises(typography.MissingGlyph, match=r"U\+"):
      drawer.render(text, "Latn")


@pytest.mark.parametrize("backend", list(rasterizers.BACKENDS))
def test_a_backend_tells_of_a_missing_glyph_itself(backend, monkeypatch):
  latin = (font_of("Latn"),)
  try:
    line = rasterizers.BACKENDS[backend]("한", False, latin)
  except ImportError as error:
    pytest.skip(str(error))
  assert line.missing
  assert not rasterizers.BACKENDS[backend]("word", False, latin).missing
  if backend != "skia":  # Its binding doesn't tell; the check before it does.
    monkeypatch.setattr(rasterizers, "lacking", lambda text, fonts: [])
    with pytest.raises(typography.MissingGlyph, match="a part of"):
      renderer(backend=backend).render("한", "Latn")


def test_a_glyph_of_another_script_is_found_in_its_fonts():
  font_of("Thai"), font_of("Cyrl")
  thai, russian = "น้ำ", "вода"
  mixed = ink_box(renderer().render(f"{thai} {russian}", "Thai"))
  alone = ink_box(renderer().render(thai, "Thai"))
  assert mixed[2] > alone[2] + 20


def test_joiners_and_selectors_need_no_glyph():
  plain = renderer().render("ab", "Latn")
  for extra in "\N{ZERO WIDTH JOINER}\N{RIGHT-TO-LEFT MARK}\ufe0f":
    with_extra = renderer().render(f"a{extra}b", "Latn")
    assert np.abs(plain.astype(int) - with_extra).mean() < 2


def test_what_leaves_no_ink_is_refused():
  font_of("Latn")
  for text in ("", " "):
    with pytest.raises(typography.CannotDraw, match="no ink"):
      renderer().render(text, "Latn")


def test_what_would_be_too_small_is_refused():
  drawer = renderer(min_font_size=10)
  drawer.render("short", "Latn")
  with pytest.raises(typography.Illegible, match="min_font_size"):
    drawer.render("long " * 20, "Latn")


def test_digits_alone_are_drawn():
  assert (renderer().render("2024", words.COMMON) < 128).any()


@pytest.mark.parametrize(
  "options",
  [
    {"backend": "cairo"},
    {"align": "right"},
    {"height": 4},
    {"margin": -1},
    {"num_fonts": 0},
    {"styles": ()},
    {"size_jitter": 1.0},
    {"offset_jitter": 1.1},
  ],
)
def test_wrong_arguments_are_refused(options):
  with pytest.raises(ValueError):
    renderer(**options)
