"""The UNet: one network whose config spans tiny pixel nets to SD 2.1.

Topology and block names are those of diffusers' UNet2DConditionModel
(Rombach et al. 2022): down blocks, a middle, up blocks joined by skip
connections; each level a few time-conditioned ResNet blocks, on some levels
followed by transformers that read the text. Inside a transformer the names
are T5X's.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from byt5_diffusion import layers

# Wavelengths of position features end at 2 pi times this many positions.
POSITION_PERIOD = 64.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNetConfig:
  """Shape of a UNet; a level is one resolution, tuples have one entry each.

  Attributes:
    in_channels: c of noisy_latents.
    out_channels: c of the output; more than in_channels with learned variance.
    channels: width of each level, finest first.
    num_res_blocks: ResNet blocks per level on the way down (one more up).
    transformer_depth: transformer blocks after each ResNet block; 0 for none.
    mid_transformer_depth: the same in the middle.
    num_heads: attention heads; head dim is channels / num_heads.
    cross_attention_dim: D of text_embeddings, checked.
    patch_size: pixels of a patch x patch square become channels (and back).
    norm_groups: groups of the group norms; divides all channels.
    dropout_rate: inside ResNet blocks.
    approximate_gelu: tanh GELU in the transformers' MLPs; False is exact.
    zero_init_outputs: start every residual branch and the output at zero.
    position_features: tell each patch where it lies, after conv_in.
    text_position_features: tell each text embedding its index, counted and
      as a share of the text's length. Both help a small net to line letters
      up with bytes; neither limits sizes or lengths.
    dtype: of activations; parameters are float32.
    remat: recompute blocks in the backward pass to save memory.
  """

  in_channels: int = 3
  out_channels: int = 3
  channels: tuple[int, ...]
  num_res_blocks: int = 2
  transformer_depth: tuple[int, ...]
  mid_transformer_depth: int = 1
  num_heads: tuple[int, ...]
  cross_attention_dim: int
  patch_size: int = 1
  norm_groups: int = 32
  dropout_rate: float = 0.0
  approximate_gelu: bool = False
  zero_init_outputs: bool = True
  position_features: bool = False
  text_position_features: bool = False
  dtype: str = "float32"
  remat: bool = False

  def __post_init__(self) -> None:
    for name in ("channels", "transformer_depth", "num_heads"):
      # Gin hands over lists; a config must hash.
      object.__setattr__(self, name, tuple(getattr(self, name)))
      if len(getattr(self, name)) != len(self.channels):
        raise ValueError(
          f"{name}={getattr(self, name)} needs one entry for each level of"
          f" channels={self.channels}."
        )
    for channels, heads in zip(self.channels, self.num_heads, strict=True):
      for divisor in (self.norm_groups, heads):
        if channels % divisor:
          raise ValueError(
            f"{divisor} (norm_groups or num_heads) does not divide a level's"
            f" {channels} channels."
          )

  @property
  def downsampling(self) -> int:
    """Height and width of noisy_latents must be multiples of this."""
    return self.patch_size * 2 ** (len(self.channels) - 1)


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


def _output_init(config: UNetConfig) -> layers.Initializer:
  return layers.ZERO_INIT if config.zero_init_outputs else layers.KERNEL_INIT


class TimeEmbedding(nn.Module):
  """time [B] -> [B, features]: sinusoid, dense, silu, dense."""

  config: UNetConfig
  features: int

  @nn.compact
  def __call__(self, time: jax.Array) -> jax.Array:
    dtype = self.config.dtype
    x = layers.sinusoid(time, self.config.channels[0])
    x = layers.Dense(
      self.features, ("embed", "mlp"), dtype=dtype, name="linear_1"
    )(x)
    return layers.Dense(
      self.features, ("mlp", "embed"), dtype=dtype, name="linear_2"
    )(nn.silu(x))


class ResnetBlock(nn.Module):
  """x + conv(norm(conv(norm(x)) + time)); [B, h, w, C] -> [B, h, w, F]."""

  config: UNetConfig
  features: int
  enable_dropout: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, time: jax.Array) -> jax.Array:
    config = self.config

    def norm(name: str) -> layers.GroupNorm:
      return layers.GroupNorm(config.norm_groups, dtype=config.dtype, name=name)

    h = nn.silu(norm("norm1")(x))
    h = layers.Conv(self.features, dtype=config.dtype, name="conv1")(h)
    time = layers.Dense(
      self.features,
      ("embed", "conv_out"),
      dtype=config.dtype,
      name="time_emb_proj",
    )(nn.silu(time))
    h = nn.silu(norm("norm2")(h + time[:, None, None]))
    h = nn.Dropout(config.dropout_rate, deterministic=not self.enable_dropout)(
      h
    )
    h = layers.Conv(
      self.features,
      kernel_init=_output_init(config),
      dtype=config.dtype,
      name="conv2",
    )(h)
    if x.shape[-1] != self.features:
      x = layers.Conv(
        self.features, 1, padding=0, dtype=config.dtype, name="conv_shortcut"
      )(x)
    return x + h


class TransformerBlock(nn.Module):
  """Self-attention, cross-attention to the text, gated MLP; each residual."""

  config: UNetConfig
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
      norm("cross_attention")(x),
      text_embeddings,
      layers.mask_bias(text_mask[:, None, None, :]),
    )
    # Without a single byte to read there is nothing to add: not even the
    # mean of the pads that the softmax of an empty row comes to.
    x = x + jnp.where(text_mask.any(-1)[:, None, None], y, 0)
    return x + layers.GatedMlp(
      4 * channels,
      use_bias=True,
      approximate=self.config.approximate_gelu,
      dtype=dtype,
      name="mlp",
    )(norm("mlp")(x))


class Transformer(nn.Module):
  """x + transformer blocks over the h w positions of x [B, h, w, C]."""

  config: UNetConfig
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
      kernel_init=_output_init(config),
      dtype=config.dtype,
      name="proj_out",
    )(y)
    return x + y.reshape(b, h, w, c)


class DownBlock(nn.Module):
  """A level on the way down: -> output and the skips it leaves behind."""

  config: UNetConfig
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
    for i in range(config.num_res_blocks):
      x = _block(config, ResnetBlock)(
        config, features, self.enable_dropout, name=f"resnets_{i}"
      )(x, time)
      if config.transformer_depth[level]:
        x = _transformer(config, level, i)(x, text_embeddings, text_mask)
      skips.append(x)
    if level + 1 < len(config.channels):
      x = layers.Conv(
        features, stride=2, dtype=config.dtype, name="downsamplers_0"
      )(x)
      skips.append(x)
    return x, skips


class MidBlock(nn.Module):
  """ResNet block, transformer, ResNet block at the coarsest resolution."""

  config: UNetConfig
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
      return _block(config, ResnetBlock)(
        config, config.channels[-1], self.enable_dropout, name=f"resnets_{i}"
      )

    x = resnet(0)(x, time)
    if config.mid_transformer_depth:
      transformer = _transformer(config, -1, 0, config.mid_transformer_depth)
      x = transformer(x, text_embeddings, text_mask)
    return resnet(1)(x, time)


class UpBlock(nn.Module):
  """A level on the way up; takes its skips from the end of the list."""

  config: UNetConfig
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
      x = _block(config, ResnetBlock)(
        config, features, self.enable_dropout, name=f"resnets_{i}"
      )(jnp.concatenate([x, skip], axis=-1), time)
      if config.transformer_depth[level]:
        x = _transformer(config, level, i)(x, text_embeddings, text_mask)
    if level:
      x = layers.Conv(
        features, upsample=True, dtype=config.dtype, name="upsamplers_0"
      )(x)
    return x


def _block(config: UNetConfig, module: type[nn.Module]) -> type[nn.Module]:
  return nn.remat(module) if config.remat else module


def _transformer(
  config: UNetConfig, level: int, i: int, depth: int | None = None
) -> nn.Module:
  return _block(config, Transformer)(
    config,
    depth or config.transformer_depth[level],
    config.num_heads[level],
    name=f"attentions_{i}",
  )


def _linear(
  config: UNetConfig, features: int, axes: tuple[str, str], name: str
) -> layers.Dense:
  return layers.Dense(
    features, axes, use_bias=False, dtype=config.dtype, name=name
  )


class ImagePositions(nn.Module):
  """Adds a linear map of row and column sinusoids to x [B, h, w, C]."""

  config: UNetConfig

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

  config: UNetConfig

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

    Returns:
      [B, h, w, out_channels], of the config's dtype.
    """
    config = self.config
    _check_shapes(config, noisy_latents, text_embeddings)
    time = TimeEmbedding(config, 4 * config.channels[0], name="time_embedding")(
      time
    )
    text_embeddings = text_embeddings.astype(config.dtype)
    if config.text_position_features:
      text_embeddings = TextPositions(config, name="text_positions")(
        text_embeddings, text_mask
      )
    text = (text_embeddings, text_mask)
    x = space_to_depth(noisy_latents.astype(config.dtype), config.patch_size)
    x = layers.Conv(config.channels[0], dtype=config.dtype, name="conv_in")(x)
    if config.position_features:
      x = ImagePositions(config, name="image_positions")(x)
    x = self._levels(x, time, *text, enable_dropout)
    x = layers.GroupNorm(
      config.norm_groups, dtype=config.dtype, name="conv_norm_out"
    )(x)
    x = layers.Conv(
      config.out_channels * config.patch_size**2,
      kernel_init=_output_init(config),
      dtype=config.dtype,
      name="conv_out",
    )(nn.silu(x))
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
    condition = (time, text_embeddings, text_mask)
    skips = [x]
    for level in range(len(config.channels)):
      x, left = DownBlock(
        config, level, enable_dropout, name=f"down_blocks_{level}"
      )(x, *condition)
      skips += left
    x = MidBlock(config, enable_dropout, name="mid_block")(x, *condition)
    for i, level in enumerate(reversed(range(len(config.channels)))):
      cut = len(skips) - config.num_res_blocks - 1
      skips, taken = skips[:cut], skips[cut:]
      # Numbered from the coarsest, as in diffusers.
      x = UpBlock(config, level, enable_dropout, name=f"up_blocks_{i}")(
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
