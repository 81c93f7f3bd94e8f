"""The ByT5 encoder against T5X's numbers and its own rules."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from byt5_diffusion import byt5, layers

TINY = byt5.Byt5Config(
  embed_dim=16, num_heads=2, head_dim=8, mlp_dim=32, num_encoder_layers=2
)
# These programs run once: compiling them is what takes the time.
QUICK = {"xla_backend_optimization_level": 0}
KNOWN_AXES = {
  "vocab", "embed", "joined_kv", "mlp", "heads", "relpos_buckets", "layers"
}  # fmt: skip


@pytest.fixture(scope="module")
def reference(shared_data):
  """T5X's parameters and what its encoder made of a padded batch."""
  folder = shared_data / "fixtures" / "t5x"
  flat = {
    tuple(name.split("/")): value
    for name, value in np.load(folder / "params_flat.npz").items()
    if not name.startswith("decoder/")
  }
  params = traverse_util.unflatten_dict(flat)
  return params, dict(np.load(folder / "reference_io.npz"))


def random_params(config, seed=0):
  init = jax.jit(byt5.TextEncoder(config).init, compiler_options=QUICK)
  return init(jax.random.key(seed), np.ones((1, 4), np.int32))["params"]


def encode(config, params, tokens):
  apply = jax.jit(byt5.TextEncoder(config).apply, compiler_options=QUICK)
  y = apply({"params": params}, tokens)
  assert y.dtype == config.dtype
  return np.asarray(y, np.float32)


def encode_and_capture(config, params, tokens):
  """Also what each module returned."""
  encoder = byt5.TextEncoder(config)
  y, state = jax.jit(
    lambda params: encoder.apply(
      {"params": params},
      tokens,
      capture_intermediates=True,
      mutable=["intermediates"],
    ),
    compiler_options=QUICK,
  )(params)
  return y, state["intermediates"]


def random_tokens(rng, lengths, width):
  tokens = rng.integers(3, 259, (len(lengths), width))
  return np.where(np.arange(width) < np.array(lengths)[:, None], tokens, 0)


def test_t5x_numbers_layer_by_layer(reference):
  params, expected = reference
  y, seen = encode_and_capture(TINY, params, expected["encoder_input_tokens"])
  encoder = seen["encoder"]
  for name, actual in {
    "token_embedding": seen["token_embedder"]["__call__"][0],
    "encoder_relpos_bias": encoder["relpos_bias"]["__call__"][0],
    "encoder_layer_0_out": encoder["layers_0"]["__call__"][0],
    "encoder_layer_1_out": encoder["layers_1"]["__call__"][0],
    "encoder_outputs": y,
  }.items():
    assert actual.shape == expected[name].shape, name
    np.testing.assert_allclose(
      actual, expected[name], rtol=1e-5, atol=1e-5, err_msg=name
    )


def test_t5x_numbers_of_an_all_pad_row(reference):
  params, expected = reference
  y = encode(TINY, params, expected["null_caption_tokens"])
  np.testing.assert_allclose(
    y, expected["null_caption_encoder_outputs"], rtol=1e-5, atol=1e-5
  )


def test_parameters_are_t5x_s_and_all_have_axes(reference):
  params, _ = reference
  variables = jax.eval_shape(
    byt5.TextEncoder(TINY).init, jax.random.key(0), jnp.ones((1, 4), jnp.int32)
  )
  shapes = {
    name: value.shape
    for name, value in traverse_util.flatten_dict(variables["params"]).items()
  }
  assert shapes == {
    name: value.shape
    for name, value in traverse_util.flatten_dict(params).items()
  }
  axes = {
    (*name[:-1], name[-1].removesuffix("_axes")): tuple(value.names)
    for name, value in traverse_util.flatten_dict(
      variables["params_axes"]
    ).items()
  }
  assert {name: len(value) for name, value in axes.items()} == {
    name: len(shape) for name, shape in shapes.items()
  }
  assert set().union(*axes.values()) <= KNOWN_AXES


@pytest.mark.parametrize(
  "dtype, tolerance", [("float32", 1e-6), ("bfloat16", 0.05)]
)
def test_padding_never_changes_a_real_byte(dtype, tolerance):
  config = dataclasses.replace(TINY, dtype=dtype)
  params = random_params(config)
  tokens = random_tokens(np.random.default_rng(0), [5, 9], 9)
  expected = encode(config, params, tokens)
  for pads in (1, 40):
    y = encode(config, params, np.pad(tokens, ((0, 0), (0, pads))))
    np.testing.assert_allclose(y[0, :5], expected[0, :5], atol=tolerance)
    np.testing.assert_allclose(y[1, :9], expected[1, :9], atol=tolerance)
  alone = encode(config, params, tokens[:1, :5])
  np.testing.assert_allclose(alone[0], expected[0, :5], atol=tolerance)


def test_a_byte_sees_both_neighbours_and_their_order():
  params = random_params(TINY)
  texts = np.array([[10, 20, 30], [11, 20, 30], [10, 20, 31], [30, 20, 10]])
  middle, *others = encode(TINY, params, texts)[:, 1]
  for other in others:
    assert np.abs(other - middle).max() > 1e-3


def test_the_residual_stream_stays_float32_in_bfloat16():
  config = dataclasses.replace(TINY, dtype="bfloat16")
  params = random_params(config)
  assert all(p.dtype == "float32" for p in jax.tree.leaves(params))
  # A stream of 4096 would swallow every addend below 16 in bfloat16.
  params["token_embedder"]["embedding"] = jnp.full((384, 16), 4096.0)
  tokens = random_tokens(np.random.default_rng(0), [6], 6)
  streams = {}
  for dtype in ("float32", "bfloat16"):
    _, seen = encode_and_capture(
      dataclasses.replace(config, dtype=dtype), params, tokens
    )
    streams[dtype] = seen["encoder"]["layers_1"]["__call__"][0]
  assert streams["bfloat16"].dtype == "float32"
  moved = streams["float32"] - 4096.0
  error = np.abs(streams["bfloat16"] - streams["float32"]).max()
  assert error < 0.05 * np.abs(moved).max() < 16.0


@pytest.mark.parametrize("remat", [False, True])
def test_scanned_layers_equal_unrolled_ones(remat):
  params = random_params(TINY)
  scanned = byt5.stacked(params)
  config = dataclasses.replace(TINY, scan_layers=True, remat=remat)
  init = byt5.TextEncoder(config).init
  variables = jax.eval_shape(init, jax.random.key(0), np.ones((1, 4), np.int32))
  assert jax.tree.map(jnp.shape, variables["params"]) == jax.tree.map(
    jnp.shape, scanned
  )
  query = variables["params_axes"]["encoder"]["layers"]["attention"]["query"]
  assert tuple(query["kernel_axes"].names) == ("embed", "layers", "joined_kv")
  tokens = random_tokens(np.random.default_rng(0), [5, 9], 9)

  def value_and_gradient(config, params):
    encoder = byt5.TextEncoder(config)

    def loss(params):
      return jnp.square(encoder.apply({"params": params}, tokens)).sum()

    return jax.jit(jax.value_and_grad(loss), compiler_options=QUICK)(params)

  expected, gradient = value_and_gradient(
    dataclasses.replace(TINY, remat=remat), params
  )
  actual, scanned_gradient = value_and_gradient(config, scanned)
  np.testing.assert_allclose(actual, expected, rtol=1e-5)
  np.testing.assert_allclose(
    scanned_gradient["encoder"]["layers"]["mlp"]["wo"]["kernel"][:, 1],
    gradient["encoder"]["layers_1"]["mlp"]["wo"]["kernel"],
    atol=1e-4,
  )


@pytest.mark.parametrize("to", [jnp.asarray, np.asarray])
def test_stacked_and_unrolled_are_inverse(to):
  """Anywhere in a tree, bit for bit, and idempotent."""
  rng = np.random.default_rng(0)

  def layer():
    return {"mlp": {"wo": to(rng.normal(size=(3, 5)))}, "norm": to([1.0, 2.0])}

  encoder = {f"layers_{i}": layer() for i in range(11)} | {"norm": to([1.0])}
  params = {"a": {"encoder": encoder}, "embedding": to([[1.0]])}
  together = byt5.stacked(params)
  assert together["a"]["encoder"].keys() == {"norm", "layers"}
  wo = together["a"]["encoder"]["layers"]["mlp"]["wo"]
  assert wo.shape == (3, 11, 5)
  assert isinstance(wo, type(to(0)))
  np.testing.assert_array_equal(wo[:, 10], encoder["layers_10"]["mlp"]["wo"])
  apart = byt5.unrolled(together)
  assert jax.tree.structure(apart) == jax.tree.structure(params)
  jax.tree.map(np.testing.assert_array_equal, apart, params)
  assert byt5.stacked(together).keys() == byt5.unrolled(params).keys()
  del params["a"]["encoder"]["layers_3"]
  with pytest.raises(ValueError, match="gaps"):
    byt5.stacked(params)


def test_half_precision_survives_what_float16_cannot_hold():
  """Gated products of 10^5, as trained T5s have them."""
  params = random_params(TINY)
  for i in range(2):
    mlp = params["encoder"][f"layers_{i}"]["mlp"]
    for name in ("wi_0", "wi_1"):
      mlp[name]["kernel"] *= 300.0
  tokens = random_tokens(np.random.default_rng(0), [30], 30)
  y, seen = encode_and_capture(TINY, params, tokens)
  stream = np.abs(seen["encoder"]["layers_1"]["__call__"][0])
  assert stream.max() > 65504
  size = np.abs(y).max()
  # As if one computed all in float16.
  mlp = params["encoder"]["layers_0"]["mlp"]
  x = np.random.default_rng(0).normal(size=(30, 16))
  naive = layers.GatedMlp(TINY.mlp_dim, dtype="float16")
  assert not np.isfinite(naive.apply({"params": mlp}, x)).all()
  for dtype, limit in (("float16", 0.004), ("bfloat16", 0.03)):
    half = encode(dataclasses.replace(TINY, dtype=dtype), params, tokens)
    assert np.abs(half - y).max() < limit * size, dtype


def test_dropout_needs_and_uses_its_rng():
  config = dataclasses.replace(TINY, dropout_rate=0.5)
  params = random_params(config)
  tokens = random_tokens(np.random.default_rng(0), [6], 6)
  encoder = byt5.TextEncoder(config)

  @functools.partial(jax.jit, compiler_options=QUICK)
  def encode_with(rng):
    return encoder.apply(
      {"params": params}, tokens, enable_dropout=True, rngs={"dropout": rng}
    )

  off = encode(config, params, tokens)
  on = [encode_with(jax.random.key(seed)) for seed in (0, 0, 1)]
  np.testing.assert_array_equal(on[0], on[1])
  assert np.abs(on[0] - off).max() > 0.1
  assert np.abs(on[0] - on[2]).max() > 0.1


def test_buckets_are_exact_when_near_and_logarithmic_when_far():
  buckets = byt5.relative_position_buckets(
    200, 200, bidirectional=True, num_buckets=32, max_distance=128
  )
  # Behind: 0..7 exact, then two buckets per doubling, capped from 128 on.
  behind = [buckets[d, 0] for d in (0, 1, 7, 8, 11, 12, 16, 32, 64, 128, 199)]
  assert behind == [0, 1, 7, 8, 8, 9, 10, 12, 14, 15, 15]
  np.testing.assert_array_equal(
    buckets.T[np.tril_indices(200, -1)],
    buckets[np.tril_indices(200, -1)] + 16,
  )
  causal = byt5.relative_position_buckets(
    4, 4, bidirectional=False, num_buckets=32, max_distance=128
  )
  np.testing.assert_array_equal(causal[2], [2, 1, 0, 0])
