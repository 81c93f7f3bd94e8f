"""Who may import whom, read from the source; the table is the rule.

A new module is put into LAYERS, or the first test fails. What a layer may
import holds for lazy imports, too; only TensorFlow is a matter of when.
"""

import ast
import dataclasses
import functools
import pathlib
import sys
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = "byt5_diffusion"

# Layer -> (its modules, the layers that it may import besides itself).
# "x.*" stands for all modules below x.
LAYERS: dict[str, tuple[str, str]] = {
  # Imported for the version and the place of the package alone.
  "package": (". conversion data tasks", ""),
  # Formulas. Nothing of ours.
  "maths": ("conditions diffusion losses utf8", ""),
  "networks": (
    "attention_forms autoencoder autoencoder_kl byt5 byt5_decoder clip_image"
    " layers patches products unet unet_attention unet_blocks unet_conditions"
    " unet_config",
    "maths",
  ),
  "samplers": ("decoding samplers sampling_steps unipc", "maths"),
  "guidance": ("guidance", "maths samplers"),
  # Bytes and pictures to batches. No JAX.
  "data": ("data.* feature_converters quotes", "package"),
  # Knows no model.
  "machinery": (
    "checkpoints compilation host_memory metric_writers model_gin"
    " optimizer_def optimizers costs output_files partitioning recipes"
    " stop_signals stored_trees telemetry train_state config"
    " host_meeting host_places hosts run_lock t5x_checkpoints"
    " config_checks config_program config_source config_text config_types",
    "package maths",
  ),
  # Weights of other programs, and who takes what of them.
  "conversion": (
    "conversion.* assignment",
    "package maths networks machinery",
  ),
  # Compares strings, so it must know the bytes of data.text.
  "scores": ("confidence layout_scores spelling", "maths data"),
  "models": (
    "contract denoising joint models ocr super_resolution text_conditioning",
    "maths networks samplers guidance",
  ),
  "programs": (
    "inspection inspection_picture named_tasks planning trial validation"
    " validation_report evaluation inference preparation reading report"
    " t5x_hooks trainer cascade prompts run_info trained variables aesthetics"
    " filter_report language_report",
    "package maths samplers guidance data machinery conversion scores models",
  ),
  # gin names these; nobody imports them.
  "tasks": ("tasks.*", "data"),
  "commands": (
    "cli conversion_commands demo download_commands main model_commands"
    " recipe_commands",
    "package machinery conversion programs data models scores",
  ),
  "tools": (
    "tools.*",
    "package maths networks samplers guidance data machinery conversion"
    " scores models programs commands",
  ),
}
# Narrower than its layer: module -> the only ones of ours that it may import.
ONLY = {
  "decoding": {"utf8"},
  "samplers": {"diffusion"},
  "sampling_steps": {"diffusion"},
  "unipc": {"diffusion", "samplers"},
  "guidance": {"diffusion", "samplers"},
  "confidence": {"data.text"},
  "spelling": {"data.text"},
}

# Foreign packages: where they must not be, whenever they are imported.
NUMERICS = {"jax", "jaxlib", "flax", "optax", "orbax", "clu"}
TENSORFLOW = {"tensorflow", "tensorflow_text", "tensorflow_datasets", "seqio"}
# Reached by nobody, because PyPI does not have them or they bring TensorFlow.
NEVER = {"t5x", "big_vision", "clu.metric_writers", "clu.periodic_actions"}
ALLOWED_FOREIGN = {
  "maths": {"jax", "numpy"},
  "networks": {"jax", "flax", "numpy"},
  "samplers": {"jax", "numpy"},
  "guidance": {"jax", "numpy"},
}
# The modules that import TensorFlow when they are imported; others of theirs
# import these, or TensorFlow, inside a function.
# Room of data/ -> the other rooms that its modules may import. What lies beside
# them, "data", is everybody's.
ROOMS = {
  "data": "rows writing",
  "rows": "data",
  "writing": "data rows",
  "sets": "data rows writing",
  "pages": "data rows writing",
  "downloading": "data rows",
}
TENSORFLOW_AT_ONCE = {"data.live", "data.seqio_converter", "data.seqio_tasks"}
TENSORFLOW_LATE = {"conversion.mesh_tf_files", "feature_converters"}

MAX_FILE_LINES = 500
# Of code: documentation is not rationed.
MAX_FUNCTION_LINES = 70
LONGER_FUNCTIONS = {("trainer", "train"): 150}
MAX_TOOL_LINES = 60
BAD_NAMES = {"utils", "util", "common", "helpers", "misc", "manager", "factory"}


def room_of(module: str) -> str:
  """The room of a module of data/: "data" if it lies in none."""
  parts = module.split(".")
  return parts[1] if len(parts) > 1 and parts[1] in ROOMS else "data"


@dataclasses.dataclass(frozen=True)
class Import:
  """One imported name: "a.b" of ours without the package, or a foreign one."""

  name: str
  ours: bool
  lazy: bool
  line: int


def _modules() -> dict[str, pathlib.Path]:
  """Short name -> file; "." is the package itself."""
  found = {}
  for folder in (PACKAGE, "tasks", "tools"):
    for path in (ROOT / folder).rglob("*.py"):
      parts = path.relative_to(ROOT).with_suffix("").parts
      parts = parts[1:] if folder == PACKAGE else parts
      if parts[-1] == "__init__":
        parts = parts[:-1]
      found[".".join(parts) or "."] = path
  return found


MODULES = _modules()


@functools.cache
def _tree(module: str) -> ast.Module:
  return ast.parse(MODULES[module].read_text("utf-8"))


def _statements(
  node: ast.AST, lazy: bool = False
) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
  """Import statements, and whether importing the module passes them by."""
  for child in ast.iter_child_nodes(node):
    if isinstance(child, (ast.Import, ast.ImportFrom)):
      yield child, lazy
    else:
      function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))
      typing = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(
        child.test
      )
      yield from _statements(child, lazy or function or typing)


@functools.cache
def imports(module: str) -> tuple[Import, ...]:
  """All that a module imports, at once or lazily."""
  found = []
  for node, lazy in _statements(_tree(module)):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    else:
      assert not node.level, f"{module}:{node.lineno}: a relative import"
      names = [f"{node.module}.{alias.name}" for alias in node.names]
    for name in names:
      top, _, rest = name.partition(".")
      ours = top == PACKAGE
      found.append(
        Import(rest or "." if ours else name, ours, lazy, node.lineno)
      )
  return tuple(found)


def _layers_of(module: str) -> list[str]:
  layers = []
  for layer, (members, _) in LAYERS.items():
    for member in members.split():
      below = member.endswith(".*") and module.startswith(member[:-1])
      if module == member or below:
        layers.append(layer)
  return layers


def test_every_module_has_one_layer() -> None:
  """Put a new module where it belongs; strike out one that is gone."""
  places = {module: _layers_of(module) for module in MODULES}
  wrong = {m: layers for m, layers in places.items() if len(layers) != 1}
  assert not wrong
  named = {name for members, _ in LAYERS.values() for name in members.split()}
  gone = {
    name
    for name in {*named, *ONLY, *TENSORFLOW_AT_ONCE, *TENSORFLOW_LATE}
    if not name.endswith(".*") and name not in MODULES
  }
  assert not gone
  for _, allowed in LAYERS.values():
    assert set(allowed.split()) <= set(LAYERS)


def test_rooms_of_the_data_know_what_they_may() -> None:
  folders = {p.parent.name for m, p in MODULES.items() if m.startswith("data.")}
  assert folders == set(ROOMS)
  for module in MODULES:
    if module.split(".")[0] != "data":
      continue
    allowed = {room_of(module), *ROOMS[room_of(module)].split()}
    for found in imports(module):
      if found.ours and found.name.startswith("data."):
        where = f"{MODULES[module].relative_to(ROOT)}:{found.line}"
        assert room_of(found.name) in allowed, f"{where}: {found.name}"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_what_its_layer_may(module: str) -> None:
  [layer] = _layers_of(module)
  allowed = {layer, *LAYERS[layer][1].split()}
  for found in imports(module):
    where = f"{MODULES[module].relative_to(ROOT)}:{found.line}"
    if not found.ours:
      continue
    assert found.name in MODULES, (
      f"{where}: import the module, not {found.name} out of it"
    )
    target = _layers_of(found.name)
    assert set(target) <= allowed, (
      f"{where}: {layer} ({module}) must not import {found.name} ({target})"
    )
    if module in ONLY:
      assert found.name in ONLY[module], f"{where}: {found.name}"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_the_libraries_of_its_layer(module: str) -> None:
  [layer] = _layers_of(module)
  for found in imports(module):
    if found.ours:
      continue
    where = f"{MODULES[module].relative_to(ROOT)}:{found.line}: {found.name}"
    top = found.name.partition(".")[0]
    assert not any(f"{found.name}.".startswith(f"{x}.") for x in NEVER), where
    if layer in ("data", "tasks"):
      assert top not in NUMERICS, f"{where}: data know no JAX"
    if top in TENSORFLOW:
      early = layer == "tasks" or module in TENSORFLOW_AT_ONCE
      late = module in TENSORFLOW_LATE and found.lazy
      assert early or late, f"{where}: TensorFlow outside of data"
    if layer in ALLOWED_FOREIGN and top not in sys.stdlib_module_names:
      assert top in ALLOWED_FOREIGN[layer], f"{where}: not for {layer}"


def _reached_at_once(module: str) -> dict[str, tuple[str, ...]]:
  """Everything imported with a module -> the way to it, lazy imports aside."""
  reached: dict[str, tuple[str, ...]] = {module: (module,)}
  waiting = [module]
  while waiting:
    current = waiting.pop()
    for found in imports(current):
      if found.lazy or found.name in reached:
        continue
      reached[found.name] = (*reached[current], found.name)
      if found.ours:
        waiting.append(found.name)
  return reached


@pytest.mark.parametrize(
  "module", sorted(m for m in MODULES if not m.startswith("tasks"))
)
def test_tensorflow_comes_only_when_it_is_called_for(module: str) -> None:
  """A machine without TensorFlow imports all but data.live and the tasks."""
  reached = _reached_at_once(module)
  tensorflow = [
    " -> ".join(way)
    for name, way in reached.items()
    if name.partition(".")[0] in TENSORFLOW
  ]
  assert bool(tensorflow) == (module in TENSORFLOW_AT_ONCE), tensorflow


def test_nobody_imports_programs_that_are_started_by_name() -> None:
  commands = set(LAYERS["commands"][0].split())
  for module in MODULES:
    names = {found.name for found in imports(module)}
    if module not in commands and not module.startswith("tools."):
      assert not names & commands, module
    if not module.startswith("tasks"):
      assert not {name.partition(".")[0] for name in names} & {"tasks", "tools"}


def test_packages_import_nothing() -> None:
  for module in (".", "conversion", "data", "tasks"):
    assert MODULES[module].name == "__init__.py"
    assert not imports(module), module


def test_files_say_what_they_are_for() -> None:
  for module, path in MODULES.items():
    assert path.stem not in BAD_NAMES, path
    if module not in (".", "data", "tasks"):
      assert ast.get_docstring(_tree(module)), f"{path}: no docstring"
  # A folder gin/ that is a package would hide gin itself.
  assert not list((ROOT / "gin").rglob("*.py"))


@pytest.mark.parametrize("module", sorted(MODULES))
def test_files_and_functions_fit_a_reader(module: str) -> None:
  path = MODULES[module]
  lines = len(path.read_text("utf-8").splitlines())
  limit = MAX_TOOL_LINES if module.startswith("tools.") else MAX_FILE_LINES
  assert lines <= limit, f"{path} has {lines} lines"
  for node in ast.walk(_tree(module)):
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
      continue
    first = node.lineno
    if ast.get_docstring(node):
      first += node.body[0].end_lineno - node.body[0].lineno + 1
    length = node.end_lineno - first + 1
    limit = LONGER_FUNCTIONS.get((module, node.name), MAX_FUNCTION_LINES)
    assert length <= limit, f"{path}:{node.lineno}: {node.name} has {length}"
