"""Reading pictures: a trained run's folder is all that is needed.

`Reader.from_model_dir(folder).read(images)` is the library's door, `read_data`
the program that reads a data set and scores what it read, script by script. It
works for every model that reads (contract.Reads): one that only reads, and one
that draws and reads.
"""

import collections
import dataclasses
import functools
import itertools
import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tqdm

from byt5_diffusion import (
  confidence,
  contract,
  evaluation,
  feature_converters,
  layout_scores,
  spelling,
  telemetry,
  trained,
  variables,
)
from byt5_diffusion import partitioning as partitioning_lib
from byt5_diffusion.data import (
  batch_view,
  images,
  patches,
  text,
)
from byt5_diffusion.data.sets import layout_text
from byt5_diffusion.data.writing import words

PyTree = Any
Batch = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
  """What was read in one picture.

  Attributes:
    text: always valid Unicode.
    confidence: probability of the whole text, its end included.
    characters: each grapheme cluster with its probability.
  """

  text: str
  confidence: float
  characters: tuple[tuple[str, float], ...]


def to_reading(tokens: np.ndarray, log_probs: np.ndarray) -> Reading:
  """One row of decoding.Decoded as text."""
  return Reading(
    text=text.decode(tokens),
    confidence=math.exp(min(float(np.sum(log_probs)), 0.0)),
    characters=tuple(confidence.character_confidences(tokens, log_probs)),
  )


def make_read_step(model: contract.Reads) -> Callable[..., Any]:
  """A jitted (params, frozen, batch) -> decoding.Decoded."""

  @functools.partial(jax.jit, static_argnames="beam_size")
  def read_step(
    params: PyTree, frozen: PyTree, batch: PyTree, beam_size: int | None = None
  ) -> Any:
    return model.read(params, batch, flax_mutables=frozen, beam_size=beam_size)

  return read_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reader(trained.Trained):
  """A model that reads, with its weights."""

  @classmethod
  def check(cls, model: Any, where: str) -> None:
    """Raises ValueError for a model that does not read."""
    if not isinstance(model, contract.Reads):
      raise ValueError(
        f"{where}: this model draws, but does not read. Train one with "
        "models/ocr.gin (reads) or models/joint.gin (draws and reads)."
      )

  @functools.cached_property
  def _read(self) -> Callable[..., Any]:
    return make_read_step(self.model)

  def read(
    self,
    pictures: Sequence[np.ndarray],
    *,
    beam_size: int | None = None,
    progress: bool = False,
  ) -> list[Reading]:
    """Reads pictures uint8 [H, W, 3] of any sizes.

    A picture is brought to what the model reads: to patches with its own
    proportions, or, by a model of pictures of one size, to that size, centred.
    """
    if not len(pictures):
      raise ValueError("read() needs at least one picture.")
    if beam_size is not None and beam_size < 1:
      raise ValueError(f"{beam_size=} must be positive.")
    rows = [self._fit(picture) for picture in pictures]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return self.read_batch(batch, beam_size=beam_size, progress=progress)

  def _fit(self, picture: np.ndarray) -> dict[str, np.ndarray]:
    if (
      picture.dtype != np.uint8
      or picture.ndim != 3
      or picture.shape[2] != 3
      or not picture.size
    ):
      raise ValueError(
        f"a picture must be uint8 [H, W, 3], found {picture.dtype} of shape "
        f"{picture.shape}."
      )
    shapes = self.model.input_shapes()
    if "patches" in shapes:
      _, count, width = shapes["patches"]
      side = math.isqrt((width - 2) // 3)
      found = patches.fit(picture, side, count)
      return {"patches": np.pad(found, ((0, count - len(found)), (0, 0)))}
    _, height, width, _ = shapes["images"]
    fitted = images.fit(picture, height, width, "pad")
    return {"images": feature_converters.PIXELS[fitted]}

  def read_batch(
    self,
    batch: Batch,
    *,
    beam_size: int | None = None,
    progress: bool = False,
  ) -> list[Reading]:
    """Reads rows of "patches" or "images" as the model's batches have them."""
    names = set(batch) & {"patches", "images"}
    pictures = {name: np.asarray(batch[name]) for name in names}
    count = len(next(iter(pictures.values())))
    found: list[Reading] = []
    for start in tqdm.tqdm(
      range(0, count, self.batch_size),
      "reading",
      disable=None if progress else True,
    ):
      # The last batch is filled up: shapes are compiled once.
      rows = np.arange(start, start + self.batch_size) % count
      part = {name: x[rows] for name, x in pictures.items()}
      decoded = jax.device_get(
        self._read(self.params, self.frozen, part, beam_size=beam_size)
      )
      found += map(to_reading, decoded.tokens, decoded.log_probs)
    return found[:count]


# --- Scores ------------------------------------------------------------------


def scores(
  targets: Sequence[str], readings: Sequence[str]
) -> dict[str, dict[str, float]]:
  """{script or "all": count, character_error_rate, exact_match}.

  Both are of letters (grapheme clusters) of the NFC text; texts without any
  letter are left out.
  """
  rows: dict[str, list[tuple[str, str]]] = collections.defaultdict(list)
  for target, reading in zip(targets, readings, strict=True):
    if spelling.letters(target):
      rows[words.script_of(target)].append((target, reading))
      rows["all"].append((target, reading))
  found = {}
  for script in [*sorted(rows.keys() - {"all"}), *(["all"] if rows else [])]:
    wanted, read = zip(*rows[script], strict=True)
    found[script] = {
      "count": len(wanted),
      "character_error_rate": spelling.character_error_rate(wanted, read),
      "exact_match": spelling.exact_match(wanted, read),
    }
  return found


def read_by_tesseract(
  targets: Sequence[str], pictures: Sequence[np.ndarray]
) -> list[str | None]:
  """Tesseract's readings, with each target's script's model told to it.

  None where this machine has no model for the script.
  """
  installed = spelling.tesseract_models()
  scripts = [words.script_of(target) for target in targets]
  readers = {
    script: spelling.TesseractReader(script)
    for script in set(scripts)
    if spelling.TESSERACT_MODELS.get(script) in installed
  }
  return [
    readers[script].read(picture[None])[0] if script in readers else None
    for script, picture in tqdm.tqdm(
      list(zip(scripts, pictures, strict=True)), "Tesseract", disable=None
    )
  ]


# --- The program -------------------------------------------------------------


def read_data(
  *,
  model: Any,
  read_data: Callable[..., Any],
  checkpoint_path: str,
  output_dir: str,
  batch_size: int,
  partitioning: partitioning_lib.Partitioning,
  num_examples: int | None = None,
  step: int | None = None,
  use_ema: bool = True,
  beam_size: int | None = None,
  compare_with_tesseract: bool = True,
  answers: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
  """Reads a data set's pictures; writes readings.jsonl and scores.json.

  Args:
    model: meets contract.Model and contract.Reads.
    read_data: as trainer.train's train_data; finite.
    checkpoint_path: a run's MODEL_DIR.
    output_dir: gets readings.jsonl, one object per example, and scores.json.
    batch_size: pictures at a time.
    partitioning: one host's.
    num_examples: None reads the whole split.
    step: None is the last committed one.
    use_ema: read with the averaged parameters.
    beam_size: None is the model's.
    compare_with_tesseract: read the same pictures by Tesseract, where it is
      installed and knows the script.
    answers: {example_id: all right answers}, where one text has several
      (layout_scores.docvqa_answers): then "answers" has their ANLS.

  Returns:
    scores.json: {"step", "model": scores(..), "tesseract": scores(..)}; those
    of Tesseract are of the texts that it has a model for. Where all texts are
    layouts (data/sets/layout_text.py), "layout" has layout_scores.of_layouts.
  """
  telemetry.enable_compilation_cache()
  if partitioning.host_layout()[1] > 1:
    raise ValueError("read writes its files from one host; start it on one.")
  reader = Reader.restore(
    model, checkpoint_path, step=step, use_ema=use_ema, batch_size=batch_size
  )
  rows = list(itertools.islice(read_data(batch_size=1), num_examples))
  if not rows:
    raise ValueError("the data are empty: nothing was read.")
  evaluation.check_batch(model, variables.global_shapes(rows[0], 1))
  batch = {name: np.concatenate([r[name] for r in rows]) for name in rows[0]}
  targets = [text.decode(tokens) for tokens in batch["text_tokens"]]
  readings = reader.read_batch(batch, beam_size=beam_size, progress=True)
  by_tesseract: list[str | None] = [None] * len(targets)
  if compare_with_tesseract:
    pictures = [row.picture for row in batch_view.rows([batch])]
    by_tesseract = read_by_tesseract(
      targets, [p for p in pictures if p is not None]
    )
  names = [row.example_id for row in batch_view.rows([batch])]
  directory = pathlib.Path(output_dir).absolute()
  directory.mkdir(parents=True, exist_ok=True)
  with (directory / "readings.jsonl").open("w", encoding="utf-8") as out:
    for name, target, reading, other in zip(
      names, targets, readings, by_tesseract, strict=True
    ):
      record = {
        "example_id": name,
        "text": target,
        "reading": reading.text,
        "confidence": reading.confidence,
        "characters": reading.characters,
        "tesseract": other,
      }
      out.write(json.dumps(record, ensure_ascii=False) + "\n")
  compared = [
    (a, b) for a, b in zip(targets, by_tesseract, strict=True) if b is not None
  ]
  result = {
    "step": reader.step,
    "beam_size": beam_size or getattr(model, "beam_size", 1),
    "model": scores(targets, [reading.text for reading in readings]),
    "tesseract": scores([a for a, _ in compared], [b for _, b in compared]),
  }
  read = [reading.text for reading in readings]
  if all(map(layout_text.is_layout, targets)):
    result["layout"] = layout_scores.of_layouts(targets, read)
  if answers is not None:
    result["answers"] = layout_scores.of_answers(answers, read, names)
  (directory / "scores.json").write_text(json.dumps(result, indent=2) + "\n")
  return result
