"""Captions to tokens for two encoders: the same everywhere, safe to read."""

import json
import os
import subprocess
import sys

import hypothesis
import numpy as np
import pytest
import toy_pieces
from hypothesis import strategies as st

from byt5_diffusion import feature_converters, prompts
from byt5_diffusion.data import captions, pieces, text

LENGTHS = {"text_tokens": 12, "semantic_tokens": 20}


@pytest.fixture(scope="module")
def spiece(tmp_path_factory):
  folder = tmp_path_factory.mktemp("spiece")
  return toy_pieces.write(folder / "spiece.model")


@pytest.fixture(scope="module")
def quoted(spiece):
  return captions.from_text(f"quoted={spiece}")


@pytest.fixture(scope="module")
def concat(spiece):
  return captions.from_text(f"concat={spiece}")


# --- Tokens ------------------------------------------------------------------


def test_each_mode_gives_each_encoder_its_text(quoted, concat):
  caption = "a sign “ab” that reads «c»"
  made = quoted.encode(caption, LENGTHS)
  assert text.decode(made["text_tokens"]) == "ab\nc"
  spelled = quoted.semantic.decode(made["semantic_tokens"])
  assert spelled == caption[: len(spelled)] and len(spelled) > 8
  both = concat.encode(caption, LENGTHS)
  assert text.decode(both["text_tokens"]) == caption[:9]  # 11 bytes fit.
  assert np.array_equal(both["semantic_tokens"], made["semantic_tokens"])
  [tokens] = captions.Captions().encode(caption, LENGTHS).values()
  assert np.array_equal(tokens, both["text_tokens"])


def test_a_caption_without_quotes_is_the_null_condition_of_byt5(quoted):
  assert quoted.encode("no sign", LENGTHS)["text_tokens"].tolist() == [1]


def test_quoted_text_is_cut_at_a_whole_character(quoted):
  family = "👨‍👩‍👧"
  limits = LENGTHS | {"text_tokens": 1 + len((family * 2).encode()) - 1}
  made = quoted.encode(f"“{family * 2}”", limits)
  assert text.decode(made["text_tokens"]) == family


def test_ids_are_those_of_seqio(spiece, quoted):
  seqio = pytest.importorskip("seqio")
  vocabulary = seqio.SentencePieceVocabulary(str(spiece))
  for caption in toy_pieces.TEXTS:
    ids = quoted.semantic.encode(caption, 1000)
    assert ids.tolist() == [*vocabulary.encode(caption), vocabulary.eos_id]
  assert vocabulary.pad_id == 0


@hypothesis.given(st.text(max_size=40), st.integers(1, 30))
def test_any_caption_becomes_tokens_of_the_lengths_asked_for(
  spiece, caption, length
):
  made = captions.from_text(f"quoted={spiece}").encode(
    caption, dict.fromkeys(LENGTHS, length)
  )
  for tokens in made.values():
    assert tokens.dtype == np.int32 and 1 <= len(tokens) <= length
    assert tokens[-1] == 1 and (tokens[:-1] != 1).all() and (tokens > 0).all()


def test_a_batch_is_padded_rows(quoted):
  texts = ["“a”", "none"]
  batch = quoted.encode_batch(texts, LENGTHS)
  for name, length in LENGTHS.items():
    assert batch[name].shape == (2, length)
    for row, caption in zip(batch[name], texts, strict=True):
      tokens = quoted.encode(caption, LENGTHS)[name]
      assert row[: len(tokens)].tolist() == tokens.tolist()
      assert not row[len(tokens) :].any()


@pytest.mark.parametrize("string", ["a", "“a”", "l'été", "«x»", "”"])
def test_any_string_can_be_put_into_marks(string):
  caption = captions.in_marks(string)
  assert captions.quotes.strings(caption) == [string]


def test_what_cannot_be_quoted_is_said():
  with pytest.raises(ValueError, match="quotation marks"):
    captions.in_marks(" a")


# --- Live and prepared -------------------------------------------------------


def tasks(folder, spiece):
  pictures = folder / "photos"
  pictures.mkdir()
  from PIL import Image

  for i, caption in enumerate(["a sign “ab”", "«привет» и 'Größe'", "plain"]):
    Image.new("RGB", (9, 7), (i, 0, 0)).save(pictures / f"{i}.png")
    (pictures / f"{i}.txt").write_text(caption, "utf-8")
  return {
    "typography": f"typography_words_tiny+quoted={spiece}",
    "image_caption_folder": f"image_caption_folder:{pictures}@16x40"
    f"+concat={spiece}",
  }


@pytest.mark.parametrize("module", ["typography", "image_caption_folder"])
def test_live_and_prepared_data_are_the_same_bits(module, spiece, tmp_path):
  pytest.importorskip("seqio")
  pytest.importorskip("byt5_diffusion.tasks", reason="needs `pip install -e .`")
  from byt5_diffusion import preparation
  from byt5_diffusion.data import pipeline

  lengths = {"image": 16, "text_tokens": 16, "example_id": 2}
  given = {
    "mixture_or_task_name": tasks(tmp_path, spiece)[module],
    "mixture_or_task_module": f"byt5_diffusion.tasks.{module}",
    "task_feature_lengths": lengths | {"semantic_tokens": 24},
    "feature_converter_cls": feature_converters.SemanticFeatureConverter,
  }
  preparation.prepare(
    **given,
    output_dir=str(tmp_path / "prepared"),
    splits=["train"],
    num_examples=2,
    num_shards=1,
    show_progress=False,
  )
  read = given | {"split": "train", "batch_size": 2, "shuffle": False}
  live = pipeline.open_data(**read)
  prepared = pipeline.open_data(**read, prepared_dir=tmp_path / "prepared")
  one, other = next(live), next(prepared)
  assert (
    one.keys()
    == other.keys()
    == {feature.batch_name for feature in feature_converters.SEMANTIC_FEATURES}
  )
  for name, value in one.items():
    assert value.dtype == other[name].dtype
    assert np.array_equal(value, other[name]), name
  assert (one["semantic_tokens"] > 0).sum() > 4
  assert live.captions == prepared.captions
  assert live.captions.mode == given["mixture_or_task_name"].split("+")[1][:6]
  live.close()
  prepared.close()


# --- What lies in a run's folder ---------------------------------------------


class Model:
  """What prompts ask of a model."""

  conditioning_mode = "quoted"
  semantic_vocab_size = 2000

  def input_shapes(self, batch_size=1):
    return {
      "images": (batch_size, 8, 8, 3),
      **{name: (batch_size, length) for name, length in LENGTHS.items()},
    }


def test_a_run_keeps_its_tokens(quoted, tmp_path):
  prompts.save(quoted, tmp_path)
  prompts.save(quoted, tmp_path)  # A run that goes on.
  assert sorted(os.listdir(tmp_path)) == ["captions.json", "semantic.model"]
  loaded = prompts.load(Model(), tmp_path)
  assert loaded == quoted
  texts = ["a “b” c", ""]
  found = prompts.encode(Model(), loaded, texts)
  for name, expected in quoted.encode_batch(texts, LENGTHS).items():
    assert np.array_equal(found[name], expected)


def test_a_run_does_not_go_on_with_other_tokens(quoted, concat, tmp_path):
  prompts.save(quoted, tmp_path)
  with pytest.raises(ValueError, match="begun with other tokens"):
    prompts.save(concat, tmp_path)


def test_a_run_of_bytes_alone_leaves_nothing(tmp_path):
  prompts.save(captions.Captions(), tmp_path)
  assert not os.listdir(tmp_path)
  assert prompts.load(object(), tmp_path) == captions.Captions()


def test_model_and_data_must_agree(quoted, tmp_path):
  class Bytes(Model):
    conditioning_mode = "byt5_only"

  class Small(Model):
    semantic_vocab_size = 10

  for model, message in ((Bytes(), "byt5_only"), (Small(), "T5_VOCAB_SIZE")):
    with pytest.raises(ValueError, match=message):
      prompts.fitting(model, quoted, "here")
  with pytest.raises(ValueError, match="quoted"):
    prompts.fitting(Model(), None, "here")
  with pytest.raises(ValueError, match=r"spiece\.model"):
    prompts.load(Model(), tmp_path)
  # Enough for a run of another trainer:
  toy_pieces.write(tmp_path / "semantic.model")
  assert prompts.load(Model(), tmp_path) == quoted


@pytest.mark.parametrize(
  "content",
  [
    b"",
    b"[]",
    b"\xff",
    b"null",
    b"{" * 70_000,
    b"[" * 30_000,
    b'{"format_version": 2, "mode": "quoted", "semantic": {"sha256": "0"}}',
    b'{"format_version": 1, "mode": "other", "semantic": {"sha256": "0"}}',
    b'{"format_version": 1, "mode": "byt5_only", "semantic": {"sha256": "0"}}',
    b'{"format_version": 1, "mode": "quoted", "semantic": {"sha256": 0}}',
    b'{"format_version": 1, "mode": ["quoted"], "semantic": {"sha256": "0"}}',
    b'{"format_version": 1, "mode": "quoted", "semantic": []}',
  ],
)
def test_a_damaged_record_is_one_line(content, tmp_path):
  toy_pieces.write(tmp_path / "semantic.model")
  (tmp_path / "captions.json").write_bytes(content)
  with pytest.raises(captions.BadCaptions, match=r"captions\.json") as error:
    captions.read(tmp_path)
  assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_the_record_names_no_file(quoted, tmp_path):
  """Only semantic.model beside it is ever opened."""
  record = json.loads(quoted.files()["captions.json"])
  record["semantic"]["file"] = "/etc/passwd"
  (tmp_path / "captions.json").write_text(json.dumps(record))
  (tmp_path / "semantic.model").write_bytes(quoted.semantic.content)
  assert captions.read(tmp_path) == quoted


def test_another_model_is_noticed(quoted, tmp_path):
  prompts.save(quoted, tmp_path)
  toy_pieces.write(tmp_path / "semantic.model", model_type="char")
  with pytest.raises(captions.BadCaptions, match="sha256"):
    captions.read(tmp_path)


# --- SentencePiece models ----------------------------------------------------


def test_a_missing_model_says_where_to_put_it(tmp_path):
  with pytest.raises(pieces.BadPieces, match=r"none\.model.*spiece\.model"):
    pieces.read(tmp_path / "none.model")
  with pytest.raises(ValueError, match=r"spiece\.model"):
    captions.from_text(f"quoted={tmp_path}/none.model")


def test_what_is_no_model_is_refused(tmp_path):
  path = tmp_path / "x.model"
  for content in (b"", b"text", b"\0" * 1000, b"\x0a\xff\xff\xff\xff\x7f"):
    path.write_bytes(content)
    with pytest.raises(pieces.BadPieces, match="not a SentencePiece model"):
      pieces.read(path)
  with path.open("wb") as file:
    file.truncate(pieces.MAX_BYTES + 1)
  with pytest.raises(pieces.BadPieces, match="more than any"):
    pieces.read(path)
  os.mkfifo(tmp_path / "pipe")
  for name in ("pipe", "."):
    with pytest.raises(pieces.BadPieces, match="not a regular file"):
      pieces.read(tmp_path / name)


def test_other_numbers_than_t5s_are_refused(tmp_path):
  path = toy_pieces.write(
    tmp_path / "llama.model", pad_id=-1, bos_id=1, eos_id=2, unk_id=0
  )
  with pytest.raises(pieces.BadPieces, match="pad_id=0"):
    pieces.read(path)


_FUZZ = """
import random, sys
from byt5_diffusion.data import pieces
content = open(sys.argv[1], "rb").read()
rng = random.Random(int(sys.argv[2]))
for _ in range(int(sys.argv[3])):
  broken = bytearray(content)
  for _ in range(rng.choice((1, 3, 30))):
    broken[rng.randrange(len(broken))] = rng.randrange(256)
  if rng.random() < 0.3:
    del broken[rng.randrange(len(broken)):]
  try:
    model = pieces.parse(bytes(broken), "x")
    model.encode("a sign “ab” é１ﬀ \\u0301 日", 20)
    model.decode(list(range(3, 30)))
  except pieces.BadPieces:
    pass
"""


def test_damaged_models_end_no_process(spiece):
  """A crash in the package's C++ would be the end of whoever reads it."""
  done = subprocess.run(
    [sys.executable, "-c", _FUZZ, str(spiece), str(os.getpid()), "150"],
    capture_output=True,
    text=True,
    timeout=100,
  )
  assert done.returncode == 0, (os.getpid(), done.stderr[-2000:])


_DRAWS = """
import sys
for name in ("tensorflow", "seqio", "tensorflow_text"):
  sys.modules[name] = None
from byt5_diffusion import prompts

class Model:
  conditioning_mode, semantic_vocab_size = "quoted", 2000
  def input_shapes(self):
    return {"text_tokens": (1, 12), "semantic_tokens": (1, 20)}

loaded = prompts.load(Model(), sys.argv[1])
print(prompts.encode(Model(), loaded, ["a “b”"])["text_tokens"].tolist())
"""


def test_prompts_need_no_tensorflow(quoted, tmp_path):
  prompts.save(quoted, tmp_path)
  done = subprocess.run(
    [sys.executable, "-c", _DRAWS, str(tmp_path)],
    capture_output=True,
    text=True,
  )
  assert done.stdout == f"{[[ord('b') + 3, 1] + [0] * 10]}\n", done.stderr
