"""What annotations of pages hold, and what is left out of them, by reason."""

import collections
from collections.abc import Mapping
from typing import Any

from byt5_diffusion.data import rejections
from byt5_diffusion.data.sets import written_pages

_NAMED = 1000  # Names kept of what is left out.


class Listing:
  """Counts what a data set's annotations hold, and what is left out."""

  def __init__(self) -> None:
    self._num_pages = 0
    self._num_marks = 0
    self._problems: list[tuple[str, str]] = []
    self._left_out: list[tuple[str, str]] = []

  def note(self, page: written_pages.Page) -> None:
    """Counts a page's marks and what could not become one."""
    self._num_pages += 1
    self._num_marks += max(1, len(page.marks) + len(page.problems))
    self._problems += [(f"{page.key}/{k}", why) for k, why in page.problems]

  def leave_out(self, key: str, reason: str) -> None:
    """Notes what is good in itself and no example."""
    self._left_out.append((key, reason))

  def header(self) -> dict[str, Any]:
    """All counts, and the first names, as JSON has them."""
    return {
      "pages": self._num_pages,
      "marks": self._num_marks,
      "broken": collections.Counter(why for _, why in self._problems),
      "broken_names": self._problems[:_NAMED],
      "filtered": collections.Counter(why for _, why in self._left_out),
      "filtered_names": self._left_out[:_NAMED],
    }


def count(
  name: str, header: Mapping[str, Any], max_rejected_share: float
) -> None:
  """Tells the ledgers; raises if too much of the annotations is broken."""
  for called, what, share in (
    (f"{name} (annotations)", "broken", max_rejected_share),
    (f"{name} (filters)", "filtered", 1.0),
  ):
    rejections.forget(called)
    rejections.ledger(
      called, max_share=share, num_records=max(1, header["marks"])
    ).count(header["kept"], header[what], map(tuple, header[f"{what}_names"]))
