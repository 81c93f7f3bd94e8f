"""Kinds of pages that are read line by line: functions as in page_kinds.py."""

import html

from byt5_diffusion.data.pages import page_designs as pages
from byt5_diffusion.data.pages import page_writer


def _cell(text: str, kind: str = "") -> str:
  return f'<td class="{kind}">{html.escape(text)}</td> '


def _row(*cells: str) -> str:
  return f"<tr>{''.join(cells)}</tr>\n"


def _table(rows: str, kind: str = "") -> str:
  return f'<table class="{kind}" data-label="table">{rows}</table>\n'


def invoice(w: page_writer.Writer, s: pages.Style) -> pages.Design:
  """Names, a table of things and prices, a sum."""
  title, seller, buyer = w.word(), w.name(), w.name()
  heads = [w.word() for _ in range(4)]
  rows = _row(*(_cell(h, "h" if i else "h l") for i, h in enumerate(heads)))
  total = 0
  for _ in range(int(w.rng.integers(3, 8))):
    count, cents = int(w.rng.integers(1, 10)), int(w.rng.integers(50, 20000))
    total += count * cents
    rows += _row(
      _cell(w.words(1, 3), "l"),
      _cell(w.number(count, count), "num"),
      _cell(w.amount(cents), "num"),
      _cell(w.amount(count * cents), "num"),
    )
  sum_ = w.word()
  rows += _row(
    _cell(sum_, "l s"), _cell("", "s"), _cell("", "s"),
    _cell(w.amount(total), "num s"),
  )  # fmt: skip
  number = f"{w.number(1000, 99999)}"
  body = (
    '<div class="top">'
    + pages.block("title", title, "t", "h1")
    + pages.block("text", number, "", "p")
    + "</div>"
    + pages.block("text", w.date(), "d", "p")
    + pages.block("section-header", seller, "n", "h3")
    + pages.block("text", f"{w.words(1, 2)} {w.number(1, 99)}", "", "p")
    + pages.block("section-header", buyer, "n", "h3")
    + pages.block("text", f"{w.words(1, 2)} {w.number(1, 99)}", "", "p")
    + _table(rows)
    + pages.block("page-footer", w.sentence(4, 8), "ft", "p")
  )
  line = pages.css(s.accent)
  style = (
    "body{padding:2.5rem;box-sizing:border-box;font-size:1.1rem}"
    f".top{{border-bottom:.3rem solid {line};padding-bottom:.6rem}}"
    f".t{{font-size:{s.size_for(title, 30, 3.2, 1)}rem;"
    f"color:{pages.css(s.strong)}}}.d{{margin-top:1rem}}.n{{margin-top:1rem}}"
    "table{width:100%;border-collapse:collapse;margin:1.6rem 0}"
    "td{padding:.35rem .5rem;text-align:end;"
    f"border-bottom:.07rem solid {line};"
    "vertical-align:top}.l{text-align:start}"
    f".h{{font-weight:bold;background:{pages.css(s.accent)};"
    f"color:{pages.css(s.on_accent)}}}.s{{font-weight:bold;border:0}}"
    ".ft{font-size:.95rem}"
  )
  return pages.Design(
    kind="invoice",
    body=body,
    css=style,
    quoted=(title, seller, buyer),
    proportion=0.707,
    head_size=s.size_for(title, 30, 3.2, 1),
    head_ink=s.strong,
  )


def menu(w: page_writer.Writer, s: pages.Style) -> pages.Design:
  """Dishes and prices in sections."""
  title = w.words(1, 2)
  body = pages.block("title", title, "t", "h1")
  quoted = [title]
  for _ in range(int(w.rng.integers(2, 4))):
    head = w.word()
    quoted.append(head)
    body += pages.block("section-header", head, "s", "h2")
    rows = "".join(
      _row(_cell(w.words(1, 4)), _cell(w.price(), "r"))
      for _ in range(int(w.rng.integers(2, 5)))
    )
    body += _table(rows)
  style = (
    f"body{{padding:2.6rem 4rem;box-sizing:border-box;font-size:1.25rem}}"
    f".t{{font-size:{s.size_for(title, 26, 4, 1)}rem;text-align:center;"
    f"color:{pages.css(s.strong)};padding-bottom:.8rem;"
    f"border-bottom:.25rem double {pages.css(s.accent)}}}"
    f".s{{text-align:center;font-size:1.7rem;margin:1.4rem 0 .4rem;"
    f"color:{pages.css(s.strong)}}}"
    "table{width:100%;border-collapse:collapse}td{padding:.3rem 0;"
    f"border-bottom:.08rem dotted {pages.css(s.accent)};vertical-align:top}}"
    ".r{text-align:end;white-space:nowrap;padding-inline-start:1rem}"
  )
  return pages.Design(
    kind="page",
    body=body,
    css=style,
    quoted=tuple(quoted),
    headed=len(quoted),
    head_size=s.size_for(title, 26, 4, 1),
    head_ink=s.strong,
  )


def newspaper(w: page_writer.Writer, s: pages.Style) -> pages.Design:
  """A masthead, a headline, columns, a picture with its caption."""
  name, head = w.words(1, 2), w.words(3, 7)
  columns = int(w.rng.integers(2, 4))
  picture = w.chance(0.6)
  paragraphs = [
    pages.block("text", w.paragraph(2, 4), "p", "p")
    for _ in range(int(w.rng.integers(2, 5)))
  ]
  under = w.words(3, 7)
  figure = (
    '<div class="pic" data-label="picture"><i></i></div>'
    + pages.block("caption", under, "cap", "p")
    if picture
    else ""
  )
  large = s.size_for(head, 32, 3.4, 2)
  body = (
    pages.block("page-header", name, "mast", "h1")
    + pages.block("page-header", w.date(), "line")
    + pages.block("title", head, "t", "h2")
    + f'<div class="cols">{figure}{"".join(paragraphs)}</div>'
  )
  line = pages.css(s.ink)
  style = (
    "body{padding:2rem;box-sizing:border-box;font-size:.95rem}"
    f".mast{{text-align:center;font-size:{s.size_for(name, 30, 4, 1)}rem}}"
    f".line{{border-top:.15rem solid {line};border-bottom:.07rem solid {line};"
    "padding:.2rem 0;margin:.4rem 0 1rem;text-align:center;font-size:.9rem}"
    f".t{{font-size:{large}rem;margin-bottom:.9rem}}"
    f".cols{{columns:{columns};column-gap:1.4rem;"
    f"column-rule:.06rem solid {line}}}.cols p{{margin-bottom:.6rem}}"
    f".pic{{height:9rem;background:linear-gradient(160deg,{pages.css(s.accent)},"
    f"{pages.css(s.soft)})}}.cap{{font-size:.8rem;margin:.2rem 0 .8rem}}"
  )
  return pages.Design(
    kind="page",
    body=body,
    css=style,
    quoted=(name, head),
    headed=2,
    proportion=w.pick((0.7, 0.8)),
    head_size=large,
    head_ink=s.ink,
    numbers={"tracking": 0.0},
  )


def book_page(w: page_writer.Writer, s: pages.Style) -> pages.Design:
  """Running head, a chapter, paragraphs, the page's number."""
  title = w.words(1, 4)
  paragraphs = [w.paragraph(2, 5) for _ in range(int(w.rng.integers(2, 5)))]
  large = s.size_for(title, 28, 2.4)
  body = (
    pages.block("page-header", w.name(), "run", "p")
    + pages.block("section-header", title, "t", "h2")
    + "".join(pages.block("text", text, "p b", "p") for text in paragraphs)
    + pages.block("page-footer", w.number(1, 600), "no", "p")
  )
  style = (
    "body{padding:3.4rem 4rem;box-sizing:border-box;font-size:1.15rem}"
    ".run{text-align:center;font-size:.9rem;margin-bottom:2rem}"
    f".t{{font-size:{large}rem;text-align:center;margin-bottom:1.6rem}}"
    ".b{text-indent:1.4em}"
    ".no{position:absolute;bottom:1.8rem;left:0;right:0;text-align:center;"
    "font-size:.95rem}"
  )
  return pages.Design(
    kind="page",
    body=body,
    css=style,
    quoted=(title,),
    proportion=0.68,
    head_size=large,
    head_ink=s.ink,
    numbers={"tracking": 0.0},
  )


def form(w: page_writer.Writer, s: pages.Style) -> pages.Design:
  """Questions with boxes, some of them filled in."""
  title = w.words(1, 3)
  rows = ""
  for _ in range(int(w.rng.integers(4, 8))):
    filled = w.pick(("", w.name(), w.date(), w.number(1, 9999)))
    answer = pages.block("answer", filled, "v") if filled else "<i></i>"
    rows += (
      f'<div class="q">{pages.block("question", w.words(1, 2), "l")}'
      f'<div class="box">{answer}</div></div>'
    )
  boxes = "".join(
    f'<div class="o"><span class="{w.pick(("x", ""))}"></span>'
    f"{pages.block('list-item', w.words(1, 4), '', 'span')}</div>"
    for _ in range(int(w.rng.integers(2, 5)))
  )
  large = s.size_for(title, 30, 2.8, 1)
  body = (
    pages.block("header", title, "t", "h1")
    + pages.block("text", w.sentence(5, 10), "n", "p")
    + rows
    + pages.block("section-header", w.words(1, 2), "h", "h3")
    + boxes
  )
  line = pages.css(s.ink)
  style = (
    "body{padding:2.6rem;box-sizing:border-box;font-size:1.15rem}"
    f".t{{font-size:{large}rem;color:{pages.css(s.strong)}}}"
    ".n{margin:.6rem 0 1.2rem}.q{margin-bottom:.9rem}.l{font-size:1rem}"
    f".box{{border:.08rem solid {line};border-radius:{s.radius}rem;"
    f"background:{pages.css(s.soft)};padding:.25rem .6rem;min-height:1.9rem}}"
    ".h{margin:1.2rem 0 .5rem}.o{margin:.3rem 0}"
    f".o span:first-child{{display:inline-block;width:.9rem;height:.9rem;"
    f"border:.1rem solid {line};margin-inline-end:.7rem;vertical-align:middle}}"
    f".x{{background:{pages.css(s.accent)}}}"
  )
  return pages.Design(
    kind="page",
    body=body,
    css=style,
    quoted=(title,),
    proportion=0.72,
    head_size=large,
    head_ink=s.strong,
  )


def letter(w: page_writer.Writer, s: pages.Style) -> pages.Design:
  """Sender, date, salutation, paragraphs, a name."""
  sender, greeting = w.name(), w.words(1, 3)
  comma = w.marks[0].strip()
  body = (
    pages.block("page-header", sender, "f head", "p")
    + pages.block("text", w.date(), "d", "p")
    + pages.block("section-header", f"{greeting}{comma}", "g", "p")
    + "".join(
      pages.block("text", w.paragraph(2, 4), "p b", "p")
      for _ in range(int(w.rng.integers(2, 4)))
    )
    + pages.block("text", w.name(), "n", "p")
  )
  style = (
    "body{padding:3.2rem 3.6rem;box-sizing:border-box;font-size:1.2rem}"
    f".f{{font-size:1.7rem;color:{pages.css(s.strong)};"
    f"border-bottom:.2rem solid {pages.css(s.accent)};padding-bottom:.4rem}}"
    ".d{text-align:end;margin:1.4rem 0}.g{margin-bottom:1rem}"
    ".b{margin-bottom:.9rem}.n{margin-top:2rem;font-size:1.5rem}"
  )
  return pages.Design(
    kind="page",
    body=body,
    css=style,
    quoted=(sender, f"{greeting}{comma}"),
    proportion=0.707,
    head_size=1.7,
    head_ink=s.strong,
    numbers={"tracking": 0.0},
  )


def timetable(w: page_writer.Writer, s: pages.Style) -> pages.Design:
  """Times and places in rows of two colours."""
  title = w.words(1, 2)
  columns = int(w.rng.integers(2, 5))
  rows = _row(*(_cell(w.word(), "h") for _ in range(columns + 1)))
  for i in range(int(w.rng.integers(5, 12))):
    cells = [_cell(w.words(1, 2), "l")]
    cells += [_cell(w.time(), "c") for _ in range(columns)]
    rows += f'<tr class="{"z" if i % 2 else ""}">{"".join(cells)}</tr>\n'
  large = s.size_for(title, 40, 3.4, 1)
  style = (
    "body{padding:2rem;box-sizing:border-box;font-size:1.15rem}"
    f".t{{font-size:{large}rem;color:{pages.css(s.strong)};"
    "margin-bottom:1rem}table{width:100%;border-collapse:collapse}"
    "td{padding:.35rem .6rem}.c{text-align:center;white-space:nowrap}"
    f".h{{background:{pages.css(s.accent)};color:{pages.css(s.on_accent)};"
    f"font-weight:bold;text-align:center}}.z{{background:{pages.css(s.soft)}}}"
  )
  return pages.Design(
    kind="page",
    body=pages.block("title", title, "t", "h1") + _table(rows),
    css=style,
    quoted=(title,),
    proportion=w.pick((1.33, 1.5)),
    head_size=large,
    head_ink=s.strong,
  )


def glossary(w: page_writer.Writer, s: pages.Style) -> pages.Design:
  """Words and what they mean, in columns."""
  head = w.word()
  entries = "".join(
    f'<p class="e" data-label="text"><b>{html.escape(w.word())}</b> '
    f"{html.escape(w.sentence(3, 9))}</p>\n"
    for _ in range(int(w.rng.integers(8, 20)))
  )
  body = pages.block("page-header", head, "t", "h2") + (
    f'<div class="c">{entries}</div>'
  )
  style = (
    "body{padding:2.4rem;box-sizing:border-box;font-size:1.02rem}"
    f".t{{font-size:{s.size_for(head, 30, 2, 1)}rem;"
    f"border-bottom:.12rem solid {pages.css(s.accent)};margin-bottom:1rem}}"
    ".c{columns:2;column-gap:1.8rem}.e{margin-bottom:.4rem;"
    "text-indent:-1em;padding-inline-start:1em}"
    f".e b{{color:{pages.css(s.strong)}}}"
  )
  return pages.Design(
    kind="page",
    body=body,
    css=style,
    quoted=(head,),
    proportion=0.75,
    head_size=s.size_for(head, 30, 2, 1),
    head_ink=s.ink,
    numbers={"tracking": 0.0},
  )


def receipt(w: page_writer.Writer, s: pages.Style) -> pages.Design:
  """A narrow slip: a shop, things, a sum."""
  shop = w.name()
  rows, total = "", 0
  for _ in range(int(w.rng.integers(3, 9))):
    cents = int(w.rng.integers(50, 5000))
    total += cents
    rows += _row(_cell(w.words(1, 2)), _cell(w.amount(cents), "num r"))
  rows += _row(_cell(w.word(), "s"), _cell(w.amount(total), "num r s"))
  large = s.size_for(shop, 28, 3.6, 2)
  body = (
    pages.block("title", shop, "t", "h1")
    + pages.block("text", f"{w.words(1, 2)} {w.number(1, 200)}", "m", "p")
    + pages.block("text", f"{w.date()} {w.time()}", "m", "p")
    + _table(rows)
    + pages.block("page-footer", w.sentence(2, 4), "m", "p")
  )
  style = (
    "body{padding:2.6rem;box-sizing:border-box;font-size:1.7rem;"
    "background:#fff;color:#222}"
    f".t{{font-size:{large}rem;text-align:center}}.m{{text-align:center;"
    "margin-top:.5rem}"
    "table{width:100%;border-collapse:collapse;margin:1.2rem 0;"
    "border-top:.15rem dashed #444;border-bottom:.15rem dashed #444}"
    "td{padding:.25rem 0;vertical-align:top}.r{text-align:end;"
    "padding-inline-start:1rem}.s{font-weight:bold;padding-top:.8rem}"
  )
  return pages.Design(
    kind="invoice",
    body=body,
    css=style,
    quoted=(shop,),
    proportion=w.pick((0.5, 0.6)),
    head_size=large,
    head_ink=(34, 34, 34),
    head_paper=(255, 255, 255),
  )
