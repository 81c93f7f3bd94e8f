"""One real step, evaluation and sample of a recipe with tiny networks: `run`.

Pictures and captions keep the recipe's sizes; the networks take those of
sizes/tiny.gin, the batch a few rows. Everything is compiled once and run once,
so nothing is optimized.
"""

import dataclasses
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from typing import Any

import jax
import numpy as np

from byt5_diffusion import (
  compilation,
  config_program,
  contract,
  costs,
  evaluation,
  planning,
  recipes,
  telemetry,
  train_state,
)
from byt5_diffusion import partitioning as partitioning_lib
from byt5_diffusion.data import batch_view, text

PyTree = Any
Facts = dict[str, Any]

# A trial is a matter of seconds on a laptop, or it is left out.
MAX_OPERATIONS = 2e12
MAX_BYTES = 4 * 2**30
_ROWS = 2
# Two steps of a sampler compile as many do, and are soon run.
_SAMPLING_STEPS = 2
# Of synthetic captions.
_SAYS = "a trial of bytes"


def run(
  recipe: str,
  gin_bindings: Sequence[str],
  program: config_program.Program,
  rows: Sequence[batch_view.Row],
  say: Callable[[str], None] = lambda line: None,
) -> Facts:
  """Builds the small recipe, trains a step, evaluates, and draws or reads.

  Args:
    recipe, gin_bindings: as recipes.parse.
    program: the recipe as it was parsed.
    rows: of the recipe's data; too few: batches are made up.
    say: gets a line per stage.

  Returns:
    Plain JSON: losses and seconds, or "skipped" with the reason. A loss or a
    picture that is not finite is None.
  """
  small, arguments = _sized_down(recipe, gin_bindings, program)
  batch_size = arguments["batch_size"]
  model: contract.Model = arguments["model"]
  batch = _real(model, rows, batch_size)
  facts: Facts = {
    "data": "synthetic" if batch is None else "real",
    "batch_size": batch_size,
    "replaced": small,
  }
  if batch is None:
    batch = synthetic(model, batch_size)
  plan = planning.make(arguments, _shapes(batch), arguments["partitioning"])
  step = planning.trace_step(plan)
  if reason := _too_big(step, costs.tree_bytes(plan.state)):
    return facts | {"skipped": reason}
  say("compiling and running a step, an evaluation and a sample ...")
  return facts | _run(plan, step, batch)


def _sized_down(
  recipe: str, gin_bindings: Sequence[str], program: config_program.Program
) -> tuple[dict[str, Any], dict[str, Any]]:
  """The macros that were replaced, and the arguments of trainer.train."""
  small = recipes.sized_down(program, _ROWS)
  kept = recipes.without(gin_bindings, small)
  bindings = [f"{name}={value!r}" for name, value in small.items()]
  recipes.parse(recipe, [*kept, *bindings], "train")
  arguments = recipes.arguments("train")
  wanted: partitioning_lib.Partitioning = arguments["partitioning"]
  arguments["partitioning"] = dataclasses.replace(
    wanted, num_partitions=1, num_devices=1
  )
  # Two parts show what many do.
  arguments["num_microbatches"] = min(arguments["num_microbatches"], _ROWS)
  return small, arguments


# --- Batches -----------------------------------------------------------------


def _real(
  model: contract.Model, rows: Sequence[batch_view.Row], batch_size: int
) -> dict[str, np.ndarray] | None:
  """The first rows as a batch; None where they are too few or do not fit."""
  if len(rows) < batch_size:
    return None
  batch = {
    name: np.stack([row.arrays[name] for row in rows[:batch_size]])
    for name in rows[0].arrays
  }
  wanted = model.input_shapes(batch_size)
  fits = all(
    name in batch and batch[name].shape == tuple(shape)
    for name, shape in wanted.items()
  )
  return batch if fits else None


def synthetic(
  model: contract.Model, batch_size: int, seed: int = 0
) -> dict[str, np.ndarray]:
  """A batch of the shapes that a model wants: noise with captions."""
  rng = np.random.default_rng(seed)
  batch: dict[str, np.ndarray] = {}
  for name, shape in model.input_shapes(batch_size).items():
    if name == "text_tokens":
      batch[name] = text.encode_batch([_SAYS] * batch_size, shape[1])
    elif name == "semantic_tokens":  # An empty caption is one in any language.
      batch[name] = np.zeros(shape, np.int32)
      batch[name][:, 0] = text.EOS_ID
    elif name == "example_id":
      batch[name] = rng.integers(0, 2**32, shape, np.uint32)
    elif name == "patches":
      batch[name] = rng.uniform(-1, 1, shape).astype(np.float32)
      batch[name][..., 0] = 1  # One row of patches.
      batch[name][..., 1] = np.arange(1, shape[1] + 1)
    else:
      feature = batch_view.FEATURES.get(name)
      dtype = feature.batch_dtype if feature else "float32"
      batch[name] = rng.uniform(-1, 1, shape).astype(dtype)
  return batch


def _shapes(batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
  return {
    name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()
  }


# --- Running -----------------------------------------------------------------


def _too_big(step: Any, state_bytes: int) -> str | None:
  operations = costs.operations(step.jaxpr).total
  size = costs.peak_bytes(step.jaxpr) + state_bytes
  if operations <= MAX_OPERATIONS and size <= MAX_BYTES:
    return None
  return (
    f"even with tiny networks a step takes {operations:.1e} operations and "
    f"{size / 2**30:.1f} GiB: the pictures are large."
  )


def _run(
  plan: planning.Plan, step: Any, batch: Mapping[str, np.ndarray]
) -> Facts:
  started = time.monotonic()
  telemetry.enable_compilation_cache()
  rng = jax.random.key(0)
  params = plan.state.eval_params
  evaluated: Any = evaluation.make_eval_step(plan.model)
  used = list(planning.uses(plan.model, params, plan.frozen, plan.batch))
  few = {"draw": {"num_steps": _SAMPLING_STEPS}}
  traced = {
    "step": step,
    "init": jax.jit(_init(plan)).trace(rng),
    "eval": evaluated.trace(params, plan.frozen, plan.batch),
  } | {
    name: use.trace(*arguments, **few.get(name, {}))
    for name, use, arguments in used
  }
  compiled = dict(zip(traced, _compile(list(traced.values())), strict=True))

  state, frozen = compiled["init"](rng)
  state, output = compiled["step"](state, frozen, dict(batch), rng)
  params = state.eval_params
  metrics = compiled["eval"](params, frozen, dict(batch))
  facts: Facts = {
    "train_loss": _finite(output["metrics"]["loss"].compute()),
    "skipped_steps": int(state.skipped_steps),
    "eval_loss": _finite(metrics["loss"].compute()),
  }
  for name, _, arguments in planning.uses(plan.model, params, frozen, batch):
    made = jax.device_get(compiled[name](*arguments))
    finite = all(np.isfinite(x).all() for x in jax.tree.leaves(made))
    facts[name] = "finite" if finite else None
  return facts | {"seconds": round(time.monotonic() - started, 1)}


def _init(plan: planning.Plan) -> Callable[[jax.Array], Any]:
  """rng -> (state, frozen), of the batch's shapes."""
  model = plan.model
  shapes = {name: x.shape for name, x in plan.batch.items()}

  def init(rng: jax.Array) -> tuple[PyTree, PyTree]:
    variables = model.get_initial_variables(rng, shapes)
    frozen = variables.get("frozen")
    state = train_state.create(
      variables["params"],
      model.optimizer_def.tx,
      ema=plan.arguments["ema_decay"] is not None,
    )
    return state, None if frozen is None else {"frozen": frozen}

  return init


def _compile(traced: Sequence[Any]) -> list[Any]:
  """Side by side, and without optimizing: each runs once."""
  options = compilation.quick_options()
  lowered = [function.lower() for function in traced]
  with futures.ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
    return list(pool.map(lambda x: x.compile(options), lowered))


def _finite(value: Any) -> float | None:
  value = float(value)
  return value if math.isfinite(value) else None
