"""The report of one load test: a record, a page with plots, and the timeline as CSV."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Final

from unified_embedding.measure.files import write_csv, write_json, write_text
from unified_embedding.measure.plots import Axis, Series, line_chart
from unified_embedding.measure.recorder import Recorder
from unified_embedding.measure.watch import Observed

OPEN_LOOP: Final = "open loop"
CLOSED_LOOP: Final = "closed loop"
MEANING: Final = {
    OPEN_LOOP: (
        "Open loop: requests are due by a Poisson process whether or not earlier ones were "
        "answered, as independent callers send them. Latency counts from the moment a request "
        "was due, so a stall of the server shows in full."
    ),
    CLOSED_LOOP: (
        "Closed loop: each of N users sends its next request when the last one was answered. It "
        "finds the throughput of N callers; its latency percentiles hide stalls, because users "
        "who wait send nothing. Take tail latencies from an open-loop run."
    ),
}
SLO_PERCENTILE: Final = 99
_TIMELINE: Final = ("second", "offered", "dropped", "completed", "failed", "p50_ms", "max_ms")


@dataclass(frozen=True)
class LoadTest:
    """A finished run.

    Attributes:
        kind: OPEN_LOOP or CLOSED_LOOP.
        settings: the options it ran with.
        seconds: length of the measured window.
        recorder: what happened to its requests.
        observed: what the server said and used, when it could be asked.
        slo_p99_ms: limit that 99 % of the offered requests must meet, or None.
        provenance: see `provenance.provenance`.
    """

    kind: str
    settings: Mapping[str, Any]
    seconds: float
    recorder: Recorder
    observed: Observed | None
    slo_p99_ms: float | None
    provenance: Mapping[str, Any]

    @property
    def slo_held(self) -> bool | None:
        """Whether 99 % of the offered requests were answered correctly within the limit.

        Failed and dropped requests count as too late. None when no limit was set.
        """
        if self.slo_p99_ms is None:
            return None
        return self.recorder.share_within(self.slo_p99_ms / 1000) >= SLO_PERCENTILE / 100

    def record(self) -> dict[str, Any]:
        """Everything as JSON values; rates are per second, times in milliseconds."""
        recorder, seconds = self.recorder, max(self.seconds, 1e-9)
        record: dict[str, Any] = {
            "load": self.kind,
            "meaning": MEANING[self.kind],
            "seconds": self.seconds,
            "offered": recorder.offered,
            "completed": recorder.completed,
            "failed": recorder.failed,
            "dropped": recorder.dropped,
            "errors": {
                code: {"count": count, "example": recorder.examples[code]}
                for code, count in recorder.errors.most_common()
            },
            "offered_per_s": recorder.offered / seconds,
            "completed_per_s": recorder.completed / seconds,
            "images_per_s": recorder.images / seconds,
            "latency_ms": recorder.latencies.summary(),
            "from_sending_ms": recorder.service.summary(),
            "generator_late_ms": recorder.lateness.summary(),
        }
        if self.slo_p99_ms is not None:
            record["slo"] = {
                "p99_ms": self.slo_p99_ms,
                "share_within": recorder.share_within(self.slo_p99_ms / 1000),
                "held": self.slo_held,
            }
        if self.observed is not None:
            record["server"] = self.observed.record(
                recorder.images, self.seconds, recorder.service.mean_ms
            )
        record["settings"] = dict(self.settings)
        record["timeline"] = self.timeline()
        record["provenance"] = dict(self.provenance)
        return record

    def timeline(self) -> list[dict[str, float]]:
        """One entry per second of the window, quiet seconds included."""
        seconds = self.recorder.timeline
        entries = []
        for number in range(max(seconds, default=-1) + 1):
            one = seconds.get(number)
            values = (
                (0, 0, 0, 0, 0.0, 0.0)
                if one is None
                else (
                    one.offered,
                    one.dropped,
                    one.completed,
                    one.failed,
                    one.latencies.percentile_ms(50),
                    one.latencies.longest_ms,
                )
            )
            entries.append(dict(zip(_TIMELINE, (number, *values), strict=True)))
        return entries

    def write(self, folder: Path) -> dict[str, Any]:
        """Write report.json, report.html and timeline.csv into `folder`; return the record."""
        record = self.record()
        rows = [[entry[name] for name in _TIMELINE] for entry in record["timeline"]]
        write_csv(folder / "timeline.csv", _TIMELINE, rows)
        write_text(folder / "report.html", page(record))
        write_json(folder / "report.json", record)
        return record


def page(record: Mapping[str, Any]) -> str:
    """The report as one HTML page that needs nothing else."""
    sections = [
        f"<h1>Load test, {escape(record['load'])}</h1>",
        _summary(record),
        _table("Requests", _request_rows(record)),
        _table("Latency, ms", _tail_rows(record), header=_TAIL_HEADER),
        f"<p>{escape(record['meaning'])}</p>",
        *_plots(record),
    ]
    server = record.get("server")
    if server:
        sections.append(_table("A mean request, ms by stage", _rounded(server["stages_ms"])))
        sections.append(_table("Mean batch by model", _rounded(server["mean_batch"])))
        sections.append(_server_cpu(server))
    if record["errors"]:
        rows = [
            (code, str(error["count"]), error["example"])
            for code, error in record["errors"].items()
        ]
        sections.append(_table("Errors by code", rows, header=("code", "count", "one of them")))
    for name in ("settings", "provenance"):
        text = json.dumps(record[name], indent=2)
        sections.append(f"<details><summary>{name}</summary><pre>{escape(text)}</pre></details>")
    return _PAGE.format(title=escape(f"Load test, {record['load']}"), body="\n".join(sections))


def verdict(record: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether the run is good, and why, in a line."""
    lost = record["failed"] + record["dropped"]
    slo = record.get("slo")
    told = []
    if not record["completed"]:
        told.append("no request was answered")
    elif lost:
        told.append(f"{lost:,} of {record['offered']:,} requests failed or were dropped")
    else:
        told.append(f"all {record['completed']:,} requests were answered")
    if slo:
        held = "held" if slo["held"] else "NOT held"
        told.append(f"the SLO of 99 % within {slo['p99_ms']:g} ms was {held}")
    good = bool(record["completed"]) and not lost and (not slo or slo["held"])
    return good, "; ".join(told)


def _summary(record: Mapping[str, Any]) -> str:
    """What was measured, on what, by whom, and how it ended: the first thing that is read."""
    settings, provenance = record["settings"], record["provenance"]
    server, machine = provenance.get("server") or {}, provenance.get("machine") or {}
    load = ", ".join(
        f"{settings[key]} {word}"
        for key, word in (("users", "users"), ("rate", "requests/s due"))
        if settings.get(key) and (key != "rate" or record["load"] == OPEN_LOOP)
    )
    good, sentence = verdict(record)
    rows = (
        ("server", settings.get("host")),
        ("engine", server.get("engine")),
        ("embedder", server.get("version")),
        ("load", load),
        (
            "rate",
            f"{record['completed_per_s']:.1f} requests/s, {record['images_per_s']:.1f} images/s",
        ),
        (
            "latency",
            f"p50 {record['latency_ms']['p50']:.1f} ms, p99 {record['latency_ms']['p99']:.1f} ms",
        ),
        ("client's machine", f"{machine['cores']} cores, {machine['cpu']}" if machine else ""),
        ("date", provenance.get("date")),
    )
    lines = [f"<dt>{name}</dt><dd>{escape(str(value))}</dd>" for name, value in rows if value]
    kind = "good" if good else "bad"
    return f'<p class="{kind}">{escape(sentence)}</p>\n<dl>{"".join(lines)}</dl>'


def _request_rows(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [
        ("measured window", f"{record['seconds']:.1f} s (warm-up excluded)"),
        ("offered", f"{record['offered']:,} requests, {record['offered_per_s']:.1f} per second"),
        (
            "answered",
            f"{record['completed']:,} requests, {record['completed_per_s']:.1f} per second; "
            f"{record['images_per_s']:.1f} images/s",
        ),
        ("failed", f"{record['failed']:,}"),
        ("dropped (not sent, too many in flight)", f"{record['dropped']:,}"),
    ]
    slo = record.get("slo")
    if slo:
        verdict = "held" if slo["held"] else "NOT held"
        rows.append(
            (
                f"SLO: 99 % within {slo['p99_ms']:g} ms",
                f"{verdict}: {100 * slo['share_within']:.2f} % of the offered requests",
            )
        )
    return rows


_TAIL_HEADER: Final = ("", "mean", "p50", "p90", "p95", "p99", "p99.9", "max")


def _tail_rows(record: Mapping[str, Any]) -> list[tuple[str, ...]]:
    names = {
        "latency_ms": "from due" if record["load"] == OPEN_LOOP else "from sending",
        "generator_late_ms": "sent after due (the load generator's own delay)",
    }
    if record["load"] == OPEN_LOOP:
        names["from_sending_ms"] = "from sending (hides what the generator waited for)"
    return [
        (title, *(f"{record[key][name]:.1f}" for name in _TAIL_HEADER[1:]))
        for key, title in names.items()
    ]


def _plots(record: Mapping[str, Any]) -> list[str]:
    timeline = record["timeline"]

    def series(key: str, name: str) -> Series:
        return Series(name, [(entry["second"], entry[key]) for entry in timeline])

    rates = [series("offered", "offered"), series("completed", "answered")]
    rates += [series(key, key) for key in ("failed", "dropped") if record[key]]
    seconds = Axis("seconds into the window")
    return [
        line_chart("Requests per second", seconds, Axis("requests/s"), rates),
        line_chart(
            "Latency by the second a request was due in",
            seconds,
            Axis("ms", log=True),
            [series("p50_ms", "p50"), series("max_ms", "max")],
        ),
    ]


def _server_cpu(server: Mapping[str, Any]) -> str:
    if server.get("cpu_ms_per_image") is None:
        return "<p>CPU and memory: the server's processes are not on this machine.</p>"
    memory = server["memory_mb"]
    rows = [
        ("CPU-ms per image, all processes", f"{server['cpu_ms_per_image']:.2f}"),
        *(
            (f"of these: {part}", f"{value:.2f}")
            for part, value in server["cpu_ms_per_image_by_process"].items()
        ),
        ("cores busy with the server", f"{server['cores_busy']:.2f}"),
        (
            "memory, MB",
            f"start {memory['start']:.0f}, end {memory['end']:.0f}, peak {memory['peak']:.0f}",
        ),
    ]
    return _table("The server's CPU and memory", rows)


def _rounded(values: Mapping[str, float]) -> list[tuple[str, str]]:
    return [(name, f"{value:.2f}") for name, value in values.items()]


def _table(title: str, rows: Sequence[Sequence[str]], header: Sequence[str] = ()) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    lines = [f"<tr>{head}</tr>"] if header else []
    for row in rows:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in row)
        lines.append(f"<tr>{cells}</tr>")
    body = "\n".join(lines)
    return f'<h2>{escape(title)}</h2>\n<div class="wide"><table>\n{body}\n</table></div>'


_PAGE: Final = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
:root {{ --paper: #fff; --ink: #1b1d21; --soft: #5e636b; --line: #ddd;
  --good: #17703c; --bad: #b3261e }}
@media (prefers-color-scheme: dark) {{
:root {{ --paper: #131417; --ink: #eceef1; --soft: #a0a6b0; --line: #34373d;
  --good: #5fcf8e; --bad: #ff8d85 }}
}}
body {{ font: 15px/1.5 sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em;
  background: var(--paper); color: var(--ink); overflow-wrap: anywhere }}
.good, .bad {{ font-size: 1.2em; font-weight: bold; border-left: 5px solid; padding-left: .7em }}
.good {{ color: var(--good) }}
.bad {{ color: var(--bad) }}
dl {{ display: grid; grid-template-columns: auto 1fr; gap: .2em 1em }}
dt {{ color: var(--soft) }}
dd {{ margin: 0 }}
.wide {{ overflow-x: auto; overflow-wrap: normal }}
table {{ border-collapse: collapse }}
td, th {{ border-bottom: 1px solid var(--line); padding: .2em .8em .2em 0; text-align: left }}
svg {{ max-width: 100%; display: block; margin: 1em 0 }}
pre {{ border: 1px solid var(--line); padding: 1em; overflow: auto }}
</style>
{body}
</html>
"""
