"""Bad records are skipped, counted and named; too many of them end the run.

A source owns one `Ledger` per process and tells it of every record. Nothing
here touches the user's files.
"""

import collections
import itertools
import logging
import threading
from collections.abc import Iterable, Mapping
from typing import Any

_log = logging.getLogger(__name__)

_NAMED_AT_MOST = 1000  # Names kept per ledger; counts go on after that.
_LOGGED_AT_MOST = 20
_SHOWN_IN_ERROR = 5


class TooManyRejections(ValueError):
  """More than the permitted share of a source's records cannot be used."""


class Ledger:
  """Counts accepted and rejected records of one source. Thread-safe.

  Attributes:
    source: name of the source, for messages.
    max_share: rejected / seen above this raises `TooManyRejections`.
    min_records: nothing is judged before this many records were seen.
    num_records: records of the source, if known. Then a share of them all is
      permitted, however early and in however many epochs the bad ones come, and
      min_records says nothing.
    error: the `TooManyRejections` raised, if any: code that runs inside a
      tf.data worker loses its exception's type, and its caller asks here.
  """

  def __init__(
    self,
    source: str = "records",
    *,
    max_share: float = 0.05,
    min_records: int = 100,
    num_records: int | None = None,
  ):
    if not 0 <= max_share <= 1:
      raise ValueError(f"{max_share=} must be in [0, 1].")
    if min_records < 1:
      raise ValueError(f"{min_records=} must be at least 1.")
    self.source = source
    self.max_share = max_share
    self.min_records = min_records
    self.num_records = num_records
    self.error: TooManyRejections | None = None
    self._lock = threading.Lock()
    self._accepted = 0
    self._rejected = 0
    self._names: set[str] = set()  # Kept where num_records bounds it.
    self._reasons: dict[str, str] = {}
    self._counts: collections.Counter[str] = collections.Counter()

  def accept(self) -> None:
    """Counts a good record; raises if too many before it were bad."""
    with self._lock:
      self._accepted += 1
      self._judge()

  def reject(self, name: str, reason: str) -> None:
    """Counts and names a bad record; raises if there are too many."""
    self.reject_all([(name, reason)])

  def reject_all(self, rejected: Iterable[tuple[str, str]]) -> None:
    """Counts many (name, reason) before it judges, so that a count is whole."""
    with self._lock:
      for name, reason in rejected:
        self._note(name, reason)
      self._judge()

  def count(
    self,
    accepted: int,
    reasons: Mapping[str, int],
    names: Iterable[tuple[str, str]] = (),
  ) -> None:
    """Adds what was counted elsewhere; raises if too many were bad.

    Args:
      accepted: good records.
      reasons: {reason: bad records}.
      names: (name, reason) of some of the bad ones.
    """
    with self._lock:
      self._accepted += accepted
      self._rejected += sum(reasons.values())
      self._counts.update(reasons)
      for name, reason in itertools.islice(names, _NAMED_AT_MOST):
        self._reasons[name] = reason
      self._judge()

  def _note(self, name: str, reason: str) -> None:
    if self.num_records is not None:
      if name in self._names:  # Another epoch.
        return
      self._names.add(name)
    self._rejected += 1
    self._counts[reason] += 1
    if name not in self._reasons and len(self._reasons) < _NAMED_AT_MOST:
      self._reasons[name] = reason
      if len(self._reasons) <= _LOGGED_AT_MOST:
        _log.warning("%s: skipped %s: %s", self.source, name, reason)

  def summary(self) -> dict[str, Any]:
    """Counts, share, {name: reason} of the first ones, {reason: count}."""
    with self._lock:
      return {
        "source": self.source,
        "accepted": self._accepted,
        "rejected": self._rejected,
        "share": self._share(),
        "names": dict(self._reasons),
        "reasons": dict(self._counts),
      }

  def _share(self) -> float:
    return self._rejected / max(1, self._total())

  def _total(self) -> int:
    if self.num_records is None:
      return self._accepted + self._rejected
    return self.num_records

  def _judge(self) -> None:
    if self.error is not None:
      raise self.error  # Other threads may be at work still: one answer.
    total = self._total()
    known = self.num_records is not None
    if self._share() <= self.max_share:
      return
    if total < self.min_records and not known:
      return
    shown = list(self._reasons.items())[:_SHOWN_IN_ERROR]
    lines = "".join(f"\n  {name}: {reason}" for name, reason in shown)
    self.error = TooManyRejections(
      f"{self.source}: {self._rejected} of {total} records cannot be used "
      f"({self._share():.1%}, at most {self.max_share:.1%} may be). Repair or "
      f"remove them, or raise max_rejected_share. The first ones:{lines}"
    )
    raise self.error


_ledgers: dict[str, Ledger] = {}
_ledgers_lock = threading.Lock()


def ledger(source: str, **limits: Any) -> Ledger:
  """The process's ledger of `source`; `limits` apply when it is first made."""
  with _ledgers_lock:
    if source not in _ledgers:
      _ledgers[source] = Ledger(source, **limits)
    return _ledgers[source]


def ledgers() -> list[Ledger]:
  """All ledgers of the process, in the order in which they were made."""
  with _ledgers_lock:
    return list(_ledgers.values())


def forget(source: str) -> None:
  """Starts `source` afresh (a run that begins anew counts anew)."""
  with _ledgers_lock:
    _ledgers.pop(source, None)
