"""UniPC: a predictor and a corrector that share each pass (Zhao et al. 2023).

Each step first corrects the latents that it is given, now that the network has
seen them, and then predicts those of the next level.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from byt5_diffusion import diffusion, samplers

Array = jax.Array


class Memory(NamedTuple):
  """What the last two steps leave behind; all zeros before the first.

  Attributes:
    latents: [B, ...], corrected, where the last step started from.
    x0, earlier_x0: [B, ...], the answers of the last two passes.
    log_snr, earlier_log_snr: [B], where they were asked; -inf for never.
  """

  latents: Array
  x0: Array
  earlier_x0: Array
  log_snr: Array
  earlier_log_snr: Array


def unipc() -> samplers.Sampler:
  """UniPC-2 for x0 with B(h) = e^h - 1 ("bh2"; alg. 5 to 8); deterministic.

  In half log_snr, from t to s, h long, with h' the step before it,

    x_s = sigma_s / sigma_t x_t + alpha_s (1 - e^-h) (x0_t + P),
    P = (h / 2 h') (x0_t - x0_t')           for the predictor,
    P = r1 (x0_t' - x0_t) (-h / h') + r2 (x0_s - x0_t)   for the corrector,

  whose r1, r2 make it exact for x0 that is quadratic in half log_snr. The
  first step is DDIM's, its corrector takes the mean of both ends (r2 = 1 / 2),
  and the step to clean is DDIM's, too. One pass a step.
  """

  def init(noisy_latents: Array) -> Memory:
    nothing = jnp.zeros_like(noisy_latents)
    never = jnp.full(noisy_latents.shape[:1], -jnp.inf)
    return Memory(nothing, nothing, nothing, never, never)

  def step(
    denoise_fn: samplers.DenoiseFn,
    memory: Memory,
    noisy_latents: Array,
    log_snr_t: Array,
    log_snr_s: Array,
    rngs: Array | None,
  ) -> tuple[Memory, Array]:
    del rngs
    x0 = denoise_fn(noisy_latents, log_snr_t).x0
    corrected = _correct(memory, x0, log_snr_t)
    is_first = diffusion.expand(jnp.isneginf(memory.log_snr), x0)
    latents = jnp.where(is_first, noisy_latents, corrected)
    predicted = _predict(memory, latents, x0, log_snr_t, log_snr_s)
    memory = Memory(latents, x0, memory.x0, log_snr_t, memory.log_snr)
    return memory, predicted

  return samplers.Sampler(init, step)


def _predict(
  memory: Memory, latents: Array, x0: Array, log_snr_t: Array, log_snr_s: Array
) -> Array:
  """From t to s by x0 at t and at the level before."""
  h = (log_snr_s - log_snr_t) / 2
  # A step to clean, infinitely long, must not extrapolate.
  ratio = jnp.where(jnp.isposinf(h), 0.0, h) / (log_snr_t - memory.log_snr)
  slope = diffusion.expand(ratio, x0) * (x0 - memory.x0)
  return _exponential(latents, x0 + slope, log_snr_t, log_snr_s)


def _correct(memory: Memory, x0: Array, log_snr: Array) -> Array:
  """The last step once more, knowing x0 at its end; NaN for the first."""
  h = (log_snr - memory.log_snr) / 2
  # Of the level before the last step, in steps; -inf if there was none.
  place = (memory.earlier_log_snr - memory.log_snr) / 2 / h
  first, second = _moments(h)
  early = (first - second) / (1 - place)
  late = jnp.where(jnp.isneginf(place), 0.5, first - early)
  d = diffusion.expand(early / place, x0) * (memory.earlier_x0 - memory.x0)
  d += diffusion.expand(late, x0) * (x0 - memory.x0)
  return _exponential(memory.latents, memory.x0 + d, memory.log_snr, log_snr)


def _exponential(
  latents: Array, x0: Array, log_snr_t: Array, log_snr_s: Array
) -> Array:
  """sigma_s / sigma_t latents + alpha_s (1 - e^-h) x0: for constant x0."""
  h = (log_snr_s - log_snr_t) / 2
  _, sigma_t = diffusion.log_snr_to_alpha_sigma(log_snr_t)
  alpha_s, sigma_s = diffusion.log_snr_to_alpha_sigma(log_snr_s)
  latents = diffusion.expand(sigma_s / sigma_t, x0) * latents
  return latents - diffusion.expand(alpha_s * jnp.expm1(-h), x0) * x0


def _moments(h: Array) -> tuple[Array, Array]:
  """What a straight and a squared course of x0 over a step of h count.

  The integral of u^k e^-(1 - u) h over u in [0, 1], over that of 1: h [B] ->
  [B], [B] for k = 1 and 2.
  """
  small = jnp.abs(h) < 0.5
  # Neither form may see the other's h: 0 / 0, or a series far from home.
  x = jnp.where(small, 1.0, -h)
  phi_1 = jnp.expm1(x)
  phi_2 = phi_1 / x - 1
  phi_3 = phi_2 / x - 0.5
  y = jnp.where(small, -h, 0.0)
  # phi_k y^-k = sum over j of y^j / (j + k)!
  series = [
    sum(y**j / math.factorial(j + k) for j in range(9)) for k in (1, 2, 3)
  ]
  first = jnp.where(small, series[1] / series[0], phi_2 / phi_1)
  second = jnp.where(small, 2 * series[2] / series[0], 2 * phi_3 / phi_1)
  return first, second
