"""Leaving in an orderly way when somebody asks for it."""

import contextlib
import signal
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

# How often hosts ask each other: often enough for a preempted machine's
# half-minute, seldom enough to cost nothing.
_STEPS_BETWEEN_QUESTIONS = 10


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

  def agreed(self, step: int) -> bool:
    """Whether to stop after this step: the same answer on every host.

    A signal reaches hosts at different steps, or one of them only; a save that
    not all take part in would never end.
    """
    if jax.process_count() == 1:
      return self.requested
    if step % _STEPS_BETWEEN_QUESTIONS:
      return False
    codes = multihost_utils.process_allgather(np.asarray(self.exit_code))
    self.exit_code = int(codes.max())
    return self.exit_code > 0

  def __exit__(self, *error: Any) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)
