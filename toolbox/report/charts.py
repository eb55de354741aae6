"""Charts of a report: small SVGs of our own, light and dark, without a plotting library (`runs report`)."""

import math
import unicodedata
from collections.abc import Iterable, Sequence
from xml.sax.saxutils import escape

import msgspec

WIDTH, LEFT, RIGHT, TOP = 760, 64, 24, 78
HEAD = 96
"""Where a line chart begins: its y label takes a line of its own."""
PLOT_HEIGHT, BOTTOM, ROW_HEIGHT = 264, 52, 28
DOT_GAP = 13
"""Between the dots of a row: their intervals must not lie on each other."""
MOST_POINTS = 600
"""A curve of more points is thinned: a screen shows no more, and the file stays small."""

STYLE = """
text{font:13px system-ui,-apple-system,"Segoe UI",Roboto,"PingFang SC","Microsoft YaHei","Noto Sans CJK SC",sans-serif}
text{fill:#57606a}.title{font-size:16px;font-weight:600;fill:#1f2328}.label,.heading{fill:#1f2328}.value{font-size:12px}
.heading{font-weight:600;paint-order:stroke;stroke:#fff;stroke-width:5px;stroke-linejoin:round}
.paper{fill:#fff}.grid{stroke:#d8dee4}.axis{stroke:#8c959f}.mark{stroke:#8c959f;stroke-dasharray:4 4}
.span{stroke:#d0d7de;stroke-width:3}.before{fill:#fff;stroke:#6e7781;stroke-width:2}
path{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}path.faint{stroke-width:1.25;opacity:.35}
.s0{stroke:#0969da}.s1{stroke:#cf5a00}.s2{stroke:#1a7f37}.s3{stroke:#8250df}
.f0{fill:#0969da}.f1{fill:#cf5a00}.f2{fill:#1a7f37}.f3{fill:#8250df}
@media screen and (prefers-color-scheme:dark){
text{fill:#9198a1}.title,.label,.heading{fill:#f0f6fc}.heading{stroke:#0d1117}.paper{fill:#0d1117}.grid{stroke:#2a313c}.axis,.mark{stroke:#656c76}
.span{stroke:#3d444d}.before{fill:#0d1117;stroke:#9198a1}
.s0{stroke:#4493f8}.s1{stroke:#f0883e}.s2{stroke:#3fb950}.s3{stroke:#ab7df8}
.f0{fill:#4493f8}.f1{fill:#f0883e}.f2{fill:#3fb950}.f3{fill:#ab7df8}}
"""
"""Colours in the manner of GitHub's light and dark pages, told apart also by those who don't see red and green."""


class Series(msgspec.Struct, frozen=True):
    """A curve. `faint`: drawn thin and pale, in the colour of the curve before it (raw values behind their mean)."""

    name: str
    points: Sequence[tuple[float, float]]
    faint: bool = False
    dots: bool = False


def line_chart(title: str, series: Sequence[Series], x_label: str, y_label: str) -> str:
    """An SVG of curves over one x axis. Points that are not finite are left out; curves without any are not named."""
    curves = [(one, points) for one in series if (points := _thin(_finite(one.points)))]
    xs = [x for _, points in curves for x, _ in points] or [0.0, 1.0]
    ys = [y for _, points in curves for _, y in points] or [0.0, 1.0]
    x_axis = _Axis.over(min(xs), max(xs), LEFT, WIDTH - RIGHT, tight=True)
    y_axis = _Axis.over(min(ys), max(ys), HEAD + PLOT_HEIGHT, HEAD)
    parts = [_y_grid(y_axis), _x_ticks(x_axis, HEAD + PLOT_HEIGHT)]
    behind: list[str] = []
    before: list[str] = []
    colour, legend = -1, []
    for one, points in curves:
        colour = max(0, colour) if one.faint and colour >= 0 else (colour + 1) % 4
        if not one.faint:
            legend.append((one.name, f'<rect y="-3" width="16" height="3" rx="1.5" class="f{colour}"/>'))
        drawn = _curve(one, [(x_axis.at(x), y_axis.at(y)) for x, y in points], colour)
        (behind if one.faint else before).append(drawn)
    parts += [*behind, *before, _legend(legend) if len(legend) > 1 else ""]
    parts.append(_text(WIDTH - RIGHT, HEAD + PLOT_HEIGHT + 40, x_label, anchor="end"))
    parts.append(_text(16, HEAD - 16, y_label, css="value"))
    described = "; ".join(f"{one.name}: {_number(points[0][1])} → {_number(points[-1][1])}" for one, points in curves)
    return _svg(title, described, HEAD + PLOT_HEIGHT + BOTTOM, parts)


class Category(msgspec.Struct, frozen=True):
    """A line of a dumbbell chart; a `heading` stands above the first one of its group."""

    label: str
    before: float
    after: float | None = None
    """None where only one model was measured."""
    known: float | None = None
    """What the value is elsewhere, as in statistics: a tick."""
    heading: str = ""


def dumbbell_chart(
    title: str,
    rows: Sequence[Category],
    before_label: str,
    after_label: str,
    x_label: str = "",
    *,
    domain: tuple[float, float] | None = (0.0, 1.0),
    reference: float | None = None,
    percent: bool = True,
    known_label: str = "",
    ends: tuple[str, str] = ("", ""),
) -> str:
    """An SVG with a line a category from its value before to its value after.

    `domain`: the ends of the axis, None for those of the values. `reference`: a dashed line, as 0.5 for parity.
    `percent`: 0.5 is written 50%. `ends`: what the left and the right end of the axis mean.
    """
    shown = [row for row in rows if math.isfinite(row.before)]
    values = [v for row in shown for v in (row.before, row.after) if v is not None and math.isfinite(v)] or [0.0, 1.0]
    left = 28 + max([width_of(row.label) for row in shown] or [0])
    low, high = domain or (min(values), max(values))
    axis = _Axis.over(low, high, left, WIDTH - RIGHT - 20, tight=domain is not None, percent=percent)
    top = TOP + (ROW_HEIGHT - 8 if any(ends) else 0)
    lines = sum(2 if row.heading else 1 for row in shown)
    bottom = top + ROW_HEIGHT * max(1, lines)
    parts = [_vertical(axis.at(tick), top - 6, bottom, "grid") for tick in axis.ticks]
    if reference is not None:
        parts.append(_vertical(axis.at(reference), top - 6, bottom, "mark"))
    y = top + ROW_HEIGHT * 0.5
    for row in shown:
        if row.heading:
            parts.append(_text(16, y + 4.5, row.heading, css="heading"))
            y += ROW_HEIGHT
        parts.append(_dumbbell(row, y, axis))
        y += ROW_HEIGHT
    parts += [_text(axis.start, top - 14, ends[0], css="label"), _x_ticks(axis, bottom)]
    parts.append(_text(axis.end, top - 14, ends[1], css="label", anchor="end"))
    legend = [(before_label, '<circle cx="6" cy="-4" r="5" class="before"/>')]
    if any(row.after is not None for row in shown):
        legend.append((after_label, '<circle cx="6" cy="-4" r="5.5" class="f0"/>'))
    if any(row.known is not None for row in shown):
        legend.append((known_label, '<rect x="4" y="-11" width="4" height="14" rx="1" class="f1"/>'))
    parts += [_legend(legend), _text(WIDTH - RIGHT, bottom + 40, x_label, anchor="end")]
    described = "; ".join(
        f"{row.label}: {axis.name(row.before)}" + (f" → {axis.name(row.after)}" if row.after is not None else "")
        for row in shown
    )
    return _svg(title, described, bottom + BOTTOM, parts)


class Dot(msgspec.Struct, frozen=True):
    """A value and, where it has one, its interval."""

    value: float
    low: float | None = None
    high: float | None = None


def dot_chart(
    title: str,
    rows: Sequence[tuple[str, Sequence[Dot | None]]],
    names: Sequence[str],
    x_label: str = "",
    *,
    domain: tuple[float, float] | None = None,
    reference: float | None = None,
) -> str:
    """An SVG of several things beside each other, in per cent: a row a figure, and in it a dot for each of `names`.

    rows: (label, a dot or None for each name). `domain` and `reference` are as a dumbbell chart's.
    """
    values = [v for _, dots in rows for dot in dots if dot for v in (dot.value, dot.low, dot.high) if v is not None]
    values = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    left = 28 + max([width_of(label) for label, _ in rows] or [0])
    low, high = domain or (min(*values, reference or values[0]), max(*values, reference or values[0]))
    axis = _Axis.over(low, high, left, WIDTH - RIGHT - 20, tight=domain is not None, percent=True)
    height = max(ROW_HEIGHT, DOT_GAP * (len(names) + 1))
    bottom = TOP + height * max(1, len(rows))
    marks = [(tick, "grid") for tick in axis.ticks] + ([] if reference is None else [(reference, "mark")])
    parts = [_vertical(axis.at(at), TOP - 6, bottom, css) for at, css in marks]
    for place, (label, dots) in enumerate(rows):
        middle = TOP + height * (place + 0.5)
        parts.append(_text(16, middle + 4.5, label, css="label"))
        ys = [middle + DOT_GAP * (number - (len(names) - 1) / 2) for number in range(len(names))]
        parts += [_dot(dot, y, axis, number % 4) for number, (dot, y) in enumerate(zip(dots, ys, strict=True)) if dot]
    parts.append(_x_ticks(axis, bottom))
    legend = [(name, f'<circle cx="6" cy="-4" r="5" class="f{number % 4}"/>') for number, name in enumerate(names)]
    parts += [_legend(legend), _text(WIDTH - RIGHT, bottom + 40, x_label, anchor="end")]
    described = "; ".join(
        f"{label}: " + ", ".join(axis.name(dot.value) if dot else "–" for dot in dots) for label, dots in rows
    )
    return _svg(title, described, bottom + BOTTOM, parts)


def _dot(dot: Dot, y: float, axis: "_Axis", colour: int) -> str:
    circle = f'<circle cx="{axis.at(dot.value):.1f}" cy="{y:.1f}" r="5" class="f{colour}"/>'
    if dot.low is None or dot.high is None:
        return circle
    ends = f'x1="{axis.at(dot.low):.1f}" x2="{axis.at(dot.high):.1f}" y1="{y:.1f}" y2="{y:.1f}"'
    return f'<line {ends} class="s{colour}" stroke-width="2"/>{circle}'


class _Axis(msgspec.Struct, frozen=True):
    """A linear scale from values `low..high` to pixels `start..end`, with its ticks."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    percent: bool = False

    @classmethod
    def over(
        cls, low: float, high: float, start: float, end: float, tight: bool = False, percent: bool = False
    ) -> "_Axis":
        """`tight`: the axis ends at the values; else at the ticks around them."""
        flat = max(1e-9 * max(abs(low), abs(high)), 1e-11)
        if high - low < flat:
            low, high = (low - 0.1 * abs(low) - flat, low + 0.1 * abs(low) + flat) if abs(low) > flat else (0.0, 1.0)
        step = _nice_step((high - low) / 5)
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        ticks = tuple(round(n * step, 12) for n in range(first, last + 1))
        if tight:
            return cls(
                low, high, start, end, tuple(t for t in ticks if low - step / 1e6 <= t <= high + step / 1e6), percent
            )
        return cls(ticks[0], ticks[-1], start, end, ticks, percent)

    def at(self, value: float) -> float:
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def name(self, value: float) -> str:
        return f"{_number(value * 100)}%" if self.percent else _number(value)


def _nice_step(rough: float) -> float:
    """The smallest of 1, 2, 2.5, 5 × 10^k that is not below `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))


def _finite(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points that can be drawn: spans beyond 1e100 would overflow the scale."""
    return [(float(x), float(y)) for x, y in points if abs(x) < 1e100 and abs(y) < 1e100]


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `MOST_POINTS`, evenly, the last one always among them."""
    stride = math.ceil(len(points) / MOST_POINTS)
    if stride <= 1:
        return points
    kept = points[::stride]
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def _curve(one: Series, pixels: Sequence[tuple[float, float]], colour: int) -> str:
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in pixels)
    parts = [f'<path d="M{joined}" class="s{colour}{" faint" if one.faint else ""}"/>']
    if one.dots or len(pixels) == 1:
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" class="f{colour}"/>' for x, y in pixels]
    return "".join(parts)


def _dumbbell(row: Category, y: float, axis: _Axis) -> str:
    x = axis.at(row.before)
    parts = [_text(16, y + 4.5, row.label, css="label")]
    if row.known is not None:
        parts.append(
            f'<rect x="{axis.at(row.known) - 2:.1f}" y="{y - 9:.1f}" width="4" height="18" rx="1" class="f1"/>'
        )
    before = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" class="before"/>'
    if row.after is None or not math.isfinite(row.after):
        return "".join([*parts, before])
    to = axis.at(row.after)
    parts.append(f'<line x1="{x:.1f}" x2="{to:.1f}" y1="{y:.1f}" y2="{y:.1f}" class="span"/>')
    return "".join([*parts, before, f'<circle cx="{to:.1f}" cy="{y:.1f}" r="5.5" class="f0"/>'])


def _vertical(x: float, top: float, bottom: float, css: str) -> str:
    return f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}" class="{css}"/>'


def _y_grid(axis: _Axis) -> str:
    parts = []
    for tick in axis.ticks:
        y = axis.at(tick)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        parts.append(_text(LEFT - 10, y + 4, axis.name(tick), css="value", anchor="end"))
    return "".join(parts)


def _x_ticks(axis: _Axis, y: float) -> str:
    parts = [f'<line x1="{axis.start:.1f}" x2="{axis.end:.1f}" y1="{y}" y2="{y}" class="axis"/>']
    parts += [_text(axis.at(t), y + 19, axis.name(t), css="value", anchor="middle") for t in axis.ticks]
    return "".join(parts)


def _legend(entries: Sequence[tuple[str, str]]) -> str:
    parts, x = [], 16.0
    for name, glyph in entries:
        parts.append(f'<g transform="translate({x:.1f} 52)">{glyph}{_text(24, 0, name)}</g>')
        x += 24 + width_of(name) + 22
    return "".join(parts)


def width_of(text: str) -> float:
    """About how wide `text` is, in pixels: wide East Asian characters take a whole em, others a little over half."""
    return sum(13.0 if unicodedata.east_asian_width(char) in "WF" else 7.3 for char in text)


def _number(value: float) -> str:
    """At most four significant digits, without an exponent where people would write none."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def clean(text: str) -> str:
    """`text` for XML: escaped, and without the control characters that XML can't hold."""
    return escape("".join(char if char.isprintable() else " " for char in text), {'"': "&quot;"})


def _text(x: float, y: float, text: str, css: str = "", anchor: str = "") -> str:
    extra = (f' class="{css}"' if css else "") + (f' text-anchor="{anchor}"' if anchor else "")
    return f'<text x="{x:.1f}" y="{y:.1f}"{extra}>{clean(text)}</text>' if text else ""


def _svg(title: str, described: str, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" '
        f'height="{height:.0f}" role="img" aria-labelledby="title desc"><title id="title">{clean(title)}</title>'
        f'<desc id="desc">{clean(described)}</desc><style>{STYLE}</style>'
        f'<rect class="paper" width="{WIDTH}" height="{height:.0f}" rx="8"/>'
        f"{_text(16, 28, title, css='title')}{''.join(parts)}</svg>\n"
    )
