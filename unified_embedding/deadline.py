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

from unified_embedding.errors import Malformed, shown

DEADLINE: Final = "deadline"
"""Name of the request parameter."""


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
