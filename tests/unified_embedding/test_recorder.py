"""Latencies and recorders against plain lists of numbers."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("hdrh", reason="the extra `load` is not installed")
pytest.importorskip("tritonclient.grpc", reason="the extra `client` is not installed")

from unified_embedding.errors import (
    DeadlineExceeded,
    Overloaded,
    RequestAborted,
    RequestRejected,
    ServerDied,
    ServerError,
    ServerUnavailable,
    VersionMismatch,
)
from unified_embedding.measure.latencies import PERCENTILES, Latencies
from unified_embedding.measure.recorder import Recorder, error_code

seconds = st.floats(min_value=1e-6, max_value=3000)
requests = st.tuples(
    st.floats(min_value=-2, max_value=20),
    st.floats(min_value=0, max_value=5),
    st.sampled_from([None, ServerUnavailable("busy"), DeadlineExceeded("late")]),
)


def recorded(values: list[float]) -> Latencies:
    latencies = Latencies()
    for value in values:
        latencies.record(value)
    return latencies


@given(st.lists(seconds, min_size=1, max_size=200))
def test_percentiles_are_those_of_the_sorted_list(values: list[float]) -> None:
    latencies = recorded(values)
    ordered = np.sort(np.maximum(1, np.round(np.array(values) * 1e6)))
    for percentile in PERCENTILES:
        rank = max(1, int(percentile * len(values) / 100 + 0.5))
        exact = ordered[rank - 1] / 1000
        assert latencies.percentile_ms(percentile) == pytest.approx(exact, rel=2e-3)
    assert latencies.longest_ms == ordered[-1] / 1000
    assert latencies.mean_ms == pytest.approx(ordered.mean() / 1000)
    assert latencies.summary()["count"] == len(values)


@given(st.lists(seconds, max_size=50), st.lists(seconds, max_size=50))
def test_a_sum_is_what_one_would_have_recorded(left: list[float], right: list[float]) -> None:
    total = Latencies.decode(json.loads(json.dumps(recorded(left).encode())))
    total.add(Latencies.decode(recorded(right).encode()))
    assert total.summary() == recorded(left + right).summary()


@given(st.lists(seconds, min_size=1, max_size=100), seconds)
def test_share_within(values: list[float], limit: float) -> None:
    share = recorded(values).share_within(limit)
    # The bucket that holds the limit counts whole: three digits.
    assert np.mean(np.array(values) <= limit * 0.998) <= share
    assert share <= np.mean(np.array(values) <= limit * 1.002 + 2e-6)


def test_nothing_recorded_is_all_zero() -> None:
    assert set(Latencies().summary().values()) == {0}
    assert Latencies().share_within(1) == 0


def fill(recorder: Recorder, rows: list[tuple[float, float, Exception | None]]) -> Recorder:
    for due, took, error in rows:
        recorder.record(due, due + 0.1, due + 0.1 + took, 2, error)
    return recorder


@given(st.lists(requests, max_size=40), st.lists(requests, max_size=40))
def test_two_processes_together_are_one(
    left: list[tuple[float, float, Exception | None]],
    right: list[tuple[float, float, Exception | None]],
) -> None:
    total = Recorder.decode(json.loads(json.dumps(fill(Recorder(), left).encode())))
    total.add(Recorder.decode(fill(Recorder(), right).encode()))
    whole = fill(Recorder(), left + right)
    assert total.errors == whole.errors
    assert (total.offered, total.completed, total.images) == (
        whole.offered,
        whole.completed,
        whole.images,
    )
    assert total.latencies.summary() == whole.latencies.summary()
    assert total.service.summary() == whole.service.summary()
    assert total.lateness.summary() == whole.lateness.summary()
    assert {
        number: vars(second) | {"latencies": second.latencies.summary()}
        for number, second in total.timeline.items()
    } == {
        number: vars(second) | {"latencies": second.latencies.summary()}
        for number, second in whole.timeline.items()
    }


def test_what_was_due_before_the_window_is_not_in_it() -> None:
    recorder = Recorder()
    recorder.record(-0.5, -0.4, 3.0, 1, None)
    recorder.drop(-0.1)
    assert recorder.offered == 0
    assert recorder.timeline == {}


def test_a_request_counts_where_it_was_due_and_where_it_was_answered() -> None:
    recorder = Recorder()
    recorder.record(0.9, 1.0, 3.5, 4, None)
    recorder.drop(0.95)
    recorder.record(2.2, 2.2, 2.3, 4, ServerError("broken"))
    assert recorder.latencies.longest_ms == 2600
    assert recorder.service.longest_ms == 2500
    assert recorder.lateness.longest_ms == 100
    assert (recorder.offered, recorder.completed, recorder.failed, recorder.dropped) == (3, 1, 1, 1)
    assert recorder.images == 4
    assert recorder.errors == {"ServerError": 1}
    assert (recorder.timeline[0].offered, recorder.timeline[0].dropped) == (2, 1)
    assert recorder.timeline[2].failed == recorder.timeline[3].completed == 1
    # Failed and dropped requests are late ones.
    assert recorder.share_within(60) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ServerUnavailable("down"), "UNAVAILABLE"),
        (ServerDied("lost", was_well=True), "UNAVAILABLE"),
        (Overloaded("too late"), "CANCELLED"),
        (DeadlineExceeded("late"), "DEADLINE_EXCEEDED"),
        (RequestAborted("died twice"), "ABORTED"),
        (RequestRejected("bad"), "INVALID_ARGUMENT"),
        (VersionMismatch("other"), "VERSION_MISMATCH"),
        (ServerError("odd"), "ServerError"),
    ],
)
def test_failures_are_told_apart(error: Exception, code: str) -> None:
    assert error_code(error) == code
