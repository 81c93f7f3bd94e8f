"""Reading from a run's folder: by library, by command, and a whole data set."""

import json
import os
import pathlib
import re
import types
from typing import Any

import gin
import jax
import numpy as np
import pytest
import tiny
from PIL import Image

from byt5_diffusion import (
  checkpoints,
  cli,
  config,
  inference,
  ocr,
  partitioning,
  reading,
  spelling,
  train_state,
)
from byt5_diffusion.data import text

RECIPES = {"patches": "experiments/tiny_ocr.gin"}
RECIPES |= {"images": "experiments/tiny_joint.gin"}
PARTITIONING = partitioning.Partitioning(
  logical_axis_rules=[("batch", "data")], num_devices=1
)


def write_run(recipe: str, folder: pathlib.Path) -> Any:
  """A run's folder with random weights; returns its model."""
  try:
    config.parse([recipe], [f"MODEL_DIR={str(folder)!r}"], run_mode="train")
    config.write_configs(folder)
    model = gin.get_bindings("MODEL/gin.macro")["value"]
  finally:
    gin.clear_config()
  shapes = model.input_shapes()
  state = jax.eval_shape(
    lambda rng: train_state.create(
      model.get_initial_variables(rng, shapes)["params"], model.optimizer_def.tx
    ),
    jax.random.key(0),
  )
  rng = np.random.default_rng(0)
  state = jax.tree.map(
    lambda x: rng.normal(size=x.shape).astype(x.dtype) * 0.5, state
  )
  checkpointer = checkpoints.Checkpointer(folder)
  checkpointer.save(3, state, b"", {"batch_size": 8, "frozen": None})
  checkpointer.close()
  return model


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
  """Kind of input -> a run that reads it."""
  folders = {}
  for kind, recipe in RECIPES.items():
    folders[kind] = str(tmp_path_factory.mktemp(kind))
    write_run(recipe, pathlib.Path(folders[kind]))
  return folders


@pytest.fixture(scope="module")
def readers(runs: dict[str, str]) -> dict[str, reading.Reader]:
  return {
    kind: reading.Reader.from_model_dir(folder, batch_size=4)
    for kind, folder in runs.items()
  }


def pictures(count: int = 6) -> list[np.ndarray]:
  """Noise of many sizes and proportions."""
  rng = np.random.default_rng(1)
  sizes = [(16, 40), (64, 256), (5, 300), (300, 5), (1, 1), (20, 20)]
  return [
    rng.integers(0, 256, (*sizes[i % 6], 3), dtype=np.uint8)
    for i in range(count)
  ]


@pytest.mark.parametrize("kind", RECIPES)
def test_pictures_of_any_size_are_read(
  readers: dict[str, reading.Reader], kind: str
) -> None:
  reader = readers[kind]
  assert reader.step == 3
  found = reader.read(pictures())
  assert len(found) == 6
  assert len({one.text for one in found}) > 1
  for one in found:
    one.text.encode("utf-8")  # No lone surrogate, no broken byte.
    assert "\N{REPLACEMENT CHARACTER}" not in one.text
    assert "".join(letter for letter, _ in one.characters) == one.text
    assert 0 <= one.confidence <= min([p for _, p in one.characters] + [1.0])


@pytest.mark.parametrize("kind", RECIPES)
def test_a_reading_does_not_depend_on_its_batch(
  readers: dict[str, reading.Reader], kind: str
) -> None:
  together = readers[kind].read(pictures(5))
  alone = [readers[kind].read([picture])[0] for picture in pictures(5)]
  assert [one.text for one in together] == [one.text for one in alone]
  np.testing.assert_allclose(
    [one.confidence for one in together],
    [one.confidence for one in alone],
    rtol=1e-3,
  )


def test_a_wider_beam_finds_likelier_texts(
  readers: dict[str, reading.Reader],
) -> None:
  reader = readers["patches"]
  greedy = reader.read(pictures())
  beams = reader.read(pictures(), beam_size=4)
  better = [
    b.confidence - g.confidence for b, g in zip(beams, greedy, strict=True)
  ]
  assert sum(better) > 0


@pytest.mark.parametrize(
  ("images", "options", "message"),
  [
    ([], {}, "at least one"),
    ([np.zeros((4, 4, 3), np.float32)], {}, "uint8"),
    ([np.zeros((4, 4), np.uint8)], {}, "uint8"),
    ([np.zeros((0, 4, 3), np.uint8)], {}, "uint8"),
    ([np.zeros((4, 0, 3), np.uint8)], {}, "uint8"),
    ([np.zeros((4, 4, 4), np.uint8)], {}, "uint8"),
    ([np.zeros((4, 4, 3), np.uint8)], {"beam_size": 0}, "beam_size"),
  ],
)
def test_what_is_no_picture_is_refused(
  readers: dict[str, reading.Reader], images: Any, options: Any, message: str
) -> None:
  with pytest.raises(ValueError, match=message):
    readers["patches"].read(images, **options)


def test_a_model_that_reads_does_not_draw_and_the_reverse(
  runs: dict[str, str], tmp_path: pathlib.Path
) -> None:
  with pytest.raises(ValueError, match="reads, but does not draw"):
    inference.Generator.from_model_dir(runs["patches"])
  inference.Generator.from_model_dir(runs["images"])
  write_run("experiments/tiny.gin", tmp_path)
  with pytest.raises(ValueError, match=r"models/joint\.gin"):
    reading.Reader.from_model_dir(str(tmp_path))


# --- The command -------------------------------------------------------------


def save(picture: np.ndarray, path: pathlib.Path) -> str:
  Image.fromarray(picture).save(path)
  return str(path)


def test_ocr_prints_what_is_written(
  runs: dict[str, str],
  readers: dict[str, reading.Reader],
  tmp_path: pathlib.Path,
  capsys: pytest.CaptureFixture[str],
) -> None:
  found = readers["patches"].read(pictures(2))
  paths = [
    save(picture, tmp_path / f"{i}.png")
    for i, picture in enumerate(pictures(2))
  ]
  model_dir = ["--model_dir", runs["patches"]]
  assert cli.main(["ocr", paths[0], *model_dir]) == 0
  shown = [
    re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\ufffd", x.text) for x in found
  ]
  assert capsys.readouterr().out == shown[0] + "\n"
  assert cli.main(["ocr", *paths, *model_dir]) == 0
  assert capsys.readouterr().out == "".join(
    f"{path}: {text}\n" for path, text in zip(paths, shown, strict=True)
  )
  assert cli.main(["ocr", *paths, *model_dir, "--json"]) == 0
  lines = capsys.readouterr().out.rstrip("\n").split("\n")
  for line, path, one in zip(lines, paths, found, strict=True):
    record = json.loads(line)
    assert record["image"] == path and record["text"] == one.text
    assert [letter for letter, _ in record["characters"]] == [
      letter for letter, _ in one.characters
    ]


@pytest.mark.parametrize(
  ("image", "flags", "message"),
  [
    ("missing.png", [], "missing.png"),
    ("text.png", [], "not an image"),
    ("good.png", ["--beam_size", "0"], "beam_size"),
    ("good.png", ["--batch_size", "0"], "batch_size"),
    ("good.png", ["--gin.X=1"], "--gin."),
    ("good.png", ["--step", "9"], "9"),
  ],
)
def test_a_wrong_use_of_ocr_is_one_line(
  runs: dict[str, str],
  tmp_path: pathlib.Path,
  capsys: pytest.CaptureFixture[str],
  image: str,
  flags: list[str],
  message: str,
) -> None:
  save(pictures(1)[0], tmp_path / "good.png")
  (tmp_path / "text.png").write_text("no picture")
  path = str(tmp_path / image)
  code = cli.main(["ocr", path, "--model_dir", runs["patches"], *flags])
  error = capsys.readouterr().err
  assert code == 2
  assert message in error and "Traceback" not in error


def test_what_weights_write_gives_no_orders_to_a_terminal(
  tmp_path: pathlib.Path,
  capsys: pytest.CaptureFixture[str],
  monkeypatch: pytest.MonkeyPatch,
) -> None:
  written = "a\x1b[2J\x9b1m\u200cb"
  one = reading.Reading(text=written, confidence=0.5, characters=())
  reader = types.SimpleNamespace(read=lambda pictures, **_: [one])
  monkeypatch.setattr(reading.Reader, "from_model_dir", lambda *_, **__: reader)
  path = os.fsdecode(bytes(tmp_path) + b"/caf\xe9.png")
  save(pictures(1)[0], pathlib.Path(path))
  assert cli.main(["ocr", path, "--model_dir", "run"]) == 0
  assert capsys.readouterr().out == "a\ufffd[2J\ufffd1m\u200cb\n"
  assert cli.main(["ocr", path, "--model_dir", "run", "--json"]) == 0
  line = capsys.readouterr().out
  assert "\x9b" not in line and "\x1b" not in line
  record = json.loads(line)
  assert record["text"] == written
  assert record["image"].endswith("caf\\xe9.png")


# --- A data set --------------------------------------------------------------


class Pictures:
  """tiny's batches, one example at a time, as a finite split."""

  def __init__(self, batch_size: int, count: int = 5):
    assert batch_size == 1
    self._rows = iter(range(count))

  def __iter__(self) -> "Pictures":
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    i = next(self._rows)
    tokens = text.encode_batch([["αβ", "abc", "ab", "ж", "x"][i]], tiny.LENGTH)
    return tiny.make_batch(1, i) | {"text_tokens": tokens}


def test_a_data_set_is_read_and_scored(
  tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  model = tiny.make_ocr_model()
  params = tiny.make_variables(model)["params"]
  monkeypatch.setattr(
    reading.variables, "restore", lambda *_: (params, None, 7)
  )
  result = reading.read_data(
    model=model,
    read_data=Pictures,
    checkpoint_path="run",
    output_dir=str(tmp_path / "read"),
    batch_size=2,
    partitioning=PARTITIONING,
    compare_with_tesseract=False,
  )
  lines = (tmp_path / "read" / "readings.jsonl").read_text().splitlines()
  records = [json.loads(line) for line in lines]
  targets = ["αβ", "abc", "ab", "ж", "x"]
  assert [record["text"] for record in records] == targets
  read = [record["reading"] for record in records]
  scores = json.loads((tmp_path / "read" / "scores.json").read_text())
  assert scores == result
  assert scores["step"] == 7 and scores["tesseract"] == {}
  assert set(scores["model"]) == {"Cyrl", "Grek", "Latn", "all"}
  assert scores["model"]["all"] == {
    "count": 5,
    "character_error_rate": spelling.character_error_rate(targets, read),
    "exact_match": spelling.exact_match(targets, read),
  }
  with pytest.raises(ValueError, match="the model reads 'patches'"):
    reading.read_data(
      model=tiny.make_ocr_model(
        features=ocr.PatchFeatures(
          encoder=tiny.make_patch_encoder(), patch_size=4, max_patches=10
        )
      ),
      read_data=Pictures,
      checkpoint_path="run",
      output_dir=str(tmp_path / "other"),
      batch_size=2,
      partitioning=PARTITIONING,
    )
  with pytest.raises(ValueError, match="nothing was read"):
    reading.read_data(
      model=model,
      read_data=lambda batch_size: Pictures(batch_size, 0),
      checkpoint_path="run",
      output_dir=str(tmp_path),
      batch_size=2,
      partitioning=PARTITIONING,
    )


def test_layouts_and_answers_have_scores_of_their_own(
  tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  pytest.importorskip("pycocotools")
  layouts = ["t000000999500 x000500999999", "-"]
  heard = ["t000000999500 x0005", "-"]

  class Pages(Pictures):
    def __next__(self) -> dict[str, np.ndarray]:
      i = next(self._rows)
      tokens = text.encode_batch([layouts[i % 2]], 64)
      names = np.array([[0, i]], np.uint32)
      return tiny.make_batch(1, i) | {
        "text_tokens": tokens,
        "example_id": names,
      }

  def read_batch(self: Any, batch: Any, **_: Any) -> list[reading.Reading]:
    return [
      reading.Reading(text=heard[i % 2], confidence=1.0, characters=())
      for i in range(len(batch["text_tokens"]))
    ]

  monkeypatch.setattr(reading.Reader, "read_batch", read_batch)
  monkeypatch.setattr(reading.variables, "restore", lambda *_: ({}, None, 7))
  monkeypatch.setattr(reading.evaluation, "check_batch", lambda *_: None)
  result = reading.read_data(
    model=tiny.make_ocr_model(),
    read_data=Pages,
    checkpoint_path="run",
    output_dir=str(tmp_path),
    batch_size=2,
    num_examples=2,
    partitioning=PARTITIONING,
    compare_with_tesseract=False,
    answers={"0000000000000001": ("_", "-"), "0000000000000009": ("?",)},
  )
  assert json.loads((tmp_path / "scores.json").read_text()) == result
  assert result["layout"]["malformed"] == 0.5
  assert result["layout"]["boxes"]["map"] == pytest.approx(0.5)
  by_class = result["layout"]["masks"]["by_class"]
  assert by_class == {"text": 0.0, "title": 1.0}
  assert result["answers"] == {"anls": 1.0, "count": 1}
  lines = (tmp_path / "readings.jsonl").read_text().splitlines()
  assert json.loads(lines[1])["example_id"] == "0000000000000001"


def test_scores_are_by_script() -> None:
  scores = reading.scores(["ab", "жз", "cd", ""], ["ab", "жк", "cx", "?"])
  assert scores["Latn"] == {
    "count": 2,
    "character_error_rate": 0.25,
    "exact_match": 0.5,
  }
  assert scores["Cyrl"]["character_error_rate"] == 0.5
  assert scores["all"]["count"] == 3
  assert list(scores)[-1] == "all"
  assert reading.scores([""], ["x"]) == {}


def test_tesseract_reads_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
  class Echo:
    def __init__(self, script: str):
      self.script = script

    def read(self, images: np.ndarray) -> list[str]:
      return [f"{self.script}{len(images)}"]

  monkeypatch.setattr(spelling, "tesseract_models", lambda: {"eng"})
  monkeypatch.setattr(spelling, "TesseractReader", Echo)
  found = reading.read_by_tesseract(["ab", "ж"], pictures(2))
  assert found == ["Latn1", None]
