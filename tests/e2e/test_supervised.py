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
    SERVED_S,
    Callers,
    alive,
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


# One server for the four drills with one model: five deaths within a minute would end it.
@pytest.fixture(scope="module", params=MODELS)
def victim(
    request: pytest.FixtureRequest, repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[LocalServer, str]]:
    started = start(repository, tmp_path_factory.mktemp("victim") / "log")
    yield started, request.param
    last = started.server_pid
    assert started.stop() == 0
    assert files_of(last) == set()


@pytest.fixture
def own(repository: Path, tmp_path: Path) -> Iterator[LocalServer]:
    """A server that a test may end."""
    started = start(repository, tmp_path / "log")
    yield started
    started.stop()


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
def test_a_dead_or_frozen_model_process(
    victim: tuple[LocalServer, str],
    number: signal.Signals,
    load: bool,
    image: list[bytes],
    right: np.ndarray,
) -> None:
    server, model = victim
    before, stub = server.server_pid, stub_of(server, model)
    with Callers(server.grpc_url, image, right) if load else contextlib.nullcontext():
        began = time.monotonic()
        os.kill(stub, number)
        see_it_replaced(server, before, image, right, began)
        until(lambda: not alive(stub), NOTICED_S, "the frozen process is still there")
    # A frozen one brings Triton down before it is found.
    assert "starting the server again" in log_of(server)


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


def test_a_server_that_dies_five_times_in_a_minute_is_given_up(own: LocalServer) -> None:
    seen: set[int] = set()

    def another() -> int | None:
        found = [pid for pid in processes.children(own.process.pid) if pid not in seen]
        return next((pid for pid in found if processes.name(pid) == processes.SERVER), None)

    for _ in range(5):
        until(another, SERVED_S, "no server was started")
        pid = another()
        assert pid is not None
        seen.add(pid)
        os.kill(pid, signal.SIGKILL)
    assert own.process.wait(200) == 128 + signal.SIGKILL
    assert "5 times in 60 s are too many, giving up" in log_of(own)
    assert not any(files_of(pid) for pid in seen)
