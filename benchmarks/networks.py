"""Networks side by side with diffusers' and transformers', on one core.

  python benchmarks/networks.py [--only unet] [--rounds 7] [--ops]

One process, the same weights, calls one after the other: theirs, ours, theirs,
ours. Each row's figure is the median over rounds of (their CPU time / our CPU
time), so 1.2x means that ours needs a sixth less; the CPU time of the whole
process is what other programs on the machine change least. Outputs (and
gradients, where there are any) are compared before anything is timed. Freed
memory is kept for both (byt5_diffusion/host_memory.py). --ops takes single
operations in each of their forms instead.

Needs `pip install -e .[parity]`.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

# Before the libraries count the cores.
CORE = max(os.sched_getaffinity(0))
os.sched_setaffinity(0, {CORE})
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

try:
  import diffusers
  import torch
  import transformers
except ImportError as error:
  print(f"Left out: {error}. Peers come with `pip install -e .[parity]`.")
  raise SystemExit(0) from error
from flax import traverse_util  # noqa: E402

from byt5_diffusion import (  # noqa: E402
  byt5,
  host_memory,
  telemetry,
  unet,
)
from byt5_diffusion.conversion import names, t5_names, unet_names  # noqa: E402

# 35 M parameters with the topology of SD 2.
UNET = {
  "in_channels": 4,
  "out_channels": 4,
  "sample_size": 32,
  "block_out_channels": [64, 128, 256, 256],
  "attention_head_dim": [1, 2, 4, 4],
  "cross_attention_dim": 256,
  "use_linear_projection": True,
  "down_block_types": [*(["CrossAttnDownBlock2D"] * 3), "DownBlock2D"],
  "up_block_types": ["UpBlock2D", *(["CrossAttnUpBlock2D"] * 3)],
}
BYT5_SMALL = byt5.Byt5Config(
  embed_dim=1472, num_heads=6, head_dim=64, mlp_dim=3584, num_encoder_layers=12
)

Run = Callable[[], Any]


class Row(NamedTuple):
  """What is measured: calls that do the same, and what to compare first."""

  name: str
  goal: str
  theirs: Run
  ours: Run
  outputs: Callable[[], tuple[Any, Any]]


def to_ours(state: dict[str, Any], entries: list[names.Entry]) -> Any:
  """A peer's state dict in our tree."""
  params = {}
  for entry in entries:
    array = state[entry.theirs].detach().numpy()
    i, n = entry.part
    array = np.split(array, n)[i] if n > 1 else array
    array = names.TRANSFORMS[entry.transform].to_ours(array)
    params[entry.ours] = jnp.asarray(np.ascontiguousarray(array))
  return traverse_util.unflatten_dict(params, sep="/")


def random(*shape: int) -> np.ndarray:
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def unet_rows() -> Iterator[Row]:
  torch.manual_seed(0)
  peer = diffusers.UNet2DConditionModel(**UNET).eval()
  config = unet_names.config_from_json(dict(peer.config))
  params = to_ours(peer.state_dict(), unet_names.entries(config))
  network = unet.UNet(config)
  for batch, length, goal in ((2, 77, "1.15"), (8, 256, "1.0")):
    x, text = random(batch, 32, 32, 4), random(batch, length, 256)
    x_torch = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
    text_torch = torch.from_numpy(text)
    steps = np.linspace(1, 900, batch).astype(np.float32)
    steps_torch = torch.from_numpy(steps)
    mask = np.ones((batch, length), bool)

    def theirs(x=x_torch, steps=steps_torch, text=text_torch) -> Any:
      with torch.no_grad():
        return peer(x, steps, text).sample

    def forward(params, x, steps, text, mask) -> jax.Array:
      return network.apply({"params": params}, x, steps, text, mask)

    inputs = tuple(map(jnp.asarray, (x, steps, text, mask)))
    apply = compiled(forward, params, *inputs)
    yield Row(
      f"UNet 35 M forward, batch {batch}, {length} tokens",
      goal,
      theirs,
      lambda apply=apply, inputs=inputs: apply(params, *inputs),
      lambda apply=apply, inputs=inputs, theirs=theirs: (
        np.asarray(theirs()).transpose(0, 2, 3, 1),
        apply(params, *inputs),
      ),
    )
    if batch == 2:
      yield unet_gradient_row(
        peer,
        config,
        params,
        forward,
        inputs,
        (x_torch, steps_torch, text_torch),
      )


def unet_gradient_row(
  peer: Any,
  config: unet.UNetConfig,
  params: Any,
  forward: Callable[..., jax.Array],
  inputs: tuple[jax.Array, ...],
  their_inputs: tuple[torch.Tensor, ...],
) -> Row:
  def theirs() -> None:
    peer.zero_grad(set_to_none=True)
    peer(*their_inputs).sample.square().mean().backward()

  def loss(params, *inputs) -> jax.Array:
    return jnp.square(forward(params, *inputs)).mean()

  gradient = compiled(jax.grad(loss), params, *inputs)

  def gradients() -> tuple[Any, Any]:
    theirs()
    state = {name: x.grad for name, x in peer.named_parameters()}
    their_gradients = to_ours(state, unet_names.entries(config))
    return their_gradients, gradient(params, *inputs)

  batch, length = inputs[-1].shape
  return Row(
    f"UNet 35 M forward and backward, batch {batch}, {length} tokens",
    "1.0",
    theirs,
    lambda: gradient(params, *inputs),
    gradients,
  )


def byt5_rows() -> Iterator[Row]:
  torch.manual_seed(0)
  content = t5_names.config_to_json(BYT5_SMALL)
  peer = transformers.T5EncoderModel(transformers.T5Config(**content)).eval()
  state = {
    k: v for k, v in peer.state_dict().items() if k not in t5_names.ALIASES
  }
  params = to_ours(state, t5_names.entries(BYT5_SMALL))
  network = byt5.TextEncoder(BYT5_SMALL)
  for batch, length, goal in (
    (1, 64, "1.1"),
    (8, 64, "1.1"),
    (1, 256, "1.0"),
    (1, 1024, "1.0"),
  ):
    tokens = np.random.default_rng(0).integers(3, 259, (batch, length))
    tokens_torch = torch.from_numpy(tokens)

    def theirs(tokens=tokens_torch) -> Any:
      with torch.no_grad():
        return peer(
          input_ids=tokens, attention_mask=torch.ones_like(tokens)
        ).last_hidden_state

    tokens = jnp.asarray(tokens, jnp.int32)
    apply = compiled(
      lambda params, tokens: network.apply({"params": params}, tokens),
      params,
      tokens,
    )
    yield Row(
      f"ByT5-small encode, batch {batch}, {length} bytes",
      goal,
      theirs,
      lambda apply=apply, tokens=tokens: apply(params, tokens),
      lambda apply=apply, tokens=tokens, theirs=theirs: (
        theirs().numpy(),
        apply(params, tokens),
      ),
    )


def compiled(fn: Callable[..., Any], *inputs: Any) -> Callable[..., Any]:
  """fn compiled for these inputs; says how long that took."""
  start = time.process_time()
  program = jax.jit(fn).lower(*inputs).compile()
  print(f"  compiled in {time.process_time() - start:.0f} s CPU", flush=True)
  return program


def difference(theirs: Any, ours: Any) -> float:
  """The greatest relative one of any array, over max(1e-3, its size)."""
  return max(
    float(np.abs(np.asarray(a) - np.asarray(b)).max())
    / max(1e-3, float(np.abs(np.asarray(a)).max()))
    for a, b in zip(jax.tree.leaves(theirs), jax.tree.leaves(ours), strict=True)
  )


def cpu_ms(run: Run) -> float:
  start = time.process_time()
  jax.block_until_ready(run())
  return 1e3 * (time.process_time() - start)


def measure(row: Row, rounds: int) -> None:
  """Prints a row of docs/benchmarks.md's table."""
  apart = difference(*row.outputs())
  assert apart < 1e-3, (row.name, apart)
  cpu_ms(row.theirs), cpu_ms(row.ours)
  pairs = [(cpu_ms(row.theirs), cpu_ms(row.ours)) for _ in range(rounds)]
  ratios = sorted(theirs / ours for theirs, ours in pairs)
  theirs, ours = (statistics.median(x) for x in zip(*pairs, strict=True))
  print(
    f"| {row.name} | {theirs:.0f} | {ours:.0f} |"
    f" {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |"
    f" {row.goal} |",
    flush=True,
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--only", default="", help="rows whose name has this")
  parser.add_argument("--rounds", type=int, default=7)
  parser.add_argument("--ops", action="store_true", help="single operations")
  flags = parser.parse_args()
  torch.set_num_threads(1)
  host_memory.keep_freed_memory()
  if flags.ops:
    import operations

    operations.run(flags.rounds)
    return
  telemetry.enable_compilation_cache()
  print(
    "| | theirs, ms CPU | ours | times as fast | goal |\n|---|---|---|---|---|"
  )
  for rows in (unet_rows, byt5_rows):
    if flags.only and flags.only not in rows.__name__:
      continue
    for row in rows():
      measure(row, flags.rounds)


if __name__ == "__main__":
  main()
