"""OptimizerDef: an optax transform that also obeys T5X's optimizer protocol.

T5X calls create, apply_gradient and derive_logical_axes, and state_dict
and restore_state of what create gives. It hands the learning rate in, so the
transform gives unscaled descent updates. T5X is not imported.
"""

from collections.abc import Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from flax import serialization, traverse_util

PyTree = Any


class OptimizerState(flax.struct.PyTreeNode):
  """T5X's optimizer state: step int32 [] and the state of the transform."""

  step: Any
  param_states: PyTree


class Optimizer(flax.struct.PyTreeNode):
  """T5X's optimizer: parameters (target) together with their state."""

  optimizer_def: "OptimizerDef" = flax.struct.field(pytree_node=False)
  state: OptimizerState
  target: PyTree

  def apply_gradient(
    self, grads: PyTree, learning_rate: jax.Array | float
  ) -> "Optimizer":
    """target <- target - learning_rate * tx(grads)."""
    return self.optimizer_def.apply_gradient(self, grads, learning_rate)

  def state_dict(self) -> dict[str, Any]:
    """{"target", "state"} as nested dicts; nodes without leaves are dropped."""
    flat = traverse_util.flatten_dict(
      serialization.to_state_dict(self.state), sep="/"
    )
    return {
      "target": serialization.to_state_dict(self.target),
      "state": traverse_util.unflatten_dict(flat, sep="/"),
    }

  def restore_state(self, state_dict: Mapping[str, Any]) -> "Optimizer":
    """The inverse of state_dict, into the structure of this optimizer.

    Raises:
      ValueError: naming the optimizer states that state_dict lacks.
    """
    wanted = traverse_util.flatten_dict(
      serialization.to_state_dict(self.state), keep_empty_nodes=True, sep="/"
    )
    given = dict(
      traverse_util.flatten_dict(
        flax.core.unfreeze(state_dict["state"]), sep="/"
      )
    )
    empty = traverse_util.empty_node
    missing = [
      k for k, v in wanted.items() if k not in given and v is not empty
    ]
    if missing:
      raise ValueError(f"The optimizer state lacks: {missing}.")
    given |= {k: v for k, v in wanted.items() if v is empty}
    state = traverse_util.unflatten_dict(given, sep="/")
    return self.replace(
      target=serialization.from_state_dict(self.target, state_dict["target"]),
      state=serialization.from_state_dict(self.state, state),
    )


class OptimizerDef:
  """An optax transform of unscaled descent updates, in T5X's clothes."""

  def __init__(self, tx: optax.GradientTransformation):
    self.tx = tx

  def create(self, params: PyTree) -> Optimizer:
    """The optimizer of params before the first step."""
    state = OptimizerState(
      step=jnp.zeros([], jnp.int32), param_states=self.tx.init(params)
    )
    return Optimizer(optimizer_def=self, state=state, target=params)

  def apply_gradient(
    self,
    optimizer: Optimizer,
    grads: PyTree,
    learning_rate: jax.Array | float,
  ) -> Optimizer:
    """target <- target - learning_rate * tx(grads)."""
    updates, param_states = self.tx.update(
      grads, optimizer.state.param_states, optimizer.target
    )
    updates = jax.tree.map(lambda u: -learning_rate * u, updates)
    return optimizer.replace(
      target=optax.apply_updates(optimizer.target, updates),
      state=OptimizerState(
        step=optimizer.state.step + 1, param_states=param_states
      ),
    )

  def derive_logical_axes(
    self, optimizer: Optimizer, param_logical_axes: PyTree
  ) -> Optimizer:
    """The optimizer with logical axis names in place of arrays.

    A state leaf has the axes of the parameter whose name ends its path and
    whose shape it has; every other leaf has None (replicated).
    """
    axes = flax.core.unfreeze(param_logical_axes)
    flat_axes = traverse_util.flatten_dict(axes, sep="/")
    state_dict = optimizer.state_dict()
    shapes = {
      name: leaf.shape
      for name, leaf in traverse_util.flatten_dict(
        state_dict["target"], sep="/"
      ).items()
    }

    def find(name: str, leaf: Any) -> Any:
      parts = name.split("/")
      for i in range(len(parts)):
        param = "/".join(parts[i:])
        if param in shapes and shapes[param] == leaf.shape:
          return flat_axes[param]
      return None

    flat = traverse_util.flatten_dict(state_dict["state"], sep="/")
    found = {name: find(name, leaf) for name, leaf in flat.items()}
    return optimizer.restore_state(
      {"target": axes, "state": traverse_util.unflatten_dict(found, sep="/")}
    )
