"""The paper's claims C1 to C7, each with its rule and what was found here.

The rules were written down before anything was measured on test queries.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from unified_embedding.retrieval import Interval
from unified_embedding.training.evaluation.experiments import over_seeds
from unified_embedding.training.evaluation.measure import Cell
from unified_embedding.training.evaluation.results import Results, loss
from unified_embedding.training.evaluation.rules import Rule, mean_at_least, not_inferior, superior
from unified_embedding.training.evaluation.tasks import CAMERA_EXACT, MAIN

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
    """All seven, in order."""
    return [
        _own_task(results),
        _other_tasks(results),
        _binary(results),
        _subsampling(results),
        Claim(
            "C5",
            "Equal weights of the losses do no worse than GradNorm.",
            "unified with equal weights minus unified with GradNorm",
            "not tested",
            (),
            "GradNorm is not implemented here.",
        ),
        _one_index(results),
        _transfer(results),
    ]


def _own_task(results: Results) -> Claim:
    rule = not_inferior(results.config.margins.own_task)
    found = [
        Finding(f"{task}: {MAIN[task][0]} {MAIN[task][1]}", gain)
        for task, twin in results.config.specialists().items()
        if (gain := _against(results, twin.name, *MAIN[task])) is not None
    ]
    complete = len(found) == len(MAIN)
    return Claim(
        "C1",
        "One embedding trained on all products is as good as the specialist on its own product, "
        "or better.",
        f"unified minus specialist on the specialist's main figure: {rule.text} points, for all "
        "three; the margin was fixed beforehand",
        _verdict(found, complete, rule),
        tuple(found),
        "" if complete else "Needs the unified row and all three specialists.",
    )


def _other_tasks(results: Results) -> Claim:
    found = [
        Finding(f"{task} specialist on {MAIN[other][0]} {MAIN[other][1]}", gain)
        for task, twin in results.config.specialists().items()
        for other in MAIN
        if other != task and (gain := _against(results, twin.name, *MAIN[other])) is not None
    ]
    complete = len(found) == len(MAIN) * (len(MAIN) - 1)
    return Claim(
        "C2",
        "It is better than a specialist on the products which that one was not trained for.",
        "unified minus specialist on the other two products: lower bound above 0 for all six",
        _verdict(found, complete, superior()),
        tuple(found),
        "" if complete else "Needs the unified row and all three specialists.",
    )


def _binary(results: Results) -> Claim:
    row = results.config.compared()
    measurement = results.named(row.name).measurement if row is not None else None
    costs = [
        Finding(f"unified, {name} {metric}: code minus float", change)
        for name, metric in MAIN.values()
        if (change := loss(measurement, name, metric, "code")) is not None
    ]
    helps = _norm_helps(results)
    complete = len(costs) == len(MAIN) and len(helps) == len(MAIN)
    rule = mean_at_least(-results.config.margins.code)
    held = _all(costs, rule) and _all(helps, superior())
    return Claim(
        "C3",
        "With LayerNorm the sign-bit code loses little against the float embedding; without it, "
        "a lot.",
        f"code minus float {rule.text} points for all three; and the loss without LayerNorm "
        "exceeds the one with it, lower bound above 0, for all three (last layers, full dimension)",
        "not tested" if not complete else "held" if held else "did not hold",
        (*costs, *helps),
        "" if complete else "Needs the unified row and the experiments on cached features.",
    )


def _norm_helps(results: Results) -> list[Finding]:
    """How much more the code loses without LayerNorm, at full dimension."""
    if results.findings is None:
        return []
    dim = results.findings.dim
    found = []
    for name, metric in MAIN.values():
        losses = []
        for norm in (False, True):
            samples = results.findings.learnt[dim, norm].samples
            if Cell(name, metric, "float") not in samples:
                break
            by_code = samples[Cell(name, metric, "code")]
            losses.append(samples[Cell(name, metric, "float")].minus(by_code))
        else:
            without, with_norm = losses
            interval = without.minus(with_norm).interval()
            found.append(Finding(f"{name} {metric}: loss without LayerNorm minus with", interval))
    return found


def _subsampling(results: Results) -> Claim:
    rule = not_inferior(results.config.margins.sampled)
    found: list[Finding] = []
    findings = results.findings
    shares = [10, 25]
    if findings is not None and {*shares, 100} <= set(findings.sampled):
        for task in ("browse", "shop"):
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
        _verdict(found, complete, rule),
        tuple(found),
        "Quality only, last layers only, and about 1,000 classes: this cannot test web scale. "
        "Memory and time are measured by the subsampler's own benchmark.",
    )


def _one_index(results: Results) -> Claim:
    row = results.config.compared()
    names = [row.name] if row is not None else []
    names += [twin.name for twin in results.config.specialists().values()]
    run = [name for name in names if results.named(name).speed is not None]
    complete = len(run) == len(MAIN) + 1
    return Claim(
        "C6",
        "One embedding means one back-fill and one index instead of three, at lower cost.",
        "a count, not a statistic: see the section on costs",
        "held" if complete else "not tested",
        (),
        "" if complete else "Needs the unified row and all three specialists.",
    )


def _transfer(results: Results) -> Claim:
    twin = results.config.specialists().get("camera")
    gain = _against(results, twin.name, CAMERA_EXACT, "R@1") if twin is not None else None
    found = [Finding("camera exact R@1: unified minus camera specialist", gain)] if gain else []
    return Claim(
        "C7",
        "What one domain teaches helps across domains: camera pictures find the exact catalogue "
        "picture, which no camera label asks for.",
        "unified minus camera specialist on camera exact R@1: lower bound above 0",
        _verdict(found, bool(found), superior()),
        tuple(found),
        "" if found else "Needs the unified row and the camera specialist.",
    )


def _against(results: Results, theirs: str, task: str, metric: str) -> Interval | None:
    row = results.config.compared()
    return None if row is None else results.gain(row.name, theirs, task, metric)


def _verdict(findings: Sequence[Finding], complete: bool, rule: Rule) -> Verdict:
    if not complete:
        return "not tested"
    return "held" if _all(findings, rule) else "did not hold"


def _all(findings: Sequence[Finding], rule: Rule) -> bool:
    return all(rule.holds(finding.interval) for finding in findings)
