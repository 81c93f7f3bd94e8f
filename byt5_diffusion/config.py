"""Configuration: gin files in, a checked run out.

`parse` reads the files as data, checks every name, type and use against the
code, and only then hands the result to gin. So a mistyped name, a "False" for a
bool, a macro that nothing reads or a value that is still to be set is one clear
message before anything is compiled.

Paths in `--gin_file` and `include` are rooted at the folder `gin/`, e.g.
`include "models/text_to_image.gin"`. Searched are, in this order: the working
directory, `--gin_search_paths`, `gin_root()`. See docs/gin.md.
"""

import os
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import gin

import byt5_diffusion
from byt5_diffusion import (
  config_checks,
  config_program,
  config_source,
  config_text,
  model_gin,
)

ConfigError = config_program.ConfigError
Program = config_program.Program

CONFIG_FILE = "config.gin"
MODEL_FILE = "model.gin"
# --run_mode -> the function it calls.
PROGRAMS = {
  "train": "byt5_diffusion.trainer.train",
  "eval": "byt5_diffusion.evaluation.evaluate",
  "infer": "byt5_diffusion.inference.infer",
  "read": "byt5_diffusion.reading.read_data",
}

# What `parse` parsed last; gin's own configuration is just as global.
_parsed: Program | None = None


def gin_root() -> pathlib.Path:
  """The folder of this package's gin files, in a checkout or a wheel."""
  package = pathlib.Path(byt5_diffusion.__file__).resolve().parent
  for folder in (package / "gin", package.parent / "gin"):
    if (folder / "runs").is_dir():
      return folder
  raise ConfigError(f"The gin files are missing beside or inside {package}.")


def read(
  gin_files: Sequence[str],
  gin_bindings: Sequence[str] = (),
  search_paths: Sequence[str | os.PathLike[str]] = (),
) -> Program:
  """What the files and bindings say; imports and runs nothing."""
  root = gin_root()
  reader = config_source.Reader(["", *search_paths, root], root=root)
  for name in gin_files:
    reader.read_file(os.fspath(name))
  reader.read_command_line(gin_bindings)
  return reader.program


def parse(
  gin_files: Sequence[str],
  gin_bindings: Sequence[str] = (),
  search_paths: Sequence[str | os.PathLike[str]] = (),
  *,
  run_mode: str | None = None,
  roots: Sequence[str] = tuple(PROGRAMS.values()),
) -> Program:
  """Reads, checks, and gives the result to gin, replacing what gin had.

  Args:
    gin_files: paths rooted at a search path, or absolute; later ones win.
    gin_bindings: "NAME=VALUE" of the command line, which win over files. NAME
      is a macro or the end of a callable's name: "adamw.weight_decay".
    search_paths: folders tried after the working directory.
    run_mode: one of PROGRAMS: all that this program needs must be
      set. None: nothing need be.
    roots: dotted names of the programs; a binding that none of them reads is
      an error.

  Returns:
    All that the roots read.

  Raises:
    ConfigError: one line per mistake, with its place.
  """
  global _parsed
  program = read(gin_files, gin_bindings, search_paths)
  checker = config_checks.Checker(program, gin_root())
  checker.check_names()
  checker.check_types()
  if run_mode is not None:
    root = PROGRAMS[run_mode]
    if root not in program.targets():
      raise ConfigError(
        f"No gin file says what to {run_mode}: include 'runs/{run_mode}.gin'."
      )
    checker.check_required(root)
  checker.check_dead(roots)
  program = checker.needed(roots)
  # What another program still misses is not gin's business.
  run = program if run_mode is None else checker.needed([PROGRAMS[run_mode]])
  gin.clear_config()
  gin.parse_config(config_text.to_text(run))
  if run_mode is not None:
    gin.finalize()
  _parsed = program
  return program


def write_configs(
  model_dir: str | os.PathLike[str], program: Program | None = None
) -> str:
  """Writes config.gin (the run) and model.gin (the model) into model_dir.

  A file that differs is kept as config-1.gin, config-2.gin, ...

  Args:
    model_dir: made if absent. Only one process of a run may write.
    program: None for the one `parse` parsed last; without one (a library's
      user who never parsed any) nothing is written.

  Returns:
    The text of config.gin, '' if nothing was written.
  """
  program = program or _parsed
  if program is None:
    return ""
  folder = pathlib.Path(model_dir)
  folder.mkdir(parents=True, exist_ok=True)
  version = f"byt5_diffusion {byt5_diffusion.__version__}"
  text = config_text.to_text(
    program,
    f"The whole run, for the record, flattened from {', '.join(program.files)}"
    f"\nand the command line, by {version}.",
  )
  _write(folder / CONFIG_FILE, text)
  if model_gin.MACRO in program.macros():
    model_text = model_gin.text_of(
      program, f"The model and its sampler; inference reads this.\n{version}."
    )
    _write(folder / MODEL_FILE, model_text)
  return text


def load_model_gin(
  path: str | os.PathLike[str], trust_config: bool = False
) -> Any:
  """Builds the model of a model.gin, or of the one in a folder.

  Unless trust_config, nothing outside a table of this package's constructors is
  imported or called, whatever the file says (model_gin.ALLOWED).
  """
  path = pathlib.Path(path)
  if path.is_dir():
    path = path / MODEL_FILE
  return model_gin.load(path, trust_config=trust_config)


def _write(path: pathlib.Path, text: str) -> None:
  """Whole or not at all; a differing file is moved aside first."""
  if path.exists():
    if path.read_bytes() == text.encode("utf-8"):
      return
    number = 1
    while (older := path.with_stem(f"{path.stem}-{number}")).exists():
      number += 1
    path.rename(older)
  handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
  try:
    with os.fdopen(handle, "w", encoding="utf-8") as file:
      file.write(text)
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)
  except BaseException:
    os.unlink(temporary)
    raise
