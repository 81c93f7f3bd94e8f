"""A stage that enlarges, trained under T5X by the recipe of our own trainer."""

import json
import pathlib
from typing import Any

import numpy as np
import pytest
import t5x_command

from byt5_diffusion import checkpoints, stored_trees
from byt5_diffusion.data.writing import fonts

pytestmark = pytest.mark.slow

RECIPE = "--gin_file=experiments/tiny_super_resolution.gin"
STEPS = 6


def flags(**bindings: Any) -> list[str]:
  """t5x_command.SMALL for a model that draws nothing of text alone."""
  small = {k: x for k, x in t5x_command.SMALL.items() if "TextToImage" not in k}
  small |= {"TRAIN_STEPS": STEPS, "CHECKPOINT_PERIOD": STEPS}
  small |= {"EVAL_PERIOD": STEPS, **bindings}
  return [f"--gin.{name}={value!r}" for name, value in small.items()]


def test_it_trains_under_t5x_as_under_our_own_trainer(
  tmp_path: pathlib.Path,
) -> None:
  """The same losses, crops and noise of small pictures included."""
  if not fonts.available_scripts(["Latn"]):
    pytest.skip("no font for Latin here: run `python tools/fetch_fonts.py`")
  theirs, ours = tmp_path / "t5x", tmp_path / "ours"
  crops = {"super_resolution.SuperResolutionModel.crop_size": (16, 32)}
  t5x_command.run(
    *(str(t5x_command.TOOL), "--run_mode=train", RECIPE),
    *flags(MODEL_DIR=str(theirs), **crops),
    "--gin.__main__.train.stats_period=1",
    work=tmp_path,
  )
  t5x_command.run(
    *("-m", "byt5_diffusion.main", "--run_mode=train", RECIPE),
    *flags(MODEL_DIR=str(ours), SAMPLE_PERIOD=0, **crops),
    "--gin.trainer.train.log_period=1",
    work=tmp_path,
  )
  lines = (ours / "metrics.jsonl").read_text("utf-8").splitlines()
  found = [json.loads(line) for line in lines]
  losses = {x["step"]: x["train/loss"] for x in found if "train/loss" in x}
  expected = t5x_command.losses(theirs)
  assert list(losses) == list(expected) == list(range(1, STEPS + 1))
  np.testing.assert_allclose(
    list(losses.values()), list(expected.values()), rtol=1e-5
  )
  params = stored_trees.flatten_names(
    checkpoints.restore_params(ours, ema=False).params
  )
  target = t5x_command.saved(theirs, STEPS)
  assert params.keys() == target.keys()
  for name, value in params.items():
    np.testing.assert_allclose(value, target[name], rtol=1e-4, atol=1e-5)
