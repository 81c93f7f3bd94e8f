"""What keeps a small hostile file from taking long or much memory.

Pixels and bytes are limited by images.py. Here are the other ways in which a
file of a few bytes can cost minutes or gigabytes: parts without end (markers,
chunks, blocks, runs: Pillow reads them one by one in Python), the same bytes
read over and over, scans of a progressive JPEG (each is a pass over all of the
picture), and strips or tiles of a TIFF. All limits are counts, never clocks, so
a file is judged alike on every machine.
"""

import io
import re
import struct
from collections.abc import Iterator

# A GIF of 32 MiB is read in 263 000 pieces; nothing else comes near.
MAX_READS = 1_000_000
# Pillow reads a file once for its header and once or twice for its pixels.
MAX_READ_AGAIN = 4
_SMALL = 2**20
# Encoders write 1 to 20. 100 passes over 64 megapixels take 3 seconds.
MAX_SCANS = 100
# One strip per row is usual, and no more than 65535 rows are.
MAX_STRIPS = 2**16

_SOS, _EOI = 0xDA, 0xD9
# Frames without progression, by Huffman's codes and by arithmetic ones.
_ONE_PASS = (0xC0, 0xC1, 0xC9)
_ALONE = {0x01, *range(0xD0, 0xD9)}  # TEM, RST0..7, SOI: without a length.
# In entropy-coded data, 0xFF stands before 0x00 or a restart marker.
_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]", re.DOTALL)

_TIFF = {
  b"II*\0": ("<", 8),
  b"MM\0*": (">", 8),
  b"II+\0": ("<", 16),
  b"MM\0+": (">", 16),
}
_TILE_SIDES = (322, 323)
_STRIPS = {273, 279, 324, 325}  # Offsets and sizes of strips and of tiles.
_INTEGERS = {1: "B", 3: "H", 4: "I", 16: "Q"}
_BYTES = {3: 2, 8: 2, 4: 4, 9: 4, 11: 4, 13: 4, 5: 8, 10: 8, 12: 8, 16: 8}


class Refused(Exception):
  """A reason, on its way to becoming a BadImage."""


class MeteredFile(io.BytesIO):
  """A file in memory that refuses to be read without end."""

  def __init__(self, raw: bytes):
    super().__init__(raw)
    self._reads = 0
    self._left = MAX_READ_AGAIN * len(raw) + _SMALL

  def read(self, size: int | None = -1, /) -> bytes:
    """As BytesIO.read. Refused: too often, or too much."""
    data = super().read(size)
    self._reads += 1
    self._left -= len(data)
    if self._reads > MAX_READS:
      raise Refused(f"more than {MAX_READS} parts")
    if self._left < 0:
      raise Refused("parts that overlap")
    return data


def check_scans(raw: bytes) -> None:
  """Refused: a JPEG of more than MAX_SCANS scans."""
  if _num_scans(raw) > MAX_SCANS:
    raise Refused(f"more than {MAX_SCANS} scans")


def _num_scans(raw: bytes) -> int:
  """Scans of the first picture in a JPEG file; stops at MAX_SCANS + 1.

  An ordinary file, all in its first scan, is not looked at behind that.
  """
  at, scans, parts = 2, 0, 0
  while scans <= MAX_SCANS:
    found = _MARKER.search(raw, at)
    if found is None or raw[found.end() - 1] == _EOI:
      break
    kind, at = raw[found.end() - 1], found.end()
    if kind in _ALONE:
      continue
    if kind in _ONE_PASS:
      parts = raw[at + 7] if at + 7 < len(raw) else 0
    if kind == _SOS:
      scans += 1
      if scans == 1 and raw[at + 2 : at + 3] == bytes([parts]):
        break
    at += int.from_bytes(raw[at : at + 2], "big")
  return scans


def check_tiff(raw: bytes, max_pixels: int) -> None:
  """Refused: a TIFF of several pages, too many strips, or huge tiles.

  Anything but a TIFF, and a TIFF that is broken, passes: Pillow says how.
  """
  if raw[:4] not in _TIFF:
    return
  order, header = _TIFF[raw[:4]]
  wide = header == 16
  try:
    first = struct.unpack_from(order + ("Q" if wide else "I"), raw, header // 2)
    sides, following, size = [1, 1], 0, 0
    for tag, kind, count, value in _entries(raw, order, wide, first[0]):
      if tag is None:
        following = value
        continue
      size += count * _BYTES.get(kind, 1)
      if tag in _STRIPS and count > MAX_STRIPS:
        raise Refused(f"more than {MAX_STRIPS} strips")
      elif tag in _TILE_SIDES and kind in _INTEGERS:
        sides[tag - _TILE_SIDES[0]] = value
  except struct.error:
    return
  if size > 2 * len(raw):
    raise Refused("parts that overlap")
  if sides[0] * sides[1] > max_pixels:
    raise Refused(f"tiles of more than {max_pixels} pixels")
  if following not in (0, first[0]):
    raise Refused("several pages")


def _entries(
  raw: bytes, order: str, wide: bool, at: int
) -> Iterator[tuple[int | None, int, int, int]]:
  """(tag, type, count, value) of a directory; last (None, 0, 0, next one)."""
  number, count_of = ("Q", "Q") if wide else ("I", "H")
  entry = struct.calcsize(order + "HH" + 2 * number)
  (count,) = struct.unpack_from(order + count_of, raw, at)
  at += struct.calcsize(order + count_of)
  for _ in range(min(count, 2**16)):
    tag, kind, values = struct.unpack_from(order + "HH" + number, raw, at)
    form = order + _INTEGERS.get(kind, "B")
    place = at + 4 + struct.calcsize(order + number)
    yield tag, kind, values, struct.unpack_from(form, raw, place)[0]
    at += entry
  yield None, 0, 0, struct.unpack_from(order + number, raw, at)[0]
