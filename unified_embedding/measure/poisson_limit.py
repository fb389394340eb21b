"""The highest Poisson rate at which a service keeps a latency objective."""

import math
import random
import statistics
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
# From one rate to the next of a brief search, and how far from its start it gives up.
STEP: Final = 1.12
_FAR: Final = 8


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
    request: Request,
    rate: float,
    seconds: float,
    slo_p99_ms: float,
    seed: int,
    warm_up: float = WARM_UP_S,
) -> Trial:
    """Offer `rate` requests/s for `seconds`, after a warm-up."""
    profile = RateProfile.parse(f"{rate!r}")
    recorder = await open_loop(request, profile, seconds, seed, warm_up)
    return Trial.of(recorder, rate, seconds, slo_p99_ms)


async def highest_rate(
    trial: Callable[[float, int], Awaitable[Trial]],
    upper: float,
    repeats: int = 3,
    most: float = math.inf,
) -> tuple[float, list[Trial]]:
    """Bisect between 0 and `upper` requests/s; a limit below `upper` / 64 counts as none.

    A rate holds when most of `repeats` trials do; `trial` gets the rate and a seed. After `most`
    trials no further rate is tried.

    Returns:
        The highest rate that held (0 when none did), and every trial made.
    """
    low, high = 0.0, upper
    trials: list[Trial] = []
    while high > upper / 64 and high > low * (1 + PRECISION) and len(trials) < most:
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


class LimitSearch:
    """The same limit searched for again and again, briefly: once in each of paired rounds.

    A search is right within `STEP` at best, but its start is drawn around what was found before,
    so that the searches are neither too high nor too low on average.
    """

    def __init__(
        self,
        trial: Callable[[float, int], Awaitable[Trial]],
        start: float,
        draw: random.Random,
    ) -> None:
        """`trial` gets a rate and a seed; the first search starts around `start` requests/s."""
        self._trial, self._start, self._draw = trial, start, draw
        self._found: list[float] = []

    async def find(self) -> tuple[float, list[Trial]]:
        """Go by factors of `STEP` to where the objective begins to hold, or ends to.

        Returns:
            The geometric mean of the two rates on either side (an eighth of the start for a service
            that never holds it), and every trial made.
        """
        middle = statistics.geometric_mean(self._found or [self._start])
        rate = start = middle * STEP ** self._draw.uniform(-0.5, 0.5)
        trials = [await self._trial(rate, self._draw.randrange(1 << 30))]
        held = trials[0].held
        while trials[-1].held == held and start / _FAR < rate < start * _FAR:
            rate *= STEP if held else 1 / STEP
            trials.append(await self._trial(rate, self._draw.randrange(1 << 30)))
        found = rate * math.sqrt(1 / STEP if held else STEP)
        if trials[-1].held != held:  # Where no edge was found there is nothing to start around.
            self._found.append(found)
        return found, trials
