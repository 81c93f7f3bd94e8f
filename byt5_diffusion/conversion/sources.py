"""What a path holds, of whichever program, under our names.

  a pipeline's folder (model_index.json)  unet/, codec/, text_encoder/ (if a T5)
  a network's folder (config.json)        safetensors or pytorch_model.bin
  a single file                           safetensors or torch.save's zip
  model.ckpt-<step>.index                 Mesh TensorFlow
  checkpoint_<step>/                      T5X, or a run of ours
  a tree                                  save_tree's, or `convert`'s

Nothing is downloaded, and nothing of a file is run. Arrays are read when they
are asked for.
"""

import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from byt5_diffusion import checkpoints, stored_trees, t5x_checkpoints
from byt5_diffusion.conversion import (
  families,
  manifest,
  mesh_tf_files,
  names,
  pickled_files,
  safetensors_files,
  single_files,
  t5_names,
  tensor_files,
  views,
)

ConversionError = names.ConversionError
Network = families.Network
Place = tensor_files.Place
Source = stored_trees.Source

_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
_READERS: dict[str, Callable[[pathlib.Path], dict[str, Place]]] = {
  ".safetensors": safetensors_files.read_places,
  ".bin": pickled_files.read_places,
  ".pt": pickled_files.read_places,
  ".pth": pickled_files.read_places,
  ".ckpt": pickled_files.read_places,
}
_PLAIN_SUFFIXES = (".safetensors", ".bin")
_VARIANT = re.compile(
  r"(diffusion_pytorch_model|model|pytorch_model)\.[a-z0-9_]{1,32}"
  r"(-\d{5}-of-\d{5})?\.(safetensors|bin)"
)
_INDEX = ".index.json"
_READABLE = (
  "a diffusers or Hugging Face folder (model_index.json or config.json), a"
  " .safetensors file, a .bin or .ckpt file of torch.save, a checkpoint of T5X"
  " or Mesh TensorFlow (model.ckpt-*.index), a run or a tree of ours"
)


class Weights(NamedTuple):
  """What a path holds.

  Attributes:
    source: its arrays under our names, with the networks' places in front.
    networks: {place: network}, as far as their configs are known.
    kind: of the path, in words.
    files: all that is read.
    left: {what: how many arrays of it nobody takes}.
    names: {our name: the array in the source that it is made of}.
  """

  source: Source
  networks: dict[str, Network]
  kind: str
  files: list[pathlib.Path]
  left: dict[str, int]
  names: dict[str, str]


def is_foreign(path: str | os.PathLike[str]) -> bool:
  """Whether open_source reads it, and assignment's own sources do not."""
  place = pathlib.Path(path)
  if not place.is_dir():
    return place.is_file() or mesh_tf_files.find(place) is not None
  if any((place / x).is_file() for x in ("model_index.json", "config.json")):
    return True
  return mesh_tf_files.find(place) is not None


def open_source(path: str | os.PathLike[str]) -> Source:
  """Another program's arrays under our names, unread; see open_weights."""
  return open_weights(path).source


def open_weights(
  path: str | os.PathLike[str],
  kind: str = "auto",
  config: str | os.PathLike[str] | None = None,
  step: int | None = None,
  use_ema: bool = True,
) -> Weights:
  """Finds out what path is, and names its arrays; reads none of them.

  Args:
    path: see the module.
    kind: the family that it must be of; "auto" finds out.
    config: a peer's config.json, where nothing beside the weights tells it.
    step, use_ema: of a run of ours or a T5X MODEL_DIR.

  Raises:
    ConversionError: nothing that is known, damaged, or not the network that
      its config describes.
    checkpoints.CheckpointError: a broken checkpoint of T5X or ours.
  """
  kind = "t5" if kind == "byt5" else kind
  place = pathlib.Path(path).absolute()
  checkpoint = mesh_tf_files.find(place)
  if checkpoint is not None:
    return _open_mesh_tf(checkpoint, kind)
  if not os.path.lexists(place):
    raise ConversionError(
      f"There is no {path}. Nothing is downloaded: fetch it first, e.g. with"
      " `hf download NAME --local-dir FOLDER`."
    )
  if place.is_file():
    return _open_file(place, kind, config)
  if (place / "model_index.json").is_file():
    return _open_pipeline(place, kind)
  if (place / "config.json").is_file():
    return _open_folder(place, kind, None, config)
  return _open_checkpoint(place, kind, config, step, use_ema)


# --- Folders of Hugging Face and diffusers. ---


def _open_pipeline(folder: pathlib.Path, kind: str) -> Weights:
  """The networks of a pipeline that we have; the others are left, by name."""
  content = tensor_files.load_json(folder / "model_index.json")
  if not isinstance(content, dict):
    raise ConversionError(f"{folder}/model_index.json is not a dict.")
  parts: list[Weights] = []
  left: dict[str, int] = {}
  for name, value in content.items():
    if name.startswith("_") or not _is_component(value):
      continue
    part = tensor_files.folder_inside(folder, name)
    if not (part / "config.json").is_file():
      continue  # Schedulers and tokenizers have no weights.
    said = tensor_files.load_json(part / "config.json")
    try:
      family = families.of_config(said, str(part / "config.json"))
    except ConversionError:
      left[f"{name} ({value[1][:60]})"] = 0
      continue
    if kind in ("auto", family.kind):
      parts.append(_open_folder(part, kind, _place(family, name), None))
  if not parts:
    wanted = "network that we have" if kind == "auto" else kind
    raise ConversionError(f"{folder} holds no {wanted}.")
  source = views.joined(f"pipeline {folder}", [x.source for x in parts])
  networks = {k: v for part in parts for k, v in part.networks.items()}
  files = [folder / "model_index.json", *(f for p in parts for f in p.files)]
  left |= {k: v for part in parts for k, v in part.left.items()}
  sources_of = {k: v for part in parts for k, v in part.names.items()}
  return Weights(
    source, networks, "diffusers pipeline", files, left, sources_of
  )


def _is_component(value: Any) -> bool:
  return (
    isinstance(value, list)
    and len(value) == 2
    and all(isinstance(text, str) for text in value)
  )


def _place(family: families.Family, name: str) -> str:
  """Where a pipeline's network goes: a second T5 is the semantic encoder."""
  second = family.kind == "t5" and name != family.folder
  return "semantic_encoder" if second else family.place


def _open_folder(
  folder: pathlib.Path,
  kind: str,
  place: str | None,
  config: str | os.PathLike[str] | None,
) -> Weights:
  file = pathlib.Path(config) if config else folder / "config.json"
  weights = _weight_files(folder)
  found = _read_weights(weights)
  network, content = _network(file, kind, place)
  source = tensor_files.source(str(folder), found)
  files = [file, weights, *sorted({x.file for x in found.values()})]
  return _named(source, network, content, "folder", list(dict.fromkeys(files)))


def _network(
  file: pathlib.Path, kind: str, place: str | None
) -> tuple[Network, Mapping[str, Any]]:
  """The network that a config.json describes, and its content."""
  content = tensor_files.load_json(file)
  family = families.of_config(content, str(file), kind)
  parsed = families.parse_config(family, content, str(file))
  return Network(family, parsed, place or family.place), content


def _weight_files(folder: pathlib.Path) -> pathlib.Path:
  """The file of a network's weights, or the index of several."""
  for suffix in _PLAIN_SUFFIXES:
    for stem in _STEMS:
      for name in (f"{stem}{suffix}", f"{stem}{suffix}{_INDEX}"):
        if os.path.lexists(folder / name):
          return tensor_files.file_inside(folder, name)
  variants = [x.name for x in folder.iterdir() if _VARIANT.fullmatch(x.name)]
  if len(variants) == 1:
    return tensor_files.file_inside(folder, variants[0])
  shown = f"; of several variants ({', '.join(sorted(variants)[:4])}) name one"
  raise ConversionError(
    f"{folder} holds no weights: neither of {', '.join(_STEMS)}, .safetensors"
    f" or .bin{shown if variants else ''}."
  )


def _read_weights(path: pathlib.Path) -> dict[str, Place]:
  if not path.name.endswith(_INDEX):
    return _READERS[path.suffix](path)
  suffix = pathlib.Path(path.name.removesuffix(_INDEX)).suffix
  if suffix not in _READERS:
    raise ConversionError(f"{path} is no index of safetensors or .bin files.")
  return tensor_files.read_index(path, suffix, _READERS[suffix])


def _named(
  source: Source,
  network: Network,
  content: Mapping[str, Any],
  kind: str,
  files: list[pathlib.Path],
) -> Weights:
  """Their arrays by our names, in whichever layout most of them fit."""
  module = network.family.module
  entries = families.fitting_entries(network, source.shapes)
  ignored = getattr(module, "ignored", lambda name, config: False)
  stand_ins: Callable[[Any], Mapping[str, str]]
  stand_ins = getattr(module, "stand_ins", lambda content: {})
  left = [k for k in source.shapes if ignored(k, network.config)]
  named = families.to_ours(
    source,
    network,
    entries,
    aliases=getattr(module, "ALIASES", {}),
    stand_ins=stand_ins(content),
    ignored=lambda name: ignored(name, network.config),
  )
  counts = {"arrays that this network ignores": len(left)} if left else {}
  networks = {network.place: network}
  peer = network.family.peer
  return Weights(
    named,
    networks,
    f"{peer} {kind}",
    files,
    counts,
    _spelled(network, entries),
  )


def _spelled(
  network: Network, entries: Sequence[names.Entry]
) -> dict[str, str]:
  return {f"{network.place}/{x.ours}": families.spell(x) for x in entries}


# --- Single files. ---


def _open_file(
  file: pathlib.Path, kind: str, config: str | os.PathLike[str] | None
) -> Weights:
  if file.name.endswith(_INDEX):
    found = _read_weights(file)
  elif file.suffix in _READERS:
    found = _READERS[file.suffix](file)
  else:
    raise ConversionError(f"{file} can't be read; read are {_READABLE}.")
  source = tensor_files.source(str(file), found)
  files = list(dict.fromkeys([file, *sorted({x.file for x in found.values()})]))
  parts = single_files.parts(source)
  own = _own_configs(file)
  beside = file.parent / "config.json"
  if config is None and not parts and not own and beside.is_file():
    config = beside
  given = None
  if config is not None:
    given = _network(pathlib.Path(config), kind, None)
    files.append(pathlib.Path(config))
  if not parts:
    if given is None:
      if len(own) != 1:
        raise ConversionError(
          f"{file} does not say what network it is: put its config.json beside"
          " it, or give `convert` that by --config."
        )
      [network] = own.values()
      given = network, families.to_json(network)
    return _named(source, *given, "file", files)
  return _open_single(source, parts, given and given[0], own, kind, files)


def _own_configs(file: pathlib.Path) -> dict[str, Network]:
  if file.suffix != ".safetensors":
    return {}
  text = safetensors_files.read_header(file).metadata.get(manifest.KEY)
  return {} if text is None else manifest.parse_networks(text, str(file))


def _open_single(
  source: Source,
  parts: dict[str, Source],
  given: Network | None,
  own: dict[str, Network],
  kind: str,
  files: list[pathlib.Path],
) -> Weights:
  """Several networks in one file, as latent diffusion has them."""
  networks = single_files.networks(source, parts, given, own, kind)
  named: list[Source] = []
  sources_of: dict[str, str] = {}
  for place, network in networks.items():
    entries = families.layouts(network)["single_file"]()
    named.append(families.to_ours(parts[place], network, entries))
    sources_of |= _spelled(network, entries)
  used = sum(len(parts[place].shapes) for place in networks)
  left = single_files.left(source, set(networks))
  if used + sum(left.values()) != len(source.shapes):
    raise AssertionError("Every array is taken or left, by name.")
  joined = views.joined(source.what, named)
  return Weights(joined, networks, "single file", files, left, sources_of)


# --- Checkpoints. ---


def _open_mesh_tf(prefix: pathlib.Path, kind: str) -> Weights:
  source = mesh_tf_files.open_source(prefix)
  if kind not in ("auto", "t5"):
    raise ConversionError(f"{prefix} is of a t5, and {kind} was asked for.")
  config = t5_names.mesh_tf_config(source)
  family = families.FAMILIES["t5"]
  network = Network(family, config, family.place)
  left = [k for k in source.shapes if t5_names.mesh_tf_ignored(k, config)]
  named = families.to_ours(
    source,
    network,
    t5_names.mesh_tf_entries(config),
    aliases=t5_names.mesh_tf_aliases(config),
    ignored=lambda name: t5_names.mesh_tf_ignored(name, config),
  )
  return Weights(
    named,
    {network.place: network},
    "Mesh TensorFlow checkpoint",
    mesh_tf_files.files(prefix),
    {"optimizer states and steps": len(left)} if left else {},
    _spelled(network, t5_names.mesh_tf_entries(config)),
  )


def _open_checkpoint(
  folder: pathlib.Path,
  kind: str,
  config: str | os.PathLike[str] | None,
  step: int | None,
  use_ema: bool,
) -> Weights:
  theirs = t5x_checkpoints.find(folder, step)
  if theirs is not None:
    source, what = t5x_checkpoints.open_source(theirs), "T5X checkpoint"
    home = pathlib.Path(theirs)
  else:
    try:
      source = checkpoints.open_source(folder, step, use_ema)
    except checkpoints.CheckpointError as error:
      raise ConversionError(f"{error} Read are {_READABLE}.") from None
    what, home = "checkpoint of ours", folder
    if not (folder / "extra").exists():
      chosen = step or checkpoints.committed_steps(folder)[-1]
      home = folder / f"{checkpoints.STEP_PREFIX}_{chosen}"
  networks = manifest.read_networks(home)
  if config is not None:
    network, _ = _network(pathlib.Path(config), kind, None)
    networks[network.place] = network
  source = views.ahead(source)
  stored = set(source.shapes)
  if views.is_stacked(source.shapes):
    source = views.unrolled(source)
  where = {name: name for name in source.shapes}
  if t5_names.is_root(source.shapes):
    where = {f"text_encoder/{name}": name for name in source.shapes}
    source = views.renamed(source, where)
  for place in ("text_encoder", "semantic_encoder"):
    if place not in networks and f"{place}/token_embedder/embedding" in (
      source.shapes
    ):
      family = families.FAMILIES["t5"]
      t5_config = t5_names.t5x_config(source, f"{place}/")
      networks[place] = Network(family, t5_config, place)
  source, networks = only(source, networks, kind, str(folder))
  sources_of = {
    name: old if old in stored else views.stacked_name(old)
    for name, old in where.items()
  }
  return Weights(source, networks, what, _files_below(home), {}, sources_of)


def only(
  source: Source, networks: dict[str, Network], kind: str, where: str
) -> tuple[Source, dict[str, Network]]:
  """What is of one kind; "auto" is all.

  Raises:
    ConversionError: nothing is.
  """
  kind = "t5" if kind == "byt5" else kind
  if kind == "auto":
    return source, networks
  chosen = {k: v for k, v in networks.items() if v.family.kind == kind}
  wanted = [name for name in source.shapes if name.partition("/")[0] in chosen]
  if not wanted:
    raise ConversionError(f"{where} holds no {kind} whose config is known.")
  return views.renamed(source, {name: name for name in wanted}), chosen


def _files_below(folder: pathlib.Path) -> list[pathlib.Path]:
  return sorted(path for path in folder.rglob("*") if path.is_file())
