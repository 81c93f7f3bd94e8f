"""Directories of arrays by name: what a checkpoint is made of, on orbax.

A directory holds the items `state` (leaves by their path in the tree,
"params/unet/.../kernel") and `extra` (format, format_version and the writer's
JSON); a run's checkpoints add `data`. Reading needs neither the classes of the
writer nor its devices. Nothing is pickled, and a directory is checked before
its contents are believed.
"""

import hashlib
import json
import os
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

import byt5_diffusion

PyTree = Any

FORMAT = "byt5_diffusion"
# 2: says which version of the package wrote it; places in host_places.py's way.
FORMAT_VERSION = 2
ITEMS = frozenset({"state", "data", "extra"})
MAX_METADATA_BYTES = 64 * 2**20
_COMMIT_FILE = "_CHECKPOINT_METADATA"
_ORBAX_COMMIT_FILE = "commit_success.txt"


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


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Inverse of flatten_names, as nested dicts."""
  nested: dict[str, Any] = {}
  for name, leaf in flat.items():
    *parents, last = name.split("/")
    node = nested
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = leaf
  return nested


def is_key(leaf: Any) -> bool:
  """Whether a leaf holds typed random keys."""
  return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _key_impl(dtype: Any) -> str:
  for impl in ("threefry2x32", "rbg", "unsafe_rbg"):
    if jax.eval_shape(lambda i=impl: jax.random.key(0, impl=i)).dtype == dtype:
      return impl
  raise ValueError(f"Unknown kind of random key: {dtype}.")


def storable(leaf: Any) -> Any:
  """Arrays as they are, typed random keys as their uint32 data."""
  if isinstance(leaf, jax.Array):
    return jax.random.key_data(leaf) if is_key(leaf) else leaf
  return np.array(leaf)  # A copy: the write goes on after the caller.


def nbytes(shape: Any, dtype: Any) -> int:
  """Bytes of an array; never overflows."""
  return int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize


def memory_bytes() -> int:
  """This machine's memory: no array of a checkpoint can claim more."""
  return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def shape_of(leaf: Any) -> jax.ShapeDtypeStruct:
  """Shape and dtype of an array, or of what describes one."""
  return jax.ShapeDtypeStruct(tuple(leaf.shape), np.dtype(leaf.dtype))


class Source(NamedTuple):
  """Arrays by name in somebody's checkpoint, read when asked for.

  Attributes:
    what: kind and path, for messages.
    shapes: {"unet/.../kernel": shape and dtype}.
    read: names -> {name: numpy array}.
  """

  what: str
  shapes: dict[str, jax.ShapeDtypeStruct]
  read: Callable[[Collection[str]], dict[str, np.ndarray]]


# --- What a directory is. ---


def absolute(path: str | os.PathLike[str]) -> epath.Path:
  """The path made absolute; one with a scheme stays as it is."""
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


def is_committed(path: epath.Path) -> bool:
  """True: ours and complete. False: ours and half-written.

  Raises:
    CheckpointError: another program's directory.
  """
  names = {entry.name for entry in path.iterdir()}
  if _COMMIT_FILE not in names:
    if names <= ITEMS | {_ORBAX_COMMIT_FILE}:
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


def check_sizes(path: epath.Path) -> None:
  """Raises CheckpointError for a file of metadata that is absurdly large."""
  for entry in path.iterdir():
    if entry.is_dir():
      # Array data lie in directories named "d"; all else is metadata.
      if entry.name != "d":
        check_sizes(entry)
    elif entry.stat().length > MAX_METADATA_BYTES:
      raise CheckpointError(f"{entry} is too large for metadata; refused.")


def _from_version_1(content: dict[str, Any]) -> dict[str, Any]:
  return content | {"format_version": 2, "package_version": None}


# What brings a record of version i to i + 1. Files stay as they were written.
_MIGRATIONS = {1: _from_version_1}


def read_record(path: epath.Path) -> dict[str, Any]:
  """What a directory says of itself, in today's form.

  Returns:
    format_version (as written), package_version (None where it was not yet
    recorded) and extra.

  Raises:
    CheckpointError: another program's, or of a later version.
  """
  content = _read_json(path / "extra" / "metadata")
  if not isinstance(content, dict) or content.get("format") != FORMAT:
    raise CheckpointError(f"{path} was written by another program.")
  version = content.get("format_version")
  if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
    writer = content.get("package_version")
    by = f", written by {FORMAT} {writer[:40]}" if type(writer) is str else ""
    raise CheckpointError(
      f"{path} has format_version {str(version)[:40]}{by}; this program reads"
      f" up to {FORMAT_VERSION}. Upgrade byt5_diffusion."
    )
  for step in range(version, FORMAT_VERSION):
    content = _MIGRATIONS[step](content)
  extra = content.get("extra")
  return {
    "format_version": version,
    "package_version": content.get("package_version"),
    "extra": extra if isinstance(extra, dict) else {},
  }


def check(path: epath.Path) -> dict[str, Any]:
  """The caller's extra of the checkpoint at path, once it is found sound."""
  record = read_record(path)
  check_sizes(path)
  return record["extra"]


# --- Reading. ---


def stored(item: epath.Path) -> dict[str, Any]:
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
  limit = memory_bytes()
  for name, leaf in flat.items():
    if not hasattr(leaf, "shape") or leaf.dtype is None:
      raise CheckpointError(f"{item}: {name} is not an array.")
    storage = getattr(leaf, "storage", None)
    chunk = getattr(storage, "chunk_shape", None) or ()
    if max(nbytes(leaf.shape, leaf.dtype), nbytes(chunk, leaf.dtype)) > limit:
      raise CheckpointError(
        f"{item}: {name} claims shape {leaf.shape}, more than this machine's"
        f" {limit >> 30} GiB of memory; refused."
      )
  return flat


def describe(leaf: Any) -> str:
  """Dtype and shape: "float32[3, 4]"."""
  return f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"


def some(names: Collection[str], most: int = 8) -> str:
  """The first names and how many more: a message that can be read."""
  shown = ", ".join(list(names)[:most])
  more = len(names) - most
  return f"{shown} and {more} more" if more > 0 else shown


def fits(found: Any, wanted: Any) -> bool:
  """Equal shapes, and both float or of one dtype."""
  if tuple(found.shape) != tuple(wanted.shape):
    return False
  floats = [
    jax.dtypes.issubdtype(x.dtype, np.floating) for x in (found, wanted)
  ]
  return all(floats) or found.dtype == wanted.dtype


def _alike(found: Any, wanted: Any) -> bool:
  """Equal shapes and dtypes."""
  return describe(found) == describe(wanted)


def _compare(
  item: epath.Path,
  wanted: Mapping[str, Any],
  found: Mapping[str, Any],
  same: Callable[[Any, Any], bool] = _alike,
) -> None:
  """Raises CheckpointError naming what the two disagree on, by kind."""
  differing = [
    f"{name} (stored {describe(found[name])}, wanted {describe(leaf)})"
    for name, leaf in wanted.items()
    if name in found and not same(found[name], leaf)
  ]
  problems = {
    "missing from the checkpoint": sorted(set(wanted) - set(found)),
    "unknown to this run": sorted(set(found) - set(wanted)),
    "of another shape or dtype": differing,
  }
  lines = [
    f"  {len(names)} {kind}: {some(names)}"
    for kind, names in problems.items()
    if names
  ]
  if lines:
    raise CheckpointError(f"{item} does not fit:\n" + "\n".join(lines))


def read(item: epath.Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
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
        item=nest(dict.fromkeys(wanted, 0)),
        restore_args=nest({k: restore_args(v) for k, v in wanted.items()}),
        partial_restore=True,
      ),
    )
  except Exception as error:
    raise CheckpointError(f"{item} can't be read: {error}") from error
  return flatten_names(restored)


def restore_tree(item: epath.Path, shapes: PyTree) -> PyTree:
  """The stored tree in the structure, and on the devices, of shapes."""
  default = jax.sharding.SingleDeviceSharding(jax.devices()[0])

  def plain(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or default
    if is_key(leaf):
      leaf = jax.eval_shape(jax.random.key_data, leaf)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

  leaves = flatten_names(shapes)
  wanted = {name: plain(leaf) for name, leaf in leaves.items()}
  _compare(item, wanted, stored(item))
  arrays = read(item, wanted)

  def restored(name: str, leaf: Any) -> jax.Array:
    if not is_key(leaf):
      return arrays[name]
    impl = _key_impl(leaf.dtype)
    return jax.random.wrap_key_data(arrays[name], impl=impl)

  return jax.tree.unflatten(
    jax.tree.structure(shapes), [restored(*pair) for pair in leaves.items()]
  )


# --- Single trees: frozen networks have a home of their own. ---


def tree_sha256(tree: PyTree) -> str:
  """Hash of names, dtypes, shapes and bytes; of nothing else."""
  digest = hashlib.sha256()
  for name, leaf in sorted(flatten_names(tree).items()):
    array = np.asarray(storable(leaf))
    digest.update(f"{name}\0{array.dtype.name}\0{array.shape}\0".encode())
    digest.update(np.ascontiguousarray(array).tobytes())
  return digest.hexdigest()


def save_tree(path: str | os.PathLike[str], tree: PyTree) -> str:
  """Writes a parameter tree to a new directory, atomically; its sha256."""
  target = absolute(path)
  if target.exists():
    raise CheckpointError(f"{target} exists; it is not overwritten.")
  sha256 = tree_sha256(tree)
  # In numpy: of several hosts each has a copy, which is no array of all.
  flat = {k: np.asarray(storable(v)) for k, v in flatten_names(tree).items()}
  with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as writer:
    writer.save(
      target,
      args=ocp.args.Composite(
        state=ocp.args.PyTreeSave(nest(flat)),
        extra=ocp.args.JsonSave(wrap_extra({"sha256": sha256})),
      ),
    )
  return sha256


def check_tree(
  tree: PyTree, shapes: PyTree, path: str, *, any_float: bool = False
) -> None:
  """Raises CheckpointError unless tree has the names and shapes of shapes.

  Args:
    tree: arrays.
    shapes: what they should be.
    path: where they lie, for messages.
    any_float: whether floating dtypes may differ.
  """
  _compare(
    epath.Path(path),
    flatten_names(shapes),
    flatten_names(tree),
    fits if any_float else _alike,
  )


def load_tree(
  path: str | os.PathLike[str], sha256: str | None = None
) -> dict[str, Any]:
  """Nested dicts of numpy arrays from save_tree's directory.

  Raises:
    CheckpointError: not such a directory, or not the sha256 asked for.
  """
  source = absolute(path)
  if not source.is_dir() or not is_committed(source):
    raise CheckpointError(f"{source} holds no complete parameter tree.")
  check(source)
  wanted = {name: np.empty([0]) for name in stored(source / "state")}
  tree = nest(read(source / "state", wanted))
  if sha256 is not None and tree_sha256(tree) != sha256:
    raise CheckpointError(
      f"{source} has sha256 {tree_sha256(tree)}, but {sha256} was asked for."
    )
  return tree


def wrap_extra(extra: Mapping[str, Any]) -> dict[str, Any]:
  """The caller's extra with the format's name and the writer's version."""
  return {
    "format": FORMAT,
    "format_version": FORMAT_VERSION,
    "package_version": byt5_diffusion.__version__,
    "extra": dict(extra),
  }
