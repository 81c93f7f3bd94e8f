"""Layers against closed forms, and each fast form against the plain one."""

import math

import arrays
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from byt5_diffusion import layers


def test_group_norm_equals_its_definition():
  x = 3.0 + arrays.normal(0, 2, 4, 6, 8)
  scale, bias = arrays.normal(1, 8), arrays.normal(2, 8)
  grouped = x.astype(np.float64).reshape(2, 24, 4, 2)
  mean = grouped.mean((1, 3), keepdims=True)
  variance = grouped.var((1, 3), keepdims=True)
  expected = ((grouped - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape)
  y = jax.jit(layers.GroupNorm(4).apply)(
    {"params": {"scale": scale, "bias": bias}}, x
  )
  arrays.assert_close(y, expected * scale + bias)


def test_group_norm_of_a_constant_is_its_bias():
  bias = arrays.normal(0, 8)
  params = {"scale": np.ones(8, np.float32), "bias": bias}
  y = jax.jit(layers.GroupNorm(2).apply)(
    {"params": params}, np.full((1, 4, 4, 8), 1.7, np.float32)
  )
  # rsqrt(epsilon) = 316 enlarges the rounding of the mean.
  np.testing.assert_allclose(
    y, np.broadcast_to(bias, y.shape), rtol=0, atol=1e-3
  )


def test_group_norm_refuses_channels_that_its_groups_do_not_divide():
  with pytest.raises(ValueError, match="does not divide the 6 channels"):
    layers.GroupNorm(4).init(jax.random.key(0), np.zeros((1, 2, 2, 6)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layer_and_rms_norm_equal_their_definitions(dtype):
  x = jnp.asarray(2.0 + arrays.normal(0, 3, 64), dtype)
  scale, bias = arrays.normal(1, 64), arrays.normal(2, 64)
  exact = np.asarray(x, np.float64)
  centred = exact - exact.mean(-1, keepdims=True)
  variance = exact.var(-1, keepdims=True)
  tolerance = 1e-5 if dtype == "float32" else 2**-8
  y = jax.jit(layers.LayerNorm(dtype=dtype).apply)(
    {"params": {"scale": scale, "bias": bias}}, x
  )
  assert y.dtype == dtype
  arrays.assert_close(
    y, centred / np.sqrt(variance + 1e-5) * scale + bias, tolerance
  )
  y = jax.jit(layers.RMSNorm(dtype=dtype).apply)(
    {"params": {"scale": scale}}, x
  )
  mean_square = np.square(exact).mean(-1, keepdims=True)
  arrays.assert_close(y, exact / np.sqrt(mean_square + 1e-6) * scale, tolerance)


def test_group_norm_statistics_are_float32_for_bfloat16_images():
  # In bfloat16 a sum of 1024 ones would stop at 256.
  x = jnp.asarray(1.0 + arrays.normal(0, 1, 32, 32, 4), "bfloat16")
  params = {"scale": np.ones(4, np.float32), "bias": np.zeros(4, np.float32)}
  low = jax.jit(layers.GroupNorm(2, dtype="bfloat16").apply)(
    {"params": params}, x
  )
  high = jax.jit(layers.GroupNorm(2).apply)({"params": params}, x)
  assert low.dtype == "bfloat16"
  arrays.assert_close(low, high, 2**-8)


def plain_attention(query, key, value, bias):
  logits = jnp.einsum("blnk,bsnk->bnls", query, key) + bias
  weights = jax.nn.softmax(logits, axis=-1)
  return jnp.einsum("bnls,bsnk->blnk", weights, value)


def test_attention_equals_softmax_attention():
  args = (
    arrays.normal(0, 2, 5, 3, 4),
    arrays.normal(1, 2, 7, 3, 4),
    arrays.normal(2, 2, 7, 3, 4),
    arrays.normal(3, 2, 3, 5, 7),
  )
  actual = arrays.value_and_gradients(layers.attention, *args)
  expected = arrays.value_and_gradients(plain_attention, *args)
  for a, e in zip(actual, expected, strict=True):
    arrays.assert_close(a, e)


def test_masked_keys_have_no_weight_and_an_empty_row_no_nan():
  query, key = arrays.normal(0, 2, 5, 1, 4), arrays.normal(1, 2, 6, 1, 4)
  value = arrays.normal(2, 2, 6, 1, 4)
  mask = np.arange(6) < np.array([[4], [0]])
  bias = layers.mask_bias(mask[:, None, None])
  y, *gradients = arrays.value_and_gradients(
    lambda q, k, v: layers.attention(q, k, v, bias), query, key, value
  )
  arrays.assert_close(
    y[:1], layers.attention(query[:1], key[:1, :4], value[:1, :4])
  )
  arrays.assert_close(y[1], np.broadcast_to(value[1].mean(0), y[1].shape))
  for gradient in gradients:
    assert np.isfinite(gradient).all()
  assert not np.any(gradients[1][0, 4:])


def test_softmax_is_float32_in_a_bfloat16_attention():
  # 1000 equal weights: a bfloat16 sum would stop at 256 and give 3.9.
  ones = jnp.ones((1, 1000, 1, 8), "bfloat16")
  y = layers.attention(ones[:, :1], ones, ones)
  assert y.dtype == "bfloat16"
  np.testing.assert_array_equal(np.asarray(y, np.float32), 1.0)


def test_large_logits_do_not_overflow():
  query = np.full((1, 1, 1, 1), 100.0, np.float32)
  key = np.array([1.0, 2.0], np.float32).reshape(1, 2, 1, 1)
  y = layers.attention(query, key, key)
  np.testing.assert_allclose(y, 2.0)


def test_sinusoid_equals_its_formula():
  positions = np.array([0.0, 1.0, 500.5])
  y = layers.sinusoid(positions, 6, max_period=1000.0)
  for row, position in zip(y, positions, strict=True):
    angles = [position / 1000.0 ** (i / 3) for i in range(3)]
    expected = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
    np.testing.assert_allclose(row, expected, atol=1e-4)
  with pytest.raises(ValueError, match="even"):
    layers.sinusoid(positions, 5)


def test_query_init_is_smaller_by_the_root_of_the_head_dim():
  shape = (64, 512)
  plain = layers.ATTENTION_INIT(jax.random.key(0), shape, "float32")
  scaled = layers.query_init(16)(jax.random.key(0), shape, "float32")
  arrays.assert_close(scaled * 4.0, plain)
  assert np.std(plain) == pytest.approx(64**-0.5, rel=0.02)
