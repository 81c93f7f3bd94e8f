"""How sure a network was of each letter that it wrote."""

import math

import numpy as np

from byt5_diffusion.data import text as text_lib


def character_confidences(
  tokens: np.ndarray, log_probs: np.ndarray
) -> list[tuple[str, float]]:
  """Each character that was written, and the product of its bytes' odds.

  A character is a grapheme cluster, what a reader would call one letter; the
  probability of each of its bytes is given the bytes before it.

  Args:
    tokens: [T], one text; what follows the end of sequence is ignored, and so
      are ids that stand for no byte.
    log_probs: [T], in nats, of each token.

  Returns:
    Pairs whose characters, joined, are data.text.decode(tokens). Bytes that
    are not UTF-8 are U+FFFD, as there, with the probability of those bytes.
  """
  tokens = np.asarray(tokens)
  log_probs = np.asarray(log_probs, np.float64)
  if tokens.ndim != 1 or tokens.shape != log_probs.shape:
    raise ValueError(
      f"tokens {tokens.shape} and log_probs {log_probs.shape} must be one text:"
      " both [T]."
    )
  ends = np.flatnonzero(tokens == text_lib.EOS_ID)
  length = ends[0] if ends.size else len(tokens)
  raw_ids = tokens[:length] - text_lib.BYTE_OFFSET
  is_byte = (raw_ids >= 0) & (raw_ids < 256)
  log_probs = log_probs[:length][is_byte]
  points = _code_points(raw_ids[is_byte].astype(np.uint8).tobytes())
  text = "".join(point for point, _ in points)
  # A cluster's last code point -> where its bytes end.
  byte_ends = np.cumsum([0] + [size for _, size in points])
  found = []
  first = 0
  for character in text_lib.graphemes(text):
    last = first + len(character)
    total = log_probs[byte_ends[first] : byte_ends[last]].sum()
    found.append((character, math.exp(min(total, 0.0))))
    first = last
  return found


def _code_points(raw: bytes) -> list[tuple[str, int]]:
  """Code points of maybe invalid UTF-8, each with its number of bytes."""
  points: list[tuple[str, int]] = []
  while raw:
    try:
      valid, bad, rest = raw.decode("utf-8"), 0, b""
    except UnicodeDecodeError as error:
      valid = raw[: error.start].decode("utf-8")
      bad, rest = error.end - error.start, raw[error.end :]
    points += [(point, len(point.encode("utf-8"))) for point in valid]
    if bad:
      points.append(("\N{REPLACEMENT CHARACTER}", bad))
    raw = rest
  return points
