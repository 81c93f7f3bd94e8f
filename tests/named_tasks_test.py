"""A task's name is enough to look at its data."""

import numpy as np
import pytest
from PIL import Image

from byt5_diffusion import inspection, named_tasks
from byt5_diffusion.data import live, supplies
from byt5_diffusion.tasks import wit


def test_a_name_has_the_lengths_of_its_features(tmp_path):
  for i in range(4):
    Image.new("RGB", (8, 6), (i, 0, 0)).save(tmp_path / f"{i}.png")
    (tmp_path / f"{i}.txt").write_text(f"picture {i}", "utf-8")
  name = f"image_caption_folder:{tmp_path}@12x20"
  view = inspection.inspect(name, num_batches=1)
  assert view.shapes["images"] == ((16, 12, 20, 3), "float32")
  assert {row.text for row in view.rows} <= {f"picture {i}" for i in range(4)}
  reading = f"image_caption_folder_reading:{tmp_path}@9x4"
  lengths = named_tasks.arguments(reading)["train_data"].keywords
  assert lengths["task_feature_lengths"]["patches"] == 9


def test_a_seed_says_which_examples_come():
  views = [
    inspection.inspect("typography_words_tiny", num_batches=1, seed=seed)
    for seed in (1, 1, 2)
  ]
  ids = [
    np.stack([row.arrays["example_id"] for row in view.rows]) for view in views
  ]
  assert np.array_equal(ids[0], ids[1])
  assert not np.array_equal(ids[0], ids[2])


@pytest.mark.parametrize("name", ["no_such_task:/data@8x8", "no_such_task"])
def test_another_name_is_told_with_the_kinds_there_are(name):
  with pytest.raises(ValueError, match="neither a gin file nor a task"):
    inspection.inspect(name)


def test_prompts_have_a_split_to_test_by_alone(tmp_path):
  (tmp_path / "one_word.txt").write_text("began\nchose\n", "utf-8")
  name = f"drawtext:{tmp_path}@8x8"
  view = inspection.inspect(name, split="test", num_batches=1)
  assert [row.text for row in view.rows] == [
    f'A sign with the word "{word}" written on it.'
    for word in ("began", "chose")
  ]
  with pytest.raises(ValueError, match=r"no split 'train', only \['test'\]"):
    inspection.inspect(name)


@pytest.mark.parametrize(
  ("option", "wanted"),
  [
    ("main_images_only=yes", "true or false, not 'yes'"),
    ("min_side=1.5", "a whole number, not '1.5'"),
    ("max_aspect=wide", "a number, not 'wide'"),
    ("max_aspect=nan", "a number, not 'nan'"),
    ("validation_share=1e999", "a number, not '1e999'"),
  ],
)
def test_an_options_value_is_of_its_kind(option, wanted):
  with pytest.raises(ValueError, match=wanted):
    supplies.parse(wit.TABLE, f"wit:/nowhere@8x8+{option}")


def test_a_split_that_is_not_there_is_named_as_the_user_has_named_the_data(
  tmp_path,
):
  Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
  (tmp_path / "a.txt").write_text("one picture", "utf-8")
  name = f"image_caption_folder:{tmp_path}@8x8"
  with pytest.raises(ValueError, match=f"'{name}' has no split 'validation'"):
    live.load(name, "byt5_diffusion.tasks.image_caption_folder", "validation")
