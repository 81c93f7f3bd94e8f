"""Mixtures: languages as ByT5 has read them, every example equally often."""

import collections
import json

import gin
import numpy as np
import pytest

from byt5_diffusion import cli, language_report
from byt5_diffusion.data import (
  annotated,
  images,
  languages,
  mixture,
  pictures,
  pipeline,
  supplies,
)

mixtures = pytest.importorskip("byt5_diffusion.tasks.mixtures")
_SIZE = 8


class _Skewed:
  """A data set on the web's scale of languages: English, English, and some."""

  endless = False

  def __init__(self, path, count=20_000, num_languages=30, broken=()):
    self.name = f"skewed {path}"
    self.fingerprint = f"{path} {count}"
    self.broken = broken
    rng = np.random.default_rng(5)
    shares = np.exp(-np.arange(num_languages) / 4)
    rows = rng.choice(num_languages, count, p=shares / shares.sum())
    rows[rng.uniform(size=count) < 0.02] = languages.OTHER
    self._rows = {
      "train": rows.astype(np.uint8),
      "validation": rows[: count // 20].astype(np.uint8),
    }
    self.sizes = {key: len(value) for key, value in self._rows.items()}

  def languages(self, split):
    return self._rows[split]

  def read(self, split, index, seed=0, language=""):
    assert not language
    if index in self.broken:
      raise images.BadImage(str(index), "broken")
    code = languages.TABLE[self._rows[split][index]].code
    return _example(f"{self.name}/{split}/{index}", code)


class _Written:
  """Synthetic, without end, in all languages but two."""

  endless = True

  def __init__(self, path):
    self.sizes = {"train": 10, "validation": 10}
    self.name = f"written {path}"
    self.fingerprint = path

  def languages(self, split):
    del split
    return np.arange(105, dtype=np.uint8)

  def read(self, split, index, seed=0, language=""):
    assert languages.row(language) < 105
    return _example(f"{self.name}/{split}/{seed}/{language}/{index}", language)


def _example(key, code):
  image = np.zeros((_SIZE, _SIZE, 3), np.uint8)
  return annotated.Annotated(key=key, image=image, text=code, language=code)


_TABLE = {
  "skewed": supplies.Kind(_Skewed),
  "written": supplies.Kind(_Written),
}


@pytest.fixture(autouse=True)
def _tables(monkeypatch):
  monkeypatch.setattr(mixtures, "_tables", lambda: [_TABLE])


def _mixture(*weighted, size=50_000, **options):
  frame = pictures.Frame(height=_SIZE, width=_SIZE)
  parts = [
    mixture.Part(
      supply.name, weight, supplies.Maker(supply=supply, picture=frame)
    )
    for weight, supply in weighted
  ]
  return mixture.Mixture("mixed", parts, num_train=size, **options)


def test_languages_are_the_tables_and_no_example_comes_too_often():
  made = _mixture((3, _Skewed("a")), (1, _Written("b")), max_repeats=3)
  places = made.places("train", 4, np.arange(50_000))
  facts = language_report.count(places, made, "train")
  # Two of the table's rows are in neither: 0.42 %.
  lacking = sum(languages.percents()[105:])
  assert lacking <= facts["total_variation"] < lacking + 0.0015
  skewed, written = facts["sources"]
  assert skewed["repeats_max"] <= 3
  assert written["repeats_max"] == 1
  # What can be had of it is taken, and used evenly.
  rare = facts["languages"][26]
  have = int((made.parts[0].maker.supply.languages("train") == 26).sum())
  assert rare["from"]["skewed a"] == pytest.approx(3 * have, abs=8)
  english = facts["languages"][0]
  assert english["repeats_max"] == 1 == english["repeats_mean"]
  assert english["achieved"] == pytest.approx(0.0567 / 1.0001, rel=0.02)


def test_weights_hold_where_they_can():
  made = _mixture(
    (1, _Skewed("a", 90_000, 80)), (3, _Written("b")), max_repeats=4
  )
  places = made.places("train", 0, np.arange(50_000))
  assert (places.part == 0).mean() == pytest.approx(0.25, abs=0.002)


def test_all_of_a_language_come_before_any_comes_again():
  made = _mixture((1, _Skewed("a", 4000, 20)), (1, _Written("b")))
  places = made.places("train", 0, np.arange(50_000))
  for row in (0, 7, 15):
    rows = made.parts[0].maker.supply.languages("train")
    have = int((rows == row).sum())
    first = np.flatnonzero((places.part == 0) & (places.language == row))
    seen = places.example[first][:have]
    # Within a block they are shuffled; the count of each is even all the same.
    assert (rows[seen] == row).all()
    times = np.bincount(places.example[first])
    assert times.max() - times[rows[: len(times)] == row].min() <= 1


def test_places_are_a_function_of_split_seed_and_position():
  made = _mixture((1, _Skewed("a")), (1, _Written("b")), size=10**9)
  again = _mixture((1, _Skewed("a")), (1, _Written("b")), size=10**9)
  far = np.array([0, 65535, 65536, 10**8, 10**9 - 1])
  one, two = made.places("train", 1, far), again.places("train", 1, far[::-1])
  np.testing.assert_array_equal(np.array(one), np.array(two)[:, ::-1])
  other = made.places("train", 2, np.arange(100))
  same = made.places("train", 1, np.arange(100))
  assert (other.language != same.language).any()


def test_parts_that_do_not_fit_each_other_are_named():
  frame = pictures.Frame(height=8, width=8)
  wide = pictures.Frame(height=8, width=16)
  written = _Written("b")
  parts = [
    mixture.Part("b@8x8", 1, supplies.Maker(supply=written, picture=frame)),
    mixture.Part("b@8x16", 1, supplies.Maker(supply=written, picture=wide)),
  ]
  with pytest.raises(ValueError, match="b@8x16 gives image"):
    mixture.Mixture("mixed", parts)
  written.languages = lambda split: None
  with pytest.raises(ValueError, match="nobody knows the languages of b@8x8"):
    mixture.Mixture("mixed", parts[:1])


def test_patches_of_several_sizes_are_mixed():
  few = pictures.PatchGrid(patch_size=4, max_patches=2)
  many = pictures.PatchGrid(patch_size=4, max_patches=4)
  made = mixture.Mixture(
    "mixed",
    [
      mixture.Part("few", 1, supplies.Maker(supply=_Written("a"), picture=few)),
      mixture.Part(
        "many", 1, supplies.Maker(supply=_Written("b"), picture=many)
      ),
    ],
  )
  with pytest.raises(ValueError, match="up to 4 patches"):
    made.picture.check_lengths({"patches": 3}, "mixed")
  seen = [
    len(made.make("train", i, 0, {"patches": 4})["patches"]) for i in range(40)
  ]
  image = np.zeros((_SIZE, _SIZE, 3), np.uint8)
  sizes = {len(few.make(image)), len(many.make(image))}
  assert len(sizes) == 2 and set(seen) == sizes


def test_too_small_data_say_what_to_do():
  with pytest.raises(ValueError, match=r"'train'.*num_train"):
    _mixture((1, _Skewed("a")), size=10**7)


_NAME = "multilingual:3 skewed:a@8x8 | 1 written:b@8x8 | num_train=50000"


def test_names_that_say_nothing_of_use_are_refused():
  for wrong, match in (
    ("multilingual:", "neither"),
    ("multilingual:1 skewed:a", "names no data and size"),
    ("multilingual:1 unheard:a@8x8", "kinds: skewed, written"),
    (f"{_NAME} | 1 skewed:a@8x8", "twice"),
    (f"{_NAME} | max_repeat=4", "max_repeat=4"),
    (f"{_NAME} | num_train=4.5", "no number"),
    ("multilingual:x skewed:a@8x8", "neither"),
  ):
    with pytest.raises(ValueError, match=match):
      mixtures.register(wrong)
  assert mixtures.register("typography_words") == "typography_words"


def _open(streams=1, hosts=1, host=0, **options):
  return pipeline.open_data(
    mixture_or_task_name=_NAME,
    mixture_or_task_module="byt5_diffusion.tasks.mixtures",
    task_feature_lengths={"image": 8, "text_tokens": 16, "example_id": 2},
    split="train",
    batch_size=16,
    num_streams=streams,
    host_index=host,
    host_count=hosts,
    seed=3,
    **options,
  )


def test_hosts_share_batches_and_resumed_runs_go_on():
  whole, half = _open(streams=4), _open(streams=4, hosts=2, host=1)
  quarter = _open(streams=4, hosts=4, host=3)
  batches = [next(whole)["example_id"]]
  place = whole.get_state()
  batches.append(next(whole)["example_id"])
  assert len(np.unique(np.concatenate(batches), axis=0)) == 32
  for batch in batches:
    np.testing.assert_array_equal(next(half)["example_id"], batch[8:])
    np.testing.assert_array_equal(next(quarter)["example_id"], batch[12:])
  whole.set_state(place)
  np.testing.assert_array_equal(next(whole)["example_id"], batches[1])
  whole.close()
  half.close()
  quarter.close()


def test_gin_makes_it_and_any_number_of_shards_is_a_part_of_all():
  """As T5X's recipes name it, and as T5X reads it."""
  seqio = pytest.importorskip("seqio")
  try:
    gin.parse_config("""
      from __gin__ import dynamic_registration
      import seqio
      from byt5_diffusion.tasks import mixtures
      mixtures.multilingual.sources = {
        "skewed:a@8x8": 3, "written:b@8x8": 1}
      mixtures.multilingual.num_train = 3000
      MIXTURE_OR_TASK_NAME = @mixtures.multilingual()
      seqio.get_mixture_or_task.task_or_mixture_name = %MIXTURE_OR_TASK_NAME
    """)
    provider = gin.get_configurable(seqio.get_mixture_or_task)()
  finally:
    gin.clear_config()
  lengths = {"image": 8, "text_tokens": 16, "example_id": 2}

  def read(shard, count, **options):
    data = provider.get_dataset(
      lengths, "train", shard_info=seqio.ShardInfo(shard, count), seed=1,
      use_cached=False, **options,
    )  # fmt: skip
    taken = data.take(12 // count).as_numpy_iterator()
    return [tuple(x["example_id"].tolist()) for x in taken]

  whole = read(0, 1, num_epochs=None)
  for count in (2, 3):
    parts = [read(shard, count, num_epochs=None) for shard in range(count)]
    assert [x for row in zip(*parts, strict=True) for x in row] == whole
  assert read(0, 1, num_epochs=1, shuffle=True) == whole


def test_inspect_counts_what_training_reads(capsys):
  flags = ["inspect", _NAME, "--languages", "--num_ids=512"]
  cli.main([*flags, "--seed=3", "--json"])
  facts = json.loads(capsys.readouterr().out)
  batches = _open()
  texts = collections.Counter(
    bytes((row[row > 3] - 3).astype(np.uint8)).decode()
    for _ in range(32)
    for row in next(batches)["text_tokens"]
  )
  batches.close()
  found = {row["code"]: row["count"] for row in facts["languages"]}
  assert {code: count for code, count in found.items() if count} == texts
  cli.main(flags)
  shown = capsys.readouterr().out
  assert "total variation distance" in shown
  assert "skewed:a@8x8" in shown


@pytest.mark.slow
def test_a_million_ids_of_a_mixture():
  made = _mixture(
    (2, _Skewed("a", 3_000_000, 60)), (1, _Written("b")), size=1_000_000
  )
  places = made.places("train", 0, np.arange(1_000_000))
  facts = language_report.count(places, made, "train")
  assert facts["total_variation"] <= 0.006
  assert max(row["repeats_max"] for row in facts["languages"]) <= 4


@pytest.mark.slow
def test_inspect_counts_a_million_ids_of_a_recipe(capsys, monkeypatch):
  monkeypatch.undo()  # Of the fake tables.
  cli.main(
    [
      "inspect",
      "experiments/small_multilingual.gin",
      "--gin.MODEL_DIR='unused'",
      "--languages",
      "--json",
    ]
  )
  facts = json.loads(capsys.readouterr().out)
  assert facts["ids"] == 1_000_000
  assert facts["total_variation"] <= 0.006
  assert all(row["count"] for row in facts["languages"])
  assert facts["sources"][0]["repeats_max"] == 1
