"""Losses of single examples: [B] before any reduction over the batch.

Each is the weighted mean over the example's own elements, in float32, so that
neither the size of a bucket nor the batch mates change what an example weighs.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def denoising_loss(prediction: Array, target: Array, weight: Array) -> Array:
  """weight * mean (prediction - target)^2: [B, ...], [B, ...], [B] -> [B].

  Raises:
    ValueError: on shapes that differ, which broadcasting would hide.
  """
  if prediction.shape != target.shape or weight.shape != target.shape[:1]:
    raise ValueError(
      f"prediction {prediction.shape} and target {target.shape} must have one "
      f"shape [B, ...], and weight {weight.shape} must be [B]."
    )
  error = prediction.astype(jnp.float32) - target.astype(jnp.float32)
  mean = jnp.mean(jnp.square(error), axis=tuple(range(1, error.ndim)))
  return weight.astype(jnp.float32) * mean


def variance_loss(
  fraction: Array,
  x0: Array,
  predicted_x0: Array,
  log_snr_t: Array,
  log_snr_s: Array,
) -> Array:
  """KL(q(x_s | x_t, x0) || p(x_s | x_t)) in nats per element: [B].

  What teaches a network the variance of a step (Nichol & Dhariwal 2021, sec.
  3.1). Both are normal; the log variance of p lies `fraction` of the way d =
  log(sigma_t^2 / sigma_s^2) above q's, so with e = e^(-fraction d)

    KL = (fraction d - 1 + e + e (SNR_s - SNR_t) (x0 - predicted_x0)^2) / 2.

  Args:
    fraction: [B, ...], Denoised.log_variance.
    x0, predicted_x0: [B, ...]; no gradient goes into predicted_x0, which the
      denoising loss teaches.
    log_snr_t, log_snr_s: [B], where the step starts and ends, finite.
  """
  like = (-1,) + (1,) * (x0.ndim - 1)
  d = jax.nn.log_sigmoid(-log_snr_t) - jax.nn.log_sigmoid(-log_snr_s)
  gain = jnp.exp(log_snr_s) - jnp.exp(log_snr_t)
  shift = fraction.astype(jnp.float32) * d.reshape(like)
  error = jnp.square(x0 - jax.lax.stop_gradient(predicted_x0))
  error *= gain.reshape(like)
  # expm1 and its argument nearly cancel where the two variances agree.
  divergence = shift + jnp.expm1(-shift) + jnp.exp(-shift) * error
  return jnp.mean(divergence / 2, axis=tuple(range(1, x0.ndim)))


def cross_entropy(logits: Array, targets: Array, weights: Array) -> Array:
  """Weighted mean of -log softmax(logits)[target] over each row's tokens.

  Args:
    logits: [B, T, V] of any float type.
    targets: [B, T] int32 token ids.
    weights: [B, T], 0 for padding, 1 for real tokens.

  Returns:
    [B] float32, in nats per token; 0 for a row without a real token.
  """
  if targets.shape != logits.shape[:-1] or weights.shape != targets.shape:
    raise ValueError(
      f"logits {logits.shape} must be [B, T, V], and targets {targets.shape} "
      f"and weights {weights.shape} [B, T]."
    )
  log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
  picked = jnp.take_along_axis(log_probs, targets[..., None], axis=-1)
  return masked_mean(-picked[..., 0], weights, axis=-1)


def masked_mean(x: Array, mask: Array, axis: int | None = None) -> Array:
  """sum(mask x) / sum(mask), along `axis` or over all; 0 where mask is all 0.

  Args:
    x: any shape. Its masked elements may be anything, NaN and inf included.
    mask: bool, or weights >= 0, of x's shape.
  """
  if x.shape != mask.shape:
    raise ValueError(f"x {x.shape} and mask {mask.shape} must share a shape.")
  mask = mask.astype(jnp.float32)
  total = jnp.sum(
    jnp.where(mask > 0, x.astype(jnp.float32), 0.0) * mask, axis=axis
  )
  count = jnp.sum(mask, axis=axis)
  return total / jnp.where(count > 0, count, 1.0)
