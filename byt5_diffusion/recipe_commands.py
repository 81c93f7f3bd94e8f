"""The commands that look at a recipe: `byt5-diffusion validate` and `inspect`.

Nothing is trained and no run's folder is touched.
"""

import argparse
import json
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

from byt5_diffusion import config_program, output_files

ConfigError = config_program.ConfigError
_VALIDATE_HELP = "build all of a recipe without training, and count its cost"
_INSPECT_HELP = "show batches exactly as the model gets them"


def add(add_command: Callable[..., Any], recipe_help: str) -> None:
  """Adds both commands.

  Args:
    add_command: (name, help, body) -> the command's parser.
    recipe_help: of the argument RECIPE.
  """
  command = add_command("validate", _VALIDATE_HELP, _validate)
  command.add_argument("recipe", help=recipe_help)
  command.add_argument(
    "--devices", type=int, help="plan for so many; default: this machine's"
  )
  command.add_argument(
    "--examples", type=int, default=256, help="of the data; default: 256"
  )
  command.add_argument(
    "--no_data", action="store_true", help="the data are not on this machine"
  )
  command.add_argument(
    "--compile",
    action="store_true",
    help="ask the compiler for the step's memory: may take minutes",
  )
  _add_output(command, "report.html or report.json; default: only the screen")
  command = add_command("inspect", _INSPECT_HELP, _inspect)
  command.add_argument("recipe", help=f"{recipe_help}; or a task's name")
  command.add_argument("--split", default="train", help="default: train")
  command.add_argument(
    "--batches", type=int, default=2, help="to read; default: 2"
  )
  command.add_argument(
    "--rows", type=int, default=32, help="shown of each batch; default: 32"
  )
  command.add_argument(
    "--seed", type=int, help="of the data's order; default: the recipe's"
  )
  command.add_argument(
    "--languages",
    action="store_true",
    help="count the languages of its examples instead",
  )
  command.add_argument(
    "--num_ids",
    type=int,
    default=1_000_000,
    help="examples that --languages counts; default: 1000000",
  )
  command.add_argument(
    "--filters",
    action="store_true",
    help="show what filters leave out of the data instead, and why",
  )
  _add_output(command, "page.html or page.png; needed without --json")


def _add_output(command: Any, what: str) -> None:
  command.add_argument("--out", help=what)
  command.add_argument(
    "--overwrite", action="store_true", help="replace a file that exists"
  )
  command.add_argument(
    "--json", action="store_true", help="print one JSON object instead"
  )


def _say(line: str) -> None:
  print(line, file=sys.stderr, flush=True)


def _clock() -> Callable[[str], None]:
  """As _say, with the seconds that have passed."""
  start = time.monotonic()
  return lambda line: _say(f"{time.monotonic() - start:5.1f} s  {line}")


def _path(flags: argparse.Namespace, *suffixes: str) -> pathlib.Path | None:
  if flags.out is None:
    return None
  return output_files.check(flags.out, suffixes, flags.overwrite)


def _positive(**numbers: int | None) -> None:
  for name, value in numbers.items():
    if value is not None and value < 1:
      raise ConfigError(f"--{name} {value}: must be positive.")


def _validate(flags: argparse.Namespace) -> None:
  _positive(devices=flags.devices, examples=flags.examples)
  path = _path(flags, ".html", ".json")
  from byt5_diffusion import validation, validation_report

  facts = validation.validate(
    flags.recipe,
    flags.gin_bindings,
    num_devices=flags.devices,
    num_examples=flags.examples,
    read_data=not flags.no_data,
    compile_step=flags.compile,
    say=_clock(),
  )
  text = json.dumps(facts, ensure_ascii=False, indent=2) + "\n"
  if path is not None:
    page = validation_report.to_html(facts)
    content = page if path.suffix.lower() == ".html" else text
    output_files.write(path, content.encode("utf-8"))
  if flags.json:
    print(text, end="")
  else:
    print(validation_report.to_text(facts))
  if path is not None:
    _say(f"Wrote {path}.")
  if facts["problems"]:
    raise ConfigError("\n".join(validation_report.verdict(facts)))
  if not flags.json:
    print("ok")


def _inspect(flags: argparse.Namespace) -> None:
  _positive(batches=flags.batches, rows=flags.rows)
  if flags.languages or flags.filters:
    _inspect_data(flags)
    return
  path = _path(flags, ".html", ".png")
  if path is None and not flags.json:
    raise ConfigError(
      "inspect needs --out page.html, --out page.png or --json."
    )
  from byt5_diffusion import inspection, inspection_picture

  view = inspection.inspect(
    flags.recipe,
    flags.gin_bindings,
    split=flags.split,
    num_batches=flags.batches,
    seed=flags.seed,
    say=_clock(),
  )
  if path is not None:
    if path.suffix.lower() == ".html":
      content = inspection.to_html(view, flags.rows).encode("utf-8")
    else:
      content = inspection_picture.to_png(view, flags.rows)
    output_files.write(path, content)
    _say(f"Wrote {path}.")
  if flags.json:
    print(json.dumps(inspection.to_json(view), ensure_ascii=False, indent=2))


def _inspect_data(flags: argparse.Namespace) -> None:
  """What the data hold, and what is left out of them: figures, no pictures."""
  _positive(num_ids=flags.num_ids)
  if flags.languages and flags.filters:
    raise ConfigError("--languages and --filters: one at a time.")
  path = _path(flags, ".json")
  from byt5_diffusion import filter_report, language_report

  say = _clock()
  if flags.languages:
    facts = language_report.report(
      flags.recipe,
      flags.gin_bindings,
      split=flags.split,
      num_ids=flags.num_ids,
      seed=flags.seed,
      say=say,
    )
    shown = language_report.to_text(facts)
  else:
    facts = filter_report.report(
      flags.recipe, flags.gin_bindings, split=flags.split, say=say
    )
    shown = filter_report.to_text(facts)
  text = json.dumps(facts, ensure_ascii=False, indent=2)
  if path is not None:
    output_files.write(path, f"{text}\n".encode())
    _say(f"Wrote {path}.")
  print(text if flags.json else shown)
