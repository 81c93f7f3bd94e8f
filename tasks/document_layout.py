"""Documents: pages, their parts, their text, and questions about them.

  name                                              what a model learns
  document_layout_segmentation_reading:<path>@2048x16   page -> boxes as text
  document_layout:<path>@512x512                    caption -> page
  document_layout_annotated:<path>@512x512          the same, with boxes, mask
  document_layout_drawing:<path>@512x512            boxes and texts -> page
  document_ocr_reading:<path>@256x16                paragraph -> text
  document_question_reading:<path>@2048x16          page, question -> answer

<path> is a folder of DocLayNet, PubLayNet or FUNSD (which one, the folder's
layout says), of DocVQA for questions; docs/data/documents.md has the layouts,
the licences, and what the options are:

  +format=doclaynet  +split=train  +max_bytes=1023     all but questions
  +texts=true             segmentation: boxes with what is written in them
  +unit=page|region|line  ocr: what a picture shows
  +max_quote=80           layout and drawing: longer texts are not quoted

T5X's gin files say `MIXTURE_OR_TASK_NAME = @document_layout.task()` and
`document_layout.task.name = "document_ocr_reading:..."`.
"""

from byt5_diffusion.data import (
  seqio_tasks,
  supplies,
)
from byt5_diffusion.data.sets import document_supplies

_DRAWN = ("", supplies.ANNOTATED)
_READ = (supplies.READING,)
_ALL = ("", supplies.READING, supplies.ANNOTATED)

TABLE = {
  "document_layout_segmentation": supplies.Kind(
    document_supplies.segmentation, _READ
  ),
  "document_layout_drawing": supplies.Kind(document_supplies.drawing, _DRAWN),
  "document_layout": supplies.Kind(document_supplies.layout, _DRAWN),
  "document_ocr": supplies.Kind(document_supplies.ocr, _ALL),
  "document_question": supplies.Kind(document_supplies.question, _READ),
}


def register(name: str) -> str:
  """SeqIO's name of the task that a name above says; others as they are."""
  return seqio_tasks.register(TABLE, name)


def task(name: str) -> str:
  """As register, for gin files of programs that know SeqIO's names alone."""
  return register(name)
