"""The highest Poisson rate at which a service keeps a latency objective, by bisection."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from unified_embedding.measure.arrivals import RateProfile
from unified_embedding.measure.generator import Request, open_loop
from unified_embedding.measure.recorder import Recorder
from unified_embedding.measure.report import SLO_PERCENTILE

# Bisection ends when the two rates are this close.
PRECISION: Final = 0.06
WARM_UP_S: Final = 1.5


@dataclass(frozen=True)
class Trial:
    """One stretch of Poisson arrivals.

    Attributes:
        rate: offered, requests/s.
        share: of the offered requests, those answered correctly within the objective.
        p50_ms, p99_ms, mean_ms: latency from the due time, of those answered at all.
        answered: requests answered per second.
    """

    rate: float
    share: float
    p50_ms: float
    p99_ms: float
    mean_ms: float
    answered: float

    @property
    def held(self) -> bool:
        """The objective held: 99 % of the offered requests, failed ones counted as late."""
        return self.share >= SLO_PERCENTILE / 100

    @classmethod
    def of(cls, recorder: Recorder, rate: float, seconds: float, slo_p99_ms: float) -> "Trial":
        """What a recorder of `seconds` says."""
        tails = recorder.latencies
        return cls(
            rate=rate,
            share=recorder.share_within(slo_p99_ms / 1000),
            p50_ms=tails.percentile_ms(50),
            p99_ms=tails.percentile_ms(99),
            mean_ms=tails.mean_ms,
            answered=recorder.completed / seconds,
        )


async def poisson_trial(
    request: Request, rate: float, seconds: float, slo_p99_ms: float, seed: int
) -> Trial:
    """Offer `rate` requests/s for `seconds`, after a warm-up."""
    profile = RateProfile.parse(f"{rate!r}")
    recorder = await open_loop(request, profile, seconds, seed, WARM_UP_S)
    return Trial.of(recorder, rate, seconds, slo_p99_ms)


async def highest_rate(
    trial: Callable[[float, int], Awaitable[Trial]], upper: float, repeats: int = 3
) -> tuple[float, list[Trial]]:
    """Bisect between 0 and `upper` requests/s; a limit below `upper` / 64 counts as none.

    A rate holds when most of `repeats` trials do; `trial` gets the rate and a seed.

    Returns:
        The highest rate that held (0 when none did), and every trial made.
    """
    low, high = 0.0, upper
    trials: list[Trial] = []
    while high > upper / 64 and high > low * (1 + PRECISION):
        rate = (low + high) / 2
        verdicts: list[bool] = []
        while max(verdicts.count(True), verdicts.count(False)) <= repeats // 2:
            found = await trial(rate, len(trials))
            trials.append(found)
            verdicts.append(found.held)
        if verdicts.count(True) > repeats // 2:
            low = rate
        else:
            high = rate
    return low, trials
