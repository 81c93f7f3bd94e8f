"""TextToImageModel: text in, pictures out.

A model joins networks, codec, schedule and sampler into the few functions that
a trainer, an evaluation or a server calls: contract.py has them all. What does
not depend on text is denoising.py's.

Notation: B batch, H W pixels, h w c latents, L text bytes, S semantic tokens, D
embedding width.

What travels where:
  params   {"text_encoder"?, "semantic_encoder"?, "text_projection"?, "unet"}:
           float32, trained, averaged.
  frozen   {"text_encoder"?, "semantic_encoder"?, "codec"?}: any dtype, never
           differentiated. It is the fourth positional argument of `loss_fn` and
           arrives under T5X as `flax_mutables`; its logical axes are the
           collection `frozen_axes`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from byt5_diffusion import (
  conditions,
  denoising,
  diffusion,
  text_conditioning,
)

Array = jax.Array
Batch = Mapping[str, Array]
PyTree = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConditionedModel(denoising.DenoisingModel):
  """A model of noisy latents that is told a text.

  Attributes, besides those of denoising.DenoisingModel:
    text_encoder: ByT5: module(text_tokens [B, L]) -> embeddings [B, L, D].
    max_text_length: bytes of its text, end of sequence included.
    freeze_text_encoder: its weights live in `frozen` instead of `params`.
    conditioning_mode: one of text_conditioning.MODES; what a batch's
      text_tokens are, and whether there is a second encoder.
    semantic_encoder: module(semantic_tokens [B, S]) -> embeddings [B, S, D'].
    max_semantic_length: tokens of the caption, end of sequence included.
    freeze_semantic_encoder: as freeze_text_encoder.
  """

  text_encoder: nn.Module
  max_text_length: int
  freeze_text_encoder: bool = False
  conditioning_mode: str = "byt5_only"
  semantic_encoder: nn.Module | None = None
  max_semantic_length: int | None = None
  freeze_semantic_encoder: bool = False

  def __post_init__(self) -> None:
    super().__post_init__()
    modes = text_conditioning.MODES
    if self.conditioning_mode not in modes:
      raise ValueError(
        f"conditioning_mode={self.conditioning_mode!r} is not one of "
        f"{', '.join(modes)}."
      )
    wanted = self.conditioning_mode != "byt5_only"
    for name in ("semantic_encoder", "max_semantic_length"):
      if (getattr(self, name) is not None) != wanted:
        raise ValueError(
          f"conditioning_mode={self.conditioning_mode!r} "
          f"{'needs' if wanted else 'takes no'} {name}."
        )
    for name in ("max_text_length", "max_semantic_length"):
      length = getattr(self, name)
      if length is not None and length < 1:
        raise ValueError(
          f"{name}={length} must be positive: set {name.upper()}."
        )

  @property
  def semantic_vocab_size(self) -> int | None:
    """Rows of the semantic encoder's embedding, where it has a config."""
    config = getattr(self.semantic_encoder, "config", None)
    return getattr(config, "vocab_size", None)

  # --- Variables -------------------------------------------------------------

  def input_shapes(self, batch_size: int = 1) -> dict[str, tuple[int, ...]]:
    """{batch key: shape} of the batches that the model is made for."""
    shapes: dict[str, tuple[int, ...]] = {
      "images": (batch_size, *self.image_size, 3),
      "text_tokens": (batch_size, self.max_text_length),
      "example_id": (batch_size, 2),
    }
    if self.max_semantic_length is not None:
      shapes["semantic_tokens"] = (batch_size, self.max_semantic_length)
    return shapes

  @property
  def conditioner(self) -> text_conditioning.TextConditioner:
    """The encoders and the widths that the UNet asks for."""
    encoders = [
      text_conditioning.Encoder(
        name="text_encoder",
        tokens="text_tokens",
        module=self.text_encoder,
        frozen=self.freeze_text_encoder,
      )
    ]
    if self.semantic_encoder is not None:
      encoders.append(
        text_conditioning.Encoder(
          name="semantic_encoder",
          tokens="semantic_tokens",
          module=self.semantic_encoder,
          frozen=self.freeze_semantic_encoder,
        )
      )
    config: Any = self.unet.config
    return text_conditioning.TextConditioner(
      encoders=tuple(encoders),
      width=config.cross_attention_dim,
      pooled_width=config.pooled_text_dim or None,
    )

  def get_initial_variables(
    self,
    rng: Array,
    input_shapes: Mapping[str, tuple[int, ...]],
    input_types: Mapping[str, Any] | None = None,
  ) -> dict[str, PyTree]:
    """Initial params and their logical axes; frozen networks apart."""
    del input_types
    text_rng, unet_rng = jax.random.split(rng)
    batch = {
      name: jnp.zeros(shape, jnp.float32)
      if name == "images"
      else jnp.ones(shape, jnp.int32)
      for name, shape in input_shapes.items()
    }
    # Folded in, so that what a model has besides changes nobody's key.
    rngs = {
      "text_encoder": text_rng,
      "semantic_encoder": jax.random.fold_in(rng, 3),
      text_conditioning.PROJECTION: jax.random.fold_in(rng, 4),
    }
    parts = self.conditioner.initial(rngs, batch)
    codec = self.codec.init(jax.random.fold_in(rng, 2), batch["images"])
    if codec is not None:
      parts.append(("frozen", "codec", codec))
    told = _as_variables(parts)
    noisy, conditioning = jax.eval_shape(
      lambda: self._inputs(told.get("params", {}), batch, told)
    )
    unet = self.unet.init(
      unet_rng,
      jnp.zeros(noisy.shape, noisy.dtype),
      jnp.zeros(noisy.shape[:1], jnp.float32),
      **jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), conditioning),
    )
    return _as_variables([("params", "unet", unet), *parts])

  def _inputs(
    self, params: PyTree, batch: Batch, flax_mutables: PyTree
  ) -> tuple[Array, dict[str, Array]]:
    """What the UNet is called with: for its shapes."""
    rngs = jax.random.split(jax.random.key(0), len(batch["images"]))
    noisy = self._encode_images(batch, rngs, flax_mutables)
    told = self.condition(params, batch, flax_mutables)
    if self.self_conditioning:
      told = told.with_channels(jnp.zeros_like(noisy))
    return told.behind(noisy), told.arguments()

  # --- What the UNet is told -------------------------------------------------

  def encode_text(
    self,
    params: PyTree,
    text_tokens: Array,
    flax_mutables: PyTree | None = None,
    *,
    semantic_tokens: Array | None = None,
    enable_dropout: bool = False,
    dropout_rng: Array | None = None,
  ) -> conditions.Conditioning:
    """Bytes [B, L], and tokens [B, S] where the mode has them: conditioning.

    A frozen encoder gets no gradient.
    """
    tokens = {"text_tokens": text_tokens}
    if self.semantic_encoder is not None:
      if semantic_tokens is None:
        raise ValueError(
          f"conditioning_mode={self.conditioning_mode!r} needs semantic_tokens "
          "beside text_tokens: the caption's ids of its SentencePiece model."
        )
      tokens["semantic_tokens"] = semantic_tokens
    return self.conditioner.encode(
      params,
      tokens,
      flax_mutables,
      enable_dropout=enable_dropout,
      dropout_rng=dropout_rng,
    )

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
    """The text of a batch; see DenoisingModel.condition.

    A UNet that is told sizes gets the batch's "micro_conditioning" [B, 6], or
    without one those of a picture of image_size, neither scaled nor cut.
    """
    del rngs
    tokens = {
      encoder.tokens: batch[encoder.tokens]
      for encoder in self.conditioner.encoders
      if encoder.tokens in batch
    }
    if drop is not None:
      tokens = {
        name: jnp.where(drop[:, None], conditions.null_tokens(ids), ids)
        for name, ids in tokens.items()
      }
    told = self.encode_text(
      params,
      tokens["text_tokens"],
      flax_mutables,
      semantic_tokens=tokens.get("semantic_tokens"),
      enable_dropout=enable_dropout,
      dropout_rng=dropout_rng,
    )
    config: Any = self.unet.config
    if not config.micro_conditioning_features:
      return told
    sizes = batch.get("micro_conditioning")
    if sizes is None:
      count = len(batch["text_tokens"])
      sizes = conditions.micro_conditioning(count, self.image_size)
    return told._replace(micro_conditioning=sizes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextToImageModel(TextConditionedModel):
  """Text encoders, a UNet and a codec, trained to draw what a text says."""

  def sample(
    self,
    params: PyTree,
    text_tokens: Array,
    rngs: Array,
    *,
    semantic_tokens: Array | None = None,
    micro_conditioning: Array | None = None,
    flax_mutables: PyTree | None = None,
    guidance_scale: float | None = None,
    num_steps: int | None = None,
  ) -> Array:
    """Draws images [B, H, W, 3] in [-1, 1] for text_tokens [B, L].

    Each image depends on its own caption and key alone, not on its batch.

    Args:
      params: of this model.
      text_tokens: what ByT5 reads.
      rngs: [B], one key per image.
      semantic_tokens: [B, S], what the second encoder reads, where there is
        one.
      micro_conditioning: [B, 6]; see `condition`.
      flax_mutables: the frozen networks.
      guidance_scale: 1 is off; None is the model's.
      num_steps: of the sampler; None is the model's.
    """
    scale = self.guidance_scale if guidance_scale is None else guidance_scale
    batch = {"text_tokens": text_tokens}
    if semantic_tokens is not None:
      batch["semantic_tokens"] = semantic_tokens
    if micro_conditioning is not None:
      batch["micro_conditioning"] = micro_conditioning
    null = None
    if scale != 1:
      everyone = jnp.ones(text_tokens.shape[:1], bool)
      null = self.condition(params, batch, flax_mutables, drop=everyone)
    return self.draw(
      params,
      rngs,
      self.condition(params, batch, flax_mutables),
      null,
      flax_mutables=flax_mutables,
      guidance_scale=scale,
      num_steps=num_steps,
    )

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
    # One key for all: what a codec draws must not depend on the row.
    rngs = jnp.broadcast_to(jax.random.key(0), (count,))
    latents = self._encode_images({"images": images}, rngs, flax_mutables)
    levels = jnp.full((count,), log_snr, jnp.float32)
    noisy = diffusion.add_noise(latents, jnp.zeros_like(latents), levels)
    told = self.condition(params, self._nothing(images), flax_mutables)
    if self.self_conditioning:
      told = told.with_channels(jnp.zeros_like(noisy))
    _, captured = self.unet.apply(
      {"params": params["unet"]},
      told.behind(noisy),
      self.time_scale * self.schedule.timesteps(levels) + self.time_offset,
      **told.arguments(),
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

  def _nothing(self, images: Array) -> dict[str, Array]:
    """A batch of images without captions."""
    null = conditions.null_tokens(jnp.zeros((len(images), 1), jnp.int32))
    return {"images": images, "text_tokens": null, "semantic_tokens": null}


def _as_variables(
  parts: list[tuple[str, str, PyTree]],
) -> dict[str, PyTree]:
  """(collection, name, {"params", "params_axes"}) -> a model's collections."""
  variables: dict[str, PyTree] = {}
  for collection, name, initial in parts:
    variables.setdefault(collection, {})[name] = initial["params"]
    axes = variables.setdefault(f"{collection}_axes", {})
    axes[name] = initial["params_axes"]
  return variables
