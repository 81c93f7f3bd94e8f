"""Batches of a SeqIO task or mixture, made while the run goes on.

Imports TensorFlow: data/pipeline.py imports this module only when it is used.

TensorFlow can save an iterator's place, but not cheaply enough for every
batch. So snapshots are taken now and then, and a place is "k batches after
that snapshot"; restoring makes those k batches once more and drops them.
"""

import importlib
import logging
import pathlib
import re
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from byt5_diffusion.data import (
  captions,
  native_logs,
  pipeline,
  rejections,
  state,
)

with native_logs.quiet():
  import seqio
  import tensorflow as tf

Batch = dict[str, np.ndarray]
_log = logging.getLogger(__name__)

# A snapshot is due when its cost is below this share of the time since the
# last one.
_SNAPSHOT_SHARE = 0.02
_NUMBERS_AT_ONCE = 1 << 16


def registered(name: str, module: str | None) -> str:
  """SeqIO's name of the task or mixture `name`, having imported `module`.

  A module may have a function `register(name) -> name`, which makes tasks whose
  names say more than SeqIO's may (a folder): tasks/image_caption_folder.py.
  """
  register = getattr(_import(module), "register", None) if module else None
  return register(name) if register else name


def is_registered(name: str) -> bool:
  """Whether SeqIO knows a task or mixture of this name."""
  return name in _known()


def load(name: str, module: str | None, split: str) -> Any:
  """The task or mixture `name`, having imported `module` first."""
  asked, name = name, registered(name, module)
  try:
    provider = seqio.get_mixture_or_task(name)
  except ValueError as error:
    raise ValueError(
      f"No SeqIO task or mixture is called {name!r}. Name the module that "
      "registers it in mixture_or_task_module (or import it in the gin file); "
      f"modules imported so far register {sorted(_known())}."
    ) from error
  if split not in provider.splits:
    raise pipeline.EmptySplit(
      f"{asked!r} has no split {split!r}, only {sorted(provider.splits)}."
    )
  return provider


def captions_of(name: str, module: str | None) -> captions.Captions:
  """How a task's or mixture's captions become tokens.

  Raises:
    ValueError: the tasks of a mixture disagree.
  """
  provider = seqio.get_mixture_or_task(registered(name, module))
  tasks = getattr(provider, "tasks", None) or [provider]
  found = [captions.of_task(x.name, x.output_features) for x in tasks]
  if any(one != found[0] for one in found):
    raise ValueError(
      f"The tasks of {name!r} make tokens of their captions in different ways: "
      + ", ".join(sorted({str(one.mode) for one in found}))
      + ". A model reads one kind."
    )
  return found[0]


def _import(module: str) -> Any:
  try:
    return importlib.import_module(module)
  except ModuleNotFoundError as error:
    if not f"{module}.".startswith(f"{error.name}."):
      raise  # The module is there; something that it imports is not.
    raise ValueError(
      f"mixture_or_task_module = {module!r}: there is no module {error.name}."
    ) from None


def _known() -> set[str]:
  return {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}


def explain(error: Exception, what: str) -> Exception:
  """The reason inside a tf.data error, without TensorFlow's wrapping."""
  for ledger in rejections.ledgers():
    if ledger.error and str(ledger.error).splitlines()[0] in str(error):
      return ledger.error
  # A Python exception comes as "Type: message", and then its traceback.
  message = str(error).partition("Traceback (most recent call last)")[0]
  missing = re.search(r"\bImportError: (.*pip install.*)", message)
  if missing:
    return ImportError(f"Reading {what} failed: {missing[1]}")
  message = re.sub(r"\{\{.*?\}\}|\[\[|\]\]|\[Op:\w+\].*", "", message).strip()
  return RuntimeError(
    f"Reading {what} failed: {message or type(error).__name__}"
  )


def examples(
  name: str,
  task_feature_lengths: Mapping[str, int],
  split: str,
  *,
  seed: int,
  module: str | None,
  endless: bool,
) -> Iterator[Batch]:
  """A split's task features, one example at a time, in the source's order.

  Args:
    name: of the task or mixture.
    task_feature_lengths: see data/pipeline.py.
    split: which split.
    seed: of random preprocessing and mixing.
    module: imported first.
    endless: whether a split without an end is welcome.
  """
  _hide_accelerators()
  ds = load(name, module, split).get_dataset(
    sequence_length=dict(task_feature_lengths),
    split=split,
    shuffle=False,
    seed=seed,
    num_epochs=1,
    try_in_mem_cache=False,
  )
  what = f"split {split!r} of {name!r}"
  if not endless and int(ds.cardinality()) == tf.data.INFINITE_CARDINALITY:
    raise ValueError(f"{what} has no end: say how many, in num_examples.")
  ds = ds.map(lambda ex: {key: ex[key] for key in task_feature_lengths})
  iterator = ds.prefetch(64).as_numpy_iterator()
  return _explained(iterator, what)


def _explained(iterator: Iterator[Batch], what: str) -> Iterator[Batch]:
  while True:
    try:
      yield next(iterator)
    except StopIteration:
      return
    except tf.errors.OpError as error:
      raise explain(error, what) from None


class Live:
  """The Producer (data/pipeline.py) of this host's streams of a task.

  Attributes:
    provider: the SeqIO task or mixture.
    identity, num_examples, captions: see Producer.
  """

  def __init__(
    self,
    identity: dict[str, Any],
    streams: range,
    *,
    feature_converter_cls: Callable[..., Any],
    module: str | None = None,
    use_cached: bool = False,
    host_count: int = 1,
  ):
    _hide_accelerators()
    self._what = f"split {identity['split']!r} of {identity['task']!r}"
    self.provider = load(identity["task"], module, identity["split"])
    self._feature_converter_cls = feature_converter_cls
    self._streams = streams
    self.num_examples: int | None = _num_examples(
      self.provider, identity["split"]
    )
    self.captions = captions_of(identity["task"], module)
    source = getattr(self.provider, "source", None)  # A mixture has none.
    self.identity = {
      "kind": "live",
      **identity,
      "use_cached": use_cached,
      "num_examples": self.num_examples,
      "fingerprint": getattr(source, "fingerprint", None),
    }
    self._end = self._last_batch(host_count)
    self._iterators: dict[int, Any] = {}
    self._used = True
    # TensorFlow's threads may be calling Python: iterators have to go before
    # the interpreter does, or its exit waits for them for ever.
    weakref.finalize(self, self._iterators.clear)
    self._begin(0, dict.fromkeys(streams, (0, b"")))

  def _dataset(self, stream: int) -> tf.data.Dataset:
    identity = self.identity
    ds = self.provider.get_dataset(
      sequence_length=identity["task_feature_lengths"],
      split=identity["split"],
      use_cached=identity["use_cached"],
      shuffle=identity["shuffle"],
      seed=identity["seed"],
      shard_info=seqio.ShardInfo(stream, identity["num_streams"]),
      num_epochs=identity["num_epochs"],
      # An in-memory cache would freeze the first epoch's order, and be part of
      # every snapshot.
      try_in_mem_cache=False,
    )
    converter = self._feature_converter_cls(pack=False)
    ds = converter(ds, identity["task_feature_lengths"])
    rows = identity["batch_size"] // identity["num_streams"]
    ds = ds.batch(rows, drop_remainder=True).prefetch(1)
    options = tf.data.Options()
    options.deterministic = True
    # Every map runs on all cores; looking for fewer costs more than it saves.
    options.autotune.enabled = False
    return ds.with_options(options)

  def numbers(self, count: int) -> Iterator[tuple[np.ndarray, int]]:
    """(numbers, seed) of the first examples of a seqio_tasks.SupplySource.

    In the order of training, of all streams; no example is made.
    """
    identity = self.identity
    ds = self.provider.source.get_dataset(
      split=identity["split"],
      shuffle=identity["shuffle"],
      seed=identity["seed"],
    )
    options = tf.data.Options()
    options.deterministic = True
    # Numbers are cheaper than threads.
    options.autotune.enabled = False
    options.threading.private_threadpool_size = 1
    ds = ds.take(count).batch(_NUMBERS_AT_ONCE).with_options(options)
    for batch in ds.as_numpy_iterator():
      yield batch["index"], int(batch["seed"][0])

  def _last_batch(self, host_count: int) -> int | None:
    """Where a finite pass must end on every host; None: where the data end."""
    epochs, streams = self.identity["num_epochs"], self.identity["num_streams"]
    if epochs is None or host_count == 1:
      return None
    if self.num_examples is None:
      raise ValueError(
        f"Nobody knows how many examples {self._what} has, so {host_count} "
        "hosts could not agree where it ends: prepare the data set."
      )
    rows = self.identity["batch_size"] // streams
    return (self.num_examples // streams) * epochs // rows

  def _begin(
    self, num_batches: int, snapshots: Mapping[int, tuple[int, bytes]]
  ) -> None:
    # Data sets anew, too: iterated twice, one shuffles in another order.
    if self._used:
      self._iterators.clear()
      self._iterators.update({s: iter(self._dataset(s)) for s in self._streams})
      self._used = False
    self._num_batches = num_batches
    self._snapshots = dict(snapshots)
    self._snapshots_work = True
    self._snapshot_cost = 0.0
    self._snapshot_time = time.monotonic()

  def next_batch(self) -> Batch:
    if self._end is not None and self._num_batches >= self._end:
      raise StopIteration
    self._snapshot_if_due()
    self._used = True
    parts = [self._next_rows(it) for it in self._iterators.values()]
    self._num_batches += 1
    if len(parts) == 1:
      return parts[0]
    return {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}

  def _next_rows(self, iterator: Any) -> Batch:
    try:
      return {name: value.numpy() for name, value in next(iterator).items()}
    except StopIteration:
      if self._end is not None:
        raise ValueError(
          f"{self._what} has fewer examples than its source says, so the hosts "
          "would stop at different steps. Prepare the data set, or read it on "
          "one host."
        ) from None
      if self.identity["num_epochs"] is None:
        raise ValueError(
          f"{self._what} has an empty stream: {self.identity['num_streams']} "
          f"streams share {self.num_examples} examples."
        ) from None
      raise
    except tf.errors.OpError as error:
      raise explain(error, self._what) from None

  def place(self) -> state.Place:
    return state.Place(self._num_batches, dict(self._snapshots))

  def _snapshot_if_due(self) -> None:
    waited = time.monotonic() - self._snapshot_time
    if not self._snapshots_work or not self._num_batches:
      return
    if self._snapshot_cost > _SNAPSHOT_SHARE * waited:
      return
    self.snapshot()

  def snapshot(self) -> None:
    """Saves every stream's place now."""
    start = time.monotonic()
    try:
      self._snapshots = {
        stream: (self._num_batches, _save(iterator))
        for stream, iterator in self._iterators.items()
      }
    except tf.errors.FailedPreconditionError as error:
      self._snapshots_work = False
      _log.warning(
        "%s cannot save its place (%s): a resumed run will make again, and "
        "drop, all batches before it. Prepare the data set to avoid that.",
        self._what,
        str(error).splitlines()[0][:200],
      )
    self._snapshot_time = time.monotonic()
    self._snapshot_cost = self._snapshot_time - start

  def restore(self, place: state.Place) -> None:
    missing = set(self._streams) - set(place.streams)
    if missing:
      raise ValueError(
        f"The saved place has streams {sorted(place.streams)} and lacks "
        f"{sorted(missing)} of this host: put the hosts' states together with "
        "state.merge when saving."
      )
    mine = {stream: place.streams[stream] for stream in self._streams}
    self._begin(place.num_batches, mine)
    self._used = place.num_batches > 0
    for stream, iterator in self._iterators.items():
      before, snapshot = mine[stream]
      if snapshot:
        _load(iterator, snapshot)
      for _ in range(place.num_batches - before):
        self._next_rows(iterator)


def _hide_accelerators() -> None:
  """Only the models use them; TensorFlow would take their memory."""
  try:
    # It looks for drivers, and reports each that is not there.
    with native_logs.quiet():
      tf.config.set_visible_devices([], "GPU")
  except (RuntimeError, ValueError):
    _log.info("TensorFlow had been started before; its devices stay visible.")


def _num_examples(provider: Any, split: str) -> int | None:
  try:
    return provider.num_input_examples(split)
  except (KeyError, ValueError, NotImplementedError):
    return None


def _save(iterator: Any) -> bytes:
  """The iterator's place: the files of a TensorFlow checkpoint, as bytes."""
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder)
    tf.train.Checkpoint(iterator=iterator).write(str(path / "place"))
    files = sorted(path.iterdir())
    return state.pack(
      {"files": [file.name for file in files]},
      [file.read_bytes() for file in files],
    )


def _load(iterator: Any, blob: bytes) -> None:
  header, parts = state.unpack(blob)
  with tempfile.TemporaryDirectory() as folder:
    for name, part in zip(header["files"], parts, strict=True):
      if pathlib.PurePath(name).name != name:
        raise ValueError(f"The data state names a file {name!r}.")
      (pathlib.Path(folder) / name).write_bytes(part)
    try:
      tf.train.Checkpoint(iterator=iterator).read(
        str(pathlib.Path(folder) / "place")
      ).assert_consumed()
    except (tf.errors.OpError, AssertionError, ValueError) as error:
      raise ValueError(
        "The saved place does not fit the data pipeline as it is now (its task "
        f"has changed since): {str(error).splitlines()[0][:300]}"
      ) from error
