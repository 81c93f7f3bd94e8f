"""Writes a Program as one gin text that reads back as the same bindings.

What is written is what gin then parses, so the record beside a checkpoint is
by construction the run. `closure` cuts a Program down to what one macro needs.
"""

import collections
from collections.abc import Collection
from typing import Any

from byt5_diffusion import config_program

Macro = config_program.Macro
Program = config_program.Program
Reference = config_program.Reference


def to_text(program: Program, header: str = "") -> str:
  """One self-contained gin text that reads back as the same bindings."""
  aliases = _aliases(program)
  lines = [f"# {line}".rstrip() for line in header.splitlines()]
  lines += ["", "from __gin__ import dynamic_registration"]
  lines += [_import_line(m, alias) for m, alias in sorted(aliases.items())]
  blocks: dict[tuple[str, str], list[str]] = collections.defaultdict(list)
  for key in sorted(program.bindings):
    value = _format(program.bindings[key].value, program, aliases)
    blocks[key.target, key.scope].append(f"{key.parameter} = {value}")
  for (target, scope), block in sorted(blocks.items()):
    lines.append("")
    if target:
      lines.append(f"{_scoped(scope, _spelled(target, program, aliases))}:")
      block = ["  " + line.replace("\n", "\n  ") for line in block]
    lines += block
  return "\n".join(lines).lstrip("\n") + "\n"


def _aliases(program: Program) -> dict[str, str]:
  """A name of its own for each imported module that is used."""
  modules = {program.module_of(target) for target in program.targets()}
  aliases: dict[str, str] = {}
  for module in sorted(modules - {""}):
    alias = base = module.rpartition(".")[2]
    number = 2
    while alias in aliases.values() or alias == "gin":
      alias, number = f"{base}_{number}", number + 1
    aliases[module] = alias
  return aliases


def _import_line(module: str, alias: str) -> str:
  package, _, name = module.rpartition(".")
  line = f"from {package} import {name}" if package else f"import {name}"
  return line if alias == name else f"{line} as {alias}"


def _spelled(target: str, program: Program, aliases: dict[str, str]) -> str:
  module = program.module_of(target)
  return aliases[module] + target[len(module) :] if module else target


def _scoped(scope: str, name: str) -> str:
  return f"{scope}/{name}" if scope else name


def _format(value: Any, program: Program, aliases: dict[str, str]) -> str:
  """gin's spelling of a value; long containers one item to a line."""

  def spell(item: Any) -> str:
    return _format(item, program, aliases)

  if isinstance(value, Macro):
    return f"%{value.name}"
  if isinstance(value, Reference):
    name = _scoped(value.scope, _spelled(value.target, program, aliases))
    return f"@{name}()" if value.evaluate else f"@{name}"
  if isinstance(value, float):  # gin reads 1e999, not inf.
    return repr(value).replace("inf", "1e999")
  if not isinstance(value, (dict, list, tuple)):
    return repr(value)
  if isinstance(value, dict):
    items = [f"{spell(key)}: {spell(item)}" for key, item in value.items()]
    left, right = "{}"
  else:
    items = [spell(item) for item in value]
    left, right = "[]" if isinstance(value, list) else "()"
  comma = "," if isinstance(value, tuple) and len(items) == 1 else ""
  line = left + ", ".join(items) + comma + right
  if len(line) <= 60 and "\n" not in line:
    return line
  inner = "".join("\n  " + item.replace("\n", "\n  ") + "," for item in items)
  return f"{left}{inner}\n{right}"


def closure(
  program: Program, macro: str, dropped: Collection[str] = ()
) -> Program:
  """The part of a Program that `%macro` needs, without dropped parameters.

  Args:
    program: a whole run.
    macro: the name to start from, e.g. "MODEL".
    dropped: names of parameters to leave at their defaults.
  """
  part = Program(imports=dict(program.imports))
  wanted: list[Macro | Reference] = [Macro(macro)]
  done: set[Macro | Reference] = set()
  while wanted:
    leaf = wanted.pop()
    if leaf in done:
      continue
    done.add(leaf)
    for key, binding in program.bindings.items():
      if isinstance(leaf, Macro):
        takes = not key.target and key.parameter == leaf.name
      else:  # Every scope: a scope more than needed does no harm.
        takes = key.target == leaf.target and key.parameter not in dropped
      if takes:
        part.bindings[key] = binding
        wanted += [
          x
          for x in config_program.leaves(binding.value)
          if isinstance(x, (Macro, Reference))
        ]
  used = {part.module_of(target) for target in part.targets()}
  part.imports = {m: w for m, w in program.imports.items() if m in used}
  return part
