"""Twice the server's capacity, with deadlines: it keeps working for those it can still answer."""

import asyncio
import itertools
import os
import re
import statistics
import time
import urllib.request
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("psutil", reason="the extra `load` is not installed")
pytest.importorskip("tritonclient.grpc", reason="the extra `client` is not installed")

from unified_embedding.client import AsyncEmbedderClient, Retry
from unified_embedding.errors import EmbeddingError
from unified_embedding.measure.arrivals import RateProfile
from unified_embedding.measure.generator import closed_loop, open_loop
from unified_embedding.measure.pictures import scaled
from unified_embedding.measure.processes import ProcessTree
from unified_embedding.measure.recorder import Recorder
from unified_embedding.serving.local_server import LocalServer, running

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.skipif("RUN_SLOW" not in os.environ, reason="takes minutes; RUN_SLOW=1 runs it"),
]

TIMEOUT_S = 1.0
OVERLOAD_S = 30
LATE = re.compile(r'^embedder_refused_total{model="(\w+)",reason="late"} (\S+)', re.MULTILINE)


@dataclass(frozen=True)
class Overload:
    """What happened: requests per second, seconds of single calls before and after, memory."""

    capacity: float
    recorder: Recorder
    before: list[float]
    after: list[float]
    growth_mb: float


def refused_late(server: LocalServer) -> dict[str, float]:
    """Requests that each model refused as late, since the server was started."""
    with urllib.request.urlopen(server.metrics_url, timeout=60) as answer:
        page = answer.read().decode()
    return {model: float(count) for model, count in LATE.findall(page)}


def test_twice_the_capacity(repository: Path, root: Path) -> None:
    images = scaled(str(root / "demo" / "shots"), 640, 480)
    # A server of its own: stopped after an overload, Triton 2.51 may wait out its exit timeout
    # (docs/serving.md), and the server of the other tests has to stop in order.
    with running(repository) as server:
        tree = ProcessTree(server.process.pid)
        seen = asyncio.run(overload(server.grpc_url, images, tree))
        late = refused_late(server)
    recorder = seen.recorder
    assert recorder.dropped == 0
    assert recorder.offered / OVERLOAD_S > 1.8 * seen.capacity
    # Refused, or expired, and nothing else.
    assert set(recorder.errors) <= {"CANCELLED", "DEADLINE_EXCEEDED"}
    assert recorder.errors["CANCELLED"] > recorder.errors["DEADLINE_EXCEEDED"]
    assert recorder.completed > 0
    # Before they were decoded, and not after.
    assert late["preprocess"] > late["embedder"]
    assert seen.growth_mb < 200
    # Normal again: it answers.
    assert min(seen.after) < TIMEOUT_S
    # How much and how fast is for docs/performance.md to judge.
    share = recorder.completed / OVERLOAD_S / seen.capacity
    before, after = statistics.median(seen.before), statistics.median(seen.after)
    print(f"\n  {share:.0%} of the capacity answered; {before:.3f} s before, {after:.3f} s after;")
    print(f"  late before decoding {late['preprocess']:.0f}, after it {late['embedder']:.0f}")


async def overload(url: str, images: tuple[bytes, ...], tree: ProcessTree) -> Overload:
    pictures = itertools.cycle(images)
    client = AsyncEmbedderClient(
        url, timeout=TIMEOUT_S, max_inflight=100_000, retry=Retry(attempts=1)
    )
    async with client:

        async def request() -> int:
            return len(await client.embed([next(pictures)]))

        capacity = (await closed_loop(request, users=32, seconds=10, warm_up=3)).completed / 10
        before = await single_calls(request, 3)
        memory = [tree.usage().memory_mb]
        watching = asyncio.ensure_future(watch(tree, memory))
        profile = RateProfile.parse(f"{2 * capacity}")
        load = asyncio.ensure_future(open_loop(request, profile, OVERLOAD_S, seed=1))
        await asyncio.sleep(OVERLOAD_S + 1)
        # The second second after the last request was due.
        after = await single_calls(request, 1)
        recorder = await load
        watching.cancel()
    return Overload(capacity, recorder, before, after, max(memory) - memory[0])


async def single_calls(request: Callable[[], Awaitable[int]], seconds: float) -> list[float]:
    """Seconds of one call after another; a refused one counts as long as its timeout."""
    took, end = [], time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        try:
            await request()
            took.append(time.perf_counter() - began)
        except EmbeddingError:
            took.append(TIMEOUT_S)
    return took


async def watch(tree: ProcessTree, memory: list[float]) -> None:
    while True:
        await asyncio.sleep(0.5)
        memory.append((await asyncio.to_thread(tree.usage)).memory_mb)
