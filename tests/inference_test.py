"""Drawing from a run's folder."""

import json
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image

from byt5_diffusion import (
  checkpoints,
  evaluation,
  feature_converters,
  inference,
  optimizers,
  partitioning,
  trainer,
  variables,
)
from byt5_diffusion.data import pipeline

BATCH = 8


class Finite(tiny.Batches):
  """Three batches."""

  def __next__(self) -> dict[str, np.ndarray]:
    if self._next == 3:
      raise StopIteration
    return super().__next__()


class Rows(tiny.Batches):
  """Eleven examples, however they are batched."""

  def __next__(self) -> dict[str, np.ndarray]:
    rows = slice(
      self._next * self._batch_size, (self._next + 1) * self._batch_size
    )
    self._next += 1
    batch = {k: v[:11][rows] for k, v in tiny.make_batch(16).items()}
    if len(batch["images"]) < self._batch_size:
      if self._next == 1:
        raise pipeline.EmptySplit("too small")
      raise StopIteration
    return batch


class Nothing(tiny.Batches):
  def __next__(self) -> dict[str, np.ndarray]:
    raise StopIteration


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """A frozen encoder's run of two steps."""
  folder = tmp_path_factory.mktemp("run")
  trainer.train(
    model=tiny.make_model(BATCH, freeze_text_encoder=True),
    train_data=tiny.Batches,
    learning_rate_fn=optimizers.constant(1e-2),
    partitioning=partitioning.Partitioning(),
    model_dir=str(folder),
    total_steps=2,
    batch_size=BATCH,
    checkpoint_period=1,
    log_period=2,
    random_seed=3,
  )
  return folder


@pytest.fixture(scope="module")
def generator(run_dir: pathlib.Path) -> inference.Generator:
  model = tiny.make_model(BATCH, freeze_text_encoder=True)
  restored = checkpoints.restore_params(run_dir)
  return inference.Generator(
    model=model,
    params=restored.params,
    frozen=variables.restore_frozen(restored.extra, run_dir),
    step=restored.step,
    batch_size=4,
  )


def test_images_depend_on_text_seed_and_nothing_else(
  generator: inference.Generator,
) -> None:
  texts = ["a", "b", "c", "a", "d", "e"]
  images = generator.generate(texts)
  assert images.shape == (6, tiny.HEIGHT, tiny.WIDTH, 3)
  assert images.dtype == np.uint8
  # Another order and another place in the batch: the same pictures.
  again = generator.generate(["e", "a", "b"])
  for image, same in zip(again, images[[5, 0, 1]], strict=True):
    assert np.abs(image.astype(int) - same.astype(int)).max() <= 1
  # A repeated text is drawn anew, another seed draws otherwise.
  assert not np.array_equal(images[0], images[3])
  assert not np.array_equal(generator.generate(["a"], seed=1)[0], images[0])


def test_generate_needs_a_text(generator: inference.Generator) -> None:
  with pytest.raises(ValueError, match="at least one text"):
    generator.generate([])


def test_very_long_captions_are_cut_and_drawn(
  generator: inference.Generator,
) -> None:
  images = generator.generate(["字" * 3_500_000, ""])
  assert images.shape[0] == 2


def test_to_pixels_is_exact_at_the_ends() -> None:
  values = np.array([-1.5, -1.0, 0.0, 1.0, 2.0])
  assert feature_converters.to_pixels(values).tolist() == [0, 0, 128, 255, 255]


def test_frozen_weights_are_checked(
  run_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
  extra = checkpoints.restore_params(run_dir).extra
  assert extra["frozen"]["path"] == "frozen"  # of the run, wherever it moves
  moved = tmp_path / "moved"
  shutil.copytree(run_dir, moved)
  trained = variables.restore_frozen(extra, run_dir)
  assert set(trained["frozen"]) == {"text_encoder"}
  assert tiny.leaves_equal(trained, variables.restore_frozen(extra, moved))
  other = jax.tree.map(lambda x: x + 1, trained["frozen"])
  shutil.rmtree(moved / "frozen")
  with pytest.raises(checkpoints.CheckpointError, match="frozen"):
    variables.restore_frozen(extra, moved)
  checkpoints.save_tree(moved / "frozen", other)
  with pytest.raises(checkpoints.CheckpointError, match="sha256"):
    variables.restore_frozen(extra, moved)


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    ({"path": None}, "no usable path"),
    ({"path": 5}, "no usable path"),
    ({"path": ""}, "no usable path"),
    ({"path": "frozen\0"}, "no usable path"),
    ({"path": "../run/frozen"}, "leaves the run's folder"),
    ({"path": "x/../../run/frozen"}, "leaves the run's folder"),
    ({"path": "/etc"}, "/etc"),
    ({"path": "f" * 1000}, "fff"),
    ({"path": "f" * 5000}, "no usable path"),
    ({"sha256": None}, "sha256"),
    ({"sha256": ""}, "sha256"),
    ({"sha256": "0" * 63}, "sha256"),
    ({"sha256": 5}, "sha256"),
  ],
)
def test_a_broken_record_of_frozen_weights_is_refused(
  run_dir: pathlib.Path, changes: dict[str, Any], says: str
) -> None:
  record = {**checkpoints.restore_params(run_dir).extra["frozen"], **changes}
  with pytest.raises(checkpoints.CheckpointError, match=says):
    variables.restore_frozen({"frozen": record}, run_dir)


@pytest.mark.parametrize("record", [{}, [], 5, "frozen"])
def test_no_record_at_all_of_frozen_weights_is_refused(
  run_dir: pathlib.Path, record: Any
) -> None:
  with pytest.raises(checkpoints.CheckpointError, match="frozen"):
    variables.restore_frozen({"frozen": record}, run_dir)


def test_frozen_weights_may_lie_elsewhere(run_dir: pathlib.Path) -> None:
  record = checkpoints.restore_params(run_dir).extra["frozen"]
  elsewhere = {**record, "path": str(run_dir.absolute() / "frozen")}
  assert tiny.leaves_equal(
    variables.restore_frozen({"frozen": elsewhere}, "/nowhere"),
    variables.restore_frozen({"frozen": record}, run_dir),
  )


def arguments(run_dir: pathlib.Path, **others: Any) -> dict[str, Any]:
  return {
    "model": tiny.make_model(BATCH, freeze_text_encoder=True),
    "partitioning": partitioning.Partitioning(),
    "checkpoint_path": str(run_dir),
    "batch_size": BATCH,
    **others,
  }


def test_infer_writes_an_image_beside_each_target(
  run_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
  path = inference.infer(
    infer_data=Rows,
    output_dir=str(tmp_path / "out"),
    **arguments(run_dir),
  )
  records = [json.loads(x) for x in path.read_text("utf-8").splitlines()]
  assert len(records) == 11  # the rest that fills no batch, too
  first = tiny.make_batch(16)["images"]
  for i, record in enumerate(records):
    assert record["step"] == 2
    drawn, target = (
      np.asarray(Image.open(path.parent / record[name]))
      for name in ("image", "target")
    )
    assert drawn.shape == target.shape == (tiny.HEIGHT, tiny.WIDTH, 3)
    assert np.array_equal(target, feature_converters.to_pixels(first[i]))
  # Other batches, the same pictures; fewer are the first ones.
  smaller = inference.infer(
    infer_data=Rows,
    output_dir=str(tmp_path / "smaller"),
    num_examples=5,
    **arguments(run_dir, batch_size=3),
  )
  assert len(smaller.read_text("utf-8").splitlines()) == 5
  for name in ("000000.png", "000004.png"):
    one, other = (
      np.asarray(Image.open(folder / name)).astype(int)
      for folder in (path.parent, smaller.parent)
    )
    assert np.abs(one - other).max() <= 1
  with pytest.raises(ValueError, match="the data are empty"):
    inference.infer(
      infer_data=Nothing,
      output_dir=str(tmp_path / "none"),
      **arguments(run_dir),
    )


@pytest.mark.slow
def test_evaluate_scores_a_step_the_same_way_twice(
  run_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
  def score(name: str, **others: Any) -> dict[str, float]:
    return evaluation.evaluate(
      validation_data=Finite,
      output_dir=str(tmp_path / name),
      **arguments(run_dir, **others),
    )

  first = score("a")
  assert first == score("b")
  assert {"loss", "loss/t=0.1", "loss/t=0.9"} <= set(first)
  levels = [v for k, v in first.items() if k.startswith("loss/")]
  np.testing.assert_allclose(first["loss"], np.mean(levels), rtol=1e-5)
  saved = json.loads((tmp_path / "a" / "metrics.json").read_text())
  assert saved["step"] == 2 and saved["loss"] == first["loss"]
  assert score("c", step=1) != first
  assert score("d", use_ema=False) != first
  with pytest.raises(ValueError, match="nothing to score"):
    evaluation.evaluate(
      validation_data=Nothing,
      output_dir=str(tmp_path / "e"),
      **arguments(run_dir),
    )


def test_a_small_split_is_validated_in_small_batches() -> None:
  model = tiny.make_model(16)
  params = tiny.make_variables(model)["params"]
  one = partitioning.Partitioning()
  validate = evaluation.make_validation(model, Rows, 16, 9, one)
  assert validate is not None
  metrics = validate(params, None)
  # Eleven examples make one batch of eight.
  batch = {k: jnp.asarray(v[:8]) for k, v in tiny.make_batch(16).items()}
  expected = evaluation.make_eval_step(model)(params, None, batch)
  np.testing.assert_allclose(
    metrics["loss"], expected["loss"].compute(), rtol=1e-5
  )
  assert evaluation.make_validation(model, Nothing, 16, 1, one) is None


def test_metrics_merge_over_batches_by_their_counts() -> None:
  model = tiny.make_model(BATCH)
  params = tiny.make_variables(model)["params"]
  batch = {k: jnp.asarray(v) for k, v in tiny.make_batch(BATCH).items()}
  parts = [
    jax.tree.map(lambda x, i=i: x[i], batch) for i in (slice(2), slice(2, 8))
  ]
  step = evaluation.make_eval_step(model)
  whole = evaluation.mean_metrics(lambda b: step(params, None, b), [batch])
  merged = evaluation.mean_metrics(lambda b: step(params, None, b), parts)
  for name, value in whole.items():
    np.testing.assert_allclose(merged[name], value, rtol=1e-5)
