"""UNet2DConditionModel: the config.json of diffusers.

Read are Stable Diffusion 2's, SDXL's and DeepFloyd IF's kinds; a value that
asks for anything else is refused by name.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from byt5_diffusion import unet_config
from byt5_diffusion.conversion import names

Config = unet_config.UNetConfig
ConversionError = names.ConversionError

CLASS_NAME = "UNet2DConditionModel"
# Kind of attention -> diffusers' blocks without it, with it, in the middle.
_DOWN = {
  "transformer": ("DownBlock2D", "CrossAttnDownBlock2D"),
  "joint": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
}
_UP = {
  "transformer": ("UpBlock2D", "CrossAttnUpBlock2D"),
  "joint": ("ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D"),
}
_MID = {
  "transformer": "UNetMidBlock2DCrossAttn",
  "joint": "UNetMidBlock2DSimpleCrossAttn",
}
_RESAMPLING = {"transformer": "conv", "joint": "resnet"}
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu"}

# What diffusers takes where a file says nothing, of the keys that we read.
_DEFAULTS: dict[str, Any] = {
  "in_channels": 4,
  "out_channels": 4,
  "down_block_types": [_DOWN["transformer"][1]] * 3 + [_DOWN["transformer"][0]],
  "mid_block_type": _MID["transformer"],
  "up_block_types": [_UP["transformer"][0]] + [_UP["transformer"][1]] * 3,
  "only_cross_attention": False,
  "block_out_channels": [320, 640, 1280, 1280],
  "layers_per_block": 2,
  "mid_block_scale_factor": 1.0,
  "dropout": 0.0,
  "act_fn": "silu",
  "norm_num_groups": 32,
  "cross_attention_dim": 1280,
  "transformer_layers_per_block": 1,
  "encoder_hid_dim": None,
  "encoder_hid_dim_type": None,
  "attention_head_dim": 8,
  "use_linear_projection": False,
  "class_embed_type": None,
  "addition_embed_type": None,
  "addition_time_embed_dim": None,
  "resnet_time_scale_shift": "default",
  "resnet_skip_time_act": False,
  "resnet_out_scale_factor": 1.0,
  "time_embedding_dim": None,
  "time_embedding_act_fn": None,
  "projection_class_embeddings_input_dim": None,
  "mid_block_only_cross_attention": None,
  "cross_attention_norm": None,
  "addition_embed_type_num_heads": 64,
}
# Keys with one value that we know; it is diffusers' default, too.
_FIXED: dict[str, Any] = {
  "center_input_sample": False,
  "flip_sin_to_cos": True,
  "freq_shift": 0,
  "downsample_padding": 1,
  "norm_eps": 1e-5,
  "reverse_transformer_layers_per_block": None,
  "num_attention_heads": None,
  "dual_cross_attention": False,
  "num_class_embeds": None,
  "time_embedding_type": "positional",
  "timestep_post_act": None,
  "time_cond_proj_dim": None,
  "conv_in_kernel": 3,
  "conv_out_kernel": 3,
  "attention_type": "default",
  "class_embeddings_concat": False,
}
# No matter of ours: sizes don't depend on it, and softmax is always float32.
_IGNORED = ("sample_size", "upcast_attention")


def config_from_json(content: Mapping[str, Any]) -> Config:
  """diffusers' config.json of a UNet2DConditionModel as ours.

  SDXL's refiner has five numbers where we have six, and can't be told apart
  here: its pooled text would come out 256 too narrow.

  Raises:
    ConversionError: a key or a value that this network does not have.
  """
  said = _check_keys(content)
  kind = _kind(said)
  depth, mid_depth = _depths(said, kind)
  channels = _integers(said, "block_out_channels")
  width, projected = _text_widths(said)
  return Config(
    in_channels=said["in_channels"],
    out_channels=said["out_channels"],
    channels=channels,
    num_res_blocks=_res_blocks(said, len(channels)),
    transformer_depth=depth,
    mid_transformer_depth=mid_depth,
    num_heads=_heads(said, kind, channels),
    cross_attention_dim=width,
    norm_groups=said["norm_num_groups"],
    dropout_rate=float(said["dropout"]),
    activation=_activation(said, kind),
    time_embedding_dim=said["time_embedding_dim"],
    scale_shift_norm=_choice(
      said, "resnet_time_scale_shift", {"default": False, "scale_shift": True}
    ),
    residual_divisor=_residual_divisor(said, kind),
    mid_residual_divisor=float(said["mid_block_scale_factor"]),
    resampling=_RESAMPLING[kind],
    attention=kind,
    only_cross_attention=_only_cross_attention(said, kind),
    text_norm=_text_norm(said, kind),
    text_projection_dim=projected,
    noise_level=_choice(
      said, "class_embed_type", {None: False, "timestep": True}
    ),
    **_pooling(said),
  )


def _refuse(key: str, value: Any, supported: str) -> ConversionError:
  shown = repr(value)[:80]
  return ConversionError(
    f"config.json of a {CLASS_NAME}: {key} = {shown} is not supported; this"
    f" UNet has {supported}."
  )


def _check_keys(content: Mapping[str, Any]) -> dict[str, Any]:
  """All that is read, defaults filled in."""
  said = {k: v for k, v in content.items() if not k.startswith("_")}
  known = {*_DEFAULTS, *_FIXED, *_IGNORED}
  unknown = sorted(set(said) - known)
  if unknown:
    raise ConversionError(
      f"config.json of a {CLASS_NAME}: unknown {', '.join(unknown)[:200]};"
      f" known are {', '.join(sorted(known))}."
    )
  name = content.get("_class_name", CLASS_NAME)
  if name != CLASS_NAME:
    raise _refuse("_class_name", name, f"only {CLASS_NAME}")
  for key, value in _FIXED.items():
    if said.get(key, value) != value:
      raise _refuse(key, said[key], f"only {value}")
  return {**_DEFAULTS, **said}


def _choice(
  said: Mapping[str, Any], key: str, choices: Mapping[Any, Any]
) -> Any:
  value = said[key]
  if not isinstance(value, str | None) or value not in choices:
    raise _refuse(key, value, " or ".join(map(repr, choices)))
  return choices[value]


def _integers(said: Mapping[str, Any], key: str) -> tuple[int, ...]:
  values = said[key]
  if not isinstance(values, Sequence) or not all(
    type(value) is int and value > 0 for value in values
  ):
    raise _refuse(key, values, "a list of positive integers")
  return tuple(values)


def _per_level(
  said: Mapping[str, Any], key: str, levels: int
) -> tuple[int, ...]:
  """One number stands for all levels."""
  value = said[key]
  if type(value) is int:
    value = [value] * levels
  values = _integers({key: value}, key)
  if len(values) != levels:
    raise _refuse(key, value, f"one entry for each of {levels} levels")
  return values


def _kind(said: Mapping[str, Any]) -> str:
  """Which attention the blocks are of."""
  mid = said["mid_block_type"]
  kinds = [kind for kind, name in _MID.items() if name == mid]
  if not kinds:
    raise _refuse("mid_block_type", mid, " or ".join(_MID.values()))
  kind = kinds[0]
  for key, table in (("down_block_types", _DOWN), ("up_block_types", _UP)):
    for name in said[key]:
      if name not in table[kind]:
        raise _refuse(
          key, name, f"{' or '.join(table[kind])} around a {_MID[kind]}"
        )
  down = [_DOWN[kind].index(x) for x in said["down_block_types"]]
  up = [_UP[kind].index(x) for x in said["up_block_types"]]
  if up != down[::-1]:
    raise _refuse(
      "up_block_types",
      list(said["up_block_types"]),
      "attention on the same levels on the way down and up",
    )
  if len(down) != len(said["block_out_channels"]):
    raise _refuse(
      "down_block_types",
      list(said["down_block_types"]),
      f"one entry for each of {len(said['block_out_channels'])} levels",
    )
  if kind == "transformer" and not said["use_linear_projection"]:
    raise _refuse(
      "use_linear_projection", False, "linear projections (SD 2, SDXL) only"
    )
  return kind


def _depths(said: Mapping[str, Any], kind: str) -> tuple[tuple[int, ...], int]:
  """Transformer blocks of each level and of the middle."""
  attends = [_DOWN[kind].index(x) for x in said["down_block_types"]]
  if kind == "joint":
    return tuple(attends), 1
  depths = _per_level(said, "transformer_layers_per_block", len(attends))
  return tuple(d * a for d, a in zip(depths, attends, strict=True)), depths[-1]


def _res_blocks(said: Mapping[str, Any], levels: int) -> int | tuple[int, ...]:
  if type(said["layers_per_block"]) is int:
    return int(said["layers_per_block"])
  return _per_level(said, "layers_per_block", levels)


def _heads(
  said: Mapping[str, Any], kind: str, channels: Sequence[int]
) -> tuple[int, ...]:
  """In diffusers the number of heads or, of joint attention, their width."""
  key = "attention_head_dim"
  values = _per_level(said, key, len(channels))
  if kind == "transformer":
    return values
  attends = [_DOWN[kind].index(x) for x in said["down_block_types"]]
  for dim, width, attend in zip(values, channels, attends, strict=True):
    if attend and width % dim:
      raise _refuse(key, said[key], f"a divisor of {width} channels there")
  # A level without attention has no heads that matter.
  return tuple(
    width // dim if width % dim == 0 else 1
    for dim, width in zip(values, channels, strict=True)
  )


def _activation(said: Mapping[str, Any], kind: str) -> str:
  name = _choice(said, "act_fn", _ACTIVATIONS)
  once = said["resnet_skip_time_act"]
  late = _choice(said, "time_embedding_act_fn", {None: None, **_ACTIVATIONS})
  # To activate the time embedding once or in each ResNet block is the same.
  if late != (name if once else None) or (once and kind == "transformer"):
    raise _refuse(
      "time_embedding_act_fn",
      said["time_embedding_act_fn"],
      "the time embedding activated once: by act_fn with resnet_skip_time_act"
      " in IF's blocks, else in each ResNet block",
    )
  return str(name)


def _residual_divisor(said: Mapping[str, Any], kind: str) -> float:
  value = float(said["resnet_out_scale_factor"])
  if kind == "transformer" and value != 1:
    raise _refuse("resnet_out_scale_factor", value, "1 around transformers")
  return value


def _only_cross_attention(said: Mapping[str, Any], kind: str) -> bool:
  key, value = "only_cross_attention", said["only_cross_attention"]
  mid = said["mid_block_only_cross_attention"]
  if not isinstance(value, bool):
    mid = bool(mid)
    value, *others = set(value)
    if others:
      raise _refuse(key, said[key], "one choice for all levels")
  if mid is not None and mid != value:
    raise _refuse(
      "mid_block_only_cross_attention", mid, f"the levels' choice, {value}"
    )
  if value and kind == "transformer":
    raise _refuse(key, value, "self-attention in its transformers")
  return bool(value)


def _text_norm(said: Mapping[str, Any], kind: str) -> str:
  choices = {None: "none", "group_norm": "group"}
  norm = _choice(said, "cross_attention_norm", choices)
  # Transformers get none from diffusers, whatever the file says.
  return str(norm) if kind == "joint" else "none"


def _text_widths(said: Mapping[str, Any]) -> tuple[int, int | None]:
  """Of the text embeddings, and of what they are projected to."""
  _choice(said, "encoder_hid_dim_type", {None: None, "text_proj": None})
  width = said["cross_attention_dim"]
  if type(width) is not int:
    raise _refuse("cross_attention_dim", width, "one width for all levels")
  if said["encoder_hid_dim"] is None:
    return width, None
  return said["encoder_hid_dim"], width


def _pooling(said: Mapping[str, Any]) -> dict[str, Any]:
  key = "addition_embed_type"
  choices = {None: "none", "text": "attention", "text_time": "given"}
  found: dict[str, Any] = {"text_pooling": _choice(said, key, choices)}
  if found["text_pooling"] == "attention":
    found["text_pooling_heads"] = said["addition_embed_type_num_heads"]
  if found["text_pooling"] == "given":
    features = said["addition_time_embed_dim"]
    total = said["projection_class_embeddings_input_dim"]
    width = total - unet_config.MICRO_NUMBERS * features
    if width <= 0:
      raise _refuse(
        "projection_class_embeddings_input_dim",
        total,
        f"six numbers of {features} features and a pooled text in it",
      )
    found["pooled_text_dim"] = width
    found["micro_conditioning_features"] = features
  return found


def config_to_json(
  config: Config, sample_size: int | None = None
) -> dict[str, Any]:
  """The config.json that diffusers' UNet2DConditionModel loads.

  Args:
    config: of a kind that diffusers has.
    sample_size: height and width of the latents that a pipeline draws unasked;
      None says none.

  Raises:
    ConversionError: diffusers has no such network; says what to change.
  """
  check_expressible(config)
  kind = config.attention
  attends = [int(depth > 0) for depth in config.transformer_depth]
  down = [_DOWN[kind][a] for a in attends]
  up = [_UP[kind][a] for a in reversed(attends)]
  given = config.text_pooling == "given"
  heads: Any = list(config.num_heads)
  if kind == "joint":
    heads = [c // n for c, n in zip(config.channels, heads, strict=True)]
    widths = {dim for dim, a in zip(heads, attends, strict=True) if a}
    heads = widths.pop() if len(widths) == 1 else heads
  depths = [max(depth, 1) for depth in config.transformer_depth]
  depths[-1] = config.mid_transformer_depth
  blocks = config.num_res_blocks
  projected = config.text_projection_dim is not None
  said = {
    "_class_name": CLASS_NAME,
    **_FIXED,
    **_DEFAULTS,
    "in_channels": config.in_channels,
    "out_channels": config.out_channels,
    "down_block_types": down,
    "mid_block_type": _MID[kind],
    "up_block_types": up,
    "only_cross_attention": config.only_cross_attention,
    "block_out_channels": list(config.channels),
    "layers_per_block": blocks if isinstance(blocks, int) else list(blocks),
    "mid_block_scale_factor": config.mid_residual_divisor,
    "dropout": config.dropout_rate,
    "act_fn": config.activation,
    "norm_num_groups": config.norm_groups,
    "cross_attention_dim": config.text_features,
    "transformer_layers_per_block": depths if kind == "transformer" else 1,
    "attention_head_dim": heads,
    "use_linear_projection": kind == "transformer",
    "class_embed_type": "timestep" if config.noise_level else None,
    "resnet_time_scale_shift": "scale_shift"
    if config.scale_shift_norm
    else "default",
    "resnet_out_scale_factor": config.residual_divisor,
    "time_embedding_dim": config.time_embedding_dim,
    "cross_attention_norm": "group_norm"
    if config.text_norm == "group"
    else None,
    "encoder_hid_dim": config.cross_attention_dim if projected else None,
    "encoder_hid_dim_type": "text_proj" if projected else None,
    "addition_embed_type": {"attention": "text", "given": "text_time"}.get(
      config.text_pooling
    ),
    "addition_embed_type_num_heads": config.text_pooling_heads,
  }
  if given:
    features = config.micro_conditioning_features
    said["addition_time_embed_dim"] = features
    said["projection_class_embeddings_input_dim"] = (
      config.pooled_text_dim + unet_config.MICRO_NUMBERS * features
    )
  if sample_size is not None:
    said["sample_size"] = sample_size
  return said


def check_expressible(config: Config) -> None:
  """Refuses a UNet that diffusers does not have.

  Raises:
    ConversionError: names the fields of the config.
  """
  kind = config.attention
  transformer = kind == "transformer"
  micro = config.micro_conditioning_features
  rows = (
    ("patch_size", config.patch_size == 1),
    ("position_features", not config.position_features),
    ("text_position_features", not config.text_position_features),
    ("skip_scale", config.skip_scale == 1),
    ("resampling", config.resampling == _RESAMPLING[kind]),
    ("text_norm", config.text_norm in ("none", "group")),
    ("text_pooling", config.text_pooling != "mean"),
    (
      "micro_conditioning_features",
      (micro > 0) == (config.text_pooling == "given"),
    ),
    ("approximate_gelu", not (transformer and config.approximate_gelu)),
    ("residual_divisor", not transformer or config.residual_divisor == 1),
    (
      "mid_transformer_depth",
      config.mid_transformer_depth
      == (config.transformer_depth[-1] or config.mid_transformer_depth or 1)
      if transformer
      else config.mid_transformer_depth == 1,
    ),
    (
      "text_norm",
      config.text_norm == "none"
      or config.text_features % 32 == 0,
    ),
  )  # fmt: skip
  wrong = [f"{name}={getattr(config, name)}" for name, fits in rows if not fits]
  if wrong:
    raise ConversionError(
      f"diffusers' {CLASS_NAME} can't be a UNet with {', '.join(wrong)}."
    )
