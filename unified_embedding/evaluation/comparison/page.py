"""docs/comparison.md: from what is done; what was not run says so."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from unified_embedding.evaluation.comparison.claims import SEARCHED, claims
from unified_embedding.evaluation.comparison.config import OLD, CompareConfig, CompareRow, Role
from unified_embedding.evaluation.comparison.jobs import chosen_rate, seed_job, sweep_jobs
from unified_embedding.evaluation.comparison.measured import FIGURES, Measured
from unified_embedding.evaluation.page import (
    NOT_RUN,
    Lines,
    claims_detail,
    claims_table,
    percent,
    points,
    table,
)
from unified_embedding.evaluation.rotations import STORED
from unified_embedding.protocols.measure import Cell
from unified_embedding.protocols.tasks import CAMERA_UNSEEN, MAIN
from unified_embedding.training.config import load_config as load_training

_PAIRS: tuple[tuple[str, Role, Role], ...] = (
    ("equal task data, short", "unified-steps", "specialist-short"),
    ("equal compute", "unified-steps", "specialist-long"),
    ("equal task data, long (C1, C2, C7)", "unified-data", "specialist-long"),
)
_ABLATIONS: tuple[tuple[str, Role, Role], ...] = (
    ("with LayerNorm minus without", "unified-steps", "no-layer-norm"),
    ("equal weights minus GradNorm (C5)", "unified-steps", "gradnorm"),
)


def render(measured: Measured) -> str:
    """The page as Markdown."""
    config = measured.config
    judged = claims(measured.evidence(), config.margins)
    own = [f"{row.name}: {_listed(row.seeds)}" for row in config.rows if row.seeds is not None]
    seeds = _listed(config.seeds) + (f" ({'; '.join(own)})" if own else "")
    opening = [
        "# The comparison of trainings",
        "",
        "Written by `make compare`; do not edit. All rows share one configuration "
        f"(`{config.training.name}` with {_code(config.common)}), one test set "
        f"(`{measured.digest or 'not measured yet'}`) and the seeds {seeds}. Rows are a run's "
        "last, annealed weights. Each row's learning rate was chosen on the validation split. "
        "Differences are paired by seed and query, in points; brackets hold 95 % intervals of a "
        "bootstrap over trainings and over products (browse: emoji families). With few trainings "
        "such an interval is somewhat too narrow, so each mean is given with its SD over seeds. "
        f"`{CAMERA_UNSEEN}` searches products that appear in no training picture.",
        "",
    ]
    sections = [
        opening,
        claims_table(judged),
        _figures(measured),
        _differences(measured),
        _steps(measured),
        _codes(measured),
        _compatibility(measured),
        _budget(config),
        claims_detail(judged),
    ]
    return "\n".join(line for section in sections for line in section)


def budget(config: CompareConfig) -> str:
    """The plan and its cost, stated before the runs, and what is done of it."""
    return "\n".join(_budget(config))


def _figures(measured: Measured) -> Lines:
    rows = []
    for row in measured.config.rows:
        count = len(measured.scores.get(row.name, {}))
        for kind in ("float", "code") if count else ("float",):
            cells = [Cell(*figure, kind) for figure in FIGURES]
            texts = [_mean_and_sd(measured.values(row.name, cell)) for cell in cells]
            first = kind == "float"
            rows.append([row.name if first else "", str(count) if first else "", kind, *texts])
    head = ["row", "seeds", "by", *(f"{t} {m}" for t, m in FIGURES)]
    return ["## Figures", "", "Mean over seeds (SD over seeds), percent.", "", *table(head, rows)]


def _mean_and_sd(values: Sequence[float]) -> str:
    if not values:
        return NOT_RUN
    text = percent(float(np.mean(values)))
    return text if len(values) == 1 else f"{text} ({100 * np.std(values, ddof=1):.1f})"


def _differences(measured: Measured) -> Lines:
    find = measured.config.find
    rows = []
    for what, ours, theirs in _PAIRS:
        for task in MAIN:
            rows.append(_difference(measured, what, find(ours), find(theirs, task)))
    for what, ours, theirs in _ABLATIONS:
        rows.append(_difference(measured, what, find(ours), find(theirs)))
    head = ["", "difference", *(f"{t} {m}" for t, m in FIGURES)]
    shown = [row for row in rows if row]
    return ["## Differences", "", "By float.", "", *table(head, shown)]


def _difference(
    measured: Measured, what: str, ours: CompareRow | None, theirs: CompareRow | None
) -> list[str]:
    if ours is None or theirs is None:
        return []
    gains = [points(measured.gain(ours, theirs, Cell(*figure, "float"))) for figure in FIGURES]
    return [what, f"{ours.name} minus {theirs.name}", *gains]


def _steps(measured: Measured) -> Lines:
    config, base = measured.config, measured.config.find("unified-data")
    steps = [row for row in config.rows if row.role == "step"]
    if base is None or not steps:
        return []
    before = _validation(config, base)
    rows = []
    for row in steps:
        after = _validation(config, row)
        gains = [after[seed] - before[seed] for seed in after if seed in before]
        verdict = ("kept" if np.mean(gains) > 0 else "not kept") if gains else NOT_RUN
        gained = (
            f"{100 * np.mean(gains):+.1f} ({', '.join(f'{100 * g:+.1f}' for g in gains)})"
            if gains
            else NOT_RUN
        )
        shown = [points(measured.gain(row, base, Cell(*figure, "float"))) for figure in FIGURES]
        rows.append([row.name, _code(row.overrides), gained, verdict, *shown])
    head = ["step", "change", "validation, points (each seed)", "for the release"]
    return [
        "## Steps towards the release",
        "",
        f"Each is `{base.name}` with one change, at the same rate. A step is kept for the release "
        "when the mean of the three main figures on the validation split rises, over the same "
        "seeds; the test set, in the other columns, decides nothing here.",
        "",
        *table([*head, *(f"{t} {m}" for t, m in FIGURES)], rows),
    ]


def _seeds(config: CompareConfig, one: CompareRow, other: CompareRow) -> set[int]:
    """The seeds that two rows share."""
    return set(config.seeds_of(one)) & set(config.seeds_of(other))


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _validation(config: CompareConfig, row: CompareRow) -> dict[int, float]:
    """Seed -> mean of the row's main figures on validation, of its finished runs."""
    records = {seed: seed_job(config, row, seed).record() for seed in config.seeds_of(row)}
    return {seed: record["score"] for seed, record in records.items() if record is not None}


def _codes(measured: Measured) -> Lines:
    row = measured.config.find("unified-data")
    if row is None:
        return []
    rows = []
    for bits in measured.config.maps.bits:
        each = measured.rotated.get(bits, ())
        for kind in STORED:
            texts = [_over_maps(each, Cell(*figure, kind)) for figure in MAIN.values()]
            rows.append([f"{bits:,}", kind, *texts])
    head = ["bits", "minus float", *(f"{t} {m}" for t, m in MAIN.values())]
    return [
        "## Codes under random maps",
        "",
        f"`{row.name}`, the mean of training pictures subtracted, then "
        f"{measured.config.maps.count} random maps, none selected (a departure from the paper, "
        "which has no map). Points: mean over seeds and maps; SD over maps, mean of the seeds.",
        "",
        *table(head, rows),
    ]


def _compatibility(measured: Measured) -> Lines:
    find = measured.config.find
    old, new, free = find(OLD), find("compatible"), find("unified-data")
    if old is None or new is None:
        return []
    levels = [(old, False), (new, True), *((row, True) for row in (free,) if row), (new, False)]
    rows = []
    for by in SEARCHED:
        cells = [Cell(*figure, by) for figure in FIGURES]
        for row, crossed in levels:
            index = old if crossed else row
            texts = [_mean_and_sd(measured.values(row.name, cell, crossed)) for cell in cells]
            runs = str(len(measured.values(row.name, cells[0], crossed)))
            rows.append([row.name, index.name, by, runs, *texts])
    gains = []
    for by in SEARCHED:
        cells = [Cell(*figure, by) for figure in FIGURES]
        for ours in (new, free) if free is not None else (new,):
            texts = [points(measured.against_old(ours, cell)) for cell in cells]
            gains.append([f"queries of {ours.name} minus old queries, old index", by, *texts])
        # Only of trainings of equal seeds can a difference be taken.
        comparable = [
            one for one in (old, free) if one is not None and _seeds(measured.config, new, one)
        ]
        for theirs in comparable:
            texts = [points(measured.gain(new, theirs, cell)) for cell in cells]
            gains.append([f"{new.name} minus {theirs.name}, each in its own index", by, *texts])
    figures = [f"{t} {m}" for t, m in FIGURES]
    return [
        "## Backward compatibility",
        "",
        f"`{new.name}` has an influence loss (Shen et al., CVPR 2020) against the run of "
        f"`{old.name}` of the same seed, the old embedder here. Its queries search what the old "
        "embedder stored (B1, B2); a row that was not trained for that stands beside it. All rows "
        "start from the same weights, which alone makes them somewhat alike. The last difference "
        "is what compatibility costs in an index of its own. `seeds`: the trainings behind a row.",
        "",
        *table(["queries of", "index of", "by", "seeds", *figures], rows),
        *table(["difference", "by", *figures], gains),
    ]


def _over_maps(each: Sequence[Any], cell: Cell) -> str:
    means = [found.mean(cell) for found in each]
    if not means or any(mean is None for mean in means):
        return NOT_RUN
    mean = float(np.mean([one.mean for one in means]))
    spread = float(np.mean([found.spread(cell) for found in each]))
    return f"{100 * mean:+.1f}, SD {100 * spread:.1f}"


def _budget(config: CompareConfig) -> Lines:
    rows = []
    for row in config.rows:
        seeds = config.seeds_of(row)
        records = [seed_job(config, row, seed).record() for seed in seeds]
        done = [record for record in records if record is not None]
        sweep = len(sweep_jobs(config, row)) * min(config.sweep.steps, row.steps) / row.steps
        stated = row.minutes * (len(seeds) + sweep)
        rows.append(
            [
                row.name,
                f"{row.steps:,}",
                f"{_images_of_each_task(config, row):,}",
                f"{stated:.0f}",
                f"{len(done)} of {len(seeds)}",
                _spent(done),
                _rate(config, row),
                ", ".join(sorted({record["device"] for record in done})) or NOT_RUN,
            ]
        )
    total = sum(float(row[3]) for row in rows)
    head = ["row", "trunk steps", "images per task", "minutes of all cores, planned"]
    head += ["seeds done", "CPU seconds per step", "learning rate chosen", "trained on"]
    return [
        "## Budget and progress",
        "",
        f"Planned, sweeps included: {total:.0f} minutes of all cores in total. "
        "Cheap rows run first.",
        "",
        *table(head, rows),
    ]


def _images_of_each_task(config: CompareConfig, row: CompareRow) -> int:
    """What a run shows its trunk of each task that it is trained on."""
    settings = load_training(config.training, [*config.common, *row.overrides])
    tasks = 1 if row.task is not None else len(settings.data.tasks)
    return row.steps * settings.batch // tasks


def _spent(done: Sequence[dict[str, Any]]) -> str:
    known = [one["cpu_seconds_per_step"] for one in done if one["cpu_seconds_per_step"] is not None]
    return f"{np.mean(known):.2f}" if known else NOT_RUN


def _rate(config: CompareConfig, row: CompareRow) -> str:
    rate = chosen_rate(config, row)
    if rate is None:
        return NOT_RUN
    edge = len(config.sweep.rates) > 1 and rate in (
        min(config.sweep.rates),
        max(config.sweep.rates),
    )
    return f"{rate:g}" + (", at the edge of the sweep" if edge else "")


def _code(overrides: Sequence[str]) -> str:
    return ", ".join(f"`{one}`" for one in overrides) or "no change"
