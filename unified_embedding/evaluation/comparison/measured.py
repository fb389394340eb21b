"""The figures of finished runs, and the differences that the claims rest on."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from unified_embedding.datasets.task_table import CAMERA
from unified_embedding.errors import DataError
from unified_embedding.evaluation.comparison.claims import SEARCHED, Evidence
from unified_embedding.evaluation.comparison.config import OLD, CompareConfig, CompareRow, Role
from unified_embedding.evaluation.comparison.jobs import (
    Job,
    seed_job,
    weights,
)
from unified_embedding.evaluation.config import EmbedderRow, EvaluationConfig
from unified_embedding.evaluation.rotations import Rotated, remembered_rotation, rotate
from unified_embedding.evaluation.run import Bench, open_bench
from unified_embedding.protocols.measure import Cell, Measurement, Samples, measure, measure_by
from unified_embedding.protocols.tasks import CAMERA_EXACT, MAIN, Task
from unified_embedding.retrieval import Comparison, Interval, bootstrap_trainings, scores
from unified_embedding.spec import digest
from unified_embedding.training import checkpoint
from unified_embedding.training.config import load_config as load_training
from unified_embedding.training.config import manifest_path
from unified_embedding.whole_files import whole_file

FIGURES: Final = (*MAIN.values(), (CAMERA_EXACT, "R@1"))
"""(task, metric) of everything that the page shows."""

CROSSED: Final[tuple[Role, ...]] = ("compatible", "unified-data")
"""Rows whose queries also search the index of the row `OLD`: one trained for it, and one not."""

Change = Callable[[Mapping[Cell, Samples]], Samples]
Runs = Mapping[str, Mapping[int, Mapping[Cell, Samples]]]
"""Row name -> seed -> cell -> samples."""

_MEAN_PICTURES: Final = 512


@dataclass(frozen=True, eq=False)
class Measured:
    """What finished runs scored.

    Attributes:
        config: the comparison.
        digest: of the test set; "" when no run is finished.
        scores: of each run's queries in its own index.
        rotated: bits -> one `Rotated` per seed of the row "unified-data".
        crossed: of the same queries in the index of the row `OLD`, same seed.
    """

    config: CompareConfig
    digest: str
    scores: Runs
    rotated: Mapping[int, Sequence[Rotated]]
    crossed: Runs = field(default_factory=dict)

    def values(self, row: str, cell: Cell, crossed: bool = False) -> list[float]:
        """The figure of each finished seed; `crossed`: in the old index."""
        runs = (self.crossed if crossed else self.scores).get(row, {})
        return [float(run[cell].values.mean()) for run in runs.values() if cell in run]

    def against_old(self, row: CompareRow | None, cell: Cell) -> Interval | None:
        """A row's queries in the old index, minus the old embedder's own, paired as in `gain`."""
        old = self.config.find(OLD)
        if row is None or old is None:
            return None
        return _paired(self.crossed.get(row.name, {}), self.scores.get(old.name, {}), _one(cell))

    def gain(
        self, ours: CompareRow | None, theirs: CompareRow | None, cell: Cell
    ) -> Interval | None:
        """Paired difference over the seeds that both rows have, and over clusters."""
        return self.change(ours, theirs, _one(cell))

    def change(
        self, ours: CompareRow | None, theirs: CompareRow | None, of: Change
    ) -> Interval | None:
        """As `gain`, of any figure of a run; None when no seed is finished on both sides."""
        if ours is None or theirs is None:
            return None
        return _paired(self.scores.get(ours.name, {}), self.scores.get(theirs.name, {}), of)

    def evidence(self) -> Evidence:
        """Everything that the claims ask for and that was run."""
        find = self.config.find
        data, steps = find("unified-data"), find("unified-steps")
        own, others, codes, norm, balance, old = {}, {}, {}, {}, {}, {}
        for task, figure in MAIN.items():
            cell = Cell(*figure, "float")
            for other, theirs in MAIN.items():
                gained = self.gain(data, find("specialist-long", task), Cell(*theirs, "float"))
                if gained is not None and other == task:
                    own[task] = gained
                elif gained is not None:
                    others[task, other] = gained
            runs = self.scores.get(steps.name, {}) if steps is not None else {}
            lost = over_seeds([_code_loss(run, figure) for run in runs.values() if cell in run])
            if lost is not None:
                codes[task] = lost
            more = self.change(steps, find("no-layer-norm"), partial(_code_loss, figure=figure))
            if more is not None:
                norm[task] = more  # what it loses without, minus what it loses with
            balanced = self.gain(steps, find("gradnorm"), cell)
            if balanced is not None:
                balance[task] = balanced
            for kind in SEARCHED:
                kept = self.against_old(find("compatible"), Cell(*figure, kind))
                if kept is not None:
                    old[task, kind] = kept
        camera = find("specialist-long", CAMERA.name)
        transfer = self.gain(data, camera, Cell(CAMERA_EXACT, "R@1", "float"))
        return Evidence(own, others, codes, norm, balance, transfer, old)


def _one(cell: Cell) -> Change:
    return lambda run: run[cell]


def _paired(
    left: Mapping[int, Mapping[Cell, Samples]],
    right: Mapping[int, Mapping[Cell, Samples]],
    of: Change,
) -> Interval | None:
    """Differences of the seeds on both sides; None without one, or where one lacks a figure."""
    try:
        pairs = [of(left[seed]).minus(of(right[seed])) for seed in left if seed in right]
    except KeyError:
        return None
    return over_seeds(pairs)


def over_seeds(runs: Sequence[Samples]) -> Interval | None:
    """Mean and interval over trainings and clusters; None for no run."""
    if not runs:
        return None
    values = np.stack([run.values for run in runs])
    return bootstrap_trainings(values, runs[0].clusters.tolist())


def open_test_set(config: CompareConfig, console: Console, threads: int) -> Bench:
    """The test set that every run is measured on.

    Raises:
        DataError: it is missing or not the frozen one.
    """
    manifest = manifest_path(load_training(config.training, config.common).data.manifest)
    if manifest is None:
        raise DataError(f"{config.training}: a comparison needs data.manifest")
    # Runs are opened one by one, when they are done.
    row = config.rows[0]
    first = weights(seed_job(config, row, config.seeds_of(row)[0]))
    rows = [EmbedderRow(name=row.name, source=str(first), kind="unified")]
    wanted = EvaluationConfig(rows=rows, frozen=config.frozen)
    return open_bench(wanted, manifest, config.out / "cache", threads, console)


def measure_job(config: CompareConfig, job: Job, bench: Bench) -> None:
    """Measure one finished run, so that `measure_all` finds its figures."""
    old = config.find(OLD)
    if job.row.role == "unified-data":
        for bits in config.maps.bits:
            _maps(bench, job, bits, config.maps.count)
    if job.row.role in CROSSED and old is not None and config.find("compatible") is not None:
        before = seed_job(config, old, job.seed)
        if before.record() is not None:
            _against(bench, job, before)
    _scores(bench, job)


def measure_all(
    config: CompareConfig, test_set: Callable[[], Bench], known_only: bool = False
) -> Measured:
    """Measure every finished run that is not measured yet, or leave those out (`known_only`).

    Figures once measured need no weights; while no run is finished, no test set is opened.

    Raises:
        DataError: the test set is missing or not the frozen one.
    """
    jobs = [seed_job(config, row, seed) for row in config.rows for seed in config.seeds_of(row)]
    done = [job for job in jobs if job.record() is not None]
    if not done:
        return Measured(config, "", {}, {})
    bench = test_set()
    if known_only:
        done = [job for job in done if _file(bench, "measured", job).exists()]
    found: dict[str, dict[int, Mapping[Cell, Samples]]] = {}
    rotated: dict[int, list[Rotated]] = {}
    for job in done:
        found.setdefault(job.row.name, {})[job.seed] = _scores(bench, job)
        if job.row.role == "unified-data":
            for bits in config.maps.bits:
                rotated.setdefault(bits, []).append(_maps(bench, job, bits, config.maps.count))
    crossed = _crossed(bench, config, done, known_only)
    return Measured(config, bench.pictures.digest(), found, rotated, crossed)


def _scores(bench: Bench, job: Job) -> Mapping[Cell, Samples]:
    path = _file(bench, "measured", job)
    if not path.exists():
        vectors = _vectors(bench, job)
        with bench.console.status(f"{job.row.name}: searching"):
            found = measure(bench.pictures, vectors, _searches(bench))
        _save(found, path)
    return _load(path)


def _file(bench: Bench, what: str, job: Job, *others: Job) -> Path:
    """Where figures of a run stand: named by the embedders, the test set and what is measured."""
    ids = [_embedder(one) for one in (job, *others)]
    key = digest([*ids, bench.pictures.digest(), bench.pictures.seen_table(), FIGURES])
    return job.folder / f"{what}-{key}.npz"


def _embedder(job: Job) -> str:
    record = job.record()
    assert record is not None  # only finished runs are measured
    return str(record["embedder"])


def _crossed(bench: Bench, config: CompareConfig, done: list[Job], known_only: bool) -> Runs:
    row = config.find(OLD)
    old = {job.seed: job for job in done if job.row == row}
    found: dict[str, dict[int, Mapping[Cell, Samples]]] = {}
    for job in done if config.find("compatible") is not None else ():
        if job.row.role in CROSSED and job.seed in old:
            if known_only and not _file(bench, "crossed", job, old[job.seed]).exists():
                continue
            samples = _against(bench, job, old[job.seed])
            found.setdefault(job.row.name, {})[job.seed] = samples
    return found


def _against(bench: Bench, job: Job, old: Job) -> Mapping[Cell, Samples]:
    """A run's queries in the index of another."""
    path = _file(bench, "crossed", job, old)
    if not path.exists():
        _check_old(job, old)
        ours, theirs = (_vectors(bench, one) for one in (job, old))

        def similarity(
            queries: NDArray[np.int64], gallery: NDArray[np.int64], comparison: Comparison
        ) -> NDArray[np.float32]:
            return scores(ours[queries], theirs[gallery], comparison)

        with bench.console.status(f"{job.row.name}: searching the index of {old.row.name}"):
            found = measure_by(bench.pictures, similarity, _searches(bench), SEARCHED)
        _save(found, path)
    return _load(path)


def _check_old(job: Job, old: Job) -> None:
    """Raises DataError when a compatible run was trained against other weights than `old` has."""
    stated = checkpoint.read(weights(job))["summary"].get("compatible_with")
    found = checkpoint.embedder_id(checkpoint.read(weights(old)))
    if stated is not None and stated["id"] != found:
        raise DataError(
            f"{job.folder} was trained to be compatible with other weights than {weights(old)} "
            "holds now; delete that folder to train it anew"
        )


def _vectors(bench: Bench, job: Job) -> NDArray[np.float32]:
    embedder = bench.open(str(weights(job)))
    return bench.features.vectors(
        embedder, bench.pictures.sha256, bench.pictures.read, f"{job.row.name}: embedding"
    )


def _searches(bench: Bench) -> list[Task]:
    wanted = {name for name, _ in FIGURES}
    return [task for task in bench.tasks if task.name in wanted]


def _save(found: Measurement, path: Path) -> None:
    arrays: dict[str, NDArray[np.generic]] = {}
    for cell, samples in found.samples.items():
        arrays["|".join(cell)] = samples.values
        arrays[f"clusters|{cell.task}"] = samples.clusters
    with whole_file(path) as beside, beside.open("wb") as file:
        np.savez(file, **arrays)


def _load(path: Path) -> Mapping[Cell, Samples]:
    found = {}
    kinds: dict[str, Comparison] = {"float": "float", "asymmetric": "asymmetric", "code": "code"}
    with np.load(path) as arrays:
        for name in arrays:
            task, *rest = name.split("|")
            if len(rest) == 2:
                cell = Cell(task, rest[0], kinds[rest[1]])
                found[cell] = Samples(arrays[name], arrays[f"clusters|{task}"])
    return found


def _maps(bench: Bench, job: Job, bits: int, count: int) -> Rotated:
    key = [_embedder(job), bench.pictures.digest(), bench.pictures.seen_table(), bits, count]

    def make() -> Rotated:
        embedder = bench.open(str(weights(job)))
        every = sorted({row["image"] for row in bench.rows if row["split"] == "train"})
        count_of_mean = min(_MEAN_PICTURES, len(every))
        images = [every[number * len(every) // count_of_mean] for number in range(count_of_mean)]
        data = [(bench.pictures.folder / image).read_bytes() for image in images]
        hashes = [hashlib.sha256(one).hexdigest() for one in data]
        training = bench.features.vectors(
            embedder, hashes, lambda row: data[row], f"{job.row.name}: mean of training pictures"
        )
        vectors = _vectors(bench, job)
        with bench.console.status(f"{job.row.name}: {count} maps to {bits} bits"):
            return rotate(bench.pictures, vectors, bench.tasks, bits, training.mean(axis=0), count)

    return remembered_rotation(bench.cache / "rotations", key, make)


def _code_loss(run: Mapping[Cell, Samples], figure: tuple[str, str]) -> Samples:
    """Code minus float, query by query."""
    return run[Cell(*figure, "code")].minus(run[Cell(*figure, "float")])
