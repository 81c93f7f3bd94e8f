"""A model's variables on a mesh: initial states and frozen networks.

Trained parameters start here or come from a checkpoint; frozen networks come
from a tree of their own (checkpoints.save_tree), of which a run's checkpoints
hold the path and the sha256 only. Both may be taken from elsewhere by rules
(assignment.py).
"""

import functools
import json
import logging
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from byt5_diffusion import (
  assignment,
  checkpoints,
  compilation,
  contract,
  t5x_checkpoints,
  train_state,
)
from byt5_diffusion import partitioning as partitioning_lib

Array = jax.Array
PyTree = Any
TrainState = train_state.TrainState

FROZEN_DIR = "frozen"
FROZEN_REPORT = "frozen_checkpoint.json"


def global_shapes(
  batch: Mapping[str, np.ndarray], batch_size: int
) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes of the global batch, from one host's rows of it."""
  return {
    name: jax.ShapeDtypeStruct((batch_size, *rows.shape[1:]), rows.dtype)
    for name, rows in batch.items()
  }


def make_init(
  model: contract.Model,
  shapes: Mapping[str, jax.ShapeDtypeStruct],
  partitioning: partitioning_lib.Partitioning,
  ema_decay: float | None,
) -> tuple[Callable[[Array], TrainState], TrainState]:
  """A jitted init(rng) -> state, and the state's shapes with shardings."""
  input_shapes = {name: x.shape for name, x in shapes.items()}
  tx = model.optimizer_def.tx

  def init(rng: Array) -> TrainState:
    params = model.get_initial_variables(rng, input_shapes)["params"]
    return train_state.create(params, tx, ema=ema_decay is not None)

  abstract = jax.eval_shape(init, jax.random.key(0))
  variables = jax.eval_shape(
    lambda rng: model.get_initial_variables(rng, input_shapes),
    jax.random.key(0),
  )
  axes = partitioning_lib.logical_axes(variables["params_axes"])
  params = partitioning.param_shardings(abstract.params, axes)
  shardings = partitioning.state_shardings(abstract, abstract.params, params)
  state_shapes = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    abstract,
    shardings,
  )
  return _run_once(jax.jit(init, out_shardings=shardings)), state_shapes


def start(
  init: Callable[[Array], TrainState],
  rng: Array,
  state_shapes: TrainState,
  initial: assignment.InitialCheckpoint | None,
  tx: Any,
  model_dir: pathlib.Path,
  say: Callable[[str], None],
) -> TrainState:
  """The state before the first step; its parameters drawn or taken.

  Args:
    init, state_shapes: of make_init.
    rng: of what is drawn.
    initial: where parameters are taken from; None: all are drawn.
    tx: begins anew with the parameters taken, and so does the average.
    model_dir: gets a list of what came from where.
    say: prints a line.
  """
  if initial is None:
    return init(rng)
  if initial.dtypes:
    raise assignment.AssignmentError(
      "initial_checkpoint: what is trained is float32; dtypes are for"
      " frozen_checkpoint."
    )
  initial.check(state_shapes.params)  # Before minutes of compilation.
  state = init(rng)
  params = assignment.initialize(state.params, initial, model_dir, say)
  create = functools.partial(
    train_state.create, tx=tx, ema=state.ema_params is not None
  )
  shardings = jax.tree.map(lambda x: x.sharding, state_shapes)
  return _run_once(jax.jit(create, out_shardings=shardings))(params)


def load_frozen(
  model: contract.Model,
  shapes: Mapping[str, jax.ShapeDtypeStruct],
  rng: Array,
  path: str | assignment.InitialCheckpoint | None,
  partitioning: partitioning_lib.Partitioning,
  model_dir: pathlib.Path,
) -> tuple[PyTree, dict[str, Any] | None]:
  """The frozen networks on the devices, and what a checkpoint says of them.

  What rules take of another checkpoint is kept in model_dir/frozen, and read
  from there when the run goes on. Without a path they are drawn from rng, once,
  and kept there, too: random frozen weights are for tests and trials only.
  """
  input_shapes = {name: x.shape for name, x in shapes.items()}

  def init(rng: Array) -> dict[str, PyTree]:
    return model.get_initial_variables(rng, input_shapes)

  abstract = jax.eval_shape(init, rng)
  if "frozen" not in abstract:
    if path is not None:
      raise ValueError(
        f"frozen_checkpoint={path!r}, but this model freezes no network: bind "
        "TextToImageModel.freeze_text_encoder = True or drop the path."
      )
    return None, None
  if isinstance(path, assignment.InitialCheckpoint):
    path = _take_frozen(path, abstract["frozen"], model_dir)
  if path is None:
    path = FROZEN_DIR
    # Only of a new run: what a checkpoint names is never drawn anew.
    if not (model_dir / path).exists():
      tree = _run_once(jax.jit(lambda rng: init(rng)["frozen"]))(rng)
      checkpoints.save_tree(model_dir / path, tree)
  elif path != FROZEN_DIR:
    path = os.path.abspath(path)
  if t5x_checkpoints.find(model_dir / path):
    raise ValueError(
      f"frozen_checkpoint = {str(path)!r} is a checkpoint of T5X: bind "
      "@assignment.InitialCheckpoint() with its path and rules instead, e.g. "
      r"[('text_encoder/(.*)', '\1')]."
    )
  tree = checkpoints.load_tree(model_dir / path)
  checkpoints.check_tree(
    tree, abstract["frozen"], str(model_dir / path), any_float=True
  )
  axes = partitioning_lib.logical_axes(abstract["frozen_axes"])
  shardings = partitioning.param_shardings(abstract["frozen"], axes)
  record = {"path": path, "sha256": checkpoints.tree_sha256(tree)}
  return {"frozen": jax.device_put(tree, shardings)}, record


def _take_frozen(
  initial: assignment.InitialCheckpoint,
  shapes: PyTree,
  model_dir: pathlib.Path,
) -> str:
  """Fills model_dir/frozen by rules, once; where it is."""
  if (model_dir / FROZEN_DIR).exists():
    asked = initial.record()
    if _taken_before(model_dir) != asked:
      raise ValueError(
        f"{model_dir / FROZEN_DIR} holds frozen networks that are not those of "
        f"{asked}: take another MODEL_DIR, or remove that folder."
      )
    return FROZEN_DIR
  tree, report = initial.take(shapes)
  if report["fresh"]:
    raise assignment.AssignmentError(
      "Frozen networks never learn, so none can start fresh, but these would: "
      + ", ".join(report["fresh"][:8])
    )
  logging.info(assignment.describe(report))
  if jax.process_index() == 0:
    assignment.write_report(model_dir, report, FROZEN_REPORT)
  checkpoints.save_tree(model_dir / FROZEN_DIR, tree)
  return FROZEN_DIR


def _taken_before(model_dir: pathlib.Path) -> Any:
  """What model_dir/frozen was taken by, as it was recorded; None if not."""
  path = model_dir / FROZEN_REPORT
  if not path.exists():
    return None
  try:
    return json.loads(path.read_text("utf-8"))["initial_checkpoint"]
  except (KeyError, RecursionError, TypeError, ValueError) as error:
    raise ValueError(
      f"{path} is damaged: remove it and the folder {FROZEN_DIR} beside it, to"
      " take the networks again, or take another MODEL_DIR."
    ) from error


def _abstract(model: contract.Model) -> dict[str, PyTree]:
  """Shapes and logical axes of a model's variables."""
  shapes = model.input_shapes()
  return jax.eval_shape(
    lambda rng: model.get_initial_variables(rng, shapes), jax.random.key(0)
  )


def check_params(model: Any, params: PyTree, path: str) -> None:
  """Raises CheckpointError, with names, unless params are this model's."""
  checkpoints.check_tree(params, _abstract(model)["params"], path)


def place(
  model: Any,
  params: PyTree,
  frozen: PyTree,
  partitioning: partitioning_lib.Partitioning,
) -> tuple[PyTree, PyTree]:
  """Restored variables on the mesh, each where its rules say."""
  abstract = _abstract(model)

  def put(tree: PyTree, name: str) -> PyTree:
    axes = partitioning_lib.logical_axes(abstract[f"{name}_axes"])
    return jax.device_put(tree, partitioning.param_shardings(tree, axes))

  placed = put(params, "params")
  if frozen is None:
    return placed, None
  return placed, {"frozen": put(frozen["frozen"], "frozen")}


def restore(
  model: contract.Model,
  model_dir: str | os.PathLike[str],
  step: int | None = None,
  use_ema: bool = True,
) -> tuple[PyTree, PyTree, int]:
  """(params, frozen or None, step) of a run, on one device.

  Args:
    model: whose parameters they must be.
    model_dir: the run's folder.
    step: None is the last committed one.
    use_ema: the averaged parameters, where the run kept them.

  Raises:
    checkpoints.CheckpointError: no readable checkpoint of this model.
  """
  restored = checkpoints.restore_params(model_dir, step, ema=use_ema)
  check_params(model, restored.params, os.fspath(model_dir))
  frozen = restore_frozen(restored.extra, model_dir)
  # Once, and not with every batch.
  return (
    jax.device_put(restored.params),
    jax.device_put(frozen),
    restored.step,
  )


def restore_frozen(
  extra: Mapping[str, Any], model_dir: str | os.PathLike[str]
) -> PyTree:
  """The frozen networks that a checkpoint names, checked by their sha256.

  Raises:
    checkpoints.CheckpointError: they are gone, or not the ones of the run, or
      the record is broken.
  """
  record = extra.get("frozen")
  if record is None:
    return None
  path, sha256 = frozen_record(record, model_dir)
  try:
    return {"frozen": checkpoints.load_tree(path, sha256=sha256)}
  except OSError as error:
    raise checkpoints.CheckpointError(
      f"{str(path)[:200]} can't be read: {error.strerror}."
    ) from error


def frozen_source(
  given: str | assignment.InitialCheckpoint | None,
  extra: Mapping[str, Any],
  model_dir: pathlib.Path,
) -> str | assignment.InitialCheckpoint | None:
  """Where a run's frozen networks come from: as given, else as before.

  Args:
    given: what the recipe binds.
    extra: of the checkpoint that the run goes on from; {} for a new run.
    model_dir: the run's folder.

  Raises:
    checkpoints.CheckpointError: the checkpoint's record of them is broken,
      whatever is given.
  """
  record = extra.get("frozen")
  if record is None:
    return given
  path, _ = frozen_record(record, model_dir)
  # The run's own folder goes by its name alone: the run may have been moved.
  own = path == model_dir / FROZEN_DIR
  return given or (FROZEN_DIR if own else str(path))


def frozen_record(
  record: Any, model_dir: str | os.PathLike[str]
) -> tuple[pathlib.Path, str]:
  """Path and sha256 of a checkpoint's record, which may be a stranger's.

  A path relative to the run is the run's own and must lie inside it; an
  absolute one stands, as the user's own runs share a network by it.
  """
  prefix = f"{model_dir}: the checkpoint's record of frozen networks"
  if not isinstance(record, Mapping):
    raise checkpoints.CheckpointError(f"{prefix} is not a dict.")
  path, sha256 = record.get("path"), record.get("sha256")
  if not isinstance(sha256, str) or not re.fullmatch("[0-9a-f]{64}", sha256):
    raise checkpoints.CheckpointError(
      f"{prefix} has no sha256 of 64 hexadecimal digits."
    )
  path = path if isinstance(path, str) else ""
  if not 0 < len(path) < 4096 or "\0" in path:
    raise checkpoints.CheckpointError(f"{prefix} has no usable path.")
  run = pathlib.Path(model_dir)
  if not os.path.isabs(path) and ".." in pathlib.PurePath(path).parts:
    raise checkpoints.CheckpointError(
      f"{prefix} has the path {path[:200]!r}, which leaves the run's folder."
    )
  return run / path, sha256


def _run_once(jitted: Any) -> Callable[..., Any]:
  """Compiles without optimizing where that takes longer than the run does."""
  options = compilation.quick_options()
  if not options:
    return jitted

  def run(*arguments: Any) -> Any:
    return jitted.lower(*arguments).compile(options)(*arguments)

  return run
