"""From texts to the tokens that a run's model draws by.

A run keeps in its folder how its captions became tokens (data/captions.py);
whoever draws with it makes tokens of texts by the same function.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from byt5_diffusion import output_files
from byt5_diffusion.data import captions as captions_lib
from byt5_diffusion.data import pieces

Captions = captions_lib.Captions
BYT5_ONLY = captions_lib.BYT5_ONLY

# Keys of a batch that say what is to be drawn.
KEYS = ("text_tokens", "semantic_tokens")


def of_batch(batch: Mapping[str, Any]) -> dict[str, Any]:
  """The part of a batch that says what is to be drawn."""
  return {name: batch[name] for name in KEYS if name in batch}


def encode(
  model: Any, captions: Captions, texts: Sequence[str]
) -> dict[str, np.ndarray]:
  """Tokens of texts, as the model's data make them: {key: [N, length]}."""
  shapes = model.input_shapes()
  lengths = {name: shapes[name][1] for name in KEYS if name in shapes}
  return captions.encode_batch(texts, lengths)


def fitting(model: Any, captions: Captions | None, where: str) -> Captions:
  """The captions' way, checked against the model's; `where` is for messages.

  Args:
    model: meets contract.Draws; without a conditioning_mode it is byt5_only.
    captions: of data or of a run's folder; None: nothing is known, and nothing
      is wrong with a model that is byt5_only.
    where: whose captions they are.

  Raises:
    ValueError: another mode, no SentencePiece model where one is needed, or one
      with more pieces than the semantic encoder's vocabulary.
  """
  mode = getattr(model, "conditioning_mode", "byt5_only")
  captions = captions or captions_lib.BYT5_ONLY
  if captions.mode is None:  # The task's own affair.
    captions = dataclasses.replace(captions, mode=mode)
  if captions.mode != mode:
    raise ValueError(
      f"{where} are made for the conditioning mode {captions.mode!r}, the "
      f"model is {mode!r}: say it behind MIXTURE_OR_TASK_NAME (+quoted=<path> "
      "or +concat=<path> of a SentencePiece model), or include another "
      "models/conditioning_*.gin."
    )
  if captions.semantic is not None:
    rows = model.semantic_vocab_size
    if rows is not None and captions.semantic.size > rows:
      raise ValueError(
        f"{captions.semantic.name} has {captions.semantic.size} pieces, more "
        f"than the semantic encoder's vocab_size = {rows} (T5_VOCAB_SIZE)."
      )
  return captions


def of_data(model: Any, batches: Any) -> Captions:
  """How the captions of data.pipeline.Batches become tokens, checked."""
  return fitting(
    model, getattr(batches, "captions", None), "the data's captions"
  )


def load(model: Any, model_dir: str | os.PathLike[str]) -> Captions:
  """How a run's captions became tokens.

  A run of T5X's own trainer has no captions.json; the SentencePiece model put
  beside its model.gin as semantic.model is taken then.

  Raises:
    ValueError: what lies there does not fit the model, or is damaged.
  """
  folder = pathlib.Path(model_dir)
  captions = captions_lib.read(folder)
  mode = getattr(model, "conditioning_mode", "byt5_only")
  if mode != "byt5_only" and captions.semantic is None:
    path = folder / captions_lib.MODEL
    if not path.exists():
      raise ValueError(
        f"{folder} has no {captions_lib.RECORD}: this model is {mode!r} and "
        "needs the SentencePiece model that it was trained with. Copy it "
        f"(spiece.model) to {path}."
      )
    captions = Captions(mode=mode, semantic=pieces.read(path))
  return fitting(model, captions, f"the captions of {folder}")


def save(captions: Captions, directory: pathlib.Path) -> None:
  """Writes how captions become tokens into a run's folder.

  Raises:
    ValueError: the run was begun in another way.
  """
  before = captions_lib.read(directory)
  if before.semantic is not None and before != captions:
    raise ValueError(
      f"{directory} was begun with other tokens (mode {before.mode!r}, "
      f"{captions_lib.MODEL} {before.semantic.sha256[:12]}) than the data now "
      "give: go on with the SentencePiece model that it has."
    )
  if before == captions:
    return
  directory.mkdir(parents=True, exist_ok=True)
  for name, content in captions.files().items():
    output_files.write(directory / name, content)
