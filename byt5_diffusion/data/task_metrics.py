"""What SeqIO's Evaluator (T5X's `eval`) computes for our tasks."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def mean_loss(targets: Sequence[Any], scores: Any) -> dict[str, float]:
  """{"loss": mean of -scores}: a model scores an example by minus its loss.

  One that reads scores it by the log probability of the whole text, so that its
  "loss" is in nats per text.

  SeqIO tells by the names of the arguments what to pass.

  Args:
    targets: one field of every example; unread.
    scores: [N], what `score_batch` gave.
  """
  del targets
  return {"loss": -float(np.mean(np.asarray(scores, np.float64)))}
