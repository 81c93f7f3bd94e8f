"""TextToImageModel: text in, pictures out.

A model joins networks, codec, schedule and sampler into the few functions that
a trainer, an evaluation or a server calls: contract.py has them all.

Notation: B batch, H W pixels, h w c latents, L text bytes, D embedding width.

What travels where:
  params   {"text_encoder"?, "unet"}: float32, trained, averaged.
  frozen   {"text_encoder"?, "codec"?}: any dtype, never differentiated. It is
           the fourth positional argument of `loss_fn` and arrives under T5X as
           `flax_mutables`; its logical axes are the collection `frozen_axes`.
"""

import dataclasses
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextToImageModel:
  """A text encoder, a UNet and a codec, trained to denoise.

  Attributes:
    text_encoder: module(text_tokens [B, L]) -> text_embeddings [B, L, D].
    unet: module(noisy_latents, time, text_embeddings, text_mask) -> prediction.
    codec: `encode`/`decode` between images and latents.
    schedule: timesteps in [0, 1] to log_snr and back.
    image_size: (H, W) in pixels of what `sample` draws.
    max_text_length: bytes of a caption, end of sequence included.
    loss_normalizing_factor: GLOBAL number of examples per optimizer step.
    prediction_type: what the UNet outputs; one of diffusion.PREDICTION_TYPES.
    loss_weight: weight(log_snr, prediction_type) [B].
    condition_dropout_rate: share of captions replaced by the null condition.
    freeze_text_encoder: its weights live in `frozen` instead of `params`.
    sampler, num_sampling_steps, step_spacing, guidance_scale: the defaults of
      `sample`; guidance_scale 1 is off.
    denoise_decorator: wraps the guided denoise_fn, e.g.
      guidance.static_thresholding() where latents are pixels.
    time_scale, time_offset: the UNet sees time_scale * timestep + time_offset
      (1000 and -1 for networks trained on DDPM's integer steps).
    optimizer_def, feature_converter_cls, input_vocabulary, output_vocabulary:
      injected for the trainers; a model reads none of them.
  """

  text_encoder: nn.Module
  unet: nn.Module
  codec: Any
  schedule: diffusion.Schedule
  image_size: tuple[int, int]
  max_text_length: int
  loss_normalizing_factor: float
  prediction_type: str = "v"
  loss_weight: Callable[[Array, str], Array] = dataclasses.field(
    default_factory=diffusion.uniform_weight
  )
  condition_dropout_rate: float = 0.1
  freeze_text_encoder: bool = False
  sampler: samplers.Sampler = dataclasses.field(default_factory=samplers.ddim)
  num_sampling_steps: int = 50
  step_spacing: str = "uniform"
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

  # --- Variables -----------------------------------------------------------

  def input_shapes(self, batch_size: int = 1) -> dict[str, tuple[int, ...]]:
    """{batch key: shape} of the batches that the model is made for."""
    return {
      "images": (batch_size, *self.image_size, 3),
      "text_tokens": (batch_size, self.max_text_length),
      "example_id": (batch_size, 2),
    }

  def get_initial_variables(
    self,
    rng: Array,
    input_shapes: Mapping[str, tuple[int, ...]],
    input_types: Mapping[str, Any] | None = None,
  ) -> dict[str, PyTree]:
    """Initial params and their logical axes; frozen networks apart."""
    del input_types
    text_rng, unet_rng = jax.random.split(rng)
    images = jnp.zeros(input_shapes["images"], jnp.float32)
    text_tokens = jnp.ones(input_shapes["text_tokens"], jnp.int32)
    rngs = jax.random.split(rng, len(images))
    # Folded in, so that a codec without parameters changes nobody's key.
    codec = self.codec.init(jax.random.fold_in(rng, 2), images)
    latents = jax.eval_shape(
      lambda c, x: self.codec.encode(c and c["params"], x, rngs), codec, images
    )
    text = self.text_encoder.init(text_rng, text_tokens)
    embeddings = jax.eval_shape(
      lambda p: self.text_encoder.apply({"params": p}, text_tokens),
      text["params"],
    )
    unet = self.unet.init(
      unet_rng,
      jnp.zeros(latents.shape, latents.dtype),
      jnp.zeros(latents.shape[:1], jnp.float32),
      jnp.zeros(embeddings.shape, embeddings.dtype),
      jnp.ones(text_tokens.shape, bool),
    )
    home = "frozen" if self.freeze_text_encoder else "params"
    parts = [("params", "unet", unet), (home, "text_encoder", text)]
    if codec is not None:
      parts.append(("frozen", "codec", codec))
    variables: dict[str, PyTree] = {}
    for collection, name, initial in parts:
      variables.setdefault(collection, {})[name] = initial["params"]
      axes = variables.setdefault(f"{collection}_axes", {})
      axes[name] = initial["params_axes"]
    return variables

  # --- The way of an example: text -> embeddings -> denoiser -> images -------

  def encode_text(
    self,
    params: PyTree,
    text_tokens: Array,
    flax_mutables: PyTree | None = None,
    *,
    enable_dropout: bool = False,
    dropout_rng: Array | None = None,
  ) -> conditions.Conditioning:
    """Bytes [B, L] to conditioning; a frozen encoder gets no gradient."""
    if self.freeze_text_encoder:
      if flax_mutables is None:
        raise ValueError(
          "freeze_text_encoder=True, but no frozen weights were passed: give "
          "flax_mutables={'frozen': {'text_encoder': ...}}."
        )
      weights = flax_mutables["frozen"]["text_encoder"]
      enable_dropout = False
    else:
      weights = params["text_encoder"]
    embeddings: Any = self.text_encoder.apply(
      {"params": weights},
      text_tokens,
      enable_dropout=enable_dropout,
      rngs=contract.dropout_rngs(enable_dropout, dropout_rng),
    )
    if self.freeze_text_encoder:
      embeddings = jax.lax.stop_gradient(embeddings)
    return conditions.Conditioning(embeddings, text_tokens > 0)

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
      noisy_latents,
      self.time_scale * timesteps + self.time_offset,
      **conditioning.arguments(),
      enable_dropout=enable_dropout,
      rngs=contract.dropout_rngs(enable_dropout, dropout_rng),
    )
    return prediction.astype(jnp.float32)

  def features(
    self,
    params: PyTree,
    images: Array,
    log_snr: float,
    block: str,
    flax_mutables: PyTree | None = None,
  ) -> Array:
    """What one block of the UNet makes of images [B, H, W, 3]: [B, h, w, C].

    The UNet is told nothing (the null condition) and sees the mean of the noisy
    latents, alpha(log_snr) * latents, so that nothing is random.

    Args:
      params: of this model.
      images: in [-1, 1].
      log_snr: how noisy the UNet is told that they are.
      block: "down_blocks_<i>", "mid_block" or "up_blocks_<i>".
      flax_mutables: the frozen networks.

    Raises:
      ValueError: the UNet has no such block.
    """
    count = len(images)
    rngs = jax.random.split(jax.random.key(0), count)
    latents = self._encode_images({"images": images}, rngs, flax_mutables)
    levels = jnp.full((count,), log_snr, jnp.float32)
    noisy = diffusion.add_noise(latents, jnp.zeros_like(latents), levels)
    tokens = conditions.null_tokens(jnp.zeros((count, 1), jnp.int32))
    conditioning = self.encode_text(params, tokens, flax_mutables)
    _, captured = self.unet.apply(
      {"params": params["unet"]},
      noisy,
      self.time_scale * self.schedule.timesteps(levels) + self.time_offset,
      **conditioning.arguments(),
      capture_intermediates=lambda module, _: module.path == (block,),
      mutable=["intermediates"],
    )
    if block not in captured.get("intermediates", {}):
      raise ValueError(
        f"the UNet has no block {block!r}: name down_blocks_<i>, mid_block or "
        "up_blocks_<i>."
      )
    output = captured["intermediates"][block]["__call__"][0]
    # A down block also hands out what the up blocks will take.
    return output[0] if isinstance(output, tuple) else output

  def denoise_fn(
    self, params: PyTree, conditioning: conditions.Conditioning
  ) -> samplers.DenoiseFn:
    """The seam that samplers know: (noisy_latents, log_snr) -> Denoised."""

    def denoise(noisy_latents: Array, log_snr: Array) -> samplers.Denoised:
      prediction = self.predict(params, noisy_latents, log_snr, conditioning)
      x0 = diffusion.to_x0(
        prediction, noisy_latents, log_snr, self.prediction_type
      )
      return samplers.Denoised(x0)

    return denoise

  def decode(
    self, latents: Array, flax_mutables: PyTree | None = None
  ) -> Array:
    """Latents to images [B, H, W, 3], clipped to [-1, 1]."""
    weights = (flax_mutables or {}).get("frozen", {}).get("codec")
    return jnp.clip(self.codec.decode(weights, latents), -1.0, 1.0)

  def sample(
    self,
    params: PyTree,
    text_tokens: Array,
    rngs: Array,
    *,
    flax_mutables: PyTree | None = None,
    guidance_scale: float | None = None,
    num_steps: int | None = None,
  ) -> Array:
    """Draws images [B, H, W, 3] in [-1, 1] for text_tokens [B, L].

    Each image depends on its own caption and key alone, not on its batch.
    """
    guidance_scale = (
      self.guidance_scale if guidance_scale is None else guidance_scale
    )
    num_steps = self.num_sampling_steps if num_steps is None else num_steps
    conditioning = self.encode_text(params, text_tokens, flax_mutables)
    if guidance_scale == 1:
      denoise = self.denoise_fn(params, conditioning)
    else:
      null = self.encode_text(
        params, conditions.null_tokens(text_tokens), flax_mutables
      )
      both = jax.tree.map(
        lambda x, y: jnp.concatenate([x, y]), conditioning, null
      )
      denoise = guidance.guide_batched(
        self.denoise_fn(params, both), guidance_scale
      )
    if self.denoise_decorator is not None:
      denoise = self.denoise_decorator(denoise)
    noise_rngs, step_rngs = jnp.moveaxis(
      jax.vmap(lambda key: jax.random.split(key))(rngs), 1, 0
    )
    factor = self.codec.downsampling
    shape = tuple(side // factor for side in self.image_size)
    shape = (*shape, self.codec.latent_channels)
    noise = jax.vmap(lambda key: jax.random.normal(key, shape))(noise_rngs)
    log_snrs = samplers.log_snr_steps(
      self.schedule, num_steps, spacing=self.step_spacing
    )
    latents = samplers.sample(denoise, self.sampler, noise, log_snrs, step_rngs)
    return self.decode(latents, flax_mutables)

  # --- Losses ----------------------------------------------------------------

  def _per_example_loss(
    self,
    params: PyTree,
    latents: Array,
    noise: Array,
    timesteps: Array,
    conditioning: conditions.Conditioning,
    **dropout: Any,
  ) -> Array:
    """weight(log_snr) * mean (prediction - target)^2, [B]."""
    log_snr = self.schedule.log_snr(timesteps)
    noisy_latents = diffusion.add_noise(latents, noise, log_snr)
    prediction = self.predict(
      params, noisy_latents, log_snr, conditioning, **dropout
    )
    target = diffusion.make_target(
      latents, noise, log_snr, self.prediction_type
    )
    weight = self.loss_weight(log_snr, self.prediction_type)
    return losses.denoising_loss(prediction, target, weight)

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
    text_tokens = batch["text_tokens"]
    text_tokens = jnp.where(
      drop[:, None], conditions.null_tokens(text_tokens), text_tokens
    )
    dropout: dict[str, Any] = {
      "enable_dropout": True,
      "dropout_rng": dropout_rng,
    }
    conditioning = self.encode_text(
      params, text_tokens, flax_mutables, **dropout
    )
    return self._per_example_loss(
      params, latents, noise, timesteps, conditioning, **dropout
    )

  def eval_losses(
    self, params: PyTree, batch: Batch, flax_mutables: PyTree | None = None
  ) -> Array:
    """Losses [len(EVAL_TIMESTEPS), B] at fixed noise levels and fixed noise."""
    rng = jax.random.key(0)
    rngs = contract.per_example_rngs(rng, batch["example_id"])
    latents = self._encode_images(batch, rngs, flax_mutables)
    noise = jax.vmap(lambda key: jax.random.normal(key, latents.shape[1:]))(
      rngs
    )
    conditioning = self.encode_text(params, batch["text_tokens"], flax_mutables)

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
    """Images [B, H, W, 3] for the captions of a batch."""
    rng = jax.random.key(0) if rng is None else rng
    rngs = contract.per_example_rngs(rng, batch["example_id"])
    return self.sample(
      params, batch["text_tokens"], rngs, flax_mutables=flax_mutables
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
