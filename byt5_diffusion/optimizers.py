"""Optimizers with the learning rate outside, by regex policies.

A factory (adamw, lion, adafactor) returns an OptimizerDef. Its `tx` gives
unscaled descent updates: params <- params - learning_rate * updates.

Policies are (regex, value) lists over parameter names ("unet/.../kernel"). The
first pattern that matches the whole name wins; a parameter that none matches
is an error.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from byt5_diffusion import optimizer_def

PyTree = Any
PolicyRules = Sequence[tuple[str, float]]
OptimizerDef = optimizer_def.OptimizerDef
LearningRateFn = Callable[[Any], jax.Array]

# Norm scales, biases and position tables are not pulled towards zero.
DEFAULT_WEIGHT_DECAY_RULES: PolicyRules = (
  (r"(.*/)?kernel", 1.0),
  (r"(.*/)?embedding", 1.0),
  (r".*", 0.0),
)


def _name(path: Any) -> str:
  return jax.tree_util.keystr(path, simple=True, separator="/")


def match_rules(rules: Sequence[tuple[str, Any]], params: PyTree) -> PyTree:
  """The value of the first rule matching each parameter's whole name.

  Raises:
    ValueError: naming every parameter that no rule matches.
  """
  compiled = [(re.compile(pattern), value) for pattern, value in rules]
  unmatched = []

  def find(path: Any, _: Any) -> Any:
    name = _name(path)
    for pattern, value in compiled:
      if pattern.fullmatch(name):
        return value
    unmatched.append(name)
    return None

  values = jax.tree_util.tree_map_with_path(find, params)
  if unmatched:
    raise ValueError(
      f"No rule matches {len(unmatched)} parameter(s): {unmatched}. Rules:"
      f" {[pattern for pattern, _ in rules]}; end them with ('.*', value)."
    )
  return values


def _stateless(
  update: Callable[[PyTree, PyTree], PyTree], rules: PolicyRules
) -> optax.GradientTransformation:
  def init(params: PyTree) -> optax.EmptyState:
    match_rules(rules, params)  # Fails when training starts, not later.
    return optax.EmptyState()

  def apply(updates: PyTree, state: Any, params: PyTree = None) -> Any:
    return update(updates, params), state

  return optax.GradientTransformation(init, apply)


def decay_weights(
  weight_decay: float, rules: PolicyRules
) -> optax.GradientTransformation:
  """updates + weight_decay * value * params, value from rules."""

  def update(updates: PyTree, params: PyTree) -> PyTree:
    values = match_rules(rules, updates)
    return jax.tree.map(
      lambda u, p, v: u + weight_decay * v * p if v else u,
      updates,
      params,
      values,
    )

  return _stateless(update, rules)


def scale_by_rules(rules: PolicyRules) -> optax.GradientTransformation:
  """updates * value: a learning rate of its own for some parameters."""

  def update(updates: PyTree, _: PyTree) -> PyTree:
    values = match_rules(rules, updates)
    return jax.tree.map(lambda u, v: u * v, updates, values)

  return _stateless(update, rules)


def freeze(
  tx: optax.GradientTransformation, rules: Sequence[tuple[str, bool]]
) -> optax.GradientTransformation:
  """tx for parameters whose rule is False; True: no update and no state.

  Raises (when the state is created):
    ValueError: nothing is left to train, or a pattern that should freeze
      matches no parameter at all.
  """

  def label(params: PyTree) -> PyTree:
    frozen = match_rules(rules, params)
    return jax.tree.map(lambda f: "freeze" if f else "train", frozen)

  inner = optax.multi_transform(
    {"train": tx, "freeze": optax.set_to_zero()}, label
  )

  def init(params: PyTree) -> Any:
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    names = [_name(path) for path, _ in leaves]
    for pattern, value in rules:
      if value and not any(re.fullmatch(pattern, name) for name in names):
        raise ValueError(
          f"freeze_rules: {pattern!r} matches no parameter; the first names"
          f" are {names[:3]}."
        )
    if "train" not in jax.tree.leaves(label(params)):
      raise ValueError("freeze_rules freeze every parameter.")
    return inner.init(params)

  return optax.GradientTransformation(init, inner.update)


def _assemble(
  *transforms: optax.GradientTransformation,
  clip_norm: float | None,
  weight_decay: float,
  weight_decay_rules: PolicyRules,
  learning_rate_rules: PolicyRules | None,
  freeze_rules: Sequence[tuple[str, bool]] | None,
) -> OptimizerDef:
  """clip, the optimizer proper, decay, multipliers; all within freezing."""
  chain = list(transforms)
  if clip_norm is not None:
    if clip_norm <= 0:
      raise ValueError(f"{clip_norm=} must be positive, or None for no limit.")
    chain.insert(0, optax.clip_by_global_norm(clip_norm))
  if weight_decay:
    chain.append(decay_weights(weight_decay, weight_decay_rules))
  if learning_rate_rules is not None:
    chain.append(scale_by_rules(learning_rate_rules))
  tx = optax.chain(*chain)
  if freeze_rules is not None:
    tx = freeze(tx, freeze_rules)
  return OptimizerDef(tx)


def adamw(
  *,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  mu_dtype: str | None = None,
  weight_decay: float = 0.01,
  clip_norm: float | None = 1.0,
  weight_decay_rules: PolicyRules = DEFAULT_WEIGHT_DECAY_RULES,
  learning_rate_rules: PolicyRules | None = None,
  freeze_rules: Sequence[tuple[str, bool]] | None = None,
) -> OptimizerDef:
  """AdamW (Loshchilov & Hutter 2019): m / (sqrt(v) + eps) + decay * params.

  Args:
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: added to the root of the second moment.
    mu_dtype: dtype of the first moment; None = that of the parameter.
    weight_decay: times the rule's value, times the learning rate.
    clip_norm: limit of the global norm of the trained gradients, or None.
    weight_decay_rules: (regex, multiplier of weight_decay).
    learning_rate_rules: (regex, multiplier of the learning rate).
    freeze_rules: (regex, True to freeze).
  """
  return _assemble(
    optax.scale_by_adam(b1=b1, b2=b2, eps=eps, mu_dtype=mu_dtype),
    clip_norm=clip_norm,
    weight_decay=weight_decay,
    weight_decay_rules=weight_decay_rules,
    learning_rate_rules=learning_rate_rules,
    freeze_rules=freeze_rules,
  )


def lion(
  *,
  b1: float = 0.9,
  b2: float = 0.99,
  mu_dtype: str | None = None,
  weight_decay: float = 0.1,
  clip_norm: float | None = 1.0,
  weight_decay_rules: PolicyRules = DEFAULT_WEIGHT_DECAY_RULES,
  learning_rate_rules: PolicyRules | None = None,
  freeze_rules: Sequence[tuple[str, bool]] | None = None,
) -> OptimizerDef:
  """Lion (Chen et al. 2023): sign(b1 m + (1 - b1) g) + decay * params.

  Arguments as of adamw; b2 is the decay of the momentum m.
  """
  return _assemble(
    optax.scale_by_lion(b1=b1, b2=b2, mu_dtype=mu_dtype),
    clip_norm=clip_norm,
    weight_decay=weight_decay,
    weight_decay_rules=weight_decay_rules,
    learning_rate_rules=learning_rate_rules,
    freeze_rules=freeze_rules,
  )


def adafactor(
  *,
  decay_rate: float = 0.8,
  min_dim_size_to_factor: int = 128,
  clipping_threshold: float | None = 1.0,
  multiply_by_parameter_scale: bool = False,
  momentum: float | None = None,
  momentum_dtype: str = "float32",
  eps: float = 1e-30,
  weight_decay: float = 0.0,
  clip_norm: float | None = None,
  weight_decay_rules: PolicyRules = DEFAULT_WEIGHT_DECAY_RULES,
  learning_rate_rules: PolicyRules | None = None,
  freeze_rules: Sequence[tuple[str, bool]] | None = None,
) -> OptimizerDef:
  """Adafactor (Shazeer & Stern 2018): g / sqrt(factored second moment).

  Args:
    decay_rate: the second moment decays by 1 - t^-decay_rate.
    min_dim_size_to_factor: smaller matrices keep the whole second moment.
    clipping_threshold: limit of the RMS of one parameter's update, or None.
    multiply_by_parameter_scale: makes the learning rate relative to the RMS of
      the parameter (T5X trains with True).
    momentum: decay of an average of the updates; None = none.
    momentum_dtype: dtype of that average.
    eps: added to the squared gradient.
    weight_decay: as of adamw, and the rest likewise.
  """
  transforms = [
    optax.scale_by_factored_rms(
      decay_rate=decay_rate,
      min_dim_size_to_factor=min_dim_size_to_factor,
      epsilon=eps,
    )
  ]
  if clipping_threshold is not None:
    transforms.append(optax.clip_by_block_rms(clipping_threshold))
  if multiply_by_parameter_scale:
    transforms.append(optax.scale_by_param_block_rms())
  if momentum is not None:
    transforms.append(
      optax.ema(momentum, debias=False, accumulator_dtype=momentum_dtype)
    )
  return _assemble(
    *transforms,
    clip_norm=clip_norm,
    weight_decay=weight_decay,
    weight_decay_rules=weight_decay_rules,
    learning_rate_rules=learning_rate_rules,
    freeze_rules=freeze_rules,
  )


def constant(value: float) -> LearningRateFn:
  """learning_rate(step) = value."""
  return lambda step: jnp.full(jnp.shape(step), value, jnp.float32)


def _warmup(step: jax.Array, warmup_steps: int) -> jax.Array:
  # The first step already learns: a rate of 0 would waste it.
  return jnp.minimum((step + 1.0) / max(warmup_steps, 1), 1.0)


def warmup_cosine(
  peak: float,
  warmup_steps: int,
  total_steps: int,
  final_fraction: float = 0.0,
) -> LearningRateFn:
  """Linear to peak, then half a cosine to final_fraction * peak.

  The rate of step warmup_steps is peak, that of total_steps (and later ones)
  final_fraction * peak. A run that is shorter than its warm-up, a first try of
  a recipe, never leaves it.
  """
  if warmup_steps < 0 or total_steps < 1:
    raise ValueError(f"{warmup_steps=} or {total_steps=} is too small.")

  def learning_rate(step: Any) -> jax.Array:
    step = jnp.asarray(step, jnp.float32)
    done = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    cosine = 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.clip(done, 0.0, 1.0)))
    decay = final_fraction + (1.0 - final_fraction) * cosine
    return jnp.float32(peak) * _warmup(step, warmup_steps) * decay

  return learning_rate


def warmup_rsqrt(peak: float, warmup_steps: int) -> LearningRateFn:
  """Linear to peak, then peak * sqrt(warmup_steps / step)."""
  if warmup_steps < 1:
    raise ValueError(f"{warmup_steps=} must be positive.")

  def learning_rate(step: Any) -> jax.Array:
    step = jnp.asarray(step, jnp.float32)
    decay = jnp.sqrt(warmup_steps / jnp.maximum(step, warmup_steps))
    return jnp.float32(peak) * _warmup(step, warmup_steps) * decay

  return learning_rate
