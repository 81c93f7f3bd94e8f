"""CLIP's image tower by itself; tests/peers holds it to transformers'."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from byt5_diffusion import clip_image
from byt5_diffusion.data import clip_images

SMALL = {
  "image_size": 8,
  "patch_size": 4,
  "embed_dim": 8,
  "num_heads": 2,
  "mlp_dim": 16,
  "num_layers": 1,
  "projection_dim": 6,
}


def make(**overrides):
  return clip_image.ClipImageEncoder(
    clip_image.ClipImageConfig(**(SMALL | overrides))
  )


def test_bfloat16_stays_near_float32_and_answers_in_it():
  images = np.random.default_rng(0).normal(size=(2, 8, 8, 3))
  images = images.astype(np.float32)
  variables = jax.jit(make().init)(jax.random.key(0), images)
  exact, half = (
    jax.jit(make(dtype=dtype).apply)({"params": variables["params"]}, images)
    for dtype in ("float32", "bfloat16")
  )
  assert half.dtype == jnp.float32 and exact.shape == (2, 6)
  assert 0 < np.abs(exact - half).max() < 0.05 * np.abs(exact).max()
  np.testing.assert_allclose(
    np.linalg.norm(clip_image.unit(exact), axis=-1), 1.0, rtol=1e-6
  )
  axes = variables["params_axes"]["layers_0"]["attention"]["query"]
  assert axes["bias_axes"].names == ("joined_kv",)


@pytest.mark.parametrize(
  ("overrides", "says"),
  [
    ({"patch_size": 3}, "patch_size=3 does not divide image_size=8"),
    ({"num_heads": 3}, "num_heads=3 does not divide embed_dim=8"),
    ({"activation": "relu"}, "'relu' .* quick_gelu, gelu"),
  ],
)
def test_configs_that_make_no_sense_are_refused(overrides, says):
  with pytest.raises(ValueError, match=says):
    make(**overrides)


def test_pictures_of_another_size_are_refused():
  with pytest.raises(ValueError, match=r"must be \[B, 8, 8, 3\], not \[1, 4"):
    make().init(jax.random.key(0), jnp.zeros((1, 4, 8, 3)))


def test_a_picture_is_scaled_cut_and_normalised():
  picture = np.zeros((8, 24, 3), np.uint8)
  picture[:, 8:16] = (255, 128, 0)
  values = clip_images.preprocess(picture, size=4)
  expected = (np.array([1, 128 / 255, 0]) - clip_images.MEAN) / clip_images.STD
  assert values.shape == (4, 4, 3)
  np.testing.assert_allclose(values[1, 1:3], [expected] * 2, atol=0.3)


@pytest.mark.parametrize(
  "picture",
  [
    np.zeros((4, 4), np.uint8),
    np.zeros((4, 4, 3), np.float32),
    np.zeros((0, 4, 3), np.uint8),
  ],
)
def test_what_is_no_picture_is_refused(picture):
  with pytest.raises(ValueError, match=r"uint8|has none"):
    clip_images.preprocess(picture)


def test_vectors_fit_the_published_heads(shared_data):
  """ViT-L/14's vectors, and the scores of one published linear head."""
  torch = pytest.importorskip("torch", reason="pip install -e .[parity]")
  folder = shared_data / "fixtures" / "aesthetics"
  if not folder.is_dir():
    pytest.skip(f"the heads are not at {folder}")
  head = torch.load(folder / "sa_0_4_vit_l_14_linear.pth", weights_only=True)
  config = clip_image.ClipImageConfig()
  images = jax.ShapeDtypeStruct((2, 224, 224, 3), np.float32)
  vectors, _ = jax.eval_shape(
    clip_image.ClipImageEncoder(config).init_with_output,
    jax.random.key(0),
    images,
  )
  assert vectors.shape[1:] == head["weight"].shape[1:] == (768,)
