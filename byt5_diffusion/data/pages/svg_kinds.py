"""Kinds of vector graphics: functions that draw on a Canvas, and a table."""

import math
from collections.abc import Callable

from byt5_diffusion.data.pages import page_designs as pages
from byt5_diffusion.data.pages import svg_designs as svg

Maker = Callable[[svg.Canvas], None]


def badge(c: svg.Canvas) -> None:
  """A round or starred badge, with text along its edge where letters allow."""
  w, s = c.writer, c.style
  c.kind, c.width, c.height = "label", 480, 480
  accent, ink = pages.css(s.accent), pages.css(s.on_accent)
  svg.background(c, pages.css(s.paper))
  shape = w.pick(("circle", "star", "rings"))
  fill = (
    svg.paint(c, accent, pages.css(_near(s.accent)))
    if w.chance(0.5)
    else accent
  )
  if shape == "star":
    corners = svg.star(240, 240, 224, int(w.rng.integers(14, 26)), 0.9)
    c.add(f'<polygon points="{corners}" fill="{fill}"/>')
  else:
    c.add(f'<circle cx="240" cy="240" r="220" fill="{fill}"/>')
  curved = w.script in svg.LOOSE
  inner = 132 if curved else 186
  c.add(
    f'<circle cx="240" cy="240" r="{inner}" fill="none" stroke="{ink}" '
    'stroke-width="4"/>'
  )
  main = w.word()
  if curved:
    above, below = w.words(2, 3), w.words(1, 2)
    c.circle(above, 240, 240, 150, 36, ink)
    c.text(main, 240, 256, 60, ink, most=230)
    c.circle(below, 240, 240, 150, 30, ink, below=True)
    c.quoted += [above, main, below]
  else:
    below = w.words(1, 2)
    c.text(main, 240, 240, 76, ink, most=310)
    c.text(below, 240, 326, 32, ink, most=250, bold=False)
    c.quoted += [main, below]
  _head(c, s.accent, s.on_accent)


def logo(c: svg.Canvas) -> None:
  """A mark beside or above a name."""
  w, s = c.writer, c.style
  c.kind, c.width, c.height = "", 640, 320
  svg.background(c, pages.css(s.paper))
  accent, soft = pages.css(s.accent), pages.css(_near(s.accent))
  mark = w.pick(("rings", "petals", "steps", "hexagon"))
  if mark == "rings":
    for x in (90, 130, 110):
      y = 190 if x == 110 else 145
      c.add(
        f'<circle cx="{x}" cy="{y}" r="42" fill="none" stroke="{accent}" '
        'stroke-width="14" opacity="0.85"/>'
      )
  elif mark == "petals":
    for i in range(6):
      c.add(
        f'<ellipse cx="110" cy="120" rx="20" ry="42" fill="{accent}" '
        f'opacity="0.7" transform="rotate({60 * i} 110 160)"/>'
      )
  elif mark == "steps":
    for i in range(4):
      c.add(
        f'<rect x="{50 + 32 * i}" y="{200 - 34 * i}" width="26" '
        f'height="{34 + 34 * i}" rx="5" fill="{soft if i % 2 else accent}"/>'
      )
  else:
    corners = svg.star(110, 160, 76, 3, 1.0)
    c.add(
      f'<polygon points="{corners}" fill="{accent}"/>'
      f'<circle cx="110" cy="160" r="30" fill="{pages.css(s.paper)}"/>'
    )
  name = c.fitting(w.word, 84, 390)
  motto = c.fitting(lambda: w.words(2, 4), 28, 390)
  strong = pages.css(s.strong)
  c.text(name, 216, 172, 84, strong, anchor="start", most=390)
  c.text(
    motto, 216, 224, 28, pages.css(s.ink), anchor="start", most=390, bold=False
  )
  c.quoted += [name, motto]
  _head(c, s.paper, s.strong)


def bars(c: svg.Canvas) -> None:
  """A chart of bars with names and values."""
  w, s = c.writer, c.style
  c.kind, c.width, c.height = "page", 640, 480
  svg.background(c, pages.css(s.paper))
  ink, title = pages.css(s.ink), w.words(2, 4)
  c.text(title, 320, 56, 36, pages.css(s.strong), most=580)
  count = int(w.rng.integers(3, 6))
  step = 540 / count
  top = 100
  for i in range(5):
    y = 400 - i * 70
    c.add(
      f'<line x1="60" y1="{y}" x2="600" y2="{y}" stroke="{ink}" '
      f'stroke-opacity="{0.9 if i == 0 else 0.2}" stroke-width="2"/>'
    )
  for i in range(count):
    share = float(w.rng.uniform(0.15, 0.95))
    height = share * (390 - top)
    x = 60 + i * step
    paint = svg.paint(c, pages.css(s.accent), pages.css(_near(s.accent)))
    c.add(
      f'<rect x="{x + step * 0.18:.1f}" y="{400 - height:.1f}" '
      f'width="{step * 0.64:.1f}" height="{height:.1f}" rx="4" fill="{paint}"/>'
    )
    value = w.number(*[round(share * 100)] * 2)
    c.text(value, x + step / 2, 390 - height, 22, ink, bold=False)
    name = c.fitting(w.word, 22, step * 0.92)
    c.text(name, x + step / 2, 436, 22, ink, most=step * 0.92, bold=False)
  c.quoted.append(title)
  _head(c, s.paper, s.strong)


def pie(c: svg.Canvas) -> None:
  """A pie or a ring in slices, with a list of what they are."""
  w, s = c.writer, c.style
  c.kind, c.width, c.height = "page", 640, 420
  svg.background(c, pages.css(s.paper))
  ink, title = pages.css(s.ink), w.words(2, 4)
  c.text(title, 320, 56, 34, pages.css(s.strong), most=580)
  count = int(w.rng.integers(3, 6))
  x, y, radius, angle = 190, 240, 140, 0.0
  for i, share in enumerate(svg.shares(w.rng, count)):
    color = pages.css(_mixed(s.accent, s.ink, i / count))
    end = angle + 2 * math.pi * float(share)
    points = [
      (x + radius * math.sin(a), y - radius * math.cos(a)) for a in (angle, end)
    ]
    large = int(share > 0.5)
    c.add(
      f'<path d="M{x} {y}L{points[0][0]:.2f} {points[0][1]:.2f}A{radius} '
      f'{radius} 0 {large} 1 {points[1][0]:.2f} {points[1][1]:.2f}Z" '
      f'fill="{color}" stroke="{pages.css(s.paper)}" stroke-width="3"/>'
    )
    row = 240 + (i - (count - 1) / 2) * 48
    c.add(
      f'<rect x="372" y="{row - 18:.1f}" width="22" height="22" rx="4" '
      f'fill="{color}"/>'
    )
    name = c.fitting(w.word, 24, 190)
    c.text(name, 408, row, 24, ink, anchor="start", most=190, bold=False)
    angle = end
  if w.chance(0.5):
    c.add(f'<circle cx="{x}" cy="{y}" r="66" fill="{pages.css(s.paper)}"/>')
    c.text(w.number(10, 99), x, y + 16, 44, ink)
  c.quoted.append(title)
  _head(c, s.paper, s.strong)


def flow(c: svg.Canvas) -> None:
  """Boxes and arrows, from top to bottom or along the lines' direction."""
  w, s = c.writer, c.style
  count = int(w.rng.integers(3, 5))
  across = w.chance(0.5)
  c.kind = "page"
  c.width, c.height = (240 * count, 300) if across else (420, 150 * count)
  svg.background(c, pages.css(s.paper))
  name = c.name()
  ink = pages.css(s.ink)
  c.add(
    f'<defs><marker id="{name}" viewBox="0 0 10 10" refX="9" refY="5" '
    'markerWidth="7" markerHeight="7" orient="auto">'
    f'<path d="M0 0L10 5L0 10Z" fill="{ink}"/></marker></defs>'
  )
  for i in range(count):
    place = count - 1 - i if across and w.rtl else i
    x, y = (120 + 240 * place, 150) if across else (210, 75 + 150 * i)
    corner = w.pick((4, 14, 40))
    c.add(
      f'<rect x="{x - 92}" y="{y - 42}" width="184" height="84" rx="{corner}" '
      f'fill="{pages.css(s.accent)}" stroke="{ink}" stroke-width="2"/>'
    )
    if i:
      if across:
        ends = (x - 146, y, x - 96, y) if not w.rtl else (x + 146, y, x + 96, y)
      else:
        ends = (x, y - 106, x, y - 46)
      c.add(
        '<line x1="{}" y1="{}" x2="{}" y2="{}" '.format(*ends)
        + f'stroke="{ink}" stroke-width="4" marker-end="url(#{name})"/>'
      )
    text = c.fitting(lambda: w.words(1, 2), 27, 160)
    c.text(text, x, y + 9, 27, pages.css(s.on_accent), most=160)
    c.quoted.append(text)
  _head(c, s.accent, s.on_accent)


def chart_of_places(c: svg.Canvas) -> None:
  """A map: land, water, roads, and names that lie aslant."""
  w, s = c.writer, c.style
  c.kind, c.width, c.height = "", 600, 520
  water, ground = "#cfe3ef", _mixed((244, 239, 226), s.soft, 0.2)
  svg.background(c, water)
  points = []
  for i in range(14):
    angle = 2 * math.pi * i / 14
    far = float(w.rng.uniform(170, 255))
    points.append(
      (300 + 1.15 * far * math.sin(angle), 260 - 0.95 * far * math.cos(angle))
    )
  path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
  c.add(
    f'<polygon points="{path}" fill="{pages.css(ground)}" stroke="#9a927c" '
    'stroke-width="3" stroke-linejoin="round"/>'
  )
  road = [
    (300 + dx, 260 + dy) for dx, dy in ((-230, 60), (-60, -20), (210, 90))
  ]
  c.add(
    '<path d="M{} {}Q{} {} {} {}" '.format(*(n for p in road for n in p))
    + 'fill="none" stroke="#e0a33b" stroke-width="9" stroke-linecap="round"/>'
  )
  title = w.word()
  tilt = float(w.rng.uniform(-18, 18))
  c.text(
    title, 300, 210, 46, "#3c3a33", most=300, matrix=svg.turn(tilt, 300, 200)
  )
  c.quoted.append(title)
  for x, y in ((190, 330), (330, 375), (420, 300), (230, 135)):
    jitter = float(w.rng.uniform(-12, 12))
    c.add(
      f'<circle cx="{x + jitter:.1f}" cy="{y}" r="7" fill="#c0392b" '
      'stroke="#ffffff" stroke-width="2"/>'
    )
    name, at = c.fitting(w.word, 20, 120), x + jitter + 13
    c.text(name, at, y + 7, 20, "#222222", anchor="start", most=120, bold=False)
  c.text(w.words(1, 2), 300, 506, 24, "#2a5d80", most=240, bold=False)
  _head(c, ground, (60, 58, 51))


def icons(c: svg.Canvas) -> None:
  """Signs with their names below, in rows."""
  w, s = c.writer, c.style
  columns = int(w.rng.integers(2, 5))
  c.kind, c.width, c.height = "page", 170 * columns, 400
  svg.background(c, pages.css(s.paper))
  on = pages.css(s.on_accent)
  shapes = (
    '<path d="M-26 18L0 -26L26 18Z" fill="{0}"/>',
    '<circle r="24" fill="none" stroke="{0}" stroke-width="8"/>',
    '<path d="M-24 0H24M0 -24V24" stroke="{0}" stroke-width="10"/>',
    '<path d="M-26 0Q0 -36 26 0Q0 36 -26 0Z" fill="{0}"/>',
    '<path d="M-22 2L-6 20L24 -18" fill="none" stroke="{0}" stroke-width="9"/>',
    '<rect x="-20" y="-20" width="40" height="40" rx="6" fill="{0}"/>',
  )
  for row in range(2):
    for column in range(columns):
      place = columns - 1 - column if w.rtl else column
      x, y = 85 + 170 * place, 80 + 190 * row
      c.add(
        f'<circle cx="{x}" cy="{y}" r="52" fill="{pages.css(s.accent)}"/>'
        f'<g transform="translate({x} {y})">'
        f"{w.pick(shapes).format(on)}</g>"
      )
      name = c.fitting(w.word, 26, 150)
      c.text(name, x, y + 90, 26, pages.css(s.ink), most=150)
      c.quoted.append(name)
  _head(c, s.paper, s.ink)


def ribbon(c: svg.Canvas) -> None:
  """A ribbon across a picture, or a tag; turned by some degrees."""
  w, s = c.writer, c.style
  c.kind, c.width, c.height = "sign", 620, 300
  svg.background(c, svg.paint(c, pages.css(s.paper), pages.css(s.soft)))
  tilt = float(w.rng.uniform(-10, 10))
  matrix = svg.turn(tilt, 310, 150)
  moved = " ".join(f"{n:.6g}" for n in matrix)
  accent, dark = (
    pages.css(s.accent),
    pages.css(_mixed(s.accent, (0, 0, 0), 0.4)),
  )
  c.add(
    f'<g transform="matrix({moved})">'
    f'<path d="M40 122L130 122L130 212L40 212L72 167Z" fill="{dark}"/>'
    f'<path d="M580 122L490 122L490 212L580 212L548 167Z" fill="{dark}"/>'
    f'<rect x="96" y="96" width="428" height="92" fill="{accent}"/></g>'
  )
  text = c.fitting(lambda: w.words(1, 3), 50, 390)
  c.text(text, 310, 158, 50, pages.css(s.on_accent), most=390, matrix=matrix)
  c.quoted.append(text)
  _head(c, s.accent, s.on_accent)


def banner(c: svg.Canvas) -> None:
  """A tall flag: East Asian text runs down it, other text is turned."""
  w, s = c.writer, c.style
  c.kind, c.width, c.height = "sign", 220, 560
  svg.background(c, pages.css(s.paper))
  fill = svg.paint(c, pages.css(s.accent), pages.css(_near(s.accent)))
  c.add(
    f'<path d="M30 20H190V500L110 540L30 500Z" fill="{fill}" '
    f'stroke="{pages.css(s.ink)}" stroke-width="3"/>'
  )
  ink = pages.css(s.on_accent)
  text = w.words(1, 3) if w.vertical else w.words(1, 2)
  if w.vertical:
    c.text(text, 110, 260, 92, ink, most=420, vertical=True)
  else:
    c.text(text, 110, 282, 72, ink, most=420, matrix=svg.turn(-90, 110, 260))
  c.quoted.append(text)
  _head(c, s.accent, s.on_accent)
  c.numbers["vertical"] = float(w.vertical)


def poem(c: svg.Canvas) -> None:
  """A title and lines: in East Asia columns, from right to left."""
  w, s = c.writer, c.style
  c.kind, c.width, c.height = "page", 480, 480
  svg.background(c, pages.css(s.paper))
  c.add(
    '<rect x="22" y="22" width="436" height="436" fill="none" '
    f'stroke="{pages.css(s.accent)}" stroke-width="5"/>'
  )
  ink, strong = pages.css(s.ink), pages.css(s.strong)
  count = int(w.rng.integers(3, 7))
  title = c.fitting(lambda: w.words(1, 2), 42, 360)
  if w.vertical:
    step = 330 / count
    c.text(title, 412, 50, 40, strong, anchor="start", vertical=True, most=380)
    for i in range(count):
      x, line = 412 - 42 - step * (i + 0.5), w.words(2, 4)
      c.text(
        line, x, 82, 30, ink, anchor="start", bold=False, vertical=True,
        most=350,
      )  # fmt: skip
  else:
    step = 310 / count
    c.text(title, 240, 92, 42, strong, most=380)
    for i in range(count):
      line = c.fitting(lambda: w.words(2, 5), 27, 390)
      c.text(line, 240, 132 + step * (i + 0.6), 27, ink, bold=False, most=390)
  c.quoted.append(title)
  _head(c, s.paper, s.strong)
  c.numbers["vertical"] = float(w.vertical)


def _head(c: svg.Canvas, paper: pages.Color, ink: pages.Color) -> None:
  """Notes the style of what is quoted; the size is that of the largest."""
  c.ink, c.paper = ink, paper
  size = max(c.written[text].size for text in c.quoted)
  c.numbers.update({"size": size / c.height, "vertical": 0.0})
  for name, color in (("ink", ink), ("paper", paper)):
    for channel, value in zip(("red", "green", "blue"), color, strict=True):
      c.numbers[f"{name}_{channel}"] = value / 255


def _mixed(one: pages.Color, other: pages.Color, share: float) -> pages.Color:
  red, green, blue = (
    round(a + (b - a) * share) for a, b in zip(one, other, strict=True)
  )
  return (red, green, blue)


def _near(color: pages.Color) -> pages.Color:
  """A little darker, for the other end of a gradient."""
  return _mixed(color, (0, 0, 0), 0.12)


# name -> (its maker, how often it is drawn).
DESIGNS: dict[str, tuple[Maker, float]] = {
  "badge": (badge, 2),
  "logo": (logo, 2),
  "bars": (bars, 1),
  "pie": (pie, 1),
  "flow": (flow, 1),
  "map": (chart_of_places, 1),
  "icons": (icons, 1),
  "ribbon": (ribbon, 1.5),
  "banner": (banner, 1.5),
  "poem": (poem, 1.5),
}
