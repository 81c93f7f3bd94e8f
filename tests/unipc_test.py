"""UniPC on the exact denoiser of a Gaussian; tests/peers has diffusers'."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import samplers_test
from scipy import integrate

from byt5_diffusion import samplers, unipc

RUN = jax.jit(
  lambda noise, log_snrs: samplers.sample(
    samplers_test.gaussian, unipc.unipc(), noise, log_snrs
  )
)


def errors(step_counts, spacing):
  noise = samplers_test.draw(1, 16, 16, 1)
  result = []
  for num_steps in step_counts:
    log_snrs = samplers_test.levels(num_steps, spacing)
    exact = samplers_test.flow_of_gaussian(noise, log_snrs[0])
    result.append(np.sqrt(np.mean((RUN(noise, log_snrs) - exact) ** 2)))
  return np.array(result)


@pytest.mark.slow
def test_it_converges_faster_than_dpm_solver():
  error = errors([32, 64, 128], "karras")
  order = np.log2(error[:-1] / error[1:])
  assert (order > 1.7).all(), order
  others = samplers_test.errors("dpm_solver_pp_2m", [32, 64, 128], "karras")
  assert (error < 0.5 * others).all(), (error, others)


def test_moments_are_the_integrals_that_they_stand_for():
  lengths = np.array([1e-3, 0.1, 0.499, 0.501, 2.0, 8.0])
  actual = unipc._moments(jnp.float32(lengths))
  for power, values in zip((1, 2), actual, strict=True):
    for h, value in zip(lengths, values, strict=True):
      parts = [
        integrate.quad(lambda u, h=h, k=k: u**k * np.exp(-(1 - u) * h), 0, 1)[0]
        for k in (power, 0)
      ]
      np.testing.assert_allclose(value, parts[0] / parts[1], rtol=2e-5)


def test_a_step_to_clean_is_x0_and_images_keep_to_themselves():
  noise = samplers_test.draw(3, 4, 4, 3)
  sampler = unipc.unipc()
  log_snr, clean = jnp.array([-2.0, 3.0, 0.0]), jnp.full(3, jnp.inf)

  @jax.jit
  def step(noise):
    start = sampler.init(noise)
    return sampler.step(
      samplers_test.mixture, start, noise, log_snr, clean, None
    )

  x0 = step(noise)[1]
  expected = samplers_test.mixture(noise, log_snr).x0
  np.testing.assert_allclose(x0, expected, atol=1e-6)
  log_snrs = samplers_test.levels(6)
  together = RUN(noise, log_snrs)
  assert np.isfinite(together).all()
  np.testing.assert_allclose(
    RUN(noise[1:2], log_snrs)[0], together[1], atol=2e-6
  )
