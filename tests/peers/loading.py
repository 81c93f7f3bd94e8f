"""A peer's weights in our tree, by the entries of a conversion map."""

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import traverse_util

from byt5_diffusion.conversion import names

# The published sizes' macros, tiny.
TINY_SIZES = {
  "BYT5_EMBED_DIM": 16,
  "BYT5_NUM_HEADS": 2,
  "BYT5_HEAD_DIM": 8,
  "BYT5_MLP_DIM": 32,
  "BYT5_NUM_ENCODER_LAYERS": 2,
  "UNET_CHANNELS": (8, 16),
  "UNET_NUM_RES_BLOCKS": 1,
  "UNET_TRANSFORMER_DEPTH": (1, 0),
  "UNET_NUM_HEADS": (2, 2),
  "UNET_NORM_GROUPS": 4,
  "VAE_CHANNELS": (8, 8),
  "VAE_NUM_RES_BLOCKS": 1,
  "VAE_NORM_GROUPS": 4,
}


def new_seed() -> int:
  """Another one each run; a test says it when it fails."""
  return secrets.randbelow(2**31)


def randomize(peer: Any, rng: np.random.Generator) -> None:
  """Draws every parameter of a torch module anew, at a sane scale.

  Norms and biases too: what is initialized to ones or zeros hides mistakes.
  """
  import torch

  with torch.no_grad():
    for name, parameter in peer.named_parameters():
      shape = tuple(parameter.shape)
      values = rng.normal(size=shape)
      if len(shape) > 1:
        values /= np.sqrt(np.prod(shape[1:]))
      else:
        values = 0.1 * values + ("norm" in name and name.endswith("weight"))
      parameter.copy_(torch.from_numpy(np.asarray(values, np.float32)))


def to_numpy(peer: Any) -> dict[str, np.ndarray]:
  """The state dict of a torch module."""
  return {k: v.detach().numpy() for k, v in peer.state_dict().items()}


def to_ours(
  state: Mapping[str, np.ndarray], entries: Sequence[names.Entry]
) -> dict[str, Any]:
  """Nested params; all of the state and all parts of it are used once."""
  used: dict[str, set[tuple[int, int]]] = {}
  params: dict[tuple[str, ...], np.ndarray] = {}
  for entry in entries:
    i, n = entry.part
    theirs = state[entry.theirs]
    assert len(theirs) % n == 0, entry
    parts = used.setdefault(entry.theirs, set())
    assert (i, n) not in parts, entry
    parts.add((i, n))
    values = theirs
    if n > 1:
      rows = np.split(theirs, n * entry.runs)[i::n]
      values = np.concatenate(rows)
    name = tuple(entry.ours.split("/"))
    assert name not in params, entry
    params[name] = names.TRANSFORMS[entry.transform].to_ours(values)
  assert set(used) == set(state), set(state) ^ set(used)
  for name, parts in used.items():
    assert len(parts) == next(iter(parts))[1], name
  return traverse_util.unflatten_dict(params)


def from_ours(
  params: Mapping[str, Any], entries: Sequence[names.Entry]
) -> dict[str, np.ndarray]:
  """to_ours backwards: the peer's state; all of ours is used once."""
  flat = traverse_util.flatten_dict(params, sep="/")
  assert {e.ours for e in entries} == set(flat)
  parts: dict[str, dict[tuple[int, int], np.ndarray]] = {}
  for entry in entries:
    values = names.TRANSFORMS[entry.transform].to_theirs(
      np.asarray(flat[entry.ours])
    )
    runs = entry.runs if entry.part[1] > 1 else 1
    for run, rows in enumerate(np.split(values, runs)):
      parts.setdefault(entry.theirs, {})[run, entry.part[0]] = rows
  return {
    name: np.concatenate([found[i] for i in sorted(found)])
    if len(found) > 1
    else np.ascontiguousarray(next(iter(found.values())))
    for name, found in parts.items()
  }


def assert_close(ours: Any, peer: Any, seed: int, tolerance: float = 1e-4):
  """|ours - peer| <= tolerance * max(1, max |peer|)."""
  ours, peer = np.asarray(ours, np.float64), np.asarray(peer, np.float64)
  assert ours.shape == peer.shape
  error = np.abs(ours - peer).max()
  limit = tolerance * max(1.0, np.abs(peer).max())
  assert error <= limit, f"{error=} {limit=} {seed=}"
