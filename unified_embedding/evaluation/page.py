"""docs/results.md: every figure with its interval, and what was not run said so."""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from unified_embedding.codes import code_bytes
from unified_embedding.evaluation.agreement import FIGURES, Agreement
from unified_embedding.evaluation.charts import OVERVIEW
from unified_embedding.evaluation.claims import Claim
from unified_embedding.evaluation.experiments import (
    MAPPED,
    NO_NORM,
    PLAIN,
    Findings,
    over_seeds,
)
from unified_embedding.evaluation.results import Results, RowResult, loss
from unified_embedding.evaluation.rotations import STORED, Rotated
from unified_embedding.evaluation.targets import Target
from unified_embedding.protocols.measure import Cell, Measurement
from unified_embedding.protocols.tasks import (
    BROWSE_MERGED,
    BROWSE_UNSEEN,
    CAMERA_CATEGORY,
    CAMERA_UNSEEN,
    MAIN,
    ONE_INDEX,
)
from unified_embedding.retrieval import COMPARISONS, Comparison, Interval

COLUMNS: Final = (*OVERVIEW[:-1], (BROWSE_MERGED, "mAP@R"), OVERVIEW[-1])
NOT_RUN: Final = "not run"
MILLION: Final = 1_000_000

Lines = list[str]


def render(
    results: Results,
    claims: Sequence[Claim],
    targets: Sequence[Target],
    agreements: Sequence[Agreement],
    pictures: Sequence[str],
    command: str,
) -> str:
    """The page as Markdown.

    Args:
        results: of `evaluate`.
        claims: of `claims.claims`.
        targets: of `targets.targets`.
        agreements: engines and servers that were compared with rows.
        pictures: file names below `images/`.
        command: what computes the page again.
    """
    last = results.config.last_layers
    sections: list[Lines] = [
        _opening(results, command),
        claims_table(claims),
        [
            "C1, C2, C3, C5 and C7 compare trainings: `make compare` runs them, and "
            "[comparison.md](comparison.md) judges them."
            + (" C4 is judged in [last-layers.md](last-layers.md)." if last is None else ""),
            "",
        ],
        _picture("results-overview.png", "Main figures of every row with intervals", pictures),
        _main_table(results),
        _targets_table(targets),
        _code_table(results),
        _one_index_table(results),
        _elsewhere(results),
        _ranks_table(results),
        *([] if last is None else [_dimension(results.findings, pictures)]),
        *([] if last is None else [_subsampling(results.findings, pictures)]),
        _costs(results),
        _served(agreements),
        claims_detail(claims),
        _method(results),
    ]
    return "\n".join(line for section in sections for line in section)


def percent(value: float) -> str:
    """One decimal, no sign: 61.3."""
    return f"{100 * value:.1f}"


def points(interval: Interval | None) -> str:
    """A paired difference in points with its interval: +1.2 [-0.3, +2.7]."""
    if interval is None:
        return NOT_RUN
    low, mean, high = (f"{100 * v:+.1f}" for v in (interval.low, interval.mean, interval.high))
    return f"{mean} [{low}, {high}]"


def level(interval: Interval | None) -> str:
    """A figure with its interval: 61.3 [57.0, 65.2]."""
    if interval is None:
        return NOT_RUN
    return f"{percent(interval.mean)} [{percent(interval.low)}, {percent(interval.high)}]"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Lines:
    """A Markdown table; nothing for no rows."""
    if not rows:
        return []
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]


def _picture(name: str, text: str, pictures: Sequence[str]) -> Lines:
    return [f"![{text}](images/{name})", ""] if name in pictures else []


def _opening(results: Results, command: str) -> Lines:
    counts = results.test_set
    searched = table(
        ["search", "queries", "products or families", "gallery pictures", "searches"],
        [
            [
                name,
                f"{counts.queries[name]:,}",
                f"{counts.clusters[name]:,}",
                f"{counts.gallery[name]:,}",
                f"{counts.searches[name]:,}",
            ]
            for name in counts.queries
            if not name.startswith(ONE_INDEX)
        ],
    )
    seeds = results.config.training_seeds
    return [
        "# Results",
        "",
        f"Written by `{command}`; do not edit. Every query shows an identity (product, emoji "
        "family) that appears in no training picture. The galleries of exact searches keep the "
        f"products that were trained on, as distractors. `{CAMERA_UNSEEN}`, the main figure of "
        "camera, searches only products that appear in no training picture; "
        f"`{CAMERA_CATEGORY}` searches all, and many of them were trained on with the label that "
        "counts as correct here. **The photographs of products are simulated**: they are "
        "renderings of 3D models in generated rooms. The catalogue pictures and the emoji are "
        "real artwork.",
        "",
        f"Test set `{counts.digest}` (hash of every picture's bytes and labels, frozen before "
        "training).",
        "",
        *searched,
        "Figures are percent. Brackets hold 95 % intervals by cluster bootstrap over products "
        "(browse: emoji families), paired wherever two things are compared. They cover the choice "
        f"of test identities only, not the randomness of training: there "
        f"{'was one training seed' if seeds == 1 else f'were {seeds} training seeds'} per row. "
        "Rows are a run's last, annealed weights; `images seen` counts steps in which the trunk "
        "is trained. Hamming distances can tie; tied answers share the credit.",
        "",
    ]


def claims_table(claims: Sequence[Claim]) -> Lines:
    """Verdicts with the weakest difference of each."""
    rows = [
        [claim.key, claim.text, f"**{claim.verdict}**", _worst_finding(claim)] for claim in claims
    ]
    return [
        "## The paper's claims, here",
        "",
        *table(["", "claim (KDD 2019)", "here", "weakest difference, points"], rows),
        "Rules and all differences: [below](#claims-in-detail).",
        "",
    ]


def _worst_finding(claim: Claim) -> str:
    if not claim.findings:
        return claim.remark or "a count, see the costs"
    worst = min(claim.findings, key=lambda finding: finding.interval.low)
    return f"{points(worst.interval)} ({worst.what})"


def _main_table(results: Results) -> Lines:
    head = ["embedder", "px", "images seen", "by", "bytes", *(f"{t} {m}" for t, m in COLUMNS)]
    rows = []
    for result in results.rows:
        if result.measurement is None:
            rows.append([result.row.name, *["" for _ in head[1:5]], *[NOT_RUN for _ in COLUMNS]])
            continue
        for kind in COMPARISONS:
            first = kind == "float"
            rows.append(
                [
                    result.row.name if first else "",
                    str((result.facts or {}).get("size", "")) if first else "",
                    _images_seen(result) if first else "",
                    kind,
                    f"{_bytes(result.dim, kind):,}",
                    *(_figure(result, task, metric, kind) for task, metric in COLUMNS),
                ]
            )
    unseen = ", ".join(results.test_set.unseen)
    remark = (
        f"`{BROWSE_UNSEEN}`: searches from or into {unseen}, never trained on." if unseen else ""
    )
    return [
        "## The table",
        "",
        *table(head, rows),
        f"{remark} `bytes`: of one stored picture. `asymmetric`: float query against stored codes.",
        "",
    ]


def _images_seen(result: RowResult) -> str:
    facts = result.facts or {}
    if "images_seen" in facts:
        each = facts["images_seen"] // max(1, len(facts.get("tasks", ())))
        return f"{facts['images_seen']:,} ({each:,} per task)"
    return "0" if result.row.kind == "zero-shot" else "see its card"


def _bytes(dim: int, kind: Comparison) -> int:
    return 4 * dim if kind == "float" else code_bytes(dim)


def _figure(result: RowResult, task: str, metric: str, kind: Comparison) -> str:
    interval = result.interval(Cell(task, metric, kind))
    return "" if interval is None else percent(interval.mean)


def _targets_table(targets: Sequence[Target]) -> Lines:
    rows = [
        [target.what, target.rule.text, points(target.interval), target.verdict]
        for target in targets
    ]
    return [
        "## Differences and targets",
        "",
        "Paired differences in points. Targets were set before training and not adjusted "
        "afterwards.",
        "",
        *table(["difference", "target", "found", ""], rows),
    ]


def _code_table(results: Results) -> Lines:
    rows = []
    for result in results.rows:
        if result.measurement is None:
            continue
        for kind in ("asymmetric", "code"):
            changes = [loss(result.measurement, task, metric, kind) for task, metric in COLUMNS]
            texts = ["" if one is None else points(one) for one in changes]
            rows.append([result.row.name if kind == "asymmetric" else "", kind, *texts])
    head = ["embedder", "minus float", *(f"{task} {metric}" for task, metric in COLUMNS)]
    return ["## Loss by code", "", *table(head, rows), *_rotations(results)]


def _rotations(results: Results) -> Lines:
    rows = [
        [
            result.row.name,
            f"{found.bits:,}",
            kind,
            *(_over_maps(found, Cell(task, metric, kind)) for task, metric in MAIN.values()),
        ]
        for result in results.rows
        for found in result.rotated
        for kind in STORED
    ]
    wanted = results.config.rotations
    if not rows or wanted is None:
        return []
    figures = [f"{task} {metric}" for task, metric in MAIN.values()]
    head = ["embedder", "bits", "minus float", *figures]
    return [
        f"The rotation inside an embedder is a single random draw. Mean over {wanted.count} "
        "random maps in its place, none of them selected; SD over the maps:",
        "",
        *table(head, rows),
    ]


def _over_maps(found: Rotated, cell: Cell) -> str:
    interval = found.mean(cell)
    return "" if interval is None else f"{points(interval)}, SD {100 * found.spread(cell):.1f}"


def _one_index_table(results: Results) -> Lines:
    cells = [(task, metric) for task, metric in _figures(results) if task.startswith(ONE_INDEX)]
    rows = [
        [
            result.row.name,
            *(
                " / ".join(_figure(result, task, metric, kind) for kind in COMPARISONS)
                for task, metric in cells
            ),
        ]
        for result in results.rows
        if result.measurement is not None
    ]
    size = max((results.test_set.gallery.get(task, 0) for task, _ in cells), default=0)
    head = ["embedder", *(f"{task.removeprefix(ONE_INDEX)} {metric}" for task, metric in cells)]
    return [
        "## All galleries in one index",
        "",
        f"One embedding must serve every product, so here every query searches the union of all "
        f"galleries ({size:,} pictures). Float / asymmetric / code.",
        "",
        *table(head, rows),
    ]


def _elsewhere(results: Results) -> Lines:
    rows = []
    for place in results.config.elsewhere:
        for result in results.rows:
            if result.measurement is None:
                continue
            found = result.elsewhere.get(place.name)
            cells = [Cell(place.task, place.metric, kind) for kind in COMPARISONS]
            texts = [
                NOT_RUN if found is None else level(found.samples[cell].interval())
                for cell in cells
            ]
            gain = results.gain_elsewhere(result.row.name, result.row.baseline, place)
            change = points(gain) if result.row.baseline is not None else ""
            rows.append(
                [place.name, result.row.name, f"{place.task} {place.metric}", *texts, change]
            )
    head = ["test set", "embedder", "figure", *COMPARISONS, "float, minus its zero-shot"]
    if not rows:
        return []
    return ["## Domains that no row was trained on", "", *table(head, rows)]


def _ranks_table(results: Results) -> Lines:
    rows = [
        [
            result.row.name,
            f"{task} {metric}",
            *(level(result.interval(Cell(task, metric, kind))) for kind in COMPARISONS),
        ]
        for result in results.rows
        if result.measurement is not None
        for task, metric in _figures(results)
        if not task.startswith(ONE_INDEX)
    ]
    return [
        "<details><summary>Every figure with its interval</summary>",
        "",
        *table(["embedder", "figure", *COMPARISONS], rows),
        "</details>",
        "",
    ]


def _figures(results: Results) -> list[tuple[str, str]]:
    """Every (task, metric) that any row was measured by, in the order of the tasks."""
    return list(
        dict.fromkeys(
            (cell.task, cell.metric)
            for result in results.rows
            if result.measurement is not None
            for cell in result.measurement.samples
        )
    )


def _dimension(findings: Findings | None, pictures: Sequence[str]) -> Lines:
    head = ["## Dimension", ""]
    if findings is None:
        return [*head, "Not run.", ""]
    settings = findings.settings
    rows = [
        _kinds_row(f"{dim} dimensions, LayerNorm", dim, [measurement])
        for dim, measurement in findings.learnt.items()
    ]
    rows += [
        _kinds_row(f"{findings.dim} dimensions, untrained, {name}", findings.dim, each)
        for name, each in findings.raw.items()
    ]
    draws = len(findings.raw.get(MAPPED, ()))
    return [
        *head,
        f"On cached features of `{settings.source}`, **last layers only**: a linear map and the "
        f"proxy heads were trained for {settings.steps:,} steps of {settings.batch} pictures "
        f"({findings.pictures:,} training pictures, no augmentation, one seed); the trunk was "
        "frozen. Float / code.",
        "",
        *table(["", "bytes, float / code", *(f"{t} {m}" for t, m in MAIN.values())], rows),
        f"`{PLAIN}` is the paper's way; `{NO_NORM}` takes the bit x > 0 of pooled features, none "
        f"of which is negative and many exactly 0; `{MAPPED}` is a departure from the paper, mean "
        f"and SD over {draws} rotations. Whether a trained embedder needs LayerNorm is asked end "
        "to end, in the comparison.",
        "",
        *_picture("results-dimension.png", "Float and code by dimension", pictures),
    ]


def _kinds_row(name: str, dim: int, each: Sequence[Measurement]) -> Lines:
    texts = []
    for task, metric in MAIN.values():
        cells = [Cell(task, metric, "float"), Cell(task, metric, "code")]
        there = [
            [float(one.samples[cell].values.mean()) for one in each]
            for cell in cells
            if cell in each[0].samples
        ]
        texts.append(" / ".join(_mean_and_spread(values) for values in there))
    return [name, f"{4 * dim:,} / {code_bytes(dim):,}", *texts]


def _mean_and_spread(values: Sequence[float]) -> str:
    text = percent(float(np.mean(values)))
    return text if len(values) == 1 else f"{text} (SD {100 * np.std(values, ddof=1):.1f})"


def _subsampling(findings: Findings | None, pictures: Sequence[str]) -> Lines:
    head = ["## Subsampled softmax", ""]
    if findings is None:
        return [*head, "Not run.", ""]
    rows = []
    for share, measurements in findings.sampled.items():
        texts = []
        for task, metric in MAIN.values():
            cell = Cell(task, metric, "float")
            if cell not in measurements[0].samples:
                texts.append("")
                continue
            ours = over_seeds(measurements, cell)
            seeds = ", ".join(
                percent(float(one.samples[cell].values.mean())) for one in measurements
            )
            text = f"{percent(float(ours.values.mean()))} ({seeds})"
            if share != 100 and 100 in findings.sampled:
                change = ours.minus(over_seeds(findings.sampled[100], cell)).interval()
                text += f"; {points(change)}"
            texts.append(text)
        rows.append([f"{share} %", *texts])
    classes = ", ".join(
        f"{count:,} of {column}" for column, count in findings.classes.items() if count
    )
    return [
        *head,
        f"Also on cached features, **last layers only**, {findings.settings.seeds} seeds. Classes: "
        f"{classes}; browse_class and shop_instance are sampled, as in the paper. **About 1,000 "
        "classes cannot test web scale.** Float: mean over seeds (each seed); paired difference "
        "to all classes.",
        "",
        *table(["classes in a softmax", *(f"{t} {m}" for t, m in MAIN.values())], rows),
        *_picture("results-subsampling.png", "Quality by share of sampled classes", pictures),
    ]


def _costs(results: Results) -> Lines:
    head = ["## Three specialists against one embedder", ""]
    row = results.config.compared()
    ours = results.named(row.name) if row is not None else None
    twins = [results.named(twin.name) for twin in results.config.replaced()]
    speeds = [twin.speed for twin in twins if twin.speed is not None]
    if ours is None or ours.speed is None or len(speeds) < len(MAIN):
        return [*head, "Not run: needs the speed of the compared row.", ""]
    one, three = 1 / ours.speed, sum(1 / speed for speed in speeds)
    stored: list[tuple[str, Callable[[int], float]]] = [
        ("float", lambda dim: 4 * dim * MILLION / 1e9),
        ("code", lambda dim: code_bytes(dim) * MILLION / 1e9),
    ]
    rows = [["models, engines and versions to keep", "3", "1", "3.0"]]
    for name, size in stored:
        separate, joint = sum(size(twin.dim) for twin in twins), size(ours.dim)
        rows.append(
            [
                f"vectors of 1,000,000 pictures as {name}, GB (computed)",
                f"{separate:.2f}",
                f"{joint:.2f}",
                f"{separate / joint:.1f}",
            ]
        )
    hours = [f"{seconds * MILLION / 3600:.1f}" for seconds in (three, one)]
    rows.append(
        [
            "back-fill of 1,000,000 pictures, hours on this machine (computed from pictures/s)",
            *hours,
            f"{three / one:.1f}",
        ]
    )
    rates = ", ".join(f"{twin.row.name} {twin.speed:.0f}" for twin in twins)
    if ours in twins:
        rates = "a specialist, of the same trunk and width, as many"
    return [
        *head,
        *table(["", "three specialists", "one unified", "ratio"], rows),
        f"Pictures per second, decoding included: unified {ours.speed:.0f}, {rates}.",
        "",
    ]


def _served(agreements: Sequence[Agreement]) -> Lines:
    rows = [
        [
            one.row,
            f"`{one.engine}`",
            kind,
            f"{one.same_first[kind]:.1%}",
            f"{100 * one.worst[kind][2]:+.2f} ({one.worst[kind][3]:+.1f} queries; "
            f"{one.worst[kind][0]} {one.worst[kind][1]})",
        ]
        for one in agreements
        for kind in COMPARISONS
    ]
    if not rows:
        return ["## As served", "", "Not run: `--compare server:HOST:PORT` compares a server.", ""]
    head = ["embedder", "engine", "by", "same top result", "figure that changed most, points"]
    costs = [
        [f"`{one.engine}`", kind, *map(points, one.moved[kind])]
        for one in agreements
        for kind in COMPARISONS
    ]
    return [
        "## As served",
        "",
        "The same pictures through other runtimes, compared with the fp32 graph on onnxruntime.",
        "",
        *table(head, rows),
        "Loss caused by the runtime, in points, paired:",
        "",
        *table(["engine", "by", *(f"{task} {metric}" for task, metric in FIGURES)], costs),
    ]


def claims_detail(claims: Sequence[Claim]) -> Lines:
    """Rules and all differences."""
    lines = ["## Claims in detail", ""]
    for claim in claims:
        lines += [f"**{claim.key} {claim.verdict}.** {claim.text} Rule: {claim.rule}.", ""]
        lines += [f"- {finding.what}: {points(finding.interval)}" for finding in claim.findings]
        lines += ["", claim.remark, ""] if claim.findings and claim.remark else []
        lines += [claim.remark, ""] if claim.remark and not claim.findings else [""]
    return lines


def _method(results: Results) -> Lines:
    environment = "; ".join(f"{name} {value}" for name, value in results.environment.items())
    return [
        "## How it was measured",
        "",
        "- camera category: P@20 over min(20, relevant); a catalogue picture of the same category "
        "is correct; unseen: among the catalogue pictures of products never trained on. "
        "camera exact: the same product. shop exact: crops of "
        "scenes, the same product.",
        "- browse pairs: every design searches every other, averaged over queries of all ordered "
        "pairs; browse merged: all trained designs in one gallery, mAP@R.",
        f"- {environment}.",
        "",
    ]
