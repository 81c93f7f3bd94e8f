"""Checkpoints of a run, and files of single parameter trees, on orbax.

MODEL_DIR/checkpoint_<step>/ (T5X's name for it) holds three items: `state`
(the train state's leaves by name), `data` (one position of the data pipeline
per host) and `extra` (format, format_version and the caller's JSON). A step
is written beside its final name and renamed when complete, in the background.

Leaves are stored by their path in the tree ("params/unet/.../kernel"), so that
reading needs neither the classes of the writer nor its devices. Nothing is
pickled, and a directory is checked before its contents are believed.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

PyTree = Any

FORMAT = "byt5_diffusion"
FORMAT_VERSION = 1
STEP_PREFIX = "checkpoint"
MAX_METADATA_BYTES = 64 * 2**20
_COMMIT_FILE = "_CHECKPOINT_METADATA"
_ITEMS = frozenset({"state", "data", "extra"})


class CheckpointError(ValueError):
  """A checkpoint could not be written or can't be used; says which and why."""


# --- Trees and names. ---


def flatten_names(tree: PyTree) -> dict[str, Any]:
  """{"params/unet/kernel": leaf, ...}; nodes without leaves vanish."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in leaves
  }


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
  nested: dict[str, Any] = {}
  for name, leaf in flat.items():
    *parents, last = name.split("/")
    node = nested
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = leaf
  return nested


def _is_key(leaf: Any) -> bool:
  return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _key_impl(dtype: Any) -> str:
  for impl in ("threefry2x32", "rbg", "unsafe_rbg"):
    if jax.eval_shape(lambda i=impl: jax.random.key(0, impl=i)).dtype == dtype:
      return impl
  raise ValueError(f"Unknown kind of random key: {dtype}.")


def _storable(leaf: Any) -> Any:
  """Arrays as they are, typed random keys as their uint32 data."""
  if isinstance(leaf, jax.Array):
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf
  return np.asarray(leaf)


def _nbytes(shape: Any, dtype: Any) -> int:
  return int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize


# --- What a directory is. ---


def _absolute(path: str | os.PathLike[str]) -> epath.Path:
  text = os.fspath(path)
  return epath.Path(text if "://" in text else os.path.abspath(text))


def _read_json(path: epath.Path) -> Any:
  size = path.stat().length
  if size > MAX_METADATA_BYTES:
    raise CheckpointError(
      f"{path} has {size} bytes; more than {MAX_METADATA_BYTES} is refused."
    )
  try:
    return json.loads(path.read_text())
  except (ValueError, RecursionError) as error:
    raise CheckpointError(f"{path} is not valid JSON: {error}") from error


def _is_committed(path: epath.Path) -> bool:
  """True: ours and complete. False: ours and half-written.

  Raises:
    CheckpointError: another program's directory.
  """
  names = {entry.name for entry in path.iterdir()}
  if _COMMIT_FILE not in names:
    if names <= _ITEMS:
      return False
    raise CheckpointError(
      f"{path} is not a checkpoint of this program: it holds"
      f" {sorted(names)[:5]}. Choose another directory, or convert it first."
    )
  try:
    metadata = _read_json(path / _COMMIT_FILE)
    committed = metadata["commit_timestamp_nsecs"]
  except (CheckpointError, KeyError, TypeError):
    return False
  if committed is None:
    return False
  if not (path / "extra" / "metadata").exists():
    raise CheckpointError(
      f"{path} was written by another program: it holds {sorted(names)[:5]}"
      " but no 'extra'. Choose another directory, or convert it first."
    )
  return True


def _scan(model_dir: epath.Path) -> dict[int, bool]:
  """{step: committed} of every checkpoint directory."""
  if not model_dir.exists():
    return {}
  if not model_dir.is_dir():
    raise CheckpointError(f"{model_dir} is a file, not a directory.")
  steps = {}
  for path in model_dir.iterdir():
    found = re.fullmatch(rf"{STEP_PREFIX}_(\d+)", path.name)
    if found and path.is_dir():
      # A running job may just be deleting this old step.
      with contextlib.suppress(FileNotFoundError):
        steps[int(found[1])] = _is_committed(path)
  return dict(sorted(steps.items()))


def committed_steps(model_dir: str | os.PathLike[str]) -> list[int]:
  """Steps that can be restored, ascending; half-written ones are left out."""
  return [step for step, done in _scan(_absolute(model_dir)).items() if done]


def _check_sizes(path: epath.Path) -> None:
  for entry in path.iterdir():
    if entry.is_dir():
      # Array data lie in directories named "d"; all else is metadata.
      if entry.name != "d":
        _check_sizes(entry)
    elif entry.stat().length > MAX_METADATA_BYTES:
      raise CheckpointError(f"{entry} is too large for metadata; refused.")


def _check(path: epath.Path) -> dict[str, Any]:
  """The caller's extra of the checkpoint at path, once it is found sound."""
  content = _read_json(path / "extra" / "metadata")
  if not isinstance(content, dict) or content.get("format") != FORMAT:
    raise CheckpointError(f"{path} was written by another program.")
  version = content.get("format_version")
  if not isinstance(version, int) or version > FORMAT_VERSION:
    raise CheckpointError(
      f"{path} has format_version {version}; this program reads up to"
      f" {FORMAT_VERSION}. Upgrade byt5_diffusion."
    )
  _check_sizes(path)
  extra = content.get("extra")
  return extra if isinstance(extra, dict) else {}


# --- Reading. ---


def _stored(item: epath.Path) -> dict[str, Any]:
  """{name: orbax's array metadata} of a stored tree, sizes plausible."""
  try:
    tree = ocp.PyTreeCheckpointHandler().metadata(item).tree
  except Exception as error:
    raise CheckpointError(f"{item} can't be read: {error}") from error
  flat: dict[str, Any] = {}

  def visit(node: Any, name: str) -> None:
    if isinstance(node, Mapping):
      for key, child in node.items():
        visit(child, f"{name}/{key}" if name else str(key))
    else:
      flat[name] = node

  visit(tree, "")
  limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  for name, leaf in flat.items():
    if not hasattr(leaf, "shape") or leaf.dtype is None:
      raise CheckpointError(f"{item}: {name} is not an array.")
    storage = getattr(leaf, "storage", None)
    chunk = getattr(storage, "chunk_shape", None) or ()
    if max(_nbytes(leaf.shape, leaf.dtype), _nbytes(chunk, leaf.dtype)) > limit:
      raise CheckpointError(
        f"{item}: {name} claims shape {leaf.shape}, more than this machine's"
        f" {limit >> 30} GiB of memory; refused."
      )
  return flat


def _describe(leaf: Any) -> str:
  return f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"


def _compare(
  item: epath.Path, wanted: Mapping[str, Any], stored: Mapping[str, Any]
) -> None:
  """Raises CheckpointError listing every name on which the two disagree."""
  differing = [
    f"{name} (stored {_describe(stored[name])}, wanted {_describe(leaf)})"
    for name, leaf in wanted.items()
    if name in stored and _describe(stored[name]) != _describe(leaf)
  ]
  problems = {
    "missing from the checkpoint": sorted(set(wanted) - set(stored)),
    "unknown to this run": sorted(set(stored) - set(wanted)),
    "of another shape or dtype": differing,
  }
  lines = [
    f"  {len(names)} {kind}: {', '.join(names)}"
    for kind, names in problems.items()
    if names
  ]
  if lines:
    raise CheckpointError(f"{item} does not fit:\n" + "\n".join(lines))


def _read(item: epath.Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
  """{name: array}: jax arrays where wanted has a sharding, else numpy."""

  def restore_args(leaf: Any) -> ocp.RestoreArgs:
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
      return ocp.RestoreArgs(restore_type=np.ndarray)
    return ocp.ArrayRestoreArgs(
      sharding=sharding, global_shape=leaf.shape, dtype=leaf.dtype
    )

  handler = ocp.PyTreeCheckpointHandler()
  try:
    restored = handler.restore(
      item,
      args=ocp.args.PyTreeRestore(
        item=_nest(dict.fromkeys(wanted, 0)),
        restore_args=_nest({k: restore_args(v) for k, v in wanted.items()}),
        partial_restore=True,
      ),
    )
  except Exception as error:
    raise CheckpointError(f"{item} can't be read: {error}") from error
  return flatten_names(restored)


def _restore_tree(item: epath.Path, shapes: PyTree) -> PyTree:
  """The stored tree in the structure, and on the devices, of shapes."""
  default = jax.sharding.SingleDeviceSharding(jax.devices()[0])

  def plain(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or default
    if _is_key(leaf):
      leaf = jax.eval_shape(jax.random.key_data, leaf)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

  leaves = flatten_names(shapes)
  wanted = {name: plain(leaf) for name, leaf in leaves.items()}
  _compare(item, wanted, _stored(item))
  arrays = _read(item, wanted)

  def restored(name: str, leaf: Any) -> jax.Array:
    if not _is_key(leaf):
      return arrays[name]
    impl = _key_impl(leaf.dtype)
    return jax.random.wrap_key_data(arrays[name], impl=impl)

  return jax.tree.unflatten(
    jax.tree.structure(shapes), [restored(*pair) for pair in leaves.items()]
  )


def _step_dir(model_dir: epath.Path, step: int | None) -> epath.Path:
  steps = committed_steps(model_dir)
  if not steps:
    raise CheckpointError(f"{model_dir} holds no complete checkpoint.")
  if step is None:
    step = steps[-1]
  elif step not in steps:
    raise CheckpointError(
      f"{model_dir} holds no complete checkpoint of step {step}; it has"
      f" {steps}."
    )
  return model_dir / f"{STEP_PREFIX}_{step}"


def read_data_states(path: epath.Path) -> list[bytes]:
  """The data pipeline's position on each host that wrote the checkpoint."""
  item = path / "data"
  arrays = _read(item, {k: np.empty(v.shape) for k, v in _stored(item).items()})
  return [arrays[f"host_{i}"].tobytes()[1:] for i in range(len(arrays))]


def restore_params(
  model_dir: str | os.PathLike[str], step: int | None = None, ema: bool = True
) -> tuple[dict[str, Any], dict[str, Any]]:
  """(params as nested dicts of numpy arrays, extra) for inference.

  Args:
    model_dir: directory of the run.
    step: None = the latest complete one.
    ema: prefer the averaged parameters, where the run keeps them.
  """
  path = _step_dir(_absolute(model_dir), step)
  extra = _check(path)
  stored = _stored(path / "state")
  for prefix in ("ema_params/", "params/") if ema else ("params/",):
    wanted = {k: np.empty([0]) for k in stored if k.startswith(prefix)}
    if wanted:
      arrays = _read(path / "state", wanted)
      return _nest({k[len(prefix) :]: v for k, v in arrays.items()}), extra
  raise CheckpointError(f"{path} holds no parameters.")


# --- Single trees: frozen networks have a home of their own. ---


def tree_sha256(tree: PyTree) -> str:
  """Hash of names, dtypes, shapes and bytes; of nothing else."""
  digest = hashlib.sha256()
  for name, leaf in sorted(flatten_names(tree).items()):
    array = np.asarray(_storable(leaf))
    digest.update(f"{name}\0{array.dtype.name}\0{array.shape}\0".encode())
    digest.update(np.ascontiguousarray(array).tobytes())
  return digest.hexdigest()


def save_tree(path: str | os.PathLike[str], tree: PyTree) -> str:
  """Writes a parameter tree to a new directory, atomically; its sha256."""
  target = _absolute(path)
  if target.exists():
    raise CheckpointError(f"{target} exists; it is not overwritten.")
  sha256 = tree_sha256(tree)
  flat = {k: _storable(v) for k, v in flatten_names(tree).items()}
  with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as writer:
    writer.save(
      target,
      args=ocp.args.Composite(
        state=ocp.args.PyTreeSave(_nest(flat)),
        extra=ocp.args.JsonSave(_wrap_extra({"sha256": sha256})),
      ),
    )
  return sha256


def load_tree(
  path: str | os.PathLike[str], sha256: str | None = None
) -> dict[str, Any]:
  """Nested dicts of numpy arrays from save_tree's directory.

  Raises:
    CheckpointError: not such a directory, or not the sha256 asked for.
  """
  source = _absolute(path)
  if not source.is_dir() or not _is_committed(source):
    raise CheckpointError(f"{source} holds no complete parameter tree.")
  _check(source)
  wanted = {name: np.empty([0]) for name in _stored(source / "state")}
  tree = _nest(_read(source / "state", wanted))
  if sha256 is not None and tree_sha256(tree) != sha256:
    raise CheckpointError(
      f"{source} has sha256 {tree_sha256(tree)}, but {sha256} was asked for."
    )
  return tree


def _wrap_extra(extra: Mapping[str, Any]) -> dict[str, Any]:
  return {
    "format": FORMAT,
    "format_version": FORMAT_VERSION,
    "extra": dict(extra),
  }


# --- Writing a run. ---


def _gather(data_state: bytes) -> dict[str, np.ndarray]:
  """Every host's bytes, on every host; uint8 arrays."""
  # One byte in front, because orbax stores no empty array.
  own = np.frombuffer(b"\0" + data_state, np.uint8)
  if jax.process_count() == 1:
    return {"host_0": own}
  sizes = multihost_utils.process_allgather(np.asarray([own.size]))[:, 0]
  padded = np.zeros([int(sizes.max())], np.uint8)
  padded[: own.size] = own
  rows = multihost_utils.process_allgather(padded)
  return {f"host_{i}": rows[i, :size] for i, size in enumerate(sizes)}


class Checkpointer:
  """Writes and restores the checkpoints of one run.

  Opening it removes what killed saves have left behind, so one run at a time
  may have it open; readers use the functions of this module.
  """

  def __init__(
    self,
    model_dir: str | os.PathLike[str],
    *,
    period: int = 1000,
    keep: int | None = 3,
  ):
    """Opens model_dir, which may be relative and need not exist.

    Args:
      model_dir: directory of the run.
      period: should_save is true at multiples of this many steps.
      keep: how many of the latest checkpoints stay; None = all.

    Raises:
      CheckpointError: model_dir is a file or another program's.
    """
    if period < 1 or (keep is not None and keep < 1):
      raise ValueError(f"{period=} and {keep=} must be positive.")
    self.model_dir = _absolute(model_dir)
    self.period = period
    for step, done in _scan(self.model_dir).items():
      if not done and jax.process_index() == 0:
        path = self.model_dir / f"{STEP_PREFIX}_{step}"
        logging.warning("Removing the half-written checkpoint %s.", path)
        path.rmtree()
    self._saving: int | None = None
    self._manager = ocp.CheckpointManager(
      self.model_dir,
      options=ocp.CheckpointManagerOptions(
        step_prefix=STEP_PREFIX,
        max_to_keep=keep,
        cleanup_tmp_directories=True,
        save_root_metadata=False,
      ),
      item_names=tuple(sorted(_ITEMS)),
      item_handlers={
        "state": ocp.PyTreeCheckpointHandler(),
        "data": ocp.PyTreeCheckpointHandler(),
        "extra": ocp.JsonCheckpointHandler(),
      },
    )

  def should_save(self, step: int) -> bool:
    """Whether step is a multiple of the period."""
    return step % self.period == 0

  def latest_step(self) -> int | None:
    """The latest complete step on disk, or None."""
    steps = committed_steps(self.model_dir)
    return steps[-1] if steps else None

  def save(
    self,
    step: int,
    state: PyTree,
    data_state: bytes = b"",
    extra: Mapping[str, Any] | None = None,
  ) -> bool:
    """Starts to write a checkpoint; returns when state may be donated.

    Waits for the save before it, if that still runs.

    Args:
      step: names the directory.
      state: tree of arrays.
      data_state: this host's position in the data.
      extra: JSON-serializable; the same on every host.

    Returns:
      False if that step had been saved already.

    Raises:
      CheckpointError: this or the save before it failed.
    """
    self.wait()
    if step in committed_steps(self.model_dir):
      return False
    flat = {k: _storable(v) for k, v in flatten_names(state).items()}
    try:
      self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.PyTreeSave(_nest(flat)),
          data=ocp.args.PyTreeSave(_gather(data_state)),
          extra=ocp.args.JsonSave(_wrap_extra(extra or {})),
        ),
        force=True,
      )
    except Exception as error:
      raise self._failure(step, error) from error
    self._saving = step
    return True

  def check(self) -> None:
    """Raises CheckpointError if a save has failed since; never waits."""
    if self._saving is not None and not self._manager.is_saving_in_progress():
      self.wait()

  def wait(self) -> None:
    """Returns when nothing is being written; raises if that failed."""
    step, self._saving = self._saving, None
    if step is None:
      return
    try:
      self._manager.wait_until_finished()
    except Exception as error:
      raise self._failure(step, error) from error

  def _failure(self, step: int, error: Exception) -> CheckpointError:
    return CheckpointError(
      f"Saving step {step} to {self.model_dir} failed: {error!r}. The latest"
      f" complete checkpoint is that of step {self.latest_step()}."
    )

  def restore(
    self, step: int | None, state_shapes: PyTree
  ) -> tuple[PyTree, bytes, dict[str, Any]]:
    """(state, this host's data_state, extra) as saved.

    Args:
      step: None = the latest.
      state_shapes: tree of ShapeDtypeStructs or arrays like the state saved;
        their shardings say where it goes, whatever devices it came from.

    Raises:
      CheckpointError: no such step, another format, or leaves that are
        missing, unknown, or of another shape or dtype, each by name.
    """
    path = _step_dir(self.model_dir, step)
    extra = _check(path)
    state = _restore_tree(path / "state", state_shapes)
    data_states = read_data_states(path)
    if len(data_states) != jax.process_count():
      raise CheckpointError(
        f"{path} was written by {len(data_states)} hosts and this run has"
        f" {jax.process_count()}: its data position can't be restored."
      )
    return state, data_states[jax.process_index()], extra

  def close(self) -> None:
    """Waits, then releases threads; raises if the last save failed."""
    try:
      self.wait()
    finally:
      self._manager.close()
