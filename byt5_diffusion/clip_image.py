"""CLIP's image tower: pictures to vectors that captions share.

A vision transformer (Radford et al. 2021): patches and a class token, layers
that normalise before they read, and a projection of the class token. Aesthetic
scores are small heads on the unit vector of ViT-L/14. Its pictures are made by
data/clip_images.py.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from byt5_diffusion import layers

POSITION_INIT = nn.initializers.normal(0.02)


def quick_gelu(x: jax.Array) -> jax.Array:
  """x sigmoid(1.702 x): what CLIP was trained with in gelu's place."""
  return x * nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "quick_gelu": quick_gelu,
  "gelu": lambda x: nn.gelu(x, approximate=False),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipImageConfig:
  """Shape of an image tower; the defaults are ViT-L/14's.

  Attributes:
    image_size: side of the pictures in pixels.
    patch_size: divides image_size.
    embed_dim, num_heads, mlp_dim, num_layers: of the transformer.
    projection_dim: of the vectors that captions share.
    activation: of the MLPs: "quick_gelu" (OpenAI's weights) or "gelu".
    epsilon: of the layer norms.
    dtype: of products; parameters and the residual stream are float32.
  """

  image_size: int = 224
  patch_size: int = 14
  embed_dim: int = 1024
  num_heads: int = 16
  mlp_dim: int = 4096
  num_layers: int = 24
  projection_dim: int = 768
  activation: str = "quick_gelu"
  epsilon: float = 1e-5
  dtype: str = "float32"

  def __post_init__(self) -> None:
    if self.image_size % self.patch_size:
      raise ValueError(
        f"patch_size={self.patch_size} does not divide image_size="
        f"{self.image_size} of a ClipImageConfig."
      )
    if self.embed_dim % self.num_heads:
      raise ValueError(
        f"num_heads={self.num_heads} does not divide embed_dim="
        f"{self.embed_dim} of a ClipImageConfig."
      )
    if self.activation not in ACTIVATIONS:
      raise ValueError(
        f"activation={self.activation!r} of a ClipImageConfig is none of"
        f" {', '.join(ACTIVATIONS)}."
      )

  @property
  def num_positions(self) -> int:
    """Patches and the class token."""
    return (self.image_size // self.patch_size) ** 2 + 1


class Embeddings(nn.Module):
  """Pictures [B, S, S, 3] -> class token and patches [B, L, D] float32."""

  config: ClipImageConfig

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    config = self.config
    size, width = config.patch_size, config.embed_dim
    kernel = layers.param_with_axes(
      "patch_kernel",
      layers.KERNEL_INIT,
      (size, size, 3, width),
      jnp.float32,
      axes=("height", "width", "conv_in", "embed"),
    )
    class_token = layers.param_with_axes(
      "class_token", POSITION_INIT, (width,), jnp.float32, axes=("embed",)
    )
    positions = layers.param_with_axes(
      "positions",
      POSITION_INIT,
      (config.num_positions, width),
      jnp.float32,
      axes=("length", "embed"),
    )
    images, kernel = (x.astype(config.dtype) for x in (images, kernel))
    x = layers.conv(images, kernel, stride=size, padding=0)
    x = x.reshape(len(images), -1, width).astype(jnp.float32)
    first = jnp.broadcast_to(class_token, (len(images), 1, width))
    return jnp.concatenate([first, x], axis=1) + positions


class Layer(nn.Module):
  """Self-attention and MLP, each a normalised residual: [B, L, D]."""

  config: ClipImageConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    config = self.config
    head_dim = config.embed_dim // config.num_heads

    def norm(name: str) -> layers.LayerNorm:
      return layers.LayerNorm(config.epsilon, config.dtype, name=name)

    def dense(features: int, axes: tuple[str, str], name: str) -> layers.Dense:
      return layers.Dense(features, axes, dtype=config.dtype, name=name)

    attention = layers.Attention(
      config.num_heads,
      head_dim,
      scale=head_dim**-0.5,
      qkv_bias=True,
      out_bias=True,
      dtype=config.dtype,
      name="attention",
    )
    x = x + attention(norm("pre_attention_layer_norm")(x)).astype(jnp.float32)
    y = dense(config.mlp_dim, ("embed", "mlp"), "wi")(
      norm("pre_mlp_layer_norm")(x)
    )
    y = ACTIVATIONS[config.activation](y)
    y = dense(config.embed_dim, ("mlp", "embed"), "wo")(y)
    return x + y.astype(jnp.float32)


class ClipImageEncoder(nn.Module):
  """Pictures [B, S, S, 3] -> vectors [B, projection_dim], not normalised."""

  config: ClipImageConfig

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    """images as data/clip_images.py makes them; the answer is float32.

    Raises:
      ValueError: pictures of another size.
    """
    config = self.config
    wanted = (config.image_size, config.image_size, 3)
    if images.shape[1:] != wanted:
      raise ValueError(
        f"pictures for CLIP must be [B, {', '.join(map(str, wanted))}], not"
        f" {list(images.shape)}."
      )
    x = Embeddings(config, name="embeddings")(images)
    x = layers.LayerNorm(config.epsilon, name="pre_layer_norm")(x)
    for i in range(config.num_layers):
      x = Layer(config, name=f"layers_{i}")(x)
    x = layers.LayerNorm(config.epsilon, name="final_layer_norm")(x[:, 0])
    return layers.Dense(
      config.projection_dim, ("embed", "mlp"), use_bias=False, name="projection"
    )(x)


def unit(vectors: jax.Array) -> jax.Array:
  """vectors [..., D] over their lengths: what scores and captions compare."""
  return vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)
