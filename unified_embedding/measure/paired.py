"""Two systems measured in paired rounds: the ratio of both, its interval, and a target's verdict.

A round measures each system once within a short time. Whatever slows the machine for longer than
that slows both and leaves their ratio alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from unified_embedding.retrieval import Interval, bootstrap

MIN_ROUNDS: Final = 7
"""Fewer say nothing: with 5 the interval holds the ratio 9 times in 10 rather than 19 in 20."""
# The outer quantiles of few rounds need many draws.
_DRAWS: Final = 4000

Verdict = Literal["met", "missed", "undecided"]


@dataclass(frozen=True)
class Target:
    """What a figure should be at least, or at most."""

    bound: float
    at_least: bool

    def verdict(self, found: Interval) -> Verdict:
        """Met or missed when the whole interval is on one side of the bound."""
        low, high = found.low, found.high
        if low >= self.bound if self.at_least else high <= self.bound:
            return "met"
        if high < self.bound if self.at_least else low > self.bound:
            return "missed"
        return "undecided"

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.bound:g}"


def at_least(bound: float) -> Target:
    """A figure that is better when it is larger."""
    return Target(bound, True)


def at_most(bound: float) -> Target:
    """A figure that is better when it is smaller."""
    return Target(bound, False)


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """Geometric mean of the rounds' ratios, with its 95 % interval (see `mean`).

    Args:
        ours: a positive value of each round.
        theirs: those of the same rounds.
    """
    found = mean(np.log(ours) - np.log(theirs))
    return Interval(math.exp(found.mean), math.exp(found.low), math.exp(found.high))


def geometric_mean(values: Sequence[float]) -> Interval:
    """Of positive values, one of each round, with its 95 % interval (see `mean`)."""
    return ratio(values, [1.0] * len(values))


def mean(values: Sequence[float] | NDArray[np.float64]) -> Interval:
    """Mean of one value of each round, with its 95 % interval by bootstrap over the rounds.

    The percentile interval of few values is too narrow. Its quantiles are moved outwards as far
    as Student's t is from the normal distribution, "expanded percentile interval" in Hesterberg,
    "What Teachers Should Know About the Bootstrap", The American Statistician 2015. Endless for
    fewer than `MIN_ROUNDS`.
    """
    rounds = len(values)
    if rounds < MIN_ROUNDS:
        return Interval(float(np.mean(values)), -math.inf, math.inf)
    return bootstrap(np.asarray(values, float), range(rounds), _DRAWS, tail=_tail(rounds))


def settled(found: Interval, width: float, target: Target | None = None) -> bool:
    """No further round is needed: narrower than `width`, or clearly beside the target.

    Clearly is by twice the interval. To stop as soon as the interval itself leaves the target
    out would be to look at it again and again until chance does that.

    Args:
        found: a ratio's interval.
        width: high / low - 1.
        target: of this ratio.
    """
    if found.high <= (1 + width) * found.low:
        return True
    twice = Interval(found.mean, 2 * found.low - found.mean, 2 * found.high - found.mean)
    return target is not None and target.verdict(twice) != "undecided"


def told(found: Interval, digits: int = 2) -> str:
    """As 1.08 [1.05, 1.11]; without brackets when nothing is known of the interval."""
    if math.isinf(found.high):
        return f"{found.mean:.{digits}f}"
    return f"{found.mean:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def _tail(rounds: int) -> float:
    """Hesterberg's alpha' / 2: Phi(-sqrt(n / (n - 1)) t), t the 97.5 % quantile for n - 1."""
    normal, free = NormalDist(), rounds - 1
    z = normal.inv_cdf(0.975)
    # Abramowitz and Stegun 26.7.5; within 0.1 % from 6 degrees of freedom on.
    t = z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
    t += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * free**3)
    return normal.cdf(-math.sqrt(rounds / free) * t)
