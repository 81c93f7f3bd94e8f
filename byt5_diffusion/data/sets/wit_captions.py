"""What WiT's pages say of a picture, and in which language they say it."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from byt5_diffusion.data import languages

# In the order of what they say of the picture itself: beneath it on the page,
# instead of it for the blind, and at its own page for all languages.
CAPTIONS = {
  "reference": "caption_reference_description",
  "alt_text": "caption_alt_text_description",
  "attribution": "caption_attribution_description",
}
# How Wikipedia's templates begin a language's part of a description.
_NAMES = {
  "english": "en", "deutsch": "de", "français": "fr", "español": "es",
  "italiano": "it", "português": "pt", "nederlands": "nl", "polski": "pl",
  "русский": "ru", "українська": "uk", "беларуская": "be", "български": "bg",
  "српски": "sr", "srpski": "sr", "српски / srpski": "sr",
  "македонски": "mk", "čeština": "cs", "slovenčina": "sk",
  "slovenščina": "sl", "magyar": "hu", "română": "ro", "svenska": "sv",
  "dansk": "da", "norsk": "no", "norsk bokmål": "no", "norsk nynorsk": "no",
  "suomi": "fi", "eesti": "et", "latviešu": "lv", "lietuvių": "lt",
  "ελληνικά": "el", "türkçe": "tr", "català": "ca", "galego": "gl",
  "euskara": "eu", "esperanto": "eo", "latina": "la", "cymraeg": "cy",
  "gaeilge": "ga", "íslenska": "is", "shqip": "sq", "հայերեն": "hy",
  "ქართული": "ka", "azərbaycanca": "az", "қазақша": "kk", "العربية": "ar",
  "مصرى": "ar", "فارسی": "fa", "עברית": "iw", "اردو": "ur", "हिन्दी": "hi",
  "मराठी": "mr", "नेपाली": "ne", "বাংলা": "bn", "தமிழ்": "ta",
  "తెలుగు": "te", "ಕನ್ನಡ": "kn", "മലയാളം": "ml", "ไทย": "th",
  "tiếng việt": "vi", "bahasa indonesia": "id", "bahasa melayu": "ms",
  "日本語": "ja", "한국어": "ko", "中文": "zh", "中文（繁體）": "zh",
  "中文（简体）": "zh", "中文(繁體)": "zh", "中文(简体)": "zh",
  "hrvatski": "hr", "bosanski": "bs", "lëtzebuergesch": "lb",
  "afrikaans": "af", "frysk": "fy", "basa jawa": "jv", "tagalog": "fil",
}  # fmt: skip
_PART = re.compile(
  r"(?:(?<=\s)|^)("
  + "|".join(sorted(map(re.escape, _NAMES), key=len, reverse=True))
  + r")\s?[:：]\s*",
  re.IGNORECASE,
)


class Use(NamedTuple):
  """A page's use of a picture, and what is said of it there.

  Attributes:
    part: its place in the picture's row.
    language: WiT's code.
    page_url: of the page.
    captions: {a key of CAPTIONS: text}.
    passes: attribution_passes_lang_id: its attribution is in its language.
    is_main: whether the page begins with the picture.
  """

  part: int
  language: str
  page_url: str
  captions: Mapping[str, str]
  passes: bool
  is_main: bool


def use_of(part: int, page: Mapping[str, Any]) -> Use:
  """A page's use of a picture, by google/wit's columns."""
  return Use(
    part=part,
    language=string(page.get("language")),
    page_url=string(page.get("page_url")),
    captions={
      key: string(page.get(name)).strip() for key, name in CAPTIONS.items()
    },
    passes=to_bool(page.get("attribution_passes_lang_id")),
    is_main=to_bool(page.get("is_main_image")),
  )


def to_bool(value: Any) -> bool:
  """True, 1 or "true"; all else is not, "false" above all."""
  if isinstance(value, (str, bytes)):
    return string(value).strip().lower() in ("true", "1")
  return value is True or (isinstance(value, int) and value == 1)


def string(value: Any) -> str:
  """A string of parquet, TSV or tf.Example; "" for none."""
  if isinstance(value, bytes):
    return value.decode("utf-8", "replace")
  return value if isinstance(value, str) else ""


def caption_of(use: Use, order: Sequence[str] = tuple(CAPTIONS)) -> str:
  """The first caption that a use has of those in `order`; "" if none."""
  for key in order:
    text = use.captions.get(key, "")
    if key == "attribution":
      text = attribution_in(text, use.language, use.passes)
    if text:
      return text
  return ""


def attribution_in(text: str, language: str, passes: bool) -> str:
  """What an attribution says in a language, without the language's name.

  Args:
    text: such as "English: A dog. Deutsch: Ein Hund."
    language: its code, WiT's or mC4's.
    passes: whether WiT has found all of it to be in the language.

  Returns:
    The language's own part; all of it if it has no parts and passes; else "".
  """
  marks = list(_PART.finditer(text))
  # What is no beginning is maybe a word of the sentence.
  if not marks or marks[0].start() > 0:
    return text.strip() if passes else ""
  ends = [mark.start() for mark in marks[1:]] + [len(text)]
  for mark, end in zip(marks, ends, strict=True):
    if _same(_NAMES[mark[1].lower()], language):
      return text[mark.end() : end].strip()
  return text[marks[0].end() :].strip() if passes and len(marks) == 1 else ""


def _same(one: str, other: str) -> bool:
  """Whether two codes are of one language."""
  code = languages.code(one)
  return one == other or (
    code != languages.UNKNOWN and code == languages.code(other)
  )
