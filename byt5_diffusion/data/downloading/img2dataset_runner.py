"""img2dataset, run where nothing but the guard can be reached.

  python -I img2dataset_runner.py '{"url_list": ..., ...}'

Run as a file, by the Python that img2dataset is installed in, which may be
another one than this package's: so nothing of ours is imported. Its worker
processes import this file again, and with it the hook, which cannot be removed:
connections go to the guard (data/downloading/download_guard.py) or fail.
"""

import functools
import json
import os
import signal
import ssl
import sys
import threading
import urllib.parse
from typing import Any

_CONNECTS = ("socket.connect", "socket.sendto", "socket.sendmsg")


def only_to(url: str) -> None:
  """From now on the process connects to the host and port of a URL alone."""
  parts = urllib.parse.urlsplit(url)
  allowed = (parts.hostname, parts.port)

  def hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event in _CONNECTS:
      address = arguments[1]
      # What is no tuple is a socket of this machine's file system.
      if isinstance(address, tuple) and address[:2] != allowed:
        raise PermissionError(f"{event} to {address[:2]}: not by the guard")
    elif event == "socket.getaddrinfo" and arguments[0] != allowed[0]:
      raise PermissionError(f"lookup of {arguments[0]}: not by the guard")

  sys.addaudithook(hook)


def refuse_ragged_ends() -> None:
  """Makes an https answer without an end an error, not a shorter file."""
  wrap = ssl.SSLContext.wrap_socket

  @functools.wraps(wrap)
  def strict(*arguments: Any, **keywords: Any) -> ssl.SSLSocket:
    keywords["suppress_ragged_eofs"] = False
    return wrap(*arguments, **keywords)

  ssl.SSLContext.wrap_socket = strict  # type: ignore[method-assign]


def end_with_the_caller() -> None:
  """Ends the process and its workers when what started it has ended.

  They would write down every address as dead, because the guard is gone.
  """
  while os.read(0, 1):  # Not sys.stdin, whose lock ends Python's end.
    pass
  os.killpg(0, signal.SIGKILL)


# "__mp_main__" is what a worker process calls the file that started it.
if __name__ in ("__main__", "__mp_main__"):
  only_to(os.environ["http_proxy"])
  refuse_ragged_ends()

if __name__ == "__main__":
  try:
    import img2dataset
  except ImportError as error:
    sys.exit(
      f"{sys.executable} has no img2dataset ({error}). Install it there: "
      'pip install "byt5-diffusion[download]"'
    )
  threading.Thread(target=end_with_the_caller, daemon=True).start()
  img2dataset.download(**json.loads(sys.argv[1]))
