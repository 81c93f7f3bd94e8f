"""Runs that are killed anywhere end with the bits of one that was not."""

import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import kill_run
import pytest
import tiny

from byt5_diffusion import checkpoints, partitioning, variables

pytestmark = pytest.mark.slow

PERIOD = kill_run.PERIOD
TOTAL_STEPS = 4 * PERIOD
ROOT = pathlib.Path(__file__).resolve().parent.parent
PATIENCE = 300  # seconds, for a start on a loaded machine


class Taken(NamedTuple):
  """A line of the journal: a batch taken for a step."""

  pid: int
  step: int
  digest: str
  ids: str


class Run:
  """A folder that runs start in, one after the other."""

  def __init__(self, folder: pathlib.Path, cache: pathlib.Path):
    folder.mkdir()
    self.model_dir = folder / "run"
    self.journal_path = folder / "journal"
    self._log_path = folder / "log"
    self._environment = os.environ | {
      "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
      "JAX_COMPILATION_CACHE_DIR": str(cache),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
      "JAX_LOG_COMPILES": "1",
    }

  def start(
    self, *arguments: Any, **environment: str
  ) -> subprocess.Popen[bytes]:
    with self._log_path.open("wb") as log:
      return subprocess.Popen(
        [
          *(sys.executable, str(ROOT / "tests" / "kill_run.py")),
          *(str(self.model_dir), str(self.journal_path), str(TOTAL_STEPS)),
          *map(str, arguments),
        ],
        env=self._environment | environment,
        stdout=log,
        stderr=log,
      )

  def log(self) -> str:
    """What the last start has said."""
    return self._log_path.read_text("utf-8", errors="replace")

  def journal(self) -> list[Taken]:
    if not self.journal_path.exists():
      return []
    # A line without its end was cut off with its step.
    lines = self.journal_path.read_text("utf-8").split("\n")[:-1]
    fields = [line.split() for line in lines]
    return [Taken(int(a), int(b), c, d) for a, b, c, d in fields]

  def committed(self) -> int:
    return max(checkpoints.committed_steps(self.model_dir), default=0)

  def unfinished(self) -> list[pathlib.Path]:
    """What saves in progress, or cut off, look like."""
    found = self.model_dir.glob("checkpoint_*.orbax-checkpoint-tmp*")
    return [path for path in found if ".deleted" not in path.name]

  def finish(self, *arguments: Any) -> None:
    process = self.start(*arguments)
    assert process.wait(PATIENCE) == 0, self.log()

  def until(
    self, process: subprocess.Popen[bytes], condition: Callable[[], bool]
  ) -> bool:
    """Waits; False if the process has ended before."""
    end = time.monotonic() + PATIENCE
    while not condition():
      if process.poll() is not None:
        return condition()
      assert time.monotonic() < end, self.log()
      time.sleep(0.001)
    return True


def restored(run: Run) -> tuple[Any, bytes, dict[str, Any]]:
  """The last checkpoint: state, data position and extra."""
  model = tiny.make_model(kill_run.BATCH)
  shapes = variables.global_shapes(
    tiny.make_batch(kill_run.BATCH), kill_run.BATCH
  )
  _, state_shapes = variables.make_init(
    model, shapes, partitioning.Partitioning(), 0.999
  )
  checkpointer = checkpoints.Checkpointer(run.model_dir)
  found = checkpointer.restore(None, state_shapes)
  checkpointer.close()
  return found


def assert_same_end(run: Run, whole: Run) -> None:
  state, data_state, extra = restored(run)
  expected, expected_data_state, expected_extra = restored(whole)
  assert int(state.step) == TOTAL_STEPS
  for name in ("params", "opt_state", "ema_params", "skipped_steps"):
    assert tiny.leaves_equal(getattr(state, name), getattr(expected, name)), (
      name
    )
  assert (data_state, extra) == (expected_data_state, expected_extra)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """Of compiled programs, so that only the first start compiles."""
  return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def whole(
  tmp_path_factory: pytest.TempPathFactory, cache: pathlib.Path
) -> Iterator[Run]:
  """A run that nothing happens to."""
  run = Run(tmp_path_factory.mktemp("whole") / "run", cache)
  run.finish()
  assert [line.step for line in run.journal()] == [*range(1, TOTAL_STEPS + 1)]
  state, _, _ = restored(run)
  assert not jnp.array_equal(
    jax.tree.leaves(state.params)[0], jax.tree.leaves(state.ema_params)[0]
  )
  return run


COMPILING, IN_SAVE = "while compiling", "in a save"


class Kill(NamedTuple):
  """What was there when a process had died."""

  where: str
  committed: int
  last_step: int
  taken: int


def note(run: Run, where: str) -> Kill:
  lines = run.journal()
  last = lines[-1].step if lines else 0
  return Kill(where, run.committed(), last, len(lines))


def kill_in_step(run: Run, step: int) -> Kill:
  process = run.start(step)
  assert process.wait(PATIENCE) == -signal.SIGKILL, run.log()
  assert run.journal()[-1].step == step
  return note(run, f"in step {step}")


def kill_compiling(run: Run) -> Kill:
  before = run.journal()
  process = run.start(JAX_ENABLE_COMPILATION_CACHE="false")
  assert run.until(
    process,
    lambda: "MLIR module conversion jit(train_step)" in run.log(),
  ), run.log()
  process.kill()
  process.wait(PATIENCE)
  assert "XLA compilation of jit(train_step)" not in run.log()
  assert run.journal() == before
  return note(run, COMPILING)


def kill_in_save(run: Run) -> list[Kill]:
  """Until one kill has struck inside of a save."""
  kills = []
  while True:
    process = run.start()
    assert run.until(process, lambda: bool(run.unfinished())), run.log()
    process.kill()
    process.wait(PATIENCE)
    if run.unfinished():
      return [*kills, note(run, IN_SAVE)]
    # It had just been renamed: a kill like any other.
    kills.append(note(run, "after a save"))
    assert run.committed() < TOTAL_STEPS, "no kill struck inside of a save"


def test_a_run_that_is_killed_again_and_again_ends_bit_identical(
  tmp_path: pathlib.Path, cache: pathlib.Path, whole: Run
) -> None:
  run = Run(tmp_path / "killed", cache)
  kills = [
    kill_in_step(run, 3),
    *kill_in_save(run),
    kill_compiling(run),
  ]
  later = min(run.committed() + PERIOD + 2, TOTAL_STEPS)
  kills.append(kill_in_step(run, later))
  assert kills[-1].committed >= PERIOD
  kills.append(kill_compiling(run))
  run.finish()
  assert_same_end(run, whole)

  journal = run.journal()
  # Every start goes on right after the last step that was committed when the
  # process before it died.
  for kill in kills:
    following = journal[kill.taken]
    assert following.step == kill.committed + 1, kill
    assert following.pid != journal[kill.taken - 1].pid
    if kill.where != COMPILING:  # which comes before any step
      # A save cut off costs the steps before it, too.
      periods = 2 if kill.where == IN_SAVE else 1
      assert kill.last_step - kill.committed <= periods * PERIOD, kill
  starts = {line.pid: line.step for line in reversed(journal)}
  assert len(starts) == 1 + sum(kill.where != COMPILING for kill in kills)
  assert len(journal) <= TOTAL_STEPS + len(kills) * PERIOD

  # The same examples at the same step, whoever takes that step.
  expected = {line.step: (line.digest, line.ids) for line in whole.journal()}
  assert len(set(expected.values())) == TOTAL_STEPS
  for line in journal:
    assert (line.digest, line.ids) == expected[line.step]
  assert {line.step for line in journal} == set(expected)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_and_loses_nothing(
  tmp_path: pathlib.Path, cache: pathlib.Path, whole: Run, number: int
) -> None:
  run = Run(tmp_path / "stopped", cache)
  process = run.start()
  assert run.until(process, lambda: len(run.journal()) >= PERIOD + 2)
  process.send_signal(number)
  assert process.wait(PATIENCE) == 128 + number, run.log()
  last = run.journal()[-1].step
  assert run.committed() == last < TOTAL_STEPS
  assert f"step {last} is saved" in run.log()
  run.finish()
  steps = [line.step for line in run.journal()]
  assert steps == [*range(1, TOTAL_STEPS + 1)]
  assert_same_end(run, whole)
