"""What a training run costs, from shapes alone: `plan`.

Parameters, where a mesh puts them, memory by kind, operations per example. A
model of any size is planned anywhere: nothing is allocated or compiled.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from byt5_diffusion import (
  compilation,
  contract,
  costs,
  inference,
  prompts,
  train_state,
  trainer,
)
from byt5_diffusion import partitioning as partitioning_lib

PyTree = Any
Facts = dict[str, Any]
Shapes = Mapping[str, jax.ShapeDtypeStruct]

ACTIVATIONS = "activations"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """A training run as shapes.

  Attributes:
    arguments: of trainer.train (recipes.arguments).
    batch: {key: shape and dtype} of the global batch.
    partitioning: rules on a mesh, which may be planned.
    variables: what the model's get_initial_variables gives, as shapes.
    state: train_state.TrainState, as shapes.
  """

  arguments: Mapping[str, Any]
  batch: Shapes
  partitioning: partitioning_lib.Partitioning
  variables: PyTree
  state: PyTree

  @property
  def model(self) -> contract.Model:
    return self.arguments["model"]

  @property
  def frozen(self) -> PyTree:
    """The fourth argument of loss_fn, or None."""
    frozen = self.variables.get("frozen")
    return None if frozen is None else {"frozen": frozen}


def make(
  arguments: Mapping[str, Any],
  batch: Shapes,
  partitioning: partitioning_lib.Partitioning,
) -> Plan:
  """Traces the variables and the state."""
  model: contract.Model = arguments["model"]
  shapes = {name: x.shape for name, x in batch.items()}
  variables: PyTree = jax.eval_shape(
    lambda rng: model.get_initial_variables(rng, shapes), jax.random.key(0)
  )
  state = jax.eval_shape(
    lambda params: train_state.create(
      params,
      model.optimizer_def.tx,
      ema=arguments["ema_decay"] is not None,
    ),
    variables["params"],
  )
  return Plan(
    arguments=arguments,
    batch=batch,
    partitioning=partitioning,
    variables=variables,
    state=state,
  )


def describe(plan: Plan, compile_step: bool = False) -> Facts:
  """All that is known of it: plain JSON.

  Args:
    plan: of `make`.
    compile_step: ask XLA, on this machine, for the memory of the whole step,
      which may take minutes; otherwise it is estimated (costs.peak_bytes).

  Returns:
    "parameters" by collection, part and module; "mesh"; "arrays", each with its
    axes and layout; "memory" by kind; "operations" per example.
  """
  facts: Facts = {
    "parameters": {
      home: _counts(plan.variables[home])
      for home in ("params", "frozen")
      if home in plan.variables
    }
  }
  facts |= _layout(plan)
  step = trace_step(plan)
  gradients = facts["memory"][-1]["bytes"]
  if compile_step:
    peak, how = _xla_peak_bytes(step), f"XLA on {jax.default_backend()}"
  else:
    peak, how = costs.peak_bytes(step.jaxpr), "estimate"
  facts["memory"].append(activations(plan, peak - gradients, how))
  facts["operations"] = _operations(plan, step)
  return facts


# --- Arrays and memory -------------------------------------------------------


def _layout(plan: Plan) -> Facts:
  """Logical axes and mesh layout of every array; bytes per device."""
  partitioning, variables = plan.partitioning, plan.variables
  arrays, shardings = [], {}
  for home in ("params", "frozen"):
    if home in variables:
      axes = partitioning_lib.logical_axes(variables[f"{home}_axes"])
      shardings[home] = partitioning.param_shardings(variables[home], axes)
      arrays += _layouts(home, variables[home], axes, shardings[home])
  params, state = variables["params"], plan.state
  states = partitioning.state_shardings(state, params, shardings["params"])
  memory = {
    "parameters": (params, shardings["params"]),
    "optimizer state": (state.opt_state, states.opt_state),
    "averaged parameters": (state.ema_params, states.ema_params),
    "frozen networks": (variables.get("frozen"), shardings.get("frozen")),
    "gradients": (params, shardings["params"]),
  }
  return {
    "mesh": {
      "axes": dict(partitioning.mesh.shape),
      "devices": partitioning.mesh.size,
      "devices_here": jax.device_count(),
    },
    "arrays": arrays,
    "memory": [
      {
        "what": what,
        "bytes": costs.tree_bytes(tree),
        "bytes_per_device": sum(
          _local_bytes(leaf, sharding)
          for leaf, sharding in zip(
            jax.tree.leaves(tree), jax.tree.leaves(shards), strict=True
          )
        ),
      }
      for what, (tree, shards) in memory.items()
    ],
  }


def activations(plan: Plan, size: int, how: str) -> Facts:
  """The row of "memory" for all else that is alive at a step's peak.

  Args:
    plan: its data axis shares them out.
    size: bytes on all devices.
    how: who says so.
  """
  return {
    "what": ACTIVATIONS,
    "bytes": max(size, 0),
    "bytes_per_device": max(size, 0) // plan.partitioning.data_size,
    "how": how,
  }


def _counts(tree: PyTree) -> Facts:
  """Parameters and bytes: in all, by top-level part, by module."""
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  parts: dict[str, int] = {}
  modules: dict[str, int] = {}
  for path, leaf in leaves:
    names = partitioning_lib.path_name(path).split("/")
    module = "/".join(names[:-1][:2]) or names[0]
    for table, name in ((parts, names[0]), (modules, module)):
      table[name] = table.get(name, 0) + int(np.prod(leaf.shape, dtype=int))
  return {
    "count": sum(parts.values()),
    "bytes": costs.tree_bytes(tree),
    "parts": parts,
    "modules": modules,
  }


def _local_bytes(leaf: Any, sharding: jax.sharding.NamedSharding) -> int:
  """Bytes of an array on one device."""
  local = sharding.shard_shape(tuple(leaf.shape))
  return int(np.prod(local, dtype=int)) * leaf.dtype.itemsize


def _layouts(
  home: str, tree: PyTree, axes: PyTree, shardings: PyTree
) -> list[Facts]:
  names = jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, tuple))
  return [
    {
      "collection": home,
      "name": partitioning_lib.path_name(path),
      "shape": list(leaf.shape),
      "dtype": str(leaf.dtype),
      "axes": list(logical),
      "layout": [*sharding.spec] + [None] * (leaf.ndim - len(sharding.spec)),
      "bytes": costs.tree_bytes(leaf),
      "bytes_per_device": _local_bytes(leaf, sharding),
    }
    for (path, leaf), logical, sharding in zip(
      jax.tree_util.tree_flatten_with_path(tree)[0],
      names,
      jax.tree.leaves(shardings),
      strict=True,
    )
  ]


# --- Operations --------------------------------------------------------------


def trace_step(plan: Plan) -> Any:
  """trainer.train_step of the whole batch: jax.stages.Traced."""
  arguments = plan.arguments
  step = functools.partial(
    trainer.train_step,
    model=plan.model,
    learning_rate_fn=arguments["learning_rate_fn"],
    num_microbatches=arguments["num_microbatches"],
    ema_decay=arguments["ema_decay"],
  )
  return jax.jit(step, donate_argnums=0).trace(
    plan.state, plan.frozen, plan.batch, jax.random.key(0)
  )


def _xla_peak_bytes(step: Any) -> int:
  """Temporary memory of the step, as XLA plans it for one device."""
  options = compilation.quick_options()  # A plan is wanted, not fast code.
  return step.lower().compile(options).memory_analysis().temp_size_in_bytes


def uses(
  model: contract.Model,
  params: PyTree,
  frozen: PyTree,
  batch: Mapping[str, Any],
) -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
  """What a trained model is for: (name, jitted function, its arguments).

  "draw" for models that draw or enlarge, "read" for models that read; both may
  come.
  """
  if isinstance(model, contract.Draws) and "text_tokens" in batch:
    rngs = jax.random.split(jax.random.key(0), batch["text_tokens"].shape[0])
    draw = inference.make_sampler(model)
    yield "draw", draw, (params, frozen, prompts.of_batch(batch), rngs)
  if isinstance(model, contract.Upscales):

    @functools.partial(jax.jit, static_argnames="num_steps")
    def enlarge(
      params: PyTree,
      frozen: PyTree,
      batch: PyTree,
      num_steps: int | None = None,
    ) -> jax.Array:
      low = model.downsample(batch["images"])
      rngs = jax.random.split(jax.random.key(0), len(low))
      return model.upscale(
        params,
        low,
        rngs=rngs,
        **prompts.of_batch(batch),
        flax_mutables=frozen,
        num_steps=num_steps,
      )

    yield "draw", enlarge, (params, frozen, dict(batch))
  if isinstance(model, contract.Reads):

    def read(params: PyTree, frozen: PyTree, batch: PyTree) -> Any:
      return model.read(params, batch, flax_mutables=frozen)

    yield "read", jax.jit(read), (params, frozen, dict(batch))


def _operations(plan: Plan, step: Any) -> Facts:
  batch_size = plan.arguments["batch_size"]
  facts = {"train_step": _per_example(step.jaxpr, batch_size)}
  if plan.arguments["num_microbatches"] == 1:
    counted = step.lower().cost_analysis() or {}
    facts["train_step"]["xla"] = counted.get("flops", 0) / batch_size
  one = {
    name: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)
    for name, x in plan.batch.items()
  }
  params = plan.variables["params"]
  for name, use, arguments in uses(plan.model, params, plan.frozen, one):
    facts[name] = _per_example(use.trace(*arguments).jaxpr, 1)
  return facts


def _per_example(jaxpr: Any, batch_size: int) -> Facts:
  found = costs.operations(jaxpr)
  facts = {
    name: value / batch_size
    for name, value in dataclasses.asdict(found).items()
    if name != "unknown_loops"
  }
  return facts | {
    "total": found.total / batch_size,
    "unknown_loops": found.unknown_loops,
  }


# --- Caches ------------------------------------------------------------------


def embeddings(plan: Plan) -> Facts | None:
  """What one caption's embeddings take; None for models that make none."""
  encode: Any = getattr(plan.model, "encode_text", None)
  if encode is None or "text_tokens" not in plan.batch:
    return None
  tokens = {
    name: jax.ShapeDtypeStruct((1, *x.shape[1:]), jnp.int32)
    for name, x in prompts.of_batch(plan.batch).items()
  }
  found: Any = jax.eval_shape(
    lambda params, frozen, tokens: encode(
      params, flax_mutables=frozen, **tokens
    ),
    plan.variables["params"],
    plan.frozen,
    tokens,
  )
  _, length, width = found.text_embeddings.shape
  dtype = found.text_embeddings.dtype
  return {
    "length": length,
    "width": width,
    "dtype": str(dtype),
    "bytes_per_example": length * width * dtype.itemsize,
  }
