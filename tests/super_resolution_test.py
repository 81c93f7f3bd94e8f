"""Pictures made small, enlarged, noised; the model that learns from them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image

from byt5_diffusion import (
  autoencoder,
  contract,
  diffusion,
  optimizers,
  super_resolution,
)

LOW = (tiny.HEIGHT // 2, tiny.WIDTH // 2)


def make(
  noise_level: bool = True, **overrides: Any
) -> super_resolution.SuperResolutionModel:
  """Of dots, unless a UNet is given."""
  if "unet" not in overrides:
    overrides["unet"] = tiny.make_dot_unet(6, noise_level=noise_level)
  return tiny.make_super_resolution_model(**overrides)


@pytest.fixture(scope="module")
def model() -> super_resolution.SuperResolutionModel:
  return make()


@pytest.fixture(scope="module")
def params(model: Any) -> Any:
  return tiny.make_variables(model)["params"]


def condition(model: Any, params: Any, batch: Any, rngs: Any = None) -> Any:
  return jax.jit(lambda p, b, r: model.condition(p, b, rngs=r))(
    params, batch, rngs
  )


def keys(count: int) -> jax.Array:
  return jax.random.split(jax.random.key(7), count)


def batch_of(count: int = 8, seed: int = 0) -> dict[str, jax.Array]:
  return {k: jnp.asarray(v) for k, v in tiny.make_batch(count, seed).items()}


# --- Small and large ----------------------------------------------------------


def test_downsampling_is_the_mean_of_squares() -> None:
  images = np.random.default_rng(0).normal(size=(2, 6, 9, 3))
  small = super_resolution.downsample(jnp.asarray(images, jnp.float32), 3)
  assert small.shape == (2, 2, 3, 3)
  for row in range(2):
    for column in range(3):
      square = images[:, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3]
      np.testing.assert_allclose(
        small[:, row, column], square.mean(axis=(1, 2)), atol=1e-6
      )
  # As Pillow's box filter has it, which rounds twice.
  picture = np.random.default_rng(1).integers(0, 256, (8, 12, 3), np.uint8)
  boxed = Image.fromarray(picture).resize((3, 2), Image.Resampling.BOX)
  ours = super_resolution.downsample(jnp.asarray(picture[None], jnp.float32), 4)
  assert np.abs(np.asarray(boxed) - np.asarray(ours[0])).max() <= 1.01


def test_a_size_that_factor_does_not_divide_is_refused() -> None:
  with pytest.raises(ValueError, match="6 x 9"):
    super_resolution.downsample(jnp.zeros((1, 6, 9, 3)), 2)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(8, 12), (5, 7), (4, 9)])
def test_upsampling_is_bilinear(
  align_corners: bool, size: tuple[int, int]
) -> None:
  """By hand: every new pixel weighs the four old ones around it."""
  h, w = 4, 6
  small = np.random.default_rng(0).normal(size=(h, w)).astype(np.float32)
  large = super_resolution.upsample(
    jnp.asarray(small)[None, :, :, None], size, align_corners
  )[0, :, :, 0]
  for i in range(size[0]):
    for j in range(size[1]):
      if align_corners:
        y, x = i * (h - 1) / (size[0] - 1), j * (w - 1) / (size[1] - 1)
      else:
        y, x = (i + 0.5) * h / size[0] - 0.5, (j + 0.5) * w / size[1] - 0.5
      y, x = min(max(y, 0), h - 1), min(max(x, 0), w - 1)
      weights = np.maximum(0, 1 - abs(np.arange(h) - y))[:, None]
      weights = weights * np.maximum(0, 1 - abs(np.arange(w) - x))
      np.testing.assert_allclose(
        large[i, j], (weights * small).sum(), atol=1e-5
      )


@pytest.mark.parametrize("align_corners", [False, True])
def test_upsampling_is_pytorch_s(align_corners: bool) -> None:
  torch = pytest.importorskip("torch", reason="compares with torch")
  small = np.random.default_rng(0).normal(size=(2, 5, 7, 3)).astype(np.float32)
  theirs = torch.nn.functional.interpolate(
    torch.from_numpy(small.transpose(0, 3, 1, 2)),
    (20, 28),
    mode="bilinear",
    align_corners=align_corners,
  )
  ours = super_resolution.upsample(small, (20, 28), align_corners)
  np.testing.assert_allclose(
    ours, theirs.numpy().transpose(0, 2, 3, 1), atol=1e-5
  )


# --- What the UNet is told ----------------------------------------------------


def test_training_draws_a_level_and_noise_for_each_example(
  model: Any, params: Any
) -> None:
  count = 512
  batch = batch_of(count)
  # One picture for all: what differs is drawn.
  batch["images"] = jnp.zeros_like(batch["images"])
  rngs = keys(count)
  told = condition(model, params, batch, rngs)
  assert told.channels.shape == (count, tiny.HEIGHT, tiny.WIDTH, 3)
  levels = np.asarray(told.noise_level) / model.time_scale
  assert 0 <= levels.min() < 0.01 and 0.99 < levels.max() <= 1
  np.testing.assert_allclose(levels.mean(), 0.5, atol=0.04)
  # The noise is as loud as the level says.
  _, sigma = diffusion.log_snr_to_alpha_sigma(model.schedule.log_snr(levels))
  found = np.asarray(told.channels).std(axis=(1, 2, 3))
  np.testing.assert_allclose(found / sigma, 1, atol=0.2)
  # Row by row: neither order nor batch mates matter.
  part = {name: x[3:5] for name, x in batch.items()}
  some = condition(model, params, part, rngs[3:5])
  np.testing.assert_allclose(some.channels, told.channels[3:5], atol=1e-6)


def test_levels_stay_below_the_greatest(params: Any) -> None:
  model = make(max_augmentation=0.25)
  told = condition(model, params, batch_of(64), keys(64))
  levels = told.noise_level / model.time_scale
  assert levels.max() <= 0.25 and levels.max() > 0.2


def test_evaluation_is_told_the_level_of_sampling(
  model: Any, params: Any
) -> None:
  batch = batch_of()
  told = condition(model, params, batch)
  np.testing.assert_allclose(told.noise_level, 100.0)  # 0.1 of 1000
  part = {name: x[2:4] for name, x in batch.items()}
  some = condition(model, params, part)
  np.testing.assert_allclose(some.channels, told.channels[2:4], atol=1e-6)


def test_without_augmentation_the_unet_sees_the_picture_itself(
  params: Any,
) -> None:
  model = make(noise_level=False, max_augmentation=0.0, augmentation=0.0)
  batch = batch_of()
  told = condition(model, params, batch, keys(8))
  assert told.noise_level is None
  expected = super_resolution.upsample(
    model.downsample(batch["images"]), (tiny.HEIGHT, tiny.WIDTH)
  )
  np.testing.assert_allclose(told.channels, expected, atol=1e-6)


@pytest.mark.slow
def test_the_small_picture_is_enlarged_and_noised_as_deepfloyd_if_s(
  params: Any,
) -> None:
  """What diffusers' IFSuperResolutionPipeline hands to its UNet."""
  diffusers = pytest.importorskip("diffusers", reason="compares with it")
  torch = pytest.importorskip("torch", reason="compares with it")
  model = make(
    align_corners=True,
    augmentation=0.251,
    augmentation_schedule=diffusion.squared_cosine_schedule(),
    time_offset=-1.0,
  )
  batch = batch_of()
  told = condition(model, params, batch)
  np.testing.assert_allclose(told.noise_level, 250, rtol=1e-6)
  # Our noise: what a picture of zeros is told.
  zeros = batch | {"images": jnp.zeros_like(batch["images"])}
  level = model.augmentation_schedule.log_snr(0.251)
  _, sigma = diffusion.log_snr_to_alpha_sigma(level)
  noise = np.array(condition(model, params, zeros).channels / sigma)
  small = np.array(model.downsample(batch["images"])).transpose(0, 3, 1, 2)
  large = torch.nn.functional.interpolate(
    torch.from_numpy(small),
    (tiny.HEIGHT, tiny.WIDTH),
    mode="bilinear",
    align_corners=True,
  )
  theirs = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2").add_noise(
    large,
    torch.from_numpy(noise.transpose(0, 3, 1, 2)),
    torch.full((len(small),), 250),
  )
  np.testing.assert_allclose(
    told.channels, theirs.numpy().transpose(0, 2, 3, 1), atol=1e-5
  )


class HalfCodec(autoencoder.PixelCodec):
  """Latents of half the size: what the mean of 2 x 2 pixels is."""

  downsampling = 2

  def encode(self, params: Any, images: Any, rngs: Any) -> Any:
    return super_resolution.downsample(images, 2)

  def decode(self, params: Any, latents: Any) -> Any:
    return latents.repeat(2, axis=1).repeat(2, axis=2)


def test_a_codec_may_be_as_coarse_as_the_small_picture() -> None:
  model = make(codec=HalfCodec())
  variables = tiny.make_variables(model)
  batch = batch_of(2)
  told = condition(model, variables["params"], batch)
  assert told.channels.shape == (2, *LOW, 3)
  loss, _ = jax.jit(model.eval_fn)(variables["params"], batch)
  assert np.isfinite(loss)

  class Coarse(HalfCodec):
    downsampling = 4

  with pytest.raises(ValueError, match="4 times smaller"):
    make(codec=Coarse())


# --- Training -----------------------------------------------------------------


def test_crops_are_cut_where_the_small_picture_can_be_cut(params: Any) -> None:
  model = make(crop_size=(4, 8))
  batch = batch_of(64)
  batch["images"] = jnp.broadcast_to(
    (jnp.arange(8.0)[:, None] * 100 + jnp.arange(16.0))[None, ..., None],
    (64, 8, 16, 3),
  )
  cut = model._cut(batch, keys(64))["images"]
  assert cut.shape == (64, 4, 8, 3)
  corners = np.asarray(cut[:, 0, 0, 0]).astype(int)
  rows, columns = corners // 100, corners % 100
  assert set(rows) == {0, 2, 4} and set(columns) == {0, 2, 4, 6, 8}
  whole = batch["images"][0, rows[5] : rows[5] + 4, columns[5] : columns[5] + 8]
  assert jnp.array_equal(cut[5], whole)
  middle = model._cut(batch, None)["images"]
  assert middle[0, 0, 0, 0] == 204
  loss, _ = jax.jit(lambda b: model.loss_fn(params, b, jax.random.key(0)))(
    batch_of()
  )
  assert np.isfinite(loss)


@pytest.mark.slow
def test_it_learns_to_enlarge() -> None:
  """Pictures of four dots: the small one says all, the network has to see it.

  A model that is not told it stays at the variance of the dots.
  """
  model = make(
    batch_size=16,
    prediction_type="x0",
    max_augmentation=0.1,
    augmentation=0.0,
  )
  params = tiny.make_variables(model)["params"]
  tx = optimizers.adamw().tx
  state = tx.init(params)

  def pictures(step: Any) -> dict[str, jax.Array]:
    rng = jax.random.fold_in(jax.random.key(1), step)
    dots = jax.random.rademacher(rng, (16, *LOW, 3), jnp.float32)
    images = dots.repeat(2, axis=1).repeat(2, axis=2)
    ids = jnp.stack([jnp.arange(16), jnp.full(16, step)], 1)
    text = jnp.zeros((16, tiny.LENGTH), jnp.int32).at[:, 0].set(1)
    return {
      "images": images,
      "text_tokens": text,
      "example_id": ids.astype(jnp.uint32),
    }

  @jax.jit
  def step(params: Any, state: Any, i: Any) -> Any:
    grads, _ = jax.grad(model.loss_fn, has_aux=True)(
      params, pictures(i), jax.random.fold_in(jax.random.key(2), i)
    )
    updates, state = tx.update(grads, state, params)
    return jax.tree.map(lambda p, u: p - 3e-3 * u, params, updates), state

  for i in range(150):
    params, state = step(params, state, i)
  batch = pictures(10**6)
  drawn = jax.jit(
    lambda p: model.upscale(
      p, model.downsample(batch["images"]), batch["text_tokens"], keys(16)
    )
  )(params)
  assert float(jnp.mean((drawn - batch["images"]) ** 2)) < 0.2


# --- Drawing ------------------------------------------------------------------


def test_it_upscales_and_does_not_draw(model: Any) -> None:
  assert isinstance(model, contract.Upscales)
  assert not isinstance(model, contract.Draws)
  assert not isinstance(tiny.make_model(), contract.Upscales)
  assert model.low_size == LOW
  assert model.input_shapes(3)["images"] == (3, tiny.HEIGHT, tiny.WIDTH, 3)


def test_a_picture_depends_on_its_own_inputs_alone(
  model: Any, params: Any
) -> None:
  batch = batch_of(4)
  low, tokens = model.downsample(batch["images"]), batch["text_tokens"]

  @jax.jit
  def draw(low: Any, tokens: Any, rngs: Any, augmentation: Any = 0.1) -> Any:
    return model.upscale(
      params, low, tokens, rngs, augmentation=augmentation, guidance_scale=2.0
    )

  together = draw(low, tokens, keys(4))
  assert together.shape == (4, tiny.HEIGHT, tiny.WIDTH, 3)
  assert float(jnp.abs(together).max()) <= 1
  rows = jnp.asarray([2, 0, 0, 0])
  mixed = draw(low[rows], tokens[rows], keys(4)[rows])
  np.testing.assert_allclose(mixed[0], together[2], atol=1e-5)
  np.testing.assert_allclose(mixed[1], together[0], atol=1e-5)
  # Every input counts.
  for other in (
    draw(low[::-1], tokens, keys(4)),
    draw(low, tokens[::-1], keys(4)),
    draw(low, tokens, keys(5)[1:]),
    draw(low, tokens, keys(4), 0.9),
  ):
    assert float(jnp.abs(other - together)[0].max()) > 1e-4


# --- Mistakes -----------------------------------------------------------------


@pytest.mark.parametrize(
  ("overrides", "message"),
  [
    ({"factor": 1}, "factor"),
    ({"factor": 3}, r"image_size = \(8, 16\)"),
    ({"augmentation": 0.6, "max_augmentation": 0.5}, "augmentation"),
    ({"augmentation": -0.1}, "augmentation"),
    ({"max_augmentation": 1.5}, "max_augmentation"),
    ({"max_augmentation": 0.0, "augmentation": 0.0}, "noise_level"),
    ({"unet": tiny.make_model().unet}, "noise_level"),
    ({"crop_size": (3, 8)}, r"crop_size = \(3, 8\)"),
    ({"crop_size": (16, 16)}, "does not fit"),
    ({"crop_size": (8,)}, "crop_size"),
    (
      {
        "crop_size": (4, 8),
        "unet": tiny.make_unet(6, noise_level=True, position_features=True),
      },
      "position_features = False",
    ),
    ({"prediction_type": "epsilon"}, "noise"),
  ],
)
def test_bad_arguments_are_named(
  overrides: dict[str, Any], message: str
) -> None:
  with pytest.raises(ValueError, match=message):
    make(**overrides)
