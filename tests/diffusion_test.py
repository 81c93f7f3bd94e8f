"""Schedules, conversions and weights against their closed forms in float64."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from byt5_diffusion import diffusion

SCHEDULES = {
  "cosine": diffusion.cosine_schedule(),
  "flow": diffusion.flow_schedule(),
  "linear": diffusion.linear_schedule(),
  "scaled_linear": diffusion.scaled_linear_schedule(),
  "zero_terminal": diffusion.zero_terminal_snr_schedule(),
  "shifted": diffusion.shifted_schedule(
    schedule=diffusion.cosine_schedule(), image_size=256
  ),
}

FEW = hypothesis.settings(max_examples=20, deadline=None)


@pytest.fixture(params=SCHEDULES)
def schedule(request):
  return SCHEDULES[request.param]


def sigmoid(x):
  return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def draw(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


# --- Schedules ---------------------------------------------------------------


def test_inverse_of_log_snr_gives_back_the_time(schedule):
  timesteps = np.linspace(0, 1, 2001, dtype=np.float32)
  back = schedule.timesteps(schedule.log_snr(timesteps))
  np.testing.assert_allclose(back, timesteps, atol=2e-6)


@FEW
@hypothesis.given(
  name=st.sampled_from(sorted(SCHEDULES)), log_snr=st.floats(-4.5, 7.0)
)
def test_log_snr_of_its_inverse_gives_back_log_snr(name, log_snr):
  schedule = SCHEDULES[name]
  back = schedule.log_snr(schedule.timesteps(jnp.float32(log_snr)))
  np.testing.assert_allclose(back, log_snr, atol=5e-5)


def test_log_snr_falls_strictly_with_time(schedule):
  log_snr = schedule.log_snr(jnp.linspace(0, 1, 2001))
  assert np.all(np.diff(log_snr) < 0)


def test_ends_are_reached_and_not_passed(schedule):
  ends = schedule.log_snr(jnp.array([-0.5, 0.0, 1.0, 1.5]))
  assert np.isfinite(ends).all()
  assert ends[0] == ends[1] and ends[2] == ends[3]
  np.testing.assert_array_equal(
    schedule.timesteps(jnp.array([jnp.inf, -jnp.inf])), [0.0, 1.0]
  )


@pytest.mark.parametrize(
  "make", [diffusion.cosine_schedule, diffusion.flow_schedule]
)
def test_bounds_of_log_snr_are_the_ends(make):
  schedule = make(log_snr_min=-15.0, log_snr_max=9.0)
  np.testing.assert_allclose(
    schedule.log_snr(jnp.array([0.0, 1.0])), [9.0, -15.0], rtol=1e-5
  )
  with pytest.raises(ValueError, match="log_snr_min"):
    make(log_snr_min=3.0, log_snr_max=-3.0)


def test_cosine_and_flow_follow_their_formulas_between_the_ends():
  t = np.linspace(0.01, 0.99, 99)
  cosine = -2 * np.log(np.tan(np.pi * t / 2))
  flow = 2 * np.log((1 - t) / t)
  # The truncation at +-20 moves t by at most 5e-5, so log_snr by ~1e-2 at
  # the ends and not at all in the middle.
  for name, expected in [("cosine", cosine), ("flow", flow)]:
    actual = SCHEDULES[name].log_snr(t)
    np.testing.assert_allclose(actual, expected, atol=1.2e-2)
    np.testing.assert_allclose(actual[49], 0.0, atol=1e-6)


def test_shift_is_twice_the_log_of_the_ratio_of_sides():
  t = jnp.linspace(0, 1, 11)
  moved = SCHEDULES["shifted"].log_snr(t) - SCHEDULES["cosine"].log_snr(t)
  np.testing.assert_allclose(moved, 2 * np.log(64 / 256), rtol=1e-5)


@pytest.mark.parametrize(
  ("name", "betas"),
  [
    ("linear", np.linspace(1e-4, 0.02, 1000)),
    ("scaled_linear", np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2),
  ],
)
def test_discrete_levels_are_the_alphas_cumprod_of_their_betas(name, betas):
  expected = np.exp(np.cumsum(np.log1p(-betas)))
  log_snr = SCHEDULES[name].log_snr(np.arange(1, 1001) / 1000)
  np.testing.assert_allclose(sigmoid(log_snr), expected, rtol=3e-6)
  # One more than the index: what a network of 1000 steps is told is 1000 t - 1.
  np.testing.assert_allclose(
    1000 * SCHEDULES[name].timesteps(log_snr) - 1, np.arange(1000), atol=1e-3
  )


def test_stable_diffusions_last_level_is_not_pure_noise():
  """The published figure for its sqrt(alphas_cumprod): 0.068265."""
  log_snr = SCHEDULES["scaled_linear"].log_snr(jnp.float32(1.0))
  np.testing.assert_allclose(sigmoid(log_snr) ** 0.5, 0.068265, atol=1e-6)


def test_zero_terminal_snr_ends_at_zero_and_starts_where_it_did():
  before = diffusion.scaled_linear_alphas_cumprod(0.00085, 0.012, 1000)
  after = diffusion.rescale_to_zero_terminal_snr(before)
  assert after[-1] == 0.0
  np.testing.assert_allclose(after[0], before[0], rtol=1e-12)
  # Affine in alpha: second differences of alpha keep their proportions.
  bend = np.diff(np.sqrt(after), 2) / np.diff(np.sqrt(before), 2)
  np.testing.assert_allclose(bend, bend[0], rtol=1e-5)
  log_snr = SCHEDULES["zero_terminal"].log_snr(np.arange(1, 1001) / 1000)
  np.testing.assert_allclose(sigmoid(log_snr[:-1]), after[:-1], rtol=3e-6)
  assert log_snr[-1] == diffusion.LOG_SNR_MIN


@pytest.mark.parametrize(
  ("alphas_cumprod", "message"),
  [
    ([0.9, 0.9, 0.1], "fall strictly"),
    ([0.9, 0.1, 1e-12, 0.0], "fall strictly"),
    ([1.0, 0.5], "in \\[0, 1\\)"),
    ([0.5, -0.1], "in \\[0, 1\\)"),
    ([[0.9, 0.1]], "must be \\[N\\]"),
  ],
)
def test_alphas_cumprod_that_make_no_schedule_are_refused(
  alphas_cumprod, message
):
  with pytest.raises(ValueError, match=message):
    diffusion.discrete_schedule(alphas_cumprod=np.array(alphas_cumprod))


# --- Conversions -------------------------------------------------------------


@FEW
@hypothesis.given(st.floats(-40, 40))
def test_alpha_and_sigma_preserve_variance(log_snr):
  alpha, sigma = diffusion.log_snr_to_alpha_sigma(log_snr)
  np.testing.assert_allclose(alpha**2 + sigma**2, 1.0, rtol=1e-6)
  np.testing.assert_allclose(alpha**2, sigmoid(log_snr), rtol=1e-5)


def test_infinite_log_snr_is_exactly_clean_or_exactly_noise():
  alpha, sigma = diffusion.log_snr_to_alpha_sigma(
    jnp.array([jnp.inf, -jnp.inf])
  )
  np.testing.assert_array_equal(alpha, [1.0, 0.0])
  np.testing.assert_array_equal(sigma, [0.0, 1.0])


def test_expand_refuses_what_is_not_one_value_per_example():
  like = jnp.zeros((3, 2, 2, 1))
  assert diffusion.expand(jnp.zeros(3), like).shape == (3, 1, 1, 1)
  for shape in [(), (1,), (2,), (3, 1)]:
    with pytest.raises(ValueError, match=r"\[B\]"):
      diffusion.expand(jnp.zeros(shape), like)


def test_noise_is_added_per_example():
  x0, noise = draw(0, 2, 3, 3, 1), draw(1, 2, 3, 3, 1)
  noisy = diffusion.add_noise(x0, noise, jnp.array([jnp.inf, 0.0]))
  np.testing.assert_array_equal(noisy[0], x0[0])
  np.testing.assert_allclose(noisy[1], (x0[1] + noise[1]) / 2**0.5, rtol=1e-5)


def targets_by_definition(x0, noise, log_snr):
  """As written in the papers, through angles, in float64."""
  x0, noise = np.asarray(x0, np.float64), np.asarray(noise, np.float64)
  angle = np.arctan(np.exp(-np.asarray(log_snr, np.float64) / 2))
  angle = angle[:, None, None, None]
  return {
    "noise": noise,
    "x0": x0,
    "v": np.cos(angle) * noise - np.sin(angle) * x0,
    "flow": noise - x0,
  }


@pytest.mark.parametrize("prediction_type", diffusion.PREDICTION_TYPES)
@FEW
@hypothesis.given(log_snrs=st.lists(st.floats(-8, 8), min_size=3, max_size=3))
def test_targets_are_their_definitions_and_give_back_x0(
  prediction_type, log_snrs
):
  x0, noise = draw(2, 3, 2, 2, 3), draw(3, 3, 2, 2, 3)
  log_snr = jnp.array(log_snrs, jnp.float32)
  target = diffusion.make_target(x0, noise, log_snr, prediction_type)
  expected = targets_by_definition(x0, noise, log_snr)[prediction_type]
  np.testing.assert_allclose(target, expected, atol=2e-6)
  noisy = diffusion.add_noise(x0, noise, log_snr)
  back = diffusion.to_x0(target, noisy, log_snr, prediction_type)
  # 1 / alpha at log_snr -8 is 55.
  np.testing.assert_allclose(back, x0, atol=5e-5)
  np.testing.assert_allclose(
    diffusion.to_noise(back, noisy, log_snr), noise, atol=5e-5
  )


@pytest.mark.parametrize("source", diffusion.PREDICTION_TYPES)
@pytest.mark.parametrize("target", diffusion.PREDICTION_TYPES)
def test_every_pair_of_conversions_makes_a_round_trip(source, target):
  prediction, noisy = draw(4, 5, 2, 2, 1), draw(5, 5, 2, 2, 1)
  log_snr = jnp.array([-6.0, -2.0, 0.0, 2.0, 6.0])
  there = diffusion.convert_prediction(
    prediction, noisy, log_snr, source, target
  )
  back = diffusion.convert_prediction(there, noisy, log_snr, target, source)
  np.testing.assert_allclose(back, prediction, atol=2e-4)
  if source != target:
    assert not np.allclose(there, prediction, atol=0.1)


def test_flow_is_the_velocity_of_the_networks_own_path():
  """z = x_t / (alpha + sigma) moves by noise - x0 per unit of its time."""
  x0, noise = draw(6, 1, 2, 2, 1), draw(7, 1, 2, 2, 1)
  schedule = diffusion.flow_schedule()
  times = jnp.array([0.3, 0.6])
  z = []
  for time in times:
    log_snr = schedule.log_snr(time)[None]
    alpha, sigma = diffusion.log_snr_to_alpha_sigma(log_snr)
    z.append(diffusion.add_noise(x0, noise, log_snr) / (alpha + sigma))
    np.testing.assert_allclose(sigma / (alpha + sigma), time, atol=5e-5)
  flow = diffusion.make_target(x0, noise, jnp.zeros(1), "flow")
  np.testing.assert_allclose((z[1] - z[0]) / 0.3, flow, atol=1e-3)


@pytest.mark.parametrize("prediction_type", diffusion.PREDICTION_TYPES)
def test_conversions_are_finite_at_zero_terminal_snr(prediction_type):
  x0, noise = draw(8, 1, 2, 2, 1), draw(9, 1, 2, 2, 1)
  log_snr = diffusion.zero_terminal_snr_schedule().log_snr(jnp.ones(1))
  target = diffusion.make_target(x0, noise, log_snr, prediction_type)
  noisy = diffusion.add_noise(x0, noise, log_snr)
  back = diffusion.to_x0(target, noisy, log_snr, prediction_type)
  assert np.isfinite(back).all()
  if prediction_type != "noise":
    np.testing.assert_allclose(back, x0, atol=1e-6)


def test_unknown_prediction_type_is_named():
  one = jnp.zeros((1, 1))
  with pytest.raises(ValueError, match="'epsilon' must be one of noise, x0"):
    diffusion.to_x0(one, one, jnp.zeros(1), "epsilon")
  with pytest.raises(ValueError, match="'epsilon'"):
    diffusion.make_target(one, one, jnp.zeros(1), "epsilon")
  with pytest.raises(ValueError, match="'epsilon'"):
    diffusion.uniform_weight()(jnp.zeros(1), "epsilon")


# --- Weights -----------------------------------------------------------------

WEIGHTS = {
  "uniform": diffusion.uniform_weight(),
  "min_snr": diffusion.min_snr_weight(5.0),
  "p2": diffusion.p2_weight(gamma=0.5, k=1.0),
}


def test_min_snr_is_its_table():
  snr = np.array([1e-4, 0.5, 1.0, 4.9, 5.1, 100.0])
  capped = np.minimum(snr, 5.0)
  expected = {
    "noise": capped / snr,
    "x0": capped,
    "v": capped / (snr + 1),
    "flow": capped / (np.sqrt(snr) + 1) ** 2,
  }
  assert set(expected) == set(diffusion.PREDICTION_TYPES)
  for prediction_type, value in expected.items():
    actual = WEIGHTS["min_snr"](jnp.log(snr), prediction_type)
    np.testing.assert_allclose(actual, value, rtol=1e-5)


def test_min_snr_in_the_limit_of_zero_snr():
  limits = {"noise": 1.0, "x0": 0.0, "v": 0.0, "flow": 0.0}
  for prediction_type, limit in limits.items():
    for log_snr in [-jnp.inf, -20.0]:
      actual = WEIGHTS["min_snr"](jnp.full(2, log_snr), prediction_type)
      np.testing.assert_allclose(actual, [limit, limit], atol=1e-8)


def test_p2_is_its_formula_on_noise():
  snr = np.array([1e-3, 1.0, 50.0])
  actual = WEIGHTS["p2"](jnp.log(snr), "noise")
  np.testing.assert_allclose(actual, (1 + snr) ** -0.5, rtol=1e-5)


@pytest.mark.parametrize("name", ["min_snr", "p2"])
@pytest.mark.parametrize("prediction_type", diffusion.PREDICTION_TYPES)
def test_weights_make_one_objective_of_every_prediction_type(
  name, prediction_type
):
  """The same wrong x0 costs the same, whatever the network's output means."""
  x0, noise, wrong = (draw(seed, 4, 3, 3, 1) for seed in (10, 11, 12))
  log_snr = jnp.array([-4.0, -1.0, 1.0, 4.0])
  noisy = diffusion.add_noise(x0, noise, log_snr)

  def cost(prediction_type):
    prediction = diffusion.convert_prediction(
      wrong, noisy, log_snr, "x0", prediction_type
    )
    target = diffusion.make_target(x0, noise, log_snr, prediction_type)
    error = jnp.mean((prediction - target) ** 2, axis=(1, 2, 3))
    return WEIGHTS[name](log_snr, prediction_type) * error

  np.testing.assert_allclose(cost(prediction_type), cost("x0"), rtol=1e-3)


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("prediction_type", diffusion.PREDICTION_TYPES)
def test_weights_are_finite_per_example_and_never_negative(
  name, prediction_type
):
  log_snr = jnp.array([-jnp.inf, -30.0, -20.0, 0.0, 20.0, 30.0, jnp.inf])
  weight = WEIGHTS[name](log_snr, prediction_type)
  assert weight.shape == log_snr.shape and weight.dtype == jnp.float32
  assert np.isfinite(weight).all() and (weight >= 0).all()


def test_uniform_weight_is_one():
  np.testing.assert_array_equal(
    WEIGHTS["uniform"](jnp.array([-9.0, 9.0]), "v"), [1.0, 1.0]
  )


@pytest.mark.parametrize(
  "make",
  [
    lambda: diffusion.min_snr_weight(0.0),
    lambda: diffusion.p2_weight(k=0.0),
    lambda: diffusion.p2_weight(gamma=-1.0),
    lambda: diffusion.shifted_schedule(
      schedule=SCHEDULES["cosine"], image_size=0
    ),
  ],
)
def test_arguments_that_make_no_sense_are_refused(make):
  with pytest.raises(ValueError, match="must be"):
    make()
