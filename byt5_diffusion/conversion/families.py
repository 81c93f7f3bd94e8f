"""Families of networks, and what a stranger's arrays are in one of them.

A family has a module of names (unet_names, autoencoder_names, t5_names,
clip_names), and a place in our models: "unet/...", "codec/...". A network is
one of a family with its config; `to_ours` and `to_theirs` are views of a source
under other names, and read nothing before they are asked to.
"""

import functools
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from byt5_diffusion import stored_trees
from byt5_diffusion.conversion import (
  autoencoder_names,
  bounds,
  clip_names,
  names,
  t5_names,
  unet_names,
)

ConversionError = names.ConversionError
Entry = names.Entry
Source = stored_trees.Source

MOST_DIFFERENCES = 10


class Family(NamedTuple):
  """One kind of network.

  Attributes:
    kind: what the command line calls it.
    place: its name in our models, and in front of its parameters.
    module: its names and configs.
    classes: `_class_name`, an architecture or `model_type` of a config.json.
    peer: whose folders hold it: "diffusers" or "transformers".
    folder: its name in a pipeline's folder.
  """

  kind: str
  place: str
  module: Any
  classes: tuple[str, ...]
  peer: str
  folder: str


FAMILIES: dict[str, Family] = {
  "unet": Family(
    "unet",
    "unet",
    unet_names,
    ("UNet2DConditionModel",),
    "diffusers",
    "unet",
  ),
  "autoencoder": Family(
    "autoencoder",
    "codec",
    autoencoder_names,
    ("AutoencoderKL",),
    "diffusers",
    "vae",
  ),
  "t5": Family(
    "t5",
    "text_encoder",
    t5_names,
    ("t5", "mt5", "T5EncoderModel", "T5ForConditionalGeneration"),
    "transformers",
    "text_encoder",
  ),
  "clip_image": Family(
    "clip_image",
    "clip_image",
    clip_names,
    (
      "clip",
      "clip_vision_model",
      "CLIPModel",
      "CLIPVisionModelWithProjection",
    ),
    "transformers",
    "image_encoder",
  ),
}


class Network(NamedTuple):
  """A network of a family, at its place in a model: "unet", "codec", .."""

  family: Family
  config: Any
  place: str


def of_config(content: Any, where: str, kind: str = "auto") -> Family:
  """The family that a config.json speaks of.

  Args:
    content: of the file.
    where: its path, for messages.
    kind: which it must be; "auto" takes any.

  Raises:
    ConversionError: none that we have, or another one.
  """
  if not isinstance(content, Mapping):
    raise ConversionError(f"{where} is not a dict.")
  said = [content.get("_class_name"), content.get("model_type")]
  architectures = content.get("architectures")
  if isinstance(architectures, list):
    said += architectures[:8]
  texts = [text for text in said if isinstance(text, str)]
  found = [
    family
    for family in FAMILIES.values()
    if any(text in family.classes for text in texts)
  ]
  if not found:
    known = sorted({name for f in FAMILIES.values() for name in f.classes})
    shown = ", ".join(text[:60] for text in texts) or "nothing"
    raise ConversionError(
      f"{where} speaks of {shown}; known are {', '.join(known)}."
    )
  if kind not in ("auto", found[0].kind):
    raise ConversionError(
      f"{where} is of a {found[0].kind}, and {kind} was asked for."
    )
  return found[0]


def parse_config(family: Family, content: Any, where: str) -> Any:
  """The config of a family from a peer's JSON; errors name where."""
  try:
    parsed = family.module.config_from_json(content)
  except ConversionError as error:
    raise ConversionError(f"{where}: {error}") from None
  except bounds.CONFIG_ERRORS as error:
    raise ConversionError(
      f"{where} can't be used as the config of a {family.kind}:"
      f" {str(error)[:200]}"
    ) from None
  return bounds.checked(parsed, where)


def to_json(network: Network) -> dict[str, Any]:
  """The config as the peer's config.json, plain JSON through and through."""
  content = network.family.module.config_to_json(network.config)
  return json.loads(json.dumps(content))


def layouts(network: Network) -> dict[str, Callable[[], Sequence[Entry]]]:
  """{layout: its entries}; the first, "folder", is what we write into folders.

  Making a layout's entries raises ConversionError where it can't say a config.
  """
  module, config = network.family.module, network.config
  makers = {
    "folder": module.entries,
    "deprecated": getattr(module, "deprecated_entries", None),
    "single_file": getattr(module, "single_file_entries", None),
    "original": getattr(module, "original_entries", None),
  }
  return {k: functools.partial(f, config) for k, f in makers.items() if f}


def fitting_entries(network: Network, there: Collection[str]) -> list[Entry]:
  """The entries of the layout that has most of the names that are there.

  Raises:
    ConversionError: no layout can say this config.
  """
  found: list[list[Entry]] = []
  problems = []
  for make in layouts(network).values():
    try:
      found.append(list(make()))
    except ConversionError as error:
      problems.append(error)
  if not found:
    raise problems[0]
  return max(found, key=lambda entries: sum(e.theirs in there for e in entries))


# --- Shapes without arrays. ---


def _dummy(leaf: Any) -> np.ndarray:
  """An array of that shape that takes no memory."""
  return np.broadcast_to(np.empty((), leaf.dtype), tuple(leaf.shape))


def _part(array: np.ndarray, entry: Entry) -> np.ndarray:
  i, n = entry.part
  if n == 1:
    return array
  if not array.ndim or len(array) % (n * entry.runs):
    raise ValueError(f"{array.shape} has no {n} parts")
  size = len(array) // (n * entry.runs)
  if entry.runs == 1:
    return array[i * size : (i + 1) * size]
  rest = array.shape[1:]
  parts = array.reshape(entry.runs, n, size, *rest)[:, i]
  return parts.reshape(entry.runs * size, *rest)


def _whole(parts: Sequence[np.ndarray], runs: int) -> np.ndarray:
  """_part backwards."""
  if len(parts) == 1:
    return parts[0]
  if runs == 1:
    return np.concatenate(parts)
  rest = parts[0].shape[1:]
  split = [part.reshape(runs, -1, *rest) for part in parts]
  return np.concatenate(split, axis=1).reshape(-1, *rest)


def _our_shape(leaf: Any, entry: Entry) -> tuple[int, ...] | None:
  """What becomes of their array; None where the transform can't be done."""
  try:
    array = _part(_dummy(leaf), entry)
    return names.TRANSFORMS[entry.transform].to_ours(array).shape
  except (IndexError, ValueError):
    return None


def spell(entry: Entry) -> str:
  """Their name, and which part of it ours is: "proj.weight[1/2]"."""
  i, n = entry.part
  return f"{entry.theirs}[{i + 1}/{n}]" if n > 1 else entry.theirs


# --- Theirs to ours. ---


def to_ours(
  theirs: Source,
  network: Network,
  entries: Sequence[Entry],
  aliases: Mapping[str, str] | None = None,
  stand_ins: Mapping[str, str] | None = None,
  ignored: Callable[[str], bool] = lambda name: False,
) -> Source:
  """Their arrays under our names, the network's place in front.

  Args:
    theirs: every array of it must be one of the network's.
    network: family and config.
    entries: of its layout in theirs.
    aliases: {another name: name}; both may be there, and are then equal.
    stand_ins: {absent name: the one that it equals}.
    ignored: names that may be there and are left.

  Raises:
    ConversionError: missing, unknown or mis-shaped arrays: the first ten.
  """
  where, doubles = _resolve(theirs, entries, aliases or {}, stand_ins or {})
  _compare(theirs, network, entries, where, doubles, ignored)
  place = network.place
  by_name = {f"{place}/{entry.ours}": entry for entry in entries}

  def read(wanted: Collection[str]) -> dict[str, np.ndarray]:
    found = {}
    for name in wanted:
      entry = by_name[name]
      array = _read_checked(theirs, where[entry.theirs], doubles)
      array = names.TRANSFORMS[entry.transform].to_ours(_part(array, entry))
      found[name] = array
    return found

  shapes = {}
  for name, entry in by_name.items():
    leaf = theirs.shapes[where[entry.theirs]]
    shape = _our_shape(leaf, entry)
    assert shape is not None
    shapes[name] = jax.ShapeDtypeStruct(shape, leaf.dtype)
  return Source(theirs.what, shapes, read)


def _resolve(
  theirs: Source,
  entries: Sequence[Entry],
  aliases: Mapping[str, str],
  stand_ins: Mapping[str, str],
) -> tuple[dict[str, str], dict[str, list[str]]]:
  """{wanted: name that it has}, {name: others that must equal it}."""
  where: dict[str, str] = {}
  doubles: dict[str, list[str]] = {}
  for wanted in {entry.theirs: None for entry in entries}:
    present = [wanted] if wanted in theirs.shapes else []
    present += [
      alias
      for alias, name in aliases.items()
      if name == wanted and alias in theirs.shapes
    ]
    if not present and stand_ins.get(wanted) in theirs.shapes:
      present = [stand_ins[wanted]]
    if present:
      where[wanted] = present[0]
      if len(present) > 1:
        doubles[present[0]] = present[1:]
  return where, doubles


def _read_checked(
  theirs: Source, name: str, doubles: Mapping[str, Sequence[str]]
) -> np.ndarray:
  array = theirs.read([name])[name]
  for other in doubles.get(name, ()):
    second = theirs.read([other])[other]
    if (
      array.dtype != second.dtype
      or array.shape != second.shape
      or (array.tobytes() != second.tobytes())
    ):
      raise ConversionError(
        f"{theirs.what}: {name} and {other} are one array in this network, but"
        " differ."
      )
  return array


def _compare(
  theirs: Source,
  network: Network,
  entries: Sequence[Entry],
  where: Mapping[str, str],
  doubles: Mapping[str, Sequence[str]],
  ignored: Callable[[str], bool],
) -> None:
  shapes = bounds.shapes(network.family, network.config)
  problems = list(_differences(theirs, entries, where, shapes))
  used = {*where.values(), *(x for more in doubles.values() for x in more)}
  problems += [
    f"unknown: {name} {stored_trees.describe(leaf)}"
    for name, leaf in theirs.shapes.items()
    if name not in used and not ignored(name)
  ]
  if problems:
    more = len(problems) - MOST_DIFFERENCES
    shown = "; ".join(problems[:MOST_DIFFERENCES])
    raise ConversionError(
      f"{theirs.what} is not the {network.family.kind} that its config"
      f" describes: {len(problems)} differences: {shown}"
      + (f"; and {more} more." if more > 0 else ".")
    )


def _differences(
  theirs: Source,
  entries: Sequence[Entry],
  where: Mapping[str, str],
  shapes: Mapping[str, Any],
) -> Iterator[str]:
  missing: set[str] = set()
  for entry in entries:
    if entry.theirs not in where:
      if entry.theirs not in missing:
        yield f"missing: {entry.theirs}"
      missing.add(entry.theirs)
      continue
    leaf = theirs.shapes[where[entry.theirs]]
    if not jax.dtypes.issubdtype(leaf.dtype, np.floating):
      yield f"no floats: {entry.theirs} {stored_trees.describe(leaf)}"
      continue
    wanted = tuple(shapes[entry.ours].shape)
    if _our_shape(leaf, entry) != wanted:
      yield (
        f"of another shape: {entry.theirs} {list(leaf.shape)}, ours"
        f" {entry.ours} {list(wanted)}"
      )
  for ours in sorted(set(shapes) - {entry.ours for entry in entries}):
    yield f"without a name of theirs: {ours}"


# --- Ours to theirs. ---


def to_theirs(
  ours: Source, network: Network, entries: Sequence[Entry]
) -> Source:
  """Our arrays of a network under their names.

  Args:
    ours: unrolled names, the place in front; other places are left alone.
    network: family and config.
    entries: of the layout wanted.

  Raises:
    ConversionError: missing, unknown or mis-shaped arrays: the first ten.
  """
  place = network.place
  _compare_ours(ours, network)
  parts: dict[str, list[Entry]] = {}
  for entry in entries:
    parts.setdefault(entry.theirs, []).append(entry)

  def one(entry: Entry, array: np.ndarray) -> np.ndarray:
    return names.TRANSFORMS[entry.transform].to_theirs(array)

  def read(wanted: Collection[str]) -> dict[str, np.ndarray]:
    found = {}
    for name in wanted:
      arrays = []
      for entry in sorted(parts[name], key=lambda entry: entry.part):
        key = f"{place}/{entry.ours}"
        arrays.append(one(entry, ours.read([key])[key]))
      found[name] = _whole(arrays, parts[name][0].runs)
    return found

  shapes = {}
  for name, made_of in parts.items():
    leaves = [ours.shapes[f"{place}/{entry.ours}"] for entry in made_of]
    dummies = [
      one(entry, _dummy(leaf))
      for entry, leaf in zip(made_of, leaves, strict=True)
    ]
    shape = (sum(len(x) for x in dummies), *dummies[0].shape[1:])
    if len(dummies) == 1:
      shape = dummies[0].shape
    shapes[name] = jax.ShapeDtypeStruct(shape, leaves[0].dtype)
  return Source(ours.what, shapes, read)


def _compare_ours(ours: Source, network: Network) -> None:
  place = network.place
  shapes = bounds.shapes(network.family, network.config)
  wanted = {f"{place}/{name}": leaf for name, leaf in shapes.items()}
  found = {k for k in ours.shapes if k.startswith(f"{place}/")}
  problems = [f"missing: {name}" for name in sorted(set(wanted) - found)]
  problems += [f"unknown: {name}" for name in sorted(found - set(wanted))]
  problems += [
    f"of another shape: {name} {list(ours.shapes[name].shape)}, expected"
    f" {list(wanted[name].shape)}"
    for name in sorted(found & set(wanted))
    if tuple(ours.shapes[name].shape) != tuple(wanted[name].shape)
  ]
  if problems:
    raise ConversionError(
      f"{ours.what}: {place} is not what its config describes:"
      f" {len(problems)} differences: {'; '.join(problems[:MOST_DIFFERENCES])}."
    )
