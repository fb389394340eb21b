"""Deadlines that travel with a request, so that no step works for a caller who has given up.

The client sends the moment by which it needs the answer as the request parameter `deadline`:
seconds since 1970 (time.time()) as a decimal string. gRPC's own deadline never reaches a model.
A step drops a request, before spending work on it, when the time that is left is shorter than
what an answer takes lately (unified_embedding/serving/pace.py). The clocks of client and server
must agree; an error says by how much they seem not to.
"""

import math
import time
from collections.abc import Mapping
from typing import Final

from unified_embedding.errors import EmbeddingError, shown

DEADLINE: Final = "deadline"
"""Name of the request parameter."""


class Malformed(EmbeddingError, ValueError):
    """A parameter of a request cannot be read, or a deadline is no moment; the message names it."""


class Late(EmbeddingError):
    """A request can no longer be answered in time; the message says by how much."""

    def __init__(self, left: float, needed: float) -> None:
        """`left` seconds are left until its deadline, and an answer takes `needed`."""
        if left < 0:
            when = f"its deadline passed {-left:.3f} s ago"
        else:
            when = (
                f"{left:.3f} s are left until its deadline and an answer takes {needed:.3f} s now"
            )
        super().__init__(
            f"overloaded, the request was dropped: {when}. Send less or allow more time; if the "
            "caller waited no longer than its timeout, its clock and this server's differ"
        )


def left(parameters: Mapping[str, object]) -> float:
    """Seconds until the deadline among a request's parameters; infinity when there is none.

    Raises:
        Malformed: the deadline is not a number of seconds since 1970.
    """
    if DEADLINE not in parameters:
        return math.inf
    return _moment(parameters[DEADLINE]) - time.time()


def _moment(value: object) -> float:
    try:
        deadline = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        deadline = math.nan
    if not math.isfinite(deadline):
        raise Malformed(
            f"deadline {shown(value)} is not a moment; send seconds since 1970 (time.time()) as a "
            "decimal string"
        )
    return deadline
