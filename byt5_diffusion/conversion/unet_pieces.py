"""What a UNet is made of, with diffusers' names of it.

Other layouts name the same pieces otherwise.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from byt5_diffusion import unet_config
from byt5_diffusion.conversion import names

Config = unet_config.UNetConfig
Entry = names.Entry


class Piece(NamedTuple):
  """A module whose arrays have the same names wherever it is.

  Attributes:
    ours: its path in our tree.
    theirs: its path in diffusers' modules.
    kind: "resnet", "transformer", "joint", or of one product or norm: "conv",
      "dense", "norm".
    depth: transformer blocks.
    extra: a ResNet block has a shortcut; joint attention has itself to read.
  """

  ours: str
  theirs: str
  kind: str
  depth: int = 0
  extra: bool = False


def product(
  ours: str, theirs: str, transform: str = "dense", bias: bool = True
) -> list[Entry]:
  """The arrays of a dense layer or a convolution."""
  found = [Entry(f"{ours}/kernel", f"{theirs}.weight", transform)]
  if bias:
    found.append(Entry(f"{ours}/bias", f"{theirs}.bias"))
  return found


def norm(ours: str, theirs: str) -> list[Entry]:
  """The arrays of a norm."""
  return [
    Entry(f"{ours}/scale", f"{theirs}.weight"),
    Entry(f"{ours}/bias", f"{theirs}.bias"),
  ]


def outer_entries(config: Config) -> list[Entry]:
  """What lies around the blocks."""
  found = product("conv_in", "conv_in", "conv")
  found += norm("conv_norm_out", "conv_norm_out")
  found += product("conv_out", "conv_out", "conv")
  mlps = [("time_embedding", "time_embedding")]
  if config.noise_level:
    mlps.append(("noise_level_embedding", "class_embedding"))
  if config.text_pooling == "given":
    mlps.append(("add_embedding", "add_embedding"))
  for ours, theirs in mlps:
    for linear in ("linear_1", "linear_2"):
      found += product(f"{ours}/{linear}", f"{theirs}.{linear}")
  if config.text_projection_dim is not None:
    found += product("text_projection", "encoder_hid_proj")
  if config.text_pooling == "attention":
    found += pooling_entries(
      ["add_embedding." + x for x in ("norm1", "pool", "proj", "norm2")]
    )
  return found


def pooling_entries(theirs: Sequence[str]) -> list[Entry]:
  """Attention pooling; theirs of its norm, pool, product and norm."""
  norm1, pool, proj, norm2 = theirs
  found = norm("text_pooling/norm1", norm1)
  found += norm("text_pooling/norm2", norm2)
  found += product("text_pooling/proj", proj)
  name = "positional_embedding"
  found.append(Entry(f"text_pooling/pool/{name}", f"{pool}.{name}"))
  for ours, letter in (("query", "q"), ("key", "k"), ("value", "v")):
    found += product(f"text_pooling/pool/{ours}", f"{pool}.{letter}_proj")
  return found


def pieces(config: Config) -> Iterator[Piece]:
  """The modules inside the blocks, in the order in which they run."""
  x = config.channels[0]
  skips = [x]
  last = len(config.channels) - 1
  for level, width in enumerate(config.channels):
    block = f"down_blocks_{level}", f"down_blocks.{level}"
    for i in range(config.res_blocks[level]):
      yield from _layer(config, block, i, x, width, level)
      x = width
      skips.append(x)
    if level < last:
      yield _sampler(config, block, "down")
      skips.append(x)
  block = "mid_block", "mid_block"
  yield Piece("mid_block/resnets_0", "mid_block.resnets.0", "resnet")
  yield _attention(config, block, 0, config.mid_transformer_depth)
  yield Piece("mid_block/resnets_1", "mid_block.resnets.1", "resnet")
  for i, level in enumerate(range(last, -1, -1)):
    block = f"up_blocks_{i}", f"up_blocks.{i}"
    width = config.channels[level]
    for j in range(config.res_blocks[level] + 1):
      yield from _layer(config, block, j, x + skips.pop(), width, level)
      x = width
    if level:
      yield _sampler(config, block, "up")


def _layer(
  config: Config,
  block: tuple[str, str],
  i: int,
  inputs: int,
  width: int,
  level: int,
) -> Iterator[Piece]:
  """A ResNet block and the attention behind it."""
  ours, theirs = f"{block[0]}/resnets_{i}", f"{block[1]}.resnets.{i}"
  yield Piece(ours, theirs, "resnet", extra=inputs != width)
  if config.transformer_depth[level]:
    yield _attention(config, block, i, config.transformer_depth[level])


def _attention(
  config: Config, block: tuple[str, str], i: int, depth: int
) -> Piece:
  return Piece(
    f"{block[0]}/attentions_{i}",
    f"{block[1]}.attentions.{i}",
    config.attention,
    depth,
    not config.only_cross_attention,
  )


def _sampler(config: Config, block: tuple[str, str], direction: str) -> Piece:
  ours = f"{block[0]}/{direction}samplers_0"
  theirs = f"{block[1]}.{direction}samplers.0"
  if config.resampling == "resnet":
    return Piece(ours, theirs, "resnet")
  return Piece(ours, f"{theirs}.conv", "conv")


def piece_entries(config: Config, piece: Piece) -> list[Entry]:
  """The arrays of one piece by diffusers' names."""
  ours, theirs = piece.ours, piece.theirs
  if piece.kind == "conv":
    return product(ours, theirs, "conv")
  if piece.kind == "transformer":
    return transformer_entries(ours, theirs, piece.depth)
  found = []
  if piece.kind == "resnet":
    for name in ("norm1", "norm2"):
      found += norm(f"{ours}/{name}", f"{theirs}.{name}")
    convs = ["conv1", "conv2"] + ["conv_shortcut"] * piece.extra
    for name in convs:
      found += product(f"{ours}/{name}", f"{theirs}.{name}", "conv")
    return found + product(f"{ours}/time_emb_proj", f"{theirs}.time_emb_proj")
  found += norm(f"{ours}/norm", f"{theirs}.group_norm")
  if config.text_norm != "none":
    found += norm(f"{ours}/text_norm", f"{theirs}.norm_cross")
  products = {
    "query": "to_q",
    "text_key": "add_k_proj",
    "text_value": "add_v_proj",
    "out": "to_out.0",
  }
  if piece.extra:
    products |= {"key": "to_k", "value": "to_v"}
  for name, their_name in products.items():
    found += product(f"{ours}/{name}", f"{theirs}.{their_name}")
  return found


def transformer_entries(ours: str, theirs: str, depth: int) -> list[Entry]:
  """The arrays of a transformer: diffusers' names, and latent diffusion's."""
  found = norm(f"{ours}/norm", f"{theirs}.norm")
  found += product(f"{ours}/proj_in", f"{theirs}.proj_in")
  found += product(f"{ours}/proj_out", f"{theirs}.proj_out")
  for i in range(depth):
    block = f"{ours}/transformer_blocks_{i}"
    their_block = f"{theirs}.transformer_blocks.{i}"
    kinds = ("self_attention", "cross_attention", "mlp")
    for j, name in enumerate(kinds, 1):
      found += norm(f"{block}/pre_{name}_layer_norm", f"{their_block}.norm{j}")
    for j, name in enumerate(kinds[:2], 1):
      attention = f"{their_block}.attn{j}"
      for ours_, letter in (("query", "q"), ("key", "k"), ("value", "v")):
        found += product(
          f"{block}/{name}/{ours_}", f"{attention}.to_{letter}", bias=False
        )
      found += product(f"{block}/{name}/out", f"{attention}.to_out.0")
    # One product makes what is multiplied, then the gate.
    gated = f"{their_block}.ff.net.0.proj"
    for wi, part in (("wi_1", (0, 2)), ("wi_0", (1, 2))):
      found.append(
        Entry(f"{block}/mlp/{wi}/kernel", f"{gated}.weight", "dense", part)
      )
      found.append(
        Entry(f"{block}/mlp/{wi}/bias", f"{gated}.bias", "same", part)
      )
    found += product(f"{block}/mlp/wo", f"{their_block}.ff.net.2")
  return found
