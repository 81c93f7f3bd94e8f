"""The two command lines: what they call, refuse, write and leave alone."""

import os
import re
import subprocess
import sys
import types

import gin
import numpy as np
import pytest
from PIL import Image

import byt5_diffusion
from byt5_diffusion import (
  cli,
  config,
  feature_converters,
  inference,
  model_commands,
)
from byt5_diffusion import main as main_lib

TOY = """
def train(*, model_dir: str, steps: int = 1) -> None:
  from byt5_diffusion import config_program
  if steps == 0:
    raise config_program.ConfigError("steps is 0: give more.")
  if steps < 0:
    raise ValueError("a bug")
  if steps == 7:
    raise KeyboardInterrupt
  with open(model_dir, "a") as file:
    file.write(f"{steps}")

def evaluate(*, checkpoint_path: str, output_dir: str) -> None:
  print("evaluating", checkpoint_path, output_dir)
"""
RECIPE = """
from __gin__ import dynamic_registration
import toy
MODEL_DIR = %gin.REQUIRED
CHECKPOINT_PATH = %MODEL_DIR
EVAL_OUTPUT_DIR = %gin.REQUIRED
toy.train.model_dir = %MODEL_DIR
toy.evaluate:
  checkpoint_path = %CHECKPOINT_PATH
  output_dir = %EVAL_OUTPUT_DIR
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
  """Two small programs in place of the real ones."""
  (tmp_path / "toy.py").write_text(TOY)
  (tmp_path / "recipe.gin").write_text(RECIPE)
  programs = {"train": "toy.train", "eval": "toy.evaluate"}
  monkeypatch.syspath_prepend(str(tmp_path))
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(config, "PROGRAMS", programs)
  monkeypatch.setattr(config, "_parsed", None)
  roots = {"roots": tuple(programs.values())}
  monkeypatch.setattr(
    config.parse, "__kwdefaults__", {**config.parse.__kwdefaults__, **roots}
  )
  sys.modules.pop("toy", None)
  yield tmp_path
  sys.modules.pop("toy", None)
  gin.clear_config()
  for name in [n for n in gin.config._REGISTRY._selector_map if "toy" in n]:
    gin.config._REGISTRY.pop(name)


class FakeGenerator:
  """Records how it is called; draws the seed."""

  calls: list  # set per test

  @classmethod
  def from_model_dir(cls, model_dir, **keywords):
    cls.calls.append((model_dir, keywords))
    return cls()

  def generate(self, texts, *, seed, **keywords):
    self.calls.append((list(texts), seed, keywords))
    return np.full((len(texts), 4, 6, 3), seed, np.uint8)


@pytest.fixture
def fake(monkeypatch):
  monkeypatch.setattr(FakeGenerator, "calls", [], raising=False)
  monkeypatch.setattr(inference, "Generator", FakeGenerator)
  return FakeGenerator.calls


def test_a_recipes_own_rules_win_over_initial_checkpoints(
  tmp_path, monkeypatch
):
  (tmp_path / "mine.gin").write_text(
    'include "experiments/tiny_finetune.gin"\n'
    'ASSIGNMENT_RULES = [(".*", None)]\n'
  )
  found = []
  monkeypatch.setattr(
    main_lib, "run", lambda _, *said, **__: found.append(config.read(*said))
  )
  recipe = str(tmp_path / "mine.gin")
  flags = ["--model_dir", "x", "--initial_checkpoint", "y"]
  assert not cli.main(["train", recipe, *flags])
  assert found[0].macro("ASSIGNMENT_RULES") == [(".*", None)]
  assert found[0].macro("INITIAL_CHECKPOINT_PATH") == "y"


# --- python -m byt5_diffusion.main --------------------------------------------


def test_main_runs_the_program_with_its_bindings(toy):
  flags = ["--run_mode=train", "--gin_file=recipe.gin"]
  code = main_lib.main(
    [*flags, "--gin.MODEL_DIR='a b'", "--gin_bindings=train.steps=3"]
  )
  assert code == 0
  assert (toy / "a b").read_text() == "3"  # a relative MODEL_DIR


def test_main_takes_search_paths_and_several_files(toy):
  (toy / "more").mkdir()
  (toy / "more" / "dir.gin").write_text("MODEL_DIR = 'out'\n")
  assert not main_lib.main(
    [
      "--run_mode=train",
      "--gin_file=recipe.gin",
      "--gin_file=dir.gin",
      "--gin_search_paths=nowhere,more",
    ]
  )
  assert (toy / "out").exists()


def test_a_dry_run_prints_and_runs_nothing(toy, capsys):
  assert not main_lib.main(
    [
      "--run_mode=train",
      "--gin_file=recipe.gin",
      "--gin.MODEL_DIR='out'",
      "--dry_run",
    ]
  )
  assert "MODEL_DIR = 'out'" in capsys.readouterr().out
  assert not (toy / "out").exists()


@pytest.mark.parametrize(
  ("flag", "says"),
  [
    ("--gin.train.steps=0", "Error: steps is 0: give more.\n"),
    ("--gin.train.steps='1'", "--gin.train.steps: toy.train.steps = needs int"),
    ("--gin.train.step=1", "Did you mean steps?"),
    ("--gin.MODEL_DIR=%gin.REQUIRED", "MODEL_DIR is not set"),
    ("--gin_file=recipes.gin", "no gin file recipes.gin"),
  ],
)
def test_a_user_s_error_is_a_line_and_code_2(toy, capsys, flag, says):
  code = main_lib.main(
    ["--run_mode=train", "--gin_file=recipe.gin", "--gin.MODEL_DIR='out'", flag]
  )
  error = capsys.readouterr().err
  assert code == 2
  assert says in error and error.startswith("Error: ")
  assert "Traceback" not in error and "In call to" not in error


def test_a_bug_keeps_its_traceback(toy):
  with pytest.raises(ValueError, match="a bug"):
    main_lib.main(
      [
        "--run_mode=train",
        "--gin_file=recipe.gin",
        "--gin.MODEL_DIR='out'",
        "--gin.train.steps=-1",
      ]
    )


def test_what_the_package_raises_on_purpose_is_a_message(capsys, tmp_path):
  """A constructor's ValueError, through all of gin's wrapping."""
  code = cli.main(
    [
      "train",
      "experiments/tiny.gin",
      f"--model_dir={tmp_path / 'run'}",
      "--gin.TextToImageModel.condition_dropout_rate=1.5",
    ]
  )
  gin.clear_config()
  error = capsys.readouterr().err
  assert code == 2 and "condition_dropout_rate=1.5" in error
  assert error.count("\n") == 1


def test_ctrl_c_is_no_traceback(toy, capsys):
  code = main_lib.main(
    [
      "--run_mode=train",
      "--gin_file=recipe.gin",
      "--gin.MODEL_DIR='out'",
      "--gin.train.steps=7",
    ]
  )
  assert code == 130
  assert capsys.readouterr().err == "Interrupted.\n"


def test_an_unknown_flag_names_the_nearest(capsys):
  with pytest.raises(SystemExit) as error:
    main_lib.main(["--run_mode=train", "--gin_flie=x"])
  assert error.value.code == 2
  assert "Did you mean --gin_file?" in capsys.readouterr().err


# --- byt5-diffusion ----------------------------------------------------------


def test_train_and_eval_need_no_quotes(toy, capsys):
  assert not cli.main(
    ["train", "recipe.gin", "--model_dir", "a 'b'", "--gin.train.steps=4"]
  )
  assert (toy / "a 'b'").read_text() == "4"
  assert not cli.main(["eval", "recipe.gin", "--model_dir", "run"])
  assert "evaluating run run/eval" in capsys.readouterr().out


@pytest.mark.parametrize(
  ("recipe", "task", "lengths", "features"),
  [
    (
      "experiments/tiny.gin",
      "typography_words_tiny",
      {"image": 16},
      feature_converters.FEATURES,
    ),
    (
      "experiments/tiny_ocr.gin",
      "typography_words_tiny_reading",
      {"patches": 40},
      feature_converters.READING_FEATURES,
    ),
  ],
)
def test_prepare_takes_task_and_lengths_from_the_recipe(
  recipe, task, lengths, features, tmp_path, monkeypatch
):
  called = {}
  module = types.ModuleType("byt5_diffusion.preparation")
  module.prepare = lambda **keywords: called.update(keywords)
  monkeypatch.setitem(sys.modules, "byt5_diffusion.preparation", module)
  monkeypatch.setattr(byt5_diffusion, "preparation", module, raising=False)
  assert not cli.main(
    [
      "prepare",
      recipe,
      "--output_dir",
      str(tmp_path / "d"),
      "--num_examples=64",
      "--num_shards=2",
      "--split=train",
      "--gin.MAX_TEXT_LENGTH=20",
    ]
  )
  gin.clear_config()
  assert features == called.pop("feature_converter_cls").FEATURES
  assert called == {
    "mixture_or_task_name": task,
    "mixture_or_task_module": "byt5_diffusion.tasks.typography",
    "task_feature_lengths": {**lengths, "text_tokens": 20, "example_id": 2},
    "output_dir": str(tmp_path / "d"),
    "splits": ["train"],
    "num_examples": 64,
    "num_shards": 2,
    "seed": 0,
  }


def test_generate_writes_one_file_or_numbered_ones(fake, tmp_path, capsys):
  out = tmp_path / "new" / "x.png"
  arguments = ["--model_dir", "run", "--out", str(out)]
  assert not cli.main(
    [
      "generate",
      "hello",
      *arguments,
      "--seed=7",
      "--guidance_scale=2",
      "--num_steps=9",
      "--step=100",
      "--raw",
      "--trust_config",
    ]
  )
  assert Image.open(out).getpixel((0, 0)) == (7, 7, 7)
  (folder, loading), (texts, seed, drawing) = fake
  assert folder == "run"
  assert loading["step"] == 100 and loading["trust_config"] is True
  assert loading["use_ema"] is False
  assert (texts, seed) == (["hello"], 7)
  assert drawing["guidance_scale"] == 2.0 and drawing["num_steps"] == 9
  assert not cli.main(["generate", "a", "b", *arguments])
  assert sorted(p.name for p in out.parent.iterdir()) == [
    "x-0.png",
    "x-1.png",
    "x.png",
  ]
  assert capsys.readouterr().out.count("Wrote ") == 3


def test_generate_overwrites_only_when_told(fake, tmp_path, capsys):
  out = tmp_path / "x.png"
  out.write_text("mine")
  arguments = ["generate", "hi", "--model_dir=run", f"--out={out}"]
  assert cli.main(arguments) == 2
  assert "--overwrite" in capsys.readouterr().err
  assert out.read_text() == "mine" and not fake
  assert not cli.main([*arguments, "--overwrite"])
  assert Image.open(out).size == (6, 4)


@pytest.mark.parametrize("out", ["/proc/nope/x.png", "file/sub/x.png"])
def test_a_folder_that_cannot_be_written_is_found_before_drawing(
  fake, out, tmp_path, capsys, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "file").touch()
  assert cli.main(["generate", "hi", "--model_dir=run", f"--out={out}"]) == 2
  error = capsys.readouterr().err
  assert error.startswith("Error: --out") and error.count("\n") == 1
  assert not fake


def test_a_text_may_look_like_an_option(fake, tmp_path):
  arguments = ["--model_dir=run", f"--out={tmp_path / 'x.png'}"]
  assert not cli.main(["generate", *arguments, "--", "--hello"])
  assert not cli.main(["generate", *arguments, "--overwrite", "--hello you"])
  assert [call[0] for call in fake[1::2]] == [["--hello"], ["--hello you"]]


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
  def fail(*unused, **keywords):
    raise OSError("disk full")

  monkeypatch.setattr(os, "replace", fail)
  with pytest.raises(OSError, match="disk full"):
    model_commands.save_png(tmp_path / "x.png", np.zeros((2, 2, 3), np.uint8))
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("arguments", "says"),
  [
    (["genrate", "x"], "Did you mean generate?"),
    (["generate", "x", "--model_dir=m", "--out=x.jpg"], "must end in .png"),
    (["generate", "x", "--model_dir=m", "--out=x.png", "--gin.A=1"], "--gin."),
    (["generate", "x", "--model_dir=nowhere", "--out=x.png"], "nowhere"),
    (["generate", "x", "--out=x.png"], "--model_dir"),
    (["train", "nothing.gin", "--model_dir=m"], "no gin file nothing.gin"),
    (["train", "tiny.gin", "--model_dir=m"], "experiments/tiny.gin"),
    (
      ["train", "experiments/tiny.gin", "--model-dir=m"],
      "Did you mean --model_dir?",
    ),
    (
      ["generate", "x", "--out=x.png", "--model-dir", "m"],
      "Did you mean --model_dir?",
    ),
    (
      ["train", "tiny.gin", "--model_dir=m", "--gin.TRAIN_STEPS", "5"],
      "lacks its `=`: write --gin.TRAIN_STEPS=5",
    ),
    (["--gin.TRAIN_STEPS", "5", "train"], "write --gin.TRAIN_STEPS=5"),
    (["train", "--gin.EMPTY", "--model_dir=m"], "write --gin.EMPTY=VALUE"),
    (
      [
        "prepare",
        "experiments/tiny.gin",
        "--output_dir=d",
        "--num_examples=-1",
      ],
      "num_examples = -1",
    ),
  ],
)
def test_mistakes_are_told_in_one_line_with_code_2(
  arguments, says, capsys, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  try:
    code = cli.main(arguments)
  except SystemExit as error:
    code = error.code
  error = capsys.readouterr().err
  assert code == 2
  assert says in error
  assert "Traceback" not in error
  assert not list(tmp_path.iterdir())


def test_version_and_help(capsys):
  for flag, says in (
    ("--version", byt5_diffusion.__version__),
    ("--help", "experiments/tiny.gin"),
  ):
    with pytest.raises(SystemExit) as error:
      cli.main([flag])
    assert error.value.code == 0
    assert says in capsys.readouterr().out


def test_every_command_has_help(capsys):
  with pytest.raises(SystemExit):
    cli.main(["--help"])
  listed = capsys.readouterr().out.partition("options:")[0]
  commands = re.findall(r"^    (\w+)  ", listed, re.MULTILINE)
  assert {"train", "read", "generate", "ocr", "info", "inspect"} <= {*commands}
  for command in commands:
    with pytest.raises(SystemExit) as error:
      cli.main([command, "--help"])
    assert error.value.code == 0
    assert f"byt5-diffusion {command}" in capsys.readouterr().out


def test_generate_imports_no_tensorflow_and_help_no_jax(tmp_path):
  code = (
    "import sys\n"
    "from byt5_diffusion import cli\n"
    "assert 'jax' not in sys.modules\n"
    "code = cli.main(['generate', 'x', '--model_dir=nowhere', '--out=x.png'])\n"
    "assert code == 2, code\n"
    "assert 'jax' in sys.modules\n"
    "assert not {'tensorflow', 'seqio', 'torch'} & set(sys.modules)\n"
  )
  root = str(config.gin_root().parent)
  done = subprocess.run(
    [sys.executable, "-c", f"import sys; sys.path.insert(0, {root!r})\n{code}"],
    cwd=tmp_path,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
