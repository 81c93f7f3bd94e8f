"""ByT5's decoder: T5 1.1 that writes bytes while it looks at features.

Causal self-attention with T5's bucketed relative positions, cross-attention
without any, gated tanh-GELU, logits from a matrix of their own. The parameter
tree has T5X's names and layout, so T5X's checkpoints fit as they are.

A network has two forms with the same numbers: `TextDecoder.__call__` sees all
tokens at once, for training and scoring; `decode_step` sees one token and a
cache of the keys and values of those before it, for writing.

Letters in shape comments beside those of layers.py: T decoded length, S number
of features looked at, V vocabulary.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import partitioning as nn_partitioning
from jax import lax

from byt5_diffusion import byt5, layers

Params = Any
Cache = dict[str, Any]


class DecoderLayer(nn.Module):
  """x + own(norm(x)), + cross(norm(x)), + mlp(norm(x)); x [B, T, D] float32."""

  config: byt5.Byt5Config
  enable_dropout: bool = False

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    bias: jax.Array,
    encoded: jax.Array,
    cross_bias: jax.Array,
  ) -> jax.Array:
    config = self.config
    dropout = nn.Dropout(
      config.dropout_rate,
      broadcast_dims=(-2,),
      deterministic=not self.enable_dropout,
    )

    def norm(name: str) -> layers.RMSNorm:
      return layers.RMSNorm(dtype=config.dtype, name=name)

    def attention(name: str) -> layers.Attention:
      return layers.Attention(
        config.num_heads,
        config.head_dim,
        query_init=layers.query_init(config.head_dim),
        dropout_rate=config.dropout_rate,
        enable_dropout=self.enable_dropout,
        dtype=config.dtype,
        output_dtype="float32",
        name=name,
      )

    y = norm("pre_self_attention_layer_norm")(x)
    y = attention("self_attention")(y, bias=bias)
    x = x + dropout(y)
    y = norm("pre_cross_attention_layer_norm")(x)
    y = attention("encoder_decoder_attention")(y, encoded, cross_bias)
    x = x + dropout(y)
    y = norm("pre_mlp_layer_norm")(x)
    y = layers.GatedMlp(
      config.mlp_dim,
      dropout_rate=config.dropout_rate,
      enable_dropout=self.enable_dropout,
      dtype=config.dtype,
      output_dtype="float32",
      name="mlp",
    )(y)
    return x + dropout(y)


class _ScannedLayer(DecoderLayer):
  """DecoderLayer as the body of a scan: carry in, (carry, nothing) out."""

  def __call__(  # type: ignore[override]
    self,
    x: jax.Array,
    bias: jax.Array,
    encoded: jax.Array,
    cross_bias: jax.Array,
  ) -> tuple[jax.Array, None]:
    return super().__call__(x, bias, encoded, cross_bias), None


class Decoder(nn.Module):
  """Embedded bytes [B, T, D], features [B, S, D'], mask [B, S] -> [B, T, V]."""

  config: byt5.Byt5Config
  enable_dropout: bool = False

  @nn.compact
  def __call__(
    self, x: jax.Array, encoded: jax.Array, encoded_mask: jax.Array
  ) -> jax.Array:
    config = _checked(self.config)
    dropout = nn.Dropout(
      config.dropout_rate,
      broadcast_dims=(-2,),
      deterministic=not self.enable_dropout,
    )
    length = x.shape[1]
    bias = byt5.RelativePositionBias(
      config, bidirectional=False, name="relpos_bias"
    )(length, length)
    # T5X masks padded bytes also. They come after all real ones, so a real one
    # cannot see them anyway, and nobody reads the logits of the others.
    bias = bias + layers.mask_bias(jnp.tri(length, dtype=bool))
    x = dropout(x).astype(jnp.float32)
    x = self._layers(x, bias, encoded, _cross_bias(encoded_mask))
    x = layers.RMSNorm(dtype=config.dtype, name="decoder_norm")(x)
    return _logits_dense(config, "logits_dense")(dropout(x))

  def _layers(self, x: jax.Array, *context: jax.Array) -> jax.Array:
    config = self.config
    if not config.scan_layers:
      layer = nn.remat(DecoderLayer) if config.remat else DecoderLayer
      for i in range(config.num_decoder_layers):
        x = layer(config, self.enable_dropout, name=f"layers_{i}")(x, *context)
      return x
    body = (
      nn.remat(_ScannedLayer, prevent_cse=False)
      if config.remat
      else _ScannedLayer
    )
    scanned = nn_partitioning.scan_with_axes(
      body,
      variable_axes={
        # As in byt5.Encoder: the axis is only moved while reading.
        "params": byt5.SCAN_AXIS
        if self.is_mutable_collection("params")
        else nn_partitioning.ScanIn(byt5.SCAN_AXIS)
      },
      split_rngs={"params": True, "dropout": True},
      in_axes=nn.broadcast,
      length=config.num_decoder_layers,
      axis_name="layers",
    )
    return scanned(config, self.enable_dropout, name="layers")(x, *context)[0]


class TextDecoder(nn.Module):
  """Logits of the next byte, given the bytes before it and features.

  Attributes:
    config: sizes; num_decoder_layers must be at least 1. The features may have
      another width than embed_dim.
  """

  config: byt5.Byt5Config

  @nn.compact
  def __call__(
    self,
    decoder_input_tokens: jax.Array,
    encoded: jax.Array,
    encoded_mask: jax.Array,
    enable_dropout: bool = False,
  ) -> jax.Array:
    """All positions at once (teacher forcing).

    Args:
      decoder_input_tokens: [B, T] int32, the target shifted right behind a 0.
      encoded: [B, S, D'], the features that cross-attention looks at.
      encoded_mask: [B, S], True where a feature is not padding.
      enable_dropout: needs an rng named "dropout".

    Returns:
      [B, T, V] float32; row t is of the byte after decoder_input_tokens[:, t].
    """
    embedded = _embed(self.config, "token_embedder")(decoder_input_tokens)
    return Decoder(self.config, enable_dropout, name="decoder")(
      embedded, encoded, encoded_mask
    )

  @nn.nowrap
  def init_cache(
    self,
    params: Params,
    encoded: jax.Array,
    encoded_mask: jax.Array,
    max_length: int,
  ) -> Cache:
    """What `decode_step` starts from.

    Args:
      params: this module's, of a scanned or an unrolled network.
      encoded: [B, S, D'].
      encoded_mask: [B, S].
      max_length: the most steps that may follow.

    Returns:
      A dict: "own" holds each layer's keys and values of written bytes, zeros
      yet, [B, max_length, N, K]; "shared" those of the features, [B, S, N, K],
      which never change; "index" is the number of steps made. An entry of
      "own" belongs to a row of tokens; one of "shared" to a row of features,
      which may serve several rows of tokens (beams).
    """
    config = _checked(self.config)
    shape = (len(encoded), max_length, config.num_heads, config.head_dim)
    own = []
    cross = []
    for layer in _layers_of(params, config):
      attention = layer["encoder_decoder_attention"]
      cross.append(_keys_and_values(config, attention, encoded))
      zeros = jnp.zeros(shape, config.dtype)
      own.append({"key": zeros, "value": zeros})
    bias = _cross_bias(encoded_mask)
    return {
      "index": jnp.zeros((), jnp.int32),
      "own": own,
      "shared": {"bias": bias, "layers": cross},
    }

  @nn.nowrap
  def decode_step(
    self, params: Params, cache: Cache, tokens: jax.Array
  ) -> tuple[jax.Array, Cache]:
    """One token of every row: `__call__`'s row of logits, by the cache.

    A scanned network's parameters are taken apart first; do it once before a
    long loop, by `byt5.unrolled`.

    Args:
      params: this module's, of a scanned or an unrolled network.
      cache: of `init_cache`, or of the step before. "own" may have k rows for
        each row of "shared", those of one row of features together.
      tokens: [B] int32, the bytes written last; 0 in the first step.

    Returns:
      [B, V] float32 logits of the next byte, and the cache with this one in
      it. After max_length steps there is no room left: the last is replaced.
    """
    config = self.config
    params = byt5.unrolled(params)
    index = cache["index"]
    max_length = cache["own"][0]["key"].shape[1]
    bias = self._step_bias(params, index, max_length)
    x = _apply(_embed(config), params["token_embedder"], tokens[:, None])
    x = x.astype(jnp.float32)
    own = []
    shared = cache["shared"]
    mlp = layers.GatedMlp(
      config.mlp_dim, dtype=config.dtype, output_dtype="float32"
    )
    for layer, past, cross in zip(
      _layers_of(params, config), cache["own"], shared["layers"], strict=True
    ):
      y = _normed(config, layer["pre_self_attention_layer_norm"], x)
      new = _keys_and_values(config, layer["self_attention"], y)
      past = {
        name: lax.dynamic_update_slice_in_dim(past[name], new[name], index, 1)
        for name in past
      }
      own.append(past)
      x = x + _attend(config, layer["self_attention"], y, past, bias)
      y = _normed(config, layer["pre_cross_attention_layer_norm"], x)
      attention = layer["encoder_decoder_attention"]
      x = x + _attend(config, attention, y, cross, shared["bias"])
      y = _normed(config, layer["pre_mlp_layer_norm"], x)
      x = x + _apply(mlp, layer["mlp"], y)
    y = _normed(config, params["decoder"]["decoder_norm"], x)
    logits = _apply(_logits_dense(config), params["decoder"]["logits_dense"], y)
    return logits[:, 0], {"index": index + 1, "own": own, "shared": shared}

  def _step_bias(
    self, params: Params, index: jax.Array, max_length: int
  ) -> jax.Array:
    """Row `index` of the causal bias: [1, N, 1, max_length]."""
    config = self.config
    # A bucket depends on the distance alone: those of each query to key 0.
    buckets = byt5.relative_position_buckets(
      max_length,
      1,
      bidirectional=False,
      num_buckets=config.relpos_num_buckets,
      max_distance=config.relpos_max_distance,
    )[:, 0]
    distance = index - jnp.arange(max_length)
    bucket = jnp.asarray(buckets)[jnp.maximum(distance, 0)]
    table = params["decoder"]["relpos_bias"]["rel_embedding"]
    bias = jnp.take(table, bucket, axis=1) + layers.mask_bias(distance >= 0)
    return bias[None, :, None]


class Byt5(nn.Module):
  """The whole ByT5: bytes in, logits of bytes out.

  Its parameters are those of byt5.TextEncoder and of TextDecoder with one
  table of embeddings, so either takes them as they are; that is how to encode
  and to write separately.
  """

  config: byt5.Byt5Config

  @nn.compact
  def __call__(
    self,
    text_tokens: jax.Array,
    decoder_input_tokens: jax.Array,
    enable_dropout: bool = False,
  ) -> jax.Array:
    """[B, L] and [B, T] int32, 0 = pad -> [B, T, V] float32 logits."""
    config = self.config
    embed = _embed(config, "token_embedder")
    mask = text_tokens > 0
    encoded = byt5.Encoder(config, enable_dropout, name="encoder")(
      embed(text_tokens), mask
    )
    return Decoder(config, enable_dropout, name="decoder")(
      embed(decoder_input_tokens), encoded, mask
    )


# --- Modules, made alike for both forms --------------------------------------


def _embed(config: byt5.Byt5Config, name: str | None = None) -> layers.Embed:
  return layers.Embed(
    config.vocab_size, config.embed_dim, dtype=config.dtype, name=name
  )


def _logits_dense(
  config: byt5.Byt5Config, name: str | None = None
) -> layers.Dense:
  """In float32, because its output is exponentiated."""
  return layers.Dense(
    config.vocab_size,
    ("embed", "vocab"),
    use_bias=False,
    dtype="float32",
    name=name,
  )


def _checked(config: byt5.Byt5Config) -> byt5.Byt5Config:
  if config.num_decoder_layers < 1:
    raise ValueError(
      "A decoder of no layers sees nothing: set num_decoder_layers of its"
      " Byt5Config to 1 or more."
    )
  return config


def _cross_bias(encoded_mask: jax.Array) -> jax.Array:
  return layers.mask_bias(encoded_mask[:, None, None, :].astype(bool))


# --- The pieces of a step -----------------------------------------------------


def _layers_of(params: Params, config: byt5.Byt5Config) -> list[Params]:
  decoder = byt5.unrolled(params)["decoder"]
  return [decoder[f"layers_{i}"] for i in range(config.num_decoder_layers)]


def _apply(module: nn.Module, params: Params, x: jax.Array) -> jax.Array:
  return jnp.asarray(module.apply({"params": params}, x))


def _normed(config: byt5.Byt5Config, params: Params, x: jax.Array) -> jax.Array:
  return _apply(layers.RMSNorm(dtype=config.dtype), params, x)


def _project(
  config: byt5.Byt5Config, params: Params, x: jax.Array
) -> jax.Array:
  """One of an attention's inputs: [B, L, D] -> [B, L, N, K]."""
  dense = layers.Dense(
    config.num_heads * config.head_dim,
    ("embed", "joined_kv"),
    use_bias=False,
    dtype=config.dtype,
  )
  y = _apply(dense, params, x)
  return y.reshape(*y.shape[:2], config.num_heads, config.head_dim)


def _keys_and_values(
  config: byt5.Byt5Config, params: Params, sources: jax.Array
) -> dict[str, jax.Array]:
  return {
    name: _project(config, params[name], sources) for name in ("key", "value")
  }


def _attend(
  config: byt5.Byt5Config,
  params: Params,
  x: jax.Array,
  sources: dict[str, jax.Array],
  bias: jax.Array,
) -> jax.Array:
  """Attention of x [B, 1, D] to ready keys and values: [B, 1, D] float32.

  Rows of x that share a row of sources are queries of one attention, so that
  the sources need not be repeated.
  """
  query = _project(config, params["query"], x)
  rows = len(sources["key"])
  query = query.reshape(rows, -1, *query.shape[2:])
  y = layers.attention(query, sources["key"], sources["value"], bias)
  out = layers.Dense(
    x.shape[-1],
    ("joined_kv", "embed"),
    use_bias=False,
    dtype=config.dtype,
    output_dtype="float32",
  )
  return _apply(out, params["out"], y.reshape(len(x), 1, -1))
