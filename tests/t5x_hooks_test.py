"""What T5X calls of ours, called as it does, without it; tests/t5x runs T5X."""

import json
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from byt5_diffusion import t5x_hooks
from byt5_diffusion.data import task_metrics, text

ROOT = pathlib.Path(__file__).resolve().parent.parent
TOOL = ROOT / "tools" / "t5x_main.py"
CAPTIONS = ("cab", "नमस्ते", "")


class Examples:
  """As much of a tf.data.Dataset as T5X's write_fn is given."""

  def __init__(self, *keys: str):
    self._keys = keys

  def as_numpy_iterator(self) -> Iterator[dict[str, np.ndarray]]:
    for i, caption in enumerate(CAPTIONS):
      tokens = text.encode_batch([caption], 32)[0]  # T5X pads the examples.
      features = {
        "image": np.full((4, 6, 3), 10 * i, np.uint8),
        "patches": np.zeros((2, 14), np.float32),
        "text_tokens": tokens,
        "example_id": np.array([i, 7], np.uint32),
      }
      yield {key: features[key] for key in self._keys}


DRAWING = Examples("image", "text_tokens", "example_id")
READING = Examples("patches", "text_tokens", "example_id")


def write(
  folder: pathlib.Path, outputs: Any, mode: str, examples: Examples, aux: Any
) -> list[dict[str, Any]]:
  """Calls write_predictions with T5X's paths; the lines written."""
  path = folder / "tmp-task" / f"task-{mode}.jsonl-00000-of-00001-chunk00003"
  path.parent.mkdir()
  t5x_hooks.write_predictions(str(path), (outputs, aux), examples, mode, None)
  lines = path.read_text("utf-8").splitlines()
  return [json.loads(line) for line in lines]


def test_pictures_are_files_beside_the_lines(tmp_path: pathlib.Path) -> None:
  # T5X hands pictures over as nested lists of Python's floats.
  outputs = [np.full((4, 6, 3), x).tolist() for x in (-1.0, 0.0, 2.0)]
  aux = {"loss": [0.5, 0.25, np.float32(1)]}
  lines = write(tmp_path, outputs, "predict_with_aux", DRAWING, aux)
  assert [x["text"] for x in lines] == list(CAPTIONS)
  assert [x["example_id"] for x in lines] == [[0, 7], [1, 7], [2, 7]]
  assert [x["aux"] for x in lines] == [{"loss": x} for x in (0.5, 0.25, 1.0)]
  for line, drawn, target in zip(
    lines, (0, 128, 255), (0, 10, 20), strict=True
  ):
    assert line["image"].startswith("task-predict_with_aux.jsonl-00000-of-")
    image = np.asarray(Image.open(tmp_path / line["image"]))
    assert image.shape == (4, 6, 3) and (image == drawn).all()
    assert (np.asarray(Image.open(tmp_path / line["target"])) == target).all()
  pngs = {x.name for x in tmp_path.rglob("*.png")}
  assert len(pngs) == 6 and all(x.startswith("00003-") for x in pngs)


def test_scores_are_numbers(tmp_path: pathlib.Path) -> None:
  lines = write(tmp_path, [-0.5, np.float32(-2), -3], "score", DRAWING, {})
  assert [x["score"] for x in lines] == [-0.5, -2.0, -3.0]
  assert not list(tmp_path.rglob("*.png"))
  assert all(set(x) == {"text", "example_id", "score"} for x in lines)


def test_what_was_read_is_text(tmp_path: pathlib.Path) -> None:
  outputs = text.encode_batch(["cob", "नमस्ते", "x"], 32).tolist()
  lines = write(tmp_path, outputs, "predict", READING, {})
  assert [x["prediction"] for x in lines] == ["cob", "नमस्ते", "x"]
  assert [x["text"] for x in lines] == list(CAPTIONS)
  assert not list(tmp_path.rglob("*.png"))


def test_a_path_that_is_no_chunk_is_refused(tmp_path: pathlib.Path) -> None:
  with pytest.raises(ValueError, match="-chunk"):
    t5x_hooks.write_predictions(str(tmp_path / "x"), ([], {}), DRAWING, "score")


def test_only_one_part_of_the_state_is_filled() -> None:
  """T5X takes the first rule that matches the whole of a parameter's name."""
  rules = t5x_hooks.only("flax_mutables/frozen/text_encoder")

  def source(name: str) -> str | None:
    for pattern, replacement in rules:
      if match := re.fullmatch(pattern, name):
        return replacement and match.expand(replacement)
    raise AssertionError(name)

  encoder = "flax_mutables/frozen/text_encoder"
  assert source(f"{encoder}/encoder/norm/scale") == "target/encoder/norm/scale"
  for other in (
    "state/step",
    "target/unet/conv_in/kernel",
    "state/param_states/0/mu/text_encoder/encoder/norm/scale",
    f"{encoder}_of_another/kernel",
    "target/text_encoder/encoder/norm/scale",
  ):
    assert source(other) is None
  [(_, replacement), _] = t5x_hooks.only("target/a", source="target/b")
  assert replacement == r"target/b/\1"


def test_a_task_s_loss_is_minus_its_mean_score() -> None:
  metrics = task_metrics.mean_loss(["a", "b"], np.float32([-1, -2]))
  assert metrics == {"loss": 1.5}


def test_every_task_has_it() -> None:
  """T5X's eval refuses a task without a metric."""
  seqio = pytest.importorskip("seqio")
  pytest.importorskip("byt5_diffusion.tasks.typography")
  names = [x for x in seqio.TaskRegistry.names() if x.startswith("typography")]
  assert len(names) >= 2
  for name in names:
    assert seqio.TaskRegistry.get(name).metric_fns == [task_metrics.mean_loss]


def test_a_folder_is_a_task_by_its_name(tmp_path: pathlib.Path) -> None:
  seqio = pytest.importorskip("seqio")
  module = "byt5_diffusion.tasks.image_caption_folder"
  pytest.importorskip(module)
  for i in range(3):
    Image.new("RGB", (8, 8)).save(tmp_path / f"{i}.png")
    (tmp_path / f"{i}.txt").write_text("a")
  name = f"image_caption_folder:{tmp_path}@8x12"
  registered = t5x_hooks.registered_task(name, module)
  assert registered in seqio.TaskRegistry.names()
  assert t5x_hooks.registered_task(name, module) == registered
  assert t5x_hooks.registered_task("typography_words") == "typography_words"


def test_without_t5x_one_line_says_what_to_install(
  tmp_path: pathlib.Path,
) -> None:
  path = tmp_path / "t5x"
  path.mkdir()
  (path / "__init__.py").write_text("raise ImportError('no such thing')")
  done = subprocess.run(
    [sys.executable, str(TOOL), "--run_mode=train"],
    env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
    cwd=tmp_path,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2
  [line] = done.stderr.splitlines()
  for word in ("no such thing", "google-research/t5x", "airio", "docs/t5x.md"):
    assert word in line
