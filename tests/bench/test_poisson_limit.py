"""The search for the highest rate, on services whose limit is known."""

import asyncio
import random
import statistics

import pytest

pytest.importorskip("hdrh", reason="the extra `load` is not installed")
pytest.importorskip("tritonclient.grpc", reason="the extra `client` is not installed")

from unified_embedding.load.capacity import knee
from unified_embedding.load.soak import summary
from unified_embedding.measure.poisson_limit import PRECISION, LimitSearch, Trial, highest_rate


def trial_of(rate: float, share: float, mean_ms: float = 1.0) -> Trial:
    return Trial(rate, share, p50_ms=1.0, p99_ms=1.0, mean_ms=mean_ms, answered=rate)


@pytest.mark.parametrize("limit", [5.0, 41.0, 137.0, 239.0])
def test_the_limit_is_found_from_below(limit: float) -> None:
    async def trial(rate: float, seed: int) -> Trial:
        return trial_of(rate, 1.0 if rate <= limit else 0.5)

    found, trials = asyncio.run(highest_rate(trial, upper=240.0))
    assert limit / (1 + PRECISION) <= found <= limit
    assert len(trials) < 30


@pytest.mark.parametrize("limit", [5.0, 239.0])
def test_a_bounded_search_ends_in_time_and_from_below(limit: float) -> None:
    async def trial(rate: float, seed: int) -> Trial:
        return trial_of(rate, 1.0 if rate <= limit else 0.5)

    found, trials = asyncio.run(highest_rate(trial, upper=240.0, most=14))
    assert limit / 2 <= found <= limit
    assert len(trials) <= 14


def test_single_disturbed_trials_decide_nothing() -> None:
    """One trial of each rate that holds is disturbed, never two of three."""
    seen: dict[float, int] = {}

    async def trial(rate: float, seed: int) -> Trial:
        seen[rate] = seen.get(rate, 0) + 1
        good = rate <= 100 and seen[rate] != 1
        return trial_of(rate, 1.0 if good else 0.9)

    found, _ = asyncio.run(highest_rate(trial, upper=240.0))
    assert 100 / (1 + PRECISION) <= found <= 100


def test_a_service_that_never_holds_has_no_rate() -> None:
    async def trial(rate: float, seed: int) -> Trial:
        return trial_of(rate, random.Random(seed).uniform(0, 0.98))

    assert asyncio.run(highest_rate(trial, upper=240.0))[0] == 0.0


def test_failed_and_late_requests_count_against_a_rate() -> None:
    assert trial_of(1, 0.99).held
    assert not trial_of(1, 0.9899).held


def test_the_knee_of_a_single_server_queue_is_half_its_limit() -> None:
    """M/M/1: mean latency 1 / (mu - rate); rate over latency is largest at mu / 2."""
    limit = 200.0
    rates = [0.05 * step * limit for step in range(1, 20)]
    curve = [trial_of(rate, 1.0, mean_ms=1000 / (limit - rate)) for rate in rates]
    assert knee(curve).rate == pytest.approx(limit / 2)


def test_a_soak_is_summed_up_by_its_ends() -> None:
    stretches = [
        {"memory_mb": 300.0 + number, "cpu_ms": None, "images_per_s": 200.0 - number}
        for number in range(20)
    ]
    text = summary({"seconds": 600, "stretches": stretches})
    assert text == ("first and last tenth of 10 minutes: 300.5 -> 318.5 MB, 199.5 -> 181.5 /s")


def test_brief_searches_find_the_limit_on_average() -> None:
    """The share of requests in time falls by noise around the limit, as with a real server."""
    noise, limit, sizes = random.Random(7), 137.0, []

    async def trial(rate: float, seed: int) -> Trial:
        return trial_of(rate, 1.0 if rate * noise.lognormvariate(0, 0.05) <= limit else 0.9)

    async def searches() -> list[float]:
        search = LimitSearch(trial, 60.0, random.Random(1))
        found = []
        for _ in range(60):
            rate, trials = await search.find()
            found.append(rate)
            sizes.append(len(trials))
        return found

    found = asyncio.run(searches())
    # Its first start is far away; what matters is that the later ones are not drawn to a side.
    assert statistics.geometric_mean(found[5:]) == pytest.approx(limit, rel=0.025)
    assert statistics.mean(sizes[5:]) < 4


def test_a_brief_search_of_a_service_that_never_holds_ends() -> None:
    async def trial(rate: float, seed: int) -> Trial:
        return trial_of(rate, 0.5)

    search = LimitSearch(trial, 100.0, random.Random(1))
    for _ in range(3):  # What found no edge moves the next start nowhere.
        rate, trials = asyncio.run(search.find())
        assert 10 < rate < 100 / 7
    assert len(trials) < 50
