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
_ROW: Final = 18  # a line of the legend
_LETTER: Final = 6.7  # width of one in it
# Okabe and Ito's palette, readable with colour-blind eyes; its black is the text's colour.
_COLOURS: Final = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"),
    "currentColor",
)
# A chart follows the reader's choice of light or dark, inside a page and as a picture alone.
_STYLE: Final = (
    "<style>.chart{color:#1b1d21}.chart .paper{fill:#fff}"
    "@media(prefers-color-scheme:dark){.chart{color:#eceef1}.chart .paper{fill:#1c1e22}}</style>"
)


@dataclass(frozen=True)
class Series:
    """One line, or one kind of dot: a name and its points (x, y).

    Attributes:
        name: what the legend says.
        points: (x, y) of each.
        dashed: how the line is drawn.
        labels: a text above each point, when there are any; then no line joins them.
    """

    name: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False
    labels: Sequence[str] = ()


@dataclass(frozen=True)
class Axis:
    """What an axis shows; a logarithmic one leaves out values that are not positive.

    A linear one starts at zero unless told otherwise.
    """

    label: str
    log: bool = False
    from_zero: bool = True


def line_chart(title: str, x: Axis, y: Axis, series: Sequence[Series]) -> str:
    """An SVG element with every series as a line with dots, a legend and labelled ticks.

    Raises:
        ValueError: more series than colours that can be told apart.
    """
    if len(series) > len(_COLOURS):
        raise ValueError(f"{len(series)} series cannot be told apart; at most {len(_COLOURS)}")
    points = [point for line in series for point in line.points if _drawable(point, x, y)]
    if not points:
        return ""
    legend = max(150, math.ceil(40 + _LETTER * max(len(line.name) for line in series)))
    right, bottom = _WIDTH - legend, _HEIGHT - _BOTTOM
    across = _Scale.over([px for px, _ in points], x, _LEFT, right)
    up = _Scale.over([py for _, py in points], y, bottom, _TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" class="chart" '
        'font-family="sans-serif" font-size="12" fill="currentColor" role="img">',
        _STYLE,
        f"<title>{escape(title)}</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" class="paper"/>',
        f'<text x="{_LEFT}" y="18" font-weight="bold">{escape(title)}</text>',
    ]
    for tick in across.ticks():
        at = across.at(tick)
        parts.append(_grid(at, _TOP, at, bottom))
        parts.append(_text(at, bottom + 16, f"{tick:g}", "middle"))
    for tick in up.ticks():
        at = up.at(tick)
        parts.append(_grid(_LEFT, at, right, at))
        parts.append(_text(_LEFT - 6, at + 4, f"{tick:g}", "end"))
    parts.append(_text((_LEFT + right) / 2, _HEIGHT - 10, _named(x), "middle"))
    parts.append(
        f'<text transform="translate(14 {(_TOP + bottom) / 2}) rotate(-90)" '
        f'text-anchor="middle">{escape(_named(y))}</text>'
    )
    for number, (line, colour) in enumerate(zip(series, _COLOURS, strict=False)):
        places = [(across.at(p[0]), up.at(p[1])) for p in line.points if _drawable(p, x, y)]
        row, start = _TOP + 12 + _ROW * number, right + 10
        dash = ' stroke-dasharray="6 4"' if line.dashed else ""
        stroke = f'fill="none" stroke="{colour}" stroke-width="2"{dash}'
        if line.labels:
            parts.append(_dot(start + 9, row - 4, colour))
        else:
            path = " ".join(f"{px:.1f},{py:.1f}" for px, py in places)
            parts.append(f'<polyline points="{path}" {stroke}/>')
            parts.append(f'<path d="M{start} {row - 4}h18" {stroke}/>')
        if len(places) <= 40:
            parts += [_dot(px, py, colour) for px, py in places]
        above = zip(places, line.labels, strict=False)
        parts += [_text(px, py - 6, label, "middle") for (px, py), label in above]
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


def _drawable(point: tuple[float, float], x: Axis, y: Axis) -> bool:
    return (point[0] > 0 or not x.log) and (point[1] > 0 or not y.log)


def _named(axis: Axis) -> str:
    return f"{axis.label}, logarithmic" if axis.log else axis.label


def _dot(x: float, y: float, colour: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>'


def _grid(x1: float, y1: float, x2: float, y2: float) -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="currentColor" stroke-opacity="0.15"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
