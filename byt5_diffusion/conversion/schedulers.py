"""Our noise schedules as diffusers' scheduler_config.json."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from byt5_diffusion import diffusion
from byt5_diffusion.conversion import names

ConversionError = names.ConversionError

_PREDICTION_TYPES = {"noise": "epsilon", "v": "v_prediction", "x0": "sample"}
_MAX_STEPS = 10_000


def to_json(
  log_snr: Callable[[Any], Any],
  prediction_type: str,
  time_scale: float,
  time_offset: float,
) -> dict[str, Any]:
  """A DDIMScheduler with our levels of noise.

  diffusers counts steps i = 0, 1, .. and gives the network i as its time. Ours
  is given time_scale t + time_offset; so level i is that of t = (i -
  time_offset) / time_scale, as far as t goes.

  Args:
    log_snr: a schedule's.
    prediction_type: one of diffusion.PREDICTION_TYPES.
    time_scale, time_offset: of the model.

  Raises:
    ConversionError: diffusers has no such thing; says what.
  """
  if prediction_type not in _PREDICTION_TYPES:
    raise ConversionError(
      f"diffusers' DDIMScheduler knows no prediction_type {prediction_type!r}."
    )
  count = int(np.floor(time_scale + time_offset)) + 1
  if not 2 <= count <= _MAX_STEPS or time_offset > 0:
    raise ConversionError(
      f"{time_scale=} and {time_offset=} count no steps as diffusers does."
    )
  times = (np.arange(count) - time_offset) / time_scale
  alpha, _ = diffusion.log_snr_to_alpha_sigma(log_snr(jnp.asarray(times)))
  alphas_cumprod = np.asarray(alpha, np.float64) ** 2
  betas = 1 - alphas_cumprod / np.append(1, alphas_cumprod[:-1])
  if not ((betas >= 0) & (betas <= 1)).all():
    raise ConversionError(
      "The schedule's noise does not grow from step to step."
    )
  return {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": count,
    "trained_betas": [float(beta) for beta in betas],
    "prediction_type": _PREDICTION_TYPES[prediction_type],
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 0,
    "timestep_spacing": "trailing",
  }
