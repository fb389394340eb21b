"""Load test of the served embedder over gRPC with real pictures.

    locust -f loadtest/ --headless -u 8 -r 8 -t 20s --host 127.0.0.1:8001

Closed loop: N users, each sending its next request when the last one was answered. Exit code
1 when a request failed, when an answer had the wrong shape, or when none was completed.
"""

import itertools
import logging
import random
import time

import gevent  # type: ignore[import-untyped]
import gevent.event  # type: ignore[import-untyped]
import grpc.experimental.gevent as grpc_gevent
from _service import connect
from _settings import Settings, SettingsError
from locust import User, events, task
from locust.env import Environment
from locust.runners import WorkerRunner

from unified_embedding.client import DEFAULT_URL
from unified_embedding.errors import EmbeddingError

# Without it a waiting gRPC call stops every other user of the process, while the reported
# latencies look the same. It must run before the first channel is created.
grpc_gevent.init_gevent()

_numbers = itertools.count()
log = logging.getLogger(__name__)


class ClosedLoop(User):
    """Sends a request, waits for the answer, thinks, sends the next."""

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
        self.random = random.Random(f"{self.settings.seed} {next(_numbers)}")
        asked = "+".join(self.settings.outputs)
        self.request_name = f"{asked} x{self.settings.images_per_request}"

    def wait_time(self) -> float:
        """Seconds between an answer and the next request."""
        return self.settings.think_time

    @task
    def embed(self) -> None:
        """One request."""
        settings = self.settings
        images = self.random.choices(settings.pictures, k=settings.images_per_request)
        size, failure = 0, None
        began = time.perf_counter()
        try:
            size = self.service.embed(images, settings.outputs, settings.timeout)
        except EmbeddingError as error:
            failure = error
        milliseconds = 1000 * (time.perf_counter() - began)
        report(self.environment, self.request_name, milliseconds, size, failure)


def report(
    environment: Environment, name: str, milliseconds: float, size: int, failure: Exception | None
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
    report(environment, "connect", 0.0, 0, error)
    log.error("the run ends: %s", error)
    if environment.runner is not None:
        headless = environment.web_ui is None
        # Not from here: ending the run kills this user, and with it the rest of the ending.
        gevent.spawn(environment.runner.quit if headless else environment.runner.stop)
    gevent.event.Event().wait()


@events.init.add_listener  # type: ignore[untyped-decorator]
def check_settings(environment: Environment, **_: object) -> None:
    """Refuse unusable options before anything starts."""
    try:
        Settings.of(environment.parsed_options)
    except SettingsError as error:
        raise SystemExit(f"locust: {error}") from None


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def fail_without_answers(environment: Environment, **_: object) -> None:
    """Exit with 1 when no request was completed: Locust itself would exit with 0."""
    total = environment.stats.total
    if isinstance(environment.runner, WorkerRunner) or total.num_requests > total.num_failures:
        return
    log.error("no request was completed")
    environment.process_exit_code = 1
