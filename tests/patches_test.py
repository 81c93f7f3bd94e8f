"""The patch encoder against HuggingFace's Pix2Struct, and its own rules."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from byt5_diffusion import feature_converters, partitioning, patches
from byt5_diffusion.data import patches as data_patches

TINY = patches.PatchConfig(
  embed_dim=16,
  num_heads=2,
  head_dim=8,
  mlp_dim=32,
  num_layers=2,
  patch_size=2,
  max_patches=12,
)
# These programs run once: compiling them is what takes the time.
QUICK = {"xla_backend_optimization_level": 0}


def _batch(seed=0, shape=(2, 4, 8, 3)):
  images = np.random.default_rng(seed).uniform(-1, 1, shape)
  return np.array(patches.extract(jnp.asarray(images, jnp.float32), 2))


def _init(config, seed=0):
  init = jax.jit(patches.PatchEncoder(config).init, compiler_options=QUICK)
  return init(jax.random.key(seed), _batch())


@pytest.fixture(scope="module")
def variables():
  return _init(TINY)


def _encode(config, params, rows):
  apply = jax.jit(patches.PatchEncoder(config).apply, compiler_options=QUICK)
  features, mask = apply({"params": params}, rows)
  return np.asarray(features, np.float32), np.asarray(mask)


def _pad(rows, count):
  return np.pad(rows, [(0, 0), (0, count), (0, 0)])


# --- extract -----------------------------------------------------------------


def test_extract_closed_form():
  """A picture whose pixels say where they are."""
  row, column, channel = np.indices((4, 6, 3))
  image = 100 * row + 10 * column + channel
  cut = np.asarray(patches.extract(jnp.asarray(image[None]), 2))[0]
  assert cut.shape == (6, patches.patch_width(2)) == (6, 14)
  assert cut.dtype == np.float32
  np.testing.assert_array_equal(
    cut[:, :2], [[1, 1], [1, 2], [1, 3], [2, 1], [2, 2], [2, 3]]
  )
  for place_row, place_column, *pixels in cut.tolist():
    top, left = 2 * (place_row - 1), 2 * (place_column - 1)
    expected = [
      100 * (top + i) + 10 * (left + j) + c
      for i in range(2)
      for j in range(2)
      for c in range(3)
    ]
    assert pixels == expected


@pytest.mark.parametrize(("height", "width", "size"), [(8, 24, 4), (3, 3, 3)])
def test_images_and_pictures_give_the_same_bits(height, width, size):
  """The model's road and the data's, where nothing is scaled."""
  levels = np.random.default_rng(0).integers(0, 256, (height, width, 3))
  picture = levels.astype(np.uint8)
  count = height * width // size**2
  pixels = feature_converters.PIXELS[picture][None]
  (ours,) = np.asarray(jax.jit(patches.extract, static_argnums=1)(pixels, size))
  assert ours.tobytes() == data_patches.fit(picture, size, count).tobytes()


def test_extract_wants_whole_patches():
  for shape in [(1, 5, 8, 3), (1, 8, 5, 3)]:
    with pytest.raises(ValueError, match="divides both"):
      patches.extract(jnp.zeros(shape), 4)


# --- the encoder -------------------------------------------------------------


def _theirs(config):
  """HuggingFace's vision model of the same sizes, with random weights."""
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  torch.manual_seed(0)
  model = transformers.Pix2StructVisionModel(
    transformers.Pix2StructVisionConfig(
      hidden_size=config.embed_dim,
      patch_embed_hidden_size=config.patch_width - 2,
      d_ff=config.mlp_dim,
      d_kv=config.head_dim,
      num_hidden_layers=config.num_layers,
      num_attention_heads=config.num_heads,
      seq_len=config.max_patches + 1,
      initializer_range=1.0,
      dropout_rate=0.0,
      attention_dropout=0.0,
    )
  ).eval()
  with torch.no_grad():
    for name, weight in model.named_parameters():
      noise = torch.randn_like(weight)
      weight.copy_(1 + 0.2 * noise if "norm" in name else 0.3 * noise)
  return model


def _params_of(model, config):
  """Their weights in our tree."""
  theirs = {k: v.detach().numpy() for k, v in model.named_parameters()}
  flat = {
    "patch_projection/kernel": theirs["embeddings.patch_projection.weight"].T,
    "patch_projection/bias": theirs["embeddings.patch_projection.bias"],
    "row_embedding": theirs["embeddings.row_embedder.weight"],
    "column_embedding": theirs["embeddings.column_embedder.weight"],
    "encoder/encoder_norm/scale": theirs["layernorm.weight"],
  }
  for i in range(config.num_layers):
    source, target = f"encoder.layer.{i}", f"encoder/layers_{i}"
    for norm in ("pre_attention_layer_norm", "pre_mlp_layer_norm"):
      flat[f"{target}/{norm}/scale"] = theirs[f"{source}.{norm}.weight"]
    products = {f"mlp/{x}": f"mlp.{x}" for x in ("wi_0", "wi_1", "wo")}
    products |= {
      f"attention/{x}": f"attention.{x}" for x in ("query", "key", "value")
    }
    products["attention/out"] = "attention.output"
    for ours, name in products.items():
      flat[f"{target}/{ours}/kernel"] = theirs[f"{source}.{name}.weight"].T
  assert len(flat) == len(theirs)
  return traverse_util.unflatten_dict(flat, sep="/")


def test_parity_with_pix2struct(variables):
  model = _theirs(TINY)
  params = _params_of(model, TINY)
  assert jax.tree.map(np.shape, params) == jax.tree.map(
    np.shape, dict(variables["params"])
  )
  rows = _pad(_batch(), 3)
  rows[1, 5:] = 0  # Images of different numbers of patches.
  import torch

  with torch.no_grad():
    expected = model(
      flattened_patches=torch.from_numpy(rows.copy()),
      attention_mask=torch.from_numpy((rows[..., 0] > 0).astype(np.float32)),
    ).last_hidden_state.numpy()
  features, mask = _encode(TINY, params, rows)
  np.testing.assert_array_equal(mask, rows[..., 0] > 0)
  np.testing.assert_allclose(features[mask], expected[mask], atol=2e-5)


def test_padding_changes_nothing(variables):
  rows = _batch()
  alone, _ = _encode(TINY, variables["params"], rows)
  padded, mask = _encode(TINY, variables["params"], _pad(rows, 4))
  assert mask.sum() == 2 * 8
  np.testing.assert_allclose(padded[:, :8], alone, atol=1e-6)
  empty, _ = _encode(TINY, variables["params"], np.zeros_like(rows))
  assert np.isfinite(empty).all()


def test_the_order_of_patches_says_nothing(variables):
  """Where a patch lies is in its row and column alone."""
  rows = _batch()
  features, _ = _encode(TINY, variables["params"], rows)
  order = np.random.default_rng(0).permutation(rows.shape[1])
  shuffled, _ = _encode(TINY, variables["params"], rows[:, order])
  np.testing.assert_allclose(shuffled, features[:, order], atol=1e-5)
  for axis in range(2):  # And it does matter.
    moved = rows.copy()
    moved[:, 0, axis] += 1
    other, _ = _encode(TINY, variables["params"], moved)
    assert np.abs(other - features).max() > 0.1


def test_scanned_and_in_bfloat16_it_is_the_same(variables):
  rows = _batch()
  expected, _ = _encode(TINY, variables["params"], rows)
  config = dataclasses.replace(TINY, scan_layers=True, remat=True)
  params = dict(variables["params"])
  encoder = params["encoder"]
  layers = [encoder[f"layers_{i}"] for i in range(TINY.num_layers)]
  stacked = jax.tree.map(lambda *x: jnp.stack(x, 1), *layers)
  params["encoder"] = {
    "encoder_norm": encoder["encoder_norm"],
    "layers": stacked,
  }
  scanned, _ = _encode(config, params, rows)
  np.testing.assert_allclose(scanned, expected, atol=1e-5)
  half = dataclasses.replace(TINY, dtype="bfloat16")
  rough, _ = _encode(half, variables["params"], rows)
  assert 1e-4 < np.abs(rough - expected).max() < 0.1


def test_every_parameter_learns_and_has_axes_that_rules_know(variables):
  axes = partitioning.logical_axes(variables["params_axes"])
  is_tuple = {"is_leaf": lambda x: isinstance(x, tuple)}
  ranks = jax.tree.map(len, axes, **is_tuple)
  assert ranks == jax.tree.map(np.ndim, dict(variables["params"]))
  known = {name for name, _ in partitioning.STANDARD_LOGICAL_AXIS_RULES}
  assert {x for leaf in jax.tree.leaves(axes, **is_tuple) for x in leaf} < known
  rows = _batch()

  def loss(params):
    features, _ = patches.PatchEncoder(TINY).apply({"params": params}, rows)
    return jnp.square(features - 1.0).sum()

  gradient = jax.jit(jax.grad(loss), compiler_options=QUICK)
  gradients = gradient(variables["params"])
  for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
    assert np.abs(leaf).max() > 0, path
  # Two rows and four columns of patches: of the tables only theirs.
  for name, used in [("row_embedding", 2), ("column_embedding", 4)]:
    moved = np.flatnonzero(np.abs(gradients[name]).sum(1))
    np.testing.assert_array_equal(moved, 1 + np.arange(used))


def test_dropout_is_off_unless_asked_for():
  config = dataclasses.replace(TINY, dropout_rate=0.5)
  params = _init(config)["params"]
  encoder = patches.PatchEncoder(config)

  def call(**options):
    return np.asarray(encoder.apply({"params": params}, _batch(), **options)[0])

  np.testing.assert_array_equal(call(), call())
  dropped = [
    call(enable_dropout=True, rngs={"dropout": jax.random.key(seed)})
    for seed in (0, 1)
  ]
  assert (dropped[0] != dropped[1]).any() and (dropped[0] != call()).any()


def test_wrong_shapes_are_named(variables):
  for rows, message in [
    (np.zeros((2, 8, 29)), "patch_size = 2"),
    (np.zeros((8, 14)), r"not \[B, P, 14\]"),
    (np.zeros((2, 13, 14)), "13 patches per image .* max_patches = 12"),
  ]:
    with pytest.raises(ValueError, match=message):
      patches.PatchEncoder(TINY).apply({"params": variables["params"]}, rows)
  with pytest.raises(ValueError, match="patch_size = 0 must be positive"):
    dataclasses.replace(TINY, patch_size=0)


def test_a_place_beyond_the_tables_is_not_clipped(variables):
  """No picture has one (see max_patches); a mistake elsewhere must show."""
  rows = _batch()
  rows[0, 3, 0] = TINY.max_patches + 1
  features, _ = _encode(TINY, variables["params"], rows)
  assert np.isnan(features[0]).all() and np.isfinite(features[1]).all()
