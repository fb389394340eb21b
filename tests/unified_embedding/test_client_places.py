"""Places in flight: never more than the bound, and nobody beside one who is alone."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("tritonclient.grpc", reason="the extra `client` is not installed")

from unified_embedding.client._calls import Deadline
from unified_embedding.client._places import AsyncPlaces, Places
from unified_embedding.errors import DeadlineExceeded

MOST = 3


class Inside:
    """Who is inside now; a breach is noted."""

    def __init__(self) -> None:
        self.shared = self.alone = self.most = self.came = 0
        self.breached = False
        self._lock = threading.Lock()

    @contextmanager
    def block(self, alone: bool) -> Iterator[None]:
        with self._lock:
            self.shared, self.alone = self.shared + (not alone), self.alone + alone
            self.most = max(self.most, self.shared)
            self.breached |= self.alone > 1 or (self.alone == 1 and self.shared > 0)
            self.came += 1
        try:
            yield
        finally:
            with self._lock:
                self.shared, self.alone = self.shared - (not alone), self.alone - alone


visitors = st.lists(st.booleans(), max_size=24)


@settings(max_examples=30)
@given(visitors)
def test_threads(alone: list[bool]) -> None:
    places, inside = Places(MOST), Inside()

    def visit(alone: bool) -> None:
        with places.take(Deadline(60), alone), inside.block(alone):
            threading.Event().wait(0.0002)

    threads = [threading.Thread(target=visit, args=(one,)) for one in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not inside.breached
    assert inside.most <= MOST
    assert inside.came == len(alone)


@settings(max_examples=100)
@given(visitors, st.sets(st.integers(0, 23)))
def test_tasks_of_which_some_give_up(alone: list[bool], cancelled: set[int]) -> None:
    places, inside = AsyncPlaces(MOST), Inside()

    async def visit(alone: bool) -> None:
        async with places.take(Deadline(60), alone):
            with inside.block(alone):
                await asyncio.sleep(0)
                await asyncio.sleep(0)

    async def scenario() -> list[object]:
        tasks = [asyncio.ensure_future(visit(one)) for one in alone]
        await asyncio.sleep(0)
        for number in cancelled & set(range(len(tasks))):
            # Inside a visitor leaves in order; waiting it gives up its turn.
            tasks[number].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    ended = asyncio.run(asyncio.wait_for(scenario(), 60))
    assert not inside.breached
    assert inside.most <= MOST
    for number, result in enumerate(ended):
        assert result is None or number in cancelled


def test_who_waits_in_vain_for_everybody_to_leave_lets_the_others_in() -> None:
    places = Places(MOST)
    with places.take(Deadline(60)):
        with pytest.raises(DeadlineExceeded), places.take(Deadline(0.01), alone=True):
            pass
        with places.take(Deadline(60)):
            pass

    async def tasks() -> None:
        places = AsyncPlaces(MOST)
        async with places.take(Deadline(60)):
            with pytest.raises(DeadlineExceeded):
                async with places.take(Deadline(0.01), alone=True):
                    pass
            async with places.take(Deadline(60)):
                pass

    asyncio.run(tasks())
