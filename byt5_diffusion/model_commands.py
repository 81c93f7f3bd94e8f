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
from collections.abc import Callable, Sequence
from typing import Any

from byt5_diffusion import config, output_files

ConfigError = config.ConfigError
AddCommand = Callable[..., Any]

# What is read is what weights wrote, maybe a stranger's: a terminal must not
# obey it. Joiners and marks of direction are text, and stay.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


# Flags of what enlarges and of what draws, None where they are not given.
_ENLARGING = ("augmentation", "upscale_guidance_scale", "upscale_num_steps")
_DRAWING = ("step", "guidance_scale", "num_steps")


def _generate(flags: argparse.Namespace) -> None:
  _no_bindings(flags)
  prompts = _take_prompts(flags)
  _check_stages(flags)
  paths = output_paths(flags.out, len(flags.texts))
  beside = [pathlib.Path(flags.out).with_suffix(".jsonl")] if prompts else []
  _check_free([*paths, *beside], flags)
  output_files.make_folder(paths[0].parent)
  _draw(flags, paths)
  if prompts:
    _write_prompts(prompts, paths, flags.out)


def _take_prompts(flags: argparse.Namespace) -> list[Any]:
  """Makes texts of --prompts; what is known of them."""
  if bool(flags.texts) == bool(flags.prompts):
    raise ConfigError(
      f"give texts to draw, or --prompts{', not both' if flags.texts else ''}."
    )
  if flags.num_prompts is not None and flags.num_prompts < 1:
    raise ConfigError(f"--num_prompts={flags.num_prompts} must be positive.")
  if flags.num_prompts is not None and not flags.prompts:
    raise ConfigError("--num_prompts needs --prompts.")
  if not flags.prompts:
    return []
  from byt5_diffusion.data.sets import evaluation_prompts

  prompts = evaluation_prompts.prompts_of(flags.prompts)[: flags.num_prompts]
  flags.texts = [prompt.text for prompt in prompts]
  return prompts


def _write_prompts(
  prompts: Sequence[Any], paths: Sequence[pathlib.Path], out: str
) -> None:
  """x.jsonl beside x.png: what each picture should show."""
  path = pathlib.Path(out).with_suffix(".jsonl")
  lines = [
    json.dumps({"image": one.name, **prompt._asdict()}, ensure_ascii=False)
    for prompt, one in zip(prompts, paths, strict=True)
  ]
  output_files.write(path, "".join(f"{x}\n" for x in lines).encode("utf-8"))
  print(f"Wrote {path}.")


def _draw(flags: argparse.Namespace, paths: list[pathlib.Path]) -> None:
  if flags.upscale_dir:
    _cascade(flags, paths)
    return
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
  _save(paths, images)


def _check_stages(flags: argparse.Namespace) -> None:
  """Flags that want each other, or rule each other out."""
  given = [x for x in ("image", "stages") if getattr(flags, x)]
  # Not by truth: 0 is given, too.
  given += [x for x in _ENLARGING if getattr(flags, x) is not None]
  if given and not flags.upscale_dir:
    raise ConfigError(
      f"--{given[0]} needs --upscale_dir: the folder of a run that enlarges."
    )
  if bool(flags.image) == bool(flags.model_dir):
    raise ConfigError(
      "give --model_dir, the folder of a run that draws"
      f"{', or --image, not both' if flags.image else ''}."
    )
  if not flags.image:
    return
  if len(flags.image) != len(flags.texts):
    raise ConfigError(
      f"{len(flags.image)} --image for {len(flags.texts)} texts: each picture "
      'needs the text that it shows, "" if there is none.'
    )
  given = [name for name in _DRAWING if getattr(flags, name) is not None]
  if given:
    raise ConfigError(
      f"--{given[0]} is for --model_dir; with --image nothing is drawn."
    )


def _cascade(flags: argparse.Namespace, paths: list[pathlib.Path]) -> None:
  """Draws, or takes pictures, and enlarges them."""
  from byt5_diffusion import cascade
  from byt5_diffusion.data import images

  # A bad picture is said before a model is loaded.
  pictures = [images.decode_image(path) for path in flags.image]
  base = [flags.model_dir] if flags.model_dir else []
  stages = cascade.Cascade.from_model_dirs(
    [*base, *flags.upscale_dir],
    has_base=bool(base),
    step=flags.step,
    use_ema=not flags.raw,
    trust_config=flags.trust_config,
    batch_size=min(len(flags.texts), flags.batch_size),
  )
  targets = [
    [path.with_stem(f"{path.stem}.{height}x{width}") for path in paths]
    for height, width in stages.sizes[:-1]
  ]
  if flags.stages:
    _check_free([path for row in targets for path in row], flags)
  fitted = [stages.fit(picture) for picture in pictures]
  for path, picture in zip(flags.image, pictures, strict=True):
    _say_fitted(path, picture, stages.low_size)
  drawn = stages.stages(
    flags.texts,
    pictures=fitted or None,
    seed=flags.seed,
    guidance_scale=flags.guidance_scale,
    num_steps=flags.num_steps,
    augmentation=flags.augmentation,
    upscale_guidance_scale=flags.upscale_guidance_scale,
    upscale_num_steps=flags.upscale_num_steps,
    progress=sys.stderr.isatty(),
  )
  for row, made in zip([*targets, paths], drawn, strict=True):
    if flags.stages or row is paths:
      _save(row, made)


def _say_fitted(path: str, picture: Any, size: tuple[int, int]) -> None:
  """Tells of a picture that is not as small as the first stage takes it."""
  height, width = picture.shape[:2]
  if (height, width) != size:
    name = os.fsencode(path).decode("utf-8", "backslashreplace")
    print(
      f"{name}: {height} x {width} pixels, fitted into {size[0]} x {size[1]}.",
      file=sys.stderr,
    )


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


def _check_free(paths: Sequence[pathlib.Path], flags: Any) -> None:
  """Raises ConfigError for files that are there and may not be replaced."""
  taken = [str(path) for path in paths if path.exists()]
  if taken and not flags.overwrite:
    raise ConfigError(
      f"{', '.join(taken)} exists. Choose another --out or give --overwrite."
    )


def _save(paths: Sequence[pathlib.Path], pictures: Any) -> None:
  for path, picture in zip(paths, pictures, strict=True):
    save_png(path, picture)
    print(f"Wrote {path}.")


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
    "texts", nargs="*", metavar="TEXT", help="one image each"
  )
  command.add_argument(
    "--prompts",
    help="published ones instead of texts: drawtext:/path, wikispell:/path,"
    " longtext:/path, with options as +categories=top_1_pct",
  )
  command.add_argument(
    "--num_prompts", type=int, help="the first ones; default: all"
  )
  command.add_argument("--model_dir", help="the folder of a run that draws")
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
  _add_cascade(command)


def _add_cascade(command: Any) -> None:
  """Stages that enlarge what is drawn."""
  group = command.add_argument_group("cascades")
  group.add_argument(
    "--upscale_dir",
    action="append",
    default=[],
    help="the folder of a run that enlarges; may be repeated, in order",
  )
  group.add_argument(
    "--image",
    action="append",
    default=[],
    help="a small picture to enlarge instead of drawing one, for each TEXT",
  )
  group.add_argument(
    "--stages",
    action="store_true",
    help="write what each stage makes, too: x.16x40.png, ...",
  )
  group.add_argument(
    "--augmentation",
    type=float,
    help="0 .. 1, noise that hides the faults of small pictures; default: the"
    " model's",
  )
  group.add_argument(
    "--upscale_guidance_scale",
    type=float,
    help="as --guidance_scale, for what enlarges",
  )
  group.add_argument(
    "--upscale_num_steps", type=int, help="as --num_steps, for what enlarges"
  )


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
