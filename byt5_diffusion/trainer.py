"""Training: a pure step on one screen, and a straight line around it.

`train_step` is the whole of what happens to a state: gradients summed over
micro-batches, optimizer, average. `train` is read from top to bottom: state,
data, compile, loop. It sees a model through its contract only.

A step is defined by (step, seed, data position) and nothing else, so a run that
was killed and resumed ends with the very bits of one that was not.
"""

import contextlib
import functools
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from byt5_diffusion import (
  assignment,
  checkpoints,
  config,
  contract,
  evaluation,
  host_memory,
  prompts,
  run_lock,
  stop_signals,
  telemetry,
  train_state,
  variables,
)
from byt5_diffusion import partitioning as partitioning_lib
from byt5_diffusion.data import state as state_lib

Array = jax.Array
PyTree = Any
TrainState = train_state.TrainState

# Consecutive non-finite steps after which a run gives up.
MAX_SKIPPED_STEPS = 10


class NonFiniteError(FloatingPointError):
  """Training has diverged."""


# --- The step ---------------------------------------------------------------


def sum_gradients(
  model: contract.Model,
  params: PyTree,
  frozen: PyTree,
  batch: Mapping[str, Array],
  rng: Array,
  num_microbatches: int,
) -> tuple[PyTree, PyTree]:
  """Gradients summed over micro-batches, and merged metrics.

  loss_fn divides by the GLOBAL number of examples, so the sum is the gradient
  of the mean loss for any number of micro-batches (architecture.md, 6).
  """

  def loss_fn(params: PyTree, part: Mapping[str, Array]) -> tuple[Array, Any]:
    if frozen is None:
      return model.loss_fn(params, part, rng)
    loss, (metrics, _) = model.loss_fn(params, part, rng, frozen)
    return loss, metrics

  grad_fn = jax.grad(loss_fn, has_aux=True)
  if num_microbatches == 1:
    return grad_fn(params, batch)

  def split(x: Array) -> Array:
    # Rows i, i + n, i + 2n, ...: every device keeps its share of each part.
    return jnp.moveaxis(x.reshape(-1, num_microbatches, *x.shape[1:]), 1, 0)

  def add(total: PyTree, part: Mapping[str, Array]) -> tuple[PyTree, Any]:
    gradients, metrics = grad_fn(params, part)
    return jax.tree.map(jnp.add, total, gradients), metrics

  zeros = jax.tree.map(jnp.zeros_like, params)
  gradients, metrics = jax.lax.scan(add, zeros, jax.tree.map(split, batch))
  return gradients, {name: x.reduce() for name, x in metrics.items()}


def train_step(
  state: TrainState,
  frozen: PyTree,
  batch: Mapping[str, Array],
  rng: Array,
  *,
  model: contract.Model,
  learning_rate_fn: Callable[[Array], Array],
  num_microbatches: int = 1,
  ema_decay: float | None = None,
) -> tuple[TrainState, PyTree]:
  """One optimizer step: (state, batch) -> (state, metrics)."""
  step_rng = jax.random.fold_in(rng, state.step)
  gradients, metrics = sum_gradients(
    model, state.params, frozen, batch, step_rng, num_microbatches
  )
  learning_rate = learning_rate_fn(state.step)
  new_state = train_state.apply_gradients(
    state, gradients, model.optimizer_def.tx, learning_rate, ema_decay or 0.0
  )
  scalars = {
    "learning_rate": learning_rate,
    "gradient_norm": optax.global_norm(gradients),
    "skipped_steps": new_state.skipped_steps,
  }
  return new_state, {"metrics": metrics, "scalars": scalars}


# --- The program --------------------------------------------------------------


@run_lock.one_at_a_time
def train(
  *,
  model: contract.Model,
  train_data: Callable[..., Any],
  learning_rate_fn: Callable[[Array], Array],
  partitioning: partitioning_lib.Partitioning,
  model_dir: str,
  total_steps: int,
  batch_size: int,
  validation_data: Callable[..., Any] | None = None,
  num_microbatches: int = 1,
  ema_decay: float | None = 0.999,
  checkpoint_period: int = 1000,
  checkpoints_to_keep: int | None = 3,
  log_period: int = 50,
  eval_period: int = 1000,
  eval_steps: int = 4,
  sample_period: int = 1000,
  sample_texts: Sequence[str] = (),
  random_seed: int = 0,
  frozen_checkpoint: str | assignment.InitialCheckpoint | None = None,
  initial_checkpoint: assignment.InitialCheckpoint | None = None,
) -> TrainState:
  """Trains for total_steps, or goes on from model_dir's last checkpoint.

  Args:
    model: meets contract.Model; carries its optimizer_def.
    train_data: called with host_index, host_count and batch_size; gives
      batches and their position (data.pipeline.Batches).
    learning_rate_fn: step -> float32.
    partitioning: mesh and rules of logical axes.
    model_dir: checkpoints, logs and samples; may be relative.
    total_steps: optimizer steps of the whole run, earlier ones included.
    batch_size: GLOBAL examples per optimizer step, over all micro-batches.
    validation_data: as train_data, finite and unshuffled; None: no validation.
    num_microbatches: parts whose gradients are summed; divides batch_size.
    ema_decay: of the averaged parameters that sampling uses; None: none.
    checkpoint_period, log_period, eval_period, sample_period: steps; the last
      two may be 0 for never.
    checkpoints_to_keep: None keeps all.
    eval_steps: batches of validation_data per validation.
    sample_texts: captions drawn every sample_period steps; a model that
      enlarges pictures shows some of validation_data instead.
    random_seed: of initial values, noise and dropout.
    frozen_checkpoint: tree of the frozen networks (checkpoints.save_tree), or
      rules that take them of another checkpoint; None takes those of the run
      that goes on, and draws those of a new one at random, which only trials
      want.
    initial_checkpoint: where a NEW run's parameters start; one that goes on
      never looks at it again.

  Returns:
    The last state.

  Raises:
    ValueError: sizes that do not divide, a checkpoint of another model.
    run_lock.LockedError: model_dir is being trained, or can't be written.
    NonFiniteError: MAX_SKIPPED_STEPS steps in a row were not finite.
    SystemExit: 128 + the signal, after SIGTERM or Ctrl-C; the state is saved.
  """
  _check_numbers(
    total_steps=total_steps,
    batch_size=batch_size,
    num_microbatches=num_microbatches,
    checkpoint_period=checkpoint_period,
    log_period=log_period,
  )
  check_batch_size(model, partitioning, batch_size, num_microbatches)
  telemetry.enable_compilation_cache()
  if jax.default_backend() == "cpu":
    host_memory.keep_freed_memory()
  directory = pathlib.Path(model_dir).absolute()
  checkpointer = checkpoints.Checkpointer(
    directory,
    period=checkpoint_period,
    keep=checkpoints_to_keep,
    merge=state_lib.merge,
  )

  batches, shapes = _open_data(model, train_data, batch_size, partitioning)

  # State: restored where there is something to restore.
  init_rng, train_rng = jax.random.split(jax.random.key(random_seed))
  first_step = checkpointer.latest_step() or 0
  saved = checkpointer.read_extra(first_step) if first_step else {}
  frozen, frozen_record = variables.load_frozen(
    model,
    shapes,
    init_rng,
    variables.frozen_source(frozen_checkpoint, saved, directory),
    partitioning,
    directory,
  )
  extra = {
    "batch_size": batch_size,
    "frozen": frozen_record,
    "random_seed": random_seed,
  }
  init, state_shapes = variables.make_init(
    model, shapes, partitioning, ema_decay
  )
  progress = telemetry.Progress(total_steps, batch_size, first_step)
  if first_step:
    _check_resumed(saved, extra, directory, first_step, total_steps)
    state, data_state, _ = checkpointer.restore(first_step, state_shapes)
    batches.set_state(data_state)
  else:
    state = variables.start(
      init,
      init_rng,
      state_shapes,
      initial_checkpoint,
      model.optimizer_def.tx,
      directory,
      progress.say,
    )

  if first_step == total_steps:
    progress.say(f"{directory} has all of its {total_steps} steps")
    checkpointer.close()
    return state

  # Side work: none of it touches the state.
  writer = telemetry.make_writers(directory, first_step=first_step)
  if jax.process_index() == 0:
    prompts.save(prompts.of_data(model, batches), directory)
    writer.write_texts(first_step, {"config": config.write_configs(directory)})
  validate = evaluation.make_validation(
    model,
    validation_data if eval_period else None,
    batch_size,
    eval_steps,
    partitioning,
  )
  draw = evaluation.make_grid(model, sample_texts, directory, validation_data)
  if first_step:
    progress.say(f"going on from step {first_step} of {directory}")

  progress.say(f"compiling for {partitioning.mesh.size} devices ...")
  step_fn = compile_train_step(
    functools.partial(
      train_step,
      model=model,
      learning_rate_fn=learning_rate_fn,
      num_microbatches=num_microbatches,
      ema_decay=ema_decay,
    ),
    (state_shapes, frozen, shapes, train_rng),
    partitioning,
  )

  def due(step: int, period: int) -> bool:
    return period > 0 and (step % period == 0 or step == total_steps)

  progress.start()
  window = _Window()
  with (
    contextlib.closing(checkpointer),  # An error must not cost a save.
    contextlib.closing(writer),
    contextlib.closing(progress),
    stop_signals.StopSignals() as stop,
  ):
    for step in range(first_step + 1, total_steps + 1):
      with window.waiting():
        batch = partitioning.shard_batch(_next(batches, step))
      state, output = step_fn(state, frozen, batch, train_rng)
      window.add(output)

      if due(step, log_period):
        window = _log(step, window, writer, progress)
      checkpointer.check()
      stopping = stop.agreed(step)  # Once: a signal may come at any time.
      if due(step, checkpoint_period) or stopping:
        checkpointer.save(step, state, batches.get_state(), extra)
      if stopping:
        checkpointer.wait()
        progress.say(f"stopped by a signal; step {step} is saved")
        raise SystemExit(stop.exit_code)
      # After the save: what they fail of must not cost it.
      if validate is not None and due(step, eval_period):
        scalars = validate(state.eval_params, frozen)
        writer.write_scalars(step, _prefixed("validation", scalars))
        progress.say(f"step {step}: validation loss {scalars['loss']:.4f}")
      if draw is not None and due(step, sample_period):
        images = draw(state.eval_params, frozen, step)
        writer.write_images(step, {"samples": images})
  return state


# --- What train() is made of --------------------------------------------------


# How a recipe calls train()'s numbers.
_MACROS = {
  "total_steps": " (TRAIN_STEPS)",
  "batch_size": " (BATCH_SIZE)",
  "checkpoint_period": " (CHECKPOINT_PERIOD)",
}


def _check_numbers(**numbers: int) -> None:
  for name, value in numbers.items():
    if value < 1:
      raise ValueError(
        f"{name}{_MACROS.get(name, '')} = {value} must be positive."
      )


def check_batch_size(
  model: contract.Model,
  partitioning: partitioning_lib.Partitioning,
  batch_size: int,
  num_microbatches: int,
) -> None:
  """Raises ValueError unless the batch can be cut as asked, and is the loss's.

  Args:
    model: its loss_normalizing_factor must be batch_size.
    partitioning: its data axis must divide every micro-batch.
    batch_size: GLOBAL examples per optimizer step.
    num_microbatches: parts of a step.
  """
  if batch_size % num_microbatches:
    raise ValueError(f"{num_microbatches=} must divide {batch_size=}.")
  if model.loss_normalizing_factor != batch_size:
    raise ValueError(
      f"loss_normalizing_factor = {model.loss_normalizing_factor} must be the "
      f"global number of examples of a step, BATCH_SIZE = {batch_size}."
    )
  partitioning.check_batch_size(batch_size // num_microbatches)


def _open_data(
  model: contract.Model,
  train_data: Callable[..., Any],
  batch_size: int,
  partitioning: partitioning_lib.Partitioning,
) -> tuple[Any, dict[str, jax.ShapeDtypeStruct]]:
  """This host's batches, which fit the model, and the global ones' shapes."""
  host_index, host_count = partitioning.host_layout()
  batches = train_data(
    batch_size=batch_size, host_index=host_index, host_count=host_count
  )
  # One batch tells the shapes, then the pipeline is wound back.
  start = batches.get_state()
  shapes = variables.global_shapes(next(batches), batch_size)
  batches.set_state(start)
  evaluation.check_batch(model, shapes)
  prompts.of_data(model, batches)
  return batches, shapes


def _next(batches: Any, step: int) -> Any:
  try:
    return next(batches)
  except StopIteration:
    raise ValueError(
      f"the training data ended after {step - 1} steps: num_epochs = None, "
      "pipeline.open_data's default, repeats them."
    ) from None


def compile_train_step(
  step: Callable[..., Any],
  arguments: tuple[TrainState, PyTree, Mapping[str, Any], Array],
  partitioning: partitioning_lib.Partitioning,
) -> Callable[..., tuple[TrainState, PyTree]]:
  """Compiles ahead of time; the old state's buffers become the new one's.

  Args:
    step: train_step with its keywords given.
    arguments: shapes (state with shardings, frozen, batch) and the rng.
    partitioning: lays out the batch.
  """
  state, frozen, shapes, rng = arguments
  batch = {
    name: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=partitioning.batch_sharding(len(x.shape))
    )
    for name, x in shapes.items()
  }
  state_shardings = jax.tree.map(lambda x: x.sharding, state)
  jitted = jax.jit(
    step, donate_argnums=0, out_shardings=(state_shardings, None)
  )
  return jitted.lower(state, frozen, batch, rng).compile()


class _Window:
  """The steps since the last line of the log."""

  def __init__(self, skipped_before: Sequence[int] = ()) -> None:
    self._outputs: list[PyTree] = []
    self._skipped = list(skipped_before)
    self._waited = 0.0
    self._start = time.monotonic()

  @contextlib.contextmanager
  def waiting(self) -> Iterator[None]:
    """Counts the time inside as waiting for data."""
    start = time.monotonic()
    yield
    self._waited += time.monotonic() - start

  def add(self, output: PyTree) -> None:
    # One step in flight hides the host's work; on CPU there is nothing to hide
    # and several virtual devices would deadlock on few cores.
    self._outputs.append(output)
    behind = 1 if jax.default_backend() == "cpu" else 2
    jax.block_until_ready(self._outputs[-behind:][0])

  def summary(self) -> dict[str, float]:
    """Metrics merged over the window.

    Raises:
      NonFiniteError: MAX_SKIPPED_STEPS steps in a row were not finite.
    """
    outputs = jax.device_get(self._outputs)
    merged = functools.reduce(
      lambda a, b: {name: a[name].merge(b[name]) for name in a},
      [output["metrics"] for output in outputs],
    )
    scalars = {name: float(x.compute()) for name, x in merged.items()}
    scalars |= {name: float(x) for name, x in outputs[-1]["scalars"].items()}
    self._skipped += [int(x["scalars"]["skipped_steps"]) for x in outputs]
    tail = self._skipped[-MAX_SKIPPED_STEPS - 1 :]
    if len(tail) > MAX_SKIPPED_STEPS and tail[-1] - tail[0] == len(tail) - 1:
      raise NonFiniteError(
        f"{MAX_SKIPPED_STEPS} steps in a row had a gradient that is not finite."
        " Lower the learning rate, or go back to an earlier checkpoint."
      )
    seconds = max(time.monotonic() - self._start, 1e-9)
    return scalars | {"data_wait": self._waited / seconds}

  def next(self) -> "_Window":
    """The window after this one; a run of skipped steps goes on in it."""
    return _Window(self._skipped[-MAX_SKIPPED_STEPS:])


def _log(step: int, window: _Window, writer: Any, progress: Any) -> _Window:
  """Writes the window's line; the next window."""
  scalars = window.summary()
  writer.write_scalars(step, _prefixed("train", scalars))
  progress.update(step, scalars["loss"], scalars["data_wait"])
  return window.next()


def _prefixed(prefix: str, scalars: Mapping[str, float]) -> dict[str, float]:
  return {f"{prefix}/{name}": value for name, value in scalars.items()}


def _check_resumed(
  saved: Mapping[str, Any],
  now: Mapping[str, Any],
  directory: pathlib.Path,
  saved_step: int,
  total_steps: int,
) -> None:
  """Raises where going on would not continue the same run."""
  if saved_step > total_steps:
    raise ValueError(
      f"the run in {directory} is at step {saved_step} already, past "
      f"TRAIN_STEPS = {total_steps}: raise TRAIN_STEPS, or take another "
      "MODEL_DIR."
    )
  for name in ("batch_size", "random_seed"):
    if saved.get(name) != now[name]:
      raise ValueError(
        f"the run in {directory} has {name} = {saved.get(name)}, this command "
        f"{now[name]}: use the run's value, or another MODEL_DIR."
      )
  before, after = saved.get("frozen"), now["frozen"]
  if (before or {}).get("sha256") != (after or {}).get("sha256"):
    raise ValueError(
      f"the run in {directory} was trained with the frozen networks {before}, "
      f"this command has {after}: give the same frozen_checkpoint."
    )
