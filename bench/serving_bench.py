"""`make bench`: our server beside its limit and beside what else one would use.

In one run, interleaved, on the same pictures and the same engine:
  roofline      decode, engine and pack in one process on all cores: what the work itself costs
  our server    embedding and code over gRPC
  LitServe      the same engine and decoder, with one and with two workers
  FastAPI       torch eager in fp32, one picture at a time
Those that are not measured are paused. Client and servers share the cores, so every table has the
CPU time of the server's own processes.
"""

import asyncio
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
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
from unified_embedding.load.serving_tables import CONCURRENCY, OURS, key, markdown
from unified_embedding.measure.cost import costed_loop
from unified_embedding.measure.files import write_json, write_text
from unified_embedding.measure.generator import closed_loop
from unified_embedding.measure.poisson_limit import Trial, highest_rate, poisson_trial
from unified_embedding.measure.provenance import commit, machine
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
WARM_UP_S: Final = 0.5
SE_TRUNK: Final = "seresnext101_32x4d"
KNOWN: Final = ("lite0", "se", "se-int8")
# A trial of a Poisson rate lasts longer: its p99 needs requests.
TRIAL_LENGTH: Final = 2.5
# Trials that a bisection makes, about; what starting takes, and what SE's build takes once.
_TRIALS: Final = 12
_STARTS_S: Final = 40
_BUILD_S: Final = 120


@dataclass
class Cell:
    """One system under one load: a value of each round."""

    images_per_s: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    memory_mb: list[float] = field(default_factory=list)

    def medians(self) -> dict[str, float]:
        """The median round of each figure; the memory's largest."""
        values = {name: statistics.median(found) for name, found in vars(self).items() if found}
        return values | {"memory_mb": max(self.memory_mb)}


def main(
    seconds: Annotated[
        float, typer.Option(envvar="DURATION", min=0.1, help="seconds of one measurement")
    ] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="measurements of each cell")] = 3,
    full: Annotated[bool, typer.Option(envvar="FULL", help="measure five times as long")] = False,
    embedders: Annotated[str, typer.Option(help="some of lite0,se,se-int8")] = "lite0,se",
    repository: Annotated[Path, typer.Option(help="where Lite0 is installed")] = REPOSITORY,
    poisson: Annotated[bool, typer.Option(help="also the highest Poisson rates")] = True,
    seed: Annotated[int, typer.Option(help="seed of the arrivals")] = 0,
    out: Annotated[Path, typer.Option(help="where the result is written")] = RESULTS / "bench",
) -> None:
    """Measure, print and write bench.json and bench.md."""
    seconds *= 5 if full else 1
    names = embedders.split(",")
    if not set(names) <= set(KNOWN):
        fail(f"--embedders {embedders}: use some of {', '.join(KNOWN)}")
    cells = 4 * len(CONCURRENCY) + len(GROWTH) + 1
    one = (rounds * cells + len(EXPLAINED)) * (seconds + 2 * WARM_UP_S) + _STARTS_S
    one += 2 * _TRIALS * (TRIAL_LENGTH * seconds + 2) if poisson else 0
    whole = one * len(names) + _BUILD_S * (names != ["lite0"])
    console.print(f"bench of {', '.join(names)}: about {whole / 60:.0f} minutes")
    results = []
    try:
        for name in names:
            with tempfile.TemporaryDirectory() as logs:
                embedder = prepare(name, repository)
                results.append(
                    asyncio.run(measure(embedder, seconds, rounds, poisson, seed, Path(logs)))
                )
    except EmbeddingError as error:
        fail(error)
    record = {
        "results": results,
        "seconds": seconds,
        "rounds": rounds,
        "seed": seed,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(ROOT),
        "machine": machine(),
    }
    text = "\n\n".join(markdown(result) for result in results) + "\n"
    write_json(out / "bench.json", record)
    write_text(out / "bench.md", text)
    console.print(text)
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


async def measure(
    embedder: Embedder, seconds: float, rounds: int, poisson: bool, seed: int, logs: Path
) -> dict[str, Any]:
    """All systems with one embedder, as JSON values."""
    ours = Triton(OURS, embedder, logs / "triton.log")
    lit = [LitServe(embedder, logs / f"litserve{n}.log", n) for n in (1, 2)]
    systems: list[System] = [ours, *lit, TorchEager(embedder, logs / "fastapi.log")]
    cells: dict[str, Cell] = {}
    images = pictures()
    with ExitStack() as stack, Progress(console=console, transient=True) as progress:
        for system in systems:
            starting = progress.add_task(f"starting {system.name}", total=None)
            await asyncio.to_thread(system.start)
            stack.callback(stop, system)
            system.tree.pause()
            progress.remove_task(starting)
        roofline = await asyncio.to_thread(Roofline, embedder, seconds)
        stack.callback(roofline.stop)
        loads = [(system, users, 1) for users in CONCURRENCY for system in systems]
        loads += [(ours, users, per_request) for users, per_request in GROWTH]
        task = progress.add_task(embedder.name, total=rounds * (len(loads) + 1))
        for number in range(rounds):
            found = await asyncio.to_thread(roofline.measure)
            cell = cells.setdefault(key(roofline.name, 0, 1), Cell())
            cell.images_per_s.append(found["images"] / found["seconds"])
            cell.cpu_ms.append(1000 * found["cpu_s"] / found["images"])
            cell.memory_mb.append(found["memory_mb"])
            progress.advance(task)
            # Forwards, then backwards: a machine that gets slower favours nobody.
            for system, users, per_request in loads if number % 2 == 0 else reversed(loads):
                progress.update(task, description=f"{embedder.name}: {system.name} x {users}")
                cell = cells.setdefault(key(system.name, users, per_request), Cell())
                await one_cell(cell, system, images, users, per_request, seconds)
                progress.advance(task)
        progress.update(task, description=f"{embedder.name}: where the time goes")
        stages = await explained(ours, images, seconds)
        limits: dict[str, Any] = {}
        if poisson:
            progress.update(task, description=f"{embedder.name}: highest Poisson rates")
            best = max(lit, key=lambda one: median_rate(cells, one.name))
            limits = await poisson_limits(
                {one: median_rate(cells, one.name) for one in (ours, best)},
                images,
                TRIAL_LENGTH * seconds,
                seed,
            )
    return {
        "embedder": asdict(embedder) | {"repository": None},
        "engine.json": json.loads(
            (embedder.repository / "embedder" / "1" / "engine.json").read_text()
        ),
        "cells": {name: vars(cell) | {"median": cell.medians()} for name, cell in cells.items()},
        "stages": stages,
        "poisson": limits,
    }


async def one_cell(
    cell: Cell,
    system: System,
    images: Sequence[bytes],
    users: int,
    per_request: int,
    seconds: float,
) -> None:
    """One closed-loop measurement; the other systems stand still meanwhile."""
    system.tree.resume()
    try:
        async with system.calling(images, per_request) as request:
            await closed_loop(request, users, WARM_UP_S)
            found = await costed_loop(system.tree, request, users, seconds)
    finally:
        system.tree.pause()
    recorder = found.recorder
    if recorder.failed or not recorder.images:
        said = "; ".join(recorder.examples.values()) or "no answer"
        raise EmbeddingError(f"{system.name}, {users} callers: {said}")
    # Its processes are on this machine.
    assert found.cpu_ms is not None
    assert found.memory_mb is not None
    cell.images_per_s.append(found.images_per_s)
    cell.p50_ms.append(recorder.latencies.percentile_ms(50))
    cell.p99_ms.append(recorder.latencies.percentile_ms(99))
    cell.cpu_ms.append(found.cpu_ms)
    cell.memory_mb.append(found.memory_mb)


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


async def poisson_limits(
    maxima: Mapping[System, float], images: Sequence[bytes], seconds: float, seed: int
) -> dict[str, Any]:
    """The highest Poisson rate of each system that holds the objective, trial about trial."""
    # asyncio.Lock is fair: the searches take turns.
    turn = asyncio.Lock()

    async def search(system: System, maximum: float) -> dict[str, Any]:
        slo = system.embedder.slo_p99_ms

        async def trial(rate: float, number: int) -> Trial:
            async with turn:
                system.tree.resume()
                try:
                    async with system.calling(images) as request:
                        return await poisson_trial(request, rate, seconds, slo, seed + number)
                finally:
                    system.tree.pause()

        rate, trials = await highest_rate(trial, upper=1.2 * maximum)
        return {"rate": rate, "slo_p99_ms": slo, "trials": [asdict(one) for one in trials]}

    found = await asyncio.gather(*(search(*one) for one in maxima.items()))
    return {system.name: one for system, one in zip(maxima, found, strict=True)}


def median_rate(cells: dict[str, Cell], system: str) -> float:
    """Images per second at the highest concurrency."""
    return statistics.median(cells[key(system, CONCURRENCY[-1], 1)].images_per_s)


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
