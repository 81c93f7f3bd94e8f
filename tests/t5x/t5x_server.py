"""Imports T5X once and forks for each command: half the time of a short run.

JAX and TensorFlow start their threads when they are first used, so not yet.

{"argv": [...], "environment": {...}, "log": path} -> exit code, line by line
"""

import importlib
import json
import os
import runpy
import sys
import traceback
from typing import Any, NoReturn

import jax
from jax.experimental import pjit

pjit.PartitionSpec = jax.sharding.PartitionSpec
for module in ("t5x.train", "t5x.eval", "t5x.infer", "byt5_diffusion.trainer"):
  importlib.import_module(module)


def work(request: dict[str, Any]) -> NoReturn:
  """The life of a child: argv[0] is a script, run as a user runs it."""
  log = os.open(request["log"], os.O_WRONLY | os.O_CREAT, 0o644)
  os.dup2(log, 1)
  os.dup2(log, 2)
  os.environ.update(request["environment"])
  sys.argv = request["argv"]
  code: Any = 0
  try:
    runpy.run_path(sys.argv[0], run_name="__main__")
  except SystemExit as stop:
    code = stop.code
  except BaseException:
    traceback.print_exc()
    code = 1
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code if isinstance(code, int) else int(code is not None))


for line in sys.stdin:
  child = os.fork()
  if not child:
    work(json.loads(line))
  print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
