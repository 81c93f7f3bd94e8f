"""CLIP's image tower: names and configs of transformers.

A folder may hold the whole of CLIP (CLIPModel) or its image part
(CLIPVisionModelWithProjection); we take, and write, the image part.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from byt5_diffusion import clip_image
from byt5_diffusion.conversion import names

Config = clip_image.ClipImageConfig

ARCHITECTURE = "CLIPVisionModelWithProjection"
# Theirs -> ours, and what transformers takes where a file says nothing.
_SIZES: dict[str, tuple[str, Any]] = {
  "image_size": ("image_size", 224),
  "patch_size": ("patch_size", 32),
  "hidden_size": ("embed_dim", 768),
  "num_attention_heads": ("num_heads", 12),
  "intermediate_size": ("mlp_dim", 3072),
  "num_hidden_layers": ("num_layers", 12),
  "projection_dim": ("projection_dim", 512),
  "hidden_act": ("activation", "quick_gelu"),
  "layer_norm_eps": ("epsilon", 1e-5),
}
# The caption's half of CLIPModel, and counts of old files.
_IGNORED = (
  r"text_model\..*|text_projection\.weight|logit_scale|.*\.position_ids"
)


def config_from_json(content: Mapping[str, Any]) -> Config:
  """transformers' config.json of a CLIP, or of its image part, as ours.

  Raises:
    ConversionError: another model, or values that this network does not have.
  """
  kind = content.get("model_type")
  if kind not in ("clip", "clip_vision_model"):
    raise names.ConversionError(
      f"config.json: model_type is {kind!r}, not 'clip' or 'clip_vision_model'."
    )
  vision = content if kind == "clip_vision_model" else _vision(content)
  channels = vision.get("num_channels", 3)
  if channels != 3:
    raise names.ConversionError(
      f"config.json of a CLIP: num_channels = {channels!r}, supported is 3."
    )
  values = {
    ours: vision.get(theirs, default)
    for theirs, (ours, default) in _SIZES.items()
  }
  for theirs, (ours, default) in _SIZES.items():
    # Whole numbers may stand for floats; nothing else for anything.
    kinds = (int, float) if isinstance(default, float) else (type(default),)
    if type(values[ours]) not in kinds:
      raise names.ConversionError(
        f"config.json of a CLIP: {theirs} = {values[ours]!r} is not"
        f" {kinds[-1].__name__}."
      )
  try:
    return Config(**values)
  except ValueError as error:
    raise names.ConversionError(f"config.json of a CLIP: {error}") from error


def _vision(content: Mapping[str, Any]) -> Mapping[str, Any]:
  """The image part of a whole CLIP's config."""
  vision = content.get("vision_config")
  if not isinstance(vision, Mapping):
    raise names.ConversionError("config.json of a CLIP has no vision_config.")
  # The whole model's is the one that its projections are made by.
  shared = content.get("projection_dim", vision.get("projection_dim"))
  return vision if shared is None else {**vision, "projection_dim": shared}


def config_to_json(config: Config) -> dict[str, Any]:
  """A config.json that transformers loads, and config_from_json."""
  sizes = {
    theirs: getattr(config, ours) for theirs, (ours, _) in _SIZES.items()
  }
  return {
    "architectures": [ARCHITECTURE],
    "model_type": "clip_vision_model",
    "num_channels": 3,
    **sizes,
  }


def entries(config: Config) -> list[names.Entry]:
  """Every parameter of ours and transformers' array that it is."""
  result = [
    names.Entry(
      "embeddings/class_token", "vision_model.embeddings.class_embedding"
    ),
    names.Entry(
      "embeddings/patch_kernel",
      "vision_model.embeddings.patch_embedding.weight",
      "conv",
    ),
    names.Entry(
      "embeddings/positions",
      "vision_model.embeddings.position_embedding.weight",
    ),
    *_norm("pre_layer_norm", "vision_model.pre_layrnorm"),  # sic
    *_norm("final_layer_norm", "vision_model.post_layernorm"),
    names.Entry("projection/kernel", "visual_projection.weight", "dense"),
  ]
  for i in range(config.num_layers):
    ours, theirs = f"layers_{i}", f"vision_model.encoder.layers.{i}"
    result += _norm(f"{ours}/pre_attention_layer_norm", f"{theirs}.layer_norm1")
    result += _norm(f"{ours}/pre_mlp_layer_norm", f"{theirs}.layer_norm2")
    for name, their_name in _DENSE.items():
      for leaf, array, transform in (
        ("kernel", "weight", "dense"),
        ("bias", "bias", "same"),
      ):
        result.append(
          names.Entry(
            f"{ours}/{name}/{leaf}", f"{theirs}.{their_name}.{array}", transform
          )
        )
  return result


def ignored(name: str, config: Config) -> bool:
  """Arrays of theirs that may be there and are left: the caption's half."""
  del config
  return bool(re.fullmatch(_IGNORED, name))


def shapes(config: Config) -> dict[str, jax.ShapeDtypeStruct]:
  """{name of ours: shape and dtype}; computes nothing."""
  side = config.image_size
  images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
  network = clip_image.ClipImageEncoder(config)
  variables = jax.eval_shape(network.init, jax.random.key(0), images)
  leaves = jax.tree_util.tree_leaves_with_path(variables["params"])
  return {"/".join(key.key for key in path): leaf for path, leaf in leaves}


_DENSE = {
  "attention/query": "self_attn.q_proj",
  "attention/key": "self_attn.k_proj",
  "attention/value": "self_attn.v_proj",
  "attention/out": "self_attn.out_proj",
  "wi": "mlp.fc1",
  "wo": "mlp.fc2",
}


def _norm(ours: str, theirs: str) -> list[names.Entry]:
  return [
    names.Entry(f"{ours}/scale", f"{theirs}.weight"),
    names.Entry(f"{ours}/bias", f"{theirs}.bias"),
  ]
