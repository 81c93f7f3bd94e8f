"""The autoencoder of latent diffusion: a network that SD 2.1 and SDXL share.

Topology and block names are those of diffusers' AutoencoderKL (Rombach et al.
2022): an encoder of ResNet blocks that halves the sides between levels, one
attention in its middle, and a decoder that mirrors it.

The residual stream is float32, and so is whatever reads it without a norm in
between: trained autoencoders (SDXL's above all) let it grow to values among
which bfloat16 tells nothing apart. Only what runs between a norm and the next
sum (two convolutions of each block, the attention) runs in `dtype`.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from byt5_diffusion import layers

# The logits of as many queries are held at once: 2048 x 16384 of an image of
# 1024 pixels are 128 MiB.
MAX_QUERIES = 2048
# Where the network's log variances end: e^-30 and e^20 still are float32.
LOG_VARIANCE_RANGE = (-30.0, 20.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderKLConfig:
  """Shape of an autoencoder; a level is one resolution.

  Attributes:
    channels: width of each level, finest first; all but one halve the sides.
    num_res_blocks: ResNet blocks per level of the encoder; the decoder has one
      more.
    latent_channels: c of the latents.
    image_channels: of images, 3.
    norm_groups: groups of the group norms; divides all channels.
    mid_attention: an attention in both middles.
    quant_conv: a 1 x 1 convolution of the moments.
    post_quant_conv: a 1 x 1 convolution of the latents.
    scaling_factor: gives latents a variance of about 1; a property of the
      weights (0.18215 for SD 1 and 2, 0.13025 for SDXL).
    shift_factor: taken from the latents before they are scaled.
    sample_size: side in pixels of the images that it was trained on. Nothing
      here depends on it; other programs read it.
    dtype: of activations between a norm and the next sum; parameters are
      float32.
  """

  channels: tuple[int, ...]
  num_res_blocks: int = 2
  latent_channels: int = 4
  image_channels: int = 3
  norm_groups: int = 32
  mid_attention: bool = True
  quant_conv: bool = True
  post_quant_conv: bool = True
  scaling_factor: float = 0.18215
  shift_factor: float = 0.0
  sample_size: int = 512
  dtype: str = "float32"

  def __post_init__(self) -> None:
    # Gin hands over lists; a config must hash.
    object.__setattr__(self, "channels", tuple(self.channels))
    if not self.channels:
      raise ValueError("AutoencoderKLConfig.channels is empty.")
    for channels in self.channels:
      if channels % self.norm_groups:
        raise ValueError(
          f"norm_groups={self.norm_groups} does not divide a level's {channels}"
          " channels of an AutoencoderKL."
        )
    if self.scaling_factor <= 0:
      raise ValueError(f"{self.scaling_factor=} must be positive.")
    if self.dtype == "float16":
      raise ValueError(
        "AutoencoderKL has sums beyond float16's 65504: its dtype must be"
        " bfloat16 or float32."
      )

  @property
  def num_blocks(self) -> int:
    """How many ResNet blocks there are: what tracing takes its time by."""
    return len(self.channels) * (2 * self.num_res_blocks + 1) + 4

  @property
  def downsampling(self) -> int:
    """Height and width of images must be multiples of this."""
    return 2 ** (len(self.channels) - 1)


class Norm(layers.GroupNorm):
  """Group norm that is exact at a large mean; answers in `dtype`.

  layers.GroupNorm's variance is a difference of two squares, which loses what
  is small beside a large mean: 1000 +- 1 has a variance of 1 in a million. So
  each group's mean is taken off first.
  """

  epsilon: float = 1e-6

  def __call__(self, x: jax.Array) -> jax.Array:
    b, _, _, c = x.shape
    x = x.astype(jnp.float32)
    mean = x.mean((1, 2)).reshape(b, self.num_groups, -1)
    mean = jnp.broadcast_to(mean.mean(-1, keepdims=True), mean.shape)
    return super().__call__(x - mean.reshape(b, 1, 1, c))


class StreamConv(layers.Conv):
  """A convolution in float32, products included, whatever a machine prefers."""

  def __call__(self, x: jax.Array) -> jax.Array:
    with jax.default_matmul_precision("float32"):
      return super().__call__(x)


class ResnetBlock(nn.Module):
  """x + conv(norm(conv(norm(x)))); [B, h, w, C] -> [B, h, w, F] float32."""

  config: AutoencoderKLConfig
  features: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    config = self.config
    h = x
    for i in (1, 2):
      norm = Norm(config.norm_groups, dtype=config.dtype, name=f"norm{i}")
      conv = layers.Conv(self.features, dtype=config.dtype, name=f"conv{i}")
      h = conv(nn.silu(norm(h)))
    if x.shape[-1] != self.features:
      x = StreamConv(self.features, 1, padding=0, name="conv_shortcut")(x)
    return x + h.astype(jnp.float32)


class SpatialAttention(nn.Module):
  """x + attention over its h w positions, with one head of all channels."""

  config: AutoencoderKLConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    config = self.config
    b, h, w, c = x.shape

    def dense(name: str, axes: tuple[str, str], y: jax.Array) -> jax.Array:
      return layers.Dense(c, axes, dtype=config.dtype, name=name)(y)

    norm = Norm(config.norm_groups, dtype=config.dtype, name="group_norm")
    y = norm(x).reshape(b, h * w, c)
    query, key, value = (
      dense(name, ("embed", "joined_kv"), y)[:, :, None]
      for name in ("query", "key", "value")
    )
    y = _attention(query * c**-0.5, key, value).reshape(b, h * w, c)
    y = dense("out", ("joined_kv", "embed"), y)
    return x + y.reshape(x.shape).astype(jnp.float32)


def _attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
  """layers.attention, a part of the queries at a time where they are many."""
  b, length, heads, head_dim = query.shape
  parts = -(-length // MAX_QUERIES)
  if parts == 1:
    return layers.attention(query, key, value)
  padded = jnp.pad(
    query, ((0, 0), (0, parts * MAX_QUERIES - length), (0, 0), (0, 0))
  )
  split = padded.reshape(b, parts, MAX_QUERIES, heads, head_dim)
  y = lax.map(
    lambda part: layers.attention(part, key, value), jnp.moveaxis(split, 1, 0)
  )
  return jnp.moveaxis(y, 0, 1).reshape(padded.shape)[:, :length]


class MidBlock(nn.Module):
  """ResNet block, attention, ResNet block at the coarsest resolution."""

  config: AutoencoderKLConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    config = self.config
    x = ResnetBlock(config, config.channels[-1], name="resnets_0")(x)
    if config.mid_attention:
      x = SpatialAttention(config, name="attentions_0")(x)
    return ResnetBlock(config, config.channels[-1], name="resnets_1")(x)


class DownBlock(nn.Module):
  """A level of the encoder: [B, h, w, C] -> [B, h / 2, w / 2, F]."""

  config: AutoencoderKLConfig
  level: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    config, features = self.config, self.config.channels[self.level]
    for i in range(config.num_res_blocks):
      x = ResnetBlock(config, features, name=f"resnets_{i}")(x)
    if self.level + 1 < len(config.channels):
      # Padded below and to the right alone, as these networks are trained.
      x = StreamConv(
        features, stride=2, padding=((0, 1), (0, 1)), name="downsamplers_0"
      )(x)
    return x


class UpBlock(nn.Module):
  """A level of the decoder: [B, h, w, C] -> [B, 2h, 2w, F]."""

  config: AutoencoderKLConfig
  level: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    config, features = self.config, self.config.channels[self.level]
    for i in range(config.num_res_blocks + 1):
      x = ResnetBlock(config, features, name=f"resnets_{i}")(x)
    if self.level:
      x = StreamConv(features, upsample=True, name="upsamplers_0")(x)
    return x


class Encoder(nn.Module):
  """Images [B, H, W, 3] -> [B, h, w, 2 c] float32."""

  config: AutoencoderKLConfig

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    config = self.config
    x = StreamConv(config.channels[0], name="conv_in")(images)
    for level in range(len(config.channels)):
      x = DownBlock(config, level, name=f"down_blocks_{level}")(x)
    x = MidBlock(config, name="mid_block")(x)
    x = nn.silu(Norm(config.norm_groups, name="conv_norm_out")(x))
    return StreamConv(2 * config.latent_channels, name="conv_out")(x)


class Decoder(nn.Module):
  """Latents [B, h, w, c] -> images [B, H, W, 3] float32, in two parts."""

  config: AutoencoderKLConfig

  def setup(self) -> None:
    config = self.config
    self.conv_in = StreamConv(config.channels[-1])
    self.mid_block = MidBlock(config)
    # Numbered from the coarsest, as in diffusers.
    self.up_blocks = [
      UpBlock(config, level) for level in reversed(range(len(config.channels)))
    ]
    self.conv_norm_out = Norm(config.norm_groups)
    self.conv_out = StreamConv(config.image_channels)

  def middle(self, latents: jax.Array) -> jax.Array:
    """[B, h, w, channels[-1]]: all that sees the whole image at once."""
    return self.mid_block(self.conv_in(latents))

  def levels(self, x: jax.Array) -> jax.Array:
    """[B, h, w, channels[-1]] -> images: all that takes memory."""
    for block in self.up_blocks:
      x = block(x)
    return self.conv_out(nn.silu(self.conv_norm_out(x)))

  def __call__(self, latents: jax.Array) -> jax.Array:
    return self.levels(self.middle(latents))


class AutoencoderKL(nn.Module):
  """Images [B, H, W, 3] <-> moments and decodings of latents, unscaled."""

  config: AutoencoderKLConfig

  def setup(self) -> None:
    config = self.config
    self.encoder, self.decoder = Encoder(config), Decoder(config)
    if config.quant_conv:
      self.quant_conv = StreamConv(
        2 * config.latent_channels, kernel_size=1, padding=0
      )
    if config.post_quant_conv:
      self.post_quant_conv = StreamConv(
        config.latent_channels, kernel_size=1, padding=0
      )

  def moments(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and log variance of the latents, each [B, h, w, c] float32.

    Raises:
      ValueError: sides that are no multiples of config.downsampling.
    """
    _, h, w, c = images.shape
    factor = self.config.downsampling
    if h % factor or w % factor:
      raise ValueError(
        f"images are {h} x {w}; this AutoencoderKL needs multiples of {factor}."
      )
    if c != self.config.image_channels:
      raise ValueError(
        f"images have {c} channels, {self.config.image_channels=}."
      )
    moments = self.encoder(images.astype(jnp.float32))
    if self.config.quant_conv:
      moments = self.quant_conv(moments)
    mean, log_variance = jnp.split(moments, 2, axis=-1)
    return mean, jnp.clip(log_variance, *LOG_VARIANCE_RANGE)

  def decode_middle(self, latents: jax.Array) -> jax.Array:
    """The part of `decode` that sees the whole image: -> [B, h, w, C]."""
    latents = latents.astype(jnp.float32)
    if latents.shape[-1] != self.config.latent_channels:
      raise ValueError(
        f"latents have {latents.shape[-1]} channels,"
        f" {self.config.latent_channels=}."
      )
    if self.config.post_quant_conv:
      latents = self.post_quant_conv(latents)
    return self.decoder.middle(latents)

  def decode_levels(self, x: jax.Array) -> jax.Array:
    """The rest of `decode`: [B, h, w, C] -> [B, H, W, 3] float32."""
    return self.decoder.levels(x)

  def decode(self, latents: jax.Array) -> jax.Array:
    """[B, h, w, c], not scaled -> images [B, H, W, 3] float32, not clipped."""
    return self.decode_levels(self.decode_middle(latents))

  def __call__(self, images: jax.Array) -> jax.Array:
    """What becomes of images whose latents are the mean."""
    return self.decode(self.moments(images)[0])
