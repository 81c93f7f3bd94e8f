"""PyTorch's zip files of tensors, read without PyTorch and without unpickling.

A pickle is a program, so nothing of it is run: its instructions are read one by
one (pickletools, which only parses), and a small machine of our own carries out
those that build dicts, lists, tuples and numbers. Of the callables that a
pickle may name four have a meaning, and that meaning is ours; no module is ever
imported, and any other name ends the reading. There is no other way in.

The bytes of tensors lie uncompressed in the zip and are read by range.
"""

import io
import pathlib
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from byt5_diffusion import stored_trees
from byt5_diffusion.conversion import names, tensor_files

ConversionError = names.ConversionError
Place = tensor_files.Place

# That of a model of 10,000 arrays has 2 MB.
MAX_PICKLE_BYTES = 4 * 2**20
MAX_MEMBERS = 50_000
MAX_DIRECTORY_BYTES = 8 * 2**20
_STORAGES = {
  "torch FloatStorage": "float32",
  "torch DoubleStorage": "float64",
  "torch HalfStorage": "float16",
  "torch BFloat16Storage": "bfloat16",
  "torch LongStorage": "int64",
  "torch IntStorage": "int32",
  "torch ShortStorage": "int16",
  "torch CharStorage": "int8",
  "torch ByteStorage": "uint8",
  "torch BoolStorage": "bool",
}
_TENSOR = "torch._utils _rebuild_tensor_v2"
_PARAMETER = "torch._utils _rebuild_parameter"
_ORDERED_DICT = "collections OrderedDict"
_ALLOWED = {*_STORAGES, _TENSOR, _PARAMETER, _ORDERED_DICT}
_KEY = re.compile(r"[A-Za-z0-9_]{1,64}")
_ZIP_START, _ZIP_END = b"PK\x03\x04", b"PK\x05\x06"
_ZIP64_LOCATOR = b"PK\x06\x07"


class _Global(NamedTuple):
  """A name that the pickle mentions; nothing is behind it."""

  name: str


class _Storage(NamedTuple):
  key: str
  dtype: np.dtype[Any]
  length: int


class _Tensor(NamedTuple):
  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


class _Refused(ValueError):
  """What a file of tensors has no need of."""


_MARK = object()


class _Machine:
  """Carries out a pickle's instructions on plain values."""

  def __init__(self) -> None:
    self.stack: list[Any] = []
    self.memo: dict[int, Any] = {}

  def run(self, content: bytes) -> Any:
    """The value that the pickle builds.

    Raises:
      _Refused, or what pickletools raises for what is no pickle.
    """
    for opcode, argument, _ in pickletools.genops(io.BytesIO(content)):
      if opcode.name == "STOP":
        [value] = self.stack
        return value
      step = _STEPS.get(opcode.name)
      if step is None:
        raise _Refused(f"the instruction {opcode.name} is not for tensors")
      step(self, argument)
    raise _Refused("it has no end")

  def pop_mark(self) -> list[Any]:
    """What was pushed since the last mark."""
    for i in range(len(self.stack) - 1, -1, -1):
      if self.stack[i] is _MARK:
        items = self.stack[i + 1 :]
        del self.stack[i:]
        return items
    raise _Refused("a mark is missing")

  def remember(self, index: int) -> None:
    """Puts the top of the stack into the memo."""
    self.memo[index] = self.stack[-1]

  def memoize(self, _: Any) -> None:
    """As remember, under the next index."""
    self.memo[len(self.memo)] = self.stack[-1]

  def recall(self, index: int) -> None:
    """Pushes a value of the memo."""
    self.stack.append(self.memo[index])

  def push_tuple(self, count: int) -> None:
    """The top values as one tuple."""
    items = self.stack[len(self.stack) - count :] if count else []
    if len(items) != count or any(item is _MARK for item in items):
      raise _Refused("the stack is too short")
    del self.stack[len(self.stack) - count :]
    self.stack.append(tuple(items))

  def name_of(self, argument: str) -> None:
    """GLOBAL: "module name", of which some are known."""
    if argument not in _ALLOWED:
      raise _Refused(f"it asks for {argument.replace(' ', '.')[:120]!r}")
    self.stack.append(_Global(argument))

  def stack_name(self, _: Any) -> None:
    """STACK_GLOBAL: module and name are on the stack."""
    name, module = self.stack.pop(), self.stack.pop()
    if not isinstance(name, str) or not isinstance(module, str):
      raise _Refused("a name is no text")
    self.name_of(f"{module} {name}")

  def persistent(self, _: Any) -> None:
    """BINPERSID: a storage, as PyTorch writes it."""
    match self.stack.pop():
      case ("storage", _Global(name), str(key), str(), int(count)) if (
        name in _STORAGES and _KEY.fullmatch(key) and 0 <= count < 2**48
      ):
        dtype = tensor_files.DTYPES[_STORAGES[name]]
        self.stack.append(_Storage(key, dtype, count))
      case _:
        raise _Refused("a storage is not described as PyTorch does")

  def call(self, _: Any) -> None:
    """REDUCE: of the known names, with the arguments that they have."""
    arguments, function = self.stack.pop(), self.stack.pop()
    match function, arguments:
      case _Global(name), () if name == _ORDERED_DICT:
        self.stack.append({})
      case _Global(name), (_Tensor() as tensor, bool(), dict()) if (
        name == _PARAMETER
      ):
        self.stack.append(tensor)
      case _Global(name), (_Storage() as storage, int(offset), *rest) if (
        name == _TENSOR and 4 <= len(rest) <= 5 and rest[-1] in ({}, None)
      ):
        self.stack.append(_tensor(storage, offset, rest[0], rest[1]))
      case _:
        raise _Refused("a call is not one that builds a tensor")

  def build(self, _: Any) -> None:
    """BUILD: attributes of a dict (`_metadata`), which nobody needs."""
    state = self.stack.pop()
    if not isinstance(self.stack[-1], dict) or not isinstance(state, dict):
      raise _Refused("attributes are set on something else than a dict")

  def set_items(self, items: list[Any]) -> None:
    """Puts pairs into the dict below."""
    if not isinstance(self.stack[-1], dict) or len(items) % 2:
      raise _Refused("items are set in something else than a dict")
    keys = items[::2]
    if not all(isinstance(key, (str, int)) for key in keys):
      raise _Refused("a key is neither text nor number")
    if any(item is _MARK for item in items):
      raise _Refused("a mark is no value")
    self.stack[-1].update(zip(keys, items[1::2], strict=True))

  def append(self, items: list[Any]) -> None:
    """Puts values into the list below."""
    if not isinstance(self.stack[-1], list):
      raise _Refused("items are added to something else than a list")
    self.stack[-1].extend(items)


def _tensor(
  storage: _Storage, offset: int, shape: Any, strides: Any
) -> _Tensor:
  """A view of a storage, all of which lies in it."""
  try:
    sizes = tensor_files.check_shape(shape, "a tensor")
    steps = tensor_files.check_shape(strides, "a tensor's stride")
  except ConversionError as error:
    raise _Refused(str(error)) from None
  inside = type(offset) is int and 0 <= offset <= storage.length
  if len(sizes) != len(steps) or not inside:
    raise _Refused("a tensor has an impossible place")
  pairs = list(zip(sizes, steps, strict=True))
  if any(size > 1 and not step for size, step in pairs):
    raise _Refused("a tensor repeats its numbers")
  last = offset + sum((size - 1) * step for size, step in pairs)
  if 0 not in sizes and last >= storage.length:
    raise _Refused("a tensor lies outside of its storage")
  return _Tensor(storage, offset, sizes, steps)


def _push(machine: _Machine, value: Any) -> None:
  machine.stack.append(value)


def _constant(value: Any) -> Callable[[_Machine, Any], None]:
  return lambda machine, _: machine.stack.append(value)


def _tuple_of(count: int) -> Callable[[_Machine, Any], None]:
  return lambda machine, _: machine.push_tuple(count)


def _pairs(machine: _Machine) -> list[Any]:
  value, key = machine.stack.pop(), machine.stack.pop()
  return [key, value]


_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
  **dict.fromkeys(("PROTO", "FRAME"), lambda machine, argument: None),
  **dict.fromkeys(
    (
      *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
      *("BINUNICODE", "SHORT_BINUNICODE"),
    ),
    _push,
  ),
  "NONE": _constant(None),
  "NEWTRUE": _constant(True),
  "NEWFALSE": _constant(False),
  "MARK": _constant(_MARK),
  "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
  "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
  "EMPTY_TUPLE": _tuple_of(0),
  "TUPLE1": _tuple_of(1),
  "TUPLE2": _tuple_of(2),
  "TUPLE3": _tuple_of(3),
  "TUPLE": lambda machine, _: _push(machine, tuple(machine.pop_mark())),
  **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Machine.remember),
  **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.recall),
  "MEMOIZE": _Machine.memoize,
  "GLOBAL": _Machine.name_of,
  "STACK_GLOBAL": _Machine.stack_name,
  "BINPERSID": _Machine.persistent,
  "REDUCE": _Machine.call,
  "BUILD": _Machine.build,
  "SETITEM": lambda machine, _: machine.set_items(_pairs(machine)),
  "SETITEMS": lambda machine, _: machine.set_items(machine.pop_mark()),
  "APPEND": lambda machine, _: machine.append([machine.stack.pop()]),
  "APPENDS": lambda machine, _: machine.append(machine.pop_mark()),
}


def read_places(path: pathlib.Path) -> dict[str, Place]:
  """{name: where it lies} of a file of torch.save({name: tensor}).

  A dict that holds one under "state_dict" is taken as that one.

  Raises:
    ConversionError: another format, damaged, or a pickle that asks for more
      than tensors; nothing of it has been carried out.
  """
  try:
    with open(path, "rb") as file:
      start = file.read(4)
      if start != _ZIP_START:
        raise ConversionError(_not_zip(path, start))
      members = _members(file, path)
      [stem] = [k.removesuffix("data.pkl") for k in members if _is_pickle(k)]
      _check_byte_order(file, members.get(f"{stem}byteorder"))
      offset, size = members[f"{stem}data.pkl"]
      if size > MAX_PICKLE_BYTES:
        raise ConversionError(f"{path}: its pickle has {size} bytes; refused.")
      file.seek(offset)
      content = file.read(size)
    return _places(path, _Machine().run(content), members, stem)
  except ConversionError:
    raise
  except _Refused as error:
    raise ConversionError(
      f"{path} is no plain file of tensors: {error}. Nothing of it was run."
    ) from None
  except OSError as error:
    raise ConversionError(f"{path} can't be read: {error.strerror}.") from None
  # zipfile and pickletools raise whatever comes to hand.
  except Exception as error:
    raise ConversionError(
      f"{path} is damaged, or no file of torch.save: {str(error)[:120]}"
    ) from None


def _is_pickle(member: str) -> bool:
  return member == "data.pkl" or member.endswith("/data.pkl")


def _not_zip(path: pathlib.Path, start: bytes) -> str:
  if start[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04"):
    return (
      f"{path} is of PyTorch before 1.6, a bare pickle, which is never read."
      " If you trust it: torch.save(torch.load(OLD, weights_only=True), NEW)."
    )
  return f"{path} is not a zip file of torch.save."


def _members(file: Any, path: pathlib.Path) -> dict[str, tuple[int, int]]:
  """{member: (offset of its bytes, size)}; no two share a byte."""
  found: dict[str, tuple[int, int]] = {}
  if _directory_bytes(file) > MAX_DIRECTORY_BYTES:
    raise ConversionError(f"{path} has an absurd number of members; refused.")
  with zipfile.ZipFile(file) as archive:
    infos = archive.infolist()
  if len(infos) > MAX_MEMBERS:
    raise ConversionError(f"{path} has {len(infos)} members; refused.")
  file_size = path.stat().st_size
  for info in infos:
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
      raise ConversionError(
        f"{path}: {info.filename[:80]!r} is compressed or encrypted, as"
        " torch.save never does; refused."
      )
    if info.filename in found:
      raise ConversionError(f"{path} has {info.filename[:80]!r} twice.")
    file.seek(info.header_offset)
    local = file.read(30)
    if len(local) < 30 or local[:4] != _ZIP_START:
      raise ConversionError(f"{path} is damaged: a member has no header.")
    name_length, extra_length = struct.unpack("<HH", local[26:])
    offset = info.header_offset + 30 + name_length + extra_length
    if info.file_size != info.compress_size or (
      offset + info.file_size > file_size
    ):
      raise ConversionError(f"{path} is damaged: a member has no bytes.")
    found[info.filename] = (offset, info.file_size)
  end = 0
  for name, (offset, size) in sorted(found.items(), key=lambda x: x[1]):
    if offset < end:
      raise ConversionError(f"{path}: {name[:80]!r} overlaps another; refused.")
    end = offset + size
  return found


def _directory_bytes(file: Any) -> int:
  """The size of the list of members that zipfile will read, whole.

  It is said by the record at the file's end, or, in large files, by the one of
  64 bits before it; zipfile looks for them at the same places.
  """
  size = file.seek(0, io.SEEK_END)
  file.seek(max(0, size - 2**16 - 22 - 76))
  tail = file.read()
  at = len(tail) - 22
  if tail[at : at + 4] != _ZIP_END or tail[-2:] != b"\0\0":
    at = tail.rfind(_ZIP_END)
  if at < 0 or len(tail) < at + 22:
    raise _Refused("its zip has no end")
  [count] = struct.unpack_from("<I", tail, at + 12)
  if at >= 76 and tail[at - 20 : at - 16] == _ZIP64_LOCATOR:
    [count] = struct.unpack_from("<Q", tail, at - 76 + 40)
  return count


def _check_byte_order(file: Any, member: tuple[int, int] | None) -> None:
  if member is not None:
    file.seek(member[0])
    if file.read(min(member[1], 16)) != b"little":
      raise _Refused("its numbers are not little-endian")


def _places(
  path: pathlib.Path,
  tree: Any,
  members: dict[str, tuple[int, int]],
  stem: str,
) -> dict[str, Place]:
  if isinstance(tree, dict) and isinstance(tree.get("state_dict"), dict):
    tree = tree["state_dict"]
  if not isinstance(tree, dict):
    raise _Refused("it holds no dict")
  found = {}
  for name, tensor in tree.items():
    what = tensor_files.check_name(name, str(path))
    if not isinstance(tensor, _Tensor):
      raise _Refused(f"{what[:80]} is not a tensor")
    storage = tensor.storage
    member = members.get(f"{stem}data/{storage.key}")
    width = storage.dtype.itemsize
    if member is None or member[1] != storage.length * width:
      raise _Refused(f"the bytes of {what[:80]} are missing")
    place = Place(
      path,
      member[0] + tensor.offset * width,
      tensor.shape,
      storage.dtype,
      tensor.strides,
    )
    if tensor.strides == _plain_strides(tensor.shape) or 0 in tensor.shape:
      place = place._replace(strides=None)
    elif _extent(tensor) > 4 * stored_trees.nbytes(tensor.shape, np.uint8):
      raise _Refused(f"{what[:80]} is scattered over its storage")
    found[name] = place
  return found


def _extent(tensor: _Tensor) -> int:
  pairs = zip(tensor.shape, tensor.strides, strict=True)
  return 1 + sum((size - 1) * stride for size, stride in pairs)


def _plain_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
  strides, step = [], 1
  for size in reversed(shape):
    strides.append(step)
    step *= max(size, 1)
  return tuple(reversed(strides))
