"""A recipe as it would run, without running it.

`arguments` gives what gin would call a program with: the model, built; the
data, ready to be opened; every number. Folders that a run writes to may be left
open, because nothing here writes.
"""

import importlib
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gin

from byt5_diffusion import config, config_checks, config_program

TINY = (
  "sizes/tiny.gin",
  "sizes/reader_tiny.gin",
  "sizes/t5_tiny.gin",
  "sizes/vae_tiny.gin",
)
# Where a run would read or write; nothing is there.
NOWHERE = "unset"
_FOLDERS = ("_DIR", "_PATH")


def parse(
  recipe: str, gin_bindings: Sequence[str], run_mode: str
) -> config_program.Program:
  """config.parse, with the folders of a run set to nowhere where left open.

  Raises:
    config.ConfigError: as config.parse.
  """
  left_open = folders_left_open(config.read([recipe], gin_bindings))
  return config.parse(
    [recipe],
    [*(f"{name}={NOWHERE!r}" for name in left_open), *gin_bindings],
    run_mode=run_mode,
  )


def folders_left_open(program: config_program.Program) -> list[str]:
  """Macros of folders that the command line has yet to set."""
  return [
    key.parameter
    for key, binding in program.bindings.items()
    if not key.target
    and key.parameter.endswith(_FOLDERS)
    and config_checks.is_required(binding.value)
  ]


def run_modes(recipe: str, gin_bindings: Sequence[str]) -> list[str]:
  """The programs that a recipe says anything of, in config.PROGRAMS' order."""
  targets = config.read([recipe], gin_bindings).targets()
  return [mode for mode, name in config.PROGRAMS.items() if name in targets]


def arguments(run_mode: str) -> dict[str, Any]:
  """The arguments of a program of the recipe that was parsed last, by name.

  Data are callables of gin's: they read the configuration when called, so open
  them before another recipe is parsed.
  """
  module, _, name = config.PROGRAMS[run_mode].rpartition(".")
  program = getattr(importlib.import_module(module), name)
  given = {
    parameter.name: parameter.default
    for parameter in inspect.signature(program).parameters.values()
    if parameter.default is not parameter.empty
  }
  return given | gin.get_bindings(config.PROGRAMS[run_mode])


def sized_down(
  program: config_program.Program, batch_size: int
) -> dict[str, Any]:
  """Macros that make a recipe small: {name: value}, of those that it has.

  Networks get the sizes of TINY; pictures and captions keep theirs.
  """
  tiny = config.read(TINY)
  values = {name: tiny.macro(name) for name in tiny.macros()}
  del values["T5_VOCAB_SIZE"]  # The recipe's SentencePiece model must fit.
  values |= {"BATCH_SIZE": batch_size, "NUM_STREAMS": 1, "NUM_PARTITIONS": 1}
  known = program.macros()
  if "VAE_CHANNELS" in known:
    # As many levels as the recipe's, so that latents keep their sides.
    levels = len(program.macro("VAE_CHANNELS"))
    values["VAE_CHANNELS"] = values["VAE_CHANNELS"][:levels]
  return {name: value for name, value in values.items() if name in known}


def without(gin_bindings: Sequence[str], names: Mapping[str, Any]) -> list[str]:
  """The bindings that set none of these macros."""
  return [
    binding
    for binding in gin_bindings
    if binding.partition("=")[0].strip() not in names
  ]


def open_data(
  data: Callable[..., Any], batch_size: int, **overrides: Any
) -> Any:
  """Opens a program's data on one host, as one stream.

  Args:
    data: train_data, validation_data or infer_data of `arguments`.
    batch_size: of the batches.
    **overrides: keywords, left out where `data` has no such.
  """
  known = inspect.signature(data).parameters
  if "num_streams" in known:
    overrides.setdefault("num_streams", 1)
  keywords = {k: value for k, value in overrides.items() if k in known}
  return data(batch_size=batch_size, host_index=0, host_count=1, **keywords)


def close(batches: Any) -> None:
  """Ends the threads of batches that have any."""
  getattr(batches, "close", lambda: None)()


def missing_path(path: Any) -> str | None:
  """The path as text if nothing is there; None for None or an existing one."""
  if path is None or os.path.exists(os.fspath(path)):
    return None
  return os.fspath(path)
