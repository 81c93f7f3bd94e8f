"""The whole road on one machine: `make demo`.

Renders words, trains gin/experiments/tiny.gin from nothing, is killed on the
way and goes on, trains a reader (gin/experiments/tiny_ocr.gin), draws strings
that training never saw, reads them back and writes one report.html. Every
figure in it is measured in the run.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import tqdm

from byt5_diffusion import (
  checkpoints,
  config,
  feature_converters,
  inference,
  reading,
  report,
  spelling,
)
from byt5_diffusion import main as main_lib
from byt5_diffusion.data import (
  pipeline,
  rejections,
  text,
)
from byt5_diffusion.data.writing import (
  fonts,
  words,
)

RECIPE = "experiments/tiny.gin"
READER_RECIPE = "experiments/tiny_ocr.gin"
TASK_MODULE = "byt5_diffusion.tasks.typography"
# Real words of every script, drawn to show what can be drawn.
WORDS_TASK = "typography_words"
WORDS_LENGTHS = {"image": 64, "text_tokens": 128, "example_id": 2}
WORDS_TO_DRAW = 512
BATCH_SIZE = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
  """How much of everything a demo does.

  Attributes:
    bindings: gin bindings on top of the recipe.
    reader_bindings: those of the reader's recipe.
    kill_at: step after which the first process is killed.
    num_samples: held-out strings to draw.
    num_pictures: examples read for the nearest-picture reader to choose from.
  """

  bindings: tuple[str, ...] = ()
  reader_bindings: tuple[str, ...] = ("TRAIN_STEPS=1500",)
  kill_at: int = 600
  num_samples: int = 192
  num_pictures: int = 16384


SIZES = {
  "default": Size(),
  # The same road in a minute or two; nothing is learnt in so few steps.
  "ci": Size(
    bindings=(
      "TRAIN_STEPS=60",
      "WARMUP_STEPS=10",
      "CHECKPOINT_PERIOD=20",
      "EVAL_PERIOD=30",
      "SAMPLE_PERIOD=30",
      "trainer.train.log_period=10",
    ),
    reader_bindings=(
      "TRAIN_STEPS=40",
      "EVAL_PERIOD=40",
      "trainer.train.log_period=20",
    ),
    kill_at=20,
    num_samples=64,
    num_pictures=1024,
  ),
}


def run(output_dir: pathlib.Path, size: Size) -> pathlib.Path:
  """Does it all; returns the report's path."""
  started = time.monotonic()
  model_dir, reader_dir = output_dir / "run", output_dir / "reader"
  command = train_command(RECIPE, model_dir, size.bindings)
  # A mistake in the recipe is said before anything is drawn.
  program = config.parse(
    [RECIPE], [f"MODEL_DIR={str(model_dir)!r}", *size.bindings]
  )
  say("1/5  Rendering words of every script through the SeqIO task")
  sheet = word_sheet()
  say("2/5  Training; the process is killed once, and the command goes on")
  training = train_with_a_kill(command, model_dir, size.kill_at)
  say("3/5  Training a reader of the same pictures")
  reader_seconds = train_reader(reader_dir, size.reader_bindings)
  say("4/5  Drawing strings that training never saw")
  unseen = read_task(program, "validation", size.num_pictures // 4)
  pictures = read_task(program, "train", size.num_pictures) | unseen
  targets = held_out(unseen, size.num_samples)
  generator = inference.Generator.from_model_dir(
    str(model_dir), batch_size=BATCH_SIZE
  )
  drawn = generator.generate(list(targets), progress=True)
  say("5/5  Reading them back")
  reader = reading.Reader.from_model_dir(str(reader_dir), batch_size=BATCH_SIZE)
  readings = read_back(targets, drawn, pictures, reader)
  findings = report.Findings(
    readings=readings,
    sheet=sheet,
    scripts=fonts.available_scripts(words.Words().scripts),
    skipped_scripts=sorted(
      set(words.Words().scripts) - set(fonts.available_scripts())
    ),
    ledgers=[ledger.summary() for ledger in rejections.ledgers()],
    num_pictures=len(pictures),
    metrics=read_metrics(model_dir / "metrics.jsonl"),
    grids=sorted((model_dir / "samples").glob("step_*.png")),
    parameters=sum(x.size for x in jax.tree.leaves(generator.params)),
    training=training,
    reader_parameters=sum(x.size for x in jax.tree.leaves(reader.params)),
    reader_steps=reader.step,
    reader_seconds=reader_seconds,
    total_seconds=time.monotonic() - started,
    machine=machine(),
    command=shlex.join(command),
    model_dir=model_dir,
  )
  path = output_dir / "report.html"
  path.write_text(report.html_of(findings), encoding="utf-8")
  return path


def say(text: str) -> None:
  """A heading on the console."""
  print(f"\n== {text}", file=sys.stderr, flush=True)


def _bar(*arguments: Any, **keywords: Any) -> Any:
  """A progress bar on a terminal; elsewhere the headings do."""
  return tqdm.tqdm(*arguments, disable=None, **keywords)


# --- Rendering ---------------------------------------------------------------


def word_sheet() -> list[tuple[str, str, np.ndarray]]:
  """(script, word, picture) for the first word of each script."""
  data = pipeline.open_data(
    mixture_or_task_name=WORDS_TASK,
    mixture_or_task_module=TASK_MODULE,
    task_feature_lengths=WORDS_LENGTHS,
    split="validation",
    shuffle=False,
    num_epochs=1,
    batch_size=BATCH_SIZE,
  )
  found: dict[str, tuple[str, str, np.ndarray]] = {}
  with _bar(total=WORDS_TO_DRAW, desc="drawing", unit="word") as bar:
    for batch in data:
      images = feature_converters.to_pixels(batch["images"])
      for row, image in zip(batch["text_tokens"], images, strict=True):
        word = text.decode(row)
        script = words.script_of(word)
        found.setdefault(script, (script, word, image))
      bar.update(len(images))
      if bar.n >= WORDS_TO_DRAW:
        break
  return [found[script] for script in sorted(found)]


def read_task(program: Any, split: str, count: int) -> dict[str, np.ndarray]:
  """{text: picture} of about `count` examples of the recipe's task."""
  data = pipeline.open_data(
    mixture_or_task_name=program.macro("MIXTURE_OR_TASK_NAME"),
    mixture_or_task_module=program.macro("MIXTURE_OR_TASK_MODULE"),
    task_feature_lengths=program.macro("TASK_FEATURE_LENGTHS"),
    split=split,
    shuffle=False,
    num_epochs=1,
    batch_size=BATCH_SIZE,
  )
  pictures: dict[str, np.ndarray] = {}
  for _, batch in zip(range(-(-count // BATCH_SIZE)), data, strict=False):
    images = feature_converters.to_pixels(batch["images"])
    for row, image in zip(batch["text_tokens"], images, strict=True):
      pictures[text.decode(row)] = image
  return pictures


def held_out(
  pictures: dict[str, np.ndarray], count: int
) -> dict[str, np.ndarray]:
  """About `count` of the pictures, as many of each script."""
  by_script: dict[str, list[str]] = {}
  for string in pictures:
    by_script.setdefault(words.script_of(string), []).append(string)
  share = -(-count // len(by_script))
  chosen = [s for _, row in sorted(by_script.items()) for s in row[:share]]
  return {string: pictures[string] for string in chosen}


# --- Training ----------------------------------------------------------------


def train_command(
  recipe: str, model_dir: pathlib.Path, bindings: Sequence[str]
) -> list[str]:
  """The command that a user would type."""
  return [
    os.path.relpath(sys.executable)
    if not os.path.relpath(sys.executable).startswith("..")
    else sys.executable,
    "-m",
    "byt5_diffusion.main",
    "--run_mode=train",
    f"--gin_file={recipe}",
    f"--gin.MODEL_DIR={str(model_dir)!r}",
    *(f"--gin.{binding}" for binding in bindings),
  ]


def train_with_a_kill(
  command: Sequence[str], model_dir: pathlib.Path, kill_at: int
) -> report.Training:
  """Trains, kills the process without warning, and runs the command again.

  Raises:
    RuntimeError: the command failed by itself.
  """
  started = time.monotonic()
  killed_at = None
  before = checkpoints.committed_steps(model_dir)
  if not before:  # A demo that is run again goes on, without a second kill.
    process = subprocess.Popen(command)
    while process.poll() is None:
      time.sleep(0.2)
      steps = checkpoints.committed_steps(model_dir)
      if steps and steps[-1] >= kill_at:
        process.kill()
        killed_at = steps[-1]
        break
    if process.wait() != 0 and killed_at is None:
      raise RuntimeError(f"training failed: {shlex.join(command)}")
    if killed_at is not None:
      say(f"Killed after step {killed_at} was saved; the same command again")
  if (before or killed_at is not None) and subprocess.call(command):
    raise RuntimeError(f"training failed: {shlex.join(command)}")
  return report.Training(
    seconds=time.monotonic() - started, killed_at=killed_at
  )


def train_reader(model_dir: pathlib.Path, bindings: Sequence[str]) -> float:
  """Trains it, or goes on; returns the seconds that it took.

  Raises:
    RuntimeError: the command failed.
  """
  started = time.monotonic()
  command = train_command(READER_RECIPE, model_dir, bindings)
  if subprocess.call(command):
    raise RuntimeError(f"training failed: {shlex.join(command)}")
  return time.monotonic() - started


def read_metrics(path: pathlib.Path) -> dict[str, dict[int, float]]:
  """{name: {step: value}}; of a step written twice the later one counts."""
  metrics: dict[str, dict[int, float]] = {}
  for line in path.read_text("utf-8").splitlines():
    record = json.loads(line)
    for name, value in record.items():
      if isinstance(value, float | int) and name not in ("step", "time"):
        metrics.setdefault(name, {})[record["step"]] = value
  return metrics


# --- Reading -----------------------------------------------------------------


def read_back(
  targets: dict[str, np.ndarray],
  drawn: np.ndarray,
  pictures: dict[str, np.ndarray],
  reader: reading.Reader,
) -> list[report.Reading]:
  """What each reader makes of the drawn images and of their targets."""
  nearest_reader = spelling.NearestReader(
    np.stack(list(pictures.values())), list(pictures)
  )
  heads = [
    [one.text for one in reader.read(list(images))]
    for images in (drawn, targets.values())
  ]
  nearest = [
    # Latin a and Cyrillic а are one picture: either reading is right.
    string if np.array_equal(pictures[read], target) else read
    for read, (string, target) in zip(
      nearest_reader.read(drawn), targets.items(), strict=True
    )
  ]
  readings = [
    report.Reading(
      text=string,
      script=words.script_of(string),
      target=target,
      drawn=image,
      nearest=read,
      head_of_drawn=of_drawn,
      head_of_target=of_target,
    )
    for (string, target), image, read, of_drawn, of_target in zip(
      targets.items(), drawn, nearest, *heads, strict=True
    )
  ]
  available = spelling.tesseract_models()
  for i, row in enumerate(_bar(readings, desc="Tesseract", unit="image")):
    if spelling.TESSERACT_MODELS.get(row.script) in available:
      tesseract = spelling.TesseractReader(row.script)
      of_drawn, of_target = tesseract.read(np.stack([row.drawn, row.target]))
      readings[i] = dataclasses.replace(
        row, tesseract_of_drawn=of_drawn, tesseract_of_target=of_target
      )
  return readings


def machine() -> str:
  """The machine in words."""
  cores = len(os.sched_getaffinity(0))
  return (
    f"{cores} cores of {platform.machine()}, Python "
    f"{platform.python_version()}, jax {jax.__version__}, "
    f"{jax.default_backend()}"
  )


def main(arguments: Sequence[str] | None = None) -> int:
  """`python -m byt5_diffusion.demo`."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--output_dir", type=pathlib.Path, default="demo")
  parser.add_argument("--size", choices=sorted(SIZES), default="default")
  flags = parser.parse_args(arguments)
  main_lib.set_up_logging()
  flags.output_dir.mkdir(parents=True, exist_ok=True)
  path = run(flags.output_dir, SIZES[flags.size])
  say(f"Done: open {path}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
