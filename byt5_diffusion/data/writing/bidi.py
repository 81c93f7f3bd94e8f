"""Order of characters on a line of mixed direction.

The Unicode bidirectional algorithm (Unicode Standard Annex 9, whose rule names
the comments use) for one line without explicit embeddings and isolates: enough
for a line that has no bidi controls.
"""

import unicodedata
from collections.abc import Sequence
from typing import NamedTuple


class Run(NamedTuple):
  """Characters [start, end) of one direction and one font; level odd = RTL."""

  start: int
  end: int
  level: int
  font: int = 0


def _classes(text: str, rtl: bool) -> list[str]:
  """L, R, EN, AN or N of each character: rules W1 to W7 of UAX 9."""
  classes: list[str] = []
  strong = previous = "N"
  for character in text:
    kind = unicodedata.bidirectional(character)
    kind = previous if kind == "NSM" else kind
    if kind in ("L", "R", "AL"):
      strong = kind
    elif kind == "EN" and strong == "AL":
      kind = "AN"
    classes.append(kind)
    previous = kind
  for i, kind in enumerate(classes[1:-1], 1):  # 1,234 and 3+4
    around = classes[i - 1], classes[i + 1]
    if around == ("EN", "EN") and kind in ("ES", "CS"):
      classes[i] = "EN"
    elif around == ("AN", "AN") and kind == "CS":
      classes[i] = "AN"
  for order in (range(len(classes)), reversed(range(len(classes)))):
    previous = ""
    for i in order:  # $20 and 20%
      if classes[i] == "ET" and previous == "EN":
        classes[i] = "EN"
      previous = classes[i]
  kept = {"L": "L", "R": "R", "AL": "R", "EN": "EN", "AN": "AN"}
  classes = [kept.get(kind, "N") for kind in classes]
  strong = "R" if rtl else "L"
  for i, kind in enumerate(classes):  # W7
    if kind in ("L", "R"):
      strong = kind
    elif kind == "EN" and strong == "L":
      classes[i] = "L"
  return classes


# Pairs of BidiBrackets.txt that occur in the scripts' own texts.
_OPENING = "([{༺༼⁅⁽₍⟦⟨⟪〈《「『【〔〖（［｛｢"
_CLOSING = ")]}༻༽⁆⁾₎⟧⟩⟫〉》」』】〕〗）］｝｣"
_BRACKETS = dict(zip(_OPENING, _CLOSING, strict=True))
_MAX_OPEN = 63  # BD16


def _pairs(text: str, classes: Sequence[str]) -> list[tuple[int, int]]:
  """Places of brackets that belong together, by the opening one (BD16)."""
  pairs: list[tuple[int, int]] = []
  stack: list[tuple[str, int]] = []
  for i, character in enumerate(text):
    if classes[i] != "N":
      continue
    if character in _BRACKETS:
      if len(stack) == _MAX_OPEN:
        break
      stack.append((_BRACKETS[character], i))
    elif character in _CLOSING:
      for depth in range(len(stack) - 1, -1, -1):
        if stack[depth][0] == character:
          pairs.append((stack[depth][1], i))
          del stack[depth:]
          break
  return sorted(pairs)


def _resolve_brackets(text: str, classes: list[str], outside: str) -> None:
  """Gives both brackets of a pair one direction, where there is one (N0)."""
  sides = {"L": "L", "R": "R", "EN": "R", "AN": "R"}
  for opening, closing in _pairs(text, classes):
    inside = {sides.get(kind, "") for kind in classes[opening + 1 : closing]}
    if outside in inside:
      side = outside
    elif inside - {""}:
      before = (sides.get(kind) for kind in reversed(classes[:opening]))
      context = next((kind for kind in before if kind), outside)
      side = context  # The other one too, or else the line's.
    else:
      continue
    classes[opening] = classes[closing] = side


def levels(text: str, rtl: bool) -> list[int]:
  """Embedding level of each character of one line; odd = right to left."""
  classes = _classes(text, rtl)
  _resolve_brackets(text, classes, "R" if rtl else "L")
  sides = [{"EN": "R", "AN": "R"}.get(kind, kind) for kind in classes]
  outside = "R" if rtl else "L"
  i = 0
  while i < len(sides):
    if sides[i] != "N":
      i += 1
      continue
    end = next((j for j in range(i, len(sides)) if sides[j] != "N"), len(sides))
    before = sides[i - 1] if i else outside
    after = sides[end] if end < len(sides) else outside
    agreed = before if before == after else outside
    classes[i:end] = [agreed] * (end - i)
    i = end
  even = {"L": 0, "R": 1, "EN": 2, "AN": 2}
  odd = {"L": 2, "R": 1, "EN": 2, "AN": 2}
  found = [(odd if rtl else even)[kind] for kind in classes]
  for i in range(len(text.rstrip()), len(text)):
    found[i] = int(rtl)
  return found


def visual_order(runs: Sequence[Run]) -> list[Run]:
  """Runs from left to right (rule L2: reverse from the highest level down)."""
  ordered = list(runs)
  for level in range(max((run.level for run in runs), default=0), 0, -1):
    i = 0
    while i < len(ordered):
      end = i
      while end < len(ordered) and ordered[end].level >= level:
        end += 1
      ordered[i:end] = reversed(ordered[i:end])
      i = max(end, i + 1)
  return ordered
