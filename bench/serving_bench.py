"""`make bench`: our server beside its limit and beside what else one would use.

In one run, on the same pictures and the same engine:
  roofline      decode, engine and pack in one process on all cores: what the work itself costs
  our server    embedding and code over gRPC
  LitServe      the same engine and decoder, with one and with two workers
  FastAPI       torch eager in fp32, one picture at a time
They are measured in short rounds of one ratio each, in random order, until the interval of every
ratio that has a target is narrow, or clearly on one side of the target, or the time is up. Those
that are not measured are paused. Client and servers share the cores, so every table has the CPU
time of the server's own processes.
"""

import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from subprocess import PIPE, STDOUT
from typing import Annotated, Any, Final

import typer
from rich.progress import Progress

from unified_embedding.checkout import ROOT
from unified_embedding.client import EmbedderClient
from unified_embedding.errors import EmbeddingError
from unified_embedding.load.served import (
    REPOSITORY,
    RESULTS,
    console,
    fail,
    inference_precision,
    pictures,
)
from unified_embedding.load.serving_tables import (
    CONCURRENCY,
    LITSERVE,
    OURS,
    ROOFLINE,
    key,
    markdown,
    poisson_key,
    poisson_question,
    questions,
)
from unified_embedding.measure.cost import costed_loop
from unified_embedding.measure.files import write_json, write_text
from unified_embedding.measure.generator import closed_loop
from unified_embedding.measure.poisson_limit import LimitSearch, Trial, poisson_trial
from unified_embedding.measure.provenance import commit, machine
from unified_embedding.measure.questions import AskedRounds, Cells
from unified_embedding.measure.watch import ServerWatch
from unified_embedding.serving.local_server import child, end_in_order
from unified_embedding.spec import EmbedderSpec

MISSING: Final = [
    name for name in ("aiohttp", "litserve", "fastapi", "torch") if not find_spec(name)
]
if MISSING:
    fail(f"{', '.join(MISSING)} not installed; `make bench` installs the extras peers and train")

from unified_embedding.load.serving_systems import (  # noqa: E402
    Embedder,
    LitServe,
    Roofline,
    System,
    TorchEager,
    Triton,
)

# Ours alone, callers and images a request: the cost must not rise as the work grows.
GROWTH: Final = ((128, 1), (8, 4), (8, 16))
EXPLAINED: Final = ((1, 1), (8, 1), (32, 1), (8, 16))
WARM_UP_S: Final = 0.3
# Where the first search for a highest Poisson rate starts, of the closed loop's maximum.
START_AT: Final = 0.8
SE_TRUNK: Final = "seresnext101_32x4d"
EMBEDDERS: Final = ("lite0", "se", "se-int8")
# What stopping takes.
ENDING_S: Final = 10


@dataclass(frozen=True)
class Plan:
    """How an embedder is measured.

    Attributes:
        seconds: of one measurement.
        until: when the last round has to be over (time.monotonic).
        width: of a ratio's interval that is narrow enough, high / low - 1.
        poisson: also the highest Poisson rates.
        seed: of arrivals and order.
    """

    seconds: float
    until: float
    width: float
    poisson: bool
    seed: int


def main(
    minutes: Annotated[float, typer.Option(min=0, help="time for each embedder")] = 10,
    seconds: Annotated[
        float, typer.Option(envvar="DURATION", min=0.1, help="seconds of one measurement")
    ] = 1,
    width: Annotated[
        float, typer.Option(min=0, help="width of a ratio's interval that ends its rounds")
    ] = 0.04,
    full: Annotated[bool, typer.Option(envvar="FULL", help="take four times as long")] = False,
    embedders: Annotated[str, typer.Option(help="some of lite0,se,se-int8")] = "lite0",
    repository: Annotated[Path, typer.Option(help="where Lite0 is installed")] = REPOSITORY,
    poisson: Annotated[bool, typer.Option(help="also the highest Poisson rates")] = True,
    seed: Annotated[int, typer.Option(help="seed of arrivals and order")] = 0,
    out: Annotated[Path, typer.Option(help="where the result is written")] = RESULTS / "bench",
) -> None:
    """Measure, print and write bench.json and bench.md."""
    minutes *= 4 if full else 1
    names = list(dict.fromkeys(embedders.split(",")))
    if not set(names) <= set(EMBEDDERS):
        fail(f"--embedders {embedders}: use some of {', '.join(EMBEDDERS)}")
    results: list[dict[str, Any]] = []
    try:
        # The time begins when all engines are built, which the first run has to do.
        prepared = [prepare(name, repository) for name in names]
        console.print(f"bench of {', '.join(names)}: {minutes:g} minutes each at most")
        for number, embedder in enumerate(prepared):
            until = time.monotonic() + 60 * minutes - ENDING_S
            plan = Plan(seconds, until, width, poisson, seed)
            with tempfile.TemporaryDirectory() as logs:
                results.append(asyncio.run(measure(embedder, plan, Path(logs))))
            record = {
                "results": results,
                "unfinished": names[number + 1 :],
                "minutes": minutes,
                "seconds": seconds,
                "width": width,
                "seed": seed,
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "commit": commit(ROOT),
                "machine": machine(),
            }
            write_json(out / "bench.json", record)
    except EmbeddingError as error:
        fail(error)
    text = "\n\n".join(markdown(result) for result in results) + "\n"
    write_text(out / "bench.md", text)
    console.print(text, soft_wrap=True)
    console.print(f"written: {out}/bench.json, {out}/bench.md")


def prepare(name: str, installed: Path) -> Embedder:
    """The embedder "lite0" (installed), or "se" or "se-int8" (exported and built if need be)."""
    if name == "lite0":
        return built(installed, "Lite0", 100.0)
    model, repository = ROOT / "out" / "se", ROOT / "out" / f"bench-{name}" / "model_repository"
    if not (model / "spec.json").is_file():
        console.print(f"exporting {SE_TRUNK} with random weights")
        _run(["-m", "unified_embedding.export", "--trunk", SE_TRUNK, "--out", str(model)])
    repository.mkdir(parents=True, exist_ok=True)
    for step in ("preprocess", "binarizer", "unified_embedding"):
        link = repository / step
        if not link.exists():
            link.symlink_to(REPOSITORY / step)
    console.print("building its engine")
    target = ["--model", str(model), "--repository", str(repository), "--target", "openvino"]
    target += ["--precision", "int8" if name == "se-int8" else "auto"]
    _run([str(ROOT / "build" / "engine.py"), *target])
    return built(repository, "SE-ResNeXt101" + (" int8" if name == "se-int8" else ""), 500.0)


def built(repository: Path, name: str, slo_p99_ms: float) -> Embedder:
    """The embedder that is installed in a repository. Raises SpecError when none is."""
    folder = repository / "embedder"
    spec = EmbedderSpec.load(folder / "1")
    return Embedder(name, spec.trunk, repository, inference_precision(folder), spec.dim, slo_p99_ms)


async def measure(embedder: Embedder, plan: Plan, logs: Path) -> dict[str, Any]:
    """All systems with one embedder, as JSON values."""
    ours = Triton(OURS, embedder, logs / "triton.log")
    lit = [LitServe(embedder, logs / f"litserve{n}.log", n) for n in (1, 2)]
    systems: list[System] = [ours, *lit, TorchEager(embedder, logs / "fastapi.log")]
    images = pictures()
    with ExitStack() as stack, Progress(console=console, transient=True) as progress:
        for system in systems:
            starting = progress.add_task(f"starting {system.name}", total=None)
            await asyncio.to_thread(system.start)
            stack.callback(stop, system)
            system.tree.pause()
            progress.remove_task(starting)
        roofline = await asyncio.to_thread(Roofline, embedder, plan.seconds)
        stack.callback(roofline.stop)
        task = progress.add_task(f"{embedder.name}: where the time goes", total=None)
        stages = await explained(ours, images, plan.seconds)

        def show(doing: str) -> None:
            progress.update(task, description=f"{embedder.name}: {doing}")

        cells, rounds = await in_rounds(embedder, systems, roofline, images, plan, show)
    middle = rounds.medians()
    return {
        "embedder": asdict(embedder) | {"repository": None},
        "engine.json": json.loads(
            (embedder.repository / "embedder" / "1" / "engine.json").read_text()
        ),
        "ratios": [one.record() for one in rounds.answers()],
        "rounds": rounds.record(),
        "cells": rounds.cells,
        "medians": {name: middle[name] for name in cells},
        "stages": stages,
    }


async def in_rounds(
    embedder: Embedder,
    systems: Sequence[System],
    roofline: Roofline,
    images: Sequence[bytes],
    plan: Plan,
    show: Callable[[str], None],
) -> tuple[list[str], AskedRounds]:
    """What was measured, in the order of the loads, and the rounds."""
    by_name = {system.name: system for system in systems}
    loads = [(name, users, 1) for users in CONCURRENCY for name in by_name]
    loads += [(OURS, users, per_request) for users, per_request in GROWTH]
    making: dict[str, Callable[[], Awaitable[dict[str, float]]]] = {
        key(ROOFLINE, 0, 1): partial(limit, roofline)
    }
    for name, users, per_request in loads:
        making[key(name, users, per_request)] = partial(
            closed, by_name[name], images, users, per_request, plan.seconds
        )
    draw = random.Random(plan.seed)
    rounds = AskedRounds(questions(embedder.name), plan.until, plan.width)
    for number in rounds:
        await rounds.measure(number, making, draw, show)
        if number == 0 and plan.poisson:
            # The closed loops say where to start, and which peer is the best.
            best = max(LITSERVE, key=lambda name: closed_maximum(rounds.cells, name))
            searches = {
                poisson_key(name): poisson_search(
                    by_name[name], images, closed_maximum(rounds.cells, name), plan.seconds, draw
                )
                for name in (OURS, best)
            }
            rounds.questions.append(poisson_question(embedder.name, embedder.slo_p99_ms, best))
            await rounds.measure(number, searches, draw, show)
            making |= searches
    return list(making), rounds


async def limit(roofline: Roofline) -> dict[str, float]:
    """The roofline's figures of one stretch."""
    found = await asyncio.to_thread(roofline.measure)
    return {
        "images_per_s": found["images"] / found["seconds"],
        "cpu_ms": 1000 * found["cpu_s"] / found["images"],
        "memory_mb": found["memory_mb"],
    }


async def closed(
    system: System, images: Sequence[bytes], users: int, per_request: int, seconds: float
) -> dict[str, float]:
    """One closed loop's figures; the other systems stand still meanwhile."""
    async with going(system), system.calling(images, per_request) as request:
        await closed_loop(request, users, WARM_UP_S)
        found = await costed_loop(system.tree, request, users, seconds)
    return found.figures(f"{system.name}, {users} callers")


def poisson_search(
    system: System, images: Sequence[bytes], maximum: float, seconds: float, draw: random.Random
) -> Callable[[], Awaitable[dict[str, float]]]:
    """Finds the system's highest Poisson rate that holds the objective, once a round.

    `maximum` is its closed loop's rate. A trial is longer than a closed loop's `seconds`: its p99
    needs requests, and a queue that grows needs time to show.
    """
    slo = system.embedder.slo_p99_ms
    length = max(2.5 * seconds, 8 * slo / 1000)

    async def trial(rate: float, seed: int) -> Trial:
        async with system.calling(images) as request:
            return await poisson_trial(request, rate, length, slo, seed, warm_up=seconds)

    search = LimitSearch(trial, START_AT * maximum, draw)

    async def find() -> dict[str, float]:
        async with going(system):
            rate, _ = await search.find()
        return {"per_s": rate}

    return find


async def explained(ours: Triton, images: Sequence[bytes], seconds: float) -> dict[str, Any]:
    """Stages, CPU time by process and batches of our server under several loads."""
    found = {}
    ours.tree.resume()
    try:
        with EmbedderClient(ours.url) as asking:
            watch = ServerWatch(asking, ours.tree)
            for users, per_request in EXPLAINED:
                async with ours.calling(images, per_request) as request:
                    await closed_loop(request, users, WARM_UP_S)
                    watch.begin()
                    recorder = await closed_loop(request, users, seconds)
                    observed = watch.end()
                title = f"{users} callers x {per_request}"
                found[title] = observed.record(recorder.images, seconds, recorder.service.mean_ms)
    finally:
        ours.tree.pause()
    return found


@asynccontextmanager
async def going(system: System) -> AsyncIterator[None]:
    """Let a paused system go on meanwhile."""
    system.tree.resume()
    try:
        yield
    finally:
        system.tree.pause()


def closed_maximum(cells: Cells, system: str) -> float:
    """Images per second at the highest concurrency, in the first round."""
    return cells[key(system, CONCURRENCY[-1], 1)][0]["images_per_s"]


def stop(system: System) -> None:
    """Let a paused system end in order."""
    system.tree.resume()
    system.stop()


def _run(arguments: Sequence[str]) -> None:
    command, environment = [sys.executable, *arguments], {**os.environ, "PYTHONPATH": str(ROOT)}
    with child(command, stdout=PIPE, stderr=STDOUT, text=True, cwd=ROOT, env=environment) as run:
        said, _ = run.communicate()
    if run.returncode:
        fail(f"{arguments[0]} ended with {run.returncode}: {said[-500:]}")


if __name__ == "__main__":
    end_in_order()
    typer.run(main)
