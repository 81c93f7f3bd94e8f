"""How well Tesseract reads lines that we draw, and lines that Pango draws.

  python benchmarks/tesseract.py --strings=200

The same strings, in the same font file, at the same size, black on white with
the same margin: once by data/writing/shaping.py, once by pango-view (Debian's
pango1.0-tools). Every Tesseract model of MODELS that is installed
(tesseract-ocr-<language>) reads both; vertical models read vertical lines.
Errors are in grapheme clusters after NFC, spaces left out where the script has
none.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import tempfile
import unicodedata
from collections.abc import Sequence

import numpy as np
from PIL import Image

from byt5_diffusion import spelling
from byt5_diffusion.data import text as texts
from byt5_diffusion.data.writing import (
  fonts,
  phrases,
  rasterizers,
  shaping,
  words,
)

# Tesseract's model -> mC4's code and the script of the strings.
MODELS = {
  "eng": ("en", "Latn"), "rus": ("ru", "Cyrl"), "ell": ("el", "Grek"),
  "ara": ("ar", "Arab"), "fas": ("fa", "Arab"), "urd": ("ur", "Arab"),
  "heb": ("iw", "Hebr"), "yid": ("yi", "Hebr"), "hin": ("hi", "Deva"),
  "mar": ("mr", "Deva"), "nep": ("ne", "Deva"), "ben": ("bn", "Beng"),
  "pan": ("pa", "Guru"), "guj": ("gu", "Gujr"), "tam": ("ta", "Taml"),
  "tel": ("te", "Telu"), "kan": ("kn", "Knda"), "mal": ("ml", "Mlym"),
  "sin": ("si", "Sinh"), "tha": ("th", "Thai"), "lao": ("lo", "Laoo"),
  "khm": ("km", "Khmr"), "mya": ("my", "Mymr"), "bod": ("bo", "Tibt"),
  "kat": ("ka", "Geor"), "hye": ("hy", "Armn"), "amh": ("am", "Ethi"),
  "kor": ("ko", "Kore"), "jpn": ("ja", "Jpan"), "chi_sim": ("zh", "Hans"),
  "chi_tra": ("zh", "Hant"), "jpn_vert": ("ja", "Jpan"),
  "chi_sim_vert": ("zh", "Hans"), "chi_tra_vert": ("zh", "Hant"),
  "kor_vert": ("ko", "Kore"),
}  # fmt: skip
_MARGIN = 12  # Pixels; on each side of the line box.
_FONTCONFIG = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir>{fonts}</dir><cachedir>{cache}</cachedir></fontconfig>
"""


def strings_of(
  code: str, script: str, font: fonts.Font, count: int
) -> list[str]:
  """Different strings that the font has whole; phrases of mC4's languages."""
  rng = words.generator("tesseract", code, script)
  source = phrases.Phrases(max_words=4, max_graphemes=40, capitals=0.0)
  few = words.Words(only_scripts=[script], max_words=4)
  found: dict[str, None] = {}
  for _ in range(200 * count):
    # mC4 has no Tibetan.
    sample = few.draw(rng) if code == "bo" else source.draw(rng, code)
    if sample.script == script and not rasterizers.lacking(
      sample.text, (font,)
    ):
      found[sample.text] = None
    if len(found) == count:
      break
  return list(found)


def draw_ours(
  string: str,
  font: fonts.Font,
  code: str,
  script: str,
  size: int,
  vertical: bool,
) -> np.ndarray:
  """Black on white, the line box with a margin."""
  line = shaping.shape(
    string, (font,), script=script, language=code, vertical=vertical
  )
  face = fonts.face(font)
  extents = shaping.hb.Font(face).get_font_extents("ltr")
  up = round(extents.ascender / face.upem * size)
  down = round(-extents.descender / face.upem * size)
  height, width = up + down + 2 * _MARGIN, round(line.advance * size)
  width += 2 * _MARGIN
  x, y = _MARGIN, _MARGIN + up
  if vertical:
    height, width = width, height
    x, y = width // 2, _MARGIN
  placed = [(glyph, x, y) for glyph in line.glyphs]
  return 255 - shaping.draw(placed, height, width, size)


def draw_pango(
  string: str,
  font: fonts.Font,
  code: str,
  size: int,
  vertical: bool,
  file: pathlib.Path,
  hinting: str,
) -> None:
  """The same by pango-view, which finds the file by its family's name."""
  name = shaping.hb.OTNameIdPredefined
  family = fonts.face(font).get_name(name.TYPOGRAPHIC_FAMILY) or fonts.face(
    font
  ).get_name(name.FONT_FAMILY)
  source = file.with_suffix(".txt")
  source.write_text(string, "utf-8")
  command = [
    "pango-view", "--no-display", "--pixels", f"--font={family} {size}",
    f"--margin={_MARGIN}", f"--language={shaping.bcp47(code)}",
    f"--output={file}", str(source),
  ]  # fmt: skip
  if vertical:
    command[1:1] = ["--rotate=-90", "--gravity=east"]
  if hinting:
    command.insert(1, f"--hinting={hinting}")
  if hinting == "none":  # Nor places of letters rounded.
    command[1:1] = ["--hint-metrics=off", "--subpixel-positions"]
  subprocess.run(command, check=True, stderr=subprocess.DEVNULL)


def read_all(
  files: Sequence[pathlib.Path], model: str, folder: pathlib.Path
) -> list[str]:
  """What Tesseract reads, picture by picture, in one process."""
  listing = folder / "list.txt"
  listing.write_text("\n".join(map(str, files)) + "\n")
  mode = "5" if model.endswith("_vert") else "7"
  command = ["tesseract", str(listing), str(folder / "read"), "-l", model]
  subprocess.run(
    [*command, "--psm", mode, "-c", "page_separator=\f"],
    check=True,
    stderr=subprocess.DEVNULL,
    env={**os.environ, "OMP_THREAD_LIMIT": "1"},
  )
  pages = (folder / "read.txt").read_text("utf-8").split("\f")
  assert len(files) <= len(pages) <= len(files) + 1, (len(pages), len(files))
  return pages[: len(files)]


def errors(read: str, wanted: str, spaced: bool) -> tuple[int, int]:
  """Wrong grapheme clusters, and how many there are."""

  def clusters(text: str) -> list[str]:
    text = unicodedata.normalize("NFC", text)
    text = "".join(c for c in text if unicodedata.category(c) != "Cf")
    return texts.graphemes((" " if spaced else "").join(text.split()))

  expected = clusters(wanted)
  distance = spelling.edit_distance(clusters(read), expected)
  return min(distance, len(expected)), len(expected)


def measure(model: str, args: argparse.Namespace) -> str:
  """A row of the table."""
  code, script = MODELS[model]
  vertical = model.endswith("_vert")
  font = fonts.fonts_for(script)[0]
  strings = strings_of(code, script, font, args.strings)
  spaced = script not in words.UNSPACED
  rates: dict[str, float] = {}
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    os.environ["FONTCONFIG_FILE"] = str(folder / "fonts.conf")
    (folder / "fonts.conf").write_text(
      _FONTCONFIG.format(fonts=pathlib.Path(font.path).parent, cache=folder)
    )
    for way in ("ours", "pango"):
      files = [folder / f"{way}{i}.png" for i in range(len(strings))]
      for string, file in zip(strings, files, strict=True):
        if way == "ours":
          made = draw_ours(string, font, code, script, args.size, vertical)
          Image.fromarray(made).save(file)
        else:
          draw_pango(
            string, font, code, args.size, vertical, file, args.hinting
          )
      if args.keep:
        shutil.copytree(
          folder, pathlib.Path(args.keep) / model, dirs_exist_ok=True
        )
      read = read_all(files, model, folder)
      counts = [
        errors(r, s, spaced) for r, s in zip(read, strings, strict=True)
      ]
      wrong, total = np.sum(counts, axis=0)
      rates[way] = 100 * wrong / total
      if args.show:
        for r, s, (e, _) in zip(read, strings, counts, strict=True):
          if e:
            print(f"  {way}: {s!r} read as {r.strip()!r}")
  family = pathlib.Path(font.path).stem
  ours, pango = rates["ours"], rates["pango"]
  row = f"{ours:.2f} | {pango:.2f} | {ours - pango:+.2f}"
  return f"| {model} | {script} | {family} | {len(strings)} | {row} |"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--strings", type=int, default=100)
  parser.add_argument("--size", type=int, default=32, help="pixels per em")
  parser.add_argument("--models", nargs="*", default=list(MODELS))
  parser.add_argument("--hinting", default="", help="pango-view's; its default")
  parser.add_argument("--show", action="store_true", help="what is misread")
  parser.add_argument("--keep", default="", help="folder for the pictures")
  args = parser.parse_args()
  for program in ("tesseract", "pango-view"):
    if shutil.which(program) is None:
      print(f"{program} is not installed: nothing to measure.")
      return
  installed = subprocess.run(
    ["tesseract", "--list-langs"], capture_output=True, text=True, check=True
  ).stdout.split()
  print("| model | script | font | strings | ours % | Pango % | difference |")
  print("|---|---|---|---|---|---|---|")
  for model in args.models:
    if model not in installed:
      print(f"| {model} | not installed | | | | | |")
      continue
    print(measure(model, args), flush=True)


if __name__ == "__main__":
  main()
