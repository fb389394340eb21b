"""The interval of a ratio over paired rounds, the verdict on it, and when rounds end."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from unified_embedding.measure.paired import (
    MIN_ROUNDS,
    at_least,
    at_most,
    mean,
    ratio,
    settled,
    told,
)
from unified_embedding.retrieval import Interval, bootstrap

RATIO = 1.2
Noise = Callable[[np.random.Generator, int], NDArray[np.float64]]
NOISES: dict[str, Noise] = {
    "normal": lambda draw, count: draw.normal(0, 0.05, count),
    "with outliers": lambda draw, count: draw.laplace(0, 0.05, count),
    "skewed": lambda draw, count: draw.exponential(0.05, count),
}


def rounds_of(
    draw: np.random.Generator, count: int, noise: Noise
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both sides of rounds on a machine whose speed changes by a half from round to round."""
    machine = draw.normal(0, 0.5, count)
    ours = RATIO * np.exp(machine + noise(draw, count))
    return ours, np.exp(machine + noise(draw, count))


@pytest.mark.parametrize(
    ("name", "count"), [("normal", MIN_ROUNDS), ("with outliers", 10), ("skewed", 15)]
)
def test_the_interval_holds_a_constant_ratio_19_times_of_20(name: str, count: int) -> None:
    draw, runs = np.random.default_rng(count), 200
    found = [ratio(*rounds_of(draw, count, NOISES[name])) for _ in range(runs)]
    covered = sum(one.low <= RATIO <= one.high for one in found) / runs
    # Three standard errors of such a count below 95 %; above, an interval may not be endless.
    assert 0.904 <= covered <= 0.99
    assert np.median([one.high / one.low for one in found]) < 1.25


def test_noise_of_both_sides_at_once_leaves_no_doubt() -> None:
    machine = np.random.default_rng(0).lognormal(0, 1, 9)
    found = ratio(RATIO * machine, machine)
    assert (found.mean, found.low, found.high) == pytest.approx((RATIO,) * 3)


def test_the_drawn_means_are_those_of_every_resample() -> None:
    """Brute force: of 5 values there are 5^5 resamples, each as likely as another."""
    values = np.array([0.113, 0.397, 0.541, 1.089, 1.973])
    means = np.mean(list(itertools.product(values, repeat=5)), axis=1)
    for tail in (0.025, 0.1, 0.3):
        found = bootstrap(values, range(5), repeats=40_000, tail=tail)
        assert found.mean == pytest.approx(values.mean())
        exact = np.quantile(means, (tail, 1 - tail))
        assert (found.low, found.high) == pytest.approx(exact, abs=0.03)


def test_the_interval_is_as_wide_as_students_for_normal_noise() -> None:
    stats = pytest.importorskip("scipy.stats")
    draw = np.random.default_rng(3)
    for count in (MIN_ROUNDS, 12, 40):
        wider = []
        for _ in range(20):
            values = draw.normal(0, 1, count)
            found = mean(values)
            half = stats.t.ppf(0.975, count - 1) * values.std(ddof=1) / math.sqrt(count)
            wider.append((found.high - found.low) / (2 * half))
        assert np.mean(wider) == pytest.approx(1, abs=0.1)


def test_few_rounds_decide_nothing() -> None:
    found = ratio([2.0] * (MIN_ROUNDS - 1), [1.0] * (MIN_ROUNDS - 1))
    assert found.mean == 2
    assert at_least(1.1).verdict(found) == at_most(1.1).verdict(found) == "undecided"
    assert not settled(found, 100, at_least(1.1))
    assert told(found) == "2.00"


@pytest.mark.parametrize(
    ("low", "high", "least", "most"),
    [
        (1.10, 1.20, "met", "undecided"),
        (1.11, 1.20, "met", "missed"),
        (1.09, 1.11, "undecided", "undecided"),
        (1.00, 1.10, "undecided", "met"),
        (1.00, 1.09, "missed", "met"),
    ],
)
def test_a_verdict_needs_the_whole_interval(low: float, high: float, least: str, most: str) -> None:
    found = Interval((low + high) / 2, low, high)
    assert at_least(1.1).verdict(found) == least
    assert at_most(1.1).verdict(found) == most
    assert (str(at_least(1.1)), str(at_most(1.1))) == (">= 1.1", "<= 1.1")


def test_rounds_end_when_the_interval_is_narrow_or_clearly_beside_the_target() -> None:
    narrow, wide = Interval(1.0, 0.99, 1.01), Interval(1.0, 0.95, 1.05)
    assert settled(narrow, 0.04)
    assert not settled(wide, 0.04)
    # Twice the interval, 0.9 to 1.1, leaves the target out.
    assert settled(wide, 0.04, at_least(1.11))
    assert settled(wide, 0.04, at_most(0.89))
    # The interval does, twice the interval does not: the next rounds may think otherwise.
    assert at_least(1.06).verdict(wide) == "missed"
    assert not settled(wide, 0.04, at_least(1.06))


def test_looking_after_every_round_does_not_flip_verdicts() -> None:
    """With the ratio exactly at the target, either verdict is wrong one time in twenty at most."""
    draw, runs, wrong = np.random.default_rng(5), 60, 0
    for _ in range(runs):
        ours, theirs = rounds_of(draw, 20, NOISES["normal"])
        for count in range(MIN_ROUNDS, 21):
            found = ratio(ours[:count], theirs[:count])
            if settled(found, 0.04, at_least(RATIO)):
                break
        wrong += at_least(RATIO).verdict(found) != "undecided"
    # Both tails together, and three standard errors.
    assert wrong / runs < 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)
