"""The table of languages, their names elsewhere, scripts and identification."""

import builtins
import csv
import importlib.util
import subprocess
import sys

import numpy as np
import pytest

from byt5_diffusion.data import language_id, languages


def test_the_table_is_the_published_one(shared_data):
  with (shared_data / "mc4_languages.csv").open(encoding="utf-8") as file:
    rows = list(csv.DictReader(file))
  code = next(k for k in rows[0] if "code" in k)
  percent = next(k for k in rows[0] if "percent" in k)
  assert [row[code] for row in rows] == [x.code for x in languages.TABLE]
  assert [float(row[percent]) for row in rows] == [
    x.percent for x in languages.TABLE
  ]


def test_shares_are_pages_to_the_power_of_three_tenths():
  assert len(languages.TABLE) == 107
  assert sum(x.percent for x in languages.TABLE) == pytest.approx(100.01)
  pages = np.array([x.pages_m for x in languages.TABLE]) ** 0.3
  np.testing.assert_allclose(
    languages.percents(), pages / pages.sum(), atol=0.001
  )
  assert languages.percents().sum() == pytest.approx(1)


@pytest.mark.parametrize(
  ("name", "code"),
  [
    ("en", "en"),
    ("he", "iw"),
    ("HEB", "iw"),
    ("Hebrew", "iw"),
    ("in", "id"),
    ("nb", "no"),
    ("nn-NO", "no"),
    ("zh_TW", "zh"),
    ("zh-Hant-HK", "zh"),
    ("yue", "zh"),
    ("tl", "fil"),
    ("pt-BR", "pt"),
    ("sr-Latn", "sr"),
    ("hi-Latn", "hi-Latn"),
    ("zh-Latn-pinyin", "zh-Latn"),
    ("be-x-old", "be"),
    ("simple", "en"),
    ("ger", "de"),
    ("hr", "und"),
    ("bs", "und"),
    ("als", "und"),
    ("nolang", "und"),
    ("", "und"),
    (None, "und"),
  ],
)
def test_names_of_other_data_sets(name, code):
  assert languages.code(name) == code


def test_texts_are_in_a_script_of_their_language(shared_data):
  for label, scripts, text in _articles(shared_data):
    shares = languages.script_shares(text)
    found = next(iter(shares))
    assert languages.fits(text, label), (label, shares)
    if not scripts.startswith("Han"):
      assert found == scripts, (label, shares)
  assert not languages.fits("Все люди", "en")
  assert not languages.fits("hello", "th")
  assert languages.fits("12:30", "th")
  assert languages.fits("nothing known", "und")


def test_scripts_and_direction():
  assert languages.scripts("sr") == ("Cyrl", "Latn")
  assert languages.scripts("ru-Latn") == ("Latn",)
  assert [
    c for c in ("ar", "iw", "yi", "en") if languages.right_to_left(c)
  ] == [
    "ar",
    "iw",
    "yi",
  ]
  with pytest.raises(ValueError, match="xx"):
    languages.scripts("xx")
  assert languages.script_shares("日本の2024") == {"Jpan": 1.0}
  assert languages.script_shares("ab가漢") == {"Kore": 0.5, "Latn": 0.5}


def _articles(shared_data):
  path = shared_data / "fixtures/udhr/udhr_mc4_langs.tsv"
  with path.open(encoding="utf-8", newline="") as file:
    rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
    for row in rows:
      for key in ("article1", "article3"):
        if row[key]:
          yield row["mc4_code"], row["iso15924"], row[key]


def _need(module):
  # Not importorskip: how gcld3 is imported matters.
  if importlib.util.find_spec(module) is None:
    pytest.skip(f"{module} is not installed")


@pytest.mark.parametrize(
  ("identifier", "share"), [("py3langid", 0.87), ("cld3", 0.91)]
)
def test_most_articles_are_identified(shared_data, identifier, share):
  _need({"cld3": "gcld3"}.get(identifier, identifier))
  found = [
    (languages.identify(text, identifier), label)
    for label, _, text in _articles(shared_data)
  ]
  good = [code == label for (code, _), label in found]
  assert sum(good) / len(good) >= share
  sure = [code == label for (code, p), label in found if p >= 0.8]
  assert sum(sure) / len(sure) >= 0.94
  assert all(0 <= p <= 1.0001 for (_, p), _ in found)


@pytest.mark.slow
def test_cld3_works_beside_tensorflow():
  _need("tensorflow")
  _need("gcld3")
  program = (
    "import tensorflow\n"
    "from byt5_diffusion.data import languages\n"
    "print(languages.identify('Все люди рождаются свободными', 'cld3')[0])"
  )
  # Alone: where it fails there is no exception, but no process.
  done = subprocess.run(
    [sys.executable, "-c", program], capture_output=True, text=True
  )
  assert (done.returncode, done.stdout) == (0, "ru\n")


def test_scripts_of_one_language_need_no_identifier(monkeypatch):
  monkeypatch.setattr(language_id, "_py3langid", None)  # Not callable.
  assert languages.identify("รถยนต์สีแดง 2024 car") == ("th", 0.75)
  assert languages.identify("ירושלים איז ײַ") == ("yi", 1.0)
  assert languages.identify("12345 :-)") == ("und", 0.0)
  assert languages.identify("") == ("und", 0.0)


def test_languages_that_the_table_lacks_are_unknown():
  pytest.importorskip("py3langid")
  text = (
    "Sva ljudska bića rađaju se slobodna i jednaka u dostojanstvu i pravima"
  )
  assert languages.identify(text)[0] == "und"


def test_what_is_missing_is_named(monkeypatch):
  real = builtins.__import__

  def without(name, *arguments, **keywords):
    if name.startswith(("py3langid", "gcld3")):
      raise ImportError(name)
    return real(name, *arguments, **keywords)

  for cached in (language_id._py3langid, language_id._cld3):
    cached.cache_clear()
  monkeypatch.setattr(builtins, "__import__", without)
  with pytest.raises(ImportError, match=r"byt5-diffusion\[data\]"):
    languages.identify("hello there")
  with pytest.raises(ImportError, match=r"byt5-diffusion\[cld3\]"):
    languages.identify("hello there", "cld3")
  with pytest.raises(ValueError, match="py3langid"):
    languages.identify("hello there", "fasttext")
