"""The worker process of sandbox.py, run as a module.

Reads frames from standard input until it ends, and writes one answer for each.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from byt5_diffusion.data import images
from byt5_diffusion.data.pages import (
  confinement,
  html_pages,
  sandbox,
  svg_pictures,
)

Answer = tuple[np.ndarray, list[Any], dict[str, Any]]
DRAW: dict[str, Callable[..., Answer]] = {
  "html": html_pages.draw,
  "svg": svg_pictures.draw,
}


def _answer(
  request: dict[str, Any], source: bytes
) -> tuple[dict[str, Any], bytes]:
  """A picture, or why there is none."""
  name = request["name"]
  try:
    image, regions, facts = DRAW[request["kind"]](
      source, name=name, **request["options"]
    )
  except images.BadImage as error:
    return {"refused": error.reason}, b""
  except PermissionError:  # WeasyPrint unpacks fonts into a folder.
    return {"refused": "brings fonts or other files"}, b""
  except RecursionError:
    return {"refused": "nested too deeply", "spent": True}, b""
  except MemoryError:
    return {"refused": "needs too much memory to draw", "spent": True}, b""
  except Exception as error:  # A hostile source may raise anything at all.
    return {"refused": f"broken: {type(error).__name__}"}, b""
  head = {
    "height": image.shape[0],
    "width": image.shape[1],
    "regions": regions,
    "facts": facts,
  }
  return head, image.tobytes()


def main() -> None:
  """Serves until standard input ends."""
  source, target = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
  os.dup2(2, 1)  # What libraries print must not get between the frames.
  start = sandbox.read_frame(source)
  if start is None:
    return
  limits, _ = start
  try:
    ready = [*html_pages.prepare(), *svg_pictures.prepare()]
  except ImportError as error:
    sandbox.write_frame(target, {"missing": str(error)}, b"")
    return
  walls = confinement.confine(
    memory=limits["memory"], readable=[*sandbox.readable(), *ready]
  )
  sandbox.write_frame(target, {"walls": walls}, b"")
  while (frame := sandbox.read_frame(source)) is not None:
    # Should nobody be there to end it.
    signal.alarm(int(2 * limits["seconds"]) + 2)
    sandbox.write_frame(target, *_answer(*frame))
    signal.alarm(0)


if __name__ == "__main__":
  main()
