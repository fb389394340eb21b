"""How fast a server works lately, and which requests it can therefore still answer in time."""

import math
import os
import struct
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from unified_embedding import deadline
from unified_embedding.errors import Late
from unified_embedding.serving import server_files

# Of a new reading, what enters the estimate: slower ones count at once, faster ones slowly.
_RISE: Final = 0.5
_FALL: Final = 0.1
# A pace is forgotten by half in this time, or a slow moment would shut out for ever the requests
# that could prove that it is over.
_HALF_LIFE_S: Final = 0.5
# A step that let nobody in for so long lets in one who is late by its estimate.
_PROBE_S: Final = 0.25
# No batch of a server that answers takes longer. Whatever is told beyond it is damage.
_SLOWEST_S: Final = 60.0
_ENTRY: Final = struct.Struct("dd")

Clock = Callable[[], float]


class Pace:
    """What a step's work takes lately; the older what it heard, the less it counts.

    In seconds for a batch, or for a unit of work, as its user adds them.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._told, self._when = 0.0, clock()

    @property
    def now(self) -> float:
        """The estimate at this moment."""
        return _aged(self._told, self._clock() - self._when)

    def add(self, took: float) -> None:
        """Work took `took` just now."""
        before = self.now
        weight = _RISE if took > before else _FALL
        self._told, self._when = before + weight * (took - before), self._clock()


class SharedPace:
    """The pace of an engine, told by its model to the models before it.

    A few bytes in shared memory, one file for each engine of a server. It is opened for every
    access, so that each model may be unloaded and loaded again.
    """

    def __init__(
        self, engine: str, server: int | None = None, folder: Path = server_files.FOLDER
    ) -> None:
        """`engine` is the name of its model; see `server_files.path_of` for the others."""
        self._path = server_files.path_of(f"pace-{engine}", server, folder)

    def write(self, seconds: float) -> None:
        """Tell the other models. A full /dev/shm costs them the news, and nobody an answer."""
        try:
            file = server_files.open_own(self._path, create=True)
        except OSError:
            return
        try:
            os.pwrite(file, _ENTRY.pack(seconds, time.monotonic()), 0)
        except OSError:
            pass
        finally:
            os.close(file)

    def read(self) -> float:
        """What was told last, less the older it is; 0 when that is nothing, or makes no sense."""
        try:
            file = server_files.open_own(self._path, create=False)
        except OSError:
            return 0.0
        try:
            seconds, when = _ENTRY.unpack(os.pread(file, _ENTRY.size, 0))
        except (OSError, struct.error):
            return 0.0
        finally:
            os.close(file)
        age = time.monotonic() - when
        # Whoever may map the server's shared memory may write there.
        if not (0 <= seconds <= _SLOWEST_S and age >= 0):
            return 0.0
        return _aged(seconds, age)

    def remove(self) -> None:
        """The engine stops: there is no pace any more."""
        self._path.unlink(missing_ok=True)


class Admission:
    """Decides for one step which requests it works for."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._last = -math.inf

    def check(
        self, parameters: Mapping[str, object], needed: float, *, let_in: bool = True
    ) -> None:
        """Let a request in that can be answered in time; one without a deadline always can.

        An estimate may be wrong, and only work can prove it. So a request that is late by the
        estimate alone is let in when nobody else was for a quarter of a second.

        Args:
            parameters: the request's parameters.
            needed: seconds that an answer takes now.
            let_in: whether work for it begins now. A look before that takes nobody's turn.

        Raises:
            Late: fewer than `needed` seconds are left.
            Malformed: the deadline is not a number of seconds since 1970.
        """
        left, now = deadline.left(parameters), self._clock()
        probe = left > 0 and now - self._last >= _PROBE_S
        if left < needed and not probe:
            raise Late(left, needed)
        if let_in:
            self._last = now


def _aged(seconds: float, age: float) -> float:
    return float(seconds * 0.5 ** (age / _HALF_LIFE_S))
