"""Images as sequences of patches, and the encoder that reads them.

Pix2Struct's image encoder (Lee et al. 2023, section 2): a patch is projected
linearly, learned embeddings of its row and of its column are added, and T5's
encoder does the rest, without relative positions.

A patch is one row of numbers, in a batch [B, P, 2 + 3 p^2] float32:

  (row, column, pixels of p x p x 3 in [-1, 1], top to bottom, left to right)

Rows and columns count from 1; a padding patch is all zero. Images of one size
are cut by `extract`, pictures of any size by data/patches.py, which gives the
same bits where nothing has to be scaled.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from byt5_diffusion import byt5, layers


@dataclasses.dataclass(frozen=True, kw_only=True)
class PatchConfig:
  """Sizes of a PatchEncoder.

  Attributes:
    embed_dim: width of the residual stream and of the features.
    num_heads: attention heads.
    head_dim: width of one head.
    mlp_dim: hidden width of the gated MLP.
    num_layers: depth.
    patch_size: p, pixels of a patch's side.
    max_patches: most patches of an image. No row or column of patches can be
      longer, so the tables of both have this length and nothing is out of
      range, whatever an image's proportions are.
    channels: numbers per pixel: 3 of a picture, more of a network's features.
    dropout_rate: of embeddings, attention, MLP and residual branches.
    dtype: of activations; parameters are float32.
    scan_layers: one traced layer with stacked parameters: compiles faster.
    remat: recompute each layer in the backward pass to save memory.
  """

  embed_dim: int
  num_heads: int
  head_dim: int
  mlp_dim: int
  num_layers: int
  patch_size: int
  max_patches: int
  channels: int = 3
  dropout_rate: float = 0.0
  dtype: str = "float32"
  scan_layers: bool = False
  remat: bool = False

  def __post_init__(self) -> None:
    for name in ("patch_size", "max_patches", "channels"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name} = {getattr(self, name)} must be positive.")

  @property
  def patch_width(self) -> int:
    """Numbers of one patch: 2 + channels p^2."""
    return patch_width(self.patch_size, self.channels)

  @property
  def encoder(self) -> byt5.Byt5Config:
    """The same sizes as T5's encoder calls them."""
    return byt5.Byt5Config(
      embed_dim=self.embed_dim,
      num_heads=self.num_heads,
      head_dim=self.head_dim,
      mlp_dim=self.mlp_dim,
      num_encoder_layers=self.num_layers,
      dropout_rate=self.dropout_rate,
      dtype=self.dtype,
      scan_layers=self.scan_layers,
      remat=self.remat,
    )


def patch_width(patch_size: int, channels: int = 3) -> int:
  """Numbers of one patch: its row, its column, p x p pixels."""
  return 2 + channels * patch_size**2


def extract(images: jax.Array, patch_size: int) -> jax.Array:
  """Cuts images [B, H, W, C] into patches [B, H W / p^2, 2 + C p^2].

  Args:
    images: in [-1, 1], or any grid of features.
    patch_size: p, which must divide H and W.

  Returns:
    float32, row by row of patches, none of them padding.
  """
  batch, height, width, channels = images.shape
  if height % patch_size or width % patch_size:
    raise ValueError(
      f"Images of {height} x {width} pixels are not made of whole patches of "
      f"{patch_size} x {patch_size}: choose a patch_size that divides both."
    )
  rows, columns = height // patch_size, width // patch_size
  pixels = images.astype(jnp.float32).reshape(
    batch, rows, patch_size, columns, patch_size, channels
  )
  pixels = pixels.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * columns, -1)
  places = jnp.indices((rows, columns), jnp.float32).reshape(2, -1).T + 1
  repeated = jnp.broadcast_to(places, (batch, *places.shape))
  return jnp.concatenate([repeated, pixels], axis=-1)


class PatchEncoder(nn.Module):
  """patches [B, P, 2 + 3 p^2] -> (features [B, P, D], mask [B, P] bool)."""

  config: PatchConfig

  @nn.compact
  def __call__(
    self, patches: jax.Array, enable_dropout: bool = False
  ) -> tuple[jax.Array, jax.Array]:
    config = self.config
    _check_shape(patches.shape, config)
    rows, columns = (patches[..., i].astype(jnp.int32) for i in range(2))
    mask = rows > 0
    x = layers.Dense(
      config.embed_dim,
      ("conv_in", "embed"),
      dtype=config.dtype,
      name="patch_projection",
    )(patches[..., 2:])
    # Summed in float32, as the residual stream is.
    x = (
      x.astype(jnp.float32)
      + self._table("row_embedding", rows)
      + self._table("column_embedding", columns)
    )
    encoder = byt5.Encoder(
      config.encoder, enable_dropout, relative_positions=False, name="encoder"
    )
    return encoder(x, mask), mask

  def _table(self, name: str, places: jax.Array) -> jax.Array:
    """Learned vectors of rows or columns; NaN for one that is not there."""
    table = layers.param_with_axes(
      name,
      nn.initializers.normal(1.0),
      (self.config.max_patches + 1, self.config.embed_dim),
      jnp.float32,
      axes=("abspos_buckets", "embed"),
    )
    return jnp.take(table, places, axis=0, mode="fill")


def _check_shape(shape: tuple[int, ...], config: PatchConfig) -> None:
  if len(shape) != 3 or shape[-1] != config.patch_width:
    raise ValueError(
      f"patches of shape {shape} are not [B, P, {config.patch_width}], what "
      f"patch_size = {config.patch_size} makes (2 + {config.channels} p^2)."
    )
  if shape[1] > config.max_patches:
    raise ValueError(
      f"{shape[1]} patches per image are more than max_patches = "
      f"{config.max_patches}, the length of the tables of rows and columns."
    )
