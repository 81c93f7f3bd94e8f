"""The published aesthetic predictors: scores of CLIP embeddings of pictures.

  version  file                                  scores of photographs
  1        sa_0_4_vit_l_14_linear.pth (LAION)    about 0 to 10, and beyond
  2        sac+logos+ava1-l14-linearMSE.pth      about 2 to 7
  2        ava+logos-l14-reluMSE.pth             likewise

The scales differ, so a threshold is of one version (data/filters.py). Files are
read without running what is pickled in them.
"""

import dataclasses
import itertools
import os
import pathlib
import re
from collections.abc import Mapping

import numpy as np

from byt5_diffusion.conversion import pickled_files, tensor_files

_PARTS = ("weight", "bias")
_WIDTHS = (512, 768)  # CLIP ViT-B/32's and ViT-L/14's.
_MAX_WIDTH = 4096
_LINEAR = (0, 2, 4, 6, 7)  # Places of the layers, dropout between them.
_RELU = (0, 3, 6, 9, 11)  # With a ReLU behind each but the last two.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predictor:
  """A head on CLIP's image embeddings.

  Attributes:
    version: 1, LAION's; 2, "improved-aesthetic-predictor".
    layers: (weight [out, in], bias [out]) of each, float64.
    relu: whether ReLUs stand between the layers.
  """

  version: int
  layers: tuple[tuple[np.ndarray, np.ndarray], ...]
  relu: bool = False

  @property
  def width(self) -> int:
    """Numbers of an embedding."""
    return int(self.layers[0][0].shape[1])

  def scores(self, embeddings: np.ndarray) -> np.ndarray:
    """Scores of pictures.

    Args:
      embeddings: [N, width], of length 1 each; others are brought to it, as the
        published programs do.

    Returns:
      float64 [N].

    Raises:
      ValueError: another shape, or numbers that are no embedding.
    """
    found = np.asarray(embeddings, np.float64)
    if found.ndim != 2 or found.shape[1] != self.width:
      raise ValueError(
        f"Embeddings have shape {found.shape}; this predictor's are [N, "
        f"{self.width}]."
      )
    norms = np.linalg.norm(found, axis=1, keepdims=True)
    if not np.all(np.isfinite(norms) & (norms > 0)):
      raise ValueError("Embeddings must be finite and not all zero.")
    values = found / norms
    for i, (weight, bias) in enumerate(self.layers):
      values = values @ weight.T + bias
      if self.relu and i < len(self.layers) - 2:
        values = np.maximum(values, 0)
    return values[:, 0]

  def affine(self) -> tuple[np.ndarray, float]:
    """(w [width], b) with scores = x w + b: without ReLUs that is all.

    Raises:
      ValueError: there are ReLUs.
    """
    if self.relu:
      raise ValueError("A predictor with ReLUs is no affine map.")
    weight, bias = self.layers[0]
    for w, b in self.layers[1:]:
      weight, bias = w @ weight, w @ bias + b
    return weight[0], float(bias[0])


def load(path: str | os.PathLike[str]) -> Predictor:
  """Reads one of the published files; which one is seen by its arrays' names.

  Raises:
    ConversionError: no file of tensors, or of more than tensors (nothing of it
      is run), or none of these predictors.
  """
  file = pathlib.Path(path)
  places = pickled_files.read_places(file)
  for names, version, relu in (
    (("",), 1, False),
    (tuple(f"layers.{i}." for i in _LINEAR), 2, False),
    (tuple(f"layers.{i}." for i in _RELU), 2, True),
  ):
    if set(places) == {f"{n}{part}" for n in names for part in _PARTS}:
      layers = tuple(_layer(places, name) for name in names)
      _check_chain(file, layers)
      return Predictor(version=version, layers=layers, relu=relu)
  shown = sorted(re.sub(r"[^\w.]", "?", name)[:40] for name in places)[:8]
  raise pickled_files.ConversionError(
    f"{file} holds {shown}, not an aesthetic predictor's arrays: 'weight' and "
    f"'bias' (LAION's), or 'layers.*' at {_LINEAR} or {_RELU}."
  )


def _layer(
  places: Mapping[str, pickled_files.Place], name: str
) -> tuple[np.ndarray, np.ndarray]:
  return (
    tensor_files.read(places[f"{name}weight"]).astype(np.float64),
    tensor_files.read(places[f"{name}bias"]).astype(np.float64),
  )


def _check_chain(
  file: pathlib.Path, layers: tuple[tuple[np.ndarray, np.ndarray], ...]
) -> None:
  """Every layer takes what the one before gives; the last gives one number."""
  sizes = [weight.shape for weight, _ in layers]
  fits = all(
    weight.ndim == 2
    and bias.shape == weight.shape[:1]
    and max(weight.shape) <= _MAX_WIDTH
    and np.isfinite(weight).all()
    and np.isfinite(bias).all()
    for weight, bias in layers
  )
  if (
    not fits
    or any(a[0] != b[1] for a, b in itertools.pairwise(sizes))
    or sizes[-1][0] != 1
    or sizes[0][1] not in _WIDTHS
  ):
    raise pickled_files.ConversionError(
      f"{file}: arrays of shapes {sizes} are no aesthetic predictor on CLIP "
      f"embeddings of {_WIDTHS[0]} or {_WIDTHS[1]} numbers."
    )
