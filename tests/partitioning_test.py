"""Partitioning: rules to shardings, and batches over one to eight devices.

Functions named eight_devices_* are tests, too: they want eight virtual devices
and so run in a process of their own, which test_on_eight_devices starts.
"""

import dataclasses
import os
import pathlib
import socket
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.linen import partitioning as nn_partitioning

from byt5_diffusion import partitioning, train_state

P = jax.sharding.PartitionSpec
SHAPES = {
  "in": {"kernel": np.zeros((8, 16)), "bias": np.zeros(16)},
  "odd": {"kernel": np.zeros((8, 15))},
  "norm": {"scale": np.zeros(8)},
  "step": np.zeros(()),
}
AXES = {
  "in": {"kernel": ("embed", "mlp"), "bias": ("mlp",)},
  "odd": {"kernel": ("embed", "mlp")},
  "norm": {"scale": ("embed",)},
  "step": None,
}
FSDP = (("embed", "data"), ("mlp", None), ("mlp", "model"))


def specs(parts, shapes=SHAPES, axes=AXES):
  tree = parts.param_shardings(shapes, axes)
  return jax.tree.map(lambda s: tuple(s.spec), tree)


def subprocess_env(num_devices):
  root = str(pathlib.Path(__file__).resolve().parent.parent)
  flags = f"--xla_force_host_platform_device_count={num_devices}"
  path = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
  return os.environ | {
    "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": path,
  }  # fmt: skip


def test_on_eight_devices():
  done = subprocess.run(
    [
      sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
      "-o", "python_functions=eight_devices_*", __file__,
    ],
    env=subprocess_env(8),
    capture_output=True,
    text=True,
  )  # fmt: skip
  assert done.returncode == 0, done.stdout + done.stderr
  count = sum(name.startswith("eight_devices_") for name in globals())
  assert f"{count} passed" in done.stdout, done.stdout


# --- On one device. ---


def test_logical_axes_from_flax():
  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      kernel = nn_partitioning.param_with_axes(
        "kernel", nn.initializers.ones, (3, 4), axes=("embed", "mlp")
      )
      scale = nn_partitioning.param_with_axes(
        "scale", nn.initializers.ones, (), axes=()
      )
      return x @ kernel * scale

  variables = Net().init(jax.random.key(0), jnp.ones((1, 3)))
  axes = partitioning.logical_axes(variables["params_axes"])
  assert axes == {"kernel": ("embed", "mlp"), "scale": ()}
  with pytest.raises(ValueError, match="'kernel'"):
    partitioning.logical_axes({"kernel": ("embed",)})


def test_one_device():
  parts = partitioning.Partitioning()
  assert dict(parts.mesh.shape) == {"data": 1, "model": 1}
  batch = parts.shard_batch({"images": np.ones((3, 2)), "n": np.int32(3)})
  assert batch["images"].shape == (3, 2) and batch["n"] == 3
  assert parts.host_layout() == (0, 1)


def test_unknown_axis_is_named_with_its_nearest():
  parts = partitioning.Partitioning()
  with pytest.raises(ValueError, match=r"in/kernel.*'enbed'.*'embed'"):
    parts.param_shardings(
      {"in": {"kernel": np.zeros((2, 2))}}, {"in": {"kernel": ("enbed", "mlp")}}
    )


def test_every_parameter_without_names_is_listed():
  parts = partitioning.Partitioning()
  axes = {"in": {"kernel": ("embed", "mlp")}}
  with pytest.raises(ValueError, match=r"in/bias.*norm/scale"):
    parts.param_shardings(SHAPES, axes)


def test_number_of_names_must_fit():
  parts = partitioning.Partitioning()
  with pytest.raises(ValueError, match="k: 1 axis names"):
    parts.param_shardings({"k": np.zeros((2, 2))}, {"k": ("embed",)})


def test_bad_arguments():
  with pytest.raises(ValueError, match=r"'modle'.*'model'"):
    partitioning.Partitioning(logical_axis_rules=[("embed", "modle")])
  with pytest.raises(ValueError, match="num_partitions"):
    partitioning.Partitioning(num_partitions=0)
  with pytest.raises(ValueError, match="num_devices"):
    _ = partitioning.Partitioning(num_devices=4096).mesh
  with pytest.raises(dataclasses.FrozenInstanceError):
    partitioning.Partitioning().num_partitions = 2  # type: ignore[misc]


# --- On eight devices. ---


def eight_devices_num_partitions_is_honoured():
  for num, shape in ((1, (8, 1)), (2, (4, 2)), (4, (2, 4)), (8, (1, 8))):
    parts = partitioning.Partitioning(num_partitions=num)
    assert tuple(parts.mesh.shape.values()) == shape
    assert parts.mesh.axis_names == ("data", "model")
    auto = jax.sharding.AxisType.Auto
    assert parts.mesh.axis_types == (auto, auto)
  four = partitioning.Partitioning(num_partitions=2, num_devices=4)
  assert tuple(four.mesh.shape.values()) == (2, 2)
  with pytest.raises(ValueError, match="num_partitions=3 does not divide"):
    _ = partitioning.Partitioning(num_partitions=3).mesh


def eight_devices_standard_rules_split_wide_axes():
  got = specs(partitioning.Partitioning(num_partitions=4))
  assert got["in"]["kernel"] == (None, "model")
  assert got["in"]["bias"] == ("model",)
  assert got["odd"]["kernel"] == (None, None)  # 15 is not divisible by 4
  assert got["norm"]["scale"] == (None,)
  assert got["step"] == ()


def eight_devices_fsdp_by_rules():
  got = specs(partitioning.Partitioning(logical_axis_rules=FSDP))
  assert got["in"]["kernel"] == ("data", None)
  assert got["norm"]["scale"] == ("data",)
  conv = partitioning.Partitioning(
    logical_axis_rules=[("embed", "data"), ("conv_in", "data")]
  )
  shape, axes = {"k": np.zeros((8, 16))}, {"k": ("conv_in", "embed")}
  # One mesh axis, one dimension: the order of the rules decides which.
  assert specs(conv, shape, axes) == {"k": (None, "data")}
  shape = {"k": np.zeros((8, 15))}
  assert specs(conv, shape, axes) == {"k": ("data", None)}


def eight_devices_first_rule_that_fits_wins():
  parts = partitioning.Partitioning(
    num_partitions=4,
    logical_axis_rules=[("a", "model"), ("b", "model"), ("b", "data")],
  )
  axes = {"k": ("b", "a")}
  assert specs(parts, {"k": np.zeros((4, 4))}, axes) == {"k": ("data", "model")}
  assert specs(parts, {"k": np.zeros((4, 3))}, axes) == {"k": ("model", None)}
  repeated = {"k": ("a", "a")}
  got = specs(parts, {"k": np.zeros((4, 4))}, repeated)
  assert got == {"k": ("model", None)}


def eight_devices_state_mirrors_parameters():
  parts = partitioning.Partitioning(num_partitions=2)
  params = {
    "in": {"kernel": jnp.ones((8, 16)), "bias": jnp.ones(16)},
    "kernel": jnp.ones((16, 16)),  # a suffix of the other's name
  }
  axes = {
    "in": {"kernel": ("embed", "mlp"), "bias": ("mlp",)},
    "kernel": ("mlp", "embed"),
  }
  shardings = parts.param_shardings(params, axes)
  tx = optax.chain(optax.scale_by_adam(), optax.scale_by_factored_rms(True, 2))
  state = jax.eval_shape(lambda p: train_state.create(p, tx), params)
  got = parts.state_shardings(state, params, shardings)
  assert got.params == got.ema_params == shardings
  assert got.opt_state[0].mu == got.opt_state[0].nu == shardings
  assert got.opt_state[0].nu["kernel"].spec == P("model", None)
  assert got.opt_state[0].count == got.step == parts.replicated()
  assert jax.tree.structure(got) == jax.tree.structure(state)
  created = jax.jit(lambda p: train_state.create(p, tx), out_shardings=got)(
    params
  )
  assert (
    created.ema_params["in"]["kernel"].sharding == shardings["in"]["kernel"]
  )
  shard = created.opt_state[0].mu["in"]["kernel"].addressable_shards[0]
  assert shard.data.shape == (8, 8)


def eight_devices_batch_rows_lie_over_data():
  parts = partitioning.Partitioning(num_partitions=2)
  images = np.arange(8 * 3, dtype=np.float32).reshape(8, 3)
  batch = parts.shard_batch({"images": images, "id": np.arange(8)})
  assert batch["images"].sharding == parts.batch_sharding(2)
  assert parts.batch_sharding(0) == parts.replicated()
  np.testing.assert_array_equal(batch["images"], images)
  for shard in batch["images"].addressable_shards:
    assert shard.data.shape == (2, 3)
    np.testing.assert_array_equal(shard.data, images[shard.index])
  with pytest.raises(ValueError, match="batch_size=6 is not a multiple of 4"):
    parts.shard_batch({"images": images[:6]})
  with pytest.raises(ValueError, match="batch_size=0"):
    parts.check_batch_size(0)


def eight_devices_loss_and_gradients_do_not_depend_on_the_layout():
  key = jax.random.key(0)
  params = {"in": jax.random.normal(key, (8, 16)), "out": jnp.ones((16, 8))}
  axes = {"in": ("embed", "mlp"), "out": ("mlp", "embed")}
  x = np.asarray(jax.random.normal(key, (16, 8)))

  def loss(params, x):
    return jnp.mean((jnp.tanh(x @ params["in"]) @ params["out"] - x) ** 2)

  step = jax.jit(jax.value_and_grad(loss))
  expected = step(params, x)
  layouts = [
    partitioning.Partitioning(),
    partitioning.Partitioning(num_partitions=2),
    partitioning.Partitioning(num_partitions=4),
    partitioning.Partitioning(logical_axis_rules=FSDP),
    partitioning.Partitioning(num_partitions=2, num_devices=4),
  ]
  for parts in layouts:
    placed = jax.device_put(params, parts.param_shardings(params, axes))
    got = step(placed, parts.shard_batch(x))
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
      got,
      expected,
    )


def test_a_plan_needs_no_devices():
  rules = (("embed", "data"), ("mlp", "model"))
  plan = partitioning.Partitioning(
    num_partitions=4, logical_axis_rules=rules
  ).planned(64)
  assert plan.data_size == 16 and plan.mesh.size == 64
  shapes = {"kernel": jax.ShapeDtypeStruct((2**20, 2**20), np.float32)}
  [sharding] = jax.tree.leaves(
    plan.param_shardings(shapes, {"kernel": ("embed", "mlp")})
  )
  assert sharding.spec == P("data", "model")
  assert sharding.shard_shape((2**20, 2**20)) == (2**16, 2**18)
  with pytest.raises(ValueError, match="num_partitions=4 does not divide 6"):
    plan.planned(6)


# --- In two processes. ---

_TWO_PROCESSES = """
import sys
import jax, numpy as np
index, port = int(sys.argv[1]), sys.argv[2]
jax.distributed.initialize(f"localhost:{port}", 2, index)
from byt5_diffusion import partitioning
def rows(x):
  return sorted({s.index[0].start or 0: np.asarray(s.data).tolist()
                 for s in x.addressable_shards}.items())
parts = partitioning.Partitioning()
assert parts.host_layout() == (index, 2), parts.host_layout()
batch = parts.shard_batch(np.arange(4) + 4 * index)
assert batch.shape == (8,)
mine = sum((r for _, r in rows(batch)), [])
assert mine == list(range(4 * index, 4 * index + 4)), mine
total = jax.jit(lambda x: x.sum(), out_shardings=parts.replicated())(batch)
assert int(total) == 28
# A model that spans both hosts: the hosts read the same rows.
parts = partitioning.Partitioning(num_partitions=4)
assert parts.host_layout() == (0, 1), parts.host_layout()
batch = parts.shard_batch(np.arange(3))
assert batch.shape == (3,)
print("fine", flush=True)
"""


def test_two_processes_each_give_their_rows():
  with socket.socket() as s:
    s.bind(("localhost", 0))
    port = str(s.getsockname()[1])
  processes = [
    subprocess.Popen(
      [sys.executable, "-c", _TWO_PROCESSES, str(i), port],
      env=subprocess_env(2),
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for i in range(2)
  ]
  outputs = [process.communicate(timeout=120)[0] for process in processes]
  assert [p.returncode for p in processes] == [0, 0], "\n".join(outputs)
