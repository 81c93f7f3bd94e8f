"""How often captions occur in a table: one more pass over it, kept on disk."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tqdm

from byt5_diffusion.data import (
  duplicates,
  images,
)
from byt5_diffusion.data.rows import (
  cached_arrays,
  tables,
)


def of_table(
  name: str,
  table: tables.Table,
  columns: Sequence[str],
  caption_of: Callable[[Mapping[str, Any]], str],
) -> duplicates.Occurrences:
  """Counts all captions, unless that has been done before.

  Args:
    name: for messages.
    table: data/rows/tables.py.
    columns: all that `caption_of` looks at.
    caption_of: row -> its caption; images.BadImage: it has none.
  """

  def make() -> cached_arrays.Kept:
    seen = duplicates.Occurrences(max(1, len(table)))
    rows = tqdm.tqdm(
      table.scan(columns),
      f"{name}: captions",
      len(table),
      unit="row",
      disable=None,
    )
    for _, row in rows:
      if isinstance(row, images.BadImage):
        continue
      try:
        caption = caption_of(row)
      except images.BadImage:
        continue  # The catalogue's scan names it.
      if caption:
        seen.add(caption)
    return cached_arrays.Kept({}, {"counts": seen.counts.reshape(-1)})

  found = cached_arrays.kept("occurrences", ("1", table.fingerprint), make)
  return duplicates.Occurrences.of(found.arrays["counts"])
