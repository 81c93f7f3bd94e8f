"""What a UNet is told beside the noise level, and the null condition."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array

EOS_ID = 1  # ByT5's end of sequence; ids are byte + 3.


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
  """

  text_embeddings: Array
  text_mask: Array
  pooled_text: Array | None = None
  micro_conditioning: Array | None = None
  noise_level: Array | None = None

  def arguments(self) -> dict[str, Any]:
    """Those that there are, by name: keyword arguments of a UNet."""
    return {k: v for k, v in self._asdict().items() if v is not None}


def null_tokens(text_tokens: Array) -> Array:
  """The empty caption, [eos] then padding, in the shape of text_tokens."""
  return jnp.zeros_like(text_tokens).at[..., 0].set(EOS_ID)
