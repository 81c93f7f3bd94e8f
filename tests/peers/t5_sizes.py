"""The published T5s and ByT5s, as gin/sizes has them."""

import dataclasses

import jax
import jax.numpy as jnp

from byt5_diffusion import byt5, byt5_decoder, config

SIZES = ("small", "base", "large", "xl", "xxl")
_FIELDS = ("embed_dim", "num_heads", "head_dim", "mlp_dim")


def published(family: str, size: str) -> byt5.Byt5Config:
  """Encoder and decoder of "byt5" or "t5"."""
  program = config.read([f"sizes/{family}_{size}.gin"])
  prefix = family.upper()
  fields = {name: program.macro(f"{prefix}_{name.upper()}") for name in _FIELDS}
  depth = program.macro(f"{prefix}_NUM_ENCODER_LAYERS")
  if family == "t5":  # whose gin files have an encoder alone; both are as deep
    vocabulary = {"vocab_size": program.macro("T5_VOCAB_SIZE")}
    return byt5.Byt5Config(
      **fields,
      **vocabulary,
      num_encoder_layers=depth,
      num_decoder_layers=depth,
    )
  reader = config.read([f"sizes/reader_byt5_{size}.gin"])
  for name, value in fields.items():
    assert reader.macro(f"READER_{name.upper()}") == value
  assert reader.macro("READER_NUM_ENCODER_LAYERS") == depth
  return byt5.Byt5Config(
    **fields,
    num_encoder_layers=depth,
    num_decoder_layers=reader.macro("READER_NUM_DECODER_LAYERS"),
  )


def count(config: byt5.Byt5Config) -> int:
  """Parameters of ours, by eval_shape of the scanned form."""
  config = dataclasses.replace(config, scan_layers=True)
  tokens = jnp.ones((1, 1), jnp.int32)
  module, inputs = (
    (byt5_decoder.Byt5(config), (tokens, tokens))
    if config.num_decoder_layers
    else (byt5.TextEncoder(config), (tokens,))
  )
  params = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
  return sum(leaf.size for leaf in jax.tree.leaves(params))
