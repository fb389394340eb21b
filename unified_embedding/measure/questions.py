"""What rounds of measurements are made for: ratios of one figure in two cells, with targets."""

import math
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unified_embedding.measure.paired import MIN_ROUNDS, Target, ratio, settled, told
from unified_embedding.measure.processes import ProcessTree
from unified_embedding.measure.rounds import Rounds, counting, paired
from unified_embedding.retrieval import Interval

Cells = dict[str, dict[int, dict[str, float]]]
"""A system under a load -> round -> its figures; not every cell is measured in every round."""


@dataclass(frozen=True)
class Question:
    """A ratio that is asked for.

    Attributes:
        name: for tables.
        figure: what is compared.
        ours: cell of the numerator.
        theirs: cells of the denominator.
        target: what the ratio should be, or None when it is only of interest.
    """

    name: str
    figure: str
    ours: str
    theirs: tuple[str, ...]
    target: Target | None

    def answer(self, cells: Cells, quiet: Collection[int]) -> "Answer | None":
        """From the `quiet` rounds, or all when these are too few; None when none has both sides.

        Of several others the harshest decides: the target is met when it is met beside each of
        them, and missed when it is missed beside one.
        """
        beside = (self._beside(theirs, cells, quiet) for theirs in self.theirs)
        return min((one for one in beside if one), key=self._harshness, default=None)

    def made(self, cells: Cells) -> frozenset[int]:
        """The rounds that have both sides."""
        return frozenset(cells.get(self.ours, {})).intersection(
            *(cells.get(one, {}) for one in self.theirs)
        )

    def _beside(self, theirs: str, cells: Cells, quiet: Collection[int]) -> "Answer | None":
        counted = counting(self.made(cells), quiet)
        if not counted:
            return None
        sides = [
            {number: one[self.figure] for number, one in cells[cell].items()}
            for cell in (self.ours, theirs)
        ]
        return Answer(
            self, ratio(*paired(counted, *sides)), len(counted), not counted.issubset(quiet)
        )

    def _harshness(self, answer: "Answer") -> tuple[float, ...]:
        found, target = answer.interval, self.target
        if target is None:
            return (found.mean,)
        order = ("missed", "undecided", "met").index(target.verdict(found))
        return (
            order,
            *((found.low, found.mean) if target.at_least else (-found.high, -found.mean)),
        )


@dataclass(frozen=True)
class Answer:
    """A question's interval after so many rounds; `busy` when the machine was, in some of them."""

    question: Question
    interval: Interval
    rounds: int
    busy: bool

    def settled(self, width: float) -> bool:
        """No further round is needed; a quiet one always is."""
        return not self.busy and settled(self.interval, width, self.question.target)

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        asked = self.question
        return record(asked.name, self.interval, self.rounds, asked.target, busy=self.busy)


def record(
    name: str, found: Interval, rounds: int, target: Target | None, *, busy: bool = False
) -> dict[str, Any]:
    """A ratio with its verdict as JSON values; without bounds when the rounds were too few."""
    low, high = bounds(found) or (None, None)
    return {
        "name": name,
        "ratio": found.mean,
        "low": low,
        "high": high,
        "rounds": rounds,
        "target": str(target or ""),
        "verdict": target.verdict(found) if target else "",
        "busy": busy,
    }


def bounds(found: Interval) -> tuple[float, float] | None:
    """Of an interval, as JSON values: None when the rounds were too few for one."""
    return None if math.isinf(found.high) else (found.low, found.high)


def bounded(mean: float, known: Sequence[float] | None) -> Interval:
    """The interval of which `bounds` are known."""
    low, high = known or (-math.inf, math.inf)
    return Interval(mean, low, high)


class AskedRounds(Rounds):
    """Rounds of one question each, until every one is answered or the time is up.

    The two sides of a ratio are measured one right after the other: what slows a shared machine
    lasts for a second or two, so that neighbours see the same of it, and the whole round may count
    as quiet.

    Attributes:
        questions: what is asked; more may be added between rounds.
        cells: what was measured.
    """

    def __init__(
        self,
        questions: Sequence[Question],
        until: float,
        width: float,
        trees: Sequence[ProcessTree] = (),
    ) -> None:
        """`width` of an interval that is narrow enough; the others as `Rounds` takes them."""
        super().__init__(until, settled=lambda: not self.open, trees=trees)
        self.questions, self.cells = list(questions), Cells()
        self._spent: defaultdict[str, float] = defaultdict(float)
        self._width = width

    @property
    def open(self) -> list[Question]:
        """Those that need a further round."""
        return [one for one, found in self._asked() if not (found and found.settled(self._width))]

    @property
    def disturbed(self) -> bool:
        """Busy rounds are among those that count for some question."""
        return any(one.busy for one in self.answers())

    def answers(self) -> list[Answer]:
        """Of the questions that have one."""
        return [found for _, found in self._asked() if found is not None]

    def medians(self) -> dict[str, dict[str, float]]:
        """Of every cell, over the rounds that count (see `medians`)."""
        return medians(self.cells, self.quiet)

    async def measure(
        self,
        number: int,
        making: Mapping[str, Callable[[], Awaitable[dict[str, float]]]],
        draw: random.Random,
        show: Callable[[str], None],
    ) -> None:
        """Round `number`: every cell in the first one, then the cells of one question that is open.

        It is one that has the fewest rounds, as long as these give no interval, and then one that
        had the least time; the cells' order is random.

        Args:
            number: as iterating gives it.
            making: measures a cell.
            draw: chooses.
            show: is told what is measured.
        """
        wanted, began, asked = set(making), time.monotonic(), None
        if number:
            asked = min(self.open, key=lambda one: (*self._turn(one), draw.random()))
            wanted = {asked.ours, *asked.theirs}
        for cell in draw.sample(sorted(wanted), len(wanted)):
            show(f"round {number + 1}, {cell}")
            self.cells.setdefault(cell, {})[number] = await making[cell]()
        if asked:
            self._spent[asked.name] += time.monotonic() - began

    def _asked(self) -> list[tuple[Question, Answer | None]]:
        quiet = self.quiet
        return [(one, one.answer(self.cells, quiet)) for one in self.questions]

    def _turn(self, question: Question) -> tuple[float, float]:
        return min(len(question.made(self.cells)), MIN_ROUNDS), self._spent[question.name]


def medians(cells: Cells, quiet: Collection[int]) -> dict[str, dict[str, float]]:
    """The median of every figure, and the largest memory, over a cell's rounds that count."""
    found = {}
    for name, rounds in cells.items():
        chosen = [rounds[number] for number in sorted(counting(rounds, quiet))]
        found[name] = {
            figure: (max if figure == "memory_mb" else statistics.median)(
                one[figure] for one in chosen
            )
            for figure in chosen[0]
        }
    return found


def ratio_table(ratios: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Answers as records: the ratio with its interval, the target, the verdict."""
    yield "| ratio, 95 % interval | measured | rounds | target | |"
    yield "|---|---|---|---|---|"
    for one in ratios:
        known = bounded(one["ratio"], None if one["high"] is None else (one["low"], one["high"]))
        verdict = one["verdict"] + " (machine busy)" * bool(one["verdict"] and one["busy"])
        yield f"| {one['name']} | {told(known)} | {one['rounds']} | {one['target']} | {verdict} |"
