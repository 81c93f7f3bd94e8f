"""Where arrays live: a ("data", "model") mesh and rules from names to axes.

Parameters carry logical axis names (T5X's vocabulary: "embed", "mlp", ...).
Rules are (logical name, mesh axis or None) pairs: they are tried in order, a
rule applies to a dimension of that name which has no mesh axis yet, and a mesh
axis is used at most once per array. A dimension that its mesh axis does not
divide stays whole. Fully sharded data parallelism is the rule
("embed", "data"); tensor parallelism is num_partitions > 1.

Nothing here knows a model, and nothing shards activations: XLA propagates
that from the parameters and the batch.
"""

import dataclasses
import difflib
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils

DATA_AXIS = "data"
MODEL_AXIS = "model"
MESH_AXES = (DATA_AXIS, MODEL_AXIS)

Rules = Sequence[tuple[str, str | None]]
PyTree = Any

# T5X's standard one-dimensional rules, and the image axes replicated.
STANDARD_LOGICAL_AXIS_RULES: Rules = (
  ("batch", "data"),
  ("vocab", "model"),
  ("embed", None),
  ("mlp", "model"),
  ("heads", "model"),
  ("kv", None),
  ("joined_kv", "model"),
  ("relpos_buckets", None),
  ("abspos_buckets", None),
  ("length", None),
  ("layers", None),
  ("stack", None),
  ("mlp_activations", None),
  ("height", None),
  ("width", None),
  ("conv_in", None),
  ("conv_out", "model"),
  ("channels", None),
)


def path_name(path: Sequence[Any]) -> str:
  """Spells a tree path "a/b/0": the name of that parameter everywhere."""
  return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def logical_axes(params_axes: Mapping[str, Any]) -> dict[str, Any]:
  """Turns Flax's params_axes collection into a tree shaped like params.

  Args:
    params_axes: nested mapping whose leaves `<name>_axes` are AxisMetadata.

  Returns:
    Nested dict with a tuple of logical axis names for every parameter.
  """
  result: dict[str, Any] = {}
  for key, value in params_axes.items():
    if isinstance(value, Mapping):
      result[key] = logical_axes(value)
    elif key.endswith("_axes"):
      names = getattr(value, "names", value)
      result[key.removesuffix("_axes")] = tuple(names)
    else:
      raise ValueError(f"params_axes leaf {key!r} does not end in '_axes'.")
  return result


def _flatten_axes(axes: Any, prefix: str = "") -> dict[str, Any]:
  if not isinstance(axes, Mapping):
    return {prefix: axes}
  flat = {}
  for key, value in axes.items():
    flat.update(_flatten_axes(value, f"{prefix}/{key}" if prefix else str(key)))
  return flat


def _nearest(name: str, known: Sequence[str]) -> str:
  close = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
  return f"; the nearest is {close[0]!r}" if close else ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Partitioning:
  """The mesh of a run and the rules that lay arrays out on it.

  Attributes:
    num_partitions: size of the "model" axis; the "data" axis gets the rest.
    logical_axis_rules: (logical axis name, mesh axis or None), first match
      wins; later rules of the same name are tried where the mesh axis is taken
      or does not divide the dimension.
    num_devices: how many of this process's devices to use; None = all devices
      of all processes.
  """

  num_partitions: int = 1
  logical_axis_rules: Rules = STANDARD_LOGICAL_AXIS_RULES
  num_devices: int | None = None

  def __post_init__(self) -> None:
    rules = tuple((name, axis) for name, axis in self.logical_axis_rules)
    object.__setattr__(self, "logical_axis_rules", rules)
    for name, axis in rules:
      if axis is not None and axis not in MESH_AXES:
        raise ValueError(
          f"logical_axis_rules: ({name!r}, {axis!r}) names no mesh axis of"
          f" {MESH_AXES}{_nearest(axis, MESH_AXES)}."
        )
    if self.num_partitions < 1:
      raise ValueError(f"{self.num_partitions=} must be positive.")

  def _devices(self) -> list[jax.Device]:
    devices = jax.devices()
    if self.num_devices is None:
      return devices
    if jax.process_count() > 1 and self.num_devices != len(devices):
      raise ValueError(
        f"{self.num_devices=} must be None or {len(devices)} when"
        f" {jax.process_count()} processes run together."
      )
    if not 1 <= self.num_devices <= len(devices):
      raise ValueError(
        f"{self.num_devices=} but there are {len(devices)} devices."
      )
    return devices[: self.num_devices]

  @functools.cached_property
  def mesh(self) -> jax.sharding.Mesh:
    """Mesh of axes ("data", "model"); "model" has size num_partitions."""
    devices = self._devices()
    if len(devices) % self.num_partitions:
      raise ValueError(
        f"{self.num_partitions=} does not divide the {len(devices)} devices."
      )
    shape = (len(devices) // self.num_partitions, self.num_partitions)
    grid = mesh_utils.create_device_mesh(shape, devices=devices)
    auto = jax.sharding.AxisType.Auto
    return jax.sharding.Mesh(grid, MESH_AXES, axis_types=(auto, auto))

  def planned(self, num_devices: int) -> "Partitioning":
    """The same rules on a mesh of devices that need not exist.

    Its shardings tell shapes and specs; nothing can be put on it.

    Raises:
      ValueError: num_partitions does not divide num_devices.
    """
    if num_devices < 1 or num_devices % self.num_partitions:
      raise ValueError(
        f"{self.num_partitions=} does not divide {num_devices} devices."
      )
    plan = dataclasses.replace(self, num_devices=None)
    auto = jax.sharding.AxisType.Auto
    # In place of the cached property, which would look for devices.
    plan.__dict__["mesh"] = jax.sharding.AbstractMesh(
      (num_devices // self.num_partitions, self.num_partitions),
      MESH_AXES,
      axis_types=(auto, auto),
    )
    return plan

  @property
  def data_size(self) -> int:
    """Number of parts the batch is cut into."""
    return self.mesh.shape[DATA_AXIS]

  def replicated(self) -> jax.sharding.NamedSharding:
    """The sharding of a whole copy on every device."""
    return jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec())

  def _divides(self, mesh_axis: str, size: int) -> bool:
    return size % self.mesh.shape[mesh_axis] == 0

  def _spec(
    self, name: str, shape: Sequence[int], axes: Sequence[str | None] | None
  ) -> jax.sharding.PartitionSpec:
    if axes is None:
      axes = (None,) * len(shape)
    if len(axes) != len(shape):
      raise ValueError(
        f"{name}: {len(axes)} axis names {tuple(axes)} for shape"
        f" {tuple(shape)}."
      )
    known = tuple(dict.fromkeys(rule[0] for rule in self.logical_axis_rules))
    for axis in axes:
      if axis is not None and axis not in known:
        raise ValueError(
          f"{name}: no rule for logical axis {axis!r}{_nearest(axis, known)}."
          " Add it to logical_axis_rules (with None to replicate it)."
        )
    spec: list[str | None] = [None] * len(shape)
    settled = [axis is None for axis in axes]
    for logical, mesh_axis in self.logical_axis_rules:
      for i, axis in enumerate(axes):
        if axis != logical or settled[i]:
          continue
        if mesh_axis is None:
          settled[i] = True
        elif mesh_axis not in spec and self._divides(mesh_axis, shape[i]):
          spec[i] = mesh_axis
          settled[i] = True
    return jax.sharding.PartitionSpec(*spec)

  def param_shardings(self, shapes: PyTree, axes: PyTree) -> PyTree:
    """A NamedSharding for every parameter, by its logical axis names.

    Args:
      shapes: tree of arrays or ShapeDtypeStructs.
      axes: nested mapping of the same names whose leaves are tuples of logical
        axis names (see logical_axes), or None for a replicated array.

    Raises:
      ValueError: a parameter has no names, a wrong number of them, or a name
        that no rule knows.
    """
    by_name = _flatten_axes(axes)
    leaves, treedef = jax.tree_util.tree_flatten_with_path(shapes)
    names = [path_name(path) for path, _ in leaves]
    missing = [name for name in names if name not in by_name]
    if missing:
      raise ValueError(f"Parameters without logical axis names: {missing}.")
    shardings = [
      jax.sharding.NamedSharding(
        self.mesh, self._spec(name, leaf.shape, by_name[name])
      )
      for name, (_, leaf) in zip(names, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, shardings)

  def state_shardings(
    self, state_shapes: PyTree, params_shapes: PyTree, shardings: PyTree
  ) -> PyTree:
    """Shardings for whatever mirrors the parameters, the rest replicated.

    A leaf mirrors a parameter when its path ends in the parameter's name and
    it has its shape: so moments, averages and whole train states need no table
    of optimizer types.

    Args:
      state_shapes: optimizer state, or a train state that holds one.
      params_shapes: the parameters.
      shardings: result of param_shardings for them.
    """
    params, _ = jax.tree_util.tree_flatten_with_path(params_shapes)
    known = {
      path_name(path): (tuple(leaf.shape), sharding)
      for (path, leaf), sharding in zip(
        params, jax.tree.leaves(shardings), strict=True
      )
    }

    def place(path: Any, leaf: Any) -> jax.sharding.NamedSharding:
      parts = path_name(path).split("/")
      # From the longest suffix: the most specific name is the right one.
      for i in range(len(parts)):
        found = known.get("/".join(parts[i:]))
        if found is not None and found[0] == tuple(leaf.shape):
          return found[1]
      return self.replicated()

    return jax.tree_util.tree_map_with_path(place, state_shapes)

  def batch_sharding(self, ndim: int) -> jax.sharding.NamedSharding:
    """The first of ndim dimensions over "data"; a scalar is replicated."""
    spec = (DATA_AXIS,) + (None,) * (ndim - 1) if ndim else ()
    return jax.sharding.NamedSharding(
      self.mesh, jax.sharding.PartitionSpec(*spec)
    )

  def check_batch_size(self, batch_size: int) -> None:
    """Raises ValueError unless the global batch divides over the data axis."""
    if batch_size < 1 or batch_size % self.data_size:
      raise ValueError(
        f"{batch_size=} is not a multiple of {self.data_size}, the size of the"
        f" data axis ({self.mesh.size} devices / num_partitions="
        f"{self.num_partitions})."
      )

  def host_layout(self) -> tuple[int, int]:
    """(host_index, host_count) of this process for reading data.

    Processes whose devices hold the same rows of the data axis (num_partitions
    larger than a host) read the same examples and share an index.
    """
    rows: dict[int, set[int]] = {}
    for (row, _), device in np.ndenumerate(self.mesh.devices):
      rows.setdefault(device.process_index, set()).add(row)
    groups = sorted({tuple(sorted(group)) for group in rows.values()})
    if sum(map(len, groups)) != self.data_size:
      raise ValueError(
        f"{self.num_partitions=} cuts hosts apart along the data axis; choose"
        " a divisor or a multiple of the devices per host."
      )
    return groups.index(tuple(sorted(rows[jax.process_index()]))), len(groups)

  def shard_batch(self, host_batch: PyTree) -> PyTree:
    """This host's rows of a batch -> global arrays, rows over "data".

    Args:
      host_batch: tree of arrays [B / host_count, ...].
    """
    _, host_count = self.host_layout()

    def place(value: Any) -> jax.Array:
      value = np.asarray(value)
      if not value.ndim:
        return jax.device_put(value, self.replicated())
      rows = value.shape[0] * host_count
      self.check_batch_size(rows)
      return jax.make_array_from_process_local_data(
        self.batch_sharding(value.ndim), value, (rows, *value.shape[1:])
      )

    return jax.tree.map(place, host_batch)
