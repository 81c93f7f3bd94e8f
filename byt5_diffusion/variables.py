"""A model's variables on a mesh: initial states and frozen networks.

Trained parameters start here or come from a checkpoint; frozen networks come
from a tree of their own (checkpoints.save_tree), of which a run's checkpoints
hold the path and the sha256 only.
"""

import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from byt5_diffusion import checkpoints, contract, train_state
from byt5_diffusion import partitioning as partitioning_lib

Array = jax.Array
PyTree = Any
TrainState = train_state.TrainState

FROZEN_DIR = "frozen"


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


def load_frozen(
  model: contract.Model,
  shapes: Mapping[str, jax.ShapeDtypeStruct],
  rng: Array,
  path: str | None,
  partitioning: partitioning_lib.Partitioning,
  model_dir: pathlib.Path,
) -> tuple[PyTree, dict[str, Any] | None]:
  """The frozen networks on the devices, and what a checkpoint says of them.

  Without a path they are drawn from rng, once, and kept in model_dir/frozen:
  random frozen weights are of use to tests and trials only.
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
  if path is None or path == FROZEN_DIR:
    path = FROZEN_DIR
    if not (model_dir / path).exists():
      tree = _run_once(jax.jit(lambda rng: init(rng)["frozen"]))(rng)
      checkpoints.save_tree(model_dir / path, tree)
  elif path != FROZEN_DIR:
    path = os.path.abspath(path)
  tree = checkpoints.load_tree(model_dir / path)
  checkpoints.check_tree(tree, abstract["frozen"], str(model_dir / path))
  axes = partitioning_lib.logical_axes(abstract["frozen_axes"])
  shardings = partitioning.param_shardings(abstract["frozen"], axes)
  record = {"path": path, "sha256": checkpoints.tree_sha256(tree)}
  return {"frozen": jax.device_put(tree, shardings)}, record


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
  path, sha256 = _frozen_record(record, model_dir)
  try:
    return {"frozen": checkpoints.load_tree(path, sha256=sha256)}
  except OSError as error:
    raise checkpoints.CheckpointError(
      f"{str(path)[:200]} can't be read: {error.strerror}."
    ) from error


def _frozen_record(
  record: Any, model_dir: str | os.PathLike[str]
) -> tuple[pathlib.Path, str]:
  """Path and sha256 of a record, which a stranger may have written.

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
  """Compiles without optimizing where that takes longer than the run does.

  Random initial values are much code for XLA's CPU backend: a tiny UNet's cost
  20 s of compilation with optimizations and 5 s without.
  """
  if jax.default_backend() != "cpu":
    return jitted
  options = {"xla_backend_optimization_level": 0}

  def run(*arguments: Any) -> Any:
    return jitted.lower(*arguments).compile(options)(*arguments)

  return run
