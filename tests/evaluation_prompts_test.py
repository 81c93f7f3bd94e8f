"""Published prompts: what they ask for, and what must be legible then."""

import json
import pathlib

import end_to_end_test as end_to_end
import numpy as np
import pytest
from PIL import Image

from byt5_diffusion import cli, feature_converters, inference
from byt5_diffusion.data import seqio_tasks
from byt5_diffusion.data.sets import evaluation_prompts
from byt5_diffusion.data.writing import fonts
from byt5_diffusion.tasks import evaluation_prompts as prompt_tasks

DRAWTEXT = "benchmarks/google-research_drawtext"
LONGTEXT = "benchmarks/X-Omni_LongText-Bench"


def drawtext(folder: pathlib.Path) -> str:
  """The first lines of three of DrawText's files, as they are."""
  files = {
    "drawtext_spelling/en.test.top_1_pct.txt": (
      'A sign with the word "Kent" written on it.\n'
      'A sign with the word "Jacob" written on it.\n'
    ),
    "drawtext_spelling/irregular_past.txt": "began\nchose\n",
    "drawtext_creative/2_words.txt": (
      'a sign that reads "no dogs" but with a dog smiling\n'
      'made from wood, with the words "giraffe" and "toothbrush"\n'
    ),
  }
  for name, text in files.items():
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, "utf-8")
  return str(folder)


def wikispell(folder: pathlib.Path) -> str:
  folder.mkdir(exist_ok=True)
  files = {
    "ko.test.top_1_pct": "없이\t없 이\n10월\t1 0 월\n",
    "th.dev.bottom_50_pct": "กำ\tก ำ\nน้ำ\tน ้ ำ\n",
    "en.train": "word\tw o r d\n",
  }
  for name, text in files.items():
    (folder / f"{name}.tsv").write_text(text, "utf-8")
  return str(folder)


def longtext(folder: pathlib.Path) -> str:
  folder.mkdir(exist_ok=True)
  for name, prompt, text in (
    ("text_prompts", "A sign reads “OPEN DAILY”", ["OPEN DAILY", "9 to 5"]),
    ("text_prompts_zh", "招牌写着“开”\u2028和", ["开"]),
  ):
    record = {
      "category": "sign", "length": "short", "prompt": prompt, "text": text,
      "text_length": 2, "prompt_id": 0,
    }  # fmt: skip
    line = json.dumps(record, ensure_ascii=False)
    (folder / f"{name}.jsonl").write_text(line + "\n", "utf-8")
  return str(folder)


# --- the published files ------------------------------------------------------


def test_drawtext_as_published(shared_data: pathlib.Path) -> None:
  prompts = evaluation_prompts.prompts_of(f"drawtext:{shared_data / DRAWTEXT}")
  counts: dict[str, int] = {}
  for prompt in prompts:
    counts[prompt.category] = counts.get(prompt.category, 0) + 1
  assert counts == {
    "1_letter": 10, "1_word": 50, "2_words": 25, "3_plus_words": 90,
    "top_1_pct": 100, "1_to_10_pct": 100, "20_to_30_pct": 100,
    "irregular_past": 23, "irregular_plural": 16,
  }  # fmt: skip
  assert len({prompt.key for prompt in prompts}) == len(prompts) == 514
  for prompt in prompts:
    assert prompt.strings, prompt.text
    assert all(text in prompt.text for text in prompt.strings)
    if prompt.category.endswith("_pct"):
      [word] = prompt.strings
      assert prompt.text == evaluation_prompts.SENTENCE.format(word)
    if prompt.category == "1_letter":
      assert [len(text) for text in prompt.strings] == [1]
  said = {p.text: p.strings for p in prompts}
  assert said[
    "A professionally designed logo for a bakery called Just What I Kneaded."
  ] == ("Just What I Kneaded",)


def test_wikispell_as_published(shared_data: pathlib.Path) -> None:
  name = f"wikispell:{shared_data / DRAWTEXT}"
  prompts = evaluation_prompts.prompts_of(name)
  assert len(prompts) == 240  # All of so small a pool: dev has the same words.
  assert {p.language for p in prompts} == {"ko"}
  assert prompts[0].strings == ("없이",)
  assert prompts[0].text == 'A sign with the word "없이" written on it.'


def test_longtext_as_published(shared_data: pathlib.Path) -> None:
  prompts = evaluation_prompts.prompts_of(f"longtext:{shared_data / LONGTEXT}")
  assert len({prompt.key for prompt in prompts}) == len(prompts) == 320
  assert sum(prompt.language == "zh" for prompt in prompts) == 160
  assert len({prompt.category for prompt in prompts}) == 16
  assert prompts[0].strings == (
    "FRESH BREWS, EVERY MORNING, EVERY DAY", "Locally Roasted Since 1998",
    "CENTRAL PARK - 2 BLOCKS",
  )  # fmt: skip


# --- their formats ------------------------------------------------------------


def test_drawtext(tmp_path: pathlib.Path) -> None:
  name = f"drawtext:{drawtext(tmp_path)}"
  prompts = evaluation_prompts.prompts_of(name)
  assert [(p.category, p.strings) for p in prompts] == [
    ("2_words", ("no dogs",)), ("2_words", ("giraffe", "toothbrush")),
    ("top_1_pct", ("Kent",)), ("top_1_pct", ("Jacob",)),
    ("irregular_past", ("began",)), ("irregular_past", ("chose",)),
  ]  # fmt: skip
  assert prompts[4].text == 'A sign with the word "began" written on it.'
  assert prompts[3].key == "drawtext/top_1_pct/2"
  some = evaluation_prompts.prompts_of(f"{name}+categories=2_words,top_1_pct")
  assert some == prompts[:4]
  four = evaluation_prompts.prompts_of(
    f"{name}@64x64+categories=irregular_past+images_per_prompt=4"
  )
  assert len(four) == 8 and len({prompt.key for prompt in four}) == 8
  assert four[0] == prompts[4] and four[3].key.endswith("/1#3")


def test_wikispell(tmp_path: pathlib.Path) -> None:
  name = f"wikispell:{wikispell(tmp_path)}"
  test = evaluation_prompts.prompts_of(name)
  assert [(p.language, p.strings[0], p.category) for p in test] == [
    ("ko", "없이", "top_1_pct"), ("ko", "10월", "top_1_pct"),
  ]  # fmt: skip
  dev = evaluation_prompts.prompts_of(
    f"{name}+only=th+sentence={{}}+max_words=1", "validation"
  )
  assert [p.text for p in dev] == ["กำ"]
  [word] = evaluation_prompts.prompts_of(name, "train")
  assert (word.category, word.key) == ("train", "wikispell/en/train/train/1")


def test_longtext(tmp_path: pathlib.Path) -> None:
  english, chinese = evaluation_prompts.prompts_of(
    f"longtext:{longtext(tmp_path)}"
  )
  assert english.strings == ("OPEN DAILY", "9 to 5")
  assert english.category == "sign/short" and english.language == "en"
  # A separator of lines inside of a string is no line's end.
  assert chinese.text == "招牌写着“开”\u2028和" and chinese.language == "zh"


@pytest.mark.parametrize(
  ("kind", "file", "content", "message"),
  [
    ("wikispell", "ko.test.x.tsv", b"ab\ta  b\n", r"ko\.test\.x\.tsv:1: not a"),
    ("wikispell", "ko.test.x.tsv", b"ab\n", r"tsv:1: not a word"),
    ("wikispell", "words.tsv", b"ab\ta b\n", "<language>"),
    ("longtext", "a.jsonl", b'{"prompt": "x"}\n', r"a\.jsonl:1: .*KeyError"),
    ("longtext", "a.jsonl", b"[]\n", r"a\.jsonl:1: .*TypeError"),
    ("longtext", "a.jsonl", b"{" * 9999, r"a\.jsonl:1: "),
    ("drawtext", "a.txt", b"\xff\n", r"a\.txt: not UTF-8 \(byte 0\)"),
    ("drawtext", "a.txt", b"\n", "no such prompt"),
    ("drawtext", "a.md", b"x\n", r"no \.txt file"),
  ],
)
def test_files_that_are_none(
  tmp_path: pathlib.Path, kind: str, file: str, content: bytes, message: str
) -> None:
  (tmp_path / file).write_bytes(content)
  with pytest.raises(ValueError, match=message):
    evaluation_prompts.prompts_of(f"{kind}:{tmp_path}")


@pytest.mark.parametrize(
  ("name", "message"),
  [
    (
      "drawtext:{}+categories=3_letters",
      "there is no 3_letters; there are 2_w",
    ),
    ("drawtext:{}+images_per_prompt=0", "images_per_prompt=0"),
    ("drawtext:{}+only=en", "no option 'only'"),
    ("drawtxt:{}", "names no prompts"),
    ("{}", "names no prompts"),
  ],
)
def test_names_that_are_none(
  tmp_path: pathlib.Path, name: str, message: str
) -> None:
  with pytest.raises(ValueError, match=message):
    evaluation_prompts.prompts_of(name.format(drawtext(tmp_path)))


def test_a_split_that_is_not_there(tmp_path: pathlib.Path) -> None:
  with pytest.raises(ValueError, match=r"only \['test'\]"):
    evaluation_prompts.prompts_of(f"drawtext:{drawtext(tmp_path)}", "train")


def test_a_sentence_without_a_word(tmp_path: pathlib.Path) -> None:
  with pytest.raises(ValueError, match=r"one \{\}"):
    evaluation_prompts.open_wikispell(wikispell(tmp_path), sentence="a word")


# --- as tasks, and drawn ------------------------------------------------------


def test_the_task_of_a_name(tmp_path: pathlib.Path) -> None:
  name = f"drawtext:{drawtext(tmp_path)}@16x40+images_per_prompt=2"
  task = seqio_tasks.seqio.get_mixture_or_task(prompt_tasks.register(name))
  assert list(task.splits) == ["test"]
  lengths = {"image": 16, "text_tokens": 64, "example_id": 2}
  made = list(task.get_dataset(lengths, "test", shuffle=False))
  assert len(made) == 12
  assert made[0]["image"].shape == (16, 40, 3)
  assert (made[0]["image"].numpy() == 255).all()
  # The record of a picture leads back to what must be legible in it.
  prompts = evaluation_prompts.prompts_of(name)
  for example, prompt in zip(made, prompts, strict=True):
    words = example["example_id"].numpy()
    assert "".join(f"{word:08x}" for word in words) == prompt.example_id
    key = feature_converters.example_id(prompt.key)
    assert np.array_equal(words, key)
  assert len({prompt.example_id for prompt in prompts}) == 12


class Artist:
  """Draws how many texts it got."""

  @classmethod
  def from_model_dir(cls, model_dir: str, **keywords: object) -> "Artist":
    return cls()

  def generate(self, texts: list[str], **keywords: object) -> np.ndarray:
    return np.full((len(texts), 4, 6, 3), len(texts), np.uint8)


def test_generate_draws_prompts(
  tmp_path: pathlib.Path,
  monkeypatch: pytest.MonkeyPatch,
  capsys: pytest.CaptureFixture[str],
) -> None:
  monkeypatch.setattr(inference, "Generator", Artist)
  name = f"drawtext:{drawtext(tmp_path)}+categories=2_words"
  out = tmp_path / "drawn" / "x.png"
  command = ["generate", "--model_dir=run", f"--out={out}"]
  assert not cli.main([*command, "--prompts", name])
  lines = out.with_suffix(".jsonl").read_text("utf-8").splitlines()
  records = [json.loads(line) for line in lines]
  assert [r["image"] for r in records] == ["x-0.png", "x-1.png"]
  assert records[1]["strings"] == ["giraffe", "toothbrush"]
  assert records[1]["category"] == "2_words" and records[1]["language"] == "en"
  for record in records:
    assert Image.open(out.parent / record["image"]).getpixel((0, 0))[0] == 2
  for arguments, message in (
    (["--prompts", name], "exists"),
    ([], "give texts to draw, or --prompts"),
    (["text", "--prompts", name], "not both"),
    (["text", "--num_prompts=1"], "needs --prompts"),
    (["--prompts", name, "--num_prompts=0"], "must be positive"),
    (["--prompts", "drawtext:/nowhere"], "no such file or folder"),
  ):
    assert cli.main([*command, *arguments]) == 2
    assert message in capsys.readouterr().err
  assert not cli.main(
    [*command, "--prompts", name, "--num_prompts=1", "--overwrite"]
  )
  assert len(out.with_suffix(".jsonl").read_text("utf-8").splitlines()) == 1


@pytest.mark.slow
def test_infer_and_generate_draw_them_by_a_trained_model(
  tmp_path: pathlib.Path,
) -> None:
  if not fonts.available_scripts(["Latn"]):
    pytest.skip("no font for Latin here: run `python tools/fetch_fonts.py`")
  run, flags, main = end_to_end.run, end_to_end.flags, end_to_end.main
  sizes = {"MAX_TEXT_LENGTH": 64}
  run(
    tmp_path,
    *main("--run_mode=train", "--gin_file=experiments/tiny.gin"),
    *flags(MODEL_DIR="model", **sizes),
  )
  name = f"drawtext:{drawtext(tmp_path / 'drawtext')}@16x40"
  run(
    tmp_path,
    *main("--run_mode=infer", "--gin_file=experiments/tiny.gin"),
    "--gin_file=runs/infer_prompts.gin",
    *flags(
      MODEL_DIR="model",
      INFER_OUTPUT_DIR="drawn",
      MIXTURE_OR_TASK_NAME=name,
      **sizes,
    ),
  )
  lines = (tmp_path / "drawn/predictions.jsonl").read_text().splitlines()
  records = [json.loads(line) for line in lines]
  prompts = evaluation_prompts.prompts_of(name)
  assert [record["text"] for record in records] == [p.text for p in prompts]
  for record, prompt in zip(records, prompts, strict=True):
    assert record["example_id"] == prompt.example_id
    with Image.open(tmp_path / "drawn" / record["image"]) as image:
      assert image.size == (40, 16)
  run(
    tmp_path,
    *("-m", "byt5_diffusion.cli", "generate", "--prompts", name),
    *("--num_prompts=2", "--model_dir", "model", "--out", "x.png"),
    "--num_steps=2",
  )
  assert (tmp_path / "x-1.png").is_file() and (tmp_path / "x.jsonl").is_file()
