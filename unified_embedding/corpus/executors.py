"""Who does the shards of a corpus: what an executor is, and that of threads of this process.

That of a Ray cluster (ray_cluster.py) has the same contract: a run does not know which it has.
"""

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from threading import Event, Lock
from typing import Protocol, TypeVar

from unified_embedding.corpus.lanes import Lanes
from unified_embedding.errors import ExecutorError

_Done = TypeVar("_Done")
_Done_co = TypeVar("_Done_co", covariant=True)


class Worker(Protocol[_Done_co]):
    """What does shards; only `stop` may be called while `run` is under way."""

    def run(self, shard: int) -> _Done_co:
        """Do one shard."""

    def stop(self) -> None:
        """Let `run` return soon, now and from now on."""

    def close(self) -> None:
        """Release everything."""


Executor = Callable[[Callable[[], Worker[_Done]], Sequence[int], int], Generator[_Done, None, None]]
"""each_shard(make, shards, workers): what `make().run(shard)` returns for each shard, as it is
done by one of `workers`.

When the generator is closed or interrupted, it stops the workers and waits for their end. It
raises ExecutorError when they break down.
"""


def in_threads(
    make: Callable[[], Worker[_Done]], shards: Sequence[int], workers: int
) -> Generator[_Done, None, None]:
    """The executor of one machine."""
    lanes, lock, ended = Lanes(shards, workers), Lock(), Event()
    results: SimpleQueue[tuple[int, _Done | Exception]] = SimpleQueue()
    crew = [make() for _ in range(workers)]

    def take(lane: int) -> int | None:
        with lock:
            return None if ended.is_set() else lanes.take(lane)

    def work(lane: int) -> None:
        worker = crew[lane]
        while (shard := take(lane)) is not None:
            try:
                results.put((shard, worker.run(shard)))
            except Exception as error:
                results.put((shard, error))
        worker.close()

    with ThreadPoolExecutor(workers, "shards") as pool:
        try:
            for lane in range(workers):
                pool.submit(work, lane)
            for _ in shards:
                shard, result = results.get()
                if isinstance(result, Exception):
                    raise ExecutorError(f"shard {shard} failed ({result!r:.200})") from result
                yield result
        finally:
            ended.set()
            for worker in crew:
                worker.stop()
