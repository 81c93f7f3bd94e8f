"""Single operations in each of their forms, beside PyTorch's.

Run by `python benchmarks/networks.py --ops`. Figures are GFLOP/s of CPU time.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from byt5_diffusion import attention_forms, products

# batch, side, channels in, features out: of the UNet of 35 M and of SD 2.
CONVOLUTIONS = (
  (2, 32, 64, 64),
  (2, 32, 192, 64),
  (2, 16, 128, 128),
  (2, 16, 384, 128),
  (2, 8, 256, 256),
  (2, 4, 256, 256),
  (8, 32, 64, 64),
  (2, 32, 320, 320),
  (2, 16, 640, 640),
  (2, 8, 1280, 1280),
)
# batch, queries, keys, heads, head dim.
ATTENTIONS = (
  (2, 1024, 1024, 1, 64),
  (2, 1024, 77, 1, 64),
  (2, 256, 256, 2, 64),
  (8, 256, 256, 2, 64),
)
PADDING = ((1, 1), (1, 1))


def speed(gflop: float, run: Callable[[], Any], rounds: int) -> str:
  """GFLOP/s of the median round of some milliseconds."""

  def seconds(repeats: int) -> float:
    start = time.process_time()
    for _ in range(repeats):
      result = run()
    jax.block_until_ready(result)
    return (time.process_time() - start) / repeats

  seconds(1)
  repeats = max(1, int(0.02 / max(seconds(1), 1e-5)))
  return (
    f"{gflop / statistics.median(seconds(repeats) for _ in range(rounds)):.0f}"
  )


def convolution(shape: tuple[int, ...], rounds: int) -> dict[str, str]:
  import torch

  batch, side, channels, features = shape
  rng = np.random.default_rng(0)
  x = rng.normal(size=(batch, side, side, channels)).astype(np.float32)
  kernel = rng.normal(size=(3, 3, channels, features)).astype(np.float32)
  dy = rng.normal(size=(batch, side, side, features)).astype(np.float32)
  gflop = 2 * batch * side**2 * channels * features * 9 / 1e9
  theirs = [
    torch.from_numpy(np.ascontiguousarray(np.moveaxis(a, -1, 1)))
    for a in (x, dy)
  ]
  weight = torch.from_numpy(np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)))
  arguments = [jnp.asarray(a) for a in (x, kernel, dy)]
  backward = torch.ops.aten.convolution_backward
  found = {
    "torch": speed(
      gflop,
      lambda: torch.nn.functional.conv2d(theirs[0], weight, padding=1),
      rounds,
    )
  }
  for form in (products.conv_as_convolution, products.conv_as_columns):
    jitted = jax.jit(lambda x, kernel, form=form: form(x, kernel, 1, PADDING))
    found[form.__name__] = speed(
      gflop, lambda jitted=jitted: jitted(*arguments[:2]), rounds
    )
  sides = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, False])
  found["torch, gradients"] = speed(
    2 * gflop,
    lambda: backward(theirs[1], theirs[0], weight, None, *sides),
    rounds,
  )
  for name, gradient in products.GRADIENT_FORMS.items():
    jitted = jax.jit(lambda *a, gradient=gradient: gradient(*a, PADDING))
    found[name] = speed(
      2 * gflop, lambda jitted=jitted: jitted(*arguments), rounds
    )
  chosen = products.gradient_form(x, kernel)
  found[chosen] = f"**{found[chosen]}**"
  return found


def attention(shape: tuple[int, ...], rounds: int) -> dict[str, str]:
  import torch

  batch, queries, keys, heads, dim = shape
  rng = np.random.default_rng(0)
  arrays = [
    rng.normal(size=(batch, length, heads, dim)).astype(np.float32)
    for length in (queries, keys, keys)
  ]
  gflop = 4 * batch * queries * keys * heads * dim / 1e9
  theirs = [
    torch.from_numpy(np.ascontiguousarray(a.transpose(0, 2, 1, 3)))
    for a in arrays
  ]
  for tensor in theirs:
    tensor.requires_grad_()
  ours = [jnp.asarray(a) for a in arrays]

  def their_forward() -> None:
    with torch.no_grad():
      torch.nn.functional.scaled_dot_product_attention(*theirs)

  def their_gradient() -> None:
    y = torch.nn.functional.scaled_dot_product_attention(*theirs)
    y.backward(y.detach())

  forward = jax.jit(attention_forms.attention)
  gradient = jax.jit(
    jax.grad(
      lambda *a: jnp.square(attention_forms.attention(*a)).sum(), (0, 1, 2)
    )
  )
  return {
    "torch": speed(gflop, their_forward, rounds),
    "ours": speed(gflop, lambda: forward(*ours), rounds),
    "torch, with gradients": speed(3 * gflop, their_gradient, rounds),
    "ours, with gradients": speed(3 * gflop, lambda: gradient(*ours), rounds),
  }


def run(rounds: int) -> None:
  """Prints both tables; bold is the form that is chosen."""
  for title, shapes, measure in (
    ("batch, side, in, out", CONVOLUTIONS, convolution),
    ("batch, queries, keys, heads, dim", ATTENTIONS, attention),
  ):
    for i, shape in enumerate(shapes):
      row = measure(shape, rounds)
      if not i:
        print(f"\n| {title} | {' | '.join(row)} |")
        print("|---" * (len(row) + 1) + "|")
      name = ", ".join(map(str, shape))
      print(f"| {name} | {' | '.join(row.values())} |", flush=True)
