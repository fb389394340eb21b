"""The claims that compare trainings (C1, C2, C3, C5, C7), each with its rule and its verdict.

Beside the paper's stand B1 and B2, of backward-compatible training (arXiv 2003.11942).

Rules and margins were written down before the runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from unified_embedding.evaluation.claims import Claim, Finding, verdict
from unified_embedding.evaluation.comparison.config import Margins
from unified_embedding.evaluation.rules import (
    Rule,
    mean_at_least,
    not_inferior,
    superior,
)
from unified_embedding.protocols.tasks import CAMERA_EXACT, MAIN
from unified_embedding.retrieval import Comparison, Interval

SEARCHED: Final[tuple[Comparison, ...]] = ("float", "code")
"""How the queries of a compatible embedder search an old index: B1 and B2."""
_GAINED: Final = 2
"""Tasks, of three, on which compatibility has to gain."""


@dataclass(frozen=True)
class Evidence:
    """Paired differences, over trainings and test products; what was not run is left out.

    Attributes:
        own: task -> unified minus the specialist, on the specialist's main figure.
        others: (specialist's task, another) -> the same on another product's main figure.
        codes: task -> code minus float of unified, as trained.
        norm: task -> what the code loses more without LayerNorm than with it.
        balance: task -> equal weights minus GradNorm.
        transfer: unified minus the camera specialist on `CAMERA_EXACT` R@1.
        old: (task, by float or code) -> new queries in the old index minus old queries there.
    """

    own: Mapping[str, Interval] = field(default_factory=dict)
    others: Mapping[tuple[str, str], Interval] = field(default_factory=dict)
    codes: Mapping[str, Interval] = field(default_factory=dict)
    norm: Mapping[str, Interval] = field(default_factory=dict)
    balance: Mapping[str, Interval] = field(default_factory=dict)
    transfer: Interval | None = None
    old: Mapping[tuple[str, Comparison], Interval] = field(default_factory=dict)


def claims(evidence: Evidence, margins: Margins) -> list[Claim]:
    """The paper's five in order, then the two of compatibility."""
    return [
        _claim(
            "C1",
            "One embedding trained on all products is as good as the specialist on its own "
            "product, or better.",
            "unified minus specialist on the specialist's main figure, equal task data: {rule} "
            "points, for all three; nothing else decides",
            [Finding(f"{t}: {_main(t)}", found) for t, found in evidence.own.items()],
            len(MAIN),
            not_inferior(margins.own_task),
        ),
        _claim(
            "C2",
            "It is better than a specialist on the products which that one was not trained for.",
            "unified minus specialist on the other two products, equal task data: {rule}, for all "
            "six",
            [
                Finding(f"{t} specialist on {_main(other)}", found)
                for (t, other), found in evidence.others.items()
            ],
            len(MAIN) * (len(MAIN) - 1),
            superior(),
        ),
        _binary(evidence, margins),
        _claim(
            "C5",
            "Equal weights of the losses do no worse than GradNorm.",
            "unified with equal weights minus unified with GradNorm, at equal cost: {rule} points, "
            "for all three",
            [Finding(_main(t), found) for t, found in evidence.balance.items()],
            len(MAIN),
            not_inferior(margins.balance),
        ),
        _claim(
            "C7",
            "What one domain teaches helps across domains: camera pictures find the exact "
            "catalogue picture, which no camera label asks for.",
            "unified minus camera specialist on camera exact R@1, equal task data: {rule}",
            []
            if evidence.transfer is None
            else [Finding(f"{CAMERA_EXACT} R@1", evidence.transfer)],
            1,
            superior(),
        ),
        *(_compatible(evidence, key, by) for key, by in zip(("B1", "B2"), SEARCHED, strict=True)),
    ]


def _compatible(evidence: Evidence, key: str, by: Comparison) -> Claim:
    rule = superior()
    findings = [
        Finding(f"{_main(task)}, by {by}", evidence.old[task, by])
        for task in MAIN
        if (task, by) in evidence.old
    ]
    complete = len(findings) == len(MAIN)
    gained = [one for one in findings if rule.holds(one.interval)]
    return Claim(
        key,
        "Not the paper's: trained to be backward compatible, an embedder's queries find more in "
        f"the old embedder's index than the old queries do, by {by}.",
        f"new query minus old query, both in the old index: {rule.text}, for at least {_GAINED} of "
        f"the {len(MAIN)} tasks",
        verdict(gained if len(gained) >= _GAINED else findings, complete, rule),
        tuple(findings),
        _remark(complete),
    )


def _binary(evidence: Evidence, margins: Margins) -> Claim:
    little, helps = mean_at_least(-margins.code), superior()
    costs = [Finding(f"{_main(t)}: code minus float", one) for t, one in evidence.codes.items()]
    more = [
        Finding(f"{_main(t)}: loss without LayerNorm minus with", one)
        for t, one in evidence.norm.items()
    ]
    complete = len(costs) == len(more) == len(MAIN)
    verdicts = {verdict(costs, complete, little), verdict(more, complete, helps)}
    worst = "did not hold" if "did not hold" in verdicts else verdicts.pop()
    return Claim(
        "C3",
        "With LayerNorm the sign-bit code loses little against the float embedding; without it, a "
        "lot.",
        f"code minus float {little.text} points for all three; and a network trained end to end "
        f"without LayerNorm loses more, {helps.text}, for all three",
        worst,
        (*costs, *more),
        _remark(complete),
    )


def _claim(
    key: str, text: str, rule_text: str, findings: list[Finding], needed: int, rule: Rule
) -> Claim:
    complete = len(findings) == needed
    return Claim(
        key,
        text,
        rule_text.format(rule=rule.text),
        verdict(findings, complete, rule),
        tuple(findings),
        _remark(complete),
    )


def _remark(complete: bool) -> str:
    return "" if complete else "Rows that this needs were not run."


def _main(task: str) -> str:
    return " ".join(MAIN[task])
