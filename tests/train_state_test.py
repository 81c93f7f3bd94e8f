"""The train state: descent, the average, and steps that never happened."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from byt5_diffusion import optimizers, train_state


def make_state(ema=True):
  params = {
    "kernel": jnp.linspace(-1.0, 1.0, 12).reshape(3, 4),
    "bias": jnp.ones(4),
  }
  definition = optimizers.adamw(weight_decay=0.1)
  return train_state.create(params, definition.tx, ema), definition.tx


def bits(tree):
  return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


def step_fn(tx, ema_decay=0.99):
  return jax.jit(
    lambda state, grads: train_state.apply_gradients(
      state, grads, tx, 0.1, ema_decay
    )
  )


def test_a_step_descends_by_the_learning_rate():
  state, tx = make_state()
  grads = jax.tree.map(jnp.cos, state.params)
  updates, _ = tx.update(grads, state.opt_state, state.params)
  new = step_fn(tx)(state, grads)
  jax.tree.map(
    lambda n, p, u: np.testing.assert_allclose(n, p - 0.1 * u, rtol=1e-6),
    new.params,
    state.params,
    updates,
  )
  assert (new.step, new.skipped_steps) == (1, 0)
  assert new.step.dtype == new.skipped_steps.dtype == jnp.int32
  assert jax.tree.structure(new) == jax.tree.structure(state)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_a_bad_gradient_changes_nothing_but_the_counters(bad):
  state, tx = make_state()
  step = step_fn(tx)
  grads = jax.tree.map(jnp.cos, state.params)
  before = step(state, grads)
  poisoned = {**grads, "bias": grads["bias"].at[2].set(bad)}
  after = step(before, poisoned)
  for name in ("params", "opt_state", "ema_params"):
    assert bits(getattr(after, name)) == bits(getattr(before, name)), name
  assert (after.step, after.skipped_steps) == (2, 1)
  # And the next good step goes on as if it had not been there.
  a, b = step(after, grads), step(before, grads)
  assert bits(a.params) == bits(b.params)
  assert bits(a.ema_params) == bits(b.ema_params)
  assert (a.step, a.skipped_steps) == (3, 1)


def test_ema_closed_form():
  """After n updates: the weighted sum of every value there was."""
  tx = optax.identity()  # params <- params - 0.1 * grads
  values, decay = [np.float64(2.0)], 0.7
  state = train_state.create({"w": jnp.float32(2.0)}, tx, True)
  step = step_fn(tx, ema_decay=decay)
  for i in range(20):
    state = step(state, {"w": jnp.float32(np.sin(i))})
    values.append(values[-1] - 0.1 * np.sin(i))
  # Warm-up: (1 + n) / (10 + n) stays below 0.7 until n = 20.
  decays = [min(decay, (1 + n) / (10 + n)) for n in range(20)]
  assert decays[0] == 0.1 and decays[19] < decay
  weights = [np.prod(decays)] + [
    (1 - d) * np.prod(decays[n + 1 :]) for n, d in enumerate(decays)
  ]
  assert sum(weights) == pytest.approx(1.0)
  np.testing.assert_allclose(
    state.ema_params["w"], np.dot(weights, values), rtol=1e-5
  )
  np.testing.assert_allclose(state.params["w"], values[-1], rtol=1e-5)


def test_ema_decay_is_limited_by_the_warmup_only_at_first():
  got = [float(train_state.ema_decay_at(n, 0.99)) for n in (0, 8, 10**6)]
  np.testing.assert_allclose(got, [0.1, 0.5, 0.99], rtol=1e-6)


def test_average_of_frozen_parameters_keeps_their_bits():
  params = {"frozen": jnp.float32([0.1, 0.7, -1e-8]), "w": jnp.ones(2)}
  tx = optimizers.adamw(freeze_rules=[("frozen", True), (".*", False)]).tx
  state, step = train_state.create(params, tx, True), step_fn(tx)
  for _ in range(10):
    state = step(state, {"frozen": jnp.ones(3), "w": jnp.ones(2)})
  assert bits(state.ema_params["frozen"]) == bits(params["frozen"])
  assert bits(state.ema_params["w"]) != bits(params["w"])


def test_without_average():
  state, tx = make_state(ema=False)
  assert state.ema_params is None
  new = step_fn(tx, ema_decay=None)(state, state.params)
  assert new.ema_params is None
  assert new.eval_params is new.params


def test_with_average():
  state, tx = make_state()
  assert state.eval_params is state.ema_params
  with pytest.raises(ValueError, match="ema_decay"):
    train_state.apply_gradients(state, state.params, tx, 0.1)


def test_a_donated_state_holds_no_buffer_twice():
  state, tx = make_state()
  step = jax.jit(
    lambda s, g: train_state.apply_gradients(s, g, tx, 0.1, 0.9),
    donate_argnums=0,
  )
  grads = jax.tree.map(jnp.cos, state.params)
  jax.block_until_ready(step(state, grads))
  assert state.params["kernel"].is_deleted()
