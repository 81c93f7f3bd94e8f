"""Headless Chromium as a second opinion on how HTML and SVG look.

Nothing of the package needs it: pages are drawn by WeasyPrint, vector graphics
by resvg, and the tests compare them with this where Chromium is installed (the
system's package `chromium`). It also has what WeasyPrint lacks, vertical
writing modes above all. It is not a sandbox for strangers' files: it runs
without its own, and scripts run in it.
"""

import os
import pathlib
import shutil
import subprocess
import tempfile

import numpy as np

from byt5_diffusion.data import images
from byt5_diffusion.data.pages import html_pages

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_FLAGS = (
  "--headless=new",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--disable-default-apps",
  "--disable-extensions",
  "--no-first-run",
  "--hide-scrollbars",
  "--force-device-scale-factor=1",
  "--force-color-profile=srgb",
  "--disable-lcd-text",
  "--font-render-hinting=none",
  # Nothing of a page is looked for outside of this machine.
  "--host-resolver-rules=MAP * ~NOTFOUND",
)


def find() -> str | None:
  """Path of the program; None if it is not here."""
  return next(filter(None, map(shutil.which, _NAMES)), None)


def draw(
  source: str,
  *,
  height: int,
  width: int,
  suffix: str = ".html",
  seconds: float = 60.0,
) -> np.ndarray:
  """What Chromium shows of a source in a window of a size.

  Args:
    source: HTML, or SVG with suffix ".svg".
    height, width: CSS pixels, and pixels of the picture.
    suffix: of the file that Chromium opens.
    seconds: until it is given up.

  Returns:
    uint8 [height, width, 3], drawn with the fonts of fonts.py alone.

  Raises:
    ImportError: Chromium is not installed.
    images.BadImage: it failed, or took too long.
  """
  program = find()
  if program is None:
    raise ImportError(
      "Chromium is not installed: the system's package is called chromium."
    )
  with tempfile.TemporaryDirectory(prefix="byt5_diffusion_") as folder:
    page = pathlib.Path(folder, f"page{suffix}")
    page.write_text(source, "utf-8")
    picture = pathlib.Path(folder, "page.png")
    command = [
      program,
      *_FLAGS,
      f"--user-data-dir={folder}/profile",
      f"--window-size={width},{height}",
      f"--screenshot={picture}",
      page.as_uri(),
    ]
    configuration = os.path.join(html_pages.configure_fonts(), "fonts.conf")
    try:
      subprocess.run(
        command,
        env={**os.environ, "FONTCONFIG_FILE": configuration, "HOME": folder},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=seconds,
        check=True,
        start_new_session=True,
      )
    except subprocess.TimeoutExpired:
      raise images.BadImage(page.name, f"Chromium took {seconds:g} s") from None
    except subprocess.CalledProcessError as error:
      raise images.BadImage(
        page.name, f"Chromium ended with {error.returncode}"
      ) from None
    if not picture.is_file():
      raise images.BadImage(page.name, "Chromium made no picture")
    drawn = images.decode_image(picture)
  canvas = np.full((height, width, 3), 255, np.uint8)
  part = drawn[:height, :width]
  canvas[: part.shape[0], : part.shape[1]] = part
  return canvas
