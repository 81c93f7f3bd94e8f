"""Freed memory stays, in a process of its own: the setting is process-wide."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource
import numpy as np
from byt5_diffusion import host_memory

def faults():
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  for _ in range(10):
    np.ones(64 << 20, np.uint8)
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

plain = faults()
assert host_memory.keep_freed_memory()
faults()
print(plain, faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_freed_memory_is_used_again() -> None:
  done = subprocess.run(
    [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
  )
  plain, kept = map(int, done.stdout.split())
  assert plain > 100  # every block is mapped anew
  assert kept < plain / 10
