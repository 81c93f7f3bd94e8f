"""The guard before real servers: what gets through, and what must not.

A test's own servers are not public, so each is let through by name: `open_to`,
which no command has.
"""

import contextlib
import http.client
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator

import pytest

from byt5_diffusion.data.downloading import (
  download_guard,
  img2dataset_runner,
  public_addresses,
)

Answer = Callable[[socket.socket], None]
LIMITS = download_guard.Limits(
  max_file_bytes=2**20,
  max_file_seconds=5,
  connect_seconds=1,
  ports=(80, 443),
)


@contextlib.contextmanager
def server(answer: Answer, address: str = "127.0.0.1") -> Iterator[int]:
  """A server that reads a request and then does what `answer` does."""
  with socket.create_server((address, 0)) as listener:

    def serve() -> None:
      while True:
        try:
          client, _ = listener.accept()
        except OSError:
          return
        with client, contextlib.suppress(OSError):
          client.settimeout(5)
          client.recv(2**16)
          answer(client)

    threading.Thread(target=serve, daemon=True).start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)


def says(text: str, body: bytes = b"") -> Answer:
  def answer(client: socket.socket) -> None:
    client.sendall(text.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)

  return answer


def get(guard: download_guard.Guard, url: str, timeout: float = 10) -> bytes:
  """What a program gets that is sent to the guard, as img2dataset does it."""
  proxies = dict.fromkeys(("http", "https", "ftp"), guard.url)
  opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies))
  with opener.open(url, timeout=timeout) as answer:
    return answer.read()


def guarded(
  *ports: int, limits: download_guard.Limits = LIMITS, **more
) -> download_guard.Guard:
  allowed = frozenset(("127.0.0.1", port) for port in ports)
  return download_guard.Guard(limits, open_to=allowed, **more)


def refused(guard: download_guard.Guard, url: str) -> str:
  """The one reason for which a download failed."""
  before = guard.refused.copy()
  with pytest.raises((OSError, http.client.HTTPException)):
    get(guard, url)
  deadline = time.monotonic() + 2
  while guard.refused == before and time.monotonic() < deadline:
    time.sleep(0.01)
  [reason] = guard.refused - before
  return reason


def test_a_file_comes_through() -> None:
  seen = []

  def answer(client: socket.socket) -> None:
    seen.append(client.getpeername())
    says("HTTP/1.1 200 OK\nContent-Length: 5", b"bytes")(client)
    client.recv(1)  # Stays open, though asked to close.

  with server(answer) as port, guarded(port) as guard:
    assert get(guard, f"http://127.0.0.1:{port}/a?b=c") == b"bytes"
    assert len(seen) == 1 and not guard.refused
    assert guard.received >= 5


@pytest.mark.parametrize(
  "address",
  [
    "127.0.0.1", "127.255.255.254", "10.1.2.3", "172.16.0.1", "192.168.1.1",
    "169.254.169.254", "100.64.0.1", "100.100.100.200", "0.0.0.0", "0.1.2.3",
    "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.0.192", "198.18.0.1",
    "192.0.2.1", "203.0.113.9", "168.63.129.16", "192.88.99.1",
    "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254",
    "fec0::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
    "::ffff:169.254.169.254", "::127.0.0.1", "64:ff9b::7f00:1",
    "64:ff9b:1::1", "2001::1", "2002:7f00:1::", "2001:db8::1",
    "no address", "",
  ],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
  assert not public_addresses.is_public(address)


@pytest.mark.parametrize(
  "address", ["8.8.8.8", "93.184.215.14", "2606:4700::1111", "::ffff:8.8.8.8"]
)
def test_addresses_that_are_public(address: str) -> None:
  assert public_addresses.is_public(address)


@pytest.mark.parametrize(
  ("url", "fault"),
  [
    ("http://example.com/a.jpg", None),
    ("HTTPS://example.com:8443/ä".encode("ascii", "ignore").decode(), None),
    ("http://[2606:4700::1111]/x", None),
    ("file:///etc/passwd", "neither http nor https"),
    ("<file:///etc/passwd>", "neither http nor https"),
    ("URL:file:///etc/passwd", "neither http nor https"),
    ("ftp://example.com/x", "neither http nor https"),
    ("data:image/png;base64,AAAA", "neither http nor https"),
    ("/etc/passwd", "neither http nor https"),
    ("http://example.com/a b", "letters that no address has"),
    ("http://example.com/\r\nHost: x", "letters that no address has"),
    ("http://пример.рф/", "letters that no address has"),
    ("http://user:password@example.com/", "a password in the address"),
    ("http:///etc/passwd", "no host's name"),
    ("http://exa$mple.com/", "no host's name"),
    ("http://example.com:99999/", "no address"),
    ("http://example.com/" + "a" * 9000, "address too long"),
    (None, "no address"),
    ("", "no address"),
  ],
)
def test_addresses_of_a_list(url: str | None, fault: str | None) -> None:
  assert public_addresses.url_fault(url) == fault


@pytest.mark.parametrize(
  ("target", "reason"),
  [
    ("http://127.0.0.2:{port}/", "not a public address"),
    ("http://127.1:{port}/x", "not a public address"),
    ("http://2130706434/", "not a public address"),
    ("http://[::ffff:127.0.0.1]:{port}/", "not a public address"),
    ("http://[::1]/", "not a public address"),
    ("http://169.254.169.254/latest/meta-data", "not a public address"),
    ("https://127.0.0.2:{port}/", "not a public address"),
    ("https://[fd00:ec2::254]/", "not a public address"),
    ("ftp://127.0.0.1:{port}/x", "neither http nor https"),
  ],
)
def test_private_addresses_are_refused(target: str, reason: str) -> None:
  hello = says("HTTP/1.1 200 OK\nContent-Length: 2", b"hi")
  with server(hello, "127.0.0.2") as port, guarded() as guard:
    assert refused(guard, target.format(port=port)) == reason


@pytest.mark.parametrize(
  ("target", "reason"),
  [
    ("http://127.0.0.2:{port}/secret", "not a public address"),
    ("https://10.0.0.1/secret", "not a public address"),
    ("ftp://127.0.0.1/secret", "neither http nor https"),
  ],
)
def test_redirects_are_checked_again(target: str, reason: str) -> None:
  with server(says("HTTP/1.1 200 OK", b"secret"), "127.0.0.2") as inner:
    target = target.format(port=inner)
    moved = says(f"HTTP/1.1 302 Found\nLocation: {target}\nContent-Length: 0")
    with server(moved) as port, guarded(port) as guard:
      assert refused(guard, f"http://127.0.0.1:{port}/") == reason


def test_a_redirect_to_a_file_reaches_nobody() -> None:
  moved = says("HTTP/1.1 302 Found\nLocation: file:///etc/passwd")
  with server(moved) as port, guarded(port) as guard:
    with pytest.raises(urllib.error.HTTPError, match="not allowed"):
      get(guard, f"http://127.0.0.1:{port}/")


def test_a_redirect_to_what_is_allowed_is_followed() -> None:
  with server(says("HTTP/1.1 200 OK\nContent-Length: 2", b"ok")) as second:
    target = f"http://127.0.0.1:{second}/"
    moved = says(f"HTTP/1.1 301 Moved\nLocation: {target}\nContent-Length: 0")
    with server(moved) as first, guarded(first, second) as guard:
      assert get(guard, f"http://127.0.0.1:{first}/") == b"ok"


def test_one_private_address_among_several_is_enough() -> None:
  async def resolve(host: str, port: int) -> list[str]:
    return {"mixed": ["127.0.0.1", "127.0.0.2"]}.get(host, ["127.0.0.1"])

  with server(says("HTTP/1.1 200 OK\nContent-Length: 2", b"ok")) as port:
    with guarded(port, resolve=resolve) as guard:
      reason = refused(guard, f"http://mixed:{port}/")
      assert reason == "not a public address"
      assert get(guard, f"http://single:{port}/") == b"ok"


def test_the_address_that_was_checked_is_the_one_connected_to() -> None:
  """Another answer of the name server (rebinding) changes nothing."""
  answers = [["127.0.0.1"], ["127.0.0.2"]]
  asked = []

  async def resolve(host: str, port: int) -> list[str]:
    asked.append(host)
    return answers[min(len(asked), 2) - 1]

  with (
    server(says("HTTP/1.1 200 OK\nContent-Length: 2", b"ok")) as port,
    guarded(port, resolve=resolve) as guard,
  ):
    assert get(guard, f"http://rebinding:{port}/") == b"ok"
    assert asked == ["rebinding"]
    assert refused(guard, f"http://rebinding:{port}/") == "not a public address"


def test_hosts_and_ports_that_are_not_there() -> None:
  async def resolve(host: str, port: int) -> list[str]:
    if host == "nowhere":
      raise OSError("no such host")
    return ["8.8.8.8"]

  with guarded(resolve=resolve) as guard:
    assert refused(guard, "http://nowhere/") == "no such host"
    assert refused(guard, "http://mail:25/") == "not a port of the web"


def endless(head: str) -> Answer:
  def answer(client: socket.socket) -> None:
    says(head)(client)
    while True:
      client.sendall(b"10000\r\n" + b"x" * 2**16 + b"\r\n")

  return answer


@pytest.mark.parametrize(
  "head",
  [
    "HTTP/1.1 200 OK",
    "HTTP/1.1 200 OK\nTransfer-Encoding: chunked",
    "HTTP/1.1 200 OK\nContent-Length: 99999999999",
  ],
)
def test_bodies_without_end_are_cut_off(head: str) -> None:
  with server(endless(head)) as port, guarded(port) as guard:
    assert refused(guard, f"http://127.0.0.1:{port}/") == "too large"
    assert guard.received < LIMITS.max_file_bytes + 2**18


def test_a_length_that_is_a_lie() -> None:
  long = says("HTTP/1.1 200 OK\nContent-Length: 3", b"abcdef")
  short = says("HTTP/1.1 200 OK\nContent-Length: 9", b"abc")
  with server(long) as port, guarded(port) as guard:
    assert get(guard, f"http://127.0.0.1:{port}/") == b"abc"
  with server(short) as port, guarded(port) as guard:
    with pytest.raises(http.client.IncompleteRead):
      get(guard, f"http://127.0.0.1:{port}/")


@pytest.mark.parametrize("head", ["", "HTTP/1.1 200 OK\r\n\r\n"])
def test_a_server_that_drips_is_left(head: str) -> None:
  def answer(client: socket.socket) -> None:
    client.sendall(head.encode())
    while True:
      client.sendall(b"x")
      time.sleep(0.02)

  limits = download_guard.Limits(max_file_seconds=0.3)
  with server(answer) as port, guarded(port, limits=limits) as guard:
    start = time.monotonic()
    assert refused(guard, f"http://127.0.0.1:{port}/") == "too slow"
    assert time.monotonic() - start < 2


def test_a_head_without_end_is_refused() -> None:
  def answer(client: socket.socket) -> None:
    client.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
      client.sendall(b"X: " + b"y" * 2**12 + b"\r\n")

  with server(answer) as port, guarded(port) as guard:
    assert refused(guard, f"http://127.0.0.1:{port}/") == "broken connection"


def test_what_comes_in_in_all_is_limited() -> None:
  body = b"x" * 1000
  limits = download_guard.Limits(max_total_bytes=2500)
  big = says(f"HTTP/1.1 200 OK\nContent-Length: {len(body)}", body)
  with server(big) as port, guarded(port, limits=limits) as guard:
    url = f"http://127.0.0.1:{port}/"
    assert get(guard, url) == get(guard, url) == body
    assert not guard.exhausted.is_set()
    for _ in range(2):  # No answer is the answer: no address is to blame.
      with pytest.raises(TimeoutError):
        get(guard, url, timeout=0.1)
      assert guard.exhausted.is_set() and not guard.refused


@pytest.mark.parametrize(
  "request_line",
  [
    "POST http://127.0.0.1:{}/ HTTP/1.1",
    "GET / HTTP/1.1",
    "hello",
    "CONNECT x",
  ],
)
def test_other_requests_are_refused(request_line: str) -> None:
  with server(says("HTTP/1.1 200 OK", b"x")) as port, guarded(port) as guard:
    where = ("127.0.0.1", int(guard.url.rpartition(":")[2]))
    with socket.create_connection(where) as program:
      program.sendall(f"{request_line.format(port)}\r\n\r\n".encode())
      assert program.recv(100).startswith(b"HTTP/1.1 502 ")
    assert sum(guard.refused.values()) == 1


def test_other_programs_of_the_machine_are_refused() -> None:
  with server(says("HTTP/1.1 200 OK", b"x")) as port, guarded(port) as guard:
    bare = "http://127.0.0.1:" + guard.url.rpartition(":")[2]
    opener = urllib.request.build_opener(
      urllib.request.ProxyHandler({"http": bare})
    )
    with pytest.raises(urllib.error.HTTPError, match="not the program"):
      opener.open(f"http://127.0.0.1:{port}/", timeout=5)


def test_limits_are_positive() -> None:
  with pytest.raises(ValueError, match="max_file_bytes=0"):
    download_guard.Limits(max_file_bytes=0)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> str:
  """Of localhost, with its key; as openssl makes it."""
  if not shutil.which("openssl"):
    pytest.skip("there is no openssl here")
  path = str(tmp_path_factory.mktemp("tls") / "both.pem")
  command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256"
  command += f" -nodes -days 2 -subj /CN=localhost -keyout {path}.key"
  command += f" -addext subjectAltName=DNS:localhost -out {path}"
  subprocess.run(command.split(), check=True, capture_output=True)
  with open(path, "a", encoding="ascii") as file:
    with open(f"{path}.key", encoding="ascii") as key:
      file.write(key.read())
  os.unlink(f"{path}.key")
  return path


@pytest.mark.parametrize("size", [1000, 3 * 2**20])
def test_https_is_checked_by_the_program_itself(
  certificate: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
  """Through the guard, which sees no more than how much it is."""
  # Undone behind the test.
  wrap = ssl.SSLContext.wrap_socket
  monkeypatch.setattr(ssl.SSLContext, "wrap_socket", wrap)
  img2dataset_runner.refuse_ragged_ends()
  at_home = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
  at_home.load_cert_chain(certificate)
  body = b"x" * size

  def serve(listener: socket.socket) -> None:
    with contextlib.suppress(OSError):
      client, _ = listener.accept()
      with at_home.wrap_socket(client, server_side=True) as secure:
        secure.recv(2**16)
        secure.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + body)
        secure.unwrap()  # Says that this is the end.

  with socket.create_server(("127.0.0.1", 0)) as listener:
    port = listener.getsockname()[1]
    threading.Thread(target=serve, args=(listener,), daemon=True).start()

    async def resolve(host: str, port: int) -> list[str]:
      return ["127.0.0.1"]

    with guarded(port, resolve=resolve) as guard:
      trusting = ssl.create_default_context(cafile=certificate)
      opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({"https": guard.url}),
        urllib.request.HTTPSHandler(context=trusting),
      )
      url = f"https://localhost:{port}/"
      if size < LIMITS.max_file_bytes:
        with opener.open(url, timeout=5) as found:
          assert found.read() == body
      else:
        with pytest.raises(OSError), opener.open(url, timeout=5) as found:
          found.read()
        assert guard.refused == {"too large": 1}
