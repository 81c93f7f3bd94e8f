"""Pictures of Wikipedia with captions in many languages (data/sets/wit.py).

  wit:/data/wit_base@256x256                        wikimedia/wit_base, parquet
  wit:/data/wit/*.tsv.gz@512x512+images=/data/wit_images    google/wit
  wit:/data/wit_kaggle/*.tfrecord*@256x256          TFDS's wit_kaggle
  wit_annotated:/data/wit_base@256x256              with the language

Options:

  +images=/data/wit_images   of google/wit: what `byt5-diffusion download` made
  +captions=reference        which of reference,alt_text,attribution; the first
                             one that a page has is taken
  +main_images_only=true     leave out what pages show further down
  +min_side=200  +max_aspect=2                      100 and 3
  +validation_share=0.02

docs/data/wit.md says what is left out, and why.
"""

from byt5_diffusion.data import (
  seqio_tasks,
  supplies,
)
from byt5_diffusion.data.sets import wit

TABLE = {"wit": supplies.Kind(wit.open_wit, ("", supplies.ANNOTATED))}


def register(name: str) -> str:
  """Registers the task that a name says; other names as they are."""
  return seqio_tasks.register(TABLE, name)


def task(name: str) -> str:
  """SeqIO's name of a task, for other programs' gin files."""
  return register(name)
