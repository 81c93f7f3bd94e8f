"""Pictures of the web with their captions (data/sets/laion.py).

  laion_high_resolution:/data/laion@256x256            images to draw
  laion_high_resolution:/data/laion@256x256crop        the same, cropped
  laion_high_resolution_annotated:/data/laion@256x256  with the language

The folder is what `byt5-diffusion download` made of LAION's list. Options:

  +max_pwatermark=0.6  +max_punsafe=0.1                LAION says 0.8 and 0.5
  +min_similarity_en=0.3  +min_similarity_other=0.28   0.28 and 0.26
  +min_side=512  +max_aspect=2                         200 and 3
  +min_confidence=0.5    of the language, where LAION has found none
  +max_occurrences=0     of a caption in the data set: 10, 0 does not count
  +aesthetic_v1=7        the lowest score, of LAION's first predictor,
  +aesthetic_v2=5        or of its second one: their scales differ
  +keep_unscored=true    keep what no detector has seen
  +identifier=cld3       of languages
  +validation_share=0.01

docs/data/laion.md says what is left out, and why.
"""

from byt5_diffusion.data import (
  seqio_tasks,
  supplies,
)
from byt5_diffusion.data.sets import laion

TABLE = {
  "laion_high_resolution": supplies.Kind(
    laion.open_laion, ("", supplies.ANNOTATED)
  ),
}


def register(name: str) -> str:
  """Registers the task that a name says; other names as they are."""
  return seqio_tasks.register(TABLE, name)


def task(name: str) -> str:
  """SeqIO's name of a task, for other programs' gin files."""
  return register(name)
