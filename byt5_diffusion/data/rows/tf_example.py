"""tf.train.Example -> dict, without TensorFlow; its bytes are a stranger's.

Example   { Features features = 1 }
Features  { map<string, Feature> feature = 1 }
Feature   { BytesList 1 | FloatList 2 | Int64List 3 }, each { repeated 1 }
"""

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def decode(record: bytes) -> dict[str, Any]:
  """Features by name: bytes, int or float; a list where there is not one.

  Raises:
    ValueError: it is no tf.train.Example.
  """
  row: dict[str, Any] = {}
  for features in _messages(memoryview(record)):
    for entry in _messages(features):
      name, values = "", []
      for field, value in _fields(entry):
        if field == 1:
          name = bytes(_part(value)).decode("utf-8")
        elif field == 2:
          values = _values(_part(value))
      row[name] = values[0] if len(values) == 1 else values
  return row


def _values(feature: memoryview) -> list[Any]:
  found: list[Any] = []
  for kind, value in _fields(feature):
    if kind == 1:
      found = [bytes(one) for one in _messages(_part(value))]
    elif kind == 2:
      found = _floats(_part(value))
    elif kind == 3:
      found = _integers(_part(value))
  return found


def _floats(values: memoryview) -> list[float]:
  found: list[float] = []
  for field, value in _fields(values):
    if field != 1:
      continue
    raw = _part(value)
    if len(raw) % 4:
      raise ValueError("floats of another size")
    found += np.frombuffer(raw, "<f4").tolist()
  return found


def _integers(values: memoryview) -> list[int]:
  found: list[int] = []
  for field, value in _fields(values):
    if field != 1:
      continue
    if isinstance(value, int):
      found.append(_signed(value))
      continue
    at = 0
    while at < len(value):
      number, at = _varint(value, at)
      found.append(_signed(number))
  return found


def _signed(number: int) -> int:
  return number - 2**64 if number >= 2**63 else number


def _messages(message: memoryview) -> Iterator[memoryview]:
  """All parts of field 1."""
  for field, value in _fields(message):
    if field == 1:
      yield _part(value)


def _part(value: int | memoryview) -> memoryview:
  if isinstance(value, int):
    raise ValueError("a number where a message belongs")
  return value


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
  """(field number, its number or its bytes) of a protocol buffer."""
  at = 0
  while at < len(message):
    tag, at = _varint(message, at)
    kind = tag & 7
    if kind == _VARINT:
      number, at = _varint(message, at)
      yield tag >> 3, number
      continue
    if kind == _BYTES:
      size, at = _varint(message, at)
    elif kind in (_FIXED64, _FIXED32):
      size = 8 if kind == _FIXED64 else 4
    else:
      raise ValueError(f"a field of kind {kind}")
    if at + size > len(message):
      raise ValueError("cut short")
    yield tag >> 3, message[at : at + size]
    at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
  number = 0
  for shift in range(0, 70, 7):
    if at >= len(message):
      raise ValueError("cut short")
    byte = message[at]
    at += 1
    number |= (byte & 127) << shift
    if byte < 128:
      return number & (2**64 - 1), at
  raise ValueError("a number of more than 64 bits")


def encode(row: dict[str, Any]) -> bytes:
  """Inverse of `decode`, for lists and single bytes, str, int and float."""
  entries = b""
  for name, value in row.items():
    values = value if isinstance(value, list) else [value]
    entry = _field(1, name.encode("utf-8")) + _field(2, _feature(values))
    entries += _field(1, entry)
  return _field(1, entries)


def _feature(values: list[Any]) -> bytes:
  if values and isinstance(values[0], float):
    raw = struct.pack(f"<{len(values)}f", *values)
    return _field(2, _field(1, raw))
  if values and isinstance(values[0], int):
    return _field(3, _field(1, b"".join(map(_number, values))))
  raws = [v.encode("utf-8") if isinstance(v, str) else v for v in values]
  return _field(1, b"".join(_field(1, raw) for raw in raws))


def _field(number: int, raw: bytes) -> bytes:
  return _number(number << 3 | _BYTES) + _number(len(raw)) + raw


def _number(value: int) -> bytes:
  value &= 2**64 - 1
  made = bytearray()
  while value > 127:
    made.append(value & 127 | 128)
    value >>= 7
  made.append(value)
  return bytes(made)
