"""Pages of batches: what the model gets, readable and inert."""

import base64
import html.parser
import io
import itertools
import json
import re

import gin
import numpy as np
import pytest
import tiny
from PIL import Image

from byt5_diffusion import (
  cli,
  config,
  feature_converters,
  inspection,
  inspection_picture,
)
from byt5_diffusion.data import (
  annotated,
  annotation_view,
  batch_view,
  languages,
  patches,
  pipeline,
  rejections,
  text,
)
from byt5_diffusion.data.writing import fonts

RECIPE = """
from __gin__ import dynamic_registration
import tiny
from byt5_diffusion import optimizers
from byt5_diffusion import partitioning
from byt5_diffusion import trainer

MODEL_DIR = %gin.REQUIRED
trainer.train:
  model = @tiny.make_model()
  train_data = @tiny.Batches
  learning_rate_fn = @optimizers.constant()
  partitioning = @partitioning.Partitioning()
  model_dir = %MODEL_DIR
  total_steps = 10
  batch_size = 4
optimizers.constant.value = 0.001
partitioning.Partitioning.num_partitions = 1
"""
HOSTILE = [
  "<script>alert(1)</script>",
  "' onmouseover='alert(1)' \" & <img src=x onerror=alert(1)>",
  "abc\u202egnp.exe\u2066\u2069\u2069",
  "</div></figure><iframe src=//x>",
  "nul\x00 bell\x07\u2028",
]
SCRIPTS = ["שלום", "नमस्ते", "สวัสดี", "한국어", "日本語", "مرحبا"]


@pytest.fixture(autouse=True)
def clean_gin(monkeypatch):
  monkeypatch.setattr(config, "_parsed", None)
  yield
  gin.clear_config()


@pytest.fixture
def recipe(tmp_path):
  path = tmp_path / "recipe.gin"
  path.write_text(RECIPE)
  return str(path)


def batch(captions, length=64):
  count = len(captions)
  rng = np.random.default_rng(0)
  return {
    "images": rng.uniform(-1, 1, (count, 8, 16, 3)).astype(np.float32),
    "text_tokens": text.encode_batch(captions, length),
    "example_id": np.arange(2 * count, dtype=np.uint32).reshape(count, 2),
  }


def view(*batches):
  rows = batch_view.rows(batches)
  facts = batch_view.survey(rows) | {
    "rejected": {"accepted": 9, "rejected": 2, "reasons": {"<b>bad": 2}}
  }
  shapes = {k: (x.shape, str(x.dtype)) for k, x in batches[0].items()}
  return inspection.View(
    recipe="a.gin", split="train", shapes=shapes, rows=rows, facts=facts
  )


class Elements(html.parser.HTMLParser):
  """Start tags with their attributes, and the text of div.text."""

  def __init__(self, page):
    super().__init__()
    self.tags, self.texts, self._inside = [], [], 0
    self.feed(page)

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag == "div" and dict(attrs).get("class") == "text":
      self._inside = 1
      self.texts.append("")

  def handle_endtag(self, tag):
    if tag == "div":
      self._inside = 0

  def handle_data(self, data):
    if self._inside:
      self.texts[-1] += data


# --- Batches as people read them ---------------------------------------------


def test_a_row_is_what_the_batch_says():
  [first, second] = batch_view.rows([batch(["abc", "日本"])])
  assert (first.text, first.num_bytes, first.script) == ("abc", 3, "Latn")
  assert second.num_bytes == 6 and second.tokens.tolist()[-1] == text.EOS_ID
  assert second.example_id == "0000000200000003"
  assert first.size == "8x16" and first.picture.shape == (8, 16, 3)


def test_pixels_come_back_to_the_bit():
  pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
  floats = feature_converters.PIXELS[pixels]
  np.testing.assert_array_equal(feature_converters.to_pixels(floats), pixels)


def test_patches_are_put_back_wherever_they_stand():
  rng = np.random.default_rng(1)
  image = rng.integers(0, 256, (12, 20, 3)).astype(np.uint8)
  rows = feature_converters.patch_rows(patches.cut(image, 4))
  shuffled = rng.permutation(np.pad(rows, [(0, 5), (0, 0)]))
  np.testing.assert_array_equal(batch_view.join(shuffled), image)
  row = batch_view.Row(batch=0, index=0, arrays={"patches": shuffled})
  assert row.size == "3x5 patches"
  assert "patches 15 of 20" in inspection.described(row)


def test_a_broken_patch_fills_no_memory():
  rows = np.zeros((4, 2 + 12), np.float32)
  rows[0, :2] = 30000
  with pytest.raises(ValueError, match="30000 x 30000"):
    batch_view.join(rows)
  with pytest.raises(ValueError, match="2 \\+ 3 p"):
    batch_view.join(np.zeros((4, 9), np.float32))


def annotated_batch(count=2):
  """A batch with a title above a table, in 40 x 30 white pixels."""
  caption = text.encode_batch(["“<b>Größe</b>”"] * count, 32)
  title, table = (annotated.LABELS.index(x) for x in ("title", "table"))
  mask = np.zeros((count, 40, 30), np.uint8)
  mask[:, 4:10, 3:27], mask[:, 20:36, 3:27] = title, table
  boxes = np.zeros((count, 4, 4), np.float32)
  boxes[:, 0], boxes[:, 1] = (0.1, 0.1, 0.9, 0.25), (0.1, 0.5, 0.9, 0.9)
  spans = np.zeros((count, 4, 2), np.int32)
  spans[:, 0] = 3, 3 + len("<b>Größe</b>".encode())
  style = np.full((count, len(annotated.STYLE)), np.nan, np.float32)
  style[:, annotated.STYLE.index("weight")] = 700
  for i, name in enumerate(("ink_red", "ink_green", "ink_blue")):
    style[:, annotated.STYLE.index(name)] = (1.0, 0.5, 0.0)[i]
  return {
    "images": np.ones((count, 40, 30, 3), np.float32),
    "text_tokens": caption,
    "example_id": np.arange(2 * count, dtype=np.uint32).reshape(count, 2),
    "boxes": boxes,
    "box_labels": np.array([[title, table, 0, 0]] * count, np.int32),
    "box_spans": spans,
    "region_mask": mask,
    "style": style,
    "language": np.full((count, 1), languages.row("de"), np.int32),
  }


def test_regions_are_drawn_where_they_are():
  [row, _] = batch_view.rows([annotated_batch()])
  found = annotation_view.regions(row)
  assert [(r.label, r.text) for r in found] == [
    ("title", "<b>Größe</b>"),
    ("table", ""),
  ]
  page = annotation_view.overlaid(row)
  scale = annotation_view.scale_of(40, 30)
  assert page.shape == (40 * scale, 30 * scale, 3)
  blue = annotation_view.color("table")
  # An outline in the label's colour, a tint inside, paper everywhere else.
  assert tuple(page[round(0.9 * (40 * scale - 1)), 15 * scale]) == blue
  inner = page[30 * scale, 15 * scale].astype(int)
  tint = 255 + 0.35 * (np.array(blue) - 255)
  assert abs(inner - tint).max() <= 1
  assert (page[15 * scale] == 255).all()
  assert [(name, n) for name, _, n in annotation_view.legend(row)] == [
    ("table", 1),
    ("title", 1),
  ]
  assert annotation_view.described(row) == (
    "language de, weight 700, ink #ff8000"
  )


def test_every_label_has_a_colour_of_its_own():
  colors = {annotation_view.color(name) for name in annotated.LABELS[1:]}
  assert len(colors) == len(annotated.LABELS) - 1


def test_annotations_are_on_every_page_and_harm_none():
  made = view(annotated_batch())
  page = inspection.to_html(made)
  assert "&lt;b&gt;Größe&lt;/b&gt;" in page and "<b>" not in page
  assert page.count("<img") == 4  # Each picture, and what is known of it.
  assert "language de, weight 700" in page
  found = inspection.to_json(made)["examples"][0]
  assert found["language"] == "de" and found["weight"] == 700
  assert [r["label"] for r in found["regions"]] == ["title", "table"]
  with_marks = Image.open(io.BytesIO(inspection_picture.to_png(made)))
  plain = {
    key: value
    for key, value in annotated_batch().items()
    if key in ("images", "text_tokens", "example_id")
  }
  without = Image.open(io.BytesIO(inspection_picture.to_png(view(plain))))
  assert with_marks.height > without.height + 40
  colors = {color for _, color in with_marks.getcolors(2**24)}
  assert annotation_view.color("title") in colors


def test_annotations_are_prepared_without_their_padding():
  rows = batch_view.rows([annotated_batch()])
  stored = batch_view._task_features(rows[0])
  for name in ("boxes", "box_labels", "box_spans"):
    assert len(stored[name]) == 2


@pytest.mark.parametrize("place", [-1, 107, 10**6])
def test_numbers_of_no_table_are_shown_as_they_are(place):
  broken = annotated_batch(1)
  broken["language"][:] = place
  broken["box_labels"][:] = 200
  broken["region_mask"][:] = 250
  broken["box_spans"][:] = (-5, 10**6)
  broken["boxes"][0, 2] = (-3.0, np.nan, 7.0, 2.0)
  [row] = batch_view.rows([broken])
  assert annotation_view.facts(row)["language"] == "und"
  assert "200" in [name for name, _, _ in annotation_view.legend(row)]
  assert annotation_view.overlaid(row).size
  assert inspection.to_html(view(broken))


def test_no_text_and_bad_bytes_are_shown():
  tokens = np.zeros((2, 4), np.int32)
  tokens[1, :2] = [0xFF + 3, 1]
  page = inspection.to_html(view({"text_tokens": tokens}))
  assert "no text" in page and "\ufffd" in page


def test_a_survey_counts_everything():
  facts = batch_view.survey(
    batch_view.rows([batch(["abcd", "", *SCRIPTS], 8)]), 8
  )
  assert facts["examples"] == facts["different_ids"] == 8
  assert facts["empty_captions"] == 1
  # Cut at whole characters, so only some captions end on the last byte.
  bars = facts["caption_bytes_histogram"]
  assert sum(bar["count"] for bar in bars) == 8
  assert facts["scripts"]["Latn"] == 1 and sum(facts["scripts"].values()) == 8
  assert facts["caption_bytes"]["max"] <= 7


@pytest.mark.parametrize("values", [[5], [0, 1], list(range(1000)), [7, 7, 9]])
def test_bars_hold_every_value_once(values):
  bars = batch_view.histogram(values)
  assert sum(bar["count"] for bar in bars) == len(values)
  for before, after in itertools.pairwise(bars):
    assert after["from"] == before["to"] + 1
  assert bars[0]["from"] == min(values) and bars[-1]["to"] >= max(values)
  assert len(bars) <= 8 and batch_view.histogram([]) == []


def test_rejections_are_those_of_this_reading():
  ledger = rejections.ledger("inspection_test", max_share=1.0)
  ledger.reject("old", "why")
  before = batch_view.ledgers_now()
  ledger.accept()
  ledger.reject("new", "why")
  found = batch_view.rejected_since(before)
  rejections.forget("inspection_test")
  assert found == {"accepted": 1, "rejected": 1, "reasons": {"why": 1}}


def test_prepared_bytes_are_near_the_pixels():
  """Noise does not compress: height x width x 3 and little more."""
  noise = batch(["a"] * 40)
  noise["images"] = (
    np.random.default_rng(0).uniform(-1, 1, (40, 64, 64, 3)).astype(np.float32)
  )
  size = batch_view.prepared_bytes(batch_view.rows([noise]))
  assert 64 * 64 * 3 * 0.9 < size < 64 * 64 * 3 * 1.3


# --- The page ----------------------------------------------------------------


def test_hostile_captions_are_inert():
  page = inspection.to_html(view(batch(HOSTILE, 96)))
  elements = Elements(page)
  allowed = {
    *("html", "head", "meta", "title", "style", "body", "h1", "h2", "div"),
    *("table", "tr", "th", "td", "span", "figure", "img", "details", "summary"),
  }
  assert {tag for tag, _ in elements.tags} <= allowed
  for _, attributes in elements.tags:
    assert not [name for name in attributes if name.startswith("on")]
    assert "src" not in attributes or attributes["src"].startswith("data:")
  policy = dict(elements.tags)["meta"]
  assert policy is not None and "default-src 'none'" in page
  assert "<b>bad" not in page and "&lt;b&gt;bad" in page
  # What is invisible, or turns text around, is spelled out and not sent.
  for code in (0x202E, 0x2066, 0x2069, 0x2028, 0x07):
    assert chr(code) not in page and f"U+{code:04X}" in page


def test_every_caption_is_on_the_page_in_its_own_language():
  page = inspection.to_html(view(batch(SCRIPTS)))
  elements = Elements(page)
  assert elements.texts == SCRIPTS
  texts = [a for t, a in elements.tags if a.get("class") == "text"]
  assert all(a["dir"] == "auto" for a in texts)
  assert [a.get("lang") for a in texts] == [
    *("und-Hebr", "und-Deva", "und-Thai", "ko", "zh-Hans", "und-Arab")
  ]
  ids = " ".join(map(str, text.encode("שלום", 64)))
  assert texts[0]["title"] == ids


def test_pictures_are_the_batch_s_and_tiny_ones_are_enlarged():
  shown = view(batch(["a"]))
  page = inspection.to_html(shown)
  [(_, image)] = [x for x in Elements(page).tags if x[0] == "img"]
  png = base64.b64decode(image["src"].partition(",")[2])
  pixels = np.asarray(Image.open(io.BytesIO(png)))
  np.testing.assert_array_equal(pixels, shown.rows[0].picture)
  assert (image["width"], image["height"]) == ("192", "96")
  assert "image-rendering: pixelated" in page


def test_only_so_many_rows_are_shown_but_all_are_counted():
  page = inspection.to_html(view(batch(["a"] * 9)), max_rows=4)
  assert page.count("<figure>") == 4 and "9 examples, 4 shown" in page


def test_joiners_stay_and_controls_are_points():
  assert inspection.visible("a\u200db") == [("a\u200db", False)]
  assert inspection.visible("\u200fa\n") == [
    ("U+200F", True),
    ("a", False),
    ("U+000A", True),
  ]


# --- The picture -------------------------------------------------------------


@pytest.fixture(scope="module")
def latin():
  try:
    return fonts.fonts_for("Latn")[0]
  except fonts.MissingFont as error:
    pytest.skip(str(error))


def test_the_picture_holds_the_batch_s_pixels(latin):
  shown = view(batch(["abc"]))
  png = inspection_picture.to_png(shown)
  page = np.asarray(Image.open(io.BytesIO(png)))
  large = shown.rows[0].picture.repeat(12, axis=0).repeat(12, axis=1)
  places = np.argwhere((page[:, :, :] == large[0, 0]).all(axis=-1))
  assert any(
    np.array_equal(page[y : y + 96, x : x + 192], large) for y, x in places[:99]
  )
  assert png == inspection_picture.to_png(shown)  # deterministic


def test_hostile_captions_are_drawn_too(latin):
  png = inspection_picture.to_png(view(batch([*HOSTILE, *SCRIPTS, ""], 96)))
  assert Image.open(io.BytesIO(png)).size[0] == 1200


def test_what_no_font_has_is_its_code_point(latin):
  assert inspection_picture.spelled("a\U0001e123") == "a[U+1E123]"
  assert inspection_picture.spelled("a\u202eb") == "a[U+202E]b"
  assert inspection_picture.spelled("abc") == "abc"


def test_long_captions_are_broken_and_then_cut(latin):
  short = inspection_picture.paragraph("word " * 2, 200, 12.0)
  long = inspection_picture.paragraph("word " * 20, 200, 12.0)
  endless = inspection_picture.paragraph("w" * 2000, 200, 12.0)
  assert short.shape[0] < long.shape[0] and long.shape[1] == 200
  assert endless.shape[0] < 120
  # Nothing touches the right edge: lines were broken, not clipped.
  assert long[:, -1].min() == 255


def test_right_to_left_text_stands_at_the_right(latin):
  try:
    fonts.fonts_for("Hebr")
  except fonts.MissingFont as error:
    pytest.skip(str(error))
  ink = inspection_picture.paragraph("שלום", 300, 16.0)[:, :, 0] < 128
  columns = np.flatnonzero(ink.any(axis=0))
  assert columns.min() > 200 and columns.max() < 300


# --- Reading and the command -------------------------------------------------


def test_batches_are_those_that_training_gets(recipe):
  found = inspection.inspect(recipe, num_batches=3)
  assert [number for number, _ in found.batches()] == [0, 1, 2]
  expected = tiny.make_batch(4, seed=1)["text_tokens"]
  rows = [row for row in found.rows if row.batch == 1]
  got = np.stack([row.arrays["text_tokens"] for row in rows])
  np.testing.assert_array_equal(got, expected)
  assert found.facts["examples"] == 12
  pages = [
    inspection.to_html(inspection.inspect(recipe, num_batches=1))
    for _ in range(2)
  ]
  assert pages[0] == pages[1]


def test_a_small_split_is_read_in_smaller_batches(recipe, monkeypatch):
  given = tiny.Batches.__next__

  def only_pairs(self):
    if self._batch_size > 2:
      raise pipeline.EmptySplit("does not fill one batch")
    return given(self)

  monkeypatch.setattr(tiny.Batches, "__next__", only_pairs)
  found = inspection.inspect(recipe, num_batches=2)
  assert found.shapes["images"][0][0] == 2 and len(found.rows) == 4


def test_the_command_writes_pages_and_json(recipe, tmp_path, capsys):
  out = tmp_path / "new" / "page.html"
  arguments = ["inspect", recipe, "--batches=1"]
  assert not cli.main([*arguments, f"--out={out}", "--json"])
  printed = json.loads(capsys.readouterr().out)
  assert len(printed["examples"]) == 4
  row = printed["examples"][0]
  assert row["text"] == text.decode(np.array(row["text_tokens"]))
  assert out.read_text().count("<figure>") == 4
  assert cli.main([*arguments, f"--out={out}"]) == 2
  assert "--overwrite" in capsys.readouterr().err
  assert not cli.main([*arguments, f"--out={out}", "--overwrite", "--rows=2"])
  assert out.read_text().count("<figure>") == 2


@pytest.mark.parametrize(
  ("flags", "says"),
  [
    ([], "inspect needs --out"),
    (["--out=x.jpg"], "must end in .html or .png"),
    (["--out=/proc/nope/x.png"], "nothing can be written in /proc/nope"),
    (["--json", "--batches=0"], "--batches 0: must be positive"),
    (["--json", "--rows=-1"], "--rows -1: must be positive"),
  ],
)
def test_wrong_uses_end_in_one_line(recipe, flags, says, capsys):
  assert cli.main(["inspect", recipe, *flags]) == 2
  error = capsys.readouterr().err
  assert says in error and error.count("\n") == 1


def test_an_unknown_recipe_or_split_is_named(recipe, capsys, monkeypatch):
  assert cli.main(["inspect", "nothing.gin", "--json"]) == 2
  assert "no gin file nothing.gin" in capsys.readouterr().err

  def no_split(self, *unused, **keywords):
    raise pipeline.EmptySplit("'words' has no split 'tset', only ['train'].")

  monkeypatch.setattr(tiny.Batches, "__init__", no_split)
  assert cli.main(["inspect", recipe, "--split=tset", "--json"]) == 2
  error = capsys.readouterr().err
  assert error.splitlines()[-1].startswith("Error: 'words' has no split 'tset'")
  assert not re.search("Traceback", error)
