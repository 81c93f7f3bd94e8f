"""Phrases of users' files: whole, bounded, in their own language."""

import gzip
import json
import tracemalloc

import pytest

from byt5_diffusion.data import text
from byt5_diffusion.data.rows import files
from byt5_diffusion.data.writing import (
  corpora,
  phrases,
  words,
)

GERMAN = (
  "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind "
  "mit Vernunft und Gewissen begabt und sollen einander begegnen! Nummer {}.\n"
)
THAI = "มนุษย์ทั้งปวงเกิดมามีอิสระและเสมอภาคกันในศักดิ์ศรีและสิทธิ {}\n"


def written(folder, name: str, content: str) -> str:
  path = folder / name
  data = content.encode("utf-8")
  path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
  return str(path)


def mc4(texts: list[str]) -> str:
  rows = (
    json.dumps({"text": t, "timestamp": "2019-01-01T00:00:00Z", "url": "x"})
    for t in texts
  )
  return "\n".join(rows) + "\n"


def many(line: str, count: int = 60) -> str:
  return "".join(line.format(i) for i in range(count))


@pytest.mark.parametrize(
  ("name", "code"),
  [
    ("multilingual/c4-zh.tfrecord-00000-of-01024.json.gz", "zh"),
    ("c4-hi-Latn-validation.00000.json.gz", "hi-Latn"),
    ("c4-iw.tfrecord-00000.json.gz", "iw"),
    ("th.txt", "th"),
    ("wiki.he.jsonl", "iw"),
    ("notes.txt", ""),
    ("the quick.txt", ""),
  ],
)
def test_a_files_name_says_its_language(name, code):
  assert corpora.language_of_name(name) == code


@pytest.mark.parametrize("name", ["de.txt", "de.txt.gz", "c4-de.0.json.gz"])
def test_all_kinds_of_files_give_the_same_phrases(tmp_path, name):
  content = many(GERMAN)
  if "json" in name:
    content = mc4(content.splitlines())
  corpus = corpora.Corpus(path=written(tmp_path, name, content))
  (tmp_path / "other").mkdir()
  plain = corpora.Corpus(
    path=written(tmp_path / "other", "de.txt", many(GERMAN))
  )
  assert corpus.codes == ("de",)
  assert corpus._kept == plain._kept
  sample = corpus.draw(words.generator(0), "de")
  assert sample.script == "Latn" and sample.language == "de"


def test_phrases_are_whole_words_of_one_sentence():
  cutter = corpora.Cutter(max_words=4)
  found = list(cutter.phrases(GERMAN.format(7), "Latn"))
  assert " ".join(found) == GERMAN.format(7).strip()
  assert all(1 <= len(phrase.split()) <= 4 for phrase in found)
  assert any(phrase.endswith("geboren.") for phrase in found)
  for phrase in found:
    assert ". " not in phrase and "! " not in phrase


@pytest.mark.parametrize(
  ("script", "sentence"),
  [
    ("Thai", "มนุษย์ทั้งปวงเกิดมามีอิสระและเสมอภาคกันในศักดิ์ศรีและสิทธิ ต่างมีเหตุผล"),
    (
      "Jpan",
      "すべての人間は、生れながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    ),
    ("Mymr", "လူတိုင်းသည် တူညီ လွတ်လပ်သော ဂုဏ်သိက္ခာဖြင့် လည်းကောင်း၊"),
  ],
)
def test_without_spaces_grapheme_clusters_stay_whole(script, sentence):
  found = list(corpora.Cutter().phrases(sentence, script))
  clusters = [c for phrase in found for c in text.graphemes(phrase) if c != " "]
  assert clusters == [c for c in text.graphemes(sentence) if c != " "]
  assert all(len(text.graphemes(phrase)) <= 48 for phrase in found)
  assert len(found) > 1


@pytest.mark.parametrize("script", ["Latn", "Thai"])
def test_no_phrase_is_longer_than_is_said(script):
  cutter = corpora.Cutter(max_graphemes=12)
  found = list(cutter.phrases("ab cde " * 40 + "x" * 50 + " yz", script))
  assert found and max(len(phrase) for phrase in found) <= 12


def test_other_languages_lines_and_unusable_ones_are_left_out(tmp_path):
  content = many(THAI) + "English text here.\n" * 40 + "ทดสอบ\ufffd\n"
  corpus = corpora.Corpus(path=written(tmp_path, "th.txt", content))
  for phrase, script in corpus._kept["th"]:
    assert script == "Thai" and words.script_of(phrase) in ("Thai", "Zyyy")
    assert "English" not in phrase and "\ufffd" not in phrase


def test_what_is_kept_does_not_depend_on_order(tmp_path):
  lines = many(GERMAN, 300).splitlines(keepends=True)
  first, second = tmp_path / "a", tmp_path / "b"
  for folder, content in ((first, lines), (second, lines[::-1])):
    folder.mkdir()
    written(folder, "de.txt", "".join(content))
  kept = [
    corpora.Corpus(path=str(folder), phrases_per_language=50)._kept["de"]
    for folder in (first, second)
  ]
  assert kept[0] == kept[1] and len(kept[0]) == 50


def test_an_option_says_the_language_and_identification_finds_it(tmp_path):
  path = written(tmp_path, "notes.txt", many(GERMAN))
  assert corpora.Corpus(path=path, language="de").codes == ("de",)
  pytest.importorskip("py3langid")
  assert "de" in corpora.Corpus(path=path).codes


def test_strings_of_the_splits_have_nothing_in_common(tmp_path):
  corpus = corpora.Corpus(path=written(tmp_path, "de.txt", many(GERMAN, 300)))
  found = {
    split: {
      next(phrases.strings_at(corpus, split, 0, index, "de")).text
      for index in range(100)
    }
    for split in words.SPLITS
  }
  assert not found["train"] & found["validation"]


def test_memory_is_bounded(tmp_path):
  """A line of 64 MiB (64 KiB packed) is not read whole, nor is the rest."""
  path = written(
    tmp_path,
    "de.txt.gz",
    many(GERMAN, 200) + "a " * (32 << 20) + "\nEnde da.\n",
  )
  file = files.find(path)[0]
  tracemalloc.start()
  try:
    longest = max(len(t) for t in corpora.read_texts(file, 256 << 20))
    peak = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  assert longest <= 1 << 20 and peak < 16 << 20
  first = next(iter(corpora.read_texts(file, 40)))
  assert list(corpora.read_texts(file, 40)) == [first]


def test_damage_is_named(tmp_path):
  packed = gzip.compress(many(GERMAN).encode())
  (tmp_path / "de.txt.gz").write_bytes(packed[: len(packed) // 2])
  with pytest.raises(ValueError, match=r"de\.txt\.gz is damaged"):
    corpora.Corpus(path=str(tmp_path / "de.txt.gz"))
  (tmp_path / "de.jsonl").write_bytes(bytes(range(256)) * 800)
  with pytest.raises(ValueError, match=r"de\.jsonl: .*neither UTF-8"):
    corpora.Corpus(path=str(tmp_path / "de.jsonl"))
  (tmp_path / "short.txt").write_text("zu wenig\n")
  with pytest.raises(ValueError, match=r"no language has 10 phrases"):
    corpora.Corpus(path=str(tmp_path / "short.txt"), language="de")
  with pytest.raises(ValueError, match="none of mC4's codes"):
    corpora.Corpus(path=str(tmp_path / "short.txt"), language="xx")
  with pytest.raises(ValueError, match="no such file"):
    corpora.Corpus(path=str(tmp_path / "absent.txt"))


def test_hostile_json_is_no_text(tmp_path):
  deep = '{"text": ' + "[" * 100_000
  content = (
    mc4(many(GERMAN).splitlines()) + deep + '\n{"text": 5}\n[1]\n{"a":1}\n'
  )
  corpus = corpora.Corpus(path=written(tmp_path, "de.jsonl", content))
  assert corpus.codes == ("de",)
