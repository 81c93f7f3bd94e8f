"""Quoted strings of a caption: what a picture is to have written in it.

  spans('a sign that says "OPEN"')   -> [Span(start=18, end=22, text="OPEN")]
  strings("ein Schild „Größe »M«“")  -> ["Größe »M«"]

Marks are told from apostrophes, feet, inches and Hebrew gershayim by what
stands beside them; the rules are in docs/conditioning.md and, one case each, in
tests/quotes_test.py. In short:

  - A mark at a word's beginning opens, at its end closes; between letters of
    scripts that are written without spaces (or without apostrophes) it closes
    if something is open, else it opens.
  - ' and ’ between letters or digits are apostrophes; " between Hebrew letters
    is gershayim.
  - A closing mark ends the nearest quotation that it can end. What was opened
    inside of it and never closed is no quotation.
  - After s' and 12" a quotation goes on if its real end is still to come.
  - Whatever has no partner is text.

One pass, linear in the caption's length, and no caption is an error.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import regex


class Span(NamedTuple):
  """One quotation.

  Attributes:
    start, end: caption[start:end] is what stands between the marks.
    text: caption[start:end], as it is.
    opening, closing: the marks.
    depth: 0 for what is in no other quotation.
  """

  start: int
  end: int
  text: str
  opening: str
  closing: str
  depth: int = 0


# Closing mark -> its opening marks: those that it closes wherever it stands.
_PAIRS = {
  "”": "“„‟",
  "»": "«",
  "›": "‹",
  "」": "「",
  "』": "『",
  "》": "《",
  "〉": "〈",
  "｣": "｢",
  "﹂": "﹁",
  "﹄": "﹃",
  "〞": "〝",
  "〟": "〝",
  "❞": "❝",
  "❜": "❛",
}
# Closing mark -> opening marks that it closes only at the end of a word,
# because elsewhere it is an apostrophe or opens.
_AT_WORD_END: Mapping[str, Sequence[str]] = {
  '"': '"',
  "'": "'",
  "''": ("''", "``"),
  "＂": "＂〝",
  "＇": "＇",
  "״": "״„",
  "“": "„”",
  "”": "”",
  "‘": "‚",
  "’": "‘‚‛’",
  "«": "»",
  "»": "»",
  "‹": "›",
  "›": "›",
}
# As typed by half: „Hallo". Only where nothing else can be meant.
_BY_HALF = {'"': "“„”", "'": "‘‚"}
# Open unless they stand right behind a word.
_OPENING = frozenset("“„‟‚«‹「『《〈｢﹁﹃〝❝❛")
# Open only at the beginning of a word.
_BOTH_WAYS = frozenset(["''", *"\"'＂＇״”’‘‛»›"])
_SINGLE = frozenset("'’‘‛＇")
_GERSHAYIM = frozenset('"”״')

_MARKS = regex.compile(
  r"`+|(?<!')''(?!')|[\"'＂＇״“”„‟‘’‚‛«»‹›「」『』《》〈〉｢｣﹁﹂﹃﹄〝〞〟❝❞❛❜]"
)
_ESCAPED = regex.compile(r"\\(?=[\"'`“”„‘’«»])")
# Scripts in which an apostrophe stands between letters.
_JOINING = regex.compile(
  r"[\p{Latin}\p{Cyrillic}\p{Greek}\p{Hebrew}\p{Armenian}\p{Georgian}"
  r"\p{Nd}\p{M}]"
)
_LETTERS_ELSEWHERE = regex.compile(r"[\p{L}\p{N}]")
_HEBREW = regex.compile(r"\p{Hebrew}")
# Words that are written without their beginning, and without their end.
_NO_BEGINNING = regex.compile(
  r"(?i)(?:tis|twas|twere|twill|twould|em|til|till|cause|cuz|cos|bout|round"
  r"|neath|nuff|ere|[tsnkmd]|\d\ds?)(?![\p{L}\p{Nd}])"
)
_NO_END = regex.compile(r"(?i)(?:s|in|\bpo|\bol|\blil|\bo)\Z")
# rock 'n' roll, but not: the letter 'n'.
_AND = regex.compile(r"(?i)(['’‘])n(['’])(?=\s\p{Latin})")
_LATIN_WORD = regex.compile(r"\p{Latin}\s\Z")
_NAMES_A_LETTER = regex.compile(
  r"(?i)\b(?:the|an?|letters?|characters?|words?|texts?|says?|saying|reads?"
  r"|reading|titled|labell?ed|of|with|and|or)\s\Z"
)
_HEBREW_PREFIX = regex.compile(r"(?<!\p{Hebrew})[משהוכלב]{1,3}\Z")
_TWO_HEBREW = regex.compile(r"\p{Hebrew}{2}")
_WINDOW = 16  # Characters that the patterns above look at; words are short.


class _Mark(NamedTuple):
  """A possible quotation mark.

  Attributes:
    start, end: of the mark, a backslash before it included.
    kind: the mark.
    opens, closes: what its neighbours let it do.
    weak_opening: might as well be a word's missing beginning.
    weak_closing: might as well be a word's missing end, or inches.
  """

  start: int
  end: int
  kind: str
  opens: bool
  closes: bool
  weak_opening: bool = False
  weak_closing: bool = False


def strings(caption: str) -> list[str]:
  """The outermost quoted strings, in order: what is to be written.

  Spaces at their ends (« bonjour ») and backslashes before marks are left out,
  and so are strings of which nothing is left.
  """
  found = (
    _ESCAPED.sub("", span.text).strip()
    for span in spans(caption)
    if span.depth == 0
  )
  return [text for text in found if text]


def spans(caption: str) -> list[Span]:
  """All quotations of a caption, by their beginning; inner ones behind outer.

  Args:
    caption: any string: nothing is normalised, offsets are its characters'.
  """
  marks = _marks(caption)
  pairs = _matched(marks, _ends_later(marks))
  found: list[Span] = []
  open_ends: list[int] = []
  for opening, closing in sorted(pairs):
    start, end = opening.end, closing.start
    while open_ends and open_ends[-1] <= start:
      open_ends.pop()
    kinds = (opening.kind, closing.kind)
    found.append(
      Span(start, end, caption[start:end], *kinds, depth=len(open_ends))
    )
    open_ends.append(end)
  return found


# --- What a mark may be ------------------------------------------------------


@functools.lru_cache(maxsize=4096)
def _class_of(character: str) -> str:
  """ "space", "joining", "letter", "format" or "other"; "" is an end."""
  if not character or character.isspace():
    return "space"
  if _JOINING.match(character):
    return "joining"
  if _LETTERS_ELSEWHERE.match(character):
    return "letter"
  # Marks of direction and joiners are seen through.
  return "format" if regex.match(r"\p{Cf}", character) else "other"


def _beside(caption: str, place: int, step: int) -> str:
  """The nearest character from place on that is visible, "" at an end."""
  while 0 <= place < len(caption):
    if _class_of(caption[place]) != "format":
      return caption[place]
    place += step
  return ""


def _marks(caption: str) -> list[_Mark]:
  """All that may open or close a quotation, in order."""
  marks = []
  ignored = -1  # Where the second mark of an 'n' lies.
  for match in _MARKS.finditer(caption):
    start, end = match.span()
    if start == ignored:
      continue
    if start and caption[start - 1] == "\\":
      start -= 1
    if match[0] in _SINGLE and _is_and(caption, match.start()):
      ignored = match.start() + 2
      continue
    mark = _mark(caption, start, end, match[0])
    if mark is not None:
      marks.append(mark)
  return marks


def _is_and(caption: str, start: int) -> bool:
  """Whether the mark at `start` begins the 'n' of rock 'n' roll."""
  before = caption[max(0, start - _WINDOW) : start]
  return bool(
    _AND.match(caption, start)
    and _LATIN_WORD.search(before)
    and not _NAMES_A_LETTER.search(before)
  )


def _mark(caption: str, start: int, end: int, kind: str) -> _Mark | None:
  """The mark with what it may do; None for what is none."""
  before = _beside(caption, start - 1, -1)
  after = _beside(caption, end, 1)
  left, right = _class_of(before), _class_of(after)
  joined = left == right == "joining"
  if joined and kind in _SINGLE:
    return None
  if (
    kind in _GERSHAYIM
    and _HEBREW.match(before)
    and _HEBREW.match(after)
    and not _prefixed(caption, start, end)
  ):
    return None
  begins, ends = _flanks(left, right)
  opens, closes = begins, ends
  if kind in _OPENING:
    opens = begins or left not in ("joining", "letter")
  after_digit = before.isdigit()
  if kind == '"' and after_digit and right != "letter":
    opens = False
  if kind in _PAIRS and kind not in _BOTH_WAYS:
    opens, closes = False, True
  weak_opening = False
  if kind in _SINGLE and begins:
    word = _NO_BEGINNING.match(caption, end, end + _WINDOW)
    alone = word and caption.startswith(kind, word.end())
    weak_opening = bool(word and not alone)
  weak_closing = False
  if ends and kind in _SINGLE and right == "space" and after:
    following = caption[end + 1 : end + 2]
    word_before = caption[max(0, start - _WINDOW) : start]
    weak_closing = following.isalpha() and bool(_NO_END.search(word_before))
  elif ends and kind == '"' and after_digit:
    weak_closing = right in ("space", "other") or after in "xX"
  return _Mark(start, end, kind, opens, closes, weak_opening, weak_closing)


def _flanks(left: str, right: str) -> tuple[bool, bool]:
  """Whether a mark between these classes may begin a word, and end one."""
  if left == right == "space":
    return True, True
  begins = right != "space" and (right != "other" or left != "joining")
  ends = left != "space" and (left != "other" or right != "joining")
  return begins, ends


def _prefixed(caption: str, start: int, end: int) -> bool:
  """Whether Hebrew's "in", "the", "and" ... stand before a quotation."""
  before = caption[max(0, start - _WINDOW) : start]
  return bool(_HEBREW_PREFIX.search(before) and _TWO_HEBREW.match(caption, end))


# --- Which belong together ---------------------------------------------------


def _ends_later(marks: list[_Mark]) -> list[bool]:
  """Per mark: is the next of its kind, weak ones skipped, a mere ending?"""
  result = [False] * len(marks)
  following: dict[str, bool] = {}
  for i in range(len(marks) - 1, -1, -1):
    mark = marks[i]
    result[i] = following.get(mark.kind, False)
    if not mark.weak_closing:
      following[mark.kind] = mark.closes and not mark.opens
  return result


class _Open:
  """The marks that are open, with the nearest of each kind at hand."""

  def __init__(self) -> None:
    self.stack: list[_Mark] = []
    self._places: dict[str, list[int]] = {}

  def push(self, mark: _Mark) -> None:
    self._places.setdefault(mark.kind, []).append(len(self.stack))
    self.stack.append(mark)

  def nearest(self, kinds: list[str]) -> int:
    """The place of the last one of these kinds, -1 if there is none."""
    return max(
      (self._places[k][-1] for k in kinds if self._places.get(k)), default=-1
    )

  def close(self, place: int) -> _Mark:
    """Takes out the mark at a place, and drops all that is inside of it."""
    while len(self.stack) > place:
      mark = self.stack.pop()
      self._places[mark.kind].pop()
    return mark


def _matched(
  marks: list[_Mark], ends_later: list[bool]
) -> list[tuple[_Mark, _Mark]]:
  """(opening, closing) of all quotations."""
  pairs = []
  opened = _Open()
  for mark, later in zip(marks, ends_later, strict=True):
    place = _partner(mark, opened)
    goes_on = later or (place >= 0 and opened.stack[place].weak_opening)
    if mark.weak_closing and goes_on:
      place = -1
    if place >= 0:
      pairs.append((opened.close(place), mark))
    elif mark.opens:
      opened.push(mark)
  used = {mark.start for pair in pairs for mark in pair}
  alone = (m for m in marks if m.kind == "''" and m.start not in used)
  return pairs + [_halves(mark) for mark in alone]


def _partner(mark: _Mark, opened: _Open) -> int:
  """The place of the mark that this one closes, or -1."""
  kinds = list(_PAIRS.get(mark.kind, ""))
  if mark.closes:
    kinds += _AT_WORD_END.get(mark.kind, "")
    if mark.kind.startswith("`"):
      kinds.append(mark.kind)
  place = opened.nearest(kinds)
  if place < 0 and mark.closes and not mark.opens and not mark.weak_closing:
    place = opened.nearest(list(_BY_HALF.get(mark.kind, "")))
  return place


def _halves(mark: _Mark) -> tuple[_Mark, _Mark]:
  """'' without a partner: an empty string in single marks."""
  middle = mark.end - 1
  opening = _Mark(mark.start, middle, "'", True, False)
  return opening, _Mark(middle, mark.end, "'", False, True)
