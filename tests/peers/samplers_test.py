"""Whole trajectories against diffusers' schedulers, on an analytic denoiser.

Both sides start from the same noise and draw the same noise at each step; their
states are compared after every one, as variance-preserving latents.
"""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from byt5_diffusion import (
  diffusion,
  guidance,
  samplers,
  sampling_steps,
  unipc,
)
from peers import loading

torch = pytest.importorskip("torch", reason="pip install -e .[parity]")
diffusers = pytest.importorskip("diffusers", reason="pip install -e .[parity]")
torch.set_num_threads(1)

SHAPE = (2, 3, 4, 4)
STABLE = {
  "beta_schedule": "scaled_linear",
  "beta_start": 0.00085,
  "beta_end": 0.012,
}
OUR_TYPES = {"epsilon": "noise", "v_prediction": "v", "sample": "x0"}
PREDICTION_TYPES = tuple(OUR_TYPES)
SPACINGS = ("trailing", "leading", "linspace")


def analytic(noisy_latents, log_snr):
  """E[x0 | x_t] for data of two bumps, at -1 and 1; and a share of variance."""
  alpha, sigma = diffusion.log_snr_to_alpha_sigma(
    diffusion.expand(log_snr, noisy_latents)
  )
  variance = alpha**2 * 0.2 + sigma**2
  side = jnp.tanh(noisy_latents * alpha / variance)
  x0 = side + alpha * 0.2 / variance * (noisy_latents - alpha * side)
  return samplers.Denoised(x0, jax.nn.sigmoid(3 * noisy_latents))


def as_predicted(prediction_type, decorator=None):
  """`analytic` by way of what a network of that type would say."""

  def denoise(noisy_latents, log_snr):
    denoised = analytic(noisy_latents, log_snr)
    noise = diffusion.to_noise(denoised.x0, noisy_latents, log_snr)
    name = OUR_TYPES[prediction_type]
    prediction = diffusion.make_target(denoised.x0, noise, log_snr, name)
    x0 = diffusion.to_x0(prediction, noisy_latents, log_snr, name)
    return denoised._replace(x0=x0)

  return decorator(denoise) if decorator else denoise


@functools.partial(jax.jit, static_argnums=2)
def predict(noisy_latents, log_snr, prediction_type):
  x0, fraction, _ = analytic(noisy_latents, log_snr)
  noise = diffusion.to_noise(x0, noisy_latents, log_snr)
  name = OUR_TYPES[prediction_type]
  return diffusion.make_target(x0, noise, log_snr, name), 2 * fraction - 1


@jax.jit
def draws(rngs, index):
  rngs = jax.vmap(jax.random.fold_in, in_axes=(0, None))(rngs, index)
  return jax.vmap(lambda rng: jax.random.normal(rng, SHAPE[1:]))(rngs)


def ours(denoise_fn, sampler, noise, log_snrs, rngs):
  """The state after each step of samplers.sample."""
  states = []

  def step(denoise_fn, carry, noisy_latents, *rest):
    carry, latents = sampler.step(denoise_fn, carry, noisy_latents, *rest)
    jax.debug.callback(lambda x: states.append(np.array(x)), latents)
    return carry, latents

  recorded = sampler._replace(step=step)
  last = samplers.sample(denoise_fn, recorded, noise, log_snrs, rngs)
  jax.block_until_ready(last)
  jax.effects_barrier()
  return states


def theirs(peer, num_steps, noise, rngs, monkeypatch, **options):
  """The states of diffusers' scheduler, and how its samples are scaled."""
  module = importlib.import_module(type(peer).__module__)
  peer.set_timesteps(num_steps)
  sample = torch.from_numpy(np.array(noise)) * peer.init_noise_sigma
  in_sigma = hasattr(peer, "sigmas")
  scaled = type(peer).__name__.startswith(("Euler", "Heun"))
  heun = type(peer).__name__.startswith("Heun")
  learned = peer.config.get("variance_type") == "learned_range"
  states = []
  for i, timestep in enumerate(peer.timesteps):
    if hasattr(module, "randn_tensor"):
      z = torch.from_numpy(np.array(draws(rngs, i)))
      shape = (SHAPE[0], 2 * SHAPE[1], *SHAPE[2:]) if learned else SHAPE

      def randn(wanted, *args, z=z, shape=shape, **kwargs):
        assert tuple(wanted) in (SHAPE, shape)
        return z

      monkeypatch.setattr(module, "randn_tensor", randn)
    if in_sigma:
      log_snr = -2 * np.log(float(peer.sigmas[i]))
    else:
      level = float(peer.alphas_cumprod[int(timestep)])
      with np.errstate(divide="ignore"):
        log_snr = np.clip(np.log(level) - np.log1p(-level), -20, 20)
    x_t = jnp.asarray(peer.scale_model_input(sample, timestep).numpy())
    levels = jnp.full(SHAPE[0], log_snr, jnp.float32)
    output, fraction = predict(x_t, levels, peer.config.prediction_type)
    output = torch.from_numpy(np.array(output))
    if learned:
      fraction = torch.from_numpy(np.array(fraction))
      output = torch.cat([output, fraction], dim=1)
    sample = peer.step(output, timestep, sample, **options).prev_sample
    if heun and i % 2 == 0 and i + 1 < len(peer.timesteps):
      continue  # Only Euler's guess of this step.
    scale = (peer.sigmas[i + 1] ** 2 + 1) ** 0.5 if scaled else 1.0
    states.append((sample / scale).numpy())
  return states


def compare(
  peer,
  sampler,
  steps,
  monkeypatch,
  num_steps=20,
  schedule=None,
  decorator=None,
  **options,
):
  seed = loading.new_seed()
  rngs = jax.random.split(jax.random.key(seed), SHAPE[0])
  noise = jax.random.normal(jax.random.key(seed + 1), SHAPE)
  expected = theirs(peer, num_steps, noise, rngs, monkeypatch, **options)
  schedule = schedule or diffusion.scaled_linear_schedule()
  denoise_fn = as_predicted(peer.config.prediction_type, decorator)
  log_snrs = steps(schedule, num_steps)
  actual = ours(denoise_fn, sampler, noise, log_snrs, rngs)
  assert len(actual) == len(expected) == num_steps
  for i, (mine, peers) in enumerate(zip(actual, expected, strict=True)):
    error = np.abs(mine - peers).max()
    limit = 1e-4 * max(1.0, np.abs(peers).max())
    assert error <= limit, f"{seed=}, step {i}: {error} > {limit}"


def make(name, spacing, prediction_type, **options):
  offset = {"steps_offset": 1} if spacing == "leading" else {}
  return getattr(diffusers, name)(
    timestep_spacing=spacing,
    prediction_type=prediction_type,
    **(STABLE | offset | options),
  )


def steps_of(scheduler, spacing, **options):
  offset = 1 if spacing == "leading" else 0
  return sampling_steps.discrete_steps(
    spacing, scheduler, offset=offset, **options
  )


def run(name, spacing, prediction_type, monkeypatch, num_steps=20):
  """One scheduler, as its pipelines use it."""
  kind, _, detail = name.partition(":")
  scaled = spacing != "leading"
  options, arguments, end = {}, {}, {}
  if kind == "DDIM":
    sampler, scheduler = samplers.ddim(float(detail)), "ddim"
    arguments["eta"] = float(detail)
    # As Stable Diffusion has it.
    end["end_clean"] = spacing != "leading"
    options = {"clip_sample": False, "set_alpha_to_one": end["end_clean"]}
  elif kind == "DDPM":
    variance = {
      "fixed_small": "posterior",
      "fixed_large": "forward",
      "learned_range": "learned",
    }
    noise_at_end = spacing != "linspace"  # which alone reaches timestep 0
    sampler = samplers.ddpm(variance[detail], noise_at_end)
    scheduler = "ddpm"
    options = {"clip_sample": False, "variance_type": detail}
  elif kind == "EulerDiscrete":
    sampler, scheduler = samplers.euler(scaled), "euler"
  elif kind == "EulerAncestralDiscrete":
    sampler, scheduler = samplers.euler_ancestral(1.0, scaled), "euler"
  elif kind == "HeunDiscrete":
    sampler, scheduler = samplers.heun("sigma", scaled), "euler"
  elif kind == "DPMSolverMultistep":
    sampler, scheduler = samplers.dpm_solver_pp_2m(), "multistep"
  else:
    sampler, scheduler = unipc.unipc(), "multistep"
  karras = {"karras": True} if detail == "karras" else {}
  if karras:
    options["use_karras_sigmas"] = True
  if detail == "sigma_min":
    options["final_sigmas_type"], end["end_clean"] = detail, False
  compare(
    make(kind + "Scheduler", spacing, prediction_type, **options),
    sampler,
    steps_of(scheduler, spacing, **karras, **end),
    monkeypatch,
    num_steps,
    **arguments,
  )


NAMES = (
  "DDIM:0",
  "DDIM:0.7",
  "DDPM:fixed_small",
  "DDPM:fixed_large",
  "DDPM:learned_range",
  "EulerDiscrete",
  "EulerAncestralDiscrete",
  "HeunDiscrete",
  "DPMSolverMultistep",
  "UniPCMultistep",
)
FAST = list(
  zip(
    NAMES, SPACINGS * 4, ("epsilon", "v_prediction", "sample") * 4, strict=False
  )
)


@pytest.mark.parametrize(("name", "spacing", "prediction_type"), FAST)
def test_a_trajectory_is_that_of_diffusers(
  name, spacing, prediction_type, monkeypatch
):
  """In few steps, where a wrong weight shows most."""
  run(name, spacing, prediction_type, monkeypatch, num_steps=7)


@pytest.mark.slow
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", NAMES)
def test_every_trajectory_is_that_of_diffusers(
  name, spacing, prediction_type, monkeypatch
):
  """By any number of steps, also such as do not divide 1000."""
  if (name, prediction_type) == ("EulerAncestralDiscrete", "sample"):
    pytest.skip("diffusers' own does not know this prediction type")
  num_steps = int(np.random.default_rng().integers(3, 80))
  print(f"{num_steps=}")
  run(name, spacing, prediction_type, monkeypatch, num_steps)


@pytest.mark.slow
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(
  "name",
  [
    "EulerDiscrete:karras",
    "HeunDiscrete:karras",
    "DPMSolverMultistep:karras",
    "UniPCMultistep:karras",
    "EulerDiscrete:sigma_min",
    "DPMSolverMultistep:sigma_min",
  ],
)
def test_other_levels_of_diffusers(name, spacing, monkeypatch):
  run(name, spacing, "epsilon", monkeypatch, num_steps=25)


@pytest.mark.slow
@pytest.mark.parametrize("spacing", SPACINGS)
def test_ddim_from_zero_terminal_snr(spacing, monkeypatch):
  peer = make(
    "DDIMScheduler",
    spacing,
    "v_prediction",
    clip_sample=False,
    rescale_betas_zero_snr=True,
  )
  compare(
    peer,
    samplers.ddim(),
    steps_of("ddim", spacing),
    monkeypatch,
    schedule=diffusion.zero_terminal_snr_schedule(),
  )


@pytest.mark.parametrize(
  "name",
  [
    "fixed_small",
    pytest.param("learned_range", marks=pytest.mark.slow),
  ],
)
def test_ddpm_of_if_with_its_thresholding(name, monkeypatch):
  """DeepFloyd IF's scheduler: a cosine, clipped by quantiles up to 1.5."""
  peer = diffusers.DDPMScheduler(
    beta_schedule="squaredcos_cap_v2",
    variance_type=name,
    thresholding=True,
    dynamic_thresholding_ratio=0.95,
    sample_max_value=1.5,
    timestep_spacing="leading",
  )
  variance = {"fixed_small": "posterior", "learned_range": "learned"}[name]
  compare(
    peer,
    samplers.ddpm(variance),
    sampling_steps.discrete_steps("leading"),
    monkeypatch,
    num_steps=25,
    schedule=diffusion.squared_cosine_schedule(),
    decorator=guidance.dynamic_thresholding(0.95, max_threshold=1.5),
  )


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize(
  ("name", "options", "alphas_cumprod"),
  [
    ("linear", {}, np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))),
    (
      "scaled_linear",
      {"beta_start": 0.00085, "beta_end": 0.012},
      diffusion.scaled_linear_alphas_cumprod(0.00085, 0.012, 1000),
    ),
    (
      "squaredcos_cap_v2",
      {},
      diffusion.squared_cosine_alphas_cumprod(1000, 0.999),
    ),
  ],
)
def test_discrete_schedules_are_those_of_diffusers(
  name, options, alphas_cumprod, zero_snr
):
  peer = diffusers.DDIMScheduler(
    beta_schedule=name, rescale_betas_zero_snr=zero_snr, **options
  )
  if zero_snr:
    alphas_cumprod = diffusion.rescale_to_zero_terminal_snr(alphas_cumprod)
  expected = peer.alphas_cumprod.numpy()
  np.testing.assert_allclose(alphas_cumprod, expected, atol=1e-6)
  schedule = diffusion.discrete_schedule(alphas_cumprod=alphas_cumprod)
  log_snr = schedule.log_snr(np.arange(1, 1001, dtype=np.float32) / 1000)
  alpha, _ = diffusion.log_snr_to_alpha_sigma(log_snr)
  np.testing.assert_allclose(alpha**2, expected, atol=1e-6)
