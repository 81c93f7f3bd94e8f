"""Order for any number of hosts, places that can be saved, clear errors."""

import gc
import json
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

pytest.importorskip("seqio")

import toy_task

from byt5_diffusion import preparation
from byt5_diffusion.data import live, pipeline, records, state

KINDS = ["live", "prepared"]


@pytest.fixture(scope="module")
def open_data(tmp_path_factory):
  """open_data(kind, **options) of the toy task."""
  toy_task.add("toy")
  path = tmp_path_factory.mktemp("prepared") / "set"
  preparation.prepare(
    mixture_or_task_name="toy",
    task_feature_lengths=toy_task.LENGTHS,
    output_dir=str(path),
    num_shards=3,
    show_progress=False,
  )

  def call(kind="live", **options):
    arguments = {
      "mixture_or_task_name": "toy",
      "task_feature_lengths": toy_task.LENGTHS,
      "split": "train",
      "batch_size": 8,
      "num_streams": 2,
      "prepared_dir": str(path) if kind == "prepared" else None,
    }
    return pipeline.open_data(**(arguments | options))

  return call


def _hosts(open_data, kind, host_count, **options):
  """The data of all hosts, in 4 streams."""
  options = {"num_streams": 4, "host_count": host_count} | options
  return [
    open_data(kind, host_index=host, **options) for host in range(host_count)
  ]


def _global_ids(hosts, count):
  """[count, batch] ids, the hosts' rows put together."""
  parts = [np.reshape(toy_task.ids(host, count), (count, -1)) for host in hosts]
  return np.concatenate(parts, axis=1)


@pytest.mark.parametrize("kind", KINDS)
def test_order_is_the_same_for_any_number_of_hosts(open_data, kind):
  one, two, four = (
    _global_ids(_hosts(open_data, kind, count), 20) for count in (1, 2, 4)
  )
  np.testing.assert_array_equal(one, two)
  np.testing.assert_array_equal(one, four)
  other = _global_ids(_hosts(open_data, kind, 1, seed=1), 20)
  assert (one != other).any()


@pytest.mark.parametrize("kind", KINDS)
def test_every_example_once_per_epoch(open_data, kind):
  data = open_data(kind, num_streams=1, batch_size=10)
  ids = toy_task.ids(data, 15)
  epochs = [ids[:50], ids[50:100], ids[100:]]
  if kind == "prepared":  # The live task's buffer lets epochs overlap.
    for epoch in epochs:
      assert sorted(epoch) == list(range(50))
    assert epochs[0] != epochs[1] != epochs[2]
  assert max(np.bincount(ids, minlength=50)) <= 5
  assert set(ids) == set(range(50))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", [0, 1, 7])
def test_a_resumed_run_equals_an_uninterrupted_one(open_data, kind, place):
  data = open_data(kind)
  for _ in range(place):
    next(data)
  saved = data.get_state()
  expected = [next(data) for _ in range(9)]
  later = data.get_state()
  resumed = open_data(kind)
  resumed.set_state(saved)
  for batch in expected:
    again = next(resumed)
    assert batch.keys() == again.keys()
    for key in batch:
      assert batch[key].tobytes() == again[key].tobytes()
  # And from the middle of what was resumed.
  ids = toy_task.ids(data, 3)
  data.set_state(later)
  assert toy_task.ids(data, 3) == ids
  twice = open_data(kind)
  twice.set_state(resumed.get_state())
  assert toy_task.ids(twice, 3) == ids


@pytest.mark.parametrize("kind", KINDS)
def test_a_place_is_what_was_received_not_what_was_made(open_data, kind):
  data = open_data(kind, prefetch=8)
  next(data)
  time.sleep(0.3)  # The queue is full now.
  saved = data.get_state()
  expected = toy_task.ids(data, 2)
  fresh = open_data(kind)
  fresh.set_state(saved)
  assert toy_task.ids(fresh, 2) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_another_number_of_hosts_can_continue(open_data, kind):
  expected = _global_ids(_hosts(open_data, kind, 1), 12)
  two = _hosts(open_data, kind, 2)
  _global_ids(two, 5)
  saved = state.merge([host.get_state() for host in two])
  for count in (1, 4) if kind == "prepared" else (4,):
    hosts = _hosts(open_data, kind, count)
    for host in hosts:
      host.set_state(saved)
    np.testing.assert_array_equal(_global_ids(hosts, 7), expected[5:])


def test_states_that_do_not_belong_together(open_data):
  two = _hosts(open_data, "live", 2, num_streams=2)
  next(two[0])
  with pytest.raises(ValueError, match="different steps"):
    state.merge([host.get_state() for host in two])
  next(two[1])
  one = open_data()
  with pytest.raises(ValueError, match=r"lacks \[1\].*state\.merge"):
    one.set_state(two[0].get_state())


@pytest.mark.parametrize(
  "change",
  [
    {"kind": "prepared"},
    {"batch_size": 4},
    {"seed": 5},
    {"split": "validation"},
    {"num_streams": 1},
    {"shuffle": False},
  ],
)
def test_a_place_in_other_data_is_refused(open_data, change):
  saved = open_data("live").get_state()
  key, value = next(iter(change.items()))
  other = open_data(**change)
  with pytest.raises(ValueError, match=f"(?s)other data.*{key}.*{value}"):
    other.set_state(saved)


def test_prepared_again_is_another_data_set(open_data, tmp_path):
  saved = open_data("prepared").get_state()
  preparation.prepare(
    mixture_or_task_name="toy",
    task_feature_lengths=toy_task.LENGTHS,
    output_dir=str(tmp_path / "set"),
    num_examples=49,
    show_progress=False,
  )
  other = open_data(prepared_dir=str(tmp_path / "set"))
  with pytest.raises(ValueError, match="sha256"):
    other.set_state(saved)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_states_are_refused(open_data, kind):
  data = open_data(kind)
  next(data)
  saved = data.get_state()
  for end in range(0, len(saved), max(1, len(saved) // 50)):
    with pytest.raises(ValueError, match=r"damaged|not a data state"):
      data.set_state(saved[:end])
  with pytest.raises(ValueError, match="damaged"):
    data.set_state(saved[:-1] + bytes([saved[-1] ^ 1]))
  next(data)


@pytest.mark.parametrize("kind", KINDS)
def test_a_finite_pass_keeps_order_and_drops_the_rest(open_data, kind):
  options = {"split": "validation", "num_epochs": 1, "shuffle": False}
  data = open_data(kind, num_streams=1, **options)
  start = data.get_state()
  assert toy_task.ids(data, 2) == list(range(16))
  for _ in range(2):
    with pytest.raises(StopIteration):
      next(data)
  data.set_state(start)  # Another pass.
  assert toy_task.ids(data, 2) == list(range(16))
  assert data.num_examples == 21


@pytest.mark.parametrize("kind", KINDS)
def test_hosts_end_a_pass_together(open_data, kind):
  # 21 examples in 4 streams: 6, 5, 5, 5.
  options = {"split": "validation", "num_epochs": 1, "batch_size": 4}
  lengths = {
    count: [
      sum(1 for _ in host) for host in _hosts(open_data, kind, count, **options)
    ]
    for count in (1, 2)
  }
  assert lengths == {1: [5], 2: [5] * 2}


@pytest.mark.parametrize("kind", KINDS)
def test_a_pass_without_a_batch_is_an_error(open_data, kind):
  data = open_data(kind, batch_size=64, num_epochs=1)
  with pytest.raises(ValueError, match="does not fill one batch"):
    next(data)


@pytest.mark.parametrize("kind", KINDS)
def test_data_smaller_than_a_batch_still_train(open_data, kind):
  data = open_data(kind, batch_size=128, num_streams=1)
  ids = toy_task.ids(data, 1)
  assert min(np.bincount(ids, minlength=50)) >= 1


def test_arguments_that_do_not_fit(open_data):
  for options, message in [
    ({"num_streams": 3}, "batch_size=8 must be a multiple of num_streams=3"),
    ({"host_count": 3}, "num_streams=2 must be a multiple of host_count=3"),
    ({"host_index": 1}, "host_index=1 must be in"),
    ({"num_epochs": 0}, "num_epochs=0 must be positive"),
    ({"prefetch": 0}, "prefetch=0"),
    ({"split": "test"}, "no split 'test', only"),
    ({"mixture_or_task_name": "toyy"}, "'toyy'.*mixture_or_task_module"),
    ({"task_feature_lengths": {"image": 4}}, "feature"),
  ]:
    with pytest.raises(ValueError, match=message):
      open_data(**options)
  for options, message in [
    ({"mixture_or_task_name": "other"}, "prepared with task = toy"),
    (
      {"task_feature_lengths": toy_task.LENGTHS | {"image": 8}},
      "prepared with task_feature_len",
    ),
    ({"feature_converter_cls": print}, "no attribute `convert`"),
    ({"split": "test"}, "no split 'test', only"),
    ({"prepared_dir": "/nowhere"}, "not a prepared data set"),
  ]:
    with pytest.raises(ValueError, match=message):
      open_data("prepared", **options)


def test_a_module_registers_the_task(open_data, tmp_path, monkeypatch):
  module = tmp_path / "registers_a_toy.py"
  module.write_text("import toy_task\ntoy_task.add('toy_by_module')\n")
  monkeypatch.syspath_prepend(str(tmp_path))
  data = open_data(
    mixture_or_task_name="toy_by_module",
    mixture_or_task_module="registers_a_toy",
  )
  assert set(next(data)) == {"images", "text_tokens", "example_id"}


def test_an_error_of_the_task_arrives_without_wrapping(open_data):
  def broken(index, split):
    if index == 13:
      raise KeyError("no picture thirteen")
    return toy_task.example(index, split)

  toy_task.add("toy_broken", broken)
  data = open_data(mixture_or_task_name="toy_broken")
  with pytest.raises(RuntimeError, match="no picture thirteen") as caught:
    for _ in range(20):
      next(data)
  message = str(caught.value)
  assert message.startswith("Reading split 'train' of 'toy_broken' failed")
  assert "Traceback" not in message and "node" not in message
  with pytest.raises(RuntimeError, match="thirteen"):
    next(data)


def test_a_damaged_record_arrives_as_itself(open_data, tmp_path):
  preparation.prepare(
    mixture_or_task_name="toy",
    task_feature_lengths=toy_task.LENGTHS,
    output_dir=str(tmp_path / "set"),
    num_shards=1,
    show_progress=False,
  )
  data = open_data(prepared_dir=str(tmp_path / "set"))
  shard = next((tmp_path / "set").glob("train*"))
  shard.write_bytes(b"\0" * shard.stat().st_size)
  with pytest.raises(records.BadRecords, match=shard.name):
    next(open_data(prepared_dir=str(tmp_path / "set")))
  del data


def test_an_empty_stream_is_named(open_data):
  toy_task.add("toy_of_one", counts={"train": 1})
  data = open_data(mixture_or_task_name="toy_of_one")
  with pytest.raises(ValueError, match="empty stream"):
    next(data)


def test_a_source_that_cannot_save_is_resumed_by_repeating(open_data):
  import seqio
  import tensorflow as tf

  def generate(split, shuffle_files, seed=None):
    del shuffle_files, seed
    return tf.data.Dataset.from_generator(
      lambda: (toy_task.example(i) for i in range(40)),
      output_signature={
        "image": tf.TensorSpec([4, 6, 3], tf.uint8),
        "text_tokens": tf.TensorSpec([None], tf.int32),
        "example_id": tf.TensorSpec([2], tf.uint32),
      },
    )

  seqio.TaskRegistry.add(
    "toy_generated",
    source=seqio.FunctionDataSource(generate, splits=["train"]),
    preprocessors=[],
    output_features=toy_task.FEATURES,
    shuffle_buffer_size=8,
  )
  options = {"mixture_or_task_name": "toy_generated", "num_streams": 2}
  data = open_data(**options)
  for _ in range(4):
    next(data)
  saved = data.get_state()
  expected = toy_task.ids(data, 4)
  resumed = open_data(**options)
  resumed.set_state(saved)
  assert toy_task.ids(resumed, 4) == expected
  with pytest.raises(ValueError, match="Nobody knows how many"):
    open_data(num_epochs=1, host_count=2, **options)


def test_old_snapshots_still_lead_to_the_place(open_data, monkeypatch):
  monkeypatch.setattr(live, "_SNAPSHOT_SHARE", 0.0)  # One snapshot, then none.
  data = open_data()
  for _ in range(11):
    next(data)
  saved = data.get_state()
  header, _ = state.unpack(saved)
  assert header["num_batches"] == 11
  assert {before for _, before in header["streams"]} == {1}
  expected = toy_task.ids(data, 3)
  data.set_state(saved)
  assert toy_task.ids(data, 3) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_dropping_the_data_ends_their_thread(open_data, kind):
  before = threading.active_count()
  data = open_data(kind)
  next(data)
  assert threading.active_count() > before
  del data
  gc.collect()
  deadline = time.monotonic() + 20
  while threading.active_count() > before and time.monotonic() < deadline:
    time.sleep(0.05)
  assert threading.active_count() == before


def test_a_program_that_reads_live_data_can_exit():
  program = textwrap.dedent("""
    import sys
    sys.path.insert(0, sys.argv[1])
    import toy_task
    from byt5_diffusion.data import pipeline
    toy_task.add("toy")
    data = pipeline.open_data(
      mixture_or_task_name="toy", task_feature_lengths=toy_task.LENGTHS,
      split="train", batch_size=8)
    for _ in range(20):
      next(data)
    print("left")
  """)
  done = subprocess.run(
    [sys.executable, "-c", program, str(toy_task.__file__).rpartition("/")[0]],
    timeout=100,
    capture_output=True,
    text=True,
  )
  assert (done.returncode, done.stdout) == (0, "left\n"), done.stderr[-2000:]


def test_a_state_holds_no_pickle_and_says_what_it_is(open_data):
  header, blobs = state.unpack(open_data("prepared").get_state())
  assert not blobs
  assert json.loads(json.dumps(header)) == header
  assert header["identity"]["task"] == "toy"
  assert isinstance(open_data("prepared"), pipeline.Batches)


def test_a_missing_extra_is_named_and_nothing_else():
  """It comes from inside of TensorFlow, which makes a text of it."""
  error = Exception(
    "Error in user-defined function: ImportError: Pictures need resvg: "
    "pip install 'x[y]'.\nTraceback (most recent call last):\n  File ..."
  )
  said = live.explain(error, "split 'train'")
  assert isinstance(said, ImportError)
  assert str(said) == (
    "Reading split 'train' failed: Pictures need resvg: pip install 'x[y]'."
  )
