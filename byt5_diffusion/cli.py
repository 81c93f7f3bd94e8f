"""The command `byt5-diffusion`: train, eval, prepare, generate, ocr, ...

`validate` and `inspect` are in recipe_commands.py.
"""

import argparse
import dataclasses
import functools
import json
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import gin

import byt5_diffusion
from byt5_diffusion import (
  config,
  config_program,
  hosts,
  output_files,
  recipe_commands,
)
from byt5_diffusion import main as main_lib

ConfigError = config.ConfigError
make_folder = output_files.make_folder
_EXAMPLES = """\
examples:
  byt5-diffusion train experiments/tiny.gin --model_dir /tmp/tiny
  byt5-diffusion train experiments/tiny.gin --model_dir /tmp/tiny \\
    --gin.TRAIN_STEPS=500 --gin.adamw.weight_decay=0
  byt5-diffusion eval experiments/tiny.gin --model_dir /tmp/tiny
  byt5-diffusion prepare experiments/tiny.gin --output_dir /tmp/words
  byt5-diffusion generate "hello" --model_dir /tmp/tiny --out hello.png
  byt5-diffusion ocr hello.png --model_dir /tmp/tiny
  byt5-diffusion validate experiments/tiny.gin
  byt5-diffusion inspect experiments/tiny.gin --out batches.html
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
    files.append("runs/finetune.gin")
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


def _generate(flags: argparse.Namespace) -> None:
  if flags.gin_bindings:
    raise ConfigError("generate takes no --gin. flags: the model is finished.")
  paths = output_paths(flags.out, len(flags.texts))
  taken = [str(path) for path in paths if path.exists()]
  if taken and not flags.overwrite:
    raise ConfigError(
      f"{', '.join(taken)} exists. Choose another --out or give --overwrite."
    )
  make_folder(paths[0].parent)
  from byt5_diffusion import inference

  generator = inference.Generator.from_model_dir(
    flags.model_dir,
    step=flags.step,
    use_ema=not flags.raw,
    trust_config=flags.trust_config,
    batch_size=min(len(flags.texts), flags.batch_size),
  )
  images = generator.generate(
    flags.texts,
    seed=flags.seed,
    guidance_scale=flags.guidance_scale,
    num_steps=flags.num_steps,
    progress=sys.stderr.isatty(),
  )
  for path, image in zip(paths, images, strict=True):
    save_png(path, image)
    print(f"Wrote {path}.")


def _ocr(flags: argparse.Namespace) -> None:
  if flags.gin_bindings:
    raise ConfigError("ocr takes no --gin. flags: the model is finished.")
  from byt5_diffusion import reading
  from byt5_diffusion.data import images

  # All pictures first: a bad one is said before a model is loaded.
  pictures = [images.decode_image(path) for path in flags.images]
  reader = reading.Reader.from_model_dir(
    flags.model_dir,
    step=flags.step,
    use_ema=not flags.raw,
    trust_config=flags.trust_config,
    batch_size=min(len(pictures), flags.batch_size),
  )
  found = reader.read(
    pictures, beam_size=flags.beam_size, progress=sys.stderr.isatty()
  )
  for path, one in zip(flags.images, found, strict=True):
    if flags.json:
      record = {"image": path, **dataclasses.asdict(one)}
      print(json.dumps(record, ensure_ascii=False))
    elif len(found) > 1:
      print(f"{path}: {one.text}")
    else:
      print(one.text)


def _info(flags: argparse.Namespace) -> None:
  from byt5_diffusion import run_info

  report = run_info.describe(flags.model_dir, flags.step)
  if flags.json:
    print(json.dumps(report, indent=1))
  else:
    print(run_info.text_of(report))


def output_paths(out: str, count: int) -> list[pathlib.Path]:
  """x.png for one image; x-0.png, x-1.png, ... for several."""
  path = pathlib.Path(out)
  if path.suffix.lower() != ".png":
    raise ConfigError(f"--out {out}: must end in .png.")
  if count == 1:
    return [path]
  return [path.with_stem(f"{path.stem}-{i}") for i in range(count)]


def save_png(path: pathlib.Path, image: Any) -> None:
  """Writes the whole file or none; makes the folder."""
  from PIL import Image

  path.parent.mkdir(parents=True, exist_ok=True)
  handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".partial")
  try:
    with os.fdopen(handle, "wb") as file:
      Image.fromarray(image).save(file, format="PNG")
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)
  except BaseException:
    os.unlink(temporary)
    raise


def _string(name: str, value: str) -> str:
  return f"{name}={value!r}"


# --- the parser --------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
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
  _add_prepare(commands)
  _add_generate(commands)
  _add_ocr(commands)
  _add_info(commands)
  recipe_commands.add(functools.partial(_add, commands), _GIN_HELP)
  return parser


def _add(
  commands: Any, name: str, help_text: str, body: Callable[..., None]
) -> Any:
  command = commands.add_parser(
    name,
    help=help_text,
    description=help_text[0].upper() + help_text[1:] + ".",
    allow_abbrev=False,
    epilog=_GIN_EPILOG if name not in ("generate", "ocr") else None,
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
  command = _add(commands, "eval", "score a trained model", _eval)
  command.add_argument("recipe", help=_GIN_HELP)
  command.add_argument("--model_dir", required=True, help="a run's folder")
  command.add_argument("--output_dir", help="default: MODEL_DIR/eval")
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


def _add_generate(commands: Any) -> None:
  command = _add(commands, "generate", "draw texts", _generate)
  command.add_argument(
    "texts", nargs="+", metavar="TEXT", help="one image each"
  )
  command.add_argument("--model_dir", required=True, help="a run's folder")
  command.add_argument(
    "--out",
    required=True,
    help="x.png; several texts are written to x-0.png, x-1.png, ...",
  )
  command.add_argument(
    "--overwrite", action="store_true", help="replace files that exist"
  )
  command.add_argument(
    "--seed", type=int, default=0, help="of the noise; default: 0"
  )
  command.add_argument(
    "--guidance_scale", type=float, help="1 is off; default: the model's"
  )
  command.add_argument(
    "--num_steps", type=int, help="of the sampler; default: the model's"
  )
  _add_weights(command)


def _add_ocr(commands: Any) -> None:
  command = _add(commands, "ocr", "read pictures", _ocr)
  command.add_argument(
    "images", nargs="+", metavar="IMAGE", help="a PNG, JPEG, WebP, ... file"
  )
  command.add_argument(
    "--model_dir", required=True, help="the folder of a run that reads"
  )
  command.add_argument(
    "--beam_size", type=int, help="1 is greedy; default: the model's"
  )
  command.add_argument(
    "--json",
    action="store_true",
    help="one JSON object per picture, with confidences",
  )
  _add_weights(command)


def _add_info(commands: Any) -> None:
  command = _add(commands, "info", "say what a folder holds", _info)
  command.add_argument(
    "model_dir", help="a run's folder, a tree of weights, or T5X's checkpoint"
  )
  command.add_argument("--step", type=int, help="default: the last checkpoint")
  command.add_argument("--json", action="store_true", help="for programs")


def _add_weights(command: Any) -> None:
  """Which weights of a run, and how they are used."""
  command.add_argument("--step", type=int, help="default: the last checkpoint")
  command.add_argument(
    "--raw", action="store_true", help="weights as trained, not averaged"
  )
  command.add_argument(
    "--batch_size", type=int, default=8, help="at a time; default: 8"
  )
  command.add_argument(
    "--trust_config",
    action="store_true",
    help="let model.gin name any code: only if you trust its author",
  )


def main(arguments: Sequence[str] | None = None) -> int:
  """The console script; returns the exit code."""
  arguments = sys.argv[1:] if arguments is None else list(arguments)
  bindings, rest = main_lib.gin_flags(arguments)
  parser = _parser()
  known = (
    *("train", "eval", "prepare", "generate", "ocr", "info"),
    *("validate", "inspect"),
  )
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
