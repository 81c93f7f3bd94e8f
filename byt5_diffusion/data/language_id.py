"""In which language a text is: what its script says, then an identifier.

  py3langid  naive Bayes on bytes; a wheel, 91 of mC4's languages ("data" extra)
  cld3       the network that mC4 itself was sorted by ("cld3" extra)

Both ship their model inside the wheel: nothing is downloaded, and neither is a
pickle (an .npz read without pickles; compiled constants).
"""

import functools
import os
import sys
from collections.abc import Callable

from byt5_diffusion.data import languages

IDENTIFIERS = ("py3langid", "cld3")
_MOST_CHARACTERS = 1000  # More say nothing new of a caption.


def _alone() -> dict[str, str]:
  """{script: the only language of the table that is written in it}."""
  users: dict[str, list[str]] = {}
  for code, scripts in languages.SCRIPTS.items():
    for script in scripts:
      users.setdefault(script, []).append(code)
  found = {s: codes[0] for s, codes in users.items() if len(codes) == 1}
  return found | {"Hani": "zh"}  # Japanese and Korean have letters besides.


_ALONE = _alone()
# Letters that, in their script, only this language writes.
_LETTERS = {
  "Hebr": ("yi", frozenset("\u05f0\u05f1\u05f2\ufb1d\ufb1f\ufb2e\ufb2f")),
  "Arab": ("sd", frozenset("\u067b\u067f\u0680\u0683\u0684\u06a6\u06b1\u06bb")),
}

Ranked = list[tuple[str, float]]


def identify(text: str, identifier: str = IDENTIFIERS[0]) -> tuple[str, float]:
  """See languages.identify."""
  if identifier not in IDENTIFIERS:
    raise ValueError(f"{identifier=} must be one of {IDENTIFIERS}.")
  shares = languages.script_shares(text)
  if not shares:
    return languages.UNKNOWN, 0.0
  script, share = next(iter(shares.items()))
  if script in _ALONE:
    return _ALONE[script], share
  if script in _LETTERS:
    code, letters = _LETTERS[script]
    if not letters.isdisjoint(text):
      return code, share
  rank = _py3langid() if identifier == "py3langid" else _cld3()
  for code, confidence in rank(text[:_MOST_CHARACTERS]):
    known = languages.row(code) >= 0
    if not known or script in languages.scripts(code):
      return (code, confidence) if known else (languages.UNKNOWN, confidence)
  return languages.UNKNOWN, 0.0


@functools.cache
def _py3langid() -> Callable[[str], Ranked]:
  try:
    from py3langid import langid
  except ImportError as error:
    raise ImportError(
      "Captions without a known language need py3langid: "
      'pip install "byt5-diffusion[data]".'
    ) from error
  model = langid.LanguageIdentifier.from_model_file(
    langid.MODEL_FILE, norm_probs=True
  )

  def rank(text: str) -> Ranked:
    merged: dict[str, float] = {}
    for label, probability in model.rank(text):
      code = languages.code(label)
      if code == languages.UNKNOWN:
        code = f"{languages.UNKNOWN}-{label}"  # Each of them for itself.
      merged[code] = merged.get(code, 0.0) + float(probability)
    return sorted(merged.items(), key=lambda item: -item[1])

  return rank


@functools.cache
def _cld3() -> Callable[[str], Ranked]:
  # Its protobuf is another one than TensorFlow's, whose names must not be
  # taken for its own: where TensorFlow came first, that ends the process.
  flags = sys.getdlopenflags()
  sys.setdlopenflags(flags | getattr(os, "RTLD_DEEPBIND", 0))
  try:
    import gcld3
  except ImportError as error:
    raise ImportError(
      'identifier="cld3" needs cld3: pip install "byt5-diffusion[cld3]".'
    ) from error
  finally:
    sys.setdlopenflags(flags)
  model = gcld3.NNetLanguageIdentifier(
    min_num_bytes=0, max_num_bytes=4 * _MOST_CHARACTERS
  )

  def rank(text: str) -> Ranked:
    found = model.FindLanguage(text=text)
    return [(languages.code(found.language), float(found.probability))]

  return rank
