"""Old Japanese books and single Kuzushiji: their formats, and their traps."""

import gzip
import io
import pathlib
import struct
import tarfile
import tracemalloc
import zipfile

import numpy as np
import pytest
from PIL import Image, ImageDraw

from byt5_diffusion.data import (
  annotated,
  images,
  rejections,
  supplies,
)
from byt5_diffusion.data.rows import (
  array_files,
  catalogue,
  files,
)
from byt5_diffusion.data.sets import (
  kmnist,
  kuzushiji,
  page_supply,
)
from byt5_diffusion.tasks import calligraphy

HEADER = "Unicode,Image,X,Y,Block ID,Char ID,Width,Height"
# Two columns; numbers run on over the page as CODH's do, rows in any order.
ROWS = """U+306E,b_00001_1,150,60,B0001,C0002,20,30
U+3082,b_00001_1,150,20,B0001,C0001,20,30
U+8449,b_00001_1,100,20,B0002,C0003,20,30
U+3013,b_00001_1,100,60,B0002,C0004,20,30
U+304B,b_00001_2,150,20,B0001,C0001,20,30
U+304D,b_00001_2,150,60,B0001,C0002,20,30
U+304F,b_00001_2,100,20,B0001,C0003,20,30
"""


@pytest.fixture(autouse=True)
def cache(
  tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
  """Nothing is kept among the user's files."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def book(
  folder: pathlib.Path, rows: str = ROWS, header: str = HEADER
) -> pathlib.Path:
  """A folder of one book: every character is a box of its own gray."""
  (folder / "b" / "images").mkdir(parents=True, exist_ok=True)
  (folder / "b" / "b_coordinate.csv").write_text(f"{header}\n{rows}", "utf-8")
  for name in ("b_00001_1", "b_00001_2"):
    image = Image.new("L", (200, 200), 255)
    for x in (150, 100):
      for y in (20, 60):
        box = (x, y, x + 19, y + 29)
        ImageDraw.Draw(image).rectangle(box, fill=x // 2 + y)
    image.save(folder / "b" / "images" / f"{name}.png")
  return folder


def everything(supply: supplies.Supply) -> list[annotated.Annotated]:
  return [
    supply.read(split, i)
    for split in supply.sizes
    for i in range(supply.sizes[split])
  ]


def texts(supply: supplies.Supply) -> set[str | None]:
  return {one.transcription for one in everything(supply)}


def test_characters_are_cut_out(tmp_path: pathlib.Path) -> None:
  supply = kuzushiji.glyphs(str(book(tmp_path)), margin=0.0)
  found = {one.transcription: one for one in everything(supply)}
  assert set(found) == set("もの葉かきく")  # "〓" stands for none.
  for text, x, y in (("も", 150, 20), ("の", 150, 60), ("葉", 100, 20)):
    assert found[text].image.shape == (30, 20, 3)
    assert np.unique(found[text].image).tolist() == [x // 2 + y]
    assert found[text].language == "ja"
    assert found[text].style == {"vertical": 1.0}
    [region] = found[text].regions
    assert (region.label, region.text, region.vertical) == ("glyph", text, True)
    raw = found[text].text.encode("utf-8")
    assert region.span is not None
    assert raw[slice(*region.span)].decode("utf-8") == text


def test_lines_are_columns_by_block(tmp_path: pathlib.Path) -> None:
  """A block of several columns is cut where its writing goes back up."""
  found = {
    one.transcription: one
    for one in everything(kuzushiji.lines(str(book(tmp_path)), margin=0.0))
  }
  assert set(found) == {"もの", "かき", "く"}  # "葉〓" cannot be read whole.
  one = found["もの"]
  assert one.image.shape == (70, 20, 3)
  boxes = {region.text: region.box for region in one.regions}
  assert boxes == {
    "もの": (0, 0, 20, 70),
    "も": (0, 0, 20, 30),
    "の": (0, 40, 20, 70),
  }


def test_pages_are_read_column_by_column(tmp_path: pathlib.Path) -> None:
  supply = kuzushiji.pages(str(book(tmp_path)))
  assert texts(supply) == {"もの\n葉", "かき\nく"}
  for one in everything(supply):
    raw = one.text.encode("utf-8")
    assert one.transcription is not None and one.transcription in one.text
    for region in one.regions:
      if region.legible:
        assert region.span is not None
        assert raw[slice(*region.span)].decode("utf-8") == region.text
    assert one.image.shape == (200, 200, 3)


def test_kaggle_has_no_order(tmp_path: pathlib.Path) -> None:
  """Columns are chains of characters below each other, from the right."""
  labels = (
    "U+306E 150 60 20 30 U+3057 100 100 20 30 U+3082 150 20 20 30 "
    "U+304B 102 20 20 30 U+3061 98 60 20 30"
  )
  rows = f"image_id,labels\np1,{labels}\np2,\n"
  (tmp_path / "train.csv").write_text(rows)
  (tmp_path / "unicode_translation.csv").write_text("Unicode,char\nU+3082,も\n")
  Image.new("RGB", (200, 200)).save(tmp_path / "p1.jpg")
  folder = str(tmp_path)
  assert texts(kuzushiji.pages(folder)) == {"もの\nかちし"}
  assert texts(kuzushiji.lines(folder)) == {"もの", "かちし"}
  assert len(everything(kuzushiji.glyphs(folder))) == 5


@pytest.mark.parametrize(
  ("code", "reason"),
  [
    ("3082", "no code point like"),
    ("U+", "no code point like"),
    ("U+12345678", "no code point like"),
    ("U+FFFFFF", "beyond U.10FFFF"),
    ("U+110000", "beyond U.10FFFF"),
    ("U+D800", "is no character"),
    ("U+DFFF", "is no character"),
    ("U+0007", "is no character"),
    ("", "no code point like"),
    ("U+3082 U+3083", "no code point like"),
  ],
)
def test_bad_code_points(code: str, reason: str) -> None:
  with pytest.raises(ValueError, match=reason):
    kuzushiji.characters(code)


def test_good_code_points() -> None:
  assert kuzushiji.characters("U+3082") == "も"
  assert kuzushiji.characters(" U+2000B") == "\U0002000b"
  assert kuzushiji.characters("U+304BU+309A") == "か゚"


@pytest.mark.parametrize(
  ("row", "reason"),
  [
    ("U+D800,b_00001_1,1,1,B0001,C0009,20,30", "is no character"),
    (",b_00001_1,1,1,B0001,C0009,20,30", "no code point"),
    ("U+3082,b_00001_1,1,x,B0001,C0009,20,30", "no four numbers"),
    ("U+3082,b_00001_1,1,1,B0001,C0009,0,30", "no area"),
    ("U+3082,b_00001_1,1,1", "no four numbers"),
    ("U+3082,,1,1,B0001,C0009,20,30", "no Image"),
    ("U+3082,b_00001_1,150,20,B0001,C0001,20,30", "listed twice"),
  ],
)
def test_bad_rows_are_counted(
  tmp_path: pathlib.Path, row: str, reason: str
) -> None:
  """One of eight ends the run and is named; one of many is passed by."""
  folder = book(tmp_path, f"{ROWS}{row}\n")
  with pytest.raises(rejections.TooManyRejections, match=reason):
    kuzushiji.lines(str(folder))
  many = "".join(
    f"U+3042,b_00001_2,10,{20 + 2 * i},B0009,C{i:04},5,6\n" for i in range(40)
  )
  folder = book(tmp_path, f"{ROWS}{row}\n{many}")
  assert {"もの", "かき", "く"} <= texts(kuzushiji.lines(str(folder)))


def test_columns_of_the_table(tmp_path: pathlib.Path) -> None:
  folder = str(book(tmp_path, header=HEADER.replace("Unicode", "Code")))
  with pytest.raises(ValueError, match=r"no columns \['Unicode'\]") as error:
    kuzushiji.glyphs(folder)
  assert "b_coordinate.csv" in str(error.value)
  # By name, whatever their order; and a byte order mark.
  book(tmp_path, "b_00001_1,9,20,B1,C1,20,30,U+3082\n", "\ufeff" + ",".join(
    ["Image", "X", "Y", "Block ID", "Char ID", "Width", "Height", "Unicode"]
  ))  # fmt: skip
  assert texts(kuzushiji.glyphs(folder)) == {"も"}
  (tmp_path / "b" / "b_coordinate.csv").write_bytes(
    f"{HEADER}\nも".encode("cp932")
  )
  with pytest.raises(ValueError, match=r"b_coordinate\.csv: is not UTF-8"):
    kuzushiji.glyphs(folder)
  (tmp_path / "b" / "b_coordinate.csv").unlink()
  with pytest.raises(ValueError, match="no CSV file with the columns"):
    kuzushiji.glyphs(folder)


@pytest.mark.parametrize(
  ("labels", "reason"),
  [
    ("U+3082 1 2 3", "not five words"),
    ("U+3082 1 2 x 4", "no four numbers"),
    ("U+3082 1 2 3 4 5 6 7 8 9", "no code point"),
    ("U+3082 1 2 0 4", "no area"),
  ],
)
def test_bad_labels_of_kaggle(
  tmp_path: pathlib.Path, labels: str, reason: str
) -> None:
  (tmp_path / "train.csv").write_text(f"image_id,labels\np1,{labels}\n")
  Image.new("RGB", (200, 200)).save(tmp_path / "p1.jpg")
  with pytest.raises(rejections.TooManyRejections, match=reason):
    kuzushiji.pages(str(tmp_path))


@pytest.mark.parametrize("mode", ["RGBA", "CMYK", "L", "P", "I;16"])
def test_pictures_of_all_modes(tmp_path: pathlib.Path, mode: str) -> None:
  folder = book(tmp_path)
  for path in list(folder.rglob("*.png")):
    image = Image.open(path)
    path.unlink()
    ending = ".tif" if mode == "CMYK" else ".png"
    if mode == "I;16":
      image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    else:
      image = image.convert("RGB" if mode == "CMYK" else mode).convert(mode)
    image.save(path.with_suffix(ending))
  found = everything(kuzushiji.glyphs(str(folder), margin=0.0))
  by_text = {one.transcription: one.image for one in found}
  assert abs(int(by_text["も"].mean()) - 95) <= 2
  assert by_text["も"].shape == (30, 20, 3)


def test_what_is_cut_out_already_is_not_looked_at(
  tmp_path: pathlib.Path,
) -> None:
  """CODH's books have a folder of characters, too; names may be the same."""
  folder = book(tmp_path)
  (folder / "b" / "characters" / "U+3082").mkdir(parents=True)
  for path in list((folder / "b" / "images").iterdir()):
    copy = folder / "b" / "characters" / "U+3082" / path.name
    copy.write_bytes(path.read_bytes())
  for name in (folder, folder / "b", folder / "b" / "b_coordinate.csv"):
    assert len(everything(kuzushiji.glyphs(str(name)))) == 6
  (folder / "b" / "images").rename(tmp_path / "elsewhere")
  found = kuzushiji.glyphs(str(folder), images=str(tmp_path / "elsewhere"))
  assert len(everything(found)) == 6
  with pytest.raises(ValueError, match="holds no pictures"):
    kuzushiji.glyphs(str(folder))


def test_a_page_is_decoded_once(
  tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  supply = kuzushiji.glyphs(str(book(tmp_path)))
  count, decode = [], images.decode_image

  def counting(*args: object, **options: object) -> np.ndarray:
    count.append(1)
    return decode(*args, **options)  # type: ignore[arg-type]

  monkeypatch.setattr(images, "decode_image", counting)
  assert len(everything(supply)) == 6
  assert len(count) == 2


def test_the_published_samples(
  shared_data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
  fixtures = shared_data / "fixtures"
  for sample, image, expected in (
    ("kuzushiji/coordinate_sample.csv", "100249476_00003_2", {"も"}),
    (
      "schemas/kuzushiji_recognition_train.csv",
      "100241706_00004_2",
      {"は", "が"},
    ),
  ):
    folder = tmp_path / image
    folder.mkdir()
    (folder / "a.csv").write_bytes((fixtures / sample).read_bytes())
    Image.new("L", (2000, 3900)).save(folder / f"{image}.png")
    assert texts(kuzushiji.glyphs(str(folder))) == expected


def idx(array: np.ndarray, shape: tuple[int, ...] | None = None) -> bytes:
  """An idx file; `shape` is what its header says."""
  shape = array.shape if shape is None else shape
  head = struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape)
  return head + array.astype(np.uint8).tobytes()


def mnist(
  folder: pathlib.Path, count: int = 60, prefix: str = "train"
) -> pathlib.Path:
  """Pictures whose pixels are all ten times their label."""
  labels = np.arange(count) % 10
  pictures = np.repeat(labels * 10, 28 * 28).reshape(count, 28, 28)
  folder.mkdir(parents=True, exist_ok=True)
  for name, array in (("images-idx3", pictures), ("labels-idx1", labels)):
    path = folder / f"{prefix}-{name}-ubyte.gz"
    path.write_bytes(gzip.compress(idx(array)))
  return folder


def test_kmnist(tmp_path: pathlib.Path) -> None:
  mnist(tmp_path)
  mnist(tmp_path, 10, "t10k")
  supply = kmnist.characters(str(tmp_path), validation_share=0.2)
  assert supply.sizes["train"] + supply.sizes["validation"] == 60
  assert supply.sizes["validation"] > 0 and supply.sizes["test"] == 10
  for i, one in enumerate(supply.read("test", i) for i in range(10)):
    assert one.key == f"kmnist-test/{i}"
    assert one.transcription == "おきすつなはまやれを"[i]
    assert one.image.shape == (28, 28, 3)
    assert np.unique(one.image).tolist() == [255 - 10 * i]
  keys = [one.key for one in everything(supply)]
  assert len(set(keys)) == 70
  stored = kmnist.characters(str(tmp_path), invert=False)
  assert np.unique(stored.read("test", 3).image).tolist() == [30]
  # Not packed, as one file.
  path = tmp_path / "plain" / "t10k-images-idx3-ubyte"
  path.parent.mkdir()
  for name in ("images-idx3", "labels-idx1"):
    raw = gzip.decompress((tmp_path / f"t10k-{name}-ubyte.gz").read_bytes())
    (path.parent / f"t10k-{name}-ubyte").write_bytes(raw)
  assert kmnist.characters(str(path)).sizes["test"] == 10


def test_kuzushiji_49(tmp_path: pathlib.Path) -> None:
  """Its classes, in the order of its class map."""
  assert len(kmnist.K49) == 49
  assert (kmnist.K49[0], kmnist.K49[44:]) == ("あ", "ゐゑをんゝ")
  labels = np.array([0, 48, 9], np.uint8)
  np.savez(tmp_path / "k49-train-imgs.npz", np.zeros((3, 28, 28), np.uint8))
  np.savez(tmp_path / "k49-train-labels.npz", labels)
  assert texts(kmnist.characters(str(tmp_path))) == {"あ", "ゝ", "こ"}
  # The class map beside it is the truth.
  (tmp_path / "k49_classmap.csv").write_text(
    "index,codepoint,char\n0,U+3042,あ\n9,U+3053,こ\n48,U+30FD,ヽ\n"
  )
  assert texts(kmnist.characters(str(tmp_path))) == {"あ", "ヽ", "こ"}
  (tmp_path / "k49_classmap.csv").write_text("index,codepoint,char\n0,あ\n")
  with pytest.raises(ValueError, match=r"k49_classmap\.csv:2: is not"):
    kmnist.characters(str(tmp_path))
  (tmp_path / "k49_classmap.csv").unlink()
  np.savez(tmp_path / "k49-train-labels.npz", labels + 10)
  with pytest.raises(ValueError, match=r"labels \[58\] stand for no known"):
    kmnist.characters(str(tmp_path))


def refused(folder: pathlib.Path, message: str) -> None:
  """Refused in one line that names the file, and without room for it."""
  tracemalloc.start()
  with pytest.raises(ValueError, match=message) as error:
    kmnist.characters(str(folder))
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert str(folder) in str(error.value) and "\n" not in str(error.value)
  assert peak < 20e6


@pytest.mark.parametrize(
  ("raw", "message"),
  [
    (idx(np.zeros((2, 28, 28)), (60000, 28, 28)), "says that it holds"),
    (idx(np.zeros((2, 28, 28)), (2**31, 28, 28)), "more than"),
    (idx(np.zeros((20, 28, 28)), (10, 28, 28)), "holds more"),
    (b"\0\0\x0d\x03" + bytes(12), "holds type 13"),
    (b"\0\0\x08\xff" + bytes(12), "255 dimensions"),
    (b"\0\0\x08\x03\0", "is cut off"),
    (b"\x89PNG", "is no idx file"),
    (b"", "is no idx file"),
    (gzip.compress(idx(np.zeros((10, 28, 28))))[:-20], "gzip packed is broken"),
    (b"\x1f\x8b\x00\x00", "gzip packed is broken"),
    (gzip.compress(idx(np.zeros((9, 28, 28)))), "not a label for each"),
    (idx(np.zeros((10, 28))), "not a label for each"),
  ],
)
def test_idx_headers_are_not_believed(
  tmp_path: pathlib.Path, raw: bytes, message: str
) -> None:
  folder = mnist(tmp_path, 10)
  (folder / "train-images-idx3-ubyte.gz").write_bytes(raw)
  refused(folder, message)


def test_a_gzip_bomb_is_not_unpacked(tmp_path: pathlib.Path) -> None:
  raw = gzip.compress(idx(np.zeros(0), (10, 28, 28)) + bytes(2**25))
  folder = mnist(tmp_path, 10)
  (folder / "train-images-idx3-ubyte.gz").write_bytes(raw)
  refused(folder, "holds more")


class Harmful:
  """Would leave a trace if it was ever unpickled."""

  def __reduce__(self) -> tuple[object, ...]:
    return (pathlib.Path.touch, (pathlib.Path("unpickled"),))


def npy(descr: str, shape: tuple[int, ...], body: bytes = b"") -> bytes:
  head = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"
  head = head.ljust(117) + "\n"
  return b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + head.encode() + body


def packed(path: pathlib.Path, **members: bytes) -> None:
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    for name, raw in members.items():
      archive.writestr(f"{name}.npy", raw)


@pytest.mark.parametrize(
  ("member", "raw", "message"),
  [
    ("arr_0", npy("|u1", (60000, 28, 28), bytes(784)), "says that it holds"),
    ("arr_0", npy("|u1", (2**40,)), "more than"),
    ("arr_0", npy("<f4", (2, 2), bytes(16)), "holds float32"),
    ("arr_0", npy("|O", (1,), b"x"), "holds objects"),
    ("arr_0", b"no array", "holds no array"),
    ("arr_1", npy("|u1", (1,), b"x"), "has no array 'arr_0'"),
  ],
)
def test_npz_headers_are_not_believed(
  tmp_path: pathlib.Path, member: str, raw: bytes, message: str
) -> None:
  packed(tmp_path / "kmnist-train-imgs.npz", **{member: raw})
  np.savez(tmp_path / "kmnist-train-labels.npz", np.zeros(1, np.uint8))
  refused(tmp_path, message)


def test_pickles_are_never_loaded(
  tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.chdir(tmp_path)
  array = np.array([Harmful()], object)
  np.savez(tmp_path / "kmnist-train-imgs.npz", array)
  np.savez(tmp_path / "kmnist-train-labels.npz", np.zeros(1, np.uint8))
  refused(tmp_path, "holds objects")
  assert not (tmp_path / "unpickled").exists()
  np.load(tmp_path / "kmnist-train-imgs.npz", allow_pickle=True)["arr_0"]
  assert (tmp_path / "unpickled").exists()  # It would have been.


def test_files_that_are_no_zip(tmp_path: pathlib.Path) -> None:
  (tmp_path / "kmnist-train-imgs.npz").write_bytes(b"PK\x03\x04 no zip")
  np.savez(tmp_path / "kmnist-train-labels.npz", np.zeros(1, np.uint8))
  refused(tmp_path, "is no zip file")
  mnist(tmp_path / "alone")
  (tmp_path / "alone" / "train-labels-idx1-ubyte.gz").unlink()
  refused(tmp_path / "alone", "is not beside it")
  (tmp_path / "none").mkdir()
  (tmp_path / "none" / "a.txt").touch()
  refused(tmp_path / "none", "there is neither")


def png(value: int) -> bytes:
  made = io.BytesIO()
  Image.new("L", (64, 64), value).save(made, "PNG")
  return made.getvalue()


def kanji_tar(path: pathlib.Path) -> None:
  with tarfile.open(path, "w") as archive:
    for folder, name, raw in (
      ("U+4E00", "a1", png(10)),
      ("U+4E00", "a2", png(20)),
      ("U+2000B", "b1", png(30)),
      *(("U+4E8C", f"c{i}", png(i)) for i in range(40)),
      ("U+D800", "d1", png(40)),
    ):
      info = tarfile.TarInfo(f"kkanji2/{folder}/{name}.png")
      info.size = len(raw)
      archive.addfile(info, io.BytesIO(raw))


def test_kanji_of_a_tar_and_of_folders(tmp_path: pathlib.Path) -> None:
  (tmp_path / "kkanji").mkdir()
  kanji_tar(tmp_path / "kkanji" / "kkanji2.tar")
  packed_ones = kmnist.characters(str(tmp_path / "kkanji"))
  assert isinstance(packed_ones, catalogue.TableSupply)
  with tarfile.open(tmp_path / "kkanji" / "kkanji2.tar") as archive:
    archive.extractall(tmp_path / "folders", filter="data")
  unpacked = kmnist.characters(str(tmp_path / "folders"))
  for supply in (packed_ones, unpacked):
    found = everything(supply)
    assert len(found) == 43  # The surrogate is no character.
    assert {one.transcription for one in found} == {"一", "二", "\U0002000b"}
    dark = [o for o in found if o.transcription == "\U0002000b"]
    assert np.unique(dark[0].image).tolist() == [225]
    assert dark[0].image.shape == (64, 64, 3)


def test_every_kind_makes_features(tmp_path: pathlib.Path) -> None:
  folder = book(tmp_path / "codh")
  mnist(tmp_path / "mnist")
  lengths = {"text_tokens": 200, "boxes": 8}
  for name in (
    f"kuzushiji_characters:{folder}@16x16",
    f"kuzushiji_lines_reading:{folder}@8x8",
    f"kuzushiji_pages_annotated:{folder}@32x32",
    f"kmnist:{tmp_path}/mnist@32x32+invert=false",
    f"kmnist_reading:{tmp_path}/mnist@16x4",
  ):
    parsed = supplies.parse(calligraphy.TABLE, name)
    assert parsed is not None
    assert isinstance(
      parsed.supply, (page_supply.PageSupply, kmnist.ArraySupply)
    )
    maker = supplies.Maker(
      supply=parsed.supply, picture=parsed.picture, captions=parsed.captions
    )
    made = maker.make("train", 0, 0, lengths)
    assert made is not None and parsed.picture.name in made


def test_places_of_arrays_are_read_from_files(tmp_path: pathlib.Path) -> None:
  """A file may lie behind an address, and is read as any other."""
  mnist(tmp_path)
  [file] = files.find(str(tmp_path / "train-labels-idx1-ubyte.gz"))
  np.testing.assert_array_equal(array_files.read_idx(file), np.arange(60) % 10)
  with pytest.raises(array_files.BadArray, match="more than 10 bytes"):
    array_files.read_idx(file, max_bytes=10)
