"""Which worker does which shard next, so that sources are read from front to back."""

from collections import deque
from collections.abc import Sequence
from itertools import pairwise


class Lanes:
    """Shards in a lane for each worker.

    Neighbouring shards often lie in one row group of a Parquet file, which is read from its
    start. So each worker gets a run of neighbours, and one whose lane is empty takes over the
    second half of the longest lane.
    """

    def __init__(self, shards: Sequence[int], workers: int) -> None:
        ends = [len(shards) * worker // workers for worker in range(workers + 1)]
        self._lanes = [deque(shards[first:last]) for first, last in pairwise(ends)]

    def __len__(self) -> int:
        return sum(map(len, self._lanes))

    def take(self, worker: int) -> int | None:
        """The next shard for `worker`, or None when all are taken."""
        lane = self._lanes[worker]
        if not lane:
            longest = max(self._lanes, key=len)
            taken = [longest.pop() for _ in range(-(-len(longest) // 2))]
            lane.extend(reversed(taken))
        return lane.popleft() if lane else None

    def put_back(self, worker: int, shard: int) -> None:
        """Give back a shard that was not finished; it is the next one of its lane."""
        self._lanes[worker].appendleft(shard)
