"""Which byte may follow which: valid UTF-8 as a finite automaton over ids.

ByT5's ids are byte + 3, and 1 ends a text (0 = pad, 2 = unknown and ids from
259 on are never written). Valid is what RFC 3629 (section 4) allows: shortest
forms only, no surrogates, nothing above U+10FFFF. A text ends between
characters only, so that whatever an automaton lets through can be decoded.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

PAD_ID = 0
EOS_ID = 1
UNK_ID = 2
BYTE_OFFSET = 3
VOCAB_SIZE = 384

# Between characters, where every text begins and ends.
START = 0
# RFC 3629's grammar: state -> [(first byte, last byte, next state)]. States 1,
# 2 and 3 want so many bytes more, whatever these are; 4 to 7 are after the
# leading bytes that narrow the next one: E0 (or a shorter form would do), ED
# (surrogates), F0 (a shorter form), F4 (above U+10FFFF).
_GRAMMAR: tuple[tuple[tuple[int, int, int], ...], ...] = (
  (
    (0x00, 0x7F, START),
    (0xC2, 0xDF, 1),
    (0xE0, 0xE0, 4),
    (0xE1, 0xEC, 2),
    (0xED, 0xED, 5),
    (0xEE, 0xEF, 2),
    (0xF0, 0xF0, 6),
    (0xF1, 0xF3, 3),
    (0xF4, 0xF4, 7),
  ),
  ((0x80, 0xBF, START),),
  ((0x80, 0xBF, 1),),
  ((0x80, 0xBF, 2),),
  ((0xA0, 0xBF, 1),),
  ((0x80, 0x9F, 1),),
  ((0x90, 0xBF, 2),),
  ((0x80, 0x8F, 2),),
)
_REMAINING = (0, 1, 2, 3, 2, 2, 3, 3)


class Automaton(NamedTuple):
  """A regular language of token sequences; all begin in state START.

  Attributes:
    transitions: [states, vocab] int32, the state after a token. Where the
      token is not allowed the entry means nothing.
    allowed: [states, vocab] bool, whether a token may be written.
    remaining: [states] int32, the fewest tokens to a state in which a sequence
      may be cut off.
  """

  transitions: np.ndarray
  allowed: np.ndarray
  remaining: np.ndarray


def automaton(vocab_size: int = VOCAB_SIZE) -> Automaton:
  """Valid UTF-8 over ByT5's ids (RFC 3629, section 4).

  Args:
    vocab_size: of the logits to constrain; ids from 259 on are never allowed.

  Raises:
    ValueError: the vocabulary has no room for all bytes.
  """
  if vocab_size < BYTE_OFFSET + 256:
    raise ValueError(
      f"{vocab_size=} must be at least {BYTE_OFFSET + 256}: 256 bytes and"
      f" {BYTE_OFFSET} special ids."
    )
  transitions = np.zeros((len(_GRAMMAR), vocab_size), np.int32)
  allowed = np.zeros((len(_GRAMMAR), vocab_size), bool)
  for state, ranges in enumerate(_GRAMMAR):
    for first, last, after in ranges:
      ids = slice(first + BYTE_OFFSET, last + BYTE_OFFSET + 1)
      transitions[state, ids] = after
      allowed[state, ids] = True
  allowed[START, EOS_ID] = True
  return Automaton(transitions, allowed, np.array(_REMAINING, np.int32))


_UTF8 = automaton()
TRANSITIONS = _UTF8.transitions
ALLOWED = _UTF8.allowed
REMAINING = _UTF8.remaining


def accepts(tokens: Iterable[int]) -> bool:
  """Whether tokens are a whole text: bytes of characters, then maybe eos.

  Nothing may follow an end of sequence, padding included.
  """
  state, ended = START, False
  for token in tokens:
    if ended or not 0 <= token < VOCAB_SIZE or not ALLOWED[state, token]:
      return False
    state, ended = int(TRANSITIONS[state, token]), token == EOS_ID
  return state == START
