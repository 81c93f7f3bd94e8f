"""AutoencoderKL against diffusers', weights and configs drawn anew."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from byt5_diffusion import autoencoder, autoencoder_kl
from byt5_diffusion.conversion import autoencoder_names, names
from peers import loading

torch = pytest.importorskip("torch", reason="pip install -e .[parity]")
diffusers = pytest.importorskip("diffusers", reason="pip install -e .[parity]")
torch.set_num_threads(1)

SMALL = (
  {"block_out_channels": (8, 16), "norm_num_groups": 4},
  {
    "block_out_channels": (16, 8, 8),
    "layers_per_block": 2,
    "norm_num_groups": 8,
  },
  {
    "block_out_channels": (4, 8),
    "latent_channels": 3,
    "norm_num_groups": 2,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "shift_factor": 0.3,
  },
  {
    "block_out_channels": (8, 8),
    "mid_block_add_attention": False,
    "norm_num_groups": 2,
    "scaling_factor": 0.13025,
  },
)


def make_peer(options, seed):
  levels = len(options["block_out_channels"])
  blocks = {
    "down_block_types": ("DownEncoderBlock2D",) * levels,
    "up_block_types": ("UpDecoderBlock2D",) * levels,
  }
  peer = diffusers.AutoencoderKL(**(blocks | options)).eval()
  loading.randomize(peer, np.random.default_rng(seed))
  return peer


def close(ours, theirs, seed):
  theirs = theirs.detach().numpy().transpose(0, 2, 3, 1)
  error = np.abs(np.asarray(ours) - theirs).max()
  limit = 1e-4 * max(1.0, np.abs(theirs).max())
  assert error <= limit, f"{seed=}: {error} > {limit}"


@pytest.mark.parametrize(
  "index", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in (1, 2, 3))]
)
def test_moments_and_decodings_are_those_of_diffusers(index):
  seed = loading.new_seed()
  peer = make_peer(SMALL[index], seed)
  config = autoencoder_names.config_from_json(peer.config)
  entries = autoencoder_names.entries(config)
  params = loading.to_ours(loading.to_numpy(peer), entries)
  shapes = autoencoder_names.shapes(config)
  assert {e.ours for e in entries} == set(shapes)
  codec = autoencoder.KLCodec(network=autoencoder_kl.AutoencoderKL(config))

  rng = np.random.default_rng(seed)
  images = rng.uniform(-1, 1, (2, 24, 32, 3)).astype(np.float32)
  channels_first = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
  theirs = peer.encode(channels_first).latent_dist
  mean, log_variance = jax.jit(codec.moments)(params, images)
  scale, shift = config.scaling_factor, config.shift_factor
  close(mean, (theirs.mean - shift) * scale, seed)
  close(log_variance - 2 * np.log(scale), theirs.logvar, seed)

  latents = rng.normal(size=mean.shape).astype(np.float32)
  z = torch.from_numpy(latents.transpose(0, 3, 1, 2).copy()) / scale + shift
  close(jax.jit(codec.decode)(params, latents), peer.decode(z).sample, seed)

  back = loading.from_ours(params, entries)
  assert all((back[k] == v).all() for k, v in loading.to_numpy(peer).items())


@pytest.mark.slow
def test_a_stream_of_thousands_is_kept_as_float64_keeps_it():
  """Where diffusers' own bfloat16 has lost the picture."""
  seed = loading.new_seed()
  peer = make_peer(SMALL[0] | {"layers_per_block": 2}, seed)
  with torch.no_grad():
    peer.decoder.conv_in.bias += 1e4
    # What reads the stream sees its changes, and nothing of its offset.
    for kernel in (
      peer.decoder.up_blocks[0].upsamplers[0].conv.weight,
      peer.decoder.up_blocks[1].resnets[0].conv_shortcut.weight,
    ):
      kernel -= kernel.mean((1, 2, 3), keepdim=True)
  config = autoencoder_names.config_from_json(peer.config)
  entries = autoencoder_names.entries(config)
  params = loading.to_ours(loading.to_numpy(peer), entries)
  rng = np.random.default_rng(seed)
  latents = rng.normal(size=(1, 16, 16, 4)).astype(np.float32)
  z = torch.from_numpy(latents.transpose(0, 3, 1, 2).copy())
  half = peer.bfloat16().decode(z.bfloat16()).sample.float()
  for name, parameter in peer.named_parameters():
    [entry] = [e for e in entries if e.theirs == name]
    value = params
    for part in entry.ours.split("/"):
      value = value[part]
    value = names.TRANSFORMS[entry.transform].to_theirs(np.asarray(value))
    parameter.data = torch.from_numpy(value.copy())
  exact = peer.double().decode(z.double()).sample.detach().numpy()
  exact = exact.transpose(0, 2, 3, 1)
  theirs = half.detach().numpy().transpose(0, 2, 3, 1)

  def picture(images):
    inner = images[:, 4:-4, 4:-4]
    return inner - inner.mean((1, 2))

  def error(images):
    difference = np.abs(picture(images) - picture(exact))
    return difference.max() / picture(exact).std()

  ours = {}
  for dtype in ("float32", "bfloat16"):
    network = autoencoder_kl.AutoencoderKL(
      dataclasses.replace(config, dtype=dtype)
    )
    codec = autoencoder.KLCodec(network=network)
    scaled = latents * config.scaling_factor
    ours[dtype] = error(np.asarray(jax.jit(codec.decode)(params, scaled)))
  assert ours["float32"] < 0.01, f"{seed=}: {ours}"
  assert ours["bfloat16"] < 0.15 < 0.8 < error(theirs), f"{seed=}: {ours}"


def test_what_we_write_is_what_diffusers_reads():
  for options in SMALL:
    peer = make_peer(options, 0)
    config = autoencoder_names.config_from_json(peer.config)
    content = autoencoder_names.config_to_json(config)
    assert autoencoder_names.config_from_json(content) == config
    again = diffusers.AutoencoderKL.from_config(content)
    names = set(again.state_dict())
    assert names == set(peer.state_dict())
    assert again.config.scaling_factor == peer.config.scaling_factor
    entries = autoencoder_names.entries(config)
    assert {entry.theirs for entry in entries} == names


def test_diffusers_itself_reads_the_names_of_single_files():
  from diffusers.loaders import single_file_utils

  seed = loading.new_seed()
  options = SMALL[1]
  peer = make_peer(options, seed)
  config = autoencoder_names.config_from_json(peer.config)
  state = loading.to_numpy(peer)
  params = loading.to_ours(state, autoencoder_names.entries(config))
  single = loading.from_ours(
    params, autoencoder_names.single_file_entries(config)
  )
  query = single["first_stage_model.encoder.mid.attn_1.q.weight"]
  assert query.shape == (8, 8, 1, 1)
  converted = single_file_utils.convert_ldm_vae_checkpoint(
    {name: torch.from_numpy(x.copy()) for name, x in single.items()},
    dict(peer.config),
  )
  assert set(converted) == set(state)
  for name, value in state.items():
    np.testing.assert_array_equal(converted[name].numpy(), value, f"{seed=}")


def test_diffusers_itself_reads_the_deprecated_names(tmp_path):
  peer = make_peer(SMALL[0], loading.new_seed())
  config = autoencoder_names.config_from_json(peer.config)
  state = loading.to_numpy(peer)
  params = loading.to_ours(state, autoencoder_names.entries(config))
  old = loading.from_ours(params, autoencoder_names.deprecated_entries(config))
  assert "decoder.mid_block.attentions.0.proj_attn.bias" in old
  peer.save_config(tmp_path)
  torch.save(
    {name: torch.from_numpy(x.copy()) for name, x in old.items()},
    tmp_path / "diffusion_pytorch_model.bin",
  )
  again = diffusers.AutoencoderKL.from_pretrained(
    tmp_path, use_safetensors=False, low_cpu_mem_usage=False
  )
  for name, value in state.items():
    np.testing.assert_array_equal(again.state_dict()[name].numpy(), value)


def test_the_published_size_has_the_published_names_and_count():
  config = autoencoder_kl.AutoencoderKLConfig(channels=(128, 256, 512, 512))
  content = autoencoder_names.config_to_json(config)
  with torch.device("meta"):
    peer = diffusers.AutoencoderKL.from_config(content)
  theirs = {name: tuple(x.shape) for name, x in peer.state_dict().items()}
  assert sum(map(np.prod, theirs.values())) == 83_653_863
  shapes = autoencoder_names.shapes(config)
  layouts = {"same": (0,), "dense": (1, 0), "conv": (3, 2, 0, 1)}
  ours = {
    e.theirs: tuple(shapes[e.ours].shape[axis] for axis in layouts[e.transform])
    for e in autoencoder_names.entries(config)
  }
  assert ours == theirs


@pytest.mark.slow
def test_tiles_are_nearer_to_the_whole_than_those_of_diffusers():
  """Their tiles see nothing of each other; ours share the middle."""
  seed = loading.new_seed()
  peer = make_peer(SMALL[0] | {"sample_size": 32}, seed)
  config = autoencoder_names.config_from_json(peer.config)
  params = loading.to_ours(
    loading.to_numpy(peer), autoencoder_names.entries(config)
  )
  network = autoencoder_kl.AutoencoderKL(config)
  rng = np.random.default_rng(seed)
  latents = rng.normal(size=(1, 40, 40, 4)).astype(np.float32)
  z = torch.from_numpy(latents.transpose(0, 3, 1, 2).copy())
  whole = peer.decode(z).sample.detach().numpy().transpose(0, 2, 3, 1)
  peer.enable_tiling()
  theirs = peer.decode(z).sample.detach().numpy().transpose(0, 2, 3, 1)
  codec = autoencoder.KLCodec(network=network, tile_size=32)
  ours = codec.decode(params, jnp.asarray(latents) * config.scaling_factor)
  error = np.abs(ours - whole).mean()
  assert error < np.abs(theirs - whole).mean(), f"{seed=}"
