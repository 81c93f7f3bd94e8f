"""What gin files say, as data: a Program of bindings with their places.

Notation: a *macro* is `NAME = value`; a *binding* is `target.parameter =
value`, where the target is a callable's dotted Python name after the file's
import aliases are resolved; the last binding of a name wins.
"""

import collections
import dataclasses
import difflib
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

REQUIRED = "gin.REQUIRED"


class ConfigError(ValueError):
  """A mistake in a configuration: says where, what, and what to do."""


@dataclasses.dataclass(frozen=True)
class Reference:
  """`@scope/target` or, evaluated, `@scope/target()`."""

  target: str
  scope: str
  evaluate: bool


@dataclasses.dataclass(frozen=True)
class Macro:
  """`%name`; gin.REQUIRED is the one that stands for "not yet set"."""

  name: str


class Key(NamedTuple):
  """What a statement sets; a macro has an empty target."""

  scope: str
  target: str
  parameter: str

  def __str__(self) -> str:
    return name_of(self.scope, self.target, self.parameter)


class Binding(NamedTuple):
  """The value a statement gives, and the statement's place."""

  value: Any
  where: str


def name_of(scope: str, target: str, parameter: str) -> str:
  """What a user would type, the package's own name left out."""
  short = target.removeprefix("byt5_diffusion.")
  name = f"{short}.{parameter}" if short else parameter
  return f"{scope}/{name}" if scope else name


def nearest(name: str, candidates: Sequence[str]) -> str:
  """' Did you mean X?' for the most similar candidate, else ''."""
  folded: dict[str, str] = {}
  for candidate in sorted(set(candidates)):
    folded.setdefault(candidate.lower(), candidate)
  found = difflib.get_close_matches(name.lower(), list(folded), 1, 0.6)
  return f" Did you mean {folded[found[0]]}?" if found else ""


def leaves(value: Any) -> Iterator[Any]:
  """Every literal, Reference and Macro inside a value."""
  if isinstance(value, dict):
    for key, item in value.items():
      yield from leaves(key)
      yield from leaves(item)
  elif isinstance(value, (list, tuple)):
    for item in value:
      yield from leaves(item)
  else:
    yield value


@dataclasses.dataclass(kw_only=True)
class Program:
  """Everything the files and the command line set, the last word of each.

  Attributes:
    bindings: Key -> Binding.
    imports: dotted module name -> place of its first import.
    files: the gin files in the order in which they were opened.
    superseded: values that a later statement replaced.
  """

  bindings: dict[Key, Binding] = dataclasses.field(default_factory=dict)
  imports: dict[str, str] = dataclasses.field(default_factory=dict)
  files: list[str] = dataclasses.field(default_factory=list)
  superseded: dict[Key, list[Binding]] = dataclasses.field(
    default_factory=lambda: collections.defaultdict(list)
  )

  def only(self, keys: Collection[Key]) -> "Program":
    """The part with these keys."""
    bindings = {key: b for key, b in self.bindings.items() if key in keys}
    return dataclasses.replace(self, bindings=bindings, superseded={})

  def macro(self, name: str) -> Any:
    """The literal behind a macro, `%OTHER` inside it followed; None if unset.

    For a checked program: macros in a circle never end.
    """
    binding = self.bindings.get(Key("", "", name))
    return None if binding is None else self._literal(binding.value)

  def _literal(self, value: Any) -> Any:
    if isinstance(value, Macro):
      return self.macro(value.name)
    if isinstance(value, dict):
      return {self._literal(k): self._literal(x) for k, x in value.items()}
    if isinstance(value, (list, tuple)):
      return type(value)(self._literal(item) for item in value)
    return value

  def macros(self) -> list[str]:
    return [key.parameter for key in self.bindings if not key.target]

  def module_of(self, target: str) -> str:
    """The longest imported module that the target lies in, else ''."""
    parts = target.split(".")
    for end in range(len(parts) - 1, 0, -1):
      if ".".join(parts[:end]) in self.imports:
        return ".".join(parts[:end])
    return ""

  def targets(self) -> dict[str, str]:
    """Every callable named, in bindings and in values -> its first place."""
    places: dict[str, str] = {}
    for key, binding in self.bindings.items():
      if key.target:
        places.setdefault(key.target, binding.where)
      for leaf in leaves(binding.value):
        if isinstance(leaf, Reference):
          places.setdefault(leaf.target, binding.where)
    return places
