"""The roads out: weights from anywhere into a form that somebody loads.

One array is read, changed and written after another, so that a conversion takes
the memory of the largest. The output appears under its name when it is whole,
with a manifest (manifest.py), and never replaces anything.
"""

import contextlib
import ctypes
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tqdm

from byt5_diffusion import stored_trees
from byt5_diffusion.conversion import (
  families,
  folders,
  manifest,
  names,
  safetensors_files,
  sources,
  t5x_files,
  tensor_files,
  tree_files,
  views,
)

ConversionError = names.ConversionError
Network = families.Network
Source = stored_trees.Source

_TREES = ("ours", "t5x")
_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h.


class Plan(NamedTuple):
  """What will be written.

  Attributes:
    weights: where it comes from.
    to: one of names.TARGETS.
    dtype: of floats; None = as they are.
    scan_layers: whether layers are stacked.
    source: the arrays to write, under our names; unrolled but for trees.
    networks: {place: network} of them, as far as they are known.
    outputs: {our unrolled name: name in the output}.
    scheduler: a pipeline's scheduler_config.json.
  """

  weights: sources.Weights
  to: str
  dtype: str | None
  scan_layers: bool
  source: Source
  networks: dict[str, Network]
  outputs: dict[str, str]
  scheduler: Mapping[str, Any] | None


def plan(
  weights: sources.Weights,
  to: str,
  dtype: str | None = None,
  scan_layers: bool = False,
  scheduler: Mapping[str, Any] | None = None,
) -> Plan:
  """Finds out all that would be written; reads no array.

  Args:
    weights: see sources.open_weights.
    to: one of names.TARGETS.
    dtype: one of names.DTYPES, or None: as in the source.
    scan_layers: stack layers as scanned networks have them; of trees.
    scheduler: for a pipeline.

  Raises:
    ConversionError: it can't be; says why.
  """
  if to not in names.TARGETS:
    raise ConversionError(
      f"--to {to} is not one of {', '.join(names.TARGETS)}."
    )
  if dtype not in (None, *names.DTYPES):
    raise ConversionError(
      f"--dtype {dtype} is not one of {', '.join(names.DTYPES)}."
    )
  if scan_layers and to not in _TREES:
    raise ConversionError(f"--scan_layers is for trees, not for --to {to}.")
  source = views.cast(weights.source, dtype)
  networks = dict(weights.networks)
  if to in _TREES:
    outputs = {name: name for name in source.shapes}
    only = len(networks) == 1 and next(iter(networks.values()))
    if to == "t5x" and only and only.family.kind == "t5":
      # As T5X's own networks have it.
      prefix = f"{only.place}/"
      if all(name.startswith(prefix) for name in source.shapes):
        outputs = {k: k.removeprefix(prefix) for k in source.shapes}
    source = views.renamed(source, {new: old for old, new in outputs.items()})
    if scan_layers:
      source = views.stacked(source)
      outputs = {k: views.stacked_name(v) for k, v in outputs.items()}
  else:
    outputs, networks = _theirs(source, networks, to)
  return Plan(
    weights, to, dtype, scan_layers, source, networks, outputs, scheduler
  )


def _theirs(
  source: Source, networks: dict[str, Network], to: str
) -> tuple[dict[str, str], dict[str, Network]]:
  """{our name: theirs} of a folder or file, and the networks in it."""
  rest = {name.partition("/")[0] for name in source.shapes} - set(networks)
  if rest:
    raise ConversionError(
      f"{source.what} does not say what networks {', '.join(sorted(rest))} are:"
      " give a run's folder, or the config.json by --config, or take the other"
      " networks alone by --kind."
    )
  if to == "transformers":
    wrong = [p for p, x in networks.items() if x.family.peer != to]
    if wrong or len(networks) != 1:
      raise ConversionError(
        f"--to transformers writes one T5 or CLIP, and {source.what} holds"
        f" {', '.join(networks)}: choose by --kind."
      )
  layout = "single_file" if to == "single_file" else "folder"
  outputs: dict[str, str] = {}
  for place, network in networks.items():
    if layout == "single_file":
      entries = folders.single_file_entries(network)
    else:
      entries = list(families.layouts(network)[layout]())
    families.to_theirs(source, network, entries)  # Raises what there is.
    outputs |= {f"{place}/{x.ours}": families.spell(x) for x in entries}
  return outputs, networks


# --- What is said of it. ---


def table(done: Plan) -> str:
  """A few lines: which networks, how large, what is left out."""
  weights = done.weights
  lines = [f"{weights.kind}: {weights.source.what}"]
  places = sorted({name.partition("/")[0] for name in weights.source.shapes})
  for place in places:
    own = [
      leaf
      for name, leaf in weights.source.shapes.items()
      if name.partition("/")[0] == place
    ]
    count = sum(int(np.prod(leaf.shape, dtype=object)) for leaf in own)
    kinds = ", ".join(sorted({np.dtype(leaf.dtype).name for leaf in own}))
    if done.dtype is not None:
      kinds += f" -> {done.dtype}"
    network = weights.networks.get(place)
    kind = network.family.kind if network else "?"
    lines.append(
      f"  {place:<17}{kind:<12}{len(own):>6} arrays{count:>16,} parameters "
      f" {kinds}"
    )
  for what, count in weights.left.items():
    number = f": {count} arrays" if count else ""
    lines.append(f"  left out: {what}{number}")
  first = next(iter(done.outputs.items()))
  lines.append(f"  {first[0]} -> {first[1]} and so on ({done.to})")
  return "\n".join(lines)


# --- Doing it. ---


def check_hashes(
  files: Sequence[pathlib.Path],
  wanted: Sequence[str],
  progress: bool = False,
) -> dict[str, str]:
  """{file: its sha256}, once those that were asked for are as asked.

  Args:
    files: that are read.
    wanted: "HEX" of the only file of weights, or "NAME=HEX".
    progress: show a bar.

  Raises:
    ConversionError: another hash, no such file, or no hash at all.
  """
  asked = _parse_hashes(files, wanted)
  total = sum(file.stat().st_size for file in files)
  found = {}
  with _bar("hashing", total, progress) as bar:
    for file in files:
      found[str(file)] = tensor_files.sha256(file, bar.update)
      if found[str(file)] != asked.get(file, found[str(file)]):
        raise ConversionError(
          f"{file} has the sha256 {found[str(file)]}, and {asked[file]} was"
          " asked for: it is another file, or damaged."
        )
  return found


def _parse_hashes(
  files: Sequence[pathlib.Path], wanted: Sequence[str]
) -> dict[pathlib.Path, str]:
  weights = [file for file in files if file.suffix != ".json"]
  asked: dict[pathlib.Path, str] = {}
  for text in wanted:
    name, _, value = text.rpartition("=")
    value = value.lower()
    if len(value) != 64 or not set(value) <= set("0123456789abcdef"):
      raise ConversionError(
        f"--sha256 {text[:100]}: 64 hexadecimal digits, or NAME=digits."
      )
    matching = [x for x in files if name and str(x).endswith(f"/{name}")]
    chosen = matching if name else weights
    if len(chosen) != 1:
      shown = ", ".join(x.name for x in files[:8])
      raise ConversionError(
        f"--sha256 {text[:100]}: name one of the files: {shown}."
      )
    asked[chosen[0]] = value
  return asked


def _bar(what: str, total: int, progress: bool) -> Any:
  return tqdm.tqdm(
    total=total,
    desc=what,
    unit="B",
    unit_scale=True,
    disable=not progress,
    leave=False,
  )


def execute(
  done: Plan,
  output: str | os.PathLike[str],
  hashes: Mapping[str, str],
  progress: bool = False,
) -> pathlib.Path:
  """Writes what the plan says; where its manifest is.

  Args:
    done: see plan.
    output: which does not exist; of a single file, with .safetensors.
    hashes: see check_hashes; for the manifest.
    progress: show a bar.

  Raises:
    ConversionError: the output exists, there is no room for it, or an array
      can't be read.
  """
  path = pathlib.Path(output).absolute()
  check_output(path, done.to)
  total = sum(
    stored_trees.nbytes(leaf.shape, leaf.dtype)
    for leaf in done.source.shapes.values()
  )
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise ConversionError(
      f"{path.parent} can't be made: {error.strerror}."
    ) from None
  free = shutil.disk_usage(path.parent).free
  if free < total:
    raise ConversionError(
      f"{path.parent} has {free >> 20} MiB left, and up to {total >> 20} MiB"
      " are written."
    )
  _return_large_blocks()
  with tensor_files.whole(path) as temporary:
    with _bar("writing", total, progress) as bar:

      def advance(count: int) -> None:
        bar.update(count)
        _return_small_blocks()

      sha256 = _write(done, temporary, advance)
    content = _manifest(done, hashes, sha256)
    if done.to == "single_file":
      beside = path.with_name(f"{path.name}.{manifest.FILE}")
      manifest.write(beside, content)
      return beside
    manifest.write(temporary / manifest.FILE, content)
  return path / manifest.FILE


def _return_large_blocks() -> None:
  """Has glibc's malloc give large blocks back as soon as they are freed.

  It raises its threshold to the sizes that it meets, and then keeps several
  arrays' worth of holes. Elsewhere there is no such function.
  """
  with contextlib.suppress(AttributeError, OSError):
    ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 2**20)


def _return_small_blocks() -> None:
  """The same of what many threads have freed in pieces; glibc's, too."""
  with contextlib.suppress(AttributeError, OSError):
    ctypes.CDLL(None).malloc_trim(0)


def check_output(path: pathlib.Path, to: str) -> None:
  """Raises ConversionError for a name that can't be written."""
  tensor_files.refuse_existing(path)
  if to == "single_file":
    if path.suffix != safetensors_files.SUFFIX:
      raise ConversionError(f"{path}: --to single_file writes .safetensors.")
    beside = path.with_name(f"{path.name}.{manifest.FILE}")
    tensor_files.refuse_existing(beside)


def _write(
  done: Plan, path: pathlib.Path, advance: Callable[[int], Any]
) -> str | None:
  source, networks = done.source, done.networks
  if done.to == "ours":
    return tree_files.write(path, source, advance)
  if done.to == "t5x":
    t5x_files.write(path, source, advance=advance)
  elif done.to == "single_file":
    folders.write_single_file(path, source, networks, advance)
  elif len(networks) == 1 and done.scheduler is None:
    [network] = networks.values()
    folders.write_network(path, source, network, advance)
  else:
    folders.write_pipeline(path, source, networks, done.scheduler, advance)
  return None


def _manifest(
  done: Plan, hashes: Mapping[str, str], sha256: str | None
) -> dict[str, Any]:
  weights = done.weights
  leaves = views.cast(weights.source, done.dtype).shapes
  arrays = {
    ours: {
      "source": weights.names.get(ours, ours),
      "output": output,
      "shape": list(leaves[ours].shape),
      "dtype": np.dtype(leaves[ours].dtype).name,
    }
    for ours, output in done.outputs.items()
  }
  return manifest.make(
    source={
      "path": weights.source.what,
      "kind": weights.kind,
      "sha256": dict(hashes),
      "left_out": weights.left,
    },
    target=done.to,
    dtype=done.dtype,
    scan_layers=done.scan_layers,
    networks=done.networks,
    arrays=arrays,
    sha256=sha256,
  )


def convert(
  source: str | os.PathLike[str],
  output: str | os.PathLike[str],
  *,
  to: str = "ours",
  kind: str = "auto",
  config: str | None = None,
  dtype: str | None = None,
  scan_layers: bool = False,
  sha256: Sequence[str] = (),
  progress: bool = False,
) -> pathlib.Path:
  """sources.open_weights, plan and execute in one; where the manifest is."""
  weights = sources.open_weights(source, kind, config)
  done = plan(weights, to, dtype, scan_layers)
  check_output(pathlib.Path(output).absolute(), to)
  hashes = check_hashes(weights.files, sha256, progress)
  return execute(done, output, hashes, progress)
