"""`make load`: Locust against a server, closed loop and open loop, with a report of each.

    HOST=127.0.0.1:8001 RATE=100 SLO_P99_MS=100 make load

Without HOST the installed engine is served for the length of the test. Without RATE the open
loop offers 60 % of what the closed loop reached. The exit code is 1 when a request failed, or
when the open loop missed the SLO; the closed loop's latencies decide nothing.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import STDOUT
from typing import Annotated, Any, Final

import typer
from rich.progress import Progress
from rich.table import Table

from unified_embedding.checkout import ROOT
from unified_embedding.errors import EmbeddingError
from unified_embedding.load.served import RESULTS, Served, console, fail, served
from unified_embedding.serving.local_server import child, end_in_order

SHARE_OF_CLOSED: Final = 0.6
WARM_UP_S: Final = 3.0
# What Locust takes to start and to end, beside the run itself.
OVERHEAD_S: Final = 5.0


class LoadFailed(Exception):
    """A run failed; the message says why and where its log is."""


@dataclass(frozen=True)
class Plan:
    """How both runs are made."""

    users: int
    seconds: float
    slo_p99_ms: float
    out: Path


def main(
    host: Annotated[str, typer.Option(envvar="HOST", help="gRPC address of the server")] = "",
    rate: Annotated[
        str, typer.Option(envvar="RATE", help="open loop: requests/s, or a profile of them")
    ] = "",
    users: Annotated[int, typer.Option(envvar="USERS", min=1, help="closed loop: callers")] = 8,
    seconds: Annotated[
        float, typer.Option(envvar="DURATION", min=1, help="seconds of each measured window")
    ] = 20,
    slo_p99_ms: Annotated[
        float,
        typer.Option(
            envvar="SLO_P99_MS", min=0, help="open loop: limit of p99 in milliseconds; 0: none"
        ),
    ] = 0,
    full: Annotated[bool, typer.Option(envvar="FULL", help="measure ten times as long")] = False,
    out: Annotated[Path, typer.Option(help="where the reports are written")] = RESULTS / "load",
) -> None:
    """Two runs of Locust, and what they found."""
    plan = Plan(users, seconds * (10 if full else 1), slo_p99_ms, out)
    whole = 2 * (plan.seconds + WARM_UP_S + OVERHEAD_S)
    console.print(f"load test: closed loop, then open loop; about {whole:.0f} s")
    try:
        with served(host) as server:
            closed = run("ClosedLoop", ["-u", str(users), "-r", str(users)], 0, plan, server)
            offered = rate or f"{SHARE_OF_CLOSED * closed['completed_per_s']:.1f}"
            opened = run("OpenLoop", ["-u", "1", "--rate", offered], slo_p99_ms, plan, server)
    except (EmbeddingError, LoadFailed) as error:
        fail(error)
    console.print(table([closed, opened]))
    console.print(stages(opened))
    console.print(f"written: {out}/closed-loop/report.html, {out}/open-loop/report.html")
    slo = opened.get("slo")
    if slo is not None and not slo["held"]:
        fail(
            f"the SLO does not hold: {100 * slo['share_within']:.2f} % of the offered requests "
            f"were answered within {slo_p99_ms:g} ms"
        )


def run(
    user: str, options: Sequence[str], slo_p99_ms: float, plan: Plan, server: Served
) -> dict[str, Any]:
    """One run of Locust; returns its report.

    Raises:
        LoadFailed: it wrote no report, or requests failed.
    """
    folder = plan.out / ("closed-loop" if user == "ClosedLoop" else "open-loop")
    folder.mkdir(parents=True, exist_ok=True)
    report, log = folder / "report.json", folder / "locust.log"
    report.unlink(missing_ok=True)
    length = plan.seconds + WARM_UP_S
    command = [sys.executable, "-m", "locust", "-f", f"{ROOT / 'loadtest'}/", user, "--headless"]
    command += [*options, "-t", f"{length:.0f}s", "--host", server.url, "--only-summary"]
    command += ["--warm-up", str(WARM_UP_S), "--report", str(folder)]
    command += ["--slo-p99-ms", str(slo_p99_ms)]
    with log.open("w") as stream, Progress(console=console, transient=True) as progress:
        bar, began = progress.add_task(user, total=length + OVERHEAD_S), time.monotonic()
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with child(command, stdout=stream, stderr=STDOUT, env=environment) as process:
            while process.poll() is None:
                time.sleep(0.2)
                progress.update(bar, completed=time.monotonic() - began)
    if not report.exists():
        raise LoadFailed(f"{user} wrote no report: {_last_error(log)} ({log})")
    record: dict[str, Any] = json.loads(report.read_text())
    if record["failed"] or record["dropped"]:
        codes = {code: error["count"] for code, error in record["errors"].items()}
        raise LoadFailed(
            f"{user}: {record['failed']} requests failed {codes}, {record['dropped']} were "
            f"dropped, {record['completed']} were answered ({folder / 'report.html'})"
        )
    return record


def table(records: Sequence[dict[str, Any]]) -> Table:
    """The runs side by side."""
    found = Table(title="requests per second, and milliseconds", title_justify="left")
    # As many as a terminal of 80 columns shows whole; the reports have them all.
    for name in ("load", "offered", "answered", "p50", "p99", "p99.9", "max", "CPU-ms"):
        found.add_column(name, justify="left" if name == "load" else "right")
    for record in records:
        tails = record["latency_ms"]
        cpu = record["server"].get("cpu_ms_per_image")
        found.add_row(
            record["load"],
            f"{record['offered_per_s']:.1f}",
            f"{record['completed_per_s']:.1f}",
            *(f"{tails[name]:.1f}" for name in ("p50", "p99", "p99.9", "max")),
            "-" if cpu is None else f"{cpu:.2f}",
        )
    return found


def stages(record: dict[str, Any]) -> Table:
    """A mean request of a run, by stage."""
    found = Table(title=f"a mean request of the {record['load']}", title_justify="left")
    found.add_column("stage")
    found.add_column("ms", justify="right")
    for name, mean in record["server"]["stages_ms"].items():
        found.add_row(name, f"{mean:.2f}")
    return found


def _last_error(log: Path) -> str:
    errors = [
        line for line in log.read_text().splitlines() if "/ERROR/" in line or "locust:" in line
    ]
    return errors[0].split(": ", 1)[-1] if errors else "it ended early"


if __name__ == "__main__":
    end_in_order()
    typer.run(main)
