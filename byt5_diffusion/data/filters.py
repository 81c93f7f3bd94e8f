"""Which captions and pictures are worth learning from: published rules.

Every rule was made for English (docs/data/filters.md says by whom), and is
counted here so that it means the same in every script.
"""

import dataclasses


class Filtered(Exception):
  """An example that a rule leaves out; good in itself.

  Attributes:
    reason: short constant words, so that reasons can be counted.
    value: what the rule saw.
  """

  def __init__(self, reason: str, value: object = None):
    super().__init__(reason)
    self.reason = reason
    self.value = value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
  """Thresholds; None switches a rule off.

  Attributes:
    max_pwatermark, max_punsafe: of LAION's detectors, [0, 1].
    min_similarity_en, min_similarity_other: of CLIP, image and caption.
    min_side, max_aspect: of the picture's pixels.
    min_confidence: of the language's identification, [0, 1].
    aesthetic_v1, aesthetic_v2: lowest score by either predictor; their scales
      differ.
  """

  max_pwatermark: float | None = 0.8
  max_punsafe: float | None = 0.5
  min_similarity_en: float | None = None
  min_similarity_other: float | None = None
  min_side: int | None = 200
  max_aspect: float | None = 3.0
  min_confidence: float | None = None
  aesthetic_v1: float | None = None
  aesthetic_v2: float | None = None

  def check(
    self,
    text: str | None = None,
    *,
    language: str | None = None,
    confidence: float | None = None,
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
      width, height: pixels.
      pwatermark, punsafe, similarity: LAION's columns.
      aesthetic: the predictor's score.
      aesthetic_version: 1 or 2, whose scales differ.
    """
