"""Decoding against exhaustive search on toy languages, and its promises."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from byt5_diffusion import decoding, utf8

VOCAB, LENGTH, BATCH = 4, 4, 3
# Tokens 2 and 3; 3 comes in pairs only, and a text may end between pairs.
PAIRS = utf8.Automaton(
  transitions=np.array([[0, 0, 0, 1], [0, 0, 0, 0]], np.int32),
  allowed=np.array([[0, 1, 1, 1], [0, 0, 0, 1]], bool),
  remaining=np.array([0, 1], np.int32),
)
CONSTRAINTS = {"free": None, "pairs": PAIRS}
QUICK = {"xla_backend_optimization_level": 0}


def toy_logits(seed):
  """[BATCH, number of histories, VOCAB]: each history has its own.

  Odd seeds make long texts the likely ones.
  """
  rng = np.random.default_rng(seed)
  histories = sum(VOCAB**i for i in range(LENGTH + 1))
  logits = rng.normal(size=(BATCH, histories, VOCAB)) * 2.0
  logits[..., utf8.EOS_ID] -= 4.0 * (seed % 2)
  return logits.astype(np.float32)


def toy_step(cache, tokens):
  """The cache is what each row has written, as a number; and the table."""
  history = jnp.where(
    cache["step"] == 0, 0, cache["history"] * VOCAB + tokens + 1
  )
  table = cache["shared"]
  rows = len(tokens) // len(table)
  history_of_row = history.reshape(-1, rows)
  logits = jnp.take_along_axis(table, history_of_row[..., None], axis=1)
  cache = {"step": cache["step"] + 1, "history": history, "shared": table}
  return logits.reshape(len(tokens), -1), cache


def toy_cache(table):
  return {
    "step": jnp.zeros((), jnp.int32),
    "history": jnp.zeros(len(table), jnp.int32),
    "shared": jnp.asarray(table),
  }


def log_probs_of(table, text):
  """Of each token of a text, in float64, by the toy's rules."""
  history, found = 0, []
  for token in text:
    logits = table[history].astype(np.float64)
    found.append(logits[token] - np.log(np.exp(logits).sum()))
    history = history * VOCAB + token + 1
  return found


def allowed_texts(constraint):
  """Everything that ends by eos, or is LENGTH long; as padded tuples."""
  for length in range(1, LENGTH + 1):
    for text in itertools.product(range(VOCAB), repeat=length):
      ends = text[-1] == utf8.EOS_ID or length == LENGTH
      if utf8.EOS_ID in text[:-1] or not ends:
        continue
      state, valid = 0, True
      for token in text if constraint else ():
        valid = valid and constraint.allowed[state, token]
        state = constraint.transitions[state, token]
      if valid and (constraint is None or constraint.remaining[state] == 0):
        yield text


@functools.cache
def searcher(constraint, **options):
  """Compiled once for all tables of a shape."""
  decode = (
    functools.partial(decoding.beam_search, **options)
    if options
    else decoding.greedy
  )

  def run(table):
    return decode(
      toy_step, toy_cache(table), len(table), LENGTH, CONSTRAINTS[constraint]
    )

  return jax.jit(run, compiler_options=QUICK)


def search(table, constraint="free", **options):
  run = searcher(constraint, **options)
  decoded = jax.tree.map(np.asarray, run(table))
  assert decoded.tokens.dtype == np.int32
  assert decoded.log_probs.dtype == decoded.scores.dtype == np.float32
  assert decoded.tokens.shape == decoded.log_probs.shape == (len(table), LENGTH)
  return decoded


def assert_is(decoded, row, text, log_probs, score):
  padding = LENGTH - len(text)
  assert decoded.tokens[row].tolist() == [*text, *[0] * padding]
  np.testing.assert_allclose(
    decoded.log_probs[row], [*log_probs, *[0.0] * padding], atol=1e-5
  )
  np.testing.assert_allclose(decoded.scores[row], score, atol=1e-5)


@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 2.0])
def test_a_wide_beam_finds_the_best_of_all_texts(constraint, length_penalty):
  # Never are there more candidates than beams: 3^3 histories, 4 tokens each.
  for seed in range(4):
    table = toy_logits(seed)
    decoded = search(
      table, constraint, beam_size=128, length_penalty=length_penalty
    )
    for row in range(BATCH):
      found = []
      for text in allowed_texts(CONSTRAINTS[constraint]):
        log_probs = log_probs_of(table[row], text)
        penalty = ((5 + len(text)) / 6) ** length_penalty
        found.append((sum(log_probs) / penalty, text, log_probs))
      score, text, log_probs = max(found)
      assert_is(decoded, row, text, log_probs, score)


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_greedy_takes_the_likeliest_and_so_does_one_beam(constraint):
  for seed in range(5):
    table = toy_logits(seed)
    greedy = search(table, constraint)
    beam = search(table, constraint, beam_size=1)
    for row in range(BATCH):
      texts = list(allowed_texts(CONSTRAINTS[constraint]))
      for i in range(LENGTH):
        step = [(log_probs_of(table[row], t[: i + 1]), t[: i + 1]) for t in
                texts if len(t) > i]  # fmt: skip
        if not step:
          break
        _, best = max((log_probs[-1], start) for log_probs, start in step)
        texts = [text for text in texts if text[: i + 1] == best]
      [text] = texts
      log_probs = log_probs_of(table[row], text)
      assert_is(greedy, row, text, log_probs, sum(log_probs))
      assert_is(beam, row, text, log_probs, sum(log_probs))


def test_a_beam_keeps_what_is_best_later():
  """The classic garden path: the likeliest first token leads nowhere."""
  table = np.zeros((1, 341, VOCAB), np.float32) - 20.0
  first, second = 2 + 1, 3 + 1  # the histories "2" and "3"
  table[0, 0, [2, 3]] = np.log([0.6, 0.4])
  table[0, first] = np.log(0.25)
  table[0, second, utf8.EOS_ID] = 0.0
  assert search(table).tokens[0, 0] == 2
  decoded = search(table, beam_size=2)
  assert decoded.tokens[0].tolist() == [3, utf8.EOS_ID, 0, 0]
  np.testing.assert_allclose(decoded.scores[0], math.log(0.4), atol=1e-5)


def test_the_length_penalty_favours_length():
  table = np.zeros((1, 341, VOCAB), np.float32) - 20.0
  table[0, :, 2] = 0.0
  table[0, 0, [1, 2]] = np.log([0.55, 0.45])
  short = search(table, beam_size=4)
  long = search(table, beam_size=4, length_penalty=1.0)
  assert short.tokens[0].tolist() == [1, 0, 0, 0]
  assert long.tokens[0].tolist() == [2, 2, 2, 2]
  np.testing.assert_allclose(
    long.scores[0], math.log(0.45) / (9 / 6), atol=1e-5
  )


@pytest.mark.parametrize("options", [{}, {"beam_size": 3}])
def test_a_row_does_not_depend_on_its_batch(options):
  table = toy_logits(0)
  together = search(table, **options)
  for row in range(BATCH):
    alone = search(table[row : row + 1], **options)
    for whole, part in zip(together, alone, strict=True):
      np.testing.assert_allclose(whole[row], part[0], atol=1e-6)


@pytest.mark.parametrize("beam_size", [None, 2])
def test_no_step_is_made_when_all_rows_have_ended(beam_size):
  lengths = np.array([1, 4, 2])
  calls = []

  def step(calls_before, tokens):
    jax.debug.callback(lambda: calls.append(1))
    ends = lengths <= calls_before + 1
    ends = jnp.repeat(ends, len(tokens) // 3)
    logits = 30.0 * jax.nn.one_hot(jnp.where(ends, utf8.EOS_ID, 2), VOCAB)
    # A row that has ended gets wild logits: nobody may read them.
    wild = ends & (tokens == utf8.EOS_ID)
    return jnp.where(wild[:, None], 7.0, logits), calls_before + 1

  options = {} if beam_size is None else {"beam_size": beam_size}
  decode = decoding.beam_search if options else decoding.greedy
  cache = jnp.zeros((), jnp.int32)
  decoded = jax.jit(lambda: decode(step, cache, 3, 9, None, **options))()
  jax.effects_barrier()
  assert len(calls) == 4
  for row, length in enumerate(lengths):
    text = [2] * (length - 1) + [utf8.EOS_ID]
    assert decoded.tokens[row].tolist() == text + [0] * (9 - length)
    assert (decoded.log_probs[row, length:] == 0).all()
  np.testing.assert_allclose(decoded.scores, 0.0, atol=1e-5)


def test_a_forced_token_shows_its_own_probability():
  """One that is not allowed has nearly all; the choice is still an odd one."""
  table = np.zeros((1, 341, VOCAB), np.float32)
  table[0, :, 0] = math.log(97)  # never allowed in pairs
  for options in ({}, {"beam_size": 2}):
    decoded = search(table, "pairs", **options)
    assert decoded.tokens[0, 0] == utf8.EOS_ID
    np.testing.assert_allclose(np.exp(decoded.log_probs[0, 0]), 0.01, rtol=1e-4)


def bytes_step(cache, tokens):
  """Logits by position; each beam shifts them, so that beams differ."""
  step, table = cache["step"], cache["shared"]
  rows = len(tokens) // len(table)
  logits = jnp.repeat(table[:, step], rows, axis=0)
  logits = logits + 0.1 * jnp.sin(tokens[:, None] * jnp.arange(384))
  return logits, {"step": step + 1, "shared": table}


MAX_BYTES = 7


@functools.cache
def writers():
  def run(decode, table):
    cache = {"step": jnp.zeros((), jnp.int32), "shared": table}
    return decode(bytes_step, cache, 2, MAX_BYTES, utf8.automaton())

  beam = functools.partial(
    decoding.beam_search, beam_size=3, length_penalty=0.6
  )
  return [
    jax.jit(functools.partial(run, decode), compiler_options=QUICK)
    for decode in (decoding.greedy, beam)
  ]


def wild_logits(seed, kind):
  rng = np.random.default_rng(seed)
  logits = rng.normal(size=(2, MAX_BYTES, 384)) * 10.0 ** rng.integers(-2, 3)
  if kind == "no end":
    logits[..., utf8.EOS_ID] = -np.inf
  elif kind == "leading bytes":  # none of which could be finished at the end
    logits[..., 0xE0 + 3 : 0xF5 + 3] += 1e4
  elif kind == "continuations":
    logits[..., 0x80 + 3 : 0xC0 + 3] += 1e4
  elif kind == "impossible":
    logits[:] = -np.inf
  elif kind == "certain":
    logits[..., rng.integers(384)] = np.inf
  elif kind == "extreme":
    logits = rng.choice([-np.inf, np.inf, 3e38, -3e38, 0.0], logits.shape)
  elif kind == "forbidden":
    logits[..., [0, 2, *range(259, 384)]] = 3e38
  elif kind == "not numbers":
    logits[rng.random(logits.shape) < 0.5] = np.nan
  return logits.astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(
  st.integers(0, 2**32 - 1),
  st.sampled_from(
    ["any", "no end", "leading bytes", "continuations", "impossible",
     "certain", "extreme", "forbidden", "not numbers"]
  ),
)  # fmt: skip
def test_whatever_the_logits_the_text_is_valid(seed, kind):
  for write in writers():
    decoded = jax.tree.map(np.asarray, write(wild_logits(seed, kind)))
    assert np.isfinite(decoded.log_probs).all()
    assert np.isfinite(decoded.scores).all()
    for tokens in decoded.tokens:
      ends = np.flatnonzero(tokens == utf8.EOS_ID)
      length = ends[0] + 1 if ends.size else MAX_BYTES
      assert not tokens[length:].any()
      assert utf8.accepts(tokens[:length])
      raw = bytes(int(t) - 3 for t in tokens[:length] if t != utf8.EOS_ID)
      raw.decode("utf-8")


@pytest.mark.parametrize("length_penalty", [0.0, 0.6])
def test_scores_are_sums_of_log_probs_over_the_penalty(length_penalty):
  decoded = search(toy_logits(7), beam_size=128, length_penalty=length_penalty)
  lengths = (decoded.log_probs != 0).sum(-1)
  np.testing.assert_allclose(
    decoded.scores,
    decoded.log_probs.sum(-1) / ((5 + lengths) / 6) ** length_penalty,
    atol=1e-5,
  )


def test_mistakes_are_named():
  table = toy_logits(0)
  cache = toy_cache(table)
  beam_search = functools.partial(decoding.beam_search, toy_step)
  with pytest.raises(ValueError, match="beam_size=0"):
    beam_search(cache, BATCH, LENGTH, beam_size=0)
  with pytest.raises(ValueError, match="length_penalty=-1"):
    beam_search(cache, BATCH, LENGTH, length_penalty=-1)
  with pytest.raises(ValueError, match="max_length=0"):
    decoding.greedy(toy_step, cache, BATCH, 0)
  with pytest.raises(ValueError, match=r"\(3,\): its first axis.*5 rows"):
    beam_search(cache, 5, LENGTH)
  with pytest.raises(ValueError, match=r"384 tokens.* of 4"):
    decoding.greedy(toy_step, cache, BATCH, LENGTH, utf8.automaton())
  with pytest.raises(ValueError, match=r"shape \(3, 1, 4\) for 3 rows"):
    decoding.greedy(
      lambda cache, tokens: (jnp.zeros((3, 1, 4)), cache), (), 3, LENGTH
    )
