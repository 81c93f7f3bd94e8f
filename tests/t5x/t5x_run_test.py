"""Trains, resumes, scores and draws under T5X: the same recipes, by its main.

Two formats of checkpoints and two meshes, a text encoder that is trained and
one that is frozen and pretrained, each at least once:

  orbax, 1 device    trained; the loss is that of our own trainer
  legacy, 2 x 2      trained; the loss is that of one device
  legacy, 1 device   frozen, from a checkpoint of ByT5; two micro-batches
  orbax, 2 x 2       frozen, from the encoder that legacy, 2 x 2 trained
"""

import base64
import contextlib
import dataclasses
import json
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import t5x_command
from PIL import Image

from byt5_diffusion import checkpoints, config, stored_trees
from byt5_diffusion.data.writing import fonts

pytestmark = pytest.mark.slow

FROZEN = "flax_mutables/frozen/text_encoder/"
KINDS = ("orbax_1", "legacy_4", "legacy_1", "orbax_4")
TEXTS = ("cab", "где", "नम", "日本") * 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
  """One row of the table above: how T5X is called for it."""

  name: str
  work: pathlib.Path
  server: t5x_command.Server
  bindings: dict[str, Any]
  files: tuple[str, ...] = ("experiments/tiny.gin",)

  @property
  def model_dir(self) -> pathlib.Path:
    return self.work / self.name

  def call(self, mode: str, **bindings: Any) -> None:
    """Runs tools/t5x_main.py."""
    devices = int(self.name[-1])
    more: dict[str, Any] = {"USE_ORBAX": "orbax" in self.name}
    files = self.files if mode == "train" else self.files[:1]
    if devices == 4:
      files = (*files, "partitioning/model_parallel.gin")
      more |= {"NUM_PARTITIONS": None, "MODEL_PARALLEL_SUBMESH": (1, 1, 1, 2)}
    flags = [
      f"--run_mode={mode}",
      *(f"--gin_file={name}" for name in files),
      *t5x_command.flags(more | bindings),
    ]
    if self.name == "orbax_1" and mode == "train":
      tool = str(t5x_command.TOOL)
      t5x_command.run(tool, *flags, work=self.work, devices=devices)
    else:
      self.server.run(*flags, devices=devices)

  def train(self, model_dir: pathlib.Path) -> None:
    """20 steps, or what is left of them."""
    self.call(
      "train",
      MODEL_DIR=str(model_dir),
      **{"__main__.train.stats_period": 1},
      **self.bindings,
    )


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  if not fonts.available_scripts(["Latn"]):
    pytest.skip("no font for Latin here: run `python tools/fetch_fonts.py`")
  return tmp_path_factory.mktemp("t5x")


@pytest.fixture(scope="module")
def server(work: pathlib.Path) -> Iterator[t5x_command.Server]:
  with contextlib.closing(t5x_command.Server(work)) as server:
    yield server


@pytest.fixture(scope="module")
def trained(
  work: pathlib.Path, server: t5x_command.Server, shared_data: pathlib.Path
) -> Callable[[str], Kind]:
  """kind -> Kind, trained for 20 steps when it is first asked for."""
  pretrained = (
    "experiments/tiny_frozen.gin",
    "runs/t5x_pretrained_encoder.gin",
  )
  byt5 = shared_data / "fixtures" / "t5x" / "legacy" / "checkpoint_3"
  other = work / "legacy_4" / "checkpoint_20"
  rows: dict[str, dict[str, Any]] = {
    "orbax_1": {"bindings": {}},
    "legacy_4": {"bindings": {}},
    "legacy_1": {
      "files": pretrained,
      "bindings": {
        "INITIAL_CHECKPOINT_PATH": str(byt5),
        "Trainer.num_microbatches": 2,
      },
    },
    "orbax_4": {
      "files": pretrained,
      "bindings": {
        "INITIAL_CHECKPOINT_PATH": str(other),
        "t5x_hooks.only.source": "target/text_encoder",
      },
    },
  }
  kinds = {
    name: Kind(name=name, work=work, server=server, **row)
    for name, row in rows.items()
  }

  def get(name: str) -> Kind:
    if name == "orbax_4":
      get("legacy_4")
    kind = kinds[name]
    if not kind.model_dir.exists():
      kind.train(kind.model_dir)
    return kind

  return get


@pytest.fixture(scope="module")
def pictures(work: pathlib.Path) -> dict[str, Any]:
  """Bindings of a folder of pictures, whose name only our hook can read."""
  folder = work / "pictures"
  folder.mkdir()
  rng = np.random.default_rng(0)
  for i, text in enumerate(TEXTS):
    pixels = rng.integers(0, 256, (16, 40, 3), np.uint8)
    Image.fromarray(pixels).save(folder / f"{i:02}.png")
    (folder / f"{i:02}.txt").write_text(text, "utf-8")
  return {
    "MIXTURE_OR_TASK_NAME": f"image_caption_folder:{folder}@16x40",
    "MIXTURE_OR_TASK_MODULE": "byt5_diffusion.tasks.image_caption_folder",
    "DatasetConfig.split": "train",
  }


def text_encoder(arrays: dict[str, Any], prefix: str) -> dict[str, np.ndarray]:
  """The encoder's arrays without the prefix of their names."""
  return {
    name.removeprefix(prefix): x
    for name, x in arrays.items()
    if name.startswith(prefix)
  }


def equal(first: dict[str, Any], second: dict[str, Any]) -> bool:
  """Whether both have the same names and the same bits."""
  return first.keys() == second.keys() and all(
    np.array_equal(first[name], second[name]) for name in first
  )


def read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
  return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


# --- training -----------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_training_learns_and_leaves_what_t5x_leaves(
  trained: Callable[[str], Kind], name: str
) -> None:
  kind = trained(name)
  losses = t5x_command.losses(kind.model_dir)
  assert list(losses) == list(range(1, 21))
  values = list(losses.values())
  assert np.mean(values[-5:]) < 0.9 * np.mean(values[:5])
  names = {path.name for path in kind.model_dir.iterdir()}
  assert {"checkpoint_10", "checkpoint_20", "config.gin", "train"} <= names
  first, last = (t5x_command.saved(kind.model_dir, step) for step in (0, 20))
  learnt = [x for x in first if not np.array_equal(first[x], last[x])]
  assert len(learnt) > 0.5 * len(first)


def test_wide_parameters_are_split_over_pairs_of_devices(
  trained: Callable[[str], Kind],
) -> None:
  parameter = "text_encoder/encoder/layers_0/mlp/wi_0/kernel"
  info = (trained("legacy_4").model_dir / "model-info.txt").read_text("utf-8")
  [line] = [
    x for x in info.splitlines() if x.startswith(f"Variable {parameter} ")
  ]
  assert "(embed=16, mlp=32)" in line and "(None, 'model')" in line
  # Frozen ones, too: frozen_axes names their axes.
  checkpoint = trained("orbax_4").model_dir / "checkpoint_20"
  shardings = json.loads((checkpoint / "state" / "_sharding").read_text())
  name = f"flax_mutables/frozen/{parameter}".replace("/", ".")
  sharding = json.loads(shardings[base64.b64encode(name.encode()).decode()])
  assert sharding["partition_spec"] == [None, "model"]
  assert sharding["shape"] == [2, 2]


def test_our_trainer_has_the_same_losses_and_ends_at_the_same_parameters(
  trained: Callable[[str], Kind], work: pathlib.Path
) -> None:
  """The same recipe and RANDOM_SEED: initial values, data, noise, dropout."""
  model_dir = work / "ours"
  bindings = {
    "MODEL_DIR": str(model_dir),
    "trainer.train.log_period": 1,
    "SAMPLE_PERIOD": 0,
  }
  t5x_command.run(
    *("-m", "byt5_diffusion.main", "--run_mode=train"),
    "--gin_file=experiments/tiny.gin",
    *t5x_command.flags(bindings),
    work=work,
  )
  ours = {
    line["step"]: line["train/loss"]
    for line in read_lines(model_dir / "metrics.jsonl")
    if "train/loss" in line
  }
  theirs = t5x_command.losses(trained("orbax_1").model_dir)
  assert list(ours) == list(theirs) == list(range(1, 21))
  np.testing.assert_allclose(
    list(ours.values()), list(theirs.values()), rtol=1e-5
  )
  params = stored_trees.flatten_names(
    checkpoints.restore_params(model_dir, ema=False).params
  )
  target = t5x_command.saved(trained("orbax_1").model_dir, 20)
  assert params.keys() == target.keys()
  for name, value in params.items():
    np.testing.assert_allclose(value, target[name], rtol=1e-4, atol=1e-5)


def test_losses_do_not_depend_on_the_mesh(
  trained: Callable[[str], Kind],
) -> None:
  one, four = (
    list(t5x_command.losses(trained(name).model_dir).values())
    for name in ("orbax_1", "legacy_4")
  )
  np.testing.assert_allclose(one, four, rtol=1e-5)


@pytest.mark.parametrize("name", ["legacy_1", "orbax_4"])
def test_a_frozen_encoder_is_the_pretrained_one_to_the_last_bit(
  trained: Callable[[str], Kind], shared_data: pathlib.Path, name: str
) -> None:
  kind = trained(name)
  if name == "legacy_1":
    fixture = np.load(shared_data / "fixtures" / "t5x" / "params_flat.npz")
    whole = {key: fixture[key] for key in fixture.files}
    wanted = {k: x for k, x in whole.items() if "decoder" not in k}
  else:
    target = t5x_command.saved(trained("legacy_4").model_dir, 20)
    wanted = text_encoder(target, "text_encoder/")
  assert "encoder/encoder_norm/scale" in wanted
  for step in (0, 20):
    arrays = t5x_command.saved(kind.model_dir, step)
    assert equal(text_encoder(arrays, FROZEN), wanted)
    assert not text_encoder(arrays, "text_encoder/")


@pytest.mark.parametrize("name", KINDS)
def test_a_run_that_goes_on_is_the_run_that_was_not_stopped(
  trained: Callable[[str], Kind], name: str
) -> None:
  """Parameters, moments, frozen weights and the place in the data."""
  kind = trained(name)
  stopped = kind.work / f"{name}_stopped"
  shutil.copytree(kind.model_dir, stopped)
  shutil.rmtree(stopped / "checkpoint_20")
  shutil.rmtree(stopped / "train")
  kind.train(stopped)
  losses = t5x_command.losses(stopped)
  whole = t5x_command.losses(kind.model_dir)
  assert losses == {step: whole[step] for step in range(11, 21)}
  assert equal(
    t5x_command.saved(stopped, 20), t5x_command.saved(kind.model_dir, 20)
  )


# --- evaluation and inference -------------------------------------------------


@pytest.fixture(scope="module")
def scores(
  trained: Callable[[str], Kind], pictures: dict[str, Any]
) -> Callable[[str], dict[tuple[int, ...], float]]:
  """kind -> {example_id: score} by T5X's eval, which is called once."""
  found: dict[str, dict[tuple[int, ...], float]] = {}

  def get(name: str) -> dict[tuple[int, ...], float]:
    if name not in found:
      kind = trained(name)
      output = kind.work / f"{name}_eval"
      kind.call(
        "eval",
        CHECKPOINT_PATH=str(kind.model_dir / "checkpoint_20"),
        EVAL_OUTPUT_DIR=str(output),
        **pictures,
      )
      [metrics] = (output / "inference_eval").glob("*-metrics.jsonl")
      [line] = read_lines(metrics)
      [results] = (output / "inference_eval").glob("*-000020.jsonl")
      lines = read_lines(results)
      assert {x["target"] for x in lines} <= set(TEXTS)
      found[name] = {tuple(x["input"]["example_id"]): x["score"] for x in lines}
      assert line["step"] == 20
      np.testing.assert_allclose(
        line["loss"], -np.mean(list(found[name].values())), rtol=1e-6
      )
    return found[name]

  return get


@pytest.mark.parametrize("name", KINDS)
def test_eval_scores_every_example(
  scores: Callable[[str], dict[tuple[int, ...], float]], name: str
) -> None:
  values = scores(name)
  assert len(values) > 8  # More than one batch, and not a multiple of it.
  assert len(values) % 8
  assert all(-10 < score < -0.1 for score in values.values())
  assert len(set(values.values())) == len(values)


def test_scores_do_not_depend_on_mesh_or_format(
  scores: Callable[[str], dict[tuple[int, ...], float]],
) -> None:
  one, four = scores("orbax_1"), scores("legacy_4")
  assert one.keys() == four.keys()
  for key, score in one.items():
    np.testing.assert_allclose(four[key], score, rtol=1e-4)


@pytest.mark.parametrize(
  ("name", "mode"),
  [
    ("orbax_1", "predict_with_aux"),
    ("legacy_4", "predict"),
    ("legacy_1", "score"),
    ("orbax_4", "predict_with_aux"),
  ],
)
def test_infer_writes_a_line_and_pictures_per_example(
  trained: Callable[[str], Kind],
  scores: Callable[[str], dict[tuple[int, ...], float]],
  pictures: dict[str, Any],
  name: str,
  mode: str,
) -> None:
  kind, wanted = trained(name), scores(name)
  output = kind.work / f"{name}_infer"
  kind.call(
    "infer",
    CHECKPOINT_PATH=str(kind.model_dir / "checkpoint_20"),
    INFER_OUTPUT_DIR=str(output),
    INFER_MODE=mode,
    **pictures,
    # Two files of results, which T5X puts together.
    **{"__main__.infer.checkpoint_period": 1},
  )
  [results] = (x for x in output.glob("*.jsonl-*") if re.search(r"\d$", x.name))
  lines = read_lines(results)
  assert [tuple(x["example_id"]) for x in lines] == list(wanted)
  assert not list(output.glob("tmp-*"))
  for line in lines:
    assert line["text"] in TEXTS
    score = wanted[tuple(line["example_id"])]
    if mode == "score":
      np.testing.assert_allclose(line["score"], score, rtol=1e-5)
    if mode == "predict_with_aux":
      np.testing.assert_allclose(line["aux"]["loss"], -score, rtol=1e-5)
  pngs = list(output.glob("*-images/*.png"))
  if mode == "score":
    assert not pngs
    return
  assert len(pngs) == 2 * len(lines)
  sources = {
    np.asarray(Image.open(path)).tobytes()
    for path in (kind.work / "pictures").glob("*.png")
  }
  drawn = [np.asarray(Image.open(output / x["image"])) for x in lines]
  targets = {Image.open(output / x["target"]).tobytes() for x in lines}
  assert targets <= sources and len(targets) == len(lines)
  assert len({x.tobytes() for x in drawn}) == len(lines)
  assert all(x.shape == (16, 40, 3) and x.std() > 0 for x in drawn)


# --- a model that reads -------------------------------------------------------


def test_a_reader_learns_and_reads_under_t5x(
  work: pathlib.Path, server: t5x_command.Server, pictures: dict[str, Any]
) -> None:
  """experiments/tiny_ocr.gin: bytes, not pictures, come out of predict."""
  recipe = "--gin_file=experiments/tiny_ocr.gin"
  model_dir = work / "reader"
  numbers = {"TRAIN_STEPS": 20, "EVAL_PERIOD": 20, "CHECKPOINT_PERIOD": 20}
  numbers |= {"BATCH_SIZE": 8, "WARMUP_STEPS": 5, "EVAL_STEPS": 1}
  more = {"MODEL_DIR": str(model_dir), "__main__.train.stats_period": 1}
  flags = [f"--gin.{k}={v!r}" for k, v in (numbers | more).items()]
  server.run("--run_mode=train", recipe, *flags, devices=1)
  losses = list(t5x_command.losses(model_dir).values())
  assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
  folder = pictures["MIXTURE_OR_TASK_NAME"].partition(":")[2].partition("@")[0]
  reading = {
    "MIXTURE_OR_TASK_NAME": f"image_caption_folder_reading:{folder}@40x4",
    "MIXTURE_OR_TASK_MODULE": "byt5_diffusion.tasks.image_caption_folder",
    "DatasetConfig.split": "train",
    "BATCH_SIZE": 4,
    "CHECKPOINT_PATH": str(model_dir / "checkpoint_20"),
    "INFER_OUTPUT_DIR": str(work / "read"),
  }
  flags = [f"--gin.{k}={v!r}" for k, v in reading.items()]
  server.run("--run_mode=infer", recipe, *flags, devices=1)
  [results] = (
    x for x in (work / "read").glob("*.jsonl-*") if re.search(r"\d$", x.name)
  )
  lines = read_lines(results)
  assert lines
  for line in lines:
    assert line["text"] in TEXTS
    assert isinstance(line["prediction"], str)
    assert "\N{REPLACEMENT CHARACTER}" not in line["prediction"]


# --- gin ----------------------------------------------------------------------


RECIPES = sorted(
  f"experiments/{path.name}"
  for path in (config.gin_root() / "experiments").glob("*.gin")
)


@pytest.mark.parametrize("recipe", RECIPES)
def test_t5x_reads_every_recipe(
  server: t5x_command.Server, recipe: str
) -> None:
  """Its names exist, and nothing but the user's paths is left open."""
  flags = ["--run_mode=train", f"--gin_file={recipe}", "--dry_run"]
  # All but the first of few.
  paths = ["MODEL_DIR", "INITIAL_CHECKPOINT_PATH", "UNET_PATH", "BYT5_PATH"]
  flags += [f"--gin.{name}='/nowhere'" for name in paths]
  server.run(*flags, devices=1)


@pytest.mark.parametrize(
  ("mode", "names"),
  [
    ("train", ["MODEL_DIR"]),
    ("eval", ["CHECKPOINT_PATH", "EVAL_OUTPUT_DIR"]),
    ("infer", ["CHECKPOINT_PATH", "INFER_OUTPUT_DIR"]),
  ],
)
def test_a_program_asks_for_its_own_folders(
  server: t5x_command.Server, mode: str, names: list[str]
) -> None:
  recipe = "--gin_file=experiments/tiny.gin"
  for name in names:
    others = [f"--gin.{x}='/nowhere'" for x in names if x != name]
    with pytest.raises(AssertionError, match=f"{name}.*REQUIRED"):
      server.run(f"--run_mode={mode}", recipe, *others, devices=1)
