"""A conversion takes the memory of a few arrays, however many there are.

Measured from outside, every few milliseconds, is what the process has of its
own (RssAnon of /proc/PID/status): pages of files that the kernel may drop at
any time are nobody's memory. The baseline is that of the imports.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from byt5_diffusion import byt5
from byt5_diffusion.conversion import manifest, safetensors_files, t5_names

RUN = pathlib.Path(__file__).with_name("conversion_memory_run.py")
# ByT5 XXL (gin/sizes/byt5_xxl.gin): 36 layers and 12, 51.6 GB in float32.
EMBED, HEADS, HEAD, MLP = 4672, 64, 64, 12352
pytestmark = pytest.mark.skipif(
  not pathlib.Path("/proc/self/status").exists(), reason="no /proc here"
)


def write_t5(folder, scale, encoder, decoder):
  """A random ByT5 of XXL's proportions; bytes of its largest array, of all."""
  config = byt5.Byt5Config(
    embed_dim=int(EMBED * scale),
    num_heads=HEADS,
    head_dim=int(HEAD * scale),
    mlp_dim=int(MLP * scale),
    num_encoder_layers=encoder,
    num_decoder_layers=decoder,
  )
  ours = t5_names.shapes(config)
  shapes = {}
  for entry in t5_names.entries(config):
    shape = ours[entry.ours].shape
    shape = shape if entry.transform == "same" else shape[::-1]
    shapes[entry.theirs] = jax.ShapeDtypeStruct(shape, np.float32)
  folder.mkdir()
  content = json.dumps(t5_names.config_to_json(config))
  (folder / "config.json").write_text(content)
  rng = np.random.default_rng(0)
  safetensors_files.write(
    folder / "model.safetensors",
    shapes,
    lambda name: rng.standard_normal(shapes[name].shape, dtype=np.float32),
  )
  sizes = [int(np.prod(leaf.shape)) * 4 for leaf in shapes.values()]
  return max(sizes), sum(sizes)


def own_memory(pid):
  text = pathlib.Path(f"/proc/{pid}/status").read_text()
  lines = [x.split() for x in text.splitlines() if x.startswith("RssAnon")]
  return int(lines[0][1]) * 1024 if lines else 0


def start(*arguments):
  process = subprocess.Popen(
    [sys.executable, str(RUN), *map(str, arguments)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
  )
  assert process.stdout.readline() == "ready\n"
  base = own_memory(process.pid)
  process.stdin.write("\n")
  process.stdin.flush()
  return process, base


def peak_above_imports(*arguments):
  process, base = start(*arguments)
  peak = base
  while process.poll() is None:
    peak = max(peak, own_memory(process.pid))
    time.sleep(0.003)
  assert process.returncode == 0
  return peak - base


def test_a_folder_is_written_in_the_memory_of_its_largest_array(tmp_path):
  largest, total = write_t5(tmp_path / "in", 0.375, 1, 0)
  assert largest > 2**24 and total > 4 * largest
  peak = peak_above_imports(tmp_path / "in", tmp_path / "out", "transformers")
  assert peak < 3 * largest, (peak / largest, total / largest)


@pytest.mark.slow
@pytest.mark.parametrize("to", ["ours", "t5x", "transformers"])
def test_every_road_takes_less_than_three_of_its_largest_array(tmp_path, to):
  """At half of XXL's widths, where fixed costs weigh more than at its own."""
  largest, total = write_t5(tmp_path / "in", 0.5, 3, 1)
  assert total > 15 * largest
  peak = peak_above_imports(tmp_path / "in", tmp_path / "out", to)
  assert peak < 3 * largest, (peak / largest, total / largest)


@pytest.mark.slow
@pytest.mark.parametrize("to", ["ours", "t5x", "transformers"])
def test_a_killed_conversion_leaves_nothing_that_looks_whole(tmp_path, to):
  write_t5(tmp_path / "in", 0.25, 4, 0)
  for delay in (0.05, 0.3, 0.8, 1.5):
    process, _ = start(tmp_path / "in", tmp_path / "out", to)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if (tmp_path / "out").exists():  # It was faster.
      assert (tmp_path / "out" / manifest.FILE).is_file()
      break
  else:
    process, _ = start(tmp_path / "in", tmp_path / "out", to)
    assert process.wait() == 0
  assert (tmp_path / "out" / manifest.FILE).is_file()
