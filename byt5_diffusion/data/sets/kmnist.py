"""Kuzushiji-MNIST, Kuzushiji-49 and Kuzushiji-Kanji: single characters.

(Clanuwat et al. 2018, arXiv 1812.01718; CC BY-SA 4.0.) As they are published:

  train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-...
  kmnist-train-imgs.npz, kmnist-train-labels.npz, k49-test-imgs.npz, ...
  kmnist_classmap.csv, k49_classmap.csv     index,codepoint,char
  kkanji.tar, or its folders                U+4E00/<name>.png

Without a class map, labels below 10 are Kuzushiji-MNIST's and files called k49
are Kuzushiji-49's. Pixels are white ink on black there; here, black on white.
"""

import csv
import dataclasses
import hashlib
import posixpath
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from byt5_diffusion.data import (
  annotated,
  filters,
  images,
  languages,
)
from byt5_diffusion.data.rows import (
  array_files,
  catalogue,
  files,
  tables,
)
from byt5_diffusion.data.sets import (
  descriptions,
  kuzushiji,
)

KMNIST = "おきすつなはまやれを"
K49 = (
  "あいうえおかきくけこさしすせそたちつてとなにぬねのはひふへほ"
  "まみむめもやゆよらりるれろわゐゑをんゝ"
)
_LANGUAGE = "ja"
_IMAGES = re.compile(
  r"(?P<idx>.*)images[-.]idx3-ubyte(?:\.gz)?|(?P<npz>.*)imgs\.npz"
)
_CODE = re.compile(r"U\+[0-9A-Fa-f]{4,6}")
_MAX_CLASSMAP = 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Group:
  """Pictures and labels of one pair of files."""

  name: str
  split: str
  images: np.ndarray  # uint8 [n, h, w]
  labels: np.ndarray  # [n]
  classes: Mapping[int, str]


def characters(
  path: str, *, invert: bool = True, validation_share: float = 0.02
) -> "ArraySupply | catalogue.TableSupply":
  """Single characters of a folder with any of the files above, or of one file.

  Args:
    path: the folder, kkanji.tar, or a file of pictures with its labels beside.
    invert: whether ink is made dark and paper light.
    validation_share: of the training pictures, to be held out.

  Raises:
    ValueError: there are none, or a file is not what it says.
  """
  listed = files.find(path)
  if posixpath.basename(listed[0].path) == posixpath.basename(path):
    # A file: labels and class maps lie beside it.
    listed = files.find(posixpath.dirname(listed[0].path))
    listed = [one for one in listed if "/" not in one.name.lstrip("/")]
    only = posixpath.basename(path)
  else:
    only = ""
  if path.endswith(".tar"):
    return _kanji(path, path, invert, validation_share)
  pairs = [
    (file, found)
    for file in listed
    if (found := _IMAGES.fullmatch(_base(file))) and only in ("", _base(file))
  ]
  if pairs:
    groups = [_group(file, found, listed) for file, found in pairs]
    return ArraySupply(path, groups, invert, validation_share)
  tars = [file.path for file in listed if file.path.endswith(".tar")]
  if len(tars) == 1:
    return _kanji(path, tars[0], invert, validation_share)
  rows = [
    {"__key__": file.name, "file": file.path, "size": file.size}
    for file in listed
    if _CODE.search(file.name) and file.path.lower().endswith(".png")
  ]
  if rows:
    return _kanji(path, rows, invert, validation_share)
  raise ValueError(
    f"{path}: there is neither *-images-idx3-ubyte[.gz], *-imgs.npz nor "
    "kkanji.tar or its folders U+XXXX."
  )


def _base(file: files.File) -> str:
  return posixpath.basename(file.path)


def _group(
  file: files.File, found: re.Match[str], listed: Sequence[files.File]
) -> _Group:
  stem = found["npz"] if found["idx"] is None else found["idx"]
  by_name = {_base(one): one for one in listed}
  if found["idx"] is None:
    names = [f"{stem}labels.npz"]
    pictures = array_files.read_npz(file)
  else:
    names = [f"{stem}labels-idx1-ubyte.gz", f"{stem}labels-idx1-ubyte"]
    pictures = array_files.read_idx(file)
  beside = [by_name[name] for name in names if name in by_name]
  if not beside:
    raise ValueError(f"{file.path}: {names[0]} is not beside it.")
  read = array_files.read_npz if found["idx"] is None else array_files.read_idx
  labels = read(beside[0])
  if pictures.ndim != 3 or labels.shape != pictures.shape[:1]:
    raise ValueError(
      f"{file.path}: holds {pictures.shape}, and {_base(beside[0])} "
      f"{labels.shape}: not a label for each picture."
    )
  prefix = re.split(r"[-_]?(?:train|t10k|test)", stem)[0]
  prefix = prefix.rstrip("-_") or "kmnist"
  test = "t10k" in stem or "test" in stem
  return _Group(
    name=f"{prefix}-{'test' if test else 'train'}",
    split="test" if test else "train",
    images=pictures,
    labels=labels,
    classes=_classes(file, prefix, labels, by_name),
  )


def _classes(
  file: files.File,
  prefix: str,
  labels: np.ndarray,
  by_name: Mapping[str, files.File],
) -> dict[int, str]:
  """{label: character}; ValueError if a label has none."""
  beside = by_name.get(f"{prefix}_classmap.csv")
  highest = int(labels.max(initial=0))
  if beside is not None:
    classes = _class_map(beside)
  else:
    known = K49 if "49" in prefix or highest >= len(KMNIST) else KMNIST
    classes = dict(enumerate(known))
  missing = sorted(set(np.unique(labels).tolist()) - set(classes))
  if missing:
    raise ValueError(
      f"{file.path}: labels {missing[:5]} stand for no known character; put "
      f"{prefix}_classmap.csv (index,codepoint,char) beside it."
    )
  return classes


def _class_map(file: files.File) -> dict[int, str]:
  raw = file.read(0, _MAX_CLASSMAP).decode("utf-8-sig", "replace")
  classes = {}
  for number, row in enumerate(csv.DictReader(raw.splitlines()), 2):
    try:
      place, code = row["index"], row["codepoint"]
      classes[int(place)] = kuzushiji.characters(code or "")
    except (KeyError, TypeError, ValueError):
      raise ValueError(
        f"{file.path}:{number}: is not index,codepoint,char like 0,U+304A,お."
      ) from None
  return classes


class ArraySupply:
  """Pictures of arrays; see supplies.Supply."""

  endless = False

  def __init__(
    self,
    path: str,
    groups: Sequence[_Group],
    invert: bool,
    validation_share: float,
  ):
    self.name = f"kmnist:{path}"
    self._groups = groups
    self._invert = invert
    digest = hashlib.blake2b(f"{invert} {validation_share}".encode())
    places: dict[str, list[tuple[int, int]]] = {
      split: [] for split in ("train", "validation", "test")
    }
    for number, group in enumerate(groups):
      digest.update(f"{group.name} {group.images.shape}".encode())
      digest.update(group.images.data)
      digest.update(group.labels.data)
      for i in range(len(group.images)):
        split = group.split
        if split == "train" and _held(group, i, validation_share):
          split = "validation"
        places[split].append((number, i))
    self.fingerprint = digest.hexdigest()[:32]
    self._places = {
      split: np.array(found, np.int64).reshape(-1, 2)
      for split, found in places.items()
    }
    self.sizes: Mapping[str, int] = {s: len(p) for s, p in self._places.items()}

  def languages(self, split: str) -> np.ndarray | None:
    """See supplies.Supply."""
    code = languages.row(_LANGUAGE)
    return np.full(self.sizes[split], code, np.uint8)

  def read(
    self, split: str, index: int, seed: int = 0, language: str = ""
  ) -> annotated.Annotated:
    """See supplies.Supply."""
    number, i = self._places[split][index]
    group = self._groups[number]
    image = group.images[i]
    return _example(
      f"{group.name}/{i}",
      np.repeat((255 - image if self._invert else image)[..., None], 3, -1),
      group.classes[int(group.labels[i])],
    )


def _held(group: _Group, i: int, share: float) -> bool:
  digest = hashlib.blake2b(f"{group.name}/{i}".encode(), digest_size=4).digest()
  return int.from_bytes(digest, "little") < share * 2**32


def _kanji(
  path: str,
  found: str | list[dict[str, Any]],
  invert: bool,
  validation_share: float,
) -> catalogue.TableSupply:
  """Pictures in folders called U+XXXX."""

  def character(key: str) -> str:
    folder = posixpath.basename(posixpath.dirname(key))
    try:
      return kuzushiji.characters(folder)
    except ValueError as error:
      raise images.BadImage(key, f"its folder: {error}") from None

  def describe(row: Mapping[str, Any]) -> list[catalogue.Entry]:
    key = str(row["__key__"])
    if character(key) == kuzushiji.GETA:
      raise filters.Filtered("illegible")
    return [catalogue.Entry(key, 0, _LANGUAGE)]

  def make(row: dict[str, Any], part: int) -> annotated.Annotated:
    del part
    key = str(row["__key__"])
    if "file" in row:
      image = images.decode_image(row["file"], name=key)
    elif isinstance(row.get("png"), bytes):
      image = images.decode_image(row["png"], name=key)
    else:
      raise images.BadImage(key, "no .png")
    image = 255 - image if invert else image
    return _example(f"kkanji/{key}", image, character(key))

  return catalogue.TableSupply(
    f"kkanji:{path}",
    tables.open_table(found)
    if isinstance(found, str)
    else tables.from_rows(path, found),
    columns=("__key__",),
    describe=describe,
    make=make,
    version=f"kkanji 1 {invert}",
    validation_share=validation_share,
  )


def _example(
  key: str, image: np.ndarray, character: str
) -> annotated.Annotated:
  digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
  caption = descriptions.write(
    "kuzushiji_character",
    [character],
    _LANGUAGE,
    int.from_bytes(digest, "little"),
  )
  height, width = image.shape[:2]
  return annotated.Annotated(
    key=key,
    image=image,
    text=caption.text,
    language=_LANGUAGE,
    regions=(
      annotated.Region(
        box=(0.0, 0.0, float(width), float(height)),
        label="glyph",
        text=character,
        span=caption.spans[0],
      ),
    ),
    transcription=character,
  )
