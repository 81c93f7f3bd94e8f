"""Bad files are skipped, counted and named; odd ones are read; none is slow."""

import io
import re
import resource
import subprocess
import sys
import textwrap

import numpy as np
import odd_images
import pytest
import table_files
import table_task
from PIL import ImageFile

from byt5_diffusion.data import (
  annotated,
  image_limits,
  images,
  jpeg,
  pictures,
  rejections,
  supplies,
)
from byt5_diffusion.data.rows import (
  catalogue,
  tables,
)

pytestmark = pytest.mark.filterwarnings("ignore")
ODD = odd_images.JPEGS | odd_images.EXACT


@pytest.fixture(autouse=True)
def cache(
  tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
  """Nothing is kept among the user's files."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.mark.parametrize("name", odd_images.BAD)
def test_bad_files_are_refused_with_a_reason(name: str) -> None:
  raw, reason = odd_images.BAD[name]
  with pytest.raises(images.BadImage, match=reason) as caught:
    images.decode(raw, name="dir/file.png", needed=lambda size: (9, 9))
  assert caught.value.file == "dir/file.png"
  # The same words for the same cause: nothing of the file is in them.
  assert re.fullmatch(r"[A-Za-z0-9 ,.:_]+", caught.value.reason)
  with pytest.raises(images.BadImage) as again:
    images.decode_image(raw, name="other")
  assert again.value.reason == caught.value.reason


def test_no_library_makes_half_a_picture_a_whole_one(
  monkeypatch: pytest.MonkeyPatch,
) -> None:
  """WeasyPrint tells Pillow to, for the whole process, when it is imported."""
  raw = odd_images.jpeg()
  monkeypatch.setitem(sys.modules, "simplejpeg", None)
  monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
  with pytest.raises(images.BadImage, match="truncated"):
    images.decode_image(raw[: len(raw) // 2])


@pytest.mark.parametrize("name", odd_images.EXACT)
def test_odd_files_are_converted_exactly(name: str) -> None:
  raw = odd_images.EXACT[name]
  np.testing.assert_array_equal(images.decode_image(raw), odd_images.PIXELS)


@pytest.mark.parametrize("name", odd_images.JPEGS)
def test_odd_jpegs_are_converted(name: str) -> None:
  decoded = images.decode_image(odd_images.JPEGS[name]).astype(int)
  assert decoded.shape == odd_images.PIXELS.shape
  assert np.abs(decoded - odd_images.PIXELS).mean() < 1.0


def test_shapes_at_the_edge() -> None:
  for height, width in ((1, 1), (1, 60_000), (60_000, 1)):
    pixels = np.full((height, width, 3), 77, np.uint8)
    for kind in ("PNG", "JPEG"):
      raw = odd_images.save(pixels, kind)
      assert abs(images.decode_image(raw).astype(int) - 77).max() <= 1
      for way in ("lanczos", "area", "scaled"):
        for mode in ("pad", "crop"):
          frame = pictures.Frame(height=16, width=8, fit=mode, resize=way)
          made = frame.make(pictures.decode(raw, frame, "x"))
          assert (
            made.shape == (16, 8, 3) and abs(made.astype(int) - 77).min() < 2
          )


@pytest.mark.parametrize("name", odd_images.BOMBS)
def test_bombs_are_seen_before_they_cost(
  name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
  """With small limits and small files; the slow test has the true ones."""
  monkeypatch.setattr(image_limits, "MAX_READS", 5000)
  monkeypatch.setattr(image_limits, "MAX_STRIPS", 1000)
  make, reason = odd_images.BOMBS[name]
  with pytest.raises(images.BadImage, match=reason):
    images.decode_image(make(60_000))
  monkeypatch.undo()
  # The same file, cut down to what is usual, is read.
  try:
    assert images.decode_image(make(600)).ndim == 3
  except images.BadImage as error:
    assert name == "BMP of runs" and "not enough image data" in error.reason


def test_scans_of_the_first_picture_alone_count() -> None:
  # Ten in the file already.
  few, many = odd_images.many_scans(89), odd_images.many_scans(92)
  assert images.decode_image(few).shape == (64, 64, 3)
  with pytest.raises(images.BadImage, match="more than 100 scans"):
    images.decode_image(many)
  # A thumbnail before it and another picture behind it do not.
  head = b"\xff\xe1" + (len(many[:60_000]) + 2).to_bytes(2, "big")
  inside = odd_images.behind_start(odd_images.jpeg(), head + many[:60_000])
  assert images.decode_image(inside + many).shape == (80, 120, 3)


def _supply(bad: int, good: int) -> catalogue.TableSupply:
  """Real files in a table: bad ones, odd ones, then a usual one again."""
  files = [raw for raw, _ in list(odd_images.BAD.values())[:bad]]
  odd = list(ODD.values())
  files += odd[:good] + [odd_images.jpeg()] * (good - len(odd))
  rows = [{"file": raw, "key": f"{i}"} for i, raw in enumerate(files)]

  def make(row: dict, part: int) -> annotated.Annotated:
    del part
    return annotated.Annotated(key=row["key"], image=row["file"], text="odd")

  return catalogue.TableSupply(
    f"odd files {bad} of {good}",
    tables.from_rows("odd", rows),
    columns=("key",),
    describe=lambda row: [catalogue.Entry(row["key"], 0, "en")],
    make=make,
    version="1",
    split="train",
  )


def _make_all(supply: catalogue.TableSupply) -> tuple[int, dict]:
  frame = pictures.Frame(height=8, width=8)
  maker = supplies.Maker(supply=supply, picture=frame)
  made = [maker.make("train", i, 0, {}) for i in range(supply.sizes["train"])]
  counts = maker.ledger().summary()
  return sum(example is not None for example in made), counts


def test_a_run_goes_on_over_bad_files_and_names_them() -> None:
  bad = len(odd_images.BAD)
  assert bad >= 30
  supply = _supply(bad, 20 * bad)
  try:
    good, counts = _make_all(supply)
  finally:
    rejections.forget(supply.name)
  assert good == 20 * bad == counts["accepted"]
  assert counts["rejected"] == bad
  assert set(counts["names"]) == {str(i) for i in range(bad)}
  for i, (_, reason) in enumerate(odd_images.BAD.values()):
    assert re.search(reason, counts["names"][str(i)])
  assert sum(counts["reasons"].values()) == bad


def test_more_than_five_percent_bad_stops_the_run() -> None:
  supply = _supply(10, 180)
  try:
    with pytest.raises(rejections.TooManyRejections, match=r"10 of 190"):
      _make_all(supply)
  finally:
    rejections.forget(supply.name)


# -- One picture, two libraries, many sizes ----------------------------------


@pytest.mark.parametrize("name", odd_images.JPEGS)
@pytest.mark.parametrize("number", [1, 2, 4])
def test_both_libraries_give_the_same_bits(
  name: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
  pytest.importorskip("simplejpeg")
  # Large enough to be scaled: the limit is 64 pixels on a side.
  raw = odd_images.JPEGS[name]
  needed = {1: None, 2: lambda s: (s[0] // 2, s[1] // 2), 4: lambda s: (9, 9)}
  used = []

  def spy(*args):
    used.append(decode(*args))
    return used[-1]

  decode = jpeg.decode
  monkeypatch.setattr(jpeg, "decode", spy)
  one = images.decode(raw, needed=needed[number])
  if name not in ("CMYK", "CMYK without Adobe's marker", "YCCK"):
    assert used[0] is not None  # Else Pillow is compared with itself.
  monkeypatch.setattr(jpeg, "_simplejpeg", lambda: None)
  other = images.decode(raw, needed=needed[number])
  assert used[1] is None and one.size == other.size == (80, 120)
  np.testing.assert_array_equal(one.pixels(), other.pixels())
  if number > 1:
    assert one.image.size in ((60, 40), (30, 20), (15, 10))
  if number == 1:
    monkeypatch.undo()
    np.testing.assert_array_equal(one.pixels(), images.decode_image(raw))


def test_gray_jpegs_are_gray(monkeypatch: pytest.MonkeyPatch) -> None:
  gray = np.ascontiguousarray(odd_images.PIXELS[..., 0])
  raw = odd_images.save(gray, "JPEG", quality=95)
  made = []
  for library in (jpeg._simplejpeg, lambda: None):
    monkeypatch.setattr(jpeg, "_simplejpeg", library)
    made.append(images.decode_image(raw))
    made.append(images.decode(raw, needed=lambda size: (40, 60)).pixels())
  np.testing.assert_array_equal(made[0], made[2])
  np.testing.assert_array_equal(made[1], made[3])
  assert made[1].shape == (40, 60, 3)
  assert np.abs(made[0].astype(int) - gray[..., None]).max() < 6


def test_headers_that_are_read_differently_are_left_to_pillow(
  monkeypatch: pytest.MonkeyPatch,
) -> None:
  simplejpeg = pytest.importorskip("simplejpeg")
  raw = odd_images.jpeg()
  with odd_images.Image.open(io.BytesIO(raw)) as image:
    assert jpeg.decode(raw, image, 1, "RGB") is not None
    answer = (4000, 4000, "RGB", "420")
    monkeypatch.setattr(simplejpeg, "decode_jpeg_header", lambda raw: answer)
    assert jpeg.decode(raw, image, 1, "RGB") is None


def test_a_broken_file_is_judged_alike_by_both(
  monkeypatch: pytest.MonkeyPatch,
) -> None:
  pytest.importorskip("simplejpeg")
  rng = np.random.default_rng(7)
  good, answers = odd_images.jpeg(), []
  broken = []
  for _ in range(150):
    raw = bytearray(good)
    for place in rng.integers(2, len(raw), 3):
      raw[place] = rng.integers(256)
    broken.append(bytes(raw))
  for library in (jpeg._simplejpeg, lambda: None):
    monkeypatch.setattr(jpeg, "_simplejpeg", library)
    answers.append([])
    for raw in broken:
      try:
        decoded = images.decode_image(raw, max_pixels=100_000)
        answers[-1].append(decoded.tobytes())
      except images.BadImage as error:
        answers[-1].append(error.reason)
  assert answers[0] == answers[1]
  kinds = {type(answer) for answer in answers[0]}
  assert kinds == {bytes, str}  # Some can be read, some can not.


# -- The true limits, in a process of its own --------------------------------

_PROGRAM = """
  import pathlib, resource, sys, time, warnings
  from byt5_diffusion.data import images
  warnings.simplefilter("ignore")
  peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  raw = pathlib.Path(sys.argv[1]).read_bytes()
  before, start, reason = peak(), time.process_time(), "read"
  try:
    images.fit(images.decode(raw), 256, 256, "crop")
  except images.BadImage as error:
    reason = error.reason
  print((peak() - before) // 1024, time.process_time() - start, reason)
"""


def _cost(raw: bytes, path) -> tuple[int, float, str]:
  """MiB, seconds of CPU time and what came out."""
  path.write_bytes(raw)
  done = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(_PROGRAM), str(path)],
    check=True,
    capture_output=True,
    text=True,
  )
  mib, seconds, reason = done.stdout.split(maxsplit=2)
  return int(mib), float(seconds), reason.strip()


@pytest.mark.slow
@pytest.mark.parametrize("name", odd_images.BOMBS)
def test_no_bomb_costs_300_mib_or_4_seconds(name: str, tmp_path) -> None:
  make, wanted = odd_images.BOMBS[name]
  mib, seconds, reason = _cost(make(15 * 2**20), tmp_path / "bomb")
  assert re.search(wanted, reason)
  assert mib < 300 and seconds < 4
  assert resource.RLIMIT_AS  # The figures above are those of a POSIX system.


@pytest.mark.slow
def test_headers_that_lie_cost_nothing(tmp_path) -> None:
  for name, (raw, _) in odd_images.BAD.items():
    if "pixels" in odd_images.BAD[name][1]:
      mib, seconds, reason = _cost(raw, tmp_path / "bomb")
      assert "pixels" in reason and mib < 50 and seconds < 1, name


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP"])
def test_the_largest_picture_is_read_within_300_mib(
  kind: str, tmp_path
) -> None:
  """64 megapixels, all black: 4 bytes for each while it is made smaller."""
  mode = {"BMP": "1", "GIF": "P"}.get(kind, "RGB")
  raw = odd_images.save(odd_images.Image.new(mode, (8000, 8000)), kind)
  mib, seconds, reason = _cost(raw, tmp_path / "large")
  assert reason == "read" and mib < 300 and seconds < 4


@pytest.mark.slow
def test_a_scan_bomb_within_the_limits_takes_seconds(tmp_path) -> None:
  mib, seconds, reason = _cost(odd_images.many_scans(85, 8000), tmp_path / "x")
  assert reason == "read" and seconds < 8 and mib < 700


def _tar(folder, bad: int, good: int):
  rows = [
    {"__key__": f"bad{i:03d}", "png": raw, "txt": f"bad {i}".encode()}
    for i, (raw, _) in enumerate(list(odd_images.BAD.values())[:bad])
  ]
  rows += [
    {"__key__": f"good{i:03d}", "png": raw, "txt": f"good {i}".encode()}
    for i, raw in enumerate((list(ODD.values()) * good)[:good])
  ]
  table_files.write_tar(folder / "0.tar", rows)
  return table_task.open_data(
    folder, batch_size=10, num_epochs=1, num_streams=2
  )


@pytest.mark.slow
def test_batches_of_a_task_go_on_over_bad_files(tmp_path) -> None:
  """All the road: a tar, its SeqIO task, the pipeline of a training program."""
  bad = len(odd_images.BAD)
  data = _tar(tmp_path, bad, 20 * bad)
  count = sum(len(batch["images"]) for batch in data)
  assert 20 * bad - 10 <= count <= 20 * bad
  ledger = rejections.ledger(f"numbered {tmp_path}")
  assert ledger.summary()["rejected"] == bad
  assert len(ledger.summary()["names"]) == bad


@pytest.mark.slow
def test_batches_of_a_task_end_where_too_much_is_bad(tmp_path) -> None:
  data = _tar(tmp_path, 20, 200)
  with pytest.raises(rejections.TooManyRejections, match="of 220 records"):
    for _ in data:
      pass


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_what_is_not_looked_at_costs_little(kind: str, tmp_path) -> None:
  """15 MiB that the picture does not need; Pillow 12 takes minutes."""
  size = 15 * 2**20
  if kind == "PNG":
    exif = odd_images.exif_of_entries(60_000, size)
    raw = odd_images.with_chunks(odd_images.chunk(b"eXIf", exif))
  else:
    block = b"\xff" + b"a" * 255
    raw = odd_images.in_gif(b"!\xfe" + block * (size // 256) + b"\0")
  mib, seconds, reason = _cost(raw, tmp_path / "file")
  assert reason == "read" and mib < 300 and seconds < 4
