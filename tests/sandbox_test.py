"""Strangers' HTML and SVG: refused or bounded, with nothing read or asked."""

import base64
import http.server
import io
import os
import pathlib
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("weasyprint")
pytest.importorskip("pypdfium2")
pytest.importorskip("resvg_py")

import byt5_diffusion
from byt5_diffusion.data import (
  images,
  rejections,
  supplies,
)
from byt5_diffusion.data.pages import (
  confinement,
  sandbox,
  source_files,
)

SVG = (
  '<svg xmlns="http://www.w3.org/2000/svg" width="99" height="99" '
  'xmlns:xlink="http://www.w3.org/1999/xlink">{}</svg>'
)
LAUGHS = (
  '<!DOCTYPE svg [<!ENTITY a "ha">'
  + "".join(
    f'<!ENTITY {chr(98 + i)} "{("&" + chr(97 + i) + ";") * 10}">'
    for i in range(9)
  )
  + "]>"
  + SVG.format("<text>&j;</text>")
)


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, list[str]]]:
  """Address of a server of this machine, and what it was asked for."""
  asked: list[str] = []

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
      asked.append(self.path)
      self.send_response(200)
      self.end_headers()

    def log_message(self, *args: object) -> None:
      pass

  running = http.server.HTTPServer(("127.0.0.1", 0), Handler)
  thread = threading.Thread(target=running.serve_forever, daemon=True)
  thread.start()
  yield f"http://127.0.0.1:{running.server_port}", asked
  running.shutdown()
  running.server_close()


def _refused(kind: str, source: str | bytes, **limits: float) -> str:
  """Why a source is not drawn; "" if it is."""
  raw = source.encode() if isinstance(source, str) else source
  pool = sandbox.pool(sandbox.Limits(**limits))
  try:
    pool.draw(kind, raw, name="stranger", height=100, width=100)
  except images.BadImage as error:
    assert error.file == "stranger"
    return error.reason
  return ""


REFERRING_HTML = {
  "picture": '<img src="{url}/a.png">',
  "style sheet": '<link rel="stylesheet" href="{url}/a.css">',
  "import": '<style>@import "{url}/a.css";</style>',
  "import in hexadecimal": '<style>@\\69mport "{url}/a.css";</style>',
  "background": '<p style="background: url({url}/a.png)">x',
  "list": '<ul style="list-style-image: url({url}/a.png)"><li>x</ul>',
  "content": "<style>p::before {{ content: url({url}/a) }}</style><p>x",
  "attachment": '<link rel="attachment" href="{url}/a"><p>x',
  "object": '<object data="{url}/a"></object>',
  "base": '<base href="{url}/"><img src="a.png">',
  "file": '<img src="file:///etc/passwd">',
  "relative": '<img src="../../../etc/passwd">',
}


@pytest.mark.parametrize("kind", REFERRING_HTML)
def test_html_that_refers_to_other_places_is_refused(
  kind: str, server: tuple[str, list[str]]
) -> None:
  url, asked = server
  reason = _refused("html", REFERRING_HTML[kind].format(url=url))
  assert "outside of itself" in reason
  assert not asked


def test_html_that_brings_fonts_is_refused(
  server: tuple[str, list[str]],
) -> None:
  url, asked = server
  face = f"<style>@font-face{{font-family:q;src:url({url}/f)}}</style>"
  assert _refused("html", face + '<p style="font-family:q">x')
  assert not asked


def test_scripts_frames_and_forms_do_nothing(
  server: tuple[str, list[str]],
) -> None:
  url, asked = server
  html = (
    f'<script>fetch("{url}/s"); while (true) {{}}</script>'
    f'<iframe src="{url}/i"></iframe><form action="{url}/f"></form>'
    f'<meta http-equiv="refresh" content="0; url={url}/m"><p>fine'
  )
  assert _refused("html", html) == ""
  assert not asked


REFERRING_SVG = {
  "picture": '<image href="{url}/a.png" width="9" height="9"/>',
  "old picture": '<image xlink:href="{url}/a.png" width="9" height="9"/>',
  "file": '<image href="file:///etc/passwd" width="9" height="9"/>',
  "path": '<image href="/etc/passwd" width="9" height="9"/>',
  "use": '<use href="{url}/a.svg#a"/>',
  "filter": '<filter id="f"><feImage href="{url}/a"/></filter>',
  "fill": '<rect fill="url({url}/a.svg#a)" width="9" height="9"/>',
  "style": "<style>rect {{ fill: url({url}/a.svg#a) }}</style>",
  "svg in a picture": '<image href="data:image/svg+xml,&lt;svg/&gt;"/>',
}


@pytest.mark.parametrize("kind", REFERRING_SVG)
def test_svg_that_refers_to_other_places_is_refused(
  kind: str, server: tuple[str, list[str]]
) -> None:
  url, asked = server
  reason = _refused("svg", SVG.format(REFERRING_SVG[kind].format(url=url)))
  assert "outside of itself" in reason or "data: address" in reason
  assert not asked


@pytest.mark.parametrize(
  "source, reason",
  [
    (LAUGHS, "DTD or entities"),
    (
      '<!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
      + SVG.format("<text>&x;</text>"),
      "DTD or entities",
    ),
    (
      SVG.format(
        '<xi:include xmlns:xi="http://www.w3.org/2001/XInclude" href="a"/>'
      ),
      "never drawn",
    ),
    (SVG.format("<script>alert(1)</script>"), "never drawn"),
    (SVG.format('<rect onclick="alert(1)"/>'), "scripts"),
    (SVG.format("<style>@import 'a.css';</style>"), "@import"),
    (SVG.replace("99", "1e9").format("<rect/>"), "beyond all bounds"),
    (SVG.format("<g>" * 5000 + "</g>" * 5000), "nested too deeply"),
    (SVG.format("<rect/>" * 60_000), "too many elements"),
    ("<html/>", "no SVG"),
    ("<svg", "no XML"),
    (b"\x1f\x8b\x08\0", "no XML"),
    (SVG.format('<use href="#a"/>' * 1001), "<use>"),
  ],
)
def test_svg_that_is_a_trap_is_refused(
  source: str | bytes, reason: str
) -> None:
  assert reason in _refused("svg", source)


def test_nested_copies_in_svg_end() -> None:
  """Ten uses of ten uses of ...: a thousand million squares."""
  groups = "".join(
    f'<g id="a{i + 1}">' + f'<use href="#a{i}"/>' * 10 + "</g>"
    for i in range(9)
  )
  source = SVG.format(
    f'<defs><g id="a0"><rect width="1" height="1"/></g>{groups}</defs>'
    '<use href="#a9"/>'
  )
  assert _refused("svg", source)


def test_pictures_in_data_addresses_are_bounded() -> None:
  def address(width: int, height: int) -> str:
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()

  page = '<img src="{}">'
  assert _refused("html", page.format(address(9, 9))) == ""
  assert "huge picture" in _refused("html", page.format(address(9000, 9000)))
  assert "no picture" in _refused("html", page.format("data:text/html,<p>x"))


def test_what_is_nested_is_refused_and_what_is_huge_is_drawn() -> None:
  assert "nested too deeply" in _refused("html", "<div>" * 100_000)
  assert "nested too deeply" in _refused("html", "<b>" * 3000 + "x")
  huge = '<div style="width:1e9px;height:1e9px;background:red">x</div>'
  assert _refused("html", huge) == ""
  page = "<style>@page { size: 1e6px 1e6px }</style><p>x"
  assert _refused("html", page) == ""


def test_sizes_are_judged_before_anything_is_drawn() -> None:
  pool = sandbox.pool()
  with pytest.raises(images.BadImage, match="bytes"):
    pool.draw("html", b"x" * (4 * 2**20 + 1), name="a", height=9, width=9)
  with pytest.raises(images.BadImage, match="pixels"):
    pool.draw("html", b"x", name="a", height=9000, width=9000)


_ENDLESS = {
  "rows": "<table>" + "<tr><td>a<td>b" * 100_000,
  "a word": "<p>" + "x" * 3_000_000,
  "columns": '<div style="columns: 100000">' + "a " * 1000,
  "spans": "<table><tr><td colspan=100000000 rowspan=65534>x</table>",
  "grid": "<div style="
  '"display:grid;grid-template-columns:repeat(1000000,1px)">x',
  "variables": "<style>:root{--a0:aaaaaaaaaa;"
  + "".join(f"--a{i + 1}:{('var(--a' + str(i) + ') ') * 10};" for i in range(9))
  + "}p{font-family:var(--a9)}</style><p>x",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", _ENDLESS)
def test_what_does_not_end_is_ended(kind: str) -> None:
  start = time.monotonic()
  reason = _refused("html", _ENDLESS[kind], seconds=3.0)
  assert time.monotonic() - start < 60  # A new worker may have to start.
  # What stops it first, and how far the others come, depends on the machine.
  drawn = not reason and kind not in ("rows", "a word", "variables")
  assert drawn or "takes more than 3 s" in reason or "memory" in reason
  assert _refused("html", "<p>next", seconds=30.0) == ""


@pytest.mark.slow
def test_the_main_process_stays_small() -> None:
  """The worst of them in a process of their own: its peak, in MiB."""
  program = """
import resource, sys
from byt5_diffusion.data import images
from byt5_diffusion.data.pages import sandbox
sys.path.insert(0, "tests")
import sandbox_test
pool = sandbox.pool(sandbox.Limits(seconds=3.0))
pool.draw("html", b"<p>x", name="a", height=9, width=9)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for kind, source in [
  ("svg", sandbox_test.LAUGHS),
  ("svg", sandbox_test.SVG.format("<rect/>" * 60_000)),
  ("html", "<div>" * 100_000),
  ("html", "<table>" + "<tr><td>a<td>b" * 100_000),
  ("html", '<p style="width:1e9px;height:1e9px;background:red">x'),
]:
  try:
    pool.draw(kind, source.encode(), name="a", height=3000, width=3000)
  except images.BadImage:
    pass
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((after - before) / 1024)
"""
  root = pathlib.Path(__file__).resolve().parent.parent
  done = subprocess.run(
    [sys.executable, "-c", program],
    cwd=root,
    capture_output=True,
    text=True,
    check=True,
  )
  assert float(done.stdout) < 300


# -- The walls ---------------------------------------------------------------

_INSIDE = """
import os, socket, subprocess, sys, threading
from byt5_diffusion.data.pages import confinement
walls = confinement.confine(memory=200 * 2**20, readable=[sys.prefix])
print(*walls)
def attempt(name, call):
  try:
    call()
    print(name, "done")
  except (OSError, MemoryError) as error:
    print(name, type(error).__name__)
attempt("read", lambda: open("/etc/passwd").read())
attempt("write", lambda: open(sys.argv[1], "w").write("x"))
attempt("connect", lambda: socket.create_connection(("127.0.0.1", 9)))
attempt("socket", socket.socket)
attempt("run", lambda: subprocess.run(["/bin/true"]))
attempt("fork", os.fork)
attempt("memory", lambda: bytearray(2**30))
attempt("little memory", lambda: bytearray(2**20))
def thread():
  started = threading.Thread(target=lambda: None)
  started.start()
  started.join()
attempt("thread", thread)
"""


def test_a_confined_process_can_do_nothing_but_compute(tmp_path) -> None:
  done = subprocess.run(
    [sys.executable, "-c", _INSIDE, str(tmp_path / "written")],
    capture_output=True,
    text=True,
    env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    check=True,
  )
  walls, *lines = done.stdout.splitlines()
  found = dict(line.rsplit(" ", 1) for line in lines)
  assert found["memory"] == "MemoryError"
  assert found["little memory"] == found["thread"] == "done"
  assert not (tmp_path / "written").exists()
  if "landlock" in walls:
    assert found["read"] == found["write"] == "PermissionError"
  if "seccomp" in walls:
    for name in ("connect", "socket", "run", "fork"):
      assert found[name] == "PermissionError", name


def test_workers_read_the_package_and_not_what_lies_beside_it(
  monkeypatch: pytest.MonkeyPatch,
) -> None:
  package = os.path.dirname(os.path.abspath(byt5_diffusion.__file__))
  home = os.path.dirname(package)
  monkeypatch.syspath_prepend(home)
  sandbox.readable.cache_clear()
  try:
    found = sandbox.readable()
  finally:
    sandbox.readable.cache_clear()
  assert package in found and home not in found
  # Were it the package itself, its modules would hide others of their names.
  assert sandbox._environment()["PYTHONPATH"] == home


def test_workers_are_confined() -> None:
  assert sandbox.pool().walls()[0] == "limits"
  assert confinement.__doc__


def test_what_is_missing_is_looked_for_once(
  monkeypatch: pytest.MonkeyPatch,
) -> None:
  """TensorFlow asks again for every example, and waits for all of them."""
  asked = []

  def start(limits: sandbox.Limits) -> sandbox.Worker:
    asked.append(limits)
    raise ImportError("needs an extra")

  monkeypatch.setattr(sandbox, "Worker", start)
  pool = sandbox.Pool(most=1)
  for _ in range(3):
    with pytest.raises(ImportError, match="needs an extra"):
      pool.draw("svg", b"", name="a", height=8, width=8)
  assert len(asked) == 1


def test_a_worker_that_dies_is_replaced() -> None:
  pool = sandbox.pool()
  with pool._worker() as worker:
    worker._process.kill()
    worker._process.wait()
    with pytest.raises(images.BadImage, match="the renderer broke"):
      worker.draw({"kind": "html", "name": "a", "options": {}}, b"<p>x")
  drawn = pool.draw("html", b"<p>x", name="a", height=20, width=20)
  assert drawn.image.shape == (20, 20, 3)


@pytest.mark.slow
def test_many_threads_draw_at_once() -> None:
  made = {}

  def draw(number: int) -> None:
    color = f"rgb({number}, 0, 0)"
    html = f"<style>@page{{background:{color}}}</style>"
    made[number] = sandbox.pool().draw(
      "html", html.encode(), name="a", height=8, width=8
    )

  threads = [threading.Thread(target=draw, args=(10 * i,)) for i in range(6)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert {number: int(one.image[4, 4, 0]) for number, one in made.items()} == {
    10 * i: 10 * i for i in range(6)
  }


# -- Files -------------------------------------------------------------------


def test_a_users_files_are_drawn_and_bad_ones_counted(tmp_path) -> None:
  (tmp_path / "a.html").write_text("<p>One two", "utf-8")
  (tmp_path / "b.html").write_text("<p>Grüße", "utf-8")
  (tmp_path / "b.txt").write_text("a greeting\n", "utf-8")
  (tmp_path / "c.html").write_text('<img src="http://a.example/x.png">')
  (tmp_path / "d.html").write_bytes(b"")
  (tmp_path / "e.html").write_bytes("<p>Gr\xfc\xdfe".encode("latin-1"))
  (tmp_path / "f.svg").write_text(SVG.format("<text y='50'>drawn</text>"))
  supply = source_files.open_html(
    str(tmp_path), height=120, width=160, validation_share=0.0
  )
  assert supply.sizes == {"train": 5, "validation": 0}
  first, second = supply.read("train", 0), supply.read("train", 1)
  assert first.text == first.transcription == "One two"
  assert (second.text, second.transcription) == ("a greeting", "Grüße")
  assert supply.read("train", 4).text == "Grüße"
  for index, reason in ((2, "outside of itself"), (3, "empty file")):
    with pytest.raises(images.BadImage, match=reason):
      supply.read("train", index)
  drawings = source_files.open_svg(str(tmp_path), validation_share=0.0)
  assert drawings.read("train", 0).text == "drawn"
  assert (drawings.read("train", 0).image < 128).any()
  table = {"typography_layout_files": supplies.Kind(source_files.open_html)}
  name = f"typography_layout_files:{tmp_path}@64x64+validation_share=0"
  parsed = supplies.parse(table, name)
  assert parsed is not None
  rejections.forget(supply.name)
  maker = supplies.Maker(
    supply=parsed.supply, picture=parsed.picture, max_rejected_share=0.5
  )
  made = [maker.make("train", i, 0, {}) for i in range(5)]
  assert [one is not None for one in made] == [True, True, False, False, True]
  assert sum(maker.ledger().summary()["reasons"].values()) == 2


def test_a_folder_without_sources_says_so(tmp_path) -> None:
  (tmp_path / "a.txt").write_text("x")
  with pytest.raises(ValueError, match=r"holds no files \.svg"):
    source_files.open_svg(str(tmp_path))


def test_limits_are_those_of_a_picture() -> None:
  assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 0  # Ours are not cut.
  drawn = sandbox.pool().draw("svg", SVG.format("").encode(), name="a",
                              height=30, width=60)  # fmt: skip
  assert drawn.image.shape == (30, 60, 3) and np.all(drawn.image == 255)
