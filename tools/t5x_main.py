"""T5X's own main, with this project's tasks, models and gin files.

  python tools/t5x_main.py --run_mode=train \\
    --gin_file=experiments/tiny.gin --gin.MODEL_DIR='"/tmp/tiny"'

The flags are T5X's, and the recipes are ours; see docs/t5x.md.
"""

import argparse
import importlib
import runpy
import sys

import jax
from jax.experimental import pjit

from byt5_diffusion import config

# Run mode -> what a recipe says to it; the user's bindings come later.
BINDINGS = {
  "train": "EVAL_OUTPUT_DIR=None INFER_OUTPUT_DIR=None",
  "eval": "CHECKPOINT_PATH=%gin.REQUIRED MODEL_DIR=None INFER_OUTPUT_DIR=None",
  "infer": "CHECKPOINT_PATH=%gin.REQUIRED MODEL_DIR=None EVAL_OUTPUT_DIR=None",
}


def with_our_gin(arguments: list[str]) -> list[str]:
  """The flags, with our run file before the recipe, and our folder last."""
  parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
  parser.add_argument("--run_mode", default="")
  parser.add_argument("--gin_search_paths", default=".")
  flags, rest = parser.parse_known_args(arguments)
  ours = [f"--gin_search_paths={flags.gin_search_paths},{config.gin_root()}"]
  ours += [f"--run_mode={flags.run_mode}"] if flags.run_mode else []
  if flags.run_mode in BINDINGS:
    ours += [f"--gin_file=runs/t5x_{flags.run_mode}.gin"]
    ours += [f"--gin_bindings={x}" for x in BINDINGS[flags.run_mode].split()]
  return [*ours, *rest]


def main() -> str | None:
  """Runs t5x.main; returns what is to be said where there is none."""
  # jestimator 0.3.3, which T5X imports, looks for it where jax had it.
  if not hasattr(pjit, "PartitionSpec"):
    pjit.PartitionSpec = jax.sharding.PartitionSpec
  try:
    importlib.import_module("t5x.train")
  except ImportError as error:
    return (
      f"Error: T5X can't be imported ({error}). Put checkouts of google-research/"
      "t5x and google/airio on PYTHONPATH, and their needs here; see docs/t5x.md."
    )
  sys.argv[1:] = with_our_gin(sys.argv[1:])
  # T5X's gin files say `__main__` and mean t5x.main.
  runpy.run_module("t5x.main", run_name="__main__", alter_sys=True)
  return None


if __name__ == "__main__":
  sys.exit(main())
