"""`inspect --filters` and `--languages` on files like LAION's."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from byt5_diffusion import cli
from byt5_diffusion.data import occurrences
from byt5_diffusion.data.rows import tables

pytest.importorskip("seqio")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def folder(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  file = io.BytesIO()
  Image.fromarray(np.zeros((240, 300, 3), np.uint8)).save(file, "JPEG")
  captions = [f"a sign with the number {i}" for i in range(30)]
  captions += [f"знак с номером {i}, красный" for i in range(5)]
  captions += ["Thumbnail  of a house"] * 12 + ["IMG_0042.JPG", "Bild 3 von 9"]
  captions += ["an evil \x1b[31m\u202ename.jpg", "Все люди рождаются"]
  rows = [
    {
      "key": f"{i:09d}",
      "status": "success",
      "url": f"http://example.com/{i}.jpg",
      "caption": caption,
      "hash": i,
      "LANGUAGE": "ru" if "знак" in caption else "en",
      "similarity": 0.3,
      "punsafe": 0.01,
      "pwatermark": 0.9 if i == 3 else 0.1,
      "width": 300,
      "height": 240,
      "original_width": 300,
      "original_height": 240,
      "jpg": file.getvalue(),
    }
    for i, caption in enumerate(captions)
  ]
  path = tmp_path / "images"
  path.mkdir()
  pq.write_table(pa.Table.from_pylist(rows), path / "00000.parquet")
  return path


def test_what_is_left_out_is_counted_and_shown(folder, capsys):
  name = f"laion_high_resolution:{folder}@64x64"
  cli.main(["inspect", name, "--filters"])
  shown = capsys.readouterr().out
  assert "17 of 51 left out" in shown
  assert "Bild 3 von 9" in shown
  assert "\x1b" not in shown and "\u202e" not in shown
  # From the cache.
  cli.main(["inspect", name, "--filters", "--json"])
  facts = json.loads(capsys.readouterr().out)
  [found] = [
    source
    for source in facts["sources"]
    if str(folder) in source["source"] and "filters" in source["source"]
  ]
  assert {k: v["count"] for k, v in found["reasons"].items()} == {
    "caption occurs too often": 12,
    "caption is no description: file name": 2,
    "caption is no description: number of a picture": 1,
    "script is not the language's": 1,
    "watermark": 1,
  }
  assert found["accepted"] == 34


def test_languages_of_one_data_set_are_counted(folder, capsys):
  name = f"laion_high_resolution:{folder}@64x64+validation_share=0"
  cli.main(["inspect", name, "--languages", "--json"])
  facts = json.loads(capsys.readouterr().out)
  counts = {x["code"]: x["count"] for x in facts["languages"] if x["count"]}
  assert counts == {"en": 29, "ru": 5}
  assert facts["total_variation"] > 0.8
  assert facts["sources"][0]["available"] == 34 == facts["ids"]


def test_occurrences_of_a_table_are_kept(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  rows = [{"t": text} for text in ["a"] * 20 + ["b", "", "A "]]
  table = tables.from_rows("rows", rows)
  seen = occurrences.of_table("rows", table, ("t",), lambda row: row["t"])
  assert (seen.count("a"), seen.count("b"), seen.count("c")) == (21, 1, 0)

  def fail(row):
    raise AssertionError("read again")

  again = occurrences.of_table("rows", table, ("t",), fail)
  assert again.count("a") == 21


def test_one_report_at_a_time(capsys):
  assert cli.main(["inspect", "x:y@8x8", "--filters", "--languages"]) == 2
  assert "one at a time" in capsys.readouterr().err
