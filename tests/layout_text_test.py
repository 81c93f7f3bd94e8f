"""Boxes as text: a round trip, whatever the boxes, and whatever the damage."""

import hypothesis
import pytest
from hypothesis import strategies as st

from byt5_diffusion.data import annotated
from byt5_diffusion.data.sets import (
  documents,
  layout_text,
)

Part = documents.Part
share = st.floats(0, 1)
labels = st.sampled_from(annotated.LABELS[1:])
# Strings as they stand in files: any characters, in one line or several.
written = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@st.composite
def parts(draw, texts=False):
  x, y = (sorted([draw(share), draw(share)]) for _ in "xy")
  text = draw(written) if texts else ""
  return Part((x[0], y[0], x[1], y[1]), draw(labels), text)


def test_every_label_has_a_letter_of_its_own():
  assert set(layout_text.MARKS) == set(annotated.LABELS[1:])
  marks = list(layout_text.MARKS.values())
  assert len(set(marks)) == len(marks)
  assert all(len(mark) == 1 and mark.isalpha() for mark in marks)


def test_a_known_page_is_written_so():
  page = [
    Part((0.0, 0.25, 0.5, 1.0), "title", "Hello\nworld"),
    Part((0.1, 0.2, 0.3, 0.4), "table"),
  ]
  assert layout_text.write(page) == "t000250500999 r100200300400"
  assert (
    layout_text.write(page, texts=True)
    == "t000250500999 Hello world\nr100200300400"
  )
  assert layout_text.write([]) == layout_text.EMPTY
  assert layout_text.parse(layout_text.EMPTY) == []


@hypothesis.given(st.lists(parts(texts=True), max_size=6), st.booleans())
def test_a_round_trip_moves_edges_by_half_a_level_at_most(page, texts):
  found = layout_text.parse(layout_text.write(page, texts), texts)
  assert [p.label for p in found] == [p.label for p in page]
  for before, after in zip(page, found, strict=True):
    # A thin box is made one level wide: that may move an edge by one more.
    for a, b in zip(before.box, after.box, strict=True):
      assert abs(a - b) <= 1.5 / 999 + 1e-9
    assert after.text == (" ".join(before.text.split()) if texts else "")
    wide = all(before.box[i + 2] - before.box[i] >= 1 / 999 for i in range(2))
    if wide:
      moved = max(
        abs(a - b) for a, b in zip(before.box, after.box, strict=True)
      )
      assert moved <= 0.5 / 999 + 1e-9
  assert layout_text.write(found, texts) == layout_text.write(page, texts)


@hypothesis.given(st.lists(parts(), min_size=1, max_size=8))
def test_a_region_costs_fourteen_bytes(page):
  text = layout_text.write(page)
  assert len(text.encode()) == 14 * len(page) - 1
  assert layout_text.is_layout(text)


@hypothesis.given(st.text(max_size=60), st.booleans())
def test_any_text_can_be_parsed(text, texts):
  for part in layout_text.parse(text, texts):
    left, top, right, bottom = part.box
    assert 0 <= left < right <= 1
    assert 0 <= top < bottom <= 1


@hypothesis.given(
  st.lists(parts(), min_size=2, max_size=8), st.data(), st.booleans()
)
def test_one_wrong_byte_loses_two_regions_at_most(page, data, texts):
  text = layout_text.write(page, texts)
  place = data.draw(st.integers(0, len(text) - 1))
  wrong = data.draw(st.sampled_from(["", "7", "x", "?", " ", "55"]))
  damaged = text[:place] + wrong + text[place + 1 :]
  kept = layout_text.parse(text, texts)
  found = layout_text.parse(damaged, texts)
  # All regions but those that the damaged byte touches.
  alike = [p for p in found if p.box in [k.box for k in kept]]
  assert len(alike) >= len(kept) - 2


@pytest.mark.parametrize(
  ("text", "count"),
  [
    ("x000000500500", 1),
    ("x000000500500x500500999999", 2),  # Run together, and whole.
    ("x00000050050", 0),  # A digit too few
    ("x0000005005000", 0),  # or too many.
    ("X000000500500", 0),  # No letter of MARKS.
    ("x500000500500", 0),  # No width.
    ("x600000500500", 0),  # Right of its right edge.
    ("x٠٠٠٠٠٠٥٠٠٥٠٠", 0),  # Digits of another script.
    ("oh: x000000500500, and p1", 1),
    ("x000000500500 p000", 1),  # Cut off.
  ],
)
def test_only_whole_regions_are_taken(text, count):
  assert len(layout_text.parse(text)) == count


def test_a_line_without_a_region_goes_on_with_the_last_text():
  text = "junk\nt000000500500 one\n two \nx000500500999\nx00 three"
  found = layout_text.parse(text, texts=True)
  assert [p.text for p in found] == ["one two", "x00 three"]


def test_text_that_looks_like_a_region_is_text():
  page = [Part((0.0, 0.0, 0.5, 0.5), "text", "see x000000500500 there")]
  assert layout_text.parse(layout_text.write(page, True), True)[0].text == (
    "see x000000500500 there"
  )


@pytest.mark.parametrize(
  ("text", "whole"),
  [
    ("-", True),
    ("x000000500500", True),
    ("x000000500500 p000000500500", True),
    ("", False),
    ("x000000500500 ", False),
    ("x000000500500, p000000500500", False),
    ("hello", False),
  ],
)
def test_a_layout_is_told_from_other_texts(text, whole):
  assert layout_text.is_layout(text) == whole


def test_captions_say_what_is_there_and_quote_it():
  page = [
    Part((0.0, 0.0, 1.0, 0.1), "title", "Annual\nReport"),
    Part((0.0, 0.1, 0.5, 0.5), "text", "x" * 200),
    Part((0.5, 0.1, 1.0, 0.5), "text"),
  ]
  assert layout_text.drawing(page, "financial reports") == (
    "a page of financial reports: title 0,0,999,100 “Annual Report”; "
    "text 0,100,500,500; text 500,100,999,500"
  )
  assert layout_text.summary(page, "") == (
    "a document page with 1 title, 2 texts, titled “Annual Report”"
  )
  assert layout_text.summary([], "forms") == "a page of forms"
