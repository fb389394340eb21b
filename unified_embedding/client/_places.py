"""How many requests of one client are in flight: up to a bound, or one suspect alone.

Whoever wants to be alone goes before the others, or would never be.
"""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from unified_embedding.client._calls import Deadline


class _Places:
    """What is taken, by how many and how."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken = 0
        self._exclusive = 0  # Who wants to be alone, or is.

    def _free(self, alone: bool) -> bool:
        return not self._taken if alone else self._taken < self._most and not self._exclusive


class Places(_Places):
    """For threads."""

    def __init__(self, most: int) -> None:
        super().__init__(most)
        lock = threading.Lock()
        self._queues = {alone: threading.Condition(lock) for alone in (False, True)}

    @contextmanager
    def take(self, deadline: Deadline, alone: bool = False) -> Iterator[None]:
        """A place for the length of the block. Raises DeadlineExceeded when none gets free."""
        queue = self._queues[alone]
        with queue:
            self._exclusive += alone
            try:
                if not queue.wait_for(lambda: self._free(alone), deadline.remaining()):
                    raise deadline.exceeded()
            except BaseException:
                self._exclusive -= alone
                self._wake()
                raise
            self._taken += 1
        try:
            yield
        finally:
            with queue:
                self._taken -= 1
                self._exclusive -= alone
                self._wake()

    def _wake(self) -> None:
        self._queues[True].notify()
        self._queues[False].notify(max(0, self._most - self._taken))


class AsyncPlaces(_Places):
    """For the tasks of one event loop."""

    def __init__(self, most: int) -> None:
        super().__init__(most)
        self._queues: dict[bool, deque[asyncio.Future[None]]] = {False: deque(), True: deque()}

    @asynccontextmanager
    async def take(self, deadline: Deadline, alone: bool = False) -> AsyncIterator[None]:
        """A place for the length of the block. Raises DeadlineExceeded when none gets free."""
        self._exclusive += alone
        try:
            if not self._free(alone):
                async with asyncio.timeout(deadline.remaining()):
                    while not self._free(alone):
                        await self._turn(self._queues[alone])
        except BaseException as error:
            self._exclusive -= alone
            self._wake()
            if isinstance(error, TimeoutError):
                raise deadline.exceeded() from None
            raise
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1
            self._exclusive -= alone
            self._wake()

    async def _turn(self, queue: deque[asyncio.Future[None]]) -> None:
        waiter = asyncio.get_running_loop().create_future()
        queue.append(waiter)
        try:
            await waiter
        finally:
            if waiter in queue:
                queue.remove(waiter)

    def _wake(self) -> None:
        free = {True: 1, False: max(0, self._most - self._taken)}
        for alone, queue in self._queues.items():
            for _ in range(min(free[alone], len(queue))):
                waiter = queue.popleft()
                if not waiter.done():
                    waiter.set_result(None)
