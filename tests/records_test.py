"""Shards: round trips, atomic appearance, damage that is named."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from byt5_diffusion.data import records

FEATURES = {
  "image": {"dtype": "uint8", "shape": [2, 3, 3]},
  "text_tokens": {"dtype": "int32", "shape": [None]},
  "example_id": {"dtype": "uint32", "shape": [2]},
}
LENGTHS = {"image": 2, "text_tokens": 9, "example_id": 2}


def _example(index: int) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(index)
  return {
    "image": rng.integers(0, 256, (2, 3, 3), np.uint8),
    "text_tokens": np.arange(index % 9, dtype=np.int32),
    "example_id": np.array([index, 2**32 - 1], np.uint32),
  }


def _write(folder, count=23, num_shards=4, **options):
  return records.write(
    folder,
    task="toy",
    task_feature_lengths=LENGTHS,
    splits={"train": map(_example, range(count))},
    features=FEATURES,
    num_shards=num_shards,
    **options,
  )


def _equal(left, right):
  assert left.keys() == right.keys()
  for name in left:
    assert left[name].dtype == right[name].dtype
    np.testing.assert_array_equal(left[name], right[name])


def test_a_record_comes_back():
  for index in range(12):
    record = records.encode(_example(index), list(FEATURES))
    _equal(records.decode(record, FEATURES), _example(index))


def test_a_cut_record_is_noticed_wherever_it_is_cut():
  record = records.encode(_example(5), list(FEATURES))
  for end in range(len(record)):
    with pytest.raises(ValueError, match="ends"):
      records.decode(record[:end], FEATURES)
  with pytest.raises(ValueError, match="1 bytes after"):
    records.decode(record + b"\0", FEATURES)
  with pytest.raises(ValueError, match="has shape"):
    other = {"dtype": "uint8", "shape": [2, 3, 4]}
    records.decode(record, FEATURES | {"image": other})


@pytest.mark.parametrize("num_shards", [1, 4, 23, 30])
def test_random_access_in_prepared_order(tmp_path, num_shards):
  manifest = _write(tmp_path / "set", num_shards=num_shards)
  assert manifest["splits"]["train"]["num_examples"] == 23
  assert manifest == records.read_manifest(tmp_path / "set")
  data = records.Records(tmp_path / "set", "train")
  assert len(data) == 23
  order = np.random.default_rng(0).permutation(23)
  for index, example in zip(order, data.read(order), strict=True):
    _equal(example, _example(index))
  _equal(data.read([7, 7])[1], _example(7))
  records.verify(tmp_path / "set")


def test_nothing_is_overwritten(tmp_path):
  _write(tmp_path / "set")
  with pytest.raises(FileExistsError, match="never overwritten"):
    _write(tmp_path / "set")
  (tmp_path / "other").mkdir()
  (tmp_path / "other" / "mine.txt").write_text("precious")
  with pytest.raises(FileExistsError, match="not empty"):
    _write(tmp_path / "other")
  assert (tmp_path / "other" / "mine.txt").read_text() == "precious"
  (tmp_path / "empty").mkdir()
  _write(tmp_path / "empty")  # An empty folder is nobody's.
  # Somebody's files, where the unfinished set would lie.
  (tmp_path / ".new.partial").mkdir()
  (tmp_path / ".new.partial" / "mine.txt").write_text("precious")
  with pytest.raises(FileExistsError, match="not ours"):
    _write(tmp_path / "new")


def test_a_failure_leaves_nothing(tmp_path):
  def examples():
    yield _example(0)
    raise RuntimeError("the source broke")

  with pytest.raises(RuntimeError, match="the source broke"):
    records.write(
      tmp_path / "set",
      task="toy",
      task_feature_lengths=LENGTHS,
      splits={"train": examples()},
      features=FEATURES,
    )
  assert not list(tmp_path.iterdir())
  _write(tmp_path / "set")


KILLED = textwrap.dedent("""
  import itertools, sys, time
  sys.path.insert(0, sys.argv[2])
  import records_test
  from byt5_diffusion.data import records
  def forever():
    for i in itertools.count():
      if i == 1000:
        print("busy", flush=True)
      yield records_test._example(i)
  records.write(
    sys.argv[1], task="toy", task_feature_lengths={}, features=
    records_test.FEATURES, splits={"train": forever()})
""")


def test_a_killed_writer_leaves_no_set_and_no_lock(tmp_path):
  target = tmp_path / "set"
  here = str(pathlib.Path(__file__).parent)
  process = subprocess.Popen(
    [sys.executable, "-c", KILLED, str(target), here],
    stdout=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == "busy\n"
  with pytest.raises(FileExistsError, match="Another process"):
    _write(target)
  os.kill(process.pid, signal.SIGKILL)
  process.wait()
  process.stdout.close()
  time.sleep(0.1)
  assert not target.exists()
  assert (tmp_path / ".set.partial").is_dir()
  _write(target)  # Starts anew.
  assert [path.name for path in tmp_path.iterdir()] == ["set"]
  records.verify(target)


def test_examples_that_do_not_fit(tmp_path):
  wrong = _example(1) | {"image": np.zeros((2, 4, 3), np.uint8)}
  with pytest.raises(ValueError, match="Example 1 of 'train': 'image' has"):
    records.write(
      tmp_path / "set",
      task="toy",
      task_feature_lengths=LENGTHS,
      splits={"train": [_example(0), wrong]},
      features=FEATURES,
    )
  with pytest.raises(ValueError, match="no example at all"):
    _write(tmp_path / "set", count=0)
  with pytest.raises(ValueError, match="num_shards"):
    _write(tmp_path / "set", num_shards=0)


def _first_shard(folder) -> pathlib.Path:
  return sorted(folder.glob("*.array_record"))[0]


def test_damage_is_named(tmp_path):
  _write(tmp_path / "set", count=400)
  shard = _first_shard(tmp_path / "set")
  good = shard.read_bytes()

  shard.write_bytes(good[: len(good) // 2])
  with pytest.raises(records.BadRecords, match=f"{shard.name} has .* cut sho"):
    records.Records(tmp_path / "set", "train")

  middle = len(good) // 3
  shard.write_bytes(good[:middle] + b"\xff" * 64 + good[middle + 64 :])
  with pytest.raises(records.BadRecords, match=f"{shard.name}.*sha256"):
    records.verify(tmp_path / "set")

  shard.write_bytes(b"\0" * len(good))
  with pytest.raises(records.BadRecords, match=shard.name):
    records.Records(tmp_path / "set", "train").read(range(400))

  shard.unlink()
  with pytest.raises(records.BadRecords, match=f"{shard.name} is missing"):
    records.Records(tmp_path / "set", "train")


def test_damage_is_never_read_as_data(tmp_path):
  _write(tmp_path / "set", count=400)
  shard = _first_shard(tmp_path / "set")
  good = shard.read_bytes()
  named = 0
  for place in np.linspace(0, len(good) - 9, 60).astype(int):
    # Most of a small shard is filling; there, damage does no harm.
    shard.write_bytes(good[:place] + b"\xa5" * 8 + good[place + 8 :])
    try:
      examples = records.Records(tmp_path / "set", "train").read(range(400))
    except records.BadRecords as error:
      assert shard.name in str(error)
      named += 1
      continue
    for index, example in enumerate(examples):
      _equal(example, _example(index))
  assert named > 0


def test_manifests_that_cannot_be_read(tmp_path):
  with pytest.raises(records.BadRecords, match=r"has no manifest\.json"):
    records.read_manifest(tmp_path)
  manifest = tmp_path / "manifest.json"
  manifest.write_text("{")
  with pytest.raises(records.BadRecords, match="not JSON"):
    records.read_manifest(tmp_path)
  manifest.write_text('{"format_version": 99}')
  with pytest.raises(records.BadRecords, match="format_version 99"):
    records.read_manifest(tmp_path)


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "", "..", "a/b"])
def test_a_manifest_cannot_point_outside(tmp_path, name):
  _write(tmp_path / "set")
  path = tmp_path / "set" / "manifest.json"
  manifest = json.loads(path.read_text())
  manifest["splits"]["train"]["shards"][0]["file"] = name
  path.write_text(json.dumps(manifest))
  with pytest.raises(records.BadRecords, match="not a plain file name"):
    records.Records(tmp_path / "set", "train")


def test_unknown_split(tmp_path):
  _write(tmp_path / "set")
  with pytest.raises(records.BadRecords, match="no split 'test', only"):
    records.Records(tmp_path / "set", "test")
