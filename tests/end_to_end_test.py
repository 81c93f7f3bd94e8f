"""The recipe that users start with, by the commands that they type.

experiments/tiny.gin at a size that compiles fast: trained, resumed, scored,
drawn and generated, by live SeqIO and from prepared shards.
"""

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import gin
import jax
import numpy as np
import pytest
import tiny
import toy_pieces
from PIL import Image

from byt5_diffusion import checkpoints, config, recipes, stored_trees
from byt5_diffusion import main as main_lib
from byt5_diffusion.data.writing import fonts

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Recipes of published weights need such: peers/published_recipe_test.py.
RECIPES = sorted(
  f"experiments/{path.name}"
  for path in (config.gin_root() / "experiments").glob("*.gin")
  if "finetune_published.gin" not in path.read_text("utf-8")
)
SMALL = {
  "BATCH_SIZE": 8,
  "TRAIN_STEPS": 2,
  "WARMUP_STEPS": 1,
  "EVAL_STEPS": 1,
  "SAMPLE_TEXTS": ["cab", "где"],
  "BYT5_EMBED_DIM": 16,
  "BYT5_HEAD_DIM": 8,
  "BYT5_MLP_DIM": 32,
  "UNET_CHANNELS": (8,),
  "UNET_TRANSFORMER_DEPTH": (1,),
  "UNET_MID_TRANSFORMER_DEPTH": 0,
  "UNET_NUM_HEADS": (2,),
  "UNET_NORM_GROUPS": 4,
  "models.TextToImageModel.num_sampling_steps": 2,
}
TENSORFLOW = ("tensorflow", "tensorflow_text", "tensorflow_datasets", "seqio")
WITHOUT = """
import sys
sys.modules.update(dict.fromkeys({names!r}))
from byt5_diffusion import cli
sys.exit(cli.main(sys.argv[1:]))
"""


def flags(**overrides: Any) -> list[str]:
  values = SMALL | overrides
  return [f"--gin.{name}={value!r}" for name, value in values.items()]


def run(
  cache: pathlib.Path, *command: str, code: int = 0
) -> subprocess.CompletedProcess[str]:
  """A command, from a directory that is not the checkout."""
  done = subprocess.run(
    [sys.executable, *command],
    cwd=cache,
    env=os.environ
    | {
      "PYTHONPATH": os.pathsep.join(
        [str(ROOT), os.environ.get("PYTHONPATH", "")]
      ),
      "JAX_COMPILATION_CACHE_DIR": str(cache / "xla"),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    },
    capture_output=True,
    text=True,
  )
  assert done.returncode == code, done.stdout + done.stderr
  return done


def main(*flags: str) -> list[str]:
  return ["-m", "byt5_diffusion.main", *flags]


def cli_without(names: Sequence[str], *arguments: str) -> list[str]:
  """`byt5-diffusion ...` where these packages are not installed."""
  return ["-c", WITHOUT.format(names=names), *arguments]


def losses(model_dir: pathlib.Path) -> list[float]:
  """Of the training lines in metrics.jsonl."""
  lines = (model_dir / "metrics.jsonl").read_text("utf-8").splitlines()
  records = [json.loads(line) for line in lines]
  return [x["train/loss"] for x in records if "train/loss" in x]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """A working directory, which also keeps compiled programs."""
  if not fonts.available_scripts(["Latn"]):
    pytest.skip("no font for Latin here: run `python tools/fetch_fonts.py`")
  return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def trained(work: pathlib.Path) -> pathlib.Path:
  """MODEL_DIR after two steps on live SeqIO data."""
  model_dir = work / "live"
  run(
    work,
    *main("--run_mode=train", "--gin_file=experiments/tiny.gin"),
    *flags(MODEL_DIR=str(model_dir)),
  )
  return model_dir


def test_training_leaves_what_a_user_looks_for(trained: pathlib.Path) -> None:
  assert checkpoints.committed_steps(trained) == [2]
  names = {path.name for path in trained.iterdir()}
  assert {"config.gin", "model.gin", "metrics.jsonl", "samples"} <= names
  [loss] = losses(trained)
  assert 0.1 < loss < 10
  with Image.open(trained / "samples" / "step_00000002.png") as grid:
    assert grid.size[0] >= 2 * 40


def test_generate_needs_no_tensorflow(
  work: pathlib.Path, trained: pathlib.Path
) -> None:
  arguments = ["generate", "cab", "где", "--model_dir", str(trained)]
  done = run(
    work,
    *cli_without(TENSORFLOW, *arguments, "--out", "x.png", "--num_steps=2"),
  )
  assert "Wrote x-0.png." in done.stdout
  images = [np.asarray(Image.open(work / f"x-{i}.png")) for i in range(2)]
  assert images[0].shape == (16, 40, 3) and images[0].dtype == np.uint8
  assert (images[0] != images[1]).any() and images[0].std() > 0


@pytest.mark.parametrize("command", ["train", "prepare"])
def test_live_data_without_tensorflow_say_what_to_install(
  work: pathlib.Path, command: str
) -> None:
  """Also: what hides TensorFlow from the tests around this one does so."""
  output = {"train": "--model_dir", "prepare": "--output_dir"}[command]
  arguments = [command, "experiments/tiny.gin", output, "never"]
  done = run(work, *cli_without(TENSORFLOW, *arguments), code=2)
  assert "needs SeqIO and TensorFlow" in done.stderr
  assert "byt5-diffusion[data]" in done.stderr
  assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def prepared(work: pathlib.Path) -> pathlib.Path:
  """The first examples of both splits as shards."""
  done = run(
    work,
    *("-m", "byt5_diffusion.cli", "prepare", "experiments/tiny.gin"),
    *("--output_dir", "words", "--num_examples=16", "--num_shards=2"),
  )
  assert "PREPARED_DIR" in done.stdout
  return work / "words"


def test_prepared_shards_train_without_tensorflow(
  work: pathlib.Path, prepared: pathlib.Path, trained: pathlib.Path
) -> None:
  command = ["train", "experiments/tiny.gin", "--model_dir", "shards"]
  run(
    work,
    *cli_without(TENSORFLOW, *command, *flags(PREPARED_DIR=str(prepared))),
  )
  model_dir = work / "shards"
  assert checkpoints.committed_steps(model_dir) == [2]
  assert 0.1 < losses(model_dir)[0] < 10
  # Same seed, same model: the examples' order differs, and nothing else.
  first, second = (checkpoints.restore_params(d) for d in (trained, model_dir))
  assert jax.tree.structure(first.params) == jax.tree.structure(second.params)


@pytest.mark.slow
def test_live_and_prepared_examples_score_alike(
  work: pathlib.Path, prepared: pathlib.Path, trained: pathlib.Path
) -> None:
  command = ["eval", "experiments/tiny.gin", "--model_dir", str(trained)]
  run(
    work,
    *main("--run_mode=eval", "--gin_file=experiments/tiny.gin"),
    *flags(MODEL_DIR=str(trained), EVAL_OUTPUT_DIR="live_eval"),
    "--gin.evaluation.evaluate.eval_steps=1",
  )
  run(
    work,
    *cli_without(TENSORFLOW, *command, "--output_dir", "prepared_eval"),
    *flags(PREPARED_DIR=str(prepared)),
    "--gin.evaluation.evaluate.eval_steps=1",
  )
  scores = [
    json.loads((work / f"{name}_eval" / "metrics.json").read_text("utf-8"))
    for name in ("live", "prepared")
  ]
  assert scores[0] == scores[1]
  assert scores[0]["step"] == 2 and 0.1 < scores[0]["loss"] < 10


@pytest.mark.slow
def test_infer_draws_the_captions_of_a_split(
  work: pathlib.Path, trained: pathlib.Path
) -> None:
  run(
    work,
    *main("--run_mode=infer", "--gin_file=experiments/tiny.gin"),
    *flags(MODEL_DIR=str(trained), INFER_OUTPUT_DIR="drawn"),
    "--gin.inference.infer.num_examples=3",
  )
  lines = (work / "drawn" / "predictions.jsonl").read_text("utf-8").splitlines()
  records = [json.loads(line) for line in lines]
  assert len(records) == 3 and all(record["text"] for record in records)
  for record in records:
    for name in ("image", "target"):
      with Image.open(work / "drawn" / record[name]) as image:
        assert image.size == (40, 16)


@pytest.mark.slow
def test_the_same_command_with_more_steps_goes_on(work: pathlib.Path) -> None:
  """What a run that was never stopped ends with, to the last bit."""
  command = main("--run_mode=train", "--gin_file=experiments/tiny.gin")

  def train(name: str, steps: int) -> str:
    values = flags(MODEL_DIR=str(work / name), TRAIN_STEPS=steps)
    # A schedule as long as the run would not be the same one.
    values.append("--gin.optimizers.warmup_cosine.total_steps=4")
    return run(work, *command, *values).stderr

  train("resumed", 2)
  assert "going on from step 2" in train("resumed", 4)
  assert "going on" not in train("at_once", 4)
  ends = [
    checkpoints.restore_params(work / name, ema=False)
    for name in ("resumed", "at_once")
  ]
  assert [end.step for end in ends] == [4, 4]
  assert tiny.leaves_equal(ends[0].params, ends[1].params)
  assert len(losses(work / "resumed")) == 2


@pytest.mark.slow
def test_a_recipe_starts_from_another_run(
  work: pathlib.Path, trained: pathlib.Path, prepared: pathlib.Path
) -> None:
  """By the user's command; assignment_test.py looks at the bits."""
  command = ["train", "experiments/tiny_finetune.gin", "--model_dir", "tuned"]
  done = run(
    work,
    *cli_without(TENSORFLOW, *command, "--initial_checkpoint", str(trained)),
    *flags(PREPARED_DIR=str(prepared), LEARNING_RATE=3e-3),
    r"--gin.ASSIGNMENT_RULES=[('.*/relpos_bias/.*', None), ('(.*)', '\\1')]",
  )
  assert f"averaged weights of {trained}/checkpoint_2" in done.stderr
  assert "1 start fresh: text_encoder/encoder 1" in done.stderr
  assert checkpoints.committed_steps(work / "tuned") == [2]
  report = json.loads((work / "tuned/initial_checkpoint.json").read_text())
  expected = stored_trees.flatten_names(
    checkpoints.restore_params(trained).params
  )
  assert {*report["taken"], *report["fresh"]} == set(expected)


# --- Pictures of one's own ----------------------------------------------------


def pictures(folder: pathlib.Path, count: int, broken: str = "") -> str:
  """Fills a folder with captioned noise; returns the task's name."""
  folder.mkdir()
  rng = np.random.default_rng(0)
  for i in range(count):
    pixels = rng.integers(0, 255, (40 + i, 50, 3), np.uint8)
    Image.fromarray(pixels).save(folder / f"p{i:02}.jpg")
    (folder / f"p{i:02}.txt").write_text(f"picture {i} größer", "utf-8")
  if broken:
    path = folder / broken
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  return f"image_caption_folder:{folder}@64x64"


@pytest.mark.slow
def test_a_folder_of_pictures_trains(work: pathlib.Path) -> None:
  name = pictures(work / "photos", 24, broken="p03.jpg")
  recipe = "experiments/own_pictures_64.gin"
  done = run(
    work,
    *main("--run_mode=train", f"--gin_file={recipe}"),
    *flags(
      MODEL_DIR="own", MIXTURE_OR_TASK_NAME=name, ACTIVATION_DTYPE="float32"
    ),
  )
  assert checkpoints.committed_steps(work / "own") == [2]
  assert "p03.jpg: broken" in done.stderr


def test_a_folder_with_too_many_broken_pictures_is_refused(
  work: pathlib.Path,
) -> None:
  name = pictures(work / "few", 12, broken="p03.jpg")
  done = run(
    work,
    *("-m", "byt5_diffusion.cli", "prepare"),
    *("experiments/own_pictures_64.gin", "--output_dir", "few_shards"),
    *(f"--gin.MIXTURE_OR_TASK_NAME={name!r}", "--num_shards=1"),
    code=2,
  )
  assert "1 of 12 records cannot be used" in done.stderr
  assert "p03.jpg: broken" in done.stderr
  assert "Traceback" not in done.stderr
  assert not (work / "few_shards").exists()


# --- Every recipe -------------------------------------------------------------


@pytest.fixture
def clean_gin() -> Iterator[None]:
  yield
  gin.clear_config()


@pytest.mark.slow
@pytest.mark.usefixtures("clean_gin")
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_takes_a_step(
  recipe: str,
  work: pathlib.Path,
  trained: pathlib.Path,
  tmp_path: pathlib.Path,
) -> None:
  """Its own data, schedule, optimizer and dtype; the sizes of a test."""
  program = config.read([recipe])
  values = recipes.sized_down(program, 2)
  values |= {"TRAIN_STEPS": 1, "MODEL_DIR": str(tmp_path / "run")}
  values["trainer.train.num_microbatches"] = 2
  for model in ("TextToImageModel", "SuperResolutionModel"):
    if any(target.endswith(f".{model}") for target in program.targets()):
      values[f"{model}.num_sampling_steps"] = 2
  if "pictures" in recipe:
    name = pictures(tmp_path / "photos", 12)
    if "IMAGE_SIZE" in program.macros():
      values |= {"IMAGE_HEIGHT": 64, "IMAGE_SIZE": (64, 64)}
    if "ocr" in recipe:
      name = name.replace("folder:", "folder_reading:")
      name = name.replace("@64x64", "@64x16")
      values |= {"MAX_PATCHES": 64, "PATCH_SIZE": 16}
    values["MIXTURE_OR_TASK_NAME"] = name
  if "quoted" in recipe:
    spiece = toy_pieces.write(tmp_path / "spiece.model")
    name = config.read([recipe]).macro("MIXTURE_OR_TASK_NAME")
    values["MIXTURE_OR_TASK_NAME"] = name.replace(
      "=spiece.", f"={spiece.parent}/spiece."
    )
  if "finetune" in recipe:
    values = SMALL | {
      "BATCH_SIZE": 2,
      "INITIAL_CHECKPOINT_PATH": str(trained),
      "MODEL_DIR": str(tmp_path / "run"),
      "TRAIN_STEPS": 1,
    }
  bindings = [f"{name}={value!r}" for name, value in values.items()]
  main_lib.run("train", [recipe], bindings)
  assert checkpoints.committed_steps(tmp_path / "run") == [1]
