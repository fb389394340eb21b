"""Charts: SVG for reports and pages, PNG for the results page, drawn by matplotlib."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any, Final, Literal

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

INK: Final = "#1b1d21"
PAPER: Final = "#fefefe"
# Okabe and Ito's palette, readable with colour-blind eyes; its black is the text's colour.
COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", INK)
# A chart follows the reader's choice of light or dark, inside a page and as a picture alone.
_BOTH: Final = (
    "<style>.chart{color:#1b1d21;--paper:#fff}"
    "@media(prefers-color-scheme:dark){.chart{color:#eceef1;--paper:#1c1e22}}</style>"
)
_STYLE: Final[Any] = {
    "font.family": ["DejaVu Sans", "sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.facecolor": PAPER,
    "figure.facecolor": PAPER,
    "figure.titlesize": 11,
    "figure.titleweight": "bold",
    "grid.color": INK,
    "grid.alpha": 0.15,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "lines.markersize": 4,
    # Text that can be read and searched, and the same bytes for the same figures.
    "svg.fonttype": "none",
    "svg.hashsalt": "unified-embedding",
}


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


@dataclass(frozen=True)
class Panel:
    """A pair of axes with its series."""

    x: Axis
    y: Axis
    series: Sequence[Series]

    def points(self) -> list[list[tuple[float, float]]]:
        """Those of every series that can be drawn."""
        return [
            [p for p in one.points if (p[0] > 0 or not self.x.log) and (p[1] > 0 or not self.y.log)]
            for one in self.series
        ]


@contextmanager
def drawing(width: float, height: float, title: str) -> Iterator[Figure]:
    """A figure of so many inches in this project's style; to be written inside the block."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.suptitle(title, x=0.01, ha="left")
        yield figure


def png(figure: Figure) -> bytes:
    """The figure as a PNG file, at twice the nominal size."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=200, metadata={"Software": None})
    return file.getvalue()


def line_chart(title: str, x: Axis, y: Axis, series: Sequence[Series]) -> str:
    """`line_charts` of one panel."""
    return line_charts(title, [Panel(x, y, series)])


def line_charts(title: str, panels: Sequence[Panel]) -> str:
    """An SVG element with every series as a line with dots, legends and labelled ticks.

    It is "" when there is nothing to draw.

    Raises:
        ValueError: more series in a panel than colours that can be told apart.
    """
    most = max(len(panel.series) for panel in panels)
    if most > len(COLOURS):
        raise ValueError(f"{most} series cannot be told apart; at most {len(COLOURS)}")
    if not any(any(panel.points()) for panel in panels):
        return ""
    with drawing(7.5, 3.1, title) as figure:
        drawn = figure.subplots(1, len(panels), squeeze=False)[0]
        for panel, axes in zip(panels, drawn, strict=True):
            for line, points, colour in zip(panel.series, panel.points(), COLOURS, strict=False):
                _draw(axes, line, points, colour)
            _arrange(axes, "x", panel.x)
            _arrange(axes, "y", panel.y)
            if len(panels) > 1:
                axes.legend(fontsize=8)
        if len(panels) == 1:
            figure.legend(loc="outside right upper")
        return _svg(figure, title)


def _draw(axes: Axes, line: Series, points: Sequence[tuple[float, float]], colour: str) -> None:
    style = "none" if line.labels else "--" if line.dashed else "-"
    marker = "o" if len(points) <= 40 else ""
    xs, ys = zip(*points, strict=True) if points else ((), ())
    axes.plot(xs, ys, color=colour, linestyle=style, marker=marker, label=line.name)
    for point, label in zip(points, line.labels, strict=False):
        axes.annotate(label, point, (0, 4), textcoords="offset points", ha="center", fontsize=8)


def _arrange(axes: Axes, letter: Literal["x", "y"], axis: Axis) -> None:
    drawn = axes.xaxis if letter == "x" else axes.yaxis
    drawn.set_label_text(f"{axis.label}, logarithmic" if axis.log else axis.label)
    if axis.log:
        axes.set(**{f"{letter}scale": "log"})
        low, high = drawn.get_view_interval()
        drawn.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)))
        drawn.set_minor_formatter(NullFormatter())
    elif axis.from_zero:
        low, high = drawn.get_view_interval()
        axes.set(**{f"{letter}lim": (min(0.0, low), high)})
    drawn.set_major_formatter(StrMethodFormatter("{x:g}"))


def _svg(figure: Figure, title: str) -> str:
    file = io.StringIO()
    none = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(file, format="svg", metadata=none)
    text = file.getvalue()
    start, opened = text.index("<svg "), text.index(">", text.index("<svg ")) + 1
    drawn = text[opened:].replace(INK, "currentColor").replace(PAPER, "var(--paper)")
    head = text[start:opened].replace("<svg ", '<svg class="chart" role="img" ')
    return f"{head}<title>{escape(title)}</title>{_BOTH}{drawn}"
