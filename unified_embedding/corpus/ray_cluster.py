"""The executor of a Ray cluster; the extra `ray` installs what it needs."""

import logging
import os
import re
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import ray
from ray.exceptions import RayActorError, RayError

from unified_embedding.corpus.executors import Worker
from unified_embedding.corpus.lanes import Lanes
from unified_embedding.errors import ExecutorError

# Workers wait more than they compute.
CORES_PER_WORKER: Final = 0.1
# A shard that costs more processes than this is the reason, not the machine.
DEATHS: Final = 5
CONNECT_SECONDS: Final = 10.0
# How long nothing may happen before it is looked whether there is a machine left to work.
LOOK_SECONDS: Final = 15.0
# For workers that are stopped to write down what was answered.
STOP_SECONDS: Final = 15.0

LAST_WORDS: Final = (
    "the program ended before it was done: killed, or ended by Ray's core because a process of Ray "
    "was lost. Finished shards are kept; the same command continues from here. Ray's logs:"
)


class _Actor:
    """A worker in a process of the cluster."""

    def __init__(self, make: Callable[[], Worker[Any]]) -> None:
        self._worker = make()

    def is_there(self) -> None:
        """Return when the process is up."""

    def run(self, shard: int) -> Any:
        return self._worker.run(shard)

    def stop(self) -> None:
        self._worker.stop()


def on_cluster(
    address: str, make: Callable[[], Worker[Any]], shards: Sequence[int], workers: int
) -> Generator[Any, None, None]:
    """The executor of a cluster, whose machines have this package.

    A process that is lost is replaced, and its shard done again. One that finds no place on the
    cluster holds nothing up: shards go to those that have said that they are there.

    Raises:
        ExecutorError: the cluster cannot be reached; or a shard, or the start of processes, cost
            more than `DEATHS` of them.
    """
    with _connected(address), _last_words():
        try:
            yield from _each_shard(make, shards, workers)
        except RayError as error:
            raise _failed("broke down", error) from error


def _each_shard(
    make: Callable[[], Worker[Any]], shards: Sequence[int], workers: int
) -> Generator[Any, None, None]:
    # Over all nodes: by itself Ray fills the first one, whose network then bounds the run. Two
    # calls at once: `stop` comes while `run` is under way.
    remote: Any = ray.remote(_Actor).options(
        num_cpus=CORES_PER_WORKER, max_concurrency=2, scheduling_strategy="SPREAD"
    )
    lanes = Lanes(shards, workers)
    under_way: dict[Any, tuple[Any, int, int | None]] = {}
    idle: list[tuple[Any, int]] = []
    deaths: Counter[int | None] = Counter()

    def hire(lane: int) -> None:
        actor = remote.remote(make)
        under_way[actor.is_there.remote()] = (actor, lane, None)

    def at_work() -> list[Any]:
        return [done for done, (_, _, shard) in under_way.items() if shard is not None]

    try:
        for lane in range(workers):
            hire(lane)
        while lanes or at_work():
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
    finally:
        with suppress(RayError):
            left = at_work()
            for done in left:
                under_way[done][0].stop.remote()
            if left:
                ray.wait(left, num_returns=len(left), timeout=STOP_SECONDS)


def _require_a_node() -> None:
    if not any(node["Alive"] for node in ray.nodes()):  # type: ignore[no-untyped-call]
        raise _told("broke down", "no machine is left")


@contextmanager
def _connected(address: str) -> Iterator[None]:
    _reach(address)
    # Ray's own handler ends the process without a word.
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:
        raise _failed("cannot be used", error) from error
    finally:
        signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _last_words() -> Iterator[None]:
    """Let another process speak when this one ends within the block, as Ray's core may end it."""
    speak = 'read -r told || echo "$0" >&2'
    command = ["sh", "-c", speak, f"{Path(sys.argv[0]).stem}: {LAST_WORDS} {_logs()}"]
    # In a session of its own, Ctrl-C does not reach it.
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as watcher:
        try:
            yield
        finally:
            watcher.communicate(b"told\n")


def _reach(address: str) -> None:
    """Ray itself tries for minutes without a word."""
    host, _, port = address.rpartition("/")[2].rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise ExecutorError(f"no Ray cluster answers at {address} ({error})") from error


def _failed(what: str, error: Exception) -> ExecutorError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, RayActorError):
        # Its text is Ray's advice to programmers, around a traceback where there was one.
        raised = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b.*: ", line)]
        lines = raised or ["killed, or out of memory"]
    reason = lines[-1] if lines else type(error).__name__
    return _told(what, reason)


def _told(what: str, reason: str) -> ExecutorError:
    return ExecutorError(
        f"Ray {what} ({reason}); the same command continues from here. Ray's logs: {_logs()}"
    )


def _logs() -> Path:
    return Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "session_latest", "logs")
