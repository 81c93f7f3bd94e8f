"""Kinds of pages: functions (writer, style) -> Design, and their table.

Blocks are marked with DocLayNet's classes (annotated.LABELS), in the order in
which they are read. Headlines are sized by their longest word. Measures are in
rem on a page whose shorter side is 36 rem, unless the design says otherwise.
"""

import html
from collections.abc import Callable

from byt5_diffusion.data.pages import page_designs as pages
from byt5_diffusion.data.pages import (
  page_papers,
  page_writer,
)

Maker = Callable[[page_writer.Writer, pages.Style], pages.Design]


def poster(w: page_writer.Writer, s: pages.Style) -> pages.Design:
  """An event: shapes of colour, a huge headline, day and place."""
  title, below = w.words(1, 4), w.sentence(3, 7)
  when, where = w.date(), w.name()
  size = s.size_for(title, 30, 9, lines=3)
  shape = w.pick(("circle", "band", "corner", "rings"))
  accent, soft = pages.css(s.accent), pages.css(s.soft)
  shapes = {
    "circle": f'<i class="a" style="width:26rem;height:26rem;right:-6rem;'
    f'bottom:6rem;border-radius:50%;background:{soft}"></i>',
    "band": f'<i class="a" style="width:100%;height:9rem;left:0;bottom:7rem;'
    f'background:{soft}"></i>',
    "corner": f'<i class="a" style="width:40rem;height:14rem;right:-12rem;'
    f'bottom:-2rem;transform:rotate(-24deg);background:{soft}"></i>',
    "rings": '<i class="a" style="width:18rem;height:18rem;right:3rem;'
    f'bottom:9rem;border-radius:50%;border:2.4rem solid {soft}"></i>',
  }
  bar = (
    '<i class="a" style="width:100%;height:1.2rem;top:0;left:0;'
    f'background:{accent}"></i>'
  )
  body = (
    shapes[shape]
    + bar
    + '<div class="in">'
    + pages.block("title", title, "t", "h1")
    + '<div class="rule"></div>'
    + pages.block("text", below, "sub", "p")
    + "</div><div class='foot'>"
    + pages.block("text", when, "when", "p")
    + pages.block("text", where, "", "p")
    + "</div>"
  )
  style = (
    f".a{{position:absolute;display:block}}.in{{position:absolute;top:5rem;"
    f"left:3rem;right:3rem}}.t{{font-size:{size}rem;color:{pages.css(s.strong)}}}"
    f".rule{{width:7rem;height:.45rem;background:{accent};margin:1.6rem 0}}"
    ".sub{font-size:1.9rem}.foot{position:absolute;bottom:2.4rem;left:3rem;"
    "right:3rem;font-size:1.6rem}.when{font-weight:bold}"
  )
  return pages.Design(
    kind="poster",
    body=body,
    css=style,
    quoted=(title, below, when, where),
    proportion=w.pick((0.7, 0.75, 0.8)),
    head_size=size,
    head_ink=s.strong,
  )


def sign(w: page_writer.Writer, s: pages.Style) -> pages.Design:
  """A shop's or a street's sign: few words, a frame."""
  text = w.words(1, 3)
  small = w.words(2, 5) if w.chance(0.5) else ""
  wide = w.pick((1.5, 1.9, 2.4, 1.0))
  size = s.size_for(text, 36 * wide - 14, 11 if small else 14, lines=1)
  solid = w.chance(0.6)
  paper = s.accent if solid else s.paper
  ink = s.on_accent if solid else s.strong
  frame = w.pick(("double .9rem", "solid .5rem", "solid .25rem"))
  body = (
    '<div class="f"><div class="m">'
    + pages.block("title", text, "t", "h1")
    + (pages.block("text", small, "s", "p") if small else "")
    + "</div></div>"
  )
  style = (
    f"body{{background:{pages.css(paper)};color:{pages.css(ink)}}}"
    f".f{{position:absolute;top:2rem;left:2rem;right:2rem;bottom:2rem;"
    f"border:{frame} {pages.css(ink)};border-radius:{2 * s.radius}rem}}"
    ".m{position:absolute;left:2rem;right:2rem;top:50%;text-align:center;"
    f"transform:translateY(-50%)}}.t{{font-size:{size}rem}}"
    ".s{font-size:2.6rem;margin-top:.6rem}"
  )
  return pages.Design(
    kind="sign",
    body=body,
    css=style,
    quoted=(text, small) if small else (text,),
    proportion=wide,
    head_size=size,
    head_ink=ink,
    head_paper=paper,
  )


def label(w: page_writer.Writer, s: pages.Style) -> pages.Design:
  """What is glued on a jar or a bottle."""
  brand, what, size = w.name(), w.words(1, 2), w.number(50, 950)
  best = w.date()
  large = s.size_for(what, 26, 6.5)
  body = (
    '<div class="o"><div class="i">'
    + pages.block("text", brand, "b", "p")
    + pages.block("title", what, "t", "h1")
    + '<div class="r"></div>'
    + pages.block("text", f"{size} g", "n", "p")
    + pages.block("page-footer", best, "d", "p")
    + "</div></div>"
  )
  style = (
    f"body{{background:{pages.css(s.soft)}}}.o{{position:absolute;top:1.5rem;"
    f"left:1.5rem;right:1.5rem;bottom:1.5rem;background:{pages.css(s.paper)};"
    f"border:.5rem solid {pages.css(s.accent)};border-radius:3rem}}"
    f".i{{position:absolute;top:1rem;bottom:1rem;left:1rem;right:1rem;"
    f"border:.12rem solid {pages.css(s.accent)};border-radius:2rem;"
    "text-align:center;padding:2rem 2rem 0}"
    f".b{{font-size:1.9rem;letter-spacing:{s.tracking}em}}"
    f".t{{font-size:{large}rem;color:{pages.css(s.strong)};margin:1.4rem 0}}"
    ".r{height:.3rem;width:12rem;position:relative;left:50%;"
    f"margin-left:-6rem;background:{pages.css(s.accent)}}}"
    ".n{font-size:2.2rem;margin-top:1.3rem}"
    ".d{font-size:1.3rem;margin-top:.7rem}"
  )
  return pages.Design(
    kind="label",
    body=body,
    css=style,
    quoted=(brand, what),
    headed=0,
    proportion=w.pick((1.0, 1.2, 0.9)),
    head_size=large,
    head_ink=s.strong,
  )


def book_cover(w: page_writer.Writer, s: pages.Style) -> pages.Design:
  """Author, title, publisher; in East Asia the title may run downwards."""
  author, house = w.name(), w.word()
  title = w.words(1, 3)
  # One column, as high as the cover allows.
  vertical = w.vertical and len(title) <= 8 and w.chance(0.5)
  if vertical:
    size = round(min(6.0, 36 / len(title)), 3)
    head = down("title", title, "t")
  else:
    size = s.size_for(title, 28, 6.5, lines=3)
    head = pages.block("title", title, "t", "h1")
  body = (
    '<div class="e"></div><div class="c">'
    + pages.block("text", author, "a", "p")
    + f'<div class="h">{head}</div></div>'
    + pages.block("page-footer", house, "p2")
  )
  style = (
    f"body{{background:{pages.css(s.accent)};color:{pages.css(s.on_accent)}}}"
    f".e{{position:absolute;top:1.4rem;left:1.4rem;right:1.4rem;bottom:1.4rem;"
    f"border:.2rem solid {pages.css(s.on_accent)}}}"
    ".c{position:absolute;top:4rem;left:3.5rem;right:3.5rem}"
    f".a{{font-size:1.9rem}}.h{{margin-top:3rem}}.t{{font-size:{size}rem}}"
    ".p2{position:absolute;bottom:3.2rem;left:3.5rem;right:3.5rem;"
    "font-size:1.4rem;text-align:center}"
  )
  return pages.Design(
    kind="book cover",
    body=body,
    css=style,
    quoted=(author, title, house),
    headed=0,
    proportion=w.pick((0.66, 0.7)),
    head_size=size,
    head_ink=s.on_accent,
    head_paper=s.accent,
    vertical=vertical,
    numbers={"tracking": 0.0, "leading": pages.DOWN_LEADING}
    if vertical
    else {},
  )


def down(label_: str, text: str, kind: str = "") -> str:
  """Characters one below the other, as East Asian headlines may run.

  WeasyPrint has no vertical writing mode; the feature `vert` gives each
  character the shape that it has in one.
  """
  cells = "".join(f"<b>{html.escape(c)}</b>" for c in text)
  return (
    f'<div class="{kind} down head" data-label="{label_}" data-vertical="1">'
    f"{cells}</div>\n"
  )


def slide(w: page_writer.Writer, s: pages.Style) -> pages.Design:
  """A headline and points."""
  title = w.words(2, 5)
  points = [w.words(2, 7) for _ in range(int(w.rng.integers(2, 6)))]
  large = s.size_for(title, 44, 4.6, 2)
  accent = pages.css(s.accent)
  body = (
    '<i class="bar"></i>'
    + pages.block("title", title, "t", "h1")
    + "<ul>"
    + "".join(pages.block("list-item", p, "", "li") for p in points)
    + "</ul>"
    + pages.block("page-footer", w.number(1, 60), "no", "p")
  )
  style = (
    f".bar{{position:absolute;inset-inline-start:0;top:0;bottom:0;width:1.6rem;"
    f"background:{accent}}}body{{padding:3.2rem 3rem;padding-inline-start:5rem;"
    f"box-sizing:border-box}}.t{{font-size:{large}rem;"
    f"color:{pages.css(s.strong)}}}ul{{font-size:2.1rem;margin-top:1.8rem;"
    "padding-inline-start:1.4em}li{margin-bottom:.5em}"
    ".no{position:absolute;bottom:1.4rem;inset-inline-end:2rem;font-size:1.3rem}"
  )
  return pages.Design(
    kind="page",
    body=body,
    css=style,
    quoted=(title, *points),
    proportion=w.pick((1.33, 1.6)),
    head_size=large,
    head_ink=s.strong,
  )


def card(w: page_writer.Writer, s: pages.Style) -> pages.Design:
  """A business card."""
  name, what, firm = w.name(), w.words(1, 3), w.word()
  digits = (
    w.rng.integers(*span) for span in ((1, 99), (100, 999), (1000, 9999))
  )
  phone = "+" + " ".join(map(str, digits))
  large = s.size_for(name, 38, 4.4, 1)
  body = (
    '<div class="l"></div><div class="m">'
    + pages.block("title", name, "t", "h1")
    + pages.block("text", what, "w", "p")
    + '</div><div class="f">'
    + pages.block("text", firm, "firm", "p")
    + f'<p data-label="text" dir="ltr" class="ph">{phone}</p></div>'
  )
  style = (
    f".l{{position:absolute;inset-inline-start:0;top:0;bottom:0;width:12rem;"
    f"background:linear-gradient({pages.css(s.accent)},{pages.css(s.soft)})}}"
    ".m{position:absolute;inset-inline-start:15rem;inset-inline-end:3rem;top:6rem}"
    f".t{{font-size:{large}rem;color:{pages.css(s.strong)}}}"
    ".w{font-size:2rem;margin-top:.4rem}.f{position:absolute;bottom:3rem;"
    "inset-inline-start:15rem;inset-inline-end:3rem;font-size:1.8rem}"
    ".firm{font-weight:bold}.ph{text-align:start}"
  )
  return pages.Design(
    kind="label",
    body=body,
    css=style,
    quoted=(name, what, firm),
    proportion=w.pick((1.6, 1.75)),
    head_size=large,
    head_ink=s.strong,
  )


def web_page(w: page_writer.Writer, s: pages.Style) -> pages.Design:
  """A bar of links, a large headline with a button, three cards."""
  brand, head, button = w.word(), w.words(2, 5), w.words(1, 2)
  links = "".join(pages.block("text", w.word(), "k", "span") for _ in range(3))
  cards = "".join(
    '<td><div class="card">'
    + pages.block("section-header", w.words(1, 2), "", "h3")
    + pages.block("text", w.sentence(4, 9), "", "p")
    + "</div></td>"
    for _ in range(3)
  )
  large = s.size_for(head, 40, 4.2, 2)
  body = (
    f'<div class="nav">{pages.block("page-header", brand, "br", "span")}'
    f'{links}</div><div class="hero">'
    + pages.block("title", head, "t", "h1")
    + pages.block("text", w.sentence(5, 10), "s", "p")
    + pages.block("text", button, "bt", "span")
    + f'</div><table class="cs"><tr>{cards}</tr></table>'
  )
  style = (
    f".nav{{background:{pages.css(s.accent)};color:{pages.css(s.on_accent)};"
    "padding:.9rem 2rem;font-size:1.2rem}.br{font-weight:bold;"
    "font-size:1.5rem;margin-inline-end:2rem}.k{margin-inline-end:1.4rem}"
    f".hero{{background:{pages.css(s.soft)};padding:2.6rem 2rem 3rem}}"
    f".t{{font-size:{large}rem}}.s{{font-size:1.4rem;margin:.8rem 0 1.6rem}}"
    f".bt{{background:{pages.css(s.accent)};color:{pages.css(s.on_accent)};"
    f"padding:.6rem 1.4rem;border-radius:{s.radius}rem;font-size:1.3rem}}"
    ".cs{width:100%;border-spacing:1.4rem;table-layout:fixed}"
    "td{vertical-align:top}"
    f".card{{border:.1rem solid {pages.css(s.accent)};padding:1rem;"
    f"border-radius:{s.radius}rem;font-size:1.1rem}}"
    ".card h3{font-size:1.35rem}"
  )
  return pages.Design(
    kind="page",
    body=body,
    css=style,
    quoted=(brand, head, button),
    headed=0,
    proportion=w.pick((1.2, 1.33)),
    head_size=large,
    head_ink=s.ink,
    head_paper=s.soft,
  )


def quotation(w: page_writer.Writer, s: pages.Style) -> pages.Design:
  """A saying and who said it."""
  text, who = w.sentence(5, 12), w.name()
  large = min(3.4, s.size_for(text, 27, 3.4, 6))
  turned = w.chance(0.3)
  body = (
    '<div class="q"><div class="big"></div>'
    + pages.block("text", text, "t", "h1")
    + pages.block("caption", who, "w", "p")
    + "</div>"
  )
  style = (
    f"body{{background:linear-gradient(135deg,{pages.css(s.paper)},"
    f"{pages.css(s.soft)})}}.q{{position:absolute;top:7rem;left:4rem;right:4rem;"
    f"{'transform:rotate(-3deg)' if turned else ''}}}"
    f".big{{width:5rem;height:.5rem;background:{pages.css(s.accent)};"
    f"margin-bottom:1.6rem}}.t{{font-size:{large}rem;font-weight:normal;"
    f"line-height:{s.leading}}}.w{{font-size:1.7rem;margin-top:1.6rem;"
    f"color:{pages.css(s.strong)}}}"
  )
  return pages.Design(
    kind="poster",
    body=body,
    css=style,
    quoted=(text, who),
    proportion=1.0,
    head_size=large,
    head_ink=s.ink,
    numbers={"weight": 400.0, "leading": s.leading},
  )


def ticket(w: page_writer.Writer, s: pages.Style) -> pages.Design:
  """An admission ticket with a stub."""
  title, place = w.words(1, 3), w.name()
  row, seat = w.number(1, 40), w.number(1, 99)
  price, day = w.price(), w.date()
  large = s.size_for(title, 37, 5, 1)
  body = (
    '<div class="m">'
    + pages.block("title", title, "t", "h1")
    + pages.block("text", place, "", "p")
    + pages.block("text", day, "b", "p")
    + '</div><div class="stub">'
    + pages.block("text", price, "b", "p")
    + pages.block("text", f"{row} – {seat}", "n", "p")
    + "</div>"
  )
  style = (
    f"body{{background:{pages.css(s.soft)};font-size:2rem}}"
    f".m{{position:absolute;inset-inline-start:2.5rem;top:5rem;width:44rem;"
    "bottom:3rem}"
    f".t{{font-size:{large}rem;color:{pages.css(s.ink)};"
    "margin-bottom:1.2rem}.b{font-weight:bold;margin-top:.8rem}"
    f".stub{{position:absolute;top:0;bottom:0;inset-inline-end:0;width:29%;"
    f"background:{pages.css(s.accent)};color:{pages.css(s.on_accent)};"
    f"border-inline-start:.35rem dashed {pages.css(s.paper)};"
    "text-align:center;padding-top:8rem;box-sizing:border-box}"
    ".n{font-size:3rem;margin-top:1.4rem}"
  )
  return pages.Design(
    kind="label",
    body=body,
    css=style,
    quoted=(title, place, day, price),
    proportion=2.0,
    head_size=large,
    head_ink=s.ink,
    head_paper=s.soft,
  )


# name -> (its maker, how often it is drawn).
DESIGNS: dict[str, tuple[Maker, float]] = {
  "poster": (poster, 2),
  "sign": (sign, 3),
  "label": (label, 1),
  "book_cover": (book_cover, 1.5),
  "slide": (slide, 1),
  "card": (card, 1),
  "web_page": (web_page, 1),
  "quotation": (quotation, 1),
  "ticket": (ticket, 1),
  "invoice": (page_papers.invoice, 1),
  "menu": (page_papers.menu, 1),
  "newspaper": (page_papers.newspaper, 1),
  "book_page": (page_papers.book_page, 1),
  "form": (page_papers.form, 1),
  "letter": (page_papers.letter, 1),
  "timetable": (page_papers.timetable, 1),
  "glossary": (page_papers.glossary, 0.5),
  "receipt": (page_papers.receipt, 0.7),
}
