"""Fill docs/performance.md from results/: every table and plot there comes from a run.

    python bench/performance_page.py

Sections without a result keep what they hold, or say that they were not measured; the page says
of which commit each of them is.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from unified_embedding.checkout import ROOT
from unified_embedding.engine.tuning import report as tune_report
from unified_embedding.load import growth_tables
from unified_embedding.load.capacity import summary
from unified_embedding.load.served import RESULTS, console, fail
from unified_embedding.load.serving_tables import markdown
from unified_embedding.load.soak import summary as soak_summary
from unified_embedding.measure.files import between_marks, write_text
from unified_embedding.measure.paired import told
from unified_embedding.measure.questions import bounded, ratio_table

PARTS: Final = "parts"
NOT_MEASURED: Final = "Not measured."
JUDGED: Final = ("bench", "capacity", "tune")
PAGE: Final = ROOT / "docs" / "performance.md"
# Plots of a section: file below results/, and what it shows.
PLOTS: Final = {
    "capacity": {
        "capacity/latency.svg": "latency over throughput",
        "capacity/overload.svg": "answered, refused and expired beyond capacity",
    },
    "tune": {"tune/pareto.svg": "Pareto front"},
    "soak": {"soak/memory.svg": "memory over time"},
    **{
        f"growth: {part}": {f"growth/{part}.svg": shows}
        for part, shows in growth_tables.PARTS.items()
    },
}


def main(
    results: Annotated[Path, typer.Option(help="folder of the programs' results")] = RESULTS,
    into: Annotated[Path, typer.Option(help="Markdown file with the marker comments")] = PAGE,
) -> None:
    """Replace every section that has a result; an empty one says that it has none."""
    text = into.read_text()
    images = into.parent / "images" / "performance"
    for name, (file, render) in SECTIONS.items():
        if not (results / file).is_file():
            console.print(f"{name}: no {results / file}; left as it is")
            if not held(text, name).strip():
                text = replaced(text, name, NOT_MEASURED, into)
            continue
        try:
            body = [render(json.loads((results / file).read_text()))]
        except (KeyError, TypeError, ValueError):
            fail(f"{results / file} is not of this version; measure again, or remove it")
        for plot, shows in PLOTS.get(name, {}).items():
            copy = images / plot.replace("/", "-")
            write_text(copy, (results / plot).read_text())
            body.append(f"![{shows}]({copy.relative_to(into.parent)})")
        text = replaced(text, name, "\n\n".join(body), into)
        console.print(f"{name}: from {results / file}")
    write_text(into, replaced(text, PARTS, parts(text), into))


def parts(text: str) -> str:
    """Of which commits the page's parts are, and which were never measured, in a line."""
    commits: dict[str, list[str]] = {}
    missing, bare = [], []
    for name in SECTIONS:
        body = held(text, name)
        found = re.findall(r"commit ([0-9a-f]{12}(?:-dirty)?), (\S+),", body)
        if found:
            commit, date = found[-1]
            commits.setdefault(commit, []).append(f"{name} ({date[:10]})")
        else:
            missing.append(name)
        if found and name in JUDGED and "95 % interval" not in body:
            bare.append(name)
    lines = [f"**not measured: {', '.join(missing)}**"] if missing else []
    if bare:
        lines.append(f"**measured before verdicts had intervals: {', '.join(bare)}**")
    if len(commits) == 1:
        every = "All parts that were measured" if missing else "All parts"
        return "; ".join([f"{every} are of commit {next(iter(commits))}", *lines]) + "."
    lines = [f"{commit}: {', '.join(names)}" for commit, names in commits.items()] + lines
    return f"**Parts of different commits.** {'; '.join(lines)}."


def held(text: str, name: str) -> str:
    """What `text` holds between the two marks of `name`."""
    return text.partition(f"<!-- {name} -->")[2].partition(f"<!-- end: {name} -->")[0]


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
    lines = [
        f"{summary(record)}.",
        "",
        *ratio_table(record["ratios"]),
        "",
        f"{record['rounds']['told']}.",
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
    lines = [
        "| | setting | images/s of installed, 95 % interval | p50 of one caller of installed |"
    ]
    lines.append("|---|---|---|---|")
    for one in record["settings"]:
        lines.append(
            f"| {'*' if one['label'] in front else ''} | {one['label']} "
            f"| {_of_installed(one, 'throughput')} | {_of_installed(one, 'p50')} |"
        )
    lines += ["", *tune_report.conclusion(record)]
    lines += ["", f"{record['what']}; {_made(record)}."]
    return "\n".join(lines)


def soaked(record: Mapping[str, Any]) -> str:
    """One sentence; the plot shows the rest."""
    return (
        f"{record['callers']} callers; {soak_summary(dict(record))}; {_made(record['provenance'])}."
    )


def growth(part: str, record: Mapping[str, Any]) -> str:
    """A part of `make growth`; its plot follows."""
    how = f"Points of {record['seconds']:g} s; {record['embedder']}, {record['engine']}"
    return f"{growth_tables.markdown(part, record)}\n\n{how}; {_made(record)}."


SECTIONS: Final[Mapping[str, tuple[str, Callable[[Mapping[str, Any]], str]]]] = {
    "bench": ("bench/bench.json", bench),
    "closed loop": ("load/closed-loop/report.json", load),
    "open loop": ("load/open-loop/report.json", load),
    "capacity": ("capacity/capacity.json", capacity),
    "loadgen": ("loadgen/loadgen.json", loadgen),
    "tune": ("tune/tune.json", tune),
    "soak": ("soak/soak.json", soaked),
    **{
        f"growth: {part}": (f"growth/{part}.json", partial(growth, part))
        for part in growth_tables.PARTS
    },
}


def _of_installed(one: Mapping[str, Any], name: str) -> str:
    return told(bounded(one[f"{name}_of_installed"], one[f"{name}_interval"]))


def _overload_rows(overload: list[Mapping[str, Any]]) -> Iterator[str]:
    for one in overload:
        memory = "-" if one["memory_mb"] is None else f"{one['memory_mb']:.0f}"
        yield (
            f"| {one['factor']:g} | {one['offered']:.0f} | {one['goodput']:.0f} "
            f"| {one['refused']:.0f} | {one['expired']:.0f} | {memory} |"
        )


def _made(record: Mapping[str, Any]) -> str:
    machine = record["machine"]
    engine = f"{record['server']['engine']}; " if "server" in record else ""
    return (
        f"{engine}commit {record['commit']}, {record['date']}, {machine['cpu']}, "
        f"{machine['cores']} cores, load average at the end {machine['load_average'][0]:g}"
    )


def program() -> None:
    """Parse the command line and run."""
    typer.run(main)


if __name__ == "__main__":
    program()
