"""Handwriting: old Japanese books, single Kuzushiji, and other manuscripts.

  kuzushiji_characters:/data/codh@64x64           characters, cut out of pages
  kuzushiji_lines_reading:/data/codh@128x16       vertical columns, to be read
  kuzushiji_pages_annotated:/data/codh@512x512    pages with boxes and mask
  kmnist:/data/kmnist@32x32                       KMNIST, K49, Kuzushiji-Kanji
  handwriting_lines_reading:/data/muharaf@256x16  lines of PAGE-XML, or IAM's
  handwriting_words_reading:/data/iam@64x16       words of IAM's words.txt
  handwriting_pages:/data/muharaf@512x512         whole pages

kuzushiji_*: a folder of CODH's books, or of kuzushiji-recognition. Options:

  +images=/photos     the pictures' folder, if it is another one
  +language=ar        handwriting_*: of all that is written
  +max_bytes=500      leave longer texts out
  +margin=0.1         around what is cut out, in shares of its shorter side
  +invert=false       kmnist: white ink on black, as it is stored

docs/data/calligraphy.md says what is left out, and why.
"""

from byt5_diffusion.data import (
  seqio_tasks,
  supplies,
)
from byt5_diffusion.data.sets import (
  handwriting,
  kmnist,
  kuzushiji,
)

TABLE = {
  "kuzushiji_characters": supplies.Kind(kuzushiji.glyphs),
  "kuzushiji_lines": supplies.Kind(kuzushiji.lines),
  "kuzushiji_pages": supplies.Kind(kuzushiji.pages),
  "kmnist": supplies.Kind(kmnist.characters),
  "handwriting_words": supplies.Kind(handwriting.words),
  "handwriting_lines": supplies.Kind(handwriting.lines),
  "handwriting_pages": supplies.Kind(handwriting.pages),
}


def register(name: str) -> str:
  """Registers the task that a name says; other names as they are."""
  return seqio_tasks.register(TABLE, name)


def task(name: str) -> str:
  """SeqIO's name of a task, for other programs' gin files."""
  return register(name)
