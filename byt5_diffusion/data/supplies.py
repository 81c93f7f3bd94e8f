"""From any data set's pictures to task features: the part that all share.

  Supply.read(split, index, seed) -> Annotated      one class per data set
  Maker.make -> task features                       this file
  seqio_tasks.register(TABLE, name)                 the SeqIO task

A task's name says which data and what becomes of the pictures:

  laion_high_resolution:/data/laion@256x256           images to draw
  laion_high_resolution:/data/laion@256x256crop       the same, cropped
  grapheme_words_reading:/data/hiertext@64x16         patches to read
  document_layout_annotated:/data/doclaynet@512x512   images, boxes, masks...

  laion_high_resolution:/data/laion@256x256+max_punsafe=0.1   with options

Options are keyword arguments of the supply. "+resize=area" and "+resize=scaled"
(data/resizing.py) are for all of them; "+quoted=<path>" and "+concat=<path>"
(data/captions.py) come last.
"""

import dataclasses
import inspect
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from byt5_diffusion import feature_converters
from byt5_diffusion.data import annotated, images, pictures, rejections, text
from byt5_diffusion.data import captions as captions_lib

READING, ANNOTATED = "_reading", "_annotated"
_NAME = re.compile(
  r"(?P<kind>\w+):(?P<path>.+)@(?P<first>\d{1,5})x(?P<second>\d{1,5})"
  r"(?P<crop>crop)?(?P<options>(\+\w+=[^+]*)*)",
  re.DOTALL,
)
_RESIZE = re.compile(r"\+resize=([^+]*)")
_BOOLS = {"true": True, "false": False}
_WANTED = {"bool": "true or false", "int": "a whole number"}


class Supply(Protocol):
  """Examples of a data set, by number. Everything is a pure function.

  Attributes:
    name: for messages and of the ledger (data/rejections.py).
    fingerprint: of all that `read` depends on; a saved place in other data is
      refused by it.
    sizes: {split: number of examples}.
    endless: whether examples are made up, so that another seed means others;
      if not, a seed changes their order.
  """

  name: str
  fingerprint: str
  sizes: Mapping[str, int]
  endless: bool

  def read(
    self, split: str, index: int, seed: int = 0, language: str = ""
  ) -> annotated.Annotated:
    """Example `index` of a split.

    Args:
      split, index: which.
      seed: of what is random.
      language: mC4's code; of an endless supply: the one to write in, whose
        example `index` this is; "": any, as often as ByT5 has read it.

    Raises:
      images.BadImage: it cannot be used; others can.
    """

  def languages(self, split: str) -> np.ndarray | None:
    """Row of languages.TABLE of every example, uint8 [n]; 255: none of them.

    None: nobody knows without reading them. Of an endless supply: the rows of
    the languages that it can write, each once.
    """


class Kind(NamedTuple):
  """A row of a family's table.

  Attributes:
    open: opens the data at a path, with options, as a Supply.
    ways: what its pictures may become: "", READING, ANNOTATED.
  """

  open: Callable[..., Supply]
  ways: tuple[str, ...] = ("", READING, ANNOTATED)


class Parsed(NamedTuple):
  """What a task's name says."""

  supply: Supply
  picture: pictures.Picture
  captions: captions_lib.Captions


def parse(table: Mapping[str, Kind], name: str) -> Parsed | None:
  """Opens what a name (see the top of the file) says.

  Args:
    table: {kind: its row}.
    name: "<kind>[_reading|_annotated]:<path>@<a>x<b>[crop][+option=value]...".

  Returns:
    None if the name is of no kind of the table.

  Raises:
    ValueError: it is, but says too little, or something that can't be.
  """
  plain, conditioning = captions_lib.split_name(name)
  called = plain.partition(":")[0]
  base, way = _split(called)
  if called in table:  # A kind whose own name ends like a way.
    base, way = called, ""
  if base not in table:
    return None
  kind, found = table[base], _NAME.fullmatch(plain)
  if way not in kind.ways:
    ways = " or ".join(base + way for way in kind.ways)
    raise ValueError(f"{name!r}: there is {ways}, and no {called}.")
  if way and conditioning:
    raise ValueError(f"{name!r}: only images to draw may have two encoders.")
  if not found or (way == READING and found["crop"]):
    example = "256x16" if way == READING else "256x256"
    raise ValueError(
      f"{name!r} names no data and size. Write MIXTURE_OR_TASK_NAME = "
      f'"{called}:/path/to/data@{example}" '
      + (
        "(patches x pixels of their side)."
        if way == READING
        else "(height x width)."
      )
    )
  picture = _picture(
    way, int(found["first"]), int(found["second"]), found["crop"]
  )
  options = found["options"]
  if resizes := _RESIZE.findall(options):
    options = _RESIZE.sub("", options)
    try:
      picture = dataclasses.replace(picture, resize=resizes[-1])
    except ValueError as error:
      raise ValueError(f"{name!r}: {error}") from None
  return Parsed(
    kind.open(found["path"], **_options(kind.open, options, name)),
    picture,
    captions_lib.from_text(conditioning),
  )


def _split(called: str) -> tuple[str, str]:
  for way in (READING, ANNOTATED):
    if called.endswith(way):
      return called.removesuffix(way), way
  return called, ""


def _picture(
  way: str, first: int, second: int, crop: str | None
) -> pictures.Frame | pictures.PatchGrid:
  if way == READING:
    return pictures.PatchGrid(max_patches=first, patch_size=second)
  frame = pictures.AnnotatedFrame if way == ANNOTATED else pictures.Frame
  return frame(height=first, width=second, fit="crop" if crop else "pad")


def _options(
  function: Callable[..., Any], written: str, name: str
) -> dict[str, Any]:
  """ "+max_punsafe=0.1" -> {"max_punsafe": 0.1}, by the annotated types."""
  known = {
    key: parameter
    for key, parameter in inspect.signature(function).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY
  }
  options: dict[str, Any] = {}
  for one in written.split("+")[1:]:
    key, _, value = one.partition("=")
    if key not in known:
      raise ValueError(
        f"{name!r}: there is no option {key!r}; there are "
        f"{sorted([*known, 'resize'])}."
      )
    kind = known[key].annotation
    try:
      options[key] = _BOOLS[value] if kind in (bool, "bool") else value
      for number in (int, float):
        if kind in (number, number.__name__, number | None):
          options[key] = number(value)
          if not math.isfinite(options[key]):
            raise ValueError
    except (KeyError, ValueError, OverflowError):
      wanted = _WANTED.get(getattr(kind, "__name__", kind), "a number")
      raise ValueError(
        f"{name!r}: {key} must be {wanted}, not {value!r}."
      ) from None
  return options


@dataclasses.dataclass(frozen=True, kw_only=True)
class Maker:
  """(split, index, seed) -> task features, or None with a word in the ledger.

  Attributes:
    supply: of the examples.
    picture: what becomes of a picture.
    captions: what becomes of a caption.
    max_rejected_share: more unusable examples than this end the run.
  """

  supply: Supply
  picture: pictures.Picture
  captions: captions_lib.Captions = captions_lib.BYT5_ONLY
  max_rejected_share: float = 0.05

  def ledger(self) -> rejections.Ledger:
    """Where examples are counted."""
    supply = self.supply
    count = None if supply.endless else sum(supply.sizes.values())
    return rejections.ledger(
      supply.name, max_share=self.max_rejected_share, num_records=count
    )

  def make(
    self,
    split: str,
    index: int,
    seed: int,
    lengths: Mapping[str, int],
    language: str = "",
  ) -> dict[str, np.ndarray] | None:
    """The task features, or None if the example cannot be used.

    Args:
      split, index, seed, language: see Supply.read.
      lengths: {task feature: length}; one that is absent is without limit.
    """
    ledger = self.ledger()
    try:
      example = self.supply.read(split, index, seed, language)
      features = self.features(example, lengths)
    except images.BadImage as error:
      ledger.reject(error.file, error.reason)
      return None
    ledger.accept()
    return features

  def features(
    self, example: annotated.Annotated, lengths: Mapping[str, int]
  ) -> dict[str, np.ndarray]:
    """The task features of one example. BadImage: it cannot be used."""
    caption = example.text
    if self.picture.whole_caption and example.transcription is not None:
      caption = example.transcription
    if not caption.strip():
      raise images.BadImage(example.key, "empty caption")
    limits = {
      name: lengths.get(name) or 2**20
      for name in ("text_tokens", "semantic_tokens")
    }
    length = len(caption.encode("utf-8")) + 1
    if length > limits["text_tokens"] and self.picture.whole_caption:
      raise images.BadImage(
        example.key,
        f"text longer than {limits['text_tokens'] - 1} bytes (MAX_TEXT_LENGTH)",
      )
    if isinstance(example.image, bytes):
      decoded = pictures.decode(example.image, self.picture, example.key)
      made, size = self.picture.make(decoded), decoded.size
    else:
      made = self.picture.make(example.image)
      size = (example.image.shape[0], example.image.shape[1])
    return {
      self.picture.name: made,
      **self.picture.annotate(example, size, lengths),
      **self.captions.encode(caption, limits),
      "example_id": feature_converters.example_id(example.key),
    }


def spans(caption: str, parts: list[str]) -> list[tuple[int, int] | None]:
  """Where a caption has each of `parts`, one behind the other, in bytes."""
  places: list[tuple[int, int] | None] = []
  start = 0
  for part in parts:
    found = caption.find(part, start) if part else -1
    if found < 0:
      places.append(None)
      continue
    start = found + len(part)
    before = len(caption[:found].encode("utf-8"))
    places.append((before, before + len(part.encode("utf-8"))))
  return places


def tokens_of(caption: str) -> int:
  """Length of "text_tokens" that holds the whole caption."""
  return len(text.encode(caption, 1 + len(caption.encode("utf-8"))))
