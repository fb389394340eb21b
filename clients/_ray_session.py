"""Ray in this process: started with few means, and left so that no message is lost."""

import logging
import math
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NoReturn

# Ray reads these when it is imported.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Ray Data 2.60 alarms users about a restart problem of its own actors on every run.
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")

import ray
import ray.data
from ray.exceptions import RayError

# The object store carries shard numbers and counts, no pictures.
OBJECT_STORE_BYTES: Final = 100_000_000
CORES_PER_WORKER: Final = 0.1
ATTEMPTS: Final = 3
CONNECT_SECONDS: Final = 10.0
SETTLE_SECONDS: Final = 10.0
QUIET: Final = ("ray.data._internal.progress", "ray.data._internal.execution.streaming_executor")
# Waits for blocks to prefetch, of which there are none, until the process ends.
IDLE_THREAD: Final = "Prefetcher"

LAST_WORDS: Final = (
    "the program ended before it was done: killed, or ended by Ray's core because a process of Ray "
    "was lost. Finished shards are kept; the same command continues from here. Ray's logs, fuller "
    "with RAY_BACKEND_LOG_LEVEL=info:"
)

_threads_at_start: Final[set[threading.Thread]] = set()
_watchers: Final[list[subprocess.Popen[bytes]]] = []


class RayFailedError(Exception):
    """Ray did not start or broke down; the message says why and where its logs are."""


def start(address: str | None, workers: int, modules: Sequence[ModuleType]) -> None:
    """Start a Ray of this machine's own, or connect to a cluster.

    Args:
        address: the cluster's address, or None.
        workers: actors that will run.
        modules: code that the cluster's machines lack; sent to them by value.

    Raises:
        RayFailedError: Ray did not start, or the cluster cannot be reached.
    """
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        # Ray starts a process per core beforehand; these workers wait more than they compute.
        cores = math.ceil(workers * CORES_PER_WORKER)
        options |= {"include_dashboard": False, "num_cpus": cores}
        options |= {"object_store_memory": OBJECT_STORE_BYTES}
    else:
        _reach(address)
        for module in modules:
            ray.cloudpickle.register_pickle_by_value(module)  # type: ignore[no-untyped-call]
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    _watch()
    for attempt in range(ATTEMPTS):
        try:
            ray.init(address or "local", **options)
            break
        except (OSError, ValueError) as error:
            raise _failed("did not start", error) from error
        except Exception as error:
            # Its own processes get 30 s, whatever else the machine does; then it raises just that.
            if address is not None or attempt == ATTEMPTS - 1:
                raise _failed("did not start", error) from error
    _threads_at_start.update(threading.enumerate())
    # Ray Data sets its own level when it is first used; our progress bar shares the terminal.
    for name in QUIET:
        logging.getLogger(name).addFilter(lambda record: record.levelno >= logging.ERROR)


@contextmanager
def failures() -> Iterator[None]:
    """Ray's own errors in a `with` block become RayFailedError."""
    try:
        yield
    except RayError as error:
        raise _failed("broke down", error) from error


def leave(code: int) -> NoReturn:
    """End the process with exit code `code`, and Ray with it.

    Call it when all is written and said. A run that ends early leaves threads of Ray Data at
    work; when one of them uses Ray after `ray.shutdown`, Ray's core ends the process at once
    with code 1, and tells so at a log level that is not shown. So the threads get time to end;
    if they take too long, Ray is not shut down: its processes end when they miss this one.
    """
    for watcher in _watchers:
        watcher.communicate(b"told\n")
    if ray.is_initialized():
        if not _settled():
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        ray.shutdown()
    sys.exit(code)


def _settled() -> bool:
    """Wait until no thread that came after Ray's start is at work; False if one goes on."""
    end = time.monotonic() + SETTLE_SECONDS
    for thread in set(threading.enumerate()) - _threads_at_start:
        if thread.name != IDLE_THREAD:
            thread.join(max(0.0, end - time.monotonic()))
            if thread.is_alive():
                return False
    return True


def _watch() -> None:
    """Let another process speak when this one ends without `leave`, as Ray's core may end it."""
    speak = 'read -r told || echo "$0" >&2'
    command = ["sh", "-c", speak, f"{Path(sys.argv[0]).stem}: {LAST_WORDS} {_logs()}"]
    # In a session of its own, Ctrl-C does not reach it.
    _watchers.append(subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True))


def _reach(address: str) -> None:
    """Ray itself tries for minutes without a word."""
    host, _, port = address.rpartition("/")[2].rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise RayFailedError(f"no Ray cluster answers at {address} ({error})") from error


def _failed(what: str, error: Exception) -> RayFailedError:
    # Errors of workers carry whole tracebacks, the reason last.
    reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
    return RayFailedError(
        f"Ray {what} ({reason}); its logs, fuller with RAY_BACKEND_LOG_LEVEL=info: {_logs()}"
    )


def _logs() -> Path:
    return Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "session_latest", "logs")
