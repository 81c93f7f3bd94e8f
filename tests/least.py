"""The least model that trainer.train trains: compiles in a moment.

For tests of what surrounds a model. Its parameters may have any names and
shapes; every one has a gradient that depends on the batch.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.linen import partitioning as nn_partitioning

from byt5_diffusion import (
  contract,
  optimizers,
  partitioning,
  stored_trees,
  trainer,
)
from byt5_diffusion.data import state

BATCH = 8
SHAPES = {
  "text_encoder/layer/kernel": (4, 3),
  "unet/in/kernel": (3, 5),
  "unet/out/bias": (5,),
}


class Model:
  """Parameters that are pulled to the mean of a batch's numbers."""

  max_text_length = 4
  image_size = (2, 2)

  def __init__(
    self,
    shapes: Mapping[str, tuple[int, ...]] = SHAPES,
    frozen: str = "",
    batch_size: int = BATCH,
  ):
    """Parameters whose names start with `frozen` (not "") are frozen."""
    self.loss_normalizing_factor = float(batch_size)
    self.optimizer_def = optimizers.adamw()
    self._homes: dict[str, dict[str, tuple[int, ...]]] = {"params": {}}
    for name, shape in shapes.items():
      home = "frozen" if frozen and name.startswith(frozen) else "params"
      self._homes.setdefault(home, {})[name] = shape

  def input_shapes(self, batch_size: int = 1) -> dict[str, tuple[int, ...]]:
    return {"numbers": (batch_size, 3)}

  def get_initial_variables(
    self, rng: jax.Array, input_shapes: Any, input_types: Any = None
  ) -> dict[str, Any]:
    del input_shapes, input_types
    variables = {}
    for home, shapes in self._homes.items():
      arrays, axes = {}, {}
      for i, (name, shape) in enumerate(shapes.items()):
        key = jax.random.fold_in(rng, i)
        arrays[name] = jax.random.normal(key, shape)
        names = (("embed", "mlp") * 3)[: len(shape)]
        axes[f"{name}_axes"] = nn_partitioning.AxisMetadata(
          names=jax.sharding.PartitionSpec(*names)
        )
      variables[home] = stored_trees.nest(arrays)
      variables[f"{home}_axes"] = stored_trees.nest(axes)
    return variables

  def eval_fn(
    self, params: Any, batch: Any, flax_mutables: Any = None
  ) -> tuple[jax.Array, Any]:
    target = jnp.mean(batch["numbers"], axis=1)  # [B]
    pulls = [
      jnp.mean((leaf[None] - target.reshape(-1, *[1] * leaf.ndim)) ** 2)
      for leaf in jax.tree.leaves((params, flax_mutables))
    ]
    losses = jnp.broadcast_to(sum(pulls), target.shape)
    loss = jnp.sum(losses) / self.loss_normalizing_factor
    return loss, {"loss": contract.average(losses)}

  def loss_fn(
    self, params: Any, batch: Any, rng: Any, flax_mutables: Any = None
  ) -> tuple[jax.Array, Any]:
    loss, metrics = self.eval_fn(params, batch, flax_mutables)
    if flax_mutables is None:
      return loss, metrics
    return loss, (metrics, flax_mutables)


class Batches:
  """This host's rows of batches 0, 1, ...: data.pipeline.Batches in small.

  Two streams, whose snapshots are their numbers.
  """

  num_examples = None

  def __init__(
    self, batch_size: int = BATCH, host_index: int = 0, host_count: int = 1
  ):
    rows = batch_size // host_count
    self._rows = slice(host_index * rows, (host_index + 1) * rows)
    self._shape = (batch_size, 3)
    self._identity = {"batch_size": batch_size}
    per_host = max(2 // host_count, 1)
    self._streams = range(host_index * per_host, (host_index + 1) * per_host)
    self._next = 0

  def __iter__(self) -> "Batches":
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(self._next)
    self._next += 1
    numbers = rng.normal(size=self._shape).astype(np.float32)
    return {"numbers": numbers[self._rows]}

  def get_state(self) -> bytes:
    streams = {v: (self._next, b"%d" % v) for v in self._streams}
    return state.pack_place(self._identity, state.Place(self._next, streams))

  def set_state(self, saved: bytes) -> None:
    place = state.unpack_place(saved, self._identity)
    for stream in self._streams:
      assert place.streams[stream] == (place.num_batches, b"%d" % stream)
    self._next = place.num_batches


def train(model_dir: Any, **overrides: Any) -> Any:
  """trainer.train with this model and small numbers."""
  arguments: dict[str, Any] = {
    "model": Model(),
    "train_data": Batches,
    "learning_rate_fn": optimizers.constant(0.1),
    "partitioning": partitioning.Partitioning(),
    "model_dir": str(model_dir),
    "total_steps": 1,
    "batch_size": BATCH,
    "checkpoint_period": 1,
    "log_period": 1,
  }
  return trainer.train(**(arguments | overrides))
