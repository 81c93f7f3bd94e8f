"""Does a gin value fit a Python annotation? Says no only when sure.

gin itself checks no types: "False" for a bool is truthy, "3" for an int fails
an hour later inside a jitted function.
"""

import collections.abc
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from byt5_diffusion import config_program

Reference = config_program.Reference
# Resolves a value's %macros to their values.
Resolve = Callable[[Any], Any]
Lookup = Callable[[str], Any]

_PLAIN = (bool, int, float, str, bytes)
_MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)
_LISTS = (
  list,
  collections.abc.Sequence,
  collections.abc.Iterable,
  collections.abc.Collection,
  collections.abc.MutableSequence,
)


def annotations(target: Any) -> dict[str, Any]:
  """Parameter name -> type, for a function's or constructor's parameters."""
  function = target
  if inspect.isclass(target):
    has_init = target.__init__ is not object.__init__
    function = target.__init__ if has_init else target.__new__
  try:
    hints = typing.get_type_hints(function)
  except Exception:  # An annotation that cannot be evaluated checks nothing.
    return {}
  if inspect.isclass(target):
    hints.pop("return", None)
  return hints


def parameters(target: Any) -> dict[str, inspect.Parameter] | None:
  """The parameters gin can bind; None when Python cannot tell."""
  try:
    return dict(inspect.signature(target).parameters)
  except (TypeError, ValueError):
    return None


def mismatch(value: Any, hint: Any, lookup: Lookup, resolve: Resolve) -> str:
  """Why the value does not fit, as "needs X, not Y"; '' if it may fit.

  Args:
    value: a literal with References and Macros inside.
    hint: the annotation.
    lookup: a Reference's target -> the Python object.
    resolve: Macro -> its value; other values unchanged.
  """
  value = resolve(value)
  if isinstance(value, config_program.Macro):  # unset: reported elsewhere
    return ""
  hint = _unwrap(hint)
  if isinstance(value, Reference):
    return _reference_mismatch(value, hint, lookup)
  origin = typing.get_origin(hint)
  if hint is Any or isinstance(hint, typing.TypeVar):
    return ""
  if origin in (typing.Union, types.UnionType):
    return _union_mismatch(value, hint, lookup, resolve)
  if origin is typing.Literal:
    choices = typing.get_args(hint)
    return "" if value in choices else _needs(hint, value)
  kind = origin or hint
  if kind in (None, types.NoneType):
    return "" if value is None else _needs(hint, value)
  if kind in _PLAIN:
    return "" if _fits_plain(value, kind) else _needs(hint, value)
  if kind in _MAPPINGS or kind in _LISTS or kind is tuple:
    return _container_mismatch(value, hint, kind, lookup, resolve)
  if kind is collections.abc.Callable or kind is type:
    return _needs(hint, value)
  return _object_mismatch(value, hint, kind)


def _unwrap(hint: Any) -> Any:
  while True:
    if hasattr(hint, "__supertype__"):  # NewType
      hint = hint.__supertype__
    elif typing.get_origin(hint) is typing.Annotated:
      hint = typing.get_args(hint)[0]
    elif hasattr(hint, "__value__"):  # `type X = ...`
      hint = hint.__value__
    else:
      return hint


def _fits_plain(value: Any, kind: type) -> bool:
  if isinstance(value, bool):
    return kind is bool
  return isinstance(value, (int, float) if kind is float else kind)


def _union_mismatch(
  value: Any, hint: Any, lookup: Lookup, resolve: Resolve
) -> str:
  choices = typing.get_args(hint)
  reasons = [mismatch(value, c, lookup, resolve) for c in choices]
  if "" in reasons:
    return ""
  others = [
    reason
    for choice, reason in zip(choices, reasons, strict=True)
    if choice is not types.NoneType
  ]
  return others[0] if len(others) == 1 else _needs(hint, value)


def _container_mismatch(
  value: Any, hint: Any, kind: Any, lookup: Lookup, resolve: Resolve
) -> str:
  inner = typing.get_args(hint)
  if kind in _MAPPINGS:
    if not isinstance(value, Mapping):
      return _needs(hint, value)
    pairs = [
      pair for item in value.items() for pair in zip(item, inner, strict=False)
    ]
  else:
    if not isinstance(value, tuple if kind is tuple else (list, tuple)):
      example = " (a tuple, as (1, 2))" if isinstance(value, list) else ""
      return _needs(hint, value) + example
    if kind is not tuple:
      inner = (*inner, ...) if inner else ()
    found = _element_pairs(value, inner)
    if found is None:
      return f"needs {len(inner)} elements, not {len(value)}"
    pairs = found
  for item, item_hint in pairs:
    reason = mismatch(item, item_hint, lookup, resolve)
    if reason:
      return f"{spell(item)} inside {reason}"
  return ""


def _element_pairs(
  value: Sequence[Any], inner: tuple[Any, ...]
) -> list[tuple[Any, Any]] | None:
  if not inner:
    return []
  if len(inner) == 2 and inner[1] is ...:
    return [(item, inner[0]) for item in value]
  if len(inner) != len(value):
    return None
  return list(zip(value, inner, strict=True))


def _object_mismatch(value: Any, hint: Any, kind: Any) -> str:
  """A literal where an object is wanted."""
  if not inspect.isclass(kind) or isinstance(value, kind):
    return ""
  if kind.__module__.partition(".")[0] in ("numpy", "jax", "ml_dtypes"):
    return ""  # numbers and dtype names turn into these
  if getattr(kind, "_is_protocol", False) and kind.__module__ == "typing":
    return ""  # SupportsFloat and its like
  if kind.__name__ == "PathLike" and isinstance(value, str):
    return ""
  return _needs(hint, value)


def _reference_mismatch(value: Reference, hint: Any, lookup: Lookup) -> str:
  target = lookup(value.target)
  name = spell(value)
  if not value.evaluate:
    if _takes_callable(hint):
      return ""
    return f"needs {_spell_type(hint)}, not a callable: write {name}()"
  result = target if inspect.isclass(target) else _return_type(target)
  if _may_be(result, hint):
    return ""
  return f"needs {_spell_type(hint)}, not the {_spell_type(result)} of {name}"


def _return_type(target: Any) -> Any:
  return _unwrap(annotations(target).get("return", Any))


def _takes_callable(hint: Any) -> bool:
  """May a bare @reference, a function or class, be bound to it?"""
  hint = _unwrap(hint)
  if hint is Any:  # a class, to inspect
    return True
  origin = typing.get_origin(hint)
  if origin in (typing.Union, types.UnionType):
    return any(_takes_callable(choice) for choice in typing.get_args(hint))
  kind = origin or hint
  if kind in (*_PLAIN, *_MAPPINGS, *_LISTS, tuple, types.NoneType, None):
    return False
  if kind in (collections.abc.Callable, type, object):
    return True
  if not inspect.isclass(kind):
    return True
  if getattr(kind, "_is_protocol", False):
    return "__call__" in vars(kind)
  return False


def _may_be(result: Any, hint: Any) -> bool:
  """May a value of type `result` fit `hint`?"""
  hint = _unwrap(hint)
  if hint is Any or result is Any:
    return True
  if typing.get_origin(hint) in (typing.Union, types.UnionType):
    return any(_may_be(result, choice) for choice in typing.get_args(hint))
  if typing.get_origin(result) in (typing.Union, types.UnionType):
    return any(_may_be(choice, hint) for choice in typing.get_args(result))
  kind = typing.get_origin(hint) or hint
  made = typing.get_origin(result) or result
  if kind is None:
    kind = types.NoneType
  if not inspect.isclass(kind) or not inspect.isclass(made):
    return True
  if getattr(kind, "_is_protocol", False) or issubclass(made, kind):
    return True
  if made is collections.abc.Callable:
    return "__call__" in dir(kind)
  if kind is collections.abc.Callable:
    return made not in _PLAIN and "__call__" in dir(made)
  return (kind, made) == (float, int) or issubclass(kind, made)


def _needs(hint: Any, value: Any) -> str:
  article = type(value).__name__
  return f"needs {_spell_type(hint)}, not {spell(value)} ({article})"


def spell(value: Any) -> str:
  """A value for a message: as in a gin file, and of at most 60 characters."""
  if isinstance(value, Reference):
    scope = f"{value.scope}/" if value.scope else ""
    name = value.target.removeprefix("byt5_diffusion.")
    text = f"@{scope}{name}{'()' if value.evaluate else ''}"
  else:
    text = repr(value)
  return text if len(text) <= 60 else text[:57] + "..."


def _spell_type(hint: Any) -> str:
  if hint in (None, types.NoneType):
    return "None"
  if typing.get_origin(hint) in (typing.Union, types.UnionType):
    return " or ".join(_spell_type(x) for x in typing.get_args(hint))
  if inspect.isclass(hint) and typing.get_origin(hint) is None:
    return hint.__name__
  return str(hint).replace("typing.", "").replace("collections.abc.", "")
