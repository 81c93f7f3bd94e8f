"""Pictures of data sets that are lists of addresses: img2dataset, guarded.

  list of addresses -> <output_dir>/.urls   http and https alone
  img2dataset       -> <output_dir>         on a process of its own, which
                                            reaches the guard and nothing else

Its files are its own, with all columns of the list: 00000.tar (or .parquet,
.tfrecord), 00000_stats.json when a shard is complete. What is complete is not
fetched again; what an interrupted run left unfinished is. Nothing is deleted,
and a folder with files of somebody else is not written to.
"""

import collections
import contextlib
import dataclasses
import importlib.util
import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import tqdm

from byt5_diffusion.data import (
  download_guard,
  images,
  img2dataset_runner,
  tables,
)

FORMATS = ("webdataset", "parquet", "tfrecord")
_URLS, _UNFINISHED, _SETTINGS = ".urls", ".urls.partial", "settings.json"
_URL_COLUMNS = ("URL", "url", "image_url")
_CAPTION_COLUMNS = ("TEXT", "caption", "text")
# Names that img2dataset keeps for itself.
_TAKEN = frozenset({
  "key", "caption", "url", "width", "height", "original_width",
  "original_height", "status", "error_message", "exif", "md5", "sha256",
  "sha512",
})  # fmt: skip
_ROWS_AT_ONCE = 50_000
_ROWS_OF_A_FILE = 1_000_000
_MAX_PIXELS = 64_000_000
# Of the environment, what a program needs to run at all.
_KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH",
         "SSL_CERT_FILE", "SSL_CERT_DIR")  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """What is fetched, and how it is kept. A folder has one of them for good.

  Attributes:
    url_column, caption_column: of the list; None: found by its usual name.
    columns: further ones that are kept; None: all of them, none of WiT's.
    output_format: one of FORMATS.
    image_size: longer shorter sides are scaled down to it; 0: nothing is.
    samples_per_shard: addresses of a shard.
  """

  url_column: str | None = None
  caption_column: str | None = None
  columns: tuple[str, ...] | None = None
  output_format: str = "webdataset"
  image_size: int = 1024
  samples_per_shard: int = 10_000

  def __post_init__(self) -> None:
    if self.output_format not in FORMATS:
      raise ValueError(
        f"output_format={self.output_format!r} must be one of {FORMATS}."
      )
    if self.samples_per_shard < 2 or self.image_size < 0:
      raise ValueError("samples_per_shard and image_size must be larger.")

  def of_table(self, name: str, columns: Sequence[str]) -> "Settings":
    """With the columns that a list really has.

    Raises:
      ValueError: it lacks one.
    """
    url = self.url_column or _first(_URL_COLUMNS, columns)
    if url is None:
      raise ValueError(
        f"{name} has no column of addresses that is called "
        f"{' or '.join(_URL_COLUMNS)}; it has {', '.join(columns)}. Name it: "
        "--url_column."
      )
    # WiT's list has a row for each language; its captions are read from there.
    wit = url == "image_url" and self.columns is None
    usual = None if wit else _first(_CAPTION_COLUMNS, columns)
    caption = self.caption_column or usual
    others = self.columns
    if others is None:
      others = () if wit else tuple(columns)
      others = tuple(c for c in others if c not in {url, caption, *_TAKEN})
    absent = [c for c in (url, caption, *others) if c and c not in columns]
    if absent:
      raise ValueError(
        f"{name} has no column {absent[0]!r}; it has {', '.join(columns)}."
      )
    if taken := _TAKEN & set(others):
      raise ValueError(
        f"{name}: img2dataset keeps {sorted(taken)[0]!r} for a column of its "
        "own; leave it out of --columns."
      )
    return dataclasses.replace(
      self, url_column=url, caption_column=caption, columns=others
    )


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
  settings: Settings | None = None,
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
    source: data/tables.py: the list, one or many files.
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
  settings = (settings or Settings()).of_table(source, table.columns)
  not_tried = write_list(table, folder, settings)
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


# --- The list -----------------------------------------------------------------


def write_list(
  table: tables.Table, folder: pathlib.Path, settings: Settings
) -> dict[str, int]:
  """Writes <folder>/.urls, unless it is there: {reason: what is left out}.

  Raises:
    ValueError: the folder has files of somebody else, or other addresses.
  """
  record = {
    **dataclasses.asdict(settings),
    "list": table.fingerprint,
    "version": 1,
  }
  record = json.loads(json.dumps(record))  # Tuples are lists there.
  finished, unfinished = folder / _URLS, folder / _UNFINISHED
  for path in (finished, unfinished):
    if (path / _SETTINGS).is_file():
      _check_same(path / _SETTINGS, record)
  if finished.is_dir():
    return json.loads((finished / "left_out.json").read_text("utf-8"))
  if folder.exists() and not (unfinished / _SETTINGS).is_file():
    strangers = sorted(path.name for path in folder.iterdir())
    if strangers:
      raise ValueError(
        f"{folder} has files that no download has made ({strangers[0]}): name "
        "a new folder."
      )
  unfinished.mkdir(parents=True, exist_ok=True)
  (unfinished / _SETTINGS).write_text(json.dumps(record, indent=1), "utf-8")
  left_out = collections.Counter[str]()
  _write_parquet(_wanted(table, settings, left_out), unfinished)
  path = unfinished / "left_out.json"
  path.write_text(json.dumps(left_out, indent=1), "utf-8")
  unfinished.rename(finished)
  return dict(left_out)


def _check_same(path: pathlib.Path, record: Mapping[str, Any]) -> None:
  found = json.loads(path.read_text("utf-8"))
  for key, value in record.items():
    if found.get(key) != value:
      what = "another list" if key == "list" else f"{key}={found.get(key)!r}"
      raise ValueError(
        f"{path.parent.parent} was begun with {what}: go on as it was begun, "
        "or name a new folder."
      )


def _wanted(
  table: tables.Table,
  settings: Settings,
  left_out: collections.Counter[str],
) -> Iterator[dict[str, Any]]:
  """Rows whose addresses are tried; each address once where it stands alone."""
  assert settings.url_column
  others = settings.columns or ()
  columns = [settings.url_column, *others]
  columns += [settings.caption_column] if settings.caption_column else []
  seen: set[int] | None = None if len(columns) > 1 else set()
  rows = tqdm.tqdm(
    table.scan(columns), "listing", len(table), unit="row", disable=None
  )
  for _, row in rows:
    if isinstance(row, images.BadImage):
      left_out[row.reason] += 1
      continue
    url = row.get(settings.url_column)
    fault = download_guard.url_fault(url)
    if fault is None and seen is not None:
      fault = "seen before" if hash(url) in seen else None
      seen.add(hash(url))
    if fault is not None:
      left_out[fault] += 1
      continue
    listed = {"url": url}
    if settings.caption_column:
      listed["caption"] = row.get(settings.caption_column)
    yield listed | {key: row.get(key) for key in others}


def _write_parquet(
  rows: Iterator[dict[str, Any]], folder: pathlib.Path
) -> None:
  import pyarrow as pa
  import pyarrow.parquet as pq

  schema, count, writer = None, 0, None
  with contextlib.ExitStack() as stack:
    while part := list(itertools.islice(rows, _ROWS_AT_ONCE)):
      made = pa.Table.from_pylist(part, schema=schema)
      if schema is None:
        # Of what is never there, the kind matters to nobody.
        schema = pa.schema(
          pa.field(f.name, pa.string() if pa.types.is_null(f.type) else f.type)
          for f in made.schema
        )
        made = made.cast(schema)
      if writer is None or count % _ROWS_OF_A_FILE == 0:
        path = folder / f"{count // _ROWS_OF_A_FILE:05d}.parquet"
        writer = stack.enter_context(pq.ParquetWriter(path, schema))
      writer.write_table(made)
      count += len(part)
  if not count:
    raise ValueError("the list has no address that could be tried.")


def _first(names: Sequence[str], columns: Sequence[str]) -> str | None:
  return next((name for name in names if name in columns), None)


# --- img2dataset --------------------------------------------------------------


def _arguments(folder: pathlib.Path, settings: Settings) -> dict[str, Any]:
  scaled = settings.image_size > 0
  return {
    "url_list": str(folder / _URLS),
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
  log_path = folder / _URLS / "img2dataset.log"
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

  lists = (folder / _URLS).glob("*.parquet")
  return sum(pq.ParquetFile(path).metadata.num_rows for path in lists)


def _done(folder: pathlib.Path) -> tuple[int, int]:
  """Addresses tried and pictures got, of complete shards."""
  tried = got = 0
  for path in folder.glob("*_stats.json"):
    with contextlib.suppress(ValueError, OSError, KeyError):
      stats = json.loads(path.read_text("utf-8"))
      tried, got = tried + stats["count"], got + stats["successes"]
  return tried, got
