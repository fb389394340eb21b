"""`make capacity`: how many requests per second this server takes, and at what latency.

    HOST=127.0.0.1:8001 SLO_P99_MS=100 make capacity

Finds the highest Poisson rate at which 99 % of the requests are answered within the objective,
beside the closed loop's maximum; draws latency over throughput with its knee; and offers up to
three times the capacity with deadlines, to see what is still answered.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.progress import Progress
from rich.table import Table

from unified_embedding.checkout import ROOT
from unified_embedding.errors import EmbeddingError
from unified_embedding.load.served import (
    RESULTS,
    Served,
    console,
    fail,
    pictures,
    served,
)
from unified_embedding.measure import html
from unified_embedding.measure.arrivals import RateProfile
from unified_embedding.measure.files import write_csv, write_json, write_text
from unified_embedding.measure.generator import Request, closed_loop, open_loop
from unified_embedding.measure.plots import Axis, Series, line_chart
from unified_embedding.measure.poisson_limit import (
    PRECISION,
    WARM_UP_S,
    Trial,
    highest_rate,
    poisson_trial,
)
from unified_embedding.measure.provenance import provenance
from unified_embedding.measure.recorder import Recorder
from unified_embedding.measure.requests import client_of, embed_request
from unified_embedding.serving.local_server import end_in_order

CONCURRENCY: Final = 32
CURVE: Final = (0.1, 0.25, 0.4, 0.55, 0.7, 0.8, 0.9, 1.0, 1.1)
OVERLOAD: Final = (0.5, 1.0, 1.5, 2.0, 3.0)
OVERLOAD_TIMEOUT_S: Final = 1.0
# Trials that a bisection of three repeats makes, about.
_TRIALS: Final = 14


@dataclass(frozen=True)
class Overload:
    """What happens at a multiple of the capacity, when every caller gives up after a second.

    Attributes:
        factor: offered rate over the closed loop's maximum.
        offered, goodput, refused, expired: requests per second.
        memory_mb: what the server's processes hold at the end, when they are on this machine.
    """

    factor: float
    offered: float
    goodput: float
    refused: float
    expired: float
    memory_mb: float | None


def main(
    host: Annotated[str, typer.Option(envvar="HOST", help="gRPC address of the server")] = "",
    slo_p99_ms: Annotated[
        float, typer.Option(envvar="SLO_P99_MS", min=1, help="limit of p99 in milliseconds")
    ] = 100,
    seconds: Annotated[
        float, typer.Option(envvar="DURATION", min=1, help="seconds of a trial")
    ] = 8,
    seed: Annotated[int, typer.Option(help="seed of the arrivals")] = 0,
    full: Annotated[bool, typer.Option(envvar="FULL", help="trials four times as long")] = False,
    out: Annotated[Path, typer.Option(help="where the result is written")] = RESULTS / "capacity",
) -> None:
    """Measure capacity, curve and overload."""
    seconds *= 4 if full else 1
    trial_s = seconds + WARM_UP_S
    whole = 2 * trial_s + _TRIALS * trial_s + (len(CURVE) + len(OVERLOAD)) * trial_s
    console.print(f"capacity at p99 <= {slo_p99_ms:g} ms; about {whole / 60:.0f} minutes")
    try:
        with served(host) as server:
            result = asyncio.run(measure(server, slo_p99_ms, seconds, seed))
    except EmbeddingError as error:
        fail(error)
    write(result, out)
    show(result)
    console.print(f"written: {out}/capacity.json, {out}/capacity.html")


async def measure(server: Served, slo_p99_ms: float, seconds: float, seed: int) -> dict[str, Any]:
    """Everything, as JSON values."""
    images = pictures()
    async with client_of(server.url, patience_s(slo_p99_ms), server.connection) as client:
        request = embed_request(client, images)
        with steps("closed loop") as step:
            loop, maximum = await closed_maximum(request, seconds)
            step(f"{maximum:.0f}/s at concurrency {CONCURRENCY}")
        with steps("highest Poisson rate") as step:
            rate, trials = await search(request, maximum, seconds, slo_p99_ms, seed, step)
        with steps("latency over throughput") as step:
            curve = []
            for share in CURVE:
                found = await poisson_trial(
                    request, share * maximum, seconds, slo_p99_ms, seed + 1000
                )
                curve.append(found)
                step(f"{found.rate:.0f}/s: p50 {found.p50_ms:.1f} ms, p99 {found.p99_ms:.1f} ms")
    with steps("overload") as step:
        overload = []
        async with client_of(server.url, OVERLOAD_TIMEOUT_S, server.connection) as client:
            request = embed_request(client, images)
            for factor in OVERLOAD:
                overload.append(await overloaded(server, request, factor, maximum, seconds, seed))
                step(f"{factor:g} x: {overload[-1].goodput:.0f}/s answered")
    return {
        "slo_p99_ms": slo_p99_ms,
        "highest_poisson_rate": rate,
        "precision": PRECISION,
        "closed_loop": {
            "concurrency": CONCURRENCY,
            "per_s": maximum,
            "latency_ms": loop.latencies.summary(),
        },
        "knee_rate": knee(curve).rate,
        "trials": [asdict(found) | {"held": found.held} for found in trials],
        "curve": [asdict(found) for found in curve],
        "overload": [asdict(found) for found in overload],
        "provenance": provenance(ROOT, server.info, seed, trial_seconds=seconds),
    }


def patience_s(slo_p99_ms: float) -> float:
    """Callers who wait four times as long as they like have given up."""
    return max(1.0, 4 * slo_p99_ms / 1000)


async def closed_maximum(request: Request, seconds: float) -> tuple[Recorder, float]:
    """The closed loop of `CONCURRENCY` callers over two trials' time, and its requests/s."""
    loop = await closed_loop(request, CONCURRENCY, 2 * seconds, WARM_UP_S)
    return loop, loop.completed / (2 * seconds)


async def search(
    request: Request, maximum: float, seconds: float, slo_p99_ms: float, seed: int, step: Any
) -> tuple[float, list[Trial]]:
    """The highest rate that holds, reporting every trial."""

    async def trial(rate: float, number: int) -> Trial:
        found = await poisson_trial(request, rate, seconds, slo_p99_ms, seed + number)
        verdict = "held" if found.held else "not held"
        step(f"{rate:.0f}/s: {100 * found.share:.2f} % in time, {verdict}")
        return found

    return await highest_rate(trial, upper=1.2 * maximum)


async def overloaded(
    server: Served, request: Request, factor: float, maximum: float, seconds: float, seed: int
) -> Overload:
    """Offer `factor` times the maximum."""
    profile = RateProfile.parse(f"{factor * maximum!r}")
    recorder = await open_loop(request, profile, seconds, seed, WARM_UP_S)
    return Overload(
        factor=factor,
        offered=recorder.offered / seconds,
        goodput=recorder.completed / seconds,
        refused=recorder.errors["CANCELLED"] / seconds,
        expired=recorder.errors["DEADLINE_EXCEEDED"] / seconds,
        memory_mb=server.tree.usage().memory_mb if server.tree else None,
    )


def knee(curve: Sequence[Trial]) -> Trial:
    """Where throughput over mean latency is largest: more load costs more than it brings.

    Kleinrock, Power and deterministic rules of thumb for probabilistic problems in computer
    communications, ICC 1979.
    """
    return max(curve, key=lambda trial: trial.answered / trial.mean_ms if trial.mean_ms else 0.0)


@contextmanager
def steps(title: str) -> Iterator[Any]:
    """A spinner that says what was found last."""
    with Progress("{task.description}", transient=True, console=console) as progress:
        task = progress.add_task(title)

        def step(found: str) -> None:
            progress.update(task, description=f"{title}: {found}")

        yield step


def write(result: dict[str, Any], out: Path) -> None:
    """capacity.json, capacity.html, the curve and the overload as CSV, and both plots."""
    curve, overload = result["curve"], result["overload"]
    for name, rows in (("curve", curve), ("overload", overload)):
        write_csv(out / f"{name}.csv", list(rows[0]), [list(row.values()) for row in rows])
    plots = {
        "latency.svg": line_chart(
            f"Latency over throughput (knee at {result['knee_rate']:.0f}/s)",
            Axis("answered requests/s"),
            Axis("ms", log=True),
            [
                Series(name, [(row["answered"], row[f"{name}_ms"]) for row in curve])
                for name in ("p50", "p99")
            ],
        ),
        "overload.svg": line_chart(
            f"Beyond capacity, callers give up after {OVERLOAD_TIMEOUT_S:g} s",
            Axis("offered requests/s"),
            Axis("requests/s"),
            [
                Series(name, [(row["offered"], row[name]) for row in overload])
                for name in ("goodput", "refused", "expired")
            ],
        ),
    }
    for name, svg in plots.items():
        write_text(out / name, svg)
    page = html.render("capacity.html", title="Capacity", plots=plots.values(), **result)
    write_text(out / "capacity.html", page)
    write_json(out / "capacity.json", result)


def show(result: dict[str, Any]) -> None:
    """Print the result for people."""
    console.print(
        f"[bold]{result['highest_poisson_rate']:.0f} requests/s[/] hold p99 <= "
        f"{result['slo_p99_ms']:g} ms; the closed loop reaches "
        f"{result['closed_loop']['per_s']:.0f}/s at concurrency {CONCURRENCY}; knee at "
        f"{result['knee_rate']:.0f}/s"
    )
    curve = Table(title="latency over throughput", title_justify="left")
    for name in ("offered/s", "answered/s", "p50 ms", "p99 ms"):
        curve.add_column(name, justify="right")
    for row in result["curve"]:
        values = (row["rate"], row["answered"], row["p50_ms"], row["p99_ms"])
        curve.add_row(*(f"{value:.1f}" for value in values))
    console.print(curve)
    overload = Table(title="overload, deadlines of 1 s", title_justify="left")
    for name in ("x capacity", "offered/s", "answered/s", "refused/s", "expired/s", "memory MB"):
        overload.add_column(name, justify="right")
    for row in result["overload"]:
        values = (row["offered"], row["goodput"], row["refused"], row["expired"])
        memory = "-" if row["memory_mb"] is None else f"{row['memory_mb']:.0f}"
        overload.add_row(f"{row['factor']:g}", *(f"{value:.1f}" for value in values), memory)
    console.print(overload)


def program() -> None:
    """Parse the command line and run."""
    end_in_order()
    typer.run(main)


if __name__ == "__main__":
    program()
