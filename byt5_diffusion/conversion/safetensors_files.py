"""Safetensors: a JSON header, and the arrays one after the other.

https://huggingface.co/docs/safetensors: eight bytes of length, the header
{name: {dtype, shape, data_offsets}, "__metadata__": {..}}, and data without
gaps. Read by range and written array by array: neither needs the memory of
more than one.
"""

import json
import math
import pathlib
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from byt5_diffusion import stored_trees
from byt5_diffusion.conversion import names, tensor_files

ConversionError = names.ConversionError
Place = tensor_files.Place

SUFFIX = ".safetensors"
# A model of 10,000 arrays has 1.5 MB.
MAX_HEADER_BYTES = 16 * 2**20
MAX_SHARD_BYTES = 5 * 10**9
_DTYPES = {
  "F64": "float64",
  "F32": "float32",
  "F16": "float16",
  "BF16": "bfloat16",
  "I64": "int64",
  "I32": "int32",
  "I16": "int16",
  "I8": "int8",
  "U64": "uint64",
  "U32": "uint32",
  "U16": "uint16",
  "U8": "uint8",
  "BOOL": "bool",
}
_SPELLED = {name: spelled for spelled, name in _DTYPES.items()}


class Header(NamedTuple):
  """What a file says of itself.

  Attributes:
    places: {name: where it lies}.
    metadata: {text: text} of its writer.
  """

  places: dict[str, Place]
  metadata: dict[str, str]


def read_header(path: pathlib.Path) -> Header:
  """The header, once all that it claims is found to be so.

  Raises:
    ConversionError: not such a file, damaged, cut off, absurdly large, with
      arrays that overlap or leave gaps, or of a dtype that is not read.
  """
  try:
    size = path.stat().st_size
    with open(path, "rb") as file:
      start = file.read(8)
      if len(start) < 8:
        raise ConversionError(f"{path} is too short for safetensors.")
      [length] = struct.unpack("<Q", start)
      if length > min(MAX_HEADER_BYTES, size - 8):
        raise ConversionError(
          f"{path} is no safetensors file, or damaged: it claims a header of"
          f" {length} bytes."
        )
      content = tensor_files.parse_json(file.read(length), f"{path}: header")
  except OSError as error:
    raise ConversionError(f"{path} can't be read: {error.strerror}.") from None
  if not isinstance(content, dict):
    raise ConversionError(f"{path}: the header is not a dict.")
  metadata = content.pop("__metadata__", None) or {}
  if not isinstance(metadata, dict) or not all(
    isinstance(value, str) for value in metadata.values()
  ):
    raise ConversionError(f"{path}: __metadata__ is not a dict of texts.")
  places = {}
  for name, entry in content.items():
    what = f"{path}: {tensor_files.check_name(name, str(path))}"
    places[name] = _parse(entry, what, path, 8 + length)
  _check_gapless(places, path, 8 + length, size)
  return Header(places, metadata)


def _parse(entry: Any, what: str, path: pathlib.Path, start: int) -> Place:
  if not isinstance(entry, dict) or set(entry) != {
    "dtype",
    "shape",
    "data_offsets",
  }:
    raise ConversionError(f"{what} has other fields than an array has.")
  spelled = entry["dtype"]
  if not isinstance(spelled, str) or spelled not in _DTYPES:
    raise ConversionError(
      f"{what} has the dtype {str(spelled)[:40]!r}; read are"
      f" {', '.join(_DTYPES)}."
    )
  dtype = tensor_files.DTYPES[_DTYPES[spelled]]
  shape = tensor_files.check_shape(entry["shape"], what)
  offsets = entry["data_offsets"]
  if (
    not isinstance(offsets, list)
    or len(offsets) != 2
    or not all(type(x) is int and 0 <= x < 2**62 for x in offsets)
    or offsets[1] - offsets[0] != stored_trees.nbytes(shape, dtype)
  ):
    raise ConversionError(f"{what} has offsets that don't fit its shape.")
  return Place(path, start + offsets[0], shape, dtype)


def _check_gapless(
  places: Mapping[str, Place], path: pathlib.Path, start: int, size: int
) -> None:
  """As the format demands: no two arrays share a byte, and none is unused."""
  end = start
  for name, place in sorted(places.items(), key=lambda item: item[1].offset):
    # An empty array may lie anywhere between others.
    count = stored_trees.nbytes(place.shape, place.dtype)
    if place.offset != end and count:
      how = "overlaps another" if place.offset < end else "leaves a gap"
      raise ConversionError(f"{path}: {name} {how}; refused.")
    if place.offset > size:
      raise ConversionError(f"{path}: {name} lies beyond the file.")
    end += count
  if end != size:
    raise ConversionError(
      f"{path} has {size} bytes, and its header speaks of {end}: the file was"
      " cut off, or something was added to it."
    )


def read_places(path: pathlib.Path) -> dict[str, Place]:
  """{name: where it lies}; see read_header."""
  return read_header(path).places


# --- Writing. ---

Shapes = Mapping[str, jax.ShapeDtypeStruct]
Read = Callable[[str], np.ndarray]


def write(
  path: pathlib.Path,
  shapes: Shapes,
  read: Read,
  metadata: Mapping[str, str] | None = None,
) -> None:
  """Writes a new file, one array after the other.

  Args:
    path: which does not exist.
    shapes: {name: shape and dtype}, in the order of the file.
    read: name -> array; called once for each, in that order.
    metadata: of the writer.
  """
  header: dict[str, Any] = {}
  if metadata:
    header["__metadata__"] = dict(metadata)
  end = 0
  for name, leaf in shapes.items():
    start, end = end, end + stored_trees.nbytes(leaf.shape, leaf.dtype)
    header[name] = {
      "dtype": _SPELLED[np.dtype(leaf.dtype).name],
      "shape": list(leaf.shape),
      "data_offsets": [start, end],
    }
  text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)  # Data begin at a multiple of eight.
  if len(text) > MAX_HEADER_BYTES:
    raise ConversionError(f"{path}: too many arrays for one file.")
  with open(path, "xb") as file:
    file.write(struct.pack("<Q", len(text)))
    file.write(text)
    for name, leaf in shapes.items():
      array = read(name)
      if array.shape != tuple(leaf.shape) or array.dtype != leaf.dtype:
        raise AssertionError(f"{name} is not what was announced.")
      in_pieces(array, file.write)
      del array  # Before the next is read.


def in_pieces(array: np.ndarray, take: Callable[[Any], Any]) -> None:
  """Hands over an array's bytes in C order, without a copy of the whole."""
  if array.ndim > 1 and not array.flags.c_contiguous:
    rows = max(1, 2**24 // max(1, array[:1].nbytes))
    for i in range(0, len(array), rows):
      in_pieces(np.ascontiguousarray(array[i : i + rows]), take)
    return
  if array.size:
    take(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def write_sharded(
  folder: pathlib.Path,
  stem: str,
  shapes: Shapes,
  read: Read,
  max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
  """Writes stem.safetensors, or stem-00001-of-00009.safetensors and an index.

  Args:
    folder: which exists.
    stem: "diffusion_pytorch_model" or "model".
    shapes, read: see write.
    max_shard_bytes: of arrays in one file; a larger array has its own.
  """
  shards = list(_split(shapes, max_shard_bytes))
  metadata = {"format": "pt"}
  if len(shards) == 1:
    write(folder / f"{stem}{SUFFIX}", shapes, read, metadata)
    return
  where: dict[str, str] = {}
  for i, part in enumerate(shards):
    name = f"{stem}-{i + 1:05d}-of-{len(shards):05d}{SUFFIX}"
    write(folder / name, {k: shapes[k] for k in part}, read, metadata)
    where |= dict.fromkeys(part, name)
  total = sum(stored_trees.nbytes(x.shape, x.dtype) for x in shapes.values())
  index = {"metadata": {"total_size": total}, "weight_map": where}
  text = json.dumps(index, indent=1) + "\n"
  (folder / f"{stem}{SUFFIX}.index.json").write_text(text, "utf-8")


def _split(shapes: Shapes, most: int) -> Iterable[list[str]]:
  part: list[str] = []
  total = 0
  for name, leaf in shapes.items():
    count = math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
    if part and total + count > most:
      yield part
      part, total = [], 0
    part.append(name)
    total += count
  yield part
