"""The command `byt5-diffusion`: train, eval, read, prepare, and others.

Those of finished models are in model_commands.py, those that look at a recipe
in recipe_commands.py; conversion_commands.py has `convert`, and
download_commands.py `download`.
"""

import argparse
import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import gin

import byt5_diffusion
from byt5_diffusion import (
  config,
  config_program,
  conversion_commands,
  download_commands,
  hosts,
  model_commands,
  recipe_commands,
)
from byt5_diffusion import main as main_lib

ConfigError = config.ConfigError
_EXAMPLES = """\
examples:
  byt5-diffusion train experiments/tiny.gin --model_dir /tmp/tiny
  byt5-diffusion train experiments/tiny.gin --model_dir /tmp/tiny \\
    --gin.TRAIN_STEPS=500 --gin.adamw.weight_decay=0
  byt5-diffusion eval experiments/tiny.gin --model_dir /tmp/tiny
  byt5-diffusion read experiments/tiny_ocr.gin --model_dir /tmp/reader
  byt5-diffusion prepare experiments/tiny.gin --output_dir /tmp/words
  byt5-diffusion generate "hello" --model_dir /tmp/tiny --out hello.png
  byt5-diffusion ocr hello.png --model_dir /tmp/reader
  byt5-diffusion validate experiments/tiny.gin
  byt5-diffusion inspect experiments/tiny.gin --out batches.html
  byt5-diffusion convert /data/sd21 /data/sd21_unet --kind unet
  byt5-diffusion download part-00000.parquet --output_dir /data/laion
"""
_GIN_HELP = (
  "a gin file: of the working directory or of the package, e.g."
  " experiments/tiny.gin"
)

_GIN_EPILOG = (
  "--gin.NAME=VALUE, as often as you like, sets a value of the recipe:"
  " --gin.TRAIN_STEPS=500 --gin.adamw.weight_decay=0."
)


def _train(flags: argparse.Namespace) -> None:
  files = [flags.recipe]
  bindings = [_string("MODEL_DIR", flags.model_dir)]
  if flags.initial_checkpoint:
    # First, so that a recipe's own rules win.
    files.insert(0, "runs/finetune.gin")
    path = _string("INITIAL_CHECKPOINT_PATH", flags.initial_checkpoint)
    bindings.append(path)
  join = hosts.from_flags(flags)
  main_lib.run("train", files, [*bindings, *flags.gin_bindings], join=join)


def _eval(flags: argparse.Namespace) -> None:
  output = flags.output_dir or os.path.join(flags.model_dir, "eval")
  bindings = [
    _string("CHECKPOINT_PATH", flags.model_dir),
    _string("EVAL_OUTPUT_DIR", output),
  ]
  if flags.step is not None:
    bindings.append(f"evaluation.evaluate.step={flags.step}")
  main_lib.run("eval", [flags.recipe], [*bindings, *flags.gin_bindings])
  print(f"Wrote {os.path.join(output, 'metrics.json')}.")


def _read(flags: argparse.Namespace) -> None:
  output = flags.output_dir or os.path.join(flags.model_dir, "read")
  bindings = [
    _string("CHECKPOINT_PATH", flags.model_dir),
    _string("READ_OUTPUT_DIR", output),
  ]
  if flags.step is not None:
    bindings.append(f"reading.read_data.step={flags.step}")
  main_lib.run("read", [flags.recipe], [*bindings, *flags.gin_bindings])
  print(f"Wrote {os.path.join(output, 'scores.json')}.")


def _prepare(flags: argparse.Namespace) -> None:
  program = config.parse([flags.recipe], flags.gin_bindings)
  from byt5_diffusion import preparation

  names = ("MIXTURE_OR_TASK_NAME", "TASK_FEATURE_LENGTHS")
  values = {name: program.macro(name) for name in names}
  for name, value in values.items():
    if value is None:
      raise ConfigError(f"{flags.recipe} does not set {name}.")
    if isinstance(value, config_program.Reference):
      raise ConfigError(
        f"{flags.recipe}: {name} is a call, which prepare cannot make: name "
        'the task, e.g. "image_caption_folder:/path/to/photos@64x64".'
      )
  preparation.prepare(
    mixture_or_task_name=values["MIXTURE_OR_TASK_NAME"],
    mixture_or_task_module=program.macro("MIXTURE_OR_TASK_MODULE"),
    task_feature_lengths=values["TASK_FEATURE_LENGTHS"],
    feature_converter_cls=_feature_converter(program),
    output_dir=flags.output_dir,
    splits=flags.split or ["train", "validation"],
    num_examples=flags.num_examples,
    num_shards=flags.num_shards,
    seed=flags.seed,
  )
  print(f"Train from it with --gin.PREPARED_DIR='\"{flags.output_dir}\"'.")


def _feature_converter(program: config_program.Program) -> Any:
  """The class that %FEATURE_CONVERTER_CLS names; without it, the usual one."""
  from byt5_diffusion import feature_converters

  if program.macro("FEATURE_CONVERTER_CLS") is None:
    return feature_converters.TextToImageFeatureConverter
  return gin.get_bindings("FEATURE_CONVERTER_CLS/gin.macro")["value"]


def _string(name: str, value: str) -> str:
  return f"{name}={value!r}"


# --- the parser --------------------------------------------------------------


def _parser() -> tuple[argparse.ArgumentParser, Any]:
  """The parser, and its commands by name (`choices`)."""
  parser = main_lib.Parser(
    prog="byt5-diffusion",
    description="Text-to-image diffusion models that can spell.",
    epilog=_EXAMPLES,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    "--version",
    action="version",
    version=f"byt5-diffusion {byt5_diffusion.__version__}",
  )
  commands = parser.add_subparsers(
    dest="command", metavar="COMMAND", required=True
  )
  _add_train(commands)
  _add_eval(commands)
  _add_read(commands)
  _add_prepare(commands)
  add_command = functools.partial(_add, commands)
  model_commands.add(add_command)
  recipe_commands.add(add_command, _GIN_HELP)
  conversion_commands.add(add_command)
  download_commands.add(add_command)
  return parser, commands


def _add(
  commands: Any,
  name: str,
  help_text: str,
  body: Callable[..., None],
  takes_gin: bool = True,
) -> Any:
  command = commands.add_parser(
    name,
    help=help_text,
    description=help_text[0].upper() + help_text[1:] + ".",
    allow_abbrev=False,
    epilog=_GIN_EPILOG if takes_gin else None,
  )
  command.set_defaults(body=body)
  return command


def _add_train(commands: Any) -> None:
  command = _add(commands, "train", "train a model, or go on with one", _train)
  command.add_argument("recipe", help=_GIN_HELP)
  command.add_argument(
    "--model_dir", required=True, help="checkpoints, logs and samples"
  )
  command.add_argument(
    "--initial_checkpoint",
    help="a run's folder or a T5X checkpoint that a new run starts from; what"
    " is taken of it: --gin.ASSIGNMENT_RULES",
  )
  hosts.add_flags(command)


def _add_eval(commands: Any) -> None:
  command = _add(commands, "eval", "measure a trained model's losses", _eval)
  command.add_argument("recipe", help=_GIN_HELP)
  command.add_argument("--model_dir", required=True, help="a run's folder")
  command.add_argument("--output_dir", help="default: MODEL_DIR/eval")
  command.add_argument("--step", type=int, help="default: the last checkpoint")


def _add_read(commands: Any) -> None:
  command = _add(
    commands, "read", "score a reader on a recipe's data, by script", _read
  )
  command.add_argument("recipe", help=_GIN_HELP)
  command.add_argument("--model_dir", required=True, help="a run's folder")
  command.add_argument("--output_dir", help="default: MODEL_DIR/read")
  command.add_argument("--step", type=int, help="default: the last checkpoint")


def _add_prepare(commands: Any) -> None:
  command = _add(
    commands,
    "prepare",
    "render a recipe's data set to shards that train without TensorFlow",
    _prepare,
  )
  command.add_argument("recipe", help=_GIN_HELP)
  command.add_argument(
    "--output_dir", required=True, help="what PREPARED_DIR is to be"
  )
  command.add_argument(
    "--split", action="append", help="may be repeated; default: both"
  )
  command.add_argument(
    "--num_examples", type=int, help="of each split; default: all"
  )
  command.add_argument(
    "--num_shards", type=int, default=16, help="of each split; default: 16"
  )
  command.add_argument(
    "--seed", type=int, default=0, help="of what is drawn; default: 0"
  )


def main(arguments: Sequence[str] | None = None) -> int:
  """The console script; returns the exit code."""
  arguments = sys.argv[1:] if arguments is None else list(arguments)
  bindings, rest = main_lib.gin_flags(arguments)
  parser, commands = _parser()
  known = tuple(commands.choices)
  if rest and not rest[0].startswith("-") and rest[0] not in known:
    parser.error(
      f"there is no command {rest[0]}."
      f"{config_program.nearest(rest[0], known)}"
      f" Commands: {', '.join(known)}."
    )
  flags = parser.parse_args(rest)
  flags.gin_bindings = bindings
  main_lib.set_up_logging()
  return main_lib.guarded(flags.body, flags)


if __name__ == "__main__":
  sys.exit(main())
