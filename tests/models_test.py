"""What a text-to-image model promises beyond the contract."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from byt5_diffusion import (
  conditions,
  contract,
  diffusion,
  guidance,
  models,
  samplers,
)


@pytest.fixture(scope="module")
def model() -> models.TextToImageModel:
  return tiny.make_model()


@pytest.fixture(scope="module")
def params(model: models.TextToImageModel) -> Any:
  return tiny.make_variables(model)["params"]


def keys(count: int) -> jax.Array:
  return jax.random.split(jax.random.key(7), count)


def test_null_condition_is_the_empty_caption() -> None:
  tokens = jnp.asarray(tiny.make_batch()["text_tokens"])
  null = conditions.null_tokens(tokens)
  assert null.shape == tokens.shape
  assert null[0].tolist() == [1] + [0] * (tiny.LENGTH - 1)


def test_a_draw_belongs_to_the_example_and_not_to_its_row() -> None:
  ids = jnp.asarray([[1, 2], [3, 4], [1, 5]], jnp.uint32)
  draw = jax.vmap(jax.random.uniform)
  values = draw(contract.per_example_rngs(jax.random.key(0), ids))
  order = jnp.asarray([2, 0, 1])
  shuffled = draw(contract.per_example_rngs(jax.random.key(0), ids[order]))
  assert jnp.array_equal(values[order], shuffled)
  assert len(set(values.tolist())) == 3


def test_guidance_scale_one_is_the_unguided_sampler(
  model: models.TextToImageModel, params: Any
) -> None:
  tokens = jnp.asarray(tiny.make_batch(2)["text_tokens"])

  def draw(scale: float) -> jax.Array:
    return jax.jit(
      lambda: model.sample(params, tokens, keys(2), guidance_scale=scale)
    )()

  one = draw(1.0)
  # 1 + epsilon takes the other road, through the null condition.
  np.testing.assert_allclose(one, draw(1.0 + 1e-6), atol=1e-3)
  assert float(jnp.abs(one - draw(5.0)).max()) > 1e-3


def test_an_image_does_not_change_with_its_batch_mates(
  model: models.TextToImageModel, params: Any
) -> None:
  tokens = jnp.asarray(tiny.make_batch(4)["text_tokens"])
  draw = jax.jit(lambda t, k: model.sample(params, t, k))
  together = draw(tokens, keys(4))
  mixed = draw(
    tokens[jnp.asarray([2, 0, 0, 0])], keys(4)[jnp.asarray([2, 0, 0, 0])]
  )
  np.testing.assert_allclose(mixed[0], together[2], atol=1e-5)
  np.testing.assert_allclose(mixed[1], together[0], atol=1e-5)


def test_sampling_goes_through_the_decorator(params: Any) -> None:
  def paint_it_white(denoise: samplers.DenoiseFn) -> samplers.DenoiseFn:
    def white(x: jax.Array, log_snr: jax.Array) -> samplers.Denoised:
      return samplers.Denoised(jnp.ones_like(denoise(x, log_snr).x0))

    return white

  model = tiny.make_model(denoise_decorator=paint_it_white)
  tokens = jnp.asarray(tiny.make_batch(2)["text_tokens"])
  images = jax.jit(lambda: model.sample(params, tokens, keys(2)))()
  np.testing.assert_allclose(images, 1.0)
  bounded = tiny.make_model(
    denoise_decorator=guidance.static_thresholding(), guidance_scale=9.0
  )
  images = jax.jit(lambda: bounded.sample(params, tokens, keys(2)))()
  assert float(jnp.abs(images).max()) <= 1


def test_condition_dropout_of_one_ignores_the_caption(params: Any) -> None:
  batch = {k: jnp.asarray(v) for k, v in tiny.make_batch().items()}
  other = batch | {"text_tokens": batch["text_tokens"][::-1]}

  def difference(rate: float) -> float:
    model = tiny.make_model(condition_dropout_rate=rate)
    loss = jax.jit(lambda b: model.loss_fn(params, b, jax.random.key(0))[0])
    return abs(float(loss(batch) - loss(other)))

  assert difference(1.0) == 0
  assert difference(0.0) > 1e-6


def test_loss_is_the_weighted_mean_square_of_the_target(params: Any) -> None:
  """A network that is always right has no loss; always zero has the target's.

  With a zero prediction of noise, E |0 - noise|^2 = 1 whatever the level.
  """
  model = tiny.make_model(512, prediction_type="noise")
  batch = {k: jnp.asarray(v) for k, v in tiny.make_batch(512).items()}
  silent = jax.tree.map(jnp.zeros_like, params["unet"])
  loss, _ = jax.jit(lambda p, b: model.loss_fn(p, b, jax.random.key(0)))(
    params | {"unet": silent}, batch
  )
  np.testing.assert_allclose(loss, 1.0, atol=0.02)
  doubled = tiny.make_model(
    512,
    prediction_type="noise",
    loss_weight=lambda log_snr, _: jnp.full_like(log_snr, 2.0),
  )
  twice, _ = jax.jit(lambda p, b: doubled.loss_fn(p, b, jax.random.key(0)))(
    params | {"unet": silent}, batch
  )
  np.testing.assert_allclose(twice, 2 * loss, rtol=1e-6)


@pytest.mark.parametrize("prediction_type", diffusion.PREDICTION_TYPES)
def test_denoise_fn_undoes_the_prediction_type(
  params: Any, prediction_type: str
) -> None:
  """x0 from the seam is what the raw output says by the conversion."""
  model = tiny.make_model(prediction_type=prediction_type)
  tokens = jnp.asarray(tiny.make_batch(2)["text_tokens"])
  noisy = jax.random.normal(jax.random.key(1), (2, tiny.HEIGHT, tiny.WIDTH, 3))
  log_snr = jnp.asarray([-1.0, 2.0])

  @jax.jit
  def both() -> tuple[jax.Array, jax.Array]:
    conditioning = model.encode_text(params, tokens)
    raw = model.predict(params, noisy, log_snr, conditioning)
    return raw, model.denoise_fn(params, conditioning)(noisy, log_snr).x0

  raw, x0 = both()
  expected = diffusion.to_x0(raw, noisy, log_snr, prediction_type)
  np.testing.assert_allclose(x0, expected, atol=1e-5)


@pytest.mark.parametrize(
  ("overrides", "message"),
  [
    ({"prediction_type": "epsilon"}, "noise"),
    ({"condition_dropout_rate": 1.5}, "condition_dropout_rate"),
    ({"loss_normalizing_factor": 0.0}, "loss_normalizing_factor"),
  ],
)
def test_bad_arguments_are_named(
  overrides: dict[str, Any], message: str
) -> None:
  with pytest.raises(ValueError, match=message):
    tiny.make_model(**overrides)


def test_frozen_weights_must_be_given() -> None:
  model = tiny.make_model(freeze_text_encoder=True)
  with pytest.raises(ValueError, match="flax_mutables"):
    model.encode_text({}, jnp.ones((1, tiny.LENGTH), jnp.int32))


@pytest.mark.parametrize(
  "changes",
  [
    {"step_spacing": "even"},
    {"num_sampling_steps": 0},
    {"image_size": (0, 16)},
    {"image_size": (16,)},
  ],
)
def test_what_cannot_be_sampled_is_refused_at_once(changes):
  with pytest.raises(ValueError, match=next(iter(changes))):
    tiny.make_model(**changes)
