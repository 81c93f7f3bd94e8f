"""JointModel: one network of parts that draws and reads, trained at once.

  loss = drawing's loss + reading_weight * reading's loss

Both see the same pictures and captions. Their parameters lie side by side in
one tree: what draws under "unet" and "text_encoder", what reads under "reader".
With ocr.UNetFeatures the reader looks through the drawing network's eyes and so
teaches it to see letters; with ocr.PatchFeatures it has its own.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from byt5_diffusion import decoding, models, ocr

Array = jax.Array
Batch = Mapping[str, Array]
PyTree = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class JointModel:
  """A TextToImageModel and an OcrModel that learn together.

  Attributes:
    text_to_image: draws; its sizes, optimizer and converter are the whole's.
    ocr: reads; made for pictures ("images") of the same size.
    reading_weight: of a nat per byte beside the denoising loss.
  """

  text_to_image: models.TextToImageModel
  ocr: ocr.OcrModel
  reading_weight: float = 0.1

  def __post_init__(self) -> None:
    drawn, read = self.text_to_image, self.ocr
    if drawn.loss_normalizing_factor != read.loss_normalizing_factor:
      raise ValueError(
        "JointModel: both models' loss_normalizing_factor must be BATCH_SIZE; "
        f"found {drawn.loss_normalizing_factor} and "
        f"{read.loss_normalizing_factor}."
      )
    shapes = drawn.input_shapes()
    for name, shape in read.input_shapes().items():
      if shapes.get(name) != shape:
        raise ValueError(
          f"JointModel: ocr reads {name!r} of shape {shape}, text_to_image "
          f"draws {shapes.get(name, 'none')}: bind PatchFeatures.image_size "
          "and OcrModel.max_text_length to the drawing model's."
        )

  @property
  def FEATURE_CONVERTER_CLS(self) -> Any:
    return self.text_to_image.FEATURE_CONVERTER_CLS

  @property
  def optimizer_def(self) -> Any:
    return self.text_to_image.optimizer_def

  @property
  def loss_normalizing_factor(self) -> float:
    return self.text_to_image.loss_normalizing_factor

  @property
  def max_text_length(self) -> int:
    return self.text_to_image.max_text_length

  @property
  def conditioning_mode(self) -> str:
    return self.text_to_image.conditioning_mode

  @property
  def semantic_vocab_size(self) -> int | None:
    return self.text_to_image.semantic_vocab_size

  @property
  def beam_size(self) -> int:
    return self.ocr.beam_size

  @property
  def input_vocabulary(self) -> Any:
    return self.text_to_image.input_vocabulary

  @property
  def output_vocabulary(self) -> Any:
    return self.text_to_image.output_vocabulary

  def input_shapes(self, batch_size: int = 1) -> dict[str, tuple[int, ...]]:
    """{batch key: shape} of the batches that the model is made for."""
    return self.text_to_image.input_shapes(batch_size)

  def get_initial_variables(
    self,
    rng: Array,
    input_shapes: Mapping[str, tuple[int, ...]],
    input_types: Mapping[str, Any] | None = None,
  ) -> dict[str, PyTree]:
    """Both models' variables; the drawing part starts as it does alone."""
    drawn = self.text_to_image.get_initial_variables(
      rng, input_shapes, input_types
    )
    read = self.ocr.get_initial_variables(
      jax.random.fold_in(rng, 1), input_shapes, input_types
    )
    return ocr.merge(drawn, read)

  # --- Losses ----------------------------------------------------------------

  def loss_fn(
    self,
    params: PyTree,
    batch: Batch,
    dropout_rng: Array | None,
    flax_mutables: PyTree | None = None,
  ) -> tuple[Array, Any]:
    """Both losses' sum, and the metrics of both; reading's as "reading/..."."""
    loss, aux = self.text_to_image.loss_fn(
      params, batch, dropout_rng, flax_mutables
    )
    metrics = aux if flax_mutables is None else aux[0]
    rng = None if dropout_rng is None else jax.random.fold_in(dropout_rng, 1)
    reading, reading_metrics = self.ocr.loss_fn(
      params, batch, rng, flax_mutables
    )
    if flax_mutables is not None:
      reading_metrics = reading_metrics[0]
    loss, metrics = self._sum(loss, metrics, reading, reading_metrics)
    return loss, metrics if flax_mutables is None else (metrics, aux[1])

  def eval_fn(
    self, params: PyTree, batch: Batch, flax_mutables: PyTree | None = None
  ) -> tuple[Array, dict[str, Any]]:
    """As loss_fn, without randomness."""
    return self._sum(
      *self.text_to_image.eval_fn(params, batch, flax_mutables),
      *self.ocr.eval_fn(params, batch, flax_mutables),
    )

  def _sum(
    self,
    loss: Array,
    metrics: dict[str, Any],
    reading: Array,
    reading_metrics: dict[str, Any],
  ) -> tuple[Array, dict[str, Any]]:
    named = {f"reading/{name}": x for name, x in reading_metrics.items()}
    return loss + self.reading_weight * reading, {**metrics, **named}

  # --- Drawing and reading ---------------------------------------------------

  def sample(
    self, params: PyTree, text_tokens: Array, rngs: Array, **options: Any
  ) -> Array:
    """TextToImageModel.sample."""
    return self.text_to_image.sample(params, text_tokens, rngs, **options)

  def read(
    self, params: PyTree, batch: Batch, **options: Any
  ) -> decoding.Decoded:
    """OcrModel.read."""
    return self.ocr.read(params, batch, **options)

  def predict_batch(
    self,
    params: PyTree,
    batch: Batch,
    rng: Array | None = None,
    flax_mutables: PyTree | None = None,
  ) -> Array:
    """Images [B, H, W, 3] for the captions of a batch."""
    return self.text_to_image.predict_batch(params, batch, rng, flax_mutables)

  def predict_batch_with_aux(
    self,
    params: PyTree,
    batch: Batch,
    rng: Array | None = None,
    flax_mutables: PyTree | None = None,
  ) -> tuple[Array, dict[str, Array]]:
    """As predict_batch, with what the reader reads in its own images."""
    images, aux = self.text_to_image.predict_batch_with_aux(
      params, batch, rng, flax_mutables
    )
    decoded = self.read(params, {"images": images}, flax_mutables=flax_mutables)
    return images, {
      **aux,
      "reading": decoded.tokens,
      "reading_scores": decoded.scores,
    }

  def score_batch(
    self, params: PyTree, batch: Batch, flax_mutables: PyTree | None = None
  ) -> Array:
    """Minus the denoising loss at the fixed noise levels, [B]."""
    return self.text_to_image.score_batch(params, batch, flax_mutables)
