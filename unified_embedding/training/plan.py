"""Which picture stands where in which batch: a pure function of seed and step.

Nothing is remembered between steps. A resumed run continues with the very next batch, and
every rank knows the labels of the whole global batch without asking the others.
"""

from collections.abc import Iterator, Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from unified_embedding.errors import TrainingError

_ORDER, _BALANCED = 1, 2  # keep the two kinds of draws apart


class Plan:
    """Uniform mix: every batch holds equal shares of every task; an epoch is the largest's.

    Within an epoch the largest task's rows come once each, and the last batch is filled up
    from a new shuffle of them (padding). Smaller tasks are shuffled anew as often as needed.

    Args:
        rows: task -> its row numbers.
        batch: images per step over all ranks, a multiple of the number of tasks.
        seed: fixes all draws.
        balanced: task -> class number of each of its rows, for class-balanced batches: the
            task's share is filled with `images_per_class` images of each drawn class.
        images_per_class: see `balanced`; classes are drawn without replacement, their images
            with it (arXiv 1811.12649).

    Attributes:
        steps_per_epoch: number of batches that show every row of the largest task.
        padding: how many rows of the largest task an epoch shows again.

    Raises:
        TrainingError: the batch does not divide as asked.
    """

    def __init__(
        self,
        rows: Mapping[str, NDArray[np.int64]],
        batch: int,
        seed: int,
        balanced: Mapping[str, NDArray[np.int64]] | None = None,
        images_per_class: int | None = None,
    ) -> None:
        self.rows = dict(rows)
        self.batch = batch
        self.seed = seed
        self.share = batch // len(self.rows)
        self.balanced = balanced
        self.images_per_class = images_per_class
        if self.share * len(self.rows) != batch:
            raise TrainingError(f"batch {batch} does not divide among {len(self.rows)} tasks")
        if images_per_class is not None:
            self._check_balance(images_per_class)
        largest = max(len(numbers) for numbers in self.rows.values())
        self.steps_per_epoch = -(-largest // self.share)
        self.padding = self.steps_per_epoch * self.share - largest
        self._shuffle = lru_cache(maxsize=4 * len(self.rows))(self._shuffled)

    def batch_rows(self, step: int) -> NDArray[np.int64]:
        """Row numbers int64 [batch] of a step over all ranks; tasks alternate slot by slot."""
        parts = []
        for number, task in enumerate(self.rows):
            if self.images_per_class is None:
                parts.append(self._in_order(number, task, step))
            else:
                parts.append(self._by_class(number, task, step))
        return np.stack(parts, axis=1).reshape(-1)

    def slots(self, rank: int, world: int) -> NDArray[np.int64]:
        """The slots of the global batch that a rank works on, int64 [batch / world].

        Raises:
            TrainingError: the batch does not divide among the ranks.
        """
        if self.batch % world:
            raise TrainingError(
                f"batch {self.batch} does not divide among {world} processes; "
                f"use a multiple of {world}"
            )
        return np.arange(rank, self.batch, world)

    def _in_order(self, number: int, task: str, step: int) -> NDArray[np.int64]:
        epoch, within = divmod(step, self.steps_per_epoch)
        size = len(self.rows[task])
        places = np.arange(within * self.share, (within + 1) * self.share)
        turn, place = np.divmod(places, size)
        found = np.empty(self.share, dtype=np.int64)
        for one in np.unique(turn):
            here = turn == one
            found[here] = self._shuffle(number, task, epoch, int(one))[place[here]]
        return found

    def _shuffled(self, number: int, task: str, epoch: int, turn: int) -> NDArray[np.int64]:
        rng = np.random.default_rng((self.seed, _ORDER, number, epoch, turn))
        return rng.permutation(self.rows[task])

    def _by_class(self, number: int, task: str, step: int) -> NDArray[np.int64]:
        assert self.images_per_class is not None
        rng = np.random.default_rng((self.seed, _BALANCED, number, step))
        members = self._members(task)
        drawn = rng.choice(len(members), self.share // self.images_per_class, replace=False)
        return np.concatenate([rng.choice(members[i], self.images_per_class) for i in drawn])

    def _members(self, task: str) -> list[NDArray[np.int64]]:
        assert self.balanced is not None
        classes = self.balanced[task]
        return [self.rows[task][classes == one] for one in np.unique(classes[classes >= 0])]

    def _check_balance(self, images_per_class: int) -> None:
        if self.balanced is None:
            raise TrainingError("images_per_class needs the classes of every task")
        if self.share % images_per_class:
            raise TrainingError(
                f"images_per_class {images_per_class} does not divide a task's share of "
                f"{self.share} images per batch"
            )
        for task in self.rows:
            if len(self._members(task)) < self.share // images_per_class:
                raise TrainingError(
                    f"{task} has {len(self._members(task))} classes, too few for "
                    f"{self.share // images_per_class} per batch; raise images_per_class"
                )


def batches(
    plan: Plan, start: int, stop: int, slots: NDArray[np.int64]
) -> Iterator[list[tuple[int, int, int]]]:
    """Per step from `start` to `stop`: this rank's (row, step, slot) triples."""
    for step in range(start, stop):
        rows = plan.batch_rows(step)
        yield [(int(rows[slot]), step, int(slot)) for slot in slots]
