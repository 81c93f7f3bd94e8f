"""Regions in the picture that a model gets, against brute force."""

import math

import hypothesis
import numpy as np
import pytest
import toy_pages
from hypothesis import strategies as st

from byt5_diffusion import feature_converters
from byt5_diffusion.data import (
  annotated,
  images,
  languages,
  regions,
  supplies,
)
from byt5_diffusion.data import pictures as pictures_lib
from byt5_diffusion.data.sets import document_supplies

TABLE, TEXT = annotated.LABELS.index("table"), annotated.LABELS.index("text")


def example(*found, **more):
  return annotated.Annotated(key="k", image=b"", text="", regions=found, **more)


def region(box, label="text", **more):
  return annotated.Region(box=box, label=label, **more)


def brute_force(size, frame, fit, found):
  """The mask, pixel by pixel: is its centre inside?"""
  place = images.placement(size, *frame, fit)
  mask = np.zeros(frame, np.uint8)

  def area(one):
    left, top, right, bottom = one.box
    left = max(left * place.scale_x + place.left, 0)
    right = min(right * place.scale_x + place.left, frame[1])
    top = max(top * place.scale_y + place.top, 0)
    bottom = min(bottom * place.scale_y + place.top, frame[0])
    return max(right - left, 0) * max(bottom - top, 0)

  for one in sorted(found, key=lambda one: -area(one)):
    if not area(one):
      continue
    for row in range(frame[0]):
      for column in range(frame[1]):
        x = (column + 0.5 - place.left) / place.scale_x
        y = (row + 0.5 - place.top) / place.scale_y
        if inside(one, x, y):
          mask[row, column] = annotated.LABELS.index(one.label)
  return mask


def inside(one, x, y):
  if len(one.polygon) < 3:
    left, top, right, bottom = one.box
    return left <= x < right and top <= y < bottom
  odd = False  # A ray to the left crosses the outline an odd number of times.
  corners = one.polygon
  for (x0, y0), (x1, y1) in zip(
    corners, (*corners[1:], corners[0]), strict=True
  ):
    if (y0 <= y) != (y1 <= y) and x0 + (y - y0) * (x1 - x0) / (y1 - y0) <= x:
      odd = not odd
  return odd


# Off the grid of pixels' centres, where rounding would decide.
place = st.integers(-8, 40).map(lambda n: n / 2 + 0.137)


@st.composite
def boxes(draw):
  left, right = sorted([draw(place), draw(place)])
  top, bottom = sorted([draw(place), draw(place)])
  return (left, top, right, bottom)


@st.composite
def found_regions(draw):
  label = draw(st.sampled_from(["text", "table", "title"]))
  corners = draw(st.lists(st.tuples(place, place), max_size=5))
  if len(corners) < 3:
    return region(draw(boxes()), label)
  x, y = zip(*corners, strict=True)
  box = (min(x), min(y), max(x), max(y))
  return region(box, label, polygon=tuple(corners))


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(
  st.lists(found_regions(), max_size=3),
  st.sampled_from([(16, 16), (11, 16), (16, 9), (8, 8)]),
  st.sampled_from(["pad", "crop"]),
)
def test_a_mask_is_what_brute_force_paints(found, size, fit):
  frame = (12, 10)
  mask = regions.features(example(*found), size, frame, fit)["region_mask"]
  # Floats on an edge may fall to either side: such pixels are few.
  wrong = mask != brute_force(size, frame, fit, found)
  assert wrong.sum() <= 2


@hypothesis.given(boxes(), st.sampled_from(["pad", "crop"]))
def test_a_polygon_of_a_box_is_the_box(box, fit):
  left, top, right, bottom = box
  corners = ((left, top), (right, top), (right, bottom), (left, bottom))
  as_box = regions.features(example(region(box)), (16, 20), (12, 12), fit)
  as_polygon = regions.features(
    example(region(box, polygon=corners)), (16, 20), (12, 12), fit
  )
  for key, value in as_box.items():
    assert np.array_equal(value, as_polygon[key], equal_nan=True), key


@hypothesis.given(st.lists(found_regions(), max_size=5))
def test_boxes_are_shares_of_the_frame_and_cut_to_it(found):
  made = regions.features(example(*found), (16, 16), (8, 24), "crop")
  left, top, right, bottom = made["boxes"].T
  assert (left >= 0).all()
  assert (top >= 0).all()
  assert (right <= 1).all()
  assert (bottom <= 1).all()
  assert (left < right).all()
  assert (top < bottom).all()
  assert len(made["box_labels"]) == len(made["box_spans"]) == len(left)


def test_padding_moves_and_scales():
  # 10 x 20 in 40 x 40: twice as large, ten rows of paper above and below.
  made = regions.features(
    example(region((5, 0, 10, 10))), (10, 20), (40, 40), "pad"
  )
  assert made["boxes"].tolist() == [[0.25, 0.25, 0.5, 0.75]]
  rows, columns = np.nonzero(made["region_mask"])
  assert (rows.min(), rows.max(), columns.min(), columns.max()) == (
    10,
    29,
    10,
    19,
  )


def test_a_crop_cuts_regions_off():
  # 10 x 20 in 10 x 10: the middle ten columns.
  made = regions.features(
    example(
      region((0, 0, 5, 10)),  # Cropped away, but for nothing.
      region((0, 0, 10, 5), "table"),  # Its right half is left.
      region((15, 0, 20, 10)),
    ),
    (10, 20),
    (10, 10),
    "crop",
  )
  assert made["boxes"].tolist() == [[0.0, 0.0, 0.5, 0.5]]
  assert made["box_labels"].tolist() == [TABLE]
  assert (made["region_mask"][:5, :5] == TABLE).all()
  assert (made["region_mask"] > 0).sum() == 25


@pytest.mark.parametrize(
  "box",
  [
    (3, 3, 3, 9),
    (3, 9, 8, 9),
    (8, 3, 3, 9),
    (-9, -9, 0, 0),
    (20, 0, 30, 9),
    (math.nan, 0, 5, 5),
    (0, 0, math.nan, 5),
    (0, math.nan, 5, 5),
    (0, 0, 5, math.nan),
  ],
)
def test_what_has_no_extent_in_the_picture_is_left_out(box):
  made = regions.features(example(region(box)), (16, 16), (16, 16), "pad")
  assert made["boxes"].shape == (0, 4)
  assert made["box_spans"].shape == (0, 2)
  assert not made["region_mask"].any()


@pytest.mark.parametrize(
  "polygon",
  [(), ((1, 1), (9, 9)), ((math.nan, 0), (9, 0), (9, 9)), ((1, 1),)],
)
def test_an_outline_of_no_use_gives_way_to_the_box(polygon):
  made = regions.features(
    example(region((2, 2, 5, 5), polygon=polygon)), (9, 9), (9, 9), "pad"
  )
  assert (made["region_mask"] > 0).sum() == 9


def test_huge_numbers_are_only_the_frame():
  corners = ((-1e30, -1e30), (1e30, -1e30), (1e30, 1e30), (-1e30, 1e30))
  box = (-1e30, -1e30, 1e30, 1e30)
  for one in (region(box), region(box, polygon=corners)):
    made = regions.features(example(one), (9, 9), (9, 9), "pad")
    assert made["boxes"].tolist() == [[0, 0, 1, 1]]
    assert (made["region_mask"] == TEXT).all()


def test_the_smaller_region_is_seen_on_the_larger():
  large, small = region((0, 0, 9, 9)), region((2, 2, 4, 4), "table")
  for found in ((large, small), (small, large)):
    mask = regions.features(example(*found), (9, 9), (9, 9), "pad")[
      "region_mask"
    ]
    assert (mask == TABLE).sum() == 4
    assert (mask == TEXT).sum() == 81 - 4
  same = region((2, 2, 4, 4))
  mask = regions.features(example(small, same), (9, 9), (9, 9), "pad")
  assert (mask["region_mask"] == TEXT).sum() == 4  # The last of equals.


def test_too_many_regions_are_cut_off_but_painted():
  found = [region((i, 0, i + 1, 1)) for i in range(8)]
  made = regions.features(example(*found), (8, 8), (8, 8), "pad", max_regions=3)
  assert len(made["boxes"]) == 3
  assert (made["region_mask"] > 0).sum() == 8


@pytest.mark.parametrize(
  ("span", "max_length", "kept"),
  [
    ((0, 4), None, (0, 4)),
    ((2, 4), 5, (2, 4)),  # Four bytes and the end's mark.
    ((2, 5), 5, (0, 0)),
    ((2, 4), 4, (0, 0)),
    (None, None, (0, 0)),
    ((3, 3), None, (0, 0)),
    ((4, 3), None, (0, 0)),
    ((-1, 3), None, (0, 0)),
  ],
)
def test_a_span_that_is_cut_off_is_left_out(span, max_length, kept):
  made = regions.features(
    example(region((0, 0, 1, 1), span=span)),
    (8, 8),
    (8, 8),
    "pad",
    max_length=max_length,
  )
  assert made["box_spans"].tolist() == [list(kept)]


def test_style_and_language_are_numbers():
  made = regions.features(
    example(style={"weight": 700.0}, language="iw"), (8, 8), (8, 8), "pad"
  )
  style = dict(zip(annotated.STYLE, made["style"].tolist(), strict=True))
  assert style.pop("weight") == 700.0
  assert all(math.isnan(value) for value in style.values())
  assert made["language"].tolist() == [languages.row("iw")]
  unknown = regions.features(example(language="und"), (8, 8), (8, 8), "pad")
  assert unknown["language"].tolist() == [-1]


def test_the_spans_of_a_page_are_tokens_of_its_caption(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  folder = toy_pages.doclaynet(tmp_path / "doclaynet")
  maker = supplies.Maker(
    supply=document_supplies.drawing(str(folder)),
    picture=pictures_lib.AnnotatedFrame(height=64, width=48),
  )
  lengths = {"text_tokens": 512, "boxes": 16, "box_labels": 16, "box_spans": 16}
  made = maker.make("train", 0, 0, lengths)
  whole = {**lengths, "image": 64, "example_id": 2}
  whole |= {"region_mask": 64, "style": 14, "language": 1}
  row = feature_converters.AnnotatedFeatureConverter.convert(made, whole)
  texts = []
  for start, end in row["box_spans"]:
    raw = bytes((row["text_tokens"][start:end] - 3).tolist())
    texts.append(raw.decode())
  assert texts[:5] == [
    "The Title",
    "left one left two",
    "right one right two",
    "",
    "7",
  ]
  # The boxes, the mask and the pixels agree: ink is where regions are.
  ink = row["images"].mean(-1) < -0.9
  assert (row["region_mask"][ink] > 0).all()
  assert ink.sum() > 0.9 * (row["region_mask"] > 0).sum() - 100
