"""One evaluation from configuration to results; nothing is computed that a cache holds."""

import hashlib
import os
import platform
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from rich.console import Console

from unified_embedding.datasets.manifest import read_manifest
from unified_embedding.datasets.task_table import BROWSE, tasks_beside
from unified_embedding.errors import DataError
from unified_embedding.evaluation import costs, experiments, frozen, rotations
from unified_embedding.evaluation.agreement import Agreement, agreement
from unified_embedding.evaluation.config import EmbedderRow, EvaluationConfig, LastLayers
from unified_embedding.evaluation.embedders import (
    Embedder,
    ServedEmbedder,
    is_there,
    open_embedder,
)
from unified_embedding.evaluation.features import FeatureCache
from unified_embedding.evaluation.last_layer import too_few
from unified_embedding.evaluation.results import Results, RowResult, Searched
from unified_embedding.evaluation.through_index import BACKFILL, measure_through_index
from unified_embedding.measure.processor import cpu_name
from unified_embedding.protocols.held_out import HeldOut, held_out
from unified_embedding.protocols.measure import measure
from unified_embedding.protocols.tasks import Task, build_tasks
from unified_embedding.training.examples import FolderReader, from_rows

ANY: Final = "any"
"""In place of a digest: measure on whatever test set there is."""


@dataclass(frozen=True, eq=False)
class Bench:
    """The test set and the caches: what every row is measured on and with.

    Attributes:
        config: what is asked for.
        rows: of the manifest.
        pictures: the test set.
        tasks: its searches.
        cache: folder of features, trained maps and agreements.
        threads: of the runtimes; 0 leaves the choice to them.
        console: where progress is shown.
    """

    config: EvaluationConfig
    rows: Sequence[dict[str, str]]
    pictures: HeldOut
    tasks: Sequence[Task]
    cache: Path
    threads: int
    console: Console

    @property
    def features(self) -> FeatureCache:
        """The cache of vectors."""
        return FeatureCache(self.cache / "features", self.console)

    def open(self, source: str, layer_norm: bool = True) -> Embedder:
        """See `open_embedder`."""
        return open_embedder(source, self.threads, layer_norm)


def open_bench(
    config: EvaluationConfig, manifest: Path, cache: Path, threads: int, console: Console
) -> Bench:
    """Read the manifest and hold its test set against the frozen one.

    Raises:
        DataError: the manifest is wrong, or the test set changed.
    """
    rows = read_manifest(manifest)
    with console.status("hashing the test set"):
        pictures = held_out(rows, manifest.parent, tasks_beside(manifest))
    published = "" if config.frozen == ANY else config.frozen
    path = frozen.frozen_file(manifest)
    if frozen.check(pictures, path, published):
        console.print(f"test set {pictures.digest()} frozen in {path}", soft_wrap=True)
    return Bench(config, rows, pictures, build_tasks(pictures), cache, threads, console)


def evaluate(bench: Bench, fresh: bool = False) -> Results:
    """Measure every row that is there, the experiments and the costs."""
    if fresh:
        _forget(bench)
    places = _open_places(bench)
    rows = [
        _with_places(_with_rotations(bench, measure_row(bench, row)), places)
        for row in bench.config.rows
    ]
    findings = None
    settings = bench.config.last_layers
    if settings is not None and is_there(settings.source):
        findings = _experiments(bench, settings)
    return Results(
        config=bench.config,
        test_set=searched(bench),
        rows=tuple(_with_speeds(bench, rows)),
        findings=findings,
        environment=_environment(bench),
    )


def measure_row(bench: Bench, row: EmbedderRow) -> RowResult:
    """Embed the test set with one row's embedder and search it; empty when it is not there."""
    if not is_there(row.source):
        bench.console.print(f"{row.name}: not run, {row.source} is not there", soft_wrap=True)
        return RowResult(row)
    embedder = bench.open(row.source)
    pictures = bench.pictures
    vectors = bench.features.vectors(
        embedder, pictures.sha256, pictures.read, f"{row.name}: embedding", pictures.images
    )
    with bench.console.status(f"{row.name}: searching"):
        measurement = measure(bench.pictures, vectors, bench.tasks)
    return RowResult(row, measurement, vectors.shape[1], embedder.facts)


def compare(bench: Bench, source: str, against: str | None) -> Agreement:
    """Measure another runtime of a row's embedder, for instance a server, and compare.

    Args:
        bench: the test set.
        source: see `embedders`; or backfill:HOST:PORT, the server with a back-filled index.
        against: name of the row; by default the one with the same embedder version.

    Raises:
        DataError: no row has that name or version.
    """
    url = source.removeprefix(BACKFILL) if source.startswith(BACKFILL) else None
    embedder = ServedEmbedder(url) if url else bench.open(source)
    row = _row_of(bench, embedder, against)
    reference = measure_row(bench, row)
    if reference.measurement is None:
        raise DataError(f"row {row.name!r} cannot be compared with: {row.source} is not there")
    engine = str(embedder.facts.get("engine", f"onnxruntime-{embedder.id}"))
    if isinstance(embedder, ServedEmbedder) and url:
        measurement = measure_through_index(bench.pictures, bench.tasks, embedder, url)
        engine += "-through-index"
    else:
        vectors = bench.features.vectors(
            embedder, bench.pictures.sha256, bench.pictures.read, f"{source}: embedding"
        )
        with bench.console.status("searching"):
            measurement = measure(bench.pictures, vectors, bench.tasks)
    return agreement(
        measurement,
        reference.measurement,
        test_set=bench.pictures.digest(),
        version=str(embedder.facts.get("version", "")),
        engine=engine,
        row=row.name,
    )


def _open_places(bench: Bench) -> dict[str, Bench]:
    """Further test sets that are there, each frozen beside its own manifest."""
    found = {}
    for place in bench.config.elsewhere:
        manifest = bench.pictures.folder / place.manifest
        if not manifest.exists():
            bench.console.print(f"{place.name}: not run, {manifest} is not there", soft_wrap=True)
            continue
        config = bench.config.model_copy(update={"frozen": "", "elsewhere": []})
        found[place.name] = open_bench(config, manifest, bench.cache, bench.threads, bench.console)
    return found


def _with_places(result: RowResult, places: dict[str, Bench]) -> RowResult:
    if result.measurement is None:
        return result
    found = {name: measure_row(place, result.row).measurement for name, place in places.items()}
    return replace(result, elsewhere={name: one for name, one in found.items() if one is not None})


def _with_rotations(bench: Bench, result: RowResult) -> RowResult:
    wanted = bench.config.rotations
    if result.measurement is None or wanted is None or result.row.name not in wanted.rows:
        return result
    embedder = bench.open(result.row.source)
    vectors = bench.features.vectors(
        embedder, bench.pictures.sha256, bench.pictures.read, f"{result.row.name}: embedding"
    )
    found = []
    for bits in wanted.bits:
        key = [bench.pictures.digest(), bench.pictures.seen_table(), embedder.id]
        with bench.console.status(f"{result.row.name}: {wanted.count} maps to {bits} bits"):
            found.append(
                rotations.remembered_rotation(
                    bench.cache / "rotations",
                    [*key, bits, wanted.count],
                    lambda bits=bits: rotations.rotate(  # type: ignore[misc]
                        bench.pictures, vectors, bench.tasks, bits, rotations=wanted.count
                    ),
                )
            )
    return replace(result, rotated=tuple(found))


def searched(bench: Bench) -> Searched:
    """Counts of the test set."""
    pictures = bench.pictures
    browse = pictures.gallery[BROWSE.name]
    return Searched(
        digest=pictures.digest(),
        queries={t.name: len(np.unique(t.queries())) for t in bench.tasks},
        clusters={t.name: len(np.unique(pictures.cluster[t.queries()])) for t in bench.tasks},
        gallery={t.name: max(len(s.gallery) for s in t.searches) for t in bench.tasks},
        searches={t.name: len(t.searches) for t in bench.tasks},
        unseen=tuple(np.unique(pictures.domain[browse & ~pictures.trained]).tolist()),
    )


def _experiments(bench: Bench, settings: LastLayers) -> experiments.Findings | None:
    members = [row for row in bench.rows if row["split"] == "train"]
    reader = FolderReader(bench.pictures.folder)
    examples = from_rows([*members], reader, tasks=bench.pictures.tasks)
    problem = too_few(examples, settings.shares, settings.batch)
    if problem or not members:
        problem = problem or "the manifest has no training rows"
        bench.console.print(f"last layers: not run, {problem}", soft_wrap=True)
        return None
    embedder = bench.open(settings.source, layer_norm=False)
    sha256 = _hashes(examples.images, examples.read)
    training = bench.features.vectors(
        embedder,
        sha256,
        lambda row: examples.read(examples.images[row]),
        "training pictures: pooled features",
    )
    held = bench.features.vectors(
        embedder, bench.pictures.sha256, bench.pictures.read, "test pictures: pooled features"
    )
    features = experiments.TrunkFeatures(
        experiments.features_id(str(embedder.id), sha256, examples), training, examples, held
    )
    return experiments.run(
        features, bench.pictures, bench.tasks, settings, bench.cache / "maps", bench.console
    )


def _hashes(images: Iterable[str], read: Callable[[str], bytes]) -> list[str]:
    known: dict[str, str] = {}
    for image in images:
        if image not in known:
            known[image] = hashlib.sha256(read(image)).hexdigest()
    return [known[image] for image in images]


def _with_speeds(bench: Bench, rows: list[RowResult]) -> list[RowResult]:
    """Time the compared row and what it replaces, if all of it was run."""
    compared = bench.config.compared()
    run = {result.row.name for result in rows if result.measurement is not None}
    if compared is None:
        return rows
    sources = {row.name: row.source for row in (compared, *bench.config.replaced())}
    if not sources.keys() <= run:
        return rows
    embedders = {name: bench.open(source) for name, source in sources.items()}
    count = min(costs.PICTURES, len(bench.pictures))
    step = len(bench.pictures) // count
    images = [bench.pictures.read(step * number) for number in range(count)]
    with bench.console.status("timing"):
        found = costs.speeds(embedders, images)
    return [replace(result, speed=found.get(result.row.name)) for result in rows]


def _row_of(bench: Bench, embedder: Embedder, name: str | None) -> EmbedderRow:
    rows = bench.config.rows
    if name is not None:
        chosen = [row for row in rows if row.name == name]
        if not chosen:
            raise DataError(f"no row is called {name!r}; there are {[row.name for row in rows]}")
        return chosen[0]
    version = embedder.facts.get("version")
    for row in rows:
        if is_there(row.source) and bench.open(row.source).facts.get("version") == version:
            return row
    raise DataError(
        f"no row has the embedder version {version}; name the row to compare with (--against)"
    )


def _forget(bench: Bench) -> None:
    for row in bench.config.rows:
        if is_there(row.source):
            bench.features.forget(bench.open(row.source))
    if bench.config.last_layers is not None and is_there(bench.config.last_layers.source):
        bench.features.forget(bench.open(bench.config.last_layers.source, layer_norm=False))
        shutil.rmtree(bench.cache / "maps", ignore_errors=True)


def _environment(bench: Bench) -> dict[str, str]:
    import onnxruntime

    threads = bench.threads or len(os.sched_getaffinity(0))
    return {
        "processor": f"{cpu_name()}, {threads} threads",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "onnxruntime": onnxruntime.__version__,
    }
