"""Confidences: products of bytes' probabilities, one for each letter."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from byt5_diffusion import confidence
from byt5_diffusion.data import text as text_lib


def test_a_letter_s_confidence_is_the_product_of_its_bytes():
  # One byte; e and a combining accent, three bytes; one of three bytes; end.
  tokens = text_lib.encode("ae\u0301ก", 16)
  odds = np.array([0.9, 0.5, 0.5, 0.8, 1.0, 0.5, 0.1, 0.3])
  tokens = np.append(tokens, [0, 0])
  log_probs = np.append(np.log(odds), [0.0, -5.0])
  found = confidence.character_confidences(tokens, log_probs)
  assert [character for character, _ in found] == ["a", "e\u0301", "ก"]
  np.testing.assert_allclose([p for _, p in found], [0.9, 0.2, 0.05])
  assert all(isinstance(p, float) for _, p in found)


def test_invalid_bytes_keep_their_own_confidence():
  raw = b"a\xe2\x82b\xff"
  tokens = np.array([byte + 3 for byte in raw])
  found = confidence.character_confidences(
    tokens, np.log([0.9, 0.5, 0.5, 0.7, 0.1])
  )
  assert [c for c, _ in found] == ["a", "\ufffd", "b", "\ufffd"]
  np.testing.assert_allclose([p for _, p in found], [0.9, 0.25, 0.7, 0.1])


@given(st.lists(st.integers(0, 383) | st.integers(3, 258), max_size=12))
def test_characters_are_the_decoded_text(tokens):
  tokens = np.array(tokens, np.int32)
  log_probs = -np.arange(1.0, len(tokens) + 1)
  found = confidence.character_confidences(tokens, log_probs)
  assert "".join(c for c, _ in found) == text_lib.decode(tokens)
  ends = np.flatnonzero(tokens == 1)
  written = slice(ends[0] if ends.size else None)
  is_byte = (tokens[written] >= 3) & (tokens[written] < 259)
  np.testing.assert_allclose(
    sum(math.log(p) for _, p in found), log_probs[written][is_byte].sum()
  )


def test_a_batch_is_refused():
  with pytest.raises(ValueError, match=r"\(2, 3\).*both \[T\]"):
    confidence.character_confidences(np.zeros((2, 3)), np.zeros((2, 3)))
