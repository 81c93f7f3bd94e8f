"""validation.validate's facts as tables: text for a terminal, or one HTML file.

`tables` says what is shown; `to_text` and `to_html` show the same.
"""

import dataclasses
import html
from collections.abc import Mapping, Sequence
from typing import Any

Facts = Mapping[str, Any]

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2em auto; padding: 0 1em;
  max-width: 68em; color: #222; background: #fff; }
table { border-collapse: collapse; } td, th { padding: .2em .8em;
  border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
td:first-child, th:first-child { text-align: left; white-space: pre; }
.note { color: #555; font-size: .9em; max-width: 48em; }
.ok { color: #1a7f37; } .bad { color: #b42318; }
"""
_BAR = 30  # Characters of the longest bar of a histogram.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
  """One table; the first column is text, the others are aligned right."""

  title: str
  columns: Sequence[str]
  rows: Sequence[Sequence[str]]
  note: str = ""


def tables(facts: Facts) -> list[Table]:
  """All that is known, in reading order; what is not known is left out."""
  makers = {
    "model": _run,
    "batch": _batch,
    "parameters": _parameters,
    "arrays": _layouts,
    "memory": _memory,
    "operations": _operations,
    "data": _data,
    "caches": _caches,
    "trial": _trial,
  }
  return [
    table
    for key, maker in makers.items()
    if facts.get(key)
    for table in maker(facts)
  ]


def verdict(facts: Facts) -> list[str]:
  """["ok"], or the problems."""
  problems = facts["problems"]
  if len(problems) < 2:
    return problems or ["ok"]
  return [f"{len(problems)} problems:", *(f"  {x}" for x in problems)]


def to_text(facts: Facts) -> str:
  """Aligned tables, without the verdict."""
  return "\n".join(_table_text(table) for table in tables(facts))


def _table_text(table: Table) -> str:
  lines = [table.columns, *table.rows]
  widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]

  def align(line: Sequence[str]) -> str:
    first = line[0].ljust(widths[0])
    rest = [x.rjust(w) for x, w in zip(line[1:], widths[1:], strict=True)]
    return "  ".join(["", first, *rest]).rstrip()

  body = [align(line) for line in lines if any(line)]
  note = [f"  {table.note}"] if table.note else []
  return "\n".join([table.title, *body, *note, ""])


def to_html(facts: Facts) -> str:
  """One file that fetches nothing and runs nothing."""
  problems = facts["problems"]
  result = (
    "<p class='ok'><b>ok</b></p>"
    if not problems
    else "<ul class='bad'>"
    + "".join(f"<li>{html.escape(x)}</li>" for x in problems)
    + "</ul>"
  )
  title = html.escape(f"{facts['recipe']}: validation")
  return (
    "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
    "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; "
    "style-src 'unsafe-inline'\">"
    "<meta name='viewport' content='width=device-width'>"
    f"<title>{title}</title><style>{_STYLE}</style></head>\n<body>"
    f"<h1>{title}</h1>{result}"
    + "\n".join(_table_html(table) for table in tables(facts))
    + "\n</body></html>\n"
  )


def _table_html(table: Table) -> str:
  def row(cells: Sequence[str], tag: str) -> str:
    inner = "".join(f"<{tag}>{html.escape(x)}</{tag}>" for x in cells)
    return f"<tr>{inner}</tr>"

  head = row(table.columns, "th") if any(table.columns) else ""
  body = "".join(row(cells, "td") for cells in table.rows)
  note = f"<p class='note'>{html.escape(table.note)}</p>" if table.note else ""
  return f"<h2>{html.escape(table.title)}</h2><table>{head}{body}</table>{note}"


# --- What each table says ----------------------------------------------------


def _run(facts: Facts) -> list[Table]:
  model = facts["model"]
  rows = [
    ("model", model["class"]),
    ("examples per step", f"{model['batch_size']:,}"),
    ("micro-batches per step", f"{model['num_microbatches']:,}"),
    ("steps", f"{model['train_steps']:,}"),
    ("programs", ", ".join(facts["programs"])),
  ]
  if mesh := facts.get("mesh"):
    axes = " x ".join(f"{name} {size}" for name, size in mesh["axes"].items())
    planned = mesh["devices"] != mesh["devices_here"]
    here = f" (planned; here: {mesh['devices_here']})" if planned else ""
    rows.append(("devices", f"{mesh['devices']}{here}: {axes}"))
  return [Table(title="Run", columns=("", ""), rows=rows)]


def _batch(facts: Facts) -> list[Table]:
  read = any(row["data"] for row in facts["batch"])
  rows = [
    (
      row["key"],
      row["dtype"],
      _shape(row["data"]) if read else "not read",
      _shape(row["model"]) if row["model"] else "not used",
    )
    for row in facts["batch"]
  ]
  columns = ("key", "dtype", "data give", "model wants")
  return [Table(title="Batch", columns=columns, rows=rows)]


def _shape(sizes: Sequence[int] | None) -> str:
  return "absent" if sizes is None else " x ".join(map(str, sizes))


def _parameters(facts: Facts) -> list[Table]:
  found = []
  for home, counts in facts["parameters"].items():
    rows = []
    for part, count in counts["parts"].items():
      rows.append((part, f"{count:,}", f"{count / counts['count']:.1%}"))
      rows += [
        (f"  {module}", f"{number:,}", f"{number / counts['count']:.1%}")
        for module, number in counts["modules"].items()
        if module.startswith(f"{part}/")
      ]
    rows.append(("total", f"{counts['count']:,}", size(counts["bytes"])))
    title = "Frozen networks" if home == "frozen" else "Parameters"
    columns = ("module", "parameters", "share")
    found.append(Table(title=title, columns=columns, rows=rows))
  return found


def _layouts(facts: Facts) -> list[Table]:
  """Arrays of the same axes and layout in one row; the JSON has each."""
  groups: dict[tuple[str, str, str], list[Facts]] = {}
  for array in facts["arrays"]:
    axes = " ".join(name or "-" for name in array["axes"]) or "(a scalar)"
    layout = " ".join(axis or "." for axis in array["layout"])
    kind = "frozen " if array["collection"] == "frozen" else ""
    groups.setdefault((f"{kind}{axes}", layout, array["dtype"]), []).append(
      array
    )
  rows = [
    (
      axes,
      layout or ".",
      dtype,
      str(len(arrays)),
      size(sum(x["bytes"] for x in arrays)),
      size(sum(x["bytes_per_device"] for x in arrays)),
    )
    for (axes, layout, dtype), arrays in groups.items()
  ]
  columns = ("logical axes", "mesh axes", "dtype", "arrays", "all", "a device")
  note = "A dot: that dimension is whole on every device."
  title = "Where parameters live"
  return [Table(title=title, columns=columns, rows=rows, note=note)]


def _memory(facts: Facts) -> list[Table]:
  kinds = [row for row in facts["memory"] if row["bytes"]]
  rows = [
    (row["what"], size(row["bytes"]), size(row["bytes_per_device"]))
    for row in kinds
  ]
  whole, device = (
    sum(row[key] for row in kinds) for key in ("bytes", "bytes_per_device")
  )
  rows.append(("total", size(whole), size(device)))
  how = kinds[-1].get("how", "estimate")
  note = f"Activations: the temporary memory of the step, by {how}."
  if how == "estimate":
    note = (
      "Activations: estimated from the traced step. The most bytes that are"
      " alive at once, gradients aside, elementwise results with one use taken"
      " to be fused; a compiler may need more or less."
    )
  columns = ("training memory", "all devices", "a device")
  return [Table(title="Memory", columns=columns, rows=rows, note=note)]


def _operations(facts: Facts) -> list[Table]:
  names = {
    "train_step": "train step, an example of it",
    "draw": "draw one image",
    "read": "read one image",
  }
  rows = [
    (
      names[key],
      *(
        number(count[kind])
        for kind in ("products", "convolutions", "elementwise", "total")
      ),
      number(count["xla"]) if "xla" in count else "",
    )
    for key, count in facts["operations"].items()
  ]
  note = (
    "FLOPs of the traced computation, before any compiler: 2 M N K for a"
    " product, 2 per weight and true pixel of a convolution, 1 per elementwise"
    " result; loops once per turn."
  )
  if any(count["unknown_loops"] for count in facts["operations"].values()):
    note += " Loops of unknown length (until the text ends) count one turn."
  columns = (
    "FLOPs", "products", "convolutions", "elementwise", "total", "XLA's count"
  )  # fmt: skip
  return [Table(title="Work", columns=columns, rows=rows, note=note)]


def _data(facts: Facts) -> list[Table]:
  data = facts["data"]
  count = data["examples"]
  quantiles = data["caption_bytes"]
  long = data.get("too_long")
  rejected = data["rejected"]
  total = data.get("split_examples")
  rows = [
    ("examples of the split", "unknown" if total is None else f"{total:,}"),
    ("read here", f"{count:,}"),
    ("different ids", f"{data['different_ids']:,}"),
    (
      "bytes of a caption",
      ", ".join(f"{name} {x:.0f}" for name, x in quantiles.items()),
    ),
    ("captions too long", "unknown" if long is None else f"{long / count:.1%}"),
    ("empty captions", f"{data['empty_captions'] / count:.1%}"),
    ("rejected", f"{rejected['rejected']:,} of {_tried(rejected):,}"),
    *((f"  {why}", f"{n:,}") for why, n in rejected["reasons"].items()),
  ]
  bars = [
    (f"{bar['from']}..{bar['to']}", bar["count"])
    for bar in data["caption_bytes_histogram"]
  ]
  note = (
    "Too long: of more bytes than the model reads; such captions are cut at a"
    " whole character, or left out where the task says so."
  )
  return [
    Table(title="Training data", columns=("", ""), rows=rows, note=note),
    _bars("Caption bytes", "bytes", bars),
    _bars("Scripts", "script", list(data["scripts"].items())),
    _bars("Sizes", "size", list(data["sizes"].items())),
  ]


def _tried(rejected: Facts) -> int:
  return rejected["accepted"] + rejected["rejected"]


def _bars(title: str, column: str, counts: list[tuple[str, int]]) -> Table:
  most = max((count for _, count in counts), default=1) or 1
  total = sum(count for _, count in counts) or 1
  rows = [
    (
      name or "(none)",
      str(count),
      f"{count / total:.1%}",
      ("#" * round(_BAR * count / most)).ljust(_BAR),
    )
    for name, count in counts
  ]
  columns = (column, "examples", "share", "")
  return Table(title=title, columns=columns, rows=rows)


def _caches(facts: Facts) -> list[Table]:
  total = facts.get("data", {}).get("split_examples")
  rows = []
  for name, title in (
    ("prepared", "prepared data set"),
    ("embeddings", "embeddings of captions"),
  ):
    if cache := facts["caches"].get(name):
      each = cache["bytes_per_example"]
      whole = "" if total is None else size(total * each)
      rows.append((title, size(each), whole))
  if not rows:
    return []
  note = "Estimated from the examples that were read."
  if found := facts["caches"].get("embeddings"):
    note += (
      f" Embeddings: {found['length']} x {found['width']} {found['dtype']}"
    )
    if "mean_bytes_without_padding" in found:
      mean = size(found["mean_bytes_without_padding"])
      note += f"; {mean} without padding"
    note += "."
  columns = ("on disk", "an example", "training split")
  return [Table(title="Caches", columns=columns, rows=rows, note=note)]


def _trial(facts: Facts) -> list[Table]:
  trial = facts["trial"]
  if reason := trial.get("skipped"):
    return [Table(title="Trial", columns=("", ""), rows=[("left out", reason)])]
  losses = [
    (title, "not finite" if trial[key] is None else f"{trial[key]:.4f}")
    for key, title in (
      ("train_loss", "loss of the step"),
      ("eval_loss", "loss of the evaluation"),
    )
  ]
  used = [
    (title, "not finite" if trial[key] is None else "finite")
    for key, title in (("draw", "a sample"), ("read", "a reading"))
    if key in trial
  ]
  rows = [
    ("data", f"{trial['data']}, {trial['batch_size']} examples"),
    *losses,
    *used,
    ("seconds", f"{trial['seconds']:.1f}"),
  ]
  note = "One step, evaluation and sample, with the networks of sizes/tiny.gin."
  return [Table(title="Trial", columns=("", ""), rows=rows, note=note)]


# --- Numbers -----------------------------------------------------------------


def size(count: float) -> str:
  """Bytes in the unit that suits them: "1.5 GiB"."""
  for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
    if abs(count) < 1024 or unit == "TiB":
      return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
    count /= 1024
  raise AssertionError


def number(count: float) -> str:
  """A large number with its prefix: "1.50 T"."""
  for unit in ("", "k", "M", "G", "T"):
    if abs(count) < 1000:
      return f"{count:.0f}" if not unit else f"{count:.2f} {unit}"
    count /= 1000
  return f"{count:.2f} P"
