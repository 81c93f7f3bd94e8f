"""Arrays that lie in files at known places, each read when asked for.

What the formats of other programs have in common: a file is a stranger's, an
array is a range of its bytes, and no name in a file leads out of its folder.
Ranges are read, not mapped: a file that shrinks meanwhile is an error then,
and not the end of the process.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np

from byt5_diffusion import stored_trees
from byt5_diffusion.conversion import names

ConversionError = names.ConversionError

MAX_JSON_BYTES = 16 * 2**20
MAX_RANK = 16
MAX_NAME = 1024
DTYPES: dict[str, np.dtype[Any]] = {
  "bfloat16": np.dtype(ml_dtypes.bfloat16),
  **{
    name: np.dtype(name)
    for name in (
      *("float16", "float32", "float64", "bool"),
      *("int8", "int16", "int32", "int64"),
      *("uint8", "uint16", "uint32", "uint64"),
    )
  },
}
# One component that is no folder above, hidden or otherwise special.
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,254}")
_BLOCK = 2**20


class Place(NamedTuple):
  """Where an array lies.

  Attributes:
    file: its file, which stays where it is.
    offset: of its first byte.
    shape: of the array.
    dtype: of its numbers, little-endian.
    strides: in elements; None for C order.
  """

  file: pathlib.Path
  offset: int
  shape: tuple[int, ...]
  dtype: np.dtype[Any]
  strides: tuple[int, ...] | None = None


def check_shape(shape: Any, what: str) -> tuple[int, ...]:
  """The shape as a tuple of plausible sizes; raises ConversionError."""
  if (
    not isinstance(shape, (list, tuple))
    or len(shape) > MAX_RANK
    or not all(type(size) is int and 0 <= size < 2**48 for size in shape)
  ):
    raise ConversionError(f"{what} has an impossible shape.")
  return tuple(shape)


def check_name(name: Any, what: str) -> str:
  """The name of an array, which is text of a sensible length."""
  if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:
    raise ConversionError(f"{what} has an array without a sensible name.")
  if not name.isprintable():
    raise ConversionError(f"{what} has an array with the name {name[:80]!r}.")
  return name


def read(place: Place) -> np.ndarray:
  """The array in C order and memory of its own."""
  if place.strides is None:
    array: np.ndarray = np.empty(place.shape, place.dtype)
    _read_into(place, array)
    return array
  steps = zip(place.shape, place.strides, strict=True)
  count = 1 + sum((size - 1) * stride for size, stride in steps)
  if 0 in place.shape:
    return np.empty(place.shape, place.dtype)
  flat: np.ndarray = np.empty(count, place.dtype)
  _read_into(place, flat)
  strides = [stride * place.dtype.itemsize for stride in place.strides]
  view = np.lib.stride_tricks.as_strided(flat, place.shape, strides)
  return np.ascontiguousarray(view)


def _read_into(place: Place, array: np.ndarray) -> None:
  buffer = array.reshape(-1).view(np.uint8).data
  with open(place.file, "rb", buffering=0) as file:
    file.seek(place.offset)
    done = 0
    while done < len(buffer):
      count = file.readinto(buffer[done : done + 64 * _BLOCK])
      if not count:
        raise ConversionError(f"{place.file} ends too early: it was cut off.")
      done += count


def source(what: str, places: Mapping[str, Place]) -> stored_trees.Source:
  """Arrays by name; sizes are checked, and nothing is read yet."""
  limit = stored_trees.memory_bytes()
  for name, place in places.items():
    if stored_trees.nbytes(place.shape, place.dtype) > limit:
      raise ConversionError(
        f"{what}: {name} claims shape {place.shape}, more than this machine's"
        " memory; refused."
      )
  shapes = {
    name: jax.ShapeDtypeStruct(place.shape, place.dtype)
    for name, place in places.items()
  }

  def read_all(wanted: Collection[str]) -> dict[str, np.ndarray]:
    return {name: read(places[name]) for name in wanted}

  return stored_trees.Source(what, shapes, read_all)


# --- Files and folders. ---


def load_json(path: pathlib.Path) -> Any:
  """A small JSON file; a name that occurs twice is an error."""
  try:
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
      raise ConversionError(f"{path} is too large for JSON; refused.")
    return parse_json(path.read_bytes(), str(path))
  except OSError as error:
    raise ConversionError(f"{path} can't be read: {error.strerror}.") from None


def parse_json(content: bytes, what: str) -> Any:
  """JSON in UTF-8; a name that occurs twice is an error."""

  def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
      raise ValueError("a name occurs twice")
    return found

  try:
    return json.loads(content.decode("utf-8"), object_pairs_hook=unique)
  except (ValueError, RecursionError) as error:
    raise ConversionError(
      f"{what} is not valid JSON: {str(error)[:120]}."
    ) from None


def file_inside(folder: pathlib.Path, name: Any) -> pathlib.Path:
  """The plain file of that name in the folder, wherever it came from.

  Links must stay inside of the folder. A download cache of Hugging Face keeps
  its files one floor up, in `blobs`, and is known by its folders' names.

  Raises:
    ConversionError: no file name, a link that leaves, or no such file.
  """
  if not isinstance(name, str) or not _FILE_NAME.fullmatch(name):
    raise ConversionError(
      f"{folder} names {str(name)[:200]!r}, which is no file of that folder;"
      " refused."
    )
  path = folder / name
  real = path.resolve()
  home = folder.resolve()
  homes = [home]
  # A pipeline's networks lie one folder below its revision.
  for revision in (home, home.parent):
    if revision.parent.name == "snapshots":
      homes.append(revision.parent.parent / "blobs")
  if not any(real.is_relative_to(home) for home in homes):
    raise ConversionError(
      f"{path} is a link that leaves its folder; refused. Copy the folder with"
      " its links followed (`cp -rL`)."
    )
  if not path.is_file():
    raise ConversionError(f"{path} is missing: the download is incomplete.")
  return path


def folder_inside(folder: pathlib.Path, name: Any) -> pathlib.Path:
  """The folder of that name in the folder; as file_inside."""
  if not isinstance(name, str) or not _FILE_NAME.fullmatch(name):
    raise ConversionError(
      f"{folder} names {str(name)[:200]!r}, which is no folder of it; refused."
    )
  path = folder / name
  if not path.is_dir():
    raise ConversionError(f"{path}/ is missing: the download is incomplete.")
  if not path.resolve().is_relative_to(folder.resolve()):
    raise ConversionError(f"{path} is a link that leaves its folder; refused.")
  return path


def read_index(
  index: pathlib.Path, suffix: str, open_file: Callable[[pathlib.Path], Any]
) -> dict[str, Place]:
  """All arrays of a model that is split over files.

  Args:
    index: model.safetensors.index.json and the like.
    suffix: which all of the files' names have.
    open_file: file -> {name: Place}.

  Raises:
    ConversionError: the index and the files disagree.
  """
  content = load_json(index)
  where = content.get("weight_map") if isinstance(content, dict) else None
  if not isinstance(where, dict) or not where:
    raise ConversionError(f"{index} has no weight_map.")
  found: dict[str, Place] = {}
  for shard in sorted(set(map(str, where.values()))):
    if not shard.endswith(suffix):
      raise ConversionError(f"{index} names {shard[:200]!r}, no {suffix} file.")
    part = open_file(file_inside(index.parent, shard))
    expected = {name for name, file in where.items() if file == shard}
    wrong = sorted(expected ^ set(part))
    if wrong:
      raise ConversionError(
        f"{index.parent / shard} and {index.name} disagree about"
        f" {stored_trees.some(wrong, 10)}."
      )
    found |= part
  return found


def sha256(path: pathlib.Path, advance: Callable[[int], Any]) -> str:
  """The file's hash; advance is told of every few bytes."""
  digest = hashlib.sha256()
  with open(path, "rb") as file:
    while block := file.read(8 * _BLOCK):
      digest.update(block)
      advance(len(block))
  return digest.hexdigest()


@contextlib.contextmanager
def whole(output: pathlib.Path) -> Iterator[pathlib.Path]:
  """A new path beside output that becomes output if the body succeeds.

  Raises:
    ConversionError: output exists: it is never overwritten.
  """
  refuse_existing(output)
  output.parent.mkdir(parents=True, exist_ok=True)
  temporary = output.with_name(f"{output.name}.partial-{os.getpid()}")
  remove(temporary)
  try:
    yield temporary
    refuse_existing(output)
    os.rename(temporary, output)
  except BaseException:
    # Orbax has names of its own, behind this one, while it writes.
    for path in output.parent.iterdir():
      if path.name.startswith(temporary.name):
        remove(path)
    raise


def refuse_existing(output: pathlib.Path) -> None:
  """Raises ConversionError if there is anything of that name."""
  if os.path.lexists(output):
    raise ConversionError(f"{output} exists. It is not overwritten.")


def remove(path: pathlib.Path) -> None:
  """Deletes a file or a folder of ours; what is not there is no error."""
  import shutil

  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)
