"""Typography of phrases: lines in 107 languages, drawn while the run goes on.

  kind                 pictures
  typography_phrases   one to three strings, in any style of the fonts here

Behind the kind stand "built_in" (its own strings, data/writing/phrases.py) or
the user's texts (plain text or mC4's JSON lines, data/writing/corpora.py), then
the size:

  typography_phrases:built_in@256x256             to draw
  typography_phrases_annotated:built_in@256x256   boxes, a mask, style numbers
  typography_phrases_reading:built_in@256x16      256 patches of 16 x 16
  typography_phrases:/data/mc4/c4-*.json.gz@256x256

Options, each as "+name=value" behind the size: height and width (of what is
drawn, 256 each, before it is fitted), max_strings, max_words, max_bytes,
captions (mixed, text, described), boxes (all, line, word, glyph), colors
(named, any, black), vertical (share), min_size, smallest, largest, language,
max_megabytes, num_train, num_validation. docs/data/typography.md says more.

T5X and other programs that know SeqIO's names only register one by `task`.
"""

from byt5_diffusion.data import (
  seqio_tasks,
  supplies,
)
from byt5_diffusion.data.writing import typography_phrases

TABLE = {
  typography_phrases.NAME: supplies.Kind(typography_phrases.open_phrases)
}


def register(name: str) -> str:
  """Registers what a name says; returns SeqIO's name of the task."""
  return seqio_tasks.register(TABLE, name)


def task(name: str) -> str:
  """As register: what gin files call."""
  return register(name)
