"""Your own pictures with captions, as they lie in a folder.

Either every picture has its caption beside it, in a text file of its name

  photos/cat.jpg  photos/cat.txt

or the folder has one `captions.jsonl`, which then is the whole truth:

  {"file": "cats/cat.jpg", "caption": "A cat that reads."}

Files are only ever read. All must be regular files inside the folder: those
named in captions.jsonl, and what links lead to. No TensorFlow here:
tasks/image_caption_folder.py makes the SeqIO task.
"""

import hashlib
import json
import os
import pathlib
import stat
from typing import NamedTuple

import numpy as np

from byt5_diffusion import feature_converters
from byt5_diffusion.data import captions as captions_lib
from byt5_diffusion.data import images, pictures, rejections, text

CAPTIONS = "captions.jsonl"
_BOM = "\ufeff"
EXTENSIONS = (
  ".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"
)  # fmt: skip
SPLITS = ("train", "validation")
_MAX_CAPTION_BYTES = 2**20  # More than any model reads.


class Pair(NamedTuple):
  """A picture's path relative to the folder, with "/", and its caption."""

  file: str
  caption: str


class FolderSource:
  """The pictures and captions of a folder, in the order of their paths.

  Attributes:
    folder: absolute path.
    pairs: {split: [Pair]}; which split a picture is in depends on its path
      alone, so adding pictures moves no other (but see validation_share).
    name: the folder's path: in messages and of the ledger (data/rejections.py).
  """

  def __init__(
    self,
    folder: str | os.PathLike[str],
    *,
    validation_share: float = 0.05,
    max_rejected_share: float = 0.05,
  ):
    """Lists the folder; pictures are opened later, one by one.

    Args:
      folder: searched with all its folders, except names that begin with ".".
      validation_share: probability of a picture to be in "validation". At least
        one is, if there are two.
      max_rejected_share: share of unusable records that is put up with.

    Raises:
      ValueError: no folder, or nothing usable in it.
      rejections.TooManyRejections: too many files cannot be paired.
    """
    self.folder = pathlib.Path(folder).expanduser().absolute()
    self.name = str(self.folder)
    self._max_rejected_share = max_rejected_share
    if not 0 <= validation_share < 1:
      raise ValueError(f"{validation_share=} must be in [0, 1).")
    if not self.folder.is_dir():
      raise ValueError(f"{self.folder} is not a folder.")
    self._root = self.folder.resolve()
    pairs, problems = self._list()
    if not pairs and not problems:
      raise ValueError(
        f"{self.folder} holds no pictures ({', '.join(EXTENSIONS)})."
      )
    self._judge(len(pairs), problems)
    self.pairs = _split(sorted(pairs), validation_share)

  def _list(self) -> tuple[list[Pair], list[tuple[str, str]]]:
    """All pairs, and (name, reason) of what cannot be one."""
    if os.path.lexists(self.folder / CAPTIONS):
      return self._list_captions(self.folder / CAPTIONS)
    pairs, problems = [], []
    for path in _pictures(self.folder):
      file = path.relative_to(self.folder).as_posix()
      try:
        pairs.append(Pair(file, self._caption_of(path)))
      except ValueError as error:
        problems.append((file, str(error)))
    return pairs, problems

  def _caption_of(self, picture: pathlib.Path) -> str:
    """What the .txt file says; ValueError if the two are no pair, and why."""
    path = picture.with_suffix(".txt")
    if not os.path.lexists(path):
      raise ValueError(f"no caption: no .txt file and no {CAPTIONS}")
    if reason := self._unusable(picture):
      raise ValueError(reason)
    if reason := self._unusable(path):
      raise ValueError(f"its caption: {reason}")
    try:
      caption = _read_caption(path)
    except OSError as error:
      raise ValueError(f"its caption: {error.strerror}") from None
    if not caption:
      raise ValueError("empty caption")
    return caption

  def _list_captions(
    self, path: pathlib.Path
  ) -> tuple[list[Pair], list[tuple[str, str]]]:
    if reason := self._unusable(path):
      raise ValueError(f"{path} cannot be used: {reason}.")
    pairs: dict[str, Pair] = {}
    problems = []
    try:
      with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
          if number == 1:
            line = line.removeprefix(_BOM.encode("utf-8"))
          if not line.strip():
            continue
          try:
            pair = self._parse(line)
            if pair.file in pairs:
              raise ValueError("file listed twice")
            pairs[pair.file] = pair
          except ValueError as error:
            problems.append((f"{CAPTIONS}:{number}", str(error)))
    except OSError as error:
      raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    return list(pairs.values()), problems

  def _parse(self, line: bytes) -> Pair:
    """One line of captions.jsonl; ValueError says what is wrong with it."""
    try:
      row = json.loads(text.to_text(line))
      file, caption = row["file"], row["caption"]
    except (ValueError, KeyError, TypeError, RecursionError):
      raise ValueError('not JSON like {"file": ..., "caption": ...}') from None
    if not isinstance(file, str) or not isinstance(caption, str):
      raise ValueError("file and caption must be strings")
    caption = text.to_text(caption).strip()
    if not caption:
      raise ValueError("empty caption")
    parts = pathlib.PurePosixPath(file).parts
    if not parts or "\0" in file or file.startswith("/") or ".." in parts:
      raise ValueError(f"file must stay inside the folder: {file!r}")
    file = "/".join(parts)
    if reason := self._unusable(self.folder / file):
      raise ValueError(f"{reason}: {file[:80]!r}")
    return Pair(file, caption)

  def _unusable(self, path: pathlib.Path) -> str:
    """Why a file must not be opened, "" if it may be: a pipe would block."""
    try:
      real = path.resolve(strict=True)
      if not real.is_relative_to(self._root):
        return "a link that leads out of the folder"
      regular = stat.S_ISREG(real.stat().st_mode)
    except FileNotFoundError:
      return "no such file"
    except UnicodeError:
      return "not a possible file name"
    except RuntimeError:  # Python before 3.13.
      return "a link that leads to itself"
    except OSError as error:
      return error.strerror or "cannot be opened"
    return "" if regular else "not a regular file"

  def _judge(self, num_pairs: int, problems: list[tuple[str, str]]) -> None:
    """Names what cannot be used, or stops if it is too much."""
    ledger = rejections.Ledger(
      f"{self.name} (listing)",
      max_share=self._max_rejected_share,
      num_records=num_pairs + len(problems),
    )
    ledger.reject_all(problems)

  def ledger(self) -> rejections.Ledger:
    """Where `read`'s callers count; judged by the folder's size."""
    return rejections.ledger(
      self.name,
      max_share=self._max_rejected_share,
      num_records=sum(len(pairs) for pairs in self.pairs.values()),
    )

  def read(
    self,
    split: str,
    index: int,
    *,
    picture: pictures.Picture,
    max_length: int,
    captions: captions_lib.Captions = captions_lib.BYT5_ONLY,
    max_semantic_length: int | None = None,
  ) -> dict[str, np.ndarray]:
    """Example `index` of a split as task features (feature_converters).

    Args:
      split: "train" or "validation".
      index: place in `pairs[split]`.
      picture: what becomes of a picture: an image, or patches.
      max_length: most caption ids, the end of sequence included. A longer
        caption is cut for an image, and is of no use with patches.
      captions: what becomes of a caption.
      max_semantic_length: as max_length, of the second encoder's tokens.

    Raises:
      images.BadImage: the file cannot be used.
    """
    pair = self.pairs[split][index]
    too_long = len(pair.caption.encode("utf-8")) + 1 > max_length
    if too_long and picture.whole_caption:
      raise images.BadImage(
        pair.file, f"text longer than {max_length - 1} bytes (MAX_TEXT_LENGTH)"
      )
    path = self.folder / pair.file
    if reason := self._unusable(path):  # Replaced since the listing.
      raise images.BadImage(pair.file, reason)
    image = pictures.decode(path, picture, pair.file)
    return {
      picture.name: picture.make(image),
      **captions.encode(
        pair.caption,
        {
          "text_tokens": max_length,
          "semantic_tokens": max_semantic_length or max_length,
        },
      ),
      "example_id": feature_converters.example_id(pair.file),
    }


def _pictures(folder: pathlib.Path) -> list[pathlib.Path]:
  """Picture files below a folder. Links to folders are not followed."""

  def stop(error: OSError) -> None:
    raise error  # A folder that cannot be listed must not look empty.

  found = []
  for root, folders, files in os.walk(folder, onerror=stop):
    folders[:] = [name for name in folders if not name.startswith(".")]
    found += [
      pathlib.Path(root, name)
      for name in files
      if name.lower().endswith(EXTENSIONS) and not name.startswith(".")
    ]
  return found


def _read_caption(path: pathlib.Path) -> str:
  with path.open("rb") as file:
    raw = file.read(_MAX_CAPTION_BYTES)
  return text.to_text(raw).removeprefix(_BOM).strip()


def _position(file: str) -> float:
  """A number in [0, 1) that depends on the path alone."""
  raw = file.encode("utf-8", "surrogatepass")
  digest = hashlib.blake2b(raw, digest_size=8, person=b"split").digest()
  return int.from_bytes(digest, "little") / 2**64


def _split(pairs: list[Pair], share: float) -> dict[str, list[Pair]]:
  positions = [_position(pair.file) for pair in pairs]
  limit = share
  if share and len(pairs) > 1 and min(positions) >= share:
    limit = np.nextafter(min(positions), 1.0)
  train = [p for p, at in zip(pairs, positions, strict=True) if at >= limit]
  held = [p for p, at in zip(pairs, positions, strict=True) if at < limit]
  return {"train": train, "validation": held}
