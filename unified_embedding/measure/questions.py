"""What rounds of measurements are made for: ratios of one figure in two cells, with targets."""

import math
import random
import statistics
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unified_embedding.measure.paired import Target, ratio, settled, told
from unified_embedding.measure.processes import ProcessTree
from unified_embedding.measure.rounds import Rounds, paired
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

    def answer(self, cells: Cells, counted: Collection[int]) -> "Answer | None":
        """From the rounds that count; None when no round has both sides.

        Of several others the harshest decides: the target is met when it is met beside each of
        them, and missed when it is missed beside one.
        """
        beside = (self._beside(theirs, cells, counted) for theirs in self.theirs)
        return min((one for one in beside if one), key=self._harshness, default=None)

    def _beside(self, theirs: str, cells: Cells, counted: Collection[int]) -> "Answer | None":
        sides = [
            {number: one[self.figure] for number, one in cells.get(cell, {}).items()}
            for cell in (self.ours, theirs)
        ]
        ours, others = paired(counted, *sides)
        if ours:
            return Answer(self, ratio(ours, others), len(ours))
        # Its rounds were found busy later: they tell the ratio roughly, and decide nothing.
        ours, others = paired(sides[0], *sides)
        if not ours:
            return None
        roughly = Interval(ratio(ours, others).mean, -math.inf, math.inf)
        return Answer(self, roughly, len(ours), busy=True)

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
    """A question's interval after so many rounds; `busy` when none of them counts."""

    question: Question
    interval: Interval
    rounds: int
    busy: bool = False

    def settled(self, width: float) -> bool:
        """No further round is needed."""
        return settled(self.interval, width, self.question.target)

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
    """Rounds that go on until every question is answered, or the time is up.

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
        self._width = width

    @property
    def open(self) -> list[Question]:
        """Those that need a further round: all of them as long as the machine is busy."""
        if self.disturbed:
            return self.questions
        answers = [(one, one.answer(self.cells, self.counted)) for one in self.questions]
        return [one for one, found in answers if not (found and found.settled(self._width))]


async def one_round(
    number: int,
    asked: Sequence[Question],
    making: Mapping[str, Callable[[], Awaitable[dict[str, float]]]],
    cells: Cells,
    draw: random.Random,
    show: Callable[[str], None],
) -> None:
    """Measure the cells that questions need, in random order; in the first round, every cell.

    `making` measures a cell, and `show` is told which.
    """
    wanted = {cell for one in asked for cell in (one.ours, *one.theirs)}
    if number == 0:
        wanted |= making.keys()
    for cell in draw.sample(sorted(wanted), len(wanted)):
        show(f"round {number + 1}, {cell}")
        cells.setdefault(cell, {})[number] = await making[cell]()


def answered(asked: Sequence[Question], cells: Cells, counted: Collection[int]) -> list[Answer]:
    """The answers of those that have one."""
    answers = [one.answer(cells, counted) for one in asked]
    return [one for one in answers if one is not None]


def medians(cells: Cells, counted: frozenset[int]) -> dict[str, dict[str, float]]:
    """The median of every figure, and the largest memory, over the rounds that count.

    All rounds of a cell that was measured in no such round.
    """
    found = {}
    for name, rounds in cells.items():
        chosen = [rounds[number] for number in sorted(counted & rounds.keys())]
        chosen = chosen or list(rounds.values())
        found[name] = {
            figure: (max if figure == "memory_mb" else statistics.median)(
                one[figure] for one in chosen
            )
            for figure in chosen[0]
        }
    return found


def ratio_table(ratios: Sequence[Mapping[str, Any]], disturbed: bool) -> Iterator[str]:
    """Answers as records: the ratio with its interval, the target, the verdict."""
    yield "| ratio, 95 % interval | measured | rounds | target | |"
    yield "|---|---|---|---|---|"
    for one in ratios:
        known = bounded(one["ratio"], None if one["high"] is None else (one["low"], one["high"]))
        busy = one["verdict"] and (disturbed or one.get("busy"))
        verdict = one["verdict"] + " (machine busy)" * bool(busy)
        yield f"| {one['name']} | {told(known)} | {one['rounds']} | {one['target']} | {verdict} |"
