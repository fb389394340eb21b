"""The targets that were set before training, and how each row stands against them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from unified_embedding.retrieval import Comparison, Interval
from unified_embedding.training.evaluation.results import Results, loss
from unified_embedding.training.evaluation.tasks import BROWSE_UNSEEN, CAMERA_EXACT, MAIN

GAINS: Final = {
    MAIN["camera"]: 0.10,
    (CAMERA_EXACT, "R@1"): 0.10,
    MAIN["shop"]: 0.10,
    MAIN["browse"]: 0.12,
}
"""Gain over zero-shot wanted of a unified embedder, with a lower bound above 0."""

ALLOWED: Final[dict[Comparison, float]] = {"asymmetric": 0.015, "code": 0.03}
"""Loss against float that is allowed on each main figure."""

NOT_WORSE: Final = -0.02
"""Least difference to zero-shot on domains that training never saw."""

OWN_TASK: Final = -0.03
OTHER_TASKS: Final = 0.05
"""Least lower bound (own task) and least gain (other tasks) of unified minus specialist."""


@dataclass(frozen=True)
class Target:
    """One difference, what was wanted of it, and what was found (None: not run)."""

    what: str
    target: str
    interval: Interval | None
    met: bool

    @property
    def verdict(self) -> str:
        """In a word."""
        return "" if self.interval is None else "met" if self.met else "missed"


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
                f"at least {100 * wanted:+.0f}, lower bound above 0",
                found,
                found is not None and found.mean >= wanted and found.low > 0,
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
                f"at least {100 * NOT_WORSE:+.0f}",
                found,
                found is not None and found.mean >= NOT_WORSE,
            )


def _codes(results: Results) -> Iterator[Target]:
    for row in results.config.rows:
        if row.kind != "unified":
            continue
        for kind, allowed in ALLOWED.items():
            for task, metric in MAIN.values():
                found = loss(results.named(row.name).measurement, task, metric, kind)
                yield Target(
                    f"{row.name}, {kind} minus float: {task} {metric}",
                    f"at least {-100 * allowed:+g}",
                    found,
                    found is not None and found.mean >= -allowed,
                )


def _against_specialists(results: Results) -> Iterator[Target]:
    unified = results.config.compared()
    if unified is None:
        return
    for task, twin in results.config.specialists().items():
        for other, (name, metric) in MAIN.items():
            found = results.gain(unified.name, twin.name, name, metric)
            own = other == task
            met = found is not None and (found.low > OWN_TASK if own else found.mean >= OTHER_TASKS)
            yield Target(
                f"{unified.name} minus {twin.name}: {name} {metric}",
                "lower bound above -3" if own else f"at least {100 * OTHER_TASKS:+.0f}",
                found,
                met,
            )
