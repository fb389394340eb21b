"""Retrieval metrics: ranks with ties shared, recall at k, and intervals by cluster bootstrap."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from unified_embedding.codes import asymmetric, hamming, pack
from unified_embedding.errors import CodeError

Comparison = Literal["float", "asymmetric", "code"]
COMPARISONS: Final[tuple[Comparison, ...]] = ("float", "asymmetric", "code")


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % percentile interval, in the unit of the samples."""

    mean: float
    low: float
    high: float


def scores(
    query: NDArray[np.floating[Any]], gallery: NDArray[np.floating[Any]], comparison: Comparison
) -> NDArray[np.float32]:
    """Similarity float32 [N, M], higher is nearer, of embeddings [N, D] and [M, D].

    "float" is the cosine, "asymmetric" the float query against the gallery's signs,
    "code" the negated Hamming distance of the packed codes.
    """
    if comparison == "float":
        cosine: NDArray[np.float32] = (_unit(query) @ _unit(gallery).T).astype(np.float32)
        return cosine
    if comparison == "asymmetric":
        return asymmetric(_unit(query), pack(gallery))
    if comparison == "code":
        return -hamming(pack(query), pack(gallery)).astype(np.float32)
    raise CodeError(f"comparison {comparison!r} is not one of {COMPARISONS}")


def recall_at(
    similarity: NDArray[np.floating[Any]], relevant: NDArray[np.bool_], k: int
) -> NDArray[np.float64]:
    """Chance, per query, that the top `k` of M hold a relevant row; float64 [N].

    Rows that tie share the credit: the result is the expectation over a random order of
    equal scores, which Hamming distances need (they tie often) and an argsort hides.

    Args:
        similarity: [N, M], higher is nearer.
        relevant: bool [N, M]; every query needs at least one relevant row.
    """
    if similarity.shape != relevant.shape or similarity.ndim != 2:
        raise CodeError(f"scores {similarity.shape} do not fit the relevance {relevant.shape}")
    if not relevant.any(axis=1).all():
        raise CodeError(f"query {int(np.argmin(relevant.any(axis=1)))} has no relevant row")
    best = np.where(relevant, similarity, -np.inf).max(axis=1, keepdims=True)
    above = (similarity > best).sum(axis=1)
    tied = (similarity == best).sum(axis=1)
    tied_relevant = ((similarity == best) & relevant).sum(axis=1)
    # Of `tied` rows in random order, the first `places` are drawn without replacement.
    places = np.clip(k - above, 0, tied)
    miss = np.ones(len(similarity))
    for step in range(int(places.max(initial=0))):
        active = places > step
        left = np.maximum(tied - step, 1)
        miss = np.where(active, miss * np.maximum(tied - tied_relevant - step, 0) / left, miss)
    return 1.0 - miss


def bootstrap(
    samples: NDArray[np.floating[Any]],
    clusters: Sequence[object],
    repeats: int = 2000,
    seed: int = 0,
) -> Interval:
    """Mean of `samples` [N] with a 95 % interval that resamples whole clusters.

    Queries of one product succeed or fail together, so products are drawn, not queries.
    For a paired comparison pass the difference of two systems on the same queries. The
    interval covers the choice of test products only, not the randomness of training.
    """
    _, index = np.unique(np.asarray(clusters).astype(str), return_inverse=True)
    if len(index) != len(samples) or not len(samples):
        raise CodeError(f"{len(samples)} samples need as many clusters, got {len(index)}")
    count = int(index.max()) + 1
    sums = np.bincount(index, weights=samples, minlength=count)
    sizes = np.bincount(index, minlength=count)
    draws = np.random.default_rng(seed).integers(0, count, size=(repeats, count))
    means = sums[draws].sum(axis=1) / sizes[draws].sum(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(float(samples.mean()), float(low), float(high))


def _unit(rows: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    rows32 = rows.astype(np.float32)
    unit: NDArray[np.float32] = rows32 / np.linalg.norm(rows32, axis=1, keepdims=True)
    return unit
