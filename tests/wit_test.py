"""WiT: each publication in its exact columns, and what is wrong with them."""

import csv
import gzip
import io
import json
import pathlib
import tarfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from PIL import Image

from byt5_diffusion.data import (
  images,
  languages,
  rejections,
  seqio_tasks,
)
from byt5_diffusion.data.sets import (
  image_addresses,
  wit,
  wit_captions,
)
from byt5_diffusion.tasks import wit as wit_tasks

FIXTURE = "fixtures/wit/wit_card_sample.tsv"
OXYDACTYLUS = (
  "https://upload.wikimedia.org/wikipedia/commons/5/5f/"
  "Oxydactylus_longipes_fm.jpg"
)


@pytest.fixture(autouse=True)
def cache(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def picture(width: int = 300, height: int = 200, form: str = "JPEG") -> bytes:
  file = io.BytesIO()
  pixels = np.full((height, width, 3), 90, np.uint8)
  Image.fromarray(pixels).save(file, form)
  return file.getvalue()


def use(**values: Any) -> dict[str, Any]:
  """A row of google/wit, as its TSV has it."""
  row = dict.fromkeys(wit.COLUMNS, "")
  row |= {
    "language": "en",
    "page_url": "https://en.wikipedia.org/wiki/Sign",
    "image_url": "https://upload.example/sign.jpg",
    "caption_reference_description": "A sign with words",
    "mime_type": "image/jpeg",
    "original_height": "2000",
    "original_width": "3000",
    "is_main_image": "true",
    "attribution_passes_lang_id": "true",
    "page_changed_recently": "false",
  }
  return row | values


def tsv(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> str:
  with gzip.open(path, "wt", encoding="utf-8", newline="") as file:
    writer = csv.DictWriter(
      file, wit.COLUMNS, delimiter="\t", lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(rows)
  return str(path)


def fetched(path: pathlib.Path, urls: Sequence[str]) -> str:
  """img2dataset's output: each picture as grey as its number."""
  path.mkdir()
  with tarfile.open(path / "00000.tar", "w") as tar:
    for i, url in enumerate(urls):
      meta = {"url": url, "key": f"{i:09d}", "status": "success"}
      for name, raw in (
        (f"{i:09d}.jpg", picture(300, 200 + i)),
        (f"{i:09d}.json", json.dumps(meta).encode()),
      ):
        member = tarfile.TarInfo(name)
        member.size = len(raw)
        tar.addfile(member, io.BytesIO(raw))
  return str(path)


def opened(path: str, **options: Any) -> Any:
  return wit.open_wit(path, **{"validation_share": 0.0} | options)


def examples(supply: Any) -> list[Any]:
  return [supply.read("train", i) for i in range(supply.sizes["train"])]


def left_out(supply: Any) -> dict[str, int]:
  return rejections.ledger(f"{supply.name} (filters)").summary()["reasons"]


# --- google/wit ---------------------------------------------------------------


def test_the_published_record(
  shared_data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
  """Its second row says "false", which is not true."""
  path = shared_data / FIXTURE
  with path.open(encoding="utf-8") as file:
    assert file.readline().rstrip("\n").split("\t") == list(wit.COLUMNS)
  folder = fetched(tmp_path / "images", [OXYDACTYLUS])
  supply = opened(str(path), images=folder)
  assert [x.text for x in examples(supply)] == [
    "Mounted skeleton of Oxydactylus longipes in the Field Museum of Natural"
    " History."
  ] * 2
  assert examples(supply)[0].key == (
    f"wit/{OXYDACTYLUS} en https://en.wikipedia.org/wiki/Oxydactylus"
  )
  main = opened(str(path), images=folder, main_images_only=True)
  assert main.sizes["train"] == 1
  assert left_out(main) == {"not the page's main picture": 1}


def test_each_language_of_a_picture_is_an_example(
  tmp_path: pathlib.Path,
) -> None:
  captions = {
    "en": "A sign in English", "he": "שלט בעברית כאן", "zh-TW": "中文的招牌",
    "no": "Et norsk skilt", "nn": "Eit nynorsk skilt", "hr": "Hrvatski znak",
    "sr": "Српски знак", "ceb": "Karatula sa Sugbo",
  }  # fmt: skip
  rows = [
    use(
      language=code,
      page_url=f"https://{code}.wikipedia.org/wiki/Sign",
      caption_reference_description=text,
    )
    for code, text in captions.items()
  ]
  rows.append(use(image_url="https://upload.example/other.jpg"))
  rows.append(use(image_url="https://upload.example/gone.jpg"))
  folder = fetched(
    tmp_path / "images", [rows[-2]["image_url"], rows[0]["image_url"]]
  )
  supply = opened(tsv(tmp_path / "wit.tsv.gz", rows), images=folder)
  found = examples(supply)
  assert [x.language for x in found] == [
    "en", "iw", "zh", "no", "no", "und", "sr", "ceb", "en"
  ]  # fmt: skip
  assert len({x.key for x in found}) == len(found) == 9
  assert left_out(supply) == {"not downloaded": 1}
  # Each has its own address's picture.
  sizes = [images.decode_image(x.image).shape[0] for x in found]
  assert sizes == [201] * 8 + [200]
  rows = supply.languages("train").tolist()
  assert rows[5] == languages.OTHER and rows[1] == languages.row("iw")


def test_captions_of_a_picture_are_all_in_one_split(
  tmp_path: pathlib.Path,
) -> None:
  urls = [f"https://upload.example/{i}.jpg" for i in range(40)]
  rows = [
    use(image_url=url, language=code, page_url=code)
    for code in ("en", "de", "fr")
    for url in urls
  ]
  supply = opened(
    tsv(tmp_path / "wit.tsv.gz", rows),
    images=fetched(tmp_path / "images", urls),
    validation_share=0.3,
  )
  splits = [
    {
      supply.read(split, i).key.split(" ")[0]
      for i in range(supply.sizes[split])
    }
    for split in ("train", "validation")
  ]
  assert all(splits) and not splits[0] & splits[1]
  assert sum(supply.sizes.values()) == 120


def test_addresses_alone_say_how_to_fetch_them(tmp_path: pathlib.Path) -> None:
  path = tsv(tmp_path / "wit.tsv.gz", [use()])
  with pytest.raises(ValueError, match=r"byt5-diffusion download .*\+images="):
    opened(path)


def test_fields_of_any_size_and_broken_rows(tmp_path: pathlib.Path) -> None:
  """Longer than csv's own limit; with quotes, tabs and lines inside."""
  text = 'A "sign"\twith\nlines'
  rows = [
    use(
      context_page_description="x" * 200_000,
      caption_reference_description=text,
    ),
    *(use(language="de", page_url=str(i)) for i in range(30)),
  ]
  path = tmp_path / "wit.tsv"
  with gzip.open(tsv(tmp_path / "wit.tsv.gz", rows)) as file:
    path.write_bytes(file.read() + b"only\tthree\tfields\n")
  folder = fetched(tmp_path / "images", [rows[0]["image_url"]])
  supply = opened(str(path), images=folder)
  assert examples(supply)[0].text == text
  broken = rejections.ledger(f"{supply.name} (rows)").summary()
  assert broken["rejected"] == 1


def test_missing_columns_are_named(tmp_path: pathlib.Path) -> None:
  path = tmp_path / "wit.tsv"
  path.write_text("language\timage_url\nen\thttp://x/y\n", "utf-8")
  with pytest.raises(ValueError, match="no column page_url, caption_ref"):
    opened(str(path))


def test_a_hash_is_not_taken_for_its_address(
  tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setattr(image_addresses, "_hash", lambda url: 7)
  found = image_addresses.ImageAddresses(
    fetched(tmp_path / "images", ["http://a/1"])
  )
  assert found.picture("http://a/1")
  with pytest.raises(images.BadImage, match="another picture's place"):
    found.picture("http://a/2")


# --- what is said -------------------------------------------------------------


@pytest.mark.parametrize(
  ("value", "truth"),
  [
    ("true", True), ("false", False), ("True", True), ("False", False),
    ("", False), (None, False), (True, True), (False, False), (1, True),
    (0, False), (b"false", False), (b"true", True), ("1", True), (2, False),
  ],
)  # fmt: skip
def test_booleans(value: Any, truth: bool) -> None:
  """A string that says "false" is no reason to believe it true."""
  assert wit_captions.to_bool(value) is truth


@pytest.mark.parametrize(
  ("text", "language", "passes", "said"),
  [
    ("English: A dog", "en", True, "A dog"),
    ("English: A dog", "en", False, "A dog"),
    ("English: A dog", "de", False, ""),
    ("A dog", "en", True, "A dog"),
    ("A dog", "en", False, ""),
    ("English: A dog Deutsch: Ein Hund", "de", False, "Ein Hund"),
    ("English: A dog\nFrançais : Un chien\nX", "fr", True, "Un chien\nX"),
    ("English: A dog Deutsch: Ein Hund", "en", True, "A dog"),
    ("English: A dog Deutsch: Ein Hund", "it", True, ""),
    ("עברית: כלב", "he", False, "כלב"),
    ("עברית: כלב", "iw", False, "כלב"),
    ("中文（繁體）：狗", "zh-TW", False, "狗"),
    ("Norsk nynorsk: Hund", "nn", False, "Hund"),
    ("Hrvatski: Pas", "hr", False, "Pas"),
    ("Hrvatski: Pas", "bs", False, ""),
    ("He spoke English: badly", "en", True, "He spoke English: badly"),
    ("Title: something", "en", True, "Title: something"),
    ("", "en", True, ""),
  ],
)
def test_attributions(
  text: str, language: str, passes: bool, said: str
) -> None:
  assert wit_captions.attribution_in(text, language, passes) == said


def test_captions_in_their_order() -> None:
  row = use(
    caption_alt_text_description="alt",
    caption_attribution_description="English: own",
  )
  said = wit_captions.use_of(0, row)
  assert wit_captions.caption_of(said) == "A sign with words"
  assert wit_captions.caption_of(said, ("alt_text", "reference")) == "alt"
  assert wit_captions.caption_of(said, ("attribution",)) == "own"
  silent = said._replace(captions=dict.fromkeys(wit_captions.CAPTIONS, ""))
  assert wit_captions.caption_of(silent) == ""


def test_other_captions_than_there_are() -> None:
  with pytest.raises(ValueError, match="alt_text"):
    opened("nowhere", captions="alt")


# --- wikimedia/wit_base -------------------------------------------------------

FEATURES = (
  "language", "page_url", "attribution_passes_lang_id",
  "caption_alt_text_description", "caption_reference_description",
  "caption_title_and_reference_description", "context_page_description",
  "context_section_description", "hierarchical_section_title",
  "is_main_image", "page_changed_recently", "page_title", "section_title",
)  # fmt: skip
BOOLEANS = (
  "attribution_passes_lang_id", "is_main_image", "page_changed_recently"
)  # fmt: skip


def base(url: str, pages: Sequence[Mapping[str, Any]], **values: Any) -> Any:
  """A row of wit_base; what a page lacks is null."""
  lists = {name: [page.get(name) for page in pages] for name in FEATURES}
  return {
    "image": {"bytes": picture(), "path": None},
    "image_url": url,
    "embedding": [0.0] * 8,
    "metadata_url": "https://commons.example/x",
    "original_height": 2000,
    "original_width": 3000,
    "mime_type": "image/jpeg",
    "caption_attribution_description": None,
    "wit_features": lists,
  } | values


def base_file(path: pathlib.Path, rows: Sequence[Any]) -> str:
  lists = pa.struct(
    [(n, pa.list_(pa.bool_() if n in BOOLEANS else pa.string()))
     for n in FEATURES]
  )  # fmt: skip
  schema = pa.schema(
    [
      ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
      ("image_url", pa.string()), ("embedding", pa.list_(pa.float64())),
      ("metadata_url", pa.string()), ("original_height", pa.int32()),
      ("original_width", pa.int32()), ("mime_type", pa.string()),
      ("caption_attribution_description", pa.string()),
      ("wit_features", lists),
    ]
  )  # fmt: skip
  pq.write_table(pa.Table.from_pylist(rows, schema), path)
  return str(path)


def page(code: str, text: str | None, **values: Any) -> dict[str, Any]:
  return {
    "language": code,
    "page_url": f"https://{code}.wikipedia.org/{len(text or '')}",
    "caption_reference_description": text,
    "attribution_passes_lang_id": True,
    "is_main_image": True,
  } | values


def test_pages_of_a_picture(tmp_path: pathlib.Path) -> None:
  pages = [
    page("en", "A dog that reads"),
    page("de", None),  # Says nothing, and keeps its place.
    page("fr", None, caption_alt_text_description="Un chien qui lit"),
    page("en", "A dog that reads", page_url="https://en.wikipedia.org/2"),
    page("iw", "כלב קורא ספר"),
  ]
  rows = [
    base("https://u.example/dog.jpg", pages),
    base(
      "https://u.example/cat.jpg",
      [
        page("en", None, attribution_passes_lang_id=False),
        page("de", None, attribution_passes_lang_id=None),
        page("it", "Un gatto bianco"),
      ],
      caption_attribution_description="English: Cats sleep Deutsch: Eine Katze",
    ),
    base("https://u.example/mute.jpg", [page("en", None)]),
  ]
  supply = opened(base_file(tmp_path / "x.parquet", rows))
  found = examples(supply)
  assert [(x.language, x.text) for x in found] == [
    ("en", "A dog that reads"), ("fr", "Un chien qui lit"),
    ("iw", "כלב קורא ספר"), ("en", "Cats sleep"), ("de", "Eine Katze"),
    ("it", "Un gatto bianco"),
  ]  # fmt: skip
  assert left_out(supply) == {"no caption": 1}
  assert found[1].key == (
    "wit/https://u.example/dog.jpg fr https://fr.wikipedia.org/0"
  )
  assert images.decode_image(found[0].image).shape == (200, 300, 3)


def test_the_size_that_counts_is_that_of_the_file(
  tmp_path: pathlib.Path,
) -> None:
  """300 pixels wide, whatever the original was: see the rules' arguments."""
  reader = wit._Base(wit.Choice())
  row = base("u", [page("en", "x")])
  assert reader.size(row) == (300, 200)
  assert reader.size(row | {"original_width": 150}) == (150, 2000)
  assert reader.size(row | {"original_width": None}) == (None, None)


@pytest.mark.parametrize(
  ("changes", "reason"),
  [
    ({"image": None}, "no picture"),
    ({"image": {"bytes": b"", "path": "x"}}, "no picture"),
    ({"wit_features": None}, "another form"),
    ({"wit_features": {"language": None}}, "another form"),
    ({"wit_features": {"language": ["en"], "page_url": []}}, "lengths"),
    ({"image_url": None}, "no image_url"),
  ],
)
def test_broken_rows_of_wit_base(changes: Any, reason: str) -> None:
  reader = wit._Base(wit.Choice())
  with pytest.raises(images.BadImage, match=reason):
    reader.make(base("u", [page("en", "x")], **changes), 0)


# --- wit_kaggle ---------------------------------------------------------------


def example(image: bytes | None, **values: Any) -> bytes:
  """A record as TFDS writes it."""
  features = {}
  for key, value in use(**values).items():
    if key in BOOLEANS:
      value = int(value == "true")
      made = tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
    else:
      raw = value.encode() if isinstance(value, str) else value
      made = tf.train.Feature(bytes_list=tf.train.BytesList(value=[raw]))
    features[key] = made
  if image is not None:
    features["image"] = tf.train.Feature(
      bytes_list=tf.train.BytesList(value=[image])
    )
  features = tf.train.Features(feature=features)
  return tf.train.Example(features=features).SerializeToString()


def test_one_white_pixel_is_no_picture(tmp_path: pathlib.Path) -> None:
  """What TFDS writes where a picture could not be had."""

  path = tmp_path / "wit_kaggle-train.tfrecord-00000-of-00001"
  with tf.io.TFRecordWriter(str(path)) as writer:
    writer.write(example(picture()))
    writer.write(example(picture(1, 1, "PNG"), language="de"))
    writer.write(
      example(
        picture(300, 200, "PNG"),
        language="fr",
        attribution_passes_lang_id="false",
        caption_reference_description="",
        caption_attribution_description="Une enseigne",
      )
    )
  supply = opened(str(path))
  assert [x.text for x in examples(supply)] == ["A sign with words"]
  assert left_out(supply) == {"no picture": 1, "no caption": 1}
  assert wit.is_placeholder(picture(1, 1, "PNG"))
  assert not wit.is_placeholder(picture(2, 1, "PNG"))


def test_records_whose_booleans_are_wrong_are_refused(
  tmp_path: pathlib.Path,
) -> None:
  path = tmp_path / "wit-train.tfrecord-00000-of-00001"
  with tf.io.TFRecordWriter(str(path)) as writer:
    writer.write(example(None))
  folder = fetched(tmp_path / "images", [use()["image_url"]])
  with pytest.raises(ValueError, match="booleans are wrong"):
    opened(str(path), images=folder)


def test_the_task_of_a_name(tmp_path: pathlib.Path) -> None:
  rows = [
    base(f"https://u.example/{i}.jpg", [page("en", f"A dog of {i} dogs")])
    for i in range(3)
  ]
  path = base_file(tmp_path / "x.parquet", rows)
  name = f"wit_annotated:{path}@32x48+validation_share=0.0+captions=reference"
  task = seqio_tasks.seqio.get_mixture_or_task(wit_tasks.register(name))
  lengths = {"image": 32, "text_tokens": 64, "example_id": 2}
  made = list(task.get_dataset(lengths, "train", shuffle=False))
  assert len(made) == 3
  assert made[0]["language"].numpy().tolist() == [languages.row("en")]
  assert made[0]["image"].shape == (32, 48, 3)
