"""Our UNet and diffusers', on random weights; the peer's own counts, too."""

import jax
import numpy as np
import pytest

from byt5_diffusion import unet
from byt5_diffusion.conversion import unet_names
from peers import loading

torch = pytest.importorskip("torch", reason="the peer needs it")
diffusers = pytest.importorskip("diffusers", reason="it is the peer")
torch.set_num_threads(1)

# These programs run once: compiling them is what takes the time.
QUICK = {"xla_backend_optimization_level": 0}
LENGTH = 5

SD = {
  "norm_num_groups": 8,
  "mid_block_type": "UNetMidBlock2DCrossAttn",
  "use_linear_projection": True,
}
TEXT_TIME = {
  "addition_embed_type": "text_time",
  "addition_time_embed_dim": 8,
  "projection_class_embeddings_input_dim": 58,  # 6 x 8 + 10
}
IF = {
  "norm_num_groups": 8,
  "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
  "act_fn": "gelu",
  "out_channels": 6,
  "resnet_time_scale_shift": "scale_shift",
  "cross_attention_norm": "group_norm",
  "cross_attention_dim": 64,
  "encoder_hid_dim": 24,
  "addition_embed_type": "text",
  "addition_embed_type_num_heads": 4,
}
IF_LARGE = {
  **IF,
  "in_channels": 6,
  "class_embed_type": "timestep",
  "only_cross_attention": True,
  "resnet_out_scale_factor": 1 / 0.7071,
  "mid_block_scale_factor": 1 / 0.7071,
  "resnet_skip_time_act": True,
  "time_embedding_act_fn": "gelu",
}


def draw_config(family, rng):
  """diffusers' config.json of a small UNet of the family, never the same."""

  def pick(*choices):
    return choices[rng.integers(len(choices))]

  if family == "sd21":
    return {
      **SD,
      "block_out_channels": pick([16, 24], [16, 32], [24, 24]),
      "layers_per_block": pick(1, [1, 2]),
      "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
      "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
      "transformer_layers_per_block": pick(1, 2),
      "attention_head_dim": pick([2, 4], [1, 2], 4),
      "cross_attention_dim": pick(12, 20),
    }
  if family == "sdxl":
    return {
      **SD,
      **TEXT_TIME,
      "block_out_channels": pick([16, 24], [8, 32]),
      "layers_per_block": 1,
      "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
      "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
      "transformer_layers_per_block": pick([1, 2], [1, 1]),
      "attention_head_dim": [2, 4],
      "cross_attention_dim": pick(12, 20),
    }
  large = IF if family == "if_1" else IF_LARGE
  content = {
    **large,
    "in_channels": 3 if family == "if_1" else 6,
    "block_out_channels": pick([16, 32], [8, 24], [24, 24]),
    "layers_per_block": pick(1, [1, 2]),
    "down_block_types": [
      "ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"
    ],
    "up_block_types": ["SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"],
    "attention_head_dim": pick(4, 8),
  }  # fmt: skip
  if family != "if_1":
    content["time_embedding_dim"] = pick(32, 48)
  if family == "if_3":  # Another level, without the scale of the residuals.
    content["block_out_channels"] = [8, 8, 16]
    content["layers_per_block"] = [1, 1, 2]
    content["down_block_types"] = ["ResnetDownsampleBlock2D"] * 2 + [
      "SimpleCrossAttnDownBlock2D"
    ]
    content["up_block_types"] = ["SimpleCrossAttnUpBlock2D"] + [
      "ResnetUpsampleBlock2D"
    ] * 2
  return content


def draw(family):
  """A peer with weights of its own, our config, inputs."""
  seed = loading.new_seed()
  rng = np.random.default_rng(seed)
  content = draw_config(family, rng)
  print(f"{seed=} {content}")
  peer = diffusers.UNet2DConditionModel(**content).eval()
  loading.randomize(peer, rng)
  config = unet_names.config_from_json(content)
  width, height = int(rng.integers(1, 3)) * 8, 8
  batch = {
    "noisy_latents": rng.normal(size=(2, height, width, config.in_channels)),
    "time": rng.uniform(0, 1000, 2),
    "text_embeddings": rng.normal(size=(2, LENGTH, config.cross_attention_dim)),
  }
  if config.pooled_text_dim:
    batch["pooled_text"] = rng.normal(size=(2, config.pooled_text_dim))
    batch["micro_conditioning"] = rng.uniform(0, 1024, (2, 6))
  if config.noise_level:
    batch["noise_level"] = rng.uniform(0, 1000, 2)
  batch = {name: np.float32(value) for name, value in batch.items()}
  batch["text_mask"] = np.ones((2, LENGTH), bool)
  return seed, peer, config, batch


def ask_peer(peer, batch, mask=True):
  """The peer's output, channels last, with gradients if they are on."""
  t = {name: torch.from_numpy(value) for name, value in batch.items()}
  more = {}
  if "pooled_text" in t:
    more["added_cond_kwargs"] = {
      "text_embeds": t["pooled_text"],
      "time_ids": t["micro_conditioning"],
    }
  if "noise_level" in t:
    more["class_labels"] = t["noise_level"]
  if mask:
    more["encoder_attention_mask"] = t["text_mask"]
  y = peer(
    t["noisy_latents"].permute(0, 3, 1, 2),
    t["time"],
    encoder_hidden_states=t["text_embeddings"],
    **more,
  ).sample
  return y.permute(0, 2, 3, 1)


def ask_ours(config, params, batch):
  apply = jax.jit(unet.UNet(config).apply, compiler_options=QUICK)
  return apply({"params": params}, **batch)


FAMILIES = [
  "sd21",
  pytest.param("sdxl", marks=pytest.mark.slow),
  "if_1",
  pytest.param("if_2", marks=pytest.mark.slow),
  pytest.param("if_3", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_are_the_peer_s(family):
  seed, peer, config, batch = draw(family)
  entries = unet_names.entries(config)
  state = loading.to_numpy(peer)
  params = loading.to_ours(state, entries)
  flat = {e.ours: e for e in entries}
  shapes = unet_names.shapes(config)
  assert set(flat) == set(shapes)
  # Attention without self-attention fails on masks in the peer.
  masked = not config.only_cross_attention
  if config.attention == "transformer":
    batch["text_mask"] = np.arange(LENGTH) < np.array([[LENGTH], [2]])
  with torch.no_grad():
    expected = ask_peer(peer, batch, masked).numpy()
  loading.assert_close(ask_ours(config, params, batch), expected, seed)
  back = loading.from_ours(params, entries)
  assert set(back) == set(state)
  for name, value in state.items():
    np.testing.assert_array_equal(back[name], value)
