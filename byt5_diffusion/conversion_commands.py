"""The command `byt5-diffusion convert`: weights of other programs, in and out.

tools/convert_checkpoint.py is the same without the other commands.
"""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from byt5_diffusion import config
from byt5_diffusion.conversion import names

if TYPE_CHECKING:
  from byt5_diffusion.conversion import families, sources

_HELP = "convert weights between our trees, T5X, diffusers and Hugging Face"
_SOURCE_HELP = (
  "a diffusers or Hugging Face folder, a .safetensors or .bin file, a"
  " checkpoint of T5X or Mesh TensorFlow, a run or a tree of ours; nothing is"
  " downloaded"
)


def add(add_command: Callable[..., Any]) -> None:
  """Adds the command.

  Args:
    add_command: (name, help, body, takes_gin) -> the command's parser.
  """
  add_flags(add_command("convert", _HELP, run, False))


def add_flags(command: argparse.ArgumentParser) -> None:
  """Adds what `run` reads."""
  command.add_argument("source", metavar="SOURCE", help=_SOURCE_HELP)
  command.add_argument(
    "output", metavar="OUTPUT", help="a new folder, or file of single_file"
  )
  command.add_argument(
    "--to", choices=names.TARGETS, default="ours", help="default: ours"
  )
  command.add_argument(
    "--kind",
    choices=names.KINDS,
    default="auto",
    help="take only the networks of this kind; default: all that are known",
  )
  command.add_argument(
    "--config",
    metavar="CONFIG.JSON",
    help="the peer's, where the source does not say what it is",
  )
  command.add_argument(
    "--dtype", choices=names.DTYPES, help="of floats; default: as they are"
  )
  command.add_argument(
    "--scan_layers",
    action="store_true",
    help="stack layers, as models with scan_layers = True have them",
  )
  command.add_argument(
    "--sha256",
    action="append",
    default=[],
    metavar="[NAME=]HEX",
    help="that a file of the source must have; may be repeated",
  )
  command.add_argument(
    "--step", type=int, help="of a run's folder; default: the last checkpoint"
  )
  command.add_argument(
    "--raw", action="store_true", help="of a run: the weights not averaged"
  )
  command.add_argument(
    "--trust_config",
    action="store_true",
    help="let a run's model.gin name code outside of this package",
  )
  command.add_argument(
    "--dry_run", action="store_true", help="say what would be done"
  )


def run(flags: argparse.Namespace) -> None:
  """Converts, or says what it would do."""
  from byt5_diffusion.conversion import convert

  if getattr(flags, "gin_bindings", None):
    raise config.ConfigError("convert takes no --gin. settings.")
  output = pathlib.Path(flags.output).absolute()
  convert.check_output(output, flags.to)
  weights, scheduler = _open(flags)
  done = convert.plan(
    weights,
    flags.to,
    flags.dtype,
    flags.scan_layers,
    scheduler if flags.to == "diffusers" else None,
  )
  print(convert.table(done))
  progress = sys.stderr.isatty()
  hashes = {}
  if flags.sha256 or not flags.dry_run:
    hashes = convert.check_hashes(weights.files, flags.sha256, progress)
  if flags.dry_run:
    print("Nothing was written (--dry_run).")
    return
  manifest = convert.execute(done, output, hashes, progress)
  print(f"Wrote {flags.output}; what came from where: {manifest}.")


def _open(
  flags: argparse.Namespace,
) -> tuple["sources.Weights", dict[str, Any] | None]:
  """The source's weights, and its scheduler if it is a run that draws."""
  from byt5_diffusion.conversion import sources

  run_dir = pathlib.Path(flags.source)
  weights = None
  if not (run_dir / "model.gin").is_file():
    # A run's checkpoint_<step> is told by the run's own model.gin.
    if not (run_dir.parent / "model.gin").is_file() or not run_dir.is_dir():
      for name in ("raw", "trust_config"):
        if getattr(flags, name):
          raise names.ConversionError(
            f"--{name} is for a run's folder, and {flags.source} is none."
          )
      return _open_other(flags, flags.kind), None
    run_dir = run_dir.parent
  # Which kinds there are is known once the model is.
  weights = _open_other(flags, "auto")
  model = config.load_model_gin(run_dir, trust_config=flags.trust_config)
  weights = _with_frozen(weights, run_dir, flags)
  networks = {**weights.networks, **_networks(model, weights)}
  source, networks = sources.only(
    weights.source, networks, flags.kind, flags.source
  )
  weights = weights._replace(source=source, networks=networks)
  return weights, _scheduler(model) if "unet" in networks else None


def _open_other(flags: argparse.Namespace, kind: str) -> "sources.Weights":
  from byt5_diffusion.conversion import sources

  return sources.open_weights(
    flags.source, kind, flags.config, flags.step, not flags.raw
  )


def _with_frozen(
  weights: "sources.Weights", run_dir: pathlib.Path, flags: argparse.Namespace
) -> "sources.Weights":
  """The weights with the frozen networks that the run's checkpoint names."""
  from byt5_diffusion import checkpoints, stored_trees, variables
  from byt5_diffusion.conversion import sources, views

  place = pathlib.Path(flags.source)
  if place == run_dir:
    step = flags.step or checkpoints.committed_steps(run_dir)[-1]
    place = run_dir / f"{checkpoints.STEP_PREFIX}_{step}"
  record = stored_trees.check(stored_trees.absolute(place)).get("frozen")
  if record is None:
    return weights
  path, sha256 = variables.frozen_record(record, run_dir)
  frozen = sources.open_weights(path)
  extra = stored_trees.check(stored_trees.absolute(path))
  if extra.get("sha256") != sha256:
    raise names.ConversionError(
      f"{path} holds other frozen networks than the run was trained with."
    )
  what = weights.source.what
  return weights._replace(
    source=views.joined(what, [weights.source, frozen.source]),
    networks=frozen.networks | weights.networks,
    files=[*weights.files, *frozen.files],
    names=weights.names | frozen.names,
  )


def _networks(
  model: Any, weights: "sources.Weights"
) -> dict[str, "families.Network"]:
  """{place: network} of a model's networks that have a family."""
  from byt5_diffusion.conversion import families

  parts: dict[str, tuple[str, Any]] = {
    "unet": ("unet", getattr(model, "unet", None)),
    "codec": (
      "autoencoder",
      getattr(getattr(model, "codec", None), "network", None),
    ),
    "text_encoder": ("t5", getattr(model, "text_encoder", None)),
    "semantic_encoder": ("t5", getattr(model, "semantic_encoder", None)),
  }
  there = {name.partition("/")[0] for name in weights.source.shapes}
  return {
    place: families.Network(
      families.FAMILIES[kind], _unrolled_config(module.config), place
    )
    for place, (kind, module) in parts.items()
    if place in there and hasattr(module, "config")
  }


def _unrolled_config(part: Any) -> Any:
  names_of = {field.name for field in dataclasses.fields(part)}
  changes = {"scan_layers": False} if "scan_layers" in names_of else {}
  return dataclasses.replace(part, **changes)


def _scheduler(model: Any) -> dict[str, Any] | None:
  """The model's schedule for diffusers; None, and a word, where it has none."""
  from byt5_diffusion.conversion import schedulers

  try:
    return schedulers.to_json(
      model.schedule.log_snr,
      model.prediction_type,
      model.time_scale,
      model.time_offset,
    )
  except (AttributeError, names.ConversionError) as error:
    print(f"No scheduler is written: {error}", file=sys.stderr)
    return None


def main(arguments: Sequence[str] | None = None) -> int:
  """tools/convert_checkpoint.py; returns the exit code."""
  from byt5_diffusion import main as main_lib

  parser = main_lib.Parser(prog="convert_checkpoint.py", description=_HELP)
  add_flags(parser)
  flags = parser.parse_args(arguments)
  main_lib.set_up_logging()
  return main_lib.guarded(run, flags)
