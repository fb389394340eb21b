"""The paper's claims that one embedder or one trunk can show: C4 and C6.

C1, C2, C3, C5 and C7 compare trainings with one another; `comparison.claims` has them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from unified_embedding.datasets.task_table import BROWSE, SHOP
from unified_embedding.evaluation.experiments import over_seeds
from unified_embedding.evaluation.results import Results
from unified_embedding.evaluation.rules import Rule, not_inferior
from unified_embedding.protocols.measure import Cell
from unified_embedding.protocols.tasks import MAIN
from unified_embedding.retrieval import Interval

Verdict = Literal["held", "did not hold", "not tested"]


@dataclass(frozen=True)
class Finding:
    """One measured difference behind a verdict."""

    what: str
    interval: Interval


@dataclass(frozen=True)
class Claim:
    """A claim of the paper and how it fared.

    Attributes:
        key: "C1" to "C7".
        text: what the paper says, in a sentence.
        rule: when it counts as held.
        verdict: by that rule.
        findings: the differences, or empty.
        remark: why it was not tested, or what limits the verdict.
    """

    key: str
    text: str
    rule: str
    verdict: Verdict
    findings: tuple[Finding, ...]
    remark: str = ""


def claims(results: Results) -> list[Claim]:
    """Both, in order; without last layers C4 is left to the page of those."""
    c4 = [_subsampling(results)] if results.config.last_layers is not None else []
    return [*c4, _one_index(results)]


def _subsampling(results: Results) -> Claim:
    rule = not_inferior(results.config.margins.sampled)
    found: list[Finding] = []
    findings = results.findings
    shares = [10, 25]
    if findings is not None and {*shares, 100} <= set(findings.sampled):
        for task in (BROWSE.name, SHOP.name):
            name, metric = MAIN[task]
            cell = Cell(name, metric, "float")
            if cell not in findings.sampled[100][0].samples:
                continue
            full = over_seeds(findings.sampled[100], cell)
            for share in shares:
                interval = over_seeds(findings.sampled[share], cell).minus(full).interval()
                found.append(Finding(f"{name} {metric}: {share} % of the classes", interval))
    complete = len(found) == 2 * len(shares)
    return Claim(
        "C4",
        "The subsampled softmax is about as good as the full one, at a fraction of its memory "
        "and time.",
        f"10 % and 25 % of the classes minus all of them, mean over seeds: {rule.text} points, "
        "for the two heads that the paper subsamples",
        verdict(found, complete, rule),
        tuple(found),
        "Quality only, last layers only, and about 1,000 classes: this cannot test web scale. "
        "Memory and time are measured by the subsampler's own benchmark.",
    )


def _one_index(results: Results) -> Claim:
    row = results.config.compared()
    names = [row.name] if row is not None else []
    names += [twin.name for twin in results.config.replaced()]
    run = [name for name in names if results.named(name).speed is not None]
    complete = len(run) == len(MAIN) + 1
    return Claim(
        "C6",
        "One embedding means one back-fill and one index instead of three, at lower cost.",
        "a count, not a statistic: see the section on costs",
        "held" if complete else "not tested",
        (),
        "" if complete else "Needs the speed of the compared row.",
    )


def verdict(findings: Sequence[Finding], complete: bool, rule: Rule) -> Verdict:
    """By one rule for all findings; "not tested" unless all of them are there."""
    if not complete:
        return "not tested"
    return "held" if all(rule.holds(finding.interval) for finding in findings) else "did not hold"
