"""Text in photographs: opens whichever of the known data sets lies in a folder.

  format      files                        module
  hiertext    *.jsonl.gz, *.jsonl, *.json  hiertext
  textocr     *.json                       coco_text
  coco_text   *.json                       coco_text
  mlt         *.txt, one per picture       icdar
  icdar15     *.txt, one per picture       icdar
  total_text  *.txt, one per picture       icdar
  svt         *.xml                        icdar

What a file is, its content says. A folder may hold the files of several splits,
but of one format.
"""

import collections
import gzip
import io
import posixpath
import re
import zlib
from collections.abc import Callable, Iterator, Mapping

from byt5_diffusion.data.rows import (
  files,
  json_stream,
)
from byt5_diffusion.data.sets import (
  coco_text,
  hiertext,
  icdar,
  page_supply,
  picture_folder,
  written_pages,
  xml_trees,
)

_HEAD = 2**16  # Bytes that tell a file's format.
_GZIP = b"\x1f\x8b"
_ENDINGS = (".gz", ".json", ".jsonl", ".txt", ".xml")
_SAMPLE = 20  # Text files that tell their format.
_NO_ANNOTATIONS = ("readme", "license", "licence", "classes")
_KEY = re.compile(r'"(\w{1,40})"\s*:')
_Pages = Callable[[list[files.File]], Iterator[written_pages.Page]]


def _of_each(
  read: Callable[[files.File], Iterator[written_pages.Page]],
) -> _Pages:
  def pages(found: list[files.File]) -> Iterator[written_pages.Page]:
    for file in found:
      yield from read(file)

  return pages


def _of_text(kind: str) -> _Pages:
  return lambda found: icdar.pages(found, kind)


FORMATS: Mapping[str, _Pages] = {
  "hiertext": _of_each(hiertext.pages),
  "textocr": _of_each(coco_text.pages),
  "coco_text": _of_each(coco_text.pages),
  "svt": _of_each(icdar.xml_pages),
  **{kind: _of_text(kind) for kind in icdar.FORMATS},
}


def words(
  path: str,
  *,
  format: str = "",
  images: str = "",
  margin: float = 0.05,
  min_side: float = 8.0,
  max_bytes: int = 0,
  identify: bool = True,
) -> page_supply.PageSupply:
  """Words, each cut out of its picture, upright.

  Args:
    path: a folder with annotations and pictures, or an annotation file whose
      pictures lie in its folder.
    format: one of FORMATS; "": looked for in the files.
    images: the pictures' folder, if it is another one.
    margin: around a word, in shares of its shorter side.
    min_side: words with fewer pixels across are left out.
    max_bytes: longer texts are left out; 0: none.
    identify: whether the language of a picture's text is looked for where the
      data set says none.
  """
  form = page_supply.Form(
    part="word",
    kind="scene_word",
    margin=margin,
    min_side=min_side,
    max_bytes=max_bytes,
    identify=identify,
  )
  return _open("grapheme_words", path, format, images, form)


def lines(
  path: str,
  *,
  format: str = "",
  images: str = "",
  margin: float = 0.05,
  min_side: float = 8.0,
  max_bytes: int = 0,
  identify: bool = True,
) -> page_supply.PageSupply:
  """Lines, as `words`; only HierText has them."""
  form = page_supply.Form(
    part="line",
    kind="scene_line",
    margin=margin,
    min_side=min_side,
    max_bytes=max_bytes,
    identify=identify,
  )
  return _open("grapheme_lines", path, format, images, form)


def scenes(
  path: str,
  *,
  format: str = "",
  images: str = "",
  hidden: bool = True,
  max_quotes: int = 3,
  max_illegible: float = 0.5,
  max_bytes: int = 0,
  identify: bool = True,
) -> page_supply.PageSupply:
  """Whole pictures, whose captions quote the largest writing.

  Args:
    path, format, images, identify: see `words`.
    hidden: whether illegible writing is blurred, so that no picture teaches to
      draw what nobody can read.
    max_quotes: strings that a caption quotes.
    max_illegible: pictures with a larger share of illegible writing, by area,
      are left out.
    max_bytes: pictures with more text are left out; 0: none.
  """
  if max_quotes < 1:
    raise ValueError(f"{max_quotes=} must be at least 1.")
  form = page_supply.Form(
    part="",
    kind="scene",
    hidden=hidden,
    max_quotes=max_quotes,
    max_illegible=max_illegible,
    max_bytes=max_bytes,
    identify=identify,
  )
  return _open("grapheme_scenes", path, format, images, form)


def _open(
  name: str, path: str, kind: str, pictures: str, form: page_supply.Form
) -> page_supply.PageSupply:
  if kind and kind not in FORMATS:
    raise ValueError(f"{path}: format={kind!r} is none of {sorted(FORMATS)}.")
  listed = [
    file for file in files.find(path) if file.path.lower().endswith(_ENDINGS)
  ]
  kind, annotations = find(path, listed, kind)
  first = listed[0].path if len(listed) == 1 else ""
  is_file = posixpath.basename(first) == posixpath.basename(path)
  where = pictures or (posixpath.dirname(first) if is_file else path)
  try:
    return page_supply.PageSupply(
      f"{name}:{path}",
      FORMATS[kind](annotations),
      picture_folder.PictureFolder(where),
      form,
      key=kind,
      sources=annotations,
    )
  except (json_stream.BrokenJson, xml_trees.BrokenXml) as error:
    raise ValueError(
      f"{error} It was read as {kind}; +format=... says what else it is."
    ) from None


def find(
  path: str, listed: list[files.File], kind: str = ""
) -> tuple[str, list[files.File]]:
  """The format of a folder and its annotation files.

  Args:
    path: for messages.
    listed: files that may be annotations.
    kind: one of FORMATS, if it is known.

  Raises:
    ValueError: there is none, or more than one.
  """
  found: dict[str, list[files.File]] = {}
  for file in listed:
    if not file.path.lower().endswith(".txt"):
      found.setdefault(_guess(file), []).append(file)
  texts = [file for file in listed if _is_text(file)]
  if guessed := _guess_texts(texts):
    found[guessed] = texts
  found.pop("", None)
  if kind:
    ours = found.get(kind) or found.get({"textocr": "coco_text"}.get(kind, ""))
    others = [f for f in listed if not f.path.lower().endswith(".txt")]
    return kind, ours or (texts if kind in icdar.FORMATS else others)
  if len(found) != 1:
    raise ValueError(
      f"{path}: {'several formats' if found else 'no annotations of a format'} "
      f"{sorted(found) if found else 'that is known'}; write +format=... with "
      f"one of {sorted(FORMATS)}."
    )
  return next(iter(found.items()))


def _is_text(file: files.File) -> bool:
  stem, ending = posixpath.splitext(posixpath.basename(file.path).lower())
  return ending == ".txt" and not stem.startswith(_NO_ANNOTATIONS)


def _guess_texts(texts: list[files.File]) -> str:
  """The format of most of the first text files that have one."""
  found: collections.Counter[str] = collections.Counter()
  for file in texts[:_SAMPLE]:
    try:
      found[icdar.guess(icdar.read_lines(file))] += 1
    except (ValueError, OSError):
      continue  # The others say it; this one will be counted.
  del found[""]
  return found.most_common(1)[0][0] if found else ""


def _guess(file: files.File) -> str:
  """The format of a JSON or XML file by its first bytes; "" if none."""
  raw = file.read(0, _HEAD)
  if raw.startswith(_GZIP):
    try:
      raw = gzip.GzipFile(fileobj=io.BytesIO(raw)).read1(_HEAD)
    except (OSError, EOFError, zlib.error):
      return ""
  head = raw.decode("utf-8-sig", "replace").lstrip()
  if file.path.lower().endswith(".xml"):
    return "svt" if "taggedRectangle" in head or "<tagset" in head else ""
  if not head.startswith("{"):
    return ""
  keys = set(_KEY.findall(head))
  if "paragraphs" in keys:
    return "hiertext"
  if keys & {"imgs", "anns"}:
    return "coco_text" if keys & {"cats", "legibility"} else "textocr"
  return ""
