"""diffusers' config.json of autoencoders; tests/peers has the arrays."""

import json

import pytest

from byt5_diffusion import autoencoder_kl
from byt5_diffusion.conversion import autoencoder_names, names

# As published with stable-diffusion-2-1 and stable-diffusion-xl-base-1.0.
BLOCKS = """
  "act_fn": "silu",
  "block_out_channels": [128, 256, 512, 512],
  "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D",
    "DownEncoderBlock2D", "DownEncoderBlock2D"],
  "in_channels": 3,
  "latent_channels": 4,
  "layers_per_block": 2,
  "norm_num_groups": 32,
  "out_channels": 3,
  "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D",
    "UpDecoderBlock2D", "UpDecoderBlock2D"]
"""
SD21 = (
  '{"_class_name": "AutoencoderKL", "_diffusers_version": "0.10.0.dev0",'
  f' "sample_size": 768, {BLOCKS}}}'
)
SDXL = (
  '{"_class_name": "AutoencoderKL", "_diffusers_version": "0.20.0.dev0",'
  ' "_name_or_path": "../sdxl-vae/", "force_upcast": true,'
  f' "scaling_factor": 0.13025, "sample_size": 1024, {BLOCKS}}}'
)


@pytest.mark.parametrize(
  ("text", "scale", "size"), [(SD21, 0.18215, 768), (SDXL, 0.13025, 1024)]
)
def test_published_configs_are_ours_and_come_back(text, scale, size):
  content = json.loads(text)
  config = autoencoder_names.config_from_json(content)
  assert config == autoencoder_kl.AutoencoderKLConfig(
    channels=(128, 256, 512, 512), scaling_factor=scale, sample_size=size
  )
  written = autoencoder_names.config_to_json(config)
  assert autoencoder_names.config_from_json(written) == config
  said = {k: v for k, v in content.items() if k[:2] not in ("_d", "_n")}
  assert said.items() <= written.items()


@pytest.mark.parametrize(
  ("change", "says"),
  [
    ({"act_fn": "relu"}, "act_fn = 'relu' is not supported, only 'silu' or"),
    ({"latents_mean": [0.0]}, "latents_mean"),
    ({"out_channels": 1}, "out_channels = 1"),
    ({"down_block_types": ["AttnDownEncoderBlock2D"]}, "down_block_types"),
    ({"temporal": 1}, "unknown temporal"),
    ({"_class_name": "VQModel"}, "'VQModel'"),
    ({"norm_num_groups": 48}, "norm_groups=48 does not divide"),
  ],
)
def test_other_autoencoders_are_refused_by_key_and_value(change, says):
  with pytest.raises(names.ConversionError, match=says):
    autoencoder_names.config_from_json(json.loads(SD21) | change)


def test_latent_diffusions_names_count_levels_from_the_finest():
  config = autoencoder_names.config_from_json(json.loads(SD21))
  theirs = {
    e.ours: e.theirs for e in autoencoder_names.single_file_entries(config)
  }
  assert set(theirs) == set(autoencoder_names.shapes(config))
  prefix = "first_stage_model.decoder"
  for ours, expected in {
    "up_blocks_0/resnets_2/conv1/kernel": "up.3.block.2.conv1.weight",
    "up_blocks_3/resnets_0/conv_shortcut/bias": (
      "up.0.block.0.nin_shortcut.bias"
    ),
    "up_blocks_0/upsamplers_0/kernel": "up.3.upsample.conv.weight",
    "mid_block/attentions_0/out/kernel": "mid.attn_1.proj_out.weight",
    "mid_block/resnets_1/norm2/scale": "mid.block_2.norm2.weight",
    "conv_norm_out/bias": "norm_out.bias",
  }.items():
    assert theirs[f"decoder/{ours}"] == f"{prefix}.{expected}"
