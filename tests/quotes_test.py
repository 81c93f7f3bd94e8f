"""Quoted strings: a table of cases by hand, and laws that hold for any text."""

import hypothesis
import pytest
from hypothesis import strategies as st

from byt5_diffusion import quotes

# (caption, outermost quoted strings).
CASES = [
  ('a sign that says "OPEN"', ["OPEN"]),
  ("a sign that says 'OPEN'", ["OPEN"]),
  ("“OPEN” ‘closed’", ["OPEN", "closed"]),
  ("„Größe“ und „dwa”", ["Größe", "dwa"]),
  ("‚eins‘", ["eins"]),
  ("« bonjour », dit-il", ["bonjour"]),
  ("dit:« bonjour »", ["bonjour"]),
  ("‹a› »b« »c» ›d‹ ›e›", ["a", "b", "c", "d", "e"]),
  ("看板「営業中」と『本』と《红楼梦》", ["営業中", "本", "红楼梦"]),
  ("〝a〟 ＂b＂ `c`", ["a", "b", "c"]),
  ('חייל צה"ל ליד שלט', []),
  ('חייל צה"ל ליד "שלט"', ["שלט"]),
  ('ב"הארץ" כתבו', ["הארץ"]),
  ('מחיר 5 ש"ח', []),
  ("ה״שלום״", ["שלום"]),
  ("don't, it's, rock 'n' roll and 'tis Hawaiʻi l'été dogs' bowl", []),
  ("the letter 'n'", ["n"]),
  ("the letter 'n' on a wall", ["n"]),
  ("rock'n'roll 'Live'", ["Live"]),
  ('a man 5\'10" tall and a 12" pizza with "Hi"', ["Hi"]),
  ('"a 12" pizza"', ['a 12" pizza']),
  ('"5\'10""', ["5'10\""]),
  ("'Kings' Road'", ["Kings' Road"]),
  ("'dogs' and cats' food", ["dogs"]),
  ("'dogs' and 'cats'", ["dogs", "cats"]),
  ("’tis the dogs’ bowl", []),
  ("'tis the season'", ["tis the season"]),
  ("the '90s and '80s", []),
  ("the '90s' poster", ["90s"]),
  ("\"He said 'hi' to me\"", ["He said 'hi' to me"]),
  ('"He said \\"hi\\" to me"', ['He said "hi" to me']),
  ('says \\"OPEN\\"', ["OPEN"]),
  ('unbalanced "oops', []),
  ('oops"', []),
  ("«a", []),
  ("b»", []),
  ('""', []),
  ("''", []),
  ('" hello "', ["hello"]),
  ('"two\nlines"', ["two\nlines"]),
  ("”Hej” och ’då’", ["Hej", "då"]),
  ("‘don’t stop’ and ‘go’", ["don’t stop", "go"]),
  ('写着"你好"的牌子和"再见"', ["你好", "再见"]),
  ("写着'你好'的牌子", ["你好"]),
  ("'안녕'이라고 쓴", ["안녕"]),
  ('لافتة «مرحبا» و"سلام"', ["مرحبا", "سلام"]),
  ("“Hello” „Hallo“ »Hej»", ["Hello", "Hallo", "Hej"]),
  ('„Hallo" steht da', ["Hallo"]),
  ("``LaTeX''", ["LaTeX"]),
  ("''wiki''", ["wiki"]),
  ('“say "hi" now”', ['say "hi" now']),
  ("“outer ‘inner’ end”", ["outer ‘inner’ end"]),
  ("„Er sagte “Hi” laut“", ["Er sagte “Hi” laut"]),
  ('("quoted")', ["quoted"]),
  ('"Hello," he said, "bye."', ["Hello,", "bye."]),
  ("She said 'I'm fine' to me", ["I'm fine"]),
  ("'Tom's Diner'", ["Tom's Diner"]),
  ("‘Tom’s Diner’", ["Tom’s Diner"]),
  ("O'Neil's 'Pub'", ["Pub"]),
  ('🎉"party"🎉', ["party"]),
  ("'rockin' all night'", ["rockin' all night"]),
  ("Ένας «καλός» φίλος, απ’ το “χωριό”", ["καλός", "χωριό"]),
  ("вывеска «Кафе „Уют“ и бар»", ["Кафе „Уют“ и бар"]),
  ("napis „Wolność” na murze", ["Wolność"]),
  ("„Citace “ a “Quote”", ["Citace", "Quote"]),
  ("skylt med texten ”Öppet”", ["Öppet"]),
  ("kyltti »Auki»", ["Auki"]),
  ("ein Plakat: »Größe« – »Maß«", ["Größe", "Maß"]),
  ("L’affiche « L’été à l’Opéra » et l’eau", ["L’été à l’Opéra"]),
  ("«\u202fbonjour\u202f»", ["bonjour"]),
  ("Plakat ‚Eins‘ und ‚Zwei’", ["Eins", "Zwei"]),
  ('שלט עם הכיתוב "שלום עולם"', ["שלום עולם"]),
  ("שלט עם „שלום” בתל־אביב", ["שלום"]),
  ("רס״ן בצה״ל", []),
  ("צ'ארלס וג'ורג'", []),
  ('מנכ"לית "החברה"', ["החברה"]),
  ("לافتة مكتوب عليها «أهلاً وسهلاً»", ["أهلاً وسهلاً"]),
  ('پوستر «سلام "دنیا"»', ['سلام "دنیا"']),
  ('\u200f"שלום"\u200f ו\u200e"Hi"\u200e', ["שלום", "Hi"]),
  ("ป้าย “เปิด”ทุกวัน", ["เปิด"]),
  ("बोर्ड पर 'नमस्ते'का चिह्न", ["नमस्ते"]),
  ("看板に「『本』の店」と書く", ["『本』の店"]),
  ("海報上寫著﹁開﹂﹃關﹄", ["開", "關"]),
  ("他说“我爱‘北京’”", ["我爱‘北京’"]),
  ("표지판 ‘서울’과 “부산”", ["서울", "부산"]),
  ("半角｢カナ｣", ["カナ"]),
  ("o‘zbek ‘bozor’", ["bozor"]),
  ("Hawai‘i and ‘Aloha’", ["Aloha"]),
  ("a 6' by 8' sheet, 5' and 3\" more", []),
  ('a 3\'6" door with "Push"', ["Push"]),
  ('the "Route 66" road and a 5" pipe', ["Route 66"]),
  ('8"x10" print of "Sea"', ["Sea"]),
  ("The Joneses' house, the dogs' and cats' food", []),
  ("y'all ain't seen nothin' yet", []),
  ("fish 'n' chips on a sign 'Fish & Chips'", ["Fish & Chips"]),
  ("’n koffie by ‘Die Kafee’", ["Die Kafee"]),
  ("'s-Hertogenbosch in 't klein", []),
  ('text:"A","B";"C"', ["A", "B", "C"]),
  ('{"text": "SALE", "n": 2}', ["text", "SALE", "n"]),
  ("`x = 1` in code", ["x = 1"]),
  ('he said "never" and left "', ["never"]),
  ('"one" two" three', ["one"]),
  ('“never closed and "closed"', ["closed"]),
  ('"…"', ["…"]),
  ('"?!"', ["?!"]),
  ('"🎈"', ["🎈"]),
  ('a "" b "x"', ["x"]),
  ('" "', []),
  ("", []),
  ("no marks at all", []),
  ('"', []),
  ("'", []),
  ('"\ud800"', ["\ud800"]),
  ("\x00'\x00'", ["\x00"]),
  ('"line\r\nbreak\n\nparagraph"', ["line\r\nbreak\n\nparagraph"]),
]

# What people put around a string; a space inside is part of the mark.
MARKS = [
  '""', "''", "“”", "‘’", "„“", "„”", "‚‘", "‚’", "«»", "»«", "»»", "‹›", "›‹",
  "「」", "『』", "《》", "〈〉", "〝〟", "〝〞", "””", "’’", "＂＂", "＇＇",
  "``",
  "｢｣", "﹁﹂", "﹃﹄", "״״", "❝❞", "❛❜",
]  # fmt: skip
NO_MARK = st.characters(
  codec="utf-8", exclude_characters={*"".join(MARKS), "\\", "‟", "‛"}
)


@pytest.mark.parametrize(("caption", "expected"), CASES)
def test_by_hand(caption, expected):
  assert quotes.strings(caption) == expected


def test_spans_tell_places_marks_and_depth():
  caption = '“Er sagte: ‘a «b» c’” und "d"'
  assert quotes.spans(caption) == [
    (1, 20, "Er sagte: ‘a «b» c’", "“", "”", 0),
    (12, 19, "a «b» c", "‘", "’", 1),
    (15, 16, "b", "«", "»", 2),
    (27, 28, "d", '"', '"', 0),
  ]


def test_a_backslash_belongs_to_its_mark():
  [span] = quotes.spans('says \\"OPEN\\" now')
  assert span.text == "OPEN"


def test_single_letters_are_told_from_a_short_and():
  assert quotes.strings("the letters 'n' and 'm'") == ["n", "m"]
  assert quotes.strings("drum 'n' bass") == []


@pytest.mark.parametrize("marks", MARKS)
@hypothesis.settings(max_examples=25)
@hypothesis.given(
  text=st.text(NO_MARK, max_size=12),
  frame=st.sampled_from(["{}", "a sign that says {} on a wall", "写着 {} 的"]),
)
def test_any_string_is_found_in_any_marks(marks, text, frame):
  # Two backticks are one mark.
  hypothesis.assume(text or marks != "``")
  caption = frame.format(marks[0] + text + marks[1])
  [span] = quotes.spans(caption)
  assert span.text == text == caption[span.start : span.end]


@hypothesis.settings(max_examples=40)
@hypothesis.given(st.lists(st.tuples(st.sampled_from(MARKS), st.text(NO_MARK))))
def test_strings_one_after_another_are_found_apart(parts):
  caption = " and ".join(m[0] + text + m[1] for m, text in parts)
  expected = [text.strip() for _, text in parts if text.strip()]
  assert quotes.strings(caption) == expected


@hypothesis.given(
  st.text(st.sampled_from([*"".join(MARKS), *"ans 5.\\\nאבж你", "\u200f"]))
)
def test_spans_nest_and_lie_inside_their_marks(caption):
  """However the marks are jumbled: ordered, nested or apart, never crossed."""
  found = quotes.spans(caption)
  assert found == quotes.spans(caption)
  assert found == sorted(found)
  for i, span in enumerate(found):
    assert caption[span.start : span.end] == span.text
    assert caption[: span.start].endswith(span.opening)
    assert caption[span.end :].lstrip("\\").startswith(span.closing)
    around = [s for s in found[:i] if s.start <= span.start < s.end]
    assert span.depth == len(around)
    assert all(span.end <= outer.end for outer in around)


@pytest.mark.parametrize(
  "part", ['"', "'a ", "“", "«»", '\u200f"', "“‘", "''", " 'n' a", 'א"א', '5"x']
)
def test_many_marks_end(part):
  """They would not in this life if their time grew by the square."""
  caption = (part * 100_000)[:100_000]
  for span in quotes.spans(caption):
    assert caption[span.start : span.end] == span.text
