"""SentencePiece models, read by the sentencepiece package: no TensorFlow.

A model is a file that somebody else may have made, so it is looked at before it
is used: a regular file of a bounded size that is a SentencePiece model, and
that numbers its pieces as T5 does (0 = padding, 1 = end of sequence).
"""

import dataclasses
import functools
import hashlib
import os
import pathlib
import stat
from typing import Any

import numpy as np

from byt5_diffusion.data import text

# T5's has 0.8 MB, mT5's 4.3 MB.
MAX_BYTES = 32 * 1024 * 1024


class BadPieces(ValueError):
  """What is no usable SentencePiece model; the message names the file."""


@dataclasses.dataclass(frozen=True, eq=False)
class Pieces:
  """A SentencePiece model.

  Attributes:
    content: the file's bytes.
    name: of the file, in messages.
  """

  content: bytes = dataclasses.field(repr=False)
  name: str

  def __eq__(self, other: object) -> bool:
    return isinstance(other, Pieces) and other.content == self.content

  def __hash__(self) -> int:
    return hash(self.content)

  @functools.cached_property
  def sha256(self) -> str:
    """Hex digest of the content."""
    return hashlib.sha256(self.content).hexdigest()

  @functools.cached_property
  def _processor(self) -> Any:
    return _load(self.content, self.name)

  @property
  def size(self) -> int:
    """Number of pieces: the least vocab_size of an encoder."""
    return self._processor.get_piece_size()

  def encode(self, caption: str, max_length: int) -> np.ndarray:
    """Ids, then end of sequence; [<= max_length] int32.

    A caption that is too long loses whole pieces from its end.

    Raises:
      ValueError: max_length has no room for the end of sequence.
    """
    if max_length < 1:
      raise ValueError(f"{max_length=} must be at least 1 (end of sequence).")
    ids = self._processor.encode(text.to_text(caption), out_type=int)
    return np.array([*ids[: max_length - 1], text.EOS_ID], np.int32)

  def decode(self, tokens: np.ndarray) -> str:
    """Text of ids up to the first end of sequence; padding is left out."""
    ids = np.asarray(tokens).reshape(-1)
    ends = np.flatnonzero(ids == text.EOS_ID)
    ids = ids[: ends[0]] if ends.size else ids
    known = [int(i) for i in ids if text.PAD_ID < i < self.size]
    try:
      return self._processor.decode(known)
    except UnicodeDecodeError:  # Pieces that are no text: a damaged model.
      return text.to_text(b"\xff")


def read(path: str | os.PathLike[str]) -> Pieces:
  """The model in a file.

  Raises:
    BadPieces: no such file, no regular one, too big, no SentencePiece model, or
      one with other numbers for padding and the end of sequence.
  """
  file = pathlib.Path(path).expanduser().absolute()
  try:
    # A pipe or a device would never end, so look before opening.
    found = file.stat()
    if not stat.S_ISREG(found.st_mode):
      raise BadPieces(f"{file} is not a regular file.")
    if found.st_size > MAX_BYTES:
      raise BadPieces(
        f"{file} has {found.st_size} bytes, more than any SentencePiece model "
        f"({MAX_BYTES})."
      )
    with file.open("rb") as opened:
      content = opened.read(MAX_BYTES + 1)
  except OSError as error:
    raise BadPieces(
      f"{file}: {error.strerror}. The SentencePiece model of the semantic "
      "encoder is not part of this package: it comes with the encoder's "
      "weights, as spiece.model (T5's has 791,656 bytes). Put it there, or "
      "name its place behind quoted= or concat= in MIXTURE_OR_TASK_NAME."
    ) from None
  return parse(content, str(file))


def parse(content: bytes, name: str) -> Pieces:
  """The model of a file's bytes; `name` is for messages. Raises BadPieces."""
  if len(content) > MAX_BYTES:
    raise BadPieces(f"{name} has more than {MAX_BYTES} bytes.")
  pieces = Pieces(content, name)
  processor = pieces._processor
  found = (processor.pad_id(), processor.eos_id())
  if found != (text.PAD_ID, text.EOS_ID):
    raise BadPieces(
      f"{name} numbers padding {found[0]} and the end of sequence {found[1]}; "
      f"T5's numbers, {text.PAD_ID} and {text.EOS_ID}, are needed (train with "
      "pad_id=0, eos_id=1, unk_id=2, bos_id=-1)."
    )
  return pieces


def _load(content: bytes, name: str) -> Any:
  try:
    import sentencepiece
  except ImportError as error:
    raise ImportError(
      f"Reading {name} needs the package sentencepiece: "
      '`pip install "byt5-diffusion[semantic]"`.'
    ) from error
  processor = sentencepiece.SentencePieceProcessor()
  try:
    loaded = bool(content) and processor.LoadFromSerializedProto(content)
    loaded = loaded and processor.get_piece_size() > text.UNK_ID
  except (RuntimeError, ValueError, OSError):
    loaded = False
  if not loaded:
    raise BadPieces(f"{name} is not a SentencePiece model.")
  return processor
