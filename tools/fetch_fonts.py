"""Gets fonts for every script into the user's cache: no root, no system change.

  python tools/fetch_fonts.py

Uses apt's signed packages where there is an apt. Where there is none, or no
network, it says so and what the fonts already here can draw.
"""

import argparse
import pathlib
import sys

from byt5_diffusion.data.writing import fonts


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    "packages",
    nargs="*",
    default=list(fonts.PACKAGES),
    help="Debian packages; default: %(default)s",
  )
  parser.add_argument(
    "--target",
    type=pathlib.Path,
    help=f"folder to fill; default: {fonts.cache_dir()}",
  )
  parser.add_argument(
    "--min_scripts",
    type=int,
    default=1,
    help="fail if fewer scripts can be drawn afterwards",
  )
  args = parser.parse_args()
  try:
    fonts.fetch(args.packages, target=args.target)
  except fonts.FetchError as error:
    print(f"Some fonts could not be fetched.\n{error}", file=sys.stderr)
  drawable = fonts.available_scripts()
  missing = sorted(set(fonts.TABLE) - set(drawable))
  print(f"{len(drawable)} scripts can be drawn: {' '.join(drawable)}")
  if missing:
    print(f"No font for: {' '.join(missing)}")
  return int(len(drawable) < args.min_scripts)


if __name__ == "__main__":
  sys.exit(main())
