"""How positions of an image read each other and the text.

Two kinds: transformers with an attention each (Rombach et al. 2022), and joint
attention, one softmax over both (DeepFloyd IF and Imagen). Names inside are
T5X's.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from byt5_diffusion import layers, unet_config

# Of the text that joint attention reads; fewer where they don't divide it.
TEXT_NORM_GROUPS = 32


def output_init(config: unet_config.UNetConfig) -> layers.Initializer:
  """Of the last product of a residual branch."""
  return layers.ZERO_INIT if config.zero_init_outputs else layers.KERNEL_INIT


class TransformerBlock(nn.Module):
  """Self-attention, cross-attention to the text, gated MLP; each residual."""

  config: unet_config.UNetConfig
  num_heads: int

  @nn.compact
  def __call__(
    self, x: jax.Array, text_embeddings: jax.Array, text_mask: jax.Array
  ) -> jax.Array:
    dtype = self.config.dtype
    channels = x.shape[-1]
    head_dim = channels // self.num_heads

    def norm(name: str) -> layers.LayerNorm:
      return layers.LayerNorm(dtype=dtype, name=f"pre_{name}_layer_norm")

    def attention(name: str) -> layers.Attention:
      return layers.Attention(
        self.num_heads,
        head_dim,
        scale=head_dim**-0.5,
        out_bias=True,
        dtype=dtype,
        name=name,
      )

    x = x + attention("self_attention")(norm("self_attention")(x))
    y = attention("cross_attention")(
      norm("cross_attention")(x), text_embeddings, mask=_readable(text_mask)
    )
    x = x + _where_any(text_mask, y)
    return x + layers.GatedMlp(
      4 * channels,
      use_bias=True,
      approximate=self.config.approximate_gelu,
      dtype=dtype,
      name="mlp",
    )(norm("mlp")(x))


def _readable(text_mask: jax.Array) -> jax.Array:
  """text_mask [B, L] as a mask [B, 1, 1, L]; all of a text without any byte.

  What is read of such a text is thrown away; no softmax is over nothing.
  """
  text_mask = text_mask | ~text_mask.any(-1, keepdims=True)
  return text_mask[:, None, None, :]


def _where_any(text_mask: jax.Array, y: jax.Array) -> jax.Array:
  """y [B, ...], 0 where there is no text.

  Without a single byte to read there is nothing to add: not even the mean of
  the pads that the softmax of an empty row comes to.
  """
  return jnp.where(text_mask.any(-1)[:, None, None], y, 0)


class Transformer(nn.Module):
  """x + transformer blocks over the h w positions of x [B, h, w, C]."""

  config: unet_config.UNetConfig
  depth: int
  num_heads: int

  @nn.compact
  def __call__(
    self, x: jax.Array, text_embeddings: jax.Array, text_mask: jax.Array
  ) -> jax.Array:
    config = self.config
    b, h, w, c = x.shape
    y = layers.GroupNorm(
      config.norm_groups, epsilon=1e-6, dtype=config.dtype, name="norm"
    )(x)
    y = y.reshape(b, h * w, c)
    y = layers.Dense(
      c, ("channels", "embed"), dtype=config.dtype, name="proj_in"
    )(y)
    for i in range(self.depth):
      y = TransformerBlock(
        config, self.num_heads, name=f"transformer_blocks_{i}"
      )(y, text_embeddings, text_mask)
    y = layers.Dense(
      c,
      ("embed", "channels"),
      kernel_init=output_init(config),
      dtype=config.dtype,
      name="proj_out",
    )(y)
    return x + y.reshape(b, h, w, c)


class TextGroupNorm(nn.Module):
  """Group norm of [B, L, D] over the positions under the mask."""

  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
    batch, length, width = x.shape
    groups = math.gcd(TEXT_NORM_GROUPS, width)
    scale, bias = layers.scale_and_bias(width, "embed")
    y = x.astype(jnp.float32).reshape(batch, length, groups, -1)
    weights = mask[:, :, None, None].astype(jnp.float32)
    count = jnp.maximum(weights.sum(1, keepdims=True), 1.0) * y.shape[-1]

    def mean(values: jax.Array) -> jax.Array:
      return (values * weights).sum((1, 3), keepdims=True) / count

    y = y - mean(y)
    y = y * lax.rsqrt(mean(jnp.square(y)) + 1e-5)
    return (y.reshape(x.shape) * scale + bias).astype(self.dtype)


class JointAttention(nn.Module):
  """x + attention of x [B, h, w, C] to the text and to itself in one softmax.

  The text has keys and values of its own: the "added" ones of diffusers.
  """

  config: unet_config.UNetConfig
  num_heads: int

  @nn.compact
  def __call__(
    self, x: jax.Array, text_embeddings: jax.Array, text_mask: jax.Array
  ) -> jax.Array:
    config = self.config
    b, h, w, c = x.shape
    head_dim = c // self.num_heads
    y = layers.GroupNorm(config.norm_groups, dtype=config.dtype, name="norm")(x)
    y = y.reshape(b, h * w, c)
    text = _text_norm(config, text_embeddings, text_mask)

    def project(name: str, inputs: jax.Array) -> jax.Array:
      z = layers.Dense(
        c,
        ("embed", "joined_kv"),
        kernel_init=layers.ATTENTION_INIT,
        dtype=config.dtype,
        name=name,
      )(inputs)
      return z.reshape(b, -1, self.num_heads, head_dim)

    query = project("query", y) * head_dim**-0.5
    key, value = project("text_key", text), project("text_value", text)
    mask = _readable(text_mask)
    if not config.only_cross_attention:
      key = jnp.concatenate([key, project("key", y)], axis=1)
      value = jnp.concatenate([value, project("value", y)], axis=1)
      itself = jnp.ones((b, h * w), bool)
      mask = jnp.concatenate([text_mask, itself], axis=1)[:, None, None]
    y = layers.attention(query, key, value, mask=mask)
    y = layers.Dense(
      c,
      ("joined_kv", "embed"),
      kernel_init=output_init(config),
      dtype=config.dtype,
      name="out",
    )(y.reshape(b, h * w, c))
    if config.only_cross_attention:
      y = _where_any(text_mask, y)
    return x + y.reshape(b, h, w, c)


def _text_norm(
  config: unet_config.UNetConfig, text: jax.Array, mask: jax.Array
) -> jax.Array:
  if config.text_norm == "group":
    return TextGroupNorm(dtype=config.dtype, name="text_norm")(text, mask)
  if config.text_norm == "layer":
    return layers.LayerNorm(dtype=config.dtype, name="text_norm")(text)
  return text
