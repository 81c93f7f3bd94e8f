"""OcrModel and JointModel: what they promise beyond the networks' own tests."""

from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from byt5_diffusion import (
  decoding,
  joint,
  losses,
  ocr,
  optimizers,
  patches,
  utf8,
)
from byt5_diffusion.data import text

BATCH = tiny.make_batch()


def unet_features(**overrides: Any) -> ocr.UNetFeatures:
  arguments = {
    "model": tiny.make_model(),
    "encoder": tiny.make_patch_encoder(patch_size=1, channels=8),
    "block": "mid_block",
  }
  return ocr.UNetFeatures(**(arguments | overrides))


def patch_model() -> ocr.OcrModel:
  """Reads patches, as a reading task gives them."""
  return tiny.make_ocr_model(
    features=ocr.PatchFeatures(
      encoder=tiny.make_patch_encoder(), patch_size=4, max_patches=10
    )
  )


def patch_batch() -> dict[str, np.ndarray]:
  cut = patches.extract(jnp.asarray(BATCH["images"]), 4)
  padded = np.pad(cut, ((0, 0), (0, 10 - cut.shape[1]), (0, 0)))
  kept = {name: BATCH[name] for name in ("text_tokens", "example_id")}
  return {"patches": padded, **kept}


def variables_of(model: Any, batch: Any) -> Any:
  shapes = {name: x.shape for name, x in batch.items()}
  return jax.jit(lambda rng: model.get_initial_variables(rng, shapes))(
    jax.random.key(0)
  )


MODELS = {
  "images": (tiny.make_ocr_model, lambda: BATCH),
  "patches": (patch_model, patch_batch),
  "unet": (
    lambda: tiny.make_ocr_model(features=unet_features()),
    lambda: BATCH,
  ),
  "joint": (
    lambda: joint.JointModel(
      text_to_image=tiny.make_model(), ocr=tiny.make_ocr_model()
    ),
    lambda: BATCH,
  ),
  "joint unet": (
    lambda: joint.JointModel(
      text_to_image=tiny.make_model(),
      ocr=tiny.make_ocr_model(features=unet_features()),
    ),
    lambda: BATCH,
  ),
}


@pytest.fixture(scope="module", params=list(MODELS))
def case(request: pytest.FixtureRequest) -> tuple[Any, Any, Any]:
  make, make_batch = MODELS[request.param]
  model, batch = make(), make_batch()
  return model, batch, variables_of(model, batch)


def test_every_parameter_has_its_logical_axes(case: Any) -> None:
  model, _, variables = case
  params = flax.traverse_util.flatten_dict(variables["params"], sep="/")
  axes = flax.traverse_util.flatten_dict(variables["params_axes"], sep="/")
  assert {f"{name}_axes" for name in params} == set(axes)
  for name, leaf in params.items():
    assert len(axes[f"{name}_axes"].names) == leaf.ndim, name
  assert set(model.input_shapes()) >= {"text_tokens", "example_id"}


def test_all_parameters_learn(case: Any) -> None:
  model, batch, variables = case
  gradients = jax.jit(
    jax.grad(lambda p: model.loss_fn(p, batch, jax.random.key(1))[0])
  )(variables["params"])
  flat = flax.traverse_util.flatten_dict(gradients, sep="/")
  still = {
    name
    for name, leaf in flat.items()
    if not np.asarray(jnp.abs(leaf).max() > 0)
  }
  # An OcrModel with a UNet's features leaves what lies behind the block alone.
  if isinstance(model, ocr.OcrModel):
    still = {name for name in still if name.startswith("reader")}
  assert not still
  assert all(bool(jnp.isfinite(leaf).all()) for leaf in flat.values())


def test_what_is_read_is_valid_whatever_the_weights(case: Any) -> None:
  model, batch, variables = case
  for scale in (1.0, 30.0):
    params = jax.tree.map(lambda x, s=scale: x * s, variables["params"])
    for beam_size in (1, 3):
      decoded = jax.jit(
        lambda p, k=beam_size: model.read(p, batch, beam_size=k)
      )(params)
      assert decoded.tokens.shape == (8, tiny.LENGTH)
      for row in np.asarray(decoded.tokens):
        written = row[: np.flatnonzero(row).max(initial=-1) + 1]
        assert utf8.accepts(written)
        content = bytes(int(i) - text.BYTE_OFFSET for i in written if i > 2)
        content.decode("utf-8", errors="strict")


def test_images_and_their_patches_read_alike() -> None:
  by_image, by_patch = tiny.make_ocr_model(), patch_model()
  batch = patch_batch()
  params = variables_of(by_image, BATCH)["params"]
  first = by_image.logits(params, BATCH)
  second = by_patch.logits(params, batch)
  np.testing.assert_allclose(first, second, atol=2e-6)


def test_the_loss_is_the_mean_cross_entropy_of_a_texts_own_bytes() -> None:
  model = tiny.make_ocr_model()
  params = variables_of(model, BATCH)["params"]
  loss, metrics = model.loss_fn(params, BATCH, None)
  logits = np.asarray(model.logits(params, BATCH), np.float64)
  log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  total = 0.0
  for row, tokens in zip(log_probs, BATCH["text_tokens"], strict=True):
    own = [-row[t, token] for t, token in enumerate(tokens) if token]
    total += sum(own) / len(own)
  np.testing.assert_allclose(loss, total / 8, rtol=1e-5)
  np.testing.assert_allclose(metrics["loss"].compute(), total / 8, rtol=1e-5)


@pytest.mark.slow
def test_micro_batches_sum_to_the_whole(case: Any) -> None:
  model, batch, variables = case
  whole = model.eval_fn(variables["params"], batch)[0]
  halves = [
    model.eval_fn(
      variables["params"], {name: x[part] for name, x in batch.items()}
    )[0]
    for part in (slice(0, 4), slice(4, 8))
  ]
  np.testing.assert_allclose(whole, sum(halves), rtol=1e-5)


def test_score_batch_is_the_probability_of_what_was_read() -> None:
  model = tiny.make_ocr_model()
  params = variables_of(model, BATCH)["params"]
  decoded = model.read(params, BATCH)
  scores = model.score_batch(params, {**BATCH, "text_tokens": decoded.tokens})
  np.testing.assert_allclose(scores, decoded.scores, rtol=1e-4)
  predicted, aux = model.predict_batch_with_aux(params, BATCH)
  assert jnp.array_equal(predicted, decoded.tokens)
  assert jnp.array_equal(aux["scores"], decoded.scores)


def test_exact_match_is_that_of_greedy_reading() -> None:
  model = tiny.make_ocr_model()
  params = variables_of(model, BATCH)["params"]
  # Texts that are read right, but for half of them.
  tokens = np.array(model.read(params, BATCH).tokens)
  tokens[::2] = BATCH["text_tokens"][::2]
  free = decode_freely(model, params)
  metrics = model.eval_fn(params, {**BATCH, "text_tokens": tokens})[1]
  share = np.mean([(a == b).all() for a, b in zip(free, tokens, strict=True)])
  np.testing.assert_allclose(metrics["exact_match"].compute(), share)


def decode_freely(model: ocr.OcrModel, params: Any) -> np.ndarray:
  """Greedy reading without the automaton."""
  encoded, mask = model.features(params, BATCH)
  weights = params[ocr.READER]["decoder"]
  cache = model.decoder.init_cache(weights, encoded, mask, tiny.LENGTH)
  decoded = decoding.greedy(
    lambda cache, tokens: model.decoder.decode_step(weights, cache, tokens),
    cache,
    len(encoded),
    tiny.LENGTH,
  )
  return np.asarray(decoded.tokens)


def test_a_reader_learns_what_it_is_shown() -> None:
  model = tiny.make_ocr_model(optimizer_def=optimizers.adamw())
  params = variables_of(model, BATCH)["params"]
  tx = model.optimizer_def.tx
  state = tx.init(params)

  @jax.jit
  def step(params: Any, state: Any, i: Any) -> Any:
    rng = jax.random.fold_in(jax.random.key(0), i)
    loss, gradients = jax.value_and_grad(
      lambda p: model.loss_fn(p, BATCH, rng)[0]
    )(params)
    updates, state = tx.update(gradients, state, params)
    params = jax.tree.map(lambda p, u: p - 1e-2 * u, params, updates)
    return params, state, loss

  for i in range(150):
    params, state, loss = step(params, state, i)
  assert loss < 0.1
  metrics = model.eval_fn(params, BATCH)[1]
  assert metrics["exact_match"].compute() == 1.0


def test_reading_with_a_frozen_drawing_part_changes_the_reader_alone() -> None:
  model = tiny.make_ocr_model(features=unet_features(train_model=False))
  params = variables_of(model, BATCH)["params"]
  gradients = jax.grad(lambda p: model.loss_fn(p, BATCH, None)[0])(params)
  for name, part in gradients.items():
    moved = any(bool(jnp.any(leaf)) for leaf in jax.tree.leaves(part))
    assert moved == (name == ocr.READER), name


def test_a_joint_model_draws_as_its_drawing_part_does() -> None:
  drawing = tiny.make_model()
  both = joint.JointModel(
    text_to_image=drawing, ocr=tiny.make_ocr_model(), reading_weight=0.5
  )
  params = variables_of(both, BATCH)["params"]
  alone = variables_of(drawing, BATCH)["params"]
  for name in alone:
    assert tiny.leaves_equal(params[name], alone[name]), name
  loss, metrics = both.eval_fn(params, BATCH)
  drawn = drawing.eval_fn(alone, BATCH)[0]
  read = both.ocr.eval_fn(params, BATCH)[0]
  np.testing.assert_allclose(loss, drawn + 0.5 * read, rtol=1e-6)
  assert "reading/exact_match" in metrics
  rngs = jax.random.split(jax.random.key(3), 8)
  tokens = jnp.asarray(BATCH["text_tokens"])
  assert jnp.array_equal(
    both.sample(params, tokens, rngs), drawing.sample(alone, tokens, rngs)
  )


def test_a_frozen_text_encoder_serves_both_parts() -> None:
  drawing = tiny.make_model(freeze_text_encoder=True)
  features = unet_features(model=drawing)
  model = joint.JointModel(
    text_to_image=drawing, ocr=tiny.make_ocr_model(features=features)
  )
  variables = variables_of(model, BATCH)
  assert "text_encoder" not in variables["params"]
  frozen = {"frozen": variables["frozen"]}
  loss, (metrics, passed) = model.loss_fn(
    variables["params"], BATCH, jax.random.key(0), frozen
  )
  assert passed is frozen
  assert bool(jnp.isfinite(loss)) and "reading/loss" in metrics


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (
      lambda: ocr.PatchFeatures(encoder=None, patch_size=4),
      "bind one of the two",
    ),
    (
      lambda: ocr.PatchFeatures(encoder=None, patch_size=3, image_size=(8, 16)),
      "must divide both sides",
    ),
    (lambda: tiny.make_ocr_model(0), "must be positive"),
    (lambda: tiny.make_ocr_model(beam_size=0), "beam_size"),
    (
      lambda: joint.JointModel(
        text_to_image=tiny.make_model(),
        ocr=tiny.make_ocr_model(max_text_length=9),
      ),
      "max_text_length",
    ),
    (
      lambda: joint.JointModel(
        text_to_image=tiny.make_model(4), ocr=tiny.make_ocr_model(8)
      ),
      "BATCH_SIZE",
    ),
    (
      lambda: variables_of(
        tiny.make_ocr_model(features=unet_features(block="mid")), BATCH
      ),
      "no block 'mid'",
    ),
  ],
)
def test_what_does_not_fit_is_said(make: Any, message: str) -> None:
  with pytest.raises(ValueError, match=message):
    make()


def test_decoder_inputs_are_the_text_one_later() -> None:
  tokens = jnp.asarray([[5, 6, 1, 0]])
  assert ocr.decoder_input_tokens(tokens).tolist() == [[0, 5, 6, 1]]
  # What is predicted behind the end weighs nothing.
  logits = jax.nn.one_hot(tokens, 10) * 100
  weights = (tokens > 0).astype(jnp.float32)
  assert losses.cross_entropy(logits, tokens, weights)[0] < 1e-6
