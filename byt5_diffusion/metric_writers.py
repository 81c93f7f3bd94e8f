"""Where metrics go: MetricWriter (clu's method names) and its kinds.

Writers are slow, remote or broken at times. BackgroundWriter puts one on a
thread of its own behind a bounded queue: a step never waits for it, and it
can't end a run.
"""

import io
import itertools
import json
import logging
import math
import os
import pathlib
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

Array = Any
PathLike = str | os.PathLike[str]

# Enough for minutes of scalars; image grids are one entry each.
QUEUE_SIZE = 256
CLOSE_TIMEOUT_S = 10.0
# Keeps apart the files that one process starts within one second.
_FILE_NUMBER = itertools.count()


class MetricWriter(Protocol):
  """How anything is logged; names and arguments are clu's."""

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    """Numbers by name."""

  def write_images(self, step: int, images: Mapping[str, Array]) -> None:
    """[N, H, W, C] or [H, W, C]; uint8, or float in [0, 1]."""

  def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
    """Texts by name."""

  def write_hparams(self, hparams: Mapping[str, Any]) -> None:
    """The run's settings, once."""

  def flush(self) -> None:
    """Returns when what was written is on disk."""

  def close(self) -> None:
    """Flushes; nothing may be written afterwards."""


def _plain(value: Any) -> Any:
  """JSON's own kinds as they are, all else as text."""
  if isinstance(value, float):
    return value if math.isfinite(value) else str(value)
  return value if isinstance(value, int | str | None) else str(value)


class JsonlWriter:
  """One JSON object per call, appended to a file; images are left out.

  A resumed run appends: where a step occurs twice, the later line holds.
  Numbers that JSON lacks are the strings "nan", "inf" and "-inf".
  """

  def __init__(self, path: PathLike):
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115

  def _write(self, record: Mapping[str, Any]) -> None:
    line = json.dumps(record, ensure_ascii=False, allow_nan=False, default=str)
    self._file.write(line + "\n")
    self._file.flush()

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    values = {name: float(value) for name, value in scalars.items()}
    self._write(
      {"step": int(step), "time": round(time.time(), 3)}
      | {k: _plain(v) for k, v in values.items()}
    )

  def write_images(self, step: int, images: Mapping[str, Array]) -> None:
    del step, images

  def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
    self._write({"step": int(step), "texts": dict(texts)})

  def write_hparams(self, hparams: Mapping[str, Any]) -> None:
    self._write({"hparams": {k: _plain(v) for k, v in hparams.items()}})

  def flush(self) -> None:
    self._file.flush()

  def close(self) -> None:
    self._file.close()


class ConsoleWriter:
  """Scalars and texts as lines of the log."""

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    text = ", ".join(f"{k}={float(v):.5g}" for k, v in scalars.items())
    logging.info("step %d: %s", step, text)

  def write_images(self, step: int, images: Mapping[str, Array]) -> None:
    del step, images

  def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
    for name, text in texts.items():
      logging.info("step %d: %s: %s", step, name, text)

  def write_hparams(self, hparams: Mapping[str, Any]) -> None:
    logging.info("hparams: %s", dict(hparams))

  def flush(self) -> None:
    pass

  def close(self) -> None:
    pass


class TensorBoardWriter:
  """TensorBoard event files, written without TensorFlow."""

  def __init__(self, log_dir: PathLike, first_step: int | None = None):
    """Starts a new event file in log_dir.

    Args:
      log_dir: created if need be.
      first_step: hides what an earlier, killed run wrote from this step on.
    """
    # Late: it brings PyTorch along, where that is installed.
    from tensorboardX import event_file_writer, summary
    from tensorboardX.proto import event_pb2

    pathlib.Path(log_dir).mkdir(parents=True, exist_ok=True)
    self._summary, self._event_pb2 = summary, event_pb2
    self._events = event_file_writer.EventsWriter(
      os.path.join(os.fspath(log_dir), "events"),
      f".{os.getpid()}.{next(_FILE_NUMBER)}",
    )
    if first_step is not None:
      start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
      self._write(first_step, session_log=start)

  def _write(self, step: int, **content: Any) -> None:
    self._events.write_event(
      self._event_pb2.Event(wall_time=time.time(), step=int(step), **content)
    )

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    for name, value in scalars.items():
      entry = self._summary.Summary.Value(tag=name, simple_value=float(value))
      self._write(step, summary=self._summary.Summary(value=[entry]))
    self._events.flush()

  def write_images(self, step: int, images: Mapping[str, Array]) -> None:
    for name, value in images.items():
      batch = np.asarray(value)
      batch = batch[None] if batch.ndim == 3 else batch
      for i, image in enumerate(batch):
        tag = name if len(batch) == 1 else f"{name}/{i}"
        self._write(step, summary=_image_summary(self._summary, tag, image))
    self._events.flush()

  def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
    for name, text in texts.items():
      self._write(step, summary=self._summary.text(name, text))
    self._events.flush()

  def write_hparams(self, hparams: Mapping[str, Any]) -> None:
    plain = (bool, int, float, str)
    values = {
      k: v if isinstance(v, plain) else str(v) for k, v in hparams.items()
    }
    for part in self._summary.hparams(values, {}):
      self._write(0, summary=part)
    self._events.flush()

  def flush(self) -> None:
    self._events.flush()

  def close(self) -> None:
    self._events.close()


def _image_summary(summary: Any, tag: str, image: np.ndarray) -> Any:
  """A PNG summary of [H, W, C]: uint8, or float in [0, 1]."""
  from PIL import Image

  if image.dtype != np.uint8:
    image = np.rint(np.clip(np.nan_to_num(image), 0.0, 1.0) * 255.0)
  pixels = np.ascontiguousarray(image, np.uint8)
  buffer = io.BytesIO()
  Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(
    buffer, format="PNG"
  )
  height, width, channels = pixels.shape
  encoded = summary.Summary.Image(
    height=height,
    width=width,
    colorspace=channels,
    encoded_image_string=buffer.getvalue(),
  )
  return summary.Summary(value=[summary.Summary.Value(tag=tag, image=encoded)])


class _Call(NamedTuple):
  function: Callable[[MetricWriter], None]
  done: threading.Event


class BackgroundWriter:
  """Runs a writer on its own thread, behind a bounded queue.

  Calls return at once. What the writer raises, and what does not fit into the
  queue because it hangs, is dropped, with one warning of each kind.
  """

  def __init__(
    self,
    make_writer: Callable[[], MetricWriter],
    name: str,
    queue_size: int = QUEUE_SIZE,
    close_timeout_s: float = CLOSE_TIMEOUT_S,
  ):
    """Starts the thread; make_writer is called on it."""
    self._make_writer = make_writer
    self._name = name
    self._close_timeout_s = close_timeout_s
    self._queue: queue.Queue[_Call | None] = queue.Queue(queue_size)
    self._warned: set[str] = set()
    self.num_dropped = 0
    # Daemonic: a writer that hangs must not keep the program from ending.
    self._thread = threading.Thread(
      target=self._run, name=f"writer-{name}", daemon=True
    )
    self._thread.start()

  def _warn(self, kind: str, detail: object) -> None:
    self.num_dropped += 1
    if kind not in self._warned:
      self._warned.add(kind)
      logging.warning(
        "The %s writer %s: %s. Training goes on; what it can't write is lost.",
        self._name,
        kind,
        detail,
      )

  def _run(self) -> None:
    writer: MetricWriter | None = None
    while (call := self._queue.get()) is not None:
      try:
        writer = writer or self._make_writer()
        call.function(writer)
      except Exception as error:
        self._warn("failed", repr(error))
      finally:
        call.done.set()
    try:
      if writer is not None:
        writer.close()
    except Exception as error:
      self._warn("failed to close", repr(error))

  def _submit(self, function: Callable[[MetricWriter], None]) -> _Call:
    call = _Call(function, threading.Event())
    try:
      self._queue.put_nowait(call)
    except queue.Full:
      self._warn("is stuck", f"{self._queue.maxsize} calls wait for it")
    return call

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    self._submit(lambda writer: writer.write_scalars(step, scalars))

  def write_images(self, step: int, images: Mapping[str, Array]) -> None:
    self._submit(lambda writer: writer.write_images(step, images))

  def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
    self._submit(lambda writer: writer.write_texts(step, texts))

  def write_hparams(self, hparams: Mapping[str, Any]) -> None:
    self._submit(lambda writer: writer.write_hparams(hparams))

  def flush(self) -> None:
    """Waits for the writer, but not longer than close_timeout_s."""
    call = self._submit(lambda writer: writer.flush())
    if not call.done.wait(self._close_timeout_s):
      self._warn("is stuck", f"no flush within {self._close_timeout_s} s")

  def close(self) -> None:
    """Lets the writer finish, but not longer than close_timeout_s."""
    deadline = time.monotonic() + self._close_timeout_s
    try:
      self._queue.put(None, timeout=self._close_timeout_s)
    except queue.Full:
      self._warn("is stuck", "it is left behind")
      return
    self._thread.join(max(0.0, deadline - time.monotonic()))
    if self._thread.is_alive():
      self._warn("is stuck", "it is left behind")


class MultiWriter:
  """Hands every call to each of several writers."""

  def __init__(self, writers: Sequence[MetricWriter]):
    self._writers = tuple(writers)

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    for writer in self._writers:
      writer.write_scalars(step, scalars)

  def write_images(self, step: int, images: Mapping[str, Array]) -> None:
    for writer in self._writers:
      writer.write_images(step, images)

  def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
    for writer in self._writers:
      writer.write_texts(step, texts)

  def write_hparams(self, hparams: Mapping[str, Any]) -> None:
    for writer in self._writers:
      writer.write_hparams(hparams)

  def flush(self) -> None:
    for writer in self._writers:
      writer.flush()

  def close(self) -> None:
    for writer in self._writers:
      writer.close()
