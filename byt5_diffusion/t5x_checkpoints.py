"""Reads T5X's checkpoints, without T5X and without believing them.

Two layouts of a folder checkpoint_<step>/:

  legacy  `checkpoint`, msgpack of {version, optimizer: {target, state}}; an
          array that was sharded is a TensorStore spec in it, and a zarr (v2)
          folder of its own: target.encoder.encoder_norm.scale/{.zarray,0}
  orbax   `state/`, orbax's tree {target, state} in one OCDBT database

Parameters are named as in the model that wrote them, "encoder/encoder_norm/
scale"; whatever is no parameter but belongs to the model (flax_mutables) keeps
its collection's name in front. Optimizer states are left alone.

A spec is somebody else's instruction to open something: of it only the name of
a folder inside the checkpoint is used, and no driver, server or bucket. Nothing
is pickled; a file that a link puts outside of the folder is refused.
"""

import concurrent.futures
import json
import math
import os
import pathlib
import re
import zlib
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import msgpack
import numpy as np
from etils import epath

from byt5_diffusion import stored_trees

CheckpointError = stored_trees.CheckpointError
Source = stored_trees.Source

_MAX_MSGPACK_BYTES = 512 * 2**20
_MAX_ZARRAY_BYTES = 2**20
_MAX_DEPTH = 64
_MAX_FILES = 2_000_000
_STEP = re.compile(r"checkpoint_(\d+)")
# Of an array's folder: no separator, nothing that climbs.
_FOLDER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*/?")
# As TensorStore names an array's chunk, and no other way: one name for each.
_CHUNK = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))*")
_DTYPES = {
  name: jnp.dtype(name)
  for name in (
    *("bfloat16", "float16", "float32", "float64", "bool"),
    *("int8", "int16", "int32", "int64"),
    *("uint8", "uint16", "uint32", "uint64"),
  )
}
# As flax numbers msgpack's extensions.
_NDARRAY, _SCALAR = 1, 3


class _Zarr(NamedTuple):
  """An array's folder and what its .zarray says."""

  folder: pathlib.Path
  shape: tuple[int, ...]
  chunks: tuple[int, ...]
  dtype: np.dtype[Any]
  order: str
  separator: str
  compressed: bool
  fill: int | float | None


def layout(path: str | os.PathLike[str]) -> str | None:
  """ "legacy" or "orbax" for a T5X checkpoint_<step> folder, else None."""
  folder = pathlib.Path(path)
  if (folder / "checkpoint").is_file():
    return "legacy"
  ours = (folder / "extra").exists()
  if (folder / "state" / "_METADATA").is_file() and not ours:
    return "orbax"
  return None


def find(path: str | os.PathLike[str], step: int | None = None) -> str | None:
  """The T5X checkpoint at path, or in it (a T5X MODEL_DIR); None: neither.

  Args:
    path: checkpoint_<step>/, or the folder of several.
    step: which of several; None = the latest.

  Raises:
    CheckpointError: path is T5X's, but has no such step.
  """
  folder = pathlib.Path(path)
  if layout(folder):
    return str(folder)
  if not folder.is_dir():
    return None
  steps = {
    int(found[1]): entry
    for entry in folder.iterdir()
    if (found := _STEP.fullmatch(entry.name)) and layout(entry)
  }
  if not steps:
    return None
  if step is not None and step not in steps:
    raise CheckpointError(
      f"{path} holds no T5X checkpoint of step {step}; it has {sorted(steps)}."
    )
  return str(steps[max(steps) if step is None else step])


def open_source(path: str | os.PathLike[str]) -> Source:
  """The parameters of one checkpoint_<step> folder, none of them read yet.

  Raises:
    CheckpointError: it is none, is damaged, or asks for more than a checkpoint
      may: files outside of it, other kinds of stores, absurd sizes.
  """
  folder = pathlib.Path(path).absolute()
  kind = layout(folder)
  if kind is None:
    raise CheckpointError(f"{folder} is not a checkpoint of T5X.")
  _check_inside(folder)
  if kind == "legacy":
    return _open_legacy(folder)
  return _open_orbax(folder)


def _check_inside(folder: pathlib.Path) -> None:
  """Refuses links that lead out of the folder, and other than plain files."""
  real = folder.resolve()
  count = 0
  for parent, folders, files in os.walk(folder):
    count += len(folders) + len(files)
    if count > _MAX_FILES:
      raise CheckpointError(f"{folder} has over {_MAX_FILES} files; refused.")
    for name in (*folders, *files):
      path = pathlib.Path(parent, name)
      if path.is_symlink() and not path.resolve().is_relative_to(real):
        raise CheckpointError(
          f"{path} is a link that leaves the checkpoint; refused. Copy the"
          " checkpoint with its links followed (`cp -rL`)."
        )
      if not path.is_dir() and not path.is_file():
        raise CheckpointError(f"{path} is neither file nor folder; refused.")


def _strip_target(names: Collection[str]) -> dict[str, str]:
  """{our name: name in the checkpoint}, the optimizer's left out."""
  return {
    name.removeprefix("target/"): name
    for name in names
    if name.startswith(("target/", "flax_mutables/"))
  }


# --- Orbax. ---


def _open_orbax(folder: pathlib.Path) -> Source:
  item = epath.Path(folder / "state")
  if not (item / "manifest.ocdbt").exists():
    raise CheckpointError(
      f"{folder} is of an early orbax that kept one folder per array; open it"
      " in T5X and save it again."
    )
  stored_trees.check_sizes(item)
  stored = stored_trees.stored(item)
  names = _strip_target(stored)
  if not names:
    raise CheckpointError(f"{folder} holds no parameters (no 'target').")

  def read(wanted: Collection[str]) -> dict[str, np.ndarray]:
    arrays = stored_trees.read(item, {names[k]: np.empty([0]) for k in wanted})
    return {k: arrays[names[k]] for k in wanted}

  shapes = {k: stored_trees.shape_of(stored[name]) for k, name in names.items()}
  return Source(f"T5X checkpoint (orbax) {folder}", shapes, read)


# --- Legacy. ---


def _open_legacy(folder: pathlib.Path) -> Source:
  tree = _read_msgpack(folder / "checkpoint")
  optimizer = tree.get("optimizer") if isinstance(tree, dict) else None
  if not isinstance(optimizer, dict):
    raise CheckpointError(f"{folder}/checkpoint holds no 'optimizer'.")
  leaves: dict[str, Any] = {}
  for collection in ("target", "flax_mutables"):
    _flatten(optimizer.get(collection, {}), collection, leaves, folder)
  names = _strip_target(leaves)
  if not names:
    raise CheckpointError(f"{folder} holds no parameters (no 'target').")
  total = sum(
    stored_trees.nbytes(leaf.shape, leaf.dtype) for leaf in leaves.values()
  )
  if total > stored_trees.memory_bytes():
    raise CheckpointError(
      f"{folder} claims {total} bytes of arrays, more than this machine's"
      " memory; refused."
    )

  def read(wanted: Collection[str]) -> dict[str, np.ndarray]:
    def one(name: str) -> np.ndarray:
      leaf = leaves[names[name]]
      return _read_zarr(leaf) if isinstance(leaf, _Zarr) else leaf

    # zlib lets other threads run.
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
      return dict(zip(wanted, pool.map(one, wanted), strict=True))

  shapes = {k: stored_trees.shape_of(leaves[name]) for k, name in names.items()}
  return Source(f"T5X checkpoint (legacy) {folder}", shapes, read)


def _read_msgpack(path: pathlib.Path) -> Any:
  size = path.stat().st_size
  if size > _MAX_MSGPACK_BYTES:
    raise CheckpointError(
      f"{path} has {size} bytes; more than {_MAX_MSGPACK_BYTES} is refused."
    )

  def extension(code: int, data: bytes) -> Any:
    if code not in (_NDARRAY, _SCALAR):
      raise ValueError(f"extension {code} is unknown")
    shape, dtype, content = msgpack.unpackb(data, raw=True)
    kind = _DTYPES[dtype.decode("ascii")]
    return np.frombuffer(content, kind).reshape(shape)

  try:
    return msgpack.unpackb(
      path.read_bytes(), ext_hook=extension, raw=False, strict_map_key=True
    )
  except Exception as error:  # msgpack raises whatever comes to hand.
    raise CheckpointError(
      f"{path} is not a checkpoint of T5X, or damaged: {error}"
    ) from error


def _flatten(
  node: Any, name: str, leaves: dict[str, Any], folder: pathlib.Path
) -> None:
  """Adds every array below node: in memory, or still in a zarr folder."""
  if name.count("/") > _MAX_DEPTH:
    raise CheckpointError(f"{folder}/checkpoint: {name[:200]} is too deep.")
  if isinstance(node, np.ndarray):
    leaves[name] = node
  elif not isinstance(node, dict):
    # A model without parameters of its own in some module stores null.
    if node is not None:
      raise CheckpointError(f"{folder}/checkpoint: {name} is not an array.")
  elif isinstance(node.get("kvstore"), dict):
    leaves[name] = _open_zarr(node, name, folder)
  else:
    for key, child in node.items():
      if "/" in key or not key:
        raise CheckpointError(f"{folder}/checkpoint: bad name {key[:200]!r}.")
      _flatten(child, f"{name}/{key}", leaves, folder)


def _open_zarr(spec: Mapping[str, Any], name: str, root: pathlib.Path) -> _Zarr:
  """Where a spec's array lies; raises unless that is inside of root."""
  path = spec["kvstore"].get("path")
  if not isinstance(path, str) or not _FOLDER.fullmatch(path):
    raise CheckpointError(
      f"{root}/checkpoint: {name} lies in {str(path)[:200]!r}, which is no"
      " folder of the checkpoint; refused."
    )
  folder = root / path.rstrip("/")
  file = folder / ".zarray"
  if not file.is_file():
    raise CheckpointError(f"{file} is missing: the checkpoint is incomplete.")
  if file.stat().st_size > _MAX_ZARRAY_BYTES:
    raise CheckpointError(f"{file} is too large; refused.")
  try:
    array = _parse_zarray(json.loads(file.read_bytes()), folder)
  except (
    *(ArithmeticError, KeyError, RecursionError),
    *(SyntaxError, TypeError, ValueError),
  ) as error:
    raise CheckpointError(
      f"{file} can't be used: {str(error)[:200]}"
    ) from error
  sizes = (
    stored_trees.nbytes(array.shape, array.dtype),
    stored_trees.nbytes(array.chunks, array.dtype),
  )
  if max(sizes) > stored_trees.memory_bytes():
    raise CheckpointError(
      f"{file}: {name} claims shape {array.shape}, more than this machine's"
      " memory; refused."
    )
  return array


def _parse_zarray(content: Any, folder: pathlib.Path) -> _Zarr:
  """Raises ValueError, KeyError and the like where it can't be read here."""
  if content["zarr_format"] != 2 or content.get("filters"):
    raise ValueError("only zarr 2 without filters is read")
  compressor = content["compressor"]
  if compressor is not None and compressor["id"] not in ("gzip", "zlib"):
    raise ValueError(f"compressor {compressor['id']!r} is not read")
  shape, chunks = tuple(content["shape"]), tuple(content["chunks"])
  sizes = (*shape, *(chunk - 1 for chunk in chunks))
  if len(shape) != len(chunks) or not all(
    type(size) is int and 0 <= size < 2**48 for size in sizes
  ):
    raise ValueError(f"shape {shape} with chunks {chunks} is impossible")
  spelled = content["dtype"]
  # zarr's own spelling knows no bfloat16, so TensorStore writes the name.
  dtype = _DTYPES["bfloat16"] if spelled == "bfloat16" else np.dtype(spelled)
  if dtype.newbyteorder("=") not in _DTYPES.values():
    raise ValueError(f"dtype {spelled!r} is not read")
  if content["order"] not in ("C", "F"):
    raise ValueError(f"order {content['order']!r} is unknown")
  separator = content.get("dimension_separator", ".")
  if separator != ".":
    raise ValueError(f"dimension_separator {separator!r} is not read")
  return _Zarr(
    folder=folder,
    shape=shape,
    chunks=chunks,
    dtype=dtype,
    order=content["order"],
    separator=separator,
    compressed=compressor is not None,
    fill=_parse_fill(content.get("fill_value"), dtype.newbyteorder("=")),
  )


def _parse_fill(value: Any, dtype: np.dtype[Any]) -> int | float | None:
  """Raises ValueError and the like unless an array of dtype can hold it."""
  if value is None:
    return None
  if dtype.kind in "biu":
    fill = int(value)
    low, high = (0, 1)
    if dtype.kind != "b":
      low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    fits = fill == value and low <= fill <= high
    if not fits:
      raise ValueError(f"fill_value {str(value)[:60]} is no {dtype}")
    return fill
  number = float(value)  # "NaN" and "Infinity" are zarr's own spellings.
  if math.isfinite(number) and abs(number) > float(jnp.finfo(dtype).max):
    raise ValueError(f"fill_value {number} is no {dtype}")
  return number


def _read_zarr(array: _Zarr) -> np.ndarray:
  """All chunks put together; one that is absent is the fill value, if any.

  TensorStore leaves a chunk out only where it is the fill value, and T5X gives
  none: there, an absent one has been lost.
  """
  native = array.dtype.newbyteorder("=")
  result = np.full(array.shape, array.fill or 0, native)
  left = math.prod(
    -(-size // chunk)
    for size, chunk in zip(array.shape, array.chunks, strict=True)
  )
  for file in array.folder.iterdir():
    if not _CHUNK.fullmatch(file.name):
      continue
    place = [int(part) for part in file.name.split(array.separator)]
    if not array.shape and file.name == "0":
      place = []
    where = tuple(
      slice(i * chunk, (i + 1) * chunk)
      for i, chunk in zip(place, array.chunks, strict=False)
    )
    if len(place) != len(array.shape) or any(
      s.start >= size for s, size in zip(where, array.shape, strict=True)
    ):
      raise CheckpointError(f"{file} lies outside of its array.")
    # The last chunks of a dimension are stored whole.
    part = result[where]
    inside = tuple(slice(size) for size in part.shape)
    result[where] = _read_chunk(file, array)[inside]
    left -= 1
  if left and array.fill is None:
    raise CheckpointError(
      f"{array.folder}/ lacks {left} chunks: the copy is incomplete."
    )
  return result


def _read_chunk(file: pathlib.Path, array: _Zarr) -> np.ndarray:
  wanted = stored_trees.nbytes(array.chunks, array.dtype)
  content = file.read_bytes()
  if array.compressed:
    try:
      # Never more than a chunk: a small file can be made to fill any memory.
      unzip = zlib.decompressobj(wbits=47)
      content = unzip.decompress(content, wanted + 1)
    except zlib.error as error:
      raise CheckpointError(f"{file} is damaged: {error}") from error
  if len(content) != wanted:
    raise CheckpointError(
      f"{file} is damaged: {len(content)} bytes or more instead of {wanted}."
    )
  chunk = np.frombuffer(content, array.dtype)
  return chunk.reshape(array.chunks, order=array.order)  # type: ignore[call-overload]
