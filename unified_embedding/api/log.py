"""One line of JSON for each request, and Prometheus' figures."""

import sys
import time
from dataclasses import dataclass, field
from typing import IO, Any, Final

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_BUCKETS: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
ROUTES: Final = frozenset({"/v1/embeddings", "/v1/search", "/v1/models", "/v1/index", "/picture"})


@dataclass
class Visit:
    """What is noted of one request while it is answered.

    Attributes:
        id: the request id, the caller's own or ours.
        key: the name of the caller's key; empty without keys.
        pictures: pictures that were asked for.
        bytes: encoded bytes of them.
        version: the embedder's, once it answered.
        code: the error's code, empty for an answer.
        began: monotonic seconds.
        steps: milliseconds of each step so far, by its name.
    """

    id: str
    key: str = ""
    pictures: int = 0
    bytes: int = 0
    version: str = ""
    code: str = ""
    began: float = field(default_factory=time.monotonic)
    steps: dict[str, float] = field(default_factory=dict)

    def mark(self, step: str) -> None:
        """The step is done: it took the time since the one before it."""
        so_far = 1000 * (time.monotonic() - self.began)
        self.steps[step] = so_far - sum(self.steps.values())

    @property
    def server_timing(self) -> str:
        """The steps as the header `Server-Timing` (W3C), which browsers show."""
        return ", ".join(f"{step};dur={ms:.2f}" for step, ms in self.steps.items())


class Book:
    """Counts requests, and writes the access log."""

    def __init__(self, log: IO[str] | None = sys.stdout) -> None:
        """`log` is where lines go; None for nowhere."""
        self._log = log
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "unified_embedding_api_requests", "Requests by route, status and key.",
            ("route", "status", "key"), registry=self.registry,
        )  # fmt: skip
        self.pictures = Counter(
            "unified_embedding_api_pictures", "Pictures by what became of them.",
            ("outcome",), registry=self.registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "unified_embedding_api_request_seconds", "From the first byte to the last.",
            ("route",), buckets=_BUCKETS, registry=self.registry,
        )  # fmt: skip
        self.in_work = Gauge(
            "unified_embedding_api_pictures_in_work", "Pictures that are being embedded.",
            registry=self.registry,
        )  # fmt: skip
        self.held = Gauge(
            "unified_embedding_api_body_bytes", "Bytes of request bodies in memory.",
            registry=self.registry,
        )  # fmt: skip

    def close(self, visit: Visit, method: str, path: str, status: int) -> None:
        """The request was answered, or its caller went away (status 0)."""
        seconds = time.monotonic() - visit.began
        route = path if path in ROUTES else "other"
        self.requests.labels(route, str(status), visit.key).inc()
        self.seconds.labels(route).observe(seconds)
        if self._log is None:
            return
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "request": visit.id,
            "key": visit.key,
            "method": method,
            "path": path[:200],
            "status": status,
            "code": visit.code,
            "pictures": visit.pictures,
            "bytes": visit.bytes,
            "version": visit.version,
            "ms": round(1000 * seconds, 1),
        }
        self._log.write(msgspec.json.encode(line).decode() + "\n")
        self._log.flush()

    def page(self) -> bytes:
        """The figures in Prometheus' text format."""
        return generate_latest(self.registry)
