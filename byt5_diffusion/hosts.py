"""Several hosts become one program, or one line says why they don't.

JAX's own start aborts the process, with a stack of C++ frames, when a host
stays away. So the hosts first meet (host_meeting.py), and only when all have
come does JAX begin. Who is missing, disagrees or calls the wrong address is
known by then, on every host.

Where JAX finds the hosts by itself (TPU pods, SLURM, Open MPI) there is no such
meeting; a watchdog gives the reason before JAX aborts.
"""

import argparse
import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from byt5_diffusion import host_meeting

TIMEOUT = 300.0
_EXIT_CODE = 2


HostsError = host_meeting.HostsError
Place = host_meeting.Place


def add_flags(parser: Any) -> None:
  """The flags that say where this process stands (T5X's names)."""
  group = parser.add_argument_group("several hosts, started with one command")
  group.add_argument(
    "--coordinator_address",
    metavar="HOST:PORT",
    help="of process 0; every host is given the same",
  )
  group.add_argument(
    "--process_count", type=int, help="how many processes run together"
  )
  group.add_argument(
    "--process_index", type=int, help="which one this is, from 0"
  )
  group.add_argument(
    "--detect_hosts",
    action="store_true",
    help="let JAX find the hosts: TPU pods, SLURM, Open MPI",
  )
  group.add_argument(
    "--join_timeout",
    type=float,
    default=TIMEOUT,
    help=f"seconds to wait for the other hosts; default: {TIMEOUT:g}",
  )


def from_flags(flags: argparse.Namespace) -> Callable[[], None]:
  """What joins the hosts, once it is called; wrong flags are said now."""
  place = _check(
    flags.coordinator_address,
    flags.process_count,
    flags.process_index,
    flags.detect_hosts,
    flags.join_timeout,
  )
  if flags.detect_hosts:
    return lambda: detect(flags.join_timeout)
  if place is None:
    return lambda: None
  return lambda: join(place, flags.join_timeout)


def _check(
  address: str | None,
  count: int | None,
  index: int | None,
  detects: bool,
  timeout: float,
) -> Place | None:
  """A place, or None where no flag is given."""
  given = {
    "--coordinator_address": address,
    "--process_count": count,
    "--process_index": index,
  }
  missing = [name for name, value in given.items() if value is None]
  if not timeout > 0:
    raise HostsError(f"--join_timeout={timeout} must be positive.")
  if len(missing) == len(given):
    return None
  if detects:
    raise HostsError("--detect_hosts finds the rest: drop the other flags.")
  if missing:
    raise HostsError(f"{', '.join(given)} go together: {missing[0]} is absent.")
  host, colon, port = str(address).rpartition(":")
  if not (host and colon and port.isdecimal() and 0 < int(port) < 65536):
    raise HostsError(
      f"--coordinator_address={address} is not HOST:PORT, e.g. 10.0.0.1:8476."
    )
  assert count is not None and index is not None
  if not 0 <= index < count:
    raise HostsError(
      f"--process_index={index} is not in [0, --process_count={count})."
    )
  return Place(str(address), count, index)


def join(place: Place, timeout: float = TIMEOUT) -> None:
  """Makes this process one of place.process_count that compute together.

  Call it before anything asks JAX for devices.

  Args:
    place: the same address and count on every host.
    timeout: seconds to wait for the others.

  Raises:
    HostsError: they did not all come, or do not agree.
  """
  if place.process_count == 1:
    return
  deadline = time.monotonic() + timeout
  logging.info(
    "waiting for %d hosts at %s ...", place.process_count, place.address
  )
  meet = host_meeting.call if place.process_index else host_meeting.gather
  meet(place, deadline, timeout)
  import jax  # Late: command lines import this module for its flags.

  # They are all there, so this is a matter of moments.
  reason = (
    f"All {place.process_count} hosts have met at {place.address}, but JAX"
    f" could not connect them within {timeout:g} s: is the port closed to all"
    " but the first connection?"
  )
  with _watchdog(timeout, reason):
    jax.distributed.initialize(
      place.address,
      place.process_count,
      place.process_index,
      initialization_timeout=int(timeout + 60),
    )
  _say_joined()


def detect(timeout: float = TIMEOUT) -> None:
  """Joins the hosts that JAX finds by itself.

  Raises:
    HostsError: JAX finds none here.
  """
  import jax

  reason = (
    f"The hosts that JAX has found did not all join within {timeout:g} s."
    " Check that every one of the job's tasks runs this command, and that they"
    " reach each other; or say --coordinator_address, --process_count and"
    " --process_index, which names those that are missing."
  )
  try:
    with _watchdog(timeout, reason):
      jax.distributed.initialize(initialization_timeout=int(timeout + 60))
  except ValueError as error:
    raise HostsError(
      "--detect_hosts: JAX finds no other hosts here (no TPU pod, SLURM or"
      " Open MPI job). Say --coordinator_address, --process_count and"
      f" --process_index. ({str(error).splitlines()[0]})"
    ) from None
  _say_joined()


def _say_joined() -> None:
  import jax

  logging.info(
    "host %d of %d has joined", jax.process_index(), jax.process_count()
  )


@contextlib.contextmanager
def _watchdog(timeout: float, reason: str) -> Iterator[None]:
  """Says the reason and ends the process unless left in time."""

  def bark() -> None:
    print(f"Error: {reason}", file=sys.stderr, flush=True)
    # JAX's threads cannot be interrupted; it would abort instead.
    os._exit(_EXIT_CODE)

  timer = threading.Timer(timeout, bark)
  timer.daemon = True
  timer.start()
  try:
    yield
  finally:
    timer.cancel()
