"""Samplers: from noise to x0, knowing a network only as a denoise_fn.

  denoise_fn(noisy_latents [B, ...], log_snr [B]) -> Denoised(x0 [B, ...])

noisy_latents are float32 and always variance preserving (alpha^2 + sigma^2 =
1); log_snr is finite. What a network predicts, how it is told the noise level
and what it is conditioned on are settled inside the denoise_fn; guidance and
thresholding are decorators of it, in guidance.py.

A sampler steps from the level t to the cleaner level s. Levels are log_snr, so
a level of +inf is exactly clean: there every sampler answers x0 itself. The
noise that a step adds comes from one key per image: an image depends on its
own key, never on its batch mates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from byt5_diffusion import diffusion

Array = jax.Array

# How `log_snr_steps` may space its levels.
STEP_SPACINGS = ("uniform", "log_snr", "karras")
# The cleanest level that a DDPM of 1000 steps is trained on.
_CLEANEST_TIMESTEP = 1e-3
_LEAST_LOG_VARIANCE = math.log(1e-20)


class Denoised(NamedTuple):
  """What a denoise_fn knows of the clean latents.

  Attributes:
    x0: [B, ...], the mean of the clean latents given the noisy ones.
    log_variance: [B, ...] in [0, 1], from networks that learn the variance of
      a step, else None. It says where the log variance lies between its bounds,
      0 = posterior and 1 = forward (Nichol & Dhariwal 2021, eq. 15): only the
      sampler, which chooses the step, knows the bounds.
    conditional_x0: x0 before guidance, None where there was none.
  """

  x0: Array
  log_variance: Array | None = None
  conditional_x0: Array | None = None


DenoiseFn = Callable[[Array, Array], Denoised]


class Sampler(NamedTuple):
  """A pair of pure functions.

  Attributes:
    init: noisy_latents -> carry, the memory of a multistep solver or ().
    step: (denoise_fn, carry, noisy_latents [B, ...], log_snr_t [B],
      log_snr_s [B], rngs [B] keys or None) -> (carry, noisy_latents at s).
    scale_noise: start from sigma * noise instead of noise, as diffusers' Euler
      and Heun do with "trailing" and "linspace" steps.
  """

  init: Callable[[Array], Any]
  step: Callable[
    [DenoiseFn, Any, Array, Array, Array, Array | None], tuple[Any, Array]
  ]
  scale_noise: bool = False


# --- The loop ----------------------------------------------------------------


def log_snr_steps(
  schedule: diffusion.Schedule,
  num_steps: int,
  spacing: str = "uniform",
  *,
  log_snr_min: float = -9.0,
  log_snr_max: float = 12.5,
) -> Array:
  """The levels [num_steps + 1] of a sampler, from noise to clean (+inf).

  Args:
    spacing: "uniform" in time from t = 1 (for imported DDPMs: the "trailing"
      steps of Lin et al. 2024), "log_snr", or "karras", uniform in
      (sigma / alpha)^(1/7) (Karras et al. 2022, eq. 5).
    log_snr_min, log_snr_max: the ends of the "log_snr" and "karras" spacings;
      the defaults are about Karras's sigma of 80 and 0.002. The schedule's own
      range, and the cleanest level that DDPMs know, go before them.
  """
  if num_steps < 1:
    raise ValueError(f"{num_steps=} must be positive.")
  if spacing not in STEP_SPACINGS:
    *others, last = STEP_SPACINGS
    raise ValueError(f"{spacing=} must be {', '.join(others)} or {last}.")
  fractions = jnp.arange(num_steps, dtype=jnp.float32)
  if spacing == "uniform":
    levels = schedule.log_snr(1.0 - fractions / num_steps)
  else:
    ends = schedule.log_snr(jnp.array([1.0, _CLEANEST_TIMESTEP]))
    start = jnp.maximum(ends[0], log_snr_min)
    end = jnp.minimum(ends[1], log_snr_max)
    fractions = fractions / max(num_steps - 1, 1)
    if spacing == "log_snr":
      levels = start + fractions * (end - start)
    else:
      start, end = jnp.exp(-start / 14), jnp.exp(-end / 14)
      levels = -14.0 * jnp.log(start + fractions * (end - start))
  return jnp.append(levels, jnp.inf)


def sample(
  denoise_fn: DenoiseFn,
  sampler: Sampler,
  noise: Array,
  log_snrs: Array,
  rngs: Array | None = None,
) -> Array:
  """Runs from `noise` at log_snrs[0] to log_snrs[-1] in one lax.scan.

  Args:
    denoise_fn: evaluated at log_snrs[:-1] (by Heun between them also).
    noise: [B, ...], variance preserving at log_snrs[0]: unit normal if pure.
    log_snrs: [num_steps + 1], rising; see `log_snr_steps`. If the last is +inf
      the result is x0, else the noisy latents at that level. Or [num_steps, 2],
      for each step where it starts and where it ends.
    rngs: [B] keys, one per image; only stochastic samplers need them.

  Returns:
    [B, ...] float32.
  """

  return _run(
    lambda estimate: denoise_fn, sampler, noise, log_snrs, rngs, estimates=False
  )


def sample_with_estimates(
  denoise_fn_of: Callable[[Array], DenoiseFn],
  sampler: Sampler,
  noise: Array,
  log_snrs: Array,
  rngs: Array | None = None,
) -> Array:
  """`sample` for a network that sees its last estimate (Chen et al. 2022).

  Args:
    denoise_fn_of: estimate of x0 [B, ...] -> denoise_fn. The estimate is x0 of
      the step before, zeros at first; what a sampler asks for after a step's
      first evaluation gets that evaluation's x0.
    sampler, noise, log_snrs, rngs: as of `sample`.
  """
  return _run(denoise_fn_of, sampler, noise, log_snrs, rngs, estimates=True)


def _run(
  denoise_fn_of: Callable[[Array], DenoiseFn],
  sampler: Sampler,
  noise: Array,
  log_snrs: Array,
  rngs: Array | None,
  *,
  estimates: bool,
) -> Array:
  def body(state: Any, step: tuple[Array, Array, Array]) -> Any:
    carry, noisy_latents, estimate = state
    index, log_snr_t, log_snr_s = step
    seen = [estimate]

    def denoise(noisy_latents: Array, log_snr: Array) -> Denoised:
      denoise_fn = denoise_fn_of(seen[-1])
      denoised = _in_float32(denoise_fn)(noisy_latents, log_snr)
      # Only a step's first evaluation is surely outside of control flow.
      if estimates and len(seen) == 1:
        seen.append(denoised.x0)
      return denoised

    carry, noisy_latents = sampler.step(
      denoise,
      carry,
      noisy_latents,
      jnp.full(noise.shape[:1], log_snr_t),
      jnp.full(noise.shape[:1], log_snr_s),
      None if rngs is None else _fold_in(rngs, index),
    )
    return (carry, noisy_latents, seen[-1]), None

  noise = noise.astype(jnp.float32)
  log_snrs = jnp.asarray(log_snrs, jnp.float32)
  if log_snrs.ndim == 1 and log_snrs.size > 1:
    log_snrs = jnp.stack([log_snrs[:-1], log_snrs[1:]], axis=1)
  if log_snrs.ndim != 2 or log_snrs.shape[1] != 2 or not log_snrs.size:
    raise ValueError(
      "log_snrs must be [num_steps + 1] or [num_steps, 2]; got"
      f" {log_snrs.shape}."
    )
  if sampler.scale_noise:
    noise = noise * diffusion.log_snr_to_alpha_sigma(log_snrs[0, 0])[1]
  steps = (jnp.arange(len(log_snrs)), log_snrs[:, 0], log_snrs[:, 1])
  nothing = jnp.zeros_like(noise) if estimates else jnp.zeros(())
  start = (sampler.init(noise), noise, nothing)
  (_, latents, _), _ = jax.lax.scan(body, start, steps)
  return latents


def _in_float32(denoise_fn: DenoiseFn) -> DenoiseFn:
  """Networks may answer in bfloat16; the solver's state must not."""

  def denoise(noisy_latents: Array, log_snr: Array) -> Denoised:
    denoised = denoise_fn(noisy_latents, log_snr)
    if denoised.x0.shape != noisy_latents.shape:
      raise ValueError(
        f"denoise_fn answered x0 of shape {denoised.x0.shape} for "
        f"noisy_latents of shape {noisy_latents.shape}."
      )
    return jax.tree.map(lambda x: x.astype(jnp.float32), denoised)

  return denoise


def _fold_in(rngs: Array, data: Array) -> Array:
  return jax.vmap(jax.random.fold_in, in_axes=(0, None))(rngs, data)


def _normal(rngs: Array | None, like: Array) -> Array:
  """Unit normal draws of like's shape, each image's from its own key."""
  if rngs is None:
    raise ValueError("A stochastic sampler needs rngs, one key per image.")
  return jax.vmap(lambda rng: jax.random.normal(rng, like.shape[1:]))(rngs)


# --- Samplers ----------------------------------------------------------------


def ddim(eta: float = 0.0) -> Sampler:
  """x_s = alpha_s x0 + sqrt(sigma_s^2 - d^2) noise + d z (Song et al. 2021).

  d^2 = eta^2 sigma_s^2 (1 - SNR_t / SNR_s); equations 12 and 16. eta = 0 is
  deterministic, eta = 1 is the ancestral sampler of DDPM.
  """
  if not 0 <= eta <= 1:
    raise ValueError(f"{eta=} must lie in [0, 1].")

  def step(
    denoise_fn: DenoiseFn,
    carry: Any,
    noisy_latents: Array,
    log_snr_t: Array,
    log_snr_s: Array,
    rngs: Array | None,
  ) -> tuple[Any, Array]:
    x0 = denoise_fn(noisy_latents, log_snr_t).x0
    noise = diffusion.to_noise(x0, noisy_latents, log_snr_t)
    if eta > 0:
      log_ratio = diffusion.expand(log_snr_t - log_snr_s, noise)
      fresh = -jnp.expm1(log_ratio)
      # 1 - eta^2 fresh, without its cancellation at eta = 1.
      kept = (1.0 - eta**2) + eta**2 * jnp.exp(log_ratio)
      noise = jnp.sqrt(kept) * noise
      noise += eta * jnp.sqrt(fresh) * _normal(rngs, noise)
    return carry, diffusion.add_noise(x0, noise, log_snr_s)

  return Sampler(_no_memory, step)


def ddpm(variance: str = "posterior", noise_at_end: bool = False) -> Sampler:
  """Ancestral sampling, x_s ~ q(x_s | x_t, x0) (Ho et al. 2020, sec. 3.2).

  With c = 1 - SNR_t / SNR_s (Kingma et al. 2021),

    mean = (alpha_t sigma_s^2) / (alpha_s sigma_t^2) x_t + alpha_s c x0.

  Args:
    variance: "posterior", sigma_s^2 c (the variance if the data were a point);
      "forward", sigma_t^2 c (if they were unit normal); or "learned", as the
      network places it between the two.
    noise_at_end: add noise to the clean image, too, where `variance` says so:
      what diffusers' DDPMScheduler does unless its last timestep is 0.
  """
  if variance not in ("posterior", "forward", "learned"):
    raise ValueError(f"{variance=} must be posterior, forward or learned.")

  def log_variance(
    denoised: Denoised, log_snr_t: Array, log_snr_s: Array
  ) -> Array:
    log_fresh = jnp.log(-jnp.expm1(log_snr_t - log_snr_s))
    forward = jax.nn.log_sigmoid(-log_snr_t) + log_fresh
    if variance == "forward":
      return forward
    # Clean has no variance, and no logarithm of it: bounded, as in diffusers.
    posterior = jax.nn.log_sigmoid(-log_snr_s) + log_fresh
    posterior = jnp.maximum(posterior, _LEAST_LOG_VARIANCE)
    if variance == "posterior":
      return posterior
    if denoised.log_variance is None:
      raise ValueError(
        "variance='learned' needs a network that predicts its variance: this "
        "denoise_fn leaves log_variance None."
      )
    return posterior + denoised.log_variance * (forward - posterior)

  def step(
    denoise_fn: DenoiseFn,
    carry: Any,
    noisy_latents: Array,
    log_snr_t: Array,
    log_snr_s: Array,
    rngs: Array | None,
  ) -> tuple[Any, Array]:
    denoised = denoise_fn(noisy_latents, log_snr_t)
    z = _normal(rngs, noisy_latents)
    log_snr_t = diffusion.expand(log_snr_t, z)
    log_snr_s = diffusion.expand(log_snr_s, z)
    alpha_t, sigma_t = diffusion.log_snr_to_alpha_sigma(log_snr_t)
    alpha_s, sigma_s = diffusion.log_snr_to_alpha_sigma(log_snr_s)
    fresh = -jnp.expm1(log_snr_t - log_snr_s)
    mean = alpha_t / alpha_s * jnp.square(sigma_s / sigma_t) * noisy_latents
    mean += alpha_s * fresh * denoised.x0
    std = jnp.exp(log_variance(denoised, log_snr_t, log_snr_s) / 2)
    if not noise_at_end:
      # Clean is clean: the forward variance would not vanish there.
      std = jnp.where(jnp.isposinf(log_snr_s), 0.0, std)
    return carry, mean + std * z

  return Sampler(_no_memory, step)


def euler(scale_noise: bool = False) -> Sampler:
  """Euler's step on the probability flow ODE (Karras et al. 2022, alg. 1).

  In x / alpha over sigma / alpha, and likewise in x / (alpha + sigma) over the
  time of flow matching, the slope is made of x0 and noise alone; an Euler step
  holds both, and so is DDIM's with eta = 0.

  Args:
    scale_noise: see Sampler.
  """
  return ddim(eta=0.0)._replace(scale_noise=scale_noise)


def euler_ancestral(eta: float = 1.0, scale_noise: bool = False) -> Sampler:
  """Euler down to sigma_down, then noise up to s: DDIM's step with this eta.

  In x / alpha, sigma_up = eta sigma_s sqrt(1 - SNR_t / SNR_s) and sigma_down =
  sqrt(sigma_s^2 - sigma_up^2), which are DDIM's two coefficients.
  """
  return ddim(eta=eta)._replace(scale_noise=scale_noise)


def heun(time: str = "flow", scale_noise: bool = False) -> Sampler:
  """Heun's second-order step on the ODE of flow matching; two passes a step.

  With z = x / (alpha + sigma) and u = sigma / (alpha + sigma), dz / du = noise
  - x0; the step follows the mean of the slopes at t and at Euler's guess of s
  (Karras et al. 2022, alg. 1). This time ends at 1, so levels may start at zero
  SNR; Karras's own, sigma / alpha, runs to infinity there, and a first step of
  thousands would amplify the difference of the slopes. The step to clean is
  Euler's, its second pass unused.

  Args:
    time: "flow", or "sigma" for Karras's, in which d(x / alpha) = noise: what
      diffusers' HeunDiscreteScheduler does.
    scale_noise: see Sampler.
  """
  if time not in ("flow", "sigma"):
    raise ValueError(f"{time=} must be flow or sigma.")

  def step(
    denoise_fn: DenoiseFn,
    carry: Any,
    noisy_latents: Array,
    log_snr_t: Array,
    log_snr_s: Array,
    rngs: Array | None,
  ) -> tuple[Any, Array]:
    del rngs
    x0 = denoise_fn(noisy_latents, log_snr_t).x0
    noise = diffusion.to_noise(x0, noisy_latents, log_snr_t)
    guess = diffusion.add_noise(x0, noise, log_snr_s)

    clean = jnp.isposinf(log_snr_s)
    bounded_s = jnp.where(clean, diffusion.LOG_SNR_MAX, log_snr_s)
    next_x0 = denoise_fn(guess, bounded_s).x0
    next_noise = diffusion.to_noise(next_x0, guess, bounded_s)

    alpha_t, sigma_t = diffusion.log_snr_to_alpha_sigma(log_snr_t)
    alpha_s, sigma_s = diffusion.log_snr_to_alpha_sigma(log_snr_s)
    if time == "flow":
      duration = sigma_s / (alpha_s + sigma_s) - sigma_t / (alpha_t + sigma_t)
      factor = (alpha_s + sigma_s) * duration / 2
      bend = (next_noise - next_x0) - (noise - x0)
    else:
      factor = (sigma_s - alpha_s * sigma_t / alpha_t) / 2
      bend = next_noise - noise
    factor = diffusion.expand(jnp.where(clean, 0.0, factor), x0)
    return carry, guess + factor * bend

  return Sampler(_no_memory, step, scale_noise)


def dpm_solver_pp_2m() -> Sampler:
  """DPM-Solver++(2M), deterministic (Lu et al. 2022, alg. 2).

  In half log_snr, h long, x0 is extrapolated to the middle of the step:

    x_s = sigma_s / sigma_t x_t + alpha_s (1 - e^-h) D,
    D = x0 + h / (2 h_previous) (x0 - x0_previous).

  One pass a step. The first step, and one to clean, are DDIM's.
  """

  def init(noisy_latents: Array) -> tuple[Array, Array]:
    # A level infinitely far back makes the first step's extrapolation zero.
    return (
      jnp.zeros_like(noisy_latents),
      jnp.full(noisy_latents.shape[:1], -jnp.inf),
    )

  def step(
    denoise_fn: DenoiseFn,
    carry: Any,
    noisy_latents: Array,
    log_snr_t: Array,
    log_snr_s: Array,
    rngs: Array | None,
  ) -> tuple[Any, Array]:
    del rngs
    previous_x0, previous_log_snr = carry
    x0 = denoise_fn(noisy_latents, log_snr_t).x0
    h = (log_snr_s - log_snr_t) / 2
    # A step to clean, infinitely long, must not extrapolate.
    ratio = jnp.where(jnp.isposinf(h), 0.0, h)
    ratio = ratio / (log_snr_t - previous_log_snr)
    d = x0 + diffusion.expand(ratio, x0) * (x0 - previous_x0)
    _, sigma_t = diffusion.log_snr_to_alpha_sigma(log_snr_t)
    alpha_s, sigma_s = diffusion.log_snr_to_alpha_sigma(log_snr_s)
    noisy_latents = diffusion.expand(sigma_s / sigma_t, x0) * noisy_latents
    noisy_latents += diffusion.expand(-alpha_s * jnp.expm1(-h), x0) * d
    return (x0, log_snr_t), noisy_latents

  return Sampler(init, step)


def _no_memory(noisy_latents: Array) -> tuple[()]:
  del noisy_latents
  return ()
