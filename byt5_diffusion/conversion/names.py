"""Which array of another program is which of ours.

A family of networks (UNet, autoencoder, T5, CLIP) has a module of its own here
with four functions: `config_from_json`, `config_to_json`, `entries` and
`shapes`. An entry names one array of ours and what it is made of; entries are
read in both directions. Our names are those of unrolled trees, relative to the
network's root: "down_blocks_0/resnets_0/conv1/kernel".
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

# What the command line calls networks and what it writes.
KINDS = ("auto", "unet", "autoencoder", "t5", "byt5", "clip_image")
TARGETS = ("ours", "t5x", "diffusers", "single_file", "transformers")
DTYPES = ("float32", "bfloat16")


class ConversionError(ValueError):
  """Weights that can't be converted; says which file and key, and why."""


class Entry(NamedTuple):
  """One array of ours.

  Attributes:
    ours: its name.
    theirs: the name of the array that it is made of.
    transform: key of TRANSFORMS.
    part: (i, n): ours is the i-th of n equal parts of theirs, split along the
      first axis of theirs, before the transform.
    runs: the first axis of theirs is so many runs of n parts, one behind the
      other; ours is made of the i-th part of each.
  """

  ours: str
  theirs: str
  transform: str = "same"
  part: tuple[int, int] = (0, 1)
  runs: int = 1


class Transform(NamedTuple):
  """A change of layout and its inverse; both return views where numpy can."""

  to_ours: Callable[[np.ndarray], np.ndarray]
  to_theirs: Callable[[np.ndarray], np.ndarray]


def _same(array: np.ndarray) -> np.ndarray:
  return array


TRANSFORMS: dict[str, Transform] = {
  "same": Transform(_same, _same),
  # PyTorch's Linear [out, in] and ours [in, out].
  "dense": Transform(np.transpose, np.transpose),
  # PyTorch's Conv2d [out, in, h, w] and ours [h, w, in, out].
  "conv": Transform(
    lambda x: np.transpose(x, (2, 3, 1, 0)),
    lambda x: np.transpose(x, (3, 2, 0, 1)),
  ),
  # A Conv1d [out, in, 1] of one position where ours is dense [in, out].
  "conv1d_as_dense": Transform(
    lambda x: np.transpose(x[:, :, 0]),
    lambda x: np.transpose(x)[:, :, None],
  ),
  # A 1 x 1 Conv2d [out, in, 1, 1] where ours is dense [in, out].
  "conv_as_dense": Transform(
    lambda x: np.transpose(x[:, :, 0, 0]),
    lambda x: np.transpose(x)[:, :, None, None],
  ),
}
