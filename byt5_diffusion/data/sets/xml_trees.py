"""XML of strangers -> a tree, or a `BrokenXml` saying why not.

Nothing is ever fetched or expanded: a document type, an entity or a processing
instruction for a style sheet ends the reading at once, before anything that it
declares can have an effect. Size, depth and number of elements are bounded.
"""

import os
import pathlib
import stat
from typing import NoReturn
from xml.etree import ElementTree
from xml.parsers import expat

from byt5_diffusion.data.rows import files

MAX_BYTES = 2**26
MAX_DEPTH = 64
MAX_ELEMENTS = 1_000_000


class BrokenXml(ValueError):
  """A file that is no XML, or asks for what data need not ask for."""


def read(
  path: str | os.PathLike[str] | files.File, max_bytes: int = MAX_BYTES
) -> ElementTree.Element:
  """The tree of a file, maybe one behind an address; see `parse`.

  Raises:
    BrokenXml: whatever is wrong with it; names the file.
  """
  name = path.path if isinstance(path, files.File) else os.fspath(path)
  try:
    if isinstance(path, files.File):
      raw = path.read(0, max_bytes + 1)
    else:
      if not stat.S_ISREG(os.stat(path).st_mode):
        raise BrokenXml("is no regular file")
      with pathlib.Path(path).open("rb") as file:
        raw = file.read(max_bytes + 1)
    if len(raw) > max_bytes:
      raise BrokenXml(f"more than {max_bytes} bytes")
    return parse(raw)
  except OSError as error:
    raise BrokenXml(f"{name}: {error.strerror}") from None
  except BrokenXml as error:
    raise BrokenXml(f"{name}: {error}") from None


def parse(raw: bytes) -> ElementTree.Element:
  """The tree of a document; tags and attributes without their name spaces.

  Raises:
    BrokenXml: it is no XML, declares a document type or entities, or is too
      deep or too large.
  """
  builder = ElementTree.TreeBuilder()
  parser = expat.ParserCreate(namespace_separator="}")
  parser.SetParamEntityParsing(expat.XML_PARAM_ENTITY_PARSING_NEVER)
  depth, count = 0, 0

  def start(tag: str, attributes: dict[str, str]) -> None:
    nonlocal depth, count
    depth, count = depth + 1, count + 1
    if depth > MAX_DEPTH:
      raise BrokenXml(f"more than {MAX_DEPTH} elements inside each other")
    if count > MAX_ELEMENTS:
      raise BrokenXml(f"more than {MAX_ELEMENTS} elements")
    builder.start(
      _local(tag), {_local(key): value for key, value in attributes.items()}
    )

  def end(tag: str) -> None:
    nonlocal depth
    depth -= 1
    builder.end(_local(tag))

  def refuse(*unused: object) -> NoReturn:
    raise BrokenXml("declares a document type or an entity")

  parser.StartElementHandler = start
  parser.EndElementHandler = end
  parser.CharacterDataHandler = builder.data
  parser.StartDoctypeDeclHandler = refuse
  parser.EntityDeclHandler = refuse
  parser.UnparsedEntityDeclHandler = refuse
  parser.ExternalEntityRefHandler = refuse
  try:
    parser.Parse(raw, True)
  except expat.ExpatError as error:
    raise BrokenXml(f"is no XML ({expat.ErrorString(error.code)})") from None
  except (ValueError, LookupError) as error:
    if isinstance(error, BrokenXml):
      raise
    raise BrokenXml("has an unknown encoding") from None
  return builder.close()


def _local(name: str) -> str:
  return name.rpartition("}")[2]
