"""What is odd in published files, in the batches of their own tasks."""

import json
import pathlib
from collections.abc import Sequence

import numpy as np
import pytest

pytest.importorskip("seqio")
pytest.importorskip("pyarrow")

import laion_test
import toy_pages
import wit_test
from PIL import Image

from byt5_diffusion import feature_converters
from byt5_diffusion.data import annotated, pipeline

_LENGTHS = {"image": 32, "text_tokens": 256, "example_id": 2}


@pytest.fixture(autouse=True)
def cache(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _batch(
  name: str, module: str, size: int, **options: object
) -> dict[str, np.ndarray]:
  """The only batch of one pass: as many examples as the data have."""
  data = pipeline.open_data(
    mixture_or_task_name=name,
    mixture_or_task_module=f"byt5_diffusion.tasks.{module}",
    task_feature_lengths=options.pop("lengths", _LENGTHS),
    split="train",
    batch_size=size,
    shuffle=False,
    num_epochs=1,
    **options,
  )
  batches = list(data)
  data.close()
  assert len(batches) == 1
  return batches[0]


def _texts(tokens: np.ndarray) -> list[str]:
  return [bytes((row[row > 2] - 3).astype(np.uint8)).decode() for row in tokens]


def _levels(images: np.ndarray) -> np.ndarray:
  """Mean level of every row of pixels, [batch, height]."""
  return (images.mean(axis=(2, 3)) + 1) * 127.5


def test_pictures_of_all_modes_and_null_captions_of_laion(
  tmp_path: pathlib.Path,
) -> None:
  modes: Sequence[tuple[str, str]] = laion_test.MODES
  rows = [
    (laion_test.known(i), laion_test.picture(mode, form))
    for i, (mode, form) in enumerate(modes)
  ]
  rows.append(
    (laion_test.known(len(modes), caption=None), laion_test.picture())
  )
  folder = laion_test.folder_of(tmp_path, rows)
  name = f"laion_high_resolution:{folder}@32x40+validation_share=0.0"
  batch = _batch(name, "laion", len(modes))
  assert _texts(batch["text_tokens"]) == [
    f"A sign that says number {i}" for i in range(len(modes))
  ]
  levels = _levels(batch["images"])  # Black at the top, white at the bottom.
  assert (levels[:, 0] < 30).all() and (levels[:, -1] > 225).all()


def test_booleans_nulls_and_pictures_of_wit(tmp_path: pathlib.Path) -> None:
  """No caption may come of what is not there, or of another language."""
  urls = [f"https://u.example/{i}.jpg" for i in range(3)]
  page = wit_test.page
  rows = [
    wit_test.base(
      urls[0],
      [
        page("en", "A dog that reads"),
        page("de", None),
        page("fr", "Un chien qui lit"),
      ],
      image={"bytes": laion_test.picture("CMYK"), "path": None},
    ),
    wit_test.base(urls[1], [page("en", None)]),
    wit_test.base(
      urls[2],
      [
        page("it", None, attribution_passes_lang_id=False),
        page("es", "Un gato que duerme"),
      ],
      image={"bytes": laion_test.picture("RGBA", "PNG"), "path": None},
      caption_attribution_description="English: Cats sleep all day",
    ),
  ]
  path = wit_test.base_file(tmp_path / "x.parquet", rows)
  name = f"wit:{path}@32x40+validation_share=0.0"
  batch = _batch(name, "wit", 3)
  assert sorted(_texts(batch["text_tokens"])) == [
    "A dog that reads", "Un chien qui lit", "Un gato que duerme",
  ]  # fmt: skip
  levels = _levels(batch["images"])
  assert (levels[:, 0] < 30).all() and (levels[:, -1] > 225).all()
  assert len(np.unique(batch["example_id"], axis=0)) == 3


def test_words_false_of_wits_table_are_no_truth(
  tmp_path: pathlib.Path,
) -> None:
  rows = [
    wit_test.use(image_url="a", is_main_image="false"),
    wit_test.use(
      image_url="b", caption_reference_description="A bridge over a river"
    ),
    wit_test.use(image_url="c", caption_reference_description=""),
  ]
  path = wit_test.tsv(tmp_path / "x.tsv.gz", rows)
  folder = wit_test.fetched(tmp_path / "images", ["a", "b", "c"])
  name = (
    f"wit:{path}@32x48+images={folder}+validation_share=0.0"
    "+main_images_only=true"
  )
  batch = _batch(name, "wit", 1)
  assert _texts(batch["text_tokens"]) == ["A bridge over a river"]


def test_repeats_squares_and_modes_of_doclaynet(tmp_path: pathlib.Path) -> None:
  folder = toy_pages.doclaynet(tmp_path, count=2)
  for number, mode in ((0, "RGBA"), (1, "P")):
    path = folder / "PNG" / f"page{number}.png"
    Image.open(path).convert(mode).save(path)
  coco = folder / "COCO" / "train.json"
  found = json.loads(coco.read_text())
  found["images"].append(toy_pages.image(50, "page0.png", precedence=1))
  found["annotations"].append(
    toy_pages.annotation(901, 0, "Table", (0, 0, 600, 700), precedence=2)
  )
  # A box that leaves the page by a third, as published ones do by a little.
  found["annotations"].append(
    toy_pages.annotation(902, 0, "Table", (600, 620, 624, 700))
  )
  coco.write_text(json.dumps(found))
  lengths = _LENGTHS | {
    "image": 64,
    "region_mask": 64,
    "style": 14,
    "language": 1,
  }
  lengths |= dict.fromkeys(("boxes", "box_labels", "box_spans"), 8)
  batch = _batch(
    f"document_layout_annotated:{folder}@64x64",
    "document_layout",
    2,
    lengths=lengths,
    feature_converter_cls=feature_converters.AnnotatedFeatureConverter,
  )
  assert (batch["box_labels"] > 0).sum(axis=1).tolist() == [6, 5]
  # 612 x 792 points on 64 x 64 pixels: paper is left at both sides.
  scale, free = 1 / 792, (1 - 612 / 792) / 2
  title = annotated.LABELS.index("title")
  for boxes, labels, image in zip(
    batch["boxes"], batch["box_labels"], batch["images"], strict=True
  ):
    box = boxes[labels == title][0]
    wanted = [free + 100 * scale, 20 * scale, free + 500 * scale, 50 * scale]
    assert box == pytest.approx(wanted, abs=1 / 64)
    left, top, right, bottom = np.round(box * 64).astype(int)
    assert image[top:bottom, left + 1 : right - 1].max() < 0  # Black.
    assert image[:, :6].min() > 0.9  # White.
  cut = batch["boxes"][0][
    batch["box_labels"][0] == annotated.LABELS.index("table")
  ]
  assert cut[0, 2] == pytest.approx(1 - free, abs=1 / 64)
