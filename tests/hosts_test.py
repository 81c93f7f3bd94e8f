"""Hosts that meet compute as one; hosts that don't say why, in time."""

import argparse
import json
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import jax
import least
import numpy as np
import pytest
import tiny

from byt5_diffusion import (
  checkpoints,
  host_meeting,
  hosts,
  optimizers,
  run_lock,
)

ROOT = pathlib.Path(__file__).resolve().parent.parent


def free_port() -> int:
  with socket.socket() as s:
    s.bind(("localhost", 0))
    return s.getsockname()[1]


def start(*command: Any, **options: Any) -> subprocess.Popen[str]:
  path = [str(ROOT), str(ROOT / "tests")]
  return subprocess.Popen(
    [sys.executable, *map(str, command)],
    env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    **options,
  )


def meet(place: hosts.Place, timeout: float, outcome: dict[int, str]) -> None:
  """The meeting alone, without JAX; for a thread."""
  deadline = time.monotonic() + timeout
  side = host_meeting.call if place.process_index else host_meeting.gather
  try:
    side(place, deadline, timeout)
    outcome[id(place)] = "met"
  except hosts.HostsError as error:
    outcome[id(place)] = str(error)


def meeting(
  places: list[hosts.Place], timeout: float = 10, pause: float = 0
) -> tuple[list[str], float]:
  """What each place hears, and after how long the last did."""
  outcome: dict[int, str] = {}
  start_time = time.monotonic()
  threads = []
  for place in places:
    threads.append(
      threading.Thread(target=meet, args=(place, timeout, outcome))
    )
    threads[-1].start()
    time.sleep(pause)
  for thread in threads:
    thread.join(timeout + 20)
  return [outcome[id(p)] for p in places], time.monotonic() - start_time


def places(count: int, *indices: int) -> list[hosts.Place]:
  address = f"localhost:{free_port()}"
  return [hosts.Place(address, count, i) for i in indices]


# --- The meeting. ---


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_hosts_meet_in_any_order(order: tuple[int, ...]) -> None:
  found, seconds = meeting(places(3, *order), pause=0.3)
  assert found == ["met"] * 3
  assert seconds < 8


def test_those_who_came_hear_who_did_not() -> None:
  found, seconds = meeting(places(4, 0, 2), timeout=1.5)
  assert found[0] == found[1]
  assert (
    "2 of 4 hosts did not join within 1.5 s: process_index 1, 3" in found[0]
  )
  assert "--process_count=4" in found[0] and "\n" not in found[0]
  assert 1 < seconds < 8


def test_a_caller_without_a_coordinator_says_where_it_called() -> None:
  [place] = places(2, 1)
  [found], _ = meeting([place], timeout=1)
  assert f"did not find process 0 of 2 hosts at {place.address}" in found
  assert "Connection refused" in found
  place = hosts.Place("no-such-host.invalid:1", 2, 1)
  [found], _ = meeting([place], timeout=1)
  assert "no-such-host.invalid:1" in found


def test_hosts_that_disagree_are_told_so() -> None:
  first, second = places(2, 0, 1)
  found, _ = meeting([first, second._replace(process_count=3)])
  assert found[0] == found[1]
  assert "has --process_count 3, process 0 has 2" in found[0]
  first, second = places(3, 0, 1)
  third = hosts.Place(second.address, 3, 1)
  found, _ = meeting([first, second, third], pause=0.3)
  assert set(found) == {found[0]}
  assert "Two processes have --process_index=1" in found[0]


def test_another_version_is_told_so() -> None:
  first, second = places(2, 0, 1)
  outcome: dict[int, str] = {}
  thread = threading.Thread(target=meet, args=(first, 10, outcome))
  thread.start()
  time.sleep(0.3)
  hello = host_meeting._hello(second) | {"jax": "0.1"}
  with socket.create_connection(("localhost", first.port)) as line:
    line.sendall(host_meeting._line(hello))
    answer = json.loads(line.makefile().readline())
  thread.join(10)
  [found] = outcome.values()
  assert answer == {"error": found}
  assert f"has jax 0.1, process 0 has {jax.__version__}" in found


def test_strangers_do_not_disturb_and_the_restarted_may_return() -> None:
  first, second, third = places(3, 0, 1, 2)
  outcome: dict[int, str] = {}
  threads = [
    threading.Thread(target=meet, args=(place, 15, outcome))
    for place in (first, second, third)
  ]
  threads[0].start()
  time.sleep(0.3)
  stays = []
  for line in (
    b"GET / HTTP/1.1\r\n\r\n",
    b"{}\n",
    b"[1]\n",
    b'{"index": "x"}\n',
    b"x" * 5000,
    b"\xff\n",
    b"",
    host_meeting._line(host_meeting._hello(second)),
  ):
    stranger = socket.create_connection(("localhost", first.port))
    stranger.sendall(line)
    stays.append(stranger)
  time.sleep(0.2)
  stays[-1].close()  # A host that died after it had called.
  for thread in threads[1:]:
    thread.start()
  for thread in threads:
    thread.join(20)
  assert len(outcome) == 3
  assert set(outcome.values()) == {"met"}


def test_a_port_that_is_taken() -> None:
  [place] = places(2, 0)
  with socket.create_server(("", place.port)):
    [found], _ = meeting([place], timeout=2)
  assert f"cannot listen on port {place.port}" in found


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--process_count=2"], "go together: --coordinator_address is absent"),
    (["--coordinator_address=a:1", "--process_count=2"], "_index is absent"),
    (["a", "2", "0"], "is not HOST:PORT"),
    ([":1", "2", "0"], "is not HOST:PORT"),
    (["a:0", "2", "0"], "is not HOST:PORT"),
    (["a:99999", "2", "0"], "is not HOST:PORT"),
    (["a:1", "2", "2"], r"--process_index=2 is not in \[0, --process_count=2"),
    (["a:1", "0", "0"], "process_index=0 is not in"),
    (["a:1", "2", "0", "--detect_hosts"], "drop the other flags"),
    (["--join_timeout=0"], "must be positive"),
  ],
)
def test_wrong_flags(flags: list[str], message: str) -> None:
  names = ("--coordinator_address", "--process_count", "--process_index")
  if not flags[0].startswith("--"):
    flags = [f"{k}={v}" for k, v in zip(names, flags, strict=False)] + flags[3:]
  parser = argparse.ArgumentParser()
  hosts.add_flags(parser)
  with pytest.raises(hosts.HostsError, match=message):
    hosts.from_flags(parser.parse_args(flags))


def test_no_flags_and_one_host_join_nobody() -> None:
  parser = argparse.ArgumentParser()
  hosts.add_flags(parser)
  hosts.from_flags(parser.parse_args([]))()
  hosts.join(hosts.Place("localhost:1", 1, 0))
  assert jax.process_count() == 1


# --- The programs. ---


MAIN = [
  *("-m", "byt5_diffusion.main", "--run_mode=train"),
  *("--gin_file=experiments/tiny.gin", "--gin.MODEL_DIR='never'"),
]
CLI = ["-m", "byt5_diffusion.cli", "train", "experiments/tiny.gin"]
CLI += ["--model_dir=never"]


@pytest.mark.parametrize(
  ("command", "index", "says"),
  [
    (MAIN, 0, "1 of 2 hosts did not join within 2 s: process_index 1."),
    (CLI, 1, "did not find process 0 of 2 hosts at localhost:"),
  ],
)
def test_a_host_that_waits_in_vain_ends_in_one_line(
  tmp_path: pathlib.Path, command: list[str], index: int, says: str
) -> None:
  process = start(
    *command,
    *(f"--coordinator_address=localhost:{free_port()}", "--process_count=2"),
    *(f"--process_index={index}", "--join_timeout=2"),
    cwd=tmp_path,
  )
  output, _ = process.communicate(timeout=60)
  assert process.returncode == 2, output
  [line] = [x for x in output.splitlines() if x.startswith("Error: ")]
  assert says in line
  assert "Traceback" not in output and "Check failure" not in output
  assert not (tmp_path / "never").exists()


def test_the_watchdog_speaks_before_jax_aborts() -> None:
  code = """
import time
from byt5_diffusion import hosts
with hosts._watchdog(0.2, "nobody came"):
  time.sleep(30)
"""
  process = start("-c", code)
  output, _ = process.communicate(timeout=20)
  assert (process.returncode, output) == (2, "Error: nobody came\n")
  with hosts._watchdog(0.05, "never"):
    pass
  time.sleep(0.1)


def test_where_jax_finds_no_hosts() -> None:
  code = "from byt5_diffusion import hosts\nhosts.detect(5)"
  process = start("-c", code)
  output, _ = process.communicate(timeout=60)
  assert "--detect_hosts: JAX finds no other hosts here" in output


_TRAIN = """
import sys
import conftest
from byt5_diffusion import hosts
hosts.join(hosts.Place(sys.argv[2], 2, int(sys.argv[3])), 60)
import jax, {module}
assert jax.process_count() == 2 and len(jax.devices()) == 2
{train}
"""
_LEAST = """
from byt5_diffusion import assignment
least.train(sys.argv[1], total_steps=2)
# Other weights are taken, and frozen ones drawn, by all of them together.
initial = assignment.InitialCheckpoint(path=sys.argv[1])
arguments = {"model": least.Model(frozen="unet/out"),
             "initial_checkpoint": initial}
least.train(sys.argv[1] + "_tuned", total_steps=1, **arguments)
least.train(sys.argv[1] + "_tuned", total_steps=2, **arguments)
"""
_TINY = """
from byt5_diffusion import optimizers
class Rows(tiny.Batches):
  def __init__(self, batch_size, host_index, host_count):
    super().__init__(batch_size)
    self.rows = slice(host_index * 4, host_index * 4 + 4)
  def __next__(self):
    return {k: v[self.rows] for k, v in super().__next__().items()}
least.train(sys.argv[1], total_steps=2, model=tiny.make_model(8),
            train_data=Rows, learning_rate_fn=optimizers.constant(0.01))
"""


def losses(model_dir: pathlib.Path) -> list[float]:
  lines = (model_dir / "metrics.jsonl").read_text("utf-8").splitlines()
  records = [json.loads(line) for line in lines]
  return [x["train/loss"] for x in records if "train/loss" in x]


def train_on_two(
  model_dir: pathlib.Path, module: str, train: str
) -> list[float]:
  code = _TRAIN.format(module=module, train=train)
  address = f"localhost:{free_port()}"
  processes = [start("-c", code, model_dir, address, i) for i in range(2)]
  outputs = [process.communicate(timeout=300)[0] for process in processes]
  codes = [process.returncode for process in processes]
  assert codes == [0, 0], "\n".join(outputs)
  return losses(model_dir)


def test_two_hosts_train_as_one(tmp_path: pathlib.Path) -> None:
  found = train_on_two(tmp_path / "two", "least", _LEAST)
  state = least.train(tmp_path / "one", total_steps=2)
  expected = losses(tmp_path / "one")
  assert len(expected) == 2 and expected[0] != expected[1]
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  params = checkpoints.restore_params(tmp_path / "two", ema=False).params
  for a, b in zip(
    jax.tree.leaves(params), jax.tree.leaves(state.params), strict=True
  ):
    np.testing.assert_allclose(a, b, atol=1e-6)
  assert checkpoints.committed_steps(tmp_path / "two_tuned") == [1, 2]
  # And any other number of hosts may go on.
  assert len(checkpoints.read_data_states(tmp_path / "two/checkpoint_2")) == 2
  one = least.train(tmp_path / "one", total_steps=4)
  two = least.train(tmp_path / "two", total_steps=4)
  for a, b in zip(
    jax.tree.leaves(two.params), jax.tree.leaves(one.params), strict=True
  ):
    np.testing.assert_allclose(a, b, atol=1e-6)
  assert len(checkpoints.read_data_states(tmp_path / "two/checkpoint_4")) == 1


_STOP = """
import os, signal
class Signalling(least.Batches):
  def __next__(self):
    if self._next == 13 and self._streams[0]:  # of the second host
      os.kill(os.getpid(), signal.SIGTERM)
    return super().__next__()
least.train(sys.argv[1], total_steps=1000, checkpoint_period=1000,
            log_period=1000, train_data=Signalling)
"""


@pytest.mark.slow
def test_a_signal_to_one_host_stops_all_at_one_step(
  tmp_path: pathlib.Path,
) -> None:
  code = _TRAIN.format(module="least", train=_STOP)
  address = f"localhost:{free_port()}"
  processes = [start("-c", code, tmp_path, address, i) for i in range(2)]
  outputs = [process.communicate(timeout=120)[0] for process in processes]
  codes = [process.returncode for process in processes]
  assert codes == [143, 143], "\n".join(outputs)
  assert checkpoints.committed_steps(tmp_path) == [20]


_TRAIN_OR_SAY = """
from byt5_diffusion import main
sys.exit(main.guarded(least.train, sys.argv[1]))
"""


@pytest.mark.slow
def test_all_hosts_hear_that_a_folder_is_taken(tmp_path: pathlib.Path) -> None:
  code = _TRAIN.format(module="least", train=_TRAIN_OR_SAY)
  address = f"localhost:{free_port()}"
  with run_lock.held(tmp_path):
    processes = [start("-c", code, tmp_path, address, i) for i in range(2)]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
  for process, output in zip(processes, outputs, strict=True):
    assert process.returncode == 2, output
    assert f"is being trained already (process {os.getpid()} on" in output


@pytest.mark.slow
def test_two_hosts_train_a_unet_as_one(tmp_path: pathlib.Path) -> None:
  found = train_on_two(tmp_path / "two", "least, tiny", _TINY)
  least.train(
    tmp_path / "one",
    total_steps=2,
    model=tiny.make_model(8),
    train_data=tiny.Batches,
    learning_rate_fn=optimizers.constant(0.01),
  )
  np.testing.assert_allclose(found, losses(tmp_path / "one"), rtol=1e-4)
