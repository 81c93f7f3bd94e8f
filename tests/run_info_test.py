"""`info` says what is there, and takes nothing a folder says for granted."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import gin
import jax
import least
import numpy as np
import pytest

import byt5_diffusion
from byt5_diffusion import (
  assignment,
  checkpoints,
  cli,
  config,
  run_info,
  run_lock,
  stored_trees,
)

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Of least.SHAPES: 12 + 15 + 5.
PARTS = {
  "text_encoder": {"count": 12, "bytes": 48},
  "unet": {"count": 20, "bytes": 80},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """Three steps of the least run, as a recipe would have left it."""
  folder = tmp_path_factory.mktemp("info") / "run"
  outputs = ["MODEL_DIR='x'", "EVAL_OUTPUT_DIR='x'", "INFER_OUTPUT_DIR='x'"]
  program = config.parse(["experiments/tiny.gin"], outputs)
  least.train(folder, total_steps=3)
  config.write_configs(folder, program)
  gin.clear_config()
  (folder / "samples").mkdir()
  for step in (1, 12):
    (folder / "samples" / f"step_{step:08d}.png").write_bytes(b"x")
  return folder


@pytest.fixture
def copy(run: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
  return pathlib.Path(shutil.copytree(run, tmp_path / "run"))


def test_everything_is_said_of_a_run(run: pathlib.Path) -> None:
  found = run_info.describe(run)
  assert json.loads(json.dumps(found)) == found
  assert found["kind"] == "run" and found["steps"] == [1, 2, 3]
  assert "experiments/tiny.gin" in found["recipe"]
  assert "runs/train.gin" in found["recipe"]
  assert found["started_by"] == f"byt5_diffusion {byt5_diffusion.__version__}"
  files = [p for p in run.rglob("*") if p.is_file()]
  assert found["size_bytes"] == sum(p.stat().st_size for p in files)
  checkpoint = found["checkpoint"]
  assert checkpoint["step"] == 3 and checkpoint["format_version"] == 2
  assert checkpoint["package_version"] == byt5_diffusion.__version__
  assert checkpoint["parameters"] == PARTS
  assert checkpoint["averaged"] and checkpoint["average_bytes"] == 128
  # Two moments and a counter or two.
  assert 256 <= checkpoint["optimizer_bytes"] <= 280
  assert (checkpoint["batch_size"], checkpoint["random_seed"]) == (8, 0)
  assert checkpoint["data"] == {
    "processes": 1,
    "batches": 3,
    "streams": 2,
    "batch_size": 8,
  }
  assert found["metrics"]["train"]["step"] == 3
  assert found["metrics"]["train"]["loss"] > 0
  assert found["samples"] == {"count": 2, "latest": "step_00000012.png"}
  assert found["training_now"] is found["initial_checkpoint"] is None
  assert run_info.describe(run, step=1)["checkpoint"]["data"]["batches"] == 1


def test_the_text_has_it_too(run: pathlib.Path) -> None:
  text = run_info.text_of(run_info.describe(run))
  for part in (
    "recipe: experiments/tiny.gin",
    "complete checkpoints: 1, 2, 3",
    "step 3: format 2, by byt5_diffusion",
    "text_encoder: 12 parameters, 48 B",
    "average 128 B, optimizer 2",
    "last train (step 3): ",
    "samples: 2, last step_00000012.png",
  ):
    assert part in text, text


def test_frozen_networks_and_where_a_run_started(
  run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
  model = least.Model(frozen="text_encoder")
  rules = [("(.*)", "\\1")]
  initial = assignment.InitialCheckpoint(path=str(run), rules=rules)
  folder = tmp_path / "tuned"
  least.train(
    folder,
    model=model,
    initial_checkpoint=initial,
    frozen_checkpoint=initial,
    ema_decay=None,
  )
  found = run_info.describe(folder)
  frozen = found["checkpoint"]["frozen"]
  tree = checkpoints.load_tree(folder / "frozen")
  assert frozen["sha256"] == checkpoints.tree_sha256(tree)
  assert frozen["present"] and frozen["path"] == str(folder / "frozen")
  assert frozen["parameters"] == {"text_encoder": PARTS["text_encoder"]}
  assert found["checkpoint"]["parameters"] == {"unet": PARTS["unet"]}
  assert not found["checkpoint"]["averaged"]
  taken = found["initial_checkpoint"]
  assert (taken["taken"], taken["fresh"], taken["unused"]) == (2, 0, 1)
  assert f"started from averaged weights of {run}" in run_info.text_of(found)
  shutil.rmtree(folder / "frozen")
  gone = run_info.describe(folder)
  assert not gone["checkpoint"]["frozen"]["present"]
  assert f"{folder}/frozen GONE" in run_info.text_of(gone)


def test_other_things_that_hold_weights(
  run: pathlib.Path, tmp_path: pathlib.Path, shared_data: pathlib.Path
) -> None:
  checkpoints.save_tree(tmp_path / "t", {"a": {"w": np.zeros((2, 3))}})
  found = run_info.describe(tmp_path / "t")
  assert found["kind"] == "tree"
  assert found["parameters"] == {"a": {"count": 6, "bytes": 48}}
  assert "a: 6 parameters" in run_info.text_of(found)
  one = run_info.describe(run / "checkpoint_2")
  assert one["kind"] == "averaged weights of" and one["parameters"] == PARTS
  for kind in ("legacy", "orbax"):
    theirs = run_info.describe(shared_data / "fixtures" / "t5x" / kind)
    assert theirs["kind"] == f"T5X checkpoint ({kind})"
    assert {"token_embedder", "encoder"} <= set(theirs["parameters"])


def test_one_set_of_weights_has_no_steps(
  run: pathlib.Path,
  tmp_path: pathlib.Path,
  shared_data: pathlib.Path,
  capsys: pytest.CaptureFixture[str],
) -> None:
  checkpoints.save_tree(tmp_path / "tree", {"a": {"w": np.zeros((2, 3))}})
  theirs = shared_data / "fixtures" / "t5x" / "legacy"
  ones = (tmp_path / "tree", run / "checkpoint_2", theirs / "checkpoint_3")
  for path in ones:
    with pytest.raises(checkpoints.CheckpointError, match="leave out the step"):
      run_info.describe(path, step=2)
  assert run_info.describe(theirs, step=3)["kind"] == "T5X checkpoint (legacy)"
  assert cli.main(["info", str(tmp_path / "tree"), "--step", "2"]) == 2
  said = capsys.readouterr()
  assert said.out == "" and said.err.count("\n") == 1


def test_a_run_that_is_training_or_has_only_begun(copy: pathlib.Path) -> None:
  with run_lock.held(copy):
    found = run_info.describe(copy)
    assert f"process {os.getpid()} on" in found["training_now"]
    assert "being trained now (process" in run_info.text_of(found)
  assert run_info.describe(copy)["training_now"] is None
  for step in (1, 2, 3):
    shutil.rmtree(copy / f"checkpoint_{step}")
  found = run_info.describe(copy)
  assert found["steps"] == [] and "checkpoint" not in found
  assert "complete checkpoints: none yet" in run_info.text_of(found)


def test_no_array_is_read(copy: pathlib.Path, monkeypatch: Any) -> None:
  """Not even where they are damaged: only descriptions are looked at."""
  read = stored_trees.read
  seen = []

  def note(item: Any, wanted: Any) -> Any:
    seen.append(item.name)
    return read(item, wanted)

  monkeypatch.setattr(stored_trees, "read", note)
  assert run_info.describe(copy)["checkpoint"]["parameters"] == PARTS
  assert set(seen) == {"data"}


def test_without_tensorflow_by_the_command(run: pathlib.Path) -> None:
  code = """
import sys
names = ("tensorflow", "tensorflow_text", "tensorflow_datasets", "seqio")
sys.modules.update(dict.fromkeys(names))
from byt5_diffusion import cli
sys.exit(cli.main(sys.argv[1:]))
"""
  done = subprocess.run(
    [sys.executable, "-c", code, "info", str(run), "--json"],
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert json.loads(done.stdout)["checkpoint"]["parameters"] == PARTS


# --- Hostile folders. ---


def edit_extra(folder: pathlib.Path, **changes: Any) -> None:
  path = folder / "checkpoint_3/extra/metadata"
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def nothing(folder: pathlib.Path) -> None:
  shutil.rmtree(folder)
  folder.mkdir()


def newer(folder: pathlib.Path) -> None:
  edit_extra(folder, format_version=99)


def other_program(folder: pathlib.Path) -> None:
  edit_extra(folder, format="x")


def foreign(folder: pathlib.Path) -> None:
  (folder / "checkpoint_9").mkdir()
  (folder / "checkpoint_9" / "model.bin").write_text("x")


def broken_state(folder: pathlib.Path) -> None:
  (folder / "checkpoint_3/state/_METADATA").write_text("{}")


def climbing(folder: pathlib.Path) -> None:
  edit_extra(folder, extra={"frozen": {"path": "../x", "sha256": "0" * 64}})


def no_record(folder: pathlib.Path) -> None:
  edit_extra(folder, extra={"frozen": [1]})


def huge(folder: pathlib.Path) -> None:
  os.truncate(folder / "checkpoint_3/extra/metadata", 65 * 2**20)


def gone(folder: pathlib.Path) -> None:
  shutil.rmtree(folder)


@pytest.mark.parametrize(
  "spoil",
  [
    *(nothing, newer, other_program, foreign, broken_state),
    *(climbing, no_record, huge, gone),
  ],
)
def test_a_hostile_folder_gives_one_line(
  copy: pathlib.Path, capsys: pytest.CaptureFixture[str], spoil: Any
) -> None:
  spoil(copy)
  assert cli.main(["info", str(copy)]) == 2
  said = capsys.readouterr()
  assert said.out == "" and said.err.startswith("Error: ")
  assert said.err.count("\n") == 1, said.err


def test_files_that_say_nonsense_are_passed_by(copy: pathlib.Path) -> None:
  record = "[" * 10_000 + "\n" + '{"step": "x", "a/b": 1}\n[1]\n{"a/b": 1}\n'
  record += '{"step": Infinity, "a/b": 1}\n'
  good = '{"step": 5, "train/\x1b[31mloss": 2.0}\n'.replace("\x1b", "\\u001b")
  (copy / "metrics.jsonl").write_text(record + good + '{"step": 6, "tr')
  # A pattern that backs up over spaces would take hours.
  config_gin = b"# " + b"flattened from " * 2000 + b"\t" * 30_000
  (copy / "config.gin").write_bytes(config_gin)
  (copy / "initial_checkpoint.json").write_text("[1]")
  edit_extra(copy, extra={"batch_size": "\x1b[2J", "random_seed": [1]})
  found = run_info.describe(copy)
  assert found["recipe"] == [] and found["initial_checkpoint"] is None
  assert found["metrics"] == {"train": {"step": 5, "\x1b[31mloss": 2.0}}
  text = run_info.text_of(found)
  assert "\x1b" not in text and "loss 2" in text


def test_a_stranger_s_values_are_short_and_stay_in_their_line(
  copy: pathlib.Path,
) -> None:
  """In the text as well as in JSON, and without a line of their own."""
  edit_extra(
    copy,
    package_version="\nstep 9: fine" + "v" * 10**6,
    extra={"batch_size": 10**4000, "random_seed": [["x" * 10**6]]},
  )
  initial = {"source": "s" * 10**6, "taken": [], "fresh": [], "unused": []}
  (copy / "initial_checkpoint.json").write_text(json.dumps(initial))
  record = {"step": 5, "train/" + "loss" * 10**4: 2.0, "a\nb/c": 1.0}
  (copy / "metrics.jsonl").write_text(json.dumps(record) + "\n")
  found = run_info.describe(copy)
  checkpoint = found["checkpoint"]
  assert checkpoint["batch_size"] == "an integer of 13288 bits"
  assert checkpoint["random_seed"] == "a list"
  assert len(checkpoint["package_version"]) == 83
  assert len(json.dumps(found)) < 60_000
  lines = run_info.text_of(found).split("\n")
  assert max(map(len, lines)) < 5000
  assert "  last a\ufffdb (step 5): c 1" in lines
  assert not any(line.startswith(("step 9", "b ")) for line in lines)


def test_where_the_data_stood_is_bounded_too(
  copy: pathlib.Path, monkeypatch: Any
) -> None:
  header = {"identity": {"task": "t" * 10**6}, "num_batches": 3, "streams": []}
  monkeypatch.setattr(run_info.state_lib, "unpack", lambda x: (header, {}))
  task = run_info.describe(copy)["checkpoint"]["data"]["task"]
  assert task == "t" * 80 + "..."


def test_of_a_long_log_the_end_counts(copy: pathlib.Path) -> None:
  lines = [json.dumps({"step": i, "train/loss": i / 2}) for i in range(9999)]
  (copy / "metrics.jsonl").write_text("\n".join(lines) + "\n")
  assert run_info.describe(copy)["metrics"] == {
    "train": {"step": 9998, "loss": 4999.0}
  }


def test_a_step_that_is_not_there(run: pathlib.Path) -> None:
  with pytest.raises(checkpoints.CheckpointError, match=r"step 7; it has \[1"):
    run_info.describe(run, step=7)
  assert jax.process_count() == 1
