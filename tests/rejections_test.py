"""Counting, naming, and stopping at the limit."""

import threading

import pytest

from byt5_diffusion.data import rejections


def test_counts_and_names():
  ledger = rejections.Ledger("photos", max_share=1.0)
  ledger.accept()
  ledger.reject("a.png", "empty")
  ledger.reject("b.png", "empty")
  assert ledger.summary() == {
    "source": "photos",
    "accepted": 1,
    "rejected": 2,
    "share": 2 / 3,
    "names": {"a.png": "empty", "b.png": "empty"},
    "reasons": {"empty": 2},
  }


def test_stops_above_the_share_and_names_the_first():
  ledger = rejections.Ledger("photos", max_share=0.05, min_records=100)
  for _ in range(95):
    ledger.accept()
  for i in range(5):
    ledger.reject(f"{i}.png", "truncated")  # 5 of 100: still permitted.
  assert ledger.error is None
  with pytest.raises(rejections.TooManyRejections) as caught:
    ledger.reject("last.png", "bomb")
  message = str(caught.value)
  assert "photos: 6 of 101 records" in message
  assert "0.png: truncated" in message and "max_rejected_share" in message
  assert ledger.error is caught.value


def test_many_are_counted_before_they_are_judged():
  ledger = rejections.Ledger("photos", num_records=4)
  with pytest.raises(rejections.TooManyRejections, match="3 of 4 records"):
    ledger.reject_all((f"{i}.png", "empty") for i in range(3))


def test_few_records_are_not_judged_but_then_they_are():
  ledger = rejections.Ledger(max_share=0.5, min_records=4)
  for i in range(3):
    ledger.reject(str(i), "bad")
  with pytest.raises(rejections.TooManyRejections, match="3 of 4"):
    ledger.accept()


def test_bad_records_that_come_first_are_judged_by_the_whole():
  ledger = rejections.Ledger(max_share=0.05, num_records=200)
  for i in range(10):
    ledger.reject(str(i), "bad")  # 10 of 200, though 10 of 10 so far.
  with pytest.raises(rejections.TooManyRejections, match="11 of 200"):
    ledger.reject("10", "bad")
  tiny = rejections.Ledger(max_share=0.05, num_records=3)
  with pytest.raises(rejections.TooManyRejections, match="1 of 3"):
    tiny.reject("a", "bad")


def test_the_next_epoch_meets_the_same_bad_records():
  ledger = rejections.Ledger(max_share=0.05, num_records=20)
  for epoch in range(3):
    ledger.reject("a.png", "broken")  # 1 of 20, again and again.
    for _ in range(19 if epoch else 0):
      ledger.accept()
  assert ledger.error is None
  assert ledger.summary()["rejected"] == 1
  assert ledger.summary()["share"] == 1 / 20
  # Nor do epochs of good records make room for more bad ones.
  with pytest.raises(rejections.TooManyRejections, match="2 of 20"):
    ledger.reject("b.png", "broken")


def test_threads_lose_no_count():
  ledger = rejections.Ledger(max_share=1.0)

  def work():
    for i in range(500):
      ledger.accept()
      ledger.reject(str(i), "bad")

  threads = [threading.Thread(target=work) for _ in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  summary = ledger.summary()
  assert (summary["accepted"], summary["rejected"]) == (4000, 4000)
  assert len(summary["names"]) == 500


def test_one_ledger_per_source_and_process():
  first = rejections.ledger("rejections_test", max_share=0.5)
  assert rejections.ledger("rejections_test") is first
  assert first in rejections.ledgers()
  rejections.forget("rejections_test")
  assert rejections.ledger("rejections_test") is not first
  rejections.forget("rejections_test")


@pytest.mark.parametrize("limits", [{"max_share": 1.5}, {"min_records": 0}])
def test_impossible_limits(limits):
  with pytest.raises(ValueError):
    rejections.Ledger(**limits)
