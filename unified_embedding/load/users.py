"""Locust's users: a locustfile that also stands in the package.

ClosedLoop (the default): N users, each sending its next request when the last one was answered.
OpenLoop: requests are due by a Poisson process at a rate, and latency counts from then. Exit
code 1 when a request failed or was dropped, when an answer had the wrong shape, when none was
completed, or when the SLO did not hold.
"""

import itertools
import logging
import random
import time

import gevent  # type: ignore[import-untyped]
import gevent.event  # type: ignore[import-untyped]
import grpc.experimental.gevent as grpc_gevent
from locust import User, events, stats, task
from locust.env import Environment
from locust.runners import WorkerRunner

from unified_embedding.client import DEFAULT_URL
from unified_embedding.errors import Dropped, EmbeddingError, SettingsError
from unified_embedding.load.locust_report import failure_of_the_run
from unified_embedding.load.recording import recording
from unified_embedding.load.service import connect
from unified_embedding.load.settings import Settings

# Without it a waiting gRPC call stops every other user of the process, while the reported
# latencies look the same. It must run before the first channel is created.
grpc_gevent.init_gevent()

# Locust keeps two digits of a latency, so that 147 ms becomes 150 ms. These are three.
stats.bucket_response_time = lambda response_time: int(float(f"{response_time:.3g}") + 0.5)
stats.PERCENTILES_TO_CHART = [0.5, 0.95, 0.99]

_numbers = itertools.count()
log = logging.getLogger(__name__)


class EmbedderUser(User):
    """What both users share: the connection, the draw of pictures, and one request."""

    abstract = True
    host = DEFAULT_URL

    def on_start(self) -> None:
        """Connect; a server that cannot be reached ends the run."""
        try:
            self.settings = Settings.of(self.environment.parsed_options)
            self.service = connect(self.host, self.settings.timeout)
            most = self.service.server.max_batch_size
            if self.settings.images_per_request > most:
                raise SettingsError(f"--images-per-request is above the server's limit of {most}")
        except (EmbeddingError, SettingsError, ValueError) as error:
            give_up(self.environment, error)
        runner = self.environment.runner
        process = getattr(runner, "worker_index", 0)
        # Two users that drew the same moments would not make a Poisson process together.
        self.random = random.Random(f"{self.settings.seed} {process} {next(_numbers)}")
        asked = "+".join(self.settings.outputs)
        self.request_name = f"{asked} x{self.settings.images_per_request}"

    def request(self, due: float | None = None) -> None:
        """Send one request, wait for the answer, and report it as due at `due` (or now)."""
        settings = self.settings
        images = self.random.choices(settings.pictures, k=settings.images_per_request)
        size, failure = 0, None
        with recording.in_flight():
            sent = time.perf_counter()
            due = sent if due is None else due
            try:
                size = self.service.embed(images, settings.outputs, settings.timeout)
            except EmbeddingError as error:
                failure = error
            done = time.perf_counter()
            recording.finished(due, sent, done, len(images), failure)
            report(self.environment, self.request_name, 1000 * (done - due), size, failure)


class ClosedLoop(EmbedderUser):
    """Sends a request, waits for the answer, thinks, sends the next."""

    def wait_time(self) -> float:
        """Seconds between an answer and the next request."""
        return self.settings.think_time

    @task
    def embed(self) -> None:
        """One request."""
        if recording.stopping:
            rest()
        self.request()


class OpenLoop(EmbedderUser):
    """Sends requests when they are due, whether or not earlier ones were answered."""

    def wait_time(self) -> float:
        """The schedule decides, not a pause."""
        return 0.0

    @task
    def embed(self) -> None:
        """Requests at the settings' rate until the test ends."""
        start = time.perf_counter()
        calls = gevent.pool.Group()
        for offset in self.settings.rate.arrivals(self.random):
            due = start + offset
            gevent.sleep(max(0.0, due - time.perf_counter()))
            if recording.stopping:
                break
            if len(calls) < self.settings.max_inflight:
                calls.spawn(self.request, due)
            else:
                recording.dropped(due)
                limit = f"{self.settings.max_inflight} requests in flight"
                report(self.environment, self.request_name, None, 0, Dropped(limit))
        rest()


def rest() -> None:
    """Do nothing until Locust ends this user."""
    gevent.event.Event().wait()


def report(
    environment: Environment,
    name: str,
    milliseconds: float | None,
    size: int,
    failure: Exception | None,
) -> None:
    """Hand one request's result to Locust's statistics."""
    environment.events.request.fire(  # type: ignore[no-untyped-call]
        request_type="gRPC",
        name=name,
        response_time=milliseconds,
        response_length=size,
        exception=failure,
        context={},
    )


def give_up(environment: Environment, error: Exception) -> None:
    """End the run: nothing can be measured. Does not return."""
    report(environment, "connect", None, 0, error)
    log.error("the run ends: %s", error)
    if environment.runner is not None:
        headless = environment.web_ui is None
        # Not from here: ending the run kills this user, and with it the rest of the ending.
        gevent.spawn(environment.runner.quit if headless else environment.runner.stop)
    rest()


@events.init.add_listener  # type: ignore[untyped-decorator]
def check_settings(environment: Environment, **_: object) -> None:
    """Refuse unusable options before anything starts, and run one kind of user."""
    # The loop's clock stood still while this was imported, and -t would be short by as much.
    gevent.get_hub().loop.update_now()
    options = environment.parsed_options
    try:
        Settings.of(options)
    except SettingsError as error:
        raise SystemExit(f"locust: {error}") from None
    assert options is not None
    # A worker runs whatever the master hands it.
    if options.class_picker or isinstance(environment.runner, WorkerRunner):
        return
    if not options.user_classes:
        environment.user_classes = [ClosedLoop]
    elif len(environment.user_classes) > 1:
        raise SystemExit(
            "locust: name ClosedLoop or OpenLoop, not both: their latencies mean different things"
        )


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def decide_exit_code(environment: Environment, **_: object) -> None:
    """Exit with 1 when no request was completed (Locust would say 0) or the SLO did not hold."""
    if isinstance(environment.runner, WorkerRunner):
        return
    if environment.runner is not None:
        environment.runner.stop()  # Interrupted: the report is still to be written.
    problem = failure_of_the_run(environment)
    if problem is not None:
        log.error("%s", problem)
        environment.process_exit_code = 1
