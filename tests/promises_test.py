"""What users of T5X suffer from does not happen here: a test each.

Others are where their modules are: trainer_test.py (a last evaluation that
fails, lines of the log between evaluations, gradients and micro-batches),
hosts_test.py (a host that stays away), feature_converters_test.py (packing is
refused), kill_test.py (a killed run), assignment_test.py (weights renamed from
either layout of T5X's checkpoints).
"""

import inspect
import os
import pathlib
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import least
import numpy as np
import pytest
import tiny

from byt5_diffusion import checkpoints, config, stored_trees
from byt5_diffusion.data import pipeline

ROOT = pathlib.Path(__file__).resolve().parent.parent


def test_model_dir_may_be_relative(
  tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  (tmp_path / "below").mkdir()
  monkeypatch.chdir(tmp_path / "below")
  least.train("../here/run")
  monkeypatch.chdir(tmp_path)
  least.train("here/run", total_steps=2)
  assert checkpoints.committed_steps("here/run") == [1, 2]
  assert sorted(path.name for path in tmp_path.iterdir()) == ["below", "here"]


class Pictures(least.Model):
  """The least model, pulled by each batch's picture and caption in turn."""

  max_text_length = 12

  def input_shapes(self, batch_size: int = 1) -> dict[str, tuple[int, ...]]:
    return {"images": (batch_size, 4, 6, 3), "text_tokens": (batch_size, 12)}

  def eval_fn(self, params: Any, batch: Any, flax_mutables: Any = None) -> Any:
    # Weighted by row, so that the order inside of a batch counts, too.
    rows = jnp.arange(1.0, 1 + batch["images"].shape[0])[:, None]
    numbers = rows * jnp.mean(batch["images"], axis=(2, 3))
    numbers += rows * jnp.sum(batch["text_tokens"], axis=1, keepdims=True) / 999
    return super().eval_fn(params, {"numbers": numbers})


def test_data_go_on_where_they_were_shuffled_live_and_across_an_epoch(
  tmp_path: pathlib.Path,
) -> None:
  """Nothing is switched on for it: 50 examples, 10 steps of 8."""
  pytest.importorskip("seqio")
  import toy_task

  toy_task.add("promises")
  ids: list[int] = []

  class Noted:
    """Batches whose examples are written down, once a step takes them."""

    def __init__(self, **layout: Any):
      self._data = pipeline.open_data(
        mixture_or_task_name="promises",
        task_feature_lengths=toy_task.LENGTHS,
        split="train",
        num_streams=2,
        **layout,
      )
      self.get_state, self._began = self._data.get_state, False

    def set_state(self, saved: bytes) -> None:
      self._data.set_state(saved)
      self._began = True

    def __next__(self) -> Any:
      batch = next(self._data)
      if self._began:
        ids.extend(int(number) for number in batch["example_id"][:, 0])
      return batch

  def train(name: str, total_steps: int) -> Any:
    return least.train(
      tmp_path / name,
      total_steps=total_steps,
      model=Pictures(),
      train_data=Noted,
      checkpoint_period=5,
    )

  whole = train("whole", 10)
  expected, ids[:] = list(ids), []
  train("resumed", 5)
  resumed = train("resumed", 10)
  assert ids == expected and len(ids) == 80
  assert tiny.leaves_equal(resumed, whole)
  # Shuffled; the second epoch begins in the second half; every example came.
  assert ids[:50] != sorted(ids[:50]) and set(ids) == set(range(50))
  # Data from the start again would have been noticed.
  assert ids[40:] != ids[:40]


def test_caches_and_packing_are_off_unless_asked_for() -> None:
  defaults = inspect.signature(pipeline.open_data).parameters
  assert defaults["use_cached"].default is False
  assert "pack" not in defaults
  root = config.gin_root()
  for path in root.rglob("*.gin"):
    name = str(path.relative_to(root))
    if not name.startswith("runs/t5x"):
      text = path.read_text("utf-8")
      assert "use_cached" not in text and "pack " not in text, name


_MESH = """
import sys, conftest, jax, least
from byt5_diffusion import partitioning
where = partitioning.Partitioning(num_partitions=2)
assert dict(where.mesh.shape) == {"data": 4, "model": 2}, where.mesh
state = least.train(sys.argv[1], partitioning=where, total_steps=2,
                    model=least.Model({"a/kernel": (4, 6)}))
[kernel] = jax.tree.leaves(state.params)
assert len(kernel.sharding.device_set) == 8
assert kernel.addressable_shards[0].data.shape == (4, 3), kernel.sharding
"""


def test_num_partitions_counts_on_cpus(tmp_path: pathlib.Path) -> None:
  path = [str(ROOT), str(ROOT / "tests")]
  done = subprocess.run(
    [sys.executable, "-c", _MESH, str(tmp_path / "eight")],
    env=os.environ
    | {
      "PYTHONPATH": os.pathsep.join(path),
      "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    },
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  model = least.Model({"a/kernel": (4, 6)})
  one = least.train(tmp_path / "one", total_steps=2, model=model)
  eight = checkpoints.restore_params(tmp_path / "eight", ema=False).params
  [expected] = jax.tree.leaves(one.params)
  np.testing.assert_allclose(eight["a"]["kernel"], expected, atol=1e-6)


def test_parameters_that_do_not_fit_are_named_and_the_list_has_an_end(
  tmp_path: pathlib.Path,
) -> None:
  least.train(tmp_path, ema_decay=None)
  other = least.SHAPES | {"unet/in/kernel": (3, 6)}
  other = {k: v for k, v in other.items() if k != "unet/out/bias"}
  other |= {f"ocr/layer_{i}/kernel": (2, 2) for i in range(30)}
  with pytest.raises(checkpoints.CheckpointError) as error:
    least.train(
      tmp_path, total_steps=2, ema_decay=None, model=least.Model(other)
    )
  text = str(error.value)
  for part in (
    "90 missing from the checkpoint: ",
    "ocr/layer_0/kernel",
    " and 82 more",
    "3 unknown to this run: ",
    "params/unet/out/bias",
    "params/unet/in/kernel (stored float32[3, 5], wanted float32[3, 6])",
  ):
    assert part in text, text
  assert max(map(len, text.splitlines())) < 600
  assert stored_trees.some(["a"] * 9) == f"{', '.join('a' * 8)} and 1 more"
