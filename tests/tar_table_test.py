"""Samples of tars, and what hostile tars make of them."""

import gzip
import io
import tarfile

import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("fsspec")

import table_files

from byt5_diffusion.data import rejections
from byt5_diffusion.data.rows import tables


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def _tar(path, *members, **options):
  with tarfile.open(path, "w", **options) as file:
    for name, raw in members:
      member = (
        name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
      )
      member.size = len(raw)
      file.addfile(member, io.BytesIO(raw))


@pytest.mark.slow
@pytest.mark.parametrize(
  "format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
)
def test_tars_are_grouped_as_webdataset_does(format, tmp_path):
  webdataset = pytest.importorskip("webdataset")
  long = "" if format == tarfile.USTAR_FORMAT else "x" * 120
  _tar(
    tmp_path / "a.tar",
    ("a/0.jpg", b"1"), ("a/0.cls.JSON", b"2"), ("a/0.txt", b"3"),
    (f"{'d' * 90}/{'e' * 60}{long}.jpg", b"4"),
    ("ünï.txt", b"5"), ("ünï.jpg", b""),
    ("__meta__", b"6"), ("noext", b"7"), (".hidden", b"8"),
    ("./9.jpg", b"9"),
    format=format,
  )  # fmt: skip
  table = tables.open_table(tmp_path)
  mine = [table.read(i) for i in range(len(table))]
  theirs = webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False)
  assert mine == [
    {k: v for k, v in sample.items() if k not in ("__url__", "__local_path__")}
    for sample in theirs
  ]


def test_long_names_of_every_kind(tmp_path):
  for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
    name = "d" * 90 + "/" + "é" * 99
    _tar(
      tmp_path / "a.tar",
      (f"{name}.jpg", b"1"),
      (f"{name}.Seg.PNG", b"2"),
      ("1.jpg", b"3"),
      format=format,
    )
    table = tables.open_table(tmp_path)
    assert [table.read(i) for i in range(len(table))] == [
      {"__key__": name, "jpg": b"1", "seg.png": b"2"},
      {"__key__": "1", "jpg": b"3"},
    ]


def _special(name, kind, link=""):
  member = tarfile.TarInfo(name)
  member.type, member.linkname = kind, link
  return member, b""


def test_hostile_members_make_bad_rows(tmp_path):
  _tar(
    tmp_path / "a.tar",
    ("0.jpg", b"good"),
    _special("1.jpg", tarfile.SYMTYPE, "/etc/passwd"),
    _special("2.jpg", tarfile.LNKTYPE, "0.jpg"),
    _special("3.jpg", tarfile.CHRTYPE),
    _special("4.jpg", tarfile.FIFOTYPE),
    ("../5.jpg", b"x"),
    ("/etc/6.jpg", b"x"),
    ("7.jpg", b"x"), ("7.jpg", b"y"),
    ("0.jpg", b"again"),
    _special("folder.jpg", tarfile.DIRTYPE),
    ("9.jpg", b"good"),
  )  # fmt: skip
  before = set(tmp_path.rglob("*"))
  table = tables.open_table(tmp_path)
  assert [reason for _, reason in table_files.problems(table).values()] == [
    "a link",
    "a link",
    "not a regular file",
    "not a regular file",
    "a name that leads out of the tar",
    "a name that leads out of the tar",
    "two members of one name",
    "a key that was there before",
  ]
  assert table.read(0)["jpg"] == table.read(len(table) - 1)["jpg"] == b"good"
  assert set(tmp_path.rglob("*")) == before


def test_members_that_lie_about_their_size(tmp_path):
  path = tmp_path / "a.tar"
  huge = tarfile.TarInfo("1.jpg")
  huge.size = 2**40
  _tar(path, ("0.jpg", b"good"))
  raw = path.read_bytes()[:1024]
  for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
    path.write_bytes(raw + huge.tobuf(format) + b"x" * 512)
    table = tables.open_table(path)
    assert list(table_files.problems(table).values()) == [
      ("a.tar:1", "cut short")
    ]
  huge.size = 65 * 2**20
  with path.open("wb") as file:
    file.write(raw + huge.tobuf())
    file.truncate(file.tell() + huge.size + 1024)
  assert table_files.problems(tables.open_table(path))[1][1].startswith(
    "more than 67108864"
  )
  long = tarfile.TarInfo("x")
  long.type, long.size = b"L", 2**30
  path.write_bytes(raw + long.tobuf() + b"x" * 2048)
  problems = table_files.problems(tables.open_table(path))
  assert problems == {1: ("a.tar:1", "a header that is far too long")}


def test_a_compressed_tar_is_refused(tmp_path):
  _tar(tmp_path / "b.tar", ("0.jpg", b"good"))
  (tmp_path / "a.tar").write_bytes(
    gzip.compress((tmp_path / "b.tar").read_bytes())
  )
  with pytest.raises(
    rejections.TooManyRejections, match="not a tar, or compres"
  ):
    tables.open_table(tmp_path / "a.tar")
