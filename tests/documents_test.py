"""Documents in their published formats, and all that can be wrong in them."""

import json
import logging
import os

import numpy as np
import pytest
import toy_pages
from PIL import Image

from byt5_diffusion import feature_converters, layout_scores
from byt5_diffusion.data import (
  annotated,
  images,
  rejections,
)
from byt5_diffusion.data.rows import json_stream
from byt5_diffusion.data.sets import (
  coco,
  document_supplies,
  documents,
  docvqa,
  layout_text,
  reading_order,
)
from byt5_diffusion.data.writing import (
  fonts,
  paragraphs,
  rasterizers,
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
  # Fonts lie in the cache, too.
  monkeypatch.setenv("BYT5_DIFFUSION_FONTS", str(fonts.cache_dir()))
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def doclaynet(tmp_path):
  return toy_pages.doclaynet(tmp_path / "doclaynet")


def edited(path, edit):
  """Changes a JSON file."""
  value = json.loads(path.read_text())
  edit(value)
  path.write_text(json.dumps(value))


# --- Big JSON ----------------------------------------------------------------


def test_elements_come_one_by_one(tmp_path, monkeypatch):
  value = {
    "info": {"a": [1, {"images": [1]}]},
    "images": [{"s": "x" * 50, "n": i, "t": "é ☃"} for i in range(40)],
    "licenses": [[], {}],
    "annotations": [12345, "a,]}", -1.5e3, None, [1, [2]]],
    "empty": [],
  }
  path = tmp_path / "a.json"
  path.write_text("\ufeff" + json.dumps(value, indent=1), "utf-8")
  wanted = [("images", one) for one in value["images"]]
  wanted += [("annotations", one) for one in value["annotations"]]
  for chunk in (1, 7, 64, 2**20):  # Wherever the file is cut.
    monkeypatch.setattr(json_stream, "_CHUNK", chunk)
    keys = ("images", "annotations", "empty", "absent")
    assert list(json_stream.elements(path, keys)) == wanted


@pytest.mark.parametrize(
  ("raw", "reason"),
  [
    (b"", "cut off"),
    (b"[]", "no JSON"),
    (b'{"images": 7}', "no list"),
    (b'{"images": [1, 2', "cut off"),
    (b'{"images": [1 2]}', "no JSON"),
    (b'{"images": [{"a": ]}', "no JSON"),
    (b"{1: []}", "no string"),
    (b'{"images": ["\xff"]}', "not UTF-8"),
    (b'{"images": [' + b"[" * 100_000, "no JSON"),
    (b'{"images": [' + b"9" * 5_000 + b"]}", "no JSON"),
  ],
)
def test_what_is_no_json_is_refused(tmp_path, raw, reason):
  path = tmp_path / "a.json"
  path.write_bytes(raw)
  with pytest.raises(json_stream.BrokenJson, match=f"a.json: .*{reason}"):
    list(json_stream.elements(path, ("images",)))


def test_an_element_may_not_fill_the_memory(tmp_path, monkeypatch):
  monkeypatch.setattr(json_stream, "_CHUNK", 64)
  monkeypatch.setattr(json_stream, "MAX_ELEMENT", 1000)
  path = tmp_path / "a.json"
  path.write_text('{"images": ["' + "x" * 10_000 + '"]}')
  with pytest.raises(json_stream.BrokenJson, match="more than 1000 characters"):
    list(json_stream.elements(path, ("images",)))
  with pytest.raises(json_stream.BrokenJson, match="more than 100 bytes"):
    json_stream.load(path, 100)


# --- Reading order -----------------------------------------------------------


def test_columns_are_read_one_after_the_other():
  title, left, left2, right, foot = (
    (0, 0, 100, 10),
    (0, 20, 45, 40),
    (0, 45, 45, 90),
    (55, 20, 100, 42),
    (0, 95, 100, 99),
  )
  right2 = (55, 45, 100, 90)  # Ends and begins where the left ones do.
  boxes = [foot, right2, left2, title, right, left]
  assert reading_order.order(boxes) == [3, 5, 2, 4, 1, 0]


def test_right_to_left_pages_begin_at_the_right():
  title, left, right = (0, 0, 99, 9), (0, 20, 45, 60), (55, 20, 99, 70)
  boxes = [left, right, title]
  assert reading_order.order(boxes) == [2, 0, 1]
  assert reading_order.order(boxes, right_to_left=True) == [2, 1, 0]
  words = [((0, 0, 40, 10), "عليكم"), ((50, 0, 90, 10), "السلام")]
  assert reading_order.text_of(words) == "السلام عليكم"
  assert reading_order.is_right_to_left("שלום 123 a")
  assert not reading_order.is_right_to_left("123")


@pytest.mark.parametrize("count", [0, 1, 300])
def test_every_box_is_read_once(count):
  rng = np.random.default_rng(count)
  boxes = [(x, y, x + 0.3, y + 0.3) for x, y in rng.uniform(0, 1, (count, 2))]
  assert sorted(reading_order.order(boxes)) == list(range(count))
  stairs = [(i, i, i + 1, i + 1) for i in range(count)]
  assert reading_order.order(stairs) == list(range(count))


def test_words_are_joined_as_they_stand():
  words = [
    ((60, 0, 90, 10), "wor"),
    ((90, 1, 99, 11), "ld"),  # Touches: the same word.
    ((0, 2, 50, 12), "hello"),
    ((0, 14, 20, 24), " again "),
    ((30, 14, 40, 24), "  "),
  ]
  assert reading_order.text_of(words) == "hello world\nagain"


# --- DocLayNet ---------------------------------------------------------------


def test_doclaynet_is_read_with_its_proportions(doclaynet):
  supply = document_supplies.segmentation(str(doclaynet))
  assert dict(supply.sizes) == {"train": 2, "validation": 1}
  page = supply.read("train", 1)
  assert page.key == "doclaynet/page1.png"
  # Not a square any more: the longer side has kept its pixels.
  height, width = page.image.shape[:2]
  assert height == toy_pages.SIDE
  assert width == round(toy_pages.SIDE * toy_pages.WIDTH / toy_pages.HEIGHT)
  # Black is where the boxes are, and nowhere else.
  scale = height / toy_pages.HEIGHT
  shown = {region.label: region.box for region in page.regions}
  wanted = {kind.lower(): box for kind, box, _ in toy_pages.PAGE}
  for label in ("title", "picture", "page-footer"):
    assert np.allclose(shown[label], np.array(wanted[label]) * scale, atol=0.6)
  mask = np.ones((height, width), bool)
  for left, top, right, bottom in shown.values():
    inner = page.image[int(top) + 2 : int(bottom) - 2]
    assert inner[:, int(left) + 2 : int(right) - 2].max() < 20
  for region in page.regions:
    left, top, right, bottom = region.box
    mask[int(top) - 2 : int(bottom) + 3, int(left) - 2 : int(right) + 3] = False
  assert page.image[mask].min() > 230


def test_boxes_are_written_in_reading_order(doclaynet):
  page = document_supplies.segmentation(str(doclaynet)).read("train", 0)
  found = layout_text.parse(page.text)
  labels = [part.label for part in found]
  assert labels == ["title", "text", "text", "picture", "page-footer"]
  assert found[1].box[0] < found[2].box[0]  # The left column first.
  assert found[0].box == pytest.approx(
    (100 / 612, 20 / 792, 500 / 612, 50 / 792), abs=0.6 / 999
  )
  texts = document_supplies.segmentation(str(doclaynet), texts=True)
  first = texts.read("train", 0).text.split("\n")
  assert first[0].endswith(" The Title")
  assert first[1].endswith(" left one left two")
  assert layout_text.parse("\n".join(first), texts=True)[4].text == "7"


def test_repeats_are_left_out(doclaynet):
  def repeat(file):
    file["images"].append(toy_pages.image(50, "page0.png", precedence=1))
    box = (0, 0, 600, 700)
    file["annotations"] += [
      toy_pages.annotation(900, 50, "Table", box),
      toy_pages.annotation(901, 0, "Table", box, precedence=2),
    ]

  edited(doclaynet / "COCO" / "train.json", repeat)
  supply = document_supplies.segmentation(str(doclaynet))
  assert supply.sizes["train"] == 2
  labels = [region.label for region in supply.read("train", 0).regions]
  assert "table" not in labels


def test_boxes_are_cut_to_the_page(doclaynet):
  def move(file):
    for annotation in file["annotations"]:
      if annotation["category_id"] == 7:
        annotation["bbox"] = [-0.49, -20.0, 2000.0, 100.0]
      if annotation["category_id"] == 11:
        annotation["bbox"] = [-50.0, 10.0, 40.0, 5.0]  # Beside the page.
      if annotation["category_id"] == 5:
        annotation["bbox"] = [10.0, 10.0, 0.0, 5.0]  # A line, not a box.

  edited(doclaynet / "COCO" / "train.json", move)
  page = document_supplies.segmentation(str(doclaynet)).read("train", 0)
  boxes = {region.label: region.box for region in page.regions}
  assert boxes["picture"] == (0, 0, page.image.shape[1], 80)
  assert not {"title", "page-footer"} & set(boxes)


def test_annotations_come_in_any_order(doclaynet):
  before = document_supplies.segmentation(str(doclaynet)).read("train", 0)
  edited(
    doclaynet / "COCO" / "train.json",
    lambda file: file["annotations"].sort(key=lambda one: one["category_id"]),
  )
  after = document_supplies.segmentation(str(doclaynet)).read("train", 0)
  assert before.text == after.text


def test_classes_go_by_name(doclaynet):
  def renumber(file):
    for category in file["categories"]:
      category["id"] = 500 - category["id"]
    file["categories"].reverse()
    for annotation in file["annotations"]:
      annotation["category_id"] = 500 - annotation["category_id"]

  before = document_supplies.segmentation(str(doclaynet)).read("train", 0)
  edited(doclaynet / "COCO" / "train.json", renumber)
  after = document_supplies.segmentation(str(doclaynet)).read("train", 0)
  assert before.text == after.text


def test_without_the_extra_archive_pages_stay_squares(tmp_path, caplog):
  folder = toy_pages.doclaynet(tmp_path, extras=False)
  with caplog.at_level(logging.WARNING):
    supply = document_supplies.segmentation(str(folder))
  assert "no folder JSON" in caplog.text
  assert supply.read("train", 0).image.shape[:2] == (1025, 1025)
  with pytest.raises(ValueError, match="extra archive"):
    document_supplies.ocr(str(folder))


def test_the_published_page_is_read(shared_data):
  supply = document_supplies.segmentation(
    str(shared_data / "fixtures" / "doclaynet")
  )
  [split] = [split for split, count in supply.sizes.items() if count]
  page = supply.read(split, 0)
  labels = [region.label for region in page.regions]
  assert sorted(labels) == sorted(
    ["caption", "picture", "section-header", "page-footer", *["text"] * 4]
  )
  assert labels[-1] == "page-footer"  # It stands left of all columns.
  found = layout_text.parse(page.text)
  assert labels == [part.label for part in found]
  # Its photograph: the box that reached above the page is cut to it.
  picture = page.regions[labels.index("picture")]
  assert picture.box[1] == 0
  # The published picture of the page has its own proportions.
  assert page.image.shape == (906, 700, 3)
  truth = [[documents.Part(r.box, r.label) for r in page.regions]]
  height, width = page.image.shape[:2]
  truth = [
    [
      p._replace(
        box=tuple(
          x / s for x, s in zip(p.box, (width, height) * 2, strict=True)
        )
      )
      for p in truth[0]
    ]
  ]
  pytest.importorskip("pycocotools")
  scores = layout_scores.box_scores(truth, [found])
  assert scores["map_75"] == pytest.approx(1.0)


def test_published_publaynet_has_its_classes(shared_data):
  path = shared_data / "fixtures" / "publaynet" / "samples_3pages.json"
  found = coco.read(path)
  assert found.files[0] == "PMC5491943_00004.jpg"
  assert set(found.categories) == {"text", "title", "list", "table", "figure"}
  labels = {label for i in range(3) for _, label in found.regions(i)}
  assert labels == {"text", "title", "list", "table"}
  box, label = found.regions(0)[0]
  assert label == "text"
  assert box == pytest.approx((121.89, 41.8, 549.88, 76.3), abs=1e-3)


def test_publaynet_lies_beside_its_folders(tmp_path):
  names = ("text", "title", "list", "table", "figure")
  for split in ("train", "val"):
    record = {"id": 1, "file_name": "p.jpg", "width": 60, "height": 80}
    box = {"image_id": 1, "id": 1, "category_id": 3, "bbox": [6, 8, 12, 16]}
    toy_pages.write(
      tmp_path / f"{split}.json", toy_pages.coco([record], [box], names)
    )
    toy_pages.picture(tmp_path / split / "p.jpg", 60, 80, size=(60, 80))
  supply = document_supplies.segmentation(str(tmp_path))
  assert dict(supply.sizes) == {"train": 1, "validation": 1}
  page = supply.read("validation", 0)
  assert page.text == "k100100300300"
  assert page.key == "publaynet/p.jpg"


# --- FUNSD -------------------------------------------------------------------


def test_forms_have_questions_and_answers(tmp_path, shared_data):
  folder = toy_pages.funsd(tmp_path)
  supply = document_supplies.segmentation(str(folder))
  assert supply.sizes["test"] == 1
  assert set(supply.sizes) == {"train", "validation", "test"}
  assert supply.sizes["train"] + supply.sizes["validation"] == 1
  page = supply.read("test", 0)
  assert page.text == "q050200500400 a599200799400"
  assert [r.text for r in page.regions] == ["Registration No.", "R 1"]
  drawn = document_supplies.drawing(str(folder), split="test").read("test", 0)
  assert drawn.text == (
    "a page of forms: question 50,200,500,400 “Registration No.”; "
    "answer 599,200,799,400 “R 1”"
  )
  raw = drawn.text.encode()
  quoted = [raw[slice(*r.span)].decode() for r in drawn.regions]
  assert quoted == ["Registration No.", "R 1"]
  # The published record, as it is printed in its documentation.
  path = shared_data / "fixtures" / "schemas" / "funsd.json"
  form = folder / "dataset/testing_data/annotations/testing_data.json"
  form.write_text(path.read_text("utf-8"), "utf-8")
  toy_pages.picture(
    folder / "dataset/testing_data/images/testing_data.png",
    300, 400, size=(300, 400),
  )  # fmt: skip
  page = document_supplies.ocr(str(folder), unit="page").read("test", 0)
  assert page.text == "Registration No."


# --- Text --------------------------------------------------------------------


def test_text_is_read_by_page_by_region_and_by_line(doclaynet):
  page = document_supplies.ocr(str(doclaynet), unit="page")
  assert page.read("train", 0).text == (
    "The Title\n\nleft one\nleft two\n\nright one\nright two\n\n7"
  )
  region = document_supplies.ocr(str(doclaynet))
  assert region.sizes["train"] == 2 * 4
  texts = [region.read("train", i).text for i in range(4)]
  assert texts == [
    "The Title",
    "left one\nleft two",
    "right one\nright two",
    "7",
  ]
  line = document_supplies.ocr(str(doclaynet), unit="line")
  assert line.sizes["train"] == 2 * 6
  assert line.read("train", 1).text == "left one"
  keys = {region.read("train", i).key for i in range(8)}
  assert len(keys) == 8
  with pytest.raises(ValueError, match="'region'"):
    document_supplies.ocr(str(doclaynet), unit="word")


def test_what_is_cut_out_is_where_the_text_is(doclaynet):
  example = document_supplies.ocr(str(doclaynet)).read("train", 0)
  [region] = example.regions
  left, top, right, bottom = (round(x) for x in region.box)
  assert example.image[top + 2 : bottom - 2, left + 2 : right - 2].max() < 20
  # The margin is paper.
  assert example.image[:2].min() > 200
  assert example.image[:, :2].min() > 200
  raw = example.text.encode()
  assert raw[slice(*region.span)].decode() == example.text


def test_text_belongs_to_the_smallest_region_around_it(doclaynet):
  def surround(file):
    box = (0, 0, 612, 792)
    file["annotations"].insert(0, toy_pages.annotation(90, 0, "Table", box))

  edited(doclaynet / "COCO" / "train.json", surround)
  pages = document_supplies.pages_in(str(doclaynet), "auto")["train"]
  found = documents.arranged(pages.page(0)).parts
  texts = {part.label: part.text for part in found}
  assert texts["table"] == "" and texts["title"] == "The Title"


def test_a_form_is_cut_to_its_picture(tmp_path):
  folder = toy_pages.funsd(tmp_path)
  form = folder / "dataset/testing_data/annotations/testing_data.json"

  def move(file):
    file["form"][0]["box"] = [-50, 30, 900, 20]  # Corners in another order.
    file["form"][1]["box"] = [300, 0, 400, 50]

  edited(form, move)
  supply = document_supplies.segmentation(str(folder), split="test")
  [region] = supply.read("test", 0).regions
  assert region.box == (0, 20, 200, 30)


def test_a_page_says_in_which_direction_it_is_read(doclaynet):
  def write(file):
    for cell in file["cells"]:
      cell["text"] = "سلام"

  edited(doclaynet / "JSON" / "page0.json", write)
  supply = document_supplies.segmentation(str(doclaynet))
  boxes = [part.box for part in layout_text.parse(supply.read("train", 0).text)]
  assert boxes[1][0] > boxes[2][0]  # The right column first.
  boxes = [part.box for part in layout_text.parse(supply.read("train", 1).text)]
  assert boxes[1][0] < boxes[2][0]


def test_text_outside_of_all_regions_is_not_lost(doclaynet):
  def add(file):
    box = toy_pages.square(50, 700, 150, 712)
    file["cells"].append({"bbox": box, "text": "loose\ud800"})

  edited(doclaynet / "JSON" / "page0.json", add)
  page = document_supplies.ocr(str(doclaynet), unit="page").read("train", 0)
  assert "loose\ufffd" in page.text


def test_pages_of_no_use_are_counted(doclaynet):
  def empty(file):
    file["cells"] = []

  edited(doclaynet / "JSON" / "page0.json", empty)
  supply = document_supplies.ocr(str(doclaynet))
  assert supply.sizes["train"] == 4
  name = f"document_ocr:{doclaynet} (region) (train) (filters)"
  assert rejections.ledger(name).summary()["reasons"] == {"no text": 1}
  short = document_supplies.ocr(str(doclaynet), split="validation", max_bytes=9)
  assert short.sizes == {"validation": 2}  # Each longer text is left out.


# --- What is hostile ---------------------------------------------------------


@pytest.mark.parametrize(
  "change",
  [
    {"bbox": [float("nan"), 0, 5, 5]},
    {"bbox": [0, 0, float("inf"), 5]},
    {"bbox": [0, 0, -5, 5]},
    {"bbox": [0, 0, 10**400, 5]},
    {"bbox": [0, 0, 1e300, 5]},
    {"bbox": "0 0 5 5"},
    {"bbox": [0, 0, 5]},
    {"bbox": [True, 0, 5, 5]},
    {"bbox": None},
    {"category_id": 99},
    {"category_id": "10"},
    {"category_id": 10**30},
  ],
)
def test_a_page_with_a_broken_box_is_named(doclaynet, change):
  def breaks(file):
    file["annotations"][0].update(change)

  edited(doclaynet / "COCO" / "train.json", breaks)
  found = coco.read(doclaynet / "COCO" / "train.json")
  with pytest.raises(images.BadImage, match=r"page0.png: an annotation"):
    found.regions(0)
  assert len(found.regions(1)) == len(toy_pages.PAGE)
  with pytest.raises(rejections.TooManyRejections, match="1 of 2 records"):
    document_supplies.segmentation(str(doclaynet))


@pytest.mark.parametrize(
  ("change", "reason"),
  [
    ({"file_name": "../../secret.png"}, "no file inside"),
    ({"file_name": "/etc/passwd"}, "no file inside"),
    ({"file_name": "a\x00b.png"}, "no file inside"),
    ({"file_name": "..\\a.png"}, "no file inside"),
    ({"file_name": "\ud800.png"}, "no file inside"),
    ({"file_name": "x" * 5000}, "."),
    ({"file_name": "."}, "no file inside"),
    ({"file_name": "a/.."}, "no file inside"),
    ({"file_name": "PNG"}, "."),
    ({"file_name": 7}, "without a file_name"),
    ({"id": None}, "without an id"),
    ({"width": 10**9}, "without width and height"),
    ({"height": -1}, "without width and height"),
    ({"height": 2.5}, "without width and height"),
  ],
)
@pytest.mark.parametrize("extras", [False, True])
def test_a_broken_record_is_named(tmp_path, change, reason, extras):
  folder = toy_pages.doclaynet(tmp_path, count=1, extras=extras)
  edited(
    folder / "COCO" / "train.json",
    lambda file: file["images"][0].update(change),
  )
  [pages] = [document_supplies.pages_in(str(folder), "auto")["train"]]
  with pytest.raises(images.BadImage, match=reason):
    documents.load(pages.page(0))


def test_two_pictures_of_one_id_are_both_bad(doclaynet):
  edited(
    doclaynet / "COCO" / "train.json",
    lambda file: file["images"][0].update(id=1),
  )
  pages = document_supplies.pages_in(str(doclaynet), "auto")["train"]
  for index in range(2):
    with pytest.raises(images.BadImage, match="an id that another picture has"):
      pages.page(index)


def test_a_pipe_is_not_waited_for(doclaynet):
  pages = document_supplies.pages_in(str(doclaynet), "auto")["train"]
  for path in ("JSON/page0.json", "COCO/val.json", "PNG/page1.png"):
    (doclaynet / path).unlink()
    os.mkfifo(doclaynet / path)
  with pytest.raises(images.BadImage, match="JSON is broken"):
    pages.page(0)
  with pytest.raises(images.BadImage, match="not a regular file"):
    documents.load(pages.page(1))
  with pytest.raises(ValueError, match=r"val\.json: is no regular file"):
    document_supplies.pages_in(str(doclaynet), "auto")


def test_a_link_does_not_lead_out_of_the_folder(doclaynet, tmp_path):
  secret = tmp_path / "secret.png"
  Image.new("RGB", (5, 5)).save(secret)
  picture = doclaynet / "PNG" / "page0.png"
  picture.unlink()
  os.symlink(secret, picture)
  pages = document_supplies.pages_in(str(doclaynet), "auto")["train"]
  with pytest.raises(images.BadImage, match="inside of the data set"):
    pages.page(0)
  # The folder itself may lie on another disk.
  (doclaynet / "PNG").rename(tmp_path / "elsewhere")
  os.symlink(tmp_path / "elsewhere", doclaynet / "PNG")
  assert documents.load(pages.page(1)).image.size


def test_a_missing_picture_and_another_page_are_bad(doclaynet):
  supply = document_supplies.segmentation(str(doclaynet))
  (doclaynet / "PNG" / "page0.png").unlink()
  toy_pages.picture(doclaynet / "PNG" / "page1.png", 300, 900)
  with pytest.raises(images.BadImage, match=r"page0\.png"):
    supply.read("train", 0)
  with pytest.raises(images.BadImage, match="other proportions"):
    supply.read("train", 1)


@pytest.mark.parametrize(
  "change",
  [
    {"metadata": None},
    {"metadata": {"original_width": 0, "original_height": 792}},
    {"metadata": {"original_width": 1e9, "original_height": 1}},
    {"metadata": {"original_width": "612", "original_height": 792}},
    {"cells": {}},
    {"cells": [{"bbox": [0, 0, 1, 1]}]},
    {"cells": [{"bbox": [0, 0, float("nan"), 1], "text": "x"}]},
    {"cells": [7]},
  ],
)
def test_a_broken_extra_file_is_named(doclaynet, change):
  edited(doclaynet / "JSON" / "page0.json", lambda file: file.update(change))
  pages = document_supplies.pages_in(str(doclaynet), "auto")["train"]
  with pytest.raises(images.BadImage):
    pages.page(0)
  assert pages.page(0, extras=False).cells == ()
  (doclaynet / "JSON" / "page1.json").write_text("{")
  with pytest.raises(images.BadImage, match="JSON is broken"):
    pages.page(1)
  (doclaynet / "JSON" / "page1.json").unlink()
  with pytest.raises(images.BadImage, match="without its JSON"):
    pages.page(1)


@pytest.mark.parametrize(
  ("edit", "reason"),
  [
    (lambda f: f["images"].clear(), "has no images"),
    (lambda f: f["categories"][9].update(name="Blob"), "no label for .*Blob"),
    (lambda f: f["categories"].append({"id": 1, "name": "Text"}), "same id"),
    (lambda f: f["categories"].append({"id": "1"}), "without an id"),
    (lambda f: f["annotations"].append({"id": 1}), "without an image_id"),
    (lambda f: f.update(images=7), "no list"),
  ],
)
def test_a_file_of_no_use_is_refused(doclaynet, edit, reason):
  edited(doclaynet / "COCO" / "train.json", edit)
  with pytest.raises(ValueError, match=f"train.json.*{reason}"):
    document_supplies.segmentation(str(doclaynet))


@pytest.mark.parametrize(
  "entry",
  [
    {"label": "blob"},
    {"box": [1, 2, 3]},
    {"box": [1, 2, 3, float("nan")]},
    {"text": 5},
    {"words": 5},
    {"words": [{"text": "x"}]},
    {"words": ["x"]},
  ],
)
def test_a_broken_form_is_named(tmp_path, entry):
  folder = toy_pages.funsd(tmp_path)
  form = folder / "dataset/testing_data/annotations/testing_data.json"
  edited(form, lambda file: file["form"][0].update(entry))
  pages = document_supplies.pages_in(str(folder), "auto")["test"]
  with pytest.raises(images.BadImage, match=r"testing_data\.json"):
    pages.page(0)
  for raw in ("", "[]", '{"form": 1}'):
    form.write_text(raw)
    with pytest.raises(images.BadImage, match=r"testing_data\.json"):
      pages.page(0)


@pytest.mark.parametrize("kind", ["segmentation", "layout", "question"])
def test_a_folder_of_no_use_is_refused(tmp_path, kind):
  function = getattr(document_supplies, kind)
  with pytest.raises(ValueError, match=str(tmp_path)):
    function(str(tmp_path))
  with pytest.raises(ValueError, match="absent"):
    function(str(tmp_path / "absent"))


def test_options_are_checked(doclaynet):
  with pytest.raises(ValueError, match="no split 'nowhere'"):
    document_supplies.segmentation(str(doclaynet), split="nowhere")
  with pytest.raises(ValueError, match="format"):
    document_supplies.segmentation(str(doclaynet), format="voc")
  assert len(document_supplies.pages_in(str(doclaynet), "doclaynet")) == 2


# --- Questions ---------------------------------------------------------------


def test_a_question_stands_above_its_page(tmp_path):
  folder = toy_pages.docvqa(tmp_path)
  supply = document_supplies.question(str(folder))
  assert dict(supply.sizes) == {"train": 2, "validation": 1}
  example = supply.read("train", 0)
  assert example.key == "docvqa/1"
  assert example.text == "One"
  page = Image.open(folder / "spdocvqa_images" / "train_1.png")
  above = example.image.shape[0] - page.height
  assert (example.image[above:] == np.array(page.convert("RGB"))).all()
  assert example.image[:above].min() < 100  # Something is written there.
  assert example.regions[0].text == "What is question 1 about, and why?"
  other = supply.read("train", 1).image
  assert not np.array_equal(example.image, other)
  answers = docvqa.answers(str(folder))
  words = feature_converters.example_id(example.key)
  assert answers["".join(f"{x:08x}" for x in words)] == ("One", "the one")


@pytest.mark.parametrize(
  "question",
  [
    "Whose?",
    "Was ist die Größe?" * 12,
    "ما هو الاسم؟",
    "ชื่ออะไร",
    "名前は何ですか",
  ],
)
@pytest.mark.parametrize("width", [40, 400])
def test_a_header_is_as_wide_as_the_page(question, width):
  if rasterizers.lacking(question, paragraphs.fonts_of(question)):
    pytest.skip("no font here has its characters")
  header = docvqa.header(question, width)
  assert header.shape[1:] == (width, 3)
  assert header.min() < 128
  # Paper all around: nothing is cut off.
  assert header[0].min() == header[-1].min() == 255
  assert header[:, 0].min() == header[:, -1].min() == 255


def test_published_questions_are_read(tmp_path, shared_data):
  path = shared_data / "fixtures" / "schemas" / "docvqa.json"
  (tmp_path / "train_v1.0.json").write_text(path.read_text("utf-8"), "utf-8")
  toy_pages.picture(tmp_path / "documents" / "txpn0095_1.png", 306, 396)
  supply = document_supplies.question(str(tmp_path))
  [split] = [split for split, count in supply.sizes.items() if count]
  assert supply.read(split, 0).text == "Edward R. Shannon"
  [answers] = docvqa.answers(str(tmp_path)).values()
  assert layout_scores.anls([answers], ["edward shannon"]) == 1.0


@pytest.mark.parametrize(
  "change",
  [
    {"question": ""},
    {"question": 5},
    {"question": "x" * 5000},
    {"answers": []},
    {"answers": "One"},
    {"answers": [" "]},
    {"answers": [None]},
    {"image": None},
    {"questionId": 2},
    {"questionId": None},
    {"questionId": True},
  ],
)
def test_a_broken_question_is_counted(tmp_path, change):
  folder = toy_pages.docvqa(tmp_path)
  file = folder / "spdocvqa_qas" / "train_v1.0_withQT.json"
  edited(file, lambda value: value["data"][0].update(change))
  found = docvqa.open_docvqa(folder)["train"]
  broken = [x for x in found.records if isinstance(x, images.BadImage)]
  assert len(broken) == 1
  assert "train_v1.0_withQT.json" in broken[0].file
  with pytest.raises(rejections.TooManyRejections):
    document_supplies.question(str(folder))


def test_a_question_does_not_lead_out_of_the_folder(tmp_path):
  folder = toy_pages.docvqa(tmp_path / "a")
  Image.new("RGB", (5, 5)).save(tmp_path / "secret.png")
  with pytest.raises(images.BadImage, match="inside of the data set"):
    docvqa.picture_of(folder, "../secret.png")
  assert not docvqa.picture_of(folder, "x" * 5000).parent.samefile(tmp_path)


# --- What models learn from --------------------------------------------------


def test_layouts_are_drawn_with_boxes_and_masks(doclaynet):
  example = document_supplies.layout(str(doclaynet)).read("train", 0)
  assert example.text == (
    "a page of financial reports with 1 title, 2 texts, 1 picture, "
    "1 page footer, titled “The Title”"
  )
  assert example.language == "en"
  title = example.regions[0]
  raw = example.text.encode()
  assert raw[slice(*title.span)].decode() == "The Title"
  assert {r.label for r in example.regions} <= set(annotated.LABELS)


_READING = {"patches": 64, "text_tokens": 256, "example_id": 2}
_DRAWING = {"image": 32, "text_tokens": 512, "example_id": 2}
_ANNOTATED = _DRAWING | {"region_mask": 32, "style": 14, "language": 1}
_ANNOTATED |= dict.fromkeys(("boxes", "box_labels", "box_spans"), 8)
slow = pytest.mark.slow


@pytest.mark.parametrize(
  ("name", "lengths"),
  [
    ("document_layout_annotated:{}@32x24", _ANNOTATED),
    ("document_question_reading:{}@64x8", _READING),
    pytest.param(
      "document_layout_segmentation_reading:{}@64x8", _READING, marks=slow
    ),
    pytest.param(
      "document_ocr_reading:{}@64x8+unit=line", _READING, marks=slow
    ),
    pytest.param("document_layout:{}@32x24", _DRAWING, marks=slow),
    pytest.param(
      "document_layout_drawing:{}@32x24+max_quote=5", _DRAWING, marks=slow
    ),
    pytest.param("document_ocr_annotated:{}@32x24", _ANNOTATED, marks=slow),
  ],
)
def test_tasks_of_documents_give_batches(name, lengths, tmp_path):
  pytest.importorskip("byt5_diffusion.tasks", reason="needs `pip install -e .`")
  seqio = pytest.importorskip("seqio")
  from byt5_diffusion.tasks import document_layout

  make = toy_pages.docvqa if "question" in name else toy_pages.doclaynet
  called = document_layout.register(name.format(make(tmp_path)))
  task = seqio.get_mixture_or_task(called)
  ds = task.get_dataset(lengths, split="train", shuffle=False)
  example = next(ds.as_numpy_iterator())
  assert set(example) == set(lengths)
  if "layout_annotated" not in name:
    return
  # 32 x 24 pixels have the page's proportions but for a line of paper.
  title = annotated.LABELS.index("title")
  assert example["image"].shape == (32, 24, 3)
  assert example["box_labels"][0] == title
  left, _, right, _ = example["boxes"][0]
  assert (left, right) == pytest.approx((100 / 612, 500 / 612), abs=0.02)
  assert (example["region_mask"] == title).sum() in range(10, 30)


def test_a_question_is_only_read(tmp_path):
  pytest.importorskip("byt5_diffusion.tasks", reason="needs `pip install -e .`")
  pytest.importorskip("seqio")
  from byt5_diffusion.tasks import document_layout

  folder = toy_pages.docvqa(tmp_path)
  with pytest.raises(ValueError, match="there is document_question_reading"):
    document_layout.register(f"document_question:{folder}@64x64")
