"""Pictures of data sets that are lists of addresses: img2dataset, guarded.

  list of addresses -> <output_dir>/.urls   http and https alone
  img2dataset       -> <output_dir>         on a process of its own, which
                                            reaches the guard and nothing else

Its files are its own, with all columns of the list: 00000.tar (or .parquet,
.tfrecord), 00000_stats.json when a shard is complete. What is complete is not
fetched again; what an interrupted run left unfinished is. Nothing is deleted,
and a folder with files of somebody else is not written to.
"""

import contextlib
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import tqdm

from byt5_diffusion.data.downloading import (
  address_lists,
  download_guard,
  img2dataset_runner,
)
from byt5_diffusion.data.rows import tables

_MAX_PIXELS = 64_000_000
# Of the environment, what a program needs to run at all.
_KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH",
         "SSL_CERT_FILE", "SSL_CERT_DIR")  # fmt: skip


class Summary(NamedTuple):
  """What came of a download.

  Attributes:
    addresses: of the list, those that were tried.
    pictures: of them, what is there.
    refused: {reason: how often}, by the guard.
    not_tried: {reason: how often}, of the list.
    stopped: why the run ended before the list did; "": it did not.
  """

  addresses: int
  pictures: int
  refused: dict[str, int]
  not_tried: dict[str, int]
  stopped: str


def download(
  source: str,
  output_dir: str | os.PathLike[str],
  settings: address_lists.Settings | None = None,
  *,
  limits: download_guard.Limits | None = None,
  processes: int = 4,
  threads: int = 32,
  retries: int = 0,
  user_agent: str | None = None,
  max_hours: float | None = None,
  python: str | None = None,
  guard: download_guard.Guard | None = None,
) -> Summary:
  """Fetches all pictures of a list of addresses, or goes on with it.

  Args:
    source: data/rows/tables.py: the list, one or many files.
    output_dir: a new or empty folder, or one that this has begun.
    settings: what is kept, and how.
    limits: of the guard.
    processes, threads: of img2dataset; threads are of each process.
    retries: of every address that fails.
    user_agent: who asks, told to every server besides img2dataset's name.
    max_hours: then the run ends; the next one goes on.
    python: the one that img2dataset is installed in; None: this one.
    guard: instead of a new one; of tests.

  Raises:
    ValueError: the list, or the folder, is not what it should be.
    ImportError: there is no img2dataset.
    OSError: it failed; its last words are quoted.
  """
  check_python(python)
  folder = pathlib.Path(output_dir).absolute()
  table = tables.open_table(source)
  settings = (settings or address_lists.Settings()).of_table(
    source, table.columns
  )
  not_tried = address_lists.write_list(table, folder, settings)
  guard = guard or download_guard.Guard(limits)
  with guard:
    arguments = _arguments(folder, settings) | {
      "processes_count": processes,
      "thread_count": threads,
      "retries": retries,
      "user_agent_token": user_agent,
    }
    stopped = _run(python or sys.executable, arguments, guard, max_hours)
  addresses, pictures = _done(folder)
  return Summary(addresses, pictures, dict(guard.refused), not_tried, stopped)


def check_python(python: str | None) -> None:
  """Raises ImportError where img2dataset is not installed."""
  if python is None and importlib.util.find_spec("img2dataset") is None:
    raise ImportError(
      "img2dataset is not installed. Install it with `pip install "
      '"byt5-diffusion[download]"`, or into an environment of its own that '
      "--python names."
    )


# --- img2dataset --------------------------------------------------------------


def _arguments(
  folder: pathlib.Path, settings: address_lists.Settings
) -> dict[str, Any]:
  scaled = settings.image_size > 0
  return {
    "url_list": str(folder / address_lists.URLS),
    "input_format": "parquet",
    "url_col": "url",
    "caption_col": "caption" if settings.caption_column else None,
    "save_additional_columns": list(settings.columns or ()) or None,
    "output_folder": str(folder),
    "output_format": settings.output_format,
    "image_size": settings.image_size or 1024,
    "resize_mode": "keep_ratio" if scaled else "no",
    "resize_only_if_bigger": True,
    "skip_reencode": True,
    "max_image_area": _MAX_PIXELS,
    "number_sample_per_shard": settings.samples_per_shard,
    # The guard is stricter, and says why.
    "timeout": 600,
    "extract_exif": False,
    "enable_wandb": False,
    "incremental_mode": "incremental",
  }


def _run(
  python: str,
  arguments: Mapping[str, Any],
  guard: download_guard.Guard,
  max_hours: float | None,
) -> str:
  """Runs img2dataset to its end, or until a limit: then says which."""
  folder = pathlib.Path(arguments["output_folder"])
  environment = {key: os.environ[key] for key in _KEPT if key in os.environ}
  environment |= {
    **guard.environment(),
    "OPENCV_IO_MAX_IMAGE_PIXELS": str(_MAX_PIXELS),
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "WANDB_MODE": "disabled",
  }
  command = [python, "-I", str(img2dataset_runner.__file__)]
  command.append(json.dumps(arguments))
  deadline = time.monotonic() + (max_hours or 1e9) * 3600
  log_path = folder / address_lists.URLS / "img2dataset.log"
  with (
    log_path.open("ab") as log,
    # Where this process ends, the pipe does, and img2dataset with it.
    subprocess.Popen(
      command,
      stdin=subprocess.PIPE,
      stdout=log,
      stderr=log,
      env=environment,
      start_new_session=True,
    ) as process,
    tqdm.tqdm(total=_listed(folder), unit="address", disable=None) as bar,
  ):
    stopped = ""
    try:
      while process.poll() is None and not stopped:
        with contextlib.suppress(subprocess.TimeoutExpired):
          process.wait(0.2)
        bar.update(_done(folder)[0] - bar.n)
        bar.set_postfix_str(f"{guard.received / 2**20:.0f} MiB")
        if guard.exhausted.is_set():
          stopped = "as many bytes as allowed have come in (--max_total_gb)"
        elif time.monotonic() > deadline:
          stopped = "the time is over (--max_hours)"
    finally:
      _end(process)
  if process.returncode and not stopped:
    words = log_path.read_bytes()[-2000:].decode("utf-8", "replace")
    raise OSError(f"img2dataset failed; all it said is in {log_path}.\n{words}")
  return stopped


def _end(process: subprocess.Popen[bytes]) -> None:
  """Ends img2dataset and its workers, if it has not ended by itself."""
  if process.poll() is None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _listed(folder: pathlib.Path) -> int:
  import pyarrow.parquet as pq

  lists = (folder / address_lists.URLS).glob("*.parquet")
  return sum(pq.ParquetFile(path).metadata.num_rows for path in lists)


def _done(folder: pathlib.Path) -> tuple[int, int]:
  """Addresses tried and pictures got, of complete shards."""
  tried = got = 0
  for path in folder.glob("*_stats.json"):
    with contextlib.suppress(ValueError, OSError, KeyError):
      stats = json.loads(path.read_text("utf-8"))
      tried, got = tried + stats["count"], got + stats["successes"]
  return tried, got
