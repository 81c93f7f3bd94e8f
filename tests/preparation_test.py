"""prepare: what live data give, kept; TensorFlow is not needed to read it."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest

pytest.importorskip("seqio")

import toy_task

from byt5_diffusion import preparation
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
