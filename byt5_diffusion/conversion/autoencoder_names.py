"""AutoencoderKL: names and configs of diffusers and of latent diffusion.

Three layouts hold the same arrays: diffusers' folders, the older ones of the
same, whose attention had other names, and the single files of latent diffusion
(prefix "first_stage_model."), whose attention is made of 1 x 1 convolutions.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from byt5_diffusion import autoencoder_kl
from byt5_diffusion.conversion import names

Config = autoencoder_kl.AutoencoderKLConfig

CLASS_NAME = "AutoencoderKL"
SINGLE_FILE_PREFIX = "first_stage_model."
_DOWN_BLOCK, _UP_BLOCK = "DownEncoderBlock2D", "UpDecoderBlock2D"
# What diffusers takes where a file says nothing; None is a default, too.
_DEFAULTS: dict[str, Any] = {
  "in_channels": 3,
  "out_channels": 3,
  "down_block_types": [_DOWN_BLOCK],
  "up_block_types": [_UP_BLOCK],
  "block_out_channels": [64],
  "layers_per_block": 1,
  "act_fn": "silu",
  "latent_channels": 4,
  "norm_num_groups": 32,
  "sample_size": 32,
  "scaling_factor": 0.18215,
  "shift_factor": None,
  "latents_mean": None,
  "latents_std": None,
  "force_upcast": True,
  "use_quant_conv": True,
  "use_post_quant_conv": True,
  "mid_block_add_attention": True,
}


def config_from_json(content: Mapping[str, Any]) -> Config:
  """diffusers' config.json of an AutoencoderKL as ours.

  Raises:
    ConversionError: a key or a value that this network does not have.
  """
  said = {k: v for k, v in content.items() if not k.startswith("_")}
  unknown = sorted(set(said) - set(_DEFAULTS))
  if unknown:
    raise names.ConversionError(
      f"config.json of an AutoencoderKL: unknown {', '.join(unknown)}; known"
      f" are {', '.join(_DEFAULTS)}."
    )
  name = content.get("_class_name", CLASS_NAME)
  if name != CLASS_NAME:
    raise names.ConversionError(
      f"config.json: _class_name is {name!r}, not {CLASS_NAME!r}."
    )
  value = _DEFAULTS | said
  levels = len(value["block_out_channels"])
  supported = {
    "act_fn": ("silu", "swish"),
    "down_block_types": ([_DOWN_BLOCK] * levels,),
    "up_block_types": ([_UP_BLOCK] * levels,),
    "out_channels": (value["in_channels"],),
    "latents_mean": (None,),
    "latents_std": (None,),
    "force_upcast": (True, False),
  }
  for key, choices in supported.items():
    given = value[key]
    given = list(given) if isinstance(given, (list, tuple)) else given
    if given not in choices:
      shown = " or ".join(map(repr, choices))
      raise names.ConversionError(
        f"config.json of an AutoencoderKL: {key} = {given!r} is not supported,"
        f" only {shown}."
      )
  size = value["sample_size"]
  try:
    return Config(
      channels=tuple(value["block_out_channels"]),
      num_res_blocks=value["layers_per_block"],
      latent_channels=value["latent_channels"],
      image_channels=value["in_channels"],
      norm_groups=value["norm_num_groups"],
      mid_attention=value["mid_block_add_attention"],
      quant_conv=value["use_quant_conv"],
      post_quant_conv=value["use_post_quant_conv"],
      scaling_factor=value["scaling_factor"],
      shift_factor=value["shift_factor"] or 0.0,
      sample_size=max(size) if isinstance(size, (list, tuple)) else size,
    )
  except (TypeError, ValueError) as error:
    raise names.ConversionError(
      f"config.json of an AutoencoderKL: {error}"
    ) from error


def config_to_json(config: Config) -> dict[str, Any]:
  """A config.json that diffusers loads, and config_from_json."""
  levels = len(config.channels)
  return {
    "_class_name": CLASS_NAME,
    "in_channels": config.image_channels,
    "out_channels": config.image_channels,
    "down_block_types": [_DOWN_BLOCK] * levels,
    "up_block_types": [_UP_BLOCK] * levels,
    "block_out_channels": list(config.channels),
    "layers_per_block": config.num_res_blocks,
    "act_fn": "silu",
    "latent_channels": config.latent_channels,
    "norm_num_groups": config.norm_groups,
    "sample_size": config.sample_size,
    "scaling_factor": config.scaling_factor,
    "shift_factor": config.shift_factor or None,
    "force_upcast": True,
    "use_quant_conv": config.quant_conv,
    "use_post_quant_conv": config.post_quant_conv,
    "mid_block_add_attention": config.mid_attention,
  }


def entries(config: Config) -> list[names.Entry]:
  """Every parameter of ours and diffusers' array that it is."""
  return [
    names.Entry(f"{ours}/{leaf}", f"{theirs}.{name}", transform)
    for ours, theirs, kind in _modules(config)
    for leaf, name, transform in _ARRAYS[kind]
  ]


def deprecated_entries(config: Config) -> list[names.Entry]:
  """`entries` for folders that diffusers wrote before 0.18."""
  old = {
    ".to_q.": ".query.",
    ".to_k.": ".key.",
    ".to_v.": ".value.",
    ".to_out.0.": ".proj_attn.",
  }
  result = []
  for entry in entries(config):
    theirs = entry.theirs
    for new_name, old_name in old.items():
      theirs = theirs.replace(new_name, old_name)
    result.append(entry._replace(theirs=theirs))
  return result


def single_file_entries(config: Config) -> list[names.Entry]:
  """`entries` for the single files of latent diffusion, prefix included."""
  levels = len(config.channels)
  result = []
  for ours, theirs, kind in _modules(config):
    ldm = _ldm_name(theirs, levels)
    for leaf, name, transform in _ARRAYS[kind]:
      transform = "conv_as_dense" if transform == "dense" else transform
      theirs = f"{SINGLE_FILE_PREFIX}{ldm}.{name}"
      result.append(names.Entry(f"{ours}/{leaf}", theirs, transform))
  return result


def shapes(config: Config) -> dict[str, jax.ShapeDtypeStruct]:
  """{name of ours: shape and dtype}; computes nothing."""
  network = autoencoder_kl.AutoencoderKL(config)
  side = config.downsampling
  images = jax.ShapeDtypeStruct(
    (1, side, side, config.image_channels), jnp.float32
  )
  variables = jax.eval_shape(network.init, jax.random.key(0), images)
  leaves = jax.tree_util.tree_leaves_with_path(variables["params"])
  return {"/".join(key.key for key in path): leaf for path, leaf in leaves}


# Kind of a module -> (our leaf, their array, how one becomes the other).
_ARRAYS = {
  "conv": (("kernel", "weight", "conv"), ("bias", "bias", "same")),
  "dense": (("kernel", "weight", "dense"), ("bias", "bias", "same")),
  "norm": (("scale", "weight", "same"), ("bias", "bias", "same")),
}
_ATTENTION = (
  ("group_norm", "group_norm", "norm"),
  ("query", "to_q", "dense"),
  ("key", "to_k", "dense"),
  ("value", "to_v", "dense"),
  ("out", "to_out.0", "dense"),
)


def _modules(config: Config) -> list[tuple[str, str, str]]:
  """(our name, diffusers' name, kind) of all that has parameters."""
  found: list[tuple[str, str, str]] = []

  def add(ours: str, kind: str, theirs: str | None = None) -> None:
    # Ours are theirs with the numbers joined on: down_blocks.0 / down_blocks_0.
    found.append((ours, theirs or _with_dots(ours), kind))

  def add_resnet(ours: str, inputs: int, outputs: int) -> None:
    for i in (1, 2):
      add(f"{ours}/norm{i}", "norm")
      add(f"{ours}/conv{i}", "conv")
    if inputs != outputs:
      add(f"{ours}/conv_shortcut", "conv")

  def add_middle(part: str) -> None:
    widest = config.channels[-1]
    for i in (0, 1):
      add_resnet(f"{part}/mid_block/resnets_{i}", widest, widest)
    if config.mid_attention:
      ours = f"{part}/mid_block/attentions_0"
      for name, their_name, kind in _ATTENTION:
        add(f"{ours}/{name}", kind, f"{_with_dots(ours)}.{their_name}")

  def add_levels(part: str, block: str, sampler: str, resnets: int) -> None:
    order = config.channels if block == "down" else config.channels[::-1]
    inputs = order[0]
    for level, outputs in enumerate(order):
      ours = f"{part}/{block}_blocks_{level}"
      for i in range(resnets):
        add_resnet(f"{ours}/resnets_{i}", inputs, outputs)
        inputs = outputs
      if level + 1 < len(order):
        name = f"{ours}/{sampler}_0"
        add(name, "conv", f"{_with_dots(name)}.conv")

  add_levels("encoder", "down", "downsamplers", config.num_res_blocks)
  add_levels("decoder", "up", "upsamplers", config.num_res_blocks + 1)
  for part in ("encoder", "decoder"):
    add(f"{part}/conv_in", "conv")
    add_middle(part)
    add(f"{part}/conv_norm_out", "norm")
    add(f"{part}/conv_out", "conv")
  if config.quant_conv:
    add("quant_conv", "conv")
  if config.post_quant_conv:
    add("post_quant_conv", "conv")
  return found


def _with_dots(ours: str) -> str:
  """encoder/down_blocks_0/conv1 -> encoder.down_blocks.0.conv1."""
  parts = []
  for part in ours.split("/"):
    stem, _, number = part.rpartition("_")
    parts.append(f"{stem}.{number}" if number.isdigit() else part)
  return ".".join(parts)


_LDM_PARTS = {
  "conv_shortcut": "nin_shortcut",
  "conv_norm_out": "norm_out",
  "group_norm": "norm",
  "to_q": "q",
  "to_k": "k",
  "to_v": "v",
}


def _ldm_name(theirs: str, levels: int) -> str:
  """A diffusers module's name in latent diffusion's files."""
  parts = theirs.split(".")
  parts = [_LDM_PARTS.get(part, part) for part in parts]
  if parts[-2:] == ["to_out", "0"]:
    parts[-2:] = ["proj_out"]
  if len(parts) > 2 and parts[1] == "mid_block":
    kind, i, *rest = parts[2:]
    name = f"block_{int(i) + 1}" if kind == "resnets" else "attn_1"
    return ".".join([parts[0], "mid", name, *rest])
  if len(parts) > 3 and parts[1] in ("down_blocks", "up_blocks"):
    part, _, level, kind, i, *rest = parts
    # Both directions count levels from the finest there.
    if parts[1] == "up_blocks":
      level = str(levels - 1 - int(level))
    direction = parts[1].removesuffix("_blocks")
    place = ["block", i] if kind == "resnets" else [f"{direction}sample"]
    return ".".join([part, direction, level, *place, *rest])
  return ".".join(parts)
