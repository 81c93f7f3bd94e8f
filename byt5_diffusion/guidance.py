"""Decorators of denoise_fn: guidance, and the thresholding it makes needed.

A denoise_fn is samplers.py's view of a network. Apply these inside out:

  denoise_fn = guide(denoise_fn, null_denoise_fn, 7.5)
  denoise_fn = rescale_guidance(0.7)(denoise_fn)
  denoise_fn = dynamic_thresholding(0.995)(denoise_fn)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from byt5_diffusion import diffusion, samplers

Array = jax.Array
Decorator = Callable[[samplers.DenoiseFn], samplers.DenoiseFn]


def guide(
  denoise_fn: samplers.DenoiseFn,
  null_denoise_fn: samplers.DenoiseFn,
  guidance_scale: float | Array,
) -> samplers.DenoiseFn:
  """x0 = null + guidance_scale (cond - null) (Ho & Salimans 2022).

  Predictions of any type are affine in x0 with the same coefficients, so this
  equals guidance on them. log_variance stays the conditional one.

  Args:
    guidance_scale: a number, or an array of one per image [B]. The number 1
      returns denoise_fn itself: null_denoise_fn is never called.
  """
  if _is_one(guidance_scale):
    return denoise_fn

  def guided(noisy_latents: Array, log_snr: Array) -> samplers.Denoised:
    cond = denoise_fn(noisy_latents, log_snr)
    null = null_denoise_fn(noisy_latents, log_snr)
    return _combine(cond, null, guidance_scale)

  return guided


def guide_batched(
  denoise_pair_fn: samplers.DenoiseFn,
  guidance_scale: float | Array,
  denoise_fn: samplers.DenoiseFn | None = None,
) -> samplers.DenoiseFn:
  """`guide` with both conditions in one pass of twice the batch.

  Args:
    denoise_pair_fn: a denoise_fn of [2 B]; its condition is the captions' for
      the first B and the null condition for the other B.
    guidance_scale: as in `guide`.
    denoise_fn: the conditional one of [B], which guidance_scale 1 returns.
  """
  if _is_one(guidance_scale):
    if denoise_fn is None:
      raise ValueError(
        "guidance_scale 1 needs no null condition: pass denoise_fn."
      )
    return denoise_fn

  def guided(noisy_latents: Array, log_snr: Array) -> samplers.Denoised:
    both = denoise_pair_fn(
      jnp.concatenate([noisy_latents, noisy_latents]),
      jnp.concatenate([log_snr, log_snr]),
    )
    size = noisy_latents.shape[0]
    cond = jax.tree.map(lambda x: x[:size], both)
    null = jax.tree.map(lambda x: x[size:], both)
    return _combine(cond, null, guidance_scale)

  return guided


def rescale_guidance(strength: float = 0.7) -> Decorator:
  """Gives guided x0 the std of the conditional one (Lin et al. 2024, sec. 3.4).

  x0 is scaled by strength std(cond) / std(guided) + 1 - strength, each std over
  its own image: strength 0 is off. Without guidance inside it does nothing.
  """
  if not 0 <= strength <= 1:
    raise ValueError(f"{strength=} must lie in [0, 1].")

  def decorator(denoise_fn: samplers.DenoiseFn) -> samplers.DenoiseFn:
    def rescaled(noisy_latents: Array, log_snr: Array) -> samplers.Denoised:
      denoised = denoise_fn(noisy_latents, log_snr)
      if denoised.conditional_x0 is None:
        return denoised
      axes = tuple(range(1, denoised.x0.ndim))
      wanted = jnp.std(denoised.conditional_x0, axis=axes, keepdims=True)
      present = jnp.std(denoised.x0, axis=axes, keepdims=True)
      # A flat image has no std to restore; 0 / 0 would poison it.
      ratio = jnp.where(present > 0, wanted / jnp.maximum(present, 1e-12), 1.0)
      scale = strength * ratio + 1.0 - strength
      return denoised._replace(x0=scale * denoised.x0)

    return rescaled

  return decorator


def dynamic_thresholding(
  quantile: float = 0.995,
  bound: float = 1.0,
  max_threshold: float | None = None,
) -> Decorator:
  """x0 = clip(x0, -s, s) bound / s (Saharia et al. 2022, sec. 2.3).

  s = max(bound, quantile of |x0| over the image), but at most max_threshold
  (1.5 for DeepFloyd IF). For pixels only: latents have no bound.
  """
  if not 0 < quantile <= 1 or bound <= 0:
    raise ValueError(f"{quantile=} must lie in (0, 1], {bound=} above 0.")
  if max_threshold is not None and max_threshold < bound:
    raise ValueError(f"{max_threshold=} must be at least {bound=}.")

  def decorator(denoise_fn: samplers.DenoiseFn) -> samplers.DenoiseFn:
    def thresholded(noisy_latents: Array, log_snr: Array) -> samplers.Denoised:
      denoised = denoise_fn(noisy_latents, log_snr)
      x0 = denoised.x0.astype(jnp.float32)
      flat = jnp.abs(x0).reshape(x0.shape[0], -1)
      s = jnp.quantile(flat, quantile, axis=-1)
      s = jnp.clip(s, bound, max_threshold)
      s = diffusion.expand(s, x0)
      return denoised._replace(x0=jnp.clip(x0, -s, s) * (bound / s))

    return thresholded

  return decorator


def static_thresholding(bound: float = 1.0) -> Decorator:
  """x0 = clip(x0, -bound, bound) (Ho et al. 2020). For pixels only."""
  if bound <= 0:
    raise ValueError(f"{bound=} must be positive.")

  def decorator(denoise_fn: samplers.DenoiseFn) -> samplers.DenoiseFn:
    def thresholded(noisy_latents: Array, log_snr: Array) -> samplers.Denoised:
      denoised = denoise_fn(noisy_latents, log_snr)
      return denoised._replace(x0=jnp.clip(denoised.x0, -bound, bound))

    return thresholded

  return decorator


def compose(decorators: Sequence[Decorator]) -> Decorator:
  """One decorator of many; the first is innermost, next to the network."""

  def decorator(denoise_fn: samplers.DenoiseFn) -> samplers.DenoiseFn:
    for wrap in decorators:
      denoise_fn = wrap(denoise_fn)
    return denoise_fn

  return decorator


def _is_one(guidance_scale: float | Array) -> bool:
  """Whether it is known, before anything is traced, that guidance is off."""
  return isinstance(guidance_scale, (int, float)) and guidance_scale == 1


def _combine(
  cond: samplers.Denoised,
  null: samplers.Denoised,
  guidance_scale: float | Array,
) -> samplers.Denoised:
  if jnp.ndim(guidance_scale) == 1:
    guidance_scale = diffusion.expand(jnp.asarray(guidance_scale), cond.x0)
  x0 = null.x0 + guidance_scale * (cond.x0 - null.x0)
  return cond._replace(x0=x0, conditional_x0=cond.x0)
