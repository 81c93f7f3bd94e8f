"""Per-example losses against sums written out in numpy float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from byt5_diffusion import losses


def draw(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


def test_denoising_loss_is_the_weighted_mean_square_of_each_example():
  prediction, target = draw(0, 3, 4, 4, 2), draw(1, 3, 4, 4, 2)
  weight = jnp.array([1.0, 0.0, 2.5])
  loss = losses.denoising_loss(prediction, target, weight)
  error = np.asarray(prediction, np.float64) - np.asarray(target, np.float64)
  expected = [w * np.mean(e**2) for w, e in zip(weight, error, strict=True)]
  assert loss.shape == (3,)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_an_examples_loss_ignores_its_batch_mates():
  prediction, target = draw(0, 3, 4, 4, 2), draw(1, 3, 4, 4, 2)
  weight = jnp.ones(3)
  alone = losses.denoising_loss(prediction[1:2], target[1:2], weight[1:2])
  batch = losses.denoising_loss(
    prediction.at[0].set(jnp.nan), target.at[2].mul(1e6), weight
  )
  np.testing.assert_allclose(batch[1], alone[0], rtol=1e-6)


def test_loss_is_float32_of_bfloat16_inputs():
  prediction = jnp.full((1, 64, 64, 1), 1.0, jnp.bfloat16)
  target = jnp.zeros((1, 64, 64, 1), jnp.bfloat16)
  loss = losses.denoising_loss(prediction, target, jnp.full(1, 1.001))
  assert loss.dtype == jnp.float32
  np.testing.assert_allclose(loss, [1.001], rtol=1e-6)


@pytest.mark.parametrize(
  ("prediction", "target", "weight"),
  [
    ((2, 4, 4, 1), (2, 4, 4, 3), (2,)),
    ((2, 4, 4, 1), (2, 4, 4, 1), ()),
    ((2, 4, 4, 1), (2, 4, 4, 1), (2, 1)),
  ],
)
def test_shapes_that_would_broadcast_are_refused(prediction, target, weight):
  with pytest.raises(ValueError, match="shape"):
    losses.denoising_loss(
      jnp.zeros(prediction), jnp.zeros(target), jnp.zeros(weight)
    )


def test_cross_entropy_of_uniform_logits_is_log_of_the_vocabulary():
  logits = jnp.full((2, 3, 384), 7.0)
  targets = jnp.array([[1, 2, 3], [383, 0, 0]])
  weights = jnp.array([[1, 1, 1], [1, 0, 0]])
  loss = losses.cross_entropy(logits, targets, weights)
  np.testing.assert_allclose(loss, np.log([384.0, 384.0]), rtol=1e-6)


def test_cross_entropy_is_the_mean_over_a_rows_real_tokens():
  logits, targets = draw(2, 2, 4, 7), jnp.array([[0, 6, 3, 1], [2, 2, 0, 0]])
  weights = jnp.array([[1.0, 1.0, 1.0, 1.0], [1.0, 0.5, 0.0, 0.0]])
  x = np.asarray(logits, np.float64)
  nll = np.log(np.exp(x).sum(-1)) - np.take_along_axis(
    x, np.asarray(targets)[..., None], -1
  ).squeeze(-1)
  expected = (nll * weights).sum(-1) / weights.sum(-1)
  loss = losses.cross_entropy(logits, targets, weights)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_cross_entropy_of_a_row_without_tokens_is_zero_and_has_no_gradient():
  logits, targets = draw(3, 2, 4, 7), jnp.zeros((2, 4), jnp.int32)
  weights = jnp.array([[0.0] * 4, [1.0] * 4])
  total = lambda x: losses.cross_entropy(x, targets, weights).sum()  # noqa: E731
  assert losses.cross_entropy(logits, targets, weights)[0] == 0.0
  gradient = jax.grad(total)(logits)
  assert np.isfinite(gradient).all() and not gradient[0].any()
  assert gradient[1].any()


def test_cross_entropy_refuses_shapes_that_do_not_match():
  with pytest.raises(ValueError, match=r"\[B, T, V\]"):
    losses.cross_entropy(
      jnp.zeros((2, 3, 5)), jnp.zeros((2, 3), jnp.int32), jnp.zeros(3)
    )


def test_masked_mean_ignores_whatever_is_masked():
  x = jnp.array([[1.0, jnp.nan, 3.0], [jnp.inf, 5.0, jnp.nan]])
  mask = jnp.array([[True, False, True], [False, True, False]])
  np.testing.assert_allclose(losses.masked_mean(x, mask), 3.0)
  np.testing.assert_allclose(losses.masked_mean(x, mask, axis=-1), [2.0, 5.0])
  assert losses.masked_mean(x, jnp.zeros_like(mask)) == 0.0


def test_masked_mean_weighs():
  x, weights = jnp.array([1.0, 5.0]), jnp.array([3.0, 1.0])
  np.testing.assert_allclose(losses.masked_mean(x, weights), 2.0)
  with pytest.raises(ValueError, match="share a shape"):
    losses.masked_mean(x, weights[:1])


def test_variance_loss_is_the_divergence_of_the_two_normal_steps():
  """KL of normals from their means and variances, by Kingma's posterior."""
  rng = np.random.default_rng(0)
  x0, guess, fraction = rng.normal(size=(3, 2, 4, 4, 1))
  fraction = 0.5 + 0.2 * fraction
  log_snr_t, log_snr_s = np.array([-3.0, 1.0]), np.array([-2.5, 1.2])

  def spread(x):
    return x.reshape(2, 1, 1, 1)

  alpha_s, var_s = (
    1 / (1 + np.exp(-spread(x))) for x in (log_snr_s, -log_snr_s)
  )
  alpha_s, var_t = alpha_s**0.5, spread(1 / (1 + np.exp(log_snr_t)))
  fresh = 1 - np.exp(spread(log_snr_t - log_snr_s))
  posterior, forward = var_s * fresh, var_t * fresh
  variance = posterior ** (1 - fraction) * forward**fraction
  squared = (alpha_s * fresh * (x0 - guess)) ** 2
  expected = np.log(variance / posterior) - 1 + (posterior + squared) / variance
  actual = losses.variance_loss(
    *(jnp.float32(x) for x in (fraction, x0, guess, log_snr_t, log_snr_s))
  )
  np.testing.assert_allclose(
    actual, expected.mean((1, 2, 3)) / 2, rtol=1e-4, atol=1e-5
  )


def test_variance_loss_teaches_the_variance_alone():
  ones = jnp.ones((1, 2, 2, 1))
  gradients = jax.grad(
    lambda fraction, guess: losses.variance_loss(
      fraction, 2 * ones, guess, jnp.float32([-1.0]), jnp.float32([-0.5])
    ).sum(),
    argnums=(0, 1),
  )(0.5 * ones, ones)
  assert np.abs(gradients[0]).min() > 0 and not gradients[1].any()
  same = jnp.float32([-1.0])
  assert losses.variance_loss(0.3 * ones, ones, 0 * ones, same, same) == 0
