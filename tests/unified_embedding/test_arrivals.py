"""Poisson arrivals against the formulas of the process."""

import itertools
import math
import random

import numpy as np
import pytest

from unified_embedding.measure.arrivals import RateProfile


def first(count: int, text: str, seed: int = 1) -> np.ndarray:
    arrivals = RateProfile.parse(text).arrivals(random.Random(seed))
    return np.array(list(itertools.islice(arrivals, count)))


def test_gaps_of_a_constant_rate_are_exponential() -> None:
    gaps = np.sort(np.diff(first(20_000, "50")))
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.03)
    # Kolmogorov-Smirnov distance to 1 - exp(-50 t); 1.95 / sqrt(n) is its 0.1 % point.
    empirical = np.arange(1, len(gaps) + 1) / len(gaps)
    distance = np.abs(empirical - (1 - np.exp(-50 * gaps))).max()
    assert distance < 1.95 / math.sqrt(len(gaps))


def test_counts_of_a_second_vary_as_much_as_their_mean() -> None:
    times = first(40_000, "100")
    counts = np.bincount(times.astype(int))[:-1]
    assert counts.var() / counts.mean() == pytest.approx(1, abs=0.2)


def test_steps_and_ramps_have_their_rates() -> None:
    times = first(40_000, "100@50,300@50,0..200@100,20")
    counts = np.histogram(times, [0, 50, 100, 150, 200, 300])[0]
    # Integrals of the profile; the ramp has a quarter of its arrivals in its first half.
    for count, expected in zip(counts, [5000, 15_000, 2500, 7500, 2000], strict=True):
        assert abs(count - expected) < 5 * math.sqrt(expected)
    profile = RateProfile.parse("0..200@100,20")
    assert [profile.rate(at) for at in (0, 25, 100, 1e9)] == [0, 50, 20, 20]


def test_a_profile_that_ends_at_nothing_ends() -> None:
    times = list(RateProfile.parse("50@2,50..0@2").arrivals(random.Random(0)))
    assert times == sorted(times)
    assert 2 < max(times) < 4


def test_the_same_seed_draws_the_same_moments() -> None:
    assert np.array_equal(first(100, "10..30@5,30", seed=3), first(100, "10..30@5,30", seed=3))
    assert not np.array_equal(first(100, "30", seed=3), first(100, "30", seed=4))


@pytest.mark.parametrize(
    "text",
    ["", "fast", "10@", "@5", "-1", "1..2", "10,20@5", "10@0", "10@-1", "nan", "inf", "10@inf"],
)
def test_what_is_no_profile_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="rate"):
        RateProfile.parse(text)


def test_a_rate_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="never rises above 0"):
        RateProfile.parse("0@5,0")
