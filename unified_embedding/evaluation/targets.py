"""The targets that were set before training, and how each row stands against them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from unified_embedding.datasets.task_table import BROWSE, CAMERA, SHOP
from unified_embedding.evaluation.results import Results
from unified_embedding.evaluation.rules import (
    Rule,
    gains,
    mean_at_least,
)
from unified_embedding.protocols.measure import Cell
from unified_embedding.protocols.tasks import BROWSE_UNSEEN, CAMERA_EXACT, MAIN
from unified_embedding.retrieval import Comparison, Interval

GAINS: Final = {
    MAIN[CAMERA.name]: 8.0,
    (CAMERA_EXACT, "R@1"): 10.0,
    MAIN[SHOP.name]: 10.0,
    MAIN[BROWSE.name]: 12.0,
    (BROWSE_UNSEEN, "R@1"): 18.0,
}
"""Points gained over zero-shot wanted of a unified embedder, with a lower bound above 0."""

NOT_WORSE: Final = -1.0
"""Least difference, in points, to zero-shot on test sets of domains that training never saw."""


@dataclass(frozen=True)
class Target:
    """One difference, what was wanted of it, and what was found (None: not run)."""

    what: str
    rule: Rule
    interval: Interval | None

    @property
    def verdict(self) -> str:
        """In a word."""
        if self.interval is None:
            return ""
        return "met" if self.rule.holds(self.interval) else "missed"


def targets(results: Results) -> list[Target]:
    """Every target, for every unified row."""
    return [
        *_gains(results),
        *_elsewhere(results),
        *_codes(results),
    ]


def _gains(results: Results) -> Iterator[Target]:
    for row in results.config.rows:
        if row.kind != "unified" or row.baseline is None:
            continue
        for (task, metric), wanted in GAINS.items():
            found = results.gain(row.name, row.baseline, task, metric)
            yield Target(
                f"{row.name} minus {row.baseline}: {task} {metric}",
                gains(wanted),
                found,
            )


def _elsewhere(results: Results) -> Iterator[Target]:
    for row in results.config.rows:
        if row.kind != "unified" or row.baseline is None:
            continue
        for place in results.config.elsewhere:
            what = f"{place.name}: {place.task} {place.metric}"
            yield Target(
                f"{row.name} minus {row.baseline}: {what} (never trained on)",
                mean_at_least(NOT_WORSE),
                results.gain_elsewhere(row.name, row.baseline, place),
            )


def _codes(results: Results) -> Iterator[Target]:
    """Mean over random maps, at the widest code that was asked for."""
    wanted = results.config.rotations
    if wanted is None:
        return
    margins = results.config.margins
    allowances: dict[Comparison, float] = {"asymmetric": margins.asymmetric, "code": margins.code}
    bits = max(wanted.bits)
    for name in wanted.rows:
        found = next((one for one in results.named(name).rotated if one.bits == bits), None)
        for kind, allowed in allowances.items():
            for task, metric in MAIN.values():
                yield Target(
                    f"{name}, {bits:,} bits, mean of {wanted.count} maps, {kind} minus float: "
                    f"{task} {metric}",
                    mean_at_least(-allowed),
                    None if found is None else found.mean(Cell(task, metric, kind)),
                )
