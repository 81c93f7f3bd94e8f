"""Converts weights: `byt5-diffusion convert` by itself.

python tools/convert_checkpoint.py SOURCE OUTPUT --to diffusers
"""

import sys

from byt5_diffusion import conversion_commands

if __name__ == "__main__":
  sys.exit(conversion_commands.main())
