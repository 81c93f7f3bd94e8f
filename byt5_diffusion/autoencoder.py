"""Codecs between images and the latents that a UNet denoises.

A codec has three methods and two attributes; which one is in use is nobody
else's business.
"""

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from byt5_diffusion import autoencoder_kl


class Codec(Protocol):
  """Images [B, H, W, 3] in [-1, 1] <-> latents [B, h, w, c].

  Attributes:
    downsampling: H / h = W / w.
    latent_channels: c.
  """

  @property
  def downsampling(self) -> int: ...

  @property
  def latent_channels(self) -> int: ...

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class KLCodec:
  """latents = (z - shift) scale, z ~ N(mean, variance) of an AutoencoderKL.

  (Rombach et al. 2022, sec. 3.1 and D.1.)

  Attributes:
    network: with shift and scale in its config.
    sample_posterior: draw z; False takes its mean.
    tile_size: pixels; images with a longer side are decoded tile by tile, in
      the memory of one tile. None never does.
    tile_overlap: pixels that neighbouring tiles share and are blended over;
      None is a quarter of tile_size.
  """

  network: autoencoder_kl.AutoencoderKL
  sample_posterior: bool = True
  tile_size: int | None = None
  tile_overlap: int | None = None

  def __post_init__(self) -> None:
    if self.tile_size is None:
      return
    for name in ("tile_size", "tile_overlap"):
      pixels = getattr(self, name)
      if pixels is not None and pixels % self.downsampling:
        raise ValueError(
          f"KLCodec.{name}={pixels} must be a multiple of {self.downsampling}."
        )
    if not 0 <= self._overlap() < self.tile_size:
      raise ValueError(
        f"KLCodec.tile_overlap={self.tile_overlap} must be less than"
        f" tile_size={self.tile_size}."
      )

  @property
  def downsampling(self) -> int:
    return self.network.config.downsampling

  @property
  def latent_channels(self) -> int:
    return self.network.config.latent_channels

  def init(self, rng: jax.Array, images: jax.Array) -> dict[str, Any] | None:
    """Random parameters; those of a run come from a checkpoint."""
    variables = self.network.init(rng, images)
    return {name: variables[name] for name in ("params", "params_axes")}

  def moments(
    self, params: Any, images: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Mean and log variance of the latents, scaled; each [B, h, w, c]."""
    config = self.network.config
    mean, log_variance = self._apply(params, "moments", images)
    mean = (mean - config.shift_factor) * config.scaling_factor
    return mean, log_variance + 2 * np.log(config.scaling_factor)

  def encode(
    self, params: Any, images: jax.Array, rngs: jax.Array
  ) -> jax.Array:
    """Latents [B, h, w, c] float32, of variance about 1."""
    mean, log_variance = self.moments(params, images)
    if not self.sample_posterior:
      return mean
    noise = jax.vmap(lambda rng: jax.random.normal(rng, mean.shape[1:]))(rngs)
    return mean + jnp.exp(log_variance / 2) * noise

  def decode(self, params: Any, latents: jax.Array) -> jax.Array:
    """Images [B, H, W, 3] float32, not clipped."""
    config = self.network.config
    latents = latents / config.scaling_factor + config.shift_factor
    x = self._apply(params, "decode_middle", latents)
    longest = max(latents.shape[1:3]) * self.downsampling
    if self.tile_size is None or longest <= self.tile_size:
      return self._apply(params, "decode_levels", x)
    return self._decode_tiles(params, x)

  def _apply(self, params: Any, method: str, x: jax.Array) -> Any:
    if params is None:
      raise ValueError(
        "this model's codec has weights, but none were passed: give"
        " flax_mutables={'frozen': {'codec': ...}}."
      )
    return self.network.apply({"params": params}, x, method=method)

  def _overlap(self) -> int:
    if self.tile_overlap is not None:
      return self.tile_overlap
    factor = self.downsampling
    return (self.tile_size or 0) // (4 * factor) * factor

  def _decode_tiles(self, params: Any, x: jax.Array) -> jax.Array:
    """decode_levels of x [B, h, w, C] in overlapping tiles, one at a time."""
    factor = self.downsampling
    size, overlap = (self.tile_size or 0) // factor, self._overlap() // factor
    starts, weights = zip(
      *(tile_weights(side, size, overlap, factor) for side in x.shape[1:3]),
      strict=True,
    )
    rows, columns = np.indices((len(starts[0]), len(starts[1]))).reshape(2, -1)
    tile = tuple(min(side, size) for side in x.shape[1:3])

    def add(images: jax.Array, place: tuple[jax.Array, jax.Array]) -> Any:
      i, j = place
      at = (jnp.asarray(starts[0])[i], jnp.asarray(starts[1])[j])
      part = lax.dynamic_slice(x, (0, *at, 0), (len(x), *tile, x.shape[-1]))
      pixels = self._apply(params, "decode_levels", part)
      weight = (
        jnp.asarray(weights[0])[i][:, None, None]
        * jnp.asarray(weights[1])[j][:, None]
      )
      corner = (0, factor * at[0], factor * at[1], 0)
      there = lax.dynamic_slice(images, corner, pixels.shape)
      return lax.dynamic_update_slice(
        images, there + weight * pixels, corner
      ), None

    sides = (factor * x.shape[1], factor * x.shape[2])
    images = jnp.zeros((len(x), *sides, self.network.config.image_channels))
    places = (jnp.asarray(rows), jnp.asarray(columns))
    images, _ = lax.scan(add, images, places)
    return images


def tile_weights(
  side: int, size: int, overlap: int, factor: int
) -> tuple[np.ndarray, np.ndarray]:
  """Where tiles start along one side, and what each of their pixels counts.

  Args:
    side: of the whole, in latents.
    size: of a tile; the last one is moved back to end where the whole ends.
    overlap: least number of latents that neighbours share.
    factor: pixels per latent.

  Returns:
    starts [n] in latents, and weights [n, min(side, size) * factor] float32
    that rise and fall over the overlaps and add up to 1 at every pixel.
  """
  size = min(side, size)
  starts = np.arange(0, side - size, size - overlap)
  starts = np.append(starts, side - size).astype(np.int32)
  pixels = np.arange(size * factor) + 0.5
  ramp = max(overlap * factor, 1)
  weights = np.ones((len(starts), size * factor))
  for i in range(len(starts)):
    if i > 0:
      weights[i] = np.minimum(weights[i], pixels / ramp)
    if i + 1 < len(starts):
      weights[i] = np.minimum(weights[i], pixels[::-1] / ramp)
  total = np.zeros(side * factor)
  for start, weight in zip(starts, weights, strict=True):
    total[start * factor :][: len(weight)] += weight
  for start, weight in zip(starts, weights, strict=True):
    weight /= total[start * factor :][: len(weight)]
  return starts, weights.astype(np.float32)
