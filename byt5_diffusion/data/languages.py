"""The languages that ByT5 has read, and how much of each.

Also what other data sets call them, and the scripts that they are written in.
"""

import collections
import functools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import regex

OTHER = 255  # In arrays of uint8: none of the table's languages.
UNKNOWN = "und"
OTHER_SCRIPT = "Zzzz"


class Language(NamedTuple):
  """A row of the table.

  Attributes:
    code: mC4's, which is cld3's: "iw" is Hebrew, "no" Norwegian.
    name: in English.
    pages_m: pages of mC4, in millions.
    percent: of ByT5's training examples.
  """

  code: str
  name: str
  pages_m: float
  percent: float


# mT5's table 6 (Xue et al. 2021, arXiv 2010.11934); 107 rows.
TABLE: tuple[Language, ...] = (
  Language("en", "English", 3067.0, 5.67),
  Language("ru", "Russian", 756.0, 3.71),
  Language("es", "Spanish", 416.0, 3.09),
  Language("de", "German", 397.0, 3.05),
  Language("fr", "French", 333.0, 2.89),
  Language("it", "Italian", 186.0, 2.43),
  Language("pt", "Portuguese", 169.0, 2.36),
  Language("pl", "Polish", 126.0, 2.15),
  Language("nl", "Dutch", 96.0, 1.98),
  Language("tr", "Turkish", 88.0, 1.93),
  Language("ja", "Japanese", 87.0, 1.92),
  Language("vi", "Vietnamese", 79.0, 1.87),
  Language("id", "Indonesian", 70.0, 1.8),
  Language("cs", "Czech", 60.0, 1.72),
  Language("zh", "Chinese", 55.0, 1.67),
  Language("fa", "Persian", 54.0, 1.67),
  Language("ar", "Arabic", 53.0, 1.66),
  Language("sv", "Swedish", 49.0, 1.61),
  Language("ro", "Romanian", 46.0, 1.58),
  Language("el", "Greek", 42.0, 1.54),
  Language("uk", "Ukrainian", 39.0, 1.51),
  Language("hu", "Hungarian", 37.0, 1.48),
  Language("da", "Danish", 29.0, 1.38),
  Language("fi", "Finnish", 27.0, 1.35),
  Language("no", "Norwegian", 25.0, 1.33),
  Language("bg", "Bulgarian", 23.0, 1.29),
  Language("hi", "Hindi", 19.0, 1.21),
  Language("sk", "Slovak", 18.0, 1.19),
  Language("ko", "Korean", 16.0, 1.14),
  Language("th", "Thai", 15.0, 1.14),
  Language("ca", "Catalan", 14.0, 1.12),
  Language("ms", "Malay", 13.0, 1.09),
  Language("iw", "Hebrew", 12.0, 1.06),
  Language("lt", "Lithuanian", 11.0, 1.04),
  Language("sl", "Slovenian", 8.5, 0.95),
  Language("mr", "Marathi", 7.8, 0.93),
  Language("bn", "Bengali", 7.4, 0.91),
  Language("et", "Estonian", 6.9, 0.89),
  Language("lv", "Latvian", 6.4, 0.87),
  Language("az", "Azerbaijani", 5.3, 0.82),
  Language("gl", "Galician", 4.6, 0.79),
  Language("cy", "Welsh", 4.1, 0.76),
  Language("sq", "Albanian", 4.1, 0.76),
  Language("ta", "Tamil", 3.5, 0.73),
  Language("sr", "Serbian", 3.4, 0.72),
  Language("ne", "Nepali", 2.9, 0.69),
  Language("lb", "Luxembourgish", 2.7, 0.68),
  Language("hy", "Armenian", 2.4, 0.65),
  Language("kk", "Kazakh", 2.4, 0.65),
  Language("ka", "Georgian", 2.3, 0.64),
  Language("mt", "Maltese", 2.3, 0.64),
  Language("af", "Afrikaans", 2.2, 0.63),
  Language("fil", "Filipino", 2.1, 0.62),
  Language("is", "Icelandic", 2.1, 0.62),
  Language("mk", "Macedonian", 2.1, 0.62),
  Language("ml", "Malayalam", 2.1, 0.62),
  Language("mn", "Mongolian", 2.1, 0.62),
  Language("ur", "Urdu", 1.9, 0.61),
  Language("be", "Belarusian", 1.7, 0.59),
  Language("la", "Latin", 1.7, 0.58),
  Language("eu", "Basque", 1.6, 0.57),
  Language("tg", "Tajik", 1.3, 0.54),
  Language("te", "Telugu", 1.2, 0.52),
  Language("fy", "West Frisian", 1.1, 0.51),
  Language("kn", "Kannada", 1.1, 0.51),
  Language("ky", "Kyrgyz", 1.0, 0.5),
  Language("sw", "Swahili", 1.0, 0.5),
  Language("so", "Somali", 0.9, 0.48),
  Language("my", "Burmese", 0.8, 0.47),
  Language("uz", "Uzbek", 0.8, 0.46),
  Language("km", "Khmer", 0.8, 0.46),
  Language("ru-Latn", "Russian (Latin)", 0.7, 0.46),
  Language("sd", "Sindhi", 0.7, 0.45),
  Language("gu", "Gujarati", 0.6, 0.43),
  Language("hi-Latn", "Hindi (Latin)", 0.6, 0.43),
  Language("jv", "Javanese", 0.6, 0.42),
  Language("zu", "Zulu", 0.6, 0.42),
  Language("si", "Sinhala", 0.5, 0.41),
  Language("ja-Latn", "Japanese (Latin)", 0.5, 0.41),
  Language("eo", "Esperanto", 0.5, 0.4),
  Language("co", "Corsican", 0.5, 0.4),
  Language("ga", "Irish", 0.5, 0.4),
  Language("el-Latn", "Greek (Latin)", 0.4, 0.39),
  Language("zh-Latn", "Chinese (Latin)", 0.4, 0.37),
  Language("pa", "Punjabi", 0.4, 0.37),
  Language("ceb", "Cebuano", 0.4, 0.36),
  Language("mg", "Malagasy", 0.3, 0.36),
  Language("ps", "Pashto", 0.3, 0.36),
  Language("sn", "Shona", 0.3, 0.35),
  Language("gd", "Scottish Gaelic", 0.3, 0.35),
  Language("ku", "Kurdish", 0.3, 0.34),
  Language("hmn", "Hmong", 0.3, 0.34),
  Language("su", "Sundanese", 0.3, 0.34),
  Language("ht", "Haitian Creole", 0.3, 0.33),
  Language("ha", "Hausa", 0.2, 0.33),
  Language("ny", "Chichewa", 0.2, 0.29),
  Language("am", "Amharic", 0.2, 0.29),
  Language("bg-Latn", "Bulgarian (Latin)", 0.2, 0.29),
  Language("yi", "Yiddish", 0.1, 0.28),
  Language("lo", "Lao", 0.1, 0.28),
  Language("mi", "Maori", 0.1, 0.25),
  Language("sm", "Samoan", 0.1, 0.25),
  Language("ig", "Igbo", 0.09, 0.24),
  Language("haw", "Hawaiian", 0.08, 0.24),
  Language("xh", "Xhosa", 0.07, 0.22),
  Language("st", "Sotho", 0.07, 0.22),
  Language("yo", "Yoruba", 0.05, 0.2),
)


# ISO 15924 codes of the scripts that a language is written in, the one that
# mC4's pages mostly have first; all others: Latn. "Hani" is any Han.
SCRIPTS: Mapping[str, tuple[str, ...]] = {
  code: tuple(scripts.split())
  for scripts, codes in {
    "Arab": "ar fa ps ur",
    "Arab Deva": "sd",
    "Armn": "hy",
    "Beng": "bn",
    "Cyrl": "be bg mk ru tg uk",
    "Cyrl Arab": "ky",
    "Cyrl Latn": "sr",
    "Cyrl Latn Arab": "kk",
    "Cyrl Mong": "mn",
    "Deva": "hi mr ne",
    "Ethi": "am",
    "Geor": "ka",
    "Grek": "el",
    "Gujr": "gu",
    "Guru Arab": "pa",
    "Hani": "zh",
    "Hebr": "iw yi",
    "Jpan Hani": "ja",
    "Khmr": "km",
    "Knda": "kn",
    "Kore Hani": "ko",
    "Laoo": "lo",
    "Latn Arab": "ha ku ms",
    "Latn Cyrl": "ro",
    "Latn Cyrl Arab": "az uz",
    "Mlym": "ml",
    "Mymr": "my",
    "Sinh": "si",
    "Taml": "ta",
    "Telu": "te",
    "Thai": "th",
  }.items()
  for code in codes.split()
}
RIGHT_TO_LEFT = frozenset({"Arab", "Hebr"})

# What others call the table's languages: ISO 639-1 (and what was withdrawn of
# it), 639-2, 639-3, Wikipedia's. An ISO macrolanguage takes its members in, as
# cld3 does. Left out, because they would swell a row with what it is not: "hr"
# and "bs" (mC4 has neither), "ckb" (its "ku" is in Latin letters), "als" (Tosk
# Albanian to ISO, Alemannic to Wikipedia).
_OTHER_CODES = """
af afr|am amh|ar ara arb ary arz apc acm ajp afb|az aze azj|be bel be-tarask
be-x-old|bg bul|bn ben|ca cat|ceb ceb|co cos|cs ces cze|cy cym wel|da dan|
de deu ger|el ell gre|en eng simple|eo epo|es spa|et est ekk|eu eus baq|
fa fas per pes prs|fi fin|fil tl tgl|fr fra fre|fy fry|ga gle|gd gla|gl glg|
gu guj|ha hau|haw haw|hi hin|hmn hmong mww hea|ht hat|hu hun|hy hye arm|
id in ind|ig ibo|is isl ice|it ita|iw he heb|ja jpn|jv jw jav|ka kat geo|
kk kaz|km khm|kn kan|ko kor|ku kur kmr|ky kir|la lat|lb ltz|lo lao|lt lit|
lv lav lvs|mg mlg plt|mi mri mao|mk mkd mac|ml mal|mn mon khk|mr mar|
ms msa may zsm zlm|mt mlt|my mya bur|ne nep npi|nl nld dut|no nb nn nor nob
nno|ny nya|pa pan|pl pol|ps pus pbt pbu|pt por|ro mo ron rum mol|ru rus|
sd snd|si sin|sk slk slo|sl slv|sm smo|sn sna|so som|sq sqi alb|sr srp|
st sot|su sun|sv swe|sw swa swh|ta tam|te tel|tg tgk|th tha|tr tur|uk ukr|
ur urd|uz uzb uzn|vi vie|xh xho|yi ji yid ydd|yo yor|
zh zho chi cmn yue wuu lzh zh-yue zh-classical|zu zul
"""


@functools.cache
def _codes() -> dict[str, str]:
  codes = {language.name.lower(): language.code for language in TABLE}
  for entry in _OTHER_CODES.replace("\n", " ").split("|"):
    code, *others = entry.split()
    codes.update(dict.fromkeys(others, code))
  return codes | {language.code.lower(): language.code for language in TABLE}


def code(name: str | None) -> str:
  """mC4's code of what a data set calls a language; "und" if it has none.

  Args:
    name: "he", "HEB", "pt-BR", "zh_TW", "sr-Latn", "Hebrew"; None is "und".
  """
  codes = _codes()
  tag = (name or "").strip().replace("_", "-").lower()
  if tag in codes:
    return codes[tag]
  base, *rest = tag.split("-")
  if base not in codes or not rest:
    return UNKNOWN
  # "hi-Latn-IN" is a row of its own, "sr-Latn" is Serbian all the same.
  return codes.get(f"{base}-{rest[0]}", codes[base])


@functools.cache
def _rows() -> dict[str, int]:
  return {language.code: i for i, language in enumerate(TABLE)}


def row(code: str) -> int:
  """Place of a code in TABLE; -1 if it is not there."""
  return _rows().get(code, -1)


def percents() -> np.ndarray:
  """What ByT5 has read: share of every row, float64 [107], sum 1."""
  shares = np.array([language.percent for language in TABLE])
  return shares / shares.sum()


def scripts(code: str) -> tuple[str, ...]:
  """ISO 15924 codes of a language's scripts, the usual one first.

  Raises:
    ValueError: the table has no such language.
  """
  if row(code) < 0:
    raise ValueError(f"{code!r} is no language of mC4.")
  return SCRIPTS.get(code, ("Latn",))


def right_to_left(code: str) -> bool:
  """Whether a language is usually written from right to left."""
  return scripts(code)[0] in RIGHT_TO_LEFT


@functools.cache
def _script_patterns() -> regex.Pattern[str]:
  found = {script for row in SCRIPTS.values() for script in row} | {"Latn"}
  names = sorted(found - {"Jpan", "Kore"} | {"Hira", "Kana", "Hang", "Hani"})
  return regex.compile(
    "|".join(rf"(?P<{name}>\p{{Script={name}}})" for name in names)
  )


@functools.lru_cache(maxsize=1 << 17)
def _script_of(character: str) -> str:
  """ISO 15924 code of a letter; "Zzzz": of no script here, "": no letter."""
  if not character.isalpha():
    return ""
  found = _script_patterns().match(character)
  return str(found.lastgroup) if found else OTHER_SCRIPT


def script_shares(text: str) -> dict[str, float]:
  """Share of a text's letters in each script, the most frequent first.

  Only letters count: digits, marks and punctuation are many scripts'. Kana
  makes the Han beside it Japanese ("Jpan"), Hangul Korean ("Kore"); Han alone
  is "Hani". A script of none of the table's languages is "Zzzz".
  """
  counts = collections.Counter(map(_script_of, text))
  counts.pop("", None)
  total = counts.total()
  kana = counts.pop("Hira", 0) + counts.pop("Kana", 0)
  for script, own in (("Jpan", kana), ("Kore", counts.pop("Hang", 0))):
    if own:
      counts[script] = own + counts.pop("Hani", 0)
  return {script: count / total for script, count in counts.most_common()}


def fits(text: str, code: str) -> bool:
  """Whether most letters of a text are of a script of its language.

  True where nothing speaks against it: no letters, or no known language.
  """
  shares = script_shares(text)
  if not shares or row(code) < 0:
    return True
  return sum(shares.get(script, 0) for script in scripts(code)) >= 0.5


def identify(text: str, identifier: str = "py3langid") -> tuple[str, float]:
  """Language of a text and how sure that is: (mC4's code or "und", [0, 1]).

  Args:
    text: any.
    identifier: "py3langid" (extra "data") or "cld3" (extra "cld3").

  Raises:
    ImportError: the identifier is not installed; names the extra.
  """
  from byt5_diffusion.data import language_id  # It needs this module.

  return language_id.identify(text, identifier)
