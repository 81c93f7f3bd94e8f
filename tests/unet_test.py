"""The UNet against what it promises; tests/peers has diffusers' numbers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from byt5_diffusion import unet, unet_conditions

TINY = unet.UNetConfig(
  channels=(8, 16),
  num_res_blocks=1,
  transformer_depth=(0, 1),
  num_heads=(1, 2),
  cross_attention_dim=6,
  patch_size=2,
  norm_groups=4,
  zero_init_outputs=False,
)
# These programs run once: compiling them is what takes the time.
QUICK = {"xla_backend_optimization_level": 0}
KNOWN_AXES = {
  "height", "width", "conv_in", "conv_out", "channels", "embed", "joined_kv",
  "mlp",
}  # fmt: skip


def inputs(config=TINY, batch=3, height=8, width=16, length=5, seed=0):
  """noisy_latents, time, text_embeddings and text_mask (the last row empty)."""
  rng = np.random.default_rng(seed)
  lengths = np.array([[length], [2], [0]])[:batch]
  return (
    rng.normal(size=(batch, height, width, config.in_channels)).astype("f4"),
    rng.uniform(0, 1000, batch).astype("f4"),
    rng.normal(size=(batch, length, config.cross_attention_dim)).astype("f4"),
    np.arange(length) < lengths,
  )


@pytest.fixture(scope="module")
def tiny_params():
  return random_params(TINY)


def random_params(config, seed=0):
  """Numbers of the usual sizes, biases too; init would take long to compile."""
  rng = np.random.default_rng(seed)
  shapes = jax.eval_shape(
    unet.UNet(config).init, jax.random.key(0), *inputs(config)
  )["params"]

  def draw(path, leaf):
    values = rng.normal(size=leaf.shape).astype("f4")
    if leaf.ndim == 1:
      return values * 0.1 + (path[-1].key == "scale")
    return values / np.sqrt(np.prod(leaf.shape[:-1]))

  return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.cache
def program(config):
  return jax.jit(unet.UNet(config).apply, compiler_options=QUICK)


def denoise(config, params, *args):
  y = program(config)({"params": params}, *args)
  assert y.dtype == config.dtype
  return np.asarray(y, np.float32)


def test_output_has_the_input_s_size_and_its_own_channels(tiny_params):
  args = inputs()
  assert denoise(TINY, tiny_params, *args).shape == args[0].shape
  config = dataclasses.replace(TINY, in_channels=4, out_channels=6)
  shape = jax.eval_shape(
    unet.UNet(config).init_with_output, jax.random.key(0), *inputs(config)
  )[0].shape
  assert shape == (3, 8, 16, 6)


def test_every_parameter_is_float32_and_has_known_axes():
  config = dataclasses.replace(
    TINY, position_features=True, text_position_features=True, dtype="bfloat16"
  )
  variables = jax.eval_shape(
    unet.UNet(config).init, jax.random.key(0), *inputs()
  )
  params = traverse_util.flatten_dict(variables["params"])
  axes = traverse_util.flatten_dict(variables["params_axes"])
  for name, value in params.items():
    names = tuple(axes.pop((*name[:-1], name[-1] + "_axes")).names)
    assert value.dtype == "float32", name
    assert len(names) == value.ndim, name
    assert set(names) <= KNOWN_AXES, name
  assert not axes


def test_only_bytes_under_the_mask_are_read(tiny_params):
  latents, time, text, mask = inputs()
  y = denoise(TINY, tiny_params, latents, time, text, mask)
  assert np.isfinite(y).all()
  changed = np.where(mask[..., None], text, 7.0).astype("f4")
  np.testing.assert_allclose(
    denoise(TINY, tiny_params, latents, time, changed, mask), y, atol=1e-6
  )
  longer = np.pad(text, ((0, 0), (0, 9), (0, 0)), constant_values=3.0)
  np.testing.assert_allclose(
    denoise(
      TINY, tiny_params, latents, time, longer, np.pad(mask, ((0, 0), (0, 9)))
    ),
    y,
    atol=1e-6,
  )
  changed = np.where(mask[..., None], -text, text)
  moved = denoise(TINY, tiny_params, latents, time, changed, mask) - y
  assert np.abs(moved[:2]).max(axis=(1, 2, 3)).min() > 1e-3
  np.testing.assert_allclose(moved[2], 0.0, atol=1e-6)


def test_gradients_are_finite_with_an_empty_text(tiny_params):
  args = inputs()

  def loss(params, text):
    y = unet.UNet(TINY).apply({"params": params}, *args[:2], text, args[3])
    return jnp.square(y).sum()

  gradients = jax.jit(jax.grad(loss, (0, 1)), compiler_options=QUICK)(
    tiny_params, args[2]
  )
  for gradient in jax.tree.leaves(gradients):
    assert np.isfinite(gradient).all()
    assert np.any(gradient)
  np.testing.assert_array_equal(gradients[1][~args[3]], 0.0)


def test_an_image_does_not_depend_on_its_batch(tiny_params):
  args = inputs()
  together = denoise(TINY, tiny_params, *args)
  alone = denoise(TINY, tiny_params, *(a[1:2] for a in args))
  np.testing.assert_allclose(alone[0], together[1], atol=2e-6)


def test_time_matters(tiny_params):
  latents, time, *text = inputs()
  y = denoise(TINY, tiny_params, latents, time, *text)
  later = denoise(TINY, tiny_params, latents, time + 300.0, *text)
  assert np.abs(later - y).max() > 1e-3


def test_zero_init_gives_zero_and_learns():
  config = dataclasses.replace(
    TINY,
    channels=(8,),
    transformer_depth=(0,),
    num_heads=(1,),
    zero_init_outputs=True,
  )
  args = inputs()
  init = jax.jit(unet.UNet(config).init, compiler_options=QUICK)
  params = init(jax.random.key(0), *args)["params"]
  assert not np.any(denoise(config, params, *args))

  def loss(params):
    y = unet.UNet(config).apply({"params": params}, *args)
    return jnp.square(y - args[0]).mean()

  gradient = jax.jit(jax.grad(loss), compiler_options=QUICK)(params)
  assert np.any(gradient["conv_out"]["kernel"])


@pytest.mark.slow
def test_rematerialized_blocks_give_the_same_gradient(tiny_params):
  args = inputs()
  gradients = []
  for remat in (False, True):
    model = unet.UNet(dataclasses.replace(TINY, remat=remat))

    def loss(params, model=model):
      return jnp.square(model.apply({"params": params}, *args)).mean()

    program = jax.jit(jax.grad(loss), compiler_options=QUICK)
    gradients.append(program(tiny_params))
  for plain, again in zip(*map(jax.tree.leaves, gradients), strict=True):
    np.testing.assert_allclose(again, plain, rtol=1e-4, atol=1e-6)


def test_bfloat16_is_close_to_float32(tiny_params):
  args = inputs()
  exact = denoise(TINY, tiny_params, *args)
  config = dataclasses.replace(TINY, dtype="bfloat16")
  error = denoise(config, tiny_params, *args) - exact
  assert 0 < np.abs(error).max() < 0.1 * np.abs(exact).max()


def test_text_positions_tell_the_order_of_bytes(tiny_params):
  latents, time, text, mask = inputs()
  swapped = text[:, [1, 0, 2, 3, 4]]
  without = [
    denoise(TINY, tiny_params, latents, time, t, mask) for t in (text, swapped)
  ]
  # Attention alone reads a set.
  np.testing.assert_allclose(without[0], without[1], atol=1e-5)
  config = dataclasses.replace(TINY, text_position_features=True)
  params = random_params(config)
  told = [
    denoise(config, params, latents, time, t, mask) for t in (text, swapped)
  ]
  assert np.abs(told[0][:2] - told[1][:2]).max(axis=(1, 2, 3)).min() > 1e-3


def test_text_positions_do_not_change_with_pads():
  config = dataclasses.replace(TINY, text_position_features=True)
  params = random_params(config)
  latents, time, text, mask = inputs()
  pads = ((0, 0), (0, 4))
  np.testing.assert_allclose(
    denoise(
      config, params, latents, time, np.pad(text, (*pads, (0, 0))),
      np.pad(mask, pads),
    ),
    denoise(config, params, latents, time, text, mask),
    atol=1e-6,
  )  # fmt: skip


def test_image_positions_tell_every_place_apart():
  config = dataclasses.replace(TINY, channels=(16, 16), norm_groups=4)
  x = np.zeros((1, 4, 24, 16), np.float32)
  y, _ = unet_conditions.ImagePositions(config).init_with_output(
    jax.random.key(0), x
  )
  places = np.asarray(y).reshape(-1, 16)
  distances = np.abs(places[:, None] - places).max(-1)
  assert distances[~np.eye(len(places), dtype=bool)].min() > 1e-2


def test_space_to_depth_keeps_squares_together_and_is_inverted():
  x = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
  y = unet.space_to_depth(x, 2)
  assert y.shape == (2, 2, 3, 12)
  np.testing.assert_array_equal(y[1, 1, 2], x[1, 2:4, 4:6].reshape(12))
  np.testing.assert_array_equal(unet.depth_to_space(y, 2), x)


@pytest.mark.parametrize(
  "override, message",
  [
    ({"height": 6}, "6 x 16; this UNet needs multiples of 4"),
    ({"config": dataclasses.replace(TINY, in_channels=4)}, "4 channels"),
    (
      {"config": dataclasses.replace(TINY, cross_attention_dim=9)},
      "9 wide",
    ),
  ],
)
def test_wrong_shapes_are_named(override, message):
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(unet.UNet(TINY).init, jax.random.key(0), *inputs(**override))


@pytest.mark.parametrize(
  "override, message",
  [
    ({"num_heads": [1]}, r"num_heads=\(1,\) needs one entry for each level"),
    ({"norm_groups": 3}, "3 .* does not divide"),
    ({"num_heads": (3, 2)}, "3 .* does not divide"),
  ],
)
def test_wrong_configs_are_named(override, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(TINY, **override)
