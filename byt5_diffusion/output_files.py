"""Files that a command writes: asked about first, whole or not at all."""

import os
import pathlib
import tempfile
from collections.abc import Sequence

from byt5_diffusion import config_program

ConfigError = config_program.ConfigError


def check(out: str, suffixes: Sequence[str], overwrite: bool) -> pathlib.Path:
  """The path of --out, which can be written.

  Raises:
    ConfigError: another suffix, a file that is there and may not be replaced,
      or a folder that cannot be made or written to.
  """
  path = pathlib.Path(out)
  if path.suffix.lower() not in suffixes:
    raise ConfigError(f"--out {out}: must end in {' or '.join(suffixes)}.")
  if path.is_dir():
    raise ConfigError(f"--out {out} is a folder.")
  if path.exists() and not overwrite:
    raise ConfigError(
      f"{out} exists. Choose another --out or give --overwrite."
    )
  make_folder(path.parent)
  return path


def make_folder(folder: pathlib.Path) -> None:
  """Makes it, and finds out that it can be written to, before any work.

  Raises:
    ConfigError: it cannot be made or written to.
  """
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
      pass
  except OSError as error:
    raise ConfigError(
      f"--out: nothing can be written in {folder}: {error.strerror}."
    ) from error


def write(path: pathlib.Path, content: bytes) -> None:
  """Writes the whole file or none."""
  handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".partial")
  try:
    with os.fdopen(handle, "wb") as file:
      file.write(content)
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)
  except BaseException:
    os.unlink(temporary)
    raise
