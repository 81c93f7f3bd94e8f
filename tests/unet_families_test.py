"""What SDXL's, IF's and Imagen's UNets have beside the plain one."""

import dataclasses
import functools
import math

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from byt5_diffusion import config as config_lib
from byt5_diffusion import partitioning, unet, unet_blocks, unet_conditions
from byt5_diffusion.conversion import unet_names

# These programs run once: compiling them is what takes the time.
QUICK = {"xla_backend_optimization_level": 0}
LENGTH = 5

PLAIN = unet.UNetConfig(
  channels=(8,),
  num_res_blocks=1,
  transformer_depth=(1,),
  num_heads=(2,),
  cross_attention_dim=8,
  norm_groups=4,
  zero_init_outputs=False,
)
SDXL = dataclasses.replace(
  PLAIN,
  text_pooling="given",
  pooled_text_dim=6,
  micro_conditioning_features=4,
)
IF = dataclasses.replace(
  PLAIN,
  channels=(8, 8),
  num_res_blocks=(1, 1),
  transformer_depth=(0, 1),
  num_heads=(1, 2),
  in_channels=6,
  out_channels=6,
  activation="gelu",
  scale_shift_norm=True,
  resampling="resnet",
  attention="joint",
  text_norm="group",
  text_projection_dim=12,
  text_pooling="attention",
  text_pooling_heads=2,
  time_embedding_dim=20,
  noise_level=True,
  residual_divisor=math.sqrt(2),
)
IMAGEN = dataclasses.replace(
  PLAIN,
  channels=(8, 16),
  num_res_blocks=(1, 2),
  transformer_depth=(0, 1),
  mid_transformer_depth=0,
  num_heads=(1, 2),
  in_channels=6,
  scale_shift_norm=True,
  resampling="conv_first",
  attention="joint",
  only_cross_attention=True,
  text_norm="layer",
  text_pooling="attention",
  text_pooling_heads=4,
  noise_level=True,
  skip_scale=math.sqrt(0.5),
  residual_divisor=math.sqrt(2),
)
MEAN = dataclasses.replace(PLAIN, text_pooling="mean")
FAMILIES = {"sdxl": SDXL, "if": IF, "imagen": IMAGEN, "mean": MEAN}


def inputs(config, seed=0):
  """Three texts of 5, 2 and no bytes."""
  rng = np.random.default_rng(seed)
  found = {
    "noisy_latents": rng.normal(size=(3, 8, 8, config.in_channels)),
    "time": rng.uniform(0, 1000, 3),
    "text_embeddings": rng.normal(size=(3, LENGTH, config.cross_attention_dim)),
  }
  if config.pooled_text_dim:
    found["pooled_text"] = rng.normal(size=(3, config.pooled_text_dim))
  if config.micro_conditioning_features:
    found["micro_conditioning"] = rng.uniform(0, 1024, (3, 6))
  if config.noise_level:
    found["noise_level"] = rng.uniform(0, 1000, 3)
  found = {name: np.float32(value) for name, value in found.items()}
  found["text_mask"] = np.arange(LENGTH) < np.array([[LENGTH], [2], [0]])
  return found


@functools.cache
def random_params(config):
  """Numbers of the usual sizes, biases too."""
  rng = np.random.default_rng(1)
  flat = {}
  for name, leaf in unet_names.shapes(config).items():
    values = rng.normal(size=leaf.shape).astype("f4")
    if leaf.ndim == 1:
      values = values * 0.1 + name.endswith("scale")
    else:
      values = values / np.sqrt(np.prod(leaf.shape[:-1]))
    flat[name] = values
  return traverse_util.unflatten_dict(flat, sep="/")


@functools.cache
def program(config):
  return jax.jit(unet.UNet(config).apply, compiler_options=QUICK)


def denoise(config, batch, params=None):
  params = random_params(config) if params is None else params
  return np.asarray(program(config)({"params": params}, **batch))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_reads_all_that_it_is_told_and_pads_are_nothing(name):
  config = FAMILIES[name]
  batch = inputs(config)
  y = denoise(config, batch)
  assert y.shape == (3, 8, 8, config.out_channels)
  assert np.isfinite(y).all()
  mask = batch["text_mask"]
  for key in sorted(set(batch) - {"text_mask", "noisy_latents"}):
    changed = {**batch, key: batch[key] * 0.5}
    moved = np.abs(denoise(config, changed) - y).max(axis=(1, 2, 3))
    # The third text is empty.
    rows = 2 if key == "text_embeddings" else 3
    assert moved[:rows].min() > 1e-5, key
  pads = np.where(mask[..., None], batch["text_embeddings"], 7.0).astype("f4")
  np.testing.assert_allclose(
    denoise(config, {**batch, "text_embeddings": pads}), y, atol=2e-6
  )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["if", "imagen"])
def test_longer_padding_changes_nothing(name):
  config = FAMILIES[name]
  batch = inputs(config)
  pads = ((0, 0), (0, 3))
  longer = {
    **batch,
    "text_embeddings": np.pad(
      batch["text_embeddings"], (*pads, (0, 0)), constant_values=3.0
    ),
    "text_mask": np.pad(batch["text_mask"], pads),
  }
  np.testing.assert_allclose(
    denoise(config, longer), denoise(config, batch), atol=2e-6
  )


@pytest.mark.parametrize("name", ["sdxl", "if", "imagen"])
def test_every_parameter_is_float32_and_has_axes_that_a_mesh_knows(name):
  config = dataclasses.replace(FAMILIES[name], dtype="bfloat16")
  variables = jax.eval_shape(
    lambda: unet.UNet(config).init(jax.random.key(0), **inputs(config))
  )
  known = {axis for axis, _ in partitioning.STANDARD_LOGICAL_AXIS_RULES}
  params = traverse_util.flatten_dict(variables["params"])
  axes = traverse_util.flatten_dict(variables["params_axes"])
  for path, value in params.items():
    names = tuple(axes.pop((*path[:-1], path[-1] + "_axes")).names)
    assert value.dtype == "float32", path
    assert len(names) == value.ndim and set(names) <= known, path
  assert not axes


@pytest.mark.slow
@pytest.mark.parametrize("name", ["if", "imagen"])
def test_gradients_are_finite_with_an_empty_text(name):
  config = dataclasses.replace(FAMILIES[name], remat=True)
  batch = inputs(config)

  def loss(params):
    return jnp.square(
      unet.UNet(config).apply({"params": params}, **batch)
    ).sum()

  gradients = jax.jit(jax.grad(loss), compiler_options=QUICK)(
    random_params(FAMILIES[name])
  )
  for gradient in jax.tree.leaves(gradients):
    assert np.isfinite(gradient).all() and np.any(gradient)


def test_only_what_is_wanted_may_be_given():
  batch = inputs(SDXL)
  apply = functools.partial(
    jax.eval_shape, unet.UNet(SDXL).apply, {"params": random_params(SDXL)}
  )
  for name in ("pooled_text", "micro_conditioning"):
    without = {k: v for k, v in batch.items() if k != name}
    with pytest.raises(ValueError, match=f"reads {name} .* was given none"):
      apply(**without)
    wrong = {**batch, name: batch[name][:, :3]}
    with pytest.raises(ValueError, match=f"{name} is 3 wide; .* reads 6"):
      apply(**wrong)
  with pytest.raises(ValueError, match=r"was given noise_level, .* no use"):
    apply(**batch, noise_level=np.zeros(3, "f4"))


@pytest.mark.parametrize(
  "base, change, message",
  [
    (PLAIN, {"activation": "relu"}, "activation='relu' is none of silu, gelu"),
    (PLAIN, {"attention": "linear"}, "attention='linear'"),
    (PLAIN, {"resampling": "fir"}, "resampling='fir'"),
    (PLAIN, {"num_res_blocks": (1, 2)}, "num_res_blocks=.* one entry for each"),
    (PLAIN, {"text_norm": "group"}, "set attention='joint'"),
    (PLAIN, {"only_cross_attention": True}, "set attention='joint'"),
    (PLAIN, {"text_pooling": "given"}, "pooled_text_dim=0"),
    (PLAIN, {"pooled_text_dim": 3}, "text_pooling='none'"),
    (PLAIN, {"residual_divisor": 0.0}, "residual_divisor=0.0 must be positive"),
    (IF, {"transformer_depth": (0, 2)}, "one layer at a place, not 2"),
    (IF, {"text_pooling_heads": 3}, "text_pooling_heads=3 does not divide"),
  ],
)
def test_wrong_configs_are_named(base, change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(base, **change)


def test_a_single_text_embedding_pools_to_itself_or_its_norm():
  """Closed forms of the poolings: over one text byte there's no choice."""
  x = np.random.default_rng(0).normal(size=(2, 4, 8)).astype("f4")
  mask = np.array([[True, False, False, False]] * 2)
  np.testing.assert_allclose(
    unet_conditions.masked_mean(x, mask), x[:, 0], rtol=1e-6
  )
  nothing = unet_conditions.masked_mean(x, np.zeros_like(mask))
  np.testing.assert_array_equal(nothing, 0.0)
  pooling = unet_conditions.AttentionPooling(2)
  variables = pooling.init(jax.random.key(0), x, mask)
  params = {**variables["params"], "positional_embedding": np.zeros((1, 8))}
  # The mean is the byte itself: both keys have one value.
  value = params["value"]
  np.testing.assert_allclose(
    pooling.apply({"params": params}, x, mask),
    x[:, 0] @ value["kernel"] + value["bias"],
    rtol=1e-5, atol=1e-6,
  )  # fmt: skip


# --- Imagen's Efficient U-Net, said again in numpy ---------------------------


def conv(x, weights, stride=1):
  kernel = weights["kernel"]
  x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  h, w = (x.shape[1] - 3) // stride + 1, (x.shape[2] - 3) // stride + 1
  y = 0
  for i in range(3):
    for j in range(3):
      rows = x[:, i : i + stride * h : stride, j : j + stride * w : stride]
      y = y + rows @ kernel[i, j]
  return y + weights["bias"]


def silu(x):
  return x / (1 + np.exp(-x))


def dense(x, weights):
  return x @ weights["kernel"] + weights["bias"]


def norm(x, weights, axes):
  mean = x.mean(axes, keepdims=True)
  x = (x - mean) / np.sqrt(x.var(axes, keepdims=True) + 1e-5)
  return x, weights


def group_norm(x, weights, groups):
  b, h, w, _ = x.shape
  y, _ = norm(x.reshape(b, h, w, groups, -1), weights, (1, 2, 4))
  return y.reshape(x.shape) * weights["scale"] + weights["bias"]


def resnet(x, time, weights, groups=4):
  h = conv(silu(group_norm(x, weights["norm1"], groups)), weights["conv1"])
  scale, shift = np.split(
    dense(silu(time), weights["time_emb_proj"])[:, None, None], 2, axis=-1
  )
  h = group_norm(h, weights["norm2"], groups) * (1 + scale) + shift
  h = conv(silu(h), weights["conv2"])
  if "conv_shortcut" in weights:
    shortcut = weights["conv_shortcut"]
    x = x @ shortcut["kernel"][0, 0] + shortcut["bias"]
  return (x + h) / math.sqrt(2)


def joint(x, text, weights, heads, itself, groups=4):
  """Row by row, head by head, position by position."""
  b, h, w, c = x.shape
  y = group_norm(x, weights["norm"], groups).reshape(b, h * w, c)
  t, n = norm(text, weights["text_norm"], -1)
  t = t * n["scale"] + n["bias"]
  out = np.zeros_like(y)
  size = c // heads
  for head in range(heads):
    part = slice(head * size, (head + 1) * size)
    query = dense(y, weights["query"])[..., part]
    key = dense(t, weights["text_key"])[..., part]
    value = dense(t, weights["text_value"])[..., part]
    if itself:
      key = np.concatenate([dense(y, weights["key"])[..., part], key], 1)
      value = np.concatenate([dense(y, weights["value"])[..., part], value], 1)
    logits = np.einsum("bqc,bkc->bqk", query, key) / math.sqrt(size)
    share = np.exp(logits - logits.max(-1, keepdims=True))
    share /= share.sum(-1, keepdims=True)
    out[..., part] = np.einsum("bqk,bkc->bqc", share, value)
  return x + dense(out, weights["out"]).reshape(x.shape)


def double(x):
  return x.repeat(2, axis=1).repeat(2, axis=2)


@pytest.mark.parametrize("itself", [False, True])
def test_the_efficient_blocks_are_what_the_paper_draws(itself):
  config = dataclasses.replace(IMAGEN, only_cross_attention=not itself)
  rng = np.random.default_rng(0)
  x, skip = rng.normal(size=(2, 2, 8, 8, 8)).astype("f4")
  time = rng.normal(size=(2, config.time_features)).astype("f4")
  text = rng.normal(size=(2, 3, 8)).astype("f4")
  mask = np.ones((2, 3), bool)
  params = random_params(config)

  weights = params["down_blocks_1"]
  block = unet_blocks.EfficientDownBlock(config, 1)
  y, left = jax.jit(block.apply, compiler_options=QUICK)(
    {"params": weights}, x, time, text, mask
  )
  assert len(left) == 1
  np.testing.assert_array_equal(left[0], y)
  expected = conv(x, weights["downsamplers_0"], stride=2)
  for i in range(2):
    expected = resnet(expected, time, weights[f"resnets_{i}"])
  expected = joint(expected, text, weights["attentions_0"], 2, itself)
  np.testing.assert_allclose(y, expected, atol=2e-5, rtol=2e-5)

  # The finest level, which has a skip and no attention.
  weights = params["up_blocks_1"]
  block = unet_blocks.EfficientUpBlock(config, 0)
  y = jax.jit(block.apply, compiler_options=QUICK)(
    {"params": weights}, x, [skip], time, text, mask
  )
  expected = np.concatenate([x, skip * math.sqrt(0.5)], -1)
  expected = resnet(expected, time, weights["resnets_0"])
  expected = conv(double(expected), weights["upsamplers_0"])
  np.testing.assert_allclose(y, expected, atol=2e-5, rtol=2e-5)


def test_the_efficient_net_works_where_there_are_few_positions():
  """No block but the first and the last convolution sees the full size."""
  batch = inputs(IMAGEN)
  seen = {}

  def record(module, _):
    return isinstance(module, unet_blocks.ResnetBlock)

  _, captured = jax.eval_shape(
    lambda: unet.UNet(IMAGEN).apply(
      {"params": random_params(IMAGEN)},
      **batch,
      capture_intermediates=record,
      mutable=["intermediates"],
    )
  )
  flat = traverse_util.flatten_dict(captured["intermediates"])
  for path, value in flat.items():
    seen.setdefault(path[0], set()).add(value[0].shape[1])
  assert seen == {
    "down_blocks_0": {4},
    "down_blocks_1": {2},
    "up_blocks_0": {2},
    "up_blocks_1": {4},
  }
  assert IMAGEN.downsampling == 4
  assert "mid_block" not in random_params(IMAGEN)


# --- gin ---------------------------------------------------------------------

# name: (width of the published text encoder, count there, at ByT5-base's 1536).
# Sources: docs/networks.md. IF has 6 output channels there, Imagen's are ours.
COUNTS = {
  "sd21": (1024, 865_910_724, 878_690_244),
  "sdxl": (2048, 2_567_463_684, 2_482_266_884),
  "if_1": (4096, 4_304_695_110, 4_247_008_070),
  "if_2": (4096, 1_243_277_190, 1_193_454_470),
  "if_3": (4096, 684_938_374, 636_426_374),
  "imagen_64": (4096, 2_437_591_043, 2_213_329_923),
  "imagen_256": (4096, 510_901_763, 455_825_923),
  "imagen_1024": (4096, 506_703_363, 451_627_523),
}


# Those that enlarge.
ENLARGERS = ("if_2", "if_3", "imagen_256", "imagen_1024")


@pytest.fixture
def parse(monkeypatch):
  monkeypatch.setattr(config_lib, "_parsed", None)

  def model(name, *bindings):
    """The tiny experiment's model with a family's UNet."""
    recipe = "tiny_super_resolution" if name in ENLARGERS else "tiny"
    latents = ["models/latent.gin", "sizes/vae_sd.gin"]
    files = [f"models/unet_{name}.gin", f"sizes/unet_{name}.gin"]
    if name.startswith("if"):
      bindings = ("unet.UNetConfig.out_channels=6", *bindings)
    config_lib.parse(
      [
        f"experiments/{recipe}.gin",
        *latents * name.startswith("sd"),
        *files,
      ],
      ["MODEL_DIR='/tmp/x'", "IMAGE_SIZE=(64, 64)", *bindings],
      run_mode="train",
    )
    return gin.get_bindings("MODEL/gin.macro")["value"]

  yield model
  gin.clear_config()


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTS)
def test_a_model_of_each_family_traces_its_loss(parse, name):
  """With ByT5's place taken by the tiny one's."""
  heads = () if name.startswith("sd") else ("UNET_TEXT_POOLING_HEADS=4",)
  model = parse(name, *heads)
  shapes = model.input_shapes(2)
  batch = {
    key: jax.ShapeDtypeStruct(shape, dtype)
    for (key, shape), dtype in zip(
      shapes.items(), ("float32", "int32", "uint32"), strict=True
    )
  }

  def loss(rng, batch):
    variables = model.get_initial_variables(rng, shapes)
    frozen = {"frozen": variables.get("frozen", {})}
    return model.loss_fn(variables["params"], batch, rng, frozen)[0]

  assert jax.eval_shape(loss, jax.random.key(0), batch).shape == ()


@pytest.mark.parametrize("name", COUNTS)
def test_the_gin_files_say_the_published_sizes(parse, name):
  width, count, _ = COUNTS[name]
  config = parse(name, f"BYT5_EMBED_DIM={width}").unet.config
  shapes = unet_names.shapes(config)
  assert sum(math.prod(x.shape) for x in shapes.values()) == count
  if name.startswith("sd"):
    text = config_lib.gin_root() / "sizes" / f"unet_{name}.gin"
    assert f"{count:,}" in text.read_text("utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTS)
def test_the_counts_at_byt5_base_are_those_of_the_documentation(parse, name):
  config = parse(name, "BYT5_EMBED_DIM=1536").unet.config
  shapes = unet_names.shapes(config)
  count = sum(math.prod(x.shape) for x in shapes.values())
  assert count == COUNTS[name][2]
  page = config_lib.gin_root().parent / "docs" / "networks.md"
  if page.exists():
    assert f"{count:,}" in page.read_text("utf-8")
