"""What a model tells Prometheus beside Triton's own metrics; docs/monitoring.md lists it.

Triton has one metric for one name and one set of labels, whichever processes speak of it: what
the processes of a model count is added up.

Each change is a message to the server and its answer, from one thread at a time. So a thread of
its own passes on what was noted, once a second, and no request waits for it.

No metric is ever given back: with the first process that does so Triton (2.51) frees what the
others still write to, and the server ends with a segmentation fault.

Importable inside Triton's Python backend only.
"""

import contextlib
import ctypes
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

import triton_python_backend_utils as pb_utils

from unified_embedding.serving import processes, server_files

Reason = Literal["bad_input", "late", "busy", "internal"]

REASONS: Final[tuple[Reason, ...]] = ("bad_input", "late", "busy", "internal")
"""Why a request is refused."""

BUCKETS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Upper ends of a histogram's buckets, in seconds."""

REFUSED: Final = "embedder_refused_total"
INFO: Final = "embedder_info"
DECODE: Final = "embedder_decode_duration_seconds"
ENGINE: Final = "embedder_engine_duration_seconds"
STARTED: Final = "embedder_start_time_seconds"
SHM_USED: Final = "embedder_shm_used_bytes"
SHM_SIZE: Final = "embedder_shm_size_bytes"

_HELP: Final = {
    REFUSED: "Requests that a model refused, by reason.",
    INFO: "1 for the embedder that is served.",
    DECODE: "Seconds from a picture's bytes to its pixels, before they are resized.",
    ENGINE: "Seconds that the engine took for a batch.",
    STARTED: "When the server was started, in seconds since 1970.",
    SHM_USED: "Bytes in use of the shared memory that the models' processes keep tensors in.",
    SHM_SIZE: "Bytes that there are of it.",
}
_INTERVAL_S: Final = 1.0
# A server that hears nothing any more must not cost its models their memory.
_MOST_NOTED: Final = 100_000


class Metrics:
    """The metrics of one process of a model. No method but `close` waits for the server."""

    def __init__(self, model: str, *histograms: str) -> None:
        """Announce them, so that each is there before its first event.

        Args:
            model: the model's name in Triton.
            histograms: DECODE, ENGINE.
        """
        self._labels = {"model": model}
        self._families: dict[str, Any] = {}
        self._refused = {
            reason: self._metric("COUNTER", REFUSED, {**self._labels, "reason": reason})
            for reason in REASONS
        }
        self._histograms = {
            name: self._metric("HISTOGRAM", name, self._labels, buckets=list(BUCKETS))
            for name in histograms
        }
        self._gauges: list[tuple[Any, Callable[[], float]]] = []
        self._shown: dict[int, float] = {}
        self._refusals: deque[Reason] = deque(maxlen=_MOST_NOTED)
        self._seconds: deque[tuple[str, float]] = deque(maxlen=_MOST_NOTED)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work, name="metrics", daemon=True)
        self._thread.start()

    def refused(self, reason: Reason) -> None:
        """A request was refused."""
        self._refusals.append(reason)

    def took(self, histogram: str, seconds: float) -> None:
        """Something took so long."""
        self._seconds.append((histogram, seconds))

    def show(
        self, name: str, read: Callable[[], float], labels: Mapping[str, str] | None = None
    ) -> None:
        """A gauge: what `read` returns, asked once a second.

        Args:
            name: of the gauge.
            read: its value; every process of the server must read the same.
            labels: the model's name by default.
        """
        labels = self._labels if labels is None else labels
        gauge = self._metric("GAUGE", name, labels)
        gauge.set(read())
        self._gauges.append((gauge, read))

    def close(self) -> None:
        """Pass on what is left, in a model's `finalize`: later, nobody would answer."""
        self._end.set()
        self._thread.join()

    def _metric(self, kind: str, name: str, labels: Mapping[str, str], **more: Any) -> Any:
        family = self._families.get(name)
        if family is None:
            kinds = pb_utils.MetricFamily
            family = pb_utils.MetricFamily(
                name=name, description=_HELP[name], kind=getattr(kinds, kind)
            )
            self._families[name] = family
            # Not even at the end of this process.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(family))
        return family.Metric(labels=dict(labels), **more)

    def _work(self) -> None:
        while not self._end.wait(_INTERVAL_S):
            self._pass_on()
        self._pass_on()

    def _pass_on(self) -> None:
        # Whatever Triton has against a figure is no reason to stop telling the others.
        counted = Counter(_taken(self._refusals))
        for reason, count in counted.items():
            with contextlib.suppress(Exception):
                self._refused[reason].increment(count)
        for name, seconds in _taken(self._seconds):
            with contextlib.suppress(Exception):
                self._histograms[name].observe(seconds)
        for place, (gauge, read) in enumerate(self._gauges):
            with contextlib.suppress(Exception):
                value = read()
                if self._shown.get(place) != value:
                    gauge.set(value)
                    self._shown[place] = value


def show_server(metrics: Metrics) -> None:
    """Gauges of the server as a whole."""
    began = _started(os.getppid())
    metrics.show(STARTED, lambda: began, {})
    metrics.show(SHM_USED, lambda: _shared_memory()[0], {})
    metrics.show(SHM_SIZE, lambda: _shared_memory()[1], {})


def _taken(noted: "deque[Any]") -> list[Any]:
    return [noted.popleft() for _ in range(len(noted))]


def _started(server: int) -> float:
    """When that process was started, in whole seconds since 1970."""
    up = time.clock_gettime(time.CLOCK_BOOTTIME)
    return float(round(time.time() - up + processes.start(server)))


def _shared_memory() -> tuple[float, float]:
    """Bytes in use and in all; a server that cannot tell has none."""
    try:
        found = os.statvfs(server_files.FOLDER)
    except OSError:
        return 0.0, 0.0
    used = (found.f_blocks - found.f_bfree) * found.f_frsize
    return float(used), float(found.f_blocks * found.f_frsize)
