"""native_logs: what is left out, what appears, and that fd 2 comes back."""

import io
import os
import subprocess
import sys

import pytest

from byt5_diffusion.data import native_logs

NOISE = (
  b"WARNING: All log messages before absl::InitializeLog() is called are\n"
  b"I0000 00:00:1795345928.834134   11980 port.cc:153] oneDNN\n"
  b"E0000 00:00:1795345928.834134   11980 cuda_platform.cc:5] cuInit\n"
  b"2026-01-02 03:04:05.678: W tensorflow/core: something\n"
)


def test_only_start_up_logs_are_left_out(capfd):
  with native_logs.quiet():
    os.write(2, b"before\n" + NOISE + b"after\n")
    assert capfd.readouterr().err == ""
  os.write(2, NOISE)
  assert capfd.readouterr().err == "before\nafter\n" + NOISE.decode()


def test_an_error_shows_all(capfd):
  with pytest.raises(ImportError), native_logs.quiet():
    os.write(2, NOISE)
    raise ImportError
  assert capfd.readouterr().err == NOISE.decode()


def test_all_is_shown_on_request(capfd, monkeypatch):
  monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")
  with native_logs.quiet():
    os.write(2, NOISE)
  assert capfd.readouterr().err == NOISE.decode()


@pytest.mark.parametrize("stderr", [None, io.StringIO()])
def test_stderr_need_not_be_a_file(capfd, monkeypatch, stderr):
  monkeypatch.setattr(sys, "stderr", stderr)
  with native_logs.quiet():
    os.write(2, b"x\n")
  assert capfd.readouterr().err == "x\n"


def test_stderr_may_be_closed():
  code = (
    "import os\n"
    "from byt5_diffusion.data import native_logs\n"
    "os.close(2)\n"
    "with native_logs.quiet():\n"
    "  print('done')\n"
  )
  done = subprocess.run([sys.executable, "-c", code], capture_output=True)
  assert (done.returncode, done.stdout) == (0, b"done\n")


def test_no_descriptor_is_left_open():
  before = len(os.listdir("/proc/self/fd"))
  for _ in range(3):
    with native_logs.quiet():
      pass
  assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("first", ["data import live", "data import pipeline"])
def test_live_data_start_without_a_word(first):
  pytest.importorskip("seqio")
  code = (
    f"from byt5_diffusion.{first}\n"
    "from byt5_diffusion import feature_converters\n"
    "feature_converters.TextToImageFeatureConverter\n"
    "from byt5_diffusion.data import live\n"
    "live._hide_accelerators()\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert done.stderr == ""
