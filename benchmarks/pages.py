"""Made-up pages and vector graphics per second of CPU time, script by script.

  python benchmarks/pages.py                    both kinds, a row per script
  python benchmarks/pages.py layout --count 40  pages alone, 40 of each script

CPU time is that of this process and of the renderer's, together, so the figures
are those of one core; the first pictures, which load fonts, do not count.
"""

import argparse
import os
import resource

from byt5_diffusion.data import (
  images,
  languages,
)
from byt5_diffusion.data.pages import (
  made_pages,
  made_pictures,
  made_vectors,
  sandbox,
)
from byt5_diffusion.data.writing import phrases

KINDS: dict[str, type[made_pictures.MadePictures]] = {
  "layout": made_pages.MadePages,
  "svg": made_vectors.MadeVectors,
}


def cpu_seconds(pool: sandbox.Pool) -> float:
  """CPU time of this process, and of the pool's worker."""
  own = resource.getrusage(resource.RUSAGE_SELF)
  with pool._worker() as worker:
    with open(f"/proc/{worker._process.pid}/stat", encoding="ascii") as file:
      fields = file.read().rpartition(")")[2].split()
  ticks = int(fields[11]) + int(fields[12])
  return own.ru_utime + own.ru_stime + ticks / os.sysconf("SC_CLK_TCK")


def by_script() -> dict[str, list[str]]:
  """{script: the languages that are mostly written in it}."""
  found: dict[str, list[str]] = {}
  for language in languages.TABLE:
    script = phrases.scripts(language.code)[0][0]
    found.setdefault(script, []).append(language.code)
  return found


def pictures_per_second(
  kind: str, codes: list[str], count: int, side: int
) -> tuple[float, int]:
  """Pictures per second of one core, and how many numbers gave none.

  Args:
    kind: of KINDS.
    codes: languages, one after the other.
    count: pictures that are drawn and counted.
    side: pixels of the longer side.
  """
  supply = KINDS[kind](side=side)
  supply.read("train", 0, 1, codes[0])
  pool = sandbox.pool()
  start, failed = cpu_seconds(pool), 0
  for index in range(count):
    try:
      supply.read("train", index, 0, codes[index % len(codes)])
    except images.BadImage:
      failed += 1
  return count / (cpu_seconds(pool) - start), failed


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("kinds", nargs="*", help=", ".join(KINDS))
  parser.add_argument("--count", type=int, default=20)
  parser.add_argument("--side", type=int, default=768)
  args = parser.parse_args()
  for kind in args.kinds or KINDS:
    print(f"{kind}, {args.count} of each script, longer side {args.side}")
    for script, codes in sorted(by_script().items()):
      rate, failed = pictures_per_second(kind, codes, args.count, args.side)
      print(f"  {script}  {rate:6.1f} /s per core, {failed} without a picture")


if __name__ == "__main__":
  main()
