"""What a UNet makes of all that it is told beside the noisy latents.

A vector for the whole image (time, noise level, pooled text, sizes) that every
ResNet block reads, text embeddings for attention, and places.

Notation: B batch, L text bytes, D text width, T width of the time embedding.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from byt5_diffusion import layers, unet_config

# Wavelengths of position features end at 2 pi times this many positions.
POSITION_PERIOD = 64.0


def activation(
  config: unet_config.UNetConfig,
) -> Callable[[jax.Array], jax.Array]:
  """The config's activation function; GELU is the exact one."""
  if config.activation == "gelu":
    return lambda x: nn.gelu(x, approximate=False)
  return nn.silu


class EmbeddingMlp(nn.Module):
  """Dense, activation, dense: [B, n] -> [B, T]."""

  config: unet_config.UNetConfig
  silu: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    config = self.config
    features, dtype = config.time_features, config.dtype
    x = layers.Dense(features, ("embed", "mlp"), dtype=dtype, name="linear_1")(
      x
    )
    x = nn.silu(x) if self.silu else activation(config)(x)
    return layers.Dense(
      features, ("mlp", "embed"), dtype=dtype, name="linear_2"
    )(x)


class AttentionPooling(nn.Module):
  """One query, the mean of the text, over that mean and the text itself.

  (IF's; Radford et al. 2021 pool images like this.) The mean and the softmax
  are over what is under the mask.
  """

  num_heads: int
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
    """x [B, L, D], mask [B, L] bool -> [B, D]."""
    batch, _, width = x.shape
    position = layers.param_with_axes(
      "positional_embedding",
      nn.initializers.normal(width**-0.5),
      (1, width),
      jnp.float32,
      axes=("length", "embed"),
    )
    mean = masked_mean(x, mask)[:, None] + position.astype(x.dtype)
    x = jnp.concatenate([mean, x], axis=1)
    mask = jnp.concatenate([jnp.ones_like(mask[:, :1]), mask], axis=1)

    def project(name: str, inputs: jax.Array) -> jax.Array:
      y = layers.Dense(
        width, ("embed", "joined_kv"), dtype=self.dtype, name=name
      )(inputs)
      return y.reshape(batch, -1, self.num_heads, width // self.num_heads)

    y = layers.attention(
      project("query", mean) * (width // self.num_heads) ** -0.5,
      project("key", x),
      project("value", x),
      mask=mask[:, None, None, :],
    )
    return y.reshape(batch, width)


def masked_mean(x: jax.Array, mask: jax.Array) -> jax.Array:
  """Mean of x [B, L, D] over True of mask [B, L]; 0 where there is none."""
  weights = mask[..., None].astype(jnp.float32)
  total = (x.astype(jnp.float32) * weights).sum(1)
  return (total / jnp.maximum(weights.sum(1), 1.0)).astype(x.dtype)


class TextPooling(nn.Module):
  """norm(dense(pool(norm(text)))): [B, L, D] -> [B, T]."""

  config: unet_config.UNetConfig

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
    config = self.config
    x = layers.LayerNorm(dtype=config.dtype, name="norm1")(x)
    x = AttentionPooling(
      config.text_pooling_heads, dtype=config.dtype, name="pool"
    )(x, mask)
    x = layers.Dense(
      config.time_features,
      ("joined_kv", "embed"),
      dtype=config.dtype,
      name="proj",
    )(x)
    return layers.LayerNorm(dtype=config.dtype, name="norm2")(x)


class MeanPooling(nn.Module):
  """The layer norm of the mean of what is under the mask: [B, D]."""

  config: unet_config.UNetConfig

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
    norm = layers.LayerNorm(dtype=self.config.dtype, name="norm")
    return norm(masked_mean(x, mask))


def check_given(
  config: unet_config.UNetConfig,
  pooled_text: jax.Array | None,
  micro_conditioning: jax.Array | None,
  noise_level: jax.Array | None,
) -> None:
  """Each input is there if the config reads it, and only then.

  Raises:
    ValueError: one is missing, has no reader, or has the wrong width.
  """
  rows = (
    ("pooled_text", pooled_text, config.text_pooling == "given",
     "text_pooling='given'"),
    ("micro_conditioning", micro_conditioning,
     config.micro_conditioning_features > 0, "micro_conditioning_features"),
    ("noise_level", noise_level, config.noise_level, "noise_level"),
  )  # fmt: skip
  for name, value, wanted, field in rows:
    if wanted and value is None:
      raise ValueError(
        f"this UNet reads {name} ({field} in its config), but was given none."
      )
    if value is not None and not wanted:
      raise ValueError(
        f"this UNet was given {name}, which it has no use for: its config does"
        f" not say {field}."
      )
  widths = (
    ("pooled_text", pooled_text, config.pooled_text_dim),
    ("micro_conditioning", micro_conditioning, unet_config.MICRO_NUMBERS),
  )
  for name, value, width in widths:
    if value is not None and value.shape[-1] != width:
      raise ValueError(
        f"{name} is {value.shape[-1]} wide; this UNet reads {width}."
      )


def embedding(
  config: unet_config.UNetConfig,
  time: jax.Array,
  text_embeddings: jax.Array,
  text_mask: jax.Array,
  pooled_text: jax.Array | None,
  micro_conditioning: jax.Array | None,
  noise_level: jax.Array | None,
) -> jax.Array:
  """The sum of all that concerns the whole image: [B, T].

  To be called in a compact method: the modules made here become that module's.
  """
  check_given(config, pooled_text, micro_conditioning, noise_level)
  features = config.channels[0]
  y = EmbeddingMlp(config, name="time_embedding")(
    layers.sinusoid(time, features)
  )
  if noise_level is not None:
    y = y + EmbeddingMlp(config, name="noise_level_embedding")(
      layers.sinusoid(noise_level, features)
    )
  if config.text_pooling == "attention":
    y = y + TextPooling(config, name="text_pooling")(text_embeddings, text_mask)
  parts = []
  if config.text_pooling == "mean":
    pooled_text = MeanPooling(config, name="text_pooling")(
      text_embeddings, text_mask
    )
  if pooled_text is not None:
    parts.append(pooled_text.astype(jnp.float32))
  if micro_conditioning is not None:
    numbers = layers.sinusoid(
      micro_conditioning, config.micro_conditioning_features
    )
    parts.append(numbers.reshape(numbers.shape[0], -1))
  if parts:
    y = y + EmbeddingMlp(config, silu=True, name="add_embedding")(
      jnp.concatenate(parts, axis=-1)
    )
  return y


def _linear(
  config: unet_config.UNetConfig,
  features: int,
  axes: tuple[str, str],
  name: str,
) -> layers.Dense:
  return layers.Dense(
    features, axes, use_bias=False, dtype=config.dtype, name=name
  )


class ImagePositions(nn.Module):
  """Adds a linear map of row and column sinusoids to x [B, h, w, C]."""

  config: unet_config.UNetConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    _, h, w, c = x.shape
    rows = layers.sinusoid(jnp.arange(h), c // 2 * 2, POSITION_PERIOD)
    columns = layers.sinusoid(jnp.arange(w), c // 2 * 2, POSITION_PERIOD)
    axes = ("embed", "channels")
    x = x + _linear(self.config, c, axes, "rows")(rows)[:, None]
    return x + _linear(self.config, c, axes, "columns")(columns)


class TextPositions(nn.Module):
  """Adds a linear map of each byte's place to text_embeddings [B, L, D].

  The place is told twice: counted from the start, for texts set from a left
  edge, and as a share of the length, for texts that fill or centre a line.
  """

  config: unet_config.UNetConfig

  @nn.compact
  def __call__(
    self, text_embeddings: jax.Array, text_mask: jax.Array
  ) -> jax.Array:
    features = self.config.channels[0] // 2 * 2
    index = jnp.arange(text_mask.shape[1])
    length = jnp.maximum(text_mask.sum(-1, keepdims=True), 1)
    share = POSITION_PERIOD * index / length
    counted = layers.sinusoid(index, features, POSITION_PERIOD)
    shared = layers.sinusoid(share, features, POSITION_PERIOD)

    width, axes = text_embeddings.shape[-1], ("mlp", "embed")
    y = _linear(self.config, width, axes, "counted")(counted)
    y = y + _linear(self.config, width, axes, "shared")(shared)
    return text_embeddings + y


def read_text(
  config: unet_config.UNetConfig,
  text_embeddings: jax.Array,
) -> jax.Array:
  """The text that attention reads: [B, L, config.text_features].

  To be called in a compact method: the modules made here become that module's.
  """
  if config.text_projection_dim is None:
    return text_embeddings
  return layers.Dense(
    config.text_projection_dim,
    ("mlp", "embed"),
    dtype=config.dtype,
    name="text_projection",
  )(text_embeddings)
