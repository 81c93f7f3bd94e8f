"""Validation at fixed noise levels, and the sample grids of a training run.

Losses compare between runs and steps because nothing about them is random: the
same examples, the same noise levels, noise keyed by example. `evaluate` is the
program; `make_validation` and `make_grid` are what the trainer calls.
"""

import contextlib
import functools
import itertools
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
  contract,
  inference,
  prompts,
  telemetry,
  variables,
)
from byt5_diffusion import partitioning as partitioning_lib
from byt5_diffusion.data import pipeline

PyTree = Any
SAMPLE_SEED = 0
GRID_COLUMNS = 5
# Pictures of the validation split that a model which enlarges shows.
GRID_PICTURES = 5


# What a recipe calls the sizes of a batch.
_SIZES = {
  "images": ("(height, width) of its pictures", "the model's image_size"),
  "patches": ("(number, 2 + 3 size^2) of its patches", "OcrModel.max_patches"),
  "semantic_tokens": (
    "TASK_FEATURE_LENGTHS['semantic_tokens']",
    "the model's max_semantic_length",
  ),
  "text_tokens": (
    "TASK_FEATURE_LENGTHS['text_tokens']",
    "the model's max_text_length",
  ),
}


def check_batch(
  model: contract.Model, shapes: Mapping[str, jax.ShapeDtypeStruct]
) -> None:
  """Raises ValueError where the model and its data disagree on sizes."""
  for name, wanted in model.input_shapes().items():
    if name not in shapes:
      raise ValueError(
        f"the model reads {name!r}, the data give {sorted(shapes)}: bind "
        "FEATURE_CONVERTER_CLS to the converter that makes it."
      )
    found = tuple(shapes[name].shape[1:])
    if found != tuple(wanted[1:]):
      data, setting = _SIZES.get(name, (f"the data's {name}", "the model's"))
      cut = 2 if name == "images" else None
      raise ValueError(
        f"{data} = {_size(found[:cut])}, but {setting} = "
        f"{_size(wanted[1:][:cut])}: bind one to the other."
      )


def _size(shape: Sequence[int]) -> str:
  """A number, or a tuple of several."""
  return str(shape[0]) if len(shape) == 1 else str(tuple(shape))


def make_eval_step(
  model: contract.Model,
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


def _validation_batches(
  open_data: Callable[..., Any],
  batch_size: int,
  count: int,
  partitioning: partitioning_lib.Partitioning,
) -> list[PyTree]:
  """The first batches, of half the size as long as the split fills none."""
  index, hosts = partitioning.host_layout()
  smallest = partitioning.data_size
  while batch_size >= smallest:
    with contextlib.suppress(pipeline.EmptySplit):
      data = open_data(
        batch_size=batch_size, host_index=index, host_count=hosts
      )
      batches = list(itertools.islice(data, count))
      if batches:
        return batches
    batch_size = batch_size // 2 // smallest * smallest
  return []


def make_validation(
  model: contract.Model,
  validation_data: Callable[..., Any] | None,
  batch_size: int,
  eval_steps: int,
  partitioning: partitioning_lib.Partitioning,
) -> Callable[[PyTree, PyTree], dict[str, float]] | None:
  """validate(params, frozen) -> metrics on the same batches every time.

  A split that does not fill a batch is taken in smaller ones; one without an
  example for every device is left out, with a warning.
  """
  if validation_data is None or eval_steps == 0:
    return None
  batches = _validation_batches(
    validation_data, batch_size, eval_steps, partitioning
  )
  if not batches:
    logging.warning("No validation: its split has no example for each device.")
    return None
  eval_step = make_eval_step(model)

  def validate(params: PyTree, frozen: PyTree) -> dict[str, float]:
    return mean_metrics(
      lambda batch: eval_step(params, frozen, partitioning.shard_batch(batch)),
      batches,
    )

  return validate


def make_grid(
  model: Any,
  texts: Sequence[str],
  directory: pathlib.Path,
  validation_data: Callable[..., Any] | None = None,
) -> Callable[[PyTree, PyTree, int], np.ndarray] | None:
  """draw(params, frozen, step) -> images [N, H, W, 3]; also writes a PNG.

  A model that draws draws the texts. One that enlarges does so with the first
  pictures of validation_data, made small: each image is small (as big dots),
  enlarged and true picture side by side. None where there is nothing to show.
  """
  if isinstance(model, contract.Upscales):
    draw = _make_enlargements(model, validation_data)
    columns = 1
  else:
    draw = _make_drawings(model, texts, directory)
    columns = GRID_COLUMNS
  if draw is None:
    return None

  def write(params: PyTree, frozen: PyTree, step: int) -> np.ndarray:
    images = draw(params, frozen)
    if jax.process_index() == 0:
      folder = directory / "samples"
      folder.mkdir(exist_ok=True)
      grid = telemetry.image_grid(images, columns=columns)
      Image.fromarray(grid).save(folder / f"step_{step:08d}.png")
    return images

  return write


def _make_drawings(
  model: Any, texts: Sequence[str], directory: pathlib.Path
) -> Callable[[PyTree, PyTree], np.ndarray] | None:
  if not texts or not isinstance(model, contract.Draws):
    return None
  draw = inference.make_sampler(model)
  rngs = inference.image_rngs(SAMPLE_SEED, texts)

  @functools.cache  # Later: one host of several writes them, just now.
  def tokens() -> Any:
    return prompts.encode(model, prompts.load(model, directory), texts)

  return lambda params, frozen: np.asarray(draw(params, frozen, tokens(), rngs))


def _make_enlargements(
  model: Any, validation_data: Callable[..., Any] | None
) -> Callable[[PyTree, PyTree], np.ndarray] | None:
  if validation_data is None:
    return None
  upscale = inference.make_upscaler(model)

  @functools.cache  # A run that never shows any never opens the data.
  def pictures() -> tuple[Any, ...]:
    # The same ones on every host.
    rows = validation_data(batch_size=1, host_index=0, host_count=1)
    first = list(itertools.islice(rows, GRID_PICTURES))
    if not first:
      raise ValueError(
        "the validation split has no picture to enlarge: SAMPLE_PERIOD = 0 "
        "trains without samples."
      )
    batch = {
      name: np.concatenate([row[name] for row in first]) for name in first[0]
    }
    images, told = batch["images"], prompts.of_batch(batch)
    rng = jax.random.key(SAMPLE_SEED)
    rngs = contract.per_example_rngs(rng, jnp.asarray(batch["example_id"]))
    return images, jax.jit(model.downsample)(images), told, rngs

  def draw(params: PyTree, frozen: PyTree) -> np.ndarray:
    images, *told = pictures()
    drawn = np.asarray(upscale(params, frozen, *told))
    dots = np.asarray(told[0]).repeat(model.factor, 1).repeat(model.factor, 2)
    return np.concatenate([dots, drawn, images], axis=2)

  return draw


def evaluate(
  *,
  model: contract.Model,
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
    model: meets contract.Model.
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
  params, frozen = variables.place(
    model,
    restored.params,
    variables.restore_frozen(restored.extra, checkpoint_path),
    partitioning,
  )
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
  with contextlib.closing(telemetry.TensorBoardWriter(directory)) as writer:
    writer.write_scalars(
      restored.step, {f"eval/{name}": x for name, x in metrics.items()}
    )
  logging.info("Evaluated step %d: loss %.5f", restored.step, metrics["loss"])
  return metrics
