"""A model small enough to train inside a test, and its batches."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from byt5_diffusion import (
  autoencoder,
  byt5,
  byt5_decoder,
  diffusion,
  layers,
  models,
  ocr,
  optimizers,
  patches,
  samplers,
  super_resolution,
  unet,
)

HEIGHT, WIDTH, LENGTH, SEMANTIC_LENGTH = 8, 16, 6, 5


def make_model(
  batch_size: int = 8, **overrides: Any
) -> models.TextToImageModel:
  """A TextToImageModel with every part of a big one."""
  arguments = {
    "text_encoder": byt5.TextEncoder(
      byt5.Byt5Config(
        embed_dim=16,
        num_heads=2,
        head_dim=8,
        mlp_dim=32,
        num_encoder_layers=1,
      )
    ),
    "unet": make_unet(),
    "codec": autoencoder.PixelCodec(),
    "schedule": diffusion.cosine_schedule(),
    "image_size": (HEIGHT, WIDTH),
    "max_text_length": LENGTH,
    "loss_normalizing_factor": float(batch_size),
    "sampler": samplers.ddim(),
    "num_sampling_steps": 3,
    "optimizer_def": optimizers.adamw(),
  }
  return models.TextToImageModel(**(arguments | overrides))


def make_unet(in_channels: int = 3, **overrides: Any) -> unet.UNet:
  """One level, one block, cross-attention to texts of width 16."""
  arguments = {
    "in_channels": in_channels,
    "channels": (8,),
    "num_res_blocks": 1,
    "transformer_depth": (1,),
    "num_heads": (2,),
    "cross_attention_dim": 16,
    "patch_size": 2,
    "norm_groups": 4,
    "zero_init_outputs": False,
  }
  return unet.UNet(unet.UNetConfig(**(arguments | overrides)))


class DotUNet(nn.Module):
  """Sees each pixel by itself: fast to compile, and all inputs count."""

  config: unet.UNetConfig

  @nn.compact
  def __call__(
    self,
    noisy_latents: jax.Array,
    time: jax.Array,
    text_embeddings: jax.Array,
    text_mask: jax.Array,
    enable_dropout: bool = False,
    noise_level: jax.Array | None = None,
    pooled_text: jax.Array | None = None,
    micro_conditioning: jax.Array | None = None,
  ) -> jax.Array:
    del enable_dropout
    assert noisy_latents.shape[-1] == self.config.in_channels
    assert (noise_level is not None) == self.config.noise_level
    told = [time / 1000]
    told += [] if noise_level is None else [noise_level / 1000]
    text = jnp.mean(text_embeddings * text_mask[..., None], axis=1)
    told = [jnp.stack(told, -1), text]
    told += [] if pooled_text is None else [pooled_text]
    told += [] if micro_conditioning is None else [micro_conditioning / 1000]
    told = jnp.concatenate(told, -1)
    x = layers.Dense(32, ("conv_in", "conv_out"), name="x")(noisy_latents)
    y = layers.Dense(32, ("embed", "conv_out"), name="told")(told)
    z = nn.gelu(x + y[:, None, None])
    return layers.Dense(3, ("conv_in", "conv_out"), name="out")(z)


def make_dot_unet(in_channels: int = 3, **overrides: Any) -> DotUNet:
  """In place of make_unet's."""
  return DotUNet(make_unet(in_channels, **overrides).config)


def make_two_encoder_model(
  batch_size: int = 8, **overrides: Any
) -> models.TextToImageModel:
  """As make_model, with a frozen semantic encoder of another width."""
  arguments = {
    "conditioning_mode": "concat",
    "semantic_encoder": byt5.TextEncoder(
      byt5.Byt5Config(
        vocab_size=40,
        embed_dim=12,
        num_heads=2,
        head_dim=6,
        mlp_dim=16,
        num_encoder_layers=1,
      )
    ),
    "max_semantic_length": SEMANTIC_LENGTH,
    "freeze_semantic_encoder": True,
  }
  return make_model(batch_size, **(arguments | overrides))


def make_super_resolution_model(
  batch_size: int = 8, **overrides: Any
) -> super_resolution.SuperResolutionModel:
  """Enlarges 4 x 8 pictures to make_batch()'s; the rest is make_model's."""
  drawing = make_model(batch_size)
  arguments = {
    field.name: getattr(drawing, field.name)
    for field in dataclasses.fields(models.TextConditionedModel)
  }
  arguments |= {"factor": 2, "unet": make_unet(6, noise_level=True)}
  return super_resolution.SuperResolutionModel(**(arguments | overrides))


def make_ocr_model(batch_size: int = 8, **overrides: Any) -> ocr.OcrModel:
  """A reader of make_batch()'s images, by patches."""
  arguments = {
    "features": ocr.PatchFeatures(
      encoder=make_patch_encoder(), patch_size=4, image_size=(HEIGHT, WIDTH)
    ),
    "decoder": byt5_decoder.TextDecoder(
      byt5.Byt5Config(
        embed_dim=16,
        num_heads=2,
        head_dim=8,
        mlp_dim=32,
        num_encoder_layers=0,
        num_decoder_layers=1,
      )
    ),
    "max_text_length": LENGTH,
    "loss_normalizing_factor": float(batch_size),
    "optimizer_def": optimizers.adamw(),
  }
  return ocr.OcrModel(**(arguments | overrides))


def make_patch_encoder(**overrides: Any) -> patches.PatchEncoder:
  """Two heads, one layer, for up to 64 patches of 4 x 4."""
  sizes = {"embed_dim": 16, "num_heads": 2, "head_dim": 8, "mlp_dim": 32}
  sizes |= {"num_layers": 1, "patch_size": 4, "max_patches": 64}
  return patches.PatchEncoder(patches.PatchConfig(**(sizes | overrides)))


def make_batch(batch_size: int = 8, seed: int = 0) -> dict[str, np.ndarray]:
  """Random images with random captions; every example_id is different."""
  rng = np.random.default_rng(seed)
  tokens = rng.integers(3, 259, (batch_size, LENGTH)).astype(np.int32)
  lengths = rng.integers(1, LENGTH, batch_size)
  for row, length in zip(tokens, lengths, strict=True):
    row[length:] = 0
    row[length] = 1
  return {
    "images": rng.uniform(-1, 1, (batch_size, HEIGHT, WIDTH, 3)).astype(
      np.float32
    ),
    "text_tokens": tokens,
    "example_id": np.stack(
      [np.arange(batch_size), np.full(batch_size, seed)], axis=1
    ).astype(np.uint32),
  }


def make_batch_for(model: Any, batch_size: int = 8) -> dict[str, np.ndarray]:
  """make_batch() with tokens for a second encoder, where the model has one."""
  batch = make_batch(batch_size)
  if "semantic_tokens" in model.input_shapes():
    tokens = batch["text_tokens"][:, :SEMANTIC_LENGTH] % 37 + 3
    tokens[np.arange(batch_size), np.arange(batch_size) % SEMANTIC_LENGTH] = 1
    batch["semantic_tokens"] = tokens
  return batch


def make_variables(model: Any) -> dict[str, Any]:
  """Initial variables for make_batch_for()'s shapes."""
  shapes = {name: x.shape for name, x in make_batch_for(model).items()}
  return jax.jit(lambda rng: model.get_initial_variables(rng, shapes))(
    jax.random.key(0)
  )


class Batches:
  """make_batch(seed) for seed = 0, 1, ...: data.pipeline.Batches in small."""

  num_examples = None

  def __init__(
    self, batch_size: int, host_index: int = 0, host_count: int = 1, **_: Any
  ):
    assert (host_index, host_count) == (0, 1)
    self._batch_size, self._next = batch_size, 0

  def __iter__(self) -> "Batches":
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    self._next += 1
    return make_batch(self._batch_size, self._next - 1)

  def get_state(self) -> bytes:
    return str(self._next).encode()

  def set_state(self, saved: bytes) -> None:
    self._next = int(saved)


def leaves_equal(first: Any, second: Any) -> bool:
  """Whether two trees are the same to the last bit."""
  return jax.tree.structure(first) == jax.tree.structure(second) and all(
    jax.tree.leaves(
      jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), first, second)
    )
  )
