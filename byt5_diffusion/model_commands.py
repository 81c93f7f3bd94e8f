"""The commands of finished models: `byt5-diffusion generate`, `ocr`, `info`.

A run's folder is all that they need; no recipe, no data.
"""

import argparse
import dataclasses
import io
import json
import os
import pathlib
import re
import sys
from collections.abc import Callable
from typing import Any

from byt5_diffusion import config, output_files

ConfigError = config.ConfigError
AddCommand = Callable[..., Any]

# What is read is what weights wrote, maybe a stranger's: a terminal must not
# obey it. Joiners and marks of direction are text, and stay.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def _generate(flags: argparse.Namespace) -> None:
  _no_bindings(flags)
  paths = output_paths(flags.out, len(flags.texts))
  taken = [str(path) for path in paths if path.exists()]
  if taken and not flags.overwrite:
    raise ConfigError(
      f"{', '.join(taken)} exists. Choose another --out or give --overwrite."
    )
  output_files.make_folder(paths[0].parent)
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
  _no_bindings(flags)
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
    # A file's name may hold bytes that are no UTF-8.
    name = os.fsencode(path).decode("utf-8", "backslashreplace")
    if flags.json:
      record = {"image": name, **dataclasses.asdict(one)}
      dumped = json.dumps(record, ensure_ascii=False)
      print(_CONTROLS.sub(lambda c: f"\\u{ord(c[0]):04x}", dumped))
    else:
      line = f"{name}: {one.text}" if len(found) > 1 else one.text
      print(_CONTROLS.sub("\N{REPLACEMENT CHARACTER}", line))


def _info(flags: argparse.Namespace) -> None:
  _no_bindings(flags)
  from byt5_diffusion import run_info

  report = run_info.describe(flags.model_dir, flags.step)
  if flags.json:
    print(json.dumps(report, indent=1))
  else:
    print(run_info.text_of(report))


def _no_bindings(flags: argparse.Namespace) -> None:
  if flags.gin_bindings:
    raise ConfigError(
      f"{flags.command} takes no --gin. flags: the model is finished."
    )


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
  png = io.BytesIO()
  Image.fromarray(image).save(png, format="PNG")
  output_files.write(path, png.getvalue())


# --- the parser --------------------------------------------------------------


def add(add_command: AddCommand) -> None:
  """Adds the commands.

  Args:
    add_command: (name, help, body, takes_gin) -> the command's parser.
  """
  _add_generate(add_command)
  _add_ocr(add_command)
  _add_info(add_command)


def _add_generate(add_command: AddCommand) -> None:
  command = add_command("generate", "draw texts", _generate, takes_gin=False)
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


def _add_ocr(add_command: AddCommand) -> None:
  command = add_command("ocr", "read pictures", _ocr, takes_gin=False)
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


def _add_info(add_command: AddCommand) -> None:
  command = add_command(
    "info", "say what a folder holds", _info, takes_gin=False
  )
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
