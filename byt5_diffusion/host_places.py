"""Where every host stood in the data, in one array of a checkpoint.

Version 2 of the format: the array `places`, of bytes: the length of a header
(8 bytes, little endian), the header (JSON: sizes of the distinct places, and
which of them each process had), and those places. Processes that read the same
rows share one, and 256 hosts cost one array, not 256.

Version 1: an array `host_<i>` per process, each behind a byte of no meaning.
"""

import json
import struct
from collections.abc import Sequence

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from byt5_diffusion import stored_trees

CheckpointError = stored_trees.CheckpointError
_LENGTH = struct.Struct("<Q")


def pack(states: Sequence[bytes]) -> dict[str, np.ndarray]:
  """The item `data` of a checkpoint, from every process's place."""
  distinct = list(dict.fromkeys(states))
  header = {
    "sizes": [len(state) for state in distinct],
    "processes": [distinct.index(state) for state in states],
  }
  head = json.dumps(header).encode()
  content = b"".join([_LENGTH.pack(len(head)), head, *distinct])
  return {"places": np.frombuffer(content, np.uint8)}


def _unpack(content: bytes) -> list[bytes]:
  """Inverse of pack; raises ValueError, KeyError and their like."""
  start = _LENGTH.size
  end = start + _LENGTH.unpack(content[:start])[0]
  header = json.loads(content[start:end])
  distinct = []
  for size in header["sizes"]:
    if type(size) is not int or not 0 <= size <= len(content) - end:
      raise ValueError(f"a place of {size} bytes")
    distinct.append(content[end : end + size])
    end += size
  if end != len(content) or min(header["processes"]) < 0:
    raise ValueError("sizes that do not fit")
  return [distinct[i] for i in header["processes"]]


def read(item: epath.Path) -> list[bytes]:
  """The place of each process that wrote the checkpoint; both versions."""
  names = stored_trees.stored(item)
  arrays = stored_trees.read(item, {name: np.empty([0]) for name in names})
  try:
    if "places" in arrays:
      return _unpack(arrays["places"].tobytes())
    hosts = [arrays[f"host_{i}"] for i in range(len(arrays))]
  except (ValueError, KeyError, TypeError, IndexError, struct.error) as error:
    raise CheckpointError(
      f"{item} is damaged: {type(error).__name__}: {error}"
    ) from error
  return [array.tobytes()[1:] for array in hosts]


def gather(own: bytes) -> list[bytes]:
  """Every process's bytes, on every process."""
  if jax.process_count() == 1:
    return [own]
  array = np.frombuffer(own, np.uint8)
  sizes = multihost_utils.process_allgather(np.asarray([array.size]))[:, 0]
  padded = np.zeros([max(int(sizes.max()), 1)], np.uint8)
  padded[: array.size] = array
  rows = multihost_utils.process_allgather(padded)
  return [rows[i, :size].tobytes() for i, size in enumerate(sizes)]
