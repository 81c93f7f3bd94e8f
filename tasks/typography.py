"""Typography: words of many scripts, drawn while the run goes on.

  task                    picture    strings
  typography_words        64 x 256   one or two words in each of 26 scripts
  typography_words_tiny   16 x 40    one to three letters of ten scripts
  typography_words_tiny_32x80        the same, twice as large

The tasks `<name>_reading` give the same examples with the picture cut into
patches, of 8 x 8 and 4 x 4 pixels.

"+quoted=<path>" or "+concat=<path>" behind a name gives its captions to two
encoders, the second one's SentencePiece model at <path> (docs/conditioning.md);
for the former, the string stands in quotation marks.

Nothing is downloaded and nothing is stored: example `index` of a split is a
pure function of (task, split, seed, index). Shuffling a supply that is random
already means another seed, so no buffer of pictures waits in memory or in a
checkpoint.

Scripts that no font of this machine covers are left out from the start, with
one warning that names them. A string that cannot be drawn for another reason (a
rare character) gives its place to the next one that can, and is counted in the
ledger "<task>/<script>" (data/rejections.py), as the drawn ones are.
"""

import dataclasses
import functools
import hashlib
import itertools
import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from byt5_diffusion import feature_converters
from byt5_diffusion.data import captions as captions_lib
from byt5_diffusion.data import (
  pictures,
  rejections,
  seqio_tasks,
  task_metrics,
  text,
)
from byt5_diffusion.data.writing import (
  fonts,
  typography,
  words,
)

_log = logging.getLogger(__name__)

# Strings tried for one example before the run is stopped.
_MAX_TRIES = 50


class IndexSource(seqio_tasks.NumberedSource):
  """Numbers 0..n-1 with their split and seed; what they stand for is drawn."""

  def get_dataset(
    self,
    split: str = "train",
    shuffle: bool = True,
    seed: int | None = None,
    shard_info: seqio.ShardInfo | None = None,
    **unused: Any,
  ) -> tf.data.Dataset:
    del unused
    ds = tf.data.Dataset.range(self.num_input_examples(split))
    if shard_info:
      ds = ds.shard(shard_info.num_shards, shard_info.index)
    seed = 0 if seed is None or not shuffle else seed
    return ds.map(
      lambda index: {
        "split": tf.constant(split),
        "seed": tf.cast(seed, tf.int64),
        "index": index,
      }
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Painter:
  """Makes the task's features of (split, seed, index)."""

  name: str
  source: words.Source
  renderer: typography.Renderer
  captions: captions_lib.Captions = captions_lib.BYT5_ONLY

  def caption_of(self, string: str) -> str:
    """What is said of the picture of a string. ValueError: nothing can be."""
    quoted = self.captions.mode == "quoted"
    return captions_lib.in_marks(string) if quoted else string

  def drawable_source(self) -> words.Source:
    """The source without the scripts that this machine has no font for."""
    wanted = set(self.source.scripts)
    free = wanted & {words.COMMON, words.UNKNOWN}
    drawable = fonts.available_scripts(sorted(wanted - free))
    missing = sorted(wanted - free - set(drawable))
    if not missing:
      return self.source
    if not drawable and not free:
      fonts.fonts_for(missing[0])  # Raises, and says what to install.
    _log.warning(
      "%s goes without %s: no font here covers them. Run `python "
      "tools/fetch_fonts.py` (needs no root) to have them.",
      self.name,
      " ".join(missing),
    )
    return self.source.only({*drawable, *free})

  def paint(
    self,
    source: words.Source,
    split: str,
    seed: int,
    index: int,
    max_length: int | None,
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """image uint8 [H, W, 3], text_tokens int32 [<= L], example_id uint32 [2].

    Raises:
      ValueError: no string that can be drawn was found.
    """
    rng = words.generator("picture", self.name, split, seed, index)
    strings = words.strings_at(source, split, seed, index)
    for sample in itertools.islice(strings, _MAX_TRIES):
      ledger = rejections.ledger(f"{self.name}/{sample.script}", max_share=1.0)
      tokens = text.encode(sample.text, 1 + len(sample.text.encode("utf-8")))
      try:
        if max_length is not None and len(tokens) > max_length:
          # Cut off, the caption would not say what the picture shows.
          raise typography.CannotDraw(f"caption longer than {max_length} bytes")
        try:
          self.caption_of(sample.text)
        except ValueError as error:
          raise typography.CannotDraw(str(error)) from None
        image = self.renderer.render(sample.text, sample.script, rng)
      except typography.CannotDraw as error:
        ledger.reject(sample.text, type(error).__name__)
        reason = str(error)
        continue
      ledger.accept()
      key = f"{self.name}/{split}/{seed}/{index}/{sample.text}"
      return image, tokens, feature_converters.example_id(key)
    raise ValueError(
      f"{self.name}: {_MAX_TRIES} strings in a row cannot be drawn; the last "
      f"one: {reason}"
    )


def _draw(
  ds: tf.data.Dataset,
  sequence_length: Mapping[str, int] | None = None,
  *,
  painter: Painter,
  picture: pictures.Picture,
) -> tf.data.Dataset:
  """Preprocessor: {split, seed, index} -> the task's features."""
  lengths = sequence_length or {}
  picture.check_lengths(lengths, painter.name)
  source = painter.drawable_source()
  max_length = lengths.get("text_tokens")
  max_semantic = lengths.get("semantic_tokens") or 2**20

  def make(split: bytes, seed: int, index: int) -> dict[str, np.ndarray]:
    image, tokens, example_id = painter.paint(
      source, split.decode(), int(seed), int(index), max_length
    )
    # Whole: what does not fit is not drawn.
    caption = painter.caption_of(text.decode(tokens))
    limits = {"text_tokens": len(tokens), "semantic_tokens": max_semantic}
    return {
      picture.name: picture.make(image),
      **painter.captions.encode(caption, limits),
      "example_id": example_id,
    }

  keys = ["split", "seed", "index"]
  features = painter.captions.features_with(picture.features)
  return seqio_tasks.make_examples(ds, make, keys, picture, features)


def add_typography_task(
  name: str,
  *,
  source: words.Source,
  height: int,
  width: int,
  num_train: int = 1_000_000,
  num_validation: int = 1_000,
  patch_size: int | None = None,
  **renderer_options: Any,
) -> None:
  """Registers a SeqIO task that draws the source's strings, and its reading.

  Args:
    name: of the task; part of its examples' ids.
    source: words.Words, Glyphs or TextFile.
    height, width: of the pictures; height is the feature length of "image".
    num_train, num_validation: examples until the same ones come again.
    patch_size: divides height and width. The task "<name>_reading" gives the
      same examples as patches of that size; None: there is none.
    **renderer_options: of typography.Renderer.
  """
  renderer = typography.Renderer(height=height, width=width, **renderer_options)
  painter = Painter(name=name, source=source, renderer=renderer)
  kinds: dict[str, pictures.Picture] = {
    name: pictures.Frame(height=height, width=width)
  }
  if patch_size is not None:
    kinds[f"{name}_reading"] = _whole_grid(height, width, patch_size)
  counts = {"train": num_train, "validation": num_validation}
  for task_name, picture in kinds.items():
    _add(task_name, painter, picture, counts)
    _drawn[task_name] = functools.partial(
      _add, painter=painter, picture=picture, counts=counts
    )


# Task -> what adds it under another name, with other captions.
_drawn: dict[str, Callable[..., None]] = {}


def _add(
  name: str,
  painter: Painter,
  picture: pictures.Picture,
  counts: Mapping[str, int],
  captions: captions_lib.Captions = captions_lib.BYT5_ONLY,
) -> None:
  painter = dataclasses.replace(painter, captions=captions)
  preprocessor: Callable[..., tf.data.Dataset] = functools.partial(
    _draw, painter=painter, picture=picture
  )
  seqio.TaskRegistry.add(
    name,
    source=IndexSource(counts),
    preprocessors=[preprocessor],
    output_features=seqio_tasks.output_features(
      captions.features_with(picture.features), captions.semantic
    ),
    metric_fns=[task_metrics.mean_loss],
    # The source's own kind of shuffling is enough; see the top of the file.
    shuffle_buffer_size=None,
  )
  captions_lib.register(name, captions)


def register(name: str) -> str:
  """Registers "<task>+quoted=<path>" or "<task>+concat=<path>".

  Returns:
    The SeqIO name of that task; any other name as it is.

  Raises:
    ValueError: a task that reads, or a SentencePiece model of no use.
  """
  plain, conditioning = captions_lib.split_name(name)
  if not conditioning or plain not in _drawn:
    return name
  if plain.endswith("_reading"):
    raise ValueError(f"{name!r}: a task that reads has one text, not two.")
  captions = captions_lib.from_text(conditioning)
  assert captions.semantic is not None
  kind = f"{captions.mode}/{captions.semantic.name}/{captions.semantic.sha256}"
  digest = hashlib.blake2b(kind.encode("utf-8"), digest_size=4).hexdigest()
  called = f"{plain}_{digest}"
  if called not in seqio.TaskRegistry.names():
    _drawn[plain](called, captions=captions)
  return called


def _whole_grid(height: int, width: int, patch_size: int) -> pictures.PatchGrid:
  """All patches of a picture, which is not scaled for it."""
  if height % patch_size or width % patch_size:
    raise ValueError(
      f"{patch_size=} must divide the pictures' {height} x {width} pixels."
    )
  return pictures.PatchGrid(
    patch_size=patch_size, max_patches=height * width // patch_size**2
  )


add_typography_task(
  "typography_words",
  source=words.Words(max_words=2),
  height=64,
  width=256,
  patch_size=8,
)
_TINY = words.Glyphs(
  only_scripts=[
    "Arab",
    "Cyrl",
    "Deva",
    "Geor",
    "Grek",
    "Hans",
    "Hebr",
    "Kore",
    "Latn",
    "Thai",
  ],
  alphabet_size=6,
  min_length=1,
  max_length=3,
)
add_typography_task(
  "typography_words_tiny",
  source=_TINY,
  height=16,
  width=40,
  patch_size=4,
  font_size=12.0,
  styles=("bold",),
)
# What a cascade makes of the former's pictures.
add_typography_task(
  "typography_words_tiny_32x80",
  source=_TINY,
  height=32,
  width=80,
  font_size=24.0,
  styles=("bold",),
)
