"""LAION-High-Resolution and its like: pictures of the web with their captions.

The published parquet has addresses (URL, TEXT, WIDTH, HEIGHT, similarity,
LANGUAGE, hash, pwatermark, punsafe); this reads what `byt5-diffusion download`
made of them (data/sets/fetched.py), by LAION's rules.

`hash` names a pair of address and caption, in every copy of the data set; it is
mmh3.hash64(URL + TEXT)[0], either of them "" if it is null. An example is
called "laion/<hash>", wherever it lies.
"""

from collections.abc import Callable, Mapping
from typing import Any

from byt5_diffusion.data import (
  annotated,
  duplicates,
  filters,
  images,
  languages,
  occurrences,
)
from byt5_diffusion.data.rows import catalogue
from byt5_diffusion.data.sets import fetched

# Columns that cannot be done without. The others: similarity; pwatermark and
# punsafe, which may be null; a column of AESTHETIC.
COLUMNS = ("hash", "LANGUAGE", "url")
# Columns of aesthetic scores -> which predictor they come from. What LAION
# calls "aesthetic" is the first one's; its numbers mean something else than the
# second one's.
AESTHETIC = {
  "aesthetic": 1,
  "aesthetic_v1": 1,
  "aesthetic_v2": 2,
  "aesthetic_score_laion_v2": 2,
}
_UNIDENTIFIED = frozenset({"", "nolang", "und", "unknown", "none"})
Identify = Callable[[str], tuple[str, float]]


def open_laion(
  path: str,
  *,
  max_pwatermark: float = 0.8,
  max_punsafe: float = 0.5,
  min_similarity_en: float = 0.28,
  min_similarity_other: float = 0.26,
  min_side: int = 200,
  max_aspect: float = 3.0,
  min_confidence: float = 0.0,
  max_occurrences: int = 10,
  aesthetic_v1: float | None = None,
  aesthetic_v2: float | None = None,
  keep_unscored: bool = False,
  drop_copies: bool = False,
  identifier: str = "py3langid",
  validation_share: float = 0.001,
) -> catalogue.TableSupply:
  """Opens what img2dataset made of LAION's list; see supplies.Supply.

  Args:
    path: its folder, or files.
    max_pwatermark, max_punsafe: as LAION recommends them.
    min_similarity_en, min_similarity_other: as LAION chose its pairs, by CLIP
      and mCLIP.
    min_side, max_aspect: of the picture's pixels before it was scaled.
    min_confidence: of the language, where LAION has found none.
    max_occurrences: of a caption in all the files, which are read once more for
      that; 0: it is not looked at.
    aesthetic_v1, aesthetic_v2: lowest score, of the one predictor or the other.
    keep_unscored: whether pictures are kept of which pwatermark or punsafe is
      null, which means that nobody has looked.
    drop_copies: whether pictures are left out whose file, by its SHA-256, is
      another one's, too; where that is unknown, whose address is.
    identifier: of languages, where LAION has found none.
    validation_share: of the examples, by their hash.

  Raises:
    ValueError: there are addresses only, or a column is missing.
  """
  table = fetched.open_table(path, COLUMNS, "laion_high_resolution")
  _check_scores(path, fetched.columns_of(table), aesthetic_v1, aesthetic_v2)
  rules = filters.Rules(
    max_pwatermark=max_pwatermark,
    max_punsafe=max_punsafe,
    min_similarity_en=min_similarity_en,
    min_similarity_other=min_similarity_other,
    min_side=min_side,
    max_aspect=max_aspect,
    min_confidence=min_confidence or None,
    max_occurrences=max_occurrences,
    aesthetic_v1=aesthetic_v1,
    aesthetic_v2=aesthetic_v2,
  )

  def identify(text: str) -> tuple[str, float]:
    return languages.identify(text, identifier)

  name, columns = f"laion_high_resolution:{path}", _columns(table.columns)
  version, count = f"laion 2 {rules} {keep_unscored} {identifier}", None
  if max_occurrences:
    seen = occurrences.of_table(name, table, columns, caption_of)
    version, count = f"{version} among {table.fingerprint}", seen.count
  return catalogue.TableSupply(
    name,
    table,
    columns=columns,
    describe=Describer(
      rules,
      keep_unscored=keep_unscored,
      identify=identify,
      count=count,
    ),
    make=lambda row, part: make(row, identify),
    version=version,
    validation_share=validation_share,
    drop_copies=drop_copies,
  )


def _check_scores(
  path: str, columns: set[str], *thresholds: float | None
) -> None:
  """Raises ValueError for a threshold of scores that are not there."""
  for version, threshold in enumerate(thresholds, start=1):
    names = [name for name, of in AESTHETIC.items() if of == version]
    if threshold is not None and not columns & set(names):
      raise ValueError(
        f"{path}: aesthetic_v{version}={threshold} wants a column "
        f"{' or '.join(names)}. A score of the other predictor is no such: "
        "their scales differ."
      )


def _columns(columns: tuple[str, ...]) -> tuple[str, ...]:
  """What a description looks at: all but the pictures."""
  if "json" in columns or not columns:
    return ("json", "txt")
  return tuple(x for x in columns if x not in fetched.PICTURES)


class Describer:
  """row -> its one example, for catalogue.TableSupply."""

  def __init__(
    self,
    rules: filters.Rules,
    *,
    keep_unscored: bool = False,
    identify: Identify = languages.identify,
    count: Callable[[str], int] | None = None,
  ):
    self._rules = rules
    self._count = count
    self._keep_unscored = keep_unscored
    self._identify = identify

  def __call__(self, row: Mapping[str, Any]) -> list[catalogue.Entry]:
    """Raises images.BadImage or filters.Filtered for what is not wanted."""
    found = fetched.known(row)
    fetched.check_status(found)
    key = key_of(found)
    caption = fetched.text(found, "caption")
    if not caption.strip():
      raise filters.Filtered("no caption")
    pwatermark = fetched.number(found.get("pwatermark"))
    punsafe = fetched.number(found.get("punsafe"))
    if not self._keep_unscored:
      for name, score in (("pwatermark", pwatermark), ("punsafe", punsafe)):
        if score is None:
          raise filters.Filtered(f"{name} is unknown")
    width, height = fetched.size(found)
    # English by LAION's word was scored by CLIP, all else by mCLIP.
    said = fetched.text(found, "LANGUAGE").lower()
    self._rules.check(
      language="en" if said == "en" else languages.UNKNOWN,
      width=width,
      height=height,
      pwatermark=pwatermark,
      punsafe=punsafe,
      similarity=fetched.number(found.get("similarity")),
    )
    self._check_aesthetic(found)
    language, confidence = language_of(found, caption, self._identify)
    self._rules.check(
      caption,
      language=language,
      confidence=confidence,
      occurrences=self._count(caption) if self._count else None,
    )
    content = fetched.text(found, "sha256") or fetched.text(found, "url")
    return [catalogue.Entry(key, 0, language, duplicates.key(content or key))]

  def _check_aesthetic(self, found: Mapping[str, Any]) -> None:
    """Each score against its own predictor's threshold."""
    wanted = {1: self._rules.aesthetic_v1, 2: self._rules.aesthetic_v2}
    for version, threshold in wanted.items():
      if threshold is None:
        continue
      score = aesthetic_of(found, version)
      if score is None:
        raise filters.Filtered(f"aesthetic score (V{version}) is unknown")
      self._rules.check(aesthetic=score, aesthetic_version=version)


def make(
  row: Mapping[str, Any], identify: Identify = languages.identify
) -> annotated.Annotated:
  """The example of a row. images.BadImage: there is none."""
  found = fetched.known(row)
  key = key_of(found)
  caption = fetched.text(found, "caption")
  return annotated.Annotated(
    key=key,
    image=fetched.picture(row, key),
    text=caption,
    language=language_of(found, caption, identify)[0],
  )


def caption_of(row: Mapping[str, Any]) -> str:
  """A row's caption; "" where there is none."""
  return fetched.text(fetched.known(row), "caption")


def key_of(found: Mapping[str, Any]) -> str:
  """ "laion/<hash>". images.BadImage: there is no hash."""
  value = found.get("hash")
  if isinstance(value, bool) or not isinstance(value, int):
    raise images.BadImage(fetched.text(found, "url") or "a row", "no hash")
  return f"laion/{value}"


def language_of(
  found: Mapping[str, Any], caption: str, identify: Identify
) -> tuple[str, float | None]:
  """mC4's code, and how sure it is; None: LAION has said so."""
  said = fetched.text(found, "LANGUAGE")
  if said.lower() not in _UNIDENTIFIED:
    return languages.code(said), None
  return identify(caption)


def aesthetic_of(found: Mapping[str, Any], version: int) -> float | None:
  """The score of one predictor, by any of its columns."""
  for name, of in AESTHETIC.items():
    score = fetched.number(found.get(name)) if of == version else None
    if score is not None:
      return score
  return None
