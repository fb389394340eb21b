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
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from poisson_limit import Trial, highest_rate, poisson_trial
from rich.progress import Progress
from served import REPOSITORY, RESULTS, ROOT, console, fail, pictures

from unified_embedding.errors import EmbeddingError
from unified_embedding.measure.files import write_json, write_text
from unified_embedding.measure.generator import closed_loop
from unified_embedding.measure.provenance import commit, machine
from unified_embedding.spec import EmbedderSpec

try:
    from serving_systems import Embedder, LitServe, Roofline, System, TorchEager, Triton
except ImportError as missing:
    fail(f"{missing.name} is not installed; make bench installs it (extra `peers`)")

CONCURRENCY: Final = (1, 8, 32)
# Ours alone: the cost must not rise as the work grows.
GROWTH: Final = ((128, 1), (8, 4), (8, 16))
WARM_UP_S: Final = 1.0
SE_TRUNK: Final = "seresnext101_32x4d"
OURS: Final = "our server"


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
        float, typer.Option(envvar="DURATION", min=1, help="length of one measurement")
    ] = 4,
    rounds: Annotated[int, typer.Option(min=1, help="measurements of each cell")] = 3,
    full: Annotated[bool, typer.Option(envvar="FULL", help="five times as long")] = False,
    embedders: Annotated[str, typer.Option(help="lite0,se or one of them")] = "lite0,se",
    poisson: Annotated[bool, typer.Option(help="also the highest Poisson rates")] = True,
    seed: Annotated[int, typer.Option(help="seed of the arrivals")] = 0,
    out: Annotated[Path, typer.Option(help="where the result is written")] = RESULTS / "bench",
) -> None:
    """Measure, print and write bench.json and bench.md."""
    seconds *= 5 if full else 1
    cells = 4 * len(CONCURRENCY) + len(GROWTH) + 1
    searches = 2 * 12 * seconds * 2 if poisson else 0
    one = rounds * cells * (seconds + WARM_UP_S) + searches + 60
    names = embedders.split(",")
    console.print(f"bench of {', '.join(names)}: about {one * len(names) / 60:.0f} minutes")
    results = []
    try:
        for name in names:
            with tempfile.TemporaryDirectory() as logs:
                embedder = prepare(name)
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
        "commit": commit(ROOT),
        "machine": machine(),
    }
    text = "\n\n".join(markdown(result) for result in results) + "\n"
    write_json(out / "bench.json", record)
    write_text(out / "bench.md", text)
    console.print(text)
    console.print(f"written: {out}/bench.json, {out}/bench.md")


def prepare(name: str) -> Embedder:
    """The embedder "lite0" (installed) or "se" (exported and built when it is not there yet)."""
    if name == "lite0":
        return built(REPOSITORY, "Lite0", 100.0)
    if name != "se":
        fail(f"--embedders {name}: lite0 and se are known")
    model, repository = ROOT / "out" / "se", ROOT / "out" / "bench-se" / "model_repository"
    if not (model / "spec.json").is_file():
        console.print(f"exporting {SE_TRUNK} with random weights")
        module = "unified_embedding.training.export"
        _run(["-m", module, "--trunk", SE_TRUNK, "--out", str(model)])
    repository.mkdir(parents=True, exist_ok=True)
    for step in ("preprocess", "binarizer", "unified_embedding"):
        link = repository / step
        if not link.exists():
            link.symlink_to(REPOSITORY / step)
    console.print("building its engine")
    target = ["--model", str(model), "--repository", str(repository)]
    _run([str(ROOT / "build" / "engine.py"), *target])
    return built(repository, "SE-ResNeXt101", 500.0)


def built(repository: Path, name: str, slo_p99_ms: float) -> Embedder:
    """The embedder that is installed in a repository. Raises SpecError when none is."""
    folder = repository / "embedder"
    spec = EmbedderSpec.load(folder / "1")
    stated = re.search(
        r'"inference_precision" value \{ string_value: "(\w+)"',
        (folder / "config.pbtxt").read_text(),
    )
    if stated is None:
        fail(f"{folder} holds no OpenVINO engine; build one with make engine TARGET=openvino")
    return Embedder(name, spec.trunk, repository, stated[1], spec.dim, slo_p99_ms)


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
            system.pause()
            progress.remove_task(starting)
        roofline = Roofline(embedder, seconds)
        stack.callback(roofline.stop)
        loads = [(system, users, 1) for users in CONCURRENCY for system in systems]
        loads += [(ours, users, per_request) for users, per_request in GROWTH]
        task = progress.add_task(embedder.name, total=rounds * (len(loads) + 1))
        for _ in range(rounds):
            found = await asyncio.to_thread(roofline.measure)
            cell = cells.setdefault(key(roofline.name, 0, 1), Cell())
            cell.images_per_s.append(found["images"] / found["seconds"])
            cell.cpu_ms.append(1000 * found["cpu_s"] / found["images"])
            cell.memory_mb.append(found["memory_mb"])
            progress.advance(task)
            for system, users, per_request in loads:
                progress.update(task, description=f"{embedder.name}: {system.name} x {users}")
                cell = cells.setdefault(key(system.name, users, per_request), Cell())
                await one_cell(cell, system, images, users, per_request, seconds)
                progress.advance(task)
        limits: dict[str, Any] = {}
        if poisson:
            best = max(lit, key=lambda one: median_rate(cells, one.name))
            for system in (ours, best):
                progress.update(task, description=f"{embedder.name}: {system.name}, Poisson")
                limits[system.name] = await poisson_limit(
                    system, images, median_rate(cells, system.name), 2 * seconds, seed
                )
    return {
        "embedder": asdict(embedder) | {"repository": None},
        "engine.json": json.loads(
            (embedder.repository / "embedder" / "1" / "engine.json").read_text()
        ),
        "cells": {name: vars(cell) | {"median": cell.medians()} for name, cell in cells.items()},
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
    system.resume()
    try:
        async with system.calling(images, per_request) as request:
            await closed_loop(request, users, WARM_UP_S)
            before = system.tree.usage()
            recorder = await closed_loop(request, users, seconds)
            after = system.tree.usage()
    finally:
        system.pause()
    if recorder.failed or not recorder.images:
        said = "; ".join(recorder.examples.values()) or "no answer"
        raise EmbeddingError(f"{system.name}, {users} callers: {said}")
    # The loop ends when the last answers are in, a little after `seconds`.
    cell.images_per_s.append(recorder.images / seconds)
    cell.p50_ms.append(recorder.latencies.percentile_ms(50))
    cell.p99_ms.append(recorder.latencies.percentile_ms(99))
    cell.cpu_ms.append(1000 * sum(after.cpu_since(before).values()) / recorder.images)
    cell.memory_mb.append(after.memory_mb)


async def poisson_limit(
    system: System, images: Sequence[bytes], maximum: float, seconds: float, seed: int
) -> dict[str, Any]:
    """The highest Poisson rate that holds the embedder's objective."""
    slo = system.embedder.slo_p99_ms
    system.resume()
    try:
        async with system.calling(images) as request:

            async def trial(rate: float, number: int) -> Trial:
                return await poisson_trial(request, rate, seconds, slo, seed + number)

            rate, trials = await highest_rate(trial, upper=1.2 * maximum)
    finally:
        system.pause()
    return {"rate": rate, "slo_p99_ms": slo, "trials": [asdict(one) for one in trials]}


def key(system: str, users: int, per_request: int) -> str:
    """Name of a cell in bench.json."""
    return f"{system} | {users} callers | {per_request} a request"


def median_rate(cells: dict[str, Cell], system: str) -> float:
    """Images per second at the highest concurrency."""
    return statistics.median(cells[key(system, CONCURRENCY[-1], 1)].images_per_s)


def stop(system: System) -> None:
    """Let a paused system end in order."""
    system.resume()
    system.stop()


def markdown(result: dict[str, Any]) -> str:
    """Tables of one embedder: every system, what growth costs ours, and the ratios."""
    cells = {name: cell["median"] for name, cell in result["cells"].items()}
    limit = cells[key("roofline", 0, 1)]
    lines = [
        f"### {result['embedder']['name']}, engine {result['engine.json']['engine']}",
        "",
        "| system | callers | images a request | images/s | p50 ms | p99 ms | server CPU-ms an "
        "image | of the roofline's | memory MB |",
        "|---|---|---|---|---|---|---|---|---|",
        f"| roofline | - | - | {limit['images_per_s']:.0f} | - | - | {limit['cpu_ms']:.2f} | 1.00 "
        f"| {limit['memory_mb']:.0f} |",
    ]
    for name, cell in cells.items():
        system, users, per_request = (part.split()[0] for part in name.split(" | "))
        if system == "roofline":
            continue
        lines.append(
            f"| {name.split(' | ')[0]} | {users} | {per_request} | {cell['images_per_s']:.1f} | "
            f"{cell['p50_ms']:.1f} | {cell['p99_ms']:.1f} | {cell['cpu_ms']:.2f} | "
            f"{cell['cpu_ms'] / limit['cpu_ms']:.2f} | {cell['memory_mb']:.0f} |"
        )
    lines += ["", "| ratio | measured |", "|---|---|"]
    lines += [f"| {name} | {value:.2f} |" for name, value in ratios(result).items()]
    return "\n".join(lines)


def ratios(result: dict[str, Any]) -> dict[str, float]:
    """The ratios that the targets are about."""
    cells = {name: cell["median"] for name, cell in result["cells"].items()}
    most = CONCURRENCY[-1]
    lit = [f"LitServe, {n} worker{'s' if n > 1 else ''}" for n in (1, 2)]

    def of(system: str, users: int, figure: str, per_request: int = 1) -> float:
        return float(cells[key(system, users, per_request)][figure])

    limit = float(cells[key("roofline", 0, 1)]["cpu_ms"])
    found = {
        f"server CPU-ms / roofline, {most} callers": of(OURS, most, "cpu_ms") / limit,
        "the same with 16 images a request": of(OURS, 8, "cpu_ms", 16) / limit,
        f"images/s / LitServe at its best, {most} callers": of(OURS, most, "images_per_s")
        / max(of(name, most, "images_per_s") for name in lit),
        "p50 of one caller / LitServe at its best": of(OURS, 1, "p50_ms")
        / min(of(name, 1, "p50_ms") for name in lit),
        f"images/s / FastAPI + torch, {most} callers": of(OURS, most, "images_per_s")
        / of("FastAPI + torch fp32", most, "images_per_s"),
    }
    limits = result["poisson"]
    if limits:
        (theirs,) = (one["rate"] for name, one in limits.items() if name != OURS)
        slo = result["embedder"]["slo_p99_ms"]
        found[f"highest Poisson rate at p99 <= {slo:g} ms / LitServe"] = (
            limits[OURS]["rate"] / theirs if theirs else float("inf")
        )
    return found


def _run(arguments: Sequence[str]) -> None:
    run = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    if run.returncode:
        fail(f"{arguments[0]} ended with {run.returncode}: {(run.stdout + run.stderr)[-500:]}")


if __name__ == "__main__":
    typer.run(main)
