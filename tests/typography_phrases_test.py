"""The supply of phrases: pure, in every language, each word in its place."""

import collections
import concurrent.futures
import time

import numpy as np
import pytest

from byt5_diffusion import quotes
from byt5_diffusion.data import (
  annotated,
  languages,
  supplies,
)
from byt5_diffusion.data.writing import (
  font_styles,
  fonts,
  phrases,
  typography_phrases,
  words,
)

TABLE = {"typography_phrases": supplies.Kind(typography_phrases.open_phrases)}
CODES = [language.code for language in languages.TABLE]


@pytest.fixture(scope="module")
def supply() -> typography_phrases.TypographyPhrases:
  opened = typography_phrases.open_phrases("built_in", height=128, width=192)
  try:
    _ = opened.codes
  except fonts.MissingFont as error:
    pytest.skip(str(error))
  return opened


def examples(supply, count: int = 60, **arguments) -> list[annotated.Annotated]:
  return [supply.read("train", index, **arguments) for index in range(count)]


def same(first: annotated.Annotated, second: annotated.Annotated) -> bool:
  return (
    np.array_equal(first.image, second.image)
    and first.key == second.key
    and first.text == second.text
    and first.regions == second.regions
    and first.style == second.style
  )


@pytest.mark.parametrize("code", CODES)
def test_every_language_can_be_written(code, supply):
  """With its own letters, inside of the picture, as the regions say."""
  if code not in supply.codes:
    pytest.skip(f"No font here has {phrases.scripts(code)}.")
  for index in range(2):
    example = supply.read("train", index, language=code)
    assert example.language == code and f"/{code}/" in example.key
    assert example.image.shape == (128, 192, 3)
    assert example.image.dtype == np.uint8
    assert len(np.unique(example.image.reshape(-1, 3), axis=0)) > 2
    lines = [r.text for r in example.regions if r.label == "line"]
    assert example.transcription == "\n".join(lines)


def test_languages_come_by_mc4s_shares(supply):
  found = collections.Counter(
    phrases.language_at("train", 0, index, supply.codes) for index in range(150)
  )
  drawn = collections.Counter(e.language for e in examples(supply, 150))
  assert drawn == found
  rows = supply.languages("train")
  assert [languages.TABLE[row].code for row in rows] == list(supply.codes)


def test_a_read_is_a_function_of_its_arguments_in_any_order_and_thread(supply):
  other = typography_phrases.open_phrases("built_in", height=128, width=192)
  assert other.fingerprint == supply.fingerprint
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    threaded = list(
      pool.map(lambda i: other.read("train", i), range(39, -1, -1))
    )
  for index, example in enumerate(reversed(threaded)):
    assert same(example, supply.read("train", index))
  assert not same(supply.read("train", 0), supply.read("train", 0, seed=1))
  assert not same(supply.read("train", 0), supply.read("train", 1))


def test_captions_quote_what_is_drawn(supply):
  described = 0
  for example in examples(supply, 100):
    lines = [r for r in example.regions if r.label == "line"]
    if example.text == example.transcription:
      continue
    quoted = quotes.strings(example.text)
    joined = "".join("".join(quoted).split())
    # A string may go on on the next line, and loses nothing by it.
    if quoted:
      assert joined == "".join("".join(r.text for r in lines).split())
      described += 1
  assert described > 40


def test_spans_are_where_the_caption_has_the_words(supply):
  for example in examples(supply, 120):
    raw = example.text.encode("utf-8")
    for region in example.regions:
      assert region.span is not None
      assert raw[slice(*region.span)].decode("utf-8") == region.text


@pytest.mark.parametrize(
  ("caption", "strings", "spans"),
  [
    ("é\nb", ["é", "b"], [(0, 2), (3, 4)]),
    ("a sign that says “a”", ["a"], [(20, 21)]),
    ("“a” and “b c”", ["a", "b c"], [(3, 4), (15, 18)]),
    ("nothing", ["a"], [None]),
  ],
)
def test_spans_of_captions(caption, strings, spans):
  assert typography_phrases.spans_of(caption, strings) == spans


def test_styles_are_true(supply):
  vertical = right_to_left = bold = 0
  for example in examples(supply, 200):
    style = example.style
    assert set(style) == set(annotated.STYLE)
    lines = [r for r in example.regions if r.label == "line"]
    assert all(r.vertical == bool(style["vertical"]) for r in lines)
    script = words.script_of(example.transcription)
    if script in ("Arab", "Hebr"):
      assert style["right_to_left"] == 1
    paper = np.rint(
      [255 * style[f"paper_{c}"] for c in ("red", "green", "blue")]
    )
    assert np.array_equal(example.image[0, 0], paper)
    vertical += style["vertical"]
    right_to_left += style["right_to_left"]
    bold += style["weight"] >= 600
    if "vertical" in example.text and example.text != example.transcription:
      assert style["vertical"] == 1
    if " bold" in example.text and "letters" in example.text:
      assert style["weight"] >= 600
  assert vertical > 1 and right_to_left > 4 and 40 < bold < 160


def test_splits_have_no_string_in_common():
  opened = typography_phrases.open_phrases(
    "built_in", captions="text", max_strings=1, boxes="line"
  )
  for split in words.SPLITS:
    for index in range(40):
      example = opened.read(split, index)
      assert words.split_of(example.text) == split


def test_no_text_is_longer_than_is_said():
  """The ends of lines between Thai, Chinese... letters count too."""
  opened = typography_phrases.open_phrases(
    "built_in", height=128, width=64, max_bytes=60, boxes="line"
  )
  ends = 0
  for code in ("ja", "km", "th", "zh"):
    if code not in opened.codes:
      continue
    for example in examples(opened, 25, language=code):
      assert len(example.text.encode("utf-8")) <= 60
      assert len(example.transcription.encode("utf-8")) <= 60
      ends += example.transcription.count("\n")
  assert ends > 10 or not {"ja", "km", "th", "zh"} & set(opened.codes)


def test_options_do_what_they_say():
  opened = typography_phrases.open_phrases(
    "built_in",
    height=64,
    width=256,
    captions="text",
    boxes="word",
    colors="black",
    vertical=0.0,
    max_strings=1,
    max_bytes=40,
  )
  for example in examples(opened, 60):
    assert len(example.text.encode("utf-8")) <= 40 and "\n" not in example.text
    assert {r.label for r in example.regions} == {"word"}
    assert example.style["vertical"] == 0 == example.style["ink_red"]
    assert tuple(example.image[0, 0]) == (255, 255, 255)
  described = typography_phrases.open_phrases("built_in", captions="described")
  assert any("“" in e.text for e in examples(described, 10))


@pytest.mark.parametrize(
  "options",
  [
    {"captions": "long"},
    {"boxes": "letter"},
    {"max_strings": 0},
    {"max_bytes": 3},
    {"colors": "red"},
    {"max_words": 0},
  ],
)
def test_impossible_options_are_refused(options):
  with pytest.raises(ValueError, match=next(iter(options))):
    typography_phrases.open_phrases("built_in", **options)


def test_a_language_that_cannot_be_written_is_named(supply):
  with pytest.raises(ValueError, match="cannot write 'tlh'"):
    supply.read("train", 0, language="tlh")


def test_scripts_without_a_font_are_left_out_with_one_warning(
  monkeypatch, caplog
):
  available = fonts.available_scripts

  def without(scripts):
    return tuple(s for s in available(scripts) if s not in ("Jpan", "Thai"))

  monkeypatch.setattr(fonts, "available_scripts", without)
  opened = typography_phrases.open_phrases("built_in")
  assert "ja" not in opened.codes and "th" not in opened.codes
  assert "ja-Latn" in opened.codes
  examples(opened, 20)
  warnings = [r for r in caplog.records if "goes without" in r.message]
  assert len(warnings) == 1 and "Jpan Thai" in warnings[0].message


def test_without_any_font_it_says_what_to_install(monkeypatch, tmp_path):
  monkeypatch.setattr(fonts, "directories", lambda: (str(tmp_path),))
  with pytest.raises(fonts.MissingFont, match="fetch_fonts"):
    typography_phrases.open_phrases("built_in").read("train", 0)


def test_users_texts_are_drawn(tmp_path):
  lines = (f"Der {i}. Satz von mehr als {i} Wörtern.\n" for i in range(200))
  (tmp_path / "de.txt").write_text("".join(lines), "utf-8")
  opened = typography_phrases.open_phrases(str(tmp_path), captions="text")
  assert opened.codes == ("de",)
  for example in examples(opened, 10):
    assert any(w in example.text for w in ("Der", "Satz", "von", "Wörtern"))
  built_in = typography_phrases.open_phrases("built_in")
  assert opened.fingerprint != built_in.fingerprint


def test_names_open_it_in_every_way():
  lengths = {"text_tokens": 256, "boxes": 20}
  for name, feature in [
    ("typography_phrases:built_in@64x64+height=64+width=64", "image"),
    ("typography_phrases_annotated:built_in@64x64+boxes=word", "boxes"),
    ("typography_phrases_reading:built_in@64x16", "patches"),
  ]:
    parsed = supplies.parse(TABLE, name)
    maker = supplies.Maker(
      supply=parsed.supply, picture=parsed.picture, captions=parsed.captions
    )
    made = [maker.make("train", index, 0, lengths) for index in range(5)]
    assert all(feature in features for features in made)
  example = parsed.supply.read("train", 0)
  size = len(example.transcription.encode("utf-8")) + 1
  assert len(made[0]["text_tokens"]) == size


def test_all_styles_of_the_fonts_are_drawn(supply):
  if len(font_styles.variants("Latn")) < 8:
    pytest.skip("Few fonts are here.")
  drawn = {
    (e.style["family"], e.style["weight"], e.style["slant"])
    for e in examples(supply, 150, language="en")
  }
  wanted = {
    (
      font_styles.family_number(style.family),
      style.weight,
      float(style.italic),
    )
    for style in map(font_styles.style_of, font_styles.variants("Latn"))
  }
  assert wanted - drawn == set() or len(wanted - drawn) < 3


@pytest.mark.slow
def test_hundreds_of_words_a_second(supply):
  examples(supply, 400)
  start = time.process_time()
  made = examples(supply, 400, seed=1)
  seconds = time.process_time() - start
  drawn = sum(r.label == "word" for e in made for r in e.regions)
  assert drawn / seconds > 300
