"""A place in the data, as bytes that a checkpoint can keep.

No pickle: the bytes come from a folder that somebody else may have written.
"""

import json
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

_MAGIC = b"byt5_diffusion data state 1\n"


class Place(NamedTuple):
  """A place in the data.

  Attributes:
    num_batches: batches received.
    streams: {stream: (batches before its snapshot, snapshot)}; an empty
      snapshot is the stream's beginning. The batches between the snapshot and
      the place are made again and dropped. Random access needs no streams.
  """

  num_batches: int
  streams: Mapping[int, tuple[int, bytes]]


def pack(header: Mapping[str, Any], blobs: Iterable[bytes]) -> bytes:
  """Header (JSON) and blobs as bytes that notice damage."""
  parts = list(blobs)
  head = {"header": header, "sizes": [len(part) for part in parts]}
  text = json.dumps(head, sort_keys=True).encode("utf-8")
  body = b"".join([struct.pack("<Q", len(text)), text, *parts])
  return _MAGIC + struct.pack("<I", zlib.crc32(body)) + body


def unpack(packed: bytes) -> tuple[dict[str, Any], list[bytes]]:
  """Inverse of `pack`; ValueError if it is something else, or damaged."""
  start = len(_MAGIC) + 4
  body = packed[start:]
  if not packed.startswith(_MAGIC) or len(body) < 8:
    raise ValueError("This is not a data state of this program.")
  if zlib.crc32(body) != struct.unpack("<I", packed[len(_MAGIC) : start])[0]:
    raise ValueError("The data state is damaged (checksum).")
  at = 8 + struct.unpack("<Q", body[:8])[0]
  head = json.loads(body[8:at])
  blobs = []
  for size in head["sizes"]:
    blobs.append(body[at : at + size])
    at += size
  return head["header"], blobs


def pack_place(identity: Mapping[str, Any], place: Place) -> bytes:
  """A place, and the data that it is a place of."""
  header = {
    "identity": identity,
    "num_batches": place.num_batches,
    "streams": [[stream, at] for stream, (at, _) in place.streams.items()],
  }
  return pack(header, [blob for _, blob in place.streams.values()])


def unpack_place(packed: bytes, identity: Mapping[str, Any]) -> Place:
  """Inverse of `pack_place`; ValueError if `identity` is another."""
  header, blobs = unpack(packed)
  expected = json.loads(json.dumps(identity))  # Tuples are lists in JSON.
  differences = [
    f"{key}: saved {header['identity'].get(key)!r}, now {expected.get(key)!r}"
    for key in sorted({*expected, *header["identity"]})
    if header["identity"].get(key) != expected.get(key)
  ]
  if differences:
    raise ValueError(
      "The saved place is of other data, and cannot be continued here:\n  "
      + "\n  ".join(line[:300] for line in differences)
    )
  streams = {
    stream: (at, blob)
    for (stream, at), blob in zip(header["streams"], blobs, strict=True)
  }
  return Place(header["num_batches"], streams)


def merge(states: Sequence[bytes]) -> bytes:
  """One state of all streams from the states of all hosts.

  A checkpoint that keeps it can be continued by any number of hosts.
  """
  headers = [unpack(state)[0] for state in states]
  identity = headers[0]["identity"]
  places = [unpack_place(state, identity) for state in states]
  if len({place.num_batches for place in places}) != 1:
    raise ValueError(
      "The hosts' states are of different steps: "
      f"{[place.num_batches for place in places]} batches."
    )
  streams = {k: v for place in places for k, v in place.streams.items()}
  return pack_place(identity, Place(places[0].num_batches, streams))
