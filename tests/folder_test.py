"""A folder of pictures: pairing, splits, hostile names, and the whole task."""

import io
import json
import os
import re

import numpy as np
import pytest
from PIL import Image

from byt5_diffusion import feature_converters
from byt5_diffusion.data import (
  folder,
  images,
  patches,
  pictures,
  pipeline,
  rejections,
  text,
)

LENGTHS = {"image": 8, "text_tokens": 16, "example_id": 2}


def _png(level: int = 0) -> bytes:
  buffer = io.BytesIO()
  Image.new("RGB", (12, 8), (level, level, level)).save(buffer, "PNG")
  return buffer.getvalue()


def _fill(root, count: int, start: int = 0) -> None:
  for i in range(start, start + count):
    part = root / f"part{i % 3}"
    part.mkdir(parents=True, exist_ok=True)
    (part / f"{i:03d}.png").write_bytes(_png(i))
    (part / f"{i:03d}.txt").write_text(f"picture {i}\n", encoding="utf-8")


def _read(source, split, index):
  picture = pictures.Frame(height=8, width=12)
  return source.read(split, index, picture=picture, max_length=16)


def _all(source):
  return sorted(source.pairs["train"] + source.pairs["validation"])


def test_pairs_by_name(tmp_path):
  _fill(tmp_path, 40)
  (tmp_path / "notes.txt").write_text("no picture of this name")
  (tmp_path / ".hidden").mkdir()
  (tmp_path / ".hidden" / "x.png").write_bytes(_png())
  source = folder.FolderSource(tmp_path)
  pairs = _all(source)
  assert len(pairs) == 40
  assert pairs[0] == folder.Pair("part0/000.png", "picture 0")
  for split in folder.SPLITS:
    assert source.pairs[split] == sorted(source.pairs[split])
    for index, pair in enumerate(source.pairs[split]):
      example = _read(source, split, index)
      number = int(pair.file[6:9])
      np.testing.assert_array_equal(example["image"], number)
      assert text.decode(example["text_tokens"]) == f"picture {number}"
      np.testing.assert_array_equal(
        example["example_id"], feature_converters.example_id(pair.file)
      )


def test_captions_jsonl(tmp_path):
  _fill(tmp_path, 3)
  rows = [
    {"file": "part0/000.png", "caption": "猫"},
    {"file": "./part1/001.png", "caption": "  a dog ", "more": 1},
  ]
  lines = "\n\n".join(json.dumps(row) for row in rows)
  (tmp_path / "captions.jsonl").write_text(lines)
  assert _all(folder.FolderSource(tmp_path)) == [
    ("part0/000.png", "猫"),
    ("part1/001.png", "a dog"),
  ]


HOSTILE = [
  ("../secret.png", "stay inside"),
  ("/etc/passwd", "stay inside"),
  ("part0/../../secret.png", "stay inside"),
  ("link.png", "leads out"),
  ("part0/000.png\0", "stay inside"),
  ("", "stay inside"),
  (".", "stay inside"),
  ("x" * 5000, "name too long"),
  ("part0/none.png", "no such file"),
  ("part0", "not a regular file"),
  ("pipe.png", "not a regular file"),
  ("loop.png", "leads to itself|levels of symbolic links"),
  ("\ud800.png", "not a possible file name"),
  (7, "must be strings"),
]


@pytest.mark.parametrize(("file", "reason"), HOSTILE)
def test_captions_cannot_leave_the_folder(tmp_path, file, reason):
  (tmp_path / "secret.png").write_bytes(_png())
  root = tmp_path / "photos"
  _fill(root, 1)
  os.symlink(tmp_path / "secret.png", root / "link.png")
  os.symlink("loop.png", root / "loop.png")
  os.mkfifo(root / "pipe.png")
  (root / "captions.jsonl").write_text(
    json.dumps({"file": file, "caption": "a"})
  )
  with pytest.raises(rejections.TooManyRejections, match=reason):
    folder.FolderSource(root)


@pytest.mark.parametrize(
  "line",
  ["{", "[]", "3", '{"file": "a.png"}', "[" * 100_000, '{"file": 1e999}'],
)
def test_bad_lines_are_named(tmp_path, line):
  (tmp_path / "captions.jsonl").write_text(f"\n{line}\n")
  with pytest.raises(rejections.TooManyRejections, match=r"jsonl:2: not JSON"):
    folder.FolderSource(tmp_path)


def test_files_without_a_caption_are_named(tmp_path):
  _fill(tmp_path, 60)
  (tmp_path / "part0" / "000.txt").unlink()
  (tmp_path / "part1" / "001.txt").write_text(" \n")
  assert len(_all(folder.FolderSource(tmp_path))) == 58
  for i in range(3, 9):
    (tmp_path / f"part{i % 3}" / f"{i:03d}.txt").unlink()
  with pytest.raises(rejections.TooManyRejections) as caught:
    folder.FolderSource(tmp_path)
  assert "part0/000.png: no caption" in str(caught.value)
  assert len(_all(folder.FolderSource(tmp_path, max_rejected_share=0.5))) == 52


def _pipe(path):
  os.mkfifo(path)  # Opening it would never return.


def _loop(path):
  os.symlink(path.name, path)


def _outward(path):
  outside = path.parents[1] / f"outside{path.suffix}"
  outside.write_text("{}")
  os.symlink(outside, path)


NO_FILES = [
  (_pipe, "not a regular file"),
  (os.mkdir, "not a regular file"),
  (_loop, "leads to itself|levels of symbolic links"),
  (_outward, "leads out"),
  (lambda path: os.symlink("gone", path), "no such file"),
]


@pytest.mark.parametrize(("make", "reason"), NO_FILES)
def test_only_regular_files_are_opened(tmp_path, make, reason):
  root = tmp_path / "photos"
  _fill(root, 1)
  if make is not os.mkdir:  # A folder of this name is searched, as any.
    make(root / "picture.png")
    (root / "picture.txt").write_text("a")
  make(root / "caption.txt")
  (root / "caption.png").write_bytes(_png())
  with pytest.raises(rejections.TooManyRejections) as caught:
    folder.FolderSource(root)
  for name in {"picture.png", "caption.png"} & set(os.listdir(root)):
    assert re.search(rf"\n  {name}: .*({reason})", str(caught.value))
  source = folder.FolderSource(root, max_rejected_share=0.7)
  assert [pair.file for pair in _all(source)] == ["part0/000.png"]
  make(root / "captions.jsonl")
  with pytest.raises(ValueError, match=rf"captions\.jsonl .*({reason})"):
    folder.FolderSource(root, max_rejected_share=0.7)


def test_a_byte_order_mark_is_no_part_of_the_captions(tmp_path):
  _fill(tmp_path, 1)
  line = json.dumps({"file": "part0/000.png", "caption": "a"})
  (tmp_path / "captions.jsonl").write_text(line, encoding="utf-8-sig")
  assert _all(folder.FolderSource(tmp_path)) == [("part0/000.png", "a")]


def test_links_do_not_lead_out(tmp_path):
  (tmp_path / "secret.png").write_bytes(_png())
  (tmp_path / "secret.txt").write_text("secret")
  root = tmp_path / "photos"
  _fill(root, 2)
  os.symlink(tmp_path / "secret.png", root / "a.png")
  (root / "a.txt").write_text("a")
  (root / "b.png").write_bytes(_png())
  os.symlink(tmp_path / "secret.txt", root / "b.txt")
  os.symlink(root / "part0" / "000.png", root / "c.png")  # Stays inside.
  (root / "c.txt").write_text("c")
  os.symlink(tmp_path, root / "outside")
  source = folder.FolderSource(root, max_rejected_share=0.5)
  assert [pair.file for pair in _all(source)] == [
    "c.png",
    "part0/000.png",
    "part1/001.png",
  ]
  # A picture that becomes a link after the listing is refused when read.
  split = "train" if source.pairs["train"] else "validation"
  file = root / source.pairs[split][0].file
  file.unlink()
  os.symlink(tmp_path / "secret.png", file)
  with pytest.raises(images.BadImage, match="leads out"):
    _read(source, split, 0)


def test_splits_depend_on_paths_alone(tmp_path):
  _fill(tmp_path, 400)
  before = folder.FolderSource(tmp_path, validation_share=0.2).pairs
  assert 50 < len(before["validation"]) < 110
  _fill(tmp_path, 50, start=400)
  after = folder.FolderSource(tmp_path, validation_share=0.2).pairs
  for split in folder.SPLITS:
    assert set(before[split]) <= set(after[split])  # But see the next test.
  none = folder.FolderSource(tmp_path, validation_share=0.0).pairs
  assert len(none["train"]) == 450 and not none["validation"]


def test_two_pictures_give_both_splits(tmp_path):
  _fill(tmp_path, 2)
  source = folder.FolderSource(tmp_path)
  assert [len(source.pairs[split]) for split in folder.SPLITS] == [1, 1]


def test_the_listing_is_judged_as_a_whole_and_by_the_folder(tmp_path):
  pytest.importorskip("seqio")
  from byt5_diffusion.tasks import image_caption_folder

  for i in range(3):
    (tmp_path / f"{i}.png").write_bytes(_png())
  with pytest.raises(rejections.TooManyRejections) as caught:
    image_caption_folder.register(f"image_caption_folder:{tmp_path}@8x12")
  message = str(caught.value)
  assert f"{tmp_path} (listing): 3 of 3 records" in message
  assert "image_caption_folder_" not in message
  assert all(f"\n  {i}.png: no caption" in message for i in range(3))


def test_folders_without_pictures(tmp_path):
  with pytest.raises(ValueError, match="holds no pictures"):
    folder.FolderSource(tmp_path)
  with pytest.raises(ValueError, match="is not a folder"):
    folder.FolderSource(tmp_path / "absent")


def _open(name, **options):
  arguments = {
    "mixture_or_task_name": name,
    "task_feature_lengths": LENGTHS,
    "split": "train",
    "batch_size": 8,
  }
  return pipeline.open_data(**(arguments | options))


def _task(tmp_path, **options):
  pytest.importorskip("seqio")
  from byt5_diffusion.tasks import image_caption_folder

  name = f"folder_{tmp_path.name}"
  return image_caption_folder.task(
    folder=tmp_path, height=8, width=12, name=name, **options
  )


def test_task_trains_shuffles_and_resumes(tmp_path):
  _fill(tmp_path, 30)
  name = _task(tmp_path)
  assert _task(tmp_path) == name  # Again is no harm.
  with pytest.raises(ValueError, match="another `name`"):
    _task(tmp_path, fit="crop")
  count = len(folder.FolderSource(tmp_path).pairs["train"])
  data = _open(name)
  assert data.num_examples == count
  seen = [next(data) for _ in range(6)]
  state = data.get_state()
  rest = [next(data) for _ in range(3)]
  keys = [tuple(key) for batch in seen for key in batch["example_id"]]
  assert len(set(keys[:count])) == count  # Each picture once per epoch,
  assert keys[:count] != keys[count : 2 * count]  # in another order.
  again = _open(name)
  again.set_state(state)
  for batch in rest:
    repeated = next(again)
    for key in batch:
      np.testing.assert_array_equal(batch[key], repeated[key])
  assert seen[0]["images"].shape == (8, 8, 12, 3)


def _forget_task(name):
  """As in a new process."""
  import seqio

  from byt5_diffusion.tasks import image_caption_folder

  seqio.TaskRegistry.remove(name)
  del image_caption_folder._registered[name]


def test_a_folder_that_changed_is_not_gone_on_with(tmp_path):
  _fill(tmp_path, 30)
  name = _task(tmp_path)
  data = _open(name)
  next(data)
  saved, expected = data.get_state(), next(data)["example_id"]

  def resume():
    _forget_task(name)
    again = _open(_task(tmp_path))
    again.set_state(saved)
    return next(again)["example_id"]

  np.testing.assert_array_equal(resume(), expected)
  (tmp_path / "part0" / "000.txt").write_text("another caption")
  with pytest.raises(
    ValueError, match=r"of other data.*\n  fingerprint: saved"
  ):
    resume()
  (tmp_path / "part0" / "000.txt").write_text("picture 0")
  np.testing.assert_array_equal(resume(), expected)
  _fill(tmp_path, 10, start=30)
  with pytest.raises(ValueError, match=r"fingerprint: (.|\n)* num_examples: "):
    resume()


def test_task_skips_and_counts_bad_pictures(tmp_path):
  _fill(tmp_path, 60)
  bad = [pair.file for pair in folder.FolderSource(tmp_path).pairs["train"][:2]]
  for file in bad:
    (tmp_path / file).write_bytes(b"no picture")
  name = _task(tmp_path)
  data = _open(name, num_epochs=1, shuffle=False, batch_size=2)
  keys = {tuple(key) for batch in data for key in batch["example_id"]}
  assert not keys & {tuple(feature_converters.example_id(f)) for f in bad}
  summary = rejections.ledger(str(tmp_path)).summary()
  assert set(summary["names"]) == set(bad)
  assert (tmp_path / bad[0]).read_bytes() == b"no picture"


def test_too_many_bad_pictures_stop_the_run_with_the_reason(tmp_path):
  _fill(tmp_path, 40)
  for file in tmp_path.glob("part0/*.png"):
    file.write_bytes(b"")
  data = _open(_task(tmp_path))
  with pytest.raises(rejections.TooManyRejections, match=r"png: empty file"):
    for _ in range(20):
      next(data)


def test_one_name_says_folder_and_size(tmp_path):
  pytest.importorskip("seqio")
  _fill(tmp_path, 6)
  module = "byt5_diffusion.tasks.image_caption_folder"

  def data(name, **options):
    return _open(name, mixture_or_task_module=module, batch_size=2, **options)

  name = f"image_caption_folder:{tmp_path}@8x12"
  first = data(name)
  assert next(first)["images"].shape == (2, 8, 12, 3)
  other = data(f"image_caption_folder:{tmp_path}@8x20crop")
  assert next(other)["images"].shape == (2, 8, 20, 3)
  again = data(name)
  again.set_state(first.get_state())
  with pytest.raises(ValueError, match="task: saved"):
    other.set_state(first.get_state())
  for wrong, message in [
    ("image_caption_folder", "@64x64"),
    (f"image_caption_folder:{tmp_path}", "@64x64"),
    ("image_caption_folder:/nowhere@8x8", "/nowhere is not a folder"),
    (f"image_caption_folder:{tmp_path}@0x8", "height=0"),
    (f"image_caption_folder:{tmp_path}@9x9", "are 9 x 9 pixels"),
    ("something_else", "is called 'something_else'"),
  ]:
    with pytest.raises(ValueError, match=message):
      data(wrong)


READING = {
  "task_feature_lengths": {"patches": 20, "text_tokens": 16, "example_id": 2},
  "feature_converter_cls": feature_converters.ReadingFeatureConverter,
  "mixture_or_task_module": "byt5_diffusion.tasks.image_caption_folder",
}


def test_pictures_of_any_size_are_read(tmp_path):
  """Each at its own proportions, in one batch; a bad one is left out."""
  pytest.importorskip("seqio")
  from byt5_diffusion.tasks import image_caption_folder

  _fill(tmp_path, 6)
  rng = np.random.default_rng(0)
  for i, size in enumerate([(30, 7), (1, 90), (64, 64), (4, 3)]):
    pixels = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    (tmp_path / f"{i}.txt").write_text(f"size {i}")
  (tmp_path / "bad.png").write_bytes(b"no picture")
  (tmp_path / "bad.txt").write_text("bad")
  name = image_caption_folder.reading_task(
    folder=tmp_path,
    patch_size=4,
    max_patches=16,
    name=f"reading_{tmp_path.name}",
    max_rejected_share=0.5,
  )
  source = folder.FolderSource(tmp_path, max_rejected_share=0.5)
  assert "bad.png" in [pair.file for pair in source.pairs["train"]]
  expected = {
    pair.caption: patches.fit(images.decode_image(tmp_path / pair.file), 4, 16)
    for pair in source.pairs["train"]
    if pair.file != "bad.png"
  }
  data = _open(name, num_epochs=1, shuffle=False, batch_size=1, **READING)
  shapes = set()
  for batch in data:
    (rows,) = batch["patches"]
    wanted = expected.pop(text.decode(batch["text_tokens"][0]))
    assert rows.shape == (20, 2 + 3 * 4 * 4)
    assert rows[: len(wanted)].tobytes() == wanted.tobytes()
    assert not rows[len(wanted) :].any()
    shapes.add((*wanted[:, :2].max(0),))
  assert not expected
  assert len(shapes) > 3


def test_a_text_to_read_is_not_cut(tmp_path):
  """A caption may lose its end, what stands in the picture may not."""
  (tmp_path / "a.png").write_bytes(_png())
  (tmp_path / "a.txt").write_text("ab cd")
  source = folder.FolderSource(tmp_path, validation_share=0.0)

  def read(picture, max_length):
    example = source.read("train", 0, picture=picture, max_length=max_length)
    return text.decode(example["text_tokens"])

  frame = pictures.Frame(height=8, width=12)
  grid = pictures.PatchGrid(patch_size=4, max_patches=6)
  assert read(frame, 6) == read(grid, 6) == "ab cd"
  assert read(frame, 5) == "ab c"
  with pytest.raises(images.BadImage, match=r"a\.png: text longer than 4 byt"):
    read(grid, 5)


def test_names_of_folders_to_read(tmp_path):
  pytest.importorskip("seqio")
  _fill(tmp_path, 4)
  name = f"image_caption_folder_reading:{tmp_path}@16x4"
  batch = next(_open(name, **READING | {"batch_size": 4}))
  assert batch["patches"].shape == (4, 20, 50)
  for wrong, message in [
    ("image_caption_folder_reading", "@256x16"),
    (f"image_caption_folder_reading:{tmp_path}@16x4crop", "@256x16"),
    (f"image_caption_folder_reading:{tmp_path}@21x4", "up to 21 patches"),
    (f"image_caption_folder_reading:{tmp_path}@0x4", "max_patches=0"),
    (f"image_caption_folder_reading:{tmp_path}@16x0", "patch_size=0"),
  ]:
    with pytest.raises(ValueError, match=message):
      _open(wrong, **READING)
  with pytest.raises(ValueError, match="TASK_FEATURE_LENGTHS names"):
    _open(name, **READING | {"task_feature_lengths": LENGTHS})


def test_gin_names_the_folder_by_one_binding(tmp_path):
  pytest.importorskip("seqio")
  import gin

  _fill(tmp_path, 4)
  with gin.unlock_config():
    gin.clear_config()
    gin.parse_config(f"""
      from __gin__ import dynamic_registration
      from byt5_diffusion.data import pipeline
      from byt5_diffusion.tasks import image_caption_folder

      MIXTURE_OR_TASK_NAME = @image_caption_folder.task()
      image_caption_folder.task:
        folder = "{tmp_path}"
        height = 8
        width = 12
        name = "folder_by_gin"
      pipeline.open_data:
        mixture_or_task_name = %MIXTURE_OR_TASK_NAME
        task_feature_lengths = {LENGTHS}
        split = "train"
        batch_size = 2
    """)
    try:
      data = gin.get_configurable("pipeline.open_data")()
      assert next(data)["images"].shape == (2, 8, 12, 3)
      assert gin.query_parameter("image_caption_folder.task.height") == 8
    finally:
      gin.clear_config()
