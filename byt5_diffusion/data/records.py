"""Prepared data sets: ArrayRecord shards and a manifest. No TensorFlow.

  <folder>/manifest.json
  <folder>/<split>-00000-of-00008.array_record ...

Example i of a split is record i // S of its shard i % S (S shards), so the
order of preparation can be read back. A record is, for every feature in the
manifest's order, its sizes as little-endian uint32, then its bytes. A folder
appears complete or not at all: it is written beside its place and renamed.
"""

import contextlib
import fcntl
import hashlib
import json
import math
import os
import pathlib
import shutil
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from array_record.python import array_record_module

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_OPTIONS = "group_size:1,zstd:3"  # One record per chunk: random access.
_LOCK = "being_prepared.lock"

Example = dict[str, np.ndarray]


class BadRecords(ValueError):
  """A prepared data set that cannot be read; the message names the file."""


def encode(example: Mapping[str, np.ndarray], names: Sequence[str]) -> bytes:
  """Sizes and bytes of the named features, one after the other."""
  parts = []
  for name in names:
    array = np.asarray(example[name])
    parts.append(struct.pack(f"<{array.ndim}I", *array.shape))
    parts.append(array.astype(array.dtype.newbyteorder("<")).tobytes())
  return b"".join(parts)


def decode(record: bytes, specs: Mapping[str, Mapping[str, Any]]) -> Example:
  """Inverse of `encode`; `specs` is the manifest's "features".

  Raises:
    ValueError: the record's sizes do not add up, or differ from `specs`.
  """
  example, at = {}, 0
  for name, spec in specs.items():
    rank, dtype = len(spec["shape"]), np.dtype(spec["dtype"]).newbyteorder("<")
    try:
      shape = struct.unpack_from(f"<{rank}I", record, at)
    except struct.error as error:
      raise ValueError(f"the record ends before {name!r}") from error
    if any(
      fixed not in (None, size)
      for fixed, size in zip(spec["shape"], shape, strict=True)
    ):
      raise ValueError(f"{name!r} has shape {shape}, not {spec['shape']}")
    at += 4 * rank
    count = math.prod(shape)
    if at + count * dtype.itemsize > len(record):
      raise ValueError(f"the record ends within {name!r}")
    array = np.frombuffer(record, dtype, count, at).reshape(shape)
    example[name] = array.astype(dtype.newbyteorder("="), copy=False)
    at += array.nbytes
  if at != len(record):
    raise ValueError(f"{len(record) - at} bytes after the last feature")
  return example


def sha256(path: pathlib.Path) -> str:
  """Hex digest of a file."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def write(
  output_dir: str | os.PathLike[str],
  *,
  task: str,
  task_feature_lengths: Mapping[str, int],
  splits: Mapping[str, Iterable[Mapping[str, np.ndarray]]],
  features: Mapping[str, Mapping[str, Any]],
  num_shards: int = 8,
  notes: Mapping[str, Any] | None = None,
  files: Mapping[str, bytes] | None = None,
) -> dict[str, Any]:
  """Writes a prepared data set; returns its manifest.

  Args:
    output_dir: must not exist, or be empty: a data set is never overwritten.
    task: name of the task or mixture, checked when the set is opened.
    task_feature_lengths: lengths that it was made with, checked likewise.
    splits: {split: examples}.
    features: {name: {"dtype": name, "shape": [sizes, None = varies]}}.
    num_shards: files per split.
    notes: anything worth remembering (seed, source), JSON.
    files: {plain name: content} of what is put beside the shards.

  Raises:
    FileExistsError: something is there already, or is being written there.
    ValueError: a split is empty, or an example does not fit `features`.
  """
  if num_shards < 1:
    raise ValueError(f"{num_shards=} must be at least 1.")
  target = pathlib.Path(output_dir).absolute()
  if target.exists() and (not target.is_dir() or any(target.iterdir())):
    raise FileExistsError(
      f"{target} exists and is not empty. A prepared data set is never "
      "overwritten: choose another output_dir, or remove it yourself."
    )
  with _workplace(target) as folder:
    manifest = {
      "format_version": FORMAT_VERSION,
      "task": task,
      "task_feature_lengths": dict(task_feature_lengths),
      "features": {name: dict(spec) for name, spec in features.items()},
      "splits": {
        split: _write_split(folder, split, examples, features, num_shards)
        for split, examples in splits.items()
      },
      "notes": dict(notes or {}),
    }
    for name, content in (files or {}).items():
      (folder / _plain_name(name)).write_bytes(content)
      _sync(folder / name)
    path = folder / MANIFEST
    path.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    _sync(path)
    (folder / _LOCK).unlink()
    _sync(folder)
    folder.replace(target)
  _sync(target.parent)
  return manifest


@contextlib.contextmanager
def _workplace(target: pathlib.Path) -> Iterator[pathlib.Path]:
  """A folder beside `target`, ours alone; a killed writer's is started anew."""
  folder = target.with_name(f".{target.name}.partial")
  folder.mkdir(parents=True, exist_ok=True)
  left = [path.name for path in folder.iterdir()]
  if left and _LOCK not in left:
    raise FileExistsError(f"{folder} holds files that are not ours: move it.")
  with (folder / _LOCK).open("w") as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      raise FileExistsError(
        f"Another process is preparing {target} just now."
      ) from error
    for path in folder.iterdir():
      if path.name != _LOCK:
        path.unlink()
    try:
      yield folder
    except BaseException:
      shutil.rmtree(folder, ignore_errors=True)
      raise


def _write_split(
  folder: pathlib.Path,
  split: str,
  examples: Iterable[Mapping[str, np.ndarray]],
  features: Mapping[str, Mapping[str, Any]],
  num_shards: int,
) -> dict[str, Any]:
  """Writes one split's shards; returns its part of the manifest."""
  _plain_name(split)
  paths = [
    folder / f"{split}-{i:05d}-of-{num_shards:05d}.array_record"
    for i in range(num_shards)
  ]
  writers = [
    array_record_module.ArrayRecordWriter(str(path), _OPTIONS) for path in paths
  ]
  counts = [0] * num_shards
  try:
    for index, example in enumerate(examples):
      record = encode(example, list(features))
      try:
        decode(record, features)
      except ValueError as error:
        raise ValueError(f"Example {index} of {split!r}: {error}.") from error
      writers[index % num_shards].write(record)
      counts[index % num_shards] += 1
  finally:
    for writer in writers:
      writer.close()
  if not counts[0]:
    raise ValueError(f"Split {split!r} gave no example at all.")
  for path in paths:
    _sync(path)
  shards = [
    {
      "file": path.name,
      "num_examples": count,
      "bytes": path.stat().st_size,
      "sha256": sha256(path),
    }
    for path, count in zip(paths, counts, strict=True)
  ]
  return {"num_examples": sum(counts), "shards": shards}


def _sync(path: pathlib.Path) -> None:
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def _plain_name(name: str) -> str:
  """A name from a manifest must not lead out of its folder."""
  if not name or name != os.path.basename(name) or name in (".", ".."):
    raise BadRecords(f"{name!r} is not a plain file name.")
  return name


def read_manifest(prepared_dir: str | os.PathLike[str]) -> dict[str, Any]:
  """The manifest of a prepared data set.

  Raises:
    BadRecords: there is none, or it is of another format.
  """
  path = pathlib.Path(prepared_dir) / MANIFEST
  try:
    manifest = json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError as error:
    raise BadRecords(
      f"{prepared_dir} is not a prepared data set: it has no {MANIFEST}. Make "
      "one with the `prepare` program."
    ) from error
  except ValueError as error:
    raise BadRecords(f"{path} is not JSON: {error}") from error
  version = manifest.get("format_version") if isinstance(manifest, dict) else 0
  if version != FORMAT_VERSION:
    raise BadRecords(
      f"{path} has format_version {version}, this program reads "
      f"{FORMAT_VERSION}: prepare the data set again."
    )
  return manifest


def verify(prepared_dir: str | os.PathLike[str]) -> None:
  """Compares every shard with the manifest's sha256; raises BadRecords."""
  manifest = read_manifest(prepared_dir)
  for split in manifest["splits"].values():
    for shard in split["shards"]:
      path = _checked_path(prepared_dir, shard)
      if sha256(path) != shard["sha256"]:
        raise BadRecords(f"{path} has changed since it was prepared (sha256).")


def _checked_path(
  prepared_dir: str | os.PathLike[str], shard: Mapping[str, Any]
) -> pathlib.Path:
  path = pathlib.Path(prepared_dir) / _plain_name(shard["file"])
  if not path.is_file():
    raise BadRecords(f"Shard {path} is missing.")
  if path.stat().st_size != shard["bytes"]:
    raise BadRecords(
      f"Shard {path} has {path.stat().st_size} bytes, its manifest says "
      f"{shard['bytes']}: it was cut short or replaced. Copy it again."
    )
  return path


class Records:
  """One split of a prepared data set: random access, in prepared order.

  Attributes:
    manifest: the data set's manifest.
    split: name of the split.
  """

  def __init__(self, prepared_dir: str | os.PathLike[str], split: str):
    self.manifest = read_manifest(prepared_dir)
    self.split = split
    if split not in self.manifest["splits"]:
      raise BadRecords(
        f"{prepared_dir} has no split {split!r}, only "
        f"{sorted(self.manifest['splits'])}."
      )
    shards = self.manifest["splits"][split]["shards"]
    self._paths = [_checked_path(prepared_dir, shard) for shard in shards]
    self._readers = [
      _open(path, shard["num_examples"])
      for path, shard in zip(self._paths, shards, strict=True)
    ]

  def __len__(self) -> int:
    return self.manifest["splits"][self.split]["num_examples"]

  def read(self, indices: Sequence[int] | np.ndarray) -> list[Example]:
    """Examples by their place in prepared order.

    Raises:
      BadRecords: a record is damaged; the message names its file.
    """
    index = np.asarray(indices, np.int64)
    places, shards = np.divmod(index, len(self._readers))
    examples: list[Example] = [{}] * len(index)
    for shard in np.unique(shards):
      rows = np.flatnonzero(shards == shard)
      for row, example in zip(
        rows.tolist(), self._read_shard(shard, places[rows]), strict=True
      ):
        examples[row] = example
    return examples

  def _read_shard(self, shard: int, places: np.ndarray) -> Iterator[Example]:
    try:
      for record in self._readers[shard].read(places.tolist()):
        yield decode(record, self.manifest["features"])
    except Exception as error:
      raise BadRecords(
        f"Shard {self._paths[shard]} is damaged: {error}"
      ) from error


def _open(path: pathlib.Path, count: int) -> Any:
  try:
    # Random access: reading ahead would only fetch what is thrown away.
    reader = array_record_module.ArrayRecordReader(
      str(path), "readahead_buffer_size:0"
    )
    found = reader.num_records()
  except Exception as error:
    raise BadRecords(f"Shard {path} cannot be read: {error}") from error
  if found != count:
    raise BadRecords(
      f"Shard {path} has {found} records, its manifest says {count}."
    )
  return reader
