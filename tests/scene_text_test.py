"""Text in photographs: each data set's own format, and its traps."""

import gzip
import json
import pathlib

import numpy as np
import pytest
from PIL import Image, ImageDraw

from byt5_diffusion import quotes
from byt5_diffusion.data import (
  annotated,
  images,
  languages,
  regions,
  rejections,
  supplies,
  text,
)
from byt5_diffusion.data.rows import (
  files,
  json_stream,
)
from byt5_diffusion.data.sets import (
  descriptions,
  hiertext,
  icdar,
  page_supply,
  picture_folder,
  scene_text,
  written_pages,
)
from byt5_diffusion.tasks import grapheme_in_the_wild

RED, BLUE, GREEN = (200, 0, 0), (0, 0, 200), (0, 160, 0)
BOX = ((20, 10), (80, 10), (80, 30), (20, 30))
OTHER = ((20, 50), (80, 50), (80, 70), (20, 70))


def picture(
  path: pathlib.Path,
  painted: dict[tuple[tuple[float, float], ...], tuple[int, int, int]],
  size: tuple[int, int] = (120, 100),
  mode: str = "RGB",
) -> None:
  """A picture with outlines filled with colours."""
  image = Image.new("RGB", size, "white")
  for outline, colour in painted.items():
    ImageDraw.Draw(image).polygon(list(outline), fill=colour)
  path.parent.mkdir(parents=True, exist_ok=True)
  image.convert(mode).save(path, quality=100, subsampling=0)


def listed(outline: tuple[tuple[float, float], ...]) -> list[list[float]]:
  return [list(corner) for corner in outline]


def flat(outline: tuple[tuple[float, float], ...]) -> list[float]:
  return [number for corner in outline for number in corner]


def hiertext_word(
  outline: tuple[tuple[float, float], ...], said: str, legible: bool = True
) -> dict[str, object]:
  return {
    "vertices": listed(outline),
    "text": said,
    "legible": legible,
    "handwritten": False,
    "vertical": False,
  }


def hiertext_folder(
  folder: pathlib.Path, lines: list[dict[str, object]], name: str = "train"
) -> pathlib.Path:
  """HierText as it is published: gt/<split>.jsonl.gz is one JSON object."""
  annotation = {
    "image_id": "0006a5",
    "image_width": 120,
    "image_height": 100,
    "paragraphs": [{"vertices": listed(BOX), "legible": True, "lines": lines}],
  }
  (folder / "gt").mkdir(parents=True, exist_ok=True)
  with gzip.open(folder / "gt" / f"{name}.jsonl.gz", "wt") as file:
    json.dump({"info": {"date": "x"}, "annotations": [annotation]}, file)
  picture(folder / "train" / "0006a5.jpg", {BOX: RED, OTHER: BLUE})
  return folder


def two_lines() -> list[dict[str, object]]:
  """The second line stands above; the first holds what nobody can read."""
  left = ((20, 50), (50, 50), (50, 70), (20, 70))
  right = ((50, 50), (80, 50), (80, 70), (50, 70))
  below = hiertext_word(OTHER, "lower ?")
  below["words"] = [
    hiertext_word(left, "lower"),
    hiertext_word(right, "", legible=False),
  ]
  above = hiertext_word(BOX, "Upper, line")
  above["words"] = [
    hiertext_word(((20, 10), (45, 10), (45, 30), (20, 30)), "Upper,"),
    hiertext_word(((50, 10), (80, 10), (80, 30), (50, 30)), "line"),
  ]
  return [below, above]


@pytest.fixture(autouse=True)
def cache(
  tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
  """Nothing is kept among the user's files."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def only(
  supply: page_supply.PageSupply, split: str = "train"
) -> list[annotated.Annotated]:
  return [supply.read(split, i) for i in range(supply.sizes[split])]


def plain(path: pathlib.Path | str, **options: object) -> dict[str, object]:
  return {"path": str(path), "identify": False, **options}


def test_words_of_hiertext(tmp_path: pathlib.Path) -> None:
  folder = hiertext_folder(tmp_path, two_lines())
  supply = scene_text.words(**plain(folder, margin=0.0))
  found = only(supply)
  assert [one.transcription for one in found] == ["Upper,", "line", "lower"]
  for one, colour in zip(found, (RED, RED, BLUE), strict=True):
    assert np.abs(one.image.astype(int) - colour).max() < 60  # JPEG
    [span] = [region.span for region in one.regions]
    raw = one.text.encode("utf-8")
    assert raw[slice(*span)].decode("utf-8") == one.transcription
  left_out = rejections.ledger(f"grapheme_words:{folder} (filters)").summary()
  assert left_out["reasons"] == {"illegible": 1}


def test_lines_are_legible_as_a_whole(tmp_path: pathlib.Path) -> None:
  """Even if one says that it is, with a word in it that is not."""
  folder = hiertext_folder(tmp_path, two_lines())
  [one] = only(scene_text.lines(**plain(folder)))
  assert one.transcription == "Upper, line"
  labels = [(region.label, region.text) for region in one.regions]
  assert labels == [
    ("line", "Upper, line"),
    ("word", "Upper,"),
    ("word", "line"),
  ]


def test_a_scene_quotes_what_is_legible_and_hides_the_rest(
  tmp_path: pathlib.Path,
) -> None:
  folder = hiertext_folder(tmp_path, two_lines())
  supply = scene_text.scenes(**plain(folder, max_illegible=1.0))
  [one] = only(supply)
  # Lines stand in no order; what can be read of a bad one is read.
  assert one.transcription == "Upper, line\nlower"
  assert quotes.strings(one.text) == ["Upper, line", "lower"]
  raw = one.text.encode("utf-8")
  for region in one.regions:
    if region.span:
      assert raw[slice(*region.span)].decode("utf-8") == region.text
  unread = [region for region in one.regions if not region.legible]
  assert {region.text for region in unread} == {""}
  assert all(region.span is None for region in unread)
  before = images.decode_image(folder / "train" / "0006a5.jpg")
  # The illegible word is gone, and its neighbour is as it was.
  assert np.abs(one.image[60, 65].astype(int) - before[60, 65]).max() > 30
  np.testing.assert_array_equal(one.image[60, 22:40], before[60, 22:40])
  kept = scene_text.scenes(**plain(folder, hidden=False, max_illegible=1.0))
  np.testing.assert_array_equal(only(kept)[0].image, before)
  # A picture whose writing is mostly illegible is left out.
  with pytest.raises(ValueError, match="no picture that can be read"):
    scene_text.scenes(**plain(folder, max_illegible=0.1))


def test_the_largest_writing_is_quoted(tmp_path: pathlib.Path) -> None:
  """In the order of reading; no marks alone, and nothing long."""
  heights = {"small": 10, "big": 20, "- * -": 40, "Bigger": 30, "x" * 81: 50}
  top, lines = 0, []
  for said, height in heights.items():
    outline = ((0, top), (90, top), (90, top + height), (0, top + height))
    top += height
    lines.append(hiertext_word(outline, said))
  folder = hiertext_folder(tmp_path, lines)
  picture(folder / "train" / "0006a5.jpg", {}, size=(120, 200))
  [one] = only(scene_text.scenes(**plain(folder, max_quotes=2)))
  assert quotes.strings(one.text) == ["big", "Bigger"]
  assert one.transcription is not None
  assert one.transcription.split("\n") == list(heights)


def test_masks_and_boxes_of_a_scene(tmp_path: pathlib.Path) -> None:
  folder = hiertext_folder(tmp_path, two_lines())
  [one] = only(scene_text.scenes(**plain(folder)))
  found = regions.features(one, (100, 120), (100, 120), "pad")
  number = annotated.LABELS.index("word")
  assert found["region_mask"][60, 30] == number
  assert found["region_mask"][5, 5] == 0
  assert len(found["boxes"]) == len(one.regions) == 6


@pytest.mark.parametrize("key", ["imgToAnns", "img2Anns"])
def test_textocr(tmp_path: pathlib.Path, key: str) -> None:
  """Points come before the box; "." is illegible; words say their picture."""

  def word(name: str, said: str, bbox: object, points: object) -> object:
    return {
      "id": name,
      "image_id": "a",
      "bbox": bbox,
      "points": points,
      "utf8_string": said,
      "area": 1.0,
    }

  anns = {
    "a_1": word("a_1", "two", [20, 50, 60, 20], flat(OTHER)),
    "a_2": word("a_2", "one", [0, 0, 1, 1], flat(BOX)),
    "a_3": word("a_3", ".", [20, 80, 60, 10], []),
    "a_4": word("a_4", "box", [90, 10, 20, 20], []),
  }
  image = {"id": "a", "width": 120, "height": 100, "set": "train"}
  made = {
    "imgs": {"a": {**image, "filename": "train/a.jpg"}},
    "anns": anns,
    key: {"a": ["a_1"]},
  }
  (tmp_path / "TextOCR_0.1_train.json").write_text(json.dumps(made))
  picture(tmp_path / "train" / "a.jpg", {BOX: RED, OTHER: BLUE})
  picture(tmp_path / "val" / "a.jpg", {})
  found = only(scene_text.words(**plain(tmp_path, margin=0.0)))
  # In the order of reading, and the picture of the right folder.
  assert [one.transcription for one in found] == ["one", "box", "two"]
  assert np.abs(found[0].image.astype(int) - RED).max() < 60
  assert found[1].image.shape == (20, 20, 3)


def test_coco_text(tmp_path: pathlib.Path) -> None:
  common = {"image_id": 5, "class": "machine printed", "area": 1.0}
  anns = {
    "1": {
      **common,
      "mask": flat(BOX),
      "bbox": [0, 0, 1, 1],
      "language": "english",
      "utf8_string": "the",
      "legibility": "legible",
    },
    "2": {
      **common,
      "bbox": [20, 50, 60, 20],
      "language": "not english",
      "utf8_string": ".",
      "legibility": "legible",
    },
    "3": {
      **common,
      "mask": flat(OTHER),
      "language": "na",
      "utf8_string": "",
      "legibility": "illegible",
    },
  }
  file_name = "COCO_train2014_000000000005.png"
  imgs = {"5": {"file_name": file_name, "id": 5, "set": "val"}}
  made = {"cats": {}, "anns": anns, "imgs": imgs, "imgToAnns": {"5": [1]}}
  (tmp_path / "cocotext.v2.json").write_text(json.dumps(made))
  picture(tmp_path / "val2014" / file_name, {BOX: RED}, mode="L")
  supply = scene_text.words(**plain(tmp_path))
  assert supply.sizes == {"train": 0, "validation": 2, "test": 0}
  found = only(supply, "validation")
  # Here, "." is a word like any other.
  assert [one.transcription for one in found] == ["the", "."]
  assert [one.language for one in found] == ["en", "und"]
  english, other = supply.languages("validation")
  assert (english, other) == (0, 255)


MLT = """\ufeff20,10,80,10,80,30,20,30,Korean,안녕, 세계, "1,5"
20,50,80,50,80,70,20,70,None,###
"""


def test_mlt(tmp_path: pathlib.Path) -> None:
  """A byte order mark, commas in what is written, and "###"."""
  (tmp_path / "gt_img_00001.txt").write_text(MLT, "utf-8")
  picture(tmp_path / "img_00001.png", {BOX: RED})
  (tmp_path / "readme.txt").write_text("Thanks!")
  [one] = only(scene_text.scenes(**plain(tmp_path)))
  assert one.transcription == '안녕, 세계, "1,5"'
  assert one.language == "ko"
  assert [region.legible for region in one.regions] == [True, False]
  assert one.key == "mlt/img_00001"


def test_words_that_are_listed_twice(tmp_path: pathlib.Path) -> None:
  path = tmp_path / "gt_img_1.txt"
  path.write_text("1,2,9,2,9,9,1,9,a\n1,2,9,2,9,9,1,9,b\n1,2,9,2,9,9,1,9,a\n")
  [page] = icdar.pages(files.find(str(path)), "icdar15")
  assert [mark.text for mark in page.marks] == ["a", "b"]
  assert page.problems == (("line 3", "listed twice"),)


def test_icdar15_is_told_from_mlt(tmp_path: pathlib.Path) -> None:
  lines = ["1,2,9,2,9,9,1,9,Latin,too", "1,2,9,2,9,9,1,9,###"]
  assert icdar.guess(lines) == "icdar15"
  assert icdar.guess(lines[:1]) == "mlt"
  (tmp_path / "ch4_training_gt").mkdir()
  path = tmp_path / "ch4_training_gt" / "gt_img_1.txt"
  path.write_text("20,10,80,10,80,30,20,30,Latin, too\n")
  picture(tmp_path / "img_1.png", {BOX: RED})
  [one] = only(scene_text.words(**plain(tmp_path, format="icdar15")))
  assert one.transcription == "Latin, too"
  [one] = only(scene_text.words(**plain(tmp_path, format="mlt")))
  assert one.transcription == "too"


def test_total_text(tmp_path: pathlib.Path) -> None:
  """Lists of numbers go on in the next line; texts are Python 2's literals."""
  curve = "x: [[20 50 80 80\n  50 20]], y: [[10 8 10 30 28 30]], ornt: [u'c']"
  lines = (
    f"{curve}, transcriptions: [u'CAF\\xc9']\n"
    "x: [[20 80 80 20]], y: [[50 50 70 70]], ornt: [u'#'], "
    "transcriptions: [u'#']\n"
  )
  (tmp_path / "Train").mkdir()
  (tmp_path / "Train" / "poly_gt_img11.txt").write_text(lines)
  picture(tmp_path / "img11.jpg", {BOX: RED})
  [one] = only(scene_text.words(**plain(tmp_path)))
  assert one.transcription == "CAFÉ"


SVT = """<?xml version="1.0"?><tagset><image>
<imageName>img/14_03.jpg</imageName>
<lex>LIVING,ROOM</lex><taggedRectangles>
<taggedRectangle height="20" width="60" x="20" y="10"><tag>LIVING</tag>
</taggedRectangle><taggedRectangle height="0" width="6" x="2" y="1">
<tag>NO</tag></taggedRectangle></taggedRectangles></image></tagset>"""


def test_street_view_text(tmp_path: pathlib.Path) -> None:
  (tmp_path / "train.xml").write_text(SVT)
  picture(tmp_path / "img" / "14_03.jpg", {BOX: RED})
  pages = list(icdar.xml_pages(tmp_path / "train.xml"))
  assert [mark.text for mark in pages[0].marks] == ["LIVING"]
  assert pages[0].problems == (("word 1", "no area"),)
  # One of two is broken: that is too much of a data set.
  with pytest.raises(rejections.TooManyRejections, match="no area"):
    scene_text.words(**plain(tmp_path))


def test_the_published_samples(
  shared_data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
  """Files as they are documented, with pictures of their size."""
  schemas = shared_data / "fixtures" / "schemas"
  for name, stem, texts in (
    ("hiertext.json", "0006a5dddc0a8b9d", ["OPEN", "DAILY"]),
    ("textocr.json", "a", ["text"]),
    ("cocotext_v2.json", "COCO_train2014_000000522579", ["the"]),
    ("mlt19_gt_img_00001.txt", "mlt19_gt_img_00001", ["Genaxis Theatre"]),
  ):
    folder = tmp_path / stem
    folder.mkdir()
    (folder / name).write_bytes((schemas / name).read_bytes())
    Image.new("RGB", (1600, 1200)).save(folder / f"{stem}.png")
    found = only(scene_text.words(**plain(folder)))
    assert [one.transcription for one in found] == texts


def test_missing_and_ambiguous_pictures(tmp_path: pathlib.Path) -> None:
  picture(tmp_path / "one" / "a.png", {})
  picture(tmp_path / "two" / "a.png", {BOX: RED})
  picture(tmp_path / "b.rgba.png", {}, mode="RGBA")
  found = picture_folder.PictureFolder(tmp_path)
  assert found.find("x/two/a.jpg").name.endswith("two/a.png")
  assert found.decode("two/a").shape == (100, 120, 3)
  assert found.decode("b.rgba").shape == (100, 120, 3)
  for name, reason in (
    ("a", "several pictures"),
    ("c.png", "no such picture"),
    ("../../etc/passwd", "no such picture"),
  ):
    with pytest.raises(images.BadImage, match=reason):
      found.find(name)
  with pytest.raises(ValueError, match="no pictures"):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.txt").touch()
    picture_folder.PictureFolder(tmp_path / "empty")


def test_a_page_without_its_picture_is_counted(tmp_path: pathlib.Path) -> None:
  folder = hiertext_folder(tmp_path, two_lines())
  (folder / "train" / "0006a5.jpg").rename(folder / "train" / "other.jpg")
  supply = scene_text.words(**plain(folder))
  with pytest.raises(images.BadImage, match="hiertext/train/0006a5/1: no such"):
    supply.read("train", 0)


@pytest.mark.parametrize(
  ("raw", "message"),
  [
    (b"no json at all", "no annotations of a format"),
    (gzip.compress(b'{"annotations": [{"paragraphs": 1')[:-6], "broken"),
    (gzip.compress(b'{"annotations": [{"paragraphs": 1'), "cut off"),
    (b'{"annotations": 5, "paragraphs": []}', "is no list"),
    (b'{"annotations": [{"paragraphs": "\xff"}]}', "UTF-8"),
  ],
)
def test_broken_annotation_files(
  tmp_path: pathlib.Path, raw: bytes, message: str
) -> None:
  folder = hiertext_folder(tmp_path, two_lines())
  (folder / "gt" / "train.jsonl.gz").write_bytes(raw)
  with pytest.raises(ValueError, match=message):
    scene_text.words(**plain(folder))


def test_a_gz_that_is_none_is_read_all_the_same(tmp_path: pathlib.Path) -> None:
  folder = hiertext_folder(tmp_path, two_lines())
  path = folder / "gt" / "train.jsonl.gz"
  path.write_bytes(gzip.decompress(path.read_bytes()))
  assert scene_text.words(**plain(folder)).sizes["train"] == 3


def test_annotations_of_the_wrong_shape_are_noted(
  tmp_path: pathlib.Path,
) -> None:
  path = tmp_path / "train.json"
  wrong = [
    5,
    {"image_id": 7},
    {"image_id": "a", "paragraphs": "none"},
    {"image_id": "b", "paragraphs": [{"lines": [{"vertices": 3}, "x"]}]},
  ]
  path.write_text(json.dumps({"annotations": wrong}))
  pages = list(hiertext.pages(path))
  assert [len(page.marks) for page in pages] == [0, 0, 0, 0]
  assert [len(page.problems) for page in pages] == [1, 1, 0, 2]


def test_options_are_checked(tmp_path: pathlib.Path) -> None:
  folder = hiertext_folder(tmp_path, two_lines())
  for option, value in (("margin", 5.0), ("margin", -1.0), ("max_bytes", -1)):
    with pytest.raises(ValueError, match=option):
      scene_text.words(**plain(folder, **{option: value}))
  with pytest.raises(ValueError, match="max_quotes=0"):
    scene_text.scenes(**plain(folder, max_quotes=0))
  short = scene_text.words(**plain(folder, max_bytes=5))
  assert [one.transcription for one in only(short)] == ["line", "lower"]
  with pytest.raises(ValueError, match="no word that can be read"):
    scene_text.words(**plain(folder, min_side=25.0))
  file = folder / "gt" / "train.jsonl.gz"
  one = scene_text.words(**plain(file, images=str(folder)))
  assert one.sizes["train"] == 3


def test_several_formats_in_one_folder(tmp_path: pathlib.Path) -> None:
  folder = hiertext_folder(tmp_path, two_lines())
  (folder / "gt_img_00001.txt").write_text(MLT, "utf-8")
  with pytest.raises(ValueError, match=r"'hiertext', 'mlt'.*format=") as error:
    scene_text.words(**plain(folder))
  assert "\n" not in str(error.value)
  assert scene_text.words(**plain(folder, format="hiertext")).sizes["train"]
  with pytest.raises(ValueError, match="none of"):
    scene_text.words(**plain(folder, format="coco"))


def test_pages_survive_packing() -> None:
  page = written_pages.Page(
    key="a",
    picture="a.jpg",
    marks=(
      written_pages.Mark("line", BOX, "これ", True, True, "ja"),
      written_pages.Mark("glyph", OTHER, "", False, True, "ja", 0),
    ),
    split="test",
    spaced=False,
  )
  assert written_pages.Page.unpack(page.pack()) == page


def test_parts_of_a_page_stay_in_one_split(tmp_path: pathlib.Path) -> None:
  picture(tmp_path / "p.png", {})
  marks = (
    written_pages.Mark("word", BOX, "a"),
    written_pages.Mark("word", OTHER, "b"),
  )
  pages = [
    written_pages.Page(key=f"{i}", picture="p", marks=marks) for i in range(40)
  ]
  supply = page_supply.PageSupply(
    "pages",
    pages,
    picture_folder.PictureFolder(tmp_path),
    page_supply.Form(part="word", kind="scene_word"),
    key="pages",
    validation_share=0.3,
  )
  of = {
    split: {one.key.split("/")[1] for one in only(supply, split)}
    for split in ("train", "validation")
  }
  assert of["train"] and of["validation"]
  assert not of["train"] & of["validation"]
  assert sum(supply.sizes.values()) == 80
  # The crops of a page are read one behind the other.
  assert supply.blocks("train").sizes.tolist() == [2] * len(of["train"])


@pytest.mark.parametrize("language", [*descriptions.WORDINGS, "th"])
def test_captions_quote_to_the_letter(language: str) -> None:
  """What is quoted is found again by the marks, in every language."""
  strings = ["OPEN 24/7", "営業中", "ß"]
  for kind in descriptions.KINDS:
    for seed in range(4):
      caption = descriptions.write(kind, strings, language, seed)
      raw = caption.text.encode("utf-8")
      assert [raw[a:b].decode("utf-8") for a, b in caption.spans] == strings
      assert quotes.strings(caption.text) == strings
      assert caption == descriptions.write(kind, strings, language, seed)


def test_captions_are_in_the_language_of_the_text_or_english() -> None:
  found = {
    descriptions.write("scene_word", ["東京"], "ja", seed).text[:2]
    for seed in range(20)
  }
  assert "写真" in found and len(found) > 1


def test_reading_gets_the_transcription_and_drawing_the_caption(
  tmp_path: pathlib.Path,
) -> None:
  folder = hiertext_folder(tmp_path, two_lines())
  lengths = {"text_tokens": 64}

  def features(kind: str, size: str) -> dict[str, np.ndarray]:
    parsed = supplies.parse(
      grapheme_in_the_wild.TABLE, f"{kind}:{folder}@{size}+identify=false"
    )
    assert parsed is not None
    maker = supplies.Maker(
      supply=parsed.supply, picture=parsed.picture, captions=parsed.captions
    )
    made = maker.make("train", 1, 0, lengths)
    assert made is not None
    return made

  read = features("grapheme_words_reading", "16x8")
  assert text.decode(read["text_tokens"]) == "line"
  drawn = features("grapheme_words", "32x64")
  assert "line" in text.decode(drawn["text_tokens"])
  assert len(drawn["text_tokens"]) > len(read["text_tokens"])
  assert drawn["image"].shape == (32, 64, 3)
  whole = features("grapheme_words_annotated", "32x64")
  start, end = whole["box_spans"][0]
  assert text.decode(whole["text_tokens"][start:end]) == "line"


def test_the_language_is_looked_for_where_none_is_said(
  tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  folder = hiertext_folder(tmp_path, two_lines())
  seen = []

  def identify(written: str) -> tuple[str, float]:
    seen.append(written)
    return "de", 0.95

  monkeypatch.setattr(languages, "identify", identify)
  supply = scene_text.words(str(folder))
  assert seen == ["Upper, line\nlower"]
  assert {one.language for one in only(supply)} == {"de"}
  assert supply.languages("train").tolist() == [languages.row("de")] * 3
  # What was found is kept, as long as the file stays the same.
  again = scene_text.words(str(folder))
  assert len(seen) == 1 and again.fingerprint == supply.fingerprint
  assert [one.key for one in only(again)] == [one.key for one in only(supply)]
  monkeypatch.setattr(languages, "identify", lambda _: ("de", 0.5))
  changed = hiertext_folder(tmp_path, two_lines()[1:])
  unsure = scene_text.words(str(changed))
  assert [one.language for one in only(unsure)] == ["und"] * 2
  assert supply.fingerprint != unsure.fingerprint


def test_json_objects_are_read_one_by_one(tmp_path: pathlib.Path) -> None:
  path = tmp_path / "a.json"
  path.write_text('{"a": {"x": 1, "y": [2]}, "b": {}, "c": [3], "d": 4}')
  found = list(json_stream.elements(path, ["a", "b", "c"]))
  assert found == [("a", ("x", 1)), ("a", ("y", [2])), ("c", 3)]


def test_data_behind_an_address(tmp_path: pathlib.Path) -> None:
  fsspec = pytest.importorskip("fsspec")
  folder = hiertext_folder(tmp_path, two_lines())
  memory = fsspec.filesystem("memory")
  memory.put(str(folder), "/scenes/hiertext", recursive=True)
  supply = scene_text.words(**plain("memory://scenes/hiertext"))
  near = scene_text.words(**plain(folder))
  for far, close in zip(only(supply), only(near), strict=True):
    assert far.key == close.key and far.text == close.text
    np.testing.assert_array_equal(far.image, close.image)
  memory.rm("/scenes", recursive=True)


def test_files_of_windows_and_separators(tmp_path: pathlib.Path) -> None:
  path = tmp_path / "gt_img_1.txt"
  path.write_bytes("1,2,9,2,9,9,1,9,a\u2028b\r\n".encode())
  [file] = files.find(str(path))
  assert icdar.read_lines(file) == ["1,2,9,2,9,9,1,9,a\u2028b", ""]
  path.write_bytes("1,2,9,2,9,9,1,9,é".encode("latin-1"))
  with pytest.raises(ValueError, match="UTF-8"):
    icdar.read_lines(file)
