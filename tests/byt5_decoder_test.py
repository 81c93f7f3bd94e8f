"""The ByT5 decoder against T5X's numbers and its own cache."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from byt5_diffusion import byt5, byt5_decoder, decoding, utf8

TINY = byt5.Byt5Config(
  embed_dim=16,
  num_heads=2,
  head_dim=8,
  mlp_dim=32,
  num_encoder_layers=2,
  num_decoder_layers=2,
)
T5X = dataclasses.replace(TINY, num_decoder_layers=1)
# These programs run once: compiling them is what takes the time.
QUICK = {"xla_backend_optimization_level": 0}
KNOWN_AXES = {
  "vocab", "embed", "joined_kv", "mlp", "heads", "relpos_buckets"
}  # fmt: skip
# Rows, written bytes, features.
B, T, S = 3, 7, 5


@pytest.fixture(scope="module")
def reference(shared_data):
  """T5X's parameters and what its network made of a padded batch."""
  folder = shared_data / "fixtures" / "t5x"
  flat = {
    tuple(name.split("/")): value
    for name, value in np.load(folder / "params_flat.npz").items()
  }
  return traverse_util.unflatten_dict(flat), dict(
    np.load(folder / "reference_io.npz")
  )


def random_inputs(seed=0, width=16):
  """Tokens after a 0, features, and which of these are real."""
  rng = np.random.default_rng(seed)
  tokens = rng.integers(3, 259, (B, T)).astype(np.int32)
  tokens[:, 0] = 0
  encoded = rng.normal(size=(B, S, width)).astype(np.float32)
  mask = np.arange(S) < np.array([[S], [2], [3]])
  return tokens, encoded, mask


@functools.cache
def random_params(config, width=16):
  """As they are at first, but for norms and biases that do something."""
  tokens, encoded, mask = random_inputs(width=width)
  params = jax.jit(
    byt5_decoder.TextDecoder(config).init, compiler_options=QUICK
  )(jax.random.key(0), tokens, encoded, mask)["params"]
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape).astype(leaf.dtype),
    params,
  )


@functools.cache
def compiled(config):
  return jax.jit(byt5_decoder.TextDecoder(config).apply, compiler_options=QUICK)


def decode(config, params, *inputs):
  logits = compiled(config)({"params": params}, *inputs)
  assert logits.dtype == "float32"
  return np.asarray(logits)


def decode_by_steps(config, params, tokens, encoded, mask, max_length=T):
  decoder = byt5_decoder.TextDecoder(config)

  @functools.partial(jax.jit, compiler_options=QUICK)
  def run(params):
    cache = decoder.init_cache(params, encoded, mask, max_length)

    def step(cache, tokens):
      logits, cache = decoder.decode_step(params, cache, tokens)
      return cache, logits

    return jax.lax.scan(step, cache, tokens.T)[1]

  logits = run(params)
  assert logits.dtype == "float32"
  return np.asarray(logits).swapaxes(0, 1)


def test_t5x_numbers(reference):
  params, expected = reference
  # Where the target is padding T5X masks more than we do; nobody reads those.
  real = expected["decoder_target_tokens"] > 0
  tokens = expected["decoder_input_tokens"]
  features = expected["encoder_outputs"], expected["encoder_mask"]
  bytes_in = expected["encoder_input_tokens"]
  whole = jax.jit(byt5_decoder.Byt5(T5X).apply, compiler_options=QUICK)
  for logits in (
    decode(T5X, params, tokens, *features),
    decode_by_steps(T5X, params, tokens, *features, max_length=12),
    whole({"params": params}, bytes_in, tokens),
  ):
    np.testing.assert_allclose(
      logits[real], expected["decoder_logits"][real], rtol=1e-5, atol=1e-5
    )


def test_parameters_are_t5x_s_and_all_have_axes(reference):
  params, _ = reference
  tokens = jnp.ones((1, 4), jnp.int32)
  variables = jax.eval_shape(
    byt5_decoder.Byt5(T5X).init, jax.random.key(0), tokens, tokens
  )
  assert jax.tree.map(jnp.shape, variables["params"]) == jax.tree.map(
    jnp.shape, params
  )
  axes = {
    (*name[:-1], name[-1].removesuffix("_axes")): tuple(value.names)
    for name, value in traverse_util.flatten_dict(
      variables["params_axes"]
    ).items()
  }
  assert {name: len(value) for name, value in axes.items()} == {
    name: value.ndim
    for name, value in traverse_util.flatten_dict(params).items()
  }
  assert set().union(*axes.values()) == KNOWN_AXES
  assert axes["decoder", "logits_dense", "kernel"] == ("embed", "vocab")


def test_the_whole_network_s_tree_serves_its_halves():
  tokens = jnp.ones((1, 4), jnp.int32)
  encoded, mask = jnp.ones((1, 3, 16)), jnp.ones((1, 3), bool)
  whole, writer, reader = (
    jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    for module, inputs in (
      (byt5_decoder.Byt5(TINY), (tokens, tokens)),
      (byt5_decoder.TextDecoder(TINY), (tokens, encoded, mask)),
      (byt5.TextEncoder(TINY), (tokens,)),
    )
  )
  assert {**writer, **reader} == whole
  assert writer.keys() == {"token_embedder", "decoder"}


def test_padded_features_change_nothing():
  params = random_params(TINY)
  tokens, encoded, mask = random_inputs()
  expected = decode(TINY, params, tokens, encoded, mask)
  rng = np.random.default_rng(1)
  other = np.where(mask[..., None], encoded, 9 * rng.normal(size=encoded.shape))
  more = np.pad(other, ((0, 0), (0, 20), (0, 0)), constant_values=5.0)
  more_mask = np.pad(mask, ((0, 0), (0, 20)))
  alone = decode(TINY, params, tokens[1:2], encoded[1:2, :2], mask[1:2, :2])
  np.testing.assert_allclose(alone[0], expected[1], atol=1e-5)
  for form in (decode, decode_by_steps):
    y = form(TINY, params, tokens, more.astype(np.float32), more_mask)
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_a_byte_sees_itself_and_those_before_it():
  params = random_params(TINY)
  tokens, encoded, mask = random_inputs()
  expected = decode(TINY, params, tokens, encoded, mask)
  for i in range(T):
    changed = tokens.copy()
    changed[:, i] = 77
    y = decode(TINY, params, changed, encoded, mask)
    np.testing.assert_array_equal(y[:, :i], expected[:, :i])
    assert np.abs(y - expected)[:, i:].max((0, 2)).min() > 1e-3
  # And every real feature.
  for i in range(S):
    changed = encoded.copy()
    changed[:, i] += 1.0
    y = decode(TINY, params, tokens, changed, mask)
    moved = np.abs(y - expected).max((1, 2))
    np.testing.assert_array_equal(moved > 1e-3, mask[:, i])


def test_positions_are_relative_and_ordered():
  """Bytes of one kind differ by their distance alone; one swap is seen."""
  params = random_params(TINY)
  tokens, encoded, mask = random_inputs()
  expected = decode(TINY, params, tokens, encoded, mask)
  swapped = tokens[:, [0, 2, 1, 3, 4, 5, 6]]
  y = decode(TINY, params, swapped, encoded, mask)
  assert np.abs(y - expected)[:, 3:].max((1, 2)).min() > 1e-3


@pytest.mark.parametrize(
  "dtype, tolerance, scan_layers",
  [("float32", 1e-5, False), ("float32", 1e-5, True), ("bfloat16", 0.1, False)],
)
def test_steps_are_teacher_forcing(dtype, tolerance, scan_layers):
  # Features of another width than the bytes'; more room than is used.
  params = random_params(TINY, width=24)
  inputs = random_inputs(width=24)
  expected = decode(TINY, params, *inputs)
  config = dataclasses.replace(TINY, dtype=dtype, scan_layers=scan_layers)
  if scan_layers:
    params = byt5.stacked(params)
  for y in (
    decode(config, params, *inputs),
    decode_by_steps(config, params, *inputs, max_length=T + 4),
  ):
    np.testing.assert_allclose(
      y, expected, atol=tolerance * np.abs(expected).max()
    )


def test_steps_reach_the_last_bucket():
  params = random_params(TINY)
  _, encoded, mask = random_inputs()
  rng = np.random.default_rng(0)
  tokens = rng.integers(3, 259, (B, 150)).astype(np.int32)
  expected = decode(TINY, params, tokens, encoded, mask)
  y = decode_by_steps(TINY, params, tokens, encoded, mask, max_length=150)
  # A sum of 150 has more rounding than one of 7.
  np.testing.assert_allclose(y, expected, atol=3e-5 * np.abs(expected).max())


def test_scanned_layers_equal_unrolled_ones():
  params = random_params(TINY)
  inputs = random_inputs()
  config = dataclasses.replace(TINY, scan_layers=True, remat=True)
  scanned = byt5.stacked(params)
  variables = jax.eval_shape(
    byt5_decoder.TextDecoder(config).init, jax.random.key(0), *inputs
  )
  assert jax.tree.map(jnp.shape, variables["params"]) == jax.tree.map(
    jnp.shape, scanned
  )
  layer = variables["params_axes"]["decoder"]["layers"]
  key = layer["encoder_decoder_attention"]["key"]["kernel_axes"]
  assert tuple(key.names) == ("embed", "layers", "joined_kv")

  def value_and_gradient(config, params):
    decoder = byt5_decoder.TextDecoder(config)

    def loss(params):
      return jnp.square(decoder.apply({"params": params}, *inputs)).mean()

    return jax.jit(jax.value_and_grad(loss), compiler_options=QUICK)(params)

  expected, gradient = value_and_gradient(
    dataclasses.replace(TINY, remat=True), params
  )
  actual, scanned_gradient = value_and_gradient(config, scanned)
  np.testing.assert_allclose(actual, expected, rtol=1e-5)
  apart = byt5.unrolled(scanned_gradient)
  assert apart["decoder"].keys() == gradient["decoder"].keys()
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    apart,
    dict(gradient),
  )


def test_dropout_needs_and_uses_its_rng():
  config = dataclasses.replace(TINY, dropout_rate=0.5)
  params = random_params(TINY)
  inputs = random_inputs()
  decoder = byt5_decoder.TextDecoder(config)

  @functools.partial(jax.jit, compiler_options=QUICK)
  def decode_with(rng):
    return decoder.apply(
      {"params": params}, *inputs, enable_dropout=True, rngs={"dropout": rng}
    )

  off = decode(config, params, *inputs)
  np.testing.assert_array_equal(off, decode(TINY, params, *inputs))
  on = [decode_with(jax.random.key(seed)) for seed in (0, 0, 1)]
  np.testing.assert_array_equal(on[0], on[1])
  assert np.abs(on[0] - off).max() > 0.1
  assert np.abs(on[0] - on[2]).max() > 0.1


@pytest.mark.parametrize("beam_size", [None, 3])
def test_what_is_written_has_the_probability_that_it_is_given(beam_size):
  """A beam that took another's cache would give other numbers."""
  params = random_params(TINY)
  _, encoded, mask = random_inputs()
  decoder = byt5_decoder.TextDecoder(TINY)

  @functools.partial(jax.jit, compiler_options=QUICK)
  def write(params):
    cache = decoder.init_cache(params, encoded, mask, 12)
    step = functools.partial(decoder.decode_step, params)
    if beam_size is None:
      return decoding.greedy(step, cache, B, 12, utf8.automaton())
    return decoding.beam_search(
      step, cache, B, 12, utf8.automaton(), beam_size=beam_size
    )

  decoded = jax.tree.map(np.asarray, write(params))
  inputs = np.pad(decoded.tokens, ((0, 0), (1, 0)))[:, :-1]
  logits = decode(TINY, params, inputs, encoded, mask)
  expected = np.take_along_axis(
    np.asarray(jax.nn.log_softmax(logits)), decoded.tokens[..., None], 2
  )[..., 0]
  expected *= decoded.tokens > 0
  np.testing.assert_allclose(decoded.log_probs, expected, atol=1e-4)
  assert len({tuple(tokens) for tokens in decoded.tokens}) == B


def test_a_decoder_without_layers_is_refused():
  decoder = byt5_decoder.TextDecoder(
    dataclasses.replace(TINY, num_decoder_layers=0)
  )
  with pytest.raises(ValueError, match="num_decoder_layers"):
    jax.eval_shape(decoder.init, jax.random.key(0), *random_inputs())
  with pytest.raises(ValueError, match="num_decoder_layers"):
    decoder.init_cache({"decoder": {}}, *random_inputs()[1:], 4)
