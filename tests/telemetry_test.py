"""Telemetry: readable files, and writers that can't hurt a run."""

import io
import json
import logging
import os
import pathlib
import struct
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from byt5_diffusion import telemetry


def read_events(log_dir):
  """The events of the one file in log_dir, by the record format's layout."""
  event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
  (path,) = pathlib.Path(log_dir).glob("events.out.tfevents.*")
  data, events = path.read_bytes(), []
  while data:
    (length,) = struct.unpack("<Q", data[:8])
    events.append(event_pb2.Event.FromString(data[12 : 12 + length]))
    data = data[16 + length :]
  return events


def values_of(events):
  return {
    (value.tag, event.step): value
    for event in events
    for value in event.summary.value
  }


def read_lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


class Recorder:
  """A writer that remembers, and does what a test asks before each call."""

  def __init__(self, before=lambda: None):
    self.before = before
    self.calls = []

  def _call(self, *call):
    self.before()
    self.calls.append((*call, threading.current_thread().name))

  def write_scalars(self, step, scalars):
    self._call("scalars", step, scalars)

  def write_images(self, step, images):
    self._call("images", step, images)

  def write_texts(self, step, texts):
    self._call("texts", step, texts)

  def write_hparams(self, hparams):
    self._call("hparams", hparams)

  def flush(self):
    self._call("flush")

  def close(self):
    self.calls.append(("close", threading.current_thread().name))


def use_all(writer):
  writer.write_scalars(1, {"train/loss": jnp.float32(0.5), "bad": np.nan})
  writer.write_scalars(2, {"train/loss": 0.25})
  image = np.zeros((1, 4, 6, 3), np.uint8)
  image[0, 1, 2] = (255, 128, 1)
  writer.write_images(2, {"sample": image, "two": np.ones((2, 3, 3, 1))})
  writer.write_texts(2, {"caption": "ਸਤ ਸ੍ਰੀ ਅਕਾਲ"})
  writer.write_hparams({"lr": 1e-3, "name": "x", "none": None, "list": [1]})
  writer.flush()


# --- Files. ---


def test_tensorboard_events(tmp_path):
  image_lib = pytest.importorskip("PIL.Image")
  writer = telemetry.TensorBoardWriter(tmp_path / "logs")
  use_all(writer)
  writer.close()
  events = read_events(tmp_path / "logs")
  assert events[0].file_version == "brain.Event:2"
  values = values_of(events)
  assert values["train/loss", 1].simple_value == 0.5
  assert values["train/loss", 2].simple_value == 0.25
  assert np.isnan(values["bad", 1].simple_value)
  image = values["sample", 2].image
  assert (image.height, image.width, image.colorspace) == (4, 6, 3)
  pixels = image_lib.open(io.BytesIO(image.encoded_image_string))
  assert np.asarray(pixels)[1, 2].tolist() == [255, 128, 1]
  for i in range(2):
    image = values[f"two/{i}", 2].image
    pixels = image_lib.open(io.BytesIO(image.encoded_image_string))
    np.testing.assert_array_equal(pixels, np.full((3, 3), 255))
  text = values["caption/text_summary", 2]
  assert text.metadata.plugin_data.plugin_name == "text"
  assert text.tensor.string_val[0].decode() == "ਸਤ ਸ੍ਰੀ ਅਕਾਲ"
  assert ("_hparams_/session_start_info", 0) in values


def test_tensorboard_s_own_reader_agrees(tmp_path):
  module = "tensorboard.backend.event_processing.event_accumulator"
  reader = pytest.importorskip(module)
  writer = telemetry.TensorBoardWriter(tmp_path)
  use_all(writer)
  writer.close()
  events = reader.EventAccumulator(str(tmp_path)).Reload()
  assert [e.value for e in events.Scalars("train/loss")] == [0.5, 0.25]
  assert events.Images("sample")[0].width == 6


def test_a_resumed_run_hides_what_came_after_its_first_step(tmp_path):
  writer = telemetry.TensorBoardWriter(tmp_path, first_step=30)
  writer.close()
  event = read_events(tmp_path)[1]
  assert event.step == 30
  assert event.session_log.status == event.session_log.START


def test_jsonl_is_valid_and_appended(tmp_path):
  path = tmp_path / "a" / "metrics.jsonl"
  for _ in range(2):
    writer = telemetry.JsonlWriter(path)
    use_all(writer)
    writer.close()
  lines = read_lines(path)
  assert len(lines) == 8 and lines[0]["step"] == 1
  assert lines[0]["train/loss"] == 0.5 and lines[0]["bad"] == "nan"
  assert lines[2]["texts"] == {"caption": "ਸਤ ਸ੍ਰੀ ਅਕਾਲ"}
  assert lines[3]["hparams"] == {
    "lr": 1e-3, "name": "x", "none": None, "list": "[1]",
  }  # fmt: skip


def test_console(caplog):
  with caplog.at_level(logging.INFO):
    use_all(telemetry.ConsoleWriter())
  assert "step 2: train/loss=0.25" in caplog.text
  assert "caption: ਸਤ" in caplog.text


def test_make_writers(tmp_path):
  extra = Recorder()
  start = time.monotonic()
  writer = telemetry.make_writers(
    tmp_path, console=True, extra_writers={"mine": lambda: extra}
  )
  use_all(writer)
  writer.close()
  assert time.monotonic() - start < 30
  assert len(read_lines(tmp_path / "metrics.jsonl")) == 4
  assert ("train/loss", 2) in values_of(read_events(tmp_path / "tensorboard"))
  assert [call[0] for call in extra.calls][-1] == "close"
  assert extra.calls[0][-1] == "writer-mine"


def test_only_the_first_host_writes(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  writer = telemetry.make_writers(tmp_path)
  use_all(writer)
  writer.close()
  stream = io.StringIO()
  progress = telemetry.Progress(10, 2, stream=stream)
  progress.update(1, 0.5, 0.0)
  progress.say("hello")
  assert not list(tmp_path.iterdir()) and not stream.getvalue()


# --- Off the step's thread. ---


def test_calls_arrive_in_order_on_another_thread():
  recorder = Recorder()
  writer = telemetry.BackgroundWriter(lambda: recorder, "test")
  use_all(writer)
  writer.close()
  names = [call[0] for call in recorder.calls]
  assert names == [
    "scalars", "scalars", "images", "texts", "hparams", "flush", "close",
  ]  # fmt: skip
  assert {call[-1] for call in recorder.calls} == {"writer-test"}
  assert writer.num_dropped == 0


def test_a_writer_that_raises_warns_once_and_is_tried_again(caplog):
  failing = threading.Event()
  failing.set()

  def before():
    if failing.is_set():
      raise OSError("No space left on device")

  recorder = Recorder(before)
  writer = telemetry.BackgroundWriter(lambda: recorder, "disk")
  for step in range(5):
    writer.write_scalars(step, {"loss": 1.0})
  writer.flush()
  failing.clear()
  writer.write_scalars(9, {"loss": 1.0})
  writer.close()
  assert caplog.text.count("The disk writer failed") == 1
  assert "No space left" in caplog.text
  assert [c[1] for c in recorder.calls if c[0] == "scalars"] == [9]
  assert writer.num_dropped == 6  # five steps and the flush


def test_a_writer_that_can_t_be_made_warns_once(tmp_path, caplog):
  (tmp_path / "tensorboard").write_text("in the way")
  writer = telemetry.make_writers(tmp_path)
  use_all(writer)
  writer.close()
  assert caplog.text.count("The TensorBoard writer failed") == 1
  assert len(read_lines(tmp_path / "metrics.jsonl")) == 4


def test_a_writer_that_hangs_neither_stalls_nor_hoards(caplog):
  release = threading.Event()
  hanging = Recorder(release.wait)
  healthy = Recorder()
  stuck = telemetry.BackgroundWriter(
    lambda: hanging, "remote", queue_size=8, close_timeout_s=0.1
  )
  writer = telemetry.MultiWriter(
    [stuck, telemetry.BackgroundWriter(lambda: healthy, "local")]
  )
  slowest = 0.0
  for step in range(200):
    start = time.monotonic()
    writer.write_scalars(step, {"loss": 1.0})
    slowest = max(slowest, time.monotonic() - start)
    time.sleep(0.0005)  # The step's own work.
  start = time.monotonic()
  writer.flush()
  writer.close()
  closing = time.monotonic() - start
  release.set()
  assert slowest < 0.1
  assert closing < 5
  assert len([c for c in healthy.calls if c[0] == "scalars"]) == 200
  assert stuck.num_dropped >= 200 - 9
  assert caplog.text.count("The remote writer is stuck") == 1


def test_a_hanging_writer_does_not_keep_the_program_alive():
  code = """
import threading
from byt5_diffusion import telemetry
class Hanging:
  def write_scalars(self, step, scalars):
    threading.Event().wait()
writer = telemetry.BackgroundWriter(Hanging, "x", close_timeout_s=0.1)
writer.write_scalars(1, {})
writer.close()
print("end", flush=True)
"""
  root = pathlib.Path(__file__).resolve().parent.parent
  done = subprocess.run(
    [sys.executable, "-c", code],
    env=os.environ | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert done.returncode == 0 and done.stdout == "end\n", done.stderr


# --- Progress. ---


class Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.fixture
def clock(monkeypatch):
  now = [100.0]
  monkeypatch.setattr(time, "monotonic", lambda: now[0])
  return now


def test_progress_as_lines(clock):
  stream = io.StringIO()
  progress = telemetry.Progress(100, batch_size=8, first_step=20, stream=stream)
  clock[0] += 40  # Compiling.
  progress.start()
  clock[0] += 5
  progress.update(30, 0.123456, 0.0123)
  progress.say("step 30: validation loss 0.1")
  clock[0] += 10
  progress.update(40, 0.1, 1.0)
  progress.close()
  assert stream.getvalue().splitlines() == [
    "step 30/100, loss 0.1235, 16.0 images/s, ETA 0:00:35, data wait 1.2 %",
    "step 30: validation loss 0.1",
    "step 40/100, loss 0.1000, 8.0 images/s, ETA 0:01:00, data wait 100.0 %",
  ]


def test_progress_on_a_terminal(monkeypatch):
  stream = Terminal()
  progress = telemetry.Progress(100, batch_size=8, stream=stream)
  progress.update(50, 0.5, 0.25)
  progress.say("a line of its own")
  progress.close()
  shown = stream.getvalue()
  assert "\r" in shown and "50/100" in shown
  for field in ("loss 0.5000", "images/s", "ETA 0:", "data wait 25.0 %"):
    assert field in shown, field
  assert "a line of its own\n" in shown


def test_progress_without_progress(clock):
  stream = io.StringIO()
  progress = telemetry.Progress(10, batch_size=8, stream=stream)
  progress.update(0, float("nan"), 0.0)
  assert "ETA ?" in stream.getvalue() and "loss nan" in stream.getvalue()


# --- Image grids. ---


def test_image_grid_places_and_scales():
  images = np.zeros((3, 2, 4, 3), np.float32)
  images[0], images[1], images[2] = -1.0, 0.0, 1.0
  grid = telemetry.image_grid(images, columns=2)
  assert grid.shape == (4, 8, 3) and grid.dtype == np.uint8
  assert (grid[:2, :4] == 0).all()
  assert (grid[:2, 4:] == 128).all()
  assert (grid[2:, :4] == 255).all()
  assert (grid[2:, 4:] == 0).all()  # no fourth image


def test_image_grid_undoes_the_usual_normalisation():
  levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
  levels = np.repeat(levels, 3, axis=-1)
  images = levels.astype(np.float32) / 127.5 - 1.0
  np.testing.assert_array_equal(telemetry.image_grid(images), levels[0])
  np.testing.assert_array_equal(telemetry.image_grid(levels), levels[0])
  wild = np.float32([-7.0, 7.0, np.nan, np.inf]).reshape(4, 1, 1, 1)
  grid = telemetry.image_grid(wild, columns=4)
  assert grid[0, :, 0].tolist() == [0, 255, 128, 255]


def test_image_grid_of_bfloat16_and_default_columns():
  images = jnp.zeros((5, 2, 2, 3), jnp.bfloat16)
  assert telemetry.image_grid(images).shape == (4, 6, 3)
  with pytest.raises(ValueError, match="N > 0"):
    telemetry.image_grid(np.zeros((0, 2, 2, 3)))


# --- The compilation cache. ---


@pytest.fixture
def cache_home(tmp_path, monkeypatch):
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  before = jax.config.jax_compilation_cache_dir
  yield tmp_path
  jax.config.update("jax_compilation_cache_dir", before)


def test_cache_is_private_and_named_after_the_machine(cache_home, monkeypatch):
  path = pathlib.Path(telemetry.enable_compilation_cache())
  assert path.parent == cache_home / "byt5_diffusion" / "xla"
  assert jax.config.jax_compilation_cache_dir == str(path)
  for directory in (path, path.parent, path.parent.parent):
    assert directory.stat().st_mode & 0o777 == 0o700
  assert telemetry.enable_compilation_cache() == str(path)
  read_text = pathlib.Path.read_text

  def other_cpu(self, *args, **kwargs):
    if str(self) == "/proc/cpuinfo":
      return "processor : 0\nflags : fpu sse avx1024\n"
    return read_text(self, *args, **kwargs)

  monkeypatch.setattr(pathlib.Path, "read_text", other_cpu)
  assert telemetry.enable_compilation_cache() != str(path)


def test_cache_of_another_jaxlib_is_another(cache_home, monkeypatch):
  path = telemetry.enable_compilation_cache()
  monkeypatch.setattr(telemetry.jaxlib, "__version__", "99.0")
  assert telemetry.enable_compilation_cache() != path


def test_the_user_s_choice_stands(cache_home, monkeypatch):
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/somewhere")
  assert telemetry.enable_compilation_cache() == "/somewhere"
  assert not list(cache_home.iterdir())


def writable_by_group(path, monkeypatch):
  path.mkdir(parents=True)
  path.chmod(0o770)


def somebody_else_s(path, monkeypatch):
  path.mkdir(parents=True, mode=0o700)
  monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)


def a_link(path, monkeypatch):
  path.parent.mkdir(parents=True)
  (path.parent / "target").mkdir(mode=0o700)
  path.symlink_to(path.parent / "target")


def a_file(path, monkeypatch):
  path.parent.mkdir(parents=True)
  path.write_text("")


@pytest.mark.parametrize(
  "spoil, reason",
  [
    (writable_by_group, "writable by others"),
    (somebody_else_s, "belongs to user"),
    (a_link, "symbolic link"),
    (a_file, "exists"),
  ],
)
def test_a_cache_that_others_can_write_to_is_not_used(
  cache_home, monkeypatch, caplog, spoil, reason
):
  jax.config.update("jax_compilation_cache_dir", None)
  spoil(cache_home / "byt5_diffusion" / "xla", monkeypatch)
  assert telemetry.enable_compilation_cache() is None
  assert "No compilation cache" in caplog.text and reason in caplog.text
  assert jax.config.jax_compilation_cache_dir is None


def test_a_directory_of_one_s_own(cache_home):
  path = telemetry.enable_compilation_cache(cache_home / "mine")
  assert pathlib.Path(path).parent == cache_home / "mine"
