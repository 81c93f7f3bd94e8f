"""Streams of real tables: the same order for any hosts, nothing twice."""

import json
import pathlib
import subprocess
import sys
import textwrap

import numpy as np
import pytest

pytest.importorskip("seqio")
pytest.importorskip("pyarrow")

import table_task

from byt5_diffusion.data import state

KINDS = ["parquet", "tar", "tfrecord"]
COUNT = 60
# SeqIO takes a quarter of a second to open a stream.
_FEW = [
  pytest.param("parquet", marks=pytest.mark.slow),
  "tar",
  pytest.param("tfrecord", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """{kind: folder of three files with 60 pictures}; one in the tars is none."""
  patch = pytest.MonkeyPatch()
  patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
  made = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
  for kind, folder in made.items():
    table_task.write(kind, folder, COUNT, (17,) if kind == "tar" else ())
  yield made
  patch.undo()


def _open(folder, **options):
  return table_task.open_data(folder, **({"batch_size": 8} | options))


def _global_ids(folder, host_count, count, **options):
  """[count, batch] numbers of examples, the hosts' rows put together."""
  hosts = [
    _open(
      folder,
      num_streams=4,
      host_index=host,
      host_count=host_count,
      **options,
    )
    for host in range(host_count)
  ]
  parts = [[table_task.ids(next(host)) for _ in range(count)] for host in hosts]
  return np.concatenate(parts, axis=1), hosts


@pytest.mark.parametrize("kind", _FEW)
def test_the_same_order_for_1_2_and_4_hosts(folders, kind):
  one, two, four = (
    _global_ids(folders[kind], count, 12)[0] for count in (1, 2, 4)
  )
  np.testing.assert_array_equal(one, two)
  np.testing.assert_array_equal(one, four)
  assert (17 in one) == (kind != "tar")


@pytest.mark.parametrize("kind", KINDS[:1])
def test_every_example_once_per_epoch_and_epochs_differ(folders, kind):
  data = _open(folders[kind], batch_size=10, num_streams=2)
  ids = np.concatenate([table_task.ids(next(data)) for _ in range(18)])
  epochs = ids.reshape(3, COUNT)
  for epoch in epochs:
    np.testing.assert_array_equal(np.sort(epoch), np.arange(COUNT))
  assert (epochs[0] != epochs[1]).any() and (epochs[1] != epochs[2]).any()
  other = _open(folders[kind], batch_size=10, num_streams=2, seed=1)
  assert (table_task.ids(next(other)) != ids[:10]).any()


def test_without_shuffling_the_order_is_the_datas(folders):
  data = _open(folders["parquet"], shuffle=False, num_epochs=1)
  ids = [i for batch in data for i in table_task.ids(batch)]
  assert ids == list(range(56))  # The last batch is not full.


@pytest.mark.parametrize(
  ("kind", "place"),
  [
    ("tfrecord", 11),
    *(
      pytest.param(kind, place, marks=pytest.mark.slow)
      for kind in KINDS
      for place in (0, 3, 7, 15)
    ),
  ],
)
def test_a_resume_repeats_nothing_and_loses_nothing(folders, kind, place):
  # 7.5 batches are an epoch: in one, at its end, and in the next.
  data = _open(folders[kind], num_streams=2)
  for _ in range(place):
    next(data)
  saved = data.get_state()
  expected = [table_task.ids(next(data)) for _ in range(16)]
  resumed = _open(folders[kind], num_streams=2)
  resumed.set_state(saved)
  again = [table_task.ids(next(resumed)) for _ in range(16)]
  np.testing.assert_array_equal(again, expected)


@pytest.mark.slow
def test_other_hosts_can_go_on_across_epochs(folders):
  expected, _ = _global_ids(folders["parquet"], 1, 20)
  first, hosts = _global_ids(folders["parquet"], 2, 9)
  np.testing.assert_array_equal(first, expected[:9])
  saved = state.merge([host.get_state() for host in hosts])
  hosts = [
    _open(folders["parquet"], num_streams=4, host_index=h, host_count=4)
    for h in range(4)
  ]
  for host in hosts:
    host.set_state(saved)
  rest = [[table_task.ids(next(host)) for _ in range(11)] for host in hosts]
  np.testing.assert_array_equal(np.concatenate(rest, axis=1), expected[9:])


def test_changed_data_refuse_a_place(folders, tmp_path):
  table_task.write("tar", tmp_path, COUNT - 1)
  saved = _open(folders["tar"]).get_state()
  with pytest.raises(ValueError, match=r"(?s)other data.*fingerprint"):
    _open(tmp_path).set_state(saved)


@pytest.mark.slow
def test_a_fresh_process_goes_on(folders, tmp_path):
  data = _open(folders["parquet"], num_streams=2)
  for _ in range(9):
    next(data)
  (tmp_path / "place").write_bytes(data.get_state())
  expected = [table_task.ids(next(data)).tolist() for _ in range(10)]
  program = textwrap.dedent("""
    import json, pathlib, sys
    sys.path.insert(0, sys.argv[1])
    import table_task
    data = table_task.open_data(
      pathlib.Path(sys.argv[2]), batch_size=8, num_streams=2)
    data.set_state(pathlib.Path(sys.argv[3]).read_bytes())
    print(json.dumps([table_task.ids(next(data)).tolist() for _ in range(10)]))
  """)
  done = subprocess.run(
    [
      sys.executable,
      "-c",
      program,
      str(pathlib.Path(table_task.__file__).parent),
      str(folders["parquet"]),
      str(tmp_path / "place"),
    ],
    capture_output=True,
    text=True,
    timeout=100,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  assert json.loads(done.stdout) == expected
