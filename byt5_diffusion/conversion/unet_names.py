"""UNet2DConditionModel: names of its arrays in diffusers' folders.

unet_json.py has the config.json, unet_ldm_names.py the single files of latent
diffusion, unet_if_names.py DeepFloyd IF's own, unet_pieces.py what all are put
together from.
"""

import jax
import jax.numpy as jnp
from flax import traverse_util

from byt5_diffusion import unet, unet_config
from byt5_diffusion.conversion import (
  names,
  unet_if_names,
  unet_json,
  unet_ldm_names,
  unet_pieces,
)

Config = unet_config.UNetConfig
Entry = names.Entry

config_from_json = unet_json.config_from_json
config_to_json = unet_json.config_to_json
single_file_entries = unet_ldm_names.single_file_entries
original_entries = unet_if_names.original_entries


def entries(config: Config) -> list[Entry]:
  """Every array of ours and of diffusers' UNet2DConditionModel.

  Raises:
    ConversionError: diffusers has no such network.
  """
  unet_json.check_expressible(config)
  found = unet_pieces.outer_entries(config)
  for piece in unet_pieces.pieces(config):
    found += unet_pieces.piece_entries(config, piece)
  return found


def shapes(config: Config) -> dict[str, jax.ShapeDtypeStruct]:
  """{name: shape and dtype} of our parameters."""
  side = config.downsampling
  sizes: dict[str, tuple[int, ...]] = {
    "noisy_latents": (1, side, side, config.in_channels),
    "time": (1,),
    "text_embeddings": (1, 1, config.cross_attention_dim),
  }
  if config.text_pooling == "given":
    sizes["pooled_text"] = (1, config.pooled_text_dim)
  if config.micro_conditioning_features:
    sizes["micro_conditioning"] = (1, unet_config.MICRO_NUMBERS)
  if config.noise_level:
    sizes["noise_level"] = (1,)
  batch = {k: jax.ShapeDtypeStruct(v, jnp.float32) for k, v in sizes.items()}
  batch["text_mask"] = jax.ShapeDtypeStruct((1, 1), jnp.bool_)
  params = jax.eval_shape(
    lambda x: unet.UNet(config).init(jax.random.key(0), **x)["params"], batch
  )
  return traverse_util.flatten_dict(params, sep="/")
