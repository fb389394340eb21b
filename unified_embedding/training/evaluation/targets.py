"""The targets that were set before training, and how each row stands against them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from unified_embedding.retrieval import Comparison, Interval
from unified_embedding.training.evaluation.results import Results, loss
from unified_embedding.training.evaluation.rules import (
    Rule,
    gains,
    mean_at_least,
    not_inferior,
    superior,
)
from unified_embedding.training.evaluation.tasks import BROWSE_UNSEEN, CAMERA_EXACT, MAIN

GAINS: Final = {
    MAIN["camera"]: 10.0,
    (CAMERA_EXACT, "R@1"): 10.0,
    MAIN["shop"]: 10.0,
    MAIN["browse"]: 12.0,
}
"""Points gained over zero-shot wanted of a unified embedder, with a lower bound above 0."""

NOT_WORSE: Final = -2.0
"""Least difference, in points, to zero-shot on domains that training never saw."""


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
        *_against_specialists(results),
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
        unseen = f"{BROWSE_UNSEEN} R@1", results.gain(row.name, row.baseline, BROWSE_UNSEEN, "R@1")
        others = [
            (
                f"{place.name}: {place.task} {place.metric}",
                results.gain_elsewhere(row.name, row.baseline, place),
            )
            for place in results.config.elsewhere
        ]
        for what, found in (unseen, *others):
            yield Target(
                f"{row.name} minus {row.baseline}: {what} (never trained on)",
                mean_at_least(NOT_WORSE),
                found,
            )


def _codes(results: Results) -> Iterator[Target]:
    margins = results.config.margins
    allowances: dict[Comparison, float] = {"asymmetric": margins.asymmetric, "code": margins.code}
    for row in results.config.rows:
        if row.kind != "unified":
            continue
        for kind, allowed in allowances.items():
            for task, metric in MAIN.values():
                found = loss(results.named(row.name).measurement, task, metric, kind)
                yield Target(
                    f"{row.name}, {kind} minus float: {task} {metric}",
                    mean_at_least(-allowed),
                    found,
                )


def _against_specialists(results: Results) -> Iterator[Target]:
    unified = results.config.compared()
    if unified is None:
        return
    for task, twin in results.config.specialists().items():
        for other, (name, metric) in MAIN.items():
            # The rules of C1 and C2, so that a target cannot say other than the claim.
            rule = not_inferior(results.config.margins.own_task) if other == task else superior()
            yield Target(
                f"{unified.name} minus {twin.name}: {name} {metric}",
                rule,
                results.gain(unified.name, twin.name, name, metric),
            )
