"""Ray in this process: started with few means, and left so that no message is lost."""

import logging
import math
import os
import re
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

# Ray reads this when it is imported.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray.exceptions import RayActorError, RayError

from unified_embedding.corpus.lanes import Lanes
from unified_embedding.errors import RayFailedError

# The object store carries shard numbers and counts, no pictures.
OBJECT_STORE_BYTES: Final = 100_000_000
CORES_PER_WORKER: Final = 0.1
ATTEMPTS: Final = 3
# A shard that costs more processes than this is the reason, not the machine.
DEATHS: Final = 5
CONNECT_SECONDS: Final = 10.0
# How long nothing may happen before it is looked whether there is a machine left to work.
LOOK_SECONDS: Final = 15.0

LAST_WORDS: Final = (
    "the program ended before it was done: killed, or ended by Ray's core because a process of Ray "
    "was lost. Finished shards are kept; the same command continues from here. Ray's logs:"
)

_watchers: Final[list[subprocess.Popen[bytes]]] = []


def start(
    address: str | None,
    workers: int,
    init: Callable[..., object] = ray.init,
) -> None:
    """Start a Ray of this machine's own, or connect to a cluster.

    Args:
        address: of a cluster whose machines have this package, or None.
        workers: actors that will run.
        init: what starts Ray.

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
    # Ray prints its advice to programmers to stdout, where these programs say nothing.
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    _watch()
    for attempt in range(ATTEMPTS):
        try:
            init(address or "local", **options)
            break
        except (OSError, ValueError) as error:
            raise _failed("did not start", error) from error
        except Exception as error:
            # Its own processes get 30 s, whatever else the machine does; then it raises just that.
            if address is not None or attempt == ATTEMPTS - 1:
                raise _failed("did not start", error) from error
    # Instead of Ray's handler, which ends the process without a word.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def is_started() -> bool:
    """Whether `start` was called."""
    return bool(_watchers)


def each_shard(
    make: Callable[[], Any], shards: Sequence[int], workers: int
) -> Generator[Any, None, None]:
    """What `make().run(shard)` returns for each shard, as they are done by several processes.

    A process that is lost is replaced, and its shard done again. One that finds no place on the
    cluster holds nothing up: shards go to those that have said that they are there.

    Raises:
        RayFailedError: a shard, or the start of processes, cost more than `DEATHS` of them.
    """

    class Worker:
        def __init__(self) -> None:
            self._worker = make()

        def is_there(self) -> None:
            """Return when the process is up."""

        def run(self, shard: int) -> Any:
            return self._worker.run(shard)

    # Over all nodes: by itself Ray fills the first one, whose network then bounds the run.
    remote: Any = ray.remote(num_cpus=CORES_PER_WORKER, scheduling_strategy="SPREAD")(Worker)
    lanes = Lanes(shards, workers)
    under_way: dict[Any, tuple[Any, int, int | None]] = {}
    idle: list[tuple[Any, int]] = []
    deaths: Counter[int | None] = Counter()

    def hire(lane: int) -> None:
        actor = remote.remote()
        under_way[actor.is_there.remote()] = (actor, lane, None)

    try:
        for lane in range(workers):
            hire(lane)
        while lanes or any(shard is not None for _, _, shard in under_way.values()):
            ready, _ = ray.wait(list(under_way), num_returns=1, timeout=LOOK_SECONDS)
            if not ready:
                _require_a_node()
                continue
            done = ready[0]
            actor, lane, shard = under_way.pop(done)
            try:
                result = ray.get(done)
            except RayActorError as error:
                deaths[shard] += 1
                if deaths[shard] > DEATHS:
                    what = f"shard {shard}" if shard is not None else "the workers"
                    raise _failed(f"lost {DEATHS + 1} processes at {what}", error) from error
                if shard is not None:
                    lanes.put_back(lane, shard)
                hire(lane)
            else:
                idle.append((actor, lane))
                if shard is not None:
                    yield result
            while idle and lanes:
                actor, lane = idle.pop()
                shard = lanes.take(lane)
                under_way[actor.run.remote(shard)] = (actor, lane, shard)
    except RayError as error:
        raise _failed("broke down", error) from error


def _require_a_node() -> None:
    if not any(node["Alive"] for node in ray.nodes()):  # type: ignore[no-untyped-call]
        raise _told("broke down", "no machine is left")


def leave(code: int) -> NoReturn:
    """End the process with exit code `code`, and Ray with it, when all is written and said."""
    for watcher in _watchers:
        watcher.communicate(b"told\n")
    if ray.is_initialized():
        ray.shutdown()
    sys.exit(code)


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
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, RayActorError):
        # Its text is Ray's advice to programmers, around a traceback where there was one.
        raised = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b.*: ", line)]
        lines = raised or ["killed, or out of memory"]
    reason = lines[-1] if lines else type(error).__name__
    return _told(what, reason)


def _told(what: str, reason: str) -> RayFailedError:
    return RayFailedError(
        f"Ray {what} ({reason}); the same command continues from here. Ray's logs: {_logs()}"
    )


def _logs() -> Path:
    return Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "session_latest", "logs")
