"""Score an embedder's vectors on every task; keep each query's score for paired comparisons."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unified_embedding.errors import CodeError
from unified_embedding.protocols.held_out import HeldOut
from unified_embedding.protocols.tasks import Task
from unified_embedding.retrieval import (
    COMPARISONS,
    Comparison,
    Interval,
    bootstrap,
    figures,
    scores,
)

Similarity = Callable[[NDArray[np.int64], NDArray[np.int64], Comparison], NDArray[np.float32]]
"""Query rows [Q], gallery rows [M] -> similarity float32 [Q, M], higher is nearer."""

_BLOCK: Final = 512


class Cell(NamedTuple):
    """Names one figure of an embedder."""

    task: str
    metric: str
    comparison: Comparison


@dataclass(frozen=True, eq=False)
class Samples:
    """One figure, query by query.

    Attributes:
        values: float64 [Q] in [0, 1].
        clusters: str [Q].
    """

    values: NDArray[np.float64]
    clusters: NDArray[np.str_]

    def interval(self) -> Interval:
        """Mean and 95 % interval over clusters."""
        return self._interval

    @cached_property
    def _interval(self) -> Interval:
        # Tables, pictures, claims and results.json ask for the same figures.
        return bootstrap(self.values, self.clusters.tolist())

    def minus(self, other: "Samples") -> "Samples":
        """The paired difference, query by query.

        Raises:
            CodeError: the two were not measured on the same queries.
        """
        if not np.array_equal(self.clusters, other.clusters):
            raise CodeError("a paired difference needs the same queries on both sides")
        return Samples(self.values - other.values, self.clusters)


@dataclass(frozen=True, eq=False)
class Measurement:
    """What one embedder scored.

    Attributes:
        samples: cell -> the scores of its queries.
        first: (task, comparison) -> int64 [Q], the row of each query's best answer; of equal
            ones the first.
    """

    samples: Mapping[Cell, Samples]
    first: Mapping[tuple[str, Comparison], NDArray[np.int64]]


def paired(ours: Measurement | None, theirs: Measurement | None, cell: Cell) -> Interval | None:
    """Paired difference of one figure; None unless both sides have it."""
    if ours is None or theirs is None or not {cell} <= set(ours.samples) & set(theirs.samples):
        return None
    return ours.samples[cell].minus(theirs.samples[cell]).interval()


def measure(
    pictures: HeldOut,
    vectors: NDArray[np.floating[Any]],
    tasks: Iterable[Task],
    comparisons: Iterable[Comparison] = COMPARISONS,
) -> Measurement:
    """Search every task with every comparison.

    Args:
        pictures: N of them.
        vectors: float [N, D], row by row.
        tasks: of `build_tasks`.
        comparisons: float, asymmetric, code.

    Raises:
        CodeError: not a vector for every picture.
    """
    if vectors.ndim != 2 or len(vectors) != len(pictures):
        raise CodeError(f"{len(pictures)} pictures need as many vectors, got {vectors.shape}")

    def similarity(
        queries: NDArray[np.int64], gallery: NDArray[np.int64], comparison: Comparison
    ) -> NDArray[np.float32]:
        return scores(vectors[queries], vectors[gallery], comparison)

    return measure_by(pictures, similarity, tasks, comparisons)


def measure_by(
    pictures: HeldOut,
    similarity: Similarity,
    tasks: Iterable[Task],
    comparisons: Iterable[Comparison] = COMPARISONS,
) -> Measurement:
    """As `measure`, by whatever says how similar two rows of the test set are."""
    wanted = list(comparisons)
    samples: dict[Cell, Samples] = {}
    first: dict[tuple[str, Comparison], NDArray[np.int64]] = {}
    for task in tasks:
        clusters = pictures.cluster[task.queries()]
        _, labels = np.unique(pictures.labels[task.label], return_inverse=True)
        for comparison in wanted:
            blocks = [
                _search(similarity, labels, task.metrics, search.gallery, rows, comparison)
                for search in task.searches
                for rows in _blocks(search.queries)
            ]
            first[task.name, comparison] = np.concatenate([best for best, _ in blocks])
            for metric in task.metrics:
                values = np.concatenate([found[metric] for _, found in blocks])
                samples[Cell(task.name, metric, comparison)] = Samples(values, clusters)
    return Measurement(samples, first)


def _blocks(queries: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return [queries[start : start + _BLOCK] for start in range(0, len(queries), _BLOCK)]


def _search(
    similarity: Similarity,
    labels: NDArray[np.int64],
    metrics: Iterable[str],
    gallery: NDArray[np.int64],
    queries: NDArray[np.int64],
    comparison: Comparison,
) -> tuple[NDArray[np.int64], dict[str, NDArray[np.float64]]]:
    same = queries[:, None] == gallery[None, :]
    relevant = (labels[queries][:, None] == labels[gallery][None, :]) & ~same
    found = similarity(queries, gallery, comparison)
    best, values = score(found, relevant, same, metrics)
    return gallery[best], values


def score(
    similarity: NDArray[np.float32],
    relevant: NDArray[np.bool_],
    same: NDArray[np.bool_],
    metrics: Iterable[str],
) -> tuple[NDArray[np.int64], dict[str, NDArray[np.float64]]]:
    """Place of the best answer, int64 [Q], and the figures of one block of queries.

    Args:
        similarity: [Q, M]; overwritten where `same`.
        relevant: the right answers.
        same: the query's own picture, which is left out.
        metrics: names that `retrieval.figures` knows.
    """
    similarity[same] = -np.inf
    return similarity.argmax(axis=1), figures(similarity, relevant, metrics)
