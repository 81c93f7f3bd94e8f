"""Mesh TensorFlow's checkpoints (model.ckpt-<step>.index): the T5s' first home.

Read with TensorFlow, which is imported here and only when it is called for.
Its reader runs nothing of a checkpoint: it holds arrays and their names.
"""

import pathlib
import re
from collections.abc import Collection
from typing import Any

import jax
import numpy as np

from byt5_diffusion import stored_trees
from byt5_diffusion.conversion import names, tensor_files

ConversionError = names.ConversionError
_INDEX = re.compile(r"(.+-(\d+))\.index")
_DATA = re.compile(r".*\.data-\d{5}-of-\d{5}")


def find(path: pathlib.Path) -> pathlib.Path | None:
  """The prefix of the checkpoint at path: a folder, its index, or the prefix.

  Of several in a folder, the one of the latest step.
  """
  if path.is_dir():
    steps = {
      int(match[2]): path / match[1]
      for entry in path.iterdir()
      if (match := _INDEX.fullmatch(entry.name)) and entry.is_file()
    }
    return steps[max(steps)] if steps else None
  prefix = path.with_name(path.name.removesuffix(".index"))
  index = prefix.with_name(f"{prefix.name}.index")
  return prefix if index.is_file() and _INDEX.fullmatch(index.name) else None


def files(prefix: pathlib.Path) -> list[pathlib.Path]:
  """The checkpoint's files, each of which lies in its folder."""
  found = [prefix.with_name(f"{prefix.name}.index")]
  found += [
    tensor_files.file_inside(prefix.parent, entry.name)
    for entry in sorted(prefix.parent.iterdir())
    if entry.name.startswith(f"{prefix.name}.data-")
    and _DATA.fullmatch(entry.name)
  ]
  if len(found) < 2:
    raise ConversionError(
      f"{prefix}.data-* is missing: the copy is incomplete."
    )
  return found


def open_source(prefix: pathlib.Path) -> stored_trees.Source:
  """Its arrays under their own names, optimizer states among them; unread.

  Raises:
    ConversionError: TensorFlow is absent, or can't read it.
  """
  try:
    import tensorflow as tf
  except ImportError:
    raise ConversionError(
      f"{prefix} is a checkpoint of Mesh TensorFlow, which TensorFlow reads:"
      ' install it with `pip install "byt5-diffusion[data]"`.'
    ) from None
  total = sum(file.stat().st_size for file in files(prefix))
  try:
    reader = tf.train.load_checkpoint(str(prefix))
    sizes = reader.get_variable_to_shape_map()
    dtypes = reader.get_variable_to_dtype_map()
  except Exception as error:  # Of many kinds.
    raise ConversionError(
      f"{prefix} can't be read: {str(error)[:200]}"
    ) from None
  shapes = {}
  for name in sorted(sizes):
    shapes[name] = _shape(prefix, name, sizes[name], dtypes[name])
  claimed = sum(stored_trees.nbytes(x.shape, x.dtype) for x in shapes.values())
  if claimed > total:
    raise ConversionError(
      f"{prefix} claims {claimed} bytes of arrays and has {total}; refused."
    )

  def read(wanted: Collection[str]) -> dict[str, np.ndarray]:
    try:
      return {name: np.asarray(reader.get_tensor(name)) for name in wanted}
    except Exception as error:
      raise ConversionError(
        f"{prefix} is damaged: {str(error)[:200]}"
      ) from None

  return stored_trees.Source(f"Mesh TensorFlow's {prefix}", shapes, read)


def _shape(
  prefix: pathlib.Path, name: str, shape: Any, dtype: Any
) -> jax.ShapeDtypeStruct:
  kind = tensor_files.DTYPES.get(dtype.name)
  if kind is None:
    raise ConversionError(
      f"{prefix}: {name[:80]} has the dtype {dtype.name}, which is not read."
    )
  sizes = tensor_files.check_shape(list(shape), f"{prefix}: {name[:80]}")
  return jax.ShapeDtypeStruct(sizes, kind)
