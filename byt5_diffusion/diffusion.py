"""The maths of Gaussian diffusion: schedules, conversions, loss weights.

Notation. A clean x0 and a unit normal noise make, at a noise level,

  x_t = alpha x0 + sigma noise,    alpha^2 + sigma^2 = 1,
  log_snr = log(alpha^2 / sigma^2),    SNR = exp(log_snr),

so alpha^2 = sigmoid(log_snr), the alphas_cumprod of DDPM. Everything here
takes `log_snr` [B], one level per example: how time maps to it is the
schedule's affair alone. Time runs from 0, clean, to 1, noise.

A network predicts one of four things, each an affine map of x0 given x_t:

  noise                                        (Ho et al. 2020)
  x0
  v = alpha noise - sigma x0                   (Salimans & Ho 2022)
  flow = noise - x0                            (Lipman et al. 2023; the network
    itself sees x_t / (alpha + sigma) at time sigma / (alpha + sigma))

All of it is float32. Nothing here knows a network, a sampler or a data set.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
Weight = Callable[[Array, str], Array]

# At +-20 the lesser of alpha and sigma is 4.5e-5: noise, or an image, to far
# below eight bits, yet its square is well inside float32.
LOG_SNR_MIN = -20.0
LOG_SNR_MAX = 20.0


def expand(per_example: Array, like: Array) -> Array:
  """[B] -> [B, 1, ..., 1] of like's rank, to broadcast against it.

  Raises:
    ValueError: if per_example is not [B] with the B of `like`.
  """
  if per_example.shape != like.shape[:1]:
    raise ValueError(
      "A value per example must have shape [B]: got "
      f"{per_example.shape} beside an array of shape {like.shape}."
    )
  return per_example.reshape(per_example.shape + (1,) * (like.ndim - 1))


def log_snr_to_alpha_sigma(log_snr: Array) -> tuple[Array, Array]:
  """alpha = sqrt(sigmoid(log_snr)), sigma = sqrt(sigmoid(-log_snr)).

  Any shape; +-inf is allowed and gives exactly (1, 0) or (0, 1).
  """
  log_snr = jnp.asarray(log_snr, jnp.float32)
  return jnp.sqrt(jax.nn.sigmoid(log_snr)), jnp.sqrt(jax.nn.sigmoid(-log_snr))


# --- Schedules ---------------------------------------------------------------


class Schedule(NamedTuple):
  """A strictly falling map of timesteps in [0, 1] to log_snr, and its inverse.

  Its range is [log_snr(1), log_snr(0)]. Outside their domain, both functions
  answer as at its nearest end.

  Attributes:
    log_snr: timesteps, any shape, 0 = clean and 1 = noise -> log_snr.
    timesteps: log_snr, any shape -> timesteps.
  """

  log_snr: Callable[[Array], Array]
  timesteps: Callable[[Array], Array]


def cosine_schedule(
  *, log_snr_min: float = LOG_SNR_MIN, log_snr_max: float = LOG_SNR_MAX
) -> Schedule:
  """log_snr = -2 log tan(pi t / 2) (Nichol & Dhariwal 2021).

  t is mapped affinely onto the part of [0, 1] whose log_snr lies within the
  bounds, which are therefore reached, and only reached, at t = 1 and t = 0.
  """
  return _symmetric_schedule(
    lambda u: jnp.sin(math.pi / 2 * u),
    lambda log_snr: jnp.arctan(jnp.exp(-log_snr / 2)) / (math.pi / 2),
    clean=math.atan(math.exp(-log_snr_max / 2)) / (math.pi / 2),
    noise=math.atan(math.exp(log_snr_min / 2)) / (math.pi / 2),
  )


def flow_schedule(
  *, log_snr_min: float = LOG_SNR_MIN, log_snr_max: float = LOG_SNR_MAX
) -> Schedule:
  """log_snr = 2 log((1 - t) / t): the straight path of flow matching.

  t is mapped affinely onto the part of [0, 1] whose log_snr lies within the
  bounds, as in `cosine_schedule`; at the default bounds it moves by < 5e-5.
  """
  return _symmetric_schedule(
    lambda u: u,
    lambda log_snr: jax.nn.sigmoid(-log_snr / 2),
    clean=1 / (1 + math.exp(log_snr_max / 2)),
    noise=1 / (1 + math.exp(-log_snr_min / 2)),
  )


def _symmetric_schedule(
  curve: Callable[[Array], Array],
  inverse: Callable[[Array], Array],
  *,
  clean: float,
  noise: float,
) -> Schedule:
  """log_snr = 2 log(curve(1 - u) / curve(u)), u from `clean` to 1 - `noise`."""
  span = 1 - clean - noise
  if not (min(clean, noise, span) > 0 and math.isfinite(span)):
    raise ValueError("log_snr_min must be below log_snr_max, both finite.")

  def log_snr(timesteps: Array) -> Array:
    timesteps = jnp.clip(jnp.asarray(timesteps, jnp.float32), 0.0, 1.0)
    # u and 1 - u each from its own end, where the other would lose its digits.
    u = clean + span * timesteps
    one_minus_u = noise + span * (1.0 - timesteps)
    return 2.0 * (jnp.log(curve(one_minus_u)) - jnp.log(curve(u)))

  def timesteps(log_snr: Array) -> Array:
    u = inverse(jnp.asarray(log_snr, jnp.float32))
    return jnp.clip((u - clean) / span, 0.0, 1.0)

  return Schedule(log_snr, timesteps)


def shifted_schedule(
  *, schedule: Schedule, image_size: int, base_size: int = 64
) -> Schedule:
  """log_snr + 2 log(base_size / image_size) (Hoogeboom et al. 2023).

  Averaging pixels down to base_size then leaves the noise of the given
  schedule. The range shifts too. Sizes are sides, in diffused pixels.
  """
  if image_size <= 0 or base_size <= 0:
    raise ValueError(f"{image_size=} and {base_size=} must be positive.")
  shift = 2 * math.log(base_size / image_size)
  return Schedule(
    lambda timesteps: schedule.log_snr(timesteps) + shift,
    lambda log_snr: schedule.timesteps(jnp.asarray(log_snr) - shift),
  )


def discrete_schedule(
  *,
  alphas_cumprod: np.ndarray,
  log_snr_min: float = LOG_SNR_MIN,
  log_snr_max: float = LOG_SNR_MAX,
) -> Schedule:
  """The continuous schedule through a DDPM's N discrete levels.

  Level i lies at t = (i + 1) / N and is met exactly: alphas_cumprod[i] =
  sigmoid(log_snr). Between levels log_snr is linear in t; t = 0 is
  log_snr_max, which such networks never saw: their cleanest is t = 1 / N.

  Args:
    alphas_cumprod: [N], falling, below 1; the last may be 0 (zero terminal
      SNR), whose log_snr becomes log_snr_min.
  """
  alphas_cumprod = np.asarray(alphas_cumprod, np.float64)
  if alphas_cumprod.ndim != 1 or not alphas_cumprod.size:
    raise ValueError(f"alphas_cumprod must be [N]: {alphas_cumprod.shape=}.")
  if not (alphas_cumprod[-1] >= 0 and alphas_cumprod[0] < 1):
    raise ValueError("alphas_cumprod must lie in [0, 1).")
  with np.errstate(divide="ignore"):
    levels = np.log(alphas_cumprod) - np.log1p(-alphas_cumprod)
  # Clean to noise: t = 0 first.
  levels = np.append(log_snr_max, np.maximum(levels, log_snr_min))
  levels = levels.astype(np.float32)
  if not (np.diff(levels) < 0).all():
    raise ValueError(
      "alphas_cumprod must fall strictly, with log_snr within "
      f"[{log_snr_min}, {log_snr_max}]; got {levels[1]} ... {levels[-1]}."
    )
  grid = (np.arange(len(levels)) / (len(levels) - 1)).astype(np.float32)
  return Schedule(
    lambda timesteps: jnp.interp(
      jnp.asarray(timesteps, jnp.float32), grid, levels
    ),
    lambda log_snr: jnp.interp(
      jnp.asarray(log_snr, jnp.float32), levels[::-1], grid[::-1]
    ),
  )


def linear_schedule(
  *,
  beta_start: float = 0.0001,
  beta_end: float = 0.02,
  num_train_timesteps: int = 1000,
) -> Schedule:
  """Linear betas (Ho et al. 2020, sec. 4)."""
  betas = np.linspace(beta_start, beta_end, num_train_timesteps)
  return discrete_schedule(alphas_cumprod=np.cumprod(1 - betas))


def scaled_linear_schedule(
  *,
  beta_start: float = 0.00085,
  beta_end: float = 0.012,
  num_train_timesteps: int = 1000,
) -> Schedule:
  """Betas whose square roots are linear: latent diffusion, SD 1, SD 2, SDXL."""
  return discrete_schedule(
    alphas_cumprod=scaled_linear_alphas_cumprod(
      beta_start, beta_end, num_train_timesteps
    )
  )


def squared_cosine_schedule(
  *, num_train_timesteps: int = 1000, max_beta: float = 0.999
) -> Schedule:
  """Betas of a squared cosine (Nichol & Dhariwal 2021): DeepFloyd IF.

  alphas_cumprod follows cos^2((t + 0.008) / 1.008 pi / 2) as long as no beta
  exceeds max_beta; diffusers' "squaredcos_cap_v2".
  """
  return discrete_schedule(
    alphas_cumprod=squared_cosine_alphas_cumprod(num_train_timesteps, max_beta)
  )


def zero_terminal_snr_schedule(
  *,
  beta_start: float = 0.00085,
  beta_end: float = 0.012,
  num_train_timesteps: int = 1000,
) -> Schedule:
  """`scaled_linear_schedule` made to end in pure noise (Lin et al. 2024).

  Noise predictions carry nothing at its last level: predict v, x0 or flow.
  """
  return discrete_schedule(
    alphas_cumprod=rescale_to_zero_terminal_snr(
      scaled_linear_alphas_cumprod(beta_start, beta_end, num_train_timesteps)
    )
  )


def scaled_linear_alphas_cumprod(
  beta_start: float, beta_end: float, num_train_timesteps: int
) -> np.ndarray:
  """prod (1 - beta_i), sqrt(beta) linear: [num_train_timesteps] float64."""
  roots = np.linspace(beta_start**0.5, beta_end**0.5, num_train_timesteps)
  return np.cumprod(1 - roots**2)


def squared_cosine_alphas_cumprod(
  num_train_timesteps: int, max_beta: float
) -> np.ndarray:
  """prod max(f(t_i + 1/N) / f(t_i), 1 - max_beta), f the squared cosine."""
  t = np.arange(num_train_timesteps + 1) / num_train_timesteps
  curve = np.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
  return np.cumprod(np.maximum(curve[1:] / curve[:-1], 1 - max_beta))


def rescale_to_zero_terminal_snr(alphas_cumprod: np.ndarray) -> np.ndarray:
  """Shifts and scales alpha so that it ends at 0 and starts as it did.

  Lin et al. 2024, algorithm 1; [N] -> [N] float64.
  """
  alpha = np.sqrt(np.asarray(alphas_cumprod, np.float64))
  return (alpha[0] * (alpha - alpha[-1]) / (alpha[0] - alpha[-1])) ** 2


# --- Conversions -------------------------------------------------------------


def add_noise(x0: Array, noise: Array, log_snr: Array) -> Array:
  """x_t = alpha x0 + sigma noise; x0, noise [B, ...], log_snr [B]."""
  alpha, sigma = _alpha_sigma(log_snr, x0)
  return alpha * x0 + sigma * noise


# prediction_type -> x0, from (prediction, x_t, alpha, sigma).
_TO_X0 = {
  "noise": lambda noise, x_t, alpha, sigma: (x_t - sigma * noise) / alpha,
  "x0": lambda x0, x_t, alpha, sigma: x0,
  "v": lambda v, x_t, alpha, sigma: alpha * x_t - sigma * v,
  "flow": lambda flow, x_t, alpha, sigma: (
    (x_t - sigma * flow) / (alpha + sigma)
  ),
}

# prediction_type -> the target, from (x0, noise, alpha, sigma).
_TARGETS = {
  "noise": lambda x0, noise, alpha, sigma: noise,
  "x0": lambda x0, noise, alpha, sigma: x0,
  "v": lambda x0, noise, alpha, sigma: alpha * noise - sigma * x0,
  "flow": lambda x0, noise, alpha, sigma: noise - x0,
}

PREDICTION_TYPES = tuple(_TO_X0)


def to_x0(
  prediction: Array,
  noisy_latents: Array,
  log_snr: Array,
  prediction_type: str,
) -> Array:
  """x0 from a prediction; both arrays [B, ...], log_snr [B] finite.

  The noise type divides by alpha: its x0 is only as good as float32 allows
  at low SNR, and meaningless (though finite) at zero terminal SNR.
  """
  _check_prediction_type(prediction_type)
  alpha, sigma = _alpha_sigma(log_snr, noisy_latents)
  return _TO_X0[prediction_type](prediction, noisy_latents, alpha, sigma)


def to_noise(x0: Array, noisy_latents: Array, log_snr: Array) -> Array:
  """noise = (x_t - alpha x0) / sigma; arrays [B, ...], log_snr [B] finite."""
  alpha, sigma = _alpha_sigma(log_snr, noisy_latents)
  return (noisy_latents - alpha * x0) / sigma


def make_target(
  x0: Array, noise: Array, log_snr: Array, prediction_type: str
) -> Array:
  """What a network of prediction_type should say; [B, ...], log_snr [B]."""
  _check_prediction_type(prediction_type)
  alpha, sigma = _alpha_sigma(log_snr, x0)
  return _TARGETS[prediction_type](x0, noise, alpha, sigma)


def convert_prediction(
  prediction: Array,
  noisy_latents: Array,
  log_snr: Array,
  source: str,
  target: str,
) -> Array:
  """A prediction of type `source` as one of type `target`; [B, ...]."""
  x0 = to_x0(prediction, noisy_latents, log_snr, source)
  noise = to_noise(x0, noisy_latents, log_snr)
  return make_target(x0, noise, log_snr, target)


def _alpha_sigma(log_snr: Array, like: Array) -> tuple[Array, Array]:
  return log_snr_to_alpha_sigma(expand(jnp.asarray(log_snr), like))


def _check_prediction_type(prediction_type: str) -> None:
  if prediction_type not in PREDICTION_TYPES:
    raise ValueError(
      f"{prediction_type=} must be one of {', '.join(PREDICTION_TYPES)}."
    )


# --- Loss weights ------------------------------------------------------------

# At a given x_t every prediction is affine in x0; the square of its slope:
# (error of the prediction)^2 = this * (error of x0)^2.
_SQUARED_SLOPES = {
  "noise": lambda snr: snr,
  "x0": lambda snr: jnp.ones_like(snr),
  "v": lambda snr: snr + 1.0,
  "flow": lambda snr: jnp.square(jnp.sqrt(snr) + 1.0),
}


def uniform_weight() -> Weight:
  """weight = 1 for what the network predicts, whatever its type."""

  def weight(log_snr: Array, prediction_type: str) -> Array:
    _check_prediction_type(prediction_type)
    return jnp.ones_like(log_snr, jnp.float32)

  return weight


def min_snr_weight(gamma: float = 5.0) -> Weight:
  """min(SNR, gamma) on the error of x0 (Hang et al. 2023).

  On the predictions themselves: min(SNR, gamma) / SNR for noise,
  min(SNR, gamma) for x0, min(SNR, gamma) / (SNR + 1) for v and
  min(SNR, gamma) / (sqrt(SNR) + 1)^2 for flow. Finite at every level.
  """
  if gamma <= 0:
    raise ValueError(f"{gamma=} must be positive.")
  return _weight_of_x0(lambda snr: jnp.minimum(snr, gamma))


def p2_weight(gamma: float = 1.0, k: float = 1.0) -> Weight:
  """1 / (k + SNR)^gamma on the error of the noise (Choi et al. 2022).

  Other predictions get the weight that makes the same objective of theirs.
  """
  if gamma < 0 or k <= 0:
    raise ValueError(f"{gamma=} must be at least 0 and {k=} positive.")
  return _weight_of_x0(lambda snr: snr * (k + snr) ** -gamma)


def _weight_of_x0(weight_of_x0: Callable[[Array], Array]) -> Weight:
  """The weight(log_snr [B], prediction_type) -> [B] that equals it."""

  def weight(log_snr: Array, prediction_type: str) -> Array:
    _check_prediction_type(prediction_type)
    # Clipped: zero terminal SNR would be 0 / 0 for noise.
    log_snr = jnp.clip(
      jnp.asarray(log_snr, jnp.float32), LOG_SNR_MIN, LOG_SNR_MAX
    )
    snr = jnp.exp(log_snr)
    return weight_of_x0(snr) / _SQUARED_SLOPES[prediction_type](snr)

  return weight
