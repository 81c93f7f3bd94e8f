"""What a run tells the world: metrics, progress, and the compilation cache."""

import datetime
import hashlib
import logging
import math
import os
import pathlib
import platform
import re
import stat
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

import jax
import jaxlib
import numpy as np

from byt5_diffusion import metric_writers

Array = Any
PathLike = str | os.PathLike[str]


MetricWriter = metric_writers.MetricWriter
BackgroundWriter = metric_writers.BackgroundWriter
ConsoleWriter = metric_writers.ConsoleWriter
JsonlWriter = metric_writers.JsonlWriter
MultiWriter = metric_writers.MultiWriter
TensorBoardWriter = metric_writers.TensorBoardWriter


def make_writers(
  model_dir: PathLike,
  *,
  first_step: int | None = None,
  console: bool = False,
  extra_writers: Mapping[str, Callable[[], MetricWriter]] | None = None,
) -> MultiWriter:
  """The run's writers, each in the background; none but on the first host.

  Args:
    model_dir: gets tensorboard/events.* and metrics.jsonl.
    first_step: step that a resumed run starts from (TensorBoardWriter).
    console: whether scalars are logged as lines, too.
    extra_writers: constructors by name, called on their threads.
  """
  if jax.process_index() != 0:
    return MultiWriter(())
  root = pathlib.Path(model_dir)
  makers: dict[str, Callable[[], MetricWriter]] = {
    "TensorBoard": lambda: TensorBoardWriter(root / "tensorboard", first_step),
    "JSONL": lambda: JsonlWriter(root / "metrics.jsonl"),
  }
  if console:
    makers["console"] = ConsoleWriter
  makers |= extra_writers or {}
  return MultiWriter([BackgroundWriter(m, name) for name, m in makers.items()])


class Progress:
  """Step, loss, images/s, ETA and data wait: a bar on a terminal, else lines.

  Silent on all hosts but the first.
  """

  def __init__(
    self,
    total_steps: int,
    batch_size: int,
    first_step: int = 0,
    stream: TextIO | None = None,
  ):
    """Shows nothing yet.

    Args:
      total_steps: of the whole run.
      batch_size: images per step, of all hosts.
      first_step: steps done before this process started.
      stream: default sys.stderr.
    """
    self._total_steps = total_steps
    self._batch_size = batch_size
    self._stream = stream or sys.stderr
    self._silent = jax.process_index() != 0
    self._bar: Any = None
    if self._stream.isatty() and not self._silent:
      import tqdm

      self._bar = tqdm.tqdm(
        total=total_steps,
        initial=first_step,
        file=self._stream,
        dynamic_ncols=True,
        unit="step",
        bar_format="{desc} |{bar}| {n_fmt}/{total_fmt}{postfix}",
      )
    self._step = first_step
    self.start()

  def start(self) -> None:
    """Starts the clock: call it when set-up and compilation are over."""
    self._time = time.monotonic()

  def update(self, step: int, loss: float, data_wait: float) -> None:
    """Shows how things stand; rates are those since the last call.

    Args:
      step: steps done.
      loss: to show.
      data_wait: share of the time spent waiting for data, in [0, 1].
    """
    now = time.monotonic()
    seconds = max(now - self._time, 1e-9)
    rate = (step - self._step) / seconds  # steps per second
    self._step, self._time = step, now
    if self._silent:
      return
    eta = (self._total_steps - step) / rate if rate > 0 else math.inf
    fields = (
      f"loss {loss:.4f}, {rate * self._batch_size:.1f} images/s,"
      f" ETA {_duration(eta)}, data wait {100.0 * data_wait:.1f} %"
    )
    if self._bar is None:
      self.say(f"step {step}/{self._total_steps}, {fields}")
    else:
      self._bar.n = step
      self._bar.set_postfix_str(fields)

  def say(self, text: str) -> None:
    """A line of its own, above the bar."""
    if self._silent:
      return
    if self._bar is None:
      print(text, file=self._stream, flush=True)
    else:
      self._bar.write(text, file=self._stream)

  def close(self) -> None:
    if self._bar is not None:
      self._bar.close()


def _duration(seconds: float) -> str:
  if not math.isfinite(seconds):
    return "?"
  return str(datetime.timedelta(seconds=round(seconds)))


def image_grid(images: Array, columns: int | None = None) -> np.ndarray:
  """Images in rows, without gaps; missing ones are black.

  Args:
    images: [N, H, W, 3] in [-1, 1], or uint8.
    columns: default: the smallest square that holds them.

  Returns:
    uint8 [rows * H, columns * W, 3].
  """
  images = np.asarray(images)
  if images.ndim != 4 or not len(images):
    raise ValueError(f"{images.shape=} must be [N, H, W, C] with N > 0.")
  if images.dtype != np.uint8:
    clipped = np.nan_to_num(np.clip(images.astype(np.float32), -1.0, 1.0))
    images = np.rint(clipped * 127.5 + 127.5).astype(np.uint8)
  count, height, width, channels = images.shape
  columns = columns or math.ceil(math.sqrt(count))
  rows = math.ceil(count / columns)
  cells = np.zeros((rows * columns, height, width, channels), np.uint8)
  cells[:count] = images
  cells = cells.reshape(rows, columns, height, width, channels)
  return cells.transpose(0, 2, 1, 3, 4).reshape(
    rows * height, columns * width, channels
  )


def _cpu_key() -> str:
  """Hash of the processor's kind and instruction sets.

  Compiled CPU code may use any of them, and a cache in a home directory moves
  between machines.
  """
  try:
    text = pathlib.Path("/proc/cpuinfo").read_text()
  except OSError:
    text = ""
  found = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
  flags = sorted(found[1].split()) if found else [platform.processor()]
  parts = [platform.machine(), *flags]
  return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:12]


def _untrusted(path: pathlib.Path) -> str | None:
  """Why others could put compiled code into path; None if they could not."""
  status = path.lstat()
  if stat.S_ISLNK(status.st_mode):
    return f"{path} is a symbolic link"
  if not stat.S_ISDIR(status.st_mode):
    return f"{path} is not a directory"
  if status.st_uid != os.geteuid():
    return f"{path} belongs to user {status.st_uid}"
  if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
    return f"{path} is writable by others (chmod 700 it)"
  return None


def enable_compilation_cache(dir: PathLike | None = None) -> str | None:
  """Keeps compiled programs between runs; the directory, or None if unused.

  Where JAX_COMPILATION_CACHE_DIR is set, that choice stands.

  Args:
    dir: default $XDG_CACHE_HOME (~/.cache)/byt5_diffusion/xla. A subdirectory
      of it is used, named after jaxlib's version and the CPU. The directories
      are made with mode 0700; when somebody else owns or can write to one,
      there is a warning and no cache, because its contents are executed.
  """
  if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    return os.environ["JAX_COMPILATION_CACHE_DIR"]
  home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  if dir is None:
    own = pathlib.Path(home) / "byt5_diffusion"
    chain = [own, own / "xla"]
  else:
    chain = [pathlib.Path(dir).absolute()]
  chain.append(chain[-1] / f"{jaxlib.__version__}-{_cpu_key()}")
  try:
    chain[0].parent.mkdir(parents=True, exist_ok=True)
    for path in chain:
      path.mkdir(mode=0o700, exist_ok=True)
    problem = next(filter(None, map(_untrusted, chain)), None)
  except OSError as error:
    problem = str(error)
  if problem:
    logging.warning("No compilation cache: %s.", problem)
    return None
  jax.config.update("jax_compilation_cache_dir", str(chain[-1]))
  return str(chain[-1])
