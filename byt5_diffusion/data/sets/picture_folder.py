"""Pictures that annotations call by name, wherever below a folder they lie.

Data sets are unpacked in many ways; names in annotations ("train/a.jpg", "a")
are looked up by their last part without extension, and by the rest only if
several pictures are called so. Nothing outside of the listing is ever opened,
whatever an annotation says.
"""

import collections
import hashlib
import os
import pathlib
import posixpath
from collections.abc import Iterable

import numpy as np

from byt5_diffusion.data import (
  folder,
  images,
)
from byt5_diffusion.data.rows import (
  block_cache,
  files,
)

_MAX_BYTES = 32 * 2**20


class PictureFolder:
  """The pictures below a folder, by name.

  Attributes:
    path: the folder, or an fsspec address of one.
    fingerprint: of all pictures' names and sizes.
  """

  def __init__(
    self,
    path: str | os.PathLike[str],
    listed: Iterable[files.File] | None = None,
  ):
    """Lists the folder; pictures are opened later, one by one.

    Args:
      path: see above.
      listed: the files to look among; None: all below the folder.

    Raises:
      ValueError: no such folder, or no pictures in it.
    """
    self.path = os.fspath(path)
    self._found: dict[str, list[files.File]] = collections.defaultdict(list)
    digest = hashlib.blake2b(digest_size=16)
    for file in files.find(self.path) if listed is None else listed:
      stem, extension = posixpath.splitext(posixpath.basename(file.path))
      if extension.lower() not in folder.EXTENSIONS:
        continue
      self._found[stem].append(file)
      digest.update(f"{file.name}\n{file.size}\n".encode("utf-8", "replace"))
    if not self._found:
      raise ValueError(
        f"{self.path} holds no pictures ({', '.join(folder.EXTENSIONS)})."
      )
    self.fingerprint = digest.hexdigest()

  def has(self, name: str) -> bool:
    """Whether there is a picture of that name, or several."""
    return _stem(name) in self._found

  def find(self, name: str) -> files.File:
    """The picture that an annotation means.

    Raises:
      images.BadImage: there is none, or nobody can tell which.
    """
    candidates = self._found.get(_stem(name), [])
    if len(candidates) > 1:
      candidates = _closest(name, candidates)
    if not candidates:
      raise images.BadImage(name, "no such picture")
    if len(candidates) > 1:
      raise images.BadImage(name, "several pictures have this name")
    return candidates[0]

  def decode(self, name: str) -> np.ndarray:
    """uint8 [H, W, 3]; the last ones are kept, so do not write into it.

    Raises:
      images.BadImage: it cannot be used.
    """
    file = self.find(name)

    def make() -> tuple[np.ndarray, int]:
      try:
        # One byte more than is allowed shows that it is too large.
        raw = file.read(0, _MAX_BYTES + 1)
      except OSError as error:
        reason = error.strerror or "cannot be opened"
        raise images.BadImage(name, reason) from None
      image = images.decode_image(raw, name=name, max_bytes=_MAX_BYTES)
      image.flags.writeable = False
      return image, image.nbytes

    return block_cache.SHARED.get(("picture", file.identity), make)


def _stem(name: str) -> str:
  """ "train/a.jpg" -> "a"; an unknown extension is part of the name."""
  stem, extension = posixpath.splitext(posixpath.basename(name))
  return stem if extension.lower() in folder.EXTENSIONS else stem + extension


def _closest(name: str, candidates: list[files.File]) -> list[files.File]:
  """Those whose last folders are the same as the name's, as far as possible."""

  def shared(file: files.File) -> int:
    wanted = pathlib.PurePosixPath(name).parts[:-1]
    there = pathlib.PurePosixPath(file.path).parts[:-1]
    count = 0
    for one, other in zip(reversed(wanted), reversed(there), strict=False):
      if one != other:
        break
      count += 1
    return count

  most = max(shared(file) for file in candidates)
  return [file for file in candidates if shared(file) == most]
