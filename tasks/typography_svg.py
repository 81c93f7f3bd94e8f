"""Vector graphics with text: badges, logos, charts, maps, in 107 languages.

  kind                   pictures
  typography_svg         made up while the run goes on
  typography_svg_files   the user's own .svg files

Names are written as those of typography_layout (tasks/typography_layout.py):

  typography_svg:built_in@256x256+designs=badge,logo
  typography_svg_annotated:built_in@512x512
  typography_svg_reading:built_in@1024x16
  typography_svg_files:/data/drawings@512x512

The SVG of an example: made_vectors.MadeVectors().source(split, index, seed,
language).
"""

from byt5_diffusion.data import (
  seqio_tasks,
  supplies,
)
from byt5_diffusion.data.pages import (
  made_vectors,
  source_files,
)

TABLE = {
  "typography_svg": supplies.Kind(made_vectors.open_vectors),
  "typography_svg_files": supplies.Kind(source_files.open_svg),
}


def register(name: str) -> str:
  """Registers what a name says; returns SeqIO's name of the task."""
  return seqio_tasks.register(TABLE, name)


def task(name: str) -> str:
  """As register: what gin files call."""
  return register(name)
