"""Every form of attention has the same numbers; cuDNN gets only what it can."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from byt5_diffusion import attention_forms


def draw(dtype="float32", length=6, sources=4, head_dim=8):
  rng = np.random.default_rng(0)
  shapes = [(2, n, 3, head_dim) for n in (length, sources, sources)]
  return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


MASK = np.array([[True, False, True, True], [False, True, False, False]])


@pytest.mark.parametrize("mask", [None, MASK[:, None, None, :]])
def test_the_kernel_s_numbers_are_the_products(mask):
  """XLA's form of the same call; gradients, too."""

  def kernel(*args):
    return attention_forms.attention_by_cudnn(*args, mask, implementation="xla")

  def products(*args):
    return attention_forms.attention(*args, mask=mask)

  args = draw()
  results = []
  for form in (kernel, products):
    y, pullback = jax.vjp(form, *args)
    results.append([y, *pullback(jnp.cos(jnp.arange(y.size)).reshape(y.shape))])
  for one, other in zip(*results, strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_a_mask_is_a_bias_that_forbids():
  args = draw()
  mask = MASK[:, None, None, :]
  bias = np.random.default_rng(1).normal(size=(2, 3, 6, 4)).astype("f4")
  y = attention_forms.attention(*args, bias, mask)
  expected = attention_forms.attention(
    *args, bias + attention_forms.mask_bias(mask)
  )
  np.testing.assert_array_equal(y, expected)
  alone = attention_forms.attention(*[x[1:, 1:2] for x in args])
  np.testing.assert_allclose(
    attention_forms.attention(*args, mask=mask)[1, 1], alone[0, 0], atol=1e-6
  )


@pytest.mark.parametrize(
  ("changes", "masked", "fits"),
  [
    ({}, True, True),
    ({}, False, True),
    ({"dtype": "float32"}, False, False),
    ({"dtype": "float16"}, True, True),
    ({"head_dim": 12}, False, False),
    ({"head_dim": 512}, False, False),
    ({"sources": 5}, True, False),
    ({"length": 5}, True, False),
    ({"length": 5, "sources": 5}, False, True),
  ],
)
def test_the_kernel_is_chosen_by_device_dtype_and_shape(
  monkeypatch, changes, masked, fits
):
  query, key, value = draw(**{"dtype": "bfloat16", **changes})
  mask = jnp.ones((2, 1, 1, key.shape[1]), bool) if masked else None
  called = []
  monkeypatch.setattr(
    attention_forms, "attention_by_cudnn", lambda *_: called.append(True)
  )
  attention_forms.attention(query, key, value, mask=mask)
  assert not called  # This is a CPU.
  monkeypatch.setattr(attention_forms, "cuda_at_least", lambda _: True)
  attention_forms.attention(query, key, value, mask=mask)
  assert bool(called) == fits
  called.clear()
  bias = jnp.zeros((1, 1, query.shape[1], key.shape[1]))
  attention_forms.attention(query, key, value, bias, mask)
  assert not called  # A bias that learns needs its gradient.
