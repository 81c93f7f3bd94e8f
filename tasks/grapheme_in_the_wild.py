"""Text in photographs: words, lines and whole scenes (data/sets/scene_text.py).

  grapheme_words:/data/hiertext@32x128             words, cut out upright
  grapheme_words_reading:/data/hiertext@64x16      the same, to be read
  grapheme_lines_reading:/data/hiertext@128x16     lines (HierText)
  grapheme_scenes:/data/textocr@256x256            photos; captions quote them
  grapheme_scenes_annotated:/data/mlt19@256x256    with boxes, mask, language

The folder holds the annotations of HierText, TextOCR, COCO-Text, MLT17 or 19,
ICDAR15, Total-Text or Street View Text, and the pictures. Options:

  +format=mlt         what the annotations are, if they are not recognised
  +images=/photos     the pictures' folder, if it is another one
  +hidden=false       scenes: leave illegible writing as it is
  +max_quotes=1       scenes: strings in a caption
  +max_bytes=500      leave longer texts out

docs/data/scene_text.md says what is left out, and why.
"""

from byt5_diffusion.data import (
  seqio_tasks,
  supplies,
)
from byt5_diffusion.data.sets import scene_text

TABLE = {
  "grapheme_words": supplies.Kind(scene_text.words),
  "grapheme_lines": supplies.Kind(scene_text.lines),
  "grapheme_scenes": supplies.Kind(scene_text.scenes),
}


def register(name: str) -> str:
  """Registers the task that a name says; other names as they are."""
  return seqio_tasks.register(TABLE, name)


def task(name: str) -> str:
  """SeqIO's name of a task, for other programs' gin files."""
  return register(name)
