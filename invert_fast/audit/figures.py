"""Figures as inline SVG: drawn with the page's own colours, named and told in words for whoever does not see them.

No series is told by its colour alone: each has its own mark, and its name at its end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

WIDTH, HEIGHT = 560, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 16, 16, 46
_MARKS = ("circle", "square", "triangle", "diamond", "cross", "ring", "bar", "hexagon")


@dataclass(frozen=True)
class Point:
    """label: what it is called; low, high: the interval of y, if there is one."""

    x: float
    y: float
    label: str = ""
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Line:
    name: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Axis:
    """ticks: (value, what is written). scale: value → 0 … 1."""

    title: str
    scale: Callable[[float], float]
    ticks: Sequence[tuple[float, str]] = field(default=())


def shares(title: str) -> Axis:
    return Axis(title, lambda v: min(1.0, max(0.0, v)), [(v / 4, f"{25 * v} %") for v in range(5)])


def stretched(title: str, values: Sequence[float], unit: float) -> Axis:
    """From the least to the greatest value; even near 0, and by powers of ten beyond `unit`, on both sides of it."""

    def bent(v: float) -> float:
        return math.asinh(v / unit)

    low, high = min([0.0, *values]), max([unit, *values])
    above = [times * unit * 10**power for power in range(12) for times in (1, 3)]
    ticks = [*([-unit] if low < -unit / 2 else []), 0.0, *above]
    ends = bent(low), bent(high)
    span = (ends[1] - ends[0]) or 1.0
    kept = [(v, f"{v:g}") for v in ticks if low <= v <= high * 1.0001]
    return Axis(title, lambda v: (bent(v) - ends[0]) / span, kept)


def powers(title: str, values: Sequence[float]) -> Axis:
    """Powers of ten."""
    known = [math.log10(v) for v in values if v > 0] or [0.0]
    low, high = math.floor(min(known)), max(math.ceil(max(known)), math.floor(min(known)) + 1)
    step = max(1, math.ceil((high - low) / 6))
    ticks = [(10.0**k, f"10{_raised(k)}") for k in range(low, high + 1, step)]
    return Axis(title, lambda v: (math.log10(max(v, 10.0**low)) - low) / (high - low), ticks)


def lines(name: str, title: str, told: str, series: Sequence[Line], x: Axis, y: Axis) -> Markup:
    """Lines of marked points. name: an id of the page's own; title, told: what is heard instead."""
    parts, taken = [_frame(x, y)], _Taken()
    for line in series:
        for point in line.points:
            taken.marked(_across(x, point.x), _up(y, point.y))
    for number, line in enumerate(series):
        at = [(_across(x, p.x), _up(y, p.y)) for p in line.points]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in at)
        colour = f"s{number % len(_MARKS)}"
        drawn = [f'<polyline points="{path}" class="line"/>'] if len(at) > 1 else []
        for (px, py), point in zip(at, line.points, strict=True):
            if point.low is not None and point.high is not None:
                drawn.append(f'<path class="error" d="M{px:.1f} {_up(y, point.low):.1f}V{_up(y, point.high):.1f}"/>')
            drawn.append(mark(number, px, py))
            if point.label:
                drawn.append(_named(point.label, px, py, taken))
        parts.append(f'<g class="{colour}">{"".join(drawn)}</g>')
    return _svg(name, title, told, "".join(parts), HEIGHT)


def bars(name: str, title: str, told: str, rows: Sequence[tuple[str, Point]], most: float) -> Markup:
    """Bars to the right, a row each: its name, its value as y, and its interval."""
    height, left = 34 * len(rows) + 8, 190
    scale = (WIDTH - left - 90) / (most or 1.0)
    parts = []
    for number, (said, point) in enumerate(rows):
        middle = 34 * number + 20
        end = left + scale * point.y
        parts.append(f'<text x="{left - 10}" y="{middle + 4}" text-anchor="end">{escape(said)}</text>')
        parts.append(f'<rect class="fill" x="{left}" y="{middle - 8}" width="{max(1.0, end - left):.1f}" height="16"/>')
        after = end
        if point.low is not None and point.high is not None:
            after = left + scale * min(point.high, most)
            parts.append(f'<path class="error" d="M{left + scale * point.low:.1f} {middle}H{after:.1f}"/>')
        parts.append(f'<text x="{max(end, after) + 8:.1f}" y="{middle + 4}">{escape(point.label)}</text>')
    return _svg(name, title, told, f'<g class="s0">{"".join(parts)}</g>', height)


def mark(number: int, x: float, y: float) -> str:
    """The mark of a series at a place: each has a shape of its own."""
    kind, r = _MARKS[number % len(_MARKS)], 5
    corners = {
        "triangle": [(0, -6), (6, 5), (-6, 5)],
        "diamond": [(0, -7), (6, 0), (0, 7), (-6, 0)],
        "hexagon": [(-6, 0), (-3, -5), (3, -5), (6, 0), (3, 5), (-3, 5)],
        "square": [(-r, -r), (r, -r), (r, r), (-r, r)],
        "bar": [(-7, -2), (7, -2), (7, 2), (-7, 2)],
    }
    if kind in corners:
        points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners[kind])
        return f'<polygon class="mark" points="{points}"/>'
    if kind == "cross":
        return f'<path class="stroke" d="M{x - r:.1f} {y - r:.1f}l10 10m0 -10l-10 10"/>'
    return f'<circle class="{"mark" if kind == "circle" else "stroke"}" cx="{x:.1f}" cy="{y:.1f}" r="{r}"/>'


def key(names: Sequence[str]) -> Markup:
    """What the marks of a figure stand for, as a list."""
    items = "".join(
        f'<li><svg class="key s{n % len(_MARKS)}" viewBox="0 0 20 20" width="20" height="20" aria-hidden="true">'
        f"{mark(n, 10, 10)}</svg>{escape(name)}</li>"
        for n, name in enumerate(names)
    )
    return Markup(f'<ul class="keys">{items}</ul>')


def _across(axis: Axis, value: float) -> float:
    return _LEFT + (WIDTH - _LEFT - _RIGHT) * axis.scale(value)


def _up(axis: Axis, value: float) -> float:
    return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * axis.scale(value)


class _Taken:
    """Where something is written or marked already."""

    def __init__(self):
        self.boxes: list[tuple[float, float, float, float]] = []

    def marked(self, x: float, y: float) -> None:
        self.boxes.append((x - 6, y - 6, x + 6, y + 6))

    def free(self, box: tuple[float, float, float, float]) -> bool:
        left, top, right, bottom = box
        inside = left >= _LEFT and right <= WIDTH and top >= 0 and bottom <= HEIGHT - _BOTTOM
        return inside and not any(left < c and right > a and top < d and bottom > b for a, b, c, d in self.boxes)


def _named(label: str, x: float, y: float, taken: _Taken) -> str:
    """The label of a point, beside it where nothing else is; where there is no room it is left to the words."""
    width = 7.5 * len(label)
    for dx, dy in ((9, -8), (9, 17), (-9, -8), (-9, 17), (-width / 2, -13), (-width / 2, 22)):
        anchor = "end" if dx == -9 else "start"
        left, base = x + dx - (width if anchor == "end" else 0), y + dy
        box = left, base - 10, left + width, base + 3
        if taken.free(box):
            taken.boxes.append(box)
            return f'<text class="label" x="{x + dx:.1f}" y="{base:.1f}" text-anchor="{anchor}">{escape(label)}</text>'
    return ""


def _frame(x: Axis, y: Axis) -> str:
    parts = []
    for value, written in y.ticks:
        at = _up(y, value)
        parts.append(f'<path class="grid" d="M{_LEFT} {at:.1f}H{WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{escape(written)}</text>')
    last = -math.inf
    for value, written in x.ticks:
        at = _across(x, value)
        if at - last < 34:
            continue
        last = at
        parts.append(f'<path class="grid" d="M{at:.1f} {HEIGHT - _BOTTOM}v5"/>')
        parts.append(f'<text x="{at:.1f}" y="{HEIGHT - _BOTTOM + 19}" text-anchor="middle">{escape(written)}</text>')
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(f'<text class="axis" x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x.title)}</text>')
    return "".join(parts)


def _svg(name: str, title: str, told: str, inside: str, height: int) -> Markup:
    return Markup(
        f'<svg class="figure" role="img" viewBox="0 0 {WIDTH} {height}" aria-labelledby="{name}-title {name}-told">'
        f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-told">{escape(told)}</desc>{inside}</svg>'
    )


def _raised(number: int) -> str:
    return str(number).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
