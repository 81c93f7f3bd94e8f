"""T5X's checkpoints: every bit is read, and nothing that they order is done."""

import gzip
import json
import os
import pathlib
import shutil

import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
import tensorstore

from byt5_diffusion import checkpoints, t5x_checkpoints

CheckpointError = checkpoints.CheckpointError
NAME = "encoder/encoder_norm/scale"
FOLDER = "target.encoder.encoder_norm.scale"


def pack(leaf):
  """An array inside of msgpack, as flax writes it."""
  array = np.asarray(leaf)
  content = msgpack.packb([array.shape, array.dtype.name, array.tobytes()])
  return msgpack.ExtType(1, content)


def spec(name, **kvstore):
  """What stands for an array that has a folder of its own."""
  store = {"driver": "file", "path": name, **kvstore}
  return {"driver": "zarr", "kvstore": store}


def write_zarr(folder, array, chunks, spelled=None, order="C", compressor=True):
  """A zarr v2 array; the last chunks of a dimension are padded."""
  folder.mkdir(parents=True)
  array = np.asarray(array)
  content = {
    "chunks": chunks,
    "compressor": {"id": "gzip", "level": 1} if compressor else None,
    "dtype": spelled or array.dtype.str,
    "fill_value": None,
    "filters": None,
    "order": order,
    "shape": array.shape,
    "zarr_format": 2,
  }
  (folder / ".zarray").write_text(json.dumps(content))
  counts = [-(-n // c) for n, c in zip(array.shape, chunks, strict=True)]
  padded = np.zeros([n * c for n, c in zip(counts, chunks, strict=True)])
  padded = padded.astype(array.dtype)
  padded[tuple(map(slice, array.shape))] = array
  for place in np.ndindex(*counts):
    where = tuple(
      slice(i * c, (i + 1) * c) for i, c in zip(place, chunks, strict=True)
    )
    data = padded[where].tobytes(order)
    (folder / (".".join(map(str, place)) or "0")).write_bytes(
      gzip.compress(data) if compressor else data
    )


def write_legacy(folder, target, **rest):
  folder.mkdir(parents=True, exist_ok=True)
  tree = {"version": 3, "optimizer": {"target": target, "state": {}, **rest}}
  (folder / "checkpoint").write_bytes(msgpack.packb(tree))
  return folder


@pytest.fixture
def theirs(shared_data):
  folder = shared_data / "fixtures" / "t5x"
  return folder, dict(np.load(folder / "params_flat.npz"))


@pytest.fixture
def legacy(theirs, tmp_path):
  """A copy of the legacy checkpoint that may be spoilt."""
  path = tmp_path / "checkpoint_3"
  shutil.copytree(theirs[0] / "legacy" / "checkpoint_3", path)
  for folder, _, files in os.walk(path):
    os.chmod(folder, 0o755)
    for file in files:
      os.chmod(os.path.join(folder, file), 0o644)
  return path


# --- What T5X wrote is read. ---


@pytest.mark.parametrize("kind", ["legacy", "orbax"])
def test_both_layouts_give_every_parameter_to_the_bit(theirs, kind):
  folder, expected = theirs
  path = t5x_checkpoints.find(folder / kind)
  assert path == str(folder / kind / "checkpoint_3")
  assert t5x_checkpoints.layout(path) == kind
  source = t5x_checkpoints.open_source(path)
  assert set(source.shapes) == set(expected) and len(expected) == 38
  arrays = source.read(list(expected))
  for name, array in expected.items():
    assert arrays[name].dtype == array.dtype == source.shapes[name].dtype
    assert arrays[name].shape == array.shape == source.shapes[name].shape
    assert arrays[name].tobytes() == array.tobytes(), name
  assert set(source.read([NAME])) == {NAME}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "int32"])
@pytest.mark.parametrize(
  ("shape", "chunks", "order", "compressor"),
  [
    ((7, 5), (3, 2), "C", True),
    ((7, 5), (7, 5), "F", True),
    ((6,), (6,), "C", False),
    ((2, 3, 4), (1, 3, 3), "F", False),
  ],
)
def test_any_chunks_and_dtypes(
  tmp_path, dtype, shape, chunks, order, compressor
):
  array = np.arange(np.prod(shape)).reshape(shape).astype(jnp.dtype(dtype))
  spelled = "bfloat16" if dtype == "bfloat16" else None
  root = write_legacy(
    tmp_path / "checkpoint_1", {"a": {"w": spec("target.a.w/")}}
  )
  write_zarr(root / "target.a.w", array, chunks, spelled, order, compressor)
  source = t5x_checkpoints.open_source(root)
  found = source.read(["a/w"])["a/w"]
  assert found.dtype == array.dtype == source.shapes["a/w"].dtype
  np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "int8", "bool"])
def test_what_tensorstore_writes_is_read(tmp_path, dtype):
  """The library that T5X writes with."""
  array = np.random.default_rng(0).normal(size=(10, 7)).astype(dtype)
  array[:4, :3] = 0
  root = write_legacy(tmp_path / "checkpoint_1", {"w": spec("target.w")})
  store = tensorstore.open(
    {
      "driver": "zarr",
      "kvstore": {"driver": "file", "path": str(root / "target.w")},
      "metadata": {
        "chunks": [4, 3],
        "compressor": {"id": "gzip", "level": 1},
      },
    },
    create=True,
    dtype=tensorstore.dtype(dtype),
    shape=array.shape,
  ).result()
  store.write(array).result()
  assert (root / "target.w" / "0.0").exists()  # Zeros are written, too.
  found = t5x_checkpoints.open_source(root).read(["w"])["w"]
  assert found.dtype == array.dtype and found.tobytes() == array.tobytes()


def test_arrays_in_the_msgpack_and_collections_beside_the_parameters(tmp_path):
  root = write_legacy(
    tmp_path / "checkpoint_1",
    {"w": pack(jnp.bfloat16([0.3, -2])), "none": None},
    flax_mutables={"frozen": {"e": pack(np.float32([[1, 2]]))}},
  )
  source = t5x_checkpoints.open_source(root)
  assert set(source.shapes) == {"w", "flax_mutables/frozen/e"}
  arrays = source.read(["w", "flax_mutables/frozen/e"])
  assert arrays["w"].tobytes() == jnp.bfloat16([0.3, -2]).tobytes()
  assert arrays["flax_mutables/frozen/e"].shape == (1, 2)


def test_a_chunk_that_is_lost_and_one_that_need_not_be_there(tmp_path):
  root = write_legacy(tmp_path / "checkpoint_1", {"w": spec("target.w")})
  write_zarr(root / "target.w", np.ones((4, 2), np.float32), (2, 2))
  (root / "target.w" / "1.0").unlink()
  with pytest.raises(CheckpointError, match=r"target\.w/ lacks 1 chunks"):
    t5x_checkpoints.open_source(root).read(["w"])
  path = root / "target.w" / ".zarray"
  path.write_text(json.dumps(json.loads(path.read_text()) | {"fill_value": 7}))
  found = t5x_checkpoints.open_source(root).read(["w"])["w"]
  np.testing.assert_array_equal(found, [[1, 1], [1, 1], [7, 7], [7, 7]])


@pytest.mark.parametrize(
  ("spelled", "value", "expected"),
  [
    ("<f4", "NaN", np.float32("nan")),
    ("<f2", "-Infinity", np.float16("-inf")),
    ("bfloat16", 0.1, jnp.bfloat16(0.1)),
    ("<i8", 2**60 + 1, np.int64(2**60 + 1)),
    ("|b1", True, np.bool_(True)),
  ],
)
def test_fill_values_arrive_to_the_bit(tmp_path, spelled, value, expected):
  root = write_legacy(tmp_path / "checkpoint_1", {"w": spec("target.w")})
  array = np.zeros(2, expected.dtype)
  write_zarr(root / "target.w", array, (2,), spelled)
  (root / "target.w" / "0").unlink()
  path = root / "target.w" / ".zarray"
  content = json.loads(path.read_text()) | {"fill_value": value}
  path.write_text(json.dumps(content))
  found = t5x_checkpoints.open_source(root).read(["w"])["w"]
  assert found.tobytes() == np.full(2, expected).tobytes()


@pytest.mark.parametrize("name", ["00.0", "0.00", "\u0660.0"])
def test_one_chunk_under_two_names_does_not_stand_for_another(tmp_path, name):
  root = write_legacy(tmp_path / "checkpoint_1", {"w": spec("target.w")})
  write_zarr(root / "target.w", np.ones((4, 2), np.float32), (2, 2))
  (root / "target.w" / "1.0").rename(root / "target.w" / name)
  with pytest.raises(CheckpointError, match=r"target\.w/ lacks 1 chunks"):
    t5x_checkpoints.open_source(root).read(["w"])


def test_an_array_without_dimensions_has_one_chunk(tmp_path):
  root = write_legacy(tmp_path / "checkpoint_1", {"w": spec("target.w")})
  write_zarr(root / "target.w", np.float32(3), ())
  assert t5x_checkpoints.open_source(root).read(["w"])["w"] == 3
  (root / "target.w" / "0").rename(root / "target.w" / "1")
  with pytest.raises(CheckpointError, match="outside of its array"):
    t5x_checkpoints.open_source(root).read(["w"])


def test_the_step_asked_for_or_the_latest(theirs, tmp_path):
  for step in (2, 10):
    shutil.copytree(
      theirs[0] / "legacy" / "checkpoint_3", tmp_path / f"checkpoint_{step}"
    )
  (tmp_path / "checkpoint_11.tmp-1").mkdir()
  assert t5x_checkpoints.find(tmp_path).endswith("checkpoint_10")
  assert t5x_checkpoints.find(tmp_path, 2).endswith("checkpoint_2")
  with pytest.raises(CheckpointError, match=r"step 3; it has \[2, 10\]"):
    t5x_checkpoints.find(tmp_path, 3)
  assert t5x_checkpoints.find(tmp_path / "nowhere") is None
  with pytest.raises(CheckpointError, match="not a checkpoint of T5X"):
    t5x_checkpoints.open_source(tmp_path)


# --- What does not belong is refused, before it is opened. ---


@pytest.mark.parametrize(
  "path",
  [
    "../secret/",
    "..",
    ".",
    "",
    "/etc/",
    "target.w/../../secret",
    "a/b",
    "http://localhost:1/x",
    "target.w\0",
    7,
    None,
  ],
)
def test_a_spec_opens_nothing_outside_of_the_checkpoint(tmp_path, path):
  write_zarr(tmp_path / "secret", np.ones(3, np.float32), (3,))
  root = write_legacy(tmp_path / "checkpoint_1", {"w": spec(path)})
  with pytest.raises(CheckpointError, match="no folder of the checkpoint"):
    t5x_checkpoints.open_source(root)


def test_drivers_and_servers_in_a_spec_are_not_obeyed(tmp_path):
  """The folder's name counts; who is said to serve it does not."""
  target = {
    "w": spec("target.w/", driver="http", base_url="http://localhost:1"),
    "v": {
      "driver": "n5",
      "kvstore": {"driver": "gcs", "bucket": "x", "path": "target.w"},
    },
  }
  root = write_legacy(tmp_path / "checkpoint_1", target)
  write_zarr(root / "target.w", np.float32([1, 2]), (2,))
  arrays = t5x_checkpoints.open_source(root).read(["w", "v"])
  for array in arrays.values():
    np.testing.assert_array_equal(array, [1, 2])


@pytest.mark.parametrize("kind", ["file", "folder", "chunk", "orbax"])
def test_links_that_leave_the_folder_are_refused(tmp_path, theirs, kind):
  root = write_legacy(tmp_path / "checkpoint_1", {"w": spec("target.w")})
  write_zarr(root / "target.w", np.float32([1, 2]), (2,), compressor=False)
  (tmp_path / "secret").write_bytes(b"12345678")
  if kind == "file":
    (root / "target.w" / "0").unlink()
    (root / "target.w" / "0").symlink_to(tmp_path / "secret")
  elif kind == "folder":
    shutil.move(root / "target.w", tmp_path / "elsewhere")
    (root / "target.w").symlink_to(tmp_path / "elsewhere")
  elif kind == "chunk":
    (root / "target.w" / "0").rename(root / "data")
    (root / "target.w" / "0").symlink_to(root / "data")
    # Inside it may stay.
    found = t5x_checkpoints.open_source(root).read(["w"])["w"]
    np.testing.assert_array_equal(found, [1, 2])
    (root / "target.w" / "0").unlink()
    (root / "target.w" / "0").symlink_to("../../secret")
  else:
    shutil.rmtree(root)
    shutil.copytree(theirs[0] / "orbax" / "checkpoint_3", root)
    os.chmod(root, 0o755)
    (root / "link").symlink_to(tmp_path / "secret")
  with pytest.raises(CheckpointError, match="leaves the checkpoint"):
    t5x_checkpoints.open_source(root)


def test_a_pipe_is_not_waited_for(tmp_path):
  root = write_legacy(tmp_path / "checkpoint_1", {"w": spec("target.w")})
  os.mkfifo(root / "target.w")
  with pytest.raises(CheckpointError, match="neither file nor folder"):
    t5x_checkpoints.open_source(root)


def edit(root, **changes):
  path = root / FOLDER / ".zarray"
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"shape": [10**13]}, "more than this machine's memory"),
    ({"chunks": [10**13]}, "more than this machine's memory"),
    ({"shape": [10**100]}, "impossible"),
    ({"shape": [-1]}, "impossible"),
    ({"shape": [16.0]}, "impossible"),
    ({"chunks": [0]}, "impossible"),
    ({"shape": [4, 4]}, "impossible"),
    ({"shape": "ab"}, "can't be used"),
    ({"dtype": "|O"}, "not read"),
    ({"dtype": [["a", "<f4"]]}, "can't be used"),
    ({"dtype": "nonsense"}, "can't be used"),
    ({"compressor": {"id": "blosc"}}, "blosc"),
    ({"filters": [{"id": "delta"}]}, "filters"),
    ({"zarr_format": 3}, "zarr 2"),
    ({"order": "X"}, "order"),
    ({"dimension_separator": "/"}, "dimension_separator"),
    ({"dtype": "(,)f4"}, "can't be used"),
    ({"fill_value": 10**400}, "can't be used"),
    ({"fill_value": 1e300}, "fill_value 1e[+]300 is no float32"),
    ({"fill_value": "x" * 500}, "can't be used: .{,200}$"),
    ({"fill_value": [0]}, "can't be used"),
    ({"fill_value": float("nan"), "dtype": "<i4"}, "can't be used"),
    ({"fill_value": float("inf"), "dtype": "<i4"}, "can't be used"),
    ({"fill_value": 1e300, "dtype": "<i4"}, "fill_value 1e[+]300 is no int32"),
    ({"fill_value": -1, "dtype": "|u1"}, "fill_value -1 is no uint8"),
    ({"fill_value": 0.5, "dtype": ">i8"}, "fill_value 0.5 is no int64"),
    ({"fill_value": 2, "dtype": "|b1"}, "fill_value 2 is no bool"),
  ],
)
def test_strange_arrays_are_refused(legacy, changes, message):
  edit(legacy, **changes)
  with pytest.raises(CheckpointError, match=message):
    t5x_checkpoints.open_source(legacy)


def damage_chunk(root):
  (root / FOLDER / "0").write_bytes(b"x" * 40)


def truncate_chunk(root):
  data = (root / FOLDER / "0").read_bytes()
  (root / FOLDER / "0").write_bytes(data[:-20])


def bomb(root):
  (root / FOLDER / "0").write_bytes(gzip.compress(bytes(10**8)))


def far_chunk(root):
  shutil.copy(root / FOLDER / "0", root / FOLDER / "7")


def deep_chunk(root):
  shutil.copy(root / FOLDER / "0", root / FOLDER / "0.0")


@pytest.mark.parametrize(
  "spoil", [damage_chunk, truncate_chunk, bomb, far_chunk, deep_chunk]
)
def test_damaged_chunks_are_said_with_their_file(legacy, spoil):
  spoil(legacy)
  source = t5x_checkpoints.open_source(legacy)
  with pytest.raises(CheckpointError, match=r"encoder_norm\.scale/"):
    source.read([NAME])
  source.read(["encoder/relpos_bias/rel_embedding"])


def extension(*array):
  return msgpack.packb({"w": msgpack.ExtType(1, msgpack.packb(array))})


@pytest.mark.parametrize(
  "content",
  [
    b"",
    b"\xc1",
    b"not msgpack",
    msgpack.packb([1, 2]),
    msgpack.packb({"optimizer": 3}),
    msgpack.packb({"optimizer": {"target": {"w": 3}}}),
    msgpack.packb({"optimizer": {"target": {"a/b": {"w": 3}}}}),
    msgpack.packb({"optimizer": {"state": {}}}),
    msgpack.packb({"w": msgpack.ExtType(5, b"x")}),
    extension([1], "O", b"x"),
    extension([9], "float32", b"x"),
    b"\x81\xa1a" * 5000 + b"\x01",
    b"\xdd\xff\xff\xff\xff",
  ],
)
def test_strange_msgpack_gives_one_clear_error(tmp_path, content):
  (tmp_path / "checkpoint").write_bytes(content)
  with pytest.raises(CheckpointError, match=r"checkpoint|no parameters"):
    t5x_checkpoints.open_source(tmp_path)


def test_a_tree_without_end_and_a_file_without_limit(tmp_path):
  tree: dict = {"w": pack(np.ones(1))}
  for _ in range(100):
    tree = {"a": tree}
  with pytest.raises(CheckpointError, match="too deep"):
    t5x_checkpoints.open_source(write_legacy(tmp_path, tree))
  os.truncate(tmp_path / "checkpoint", 600 * 2**20)
  with pytest.raises(CheckpointError, match="is refused"):
    t5x_checkpoints.open_source(tmp_path)


def test_an_array_without_its_folder(legacy):
  shutil.rmtree(legacy / FOLDER)
  with pytest.raises(CheckpointError, match="incomplete"):
    t5x_checkpoints.open_source(legacy)


def test_orbax_without_parameters_or_of_another_age(theirs, tmp_path):
  path = tmp_path / "checkpoint_3"
  shutil.copytree(theirs[0] / "orbax" / "checkpoint_3", path)
  state = path / "state"
  os.chmod(state, 0o755)
  (state / "manifest.ocdbt").rename(state / "gone")
  with pytest.raises(CheckpointError, match="early orbax"):
    t5x_checkpoints.open_source(path)


def test_this_file_tests_what_it_thinks(tmp_path):
  """The helpers above make a checkpoint that is read, when nothing is odd."""
  root = write_legacy(tmp_path / "checkpoint_1", {"w": spec("target.w")})
  write_zarr(root / "target.w", np.float32([1, 2]), (2,))
  assert isinstance(root, pathlib.Path)
  assert set(t5x_checkpoints.open_source(root).shapes) == {"w"}
