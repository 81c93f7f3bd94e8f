"""What a text-to-image model promises beyond the contract."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import linen as nn
from flax.linen import partitioning as nn_partitioning

from byt5_diffusion import (
  autoencoder,
  conditions,
  contract,
  diffusion,
  guidance,
  joint,
  models,
  ocr,
  samplers,
  text_conditioning,
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


@pytest.mark.slow
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


class NoiseCodec(autoencoder.PixelCodec):
  """Latents that are nothing but the codec's own draw."""

  def encode(self, params: Any, images: jax.Array, rngs: jax.Array) -> Any:
    del params
    draw = jax.vmap(lambda key: jax.random.normal(key, images.shape[1:]))
    return draw(rngs)


@pytest.mark.parametrize("rng", [None, jax.random.key(0)])
def test_the_noise_is_not_that_which_the_codec_drew(
  params: Any, rng: jax.Array | None, monkeypatch: pytest.MonkeyPatch
) -> None:
  def compare(
    self: Any, params: Any, latents: Any, noise: Any, *rest: Any, **options: Any
  ) -> jax.Array:
    products = latents * noise
    return products.mean(axis=(1, 2, 3))

  monkeypatch.setattr(models.TextToImageModel, "_per_example_loss", compare)
  model = tiny.make_model(codec=NoiseCodec())
  batch = jax.tree.map(jnp.asarray, tiny.make_batch())
  # Of equal draws it would be 1, of independent ones 0 +- 0.02.
  loss, _ = model.loss_fn(params, batch, rng)
  assert abs(float(loss)) < 0.2


def test_features_do_not_depend_on_the_row(
  monkeypatch: pytest.MonkeyPatch,
) -> None:
  model = tiny.make_model(codec=NoiseCodec())
  encode, drawn = model._encode_images, []

  def end(*args: Any) -> None:
    drawn.append(encode(*args))
    raise StopIteration

  monkeypatch.setattr(
    type(model), "_encode_images", lambda _, *args: end(*args)
  )
  images = jnp.zeros((2, tiny.HEIGHT, tiny.WIDTH, 3))
  with pytest.raises(StopIteration):
    model.features({}, images, 0.0, "down_blocks_0")
  np.testing.assert_array_equal(drawn[0][0], drawn[0][1])


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


# --- Two encoders ------------------------------------------------------------


@pytest.fixture(scope="module")
def two() -> tuple[models.TextToImageModel, Any]:
  """Its UNet asks for all that there is of a text, as SDXL's does."""
  net = tiny.make_dot_unet(
    text_pooling="given", pooled_text_dim=7, micro_conditioning_features=4
  )
  model = tiny.make_two_encoder_model(unet=net)
  return model, tiny.make_variables(model)


def batch_of(model: Any, count: int = 2) -> dict[str, jax.Array]:
  batch = tiny.make_batch_for(model, count)
  return {name: jnp.asarray(x) for name, x in batch.items()}


def condition(two: Any, batch: Any, drop: Any = None) -> Any:
  """The model's conditioning of a batch, compiled once for all tests."""
  model, variables = two
  if drop is None:
    drop = jnp.zeros(len(batch["images"]), bool)
  return _condition(model, variables, batch, drop)


@functools.partial(jax.jit, static_argnums=0)
def _condition(model: Any, variables: Any, batch: Any, drop: Any) -> Any:
  return model.condition(variables["params"], batch, variables, drop=drop)


def test_the_modes_are_those_of_the_data() -> None:
  from byt5_diffusion.data import captions

  assert text_conditioning.MODES == captions.MODES


def test_two_encoders_are_one_text_to_the_unet(two: Any) -> None:
  """Lengths and masks add up; each part is its own encoder's."""
  model, variables = two
  batch = batch_of(model)
  told = condition(two, batch)
  length = tiny.LENGTH + tiny.SEMANTIC_LENGTH
  assert told.text_embeddings.shape == (2, length, 16)
  used = [*(batch["text_tokens"] > 0).T, *(batch["semantic_tokens"] > 0).T]
  assert jnp.array_equal(told.text_mask, jnp.stack(used, axis=1))
  alone = tiny.make_model().encode_text(
    variables["params"], batch["text_tokens"]
  )
  bytes_part = told.text_embeddings[:, : tiny.LENGTH]
  np.testing.assert_allclose(bytes_part, alone.text_embeddings, atol=1e-6)
  raw = model.semantic_encoder.apply(
    {"params": variables["frozen"]["semantic_encoder"]},
    batch["semantic_tokens"],
  )
  kernel = variables["params"]["text_projection"]["semantic_encoder"]["kernel"]
  np.testing.assert_allclose(
    told.text_embeddings[:, tiny.LENGTH :], raw @ kernel, atol=1e-5
  )


def test_only_a_width_that_differs_is_projected(two: Any) -> None:
  _, variables = two
  projections = variables["params"]["text_projection"]
  assert set(projections) == {"semantic_encoder", "pooled"}
  equal = tiny.make_two_encoder_model(
    semantic_encoder=tiny.make_model().text_encoder
  )
  shapes = jax.eval_shape(
    lambda: equal.get_initial_variables(
      jax.random.key(0), equal.input_shapes(2)
    )
  )
  assert set(shapes["params"]) == {"text_encoder", "unet"}


def test_both_encoders_are_dropped_together(two: Any) -> None:
  batch = batch_of(two[0])
  drop = jnp.asarray([True, False])
  mixed = condition(two, batch, drop)
  null = {
    name: conditions.null_tokens(x) if "tokens" in name else x
    for name, x in batch.items()
  }
  empty, full = condition(two, null), condition(two, batch)
  for name in ("text_embeddings", "text_mask", "pooled_text"):
    found = getattr(mixed, name)
    np.testing.assert_allclose(found[0], getattr(empty, name)[0], atol=1e-6)
    np.testing.assert_allclose(found[1], getattr(full, name)[1], atol=1e-6)
  # The null condition is one [eos] each.
  assert int(empty.text_mask[0].sum()) == 2


def test_both_texts_are_drawn_from(two: Any) -> None:
  model, variables = two
  batch = batch_of(model)

  @jax.jit
  def draw(bytes_: jax.Array, pieces: jax.Array) -> jax.Array:
    return model.sample(
      variables["params"],
      bytes_,
      keys(2),
      semantic_tokens=pieces,
      flax_mutables=variables,
      guidance_scale=2.0,
      num_steps=2,
    )

  tokens = batch["text_tokens"], batch["semantic_tokens"]
  first = draw(*tokens)
  assert float(jnp.abs(first - draw(tokens[0][::-1], tokens[1])).max()) > 1e-4
  assert float(jnp.abs(first - draw(tokens[0], tokens[1][::-1])).max()) > 1e-4
  with pytest.raises(ValueError, match="semantic_tokens"):
    model.sample(
      variables["params"], tokens[0], keys(2), flax_mutables=variables
    )


def test_the_projection_learns_and_the_frozen_encoder_does_not(
  two: Any,
) -> None:
  model, variables = two
  grad = jax.jit(jax.grad(model.loss_fn, has_aux=True))
  gradients, _ = grad(
    variables["params"],
    batch_of(model, 8),
    jax.random.key(0),
    {"frozen": variables["frozen"]},
  )
  for projection in gradients["text_projection"].values():
    assert float(jnp.abs(projection["kernel"]).max()) > 0
  assert "semantic_encoder" not in gradients


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"conditioning_mode": "both"}, "byt5_only, quoted, concat"),
    ({"conditioning_mode": "quoted"}, "needs semantic_encoder"),
    ({"max_semantic_length": 4}, "takes no max_semantic_length"),
  ],
)
def test_a_mode_has_its_encoders(changes: dict[str, Any], message: str) -> None:
  with pytest.raises(ValueError, match=message):
    tiny.make_model(**changes)


# --- The whole text, and sizes -----------------------------------------------


def test_pooled_text_is_the_mean_under_the_mask() -> None:
  embeddings = jnp.arange(12.0).reshape(2, 3, 2)
  mask = jnp.asarray([[True, True, False], [False, False, False]])
  pooled = conditions.pooled_text(embeddings, mask)
  np.testing.assert_allclose(pooled, [[1.0, 2.0], [0.0, 0.0]])


def test_a_unet_that_asks_is_told_the_whole_text_and_sizes(two: Any) -> None:
  """SDXL's two: the last encoder's mean, projected, and the six numbers."""
  model, variables = two
  batch = batch_of(model)
  told = condition(two, batch)
  raw = model.semantic_encoder.apply(
    {"params": variables["frozen"]["semantic_encoder"]},
    batch["semantic_tokens"],
  )
  mean = conditions.pooled_text(raw, batch["semantic_tokens"] > 0)
  kernel = variables["params"]["text_projection"]["pooled"]["kernel"]
  np.testing.assert_allclose(told.pooled_text, mean @ kernel, atol=1e-5)
  whole = [tiny.HEIGHT, tiny.WIDTH, 0, 0, tiny.HEIGHT, tiny.WIDTH]
  assert told.micro_conditioning.tolist() == [whole, whole]
  sizes = jnp.asarray([[32, 32, 4, 0, 8, 16], whole], jnp.float32)
  told = condition(two, batch | {"micro_conditioning": sizes})
  assert jnp.array_equal(told.micro_conditioning, sizes)


# --- Self-conditioning -------------------------------------------------------


class Echo(nn.Module):
  """Answers x0 = its estimate + 1: counts how often it was asked."""

  config: Any

  @nn.compact
  def __call__(self, x: jax.Array, time: Any, **_: Any) -> jax.Array:
    scale = nn_partitioning.param_with_axes(
      "scale", nn.initializers.ones, (), jnp.float32, axes=()
    )
    assert x.shape[-1] == self.config.in_channels
    return scale * x[..., 3:] + 1.0


def test_sampling_hands_the_last_estimate_on() -> None:
  """One more at each step, from zero; guided and thresholded on the way."""
  echo = Echo(tiny.make_unet(6).config)
  model = tiny.make_model(
    unet=echo,
    self_conditioning=True,
    prediction_type="x0",
    denoise_decorator=lambda fn: (
      lambda *a: jax.tree.map(lambda x: x / 8, fn(*a))
    ),
  )
  params = tiny.make_variables(model)["params"]
  tokens = jnp.asarray(tiny.make_batch(2)["text_tokens"])
  for scale in (1.0, 3.0):
    images = jax.jit(
      lambda scale=scale: model.sample(
        params, tokens, keys(2), guidance_scale=scale, num_steps=3
      )
    )()
    # ((0 + 1) / 8 + 1) / 8 + 1) / 8, guidance of equals being none.
    np.testing.assert_allclose(images, 1 / 8 + 1 / 64 + 1 / 512, atol=1e-6)


def test_training_tells_half_of_the_examples_an_estimate() -> None:
  """Echo's loss is mean (x0 - 1)^2 without one, mean (x0 - 2)^2 with one."""
  echo = Echo(tiny.make_unet(6).config)
  model = tiny.make_model(
    1, unet=echo, self_conditioning=True, prediction_type="x0"
  )
  params = tiny.make_variables(model)["params"]
  batch = batch_of(model, 64) | {
    "images": jnp.zeros((64, tiny.HEIGHT, tiny.WIDTH, 3))
  }
  losses = jax.jit(
    lambda b: model._training_losses(params, b, jax.random.key(0), None)
  )(batch)
  with_estimate = np.isclose(losses, 4.0)
  assert np.all(with_estimate | np.isclose(losses, 1.0))
  assert 16 < with_estimate.sum() < 48
  # Evaluation sees what sampling sees: an estimate.
  np.testing.assert_allclose(model.eval_losses(params, batch), 4.0)
  bounded = dataclasses.replace(
    model, denoise_decorator=guidance.static_thresholding(0.5)
  )
  losses = bounded.eval_losses(params, batch)
  np.testing.assert_allclose(losses, 1.5**2)
  # No gradient goes through the estimate: d/ds (s s0 + 1)^2, not of (s s + 1).
  gradient = jax.grad(
    lambda p: model.eval_losses(p, batch).mean(), allow_int=True
  )(params)
  np.testing.assert_allclose(gradient["unet"]["scale"], 2 * 2 * 1, rtol=1e-6)


# --- Whoever else asks the model ---------------------------------------------


@pytest.mark.slow
def test_features_and_joint_models_take_two_encoders() -> None:
  """By their shapes: UNetFeatures ask with an empty caption of one token."""
  drawing = tiny.make_two_encoder_model(
    conditioning_mode="quoted", self_conditioning=True, unet=tiny.make_unet(6)
  )
  reading = tiny.make_ocr_model(
    features=ocr.UNetFeatures(
      model=drawing,
      encoder=tiny.make_patch_encoder(patch_size=1, channels=8),
      block="mid_block",
    )
  )
  model = joint.JointModel(text_to_image=drawing, ocr=reading)
  assert model.conditioning_mode == "quoted"
  assert model.semantic_vocab_size == 40
  shapes = model.input_shapes(2)
  assert shapes["semantic_tokens"] == (2, tiny.SEMANTIC_LENGTH)
  variables = jax.eval_shape(
    lambda: model.get_initial_variables(jax.random.key(0), shapes)
  )
  batch = batch_of(drawing)
  loss, _ = jax.eval_shape(
    model.eval_fn,
    variables["params"],
    batch,
    {"frozen": variables["frozen"]},
  )
  assert loss.shape == ()
  images = jax.eval_shape(
    lambda params, frozen: model.sample(
      params,
      batch["text_tokens"],
      keys(2),
      semantic_tokens=batch["semantic_tokens"],
      flax_mutables=frozen,
    ),
    variables["params"],
    {"frozen": variables["frozen"]},
  )
  assert images.shape == batch["images"].shape
