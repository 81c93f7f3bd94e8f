"""T5X's own main with our tasks, models and recipes; see docs/t5x.md.

  python tools/t5x_main.py --run_mode=train \\
    --gin_file=experiments/tiny.gin --gin.MODEL_DIR='"/tmp/tiny"'
"""

import argparse
import importlib
import runpy
import sys

import jax
from jax.experimental import pjit

from byt5_diffusion import config

# What each program must be told; what a recipe wants for others stays open.
FOLDERS = {
  "train": ["MODEL_DIR"],
  "eval": ["CHECKPOINT_PATH", "EVAL_OUTPUT_DIR"],
  "infer": ["CHECKPOINT_PATH", "INFER_OUTPUT_DIR"],
}
OTHERS = ("MODEL_DIR", "EVAL_OUTPUT_DIR", "INFER_OUTPUT_DIR", "READ_OUTPUT_DIR")


def with_our_gin(arguments: list[str]) -> list[str]:
  """The flags, with our run file before the recipe, and our folder last."""
  parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
  parser.add_argument("--run_mode")
  parser.add_argument("--gin_search_paths", default=".")
  flags, rest = parser.parse_known_args(arguments)
  ours = [f"--gin_search_paths={flags.gin_search_paths},{config.gin_root()}"]
  ours += [f"--run_mode={flags.run_mode}"] if flags.run_mode else []
  if mine := FOLDERS.get(flags.run_mode):
    unset = dict.fromkeys(OTHERS) | dict.fromkeys(mine, "%gin.REQUIRED")
    ours += [f"--gin_file=runs/t5x_{flags.run_mode}.gin"]
    ours += [f"--gin_bindings={name}={x}" for name, x in unset.items()]
  return [*ours, *rest]


def main() -> None:
  # jestimator 0.3.3, which T5X imports, looks for it where jax had it.
  if not hasattr(pjit, "PartitionSpec"):
    pjit.PartitionSpec = jax.sharding.PartitionSpec
  try:
    importlib.import_module("t5x.train")
  except ImportError as error:
    parser = argparse.ArgumentParser()
    parser.exit(
      2,
      f"Error: T5X can't be imported ({error}): put google-research/t5x and "
      "google/airio on PYTHONPATH; docs/t5x.md says what else they need.\n",
    )
  sys.argv[1:] = with_our_gin(sys.argv[1:])
  # T5X's gin files say `__main__` and mean t5x.main.
  runpy.run_module("t5x.main", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
  main()
