"""UTF-8 round trips, truncation at grapheme clusters, equality with peers."""

import pathlib
import sys
import unicodedata

import numpy as np
import pytest
import regex

from byt5_diffusion.data import text


def _assigned() -> list[str]:
  return [
    chr(point)
    for point in range(sys.maxunicode + 1)
    if unicodedata.category(chr(point)) not in ("Cn", "Cs")
  ]


def _break_test(shared_data: pathlib.Path) -> list[tuple[str, set[int]]]:
  """[(string, set of character offsets where a break is allowed)]."""
  path = shared_data / "fixtures" / "unicode" / "GraphemeBreakTest.txt"
  cases = []
  for line in path.read_text("utf-8").splitlines():
    marks = line.partition("#")[0].split()
    if not marks:
      continue
    string: str = ""
    breaks: set[int] = set()
    for mark in marks:
      if mark == "÷":
        breaks.add(len(string))
      elif mark != "×":
        string += chr(int(mark, 16))
    cases.append((string, breaks))
  assert len(cases) > 500
  return cases


def test_every_assigned_code_point_survives():
  characters = _assigned()
  assert len(characters) > 280_000
  everything = "".join(characters)
  tokens = text.encode(everything, 2**21)
  assert tokens.dtype == np.int32
  assert text.decode(tokens) == everything
  raw = np.frombuffer(everything.encode("utf-8"), np.uint8)
  np.testing.assert_array_equal(tokens[:-1], raw.astype(np.int32) + 3)


@pytest.mark.parametrize("character", ["\0", "a", "ß", "字", "\U0001f600"])
def test_single_characters(character):
  tokens = text.encode(character, 16)
  assert list(tokens) == [b + 3 for b in character.encode()] + [1]
  assert text.decode(tokens) == character


def test_truncation_keeps_whole_graphemes(shared_data):
  for string, breaks in _break_test(shared_data):
    if "\u2701" in string and not regex.match(
      r"\p{Extended_Pictographic}", "\u2701"
    ):
      continue  # The file is Unicode 15; a later one changed this sign.
    # Bytes at which a break is allowed; a lone surrogate (the file has some)
    # is replaced by a character of the same width.
    clean = text.to_text(string)
    allowed = {len(clean[:i].encode("utf-8")) for i in breaks}
    size = len(clean.encode("utf-8"))
    for max_length in range(1, size + 3):
      tokens = text.encode(string, max_length)
      kept = len(tokens) - 1
      assert len(tokens) <= max_length and tokens[-1] == text.EOS_ID
      assert kept in allowed, (string, max_length)
      assert clean.startswith(text.decode(tokens))
      if max_length > size:
        assert kept == size


def test_truncation_drops_no_more_than_it_must():
  # man, joiner, woman, joiner, girl: one cluster of 18 bytes.
  family = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
  assert text.decode(text.encode("ab" + family, 20)) == "ab"
  assert text.decode(text.encode("ab" + family, 21)) == "ab" + family
  assert text.decode(text.encode("e\u0301e\u0301", 6)) == "e\u0301"
  assert list(text.encode(family, 5)) == [text.EOS_ID]


def test_graphemes_join_to_the_text():
  caption = "e\u0301 \U0001f1eb\U0001f1f7 นี้\r\n"
  clusters = text.graphemes(caption)
  assert clusters == ["e\u0301", " ", "\U0001f1eb\U0001f1f7", " ", "นี้", "\r\n"]
  assert "".join(clusters) == caption


def test_empty_and_huge_captions():
  assert list(text.encode("", 8)) == [text.EOS_ID]
  huge = "é" * (5 * 2**20)  # 10 MB
  for _ in range(100):
    tokens = text.encode(huge, 64)
  assert len(tokens) == 63  # 31 characters of two bytes, and the end.
  # One endless cluster: nothing of it can be kept.
  assert list(text.encode("e" + "\u0301" * 2**20, 64)) == [text.EOS_ID]


def test_invalid_utf8_and_lone_surrogates():
  assert text.to_text(b"a\xff\xfeb") == "a\ufffd\ufffdb"
  assert text.to_text(b"\xe5\xad") == "\ufffd"
  assert text.to_text("a\ud83db") == "a\ufffdb"
  assert text.decode(text.encode("a\ud83db", 16)) == "a\ufffdb"
  assert text.to_text("字") == "字"


def test_encode_batch_pads_with_zero():
  batch = text.encode_batch(["", "ab", "字字"], 5)
  assert batch.dtype == np.int32
  np.testing.assert_array_equal(
    batch, [[1, 0, 0, 0, 0], [100, 101, 1, 0, 0], [232, 176, 154, 1, 0]]
  )


def test_decode_ignores_what_is_no_byte():
  assert text.decode([0, 100, 2, 383, 259, 101, 1, 102]) == "ab"
  assert text.decode([232, 176]) == "\ufffd"
  assert text.decode([]) == ""


def test_no_room_for_the_end():
  with pytest.raises(ValueError, match="max_length=0"):
    text.encode("a", 0)


CAPTIONS = ["", "hello", "Grüße, Jürgen", "日本語の看板", "हिन्दी", "🇫🇷👩‍👩‍👧"]


def test_equals_transformers_byt5_tokenizer():
  transformers = pytest.importorskip("transformers")
  tokenizer = transformers.ByT5Tokenizer()
  for caption in CAPTIONS:
    expected = tokenizer(caption).input_ids
    assert list(text.encode(caption, 512)) == expected
    assert text.decode(expected) == caption


def test_equals_seqio_byte_vocabulary():
  seqio = pytest.importorskip("seqio")
  vocabulary = seqio.ByteVocabulary()
  for caption in CAPTIONS:
    expected = [*vocabulary.encode(caption), vocabulary.eos_id]
    assert list(text.encode(caption, 512)) == expected
    assert vocabulary.decode(list(text.encode(caption, 512))) == caption
