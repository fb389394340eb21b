"""`make capacity`: how many requests per second this server takes, and at what latency.

    HOST=127.0.0.1:8001 SLO_P99_MS=100 make capacity

Finds the highest Poisson rate at which 99 % of the requests are answered within the objective,
beside the closed loop's maximum; draws latency over throughput with its knee; and offers up to
three times the capacity with deadlines, to see what is still answered. What is set against the
maximum is measured in short rounds with it, until the ratios' intervals are narrow or clearly on
one side of their targets, or the time is up.
"""

import asyncio
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.progress import Progress
from rich.table import Table

from unified_embedding.checkout import ROOT
from unified_embedding.errors import EmbeddingError
from unified_embedding.load.served import RESULTS, Served, console, fail, pictures, served
from unified_embedding.load.targets import OVERLOAD as OVERLOAD_TARGETS
from unified_embedding.measure import html
from unified_embedding.measure.arrivals import RateProfile
from unified_embedding.measure.files import write_csv, write_json, write_text
from unified_embedding.measure.generator import Request, closed_loop, open_loop
from unified_embedding.measure.paired import geometric_mean, told
from unified_embedding.measure.plots import Axis, Series, line_chart
from unified_embedding.measure.poisson_limit import WARM_UP_S, LimitSearch, Trial, poisson_trial
from unified_embedding.measure.provenance import provenance
from unified_embedding.measure.questions import (
    AskedRounds,
    Question,
    bounded,
    bounds,
    ratio_table,
)
from unified_embedding.measure.recorder import Recorder
from unified_embedding.measure.requests import CLOSED_LOOP_TIMEOUT_S, client_of, embed_request
from unified_embedding.measure.rounds import counting
from unified_embedding.serving.local_server import end_in_order

CONCURRENCY: Final = 32
CURVE: Final = (0.1, 0.25, 0.4, 0.55, 0.7, 0.8, 0.9, 1.0, 1.1)
OVERLOAD: Final = (0.5, 1.0, 1.5, 2.0, 3.0)
OVERLOAD_TIMEOUT_S: Final = 1.0
LOOP_WARM_UP_S: Final = 1.0
SETTLING_S: Final = 0.5
LOOP, POISSON = "closed loop", "Poisson"
# Of the time in all: what stopping the server takes.
_ENDING_S: Final = 5


@dataclass(frozen=True)
class Plan:
    """How a server is measured.

    Attributes:
        slo_p99_ms: the objective.
        seconds: of one trial.
        until: when the last round has to be over (time.monotonic).
        width: of a ratio's interval that is narrow enough, high / low - 1.
        seed: of arrivals and order.
    """

    slo_p99_ms: float
    seconds: float
    until: float
    width: float
    seed: int


@dataclass(frozen=True)
class Callers:
    """The same requests, by how long the caller waits.

    Attributes:
        steady: as long as it takes, in a closed loop.
        patient: some times as long as the objective, see `patience_s`.
        hurried: a second.
    """

    steady: Request
    patient: Request
    hurried: Request


def main(
    host: Annotated[str, typer.Option(envvar="HOST", help="gRPC address of the server")] = "",
    slo_p99_ms: Annotated[
        float, typer.Option(envvar="SLO_P99_MS", min=1, help="limit of p99 in milliseconds")
    ] = 100,
    seconds: Annotated[
        float, typer.Option(envvar="DURATION", min=1, help="seconds of a trial")
    ] = 2,
    minutes: Annotated[float, typer.Option(min=0, help="time in all")] = 5,
    width: Annotated[
        float, typer.Option(min=0, help="width of a ratio's interval that ends the rounds")
    ] = 0.04,
    seed: Annotated[int, typer.Option(help="seed of arrivals and order")] = 0,
    full: Annotated[bool, typer.Option(envvar="FULL", help="take four times as long")] = False,
    out: Annotated[Path, typer.Option(help="where the result is written")] = RESULTS / "capacity",
) -> None:
    """Measure capacity, curve and overload."""
    minutes *= 4 if full else 1
    until = time.monotonic() + 60 * minutes - _ENDING_S
    plan = Plan(slo_p99_ms, seconds, until, width, seed)
    console.print(f"capacity at p99 <= {slo_p99_ms:g} ms: {minutes:g} minutes at most")
    try:
        with served(host) as server:
            result = asyncio.run(measure(server, plan))
    except EmbeddingError as error:
        fail(error)
    write(result, out)
    show(result)
    console.print(f"written: {out}/capacity.json, {out}/capacity.html")


async def measure(server: Served, plan: Plan) -> dict[str, Any]:
    """Everything, as JSON values."""
    images, seconds, slo_p99_ms = pictures(), plan.seconds, plan.slo_p99_ms
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(client_of(server.url, wait, server.connection))
            for wait in (CLOSED_LOOP_TIMEOUT_S, patience_s(slo_p99_ms), OVERLOAD_TIMEOUT_S)
        ]
        callers = Callers(*(embed_request(client, images) for client in clients))
        with steps("closed loop") as step:
            loop, maximum = await closed_maximum(callers.steady, seconds)
            step(f"{maximum:.0f}/s at concurrency {CONCURRENCY}")
        with steps("latency over throughput") as step:
            curve = []
            for share in CURVE:
                found = await poisson_trial(
                    callers.patient, share * maximum, seconds, slo_p99_ms, plan.seed + 1000
                )
                curve.append(found)
                step(f"{found.rate:.0f}/s: p50 {found.p50_ms:.1f} ms, p99 {found.p99_ms:.1f} ms")
        # Where the objective ended to hold is where to search: every trial saved is for rounds.
        start = max((one.rate for one in curve if one.held), default=curve[0].rate)
        rounds = await in_rounds(server, callers, maximum, start, plan)
    cells, middle = rounds.cells, rounds.medians()
    rates = cells[POISSON]
    rate = geometric_mean([rates[one]["per_s"] for one in counting(rates, rounds.quiet)])
    return {
        "slo_p99_ms": slo_p99_ms,
        "highest_poisson_rate": rate.mean,
        "highest_poisson_interval": bounds(rate),
        "closed_loop": {
            "concurrency": CONCURRENCY,
            "per_s": middle[LOOP]["per_s"],
            "latency_ms": loop.latencies.summary(),
        },
        "knee_rate": knee(curve).rate,
        "curve": [asdict(found) for found in curve],
        "overload": [overload_row(factor, middle[beyond(factor)]) for factor in OVERLOAD],
        "ratios": [one.record() for one in rounds.answers()],
        "rounds": rounds.record(),
        "cells": cells,
        "width": plan.width,
        "provenance": provenance(ROOT, server.info, plan.seed, trial_seconds=seconds),
    }


async def in_rounds(
    server: Served, callers: Callers, maximum: float, start: float, plan: Plan
) -> AskedRounds:
    """The closed loop, a search for the highest Poisson rate, and overload, in random order.

    `maximum` is the closed loop's first rate; the first search starts around `start`.
    """
    draw, seconds = random.Random(plan.seed), plan.seconds
    found = [maximum]

    async def one_loop() -> dict[str, float]:
        loop = closed_loop(callers.steady, CONCURRENCY, seconds, LOOP_WARM_UP_S)
        recorder, cpu = await with_cpu(server, loop, LOOP_WARM_UP_S, seconds)
        rates = _rates(recorder, seconds, cpu)
        found.append(rates["per_s"])
        return rates

    async def too_much(factor: float) -> dict[str, float]:
        # Of all closed loops so far: a single one is a sixth off on a shared machine.
        rate = factor * statistics.median(found)
        return await overloaded(server, callers.hurried, rate, seconds, draw)

    async def trial(rate: float, number: int) -> Trial:
        return await poisson_trial(callers.patient, rate, seconds, plan.slo_p99_ms, number)

    search = LimitSearch(trial, start, draw)

    async def one_search() -> dict[str, float]:
        rate, _ = await search.find()
        return {"per_s": rate}

    making: dict[str, Callable[[], Awaitable[dict[str, float]]]] = {
        LOOP: one_loop,
        POISSON: one_search,
    }
    for factor in OVERLOAD:
        making[beyond(factor)] = partial(too_much, factor)
    rounds = AskedRounds(
        questions(costed=server.tree is not None),
        plan.until,
        plan.width,
        trees=[server.tree] if server.tree else [],
    )
    with steps("rounds") as step:
        for number in rounds:
            await rounds.measure(number, making, draw, step)
    return rounds


def overload_row(factor: float, found: Mapping[str, float]) -> dict[str, float | None]:
    """Requests per second at a multiple of the closed loop's maximum, for tables and plots."""
    names = {name: found[name] for name in ("offered", "refused", "expired")}
    return {
        "factor": factor,
        **names,
        "goodput": found["per_s"],
        "memory_mb": found.get("memory_mb"),
    }


async def with_cpu(
    server: Served, loop: Awaitable[Recorder], warm_up: float, seconds: float
) -> tuple[Recorder, float | None]:
    """A loop's recorder, and the CPU seconds that the server used while it was recorded.

    None for them when the server's processes are elsewhere.
    """
    if server.tree is None:
        return await loop, None
    tree, running = server.tree, asyncio.ensure_future(loop)
    await asyncio.sleep(warm_up)
    before = tree.usage()
    await asyncio.sleep(seconds)
    used = sum(tree.usage().cpu_since(before).values())
    return await running, used


def _rates(recorder: Recorder, seconds: float, cpu: float | None) -> dict[str, float]:
    """Answers per second, and per CPU second of the server.

    No answer counts as one, since a ratio's logarithm needs something.
    """
    count = max(1, recorder.completed)
    return {"per_s": count / seconds} | ({"per_cpu_s": count / cpu} if cpu else {})


def beyond(factor: float) -> str:
    """Name of the cell in which `factor` times the maximum is offered."""
    return f"{factor:g} times the maximum offered"


def questions(*, costed: bool) -> list[Question]:
    """What is set against the closed loop's maximum of the same round.

    `costed`: the server's CPU time is known. A ratio by it leaves out what refused callers take
    from a server whose cores they share.
    """
    found = [
        Question("highest Poisson rate / closed loop's maximum", "per_s", POISSON, (LOOP,), None)
    ]
    for factor, target in OVERLOAD_TARGETS.items():
        name = f"answered within 1 s at {factor:g} times the maximum / that maximum"
        found.append(Question(name, "per_s", beyond(factor), (LOOP,), target))
        if costed:
            name = f"the same per CPU second of the server, {factor:g} times"
            found.append(Question(name, "per_cpu_s", beyond(factor), (LOOP,), None))
    return found


def patience_s(slo_p99_ms: float) -> float:
    """Callers who wait four times as long as they like have given up."""
    return max(1.0, 4 * slo_p99_ms / 1000)


async def closed_maximum(request: Request, seconds: float) -> tuple[Recorder, float]:
    """The closed loop of `CONCURRENCY` callers over two trials' time, and its requests/s."""
    loop = await closed_loop(request, CONCURRENCY, 2 * seconds, WARM_UP_S)
    return loop, loop.completed / (2 * seconds)


async def overloaded(
    server: Served, request: Request, rate: float, seconds: float, draw: random.Random
) -> dict[str, float]:
    """Offer `rate` requests/s when every caller gives up after a second.

    Returns:
        Requests per second that were offered, answered in time (per_s), refused and expired; when
        the server's processes are on this machine, also those answered per CPU second of theirs,
        and what they hold at the end.
    """
    profile = RateProfile.parse(f"{rate!r}")
    loop = open_loop(request, profile, seconds, draw.randrange(1 << 30), WARM_UP_S)
    recorder, cpu = await with_cpu(server, loop, WARM_UP_S, seconds)
    # The server finishes what nobody waits for any more.
    await asyncio.sleep(SETTLING_S)
    found = _rates(recorder, seconds, cpu) | {
        "offered": recorder.offered / seconds,
        "refused": recorder.errors["CANCELLED"] / seconds,
        "expired": recorder.errors["DEADLINE_EXCEEDED"] / seconds,
    }
    return found | ({"memory_mb": server.tree.usage().memory_mb} if server.tree else {})


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


def summary(result: Mapping[str, Any]) -> str:
    """The highest rate with its interval, the maximum and the knee, in a sentence."""
    rate = told(bounded(result["highest_poisson_rate"], result["highest_poisson_interval"]), 0)
    loop = result["closed_loop"]
    return (
        f"**{rate} requests/s** hold p99 <= {result['slo_p99_ms']:g} ms; the closed loop reaches "
        f"{loop['per_s']:.0f}/s at concurrency {loop['concurrency']}; knee at "
        f"{result['knee_rate']:.0f}/s"
    )


def show(result: dict[str, Any]) -> None:
    """Print the result for people."""
    console.print(f"{summary(result)}.", markup=False)
    table = ratio_table(result["ratios"])
    console.print("\n".join([*table, f"{result['rounds']['told']}."]), soft_wrap=True)
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
