"""Captions quote what was drawn, and say nothing that is not so."""

import itertools

import numpy as np
import pytest

from byt5_diffusion import quotes
from byt5_diffusion.data.writing import (
  caption_words,
  caption_writer,
  words,
)

LOOK = caption_writer.Look(
  kind="sign",
  family="serif",
  bold=True,
  italic=False,
  vertical=True,
  alignment="center",
  ink=(205, 30, 35),
  paper=(255, 255, 255),
)
HARD = [
  "OPEN",
  "don't",
  "12” pizza",
  "say “yes”",
  "«a» b",
  "ברק״ל",
  "「駅」前",
  "שלום",
  "مرحبا بكم",
  "rock 'n' roll",
  "“”",
  "100 % [x]{y}",
]


@pytest.mark.parametrize("language", [*caption_writer.LANGUAGES, "mi"])
def test_a_caption_quotes_exactly_what_is_drawn(language):
  for number, strings in enumerate(
    [*([s] for s in HARD), *map(list, itertools.combinations(HARD, 2))]
  ):
    rng = words.generator(language, number)
    caption = caption_writer.write(strings, LOOK, rng, language)
    assert quotes.strings(caption) == strings, caption


@pytest.mark.parametrize("string", ["", " a", "a ", 'a”»」』›》〉〟“" b'])
def test_what_no_marks_can_hold_is_said_so(string):
  with pytest.raises(caption_writer.CannotQuote):
    caption_writer.write([string], LOOK, words.generator(0))


def test_the_same_generator_writes_the_same_and_others_write_others():
  def written(seed: int) -> str:
    return caption_writer.write(["OPEN"], LOOK, words.generator(seed))

  assert written(3) == written(3)
  assert len({written(seed) for seed in range(50)}) > 20


def test_only_what_is_so_is_told():
  """Words of the opposite never occur, those of the look all do."""
  told = " ".join(
    caption_writer.write(["x"], LOOK, words.generator(seed))
    for seed in range(200)
  )
  for word in ("sign", "serif", "bold", "vertically", "centered", "red on"):
    assert word in told
  for word in ("poster", "sans", "italic", "horizontally", "left", "blue"):
    assert word not in told
  bare = " ".join(
    caption_writer.write(["x"], caption_writer.Look(), words.generator(seed))
    for seed in range(50)
  )
  for word in ("serif", "bold", "vertical", "horizontal", " on white"):
    assert word not in bare


@pytest.mark.parametrize("name", caption_words.COLORS)
def test_a_colour_has_the_name_that_it_stands_for(name):
  color = caption_words.COLORS[name]
  near = np.clip(np.add(color, (6, -6, 6)), 0, 255)
  assert caption_writer.color_name(color) == name
  assert caption_writer.color_name(tuple(int(c) for c in near)) == name


def test_a_colour_between_two_names_has_none():
  """Half way from red to orange, and one that is far from all."""
  assert caption_writer.color_name((225, 80, 25)) == ""
  assert caption_writer.color_name((0, 255, 255)) == ""


def test_what_has_a_hue_is_not_called_gray_white_or_black():
  """Teal, cream, night blue and dark red; ivory is white enough."""
  for color in ((15, 118, 116), (246, 252, 201), (0, 48, 73), (43, 15, 15)):
    assert caption_writer.color_name(color) == ""
  assert caption_writer.color_name((253, 246, 227)) == "white"


@pytest.mark.parametrize("code", caption_writer.LANGUAGES)
def test_a_languages_words_are_whole(code):
  known = caption_words.LANGUAGES[code]
  assert set(known.words) == set(caption_words._WORDS)
  assert {"", "sign"} <= set(known.kinds) <= set(caption_words.KINDS)
  assert all("{strings}" in opening for opening in known.openings)
  assert len(set(known.colors.values())) == len(caption_words.COLORS)
