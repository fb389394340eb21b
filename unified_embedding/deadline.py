"""Deadlines that travel with a request, so that no step works for a caller who has given up.

The client sends the moment by which it needs the answer as the request parameter `deadline`:
seconds since 1970 (time.time()) as a decimal string. gRPC's own deadline never reaches a model.
A step drops a request with UNAVAILABLE before spending work on it when the time that is left
is shorter than what its batches, and those of the steps after it, take lately. The clocks of
client and server must agree; an error says by how much they seem not to.
"""

import math
import os
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from unified_embedding.errors import EmbeddingError, shown

DEADLINE: Final = "deadline"
"""Name of the request parameter."""

# Of a new reading, what enters the estimate: slower batches count at once, faster ones slowly.
_RISE: Final = 0.5
_FALL: Final = 0.1
# The engine's pace is forgotten by half in this time, or a slow moment would shut out the
# requests whose batches could prove that it is over.
_HALF_LIFE_S: Final = 0.5
_ENTRY: Final = struct.Struct("dd")


class Malformed(EmbeddingError, ValueError):
    """A deadline is not a moment; the message names it."""


class Late(EmbeddingError):
    """A request can no longer be answered in time; the message says by how much."""


def check(parameters: Mapping[str, object], needed: float) -> None:
    """Refuse a request that cannot be answered any more; one without a deadline always can.

    Args:
        parameters: the request's parameters.
        needed: seconds that an answer takes now.

    Raises:
        Late: fewer than `needed` seconds are left.
        Malformed: the deadline is not a number of seconds since 1970.
    """
    if DEADLINE not in parameters:
        return
    left = _moment(parameters[DEADLINE]) - time.time()
    if left >= needed:
        return
    if left < 0:
        when = f"its deadline passed {-left:.3f} s ago"
    else:
        when = f"{left:.3f} s are left until its deadline and an answer takes {needed:.3f} s now"
    raise Late(
        f"overloaded, the request was dropped: {when}. Send less or allow more time; if the "
        "caller waited no longer than its timeout, its clock and this server's differ"
    )


def _moment(value: object) -> float:
    try:
        deadline = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        deadline = math.nan
    if not math.isfinite(deadline):
        raise Malformed(
            f"deadline {shown(value)} is not a moment; send seconds since 1970 (time.time()) as a "
            "decimal string"
        )
    return deadline


class Pace:
    """How long the batches of a step take lately, in seconds."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def add(self, took: float) -> None:
        """A batch took `took` seconds."""
        weight = _RISE if took > self.seconds else _FALL
        self.seconds += weight * (took - self.seconds)


class SharedPace:
    """The engine's pace, for the models of one tritonserver: a few bytes in shared memory.

    The file is opened for every access, so that each model may be unloaded and loaded again.
    """

    def __init__(self, server: int | None = None, folder: Path = Path("/dev/shm")) -> None:
        """`server` is tritonserver's process id; by default the parent of this process."""
        server = os.getppid() if server is None else server
        # With its start: containers may share /dev/shm, and each has its own process 1.
        started = Path(f"/proc/{server}/stat").read_text().rpartition(")")[2].split()[19]
        self._path = folder / f"unified_embedding-{server}-{started}"

    def write(self, seconds: float) -> None:
        """Tell the other models."""
        file = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.pwrite(file, _ENTRY.pack(seconds, time.time()), 0)
        finally:
            os.close(file)

    def read(self) -> float:
        """What was told last, less the older it is; 0 when nothing was."""
        try:
            seconds, told = _ENTRY.unpack(self._path.read_bytes())
        except (FileNotFoundError, struct.error):
            return 0.0
        return float(seconds * 0.5 ** ((time.time() - told) / _HALF_LIFE_S))

    def remove(self) -> None:
        """The engine stops: there is no pace any more."""
        self._path.unlink(missing_ok=True)
