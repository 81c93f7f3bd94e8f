"""Wrong uses of the commands: code 2, and one line that says what to do.

What a module refuses is tested beside it, and mistakes in gin files in
gin_test and config_test; here are the mistakes that only a whole command meets.
"""

import pathlib
from collections.abc import Iterator

import gin
import jax
import numpy as np
import pytest
from PIL import Image

from byt5_diffusion import checkpoints, cli, config, train_state
from byt5_diffusion.data import (
  folder,
  pictures,
  text,
)
from byt5_diffusion.data.writing import fonts

TINY = "experiments/tiny.gin"
OWN = "experiments/own_pictures_64.gin"
JOINT = "experiments/tiny_joint.gin"
SMALL = [
  "--gin.BATCH_SIZE=8",
  "--gin.UNET_CHANNELS=(8,)",
  "--gin.UNET_TRANSFORMER_DEPTH=(1,)",
  "--gin.UNET_NUM_HEADS=(2,)",
  "--gin.UNET_NORM_GROUPS=4",
]
SAVED_STEP = 3


@pytest.fixture(autouse=True)
def clean_gin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
  monkeypatch.setattr(config, "_parsed", None)
  yield
  gin.clear_config()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """A run's folder at SAVED_STEP, without the training."""
  folder = tmp_path_factory.mktemp("run")
  bindings = [flag.removeprefix("--gin.") for flag in SMALL]
  config.parse(
    [TINY], [f"MODEL_DIR={str(folder)!r}", *bindings], run_mode="train"
  )
  config.write_configs(folder)
  model = gin.get_bindings("MODEL/gin.macro")["value"]
  shapes = model.input_shapes()
  state = jax.eval_shape(
    lambda rng: train_state.create(
      model.get_initial_variables(rng, shapes)["params"], model.optimizer_def.tx
    ),
    jax.random.key(0),
  )
  state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), state)
  checkpointer = checkpoints.Checkpointer(folder)
  extra = {"batch_size": 8, "frozen": None, "random_seed": 0}
  checkpointer.save(SAVED_STEP, state, b"", extra)
  checkpointer.close()
  gin.clear_config()
  return folder


@pytest.fixture
def work(
  run: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> pathlib.Path:
  """A working directory with things that are not what they should be."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / "file").write_text("something")
  (tmp_path / "page.html").write_text("mine")
  Image.new("RGB", (9, 5)).save(tmp_path / "picture.png")
  (tmp_path / "empty").mkdir()
  (tmp_path / "full").mkdir()
  (tmp_path / "full" / "a").write_text("mine")
  (tmp_path / "binary.gin").write_bytes(b"\xff\xfe\x00")
  (tmp_path / "run").symlink_to(run)
  model_gin = (run / "model.gin").read_text("utf-8")
  for name in ("no_checkpoint", "foreign", "other_size"):
    (tmp_path / name).mkdir()
    (tmp_path / name / "model.gin").write_text(model_gin, "utf-8")
  (tmp_path / "foreign" / "checkpoint_5").mkdir()
  (tmp_path / "foreign" / "checkpoint_5" / "data.bin").write_text("?")
  other = model_gin.replace("UNET_CHANNELS = (8,)", "UNET_CHANNELS = (16,)")
  assert other != model_gin
  (tmp_path / "other_size" / "model.gin").write_text(other, "utf-8")
  (tmp_path / "other_size" / f"checkpoint_{SAVED_STEP}").symlink_to(
    run / f"checkpoint_{SAVED_STEP}"
  )
  return tmp_path


def generate(model_dir: str, *flags: str, out: str = "o.png") -> list[str]:
  return ["generate", "a", "--model_dir", model_dir, "--out", out, *flags]


def train(model_dir: str, *flags: str, recipe: str = TINY) -> list[str]:
  small = SMALL if recipe == TINY else []
  return ["train", recipe, "--model_dir", model_dir, *small, *flags]


def own(name: str) -> list[str]:
  return train("new", f"--gin.MIXTURE_OR_TASK_NAME={name!r}", recipe=OWN)


def prepare(output_dir: str, *flags: str) -> list[str]:
  return ["prepare", TINY, "--output_dir", output_dir, *flags]


# What is typed, and all that the answer must name.
MISTAKES: dict[str, tuple[list[str], list[str]]] = {
  "folder without a model": (generate("empty"), ["empty/model.gin"]),
  "file for a folder": (generate("file"), ["file/model.gin"]),
  "model never saved": (
    generate("no_checkpoint"),
    ["no_checkpoint", "no complete checkpoint"],
  ),
  "checkpoint of another program": (
    generate("foreign"),
    ["checkpoint_5", "data.bin", "Choose another directory"],
  ),
  "weights of another model": (
    generate("other_size"),
    ["other_size does not fit", "unet/conv_in", "float32[8]", "float32[16]"],
  ),
  "step that is not there": (generate("run", "--step=99"), ["99", "[3]"]),
  "no sampling steps": (generate("run", "--num_steps=0"), ["num_steps=0"]),
  "no batch": (generate("run", "--batch_size=0"), ["batch_size=0"]),
  "guidance that is no number": (
    generate("run", "--guidance_scale=nan"),
    ["guidance_scale=nan", "finite"],
  ),
  "seed without end": (generate("run", "--seed", "9" * 20), ["seed=999", "64"]),
  "picture below a file": (
    generate("run", "--num_steps=1", out="file/o.png"),
    ["file"],
  ),
  "file for a run": (train("file"), ["file is a file, not a directory"]),
  "run with another seed": (
    train("run", "--gin.RANDOM_SEED=5"),
    ["random_seed = 0", "this command 5", "another MODEL_DIR"],
  ),
  "run of another model": (
    train("run", "--gin.UNET_CHANNELS=(16,)"),
    ["does not fit", "params/unet/conv_in", "float32[8]", "float32[16]"],
  ),
  "no prepared data": (
    train("new", "--gin.PREPARED_DIR='nowhere'"),
    ["nowhere", "manifest.json", "`prepare`"],
  ),
  "no examples": (train("new", "--gin.BATCH_SIZE=0"), ["BATCH_SIZE", "0"]),
  "no steps": (train("new", "--gin.TRAIN_STEPS=0"), ["total_steps=0"]),
  "streams that do not divide": (
    train("new", "--gin.NUM_STREAMS=3"),
    ["batch_size=8", "num_streams=3"],
  ),
  "devices that are not there": (
    train("new", "--gin.NUM_PARTITIONS=3"),
    ["num_partitions=3", "devices"],
  ),
  "no such task": (
    train("new", "--gin.MIXTURE_OR_TASK_NAME='typografy_words'"),
    ["'typografy_words'", "typography_words_tiny"],
  ),
  "no such module of tasks": (
    train("new", "--gin.MIXTURE_OR_TASK_MODULE='byt5_diffusion.tasks.words'"),
    ["mixture_or_task_module", "byt5_diffusion.tasks.words"],
  ),
  "another size than the task's": (
    train("new", "--gin.IMAGE_HEIGHT=32"),
    ["is 32", "are 16 x 40"],
  ),
  "no room for a caption": (
    train("new", "--gin.MAX_TEXT_LENGTH=0"),
    ["max_text_length=0", "positive", "MAX_TEXT_LENGTH"],
  ),
  "frozen weights that are not there": (
    [
      *train("new", recipe="experiments/tiny_frozen.gin"),
      "--gin.trainer.train.frozen_checkpoint='nowhere'",
    ],
    ["nowhere"],
  ),
  "no pictures": (
    own("image_caption_folder:empty@64x64"),
    ["empty holds no pictures", ".png"],
  ),
  "no folder of pictures": (
    own("image_caption_folder:nowhere@64x64"),
    ["nowhere is not a folder"],
  ),
  "folder without a size": (
    own("image_caption_folder:empty"),
    ["image_caption_folder:/path/to/photos@64x64"],
  ),
  "shards over something else": (
    prepare("full"),
    ["full exists and is not empty", "another output_dir"],
  ),
  "shards below a file": (prepare("file/x", "--num_examples=1"), ["file"]),
  "no examples to prepare": (prepare("x", "--num_examples=0"), ["'train'"]),
  "no shards": (
    prepare("x", "--num_examples=1", "--num_shards=0"),
    ["num_shards=0"],
  ),
  "no such split": (
    prepare("x", "--num_examples=1", "--split=trian"),
    ["'trian'", "['train', 'validation']"],
  ),
  "nothing to score": (
    ["eval", TINY, "--model_dir", "empty"],
    ["empty holds no complete checkpoint"],
  ),
  "picture that is not there": (
    ["ocr", "nowhere.png", "--model_dir", "run"],
    ["nowhere.png"],
  ),
  "picture that is none": (
    ["ocr", "file", "--model_dir", "run"],
    ["file", "not an image"],
  ),
  "reading by a model that draws": (
    ["ocr", "picture.png", "--model_dir", "run"],
    ["run", "draws, but does not read", "models/joint.gin"],
  ),
  "reading without a model": (
    ["ocr", "picture.png", "--model_dir", "empty"],
    ["empty/model.gin"],
  ),
  "recipe that does not read": (
    ["read", TINY, "--model_dir", "run"],
    ["runs/read.gin"],
  ),
  "info of nothing": (["info", "nowhere"], ["nowhere"]),
  "info of a file": (["info", "file"], ["file"]),
  "info of a step that is not there": (
    ["info", "run", "--step=99"],
    ["99", "[3]"],
  ),
  "info with settings": (
    ["info", "run", "--gin.X=1"],
    ["info takes no --gin."],
  ),
  "validating a recipe that is not there": (
    ["validate", "experiments/tyni.gin"],
    ["no gin file experiments/tyni.gin"],
  ),
  "validating with a mistyped setting": (
    ["validate", TINY, "--gin.TRAIN_STEP=5"],
    ["TRAIN_STEP", "TRAIN_STEPS"],
  ),
  "validating into something else": (
    ["validate", TINY, "--no_data", "--out", "report.pdf"],
    ["report.pdf", ".html"],
  ),
  "inspecting no batches": (["inspect", TINY, "--batches=0"], ["batches"]),
  "inspecting over a file": (
    ["inspect", TINY, "--out", "page.html"],
    ["page.html exists", "--overwrite"],
  ),
  "inspecting a split that is not there": (
    ["inspect", TINY, "--split=trian", "--json"],
    ["'trian'", "train"],
  ),
  "starting from nothing": (
    train("new", "--initial_checkpoint", "nowhere"),
    ["nowhere"],
  ),
  "starting from another model": (
    train("new", "--initial_checkpoint", "run", "--gin.UNET_CHANNELS=(16,)"),
    ["unet/conv_in", "float32[8]", "float32[16]"],
  ),
  "rules that match nothing": (
    train(
      "new",
      "--initial_checkpoint=run",
      "--gin.ASSIGNMENT_RULES=[('unte/.*', None), ('(.*)', r'\\1')]",
    ),
    ["unte/.*", "matches no parameter"],
  ),
  "converting nothing": (
    ["convert", "nowhere", "x"],
    ["nowhere", "Nothing is downloaded"],
  ),
  "converting a name of a hub": (
    ["convert", "google/byt5-base", "x"],
    ["google/byt5-base", "hf download"],
  ),
  "converting something else": (
    ["convert", "picture.png", "x"],
    ["picture.png", ".safetensors"],
  ),
  "converting a folder of something else": (
    ["convert", "full", "x"],
    ["full", "no complete checkpoint", "config.json"],
  ),
  "converting over a folder": (
    ["convert", "run", "full"],
    ["full exists", "not overwritten"],
  ),
  "converting below a file": (["convert", "run", "file/x"], ["file"]),
  "converting into a file without its suffix": (
    ["convert", "run", "x.bin", "--to=single_file"],
    ["x.bin", ".safetensors"],
  ),
  "converting a network that is not there": (
    ["convert", "run", "x", "--kind=clip_image"],
    ["run holds no clip_image"],
  ),
  "converting with another hash": (
    ["convert", "run", "x", f"--sha256=extra/metadata={'0' * 64}"],
    ["metadata has the sha256", "000 was asked for"],
  ),
  "converting with no hash": (
    ["convert", "run", "x", "--sha256=abc"],
    ["abc", "64 hexadecimal digits"],
  ),
  "stacking what is no tree": (
    ["convert", "run", "x", "--to=diffusers", "--scan_layers"],
    ["--scan_layers", "diffusers"],
  ),
  "converting a UNet that its peer does not have": (
    ["convert", "run", "x", "--to=diffusers"],
    ["diffusers"],
  ),
  "converting what has no average without it": (
    ["convert", "file", "x", "--raw"],
    ["--raw is for a run", "file is none"],
  ),
  "converting with settings": (
    ["convert", "run", "x", "--gin.X=1"],
    ["convert takes no --gin."],
  ),
  "hosts without an address": (
    train("new", "--process_count=2", "--process_index=0"),
    ["--coordinator_address"],
  ),
  "a reader's recipe with a patch that does not fit": (
    train("new", "--gin.PATCH_SIZE=3", "--gin.BATCH_SIZE=8", recipe=JOINT),
    ["patch_size=3", "image_size=(16, 40)"],
  ),
  "recipe that is no text": (
    ["train", "binary.gin", "--model_dir", "new"],
    ["binary.gin", "cannot be read as text"],
  ),
  "folder for a recipe": (
    ["train", "empty", "--model_dir", "new"],
    ["no gin file empty"],
  ),
}
# Lists of every parameter that differs are longer.
MANY_LINES = {"weights of another model", "run of another model"}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_ends_with_code_2_and_an_answer(
  mistake: str, work: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
  arguments, says = MISTAKES[mistake]
  if TINY in arguments and not fonts.available_scripts(["Latn"]):
    pytest.skip("no font for Latin here: run `python tools/fetch_fonts.py`")
  before = sorted(path.name for path in work.rglob("*"))
  assert cli.main(arguments) == 2
  error = capsys.readouterr().err
  assert "Traceback" not in error and "In call to" not in error
  _, _, answer = error.partition("Error: ")
  for word in says:
    assert word in answer, answer[:500]
  if mistake not in MANY_LINES:
    assert answer.count("\n") == 1, answer
  # Nothing is broken, and nothing half-done is left.
  left = {path.name for path in work.rglob("*")} - set(before)
  assert left <= {"new"}, left
  assert (work / "full" / "a").read_text() == "mine"
  assert (work / "page.html").read_text() == "mine"
  assert checkpoints.committed_steps(work / "run") == [SAVED_STEP]


def test_any_text_can_be_drawn(
  run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
  """Also none, one that is no valid UTF-8, and more than fits."""
  texts = ["", " ", "caf\udce9", "\0", "x" * 200_000, "👩‍👩‍👧‍👦" * 9, "\u202e"]
  flags = ["--model_dir", str(run), "--num_steps=1", "--guidance_scale=1"]
  out = str(tmp_path / "o.png")
  assert cli.main(["generate", *texts, "--out", out, *flags]) == 0
  for i in range(len(texts)):
    with Image.open(tmp_path / f"o-{i}.png") as image:
      assert image.size == (40, 16)


def test_any_caption_file_can_be_read(tmp_path: pathlib.Path) -> None:
  captions = {
    "a": (b"caf\xe9", "caf\ufffd"),
    "b": ("\ufeffgrößer\r\n".encode(), "größer"),
    "c": (b"x" * 10_000_000, "x" * 15),
  }
  for name, (raw, _) in captions.items():
    (tmp_path / f"{name}.txt").write_bytes(raw)
    Image.new("RGB", (9, 5)).save(tmp_path / f"{name}.png")
  source = folder.FolderSource(tmp_path, validation_share=0)
  frame = pictures.Frame(height=4, width=4)
  for i, (_, caption) in enumerate(captions.values()):
    example = source.read("train", i, picture=frame, max_length=16)
    assert text.decode(example["text_tokens"]) == caption
