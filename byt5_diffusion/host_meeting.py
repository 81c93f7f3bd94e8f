"""How hosts meet before JAX connects them: one line of JSON each way.

The coordinator (process 0) listens on the very port that JAX will use, the
others call and say who they are; when all have come they hear so, hang up, and
the port is free for JAX. Strangers who call are hung up on.
"""

import contextlib
import importlib.metadata
import json
import selectors
import socket
import time
from typing import Any, NamedTuple, NoReturn

import byt5_diffusion

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
    if connection not in self._buffers:
      return  # Dropped since it was found to be readable.
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


def gather(place: Place, deadline: float, timeout: float) -> None:
  """Process 0: returns when all others have called.

  Args:
    place: where to listen, and for how many.
    deadline: of time.monotonic().
    timeout: the same in seconds from the start, for the message.

  Raises:
    HostsError: on every host that had come.
  """
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


def call(place: Place, deadline: float, timeout: float) -> None:
  """The other processes: returns when process 0 says that all are there.

  Args and errors as `gather`.
  """
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
