"""Pictures by the addresses that they were fetched from.

An index of hashes, made by one scan of img2dataset's output: twelve bytes for
each of tens of millions.
"""

import hashlib
from typing import Any

import numpy as np

from byt5_diffusion.data import images
from byt5_diffusion.data.rows import cached_arrays
from byt5_diffusion.data.sets import fetched


class ImageAddresses:
  """address -> picture. Thread-safe.

  Attributes:
    fingerprint: of all pictures.
  """

  def __init__(self, path: str):
    """Looks for them in img2dataset's output.

    Raises:
      ValueError: it is none, or without a picture.
    """
    self._table = fetched.open_table(path, ("url",), "wit")
    self.fingerprint = self._table.fingerprint
    kept = cached_arrays.kept(
      "addresses", ("1", path, self.fingerprint), self._index
    )
    self._hashes = kept.arrays["hash"]
    self._rows = kept.arrays["row"]
    if not len(self._hashes):
      raise ValueError(f"{path} has no picture.")

  def _index(self) -> cached_arrays.Kept:
    hashes, rows = [], []
    columns = ("json", "txt")
    if "json" not in self._table.columns:
      columns = ("url", "status")
    for number, row in self._table.scan(columns):
      url, status = _url_of(row)
      if url and status in (None, "success"):
        hashes.append(_hash(url))
        rows.append(number)
    order = np.argsort(np.array(hashes, np.uint64), kind="stable")
    return cached_arrays.Kept(
      {},
      {
        "hash": np.array(hashes, np.uint64)[order],
        "row": np.array(rows, np.int64)[order],
      },
    )

  def _row(self, url: str) -> int | None:
    wanted = np.uint64(_hash(url))
    at = int(np.searchsorted(self._hashes, wanted))
    if at == len(self._hashes) or self._hashes[at] != wanted:
      return None
    return int(self._rows[at])

  def __contains__(self, url: str) -> bool:
    return self._row(url) is not None

  def picture(self, url: str) -> bytes:
    """The picture's file. images.BadImage: there is none, or another one."""
    number = self._row(url)
    if number is None:
      raise images.BadImage(url, "not downloaded")
    row = self._table.read(number)
    if fetched.known(row).get("url") != url:
      raise images.BadImage(url, "another picture's place")
    return fetched.picture(row, url)


def _url_of(row: Any) -> tuple[str, Any]:
  if isinstance(row, images.BadImage):
    return "", None
  try:
    found = fetched.known(row)
  except images.BadImage:
    return "", None
  return fetched.text(found, "url"), found.get("status")


def _hash(url: str) -> int:
  raw = url.encode("utf-8", "surrogatepass")
  return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little")
