"""Leaving in an orderly way when somebody asks for it."""

import contextlib
import signal
from typing import Any


class StopSignals:
  """SIGTERM and the first Ctrl-C: finish the step, save, then leave."""

  def __init__(self) -> None:
    self.requested = False
    self.exit_code = 0
    self._previous: dict[int, Any] = {}

  def __enter__(self) -> "StopSignals":
    for number in (signal.SIGTERM, signal.SIGINT):
      with contextlib.suppress(ValueError):  # not on the main thread
        self._previous[number] = signal.signal(number, self._handle)
    return self

  def _handle(self, number: int, frame: Any) -> None:
    del frame
    if self.requested and number == signal.SIGINT:
      raise KeyboardInterrupt
    self.requested, self.exit_code = True, 128 + number

  def __exit__(self, *error: Any) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)
