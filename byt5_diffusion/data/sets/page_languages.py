"""In which languages a page is written, where its data set says none."""

import collections
import dataclasses
import unicodedata

from byt5_diffusion.data import languages
from byt5_diffusion.data.sets import written_pages


def identified(
  page: written_pages.Page, min_confidence: float
) -> written_pages.Page:
  """The page with languages for what has none, looked for script by script.

  A word tells little; all that a page says in one script tells more.

  Args:
    page: any.
    min_confidence: what is less sure stays unknown.
  """
  unknown: dict[str, list[int]] = {}
  for number in page.readable:
    if page.marks[number].language == languages.UNKNOWN:
      unknown.setdefault(_script(page.marks[number].text), []).append(number)
  unknown.pop("", None)
  found = {}
  for script, numbers in unknown.items():
    said = "\n".join(page.marks[number].text for number in numbers)
    code, confidence = languages.identify(said)
    if confidence >= min_confidence:
      found[script] = code
  marks = tuple(
    mark._replace(language=found[_script(mark.text)])
    if mark.language == languages.UNKNOWN and _script(mark.text) in found
    else mark
    for mark in page.marks
  )
  return dataclasses.replace(page, marks=marks)


def _script(text: str) -> str:
  """What most letters are called by Unicode: "LATIN", "ARABIC"; "" for none."""
  names = collections.Counter(
    unicodedata.name(one, "").partition(" ")[0].partition("-")[0]
    for one in text
    if one.isalpha()
  )
  most = names.most_common(1)[0][0] if names else ""
  return "CJK" if most in ("HIRAGANA", "KATAKANA") else most
