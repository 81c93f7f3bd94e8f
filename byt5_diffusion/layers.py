"""The few layers that every network here is made of.

Letters in shape comments: B batch, h w latent height and width, C channels,
L length, D text width, N heads, K head dim.

The dtype rule, stated once: parameters are float32; products (dense, conv,
attention) run in the layer's `dtype`; norm statistics, softmax and whatever
enters an exponent are float32, whatever `dtype` is.

Every parameter is made by `param_with_axes`, so that `init` returns
`params_axes` with a logical name for each of its dimensions.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import partitioning as nn_partitioning
from jax import lax

from byt5_diffusion import attention_forms, products

param_with_axes = nn_partitioning.param_with_axes

Initializer = Callable[..., jax.Array]
Padding = products.Padding

KERNEL_INIT = nn.initializers.variance_scaling(
  1.0, "fan_in", "truncated_normal"
)
# T5 draws its attention kernels from a normal distribution.
ATTENTION_INIT = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
ZERO_INIT = nn.initializers.zeros

# Here for all networks; the forms are modules of their own.
MASKED_LOGIT = attention_forms.MASKED_LOGIT
attention = attention_forms.attention
mask_bias = attention_forms.mask_bias
conv = products.conv
upsample = products.upsample


def query_init(head_dim: int) -> Initializer:
  """ATTENTION_INIT / sqrt(head_dim): T5 scales here, not the run-time query."""

  def init(rng: jax.Array, shape: Sequence[int], dtype: str) -> jax.Array:
    return ATTENTION_INIT(rng, shape, dtype) / math.sqrt(head_dim)

  return init


class Dense(nn.Module):
  """y = x W + b on the last axis; `axes` name the two dimensions of W.

  Attributes:
    output_dtype: of y, if not dtype: sums that are added to a float32 stream
      need not be rounded before.
  """

  features: int
  axes: tuple[str, str]
  use_bias: bool = True
  kernel_init: Initializer = KERNEL_INIT
  dtype: str = "float32"
  output_dtype: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    kernel = param_with_axes(
      "kernel",
      self.kernel_init,
      (x.shape[-1], self.features),
      jnp.float32,
      axes=self.axes,
    )
    y = products.product(
      x.astype(self.dtype), kernel.astype(self.dtype), self.output_dtype
    )
    if self.use_bias:
      bias = param_with_axes(
        "bias", ZERO_INIT, (self.features,), jnp.float32, axes=self.axes[1:]
      )
      y = y + bias.astype(y.dtype)
    return y


class Embed(nn.Module):
  """Rows of a table: ids [...] -> [..., features]."""

  num_embeddings: int
  features: int
  dtype: str = "float32"

  @nn.compact
  def __call__(self, ids: jax.Array) -> jax.Array:
    table = param_with_axes(
      "embedding",
      nn.initializers.normal(1.0),
      (self.num_embeddings, self.features),
      jnp.float32,
      axes=("vocab", "embed"),
    )
    return jnp.take(table, ids, axis=0).astype(self.dtype)


class Conv(nn.Module):
  """A square convolution with bias.

  Attributes:
    padding: one number for all sides or two pairs.
    upsample: double height and width first (3 x 3 only).
  """

  features: int
  kernel_size: int = 3
  stride: int = 1
  padding: int | Padding = 1
  upsample: bool = False
  kernel_init: Initializer = KERNEL_INIT
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    kernel = param_with_axes(
      "kernel",
      self.kernel_init,
      (self.kernel_size, self.kernel_size, x.shape[-1], self.features),
      jnp.float32,
      axes=("height", "width", "conv_in", "conv_out"),
    )
    bias = param_with_axes(
      "bias", ZERO_INIT, (self.features,), jnp.float32, axes=("conv_out",)
    )
    x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
    if self.upsample:
      y = products.upsample_conv(x, kernel)
    else:
      y = products.conv(x, kernel, self.stride, self.padding)
    return y + bias.astype(self.dtype)


def scale_and_bias(features: int, axis: str) -> tuple[jax.Array, jax.Array]:
  """A norm's parameters [features], made in the module that calls."""
  scale = param_with_axes(
    "scale", nn.initializers.ones, (features,), jnp.float32, axes=(axis,)
  )
  bias = param_with_axes(
    "bias", ZERO_INIT, (features,), jnp.float32, axes=(axis,)
  )
  return scale, bias


class GroupNorm(nn.Module):
  """Group normalization over space and C / num_groups channels.

  (Wu & He 2018.) Sums go channel by channel first and are joined to groups
  while they are tiny; what is left is one multiply-add over the image.
  """

  num_groups: int = 32
  epsilon: float = 1e-5
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    batch, channels = x.shape[0], x.shape[-1]
    if channels % self.num_groups:
      raise ValueError(
        f"{self.num_groups=} does not divide the {channels} channels of"
        f" {self.path}."
      )
    scale, bias = scale_and_bias(channels, "channels")
    flat = x.astype(jnp.float32).reshape(batch, -1, channels)

    def group_mean(per_channel: jax.Array) -> jax.Array:
      grouped = per_channel.reshape(batch, self.num_groups, -1)
      mean = grouped.mean(-1, keepdims=True)
      return jnp.broadcast_to(mean, grouped.shape).reshape(batch, channels)

    mean = group_mean(flat.mean(1))
    variance = group_mean(jnp.square(flat).mean(1)) - jnp.square(mean)
    # Rounding may leave a constant image with a variance just below zero.
    inverse = lax.rsqrt(jnp.maximum(variance, 0.0) + self.epsilon) * scale
    shift = bias - mean * inverse
    y = flat * inverse[:, None] + shift[:, None]
    return y.reshape(x.shape).astype(self.dtype)


class LayerNorm(nn.Module):
  """(x - mean) / std * scale + bias over the last axis."""

  epsilon: float = 1e-5
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    scale, bias = scale_and_bias(x.shape[-1], "embed")
    x = x.astype(jnp.float32)
    x = x - x.mean(-1, keepdims=True)
    variance = jnp.square(x).mean(-1, keepdims=True)
    y = x * lax.rsqrt(variance + self.epsilon) * scale + bias
    return y.astype(self.dtype)


class RMSNorm(nn.Module):
  """x / sqrt(mean(x^2)) * scale: T5's layer norm (Zhang & Sennrich 2019)."""

  epsilon: float = 1e-6
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    scale = param_with_axes(
      "scale", nn.initializers.ones, x.shape[-1:], jnp.float32, axes=("embed",)
    )
    x = x.astype(jnp.float32)
    mean_square = jnp.square(x).mean(-1, keepdims=True)
    return (x * lax.rsqrt(mean_square + self.epsilon) * scale).astype(
      self.dtype
    )


class Attention(nn.Module):
  """Multi-head attention; `sources` None means self-attention.

  Attributes:
    scale: multiplies the query; T5 says 1 and scales its query_init.
    qkv_bias, out_bias: whether the products have biases (T5's have none,
      diffusers' blocks one of the output, CLIP's all).
    output_dtype: as of Dense.
  """

  num_heads: int
  head_dim: int
  scale: float = 1.0
  qkv_bias: bool = False
  out_bias: bool = False
  query_init: Initializer = ATTENTION_INIT
  dropout_rate: float = 0.0
  enable_dropout: bool = False
  dtype: str = "float32"
  output_dtype: str | None = None

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    sources: jax.Array | None = None,
    bias: jax.Array | None = None,
    mask: jax.Array | None = None,
  ) -> jax.Array:
    """x [B, L, C], sources [B, S, D], bias, mask to [B, N, L, S] -> as x."""
    sources = x if sources is None else sources

    def project(
      name: str, inputs: jax.Array, init: Initializer = ATTENTION_INIT
    ) -> jax.Array:
      y = Dense(
        self.num_heads * self.head_dim,
        ("embed", "joined_kv"),
        use_bias=self.qkv_bias,
        kernel_init=init,
        dtype=self.dtype,
        name=name,
      )(inputs)
      return y.reshape(*y.shape[:2], self.num_heads, self.head_dim)

    query = project("query", x, self.query_init) * self.scale
    key = project("key", sources)
    value = project("value", sources)
    # T5 drops a key for all queries of a head alike, which is dropping its
    # value.
    value = nn.Dropout(self.dropout_rate, broadcast_dims=(-1,))(
      value, deterministic=not self.enable_dropout
    )
    y = attention(query, key, value, bias, mask)
    return Dense(
      x.shape[-1],
      ("joined_kv", "embed"),
      use_bias=self.out_bias,
      kernel_init=ATTENTION_INIT,
      dtype=self.dtype,
      output_dtype=self.output_dtype,
      name="out",
    )(y.reshape(*y.shape[:2], -1))


class GatedMlp(nn.Module):
  """wo(gelu(wi_0(x)) * wi_1(x)) (Shazeer 2020): [..., C] -> [..., C].

  Attributes:
    approximate: the tanh form of gelu (T5) or the exact one (diffusers).
    output_dtype: as of Dense. float16 cannot hold what T5's gated products and
      their sums reach (65504), so these are float32 where this is.
  """

  mlp_dim: int
  use_bias: bool = False
  approximate: bool = True
  dropout_rate: float = 0.0
  enable_dropout: bool = False
  dtype: str = "float32"
  output_dtype: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    # What wo reads: float16 overflows where bfloat16 only rounds.
    wide = self.output_dtype if self.dtype == "float16" else None
    widen = functools.partial(
      Dense,
      self.mlp_dim,
      ("embed", "mlp"),
      use_bias=self.use_bias,
      dtype=self.dtype,
      output_dtype=wide,
    )
    gate, hidden = widen(name="wi_0")(x), widen(name="wi_1")(x)
    hidden = nn.gelu(gate, approximate=self.approximate) * hidden
    hidden = nn.Dropout(self.dropout_rate, broadcast_dims=(-2,))(
      hidden, deterministic=not self.enable_dropout
    )
    return Dense(
      x.shape[-1],
      ("mlp", "embed"),
      use_bias=self.use_bias,
      dtype=wide or self.dtype,
      output_dtype=self.output_dtype,
      name="wo",
    )(hidden)


def sinusoid(
  positions: jax.Array, features: int, max_period: float = 10_000.0
) -> jax.Array:
  """[cos(p f_i), sin(p f_i)], f_i = max_period^(-i / (features / 2)).

  (Vaswani et al. 2017, in the order of Ho et al. 2020 as diffusers has it.)

  Args:
    positions: [...], any real numbers.
    features: even.
    max_period: in units of positions, over 2 pi.

  Returns:
    [..., features] float32.
  """
  if features % 2:
    raise ValueError(f"{features=} must be even.")
  exponents = jnp.arange(features // 2, dtype=jnp.float32) / (features // 2)
  frequencies = jnp.exp(-math.log(max_period) * exponents)
  angles = positions[..., None].astype(jnp.float32) * frequencies
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
