"""Pictures of strangers' HTML and SVG, drawn where they can do no harm.

A worker is another process that draws one source at a time and gives back
pixels and boxes, never objects:

  parent --  {"kind": "html", ...} + source  -->  worker   over pipes, framed
  parent <-- {"regions": [...], ...} + pixels --

Before it sees the first source it gives up its rights (confinement.py): it can
open nothing but fonts and Python's own files, no connection, no program, and
only so much memory. No source is trusted to end either: who takes too long is
killed, and the next source gets a new worker. Python's own objects never cross
(no pickle), and what comes back is no longer than a picture may be.

  pool = sandbox.pool()
  drawn = pool.draw("html", source, name="a.html", height=800, width=600)
"""

import atexit
import contextlib
import dataclasses
import functools
import json
import os
import queue
import select
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import IO, Any, NamedTuple

import numpy as np

import byt5_diffusion
from byt5_diffusion.data import annotated, images

_PACKAGE = os.path.dirname(os.path.abspath(byt5_diffusion.__file__))

_HEAD = struct.Struct("!II")  # Bytes of the JSON, bytes behind it.
_MAX_JSON = 8 * 2**20
_START_SECONDS = 120.0  # The first one reads all fonts.
_PICTURES_PER_WORKER = 2000  # Then a new one: libraries leak a little.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
  """What one source may cost.

  Attributes:
    seconds: until its worker is killed.
    memory: bytes that a worker may take for drawing.
    source_bytes: longer sources are not looked at.
    pixels: of the picture.
  """

  seconds: float = 10.0
  memory: int = 768 * 2**20
  source_bytes: int = 4 * 2**20
  pixels: int = 16_000_000


class Drawn(NamedTuple):
  """What a worker gives back.

  Attributes:
    image: uint8 [H, W, 3].
    regions: of the picture (annotated.Region); none of pictures of SVG.
    facts: what else is known: see html_pages.draw and svg_pictures.draw.
  """

  image: np.ndarray
  regions: tuple[annotated.Region, ...]
  facts: dict[str, Any]


class _Ended(Exception):
  """The worker is not there any more."""


class Worker:
  """One process; it draws one source at a time."""

  def __init__(self, limits: Limits) -> None:
    self._limits = limits
    self._process = subprocess.Popen(
      [sys.executable, "-m", "byt5_diffusion.data.pages.renderer"],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      env=_environment(),
      cwd="/",
      close_fds=True,
    )
    self.drawn = 0
    try:
      self._send({"memory": limits.memory, "seconds": limits.seconds}, b"")
      self.hello, _ = self._receive(_START_SECONDS)
    except (_Ended, TimeoutError):
      self.close()
      raise RuntimeError(
        "The renderer of HTML and SVG did not start. Does `python -m "
        "byt5_diffusion.data.pages.renderer < /dev/null` say why?"
      ) from None
    if "missing" in self.hello:
      self.close()
      raise ImportError(self.hello["missing"])

  def draw(self, request: Mapping[str, Any], source: bytes) -> Drawn:
    """Raises images.BadImage by the request's "name", and may then be dead."""
    name = request["name"]
    try:
      self._send(request, source)
      answer, pixels = self._receive(self._limits.seconds)
    except TimeoutError:
      self.close()
      raise images.BadImage(
        name, f"takes more than {self._limits.seconds:g} s to draw"
      ) from None
    except _Ended:
      self.close()
      raise images.BadImage(
        name,
        f"the renderer broke on it (more than {self._limits.memory >> 20} MiB, "
        "or a fault of its own)",
      ) from None
    self.drawn += 1
    if "refused" in answer:
      if answer.get("spent"):
        self.close()
      raise images.BadImage(name, answer["refused"])
    return _drawn(answer, pixels, name)

  def alive(self) -> bool:
    return self._process.poll() is None and self.drawn < _PICTURES_PER_WORKER

  def close(self) -> None:
    """Ends the process."""
    self._process.kill()
    self._process.wait()
    for pipe in (self._process.stdin, self._process.stdout):
      if pipe is not None:
        with contextlib.suppress(OSError):
          pipe.close()

  def _send(self, head: Mapping[str, Any], body: bytes) -> None:
    assert self._process.stdin is not None
    try:
      write_frame(self._process.stdin, head, body)
    except OSError:
      raise _Ended from None

  def _receive(self, seconds: float) -> tuple[dict[str, Any], bytes]:
    assert self._process.stdout is not None
    handle = self._process.stdout.fileno()
    deadline = time.monotonic() + seconds

    def read(count: int) -> bytes:
      parts = []
      while count:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([handle], [], [], left)[0]:
          raise TimeoutError
        part = os.read(handle, min(count, 2**20))
        if not part:
          raise _Ended
        parts.append(part)
        count -= len(part)
      return b"".join(parts)

    first, second = _HEAD.unpack(read(_HEAD.size))
    if first > _MAX_JSON or second > 3 * self._limits.pixels:
      raise _Ended  # It is not ours any more that speaks.
    return json.loads(read(first)), read(second)


def _drawn(answer: Mapping[str, Any], pixels: bytes, name: str) -> Drawn:
  height, width = answer["height"], answer["width"]
  if len(pixels) != 3 * height * width:
    raise images.BadImage(name, "the renderer gave another size than it said")
  regions = tuple(
    annotated.Region(
      label=label,
      text=text,
      box=tuple(box),
      polygon=tuple((x, y) for x, y in polygon),
      vertical=vertical,
    )
    for label, text, box, polygon, vertical in answer["regions"]
  )
  image = np.frombuffer(pixels, np.uint8).reshape(height, width, 3)
  return Drawn(image, regions, answer["facts"])


def _environment() -> dict[str, str]:
  """Nothing of ours but what Python and our own modules need."""
  kept = ("PATH", "HOME", "XDG_CACHE_HOME", "BYT5_DIFFUSION_FONTS", "TMPDIR")
  return {
    **{key: os.environ[key] for key in kept if key in os.environ},
    "PYTHONPATH": os.path.dirname(_PACKAGE),
    "PYTHONSAFEPATH": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "LC_ALL": "C.UTF-8",
  }


def write_frame(pipe: IO[bytes], head: Mapping[str, Any], body: bytes) -> None:
  """Sends JSON and the bytes that belong to it."""
  raw = json.dumps(head).encode("utf-8")
  pipe.write(_HEAD.pack(len(raw), len(body)))
  pipe.write(raw)
  pipe.write(body)
  pipe.flush()


def read_frame(pipe: IO[bytes]) -> tuple[dict[str, Any], bytes] | None:
  """The next frame; None at the end."""
  head = pipe.read(_HEAD.size)
  if len(head) < _HEAD.size:
    return None
  first, second = _HEAD.unpack(head)
  return json.loads(pipe.read(first)), pipe.read(second)


class Pool:
  """Workers for as many threads as ask, up to a number. Thread-safe."""

  def __init__(self, limits: Limits | None = None, *, most: int | None = None):
    self.limits = limits or Limits()
    self._idle: queue.LifoQueue[Worker | None] = queue.LifoQueue()
    for _ in range(most or min(8, os.cpu_count() or 1)):
      self._idle.put(None)  # A place without a worker yet.
    self._owner = os.getpid()
    self._missing: str | None = None

  def draw(
    self, kind: str, source: bytes, *, name: str, **options: Any
  ) -> Drawn:
    """The picture of one source.

    Args:
      kind: "html" or "svg".
      source: of it, UTF-8 or as it says itself.
      name: for errors.
      **options: of html_pages.draw or svg_pictures.draw; JSON's types.

    Raises:
      images.BadImage: refused, too large, too slow, or broken.
      ImportError: the extra `layouts` is not installed.
    """
    if len(source) > self.limits.source_bytes:
      raise images.BadImage(name, f"more than {self.limits.source_bytes} bytes")
    size = options.get("height", 1) * options.get("width", 1)
    if not 1 <= size <= self.limits.pixels:
      raise images.BadImage(name, f"more than {self.limits.pixels} pixels")
    request = {"kind": kind, "name": name, "options": options}
    with self._worker() as worker:
      return worker.draw(request, source)

  def walls(self) -> list[str]:
    """What holds the workers: see confinement.confine."""
    with self._worker() as worker:
      return list(worker.hello["walls"])

  def close(self) -> None:
    """Ends the workers that nobody uses; `draw` would start new ones."""
    for worker in list(self._idle.queue):
      if worker is not None and self._owner == os.getpid():
        worker.close()

  @contextlib.contextmanager
  def _worker(self) -> Iterator[Worker]:
    worker = self._idle.get()
    try:
      if worker is None or not worker.alive():
        if worker is not None:
          worker.close()
        worker = None
        worker = self._started()
      yield worker
    finally:
      self._idle.put(worker)

  def _started(self) -> Worker:
    """A new worker. What it lacks is not looked for again and again."""
    if self._missing is not None:
      raise ImportError(self._missing)
    try:
      return Worker(self.limits)
    except ImportError as error:
      self._missing = str(error)
      raise


_pools: dict[tuple[int, Limits], Pool] = {}
_lock = threading.Lock()


def pool(limits: Limits | None = None) -> Pool:
  """The process's pool with such limits."""
  limits = limits or Limits()
  key = os.getpid(), limits  # A fork must not share its parent's pipes.
  with _lock:
    if key not in _pools:
      _pools[key] = Pool(limits)
      atexit.register(_pools[key].close)
    return _pools[key]


@functools.cache
def readable() -> tuple[str, ...]:
  """Folders that a worker may read: Python's, the system's libraries'."""
  found = [sys.prefix, sys.base_prefix, _PACKAGE, "/usr/lib", "/lib", "/lib64"]
  # Not the folder that our package lies in: it may be a user's, with data.
  found += [
    path
    for path in sys.path
    if os.path.isdir(path)
    and not os.path.samefile(path, os.path.dirname(_PACKAGE))
  ]
  return tuple(dict.fromkeys(path for path in found if path != "/"))
