"""What a UNet is told beside the noise level, and the null condition."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array

EOS_ID = 1  # ByT5's end of sequence, and T5's; ByT5's ids are byte + 3.


class Conditioning(NamedTuple):
  """What the UNet is told; what a model does not have is None.

  Attributes:
    text_embeddings: [B, L, D].
    text_mask: [B, L] bool, True for what is to be read.
    pooled_text: [B, P], one vector of the whole text (SDXL).
    micro_conditioning: [B, 6] float32: height and width of the original image,
      top and left of the crop, height and width asked for (SDXL).
    noise_level: [B] float32, how noisy the low resolution image is that a
      super-resolution UNet enlarges, in the units of `time`.
    channels: [B, h, w, k], what the UNet sees behind the channels of the noisy
      latents: a low resolution image, an estimate of x0. No argument of its
      own: the model puts it there.
  """

  text_embeddings: Array
  text_mask: Array
  pooled_text: Array | None = None
  micro_conditioning: Array | None = None
  noise_level: Array | None = None
  channels: Array | None = None

  def arguments(self) -> dict[str, Any]:
    """Those that there are, by name: keyword arguments of a UNet."""
    found = {k: v for k, v in self._asdict().items() if v is not None}
    found.pop("channels", None)
    return found

  def behind(self, noisy_latents: Array) -> Array:
    """noisy_latents [B, h, w, c] with `channels` behind: what a UNet sees."""
    if self.channels is None:
      return noisy_latents
    return jnp.concatenate(
      [noisy_latents, self.channels.astype(noisy_latents.dtype)], axis=-1
    )

  def with_channels(self, more: Array) -> "Conditioning":
    """Itself with `more` [B, h, w, j] behind the channels that there are."""
    return self._replace(
      channels=more
      if self.channels is None
      else jnp.concatenate([self.channels, more], axis=-1)
    )


def null_tokens(tokens: Array) -> Array:
  """The empty caption, [eos] then padding, in the shape of the tokens."""
  return jnp.zeros_like(tokens).at[..., 0].set(EOS_ID)


def pooled_text(embeddings: Array, mask: Array) -> Array:
  """Mean over the True places of mask [B, L]: [B, L, D] -> [B, D] float32.

  A row without any gives zeros.
  """
  weights = mask.astype(jnp.float32)
  total = jnp.einsum("bld,bl->bd", embeddings.astype(jnp.float32), weights)
  return total / jnp.maximum(weights.sum(axis=1, keepdims=True), 1.0)


def micro_conditioning(count: int, image_size: tuple[int, int]) -> Array:
  """Of an image that is neither scaled nor cut: (H, W, 0, 0, H, W), [B, 6]."""
  height, width = image_size
  row = jnp.asarray([height, width, 0, 0, height, width], jnp.float32)
  return jnp.broadcast_to(row, (count, 6))
