"""Text as ByT5 sees it: UTF-8 bytes, each shifted by three.

  id 0 = padding, 1 = end of sequence, 2 = unknown, 3..258 = byte + 3;
  259..383 exist in checkpoints (sentinels) and never stand for text.

Nothing is normalised: NFC and NFD forms, right-to-left text, joiners and bidi
controls are the bytes that the author wrote, because a model that spells has
to see them. Truncation is the only loss, and it never splits a user-perceived
character (a grapheme cluster, Unicode Standard Annex 29).
"""

import re
from collections.abc import Iterable, Sequence

import numpy as np
import regex

PAD_ID = 0
EOS_ID = 1
UNK_ID = 2
BYTE_OFFSET = 3

_CLUSTER = regex.compile(r"\X")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def to_text(raw: bytes | str) -> str:
  """Text of raw bytes; what is not valid UTF-8 becomes U+FFFD.

  A lone surrogate in a `str` (some JSON files hold them) has no UTF-8 form and
  becomes U+FFFD as well, so that the result can always be encoded.
  """
  if isinstance(raw, bytes):
    return raw.decode("utf-8", errors="replace")
  return _LONE_SURROGATE.sub(_REPLACEMENT, str(raw))


def graphemes(text: str) -> list[str]:
  """User-perceived characters of `text`, in order; joined they give `text`."""
  return _CLUSTER.findall(text)


def _bytes_within(text: str, max_bytes: int) -> bytes:
  """The longest run of whole leading clusters that fits, as UTF-8."""
  if len(text) <= max_bytes:
    encoded = to_text(text).encode("utf-8")
    if len(encoded) <= max_bytes:
      return encoded
  # Whether a cluster may end before character i depends on characters 0..i
  # only, and no more than max_bytes characters can be kept: the rest of a long
  # caption need not be looked at.
  window = to_text(text[: max_bytes + 1])
  kept, size = 0, 0
  for cluster in _CLUSTER.finditer(window):
    size += len(cluster.group().encode("utf-8"))
    if size > max_bytes:
      break
    kept = cluster.end()
  return window[:kept].encode("utf-8")


def encode(text: str, max_length: int) -> np.ndarray:
  """ids = utf8(text) + 3, then end of sequence; [<= max_length] int32.

  Args:
    text: any string; see `to_text` for lone surrogates.
    max_length: the most ids to return, the end of sequence included.

  Returns:
    Unpadded ids. If the text is too long, whole grapheme clusters are dropped
    from its end; a first cluster that alone is too long leaves only [eos].

  Raises:
    ValueError: max_length has no room for the end of sequence.
  """
  if max_length < 1:
    raise ValueError(f"{max_length=} must be at least 1 (end of sequence).")
  encoded = _bytes_within(text, max_length - 1)
  tokens = np.empty(len(encoded) + 1, np.int32)
  tokens[:-1] = np.frombuffer(encoded, np.uint8)
  tokens[:-1] += BYTE_OFFSET
  tokens[-1] = EOS_ID
  return tokens


def encode_batch(texts: Sequence[str], max_length: int) -> np.ndarray:
  """`encode` of every text, padded with 0: [len(texts), max_length] int32."""
  batch = np.full((len(texts), max_length), PAD_ID, np.int32)
  for row, text in zip(batch, texts, strict=True):
    tokens = encode(text, max_length)
    row[: len(tokens)] = tokens
  return batch


def decode(tokens: Iterable[int] | np.ndarray) -> str:
  """Text of ids up to the first end of sequence.

  Padding, unknown and sentinel ids stand for no byte and are left out; bytes
  that are not UTF-8 (a model may write anything) become U+FFFD.
  """
  ids = np.asarray(
    tokens if isinstance(tokens, np.ndarray) else list(tokens), np.int64
  ).reshape(-1)
  ends = np.flatnonzero(ids == EOS_ID)
  if ends.size:
    ids = ids[: ends[0]]
  is_byte = (ids >= BYTE_OFFSET) & (ids < BYTE_OFFSET + 256)
  raw = (ids[is_byte] - BYTE_OFFSET).astype(np.uint8).tobytes()
  return raw.decode("utf-8", errors="replace")
