"""Pages of HTML and CSS in 107 languages: posters, signs, invoices, books...

  kind                      pictures
  typography_layout         made up while the run goes on
  typography_layout_files   the user's own .html files

Behind the kind stand "built_in" (its own words, data/writing/phrases.py), the
user's texts (data/writing/corpora.py) or the folder of .html files, then the
size:

  typography_layout:built_in@256x256+designs=sign,poster   to draw
  typography_layout_annotated:built_in@512x512             boxes, mask, style
  typography_layout_reading:built_in@2048x16               the page's text
  typography_layout_files:/data/pages@512x512

Options of pages that are made up: side (pixels of the longer side, 768),
designs, languages (names joined by commas), language, max_megabytes, num_train,
num_validation; of files: height, width (of the page), seconds,
validation_share, language. docs/data/pages.md says more.
"""

from byt5_diffusion.data import (
  seqio_tasks,
  supplies,
)
from byt5_diffusion.data.pages import (
  made_pages,
  source_files,
)

TABLE = {
  "typography_layout": supplies.Kind(made_pages.open_pages),
  "typography_layout_files": supplies.Kind(source_files.open_html),
}


def register(name: str) -> str:
  """Registers what a name says; returns SeqIO's name of the task."""
  return seqio_tasks.register(TABLE, name)


def task(name: str) -> str:
  """As register: what gin files call."""
  return register(name)
