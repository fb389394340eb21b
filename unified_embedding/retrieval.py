"""Retrieval metrics with shared ties, and intervals by cluster bootstrap.

Rows that tie share the credit: every metric is its expectation over a random order of equal
scores, which Hamming distances need (they tie often) and an argsort hides. The closed forms
follow McSherry and Najork, "Computing information retrieval performance measures efficiently
in the presence of tied scores", ECIR 2008.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from unified_embedding.codes import pack, unpack
from unified_embedding.errors import CodeError, shown

Comparison = Literal["float", "asymmetric", "code"]
_DRAWN: Final = 1 << 18
"""Numbers that a part of a bootstrap holds at once, 2 MiB each array."""

COMPARISONS: Final[tuple[Comparison, ...]] = ("float", "asymmetric", "code")

Scorer = Callable[[NDArray[np.floating[Any]]], NDArray[np.float32]]
"""Queries [N, D] -> similarity float32 [N, M] to the gallery that it was made for."""


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
    return scorer(gallery, comparison)(query)


def scorer(gallery: NDArray[np.floating[Any]], comparison: Comparison) -> Scorer:
    """As `scores`, for a gallery [M, D] that many blocks of queries search: prepared once."""
    if comparison == "float":
        unit = _unit(gallery)
        return lambda query: (_unit(query) @ unit.T).astype(np.float32)
    if comparison == "asymmetric":
        signs = _signs(gallery)
        return lambda query: _unit(query) @ signs.T
    if comparison == "code":
        signs = _signs(gallery)
        # Differing bits are (D - product of signs) / 2: whole numbers, exact in float32.
        return lambda query: (_signs(query) @ signs.T - signs.shape[1]) / 2
    raise CodeError(f"comparison {comparison!r} is not one of {COMPARISONS}")


def figures(
    similarity: NDArray[np.floating[Any]], relevant: NDArray[np.bool_], names: Iterable[str]
) -> dict[str, NDArray[np.float64]]:
    """Several metrics, float64 [N] each, by name: R@K, P@K or mAP@K for any K, mAP@R, MRR.

    Arguments as `recall_at`.

    Raises:
        CodeError: no metric has that name.
    """
    first: _FirstGroup | None = None
    found = {}
    for name in names:
        kind, k = parse_metric(name)
        if kind in ("R", "MRR"):
            first = first or _first_relevant_group(similarity, relevant)
            found[name] = _recall(first, k) if kind == "R" else _reciprocal(first)
        elif kind == "P":
            found[name] = precision_at(similarity, relevant, k)
        elif k:
            found[name] = average_precision_at(similarity, relevant, k)
        else:
            found[name] = average_precision_at_r(similarity, relevant)
    return found


def parse_metric(name: str) -> tuple[str, int]:
    """Kind ("R", "P", "mAP", "MRR") and K of a metric's name; K is 0 where there is none.

    Raises:
        CodeError: no metric has that name.
    """
    if name in ("MRR", "mAP@R"):
        return name.partition("@")[0], 0
    if found := re.fullmatch(r"(R|P|mAP)@([1-9]\d*)", name):
        return found[1], int(found[2])
    raise CodeError(
        f"metric {shown(name)} is unknown: R@K, P@K and mAP@K with a number K, mAP@R, MRR"
    )


def recall_at(
    similarity: NDArray[np.floating[Any]], relevant: NDArray[np.bool_], k: int
) -> NDArray[np.float64]:
    """Chance, per query, that the top `k` of M hold a relevant row; float64 [N].

    Args:
        similarity: [N, M], higher is nearer; -inf leaves a row out.
        relevant: bool [N, M]; every query needs at least one relevant row.
    """
    return _recall(_first_relevant_group(similarity, relevant), k)


def _recall(first: "_FirstGroup", k: int) -> NDArray[np.float64]:
    above, tied, tied_relevant = first
    # Of `tied` rows in random order, the first `places` are drawn without replacement.
    places = np.clip(k - above, 0, tied)
    miss = np.ones(len(above))
    for step in range(int(places.max(initial=0))):
        active = places > step
        left = np.maximum(tied - step, 1)
        miss = np.where(active, miss * np.maximum(tied - tied_relevant - step, 0) / left, miss)
    return 1.0 - miss


def _reciprocal(first: "_FirstGroup") -> NDArray[np.float64]:
    above, tied, tied_relevant = first
    found, miss = np.zeros(len(above)), np.ones(len(above))
    for step in range(int((tied - tied_relevant).max(initial=0)) + 1):
        hit = np.clip(tied_relevant / np.maximum(tied - step, 1), 0, 1)
        found += miss * hit / (above + step + 1)
        miss *= 1 - hit
    return found


def precision_at(
    similarity: NDArray[np.floating[Any]], relevant: NDArray[np.bool_], k: int
) -> NDArray[np.float64]:
    """Relevant rows among the top `k`, over the most there can be: min(k, relevant); float64 [N].

    Arguments as `recall_at`.
    """
    groups = _tie_groups(similarity, relevant, k)
    most = np.minimum(k, relevant.sum(axis=1))
    share: NDArray[np.float64] = (groups.relevant / groups.size).sum(axis=1) / most
    return share


def average_precision_at_r(
    similarity: NDArray[np.floating[Any]], relevant: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Average precision over the top R, R being the query's relevant rows; float64 [N].

    The mean over queries is the mAP@R of Musgrave, Belongie and Lim, "A Metric Learning
    Reality Check", ECCV 2020: only positions that hold a relevant row add their precision.
    Arguments as `recall_at`.
    """
    _check_relevance(similarity, relevant)
    count = relevant.sum(axis=1)
    return _average_precision(similarity, relevant, count, count)


def average_precision_at(
    similarity: NDArray[np.floating[Any]], relevant: NDArray[np.bool_], k: int
) -> NDArray[np.float64]:
    """Average precision over the top `k`, over the most there can be: min(k, relevant).

    The mean over queries is the mAP@100 of Weyand et al., "Google Landmarks Dataset v2", CVPR
    2020, for k = 100. Arguments as `recall_at`.
    """
    _check_relevance(similarity, relevant)
    most = np.minimum(k, relevant.sum(axis=1))
    return _average_precision(similarity, relevant, np.full(len(similarity), k), most)


def _average_precision(
    similarity: NDArray[np.floating[Any]],
    relevant: NDArray[np.bool_],
    places: NDArray[np.int64],
    most: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Precision at the relevant ones of each query's first `places` [N], summed, over `most`."""
    groups = _tie_groups(similarity, relevant, int(places.max(initial=1)))
    position = np.arange(groups.size.shape[1])
    # Given a relevant row at the j-th place (from 0) of its group, the j places before it hold
    # on average j (r - 1) / (n - 1) of the group's other relevant rows.
    others = (groups.relevant - 1) / np.maximum(groups.size - 1, 1)
    precision = (groups.relevant_above + 1 + (position - groups.start) * others) / (position + 1)
    expected = groups.relevant / groups.size * precision
    total = np.where(position < places[:, None], expected, 0.0).sum(axis=1)
    average: NDArray[np.float64] = total / most
    return average


def bootstrap(
    samples: NDArray[np.floating[Any]],
    clusters: Sequence[object],
    repeats: int = 2000,
    seed: int = 0,
    tail: float = 0.025,
) -> Interval:
    """Mean of `samples` [N] with a 95 % interval that resamples whole clusters.

    Queries of one product succeed or fail together, so products are drawn, not queries.
    For a paired comparison pass the difference of two systems on the same queries. The
    interval covers the choice of test products only, not the randomness of training.
    `tail` is the share of the drawn means below it, and above it.

    Raises:
        CodeError: not a cluster for every sample.
    """
    sums, sizes = _by_cluster(samples[None], clusters)
    rng = np.random.default_rng(seed)
    means = [
        sums[0][draws].sum(axis=1) / sizes[draws].sum(axis=1)
        for draws in _draws(rng, repeats, len(sizes))
    ]
    low, high = np.quantile(np.concatenate(means), (tail, 1 - tail))
    return Interval(float(samples.mean()), float(low), float(high))


def bootstrap_trainings(
    samples: NDArray[np.floating[Any]],
    clusters: Sequence[object],
    repeats: int = 2000,
    seed: int = 0,
) -> Interval:
    """Mean over S trainings of the same queries, with a 95 % interval over both.

    Each repeat draws S of the S trainings with replacement, then whole clusters, the same for
    every training drawn (crossed random effects: Owen, "The pigeonhole bootstrap", Annals of
    Applied Statistics 2007). With few trainings the interval is too narrow by about
    sqrt((S - 1) / S) in its training part; report the standard deviation over trainings too.

    Args:
        samples: [S, N], a row per training. For the difference of two systems, row s is the
            difference of their s-th trainings.
        clusters: of the N queries.
        repeats: draws.
        seed: of the draws.

    Raises:
        CodeError: not a cluster for every sample, or no training.
    """
    if samples.ndim != 2 or not len(samples):
        raise CodeError(f"samples {samples.shape} are not [trainings, queries]")
    sums, sizes = _by_cluster(samples, clusters)
    rng = np.random.default_rng(seed)
    count = len(sums)
    means = []
    for draws in _draws(rng, repeats, len(sizes)):
        weights = rng.multinomial(count, np.full(count, 1 / count), size=len(draws)) / count
        drawn = np.take_along_axis(weights @ sums, draws, axis=1)
        means.append(drawn.sum(axis=1) / sizes[draws].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975))
    return Interval(float(samples.mean()), float(low), float(high))


def _by_cluster(
    samples: NDArray[np.floating[Any]], clusters: Sequence[object]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Sums float64 [S, C] of samples [S, N] and sizes int64 [C] of the C clusters."""
    _, index = np.unique(np.asarray(clusters).astype(str), return_inverse=True)
    if len(index) != samples.shape[1] or not len(index):
        raise CodeError(f"{samples.shape[1]} samples need as many clusters, got {len(index)}")
    sizes = np.bincount(index)
    sums: NDArray[np.float64] = np.stack([np.bincount(index, weights=row) for row in samples])
    return sums, sizes


def _draws(rng: np.random.Generator, repeats: int, count: int) -> Iterator[NDArray[np.int64]]:
    """`repeats` draws of `count` clusters with replacement, in parts of bounded memory.

    Parts follow one another in the generator's stream: their size does not change the draws.
    """
    part = max(1, _DRAWN // count)
    for start in range(0, repeats, part):
        yield rng.integers(0, count, size=(min(part, repeats - start), count))


@dataclass(frozen=True)
class _TieGroups:
    """Per query and position in descending order: the group of equal scores it belongs to.

    Attributes:
        start: first position of the group, int64 [N, K], as all.
        size: rows of the group, those beyond position K too.
        relevant: relevant rows of the group.
        relevant_above: relevant rows before the group.
    """

    start: NDArray[np.int64]
    size: NDArray[np.int64]
    relevant: NDArray[np.int64]
    relevant_above: NDArray[np.int64]


def _tie_groups(
    similarity: NDArray[np.floating[Any]], relevant: NDArray[np.bool_], k: int
) -> _TieGroups:
    """Groups of the first min(k, M) positions: the rest of a long gallery is never sorted."""
    _check_relevance(similarity, relevant)
    top = _top(similarity, k)
    ranked = np.take_along_axis(similarity, top, axis=1)
    # counted[:, i] relevant rows stand before position i.
    counted = np.zeros((len(ranked), ranked.shape[1] + 1), dtype=np.int64)
    np.cumsum(np.take_along_axis(relevant, top, axis=1), axis=1, out=counted[:, 1:])
    changes = np.ones(counted.shape, dtype=np.bool_)
    changes[:, 1:-1] = ranked[:, 1:] != ranked[:, :-1]
    position = np.arange(counted.shape[1])
    start = np.maximum.accumulate(np.where(changes, position, 0), axis=1)[:, :-1]
    ends = np.where(changes, position, position[-1])[:, :0:-1]
    end = np.minimum.accumulate(ends, axis=1)[:, ::-1]
    above = np.take_along_axis(counted, start, axis=1)
    groups = _TieGroups(start, end - start, np.take_along_axis(counted, end, axis=1) - above, above)
    # The last group may go on beyond the last position.
    tied = similarity == ranked[:, -1:]
    last = start == start[:, -1:]
    np.copyto(groups.size, tied.sum(axis=1, keepdims=True), where=last)
    np.copyto(groups.relevant, (tied & relevant).sum(axis=1, keepdims=True), where=last)
    return groups


def _top(similarity: NDArray[np.floating[Any]], k: int) -> NDArray[np.int64]:
    """Columns int64 [N, min(k, M)] of the highest scores, descending."""
    if k >= similarity.shape[1]:
        return np.argsort(-similarity, axis=1)
    some = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(similarity, some, axis=1), axis=1)
    return np.take_along_axis(some, order, axis=1)


_FirstGroup = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


def _first_relevant_group(
    similarity: NDArray[np.floating[Any]], relevant: NDArray[np.bool_]
) -> _FirstGroup:
    """Of the best relevant score: rows above it, rows that have it, relevant rows that have it."""
    _check_relevance(similarity, relevant)
    best = np.where(relevant, similarity, -np.inf).max(axis=1, keepdims=True)
    equal = similarity == best
    return (similarity > best).sum(axis=1), equal.sum(axis=1), (equal & relevant).sum(axis=1)


def _check_relevance(similarity: NDArray[np.floating[Any]], relevant: NDArray[np.bool_]) -> None:
    if similarity.shape != relevant.shape or similarity.ndim != 2:
        raise CodeError(f"scores {similarity.shape} do not fit the relevance {relevant.shape}")
    if not relevant.any(axis=1).all():
        raise CodeError(f"query {int(np.argmin(relevant.any(axis=1)))} has no relevant row")


def _signs(rows: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """The codes of embeddings as +1 and -1, float32 [N, D]."""
    return unpack(pack(rows)).astype(np.float32) * 2 - 1


def _unit(rows: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    rows32 = rows.astype(np.float32)
    unit: NDArray[np.float32] = rows32 / np.linalg.norm(rows32, axis=1, keepdims=True)
    return unit
