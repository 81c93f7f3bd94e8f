"""prepare: what live data give, kept; TensorFlow is not needed to read it."""

import subprocess
import sys
import textwrap

import gin
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("seqio")

import toy_task

from byt5_diffusion import feature_converters, preparation
from byt5_diffusion.data import pipeline, records


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  toy_task.add("toy_prepared")
  path = tmp_path_factory.mktemp("prepared") / "set"
  preparation.prepare(
    mixture_or_task_name="toy_prepared",
    task_feature_lengths=toy_task.LENGTHS,
    output_dir=str(path),
    num_shards=3,
    show_progress=False,
  )
  return path


def _arguments(**options):
  return {
    "mixture_or_task_name": "toy_prepared",
    "task_feature_lengths": toy_task.LENGTHS,
    "split": "validation",
    "batch_size": 4,
    "shuffle": False,
    "num_epochs": 1,
  } | options


def test_every_example_is_kept(prepared):
  manifest = records.read_manifest(prepared)
  counts = {k: v["num_examples"] for k, v in manifest["splits"].items()}
  assert counts == toy_task.NUM_EXAMPLES
  assert manifest["features"] == {
    "image": {"dtype": "uint8", "shape": [4, 6, 3]},
    "text_tokens": {"dtype": "int32", "shape": [None]},
    "example_id": {"dtype": "uint32", "shape": [2]},
  }
  for split, count in counts.items():
    kept = records.Records(prepared, split).read(range(count))
    for index, example in enumerate(kept):
      for key, value in toy_task.example(index, split).items():
        assert example[key].dtype == value.dtype
        np.testing.assert_array_equal(example[key], value)


def test_live_and_prepared_batches_are_the_same_bits(prepared):
  live = list(pipeline.open_data(**_arguments()))
  read = list(pipeline.open_data(**_arguments(prepared_dir=str(prepared))))
  assert len(live) == len(read) == 21 // 4
  for left, right in zip(live, read, strict=True):
    assert left.keys() == right.keys()
    for key in left:
      assert left[key].dtype == right[key].dtype
      assert left[key].tobytes() == right[key].tobytes()


def test_reading_needs_neither_tensorflow_nor_seqio(prepared):
  program = textwrap.dedent("""
    import sys
    class Blocker:
      def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in (
          "tensorflow", "seqio", "tensorflow_datasets"):
          raise ImportError(name + " is blocked")
    sys.meta_path.insert(0, Blocker())
    from byt5_diffusion.data import pipeline
    arguments = dict(
      mixture_or_task_name="toy_prepared", split="train", batch_size=8,
      task_feature_lengths={"image": 4, "text_tokens": 12, "example_id": 2})
    data = pipeline.open_data(prepared_dir=sys.argv[1], **arguments)
    assert next(data)["images"].shape == (8, 4, 6, 3)
    state = data.get_state()
    data.set_state(state)
    next(data)
    assert not {"tensorflow", "seqio"} & set(sys.modules)
    try:
      pipeline.open_data(**arguments)
    except ImportError as error:
      assert "prepared_dir" in str(error), error
    else:
      sys.exit("live data were opened without TensorFlow")
  """)
  subprocess.run([sys.executable, "-c", program, str(prepared)], check=True)


READING = {
  "task_feature_lengths": {"patches": 12, "text_tokens": 12, "example_id": 2},
  "feature_converter_cls": feature_converters.ReadingFeatureConverter,
  "mixture_or_task_module": "byt5_diffusion.tasks.image_caption_folder",
}


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
  """The task of pictures to read, of many sizes, and its prepared set."""
  root = tmp_path_factory.mktemp("scans")
  rng = np.random.default_rng(0)
  for i in range(12):
    size = (*rng.integers(1, 40, 2), 3)
    Image.fromarray(rng.integers(0, 256, size).astype(np.uint8)).save(
      root / f"{i}.png"
    )
    (root / f"{i}.txt").write_text(f"scan {i}")
  name = f"image_caption_folder_reading:{root}@10x4"
  path = tmp_path_factory.mktemp("prepared") / "set"
  preparation.prepare(
    mixture_or_task_name=name,
    output_dir=str(path),
    num_shards=2,
    show_progress=False,
    **READING,
  )
  return name, path


def test_patches_are_kept_without_their_padding(scans):
  name, path = scans
  specs = records.read_manifest(path)["features"]
  assert list(specs) == ["patches", "text_tokens", "example_id"]
  assert specs["patches"] == {"dtype": "int16", "shape": [None, 50]}
  kept = records.Records(path, "train")
  counts = {len(e["patches"]) for e in kept.read(range(len(kept)))}
  assert len(counts) > 2 and max(counts) <= 10
  arguments = READING | {
    "mixture_or_task_name": name,
    "split": "train",
    "batch_size": 2,
    "shuffle": False,
    "num_epochs": 1,
  }
  live = list(pipeline.open_data(**arguments))
  read = list(pipeline.open_data(**arguments, prepared_dir=str(path)))
  assert len(live) == len(read) == len(kept) // 2
  for left, right in zip(live, read, strict=True):
    assert left["patches"].shape == (2, 12, 50)
    assert left.keys() == right.keys()
    for key in left:
      assert left[key].dtype == right[key].dtype
      assert left[key].tobytes() == right[key].tobytes()


def test_a_set_to_read_is_not_taken_for_one_to_draw(scans):
  name, path = scans
  arguments = {
    "mixture_or_task_name": name,
    "split": "train",
    "batch_size": 2,
    "prepared_dir": str(path),
  }
  with pytest.raises(ValueError, match="was prepared with task_feature_len"):
    pipeline.open_data(**arguments, task_feature_lengths=toy_task.LENGTHS)
  lengths = READING["task_feature_lengths"]
  with pytest.raises(ValueError, match="TASK_FEATURE_LENGTHS names"):
    pipeline.open_data(**arguments, task_feature_lengths=lengths)


@pytest.mark.parametrize("kind", ["live", "prepared"])
def test_gin_names_the_converter_by_reference(scans, kind):
  """Gin gives a class of its own making, which must serve both roads."""
  name, path = scans
  with gin.unlock_config():
    gin.clear_config()
    gin.parse_config(f"""
      from __gin__ import dynamic_registration
      from byt5_diffusion import feature_converters
      from byt5_diffusion.data import pipeline

      CLS = @feature_converters.ReadingFeatureConverter
      pipeline.open_data:
        mixture_or_task_name = "{name}"
        mixture_or_task_module = "{READING["mixture_or_task_module"]}"
        task_feature_lengths = {READING["task_feature_lengths"]}
        feature_converter_cls = %CLS
        prepared_dir = {str(path) if kind == "prepared" else None!r}
        split = "train"
        batch_size = 2
    """)
    try:
      data = gin.get_configurable("pipeline.open_data")()
      assert next(data)["patches"].shape == (2, 12, 50)
    finally:
      gin.clear_config()


def test_at_most_num_examples(tmp_path):
  toy_task.add("toy_prepared")
  manifest = preparation.prepare(
    mixture_or_task_name="toy_prepared",
    task_feature_lengths=toy_task.LENGTHS,
    output_dir=str(tmp_path / "set"),
    num_examples={"train": 7},
    num_shards=2,
    show_progress=False,
  )
  counts = {k: v["num_examples"] for k, v in manifest["splits"].items()}
  assert counts == {"train": 7, "validation": 21}


def test_mistakes_are_named_before_anything_is_written(tmp_path):
  toy_task.add("toy_prepared")
  arguments = {
    "mixture_or_task_name": "toy_prepared",
    "task_feature_lengths": toy_task.LENGTHS,
    "output_dir": str(tmp_path / "set"),
    "show_progress": False,
  }
  for change, message in [
    ({"mixture_or_task_name": "toyy"}, "is called 'toyy'"),
    ({"splits": ["test"]}, "has no split 'test'"),
    ({"task_feature_lengths": {"image": 4}}, "TASK_FEATURE_LENGTHS"),
    ({"task_feature_lengths": toy_task.LENGTHS | {"image": 5}}, "length 4"),
  ]:
    with pytest.raises(ValueError, match=message):
      preparation.prepare(**(arguments | change))
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [0, -1, {"train": 4, "validation": 0}])
def test_a_number_of_examples_is_positive(tmp_path, number):
  with pytest.raises(ValueError, match="num_examples = "):
    preparation.prepare(
      mixture_or_task_name="toy_prepared",
      task_feature_lengths=toy_task.LENGTHS,
      output_dir=str(tmp_path / "set"),
      num_examples=number,
    )
  assert not (tmp_path / "set").exists()
