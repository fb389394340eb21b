"""Which trainings a comparison consists of, in which order, and which of them are done."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from unified_embedding.errors import DataError
from unified_embedding.evaluation.comparison.config import OLD, CompareConfig, CompareRow
from unified_embedding.training import checkpoint
from unified_embedding.training import config as training

DONE: Final = "done.json"
_NEVER: Final = 10**9


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        row: what is trained.
        seed: of the run.
        steps: in which the trunk moves.
        rate: of the sweep, or None: the one that the row's sweep has chosen.
        folder: of the run.
    """

    row: CompareRow
    seed: int
    steps: int
    rate: float | None
    folder: Path

    def record(self) -> dict[str, Any] | None:
        """What was written when the run ended; None before."""
        try:
            found: dict[str, Any] = json.loads((self.folder / DONE).read_text())
        except FileNotFoundError:
            return None
        return found


def sweep_jobs(config: CompareConfig, row: CompareRow) -> list[Job]:
    """The short runs that choose a row's rate; none when it has no choice."""
    rates = config.sweep.rates if row.role != "step" else []
    steps = min(config.sweep.steps, row.steps)
    folder = config.out / _slug(row.name)
    return [
        Job(row, config.sweep.seed, steps, rate, folder / f"rate-{rate:g}")
        for rate in rates
        if len(rates) > 1
    ]


def seed_job(config: CompareConfig, row: CompareRow, seed: int) -> Job:
    """A row's run of one seed."""
    return Job(row, seed, row.steps, None, config.out / _slug(row.name) / f"seed-{seed}")


def in_order(config: CompareConfig) -> Iterator[Job]:
    """Everything, the cheap rows first, a seed of all rows before the next seed.

    A run comes behind the sweep that chooses its rate, the compatible row behind those of its
    seed, one of which is its old embedder. Rows marked `last` come after all seeds of the others,
    and steps, for which no claim shall wait, after those.
    """

    def place(row: CompareRow) -> tuple[bool, float]:
        return row.role == "compatible", row.minutes

    for turn in range(3):
        rows = [r for r in config.rows if (2 if r.role == "step" else int(r.last)) == turn]
        rows.sort(key=place)
        for number in range(max((len(config.seeds_of(row)) for row in rows), default=0)):
            for row in rows:
                if number == 0:
                    yield from sweep_jobs(config, row)
                if number < len(config.seeds_of(row)):
                    yield seed_job(config, row, config.seeds_of(row)[number])


def old_job(config: CompareConfig, job: Job) -> Job | None:
    """The run whose index the queries of a compatible run shall search; None of other rows.

    Of the same seed; in the sweep, whose seed has no such run, of the first.
    """
    old = config.find(OLD)
    if job.row.role != "compatible" or old is None:
        return None
    seeds = config.seeds_of(old)
    return seed_job(config, old, job.seed if job.seed in seeds else seeds[0])


def weights(job: Job) -> Path:
    """The checkpoint that counts: the last, annealed one."""
    return job.folder / checkpoint.LAST


def chosen_rate(config: CompareConfig, row: CompareRow) -> float | None:
    """The sweep's best rate on validation; None while it is not complete."""
    if row.role == "step":
        base = config.find("unified-data")
        assert base is not None  # the configuration demands it
        return chosen_rate(config, base)
    jobs = sweep_jobs(config, row)
    if not jobs:
        return config.sweep.rates[0]
    scores: dict[float, float] = {}
    for job in jobs:
        record = job.record()
        if record is None or job.rate is None:
            return None
        scores[job.rate] = record["score"]
    return max(sorted(scores), key=lambda rate: scores[rate])


def training_config(config: CompareConfig, job: Job) -> training.Config:
    """The training configuration of a job.

    Raises:
        TrainingError: an override does not fit.
        DataError: its sweep is not complete, or the pictures are made up.
    """
    rate = job.rate if job.rate is not None else chosen_rate(config, job.row)
    if rate is None:
        raise DataError(f"{job.row.name}: the sweep of its rate is not complete")
    tasks = [f"data.tasks=[{job.row.task}]"] if job.row.task is not None else []
    old = old_job(config, job)
    compatible = [f"compatible_with.old={json.dumps(str(weights(old)))}"] if old is not None else []
    found = training.load_config(
        config.training,
        [
            *config.common,
            *tasks,
            *compatible,
            *job.row.overrides,
            f"run={job.folder}",
            f"seed={job.seed}",
            f"schedule.rate={rate!r}",
            f"schedule.full.steps={job.steps}",
            f"validation.every={_NEVER}",  # At the end alone: the last weights count.
        ],
    )
    if found.data.manifest is None:
        raise DataError(f"{config.training}: a comparison needs data.manifest")
    return found


def check_same(config: CompareConfig, job: Job, record: Mapping[str, Any]) -> None:
    """Raises DataError when a finished run was trained by another configuration."""
    ours = json.loads(json.dumps(training_config(config, job).identity()))
    changed = sorted(key for key in ours if record["identity"].get(key) != ours[key])
    if changed:
        raise DataError(
            f"{job.folder} was trained with another {', '.join(changed)}; choose another out, or "
            "delete that folder"
        )


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
