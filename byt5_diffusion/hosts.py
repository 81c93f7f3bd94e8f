"""Several hosts become one program, or one line says why they don't.

JAX's own start aborts the process, with a stack of C++ frames, when a host
stays away. So the hosts first meet here: the coordinator (process 0) listens on
the very port that JAX will use, the others call, and only when all have come
does JAX begin. Who is missing, disagrees or calls the wrong address is known by
then, on every host.

Where JAX finds the hosts by itself (TPU pods, SLURM, Open MPI) there is no such
meeting; a watchdog gives the reason before JAX aborts.
"""

import argparse
import contextlib
import importlib.metadata
import json
import logging
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, NoReturn

import byt5_diffusion

TIMEOUT = 300.0
_EXIT_CODE = 2
_MAX_LINE_BYTES = 1024
_RETRY_SECONDS = 0.3
_CONNECT_SECONDS = 10.0
_GRACE_SECONDS = 5.0


class HostsError(ValueError):
  """The hosts did not come together; says who, where and what to check."""


class Place(NamedTuple):
  """This process among all."""

  address: str
  process_count: int
  process_index: int

  @property
  def host(self) -> str:
    """The name before the port."""
    return self.address.rpartition(":")[0].strip("[]")

  @property
  def port(self) -> int:
    """The port."""
    return int(self.address.rpartition(":")[2])


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
  if place.process_index == 0:
    _gather(place, deadline, timeout)
  else:
    _call(place, deadline, timeout)
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


# --- The meeting. A caller sends one line of JSON and gets one back. ---


def _hello(place: Place) -> dict[str, Any]:
  return {
    "byt5_diffusion": byt5_diffusion.__version__,
    "jax": importlib.metadata.version("jax"),
    "count": place.process_count,
    "index": place.process_index,
  }


def _line(content: dict[str, Any]) -> bytes:
  return json.dumps(content).encode() + b"\n"


def _what_to_check(place: Place) -> str:
  return (
    f"Check that each was started with --coordinator_address={place.address}"
    f" --process_count={place.process_count} and an index of its own, that the"
    " name leads to process 0, and that no firewall closes the port."
  )


class _Meeting:
  """The coordinator's side: who has come."""

  def __init__(self, place: Place, server: socket.socket):
    self._place = place
    self._selector = selectors.DefaultSelector()
    self._server = server
    server.setblocking(False)
    self._selector.register(server, selectors.EVENT_READ)
    self._buffers: dict[socket.socket, bytes] = {}
    self.joined: dict[int, socket.socket] = {}

  def missing(self) -> list[int]:
    """Indices that have not come."""
    return [
      i for i in range(1, self._place.process_count) if i not in self.joined
    ]

  def step(self, seconds: float) -> None:
    """Serves what comes within so many seconds."""
    for key, _ in self._selector.select(max(seconds, 0.0)):
      connection: Any = key.fileobj
      if connection is self._server:
        with contextlib.suppress(OSError):
          accepted, _ = self._server.accept()
          accepted.setblocking(False)
          self._buffers[accepted] = b""
          self._selector.register(accepted, selectors.EVENT_READ)
      else:
        self._read(connection)

  def _read(self, connection: socket.socket) -> None:
    try:
      data = connection.recv(_MAX_LINE_BYTES)
    except BlockingIOError:
      return
    except OSError:
      data = b""
    buffer = self._buffers[connection] + data
    self._buffers[connection] = buffer
    if not data or len(buffer) > _MAX_LINE_BYTES:
      self._drop(connection)  # It has gone, or is a stranger.
    elif buffer.endswith(b"\n") and connection not in self.joined.values():
      self._take(connection, buffer)

  def _drop(self, connection: socket.socket) -> None:
    self._selector.unregister(connection)
    del self._buffers[connection]
    for index, other in list(self.joined.items()):
      if other is connection:
        del self.joined[index]
    connection.close()

  def _take(self, connection: socket.socket, line: bytes) -> None:
    own = _hello(self._place)
    try:
      hello = json.loads(line)
    except ValueError:
      hello = None
    if not (
      isinstance(hello, dict)
      and set(hello) == set(own)
      and type(hello["index"]) is int
    ):
      self._drop(connection)  # A stranger.
      return
    index = hello["index"]
    own["index"] = index
    differing = [k for k in own if hello[k] != own[k]]
    if differing:
      k = differing[0]
      name = {"count": "--process_count", "byt5_diffusion": "version"}.get(k, k)
      self._refuse(
        connection,
        f"Process {index} at {connection.getpeername()[0]} has {name}"
        f" {str(hello[k])[:40]}, process 0 has {own[k]}: give all the same.",
      )
    if index in self.joined:
      self._read(self.joined[index])  # Perhaps it was started again.
    if index in self.joined or not 0 < index < self._place.process_count:
      self._refuse(
        connection,
        f"Two processes have --process_index={index}, one of them at"
        f" {connection.getpeername()[0]}: each needs an index of its own.",
      )
    self.joined[index] = connection

  def _refuse(self, connection: socket.socket, reason: str) -> NoReturn:
    with contextlib.suppress(OSError):
      connection.sendall(_line({"error": reason}))
    raise HostsError(reason)

  def tell(self, content: dict[str, Any]) -> None:
    """Sends all who are there a last word, and lets them hang up first."""
    end = time.monotonic() + _GRACE_SECONDS
    for connection in self.joined.values():
      with contextlib.suppress(OSError):
        connection.sendall(_line(content))
    while self.joined and time.monotonic() < end:
      self.step(0.1)

  def close(self) -> None:
    """Gives the port back."""
    for connection in [*self._buffers, self._server]:
      connection.close()
    self._selector.close()


def _gather(place: Place, deadline: float, timeout: float) -> None:
  """Process 0: returns when all others have called."""
  dual = socket.has_dualstack_ipv6()
  try:
    server = socket.create_server(
      ("", place.port),
      family=socket.AF_INET6 if dual else socket.AF_INET,
      dualstack_ipv6=dual,
      backlog=place.process_count + 16,
    )
  except OSError as error:
    raise HostsError(
      f"--coordinator_address={place.address}: this host cannot listen on port"
      f" {place.port}: {error.strerror}. Another run may still have it."
    ) from None
  meeting = _Meeting(place, server)
  try:
    while meeting.missing():
      left = deadline - time.monotonic()
      if left <= 0:
        missing = meeting.missing()
        raise HostsError(
          f"{len(missing)} of {place.process_count} hosts did not join within"
          f" {timeout:g} s: process_index {', '.join(map(str, missing[:16]))}."
          f" {_what_to_check(place)}"
        )
      meeting.step(left)
    meeting.tell({"go": True})
  except HostsError as error:
    meeting.tell({"error": str(error)})
    raise
  finally:
    meeting.close()


def _call(place: Place, deadline: float, timeout: float) -> None:
  """The other processes: returns when process 0 says that all are there."""
  reason = "no answer"
  while (left := deadline - time.monotonic()) > 0:
    try:
      with socket.create_connection(
        (place.host, place.port), min(left, _CONNECT_SECONDS)
      ) as line:
        reason = "it answers, but waits for other hosts"
        line.sendall(_line(_hello(place)))
        answer = _answer(line, deadline + _GRACE_SECONDS)
    except TimeoutError:
      continue
    except OSError as error:
      reason = error.strerror or str(error)
      time.sleep(_RETRY_SECONDS)
      continue
    if answer.get("go") is True:
      return
    if "error" in answer:
      raise HostsError(str(answer["error"])[:_MAX_LINE_BYTES])
    reason = "something else answers there"
    time.sleep(_RETRY_SECONDS)
  raise HostsError(
    f"Process {place.process_index} did not find process 0 of"
    f" {place.process_count} hosts at {place.address} within {timeout:g} s:"
    f" {reason}. {_what_to_check(place)}"
  )


def _answer(line: socket.socket, deadline: float) -> dict[str, Any]:
  """One line of JSON; {} for anything else, TimeoutError after the deadline."""
  received = b""
  while not received.endswith(b"\n") and len(received) < 4 * _MAX_LINE_BYTES:
    line.settimeout(max(deadline - time.monotonic(), 0.01))
    data = line.recv(_MAX_LINE_BYTES)
    if not data:
      break
    received += data
  try:
    answer = json.loads(received)
  except ValueError:
    return {}
  return answer if isinstance(answer, dict) else {}
