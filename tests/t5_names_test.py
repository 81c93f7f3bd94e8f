"""Names of T5's arrays, and which configurations are refused."""

import re

import pytest
from peers import t5_sizes

from byt5_diffusion import byt5
from byt5_diffusion import config as config_lib
from byt5_diffusion.conversion import names, t5_names

TINY = byt5.Byt5Config(
  embed_dim=16,
  num_heads=2,
  head_dim=8,
  mlp_dim=32,
  num_encoder_layers=2,
  num_decoder_layers=1,
)
GOOD = t5_names.config_to_json(TINY)


@pytest.mark.parametrize("depth", [0, 1])
def test_every_array_has_one_name_in_each_program(depth):
  config = byt5.Byt5Config(
    **{**vars(TINY), "num_decoder_layers": depth, "scan_layers": True}
  )
  for entries in (
    t5_names.entries(config),
    t5_names.t5x_entries(config),
    t5_names.mesh_tf_entries(config),
  ):
    assert sorted(e.ours for e in entries) == sorted(t5_names.shapes(config))
    assert len({e.theirs for e in entries}) == len(entries)
  theirs = [e.theirs for e in t5_names.entries(config)]
  assert ("lm_head.weight" in theirs) == bool(depth)
  # The decoder's arrays are read or rightly left; the encoder's never left.
  for name in ("decoder.block.0.layer.0.layer_norm.weight", "lm_head.weight"):
    assert t5_names.ignored(name, config) == (not depth)
  assert not t5_names.ignored("encoder.final_layer_norm.weight", config)
  assert not t5_names.ignored("decoders", config)


def test_mesh_tensorflow_s_own_file_is_named_in_full(shared_data):
  text = (shared_data / "fixtures/t5x/mesh_tf/variables.txt").read_text()
  wanted = {
    line.split("\t")[0]: line.split("\ttarget/"[:1])[-1]
    for line in text.splitlines()
  }
  entries = t5_names.mesh_tf_entries(TINY)
  assert {e.theirs for e in entries} == set(wanted)
  for entry in entries:
    assert wanted[entry.theirs].endswith(f"target/{entry.ours}")
  assert t5_names.mesh_tf_ignored("shared/embedding_slot_vr", TINY)
  assert t5_names.mesh_tf_ignored("global_step", TINY)
  assert not t5_names.mesh_tf_ignored("shared/embedding", TINY)
  aliases = t5_names.mesh_tf_aliases(TINY)
  block = "decoder/block_000/layer_002"
  assert aliases[f"{block}/layer_norm/scale"] == f"{block}/rms_norm/scale"
  assert aliases["encoder/final_layer_norm/scale"] == "encoder/rms_norm/scale"
  assert set(aliases.values()) < {e.theirs for e in entries}


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"feed_forward_proj": "relu"}, ["feed_forward_proj", "T5 1.0"]),
    ({"feed_forward_proj": "gated-silu"}, ["feed_forward_proj", "gated-silu"]),
    ({"model_type": "umt5"}, ["model_type", "umt5"]),
    ({"model_type": None}, ["model_type"]),
    ({"tie_word_embeddings": True}, ["tie_word_embeddings", "T5 1.0"]),
    ({"layer_norm_epsilon": 1e-5}, ["layer_norm_epsilon", "1e-06"]),
    ({"d_model": 0}, ["d_model"]),
    ({"d_ff": "32"}, ["d_ff"]),
    ({"num_layers": True}, ["num_layers"]),
    ({"num_heads": 2**40}, ["num_heads"]),
    ({"num_decoder_layers": -1}, ["num_decoder_layers"]),
    ({"vocab_size": None}, ["vocab_size"]),
  ],
)
def test_other_networks_are_refused_by_name(change, words):
  with pytest.raises(names.ConversionError) as error:
    t5_names.config_from_json(GOOD | change)
  for word in words:
    assert word in str(error.value)


def test_what_a_config_json_may_leave_out():
  content = {k: v for k, v in GOOD.items() if not k.startswith("relative_")}
  del content["num_decoder_layers"]
  config = t5_names.config_from_json(content)
  assert (config.relpos_num_buckets, config.relpos_max_distance) == (32, 128)
  assert config.num_decoder_layers == config.num_encoder_layers
  assert not t5_names.config_from_json(
    content | {"tie_word_embeddings": True}, encoder_only=True
  ).num_decoder_layers


# Whole, encoder; the paper's 300M, 582M, 1.23B, 3.74B and 12.9B.
COUNTS = {
  "byt5_small": (299_637_760, 217_657_472),
  "byt5_base": (581_653_248, 414_703_488),
  "byt5_large": (1_228_183_552, 864_204_800),
  "byt5_xl": (3_737_801_728, 2_614_091_264),
  "byt5_xxl": (12_906_899_328, 8_990_317_632),
  "t5_small": (76_961_152, 35_332_800),
  "t5_base": (247_577_856, 109_628_544),
  "t5_large": (783_150_080, 341_231_104),
  "t5_xl": (2_849_757_184, 1_223_527_424),
  "t5_xxl": (11_135_332_352, 4_762_310_656),
}


@pytest.mark.parametrize("name", COUNTS)
def test_published_sizes_and_the_counts_in_their_headers(name):
  """(Xue et al. 2022, table 1; T5X's gin files; see tests/peers for theirs.)"""
  whole = t5_sizes.published(*name.split("_"))
  encoder = byt5.Byt5Config(**{**vars(whole), "num_decoder_layers": 0})
  counts = t5_sizes.count(whole), t5_sizes.count(encoder)
  assert counts == COUNTS[name]
  text = (config_lib.gin_root() / f"sizes/{name}.gin").read_text()
  stated = {
    int(x.replace(",", "")) for x in re.findall(r"\d+(?:,\d{3})+", text)
  }
  assert stated == set(counts if name.startswith("byt5") else counts[1:])
