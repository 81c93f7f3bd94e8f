"""A UNet in the single files of latent diffusion (SD 2 and SDXL).

The blocks are numbered from one end to the other there: input_blocks, then
middle_block, then output_blocks; attention and upsampling lie behind the ResNet
block that they follow.
"""

from collections.abc import Iterator, Mapping

from byt5_diffusion import unet_config
from byt5_diffusion.conversion import names, unet_json, unet_pieces

Entry = names.Entry

PREFIX = "model.diffusion_model."
# Inside a ResNet block: diffusers' name -> latent diffusion's.
_RESNET = {
  "norm1": "in_layers.0",
  "conv1": "in_layers.2",
  "time_emb_proj": "emb_layers.1",
  "norm2": "out_layers.0",
  "conv2": "out_layers.3",
  "conv_shortcut": "skip_connection",
}
OUTER = {
  "conv_in": "input_blocks.0.0",
  "conv_norm_out": "out.0",
  "conv_out": "out.2",
  "time_embedding.linear_1": "time_embed.0",
  "time_embedding.linear_2": "time_embed.2",
  "add_embedding.linear_1": "label_emb.0.0",
  "add_embedding.linear_2": "label_emb.0.2",
}


def single_file_entries(config: unet_config.UNetConfig) -> list[Entry]:
  """Every array of ours and of "model.diffusion_model." in a single file.

  Raises:
    ConversionError: the UNet is not of a kind that such files hold.
  """
  unet_json.check_expressible(config)
  if config.attention != "transformer" or config.noise_level:
    raise names.ConversionError(
      "single files of latent diffusion hold UNets with transformers, as SD 2's"
      f" and SDXL's; this one has attention={config.attention!r} and"
      f" noise_level={config.noise_level}."
    )
  found = [renamed(entry, OUTER) for entry in unet_pieces.outer_entries(config)]
  pieces = {piece.ours: piece for piece in unet_pieces.pieces(config)}
  for ours, theirs in places(config):
    piece = pieces.pop(ours)._replace(theirs=theirs)
    if piece.kind == "resnet":
      found += resnet_entries(config, piece)
    else:
      found += unet_pieces.piece_entries(config, piece)
  return [entry._replace(theirs=PREFIX + entry.theirs) for entry in found]


def resnet_entries(
  config: unet_config.UNetConfig, piece: unet_pieces.Piece
) -> list[Entry]:
  """The arrays of a ResNet block at piece.theirs."""
  theirs = piece.theirs
  inside = {f"{theirs}.{k}": f"{theirs}.{v}" for k, v in _RESNET.items()}
  entries = unet_pieces.piece_entries(config, piece)
  return [renamed(entry, inside) for entry in entries]


def renamed(entry: Entry, table: Mapping[str, str]) -> Entry:
  """The entry with its module of theirs renamed by a table."""
  module, _, leaf = entry.theirs.rpartition(".")
  return entry._replace(theirs=f"{table[module]}.{leaf}")


def places(config: unet_config.UNetConfig) -> Iterator[tuple[str, str]]:
  """(ours, theirs) of each piece inside the blocks, by their numbers."""
  last = len(config.channels) - 1
  blocks = config.resampling == "resnet"
  number = 1
  for level, count in enumerate(config.res_blocks):
    block = f"down_blocks_{level}"
    for i in range(count):
      yield f"{block}/resnets_{i}", f"input_blocks.{number}.0"
      if config.transformer_depth[level]:
        yield f"{block}/attentions_{i}", f"input_blocks.{number}.1"
      number += 1
    if level < last:
      place = f"input_blocks.{number}.0{'' if blocks else '.op'}"
      yield f"{block}/downsamplers_0", place
      number += 1
  for i, name in enumerate(("resnets_0", "attentions_0", "resnets_1")):
    yield f"mid_block/{name}", f"middle_block.{i}"
  number = 0
  for up, level in enumerate(range(last, -1, -1)):
    block = f"up_blocks_{up}"
    attends = config.transformer_depth[level] > 0
    for i in range(config.res_blocks[level] + 1):
      yield f"{block}/resnets_{i}", f"output_blocks.{number}.0"
      if attends:
        yield f"{block}/attentions_{i}", f"output_blocks.{number}.1"
      number += 1
    if level:
      behind = 1 + attends
      place = f"output_blocks.{number - 1}.{behind}"
      place += "" if blocks else ".conv"
      yield f"{block}/upsamplers_0", place
