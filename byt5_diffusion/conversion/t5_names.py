"""T5 1.1 and ByT5: HuggingFace's, T5X's and Mesh TensorFlow's names.

Our tree is T5X's, so T5X's names are ours. What a file may hold besides:

  aliases    another spelling of an array, or a second copy of it. If the array
             that it stands for is absent, the alias is it; if both are there,
             they must be equal.
  stand-ins  as aliases, but free to differ where both are there.
  ignored    no parameters, or, for an encoder alone, the decoder's.
"""

import functools
import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import traverse_util

from byt5_diffusion import byt5, byt5_decoder, stored_trees
from byt5_diffusion.conversion import names

Source = stored_trees.Source
ConversionError = names.ConversionError

# HuggingFace keeps the table of embeddings once and names it three times.
ALIASES: Mapping[str, str] = {
  "encoder.embed_tokens.weight": "shared.weight",
  "decoder.embed_tokens.weight": "shared.weight",
}
# In files of models that keep no matrix for logits (`stand_ins`).
_TIED = {"lm_head.weight": "shared.weight"}
# HuggingFace's files: what old versions wrote and nobody reads.
_STALE = (
  r"decoder\.block\.0\.layer\.1\.EncDecAttention"
  r"\.relative_attention_bias\.weight"
)
_DECODER = r"(decoder|lm_head)\..*"
# Mesh TensorFlow's: Adafactor's and the count of steps.
_MESH_TF_STATE = r"global_step|.*_slot_\w+"
_MESH_TF_DECODER = r"decoder/.*"

# Theirs -> ours; all the rest are equal in every T5 that this network is.
_SIZES = {
  "vocab_size": "vocab_size",
  "d_model": "embed_dim",
  "num_heads": "num_heads",
  "d_kv": "head_dim",
  "d_ff": "mlp_dim",
  "num_layers": "num_encoder_layers",
  "relative_attention_num_buckets": "relpos_num_buckets",
  "relative_attention_max_distance": "relpos_max_distance",
}
_DEFAULTS = {
  "relative_attention_num_buckets": 32,
  "relative_attention_max_distance": 128,
}
_EPSILON = 1e-6
BYT5_VOCAB_SIZE = 384


def config_from_json(
  content: Mapping[str, Any], *, encoder_only: bool | None = None
) -> byt5.Byt5Config:
  """The sizes in HuggingFace's config.json of a ByT5, T5 1.1 or mT5.

  Args:
    content: of the file.
    encoder_only: leave the decoder out (num_decoder_layers = 0); None does so
      if the file says that there is none.

  Returns:
    dropout_rate is 0, because it belongs to a training and not to weights.

  Raises:
    ConversionError: the file is of another topology; names the key.
  """
  if encoder_only is None:
    encoder_only = content.get("architectures") == ["T5EncoderModel"]
  _require(content, "model_type", ("t5", "mt5"), "T5 1.1, ByT5 and mT5")
  _require(
    content,
    "feed_forward_proj",
    ("gated-gelu",),
    "the gated tanh-GELU of T5 1.1 and ByT5 (T5 1.0 has 'relu')",
  )
  _require(
    content, "layer_norm_epsilon", (_EPSILON, None), f"an epsilon of {_EPSILON}"
  )
  if not encoder_only and _scaled_logits(content):
    raise ConversionError(
      "config.json: 'tie_word_embeddings' is not false: logits are those of"
      " T5 1.0, scaled and made by the table of embeddings. Supported are"
      " logits with a matrix of their own (T5 1.1, ByT5); the encoder alone can"
      " be read."
    )
  sizes: dict[str, Any] = {
    ours: _size(content, theirs) for theirs, ours in _SIZES.items()
  }
  depth = 0
  if not encoder_only:
    depth = sizes["num_encoder_layers"]
    if content.get("num_decoder_layers") is not None:
      depth = _size(content, "num_decoder_layers")
  return byt5.Byt5Config(**sizes, num_decoder_layers=depth)


def _scaled_logits(content: Mapping[str, Any]) -> bool:
  # New versions write what they do with the logits, and `tie` always as true.
  scaled = content.get("scale_decoder_outputs")
  if scaled is None:
    scaled = content.get("tie_word_embeddings") is not False
  return bool(scaled)


def stand_ins(content: Mapping[str, Any]) -> Mapping[str, str]:
  """{absent array: the one that it equals} by a config.json's content.

  transformers 5 ties the logits' matrix to the table of embeddings unless a
  file has both, but doesn't scale logits as T5 1.0 did.
  """
  return _TIED if content.get("tie_word_embeddings") else {}


def _require(
  content: Mapping[str, Any], key: str, values: tuple[Any, ...], what: str
) -> None:
  if content.get(key) not in values:
    raise ConversionError(
      f"config.json: {key!r} is {str(content.get(key))[:60]!r}; supported:"
      f" {what}."
    )


def _size(content: Mapping[str, Any], key: str) -> int:
  value = content.get(key, _DEFAULTS.get(key))
  if type(value) is not int or not 1 <= value < 2**24:
    raise ConversionError(
      f"config.json: {key!r} is {str(value)[:60]!r}, not a positive integer."
    )
  return value


def config_to_json(config: byt5.Byt5Config) -> dict[str, Any]:
  """What T5EncoderModel loads (no decoder) or T5ForConditionalGeneration."""
  encoder_only = not config.num_decoder_layers
  content = {theirs: getattr(config, ours) for theirs, ours in _SIZES.items()}
  tokenizer = {}
  if config.vocab_size == BYT5_VOCAB_SIZE:
    tokenizer = {"tokenizer_class": "ByT5Tokenizer"}
  return {
    "architectures": [
      "T5EncoderModel" if encoder_only else "T5ForConditionalGeneration"
    ],
    "model_type": "t5",
    **content,
    # Their class has no zero: an encoder's file says its own depth again.
    "num_decoder_layers": config.num_decoder_layers
    or config.num_encoder_layers,
    "feed_forward_proj": "gated-gelu",
    "layer_norm_epsilon": _EPSILON,
    "tie_word_embeddings": False,
    "dropout_rate": config.dropout_rate,
    "is_encoder_decoder": not encoder_only,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
    **tokenizer,
  }


# What a T5 by itself begins its names with, in T5X's networks.
_TOP = ("token_embedder", "encoder", "decoder")


def is_root(found: Collection[str]) -> bool:
  """Whether names are those of a T5 by itself, as T5X's networks have them."""
  return bool(found) and all(name.split("/")[0] in _TOP for name in found)


class _SizeNames(NamedTuple):
  """Arrays that tell a T5's sizes; `layer` finds a layer's number."""

  embedding: str
  relpos: str
  query: str
  wi: str
  layer: str


_T5X_SIZES = _SizeNames(
  "token_embedder/embedding",
  "encoder/relpos_bias/rel_embedding",
  "encoder/layers_0/attention/query/kernel",
  "encoder/layers_0/mlp/wi_0/kernel",
  r"{side}/layers_(\d+)/.*",
)
_MESH_TF_SIZES = _SizeNames(
  "shared/embedding",
  "encoder/block_000/layer_000/SelfAttention/relative_attention_bias",
  "encoder/block_000/layer_000/SelfAttention/q",
  "encoder/block_000/layer_001/DenseReluDense/wi_0/kernel",
  r"{side}/block_(\d{{3}})/.*",
)


def t5x_config(source: Source, prefix: str = "") -> byt5.Byt5Config:
  """The config of a T5 in T5X's unrolled names, from its arrays' shapes.

  Args:
    source: of the arrays.
    prefix: in front of the names, with its slash.

  Raises:
    ConversionError: an array that tells a size is missing.
  """
  return _config_of_shapes(source, prefix, _T5X_SIZES)


def mesh_tf_config(source: Source) -> byt5.Byt5Config:
  """The same, in Mesh TensorFlow's names."""
  return _config_of_shapes(source, "", _MESH_TF_SIZES)


def _config_of_shapes(
  source: Source, prefix: str, told: _SizeNames
) -> byt5.Byt5Config:
  def size(name: str, axis: int) -> int:
    leaf = source.shapes.get(prefix + name)
    if leaf is None or len(leaf.shape) <= axis:
      raise ConversionError(
        f"{source.what} holds no {prefix}{name}: it is no T5 1.1 or ByT5."
      )
    return int(leaf.shape[axis])

  def depth(side: str) -> int:
    pattern = re.compile(re.escape(prefix) + told.layer.format(side=side))
    return len({m[1] for k in source.shapes if (m := pattern.fullmatch(k))})

  heads, width = size(told.relpos, 0), size(told.query, 1)
  if not heads or width % heads:
    raise ConversionError(f"{source.what}: {heads} heads can't share {width}.")
  return byt5.Byt5Config(
    vocab_size=size(told.embedding, 0),
    embed_dim=size(told.embedding, 1),
    num_heads=heads,
    head_dim=width // heads,
    mlp_dim=size(told.wi, 1),
    num_encoder_layers=depth("encoder"),
    num_decoder_layers=depth("decoder"),
    relpos_num_buckets=size(told.relpos, 1),
  )


@functools.cache
def shapes(config: byt5.Byt5Config) -> dict[str, jax.ShapeDtypeStruct]:
  """{name: shape and dtype} of every parameter, of the unrolled tree.

  Those of byt5.TextEncoder without a decoder, of byt5_decoder.Byt5 with one.
  """
  config = byt5.with_layers_apart(config)
  tokens = jnp.ones((1, 1), jnp.int32)
  module, inputs = (
    (byt5_decoder.Byt5(config), (tokens, tokens))
    if config.num_decoder_layers
    else (byt5.TextEncoder(config), (tokens,))
  )
  tree = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
  return traverse_util.flatten_dict(tree, sep="/")


# --- Names. Every block has one sublayer after another: (norm, its module). ---

_BLOCKS = {
  "encoder": (
    ("pre_attention_layer_norm", "attention", "SelfAttention"),
    ("pre_mlp_layer_norm", "mlp", "DenseReluDense"),
  ),
  "decoder": (
    ("pre_self_attention_layer_norm", "self_attention", "SelfAttention"),
    (
      "pre_cross_attention_layer_norm",
      "encoder_decoder_attention",
      "EncDecAttention",
    ),
    ("pre_mlp_layer_norm", "mlp", "DenseReluDense"),
  ),
}
_QKVO = {"query": "q", "key": "k", "value": "v", "out": "o"}


def _sides(config: byt5.Byt5Config) -> dict[str, int]:
  depths = {"encoder": config.num_encoder_layers}
  if config.num_decoder_layers:
    depths["decoder"] = config.num_decoder_layers
  return depths


def entries(config: byt5.Byt5Config) -> list[names.Entry]:
  """HuggingFace's: shared.weight, encoder.block.0.layer.0.layer_norm.weight."""
  found = [names.Entry("token_embedder/embedding", "shared.weight")]
  for side, depth in _sides(config).items():
    norm = f"{side}.final_layer_norm.weight"
    found.append(names.Entry(f"{side}/{side}_norm/scale", norm))
    table = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias"
    found.append(
      names.Entry(
        f"{side}/relpos_bias/rel_embedding", table + ".weight", "dense"
      )
    )
    for i in range(depth):
      for j, sublayer in enumerate(_BLOCKS[side]):
        found += _sublayer(side, i, j, *sublayer)
  if config.num_decoder_layers:
    logits = "decoder/logits_dense/kernel"
    found.append(names.Entry(logits, "lm_head.weight", "dense"))
  return found


def _sublayer(
  side: str, i: int, j: int, norm: str, ours: str, theirs: str
) -> list[names.Entry]:
  here, there = f"{side}/layers_{i}", f"{side}.block.{i}.layer.{j}"
  parts = {x: x for x in ("wi_0", "wi_1", "wo")} if ours == "mlp" else _QKVO
  return [
    names.Entry(f"{here}/{norm}/scale", f"{there}.layer_norm.weight"),
    *(
      names.Entry(
        f"{here}/{ours}/{part}/kernel",
        f"{there}.{theirs}.{other}.weight",
        "dense",
      )
      for part, other in parts.items()
    ),
  ]


def t5x_entries(config: byt5.Byt5Config) -> list[names.Entry]:
  """T5X's, which are ours. A scanned checkpoint's are those of byt5.stacked."""
  return [names.Entry(name, name) for name in shapes(config)]


def mesh_tf_entries(config: byt5.Byt5Config) -> list[names.Entry]:
  """Mesh TensorFlow's: encoder/block_000/layer_000/SelfAttention/q."""
  found = [names.Entry("token_embedder/embedding", "shared/embedding")]
  for entry in entries(config)[1:]:
    there = entry.theirs.removesuffix(".weight")
    there = re.sub(
      r"\.block\.(\d+)\.layer\.(\d+)\.",
      lambda m: f".block_{int(m[1]):03}.layer_{int(m[2]):03}.",
      there,
    ).replace(".", "/")
    there = re.sub(r"(final_)?layer_norm$", "rms_norm/scale", there)
    there = re.sub(r"(DenseReluDense/\w+)$", r"\1/kernel", there)
    there = re.sub(r"^lm_head$", "decoder/logits/kernel", there)
    # Dense kernels are [in, out] as ours are.
    found.append(names.Entry(entry.ours, there))
  return found


def mesh_tf_aliases(config: byt5.Byt5Config) -> dict[str, str]:
  """{alias: name} of Mesh TensorFlow's: older norms are called layer_norm."""
  aliases = {}
  for entry in mesh_tf_entries(config):
    parent, found, rest = entry.theirs.rpartition("rms_norm/scale")
    if found:
      last = "final_layer_norm" if parent.count("/") == 1 else "layer_norm"
      aliases[f"{parent}{last}/scale{rest}"] = entry.theirs
  return aliases


def ignored(name: str, config: byt5.Byt5Config) -> bool:
  """Whether a HuggingFace file may hold this and we leave it, rightly."""
  if re.fullmatch(_STALE, name):
    return True
  return not config.num_decoder_layers and bool(re.fullmatch(_DECODER, name))


def mesh_tf_ignored(name: str, config: byt5.Byt5Config) -> bool:
  """The same of a Mesh TensorFlow checkpoint: also the optimizer's state."""
  if re.fullmatch(_MESH_TF_STATE, name):
    return True
  return not config.num_decoder_layers and bool(
    re.fullmatch(_MESH_TF_DECODER, name)
  )
