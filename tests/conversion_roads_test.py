"""Every road in and out: the right bits arrive, under the right names."""

import hashlib
import json
import os
import shutil
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from byt5_diffusion import byt5, checkpoints, stored_trees, t5x_checkpoints
from byt5_diffusion.conversion import (
  convert,
  families,
  manifest,
  names,
  safetensors_files,
  sources,
  t5_names,
  tree_files,
  views,
)

ConversionError = names.ConversionError
T5 = byt5.Byt5Config(
  embed_dim=8,
  num_heads=2,
  head_dim=4,
  mlp_dim=12,
  num_encoder_layers=3,
)


def network(config=T5, kind="t5"):
  family = families.FAMILIES[kind]
  return families.Network(family, config, family.place)


def draw(shapes, dtype=np.float32, seed=0):
  """Every bit pattern may occur: conversions never look at numbers."""
  rng = np.random.default_rng(seed)
  return {
    name: rng.integers(0, 256, (*leaf.shape, np.dtype(dtype).itemsize))
    .astype(np.uint8)
    .view(dtype)
    .reshape(leaf.shape)
    for name, leaf in shapes.items()
  }


def as_source(arrays, what="arrays"):
  shapes = {k: stored_trees.shape_of(v) for k, v in arrays.items()}
  return stored_trees.Source(
    what, shapes, lambda wanted: {k: arrays[k] for k in wanted}
  )


def ours(config=T5, dtype=np.float32):
  shapes = t5_names.shapes(config)
  return draw({f"text_encoder/{k}": v for k, v in shapes.items()}, dtype)


@pytest.fixture
def tree(tmp_path):
  """A tree of ours as `convert` writes it, with its arrays."""
  arrays = ours()
  folder = tmp_path / "tree"
  tree_files.write(folder, as_source(arrays))
  content = {"networks": manifest.describe_networks({"t": network()})}
  content["networks"] = {"text_encoder": content["networks"]["t"]}
  manifest.write(folder / manifest.FILE, {"format_version": 1, **content})
  return folder, arrays


def read_all(path, **options):
  source = sources.open_weights(path, **options).source
  return source.read(list(source.shapes))


def assert_same(found, expected):
  assert set(found) == set(expected)
  for name, array in expected.items():
    assert found[name].dtype == array.dtype, name
    assert found[name].shape == array.shape, name
    assert found[name].tobytes() == array.tobytes(), name


# --- Out and in again. ---


@pytest.mark.parametrize("to", ["ours", "t5x", "transformers", "diffusers"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_t5_comes_back_to_the_bit(tmp_path, to, dtype):
  arrays = ours(dtype=jnp.dtype(dtype))
  tree_files.write(tmp_path / "a", as_source(arrays))
  path = convert.convert(tmp_path / "a", tmp_path / "b", to=to)
  assert_same(read_all(tmp_path / "b"), arrays)
  content = json.loads(path.read_text("utf-8"))
  assert content["target"] == to and content["format_version"] == 1
  assert set(content["arrays"]) == set(arrays)
  # And once more, with no word of ours beside it.
  path.unlink()
  convert.convert(tmp_path / "b", tmp_path / "c", to="ours")
  assert_same(read_all(tmp_path / "c"), arrays)


@settings(
  max_examples=4,
  deadline=None,
  suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
  dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
  depth=st.integers(1, 12),
  decoder=st.integers(0, 2),
  to=st.sampled_from(["t5x", "transformers"]),
  scan=st.booleans(),
)
def test_any_t5_comes_back(tmp_path_factory, dtype, depth, decoder, to, scan):
  folder = tmp_path_factory.mktemp("any")
  config = byt5.Byt5Config(
    embed_dim=3,
    num_heads=1,
    head_dim=2,
    mlp_dim=4,
    vocab_size=7,
    num_encoder_layers=depth,
    num_decoder_layers=decoder,
  )
  arrays = ours(config, jnp.dtype(dtype))
  source = as_source(arrays)
  tree_files.write(folder / "a", views.stacked(source) if scan else source)
  convert.convert(
    folder / "a", folder / "b", to=to, scan_layers=scan and to == "t5x"
  )
  assert_same(read_all(folder / "b"), arrays)


def test_a_tree_is_that_of_save_tree_and_so_is_its_hash(tmp_path):
  arrays = ours()
  nested = stored_trees.nest(arrays)
  sha256 = tree_files.write(tmp_path / "a", as_source(arrays))
  assert sha256 == checkpoints.save_tree(tmp_path / "b", nested)
  loaded = checkpoints.load_tree(tmp_path / "a", sha256)
  assert checkpoints.tree_sha256(loaded) == sha256
  assert stored_trees.check(stored_trees.absolute(tmp_path / "a")) == {
    "sha256": sha256
  }


def test_large_arrays_are_written_in_several_chunks(tmp_path, monkeypatch):
  monkeypatch.setattr(tree_files, "_CHUNK_BYTES", 100)
  monkeypatch.setattr("byt5_diffusion.conversion.t5x_files._CHUNK_BYTES", 100)
  arrays = ours() | {"text_encoder/encoder/x": np.arange(121.0).reshape(11, 11)}
  sha256 = tree_files.write(tmp_path / "a", as_source(arrays))
  loaded = checkpoints.load_tree(tmp_path / "a", sha256)
  assert_same(stored_trees.flatten_names(loaded), arrays)
  convert.convert(tmp_path / "a", tmp_path / "b", to="t5x")
  folder = tmp_path / "b" / "target.encoder.x"
  assert len(list(folder.iterdir())) > 2
  assert_same(read_all(tmp_path / "b"), arrays)


def test_stacked_and_unrolled_are_byt5s(tree, tmp_path):
  folder, arrays = tree
  convert.convert(folder, tmp_path / "scanned", to="ours", scan_layers=True)
  found = checkpoints.load_tree(tmp_path / "scanned")
  expected = byt5.stacked(stored_trees.nest(arrays))
  assert_same(
    stored_trees.flatten_names(found), stored_trees.flatten_names(expected)
  )
  convert.convert(tmp_path / "scanned", tmp_path / "back")
  assert_same(
    stored_trees.flatten_names(checkpoints.load_tree(tmp_path / "back")), arrays
  )


def test_stacking_wants_all_layers():
  arrays = {"e/layers_0/w": np.zeros(2), "e/layers_2/w": np.zeros(2)}
  with pytest.raises(ConversionError, match="e/layers/w have gaps"):
    views.stacked(as_source(arrays))
  arrays = {"e/layers_0/w": np.zeros(2), "e/layers_1/w": np.zeros(3)}
  with pytest.raises(ConversionError, match="differ"):
    views.stacked(as_source(arrays))
  with pytest.raises(ConversionError, match="no stack of layers"):
    views.unrolled(as_source({"layers/w": np.zeros(2)}))


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_floats_are_cast_and_nothing_else(tree, tmp_path, dtype):
  folder, arrays = tree
  convert.convert(folder, tmp_path / "b", to="transformers", dtype=dtype)
  for name, array in read_all(tmp_path / "b").items():
    expected = arrays[name].astype(jnp.dtype(dtype))
    assert array.tobytes() == expected.tobytes()
  mixed = as_source({"a": np.arange(3), "b": np.ones(2, np.float32)})
  cast = views.cast(mixed, dtype)
  assert cast.read(["a"])["a"].dtype == cast.shapes["a"].dtype == np.int64
  assert cast.read(["b"])["b"].dtype == cast.shapes["b"].dtype == dtype


def test_small_shards_have_an_index(tree, tmp_path):
  _, arrays = tree
  source = as_source(arrays)
  theirs = families.to_theirs(source, network(), t5_names.entries(T5))
  out = tmp_path / "sharded"
  out.mkdir()
  text = json.dumps(families.to_json(network()))
  (out / "config.json").write_text(text)
  safetensors_files.write_sharded(
    out, "model", theirs.shapes, lambda k: theirs.read([k])[k], 1000
  )
  assert len(list(out.glob("model-0000*.safetensors"))) > 3
  assert_same(read_all(out), arrays)
  assert_same(read_all(out / "model.safetensors.index.json"), arrays)


# --- What others write. ---


def test_fixtures_of_t5x_and_mesh_tensorflow(shared_data, tmp_path):
  folder = shared_data / "fixtures" / "t5x"
  expected = {
    f"text_encoder/{k}": v
    for k, v in dict(np.load(folder / "params_flat.npz")).items()
  }
  for kind in ("legacy", "orbax", "legacy/checkpoint_3"):
    weights = sources.open_weights(folder / kind)
    assert weights.networks["text_encoder"].config.num_heads == 2
    assert_same(weights.source.read(list(expected)), expected)
  pytest.importorskip("tensorflow", reason="Mesh TensorFlow needs it")
  for path in ("mesh_tf", "mesh_tf/model.ckpt-3", "mesh_tf/model.ckpt-3.index"):
    weights = sources.open_weights(folder / path)
    assert_same(weights.source.read(list(expected)), expected)
  assert weights.left == {"optimizer states and steps": 39}
  convert.convert(folder / "mesh_tf", tmp_path / "t5x", to="t5x")
  found = t5x_checkpoints.open_source(tmp_path / "t5x")
  assert {f"text_encoder/{k}" for k in found.shapes} == set(expected)


def test_without_tensorflow_mesh_tensorflow_names_what_to_install(
  tmp_path, monkeypatch
):
  (tmp_path / "model.ckpt-3.index").write_bytes(b"")
  monkeypatch.setitem(sys.modules, "tensorflow", None)
  with pytest.raises(ConversionError, match=r"byt5-diffusion\[data\]"):
    sources.open_weights(tmp_path)


@pytest.mark.slow
def test_transformers_files(tmp_path):
  torch = pytest.importorskip("torch", reason="peers are not installed")
  transformers = pytest.importorskip("transformers")
  torch.set_num_threads(1)
  config = transformers.T5Config(
    **families.to_json(
      network(
        byt5.Byt5Config(
          embed_dim=8,
          num_heads=2,
          head_dim=4,
          mlp_dim=12,
          num_encoder_layers=2,
          num_decoder_layers=1,
        )
      )
    )
  )
  peer = transformers.T5ForConditionalGeneration(config)
  folders = [tmp_path / name for name in ("one", "many", "zip", "half")]
  peer.save_pretrained(folders[0])
  peer.save_pretrained(folders[1], max_shard_size="3KB")
  state = peer.state_dict()
  for folder in folders[2:]:
    folder.mkdir()
    shutil.copy(folders[0] / "config.json", folder)
  torch.save(state, folders[2] / "pytorch_model.bin")
  half = {k: v.to(torch.bfloat16) for k, v in state.items()}
  torch.save(half, folders[3] / "pytorch_model.bin")
  expected = {
    f"text_encoder/{entry.ours}": names.TRANSFORMS[entry.transform].to_ours(
      state[entry.theirs].numpy()
    )
    for entry in t5_names.entries(
      t5_names.config_from_json(
        families.to_json(
          sources.open_weights(folders[0]).networks["text_encoder"]
        )
      )
    )
  }
  for folder in folders[:3]:
    found = read_all(folder)
    assert_same(found, expected)
  found = read_all(folders[3])
  rounded = {k: v.astype(jnp.bfloat16) for k, v in expected.items()}
  assert_same(found, rounded)
  # What we write, transformers reads.
  convert.convert(folders[1], tmp_path / "out", to="transformers")
  again = transformers.T5ForConditionalGeneration.from_pretrained(
    tmp_path / "out", local_files_only=True
  )
  for name, tensor in again.state_dict().items():
    assert torch.equal(tensor, state[name]), name
  tokenizer = transformers.ByT5Tokenizer.from_pretrained(
    tmp_path / "out", local_files_only=True
  )
  assert tokenizer("é").input_ids == [0xC3 + 3, 0xA9 + 3, 1]


def test_a_foreign_folder_is_a_source_of_our_names(tree, tmp_path):
  folder, arrays = tree
  convert.convert(folder, tmp_path / "hf", to="transformers")
  assert sources.is_foreign(tmp_path / "hf")
  assert sources.is_foreign(tmp_path / "hf" / "model.safetensors")
  assert not sources.is_foreign(folder) and not sources.is_foreign(tmp_path)
  source = sources.open_source(tmp_path / "hf")
  name = "text_encoder/encoder/layers_0/attention/query/kernel"
  assert_same(source.read([name]), {name: arrays[name]})


def test_real_safetensors_reads_what_we_write(tmp_path):
  library = pytest.importorskip("safetensors.numpy")
  arrays = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "empty": np.zeros((0, 4), np.int64),
    "scalar": np.float16(3)[None].reshape(()),
    "ß": np.array([True, False]),
  }
  path = tmp_path / "x.safetensors"
  shapes = {k: stored_trees.shape_of(v) for k, v in arrays.items()}
  safetensors_files.write(path, shapes, arrays.__getitem__, {"who": "me"})
  assert_same(library.load_file(path), arrays)
  found = read_places(path)
  assert_same(found, arrays)
  assert safetensors_files.read_header(path).metadata == {"who": "me"}


def read_places(path):
  from byt5_diffusion.conversion import tensor_files

  places = safetensors_files.read_places(path)
  return {k: tensor_files.read(v) for k, v in places.items()}


@pytest.mark.parametrize("to", names.TARGETS)
def test_a_failed_conversion_leaves_nothing(tree, tmp_path, to, monkeypatch):
  folder, _ = tree
  if to == "single_file":
    with pytest.raises(ConversionError, match="holds no t5"):
      convert.convert(folder, tmp_path / "x.safetensors", to=to)
    return
  convert.convert(folder, tmp_path / "hf", to="transformers")
  file = tmp_path / "hf" / "model.safetensors"
  before = set(tmp_path.iterdir())
  weights = sources.open_weights(tmp_path / "hf")
  plan = convert.plan(weights, to)
  os.truncate(file, file.stat().st_size - 4)
  with pytest.raises(Exception, match="cut off"):
    convert.execute(plan, tmp_path / "out", {})
  assert set(tmp_path.iterdir()) == before


def test_a_folder_that_cannot_be_made_is_named(tree, tmp_path):
  folder, _ = tree
  (tmp_path / "file").write_text("")
  with pytest.raises(names.ConversionError, match="file can't be made"):
    convert.convert(folder, tmp_path / "file" / "out")


def test_hashes_are_checked_before_anything_is_written(tree, tmp_path):
  folder, _ = tree
  convert.convert(folder, tmp_path / "hf", to="transformers")
  file = tmp_path / "hf" / "model.safetensors"
  right = hashlib.sha256(file.read_bytes()).hexdigest()
  path = convert.convert(tmp_path / "hf", tmp_path / "a", sha256=[right])
  content = json.loads(path.read_text("utf-8"))
  assert content["source"]["sha256"][str(file)] == right
  name = "text_encoder/encoder/layers_0/mlp/wo/kernel"
  assert content["arrays"][name] == {
    "source": "encoder.block.0.layer.1.DenseReluDense.wo.weight",
    "output": name,
    "shape": [12, 8],
    "dtype": "float32",
  }
  for wrong, said in (
    ("0" * 64, "has the sha256"),
    (f"model.safetensors={'0' * 64}", "has the sha256"),
    (f"other.bin={right}", "name one of the files"),
    ("0" * 63, "64 hexadecimal"),
  ):
    with pytest.raises(ConversionError, match=said):
      convert.convert(tmp_path / "hf", tmp_path / "b", sha256=[wrong])
  assert not (tmp_path / "b").exists()
  with pytest.raises(ConversionError, match="not overwritten"):
    convert.convert(tmp_path / "hf", tmp_path / "a")
