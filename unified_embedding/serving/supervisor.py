"""Keeps an embedded tritonserver serving.

Triton 2.51 never starts a dead Python model again: the model, and the server, go on calling
themselves ready, and every call fails. A model's process that was stopped for 1.5 s under load
brings the server down. So there is one remedy for all of it: whatever dies or stands still ends
the whole server, and it is started again.
"""

import contextlib
import ctypes
import os
import select
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NoReturn

from unified_embedding.serving import leftovers, processes

_INTERVAL_S: Final = 0.5
# A process is given up when it is found dead or stopped so often in a row, which takes 1 to 1.5 s.
# One that ends in order is dead for some milliseconds only. Looks are counted and not seconds:
# the supervisor may itself have been stopped together with the server, and gone on with it.
_LOOKS: Final = 3
# Triton has hundreds of threads, and each may have children: a search for new ones takes some
# milliseconds, so there is one in four looks.
_SEARCH: Final = 4
_ILL: Final = {"Z": "died", "X": "died", "T": "is frozen (it was stopped)"}

MAX_DEATHS: Final = 5
"""A server that dies so often within `WINDOW_S` seconds is given up."""
WINDOW_S: Final = 60.0

_STOP: Final = (signal.SIGTERM, signal.SIGINT)
_FORWARDED: Final = (*_STOP, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_PR_SET_PDEATHSIG: Final = 1


def run(command: Sequence[str], environment: Mapping[str, str], exit_timeout: float) -> int:
    """Run tritonserver until it is told to stop; start it again when it breaks.

    SIGTERM and SIGINT stop it in order; other signals do to it what they do to any program. A
    first start that fails is not repeated: its message says why.

    Args:
        command: tritonserver's command line.
        environment: its environment.
        exit_timeout: seconds that it may take to stop (Triton's --exit-timeout-secs).

    Returns:
        The exit code: 0 after SIGTERM or SIGINT, else that of the server, 128 + n when signal n
        ended it.
    """
    with _signals() as pipe:
        return _Supervisor(command, environment, exit_timeout, pipe).run()


@dataclass(frozen=True)
class _End:
    """How a server ended. `decided`: by itself, with an exit code of its own."""

    code: int
    why: str
    decided: bool


@dataclass
class _Server:
    """One tritonserver process, and what was seen of it. `served`: it opened its ports."""

    pid: int
    served: bool = False
    _stubs: list[int] = field(default_factory=list)
    _models: dict[int, str] = field(default_factory=dict)
    _ill: dict[int, int] = field(default_factory=dict)
    _count: int = 0

    def look(self) -> str | None:
        """What has been wrong with it for some time; None when nothing is."""
        if not self.served or self._count % _SEARCH == 0:
            self._stubs = processes.stubs(self.pid)
        self.served = self.served or processes.listens(self.pid)
        self._count += 1
        ill = {}
        for pid in [self.pid, *self._stubs]:
            state = processes.state(pid)
            if state not in _ILL:
                if pid not in self._models:
                    self._models[pid] = processes.model_of(pid)
                continue
            ill[pid] = self._ill.get(pid, 0) + 1
            if ill[pid] == _LOOKS:
                what = f"the process of model {self._models.get(pid, '?')}"
                return f"{'tritonserver' if pid == self.pid else what} ({pid}) {_ILL[state]}"
        self._ill = ill
        return None


class _Supervisor:
    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        exit_timeout: float,
        pipe: int,
    ) -> None:
        self._command, self._environment = list(command), dict(environment)
        self._exit_timeout = exit_timeout
        self._pipe = pipe
        self._told: int | None = None

    def run(self) -> int:
        deaths: deque[float] = deque(maxlen=MAX_DEATHS)
        served = False
        leftovers.clean()
        while True:
            server = _Server(self._start())
            end = self._watch(server)
            leftovers.clean(ended=server.pid)
            served = served or server.served
            if self._told in _STOP:
                if end.code:
                    _say(f"stopped, but not cleanly: {end.why}")
                return 0
            if self._told is not None:
                # What ended a server that was dying already is not what its caller asked for.
                return end.code if end.decided else 128 + self._told
            if end.decided and not served:
                return end.code
            deaths.append(time.monotonic())
            if len(deaths) == MAX_DEATHS and deaths[-1] - deaths[0] < WINDOW_S:
                _say(f"{end.why}; {MAX_DEATHS} times in {WINDOW_S:.0f} s are too many, giving up")
                return end.code
            _say(f"{end.why}; starting the server again")

    def _start(self) -> int:
        launcher, prctl = os.getpid(), ctypes.CDLL(None).prctl
        sys.stdout.flush()
        return os.fork() or self._become_server(launcher, prctl)

    def _become_server(self, launcher: int, prctl: "ctypes._FuncPointer") -> NoReturn:
        try:
            # However the launcher ends, its server does not go on by itself.
            prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() == launcher:
                prefix = leftovers.claim()
                regions = f"--backend-config=python,shm-region-prefix-name={prefix}"
                os.execve(self._command[0], [*self._command, regions], self._environment)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)

    def _watch(self, server: _Server) -> _End:
        """Forward signals and look after the server until it has ended."""
        why, ends = None, float("inf")
        next_look = time.monotonic() + _INTERVAL_S
        while True:
            for number in _arrived(self._pipe, min(next_look, ends) - time.monotonic()):
                if number in _FORWARDED:
                    if self._told is None:
                        ends = time.monotonic() + self._exit_timeout
                    self._told = number
                    os.kill(server.pid, number)
            code = _reap(server.pid)
            if code is not None:
                decided = why is None and code < 128
                return _End(code, why or f"tritonserver ended with code {code}", decided)
            now = time.monotonic()
            if now >= ends:
                ends = float("inf")
                why = why or f"its work was not done after {self._exit_timeout:.0f} s"
            if now >= next_look:
                next_look = now + _INTERVAL_S
                why = why or server.look()
            if why is not None:
                os.kill(server.pid, signal.SIGKILL)


@contextlib.contextmanager
def _signals() -> Iterator[int]:
    """Signals as bytes in a pipe.

    They are not blocked and waited for, since a library's thread would take them. One that
    reaches a child before its exec comes through the same pipe, and is forwarded again.
    """
    read, write = os.pipe()
    os.set_blocking(read, False)
    os.set_blocking(write, False)
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    # SIGCHLD as well: ignored, as a parent may have left it, it hides dead children. What else
    # was ignored from the start, by nohup for instance, stays so.
    numbers = [
        number
        for number in (signal.SIGCHLD, *_FORWARDED)
        if number in (signal.SIGCHLD, *_STOP) or signal.getsignal(number) is not signal.SIG_IGN
    ]
    handlers = {number: signal.signal(number, lambda *_: None) for number in numbers}
    try:
        yield read
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(before)
        os.close(read)
        os.close(write)


def _arrived(pipe: int, within_s: float) -> bytes:
    """The signals that have come, or come within that time."""
    if not select.select([pipe], [], [], max(0.0, within_s))[0]:
        return b""
    return os.read(pipe, 4096)


def _reap(server: int) -> int | None:
    """Wait for every child that has ended; tritonserver's exit code if it is among them."""
    code = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if pid == 0:
            return code
        if pid == server:
            ended = os.waitstatus_to_exitcode(status)
            code = ended if ended >= 0 else 128 - ended


def _say(what: str) -> None:
    # A log that nobody reads any more is no reason to stop serving.
    with contextlib.suppress(OSError):
        print(f"tritonserver: {what}", file=sys.stderr, flush=True)
