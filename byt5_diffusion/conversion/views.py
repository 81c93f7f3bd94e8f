"""Sources under another form: unrolled, stacked or cast; still unread.

Layers are stacked as scanned networks have them (byt5.stacked): the layers'
axis comes second, and `layers_0/..., layers_1/...` are one `layers/...`.
"""

import collections
import re
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np

from byt5_diffusion import byt5, stored_trees
from byt5_diffusion.conversion import names

ConversionError = names.ConversionError
Source = stored_trees.Source

AXIS = byt5.SCAN_AXIS
# Stacked arrays are kept so long, so that each is not read once per layer.
_KEPT_BYTES = 2**30
_MAX_LAYERS = 10_000
_AHEAD_BYTES = 8 * 2**20
_AHEAD_COUNT = 64
_STACKED = re.compile(r"((?:.*/)?)layers/(.*)")
_LAYER = re.compile(r"((?:.*/)?)layers_(0|[1-9][0-9]*)/(.*)")


def cast(source: Source, dtype: str | None) -> Source:
  """The source with its floats in dtype; None leaves them."""
  if dtype is None:
    return source
  wanted = np.dtype(dtype)

  def becomes(leaf: Any) -> np.dtype[Any]:
    floats = jax.dtypes.issubdtype(leaf.dtype, np.floating)
    return wanted if floats else np.dtype(leaf.dtype)

  def read(chosen: Collection[str]) -> dict[str, np.ndarray]:
    found = source.read(chosen)
    for name, array in found.items():
      found[name] = array.astype(becomes(array), copy=False)
    return found

  shapes = {
    name: jax.ShapeDtypeStruct(leaf.shape, becomes(leaf))
    for name, leaf in source.shapes.items()
  }
  return Source(source.what, shapes, read)


def renamed(source: Source, where: Mapping[str, str]) -> Source:
  """The source's arrays under other names.

  Args:
    source: of arrays.
    where: {new name: name in the source}; others are left out.
  """

  def read(chosen: Collection[str]) -> dict[str, np.ndarray]:
    found = source.read([where[name] for name in chosen])
    return {name: found[where[name]] for name in chosen}

  shapes = {name: source.shapes[old] for name, old in where.items()}
  return Source(source.what, shapes, read)


def joined(what: str, sources: Collection[Source]) -> Source:
  """Several sources as one.

  Raises:
    ConversionError: two have an array of one name.
  """
  home: dict[str, Source] = {}
  for source in sources:
    twice = sorted(set(home) & set(source.shapes))
    if twice:
      raise ConversionError(f"{what} holds {twice[0]} twice.")
    home |= dict.fromkeys(source.shapes, source)

  def read(chosen: Collection[str]) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for source in sources:
      own = [name for name in chosen if home[name] is source]
      if own:
        found |= source.read(own)
    return found

  shapes = {name: source.shapes[name] for name, source in home.items()}
  return Source(what, shapes, read)


def ahead(source: Source) -> Source:
  """The source, read a few neighbours at a time.

  Opening a database anew for every array of a large network takes longer than
  reading it. What was read and not yet asked for is bounded.
  """
  order = sorted(source.shapes)
  place = {name: i for i, name in enumerate(order)}
  waiting: dict[str, np.ndarray] = {}

  def fill(name: str) -> None:
    if _total(waiting) > _AHEAD_BYTES:
      waiting.clear()
    chosen, total = [name], 0
    for other in order[place[name] + 1 : place[name] + _AHEAD_COUNT]:
      leaf = source.shapes[other]
      total += stored_trees.nbytes(leaf.shape, leaf.dtype)
      if total > _AHEAD_BYTES:
        break
      if other not in waiting:
        chosen.append(other)
    waiting.update(source.read(chosen))

  def read(wanted: Collection[str]) -> dict[str, np.ndarray]:
    if len(wanted) > 1:
      return source.read(wanted)
    found = {}
    for name in wanted:
      if name not in waiting:
        fill(name)
      found[name] = waiting.pop(name)
    return found

  return Source(source.what, source.shapes, read)


def is_stacked(found: Collection[str]) -> bool:
  """Whether some layers are stacked."""
  return any(_STACKED.fullmatch(name) for name in found)


def unrolled(source: Source) -> Source:
  """The source with its stacked layers apart: `layers_0`, `layers_1`, ..

  Stacked arrays are read whole and a few of them kept, so this takes more
  memory than one layer's.

  Raises:
    ConversionError: stacked arrays are too few for their axis.
  """
  where: dict[str, tuple[str, int | None]] = {}
  shapes = {}
  for name, leaf in source.shapes.items():
    match = _STACKED.fullmatch(name)
    if match is None:
      where[name], shapes[name] = (name, None), leaf
      continue
    if len(leaf.shape) <= AXIS or leaf.shape[AXIS] > _MAX_LAYERS:
      raise ConversionError(
        f"{source.what}: {name} {list(leaf.shape)} is no stack of layers."
      )
    rest = (*leaf.shape[:AXIS], *leaf.shape[AXIS + 1 :])
    for i in range(leaf.shape[AXIS]):
      own = f"{match[1]}layers_{i}/{match[2]}"
      where[own] = (name, i)
      shapes[own] = jax.ShapeDtypeStruct(rest, leaf.dtype)
  kept: collections.OrderedDict[str, np.ndarray] = collections.OrderedDict()

  def load(name: str) -> np.ndarray:
    if name not in kept:
      array = source.read([name])[name]
      while kept and array.nbytes + _total(kept) > _KEPT_BYTES:
        kept.popitem(last=False)
      kept[name] = array
    return kept[name]

  def read(chosen: Collection[str]) -> dict[str, np.ndarray]:
    found = {}
    for own in chosen:
      name, i = where[own]
      if i is None:
        found[own] = source.read([name])[name]
      else:
        found[own] = np.ascontiguousarray(np.take(load(name), i, AXIS))
    return found

  return Source(source.what, shapes, read)


def _total(arrays: Mapping[str, np.ndarray]) -> int:
  return sum(array.nbytes for array in arrays.values())


def stacked_name(name: str) -> str:
  """What an array of an unrolled tree is part of in a stacked one."""
  match = _LAYER.fullmatch(name)
  return f"{match[1]}layers/{match[3]}" if match else name


def stacked(source: Source) -> Source:
  """The source with its layers together: the inverse of unrolled.

  Raises:
    ConversionError: a layer is missing, or layers differ.
  """
  parts: dict[str, dict[int, str]] = {}
  plain: dict[str, str] = {}
  for name in source.shapes:
    match = _LAYER.fullmatch(name)
    if match is None:
      plain[name] = name
    else:
      own = f"{match[1]}layers/{match[3]}"
      parts.setdefault(own, {})[int(match[2])] = name
  shapes = {name: source.shapes[name] for name in plain}
  for own, layers in parts.items():
    leaves = {source.shapes[name] for name in layers.values()}
    if set(layers) != set(range(len(layers))) or len(leaves) != 1:
      raise ConversionError(
        f"{source.what}: the layers of {own} have gaps or differ; they can't be"
        " stacked."
      )
    [leaf] = leaves
    shape = (*leaf.shape[:AXIS], len(layers), *leaf.shape[AXIS:])
    shapes[own] = jax.ShapeDtypeStruct(shape, leaf.dtype)

  def read(chosen: Collection[str]) -> dict[str, np.ndarray]:
    found = {}
    for own in chosen:
      if own in plain:
        found[own] = source.read([own])[own]
        continue
      whole: np.ndarray = np.empty(shapes[own].shape, shapes[own].dtype)
      for i, name in parts[own].items():
        whole[:, i] = source.read([name])[name]
      found[own] = whole
    return found

  return Source(source.what, shapes, read)
