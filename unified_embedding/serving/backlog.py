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
from typing import Final

from unified_embedding.serving import server_files

# Pictures before the engine, the most there may be, until when it may well take none, and how
# long its batches take.
_RECORD: Final = struct.Struct("qqdd")
# An engine that takes nothing was handed nothing, whatever is counted: Triton passes on nothing
# whose caller has given up. One without work takes what there is at once, one with work in two
# batches' time and so long.
_IDLE_S: Final = 0.02
_STILL_S: Final = 0.25
# No batch of a server that answers takes longer.
_SLOWEST_S: Final = 60.0
# Of a batch's time, and within bounds, how long a step sleeps before it looks again.
_SHARE, _SHORTEST_S, _LONGEST_S = 1 / 8, 0.001, 0.02

Clock = Callable[[], float]


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

    @property
    def crowded(self) -> bool:
        """Whether somebody here has had to wait for a place lately: others stand behind him."""
        return self._clock() < self._crowded_until

    def begin(self, limit: int) -> None:
        """The engine is there: begin to count. `limit`: pictures that may wait for it."""
        self._path.unlink(missing_ok=True)
        with contextlib.suppress(OSError), self._record(create=True) as file:
            _write(file, 0, limit, self._clock() + _IDLE_S, 0.0)

    def remove(self) -> None:
        """The engine stops."""
        self._path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def taken(self, pictures: int, drained: bool, pace: float) -> Iterator[None]:
        """The engine took a batch, and works on it in this block.

        Args:
            pictures: in the batch.
            drained: whether none was left waiting.
            pace: seconds that a batch takes.
        """
        with contextlib.suppress(OSError, struct.error), self._record() as file:
            level, limit, _, _ = _read(file)
            level = 0 if drained else max(0, level - pictures)
            _write(file, level, limit, self._clock() + (_STILL_S + 2 * pace), pace)
        yield
        with contextlib.suppress(OSError, struct.error), self._record() as file:
            level, limit, _, pace = _read(file)
            _write(file, level, limit, self._clock() + _IDLE_S, pace)

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
                level, limit, until, pace = _read(file)
                now, still = self._clock(), _STILL_S + 2 * pace
                if level < limit:
                    _write(file, level + pictures, limit, until, pace)
                elif not now < until <= now + still:
                    _write(file, pictures, limit, now + _IDLE_S, pace)
                else:
                    self._crowded_until = now + still
                    return min(max(_SHARE * pace, _SHORTEST_S), _LONGEST_S)
        except (OSError, struct.error):  # No engine counts, or its file is damaged.
            pass
        return 0.0

    def _leave(self, pictures: int) -> None:
        with contextlib.suppress(OSError, struct.error), self._record() as file:
            level, limit, until, pace = _read(file)
            _write(file, max(0, level - pictures), limit, until, pace)

    @contextlib.contextmanager
    def _record(self, create: bool = False) -> Iterator[int]:
        """The open file, locked: its readers are its writers."""
        file = server_files.open_own(self._path, create=create)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
        finally:
            os.close(file)


def _read(file: int) -> tuple[int, int, float, float]:
    level, limit, until, pace = _RECORD.unpack(os.pread(file, _RECORD.size, 0))
    # Whoever may map the server's shared memory may write there.
    if level < 0 or limit < 1 or not 0 <= pace <= _SLOWEST_S:
        raise struct.error("not what a step of ours wrote")
    return level, limit, until, pace


def _write(file: int, level: int, limit: int, until: float, pace: float) -> None:
    os.pwrite(file, _RECORD.pack(level, limit, until, pace), 0)
