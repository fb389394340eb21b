"""`make growth`: what a picture costs as the work grows.

Five parts, each beside the shape that theory expects: callers, pictures a request, the size of a
picture, threads that search, servers that a back-fill uses. Each part's result is written when it
is whole; interrupted, the same command goes on with the part that was not.
"""

import asyncio
import io
import json
import math
import os
import random
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from PIL import Image

from unified_embedding.checkout import ROOT
from unified_embedding.client import EmbedderClient, Retry
from unified_embedding.errors import EmbeddingError, RequestRejected
from unified_embedding.image.limits import Limits
from unified_embedding.load import growth_tables
from unified_embedding.load.capacity import steps
from unified_embedding.load.growth_tables import PARTS, THREADS, cell, questions
from unified_embedding.load.served import (
    REPOSITORY,
    RESULTS,
    Served,
    console,
    fail,
    pictures,
    served,
)
from unified_embedding.measure.cost import Costed, costed_loop
from unified_embedding.measure.files import write_json, write_text
from unified_embedding.measure.generator import closed_loop
from unified_embedding.measure.pictures import square
from unified_embedding.measure.processes import ProcessTree
from unified_embedding.measure.provenance import commit, machine
from unified_embedding.measure.questions import AskedRounds
from unified_embedding.measure.requests import CLOSED_LOOP_TIMEOUT_S, client_of, embed_request
from unified_embedding.measure.resuming import left
from unified_embedding.measure.rounds import Rounds
from unified_embedding.serving.local_server import end_in_order
from unified_embedding.spec import EmbedderSpec

CALLERS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
PER_REQUEST: Final = (1, 2, 4, 8, 16)
# Callers where requests hold several pictures, and where pictures are of many sizes.
SEVERAL, SIZED = 8, 2
SIDES: Final = (100, 316, 1000, 2000, 3464, 5000, 7071)
SERVERS: Final = (1, 2, 4)
# Requests in flight of a back-fill for each server, and pictures in each.
INFLIGHT, BATCH = 4, 16
QUERIES: Final = 200
# Of searching, for each number of threads, at most.
ROUNDS: Final = 12
WARM_UP_S: Final = 0.5
LOOK_S: Final = 0.5


@dataclass(frozen=True)
class Plan:
    """How everything is measured.

    Attributes:
        seconds: of one point.
        repository: Triton's model repository with the engine.
        rows: codes that are searched.
        seed: of codes and order.
    """

    seconds: float
    repository: Path
    rows: int
    seed: int


@dataclass(frozen=True)
class Load:
    """Callers in a closed loop.

    Attributes:
        point: what sets it apart, for the record.
        images: what they send, in turn.
        users: how many there are.
        per_request: pictures in each request.
    """

    point: Mapping[str, Any]
    images: Sequence[bytes]
    users: int
    per_request: int = 1


def main(
    seconds: Annotated[
        float, typer.Option(envvar="DURATION", min=0.1, help="seconds of one point")
    ] = 8,
    full: Annotated[bool, typer.Option(envvar="FULL", help="take four times as long")] = False,
    only: Annotated[str, typer.Option(help=f"some of {','.join(PARTS)}")] = ",".join(PARTS),
    rows: Annotated[int, typer.Option(min=1000, help="codes that are searched")] = 1_000_000,
    repository: Annotated[Path, typer.Option(help="where the engine is installed")] = REPOSITORY,
    seed: Annotated[int, typer.Option(help="seed of codes and order")] = 0,
    out: Annotated[Path, typer.Option(help="where the results are written")] = RESULTS / "growth",
) -> None:
    """Measure, draw and write a JSON and an SVG for each part."""
    seconds *= 4 if full else 1
    names = list(dict.fromkeys(only.split(",")))
    if not set(names) <= set(PARTS):
        fail(f"--only {only}: use some of {', '.join(PARTS)}")
    if not find_spec("faiss"):
        fail("faiss-cpu is not installed; `make growth` installs the extra search")
    plan = Plan(seconds, repository, rows, seed)
    try:
        spec = EmbedderSpec.load(repository / "embedder" / "1")
        settings = {
            "embedder": spec.trunk,
            "engine": json.loads((repository / "embedder/1/engine.json").read_text())["engine"],
            "seconds": seconds,
            "rows": rows,
            "seed": seed,
            "commit": commit(ROOT),
        }
        console.print(f"growth: {', '.join(names)}; about {minutes(names, seconds):.0f} minutes")
        for name in left([one for one in PARTS if one in names], out / "done.json", settings):
            with steps(name) as step:
                measured = MEASURING[name](plan, step)
            record = (
                settings
                | measured
                | {
                    "date": datetime.now(UTC).isoformat(timespec="seconds"),
                    "machine": machine(),
                }
            )
            write_text(out / f"{name}.svg", growth_tables.plot(name, record))
            write_json(out / f"{name}.json", record)
            console.print(growth_tables.markdown(name, record) + "\n", soft_wrap=True, markup=False)
    except EmbeddingError as error:
        fail(error)
    console.print(f"written: {out}/ {', '.join(f'{name}.json, {name}.svg' for name in names)}")


def minutes(names: Sequence[str], seconds: float) -> float:
    """About how long it takes."""
    points = {
        "callers": len(CALLERS),
        "images": len(PER_REQUEST),
        "pictures": 2 * len(SIDES),
        "search": 2 * ROUNDS,
        "servers": len(SERVERS),
    }
    # Starting and ending servers, making pictures and codes.
    beside = {"callers": 10, "images": 10, "pictures": 40, "search": 60, "servers": 60}
    return sum(points[name] * (seconds + 1) + beside[name] for name in names) / 60


def callers(plan: Plan, step: Callable[[str], None]) -> dict[str, Any]:
    """More and more callers, each with one picture a request."""
    images = pictures()
    return loops(plan, [Load({"callers": users}, images, users) for users in CALLERS], step)


def images(plan: Plan, step: Callable[[str], None]) -> dict[str, Any]:
    """More and more pictures in each request of some callers."""
    sent = pictures()
    loads = [Load({"images": number}, sent, SEVERAL, number) for number in PER_REQUEST]
    return loops(plan, loads, step) | {"callers": SEVERAL}


def loops(plan: Plan, loads: Sequence[Load], step: Callable[[str], None]) -> dict[str, Any]:
    """Closed loops against a server of their own, as JSON values."""
    preprocessing = EmbedderSpec.load(plan.repository / "embedder" / "1").preprocessing
    encoded = [len(image) for image in loads[0].images]
    with served("", plan.repository) as server:
        return {
            "points": asyncio.run(points(server, loads, plan.seconds, step)),
            "max_batch": server.info.max_batch_size,
            "held_bytes": sum(encoded) / len(encoded) + 3 * preprocessing.size**2,
        }


async def points(
    server: Served, loads: Iterable[Load], seconds: float, step: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Every load's figures, with the most memory meanwhile, and why the machine was busy."""
    assert server.tree is not None  # It was started here.
    found, rounds = [], Rounds(math.inf, settled=lambda: False)
    async with client_of(server.url, CLOSED_LOOP_TIMEOUT_S, server.connection) as client:
        for _, load in zip(rounds, loads):  # noqa: B905 - the rounds have no end
            step(", ".join(f"{name} {value}" for name, value in load.point.items()))
            request = embed_request(client, load.images, load.per_request)
            await closed_loop(request, load.users, WARM_UP_S)
            loop = costed_loop(server.tree, request, load.users, seconds)
            costed, memory_mb = await watched(server.tree, loop)
            figures = costed.figures(str(dict(load.point))) | {"memory_mb": memory_mb}
            found.append({**load.point, **figures})
    return with_busy(found, rounds)


def with_busy(found: Sequence[Mapping[str, Any]], rounds: Rounds) -> list[dict[str, Any]]:
    """One point a round, each with why the machine was busy in it."""
    return [{**one, "busy": rounds.busy.get(number, [])} for number, one in enumerate(found)]


async def watched(tree: ProcessTree, loop: Awaitable[Costed]) -> tuple[Costed, float]:
    """A loop's result, and the most memory that `tree` was seen to hold meanwhile."""
    running, most = asyncio.ensure_future(loop), 0.0
    while not running.done():
        most = max(most, (await asyncio.to_thread(tree.usage)).memory_mb)
        await asyncio.wait({running}, timeout=LOOK_S)
    return running.result(), most


def sizes(plan: Plan, step: Callable[[str], None]) -> dict[str, Any]:
    """Pictures of every size that the server takes, in two formats; one beyond is refused."""
    limits, shots = Limits.from_environment(), str(ROOT / "demo" / "shots")

    def loads() -> Iterator[Load]:
        # Large ones last, as what they leave behind would be found beside small ones.
        for kind in growth_tables.FORMATS:
            for side in SIDES:
                if side**2 <= limits.max_pixels:
                    step(f"making {kind} of {side} x {side}")
                    picture = square(shots, side, kind)
                    point = {"format": kind, "pixels": side**2, "bytes": len(picture)}
                    yield Load(point, [picture], SIZED)

    with served("", plan.repository) as server:
        found = asyncio.run(points(server, loads(), plan.seconds, step))
        return {"points": found, "callers": SIZED, "refused": refused(server, limits)}


def refused(server: Served, limits: Limits) -> dict[str, Any]:
    """What the server says of a picture of too many pixels, and after how long.

    Raises:
        EmbeddingError: it embeds it.
    """
    side = math.isqrt(limits.max_pixels) + 1
    file = io.BytesIO()
    Image.new("1", (side, side)).save(file, "PNG")
    with EmbedderClient(server.url, retry=Retry(1), timeout=CLOSED_LOOP_TIMEOUT_S) as client:
        client.info()
        began = time.perf_counter()
        try:
            client.embed([file.getvalue()])
        except RequestRejected as error:
            ms = 1000 * (time.perf_counter() - began)
            return {"pixels": side**2, "ms": ms, "said": str(error)}
    raise EmbeddingError(f"a picture of {side**2:,} pixels was not refused")


def search(plan: Plan, step: Callable[[str], None]) -> dict[str, Any]:
    """Searches by more and more threads, ours and FAISS', in rounds."""
    from unified_embedding.index import CodeIndex, Settings
    from unified_embedding.load.index_data import World
    from unified_embedding.load.index_systems import Job, bare_flat, build_apart, searching

    with tempfile.TemporaryDirectory() as folder:
        job = Job(Path(folder), plan.rows, growth_tables.DIM, plan.seed)
        step(f"making {plan.rows:,} codes")
        for _ in job.blocks():
            pass
        step("building the index")
        build_apart(job, Settings())
        systems = {
            growth_tables.OURS: searching(CodeIndex.open(Path(folder) / "flat")),
            growth_tables.FAISS: bare_flat(job),
        }
        asked = World(plan.rows, growth_tables.DIM, plan.seed).queries(QUERIES)
        # Many threads on few cores take a third of a second for a search: a short stretch would
        # be its end, when threads have stopped.
        stretch = plan.seconds / len(THREADS)

        async def searched(name: str, threads: int) -> dict[str, float]:
            return await asyncio.to_thread(at_once, systems[name], asked, threads, stretch)

        making = {
            cell(name, threads): partial(searched, name, threads)
            for name in systems
            for threads in THREADS
        }
        until = time.monotonic() + 1.15 * ROUNDS * len(making) * stretch
        rounds, draw = AskedRounds(questions(), until, 0.02), random.Random(plan.seed)

        async def all_rounds() -> None:
            for number in rounds:
                await rounds.measure(number, making, draw, step)

        asyncio.run(all_rounds())
    return {
        "ratios": [one.record() for one in rounds.answers()],
        "rounds": rounds.record(),
        "cells": rounds.cells,
        "medians": rounds.medians(),
        "cores": len(os.sched_getaffinity(0)),
    }


def at_once(
    one_search: Callable[[Any], object], asked: Any, threads: int, seconds: float
) -> dict[str, float]:
    """Threads that search one query after another: searches/s, and how long one takes."""
    began = time.perf_counter()
    end = began + seconds

    def searching(thread: int) -> list[float]:
        took = []
        for number in count(thread):
            start = time.perf_counter()
            one_search(asked[number % len(asked)][None])
            took.append(time.perf_counter() - start)
            if start + took[-1] >= end:
                break
        return took

    with ThreadPoolExecutor(threads) as pool:
        took = sorted(one for each in pool.map(searching, range(threads)) for one in each)
    whole = time.perf_counter() - began
    return {"per_s": len(took) / whole, "p50_ms": 1000 * took[len(took) // 2]}


def servers(plan: Plan, step: Callable[[str], None]) -> dict[str, Any]:
    """The same back-fill with more and more servers on this machine."""
    from unified_embedding.load.backfills import SHARD, backfilled, corpus

    sent, found, rounds = pictures(), [], Rounds(math.inf, settled=lambda: False)
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        going: list[Served] = []
        for _, number in zip(rounds, SERVERS):  # noqa: B905 - the rounds have no end
            while len(going) < number:
                step(f"starting server {len(going) + 1}")
                going.append(stack.enter_context(served("", plan.repository)))
                rate = asyncio.run(warmed(going[-1], sent))
            if number == 1:
                pictures_sent = max(SHARD, round(rate * plan.seconds))
                source = corpus(Path(folder) / "corpus.parquet", sent, pictures_sent)
            step(f"{number} servers, {pictures_sent} pictures")
            trees = [one.tree for one in going if one.tree]
            before = [tree.usage() for tree in trees]
            took = backfilled(
                source,
                Path(folder) / str(number),
                [one.url for one in going],
                INFLIGHT * number,
                "--shard-size",
                str(SHARD),
            )
            after = [tree.usage() for tree in trees]
            cpu_s = sum(
                sum(late.cpu_since(early).values())
                for early, late in zip(before, after, strict=True)
            )
            found.append(
                {
                    "servers": number,
                    "images_per_s": pictures_sent / took,
                    "cpu_ms": 1000 * cpu_s / pictures_sent,
                    "memory_mb": sum(one.memory_mb for one in after),
                }
            )
    return {"points": with_busy(found, rounds), "pictures": pictures_sent}


async def warmed(server: Served, images: Sequence[bytes]) -> float:
    """Pictures/s of a server that has had its first requests."""
    async with client_of(server.url, CLOSED_LOOP_TIMEOUT_S, server.connection) as client:
        request = embed_request(client, images, BATCH)
        await closed_loop(request, INFLIGHT, WARM_UP_S)
        return (await costed_loop(server.tree, request, INFLIGHT, 1.0)).images_per_s


MEASURING: Final[Mapping[str, Callable[[Plan, Callable[[str], None]], dict[str, Any]]]] = {
    "callers": callers,
    "images": images,
    "pictures": sizes,
    "search": search,
    "servers": servers,
}


def program() -> None:
    """Parse the command line and run."""
    end_in_order()
    typer.run(main)


if __name__ == "__main__":
    program()
