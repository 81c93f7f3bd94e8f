"""Initial values from another checkpoint: who takes what from where.

Rules are (regex, target) pairs over the names of the NEW model's parameters;
the first whose regex matches a whole name decides. Its target names the
source's parameter, \\1 standing for the first group; None keeps the fresh
initial value:

  [("unet/out/.*", None), ("text_encoder/(.*)", r"\\1"), ("(.*)", r"\\1")]

A source is a run of this package (its average, or the weights as trained), a
tree of checkpoints.save_tree, a checkpoint of T5X of either layout, or weights
of another program that conversion.sources names as ours. Nothing
is left to luck: a parameter without a rule, a rule without a parameter, a name
the source lacks and a shape that differs are all errors, by name.
"""

import collections
import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from byt5_diffusion import (
  checkpoints,
  output_files,
  stored_trees,
  t5x_checkpoints,
)
from byt5_diffusion.conversion import sources, views

PyTree = Any
Rules = Sequence[tuple[str, str | None]]
Source = stored_trees.Source

ALL: Rules = (("(.*)", r"\1"),)
REPORT_FILE = "initial_checkpoint.json"
DTYPES = ("float32", "bfloat16")


class AssignmentError(ValueError):
  """Rules, source and model do not fit together; says each name."""


# --- Rules. ---


class _Rule(NamedTuple):
  pattern: re.Pattern[str]
  target: str | None


def _compile(rules: Rules) -> list[_Rule]:
  compiled = []
  for rule in rules:
    if len(rule) != 2 or not isinstance(rule[0], str):
      raise AssignmentError(f"The rule {rule!r} is not (regex, target).")
    try:
      compiled.append(_Rule(re.compile(rule[0]), rule[1]))
    except re.error as error:
      raise AssignmentError(
        f"The rule {rule!r} is no regular expression: {error}."
      ) from None
  return compiled


def match(names: Collection[str], rules: Rules) -> dict[str, str | None]:
  """{name: name in the source, or None for a fresh value}.

  Raises:
    AssignmentError: a name that no rule matches, a rule that matches no name,
      a target that does not fit its regex.
  """
  compiled = _compile(rules)
  targets: dict[str, str | None] = {}
  used = [0] * len(compiled)
  matched = [0] * len(compiled)
  for name in names:
    for i, rule in enumerate(compiled):
      found = rule.pattern.fullmatch(name)
      if found is None:
        continue
      matched[i] += 1
      if name in targets:
        continue
      used[i] += 1
      targets[name] = _expand(found, rule)
  problems = [
    f"the rule {_spell(rule)} matches no parameter"
    + (", as rules before it take all of its own." if matched[i] else ".")
    for i, rule in enumerate(compiled)
    if not used[i]
  ]
  unmatched = [name for name in names if name not in targets]
  if unmatched:
    problems.append(
      f"no rule matches {stored_trees.some(unmatched)}: end the rules with"
      r" ('(.*)', '\1') to take, or ('.*', None) to start fresh."
    )
  if problems:
    raise AssignmentError("Assignment rules: " + "\n  ".join(problems))
  return targets


def _expand(found: re.Match[str], rule: _Rule) -> str | None:
  if rule.target is None:
    return None
  try:
    return found.expand(rule.target)
  except (re.error, IndexError) as error:
    raise AssignmentError(
      f"The rule {_spell(rule)} has a target that does not fit its regex:"
      f" {error}."
    ) from None


def _spell(rule: _Rule) -> str:
  return f"({rule.pattern.pattern!r}, {rule.target!r})"


class Assignment(NamedTuple):
  """What a model takes of a source.

  Attributes:
    taken: {parameter: name in the source}.
    fresh: parameters that keep their initial values.
    unused: names in the source that nobody took.
  """

  taken: dict[str, str]
  fresh: list[str]
  unused: list[str]


def assign(
  wanted: Mapping[str, Any], source: Source, rules: Rules
) -> Assignment:
  """Who takes what; reads nothing yet.

  Args:
    wanted: {name: array or ShapeDtypeStruct} of the new model.
    source: what there is.
    rules: see the module.

  Raises:
    AssignmentError: by name and shape.
  """
  targets = match(list(wanted), rules)
  taken = {
    name: target for name, target in targets.items() if target is not None
  }
  absent, differing = [], []
  for name, target in taken.items():
    found = source.shapes.get(target)
    if found is None:
      absent.append(f"{target} (for {name})" if target != name else name)
    elif not stored_trees.fits(found, wanted[name]):
      differing.append(
        f"{name} {stored_trees.describe(wanted[name])}"
        f" from {target} {stored_trees.describe(found)}"
      )
  problems = []
  if absent:
    problems.append(
      f"it lacks {stored_trees.some(absent)}; it has"
      f" {stored_trees.some(sorted(source.shapes))}."
    )
  if differing:
    problems.append(
      f"shapes differ: {stored_trees.some(differing)}. A rule (regex, None)"
      " before the others starts them fresh."
    )
  if problems:
    raise AssignmentError(f"{source.what}: " + "\n  ".join(problems))
  return Assignment(
    taken=taken,
    fresh=[name for name, target in targets.items() if target is None],
    unused=sorted(set(source.shapes) - set(taken.values())),
  )


# --- Sources. ---


def open_source(
  path: str | os.PathLike[str], step: int | None = None, use_ema: bool = True
) -> Source:
  """Finds out what path is.

  Args:
    path: a run's MODEL_DIR or one of its checkpoint_<step>, a tree of
      checkpoints.save_tree, a T5X checkpoint_<step> or the folder of several,
      or what conversion.sources reads: folders of diffusers and Hugging Face,
      single files, Mesh TensorFlow.
    step: of a MODEL_DIR; None = the latest.
    use_ema: of a run of ours: its averaged weights, where it keeps them.

  Raises:
    checkpoints.CheckpointError: it is none of these, or is damaged.
    names.ConversionError: the same of another program's.
  """
  if sources.is_foreign(path):
    return sources.open_source(path)
  if not os.path.isdir(path):
    raise checkpoints.CheckpointError(f"There is no folder {path}.")
  theirs = t5x_checkpoints.find(path, step)
  if theirs is not None:
    return t5x_checkpoints.open_source(theirs)
  return checkpoints.open_source(path, step, use_ema)


# --- What a recipe binds. ---


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitialCheckpoint:
  """Where a new run's parameters start, instead of at random.

  Attributes:
    path: see open_source; or several, which share no name.
    rules: see the module; all parameters by their own names when left out.
    step: see open_source.
    use_ema: see open_source.
    dtypes: (regex, dtype) of names that are kept in another dtype than the
      model's own, the first match wins; for frozen networks: half of an XXL's
      memory is saved by [("text_encoder/.*", "bfloat16")].
  """

  path: str | Sequence[str]
  rules: Rules = ALL
  step: int | None = None
  use_ema: bool = True
  dtypes: Sequence[tuple[str, str]] = ()

  def __post_init__(self) -> None:
    _compile(self.dtypes)
    for rule in self.dtypes:
      if rule[1] not in DTYPES:
        raise AssignmentError(
          f"{rule!r} in dtypes is not (regex, one of {', '.join(DTYPES)})."
        )

  @property
  def paths(self) -> list[str]:
    """All of path, as a list."""
    return [self.path] if isinstance(self.path, str) else list(self.path)

  def open(self) -> Source:
    """What there is; reads no array yet.

    Raises:
      checkpoints.CheckpointError: see open_source.
      names.ConversionError: see open_source; or two hold the same array.
    """
    if not self.paths:
      raise AssignmentError("The initial checkpoint's list of paths is empty.")
    found = [open_source(path, self.step, self.use_ema) for path in self.paths]
    what = " and ".join(source.what for source in found)
    return found[0] if len(found) == 1 else views.joined(what, found)

  def _fitting(self, wanted: Collection[str]) -> Source:
    """What there is, its layers stacked if, and only if, wanted's are."""
    source = self.open()
    stacked = views.is_stacked(wanted)
    if stacked == views.is_stacked(source.shapes):
      return source
    return views.stacked(source) if stacked else views.unrolled(source)

  def record(self) -> dict[str, Any]:
    """What was asked for, as JSON."""
    paths = [os.path.abspath(path) for path in self.paths]
    return {
      "path": paths[0] if isinstance(self.path, str) else paths,
      "rules": [list(rule) for rule in self.rules],
      "step": self.step,
      "use_ema": self.use_ema,
    } | ({"dtypes": [list(x) for x in self.dtypes]} if self.dtypes else {})

  def _dtypes(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """{name: dtype}, the model's own where no rule says another.

    Raises:
      AssignmentError: a rule that matches no parameter.
    """
    found = {name: leaf.dtype for name, leaf in wanted.items()}
    # Backwards, so that the first match is the one that stays.
    for pattern, dtype in reversed(self.dtypes):
      matched = [name for name in wanted if re.fullmatch(pattern, name)]
      if not matched:
        raise AssignmentError(
          f"({pattern!r}, {dtype!r}) in dtypes matches no parameter."
        )
      found |= dict.fromkeys(matched, np.dtype(dtype))
    return found

  def check(self, shapes: PyTree) -> Assignment:
    """Raises as `take` does, before anything is drawn, compiled or read."""
    flat = stored_trees.flatten_names(shapes)
    return assign(flat, self._fitting(flat), self.rules)

  def take(self, tree: PyTree) -> tuple[PyTree, dict[str, Any]]:
    """The tree with what the rules take of the checkpoint, and a report.

    Args:
      tree: fresh parameters, whose dtypes and devices are kept, or their
        ShapeDtypeStructs: then what is taken becomes numpy arrays.

    Raises:
      AssignmentError: see `assign`.
      checkpoints.CheckpointError: the checkpoint can't be used.
    """
    flat = stored_trees.flatten_names(tree)
    source = self._fitting(flat)
    found = assign(flat, source, self.rules)
    arrays = source.read(sorted(set(found.taken.values())))
    kinds = self._dtypes(flat)
    for name, target in found.taken.items():
      flat[name] = _like(arrays[target], flat[name], kinds[name])
    report = {
      "initial_checkpoint": self.record(),
      "source": source.what,
      "taken": found.taken,
      "fresh": found.fresh,
      "unused": found.unused,
    }
    structure = jax.tree.structure(tree)
    return jax.tree.unflatten(structure, list(flat.values())), report


def _like(array: np.ndarray, leaf: Any, dtype: Any) -> Any:
  """The array in a dtype, on the leaf's devices."""
  array = np.asarray(array).astype(dtype)
  if not isinstance(leaf, jax.Array):
    return array
  return jax.make_array_from_callback(
    array.shape, leaf.sharding, lambda index: array[index]
  )


def describe(report: Mapping[str, Any]) -> str:
  """A few lines for the console: how many, and which parts."""
  taken, fresh, unused = (report[k] for k in ("taken", "fresh", "unused"))
  lines = [
    f"{report['source']}: {len(taken)} of {len(taken) + len(fresh)} parameters"
    f" taken ({_by_part(taken)})"
  ]
  if fresh:
    lines.append(f"  {len(fresh)} start fresh: {_by_part(fresh)}")
  if unused:
    lines.append(f"  {len(unused)} of its own left unused: {_by_part(unused)}")
  return "\n".join(lines)


def _by_part(names: Collection[str], most: int = 8) -> str:
  """ "unet/mid 12, unet/out 2": how many names share two leading parts."""
  parts = collections.Counter("/".join(n.split("/")[:2]) for n in names)
  shown = [f"{part} {count}" for part, count in list(parts.items())[:most]]
  if len(parts) > most:
    shown.append(f"and {len(parts) - most} parts more")
  return ", ".join(shown) or "none"


def write_report(
  folder: str | os.PathLike[str],
  report: Mapping[str, Any],
  name: str = REPORT_FILE,
) -> None:
  """Every name, as JSON, whole or not at all."""
  text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
  output_files.write(pathlib.Path(folder) / name, text.encode("utf-8"))


def initialize(
  params: PyTree,
  initial: InitialCheckpoint,
  folder: str | os.PathLike[str],
  say: Callable[[str], None],
) -> PyTree:
  """Takes a checkpoint's parameters, says so, and writes it into folder."""
  taken, report = initial.take(params)
  say(describe(report))
  if jax.process_index() == 0:
    write_report(folder, report)
  return taken
