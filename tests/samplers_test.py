"""Samplers against the exact denoiser of a Gaussian, where all is known.

Data N(mu, s^2) have E[x0 | x_t] in closed form; the probability flow carries a
point x_T to mu + s (x_T - alpha_T mu) / sqrt(alpha_T^2 s^2 + sigma_T^2).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from byt5_diffusion import diffusion, samplers

MU, S = 1.5, 0.5
COSINE = diffusion.cosine_schedule()
SAMPLERS = {
  "ddim": samplers.ddim(),
  "ddim_half": samplers.ddim(eta=0.5),
  "ddim_1": samplers.ddim(eta=1.0),
  "ddpm": samplers.ddpm(),
  "ddpm_forward": samplers.ddpm("forward"),
  "heun": samplers.heun(),
  "dpm_solver_pp_2m": samplers.dpm_solver_pp_2m(),
}
STOCHASTIC = ["ddim_half", "ddpm", "ddpm_forward"]


def gaussian(noisy_latents, log_snr):
  """E[x0 | x_t] for data N(MU, S^2)."""
  alpha, sigma = diffusion.log_snr_to_alpha_sigma(
    diffusion.expand(log_snr, noisy_latents)
  )
  gain = alpha * S**2 / (alpha**2 * S**2 + sigma**2)
  return samplers.Denoised(MU + gain * (noisy_latents - alpha * MU))


def mixture(noisy_latents, log_snr):
  """E[x0 | x_t] for data of two narrow bumps: far from affine."""
  alpha, sigma = diffusion.log_snr_to_alpha_sigma(
    diffusion.expand(log_snr, noisy_latents)
  )
  # NaN for a level out of range: no later step could undo it.
  inside = jnp.abs(log_snr) <= diffusion.LOG_SNR_MAX
  alpha *= diffusion.expand(jnp.where(inside, 1.0, jnp.nan), alpha)
  variance = alpha**2 * 0.01 + sigma**2
  x0 = jnp.tanh(noisy_latents * alpha / variance)
  gain = alpha * 0.01 / variance
  return samplers.Denoised(x0 + gain * (noisy_latents - alpha * x0))


def flow_of_gaussian(noise, log_snr):
  """Where the exact ODE takes `noise` at log_snr, in float64."""
  noise = np.asarray(noise, np.float64)
  alpha = np.sqrt(1 / (1 + np.exp(-float(log_snr))))
  spread = np.sqrt(alpha**2 * S**2 + 1 - alpha**2)
  return MU + S * (noise - alpha * MU) / spread


def keys(count, seed=0):
  return jax.random.split(jax.random.key(seed), count)


def draw(*shape, seed=1):
  return jax.random.normal(jax.random.key(seed), shape)


def levels(num_steps, spacing="uniform", schedule=COSINE):
  return samplers.log_snr_steps(schedule, num_steps, spacing)


@functools.cache
def compiled(name, denoise_fn):
  """One jitted program per sampler, denoiser and shape for all tests."""
  return jax.jit(
    lambda noise, log_snrs, rngs=None: samplers.sample(
      denoise_fn, SAMPLERS[name], noise, log_snrs, rngs
    )
  )


# --- Levels ------------------------------------------------------------------


@pytest.mark.parametrize("spacing", ["uniform", "log_snr", "karras"])
@pytest.mark.parametrize(
  "schedule",
  [
    COSINE,
    diffusion.scaled_linear_schedule(),
    diffusion.zero_terminal_snr_schedule(),
    diffusion.shifted_schedule(schedule=COSINE, image_size=512),
  ],
)
@pytest.mark.parametrize("num_steps", [1, 2, 17])
def test_levels_rise_from_the_schedules_noise_to_clean(
  spacing, schedule, num_steps
):
  log_snrs = levels(num_steps, spacing, schedule)
  assert log_snrs.shape == (num_steps + 1,) and log_snrs[-1] == jnp.inf
  assert np.all(np.diff(log_snrs) > 0) and np.isfinite(log_snrs[:-1]).all()
  noisiest, cleanest = schedule.log_snr(jnp.array([1.0, 0.001]))
  assert log_snrs[0] >= noisiest and log_snrs[-2] <= cleanest + 1e-4
  if spacing == "uniform":
    assert log_snrs[0] == noisiest


def test_spacings_are_uniform_in_what_they_say():
  times = COSINE.timesteps(levels(10)[:-1])
  np.testing.assert_allclose(np.diff(times), -0.1, atol=1e-5)
  np.testing.assert_allclose(
    np.diff(levels(10, "log_snr")[:-1]), (12.5 + 9) / 9, rtol=1e-4
  )
  rooted = np.exp(-np.asarray(levels(10, "karras")[:-1]) / 2) ** (1 / 7)
  np.testing.assert_allclose(np.diff(rooted, 2), 0.0, atol=1e-5)


def test_uniform_levels_of_a_ddpm_are_its_trailing_steps():
  schedule = diffusion.scaled_linear_schedule()
  indices = 1000 * schedule.timesteps(levels(50, "uniform", schedule)[:-1]) - 1
  np.testing.assert_allclose(indices, np.arange(999, 0, -20), atol=1e-3)


def test_levels_refuse_what_they_do_not_know():
  with pytest.raises(ValueError, match="num_steps=0"):
    levels(0)
  with pytest.raises(ValueError, match="'linear' must be uniform"):
    levels(4, "linear")


# --- Exactness ---------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_step_to_clean_is_x0_exactly(name):
  """What comes out is the denoiser's answer, without noise, at any size."""
  noisy, sampler = draw(2, 4, 4, 3), SAMPLERS[name]
  log_snr, clean = jnp.array([-2.0, 3.0]), jnp.full(2, jnp.inf)
  _, x0 = sampler.step(
    mixture, sampler.init(noisy), noisy, log_snr, clean, keys(2)
  )
  np.testing.assert_allclose(x0, mixture(noisy, log_snr).x0, atol=1e-6)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(
  "schedule", [COSINE, diffusion.zero_terminal_snr_schedule()]
)
def test_samples_have_the_datas_mean_and_std(name, schedule):
  noise, rngs = draw(4, 64, 64, 1), keys(4)
  log_snrs = levels(150, "uniform", schedule)
  x0 = compiled(name, gaussian)(noise, log_snrs, rngs)
  # 16384 draws: standard errors are 0.004 of the mean, 0.003 of the std; the
  # rest is the solver's. DDPM's forward variance is too large by its nature.
  np.testing.assert_allclose(x0.mean(), MU, atol=0.02)
  np.testing.assert_allclose(x0.std(), S, atol=0.04)


def errors(name, step_counts, spacing):
  noise = draw(1, 16, 16, 1)
  result = []
  for num_steps in step_counts:
    log_snrs = levels(num_steps, spacing)
    x0 = compiled(name, gaussian)(noise, log_snrs)
    exact = flow_of_gaussian(noise, log_snrs[0])
    result.append(np.sqrt(np.mean((x0 - exact) ** 2)))
  return np.array(result)


@pytest.mark.parametrize(
  ("name", "spacing", "order"),
  [
    ("ddim", "uniform", 1),
    ("ddim", "karras", 1),
    ("heun", "uniform", 2),
    ("heun", "karras", 2),
    ("dpm_solver_pp_2m", "karras", 2),
  ],
)
def test_solvers_converge_at_their_order(name, spacing, order):
  error = errors(name, [32, 64, 128], spacing)
  measured = np.log2(error[:-1] / error[1:])
  np.testing.assert_allclose(measured, order, atol=0.25)


def test_second_order_solvers_beat_ddim_from_zero_snr():
  """The first step is from log_snr -20, where sigma / alpha is 22026."""
  ddim = errors("ddim", [16, 32], "uniform")
  assert (errors("dpm_solver_pp_2m", [16, 32], "uniform") < 0.3 * ddim).all()
  # Heun at half the steps runs the network as often.
  assert (errors("heun", [8, 16], "uniform") < 0.8 * ddim).all()


def test_levels_that_end_before_clean_leave_the_noise_that_belongs_there():
  noise = draw(1, 16, 16, 1)
  log_snrs = COSINE.log_snr(jnp.linspace(1.0, 0.4, 200))
  noisy = samplers.sample(gaussian, samplers.heun(), noise, log_snrs)
  alpha, sigma = diffusion.log_snr_to_alpha_sigma(log_snrs[-1])
  expected = alpha * MU + jnp.sqrt(alpha**2 * S**2 + sigma**2) * noise
  np.testing.assert_allclose(noisy, expected, atol=2e-3)


# --- Relations between samplers ----------------------------------------------


def test_ddim_with_eta_1_is_the_ancestral_sampler():
  noise, rngs = draw(4, 64, 64, 1), keys(4)
  ddim = compiled("ddim_1", gaussian)(noise, levels(150), rngs)
  ddpm = compiled("ddpm", gaussian)(noise, levels(150), rngs)
  np.testing.assert_allclose(ddim, ddpm, atol=2e-5)
  deterministic = compiled("ddim", gaussian)(noise, levels(150), rngs)
  assert not np.allclose(ddim, deterministic, atol=0.1)


def one_step(sampler, x0, noisy_latents, log_snr_t, log_snr_s):
  """A step's result where the denoiser says x0 whatever it is asked."""

  def answer(noisy_latents, log_snr):
    return samplers.Denoised(jnp.full_like(noisy_latents, x0))

  batch = noisy_latents.shape[:1]
  return sampler.step(
    answer,
    sampler.init(noisy_latents),
    noisy_latents,
    jnp.full(batch, log_snr_t),
    jnp.full(batch, log_snr_s),
    keys(*batch),
  )[1]


def test_euler_is_eulers_step_in_sigma():
  """x / alpha moves by (sigma_s - sigma_t) d, all in float64."""
  x_t = np.asarray(draw(1, 2, 2, 1), np.float64)
  alpha_t, alpha_s = (1 / (1 + np.exp([1.0, -2.0]))) ** 0.5
  sigma_t, sigma_s = np.exp([0.5, -1.0])
  d = (x_t / alpha_t - 0.3) / sigma_t
  expected = alpha_s * (x_t / alpha_t + (sigma_s - sigma_t) * d)
  actual = one_step(samplers.euler(), 0.3, jnp.float32(x_t), -1.0, 2.0)
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("eta", [0.6, 1.0])
def test_euler_ancestral_goes_down_and_up_in_sigma(eta):
  alpha_t, alpha_s = (1 / (1 + np.exp([1.0, -0.2]))) ** 0.5
  sigma_t, sigma_s = np.exp([0.5, -0.1])
  up = eta * (sigma_s**2 * (sigma_t**2 - sigma_s**2) / sigma_t**2) ** 0.5
  down = (sigma_s**2 - up**2) ** 0.5
  d = (0.7 / alpha_t - 0.3) / sigma_t
  mean = alpha_s * (0.7 / alpha_t + (down - sigma_t) * d)
  sampler = samplers.euler_ancestral(eta)
  x_s = one_step(sampler, 0.3, jnp.full((1, 128, 128, 1), 0.7), -1.0, 0.2)
  np.testing.assert_allclose(x_s.mean(), mean, atol=4 * alpha_s * up / 128)
  np.testing.assert_allclose(x_s.std(), alpha_s * up, rtol=0.03)


@pytest.mark.parametrize("variance", ["posterior", "forward"])
def test_a_ddpm_step_has_the_mean_and_variance_of_its_posterior(variance):
  """From Bayes: q(x_s | x_t, x0) is q(x_t | x_s) q(x_s | x0), normalised."""
  alpha_t, alpha_s = (1 / (1 + np.exp([1.0, 0.2]))) ** 0.5
  var_t, var_s = 1 - alpha_t**2, 1 - alpha_s**2
  ratio = alpha_t / alpha_s
  beta = var_t - ratio**2 * var_s
  precision = ratio**2 / beta + 1 / var_s
  mean = (ratio * 0.7 / beta + alpha_s * 0.3 / var_s) / precision
  std = {"posterior": precision**-0.5, "forward": beta**0.5}[variance]
  sampler = samplers.ddpm(variance)
  x_s = one_step(sampler, 0.3, jnp.full((1, 128, 128, 1), 0.7), -1.0, -0.2)
  np.testing.assert_allclose(x_s.mean(), mean, atol=4 * std / 128)
  np.testing.assert_allclose(x_s.std(), std, rtol=0.03)


@pytest.mark.parametrize(
  ("fraction", "same_as"), [(0.0, "posterior"), (1.0, "forward")]
)
def test_learned_variance_lies_between_its_bounds(fraction, same_as):
  def learned(noisy_latents, log_snr):
    denoised = mixture(noisy_latents, log_snr)
    return denoised._replace(log_variance=jnp.full_like(denoised.x0, fraction))

  noisy = draw(2, 4, 4, 3)
  for level in (0.5, jnp.inf):
    log_snr, next_log_snr = jnp.full(2, -1.0), jnp.full(2, level)
    arguments = ((), noisy, log_snr, next_log_snr, keys(2))
    _, bound = samplers.ddpm(same_as).step(mixture, *arguments)
    _, actual = samplers.ddpm("learned").step(learned, *arguments)
    np.testing.assert_allclose(actual, bound, atol=1e-5)


def test_learned_variance_needs_a_network_that_has_one():
  with pytest.raises(ValueError, match="predicts its variance"):
    samplers.sample(
      gaussian, samplers.ddpm("learned"), draw(1, 2, 2, 1), levels(2), keys(1)
    )


# --- Keys, batches, compilation ----------------------------------------------


@pytest.mark.parametrize(
  "name", ["ddim", "ddim_half", "ddpm", "heun", "dpm_solver_pp_2m"]
)
def test_an_image_does_not_change_with_its_batch_mates(name):
  def run(noise, rngs):
    return compiled(name, mixture)(noise, levels(6), rngs)

  noise, rngs = draw(5, 4, 4, 3), keys(5)
  together = run(noise, rngs)
  assert np.isfinite(together).all()
  for i in (0, 3):
    alone = run(noise[i : i + 1], rngs[i : i + 1])
    np.testing.assert_array_equal(alone[0], together[i])
  order = jnp.array([3, 1, 4, 0, 2])
  np.testing.assert_array_equal(run(noise[order], rngs[order]), together[order])


@pytest.mark.parametrize("name", ["ddim_half", "ddpm"])
def test_noise_differs_between_images_and_steps_and_follows_the_key(name):
  noise = jnp.tile(draw(1, 4, 4, 3), (5, 1, 1, 1))
  rngs = keys(5).at[2].set(keys(5)[0])
  x0 = compiled(name, mixture)(noise, levels(6), rngs)
  np.testing.assert_array_equal(x0[0], x0[2])
  assert not np.allclose(x0[0], x0[1], atol=0.05)


def test_every_step_of_every_image_has_its_own_key():
  def write_down(denoise_fn, carry, noisy, log_snr_t, log_snr_s, rngs):
    drawn = jax.vmap(jax.random.uniform)(rngs)
    return carry + 1, noisy.at[:, carry].set(drawn)

  sampler = samplers.Sampler(lambda noisy_latents: 0, write_down)
  drawn = samplers.sample(
    gaussian, sampler, jnp.zeros((2, 3)), levels(3), keys(2)
  )
  assert len(np.unique(drawn)) == 6


@pytest.mark.parametrize("name", STOCHASTIC)
def test_a_stochastic_sampler_asks_for_keys(name):
  with pytest.raises(ValueError, match="one key per image"):
    samplers.sample(gaussian, SAMPLERS[name], draw(1, 2, 2, 1), levels(2))


@pytest.mark.parametrize("name", ["ddim", "dpm_solver_pp_2m"])
def test_many_steps_trace_the_network_no_more_often_than_two(name):
  """One scan: compiling costs the same whatever the number of steps."""

  def traces(num_steps):
    count = 0

    def counting(noisy_latents, log_snr):
      nonlocal count
      count += 1
      return gaussian(noisy_latents, log_snr)

    run = jax.jit(
      lambda noise: samplers.sample(
        counting, SAMPLERS[name], noise, levels(num_steps)
      )
    )
    run(draw(1, 2, 2, 1))
    run(draw(1, 2, 2, 1, seed=2))
    return count

  assert traces(50) == traces(2) == 1


def test_a_network_in_bfloat16_leaves_the_state_in_float32():
  seen = []

  def half(noisy_latents, log_snr):
    seen.append((noisy_latents.dtype, log_snr.dtype, log_snr.shape))
    x0 = gaussian(noisy_latents, log_snr).x0
    return samplers.Denoised(x0.astype(jnp.bfloat16))

  noise = draw(2, 4, 4, 1).astype(jnp.bfloat16)
  x0 = samplers.sample(half, samplers.dpm_solver_pp_2m(), noise, levels(4))
  assert x0.dtype == jnp.float32
  assert set(seen) == {(jnp.dtype("float32"), jnp.dtype("float32"), (2,))}


def test_wrong_shapes_are_refused():
  noise = draw(1, 2, 2, 3)

  def six_channels(noisy_latents, log_snr):
    return samplers.Denoised(jnp.concatenate([noisy_latents] * 2, axis=-1))

  with pytest.raises(ValueError, match=r"\(1, 2, 2, 6\)"):
    samplers.sample(six_channels, samplers.ddim(), noise, levels(2))
  with pytest.raises(ValueError, match=r"\[num_steps \+ 1\]"):
    samplers.sample(gaussian, samplers.ddim(), noise, jnp.zeros(1))


@pytest.mark.parametrize(
  "make", [lambda: samplers.ddim(1.5), lambda: samplers.ddpm("small")]
)
def test_arguments_that_make_no_sense_are_refused(make):
  with pytest.raises(ValueError, match="must"):
    make()


@pytest.mark.parametrize("name", ["ddim", "heun", "dpm_solver_pp_2m", "ddpm"])
def test_an_estimate_is_handed_from_step_to_step(name):
  """x0 of a denoiser that answers its estimate + 1: the number of steps.

  Whatever else a step evaluates is told the step's own first estimate.
  """
  noise = jnp.zeros((2, 3))
  levels = samplers.log_snr_steps(COSINE, 4)
  rngs = jax.random.split(jax.random.key(0), 2)

  def denoise_fn_of(estimate):
    return lambda x, log_snr: samplers.Denoised(estimate + 1.0)

  x0 = jax.jit(
    lambda: samplers.sample_with_estimates(
      denoise_fn_of, SAMPLERS[name], noise, levels, rngs
    )
  )()
  # The last step goes to the clean level, where every sampler answers x0.
  np.testing.assert_allclose(x0, 4.0, rtol=1e-5)


def test_estimates_change_nothing_for_a_network_that_ignores_them():
  noise = jax.random.normal(jax.random.key(1), (2, 3))
  levels = samplers.log_snr_steps(COSINE, 4)
  plain = samplers.sample(gaussian, SAMPLERS["heun"], noise, levels)
  told = samplers.sample_with_estimates(
    lambda estimate: gaussian, SAMPLERS["heun"], noise, levels
  )
  np.testing.assert_array_equal(plain, told)
