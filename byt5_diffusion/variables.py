"""A model's variables on a mesh: initial states and frozen networks.

Trained parameters start here or come from a checkpoint; frozen networks come
from a tree of their own (checkpoints.save_tree), of which a run's checkpoints
hold the path and the sha256 only.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from byt5_diffusion import checkpoints, models, train_state
from byt5_diffusion import partitioning as partitioning_lib

Array = jax.Array
PyTree = Any
TrainState = train_state.TrainState


def global_shapes(
  batch: Mapping[str, np.ndarray], batch_size: int
) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes of the global batch, from one host's rows of it."""
  return {
    name: jax.ShapeDtypeStruct((batch_size, *rows.shape[1:]), rows.dtype)
    for name, rows in batch.items()
  }


def make_init(
  model: models.Model,
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
  return jax.jit(init, out_shardings=shardings), state_shapes


def load_frozen(
  model: models.Model,
  shapes: Mapping[str, jax.ShapeDtypeStruct],
  rng: Array,
  path: str | None,
  partitioning: partitioning_lib.Partitioning,
) -> tuple[PyTree, dict[str, Any] | None]:
  """The frozen networks on the devices, and what a checkpoint says of them."""
  input_shapes = {name: x.shape for name, x in shapes.items()}
  abstract = jax.eval_shape(
    lambda rng: model.get_initial_variables(rng, input_shapes), rng
  )
  if "frozen" not in abstract:
    if path is not None:
      raise ValueError(
        f"frozen_checkpoint={path!r}, but this model freezes no network: bind "
        "TextToImageModel.freeze_text_encoder = True or drop the path."
      )
    return None, None
  if path is None:
    tree = jax.jit(
      lambda rng: model.get_initial_variables(rng, input_shapes)["frozen"]
    )(rng)
    tree = jax.tree.map(np.asarray, tree)
  else:
    tree = checkpoints.load_tree(path)
    checkpoints.check_tree(tree, abstract["frozen"], path)
  axes = partitioning_lib.logical_axes(abstract["frozen_axes"])
  shardings = partitioning.param_shardings(abstract["frozen"], axes)
  record = {"path": path, "sha256": checkpoints.tree_sha256(tree)}
  return {"frozen": jax.device_put(tree, shardings)}, record


def restore_frozen(model: Any, extra: dict[str, Any], run: str) -> PyTree:
  """The frozen networks that a checkpoint names, checked by their sha256."""
  record = extra.get("frozen")
  if record is None:
    return None
  shapes = {
    "images": (1, *model.image_size, 3),
    "text_tokens": (1, model.max_text_length),
  }
  if record["path"] is None:
    # The key that trainer.train initialised them with.
    rng = jax.random.split(jax.random.key(extra["random_seed"]))[0]
    tree = jax.jit(
      lambda rng: model.get_initial_variables(rng, shapes)["frozen"]
    )(rng)
  else:
    tree = checkpoints.load_tree(record["path"])
  found = checkpoints.tree_sha256(tree)
  if found != record["sha256"]:
    raise ValueError(
      f"the frozen networks of {run} were {record['sha256'][:12]} in training, "
      f"but {record['path'] or 'its seed'} now gives {found[:12]}: restore the "
      "file that the run was trained with."
    )
  return {"frozen": tree}
