"""PAGE-XML and IAM's files: what they say, and what they may not ask for."""

import pathlib

import numpy as np
import pytest
from PIL import Image, ImageDraw

from byt5_diffusion.data import (
  annotated,
  images,
  rejections,
)
from byt5_diffusion.data.sets import (
  handwriting,
  page_supply,
  page_xml,
  xml_trees,
)

SPACE = "http://schema.primaresearch.org/PAGE/gts/pagecontent/2013-07-15"
# The reading order turns the regions around; the second line of the first
# region comes first; its outline begins in the lower right corner.
PAGE = f"""<?xml version="1.0" encoding="UTF-8"?>
<PcGts xmlns="{SPACE}"><Metadata/>
<Page imageFilename="scan 1.png" imageWidth="200" imageHeight="200">
<ReadingOrder><OrderedGroup id="g">
 <RegionRefIndexed index="1" regionRef="r1"/>
 <RegionRefIndexed index="0" regionRef="r2"/>
</OrderedGroup></ReadingOrder>
<TextRegion id="r1" primaryLanguage="Arabic">
 <Coords points="0,0 200,0 200,90 0,90"/>
 <TextLine id="l1" custom="readingOrder {{index:1;}}">
  <Coords points="180,80 20,80 20,50 180,50"/>
  <Word id="w1"><Coords points="100,50 180,50 180,80 100,80"/>
   <TextEquiv><Unicode>سلام</Unicode></TextEquiv></Word>
  <TextEquiv index="1"><Unicode>second guess</Unicode></TextEquiv>
  <TextEquiv index="0"><Unicode>سلام  عليكم</Unicode></TextEquiv>
 </TextLine>
 <TextLine id="l0" custom="readingOrder {{index:0;}}">
  <Coords points="20,10 100,10 180,10 180,40 20,40"/>
  <TextEquiv><Unicode>أول</Unicode></TextEquiv>
 </TextLine>
</TextRegion>
<TextRegion id="r2"><TextLine id="m" readingDirection="top-to-bottom">
  <Coords><Point x="10" y="100"/><Point x="30" y="100"/>
   <Point x="30" y="190"/><Point x="10" y="190"/></Coords>
  <TextEquiv><Unicode>たて</Unicode></TextEquiv>
</TextLine></TextRegion>
</Page></PcGts>
"""
LINE = "20,10 180,10 180,40 20,40"


@pytest.fixture(autouse=True)
def cache(
  tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
  """Nothing is kept among the user's files."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def only(supply: page_supply.PageSupply) -> list[annotated.Annotated]:
  return [supply.read("train", i) for i in range(supply.sizes["train"])]


def scan(path: pathlib.Path) -> None:
  image = Image.new("RGB", (200, 200), "white")
  draw = ImageDraw.Draw(image)
  draw.rectangle((20, 10, 180, 40), fill=(200, 0, 0))
  draw.rectangle((20, 50, 180, 80), fill=(0, 0, 200))
  draw.rectangle((10, 100, 30, 190), fill=(0, 160, 0))
  image.save(path)


def folder_with(folder: pathlib.Path, xml: str | bytes) -> pathlib.Path:
  raw = xml if isinstance(xml, bytes) else xml.encode("utf-8")
  (folder / "scan 1.xml").write_bytes(raw)
  scan(folder / "scan 1.png")
  return folder


def one_line(points: str, written: str = "text") -> str:
  return (
    f'<PcGts xmlns="{SPACE}"><Page imageFilename="scan 1.png"><TextRegion>'
    f'<TextLine id="l"><Coords points="{points}"/><TextEquiv><Unicode>'
    f"{written}</Unicode></TextEquiv></TextLine></TextRegion></Page></PcGts>"
  )


def test_lines_in_reading_order(tmp_path: pathlib.Path) -> None:
  supply = handwriting.lines(str(folder_with(tmp_path, PAGE)), margin=0.0)
  found = only(supply)
  assert [one.transcription for one in found] == ["たて", "أول", "سلام عليكم"]
  assert [one.language for one in found] == ["und", "ar", "ar"]
  assert [one.style["vertical"] for one in found] == [1.0, 0.0, 0.0]
  for one, colour, size in zip(
    found,
    [(0, 160, 0), (200, 0, 0), (0, 0, 200)],
    [(90, 20), (30, 160), (30, 160)],
    strict=True,
  ):
    assert one.image.shape[:2] == size
    inner = one.image[2:-2, 2:-2].reshape(-1, 3)
    np.testing.assert_array_equal(np.unique(inner, axis=0), [colour])


def test_words_and_pages(tmp_path: pathlib.Path) -> None:
  folder = str(folder_with(tmp_path, PAGE))
  [word] = only(handwriting.words(folder))
  assert word.transcription == "سلام"
  [page] = only(handwriting.pages(folder))
  assert page.transcription == "たて\nأول\nسلام عليكم"
  raw = page.text.encode("utf-8")
  spans = {region.text: region.span for region in page.regions}
  assert set(spans) == {"たて", "أول", "سلام عليكم", "سلام"}
  for text, span in spans.items():
    assert span is not None
    assert raw[slice(*span)].decode("utf-8") == text
  assert only(handwriting.pages(folder, language="fa"))[0].language == "fa"


BOMB = (
  '<!DOCTYPE PcGts [<!ENTITY a "aaaaaaaaaa">'
  + "".join(f'<!ENTITY a{i} "{"&a;" * 10}">' for i in range(9))
  + "]><PcGts>&a8;</PcGts>"
)


@pytest.mark.parametrize(
  ("xml", "reason"),
  [
    (BOMB, "declares a document type"),
    (
      '<!DOCTYPE p [<!ENTITY e SYSTEM "file:///etc/passwd">]><PcGts>&e;</PcGts>',
      "declares a document type",
    ),
    (
      '<!DOCTYPE p SYSTEM "http://example.com/p.dtd"><PcGts/>',
      "declares a document type",
    ),
    ("<PcGts>&undefined;</PcGts>", "is no XML"),
    ("<PcGts>" * 100, "more than 64 elements"),
    ("<PcGts><a/>", "is no XML"),
    ("", "is no XML"),
    (b"<?xml version='1.0' encoding='no-such'?><PcGts/>", "encoding"),
    (b"<PcGts>\xff\xfe</PcGts>", "is no XML"),
    ("<PcGts/>", "has no Page"),
  ],
)
def test_hostile_files_are_refused(
  tmp_path: pathlib.Path, xml: str | bytes, reason: str
) -> None:
  path = tmp_path / "a.xml"
  path.write_bytes(xml if isinstance(xml, bytes) else xml.encode())
  with pytest.raises(xml_trees.BrokenXml, match=reason) as error:
    page_xml.page(path, "a")
  assert str(path) in str(error.value)


def test_files_are_bounded(
  tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  path = tmp_path / "a.xml"
  path.write_text("<a>" + "<b/>" * 100 + "</a>")
  assert len(xml_trees.read(path)) == 100
  with pytest.raises(xml_trees.BrokenXml, match="more than 50 bytes"):
    xml_trees.read(path, 50)
  monkeypatch.setattr(xml_trees, "MAX_ELEMENTS", 50)
  with pytest.raises(xml_trees.BrokenXml, match="more than 50 elements"):
    xml_trees.read(path)
  with pytest.raises(xml_trees.BrokenXml, match="no regular file"):
    xml_trees.read(tmp_path)
  with pytest.raises(xml_trees.BrokenXml, match="No such file"):
    xml_trees.read(tmp_path / "b.xml")


def test_comments_and_styles_do_nothing() -> None:
  tree = xml_trees.parse(
    b'<?xml-stylesheet href="http://example.com/a.xsl"?><!-- a --><x:a '
    b'xmlns:x="urn:x" x:b="1"><x:c>d</x:c></x:a>'
  )
  assert (tree.tag, tree.get("b"), tree.findtext("c")) == ("a", "1", "d")


def test_a_broken_file_among_good_ones_is_named(
  tmp_path: pathlib.Path,
) -> None:
  folder = folder_with(tmp_path, PAGE)
  (folder / "bad.xml").write_text("<PcGts><Page>")
  with pytest.raises(rejections.TooManyRejections, match=r"bad.*is no XML"):
    handwriting.lines(str(folder))
  for i in range(20):
    (folder / f"page{i}.xml").write_text(one_line(LINE, f"text {i}"))
  supply = handwriting.lines(str(folder))
  assert sum(supply.sizes.values()) == 23


@pytest.mark.parametrize(
  ("points", "reason"),
  [
    ("", "fewer than three"),
    ("1,2 3,4", "fewer than three"),
    ("1,2 3,x 5,6", "corners without a place"),
    ("1,2 1,2 1,2", "no area"),
    ("1,2 nan,4 5,60", "corners without a place"),
    ("0,0 1e9,0 5,60", "corners without a place"),
  ],
)
def test_bad_outlines_are_noted(
  tmp_path: pathlib.Path, points: str, reason: str
) -> None:
  path = tmp_path / "a.xml"
  path.write_text(one_line(points))
  page = page_xml.page(path, "a")
  assert not page.marks
  assert page.problems[0][0] == "l" and reason in page.problems[0][1]


def test_a_line_outside_its_picture(tmp_path: pathlib.Path) -> None:
  supply = handwriting.lines(
    str(folder_with(tmp_path, one_line("500,10 600,10 600,40 500,40")))
  )
  with pytest.raises(images.BadImage, match="outside of the picture"):
    supply.read("train", 0)


def test_turned_lines_are_straightened(tmp_path: pathlib.Path) -> None:
  """A line that climbs; its outline begins where it ends."""
  image = Image.new("RGB", (200, 200), "white")
  outline = [(30, 130), (170, 70), (180, 95), (40, 155)]
  ImageDraw.Draw(image).polygon(outline, fill=(200, 0, 0))
  ImageDraw.Draw(image).polygon(
    [(30, 130), (65, 115), (75, 140), (40, 155)], fill=(0, 0, 200)
  )
  folder = folder_with(
    tmp_path, one_line("180,95 40,155 30,130 100,100 170,70")
  )
  image.save(folder / "scan 1.png")
  [one] = only(handwriting.lines(str(folder), margin=0.0))
  height, width = one.image.shape[:2]
  assert abs(width - 152) < 5 and abs(height - 27) < 5
  assert tuple(one.image[height // 2, width // 10]) == (0, 0, 200)
  assert tuple(one.image[height // 2, width // 2]) == (200, 0, 0)


IAM_LINES = """#--- lines.txt ---#
# format: a01-000u-00 ok 154 19 408 746 1661 89 A|MOVE|to|stop|Mr.|Gaitskell
a01-000u-00 ok 154 19 10 10 160 30 A|MOVE|to
a01-000u-01 ok 154 19 10 50 160 30 1961
a01-000u-02 err 154 19 10 90 160 30 badly cut
"""
IAM_WORDS = """# words
a01-000u-00-00 ok 154 10 10 40 30 AT A
a01-000u-00-01 ok 154 60 10 40 30 CD 1961
a01-000u-00-02 err 156 110 10 40 30 NPTS M Ps
"""


def test_iam_forms(tmp_path: pathlib.Path) -> None:
  """Lines and words are cut out of the forms."""
  (tmp_path / "lines.txt").write_text(IAM_LINES)
  (tmp_path / "words.txt").write_text(IAM_WORDS)
  scan(tmp_path / "a01-000u.png")
  folder = str(tmp_path)
  lines = only(handwriting.lines(folder, margin=0.0))
  assert [one.transcription for one in lines] == ["A MOVE to", "1961"]
  assert lines[0].image.shape == (30, 160, 3)
  assert {one.language for one in lines} == {"en"}
  words = only(handwriting.words(folder))
  assert [one.transcription for one in words] == ["A", "1961"]
  [page] = only(handwriting.pages(folder))
  assert page.transcription == "A MOVE to\n1961"


def test_iam_single_lines(tmp_path: pathlib.Path) -> None:
  """Pictures of lines are taken whole; a form's lines stay together."""
  rows = [f"a{i:02}-00{j}-0{k} ok 1 1 5 5 80 20 x|{k}"
          for i in range(10) for j in range(2) for k in range(3)]  # fmt: skip
  (tmp_path / "lines.txt").write_text("\n".join(rows))
  for row in rows:
    Image.new("L", (82, 21)).save(tmp_path / f"{row.split()[0]}.png")
  supply = handwriting.lines(str(tmp_path))
  assert supply.read("train", 0).image.shape == (21, 82, 3)
  forms = {
    split: {
      supply.read(split, i).key.rpartition("-")[0]
      for i in range(supply.sizes[split])
    }
    for split in ("train", "validation")
  }
  assert forms["validation"] and not forms["train"] & forms["validation"]
  assert sum(supply.sizes.values()) == 60


def test_iam_lines_of_another_form_are_noted(tmp_path: pathlib.Path) -> None:
  (tmp_path / "lines.txt").write_text("a01-000u-00 ok 154 A|MOVE\n")
  scan(tmp_path / "a01-000u.png")
  with pytest.raises(rejections.TooManyRejections, match="IAM's form"):
    handwriting.lines(str(tmp_path))
  (tmp_path / "lines.txt").write_bytes(b"\xff\xfe")
  with pytest.raises(ValueError, match=r"lines\.txt: is not UTF-8"):
    handwriting.lines(str(tmp_path))


def test_a_folder_without_transcriptions(tmp_path: pathlib.Path) -> None:
  scan(tmp_path / "a.png")
  (tmp_path / "other.xml").write_text("<svg/>")
  with pytest.raises(ValueError, match="no PAGE-XML file") as error:
    handwriting.lines(str(tmp_path))
  assert "\n" not in str(error.value)
