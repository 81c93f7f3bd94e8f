"""DocVQA's questions about pages (Mathew et al. 2021), and their answers.

  [spdocvqa_qas/]train_v1.0_withQT.json, val_v1.0..., test_v1.0...
  documents/<page>.png or spdocvqa_images/<page>.png

A file is {"data": [{"questionId", "question", "image": "documents/<page>.png",
"answers": [...], ...}]}. The page's OCR is the data set's own reader's work and
isn't needed: the answer is to be read from the picture, above which the
question is written (Lee et al. 2023, section 3.2).
"""

import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from byt5_diffusion import feature_converters
from byt5_diffusion.data import (
  annotated,
  images,
  text,
)
from byt5_diffusion.data.rows import json_stream
from byt5_diffusion.data.sets import documents
from byt5_diffusion.data.writing import paragraphs

NAME = "docvqa"
_QUESTIONS = ("", "spdocvqa_qas", "qas")
_PICTURES = ("", "spdocvqa_images", "documents", "images")
_MAX_ANSWERS = 100
_MAX_CHARACTERS = 2000  # Of a question or an answer.
# Of the question's letters, in shares of the page's width, and in pixels.
_LETTERS, _LEAST = 1 / 45, 10.0
_MARGIN = 0.5  # Of a letter's size.
_MAX_LINES = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Questions:
  """Questions of one split that have an answer.

  Attributes:
    name: of the file.
    folder: of the data set.
    records: (questionId, question, picture, answers); a BadImage instead of one
      that cannot be used.
  """

  name: str
  folder: pathlib.Path
  records: tuple["Record | images.BadImage", ...]

  def __len__(self) -> int:
    return len(self.records)

  @functools.cached_property
  def fingerprint(self) -> str:
    made = hashlib.sha256()
    for record in self.records:
      made.update(repr(record).encode("utf-8", "surrogatepass"))
    return made.hexdigest()[:16]


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
  """A question, which names itself for good, and all its right answers."""

  key: str
  question: str
  picture: str
  answers: tuple[str, ...]


def open_docvqa(folder: pathlib.Path) -> dict[str, Questions]:
  """{split: questions}; a split without answers (test) is left out.

  Raises:
    ValueError: there are no files of questions.
  """
  found: dict[str, Questions] = {}
  for file in _files(folder):
    split = documents.SPLITS.get(file.stem.partition("_")[0], "")
    records = tuple(_records(file))
    if split in found:
      raise ValueError(
        f"{folder}: {found[split].name} and {file.name} are both of the split "
        f"{split!r}; keep one of them."
      )
    if records:
      found[split] = Questions(name=file.name, folder=folder, records=records)
  if not found:
    raise ValueError(
      f"{folder}: has no questions with answers: expected "
      "train_v1.0_withQT.json or val_v1.0_withQT.json."
    )
  return found


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
  for place in _QUESTIONS:
    if files := sorted((folder / place).glob("*.json")):
      return files
  return []


def _records(file: pathlib.Path) -> Iterator[Record | images.BadImage]:
  seen = set()
  for _, element in json_stream.elements(file, ("data",)):
    if not isinstance(element, dict):
      yield images.BadImage(file.name, "a question that is no object")
      continue
    if "answers" not in element:
      continue  # Of the test split, whose answers are kept back.
    number = element.get("questionId")
    where = f"{file.name}: question {str(number)[:50]}"
    if type(number) not in (int, str) or number in seen:
      yield images.BadImage(where, "a question without an id of its own")
      continue
    seen.add(number)
    yield _record(element, f"{NAME}/{number}", where)


def _record(
  element: Mapping[str, Any], key: str, where: str
) -> Record | images.BadImage:
  question, picture = element.get("question"), element.get("image")
  answers = element["answers"]
  if not isinstance(question, str) or not question.strip():
    return images.BadImage(where, "a question without words")
  if len(question) > _MAX_CHARACTERS:
    return images.BadImage(
      where, f"a question of more than {_MAX_CHARACTERS} characters"
    )
  if not isinstance(picture, str):
    return images.BadImage(where, "a question without a picture")
  if (
    not isinstance(answers, list)
    or not 0 < len(answers) <= _MAX_ANSWERS
    or not all(_is_answer(x) for x in answers)
  ):
    return images.BadImage(where, "a question without answers")
  return Record(
    key=key,
    question=" ".join(text.to_text(question).split()),
    picture=picture,
    answers=tuple(" ".join(text.to_text(x).split()) for x in answers),
  )


def _is_answer(value: Any) -> bool:
  return (
    isinstance(value, str)
    and 0 < len(value) <= _MAX_CHARACTERS
    and bool(value.strip())
  )


def picture_of(folder: pathlib.Path, name: str) -> pathlib.Path:
  """The file of a page, wherever the archives have put it."""
  bare = pathlib.PurePosixPath(name).name
  tried = [documents.inside(folder, name)]
  tried += [documents.inside(folder, f"{p}/{bare}") for p in _PICTURES if p]
  return next((path for path in tried if os.path.isfile(path)), tried[0])


def make(folder: pathlib.Path, record: Record) -> annotated.Annotated:
  """The page below its question, and the first of the answers.

  Raises:
    images.BadImage: the picture cannot be used.
  """
  page = images.decode_image(picture_of(folder, record.picture))
  above = header(record.question, page.shape[1])
  question = annotated.Region(
    box=(0.0, 0.0, float(page.shape[1]), float(len(above))),
    label="question",
    text=record.question,
  )
  return annotated.Annotated(
    key=record.key,
    image=np.concatenate([above, page]),
    text=record.answers[0],
    regions=(question,),
  )


def header(question: str, width: int) -> np.ndarray:
  """The question in lines, uint8 [H, width, 3], any script."""
  size = max(_LEAST, width * _LETTERS)
  margin = round(size * _MARGIN)
  inner = paragraphs.draw(
    question, max(width - 2 * margin, 16), size, max_lines=_MAX_LINES
  )[:, :width]
  left = (width - inner.shape[1]) // 2
  right = width - inner.shape[1] - left
  return np.pad(
    inner, ((margin, margin), (left, right), (0, 0)), constant_values=255
  )


def answers(folder: str) -> dict[str, tuple[str, ...]]:
  """{example_id as 16 hexadecimal digits: all right answers of a question}.

  As readings.jsonl names examples: what an ANLS score needs.
  """
  found = {}
  for questions in open_docvqa(pathlib.Path(folder)).values():
    for record in questions.records:
      if isinstance(record, Record):
        words = feature_converters.example_id(record.key)
        found["".join(f"{x:08x}" for x in words)] = record.answers
  return found
