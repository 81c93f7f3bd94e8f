"""Writes what diffusers and transformers load: folders and single files."""

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from byt5_diffusion import stored_trees
from byt5_diffusion.conversion import (
  families,
  manifest,
  names,
  safetensors_files,
  t5_names,
)

ConversionError = names.ConversionError
Network = families.Network
Advance = Callable[[int], Any]

_STEMS = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}
# ByT5's own: 256 bytes after three special ids, and 125 of its pretraining.
_TOKENIZER = {
  "tokenizer_class": "ByT5Tokenizer",
  "pad_token": "<pad>",
  "eos_token": "</s>",
  "unk_token": "<unk>",
  "extra_ids": 125,
}
# Without a value of their own, diffusers' pipeline asks for these.
_ABSENT = ("feature_extractor", "image_encoder", "safety_checker")


def write_network(
  folder: pathlib.Path,
  ours: stored_trees.Source,
  network: Network,
  advance: Advance,
  max_shard_bytes: int = safetensors_files.MAX_SHARD_BYTES,
) -> None:
  """A network's folder: config.json and safetensors, a ByT5's tokenizer too.

  Args:
    folder: which does not exist.
    ours: our unrolled names, among them all of the network's.
    network: family, config and place.
    advance: told of every array's bytes.
    max_shard_bytes: of one file.
  """
  entries = families.layouts(network)["folder"]()
  theirs = families.to_theirs(ours, network, entries)
  folder.mkdir(parents=True)
  _write_json(folder / "config.json", families.to_json(network))
  stem = _STEMS[network.family.peer]
  read = _reading(theirs, advance)
  safetensors_files.write_sharded(
    folder, stem, theirs.shapes, read, max_shard_bytes
  )
  if _is_byt5(network):
    _write_json(folder / "tokenizer_config.json", _TOKENIZER)


def _reading(source: stored_trees.Source, advance: Advance) -> Any:
  def read(name: str) -> Any:
    array = source.read([name])[name]
    advance(array.nbytes)
    return array

  return read


def _is_byt5(network: Network) -> bool:
  return (
    network.family.kind == "t5"
    and network.config.vocab_size == t5_names.BYT5_VOCAB_SIZE
  )


def write_pipeline(
  folder: pathlib.Path,
  ours: stored_trees.Source,
  networks: Mapping[str, Network],
  scheduler: Mapping[str, Any] | None,
  advance: Advance,
) -> None:
  """A pipeline's folder: one folder per network and model_index.json.

  Args:
    folder: which does not exist.
    ours: our unrolled names.
    networks: {place: network}, all of which are written.
    scheduler: scheduler_config.json; None = there is none.
    advance: told of every array's bytes.
  """
  folder.mkdir()
  index: dict[str, Any] = {"_class_name": "StableDiffusionPipeline"}
  for place, network in networks.items():
    name = network.family.folder
    if place != network.family.place:
      name = f"{name}_2"  # As diffusers calls a second encoder.
    write_network(folder / name, ours, network, advance)
    content = families.to_json(network)
    kind = content.get("_class_name") or content["architectures"][0]
    index[name] = [network.family.peer, kind]
    if _is_byt5(network):
      own = name.replace("text_encoder", "tokenizer")
      (folder / own).mkdir()
      tokenizer = folder / name / "tokenizer_config.json"
      tokenizer.rename(folder / own / tokenizer.name)
      index[own] = ["transformers", "ByT5Tokenizer"]
  if scheduler is not None:
    (folder / "scheduler").mkdir()
    _write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    index["scheduler"] = ["diffusers", scheduler["_class_name"]]
  index |= {name: [None, None] for name in _ABSENT if name not in index}
  index["requires_safety_checker"] = False
  _write_json(folder / "model_index.json", index)


def single_file_entries(network: Network) -> list[names.Entry]:
  """The entries of a network in latent diffusion's files.

  Raises:
    ConversionError: such files do not hold it.
  """
  make = families.layouts(network).get("single_file")
  if make is None:
    raise ConversionError(
      f"A single file holds no {network.family.kind}: write a folder by --to"
      f" {network.family.peer}."
    )
  return list(make())


def write_single_file(
  path: pathlib.Path,
  ours: stored_trees.Source,
  networks: Mapping[str, Network],
  advance: Advance,
) -> None:
  """All networks in one file, with the names and prefixes of latent diffusion.

  Args:
    path: which does not exist.
    ours: our unrolled names.
    networks: {place: network}, all of which are written.
    advance: told of every array's bytes.
  """
  parts = [
    families.to_theirs(ours, network, single_file_entries(network))
    for network in networks.values()
  ]
  home = {name: part for part in parts for name in part.shapes}
  shapes = {name: part.shapes[name] for name, part in home.items()}
  said = json.dumps(manifest.describe_networks(networks))

  def read(name: str) -> Any:
    return _reading(home[name], advance)(name)

  metadata = {"format": "pt", manifest.KEY: said}
  safetensors_files.write(path, shapes, read, metadata)


def _write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
  path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
