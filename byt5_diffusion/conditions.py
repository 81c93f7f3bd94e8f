"""What a UNet is told beside the noise level, and the null condition."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array

EOS_ID = 1  # ByT5's end of sequence; ids are byte + 3.


class Conditioning(NamedTuple):
  """What the UNet is told: text_embeddings [B, L, D], text_mask [B, L] bool."""

  text_embeddings: Array
  text_mask: Array


def null_tokens(text_tokens: Array) -> Array:
  """The empty caption, [eos] then padding, in the shape of text_tokens."""
  return jnp.zeros_like(text_tokens).at[..., 0].set(EOS_ID)
