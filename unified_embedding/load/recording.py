"""What this process and, in a distributed run, its workers recorded in the measured window."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import gevent  # type: ignore[import-untyped]
from locust import events
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner

from unified_embedding.measure.recorder import Recorder

# Messages between master and workers: finish what is in flight, and here is what I recorded.
_DRAIN: Final = "unified_embedding drain"
_DRAINED: Final = "unified_embedding drained"
_RECORDED: Final = "unified_embedding"
# What a worker may take beyond the request timeout to say that nothing is in flight any more.
_PATIENCE: Final = 5.0

log = logging.getLogger(__name__)


class Recording:
    """The recorder of one process, and the window it records.

    Attributes:
        recorder: what was recorded so far.
        stopping: no further request may be sent.
        tests: how many tests have started.
        seconds: length of the measured window, once it has ended.
    """

    def __init__(self) -> None:
        self.tests = 0
        self.reset(timeout=0)

    def reset(self, timeout: float) -> None:
        """A test starts whose requests take at most `timeout` seconds."""
        self.tests += 1
        self.patience = timeout + _PATIENCE
        self.recorder = Recorder()
        self.stopping = False
        self.seconds = 0.0
        self._start: float | None = None
        self._inflight = 0
        self._drained: set[str] = set()

    def open_window(self, after: float) -> None:
        """Measure what is due from `after` seconds from now on."""
        self._start = time.perf_counter() + after

    @property
    def opens_in(self) -> float | None:
        """Seconds until the window opens; None as long as that is not decided."""
        return None if self._start is None else self._start - time.perf_counter()

    def take(self) -> Recorder:
        """Hand over what was recorded, and start from nothing."""
        taken, self.recorder = self.recorder, Recorder()
        return taken

    @contextmanager
    def in_flight(self) -> Iterator[None]:
        """A request is on its way for the length of the block."""
        self._inflight += 1
        try:
            yield
        finally:
            self._inflight -= 1

    def finished(
        self, due: float, sent: float, done: float, images: int, error: Exception | None
    ) -> None:
        """Record a request; the times are readings of time.perf_counter."""
        if self._start is not None:
            start = self._start
            self.recorder.record(due - start, sent - start, done - start, images, error)

    def dropped(self, due: float) -> None:
        """Record a request that was due and not sent."""
        if self._start is not None:
            self.recorder.drop(due - self._start)

    def stop(self) -> None:
        """End the window and wait until every request on its way was answered or failed."""
        if not self.stopping:
            self.stopping = True
            self.seconds = max(0.0, -(self.opens_in or 0.0))
        self._wait_until(lambda: not self._inflight)

    def expect(self, workers: set[str]) -> None:
        """Wait for the last records of all `workers`."""
        self._wait_until(lambda: workers <= self._drained)
        if missing := workers - self._drained:
            log.warning("no last figures from %d load generators", len(missing))

    def receive(self, worker: str, raw: dict[str, Any], last: bool) -> None:
        """Add what a worker recorded."""
        self.recorder.add(Recorder.decode(raw))
        if last:
            self._drained.add(worker)

    def _wait_until(self, done: Callable[[], bool]) -> None:
        end = time.monotonic() + self.patience
        while not done() and time.monotonic() < end:
            gevent.sleep(0.02)


recording = Recording()


def finish(environment: Environment) -> None:
    """Let every request in flight end, here and in the workers, and collect the records.

    Locust itself kills what is in flight when a test stops, and with it the slowest requests.
    """
    runner = environment.runner
    recording.stop()
    if isinstance(runner, MasterRunner):
        workers = set(runner.clients)
        runner.send_message(_DRAIN)
        recording.expect(workers)


@events.init.add_listener  # type: ignore[untyped-decorator]
def connect_processes(environment: Environment, **_: object) -> None:
    """Let the master ask for, and the workers send, what was recorded."""
    runner = environment.runner

    def drain(environment: Environment, msg: Any, **_: object) -> None:
        finish(environment)
        assert runner is not None
        runner.send_message(_DRAINED, recording.take().encode())

    def drained(environment: Environment, msg: Any, **_: object) -> None:
        recording.receive(msg.node_id, msg.data, last=True)

    if isinstance(runner, WorkerRunner):
        runner.register_message(_DRAIN, drain, concurrent=True)
    elif isinstance(runner, MasterRunner):
        runner.register_message(_DRAINED, drained)

    def open_after_warm_up(user_count: int, **_: object) -> None:
        if recording.opens_in is None and environment.parsed_options is not None:
            warm_up = environment.parsed_options.warm_up
            recording.open_window(warm_up)
            gevent.spawn_later(warm_up, forget_warm_up, environment, recording.tests)

    environment.events.spawning_complete.add_listener(  # type: ignore[no-untyped-call]
        open_after_warm_up
    )


def forget_warm_up(environment: Environment, test: int) -> None:
    """Take the warm-up out of Locust's own statistics, unless another test has begun."""
    if recording.tests == test:
        environment.stats.reset_all()


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def begin(environment: Environment, **_: object) -> None:
    """Start recording; without a warm-up from the first request on."""
    options = environment.parsed_options
    if options is not None:
        recording.reset(options.request_timeout)
        if options.warm_up <= 0:
            recording.open_window(0)


@events.report_to_master.add_listener  # type: ignore[untyped-decorator]
def send_records(client_id: str, data: dict[str, Any], **_: object) -> None:
    """A worker's regular report carries what it recorded since the last one."""
    data[_RECORDED] = recording.take().encode()


@events.worker_report.add_listener  # type: ignore[untyped-decorator]
def receive_records(client_id: str, data: dict[str, Any], **_: object) -> None:
    """The master adds it to its own."""
    recording.receive(client_id, data[_RECORDED], last=False)
