"""Converts in a process of its own that says when all is imported.

  python conversion_memory_run.py SOURCE OUTPUT TO

Prints "ready", waits for a line, converts.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from byt5_diffusion.conversion import convert

if __name__ == "__main__":
  print("ready", flush=True)
  sys.stdin.readline()
  convert.convert(sys.argv[1], sys.argv[2], to=sys.argv[3])
