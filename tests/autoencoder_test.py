"""Codecs."""

import jax
import numpy as np

from byt5_diffusion import autoencoder


def test_pixel_codec_is_the_identity_beyond_the_images_range_too():
  codec: autoencoder.Codec = autoencoder.PixelCodec()
  images = np.linspace(-1.5, 1.5, 2 * 4 * 8 * 3).reshape(2, 4, 8, 3)
  latents = codec.encode(None, images, jax.random.key(0))
  _, h, w, c = latents.shape
  assert (h * codec.downsampling, w * codec.downsampling) == (4, 8)
  assert c == codec.latent_channels
  np.testing.assert_array_equal(codec.decode(None, latents), images)
