"""From tokens to what a UNet is told of a text, by one encoder or two.

  byt5_only  the caption's bytes go to ByT5
  quoted     the quoted strings' bytes go to ByT5, the caption to the second,
             semantic encoder
  concat     the caption goes to both

Which bytes a batch's `text_tokens` are is settled where they are made; here a
mode only says which encoders there are. Two encoders' embeddings are put one
behind the other along the length, ByT5's first, and so are their masks: to a
UNet they are one text. An encoder whose width is not the one that the UNet
reads gets a trained linear projection; where it is, there is none.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from byt5_diffusion import conditions, contract, layers

Array = jax.Array
PyTree = Any

MODES = ("byt5_only", "quoted", "concat")
# Where projections lie in `params`, by the names of the encoders.
PROJECTION = "text_projection"
POOLED = "pooled"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoder:
  """One text encoder of a model.

  Attributes:
    name: of its weights in their collection.
    tokens: key of its tokens in a batch, [B, L] int32, 0 = padding.
    module: tokens [B, L] -> embeddings [B, L, D].
    frozen: its weights lie in `frozen` and get no gradient.
  """

  name: str
  tokens: str
  module: nn.Module
  frozen: bool

  def weights(self, params: PyTree, flax_mutables: PyTree | None) -> PyTree:
    """Its parameters, wherever they lie."""
    if not self.frozen:
      return params[self.name]
    if flax_mutables is None:
      raise ValueError(
        f"freeze_{self.name}=True, but no frozen weights were passed: give "
        f"flax_mutables={{'frozen': {{'{self.name}': ...}}}}."
      )
    return flax_mutables["frozen"][self.name]

  def encode(
    self,
    weights: PyTree,
    tokens: Array,
    enable_dropout: bool = False,
    dropout_rng: Array | None = None,
  ) -> Array:
    """Embeddings [B, L, D]; a frozen encoder has no dropout."""
    enable_dropout = enable_dropout and not self.frozen
    embeddings: Any = self.module.apply(
      {"params": weights},
      tokens,
      enable_dropout=enable_dropout,
      rngs=contract.dropout_rngs(enable_dropout, dropout_rng),
    )
    return jax.lax.stop_gradient(embeddings) if self.frozen else embeddings


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConditioner:
  """The encoders of a model, and what makes their widths the UNet's.

  Attributes:
    encoders: ByT5 first; the last one reads the whole caption.
    width: of the embeddings that the UNet reads.
    pooled_width: of `pooled_text`, the masked mean of the last encoder's
      embeddings; None: there is none.
  """

  encoders: tuple[Encoder, ...]
  width: int
  pooled_width: int | None = None

  def initial(
    self, rngs: Mapping[str, Array], tokens: Mapping[str, Array]
  ) -> list[tuple[str, str, PyTree]]:
    """(collection, name, {"params", "params_axes"}) of all that has weights.

    Args:
      rngs: a key per encoder's name, and PROJECTION's.
      tokens: of a batch, by the encoders' keys.
    """
    parts: list[tuple[str, str, PyTree]] = []
    projections: dict[str, PyTree] = {}
    for i, encoder in enumerate(self.encoders):
      home = "frozen" if encoder.frozen else "params"
      variables = encoder.module.init(
        rngs[encoder.name], tokens[encoder.tokens]
      )
      parts.append((home, encoder.name, variables))
      found = jax.eval_shape(
        encoder.encode, variables["params"], tokens[encoder.tokens]
      )
      wanted = {encoder.name: self.width}
      if i == len(self.encoders) - 1 and self.pooled_width is not None:
        wanted[POOLED] = self.pooled_width
      for j, (name, width) in enumerate(wanted.items()):
        if width != found.shape[-1]:
          rng = jax.random.fold_in(rngs[PROJECTION], 2 * i + j)
          x = jnp.zeros(found.shape, found.dtype)
          projections[name] = _projection(width).init(rng, x)
    if projections:
      joined = {
        collection: {name: v[collection] for name, v in projections.items()}
        for collection in ("params", "params_axes")
      }
      parts.append(("params", PROJECTION, joined))
    return parts

  def encode(
    self,
    params: PyTree,
    tokens: Mapping[str, Array],
    flax_mutables: PyTree | None = None,
    *,
    enable_dropout: bool = False,
    dropout_rng: Array | None = None,
  ) -> conditions.Conditioning:
    """Tokens by their batch keys -> conditioning of the text alone."""
    found, masks, pooled = [], [], None
    for i, encoder in enumerate(self.encoders):
      rng = dropout_rng
      if i and rng is not None:
        rng = jax.random.fold_in(rng, i)
      ids = tokens[encoder.tokens]
      weights = encoder.weights(params, flax_mutables)
      raw = encoder.encode(weights, ids, enable_dropout, rng)
      found.append(_project(params, encoder.name, raw))
      masks.append(ids > 0)
      if encoder is self.encoders[-1] and self.pooled_width is not None:
        mean = conditions.pooled_text(raw, masks[-1])
        pooled = _project(params, POOLED, mean)
    if len(found) == 1:
      return conditions.Conditioning(found[0], masks[0], pooled)
    return conditions.Conditioning(
      jnp.concatenate(found, axis=1), jnp.concatenate(masks, axis=1), pooled
    )


def _projection(width: int, dtype: Any = "float32") -> layers.Dense:
  return layers.Dense(
    width, axes=("embed", "mlp"), use_bias=False, dtype=jnp.dtype(dtype).name
  )


def _project(params: PyTree, name: str, x: Array) -> Array:
  """x W where there is a projection of that name, else x."""
  weights = params.get(PROJECTION, {}).get(name)
  if weights is None:
    return x
  width = weights["kernel"].shape[-1]
  projected: Any = _projection(width, x.dtype).apply({"params": weights}, x)
  return projected
