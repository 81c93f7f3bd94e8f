"""From captions to the tokens of a conditioning mode.

  mode       text_tokens (ByT5)                    semantic_tokens
  byt5_only  the caption                           there are none
  quoted     its quoted strings (quotes.strings),  the caption
             "\\n" between two of them
  concat     the caption                           the caption

Training, drawing and inspecting all make their tokens by `Captions.encode`.
How a run's were made lies in its folder, and in a prepared data set, as two
files: captions.json and the SentencePiece model. Neither names another file or
any code; both are read with bounds.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np

from byt5_diffusion import feature_converters, quotes
from byt5_diffusion.data import pieces, text

MODES = ("byt5_only", "quoted", "concat")
# Between quoted strings: a byte that ByT5 knows from its own training texts.
SEPARATOR = "\n"
FORMAT_VERSION = 1
RECORD = "captions.json"
MODEL = "semantic.model"
_MAX_RECORD_BYTES = 64 * 1024


class BadCaptions(ValueError):
  """What does not say how captions become tokens; names the file."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Captions:
  """How captions become tokens.

  Attributes:
    mode: one of MODES; None: of a task of one's own, which settles it itself.
    semantic: the SentencePiece model; None in the mode byt5_only.
  """

  mode: str | None = "byt5_only"
  semantic: pieces.Pieces | None = None

  def __post_init__(self) -> None:
    if self.mode is not None and self.mode not in MODES:
      raise ValueError(f"mode={self.mode!r} is not one of {', '.join(MODES)}.")
    if (self.mode == "byt5_only") == (self.semantic is not None):
      raise ValueError(
        f"mode={self.mode!r} "
        f"{'takes no' if self.semantic else 'needs a'} SentencePiece model."
      )

  @property
  def features(self) -> tuple[feature_converters.Feature, ...]:
    """The task features that hold the tokens."""
    if self.semantic is None:
      return (feature_converters.TEXT_TOKENS,)
    return feature_converters.TEXT_TOKENS, feature_converters.SEMANTIC_TOKENS

  def features_with(
    self, features: Sequence[feature_converters.Feature]
  ) -> tuple[feature_converters.Feature, ...]:
    """A task's features, with those of the tokens that it has not."""
    more = [feature for feature in self.features if feature not in features]
    return (*features, *more)

  def written(self, caption: str) -> str:
    """The text whose bytes ByT5 reads."""
    if self.mode == "quoted":
      return SEPARATOR.join(quotes.strings(caption))
    return caption

  def encode(
    self, caption: str, lengths: Mapping[str, int]
  ) -> dict[str, np.ndarray]:
    """Task features of a caption, each [<= lengths[name]] int32.

    Bytes are cut off at the end of a whole character, other tokens anywhere.
    """
    tokens = {
      "text_tokens": text.encode(self.written(caption), lengths["text_tokens"])
    }
    if self.semantic is not None:
      tokens["semantic_tokens"] = self.semantic.encode(
        caption, lengths["semantic_tokens"]
      )
    return tokens

  def encode_batch(
    self, captions: Sequence[str], lengths: Mapping[str, int]
  ) -> dict[str, np.ndarray]:
    """`encode` of every caption, padded with 0: {name: [N, length] int32}."""
    names = [feature.task_name for feature in self.features]
    batch = {
      name: np.full((len(captions), lengths[name]), text.PAD_ID, np.int32)
      for name in names
    }
    for i, caption in enumerate(captions):
      for name, tokens in self.encode(caption, lengths).items():
        batch[name][i, : len(tokens)] = tokens
    return batch

  def files(self) -> dict[str, bytes]:
    """{name: content} of what `read` reads; {} in the mode byt5_only."""
    if self.semantic is None:
      return {}
    record = {
      "format_version": FORMAT_VERSION,
      "mode": self.mode,
      "semantic": {
        "file": MODEL,
        "sha256": self.semantic.sha256,
        "pieces": self.semantic.size,
      },
    }
    content = json.dumps(record, indent=1) + "\n"
    return {MODEL: self.semantic.content, RECORD: content.encode()}


BYT5_ONLY = Captions()


def read(folder: str | os.PathLike[str]) -> Captions:
  """How the captions of a run or a prepared data set became tokens.

  A folder without captions.json is of the mode byt5_only.

  Raises:
    BadCaptions: captions.json is damaged, or the model is not the one it names.
    pieces.BadPieces: the model cannot be used.
  """
  path = pathlib.Path(folder) / RECORD
  if not os.path.lexists(path):
    return BYT5_ONLY
  record = _parse(path)
  model = pieces.read(path.with_name(MODEL))
  if hashlib.sha256(model.content).hexdigest() != record["semantic"]["sha256"]:
    raise BadCaptions(
      f"{model.name} is not the model that {RECORD} beside it was written for "
      "(sha256): its tokens would mean something else. Copy it again."
    )
  return Captions(mode=record["mode"], semantic=model)


def _parse(path: pathlib.Path) -> dict:
  """A captions.json with all that `read` needs."""
  try:
    if not path.is_file() or path.stat().st_size > _MAX_RECORD_BYTES:
      raise ValueError
    record = json.loads(path.read_bytes().decode("utf-8"))
    version, mode = record["format_version"], record["mode"]
    digest = record["semantic"]["sha256"]
    good = mode in (*MODES[1:], None) and isinstance(digest, str)
  except (OSError, ValueError, LookupError, TypeError, RecursionError):
    raise BadCaptions(f"{path} is damaged. Copy it again.") from None
  if version != FORMAT_VERSION:
    raise BadCaptions(
      f"{path} has format_version {str(version)[:20]}, this program reads "
      f"{FORMAT_VERSION}."
    )
  if not good:
    raise BadCaptions(f"{path} is damaged. Copy it again.")
  return record


# --- Of tasks ----------------------------------------------------------------

# At the end of a task's name: "<task>+quoted=<path>".
_CONDITIONING = re.compile(r"\+((?:quoted|concat)=.+)\Z", re.DOTALL)


def split_name(name: str) -> tuple[str, str]:
  """ "<task>+quoted=<path>" -> ("<task>", "quoted=<path>"); or (name, "")."""
  found = _CONDITIONING.search(name)
  return (name[: found.start()], found[1]) if found else (name, "")


def from_text(conditioning: str) -> Captions:
  """The Captions of "quoted=<path>" or "concat=<path>"; of "", byt5_only.

  Raises:
    ValueError: another text.
    pieces.BadPieces: the SentencePiece model cannot be used.
  """
  if not conditioning:
    return BYT5_ONLY
  mode, equals, path = conditioning.partition("=")
  if mode not in MODES[1:] or not equals or not path:
    raise ValueError(
      f"conditioning={conditioning!r} is not quoted=<path> or concat=<path> of "
      "a SentencePiece model."
    )
  return Captions(mode=mode, semantic=pieces.read(path))


def in_marks(string: str) -> str:
  """A caption whose one quoted string is `string`.

  Raises:
    ValueError: there is none, because it begins or ends with a space, or has
      every quotation mark in it.
  """
  for opening, closing in ("“”", "«»", "「」", "『』"):
    caption = f"{opening}{string}{closing}"
    if quotes.strings(caption) == [string]:
      return caption
  raise ValueError(f"{string!r} cannot be put into quotation marks.")


_of_tasks: dict[str, Captions] = {}


def register(task: str, captions: Captions) -> None:
  """Remembers how a SeqIO task's captions become tokens."""
  _of_tasks[task] = captions


def of_task(task: str, output_features: Mapping[str, object]) -> Captions:
  """How a SeqIO task's captions become tokens.

  A task that was not registered here says it by the SentencePieceVocabulary of
  its feature "semantic_tokens"; its mode is unknown.
  """
  if task in _of_tasks:
    return _of_tasks[task]
  feature = output_features.get("semantic_tokens")
  vocabulary = getattr(feature, "vocabulary", None)
  path = getattr(vocabulary, "sentencepiece_model_file", None)
  if path is None:
    return BYT5_ONLY
  return Captions(mode=None, semantic=pieces.read(path))
