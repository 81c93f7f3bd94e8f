"""Validation at fixed noise levels, and the sample grids of a training run.

Losses compare between runs and steps because nothing about them is random: the
same examples, the same noise levels, noise keyed by example. `evaluate` is the
program; `make_validation` and `make_sample_grid` are what the trainer calls.
"""

import functools
import json
import logging
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from byt5_diffusion import (
  checkpoints,
  inference,
  models,
  telemetry,
  variables,
)
from byt5_diffusion import partitioning as partitioning_lib
from byt5_diffusion.data import text

PyTree = Any
SAMPLE_SEED = 0
GRID_COLUMNS = 4


def check_batch(model: Any, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> None:
  """Raises ValueError where the model and its data disagree on sizes."""
  images = tuple(shapes["images"].shape[1:3])
  if images != tuple(model.image_size):
    raise ValueError(
      f"the data's images are {images[0]} x {images[1]} pixels, but "
      f"TextToImageModel.image_size = {tuple(model.image_size)}: bind it to "
      "the task's size."
    )
  length = shapes["text_tokens"].shape[1]
  if length != model.max_text_length:
    raise ValueError(
      f"TASK_FEATURE_LENGTHS['text_tokens'] = {length}, but "
      f"TextToImageModel.max_text_length = {model.max_text_length}."
    )


def make_eval_step(
  model: models.Model,
) -> Callable[[PyTree, PyTree, PyTree], PyTree]:
  """A jitted (params, frozen, batch) -> metrics."""

  def eval_step(params: PyTree, frozen: PyTree, batch: PyTree) -> PyTree:
    if frozen is None:
      return model.eval_fn(params, batch)[1]
    return model.eval_fn(params, batch, frozen)[1]

  return jax.jit(eval_step)


def mean_metrics(
  step: Callable[[PyTree], PyTree], batches: Sequence[PyTree]
) -> dict[str, float]:
  """Metrics merged over batches, as floats."""
  parts = [jax.device_get(step(batch)) for batch in batches]
  merged = functools.reduce(
    lambda a, b: {name: a[name].merge(b[name]) for name in a}, parts
  )
  return {name: float(metric.compute()) for name, metric in merged.items()}


def first_batches(data: Any, count: int, what: str) -> list[PyTree]:
  """The first `count` batches of data, or all it has; never none."""
  batches = [batch for _, batch in zip(range(count), data, strict=False)]
  if not batches:
    raise ValueError(
      f"{what} gives no full batch: its split is smaller than the batch size."
    )
  return batches


def make_validation(
  model: models.Model,
  validation_data: Callable[..., Any] | None,
  batch_size: int,
  eval_steps: int,
  partitioning: partitioning_lib.Partitioning,
) -> Callable[[PyTree, PyTree], dict[str, float]] | None:
  """validate(params, frozen) -> metrics on the same batches every time.

  A split that is smaller than a batch is taken in smaller ones; one without
  an example for every device is left out, with a warning.
  """
  if validation_data is None or eval_steps == 0:
    return None
  index, count = partitioning.host_layout()
  open_data = functools.partial(
    validation_data, host_index=index, host_count=count
  )
  data = open_data(batch_size=batch_size)
  total = data.num_examples
  if total is not None and total < batch_size:
    batch_size = total // partitioning.data_size * partitioning.data_size
    if not batch_size:
      logging.warning(
        "No validation: its split has %d examples for %d devices.",
        total,
        partitioning.data_size,
      )
      return None
    data = open_data(batch_size=batch_size)
  batches = first_batches(data, eval_steps, "the validation data")
  eval_step = make_eval_step(model)

  def validate(params: PyTree, frozen: PyTree) -> dict[str, float]:
    return mean_metrics(
      lambda batch: eval_step(params, frozen, partitioning.shard_batch(batch)),
      batches,
    )

  return validate


def make_sample_grid(
  model: Any, texts: Sequence[str], directory: pathlib.Path
) -> Callable[[PyTree, PyTree, int], np.ndarray] | None:
  """draw(params, frozen, step) -> images [N, H, W, 3]; also writes a PNG."""
  if not texts:
    return None
  draw = inference.make_sampler(model)
  tokens = jnp.asarray(text.encode_batch(texts, model.max_text_length))
  rngs = inference.image_rngs(SAMPLE_SEED, texts)

  def write(params: PyTree, frozen: PyTree, step: int) -> np.ndarray:
    images = np.asarray(draw(params, frozen, tokens, rngs))
    if jax.process_index() == 0:
      folder = directory / "samples"
      folder.mkdir(exist_ok=True)
      grid = telemetry.image_grid(images, columns=GRID_COLUMNS)
      Image.fromarray(grid).save(folder / f"step_{step:08d}.png")
    return images

  return write


def evaluate(
  *,
  model: models.Model,
  validation_data: Callable[..., Any],
  partitioning: partitioning_lib.Partitioning,
  checkpoint_path: str,
  output_dir: str,
  batch_size: int,
  eval_steps: int = 100,
  step: int | None = None,
  use_ema: bool = True,
) -> dict[str, float]:
  """Scores a checkpoint at the fixed noise levels; writes metrics.json.

  Args:
    model: meets models.Model.
    validation_data: as trainer.train's.
    partitioning: mesh and rules.
    checkpoint_path: a run's MODEL_DIR.
    output_dir: gets metrics.json and TensorBoard events; created if missing.
    batch_size: GLOBAL.
    eval_steps: batches at most.
    step: None is the last committed one.
    use_ema: score the averaged parameters.

  Raises:
    checkpoints.CheckpointError: no readable checkpoint there.
  """
  telemetry.enable_compilation_cache()
  restored = checkpoints.restore_params(checkpoint_path, step, ema=use_ema)
  variables.check_params(model, restored.params, checkpoint_path)
  params, extra = restored.params, restored.extra
  frozen = variables.restore_frozen(extra, checkpoint_path)
  validate = make_validation(
    model, validation_data, batch_size, eval_steps, partitioning
  )
  if validate is None:
    raise ValueError(
      "there is nothing to score: eval_steps is 0, or the split too small."
    )
  metrics = validate(params, frozen)
  directory = pathlib.Path(output_dir).absolute()
  directory.mkdir(parents=True, exist_ok=True)
  record = {"step": restored.step, "use_ema": use_ema, **metrics}
  (directory / "metrics.json").write_text(json.dumps(record, indent=2) + "\n")
  writer = telemetry.TensorBoardWriter(str(directory))
  writer.write_scalars(
    restored.step, {f"eval/{name}": x for name, x in metrics.items()}
  )
  writer.close()
  logging.info("Evaluated step %d: loss %.5f", restored.step, metrics["loss"])
  return metrics
