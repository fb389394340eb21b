"""How many pictures wait for an engine, so that no more are decoded than it can take.

Decoding outruns the engine: without a bound the queue of a server that is asked too much stands
before its last expensive step, and whatever is late there was decoded for nothing. With one it
stands before the first step, where a request costs next to nothing to refuse.
"""

import contextlib
import fcntl
import math
import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from unified_embedding.serving import server_files

_RECORD: Final = struct.Struct("qqqqdd")
# An engine that takes nothing was handed nothing, whatever is counted: Triton passes on nothing
# whose caller has given up. One without work takes what there is at once, one with work in two
# batches' time and so long.
_IDLE_S: Final = 0.02
_STILL_S: Final = 0.25
# No batch of a server that answers takes longer, and none counts so many pictures.
_SLOWEST_S: Final = 60.0
_MOST: Final = 1 << 40
# Of a batch's time, and within bounds, how long a step sleeps before it looks again.
_SHARE, _SHORTEST_S, _LONGEST_S = 1 / 8, 0.001, 0.02

Clock = Callable[[], float]


class _State(NamedTuple):
    """What the steps share.

    Attributes:
        level: pictures before the engine.
        limit: the most there may be; a request that fits in part is let in whole.
        largest: pictures of the largest request counted since the engine took all there was.
        at_work: instances of the engine that work on a batch.
        until: on the clock, when an engine that still takes nothing was handed nothing.
        pace: seconds that a batch takes.
    """

    level: int
    limit: int
    largest: int
    at_work: int
    until: float
    pace: float

    @property
    def patience(self) -> float:
        """Seconds without a batch after which what is counted counts as lost."""
        return _STILL_S + 2 * self.pace if self.at_work else _IDLE_S


class Backlog:
    """The pictures between the first step and the engine, counted in shared memory.

    One file for each engine of a server. It is opened for every access, so that each model may be
    unloaded and loaded again; where there is none, nothing is bounded.
    """

    def __init__(
        self,
        engine: str,
        server: int | None = None,
        folder: Path = server_files.FOLDER,
        clock: Clock = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`engine` is the name of its model; see `server_files.path_of` for the others."""
        self._path = server_files.path_of(f"backlog-{engine}", server, folder)
        self._clock, self._sleep = clock, sleep
        self._crowded_until = -math.inf
        self._limit = 0

    @property
    def crowded(self) -> bool:
        """Whether somebody here has had to wait for a place lately: others stand behind him."""
        return self._clock() < self._crowded_until

    def begin(self, limit: int) -> None:
        """The engine is there: begin to count. `limit`: pictures that may wait for it."""
        self._limit = limit
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
            with self._record(create=True) as file:
                _write(file, _State(0, limit, 0, 0, self._clock() + _IDLE_S, 0.0))

    def remove(self) -> None:
        """The engine stops."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def taken(self, pictures: int, most: int, pace: float) -> Iterator[None]:
        """The engine took a batch, and works on it in this block.

        Args:
            pictures: in the batch.
            most: that it would have taken; if the largest request had fitted in, none waits.
            pace: seconds that a batch takes.
        """
        if self._limit and not self._path.exists():
            # Loaded again in place, the old copy of a model ends after the new one began.
            self.begin(self._limit)

        def begun(state: _State) -> _State:
            drained = pictures + state.largest <= most
            left = 0 if drained else max(0, state.level - pictures)
            now = state._replace(level=left, at_work=state.at_work + 1, pace=pace)
            largest = 0 if drained else state.largest
            return now._replace(largest=largest, until=self._clock() + now.patience)

        def done(state: _State) -> _State:
            now = state._replace(at_work=max(0, state.at_work - 1))
            return now._replace(until=self._clock() + now.patience)

        self._change(begun)
        yield
        self._change(done)

    @contextlib.contextmanager
    def place(self, pictures: int) -> Iterator[None]:
        """Wait until the engine is short of pictures, then count these; not if the block raises."""
        while (pause := self._enter(pictures)) > 0:
            self._sleep(pause)
        try:
            yield
        except BaseException:
            self._leave(pictures)
            raise

    def _enter(self, pictures: int) -> float:
        """0 when they are counted, else seconds after which to try again."""
        try:
            with self._record() as file:
                state = _read(file)
                now = self._clock()
                largest = max(state.largest, pictures)
                if state.level < state.limit:
                    _write(file, state._replace(level=state.level + pictures, largest=largest))
                elif not now < state.until <= now + _STILL_S + 2 * state.pace:
                    until = now + state.patience
                    _write(file, state._replace(level=pictures, largest=largest, until=until))
                else:
                    self._crowded_until = now + _STILL_S + 2 * state.pace
                    return min(max(_SHARE * state.pace, _SHORTEST_S), _LONGEST_S)
        except (OSError, struct.error):  # No engine counts, or its file is damaged.
            pass
        return 0.0

    def _leave(self, pictures: int) -> None:
        self._change(lambda state: state._replace(level=max(0, state.level - pictures)))

    def _change(self, how: Callable[[_State], _State]) -> None:
        with contextlib.suppress(OSError, struct.error), self._record() as file:
            _write(file, how(_read(file)))

    @contextlib.contextmanager
    def _record(self, create: bool = False) -> Iterator[int]:
        """The open file, locked: its readers are its writers."""
        file = server_files.open_own(self._path, create=create)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
        finally:
            os.close(file)


def _read(file: int) -> _State:
    state = _State(*_RECORD.unpack(os.pread(file, _RECORD.size, 0)))
    # Whoever may map the server's shared memory may write there.
    counts = state.level, state.largest, state.at_work
    if min(counts) < 0 or max(counts) > _MOST or state.limit < 1:
        raise struct.error("not what a step of ours wrote")
    if not 0 <= state.pace <= _SLOWEST_S:
        raise struct.error("not what a step of ours wrote")
    return state


def _write(file: int, state: _State) -> None:
    os.pwrite(file, _RECORD.pack(*state), 0)
