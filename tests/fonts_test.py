"""Fonts are found by script, and fetched without harm."""

import io
import os
import pathlib
import shutil
import stat
import subprocess
import sys
import tarfile

import pytest

from byt5_diffusion.data.writing import (
  fonts,
  words,
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """An empty folder, the only one where fonts are looked for."""
  found = tmp_path / "fonts"
  found.mkdir()
  monkeypatch.setattr(fonts, "directories", lambda: (str(found),))
  yield found
  fonts.found_files.cache_clear()
  fonts._fonts_for.cache_clear()


def a_font(script: str) -> fonts.Font:
  try:
    return fonts.fonts_for(script)[0]
  except fonts.MissingFont as error:
    pytest.skip(str(error))


def test_every_script_has_fonts_letters_and_a_licence():
  assert set(fonts.TABLE) == set(words.ALPHABETS)
  for rows in fonts.TABLE.values():
    assert rows
    assert all(fonts.PACKAGES[package] for _, _, package in rows)


def test_a_found_font_covers_its_script():
  for script in fonts.available_scripts():
    letters = "".join(words.ALPHABETS[script].split())
    for font in fonts.fonts_for(script):
      assert {ord(c) for c in letters} <= fonts.coverage(font), font


def test_an_absent_font_is_an_error_that_says_what_to_do(folder):
  with pytest.raises(fonts.MissingFont) as caught:
    fonts.fonts_for("Khmr")
  for word in ("Khmr", "fonts-noto-core", "OFL-1.1", "tools/fetch_fonts.py"):
    assert word in str(caught.value)
  assert fonts.available_scripts() == ()


def test_an_unknown_script_is_named():
  with pytest.raises(ValueError, match="'Xxxx'"):
    fonts.fonts_for("Xxxx")


@pytest.fixture
def latin() -> str:
  return a_font("Latn").path


def test_the_table_goes_before_other_fonts(latin, folder):
  shutil.copy(latin, folder / "Aaaa-Regular.ttf")
  (folder / "broken.ttf").write_bytes(b"no font")
  (other,) = fonts.fonts_for("Latn")
  assert other.path.endswith("Aaaa-Regular.ttf")
  assert (other.package, other.licence) == ("", "")
  fonts.found_files.cache_clear()
  fonts._fonts_for.cache_clear()
  shutil.copy(latin, folder / "NotoSans-Regular.ttf")
  (best,) = fonts.fonts_for("Latn")
  assert best.path.endswith("NotoSans-Regular.ttf")
  assert (best.package, best.licence) == ("fonts-noto-core", "OFL-1.1")
  with pytest.raises(fonts.MissingFont):
    fonts.fonts_for("Latn", styles=("bold",))


def test_the_named_folder_goes_before_the_cache(tmp_path, monkeypatch):
  first, second = tmp_path / "a", tmp_path / "b"
  monkeypatch.setenv("BYT5_DIFFUSION_FONTS", f"{first}{os.pathsep}{second}")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  found = fonts.directories()
  cache = str(tmp_path / "cache" / "byt5_diffusion" / "fonts")
  assert found[:3] == (str(first), str(second), cache)


def test_files_that_cannot_be_read_are_no_fonts(latin, tmp_path, folder):
  broken = tmp_path / "NotoSans-Regular.ttf"
  broken.symlink_to(tmp_path / "gone.ttf")
  assert fonts.coverage(fonts.Font(path=str(broken))) == frozenset()
  shutil.move(broken, folder)
  os.mkfifo(folder / "Pipe-Regular.ttf")  # Opening it would never return.
  assert fonts.available_scripts(["Latn"]) == ()
  later = tmp_path / "later"
  later.mkdir()
  shutil.copy(latin, later / "NotoSans-Regular.ttf")
  assert fonts.found_files((str(folder), str(later))) == {
    ("notosans", "regular"): str(later / "NotoSans-Regular.ttf")
  }


def test_faces_of_a_collection_differ():
  japanese, simplified = a_font("Jpan"), a_font("Hans")
  if japanese.path != simplified.path:
    pytest.skip("no collection of CJK fonts here")
  assert japanese.index != simplified.index


# -- fetch -------------------------------------------------------------------


def hostile_package(path: pathlib.Path) -> None:
  """A .deb whose members try to leave the folder they are unpacked into."""

  def tar(members: dict[str, bytes]) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as archive:
      for name, content in members.items():
        info = tarfile.TarInfo(name)
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
      link = tarfile.TarInfo("./usr/link.ttf")
      link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
      archive.addfile(link)
    return raw.getvalue()

  control = b"Package: x\nVersion: 1\nArchitecture: all\n"
  data = {"../../up.ttf": b"1", "/abs.otf": b"22", "./usr/evil.sh": b"333"}
  parts = {
    "debian-binary": b"2.0\n",
    "control.tar.gz": tar({"./control": control}),
    "data.tar.gz": tar(data),
  }
  with open(path, "wb") as file:  # An ar archive.
    file.write(b"!<arch>\n")
    for name, content in parts.items():
      header = f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n"
      file.write(header.encode() + content + b"\n" * (len(content) % 2))


@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="needs dpkg-deb")
def test_unpacking_stays_inside(tmp_path):
  package, target = tmp_path / "x.deb", tmp_path / "deep" / "er" / "target"
  target.mkdir(parents=True)
  hostile_package(package)
  assert fonts._unpack(package, target) == 3
  files = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.*")}
  inside = "deep/er/target/"
  assert files == {"x.deb", f"{inside}up.ttf", f"{inside}abs.otf"}


@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="needs dpkg-deb")
def test_what_is_no_package_is_said_to_be_none(tmp_path):
  (tmp_path / "x.deb").write_bytes(b"an error page")
  with pytest.raises(fonts.FetchError, match=r"x\.deb"):
    fonts._unpack(tmp_path / "x.deb", tmp_path)


def test_without_apt_the_error_says_so(tmp_path, monkeypatch):
  monkeypatch.setattr(fonts.shutil, "which", lambda name: None)
  with pytest.raises(fonts.FetchError, match="BYT5_DIFFUSION_FONTS"):
    fonts.fetch(["fonts-x"], target=tmp_path, report=lambda line: None)


def test_what_is_there_is_not_fetched_again(tmp_path, monkeypatch):
  monkeypatch.setattr(fonts.shutil, "which", lambda name: pytest.fail("asked"))
  (tmp_path / "fonts-x").mkdir()
  told: list[str] = []
  fonts.fetch(["fonts-x"], target=tmp_path, report=told.append)
  assert "already" in told[0]


def fake_apt(folder: pathlib.Path, monkeypatch, script: str) -> None:
  folder.mkdir()
  for name in ("apt-get", "apt-config", "dpkg-deb"):
    tool = folder / name
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
  path = f"{folder}{os.pathsep}{os.environ['PATH']}"
  monkeypatch.setenv("PATH", path)


def test_offline_is_an_error_and_leaves_nothing(tmp_path, monkeypatch):
  script = 'case "$1" in dump) ;; *) echo "E: no network" >&2; exit 100;; esac'
  fake_apt(tmp_path / "bin", monkeypatch, script)
  target = tmp_path / "target"
  with pytest.raises(fonts.FetchError, match=r"fonts-x: E: no network"):
    fonts.fetch(["fonts-x"], target=target, report=lambda line: None)
  assert list(target.iterdir()) == []


def test_apt_is_told_to_keep_off_the_system(tmp_path, monkeypatch):
  lines = r'echo "DPkg::Post-Invoke:: \"rm -rf /\";"; echo "Acquire::x \"1\";"'
  fake_apt(tmp_path / "bin", monkeypatch, lines)
  private = tmp_path / "private"
  private.mkdir()
  environment = fonts._private_apt(private)
  config = pathlib.Path(environment["APT_CONFIG"]).read_text()
  assert "Post-Invoke" not in config
  assert 'Acquire::x "1";' in config
  for setting in ("Dir::State", "Dir::State::lists", "Dir::Cache", "Dir::Log"):
    assert f'{setting} "{private}' in config


SHOW_SETTINGS = """
[ "$1" = dump ] && exit
echo "E: $PWD $APT_CONFIG $(grep ^Dir $APT_CONFIG | tr '\\n' ' ')" >&2
exit 100"""


@pytest.mark.parametrize("by", ["argument", "environment"])
def test_a_relative_target_gives_apt_absolute_paths(tmp_path, monkeypatch, by):
  fake_apt(tmp_path / "bin", monkeypatch, SHOW_SETTINGS)
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("XDG_CACHE_HOME", "relative")
  target = pathlib.Path("relative") if by == "argument" else None
  with pytest.raises(fonts.FetchError) as caught:
    fonts.fetch(["fonts-x"], target=target, report=lambda line: None)
  _, folder, config, *settings = str(caught.value).splitlines()[0].split()[1:]
  assert folder.startswith(f"{tmp_path}/relative/")
  assert config == f"{folder}/apt.conf"
  values = [value.strip('";') for value in settings[1::2]]
  assert f"{folder}/lists" in values
  for value in values:
    assert value in ("none", "/var/lib/dpkg/status") or value.startswith(folder)
  assert os.path.isabs(fonts.cache_dir())


def test_the_cache_is_made_for_its_owner_alone(tmp_path, monkeypatch):
  fake_apt(tmp_path / "bin", monkeypatch, SHOW_SETTINGS)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  before = os.umask(0o002)
  try:
    with pytest.raises(fonts.FetchError):
      fonts.fetch(["fonts-x"], report=lambda line: None)
  finally:
    os.umask(before)
  own = tmp_path / "cache" / "byt5_diffusion"
  assert stat.S_IMODE(own.stat().st_mode) == 0o700
  assert (own / "fonts").is_dir()


def test_the_tool_goes_on_without_apt(tmp_path):
  root = pathlib.Path(__file__).parent.parent
  if not fonts.available_scripts():
    pytest.skip("no fonts here")
  result = subprocess.run(
    [
      sys.executable,
      "tools/fetch_fonts.py",
      "fonts-x",
      "--target",
      str(tmp_path),
    ],
    cwd=root,
    env={**os.environ, "PATH": "/nowhere", "PYTHONPATH": str(root)},
    capture_output=True,
    text=True,
  )
  assert result.returncode == 0, result.stderr
  assert "apt-get is not on this machine" in result.stderr
  assert "scripts can be drawn" in result.stdout
