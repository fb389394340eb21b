"""Fill docs/performance.md from results/: every table and plot there comes from a run.

    python bench/performance_page.py

Sections whose program has not been run keep what they hold.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from unified_embedding.checkout import ROOT
from unified_embedding.load.served import RESULTS, console, fail
from unified_embedding.load.serving_tables import markdown
from unified_embedding.load.soak import summary
from unified_embedding.measure.files import between_marks, write_text

PAGE: Final = ROOT / "docs" / "performance.md"
# Plots of a section: file below results/, and what it shows.
PLOTS: Final = {
    "capacity": {
        "capacity/latency.svg": "latency over throughput",
        "capacity/overload.svg": "answered, refused and expired beyond capacity",
    },
    "tune": {"tune/pareto.svg": "Pareto front"},
    "soak": {"soak/memory.svg": "memory over time"},
}


def main(
    results: Annotated[Path, typer.Option(help="folder of the programs' results")] = RESULTS,
    into: Annotated[Path, typer.Option(help="Markdown file with the marker comments")] = PAGE,
) -> None:
    """Replace every section that has a result."""
    text = into.read_text()
    images = into.parent / "images" / "performance"
    for name, (file, render) in SECTIONS.items():
        if not (results / file).is_file():
            console.print(f"{name}: no {results / file}; left as it is")
            continue
        body = [render(json.loads((results / file).read_text()))]
        for plot, shows in PLOTS.get(name, {}).items():
            copy = images / plot.replace("/", "-")
            write_text(copy, (results / plot).read_text())
            body.append(f"![{shows}]({copy.relative_to(into.parent)})")
        text = replaced(text, name, "\n\n".join(body), into)
        console.print(f"{name}: from {results / file}")
    write_text(into, text)


def replaced(text: str, name: str, body: str, page: Path) -> str:
    """`text` with `body` between the two marks of `name`."""
    try:
        return between_marks(text, f"<!-- {name} -->", f"<!-- end: {name} -->", body)
    except ValueError as error:
        fail(f"{page} {error}")


def bench(record: Mapping[str, Any]) -> str:
    """Every embedder's tables."""
    tables = [markdown(result) for result in record["results"]]
    missing = record["unfinished"]
    how = f"{record['minutes']:g} minutes, measurements of {record['seconds']:g} s"
    if missing:
        how = f"**Unfinished: {', '.join(missing)} not measured.** {how}"
    return "\n\n".join([*tables, f"{how}; {_made(record)}."])


def load(record: Mapping[str, Any]) -> str:
    """One run of Locust: tails and stages."""
    tails = record["latency_ms"]
    lines = [
        "| | offered/s | answered/s | failed | " + " | ".join(tails) + " |",
        "|---" * (4 + len(tails)) + "|",
        f"| {record['load']} | {record['offered_per_s']:.1f} | {record['completed_per_s']:.1f} "
        f"| {record['failed']} | " + " | ".join(f"{value:.1f}" for value in tails.values()) + " |",
        "",
        "| stage of a mean request | ms |",
        "|---|---|",
        *(f"| {name} | {mean:.2f} |" for name, mean in record["server"]["stages_ms"].items()),
    ]
    return "\n".join([*lines, "", f"{_made(record['provenance'])}."])


def capacity(record: Mapping[str, Any]) -> str:
    """Capacity, curve and overload."""
    loop = record["closed_loop"]
    lines = [
        f"**{record['highest_poisson_rate']:.0f} requests/s** hold p99 <= "
        f"{record['slo_p99_ms']:g} ms; the closed loop reaches {loop['per_s']:.0f}/s at "
        f"concurrency {loop['concurrency']}; knee at {record['knee_rate']:.0f}/s.",
        "",
        "| offered/s | answered/s | p50 ms | p99 ms |",
        "|---|---|---|---|",
        *(
            f"| {one['rate']:.0f} | {one['answered']:.0f} | {one['p50_ms']:.1f} "
            f"| {one['p99_ms']:.1f} |"
            for one in record["curve"]
        ),
        "",
        "| of the closed loop's maximum | offered/s | answered in 1 s | refused | expired "
        "| memory MB |",
        "|---|---|---|---|---|---|",
        *(_overload_rows(record["overload"])),
    ]
    return "\n".join([*lines, "", f"{_made(record['provenance'])}."])


def loadgen(record: Mapping[str, Any]) -> str:
    """LoadGen's scenarios beside our generator."""
    p90 = float(record["SingleStream"]["90.00 percentile latency (ns)"]) / 1e6
    offline = float(record["Offline"]["Samples per second"])
    ratio = "-" if record["ratio"] is None else f"{record['ratio']:.2f}"
    lines = [
        "| MLPerf LoadGen's scenario | figure |",
        "|---|---|",
        f"| SingleStream, p90 | {p90:.1f} ms |",
        f"| Offline, full requests | {offline:.1f} images/s |",
        f"| Server, p99 <= {record['slo_p99_ms']:g} ms "
        f"| {record['Server']['highest_rate']:.0f} requests/s |",
        f"| the same by our generator | {record['ours']['highest_rate']:.0f} requests/s |",
        f"| LoadGen / ours | {ratio} |",
    ]
    return "\n".join([*lines, "", f"{_made(record['provenance'])}."])


def tune(record: Mapping[str, Any]) -> str:
    """Every setting, and what was chosen."""
    front = record["pareto_front"]
    lines = ["| | setting | images/s of installed | p50 of one caller of installed |"]
    lines.append("|---|---|---|---|")
    for one in record["settings"]:
        lines.append(
            f"| {'*' if one['label'] in front else ''} | {one['label']} "
            f"| {one['throughput_of_installed']:.3f} | {one['p50_of_installed']:.3f} |"
        )
    lines += ["", f"{record['verdict']}.", "", f"{record['what']}; {_made(record)}."]
    return "\n".join(lines)


def soaked(record: Mapping[str, Any]) -> str:
    """One sentence; the plot shows the rest."""
    return f"{record['callers']} callers; {summary(dict(record))}; {_made(record['provenance'])}."


SECTIONS: Final[Mapping[str, tuple[str, Callable[[Mapping[str, Any]], str]]]] = {
    "bench": ("bench/bench.json", bench),
    "closed loop": ("load/closed-loop/report.json", load),
    "open loop": ("load/open-loop/report.json", load),
    "capacity": ("capacity/capacity.json", capacity),
    "loadgen": ("loadgen/loadgen.json", loadgen),
    "tune": ("tune/tune.json", tune),
    "soak": ("soak/soak.json", soaked),
}


def _overload_rows(overload: list[Mapping[str, Any]]) -> Iterator[str]:
    for one in overload:
        memory = "-" if one["memory_mb"] is None else f"{one['memory_mb']:.0f}"
        yield (
            f"| {one['factor']:g} | {one['offered']:.0f} | {one['goodput']:.0f} "
            f"| {one['refused']:.0f} | {one['expired']:.0f} | {memory} |"
        )


def _made(record: Mapping[str, Any]) -> str:
    machine = record["machine"]
    return (
        f"commit {record['commit']}, {record['date']}, {machine['cpu']}, {machine['cores']} cores, "
        f"load average at the end {machine['load_average'][0]:g}"
    )


def program() -> None:
    """Parse the command line and run."""
    typer.run(main)


if __name__ == "__main__":
    program()
