"""Keeps a stranger's config from asking for more than any network has.

Which arrays a network has is found by tracing it, which takes time and memory
by its blocks. So sizes and depths are held to the bounds of a stranger's
model.gin first, and whatever cannot be traced then is the config's fault.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from byt5_diffusion import model_gin
from byt5_diffusion.conversion import names

ConversionError = names.ConversionError

# What configs raise for values that they were not made for.
CONFIG_ERRORS = (
  *(ArithmeticError, AttributeError, LookupError),
  *(TypeError, ValueError),
)
_LAYERS = ("num_layers", "num_encoder_layers", "num_decoder_layers")


def checked(config: Any, where: str) -> Any:
  """The config, whose sizes are such as networks have.

  Args:
    config: a dataclass of one of the families.
    where: its file, for messages.

  Raises:
    ConversionError: a size, or a number of blocks, is absurd; names it.
  """
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    numbers = value if isinstance(value, tuple) else (value,)
    if len(numbers) > model_gin.MAX_ENTRIES:
      raise ConversionError(
        f"{where}: {field.name} of {len(numbers)} levels; more than"
        f" {model_gin.MAX_ENTRIES} are refused."
      )
    low, high = model_gin.BOUNDS.get(field.name, model_gin.OTHER_BOUNDS)
    is_size = field.name in model_gin.BOUNDS and value is not None
    for number in numbers:
      if is_size and type(number) is not int:
        raise ConversionError(
          f"{where}: {field.name} = {str(number)[:40]!r} is no whole number."
        )
      if type(number) is int and not low <= number <= high:
        raise ConversionError(
          f"{where}: {field.name} = {str(number)[:40]} is not in {low} .."
          f" {high}; refused."
        )
  blocks = getattr(config, "num_blocks", 0)
  blocks += sum(getattr(config, name, 0) for name in _LAYERS)
  if blocks > model_gin.MAX_BLOCKS:
    raise ConversionError(
      f"{where}: a network of {blocks} blocks; more than"
      f" {model_gin.MAX_BLOCKS} are refused."
    )
  return config


def shapes(family: Any, config: Any) -> Mapping[str, jax.ShapeDtypeStruct]:
  """{our name: shape and dtype} of a network of a family.

  Raises:
    ConversionError: there is no network of that config.
  """
  try:
    found: Mapping[str, jax.ShapeDtypeStruct] = family.module.shapes(config)
  # JAX and flax raise whatever comes to hand.
  except Exception as error:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    raise ConversionError(
      f"No {family.kind} can be built by its config: {reason[:200]}"
    ) from None
  return found
