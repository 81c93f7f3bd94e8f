"""The state of training and the one way to advance it.

A step whose gradients are not finite changes nothing but the counters: neither
parameters, nor moments, nor the average ever see a NaN.
"""

from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax

PyTree = Any


class TrainState(flax.struct.PyTreeNode):
  """Everything that a step changes.

  Attributes:
    step: int32 [], steps tried so far.
    params: trainable parameters.
    opt_state: state of the optax transform.
    ema_params: exponential moving average of params, or None when off.
    skipped_steps: int32 [], how many of the steps were skipped.
  """

  step: jax.Array
  params: PyTree
  opt_state: PyTree
  ema_params: PyTree
  skipped_steps: jax.Array

  @property
  def eval_params(self) -> PyTree:
    """What evaluation and sampling use: the average, else params."""
    return self.params if self.ema_params is None else self.ema_params


def create(
  params: PyTree, tx: optax.GradientTransformation, ema: bool = True
) -> TrainState:
  """The state before the first step; the average starts at params."""
  return TrainState(
    step=jnp.zeros([], jnp.int32),
    params=params,
    opt_state=tx.init(params),
    # A copy: a donated state must not hold one buffer twice.
    ema_params=jax.tree.map(jnp.copy, params) if ema else None,
    skipped_steps=jnp.zeros([], jnp.int32),
  )


def ema_decay_at(num_updates: jax.Array, ema_decay: float) -> jax.Array:
  """min(ema_decay, (1 + n) / (10 + n)) after n earlier updates; float32."""
  n = jnp.asarray(num_updates, jnp.float32)
  return jnp.minimum(jnp.float32(ema_decay), (1.0 + n) / (10.0 + n))


def all_finite(grads: PyTree) -> jax.Array:
  """Whether the squared global norm is finite; bool [].

  Stricter than every element being finite: squares that overflow float32 would
  poison second moments for good.
  """
  return jnp.isfinite(optax.global_norm(grads))


def apply_gradients(
  state: TrainState,
  grads: PyTree,
  tx: optax.GradientTransformation,
  learning_rate: jax.Array | float,
  ema_decay: float | None = None,
) -> TrainState:
  """params <- params - learning_rate * tx(grads), then the average follows.

  Args:
    state: the state before the step.
    grads: gradients, shaped like params.
    tx: transform giving unscaled descent updates (optimizers.OptimizerDef.tx).
    learning_rate: scalar.
    ema_decay: in [0, 1); needed when state.ema_params is not None.

  Returns:
    The next state. Where grads are not finite, only step and skipped_steps
    differ from the state given.
  """
  if state.ema_params is not None and ema_decay is None:
    raise ValueError("The state keeps ema_params, so ema_decay is needed.")
  finite = all_finite(grads)
  updates, opt_state = tx.update(grads, state.opt_state, state.params)
  updates = jax.tree.map(lambda u: -learning_rate * u, updates)
  params = optax.apply_updates(state.params, updates)
  ema_params = state.ema_params
  if ema_decay is not None and ema_params is not None:
    decay = ema_decay_at(state.step - state.skipped_steps, ema_decay)
    # Written as a correction, so that constant parameters stay bit-identical.
    ema_params = jax.tree.map(
      lambda e, p: (e + (1.0 - decay) * (p - e)).astype(e.dtype),
      ema_params,
      params,
    )

  def choose(new: PyTree, old: PyTree) -> PyTree:
    return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

  return TrainState(
    step=state.step + 1,
    params=choose(params, state.params),
    opt_state=choose(opt_state, state.opt_state),
    ema_params=choose(ema_params, state.ema_params),
    skipped_steps=state.skipped_steps + jnp.where(finite, 0, 1),
  )
