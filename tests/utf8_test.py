"""The automaton against Python's strict decoder, and by counting."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from byt5_diffusion import utf8
from byt5_diffusion.data import text as text_lib

# A text with some bytes replaced, put in or cut out: nearly valid.
NEARLY_TEXT = st.builds(
  lambda text, at, new: text.encode()[:at] + new + text.encode()[at + 1 :],
  st.text(min_size=1, max_size=4),
  st.integers(0, 8),
  st.binary(max_size=2),
)


def ids(raw):
  return [byte + utf8.BYTE_OFFSET for byte in raw]


def is_valid(raw):
  try:
    raw.decode("utf-8")
  except UnicodeDecodeError:
    return False
  return True


def test_ids_are_those_of_the_data():
  for name in ("PAD_ID", "EOS_ID", "UNK_ID", "BYTE_OFFSET"):
    assert getattr(utf8, name) == getattr(text_lib, name), name


def test_characters_are_exactly_all_code_points():
  """All are accepted, and as many sequences are accepted as there are."""
  points = [point for point in range(0x110000) if not 0xD800 <= point < 0xE000]
  by_size = {}
  for point in points:
    raw = chr(point).encode("utf-8")
    by_size.setdefault(len(raw), []).append(raw)
  for size, characters in by_size.items():
    raw = np.frombuffer(b"".join(characters), np.uint8).reshape(-1, size)
    tokens = raw.astype(np.int32) + utf8.BYTE_OFFSET
    states = np.zeros(len(tokens), np.int32)
    for i, column in enumerate(tokens.T):
      assert utf8.ALLOWED[states, column].all()
      states = utf8.TRANSITIONS[states, column]
      assert (utf8.REMAINING[states] == size - 1 - i).all()
    assert (states == utf8.START).all()
  assert {size: len(found) for size, found in by_size.items()} == {
    1: 128, 2: 1920, 3: 61440, 4: 1048576
  }  # fmt: skip

  # How many sequences of `size` bytes come back to START for the first time.
  num_states = len(utf8.ALLOWED)
  ways = np.zeros((num_states, num_states), np.int64)
  for state in range(num_states):
    for byte in range(256):
      token = byte + utf8.BYTE_OFFSET
      if utf8.ALLOWED[state, token]:
        ways[state, utf8.TRANSITIONS[state, token]] += 1
  inside = ways[utf8.START]
  for size in range(1, 6):
    assert inside[utf8.START] == len(by_size.get(size, ()))
    inside[utf8.START] = 0
    inside = inside @ ways


@given(st.one_of(st.binary(max_size=6), NEARLY_TEXT))
def test_bytes_are_accepted_where_python_decodes_them(raw):
  assert utf8.accepts(ids(raw)) == is_valid(raw)
  assert utf8.accepts([*ids(raw), utf8.EOS_ID]) == is_valid(raw)


@given(st.text())
def test_every_text_is_accepted(text):
  assert utf8.accepts(ids(text.encode("utf-8")))


@given(st.text(max_size=4))
def test_what_data_text_writes_is_accepted(text):
  assert utf8.accepts(text_lib.encode(text, 6))


def test_other_ids_are_never_allowed():
  others = [utf8.PAD_ID, utf8.UNK_ID, *range(259, utf8.VOCAB_SIZE)]
  assert not utf8.ALLOWED[:, others].any()
  assert utf8.ALLOWED[:, utf8.EOS_ID].tolist() == [True] + [False] * 7
  for tokens in ([utf8.PAD_ID], [259], [-1], [10**6], [*ids(b"a"), 2]):
    assert not utf8.accepts(tokens)
  assert utf8.accepts([])
  assert utf8.accepts([utf8.EOS_ID])
  assert not utf8.accepts([utf8.EOS_ID, *ids(b"a")])
  assert not utf8.accepts([utf8.EOS_ID, utf8.PAD_ID])


def test_remaining_is_the_shortest_way_to_a_boundary():
  for state, remaining in enumerate(utf8.REMAINING):
    reached = {state}
    for _ in range(remaining):
      assert utf8.START not in reached
      reached = {
        utf8.TRANSITIONS[at, token]
        for at in reached
        for token in np.flatnonzero(utf8.ALLOWED[at])
      }
    assert utf8.START in reached


def test_a_vocabulary_of_another_size():
  small, big = utf8.automaton(259), utf8.automaton(1000)
  np.testing.assert_array_equal(small.allowed, utf8.ALLOWED[:, :259])
  assert big.allowed.shape == big.transitions.shape == (8, 1000)
  assert big.allowed.sum() == utf8.ALLOWED.sum()
  with pytest.raises(ValueError, match="vocab_size=258 must be at least 259"):
    utf8.automaton(258)
