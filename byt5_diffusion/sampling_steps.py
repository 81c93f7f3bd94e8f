"""The levels that samplers of imported DDPMs step through.

A DDPM of N timesteps knows N levels, and programs differ in which of them its
samplers visit. `discrete_steps` names the ways of diffusers' schedulers, so
that what a checkpoint drew there is drawn here; samplers.log_snr_steps serves
everybody else.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from byt5_diffusion import diffusion

Array = jax.Array
# (schedule, num_steps) -> levels, as samplers.sample takes them.
Steps = Callable[[diffusion.Schedule, int], Array]

SPACINGS = ("leading", "linspace", "trailing")
SCHEDULERS = ("ddim", "ddpm", "euler", "multistep")


def discrete_steps(
  spacing: str = "trailing",
  scheduler: str = "ddpm",
  *,
  num_train_timesteps: int = 1000,
  offset: int = 0,
  karras: bool = False,
  end_clean: bool = True,
) -> Steps:
  """Steps through the levels of a diffusion.discrete_schedule.

  Args:
    spacing: "leading" takes every k-th timestep from `offset` on, "linspace"
      spreads them from the first to the last, "trailing" counts down from the
      last (Lin et al. 2024, table 2).
    scheduler: whose rounding: "ddpm"; "ddim", whose steps are all N / num_steps
      long, wherever the next one starts; "euler" (its ancestral form and Heun),
      whose "linspace" falls between timesteps, where sigma / alpha is linear;
      or "multistep" (DPM-Solver++, UniPC), whose "leading" and "linspace" are
      those of one step more without the last.
    num_train_timesteps: N.
    offset: of "leading" (diffusers' steps_offset).
    karras: as many levels, uniform in (sigma / alpha)^(1/7), between the ends
      ("euler": of the levels that `spacing` takes; "multistep": of the
      schedule).
    end_clean: end at the clean image; False ends at the schedule's cleanest
      level (diffusers' set_alpha_to_one=False, final_sigmas_type="sigma_min").

  Returns:
    (schedule, num_steps) -> log_snr [num_steps + 1], or [num_steps, 2] for
    "ddim": where each step starts and where it ends.
  """
  if spacing not in SPACINGS:
    raise ValueError(f"{spacing=} must be one of {', '.join(SPACINGS)}.")
  if scheduler not in SCHEDULERS:
    raise ValueError(f"{scheduler=} must be one of {', '.join(SCHEDULERS)}.")
  if karras and scheduler not in ("euler", "multistep"):
    raise ValueError(f"{scheduler=} has no karras steps: euler, multistep do.")

  def steps(schedule: diffusion.Schedule, num_steps: int) -> Array:
    indices = timestep_indices(
      spacing, scheduler, num_steps, num_train_timesteps, offset
    )

    def log_snr(at: np.ndarray) -> Array:
      times = (np.asarray(at, np.float64) + 1) / num_train_timesteps
      return schedule.log_snr(jnp.asarray(times, jnp.float32))

    cleanest = log_snr(np.zeros(1))
    end = jnp.full(1, jnp.inf) if end_clean else cleanest
    if scheduler == "ddim":
      targets = indices - num_train_timesteps // num_steps
      ends = jnp.where(targets < 0, end, log_snr(np.maximum(targets, 0)))
      return jnp.stack([log_snr(indices), ends], axis=1)
    if karras:
      outer = indices[[0, -1]]
      if scheduler == "multistep":
        outer = np.array([num_train_timesteps - 1, 0])
      levels = _karras(log_snr(outer), num_steps)
    elif scheduler == "euler":
      levels = _between(log_snr, indices)
    else:
      levels = log_snr(indices)
    return jnp.concatenate([levels, end])

  return steps


def timestep_indices(
  spacing: str,
  scheduler: str,
  num_steps: int,
  num_train_timesteps: int,
  offset: int = 0,
) -> np.ndarray:
  """The timesteps [num_steps] in 0 .. N - 1, falling, that steps start from.

  Arguments as of `discrete_steps`; integers but for "euler" with "linspace".

  Raises:
    ValueError: more steps than there are timesteps, or an offset beyond them.
  """
  total = num_train_timesteps
  count = num_steps + (scheduler == "multistep" and spacing != "trailing")
  if not 1 <= num_steps <= count <= total:
    raise ValueError(
      f"{num_steps=} with {spacing} steps must lie in 1 .. {total}, the number"
      " of timesteps."
    )
  if spacing == "trailing":
    indices = np.round(np.arange(total, 0, -total / num_steps)) - 1
  elif spacing == "leading":
    indices = np.arange(count)[::-1] * (total // count) + offset
  else:
    indices = np.linspace(0, total - 1, count)[::-1]
    if scheduler != "euler":
      indices = np.round(indices)
  indices = indices[:num_steps]
  if not 0 <= indices[-1] <= indices[0] < total:
    raise ValueError(
      f"{offset=} with {num_steps=} takes timesteps {indices[0]:g} to"
      f" {indices[-1]:g}; there are 0 .. {total - 1}."
    )
  return indices


def _between(
  log_snr: Callable[[np.ndarray], Array], indices: np.ndarray
) -> Array:
  """log_snr at any indices, sigma / alpha = e^(-log_snr / 2) being linear."""
  low, high = np.floor(indices), np.ceil(indices)
  weight = (indices - low).astype(np.float32)
  ratios = [jnp.exp(-log_snr(x) / 2) for x in (low, high)]
  return -2 * jnp.log((1 - weight) * ratios[0] + weight * ratios[1])


def _karras(ends: Array, num_steps: int) -> Array:
  """Karras et al. 2022, eq. 5: from ends[0] to ends[1], both log_snr."""
  start, end = jnp.exp(-ends[0] / 14), jnp.exp(-ends[1] / 14)
  fractions = np.linspace(0, 1, num_steps, dtype=np.float32)
  return -14.0 * jnp.log(start + fractions * (end - start))
