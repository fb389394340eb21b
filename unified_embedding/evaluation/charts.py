"""The pictures of the results page."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from PIL import Image

from unified_embedding.evaluation.canvas import (
    BLUE,
    FAINT,
    GREEN,
    GREY,
    GRID,
    INK,
    ORANGE,
    Canvas,
    Color,
    Point,
)
from unified_embedding.evaluation.experiments import Findings, over_seeds
from unified_embedding.evaluation.results import Results
from unified_embedding.protocols.measure import Cell
from unified_embedding.protocols.tasks import (
    BROWSE_PAIRS,
    BROWSE_UNSEEN,
    CAMERA_CATEGORY,
    CAMERA_EXACT,
    CAMERA_UNSEEN,
    MAIN,
    SHOP_EXACT,
)
from unified_embedding.retrieval import COMPARISONS, Comparison, Interval

OVERVIEW: Final = (
    (CAMERA_UNSEEN, "P@20"),
    (CAMERA_CATEGORY, "P@20"),
    (CAMERA_EXACT, "R@1"),
    (SHOP_EXACT, "R@1"),
    (BROWSE_PAIRS, "R@1"),
    (BROWSE_UNSEEN, "R@1"),
)
"""Figures of the table, in order."""

_DASHED: Final[Mapping[Comparison, bool]] = {"float": False, "code": True}
_OFFSET: Final[Mapping[Comparison, float]] = {"float": -9, "asymmetric": 0, "code": 9}
_KIND_COLOR: Final = {"zero-shot": GREY, "specialist": ORANGE, "unified": BLUE}
_MARGIN: Final = 24
_TITLE: Final = 58
_ROW: Final = 40
_PANEL: Final = 172
_GAP: Final = 26


def overview(results: Results) -> Image.Image:
    """Every row's main figures with their intervals: float, asymmetric and code."""
    cells = [cell for cell in OVERVIEW if _anywhere(results, *cell)]
    names = [result.row.name for result in results.rows]
    probe = Canvas(8, 8)
    left = _MARGIN + max(probe.text_width(name) for name in names) + 20
    width = round(left + len(cells) * (_PANEL + _GAP) + _MARGIN - _GAP)
    top = _TITLE + 34
    bottom = top + _ROW * len(names)
    page = Canvas(width, bottom + 64)
    page.text((_MARGIN, 26), "Retrieval on unseen identities, percent", 19)
    page.text((_MARGIN, 48), "95 % intervals over products or emoji families", 12, FAINT)
    for index, name in enumerate(names):
        y = top + _ROW * (index + 0.5)
        page.text((_MARGIN, y), name)
        page.line([(_MARGIN, y + _ROW / 2), (width - _MARGIN, y + _ROW / 2)], GRID, 1)
    for number, (task, metric) in enumerate(cells):
        x = left + number * (_PANEL + _GAP)
        _overview_panel(page, results, task, metric, x, top, bottom)
    _overview_legend(page, bottom + 44)
    return page.image()


def by_dimension(findings: Findings) -> Image.Image:
    """Float and code against the width of the embedding."""
    panels = []
    dims = sorted(findings.learnt)
    for name, metric in MAIN.values():
        if Cell(name, metric, "float") not in findings.learnt[findings.dim].samples:
            continue
        lines = []
        for kind, dashed in _DASHED.items():
            cell = Cell(name, metric, kind)
            points = [findings.learnt[dim].samples[cell].interval() for dim in dims]
            lines.append(_Line(kind, BLUE if kind == "float" else GREEN, dashed, points))
        panels.append(_Panel(f"{name} {metric}", [str(dim) for dim in dims], lines))
    return _line_chart(
        "Float against code by dimension, percent",
        f"last layers only, on features of {findings.settings.source}; one training each",
        "dimensions of the embedding",
        panels,
    )


def by_share(findings: Findings) -> Image.Image:
    """Quality against the share of classes in the softmax; one small dot per seed."""
    panels = []
    shares = sorted(findings.sampled)
    for name, metric in MAIN.values():
        lines = []
        for kind, dashed in _DASHED.items():
            cell = Cell(name, metric, kind)
            if cell not in findings.sampled[shares[0]][0].samples:
                continue
            points = [over_seeds(findings.sampled[share], cell).interval() for share in shares]
            dots = [
                [float(one.samples[cell].values.mean()) for one in findings.sampled[share]]
                for share in shares
            ]
            lines.append(_Line(kind, BLUE if kind == "float" else GREEN, dashed, points, dots))
        if lines:
            panels.append(_Panel(f"{name} {metric}", [f"{share} %" for share in shares], lines))
    return _line_chart(
        "Subsampled softmax, percent",
        f"last layers only, {findings.settings.seeds} seeds; "
        f"{findings.classes.get('browse_class', 0):,} browse classes, "
        f"{findings.classes.get('shop_instance', 0):,} products: this cannot test web scale",
        "share of the classes in each softmax",
        panels,
    )


@dataclass(frozen=True)
class _Line:
    text: str
    color: Color
    dashed: bool
    points: Sequence[Interval]
    dots: Sequence[Sequence[float]] = ()


@dataclass(frozen=True)
class _Panel:
    title: str
    places: Sequence[str]
    lines: Sequence[_Line]


def _overview_panel(
    page: Canvas, results: Results, task: str, metric: str, x: float, top: float, bottom: float
) -> None:
    page.text((x, top - 24), f"{task} {metric}")
    intervals = [
        interval
        for result in results.rows
        for kind in COMPARISONS
        if (interval := result.interval(Cell(task, metric, kind))) is not None
    ]
    low, high = _range(intervals)

    def place(value: float) -> float:
        return x + _PANEL * (value - low) / (high - low)

    for value in _ticks(low, high):
        page.line([(place(value), top - 8), (place(value), bottom)], GRID, 1)
        page.text((place(value), bottom + 12), f"{100 * value:.0f}", 11, FAINT, "middle")
    for index, result in enumerate(results.rows):
        y = top + _ROW * (index + 0.5)
        color = _KIND_COLOR[result.row.kind]
        found = {kind: result.interval(Cell(task, metric, kind)) for kind in COMPARISONS}
        if found["float"] is None:
            page.text((x, y), "not run", 11, FAINT)
            continue
        for kind, offset in _OFFSET.items():
            interval = found[kind]
            if interval is None:
                continue
            page.line(
                [(place(interval.low), y + offset), (place(interval.high), y + offset)], color
            )
            at = place(interval.mean), y + offset
            if kind == "asymmetric":
                page.tick(at, 4, color)
            else:
                page.dot(at, 3.4, color, filled=kind == "float")


def _overview_legend(page: Canvas, y: float) -> None:
    x: float = _MARGIN
    for kind, text in (("float", "float cosine"), ("asymmetric", "float query, stored code"),
                       ("code", "code, Hamming")):  # fmt: skip
        if kind == "asymmetric":
            page.tick((x + 4, y), 4, INK)
        else:
            page.dot((x + 4, y), 3.4, INK, filled=kind == "float")
        page.text((x + 14, y), text, 12)
        x += 14 + page.text_width(text, 12) + 22
    for name, color in _KIND_COLOR.items():
        page.line([(x, y), (x + 16, y)], color, 3)
        page.text((x + 22, y), name, 12)
        x += 22 + page.text_width(name, 12) + 22


def _line_chart(title: str, subtitle: str, x_title: str, panels: Sequence[_Panel]) -> Image.Image:
    panel, tall = 250, 210
    width = 2 * _MARGIN + len(panels) * panel + max(0, len(panels) - 1) * 46 + 30
    top = _TITLE + 34
    page = Canvas(max(width, 760), top + tall + 92)
    page.text((_MARGIN, 26), title, 19)
    page.text((_MARGIN, 48), subtitle, 12, FAINT)
    for number, one in enumerate(panels):
        _line_panel(page, one, (_MARGIN + 30 + number * (panel + 46), top), panel, tall)
    page.text((_MARGIN + 30, top + tall + 40), x_title, 12, FAINT)
    x: float = _MARGIN + 30
    for line in panels[0].lines if panels else ():
        y = top + tall + 68
        page.line([(x, y), (x + 22, y)], line.color, 2, line.dashed)
        page.text((x + 28, y), line.text, 12)
        x += 28 + page.text_width(line.text, 12) + 24
    return page.image()


def _line_panel(page: Canvas, panel: _Panel, at: Point, wide: int, tall: int) -> None:
    x, top = at
    low, high = _range([point for line in panel.lines for point in line.points])
    step = wide / len(panel.places)

    def place(index: int, value: float) -> Point:
        return x + step * (index + 0.5), top + tall * (high - value) / (high - low)

    page.text((x, top - 20), panel.title)
    for value in _ticks(low, high):
        y = place(0, value)[1]
        page.line([(x, y), (x + wide, y)], GRID, 1)
        page.text((x - 6, y), f"{100 * value:.0f}", 11, FAINT, "right")
    for index, name in enumerate(panel.places):
        page.text((place(index, low)[0], top + tall + 16), name, 11, FAINT, "middle")
    for number, line in enumerate(panel.lines):
        # Side by side, so that one line's interval does not hide another's.
        shift = 5 * (number - (len(panel.lines) - 1) / 2)

        def beside(index: int, value: float, shift: float = shift) -> Point:
            middle, y = place(index, value)
            return middle + shift, y

        means = [beside(index, point.mean) for index, point in enumerate(line.points)]
        page.line(means, line.color, 2, line.dashed)
        for index, point in enumerate(line.points):
            page.line([beside(index, point.low), beside(index, point.high)], line.color, 1)
            page.dot(means[index], 3.4, line.color, filled=not line.dashed)
        for index, values in enumerate(line.dots):
            for value in values:
                page.dot(beside(index, value, shift + (14 if shift > 0 else -14)), 1.4, line.color)


def _anywhere(results: Results, task: str, metric: str) -> bool:
    return any(result.interval(Cell(task, metric, "float")) for result in results.rows)


def _range(intervals: Sequence[Interval]) -> tuple[float, float]:
    """A range in whole steps of five points around all intervals."""
    low = min((interval.low for interval in intervals), default=0.0)
    high = max((interval.high for interval in intervals), default=1.0)
    down, up = math.floor(low * 20) / 20, math.ceil(high * 20) / 20
    return max(0.0, down), up if up > down else down + 0.05


def _ticks(low: float, high: float) -> list[float]:
    """Two to six round values inside the range."""
    step = next(s for s in (0.05, 0.1, 0.2, 0.5) if (high - low) / s <= 5)
    first = math.ceil(low / step - 1e-9)
    return [step * number for number in range(first, math.floor(high / step + 1e-9) + 1)]


def all_charts(results: Results) -> Mapping[str, Image.Image]:
    """File name -> picture; charts without anything to show are left out."""
    found = {}
    if any(result.measurement is not None for result in results.rows):
        found["results-overview.png"] = overview(results)
    if results.findings is not None:
        found["results-dimension.png"] = by_dimension(results.findings)
        found["results-subsampling.png"] = by_share(results.findings)
    return found
