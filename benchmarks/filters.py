"""Captions that the filters judge per second of one core's time.

  python benchmarks/filters.py

Phrases of all languages, as often as ByT5 has read them; with and without the
language's identification.
"""

import argparse
import contextlib
import time
from collections.abc import Callable

from byt5_diffusion.data import (
  filters,
  language_id,
)
from byt5_diffusion.data.writing import (
  phrases,
  words,
)


def captions_per_second(
  judge: Callable[[str], object], captions: list[str], seconds: float
) -> float:
  """Judges `captions` again and again for that long."""
  judged, start = 0, time.process_time()
  while time.process_time() - start < seconds:
    for caption in captions:
      judge(caption)
    judged += len(captions)
  return judged / (time.process_time() - start)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--seconds", type=float, default=2.0, help="per figure")
  args = parser.parse_args()
  source, rules = phrases.Phrases(), filters.Rules()
  captions = [
    source.draw(words.generator(i), phrases.language_at("train", 0, i)).text
    for i in range(2000)
  ]

  def judge(caption: str) -> None:
    with contextlib.suppress(filters.Filtered):
      rules.check(caption, width=640, height=480, pwatermark=0.1, punsafe=0.1)

  ways: dict[str, Callable[[str], object]] = {"rules": judge}
  for name in language_id.IDENTIFIERS:
    ways[name] = lambda caption, name=name: language_id.identify(caption, name)
  length = sum(map(len, captions)) / len(captions)
  print(f"captions of {length:.0f} characters on average, per second:")
  for name, way in ways.items():
    rate = captions_per_second(way, captions, args.seconds)
    print(f"  {name:10} {rate:9,.0f}")


if __name__ == "__main__":
  main()
