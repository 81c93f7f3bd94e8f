"""What is left out of a run's data, and why: `inspect --filters`.

Data sets look at all their rows when they are opened (data/rows/catalogue.py),
and tell a ledger what they leave out; this shows the ledgers.
"""

from collections.abc import Callable, Sequence
from typing import Any

from byt5_diffusion import inspection, recipes
from byt5_diffusion.data import rejections

Facts = dict[str, Any]
_SHOWN = 8  # Of a reason.
_WIDTH = 100


def report(
  recipe: str,
  gin_bindings: Sequence[str] = (),
  *,
  split: str = "train",
  say: Callable[[str], None] = lambda line: None,
) -> Facts:
  """Opens the data, and says what was left out of them.

  Args:
    recipe: a gin file, or a task's name.
    gin_bindings: "NAME=VALUE".
    split: of the data.
    say: gets a line per stage.

  Returns:
    {"recipe", "sources": [{"source", "accepted", "rejected", "share",
    "reasons": {reason: {"count", "examples": [what it was]}}}]}.

  Raises:
    config.ConfigError: the recipe.
  """
  arguments = inspection.recipe_arguments(recipe, gin_bindings, None)
  say(f"opening {recipe} ...")
  opened = recipes.open_data(
    arguments["train_data"],
    arguments["batch_size"],
    split=split,
    prepared_dir=None,
  )
  recipes.close(opened)
  return {
    "recipe": recipe,
    "sources": [_source(ledger.summary()) for ledger in rejections.ledgers()],
  }


def _source(summary: Facts) -> Facts:
  names: dict[str, list[str]] = {}
  for name, reason in summary["names"].items():
    names.setdefault(reason, []).append(name)
  reasons = sorted(summary["reasons"].items(), key=lambda item: -item[1])
  return {
    key: summary[key] for key in ("source", "accepted", "rejected", "share")
  } | {
    "reasons": {
      reason: {"count": count, "examples": names.get(reason, [])[:_SHOWN]}
      for reason, count in reasons
    }
  }


def to_text(facts: Facts) -> str:
  """The report for a terminal; strangers' text with its controls spelled."""
  lines = []
  for source in facts["sources"]:
    seen = source["accepted"] + source["rejected"]
    lines.append(
      f"{source['source']}: {source['rejected']:,} of {seen:,} left out "
      f"({100 * source['share']:.1f} %)"
    )
    for reason, found in source["reasons"].items():
      lines.append(f"  {found['count']:10,}  {reason}")
      lines += [f"              {_plain(name)}" for name in found["examples"]]
  return "\n".join(lines) or "Nothing was left out: no source has a ledger."


def _plain(name: str) -> str:
  shown = "".join(
    text if is_point is False else f"<{text}>"
    for text, is_point in inspection.visible(name)
  )
  return shown if len(shown) <= _WIDTH else f"{shown[: _WIDTH - 3]}..."
