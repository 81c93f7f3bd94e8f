"""Trajectories against the schedulers of PyTorch's diffusers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from byt5_diffusion import diffusion, samplers


def denoise(noisy_latents, log_snr):
  """E[x0 | x_t] for data of two narrow bumps, at -1 and 1: far from affine."""
  alpha, sigma = diffusion.log_snr_to_alpha_sigma(
    diffusion.expand(log_snr, noisy_latents)
  )
  variance = alpha**2 * 0.01 + sigma**2
  x0 = jnp.tanh(noisy_latents * alpha / variance)
  gain = alpha * 0.01 / variance
  return samplers.Denoised(x0 + gain * (noisy_latents - alpha * x0))


@pytest.mark.slow
@pytest.mark.parametrize(
  ("scheduler", "sampler", "options"),
  [
    ("DDIMScheduler", samplers.ddim(), {"clip_sample": False}),
    ("EulerDiscreteScheduler", samplers.euler(), {}),
    ("DPMSolverMultistepScheduler", samplers.dpm_solver_pp_2m(), {}),
  ],
)
@pytest.mark.parametrize("num_steps", [20, 50])
def test_trajectories_end_where_those_of_diffusers_do(
  scheduler, sampler, options, num_steps
):
  torch = pytest.importorskip("torch")
  diffusers = pytest.importorskip("diffusers")
  peer = getattr(diffusers, scheduler)(
    num_train_timesteps=1000,
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    timestep_spacing="trailing",
    prediction_type="epsilon",
    **options,
  )
  peer.set_timesteps(num_steps)
  alphas_cumprod = diffusion.scaled_linear_alphas_cumprod(0.00085, 0.012, 1000)
  noise = jax.random.normal(jax.random.key(1), (1, 4, 4, 2))
  sample = torch.tensor(np.asarray(noise))
  if scheduler == "EulerDiscreteScheduler":  # Its sample is x / alpha.
    sample *= (peer.sigmas[0] ** 2 + 1) ** 0.5
  for timestep in peer.timesteps:
    level = alphas_cumprod[int(timestep)]
    log_snr = jnp.full(1, np.log(level / (1 - level)), jnp.float32)
    x_t = peer.scale_model_input(sample, timestep)
    x_t = jnp.asarray(x_t.numpy(), jnp.float32)
    prediction = diffusion.to_noise(denoise(x_t, log_snr).x0, x_t, log_snr)
    prediction = torch.tensor(np.asarray(prediction))
    sample = peer.step(prediction, timestep, sample).prev_sample
  schedule = diffusion.scaled_linear_schedule()
  log_snrs = samplers.log_snr_steps(schedule, num_steps)
  x0 = samplers.sample(denoise, sampler, noise, log_snrs)
  np.testing.assert_allclose(x0, sample.numpy(), atol=2e-4)
