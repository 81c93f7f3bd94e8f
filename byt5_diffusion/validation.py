"""Everything that a recipe builds, without training: `validate`.

Shapes are traced, never allocated, so that a recipe for a pod is planned on a
laptop. Only one thing is run: a step, an evaluation and a sample of the same
recipe with the networks of sizes/tiny.gin.

The result is one tree of plain JSON; validation_report.py makes text and HTML
of it. What is wrong with the recipe is collected in "problems".
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from byt5_diffusion import (
  assignment,
  config,
  contract,
  costs,
  evaluation,
  feature_converters,
  planning,
  recipes,
  trainer,
  trial,
)
from byt5_diffusion import partitioning as partitioning_lib
from byt5_diffusion.data import batch_view

Facts = dict[str, Any]

# Read into memory at most, however many examples are asked for.
_MAX_SAMPLE_BYTES = 2**29
_READ_AT_ONCE = 16
# Examples that are prepared to see how large they are on disk.
_PREPARED = 64
# Room for captions that a recipe cuts short.
_LONG_TEXT = 4096
_MODES = ("train", "eval", "infer")
_NO_DATA = " (--no_data validates the rest without them.)"
_log = logging.getLogger(__name__)


class Problems(list[str]):
  """What is wrong with a recipe, each in one line."""

  @contextlib.contextmanager
  def collecting(self, what: str, remedy: str = "") -> Iterator[None]:
    """An error inside becomes a problem, and what comes after it goes on."""
    try:
      yield
    except Exception as error:
      _log.debug("%s", what, exc_info=True)
      for line in describe(error):
        # A configuration's mistakes name their own place.
        place = "" if isinstance(error, config.ConfigError) else f"{what}: "
        self.note(f"{place}{line}{remedy}")

  def note(self, problem: str) -> None:
    if problem not in self:
      self.append(problem)


def describe(error: Exception) -> list[str]:
  """The message without what gin puts around it; a stranger's with its type."""
  message = str(error).split("\n  In call to configurable")[0].strip()
  kind = type(error)
  ours = kind.__module__.startswith("byt5_diffusion")
  lines = message.splitlines() or [kind.__name__]
  if ours:
    return lines
  # gin raises proxies, whose types are only named like the true ones.
  if isinstance(error, (ValueError, OSError, ImportError)):
    return [" ".join(lines)]
  return [f"{kind.__name__}: {' '.join(lines)[:500]}"]


def validate(
  recipe: str,
  gin_bindings: Sequence[str] = (),
  *,
  num_devices: int | None = None,
  num_examples: int = 256,
  read_data: bool = True,
  compile_step: bool = False,
  say: Callable[[str], None] = lambda line: None,
) -> Facts:
  """Builds all of a recipe and counts what it costs.

  Args:
    recipe: a gin file, as config.parse takes it.
    gin_bindings: "NAME=VALUE".
    num_devices: to lay the arrays out on; None: this machine's, or as many as
      NUM_PARTITIONS wants.
    num_examples: read for the figures of the data.
    read_data: False opens no data: for a machine that has not got them.
    compile_step: as planning.describe.
    say: gets a line per stage.

  Returns:
    Plain JSON: "recipe", "model", "batch", "parameters", "arrays", "mesh",
    "memory", "operations", "data", "caches", "trial" as far as they could be
    found out, and "problems", a list of lines that is empty for a sound recipe.

  Raises:
    ValueError: num_devices or num_examples is not positive.
  """
  if num_examples < 1:
    raise ValueError(f"{num_examples=} must be positive.")
  if num_devices is not None and num_devices < 1:
    raise ValueError(f"{num_devices=} must be positive.")
  problems = Problems()
  facts: Facts = {"recipe": recipe, "bindings": list(gin_bindings)}
  with problems.collecting(recipe):
    modes = recipes.run_modes(recipe, gin_bindings)
    facts["programs"] = modes
    for mode in (mode for mode in _MODES if mode not in modes):
      say(f"{recipe} does not say what to {mode}.")
    # Training last: gin then holds what the rest of the work needs.
    for mode in sorted(modes, key=lambda mode: mode == "train"):
      say(f"{recipe}: reading it for {mode} ...")
      with problems.collecting(mode):
        _check_program(recipe, gin_bindings, mode, read_data, problems)
        if mode == "train":
          run = _Run(recipe, gin_bindings, num_devices, problems, facts, say)
          run.check(num_examples if read_data else 0, compile_step)
    if "train" not in modes:
      problems.note(f"{recipe} trains nothing: include 'runs/train.gin'.")
  facts["problems"] = list(problems)
  return facts


def _check_program(
  recipe: str,
  gin_bindings: Sequence[str],
  mode: str,
  read_data: bool,
  problems: Problems,
) -> None:
  """Parses and builds for one program; of others than train, reads a row."""
  recipes.parse(recipe, gin_bindings, mode)
  arguments = recipes.arguments(mode)
  if mode == "train" or not read_data:
    return
  for name, data in arguments.items():
    if name.endswith("_data") and callable(data):
      with problems.collecting("data", _NO_DATA):
        shapes = _shapes(_sample(data, 1)[0])
        with problems.collecting("data and model"):
          evaluation.check_batch(arguments["model"], shapes)


# --- A training run ----------------------------------------------------------


class _Run:
  """A training run's pieces, found out one after the other into `facts`."""

  def __init__(
    self,
    recipe: str,
    gin_bindings: Sequence[str],
    num_devices: int | None,
    problems: Problems,
    facts: Facts,
    say: Callable[[str], None],
  ):
    self.recipe, self.gin_bindings = recipe, gin_bindings
    self.problems, self.facts, self.say = problems, facts, say
    self.program = recipes.parse(recipe, gin_bindings, "train")
    self.arguments = recipes.arguments("train")
    self.model: contract.Model = self.arguments["model"]
    self.batch_size: int = self.arguments["batch_size"]
    self.rows: list[batch_view.Row] = []
    self.partitioning = self._planned(num_devices)

  def _planned(self, num_devices: int | None) -> Any:
    wanted: partitioning_lib.Partitioning = self.arguments["partitioning"]
    if num_devices is None:
      here = wanted.num_devices or jax.device_count()
      fits = here % wanted.num_partitions == 0
      num_devices = here if fits else wanted.num_partitions
    return wanted.planned(num_devices)

  def check(self, num_examples: int, compile_step: bool) -> None:
    """All stages; one that fails leaves the ones that don't need it."""
    catch = self.problems.collecting
    with catch("model"):
      self._describe_model()
    if num_examples:
      self.say("reading data ...")
      with catch("data", _NO_DATA):
        self._read(num_examples)
    with catch("weights"):
      self._check_paths()
    with catch("data and model"):
      self._compare()
      self.say("tracing the model ...")
      with catch("model"):
        self._plan(compile_step)
        with catch("trial at tiny size"):
          self._try()

  # --- Model and data --------------------------------------------------------

  def _describe_model(self) -> None:
    model = self.model
    self.facts["model"] = {
      "class": type(model).__name__,
      "draws": isinstance(model, contract.Draws),
      "upscales": isinstance(model, contract.Upscales),
      "reads": isinstance(model, contract.Reads),
      "batch_size": self.batch_size,
      "num_microbatches": self.arguments["num_microbatches"],
      "train_steps": self.arguments["total_steps"],
    }
    trainer.check_batch_size(
      model,
      self.partitioning,
      self.batch_size,
      self.arguments["num_microbatches"],
    )

  def _read(self, num_examples: int) -> None:
    """A sample of the training data, and its figures."""
    before = batch_view.ledgers_now()
    batches = recipes.open_data(self.arguments["train_data"], 1)
    row_bytes = costs.tree_bytes(dict(next(batches)))
    count = min(num_examples, max(8, _MAX_SAMPLE_BYTES // row_bytes))
    recipes.close(batches)
    sample = _sample(self.arguments["train_data"], count)
    self.rows = batch_view.rows(sample)[:count]
    length = dict(self.model.input_shapes()).get("text_tokens", (0, None))[1]
    facts = batch_view.survey(self.rows, length)
    facts["rejected"] = batch_view.rejected_since(before)
    facts["split_examples"] = batches.num_examples
    facts["too_long"] = self._too_long(count, length)
    self.facts["data"] = facts

  def _too_long(self, count: int, length: int | None) -> int | None:
    """Captions of more bytes than the model reads; None where unknown."""
    lengths = self.program.macro("TASK_FEATURE_LENGTHS")
    if not isinstance(lengths, Mapping) or self.program.macro("PREPARED_DIR"):
      return None
    if length is None or "text_tokens" not in lengths:
      return None
    roomy = {**lengths, "text_tokens": max(_LONG_TEXT, length)}
    try:
      sample = _sample(
        self.arguments["train_data"],
        count,
        task_feature_lengths=roomy,
        keep=("text_tokens", "example_id"),
      )
    except Exception:  # A task of its own mind: then nobody knows.
      _log.debug("longer captions", exc_info=True)
      return None
    rows = batch_view.rows(sample)[:count]
    return sum(len(row.tokens) > length for row in rows)

  def _compare(self) -> None:
    """Every batch key as the data give it and as the model wants it."""
    wanted = self.model.input_shapes(self.batch_size)
    given: Facts = {}
    if self.rows:
      given = {
        name: ((self.batch_size, *value.shape), str(value.dtype))
        for name, value in self.rows[0].arrays.items()
      }
    self.facts["batch"] = [
      {
        "key": name,
        "model": list(wanted[name]) if name in wanted else None,
        "data": list(given[name][0]) if name in given else None,
        "dtype": given[name][1] if name in given else _dtype(name),
      }
      for name in dict.fromkeys([*wanted, *given])
    ]
    if given:
      shapes = {
        name: jax.ShapeDtypeStruct(shape, dtype)
        for name, (shape, dtype) in given.items()
      }
      evaluation.check_batch(self.model, shapes)
      return
    self._compare_lengths(wanted)

  def _compare_lengths(self, wanted: Mapping[str, tuple[int, ...]]) -> None:
    """What can be said without data: the lengths that the recipe names."""
    lengths = self.program.macro("TASK_FEATURE_LENGTHS")
    if not isinstance(lengths, Mapping):
      return
    for feature in batch_view.FEATURES.values():
      length = lengths.get(feature.task_name)
      shape = wanted.get(feature.batch_name)
      if length and shape and length != shape[1]:
        raise ValueError(
          f"TASK_FEATURE_LENGTHS[{feature.task_name!r}] = {length}, but the "
          f"model's {feature.batch_name!r} is {tuple(shape)}: bind one to the "
          "other."
        )

  def _plan(self, compile_step: bool) -> None:
    batch = {
      row["key"]: jax.ShapeDtypeStruct(
        tuple(row["model"]), np.dtype(row["dtype"])
      )
      for row in self.facts["batch"]
      if row["model"]
    }
    plan = planning.make(self.arguments, batch, self.partitioning)
    self._check_rules(plan)
    self.say("tracing a step and counting what it costs ...")
    self.facts |= planning.describe(plan, compile_step)
    self._add_caches(planning.embeddings(plan))

  def _check_rules(self, plan: planning.Plan) -> None:
    """Rules that take weights from elsewhere fit; reads no array."""
    for name, collection in (
      ("initial_checkpoint", "params"),
      ("frozen_checkpoint", "frozen"),
    ):
      source = self.arguments.get(name)
      if (
        isinstance(source, assignment.InitialCheckpoint)
        and recipes.NOWHERE not in source.paths
        and collection in plan.variables
      ):
        source.check(plan.variables[collection])

  def _add_caches(self, embeddings: Facts | None) -> None:
    caches = self.facts["caches"] = {}
    if self.rows:
      each = batch_view.prepared_bytes(self.rows[:_PREPARED])
      caches["prepared"] = {"bytes_per_example": each}
    if embeddings is not None:
      caches["embeddings"] = embeddings
      if self.rows:
        share = np.mean([len(row.tokens) for row in self.rows])
        share = float(share) / embeddings["length"]
        embeddings["mean_bytes_without_padding"] = (
          embeddings["bytes_per_example"] * share
        )

  def _check_paths(self) -> None:
    for name in ("frozen_checkpoint", "initial_checkpoint"):
      source = self.arguments.get(name)
      # Of an InitialCheckpoint, or the path of a tree, or nothing.
      for path in getattr(source, "paths", [source]):
        known = isinstance(path, str) and path != recipes.NOWHERE
        if known and (gone := recipes.missing_path(path)):
          raise ValueError(
            f"trainer.train.{name} = {gone!r}: there is no such file or folder."
          )

  def _try(self) -> None:
    """The same recipe with tiny networks, really run."""
    found = trial.run(
      self.recipe, self.gin_bindings, self.program, self.rows, self.say
    )
    self.facts["trial"] = found
    for name in ("train_loss", "eval_loss", "draw", "read"):
      if found.get(name, 0.0) is None:
        self.problems.note(f"trial at tiny size: {name} is not finite.")


# --- Pieces ------------------------------------------------------------------


def _sample(
  data: Callable[..., Any],
  count: int,
  *,
  keep: Sequence[str] | None = None,
  **overrides: Any,
) -> list[dict[str, np.ndarray]]:
  """Batches of `count` rows in all, in the data's order."""
  batches = recipes.open_data(data, min(count, _READ_AT_ONCE), **overrides)
  try:
    kept = (
      {name: x for name, x in batch.items() if keep is None or name in keep}
      for batch in batches
    )
    return batch_view.take(kept, count)
  finally:
    recipes.close(batches)


def _shapes(batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
  return {
    name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()
  }


def _dtype(name: str) -> str:
  feature: feature_converters.Feature | None = batch_view.FEATURES.get(name)
  return feature.batch_dtype if feature else "float32"
