"""Optimizers: equal to optax's, faithful to their rules, usable by T5X."""

import re

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import serialization, traverse_util

from byt5_diffusion import optimizers

EVERYTHING = [(".*", 1.0)]
FREEZE_ENCODER = [("encoder/.*", True), (".*", False)]


def make_params():
  keys = jax.random.split(jax.random.key(0), 4)
  return {
    "encoder": {"kernel": jax.random.normal(keys[0], (3, 4))},
    "unet": {
      "in": {
        "kernel": jax.random.normal(keys[1], (4, 6)),
        "bias": jax.random.normal(keys[2], (6,)),
      },
      "norm": {"scale": jax.random.normal(keys[3], (6,))},
    },
  }


def gradients(params, i):
  """Another gradient for every step, of norm above 1."""
  return jax.tree.map(lambda p: jnp.sin(3.0 * p + i), params)


def run(tx, params, learning_rate, steps=5):
  """params - learning_rate * updates, as the trainer does it."""

  @jax.jit
  def step(params, state, i):
    updates, state = tx.update(gradients(params, i), state, params)
    return jax.tree.map(
      lambda p, u: p - learning_rate * u, params, updates
    ), state

  state = jax.jit(tx.init)(params)
  for i in range(steps):
    params, state = step(params, state, i)
  return params


def run_optax(tx, params):
  """The peer keeps the learning rate inside, and the minus sign."""

  @jax.jit
  def step(params, state, i):
    updates, state = tx.update(gradients(params, i), state, params)
    return optax.apply_updates(params, updates), state

  state = jax.jit(tx.init)(params)
  for i in range(5):
    params, state = step(params, state, i)
  return params


def assert_close(a, b):
  def check(x, y):
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)

  jax.tree.map(check, a, b)


def assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


PEERS = {
  "adamw": (
    optimizers.adamw(
      b1=0.8, b2=0.95, eps=1e-6, weight_decay=0.1, clip_norm=None,
      weight_decay_rules=EVERYTHING,
    ),
    optax.adamw(0.02, b1=0.8, b2=0.95, eps=1e-6, weight_decay=0.1),
  ),
  "adamw, clipped": (
    optimizers.adamw(
      weight_decay=0.1, clip_norm=0.5, weight_decay_rules=EVERYTHING
    ),
    optax.chain(
      optax.clip_by_global_norm(0.5), optax.adamw(0.02, weight_decay=0.1)
    ),
  ),
  "lion": (
    optimizers.lion(
      weight_decay=0.1, clip_norm=None, weight_decay_rules=EVERYTHING
    ),
    optax.lion(0.02, weight_decay=0.1),
  ),
  "adafactor": (
    optimizers.adafactor(
      min_dim_size_to_factor=3, multiply_by_parameter_scale=True, momentum=0.9
    ),
    optax.adafactor(0.02, min_dim_size_to_factor=3, momentum=0.9),
  ),
}  # fmt: skip


@pytest.mark.parametrize("name", PEERS)
def test_equals_optax_with_the_learning_rate_outside(name):
  ours, peer = PEERS[name]
  params = make_params()
  got = run(ours.tx, params, 0.02)
  assert_close(got, run_optax(peer, params))
  assert not np.allclose(got["unet"]["in"]["kernel"],
                         params["unet"]["in"]["kernel"])  # fmt: skip


def test_adafactor_keeps_two_vectors_for_a_matrix():
  tx = optimizers.adafactor(min_dim_size_to_factor=128).tx
  state = tx.init({"kernel": jnp.zeros((256, 128))})
  assert sum(x.size for x in jax.tree.leaves(state)) < 400


def test_weight_decay_follows_its_rules_first_match_first():
  params = make_params()
  zeros = jax.tree.map(jnp.zeros_like, params)
  tx = optimizers.adamw(
    weight_decay=0.5,
    weight_decay_rules=[
      ("encoder/kernel", 2.0), (".*/kernel", 1.0), (".*", 0.0),
    ],
  ).tx  # fmt: skip
  updates, _ = tx.update(zeros, tx.init(params), params)
  expected = jax.tree.map(jnp.zeros_like, params)
  expected["encoder"]["kernel"] = 1.0 * params["encoder"]["kernel"]
  expected["unet"]["in"]["kernel"] = 0.5 * params["unet"]["in"]["kernel"]
  assert_close(updates, expected)


def test_default_decay_spares_biases_and_scales():
  params = make_params()
  zeros = jax.tree.map(jnp.zeros_like, params)
  tx = optimizers.adamw(weight_decay=0.5).tx
  updates, _ = tx.update(zeros, tx.init(params), params)
  moved = {
    name
    for name, update in traverse_util.flatten_dict(updates, sep="/").items()
    if update.any()
  }
  assert moved == {"encoder/kernel", "unet/in/kernel"}


def test_learning_rate_rules_multiply_the_update():
  params = make_params()
  rules = [("unet/in/.*", 0.25), (".*", 1.0)]
  plain, ruled = optimizers.lion(), optimizers.lion(learning_rate_rules=rules)
  grads = gradients(params, 0)
  a, _ = plain.tx.update(grads, plain.tx.init(params), params)
  b, _ = ruled.tx.update(grads, ruled.tx.init(params), params)
  assert_close(b["unet"]["in"], jax.tree.map(lambda x: x / 4, a["unet"]["in"]))
  assert_equal(b["encoder"], a["encoder"])


@pytest.mark.parametrize(
  "factory", [optimizers.adamw, optimizers.lion, optimizers.adafactor]
)
def test_frozen_parameters_keep_their_bits_and_hold_no_state(factory):
  params = make_params()
  definition = factory(weight_decay=0.1, freeze_rules=FREEZE_ENCODER)
  got = run(definition.tx, params, 0.1)
  assert_equal(got["encoder"], params["encoder"])
  assert not np.allclose(got["unet"]["norm"]["scale"],
                         params["unet"]["norm"]["scale"])  # fmt: skip
  state = definition.tx.init(params)
  names = [
    jax.tree_util.keystr(path, simple=True, separator="/")
    for path, _ in jax.tree_util.tree_flatten_with_path(state)[0]
  ]
  assert any("unet/in/kernel" in name for name in names)
  assert not any("encoder" in name for name in names)


def test_frozen_gradients_do_not_count_towards_the_clipped_norm():
  params = make_params()
  grads = gradients(params, 0)
  huge = dict(grads, encoder={"kernel": jnp.full((3, 4), 1e6)})
  tx = optimizers.adafactor(
    clip_norm=0.1, clipping_threshold=None, freeze_rules=FREEZE_ENCODER
  ).tx
  a, _ = tx.update(grads, tx.init(params), params)
  b, _ = tx.update(huge, tx.init(params), params)
  assert_equal(a, b)


@pytest.mark.parametrize(
  "rules",
  ["weight_decay_rules", "learning_rate_rules", "freeze_rules"],
)
def test_an_unmatched_parameter_is_named(rules):
  value = rules != "freeze_rules"
  definition = optimizers.adamw(**{rules: [("unet/in/kernel", float(value))]})
  with pytest.raises(ValueError, match="unet/norm/scale") as error:
    definition.tx.init(make_params())
  assert "unet/in/bias" in str(error.value)
  assert "unet/in/kernel'" not in str(error.value).split("Rules")[0]


def test_patterns_match_whole_names():
  with pytest.raises(ValueError, match="No rule matches"):
    optimizers.match_rules([("unet", 1.0), ("enc.*", 1.0)], make_params())


def test_freezing_nothing_and_freezing_all_are_errors():
  typo = optimizers.adamw(freeze_rules=[("encodr/.*", True), (".*", False)])
  with pytest.raises(ValueError, match=re.escape("'encodr/.*' matches no")):
    typo.tx.init(make_params())
  with pytest.raises(ValueError, match="every parameter"):
    optimizers.adamw(freeze_rules=[(".*", True)]).tx.init(make_params())


def test_bad_clip_norm_is_refused():
  with pytest.raises(ValueError, match="clip_norm"):
    optimizers.adamw(clip_norm=0.0)


# --- The protocol, replayed as T5X's trainer and checkpointer use it. ---

AXES = {
  "encoder": {"kernel": ("embed", "mlp")},
  "unet": {
    "in": {"kernel": ("conv_in", "conv_out"), "bias": ("conv_out",)},
    "norm": {"scale": ("channels",)},
  },
}
DEFINITIONS = {
  "adamw": optimizers.adamw(freeze_rules=FREEZE_ENCODER),
  "lion": optimizers.lion(learning_rate_rules=EVERYTHING),
  "adafactor": optimizers.adafactor(min_dim_size_to_factor=4, momentum=0.9),
}


@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize("name", DEFINITIONS)
def test_protocol_of_t5x(name, freeze):
  definition = DEFINITIONS[name]
  params = flax.core.freeze(make_params()) if freeze else make_params()
  assert not hasattr(definition, "set_param_axes")
  optimizer = jax.eval_shape(definition.create, params)
  optimizer = jax.jit(definition.create)(params)
  step = jax.jit(lambda o, g, lr: o.apply_gradient(g, learning_rate=lr))
  for i in range(3):
    optimizer = step(optimizer, gradients(optimizer.target, i), 0.1)
  assert optimizer.state.step == 3 and optimizer.state.step.dtype == jnp.int32
  assert_close(
    flax.core.unfreeze(optimizer.target),
    run(definition.tx, make_params(), 0.1, steps=3),
  )
  assert type(optimizer.target) is type(params)

  # Saved as nested dicts of arrays, restored into a fresh optimizer.
  saved = optimizer.state_dict()
  assert set(saved) == {"target", "state"}
  assert set(saved["state"]) == {"step", "param_states"}
  stored = serialization.msgpack_restore(serialization.msgpack_serialize(saved))
  fresh = definition.create(params).restore_state(stored)
  assert jax.tree.structure(fresh) == jax.tree.structure(optimizer)
  assert_equal(fresh, optimizer)
  assert_equal(
    fresh.replace(target=params).apply_gradient(params, 0.1).target,
    optimizer.replace(target=params).apply_gradient(params, 0.1).target,
  )


def test_restore_names_what_is_missing():
  definition = optimizers.adamw()
  optimizer = definition.create(make_params())
  saved = optimizer.state_dict()
  flat = traverse_util.flatten_dict(saved["state"], sep="/")
  gone = next(name for name in flat if name.endswith("nu/unet/in/bias"))
  del flat[gone]
  saved["state"] = traverse_util.unflatten_dict(flat, sep="/")
  with pytest.raises(ValueError, match=gone):
    optimizer.restore_state(saved)


@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize("name", DEFINITIONS)
def test_logical_axes_of_moments_are_those_of_their_parameter(name, freeze):
  definition = DEFINITIONS[name]
  params, axes = make_params(), AXES
  spec = jax.sharding.PartitionSpec
  axes = jax.tree.map(
    lambda names: spec(*names), axes, is_leaf=lambda x: isinstance(x, tuple)
  )
  if freeze:
    params, axes = flax.core.freeze(params), flax.core.freeze(axes)
  optimizer = jax.eval_shape(definition.create, params)
  derived = definition.derive_logical_axes(optimizer, axes)
  target = flax.core.unfreeze(derived.target)
  assert target["unet"]["in"]["kernel"] == spec("conv_in", "conv_out")
  flat = traverse_util.flatten_dict(derived.state_dict()["state"], sep="/")
  shapes = traverse_util.flatten_dict(optimizer.state_dict()["state"], sep="/")
  assert flat["step"] is None
  moments = {k: v for k, v in flat.items() if k.endswith("/unet/in/kernel")}
  assert spec("conv_in", "conv_out") in moments.values()
  for path, names in moments.items():
    whole = shapes[path].shape == (4, 6)
    assert names == (spec("conv_in", "conv_out") if whole else None), path


# --- Learning rates. ---


def test_constant():
  value = optimizers.constant(0.3)(jnp.int32(7))
  assert value.dtype == jnp.float32 and value == np.float32(0.3)


def test_warmup_cosine_closed_form():
  rate = optimizers.warmup_cosine(
    2.0, warmup_steps=10, total_steps=110, final_fraction=0.1
  )
  steps = np.array([0, 4, 9, 10, 60, 110, 500])
  expected = [0.2, 1.0, 2.0, 2.0, 2.0 * 0.55, 0.2, 0.2]
  got = jax.jit(jax.vmap(rate))(steps)
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_warmup_rsqrt_closed_form():
  rate = optimizers.warmup_rsqrt(2.0, warmup_steps=100)
  np.testing.assert_allclose(
    [rate(s) for s in (0, 49, 99, 100, 400, 10_000)],
    [0.02, 1.0, 2.0, 2.0, 1.0, 0.2],
    rtol=1e-6,
  )


def test_bad_schedules_are_refused():
  with pytest.raises(ValueError, match="warmup_steps"):
    optimizers.warmup_cosine(1.0, warmup_steps=-1, total_steps=10)
  with pytest.raises(ValueError, match="warmup_steps"):
    optimizers.warmup_rsqrt(1.0, warmup_steps=0)


def test_a_run_shorter_than_its_warmup_is_all_warmup() -> None:
  rate = optimizers.warmup_cosine(1.0, warmup_steps=10, total_steps=5)
  np.testing.assert_allclose([rate(0), rate(4)], [0.1, 0.5], rtol=1e-6)
