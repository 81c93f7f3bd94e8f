"""UNet2DConditionModel: names of its arrays in diffusers' folders.

unet_json.py has the config.json, unet_ldm_names.py the single files of latent
diffusion, unet_if_names.py DeepFloyd IF's own, unet_pieces.py what all are put
together from.
"""

from typing import Any

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
  batch: dict[str, Any] = {
    "noisy_latents": jnp.zeros((1, side, side, config.in_channels)),
    "time": jnp.zeros((1,)),
    "text_embeddings": jnp.zeros((1, 1, config.cross_attention_dim)),
    "text_mask": jnp.ones((1, 1), bool),
  }
  if config.text_pooling == "given":
    batch["pooled_text"] = jnp.zeros((1, config.pooled_text_dim))
  if config.micro_conditioning_features:
    batch["micro_conditioning"] = jnp.zeros((1, unet_config.MICRO_NUMBERS))
  if config.noise_level:
    batch["noise_level"] = jnp.zeros((1,))
  params = jax.eval_shape(
    lambda: unet.UNet(config).init(jax.random.key(0), **batch)["params"]
  )
  return traverse_util.flatten_dict(params, sep="/")
