"""Typography tasks: the right features, resumable, split without overlap."""

import dataclasses
import itertools

import numpy as np
import pytest
import seqio
import tensorflow as tf

from byt5_diffusion import feature_converters
from byt5_diffusion.data import (
  patches,
  rejections,
  text,
)
from byt5_diffusion.data.writing import (
  fonts,
  typography,
  words,
)
from byt5_diffusion.tasks import typography as tasks

LENGTHS = {"image": 16, "text_tokens": 16, "example_id": 2}
NAME = "typography_words_test"
SOURCE = words.Glyphs(only_scripts=["Latn"], alphabet_size=8, max_length=3)


@pytest.fixture(scope="module", autouse=True)
def task():
  if "Latn" not in fonts.available_scripts(["Latn"]):
    pytest.skip("no font for Latin here: python tools/fetch_fonts.py")
  tasks.add_typography_task(
    NAME,
    source=SOURCE,
    height=16,
    width=48,
    num_train=400,
    num_validation=60,
    patch_size=8,
  )
  yield seqio.get_mixture_or_task(NAME)
  seqio.TaskRegistry.remove(NAME)
  seqio.TaskRegistry.remove(f"{NAME}_reading")


def dataset(split="train", **options):
  defaults = {"shuffle": True, "seed": 0, "num_epochs": 1}
  return seqio.get_mixture_or_task(NAME).get_dataset(
    sequence_length=LENGTHS, split=split, **{**defaults, **options}
  )


def examples(split="train", count=None, **options):
  ds = dataset(split, **options)
  return list(itertools.islice(ds.as_numpy_iterator(), count))


def captions(found):
  return [text.decode(example["text_tokens"]) for example in found]


def assert_equal(first, second):
  assert len(first) == len(second)
  for one, other in zip(first, second, strict=True):
    for key in one:
      np.testing.assert_array_equal(one[key], other[key])


def test_features_are_what_the_converter_wants():
  found = examples(count=5)
  renderer = typography.Renderer(height=16, width=48)
  for example in found:
    row = feature_converters.convert(example, LENGTHS)
    assert row["images"].shape == (16, 48, 3)
    caption = text.decode(example["text_tokens"])
    assert example["text_tokens"][-1] == text.EOS_ID
    np.testing.assert_array_equal(
      example["image"], renderer.render(caption, "Latn")
    )


@pytest.mark.parametrize("split", ["train", "validation"])
def test_to_read_is_what_was_drawn(split):
  """The same strings, ids and pixels, as patches."""
  lengths = {"patches": 12, "text_tokens": 16, "example_id": 2}
  ds = seqio.get_mixture_or_task(f"{NAME}_reading").get_dataset(
    sequence_length=lengths, split=split, shuffle=True, seed=0, num_epochs=1
  )
  for drawn, read in zip(
    examples(split, 5), ds.take(5).as_numpy_iterator(), strict=True
  ):
    for key in ("text_tokens", "example_id"):
      np.testing.assert_array_equal(read[key], drawn[key])
    np.testing.assert_array_equal(
      read["patches"], patches.cut(drawn["image"], 8)
    )
    row = feature_converters.ReadingFeatureConverter.convert(read, lengths)
    assert row["patches"].shape == (12, 2 + 3 * 64)


def test_patches_fill_the_picture_and_the_length():
  with pytest.raises(ValueError, match="up to 12 patches"):
    seqio.get_mixture_or_task(f"{NAME}_reading").get_dataset(
      sequence_length={"patches": 11, "text_tokens": 16, "example_id": 2},
      split="train",
    )
  with pytest.raises(ValueError, match="patch_size=7 must divide"):
    tasks.add_typography_task(
      "never", source=SOURCE, height=16, width=48, patch_size=7
    )
  assert "never" not in seqio.TaskRegistry.names()


def test_a_resumed_iterator_goes_on_as_the_first_would(tmp_path):
  ds = dataset(num_epochs=None)
  iterator = iter(ds)
  for _ in range(7):
    next(iterator)
  path = tf.train.Checkpoint(iterator=iterator).write(str(tmp_path / "place"))
  expected = [next(iterator) for _ in range(20)]
  fresh = iter(dataset(num_epochs=None))
  tf.train.Checkpoint(iterator=fresh).read(path).assert_consumed()
  assert_equal([next(fresh) for _ in range(20)], expected)


def test_the_checkpoint_holds_no_pictures(tmp_path):
  iterator = iter(dataset())
  next(iterator)
  tf.train.Checkpoint(iterator=iterator).write(str(tmp_path / "place"))
  size = sum(file.stat().st_size for file in tmp_path.iterdir())
  assert size < 500_000


def test_examples_are_a_function_of_seed_and_split():
  assert_equal(examples(count=20), examples(count=20))
  assert captions(examples(count=20)) != captions(examples(count=20, seed=1))
  # Unshuffled, as for evaluation, the seed does not matter.
  still = [examples("validation", shuffle=False, seed=s) for s in (0, 1)]
  assert_equal(*still)


def test_splits_share_no_string():
  train = set(captions(examples("train")))
  validation = set(captions(examples("validation")))
  assert train and validation
  assert train.isdisjoint(validation)


def test_ids_are_unique():
  found = examples("train") + examples("validation")
  assert len(found) == 460
  assert len({tuple(example["example_id"]) for example in found}) == 460


def test_streams_share_the_examples_out():
  whole = examples(count=40, shuffle=False)
  for index in range(4):
    part = examples(
      count=10, shuffle=False, shard_info=seqio.ShardInfo(index, 4)
    )
    assert_equal(part, whole[index::4])


def test_the_picture_must_have_the_wanted_height():
  with pytest.raises(ValueError, match="16 x 48"):
    seqio.get_mixture_or_task(NAME).get_dataset(
      sequence_length={**LENGTHS, "image": 32}, split="train"
    )


def painter(**changes) -> tasks.Painter:
  made = tasks.Painter(
    name="painted",
    source=SOURCE,
    renderer=typography.Renderer(height=16, width=48),
  )
  return dataclasses.replace(made, **changes)


@pytest.fixture
def ledgers():
  yield rejections.ledger
  for ledger in rejections.ledgers():
    if ledger.source.startswith("painted/"):
      rejections.forget(ledger.source)


def test_what_cannot_be_drawn_gives_its_place_and_is_counted(ledgers, tmp_path):
  path = tmp_path / "lines.txt"
  lines = [f"word {i}" for i in range(60)] + [
    f"rare \ue000{i}" for i in range(60)
  ]
  path.write_text("\n".join(lines), "utf-8")
  source = words.TextFile(path=str(path))
  found = [
    painter(source=source).paint(source, "train", 0, index, None)
    for index in range(40)
  ]
  drawn = {text.decode(tokens) for _, tokens, _ in found}
  assert all(caption.startswith("word") for caption in drawn)
  summary = ledgers("painted/Latn").summary()
  assert summary["accepted"] == 40
  assert summary["rejected"] > 10
  assert set(summary["reasons"]) == {"MissingGlyph"}


def test_a_caption_is_never_cut(ledgers):
  source = words.Glyphs(only_scripts=["Latn"], min_length=1, max_length=8)
  for index in range(30):
    _, tokens, _ = painter().paint(source, "train", 0, index, 5)
    assert len(tokens) <= 5 and tokens[-1] == text.EOS_ID
  assert ledgers("painted/Latn").summary()["rejected"] > 0


def test_nothing_drawable_is_an_error(ledgers, tmp_path):
  path = tmp_path / "lines.txt"
  path.write_text("\n".join(f"\ue000{i}" for i in range(60)), "utf-8")
  source = words.TextFile(path=str(path))
  with pytest.raises(ValueError, match=r"cannot be drawn.*U\+E000"):
    painter().paint(source, "train", 0, 0, None)


def test_scripts_without_fonts_are_left_out_and_named(monkeypatch, caplog):
  monkeypatch.setattr(
    fonts, "available_scripts", lambda scripts: ("Grek", "Latn")
  )
  source = words.Words(only_scripts=["Grek", "Khmr", "Latn"])
  assert painter(source=source).drawable_source().scripts == ("Grek", "Latn")
  assert "goes without Khmr" in caplog.text


def test_no_script_at_all_is_an_error_that_says_what_to_do(monkeypatch):
  monkeypatch.setattr(fonts, "directories", lambda: ())
  with pytest.raises(fonts.MissingFont, match=r"fetch_fonts\.py"):
    painter().drawable_source()


@pytest.mark.parametrize(
  ("name", "height", "width"),
  [("typography_words", 64, 256), ("typography_words_tiny", 16, 40)],
)
def test_the_registered_tasks_work(name, height, width):
  lengths = {"image": height, "text_tokens": 64, "example_id": 2}
  for split in ("train", "validation"):
    ds = seqio.get_mixture_or_task(name).get_dataset(
      sequence_length=lengths, split=split, shuffle=False
    )
    for example in ds.take(20).as_numpy_iterator():
      assert example["image"].shape == (height, width, 3)
      assert example["image"].min() < 128 < example["image"].max()


@pytest.mark.parametrize(
  ("name", "count", "patch_size"),
  [
    ("typography_words_reading", 256, 8),
    ("typography_words_tiny_reading", 40, 4),
  ],
)
def test_the_registered_reading_tasks_work(name, count, patch_size):
  lengths = {"patches": count, "text_tokens": 64, "example_id": 2}
  for split in ("train", "validation"):
    ds = seqio.get_mixture_or_task(name).get_dataset(
      sequence_length=lengths, split=split, shuffle=False
    )
    for example in ds.take(4).as_numpy_iterator():
      assert example["patches"].shape == (count, 2 + 3 * patch_size**2)
      assert example["patches"][:, 2:].min() < 128
