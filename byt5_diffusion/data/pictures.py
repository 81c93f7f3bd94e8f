"""What a task makes of a picture: an image to draw, or patches to read.

Tasks get or draw a picture of some size; one of these says which of the task
features (feature_converters) it becomes, and of what shape. So one task's code
serves both kinds.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import ClassVar, Protocol

import numpy as np

from byt5_diffusion import feature_converters
from byt5_diffusion.data import annotated, images, patches, regions, resizing


def decode(
  source: bytes | str | os.PathLike[str], picture: "Picture", name: str
) -> images.Decoded:
  """Decodes what a picture is made of, no finer than it is wanted.

  Args:
    source, name: of images.decode.
    picture: what it is for.

  Raises:
    images.BadImage: it cannot be used.
  """
  fractions = picture.resize == resizing.SCALED
  needed = picture.needed if fractions else None
  return images.decode(source, name=name, needed=needed)


class Picture(Protocol):
  """Turns uint8 [H, W, 3] into one task feature.

  Attributes:
    name: of the feature.
    features: all the task's features, this one among them.
    shape: of the feature; None where it varies.
    whole_caption: whether the caption is the picture's text, so that no part of
      it may be cut off.
    resize: one of resizing.WAYS.
  """

  name: ClassVar[str]
  features: ClassVar[tuple[feature_converters.Feature, ...]]
  whole_caption: ClassVar[bool]

  @property
  def resize(self) -> str: ...

  @property
  def shape(self) -> tuple[int | None, ...]: ...

  def needed(self, size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns below which a picture of `size` would be enlarged."""

  def make(self, image: np.ndarray | images.Decoded) -> np.ndarray:
    """The feature's value for a picture of any size."""

  def annotate(
    self,
    example: annotated.Annotated,
    size: tuple[int, int],
    lengths: Mapping[str, int],
  ) -> dict[str, np.ndarray]:
    """Features of what is known of a picture whose size is (height, width)."""

  def check_lengths(self, lengths: Mapping[str, int], task: str) -> None:
    """Raises ValueError if TASK_FEATURE_LENGTHS has no room for the feature."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frame:
  """The feature "image", all of one size.

  Attributes:
    height, width: in pixels.
    fit: how pictures of other proportions are fitted: see images.fit.
    resize: how they are brought to the size: see resizing.WAYS.
  """

  name: ClassVar[str] = "image"
  features: ClassVar[tuple[feature_converters.Feature, ...]] = (
    feature_converters.FEATURES
  )
  whole_caption: ClassVar[bool] = False
  height: int
  width: int
  fit: str = "pad"
  resize: str = resizing.LANCZOS

  def __post_init__(self) -> None:
    if self.height < 1 or self.width < 1:
      raise ValueError(
        f"height={self.height} and width={self.width} must be positive."
      )
    images.check_mode(self.fit)
    resizing.check(self.resize)

  @property
  def shape(self) -> tuple[int | None, ...]:
    return (self.height, self.width, 3)

  def needed(self, size: tuple[int, int]) -> tuple[int, int]:
    return images.needed(size, self.height, self.width, self.fit)

  def make(self, image: np.ndarray | images.Decoded) -> np.ndarray:
    return images.fit(image, self.height, self.width, self.fit, self.resize)

  def annotate(
    self,
    example: annotated.Annotated,
    size: tuple[int, int],
    lengths: Mapping[str, int],
  ) -> dict[str, np.ndarray]:
    del example, size, lengths
    return {}

  def check_lengths(self, lengths: Mapping[str, int], task: str) -> None:
    if lengths.get("image", self.height) != self.height:
      raise ValueError(
        f'TASK_FEATURE_LENGTHS["image"] is {lengths["image"]}, but pictures of '
        f"{task!r} are {self.height} x {self.width} pixels."
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnnotatedFrame(Frame):
  """As Frame, with regions, style and language: ANNOTATED_FEATURES."""

  features: ClassVar[tuple[feature_converters.Feature, ...]] = (
    feature_converters.ANNOTATED_FEATURES
  )

  def annotate(
    self,
    example: annotated.Annotated,
    size: tuple[int, int],
    lengths: Mapping[str, int],
  ) -> dict[str, np.ndarray]:
    return regions.features(
      example,
      size,
      (self.height, self.width),
      self.fit,
      max_regions=lengths.get("boxes"),
      max_length=lengths.get("text_tokens"),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PatchGrid:
  """The feature "patches" (data/patches.py): any size, any proportions.

  Attributes:
    patch_size: p, pixels of a patch's side.
    max_patches: the most patches of a picture. TASK_FEATURE_LENGTHS may say
      more, so that pictures of several sizes can be mixed.
    resize: how pictures are brought to their size: see resizing.WAYS.
  """

  name: ClassVar[str] = "patches"
  features: ClassVar[tuple[feature_converters.Feature, ...]] = (
    feature_converters.READING_FEATURES
  )
  whole_caption: ClassVar[bool] = True
  patch_size: int
  max_patches: int
  resize: str = resizing.LANCZOS

  def __post_init__(self) -> None:
    if self.patch_size < 1:
      raise ValueError(f"patch_size={self.patch_size} must be positive.")
    patches.grid(1, 1, self.max_patches)
    resizing.check(self.resize)

  @property
  def shape(self) -> tuple[int | None, ...]:
    return (None, 2 + 3 * self.patch_size**2)

  def needed(self, size: tuple[int, int]) -> tuple[int, int]:
    return patches.sides(size, self.patch_size, self.max_patches)

  def make(self, image: np.ndarray | images.Decoded) -> np.ndarray:
    scaled = patches.scale(
      image, self.patch_size, self.max_patches, self.resize
    )
    return patches.cut(scaled, self.patch_size)

  def annotate(
    self,
    example: annotated.Annotated,
    size: tuple[int, int],
    lengths: Mapping[str, int],
  ) -> dict[str, np.ndarray]:
    del example, size, lengths
    return {}

  def check_lengths(self, lengths: Mapping[str, int], task: str) -> None:
    if lengths.get("patches", self.max_patches) < self.max_patches:
      raise ValueError(
        f'TASK_FEATURE_LENGTHS["patches"] is {lengths["patches"]}, but a '
        f"picture of {task!r} has up to {self.max_patches} patches."
      )
