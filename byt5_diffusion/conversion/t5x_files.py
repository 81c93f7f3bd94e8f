"""Writes T5X's older layout: msgpack with a zarr folder for each array.

It is the one that T5X renames from when it restores (`assignment_map`); from
its orbax checkpoints it cannot. t5x_checkpoints.py reads it.
"""

import json
import math
import pathlib
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np

from byt5_diffusion import stored_trees
from byt5_diffusion.conversion import names, safetensors_files

FILE_VERSION = 3
_CHUNK_BYTES = 32 * 2**20
_NDARRAY = 1  # As flax numbers msgpack's extensions.


def write(
  folder: pathlib.Path,
  source: stored_trees.Source,
  step: int = 0,
  advance: Callable[[int], Any] = lambda count: None,
) -> None:
  """Writes all of the source as a checkpoint_<step> folder, without optimizer.

  Args:
    folder: which does not exist.
    source: arrays by name, each of which is read once; "flax_mutables/..." is
      what it is called, the rest is T5X's `target`.
    step: that the checkpoint claims.
    advance: told of every array's bytes.
  """
  folder.mkdir()
  tree: dict[str, Any] = {
    "target": {},
    # T5X takes an empty dict for an array: no `param_states` is right.
    "state": {"step": _pack(np.int32(step))},
  }
  for name, leaf in source.shapes.items():
    parts = name.split("/")
    if parts[0] != "flax_mutables":
      parts.insert(0, "target")
    place = ".".join(parts)
    if "/" in place or not place.replace(".", "").replace("_", "").isalnum():
      raise names.ConversionError(f"{name} can't be the name of T5X's array.")
    spec = _write_array(folder / place, source.read([name])[name])
    spec["kvstore"] = {"driver": "file", "path": f"{place}/"}
    node = tree
    for part in parts[:-1]:
      node = node.setdefault(part, {})
    node[parts[-1]] = spec
    advance(stored_trees.nbytes(leaf.shape, leaf.dtype))
  content = {"version": FILE_VERSION, "optimizer": tree}
  (folder / "checkpoint").write_bytes(msgpack.packb(content))


def _pack(value: np.generic) -> msgpack.ExtType:
  array = np.asarray(value)
  content = (array.shape, array.dtype.name, array.tobytes())
  return msgpack.ExtType(_NDARRAY, msgpack.packb(content))


def _write_array(folder: pathlib.Path, array: np.ndarray) -> dict[str, Any]:
  """A zarr v2 folder, cut along the first axis; T5X's spec of it."""
  folder.mkdir()
  chunks = list(array.shape)
  if array.ndim and array.size:
    pieces = min(len(array), -(-array.nbytes // _CHUNK_BYTES))
    chunks[0] = -(-len(array) // pieces)
  # Weights hardly shrink, and gzip takes a second for ten megabytes.
  compressor = None
  dtype = array.dtype.name
  metadata = {
    "chunks": chunks,
    "compressor": compressor,
    "dimension_separator": ".",
    # TensorStore's name, as zarr knows no bfloat16.
    "dtype": dtype if dtype == "bfloat16" else array.dtype.str,
    "fill_value": None,
    "filters": None,
    "order": "C",
    "shape": list(array.shape),
    "zarr_format": 2,
  }
  text = json.dumps(metadata, separators=(",", ":"))
  (folder / ".zarray").write_text(text, "utf-8")
  if not array.ndim:
    _write_chunk(folder / "0", array)
  elif array.size:
    tail = ".0" * (array.ndim - 1)
    for i in range(math.ceil(len(array) / chunks[0])):
      piece = array[i * chunks[0] : (i + 1) * chunks[0]]
      if len(piece) < chunks[0]:
        # The last chunk is stored whole.
        whole = np.zeros(chunks, array.dtype)
        whole[: len(piece)] = piece
        piece = whole
      _write_chunk(folder / f"{i}{tail}", piece)
  return {
    "driver": "zarr",
    "dtype": dtype,
    "metadata": {
      "chunks": chunks,
      "compressor": compressor,
      "shape": list(array.shape),
    },
  }


def _write_chunk(path: pathlib.Path, piece: np.ndarray) -> None:
  with open(path, "xb") as file:
    safetensors_files.in_pieces(piece, file.write)
