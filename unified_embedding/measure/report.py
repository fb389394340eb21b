"""The report of one load test: a record, a page with plots, and the timeline as CSV."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from unified_embedding.measure import html
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
_TAIL: Final = ("mean", "p50", "p90", "p95", "p99", "p99.9", "max")
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
    good, sentence = verdict(record)
    return html.render(
        "load.html",
        title=f"Load test, {record['load']}",
        open_loop=record["load"] == OPEN_LOOP,
        percentiles=_TAIL,
        good=good,
        verdict=sentence,
        plots=_plots(record),
        **{"slo": None, "server": None, **record},
    )


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
