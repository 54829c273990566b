"""Plain SVG: panels with two axes, and a sheet of them. No package that draws is needed, and nothing in it acts."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

BLUE, RED, GREEN, ORANGE, GREY = "#1b6ca8", "#d1495b", "#2e8b57", "#c77c02", "#777"
SERIES = (BLUE, RED, GREEN, ORANGE, "#6a4c93", "#008b8b", "#8c564b", "#e377c2", "#555", "#bcbd22")
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 22, 30, 46
_LEGEND_LINE, _LETTER = 16, 5.8  # of a font of 11 px: height of a line, mean width of a letter
_TINY = 1e-300
_CROSS = "cross"  # in a legend, instead of dashes

Point = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """What is along one side: its words, its range, logarithmic or not; names: of bars, at 0, 1, 2 …, instead of
    ticks; whole: of things that are counted, which have no numbers between."""

    label: str
    low: float
    high: float
    log: bool = False
    names: Sequence[str] = ()
    whole: bool = False

    def share(self, value: float) -> float:
        """How far along the axis a value lies, 0 to 1; what is outside lies at the end."""
        low, high, at = self.low, self.high, value
        if self.log:
            low, high, at = (math.log10(max(v, _TINY)) for v in (low, high, at))
        return min(1.0, max(0.0, (at - low) / (high - low))) if high != low else 0.5

    def ticks(self) -> list[tuple[float, str]]:
        """Where there is a number, and which."""
        if self.names:
            return [(float(i), name) for i, name in enumerate(self.names)]
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            apart = max(1, math.ceil((last - first) / 6))
            return [(10.0**power, _power(power)) for power in range(first, last + 1, apart)]
        rough = (self.high - self.low) / 5
        unit = 10.0 ** math.floor(math.log10(rough)) if rough > 0 else 1.0
        step = next(unit * k for k in (1, 2, 5, 10) if unit * k >= rough * 0.999)
        step = max(1.0, step) if self.whole else step
        first = math.ceil(self.low / step - 1e-9)
        return [(step * k, f"{step * k:,.6g}") for k in range(first, math.floor(self.high / step + 1e-9) + 1)]


def around(values: Iterable[float], label: str, log: bool = False, start: float | None = None) -> Axis:
    """An axis that holds all of these; start: where it begins. Of a logarithmic one at whole powers of ten."""
    found = [v for v in values if math.isfinite(v) and (v > 0 or not log)] or [1.0]
    low, high = min(found) if start is None else start, max(found)
    if log:
        low, high = 10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high))
        return Axis(label, low, high if high > low else 10 * low, True)
    return Axis(label, low, high if high > low else low + 1)


@dataclass
class Panel:
    """One plot. Lines, bands and bars are added to it in the order in which they lie on one another. width, height: in
    pixels, without the legend; left: of them, for what stands before the y axis."""

    title: str
    x: Axis
    y: Axis
    width: int = 420
    height: int = 300
    left: int = _LEFT
    _drawn: list[str] = field(default_factory=list)
    _legend: list[tuple[str, str, str]] = field(default_factory=list)  # words, colour, dashes

    def line(
        self,
        points: Iterable[Point],
        colour: str,
        label: str = "",
        *,
        wide: float = 1.8,
        dash: str = "",
        seen: float = 1.0,
    ) -> None:
        """seen: opacity; dash: as SVG has it."""
        path = "L".join(f"{self._x(x):.1f} {self._y(y):.1f}" for x, y in points)
        if path:
            style = f'stroke="{colour}" stroke-width="{wide}" stroke-opacity="{seen}"' + _dashed(dash)
            self._drawn.append(
                f'<path d="M{path}" fill="none" {style} stroke-linecap="round" stroke-linejoin="round"/>'
            )
        self._named(label, colour, dash)

    def band(self, points: Sequence[tuple[float, float, float]], colour: str) -> None:
        """Between two lines: (x, low, high)."""
        if points:
            there = [f"{self._x(x):.1f} {self._y(high):.1f}" for x, _, high in points]
            back = [f"{self._x(x):.1f} {self._y(low):.1f}" for x, low, _ in reversed(points)]
            self._drawn.append(f'<path d="M{"L".join([*there, *back])}Z" fill="{colour}" fill-opacity="0.15"/>')

    def bars(self, heights: Iterable[Point], colour: str, label: str = "", *, wide: float = 0.8) -> None:
        """Upwards from the x axis, each so wide."""
        for x, y in heights:
            left, right, top = self._x(x - wide / 2), self._x(x + wide / 2), self._y(y)
            size = f'width="{max(1.0, right - left):.1f}" height="{self._y(self.y.low) - top:.1f}"'
            self._drawn.append(f'<rect x="{left:.1f}" y="{top:.1f}" {size} fill="{colour}" fill-opacity="0.85"/>')
        self._named(label, colour, "")

    def across(self, lengths: Iterable[Point], colour: str, label: str = "", *, wide: float = 0.8) -> None:
        """From the y axis to the right: (how long, at which y)."""
        for x, y in lengths:
            low, high = self._y(y + wide / 2), self._y(y - wide / 2)
            size = f'width="{self._x(x) - self._x(self.x.low):.1f}" height="{abs(high - low):.1f}"'
            at = f'x="{self._x(self.x.low):.1f}" y="{min(low, high):.1f}"'
            self._drawn.append(f'<rect {at} {size} fill="{colour}" fill-opacity="0.85"/>')
        self._named(label, colour, "")

    def marks(self, points: Iterable[Point], colour: str, label: str = "") -> None:
        """Crosses: figures of others."""
        for x, y in points:
            at = f"M{self._x(x) - 5:.1f} {self._y(y) - 5:.1f}l10 10m0 -10l-10 10"
            self._drawn.append(f'<path d="{at}" stroke="{colour}" stroke-width="2.2"/>')
        self._named(label, colour, _CROSS)

    def rule(self, colour: str, label: str, *, x: float | None = None, y: float | None = None) -> None:
        """A dotted line right across, at one x or one y."""
        ends = [(x, self.y.low), (x, self.y.high)] if x is not None else [(self.x.low, y), (self.x.high, y)]
        self.line([(a or 0.0, b or 0.0) for a, b in ends], colour, label, wide=1.3, dash="4 3")

    def svg(self, left: float, top: float) -> str:
        """At this place of a sheet."""
        inside = "".join([*self._frame(), *self._drawn, *self._key()])
        return f'<g transform="translate({left:.0f} {top:.0f})">{inside}</g>'

    @property
    def whole_height(self) -> int:
        """The legend's lines included."""
        return self.height + _LEGEND_LINE * len(self._legend)

    def _named(self, label: str, colour: str, dash: str) -> None:
        if label and all(label != there for there, *_ in self._legend):
            self._legend.append((label, colour, dash))

    def _x(self, value: float) -> float:
        return self.left + self.x.share(value) * (self.width - self.left - _RIGHT)

    def _y(self, value: float) -> float:
        return _TOP + (1 - self.y.share(value)) * (self.height - _TOP - _BOTTOM)

    def _frame(self) -> list[str]:
        bottom, right = self.height - _BOTTOM, self.width - _RIGHT
        out = [_text(self.left, 18, self.title, weight="bold")]
        for value, said in self.y.ticks():
            at = self._y(value)
            out.append(f'<path d="M{self.left} {at:.1f}H{right}" stroke="#ddd" stroke-width="0.6"/>')
            out.append(_text(self.left - 6, at + 4, said, "end"))
        for value, said in self.x.ticks():
            at = self._x(value)
            out.append(f'<path d="M{at:.1f} {_TOP}V{bottom}" stroke="#eee" stroke-width="0.6"/>')
            out.append(_text(at, bottom + 15, said, "middle"))
        out.append(f'<path d="M{self.left} {_TOP}V{bottom}H{right}" fill="none" stroke="#444"/>')
        out.append(_text((self.left + right) / 2, bottom + 34, self.x.label, "middle"))
        turned = f'transform="rotate(-90 12 {(_TOP + bottom) / 2:.0f})"'
        return [*out, _text(12, (_TOP + bottom) / 2, self.y.label, "middle", more=turned)]

    def _key(self) -> list[str]:
        out = []
        for i, (label, colour, dash) in enumerate(self._legend):
            at = self.height + _LEGEND_LINE * i
            path = f"M{self.left + 6} {at - 5}l10 10m0 -10l-10 10" if dash == _CROSS else f"M{self.left} {at}h22"
            style = _dashed("" if dash == _CROSS else dash)
            out.append(f'<path d="{path}" stroke="{colour}" stroke-width="2.4"{style}/>')
            out.append(_text(self.left + 28, at + 4, label))
        return out


def sheet(title: str, panels: Sequence[Panel], notes: Sequence[str] = ()) -> str:
    """A whole SVG: the panels side by side, and what is to be known of them in lines under it."""
    width = sum(panel.width for panel in panels)
    lines = [line for note in notes for line in _wrapped(note, int(width / _LETTER) - 4)]
    height = 28 + max(panel.whole_height for panel in panels) + _LEGEND_LINE * len(lines) + 8
    parts, left = [_text(10, 18, title, weight="bold", size=13)], 0
    for panel in panels:
        parts.append(panel.svg(left, 28))
        left += panel.width
    start = height - _LEGEND_LINE * len(lines)
    parts += [_text(10, start + _LEGEND_LINE * i, line) for i, line in enumerate(lines)]
    head = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}" font-family="sans-serif" font-size="11"'
    back = f'<rect width="{width}" height="{height}" fill="#fff"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {head} role="img">{back}{"".join(parts)}</svg>\n'


def _text(
    x: float, y: float, said: str, anchor: str = "start", *, weight: str = "normal", size: int = 11, more: str = ""
) -> str:
    bold = ' font-weight="bold"' if weight == "bold" else ""
    large = f' font-size="{size}"' if size != 11 else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#222"{bold}{large} {more}>'
        f"{html.escape(said)}</text>"
    )


def _dashed(dash: str) -> str:
    return f' stroke-dasharray="{dash}"' if dash else ""


def _power(power: int) -> str:
    return {0: "1", 1: "10", 2: "100", 3: "1,000"}.get(power, f"1e{power}")


def _wrapped(text: str, letters: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + len(word) >= letters:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return lines
