"""An open-loop and a closed-loop load generator on asyncio, for any service.

The Locust files drive a served embedder; these drive whatever the benchmarks compare it with
too, at a cost per request that is small beside the server's.
"""

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Iterator

from unified_embedding.errors import EmbeddingError
from unified_embedding.measure.arrivals import RateProfile
from unified_embedding.measure.recorder import Recorder

Request = Callable[[], Awaitable[int]]
"""Sends one request and returns how many pictures were answered, or raises EmbeddingError."""


async def closed_loop(
    request: Request, users: int, seconds: float, warm_up: float = 0.0
) -> Recorder:
    """`users` callers, each with one request on its way at any time.

    Requests sent in the first `warm_up` seconds are not recorded; those on their way at the end
    are waited for. Every caller sends one at least, also when this process was kept waiting for
    longer than the whole loop.
    """
    recorder = Recorder()
    start = time.perf_counter() + warm_up

    async def user() -> None:
        sent = time.perf_counter()
        while True:
            await _record(recorder, request, start, sent, sent)
            sent = time.perf_counter()
            if sent >= start + seconds:
                return

    await asyncio.gather(*(user() for _ in range(users)))
    return recorder


async def open_loop(
    request: Request,
    profile: RateProfile,
    seconds: float,
    seed: int,
    warm_up: float = 0.0,
    max_inflight: int = 10_000,
) -> Recorder:
    """Requests that are due by a Poisson process of the profile's rate.

    Those due in the first `warm_up` seconds (before the profile's time 0, at its first rate)
    are not recorded; those on their way at the end are waited for. A request that is due while
    `max_inflight` are on their way is dropped and counted.
    """
    recorder = Recorder()
    start = time.perf_counter() + warm_up
    calls: set[asyncio.Task[None]] = set()

    async def due_at(moments: list[float]) -> None:
        for offset in moments:
            due = start + offset
            # Always give the answers a chance, also when the generator is behind.
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            if len(calls) >= max_inflight:
                recorder.drop(offset)
                continue
            call = asyncio.ensure_future(_record(recorder, request, start, due, None))
            calls.add(call)
            call.add_done_callback(calls.discard)

    draw = random.Random(seed)
    warming = RateProfile.parse(f"{max(profile.rate(0.0), 1e-9)!r}").arrivals(draw)
    await due_at([offset - warm_up for offset in _until(warming, warm_up)])
    await due_at(_until(profile.arrivals(draw), seconds))
    await asyncio.sleep(max(0.0, start + seconds - time.perf_counter()))
    await asyncio.gather(*calls)
    return recorder


async def _record(
    recorder: Recorder, request: Request, start: float, due: float, sent: float | None
) -> None:
    sent = time.perf_counter() if sent is None else sent
    images, error = 0, None
    try:
        images = await request()
    except EmbeddingError as problem:
        error = problem
    done = time.perf_counter()
    recorder.record(due - start, sent - start, done - start, images, error)


def _until(arrivals: Iterator[float], end: float) -> list[float]:
    return list(itertools.takewhile(lambda offset: offset < end, arrivals))
