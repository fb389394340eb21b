import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unified_embedding import pack
from unified_embedding.errors import CodeError
from unified_embedding.retrieval import bootstrap, recall_at, scores


@given(st.lists(st.integers(0, 2), min_size=2, max_size=6), st.integers(1, 5), st.data())
def test_recall_is_the_mean_over_every_order_of_ties(
    values: list[int], k: int, data: st.DataObject
) -> None:
    flags = data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    flags[data.draw(st.integers(0, len(values) - 1))] = True
    hits = []
    for order in itertools.permutations(range(len(values))):
        ranked = sorted(order, key=lambda i: -values[i])  # stable: ties keep this order
        hits.append(any(flags[i] for i in ranked[:k]))
    similarity = np.array([values], dtype=np.float32)
    assert recall_at(similarity, np.array([flags]), k)[0] == pytest.approx(np.mean(hits))


def test_recall_refuses_a_query_without_an_answer() -> None:
    with pytest.raises(CodeError, match="query 1 has no relevant row"):
        recall_at(np.zeros((2, 3)), np.array([[True, False, False], [False] * 3]), 1)


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
