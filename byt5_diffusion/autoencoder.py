"""Codecs between images and the latents that a UNet denoises.

A codec has three methods and two attributes; which one is in use is nobody
else's business.
"""

from typing import Any, Protocol

import jax


class Codec(Protocol):
  """Images [B, H, W, 3] in [-1, 1] <-> latents [B, h, w, c].

  Attributes:
    downsampling: H / h = W / w.
    latent_channels: c.
  """

  downsampling: int
  latent_channels: int

  def init(self, rng: jax.Array, images: jax.Array) -> dict[str, Any] | None:
    """{"params", "params_axes"}, always frozen; None where there are none."""

  def encode(
    self, params: Any, images: jax.Array, rngs: jax.Array
  ) -> jax.Array:
    """rngs [B]: one key per image, so that its draw does not depend on rows."""

  def decode(self, params: Any, latents: jax.Array) -> jax.Array: ...


class PixelCodec:
  """The identity: pixels are the latents (pixel-space diffusion)."""

  downsampling = 1
  latent_channels = 3

  def init(self, rng: jax.Array, images: jax.Array) -> dict[str, Any] | None:
    """None: pixels have no parameters."""
    del rng, images
    return None

  def encode(
    self, params: Any, images: jax.Array, rngs: jax.Array
  ) -> jax.Array:
    """images, unchanged; has no parameters and draws nothing."""
    del params, rngs
    return images

  def decode(self, params: Any, latents: jax.Array) -> jax.Array:
    """latents, unchanged: not clipped, a sampler may need what lies beyond."""
    del params
    return latents
