"""Scores of pages, against what can be worked out on paper."""

import importlib.util
import math
import sys

import numpy as np
import pytest

from byt5_diffusion import layout_scores
from byt5_diffusion.data import annotated
from byt5_diffusion.data.sets import (
  documents,
  layout_text,
)

Part = documents.Part
WHOLE = (0.0, 0.0, 1.0, 1.0)


def text(*box):
  return Part(box, "text")


coco = pytest.mark.skipif(
  importlib.util.find_spec("pycocotools") is None,
  reason="needs the extra `scores`",
)


@coco
def test_the_same_boxes_are_perfect():
  page = [text(0.1, 0.1, 0.5, 0.2), Part((0.1, 0.3, 0.9, 0.9), "table")]
  found = layout_scores.box_scores([page, page], [page, page[::-1]])
  assert found == {
    "map": 1.0,
    "map_50": 1.0,
    "map_75": 1.0,
    "by_class": {"table": 1.0, "text": 1.0},
  }


@coco
@pytest.mark.parametrize("share", [0.5, 0.62, 0.72, 0.77, 0.9, 0.95, 0.999])
def test_an_overlap_is_right_as_often_as_it_passes_thresholds(share):
  # A box cut to `share` of its width: its IoU with the whole is `share`.
  found = layout_scores.box_scores(
    [[text(*WHOLE)]], [[text(0.0, 0.0, share + 1e-9, 1.0)]]
  )
  passed = sum(share + 1e-6 >= 0.5 + 0.05 * i for i in range(10))
  assert found["map"] == pytest.approx(passed / 10)
  assert found["map_50"] == pytest.approx(1.0)
  assert found["map_75"] == pytest.approx(float(share > 0.75))


@coco
def test_a_missed_box_costs_its_share_of_recall():
  halves = [text(0.0, 0.0, 1.0, 0.5), text(0.0, 0.5, 1.0, 1.0)]
  found = layout_scores.box_scores([halves], [halves[:1]])
  # Precision 1 at recalls 0, 0.01 ... 0.50, and nothing beyond: 51 of 101.
  assert found["map"] == pytest.approx(51 / 101)


@coco
def test_a_wrong_box_before_a_right_one_halves_the_precision():
  wrong, right = text(0.0, 0.0, 0.1, 0.1), text(*WHOLE)
  scores = [[0.9, 0.5]]
  found = layout_scores.box_scores([[right]], [[wrong, right]], scores)
  assert found["map"] == pytest.approx(0.5)
  scores = [[0.5, 0.9]]
  found = layout_scores.box_scores([[right]], [[wrong, right]], scores)
  assert found["map"] == pytest.approx(1.0)


@coco
def test_a_class_that_is_read_wrongly_counts_against_its_own():
  page = [text(*WHOLE), Part(WHOLE, "table")]
  found = layout_scores.box_scores([page], [[text(*WHOLE), text(*WHOLE)]])
  assert found["by_class"] == pytest.approx({"table": 0.0, "text": 1.0})
  assert found["map"] == pytest.approx(0.5)


@coco
def test_nothing_read_and_nothing_to_read():
  assert layout_scores.box_scores([[text(*WHOLE)]], [[]])["map"] == 0.0
  other = [[Part(WHOLE, "picture")]]
  assert layout_scores.box_scores([[text(*WHOLE)]], other)["map"] == 0.0
  assert math.isnan(layout_scores.box_scores([[]], [[text(*WHOLE)]])["map"])
  with pytest.raises(ValueError, match="2 pages, but 1 readings"):
    layout_scores.box_scores([[], []], [[]])


def test_without_pycocotools_the_extra_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "pycocotools", None)
  with pytest.raises(ImportError, match=r"byt5-diffusion\[scores\]"):
    layout_scores.box_scores([[text(*WHOLE)]], [[]])
  layout = layout_text.write([text(*WHOLE)])
  found = layout_scores.of_layouts([layout], [layout])
  assert found["boxes"] is None
  assert found["masks"]["mean_iou"] == 1.0


def test_masks_overlap_by_their_pixels():
  number = annotated.LABELS.index
  target = np.zeros((4, 4), np.uint8)
  target[:2] = number("text")  # 8 pixels
  target[3] = number("table")  # 4 pixels
  found = np.zeros((4, 4), np.uint8)
  found[1:3] = number("text")  # 8 pixels, 4 of them right
  found[3, :1] = number("table")
  scores = layout_scores.mask_scores([target], [found])
  assert scores["by_class"] == {"table": 1 / 4, "text": 4 / 12}
  assert scores["mean_iou"] == pytest.approx((1 / 4 + 4 / 12) / 2)
  # Over all pages together, not page by page.
  both = layout_scores.mask_scores([target, target], [found, target])
  assert both["by_class"]["text"] == pytest.approx((4 + 8) / (12 + 8))
  empty = layout_scores.mask_scores([target * 0], [target * 0])
  assert math.isnan(empty["mean_iou"])
  with pytest.raises(ValueError, match="masks of"):
    layout_scores.mask_scores([target], [found[:2]])


def test_masks_are_painted_where_boxes_are():
  mask = layout_scores.mask_of([text(0.25, 0.0, 0.75, 0.5)], 4, 8)
  assert (mask > 0).sum() == 2 * 4
  assert (mask[:2, 2:6] == annotated.LABELS.index("text")).all()


@pytest.mark.parametrize(
  ("answers", "reading", "score"),
  [
    (["1/8/93"], "1/8/93", 1.0),
    (["Edward Shannon"], "  edward   SHANNON ", 1.0),
    (["abcd"], "abcx", 0.75),
    (["abcde"], "abcxx", 0.6),
    (["ab"], "ax", 0.0),  # d = 0.5 is wrong,
    (["abc"], "abx", 2 / 3),  # less is not.
    (["abcd"], "", 0.0),
    (["no", "abcd", "never"], "abcd", 1.0),  # The best answer counts.
    (["Edward R. Shannon", "Edward Shannon"], "Edward Shanon", 13 / 14),
    (["straße"], "strasse", 5 / 7),  # Characters, as they are.
    (["a b"], "ab", 2 / 3),  # A space is a character.
  ],
)
def test_an_answer_is_as_good_as_its_letters(answers, reading, score):
  assert layout_scores.anls([answers], [reading]) == pytest.approx(score)


def test_anls_is_a_mean_over_questions():
  assert layout_scores.anls([["ab"], ["cd"]], ["ab", "xy"]) == 0.5
  with pytest.raises(ValueError, match="needs an answer"):
    layout_scores.anls([[]], [""])
  with pytest.raises(ValueError, match="needs an answer"):
    layout_scores.anls([], [])


def test_answers_belong_to_examples_by_their_ids():
  answers = {"01": ("yes",), "02": ("no", "never")}
  found = layout_scores.of_answers(answers, ["never", "?"], ["02", "03"])
  assert found == {"anls": 1.0, "count": 1}
  with pytest.raises(ValueError, match="none of the examples"):
    layout_scores.of_answers(answers, ["never"], ["04"])


@coco
def test_texts_of_layouts_are_scored_as_boxes_and_as_masks():
  page = [text(0.0, 0.0, 1.0, 0.5), Part((0.0, 0.5, 1.0, 1.0), "picture")]
  target = layout_text.write(page)
  cut_off = target[:-1]  # The picture is gone.
  found = layout_scores.of_layouts([target, target], [target, cut_off])
  assert found["malformed"] == 0.5
  assert found["boxes"]["by_class"]["text"] == pytest.approx(1.0)
  assert found["boxes"]["by_class"]["picture"] == pytest.approx(51 / 101)
  assert found["masks"]["by_class"]["text"] == 1.0
  assert found["masks"]["by_class"]["picture"] == pytest.approx(0.5, abs=1e-3)
