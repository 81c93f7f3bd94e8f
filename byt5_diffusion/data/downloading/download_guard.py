"""A door to the open internet and to nothing else, for programs that download.

Lists of addresses come from strangers, and what stands behind an address may
send a program on to the machine's own network. So the program that downloads
gets a proxy, the only one that connects anywhere:

  with Guard(Limits()) as guard:
    subprocess.run(command, env={**environment, **guard.environment()})

  - http and https alone; https goes through as it is (CONNECT), so the program
    checks the certificate.
  - A host's addresses are looked up once, every one of them must be public, and
    the connection is made to what was checked: another answer of the name
    server changes nothing.
  - A redirect is another request to the proxy, and checked like the first.
  - Bytes and seconds per file, and bytes in all, are limited. What goes beyond
    is cut off by a reset, which no program takes for the file's end.
"""

import asyncio
import base64
import collections
import concurrent.futures
import contextlib
import dataclasses
import re
import secrets
import socket
import struct
import threading
import urllib.parse
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from byt5_diffusion.data.downloading import public_addresses

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

_HEAD_BYTES = 2**16  # Of a request or an answer, before its body.
_CHUNK = 2**16
_UPLOAD_BYTES = 2**17  # What a program may send: TLS's greetings, one GET.
# What TLS and the answer's head add to a file.
_OVERHEAD = 2**17
_KEPT_HEADERS = ("user-agent", "accept", "accept-language")


class _Exhausted(Exception):
  """As many bytes as allowed in all."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
  """How much may come in.

  Attributes:
    max_file_bytes: of one file.
    max_file_seconds: from the request to the file's last byte.
    connect_seconds: for the name's lookup, and for each connection.
    max_total_bytes: of all files; None: without limit.
    ports: that may be connected to.
  """

  max_file_bytes: int = 32 * 2**20
  max_file_seconds: float = 60.0
  connect_seconds: float = 10.0
  max_total_bytes: int | None = None
  ports: tuple[int, ...] = (80, 443, 8080, 8443)

  def __post_init__(self) -> None:
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if isinstance(value, (int, float)) and value <= 0:
        raise ValueError(f"{field.name}={value} must be positive.")


class Guard:
  """The proxy, on a thread of its own. A context manager.

  Attributes:
    url: of the proxy, with a password of its own.
    refused: {reason: how often}.
    received: bytes of all files.
    exhausted: set when max_total_bytes have been received. From then on nobody
      gets an answer, so that no address is taken for a dead one.
  """

  def __init__(
    self,
    limits: Limits | None = None,
    *,
    resolve: Resolve | None = None,
    open_to: frozenset[tuple[str, int]] = frozenset(),
  ):
    """Starts nothing yet.

    Args:
      limits: how much may come in.
      resolve: (host, port) -> addresses; None: the system's.
      open_to: (address, port) that are allowed though not public: of tests.
    """
    self._limits = limits or Limits()
    self._resolve = resolve or _resolve
    self._open_to = open_to
    self._password = secrets.token_urlsafe(16)
    self._loop = asyncio.new_event_loop()
    self._pool = concurrent.futures.ThreadPoolExecutor(64, "lookup")
    self._loop.set_default_executor(self._pool)
    self._thread = threading.Thread(
      target=self._loop.run_forever, name="download guard", daemon=True
    )
    self._server: asyncio.Server | None = None
    self._tasks: set[asyncio.Task[None]] = set()
    self.url = ""
    self.refused: collections.Counter[str] = collections.Counter()
    self.received = 0
    self.exhausted = threading.Event()

  def environment(self) -> dict[str, str]:
    """Variables that send a program's requests here, whatever their kind."""
    names = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy")
    proxies = dict.fromkeys([*names, *(x.upper() for x in names)], self.url)
    return {**proxies, "no_proxy": "", "NO_PROXY": ""}

  def __enter__(self) -> "Guard":
    self._thread.start()
    start = asyncio.start_server(
      self._serve, "127.0.0.1", 0, limit=_HEAD_BYTES, backlog=1024
    )
    self._server = self._run(start)
    port = self._server.sockets[0].getsockname()[1]
    self.url = f"http://guard:{self._password}@127.0.0.1:{port}"
    return self

  def __exit__(self, *unused: object) -> None:
    self._run(self._stop())
    self._loop.call_soon_threadsafe(self._loop.stop)
    self._thread.join()
    self._loop.close()
    self._pool.shutdown(wait=False, cancel_futures=True)

  def _run(self, coroutine: Any) -> Any:
    return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

  async def _stop(self) -> None:
    assert self._server
    self._server.close()
    for task in self._tasks:
      task.cancel()
    await asyncio.gather(*self._tasks, return_exceptions=True)

  async def _serve(
    self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
  ) -> None:
    """One request of the program."""
    task = asyncio.current_task()
    assert task
    self._tasks.add(task)
    exchange = _Exchange(reader, writer)
    reason = ""
    try:
      async with asyncio.timeout(self._limits.max_file_seconds):
        await self._relay(exchange)
    except _Exhausted:
      await asyncio.Event().wait()  # Until the guard ends.
    except public_addresses.Refused as refusal:
      reason = str(refusal)
    except TimeoutError:
      reason = "too slow"
    except (OSError, EOFError, ValueError, asyncio.LimitOverrunError):
      reason = "broken connection"
    finally:
      self._tasks.discard(task)
      if reason:
        self.refused[reason] += 1
      await exchange.close(reason)

  async def _relay(self, exchange: "_Exchange") -> None:
    if self.exhausted.is_set():
      raise _Exhausted
    head = await exchange.reader.readuntil(b"\r\n\r\n")
    request, headers = _parse_head(head)
    method, target, *rest = [*request.split(" "), "", ""]
    if len(rest) != 3 or not rest[0].startswith("HTTP/1."):
      raise public_addresses.Refused("no request")
    self._check_password(headers.get("proxy-authorization", ""))
    if method == "CONNECT":
      await self._connect(exchange, *_authority(target))
      exchange.say(b"HTTP/1.1 200 Connection established\r\n\r\n")
      await self._pump_both(exchange)
    elif method == "GET":
      parts = urllib.parse.urlsplit(target)
      if public_addresses.url_fault(target) or parts.scheme.lower() != "http":
        raise public_addresses.Refused(
          public_addresses.url_fault(target) or "neither http nor https"
        )
      await self._connect(exchange, *public_addresses.host_and_port(parts))
      await self._get(exchange, parts, headers)
    else:
      raise public_addresses.Refused("not a download")

  def _check_password(self, given: str) -> None:
    wanted = base64.b64encode(f"guard:{self._password}".encode()).decode()
    if not secrets.compare_digest(given.encode(), f"Basic {wanted}".encode()):
      raise public_addresses.Refused("not the program that this proxy is for")

  async def _connect(self, exchange: "_Exchange", host: str, port: int) -> None:
    """Looks a host up, checks all that is found, connects to one of it."""
    limits = self._limits
    try:
      async with asyncio.timeout(limits.connect_seconds):
        addresses = await self._resolve(host, port)
    except (OSError, UnicodeError, TimeoutError):
      raise public_addresses.Refused("no such host") from None
    if not addresses:
      raise public_addresses.Refused("no such host")
    for address in addresses:
      if (address, port) in self._open_to:
        continue
      if not public_addresses.is_public(address):
        raise public_addresses.Refused("not a public address")
      if port not in limits.ports:
        raise public_addresses.Refused("not a port of the web")
    for address in addresses:
      with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(limits.connect_seconds):
          # A literal address: nothing is looked up again.
          exchange.far = await asyncio.open_connection(
            address, port, limit=_HEAD_BYTES
          )
        return
    raise public_addresses.Refused("no connection")

  async def _get(
    self,
    exchange: "_Exchange",
    parts: urllib.parse.SplitResult,
    headers: dict[str, str],
  ) -> None:
    """A file by http, whose answer can be looked into."""
    path = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
    lines = [f"GET {path} HTTP/1.1", f"Host: {parts.netloc}"]
    lines += [f"{x}: {headers[x]}" for x in _KEPT_HEADERS if x in headers]
    lines += ["Accept-Encoding: identity", "Connection: close", "", ""]
    assert exchange.far
    exchange.far[1].write("\r\n".join(lines).encode("latin-1"))
    head = await exchange.far[0].readuntil(b"\r\n\r\n")
    length = _parse_head(head)[1].get("content-length", "")
    if length.isdecimal() and int(length) > self._limits.max_file_bytes:
      raise public_addresses.Refused("too large")
    exchange.say(head)
    await self._pump_both(exchange)

  async def _pump_both(self, exchange: "_Exchange") -> None:
    """Both ways, until either side has ended."""
    assert exchange.far
    reader, writer = exchange.far
    down = self._pump(reader, exchange.writer, self._count)
    up = self._pump(exchange.reader, writer, _at_most(_UPLOAD_BYTES))
    tasks = [asyncio.ensure_future(x) for x in (down, up)]
    try:
      await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
      for task in tasks:
        if task.done():
          task.result()
    finally:
      for task in tasks:
        task.cancel()
      await asyncio.gather(*tasks, return_exceptions=True)

  async def _pump(
    self,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    check: Callable[[int, int], None],
  ) -> None:
    total = 0
    while chunk := await reader.read(_CHUNK):
      total += len(chunk)
      check(len(chunk), total)
      writer.write(chunk)
      await writer.drain()

  def _count(self, new: int, total: int) -> None:
    """Counts bytes of a file; raises public_addresses.Refused for too many."""
    limit = self._limits.max_total_bytes
    self.received += new
    if limit is not None and self.received > limit:
      self.exhausted.set()
      raise _Exhausted
    _at_most(self._limits.max_file_bytes + _OVERHEAD)(new, total)


class _Exchange:
  """A request of the program (reader, writer), and its far end once there.

  Attributes:
    reader, writer: of the program.
    far: of the host.
    answered: whether the program has got anything.
  """

  def __init__(
    self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
  ):
    self.reader = reader
    self.writer = writer
    self.far: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
    self.answered = False

  def say(self, what: bytes) -> None:
    self.answered = True
    self.writer.write(what)

  async def close(self, reason: str) -> None:
    """Ends both sides; a reason is said, or shown by a reset."""
    if self.far:
      self.far[1].transport.abort()
    if reason and self.answered:
      linger = struct.pack("ii", 1, 0)
      with contextlib.suppress(OSError):
        raw = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
      self.writer.transport.abort()
      return
    if reason:
      self.say(f"HTTP/1.1 502 {reason}\r\nContent-Length: 0\r\n\r\n".encode())
    with contextlib.suppress(OSError, TimeoutError):
      async with asyncio.timeout(5):
        self.writer.close()
        await self.writer.wait_closed()


def _at_most(limit: int) -> Callable[[int, int], None]:
  def check(new: int, total: int) -> None:
    del new
    if total > limit:
      raise public_addresses.Refused("too large")

  return check


def _parse_head(head: bytes) -> tuple[str, dict[str, str]]:
  """First line and {lower-case name: value} of a message."""
  first, *lines = head.decode("latin-1").split("\r\n")
  pairs = (line.partition(":") for line in lines if line)
  return first, {
    name.strip().lower(): value.strip() for name, _, value in pairs
  }


def _authority(target: str) -> tuple[str, int]:
  """ "host:443" or "[::1]:443" of CONNECT."""
  host, _, port = target.rpartition(":")
  if host.startswith("[") and host.endswith("]"):
    host = host[1:-1]
  public_addresses.check_host(host)
  if not re.fullmatch(r"\d{1,5}", port):
    raise public_addresses.Refused("no request")
  return host, int(port)


async def _resolve(host: str, port: int) -> list[str]:
  loop = asyncio.get_running_loop()
  found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
  return list(dict.fromkeys(str(one[4][0]) for one in found))
