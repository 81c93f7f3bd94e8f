"""One gradient for any number of devices, any layout and any micro-batches.

Layouts are those of gin/partitioning/. Functions named eight_devices_* are
tests, too: they want eight virtual devices and so run in a process of their
own, which test_on_eight_devices starts.
"""

import functools
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import pytest
import tiny

from byt5_diffusion import (
  config,
  optimizers,
  partitioning,
  trainer,
)

BATCH = 32
LAYOUTS = {
  # name: (gin file, devices, num_partitions, micro-batches)
  "data_8_micro_2": ("data_parallel", 8, 1, 2),
  "model_2_of_8": ("model_parallel", 8, 2, 1),
  "fsdp_8": ("fsdp", 8, 1, 1),
}
MORE_LAYOUTS = {
  "data_4": ("data_parallel", 4, 1, 1),
  "data_8": ("data_parallel", 8, 1, 1),
  "data_8_micro_4": ("data_parallel", 8, 1, 4),
  "model_4_of_8": ("model_parallel", 8, 4, 1),
  "fsdp_8_micro_4": ("fsdp", 8, 1, 4),
}


def run_on_eight_devices(tier: str) -> str:
  root = str(pathlib.Path(__file__).resolve().parent.parent)
  done = subprocess.run(
    [
      *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
      *("-o", "python_functions=eight_devices_*", "-m", tier, __file__),
    ],
    env=os.environ
    | {
      "JAX_PLATFORMS": "cpu",
      "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
      "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]),
    },
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout


def test_on_eight_devices() -> None:
  done = run_on_eight_devices("not slow")
  assert f"{len(LAYOUTS) + 1} passed" in done, done


@pytest.mark.slow
def test_on_eight_devices_in_full() -> None:
  done = run_on_eight_devices("slow")
  assert f"{len(MORE_LAYOUTS) + 1} passed" in done, done


def layout(
  name: str, num_devices: int, num_partitions: int = 1
) -> partitioning.Partitioning:
  """What gin/partitioning/<name>.gin says, on so many devices."""
  program = config.read([f"partitioning/{name}.gin"])
  return partitioning.Partitioning(
    num_partitions=num_partitions,
    logical_axis_rules=program.macro("LOGICAL_AXIS_RULES"),
    num_devices=num_devices,
  )


@functools.cache
def variables() -> tuple[Any, Any]:
  """(params, logical axes) of the tiny model; random values."""
  model = tiny.make_model(BATCH)
  abstract = jax.eval_shape(lambda: tiny.make_variables(model))
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: rng.normal(0, 0.2, x.shape).astype(x.dtype), abstract["params"]
  )
  return params, partitioning.logical_axes(abstract["params_axes"])


def place(where: partitioning.Partitioning) -> Any:
  params, axes = variables()
  return jax.device_put(params, where.param_shardings(params, axes))


@functools.cache
def gradient_fn(
  rules: str, num_devices: int, num_partitions: int, num_microbatches: int
) -> Callable[[Mapping[str, np.ndarray]], Any]:
  """batch -> (gradients laid out like the parameters, loss)."""
  where = layout(rules, num_devices, num_partitions)
  params = place(where)
  shardings = jax.tree.map(lambda x: x.sharding, params)
  model = tiny.make_model(BATCH)

  @functools.partial(jax.jit, out_shardings=(shardings, None))
  def gradients(params: Any, batch: Any) -> Any:
    summed, metrics = trainer.sum_gradients(
      model, params, None, batch, jax.random.key(1), num_microbatches
    )
    return summed, metrics["loss"].compute()

  # Un-joined, the steps of several virtual devices deadlock on few cores.
  return lambda batch: jax.block_until_ready(
    gradients(params, where.shard_batch(batch))
  )


@functools.cache
def on_one_device() -> Any:
  return jax.device_get(
    gradient_fn("data_parallel", 1, 1, 1)(tiny.make_batch(BATCH))
  )


def assert_close(found: Any, expected: Any, least: float = 1e-30) -> None:
  """1e-5 of every leaf's largest value, or of `least`."""
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  leaves, _ = jax.tree_util.tree_flatten_with_path(expected)
  for (path, want), got in zip(leaves, jax.tree.leaves(found), strict=True):
    want, got = np.asarray(want), np.asarray(got)
    scale = max(np.abs(want).max(), least)
    np.testing.assert_allclose(
      got / scale, want / scale, atol=1e-5, err_msg=jax.tree_util.keystr(path)
    )


def shard_share(tree: Any) -> float:
  """Bytes on the first device / bytes in all; 1 where all is replicated."""
  leaves = jax.tree.leaves(tree)
  held = sum(x.addressable_shards[0].data.nbytes for x in leaves)
  return held / sum(x.nbytes for x in leaves)


def mesh_axes(tree: Any) -> set[str]:
  """Mesh axes that cut any array of the tree."""
  specs = [leaf.sharding.spec for leaf in jax.tree.leaves(tree)]
  return {axis for spec in specs for axis in spec if axis is not None}


@pytest.mark.parametrize(
  "name",
  [
    *LAYOUTS,
    *(pytest.param(name, marks=pytest.mark.slow) for name in MORE_LAYOUTS),
  ],
)
def eight_devices_give_the_gradient_of_one(name: str) -> None:
  arguments = (LAYOUTS | MORE_LAYOUTS)[name]
  rules, num_devices, num_partitions, _ = arguments
  found, loss = gradient_fn(*arguments)(tiny.make_batch(BATCH))
  expected, expected_loss = on_one_device()
  assert_close(found, expected)
  np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)

  # Nothing above is proved by zeros, nor by arrays that are whole everywhere.
  assert max(np.abs(x).max() for x in jax.tree.leaves(expected)) > 1e-3
  where = layout(rules, num_devices, num_partitions)
  axes = {"data_parallel": set(), "model_parallel": {"model"}, "fsdp": {"data"}}
  share = {"data_parallel": 1.0, "model_parallel": 0.75, "fsdp": 0.25}
  for tree in (found, place(where)):
    for leaf in jax.tree.leaves(tree):
      assert len(leaf.sharding.device_set) == num_devices
    assert mesh_axes(tree) == axes[rules]
    assert shard_share(tree) <= share[rules]
  batch = where.shard_batch(tiny.make_batch(BATCH))
  rows = BATCH * num_partitions // num_devices
  assert batch["images"].addressable_shards[0].data.shape[0] == rows


def eight_devices_sum_what_each_has_seen() -> None:
  """The test above would fail if one device's share were lost."""
  batch = tiny.make_batch(BATCH)
  for rows in batch.values():
    rows[-4:] = rows[:4]  # what the last device has
  found, _ = gradient_fn(*LAYOUTS["data_8_micro_2"])(batch)
  with pytest.raises(AssertionError):
    assert_close(found, on_one_device()[0])


@pytest.mark.slow
def eight_devices_train_as_one(tmp_path: pathlib.Path) -> None:
  """trainer.train: the state is sharded, the numbers are one device's."""

  def train(num_devices: int) -> Any:
    return trainer.train(
      # With a large eps steps go with the gradient; with Adam's own they are
      # its sign, which is rounding where the gradient is nothing.
      model=tiny.make_model(BATCH, optimizer_def=optimizers.adamw(eps=1.0)),
      train_data=tiny.Batches,
      learning_rate_fn=optimizers.constant(0.1),
      partitioning=layout("fsdp", num_devices),
      model_dir=str(tmp_path / str(num_devices)),
      total_steps=2,
      batch_size=BATCH,
      checkpoint_period=2,
      log_period=2,
    )

  one, four = train(1), train(4)
  assert shard_share(one.params) == 1
  for tree in (four.params, four.ema_params, four.opt_state):
    assert mesh_axes(tree) == {"data"}
    assert shard_share(tree) < 0.5
  for name in ("params", "ema_params"):
    assert_close(getattr(four, name), getattr(one, name), least=1e-2)
  assert int(four.step) == 2
  # The average lags behind: the parameters have moved.
  with pytest.raises(AssertionError):
    assert_close(one.ema_params, one.params, least=1e-2)
