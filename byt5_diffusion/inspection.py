"""Batches exactly as a model gets them, as a page to look at: `inspect`.

What comes out of the converter is shown: pictures from their floats (patches
put back to their places), captions decoded from their ids. Captions are
strangers' text, so the page escapes them, isolates their direction, shows what
is invisible as code points, and may neither fetch nor run anything.
"""

import base64
import dataclasses
import html
import io
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from byt5_diffusion import named_tasks, recipes
from byt5_diffusion.data import annotation_view, batch_view, pipeline

Facts = dict[str, Any]

_STYLE = """
body { font: 15px/1.45 system-ui, "Noto Sans", sans-serif; color: #222;
  margin: 1.5em auto; padding: 0 1em; max-width: 84em; background: #fff; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin: 1.6em 0 .4em; }
.columns { display: flex; flex-wrap: wrap; gap: 0 3em; }
table { border-collapse: collapse; } td, th { padding: .1em .7em .1em 0;
  text-align: left; white-space: nowrap; font-weight: normal; }
th { color: #666; } td.n { text-align: right; } .bar { background: #4a78b5;
  height: .8em; display: inline-block; }
.rows { display: flex; flex-wrap: wrap; gap: .7em; align-items: flex-start; }
figure { margin: 0; padding: .5em; border: 1px solid #ccc; border-radius: .3em;
  width: min-content; min-width: 16em; max-width: 100%;
  box-sizing: border-box; }
img { image-rendering: pixelated; display: block; max-width: 90vw;
  height: auto; border: 1px solid #eee; }
.text { display: block; font-size: 1.3em; line-height: 1.6; margin-top: .25em;
  overflow-wrap: anywhere; unicode-bidi: isolate; }
.point { font: .6em ui-monospace, monospace; border: 1px solid #b42318;
  color: #b42318; border-radius: .2em; padding: 0 .2em; }
.facts, details { color: #666; font-size: .8em; } .empty { color: #b42318; }
.mark { display: inline-block; width: .8em; height: .8em; margin: 0 .3em; }
.ids { font-family: ui-monospace, monospace; overflow-wrap: anywhere; }
"""
_LANGUAGES = {"Hans": "zh-Hans", "Hant": "zh-Hant", "Jpan": "ja", "Kore": "ko"}
_NO_LANGUAGE = ("Zyyy", "Zzzz")
# Joiners shape letters; every other invisible character is spelled out.
_JOINERS = "\u200c\u200d"
_INVISIBLE = ("Cc", "Cf", "Cs", "Zl", "Zp")
_TINY = 96  # Pixels: a picture of less is shown larger.


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
  """Batches of one split, and their figures.

  Attributes:
    recipe, split: what was read.
    shapes: {batch key: [shape, dtype]} of the first batch.
    rows: every example, in order.
    facts: batch_view.survey, with "rejected".
  """

  recipe: str
  split: str
  shapes: Mapping[str, tuple[tuple[int, ...], str]]
  rows: Sequence[batch_view.Row]
  facts: Facts

  def batches(self) -> Iterator[tuple[int, list[batch_view.Row]]]:
    """(number, its rows) of every batch."""
    for number in sorted({row.batch for row in self.rows}):
      yield number, [row for row in self.rows if row.batch == number]


def inspect(
  recipe: str,
  gin_bindings: Sequence[str] = (),
  *,
  split: str = "train",
  num_batches: int = 2,
  seed: int | None = None,
  say: Callable[[str], None] = lambda line: None,
) -> View:
  """Reads the first batches of a split, as the recipe's training would.

  Args:
    recipe: a gin file, as config.parse takes it, or a task's name
      (named_tasks.py).
    gin_bindings: "NAME=VALUE".
    split: "train" and "validation" are read as training reads them, any other
      split in its own order.
    num_batches: at most; a split that ends sooner gives fewer.
    seed: RANDOM_SEED; None keeps the recipe's. The same seed, the same batches.
    say: gets a line per stage.

  Raises:
    config.ConfigError: the recipe.
    ValueError: the split does not exist, or has not got a single example.
  """
  arguments = recipe_arguments(recipe, gin_bindings, seed)
  say(f"reading {num_batches} batches of {recipe}, split {split} ...")
  before = batch_view.ledgers_now()
  batches, captions = _read(arguments, split, num_batches)
  rows = batch_view.rows(batches, captions and captions.semantic)
  tokens = batches[0].get("text_tokens")
  facts = batch_view.survey(rows, None if tokens is None else tokens.shape[1])
  facts["rejected"] = batch_view.rejected_since(before)
  return View(
    recipe=recipe,
    split=split,
    shapes={k: (x.shape, str(x.dtype)) for k, x in batches[0].items()},
    rows=rows,
    facts=facts,
  )


def recipe_arguments(
  recipe: str, gin_bindings: Sequence[str], seed: int | None
) -> dict[str, Any]:
  """What a recipe, or a task's name, says of its training data.

  Args:
    recipe, gin_bindings, seed: see inspect.
  """
  if named_tasks.is_name(recipe):
    return named_tasks.arguments(recipe, seed or 0)
  seeded = [] if seed is None else [f"RANDOM_SEED={seed}"]
  recipes.parse(recipe, [*gin_bindings, *seeded], "train")
  return recipes.arguments("train")


def _read(
  arguments: Mapping[str, Any], split: str, num_batches: int
) -> tuple[list[dict[str, np.ndarray]], Any]:
  """Batches of the recipe's size, and how their captions became tokens.

  Of half the size where the split is smaller.
  """
  data, overrides = arguments["train_data"], {}
  if split == "validation" and arguments.get("validation_data") is not None:
    data = arguments["validation_data"]
  elif split != "train":
    overrides = {"split": split, "shuffle": False, "num_epochs": 1}
  size = arguments["batch_size"]
  while True:
    try:
      opened = recipes.open_data(data, size, **overrides)
      try:
        captions = getattr(opened, "captions", None)
        return batch_view.take(opened, num_batches * size), captions
      finally:
        recipes.close(opened)
    except pipeline.EmptySplit:
      if size == 1:
        raise
      size //= 2


# --- The page ----------------------------------------------------------------


def to_html(view: View, max_rows: int = 32) -> str:
  """One file: summary, then the first max_rows examples of every batch."""
  title = html.escape(f"{view.recipe}: {view.split}")
  sections = [
    f"<h2>Batch {number + 1}: {shown(rows, max_rows)}</h2>"
    f"<div class='rows'>{''.join(map(_figure, rows[:max_rows]))}</div>"
    for number, rows in view.batches()
  ]
  return (
    "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
    "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; "
    "img-src data:; style-src 'unsafe-inline'\">"
    "<meta name='viewport' content='width=device-width'>"
    f"<title>{title}</title><style>{_STYLE}</style></head>\n"
    f"<body><h1>{title}</h1>{_summary(view)}\n"
    + "\n".join(sections)
    + "\n</body></html>\n"
  )


def shown(rows: Sequence[batch_view.Row], max_rows: int) -> str:
  """How many examples a batch has, and how many of them the page has."""
  count = f"{len(rows)} examples"
  return count if len(rows) <= max_rows else f"{count}, {max_rows} shown"


def _summary(view: View) -> str:
  keys = "".join(
    f"<tr><td>{html.escape(name)}</td><td>{' x '.join(map(str, shape))}</td>"
    f"<td>{html.escape(dtype)}</td></tr>"
    for name, (shape, dtype) in view.shapes.items()
  )
  tables = [
    f"<table><tr><th>key</th><th>shape</th><th>dtype</th></tr>{keys}</table>"
  ]
  tables += [_bars(*bars) for bars in histograms(view.facts)]
  tables.append(_ledger(view.facts["rejected"]))
  return (
    "<div class='columns'>"
    + "".join(f"<div>{table}</div>" for table in tables)
    + "</div>"
  )


def histograms(facts: Facts) -> list[tuple[str, list[tuple[str, int]]]]:
  """(title, [(name, count)]) of what the examples hold."""
  lengths = [
    (f"{bar['from']}..{bar['to']}", bar["count"])
    for bar in facts["caption_bytes_histogram"]
  ]
  return [
    ("bytes of a caption", lengths),
    ("script", list(facts["scripts"].items())),
    ("size", list(facts["sizes"].items())),
  ]


def _bars(title: str, counts: Sequence[tuple[str, int]]) -> str:
  most = max((count for _, count in counts), default=1) or 1
  rows = "".join(
    f"<tr><td>{html.escape(name)}</td><td class='n'>{count}</td><td>"
    f"<span class='bar' style='width:{6 * count / most:.2f}em'></span></td>"
    "</tr>"
    for name, count in counts
  )
  return f"<table><tr><th>{title}</th><th></th><th></th></tr>{rows}</table>"


def _ledger(rejected: Facts) -> str:
  """Without what was accepted: reading ahead makes that a matter of time."""
  reasons = "".join(
    f"<tr><td>{html.escape(why)}</td><td class='n'>{count}</td></tr>"
    for why, count in sorted(rejected["reasons"].items())
  )
  return (
    "<table><tr><th>rejected</th><th></th></tr><tr><td>in all</td>"
    f"<td class='n'>{rejected['rejected']}</td></tr>{reasons}</table>"
  )


def _figure(row: batch_view.Row) -> str:
  ids = " ".join(map(str, row.tokens))
  caption = "".join(
    f"<span class='point'>{text}</span>" if is_point else html.escape(text)
    for text, is_point in visible(row.text)
  )
  if not caption:
    caption = "<span class='empty facts'>no text</span>"
  code = language(row.script)
  lang = f" lang='{code}'" if code else ""
  return (
    f"<figure>{_image(row.picture)}{_annotations(row)}"
    f"<div class='text' dir='auto'{lang} title='{ids}'>{caption}</div>"
    f"{_semantic(row)}"
    f"<div class='facts'>{html.escape(described(row))}</div>"
    f"<details><summary>ids</summary><div class='ids'>{ids}</div></details>"
    "</figure>"
  )


def _semantic(row: batch_view.Row) -> str:
  """What the second encoder reads, where there is one."""
  if "semantic_tokens" not in row.arrays:
    return ""
  ids = " ".join(map(str, row.semantic_tokens))
  said = html.escape(row.semantic_text) or ids
  return f"<div class='facts' dir='auto' title='{ids}'>semantic: {said}</div>"


def described(row: batch_view.Row) -> str:
  """Script, lengths, masks and id of an example, in one line."""
  parts = [row.script, f"{row.num_bytes} bytes"]
  if "text_tokens" in row.arrays:
    used = int(np.sum(row.arrays["text_tokens"] > 0))
    parts.append(f"text mask {used} of {len(row.arrays['text_tokens'])}")
  if "semantic_tokens" in row.arrays:
    length = len(row.arrays["semantic_tokens"])
    parts.append(f"semantic mask {len(row.semantic_tokens)} of {length}")
  if "patches" in row.arrays:
    used = int(np.sum(row.arrays["patches"][:, 0] > 0))
    parts.append(f"patches {used} of {len(row.arrays['patches'])}")
  return ", ".join(filter(None, [*parts, row.size, row.example_id]))


def language(script: str) -> str:
  """What `lang` should say, so that a browser chooses the right glyphs."""
  if script in _NO_LANGUAGE:
    return ""
  return _LANGUAGES.get(script, f"und-{script}")


def visible(text: str) -> list[tuple[str, bool]]:
  """Pieces of a text; True: the code point of an invisible character."""
  pieces: list[tuple[str, bool]] = []
  for character in text:
    hidden = unicodedata.category(character) in _INVISIBLE
    if hidden and character not in _JOINERS:
      pieces.append((f"U+{ord(character):04X}", True))
    elif pieces and not pieces[-1][1]:
      pieces[-1] = (pieces[-1][0] + character, False)
    else:
      pieces.append((character, False))
  return pieces


def scale_of(picture: np.ndarray) -> int:
  """How many times larger a tiny picture is shown."""
  return max(1, _TINY // max(1, picture.shape[0]))


def _annotations(row: batch_view.Row) -> str:
  """Boxes and mask over the picture, what their colours mean, and the rest."""
  if not annotation_view.is_annotated(row):
    return ""
  marks = "".join(
    f"<span class='mark' style='background:#{r:02x}{g:02x}{b:02x}'></span>"
    f"{html.escape(label)} {count} "
    for label, (r, g, b), count in annotation_view.legend(row)
  )
  texts = "".join(
    f"<li dir='auto'>{html.escape(region.label)}: {html.escape(region.text)}"
    for region in annotation_view.regions(row)
    if region.text
  )
  found = html.escape(annotation_view.described(row))
  return (
    f"{_image(annotation_view.overlaid(row))}<div class='facts'>{marks}</div>"
    f"<div class='facts'>{found}</div>"
    f"<details><summary>regions</summary><ol>{texts}</ol></details>"
  )


def _image(picture: np.ndarray | None) -> str:
  if picture is None:
    return ""
  file = io.BytesIO()
  Image.fromarray(picture).save(file, "PNG")
  data = base64.b64encode(file.getvalue()).decode("ascii")
  scale = scale_of(picture)
  height, width = picture.shape[0] * scale, picture.shape[1] * scale
  return (
    f"<img src='data:image/png;base64,{data}' width='{width}' "
    f"height='{height}' alt=''>"
  )


def to_json(view: View) -> Facts:
  """All but the pixels, as plain JSON."""
  return {
    "recipe": view.recipe,
    "split": view.split,
    "shapes": {
      name: {"shape": list(shape), "dtype": dtype}
      for name, (shape, dtype) in view.shapes.items()
    },
    "facts": view.facts,
    "examples": [
      {
        "batch": row.batch,
        "row": row.index,
        "example_id": row.example_id,
        "text": row.text,
        "text_tokens": row.tokens.tolist(),
        **(
          {
            "semantic_text": row.semantic_text,
            "semantic_tokens": row.semantic_tokens.tolist(),
          }
          if "semantic_tokens" in row.arrays
          else {}
        ),
        **_annotated(row),
        "bytes": row.num_bytes,
        "script": row.script,
        "size": row.size,
      }
      for row in view.rows
    ],
  }


def _annotated(row: batch_view.Row) -> Facts:
  """What to_json says of a row's annotations; {} where it has none."""
  if not annotation_view.is_annotated(row):
    return {}
  found = [region._asdict() for region in annotation_view.regions(row)]
  return {"regions": found, **annotation_view.facts(row)}
