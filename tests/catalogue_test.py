"""What one scan finds of a table's rows, and what is kept of it."""

import json
import os
import threading
import time

import numpy as np
import pytest

pytest.importorskip("pyarrow")

import table_files

from byt5_diffusion.data import (
  annotated,
  filters,
  images,
  languages,
  rejections,
)
from byt5_diffusion.data.rows import (
  cached_arrays,
  catalogue,
  tables,
)

CODES = [row.code for row in languages.TABLE]


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def folder(tmp_path):
  """Four files of 25 rows."""
  for number in range(4):
    rows = [
      {"id": f"{number}/{i}", "n": i, "image": b"x" * 10} for i in range(25)
    ]
    table_files.write_parquet(tmp_path / f"{number}.parquet", rows)
  return tmp_path


class Described:
  """A `describe` that counts its calls."""

  def __init__(self, broken=()):
    self.rows = []
    self._broken = broken

  def __call__(self, row):
    self.rows.append(row["id"])
    assert set(row) == {"id", "n"}  # No image is read.
    if row["id"] in self._broken:
      raise images.BadImage(row["id"], "broken")
    if row["n"] % 5 == 4:
      raise filters.Filtered("dull", f"<{row['id']}>")
    if row["n"] % 5 == 3:
      return []
    return [
      catalogue.Entry(row["id"], part, code)
      for part, code in enumerate(["en", "xx", "sw"][: row["n"] % 5 + 1])
    ]


def _make(row, part):
  if row["n"] == 10:
    raise images.BadImage(row["id"], "cannot be made")
  return annotated.Annotated(
    key=row["id"], image=row["image"], text=f"{row['n']} {part}"
  )


def _supply(path, describe=None, **options):
  arguments = {
    "columns": ("id", "n"),
    "describe": describe or Described(),
    "make": _make,
    "version": "1",
    "validation_share": 0.3,
  }
  return catalogue.TableSupply(
    "set", tables.open_table(path), **(arguments | options)
  )


def test_examples_in_the_order_of_their_rows(folder):
  supply = _supply(folder, split="train")
  # Of five rows: one, two and three examples; none; filtered.
  assert supply.sizes == {"train": 4 * 5 * 6}
  assert not supply.endless
  expected = [
    (row, part)
    for row in range(100)
    if row % 25 % 5 < 3
    for part in range(row % 25 % 5 + 1)
  ]
  assert [supply.place("train", i) for i in range(120)] == expected
  codes = supply.languages("train")
  assert codes.dtype == np.uint8
  names = [CODES[code] if code != languages.OTHER else "" for code in codes[:6]]
  assert names == ["en", "en", "", "en", "", "sw"]
  example = supply.read("train", 5)
  assert (example.key, example.text) == ("0/2", "2 2")
  for index in (-1, 120):
    with pytest.raises(IndexError, match="no example"):
      supply.read("train", index)
  with pytest.raises(images.BadImage, match="cannot be made"):
    supply.read("train", 12)


def test_splits_are_by_key_alone(folder):
  supply = _supply(folder)
  assert sum(supply.sizes.values()) == 120
  rows = {
    split: {supply.place(split, i)[0] for i in range(size)}
    for split, size in supply.sizes.items()
  }
  assert not rows["train"] & rows["validation"]  # A picture is in one split.
  assert 0.1 < len(rows["validation"]) / 60 < 0.5
  assert _supply(folder, validation_share=0).sizes["validation"] == 0
  less = _supply(folder, validation_share=0.1)
  held = {
    less.place("validation", i)[0] for i in range(less.sizes["validation"])
  }
  assert held < rows["validation"]
  with pytest.raises(ValueError, match="validation_share"):
    _supply(folder, validation_share=1)


def test_blocks_count_the_examples_of_row_groups(folder):
  supply = _supply(folder, split="train")
  blocks = supply.blocks("train")
  assert (
    len(blocks.sizes) == len(blocks.bytes) == len(supply.table.blocks) == 16
  )
  ends = np.cumsum(supply.table.blocks)
  places = [supply.place("train", i)[0] for i in range(120)]
  expected = np.bincount(np.searchsorted(ends, places, "right"), minlength=16)
  np.testing.assert_array_equal(blocks.sizes, expected)


def test_rows_are_described_once(folder):
  first = Described()
  one = _supply(folder, first)
  assert len(first.rows) == 100
  again = Described()
  two = _supply(folder, again)
  assert not again.rows
  assert (one.sizes, one.fingerprint) == (two.sizes, two.fingerprint)
  assert [one.place("train", i) for i in range(20)] == [
    two.place("train", i) for i in range(20)
  ]
  for change in ({"version": "2"}, {"validation_share": 0.2}, {"split": "a"}):
    describe = Described()
    other = _supply(folder, describe, **change)
    assert len(describe.rows) == 100
    assert other.fingerprint != one.fingerprint
  # A part of the files has been described as well.
  describe = Described()
  _supply(f"{folder}/{{1,3}}.parquet", describe)
  assert not describe.rows


def test_a_file_that_changes_is_described_again_alone(folder):
  before = _supply(folder)
  rows = [{"id": f"2/{i}", "n": i, "image": b"y"} for i in range(26)]
  table_files.write_parquet(folder / "2.parquet", rows)
  describe = Described()
  after = _supply(folder, describe)
  assert describe.rows == [f"2/{i}" for i in range(26)]
  assert sum(after.sizes.values()) == 121
  assert after.fingerprint != before.fingerprint


def test_a_scan_that_was_killed_goes_on(folder):
  class Killed(Described):
    def __call__(self, row):
      if row["id"] == "2/7":
        raise KeyboardInterrupt
      return super().__call__(row)

  with pytest.raises(KeyboardInterrupt):
    _supply(folder, Killed())
  describe = Described()
  _supply(folder, describe)
  assert describe.rows[0] == "2/0"
  assert len(describe.rows) == 50


def test_processes_share_the_files(folder):
  """A scan that waits in its second file leaves the others to another one."""
  waiting, go_on = threading.Event(), threading.Event()

  class Waits(Described):
    def __call__(self, row):
      if row["id"] == "1/0":
        waiting.set()
        assert go_on.wait(30)
      return super().__call__(row)

  first, second = Waits(), Described()
  supplies = []
  threads = [
    threading.Thread(target=lambda d=d: supplies.append(_supply(folder, d)))
    for d in (first, second)
  ]
  threads[0].start()
  assert waiting.wait(30)
  threads[1].start()
  deadline = time.monotonic() + 30
  while len(second.rows) < 50 and time.monotonic() < deadline:
    time.sleep(0.01)
  go_on.set()
  for thread in threads:
    thread.join(30)
  assert {row[0] for row in first.rows} == {"0", "1"}
  assert {row[0] for row in second.rows} == {"2", "3"}
  assert supplies[0].sizes == supplies[1].sizes
  left = cached_arrays.folder("catalogues").iterdir()
  assert len(list(left)) == 4  # And no locks.


def test_a_damaged_catalogue_is_made_again(folder):
  supply = _supply(folder)
  kept = sorted(cached_arrays.folder("catalogues").iterdir())
  assert len(kept) == 4
  raw = kept[0].read_bytes()
  kept[0].write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
  describe = Described()
  assert _supply(folder, describe).sizes == supply.sizes
  assert len(describe.rows) == 25
  assert kept[0].read_bytes() == raw


def test_what_is_left_out_is_counted_and_shown(folder):
  for _ in range(2):  # The second time from what was kept.
    _supply(folder, Described(broken=("0/0", "3/11")))
    found = {one.source: one.summary() for one in rejections.ledgers()}
    filtered = found["set (filters)"]
    assert filtered["reasons"] == {"dull": 20}
    assert filtered["names"]["0.parquet:4 '<0/4>'"] == "dull"
    assert (filtered["accepted"], filtered["rejected"]) == (78, 20)
    broken = found["set (rows)"]
    assert broken["names"] == {
      "0.parquet:0": "broken",
      "3.parquet:11": "broken",
    }
    assert broken["share"] == 0.02


def test_too_many_broken_rows_end_the_run(folder):
  broken = [f"{file}/{i}" for file in range(3) for i in range(2)]
  with pytest.raises(
    rejections.TooManyRejections, match=r"6 of 100 .*\n.*0\.parquet:0: broken"
  ):
    _supply(folder, Described(broken))
  assert _supply(folder, Described(broken), max_rejected_share=0.06)


def test_nothing_left_is_an_error_that_says_why(folder):
  def describe(row):
    raise filters.Filtered("all dull")

  with pytest.raises(ValueError, match=r"(?s)set: no example.*100.*all dull"):
    _supply(folder, describe)


def test_rows_in_memory(tmp_path):
  rows = tables.from_rows("memory", [{"id": str(i), "n": i} for i in range(7)])
  for count in (7, 0):
    describe = Described()
    supply = catalogue.TableSupply(
      "set",
      rows,
      columns=("id", "n"),
      describe=describe,
      make=_make,
      version="1",
      split="test",
    )
    assert len(describe.rows) == count
    assert supply.sizes == {"test": 6 + 3}
    assert supply.place("test", 8) == (6, 1)
  assert not list(tmp_path.iterdir())


def test_an_example_takes_nine_bytes(tmp_path):
  path = tmp_path / "a.jsonl"
  path.write_text("".join(json.dumps({"n": i}) + "\n" for i in range(5000)))
  catalogue.TableSupply(
    "many",
    tables.open_table(path),
    columns=("n",),
    describe=lambda row: [catalogue.Entry(str(row["n"]), 0, "en")],
    make=_make,
    version="1",
  )
  (kept,) = cached_arrays.folder("catalogues").iterdir()
  assert os.path.getsize(kept) < 9 * 5000 + 1000
