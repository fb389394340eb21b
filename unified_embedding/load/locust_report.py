"""Watches the server during the measured window and writes the report when the test stops."""

import logging
from typing import Final

import gevent  # type: ignore[import-untyped]
from locust import events
from locust.env import Environment
from locust.runners import WorkerRunner

from unified_embedding.checkout import ROOT
from unified_embedding.client import DEFAULT_URL
from unified_embedding.errors import ClientError, SettingsError
from unified_embedding.load.recording import finish, recording
from unified_embedding.load.service import Service, connect
from unified_embedding.load.settings import Settings
from unified_embedding.measure.processes import ProcessTree
from unified_embedding.measure.provenance import provenance
from unified_embedding.measure.report import CLOSED_LOOP, OPEN_LOOP, SLO_PERCENTILE, LoadTest
from unified_embedding.measure.watch import Observed, ServerWatch

_SAMPLE_EVERY: Final = 1.0
_KINDS: Final = {"ClosedLoop": CLOSED_LOOP, "OpenLoop": OPEN_LOOP}

log = logging.getLogger(__name__)


class Observer:
    """Reads the server's statistics and its processes' CPU at both ends of the window."""

    def __init__(self, service: Service, host: str) -> None:
        self.service = service
        self._watch = ServerWatch(service.client, ProcessTree.listening_at(host))
        self._greenlet = gevent.spawn(self._run)

    def end(self) -> Observed | None:
        """What happened in between; None when the window never opened or the server is gone."""
        if not self._greenlet.ready():
            self._greenlet.kill()
        if not self._began:
            return None
        try:
            return self._watch.end()
        except ClientError as error:
            log.warning("no statistics of the server: %s", error)
            return None

    _began = False

    def _run(self) -> None:
        while (opens_in := recording.opens_in) is None or opens_in > 0:
            gevent.sleep(min(0.1, opens_in or 0.1))
        self._watch.begin()
        self._began = True
        threads = gevent.get_hub().threadpool
        while True:
            gevent.sleep(_SAMPLE_EVERY)
            # In a thread: reading a large process's memory map takes milliseconds, for which
            # all users would stand still.
            threads.apply(self._watch.sample)


_observer: Observer | None = None


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def watch_server(environment: Environment, **_: object) -> None:
    """Observe the server, once per test and from one process only."""
    global _observer
    _observer = None
    if isinstance(environment.runner, WorkerRunner):
        return
    host = environment.host or DEFAULT_URL
    try:
        settings = Settings.of(environment.parsed_options)
        if settings.report is not None:
            _observer = Observer(connect(host, settings.timeout), host)
    except (ClientError, SettingsError, ValueError) as error:
        log.warning("the report will say nothing about the server: %s", error)


@events.test_stopping.add_listener  # type: ignore[untyped-decorator]
def write_report(environment: Environment, **_: object) -> None:
    """Wait for what is in flight, then write the report."""
    finish(environment)
    if isinstance(environment.runner, WorkerRunner) or _observer is None:
        return
    settings = Settings.of(environment.parsed_options)
    if settings.report is None:
        return
    (user,) = environment.user_classes
    test = LoadTest(
        kind=_KINDS[user.__name__],
        settings={"user": user.__name__, **settings.given, **_locust_options(environment)},
        seconds=recording.seconds,
        recorder=recording.recorder,
        observed=_observer.end(),
        slo_p99_ms=settings.slo_p99_ms,
        provenance=provenance(ROOT, _observer.service.server, settings.seed),
    )
    test.write(settings.report)
    log.info("the report is %s", settings.report / "report.html")


def failure_of_the_run(environment: Environment) -> str | None:
    """Why the whole run failed: it completed nothing, or missed its SLO. Else None."""
    options, recorder = environment.parsed_options, recording.recorder
    if not recorder.completed:
        return "no request was completed in the measured window"
    if options is None or not options.slo_p99_ms:
        return None
    share = recorder.share_within(options.slo_p99_ms / 1000)
    if share >= SLO_PERCENTILE / 100:
        return None
    return (
        f"the SLO does not hold: {100 * share:.2f} % of {recorder.offered} requests were answered "
        f"within {options.slo_p99_ms:g} ms; {SLO_PERCENTILE} % are needed"
    )


def _locust_options(environment: Environment) -> dict[str, object]:
    options = environment.parsed_options
    runner = environment.runner
    assert options is not None
    assert runner is not None
    return {
        "users": runner.target_user_count,
        "processes": options.processes,
        "host": environment.host,
    }
