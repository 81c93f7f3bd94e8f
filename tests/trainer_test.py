"""The train step and the run around it, on a tiny model."""

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import threading
from typing import Any

import jax
import jax.numpy as jnp
import least
import numpy as np
import pytest
import tiny

from byt5_diffusion import (
  assignment,
  checkpoints,
  optimizers,
  partitioning,
  train_state,
  trainer,
  unet,
  variables,
)
from byt5_diffusion import main as main_lib

BATCH = 8


def run(model_dir: pathlib.Path, **overrides: Any) -> Any:
  """trainer.train with small numbers."""
  arguments: dict[str, Any] = {
    "model": tiny.make_model(BATCH),
    "train_data": tiny.Batches,
    "learning_rate_fn": optimizers.constant(1e-2),
    "partitioning": partitioning.Partitioning(),
    "model_dir": str(model_dir),
    "total_steps": 4,
    "batch_size": BATCH,
    "checkpoint_period": 2,
    "log_period": 2,
  }
  return trainer.train(**(arguments | overrides))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
  """The state after four uninterrupted steps."""
  return run(tmp_path_factory.mktemp("whole"))


def test_gradients_do_not_depend_on_microbatches() -> None:
  model = tiny.make_model(BATCH)
  params = tiny.make_variables(model)["params"]
  batch = {k: jnp.asarray(v) for k, v in tiny.make_batch(BATCH).items()}
  rng = jax.random.key(1)

  def gradients(count: int) -> Any:
    return jax.jit(
      lambda p, b: trainer.sum_gradients(model, p, None, b, rng, count)
    )(params, batch)

  whole, metrics = gradients(1)
  for count in (2, 4):
    parts, merged = gradients(count)
    for a, b in zip(
      jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True
    ):
      scale = max(float(jnp.abs(a).max()), 1e-3)
      np.testing.assert_allclose(a / scale, b / scale, atol=1e-5)
    np.testing.assert_allclose(
      merged["loss"].compute(), metrics["loss"].compute(), rtol=1e-5
    )


def test_a_resumed_run_ends_bit_identical(
  tmp_path: pathlib.Path, whole: Any
) -> None:
  half = run(tmp_path, total_steps=2)
  assert checkpoints.committed_steps(tmp_path) == [2]
  assert not tiny.leaves_equal(half.params, whole.params)
  resumed = run(tmp_path)
  assert int(resumed.step) == 4
  assert tiny.leaves_equal(resumed, whole)
  # A finished run is left alone, and a shorter one is no continuation.
  assert tiny.leaves_equal(run(tmp_path), whole)
  with pytest.raises(ValueError, match="step 4 already, past TRAIN_STEPS = 3"):
    run(tmp_path, total_steps=3)


def test_a_run_that_goes_on_must_be_the_same_run(
  tmp_path: pathlib.Path,
) -> None:
  run(tmp_path, total_steps=2)
  with pytest.raises(ValueError, match="random_seed = 0, this command 1"):
    run(tmp_path, random_seed=1)
  with pytest.raises(checkpoints.CheckpointError, match="ema_params"):
    run(tmp_path, ema_decay=None)


def test_sigterm_saves_and_leaves(tmp_path: pathlib.Path, whole: Any) -> None:
  class Signalling(tiny.Batches):
    def __next__(self) -> dict[str, np.ndarray]:
      if self._next == 3:  # the fourth step's batch
        os.kill(os.getpid(), signal.SIGTERM)
      return super().__next__()

  assert threading.current_thread() is threading.main_thread()
  before = signal.getsignal(signal.SIGTERM)
  with pytest.raises(SystemExit) as leaving:
    run(
      tmp_path,
      train_data=Signalling,
      total_steps=100,
      checkpoint_period=100,
      learning_rate_fn=optimizers.constant(1e-2),
    )
  assert leaving.value.code == 128 + signal.SIGTERM
  assert signal.getsignal(signal.SIGTERM) is before
  assert checkpoints.committed_steps(tmp_path) == [4]
  restored = checkpoints.restore_params(tmp_path, ema=False)
  assert tiny.leaves_equal(
    restored.params, jax.tree.map(np.asarray, whole.params)
  )


@pytest.mark.slow
def test_training_learns_one_batch(tmp_path: pathlib.Path) -> None:
  class Same(tiny.Batches):
    def __next__(self) -> dict[str, np.ndarray]:
      batch = tiny.make_batch(BATCH)
      batch["images"] = np.full_like(batch["images"], 0.5)
      return batch

  model = tiny.make_model(BATCH)
  state = run(
    tmp_path,
    model=model,
    train_data=Same,
    total_steps=60,
    checkpoint_period=60,
    log_period=60,
    ema_decay=None,
  )
  batch = {k: jnp.asarray(v) for k, v in next(Same(BATCH)).items()}
  first = tiny.make_variables(model)["params"]
  loss = jax.jit(lambda p: model.eval_fn(p, batch)[0])
  assert loss(state.params) < 0.6 * loss(first)


def test_validation_and_samples_come_at_their_steps(
  tmp_path: pathlib.Path,
) -> None:
  class Finite(tiny.Batches):
    def __next__(self) -> dict[str, np.ndarray]:
      if self._next == 3:
        raise StopIteration
      return super().__next__()

  run(
    tmp_path,
    validation_data=Finite,
    eval_period=2,
    eval_steps=5,
    sample_period=3,
    sample_texts=("a", "бв"),
  )
  lines = (tmp_path / "metrics.jsonl").read_text("utf-8").splitlines()
  steps = [i for i, line in enumerate(lines) if "validation/loss/t=0.5" in line]
  assert len(steps) == 2
  names = sorted(path.name for path in (tmp_path / "samples").iterdir())
  assert names == ["step_00000003.png", "step_00000004.png"]


def test_a_frozen_encoder_is_neither_trained_nor_saved(
  tmp_path: pathlib.Path,
) -> None:
  model = tiny.make_model(BATCH, freeze_text_encoder=True)
  frozen = tiny.make_variables(model)["frozen"]
  path = tmp_path / "encoder"
  digest = checkpoints.save_tree(path, frozen)
  overrides = {"model": model, "frozen_checkpoint": str(path)}
  state = run(tmp_path / "run", total_steps=2, **overrides)
  assert set(state.params) == set(state.ema_params) == {"unet"}
  restored = checkpoints.restore_params(tmp_path / "run")
  assert set(restored.params) == {"unet"}
  assert restored.extra["frozen"] == {"path": str(path), "sha256": digest}
  assert checkpoints.tree_sha256(checkpoints.load_tree(path)) == digest
  # Its words reach the UNet: other weights give another run.
  other = jax.tree.map(lambda x: x + 1, frozen)
  checkpoints.save_tree(tmp_path / "other", other)
  overrides["frozen_checkpoint"] = str(tmp_path / "other")
  changed = run(tmp_path / "other_run", total_steps=2, **overrides)
  assert not tiny.leaves_equal(changed.params, state.params)
  with pytest.raises(ValueError, match="frozen networks"):
    run(tmp_path / "run", **overrides)


@pytest.mark.parametrize("given", [None, "elsewhere"])
@pytest.mark.parametrize(
  ("record", "says"),
  [
    ([1], "frozen networks is not a dict"),
    ("frozen", "frozen networks is not a dict"),
    ({"path": "frozen"}, "has no sha256"),
    ({"path": ["frozen"], "sha256": "0" * 64}, "has no usable path"),
    ({"path": "../x", "sha256": "0" * 64}, "leaves the run's folder"),
  ],
)
def test_a_broken_record_of_frozen_networks_stops_a_run_that_goes_on(
  tmp_path: pathlib.Path, record: Any, says: str, given: str | None
) -> None:
  least.train(tmp_path, total_steps=1)
  path = tmp_path / "checkpoint_1/extra/metadata"
  content = json.loads(path.read_text())
  content["extra"]["frozen"] = record
  path.write_text(json.dumps(content))
  with pytest.raises(checkpoints.CheckpointError, match=says):
    least.train(
      tmp_path,
      model=least.Model(frozen="text_encoder"),
      total_steps=2,
      frozen_checkpoint=given,
    )


@pytest.mark.parametrize(
  "content", [b"", b'{"initial_che', b"[1]", b"{}", b"\xff\xfe", b"[" * 10**5]
)
def test_a_damaged_list_of_what_was_frozen_is_one_line_with_a_remedy(
  tmp_path: pathlib.Path, content: bytes
) -> None:
  theirs, run = tmp_path / "theirs", tmp_path / "run"
  model = least.Model(frozen="text_encoder")
  least.train(theirs, total_steps=1)
  initial = assignment.InitialCheckpoint(
    path=str(theirs), rules=[("(.*)", r"\1")]
  )
  least.train(run, model=model, total_steps=1, frozen_checkpoint=initial)
  (run / "frozen_checkpoint.json").write_bytes(content)
  with pytest.raises(ValueError, match="is damaged: remove it and") as error:
    least.train(run, model=model, total_steps=2, frozen_checkpoint=initial)
  assert main_lib.is_user_error(error.value) and "\n" not in str(error.value)
  # The remedy is one: the run goes on with the same networks.
  (run / "frozen_checkpoint.json").unlink()
  shutil.rmtree(run / "frozen")
  least.train(run, model=model, total_steps=2, frozen_checkpoint=initial)


def test_what_a_recorded_path_of_frozen_networks_means(
  tmp_path: pathlib.Path,
) -> None:
  def source(path: str, given: str | None = None) -> Any:
    extra = {"frozen": {"path": path, "sha256": "0" * 64}}
    return variables.frozen_source(given, extra, tmp_path)

  assert variables.frozen_source(None, {}, tmp_path) is None
  assert variables.frozen_source("a", {"frozen": None}, tmp_path) == "a"
  assert source("frozen") == source(str(tmp_path / "frozen")) == "frozen"
  assert source("/x/y") == "/x/y" and source("/x/y", "/z") == "/z"
  # Of the run, wherever the command is given.
  assert source("sub/tree") == str(tmp_path / "sub" / "tree")


@pytest.mark.parametrize("log_period", [1, 20])
def test_a_diverging_run_stops(tmp_path: pathlib.Path, log_period: int) -> None:
  class Poisoned(tiny.Batches):
    def __next__(self) -> dict[str, np.ndarray]:
      batch = super().__next__()
      if self._next > 3:
        batch["images"][0, 0, 0, 0] = np.nan
      return batch

  with pytest.raises(trainer.NonFiniteError, match="10 steps in a row"):
    run(
      tmp_path,
      train_data=Poisoned,
      total_steps=100,
      checkpoint_period=100,
      log_period=log_period,
    )


def test_one_bad_step_changes_nothing() -> None:
  model = tiny.make_model(BATCH)
  params = tiny.make_variables(model)["params"]
  state = train_state.create(params, model.optimizer_def.tx)
  batch = {k: jnp.asarray(v) for k, v in tiny.make_batch(BATCH).items()}
  batch["images"] = batch["images"].at[0, 0, 0, 0].set(jnp.nan)
  after, _ = jax.jit(
    lambda s, b: trainer.train_step(
      s,
      None,
      b,
      jax.random.key(0),
      model=model,
      learning_rate_fn=optimizers.constant(0.1),
      ema_decay=0.9,
    )
  )(state, batch)
  assert (int(after.step), int(after.skipped_steps)) == (1, 1)
  for name in ("params", "opt_state", "ema_params"):
    assert tiny.leaves_equal(getattr(after, name), getattr(state, name)), name


def test_validation_and_samples_can_be_switched_off(
  tmp_path: pathlib.Path,
) -> None:
  run(
    tmp_path,
    total_steps=2,
    validation_data=tiny.Batches,
    eval_period=0,
    sample_texts=("a",),
    sample_period=0,
  )
  metrics = (tmp_path / "metrics.jsonl").read_text("utf-8")
  assert '"train/loss"' in metrics and '"validation/loss"' not in metrics
  assert not (tmp_path / "samples").exists()


def test_an_error_costs_no_save_and_data_must_not_end(
  tmp_path: pathlib.Path,
) -> None:
  class Ending(tiny.Batches):
    def __next__(self) -> dict[str, np.ndarray]:
      if self._next == 3:
        raise StopIteration
      return super().__next__()

  with pytest.raises(ValueError, match="ended after 3 steps: num_epochs"):
    run(
      tmp_path,
      train_data=Ending,
      total_steps=100,
      checkpoint_period=3,
      log_period=100,
    )
  assert checkpoints.committed_steps(tmp_path) == [3]


@pytest.mark.parametrize("what", ["validation", "samples"])
def test_a_last_evaluation_that_fails_fails_the_run_but_costs_no_checkpoint(
  tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
  def fail(*_: Any) -> Any:
    raise RuntimeError("the metric is broken")

  make = "make_validation" if what == "validation" else "make_grid"
  monkeypatch.setattr(trainer.evaluation, make, lambda *_: fail)
  arguments = {"eval_period": 3, "sample_period": 3, "checkpoint_period": 100}
  with pytest.raises(RuntimeError, match="the metric is broken"):
    # Not a user's mistake: the program ends with a traceback and code 1.
    main_lib.guarded(least.train, tmp_path, total_steps=3, **arguments)
  assert checkpoints.committed_steps(tmp_path) == [3]
  assert int(least.train(tmp_path, total_steps=3).step) == 3


def test_lines_of_the_log_come_as_often_as_asked_whatever_the_evaluations(
  tmp_path: pathlib.Path,
) -> None:
  least.train(
    tmp_path, total_steps=7, log_period=2, eval_period=5, checkpoint_period=4
  )
  lines = (tmp_path / "metrics.jsonl").read_text("utf-8").splitlines()
  records = [json.loads(line) for line in lines]
  steps = [x["step"] for x in records if "train/loss" in x]
  assert steps == [2, 4, 6, 7]


def test_each_microbatch_has_its_own_dropout() -> None:
  """The same images twice: equal masks would make both halves equal."""
  model = tiny.make_model(4)
  config = dataclasses.replace(model.unet.config, dropout_rate=0.5)
  model = dataclasses.replace(model, unet=unet.UNet(config))
  params = tiny.make_variables(model)["params"]
  batch = {k: jnp.asarray(v) for k, v in tiny.make_batch(4).items()}
  part = {k: v[:2] for k, v in batch.items()}
  loss = jax.jit(lambda b: model.loss_fn(params, b, jax.random.key(0))[0])
  other = part | {"example_id": part["example_id"].at[0].add(0)}
  assert loss(part) == loss(other)
  seen = []
  for first in (0, 7):
    # Only the part's name differs: row 1 keeps its draws, not its masks.
    ids = part["example_id"].at[0].set(jnp.asarray([first, first], jnp.uint32))
    alone = jax.jit(
      lambda i: model._training_losses(
        params, part | {"example_id": i}, jax.random.key(0), None
      )
    )(ids)
    seen.append(float(alone[1]))
  assert seen[0] != seen[1]


@pytest.mark.parametrize(
  ("overrides", "message"),
  [
    ({"total_steps": 0}, "TRAIN_STEPS. = 0 must be positive"),
    ({"num_microbatches": 3}, "num_microbatches=3 must divide"),
    ({"num_microbatches": 0}, "num_microbatches = 0"),
    ({"checkpoint_period": 0}, "CHECKPOINT_PERIOD"),
    ({"log_period": 0}, "log_period = 0"),
    ({"model": tiny.make_model(4)}, "BATCH_SIZE = 8"),
    ({"frozen_checkpoint": "x"}, "freezes no network"),
    (
      {"model": tiny.make_model(BATCH, image_size=(16, 16))},
      r"image_size = \(16, 16\)",
    ),
    ({"model": tiny.make_model(BATCH, max_text_length=9)}, "max_text_length"),
  ],
)
def test_bad_sizes_are_said_before_anything_compiles(
  tmp_path: pathlib.Path, overrides: dict[str, Any], message: str
) -> None:
  with pytest.raises(ValueError, match=message):
    run(tmp_path, **overrides)
  assert checkpoints.committed_steps(tmp_path) == []
