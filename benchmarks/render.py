"""Words drawn per second of one core's time, by backend and picture size.

  python benchmarks/render.py

Different words of every script that this machine can draw; the first pass over
them (reading fonts) is left out. Last the supply of phrases: whole examples,
with their styles, captions and boxes.
"""

import argparse
import time

from byt5_diffusion.data.writing import (
  fonts,
  typography,
  typography_phrases,
  words,
)

SIZES = ((16, 48), (32, 128), (64, 256), (128, 512))


def words_per_second(
  renderer: typography.Renderer, samples: list[words.Sample], seconds: float
) -> float:
  """Draws `samples` again and again for that long."""
  for sample in samples[:200]:
    renderer.render(sample.text, sample.script)
  drawn, start = 0, time.process_time()
  while time.process_time() - start < seconds:
    for sample in samples:
      renderer.render(sample.text, sample.script)
    drawn += len(samples)
  return drawn / (time.process_time() - start)


def examples_per_second(
  height: int, width: int, seconds: float
) -> tuple[float, float]:
  """Pictures, and words in them, of the supply of phrases."""
  supply = typography_phrases.open_phrases(
    "built_in", height=height, width=width
  )
  for index in range(500):
    supply.read("train", index)
  drawn, num_words, start = 0, 0, time.process_time()
  while time.process_time() - start < seconds:
    example = supply.read("train", drawn, seed=1)
    num_words += sum(region.label == "word" for region in example.regions)
    drawn += 1
  spent = time.process_time() - start
  return drawn / spent, num_words / spent


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--seconds", type=float, default=2.0, help="per figure")
  parser.add_argument("--words", type=int, default=500)
  args = parser.parse_args()
  scripts = fonts.available_scripts()
  source = words.Words(only_scripts=scripts)
  start = time.process_time()
  samples = [
    words.string_at(source, "train", 0, index) for index in range(args.words)
  ]
  rate = args.words / (time.process_time() - start)
  print(f"{len(scripts)} scripts; strings: {rate:.0f}/s")
  for backend in ("harfbuzz", "pango", "skia"):
    for height, width in SIZES:
      renderer = typography.Renderer(
        height=height, width=width, backend=backend
      )
      try:
        rate = words_per_second(renderer, samples, args.seconds)
      except ImportError as error:
        print(error)
        break
      print(f"{backend:9s} {height:4d} x {width:<4d} {rate:8.0f} words/s")
  for height, width in ((64, 256), (256, 256), (512, 512)):
    rate, num_words = examples_per_second(height, width, args.seconds)
    print(
      f"phrases   {height:4d} x {width:<4d} {rate:8.0f} pictures/s, "
      f"{num_words:.0f} words/s"
    )


if __name__ == "__main__":
  main()
