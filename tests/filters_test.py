"""Rules for captions and pictures, in every script; what comes again."""

import csv
import time

import numpy as np
import pytest

from byt5_diffusion.data import boilerplate, duplicates, filters

RULES = filters.Rules()


def _why(text=None, rules=RULES, **known):
  """The reason for which an example is left out; None: it is not."""
  try:
    rules.check(text, **known)
  except filters.Filtered as error:
    return error.reason
  return None


def test_real_sentences_of_all_languages_pass(shared_data):
  path = shared_data / "fixtures/udhr/udhr_mc4_langs.tsv"
  with path.open(encoding="utf-8", newline="") as file:
    rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
  texts = [
    (row["mc4_code"], row[key][:length])
    for row in rows
    for key in ("article1", "article3")
    for length in (41, 1000)
    if row[key]
  ]
  assert len({code for code, _ in texts}) == 100
  found = {text: _why(text, language=code) for code, text in texts}
  assert not {t: why for t, why in found.items() if why}


@pytest.mark.parametrize(
  ("reason", "texts"),
  [
    (
      "caption is no description: file name",
      ["IMG_1234.JPG", "DSC00123", "cute cat.jpg", "screenshot_20210101"],
    ),
    (
      "caption is no description: address",
      ["www.example.com", "https://x.org/view?id=7", "ann@mail.example"],
    ),
    (
      "caption is no description: hash",
      ["d41d8cd98f00b204e9800998ecf8427e", "a1B2c3D4e5F6g7H8i9J0"],
    ),
    (
      "caption is no description: number of a picture",
      ["Image 3 of 10", "Foto 1/10", "Фото 3 из 10", "図12", "第3張", "12345"],
    ),
    (
      "caption is no description: boilerplate",
      [
        "image",
        "Photo!",
        "写真",
        "[no image]",
        "Нет фото",
        "صورة",
        "รูปภาพ",
        "profile photo of Ann",
        "Thumbnail for:",
      ],
    ),
    (
      "caption without letters",
      ["2012-12-25 18:00", "!!!! ???? ----", "१२.३४.५"],
    ),
    ("caption of few letters", ["*** a *** b *** c ***"]),
    ("caption too short", ["a cat", "小猫", "क्षि क्षि", "สวย"]),
    ("caption too long", ["word " * 300]),
    (
      "caption repeats itself",
      ["buy buy buy buy buy", "sooooooooo nice", "red shoes for men " * 4],
    ),
  ],
)
def test_captions_that_say_nothing(reason, texts):
  assert {text: _why(text) for text in texts} == dict.fromkeys(texts, reason)


@pytest.mark.parametrize(
  "text",
  [
    "red cat on a mat",
    "Photo of the old bridge in Mostar",
    "Boeing 747-400 landing",
    "image of a lighthouse at night",
    "https://x.org/7 is where this old bridge is",
    "日本の猫",
    "नमस्ते दुनिया",
    "ภาพวาดแมว",
    "Untitled, oil on canvas, 1923",
    "Mercedes-Benz W123",
    "a very, very good soup",
  ],
)
def test_captions_that_say_something(text):
  assert _why(text) is None


def test_letters_count_as_such_in_every_script():
  # Half of the code points are marks: str.isalnum would see 0.5 of it.
  text = "ก็ที่นี่มีน้ำดื่มใช้ได้"
  assert sum(map(str.isalnum, text)) / len(text) < 0.6
  assert _why(text) is None


def test_language_and_script_must_agree():
  assert _why("Все люди рождаются", language="en") == (
    "script is not the language's"
  )
  assert _why("Все люди рождаются", language="ru") is None
  unsure = filters.Rules(min_confidence=0.5)
  assert _why("one two three", unsure, confidence=0.4) == "language is unsure"
  assert _why("one two three", unsure, confidence=0.5) is None
  assert _why("one two three", confidence=0.1) is None
  assert _why("one two three", occurrences=11) == "caption occurs too often"
  assert _why("one two three", occurrences=10) is None
  assert _why("IMG_1.jpg", filters.Rules(judge_text=False)) is None


def test_metadata_at_its_thresholds():
  rules = filters.Rules(min_similarity_en=0.28, min_similarity_other=0.26)
  for known, reason in (
    ({"pwatermark": 0.8}, "watermark"),
    ({"pwatermark": 0.79}, None),
    ({"pwatermark": float("nan")}, "watermark"),
    ({"punsafe": 0.5}, "unsafe"),
    ({"similarity": 0.27, "language": "en"}, "caption does not match picture"),
    ({"similarity": 0.27, "language": "de"}, None),
    ({"similarity": 0.25, "language": "de"}, "caption does not match picture"),
    ({"width": 200, "height": 600}, None),
    ({"width": 200, "height": 601}, "picture too long or too tall"),
    ({"width": 199, "height": 300}, "picture too small"),
    ({"width": 0, "height": 300}, "picture without size"),
    ({"width": None, "height": 10}, None),
  ):
    assert _why(None, rules, **known) == reason, known


def test_aesthetic_scores_are_of_one_predictor():
  rules = filters.Rules(aesthetic_v2=5.0)
  assert _why(None, rules, aesthetic=4.9, aesthetic_version=2) == (
    "aesthetic score (V2) too low"
  )
  # V1's scale is another: 4.9 of it says nothing of V2's threshold.
  assert _why(None, rules, aesthetic=4.9, aesthetic_version=1) is None
  with pytest.raises(ValueError, match="scales differ"):
    rules.check(aesthetic=4.9)
  scores = np.arange(1000.0)
  assert np.mean(scores >= filters.threshold(scores, 0.8)) == 0.8
  with pytest.raises(ValueError, match="keep"):
    filters.threshold(scores, 0)


def test_reasons_are_few_and_their_values_short():
  with pytest.raises(filters.Filtered) as error:
    RULES.check("word " * 1000)
  assert len(error.value.shown()) <= 120
  assert error.value.reason == "caption too long"


@pytest.mark.parametrize(
  "piece", ["@", "a.", "a@b.", "a-", "1a", ".jpg", "www.", "\u0301", "\u200d"]
)
def test_hostile_captions_cost_little(piece):
  start = time.process_time()
  _why(piece * 100_000)
  boilerplate.reason(piece * 150)
  assert time.process_time() - start < 0.3


def test_first_of_each_kind():
  keys = np.array([7, 3, 7, 7, 9, 3], np.uint64)
  assert duplicates.first(keys).tolist() == [1, 1, 0, 0, 1, 0]
  assert duplicates.key("A  Cat ") == duplicates.key("a cat")
  assert duplicates.key(b"A") != duplicates.key(b"a")


def test_occurrences_are_counted_in_bounded_memory():
  seen = duplicates.Occurrences(20_000)
  for i in range(20_000):
    seen.add(f"caption {i}")
  for _ in range(30):
    seen.add("Thumbnail  for")
  assert seen.count("thumbnail for") >= 30
  counts = [seen.count(f"caption {i}") for i in range(0, 20_000, 10)]
  assert min(counts) == 1
  assert np.mean(np.array(counts) > 3) < 0.002
  for _ in range(400):
    seen.add("often")
  assert seen.count("often") == 255
  assert seen._counts.nbytes <= 6 * 20_000
  with pytest.raises(ValueError, match="expected"):
    duplicates.Occurrences(0)


def _picture(seed, height=60, width=91):
  rng = np.random.default_rng(seed)
  coarse = rng.uniform(0, 255, (8, 9, 3)).repeat(50, 0).repeat(50, 1)
  rows = (np.arange(height) * 400 // height)[:, None]
  return coarse[rows, np.arange(width) * 450 // width].astype(np.uint8)


def test_hashes_survive_scaling_and_noise_and_nothing_else():
  rng = np.random.default_rng(0)
  one = _picture(1)
  noisy = np.clip(one + rng.normal(0, 6, one.shape), 0, 255).astype(np.uint8)
  pictures = [one, noisy, _picture(1, 200, 300), _picture(2), one[:, ::-1]]
  hashes = [duplicates.difference_hash(x) for x in pictures]
  distance = [(hashes[0] ^ x).bit_count() for x in hashes]
  assert max(distance[:3]) <= 3 and min(distance[3:]) > 16
  found = duplicates.near(np.array(hashes, np.uint64))
  assert found.tolist() == [0, 0, 0, 3, 4]
  assert duplicates.difference_hash(np.zeros((1, 1, 3), np.uint8)) == 0
  with pytest.raises(ValueError, match="shape"):
    duplicates.difference_hash(np.zeros((4, 4), np.uint8))


def test_near_finds_what_comparing_all_pairs_finds():
  rng = np.random.default_rng(3)
  hashes = rng.integers(0, 2**64, 300, dtype=np.uint64)
  for i in range(100, 300):
    flips = rng.choice(64, rng.integers(0, 6), replace=False)
    hashes[i] = hashes[i - 100]
    for bit in flips:
      hashes[i] ^= np.uint64(1) << np.uint64(bit)
  distance = np.bitwise_count(hashes[:, None] ^ hashes[None])
  for most in (0, 1, 3):
    wanted = np.argmax(distance <= most, axis=1)
    np.testing.assert_array_equal(duplicates.near(hashes, most), wanted)
  with pytest.raises(ValueError, match="max_distance"):
    duplicates.near(hashes, 4)
