"""A UNet in DeepFloyd IF's own files, as IF's program writes them.

Blocks are numbered as in latent diffusion, and resampling is a ResNet block.
Queries, keys and values are made by one product, head by head: each head has
its query's rows, then its key's, then its value's.
"""

from byt5_diffusion import unet_config
from byt5_diffusion.conversion import (
  names,
  unet_json,
  unet_ldm_names,
  unet_pieces,
)

Entry = names.Entry

_OUTER = unet_ldm_names.OUTER | {
  "class_embedding.linear_1": "aug_proj.0",
  "class_embedding.linear_2": "aug_proj.2",
  "encoder_hid_proj": "encoder_proj",
  "add_embedding.norm1": "encoder_pooling.0",
  "add_embedding.proj": "encoder_pooling.2",
  "add_embedding.norm2": "encoder_pooling.3",
} | {
  f"add_embedding.pool{name}": f"encoder_pooling.1{name}"
  for name in ("", ".q_proj", ".k_proj", ".v_proj")
}  # fmt: skip


def original_entries(config: unet_config.UNetConfig) -> list[Entry]:
  """Every array of ours and of IF's own file.

  Raises:
    ConversionError: the UNet is not of IF's kind.
  """
  unet_json.check_expressible(config)
  if config.attention != "joint" or config.text_norm != "group":
    raise names.ConversionError(
      "DeepFloyd IF's own files hold UNets with joint attention and a group"
      f" norm of the text; this one has attention={config.attention!r} and"
      f" text_norm={config.text_norm!r}."
    )
  found = [
    unet_ldm_names.renamed(entry, _OUTER)
    for entry in unet_pieces.outer_entries(config)
  ]
  pieces = {piece.ours: piece for piece in unet_pieces.pieces(config)}
  for ours, theirs in unet_ldm_names.places(config):
    piece = pieces.pop(ours)._replace(theirs=theirs)
    if piece.kind == "resnet":
      found += unet_ldm_names.resnet_entries(config, piece)
    else:
      found += _attention_entries(piece, _heads(config, ours))
  return found


def _heads(config: unet_config.UNetConfig, ours: str) -> int:
  block, _, _ = ours.partition("/")
  if block == "mid_block":
    return config.num_heads[-1]
  direction, _, number = block.partition("_blocks_")
  level = int(number)
  return config.num_heads[level if direction == "down" else -1 - level]


def _attention_entries(piece: unet_pieces.Piece, heads: int) -> list[Entry]:
  ours, theirs = piece.ours, piece.theirs
  found = unet_pieces.norm(f"{ours}/norm", f"{theirs}.norm")
  found += unet_pieces.norm(f"{ours}/text_norm", f"{theirs}.norm_encoder")
  found += unet_pieces.product(
    f"{ours}/out", f"{theirs}.proj_out", "conv1d_as_dense"
  )
  own = ("query", "key", "value") if piece.extra else ("query",)
  for product, parts in (
    ("qkv", own),
    ("encoder_kv", ("text_key", "text_value")),
  ):
    for i, name in enumerate(parts):
      for entry in unet_pieces.product(
        f"{ours}/{name}", f"{theirs}.{product}", "conv1d_as_dense"
      ):
        found.append(entry._replace(part=(i, len(parts)), runs=heads))
  return found
