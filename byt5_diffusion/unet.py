"""The UNet: one network whose config spans tiny pixel nets to SDXL and Imagen.

Topology and block names are those of diffusers' UNet2DConditionModel
(Rombach et al. 2022): down blocks, a middle, up blocks joined by skip
connections; each level a few time-conditioned ResNet blocks, on some levels
followed by attention that reads the text. unet_config.py says what there is to
choose, unet_blocks.py, unet_attention.py and unet_conditions.py are the parts.
"""

import jax
from flax import linen as nn

from byt5_diffusion import (
  layers,
  unet_attention,
  unet_blocks,
  unet_conditions,
  unet_config,
)

# Gin files and model.gin name it here.
UNetConfig = unet_config.UNetConfig


def space_to_depth(x: jax.Array, size: int) -> jax.Array:
  """[B, h, w, C] -> [B, h / size, w / size, size^2 C]."""
  b, h, w, c = x.shape
  x = x.reshape(b, h // size, size, w // size, size, c)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(
    b, h // size, w // size, size * size * c
  )


def depth_to_space(x: jax.Array, size: int) -> jax.Array:
  """The inverse of space_to_depth."""
  b, h, w, c = x.shape
  x = x.reshape(b, h, w, size, size, c // (size * size))
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h * size, w * size, -1)


class UNet(nn.Module):
  """The denoising network; what its output means is prediction_type's call."""

  config: UNetConfig

  @nn.compact
  def __call__(
    self,
    noisy_latents: jax.Array,
    time: jax.Array,
    text_embeddings: jax.Array,
    text_mask: jax.Array,
    enable_dropout: bool = False,
    pooled_text: jax.Array | None = None,
    micro_conditioning: jax.Array | None = None,
    noise_level: jax.Array | None = None,
  ) -> jax.Array:
    """Runs the network.

    Args:
      noisy_latents: [B, h, w, c]; h and w multiples of config.downsampling.
      time: [B] float32, in the units that the sinusoid is to see (0 .. 1000
        as in DDPM).
      text_embeddings: [B, L, D].
      text_mask: [B, L] bool, True for real bytes. A row without any skips
        cross-attention.
      enable_dropout: needs the rng "dropout" when dropout_rate > 0.
      pooled_text: [B, P], for text_pooling="given".
      micro_conditioning: [B, 6] float32, for micro_conditioning_features > 0.
      noise_level: [B] float32, in the units of `time`, for noise_level=True.

    Returns:
      [B, h, w, out_channels], of the config's dtype.

    Raises:
      ValueError: shapes don't fit, or an input is missing or has no reader.
    """
    config = self.config
    _check_shapes(config, noisy_latents, text_embeddings)
    text_embeddings = text_embeddings.astype(config.dtype)
    if config.text_position_features:
      text_embeddings = unet_conditions.TextPositions(
        config, name="text_positions"
      )(text_embeddings, text_mask)
    time = unet_conditions.embedding(
      config,
      time,
      text_embeddings,
      text_mask,
      pooled_text,
      micro_conditioning,
      noise_level,
    )
    text = unet_conditions.read_text(config, text_embeddings), text_mask
    x = space_to_depth(noisy_latents.astype(config.dtype), config.patch_size)
    x = layers.Conv(config.channels[0], dtype=config.dtype, name="conv_in")(x)
    if config.position_features:
      x = unet_conditions.ImagePositions(config, name="image_positions")(x)
    x = self._levels(x, time, *text, enable_dropout)
    x = layers.GroupNorm(
      config.norm_groups, dtype=config.dtype, name="conv_norm_out"
    )(x)
    x = layers.Conv(
      config.out_channels * config.patch_size**2,
      kernel_init=unet_attention.output_init(config),
      dtype=config.dtype,
      name="conv_out",
    )(unet_conditions.activation(config)(x))
    return depth_to_space(x, config.patch_size)

  def _levels(
    self,
    x: jax.Array,
    time: jax.Array,
    text_embeddings: jax.Array,
    text_mask: jax.Array,
    enable_dropout: bool,
  ) -> jax.Array:
    """Down, through the middle and up again; [B, h, w, channels[0]]."""
    config = self.config
    efficient = config.resampling == "conv_first"
    down: type[nn.Module] = unet_blocks.DownBlock
    up: type[nn.Module] = unet_blocks.UpBlock
    if efficient:
      down = unet_blocks.EfficientDownBlock
      up = unet_blocks.EfficientUpBlock
    condition = (time, text_embeddings, text_mask)
    skips = [] if efficient else [x]
    for level in range(len(config.channels)):
      x, left = down(
        config, level, enable_dropout, name=f"down_blocks_{level}"
      )(x, *condition)
      skips += left
    if efficient:
      skips.pop()  # It is x itself.
    else:
      x = unet_blocks.MidBlock(config, enable_dropout, name="mid_block")(
        x, *condition
      )
    for i, level in enumerate(reversed(range(len(config.channels)))):
      count = int(i > 0) if efficient else config.res_blocks[level] + 1
      cut = len(skips) - count
      skips, taken = skips[:cut], skips[cut:]
      # Numbered from the coarsest, as in diffusers.
      x = up(config, level, enable_dropout, name=f"up_blocks_{i}")(
        x, taken, *condition
      )
    return x


def _check_shapes(
  config: UNetConfig, noisy_latents: jax.Array, text_embeddings: jax.Array
) -> None:
  _, h, w, c = noisy_latents.shape
  if h % config.downsampling or w % config.downsampling:
    raise ValueError(
      f"noisy_latents are {h} x {w}; this UNet needs multiples of"
      f" {config.downsampling} (patch_size and {len(config.channels)} levels)."
    )
  if c != config.in_channels:
    raise ValueError(f"noisy_latents have {c} channels, {config.in_channels=}.")
  if text_embeddings.shape[-1] != config.cross_attention_dim:
    raise ValueError(
      f"text_embeddings are {text_embeddings.shape[-1]} wide,"
      f" {config.cross_attention_dim=}."
    )
