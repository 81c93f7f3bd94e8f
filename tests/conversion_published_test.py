"""SD 2.1's and SDXL's published files are known by their arrays alone."""

import json
import struct

import jax
import numpy as np
import pytest

from byt5_diffusion import stored_trees
from byt5_diffusion.conversion import (
  families,
  names,
  single_files,
  sources,
)


def network(model, place, kind):
  family = families.FAMILIES[kind]
  content = single_files.PUBLISHED[model][place]
  config = families.parse_config(family, content, model)
  return families.Network(family, config, place)


def write_empty(path, shapes):
  """A file of float16 zeros that takes no room."""
  header, end = {}, 0
  for name, shape in shapes.items():
    count = 2 * int(np.prod(shape))
    header[name] = {
      "dtype": "F16",
      "shape": list(shape),
      "data_offsets": [end, end + count],
    }
    end += count
  text = json.dumps(header).encode()
  with open(path, "wb") as file:
    file.write(struct.pack("<Q", len(text)) + text)
    file.truncate(8 + len(text) + end)


def theirs(network):
  """{name: shape} in a single file."""
  ours = {
    f"{network.place}/{name}": jax.ShapeDtypeStruct(leaf.shape, np.float16)
    for name, leaf in network.family.module.shapes(network.config).items()
  }
  source = stored_trees.Source("shapes", ours, lambda wanted: {})
  entries = list(families.layouts(network)["single_file"]())
  found = families.to_theirs(source, network, entries)
  return {name: leaf.shape for name, leaf in found.shapes.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
  ("model", "parameters", "scaling"),
  [("SD 2.1", 865_910_724, 0.18215), ("SDXL", 2_567_463_684, 0.13025)],
)
def test_a_published_file_is_known_by_its_arrays(
  tmp_path, model, parameters, scaling
):
  unet = theirs(network(model, "unet", "unet"))
  vae = theirs(network(model, "codec", "autoencoder"))
  others = {"cond_stage_model.x": (2,), "model_ema.decay": (), "betas": (3,)}
  path = tmp_path / "model.safetensors"
  write_empty(path, unet | vae | others)
  weights = sources.open_weights(path)
  assert set(weights.networks) == {"unet", "codec"}
  assert weights.networks["codec"].config.scaling_factor == scaling
  assert sum(weights.left.values()) == 3 and len(weights.left) == 3
  counted = sum(
    int(np.prod(leaf.shape))
    for name, leaf in weights.source.shapes.items()
    if name.startswith("unet/")
  )
  assert counted == parameters
  # An autoencoder by itself may be of either.
  write_empty(path, vae)
  with pytest.raises(names.ConversionError, match=r"SD 2\.1 and SDXL.*config"):
    sources.open_weights(path)
  write_empty(path, unet | {"model.lora_x": (1,)})
  with pytest.raises(names.ConversionError, match=r"unknown: model\.lora_x"):
    sources.open_weights(path)
