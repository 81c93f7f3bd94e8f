"""The shape of a UNet: one config from tiny pixel nets to four families.

The defaults are Stable Diffusion 2's kind of blocks; docs/networks.md has the
table of what SDXL, DeepFloyd IF and Imagen set instead.
"""

import dataclasses

ACTIVATIONS = ("silu", "gelu")
ATTENTIONS = ("transformer", "joint")
RESAMPLINGS = ("conv", "resnet", "conv_first")
TEXT_NORMS = ("none", "group", "layer")
TEXT_POOLINGS = ("none", "attention", "mean", "given")
# Height and width of the original, top and left of the crop, height and width
# asked for (Podell et al. 2023).
MICRO_NUMBERS = 6

_CHOICES = {
  "activation": ACTIVATIONS,
  "attention": ATTENTIONS,
  "resampling": RESAMPLINGS,
  "text_norm": TEXT_NORMS,
  "text_pooling": TEXT_POOLINGS,
}
_PER_LEVEL = ("channels", "transformer_depth", "num_heads")


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNetConfig:
  """Shape of a UNet; a level is one resolution, tuples have one entry each.

  Attributes:
    in_channels: c of noisy_latents, with all that is concatenated to them (a
      low resolution image, a self-conditioning estimate).
    out_channels: c of the output; twice the latents' with learned variance.
    channels: width of each level, finest first.
    num_res_blocks: ResNet blocks per level on the way down, one number or one
      for each level; one more on the way up.
    transformer_depth: transformer blocks after each ResNet block; 0 for none.
    mid_transformer_depth: the same in the middle.
    num_heads: attention heads; head dim is channels / num_heads.
    cross_attention_dim: D of text_embeddings, checked.
    patch_size: pixels of a patch x patch square become channels (and back).
    norm_groups: groups of the group norms; divides all channels.
    dropout_rate: inside ResNet blocks.
    activation: of ResNet blocks, output and time; "gelu" is the exact one.
    approximate_gelu: tanh GELU in the transformers' MLPs; False is exact.
    time_embedding_dim: width of the time embedding; None: 4 channels[0].
    scale_shift_norm: time scales and shifts behind the second norm of a ResNet
      block (Dhariwal & Nichol 2021) instead of being added before it.
    residual_divisor: a ResNet block is (x + f(x)) / residual_divisor; sqrt(2)
      in Saharia et al. 2021 and IF's super-resolution.
    mid_residual_divisor: the same in the middle.
    skip_scale: what the way up multiplies the way down's skips by.
    resampling: how levels are joined. "conv": a convolution of stride 2 at a
      level's end, an upsampled one on the way up. "resnet": a ResNet block
      that averages two by two or repeats. "conv_first" is Imagen's Efficient
      U-Net: the convolution comes before a level's blocks (the finest
      level's, too) and after them on the way up, each level leaves one skip
      and has one attention at its end, and there is no middle.
    attention: "transformer": self-attention, cross-attention, MLP, each
      residual; "joint": one softmax over the image's and the text's keys (IF,
      Imagen), where a depth is 0 or 1.
    only_cross_attention: joint attention reads the text alone.
    text_norm: of the text that joint attention reads.
    text_projection_dim: width that the text is projected to for attention;
      None for no projection.
    text_pooling: what of the whole text goes into the time embedding: nothing,
      an attention-pooled vector (IF), the mean of what is under the mask, or
      the `pooled_text` that the UNet is given (SDXL).
    text_pooling_heads: of attention pooling.
    pooled_text_dim: P of the `pooled_text` given, checked.
    micro_conditioning_features: sinusoid features of each of the six numbers
      of `micro_conditioning` (SDXL: 256); 0 for none.
    noise_level: the UNet is told `noise_level` (super-resolution).
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
  num_res_blocks: int | tuple[int, ...] = 2
  transformer_depth: tuple[int, ...]
  mid_transformer_depth: int = 1
  num_heads: tuple[int, ...]
  cross_attention_dim: int
  patch_size: int = 1
  norm_groups: int = 32
  dropout_rate: float = 0.0
  activation: str = "silu"
  approximate_gelu: bool = False
  time_embedding_dim: int | None = None
  scale_shift_norm: bool = False
  residual_divisor: float = 1.0
  mid_residual_divisor: float = 1.0
  skip_scale: float = 1.0
  resampling: str = "conv"
  attention: str = "transformer"
  only_cross_attention: bool = False
  text_norm: str = "none"
  text_projection_dim: int | None = None
  text_pooling: str = "none"
  text_pooling_heads: int = 64
  pooled_text_dim: int = 0
  micro_conditioning_features: int = 0
  noise_level: bool = False
  zero_init_outputs: bool = True
  position_features: bool = False
  text_position_features: bool = False
  dtype: str = "float32"
  remat: bool = False

  def __post_init__(self) -> None:
    per_level = list(_PER_LEVEL)
    if not isinstance(self.num_res_blocks, int):
      per_level.append("num_res_blocks")
    for name in per_level:
      # Gin hands over lists; a config must hash.
      object.__setattr__(self, name, tuple(getattr(self, name)))
      if len(getattr(self, name)) != len(self.channels):
        raise ValueError(
          f"{name}={getattr(self, name)} needs one entry for each level of"
          f" channels={self.channels}."
        )
    for name, choices in _CHOICES.items():
      if getattr(self, name) not in choices:
        raise ValueError(
          f"{name}={getattr(self, name)!r} is none of {', '.join(choices)}."
        )
    self._check_divisors()
    self._check_attention()
    self._check_text()

  def _check_divisors(self) -> None:
    for channels, heads in zip(self.channels, self.num_heads, strict=True):
      for divisor in (self.norm_groups, heads):
        if channels % divisor:
          raise ValueError(
            f"{divisor} (norm_groups or num_heads) does not divide a level's"
            f" {channels} channels."
          )
    for name in ("residual_divisor", "mid_residual_divisor"):
      if not getattr(self, name) > 0:
        raise ValueError(f"{name}={getattr(self, name)} must be positive.")

  def _check_attention(self) -> None:
    depths = (*self.transformer_depth, self.mid_transformer_depth)
    if self.attention == "joint":
      if max(depths) > 1:
        raise ValueError(
          f"attention='joint' has one layer at a place, not {max(depths)}: set"
          " transformer_depth and mid_transformer_depth to 0 or 1."
        )
    elif self.only_cross_attention or self.text_norm != "none":
      raise ValueError(
        "only_cross_attention and text_norm are joint attention's: set"
        " attention='joint'."
      )

  def _check_text(self) -> None:
    if (self.text_pooling == "given") != (self.pooled_text_dim > 0):
      raise ValueError(
        f"text_pooling={self.text_pooling!r} with"
        f" pooled_text_dim={self.pooled_text_dim}: set both, 'given' and the"
        " width of pooled_text, or neither."
      )
    heads = self.text_pooling_heads
    if self.text_pooling == "attention" and self.cross_attention_dim % heads:
      raise ValueError(
        f"text_pooling_heads={heads} does not divide"
        f" cross_attention_dim={self.cross_attention_dim}."
      )

  @property
  def downsampling(self) -> int:
    """Height and width of noisy_latents must be multiples of this."""
    # conv_first halves before the finest level, too.
    halvings = len(self.channels) - (self.resampling != "conv_first")
    return self.patch_size * 2**halvings

  @property
  def res_blocks(self) -> tuple[int, ...]:
    """ResNet blocks of each level on the way down."""
    if isinstance(self.num_res_blocks, int):
      return (self.num_res_blocks,) * len(self.channels)
    return self.num_res_blocks

  @property
  def num_blocks(self) -> int:
    """About how many blocks there are: what tracing takes its time by."""
    levels = zip(self.res_blocks, self.transformer_depth, strict=True)
    both_ways = sum((2 * count + 1) * (1 + depth) for count, depth in levels)
    return both_ways + 2 + self.mid_transformer_depth

  @property
  def time_features(self) -> int:
    """Width of the time embedding."""
    return self.time_embedding_dim or 4 * self.channels[0]

  @property
  def text_features(self) -> int:
    """Width of the text that attention reads."""
    return self.text_projection_dim or self.cross_attention_dim
