"""The blocks of a UNet: ResNet blocks and levels down, in the middle and up.

Block names are those of diffusers' UNet2DConditionModel (Rombach et al. 2022).
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from byt5_diffusion import layers, unet_attention, unet_conditions, unet_config


class ResnetBlock(nn.Module):
  """(x + conv(norm(conv(norm(x))), time)) / divisor; -> [B, h', w', F].

  Attributes:
    resample: "none"; "down" averages two by two positions, "up" repeats each,
      of x and of what goes into the first convolution.
  """

  config: unet_config.UNetConfig
  features: int
  enable_dropout: bool = False
  resample: str = "none"
  divisor: float = 1.0

  @nn.compact
  def __call__(self, x: jax.Array, time: jax.Array) -> jax.Array:
    config = self.config
    act = unet_conditions.activation(config)

    def norm(name: str) -> layers.GroupNorm:
      return layers.GroupNorm(config.norm_groups, dtype=config.dtype, name=name)

    h = act(norm("norm1")(x))
    if self.resample == "down":
      h, x = average_pool(h), average_pool(x)
    elif self.resample == "up":
      x = layers.upsample(x)
    h = layers.Conv(
      self.features,
      upsample=self.resample == "up",
      dtype=config.dtype,
      name="conv1",
    )(h)
    time = layers.Dense(
      self.features * (2 if config.scale_shift_norm else 1),
      ("embed", "conv_out"),
      dtype=config.dtype,
      name="time_emb_proj",
    )(act(time))[:, None, None]
    if config.scale_shift_norm:
      scale, shift = jnp.split(time, 2, axis=-1)
      h = norm("norm2")(h) * (1 + scale) + shift
    else:
      h = norm("norm2")(h + time)
    h = nn.Dropout(config.dropout_rate, deterministic=not self.enable_dropout)(
      act(h)
    )
    h = layers.Conv(
      self.features,
      kernel_init=unet_attention.output_init(config),
      dtype=config.dtype,
      name="conv2",
    )(h)
    if x.shape[-1] != self.features:
      x = layers.Conv(
        self.features, 1, padding=0, dtype=config.dtype, name="conv_shortcut"
      )(x)
    return x + h if self.divisor == 1 else (x + h) / self.divisor


def average_pool(x: jax.Array) -> jax.Array:
  """The mean of each two by two positions: -> [B, h / 2, w / 2, C]."""
  b, h, w, c = x.shape
  return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


class DownBlock(nn.Module):
  """A level on the way down: -> output and the skips it leaves behind."""

  config: unet_config.UNetConfig
  level: int
  enable_dropout: bool = False

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    time: jax.Array,
    text_embeddings: jax.Array,
    text_mask: jax.Array,
  ) -> tuple[jax.Array, list[jax.Array]]:
    config, level = self.config, self.level
    features = config.channels[level]
    skips = []
    for i in range(config.res_blocks[level]):
      x = _resnet(config, features, self.enable_dropout, i)(x, time)
      if config.transformer_depth[level]:
        x = _attention(config, level, i)(x, text_embeddings, text_mask)
      skips.append(x)
    if level + 1 < len(config.channels):
      x = _sample(config, x, time, self.enable_dropout, "down")
      skips.append(x)
    return x, skips


class MidBlock(nn.Module):
  """ResNet block, transformer, ResNet block at the coarsest resolution."""

  config: unet_config.UNetConfig
  enable_dropout: bool = False

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    time: jax.Array,
    text_embeddings: jax.Array,
    text_mask: jax.Array,
  ) -> jax.Array:
    config = self.config

    def resnet(i: int) -> nn.Module:
      return _remat(config, ResnetBlock)(
        config,
        config.channels[-1],
        self.enable_dropout,
        divisor=config.mid_residual_divisor,
        name=f"resnets_{i}",
      )

    x = resnet(0)(x, time)
    if config.mid_transformer_depth:
      attention = _attention(config, -1, 0, config.mid_transformer_depth)
      x = attention(x, text_embeddings, text_mask)
    return resnet(1)(x, time)


class UpBlock(nn.Module):
  """A level on the way up; takes its skips from the end of the list."""

  config: unet_config.UNetConfig
  level: int
  enable_dropout: bool = False

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    skips: list[jax.Array],
    time: jax.Array,
    text_embeddings: jax.Array,
    text_mask: jax.Array,
  ) -> jax.Array:
    config, level = self.config, self.level
    features = config.channels[level]
    for i, skip in enumerate(reversed(skips)):
      x = join(config, x, skip)
      x = _resnet(config, features, self.enable_dropout, i)(x, time)
      if config.transformer_depth[level]:
        x = _attention(config, level, i)(x, text_embeddings, text_mask)
    if level:
      x = _sample(config, x, time, self.enable_dropout, "up")
    return x


class EfficientDownBlock(nn.Module):
  """A level of Imagen's Efficient U-Net on the way down (figure A.28).

  A convolution of stride 2, then all the blocks at the lower resolution, then
  one attention; the one skip is the output.
  """

  config: unet_config.UNetConfig
  level: int
  enable_dropout: bool = False

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    time: jax.Array,
    text_embeddings: jax.Array,
    text_mask: jax.Array,
  ) -> tuple[jax.Array, list[jax.Array]]:
    config, level = self.config, self.level
    features = config.channels[level]
    x = layers.Conv(
      features, stride=2, dtype=config.dtype, name="downsamplers_0"
    )(x)
    for i in range(config.res_blocks[level]):
      x = _resnet(config, features, self.enable_dropout, i)(x, time)
    if config.transformer_depth[level]:
      x = _attention(config, level, 0)(x, text_embeddings, text_mask)
    return x, [x]


class EfficientUpBlock(nn.Module):
  """The mirror image (figure A.29): skip, blocks, attention, upsampling.

  The convolution behind the upsampling has the next level's width already.
  """

  config: unet_config.UNetConfig
  level: int
  enable_dropout: bool = False

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    skips: list[jax.Array],
    time: jax.Array,
    text_embeddings: jax.Array,
    text_mask: jax.Array,
  ) -> jax.Array:
    config, level = self.config, self.level
    for skip in skips:
      x = join(config, x, skip)
    for i in range(config.res_blocks[level]):
      x = _resnet(config, config.channels[level], self.enable_dropout, i)(
        x, time
      )
    if config.transformer_depth[level]:
      x = _attention(config, level, 0)(x, text_embeddings, text_mask)
    return layers.Conv(
      config.channels[max(level - 1, 0)],
      upsample=True,
      dtype=config.dtype,
      name="upsamplers_0",
    )(x)


def join(
  config: unet_config.UNetConfig, x: jax.Array, skip: jax.Array
) -> jax.Array:
  """[x, skip_scale * skip] along the channels."""
  if config.skip_scale != 1:
    skip = skip * config.skip_scale
  return jnp.concatenate([x, skip], axis=-1)


def _remat(
  config: unet_config.UNetConfig, module: type[nn.Module]
) -> type[nn.Module]:
  return nn.remat(module) if config.remat else module


def _resnet(
  config: unet_config.UNetConfig, features: int, enable_dropout: bool, i: int
) -> nn.Module:
  return _remat(config, ResnetBlock)(
    config,
    features,
    enable_dropout,
    divisor=config.residual_divisor,
    name=f"resnets_{i}",
  )


def _sample(
  config: unet_config.UNetConfig,
  x: jax.Array,
  time: jax.Array,
  enable_dropout: bool,
  direction: str,
) -> jax.Array:
  """x with halved ("down") or doubled ("up") sides."""
  features, name = x.shape[-1], f"{direction}samplers_0"
  if config.resampling == "resnet":
    return _remat(config, ResnetBlock)(
      config,
      features,
      enable_dropout,
      resample=direction,
      divisor=config.residual_divisor,
      name=name,
    )(x, time)
  up = direction == "up"
  return layers.Conv(
    features, stride=1 if up else 2, upsample=up, dtype=config.dtype, name=name
  )(x)


def _attention(
  config: unet_config.UNetConfig, level: int, i: int, depth: int | None = None
) -> nn.Module:
  heads, name = config.num_heads[level], f"attentions_{i}"
  if config.attention == "joint":
    return _remat(config, unet_attention.JointAttention)(
      config, heads, name=name
    )
  return _remat(config, unet_attention.Transformer)(
    config, depth or config.transformer_depth[level], heads, name=name
  )
