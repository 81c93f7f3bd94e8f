"""Decorators of denoise_fn against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from byt5_diffusion import diffusion, guidance, samplers

NOISY = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
LOG_SNR = jnp.array([-1.0, 2.0])
COND_X0 = 0.3 * NOISY + 0.2
NULL_X0 = jnp.tanh(NOISY) - 0.1


def cond(noisy_latents, log_snr):
  del log_snr
  return samplers.Denoised(0.3 * noisy_latents + 0.2)


def null(noisy_latents, log_snr):
  del log_snr
  return samplers.Denoised(jnp.tanh(noisy_latents) - 0.1)


def pair(noisy_latents, log_snr):
  """First half conditional, other half not; says so if sizes are odd."""
  size = noisy_latents.shape[0] // 2
  return samplers.Denoised(
    jnp.concatenate(
      [
        cond(noisy_latents[:size], log_snr[:size]).x0,
        null(noisy_latents[size:], log_snr[size:]).x0,
      ]
    )
  )


def says(x0):
  return lambda noisy_latents, log_snr: samplers.Denoised(jnp.asarray(x0))


def never(noisy_latents, log_snr):
  raise AssertionError("This pass should not have been run.")


@pytest.mark.parametrize("scale", [1, 1.0])
def test_scale_1_is_the_network_itself_without_a_second_pass(scale):
  assert guidance.guide(cond, never, scale) is cond
  assert guidance.guide_batched(never, scale, cond) is cond


def test_batched_guidance_of_scale_1_asks_for_the_single_network():
  with pytest.raises(ValueError, match="pass denoise_fn"):
    guidance.guide_batched(pair, 1.0)


def test_a_traced_scale_of_1_gives_the_conditional_answer():
  def x0(scale):
    return guidance.guide(cond, null, scale)(NOISY, LOG_SNR).x0

  np.testing.assert_allclose(jax.jit(x0)(1.0), COND_X0, atol=1e-6)


@pytest.mark.parametrize("scale", [0.0, 3.5])
def test_guidance_is_its_formula(scale):
  guided = guidance.guide(cond, null, scale)(NOISY, LOG_SNR)
  expected = NULL_X0 + scale * (COND_X0 - NULL_X0)
  np.testing.assert_allclose(guided.x0, expected, atol=1e-6)
  np.testing.assert_array_equal(guided.conditional_x0, COND_X0)


def test_guidance_may_differ_by_image():
  scales = jnp.array([0.0, 2.0])
  guided = guidance.guide(cond, null, scales)(NOISY, LOG_SNR).x0
  np.testing.assert_allclose(guided[0], NULL_X0[0], atol=1e-6)
  np.testing.assert_allclose(guided[1], (2 * COND_X0 - NULL_X0)[1], atol=1e-6)
  with pytest.raises(ValueError, match=r"\[B\]"):
    guidance.guide(cond, null, jnp.ones(3))(NOISY, LOG_SNR)


@pytest.mark.parametrize("prediction_type", diffusion.PREDICTION_TYPES)
def test_guidance_of_x0_is_guidance_of_any_prediction(prediction_type):
  def predict(x0):
    return diffusion.convert_prediction(
      x0, NOISY, LOG_SNR, "x0", prediction_type
    )

  guided = predict(NULL_X0) + 4.0 * (predict(COND_X0) - predict(NULL_X0))
  expected = diffusion.to_x0(guided, NOISY, LOG_SNR, prediction_type)
  actual = guidance.guide(cond, null, 4.0)(NOISY, LOG_SNR).x0
  np.testing.assert_allclose(actual, expected, atol=2e-5)


def test_batched_guidance_is_guidance_in_one_pass_of_twice_the_batch():
  sizes = []

  def counted(noisy_latents, log_snr):
    sizes.append((noisy_latents.shape[0], log_snr.shape))
    return pair(noisy_latents, log_snr)

  batched = guidance.guide_batched(counted, 3.0)(NOISY, LOG_SNR)
  separate = guidance.guide(cond, null, 3.0)(NOISY, LOG_SNR)
  assert sizes == [(4, (4,))]
  np.testing.assert_allclose(batched.x0, separate.x0, atol=1e-6)
  np.testing.assert_array_equal(batched.conditional_x0, COND_X0)


def test_guidance_keeps_the_conditional_variance():
  def learned(value):
    def denoise(noisy_latents, log_snr):
      fraction = jnp.full_like(noisy_latents, value)
      return samplers.Denoised(noisy_latents, log_variance=fraction)

    return denoise

  guided = guidance.guide(learned(0.2), learned(0.9), 5.0)(NOISY, LOG_SNR)
  np.testing.assert_allclose(guided.log_variance, 0.2, rtol=1e-6)


def test_full_rescaling_gives_each_image_the_conditional_std():
  guided = guidance.guide(cond, null, 7.5)
  before = guided(NOISY, LOG_SNR).x0
  after = guidance.rescale_guidance(1.0)(guided)(NOISY, LOG_SNR).x0
  axes = (1, 2, 3)
  wanted = np.std(COND_X0, axis=axes)
  assert not np.allclose(np.std(before, axis=axes), wanted, rtol=0.1)
  np.testing.assert_allclose(np.std(after, axis=axes), wanted, rtol=1e-5)


def test_partial_rescaling_is_a_mixture():
  guided = guidance.guide(cond, null, 7.5)
  rescaled = {
    strength: guidance.rescale_guidance(strength)(guided)(NOISY, LOG_SNR).x0
    for strength in (0.0, 0.7, 1.0)
  }
  expected = 0.7 * rescaled[1.0] + 0.3 * rescaled[0.0]
  np.testing.assert_allclose(rescaled[0.7], expected, atol=1e-5)
  np.testing.assert_allclose(rescaled[0.0], guided(NOISY, LOG_SNR).x0)


def test_rescaling_without_guidance_changes_nothing():
  plain = guidance.rescale_guidance(1.0)(cond)(NOISY, LOG_SNR)
  np.testing.assert_array_equal(plain.x0, COND_X0)


def test_rescaling_a_flat_image_stays_finite():
  flat = jnp.full((1, 4, 4, 3), 0.5)
  guided = guidance.guide(says(flat), says(flat), 3.0)
  x0 = guidance.rescale_guidance(1.0)(guided)(flat, jnp.zeros(1)).x0
  np.testing.assert_allclose(x0, 0.5, rtol=1e-5)


def test_thresholding_leaves_what_is_in_bounds():
  x0 = jnp.linspace(-1, 1, 48).reshape(1, 4, 4, 3)
  for decorator in (
    guidance.dynamic_thresholding(0.9),
    guidance.static_thresholding(),
  ):
    after = decorator(says(x0))(x0, jnp.zeros(1)).x0
    np.testing.assert_allclose(after, x0, atol=1e-6)


@pytest.mark.parametrize("bound", [1.0, 2.0])
def test_dynamic_thresholding_bounds_each_image_by_its_own_quantile(bound):
  x0 = np.stack([np.linspace(-3, 3, 401), np.linspace(-0.5, 0.5, 401)])
  x0 = x0.reshape(2, 401, 1, 1)
  decorator = guidance.dynamic_thresholding(0.8, bound)
  after = decorator(says(x0))(jnp.asarray(x0), LOG_SNR).x0
  # The 0.8 quantile of |linspace(-3, 3)| is 2.4.
  expected = np.clip(x0[0], -2.4, 2.4) * (bound / 2.4)
  np.testing.assert_allclose(after[0], expected, atol=0.02)
  np.testing.assert_allclose(after[1], x0[1], atol=1e-6)
  assert np.abs(after).max() <= bound + 1e-6


def test_dynamic_thresholding_may_be_told_how_far_it_goes():
  x0 = jnp.linspace(-3, 3, 401).reshape(1, 401, 1, 1)
  decorator = guidance.dynamic_thresholding(0.8, max_threshold=1.5)
  after = decorator(says(x0))(x0, jnp.zeros(1)).x0
  expected = np.clip(x0, -1.5, 1.5) / 1.5
  np.testing.assert_allclose(after, expected, atol=1e-6)
  with pytest.raises(ValueError, match=r"max_threshold=0.5 must be at least"):
    guidance.dynamic_thresholding(max_threshold=0.5)


def test_static_thresholding_clips():
  x0 = jnp.array([-7.0, 0.5, 7.0]).reshape(1, 3, 1, 1)
  after = guidance.static_thresholding(2.0)(says(x0))(x0, jnp.zeros(1)).x0
  np.testing.assert_array_equal(after.ravel(), [-2.0, 0.5, 2.0])


def test_composition_applies_the_first_innermost():
  """Clipping to 2 and then scaling down is not scaling and then clipping."""
  x0 = jnp.full((1, 2, 2, 1), 8.0)
  clip = guidance.static_thresholding(2.0)
  halve = guidance.dynamic_thresholding(1.0, 1.0)
  both = guidance.compose([clip, halve])(says(x0))(x0, jnp.zeros(1)).x0
  np.testing.assert_allclose(both, 1.0)
  assert guidance.compose([])(cond) is cond


def test_decorators_compose_inside_a_sampler():
  denoise_fn = guidance.guide_batched(pair, 9.0)
  denoise_fn = guidance.rescale_guidance(0.7)(denoise_fn)
  denoise_fn = guidance.dynamic_thresholding(0.9)(denoise_fn)
  log_snrs = samplers.log_snr_steps(diffusion.cosine_schedule(), 4)
  x0 = samplers.sample(denoise_fn, samplers.ddim(), NOISY, log_snrs)
  assert np.isfinite(x0).all() and np.abs(x0).max() <= 1.0


@pytest.mark.parametrize(
  "make",
  [
    lambda: guidance.rescale_guidance(1.1),
    lambda: guidance.dynamic_thresholding(quantile=99.5),
    lambda: guidance.dynamic_thresholding(bound=0.0),
    lambda: guidance.static_thresholding(-1.0),
  ],
)
def test_arguments_that_make_no_sense_are_refused(make):
  with pytest.raises(ValueError, match="must"):
    make()
