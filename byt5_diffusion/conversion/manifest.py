"""conversion.json: where converted weights come from, and what they are.

It lies in every folder that `convert` writes, and beside every file. The
configs of the networks in it are peers' config.json: a tree of ours that has
one can be converted again without being told what it is.
"""

import contextlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import byt5_diffusion
from byt5_diffusion.conversion import families, names, tensor_files

ConversionError = names.ConversionError

FILE = "conversion.json"
FORMAT_VERSION = 1
# Of the metadata inside of a safetensors file.
KEY = "byt5_diffusion.networks"
_PLACES = frozenset({"unet", "codec", "text_encoder", "semantic_encoder"})


def describe_networks(
  networks: Mapping[str, families.Network],
) -> dict[str, Any]:
  """{place: kind and config} as JSON; config None: the peer has no such one."""
  found: dict[str, Any] = {}
  for place, network in networks.items():
    config = None
    with contextlib.suppress(ConversionError):
      config = families.to_json(network)
    found[place] = {"kind": network.family.kind, "config": config}
  return found


def make(
  *,
  source: Mapping[str, Any],
  target: str,
  dtype: str | None,
  scan_layers: bool,
  networks: Mapping[str, families.Network],
  arrays: Mapping[str, Any],
  sha256: str | None,
) -> dict[str, Any]:
  """The content of a manifest.

  Args:
    source: path, kind, {file: sha256} and what was left.
    target: what was written.
    dtype: of floats; None = as in the source.
    scan_layers: whether layers are stacked.
    networks: of the output.
    arrays: {name in the output: our unrolled name, dtype and shape}.
    sha256: of a tree of ours (stored_trees.tree_sha256).
  """
  return {
    "format_version": FORMAT_VERSION,
    "package_version": byt5_diffusion.__version__,
    "source": dict(source),
    "target": target,
    "dtype": dtype,
    "scan_layers": scan_layers,
    "networks": describe_networks(networks),
    "arrays": dict(arrays),
    "sha256": sha256,
  }


def write(path: pathlib.Path, content: Mapping[str, Any]) -> None:
  """Writes it as JSON."""
  text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
  path.write_text(text, "utf-8")


def read_networks(folder: pathlib.Path) -> dict[str, families.Network]:
  """{place: network} of a folder's manifest; nothing where there is none.

  Raises:
    ConversionError: it is damaged, or of a later version.
  """
  path = folder / FILE
  if not path.is_file():
    return {}
  content = tensor_files.load_json(path)
  if not isinstance(content, dict):
    raise ConversionError(f"{path} is not a dict.")
  version = content.get("format_version")
  if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
    raise ConversionError(
      f"{path} has format_version {str(version)[:40]}; this program reads up to"
      f" {FORMAT_VERSION}. Upgrade byt5_diffusion, or remove the file."
    )
  return _networks(content.get("networks"), str(path))


def parse_networks(text: str, where: str) -> dict[str, families.Network]:
  """{place: network} of describe_networks' JSON inside of a file."""
  return _networks(tensor_files.parse_json(text.encode(), where), where)


def _networks(content: Any, where: str) -> dict[str, families.Network]:
  if not isinstance(content, dict):
    raise ConversionError(f"{where} says nothing of its networks.")
  found = {}
  for place, entry in content.items():
    kind = entry.get("kind") if isinstance(entry, dict) else None
    family = families.FAMILIES.get(kind) if isinstance(kind, str) else None
    if family is None or place not in {*_PLACES, family.place}:
      raise ConversionError(
        f"{where}: {place[:40]!r} is no network that is known."
      )
    if entry.get("config") is None:
      continue
    parsed = families.parse_config(family, entry["config"], where)
    found[place] = families.Network(family, parsed, place)
  return found
