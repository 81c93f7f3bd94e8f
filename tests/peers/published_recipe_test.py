"""experiments/sd21_byt5_base.gin, from folders as they are published.

At a tiny size: diffusers and transformers write the folders, with weights drawn
at random, and the recipe trains, resumes and draws by the commands of
docs/fine_tuning.md.
"""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from byt5_diffusion import checkpoints
from peers import loading

torch = pytest.importorskip("torch", reason="the peers need it")
diffusers = pytest.importorskip("diffusers", reason="it writes a UNet")
transformers = pytest.importorskip("transformers", reason="it writes a ByT5")

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
RECIPE = "experiments/sd21_byt5_base.gin"
RUN = {
  "MAX_TEXT_LENGTH": 16,
  "IMAGE_HEIGHT": 16,
  "IMAGE_SIZE": (16, 16),
  "SAMPLE_TEXTS": ["a cat"],
  "ACTIVATION_DTYPE": "float32",
  "BATCH_SIZE": 2,
  "WARMUP_STEPS": 1,
  "trainer.train.num_microbatches": 1,
  "models.TextToImageModel.num_sampling_steps": 2,
}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
  """stable-diffusion-2-1 and byt5-base as they are published, but tiny."""
  folder = tmp_path_factory.mktemp("published")
  unet = diffusers.UNet2DConditionModel(
    block_out_channels=(8, 16),
    layers_per_block=1,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    attention_head_dim=(2, 2),
    cross_attention_dim=12,
    norm_num_groups=4,
    use_linear_projection=True,
    sample_size=2,
  )
  vae = diffusers.AutoencoderKL(
    block_out_channels=(8, 8),
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
    layers_per_block=1,
    norm_num_groups=4,
    latent_channels=4,
    sample_size=16,
  )
  pipeline = folder / "stable-diffusion-2-1"
  unet.save_pretrained(pipeline / "unet")
  vae.save_pretrained(pipeline / "vae")
  clip = transformers.CLIPTextConfig(
    hidden_size=12,
    intermediate_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    vocab_size=20,
  )
  transformers.CLIPTextModel(clip).save_pretrained(pipeline / "text_encoder")
  index = {
    "_class_name": "StableDiffusionPipeline",
    "text_encoder": ["transformers", "CLIPTextModel"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
  }
  (pipeline / "model_index.json").write_text(json.dumps(index))
  config = transformers.T5Config(
    vocab_size=384,
    d_model=16,
    d_kv=8,
    d_ff=32,
    num_heads=2,
    num_layers=2,
    num_decoder_layers=1,
    feed_forward_proj="gated-gelu",
    tie_word_embeddings=False,
  )
  byt5 = transformers.T5ForConditionalGeneration(config)
  byt5.save_pretrained(folder / "byt5-base")
  return folder, unet, vae, byt5


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
  folder = tmp_path_factory.mktemp("pictures")
  for i in range(6):
    image = np.full((20, 20, 3), 40 * i, np.uint8)
    Image.fromarray(image).save(folder / f"{i}.png")
    (folder / f"{i}.txt").write_text(f"shade {i}")
  return folder


def command(folder, *arguments):
  """`byt5-diffusion ...`, from another directory."""
  done = subprocess.run(
    [sys.executable, "-m", "byt5_diffusion.cli", *map(str, arguments)],
    cwd=folder,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
  )
  return done.returncode, done.stdout + done.stderr


def flags(published, pictures, **overrides):
  folder = published[0]
  values = {
    **loading.TINY_SIZES,
    **RUN,
    "MIXTURE_OR_TASK_NAME": f"image_caption_folder:{pictures}@16x16",
    "UNET_PATH": str(folder / "stable-diffusion-2-1"),
    "BYT5_PATH": str(folder / "byt5-base"),
    **overrides,
  }
  return [f"--gin.{name}={value!r}" for name, value in values.items()]


@pytest.mark.slow
def test_a_published_unet_learns_to_read_byt5(published, pictures, tmp_path):
  run = tmp_path / "run"
  given = ["train", RECIPE, "--model_dir", run]
  steps = flags(published, pictures, TRAIN_STEPS=1)
  code, said = command(tmp_path, *given, *steps)
  assert code == 0, said

  report = json.loads((run / "initial_checkpoint.json").read_text())
  fresh = set(report["fresh"])
  assert fresh and all(
    name.split("/")[-3:-1] in (["cross_attention", x] for x in ("key", "value"))
    for name in fresh
  )
  assert f"{len(fresh)} start fresh" in said and "left unused" in said

  _, unet, vae, byt5 = published
  frozen = checkpoints.load_tree(run / "frozen")
  np.testing.assert_array_equal(
    frozen["text_encoder"]["encoder"]["layers_1"]["mlp"]["wo"]["kernel"],
    byt5.encoder.block[1].layer[1].DenseReluDense.wo.weight.detach().T,
  )
  np.testing.assert_array_equal(
    frozen["codec"]["decoder"]["conv_in"]["kernel"],
    vae.decoder.conv_in.weight.detach().permute(2, 3, 1, 0),
  )
  # One step of 5e-5 at most: what was taken is still there.
  restored = checkpoints.restore_params(run, 1, ema=False).params
  np.testing.assert_allclose(
    restored["unet"]["conv_in"]["kernel"],
    unet.conv_in.weight.detach().permute(2, 3, 1, 0),
    atol=1e-4,
  )

  code, said = command(
    tmp_path, *given, *flags(published, pictures, TRAIN_STEPS=2)
  )
  assert code == 0 and (run / "checkpoint_2").exists(), said
  code, said = command(
    tmp_path, "generate", "a cat", "--model_dir", run, "--out", "cat.png"
  )
  assert code == 0, said
  assert Image.open(tmp_path / "cat.png").size == (16, 16)


def test_another_size_of_the_checkpoint_is_told_before_anything_compiles(
  published, pictures, tmp_path
):
  wrong = flags(published, pictures, TRAIN_STEPS=1, UNET_CHANNELS=(8, 24))
  given = ["train", RECIPE, "--model_dir", tmp_path / "run"]
  code, said = command(tmp_path, *given, *wrong)
  assert code == 2 and "Traceback" not in said
  assert "shapes differ" in said and "down_blocks_1" in said
