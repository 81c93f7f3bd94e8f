"""Greek, Bulgarian and Russian in Latin letters, by published systems.

  el-Latn   ELOT 743 (= ISO 843, type 2), without its accents
  bg-Latn   the Streamlined System (Bulgarian law on transliteration, 2009)
  ru-Latn   BGN/PCGN 1947, without its apostrophes and dots

Text of the web is romanised less strictly; these are what signs, passports and
maps have.
"""

import functools
import re
import unicodedata
from collections.abc import Mapping


def _table(written: str) -> dict[str, str]:
  """ "б=b ж=zh ъ=" -> {"б": "b", "ж": "zh", "ъ": ""}."""
  return dict(pair.split("=") for pair in written.split())


_BULGARIAN = _table("""
  а=a б=b в=v г=g д=d е=e ж=zh з=z и=i й=y к=k л=l м=m н=n о=o п=p р=r с=s т=t
  у=u ф=f х=h ц=ts ч=ch ш=sh щ=sht ъ=a ь=y ю=yu я=ya
""")
_RUSSIAN = _table("""
  а=a б=b в=v г=g д=d е=e ё=yo ж=zh з=z и=i й=y к=k л=l м=m н=n о=o п=p р=r с=s
  т=t у=u ф=f х=kh ц=ts ч=ch ш=sh щ=shch ъ= ы=y ь= э=e ю=yu я=ya
""")
_GREEK = _table("""
  α=a β=v γ=g δ=d ε=e ζ=z η=i θ=th ι=i κ=k λ=l μ=m ν=n ξ=x ο=o π=p ρ=r σ=s ς=s
  τ=t υ=y φ=f χ=ch ψ=ps ω=o γγ=ng γξ=nx γχ=nch
""")
# αυ, ευ, ηυ sound as av before these and vowels, as af elsewhere.
_VOICED = "αεηιουωβγδζλμνρ"


def _by_table(text: str, table: Mapping[str, str]) -> str:
  """Longest entries first; capitals stay capitals."""
  pattern = _pattern(tuple(sorted(table, key=len, reverse=True)))

  def latin(match: re.Match[str]) -> str:
    found = match[0]
    made = table[found.lower()]
    if found[0].islower():
      return made
    alone = found[1:] or text[match.end() : match.end() + 1]
    return made.upper() if alone.isupper() else made[:1].upper() + made[1:]

  return pattern.sub(latin, text)


@functools.cache
def _pattern(keys: tuple[str, ...]) -> re.Pattern[str]:
  return re.compile("|".join(keys), re.IGNORECASE)


def _bulgarian(text: str) -> str:
  text = re.sub(r"(?i)(?<=и)я\b", "a", text)  # София -> Sofia
  return _by_table(text, _BULGARIAN)


def _russian(text: str) -> str:
  # E is ye at a word's beginning and behind vowels and signs.
  text = re.sub(r"(?<![^\W\d_])е|(?<=[аеёиоуыэюяйъьАЕЁИОУЫЭЮЯЙ])е", "ye", text)
  text = re.sub(r"(?<![^\W\d_])Е", "Ye", text)
  return _by_table(text, _RUSSIAN)


def _like(sound: str, match: re.Match[str]) -> str:
  return sound.upper() if match[0].isupper() else sound


def _greek(text: str) -> str:
  text = unicodedata.normalize("NFD", text)
  text = re.sub(r"(?<=[\u0391-\u03c9])\u0308", "\u0000", text)  # No diphthong.
  text = text.replace("\u0301", "")
  for before, after, sound in (
    ("ο", "", "u"),
    ("αεη", f"(?=[{_VOICED}])", "v"),
    ("αεη", "", "f"),
  ):
    text = re.sub(
      rf"(?i)(?<=[{before}])υ{after}(?!\u0000)",
      functools.partial(_like, sound),
      text,
    )
  text = re.sub(r"\bμπ", "b", text)
  text = re.sub(r"\bΜπ", "B", text)
  return _by_table(text, _GREEK).replace("\u0000", "")


_SYSTEMS = {"bg-Latn": _bulgarian, "el-Latn": _greek, "ru-Latn": _russian}
CODES = tuple(_SYSTEMS)


def romanize(text: str, code: str) -> str:
  """Text in Latin letters; what has no rule stays.

  Args:
    text: Bulgarian, Greek or Russian.
    code: one of CODES, which says which.
  """
  return unicodedata.normalize("NFC", _SYSTEMS[code](text))
