"""Reads gin text into a Program; imports nothing and runs nothing.

gin itself imports a module as soon as it meets the line and forgets where a
binding came from. A Program is what the files say, with a place ("file:line")
for every statement, so that names and types can be checked, and a stranger's
file judged, before any of it is executed.
"""

import dataclasses
import io
import os
import pathlib
import tokenize
from collections.abc import Iterator, Sequence
from typing import Any

from gin import config_parser

from byt5_diffusion import config_program

Binding = config_program.Binding
ConfigError = config_program.ConfigError
Key = config_program.Key
Macro = config_program.Macro
Program = config_program.Program
Reference = config_program.Reference
nearest = config_program.nearest

MAX_INCLUDE_DEPTH = 16


@dataclasses.dataclass(frozen=True)
class _Name:
  """A reference as the file spells it."""

  selector: str
  evaluate: bool


class _Delegate(config_parser.ParserDelegate):
  """Keeps names as names, where gin's own delegate looks them up."""

  def configurable_reference(
    self, scoped_configurable_name: str, evaluate: bool
  ) -> _Name:
    return _Name(scoped_configurable_name, evaluate)

  def macro(self, macro_name: str) -> Macro:
    return Macro(macro_name)


def _statements(text: str, shown: str, *, quote: bool) -> Iterator[Any]:
  """gin's own parser; quote=False keeps the text out of error messages."""
  try:
    yield from config_parser.ConfigParser(io.StringIO(text), _Delegate())
  except (SyntaxError, tokenize.TokenError) as error:
    line = getattr(error, "lineno", None) or error.args[1][0]
    reason = str(error.args[0]).split("\n")[0] if quote else ""
    message = f"{shown}:{line}: not valid gin. {reason}".rstrip()
    if "malformed node" in reason or "Unable to parse value" in reason:
      message += " Strings need quotes; True, False and None capitals."
    raise ConfigError(message) from None
  except (RecursionError, ValueError, TypeError, MemoryError):
    raise ConfigError(f"{shown}: not valid gin.") from None


def find_file(name: str, search_paths: Sequence[str | os.PathLike[str]]) -> str:
  """The first of <search path>/name that is a file, else '' ."""
  if os.path.isabs(name):
    return name if os.path.isfile(name) else ""
  for folder in search_paths:
    path = os.path.join(folder, name)
    if os.path.isfile(path):
      return path
  return ""


class _Names:
  """Resolves the names of one file by the imports read so far."""

  def __init__(self) -> None:
    self.aliases: dict[str, str] = {}
    self.dynamic = False

  def add(self, statement: Any, where: str) -> str:
    """Takes an import statement; returns its module, '' for gin's own."""
    if statement.module == "__gin__.dynamic_registration":
      self.dynamic = True
      return ""
    if statement.module.startswith("__gin__"):
      raise ConfigError(f"{where}: gin has no {statement.module}.")
    name = statement.bound_name()
    meaning = statement.module
    if not statement.is_from and not statement.alias:
      meaning = name  # `import a.b` gives the name a.
    if self.aliases.setdefault(name, meaning) != meaning:
      raise ConfigError(
        f"{where}: {name} is already {self.aliases[name]} in this file."
        f" Use `import {statement.module} as another_name`."
      )
    return statement.module

  def resolve(self, selector: str, where: str) -> str:
    first, _, rest = selector.partition(".")
    if first == "gin":
      return selector
    if first not in self.aliases:
      raise ConfigError(
        f"{where}: {selector}: this file does not import {first}."
        + nearest(first, list(self.aliases))
        + (
          ""
          if self.dynamic
          else " A file starts with `from __gin__ import dynamic_registration`"
          " and its own imports."
        )
      )
    return f"{self.aliases[first]}.{rest}" if rest else self.aliases[first]


class _CommandLineNames:
  """Resolves names of the command line by the ends of the files' names."""

  def __init__(self, program: Program) -> None:
    self._program = program
    self._targets = list(program.targets())

  def resolve(self, selector: str, where: str) -> str:
    found = [t for t in self._targets if f".{t}".endswith(f".{selector}")]
    if len(found) > 1 and selector not in found:
      raise ConfigError(
        f"{where}: {selector} may be {' or '.join(sorted(found))};"
        " write more of the name."
      )
    if found:
      return selector if selector in found else found[0]
    first, _, rest = selector.partition(".")
    modules = [
      m for m in self._program.imports if f".{m}".endswith(f".{first}")
    ]
    if len(modules) == 1 and rest:
      return f"{modules[0]}.{rest}"
    raise ConfigError(
      f"{where}: nothing in the gin files is called {selector}."
      + nearest(selector, [t.partition(".")[2] for t in self._targets])
    )


class Reader:
  """Reads gin files into one Program, includes followed."""

  def __init__(
    self,
    search_paths: Sequence[str | os.PathLike[str]] = (),
    *,
    root: str | os.PathLike[str] = "",
  ) -> None:
    self.program = Program()
    self._search_paths = search_paths
    self._root = str(root)
    self._open_files: list[str] = []

  def read_file(self, name: str, where: str = "") -> None:
    path = find_file(name, self._search_paths)
    if not path:
      raise ConfigError(self._unknown_file(name, where))
    path = os.path.realpath(path)
    if path in self._open_files or len(self._open_files) > MAX_INCLUDE_DEPTH:
      raise ConfigError(f"{where}: {name} includes itself.")
    try:
      text = pathlib.Path(path).read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as error:
      raise ConfigError(f"{path}: cannot be read as text: {error}") from None
    self._open_files.append(path)
    self.program.files.append(self._shown(path))
    self.read_text(text, self._shown(path))
    self._open_files.pop()

  def read_text(
    self, text: str, shown: str, *, include: bool = True, quote: bool = True
  ) -> None:
    """Adds a text's statements; include=False refuses `include`."""
    names = _Names()
    seen: dict[Key, str] = {}
    for statement in _statements(text, shown, quote=quote):
      where = f"{shown}:{statement.location.line_num}"
      if isinstance(statement, config_parser.ImportStatement):
        module = names.add(statement, where)
        if module:
          self.program.imports.setdefault(module, where)
      elif isinstance(statement, config_parser.IncludeStatement):
        if not include:
          raise ConfigError(f"{where}: `include` is not allowed here.")
        self.read_file(statement.filename, where)
      elif isinstance(statement, config_parser.BlockDeclaration):
        names.resolve(statement.selector, where)
      else:
        key = self._bind(statement, names, where)
        if key in seen:
          raise ConfigError(f"{where}: {key} is already set at {seen[key]}.")
        seen[key] = where

  def read_command_line(self, bindings: Sequence[str]) -> None:
    """Adds `NAME=VALUE` bindings; they know no import aliases.

    A name may be one that another binding's value brings in, before or after.
    """
    waiting = [_command_line_statement(text) for text in bindings]
    while waiting:
      unknown: dict[int, ConfigError] = {}
      for i, (statement, where) in enumerate(waiting):
        try:
          self._bind(statement, _CommandLineNames(self.program), where)
        except ConfigError as error:
          unknown[i] = error
      if len(unknown) == len(waiting):
        raise unknown[0]
      waiting = [waiting[i] for i in unknown]

  def _bind(
    self, statement: Any, names: _Names | _CommandLineNames, where: str
  ) -> Key:
    scope, selector, parameter, value, _ = statement
    if not parameter:  # A macro, whose scope is part of its name.
      key = Key("", "", f"{scope}/{selector}" if scope else selector)
    else:
      key = Key(scope, names.resolve(selector, where), parameter)
    value = _resolve_names(value, names, where)
    if key in self.program.bindings:
      self.program.superseded[key].append(self.program.bindings[key])
    self.program.bindings[key] = Binding(value, where)
    return key

  def _shown(self, path: str) -> str:
    for folder in (self._root, os.getcwd()):
      folder = os.path.realpath(folder)
      if path.startswith(folder + os.sep):
        return os.path.relpath(path, folder)
    return path

  def _unknown_file(self, name: str, where: str) -> str:
    root = pathlib.Path(self._root or "nowhere")
    known = sorted(str(path.relative_to(root)) for path in root.rglob("*.gin"))
    same = [path for path in known if path.endswith(f"/{name}")]
    hint = f" Did you mean {' or '.join(same)}?" if same else ""
    hint = hint or nearest(name, known)
    places = ", ".join(str(path) or "." for path in self._search_paths)
    return (
      f"{where + ': ' if where else ''}there is no gin file {name}.{hint}"
      f" Searched: {places}."
    )


def _resolve_names(value: Any, names: Any, where: str) -> Any:
  if isinstance(value, _Name):
    scope, _, selector = value.selector.rpartition("/")
    return Reference(names.resolve(selector, where), scope, value.evaluate)
  if isinstance(value, dict):
    try:
      return {
        _resolve_names(key, names, where): _resolve_names(item, names, where)
        for key, item in value.items()
      }
    except TypeError:
      raise ConfigError(f"{where}: a dict's key cannot be a list.") from None
  if isinstance(value, (list, tuple)):
    return type(value)(_resolve_names(item, names, where) for item in value)
  return value


def _command_line_statement(text: str) -> tuple[Any, str]:
  """The binding statement of NAME=VALUE, and its place."""
  where = f"--gin.{text.partition('=')[0].strip()}"
  try:
    statements = list(_statements(text, where, quote=False))
  except ConfigError:
    statements = []
  kinds = [type(statement) for statement in statements]
  if kinds != [config_parser.BindingStatement]:
    raise ConfigError(_not_a_binding(text))
  return statements[0], where


def _not_a_binding(text: str) -> str:
  name, equals, value = text.partition("=")
  if not equals:
    return f"--gin.{text}: needs a value: --gin.{text}=VALUE."
  if value.lower() in ("true", "false", "none"):
    return f"--gin.{text}: write {value.capitalize()}."
  return (
    f"--gin.{text}: not valid gin. A string needs quotes that the shell"
    f" leaves alone: '--gin.{name}=\"{value}\"'."
  )
