"""What a folder holds: `byt5-diffusion info MODEL_DIR`.

Reads descriptions, never arrays, so a run of billions of parameters is
described in a moment, and beside its training. The folder may be a stranger's:
sizes are bounded, nothing is imported or run, and control characters do not
reach the terminal.
"""

import collections
import json
import math
import os
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from byt5_diffusion import (
  assignment,
  checkpoints,
  config,
  run_lock,
  stored_trees,
  t5x_checkpoints,
  variables,
)
from byt5_diffusion.data import state as state_lib

_MAX_TEXT_BYTES = 2**16
_MAX_RECORD = 2**12
_MAX_PLACES_BYTES = 2**28
_MAX_FILES = 1_000_000
_MAX_VALUE = 80
_MAX_LINE = 2**12
# What config.write_configs puts first.
_RECORD = re.compile(
  r"flattened from (.*?)and the command line,"
  r" by\s*(byt5_diffusion \S+?)\.?$",
  re.DOTALL | re.MULTILINE,
)


def describe(
  path: str | os.PathLike[str], step: int | None = None
) -> dict[str, Any]:
  """All that is known of a run, a tree or a T5X checkpoint; JSON.

  Args:
    path: MODEL_DIR, or any source that assignment.open_source takes.
    step: of a run, or of T5X's folder of several; None = the latest.

  Raises:
    checkpoints.CheckpointError: it is none of these, or is damaged; or it is
      one set of weights, of which no step can be chosen.
  """
  folder = pathlib.Path(path)
  if not folder.is_dir():
    raise checkpoints.CheckpointError(f"There is no folder {path}.")
  one = bool(t5x_checkpoints.layout(folder))
  one = one or (folder / "extra" / "metadata").exists()
  if one and step is not None:
    raise checkpoints.CheckpointError(
      f"{path} is one set of weights, not a run of several steps: leave out the"
      f" step ({step})."
    )
  theirs = t5x_checkpoints.find(folder, step)
  if theirs or one:
    return _describe_source(theirs or folder)
  steps = checkpoints.committed_steps(folder)
  if not steps and not (folder / config.CONFIG_FILE).exists():
    raise checkpoints.CheckpointError(
      f"{path} holds no run: neither a complete checkpoint nor"
      f" {config.CONFIG_FILE}."
    )
  if step is not None and step not in steps:
    raise checkpoints.CheckpointError(
      f"{path} holds no complete checkpoint of step {step}; it has {steps}."
    )
  report = {
    "path": str(folder.absolute()),
    "kind": "run",
    "training_now": run_lock.holder(folder),
    "size_bytes": _size(folder),
    **_recipe(folder),
    "steps": steps,
  }
  if steps:
    last = steps[-1] if step is None else step
    report["checkpoint"] = _checkpoint(folder, last)
  report["initial_checkpoint"] = _initial(folder)
  report["metrics"] = _last_metrics(folder / "metrics.jsonl")
  report["samples"] = _samples(folder / "samples")
  return report


def _describe_source(path: str | os.PathLike[str]) -> dict[str, Any]:
  source = assignment.open_source(path)
  return {
    "path": str(pathlib.Path(path).absolute()),
    "kind": source.what.partition(" /")[0],
    "size_bytes": _size(pathlib.Path(path)),
    "parameters": _parts(source.shapes),
  }


def _size(folder: pathlib.Path) -> int:
  """Bytes of all files, links not followed."""
  total = count = 0
  for parent, _, files in os.walk(folder):
    for name in files:
      count += 1
      if count > _MAX_FILES:
        raise checkpoints.CheckpointError(
          f"{folder} has more than {_MAX_FILES} files."
        )
      try:
        total += os.lstat(os.path.join(parent, name)).st_size
      except FileNotFoundError:  # A training just tidied it away.
        continue
  return total


def _read_text(path: pathlib.Path, *, last: bool = False) -> str:
  """The first, or the last, 64 KiB of a plain file; "" without one."""
  if not path.is_file():
    return ""
  with path.open("rb") as file:
    if last:
      file.seek(max(path.stat().st_size - _MAX_TEXT_BYTES, 0))
    return file.read(_MAX_TEXT_BYTES).decode("utf-8", "replace")


def _recipe(folder: pathlib.Path) -> dict[str, Any]:
  """The gin files that the run was made of, and by which version."""
  lines = _read_text(folder / config.CONFIG_FILE).splitlines()
  comment = [line.lstrip("# ") for line in lines[:40] if line.startswith("#")]
  # Few enough characters for a pattern that tries all their pairs.
  found = _RECORD.search("\n".join(comment)[:_MAX_RECORD])
  if found is None:
    return {"recipe": [], "started_by": None}
  files = [name.strip() for name in found[1].replace("\n", " ").split(",")]
  return {"recipe": [name for name in files if name], "started_by": found[2]}


def _bounded(value: Any) -> Any:
  """One value of a stranger's JSON: a short one as it is, else what it is."""
  if isinstance(value, str):
    return value if len(value) <= _MAX_VALUE else f"{value[:_MAX_VALUE]}..."
  if isinstance(value, int) and value.bit_length() > 64:
    return f"an integer of {value.bit_length()} bits"
  if value is None or isinstance(value, (bool, int, float)):
    return value
  return f"a {type(value).__name__}"


def _parts(shapes: Mapping[str, Any]) -> dict[str, dict[str, int]]:
  """{top-level part: number of parameters and their bytes}."""
  parts: dict[str, dict[str, int]] = collections.defaultdict(
    lambda: {"count": 0, "bytes": 0}
  )
  for name, leaf in sorted(shapes.items()):
    part = parts[name.partition("/")[0]]
    part["count"] += math.prod(leaf.shape)
    part["bytes"] += stored_trees.nbytes(leaf.shape, leaf.dtype)
  return dict(parts)


def _checkpoint(folder: pathlib.Path, step: int) -> dict[str, Any]:
  path = stored_trees.absolute(folder) / f"{checkpoints.STEP_PREFIX}_{step}"
  record = stored_trees.read_record(path)
  stored_trees.check_sizes(path)
  extra = record["extra"]
  collections_: dict[str, dict[str, Any]] = collections.defaultdict(dict)
  for name, leaf in stored_trees.stored(path / "state").items():
    collection, _, rest = name.partition("/")
    collections_[collection][rest or collection] = leaf

  def size(name: str) -> int:
    parts = _parts(collections_.get(name, {}))
    return sum(part["bytes"] for part in parts.values())

  return {
    "step": step,
    "format_version": record["format_version"],
    "package_version": _bounded(record["package_version"]),
    "batch_size": _bounded(extra.get("batch_size")),
    "random_seed": _bounded(extra.get("random_seed")),
    "parameters": _parts(collections_.get("params", {})),
    "averaged": "ema_params" in collections_,
    "average_bytes": size("ema_params"),
    "optimizer_bytes": size("opt_state"),
    "frozen": _frozen(extra, folder),
    "data": _data(path),
  }


def _frozen(
  extra: Mapping[str, Any], folder: pathlib.Path
) -> dict[str, Any] | None:
  record = extra.get("frozen")
  if record is None:
    return None
  path, sha256 = variables.frozen_record(record, folder)
  present = (path / "extra" / "metadata").is_file()
  frozen: dict[str, Any] = {
    "path": str(path),
    "sha256": sha256,
    "present": present,
  }
  if present:
    source = checkpoints.open_source(path)
    frozen["parameters"] = _parts(source.shapes)
  return frozen


def _data(path: Any) -> dict[str, Any]:
  """Where the data stood: how many processes, which task, which batch."""
  claimed = stored_trees.stored(path / "data")
  if sum(math.prod(x.shape) for x in claimed.values()) > _MAX_PLACES_BYTES:
    raise checkpoints.CheckpointError(f"{path}: the data's place is too large.")
  states = checkpoints.read_data_states(path)
  data: dict[str, Any] = {"processes": len(states)}
  try:
    # Processes share places: each is read once, however many name it.
    headers = [state_lib.unpack(packed)[0] for packed in dict.fromkeys(states)]
    identity = headers[0]["identity"]
    data["batches"] = _bounded(int(headers[0]["num_batches"]))
    data["streams"] = len({s[0] for h in headers for s in h["streams"]})
    for key in ("task", "split", "kind", "num_examples", "batch_size", "seed"):
      if key in identity:
        data[key] = _bounded(identity[key])
  except (
    *(ArithmeticError, LookupError, RecursionError),
    *(TypeError, ValueError),
  ):
    pass  # A pipeline of the user's own has its own kind of place.
  return data


def _initial(folder: pathlib.Path) -> dict[str, Any] | None:
  path = folder / assignment.REPORT_FILE
  if (
    not path.is_file() or path.stat().st_size > stored_trees.MAX_METADATA_BYTES
  ):
    return None
  try:
    report = json.loads(path.read_text("utf-8"))
    counts = {k: len(report[k]) for k in ("taken", "fresh", "unused")}
    return {"source": str(report["source"])[:_MAX_LINE], **counts}
  except (ValueError, KeyError, TypeError, RecursionError):
    return None


def _last_metrics(path: pathlib.Path) -> dict[str, dict[str, Any]]:
  """The last line of each kind: {"train": {"step": 5, "loss": ...}, ...}."""
  last: dict[str, dict[str, Any]] = {}
  for line in _read_text(path, last=True).splitlines():
    try:
      record = json.loads(line)
      numbers = {k: float(v) for k, v in record.items() if "/" in k}
      step = int(record["step"])
    except (
      ArithmeticError,
      AttributeError,
      KeyError,
      RecursionError,
      TypeError,
      ValueError,
    ):
      continue  # Cut off, or not a number.
    for name, value in numbers.items():
      kind, _, rest = name.partition("/")
      if last.get(kind, {}).get("step") != step:
        last[kind] = {"step": step}
      last[kind][rest] = value
  return last


def _samples(folder: pathlib.Path) -> dict[str, Any] | None:
  names = sorted(path.name for path in folder.glob("step_*.png"))
  return {"count": len(names), "latest": names[-1]} if names else None


# --- For people. ---


def text_of(report: Mapping[str, Any]) -> str:
  """The report in lines of at most a few facts."""
  lines = [
    f"{report['path']}: {report['kind']}, {_bytes(report['size_bytes'])}"
  ]
  if report["kind"] != "run":
    lines += _part_lines(report["parameters"])
    return _printable(lines)
  if report["training_now"]:
    lines.append(f"  being trained now{report['training_now']}")
  if report["recipe"]:
    files = ", ".join(report["recipe"])
    lines.append(f"  recipe: {files} (by {report['started_by']})")
  if initial := report["initial_checkpoint"]:
    lines.append(
      f"  started from {initial['source']}: {initial['taken']} taken,"
      f" {initial['fresh']} fresh, {initial['unused']} unused"
    )
  steps = ", ".join(map(str, report["steps"])) or "none yet"
  lines.append(f"  complete checkpoints: {steps}")
  if checkpoint := report.get("checkpoint"):
    lines += _checkpoint_lines(checkpoint)
  for kind, numbers in report["metrics"].items():
    step = numbers["step"]
    shown = [f"{k} {v:.4g}" for k, v in numbers.items() if k != "step"][:6]
    lines.append(f"  last {kind} (step {step}): {', '.join(shown)}")
  if samples := report["samples"]:
    lines.append(f"  samples: {samples['count']}, last {samples['latest']}")
  return _printable(lines)


def _checkpoint_lines(checkpoint: Mapping[str, Any]) -> list[str]:
  writer = checkpoint["package_version"] or "an early version"
  average = (
    f"average {_bytes(checkpoint['average_bytes'])}"
    if checkpoint["averaged"]
    else "no average"
  )
  lines = [
    f"  step {checkpoint['step']}: format {checkpoint['format_version']}, by"
    f" byt5_diffusion {writer}, batch size {checkpoint['batch_size']}, seed"
    f" {checkpoint['random_seed']}",
    *_part_lines(checkpoint["parameters"]),
    f"    {average}, optimizer {_bytes(checkpoint['optimizer_bytes'])}",
  ]
  if frozen := checkpoint["frozen"]:
    gone = "" if frozen["present"] else " GONE"
    lines.append(
      f"    frozen: {frozen['path']}{gone} (sha256 {frozen['sha256'][:12]}...)"
    )
    lines += _part_lines(frozen.get("parameters", {}), "      ")
  data = checkpoint["data"]
  facts = [f"{k} {v}" for k, v in data.items()]
  lines.append(f"    data: {', '.join(facts)}")
  return lines


def _part_lines(
  parts: Mapping[str, Mapping[str, int]], indent: str = "    "
) -> list[str]:
  return [
    f"{indent}{name}: {part['count']:,} parameters, {_bytes(part['bytes'])}"
    for name, part in list(parts.items())[:50]
  ]


def _bytes(size: float) -> str:
  for unit in ("B", "KiB", "MiB", "GiB"):
    if size < 1024:
      return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
    size /= 1024
  return f"{size:.1f} TiB"


def _printable(lines: Iterable[str]) -> str:
  """Without control characters and of some length, which strangers exceed."""
  shown = [
    line if len(line) <= _MAX_LINE else f"{line[:_MAX_LINE]}..."
    for line in lines
  ]
  return "\n".join(
    "".join(c if c.isprintable() else "\ufffd" for c in line) for line in shown
  )
