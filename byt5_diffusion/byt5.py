"""ByT5: T5 1.1 over bytes (Xue et al. 2022), encoder side.

T5 1.1's topology: RMS norms before each block, gated tanh-GELU, no biases,
one bucketed relative position bias shared by all layers, logits that are not
divided by sqrt(head_dim) because the query's initial scale already is. The
parameter tree has T5X's names and layout, so T5X's checkpoints fit as they
are.

The residual stream is float32 whatever the dtype: T5's grows too far for
bfloat16's eight bits.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen import partitioning as nn_partitioning

from byt5_diffusion import layers

Params = Any

# Where T5X's scanned networks put the layers' axis in every parameter.
SCAN_AXIS = 1
_LAYER = re.compile(r"layers_(\d+)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Byt5Config:
  """Sizes of a ByT5. The defaults other than widths are those of all ByT5s.

  Attributes:
    vocab_size: rows of the embedding; 259 ids are used (256 bytes, pad, eos,
      unk), 384 stored.
    embed_dim: width of the residual stream and of text_embeddings.
    num_heads: attention heads.
    head_dim: width of one head; T5 doesn't tie it to embed_dim / num_heads.
    mlp_dim: hidden width of the gated MLP.
    num_encoder_layers: depth of the encoder.
    num_decoder_layers: depth of the decoder, for those who build one.
    relpos_num_buckets: buckets of relative positions, both directions.
    relpos_max_distance: positions from here on share the last bucket.
    dropout_rate: of embeddings, attention, MLP and residual branches.
    dtype: of activations; parameters are float32.
    scan_layers: one traced layer with stacked parameters: compiles faster.
    remat: recompute each layer in the backward pass to save memory.
  """

  vocab_size: int = 384
  embed_dim: int
  num_heads: int
  head_dim: int
  mlp_dim: int
  num_encoder_layers: int
  num_decoder_layers: int = 0
  relpos_num_buckets: int = 32
  relpos_max_distance: int = 128
  dropout_rate: float = 0.0
  dtype: str = "float32"
  scan_layers: bool = False
  remat: bool = False


def relative_position_buckets(
  query_length: int,
  key_length: int,
  *,
  bidirectional: bool,
  num_buckets: int,
  max_distance: int,
) -> np.ndarray:
  """Bucket of (key position - query position), int32 [query, key].

  (Raffel et al. 2020, section 2.1.) Half of a direction's buckets hold one
  distance each, the others grow in logarithmic steps up to max_distance.
  """
  distance = np.arange(key_length) - np.arange(query_length)[:, None]
  offset = np.zeros_like(distance)
  if bidirectional:
    num_buckets //= 2
    offset = np.where(distance > 0, num_buckets, 0)
    distance = np.abs(distance)
  else:
    distance = np.maximum(-distance, 0)
  exact = num_buckets // 2
  # The small addend keeps exact powers (16, 32, ..) from falling one bucket
  # short by rounding.
  ratio = np.log(np.maximum(distance, 1) / exact) / math.log(
    max_distance / exact
  )
  far = exact + (ratio * (num_buckets - exact) + 1e-6).astype(np.int32)
  far = np.minimum(far, num_buckets - 1)
  return (offset + np.where(distance < exact, distance, far)).astype(np.int32)


class RelativePositionBias(nn.Module):
  """A learned number per head and bucket: -> [1, N, query, key] float32."""

  config: Byt5Config
  bidirectional: bool = True

  @nn.compact
  def __call__(self, query_length: int, key_length: int) -> jax.Array:
    config = self.config
    table = layers.param_with_axes(
      "rel_embedding",
      nn.initializers.variance_scaling(1.0, "fan_avg", "uniform"),
      (config.num_heads, config.relpos_num_buckets),
      jnp.float32,
      axes=("heads", "relpos_buckets"),
    )
    buckets = relative_position_buckets(
      query_length,
      key_length,
      bidirectional=self.bidirectional,
      num_buckets=config.relpos_num_buckets,
      max_distance=config.relpos_max_distance,
    )
    return jnp.take(table, buckets, axis=1)[None]


class EncoderLayer(nn.Module):
  """x + attention(norm(x)), then x + mlp(norm(x)); x [B, L, D] float32."""

  config: Byt5Config
  enable_dropout: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, bias: jax.Array) -> jax.Array:
    config = self.config
    dropout = nn.Dropout(
      config.dropout_rate,
      broadcast_dims=(-2,),
      deterministic=not self.enable_dropout,
    )
    y = layers.RMSNorm(dtype=config.dtype, name="pre_attention_layer_norm")(x)
    y = layers.Attention(
      config.num_heads,
      config.head_dim,
      query_init=layers.query_init(config.head_dim),
      dropout_rate=config.dropout_rate,
      enable_dropout=self.enable_dropout,
      dtype=config.dtype,
      output_dtype="float32",
      name="attention",
    )(y, bias=bias)
    x = x + dropout(y)
    y = layers.RMSNorm(dtype=config.dtype, name="pre_mlp_layer_norm")(x)
    y = layers.GatedMlp(
      config.mlp_dim,
      dropout_rate=config.dropout_rate,
      enable_dropout=self.enable_dropout,
      dtype=config.dtype,
      output_dtype="float32",
      name="mlp",
    )(y)
    return x + dropout(y)


class _ScannedLayer(EncoderLayer):
  """EncoderLayer as the body of a scan: carry in, (carry, nothing) out."""

  def __call__(  # type: ignore[override]
    self, x: jax.Array, bias: jax.Array
  ) -> tuple[jax.Array, None]:
    return super().__call__(x, bias), None


class Encoder(nn.Module):
  """Embedded bytes [B, L, D] and their mask [B, L] -> [B, L, D].

  Attributes:
    relative_positions: False for inputs that say themselves where they are
      (patches of an image): then the only bias is the mask's.
  """

  config: Byt5Config
  enable_dropout: bool = False
  relative_positions: bool = True

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
    config = self.config
    dropout = nn.Dropout(
      config.dropout_rate,
      broadcast_dims=(-2,),
      deterministic=not self.enable_dropout,
    )
    # As in T5X a pad attends to nobody, so its row is a plain mean.
    allowed = mask[:, None, :, None] & mask[:, None, None, :]
    bias = layers.mask_bias(allowed)
    if self.relative_positions:
      table = RelativePositionBias(config, name="relpos_bias")
      bias = table(x.shape[1], x.shape[1]) + bias
    x = dropout(x).astype(jnp.float32)
    x = self._layers(x, bias)
    x = layers.RMSNorm(dtype=config.dtype, name="encoder_norm")(x)
    return dropout(x)

  def _layers(self, x: jax.Array, bias: jax.Array) -> jax.Array:
    config = self.config
    if not config.scan_layers:
      layer = nn.remat(EncoderLayer) if config.remat else EncoderLayer
      for i in range(config.num_encoder_layers):
        x = layer(config, self.enable_dropout, name=f"layers_{i}")(x, bias)
      return x
    body = (
      nn.remat(_ScannedLayer, prevent_cse=False)
      if config.remat
      else _ScannedLayer
    )
    scanned = nn_partitioning.scan_with_axes(
      body,
      variable_axes={
        # T5X's idiom: the axis is only moved out of its place while reading.
        "params": SCAN_AXIS
        if self.is_mutable_collection("params")
        else nn_partitioning.ScanIn(SCAN_AXIS)
      },
      split_rngs={"params": True, "dropout": True},
      in_axes=nn.broadcast,
      length=config.num_encoder_layers,
      axis_name="layers",
    )
    return scanned(config, self.enable_dropout, name="layers")(x, bias)[0]


class TextEncoder(nn.Module):
  """text_tokens [B, L] int32 (0 = pad) -> text_embeddings [B, L, D]."""

  config: Byt5Config

  @nn.compact
  def __call__(
    self, text_tokens: jax.Array, enable_dropout: bool = False
  ) -> jax.Array:
    config = self.config
    embedded = layers.Embed(
      config.vocab_size,
      config.embed_dim,
      dtype=config.dtype,
      name="token_embedder",
    )(text_tokens)
    return Encoder(config, enable_dropout, name="encoder")(
      embedded, text_tokens > 0
    )


# --- Scanned and unrolled trees. ---


def with_layers_apart(config: Byt5Config) -> Byt5Config:
  """The same network with layers_0, layers_1, .. in its tree."""
  return dataclasses.replace(config, scan_layers=False)


def stacked(params: Params) -> Params:
  """The tree of a scanned network, of that of an unrolled one.

  layers_0, layers_1, .. become `layers`, whose leaves have the layers' axis in
  place SCAN_AXIS. Serves encoder, decoder and any tree that holds them. Stacked
  parts are returned as they are. NumPy arrays stay NumPy arrays.

  Raises:
    ValueError: a layer is missing, or layers differ.
  """

  def stack(node: dict[str, Any]) -> dict[str, Any]:
    layers_of = {k: v for k, v in node.items() if _LAYER.fullmatch(k)}
    if not layers_of:
      return node
    wanted = [f"layers_{i}" for i in range(len(layers_of))]
    if sorted(layers_of) != sorted(wanted):
      raise ValueError(f"Layers have gaps: {sorted(layers_of)}.")
    rest = {k: v for k, v in node.items() if k not in layers_of}
    together = jax.tree.map(_stack, *(layers_of[name] for name in wanted))
    return {**rest, "layers": together}

  return _walk(params, stack)


def unrolled(params: Params) -> Params:
  """The tree of an unrolled network: the inverse of `stacked`."""

  def unroll(node: dict[str, Any]) -> dict[str, Any]:
    if "layers" not in node:
      return node
    rest = {k: v for k, v in node.items() if k != "layers"}
    depth = {x.shape[SCAN_AXIS] for x in jax.tree.leaves(node["layers"])}
    if len(depth) != 1:
      raise ValueError(f"Stacked layers have several depths: {sorted(depth)}.")
    for i in range(depth.pop()):
      rest[f"layers_{i}"] = jax.tree.map(lambda x, i=i: x[:, i], node["layers"])
    return rest

  return _walk(params, unroll)


def _walk(
  node: Params, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> Params:
  if not isinstance(node, Mapping):
    return node
  return change({name: _walk(child, change) for name, child in node.items()})


def _stack(*leaves: Any) -> Any:
  host = all(isinstance(leaf, np.ndarray) for leaf in leaves)
  return (np if host else jnp).stack(leaves, SCAN_AXIS)
