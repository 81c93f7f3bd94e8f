"""Strings are functions of their index, and splits share none."""

import collections
import unicodedata

import pytest

from byt5_diffusion.data import text
from byt5_diffusion.data.writing import (
  word_lists,
  words,
)

SOURCES = [
  words.Words(),
  words.Glyphs(alphabet_size=10, min_length=2, max_length=4),
]


def first(source, split, count, seed=0):
  return [words.string_at(source, split, seed, i) for i in range(count)]


def test_tables_are_complete_and_normal():
  notions = {len(row.split()) for row in word_lists.LANGUAGES.values()}
  assert notions == {50}
  for row in [*word_lists.LANGUAGES.values(), *word_lists.ALPHABETS.values()]:
    assert unicodedata.is_normalized("NFC", row)
  languages = {tag.split("-")[0] for tag in word_lists.LANGUAGES}
  scripts = {tag.split("-")[1] for tag in word_lists.LANGUAGES}
  assert len(languages) >= 20 and len(scripts) >= 15
  assert scripts == set(words.ALPHABETS)


@pytest.mark.parametrize("tag", word_lists.LANGUAGES)
def test_words_are_written_in_the_script_they_are_filed_under(tag):
  script = tag.split("-")[1]
  for word in word_lists.LANGUAGES[tag].split():
    found = words.script_of(word)
    if script in ("Hans", "Hant", "Jpan") and found == "Hans":
      continue  # Han characters alone don't say whose they are.
    assert found == script, word


def test_letters_are_single_grapheme_clusters():
  for script, letters in words.ALPHABETS.items():
    split = letters.split()
    assert len(split) == len(set(split)) >= 20, script
    assert all(len(text.graphemes(letter)) == 1 for letter in split), script


@pytest.mark.parametrize("source", SOURCES)
def test_a_string_is_a_function_of_its_arguments(source):
  again = [words.string_at(source, "train", 0, i) for i in reversed(range(50))]
  assert first(source, "train", 50) == again[::-1]
  assert first(source, "train", 50) != first(source, "train", 50, seed=1)


@pytest.mark.parametrize("source", SOURCES)
def test_splits_are_disjoint_and_a_tenth_validates(source):
  train = {s.text for s in first(source, "train", 2000)}
  validation = {s.text for s in first(source, "validation", 300)}
  assert train.isdisjoint(validation)
  assert {words.split_of(t) for t in train} == {"train"}
  rng = words.generator("test")
  drawn = {source.draw(rng).text for _ in range(5000)}
  share = sum(words.split_of(t) == "validation" for t in drawn) / len(drawn)
  assert 0.07 < share < 0.13


def test_the_split_does_not_depend_on_the_unicode_form():
  for i in range(200):
    word = f"é{i}"
    decomposed = unicodedata.normalize("NFD", word)
    assert decomposed != word
    assert words.split_of(word) == words.split_of(decomposed)


def test_strings_stay_what_they_are():
  # These name the examples of past runs: a change is a change of data.
  source = words.Glyphs(only_scripts=["Latn"])
  assert [s.text for s in first(source, "train", 3)] == ["ihck", "m", "wxb"]
  assert [words.split_of(w) for w in ("water", "fire", "tree", "eight")] == [
    "train",
    "train",
    "train",
    "validation",
  ]


def test_scripts_are_drawn_alike():
  counts = collections.Counter(
    s.script for s in first(words.Words(), "train", 2600)
  )
  assert set(counts) == set(words.ALPHABETS)
  assert min(counts.values()) > 50


def test_glyphs_keep_to_alphabet_and_length():
  source = words.Glyphs(
    only_scripts=["Latn", "Deva"], alphabet_size=3, min_length=2, max_length=5
  )
  letters = {
    script: set(words.ALPHABETS[script].split()[:3])
    for script in ("Latn", "Deva")
  }
  for sample in first(source, "train", 200):
    clusters = text.graphemes(sample.text)
    assert 2 <= len(clusters) <= 5
    assert set(clusters) <= letters[sample.script]


def test_words_are_joined_as_their_script_does():
  for script, separator in (("Latn", " "), ("Thai", ""), ("Tibt", "་")):
    source = words.Words(only_scripts=[script], min_words=2, max_words=2)
    joined = first(source, "train", 20)
    assert all(separator in s.text for s in joined)
    if not separator:
      assert not any(" " in s.text for s in joined)


def test_a_source_without_validation_strings_says_so():
  source = words.Glyphs(only_scripts=["Latn"], alphabet_size=1, max_length=1)
  missing = "validation" if words.split_of("a") == "train" else "train"
  with pytest.raises(ValueError, match=f"none of them in split '{missing}'"):
    words.string_at(source, missing, 0, 0)


@pytest.mark.parametrize(
  "make",
  [
    lambda: words.Words(only_scripts=["Latin"]),
    lambda: words.Words(min_words=3, max_words=2),
    lambda: words.Glyphs(alphabet_size=0),
    lambda: words.Glyphs(min_length=0),
    lambda: words.string_at(words.Words(), "test", 0, 0),
  ],
)
def test_wrong_arguments_are_refused(make):
  with pytest.raises(ValueError):
    make()


def test_only_narrows():
  narrowed = words.Words().only(["Thai", "Latn", "Cher"])
  assert narrowed.scripts == ("Latn", "Thai")


def test_text_file(tmp_path):
  path = tmp_path / "lines.txt"
  lines = [f"word {i}" for i in range(40)] + ["", "  שלום   עולם ", "word 1"]
  path.write_bytes("\n".join(lines).encode() + b"\n\xff\xfe bad\nfin\r\n")
  source = words.TextFile(path=str(path))
  assert source.bad_lines == 1
  assert source.scripts == ("Hebr", "Latn")
  drawn = {s.text for s in first(source, "train", 400)}
  drawn |= {s.text for s in first(source, "validation", 400)}
  expected = {f"word {i}" for i in range(40)} | {"שלום עולם", "fin"}
  assert drawn == expected
  hebrew = source.only(["Hebr"])
  assert hebrew.draw(words.generator(0)) == ("שלום עולם", "Hebr", "und")


def test_a_text_file_without_text_is_an_error(tmp_path):
  path = tmp_path / "lines.txt"
  path.write_bytes(b"\n \n\xff\n")
  with pytest.raises(ValueError, match="1 lines are not UTF-8"):
    _ = words.TextFile(path=str(path)).scripts


@pytest.mark.parametrize(
  ("string", "script"),
  [
    ("hello", "Latn"),
    ("Привет, world!!", "Cyrl"),
    ("123 + 4", "Zyyy"),
    ("", "Zyyy"),
    ("ひらがな漢字漢字漢字", "Jpan"),
    ("カタカナ", "Jpan"),
    ("漢字한글", "Kore"),
    ("汉字", "Hans"),
    ("שלום 2024", "Hebr"),
    ("हिन्दी", "Deva"),
    ("ᏣᎳᎩ", "Zzzz"),
    ("é", "Latn"),
  ],
)
def test_script_of(string, script):
  assert words.script_of(string) == script
