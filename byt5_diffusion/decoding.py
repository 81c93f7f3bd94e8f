"""From logits to tokens: greedy and beam search, knowing no network.

  step_fn(cache, tokens [N]) -> (logits [N, V], cache)

A step reads the token that each row wrote last (0, padding, in the first step)
and answers the logits of the next. The cache is any pytree whose arrays have
the rows as their first axis; scalars belong to all rows, and so does what a
dict holds under the key "shared": it is passed on as it is, for B rows, even
when beam search makes N = B x beam_size rows of tokens (those of one row
together). So features that all beams look at are neither copied nor moved.

What may be written can be bound by an automaton (utf8.py). It limits the
choice alone: log probabilities are the network's own, over all V tokens, so
that a byte which the network was forced to write shows as an unlikely one, and
what beam search maximises is the network's probability among valid texts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from byt5_diffusion import utf8

Array = jax.Array
Cache = Any
StepFn = Callable[[Cache, Array], tuple[Array, Cache]]

# The key of a cache under which all beams of a row read the same.
SHARED = "shared"
# Logits are cut off here. So sums of log probabilities are finite, and a token
# that the network calls impossible still goes before one that is forbidden.
_LOGIT_LIMIT = 1e30


class Decoded(NamedTuple):
  """What was written.

  Attributes:
    tokens: [B, T] int32, the end of sequence (1) included if there was room
      for it, then 0.
    log_probs: [B, T] float32, in nats, of each token given those before it; 0
      behind the end.
    scores: [B] float32, in nats: the sum of log_probs; of beam search divided
      by the length penalty.
  """

  tokens: Array
  log_probs: Array
  scores: Array


def length_penalty_of(length: Array | int, length_penalty: float) -> Array:
  """((5 + length) / 6)^length_penalty (Wu et al. 2016, eq. 14)."""
  return ((5.0 + jnp.asarray(length, jnp.float32)) / 6.0) ** length_penalty


# --- Greedy ------------------------------------------------------------------


def greedy(
  step_fn: StepFn,
  cache: Cache,
  batch_size: int,
  max_length: int,
  constraint: utf8.Automaton | None = None,
) -> Decoded:
  """The likeliest token that is allowed, step by step; one lax.while_loop.

  Args:
    step_fn: see above; called at most max_length times, and no more once all
      rows have ended.
    cache: what step_fn's first call gets.
    batch_size: B.
    max_length: T, the end of sequence included.
    constraint: what may be written; None allows every token. Nothing begins
      that could not be finished within max_length.
  """
  _check(batch_size, max_length)
  shape = (batch_size, max_length)

  def unfinished(state: _Greedy) -> Array:
    return (state.step < max_length) & ~state.ended.all()

  def body(state: _Greedy) -> _Greedy:
    logits, cache = step_fn(state.cache, state.last)
    log_probs = _log_softmax(logits, batch_size)
    allowed = _allowed(
      constraint, state.states, max_length - state.step, log_probs
    )
    token = jnp.where(allowed, log_probs, -jnp.inf).argmax(-1)
    token = jnp.where(state.ended, utf8.PAD_ID, token).astype(jnp.int32)
    log_prob = jnp.take_along_axis(log_probs, token[:, None], 1)[:, 0]
    log_prob = jnp.where(state.ended, 0.0, log_prob)
    return _Greedy(
      step=state.step + 1,
      cache=cache,
      last=token,
      states=_advance(constraint, state.states, token),
      ended=state.ended | (token == utf8.EOS_ID),
      tokens=state.tokens.at[:, state.step].set(token),
      log_probs=state.log_probs.at[:, state.step].set(log_prob),
    )

  start = jnp.zeros(batch_size, jnp.int32)
  state = jax.lax.while_loop(
    unfinished,
    body,
    _Greedy(
      step=jnp.zeros((), jnp.int32),
      cache=cache,
      last=start,
      states=start,
      ended=start > 0,
      tokens=jnp.zeros(shape, jnp.int32),
      log_probs=jnp.zeros(shape, jnp.float32),
    ),
  )
  return Decoded(state.tokens, state.log_probs, state.log_probs.sum(-1))


class _Greedy(NamedTuple):
  step: Array
  cache: Cache
  last: Array  # [B] the tokens written last
  states: Array  # [B] of the automaton
  ended: Array  # [B] bool
  tokens: Array  # [B, T]
  log_probs: Array  # [B, T]


# --- Beam search -------------------------------------------------------------


def beam_search(
  step_fn: StepFn,
  cache: Cache,
  batch_size: int,
  max_length: int,
  constraint: utf8.Automaton | None = None,
  *,
  beam_size: int = 4,
  length_penalty: float = 0.0,
) -> Decoded:
  """The best text found among beam_size at a time; one lax.while_loop.

  A text's score is the sum of its log probabilities over

    ((5 + length) / 6)^length_penalty   (Wu et al. 2016, eq. 14),

  its length in tokens, the end of sequence included. In each step the
  beam_size best that have not ended go on; one that has just ended counts if
  it is among the beam_size best of all; and the best that ever counted is the
  answer. What reaches max_length counts as it is. A row is done when nothing
  that goes on can become better than what it has. A beam_size of 1 without
  length penalty is `greedy`.

  Args:
    step_fn: as for `greedy`, with rows of tokens [B x beam_size].
    cache: of batch_size rows; each is repeated beam_size times here.
    batch_size: B.
    max_length: T, the end of sequence included.
    constraint: as for `greedy`.
    beam_size: 1 or more.
    length_penalty: 0 or more; 0 compares probabilities of whole texts, which
      favours short ones.
  """
  _check(batch_size, max_length)
  if beam_size < 1:
    raise ValueError(f"{beam_size=} must be at least 1.")
  if length_penalty < 0:
    raise ValueError(f"{length_penalty=} must not be negative.")

  def unfinished(state: _Beams) -> Array:
    # Sums only fall; divided by the greatest length's penalty they bound all
    # that may come.
    bound = state.sums.max(-1) / length_penalty_of(max_length, length_penalty)
    return (state.step < max_length) & (state.best.scores < bound).any()

  def body(state: _Beams) -> _Beams:
    last = state.last.reshape(-1)
    logits, cache = step_fn(state.cache, last)
    log_probs = _log_softmax(logits, len(last))
    allowed = _allowed(
      constraint, state.states.reshape(-1), max_length - state.step, log_probs
    )
    candidates = _candidates(state, log_probs, allowed)
    state = state._replace(
      cache=cache, best=_best(state, candidates, length_penalty)
    )
    return _continued(state, candidates, constraint)

  state = jax.lax.while_loop(
    unfinished,
    body,
    _first_beams(cache, batch_size, beam_size, max_length),
  )
  return state.best


class _Beams(NamedTuple):
  """All hypotheses: k beams that go on, and the best one that has ended."""

  step: Array
  cache: Cache
  last: Array  # [B, k] the tokens written last
  states: Array  # [B, k] of the automaton
  sums: Array  # [B, k] of log probabilities; -inf: no hypothesis
  tokens: Array  # [B, k, T]
  log_probs: Array  # [B, k, T]
  best: Decoded


class _Candidates(NamedTuple):
  """The likeliest continuations, best first: [B, c], c >= 2 k if there are."""

  sums: Array
  parents: Array  # which beam is continued
  tokens: Array  # with what
  log_probs: Array  # of that token


def _first_beams(
  cache: Cache, batch_size: int, beam_size: int, max_length: int
) -> _Beams:
  """One empty hypothesis in each row, and nothing that has ended."""
  rows = jnp.repeat(jnp.arange(batch_size), beam_size)
  zeros = jnp.zeros((batch_size, beam_size), jnp.int32)
  shape = (batch_size, beam_size, max_length)
  return _Beams(
    step=jnp.zeros((), jnp.int32),
    cache=_take_rows(cache, rows, batch_size),
    last=zeros,
    states=zeros,
    sums=jnp.full(zeros.shape, -jnp.inf).at[:, 0].set(0.0),
    tokens=jnp.zeros(shape, jnp.int32),
    log_probs=jnp.zeros(shape, jnp.float32),
    best=Decoded(
      jnp.zeros((batch_size, max_length), jnp.int32),
      jnp.zeros((batch_size, max_length), jnp.float32),
      jnp.full(batch_size, -jnp.inf),
    ),
  )


def _candidates(state: _Beams, log_probs: Array, allowed: Array) -> _Candidates:
  """Of k x V continuations the 2 k best: k at least do not end."""
  batch_size, beam_size = state.sums.shape
  vocab_size = log_probs.shape[-1]
  sums = state.sums.reshape(-1, 1) + log_probs
  sums = jnp.where(allowed, sums, -jnp.inf).reshape(batch_size, -1)
  sums, index = jax.lax.top_k(sums, min(2 * beam_size, sums.shape[-1]))
  return _Candidates(
    sums=sums,
    parents=index // vocab_size,
    tokens=index % vocab_size,
    log_probs=jnp.take_along_axis(
      log_probs.reshape(batch_size, -1), index, axis=1
    ),
  )


def _best(
  state: _Beams, candidates: _Candidates, length_penalty: float
) -> Decoded:
  """The best text that has ended so far, those of this step included."""
  beam_size, max_length = state.tokens.shape[1:]
  length = state.step + 1
  ended = (candidates.tokens == utf8.EOS_ID) | (length == max_length)
  ended &= jnp.arange(ended.shape[1]) < beam_size
  scores = jnp.where(ended, candidates.sums, -jnp.inf)
  scores = scores / length_penalty_of(length, length_penalty)
  winner = scores.argmax(-1, keepdims=True)
  new = _written(state, candidates, winner)
  score = jnp.take_along_axis(scores, winner, axis=1)[:, 0]
  better = score > state.best.scores
  return Decoded(
    jnp.where(better[:, None], new[0][:, 0], state.best.tokens),
    jnp.where(better[:, None], new[1][:, 0], state.best.log_probs),
    jnp.where(better, score, state.best.scores),
  )


def _continued(
  state: _Beams, candidates: _Candidates, constraint: utf8.Automaton | None
) -> _Beams:
  """The k best candidates that have not ended, in the place of the beams."""
  batch_size, beam_size = state.sums.shape
  going_on = candidates.tokens != utf8.EOS_ID
  sums, order = jax.lax.top_k(
    jnp.where(going_on, candidates.sums, -jnp.inf), beam_size
  )
  parents = jnp.take_along_axis(candidates.parents, order, axis=1)
  last = jnp.take_along_axis(candidates.tokens, order, axis=1)
  states = jnp.take_along_axis(state.states, parents, axis=1)
  tokens, log_probs = _written(state, candidates, order)
  rows = jnp.arange(batch_size)[:, None] * beam_size + parents
  return _Beams(
    step=state.step + 1,
    cache=_take_rows(state.cache, rows.reshape(-1), batch_size * beam_size),
    last=last,
    states=_advance(constraint, states, last),
    sums=sums,
    tokens=tokens,
    log_probs=log_probs,
    best=state.best,
  )


def _written(
  state: _Beams, candidates: _Candidates, which: Array
) -> tuple[Array, Array]:
  """Tokens and log_probs, [B, n, T], of the candidates `which` [B, n]."""

  def extend(past: Array, new: Array) -> Array:
    past = jnp.take_along_axis(past, parents[..., None], axis=1)
    new = jnp.take_along_axis(new, which, axis=1)
    return past.at[..., state.step].set(new)

  parents = jnp.take_along_axis(candidates.parents, which, axis=1)
  return (
    extend(state.tokens, candidates.tokens),
    extend(state.log_probs, candidates.log_probs),
  )


def _take_rows(cache: Cache, rows: Array, num_rows: int) -> Cache:
  """The cache's rows in another order or number, but for what is shared."""

  def take(leaf: Array) -> Array:
    if jnp.ndim(leaf) == 0:
      return leaf
    if len(leaf) != num_rows:
      raise ValueError(
        f"An array of the cache has shape {jnp.shape(leaf)}: its first axis"
        f" must be the {num_rows} rows. What all beams of a row read the same"
        f" belongs under the key {SHARED!r} of a dict."
      )
    return jnp.take(leaf, rows, axis=0)

  if isinstance(cache, dict) and SHARED in cache:
    own = {name: part for name, part in cache.items() if name != SHARED}
    return {**jax.tree.map(take, own), SHARED: cache[SHARED]}
  return jax.tree.map(take, cache)


# --- What both need ----------------------------------------------------------


def _check(batch_size: int, max_length: int) -> None:
  if batch_size < 1 or max_length < 1:
    raise ValueError(f"{batch_size=} and {max_length=} must be at least 1.")


def _log_softmax(logits: Array, num_rows: int) -> Array:
  """Log probabilities [N, V] float32: finite, whatever the logits are."""
  if logits.ndim != 2 or len(logits) != num_rows:
    raise ValueError(
      f"step_fn answered logits of shape {logits.shape} for {num_rows} rows."
    )
  # A NaN is taken for the least likely.
  logits = jnp.nan_to_num(
    logits.astype(jnp.float32),
    nan=-_LOGIT_LIMIT,
    posinf=_LOGIT_LIMIT,
    neginf=-_LOGIT_LIMIT,
  )
  return jax.nn.log_softmax(jnp.clip(logits, -_LOGIT_LIMIT, _LOGIT_LIMIT))


def _allowed(
  constraint: utf8.Automaton | None, states: Array, left: Array, like: Array
) -> Array:
  """Which tokens may follow, [N, V], where `left` may yet be written."""
  if constraint is None:
    return jnp.ones(like.shape, bool)
  if constraint.allowed.shape[1] != like.shape[1]:
    raise ValueError(
      f"The constraint is for {constraint.allowed.shape[1]} tokens, and the"
      f" logits are of {like.shape[1]}: build it for that vocab_size."
    )
  after = jnp.asarray(constraint.transitions)[states]
  fits = jnp.asarray(constraint.remaining)[after] < left
  return jnp.asarray(constraint.allowed)[states] & fits


def _advance(
  constraint: utf8.Automaton | None, states: Array, tokens: Array
) -> Array:
  if constraint is None:
    return states
  return jnp.asarray(constraint.transitions)[states, tokens]
