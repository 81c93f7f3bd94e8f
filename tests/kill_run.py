"""A run that kill_test.py starts, kills and starts again.

  python kill_run.py MODEL_DIR JOURNAL TOTAL_STEPS [KILL_IN_STEP]

Every batch that is taken for a step is a line of JOURNAL, "pid step digest
ids", on disk before the step begins. In KILL_IN_STEP the process kills itself:
the step has been started, its old state given away, and nobody has waited for
the new one. It does so once the save before it is committed.
"""

import hashlib
import os
import pathlib
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import conftest  # noqa: F401  sets JAX up as for the tests
import numpy as np
import tiny

from byt5_diffusion import checkpoints, optimizers, partitioning, trainer

BATCH = 8
PERIOD = 6
# A step lasts long enough to be aimed at.
SECONDS_PER_STEP = 0.05


class Journalled(tiny.Batches):
  """tiny.Batches that writes down what is taken after set_state."""

  journal: pathlib.Path
  _recording = False

  def set_state(self, saved: bytes) -> None:
    super().set_state(saved)
    self._recording = True

  def __next__(self) -> dict[str, np.ndarray]:
    step = self._next + 1
    batch = super().__next__()
    if self._recording:
      digest = hashlib.sha256(b"".join(x.tobytes() for x in batch.values()))
      ids = ",".join(f"{a}:{b}" for a, b in batch["example_id"])
      with self.journal.open("a") as file:
        file.write(f"{os.getpid()} {step} {digest.hexdigest()[:16]} {ids}\n")
        file.flush()
        os.fsync(file.fileno())
      time.sleep(SECONDS_PER_STEP)
    return batch


def main() -> None:
  model_dir = pathlib.Path(sys.argv[1])
  Journalled.journal = pathlib.Path(sys.argv[2])
  total_steps = int(sys.argv[3])
  kill_in_step = int(sys.argv[4]) if len(sys.argv) > 4 else 0
  committed = (kill_in_step - 1) // PERIOD * PERIOD

  compile_train_step = trainer.compile_train_step

  def compile_deadly_step(*arguments: Any) -> Callable[..., Any]:
    step_fn = compile_train_step(*arguments)

    def step(state: Any, *rest: Any) -> Any:
      deadly = int(state.step) + 1 == kill_in_step
      while deadly and committed not in (
        0,
        *checkpoints.committed_steps(model_dir),
      ):
        time.sleep(0.01)
      output = step_fn(state, *rest)
      if deadly:
        os.kill(os.getpid(), signal.SIGKILL)
      return output

    return step

  trainer.compile_train_step = compile_deadly_step
  trainer.train(
    model=tiny.make_model(BATCH),
    train_data=Journalled,
    learning_rate_fn=optimizers.constant(1e-2),
    partitioning=partitioning.Partitioning(),
    model_dir=str(model_dir),
    total_steps=total_steps,
    batch_size=BATCH,
    checkpoint_period=PERIOD,
    checkpoints_to_keep=2,
    log_period=5,
  )


if __name__ == "__main__":
  main()
