import itertools
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unified_embedding import pack, retrieval
from unified_embedding.errors import CodeError
from unified_embedding.retrieval import (
    Interval,
    average_precision_at,
    average_precision_at_r,
    bootstrap,
    bootstrap_trainings,
    figures,
    parse_metric,
    precision_at,
    recall_at,
    scores,
)


def recall(ranked: list[bool], k: int) -> float:
    return float(any(ranked[:k]))


def reciprocal(ranked: list[bool], k: int) -> float:
    return 1 / (1 + ranked.index(True))


def precision(ranked: list[bool], k: int) -> float:
    return sum(ranked[:k]) / min(k, sum(ranked))


def average_precision(ranked: list[bool], k: int) -> float:
    count = sum(ranked)
    return sum(sum(ranked[: i + 1]) / (i + 1) for i in range(count) if ranked[i]) / count


def landmarks(ranked: list[bool], k: int) -> float:
    """mAP@k as the Google Landmarks Dataset v2 defines it."""
    hits = [sum(ranked[: i + 1]) / (i + 1) for i in range(min(k, len(ranked))) if ranked[i]]
    return sum(hits) / min(k, sum(ranked))


METRICS = {
    landmarks: average_precision_at,
    recall: recall_at,
    reciprocal: lambda similarity, relevant, k: figures(similarity, relevant, ["MRR"])["MRR"],
    precision: precision_at,
    average_precision: lambda similarity, relevant, k: average_precision_at_r(similarity, relevant),
}


@pytest.mark.parametrize("definition", METRICS)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=6), st.integers(1, 7), st.data())
def test_a_metric_is_its_mean_over_every_order_of_ties(
    definition: Callable[[list[bool], int], float],
    values: list[int],
    k: int,
    data: st.DataObject,
) -> None:
    flags = data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    flags[data.draw(st.integers(0, len(values) - 1))] = True
    found = []
    for order in itertools.permutations(range(len(values))):
        ranked = sorted(order, key=lambda i: -values[i])  # stable: ties keep this order
        found.append(definition([flags[i] for i in ranked], k))
    # A second query, so that rows are not mixed up.
    similarity = np.array([values[::-1], values], dtype=np.float32)
    relevant = np.array([flags[::-1], flags])
    measured = METRICS[definition](similarity, relevant, k)
    assert measured == pytest.approx([np.mean(found)] * 2)


@pytest.mark.parametrize("definition", METRICS)
def test_a_row_at_minus_infinity_is_left_out(
    definition: Callable[[list[bool], int], float],
) -> None:
    # Leave-one-out: the query's own picture is in the gallery but must not be an answer.
    similarity = np.array([[-np.inf, 0.2, 0.9, 0.5]])
    relevant = np.array([[False, True, False, True]])
    measured = METRICS[definition](similarity, relevant, 2)
    assert measured == pytest.approx([definition([False, True, True], 2)])


@pytest.mark.parametrize("measure", METRICS.values())
def test_metrics_refuse_a_query_without_an_answer(measure: Callable[..., object]) -> None:
    with pytest.raises(CodeError, match="query 1 has no relevant row"):
        measure(np.zeros((2, 3)), np.array([[True, False, False], [False] * 3]), 1)
    with pytest.raises(CodeError, match="do not fit"):
        measure(np.zeros((2, 3)), np.ones((2, 4), dtype=np.bool_), 1)


@pytest.mark.parametrize(
    ("name", "k", "definition"),
    [
        ("R@1000", 1000, recall),
        ("R@2", 2, recall),
        ("P@3", 3, precision),
        ("mAP@100", 100, landmarks),
        ("mAP@R", 0, average_precision),
        ("MRR", 0, reciprocal),
    ],
)
def test_a_metric_is_found_by_its_name(
    name: str, k: int, definition: Callable[[list[bool], int], float]
) -> None:
    rng = np.random.default_rng(3)
    similarity, relevant = rng.random((4, 30)), rng.random((4, 30)) < 0.3
    order = np.argsort(-similarity, axis=1)
    ranked = np.take_along_axis(relevant, order, axis=1).tolist()
    found = figures(similarity, relevant, ["R@5", name])
    assert found[name] == pytest.approx([definition(row, k) for row in ranked])


@pytest.mark.parametrize("name", ["R@0", "R@", "NDCG@5", "mAP", "P@R"])
def test_an_unknown_metric_is_named(name: str) -> None:
    with pytest.raises(CodeError, match=f"metric '{name}' is unknown"):
        parse_metric(name)


def test_scores_against_their_definitions() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(4, 16)), rng.normal(size=(5, 16))
    cosine = [[x @ y / np.linalg.norm(x) / np.linalg.norm(y) for y in b] for x in a]
    assert np.allclose(scores(a, b, "float"), cosine, atol=1e-6)
    differing = [[((x > 0) != (y > 0)).sum() for y in b] for x in a]
    assert (scores(a, b, "code") == -np.array(differing)).all()
    signs = np.where(b > 0, 1, -1)
    expected = (a / np.linalg.norm(a, axis=1, keepdims=True)) @ signs.T
    assert np.allclose(scores(a, b, "asymmetric"), expected, atol=1e-5)
    assert pack(a).shape == (4, 2)


def test_bootstrap_resamples_clusters_not_queries() -> None:
    # Ten products whose five queries agree with one another: the spread is that of ten values.
    rng = np.random.default_rng(1)
    by_product = rng.integers(0, 2, 10).astype(float)
    samples, products = np.repeat(by_product, 5), np.repeat(np.arange(10), 5)
    clustered = bootstrap(samples, list(products))
    independent = bootstrap(samples, list(range(50)))
    assert clustered.mean == independent.mean == samples.mean()
    widths = clustered.high - clustered.low, independent.high - independent.low
    assert widths[0] / widths[1] == pytest.approx(np.sqrt(5), rel=0.25)
    standard_error = by_product.std() / np.sqrt(10)
    assert widths[0] == pytest.approx(2 * 1.96 * standard_error, rel=0.2)


def test_bootstrap_needs_a_cluster_for_every_sample() -> None:
    with pytest.raises(CodeError, match="3 samples"):
        bootstrap(np.zeros(3), ["a", "b"])


def test_bootstrap_in_parts_draws_what_it_draws_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    samples, clusters = rng.random(999), list(rng.integers(0, 333, 999))
    monkeypatch.setattr(retrieval, "_DRAWN", 1 << 40)
    whole = bootstrap(samples, clusters)
    for drawn in (1, 1000, 4567):
        monkeypatch.setattr(retrieval, "_DRAWN", drawn)
        assert bootstrap(samples, clusters) == whole
    # The plain formula, all draws held at once.
    _, index = np.unique(np.asarray(clusters).astype(str), return_inverse=True)
    count = index.max() + 1
    draws = np.random.default_rng(0).integers(0, count, size=(2000, count))
    sums, sizes = np.bincount(index, weights=samples), np.bincount(index)
    means = sums[draws].sum(axis=1) / sizes[draws].sum(axis=1)
    assert (whole.low, whole.high) == tuple(np.quantile(means, (0.025, 0.975)))


def test_bootstrap_of_a_public_benchmark_stays_small() -> None:
    # Stanford Online Products has 11,316 test products; all draws at once are 181 MB.
    rng = np.random.default_rng(6)
    samples, clusters = rng.random(11316), list(range(11316))
    tracemalloc.start()
    bootstrap(samples, clusters, repeats=200)
    bootstrap_trainings(samples[None], clusters, repeats=200)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6


def test_two_levels_cover_the_spread_of_trainings_and_of_products() -> None:
    """Against the variance of crossed random effects, which is known here."""
    rng = np.random.default_rng(7)
    trainings, products, each = 40, 60, 3
    effect = rng.normal(0, 0.05, trainings)[:, None]
    product = np.repeat(rng.normal(0, 0.3, products), each)[None]
    samples, clusters = effect + product, list(np.repeat(np.arange(products), each))
    found = bootstrap_trainings(samples, clusters)
    wanted = 2 * 1.96 * np.sqrt(effect.var() / trainings + product[0, ::each].var() / products)
    assert found.high - found.low == pytest.approx(wanted, rel=0.1)
    assert found.mean == pytest.approx(samples.mean())
    # Products alone leave the trainings out, and trainings alone the products.
    assert found.high - found.low > np.subtract(*_bounds(bootstrap(samples.mean(axis=0), clusters)))
    same = np.broadcast_to(product, samples.shape)
    one = bootstrap(product[0], clusters)
    alike = bootstrap_trainings(same, clusters)
    assert alike.high - alike.low == pytest.approx(one.high - one.low, rel=0.1)


def _bounds(interval: Interval) -> tuple[float, float]:
    return interval.high, interval.low


def test_two_levels_need_trainings() -> None:
    with pytest.raises(CodeError, match=r"\(3,\) are not \[trainings, queries\]"):
        bootstrap_trainings(np.zeros(3), list("abc"))
    with pytest.raises(CodeError, match="3 samples"):
        bootstrap_trainings(np.zeros((2, 3)), list("ab"))
