"""Tests that a stranger's config.json is bounded before anything is built.

A config needs no weights to ask for a network that takes hours to trace.
"""

import json

import pytest

from byt5_diffusion.conversion import (
  families,
  names,
  safetensors_files,
  single_files,
  sources,
)

UNET = single_files.PUBLISHED["SD 2.1"]["unet"]
VAE = single_files.PUBLISHED["SD 2.1"]["codec"]
T5 = {
  "model_type": "t5",
  "architectures": ["T5EncoderModel"],
  "feed_forward_proj": "gated-gelu",
  "d_model": 8,
  "d_ff": 8,
  "d_kv": 4,
  "num_heads": 2,
  "num_layers": 2,
  "vocab_size": 384,
}
CLIP = {"model_type": "clip_vision_model"}


def refusal(tmp_path, content):
  """What is said of a folder with this config.json and no arrays."""
  (tmp_path / "config.json").write_text(json.dumps(content))
  safetensors_files.write(
    tmp_path / "model.safetensors", {}, lambda name: pytest.fail(name)
  )
  with pytest.raises(names.ConversionError) as caught:
    sources.open_weights(tmp_path)
  message = str(caught.value)
  assert "\n" not in message
  assert len(message) < 600
  return message


@pytest.mark.parametrize(
  ("content", "changes", "said"),
  [
    (UNET, {"block_out_channels": [320, 640, 1280, 10**18]}, "channels"),
    (UNET, {"layers_per_block": 2000}, "num_res_blocks"),
    (UNET, {"layers_per_block": -1}, "num_res_blocks"),
    (UNET, {"transformer_layers_per_block": 900}, "blocks"),
    (UNET, {"in_channels": -4}, "in_channels"),
    (UNET, {"in_channels": 10**15}, "in_channels"),
    (UNET, {"in_channels": "4"}, "no whole number"),
    (UNET, {"in_channels": None}, "in_channels|broadcast|NoneType|shape"),
    (UNET, {"cross_attention_dim": 0}, "cross_attention_dim"),
    (UNET, {"norm_num_groups": 0}, "config of a unet"),
    (
      UNET,
      {
        "block_out_channels": [32] * 17,
        "down_block_types": ["DownBlock2D"] * 17,
        "up_block_types": ["UpBlock2D"] * 17,
        "attention_head_dim": 4,
      },
      "17 levels",
    ),
    (
      UNET,
      {"block_out_channels": [], "down_block_types": [], "up_block_types": []},
      "config of a unet",
    ),
    (VAE, {"layers_per_block": 2000}, "num_res_blocks"),
    (VAE, {"latent_channels": -1}, "latent_channels"),
    (VAE, {"norm_num_groups": 0}, "config of a autoencoder"),
    (T5, {"num_layers": 2000}, "num_encoder_layers"),
    (
      T5 | {"architectures": None, "tie_word_embeddings": False},
      {"num_layers": 600, "num_decoder_layers": 600},
      "1200 blocks",
    ),
    (CLIP, {"num_hidden_layers": 2000}, "num_layers"),
    (CLIP, {"image_size": 10**7, "patch_size": 1}, "image_size"),
    (CLIP, {"patch_size": 0}, "config of a clip_image"),
  ],
)
def test_absurd_sizes_are_refused_by_name(tmp_path, content, changes, said):
  message = refusal(tmp_path, content | changes)
  assert any(word in message for word in said.split("|")), message


def test_what_cannot_be_built_is_the_configs_fault(tmp_path):
  """Whatever JAX says of it."""
  message = refusal(tmp_path, CLIP | {"projection_dim": -3})
  assert "No clip_image can be built" in message


def test_published_sizes_are_within_the_bounds():
  for configs in single_files.PUBLISHED.values():
    for place, kind in (("unet", "unet"), ("codec", "autoencoder")):
      family, content = families.FAMILIES[kind], configs[place]
      found = families.parse_config(family, content, "x")
      assert len(found.channels) == len(content["block_out_channels"])
  xxl = {"num_layers": 36, "num_decoder_layers": 12, "d_model": 4672}
  xxl |= {"d_ff": 12352, "num_heads": 64, "d_kv": 64, "vocab_size": 384}
  content = T5 | {"architectures": None, "tie_word_embeddings": False} | xxl
  found = families.parse_config(families.FAMILIES["t5"], content, "x")
  assert (found.num_encoder_layers, found.mlp_dim) == (36, 12352)
