"""Names, numbers, dates and prices of a language, by Unicode's CLDR (Babel).

What CLDR has no word for it takes from English or a neighbour; such names are
left out. Marks that have no ink and that nobody could read off a picture
(marks of direction, wide and narrow no-break spaces) become spaces or nothing.
"""

import datetime
import functools
import importlib
from types import ModuleType
from typing import Any

import numpy as np
import regex

from byt5_diffusion.data.writing import (
  phrase_lists,
  words,
)

# mC4's code and the script -> CLDR's locale, where it is not the code.
_LOCALES = {
  ("iw", "Hebr"): "he",
  ("no", "Latn"): "nb",
  ("sr", "Latn"): "sr_Latn",
  ("uz", "Cyrl"): "uz_Cyrl",
  ("zh", "Hans"): "zh_Hans",
  ("zh", "Hant"): "zh_Hant",
}
# CLDR has nothing of these, or English alone: numbers are written as there.
_NONE = ("hi-Latn", "hmn", "ja-Latn", "sm", "zh-Latn")
# Names are another language's where CLDR has none, besides English.
_BORROWED = {"ht": "fr", "zu": "en"}
_MAX_GRAPHEMES = 36
_CURRENCIES = ("EUR", "USD", "GBP", "JPY")
_INVISIBLE = regex.compile(r"[\u200b\u200e\u200f\u061c\u2066-\u2069]")
_UNITS = (
  "length-kilometer", "length-meter", "length-centimeter", "mass-kilogram",
  "mass-gram", "volume-liter", "duration-hour", "duration-minute",
  "duration-day", "duration-year", "temperature-celsius",
  "speed-kilometer-per-hour", "digital-gigabyte", "concentr-percent",
)  # fmt: skip


def _babel(name: str = "babel") -> ModuleType:
  try:
    return importlib.import_module(name)
  except ImportError as error:
    raise ImportError(
      "Names and dates of many languages need Babel: pip install "
      "'byt5-diffusion[typography]'."
    ) from error


def version() -> str:
  """Babel's: another one has other words."""
  return str(_babel().__version__)


@functools.cache
def locale(code: str, script: str) -> Any:
  """Babel's Locale of one of mC4's languages; English where there is none."""
  name = _LOCALES.get((code, script), code.partition("-")[0])
  return _babel().Locale.parse("en" if code in _NONE else name)


def plain(text: str) -> str:
  """Text without invisible marks; all its spaces are U+0020."""
  return " ".join(_INVISIBLE.sub("", text).split())


@functools.cache
def names(code: str, script: str) -> tuple[str, ...]:
  """Months, days, territories, languages and currencies, each once."""
  if code in _NONE:
    return ()
  own = locale(code, script)
  found: list[str] = []
  for calendar in (own.months, own.days):
    for context in ("format", "stand-alone"):
      found.extend(dict(calendar[context]["wide"]).values())
  lender = _babel().Locale.parse(_BORROWED.get(code, "en"))
  for kind in ("territories", "languages", "currencies"):
    table, borrowed = dict(getattr(own, kind)), dict(getattr(lender, kind))
    common = [key for key in table if key in borrowed]
    same = {key for key in common if borrowed[key] in table[key]}
    if code != "en" and len(same) > 0.3 * len(common):
      table = {key: name for key, name in table.items() if key not in same}
    found.extend(table[key] for key in sorted(table))
  clean = (plain(name) for name in found)
  return tuple(
    name for name in dict.fromkeys(clean) if _is_word(name, script, code)
  )


def _is_word(name: str, script: str, code: str) -> bool:
  """Whether a name is written in its language's script, and short."""
  if len(name) > _MAX_GRAPHEMES or regex.search(r"[()\[\]\d{}]", name):
    return False
  written = words.script_of(name)
  if written == "Hans":
    written = script if script in ("Hans", "Hant", "Jpan") else written
  foreign = script != "Latn" and regex.search(r"\p{Latin}", name)
  return written == script and not foreign


def _pick(rng: np.random.Generator, items: Any) -> Any:
  return items[int(rng.integers(len(items)))]


def date(code: str, script: str, rng: np.random.Generator) -> str:
  """A day of the years 1900 to 2099, numbers alone or with the month's name."""
  day = datetime.date(1900, 1, 1) + datetime.timedelta(
    days=int(rng.integers(73049))
  )
  style = _pick(rng, ("short", "medium", "long", "full"))
  if code in _NONE:
    return _pick(rng, (f"{day:%d/%m/%Y}", f"{day:%d.%m.%Y}", day.isoformat()))
  dates = _babel("babel.dates")
  return plain(dates.format_date(day, style, locale=locale(code, script)))


def time(code: str, script: str, rng: np.random.Generator) -> str:
  """A time of the day."""
  hour, minute = int(rng.integers(24)), 5 * int(rng.integers(12))
  if code in _NONE:
    return f"{hour}:{minute:02}"
  dates = _babel("babel.dates")
  moment = datetime.time(hour, minute)
  return plain(dates.format_time(moment, "short", locale=locale(code, script)))


@functools.cache
def _currency(code: str, script: str) -> str:
  """What is paid with where the language is at home."""
  core, numbers = _babel("babel.core"), _babel("babel.numbers")
  name = str(locale(code, script))
  likely = core.get_global("likely_subtags").get(name, "en_Latn_US")
  home = likely.rpartition("_")[2]
  found = numbers.get_territory_currencies(home) or ["USD"]
  return str(found[-1])


def price(code: str, script: str, rng: np.random.Generator) -> str:
  """A price, mostly in the money of the language's home."""
  numbers = _babel("babel.numbers")
  currency = _currency(code, script)
  if rng.uniform() < 0.3:
    currency = _pick(rng, _CURRENCIES)
  amount = _amount(rng)
  cents = _pick(rng, (0, 0, 50, 95, 99))
  return plain(
    numbers.format_currency(
      amount + cents / 100, currency, locale=locale(code, script)
    )
  )


def quantity(code: str, script: str, rng: np.random.Generator) -> str:
  """A number alone, or so many of a unit."""
  numbers, units = _babel("babel.numbers"), _babel("babel.units")
  own, amount = locale(code, script), _amount(rng)
  if rng.uniform() < 0.4:
    return plain(numbers.format_decimal(amount, locale=own))
  if rng.uniform() < 0.2:
    share = int(rng.integers(101)) / 100
    return plain(numbers.format_percent(share, locale=own))
  length = "short" if code in _NONE or rng.uniform() < 0.5 else "long"
  unit = _pick(rng, _UNITS)
  drawn = plain(units.format_unit(amount, unit, length, locale=own))
  # Babel writes the unit's English key where CLDR has no word.
  return drawn.replace(unit, "").strip()


def _amount(rng: np.random.Generator) -> int:
  """As many of one, two, three and four digits."""
  return int(rng.integers(1, 10 ** int(rng.integers(1, 5))))


def native_digits(code: str, text: str) -> str:
  """Text with the digits of its language's script, where it has some."""
  zero = phrase_lists.ZEROS.get(code)
  if zero is None:
    return text
  return text.translate({ord("0") + i: ord(zero) + i for i in range(10)})
