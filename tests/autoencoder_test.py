"""The codecs; AutoencoderKL's numbers are held to a peer's in tests/peers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from byt5_diffusion import autoencoder, autoencoder_kl, layers, unet


def test_pixel_codec_is_the_identity_beyond_the_images_range_too():
  codec: autoencoder.Codec = autoencoder.PixelCodec()
  images = np.linspace(-1.5, 1.5, 2 * 4 * 8 * 3).reshape(2, 4, 8, 3)
  latents = codec.encode(None, images, jax.random.key(0))
  _, h, w, c = latents.shape
  assert (h * codec.downsampling, w * codec.downsampling) == (4, 8)
  assert c == codec.latent_channels
  np.testing.assert_array_equal(codec.decode(None, latents), images)


def make_network(**overrides):
  sizes = {"channels": (8, 4), "num_res_blocks": 1, "norm_groups": 2}
  return autoencoder_kl.AutoencoderKL(
    autoencoder_kl.AutoencoderKLConfig(**(sizes | overrides))
  )


def make_codec(**overrides):
  names = ("sample_posterior", "tile_size", "tile_overlap")
  own = {k: overrides.pop(k) for k in names if k in overrides}
  return autoencoder.KLCodec(network=make_network(**overrides), **own)


@functools.cache
def make_params():
  """Of make_network, with norms and biases that are not ones and zeros."""
  codec = make_codec()
  init = jax.jit(lambda rng: codec.init(rng, jnp.zeros((1, 4, 4, 3))))
  params = init(jax.random.key(0))["params"]
  leaves, tree = jax.tree.flatten(params)
  rng = np.random.default_rng(0)
  leaves = [
    x + 0.1 * rng.normal(size=x.shape).astype(np.float32) for x in leaves
  ]
  return jax.tree.unflatten(tree, leaves)


def make_images(*shape, seed=0):
  rng = np.random.default_rng(seed)
  return rng.uniform(-1, 1, shape).astype(np.float32)


# --- Encoding ----------------------------------------------------------------


class Halves:
  """In AutoencoderKL's place: latents are every other pixel, four times."""

  def __init__(self, **scales):
    self.config = make_network(**scales).config

  def apply(self, variables, x, method):
    assert variables == {"params": "weights"}
    if method == "moments":
      mean = jnp.repeat(x[:, ::2, ::2, :1], 4, axis=-1)
      return mean, 0.1 * mean - 1.0
    return {"decode_middle": x + 1.0, "decode_levels": 2.0 * x}[method]


def test_latents_are_drawn_by_each_images_key_from_the_scaled_moments():
  network = Halves(scaling_factor=0.5, shift_factor=0.25)
  codec = autoencoder.KLCodec(network=network)
  assert codec.downsampling == 2 and codec.latent_channels == 4
  images = make_images(3, 8, 12, 3)
  rngs = jax.random.split(jax.random.key(1), 3)
  latents = codec.encode("weights", images, rngs)
  assert latents.shape == (3, 4, 6, 4) and latents.dtype == jnp.float32
  order = jnp.array([2, 0, 1])
  again = codec.encode("weights", images[order], rngs[order])
  np.testing.assert_array_equal(again, latents[order])

  mean, log_variance = codec.moments("weights", images)
  theirs = np.repeat(images[:, ::2, ::2, :1], 4, axis=-1)
  np.testing.assert_allclose(mean, (theirs - 0.25) * 0.5, atol=1e-6)
  variance = 0.25 * np.exp(0.1 * theirs - 1)
  np.testing.assert_allclose(np.exp(log_variance), variance, rtol=1e-5)
  noise = jax.vmap(lambda rng: jax.random.normal(rng, (4, 6, 4)))(rngs)
  expected = mean + np.sqrt(variance) * noise
  np.testing.assert_allclose(latents, expected, atol=1e-5)
  mode = autoencoder.KLCodec(network=network, sample_posterior=False)
  np.testing.assert_array_equal(mode.encode("weights", images, rngs), mean)


def test_decode_takes_the_scale_and_the_shift_back():
  network = Halves(scaling_factor=0.5, shift_factor=0.25)
  codec = autoencoder.KLCodec(network=network)
  latents = jnp.asarray(make_images(1, 4, 6, 4))
  actual = codec.decode("weights", (latents - 0.25) * 0.5)
  np.testing.assert_allclose(actual, 2 * (latents + 1), atol=1e-5)


def test_weights_must_be_given():
  with pytest.raises(ValueError, match="flax_mutables"):
    make_codec().decode(None, jnp.zeros((1, 4, 4, 4)))


def test_every_parameter_has_named_axes():
  variables = jax.eval_shape(
    make_codec().init, jax.random.key(0), jnp.zeros((1, 4, 4, 3))
  )
  axes = variables["params_axes"]["decoder"]["mid_block"]["attentions_0"]
  assert axes["query"]["kernel_axes"].names == ("embed", "joined_kv")
  assert len(jax.tree.leaves(variables["params"])) == len(
    jax.tree.leaves(
      variables["params_axes"], is_leaf=lambda x: hasattr(x, "names")
    )
  )


@pytest.mark.parametrize(
  ("make", "says"),
  [
    (lambda: make_network(channels=()), "empty"),
    (lambda: make_network(channels=(8, 5)), "norm_groups=2 does not divide"),
    (lambda: make_network(dtype="float16"), "bfloat16 or float32"),
    (lambda: make_network(scaling_factor=0.0), "scaling_factor"),
    (lambda: make_codec(tile_size=9), "tile_size=9 must be a multiple of 2"),
    (lambda: make_codec(tile_size=8, tile_overlap=8), "less than tile_size=8"),
  ],
)
def test_configs_that_make_no_sense_are_refused(make, says):
  with pytest.raises(ValueError, match=says):
    make()


def test_sides_that_do_not_halve_are_refused_by_name():
  codec = make_codec()
  with pytest.raises(ValueError, match="6 x 9; this AutoencoderKL needs mult"):
    codec.encode(make_params(), jnp.zeros((1, 6, 9, 3)), None)
  with pytest.raises(ValueError, match="latents have 3 channels"):
    codec.decode(make_params(), jnp.zeros((1, 6, 6, 3)))


# --- Precision ---------------------------------------------------------------


def test_bfloat16_keeps_what_is_small_beside_a_large_stream(monkeypatch):
  """Values of 30,000 +- 1: bfloat16's neighbours there are 128 apart."""
  params = jax.tree.map(jnp.asarray, make_params())
  params["decoder"]["conv_in"]["bias"] += 30_000.0
  # What reads the stream sees its changes, and nothing of its offset.
  for block, name in (
    ("up_blocks_0", "upsamplers_0"),
    ("up_blocks_1/resnets_0", "conv_shortcut"),
  ):
    module = functools.reduce(
      lambda tree, key: tree[key], block.split("/"), params["decoder"]
    )[name]
    kernel = module["kernel"]
    module["kernel"] = kernel - kernel.mean((0, 1, 2))
  latents = jnp.asarray(make_images(1, 8, 8, 4))

  def decode(dtype):
    codec = make_codec(scaling_factor=1.0, dtype=dtype)
    images = np.asarray(jax.jit(codec.decode)(params, latents))
    inner = images[:, 4:-4, 4:-4]
    return inner - inner.mean((1, 2))

  exact = decode("float32")
  error = np.abs(decode("bfloat16") - exact).max() / exact.std()
  assert error < 0.15

  def naive(self, x):
    return (
      super(autoencoder_kl.StreamConv, self)
      .__call__(x.astype(jnp.bfloat16))
      .astype(jnp.bfloat16)
    )

  monkeypatch.setattr(autoencoder_kl.StreamConv, "__call__", naive)
  lost = np.abs(decode("bfloat16") - exact).max() / exact.std()
  assert lost > 0.8


def test_norms_are_exact_at_a_large_mean():
  x = np.random.default_rng(0).normal(size=(1, 16, 16, 4)).astype(np.float32)
  norm = autoencoder_kl.Norm(2)
  params = norm.init(jax.random.key(0), x)
  shifted = norm.apply(params, x + np.float32(5000.0))
  grouped = x.reshape(1, 256, 2, 2)
  expected = grouped - grouped.mean((1, 3), keepdims=True)
  expected /= grouped.std((1, 3), keepdims=True)
  np.testing.assert_allclose(shifted, expected.reshape(x.shape), atol=2e-3)


def test_attention_in_parts_is_attention(monkeypatch):
  rng = np.random.default_rng(0)
  query, key, value = rng.normal(size=(3, 2, 10, 1, 4)).astype(np.float32)
  monkeypatch.setattr(autoencoder_kl, "MAX_QUERIES", 4)
  np.testing.assert_allclose(
    autoencoder_kl._attention(query, key, value),
    layers.attention(query, key, value),
    atol=1e-6,
  )


# --- Tiles -------------------------------------------------------------------


@pytest.mark.parametrize("side", [4, 8, 9, 13, 31])
@pytest.mark.parametrize(("size", "overlap"), [(8, 2), (8, 0), (8, 7), (5, 1)])
def test_every_pixel_s_weights_add_up_to_one(side, size, overlap):
  starts, weights = autoencoder.tile_weights(side, size, overlap, 4)
  total = np.zeros(4 * side)
  for start, weight in zip(starts, weights, strict=True):
    assert 0 <= start <= max(side - size, 0)
    total[4 * start :][: len(weight)] += weight
  np.testing.assert_allclose(total, 1.0, atol=1e-6)
  assert weights.min() >= 0
  assert (np.diff(starts) <= size - overlap).all()


@pytest.fixture
def without_norms(monkeypatch):
  """What a tile can't know of the whole is its norms' statistics alone."""

  def same(self, x):
    return x.astype(self.dtype)

  monkeypatch.setattr(autoencoder_kl.Norm, "__call__", same)


@pytest.mark.parametrize(
  "shape",
  [(1, 19, 30, 4), pytest.param((2, 6, 40, 4), marks=pytest.mark.slow)],
)
def test_tiles_join_to_the_whole_where_they_see_enough(without_norms, shape):
  """Beyond 9 latents from its edge a pixel of a tile is that of the whole."""
  latents = jnp.asarray(make_images(*shape))
  whole = make_codec().decode(make_params(), latents)
  tiled = make_codec(tile_size=56, tile_overlap=50)
  images = jax.jit(tiled.decode)(make_params(), latents)
  assert images.shape == whole.shape
  scale = np.abs(whole).max()
  # Blending weighs the edges of tiles least, and they are nearly right.
  np.testing.assert_allclose(images, whole, atol=0.05 * scale)
  small = make_codec(tile_size=16, tile_overlap=4)
  coarse = jax.jit(small.decode)(make_params(), latents)
  assert np.abs(images - whole).mean() < np.abs(coarse - whole).mean()


def test_tiles_with_norms_are_near_the_whole():
  latents = jnp.asarray(make_images(1, 40, 40, 4))
  one_tile, tiled = make_codec(tile_size=80), make_codec(tile_size=48)
  whole = np.asarray(jax.jit(one_tile.decode)(make_params(), latents))
  images = np.asarray(jax.jit(tiled.decode)(make_params(), latents))
  assert 0 < np.abs(images - whole).mean() < 0.05 * whole.std()


def test_tiles_take_the_memory_of_one():
  def temporary(codec, side):
    latents = jnp.zeros((1, side, side, 4))
    compiled = jax.jit(codec.decode).lower(make_params(), latents).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  # A tile has a sixteenth of the pixels; the picture itself is there at once.
  without_middle = {"mid_attention": False}
  whole = temporary(make_codec(**without_middle), 64)
  tiled = temporary(make_codec(tile_size=32, **without_middle), 64)
  assert tiled < whole / 3


# --- In a model --------------------------------------------------------------


@pytest.mark.slow
def test_a_model_learns_and_draws_in_latents_whose_codec_never_changes():
  text_width = 16
  config = unet.UNetConfig(
    in_channels=4,
    out_channels=4,
    channels=(8,),
    num_res_blocks=1,
    transformer_depth=(0,),
    mid_transformer_depth=1,
    num_heads=(2,),
    cross_attention_dim=text_width,
    norm_groups=4,
  )
  model = tiny.make_model(codec=make_codec(), unet=unet.UNet(config))
  variables = tiny.make_variables(model)
  assert set(variables["params"]) == {"text_encoder", "unet"}
  assert set(variables["frozen"]) == {"codec"}
  assert set(variables["frozen_axes"]) == {"codec"}
  batch = tiny.make_batch()
  frozen = {"frozen": variables["frozen"]}

  @jax.jit
  def step(params):
    (loss, _), gradients = jax.value_and_grad(model.loss_fn, has_aux=True)(
      params, batch, jax.random.key(0), frozen
    )
    return loss, gradients

  loss, gradients = step(variables["params"])
  assert np.isfinite(loss) and loss > 0
  assert jax.tree.structure(gradients) == jax.tree.structure(
    variables["params"]
  )
  rngs = jax.random.split(jax.random.key(2), 2)
  images = jax.jit(
    lambda params, frozen: model.sample(
      params, batch["text_tokens"][:2], rngs, flax_mutables=frozen
    )
  )(variables["params"], frozen)
  assert images.shape == (2, tiny.HEIGHT, tiny.WIDTH, 3)
  assert np.isfinite(images).all() and np.abs(images).max() <= 1
