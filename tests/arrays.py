"""Arrays for tests of layers: random, compared, differentiated."""

import jax
import jax.numpy as jnp
import numpy as np


def normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def assert_close(actual, expected, tolerance=1e-5):
  """Within tolerance of the largest expected number."""
  expected = np.asarray(expected, np.float64)
  error = np.abs(np.asarray(actual, np.float64) - expected).max()
  assert error <= tolerance * np.abs(expected).max()


def value_and_gradients(function, *args):
  """function(*args) and its pullback of a fixed random cotangent."""

  @jax.jit
  def both(*args):
    y, pullback = jax.vjp(function, *args)
    return y, *pullback(jnp.asarray(normal(9, *y.shape)))

  return both(*args)
