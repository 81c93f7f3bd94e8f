"""Published prompts to draw, never to train on.

  drawtext:/data/drawtext@256x256
  wikispell:/data/wikispell@256x256+only=ko,th
  longtext:/data/longtext@512x512+categories=sign/short,poster/long

Pictures of this size are white: there is nothing to learn from, or to score a
loss by. The split is "test" (WikiSpell has more). `runs/infer_prompts.gin`
draws them; `byt5-diffusion generate --prompts` does so without a recipe.
Options:

  +categories=top_1_pct,1_word   some of the files' own
  +images_per_prompt=4           each from other noise
  +only=ko                       languages (wikispell, longtext)
  +max_words=100                 the first ones of each file (wikispell)
  +sentence=a word: {}           the word is put into it (wikispell)

docs/data/prompts.md says where they come from, and what was chosen by them.
"""

from byt5_diffusion.data import seqio_tasks
from byt5_diffusion.data.sets import evaluation_prompts

TABLE = evaluation_prompts.TABLE


def register(name: str) -> str:
  """Registers the task that a name says; other names as they are."""
  return seqio_tasks.register(TABLE, name)


def task(name: str) -> str:
  """SeqIO's name of a task, for other programs' gin files."""
  return register(name)
