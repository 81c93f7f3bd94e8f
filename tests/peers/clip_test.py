"""CLIP's image tower against transformers', weights and configs drawn anew."""

import jax
import numpy as np
import pytest
from PIL import Image

from byt5_diffusion import clip_image
from byt5_diffusion.conversion import clip_names, names
from byt5_diffusion.data import clip_images
from peers import loading

torch = pytest.importorskip("torch", reason="pip install -e .[parity]")
transformers = pytest.importorskip(
  "transformers", reason="pip install -e .[parity]"
)
torch.set_num_threads(1)

SMALL = {
  "hidden_size": 16,
  "intermediate_size": 24,
  "projection_dim": 12,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
  "image_size": 28,
  "patch_size": 7,
}
OTHERS = (
  SMALL | {"hidden_act": "gelu", "layer_norm_eps": 1e-3},
  SMALL | {"num_hidden_layers": 3, "num_attention_heads": 4, "patch_size": 14},
)


@pytest.mark.parametrize(
  "sizes", [SMALL, *(pytest.param(x, marks=pytest.mark.slow) for x in OTHERS)]
)
def test_vectors_are_those_of_transformers(sizes):
  seed = loading.new_seed()
  rng = np.random.default_rng(seed)
  peer = transformers.CLIPVisionModelWithProjection(
    transformers.CLIPVisionConfig(**sizes)
  ).eval()
  loading.randomize(peer, rng)
  config = clip_names.config_from_json(peer.config.to_dict())
  entries = clip_names.entries(config)
  params = loading.to_ours(loading.to_numpy(peer), entries)
  assert {entry.ours for entry in entries} == set(clip_names.shapes(config))

  images = rng.normal(size=(3, 28, 28, 3)).astype(np.float32)
  network = clip_image.ClipImageEncoder(config)
  ours = jax.jit(network.apply)({"params": params}, images)
  pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
  theirs = peer(pixel_values=pixels).image_embeds.detach().numpy()
  error = np.abs(ours - theirs).max()
  assert error <= 1e-4 * max(1.0, np.abs(theirs).max()), f"{seed=}: {error}"

  back = loading.from_ours(params, entries)
  assert all((back[k] == v).all() for k, v in loading.to_numpy(peer).items())


def test_what_we_write_is_what_transformers_reads():
  for sizes in (SMALL, *OTHERS):
    wanted = transformers.CLIPVisionConfig(**sizes)
    config = clip_names.config_from_json(wanted.to_dict())
    content = clip_names.config_to_json(config)
    assert clip_names.config_from_json(content) == config
    again = transformers.CLIPVisionConfig.from_dict(content)
    assert {k: getattr(again, k) for k in sizes} == sizes


def test_a_whole_clip_has_the_tower_and_what_is_ignored():
  text = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
  peer = transformers.CLIPModel(
    transformers.CLIPConfig(
      vision_config=SMALL | {"projection_dim": 5},
      text_config=text | {"num_attention_heads": 1},
      projection_dim=12,
    )
  )
  config = clip_names.config_from_json(peer.config.to_dict())
  assert config.projection_dim == 12 and config.embed_dim == 16
  state = loading.to_numpy(peer)
  state["vision_model.embeddings.position_ids"] = np.arange(17)
  kept = {k: v for k, v in state.items() if not clip_names.ignored(k, config)}
  loading.to_ours(kept, clip_names.entries(config))


def test_the_published_size_has_the_published_names_and_count():
  """ViT-L/14: 303,966,208 parameters with the projection."""
  config = clip_image.ClipImageConfig()
  with torch.device("meta"):
    peer = transformers.CLIPVisionModelWithProjection(
      transformers.CLIPVisionConfig.from_dict(clip_names.config_to_json(config))
    )
  theirs = {name: tuple(x.shape) for name, x in peer.state_dict().items()}
  assert sum(map(np.prod, theirs.values())) == 303_966_208
  shapes = clip_names.shapes(config)
  layouts = {"same": (0, 1), "dense": (1, 0), "conv": (3, 2, 0, 1)}
  ours = {}
  for entry in clip_names.entries(config):
    shape = shapes[entry.ours].shape
    axes = layouts[entry.transform][: len(shape)]
    ours[entry.theirs] = tuple(shape[axis] for axis in axes)
  assert ours == theirs


@pytest.mark.parametrize(
  ("content", "says"),
  [
    ({"model_type": "bert"}, "model_type is 'bert'"),
    ({"model_type": "clip"}, "no vision_config"),
    ({"model_type": "clip_vision_model", "num_channels": 1}, "num_channels"),
    ({"model_type": "clip_vision_model", "hidden_act": "relu"}, "'relu'"),
    ({"model_type": "clip_vision_model", "hidden_size": "16"}, "hidden_size"),
    ({"model_type": "clip_vision_model", "patch_size": [1, 2]}, "patch_size"),
  ],
)
def test_configs_that_are_not_ours_are_refused(content, says):
  with pytest.raises(names.ConversionError, match=says):
    clip_names.config_from_json(content)


@pytest.mark.parametrize(
  "shape", [(300, 200), (97, 224), (224, 224), (51, 400)]
)
def test_pictures_are_made_as_transformers_makes_them(shape):
  rng = np.random.default_rng(loading.new_seed())
  small = rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)
  picture = Image.fromarray(small).resize(shape, Image.Resampling.LANCZOS)
  processor = transformers.CLIPImageProcessor()
  theirs = processor(picture, return_tensors="np")["pixel_values"][0]
  ours = clip_images.preprocess(np.asarray(picture))
  assert ours.shape == (224, 224, 3) and ours.dtype == np.float32
  np.testing.assert_allclose(ours, theirs.transpose(1, 2, 0), atol=1e-5)
