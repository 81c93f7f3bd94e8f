"""Downloads: the list, the folder, the process that reaches the guard alone."""

import http.server
import importlib.util
import io
import json
import os
import pathlib
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from byt5_diffusion import cli, download_commands
from byt5_diffusion.data import images
from byt5_diffusion.data.downloading import (
  address_lists,
  download_guard,
  downloads,
  img2dataset_runner,
)
from byt5_diffusion.data.rows import tables
from byt5_diffusion.data.sets import laion

# What img2dataset does, in short: tries the list, then writes what came of it.
STAND_IN = """
import json, os, pathlib, sys, time, urllib.request
import pyarrow.parquet as pq
options = json.loads(sys.argv[3])
folder = pathlib.Path(options["output_folder"])
(folder / "options.json").write_text(sys.argv[3])
(folder / "environment.json").write_text(json.dumps(dict(os.environ)))
if (folder / "00000_stats.json").exists():
  sys.exit()
rows = pq.read_table(options["url_list"] + "/00000.parquet").to_pylist()
got = 0
for i, row in enumerate(rows):
  try:
    with urllib.request.urlopen(row["url"], timeout=5) as answer:
      (folder / f"{i}.bin").write_bytes(answer.read())
    got += 1
  except OSError as error:
    print(row["url"], error)
    if row["url"].endswith("/fatal"):
      sys.exit("no more")
stats = {"count": len(rows), "successes": got}
(folder / "00000_stats.json").write_text(json.dumps(stats))
"""


def picture(mode: str = "RGB", form: str = "JPEG") -> bytes:
  pixels = np.random.default_rng(0).integers(0, 255, (24, 30, 3), np.uint8)
  image = Image.fromarray(pixels).resize((300, 240)).convert(mode)
  file = io.BytesIO()
  image.save(file, form)
  return file.getvalue()


FILES = {
  "/rgb.jpg": picture(),
  "/rgba.png": picture("RGBA", "PNG"),
  "/cmyk.jpg": picture("CMYK"),
  "/palette.png": picture("P", "PNG"),
  "/not_an_image.jpg": b"<html>",
}


class Handler(http.server.BaseHTTPRequestHandler):
  """Serves FILES; leads to other places."""

  def do_GET(self) -> None:
    body = FILES.get(self.path.partition("?")[0])
    if self.path == "/inside":
      self.send_response(302)
      self.send_header("Location", "http://127.0.0.2/secret")
    else:
      self.send_response(404 if body is None else 200)
      self.send_header("Content-Length", str(len(body or b"")))
    self.end_headers()
    self.wfile.write(body or b"")

  def log_message(self, *arguments: Any) -> None:
    del arguments


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()


@pytest.fixture
def stand_in(tmp_path: pathlib.Path) -> str:
  """A Python that runs STAND_IN instead of the file that it is given."""
  program = tmp_path / "stand_in.py"
  program.write_text(STAND_IN)
  python = tmp_path / "python"
  python.write_text(f'#!/bin/sh\nexec {sys.executable} {program} "$@"\n')
  python.chmod(0o755)
  return str(python)


def laion_list(path: pathlib.Path, urls: list[Any]) -> str:
  """A list in LAION's columns."""
  rows = [
    {
      "URL": url,
      "TEXT": None if i == 1 else f"caption {i}",
      "WIDTH": 1024,
      "HEIGHT": 2048,
      "similarity": 0.3,
      "LANGUAGE": "en",
      "hash": -(2**62) + i,
      "pwatermark": None if i == 0 else 0.1,
      "punsafe": 0.01,
    }
    for i, url in enumerate(urls)
  ]
  types = {"pwatermark": pa.float32(), "punsafe": pa.float32()}
  arrays = {
    key: pa.array([row[key] for row in rows], types.get(key)) for key in rows[0]
  }
  pq.write_table(pa.table(arrays), path)
  return str(path)


def guard(port: int, **limits: Any) -> download_guard.Guard:
  return download_guard.Guard(
    download_guard.Limits(**limits), open_to=frozenset({("127.0.0.1", port)})
  )


def test_the_list_keeps_columns_and_leaves_out_what_is_no_address(
  tmp_path: pathlib.Path,
) -> None:
  urls = ["https://a.org/1", "file:///etc/passwd", None, "http://a.org/2",
          "ftp://a.org/3"]  # fmt: skip
  source = laion_list(tmp_path / "list.parquet", urls)
  table = tables.open_table(source)
  settings = address_lists.Settings().of_table(source, table.columns)
  left_out = address_lists.write_list(table, tmp_path / "out", settings)
  assert left_out == {"neither http nor https": 2, "no address": 1}
  written = pq.read_table(tmp_path / "out" / ".urls" / "00000.parquet")
  assert written.column_names == [
    "url", "caption", "WIDTH", "HEIGHT", "similarity", "LANGUAGE", "hash",
    "pwatermark", "punsafe",
  ]  # fmt: skip
  rows = written.to_pylist()
  assert [row["url"] for row in rows] == ["https://a.org/1", "http://a.org/2"]
  assert rows[0]["hash"] == -(2**62) and rows[0]["pwatermark"] is None
  assert rows[1]["pwatermark"] == pytest.approx(0.1)
  # The same again, from what is there; another list is another folder's.
  assert address_lists.write_list(table, tmp_path / "out", settings) == left_out
  other = tables.open_table(laion_list(tmp_path / "other.parquet", urls[:1]))
  with pytest.raises(ValueError, match="begun with another list"):
    address_lists.write_list(other, tmp_path / "out", settings)


def test_wit_has_each_address_once(tmp_path: pathlib.Path) -> None:
  path = tmp_path / "wit.tsv"
  lines = ["language\timage_url\tcaption", "en\thttp://a.org/1\tx",
           "fr\thttp://a.org/1\ty", "en\thttp://a.org/2\tz"]  # fmt: skip
  path.write_text("\n".join(lines) + "\n", "utf-8")
  table = tables.open_table(path)
  settings = address_lists.Settings().of_table(str(path), table.columns)
  left_out = address_lists.write_list(table, tmp_path / "out", settings)
  assert left_out == {"seen before": 1}
  written = pq.read_table(tmp_path / "out" / ".urls" / "00000.parquet")
  assert written.to_pydict() == {"url": ["http://a.org/1", "http://a.org/2"]}


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"url_column": "link"}, "no column 'link'"),
    ({"columns": ("hash", "size")}, "no column 'size'"),
    ({"columns": ("key",)}, "keeps 'key'"),
  ],
)
def test_columns_that_are_not_there(
  settings: Mapping[str, Any], message: str
) -> None:
  with pytest.raises(ValueError, match=message):
    address_lists.Settings(**settings).of_table("list", ("URL", "hash", "key"))


def test_a_list_without_addresses() -> None:
  with pytest.raises(ValueError, match="--url_column"):
    address_lists.Settings().of_table("list", ("a", "b"))


def test_folders_of_others_are_not_written_to(
  tmp_path: pathlib.Path, stand_in: str
) -> None:
  source = laion_list(tmp_path / "list.parquet", ["http://a.org/1"])
  folder = tmp_path / "thesis"
  folder.mkdir()
  (folder / "thesis.tex").write_text("mine")
  with pytest.raises(ValueError, match=r"thesis\.tex"):
    downloads.download(source, folder, python=stand_in)
  assert [path.name for path in folder.iterdir()] == ["thesis.tex"]


def test_nothing_to_try_is_said(tmp_path: pathlib.Path, stand_in: str) -> None:
  source = laion_list(tmp_path / "list.parquet", ["ftp://a.org/1"])
  with pytest.raises(ValueError, match="no address that could be tried"):
    downloads.download(source, tmp_path / "out", python=stand_in)


def test_a_download_through_the_guard(
  tmp_path: pathlib.Path,
  port: int,
  stand_in: str,
  monkeypatch: pytest.MonkeyPatch,
) -> None:
  base = f"http://127.0.0.1:{port}"
  urls = [f"{base}/rgb.jpg", f"{base}/inside", "http://127.0.0.2/secret"]
  source = laion_list(tmp_path / "list.parquet", urls)
  monkeypatch.setenv("SECRET", "of the user")
  monkeypatch.setenv("no_proxy", "*")
  found = downloads.download(
    source,
    tmp_path / "out",
    python=stand_in,
    guard=guard(port),
    user_agent="a tester",
  )
  assert found[:2] == (3, 1) and not found.stopped
  assert found.refused == {"not a public address": 2}
  assert (tmp_path / "out" / "0.bin").read_bytes() == FILES["/rgb.jpg"]
  options = json.loads((tmp_path / "out" / "options.json").read_text())
  assert options["caption_col"] == "caption"
  assert options["user_agent_token"] == "a tester"
  assert options["save_additional_columns"][-3:] == [
    "hash", "pwatermark", "punsafe",
  ]  # fmt: skip
  told = json.loads((tmp_path / "out" / "environment.json").read_text())
  assert "SECRET" not in told and told["no_proxy"] == ""
  # Once more: what is complete stays.
  (tmp_path / "out" / "0.bin").write_bytes(b"as it was")
  again = downloads.download(
    source, tmp_path / "out", python=stand_in, guard=guard(port)
  )
  assert again[:2] == (3, 1) and not again.refused
  assert (tmp_path / "out" / "0.bin").read_bytes() == b"as it was"
  said = download_commands.text_of(found, "out")
  assert "1 pictures of 3 addresses" in said and "2 x not a public" in said


def test_a_program_that_fails_is_quoted(
  tmp_path: pathlib.Path, port: int, stand_in: str
) -> None:
  source = laion_list(
    tmp_path / "x.parquet", [f"http://127.0.0.1:{port}/fatal"]
  )
  with pytest.raises(OSError, match=r"(?s)img2dataset\.log.*no more"):
    downloads.download(
      source, tmp_path / "out", python=stand_in, guard=guard(port)
    )


def test_limits_end_the_program_before_it_gives_addresses_up(
  tmp_path: pathlib.Path, port: int, stand_in: str
) -> None:
  urls = [f"http://127.0.0.1:{port}/rgb.jpg?{i}" for i in range(9)]
  source = laion_list(tmp_path / "list.parquet", urls)
  size = len(FILES["/rgb.jpg"])
  found = downloads.download(
    source,
    tmp_path / "out",
    python=stand_in,
    guard=guard(port, max_total_bytes=3 * size),
  )
  assert "max_total_gb" in found.stopped and not found.refused
  assert not (tmp_path / "out" / "00000_stats.json").exists()
  start = time.monotonic()
  found = downloads.download(
    source, tmp_path / "out", python=stand_in, guard=guard(port), max_hours=1e-9
  )
  assert "max_hours" in found.stopped and time.monotonic() - start < 5
  found = downloads.download(
    source, tmp_path / "out", python=stand_in, guard=guard(port)
  )
  assert found[:2] == (9, 9)


def test_the_runner_connects_to_the_guard_alone() -> None:
  """In a process of its own, because the hook stays for good."""
  program = f"""
import runpy, socket, sys
runner = runpy.run_path({img2dataset_runner.__file__!r})
listener = socket.create_server(("127.0.0.1", 0))
port = listener.getsockname()[1]
runner["only_to"](f"http://guard:x@127.0.0.1:{{port}}")
socket.create_connection(("127.0.0.1", port)).close()
for act in (
  lambda: socket.create_connection(("127.0.0.1", port + 1)),
  lambda: socket.create_connection(("127.0.0.2", port)),
  lambda: socket.getaddrinfo("example.com", 80),
  lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"", ("127.0.0.1", 9)),
):
  try:
    act()
  except PermissionError as error:
    assert "not by the guard" in str(error)
  else:
    sys.exit("connected")
"""
  subprocess.run([sys.executable, "-I", "-c", program], check=True)


def test_the_command_says_what_is_missing(
  tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
  if importlib.util.find_spec("img2dataset"):
    pytest.skip("img2dataset is installed here")
  arguments = ["download", "list.parquet", "--output_dir", str(tmp_path / "x")]
  assert cli.main(arguments) == 2
  assert "byt5-diffusion[download]" in capsys.readouterr().err
  assert not (tmp_path / "x").exists()


@pytest.mark.slow
@pytest.mark.parametrize("output_format", ["webdataset", "parquet"])
def test_img2dataset_itself(
  tmp_path: pathlib.Path,
  port: int,
  output_format: str,
  monkeypatch: pytest.MonkeyPatch,
) -> None:
  """By BYT5_IMG2DATASET_PYTHON, or by this Python."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  python = os.environ.get("BYT5_IMG2DATASET_PYTHON")
  if python is None and not importlib.util.find_spec("img2dataset"):
    pytest.skip("img2dataset is not installed (BYT5_IMG2DATASET_PYTHON)")
  base = f"http://127.0.0.1:{port}"
  urls = [base + path for path in [*FILES, "/gone", "/inside"]]
  urls.append("http://127.0.0.2/secret")
  source = laion_list(tmp_path / "list.parquet", urls)
  folder = tmp_path / "out"
  found = downloads.download(
    source,
    folder,
    address_lists.Settings(output_format=output_format, samples_per_shard=5),
    processes=2,
    threads=2,
    python=python,
    guard=guard(port),
  )
  assert found.addresses == len(urls)
  good = [u for u in FILES if not u.startswith("/not")]
  assert found.pictures == len(good)
  assert found.refused == {"not a public address": 2}
  # What it wrote is what our reader reads: no picture is lost on the way.
  supply = laion.open_laion(
    str(folder), keep_unscored=True, max_occurrences=0, validation_share=0.0
  )
  read = [supply.read("train", i) for i in range(supply.sizes["train"])]
  assert {x.key for x in read} == {f"laion/{-(2**62) + i}" for i in (0, 2, 3)}
  assert all(images.decode_image(x.image).std() > 10 for x in read)
  if output_format == "parquet":
    rows = pq.read_table(folder / "00000.parquet").to_pylist()
    [row] = [row for row in rows if row["url"].endswith("/rgba.png")]
    assert row["hash"] == -(2**62) + 1 and row["caption"] is None
    assert row["jpg"] and row["status"] == "success"
    return
  with tarfile.open(folder / "00000.tar") as tar:
    meta = [
      json.load(tar.extractfile(m)) for m in tar if m.name.endswith(".json")
    ]
  [row] = [row for row in meta if row["url"].endswith("/rgb.jpg")]
  assert row["hash"] == -(2**62) and row["pwatermark"] is None
  assert row["original_width"] == 300
