"""T5X's contract, replayed without T5X: what it calls, and how.

T5X traces, keywords and all, what it touches of a model and an optimizer; these
tests make the same calls in the same way, so they fail where T5X would.
"""

import inspect
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import traverse_util

from byt5_diffusion import optimizers

FACTORIES = {
  "adamw": optimizers.adamw,
  "lion": optimizers.lion,
  "adafactor": optimizers.adafactor,
}


@pytest.fixture(
  params=["trained", "frozen", "quoted", "enlarges"], scope="module"
)
def model(request: pytest.FixtureRequest) -> Any:
  if request.param == "enlarges":
    return tiny.make_super_resolution_model(
      unet=tiny.make_dot_unet(6, noise_level=True)
    )
  if request.param == "quoted":
    return tiny.make_two_encoder_model(
      conditioning_mode="quoted",
      self_conditioning=True,
      unet=tiny.make_dot_unet(6),
    )
  return tiny.make_model(freeze_text_encoder=request.param == "frozen")


@pytest.fixture(scope="module")
def variables(model: Any) -> dict[str, Any]:
  return tiny.make_variables(model)


def mutables_of(variables: dict[str, Any]) -> Any:
  """T5X's flax_mutables: all but params and the axes, frozen."""
  rest = {
    name: value
    for name, value in variables.items()
    if name != "params" and not name.endswith("_axes")
  }
  return flax.core.freeze(rest) if rest else None


def test_attributes_that_t5x_reads_exist(model: Any) -> None:
  for name in (
    "FEATURE_CONVERTER_CLS",
    "optimizer_def",
    "get_initial_variables",
    "loss_fn",
    "eval_fn",
    "predict_batch",
    "predict_batch_with_aux",
    "score_batch",
    "input_vocabulary",
    "output_vocabulary",
  ):
    assert hasattr(model, name), name


def test_initial_variables_is_a_bound_method_called_by_keyword(
  model: Any,
) -> None:
  assert model.get_initial_variables.__self__ is model
  batch = tiny.make_batch_for(model)
  shapes = {name: x.shape for name, x in batch.items()}
  types = {name: x.dtype for name, x in batch.items()}
  abstract = [
    jax.eval_shape(
      lambda given=given: model.get_initial_variables(
        rng=jax.random.PRNGKey(0), input_shapes=shapes, input_types=given
      )
    )
    for given in (types, None)  # t5x.eval gives None
  ]
  assert jax.tree.structure(abstract[0]) == jax.tree.structure(abstract[1])


def test_every_parameter_has_axis_names(variables: dict[str, Any]) -> None:
  collections = [name for name in variables if not name.endswith("_axes")]
  assert collections
  for name in collections:
    params = traverse_util.flatten_dict(flax.core.unfreeze(variables[name]))
    axes = traverse_util.flatten_dict(
      flax.core.unfreeze(variables[f"{name}_axes"])
    )
    assert {(*path[:-1], f"{path[-1]}_axes") for path in params} == set(axes)
    for path, value in params.items():
      names = axes[(*path[:-1], f"{path[-1]}_axes")].names
      assert len(names) == value.ndim, path
      assert all(isinstance(axis, str) for axis in names), path


def test_frozen_weights_are_no_parameters(
  model: Any, variables: dict[str, Any]
) -> None:
  home = "frozen" if model.freeze_text_encoder else "params"
  assert "text_encoder" in variables[home]
  frozen = {"text_encoder"} if model.freeze_text_encoder else set()
  frozen |= {"semantic_encoder"} if model.semantic_encoder else set()
  assert set(variables.get("frozen", {})) == frozen
  assert not frozen & set(variables["params"])


def test_loss_and_metrics_are_what_a_t5x_train_step_wants(
  model: Any, variables: dict[str, Any]
) -> None:
  params = flax.core.freeze(variables["params"])
  mutables = mutables_of(variables)
  batch = {k: jnp.asarray(v) for k, v in tiny.make_batch_for(model).items()}

  @jax.jit
  def step(params: Any, batch: Any, rng: Any, mutables: Any) -> Any:
    grad_fn = jax.value_and_grad(model.loss_fn, has_aux=True)
    if mutables is None:
      (loss, metrics), grads = grad_fn(params, batch, rng)
      return loss, metrics, None, grads
    (loss, (metrics, new)), grads = grad_fn(params, batch, rng, mutables)
    return loss, metrics, new, grads

  loss, metrics, new, grads = step(
    params, batch, jax.random.PRNGKey(3), mutables
  )
  assert loss.shape == () and np.isfinite(loss)
  assert jax.tree.structure(grads) == jax.tree.structure(params)
  # T5X adds its own metrics and merges micro-batches'.
  assert type(metrics) is dict
  for metric in metrics.values():
    merged = metric.merge(metric)
    np.testing.assert_allclose(
      merged.compute_value().value, metric.compute_value().value, rtol=1e-6
    )
  if mutables is not None:
    assert isinstance(new, flax.core.FrozenDict)
    assert tiny.leaves_equal(new, mutables)


def test_gradients_add_up_over_microbatches(
  model: Any, variables: dict[str, Any]
) -> None:
  """T5X sums the gradients of micro-batches: the sum must be the whole's."""
  params = variables["params"]
  mutables = mutables_of(variables)
  extra = () if mutables is None else (mutables,)
  batch = {k: jnp.asarray(v) for k, v in tiny.make_batch_for(model).items()}
  grad_fn = jax.jit(jax.grad(model.loss_fn, has_aux=True))
  rng = jax.random.PRNGKey(1)
  whole, _ = grad_fn(params, batch, rng, *extra)
  parts = [
    grad_fn(
      params, jax.tree.map(lambda x, i=i: x[i : i + 4], batch), rng, *extra
    )[0]
    for i in (0, 4)
  ]
  total = jax.tree.map(jnp.add, *parts)
  for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(total), strict=True):
    scale = max(float(jnp.abs(a).max()), 1e-3)
    np.testing.assert_allclose(a / scale, b / scale, atol=1e-5)


def test_eval_needs_no_rng_and_repeats_itself(
  model: Any, variables: dict[str, Any]
) -> None:
  batch = tiny.make_batch_for(model)
  mutables = mutables_of(variables)
  arguments = (variables["params"], batch)
  if mutables is not None:
    arguments += (mutables,)
  eval_fn = jax.jit(model.eval_fn)
  loss, metrics = eval_fn(*arguments)
  again, _ = eval_fn(*arguments)
  assert loss == again
  assert {"loss", "loss/t=0.5"} <= set(metrics)
  # Without an rng, T5X's evaluation step may also call loss_fn.
  without, _ = jax.jit(lambda *a: model.loss_fn(a[0], a[1], None, *a[2:]))(
    *arguments
  )
  np.testing.assert_allclose(loss, without, rtol=1e-6)


def test_prediction_signatures_name_rng_and_flax_mutables(model: Any) -> None:
  for method in (model.predict_batch, model.predict_batch_with_aux):
    names = list(inspect.signature(method).parameters)
    assert names[:2] == ["params", "batch"]
    assert {"rng", "flax_mutables"} <= set(names)
  names = list(inspect.signature(model.score_batch).parameters)
  assert names[:2] == ["params", "batch"] and "flax_mutables" in names


def test_predictions_have_the_batch_first(
  model: Any, variables: dict[str, Any]
) -> None:
  batch = tiny.make_batch_for(model)
  keywords: dict[str, Any] = {"rng": jax.random.PRNGKey(0)}
  mutables = mutables_of(variables)
  if mutables is not None:
    keywords["flax_mutables"] = mutables
  params = flax.core.freeze(variables["params"])
  images, aux = jax.jit(model.predict_batch_with_aux)(params, batch, **keywords)
  assert images.shape == batch["images"].shape
  assert float(jnp.abs(images).max()) <= 1
  assert all(len(x) == len(images) for x in jax.tree.leaves(aux))
  keywords.pop("rng")
  scores = jax.jit(model.score_batch)(params, batch, **keywords)
  assert scores.shape == (len(images),)
  np.testing.assert_allclose(-scores, aux["loss"], rtol=1e-5)


@pytest.mark.parametrize("name", sorted(FACTORIES))
@pytest.mark.parametrize("freeze", [flax.core.freeze, lambda tree: tree])
def test_optimizer_protocol(name: str, freeze: Any) -> None:
  """create, apply_gradient, state_dict, restore_state, derive_logical_axes."""
  params = freeze({"dense": {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}})
  definition = FACTORIES[name]()
  assert not hasattr(definition, "set_param_axes")
  optimizer = definition.create(params)
  assert int(optimizer.state.step) == 0
  assert jax.tree.leaves(optimizer)  # a pytree
  stepped = jax.jit(
    lambda o: o.apply_gradient(
      jax.tree.map(jnp.ones_like, o.target), learning_rate=0.1
    )
  )(optimizer)
  assert int(stepped.state.step) == 1
  assert not tiny.leaves_equal(stepped.target, params)
  state = stepped.state_dict()
  assert set(state) == {"target", "state"}
  assert set(state["state"]) == {"step", "param_states"}
  restored = optimizer.restore_state(jax.tree.map(np.asarray, state))
  assert tiny.leaves_equal(restored, stepped)
  replaced = stepped.replace(target=params)
  assert tiny.leaves_equal(replaced.target, params)

  axes = freeze(
    {
      "dense": {
        "kernel": jax.sharding.PartitionSpec("embed", "mlp"),
        "bias": jax.sharding.PartitionSpec("mlp"),
      }
    }
  )
  logical = definition.derive_logical_axes(optimizer, axes)
  assert type(logical) is type(optimizer)
  assert jax.tree.structure(
    logical.target, is_leaf=lambda x: isinstance(x, jax.sharding.PartitionSpec)
  ) == jax.tree.structure(params)
