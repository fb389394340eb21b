"""The plan of batches: uniform mix, every image once, the same from any step on any rank."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unified_embedding.errors import TrainingError
from unified_embedding.training.plan import Plan, batches


def make_rows(*sizes: int) -> dict[str, np.ndarray]:
    starts = np.cumsum([0, *sizes])
    return {f"task{i}": np.arange(starts[i], starts[i + 1]) for i in range(len(sizes))}


@given(st.lists(st.integers(1, 40), min_size=1, max_size=3), st.integers(1, 6), st.integers(0, 3))
def test_an_epoch_shows_the_largest_set_once_and_pads_as_stated(
    sizes: list[int], share: int, epoch: int
) -> None:
    rows = make_rows(*sizes)
    plan = Plan(rows, share * len(sizes), seed=1)
    steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
    shown = np.concatenate([plan.batch_rows(step) for step in steps])
    largest = rows[f"task{int(np.argmax(sizes))}"]
    counts = Counter(shown[np.isin(shown, largest)].tolist())
    assert set(counts) == set(largest.tolist())
    assert sum(counts.values()) - len(largest) == plan.padding
    assert plan.padding < share
    for numbers in rows.values():  # equal shares in every batch, whatever the sizes
        assert np.isin(shown, numbers).sum() == share * plan.steps_per_epoch
        times = [int((shown == one).sum()) for one in numbers]
        assert max(times) - min(times) <= 1


def test_every_batch_is_an_equal_mix() -> None:
    plan = Plan(make_rows(50, 7, 20), 12, seed=0)
    for step in range(30):
        batch = plan.batch_rows(step)
        assert np.bincount(np.digitize(batch, [50, 57]), minlength=3).tolist() == [4, 4, 4]


def test_a_batch_does_not_depend_on_the_batches_before_it() -> None:
    whole, late = Plan(make_rows(30, 9), 8, seed=3), Plan(make_rows(30, 9), 8, seed=3)
    history = [whole.batch_rows(step) for step in range(40)]
    np.testing.assert_array_equal(late.batch_rows(37), history[37])
    assert not np.array_equal(history[0], history[whole.steps_per_epoch])
    other = Plan(make_rows(30, 9), 8, seed=4)
    assert not np.array_equal(other.batch_rows(0), history[0])


def test_ranks_divide_the_global_batch() -> None:
    plan = Plan(make_rows(30, 9), 8, seed=3)
    parts = [list(batches(plan, 2, 4, plan.slots(rank, 2))) for rank in range(2)]
    for number, step in enumerate((2, 3)):
        keys = parts[0][number] + parts[1][number]
        assert sorted(slot for _, _, slot in keys) == list(range(8))
        assert {s for _, s, _ in keys} == {step}
        by_slot = {slot: row for row, _, slot in keys}
        assert [by_slot[slot] for slot in range(8)] == plan.batch_rows(step).tolist()
    with pytest.raises(TrainingError, match="use a multiple of 3"):
        plan.slots(0, 3)


def test_class_balanced_batches_hold_the_asked_number_of_each_class() -> None:
    rows = make_rows(40, 30)
    classes = {"task0": np.repeat(np.arange(10), 4), "task1": np.repeat(np.arange(6), 5)}
    classes["task1"][:5] = -1  # images without a label are never drawn
    plan = Plan(rows, 24, seed=0, balanced=classes, images_per_class=3)
    drawn = []
    for step in range(50):
        batch = plan.batch_rows(step)
        first = classes["task0"][batch[batch < 40]]
        second = classes["task1"][batch[batch >= 40] - 40]
        assert sorted(Counter(first.tolist()).values()) == [3] * 4
        assert sorted(Counter(second.tolist()).values()) == [3] * 4
        assert -1 not in second
        drawn += first.tolist()
    assert set(drawn) == set(range(10))


@pytest.mark.parametrize(
    ("batch", "per_class", "message"),
    [
        (9, None, "does not divide among 2 tasks"),
        (8, 3, "does not divide a task's share of 4"),
        (40, 2, "has 6 classes, too few for 10"),
    ],
)
def test_batches_that_do_not_divide_are_refused(
    batch: int, per_class: int | None, message: str
) -> None:
    classes = {"task0": np.repeat(np.arange(6), 5), "task1": np.repeat(np.arange(6), 5)}
    with pytest.raises(TrainingError, match=message):
        Plan(make_rows(30, 30), batch, 0, classes, per_class)


def test_balance_needs_classes() -> None:
    with pytest.raises(TrainingError, match="needs the classes"):
        Plan(make_rows(4), 4, 0, None, 2)
