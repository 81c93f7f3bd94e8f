"""A tiny cascade by the commands that users type: two runs, one picture."""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image

from byt5_diffusion.data.writing import fonts

pytestmark = pytest.mark.slow

SMALL = {
  "BATCH_SIZE": 8,
  "TRAIN_STEPS": 2,
  "WARMUP_STEPS": 1,
  "EVAL_STEPS": 1,
  "BYT5_EMBED_DIM": 16,
  "BYT5_HEAD_DIM": 8,
  "BYT5_MLP_DIM": 32,
  "UNET_CHANNELS": (8,),
  "UNET_TRANSFORMER_DEPTH": (0,),
  "UNET_MID_TRANSFORMER_DEPTH": 0,
  "UNET_NUM_HEADS": (2,),
  "UNET_NORM_GROUPS": 4,
}
BASE = "experiments/tiny.gin"
SIZES = {"low": (40, 16), "image": (80, 32), "target": (80, 32)}
LARGER = "experiments/tiny_super_resolution.gin"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """A working directory, which also keeps compiled programs."""
  if not fonts.available_scripts(["Latn"]):
    pytest.skip("no font for Latin here: run `python tools/fetch_fonts.py`")
  return tmp_path_factory.mktemp("work")


def run(work: pathlib.Path, *command: str, **bindings: Any) -> str:
  """`byt5-diffusion ...` with bindings as flags; what it printed."""
  done = subprocess.run(
    [
      *(sys.executable, "-m", "byt5_diffusion.cli", *command),
      *(f"--gin.{name}={value!r}" for name, value in bindings.items()),
    ],
    cwd=work,
    env=os.environ
    | {
      "JAX_COMPILATION_CACHE_DIR": str(work / "xla"),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    },
    capture_output=True,
    text=True,
  )
  assert not done.returncode, done.stdout + done.stderr
  return done.stdout


@pytest.fixture(scope="module")
def runs(work: pathlib.Path) -> tuple[str, str]:
  """MODEL_DIRs of what draws 16 x 40 pixels and of what enlarges them."""
  train = ("train", BASE, "--model_dir", "base")
  run(work, *train, **SMALL, SAMPLE_PERIOD=0)
  run(work, "train", LARGER, "--model_dir", "larger", **SMALL)
  return "base", "larger"


def test_a_run_that_enlarges_shows_what_it_does(
  work: pathlib.Path, runs: tuple[str, str]
) -> None:
  grid = Image.open(work / "larger" / "samples" / "step_00000002.png")
  assert grid.size == (3 * 80, 5 * 32)
  said = json.loads(run(work, "info", "larger", "--json"))
  assert said["kind"] == "run" and said["samples"]["count"] == 1
  run(work, "eval", LARGER, "--model_dir", "larger", **SMALL)
  scores = json.loads((work / "larger" / "eval" / "metrics.json").read_text())
  assert scores["step"] == 2 and np.isfinite(scores["loss"])


def test_one_command_draws_through_both(
  work: pathlib.Path, runs: tuple[str, str]
) -> None:
  base, larger = runs
  places = ("--model_dir", base, "--upscale_dir", larger)
  steps = ("--num_steps", "2", "--upscale_num_steps", "2")
  run(work, "generate", "cab", "где", *places, *steps, "--out", "x.png")
  run(work, "generate", "где", *places, *steps, "--stages", "--out", "y.png")
  pixels = [
    np.asarray(Image.open(work / name)).astype(int)
    for name in ("x-1.png", "y.png")
  ]
  assert pixels[0].shape == (32, 80, 3)
  assert np.abs(pixels[0] - pixels[1]).max() <= 1
  # From the small picture on, without what drew it.
  assert Image.open(work / "y.16x40.png").size == (40, 16)
  small = ("--image", "y.16x40.png", *places[2:], *steps[2:])
  run(work, "generate", "где", *small, "--out", "z.png")
  again = np.asarray(Image.open(work / "z.png")).astype(int)
  assert np.abs(again - pixels[1]).max() <= 1


def test_a_split_is_made_small_and_enlarged_again(
  work: pathlib.Path, runs: tuple[str, str]
) -> None:
  more = {
    "MODEL_DIR": "larger",
    "INFER_OUTPUT_DIR": "drawn",
    "inference.infer.num_examples": 3,
    "SuperResolutionModel.num_sampling_steps": 2,
  }
  done = subprocess.run(
    [
      *(sys.executable, "-m", "byt5_diffusion.main", "--run_mode=infer"),
      f"--gin_file={LARGER}",
      *(f"--gin.{name}={value!r}" for name, value in (SMALL | more).items()),
    ],
    cwd=work,
    capture_output=True,
    text=True,
  )
  assert not done.returncode, done.stderr
  lines = (work / "drawn" / "predictions.jsonl").read_text("utf-8").splitlines()
  records = [json.loads(line) for line in lines]
  assert len(records) == 3
  for record in records:
    sizes = {k: Image.open(work / "drawn" / record[k]).size for k in SIZES}
    assert sizes == SIZES
    assert 0 < record["psnr"] < 99 and 0 < record["psnr_bilinear"] < 99


def test_the_recipe_is_validated_with_its_drawing(work: pathlib.Path) -> None:
  command = ("validate", LARGER, "--examples", "8", "--json")
  facts = json.loads(run(work, *command, **SMALL))
  assert not facts["problems"]
  assert facts["model"]["upscales"] and not facts["model"]["draws"]
  assert facts["operations"]["draw"]["total"] > 0
  assert facts["trial"]["draw"] == "finite"
