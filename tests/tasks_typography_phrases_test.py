"""SeqIO's tasks of phrases give the supply's examples, always the same."""

import importlib

import numpy as np
import pytest

from byt5_diffusion import feature_converters
from byt5_diffusion.data import text
from byt5_diffusion.data.writing import (
  font_styles,
  fonts,
  typography_phrases,
)

seqio = pytest.importorskip("seqio")

OPTIONS = "+height=64+width=96+max_bytes=120"
LENGTHS = {"text_tokens": 128, "example_id": 2}


@pytest.fixture(scope="module", autouse=True)
def latin():
  try:
    font_styles.variants("Latn")
  except fonts.MissingFont as error:
    pytest.skip(str(error))


def examples(name: str, lengths: dict[str, int], count: int = 12) -> list[dict]:
  module = importlib.import_module("byt5_diffusion.tasks.typography_phrases")
  task = seqio.get_mixture_or_task(module.task(name))
  ds = task.get_dataset({**LENGTHS, **lengths}, split="train", seed=3)
  return list(ds.take(count).as_numpy_iterator())


def test_pictures_to_draw_are_the_supplys():
  found = examples("typography_phrases:built_in@64x96" + OPTIONS, {"image": 64})
  supply = typography_phrases.open_phrases(
    "built_in", height=64, width=96, max_bytes=120
  )
  for index, example in enumerate(found):
    expected = supply.read("train", index, 3)
    assert np.array_equal(example["image"], expected.image)
    assert text.decode(example["text_tokens"]) == expected.text
    key = feature_converters.example_id(expected.key)
    assert np.array_equal(example["example_id"], key)


def test_pictures_to_read_have_their_whole_text():
  found = examples(
    "typography_phrases_reading:built_in@24x16" + OPTIONS, {"patches": 24}
  )
  supply = typography_phrases.open_phrases(
    "built_in", height=64, width=96, max_bytes=120
  )
  for index, example in enumerate(found):
    expected = supply.read("train", index, 3)
    assert example["patches"].shape == (24, 2 + 3 * 16**2)
    assert text.decode(example["text_tokens"]) == expected.transcription


def test_boxes_and_spans_come_along():
  lengths = {"image": 64, "boxes": 40, "box_labels": 40, "box_spans": 40}
  found = examples(
    "typography_phrases_annotated:built_in@64x96" + OPTIONS,
    {**lengths, "region_mask": 64, "style": 14, "language": 1},
  )
  for example in found:
    assert example["boxes"].shape[1] == 4 and len(example["boxes"]) <= 40
    assert np.all((example["boxes"] >= 0) & (example["boxes"] <= 1))
    assert example["region_mask"].shape == (64, 96)
    assert not np.isnan(example["style"]).any()
    caption = text.decode(example["text_tokens"]).encode("utf-8")
    start, end = example["box_spans"][0]
    # A byte is a token.
    assert caption[start:end].decode("utf-8").strip()
