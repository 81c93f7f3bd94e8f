"""LAION: its exact columns, by each of img2dataset's formats."""

import io
import json
import pathlib
import tarfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mmh3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from PIL import Image

from byt5_diffusion.data import (
  filters,
  images,
  languages,
  pictures,
  rejections,
  seqio_tasks,
  supplies,
)
from byt5_diffusion.data.rows import catalogue
from byt5_diffusion.data.sets import (
  fetched,
  laion,
)
from byt5_diffusion.tasks import laion as laion_tasks

FIXTURE = "fixtures/laion/synthetic_laion_high_resolution.snappy.parquet"
SCHEMA = pa.schema(
  [
    ("URL", pa.string()), ("TEXT", pa.string()), ("WIDTH", pa.int32()),
    ("HEIGHT", pa.int32()), ("similarity", pa.float64()),
    ("LANGUAGE", pa.string()), ("hash", pa.int64()),
    ("pwatermark", pa.float32()), ("punsafe", pa.float32()),
  ]
)  # fmt: skip
MODES = (
  ("RGB", "JPEG"), ("CMYK", "JPEG"), ("L", "JPEG"), ("RGBA", "PNG"),
  ("P", "PNG"), ("LA", "PNG"), ("1", "PNG"), ("I;16", "PNG"),
)  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def identify(text: str) -> tuple[str, float]:
  return ("ja", 0.9) if "本" in text else ("en", 0.2)


@pytest.fixture
def identified(monkeypatch: pytest.MonkeyPatch) -> None:
  """Languages are identified by nothing that must be installed."""
  monkeypatch.setattr(
    languages, "identify", lambda text, identifier="": identify(text)
  )


def picture(mode: str = "RGB", form: str = "JPEG") -> bytes:
  levels = np.linspace(0, 65535, 300 * 240).reshape(240, 300)
  if mode == "I;16":
    image = Image.fromarray(levels.astype(np.uint16))
  else:
    image = Image.fromarray((levels / 257).astype(np.uint8)).convert(mode)
  file = io.BytesIO()
  image.save(file, form)
  return file.getvalue()


def known(number: int = 0, **changes: Any) -> dict[str, Any]:
  """What img2dataset knows of a picture, with LAION's columns."""
  return {
    "similarity": 0.3,
    "hash": 1000 + number,
    "punsafe": 0.01,
    "pwatermark": 0.1,
    "LANGUAGE": "en",
    "caption": f"A sign that says number {number}",
    "url": f"http://example.com/{number}.jpg",
    "key": f"{number:09d}",
    "status": "success",
    "error_message": None,
    "width": 300,
    "height": 240,
    "original_width": 1500,
    "original_height": 1200,
    "sha256": "00",
  } | changes


Rows = Sequence[tuple[Mapping[str, Any], bytes | None]]


def webdataset(folder: pathlib.Path, rows: Rows) -> None:
  def add(tar: tarfile.TarFile, name: str, raw: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(raw)
    tar.addfile(member, io.BytesIO(raw))

  with tarfile.open(folder / "00000.tar", "w") as tar:
    for meta, image in rows:
      if image is not None:
        add(tar, f"{meta['key']}.jpg", image)
        add(tar, f"{meta['key']}.txt", (meta["caption"] or "").encode())
        add(tar, f"{meta['key']}.json", json.dumps(meta, indent=4).encode())
  beside = pa.Table.from_pylist([dict(meta) for meta, _ in rows])
  pq.write_table(beside, folder / "00000.parquet")


def parquet(folder: pathlib.Path, rows: Rows) -> None:
  table = pa.Table.from_pylist([{**meta, "jpg": jpg} for meta, jpg in rows])
  pq.write_table(table, folder / "00000.parquet")


def tfrecord(folder: pathlib.Path, rows: Rows) -> None:
  """As img2dataset makes features: what is None is an empty string."""

  def feature(value: Any) -> tf.train.Feature:
    if isinstance(value, int):
      return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
    if isinstance(value, float):
      return tf.train.Feature(float_list=tf.train.FloatList(value=[value]))
    value = b"" if value is None else value
    value = value.encode() if isinstance(value, str) else value
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

  with tf.io.TFRecordWriter(str(folder / "00000.tfrecord")) as writer:
    for meta, image in rows:
      if image is not None:
        made = {key: feature(value) for key, value in meta.items()}
        made["jpg"] = feature(image)
        features = tf.train.Features(feature=made)
        writer.write(tf.train.Example(features=features).SerializeToString())


FORMATS = (webdataset, parquet, tfrecord)


def folder_of(
  path: pathlib.Path,
  rows: Rows,
  write: Callable[[pathlib.Path, Rows], None] = webdataset,
) -> str:
  folder = path / "images"
  folder.mkdir()
  write(folder, rows)
  stats = {"count": len(rows), "successes": len(rows)}
  (folder / "00000_stats.json").write_text(json.dumps(stats))
  return str(folder)


def describe(found: Mapping[str, Any], **options: Any) -> catalogue.Entry:
  rules = filters.Rules(**options.pop("rules", {}))
  describer = laion.Describer(rules, identify=identify, **options)
  [entry] = describer(found)
  return entry


def test_the_published_file(shared_data: pathlib.Path) -> None:
  """Its columns are what we say they are, and so is its hash."""
  table = pq.read_table(shared_data / FIXTURE)
  assert table.schema.remove_metadata() == SCHEMA
  for row in table.to_pylist():
    key = ((row["URL"] or "") + (row["TEXT"] or "")).encode("utf-8")
    assert row["hash"] == mmh3.hash64(key)[0]


def test_addresses_alone_say_how_to_fetch_them(
  shared_data: pathlib.Path,
) -> None:
  with pytest.raises(ValueError, match=r"byt5-diffusion download .*parquet"):
    laion.open_laion(str(shared_data / FIXTURE))


@pytest.mark.parametrize("write", FORMATS)
@pytest.mark.usefixtures("identified")
def test_every_format_gives_the_same(
  tmp_path: pathlib.Path, write: Callable[[pathlib.Path, Rows], None]
) -> None:
  rows = [(known(i), picture()) for i in range(6)]
  rows[1][0].update(LANGUAGE="nolang", caption="本日休業")
  rows[2][0].update(pwatermark=None)
  rows[3][0].update(hash=-(2**63), LANGUAGE="he", caption="שלט עם המספר שלוש")
  gone = known(6, status="failed_to_download", width=None, height=None)
  supply = laion.open_laion(
    folder_of(tmp_path, [*rows, (gone, None)], write), validation_share=0.0
  )
  assert supply.sizes == {"train": 5, "validation": 0}
  found = [supply.read("train", i) for i in range(5)]
  assert [x.key for x in found] == [
    "laion/1000", "laion/1001", f"laion/{-(2**63)}", "laion/1004", "laion/1005",
  ]  # fmt: skip
  assert [x.language for x in found] == ["en", "ja", "iw", "en", "en"]
  assert found[1].text == "本日休業"
  assert all(x.image == picture() for x in found)
  codes = [languages.TABLE[i].code for i in supply.languages("train")]
  assert codes == [x.language for x in found]
  filtered = rejections.ledger(f"{supply.name} (filters)").summary()["reasons"]
  assert filtered == {"pwatermark is unknown": 1} | (
    {"not downloaded": 1} if write is parquet else {}
  )


@pytest.mark.parametrize(
  ("changes", "reason"),
  [
    ({"caption": None}, "no caption"),
    ({"caption": " \n"}, "no caption"),
    ({"punsafe": None}, "punsafe is unknown"),
    ({"pwatermark": float("nan")}, "pwatermark is unknown"),
    ({"status": "failed_to_resize"}, "not downloaded"),
  ],
)
def test_what_is_left_out(changes: dict[str, Any], reason: str) -> None:
  with pytest.raises(filters.Filtered, match=f"^{reason}$"):
    describe(known(**changes))


def test_unscored_pictures_are_kept_if_asked_for() -> None:
  found = known(pwatermark=None, punsafe=None)
  assert describe(found, keep_unscored=True).key == "laion/1000"


@pytest.mark.parametrize("value", [None, "7", 0.5, True])
def test_a_row_without_its_hash_is_broken(value: Any) -> None:
  with pytest.raises(images.BadImage, match="no hash"):
    describe(known(hash=value))


class Judge(filters.Rules):
  """Notes what it is asked."""

  def check(self, text: str | None = None, **asked: Any) -> None:
    self.asked.append({"text": text, **asked})  # type: ignore[attr-defined]


def asked_by(found: Mapping[str, Any], **rules: Any) -> list[dict[str, Any]]:
  judge = Judge(**rules)
  object.__setattr__(judge, "asked", [])
  laion.Describer(judge, identify=identify)(found)
  return judge.asked


def test_the_rules_are_asked_with_all_that_is_known() -> None:
  scores, caption = asked_by(known())
  assert scores == {
    "text": None, "language": "en", "width": 1500, "height": 1200,
    "pwatermark": 0.1, "punsafe": 0.01, "similarity": 0.3,
  }  # fmt: skip
  assert caption == {
    "text": "A sign that says number 0", "language": "en", "confidence": None,
    "occurrences": None,
  }  # fmt: skip
  # Scored by mCLIP, whatever language is found later.
  scores, caption = asked_by(known(LANGUAGE="nolang", similarity=None))
  assert scores["language"] == "und" and scores["similarity"] is None
  assert caption["language"] == "en" and caption["confidence"] == 0.2


def test_scores_of_two_predictors_are_not_mixed() -> None:
  found = known(aesthetic=7.5, aesthetic_score_laion_v2=5.2)
  assert len(asked_by(found)) == 2
  assert asked_by(found, aesthetic_v1=7.0)[1] == {
    "text": None, "aesthetic": 7.5, "aesthetic_version": 1
  }  # fmt: skip
  assert asked_by(found, aesthetic_v2=5.0)[1] == {
    "text": None, "aesthetic": 5.2, "aesthetic_version": 2
  }  # fmt: skip
  with pytest.raises(filters.Filtered, match="V2"):
    asked_by(known(aesthetic=9.0), aesthetic_v2=5.0)


def test_a_threshold_wants_its_own_predictors_column(
  tmp_path: pathlib.Path,
) -> None:
  folder = folder_of(tmp_path, [(known(aesthetic=7.5), picture())])
  with pytest.raises(ValueError, match=r"aesthetic_v2=5\.0 wants a column"):
    laion.open_laion(folder, aesthetic_v2=5.0)


@pytest.mark.usefixtures("identified")
@pytest.mark.parametrize("write", FORMATS)
def test_copies_of_a_picture_are_left_out_if_asked_for(
  tmp_path: pathlib.Path, write: Callable[[pathlib.Path, Rows], None]
) -> None:
  rows = [(known(i, sha256=f"{i:064x}"), picture()) for i in range(40)]
  for i in (7, 11, 39):
    rows[i][0]["sha256"] = rows[3][0]["sha256"]
  for i in (
    20,
    21,
  ):  # Nobody has counted their bytes, but they are of one place.
    rows[i][0].update(sha256="", url="http://example.com/one.jpg")
  folder = folder_of(tmp_path, rows, write)
  options = {"validation_share": 0.4}
  every = laion.open_laion(folder, **options)
  once = laion.open_laion(folder, drop_copies=True, **options)
  assert every.fingerprint != once.fingerprint
  assert sum(every.sizes.values()) == 40 and sum(once.sizes.values()) == 36

  def keys(supply: Any, split: str) -> list[str]:
    return [supply.read(split, i).key for i in range(supply.sizes[split])]

  # One is kept of each: that of "validation" where there is one, and the first.
  sames = [
    {f"laion/{1000 + i}" for i in same} for same in ((3, 7, 11, 39), (20, 21))
  ]
  for same in sames:
    kept = [s for s in once.sizes for k in keys(once, s) if k in same]
    there = {s for s in every.sizes for k in keys(every, s) if k in same}
    assert kept == ["validation" if "validation" in there else "train"]
  for split in every.sizes:
    mine = keys(once, split)
    assert [k for k in keys(every, split) if k in mine] == mine
    assert once.languages(split).shape == (len(mine),)
    assert int(np.sum(once.blocks(split).sizes)) == len(mine)
  summary = rejections.ledger(f"{once.name} (filters)").summary()
  assert summary["reasons"] == {"copy of another picture": 4}
  assert summary["accepted"] == 36


@pytest.mark.usefixtures("identified")
def test_captions_that_occur_too_often_are_left_out(
  tmp_path: pathlib.Path,
) -> None:
  rows = [(known(i), picture()) for i in range(8)]
  for meta, _ in rows[:5]:
    meta["caption"] = "Thumbnail of a product"
  folder = folder_of(tmp_path, rows)
  options = {"validation_share": 0.0}
  assert laion.open_laion(folder, **options).sizes["train"] == 8
  few = laion.open_laion(folder, max_occurrences=4, **options)
  assert few.sizes["train"] == 3
  reasons = rejections.ledger(f"{few.name} (filters)").summary()["reasons"]
  assert reasons == {"caption occurs too often": 5}


@pytest.mark.parametrize("write", FORMATS)
def test_missing_columns_are_named(
  tmp_path: pathlib.Path, write: Callable[[pathlib.Path, Rows], None]
) -> None:
  found = known()
  del found["hash"], found["LANGUAGE"]
  with pytest.raises(ValueError, match="no hash, LANGUAGE: laion_high_res"):
    laion.open_laion(folder_of(tmp_path, [(found, picture())], write))


def test_unfinished_shards_are_left_alone(tmp_path: pathlib.Path) -> None:
  folder = folder_of(tmp_path, [(known(), picture())])
  whole = (tmp_path / "images" / "00000.tar").read_bytes()
  (tmp_path / "images" / "00001.tar").write_bytes(whole[:700])
  table = fetched.open_table(folder, laion.COLUMNS, "laion")
  assert len(table) == 1
  # No address of this one was good: a tar without a member.
  (tmp_path / "images" / "00001.tar").write_bytes(bytes(10240))
  stats = tmp_path / "images" / "00001_stats.json"
  stats.write_text('{"count": 9, "successes": 0}')
  assert len(fetched.open_table(folder, laion.COLUMNS, "laion")) == 1
  stats.with_name("00000_stats.json").unlink()
  with pytest.raises(ValueError, match="none of its shards has a picture"):
    fetched.open_table(folder, laion.COLUMNS, "laion")


@pytest.mark.parametrize(
  "raw", [b"[]", b"{", b"\xff{}", b'{"a":' * 100000, b" " * 2**20 + b"{}"]
)
def test_metadata_that_are_broken_are_counted(raw: bytes) -> None:
  with pytest.raises(images.BadImage, match="metadata"):
    fetched.known({"__key__": "000", "json": raw, "txt": b"", "jpg": b""})


@pytest.mark.parametrize(("mode", "form"), MODES)
@pytest.mark.usefixtures("identified")
def test_pictures_of_every_kind_come_through(
  tmp_path: pathlib.Path, mode: str, form: str
) -> None:
  """Once all that was not RGB was dropped, without a word."""
  folder = folder_of(tmp_path, [(known(), picture(mode, form))])
  supply = laion.open_laion(folder, validation_share=0.0)
  maker = supplies.Maker(
    supply=supply, picture=pictures.Frame(height=32, width=40)
  )
  made = maker.make("train", 0, 0, {"text_tokens": 64})
  assert made is not None
  assert made["image"].shape == (32, 40, 3)
  # Black at the top, white at the bottom, as it was drawn.
  levels = made["image"].astype(int).mean(axis=(1, 2))
  assert levels[0] < 30 and levels[-1] > 225
  if mode != "1":
    assert (np.diff(levels) > 0).all()


@pytest.mark.usefixtures("identified")
def test_the_task_of_a_name(tmp_path: pathlib.Path) -> None:
  folder = folder_of(tmp_path, [(known(i), picture()) for i in range(4)])
  name = f"laion_high_resolution:{folder}@32x40crop+validation_share=0.0"
  short = laion_tasks.register(name)
  assert laion_tasks.register("another:name") == "another:name"
  task = seqio_tasks.seqio.get_mixture_or_task(short)
  lengths = {"image": 32, "text_tokens": 64, "example_id": 2}
  made = list(task.get_dataset(lengths, "train", shuffle=False))
  assert len(made) == 4
  assert made[0]["image"].shape == (32, 40, 3)
