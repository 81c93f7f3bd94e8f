"""Captions of photographed and handwritten text: what it is, and what it says.

  write("scene", ["営業中", "OPEN"], "ja", seed)
  -> 「営業中」と「OPEN」が写っている写真。

The sentence is in the language of the text, if the table has it, or in English,
each half of the time: both ask for such pictures. Strings are quoted to the
letter; where each of them stands comes with the caption.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Wording(NamedTuple):
  """How one language says it.

  Attributes:
    quotes: opening and closing mark.
    between: of several quotations: between two, and before the last.
    sentences: {what is described: sentences with {} for the quotations}.
  """

  quotes: tuple[str, str]
  between: tuple[str, str]
  sentences: Mapping[str, tuple[str, ...]]


# What is described: "<what>_<part>"; a part is a "word", a "line", a
# "character" or a "page", and "scene" is a photograph of a place.
KINDS = (
  "scene",
  "scene_word",
  "scene_line",
  "kuzushiji_character",
  "kuzushiji_line",
  "kuzushiji_page",
  "hand_character",
  "hand_word",
  "hand_line",
  "hand_page",
)
DEFAULT = "en"
WORDINGS: Mapping[str, Wording] = {
  "en": Wording(
    ("“", "”"),
    (", ", " and "),
    {
      "scene": ("A photo with the text {}.", "A photo in which one reads {}."),
      "scene_word": ("The word {} in a photo.", "A close-up of {}."),
      "scene_line": ("The words {} in a photo.", "A close-up of {}."),
      "kuzushiji_character": (
        "The character {} in old Japanese cursive (kuzushiji).",
        "{}, written with a brush in kuzushiji.",
      ),
      "kuzushiji_line": (
        "A vertical line of old Japanese cursive (kuzushiji): {}.",
        "{}, a column of kuzushiji written with a brush.",
      ),
      "kuzushiji_page": (
        "A page of an old Japanese book in kuzushiji, from right to left: {}.",
        "A woodblock-printed or brushed Japanese page that reads {}.",
      ),
      "hand_character": ("The handwritten character {}.",),
      "hand_word": ("The handwritten word {}.", "{}, written by hand."),
      "hand_line": ("A line of handwriting: {}.", "{}, written by hand."),
      "hand_page": ("A handwritten page: {}.", "A manuscript that reads {}."),
    },
  ),
  "ja": Wording(
    ("「", "」"),
    ("、", "と"),
    {
      "scene": ("{}と書かれた写真。", "{}の文字が写っている写真。"),
      "scene_word": ("写真の中の文字{}。",),
      "scene_line": ("写真の中の文字列{}。",),
      "kuzushiji_character": ("くずし字の{}。", "筆で書かれたくずし字{}。"),
      "kuzushiji_line": ("くずし字の縦書きの一行{}。",),
      "kuzushiji_page": ("くずし字で書かれた古典籍の一頁{}。",),
      "hand_character": ("手書きの文字{}。",),
      "hand_word": ("手書きの語{}。",),
      "hand_line": ("手書きの一行{}。",),
      "hand_page": ("手書きの一頁{}。",),
    },
  ),
  "zh": Wording(
    ("“", "”"),
    ("、", "和"),
    {
      "scene": ("写有{}的照片。", "照片上可以看到{}。"),
      "scene_word": ("照片中的文字{}。",),
      "scene_line": ("照片中的一行文字{}。",),
      "hand_character": ("手写的汉字{}。",),
      "hand_word": ("手写的词语{}。",),
      "hand_line": ("一行手写文字{}。",),
      "hand_page": ("一页手写文字{}。",),
    },
  ),
  "ko": Wording(
    ("“", "”"),
    (", ", ", "),
    {
      "scene": ("{} 글자가 보이는 사진.",),
      "scene_word": ("사진 속의 글자 {}.",),
      "scene_line": ("사진 속의 글 {}.",),
      "hand_character": ("손으로 쓴 글자 {}.",),
      "hand_word": ("손으로 쓴 낱말 {}.",),
      "hand_line": ("손으로 쓴 한 줄 {}.",),
      "hand_page": ("손으로 쓴 한 쪽 {}.",),
    },
  ),
  "ar": Wording(
    ("«", "»"),
    ("، ", " و"),
    {
      "scene": ("صورة كُتب فيها {}.",),
      "scene_word": ("كلمة {} في صورة.",),
      "scene_line": ("نص في صورة: {}.",),
      "hand_character": ("حرف بخط اليد: {}.",),
      "hand_word": ("كلمة بخط اليد: {}.",),
      "hand_line": ("سطر بخط اليد: {}.",),
      "hand_page": ("صفحة بخط اليد: {}.",),
    },
  ),
  "hi": Wording(
    ("“", "”"),
    (", ", " और "),
    {
      "scene": ("एक तस्वीर जिसमें {} लिखा है।",),
      "scene_word": ("तस्वीर में शब्द {}।",),
      "scene_line": ("तस्वीर में लिखा हुआ {}।",),
      "hand_character": ("हाथ से लिखा अक्षर {}।",),
      "hand_word": ("हाथ से लिखा शब्द {}।",),
      "hand_line": ("हाथ से लिखी पंक्ति {}।",),
      "hand_page": ("हाथ से लिखा पन्ना {}।",),
    },
  ),
  "bn": Wording(
    ("“", "”"),
    (", ", " এবং "),
    {
      "scene": ("একটি ছবি যাতে {} লেখা আছে।",),
      "scene_word": ("ছবিতে {} শব্দটি।",),
      "scene_line": ("ছবিতে লেখা {}।",),
      "hand_character": ("হাতে লেখা অক্ষর {}।",),
      "hand_word": ("হাতে লেখা শব্দ {}।",),
      "hand_line": ("হাতে লেখা লাইন {}।",),
      "hand_page": ("হাতে লেখা পৃষ্ঠা {}।",),
    },
  ),
  "de": Wording(
    ("„", "“"),
    (", ", " und "),
    {
      "scene": ("Ein Foto mit dem Text {}.", "Ein Foto, auf dem {} steht."),
      "scene_word": ("Das Wort {} auf einem Foto.",),
      "scene_line": ("Die Worte {} auf einem Foto.",),
      "hand_character": ("Das handgeschriebene Zeichen {}.",),
      "hand_word": ("Das handgeschriebene Wort {}.",),
      "hand_line": ("Eine handgeschriebene Zeile: {}.",),
      "hand_page": ("Eine handgeschriebene Seite: {}.",),
    },
  ),
  "fr": Wording(
    ("“", "”"),
    (", ", " et "),
    {
      "scene": ("Une photo où l’on lit {}.",),
      "scene_word": ("Le mot {} sur une photo.",),
      "scene_line": ("Les mots {} sur une photo.",),
      "hand_character": ("Le caractère {} écrit à la main.",),
      "hand_word": ("Le mot {} écrit à la main.",),
      "hand_line": ("Une ligne manuscrite : {}.",),
      "hand_page": ("Une page manuscrite : {}.",),
    },
  ),
  "es": Wording(
    ("«", "»"),
    (", ", " y "),
    {
      "scene": ("Una foto en la que se lee {}.",),
      "scene_word": ("La palabra {} en una foto.",),
      "scene_line": ("Las palabras {} en una foto.",),
      "hand_character": ("El carácter {} escrito a mano.",),
      "hand_word": ("La palabra {} escrita a mano.",),
      "hand_line": ("Una línea manuscrita: {}.",),
      "hand_page": ("Una página manuscrita: {}.",),
    },
  ),
  "it": Wording(
    ("«", "»"),
    (", ", " e "),
    {
      "scene": ("Una foto in cui si legge {}.",),
      "scene_word": ("La parola {} in una foto.",),
      "scene_line": ("Le parole {} in una foto.",),
      "hand_character": ("Il carattere {} scritto a mano.",),
      "hand_word": ("La parola {} scritta a mano.",),
      "hand_line": ("Una riga manoscritta: {}.",),
      "hand_page": ("Una pagina manoscritta: {}.",),
    },
  ),
  "ru": Wording(
    ("«", "»"),
    (", ", " и "),
    {
      "scene": ("Фотография с надписью {}.",),
      "scene_word": ("Слово {} на фотографии.",),
      "scene_line": ("Надпись {} на фотографии.",),
      "hand_character": ("Рукописный знак {}.",),
      "hand_word": ("Рукописное слово {}.",),
      "hand_line": ("Рукописная строка: {}.",),
      "hand_page": ("Рукописная страница: {}.",),
    },
  ),
}  # fmt: skip


class Caption(NamedTuple):
  """A sentence, and where it quotes each string: (start, end) in bytes."""

  text: str
  spans: tuple[tuple[int, int], ...]


def write(
  kind: str, strings: Sequence[str], language: str, seed: int
) -> Caption:
  """A caption that quotes `strings`.

  Args:
    kind: one of KINDS.
    strings: at least one.
    language: mC4's code of the strings.
    seed: chooses among the sentences; the same one gives the same caption.
  """
  random = np.random.default_rng(seed)
  wording = WORDINGS.get(language, WORDINGS[DEFAULT])
  if kind not in wording.sentences or random.random() < 0.5:
    wording = WORDINGS[DEFAULT]
  sentences = wording.sentences[kind]
  choice = int(random.integers(len(sentences)))
  before, after = sentences[choice].split("{}")
  caption, spans = before, []
  for i, string in enumerate(strings):
    if i:
      caption += wording.between[i == len(strings) - 1]
    caption += wording.quotes[0]
    start = len(caption.encode("utf-8"))
    caption += string
    spans.append((start, start + len(string.encode("utf-8"))))
    caption += wording.quotes[1]
  return Caption(caption + after, tuple(spans))
