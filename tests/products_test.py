"""Each form of a product or a convolution against the plain one."""

import arrays
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from byt5_diffusion import products


@pytest.mark.parametrize(
  "size, stride, padding",
  [
    (3, 1, ((1, 1), (1, 1))),
    (3, 2, ((1, 1), (1, 1))),
    (3, 2, ((0, 1), (0, 1))),
    (2, 1, ((1, 0), (0, 1))),
    (1, 2, ((0, 0), (0, 0))),
  ],
)
def test_columns_equal_convolution(size, stride, padding):
  x, kernel = arrays.normal(0, 2, 6, 8, 3), arrays.normal(1, size, size, 3, 5)
  results = [
    arrays.value_and_gradients(
      lambda x, kernel, form=form: form(x, kernel, stride, padding), x, kernel
    )
    for form in (products.conv_as_columns, products.conv_as_convolution)
  ]
  for actual, expected in zip(*results, strict=True):
    arrays.assert_close(actual, expected)


def test_product_equals_convolution():
  x, kernel = arrays.normal(0, 2, 6, 8, 3), arrays.normal(1, 1, 1, 3, 5)
  results = [
    arrays.value_and_gradients(
      lambda x, kernel, form=form: form(x, kernel, 1, products.NO_PADDING),
      x,
      kernel,
    )
    for form in (products.conv_as_product, products.conv_as_convolution)
  ]
  for actual, expected in zip(*results, strict=True):
    arrays.assert_close(actual, expected)


def test_upsampling_by_parity_equals_convolution_of_the_doubled_image():
  x, kernel = arrays.normal(0, 2, 3, 5, 4), arrays.normal(1, 3, 3, 4, 6)

  def plain(x, kernel):
    doubled = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
    padding = ((1, 1), (1, 1))
    return products.conv_as_convolution(doubled, kernel, 1, padding)

  expected = arrays.value_and_gradients(plain, x, kernel)
  for function in (products.upsample_conv_by_parity, products.upsample_conv):
    actual = arrays.value_and_gradients(function, x, kernel)
    for a, e in zip(actual, expected, strict=True):
      arrays.assert_close(a, e)


@pytest.mark.parametrize(
  "cpu, batch, convolves",
  [(True, 2, False), (True, 64, True), (False, 2, True)],
)
def test_conv_is_a_product_of_columns_only_for_few_positions_on_a_cpu(
  monkeypatch, cpu, batch, convolves
):
  monkeypatch.setattr(products, "on_cpu", lambda: cpu)
  x, kernel = np.zeros((batch, 8, 8, 4)), np.zeros((3, 3, 4, 4))
  # A function of its own, or JAX would remember the other backend's trace.
  program = str(jax.make_jaxpr(lambda *args: products.conv(*args))(x, kernel))
  assert ("conv_general_dilated" in program) == convolves


@pytest.mark.parametrize("form", products.GRADIENT_FORMS)
@pytest.mark.parametrize(
  "size, padding",
  [
    ((3, 3), ((1, 1), (1, 1))),
    ((2, 2), ((1, 0), (0, 1))),
    ((3, 2), ((0, 0), (0, 2))),
    ((5, 3), ((2, 2), (1, 0))),
    ((3, 3), ((0, 0), (0, 0))),
  ],
)
def test_every_gradient_of_a_convolution_equals_xla_s(form, size, padding):
  x, kernel = arrays.normal(0, 2, 6, 8, 3), arrays.normal(1, *size, 3, 5)
  actual = arrays.value_and_gradients(
    lambda x, kernel: products.conv_by_gradient(x, kernel, padding, form),
    x,
    kernel,
  )
  expected = arrays.value_and_gradients(
    lambda x, kernel: products.conv_as_convolution(x, kernel, 1, padding),
    x,
    kernel,
  )
  for a, e in zip(actual, expected, strict=True):
    arrays.assert_close(a, e)


def test_every_gradient_form_is_chosen_somewhere():
  chosen = {
    (batch, side, width): products.gradient_form(
      jax.ShapeDtypeStruct((batch, side, side, width), "float32"),
      jax.ShapeDtypeStruct((3, 3, width, width), "float32"),
    )
    for batch, side, width in ((2, 4, 256), (2, 16, 128), (8, 32, 64))
  }
  assert list(chosen.values()) == [
    "columns_of_x",
    "columns_of_dy",
    "convolution",
  ]


@pytest.mark.parametrize("width", [6, 5000])
def test_product_s_gradients_equal_the_plain_ones(width):
  x, kernel = arrays.normal(0, 2, 3, width), arrays.normal(1, width, 4)
  actual = arrays.value_and_gradients(products.product, x, kernel)
  expected = arrays.value_and_gradients(jnp.matmul, x, kernel)
  for a, e in zip(actual, expected, strict=True):
    arrays.assert_close(a, e)


def test_other_platforms_and_dtypes_keep_xla_s_own_gradients(monkeypatch):
  """Nothing of the CPU's forms is in their programs."""
  x, kernel = arrays.normal(0, 2, 6, 8, 3), arrays.normal(1, 3, 3, 3, 5)

  def program(function, *args):
    # A function of its own, or JAX would remember the other backend's trace.
    return str(jax.make_jaxpr(lambda *args: function(*args))(*args))

  def programs(dtype):
    x_, kernel_ = x.astype(dtype), kernel.astype(dtype)
    return [
      program(products.conv, x_, kernel_),
      program(products.product, x_, kernel_[0, 0]),
    ]

  assert all("custom_vjp" in text for text in programs("float32"))
  assert not any("custom_vjp" in text for text in programs("bfloat16"))
  monkeypatch.setattr(products, "on_cpu", lambda: False)
  assert not any("custom_vjp" in text for text in programs("float32"))


def test_output_dtype_is_that_of_the_sum():
  """Products of bfloat16 that are not rounded to it."""
  x = jnp.full((1, 3), 1.0, "bfloat16")
  kernel = jnp.asarray([[256.0], [1.0], [1.0]], "bfloat16")
  assert products.product(x, kernel, "float32") == 258.0
  y = products.product(x, kernel)
  assert y.dtype == "bfloat16"


def test_wide_sums_are_differentiated_by_products_of_bfloat16():
  """Not by float32 ones, which accelerators are slower at."""
  x, kernel = (
    arrays.normal(i, *shape).astype("bfloat16")
    for i, shape in enumerate([(2, 3, 8), (8, 4)])
  )

  def wide(x, kernel):
    return products.product(x, kernel, "float32")

  results = arrays.value_and_gradients(wide, x, kernel)
  expected = arrays.value_and_gradients(
    jnp.matmul, *(a.astype("float32") for a in (x, kernel))
  )
  assert [a.dtype for a in results] == ["float32", "bfloat16", "bfloat16"]
  for actual, plain in zip(results, expected, strict=True):
    arrays.assert_close(actual, plain, 0.01)

  gradient = jax.grad(lambda *args: jnp.square(wide(*args)).sum(), (0, 1))
  equations = jax.make_jaxpr(gradient)(x, kernel).eqns
  found = [e for e in equations if e.primitive.name == "dot_general"]
  assert len(found) == 2  # The forward one is in a call of its own.
  for equation in found:
    assert all(v.aval.dtype == "bfloat16" for v in equation.invars)


def test_forms_batch_and_rematerialize():
  """Under vmap and jax.checkpoint, as the rest of a network."""
  x, kernel = arrays.normal(0, 3, 2, 4, 4, 3), arrays.normal(1, 3, 3, 3, 5)

  def loss(x, kernel):
    y = jax.checkpoint(products.conv)(x, kernel)
    return jnp.square(products.product(y, jnp.ones((5, 2)))).sum()

  together = jax.jit(jax.vmap(jax.grad(loss), (0, None)))(x, kernel)
  for i in range(3):
    arrays.assert_close(together[i], jax.jit(jax.grad(loss))(x[i], kernel))
