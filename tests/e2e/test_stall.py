"""A stall of the engine, and then callers who can wait for less than it lasted."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from unified_embedding.gallery import Gallery
from unified_embedding.serving.local_server import running

psutil = pytest.importorskip("psutil", reason="the extra `load` is not installed")
grpcclient = pytest.importorskip("tritonclient.grpc", reason="the extra `client` is missing")
triton = pytest.importorskip("triton_calls")

pytestmark = pytest.mark.e2e

CALLERS, STALLS = 4, 3
# Shorter than the stall: whoever was waiting is late, and the engine's estimate is above it.
PATIENCE_S, STALL_S = 0.5, 0.8
# Two seconds are promised on an idle machine (docs/serving.md); this ends what would never end.
GUARD_S = 20.0


def process_of(server: int, model: str) -> int:
    """The process id of a model's first instance."""
    for process in psutil.Process(server).children(recursive=True):
        if f"/{model}/1/model.py" in " ".join(process.cmdline()):
            return int(process.pid)
    raise AssertionError(f"no process of {model} below {server}")


def ask(url: str, image: bytes) -> str:
    """Ask with half a second to spare: "answered", or the code of the refusal."""
    try:
        triton.embed(url, [image], deadline=f"{time.time() + PATIENCE_S:.3f}")
    except grpcclient.InferenceServerException as error:
        return str(error.status())
    return "answered"


def test_impatient_callers_are_answered_again_after_a_stall(
    repository: Path, gallery: Gallery
) -> None:
    """After one slow batch 989 of 989 calls were refused, the last ones by an idle server."""
    image = gallery.role("shot")[0].path.read_bytes()
    with running(repository) as server:
        stub = process_of(server.process.pid, "embedder")
        done = threading.Event()
        during: list[str] = []

        def impatient() -> None:
            while not done.is_set():
                during.append(ask(server.grpc_url, image))

        threads = [threading.Thread(target=impatient) for _ in range(CALLERS)]
        for thread in threads:
            thread.start()
        wait_for(lambda: "answered" in during)
        # A stall may last longer here than the launcher lets a process stand still.
        os.kill(server.process.pid, signal.SIGSTOP)
        for _ in range(STALLS):
            os.kill(stub, signal.SIGSTOP)
            time.sleep(STALL_S)
            os.kill(stub, signal.SIGCONT)
            time.sleep(0.1)
        os.kill(server.process.pid, signal.SIGCONT)
        done.set()
        for thread in threads:
            thread.join()
        # From here on nobody waits longer than the stall took.
        after: list[str] = []

        def answered(count: int) -> bool:
            after.append(ask(server.grpc_url, image))
            return after.count("answered") == count

        began = time.monotonic()
        wait_for(lambda: answered(1))
        took = time.monotonic() - began
        wait_for(lambda: answered(50))
        # What was refused, was refused as late: nothing counts against the server's health.
        assert {*during, *after} <= {"answered", "StatusCode.CANCELLED"}
        assert server.stop() == 0
    print(f"answered again {took:.2f} s after the stall; {after.count('answered')} of {len(after)}")


def wait_for(event: Callable[[], bool]) -> None:
    """Until it happened; fails when it does not."""
    end = time.monotonic() + GUARD_S
    while not event():
        assert time.monotonic() < end, "never again"
        time.sleep(0.01)
