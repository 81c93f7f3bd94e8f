"""A model whose UNet also answers the variance of a step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from byt5_diffusion import diffusion, samplers, sampling_steps, unet


def make_model(**overrides):
  config = {
    "out_channels": 6,
    "channels": (8,),
    "num_res_blocks": 1,
    "transformer_depth": (0,),
    "mid_transformer_depth": 0,
    "num_heads": (2,),
    "cross_attention_dim": 16,
    "norm_groups": 4,
    "zero_init_outputs": False,
  }
  return tiny.make_model(
    unet=unet.UNet(unet.UNetConfig(**(config | overrides))),
    schedule=diffusion.squared_cosine_schedule(),
    prediction_type="noise",
    time_offset=-1.0,
    sampler=samplers.ddpm("learned"),
    steps=sampling_steps.discrete_steps("leading"),
  )


@pytest.mark.slow
def test_the_second_half_of_the_channels_is_the_variance_and_is_learnt():
  model = make_model()
  variables, batch = tiny.make_variables(model), tiny.make_batch()
  told = model.condition(variables["params"], batch)
  log_snr = jnp.linspace(-2, 4, 8)
  noisy = jnp.asarray(batch["images"])

  @jax.jit
  def run(params):
    prediction = model.predict(params, noisy, log_snr, told)
    return prediction, model.denoise_fn(params, told)(noisy, log_snr)

  prediction, denoised = run(variables["params"])
  expected = diffusion.to_x0(prediction[..., :3], noisy, log_snr, "noise")
  np.testing.assert_allclose(denoised.x0, expected, atol=1e-4)
  np.testing.assert_allclose(
    denoised.log_variance, prediction[..., 3:] / 2 + 0.5, atol=1e-5
  )

  @jax.jit
  def gradient(params):
    return jax.grad(lambda p: model.loss_fn(p, batch, jax.random.key(1))[0])(
      params
    )

  last = gradient(variables["params"])["unet"]["conv_out"]["bias"]
  assert last.shape == (6,) and (np.abs(last) > 0).all()
  images = jax.jit(
    lambda params: model.sample(
      params, batch["text_tokens"][:2], jax.random.split(jax.random.key(0), 2)
    )
  )(variables["params"])
  assert np.isfinite(images).all()


def test_a_prediction_is_split_and_other_numbers_of_channels_are_refused():
  model = make_model()
  noisy, log_snr = jnp.ones((1, 2, 2, 3)), jnp.zeros(1)
  prediction = jnp.concatenate([0.2 * noisy, -0.5 * noisy], axis=-1)
  denoised = model._denoised(prediction, noisy, log_snr)
  np.testing.assert_allclose(denoised.x0, (1 - 0.2 * 0.5**0.5) / 0.5**0.5)
  np.testing.assert_allclose(denoised.log_variance, 0.25 * noisy)
  assert model._denoised(noisy, noisy, log_snr).log_variance is None
  with pytest.raises(ValueError, match=r"out_channels .* the 3 .* not 4"):
    model._denoised(jnp.zeros((1, 2, 2, 4)), noisy, log_snr)
