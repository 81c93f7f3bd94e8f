"""What we write, diffusers loads and draws the same with; and the other way."""

import dataclasses
import json
import pathlib

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from byt5_diffusion import (
  checkpoints,
  cli,
  config,
  samplers,
  train_state,
  trained,
)
from byt5_diffusion.conversion import convert, sources, views
from byt5_diffusion.data import text
from peers import loading

torch = pytest.importorskip("torch", reason="the peers need it")
diffusers = pytest.importorskip("diffusers", reason="it loads what we write")
transformers = pytest.importorskip("transformers", reason="as diffusers")

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SIZES = loading.TINY_SIZES | {
  "MAX_TEXT_LENGTH": 16,
  "IMAGE_HEIGHT": 16,
  "IMAGE_SIZE": (16, 16),
  "ACTIVATION_DTYPE": "float32",
  "BATCH_SIZE": 2,
  "MODEL_DIR": "",
  "UNET_PATH": "",
  "BYT5_PATH": "",
}
CAPTION = "größer"
STEPS = 5
OPTIONS = {"local_files_only": True}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
  torch.set_num_threads(1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run of SD 2.1 under ByT5, tiny and never trained; its seed."""
  folder = tmp_path_factory.mktemp("run")
  seed = loading.new_seed()
  sizes = SIZES | {"MODEL_DIR": str(folder)}
  bindings = [f"{name}={value!r}" for name, value in sizes.items()]
  config.parse(["experiments/sd21_byt5_base.gin"], bindings, run_mode="train")
  config.write_configs(folder)
  model = gin.get_bindings("MODEL/gin.macro")["value"]
  gin.clear_config()
  config._parsed = None
  variables = jax.eval_shape(
    lambda rng: model.get_initial_variables(rng, model.input_shapes()),
    jax.random.key(0),
  )
  rng = np.random.default_rng(seed)

  def values(path, leaf):
    found = rng.normal(size=leaf.shape)
    if len(leaf.shape) > 1:
      found /= np.sqrt(np.prod(leaf.shape[:-1]))
    else:
      found = 0.1 * found + (path[-1].key == "scale")
    return found.astype(np.float32)

  params = jax.tree_util.tree_map_with_path(values, variables["params"])
  frozen = jax.tree_util.tree_map_with_path(values, variables["frozen"])
  sha256 = checkpoints.save_tree(folder / "frozen", frozen)
  record = {"path": "frozen", "sha256": sha256}
  state = train_state.create(params, model.optimizer_def.tx)
  writer = checkpoints.Checkpointer(folder)
  extra = {"batch_size": 2, "frozen": record, "random_seed": 0}
  writer.save(1, state, b"", extra)
  writer.close()
  return folder, seed


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
  out = tmp_path_factory.mktemp("out") / "pipeline"
  assert cli.main(["convert", str(run[0]), str(out), "--to", "diffusers"]) == 0
  return out


def draw(pipeline, caption, latents, guidance_scale, num_steps):
  """As in docs/conversion.md: both conditions at their own lengths."""

  def encode(caption):
    tokens = pipeline.tokenizer(caption, return_tensors="pt").input_ids
    return pipeline.text_encoder(tokens).last_hidden_state

  prompt, nothing = encode(caption), encode("")
  pipeline.scheduler.set_timesteps(num_steps)
  for t in pipeline.scheduler.timesteps:
    told = pipeline.unet(latents, t, prompt).sample
    null = pipeline.unet(latents, t, nothing).sample
    prediction = null + guidance_scale * (told - null)
    latents = pipeline.scheduler.step(prediction, t, latents).prev_sample
  latents = latents / pipeline.vae.config.scaling_factor
  return pipeline.vae.decode(latents).sample.clamp(-1, 1)


@pytest.mark.slow
def test_a_run_of_ours_draws_the_same_in_diffusers(run, exported):
  folder, seed = run
  ours = trained.Trained.from_model_dir(str(folder), batch_size=1)
  model = dataclasses.replace(ours.model, sampler=samplers.ddim())
  tokens = np.asarray(text.encode(CAPTION, len(CAPTION.encode()) + 1))[None]
  assert tokens.shape[1] < 16 and tokens.all()
  key = jax.random.key(seed)
  pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
    exported, **OPTIONS
  )
  assert isinstance(pipeline.text_encoder, transformers.T5EncoderModel)
  noise_key, _ = jax.random.split(key)
  noise = jax.random.normal(noise_key, model.latent_shape())
  latents = torch.from_numpy(np.array(noise)).permute(2, 0, 1)[None]
  for scale in (1.0, 3.0):
    expected = model.sample(
      ours.params,
      jnp.asarray(tokens),
      key[None],
      flax_mutables=ours.frozen,
      guidance_scale=scale,
      num_steps=STEPS,
    )
    with torch.no_grad():
      drawn = draw(pipeline, CAPTION, latents, scale, STEPS)
    loading.assert_close(expected, drawn.permute(0, 2, 3, 1), seed)
  # The pipeline itself, where nothing is guided.
  with torch.no_grad():
    ids = pipeline.tokenizer(CAPTION, return_tensors="pt").input_ids
    images = pipeline(
      prompt_embeds=pipeline.text_encoder(ids).last_hidden_state,
      latents=latents,
      height=16,
      width=16,
      num_inference_steps=STEPS,
      guidance_scale=1.0,
      output_type="np",
    ).images
  alone = model.sample(
    ours.params,
    jnp.asarray(tokens),
    key[None],
    flax_mutables=ours.frozen,
    guidance_scale=1.0,
    num_steps=STEPS,
  )
  loading.assert_close((np.asarray(alone) + 1) / 2, images, seed)


def same(found, expected):
  assert set(found.shapes) == set(expected.shapes)
  ones, others = (x.read(list(x.shapes)) for x in (found, expected))
  for name, other in others.items():
    one = ones[name]
    assert one.dtype == other.dtype and one.tobytes() == other.tobytes(), name


@pytest.mark.slow
def test_a_run_comes_back_from_every_form_to_the_bit(run, exported, tmp_path):
  folder, _ = run
  whole = views.joined(
    "run",
    [
      checkpoints.open_source(folder),
      checkpoints.open_source(folder / "frozen"),
    ],
  )
  same(sources.open_source(exported), whole)
  out = tmp_path / "ours"
  assert cli.main(["convert", str(folder), str(out)]) == 0
  same(checkpoints.open_source(out), whole)
  for to in ("t5x", "diffusers"):
    convert.convert(out, tmp_path / to, to=to)
    same(sources.open_weights(tmp_path / to).source, whole)
  single = tmp_path / "x.safetensors"
  flags = ["--to", "single_file", "--kind", "unet"]
  assert cli.main(["convert", str(folder), str(single), *flags]) == 0
  own = {k: k for k in whole.shapes if k.startswith("unet/")}
  same(sources.open_source(single), views.renamed(whole, own))
  manifest = json.loads(
    (tmp_path / "x.safetensors.conversion.json").read_text()
  )
  assert set(manifest["arrays"]) == set(own)
  assert any("checkpoint_1" in name for name in manifest["source"]["sha256"])


@pytest.mark.slow
def test_single_files_load_in_diffusers(run, exported, tmp_path):
  for kind, cls, name in (
    ("unet", diffusers.UNet2DConditionModel, "unet"),
    ("autoencoder", diffusers.AutoencoderKL, "vae"),
  ):
    path = tmp_path / f"{kind}.safetensors"
    convert.convert(exported / name, path, to="single_file")
    loaded = cls.from_single_file(
      str(path), config=str(exported / name), **OPTIONS
    )
    expected = cls.from_pretrained(exported / name, **OPTIONS).state_dict()
    found = loaded.state_dict()
    assert set(found) == set(expected)
    for key, tensor in expected.items():
      assert torch.equal(found[key], tensor), key


def test_a_diffusers_unet_comes_back(tmp_path):
  peer = diffusers.UNet2DConditionModel(
    block_out_channels=(4,),
    layers_per_block=1,
    down_block_types=("CrossAttnDownBlock2D",),
    up_block_types=("CrossAttnUpBlock2D",),
    attention_head_dim=(2,),
    cross_attention_dim=4,
    norm_num_groups=2,
    use_linear_projection=True,
    sample_size=4,
  )
  loading.randomize(peer, np.random.default_rng(loading.new_seed()))
  peer.save_pretrained(tmp_path / "a")
  convert.convert(tmp_path / "a", tmp_path / "b")
  convert.convert(tmp_path / "b", tmp_path / "c", to="diffusers")
  again = diffusers.UNet2DConditionModel.from_pretrained(
    tmp_path / "c", **OPTIONS
  )
  for name, tensor in peer.state_dict().items():
    assert torch.equal(again.state_dict()[name], tensor), name


def test_a_wrong_architecture_is_told_by_its_first_ten_differences(tmp_path):
  peer = diffusers.AutoencoderKL(
    block_out_channels=(4,), norm_num_groups=2, latent_channels=2
  )
  peer.save_pretrained(tmp_path / "a")
  path = tmp_path / "a" / "config.json"
  content = json.loads(path.read_text()) | {"block_out_channels": [8]}
  path.write_text(json.dumps(content))
  with pytest.raises(sources.ConversionError) as error:
    sources.open_weights(tmp_path / "a")
  told = str(error.value)
  assert told.count("of another shape: ") == 10 and "more." in told
  assert "norm1.bias [4], ours decoder/up_blocks_0/resnets_0" in told
  content |= {"block_out_channels": [4], "layers_per_block": 2}
  path.write_text(json.dumps(content))
  with pytest.raises(sources.ConversionError, match=r"missing: encoder\.down"):
    sources.open_weights(tmp_path / "a")
