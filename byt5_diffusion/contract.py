"""The model contract: all that the programs know of a model.

T5X's contract, met by duck typing (T5X is never imported), in four protocols:
what is trained, what draws, what enlarges and what reads. Besides these methods
no program calls anything of a model.
"""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax
from clu import metrics as clu_metrics

Array = jax.Array
Batch = Mapping[str, Array]
PyTree = Any


class Model(Protocol):
  """What trainer, evaluation, checkpoints and T5X ask of any model."""

  FEATURE_CONVERTER_CLS: Any
  optimizer_def: Any
  loss_normalizing_factor: float

  def input_shapes(self, batch_size: int = 1) -> dict[str, tuple[int, ...]]:
    """{batch key: shape} of the batches that the model is made for."""

  def get_initial_variables(
    self,
    rng: Array,
    input_shapes: Mapping[str, tuple[int, ...]],
    input_types: Mapping[str, Any] | None = None,
  ) -> dict[str, PyTree]:
    """Returns params, params_axes and, with frozen networks, frozen(_axes)."""

  def loss_fn(
    self,
    params: PyTree,
    batch: Batch,
    dropout_rng: Array | None,
    flax_mutables: PyTree | None = None,
  ) -> tuple[Array, Any]:
    """Returns sum of per-example losses / LOSS_NORMALIZING_FACTOR, metrics."""

  def eval_fn(
    self, params: PyTree, batch: Batch, flax_mutables: PyTree | None = None
  ) -> tuple[Array, dict[str, Any]]:
    """As loss_fn, without randomness: comparable between runs."""


@runtime_checkable
class Draws(Model, Protocol):
  """A model that draws text."""

  max_text_length: int

  def sample(
    self,
    params: PyTree,
    text_tokens: Array,
    rngs: Array,
    *,
    flax_mutables: PyTree | None = None,
    guidance_scale: float | None = None,
    num_steps: int | None = None,
  ) -> Array:
    """Draws images [B, H, W, 3] in [-1, 1], one key per image."""


@runtime_checkable
class Upscales(Model, Protocol):
  """A model that enlarges pictures, told what they show.

  input_shapes()["images"] are the large ones.

  Attributes:
    max_text_length: bytes of a caption, end of sequence included.
    factor: large side / small side.
    max_augmentation: the greatest noise level that `upscale` knows.
  """

  max_text_length: int
  factor: int
  max_augmentation: float

  def downsample(self, images: Array) -> Array:
    """Large pictures to what `upscale` takes: [B, H, W, 3] -> [B, h, w, 3]."""

  def upscale(
    self,
    params: PyTree,
    images_low: Array,
    text_tokens: Array,
    rngs: Array,
    *,
    flax_mutables: PyTree | None = None,
    guidance_scale: float | None = None,
    num_steps: int | None = None,
    augmentation: float | Array | None = None,
  ) -> Array:
    """Enlarges [B, h, w, 3] to [B, H, W, 3] in [-1, 1], one key per image.

    augmentation is the level of the noise that the small pictures get first.
    """


@runtime_checkable
class Reads(Model, Protocol):
  """A model that reads pictures."""

  max_text_length: int

  def read(
    self,
    params: PyTree,
    batch: Batch,
    *,
    flax_mutables: PyTree | None = None,
    beam_size: int | None = None,
  ) -> Any:
    """Reads a batch: decoding.Decoded, always valid UTF-8."""


def per_example_rngs(rng: Array, example_id: Array) -> Array:
  """One key per row: rng folded with both words of example_id [B, 2].

  The draw belongs to the example and not to its row, so neither the split into
  micro-batches nor the number of devices changes the loss.
  """

  def fold(words: Array) -> Array:
    return jax.random.fold_in(jax.random.fold_in(rng, words[0]), words[1])

  return jax.vmap(fold)(example_id)


def average(values: Array) -> clu_metrics.Average:
  """A metric of values [B] that merges over batches."""
  return clu_metrics.Average.from_model_output(values=values)


def dropout_rngs(enabled: bool, rng: Array | None) -> dict[str, Array] | None:
  """What flax calls `rngs`, where dropout is on and has a key."""
  return {"dropout": rng} if enabled and rng is not None else None
