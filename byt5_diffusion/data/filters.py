"""Which captions and pictures are worth learning from: published rules.

They were made for English, and are counted here so that they mean the same in
every script: grapheme clusters instead of words, letters, marks and digits of
all scripts instead of a-z. docs/data/filters.md says whose rule each one is.
"""

import collections
import dataclasses
import itertools
import unicodedata

import numpy as np

from byt5_diffusion.data import boilerplate, languages
from byt5_diffusion.data import text as text_lib

_SHOWN = 120
_FEW_CLUSTERS = frozenset({"Hani", "Jpan", "Kore"})
_GRAM = 10  # Clusters of a piece whose repetition counts.


class Filtered(Exception):
  """An example that a rule leaves out; good in itself.

  Attributes:
    reason: short constant words, so that reasons can be counted.
    value: what the rule saw; None where the reason says all.
  """

  def __init__(self, reason: str, value: object = None):
    super().__init__(reason if value is None else f"{reason}: {value}")
    self.reason = reason
    self.value = value

  def shown(self) -> str:
    """What the rule saw, in one line of bounded length."""
    if self.value is None:
      return ""
    line = " ".join(str(self.value).split())
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 3]}..."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
  """Thresholds; None switches a rule off.

  Attributes:
    judge_text: whether captions are judged at all, by the next seven.
    min_clusters: grapheme clusters but spaces that a caption has at least.
    min_clusters_cjk: likewise in Chinese, Japanese, Korean.
    max_characters: code points that it has at most.
    min_alphanumeric: share of it that is letters, marks (which Indic and Thai
      words are half made of) and digits; spaces are not.
    max_repetition: share of its pieces of ten clusters that come again in it.
    max_occurrences: captions that occur more often in the corpus are left out.
    min_confidence: of the language's identification, [0, 1].
    max_pwatermark, max_punsafe: of LAION's detectors, [0, 1].
    min_similarity_en, min_similarity_other: of CLIP, image and caption.
    min_side, max_aspect: of the picture's pixels.
    aesthetic_v1, aesthetic_v2: lowest score by either predictor. Their scales
      differ, and both were made for photographs: documents and typography are
      not judged by them, or by `threshold` of their own scores.
    revision: of the rules' code, for what is kept of their answers.
  """

  judge_text: bool = True
  min_clusters: int = 6
  min_clusters_cjk: int = 3
  max_characters: int = 1000
  min_alphanumeric: float = 0.6
  max_repetition: float = 0.0937
  max_occurrences: int = 10
  min_confidence: float | None = None
  max_pwatermark: float | None = 0.8
  max_punsafe: float | None = 0.5
  min_similarity_en: float | None = None
  min_similarity_other: float | None = None
  min_side: int | None = 200
  max_aspect: float | None = 3.0
  aesthetic_v1: float | None = None
  aesthetic_v2: float | None = None
  revision: int = 1

  def check(
    self,
    text: str | None = None,
    *,
    language: str | None = None,
    confidence: float | None = None,
    occurrences: int | None = None,
    width: int | None = None,
    height: int | None = None,
    pwatermark: float | None = None,
    punsafe: float | None = None,
    similarity: float | None = None,
    aesthetic: float | None = None,
    aesthetic_version: int | None = None,
  ) -> None:
    """Raises Filtered if a rule leaves the example out.

    Args:
      text: the caption; None: not judged, as for every other argument.
      language: mC4's code.
      confidence: of the language, [0, 1].
      occurrences: of the caption in its corpus (duplicates.Occurrences).
      width, height: pixels.
      pwatermark, punsafe, similarity: LAION's columns.
      aesthetic: the predictor's score.
      aesthetic_version: 1 or 2, whose scales differ.

    Raises:
      ValueError: an aesthetic score of no version.
    """
    self._check_picture(width, height)
    self._check_scores(language, pwatermark, punsafe, similarity)
    self._check_aesthetic(aesthetic, aesthetic_version)
    if text is not None and self.judge_text:
      self.check_text(text, language, confidence, occurrences)

  def check_text(
    self,
    text: str,
    language: str | None = None,
    confidence: float | None = None,
    occurrences: int | None = None,
  ) -> None:
    """The rules of captions alone; see check."""
    text = unicodedata.normalize("NFC", " ".join(text.split()))
    if len(text) > self.max_characters:
      raise Filtered("caption too long", text)
    why = boilerplate.reason(text)
    if why:
      raise Filtered(f"caption is no description: {why}", text)
    categories = collections.Counter(map(unicodedata.category, text))
    kinds: collections.Counter[str] = collections.Counter()
    for category, count in categories.items():
      kinds[category[0]] += count
    if not kinds["L"]:
      raise Filtered("caption without letters", text)
    used = kinds["L"] + kinds["M"] + kinds["N"]
    if used / len(text) < self.min_alphanumeric:
      raise Filtered("caption of few letters", text)
    shares = languages.script_shares(text)
    clusters = text_lib.graphemes(text)
    least = self.min_clusters
    if next(iter(shares), "") in _FEW_CLUSTERS:
      least = self.min_clusters_cjk
    if len(clusters) - categories["Zs"] < least:
      raise Filtered("caption too short", text)
    if repetition(clusters) > self.max_repetition or _monotonous(text):
      raise Filtered("caption repeats itself", text)
    if occurrences is not None and occurrences > self.max_occurrences:
      raise Filtered("caption occurs too often", text)
    if language is not None and not languages.fits(text, language):
      raise Filtered("script is not the language's", f"{language}: {text}")
    self._below(
      "language is unsure", confidence, self.min_confidence, note=text
    )

  def _check_picture(self, width: int | None, height: int | None) -> None:
    if width is None or height is None:
      return
    if width < 1 or height < 1:
      raise Filtered("picture without size", f"{width} x {height}")
    if self.min_side is not None and min(width, height) < self.min_side:
      raise Filtered("picture too small", f"{width} x {height}")
    aspect = max(width, height) / min(width, height)
    if self.max_aspect is not None and aspect > self.max_aspect:
      raise Filtered("picture too long or too tall", f"{width} x {height}")

  def _check_scores(
    self,
    language: str | None,
    pwatermark: float | None,
    punsafe: float | None,
    similarity: float | None,
  ) -> None:
    for reason, value, most in (
      ("watermark", pwatermark, self.max_pwatermark),
      ("unsafe", punsafe, self.max_punsafe),
    ):
      # Not "value > most": what is no number must not pass.
      if value is not None and most is not None and not value < most:
        raise Filtered(reason, value)
    english = language == "en"
    least = self.min_similarity_en if english else self.min_similarity_other
    self._below("caption does not match picture", similarity, least)

  def _check_aesthetic(self, score: float | None, version: int | None) -> None:
    if score is None:
      return
    if version not in (1, 2):
      raise ValueError(
        f"aesthetic_version={version}: say of which predictor a score is, 1 or "
        "2; their scales differ."
      )
    least = self.aesthetic_v1 if version == 1 else self.aesthetic_v2
    self._below(f"aesthetic score (V{version}) too low", score, least)

  def _below(
    self,
    reason: str,
    value: float | None,
    least: float | None,
    note: str | None = None,
  ) -> None:
    if value is not None and least is not None and not value >= least:
      raise Filtered(reason, value if note is None else f"{value:.2f} {note}")


def repetition(clusters: list[str]) -> float:
  """Share of a text's pieces of ten clusters that it has more than once."""
  if len(clusters) <= _GRAM:
    return 0.0
  grams = collections.Counter(
    zip(*(clusters[i:] for i in range(_GRAM)), strict=False)
  )
  again = sum(count for count in grams.values() if count > 1)
  return again / grams.total()


def _monotonous(text: str) -> bool:
  """One word, or one character, most of the time."""
  words = text.casefold().split()
  if len(words) >= 5:
    most = collections.Counter(words).most_common(1)[0][1]
    if most > len(words) / 2:
      return True
  return any(
    sum(1 for _ in run) > 6
    for character, run in itertools.groupby(text)
    if character != "."
  )


def threshold(scores: np.ndarray, keep: float) -> float:
  """The score that the best `keep` of a data set's own scores reach.

  For data that a predictor was not made for: their scores have an order, even
  if their height says nothing.

  Raises:
    ValueError: no scores, or a share outside of (0, 1].
  """
  if not len(scores) or not 0 < keep <= 1:
    raise ValueError(f"{len(scores)} scores, {keep=}: want some, and (0, 1].")
  return float(np.quantile(np.asarray(scores, np.float64), 1 - keep))
