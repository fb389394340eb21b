"""When a difference is good enough: one rule serves a claim and the target for the same thing."""

from collections.abc import Callable
from dataclasses import dataclass

from unified_embedding.retrieval import Interval


@dataclass(frozen=True)
class Rule:
    """A verdict on one difference.

    Attributes:
        text: the rule in words, for the page.
        holds: whether an interval (in shares of 1) satisfies it.
    """

    text: str
    holds: Callable[[Interval], bool]


def not_inferior(margin: float) -> Rule:
    """Non-inferiority: the whole 95 % interval lies above minus the margin, and nothing else.

    How far the interval reaches above 0 plays no part: a small loss beyond doubt is still
    within the margin that was agreed on.

    Args:
        margin: points of 100, fixed before the runs.
    """
    return Rule(f"lower bound above -{margin:g}", lambda found: found.low > -margin / 100)


def superior() -> Rule:
    """The whole interval lies above zero."""
    return Rule("lower bound above 0", lambda found: found.low > 0)


def gains(points: float) -> Rule:
    """A mean of at least so many points, and no doubt about the sign."""
    return Rule(
        f"at least {points:+g}, lower bound above 0",
        lambda found: found.mean >= points / 100 and found.low > 0,
    )


def mean_at_least(points: float) -> Rule:
    """The mean alone, for figures whose interval is reported but does not decide."""
    return Rule(f"at least {points:+g}", lambda found: found.mean >= points / 100)
