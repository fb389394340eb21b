"""A second worker in a model's process, for requests that would hold the first one too long."""

import queue
import threading
from collections.abc import Callable

from unified_embedding.errors import Busy
from unified_embedding.image import Limits


class LargeRequests:
    """Works off large requests one after another, in a thread; small ones never wait for them.

    A request is large when its pictures cost more than a quarter of what a request may. Decoders
    work without Python's lock, so both workers get on.
    """

    def __init__(self, limits: Limits) -> None:
        self._large = limits.max_request_pixels // 4
        self._most = max(limits.max_pixels_in_work, limits.max_request_pixels)
        self._held, self._lock = 0, threading.Lock()
        self._jobs: queue.SimpleQueue[tuple[int, Callable[[], None]]] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="large-requests", daemon=True).start()

    @property
    def held(self) -> int:
        """What the requests cost together that are in work or wait, by `image.measure`."""
        return self._held

    def takes(self, cost: int) -> bool:
        """Whether a request of this cost is a large one."""
        return cost > self._large

    def put(self, cost: int, job: Callable[[], None]) -> None:
        """Do `job`, which must not raise, after those that wait already.

        Raises:
            Busy: together they cost more than may be in work.
        """
        with self._lock:
            if self._held + cost > self._most:
                raise Busy(
                    f"too much work: decoding this request's images costs {cost:,} pixels, and "
                    f"large requests of {self._held:,} are waiting or in work already; the limit "
                    f"is {self._most:,} (UNIFIED_EMBEDDING_MAX_PIXELS_IN_WORK). Send fewer at a "
                    "time, or smaller ones"
                )
            self._held += cost
        self._jobs.put((cost, job))

    def _work(self) -> None:
        while True:
            cost, job = self._jobs.get()
            try:
                job()
            finally:
                with self._lock:
                    self._held -= cost
                del job  # It holds a request's pictures.
