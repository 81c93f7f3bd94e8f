"""SuperResolutionModel: a small picture and its caption in, a large one out.

A stage of a cascade (Ho et al. 2022, arXiv:2106.15282; Saharia et al. 2022,
arXiv:2205.11487): the UNet sees, beside its noisy latents, the low resolution
picture enlarged to their size. In training that picture is the high resolution
one made small; in a cascade it is what the stage before has drawn, which looks
a little different. Noise-conditioning augmentation bridges that: the enlarged
picture gets noise of a level that the UNet is told,

  low = alpha(s) upsample(x_low) + sigma(s) noise,  s in [0, max_augmentation]

drawn anew for each example in training; in evaluation and sampling the level
is `augmentation`, unless another is asked for.

Notation: B batch, H W pixels, h w low resolution pixels.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from byt5_diffusion import conditions, contract, diffusion, models

Array = jax.Array
Batch = Mapping[str, Array]
PyTree = Any

# Folded into an example's key: draws beside those of every denoising model.
_CROP, _LEVEL, _NOISE = 0x43524F50, 0x4C45564C, 0x4E4F4953


def downsample(images: Array, factor: int) -> Array:
  """The mean of each factor x factor square: [B, H, W, C] -> [B, h, w, C].

  Area averaging, the antialiasing of Dhariwal & Nichol 2021's upsamplers: each
  pixel says what its square looks like and nothing of its neighbours, so that
  a crop's small picture is the crop of the small picture.

  Raises:
    ValueError: factor does not divide H and W.
  """
  b, h, w, c = images.shape
  if h % factor or w % factor:
    raise ValueError(f"{factor=} must divide pictures of {h} x {w} pixels.")
  squares = images.reshape(b, h // factor, factor, w // factor, factor, c)
  return squares.mean(axis=(2, 4))


def upsample(
  images: Array, size: tuple[int, int], align_corners: bool = False
) -> Array:
  """Bilinear: [B, h, w, C] -> [B, *size, C]; PyTorch's F.interpolate.

  Args:
    images: the small pictures.
    size: (H, W), not smaller.
    align_corners: the outermost pixels' centres stay where they are; else the
      pictures' edges do, and pixels beyond the edge repeat it.
  """
  for axis, length in zip((1, 2), size, strict=True):
    images = _stretch(images, axis, length, align_corners)
  return images


def _stretch(images: Array, axis: int, length: int, aligned: bool) -> Array:
  """Linear interpolation along an axis."""
  count = images.shape[axis]
  if aligned:
    places = jnp.linspace(0.0, count - 1.0, length)
  else:
    places = (jnp.arange(length) + 0.5) * (count / length) - 0.5
  places = jnp.clip(places, 0.0, count - 1.0)
  before = jnp.floor(places).astype(jnp.int32)
  after = jnp.minimum(before + 1, count - 1)
  shape = [1] * images.ndim
  shape[axis] = length
  share = (places - before).reshape(shape).astype(images.dtype)
  left = jnp.take(images, before, axis=axis)
  right = jnp.take(images, after, axis=axis)
  return left + share * (right - left)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuperResolutionModel(models.TextConditionedModel):
  """Enlarges pictures by `factor`, told what they show.

  The UNet's in_channels are the latents' and 3 more, for the low resolution
  picture; it needs a noise level unless max_augmentation is 0.

  Attributes, besides those of models.TextConditionedModel, whose image_size is
  the large one:
    factor: large side / small side.
    max_augmentation: training's levels are uniform in [0, this]; timesteps of
      augmentation_schedule. 1 is Imagen's.
    augmentation: the level of evaluation and sampling.
    augmentation_schedule: of the small picture's noise; None: `schedule`.
    align_corners: how the small picture is enlarged (`upsample`); True for the
      weights of DeepFloyd IF.
    crop_size: (H, W) of the crops that training cuts out of the large pictures,
      at random, and evaluation out of their middle; None: the whole pictures.
      The UNet must not care where it looks (position_features).
  """

  factor: int
  max_augmentation: float = 1.0
  augmentation: float = 0.1
  augmentation_schedule: diffusion.Schedule | None = None
  align_corners: bool = False
  crop_size: tuple[int, int] | None = None

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.factor < 2:
      raise ValueError(f"{self.factor=} must be 2 or more.")
    if not 0 <= self.augmentation <= self.max_augmentation <= 1:
      raise ValueError(
        f"{self.augmentation=} and {self.max_augmentation=} must be 0 <= "
        "augmentation <= max_augmentation <= 1."
      )
    config: Any = self.unet.config
    if config.noise_level != bool(self.max_augmentation):
      raise ValueError(
        f"UNetConfig.noise_level = {config.noise_level}, but "
        f"{self.max_augmentation=}: the UNet must be told the level of the "
        "small picture's noise where there is any, and only there."
      )
    if self.codec.downsampling > self.factor:
      raise ValueError(
        f"the codec's latents are {self.codec.downsampling} times smaller than "
        f"the pictures, what is enlarged {self.factor} times: latents coarser "
        "than the small picture cannot show it. Use another codec."
      )
    self._check_size("image_size", self.image_size)
    if self.crop_size is not None:
      # Gin hands over lists; a model must hash.
      object.__setattr__(self, "crop_size", tuple(self.crop_size))
      self._check_size("crop_size", self.crop_size)
      if any(
        cut > side
        for cut, side in zip(self.crop_size, self.image_size, strict=True)
      ):
        raise ValueError(
          f"{self.crop_size=} does not fit into {self.image_size=}."
        )
      if config.position_features and self.crop_size != tuple(self.image_size):
        raise ValueError(
          f"{self.crop_size=} of {self.image_size=}, but the UNet is told where"
          " patches lie: whole pictures have places that no crop has. Set"
          " UNetConfig.position_features = False."
        )

  def _check_size(self, name: str, size: tuple[int, ...]) -> None:
    if len(size) != 2 or any(x < 1 or x % self.factor for x in size):
      raise ValueError(
        f"SuperResolutionModel.{name} = {tuple(size)} is not (H, W), both "
        f"multiples of factor = {self.factor}."
      )

  @property
  def low_size(self) -> tuple[int, int]:
    """(h, w) of the pictures that are enlarged."""
    height, width = self.image_size
    return height // self.factor, width // self.factor

  # --- What the UNet is told -------------------------------------------------

  def downsample(self, images: Array) -> Array:
    """Large pictures to what `upscale` takes: [B, H, W, 3] -> [B, h, w, 3]."""
    return downsample(images, self.factor)

  def condition(
    self,
    params: PyTree,
    batch: Batch,
    flax_mutables: PyTree | None = None,
    *,
    rngs: Array | None = None,
    **options: Any,
  ) -> conditions.Conditioning:
    """The text of a batch and its pictures made small, noised.

    See DenoisingModel.condition. Without rngs the level is `augmentation` and
    the noise the example's own: evaluations compare.
    """
    told = super().condition(params, batch, flax_mutables, rngs=rngs, **options)
    count = len(batch["images"])
    levels = jnp.full((count,), self.augmentation, jnp.float32)
    if rngs is None:
      rng = jax.random.key(0)
      rngs = contract.per_example_rngs(rng, batch["example_id"])
    else:
      share = jax.vmap(jax.random.uniform)(_fold_in(rngs, _LEVEL))
      levels = self.max_augmentation * share
    return self._with_low(told, self.downsample(batch["images"]), levels, rngs)

  def _with_low(
    self,
    told: conditions.Conditioning,
    images_low: Array,
    levels: Array,
    rngs: Array,
  ) -> conditions.Conditioning:
    """Adds the small pictures, enlarged and noised, and their levels [B]."""
    height, width = (
      side * self.factor // self.codec.downsampling
      for side in images_low.shape[1:3]
    )
    low = upsample(images_low, (height, width), self.align_corners)
    if self.max_augmentation:
      schedule = self.augmentation_schedule or self.schedule
      noise = jax.vmap(lambda key: jax.random.normal(key, low.shape[1:]))(
        _fold_in(rngs, _NOISE)
      )
      low = diffusion.add_noise(low, noise, schedule.log_snr(levels))
      told = told._replace(
        noise_level=self.time_scale * levels + self.time_offset
      )
    return told.with_channels(low)

  # --- Training on crops -----------------------------------------------------

  def _training_losses(
    self,
    params: PyTree,
    batch: Batch,
    rng: Array,
    flax_mutables: PyTree | None,
  ) -> Array:
    rngs = contract.per_example_rngs(rng, batch["example_id"])
    cut = self._cut(batch, _fold_in(rngs, _CROP))
    return super()._training_losses(params, cut, rng, flax_mutables)

  def eval_losses(
    self, params: PyTree, batch: Batch, flax_mutables: PyTree | None = None
  ) -> Array:
    """As DenoisingModel's, of the middle where training sees crops."""
    return super().eval_losses(params, self._cut(batch, None), flax_mutables)

  def _cut(self, batch: Batch, rngs: Array | None) -> Batch:
    """Images cut to crop_size, from multiples of factor; None: the middle."""
    if self.crop_size is None:
      return batch
    images = batch["images"]
    steps = jnp.asarray(
      [
        (side - cut) // self.factor
        for side, cut in zip(images.shape[1:3], self.crop_size, strict=True)
      ]
    )
    if rngs is None:
      starts = jnp.broadcast_to(steps // 2, (len(images), 2))
    else:
      starts = jax.vmap(
        lambda key: jax.random.randint(key, (2,), 0, steps + 1)
      )(rngs)
    shape = (*self.crop_size, images.shape[-1])
    cut = jax.vmap(
      lambda image, start: jax.lax.dynamic_slice(
        image, (start[0], start[1], 0), shape
      )
    )(images, self.factor * starts)
    return {**batch, "images": cut}

  # --- Drawing ---------------------------------------------------------------

  def upscale(
    self,
    params: PyTree,
    images_low: Array,
    text_tokens: Array,
    rngs: Array,
    *,
    semantic_tokens: Array | None = None,
    flax_mutables: PyTree | None = None,
    guidance_scale: float | None = None,
    num_steps: int | None = None,
    augmentation: float | Array | None = None,
  ) -> Array:
    """Enlarges [B, h, w, 3] to [B, H, W, 3], all in [-1, 1].

    Each image depends on its own small picture, caption and key alone.

    Args:
      params: of this model.
      images_low: of low_size; `downsample` makes them of large ones.
      text_tokens: [B, L], what they show.
      rngs: [B], one key per image.
      semantic_tokens: [B, S], for a second encoder.
      flax_mutables: the frozen networks.
      guidance_scale: of the text, not of the small picture; 1 is off; None is
        the model's.
      num_steps: of the sampler; None is the model's.
      augmentation: noise level of the small pictures, in [0,
        max_augmentation]; None is the model's.
    """
    scale = self.guidance_scale if guidance_scale is None else guidance_scale
    if augmentation is None:
      augmentation = self.augmentation
    levels = jnp.full(rngs.shape[:1], augmentation, jnp.float32)
    batch = {"text_tokens": text_tokens}
    if semantic_tokens is not None:
      batch["semantic_tokens"] = semantic_tokens

    def told(drop: Array | None) -> conditions.Conditioning:
      text = super(SuperResolutionModel, self).condition(
        params, batch, flax_mutables, drop=drop
      )
      return self._with_low(text, images_low, levels, rngs)

    return self.draw(
      params,
      rngs,
      told(None),
      None if scale == 1 else told(jnp.ones(rngs.shape[:1], bool)),
      flax_mutables=flax_mutables,
      guidance_scale=scale,
      num_steps=num_steps,
    )


def _fold_in(rngs: Array, data: int) -> Array:
  return jax.vmap(jax.random.fold_in, in_axes=(0, None))(rngs, data)
