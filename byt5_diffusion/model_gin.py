"""model.gin: what a checkpoint's model and sampler are, and nothing else.

A gin file is code: gin imports any module and calls any function that a file
names. A folder of weights from a stranger must not do that, so model.gin is
read as text, everything it names is looked up in the table below, and only then
is it built, by a small evaluator of its own: gin's machinery never sees it.
"""

import functools
import os
import stat
from collections.abc import Mapping
from typing import Any

from byt5_diffusion import (
  config_checks,
  config_program,
  config_source,
  config_text,
)

ConfigError = config_program.ConfigError
Key = config_program.Key
Macro = config_program.Macro
Program = config_program.Program
Reference = config_program.Reference

MACRO = "MODEL"
MAX_BYTES = 256 * 1024
# Parameters of a model that only its training reads.
TRAINING_ONLY = (
  "optimizer_def",
  "feature_converter_cls",
  "input_vocabulary",
  "output_vocabulary",
)
# All that a stranger's model.gin may name: pure constructors, which touch no
# file, no network and no interpreter, whatever their arguments are.
ALLOWED: Mapping[str, tuple[str, ...]] = {
  "byt5_diffusion.autoencoder": ("PixelCodec",),
  "byt5_diffusion.byt5": ("Byt5Config", "TextEncoder"),
  "byt5_diffusion.diffusion": (
    "cosine_schedule",
    "flow_schedule",
    "linear_schedule",
    "min_snr_weight",
    "p2_weight",
    "scaled_linear_schedule",
    "shifted_schedule",
    "uniform_weight",
    "zero_terminal_snr_schedule",
  ),
  "byt5_diffusion.guidance": (
    "compose",
    "dynamic_thresholding",
    "rescale_guidance",
    "static_thresholding",
  ),
  "byt5_diffusion.models": ("TextToImageModel",),
  "byt5_diffusion.samplers": (
    "ddim",
    "ddpm",
    "dpm_solver_pp_2m",
    "euler",
    "euler_ancestral",
    "heun",
  ),
  "byt5_diffusion.unet": ("UNet", "UNetConfig"),
}


def text_of(program: Program, header: str = "") -> str:
  """The text of model.gin for a whole run."""
  part = config_text.closure(program, MACRO, TRAINING_ONLY)
  return config_text.to_text(part, header)


_REMEDY = (
  " If you trust whoever made this folder with your account, --trust_config"
  " reads it without this limit."
)


def load(path: str | os.PathLike[str], *, trust_config: bool = False) -> Any:
  """Builds the model that a model.gin describes.

  Args:
    path: the file.
    trust_config: allow includes, any import and any callable: runs whatever the
      file's author wants.

  Returns:
    %MODEL, built; gin's own global configuration is neither read nor changed.

  Raises:
    ConfigError: unreadable, not allowed, or not matching this version's code.
  """
  text = _read(path)
  reader = config_source.Reader([os.path.dirname(os.path.abspath(path))])
  reader.read_text(text, str(path), include=trust_config, quote=trust_config)
  if not trust_config:
    check_allowed(reader.program)
  if MACRO not in reader.program.macros():
    raise ConfigError(f"{path}: {MACRO} is not set in this file.")
  try:
    return build(reader.program, MACRO)
  except ConfigError:
    raise
  except (ArithmeticError, MemoryError, TypeError, ValueError) as error:
    raise ConfigError(f"{path}: cannot be built: {error}") from error


def _read(path: str | os.PathLike[str]) -> str:
  """A small regular file as UTF-8."""
  try:
    # A pipe or a device would never end, so look before opening.
    if not stat.S_ISREG(os.stat(path).st_mode):
      raise ConfigError(f"{path}: not a regular file.")
    with open(path, "rb") as file:
      data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
      raise ConfigError(f"{path}: larger than {MAX_BYTES} bytes.")
    return data.decode("utf-8")
  except UnicodeDecodeError:
    raise ConfigError(f"{path}: not UTF-8 text.") from None
  except OSError as error:
    raise ConfigError(f"{path}: {error.strerror or error}.") from None


def check_allowed(program: Program) -> None:
  """Every import and name is in the table; imports nothing itself."""
  config_checks.fail(
    [
      f"{where}: import of {module} is not allowed in a model.gin.{_REMEDY}"
      for module, where in program.imports.items()
      if module not in ALLOWED
    ]
  )
  allowed = {
    f"{module}.{name}" for module, names in ALLOWED.items() for name in names
  }
  config_checks.fail(
    [
      f"{where}: {target} is not allowed in a model.gin.{_REMEDY}"
      for target, where in program.targets().items()
      if target not in allowed
    ]
  )


def build(program: Program, macro: str) -> Any:
  """Evaluates %macro as gin would, without gin."""
  checker = config_checks.Checker(program)
  checker.check_names()
  checker.check_types()
  walk = config_checks.Walk(checker)
  walk.read_macro(macro, macro)
  config_checks.fail(walk.missing)
  return _evaluate(Macro(macro), (), checker)


def _evaluate(
  value: Any, scope: tuple[str, ...], checker: config_checks.Checker
) -> Any:
  def inner(item: Any) -> Any:
    return _evaluate(item, scope, checker)

  if isinstance(value, Macro):
    binding = checker.program.bindings[Key("", "", value.name)]
    return _evaluate(binding.value, tuple(value.name.split("/")), checker)
  if isinstance(value, Reference):
    inside = tuple(value.scope.split("/")) if value.scope else scope
    function = functools.partial(_call, checker, value.target, inside)
    return function() if value.evaluate else function
  if isinstance(value, dict):
    return {inner(key): inner(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return type(value)(inner(item) for item in value)
  return value


def _call(
  checker: config_checks.Checker,
  target: str,
  scope: tuple[str, ...],
  *args: Any,
  **given: Any,
) -> Any:
  """Calls a target with what is bound to it; given arguments win."""
  bound = {
    key.parameter: checker.program.bindings[key].value
    for key in config_checks.bound_keys(checker.program, target, scope)
  }
  bound = {
    name: _evaluate(value, scope, checker)
    for name, value in bound.items()
    if name not in given
  }
  return checker.objects[target](*args, **bound, **given)
