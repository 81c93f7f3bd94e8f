"""Keeps TensorFlow's start-up logs off the screen.

Its C++ code writes them to file descriptor 2 before any log level counts.
"""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator

# absl's "I0000 00:00:1.2 3 port.cc:1] ...", the same with a date in front as
# TensorFlow had it, and absl's remark on its own logs.
_LOG_LINE = re.compile(
  rb"[IWE]\d{4} \d\d:\d\d:\d|\d{4}-\d\d-\d\d [\d:.]+: [IWE] "
  rb"|WARNING: All log messages before absl::InitializeLog"
)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Leaves such lines of stderr out, unless the body raises.

  Everything else that is written in the meantime appears when the body ends.
  TF_CPP_MIN_LOG_LEVEL=0 shows all at once.
  """
  try:
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "0":
      raise OSError
    _flush()
    # Neither is there if standard error is closed or the disk full.
    screen = os.dup(2)
    try:
      kept = tempfile.TemporaryFile()  # noqa: SIM115
    except OSError:
      os.close(screen)
      raise
  except OSError:
    yield
    return
  failed = True
  with kept:
    os.dup2(kept.fileno(), 2)
    try:
      yield
      failed = False
    finally:
      _flush()
      os.dup2(screen, 2)
      os.close(screen)
      kept.seek(0)
      for line in kept:
        if failed or not _LOG_LINE.match(line):
          _write(line)


def _flush() -> None:
  # Somebody else's object may stand for it, or None.
  with contextlib.suppress(AttributeError, OSError, ValueError):
    sys.stderr.flush()


def _write(line: bytes) -> None:
  with contextlib.suppress(OSError):
    os.write(2, line)
