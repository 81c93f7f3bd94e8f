"""One training per folder: MODEL_DIR/train.lock.

The lock is the kernel's (flock), so it ends with the process that holds it,
however that dies; a file that is left behind means nothing by itself. Network
file systems may not honour it between machines (NFS before Linux 2.6.12, some
FUSE and Lustre mounts): there two trainings of one folder are not noticed.
"""

import contextlib
import datetime
import functools
import inspect
import json
import os
import pathlib
import socket
import time
from collections.abc import Callable, Iterator
from typing import IO, Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

try:
  import fcntl
except ImportError:  # Windows: nothing is locked.
  fcntl = None  # type: ignore[assignment]

FILE = "train.lock"
_MAX_BYTES = 1000
Function = TypeVar("Function", bound=Callable[..., Any])


class LockedError(RuntimeError):
  """That folder can't be had: somebody trains in it, or it takes no files.

  Says who trains, or why nothing can be written.
  """


@contextlib.contextmanager
def held(folder: str | os.PathLike[str]) -> Iterator[None]:
  """Holds the folder's lock; makes the folder.

  Raises:
    LockedError: another process, or another thread, holds it; or nothing can
      be written there.
  """
  path = pathlib.Path(folder) / FILE
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = _open_locked(path)
  except FileExistsError as error:
    raise LockedError(f"{path.parent} is a file, not a directory.") from error
  except OSError as error:
    raise LockedError(
      f"Nothing can be written in {path.parent}: {error.strerror}."
    ) from error
  with file:
    try:
      yield
    finally:
      path.unlink(missing_ok=True)  # While it is still locked.


def _open_locked(path: pathlib.Path) -> IO[str]:
  while True:
    file = path.open("a+", encoding="utf-8")
    try:
      _take(file, path)
      found = os.fstat(file.fileno())
      if path.exists() and os.path.samestat(found, path.stat()):
        return file
    except BaseException:
      file.close()
      raise
    # Its holder removed it while this process waited: a lock on nothing.
    file.close()


def holder(folder: str | os.PathLike[str]) -> str | None:
  """Who trains in the folder now, as " (process ...)"; None: nobody."""
  path = pathlib.Path(folder) / FILE
  if fcntl is None or not path.is_file():
    return None
  with (
    contextlib.suppress(FileNotFoundError),  # It has just ended.
    path.open(encoding="utf-8", errors="replace") as file,
  ):
    try:
      # Shared, for a moment: two who ask do not take each other for a training.
      fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
      return _who(file.read(_MAX_BYTES)) or " (it does not say by whom)"
    except OSError:
      return None
  return None


def _take(file: IO[str], path: pathlib.Path) -> None:
  try:
    _lock(file)
  except BlockingIOError:
    file.seek(0)
    raise LockedError(
      f"{path.parent} is being trained already{_who(file.read(_MAX_BYTES))}:"
      " wait for that, stop it, or take another MODEL_DIR."
    ) from None
  except OSError:  # A file system without locks.
    return
  holder = {
    "pid": os.getpid(),
    "host": socket.gethostname(),
    "since": datetime.datetime.now().isoformat(" ", "seconds"),
  }
  file.truncate(0)
  file.write(json.dumps(holder) + "\n")
  file.flush()


def _lock(file: IO[str]) -> None:
  """Tries for half a second: whoever asks `holder` has it for a moment."""
  if fcntl is None:
    return
  for _ in range(5):
    try:
      return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      time.sleep(0.1)
  fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _who(text: str) -> str:
  try:
    holder = json.loads(text)
    values = [str(holder[key])[:60] for key in ("pid", "host", "since")]
  except (ValueError, KeyError, TypeError):
    return ""
  return " (process {} on {}, since {})".format(*values)


@contextlib.contextmanager
def _held_by_all(folder: str | os.PathLike[str]) -> Iterator[None]:
  """`held` by the first of several processes; all raise alike."""
  if jax.process_count() == 1:
    with held(folder):
      yield
    return
  with contextlib.ExitStack() as stack:
    reason = ""
    if jax.process_index() == 0:
      try:
        stack.enter_context(held(folder))
      except (LockedError, OSError) as error:
        reason = str(error)
    # Else the others would wait for it at the next step that all take part in.
    reason = _tell_all(reason)
    if reason:
      raise LockedError(reason)
    yield


def _tell_all(text: str) -> str:
  """The first process's text, on every process."""
  content = np.zeros([_MAX_BYTES], np.uint8)
  encoded = text.encode()[:_MAX_BYTES]
  content[: len(encoded)] = np.frombuffer(encoded, np.uint8)
  content = multihost_utils.broadcast_one_to_all(content)
  return bytes(content).rstrip(b"\0").decode("utf-8", "replace")


def one_at_a_time(function: Function) -> Function:
  """Decorates a program: it holds its model_dir's lock while it runs."""
  parameters = inspect.signature(function)

  @functools.wraps(function)
  def run(*args: Any, **kwargs: Any) -> Any:
    model_dir = parameters.bind(*args, **kwargs).arguments["model_dir"]
    with _held_by_all(model_dir):
      return function(*args, **kwargs)

  return run  # type: ignore[return-value]
