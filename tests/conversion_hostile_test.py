"""Strangers' files: nothing of them runs, leaves its folder or eats memory."""

import collections
import io
import json
import os
import pathlib
import pickle
import random
import resource
import shutil
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from byt5_diffusion import stored_trees
from byt5_diffusion.conversion import (
  names,
  pickled_files,
  safetensors_files,
  sources,
  tensor_files,
)

ConversionError = names.ConversionError
HERE = pathlib.Path(__file__).parent


# --- Pickles. ---


class Global(collections.namedtuple("Global", "module name")):
  """Stands for a callable in a pickle that is made by hand."""


def pickled(value) -> bytes:
  """A pickle (protocol 2) as torch.save writes them; Globals by name."""
  out = io.BytesIO()
  out.write(b"\x80\x02")
  dump(out, value)
  out.write(b".")
  return out.getvalue()


def dump(out, value) -> None:
  if isinstance(value, Global):
    out.write(f"c{value.module}\n{value.name}\n".encode())
  elif isinstance(value, Call):
    dump(out, value.function)
    dump(out, value.arguments)
    out.write(b"R")
  elif isinstance(value, Storage):
    dump(out, value.description)
    out.write(b"Q")
  elif isinstance(value, dict):
    out.write(b"}(")
    for pair in value.items():
      for item in pair:
        dump(out, item)
    out.write(b"u")
  elif isinstance(value, tuple):
    out.write(b"(")
    for item in value:
      dump(out, item)
    out.write(b"t")
  elif isinstance(value, str):
    text = value.encode()
    out.write(b"X" + struct.pack("<I", len(text)) + text)
  elif isinstance(value, bool):
    out.write(b"\x88" if value else b"\x89")
  elif value is None:
    out.write(b"N")
  elif -(2**31) <= value < 2**31:
    out.write(b"J" + struct.pack("<i", value))
  else:
    data = value.to_bytes(9, "little", signed=True)
    out.write(b"\x8a\x09" + data)


Call = collections.namedtuple("Call", "function arguments")
Storage = collections.namedtuple("Storage", "description")
REBUILD = Global("torch._utils", "_rebuild_tensor_v2")
ORDERED = Global("collections", "OrderedDict")


def tensor(
  shape=(2, 3),
  strides=(3, 1),
  offset=0,
  key="0",
  count=6,
  kind="FloatStorage",
):
  """A pickled tensor, by default one that fits `archive`."""
  storage = Storage(("storage", Global("torch", kind), key, "cpu", count))
  arguments = (storage, offset, shape, strides, False, Call(ORDERED, ()))
  return Call(REBUILD, arguments)


def archive(path, value, data=None, stem="archive/", method=0, order="little"):
  """What torch.save makes of it."""
  content = value if isinstance(value, bytes) else pickled(value)
  data = {"0": np.arange(6, dtype="<f4").tobytes()} if data is None else data
  with zipfile.ZipFile(path, "w", method) as file:
    file.writestr(f"{stem}data.pkl", content)
    file.writestr(f"{stem}byteorder", order)
    for key, raw in data.items():
      file.writestr(f"{stem}data/{key}", raw)
  return path


def read_pickled(path):
  places = pickled_files.read_places(path)
  return {k: tensor_files.read(v) for k, v in places.items()}


def test_tensors_of_all_kinds(tmp_path):
  value = {
    "w": tensor(),
    "turned": tensor(shape=(3, 2), strides=(1, 3)),
    "part": tensor(shape=(2,), strides=(2,), offset=1),
    "scalar": tensor(shape=(), strides=(), offset=5),
    "empty": tensor(shape=(0, 4), strides=(4, 1)),
  }
  found = read_pickled(archive(tmp_path / "a.bin", value))
  whole = np.arange(6, dtype=np.float32).reshape(2, 3)
  np.testing.assert_array_equal(found["w"], whole)
  np.testing.assert_array_equal(found["turned"], whole.T)
  np.testing.assert_array_equal(found["part"], [1, 3])
  assert found["scalar"] == 5 and found["empty"].shape == (0, 4)
  path = archive(tmp_path / "b.bin", {"state_dict": {"w": tensor()}})
  assert set(read_pickled(path)) == {"w"}


@pytest.mark.slow
def test_tensors_that_torch_saved(tmp_path):
  torch = pytest.importorskip("torch", reason="peers are not installed")
  base = torch.arange(24.0).reshape(4, 6)
  state = collections.OrderedDict(
    a=base,
    b=base.T,
    c=base[1:3, ::2],
    d=torch.nn.Parameter(base.to(torch.bfloat16)),
    e=base.to(torch.float16)[2],
    f=torch.tensor(7),
    g=torch.tensor([True, False]),
  )
  state._metadata = collections.OrderedDict(version=1)
  torch.save(state, tmp_path / "x.bin")
  found = read_pickled(tmp_path / "x.bin")
  for name, expected in state.items():
    plain = expected.detach().to(torch.float64).numpy()
    np.testing.assert_array_equal(found[name].astype(np.float64), plain, name)


class Payload:
  """Runs a command where somebody unpickles it."""

  def __init__(self, target):
    self.target = target

  def __reduce__(self):
    return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("protocol", range(6))
def test_a_payload_never_runs(tmp_path, protocol):
  target = tmp_path / "pwned"
  content = pickle.dumps({"w": Payload(target)}, protocol)
  path = archive(tmp_path / "x.bin", content)
  with pytest.raises(ConversionError, match=r"Nothing of it was run"):
    pickled_files.read_places(path)
  assert not target.exists()
  pickle.loads(content)  # It would have.
  assert target.exists()


@pytest.mark.parametrize(
  "function",
  [
    Global("os", "system"),
    Global("builtins", "eval"),
    Global("torch", "load"),
    Global("torch._utils", "_rebuild_tensor_v2.__globals__"),
    Global("torch.storage", "_load_from_bytes"),
    Global("collections", "namedtuple"),
    Global("byt5_diffusion.cli", "main"),
  ],
)
def test_no_other_callable_is_even_named(tmp_path, function):
  path = archive(tmp_path / "x.bin", {"w": Call(function, ("true",))})
  with pytest.raises(ConversionError, match=function.name.split(".")[0]):
    pickled_files.read_places(path)


@pytest.mark.parametrize(
  ("value", "message"),
  [
    ({"w": tensor(shape=(3, 3))}, "outside of its storage"),
    ({"w": tensor(offset=1)}, "outside of its storage"),
    ({"w": tensor(offset=-1)}, "impossible place"),
    ({"w": tensor(shape=(0, 3), offset=7)}, "impossible place"),
    ({"w": tensor(strides=(-3, 1))}, "impossible shape"),
    ({"w": tensor(shape=(9, 9, 9), strides=(0, 0, 0))}, "repeats"),
    ({"w": tensor(shape=(2**40,), strides=(1,))}, "outside of its storage"),
    ({"w": tensor(count=2**40)}, "bytes of w are missing"),
    ({"w": tensor(key="../0")}, "not described"),
    ({"w": tensor(key="7")}, "bytes of w are missing"),
    ({"w": tensor(kind="ComplexFloatStorage")}, "ComplexFloatStorage"),
    ({"w": 3}, "w is not a tensor"),
    ({3: tensor()}, "without a sensible name"),
    ({"w\n": tensor()}, "has an array with the name"),
    ((tensor(),), "holds no dict"),
    ({"w": Call(ORDERED, (1,))}, "not one that builds a tensor"),
    ({"w": Call(REBUILD, (1, 2))}, "not one that builds a tensor"),
    (b"\x80\x02}q\xff\xff", "damaged"),
    (b"\x80\x02]r\xff\xff\xff\x7f.", "holds no dict"),
    (b"\x80\x04\x8e" + b"\xff" * 8, "damaged"),
    (b"\x80\x05\x96" + b"\xff" * 6 + b"\x00\x00", "damaged|not for tensors"),
    (b"\x80\x02K\x01" + b"\x85" * 300_000 + b".", "holds no dict"),
    (b"\x80\x02](h\x00a.", "damaged"),
    (b"(lp0\nI1\na.", "not for tensors"),
  ],
)
def test_what_no_file_of_tensors_has(tmp_path, value, message):
  path = archive(tmp_path / "x.bin", value)
  with pytest.raises(ConversionError, match=message):
    pickled_files.read_places(path)


def test_zip_files_that_are_not_torchs(tmp_path):
  path = archive(
    tmp_path / "a.bin", {"w": tensor()}, method=zipfile.ZIP_DEFLATED
  )
  with pytest.raises(ConversionError, match="compressed"):
    pickled_files.read_places(path)
  path = archive(tmp_path / "b.bin", {"w": tensor()}, order="big")
  with pytest.raises(ConversionError, match="not little-endian"):
    pickled_files.read_places(path)
  path = archive(tmp_path / "c.bin", {"w": tensor()})
  with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning):
    file.writestr("archive/data/0", b"?" * 24)
  with pytest.raises(ConversionError, match="twice"):
    pickled_files.read_places(path)
  path = archive(tmp_path / "d.bin", {"w": tensor()})
  content = path.read_bytes()
  # The central directory says that one member lies where another does.
  with zipfile.ZipFile(path) as file:
    places = {x.filename: x.header_offset for x in file.infolist()}
  old = struct.pack("<I", places["archive/data/0"])
  new = struct.pack("<I", places["archive/data.pkl"])
  start = content.rindex(b"PK\x01\x02")
  end = content[start:].replace(old, new)
  path.write_bytes(content[:start] + end)
  with pytest.raises(ConversionError):
    pickled_files.read_places(path)
  for start in (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", b"ustar"):
    (tmp_path / "e.bin").write_bytes(start)
    with pytest.raises(ConversionError, match=r"weights_only|not a zip"):
      pickled_files.read_places(tmp_path / "e.bin")


def test_a_zip_of_too_many_members_is_not_listed(tmp_path):
  path = archive(tmp_path / "a.bin", {"w": tensor()})
  with zipfile.ZipFile(path, "a") as file:
    for i in range(70_000):
      file.writestr(f"archive/data/{i + 1}/{'x' * 80}", b"")
  with pytest.raises(ConversionError, match="absurd number"):
    pickled_files.read_places(path)
  # The list is said to be larger in the file's last record alone.
  path = archive(tmp_path / "b.bin", {"w": tensor()})
  content = bytearray(path.read_bytes())
  content[-10:-6] = struct.pack("<I", 2**31)
  path.write_bytes(content)
  with pytest.raises(ConversionError, match="absurd number"):
    pickled_files.read_places(path)


# --- Safetensors. ---


def container(path, header, data=b""):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  path.write_bytes(struct.pack("<Q", len(text)) + text + data)
  return path


def entry(start=0, end=8, shape=(2,), dtype="F32"):
  return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


@pytest.mark.parametrize(
  ("header", "message"),
  [
    (b"[" * 100_000, "not valid JSON"),
    (b'{"a":1,"a":2}', "twice"),
    (b"\xff", "not valid JSON"),
    ([], "not a dict"),
    ({"w": 3}, "other fields"),
    ({"w": entry() | {"x": 1}}, "other fields"),
    ({"w": entry(dtype="F4")}, "has the dtype 'F4'"),
    ({"w": entry(dtype=["F32"])}, "has the dtype"),
    ({"w": entry(shape=(-2,))}, "impossible shape"),
    ({"w": entry(shape=(True, 2))}, "impossible shape"),
    ({"w": entry(shape=(2**60, 2**60))}, "impossible shape"),
    ({"w": entry(shape=(1,) * 99)}, "impossible shape"),
    ({"w": entry(end=4)}, "don't fit its shape"),
    ({"w": entry(-8, 0)}, "don't fit its shape"),
    ({"w": entry(), "v": entry()}, "overlaps"),
    ({"w": entry(), "v": entry(4, 12)}, "overlaps"),
    ({"w": entry(8, 16)}, "gap"),
    ({"w": entry(), "v": entry(8, 16)}, "speaks of"),
    ({}, "speaks of"),
    ({"w": entry(shape=(2**40,), end=2**42)}, "speaks of"),
    ({"": entry()}, "sensible name"),
    ({"w\x1b[2J": entry()}, "has an array with the name"),
    ({"__metadata__": {"a": 1}, "w": entry()}, "not a dict of texts"),
  ],
)
def test_headers_that_lie(tmp_path, header, message):
  path = container(tmp_path / "x.safetensors", header, bytes(8))
  with pytest.raises(ConversionError, match=message):
    safetensors_files.read_header(path)


def test_huge_headers_and_short_files(tmp_path):
  path = tmp_path / "x.safetensors"
  for content in (b"", b"\0" * 7, b"\xff" * 8, struct.pack("<Q", 99) + b"{}"):
    path.write_bytes(content)
    with pytest.raises(ConversionError, match=r"too short|claims a header"):
      safetensors_files.read_header(path)
  with open(path, "wb") as file:
    file.write(struct.pack("<Q", 2**30))
    file.truncate(2**31)
  with pytest.raises(ConversionError, match="claims a header"):
    safetensors_files.read_header(path)


def test_a_file_that_shrinks_is_an_error_and_not_the_end(tmp_path):
  path = container(tmp_path / "x.safetensors", {"w": entry()}, bytes(8))
  places = safetensors_files.read_places(path)
  os.truncate(path, path.stat().st_size - 4)
  with pytest.raises(ConversionError, match="cut off"):
    tensor_files.read(places["w"])


# --- Folders. ---


def shards(folder, where, link=None):
  folder.mkdir()
  content = {"metadata": {}, "weight_map": where}
  (folder / "model.safetensors.index.json").write_text(json.dumps(content))
  (folder / "config.json").write_text('{"model_type": "t5"}')
  return folder / "model.safetensors.index.json"


@pytest.mark.parametrize(
  "name",
  [
    "../x.safetensors",
    "/etc/passwd",
    "a/../../x.safetensors",
    ".x.safetensors",
    "x.safetensors\0",
    "a\\x.safetensors",
    "",
    "x.bin",
    "nowhere.safetensors",
  ],
)
def test_shards_stay_in_their_folder(tmp_path, name):
  container(tmp_path / "x.safetensors", {"w": entry()}, bytes(8))
  index = shards(tmp_path / "model", {"w": name})
  with pytest.raises(ConversionError, match=r"refused|missing|no .safetensors"):
    sources.open_weights(index)


def test_index_and_shards_must_agree(tmp_path):
  index = shards(
    tmp_path / "model", {"w": "a.safetensors", "v": "a.safetensors"}
  )
  container(index.parent / "a.safetensors", {"w": entry()}, bytes(8))
  with pytest.raises(ConversionError, match="disagree about v"):
    sources.open_weights(index)
  index.write_text(json.dumps({"weight_map": {}}))
  with pytest.raises(ConversionError, match="no weight_map"):
    sources.open_weights(index)
  index.write_text(json.dumps({"weight_map": {"w": ["a"]}}))
  with pytest.raises(ConversionError, match=r"no \.safetensors file"):
    sources.open_weights(index)


def test_links_stay_in_their_folder_but_for_a_download_cache(tmp_path):
  outside = container(tmp_path / "x.safetensors", {"w": entry()}, bytes(8))
  index = shards(tmp_path / "model", {"w": "a.safetensors"})
  (index.parent / "a.safetensors").symlink_to(outside)
  with pytest.raises(ConversionError, match=r"cp -rL"):
    sources.open_weights(index)
  # As Hugging Face's cache lays files out.
  home = tmp_path / "models--who--what"
  (home / "snapshots").mkdir(parents=True)
  (home / "blobs").mkdir()
  index = shards(home / "snapshots" / "1234", {"w": "a.safetensors"})
  shutil.copy(outside, home / "blobs" / "5678")
  (index.parent / "a.safetensors").symlink_to(home / "blobs" / "5678")
  assert set(
    tensor_files.read_index(
      index, ".safetensors", safetensors_files.read_places
    )
  ) == {"w"}
  (index.parent / "a.safetensors").unlink()
  (index.parent / "a.safetensors").symlink_to(outside)
  with pytest.raises(ConversionError, match=r"cp -rL"):
    sources.open_weights(index)


def test_a_download_cache_of_a_pipeline(tmp_path):
  """Its networks' files lie one folder deeper, and link to the same blobs."""
  home = tmp_path / "models--who--what"
  folder = home / "snapshots" / "1234" / "unet"
  folder.mkdir(parents=True)
  (home / "blobs").mkdir()
  container(home / "blobs" / "5678", {"w": entry()}, bytes(8))
  link = folder / "diffusion_pytorch_model.safetensors"
  link.symlink_to("../../../blobs/5678")
  assert tensor_files.file_inside(folder, link.name) == link
  link.unlink()
  link.symlink_to(container(home / "x.safetensors", {"w": entry()}, bytes(8)))
  with pytest.raises(ConversionError, match=r"cp -rL"):
    tensor_files.file_inside(folder, link.name)


def test_a_pipeline_names_only_its_own_folders(tmp_path):
  (tmp_path / "secret").mkdir()
  (tmp_path / "secret" / "config.json").write_text('{"model_type": "t5"}')
  folder = tmp_path / "pipe"
  folder.mkdir()
  for name in ("../secret", "nowhere"):
    content = {name: ["transformers", "T5EncoderModel"]}
    (folder / "model_index.json").write_text(json.dumps(content))
    with pytest.raises(ConversionError, match=r"refused|missing"):
      sources.open_weights(folder)
  (folder / "text_encoder").symlink_to(tmp_path / "secret")
  content = {"text_encoder": ["transformers", "T5EncoderModel"]}
  (folder / "model_index.json").write_text(json.dumps(content))
  with pytest.raises(ConversionError, match="leaves its folder"):
    sources.open_weights(folder)


# --- Ten thousand damaged files. ---


def seeds(folder):
  """{kind: (a small file, what reads it, where its header ends)}."""
  folder.mkdir(exist_ok=True)
  arrays = {f"layer.{i}.w": np.ones((2, 3), np.float32) for i in range(4)}
  shapes = {k: stored_trees.shape_of(v) for k, v in arrays.items()}
  safe = folder / "model.safetensors"
  safetensors_files.write(safe, shapes, arrays.__getitem__)
  pickled_file = archive(
    folder / "model.bin",
    {f"layer.{i}.w": tensor(key=str(i)) for i in range(4)},
    {str(i): bytes(24) for i in range(4)},
  )
  from byt5_diffusion import t5x_checkpoints
  from byt5_diffusion.conversion import t5x_files

  source = stored_trees.Source(
    "x",
    {k.replace(".", "/"): v for k, v in shapes.items()},
    lambda wanted: {k: np.ones((2, 3), np.float32) for k in wanted},
  )
  t5x = folder / "checkpoint_0"
  t5x_files.write(t5x, source)

  def read_safe(path):
    return [
      tensor_files.read(x) for x in safetensors_files.read_places(path).values()
    ]

  def read_bin(path):
    return list(read_pickled(path).values())

  def read_t5x(_):
    found = t5x_checkpoints.open_source(t5x)
    return list(found.read(list(found.shapes)).values())

  return {
    "safetensors": (safe, read_safe),
    "pickle": (pickled_file, read_bin),
    "msgpack": (t5x / "checkpoint", read_t5x),
    "zarr": (t5x / "target.layer.0.w" / ".zarray", read_t5x),
  }


NUMBERS = (
  0,
  1,
  127,
  128,
  255,
  2**16,
  2**31 - 1,
  2**31,
  2**32,
  2**48,
  2**63 - 1,
)


def damage(content, rng):
  """The content with one to four bytes, numbers or pieces changed."""
  content = bytearray(content)
  for _ in range(rng.randint(1, 4)):
    if not content:
      break
    at = rng.randrange(len(content))
    what = rng.randrange(7)
    if what == 0:
      content[at] = rng.randrange(256)
    elif what == 1:
      content[at] ^= 1 << rng.randrange(8)
    elif what == 2:
      del content[at : at + rng.choice((1, 2, 8, 64, 4096))]
    elif what == 3:
      content[at:at] = content[at : at + rng.choice((1, 8, 64))]
    elif what == 4:
      size = rng.choice((1, 2, 4, 8))
      number = rng.choice(NUMBERS) % 256**size
      order = rng.choice(("little", "big"))
      content[at : at + size] = number.to_bytes(size, order)
    elif what == 5:
      content[at:at] = str(rng.choice(NUMBERS)).encode()
    else:
      content[at:at] = rng.randbytes(rng.choice((1, 16, 300)))
  return bytes(content)


def fuzz(folder, cases, seed):
  """Every case ends in an array or in an error of ours; says how many did."""
  rng = random.Random(seed)
  kinds = seeds(folder)
  ends: collections.Counter[str] = collections.Counter()
  for i in range(cases):
    kind = list(kinds)[i % len(kinds)]
    path, read = kinds[kind]
    good = path.read_bytes()
    state = rng.getstate()
    path.write_bytes(damage(good, rng))
    try:
      arrays = read(path)
      assert sum(array.nbytes for array in arrays) < 2**24
      ends[f"{kind} read"] += 1
    except (ConversionError, stored_trees.CheckpointError):
      ends[f"{kind} refused"] += 1
    except BaseException:
      print(f"case {i} of {kind}, {state[1][:2]}", file=sys.stderr)
      raise
    finally:
      path.write_bytes(good)
  return ends


def run_fuzz(tmp_path, cases, seconds):
  """In a process of its own, which may not have more than it needs."""
  seed = random.SystemRandom().getrandbits(32)
  code = (
    f"import sys; sys.path[:0] = [{str(HERE)!r}]\n"
    "import conversion_hostile_test as me\n"
    f"me.fuzz_with_limits({str(tmp_path)!r}, {cases}, {seed})"
  )
  done = subprocess.run(
    [sys.executable, "-c", code],
    capture_output=True,
    text=True,
    timeout=seconds,
    cwd=HERE.parent,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
  )
  assert done.returncode == 0, f"{seed=}\n{done.stderr[-3000:]}"
  return json.loads(done.stdout)


def fuzz_with_limits(folder, cases, seed):
  """See run_fuzz; half a GiB more than what is there, once all is imported."""
  fuzz(pathlib.Path(folder, "first"), 4, 0)
  with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
  limit = used + 2**29
  resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
  print(json.dumps(fuzz(pathlib.Path(folder, "second"), cases, seed)))


def check_ends(ends, cases):
  assert sum(ends.values()) == cases
  for kind in ("safetensors", "pickle", "msgpack", "zarr"):
    assert ends.get(f"{kind} refused", 0) > cases / 10, ends


def test_500_damaged_files_end_well(tmp_path):
  check_ends(run_fuzz(tmp_path, 500, 120), 500)


@pytest.mark.slow
def test_10000_damaged_files_end_well(tmp_path):
  check_ends(run_fuzz(tmp_path, 10_000, 1200), 10_000)
