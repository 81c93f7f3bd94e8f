"""Which timesteps are visited; tests/peers has diffusers' own trajectories."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from byt5_diffusion import diffusion, samplers, sampling_steps

SCHEDULE = diffusion.scaled_linear_schedule()


def timesteps(levels):
  return 1000 * np.asarray(SCHEDULE.timesteps(levels)) - 1


@pytest.mark.parametrize(
  ("arguments", "num_steps", "expected"),
  [
    (("trailing", "ddpm"), 4, [999, 749, 499, 249]),
    (("trailing", "ddpm"), 3, [999, 666, 332]),
    (("leading", "ddpm", 1), 4, [751, 501, 251, 1]),
    (("leading", "multistep", 1), 4, [801, 601, 401, 201]),
    (("linspace", "ddpm"), 5, [999, 749, 500, 250, 0]),
    (("linspace", "euler"), 5, [999, 749.25, 499.5, 249.75, 0]),
    (("linspace", "multistep"), 4, [999, 749, 500, 250]),
  ],
)
def test_timesteps_are_those_that_the_name_stands_for(
  arguments, num_steps, expected
):
  spacing, scheduler, *offset = arguments
  found = sampling_steps.timestep_indices(
    spacing, scheduler, num_steps, 1000, *offset
  )
  np.testing.assert_allclose(found, expected)


def test_levels_are_the_schedules_and_end_clean():
  steps = sampling_steps.discrete_steps("leading", offset=1)
  levels = jax.jit(lambda: steps(SCHEDULE, 4))()
  assert levels.shape == (5,) and levels[-1] == jnp.inf
  np.testing.assert_allclose(
    timesteps(levels[:-1]), [751, 501, 251, 1], atol=1e-3
  )
  steps = sampling_steps.discrete_steps("leading", offset=1, end_clean=False)
  np.testing.assert_allclose(timesteps(steps(SCHEDULE, 4))[-1], 0, atol=1e-3)


def test_between_timesteps_sigma_over_alpha_is_linear():
  levels = sampling_steps.discrete_steps("linspace", "euler")(SCHEDULE, 5)
  ratio = np.exp(-np.asarray(levels[1]) / 2)
  around = SCHEDULE.log_snr(np.float32([750, 751]) / 1000)
  low, high = np.exp(-np.asarray(around) / 2)
  np.testing.assert_allclose(ratio, 0.75 * low + 0.25 * high, rtol=1e-5)


def test_ddims_steps_are_of_one_length_wherever_the_next_starts():
  steps = sampling_steps.discrete_steps("linspace", "ddim", end_clean=False)
  levels = steps(SCHEDULE, 3)
  assert levels.shape == (3, 2)
  np.testing.assert_allclose(timesteps(levels[:, 0]), [999, 500, 0], atol=1e-2)
  ends = timesteps(levels[:, 1])
  np.testing.assert_allclose(ends, [999 - 333, 500 - 333, 0], atol=1e-2)


def test_karras_levels_lie_evenly_between_their_ends():
  for scheduler, first in (("euler", 751), ("multistep", 999)):
    steps = sampling_steps.discrete_steps(
      "leading", scheduler, offset=1, karras=True
    )
    levels = np.asarray(steps(SCHEDULE, 4))[:-1]
    np.testing.assert_allclose(timesteps(levels)[0], first, atol=1e-2)
    rooted = np.exp(-levels / 2) ** (1 / 7)
    np.testing.assert_allclose(np.diff(rooted, 2), 0, atol=1e-5)


@pytest.mark.parametrize(
  ("make", "says"),
  [
    (lambda: sampling_steps.discrete_steps("uniform"), "leading, linspace"),
    (lambda: sampling_steps.discrete_steps(scheduler="pndm"), "multistep"),
    (lambda: sampling_steps.discrete_steps(karras=True), "no karras steps"),
    (
      lambda: sampling_steps.discrete_steps()(SCHEDULE, 1001),
      "num_steps=1001 .* 1000, the number of timesteps",
    ),
    (
      lambda: sampling_steps.discrete_steps("leading", offset=1)(
        SCHEDULE, 1000
      ),
      "offset=1 .* takes timesteps 1000",
    ),
  ],
)
def test_steps_that_there_are_not_are_refused(make, says):
  with pytest.raises(ValueError, match=says):
    make()


def test_pairs_of_levels_are_stepped_through_as_levels_are():
  def denoise(noisy_latents, log_snr):
    return samplers.Denoised(0.5 * jnp.tanh(noisy_latents))

  noise = jax.random.normal(jax.random.key(0), (1, 2, 2, 1))
  levels = sampling_steps.discrete_steps()(SCHEDULE, 5)
  pairs = sampling_steps.discrete_steps(scheduler="ddim")(SCHEDULE, 5)
  results = [
    samplers.sample(denoise, samplers.ddim(), noise, x) for x in (levels, pairs)
  ]
  np.testing.assert_allclose(*results, atol=1e-6)
