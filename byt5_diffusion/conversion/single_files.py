"""Single files as latent diffusion writes them: several networks by prefix.

Such a file has no config. One that we have written carries it; of the models
that were published in this form the configs are known here, and the one whose
arrays are all there in their shapes is it. Anything else needs --config.
"""

import re
from collections.abc import Mapping
from typing import Any

from byt5_diffusion import stored_trees
from byt5_diffusion.conversion import families, names, views

ConversionError = names.ConversionError
Network = families.Network
Source = stored_trees.Source

PREFIXES = {"unet": "model.diffusion_model.", "codec": "first_stage_model."}
_FAMILY = {"unet": "unet", "codec": "autoencoder"}
# What else such files hold, and who can do without it.
_OTHERS = {
  "the text encoders (CLIP)": r"(cond_stage_model|conditioner)\..*",
  "the average of the weights": r"model_ema\..*",
  "the noise schedule": (
    r"betas|logvar|(sqrt_|log_)?(one_minus_)?alphas_cumprod(_prev)?"
    r"|sqrt_recip(m1)?_alphas_cumprod|sqrt_recip_alphas_cumprod"
    r"|posterior_(variance|log_variance_clipped|mean_coef[12])"
    r"|denoiser\.(sigmas|log_sigmas)"
  ),
}

_UNET: dict[str, Any] = {
  "_class_name": "UNet2DConditionModel",
  "in_channels": 4,
  "layers_per_block": 2,
  "out_channels": 4,
  "use_linear_projection": True,
}
_CROSS_DOWN, _CROSS_UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
_VAE: dict[str, Any] = {
  "_class_name": "AutoencoderKL",
  "block_out_channels": [128, 256, 512, 512],
  "down_block_types": ["DownEncoderBlock2D"] * 4,
  "latent_channels": 4,
  "layers_per_block": 2,
  "up_block_types": ["UpDecoderBlock2D"] * 4,
}
# From the config.json of stabilityai's stable-diffusion-2-1 and
# stable-diffusion-xl-base-1.0.
PUBLISHED: dict[str, dict[str, dict[str, Any]]] = {
  "SD 2.1": {
    "unet": {
      **_UNET,
      "attention_head_dim": [5, 10, 20, 20],
      "block_out_channels": [320, 640, 1280, 1280],
      "cross_attention_dim": 1024,
      "down_block_types": [*[_CROSS_DOWN] * 3, "DownBlock2D"],
      "sample_size": 96,
      "up_block_types": ["UpBlock2D", *[_CROSS_UP] * 3],
    },
    "codec": {**_VAE, "sample_size": 768, "scaling_factor": 0.18215},
  },
  "SDXL": {
    "unet": {
      **_UNET,
      "addition_embed_type": "text_time",
      "addition_time_embed_dim": 256,
      "attention_head_dim": [5, 10, 20],
      "block_out_channels": [320, 640, 1280],
      "cross_attention_dim": 2048,
      "down_block_types": ["DownBlock2D", *[_CROSS_DOWN] * 2],
      "projection_class_embeddings_input_dim": 2816,
      "sample_size": 128,
      "transformer_layers_per_block": [1, 2, 10],
      "up_block_types": [*[_CROSS_UP] * 2, "UpBlock2D"],
    },
    "codec": {**_VAE, "sample_size": 1024, "scaling_factor": 0.13025},
  },
}


def parts(source: Source) -> dict[str, Source]:
  """{place: the arrays with its prefix}, of those that are there."""
  found = {}
  for place, prefix in PREFIXES.items():
    own = {name: name for name in source.shapes if name.startswith(prefix)}
    if own:
      found[place] = views.renamed(source, own)
  return found


def left(source: Source, taken: set[str]) -> dict[str, int]:
  """{what: how many arrays of it} that are not of the places taken.

  Raises:
    ConversionError: arrays that no such file has; the first ten.
  """
  counts: dict[str, int] = {}
  unknown = []
  for name in source.shapes:
    place = next((p for p, x in PREFIXES.items() if name.startswith(x)), None)
    if place in taken:
      continue
    what = place and f"the {_FAMILY[place]}"
    what = what or next(
      (what for what, x in _OTHERS.items() if re.fullmatch(x, name)), None
    )
    if what is None:
      unknown.append(name)
    else:
      counts[what] = counts.get(what, 0) + 1
  if unknown:
    raise ConversionError(
      f"{source.what} holds {len(unknown)} arrays that are unknown:"
      f" {stored_trees.some(unknown, families.MOST_DIFFERENCES)}."
    )
  return counts


def networks(
  source: Source,
  found: Mapping[str, Source],
  given: Network | None,
  own: Mapping[str, Network],
  kind: str,
) -> dict[str, Network]:
  """{place: network} of a file.

  Args:
    source: the file.
    found: its parts.
    given: what --config says.
    own: what the file says of itself.
    kind: which of them are wanted; "auto" = all.

  Raises:
    ConversionError: none of that kind, or its config is unknown.
  """
  result: dict[str, Network] = {}
  model = None
  for place, part in found.items():
    if kind not in ("auto", _FAMILY[place]):
      continue
    if place in own:
      result[place] = own[place]
    elif given is not None and given.place == place:
      result[place] = given
    else:
      model, result[place] = _published(source, place, part, model)
  if not result:
    raise ConversionError(f"{source.what} holds no {kind}.")
  if given is not None and given.place not in result:
    raise ConversionError(
      f"{source.what} holds no {given.family.kind}, of which the config is."
    )
  return result


def _published(
  source: Source, place: str, part: Source, model: str | None
) -> tuple[str, Network]:
  """The published model whose arrays these are; model: if it is known."""
  family = families.FAMILIES[_FAMILY[place]]
  fitting = []
  for name, configs in PUBLISHED.items():
    if model is not None and name != model:
      continue
    config = families.parse_config(family, configs[place], name)
    network = Network(family, config, place)
    entries = families.layouts(network)["single_file"]()
    if {entry.theirs for entry in entries} != set(part.shapes):
      continue
    try:
      families.to_ours(part, network, entries)
    except ConversionError:
      continue
    fitting.append((name, network))
  if len(fitting) == 1:
    return fitting[0]
  fits = (
    " and ".join(name for name, _ in fitting) or f"no {', '.join(PUBLISHED)}"
  )
  raise ConversionError(
    f"{source.what}: its {family.kind} fits {fits}, and the file does not say"
    " what it is: give its config.json by --config."
  )
