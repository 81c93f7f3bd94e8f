"""A folder is trained by one process at a time, and by the next one after."""

import errno
import os
import pathlib
import signal
import subprocess
import sys

import jax
import least
import pytest

from byt5_diffusion import checkpoints, run_lock
from byt5_diffusion import main as main_lib

ROOT = pathlib.Path(__file__).resolve().parent.parent
_HOLD = """
import sys, time
from byt5_diffusion import run_lock
with run_lock.held(sys.argv[1]):
  print("held", flush=True)
  time.sleep(600)
"""


def hold(folder):
  process = subprocess.Popen(
    [sys.executable, "-c", _HOLD, str(folder)],
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    stdout=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == "held\n"
  return process


def test_a_second_training_is_refused_in_one_line(tmp_path, capsys):
  process = hold(tmp_path / "run")
  try:
    code = main_lib.guarded(least.train, tmp_path / "run")
  finally:
    process.kill()
    process.wait()
  said = capsys.readouterr().err
  assert code == 2 and said.count("\n") == 1
  assert (
    f"{tmp_path}/run is being trained already (process {process.pid} on" in said
  )
  assert os.listdir(tmp_path / "run") == [run_lock.FILE]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_dies_with_its_process(tmp_path, number):
  process = hold(tmp_path)
  with pytest.raises(run_lock.LockedError), run_lock.held(tmp_path):
    pass
  process.send_signal(number)
  process.wait()
  least.train(tmp_path)
  least.train(tmp_path, total_steps=2)  # A file that is left holds nothing.
  assert checkpoints.committed_steps(tmp_path) == [1, 2]


def test_an_error_gives_the_lock_back(tmp_path):
  with pytest.raises(ValueError, match="TRAIN_STEPS") as kept:
    least.train(tmp_path, total_steps=0)
  assert kept.traceback
  least.train(tmp_path)


def test_one_folder_each(tmp_path):
  with run_lock.held(tmp_path / "a"), run_lock.held(tmp_path / "b"):
    with pytest.raises(run_lock.LockedError), run_lock.held(tmp_path / "a"):
      pass
  with run_lock.held(tmp_path / "a"):
    pass


@pytest.mark.parametrize("content", ["", "[]", "{}", "\0" * 9999])
def test_a_holder_that_says_nothing(tmp_path, content):
  with run_lock.held(tmp_path):
    (tmp_path / run_lock.FILE).write_text(content)
    with pytest.raises(run_lock.LockedError, match="trained already: wait"):
      with run_lock.held(tmp_path):
        pass


def test_file_systems_without_locks_are_no_hindrance(tmp_path, monkeypatch):
  def flock(*_):
    raise OSError(errno.ENOLCK, "No locks available")

  monkeypatch.setattr(run_lock.fcntl, "flock", flock)
  entered = []
  with run_lock.held(tmp_path), run_lock.held(tmp_path):
    entered.append(True)
  assert entered == [True]


@pytest.mark.parametrize("index", [0, 1])
def test_only_the_first_of_several_hosts_locks(tmp_path, monkeypatch, index):
  calls = []

  @run_lock.one_at_a_time
  def train(*, model_dir):
    calls.append(run_lock.holder(model_dir) is not None)

  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(jax, "process_index", lambda: index)
  monkeypatch.setattr(run_lock, "_tell_all", lambda text: text)
  train(model_dir=tmp_path)
  assert calls == [index == 0]
  if index == 0:
    with run_lock.held(tmp_path), pytest.raises(run_lock.LockedError):
      train(model_dir=tmp_path)
  # The others hear what the first has met.
  monkeypatch.setattr(run_lock, "_tell_all", lambda _: "größer: taken")
  with pytest.raises(run_lock.LockedError, match="größer: taken"):
    train(model_dir=tmp_path)
  assert len(calls) == 1


def test_a_lock_on_a_removed_file_is_not_believed(tmp_path, monkeypatch):
  """Between opening the file and locking it, its holder has removed it."""
  lock = run_lock._lock

  def remove_and_lock(file):
    monkeypatch.setattr(run_lock, "_lock", lock)
    (tmp_path / run_lock.FILE).unlink()
    lock(file)

  monkeypatch.setattr(run_lock, "_lock", remove_and_lock)
  with run_lock.held(tmp_path):
    assert str(os.getpid()) in run_lock.holder(tmp_path)
  assert not os.listdir(tmp_path)  # An orderly end leaves nothing.


def test_a_folder_that_takes_no_file(tmp_path, monkeypatch):
  def fail(*_, **__):
    raise OSError(errno.EROFS, "Read-only file system")

  monkeypatch.setattr(pathlib.Path, "open", fail)
  with pytest.raises(run_lock.LockedError, match="run: Read-only file system"):
    with run_lock.held(tmp_path / "run"):
      pass


def test_a_file_in_place_of_the_folder(tmp_path):
  (tmp_path / "x").write_text("")
  with pytest.raises(run_lock.LockedError, match="x is a file"):
    with run_lock.held(tmp_path / "x"):
      pass
