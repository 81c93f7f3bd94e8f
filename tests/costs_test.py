"""Counted operations and bytes: closed forms, and XLA's own counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from byt5_diffusion import costs, trainer


def shape(*sizes, dtype=jnp.float32):
  return jax.ShapeDtypeStruct(sizes, dtype)


def traced(function, *arguments):
  return jax.jit(function).trace(*arguments)


def counted(function, *arguments):
  return costs.operations(traced(function, *arguments).jaxpr)


def peak(function, *arguments):
  return costs.peak_bytes(traced(function, *arguments).jaxpr)


def test_a_matrix_product_is_2_m_n_k_and_with_its_gradients_three_times_that():
  x, w = shape(3, 5, 7), shape(7, 11)
  forward = counted(lambda x, w: x @ w, x, w)
  assert forward == costs.Operations(products=2 * 3 * 5 * 7 * 11)
  both = counted(jax.grad(lambda x, w: ((x @ w) ** 2).sum(), (0, 1)), x, w)
  assert both.products == 3 * forward.products  # forward, and once for each


def test_batched_products_count_every_batch():
  query, key = shape(2, 5, 3, 8), shape(2, 9, 3, 8)
  scores = counted(lambda q, k: jnp.einsum("bqhd,bkhd->bhqk", q, k), query, key)
  assert scores.products == 2 * (2 * 3) * 5 * 9 * 8


def convolution(stride, padding, groups=1):
  return lambda x, k: jax.lax.conv_general_dilated(
    x,
    k,
    (stride, stride),
    padding,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=groups,
  )


def test_a_convolution_without_padding_is_its_closed_form():
  got = counted(convolution(1, "VALID"), shape(2, 8, 9, 4), shape(3, 3, 4, 6))
  assert got.convolutions == 2 * (2 * 6 * 7) * 6 * (3 * 3 * 4)


def test_padding_is_not_counted():
  # Of 8 x 3 meetings along an axis, the first and the last see padding.
  got = counted(convolution(1, "SAME"), shape(1, 8, 8, 1), shape(3, 3, 1, 1))
  assert got.convolutions == 2 * (8 * 3 - 2) ** 2


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("which", [0, 1])
def test_gradients_of_convolutions_agree_with_xla(stride, groups, which):
  run = convolution(stride, "SAME", groups)
  gradient = traced(
    # A square, so that the forward convolution is needed, too.
    jax.grad(lambda x, k: (run(x, k) ** 2).sum(), which),
    shape(2, 9, 9, 16),
    shape(3, 3, 16 // groups, 32),
  )
  got = costs.operations(gradient.jaxpr).convolutions
  # Padding alone is a seventh of what a careless count finds.
  assert got == pytest.approx(gradient.lower().cost_analysis()["flops"], 0.03)


def test_loops_count_once_per_turn():
  w = shape(8, 8)

  def loop(x, w):
    return jax.lax.scan(lambda c, _: (c @ w, None), x, None, length=5)[0]

  assert counted(loop, shape(4, 8), w).products == 5 * 2 * 4 * 8 * 8
  endless = counted(
    lambda x, w: jax.lax.while_loop(lambda c: True, lambda c: c @ w, x),
    shape(4, 8),
    w,
  )
  assert endless.products == 2 * 4 * 8 * 8 and endless.unknown_loops == 1


def test_the_dearest_branch_counts():
  def branch(flag, x, w):
    return jax.lax.cond(flag, lambda: x @ w, lambda: (x @ w) @ w)

  got = counted(branch, shape(dtype=bool), shape(4, 8), shape(8, 8))
  assert got.products == 2 * 2 * 4 * 8 * 8


def test_a_whole_train_step_agrees_with_xla():
  """XLA counts more of the elementwise work, which is little in big models."""
  model = tiny.make_model()
  batch = {
    name: shape(*x.shape, dtype=x.dtype)
    for name, x in tiny.make_batch().items()
  }
  params = jax.eval_shape(
    lambda rng: model.get_initial_variables(rng, model.input_shapes(8)),
    jax.random.key(0),
  )["params"]
  step = traced(
    lambda p, b, rng: trainer.sum_gradients(model, p, None, b, rng, 1)[0],
    params,
    batch,
    jax.random.key(0),
  )
  got = costs.operations(step.jaxpr).total
  assert got == pytest.approx(step.lower().cost_analysis()["flops"], rel=0.1)


def test_results_live_until_their_last_use():
  x = shape(1000)  # 4000 bytes
  # a is needed to the end, and so is what is made of it.
  assert peak(lambda x: jnp.sort(x), x) == 4000
  assert peak(lambda x: jnp.sort(jnp.sort(x)), x) == 8000
  assert peak(lambda x: jnp.sort(jnp.sort(jnp.sort(x))), x) == 8000

  def kept(x):
    first = jnp.sort(x)
    return jnp.cumsum(jnp.sort(first)) + first[::-1].argsort().sum()

  assert peak(kept, x) >= 12000


def test_elementwise_results_are_fused_but_for_the_last():
  x = shape(1000)
  assert peak(lambda x: jnp.sin(x) * 2 + 1, x) == 4000
  assert peak(lambda x: jnp.sort(jnp.sin(x) * 2 + 1), x) == 4000


def test_a_function_that_is_called_twice_has_two_results():
  inner = jax.jit(jnp.sort)
  assert peak(lambda x, y: (inner(x), inner(y)), shape(10), shape(10)) == 80


def test_a_loop_keeps_what_it_stacks():
  def loop(x):
    return jax.lax.scan(lambda c, _: (jnp.sort(c), c), x, None, length=7)

  assert peak(loop, shape(10)) >= (7 + 1) * 40


def test_the_estimate_is_near_what_xla_allocates():
  def loss(weights, x):
    for weight in weights:
      x = jax.nn.silu(x @ weight) + x
    return (x**2).sum()

  weights = [shape(64, 64)] * 6
  step = traced(jax.grad(loss), weights, shape(512, 64))
  measured = step.lower().compile().memory_analysis()
  used = measured.temp_size_in_bytes + measured.output_size_in_bytes
  assert 0.5 < costs.peak_bytes(step.jaxpr) / used < 2


def test_bytes_of_trees():
  tree = {"a": np.zeros((2, 3), np.int8), "b": shape(4, dtype=jnp.bfloat16)}
  assert costs.tree_bytes(tree) == 6 + 8


def test_results_that_are_constants_or_arguments_cost_nothing():
  assert peak(lambda x: (x, 1.0, jnp.sort(x)), shape(10)) <= 40 + 4
