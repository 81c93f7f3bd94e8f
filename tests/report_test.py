"""The report says what was measured, in one file, whatever the strings are."""

import html.parser
import json
import pathlib
import re

import numpy as np
import pytest

from byt5_diffusion import demo, report


def reading(text: str, script: str, nearest: str, **ocr: str) -> report.Reading:
  picture = np.full((4, 6, 3), 200, np.uint8)
  return report.Reading(
    text=text,
    script=script,
    target=picture,
    drawn=picture,
    nearest=nearest,
    **ocr,
  )


READINGS = [
  reading(
    "ab",
    "Latn",
    "ab",
    tesseract_of_drawn="ax",
    tesseract_of_target="ab",
    head_of_drawn="xx",
    head_of_target="ab",
  ),
  reading(
    "cd",
    "Latn",
    "cb",
    tesseract_of_drawn="cd",
    tesseract_of_target="cd",
    head_of_drawn="<i>",
    head_of_target="",
  ),
  reading("где", "Cyrl", "гаа"),
  reading("<b>&", "Zyyy", "<b>&"),
]


def findings(**overrides: object) -> report.Findings:
  arguments = {
    "readings": READINGS,
    "sheet": [("Zyyy", "1 & 2", np.zeros((4, 8, 3), np.uint8))],
    "scripts": ["Latn", "Cyrl"],
    "skipped_scripts": ["Tibt"],
    "ledgers": [{"accepted": 7, "rejected": 1}, {"accepted": 2, "rejected": 2}],
    "num_pictures": 250,
    "metrics": {
      "train/loss": {10: 1.0, 20: 0.1},
      "validation/loss": {20: 0.2},
      "validation/loss/t=0.5": {20: 0.3},
    },
    "grids": [],
    "parameters": 1_200_000,
    "reader_parameters": 300_000,
    "reader_steps": 800,
    "reader_seconds": 60.0,
    "training": report.Training(seconds=90.0, killed_at=10),
    "total_seconds": 120.0,
    "machine": "a laptop",
    "command": "train --gin.X='y'",
    "model_dir": pathlib.Path("demo/run"),
  }
  return report.Findings(**(arguments | overrides))


def test_scores_are_counted_by_script_and_reader() -> None:
  scores = report.scores_by_script(READINGS)
  assert list(scores) == ["Cyrl", "Latn", "Zyyy"]
  latin = scores["Latn"]
  assert (latin.count, latin.exact, latin.letter_errors) == (2, 0.5, 0.25)
  assert (latin.tesseract_drawn, latin.tesseract_target) == (0.25, 0.0)
  assert scores["Cyrl"].tesseract_drawn is None
  # "xx" has two letters wrong; "<i>" two and one too many.
  assert (latin.head_drawn, latin.head_target) == (5 / 4, 2 / 4)
  assert scores["Cyrl"].head_drawn is None
  assert scores["Cyrl"].letter_errors == pytest.approx(2 / 3)


def test_the_verdict_says_what_was_not_learnt() -> None:
  verdict = report.verdict(findings())
  assert "50% of 4 strings" in verdict and "chance: 0.40%" in verdict
  assert "no string right: Cyrl" in verdict
  assert "most strings right: Latn, Zyyy" in verdict


def test_the_page_is_one_file_and_escapes_everything() -> None:
  page = report.html_of(findings())
  # Nothing is fetched: every source is a data URL, and there is no script.
  assert re.findall(r"src='(?!data:)", page) == []
  assert "http" not in page and "<script" not in page
  assert "&lt;b&gt;&amp;" in page and "<b>&" not in page
  assert "1 &amp; 2" in page and "Tibt" in page
  assert "9 strings were drawn; 3 were rejected" in page

  class Balanced(html.parser.HTMLParser):
    void = ("img", "meta", "br", "rect", "path", "polyline")
    stack: list[str] = []  # noqa: RUF012

    def handle_starttag(self, tag: str, attrs: object) -> None:
      if tag not in self.void:
        self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
      if tag not in self.void:
        assert self.stack.pop() == tag

  parser = Balanced()
  parser.feed(page)
  assert parser.stack == []
  assert "killed without warning after step 10" in page
  unkilled = findings(training=report.Training(seconds=1.0, killed_at=None))
  assert "complete already" in report.html_of(unkilled)


def test_charts_put_the_larger_loss_higher() -> None:
  svg = report.chart({"loss": {0: 1.0, 10: 0.1}}, mark=5)
  line = re.search(r"points='([\d., ]+)'", svg)
  assert line is not None
  points = [tuple(map(float, p.split(","))) for p in line[1].split()]
  assert points[0][0] < points[1][0] and points[0][1] < points[1][1]
  assert "stroke-dasharray" in svg
  assert report.chart({}) == ""


def test_metrics_of_a_resumed_run_count_once(tmp_path: pathlib.Path) -> None:
  path = tmp_path / "metrics.jsonl"
  rows = [
    {"step": 1, "time": 1.0, "train/loss": 3.0},
    {"step": 2, "time": 2.0, "train/loss": 2.0},
    {"step": 1, "texts": {"config": "x"}},
    {"step": 2, "time": 3.0, "train/loss": 1.5},
    {"step": 3, "time": 4.0, "train/loss": "nan"},
  ]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  assert demo.read_metrics(path) == {"train/loss": {1: 3.0, 2: 1.5}}


def test_held_out_strings_are_shared_between_scripts() -> None:
  pictures = {
    text: np.zeros((1, 1, 3), np.uint8)
    for text in ("a", "b", "c", "d", "где", "α", "β")
  }
  chosen = demo.held_out(pictures, 6)
  assert sorted(chosen) == sorted(["a", "b", "где", "α", "β"])
