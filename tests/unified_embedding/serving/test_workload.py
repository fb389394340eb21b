"""Large requests wait for one another, and small ones for none of them."""

import threading

import pytest

from unified_embedding.errors import Busy
from unified_embedding.image import Limits
from unified_embedding.serving.workload import LargeRequests

LIMITS = Limits(max_request_pixels=1000, max_pixels_in_work=2000)
GUARD_S = 60


def test_a_quarter_of_the_budget_is_large() -> None:
    large = LargeRequests(LIMITS)
    assert not large.takes(250)
    assert large.takes(251)


def test_they_are_done_in_order_one_at_a_time_and_bounded() -> None:
    large, go, done = LargeRequests(LIMITS), threading.Event(), threading.Event()
    order: list[int] = []

    def job(number: int) -> None:
        assert go.wait(GUARD_S)
        order.append(number)
        if number == 3:
            done.set()

    for number in range(4):
        large.put(500, lambda number=number: job(number))
    assert large.held == 2000
    with pytest.raises(Busy, match=r"costs 251 pixels.* of 2,000 are waiting.*MAX_PIXELS_IN_WORK"):
        large.put(251, lambda: job(9))
    go.set()
    assert done.wait(GUARD_S)
    assert order == [0, 1, 2, 3]
    # All of it is free again.
    again = threading.Event()
    while large.held:
        again.wait(0.01)
    large.put(2000, again.set)
    assert again.wait(GUARD_S)


def test_a_request_that_may_be_sent_is_always_taken_by_an_idle_worker() -> None:
    large, done = (
        LargeRequests(Limits(max_request_pixels=5000, max_pixels_in_work=1)),
        threading.Event(),
    )
    large.put(5000, done.set)
    assert done.wait(GUARD_S)
