"""Images per second of the train step of a recipe, on random data.

  python benchmarks/train_step.py [--recipe experiments/tiny.gin] [--steps 20]

On a CPU it runs twice, each in a process of its own: as training does, with
freed memory kept, and without, to show what that is worth. Times are medians;
CPU time is what other programs on the machine change least.
"""

import argparse
import dataclasses
import statistics
import subprocess
import sys
import tempfile
import time


def measure(recipe: str, steps: int, keep: bool) -> str:
  import jax
  import numpy as np

  from byt5_diffusion import (
    config,
    host_memory,
    optimizers,
    telemetry,
    train_state,
    trainer,
  )

  if keep:
    host_memory.keep_freed_memory()
  telemetry.enable_compilation_cache()
  program = config.parse([recipe], ["MODEL_DIR='unused'"])
  with tempfile.TemporaryDirectory() as folder:
    config.write_configs(folder, program)
    model = config.load_model_gin(folder)
  model = dataclasses.replace(model, optimizer_def=optimizers.adamw())
  size = program.macro("BATCH_SIZE")
  rng = np.random.default_rng(0)
  height, width = model.image_size
  batch = {
    "images": rng.uniform(-1, 1, (size, height, width, 3)).astype(np.float32),
    "text_tokens": rng.integers(
      3, 259, (size, model.max_text_length), dtype=np.int32
    ),
    "example_id": rng.integers(0, 2**32, (size, 2), dtype=np.uint32),
  }
  shapes = {name: x.shape for name, x in batch.items()}
  params = jax.jit(
    lambda key: model.get_initial_variables(key, shapes)["params"]
  )(jax.random.key(0))
  state = train_state.create(params, model.optimizer_def.tx)

  def step(state, batch):
    return trainer.train_step(
      state,
      None,
      batch,
      jax.random.key(0),
      model=model,
      learning_rate_fn=optimizers.constant(1e-4),
      ema_decay=0.999,
    )

  jitted = jax.jit(step, donate_argnums=0)
  wall, cpu = [], []
  for _ in range(steps + 2):
    start = time.perf_counter(), time.process_time()
    state, output = jitted(state, batch)
    jax.block_until_ready(output)
    wall.append(time.perf_counter() - start[0])
    cpu.append(time.process_time() - start[1])
  wall_s, cpu_s = statistics.median(wall[2:]), statistics.median(cpu[2:])
  count = sum(x.size for x in jax.tree.leaves(params))
  return (
    f"{recipe}: {count} parameters, batch {size}, "
    f"freed memory {'kept' if keep else 'returned'}: {1e3 * wall_s:.0f} ms a "
    f"step ({1e3 * cpu_s:.0f} ms CPU), {size / wall_s:.0f} images/s"
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--recipe", default="experiments/tiny.gin")
  parser.add_argument("--steps", type=int, default=20)
  parser.add_argument("--keep", type=int, help=argparse.SUPPRESS)
  flags = parser.parse_args()
  if flags.keep is not None:
    print(measure(flags.recipe, flags.steps, bool(flags.keep)))
    return
  import jax

  for keep in (1, 0) if jax.default_backend() == "cpu" else (0,):
    subprocess.run(
      [sys.executable, __file__, *sys.argv[1:], f"--keep={keep}"], check=True
    )


if __name__ == "__main__":
  main()
