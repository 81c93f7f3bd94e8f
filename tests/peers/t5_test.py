"""T5 1.1 and ByT5 against HuggingFace's and T5X's, by the conversion maps."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from byt5_diffusion import byt5, byt5_decoder, decoding, t5x_checkpoints
from byt5_diffusion.conversion import t5_names
from byt5_diffusion.data import text
from peers import loading, t5_sizes

torch = pytest.importorskip("torch", reason="the peer runs on PyTorch")
transformers = pytest.importorskip("transformers", reason="it is the peer")
torch.set_num_threads(1)

# These programs run once: compiling them is what takes the time.
QUICK = {"xla_backend_optimization_level": 0}
FIELDS = (
  *("embed_dim", "num_heads", "head_dim", "mlp_dim", "num_encoder_layers"),
  *("num_decoder_layers", "vocab_size", "relpos_num_buckets"),
)
SIZES = (
  (24, 2, 8, 40, 2, 2, 384, 32),
  (16, 3, 4, 48, 1, 3, 384, 32),
  (40, 1, 12, 16, 3, 1, 500, 32),
  (32, 4, 16, 64, 2, 2, 64, 16),
)


def draw_config(rng, sizes=None, **overrides):
  sizes = SIZES[rng.integers(len(SIZES))] if sizes is None else sizes
  drawn = dict(zip(FIELDS, sizes, strict=True))
  return byt5.Byt5Config(**(drawn | overrides))


def to_peer(config, rng):
  """HuggingFace's network, by our config.json, with weights of its own."""
  content = t5_names.config_to_json(config)
  their_class = getattr(transformers, content["architectures"][0])
  peer = their_class(transformers.T5Config(**content)).eval()
  if config.num_decoder_layers:  # transformers 5 ties even what it won't scale
    shape = peer.lm_head.weight.shape
    peer.lm_head.weight = torch.nn.Parameter(torch.zeros(shape))
  loading.randomize(peer, rng)
  return peer


def to_params(peer, config):
  state = loading.to_numpy(peer)
  for alias, name in t5_names.ALIASES.items():
    np.testing.assert_array_equal(state.pop(alias, state[name]), state[name])
  return loading.to_ours(state, t5_names.entries(config))


def draw_tokens(rng, config, lengths, width):
  tokens = rng.integers(3, min(config.vocab_size, 259), (len(lengths), width))
  return np.where(np.arange(width) < np.array(lengths)[:, None], tokens, 0)


def forms(config, params):
  """The same network, unrolled and scanned."""
  yield config, params
  yield dataclasses.replace(config, scan_layers=True), byt5.stacked(params)


def torch_inputs(tokens):
  return {
    "input_ids": torch.from_numpy(tokens),
    "attention_mask": torch.from_numpy((tokens > 0).astype(np.int64)),
  }


def check_encoder(seed, sizes=None):
  rng = np.random.default_rng(seed)
  config = draw_config(rng, sizes, num_decoder_layers=0)
  peer = to_peer(config, rng)
  # Long enough for the last bucket.
  tokens = draw_tokens(rng, config, [150, 40], 150)
  with torch.no_grad():
    expected = peer(**torch_inputs(tokens)).last_hidden_state.numpy()
  real = tokens > 0
  for form, params in forms(config, to_params(peer, config)):
    apply = jax.jit(byt5.TextEncoder(form).apply, compiler_options=QUICK)
    y = np.asarray(apply({"params": params}, tokens))
    loading.assert_close(y[real], expected[real], seed)


def check_whole(seed, sizes=None):
  rng = np.random.default_rng(seed)
  config = draw_config(rng, sizes)
  peer = to_peer(config, rng)
  tokens = draw_tokens(rng, config, [20, 8], 20)
  inputs = draw_tokens(rng, config, [150, 150], 150)
  inputs[:, 0] = 0
  with torch.no_grad():
    expected = peer(
      **torch_inputs(tokens), decoder_input_ids=torch.from_numpy(inputs)
    ).logits.numpy()
  for form, params in forms(config, to_params(peer, config)):
    apply = jax.jit(byt5_decoder.Byt5(form).apply, compiler_options=QUICK)
    y = apply({"params": params}, tokens, inputs)
    loading.assert_close(y, expected, seed)


def check_greedy(sizes):
  """Step by step with a cache, until the end or the limit."""
  # A network may be drawn whose texts all end at once: then another one is.
  assert any(written_as_theirs(loading.new_seed(), sizes) for _ in range(8))


def written_as_theirs(seed, sizes, length=24):
  """Asserts equal texts; whether there was more to compare than their ends."""
  rng = np.random.default_rng(seed)
  config = draw_config(rng, sizes)
  peer = to_peer(config, rng)
  with torch.no_grad():  # some texts end before the limit, others don't
    peer.lm_head.weight[1] *= 3.0
  params = to_params(peer, config)
  tokens = draw_tokens(rng, config, [20, 8, 13, 20], 20)
  theirs = peer.generate(
    **torch_inputs(tokens),
    max_new_tokens=length,
    do_sample=False,
    num_beams=1,
    use_cache=False,  # theirs has room for as many layers as the encoder
    output_logits=True,
    return_dict_in_generate=True,
  )
  decoder = byt5_decoder.TextDecoder(config)

  def write(params):
    encoder = {k: params[k] for k in ("token_embedder", "encoder")}
    encoded = byt5.TextEncoder(config).apply({"params": encoder}, tokens)
    cache = decoder.init_cache(params, encoded, tokens > 0, length)
    return decoding.greedy(
      lambda cache, last: decoder.decode_step(params, cache, last),
      cache,
      len(tokens),
      length,
    ).tokens

  ours = np.asarray(jax.jit(write, compiler_options=QUICK)(params))
  best = torch.stack(theirs.logits, 1).topk(2).values.numpy()
  expected = theirs.sequences.numpy()[:, 1:]
  seen = 0
  for row, wanted, margin in zip(
    ours, expected, best[..., 0] - best[..., 1], strict=True
  ):
    # What rounding may decide is not compared, nor what follows from it.
    sure = int(np.argmax(np.append(margin < 1e-4, True)))
    np.testing.assert_array_equal(
      row[: len(wanted)][:sure], wanted[:sure], err_msg=f"{seed=}"
    )
    seen += sure
  return seen > len(ours)


def test_encoder_equals_transformers():
  check_encoder(loading.new_seed())


def test_logits_equal_transformers():
  check_whole(loading.new_seed(), SIZES[0])


@pytest.mark.slow
@pytest.mark.parametrize("sizes", SIZES)
def test_every_form_equals_transformers(sizes):
  for _ in range(2):
    check_encoder(loading.new_seed(), sizes)
    check_whole(loading.new_seed(), sizes)
    check_greedy(sizes)


def test_writing_greedily_equals_transformers():
  check_greedy(SIZES[1])


def random_text(rng):
  """Any characters but surrogates, more of those with few bytes."""
  highest = rng.choice([0x80, 0x800, 0x10000, 0x110000], rng.integers(40))
  points = [int(rng.integers(high)) for high in highest]
  return "".join(chr(p) for p in points if not 0xD800 <= p < 0xE000)


def test_bytes_equal_transformers_tokenizer():
  """But for the names of special tokens, which are plain text to us."""
  tokenizer = transformers.ByT5Tokenizer()
  seed = loading.new_seed()
  rng = np.random.default_rng(seed)
  for _ in range(300):
    string = random_text(rng)
    expected = tokenizer(string).input_ids
    assert list(text.encode(string, 512)) == expected, (seed, string)
    assert text.decode(expected) == string, seed


def encoder_params(params):
  return {k: v for k, v in params.items() if k != "decoder"}


@pytest.mark.parametrize("kind", ["legacy", "orbax", "mesh_tf"])
def test_real_t5x_s_numbers_from_its_own_files(shared_data, kind):
  """<= 1e-5 of what T5X's network made of the weights that it wrote."""
  folder = shared_data / "fixtures" / "t5x"
  config = byt5.Byt5Config(
    embed_dim=16,
    num_heads=2,
    head_dim=8,
    mlp_dim=32,
    num_encoder_layers=2,
    num_decoder_layers=1,
  )
  if kind == "mesh_tf":
    tensorflow = pytest.importorskip("tensorflow", reason="reads the file")
    reader = tensorflow.train.load_checkpoint(str(folder / kind))
    entries = t5_names.mesh_tf_entries(config)
    state = {
      name: reader.get_tensor(name)
      for name in reader.get_variable_to_shape_map()
      if not t5_names.mesh_tf_ignored(name, config)
    }
  else:
    source = t5x_checkpoints.open_source(folder / kind / "checkpoint_3")
    entries = t5_names.t5x_entries(config)
    state = source.read(list(source.shapes))
  params = loading.to_ours(state, entries)
  expected = np.load(folder / "reference_io.npz")
  whole = jax.jit(byt5_decoder.Byt5(config).apply, compiler_options=QUICK)
  logits = whole(
    {"params": params},
    expected["encoder_input_tokens"],
    expected["decoder_input_tokens"],
  )
  # Where the target is padding T5X masks more than we do; nobody reads those.
  real = expected["decoder_target_tokens"] > 0
  np.testing.assert_allclose(
    logits[real], expected["decoder_logits"][real], rtol=0, atol=1e-5
  )
  encode = jax.jit(byt5.TextEncoder(config).apply, compiler_options=QUICK)
  np.testing.assert_allclose(
    encode(
      {"params": encoder_params(params)}, expected["encoder_input_tokens"]
    ),
    expected["encoder_outputs"],
    rtol=0,
    atol=1e-5,
  )


def test_config_json_is_understood_both_ways(tmp_path):
  """Ours by transformers, and what transformers writes by us."""
  for sizes in SIZES:
    whole = draw_config(None, sizes)
    for config in (whole, dataclasses.replace(whole, num_decoder_layers=0)):
      content = t5_names.config_to_json(config)
      assert t5_names.config_from_json(content) == config
      theirs = transformers.T5Config(**content)
      assert not theirs.scale_decoder_outputs
      theirs.save_pretrained(tmp_path)
      written = json.loads((tmp_path / "config.json").read_text())
      assert t5_names.config_from_json(written) == config
      assert bool(t5_names.stand_ins(written))  # transformers 5 ties them
      assert not t5_names.stand_ins(content)


@pytest.mark.parametrize("family", ["byt5", "t5"])
@pytest.mark.parametrize("size", ["small", "base", "large", "xl", "xxl"])
def test_published_sizes_have_transformers_parameters(family, size):
  """Counted twice, without weights."""
  whole = t5_sizes.published(family, size)
  for config in (whole, dataclasses.replace(whole, num_decoder_layers=0)):
    content = t5_names.config_to_json(config)
    with torch.device("meta"):
      their_class = getattr(transformers, content["architectures"][0])
      peer = their_class(transformers.T5Config(**content))
    expected = sum(x.numel() for x in peer.parameters())
    if config.num_decoder_layers:  # tied in transformers 5: see to_peer
      expected += config.vocab_size * config.embed_dim
    assert t5_sizes.count(config) == expected
