"""What the drills share: processes of one server, callers that count, and waiting for events."""

import http.client
import os
import signal
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as grpcclient
from triton_calls import embed
from tritonclient.utils import InferenceServerException

from unified_embedding.serving import processes
from unified_embedding.serving.local_server import LocalServer

MODELS = ("preprocess", "embedder", "binarizer")
RESTARTS = "starting the server again"  # What the launcher's log says of each.
# What is promised in docs/reliability.md, and how often a drill waits before it calls that broken:
# a busy machine is slow, and its times are judged there and not here.
NOTICED_S, SERVED_S, PATIENCE = 5, 20, 10


def stub_of(server: LocalServer, model: str) -> int:
    """The process of a model."""
    return next(
        pid for pid in processes.stubs(server.server_pid) if processes.model_of(pid) == model
    )


def end(server: LocalServer) -> None:
    """End a server that has done its part: in order it takes Triton 2.51 four seconds."""
    server.process.send_signal(signal.SIGHUP)
    server.process.wait()


def alive(pid: int) -> bool:
    return processes.state(pid) not in ("", "Z", "X")


def files_of(server_pid: int) -> set[str]:
    """What a tritonserver has, or had, in /dev/shm."""
    return {
        name
        for name in os.listdir("/dev/shm")
        if name.startswith(f"unified_embedding-{server_pid}-")
    }


def until(happened: Callable[[], Any], promised_s: float, what: str) -> float:
    """Wait for it; how many seconds it took. Fails after ten times what is promised."""
    began = time.monotonic()
    while not happened():
        waited = time.monotonic() - began
        assert waited < PATIENCE * promised_s, f"{what}: not after {waited:.0f} s"
        time.sleep(0.02)
    return time.monotonic() - began


def ready(server: LocalServer) -> bool:
    """Readiness by HTTP; a closed port is not ready."""
    try:
        with urllib.request.urlopen(f"{server.http_url}/v2/health/ready", timeout=5):
            return True
    except (OSError, http.client.HTTPException):
        return False


def ready_by_grpc(server: LocalServer) -> bool:
    try:
        with grpcclient.InferenceServerClient(server.grpc_url) as client:
            return bool(client.is_server_ready(client_timeout=5))
    except InferenceServerException:
        return False


class Callers:
    """Callers that ask one after another until they are told to stop, and count what they get.

    Every answer has to be the right one bit for bit, and every call has to come back.
    """

    def __init__(
        self, url: str, images: Sequence[bytes], right: np.ndarray, count: int = 4
    ) -> None:
        self.outcomes: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.wrong = 0
        self._url, self._images, self._right = url, images, right
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask) for _ in range(count)]

    def __enter__(self) -> "Callers":
        for thread in self._threads:
            thread.start()
        until(lambda: self.outcomes["answered"] > 20, SERVED_S, "the callers were not answered")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE * SERVED_S)
        hung = [thread for thread in self._threads if thread.is_alive()]
        assert not hung, f"{len(hung)} calls were never answered"
        print(f"  calls: {dict(self.outcomes)}")
        for outcome, example in self.examples.items():
            print(f"    {outcome}: {example}")
        assert self.wrong == 0
        assert self.outcomes["DEADLINE_EXCEEDED"] == 0

    def _ask(self) -> None:
        while not self._stop.is_set():
            try:
                code = embed(self._url, self._images, ("code",))["code"]
                outcome = "answered"
            except InferenceServerException as error:
                code, outcome = self._right, str(error.status()).removeprefix("StatusCode.")
                self.examples.setdefault(outcome, str(error.message())[:200])
            with self._lock:
                self.outcomes[outcome] += 1
                self.wrong += not np.array_equal(code, self._right)
            if outcome != "answered":
                time.sleep(0.05)


def serves(server: LocalServer, images: Sequence[bytes], right: np.ndarray) -> bool:
    """Whether a picture is answered, and answered rightly."""
    try:
        code = embed(server.grpc_url, images, ("code",))["code"]
    except InferenceServerException:
        return False
    assert np.array_equal(code, right)
    return True


def log_of(server: LocalServer) -> str:
    return Path(server.log).read_text(errors="replace")
