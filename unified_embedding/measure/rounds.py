"""Short rounds of paired measurements, as many as it takes or as there is time for."""

import os
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from unified_embedding.measure.paired import MIN_ROUNDS
from unified_embedding.measure.processes import ProcessTree
from unified_embedding.measure.quiet import Condition, look


class Rounds:
    """Iterate over it and measure every system once for each number that it gives.

    Rounds on a busy machine are made again for as long as there is time. When quiet ones are
    too few for an interval in the end, all count, and `told` says that the machine was busy.
    """

    def __init__(
        self,
        until: float,
        settled: Callable[[], bool],
        trees: Sequence[ProcessTree] = (),
    ) -> None:
        """Args:
        until: when no round may run any more (time.monotonic); one is made in any case.
        settled: whether the rounds that count answer all questions; asked after each round on
            a quiet machine.
        trees: measured processes, unless they are children of this one.
        """
        self._until, self._settled, self._trees = until, settled, trees
        self.conditions: list[Condition] = []

    def __iter__(self) -> Iterator[int]:
        cores, took = len(os.sched_getaffinity(0)), list[float]()
        before = look(self._trees)
        while True:
            began = time.monotonic()
            yield len(self.conditions)
            after = look(self._trees)
            self.conditions.append(Condition.between(before, after, cores))
            before = after
            took.append(time.monotonic() - began)
            # The next one may take as long as any but the first, which may be longer than all.
            if not self.disturbed and self._settled():
                return
            if time.monotonic() + max(took[1:] or took) > self._until:
                return

    @property
    def busy(self) -> dict[int, list[str]]:
        """Rounds in which the machine was busy, and why."""
        if not self.conditions:
            return {}
        usual = statistics.median(one.loop_cpu_s for one in self.conditions)
        reasons = {number: one.busy(usual) for number, one in enumerate(self.conditions)}
        return {number: said for number, said in reasons.items() if said}

    @property
    def quiet(self) -> frozenset[int]:
        """The other ones."""
        return frozenset(range(len(self.conditions))) - self.busy.keys()

    @property
    def counted(self) -> frozenset[int]:
        """The rounds that count."""
        return counting(range(len(self.conditions)), self.quiet)

    @property
    def disturbed(self) -> bool:
        """Busy rounds are among those that count."""
        return not self.counted <= self.quiet

    def told(self) -> str:
        """How many rounds, and how busy the machine was."""
        count, busy = len(self.conditions), self.busy
        rounds = f"{count} round{'' if count == 1 else 's'} in random order"
        if not busy:
            return f"{rounds}, machine quiet"
        most = max(busy.values(), key=len)
        worst = ", ".join(most)
        if not self.disturbed:
            return f"{rounds}; {len(busy)} of them, on a busy machine, do not count ({worst})"
        share = "all" if len(busy) == count else f"{len(busy)}"
        return f"{rounds}; **the machine was busy** in {share} of them ({worst})"

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        busy = self.busy
        return {
            "told": self.told(),
            "disturbed": self.disturbed,
            "rounds": [
                asdict(one) | {"busy": busy.get(number, [])}
                for number, one in enumerate(self.conditions)
            ],
        }


def counting(made: Collection[int], quiet: Collection[int]) -> frozenset[int]:
    """Those of the rounds `made` that count: the quiet ones, or all when these are too few."""
    calm = frozenset(made).intersection(quiet)
    return calm if len(calm) >= MIN_ROUNDS else frozenset(made)


def paired(counted: Collection[int], *series: Mapping[int, float]) -> list[list[float]]:
    """Values of `counted` rounds that every series has, in the rounds' order."""
    common = sorted(set(counted).intersection(*series))
    return [[one[number] for number in common] for one in series]
