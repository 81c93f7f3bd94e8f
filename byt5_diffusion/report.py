"""report.html of the demo: one file, nothing fetched, every figure measured.

`html_of` turns findings into a page: pictures are data URLs, curves are SVG.
What it says was learnt is computed from the readings, with chance beside it.
"""

import base64
import collections
import dataclasses
import html
import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from byt5_diffusion import spelling
from byt5_diffusion.data.writing import (
  fonts,
  words,
)

Metrics = Mapping[str, Mapping[int, float]]

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2em auto; padding: 0 1em;
  max-width: 68em; color: #222; background: #fff; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2em; }
table { border-collapse: collapse; } td, th { padding: .25em .8em;
  border-bottom: 1px solid #ddd; text-align: right; }
td:first-child, th:first-child { text-align: left; }
img { image-rendering: pixelated; vertical-align: middle; }
figure { display: inline-block; margin: .3em; padding: .4em; text-align: center;
  border: 2px solid #ddd; border-radius: .4em; } figure img { display: block;
  margin-bottom: .2em; } figure.right { border-color: #3a9a4b; }
figcaption { font-size: .85em; } .strip img { margin: .2em; }
pre { background: #f4f4f4; padding: .8em; overflow-x: auto; }
.note { color: #555; font-size: .9em; }
"""
_COLORS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
  """A held-out string, its picture, what was drawn, and what readers read.

  Attributes:
    target, drawn: uint8 [H, W, 3].
    nearest: by spelling.NearestReader.
    head_of_drawn, head_of_target: by the OCR head; None without one.
    tesseract_of_drawn, tesseract_of_target: None where it could not be used.
  """

  text: str
  script: str
  target: np.ndarray
  drawn: np.ndarray
  nearest: str
  head_of_drawn: str | None = None
  head_of_target: str | None = None
  tesseract_of_drawn: str | None = None
  tesseract_of_target: str | None = None

  @property
  def is_right(self) -> bool:
    return self.nearest == self.text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
  """Seconds of both processes; the step after which the first was killed."""

  seconds: float
  killed_at: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Findings:
  """All that the report tells; see demo.run for where each comes from."""

  readings: Sequence[Reading]
  sheet: Sequence[tuple[str, str, np.ndarray]]
  scripts: Sequence[str]
  skipped_scripts: Sequence[str]
  ledgers: Sequence[Mapping[str, Any]]
  num_pictures: int
  metrics: Metrics
  grids: Sequence[pathlib.Path]
  parameters: int
  training: Training
  reader_parameters: int
  reader_steps: int
  reader_seconds: float
  total_seconds: float
  machine: str
  command: str
  model_dir: pathlib.Path


def html_of(findings: Findings) -> str:
  """The page."""
  sections = [
    _summary(findings),
    _samples(findings),
    _scores(findings),
    _curves(findings),
    _progress(findings),
    _scripts(findings),
    _next(findings),
  ]
  return (
    "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
    "<meta name='viewport' content='width=device-width'>"
    f"<title>byt5_diffusion: demo</title><style>{_STYLE}</style></head>\n"
    "<body><h1>Teaching a diffusion model to spell</h1>\n"
    + "\n".join(sections)
    + "\n</body></html>\n"
  )


# --- Scores ------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
  """Of some readings; the errors of a reader that was not there are None."""

  count: int
  exact: float
  letter_errors: float
  head_drawn: float | None
  head_target: float | None
  tesseract_drawn: float | None
  tesseract_target: float | None


def score(readings: Sequence[Reading]) -> Score:
  """Exact match and letter error rate over the readings."""
  targets = [reading.text for reading in readings]
  nearest = [reading.nearest for reading in readings]

  def errors(reader: str) -> float | None:
    pairs = [(r.text, getattr(r, reader)) for r in readings]
    pairs = [(text, read) for text, read in pairs if read is not None]
    if not pairs:
      return None
    return spelling.character_error_rate(*zip(*pairs, strict=True))

  return Score(
    count=len(readings),
    exact=spelling.exact_match(targets, nearest),
    letter_errors=spelling.character_error_rate(targets, nearest),
    head_drawn=errors("head_of_drawn"),
    head_target=errors("head_of_target"),
    tesseract_drawn=errors("tesseract_of_drawn"),
    tesseract_target=errors("tesseract_of_target"),
  )


def scores_by_script(readings: Sequence[Reading]) -> dict[str, Score]:
  """{script: score}, scripts in order."""
  rows: dict[str, list[Reading]] = collections.defaultdict(list)
  for reading in readings:
    rows[reading.script].append(reading)
  return {script: score(row) for script, row in sorted(rows.items())}


def verdict(findings: Findings) -> str:
  """What was and was not learnt, in words that the figures decide."""
  total = score(findings.readings)
  chance = 1 / findings.num_pictures
  by_script = scores_by_script(findings.readings)
  learnt = [s for s, x in by_script.items() if x.exact >= 0.5]
  begun = [s for s, x in by_script.items() if 0 < x.exact < 0.5]
  missing = [s for s, x in by_script.items() if x.exact == 0]
  parts = [
    f"{total.exact:.0%} of {total.count} strings that training never saw are "
    f"drawn as themselves (chance: {chance:.2%}); "
    f"{total.letter_errors:.0%} of their letters are wrong."
  ]
  if learnt:
    parts.append(f"Learnt, most strings right: {', '.join(learnt)}.")
  if begun:
    parts.append(f"Begun, some strings right: {', '.join(begun)}.")
  if missing:
    parts.append(f"Not learnt, no string right: {', '.join(missing)}.")
  return " ".join(parts)


# --- Sections ----------------------------------------------------------------


def _summary(findings: Findings) -> str:
  training = findings.training
  kill = (
    "The run was complete already; nothing was trained."
    if training.killed_at is None
    else (
      "Its process was killed without warning after step "
      f"{training.killed_at} had been saved; the same command went on from "
      "there."
    )
  )
  steps = max(findings.metrics.get("train/loss", {0: 0.0}))
  return (
    f"<p>A text encoder and a UNet, {findings.parameters / 1e6:.1f} million "
    f"parameters together, learnt for {steps} steps to draw short strings in "
    f"{len({r.script for r in findings.readings})} scripts from their bytes "
    f"alone: {training.seconds / 60:.1f} minutes of training, "
    f"{findings.total_seconds / 60:.1f} in all, on {_text(findings.machine)}. "
    f"{kill}</p><p><b>{_text(verdict(findings))}</b></p>"
  )


def _samples(findings: Findings) -> str:
  figures = [
    f"<figure class='{'right' if r.is_right else 'wrong'}'>"
    f"{_picture(r.target, 2)}{_picture(r.drawn, 2)}"
    f"<figcaption><bdi>{_text(r.text)}</bdi>{_reads(r)}</figcaption></figure>"
    for r in findings.readings
  ]
  return (
    "<h2>Held-out strings</h2><p>Above the true picture, below what the model "
    "drew from noise; green where it is nearer to its own picture than to any "
    f"of the {findings.num_pictures} strings' pictures. Beneath: what each "
    "reader reads in the drawn one.</p>" + "".join(figures)
  )


def _reads(reading: Reading) -> str:
  """What each reader made of the drawn picture."""
  readings = {
    "nearest": None if reading.is_right else reading.nearest,
    "OCR head": reading.head_of_drawn,
    "Tesseract": reading.tesseract_of_drawn,
  }
  return "".join(
    f"<br><small>{name}: <bdi>{_text(read) or '&mdash;'}</bdi></small>"
    for name, read in readings.items()
    if read is not None
  )


def _scores(findings: Findings) -> str:
  rows = scores_by_script(findings.readings)
  rows["all"] = score(findings.readings)
  lines = [
    f"<tr><td>{_text(name)}</td><td>{row.count}</td><td>{row.exact:.0%}</td>"
    f"<td>{row.letter_errors:.0%}</td>"
    f"<td>{_percent(row.head_drawn)}</td><td>{_percent(row.head_target)}</td>"
    f"<td>{_percent(row.tesseract_drawn)}</td>"
    f"<td>{_percent(row.tesseract_target)}</td></tr>"
    for name, row in rows.items()
  ]
  return (
    "<h2>How well it spells</h2><table><tr><th>script</th><th>strings</th>"
    "<th>exact</th><th>letter errors</th><th>OCR head's errors: drawn</th>"
    "<th>true picture</th><th>Tesseract's errors: drawn</th>"
    "<th>true picture</th></tr>"
    + "".join(lines)
    + "</table><p class='note'>Exact match and letter errors by the nearest "
    "picture, which chooses among all the strings that the task draws and "
    "reads true pictures without error. The OCR head, patches and a ByT5 "
    f"decoder, {findings.reader_parameters / 1e6:.1f} million parameters, "
    f"learnt for {findings.reader_steps} steps "
    f"({findings.reader_seconds / 60:.1f} minutes) to read this task's true "
    "pictures; it never saw these strings, nor a drawn picture, and writes any "
    "text it likes. Tesseract reads one line at a time, "
    "with the script's own model; its errors on the true pictures are its own "
    "floor at this size. A dash: Tesseract, or its model for the script, is "
    "not installed here.</p>"
  )


def _curves(findings: Findings) -> str:
  metrics = findings.metrics
  levels = {
    name.rpartition("/")[2]: row
    for name, row in metrics.items()
    if name.startswith("validation/loss/")
  }
  train = {
    name: metrics[key]
    for name, key in (
      ("training", "train/loss"),
      ("validation", "validation/loss"),
    )
    if key in metrics
  }
  mark = findings.training.killed_at
  return (
    "<h2>Loss</h2>"
    + chart(train, mark)
    + chart(levels, mark)
    + "<p class='note'>Left: training (random noise levels) and validation "
    "(fixed ones, averaged parameters). Right: validation by noise level, t = "
    "0 clean, 1 noise. Dashed: where the process was killed.</p>"
  )


def chart(
  curves: Mapping[str, Mapping[int, float]], mark: int | None = None
) -> str:
  """Curves {name: {step: value}} as SVG, logarithmic upwards."""
  points = [(x, y) for row in curves.values() for x, y in row.items() if y > 0]
  if not points:
    return ""
  width, height, left, bottom = 460, 280, 52, 30
  top_x = max(x for x, _ in points)
  low, high = (f(np.log10(y) for _, y in points) for f in (min, max))
  span = max(high - low, 1e-6)

  def place(x: float, y: float) -> tuple[float, float]:
    return (
      left + (width - left - 10) * x / top_x,
      10 + (height - bottom - 10) * (high - np.log10(y)) / span,
    )

  parts = [f"<rect width='{width}' height='{height}' fill='#fafafa'/>"]
  for fraction in (0.0, 0.5, 1.0):
    value = 10 ** (low + fraction * span)
    _, y = place(0, value)
    parts.append(
      f"<path d='M{left} {y:.1f}H{width - 10}' stroke='#ddd'/>"
      f"<text x='4' y='{y + 4:.1f}'>{value:.3g}</text>"
    )
  parts.append(
    f"<text x='{left}' y='{height - 8}'>0</text><text x='{width - 10}' "
    f"y='{height - 8}' text-anchor='end'>step {top_x}</text>"
  )
  if mark is not None and mark <= top_x:
    x, _ = place(mark, 10**low)
    parts.append(
      f"<path d='M{x:.1f} 10V{height - bottom}' stroke='#888' "
      "stroke-dasharray='4'/>"
    )
  for i, (name, row) in enumerate(sorted(curves.items())):
    color = _COLORS[i % len(_COLORS)]
    line = " ".join(
      "{:.1f},{:.1f}".format(*place(x, y))
      for x, y in sorted(row.items())
      if y > 0
    )
    parts.append(
      f"<polyline points='{line}' fill='none' stroke='{color}' "
      f"stroke-width='1.5'/><text x='{width - 14}' y='{24 + 16 * i}' "
      f"text-anchor='end' fill='{color}'>{_text(name)}</text>"
    )
  return (
    f"<svg width='{width}' height='{height}' font-size='12' role='img'>"
    + "".join(parts)
    + "</svg> "
  )


def _progress(findings: Findings) -> str:
  if not findings.grids:
    return ""
  figures = [
    f"<figure>{_picture(np.asarray(Image.open(path).convert('RGB')), 2)}"
    f"<figcaption>step {int(path.stem.rpartition('_')[2])}</figcaption>"
    "</figure>"
    for path in findings.grids
  ]
  return (
    "<h2>The same captions while it learnt</h2>"
    f"<div class='strip'>{''.join(figures)}</div>"
  )


def _scripts(findings: Findings) -> str:
  figures = []
  for script, word, picture in findings.sheet:
    font = _font(script)
    figures.append(
      f"<figure>{_picture(picture, 1)}<figcaption>{_text(script)}: "
      f"<bdi>{_text(word)}</bdi><br>{_text(font)}</figcaption></figure>"
    )
  skipped = (
    "None was skipped."
    if not findings.skipped_scripts
    else (
      f"Skipped, for want of a font: {', '.join(findings.skipped_scripts)}; "
      "<code>python tools/fetch_fonts.py</code> gets them on Debian, without "
      "root."
    )
  )
  drawn, rejected = (
    sum(ledger[name] for ledger in findings.ledgers)
    for name in ("accepted", "rejected")
  )
  return (
    f"<h2>Scripts that can be drawn here: {len(findings.scripts)}</h2>"
    "<p>Real words, shaped by HarfBuzz and drawn by the task "
    f"<code>typography_words</code>. {skipped} For this report {drawn} strings "
    f"were drawn; {rejected} were rejected for a missing glyph or for want of "
    f"room.</p>{''.join(figures)}"
  )


def _font(script: str) -> str:
  if script in (words.COMMON, words.UNKNOWN):
    return ""
  font = fonts.fonts_for(script)[0]
  return f"{pathlib.Path(font.path).stem}, {font.licence or 'unknown licence'}"


def _next(findings: Findings) -> str:
  folder = findings.model_dir
  text = findings.readings[0].text
  return (
    "<h2>Go on from here</h2><pre>"
    + _text(
      "# longer: the same command with more steps goes on from the last one\n"
      f"{findings.command} --gin.TRAIN_STEPS=20000\n\n"
      "# draw something\n"
      f"byt5-diffusion generate '{text}' --model_dir {folder} --out x.png\n\n"
      "# your own images, with captions in .txt files beside them\n"
      "see README.md: Your own pictures"
    )
    + "</pre>"
  )


# --- Pieces ------------------------------------------------------------------


def _text(text: object) -> str:
  return html.escape(str(text))


def _percent(value: float | None) -> str:
  return "-" if value is None else f"{value:.0%}"


def _picture(image: np.ndarray, scale: int) -> str:
  png = io.BytesIO()
  Image.fromarray(image).save(png, "PNG")
  data = base64.b64encode(png.getvalue()).decode("ascii")
  height, width = image.shape[0] * scale, image.shape[1] * scale
  return (
    f"<img src='data:image/png;base64,{data}' width='{width}' "
    f"height='{height}' alt=''>"
  )
