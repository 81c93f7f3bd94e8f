"""model.gin: what a checkpoint's model and sampler are, and nothing else.

A gin file is code: gin imports any module and calls any function that a file
names. A folder of weights from a stranger must not do that, so model.gin is
read as text, everything it names is looked up in the table below, and only then
is it built, by a small evaluator of its own: gin's machinery never sees it. Few
lines can also ask for endless work, so what a file may ask for has bounds.
"""

import functools
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from byt5_diffusion import (
  config_checks,
  config_program,
  config_source,
  config_text,
  config_types,
)

ConfigError = config_program.ConfigError
Key = config_program.Key
Macro = config_program.Macro
Program = config_program.Program
Reference = config_program.Reference

MACRO = "MODEL"
# What %MODEL of a stranger's file is made by.
MODEL_CLASSES = (
  "byt5_diffusion.models.TextToImageModel",
  "byt5_diffusion.ocr.OcrModel",
  "byt5_diffusion.joint.JointModel",
  "byt5_diffusion.super_resolution.SuperResolutionModel",
)
MAX_BYTES = 256 * 1024
# A run's file has some 60 statements and evaluates some 80 values.
MAX_STATEMENTS = 1000
MAX_SCOPE_DEPTH = 8
MAX_EVALUATIONS = 10_000
MAX_MESSAGE = 1000
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
  "byt5_diffusion.autoencoder": ("KLCodec", "PixelCodec"),
  "byt5_diffusion.autoencoder_kl": ("AutoencoderKL", "AutoencoderKLConfig"),
  "byt5_diffusion.byt5": ("Byt5Config", "TextEncoder"),
  "byt5_diffusion.byt5_decoder": ("TextDecoder",),
  "byt5_diffusion.diffusion": (
    "cosine_schedule",
    "flow_schedule",
    "linear_schedule",
    "min_snr_weight",
    "p2_weight",
    "scaled_linear_schedule",
    "shifted_schedule",
    "squared_cosine_schedule",
    "uniform_weight",
    "zero_terminal_snr_schedule",
  ),
  "byt5_diffusion.guidance": (
    "compose",
    "dynamic_thresholding",
    "rescale_guidance",
    "static_thresholding",
  ),
  "byt5_diffusion.joint": ("JointModel",),
  "byt5_diffusion.models": ("TextToImageModel",),
  "byt5_diffusion.ocr": ("OcrModel", "PatchFeatures", "UNetFeatures"),
  "byt5_diffusion.patches": ("PatchConfig", "PatchEncoder"),
  "byt5_diffusion.samplers": (
    "ddim",
    "ddpm",
    "dpm_solver_pp_2m",
    "euler",
    "euler_ancestral",
    "heun",
  ),
  "byt5_diffusion.sampling_steps": ("discrete_steps",),
  "byt5_diffusion.super_resolution": ("SuperResolutionModel",),
  "byt5_diffusion.unet": ("UNet", "UNetConfig"),
  "byt5_diffusion.unipc": ("unipc",),
}
# Parameter -> (least, greatest), for each number in its value: far beyond any
# network in use, and far below what no machine could hold.
_DEPTH, _WIDTH, _SIDE = (0, 1000), (1, 65_536), (1, 16_384)
BOUNDS: Mapping[str, tuple[int, int]] = {
  "beam_size": (1, 1024),
  "base_size": _SIDE,
  "channels": _WIDTH,
  "crop_size": _SIDE,
  "cross_attention_dim": _WIDTH,
  "embed_dim": _WIDTH,
  "factor": (2, 64),
  "head_dim": _WIDTH,
  "image_channels": _WIDTH,
  "image_size": _SIDE,
  "in_channels": _WIDTH,
  "latent_channels": _WIDTH,
  "max_patches": (1, 65_536),
  "max_semantic_length": (1, 8192),
  "max_text_length": (1, 8192),  # Tracing makes a table of its square.
  "micro_conditioning_features": (0, 65_536),
  "mid_transformer_depth": _DEPTH,
  "mlp_dim": _WIDTH,
  "norm_groups": _WIDTH,
  "num_decoder_layers": _DEPTH,
  "num_encoder_layers": _DEPTH,
  "num_heads": _WIDTH,
  "num_layers": _DEPTH,
  "num_res_blocks": _DEPTH,
  "num_sampling_steps": (1, 10_000),
  "num_train_timesteps": (1, 100_000),
  "out_channels": _WIDTH,
  "patch_size": (1, 1024),
  "pooled_text_dim": (0, 65_536),
  "relpos_max_distance": (1, 65_536),
  "relpos_num_buckets": (1, 65_536),
  "text_pooling_heads": _WIDTH,
  "text_projection_dim": _WIDTH,
  "time_embedding_dim": _WIDTH,
  "sample_size": _SIDE,
  "tile_overlap": (0, 16_384),
  "tile_size": _SIDE,
  "transformer_depth": _DEPTH,
  "vocab_size": (1, 2**20),
}
OTHER_BOUNDS = (-(2**31), 2**31)
# Of a network: SDXL has 90, and 1000 take half a minute to trace.
MAX_BLOCKS = 1000
MAX_ENTRIES = 16  # of a list: each level of a UNet halves the sides
CHOICES: Mapping[str, tuple[str, ...]] = {
  "dtype": ("bfloat16", "float16", "float32", "float64"),
}
# Parameters that are annotated too widely, and the classes they are made by.
CLASSES_OF: Mapping[str, tuple[str, ...]] = {
  "codec": (
    "byt5_diffusion.autoencoder.KLCodec",
    "byt5_diffusion.autoencoder.PixelCodec",
  ),
  "decoder": ("byt5_diffusion.byt5_decoder.TextDecoder",),
  "encoder": ("byt5_diffusion.patches.PatchEncoder",),
  "features": (
    "byt5_diffusion.ocr.PatchFeatures",
    "byt5_diffusion.ocr.UNetFeatures",
  ),
  "semantic_encoder": ("byt5_diffusion.byt5.TextEncoder",),
  "text_encoder": ("byt5_diffusion.byt5.TextEncoder",),
  "unet": ("byt5_diffusion.unet.UNet",),
}


def text_of(program: Program, header: str = "") -> str:
  """The text of model.gin for a whole run."""
  part = config_text.closure(program, MACRO, TRAINING_ONLY)
  return config_text.to_text(part, header)


_REMEDY = (
  " If you trust whoever made this folder with your account, --trust_config"
  " reads it without this limit."
)


# What a constructor may raise for values that it was not made for.
_BROKEN = (
  ArithmeticError,
  AttributeError,
  LookupError,
  MemoryError,
  TypeError,
  ValueError,
)


def load(path: str | os.PathLike[str], *, trust_config: bool = False) -> Any:
  """Builds the model that a model.gin describes.

  Args:
    path: the file.
    trust_config: allow includes, any import, any callable and any number: runs
      whatever the file's author wants.

  Returns:
    %MODEL, built; gin's own global configuration is neither read nor changed.

  Raises:
    ConfigError: unreadable, not allowed, or not matching this version's code.
  """
  text = _read(path)
  reader = config_source.Reader([os.path.dirname(os.path.abspath(path))])
  try:
    reader.read_text(text, str(path), include=trust_config, quote=trust_config)
    if not trust_config:
      check_allowed(reader.program)
      check_size(reader.program)
      check_classes(reader.program)
    if MACRO not in reader.program.macros():
      raise ConfigError(f"{path}: {MACRO} is not set in this file.")
    check_model(reader.program, () if trust_config else MODEL_CLASSES)
    return build(reader.program, MACRO, limited=not trust_config)
  except ConfigError:
    raise
  except RecursionError:
    raise ConfigError(
      f"{path}: cannot be built: its values are nested too deeply."
    ) from None
  except _BROKEN as error:
    reason = str(error)[:MAX_MESSAGE]
    raise ConfigError(f"{path}: cannot be built: {reason}") from error


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


def check_size(program: Program) -> None:
  """Few statements, flat scopes, no undefined macro: the checks end soon."""
  if len(program.bindings) > MAX_STATEMENTS:
    where = next(iter(program.bindings.values())).where
    raise ConfigError(
      f"{where}: more than {MAX_STATEMENTS} statements from here on.{_REMEDY}"
    )
  known = {*program.macros(), config_program.REQUIRED}
  problems = []
  for key, binding in program.bindings.items():
    leaves = list(config_program.leaves(binding.value))
    scopes = [leaf.scope for leaf in leaves if isinstance(leaf, Reference)]
    scopes.append(key.scope if key.target else key.parameter)
    macros = [leaf.name for leaf in leaves if isinstance(leaf, Macro)]
    unknown = [name for name in macros if name not in known]
    if unknown:
      name = unknown[0][:MAX_MESSAGE]
      problems.append(f"{binding.where}: %{name} is not defined.")
    if max(scope.count("/") for scope in scopes) >= MAX_SCOPE_DEPTH:
      problems.append(
        f"{binding.where}: a scope of more than {MAX_SCOPE_DEPTH} names."
        f"{_REMEDY}"
      )
  config_checks.fail(problems)


def check_model(program: Program, classes: Sequence[str]) -> None:
  """%MODEL is a call; of one of these classes, unless there are none."""
  value = config_checks.Checker(program).resolve(Macro(MACRO))
  if isinstance(value, Macro):
    return  # A circle or an undefined name, which `build` reports as such.
  called = isinstance(value, Reference) and value.evaluate
  if not _makes(value, classes):
    wanted = _calls(classes or MODEL_CLASSES, ", ")
    where = program.bindings[Key("", "", MACRO)].where
    raise ConfigError(
      f"{where}: {MACRO} must be a model, as {wanted}."
      f"{_REMEDY if called else ''}"
    )


def check_classes(program: Program) -> None:
  """What CLASSES_OF names is a call of one of its classes."""
  checker = config_checks.Checker(program)
  problems = []
  for key, binding in program.bindings.items():
    classes = CLASSES_OF.get(key.parameter) if key.target else None
    value = checker.resolve(binding.value) if classes else None
    # A macro is a circle, which `build` reports as such.
    if classes and not isinstance(value, Macro) and not _makes(value, classes):
      problems.append(
        f"{binding.where}: {key.parameter} must be"
        f" {_calls(classes, ' or ')}, not {config_types.spell(value)}.{_REMEDY}"
      )
  config_checks.fail(problems)


def _makes(value: Any, classes: Sequence[str]) -> bool:
  """Whether it is a call, and of one of these classes if there are any."""
  called = isinstance(value, Reference) and value.evaluate
  return called and (not classes or value.target in classes)


def build(program: Program, macro: str, *, limited: bool = False) -> Any:
  """Evaluates %macro as gin would, without gin.

  Args:
    program: what was read.
    macro: its name.
    limited: refuse numbers outside of BOUNDS, and endless work.
  """
  checker = config_checks.Checker(program)
  checker.check_names()
  checker.check_types()
  walk = config_checks.Walk(checker)
  walk.read_macro(macro, macro)
  config_checks.fail(walk.missing)
  return _Evaluator(checker, limited).evaluate(Macro(macro), (), macro)


def check_value(name: str, value: Any, where: str) -> None:
  """A parameter's value is within BOUNDS and CHOICES.

  Raises:
    ConfigError: it is not; names the parameter and the bound.
  """
  choices = CHOICES.get(name)
  if choices and value not in choices:
    shown = repr(value)[:60]
    raise ConfigError(
      f"{where}: {name} = {shown} is none of {', '.join(choices)}.{_REMEDY}"
    )
  low, high = BOUNDS.get(name, OTHER_BOUNDS)
  for number in _integers(value):
    if not low <= number <= high:
      raise ConfigError(
        f"{where}: {name} = {_shown(number)} is not in {low} .. {high}."
        f"{_REMEDY}"
      )
  is_list = isinstance(value, (list, tuple))
  if name in BOUNDS and is_list and len(value) > MAX_ENTRIES:
    raise ConfigError(
      f"{where}: {name} has {len(value)} entries, more than {MAX_ENTRIES}."
      f"{_REMEDY}"
    )


def check_blocks(made: Any, where: str) -> None:
  """A network has at most MAX_BLOCKS blocks, whatever it multiplies them by.

  Raises:
    ConfigError: it has more.
  """
  count = getattr(made, "num_blocks", 0)
  if count > MAX_BLOCKS:
    raise ConfigError(
      f"{where}: this {type(made).__name__} has {count} blocks, more than"
      f" {MAX_BLOCKS}.{_REMEDY}"
    )


def _calls(classes: Sequence[str], separator: str) -> str:
  """As a gin file calls them: "@ocr.PatchFeatures() or @ocr.UNetFeatures()"."""
  return separator.join(
    f"@{name.removeprefix('byt5_diffusion.')}()" for name in classes
  )


def _integers(value: Any) -> Iterator[int]:
  for leaf in config_program.leaves(value):
    if isinstance(leaf, int) and not isinstance(leaf, bool):
      yield leaf


def _shown(number: int) -> str:
  """Python itself refuses to spell very long integers."""
  bits = number.bit_length()
  return str(number) if bits <= 64 else f"a number of {bits} bits"


class _Evaluator:
  """Turns a checked Program's values into objects, counting what it does."""

  def __init__(self, checker: config_checks.Checker, limited: bool) -> None:
    self._checker = checker
    self._limited = limited
    self._count = 0

  def evaluate(self, value: Any, scope: tuple[str, ...], where: str) -> Any:
    """The value, with its references called in this scope."""
    self._spend(1, where)
    if isinstance(value, Macro):
      binding = self._checker.program.bindings[Key("", "", value.name)]
      inside = tuple(value.name.split("/"))
      return self.evaluate(binding.value, inside, binding.where)
    if isinstance(value, Reference):
      inside = tuple(value.scope.split("/")) if value.scope else scope
      if value.evaluate:
        return self.call(value.target, inside, where)
      # Called some day by what it is given to: counted on its own then.
      later = _Evaluator(self._checker, self._limited)
      return functools.partial(later.call_later, value.target, inside, where)
    if isinstance(value, dict):
      return {
        self.evaluate(key, scope, where): self.evaluate(item, scope, where)
        for key, item in value.items()
      }
    if isinstance(value, (list, tuple)):
      return type(value)(self.evaluate(item, scope, where) for item in value)
    return value

  def _spend(self, count: int, where: str) -> None:
    self._count += count
    if self._limited and self._count > MAX_EVALUATIONS:
      raise ConfigError(
        f"{where}: building this takes more than {MAX_EVALUATIONS}"
        f" evaluations.{_REMEDY}"
      )

  def call_later(
    self,
    target: str,
    scope: tuple[str, ...],
    where: str,
    *args: Any,
    **given: Any,
  ) -> Any:
    self._count = 0
    return self.call(target, scope, where, *args, **given)

  def call(
    self,
    target: str,
    scope: tuple[str, ...],
    where: str,
    *args: Any,
    **given: Any,
  ) -> Any:
    """Calls a target with what is bound to it; given arguments win."""
    self._spend(1 + len(scope), where)
    bound = {}
    program = self._checker.program
    for key in config_checks.bound_keys(program, target, scope):
      if key.parameter in given:
        continue
      binding = program.bindings[key]
      value = self.evaluate(binding.value, scope, binding.where)
      if self._limited:
        check_value(key.parameter, value, binding.where)
      bound[key.parameter] = value
    made = self._checker.objects[target](*args, **bound, **given)
    if self._limited:
      check_blocks(made, where)
    return made
