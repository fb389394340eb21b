"""Line charts as SVG text, without a plotting library: they live inside a report or a page."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

_WIDTH: Final = 720
_HEIGHT: Final = 300
_LEFT: Final = 62
_RIGHT: Final = 150
_TOP: Final = 34
_BOTTOM: Final = 46
# Okabe and Ito's palette, readable with colour-blind eyes.
_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


@dataclass(frozen=True)
class Series:
    """One line: a name and its points (x, y)."""

    name: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False


@dataclass(frozen=True)
class Axis:
    """What an axis shows; a logarithmic one leaves out values that are not positive.

    A linear one starts at zero unless told otherwise.
    """

    label: str
    log: bool = False
    from_zero: bool = True


def line_chart(title: str, x: Axis, y: Axis, series: Sequence[Series]) -> str:
    """An SVG element with every series as a line with dots, a legend and labelled ticks."""
    lines = [Series(s.name, _drawable(s.points, x, y), s.dashed) for s in series]
    points = [point for line in lines for point in line.points]
    if not points:
        return ""
    across = _Scale.over([px for px, _ in points], x, _LEFT, _WIDTH - _RIGHT)
    up = _Scale.over([py for _, py in points], y, _HEIGHT - _BOTTOM, _TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="sans-serif" font-size="12" role="img">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="18" font-weight="bold">{escape(title)}</text>',
    ]
    for tick in across.ticks():
        at = across.at(tick)
        parts.append(_grid(at, _TOP, at, _HEIGHT - _BOTTOM))
        parts.append(_text(at, _HEIGHT - _BOTTOM + 16, f"{tick:g}", "middle"))
    for tick in up.ticks():
        at = up.at(tick)
        parts.append(_grid(_LEFT, at, _WIDTH - _RIGHT, at))
        parts.append(_text(_LEFT - 6, at + 4, f"{tick:g}", "end"))
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(_text(middle, _HEIGHT - 10, x.label, "middle"))
    parts.append(
        f'<text transform="translate(14 {(_TOP + _HEIGHT - _BOTTOM) / 2}) rotate(-90)" '
        f'text-anchor="middle">{escape(y.label)}</text>'
    )
    for number, line in enumerate(lines):
        colour = _COLOURS[number % len(_COLOURS)]
        places = [(across.at(px), up.at(py)) for px, py in line.points]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in places)
        dash = ' stroke-dasharray="6 4"' if line.dashed else ""
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>'
        )
        if len(places) <= 40:
            parts += [
                f'<circle cx="{px:.1f}" cy="{py:.1f}" r="2.5" fill="{colour}"/>'
                for px, py in places
            ]
        row = _TOP + 12 + 18 * number
        start = _WIDTH - _RIGHT + 10
        parts.append(
            f'<line x1="{start}" y1="{row - 4}" x2="{start + 18}" y2="{row - 4}" '
            f'stroke="{colour}" stroke-width="2"{dash}/>'
        )
        parts.append(_text(start + 24, row, line.name, "start"))
    return "\n".join([*parts, "</svg>"]) + "\n"


@dataclass(frozen=True)
class _Scale:
    """Maps values onto pixels, linearly or by their logarithm."""

    low: float
    high: float
    log: bool
    start: float
    end: float

    @classmethod
    def over(cls, values: Sequence[float], axis: Axis, start: float, end: float) -> "_Scale":
        low, high = min(values), max(values)
        if axis.from_zero and not axis.log:
            low = min(0.0, low)
        if low == high:
            high = low * 2 if low > 0 else low + 1
        return cls(low, high, axis.log, start, end)

    def at(self, value: float) -> float:
        low, high, here = self.low, self.high, value
        if self.log:
            low, high, here = math.log(low), math.log(high), math.log(value)
        return self.start + (here - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            marks = [step * 10.0**decade for decade in decades for step in (1, 2, 5)]
        else:
            rough = (self.high - self.low) / 6
            power = 10.0 ** math.floor(math.log10(rough))
            step = next(power * s for s in (1, 2, 5, 10) if power * s >= rough)
            marks = [round(step * number, 12) for number in range(int(self.high / step) + 1)]
        return [mark for mark in marks if self.low <= mark <= self.high]


def _drawable(points: Sequence[tuple[float, float]], x: Axis, y: Axis) -> list[tuple[float, float]]:
    return [(px, py) for px, py in points if (px > 0 or not x.log) and (py > 0 or not y.log)]


def _grid(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#ddd"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
