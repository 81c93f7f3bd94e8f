"""Every language of mC4 has strings, in its own writing, as often as ByT5."""

import collections
import unicodedata

import numpy as np
import pytest
import regex

from byt5_diffusion.data import (
  languages,
  text,
)
from byt5_diffusion.data.writing import (
  cldr,
  phrase_lists,
  phrases,
  romanization,
  words,
)

CODES = [language.code for language in languages.TABLE]
PHRASES = phrases.Phrases()


def drawn(code: str, count: int, source=PHRASES) -> list[words.Sample]:
  rng = words.generator("test", code)
  return [source.draw(rng, code) for _ in range(count)]


@pytest.mark.parametrize("code", CODES)
def test_strings_are_normal_visible_short_and_in_the_languages_script(code):
  found = drawn(code, 60)
  scripts = dict(phrases.scripts(code))
  assert sum(scripts.values()) == pytest.approx(1)
  for string, script, language in found:
    assert language == code and script in scripts
    assert unicodedata.is_normalized("NFC", string)
    assert string == " ".join(string.split()) and string
    assert not regex.search(r"[\p{Cc}\p{Co}\u200b\u200e\u200f\u061c]", string)
    assert len(text.graphemes(string)) <= PHRASES.max_graphemes
    letters = regex.sub(r"[^\p{L}]", "", string)
    if len(letters) > 6:  # Not a number with a unit or a currency.
      written = words.script_of(letters)
      han = written == "Hans" and script in ("Hant", "Jpan")
      assert written == script or han, string
  # A word more than one way: no language has but a handful of strings.
  assert len({sample.text for sample in found}) > 30


def test_the_tables_know_mc4s_codes_and_no_others():
  for table in (phrase_lists.WORDS, phrase_lists.SCRIPTS, phrase_lists.ZEROS):
    assert set(table) <= set(CODES)
  assert set(phrase_lists.PUNCTUATION) <= set(CODES)
  assert set(romanization.CODES) <= set(CODES)
  for row in phrase_lists.WORDS.values():
    assert unicodedata.is_normalized("NFC", row) and len(row.split()) >= 40


def test_all_of_a_languages_writings_are_drawn():
  shares = collections.Counter(sample.script for sample in drawn("zh", 500))
  assert set(shares) == {"Hans", "Hant"}
  assert 0.7 < shares["Hans"] / 500 < 0.9
  assert {s.script for s in drawn("sr", 200)} == {"Cyrl", "Latn"}


def test_traditional_characters_differ_from_simplified_ones():
  simplified = set("".join(phrases.vocabulary("zh", "Hans")))
  traditional = set("".join(phrases.vocabulary("zh", "Hant")))
  assert "語" in traditional - simplified and "语" in simplified - traditional


def test_numbers_dates_and_punctuation_are_the_languages_own():
  def many(code: str) -> str:
    return "\n".join(sample.text for sample in drawn(code, 600))

  assert regex.search(r"[०-९]", many("hi")) and "।" in many("hi")
  assert "؟" in many("ar") and "،" in many("fa") and "۔" in many("ur")
  assert "¿" in many("es") and "։" in many("hy") and "።" in many("am")
  assert "。" in many("ja") and regex.search(r"\d年\d", many("ja"))
  assert "€" in many("de") and regex.search(r"\d,\d", many("de"))
  assert regex.search(r"₹", many("hi")) and "₽" in many("ru")
  assert not regex.search(r"[a-z]+-[a-z]+", many("my"))  # No English keys.


def test_native_digits_are_the_same_number():
  assert cldr.native_digits("fa", "2024-05") == "۲۰۲۴-۰۵"
  assert cldr.native_digits("de", "2024") == "2024"
  for zero in phrase_lists.ZEROS.values():
    digits = [unicodedata.digit(chr(ord(zero) + i)) for i in range(10)]
    assert digits == list(range(10))


@pytest.mark.parametrize(
  ("code", "text_", "latin"),
  [
    ("el-Latn", "Ευρώπη", "Evropi"),
    ("el-Latn", "αυτός", "aftos"),
    ("el-Latn", "Ούγγρος", "Oungros"),
    ("el-Latn", "μπάλα", "bala"),
    ("el-Latn", "πρωί Αϊτή", "proi Aiti"),
    ("el-Latn", "ΜΟΥΣΕΙΟ", "MOUSEIO"),
    ("bg-Latn", "София", "Sofia"),
    ("bg-Latn", "Щастие ъгъл", "Shtastie agal"),
    ("ru-Latn", "Ельцин", "Yeltsin"),
    ("ru-Latn", "ЩУКА поезд", "SHCHUKA poyezd"),
    ("ru-Latn", "объект", "obyekt"),
  ],
)
def test_romanization_is_by_its_published_table(code, text_, latin):
  assert romanization.romanize(text_, code) == latin


def test_borrowed_names_are_left_out():
  english = set(phrases.vocabulary("en", "Latn"))
  for code in ("ceb", "hi-Latn", "ig", "sn", "st"):
    own = phrases.vocabulary(code, "Latn")
    assert len(english.intersection(own)) < 0.2 * len(own), code
  french = set(phrases.vocabulary("fr", "Latn"))
  assert len(french.intersection(phrases.vocabulary("ht", "Latn"))) < 30


def test_the_same_generator_draws_the_same():
  assert drawn("th", 20) == drawn("th", 20)


def test_an_unknown_language_is_named():
  with pytest.raises(ValueError, match="'tlh' is none of mC4's"):
    PHRASES.draw(words.generator(0), "tlh")


def test_languages_come_as_often_as_byt5_has_read_them():
  count = 40_000
  found = collections.Counter(
    phrases.language_at("train", 0, i) for i in range(count)
  )
  percent = np.array([language.percent for language in languages.TABLE])
  share = np.array([found[code] for code in CODES]) / count
  # Of a perfect sampler: the sum of sqrt(p (1 - p) / n) times sqrt(2 / pi) / 2.
  p = percent / percent.sum()
  expected = (np.sqrt(p * (1 - p) / count) * np.sqrt(2 / np.pi) / 2).sum()
  assert np.abs(share - p).sum() / 2 < 1.3 * expected
  assert len(found) == len(CODES)


def test_shares_of_fewer_languages_are_the_tables():
  codes = ("en", "ru")
  found = collections.Counter(
    phrases.language_at("train", 1, i, codes) for i in range(20_000)
  )
  assert found["en"] / 20_000 == pytest.approx(5.67 / (5.67 + 3.71), abs=0.012)


def test_a_languages_example_is_a_function_of_split_seed_and_index():
  def string(split: str, seed: int, index: int) -> str:
    return next(phrases.strings_at(PHRASES, split, seed, index, "de")).text

  assert string("train", 0, 5) == string("train", 0, 5)
  assert len({string("train", seed, 5) for seed in range(20)}) > 10
  for index in range(30):
    for split in words.SPLITS:
      assert words.split_of(string(split, 0, index)) == split
