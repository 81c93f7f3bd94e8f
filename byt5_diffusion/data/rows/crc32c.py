"""CRC-32C (Castagnoli, RFC 3720 B.4) of many bytes at once, and TFRecord's.

A sum is linear over bits: crc(a b) = advance(crc(a), len(b)) ^ crc(b), where
`advance` lets zero bytes pass. So all words are looked up at once, and then put
together by halves.
"""

import functools

import numpy as np

_POLYNOMIAL = 0x82F63B78  # Of the reflected form.
_ALL = 0xFFFFFFFF
_WORD = 64  # bytes
_CHUNK = 2**18


def crc32c(data: bytes) -> int:
  """CRC-32C of bytes."""
  register = _ALL
  rest = len(data) % _WORD if len(data) >= 4 * _WORD else len(data)
  for byte in data[:rest]:
    register = (register >> 8) ^ _bytes()[(register ^ byte) & 255]
  words = np.frombuffer(data, np.uint8, offset=rest).reshape(-1, _WORD)
  step = _CHUNK // _WORD
  for start in range(0, len(words), step):
    chunk = words[start : start + step]
    register = _advance(register, chunk.size) ^ _linear(chunk)
  return register ^ _ALL


def masked(data: bytes) -> int:
  """TFRecord's sum: CRC-32C, turned by 15 bits, plus a constant."""
  crc = crc32c(data)
  return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & _ALL


@functools.cache
def _table() -> np.ndarray:
  """The register 0 after every single byte, uint32 [256]."""
  table = list(range(256))
  for _ in range(8):
    table = [(one >> 1) ^ (one & 1) * _POLYNOMIAL for one in table]
  return np.array(table, np.uint32)


@functools.cache
def _bytes() -> list[int]:
  return _table().tolist()


@functools.cache
def _word_tables() -> np.ndarray:
  """The register 0 after a byte and the rest of a word of zeros, in a row."""
  tables = [_table()]
  for _ in range(_WORD - 1):
    last = tables[-1]
    tables.append((last >> 8) ^ _table()[last & 255])
  return np.concatenate(tables[::-1])


@functools.cache
def _shift(level: int) -> np.ndarray:
  """What 2^level zero bytes make of each of a register's bytes: [4, 256]."""
  if level:
    half = _shift(level - 1)
    return _apply(half, half)
  one = np.arange(256, dtype=np.uint32)
  registers = np.stack([one << np.uint32(8 * i) for i in range(4)])
  return (registers >> 8) ^ _table()[registers & 255]


def _apply(shift: np.ndarray, registers: np.ndarray) -> np.ndarray:
  parts = [shift[i][(registers >> (8 * i)) & 255] for i in range(4)]
  return parts[0] ^ parts[1] ^ parts[2] ^ parts[3]


def _linear(words: np.ndarray) -> int:
  """The register 0 after uint8 [n, 64]."""
  places = words + np.arange(0, 256 * _WORD, 256, dtype=np.uint16)
  registers = np.bitwise_xor.reduce(_word_tables()[places], axis=1)
  level = _WORD.bit_length() - 1
  while len(registers) > 1:
    if len(registers) % 2:  # Zeros in front change nothing.
      registers = np.concatenate([np.zeros(1, np.uint32), registers])
    registers = _apply(_shift(level), registers[0::2]) ^ registers[1::2]
    level += 1
  return int(registers[0])


def _advance(register: int, count: int) -> int:
  """A register after `count` zero bytes."""
  value = np.array([register], np.uint32)
  for level in range(count.bit_length()):
    if count >> level & 1:
      value = _apply(_shift(level), value)
  return int(value[0])
