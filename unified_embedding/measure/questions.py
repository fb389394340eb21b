"""What rounds of measurements are made for: ratios of one figure in two cells, with targets."""

import math
import random
import statistics
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unified_embedding.measure.paired import Target, ratio, settled, told
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
        theirs: cells of the denominator; of several the best counts.
        target: what the ratio should be, or None when it is only of interest.
    """

    name: str
    figure: str
    ours: str
    theirs: tuple[str, ...]
    target: Target | None

    def answer(self, cells: Cells, counted: Collection[int]) -> "Answer | None":
        """From the rounds that count; None when no round has both sides."""
        found = []
        for theirs in self.theirs:
            sides = [
                {number: one[self.figure] for number, one in cells.get(cell, {}).items()}
                for cell in (self.ours, theirs)
            ]
            ours, others = paired(counted, *sides)
            if ours:
                found.append((ratio(ours, others), len(ours)))
        if not found:
            return None
        # The best of the others is the one beside which ours looks worst.
        worst = min if self.target is None or self.target.at_least else max
        interval, rounds = worst(found, key=lambda one: one[0].mean)
        return Answer(self, interval, rounds)


@dataclass(frozen=True)
class Answer:
    """A question's interval after so many rounds."""

    question: Question
    interval: Interval
    rounds: int

    def settled(self, width: float) -> bool:
        """No further round is needed."""
        return settled(self.interval, width, self.question.target)

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return record(self.question.name, self.interval, self.rounds, self.question.target)


def record(name: str, found: Interval, rounds: int, target: Target | None) -> dict[str, Any]:
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
    }


def bounds(found: Interval) -> tuple[float, float] | None:
    """Of an interval, as JSON values: None when the rounds were too few for one."""
    return None if math.isinf(found.high) else (found.low, found.high)


def bounded(mean: float, known: Sequence[float] | None) -> Interval:
    """The interval of which `bounds` are known."""
    low, high = known or (-math.inf, math.inf)
    return Interval(mean, low, high)


def open_questions(
    asked: Sequence[Question], cells: Cells, rounds: Rounds, width: float
) -> list[Question]:
    """Those that need a further round: all of them as long as the machine is busy."""
    if rounds.disturbed:
        return list(asked)
    answers = [(one, one.answer(cells, rounds.counted)) for one in asked]
    return [one for one, found in answers if not (found and found.settled(width))]


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
        verdict = one["verdict"] + " (machine busy)" * (disturbed and bool(one["verdict"]))
        yield f"| {one['name']} | {told(known)} | {one['rounds']} | {one['target']} | {verdict} |"
