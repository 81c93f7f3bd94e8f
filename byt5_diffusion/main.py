"""Trains, evaluates, draws or reads what gin files describe.

  python -m byt5_diffusion.main --run_mode=train \\
    --gin_file=experiments/tiny.gin --gin.MODEL_DIR='"/tmp/tiny"'

The flags are T5X's. A mistake of the user's is one line and exit code 2.
"""

import argparse
import importlib
import linecache
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import gin

from byt5_diffusion import config, config_program, config_text, hosts

USER_ERROR = 2
INTERRUPTED = 130
_PATH_ERRORS = (
  FileExistsError,
  IsADirectoryError,
  NotADirectoryError,
  PermissionError,
)
_EPILOG = """\
gin files are looked for in the working directory, in --gin_search_paths, and
in the package's own gin/ folder, e.g. experiments/tiny.gin. Later files and
--gin. flags win. Strings need quotes that the shell leaves alone:
  --gin.MODEL_DIR='"/tmp/tiny"' --gin.TRAIN_STEPS=500
  --gin.adamw.weight_decay=0 --gin.models.TextToImageModel.guidance_scale=2.0
"""


def run(
  run_mode: str,
  gin_files: Sequence[str],
  gin_bindings: Sequence[str] = (),
  search_paths: Sequence[str] = (),
  *,
  dry_run: bool = False,
  join: Callable[[], None] | None = None,
) -> None:
  """Parses and checks, then calls the program of run_mode.

  Args:
    run_mode: of config.PROGRAMS.
    gin_files, gin_bindings, search_paths: see config.parse.
    dry_run: print the configuration and run nothing.
    join: brings the hosts together (hosts.from_flags), once all is checked.
  """
  program = config.parse(
    gin_files, gin_bindings, search_paths, run_mode=run_mode
  )
  if dry_run:
    print(config_text.to_text(program), end="")
    return
  if join is not None:
    join()
  module, _, function = config.PROGRAMS[run_mode].rpartition(".")
  body = getattr(importlib.import_module(module), function)
  gin.get_configurable(body)()


def is_user_error(error: BaseException) -> bool:
  """Whether the message says what to do, so that a traceback would hide it.

  So it is with errors that this package declares, and with a ValueError,
  OSError or ImportError that one of its own `raise` statements made; and with
  a path that the system does not let be read or written.
  """
  if not isinstance(error, Exception):
    return False
  if any(_is_ours(kind.__module__) for kind in type(error).__mro__):
    return True
  if isinstance(error, _PATH_ERRORS):
    return True
  if not isinstance(error, (ValueError, OSError, ImportError)):
    return False
  frames = list(traceback.walk_tb(error.__traceback__))
  frame, line = frames[-1]
  source = linecache.getline(frame.f_code.co_filename, line)
  ours = _is_ours(frame.f_globals.get("__name__", ""))
  return ours and source.lstrip().startswith("raise ")


def _is_ours(module: str) -> bool:
  return module.partition(".")[0] == "byt5_diffusion"


def describe(error: BaseException) -> str:
  """The message, without what gin and the system put around it."""
  message = str(error).split("\n  In call to configurable")[0]
  return re.sub(r"^\[Errno \d+\] ", "", message)


def gin_flags(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
  """Takes --gin.NAME=VALUE out of the arguments: (bindings, the others)."""

  def binds(argument: str) -> bool:
    return argument.startswith("--gin.") and "=" in argument

  bindings = [x[len("--gin.") :] for x in arguments if binds(x)]
  return bindings, [x for x in arguments if not binds(x)]


class Parser(argparse.ArgumentParser):
  """argparse that names the nearest option for an unknown one."""

  def error(self, message: str) -> NoReturn:
    unknown = message.removeprefix("unrecognized arguments: ")
    if unknown != message:
      name = unknown.split()[0].partition("=")[0]
      known = [*self._option_string_actions, "--gin."]
      message += "." + config_program.nearest(name, known)
    super().error(message)

  def parse_known_args(  # type: ignore[override]
    self, args: Sequence[str] | None = None, namespace: Any = None
  ) -> Any:
    """Wrong names first: they are why another argument seems to be missing."""
    arguments = sys.argv[1:] if args is None else list(args)
    # An option of a command is that command's own parser's business.
    final = self._subparsers is None
    for i, argument in enumerate(arguments):
      if argument == "--":
        break
      name, equals, _ = argument.partition("=")
      if name.startswith("--gin.") and not equals:
        value = (arguments[i + 1 : i + 2] or ["VALUE"])[0]
        value = "VALUE" if value.startswith("-") else value
        self.error(f"{name} lacks its `=`: write {name}={value}")
      unknown = (
        name.startswith("--") and name not in self._option_string_actions
      )
      # As argparse has it, what holds a space is no option.
      if final and unknown and " " not in argument:
        self.error(f"unrecognized arguments: {argument}")
    return super().parse_known_args(arguments, namespace)


def guarded(
  function: Callable[..., None], *arguments: Any, **keywords: Any
) -> int:
  """Calls; a user's error becomes one message and an exit code."""
  try:
    function(*arguments, **keywords)
  except KeyboardInterrupt:
    print("Interrupted.", file=sys.stderr)
    return INTERRUPTED
  except Exception as error:
    if not is_user_error(error):
      raise
    print(f"Error: {describe(error)}", file=sys.stderr)
    return USER_ERROR
  return 0


def set_up_logging() -> None:
  """This package's news on stderr; of the libraries only warnings."""
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  logging.basicConfig(level=logging.INFO, format="%(message)s")
  for library in ("absl", "jax", "orbax", "grain", "tensorflow"):
    logging.getLogger(library).setLevel(logging.WARNING)


def main(arguments: Sequence[str] | None = None) -> int:
  """`python -m byt5_diffusion.main`; returns the exit code."""
  bindings, rest = gin_flags(sys.argv[1:] if arguments is None else arguments)
  parser = Parser(
    prog="python -m byt5_diffusion.main",
    description=__doc__.split("\n")[0],
    epilog=_EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    "--run_mode", choices=tuple(config.PROGRAMS), required=True
  )
  parser.add_argument(
    "--gin_file", action="append", default=[], help="may be repeated"
  )
  parser.add_argument(
    "--gin_search_paths", default="", help="folders, separated by commas"
  )
  parser.add_argument(
    "--gin_bindings",
    action="append",
    default=[],
    metavar="NAME=VALUE",
    help="as --gin.NAME=VALUE; may be repeated",
  )
  parser.add_argument(
    "--dry_run",
    action="store_true",
    help="check everything, print the whole configuration, run nothing",
  )
  hosts.add_flags(parser)
  flags = parser.parse_args(rest)
  set_up_logging()
  return guarded(_run, flags, bindings)


def _run(flags: argparse.Namespace, bindings: Sequence[str]) -> None:
  run(
    flags.run_mode,
    flags.gin_file,
    [*flags.gin_bindings, *bindings],
    [path for path in flags.gin_search_paths.split(",") if path],
    dry_run=flags.dry_run,
    join=hosts.from_flags(flags),
  )


if __name__ == "__main__":
  sys.exit(main())
