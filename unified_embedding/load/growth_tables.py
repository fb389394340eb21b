"""Tables, plots and conclusions of `make growth`, from its JSON values."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from unified_embedding.load.targets import SEARCH
from unified_embedding.measure.plots import Axis, Panel, Series, line_charts
from unified_embedding.measure.questions import Question, ratio_table

PARTS: Final[Mapping[str, str]] = {
    "callers": "CPU time and memory over callers",
    "images": "CPU time and memory over pictures a request",
    "pictures": "CPU time and memory over the size of a picture",
    "search": "Searches over threads, ours and FAISS",
    "servers": "A back-fill over servers",
}
"""Every part, and what it shows."""
FORMATS: Final = ("JPEG", "PNG")
THREADS: Final = (1, 2, 8, 32)
OURS, FAISS = "ours", "bare FAISS"
DIM: Final = 1280
OBJECTIVE_MS: Final = 100.0
"""Of p99, as `make capacity` has it."""
# What counts as a rise of a figure that should fall or stay.
_RISE: Final = 1.1

Point = Mapping[str, Any]


def cell(system: str, threads: int) -> str:
    """Name of the cell of a system that so many threads search."""
    return f"{system} | {threads} threads"


def questions() -> list[Question]:
    """Ours over FAISS, for every number of threads."""
    return [
        Question(
            f"searches/s, {number} thread{'s' if number > 1 else ''} / bare FAISS with as many",
            "per_s",
            cell(OURS, number),
            (cell(FAISS, number),),
            SEARCH.get(number),
        )
        for number in THREADS
    ]


def plot(part: str, record: Mapping[str, Any]) -> str:
    """The part's SVG: what was measured, and, dashed, what theory expects."""
    return line_charts(PARTS[part], _PANELS[part](record))


def markdown(part: str, record: Mapping[str, Any]) -> str:
    """The part's table, and a sentence on what grows."""
    lines = [*_TABLES[part](record), "", _GROWS[part](record)]
    points: list[dict[str, Any]] = record.get("points", [])
    busy: list[list[str]] = [point["busy"] for point in points if point["busy"]]
    if busy:
        worst = max((", ".join(said) for said in busy), key=len)
        count = f"{len(busy)} of {len(points)}"
        lines += ["", f"**The machine was busy** in {count} points ({worst})."]
    return "\n".join(lines)


def batching(points: Sequence[Point], name: str, max_batch: int) -> list[tuple[float, float]]:
    """CPU time where a batch's fixed cost is shared by its pictures.

    It falls as 1 / batch from the first point's to the last one's, and the batch grows with the
    work until it is full.
    """
    most = min(points[-1][name], max_batch)
    first, last = points[0]["cpu_ms"], points[-1]["cpu_ms"]
    fixed = (first - last) / (1 - 1 / most)
    return [
        (point[name], first - fixed * (1 - 1 / min(point[name], max_batch))) for point in points
    ]


def linear(points: Sequence[Point], figure: str, name: str) -> list[tuple[float, float]]:
    """A straight line through the first point and the last one."""
    (x, y), (end, last) = ((point[name], point[figure]) for point in (points[0], points[-1]))
    return [(point[name], y + (last - y) * (point[name] - x) / (end - x)) for point in points]


def held(
    points: Sequence[Point], name: str, each: Callable[[Point], float]
) -> list[tuple[float, float]]:
    """Memory in MB where what a point holds beside the first one's, in bytes, is all that grows."""
    base = points[0]["memory_mb"]
    return [(point[name], base + max(0.0, each(point) - each(points[0])) / 1e6) for point in points]


def _load_panels(record: Mapping[str, Any], name: str, label: str) -> list[Panel]:
    points, callers = record["points"], record.get("callers", 1)
    x = Axis(label, log=True)
    cpu = [(point[name], point["cpu_ms"]) for point in points]
    memory = [(point[name], point["memory_mb"]) for point in points]
    shared = batching(points, name, record["max_batch"])
    in_flight = held(points, name, lambda point: point[name] * callers * record["held_bytes"])
    return [
        Panel(
            x,
            Axis("server CPU-ms a picture"),
            [Series("measured", cpu), Series("a batch shares its cost", shared, dashed=True)],
        ),
        Panel(
            x,
            Axis("MB"),
            [Series("measured", memory), Series("pictures in flight", in_flight, dashed=True)],
        ),
    ]


def _of(record: Mapping[str, Any], kind: str) -> list[Point]:
    points = [point for point in record["points"] if point["format"] == kind]
    return [{**point, "megapixels": point["pixels"] / 1e6} for point in points]


def _picture_panels(record: Mapping[str, Any]) -> list[Panel]:
    x = Axis("megapixels", log=True)
    cpu, memory = [], []
    for kind in FORMATS:
        points = _of(record, kind)
        place = [point["megapixels"] for point in points]
        cpu.append(Series(kind, list(zip(place, _column(points, "cpu_ms"), strict=True))))
        memory.append(Series(kind, list(zip(place, _column(points, "memory_mb"), strict=True))))
    for kind in FORMATS:
        line = linear(_of(record, kind), "cpu_ms", "megapixels")
        cpu.append(Series(f"{kind}: linear", line, dashed=True))
    # Pillow keeps four bytes a pixel of a picture that it decodes in full.
    whole = held(
        _of(record, "PNG"),
        "megapixels",
        lambda point: record["callers"] * (4 * point["pixels"] + point["bytes"]),
    )
    memory.append(Series("PNG, 4 bytes a pixel", whole, dashed=True))
    return [
        Panel(x, Axis("server CPU-ms a picture", log=True), cpu),
        Panel(x, Axis("MB"), memory),
    ]


def _search_panels(record: Mapping[str, Any]) -> list[Panel]:
    found, cores = record["medians"], record["cores"]
    first = found[cell(FAISS, 1)]
    # Threads beyond the cores wait for one another.
    rate = [(number, first["per_s"] * min(number, cores)) for number in THREADS]
    wait = [(number, first["p50_ms"] * max(1, number / cores)) for number in THREADS]
    panels = []
    for figure, label, theory in (
        ("per_s", "searches/s", rate),
        ("p50_ms", "ms of a search, p50", wait),
    ):
        series = [
            Series(name, [(number, found[cell(name, number)][figure]) for number in THREADS])
            for name in (OURS, FAISS)
        ]
        series.append(Series(f"{cores} cores", theory, dashed=True))
        panels.append(Panel(Axis("threads", log=True), Axis(label), series))
    return panels


def _server_panels(record: Mapping[str, Any]) -> list[Panel]:
    points = record["points"]
    titles = {"images_per_s": "images/s", "cpu_ms": "CPU-ms a picture", "memory_mb": "memory"}
    relative = [
        Series(title, [(one["servers"], one[name] / points[0][name]) for one in points])
        for name, title in titles.items()
    ]
    flat = [(one["servers"], 1.0) for one in points]
    each = [(one["servers"], float(one["servers"])) for one in points]
    theory = [
        Series("expected: images/s, CPU-ms", flat, dashed=True),
        Series("expected: memory", each, dashed=True),
    ]
    return [Panel(Axis("servers"), Axis("of one server's"), [*relative, *theory])]


_FIGURES: Final = {
    "images_per_s": ("images/s", ".1f"),
    "p50_ms": ("p50 ms", ".1f"),
    "p99_ms": ("p99 ms", ".1f"),
    "cpu_ms": ("server CPU-ms a picture", ".2f"),
    "memory_mb": ("memory MB", ".0f"),
}


def _load_table(record: Mapping[str, Any], name: str, label: str) -> Iterator[str]:
    return _table(record["points"], {name: (label, "d")} | _FIGURES)


def _picture_table(record: Mapping[str, Any]) -> Iterator[str]:
    points = [
        {**point, "name": f"{kind}, {point['megapixels']:.2g}", "kb": point["bytes"] / 1000}
        for kind in FORMATS
        for point in _of(record, kind)
    ]
    first = {"name": ("format, megapixels", ""), "kb": ("kB", ",.0f")}
    return _table(points, first | _FIGURES)


def _search_table(record: Mapping[str, Any]) -> Iterator[str]:
    yield from ratio_table(record["ratios"])
    yield ""
    yield f"{record['rounds']['told']}; {record['rows']:,} codes of {DIM // 8} bytes."
    yield ""
    found = record["medians"]
    points = [
        {"threads": number}
        | {
            f"{name} {figure}": found[cell(name, number)][figure]
            for name in (OURS, FAISS)
            for figure in ("per_s", "p50_ms")
        }
        for number in THREADS
    ]
    names = {"threads": ("threads", "d")}
    for name in (OURS, FAISS):
        names[f"{name} per_s"] = (f"{name}: searches/s", ".1f")
        names[f"{name} p50_ms"] = (f"{name}: p50 ms", ".1f")
    yield from _table(points, names)


def _server_table(record: Mapping[str, Any]) -> Iterator[str]:
    shown = {name: _FIGURES[name] for name in ("images_per_s", "cpu_ms", "memory_mb")}
    return _table(record["points"], {"servers": ("servers", "d")} | shown)


def _table(points: Sequence[Point], columns: Mapping[str, tuple[str, str]]) -> Iterator[str]:
    yield f"| {' | '.join(title for title, _ in columns.values())} |"
    yield "|---" * len(columns) + "|"
    for point in points:
        cells = (format(point[name], form) for name, (_, form) in columns.items())
        yield f"| {' | '.join(cells)} |"


def _load_growth(record: Mapping[str, Any], name: str, label: str) -> str:
    points = record["points"]
    first = _late(points, lambda one: f"{one[name]} {label}")
    lowest = min(points, key=lambda one: one["cpu_ms"])
    rise = points[-1]["cpu_ms"] / lowest["cpu_ms"]
    cpu = (
        f"a picture costs {rise:.2f} times the least at {points[-1][name]} {label}, "
        f"which is {lowest['cpu_ms']:.2f} CPU-ms at {lowest[name]}"
        if rise > _RISE
        else f"a picture costs {points[0]['cpu_ms']:.2f} CPU-ms at first and "
        f"{points[-1]['cpu_ms']:.2f} at {points[-1][name]} {label}"
    )
    more = points[-1]["memory_mb"] - points[0]["memory_mb"]
    return f"What grows: {first}; {cpu}, and memory changes by {more:+.0f} MB."


def _picture_growth(record: Mapping[str, Any]) -> str:
    size = "{megapixels:.2g} megapixels".format_map
    words = [f"{kind}: {_late(_of(record, kind), size)}" for kind in FORMATS]
    png = _of(record, "PNG")
    more = png[-1]["memory_mb"] - png[0]["memory_mb"]
    no = record["refused"]
    return (
        f"What grows: {'; '.join(words)}; with {record['callers']} PNGs of "
        f"{png[-1]['megapixels']:.2g} megapixels at once memory changes by {more:+.0f} MB. "
        f"Beyond that nothing is decoded: {no['pixels']:,} pixels were refused "
        f'after {no["ms"]:.0f} ms with "{no["said"]}".'
    )


def _search_growth(record: Mapping[str, Any]) -> str:
    one, most = (record["medians"][cell(OURS, number)] for number in (1, THREADS[-1]))
    return (
        f"What grows: {THREADS[-1]} threads on {record['cores']} cores search "
        f"{most['per_s'] / one['per_s']:.1f} times as often as one, and a search "
        f"takes {most['p50_ms'] / one['p50_ms']:.1f} times as long."
    )


def _server_growth(record: Mapping[str, Any]) -> str:
    first, last = record["points"][0], record["points"][-1]
    return (
        f"What grows: on the same cores {last['servers']} servers embed "
        f"{last['images_per_s'] / first['images_per_s']:.2f} times as many pictures a second as "
        f"one, for {last['cpu_ms'] / first['cpu_ms']:.2f} times the CPU time each, and hold "
        f"{last['memory_mb'] / first['memory_mb']:.1f} times the memory."
    )


def _late(points: Sequence[Point], where: Callable[[Point], str]) -> str:
    """At which of the points the objective ends to hold."""
    for point in points:
        if point["p99_ms"] > OBJECTIVE_MS:
            how = "is beyond" if point is points[0] else "passes"
            return f"p99 {how} {OBJECTIVE_MS:g} ms at {where(point)} ({point['p99_ms']:.0f} ms)"
    return f"p99 stays within {OBJECTIVE_MS:g} ms"


def _column(points: Sequence[Point], name: str) -> list[float]:
    return [point[name] for point in points]


_CALLERS: Final = ("callers", "callers")
_IMAGES: Final = ("images", "pictures a request")
_PANELS: Final[Mapping[str, Callable[[Mapping[str, Any]], list[Panel]]]] = {
    "callers": lambda record: _load_panels(record, *_CALLERS),
    "images": lambda record: _load_panels(record, *_IMAGES),
    "pictures": _picture_panels,
    "search": _search_panels,
    "servers": _server_panels,
}
_TABLES: Final[Mapping[str, Callable[[Mapping[str, Any]], Iterator[str]]]] = {
    "callers": lambda record: _load_table(record, *_CALLERS),
    "images": lambda record: _load_table(record, *_IMAGES),
    "pictures": _picture_table,
    "search": _search_table,
    "servers": _server_table,
}
_GROWS: Final[Mapping[str, Callable[[Mapping[str, Any]], str]]] = {
    "callers": lambda record: _load_growth(record, *_CALLERS),
    "images": lambda record: _load_growth(record, *_IMAGES),
    "pictures": _picture_growth,
    "search": _search_growth,
    "servers": _server_growth,
}
