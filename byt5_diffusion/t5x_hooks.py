"""What T5X calls of ours, besides models, tasks and optimizers.

gin/runs/t5x_*.gin names these functions. T5X is not imported: it passes in all
that they need.
"""

import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from byt5_diffusion import feature_converters
from byt5_diffusion.data import pipeline, text

_CHUNK = re.compile(r"(?P<results>.+)-chunk(?P<number>\d+)")


def registered_task(name: str, module: str | None = None) -> str:
  """The name by which SeqIO knows `name`, once `module` has registered it.

  They differ where a name says more than SeqIO's may: a folder of pictures
  (tasks/image_caption_folder.py).

  Args:
    name: MIXTURE_OR_TASK_NAME.
    module: MIXTURE_OR_TASK_MODULE, imported first.
  """
  return pipeline.import_live(name).registered(name, module)


def only(name: str, source: str = "target") -> list[tuple[str, str | None]]:
  """T5X's assignment_map that fills one part of a state from a checkpoint.

  All else is left to fallback_to_scratch = True.

  Args:
    name: the part, e.g. "flax_mutables/frozen/text_encoder".
    source: where the checkpoint has it; "target" is a whole model.
  """
  part = re.escape(name)
  return [(rf"{part}/(.*)", rf"{source}/\1"), (rf"(?!{part}/).*", None)]


def write_predictions(
  path: str,
  inferences: tuple[Sequence[Any], Mapping[str, Any]],
  task_ds: Any,
  mode: str,
  vocabulary: Any = None,
) -> None:
  """T5X's write_fn: a line of JSON per example, pictures as PNG files.

  T5X joins the lines of all chunks in
  `<output_dir>/<task>-<mode>.jsonl-00000-of-00001`; the pictures are in the
  folder of that name plus "-images". A line has

    text         the caption
    example_id   its two numbers
    image        the PNG file that was drawn, relative to output_dir
    target       the PNG file of the task's picture, where it has one
    prediction   the text, of a model that reads
    score        of mode "score"
    aux          of mode "predict_with_aux": {"loss": ...} and the like

  Args:
    path: `<output_dir>/tmp-.../<name>-chunk<number>`, the file to write.
    inferences: what the model gave for every example of the chunk ([H, W, 3]
      in [-1, 1], tokens [L], or a score), and auxiliary values {name: [N]}.
    task_ds: the task's features, a tf.data.Dataset of one example each.
    mode: "predict", "predict_with_aux" or "score".
    vocabulary: unread; text is bytes.
  """
  del vocabulary
  outputs, aux = inferences
  file = pathlib.Path(path)
  match = _CHUNK.fullmatch(file.name)
  if match is None:
    raise ValueError(f"{path} does not end in -chunk and a number.")
  output_dir = file.parent.parent
  folder = output_dir / f"{match['results']}-images"
  with file.open("w", encoding="utf-8") as lines:
    for i, example in enumerate(task_ds.as_numpy_iterator()):
      record: dict[str, Any] = {
        "text": text.decode(example["text_tokens"]),
        "example_id": np.asarray(example["example_id"]).tolist(),
      }
      output = np.asarray(outputs[i])
      if mode == "score":
        record["score"] = float(output)
      elif output.ndim == 1:
        record["prediction"] = text.decode(output)
      else:
        pictures = {"image": feature_converters.to_pixels(output)}
        if "image" in example:
          pictures["target"] = example["image"]
        stem = folder / f"{match['number']}-{i:05d}"
        for name, picture in _write_pictures(stem, pictures).items():
          record[name] = os.path.relpath(picture, output_dir)
      if aux:
        record["aux"] = {
          name: np.asarray(values[i]).tolist() for name, values in aux.items()
        }
      lines.write(json.dumps(record, ensure_ascii=False) + "\n")


def _write_pictures(
  stem: pathlib.Path, pictures: Mapping[str, np.ndarray]
) -> dict[str, str]:
  """Writes <stem>.png and <stem>.target.png, uint8 [H, W, 3] each."""
  stem.parent.mkdir(parents=True, exist_ok=True)
  paths = {}
  for name, picture in pictures.items():
    suffix = ".png" if name == "image" else f".{name}.png"
    paths[name] = f"{stem}{suffix}"
    Image.fromarray(picture).save(paths[name])
  return paths
