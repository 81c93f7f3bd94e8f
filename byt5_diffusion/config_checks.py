"""Checks a Program against the code it names, before anything runs.

Every check collects all it finds, so that one run tells all mistakes of a kind.
"""

import contextlib
import functools
import importlib
import inspect
import pathlib
import pkgutil
import re
from collections.abc import Iterator, Sequence
from typing import Any

from gin import config as gin_config

from byt5_diffusion import config_program, config_types

Binding = config_program.Binding
ConfigError = config_program.ConfigError
Key = config_program.Key
Macro = config_program.Macro
Program = config_program.Program
Reference = config_program.Reference

PACKAGE = "byt5_diffusion"
MAX_SHOWN = 10


def fail(problems: Sequence[str]) -> None:
  """Raises one ConfigError for all problems, if any."""
  unique = list(dict.fromkeys(problems))
  if len(unique) > MAX_SHOWN:
    unique[MAX_SHOWN:] = [f"... and {len(unique) - MAX_SHOWN} more."]
  if unique:
    raise ConfigError("\n".join(unique))


def is_required(value: Any) -> bool:
  """Whether a value is %gin.REQUIRED."""
  return isinstance(value, Macro) and value.name == config_program.REQUIRED


class Checker:
  """One Program, with the Python objects behind its names.

  Attributes:
    program: what was read.
    objects: dotted name -> callable, filled by `check_names`.
  """

  def __init__(
    self, program: Program, root: pathlib.Path = pathlib.Path("gin")
  ) -> None:
    """root: the folder of this package's gin files, for hints."""
    self.program = program
    self._root = root
    self.objects: dict[str, Any] = {}

  # --- names -----------------------------------------------------------------

  def check_names(self) -> None:
    """Imports the modules, finds every callable, parameter and macro."""
    fail([p for p in map(self._import, self.program.imports) if p])
    fail(list(self._unknown_targets()))
    fail(list(self._unknown_parameters()))
    fail(list(self._unknown_macros()))

  def _import(self, module: str) -> str:
    where = self.program.imports[module]
    try:
      importlib.import_module(module)
    except ImportError as error:
      missing = error.name or ""
      if missing and (module + ".").startswith(missing + "."):
        hint = config_program.nearest(module, _sibling_modules(module))
        return f"{where}: there is no module {module}.{hint}"
      return f"{where}: {module} cannot be imported: {error}"
    return ""

  def _unknown_targets(self) -> Iterator[str]:
    for target, where in self.program.targets().items():
      try:
        self.objects[target] = self._find(target)
      except LookupError as error:
        yield f"{where}: {error.args[0]}"

  def _find(self, target: str) -> Any:
    if target in ("gin.singleton", "gin.macro"):
      return getattr(gin_config, target.partition(".")[2])
    module = self.program.module_of(target)
    if not module:
      raise LookupError(f"{target} is in no imported module.")
    found: Any = importlib.import_module(module)
    path = module
    for name in target[len(module) + 1 :].split("."):
      if not hasattr(found, name):
        hint = config_program.nearest(name, _public_callables(found))
        raise LookupError(f"{path} has no {name}.{hint}")
      found, path = getattr(found, name), f"{path}.{name}"
    if not callable(found):
      raise LookupError(f"{target} is not a function or class.")
    return found

  def _unknown_parameters(self) -> Iterator[str]:
    for key, binding in self.program.bindings.items():
      if not key.target:
        continue
      known = config_types.parameters(self.objects[key.target])
      if known is None:
        continue
      kinds = [parameter.kind for parameter in known.values()]
      if key.parameter in known or inspect.Parameter.VAR_KEYWORD in kinds:
        continue
      hint = config_program.nearest(key.parameter, list(known))
      short = key.target.removeprefix(f"{PACKAGE}.")
      yield (
        f"{binding.where}: {short} has no parameter {key.parameter}."
        f"{hint or ' It has ' + ', '.join(known) + '.'}"
      )

  def _unknown_macros(self) -> Iterator[str]:
    known = self.program.macros()
    for binding in self.program.bindings.values():
      for leaf in config_program.leaves(binding.value):
        if not isinstance(leaf, Macro) or is_required(leaf):
          continue
        if leaf.name not in known:
          hint = self._provided(leaf.name)
          hint = hint or config_program.nearest(leaf.name, known)
          yield f"{binding.where}: %{leaf.name} is not defined anywhere.{hint}"

  def _provided(self, macro: str) -> str:
    """' Include X, which sets it.' if this package's files do."""
    pattern = re.compile(rf"^{re.escape(macro)} *=", re.MULTILINE)
    found = [
      str(path.relative_to(self._root))
      for path in sorted(self._root.rglob("*.gin"))
      if pattern.search(path.read_text("utf-8"))
    ]
    return f" Include {' or '.join(found)}, which sets it." if found else ""

  # --- values ----------------------------------------------------------------

  def resolve(self, value: Any) -> Any:
    """Follows %A -> %B -> value; an unset or circular macro stays as it is."""
    seen = set()
    while isinstance(value, Macro) and value not in seen:
      seen.add(value)
      binding = self.program.bindings.get(Key("", "", value.name))
      if binding is None:
        return value
      value = binding.value
    return value

  def check_types(self) -> None:
    """Compares every bound value with its parameter's annotation."""
    problems = []
    for key, binding in self.program.bindings.items():
      hints = self._hints(key.target) if key.target else {}
      if key.parameter not in hints:
        continue
      reason = config_types.mismatch(
        binding.value,
        hints[key.parameter],
        self.objects.__getitem__,
        self.resolve,
      )
      if reason:
        problems.append(
          f"{binding.where}: {key} = {self._origin(binding.value)}{reason}."
        )
    fail(problems)

  @functools.cache  # noqa: B019
  def _hints(self, target: str) -> dict[str, Any]:
    return config_types.annotations(self.objects[target])

  def _origin(self, value: Any) -> str:
    """'%NAME (set at file:line) ' where the value comes from a macro."""
    if not isinstance(value, Macro):
      return ""
    binding = self.program.bindings.get(Key("", "", value.name))
    return f"%{value.name} (from {binding.where}) " if binding else ""

  # --- reachability ----------------------------------------------------------

  def check_required(self, root: str) -> None:
    """Everything that calling `root` needs is set."""
    walk = Walk(self)
    walk.call(root, (), f"{root}()")
    fail(walk.missing)

  def needed(self, roots: Sequence[str]) -> Program:
    """The part of the program that the roots read."""
    walk = Walk(self)
    for root in roots:
      walk.call(root, (), f"{root}()")
    return self.program.only(walk.live)

  def check_dead(self, roots: Sequence[str]) -> None:
    """Every binding and macro is read by one of the roots.

    Or would be, had no later statement replaced its reader's value: to override
    `train.steps = %STEPS` leaves STEPS unread, but is no mistake.
    """
    walk = Walk(self, history=True)
    for root in roots:
      walk.call(root, (), f"{root}()")
    programs = ", ".join(root.removeprefix(f"{PACKAGE}.") for root in roots)
    problems = []
    for key, binding in self.program.bindings.items():
      if key in walk.live:
        continue
      candidates = [
        live.parameter if not key.target else str(live)
        for live in walk.live
        if bool(live.target) == bool(key.target)
      ]
      hint = config_program.nearest(
        str(key) if key.target else key.parameter, candidates
      )
      problems.append(
        f"{binding.where}: nothing in {programs} reads {key}.{hint}"
      )
    fail(problems)


class Walk:
  """What calling a callable reads, by gin's rules of scopes.

  A reference without a scope runs in its reader's scope; a macro's value is
  computed in a scope of the macro's own name; a binding of an outer scope
  holds in an inner one unless that sets the same parameter.

  Attributes:
    live: the bindings that are read.
    missing: what is still to be set, one message each.
  """

  def __init__(self, checker: Checker, *, history: bool = False) -> None:
    """history: follow values that were replaced, too."""
    self.live: set[Key] = set()
    self.missing: list[str] = []
    self._checker = checker
    self._program = checker.program
    self._history = history
    self._done: set[tuple[str, tuple[str, ...], bool]] = set()
    self._path: list[str] = []

  def call(
    self,
    target: str,
    scope: tuple[str, ...],
    where: str,
    *,
    called: bool = True,
  ) -> None:
    """Follows all that is bound to a target; called: without arguments."""
    if (target, scope, called) in self._done:
      return
    if self._history:  # Replaced values may well run in circles.
      self._done.add((target, scope, called))
      self._path.clear()
    with self._on_path("/".join((*scope, target)), where):
      bound = bound_keys(self._program, target, scope)
      self.live.update(bound)
      for key in bound:
        self._read(key, scope, str(key))
      if called:
        self._check_arguments(target, {key.parameter for key in bound}, where)
    self._done.add((target, scope, called))

  @contextlib.contextmanager
  def _on_path(self, name: str, where: str) -> Iterator[None]:
    if name in self._path:
      path = " -> ".join([*self._path[self._path.index(name) :], name])
      raise ConfigError(f"{where}: a circle: {path}.")
    self._path.append(name)
    yield
    if self._path:
      self._path.pop()

  def _read(self, key: Key, scope: tuple[str, ...], reader: str) -> None:
    binding = self._program.bindings[key]
    self._read_value(binding, scope, reader)
    if self._history:
      for older in self._program.superseded.get(key, []):
        self._read_value(older, scope, reader)

  def _read_value(
    self, binding: Binding, scope: tuple[str, ...], reader: str
  ) -> None:
    for leaf in config_program.leaves(binding.value):
      if is_required(leaf):
        self.missing.append(
          f"{binding.where}: {reader} is not set. Set it in your gin file or"
          f" by --gin.{reader}=VALUE."
        )
      elif isinstance(leaf, Macro):
        self.read_macro(leaf.name, binding.where)
      elif isinstance(leaf, Reference):
        inner = tuple(leaf.scope.split("/")) if leaf.scope else scope
        self.call(leaf.target, inner, binding.where, called=leaf.evaluate)

  def read_macro(self, name: str, where: str) -> None:
    """Follows all that %name needs."""
    key = Key("", "", name)
    if self._history and key in self.live:
      return
    with self._on_path(f"%{name}", where):
      if key not in self.live:
        self.live.add(key)
        self._read(key, tuple(name.split("/")), name)

  def _check_arguments(self, target: str, bound: set[str], where: str) -> None:
    found = self._checker.objects.get(target)
    known = config_types.parameters(found) if found is not None else None
    skipped = (
      inspect.Parameter.VAR_KEYWORD,
      inspect.Parameter.VAR_POSITIONAL,
    )
    needed = [
      name
      for name, parameter in (known or {}).items()
      if parameter.default is inspect.Parameter.empty
      and parameter.kind not in skipped
      and name not in bound
    ]
    if needed:
      short = target.removeprefix(f"{PACKAGE}.")
      self.missing.append(
        f"{where}: {short} needs {', '.join(needed)}, which nothing binds."
      )


def bound_keys(
  program: Program, target: str, scope: tuple[str, ...]
) -> list[Key]:
  """The bindings a call in this scope gets: inner scopes win over outer."""
  found: dict[str, Key] = {}
  for end in range(len(scope) + 1):
    prefix = "/".join(scope[:end])
    for key in program.bindings:
      if key.target == target and key.scope == prefix:
        found[key.parameter] = key
  return list(found.values())


def _public_callables(owner: Any) -> list[str]:
  return [
    name
    for name in dir(owner)
    if not name.startswith("_") and callable(getattr(owner, name, None))
  ]


def _sibling_modules(module: str) -> list[str]:
  """Modules of the deepest package on the way that exists."""
  package = module.rpartition(".")[0]
  while package:
    try:
      found = importlib.import_module(package)
    except ImportError:
      package = package.rpartition(".")[0]
      continue
    paths = getattr(found, "__path__", [])
    return [f"{package}.{info.name}" for info in pkgutil.iter_modules(paths)]
  return []
