"""Writes a tree of ours (stored_trees.save_tree's), array after array.

save_tree holds all of a tree at once; here orbax is given arrays that are read
when their turn comes and are gone when they are written, so that the largest
array is what it takes, and not the sum. The tree's hash is made on the way.
"""

import contextlib
import hashlib
import json
import logging
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from orbax.checkpoint import type_handlers

from byt5_diffusion import stored_trees
from byt5_diffusion.conversion import safetensors_files

# Of one array's chunk, of which TensorStore makes a copy and a compressed form.
_CHUNK_BYTES = 8 * 2**20


class _Announced:
  """What orbax may know of an array before it is read."""

  def __init__(self, name: str, leaf: jax.ShapeDtypeStruct) -> None:
    self.name = name
    self.shape = tuple(leaf.shape)
    self.dtype = np.dtype(leaf.dtype)
    self.ndim = len(self.shape)
    self.size = int(np.prod(self.shape, dtype=object))
    self.nbytes = self.size * self.dtype.itemsize


class _OneByOne(type_handlers.NumpyHandler):
  """Reads, hashes and writes an array before it looks at the next."""

  def __init__(
    self, source: stored_trees.Source, advance: Callable[[int], Any]
  ) -> None:
    super().__init__(deepcopy_host_arrays=False)
    self.digest = hashlib.sha256()
    self._source = source
    self._advance = advance

  async def serialize(
    self, values: Sequence[Any], infos: Sequence[Any], args: Any = None
  ) -> Sequence[Any]:
    """In the order of names, which is that of stored_trees.tree_sha256."""
    args = args or [type_handlers.SaveArgs()] * len(values)
    for i in sorted(range(len(values)), key=lambda i: values[i].name):
      name = values[i].name
      array = self._source.read([name])[name]
      self._add(name, array)
      writes = await super().serialize([array], [infos[i]], [args[i]])
      for write in writes:
        write.result()
      self._advance(array.nbytes)
      del array, writes
    return []

  def _add(self, name: str, array: np.ndarray) -> None:
    header = f"{name}\0{array.dtype.name}\0{array.shape}\0"
    self.digest.update(header.encode())
    safetensors_files.in_pieces(array, self.digest.update)

  async def _open_and_write(
    self, value: Any, tspec: Any, ts_context: Any
  ) -> Any:
    """Chunk by chunk: given all, TensorStore compresses all before it writes.

    An orbax that does not call this writes the same in more memory.
    """
    store = await tensorstore.open(
      tensorstore.Spec(tspec), create=True, open=True, context=ts_context
    )
    chunk = store.chunk_layout.write_chunk.shape or value.shape
    counts = [-(-size // n) for size, n in zip(value.shape, chunk, strict=True)]
    for place in np.ndindex(*counts):
      where = tuple(
        slice(i * n, min((i + 1) * n, size))
        for i, n, size in zip(place, chunk, value.shape, strict=True)
      )
      await store[where].write(np.ascontiguousarray(value[where]))


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
  """Orbax warns that there is no database to merge, and there is to be none."""
  logger = logging.getLogger("absl")
  level = logger.level
  logger.setLevel(logging.ERROR)
  try:
    yield
  finally:
    logger.setLevel(level)


def write(
  folder: pathlib.Path,
  source: stored_trees.Source,
  advance: Callable[[int], Any] = lambda count: None,
) -> str:
  """Writes all of the source to a new folder; the tree's sha256.

  Args:
    folder: absolute; of checkpoints.load_tree and the like, afterwards.
    source: arrays by name, each of which is read once.
    advance: told of every array's bytes.
  """
  announced = {k: _Announced(k, leaf) for k, leaf in source.shapes.items()}
  handler = _OneByOne(source, advance)
  registry = type_handlers.create_type_handler_registry(
    (_Announced, handler),
    # Of no array here; without one, orbax warns.
    (jax.Array, type_handlers.ArrayHandler()),
  )
  tree = stored_trees.nest(announced)
  arguments = stored_trees.nest(
    {k: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES) for k in announced}
  )
  handlers = ocp.CompositeCheckpointHandler(
    state=ocp.PyTreeCheckpointHandler(
      type_handler_registry=registry,
      # A folder for each array: the database of all of them remembers every
      # chunk that was written, and grows in memory with their number.
      use_ocdbt=False,
    ),
    extra=ocp.JsonCheckpointHandler(),
  )
  with _without_warnings(), ocp.Checkpointer(handlers) as writer:
    writer.save(
      folder,
      args=ocp.args.Composite(
        state=ocp.args.PyTreeSave(tree, save_args=arguments),
        extra=ocp.args.JsonSave(stored_trees.wrap_extra({})),
      ),
    )
  sha256 = handler.digest.hexdigest()
  record = stored_trees.wrap_extra({"sha256": sha256})
  (folder / "extra" / "metadata").write_text(json.dumps(record), "utf-8")
  return sha256
