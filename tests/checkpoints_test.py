"""Checkpoints: every bit comes back, and nothing broken is ever believed."""

import json
import os
import pathlib
import random
import re
import resource
import shutil
import socket
import struct
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

import byt5_diffusion
from byt5_diffusion import (
  checkpoints,
  host_places,
  optimizers,
  stored_trees,
  train_state,
)
from byt5_diffusion.data import state as place_lib

FREEZE = [("encoder/.*", True), (".*", False)]


def make_tx():
  return optimizers.adamw(freeze_rules=FREEZE).tx


def make_state(seed=0):
  """A state with every dtype in use, frozen leaves and a random key."""
  rng = jax.random.key(seed)
  params = {
    "encoder": {"kernel": jax.random.normal(rng, (3, 4)).astype(jnp.bfloat16)},
    "unet": {
      "kernel": jax.random.normal(rng, (8, 16)),
      "bias": jnp.float32([0.0, -0.0, jnp.inf, 1e-40]),
    },
  }
  state = train_state.create(params, make_tx())
  return {
    "step": jnp.int32(seed),
    "params": state.params,
    "opt_state": state.opt_state,
    "rng": jax.random.split(rng, 3),
    "int8": jnp.int8([-128, 127]),
  }


def shapes_of(state):
  return jax.eval_shape(lambda: state)


def bits(tree):
  def leaf(x):
    x = jax.random.key_data(x) if stored_trees.is_key(x) else x
    return str(x.dtype), x.shape, np.asarray(x).tobytes()

  return [leaf(x) for x in jax.tree.leaves(tree)]


def save(model_dir, *steps, state=None, **options):
  writer = checkpoints.Checkpointer(model_dir, **options)
  for step in steps:
    writer.save(step, state or make_state(step), b"position", {"seed": step})
  writer.close()
  return pathlib.Path(model_dir)


@pytest.fixture
def run_dir(tmp_path):
  return save(tmp_path / "run", 10, 20)


# --- What goes in comes out. ---


def test_round_trip_keeps_every_bit(run_dir):
  reader = checkpoints.Checkpointer(run_dir)
  state = make_state(20)
  restored, data_state, extra = reader.restore(20, shapes_of(state))
  assert jax.tree.structure(restored) == jax.tree.structure(state)
  assert bits(restored) == bits(state)
  assert restored["rng"].dtype == state["rng"].dtype
  assert data_state == b"position" and extra == {"seed": 20}
  older, _, extra = reader.restore(10, shapes_of(state))
  assert bits(older) == bits(make_state(10)) and extra == {"seed": 10}
  reader.close()


def test_the_latest_is_the_default(run_dir):
  reader = checkpoints.Checkpointer(run_dir)
  assert reader.latest_step() == 20
  restored, _, _ = reader.restore(None, shapes_of(make_state()))
  assert restored["step"] == 20
  reader.close()


def test_a_new_directory_has_no_step(tmp_path):
  writer = checkpoints.Checkpointer(tmp_path / "a" / "b", period=5)
  assert writer.latest_step() is None
  assert [s for s in range(1, 16) if writer.should_save(s)] == [5, 10, 15]
  with pytest.raises(checkpoints.CheckpointError, match="no complete"):
    writer.restore(None, shapes_of(make_state()))
  writer.close()


def test_layout_is_the_one_described(run_dir):
  assert sorted(p.name for p in run_dir.iterdir()) == [
    "checkpoint_10",
    "checkpoint_20",
  ]
  extra = json.loads((run_dir / "checkpoint_20/extra/metadata").read_text())
  assert extra["format"] == "byt5_diffusion" and extra["format_version"] == 2


def test_only_the_last_n_are_kept(tmp_path):
  save(tmp_path, 1, 2, 3, 4, keep=2)
  assert checkpoints.committed_steps(tmp_path) == [3, 4]
  assert len(list(tmp_path.iterdir())) == 2
  save(tmp_path, 5, 6, keep=None)
  assert checkpoints.committed_steps(tmp_path) == [3, 4, 5, 6]


def test_relative_directories(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  save("here/run", 1)
  assert checkpoints.committed_steps("here/run") == [1]
  assert checkpoints.restore_params("here/run").step == 1
  assert (tmp_path / "here/run/checkpoint_1").is_dir()


def test_saving_a_step_twice_changes_nothing(run_dir):
  before = (run_dir / "checkpoint_20/extra/metadata").stat().st_mtime_ns
  writer = checkpoints.Checkpointer(run_dir)
  assert not writer.save(20, make_state(5))
  assert writer.save(30, make_state(5))
  writer.close()
  after = (run_dir / "checkpoint_20/extra/metadata").stat().st_mtime_ns
  assert before == after


def test_a_state_may_be_donated_as_soon_as_save_returns(tmp_path):
  overwrite = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
  writer = checkpoints.Checkpointer(tmp_path)
  for step in range(3):
    state = {"w": jnp.full((512, 1024), step, jnp.float32)}
    writer.save(step, state)
    for _ in range(3):
      state = {"w": overwrite(state["w"])}
    jax.block_until_ready(state)
  writer.wait()
  for step in range(3):
    got, _, _ = writer.restore(step, shapes_of(state))
    assert (got["w"] == step).all()
  writer.close()


def test_large_data_states_and_none(tmp_path):
  position = random.Random(0).randbytes(3_000_000)
  writer = checkpoints.Checkpointer(tmp_path)
  state = {"w": jnp.ones(2)}
  writer.save(1, state, position)
  writer.save(2, state)
  assert writer.restore(1, state)[1] == position
  writer.wait()
  assert writer.restore(2, state)[1] == b""
  writer.close()


def test_another_count_of_hosts_is_refused(run_dir, monkeypatch):
  monkeypatch.setattr(checkpoints, "read_data_states", lambda path: [b"", b""])
  reader = checkpoints.Checkpointer(run_dir)
  with pytest.raises(checkpoints.CheckpointError, match=r"2 hosts .* has 1"):
    reader.restore(20, shapes_of(make_state()))
  reader.close()


@pytest.mark.parametrize("before", [1, 2, 4])
def test_another_count_of_hosts_goes_on_with_all_their_places(
  tmp_path, monkeypatch, before
):
  """Streams of the data are shared out anew (data/state.py)."""
  identity = {"task": "x"}
  hosts = [
    place_lib.pack_place(
      identity,
      place_lib.Place(9, {v: (7, b"snapshot %d" % v) for v in streams}),
    )
    for streams in np.arange(4).reshape(before, -1).tolist()
  ]
  monkeypatch.setattr(host_places, "gather", lambda own: hosts)
  save(tmp_path, 1)
  reader = checkpoints.Checkpointer(tmp_path, merge=place_lib.merge)
  monkeypatch.setattr(jax, "process_count", lambda: 3)
  _, packed, _ = reader.restore(1, shapes_of(make_state()))
  place = place_lib.unpack_place(packed, identity)
  assert place.num_batches == 9
  assert place.streams == {v: (7, b"snapshot %d" % v) for v in range(4)}
  monkeypatch.undo()
  reader.close()


def test_equal_places_are_kept_once():
  states = [b"a" * 1000, b"", b"a" * 1000, b"b"]
  [array] = host_places.pack(states).values()
  assert array.nbytes < 1100
  assert host_places._unpack(array.tobytes()) == states


@pytest.mark.parametrize(
  "content",
  [
    b"",
    b"\0" * 8,
    b"\xff" * 20,
    struct.pack("<Q", 2) + b"{}",
    struct.pack("<Q", 31) + b'{"sizes": [9], "processes":[0]}',
    struct.pack("<Q", 31) + b'{"sizes": [1], "processes":[3]}x',
    struct.pack("<Q", 32) + b'{"sizes": [1], "processes":[-1]}x',
    struct.pack("<Q", 31) + b'{"sizes": "a", "processes":[0]}x',
  ],
)
def test_damaged_places_give_one_clear_error(tmp_path, monkeypatch, content):
  array = np.frombuffer(content or b"x", np.uint8)
  monkeypatch.setattr(host_places, "pack", lambda _: {"places": array})
  save(tmp_path, 1)
  with pytest.raises(checkpoints.CheckpointError, match="data is damaged"):
    checkpoints.read_data_states(tmp_path / "checkpoint_1")


# --- Earlier versions of the format. ---


def write_version_1(model_dir, step, state, data_states, extra):
  """A checkpoint as version 1 wrote it."""
  items = {"state": "PyTree", "data": "PyTree", "extra": "Json"}
  flat = stored_trees.flatten_names(state)
  tree = {name: stored_trees.storable(leaf) for name, leaf in flat.items()}
  hosts = {
    f"host_{i}": np.frombuffer(b"\0" + position, np.uint8)
    for i, position in enumerate(data_states)
  }
  record = {"format": "byt5_diffusion", "format_version": 1, "extra": extra}
  with ocp.CheckpointManager(
    model_dir,
    options=ocp.CheckpointManagerOptions(
      step_prefix="checkpoint", save_root_metadata=False
    ),
    item_names=tuple(items),
    item_handlers={
      name: getattr(ocp, f"{kind}CheckpointHandler")()
      for name, kind in items.items()
    },
  ) as manager:
    manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.PyTreeSave(stored_trees.nest(tree)),
        data=ocp.args.PyTreeSave(hosts),
        extra=ocp.args.JsonSave(record),
      ),
    )


def contents(folder):
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in sorted(folder.rglob("*"))
    if path.is_file()
  }


def test_version_1_is_read_and_left_as_it_is(tmp_path):
  state = make_state(4)
  write_version_1(tmp_path, 4, state, [b"position"], {"seed": 4})
  before = contents(tmp_path / "checkpoint_4")
  reader = checkpoints.Checkpointer(tmp_path, keep=None)
  restored, data_state, extra = reader.restore(None, shapes_of(state))
  assert bits(restored) == bits(state)
  assert data_state == b"position" and extra == {"seed": 4}
  assert checkpoints.restore_params(tmp_path).extra == {"seed": 4}
  assert "params" not in checkpoints.open_source(tmp_path).what
  # The run goes on beside it, in today's version.
  reader.save(5, make_state(5), b"further", {"seed": 5})
  reader.close()
  assert contents(tmp_path / "checkpoint_4") == before
  versions = [
    stored_trees.read_record(
      stored_trees.absolute(tmp_path) / f"checkpoint_{i}"
    )
    for i in (4, 5)
  ]
  assert [x["format_version"] for x in versions] == [1, 2]
  assert [x["package_version"] for x in versions] == [
    None,
    byt5_diffusion.__version__,
  ]


def test_version_1_of_several_hosts_is_merged_too(tmp_path):
  hosts = [
    place_lib.pack_place({}, place_lib.Place(3, {v: (3, b"")})) for v in (0, 1)
  ]
  write_version_1(tmp_path, 1, make_state(), hosts, {})
  assert checkpoints.read_data_states(tmp_path / "checkpoint_1") == hosts
  reader = checkpoints.Checkpointer(tmp_path, merge=place_lib.merge)
  _, packed, _ = reader.restore(1, shapes_of(make_state()))
  assert set(place_lib.unpack_place(packed, {}).streams) == {0, 1}
  reader.close()


def test_trees_of_version_1_load(tmp_path):
  tree = {"a": {"w": np.float32([1, 2])}}
  sha256 = checkpoints.save_tree(tmp_path / "t", tree)
  path = tmp_path / "t/extra/metadata"
  record = json.loads(path.read_text())
  del record["package_version"]
  path.write_text(json.dumps(record | {"format_version": 1}))
  assert bits(checkpoints.load_tree(tmp_path / "t", sha256)) == bits(tree)


# --- Inference and frozen networks. ---


def test_restore_params_prefers_the_average(tmp_path):
  state = train_state.create({"a": {"w": jnp.ones(3)}}, make_state_tx(), True)
  state = state.replace(ema_params={"a": {"w": jnp.zeros(3)}})
  save(tmp_path, 7, state=state)
  average = checkpoints.restore_params(tmp_path)
  plain = checkpoints.restore_params(tmp_path, step=7, ema=False)
  assert isinstance(average.params["a"]["w"], np.ndarray)
  np.testing.assert_array_equal(average.params["a"]["w"], np.zeros(3))
  np.testing.assert_array_equal(plain.params["a"]["w"], np.ones(3))
  assert average.step == 7 and average.extra == {"seed": 7}


def make_state_tx():
  return optimizers.lion().tx


def test_restore_params_without_average(tmp_path):
  state = train_state.create({"w": jnp.ones(3)}, make_state_tx(), False)
  save(tmp_path, 7, state=state)
  assert set(checkpoints.restore_params(tmp_path).params) == {"w"}
  save(tmp_path, 8, state={"other": jnp.ones(3)})
  with pytest.raises(checkpoints.CheckpointError, match="no parameters"):
    checkpoints.restore_params(tmp_path)


def test_trees_of_frozen_networks(tmp_path):
  tree = {
    "encoder": {"kernel": np.float32([[1, -0.0], [np.nan, 3]])},
    "int8": np.int8([1, 2]),
    "scale": jnp.bfloat16(0.3),
  }
  sha256 = checkpoints.save_tree(tmp_path / "t5", tree)
  loaded = checkpoints.load_tree(tmp_path / "t5", sha256)
  assert sha256 == checkpoints.tree_sha256(loaded)
  assert bits(loaded) == bits(tree)
  checkpoints.check_tree(loaded, jax.eval_shape(lambda: tree), "t5")
  with pytest.raises(checkpoints.CheckpointError, match="exists"):
    checkpoints.save_tree(tmp_path / "t5", tree)
  with pytest.raises(checkpoints.CheckpointError, match=r"sha256 .*0000"):
    checkpoints.load_tree(tmp_path / "t5", "0" * 64)
  with pytest.raises(checkpoints.CheckpointError, match="no complete"):
    checkpoints.load_tree(tmp_path / "nowhere")


def test_sha256_depends_on_names_shapes_dtypes_and_bits():
  trees = [
    {"a": np.float32([1, 2])},
    {"b": np.float32([1, 2])},
    {"a": np.float32([[1, 2]])},
    {"a": np.float32([1, 2]).view(np.int32)},
    {"a": np.float32([1, 3])},
    {"a": {"a": np.float32([1, 2])}},
  ]
  assert len({checkpoints.tree_sha256(tree) for tree in trees}) == len(trees)
  same = {"a": jnp.float32([1, 2])}
  assert checkpoints.tree_sha256(same) == checkpoints.tree_sha256(trees[0])
  both = {"x": np.ones(1), "y": np.zeros(1)}
  swapped = dict(reversed(both.items()))
  assert checkpoints.tree_sha256(both) == checkpoints.tree_sha256(swapped)


# --- What does not fit is said by name. ---


def test_all_differences_are_listed_by_name(run_dir):
  wanted = shapes_of(make_state())
  unet = {
    "kernel": jax.ShapeDtypeStruct((8, 17), jnp.float32),
    "bias": jax.ShapeDtypeStruct((4,), jnp.float16),
    "new": jax.ShapeDtypeStruct((1,), jnp.float32),
  }
  wanted["params"] = wanted["params"] | {"unet": unet}
  del wanted["int8"]
  reader = checkpoints.Checkpointer(run_dir)
  with pytest.raises(checkpoints.CheckpointError) as error:
    reader.restore(20, wanted)
  text = str(error.value)
  assert "1 missing from the checkpoint: params/unet/new" in text
  assert "1 unknown to this run: int8" in text
  assert "2 of another shape or dtype" in text
  assert "unet/kernel (stored float32[8, 16], wanted float32[8, 17])" in text
  assert "unet/bias (stored float32[4], wanted float16[4])" in text
  reader.close()


def test_a_step_that_is_not_there(run_dir):
  with pytest.raises(checkpoints.CheckpointError, match=r"step 15.*\[10, 20\]"):
    checkpoints.restore_params(run_dir, 15)


# --- What was not completed, or is not ours, is not believed. ---


def test_half_written_directories_are_ignored(run_dir):
  good = run_dir / "checkpoint_20"
  temporary = run_dir / "checkpoint_30.orbax-checkpoint-tmp"
  shutil.copytree(good, temporary)
  uncommitted = run_dir / "checkpoint_40"
  shutil.copytree(good, uncommitted)
  (uncommitted / "_CHECKPOINT_METADATA").unlink()
  (run_dir / "checkpoint_50").mkdir()
  null = run_dir / "checkpoint_60"
  shutil.copytree(good, null)
  marker = json.loads((null / "_CHECKPOINT_METADATA").read_text())
  marker["commit_timestamp_nsecs"] = None
  (null / "_CHECKPOINT_METADATA").write_text(json.dumps(marker))
  truncated = run_dir / "checkpoint_70"
  shutil.copytree(good, truncated)
  (truncated / "_CHECKPOINT_METADATA").write_text('{"item_ha')

  assert checkpoints.committed_steps(run_dir) == [10, 20]
  assert uncommitted.exists()  # Readers change nothing.
  writer = checkpoints.Checkpointer(run_dir, keep=None)
  assert writer.latest_step() == 20
  # And the run goes on through the very same steps.
  for step in (30, 40, 50, 60, 70):
    assert writer.save(step, make_state(step))
  writer.close()
  assert checkpoints.committed_steps(run_dir) == list(range(10, 71, 10))
  assert not temporary.exists()


def _write(path, content=""):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(content)


def foreign_t5x_legacy(root):
  _write(root / "checkpoint_5/checkpoint", "msgpack")
  _write(root / "checkpoint_5/target.encoder.kernel/.zarray", "{}")


def foreign_orbax(root):
  with ocp.CheckpointManager(
    root, options=ocp.CheckpointManagerOptions(step_prefix="checkpoint")
  ) as manager:
    manager.save(5, args=ocp.args.StandardSave({"w": jnp.ones(3)}))


def foreign_torch(root):
  _write(root / "checkpoint_5/pytorch_model.bin", "x")


@pytest.mark.parametrize(
  "make", [foreign_t5x_legacy, foreign_orbax, foreign_torch]
)
def test_foreign_directories_give_one_clear_error(tmp_path, make):
  make(tmp_path)
  for use in (
    lambda: checkpoints.Checkpointer(tmp_path),
    lambda: checkpoints.committed_steps(tmp_path),
    lambda: checkpoints.restore_params(tmp_path),
    lambda: checkpoints.load_tree(tmp_path / "checkpoint_5"),
  ):
    with pytest.raises(checkpoints.CheckpointError, match=r"_5 .* it h"):
      use()
  assert (tmp_path / "checkpoint_5").exists()


def test_a_file_in_place_of_the_directory(tmp_path):
  _write(tmp_path / "run", "x")
  for path in (tmp_path / "run", tmp_path / "run" / "below"):
    with pytest.raises(checkpoints.CheckpointError, match="run"):
      checkpoints.Checkpointer(path)


def edit_extra(run_dir, **changes):
  path = run_dir / "checkpoint_20/extra/metadata"
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_newer_format_is_refused(run_dir):
  edit_extra(run_dir, format_version=3, package_version="9.9")
  says = r"version 3, written by byt5_diffusion 9.9; .*up to 2. Upgrade"
  with pytest.raises(checkpoints.CheckpointError, match=says):
    checkpoints.restore_params(run_dir)
  assert checkpoints.restore_params(run_dir, 10).step == 10


@pytest.mark.parametrize("version", [None, "1", -1, True, 1.0])
def test_a_strange_format_version_is_refused(run_dir, version):
  edit_extra(run_dir, format_version=version)
  with pytest.raises(checkpoints.CheckpointError, match=r"_version .*; this"):
    checkpoints.restore_params(run_dir)


def test_another_program_s_extra(run_dir):
  edit_extra(run_dir, format="other")
  with pytest.raises(checkpoints.CheckpointError, match="another program"):
    checkpoints.restore_params(run_dir)


def test_absurd_metadata_are_refused(run_dir):
  path = run_dir / "checkpoint_20"
  for name in ("extra/metadata", "state/_METADATA", "state/manifest.ocdbt"):
    size = (path / name).stat().st_size
    os.truncate(path / name, 65 * 2**20)
    with pytest.raises(checkpoints.CheckpointError, match=f"{name}.*refused"):
      checkpoints.restore_params(run_dir)
    os.truncate(path / name, size)
  (path / "extra/metadata").write_text("[" * 100_000)
  with pytest.raises(checkpoints.CheckpointError, match="not valid JSON"):
    checkpoints.restore_params(run_dir)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_tree_gives_one_clear_error(run_dir):
  shutil.rmtree(run_dir / "checkpoint_20/state/d")
  shutil.rmtree(run_dir / "checkpoint_20/state/ocdbt.process_0")
  with pytest.raises(checkpoints.CheckpointError, match="can't be read"):
    checkpoints.restore_params(run_dir)
  (run_dir / "checkpoint_20/state/_METADATA").write_text("{}")
  with pytest.raises(checkpoints.CheckpointError, match="state"):
    checkpoints.restore_params(run_dir)


def test_a_claim_larger_than_memory_is_refused(tmp_path):
  import tensorstore as ts

  save(tmp_path, 1, state={"params": {"w": jnp.ones(4)}})
  item = tmp_path / "checkpoint_1/state"
  store = ts.KvStore.open(f"file://{item}/|ocdbt:").result()
  array = json.loads(store["params.w/.zarray"])
  store["params.w/.zarray"] = json.dumps(array | {"shape": [10**15]})
  with pytest.raises(checkpoints.CheckpointError, match=r"params/w claims"):
    checkpoints.restore_params(tmp_path)


# --- Saves that fail. ---


def test_a_failed_save_raises_by_the_next_step(tmp_path):
  """A full disk, played by a limit of the size of files."""
  writer = checkpoints.Checkpointer(tmp_path, keep=1)
  small = {"w": jnp.ones(4)}
  rng = jax.random.key(0)
  large = {"w": jax.random.normal(rng, (1000, 1000))}
  writer.save(1, small)
  writer.wait()
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
  try:
    with pytest.raises(checkpoints.CheckpointError) as error:
      writer.save(2, large)
      for _ in range(3000):
        writer.check()
        time.sleep(0.01)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert "step 2" in str(error.value) and "step 1" in str(error.value)
  writer.check()  # Said once.
  assert checkpoints.committed_steps(tmp_path) == [1]
  assert writer.save(2, large)  # There is room again.
  writer.close()
  assert checkpoints.committed_steps(tmp_path) == [2]


def test_close_raises_what_the_last_save_met(tmp_path, monkeypatch):
  writer = checkpoints.Checkpointer(tmp_path)

  def fail():
    raise OSError("No space left on device")

  monkeypatch.setattr(writer._manager, "wait_until_finished", fail)
  writer._saving = 4
  with pytest.raises(checkpoints.CheckpointError, match="No space left"):
    writer.wait()
  monkeypatch.undo()
  writer.close()


def test_bad_arguments(tmp_path):
  for options in ({"period": 0}, {"keep": 0}):
    with pytest.raises(ValueError, match="positive"):
      checkpoints.Checkpointer(tmp_path, **options)


# --- Other devices, and kills. ---

_WRITE_ON_EIGHT = """
import sys, jax, jax.numpy as jnp
from byt5_diffusion import checkpoints, partitioning
parts = partitioning.Partitioning(num_partitions=2)
params = {"w": jnp.arange(64.0).reshape(8, 8), "b": jnp.arange(8.0)}
axes = {"w": ("embed", "mlp"), "b": ("mlp",)}
params = jax.device_put(params, parts.param_shardings(params, axes))
assert len(params["w"].sharding.device_set) == 8
writer = checkpoints.Checkpointer(sys.argv[1])
writer.save(3, {"params": params}, b"here")
writer.close()
"""

_READ_ON_FOUR = """
import sys, jax, jax.numpy as jnp, numpy as np
from byt5_diffusion import checkpoints, partitioning
parts = partitioning.Partitioning(num_partitions=4)
shapes = {"w": jax.ShapeDtypeStruct((8, 8), jnp.float32),
          "b": jax.ShapeDtypeStruct((8,), jnp.float32)}
axes = {"w": ("mlp", "embed"), "b": ("mlp",)}
shardings = parts.param_shardings(shapes, axes)
shapes = jax.tree.map(
  lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
  shapes, shardings)
state, data, _ = checkpoints.Checkpointer(sys.argv[1]).restore(
  None, {"params": shapes})
assert state["params"]["w"].sharding == shardings["w"]
assert (state["params"]["w"] == jnp.arange(64.0).reshape(8, 8)).all()
assert data == b"here"
"""


def run_python(code, *args, devices=1, **options):
  root = str(pathlib.Path(__file__).resolve().parent.parent)
  env = os.environ | {
    "PYTHONPATH": root,
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
  }
  command = [sys.executable, "-c", code, *map(str, args)]
  return subprocess.Popen(command, env=env, text=True, **options)


def test_eight_devices_to_one_and_to_four(tmp_path):
  assert run_python(_WRITE_ON_EIGHT, tmp_path, devices=8).wait() == 0
  wanted = {
    "params": {
      "w": jax.ShapeDtypeStruct((8, 8), jnp.float32),
      "b": jax.ShapeDtypeStruct((8,), jnp.float32),
    }
  }
  reader = checkpoints.Checkpointer(tmp_path)
  state, data_state, _ = reader.restore(None, wanted)
  reader.close()
  np.testing.assert_array_equal(
    state["params"]["w"], np.arange(64.0).reshape(8, 8)
  )
  assert data_state == b"here"
  assert len(state["params"]["w"].sharding.device_set) == 1
  params = checkpoints.restore_params(tmp_path).params
  np.testing.assert_array_equal(params["b"], np.arange(8.0))
  assert run_python(_READ_ON_FOUR, tmp_path, devices=4).wait() == 0


_TWO_HOSTS = """
import sys
import jax, jax.numpy as jnp, numpy as np
index = int(sys.argv[2])
jax.distributed.initialize(f"localhost:{sys.argv[3]}", 2, index)
from byt5_diffusion import checkpoints, partitioning
parts = partitioning.Partitioning(logical_axis_rules=[("embed", "data")])
shapes = {"w": jax.ShapeDtypeStruct((8, 3), jnp.float32)}
sharding = parts.param_shardings(shapes, {"w": ("embed", None)})["w"]
params = {"w": jax.jit(lambda: jnp.arange(24.0).reshape(8, 3),
                       out_shardings=sharding)()}
assert not params["w"].is_fully_addressable
writer = checkpoints.Checkpointer(sys.argv[1], keep=2)
for step in (1, 2, 3):
  writer.save(step, {"params": params}, f"host {index}".encode() * (index + 1))
  writer.check()
writer.wait()
state, data, _ = writer.restore(None, {"params": params})
assert data == f"host {index}".encode() * (index + 1), data
for got, want in zip(state["params"]["w"].addressable_shards,
                     params["w"].addressable_shards):
  assert (np.asarray(got.data) == np.asarray(want.data)).all()
writer.close()
"""


def test_two_hosts_save_and_one_reads(tmp_path):
  with socket.socket() as s:
    s.bind(("localhost", 0))
    port = s.getsockname()[1]
  hosts = [
    run_python(
      _TWO_HOSTS, tmp_path, i, port, devices=2,
      stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )
    for i in range(2)
  ]  # fmt: skip
  outputs = [host.communicate(timeout=120)[0] for host in hosts]
  assert [host.returncode for host in hosts] == [0, 0], "\n".join(outputs)
  assert checkpoints.committed_steps(tmp_path) == [2, 3]
  params = checkpoints.restore_params(tmp_path).params
  np.testing.assert_array_equal(params["w"], np.arange(24.0).reshape(8, 3))
  positions = checkpoints.read_data_states(tmp_path / "checkpoint_3")
  assert positions == [b"host 0", b"host 1host 1"]


_SAVE_FOR_EVER = """
import sys, jax.numpy as jnp
from byt5_diffusion import checkpoints
writer = checkpoints.Checkpointer(sys.argv[1], keep=2)
step = (writer.latest_step() or 0)
while True:
  step += 1
  state = {"params": {"w": jnp.full((300, 300), step, jnp.int32),
                      "v": jnp.full((7,), step, jnp.int32)}}
  writer.save(step, state, str(step).encode())
  if step % 3:
    writer.wait()
    print(step, flush=True)
"""


@pytest.mark.slow
def test_killed_at_any_time_the_last_committed_step_restores(tmp_path):
  rng = random.Random(0)
  committed = 0
  for _ in range(10):
    process = run_python(_SAVE_FOR_EVER, tmp_path, stdout=subprocess.PIPE)
    process.stdout.readline()  # It is up and saving.
    time.sleep(rng.uniform(0.0, 0.5))
    process.kill()
    reported = [int(line) for line in process.stdout if line.endswith("\n")]
    process.wait()
    committed = max([committed, *reported])
    reader = checkpoints.Checkpointer(tmp_path, keep=2)
    latest = reader.latest_step()
    assert latest >= committed
    shapes = {
      "params": {
        "w": jax.ShapeDtypeStruct((300, 300), jnp.int32),
        "v": jax.ShapeDtypeStruct((7,), jnp.int32),
      }
    }
    state, data_state, _ = reader.restore(latest, shapes)
    reader.close()
    assert (state["params"]["w"] == latest).all()
    assert (state["params"]["v"] == latest).all()
    assert data_state == str(latest).encode()
    left = {path.name for path in tmp_path.iterdir()}
    assert all(re.fullmatch(r"checkpoint_\d+", name) for name in left), left
    assert len(left) <= 3, left
