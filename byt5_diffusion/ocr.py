"""OcrModel: pictures in, text out.

Features of a picture, then ByT5's decoder, which writes bytes while it looks at
them. Features come from one of two places that the model cannot tell apart:

  PatchFeatures  a transformer over patches, any resolution (Lee et al. 2023)
  UNetFeatures   a drawing network's own block at one noise level

What is written is valid UTF-8 whatever the weights are: the bytes that would
not be are never chosen (utf8.py).

Notation: B batch, S features, D width of a feature, L bytes of text.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import linen as nn

from byt5_diffusion import (
  byt5,
  byt5_decoder,
  contract,
  decoding,
  losses,
  models,
  patches,
  utf8,
)

Array = jax.Array
Batch = Mapping[str, Array]
PyTree = Any

# Where the parameters lie that only reading has.
READER = "reader"
# ByT5's "unknown", which stands for no byte: an input that is not told.
HIDDEN_ID = utf8.UNK_ID


class Features(Protocol):
  """Where the features of a picture come from."""

  def input_shapes(self, batch_size: int = 1) -> dict[str, tuple[int, ...]]:
    """{batch key: shape} of what a picture comes as."""

  def initial_variables(
    self, rng: Array, input_shapes: Mapping[str, tuple[int, ...]]
  ) -> dict[str, PyTree]:
    """A model's collections; the own part is params[READER]["encoder"]."""

  def __call__(
    self,
    params: PyTree,
    batch: Batch,
    flax_mutables: PyTree | None = None,
    *,
    enable_dropout: bool = False,
    dropout_rng: Array | None = None,
  ) -> tuple[Array, Array]:
    """Features [B, S, D] and their mask [B, S]."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PatchFeatures:
  """Features by a transformer over the picture's patches.

  Attributes:
    encoder: patches.PatchEncoder.
    patch_size: side of a patch in pixels.
    max_patches: patches of a batch's rows; None where the batch holds pictures
      of one size, which are cut up here.
    image_size: (H, W) of those pictures; None where the batch holds patches.
  """

  encoder: nn.Module
  patch_size: int
  max_patches: int | None = None
  image_size: tuple[int, int] | None = None

  def __post_init__(self) -> None:
    if (self.max_patches is None) == (self.image_size is None):
      raise ValueError(
        "PatchFeatures takes max_patches (of a reading task's patches) or "
        "image_size (of pictures of one size): bind one of the two."
      )
    if self.image_size and any(s % self.patch_size for s in self.image_size):
      raise ValueError(
        f"{self.patch_size=} must divide both sides of {self.image_size=}."
      )

  def input_shapes(self, batch_size: int = 1) -> dict[str, tuple[int, ...]]:
    """{"patches" or "images": shape}."""
    if self.image_size is not None:
      return {"images": (batch_size, *self.image_size, 3)}
    assert self.max_patches is not None
    width = patches.patch_width(self.patch_size)
    return {"patches": (batch_size, self.max_patches, width)}

  def initial_variables(
    self, rng: Array, input_shapes: Mapping[str, tuple[int, ...]]
  ) -> dict[str, PyTree]:
    """The encoder's."""
    batch = {
      name: jnp.zeros(input_shapes[name]) for name in self.input_shapes()
    }
    variables = self.encoder.init(rng, self._patches(batch))
    return _as_reader(variables, "encoder")

  def _patches(self, batch: Batch) -> Array:
    if self.image_size is None:
      return batch["patches"]
    return patches.extract(batch["images"], self.patch_size)

  def __call__(
    self,
    params: PyTree,
    batch: Batch,
    flax_mutables: PyTree | None = None,
    *,
    enable_dropout: bool = False,
    dropout_rng: Array | None = None,
  ) -> tuple[Array, Array]:
    """Features [B, S, D] of batch["patches"] or batch["images"], and a mask."""
    del flax_mutables
    return _encode(
      self.encoder, params, self._patches(batch), enable_dropout, dropout_rng
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNetFeatures:
  """Features that a drawing network has of a finished picture.

  Attributes:
    model: the drawing model; its parameters lie beside the reader's, where a
      JointModel has them already.
    encoder: patches.PatchEncoder over the block's grid: each place is a patch
      of one pixel with as many channels as the block.
    log_snr: how noisy the UNet is told that the picture is.
    block: whose output is taken: "mid_block", "up_blocks_0", ...
    train_model: False: no gradient of reading reaches the drawing model. What
      decays weights changes them all the same: in an OcrModel, name them in the
      optimizer's freeze_rules, too.
  """

  model: models.TextToImageModel
  encoder: nn.Module
  log_snr: float = 4.0
  block: str = "up_blocks_0"
  train_model: bool = True

  def input_shapes(self, batch_size: int = 1) -> dict[str, tuple[int, ...]]:
    """{"images": shape}."""
    return {"images": self.model.input_shapes(batch_size)["images"]}

  def initial_variables(
    self, rng: Array, input_shapes: Mapping[str, tuple[int, ...]]
  ) -> dict[str, PyTree]:
    """The drawing model's, and the encoder's."""
    shapes = {
      **self.model.input_shapes(input_shapes["images"][0]),
      **input_shapes,
    }
    variables = self.model.get_initial_variables(rng, shapes)
    frozen = {"frozen": variables.get("frozen", {})}
    grid = jax.eval_shape(
      lambda params: self._grid(params, jnp.zeros(shapes["images"]), frozen),
      variables["params"],
    )
    own = self.encoder.init(
      jax.random.fold_in(rng, 1),
      patches.extract(jnp.zeros(grid.shape, grid.dtype), 1),
    )
    return merge(variables, _as_reader(own, "encoder"))

  def _grid(
    self, params: PyTree, images: Array, flax_mutables: PyTree | None
  ) -> Array:
    grid = self.model.features(
      params, images, self.log_snr, self.block, flax_mutables
    )
    return grid if self.train_model else jax.lax.stop_gradient(grid)

  def __call__(
    self,
    params: PyTree,
    batch: Batch,
    flax_mutables: PyTree | None = None,
    *,
    enable_dropout: bool = False,
    dropout_rng: Array | None = None,
  ) -> tuple[Array, Array]:
    """Features [B, S, D] of batch["images"] and a mask [B, S], all True."""
    grid = self._grid(params, batch["images"], flax_mutables)
    cut = patches.extract(grid.astype(jnp.float32), 1)
    return _encode(self.encoder, params, cut, enable_dropout, dropout_rng)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OcrModel:
  """Features and ByT5's decoder, trained to read.

  Attributes:
    features: PatchFeatures or UNetFeatures.
    decoder: byt5_decoder.TextDecoder.
    max_text_length: bytes of a text, end of sequence included.
    loss_normalizing_factor: GLOBAL number of examples per optimizer step.
    byte_dropout_rate: share of the decoder's input bytes that training hides
      (word dropout, Bowman et al. 2016), so that it looks at the picture
      instead of guessing from the bytes before.
    beam_size: texts kept while reading; 1 is greedy.
    length_penalty: see decoding.beam_search.
    optimizer_def, feature_converter_cls, input_vocabulary, output_vocabulary:
      injected for the trainers; a model reads none of them.
  """

  features: Any
  decoder: byt5_decoder.TextDecoder
  max_text_length: int
  loss_normalizing_factor: float
  byte_dropout_rate: float = 0.0
  beam_size: int = 1
  length_penalty: float = 0.0
  optimizer_def: Any = None
  feature_converter_cls: Any = None
  input_vocabulary: Any = None
  output_vocabulary: Any = None

  def __post_init__(self) -> None:
    if self.loss_normalizing_factor <= 0:
      raise ValueError(
        f"loss_normalizing_factor (BATCH_SIZE) = {self.loss_normalizing_factor}"
        " must be positive."
      )
    if not 0 <= self.byte_dropout_rate < 1:
      raise ValueError(f"{self.byte_dropout_rate=} is not in [0, 1).")
    if self.beam_size < 1:
      raise ValueError(f"{self.beam_size=} must be positive.")
    if self.max_text_length < 1:
      raise ValueError(f"{self.max_text_length=} must be positive.")

  @property
  def FEATURE_CONVERTER_CLS(self) -> Any:
    return self.feature_converter_cls

  def input_shapes(self, batch_size: int = 1) -> dict[str, tuple[int, ...]]:
    """{batch key: shape} of the batches that the model is made for."""
    return {
      **self.features.input_shapes(batch_size),
      "text_tokens": (batch_size, self.max_text_length),
      "example_id": (batch_size, 2),
    }

  def get_initial_variables(
    self,
    rng: Array,
    input_shapes: Mapping[str, tuple[int, ...]],
    input_types: Mapping[str, Any] | None = None,
  ) -> dict[str, PyTree]:
    """Initial params and their logical axes; frozen networks apart."""
    del input_types
    features_rng, decoder_rng = jax.random.split(rng)
    picture_shapes = {
      name: input_shapes[name] for name in self.features.input_shapes()
    }
    variables = self.features.initial_variables(features_rng, picture_shapes)
    batch = {name: jnp.zeros(s) for name, s in picture_shapes.items()}
    frozen = {"frozen": variables.get("frozen", {})}
    encoded, mask = jax.eval_shape(
      lambda params: self.features(params, batch, frozen), variables["params"]
    )
    decoder = self.decoder.init(
      decoder_rng,
      jnp.zeros(input_shapes["text_tokens"], jnp.int32),
      jnp.zeros(encoded.shape, encoded.dtype),
      jnp.ones(mask.shape, bool),
    )
    return merge(variables, _as_reader(decoder, "decoder"))

  # --- Reading ---------------------------------------------------------------

  def read(
    self,
    params: PyTree,
    batch: Batch,
    *,
    flax_mutables: PyTree | None = None,
    beam_size: int | None = None,
  ) -> decoding.Decoded:
    """Reads the pictures of a batch; what it writes is always valid UTF-8.

    Args:
      params: of this model.
      batch: {"patches" or "images"}; anything else is ignored.
      flax_mutables: the frozen networks.
      beam_size: None is the model's; 1 is greedy.

    Returns:
      tokens [B, max_text_length] int32, their log-probabilities, scores [B].
    """
    beam_size = self.beam_size if beam_size is None else beam_size
    encoded, mask = self.features(params, batch, flax_mutables)
    weights = byt5.unrolled(params[READER]["decoder"])
    cache = self.decoder.init_cache(
      weights, encoded, mask, self.max_text_length
    )

    def step(cache: Any, tokens: Array) -> tuple[Array, Any]:
      return self.decoder.decode_step(weights, cache, tokens)

    constraint = utf8.automaton(self.decoder.config.vocab_size)
    if beam_size == 1:
      return decoding.greedy(
        step, cache, len(encoded), self.max_text_length, constraint
      )
    return decoding.beam_search(
      step,
      cache,
      len(encoded),
      self.max_text_length,
      constraint,
      beam_size=beam_size,
      length_penalty=self.length_penalty,
    )

  # --- Losses ----------------------------------------------------------------

  def logits(
    self,
    params: PyTree,
    batch: Batch,
    flax_mutables: PyTree | None = None,
    *,
    hidden: Array | None = None,
    enable_dropout: bool = False,
    dropout_rng: Array | None = None,
  ) -> Array:
    """Logits [B, L, V] of each byte of text_tokens, given those before it.

    Where `hidden` [B, L] is True, the decoder is not told its input byte.
    """
    inputs = decoder_input_tokens(batch["text_tokens"])
    if hidden is not None:
      inputs = jnp.where(hidden, HIDDEN_ID, inputs)
    dropout: dict[str, Any] = {"enable_dropout": enable_dropout}
    encoded, mask = self.features(
      params, batch, flax_mutables, dropout_rng=dropout_rng, **dropout
    )
    logits: Any = self.decoder.apply(
      {"params": params[READER]["decoder"]},
      inputs,
      encoded,
      mask,
      rngs=contract.dropout_rngs(enable_dropout, dropout_rng),
      **dropout,
    )
    return logits

  def loss_fn(
    self,
    params: PyTree,
    batch: Batch,
    dropout_rng: Array | None,
    flax_mutables: PyTree | None = None,
  ) -> tuple[Array, Any]:
    """Sum over b of the cross-entropy[b] / loss_normalizing_factor, metrics.

    Cross-entropy is in nats per byte, the mean over a text's own bytes.
    """
    dropout: dict[str, Any] = {}
    if dropout_rng is not None:
      rngs = contract.per_example_rngs(dropout_rng, batch["example_id"])
      dropout = {
        "hidden": jax.vmap(
          lambda key: jax.random.bernoulli(
            key, self.byte_dropout_rate, (self.max_text_length,)
          )
        )(rngs),
        "enable_dropout": True,
        # Masks are drawn for a whole part: another one for each part.
        "dropout_rng": jax.random.fold_in(rngs[0], 1),
      }
    logits = self.logits(params, batch, flax_mutables, **dropout)
    loss, metrics = self._score(logits, batch["text_tokens"])
    if flax_mutables is None:
      return loss, metrics
    return loss, (metrics, flax_mutables)

  def eval_fn(
    self, params: PyTree, batch: Batch, flax_mutables: PyTree | None = None
  ) -> tuple[Array, dict[str, Any]]:
    """As loss_fn, without dropout."""
    logits = self.logits(params, batch, flax_mutables)
    return self._score(logits, batch["text_tokens"])

  def _score(
    self, logits: Array, targets: Array
  ) -> tuple[Array, dict[str, Any]]:
    weights = (targets > 0).astype(jnp.float32)
    per_example = losses.cross_entropy(logits, targets, weights)
    hits = jnp.argmax(logits, axis=-1) == targets
    metrics = {
      "loss": contract.average(per_example),
      "byte_accuracy": contract.average(
        losses.masked_mean(hits, weights, axis=-1)
      ),
      # Greedy reading is right exactly where no byte of it errs.
      "exact_match": contract.average(
        jnp.all(hits | (targets == 0), axis=-1).astype(jnp.float32)
      ),
    }
    return jnp.sum(per_example) / self.loss_normalizing_factor, metrics

  # --- T5X's inference -------------------------------------------------------

  def predict_batch(
    self,
    params: PyTree,
    batch: Batch,
    rng: Array | None = None,
    flax_mutables: PyTree | None = None,
  ) -> Array:
    """The bytes read, [B, max_text_length] int32."""
    del rng
    return self.read(params, batch, flax_mutables=flax_mutables).tokens

  def predict_batch_with_aux(
    self,
    params: PyTree,
    batch: Batch,
    rng: Array | None = None,
    flax_mutables: PyTree | None = None,
  ) -> tuple[Array, dict[str, Array]]:
    """As predict_batch, with the reading's score in nats beside it."""
    del rng
    decoded = self.read(params, batch, flax_mutables=flax_mutables)
    return decoded.tokens, {"scores": decoded.scores}

  def score_batch(
    self, params: PyTree, batch: Batch, flax_mutables: PyTree | None = None
  ) -> Array:
    """log p(text_tokens | picture) in nats, [B]."""
    logits = self.logits(params, batch, flax_mutables)
    targets = batch["text_tokens"]
    weights = (targets > 0).astype(jnp.float32)
    per_byte = losses.cross_entropy(logits, targets, weights)
    return -per_byte * jnp.sum(weights, axis=-1)


def decoder_input_tokens(text_tokens: Array) -> Array:
  """The text shifted right behind a 0, as T5 starts: [B, L] -> [B, L]."""
  return jnp.pad(text_tokens, ((0, 0), (1, 0)))[:, :-1]


def merge(first: PyTree, second: PyTree) -> PyTree:
  """Nested dicts as one; where both have a leaf, the first's."""
  if not isinstance(first, Mapping):
    return first
  merged = {**second, **first}
  for name in first.keys() & second.keys():
    merged[name] = merge(first[name], second[name])
  return merged


def _encode(
  encoder: nn.Module,
  params: PyTree,
  cut: Array,
  enable_dropout: bool,
  dropout_rng: Array | None,
) -> tuple[Array, Array]:
  """Features and mask of patches, by the reader's encoder."""
  features: Any = encoder.apply(
    {"params": params[READER]["encoder"]},
    cut,
    enable_dropout=enable_dropout,
    rngs=contract.dropout_rngs(enable_dropout, dropout_rng),
  )
  return features


def _as_reader(variables: PyTree, part: str) -> dict[str, PyTree]:
  """A network's params and params_axes, under the reader's name."""
  return {
    name: {READER: {part: variables[name]}}
    for name in ("params", "params_axes")
  }
