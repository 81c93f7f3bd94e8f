"""How often language identifiers agree with the labels of known texts.

  python benchmarks/language_id.py [--texts udhr_mc4_langs.tsv]

A TSV with columns mc4_code, article1 and article3 (the Universal Declaration of
Human Rights in 100 languages): whole articles, and their first characters, as
long as captions are. The table of docs/data/languages.md is this one's output.
"""

import argparse
import collections
import csv
import pathlib
import time

from byt5_diffusion.data import language_id

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_TEXTS = _ROOT.parent / "shared/data/fixtures/udhr/udhr_mc4_langs.tsv"
# Characters: all, the median of LAION's captions, half of it.
_LENGTHS = {"article": 10_000, "41 characters": 41, "20 characters": 20}
_SURE = 0.8


def _read(path: pathlib.Path) -> list[tuple[str, str]]:
  with path.open(encoding="utf-8", newline="") as file:
    rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
  return [
    (row["mc4_code"], row[key])
    for row in rows
    for key in ("article1", "article3")
    if row[key]
  ]


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--texts", type=pathlib.Path, default=_TEXTS)
  args = parser.parse_args()
  if not args.texts.is_file():
    print(f"{args.texts} is not there: name a file with --texts.")
    return
  texts = _read(args.texts)
  kinds = [(i, key) for i in language_id.IDENTIFIERS for key in _LENGTHS]
  print("| identifier | text | agrees | share surer than 0.8 | agrees then |")
  print("|---|---|---|---|---|")
  right: dict[str, list[int]] = collections.defaultdict(lambda: [0] * 6)
  for column, (identifier, key) in enumerate(kinds):
    language_id.identify("hello", identifier)
    start = time.process_time()
    found = [
      language_id.identify(text[: _LENGTHS[key]], identifier)
      for _, text in texts
    ]
    seconds = time.process_time() - start
    good = [
      code == label for (code, _), (label, _) in zip(found, texts, strict=True)
    ]
    sure = [g for g, (_, p) in zip(good, found, strict=True) if p >= _SURE]
    for (label, _), one in zip(texts, good, strict=True):
      right[label][column] += one
    print(
      f"| {identifier} ({1e6 * seconds / len(texts):.0f} us) | {key} | "
      f"{sum(good) / len(good):.1%} | {len(sure) / len(good):.1%} | "
      f"{sum(sure) / len(sure):.1%} |"
    )
  counts = collections.Counter(label for label, _ in texts)
  always = [k for k, v in right.items() if set(v) == {counts[k]}]
  print(f"\nAlways: {' '.join(always)}.\n")
  print("| language | " + " | ".join(f"{i} {key}" for i, key in kinds) + " |")
  print("|---" * (len(kinds) + 1) + "|")
  for label in counts:
    if label not in always:
      cells = " | ".join(f"{n}/{counts[label]}" for n in right[label])
      print(f"| {label} | {cells} |")


if __name__ == "__main__":
  main()
