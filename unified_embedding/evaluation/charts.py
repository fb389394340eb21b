"""The pictures of the results page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from unified_embedding.evaluation.experiments import Findings, over_seeds
from unified_embedding.evaluation.results import Results
from unified_embedding.measure.plots import COLOURS, INK, PAPER, drawing, png
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

_BLUE, _ORANGE, _GREEN = COLOURS[:3]
_KIND_COLOUR: Final = {"zero-shot": "#868a90", "specialist": _ORANGE, "unified": _BLUE}
_OFFSET: Final[Mapping[Comparison, float]] = {"float": -0.22, "asymmetric": 0, "code": 0.22}
_MARK: Final[Mapping[Comparison, str]] = {"float": "o", "asymmetric": "|", "code": "o"}
_MEANING: Final[Mapping[Comparison, str]] = {
    "float": "float cosine",
    "asymmetric": "float query, stored code",
    "code": "code, Hamming",
}


def overview(results: Results) -> bytes:
    """Every row's main figures with their intervals: float, asymmetric and code."""
    cells = [
        (task, metric)
        for task, metric in OVERVIEW
        if any(result.interval(Cell(task, metric, "float")) for result in results.rows)
    ]
    names = [result.row.name for result in results.rows]
    title = (
        "Retrieval on unseen identities, percent; 95 % intervals over products or emoji families"
    )
    with drawing(1.8 + 1.8 * len(cells), 1.2 + 0.42 * len(names), title) as figure:
        panels = figure.subplots(1, len(cells), sharey=True, squeeze=False)[0]
        for axes, (task, metric) in zip(panels, cells, strict=True):
            axes.set_title(f"{task} {metric}")
            axes.grid(axis="y", visible=False)
            _overview_panel(axes, results, task, metric)
        panels[0].set_yticks(range(len(names)), names)
        panels[0].invert_yaxis()
        marks = [
            Line2D([], [], linestyle="", label=text, **_style(kind, INK))
            for kind, text in _MEANING.items()
        ]
        kinds = [Line2D([], [], color=c, linewidth=3, label=k) for k, c in _KIND_COLOUR.items()]
        figure.legend(handles=marks + kinds, loc="outside lower left", ncols=6)
        return png(figure)


def by_dimension(findings: Findings) -> bytes:
    """Float and code against the width of the embedding."""
    panels = []
    dims = sorted(findings.learnt)
    for name, metric in MAIN.values():
        if Cell(name, metric, "float") not in findings.learnt[findings.dim].samples:
            continue
        lines = []
        for kind, colour in _LINES.items():
            cell = Cell(name, metric, kind)
            points = [findings.learnt[dim].samples[cell].interval() for dim in dims]
            lines.append(_Line(kind, colour, points))
        panels.append(_Panel(f"{name} {metric}", [str(dim) for dim in dims], lines))
    return _panel_chart(
        "Float against code by dimension, percent",
        f"last layers only, on features of {findings.settings.source}; one training each",
        "dimensions of the embedding",
        panels,
    )


def by_share(findings: Findings) -> bytes:
    """Quality against the share of classes in the softmax; one small dot per seed."""
    panels = []
    shares = sorted(findings.sampled)
    for name, metric in MAIN.values():
        lines = []
        for kind, colour in _LINES.items():
            cell = Cell(name, metric, kind)
            if cell not in findings.sampled[shares[0]][0].samples:
                continue
            points = [over_seeds(findings.sampled[share], cell).interval() for share in shares]
            dots = [
                [float(one.samples[cell].values.mean()) for one in findings.sampled[share]]
                for share in shares
            ]
            lines.append(_Line(kind, colour, points, dots))
        if lines:
            panels.append(_Panel(f"{name} {metric}", [f"{share} %" for share in shares], lines))
    return _panel_chart(
        "Subsampled softmax, percent",
        f"last layers only, {findings.settings.seeds} seeds; "
        f"{findings.classes.get('browse_class', 0):,} browse classes, "
        f"{findings.classes.get('shop_instance', 0):,} products: this cannot test web scale",
        "share of the classes in each softmax",
        panels,
    )


def all_charts(results: Results) -> Mapping[str, bytes]:
    """File name -> PNG file; charts without anything to show are left out."""
    found = {}
    if any(result.measurement is not None for result in results.rows):
        found["results-overview.png"] = overview(results)
    if results.findings is not None:
        found["results-dimension.png"] = by_dimension(results.findings)
        found["results-subsampling.png"] = by_share(results.findings)
    return found


_LINES: Final[Mapping[Comparison, str]] = {"float": _BLUE, "code": _GREEN}


@dataclass(frozen=True)
class _Line:
    kind: Comparison
    colour: str
    points: Sequence[Interval]
    dots: Sequence[Sequence[float]] = ()


@dataclass(frozen=True)
class _Panel:
    title: str
    places: Sequence[str]
    lines: Sequence[_Line]


def _overview_panel(axes: Axes, results: Results, task: str, metric: str) -> None:
    for row, result in enumerate(results.rows):
        found = {kind: result.interval(Cell(task, metric, kind)) for kind in COMPARISONS}
        if found["float"] is None:
            axes.text(0.02, row, "not run", transform=axes.get_yaxis_transform(), va="center")
        for kind, interval in found.items():
            if interval is not None:
                style = _style(kind, _KIND_COLOUR[result.row.kind])
                mean, around = _around([interval])
                axes.errorbar(mean, row + _OFFSET[kind], xerr=around, elinewidth=1.2, **style)


def _panel_chart(title: str, subtitle: str, x_title: str, panels: Sequence[_Panel]) -> bytes:
    with drawing(0.6 + 2.9 * max(2, len(panels)), 3.4, title) as figure:
        places = figure.subplots(1, max(1, len(panels)), squeeze=False)[0]
        for axes, panel in zip(places, panels, strict=False):
            axes.set_title(panel.title)
            axes.set_xticks(range(len(panel.places)), panel.places)
            for number, line in enumerate(panel.lines):
                # Side by side, so that one line's interval does not hide another's.
                _draw(axes, line, 0.08 * (number - (len(panel.lines) - 1) / 2))
        figure.supxlabel(f"{x_title}\n{subtitle}", fontsize=9)
        if panels:
            figure.legend(
                *places[0].get_legend_handles_labels(), loc="outside upper right", ncols=2
            )
        return png(figure)


def _draw(axes: Axes, line: _Line, shift: float) -> None:
    places = [index + shift for index in range(len(line.points))]
    means, around = _around(line.points)
    stroke = "-" if line.kind == "float" else "--"
    style = _style(line.kind, line.colour)
    axes.errorbar(places, means, around, linestyle=stroke, elinewidth=1, label=line.kind, **style)
    for place, values in zip(places, line.dots, strict=False):
        beside = place + (0.14 if shift > 0 else -0.14)
        axes.plot([beside] * len(values), [100 * value for value in values], ".", color=line.colour)


def _around(intervals: Sequence[Interval]) -> tuple[list[float], list[list[float]]]:
    """Means in percent, and how far each interval reaches below and above."""
    below = [100 * (one.mean - one.low) for one in intervals]
    above = [100 * (one.high - one.mean) for one in intervals]
    return [100 * one.mean for one in intervals], [below, above]


def _style(kind: Comparison, colour: str) -> dict[str, Any]:
    """A comparison's mark: a disc, a stroke or a ring."""
    face = PAPER if kind == "code" else colour
    return {"color": colour, "marker": _MARK[kind], "markerfacecolor": face}
