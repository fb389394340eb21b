"""The sampled set: ground truth in, the rest uniform, labels re-indexed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unified_embedding.errors import TrainingError
from unified_embedding.training.subsampler import UNLABELLED, relabel, sample_classes


@given(
    st.integers(1, 60).flatmap(
        lambda m: st.tuples(
            st.just(m),
            st.integers(1, 70),
            st.lists(st.integers(-1, m - 1), max_size=20),
            st.integers(0, 9),
        )
    )
)
def test_the_set_is_sorted_distinct_of_size_k_and_holds_the_ground_truth(
    case: tuple[int, int, list[int], int],
) -> None:
    classes, sampled, values, seed = case
    labels = np.array(values, dtype=np.int64)
    present = set(values) - {UNLABELLED}
    if sampled < classes and len(present) > sampled:
        with pytest.raises(TrainingError, match="ground-truth classes"):
            sample_classes(labels, classes, sampled, (seed,))
        return
    found = sample_classes(labels, classes, sampled, (seed,))
    assert len(found) == min(sampled, classes)
    assert (np.diff(found) > 0).all()
    assert set(found.tolist()) >= present
    assert found.min() >= 0
    assert found.max() < classes
    places = relabel(labels, found)
    assert [UNLABELLED if p == UNLABELLED else found[p] for p in places] == values


def test_absent_classes_are_drawn_uniformly() -> None:
    """4,000 draws of 3 of the 8 absent classes: each comes 1,500 times, give or take 5 sigma."""
    labels = np.array([0, 4, 9, 9])
    counts = np.zeros(11)
    for draw in range(4000):
        counts[sample_classes(labels, 11, 6, (7, draw))] += 1
    assert (counts[[0, 4, 9]] == 4000).all()
    absent = np.delete(counts, [0, 4, 9])
    sigma = np.sqrt(4000 * 3 / 8 * 5 / 8)
    assert np.abs(absent - 1500).max() < 5 * sigma


def test_equal_seeds_draw_equal_sets_and_other_steps_other_sets() -> None:
    labels = np.array([5])
    first = sample_classes(labels, 1000, 50, (1, 2))
    np.testing.assert_array_equal(first, sample_classes(labels, 1000, 50, (1, 2)))
    assert not np.array_equal(first, sample_classes(labels, 1000, 50, (1, 3)))


def test_k_at_or_above_m_takes_every_class_in_order() -> None:
    for sampled in (10, 11):
        np.testing.assert_array_equal(
            sample_classes(np.array([3, -1]), 10, sampled, (0,)), np.arange(10)
        )


def test_too_many_ground_truth_classes_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(TrainingError) as caught:
        sample_classes(np.arange(12), 100, 11, (0,), "shop_instance")
    assert "12 ground-truth classes but only 11" in str(caught.value)
    assert "sampled.shop_instance to at least 12" in str(caught.value)


@pytest.mark.parametrize("label", [-2, 10])
def test_labels_outside_the_classes_are_refused(label: int) -> None:
    with pytest.raises(TrainingError, match="do not fit 10 classes"):
        sample_classes(np.array([3, label]), 10, 4, (0,))


@pytest.mark.parametrize("label", [1, 99])
def test_a_label_that_was_not_sampled_is_refused(label: int) -> None:
    with pytest.raises(TrainingError, match=f"class {label} of the batch was not sampled"):
        relabel(np.array([2, label]), np.array([0, 2, 5]))
