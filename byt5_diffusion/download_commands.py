"""The command `byt5-diffusion download`: pictures of a list of addresses."""

import argparse
import collections
from collections.abc import Callable
from typing import Any

from byt5_diffusion import config

AddCommand = Callable[..., Any]


def _download(flags: argparse.Namespace) -> None:
  if flags.gin_bindings:
    raise config.ConfigError("download takes no --gin. flags.")
  from byt5_diffusion.data.downloading import (
    address_lists,
    download_guard,
    downloads,
  )

  total = flags.max_total_gb
  limits = download_guard.Limits(
    max_file_bytes=round(flags.max_file_mb * 2**20),
    max_file_seconds=flags.max_file_seconds,
    max_total_bytes=round(total * 2**30) if total else None,
  )
  settings = address_lists.Settings(
    url_column=flags.url_column,
    caption_column=flags.caption_column,
    columns=None if flags.columns is None else tuple(flags.columns),
    output_format=flags.format,
    image_size=flags.image_size,
    samples_per_shard=flags.samples_per_shard,
  )
  summary = downloads.download(
    flags.addresses,
    flags.output_dir,
    settings,
    limits=limits,
    processes=flags.processes,
    threads=flags.threads,
    retries=flags.retries,
    user_agent=flags.user_agent,
    max_hours=flags.max_hours,
    python=flags.python,
  )
  print(text_of(summary, flags.output_dir))


def text_of(summary: Any, folder: str) -> str:
  """What a download says at its end: of a downloads.Summary."""
  lines = [
    f"{folder} has {summary.pictures} pictures of {summary.addresses} addresses"
    " tried."
  ]
  for title, counts in (
    ("Left out of the list", summary.not_tried),
    ("Refused", summary.refused),
  ):
    common = collections.Counter(counts).most_common()
    if common:
      said = ", ".join(f"{count} x {reason}" for reason, count in common)
      lines.append(f"{title}: {said}.")
  if summary.stopped:
    lines.append(f"Stopped: {summary.stopped}. The same command goes on.")
  return "\n".join(lines)


def add(add_command: AddCommand) -> None:
  """Adds the command.

  Args:
    add_command: (name, help, body, takes_gin) -> the command's parser.
  """
  command = add_command(
    "download",
    "fetch the pictures of a data set that is a list of addresses",
    _download,
    takes_gin=False,
  )
  command.add_argument(
    "addresses", help="parquet, TSV or JSON lines: a file, a folder, a glob"
  )
  command.add_argument(
    "--output_dir", required=True, help="new, or begun by the same command"
  )
  command.add_argument(
    "--format",
    choices=("webdataset", "parquet", "tfrecord"),
    default="webdataset",
    help="of the output; default: webdataset",
  )
  command.add_argument("--url_column", help="default: URL, url or image_url")
  command.add_argument("--caption_column", help="default: TEXT or caption")
  command.add_argument(
    "--columns", nargs="*", help="kept with the pictures; default: all"
  )
  command.add_argument(
    "--image_size",
    type=int,
    default=1024,
    help="a longer shorter side is scaled down to it, 0: never; default: 1024",
  )
  command.add_argument(
    "--samples_per_shard", type=int, default=10_000, help="default: 10000"
  )
  _add_effort(command)


def _add_effort(command: Any) -> None:
  """How hard to try, and when to stop."""
  command.add_argument("--processes", type=int, default=4, help="default: 4")
  command.add_argument(
    "--threads", type=int, default=32, help="of each process; default: 32"
  )
  command.add_argument(
    "--retries", type=int, default=0, help="of each address; default: 0"
  )
  command.add_argument(
    "--user_agent", help="who asks, for those who are asked: a name, an address"
  )
  command.add_argument(
    "--max_file_mb",
    type=float,
    default=32,
    help="MiB of one file; default: 32",
  )
  command.add_argument(
    "--max_file_seconds",
    type=float,
    default=60,
    help="for one file; default: 60",
  )
  command.add_argument(
    "--max_total_gb",
    type=float,
    default=100,
    help="GiB; 0: no limit; default: 100",
  )
  command.add_argument("--max_hours", type=float, help="default: no limit")
  command.add_argument(
    "--python", help="the one that img2dataset is installed in; default: this"
  )
