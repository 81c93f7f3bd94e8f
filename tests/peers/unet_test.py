"""Our UNet and diffusers', on random weights; the peer's own counts, too."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest
from flax import traverse_util

from byt5_diffusion import stored_trees, unet
from byt5_diffusion.conversion import families, names, unet_names
from peers import loading, unet_configs

torch = pytest.importorskip("torch", reason="the peer needs it")
diffusers = pytest.importorskip("diffusers", reason="it is the peer")
single_file_utils = pytest.importorskip("diffusers.loaders.single_file_utils")
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


def draw(family, **overrides):
  """A peer with weights of its own, our config, inputs."""
  seed = loading.new_seed()
  rng = np.random.default_rng(seed)
  content = {**draw_config(family, rng), **overrides}
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
  "sdxl",
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


def test_joint_attention_reads_what_is_under_the_mask_and_no_more():
  """The peer has no masks in norm and pooling: it is given shorter texts."""
  seed, peer, config, batch = draw("if_1")
  params = loading.to_ours(loading.to_numpy(peer), unet_names.entries(config))
  batch["text_mask"] = np.arange(LENGTH) < np.array([[LENGTH], [2]])
  ours = ask_ours(config, params, batch)
  for row, length in enumerate((LENGTH, 2)):
    alone = {name: value[row : row + 1] for name, value in batch.items()}
    alone["text_embeddings"] = alone["text_embeddings"][:, :length]
    with torch.no_grad():
      expected = ask_peer(peer, alone, mask=False).numpy()
    loading.assert_close(ours[row : row + 1], expected, seed)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd21", "if_2"])
def test_gradients_are_the_peer_s(family):
  seed, peer, config, batch = draw(family)
  entries = unet_names.entries(config)
  params = loading.to_ours(loading.to_numpy(peer), entries)
  weights = np.random.default_rng(seed).normal(
    size=(*batch["noisy_latents"].shape[:-1], config.out_channels)
  )

  def loss(params):
    y = unet.UNet(config).apply({"params": params}, **batch)
    return (y * weights).mean()

  gradients = jax.jit(jax.grad(loss), compiler_options=QUICK)(params)
  y = ask_peer(peer, batch, mask=not config.only_cross_attention)
  (y * torch.from_numpy(weights)).mean().backward()
  ours = loading.from_ours(gradients, entries)
  for name, parameter in peer.named_parameters():
    loading.assert_close(ours[name], parameter.grad.numpy(), seed, 1e-4)


# --- configs and names -------------------------------------------------------

PUBLISHED = unet_configs.PUBLISHED
# Exact counts; the peer is asked for its own, which is how they are known.
COUNTS = {
  "sd21": 865_910_724,
  "sdxl": 2_567_463_684,
  "if_1": 4_304_695_110,
  "if_2": 1_243_277_190,
}


def meta_shapes(content):
  """{name: shape} of the peer, without weights."""
  with torch.device("meta"):
    peer = diffusers.UNet2DConditionModel.from_config(dict(content))
  return {name: tuple(x.shape) for name, x in peer.state_dict().items()}


@pytest.mark.parametrize(
  "family",
  [
    "sd21",
    *(
      pytest.param(name, marks=pytest.mark.slow)
      for name in ("sdxl", "if_1", "if_2")
    ),
  ],
)
def test_published_configs_are_read_written_and_counted(family):
  content = PUBLISHED[family]
  config = unet_names.config_from_json(content)
  theirs = meta_shapes(content)
  written = json.loads(json.dumps(unet_names.config_to_json(config)))
  assert meta_shapes(written) == theirs
  assert unet_names.config_from_json(written) == config
  ours = unet_names.shapes(config)
  entries = unet_names.entries(config)
  assert {e.ours for e in entries} == set(ours)
  assert {e.theirs for e in entries} == set(theirs)
  for entry in entries:
    whole = theirs[entry.theirs]
    shape = (whole[0] // entry.part[1], *whole[1:])
    dummy = np.broadcast_to(np.zeros(()), shape)
    made = names.TRANSFORMS[entry.transform].to_ours(dummy)
    assert made.shape == ours[entry.ours].shape, entry
  assert sum(map(math.prod, theirs.values())) == COUNTS[family]
  assert sum(math.prod(x.shape) for x in ours.values()) == COUNTS[family]


@pytest.mark.parametrize("family", ["sd21", "sdxl"])
def test_single_files_are_what_the_peer_reads(family):
  """Random weights, by latent diffusion's names, through its converter."""
  # Its converter counts the blocks by one number for all levels.
  _, peer, config, _ = draw(family, layers_per_block=2)
  state = loading.to_numpy(peer)
  params = loading.to_ours(state, unet_names.entries(config))
  single = loading.from_ours(params, unet_names.single_file_entries(config))
  convert = single_file_utils.convert_ldm_unet_checkpoint
  read = convert(
    {k: torch.from_numpy(v) for k, v in single.items()}, dict(peer.config)
  )
  assert set(read) == set(state)
  for name, value in state.items():
    np.testing.assert_array_equal(read[name].numpy(), value)


def test_single_files_hold_no_joint_attention():
  config = unet_names.config_from_json(PUBLISHED["if_1"])
  with pytest.raises(names.ConversionError, match="attention='joint'"):
    unet_names.single_file_entries(config)


@pytest.mark.parametrize("family", ["if_1", "if_2"])
def test_if_s_own_files_have_queries_keys_and_values_head_by_head(family):
  """The rows are where IF's QKVAttention splits them, on the way in and out."""
  _, peer, config, _ = draw(family)
  state = loading.to_numpy(peer)
  params = loading.to_ours(state, unet_names.entries(config))
  flat = traverse_util.flatten_dict(params, sep="/")
  network = families.Network(families.FAMILIES["unet"], config, "unet")
  ours = source({f"unet/{name}": value for name, value in flat.items()})
  entries = unet_names.original_entries(config)
  original = families.to_theirs(ours, network, entries)
  arrays = original.read(list(original.shapes))
  heads = config.num_heads[-1]
  mid = "mid_block.attentions.0"
  for name, products in (
    (
      "qkv",
      ["to_q", "to_k", "to_v"][: 1 if config.only_cross_attention else 3],
    ),
    ("encoder_kv", ["add_k_proj", "add_v_proj"]),
  ):
    for leaf in ("weight", "bias"):
      rows = arrays[f"middle_block.1.{name}.{leaf}"]
      rows = rows.reshape(heads, len(products), -1, *rows.shape[1:2])
      for i, product in enumerate(products):
        theirs = state[f"{mid}.{product}.{leaf}"].reshape(rows[:, i].shape)
        np.testing.assert_array_equal(rows[:, i], theirs)
  assert arrays["middle_block.1.proj_out.weight"].ndim == 3
  assert arrays["input_blocks.0.0.weight"].shape[1] == config.in_channels
  assert {x.split(".")[0] for x in arrays} == {
    "time_embed", "input_blocks", "middle_block", "output_blocks", "out",
    "encoder_proj", "encoder_pooling",
    *(["aug_proj"] if config.noise_level else []),
  }  # fmt: skip
  assert families.fitting_entries(network, arrays) == entries
  back = families.to_ours(source(arrays), network, entries)
  assert set(back.shapes) == set(ours.shapes)
  for name, value in back.read(list(back.shapes)).items():
    np.testing.assert_array_equal(value, flat[name.removeprefix("unet/")])


def source(arrays):
  shapes = {
    name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in arrays.items()
  }
  return stored_trees.Source(
    "a test", shapes, lambda chosen: {name: arrays[name] for name in chosen}
  )


@pytest.mark.parametrize(
  "family, change, message",
  [
    ("sd21", {"frobnicate": 1}, "unknown frobnicate; known are"),
    ("sd21", {"_class_name": "UNet2DModel"}, "_class_name = 'UNet2DModel'"),
    ("sd21", {"use_linear_projection": False}, "use_linear_projection"),
    ("sd21", {"norm_eps": 1e-6}, "norm_eps = 1e-06 .* only 1e-05"),
    ("sd21", {"act_fn": "mish"}, "act_fn = 'mish'"),
    ("sd21", {"class_embed_type": "projection"}, "class_embed_type"),
    ("sd21", {"mid_block_type": None}, "mid_block_type = None"),
    ("sd21", {"up_block_types": ["UpBlock2D"] * 4}, "up_block_types"),
    (
      "sd21",
      {"down_block_types": ["AttnDownBlock2D"] * 4},
      "down_block_types = 'AttnDownBlock2D'",
    ),
    ("sd21", {"layers_per_block": [2, 2]}, "layers_per_block = .* 4 levels"),
    ("sd21", {"block_out_channels": "wide"}, "block_out_channels"),
    ("sd21", {"cross_attention_dim": [1, 2]}, "cross_attention_dim"),
    ("sd21", {"only_cross_attention": True}, "only_cross_attention"),
    ("sd21", {"resnet_out_scale_factor": 2.0}, "resnet_out_scale_factor"),
    ("sdxl", {"addition_embed_type": "image"}, "addition_embed_type"),
    (
      "sdxl",
      {"projection_class_embeddings_input_dim": 1536},
      "projection_class_embeddings_input_dim",
    ),
    ("if_1", {"attention_head_dim": 60}, "attention_head_dim"),
    ("if_1", {"encoder_hid_dim_type": "image_proj"}, "encoder_hid_dim_type"),
    ("if_1", {"cross_attention_norm": "layer_norm"}, "cross_attention_norm"),
    ("if_2", {"resnet_skip_time_act": False}, "time_embedding_act_fn"),
    (
      "if_2",
      {"mid_block_only_cross_attention": True},
      "mid_block_only_cross_attention",
    ),
  ],
)
def test_what_we_don_t_have_is_refused_by_name(family, change, message):
  with pytest.raises(names.ConversionError, match=message):
    unet_names.config_from_json({**PUBLISHED[family], **change})


@pytest.mark.parametrize(
  "change",
  [
    {"patch_size": 2},
    {"position_features": True},
    {"text_position_features": True},
    {"skip_scale": 0.5},
    {"resampling": "conv_first"},
    {"text_pooling": "mean"},
    {"approximate_gelu": True},
    {"residual_divisor": 2.0},
    {"mid_transformer_depth": 0},
    {"micro_conditioning_features": 8},
  ],
)
def test_what_diffusers_does_not_have_is_not_written(change):
  config = unet_names.config_from_json(PUBLISHED["sd21"])
  config = dataclasses.replace(config, **change)
  for function in (unet_names.config_to_json, unet_names.entries):
    with pytest.raises(names.ConversionError, match=next(iter(change))):
      function(config)
