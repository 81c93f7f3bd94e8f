"""One call opens the data of a run: `open_data` -> `Batches`.

  prepared_dir given   ArrayRecord shards in Grain's order; no TensorFlow
  otherwise            the SeqIO task or mixture, live (data/live.py)

Order. A data set is V = num_streams logical streams, a number that is fixed
when a run starts. Stream v gives rows [v B/V, (v+1) B/V) of every batch of B;
host h of n serves streams [h V/n, (h+1) V/n). So the rows of step s, put
together over the hosts, are the same for every n that divides V.

State. Batches are made ahead by a thread. `get_state` speaks of the batches
that the caller has received, never of those that wait in the queue.
"""

import hashlib
import os
import queue
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np

from byt5_diffusion import feature_converters
from byt5_diffusion.data import captions as captions_lib
from byt5_diffusion.data import records, state

Batch = dict[str, np.ndarray]


@runtime_checkable
class Batches(Protocol):
  """An iterator of batches whose place can be saved and restored.

  Attributes:
    num_examples: examples in the split, None if nobody knows.
    captions: how captions became tokens.
  """

  num_examples: int | None
  captions: captions_lib.Captions

  def __iter__(self) -> Iterator[Batch]: ...

  def __next__(self) -> Batch:
    """This host's rows of the next batch: {name: [B / host_count, ...]}."""

  def get_state(self) -> bytes:
    """The place after the last batch that `__next__` returned."""

  def set_state(self, saved: bytes) -> None:
    """Goes to a saved place; of other data: ValueError."""


class EmptySplit(ValueError):
  """A split is absent, or finite and smaller than one batch."""


class Producer(Protocol):
  """Makes batches one by one, on one thread.

  Attributes:
    identity: what a state must agree with; JSON.
    num_examples, captions: see Batches.
  """

  identity: dict[str, Any]
  num_examples: int | None
  captions: captions_lib.Captions

  def next_batch(self) -> Batch:
    """The next batch; StopIteration at the end."""

  def place(self) -> state.Place:
    """The place after the last batch. Cheap: called for every batch."""

  def restore(self, place: state.Place) -> None:
    """Goes to a place."""


def open_data(
  *,
  mixture_or_task_name: str,
  task_feature_lengths: Mapping[str, int],
  split: str,
  batch_size: int,
  shuffle: bool = True,
  seed: int = 0,
  num_epochs: int | None = None,
  num_streams: int = 1,
  mixture_or_task_module: str | None = None,
  prepared_dir: str | None = None,
  feature_converter_cls: Callable[..., Any] | None = None,
  host_index: int = 0,
  host_count: int = 1,
  use_cached: bool = False,
  prefetch: int = 4,
) -> Batches:
  """Opens a split of a task, mixture or prepared data set.

  Args:
    mixture_or_task_name: SeqIO name; of a prepared set, the name it was made
      from.
    task_feature_lengths: {task feature: length}; see feature_converters.
    split: "train", "validation", ...
    batch_size: GLOBAL batch size; a host gets batch_size / host_count rows.
    shuffle: False keeps the data's order (evaluation).
    seed: of shuffling and of random preprocessing.
    num_epochs: passes over the data; None = endless. Epochs run into each
      other inside a batch, so a data set smaller than a batch still trains.
      The last incomplete batch of a finite pass is dropped; a pass without a
      single batch is an error.
    num_streams: V above; keep it for the life of a run. with 8, batches
      are the same on 1, 2, 4 or 8 hosts.
    mixture_or_task_module: imported first, so that it registers the task.
    prepared_dir: folder written by `prepare`.
    feature_converter_cls: makes the SeqIO converter (live), and its attribute
      `convert` is the same without TensorFlow (prepared). None: of captions and
      images; of the package's own, FEATURES says which lengths are needed.
    host_index: this host, in [0, host_count).
    host_count: hosts that share every batch.
    use_cached: SeqIO's own offline cache (live only).
    prefetch: batches made ahead.

  Raises:
    ValueError: arguments that do not fit each other or the data set.
  """
  streams = _streams(num_streams, host_index, host_count, batch_size)
  if feature_converter_cls is None:
    feature_converter_cls = feature_converters.TextToImageFeatureConverter
  features = getattr(feature_converter_cls, "FEATURES", None)
  if features is not None:  # A converter of another kind checks on its own.
    feature_converters.check_lengths(task_feature_lengths, features)
  identity = {
    "task": mixture_or_task_name,
    "task_feature_lengths": dict(task_feature_lengths),
    "split": split,
    "batch_size": batch_size,
    "shuffle": shuffle,
    "seed": seed,
    "num_epochs": num_epochs,
    "num_streams": num_streams,
  }
  if num_epochs is not None and num_epochs < 1:
    raise ValueError(f"{num_epochs=} must be positive, or None for endless.")
  producer: Producer
  if prepared_dir:
    producer = Prepared(
      prepared_dir, identity, streams, _numpy_twin(feature_converter_cls)
    )
  else:
    producer = import_live(mixture_or_task_name).Live(
      identity,
      streams,
      feature_converter_cls=feature_converter_cls,
      module=mixture_or_task_module,
      use_cached=use_cached,
      host_count=host_count,
    )
  return Prefetched(producer, prefetch)


def import_live(task: str) -> Any:
  """The module data.live, which needs SeqIO and with it TensorFlow.

  Raises:
    ImportError: they are not installed; says what to do.
  """
  try:
    from byt5_diffusion.data import live
  except ImportError as error:
    raise ImportError(
      f"Reading {task!r} live needs SeqIO and TensorFlow ({error})."
      ' Install them with `pip install "byt5-diffusion[data]"`, or set '
      "prepared_dir (PREPARED_DIR in a recipe) to what `prepare` wrote."
    ) from error
  return live


def _streams(
  num_streams: int, host_index: int, host_count: int, batch_size: int
) -> range:
  """The streams of this host."""
  if not 0 <= host_index < host_count:
    raise ValueError(f"{host_index=} must be in [0, {host_count=}).")
  if num_streams < 1 or num_streams % host_count:
    raise ValueError(
      f"{num_streams=} must be a multiple of {host_count=}: every host serves "
      "the same number of whole streams."
    )
  if batch_size < 1 or batch_size % num_streams:
    raise ValueError(f"{batch_size=} must be a multiple of {num_streams=}.")
  per_host = num_streams // host_count
  return range(host_index * per_host, (host_index + 1) * per_host)


def _numpy_twin(feature_converter_cls: Callable[..., Any]) -> Callable:
  try:
    return feature_converter_cls.convert  # type: ignore[attr-defined]
  except AttributeError:
    raise ValueError(
      f"{feature_converter_cls} has no attribute `convert`, a function "
      "(example, task_feature_lengths) -> row that needs no TensorFlow: "
      "prepared data are converted by it."
    ) from None


class Prepared:
  """Batches of a prepared data set; a place in it is one number."""

  def __init__(
    self,
    prepared_dir: str | os.PathLike[str],
    identity: dict[str, Any],
    streams: range,
    convert: Callable[[Mapping[str, np.ndarray], Mapping[str, int]], Batch],
  ):
    self._records = records.Records(prepared_dir, identity["split"])
    manifest = self._records.manifest
    for key in ("task", "task_feature_lengths"):
      if manifest[key] != identity[key]:
        raise ValueError(
          f"{prepared_dir} was prepared with {key} = {manifest[key]}, the run "
          f"asks for {identity[key]}."
        )
    shards = manifest["splits"][identity["split"]]["shards"]
    digests = "".join(shard["sha256"] for shard in shards)
    digest = hashlib.sha256(digests.encode()).hexdigest()
    self.identity = {"kind": "prepared", **identity, "sha256": digest}
    self.num_examples: int | None = len(self._records)
    self.captions = captions_lib.read(prepared_dir)
    self._lengths = identity["task_feature_lengths"]
    self._convert = convert
    self._rows = identity["batch_size"] // identity["num_streams"]
    self._streams, self._num_streams = streams, identity["num_streams"]
    self._num_batches = 0
    self._order = grain.MapDataset.range(len(self._records))
    if identity["shuffle"]:
      self._order = self._order.seed(identity["seed"]).shuffle()
    self._end: int | None = None
    if identity["num_epochs"] is not None:
      total = len(self._records) * identity["num_epochs"]
      self._end = total // identity["batch_size"]
    self._order = self._order.repeat(identity["num_epochs"])

  def _indices(self) -> list[int]:
    """Places in the data set of this host's rows of the next batch.

    Element p of stream v is element p V + v of the one order of all.
    """
    start = self._num_batches * self._rows
    return [
      int(self._order[place * self._num_streams + stream])
      for stream in self._streams
      for place in range(start, start + self._rows)
    ]

  def next_batch(self) -> Batch:
    if self._end is not None and self._num_batches >= self._end:
      raise StopIteration
    rows = [
      self._convert(example, self._lengths)
      for example in self._records.read(self._indices())
    ]
    self._num_batches += 1
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

  def place(self) -> state.Place:
    return state.Place(self._num_batches, {})

  def restore(self, place: state.Place) -> None:
    self._num_batches = place.num_batches


class Prefetched:
  """Runs a Producer on a thread of its own, a few batches ahead.

  Attributes:
    producer: of the batches.
    num_examples, captions: see Batches.
  """

  def __init__(self, producer: Producer, prefetch: int = 4):
    if prefetch < 1:
      raise ValueError(f"{prefetch=} must be at least 1.")
    self.producer = producer
    self._prefetch = prefetch
    self._received = producer.place()
    self._thread: threading.Thread | None = None
    self._ahead = False  # Whether the producer has made what was not received.
    self._ended: BaseException | None = None
    self.num_examples = producer.num_examples
    self.captions = producer.captions

  def __iter__(self) -> Iterator[Batch]:
    return self

  def __next__(self) -> Batch:
    if self._ended is not None:
      raise self._ended
    if self._thread is None:
      self._start()
    item = self._queue.get()
    if isinstance(item, BaseException):
      self._ended = self._final(item)
      raise self._ended
    batch, self._received = item
    return batch

  def _final(self, error: BaseException) -> BaseException:
    if isinstance(error, StopIteration) and not self._received.num_batches:
      identity = self.producer.identity
      return EmptySplit(
        f"Split {identity['split']!r} of {identity['task']!r} does not fill "
        f"one batch of batch_size={identity['batch_size']} "
        f"({self.num_examples} examples, {identity['num_streams']} streams). "
        "Take a smaller batch_size or num_epochs=None."
      )
    return error

  def _start(self) -> None:
    if self._ahead:
      self.producer.restore(self._received)
    self._ahead = True
    # Neither thread nor finalizer may hold `self`: dropping it ends the thread.
    self._queue: queue.Queue = queue.Queue(self._prefetch)
    self._stop = threading.Event()
    self._thread = threading.Thread(
      target=_produce,
      args=(self.producer, self._queue, self._stop),
      name="data",
      daemon=True,
    )
    self._thread.start()
    # At exit too: a thread inside TensorFlow must not outlive the interpreter.
    self._at_exit = weakref.finalize(self, _end, self._stop, self._thread)

  def close(self) -> None:
    """Ends the thread; the next `__next__` starts one at the same place."""
    if self._thread is not None:
      self._at_exit.detach()
      self._stop.set()
      # However long a batch takes: a producer serves one thread at a time.
      self._thread.join()
      self._thread = None

  def get_state(self) -> bytes:
    return state.pack_place(self.producer.identity, self._received)

  def set_state(self, saved: bytes) -> None:
    place = state.unpack_place(saved, self.producer.identity)
    self.close()
    self.producer.restore(place)
    self._received, self._ended, self._ahead = place, None, False


def _produce(
  producer: Producer, batches: queue.Queue, stop: threading.Event
) -> None:
  item: Any = None
  while not stop.is_set() and not isinstance(item, BaseException):
    try:
      item = (producer.next_batch(), producer.place())
    except BaseException as error:  # Every one belongs to the caller's thread.
      item = error
    while not stop.is_set():
      try:
        batches.put(item, timeout=0.1)
        break
      except queue.Full:
        continue


def _end(stop: threading.Event, thread: threading.Thread) -> None:
  stop.set()
  if thread is not threading.current_thread():
    thread.join(timeout=30)
