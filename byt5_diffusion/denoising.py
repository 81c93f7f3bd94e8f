"""What any model of noisy latents does: denoise, draw, and learn to.

`DenoisingModel` holds what does not depend on where the conditioning comes
from; a model of text (models.py) or of small pictures (super-resolution) says
that in `condition`, and inherits the rest of contract.py.

Notation: B batch, H W pixels, h w c latents.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from byt5_diffusion import (
  conditions,
  contract,
  diffusion,
  guidance,
  losses,
  samplers,
)

Array = jax.Array
Batch = Mapping[str, Array]
PyTree = Any

# Training's timesteps, text dropout and noise come from three independent keys
# per example; evaluation replaces the timesteps by this fixed grid.
EVAL_TIMESTEPS = (0.1, 0.3, 0.5, 0.7, 0.9)
# The steps whose variance a UNet learns, if it does: DDPM's number.
VARIANCE_STEPS = 1000
# Folded into an example's key for what only some models draw, so that those
# draws change nobody else's.
_CONDITION_KEY, _ESTIMATE_KEY = 5, 6
# The same for evaluation, whose noise is drawn by the example's key itself.
_CODEC_KEY = 7


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenoisingModel:
  """A UNet and a codec, trained to denoise what `condition` tells of.

  Attributes:
    unet: module(noisy_latents, time, **Conditioning.arguments()) -> prediction.
    codec: `encode`/`decode` between images and latents.
    schedule: timesteps in [0, 1] to log_snr and back.
    image_size: (H, W) in pixels of what `sample` draws.
    loss_normalizing_factor: GLOBAL number of examples per optimizer step.
    prediction_type: what the UNet outputs; one of diffusion.PREDICTION_TYPES.
    loss_weight: weight(log_snr, prediction_type) [B].
    condition_dropout_rate: share of captions replaced by the null condition.
    self_conditioning: the UNet also sees its last estimate of x0, zeros where
      there is none, behind all other channels (Chen et al. 2022): its
      in_channels count it. Training gives it to half of the examples.
    sampler, num_sampling_steps, step_spacing, guidance_scale: the defaults of
      `sample`; guidance_scale 1 is off.
    steps: (schedule, num_steps) -> the levels of `sample`, in step_spacing's
      place: sampling_steps.discrete_steps() for imported networks.
    denoise_decorator: wraps the guided denoise_fn, e.g.
      guidance.static_thresholding() where latents are pixels.
    time_scale, time_offset: the UNet sees time_scale * timestep + time_offset
      (1000 and -1 for networks trained on DDPM's integer steps).
    optimizer_def, feature_converter_cls, input_vocabulary, output_vocabulary:
      injected for the trainers; a model reads none of them.
  """

  unet: nn.Module
  codec: Any
  schedule: diffusion.Schedule
  image_size: tuple[int, int]
  loss_normalizing_factor: float
  prediction_type: str = "v"
  loss_weight: Callable[[Array, str], Array] = dataclasses.field(
    default_factory=diffusion.uniform_weight
  )
  condition_dropout_rate: float = 0.1
  self_conditioning: bool = False
  sampler: samplers.Sampler = dataclasses.field(default_factory=samplers.ddim)
  num_sampling_steps: int = 50
  step_spacing: str = "uniform"
  steps: Callable[[diffusion.Schedule, int], Array] | None = None
  guidance_scale: float = 1.0
  denoise_decorator: Callable[..., Any] | None = None
  time_scale: float = 1000.0
  time_offset: float = 0.0
  optimizer_def: Any = None
  feature_converter_cls: Any = None
  input_vocabulary: Any = None
  output_vocabulary: Any = None

  def __post_init__(self) -> None:
    if self.prediction_type not in diffusion.PREDICTION_TYPES:
      raise ValueError(
        f"prediction_type={self.prediction_type!r} is not one of "
        f"{', '.join(diffusion.PREDICTION_TYPES)}."
      )
    if not 0 <= self.condition_dropout_rate <= 1:
      raise ValueError(f"{self.condition_dropout_rate=} is not in [0, 1].")
    if self.loss_normalizing_factor <= 0:
      raise ValueError(
        f"loss_normalizing_factor (BATCH_SIZE) = {self.loss_normalizing_factor}"
        " must be positive."
      )
    if self.step_spacing not in samplers.STEP_SPACINGS:
      raise ValueError(
        f"{self.step_spacing=} is not in {samplers.STEP_SPACINGS}."
      )
    if self.num_sampling_steps < 1:
      raise ValueError(f"{self.num_sampling_steps=} must be positive.")
    if len(self.image_size) != 2 or min(self.image_size) < 1:
      raise ValueError(f"{self.image_size=} is not a positive (H, W).")

  @property
  def FEATURE_CONVERTER_CLS(self) -> Any:
    return self.feature_converter_cls

  # --- What a model says of itself -------------------------------------------

  def condition(
    self,
    params: PyTree,
    batch: Batch,
    flax_mutables: PyTree | None = None,
    *,
    drop: Array | None = None,
    rngs: Array | None = None,
    enable_dropout: bool = False,
    dropout_rng: Array | None = None,
  ) -> conditions.Conditioning:
    """What the UNet is told of the examples of a batch.

    Args:
      params: of this model.
      batch: what the model's data give.
      flax_mutables: the frozen networks.
      drop: [B] bool, True where the null condition takes the caption's place.
      rngs: [B] keys in training, for a conditioning that is drawn; None
        otherwise: nothing is random then.
      enable_dropout, dropout_rng: of the networks.
    """
    raise NotImplementedError

  # --- Denoising and drawing -------------------------------------------------

  def predict(
    self,
    params: PyTree,
    noisy_latents: Array,
    log_snr: Array,
    conditioning: conditions.Conditioning,
    *,
    enable_dropout: bool = False,
    dropout_rng: Array | None = None,
  ) -> Array:
    """The UNet's raw output, of `prediction_type`, in float32."""
    timesteps = self.schedule.timesteps(log_snr)
    prediction: Any = self.unet.apply(
      {"params": params["unet"]},
      conditioning.behind(noisy_latents),
      self.time_scale * timesteps + self.time_offset,
      **conditioning.arguments(),
      enable_dropout=enable_dropout,
      rngs=contract.dropout_rngs(enable_dropout, dropout_rng),
    )
    return prediction.astype(jnp.float32)

  def denoise_fn(
    self,
    params: PyTree,
    conditioning: conditions.Conditioning,
    **dropout: Any,
  ) -> samplers.DenoiseFn:
    """The seam that samplers know: (noisy_latents, log_snr) -> Denoised."""

    def denoise(noisy_latents: Array, log_snr: Array) -> samplers.Denoised:
      prediction = self.predict(
        params, noisy_latents, log_snr, conditioning, **dropout
      )
      return self._denoised(prediction, noisy_latents, log_snr)

    return denoise

  def _denoised(
    self, prediction: Array, noisy_latents: Array, log_snr: Array
  ) -> samplers.Denoised:
    """x0, and the variance if the UNet has channels for it.

    Such a UNet says in the second half of its channels where the log variance
    lies, from -1 to 1 (Nichol & Dhariwal 2021; DeepFloyd IF).
    """
    channels = noisy_latents.shape[-1]
    if prediction.shape[-1] not in (channels, 2 * channels):
      raise ValueError(
        f"the UNet's out_channels must be the {channels} of the latents, or"
        f" twice as many with variance, not {prediction.shape[-1]}."
      )
    mean, variance = prediction[..., :channels], prediction[..., channels:]
    x0 = diffusion.to_x0(mean, noisy_latents, log_snr, self.prediction_type)
    fraction = (variance + 1) / 2 if variance.size else None
    return samplers.Denoised(x0, fraction)

  def decode(
    self, latents: Array, flax_mutables: PyTree | None = None
  ) -> Array:
    """Latents to images [B, H, W, 3], clipped to [-1, 1]."""
    weights = (flax_mutables or {}).get("frozen", {}).get("codec")
    return jnp.clip(self.codec.decode(weights, latents), -1.0, 1.0)

  def latent_shape(self) -> tuple[int, int, int]:
    """(h, w, c) of image_size's latents."""
    factor = self.codec.downsampling
    height, width = (side // factor for side in self.image_size)
    return height, width, self.codec.latent_channels

  def draw(
    self,
    params: PyTree,
    rngs: Array,
    conditioning: conditions.Conditioning,
    null: conditions.Conditioning | None,
    *,
    flax_mutables: PyTree | None = None,
    guidance_scale: float | None = None,
    num_steps: int | None = None,
  ) -> Array:
    """Draws images [B, H, W, 3] in [-1, 1] of what conditioning says.

    Args:
      params: of this model.
      rngs: [B], one key per image.
      conditioning: of the B images.
      null: of the same shapes; None where guidance_scale is 1.
      flax_mutables: the frozen networks.
      guidance_scale, num_steps: None is the model's.
    """
    scale = self.guidance_scale if guidance_scale is None else guidance_scale
    num_steps = self.num_sampling_steps if num_steps is None else num_steps
    told = conditioning
    if scale != 1:
      if null is None:
        raise ValueError(f"guidance_scale={scale} needs a null condition.")
      told = jax.tree.map(
        lambda x, y: jnp.concatenate([x, y]), conditioning, null
      )

    def denoise_fn(estimate: Array | None) -> samplers.DenoiseFn:
      seen = told
      if estimate is not None:
        both = estimate if scale == 1 else jnp.concatenate([estimate] * 2)
        seen = told.with_channels(both)
      denoise = self.denoise_fn(params, seen)
      if scale != 1:
        denoise = guidance.guide_batched(denoise, scale)
      if self.denoise_decorator is not None:
        denoise = self.denoise_decorator(denoise)
      return denoise

    noise_rngs, step_rngs = jnp.moveaxis(
      jax.vmap(lambda key: jax.random.split(key))(rngs), 1, 0
    )
    shape = self.latent_shape()
    noise = jax.vmap(lambda key: jax.random.normal(key, shape))(noise_rngs)
    steps = self.steps or functools.partial(
      samplers.log_snr_steps, spacing=self.step_spacing
    )
    log_snrs = steps(self.schedule, num_steps)
    if self.self_conditioning:
      latents = samplers.sample_with_estimates(
        denoise_fn, self.sampler, noise, log_snrs, step_rngs
      )
    else:
      latents = samplers.sample(
        denoise_fn(None), self.sampler, noise, log_snrs, step_rngs
      )
    return self.decode(latents, flax_mutables)

  # --- Losses ----------------------------------------------------------------

  def _per_example_loss(
    self,
    params: PyTree,
    latents: Array,
    noise: Array,
    timesteps: Array,
    conditioning: conditions.Conditioning,
    with_estimate: Array | None = None,
    **dropout: Any,
  ) -> Array:
    """weight(log_snr) * mean (prediction - target)^2, [B].

    A UNet that answers its variance, too, learns it by losses.variance_loss.
    with_estimate [B] bool says which examples are told the model's estimate of
    x0; None: all of them, if the model is made to see it.
    """
    log_snr = self.schedule.log_snr(timesteps)
    noisy_latents = diffusion.add_noise(latents, noise, log_snr)
    if self.self_conditioning:
      conditioning = self._with_estimate(
        params, noisy_latents, log_snr, conditioning, with_estimate, **dropout
      )
    prediction = self.predict(
      params, noisy_latents, log_snr, conditioning, **dropout
    )
    target = diffusion.make_target(
      latents, noise, log_snr, self.prediction_type
    )
    weight = self.loss_weight(log_snr, self.prediction_type)
    mean = prediction[..., : target.shape[-1]]
    loss = losses.denoising_loss(mean, target, weight)
    denoised = self._denoised(prediction, noisy_latents, log_snr)
    if denoised.log_variance is None:
      return loss
    # The variance of a step of 1 / VARIANCE_STEPS; none is taken to clean.
    step = 1 / VARIANCE_STEPS
    start = self.schedule.log_snr(jnp.maximum(timesteps, step))
    end = self.schedule.log_snr(jnp.maximum(timesteps - step, step))
    return loss + losses.variance_loss(
      denoised.log_variance, latents, denoised.x0, start, end
    )

  def _with_estimate(
    self,
    params: PyTree,
    noisy_latents: Array,
    log_snr: Array,
    conditioning: conditions.Conditioning,
    which: Array | None,
    **dropout: Any,
  ) -> conditions.Conditioning:
    """The conditioning with x0 as the UNet guesses it from no estimate."""
    nothing = jnp.zeros_like(noisy_latents)
    denoise = self.denoise_fn(
      params, conditioning.with_channels(nothing), **dropout
    )
    if self.denoise_decorator is not None:
      # As in drawing: x0 made of much noise may be thousands without bounds.
      denoise = self.denoise_decorator(denoise)
    estimate = jax.lax.stop_gradient(denoise(noisy_latents, log_snr).x0)
    if which is not None:
      estimate = jnp.where(which[:, None, None, None], estimate, nothing)
    return conditioning.with_channels(estimate)

  def _encode_images(
    self, batch: Batch, rngs: Array, flax_mutables: PyTree | None
  ) -> Array:
    weights = (flax_mutables or {}).get("frozen", {}).get("codec")
    return self.codec.encode(weights, batch["images"], rngs)

  def loss_fn(
    self,
    params: PyTree,
    batch: Batch,
    dropout_rng: Array | None,
    flax_mutables: PyTree | None = None,
  ) -> tuple[Array, Any]:
    """Sum over b of loss[b] / loss_normalizing_factor, and metrics.

    Micro-batches' losses and gradients are to be SUMMED (T5X does): the factor
    is the global number of examples of the whole optimizer step.
    """
    if dropout_rng is None:
      loss, metrics = self.eval_fn(params, batch, flax_mutables)
    else:
      per_example = self._training_losses(
        params, batch, dropout_rng, flax_mutables
      )
      loss = jnp.sum(per_example) / self.loss_normalizing_factor
      metrics = {"loss": contract.average(per_example)}
    if flax_mutables is None:
      return loss, metrics
    return loss, (metrics, flax_mutables)

  def _training_losses(
    self,
    params: PyTree,
    batch: Batch,
    rng: Array,
    flax_mutables: PyTree | None,
  ) -> Array:
    dropout_rng, rng = jax.random.split(rng)
    rngs = contract.per_example_rngs(rng, batch["example_id"])
    # Dropout masks are drawn for a whole part: another one for each part.
    dropout_rng = contract.per_example_rngs(
      dropout_rng, batch["example_id"][:1]
    )[0]
    time_rngs, noise_rngs, drop_rngs, codec_rngs = jnp.moveaxis(
      jax.vmap(lambda key: jax.random.split(key, 4))(rngs), 1, 0
    )
    latents = self._encode_images(batch, codec_rngs, flax_mutables)
    timesteps = jax.vmap(jax.random.uniform)(time_rngs)
    noise = jax.vmap(lambda key: jax.random.normal(key, latents.shape[1:]))(
      noise_rngs
    )
    drop = jax.vmap(
      lambda key: jax.random.bernoulli(key, self.condition_dropout_rate)
    )(drop_rngs)
    dropout: dict[str, Any] = {
      "enable_dropout": True,
      "dropout_rng": dropout_rng,
    }
    conditioning = self.condition(
      params,
      batch,
      flax_mutables,
      drop=drop,
      rngs=_fold_in(rngs, _CONDITION_KEY),
      **dropout,
    )
    told = None
    if self.self_conditioning:
      told = jax.vmap(jax.random.bernoulli)(_fold_in(rngs, _ESTIMATE_KEY))
    return self._per_example_loss(
      params, latents, noise, timesteps, conditioning, told, **dropout
    )

  def eval_losses(
    self, params: PyTree, batch: Batch, flax_mutables: PyTree | None = None
  ) -> Array:
    """Losses [len(EVAL_TIMESTEPS), B] at fixed noise levels and fixed noise."""
    rng = jax.random.key(0)
    rngs = contract.per_example_rngs(rng, batch["example_id"])
    latents = self._encode_images(
      batch, _fold_in(rngs, _CODEC_KEY), flax_mutables
    )
    noise = jax.vmap(lambda key: jax.random.normal(key, latents.shape[1:]))(
      rngs
    )
    conditioning = self.condition(params, batch, flax_mutables)

    def at(timestep: Array) -> Array:
      timesteps = jnp.full(latents.shape[:1], timestep)
      return self._per_example_loss(
        params, latents, noise, timesteps, conditioning
      )

    return jax.lax.map(at, jnp.asarray(EVAL_TIMESTEPS, jnp.float32))

  def eval_fn(
    self, params: PyTree, batch: Batch, flax_mutables: PyTree | None = None
  ) -> tuple[Array, dict[str, Any]]:
    """Mean over the fixed noise levels; one metric per level besides."""
    by_level = self.eval_losses(params, batch, flax_mutables)
    metrics = {"loss": contract.average(by_level.mean(axis=0))}
    for timestep, row in zip(EVAL_TIMESTEPS, by_level, strict=True):
      metrics[f"loss/t={timestep:.1f}"] = contract.average(row)
    loss = jnp.sum(by_level.mean(axis=0)) / self.loss_normalizing_factor
    return loss, metrics

  # --- T5X's inference -------------------------------------------------------

  def predict_batch(
    self,
    params: PyTree,
    batch: Batch,
    rng: Array | None = None,
    flax_mutables: PyTree | None = None,
  ) -> Array:
    """Images [B, H, W, 3] for the examples of a batch."""
    rng = jax.random.key(0) if rng is None else rng
    rngs = contract.per_example_rngs(rng, batch["example_id"])
    null = None
    if self.guidance_scale != 1:
      everyone = jnp.ones(rngs.shape[:1], bool)
      null = self.condition(params, batch, flax_mutables, drop=everyone)
    return self.draw(
      params,
      rngs,
      self.condition(params, batch, flax_mutables),
      null,
      flax_mutables=flax_mutables,
    )

  def predict_batch_with_aux(
    self,
    params: PyTree,
    batch: Batch,
    rng: Array | None = None,
    flax_mutables: PyTree | None = None,
  ) -> tuple[Array, dict[str, Array]]:
    """As predict_batch, with each example's denoising loss beside it."""
    images = self.predict_batch(params, batch, rng, flax_mutables)
    losses_ = self.eval_losses(params, batch, flax_mutables)
    return images, {"loss": losses_.mean(axis=0)}

  def score_batch(
    self, params: PyTree, batch: Batch, flax_mutables: PyTree | None = None
  ) -> Array:
    """Minus the denoising loss at the fixed noise levels, [B]."""
    return -self.eval_losses(params, batch, flax_mutables).mean(axis=0)


def _fold_in(rngs: Array, data: int) -> Array:
  return jax.vmap(jax.random.fold_in, in_axes=(0, None))(rngs, data)
