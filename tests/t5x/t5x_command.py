"""Commands as users type them, and what they leave behind."""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np

from byt5_diffusion import t5x_checkpoints

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "t5x_main.py"
IMPORT = """
import jax
from jax.experimental import pjit
pjit.PartitionSpec = jax.sharding.PartitionSpec
import t5x.train
"""
# experiments/tiny.gin at a size that compiles fast; the text encoder is that of
# the shared fixture.
SMALL = {
  "BATCH_SIZE": 8,
  "TRAIN_STEPS": 20,
  "WARMUP_STEPS": 1,
  "CHECKPOINT_PERIOD": 10,
  "EVAL_PERIOD": 10,
  "EVAL_STEPS": 1,
  "BYT5_EMBED_DIM": 16,
  "BYT5_NUM_HEADS": 2,
  "BYT5_HEAD_DIM": 8,
  "BYT5_MLP_DIM": 32,
  "BYT5_NUM_ENCODER_LAYERS": 2,
  "UNET_CHANNELS": (8,),
  "UNET_TRANSFORMER_DEPTH": (1,),
  "UNET_MID_TRANSFORMER_DEPTH": 0,
  "UNET_NUM_HEADS": (2,),
  "UNET_NORM_GROUPS": 4,
  "TextToImageModel.num_sampling_steps": 2,
}


def flags(bindings: dict[str, Any]) -> list[str]:
  """Bindings as flags, on top of SMALL."""
  return [f"--gin.{k}={v!r}" for k, v in (SMALL | bindings).items()]


def environment(work: pathlib.Path | None, devices: int) -> dict[str, str]:
  """The variables of a command; `work` also keeps compiled programs."""
  cache = {} if work is None else {"JAX_COMPILATION_CACHE_DIR": f"{work}/xla"}
  return {
    **cache,
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }


def run(
  *command: str,
  work: pathlib.Path | None = None,
  devices: int = 1,
  code: int | None = 0,
) -> subprocess.CompletedProcess[str]:
  """Python with arguments, from a folder that is not the checkout.

  Args:
    *command: what follows `python`.
    work: working directory.
    devices: CPUs that jax is to see.
    code: of the exit; None: any.
  """
  done = subprocess.run(
    [sys.executable, *command],
    cwd=work,
    env=os.environ | environment(work, devices),
    capture_output=True,
    text=True,
  )
  assert code in (None, done.returncode), done.stderr[-5000:]
  return done


class Server:
  """Runs tools/t5x_main.py as `run` does, in half the time: t5x_server.py."""

  def __init__(self, work: pathlib.Path):
    self._work = work
    self._process = subprocess.Popen(
      [sys.executable, str(pathlib.Path(__file__).with_name("t5x_server.py"))],
      cwd=work,
      env=os.environ | environment(work, 1),
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )

  def run(self, *flags: str, devices: int) -> None:
    """The tool with flags; fails where it fails."""
    log = self._work / "log"
    log.unlink(missing_ok=True)
    request = {
      "argv": [str(TOOL), *flags],
      "environment": environment(self._work, devices),
      "log": str(log),
    }
    stdin, stdout = self._process.stdin, self._process.stdout
    assert stdin is not None and stdout is not None
    stdin.write(json.dumps(request) + "\n")
    stdin.flush()
    code = stdout.readline().strip()
    assert code == "0", log.read_text("utf-8")[-5000:]

  def close(self) -> None:
    assert self._process.stdin is not None
    self._process.stdin.close()
    self._process.wait()


def losses(model_dir: pathlib.Path) -> dict[int, float]:
  """{step: loss} of T5X's training, as its event files have them."""
  from tensorboard.backend.event_processing import event_accumulator
  from tensorboard.util import tensor_util

  events = event_accumulator.EventAccumulator(
    str(model_dir / "train"), size_guidance={"tensors": 0}
  )
  events.Reload()
  return {
    event.step: float(tensor_util.make_ndarray(event.tensor_proto))
    for event in events.Tensors("loss")
  }


def saved(model_dir: pathlib.Path, step: int) -> dict[str, np.ndarray]:
  """{name: array} of a T5X checkpoint, the optimizer's left out."""
  folder = model_dir / f"checkpoint_{step}"
  source = t5x_checkpoints.open_source(folder)
  return source.read(source.shapes)
