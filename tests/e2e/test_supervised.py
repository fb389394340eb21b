"""Drills: the real server's processes are killed and frozen, and it serves again by itself.

Each prints its times; docs/reliability.md has those of an idle machine.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tritonclient.grpc", reason="the extra `client` is not installed")

from drills import (
    MODELS,
    NOTICED_S,
    RESTARTS,
    SERVED_S,
    Callers,
    alive,
    end,
    files_of,
    log_of,
    ready,
    ready_by_grpc,
    serves,
    stub_of,
    until,
)

from unified_embedding.serving import processes
from unified_embedding.serving.local_server import LocalServer, start

pytestmark = pytest.mark.e2e


# Five deaths within a minute end a server: a drill, which may cost two, begins with two at most.
DEATHS_BEFORE = 2


@pytest.fixture(scope="module")
def latest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[LocalServer]]:
    """The server that the drills share, once there is one."""
    servers: list[LocalServer] = []
    yield servers
    for server in servers:
        stop(server)


@pytest.fixture
def own(latest: list[LocalServer], repository: Path, tmp_path: Path) -> LocalServer:
    """A server that a test may break. It goes on with the next one."""
    if latest:
        worn = log_of(latest[0]).count(RESTARTS) > DEATHS_BEFORE
        if worn or not ready(latest[0]):
            stop(latest.pop())
    if not latest:
        latest.append(start(repository, tmp_path / "log"))
    return latest[0]


def stop(server: LocalServer) -> None:
    children = processes.children(server.process.pid)
    end(server)
    assert server.process.returncode == 128 + signal.SIGHUP
    assert not any(files_of(pid) for pid in children)


def see_it_replaced(
    server: LocalServer, before: int, image: list[bytes], right: np.ndarray, began: float
) -> None:
    """Not ready, by either protocol, until another tritonserver answers; nothing is left."""
    until(lambda: not ready(server), NOTICED_S, "still called itself ready")
    noticed = time.monotonic() - began
    assert not ready_by_grpc(server)
    until(lambda: ready(server), SERVED_S, "was not ready again")
    assert serves(server, image, right)
    print(f"\n  noticed after {noticed:.1f} s, served after {time.monotonic() - began:.1f} s")
    assert server.process.poll() is None
    assert server.server_pid != before
    assert files_of(before) == set()
    assert ready_by_grpc(server)


@pytest.mark.parametrize("load", [False, True], ids=["idle", "loaded"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("model", MODELS)
def test_a_dead_or_frozen_model_process(
    own: LocalServer,
    model: str,
    number: signal.Signals,
    load: bool,
    image: list[bytes],
    right: np.ndarray,
) -> None:
    before, stub = own.server_pid, stub_of(own, model)
    with Callers(own.grpc_url, image, right) if load else contextlib.nullcontext():
        began = time.monotonic()
        os.kill(stub, number)
        see_it_replaced(own, before, image, right, began)
        until(lambda: not alive(stub), NOTICED_S, "the frozen process is still there")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_dead_or_frozen_tritonserver(
    own: LocalServer, number: signal.Signals, image: list[bytes], right: np.ndarray
) -> None:
    before = own.server_pid
    with Callers(own.grpc_url, image, right):
        began = time.monotonic()
        os.kill(before, number)
        see_it_replaced(own, before, image, right, began)


@pytest.mark.parametrize("frozen_s", [0.3, 1.0, 3.0])
def test_frozen_for_a_while_under_load(
    own: LocalServer, frozen_s: float, image: list[bytes], right: np.ndarray
) -> None:
    # A profiler, swap, `docker pause`: whether the server outlives it is up to Triton.
    before, stub = own.server_pid, stub_of(own, "embedder")
    with Callers(own.grpc_url, image, right) as callers:
        os.kill(stub, signal.SIGSTOP)
        time.sleep(frozen_s)
        with contextlib.suppress(ProcessLookupError):
            os.kill(stub, signal.SIGCONT)
        time.sleep(3)
        answered = callers.outcomes["answered"]
        took = until(
            lambda: callers.outcomes["answered"] > answered + 20, SERVED_S, "not served again"
        )
        # Triton may call itself ready and break a moment later.
        until(lambda: serves(own, image, right), SERVED_S, "not served again")
    what = "went on" if own.server_pid == before else "was started again"
    print(f"  frozen for {frozen_s} s it {what}; served {took + 3:.1f} s after SIGCONT")


def test_all_processes_paused_together_go_on(
    own: LocalServer, image: list[bytes], right: np.ndarray
) -> None:
    # Ctrl-Z and fg; `docker pause`.
    before = own.server_pid
    everyone = [before, *processes.stubs(before), own.process.pid]
    for pid in everyone:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(3)
    for pid in everyone:
        os.kill(pid, signal.SIGCONT)
    until(lambda: serves(own, image, right), SERVED_S, "not served again")


def test_a_server_that_dies_five_times_in_a_minute_is_given_up(
    repository: Path, tmp_path: Path
) -> None:
    own = start(repository, tmp_path / "log")
    seen: set[int] = set()

    def another() -> int | None:
        found = [pid for pid in processes.children(own.process.pid) if pid not in seen]
        return next((pid for pid in found if processes.name(pid) == processes.SERVER), None)

    try:
        for _ in range(5):
            until(another, SERVED_S, "no server was started")
            pid = another()
            assert pid is not None
            seen.add(pid)
            os.kill(pid, signal.SIGKILL)
        assert own.process.wait(200) == 128 + signal.SIGKILL
    finally:
        end(own)
    assert "5 times in 60 s are too many, giving up" in log_of(own)
    assert not any(files_of(pid) for pid in seen)
