"""What happened to every request of a load test, in bounded memory."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

from unified_embedding.errors import (
    DeadlineExceeded,
    Overloaded,
    RequestAborted,
    RequestRejected,
    ServerUnavailable,
    VersionMismatch,
)
from unified_embedding.measure.latencies import Latencies

_CODES: Final = (
    (ServerUnavailable, "UNAVAILABLE"),
    (Overloaded, "CANCELLED"),
    (DeadlineExceeded, "DEADLINE_EXCEEDED"),
    (RequestRejected, "INVALID_ARGUMENT"),
    (RequestAborted, "ABORTED"),
    (VersionMismatch, "VERSION_MISMATCH"),
)
# Per second of the run, two digits are enough for a plot and keep hours of it in memory.
_TIMELINE_DIGITS: Final = 2


@dataclass
class Second:
    """One second of a run.

    Attributes:
        offered: requests that were due in it.
        dropped: those of them that were not sent.
        completed: requests whose good answer arrived in it.
        failed: requests whose failure arrived in it.
        latencies: of the good answers to the requests that were due in it.
    """

    offered: int = 0
    dropped: int = 0
    completed: int = 0
    failed: int = 0
    latencies: Latencies = field(default_factory=lambda: Latencies(_TIMELINE_DIGITS))

    def add(self, other: "Second") -> None:
        """Add what another process saw in the same second."""
        self.offered += other.offered
        self.dropped += other.dropped
        self.completed += other.completed
        self.failed += other.failed
        self.latencies.add(other.latencies)


@dataclass
class Recorder:
    """Counts and latencies of the requests that were due within the measured window.

    Attributes:
        completed: requests with a good answer.
        images: pictures in them.
        dropped: due requests that were not sent.
        errors: failed requests by code.
        examples: for each code what one failure said.
        latencies: of good answers, from the moment the request was due.
        service: of good answers, from the moment the request was sent.
        lateness: of every request sent, how long after its due moment that was; it says how
            well the load generator itself kept up.
        timeline: the same second by second, counted from the start of the window.
    """

    completed: int = 0
    images: int = 0
    dropped: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    latencies: Latencies = field(default_factory=Latencies)
    service: Latencies = field(default_factory=Latencies)
    lateness: Latencies = field(default_factory=Latencies)
    timeline: dict[int, Second] = field(default_factory=dict)

    @property
    def failed(self) -> int:
        """Requests that were sent and failed."""
        return self.errors.total()

    @property
    def offered(self) -> int:
        """Requests that were due: answered, failed or dropped."""
        return self.completed + self.failed + self.dropped

    def drop(self, due: float) -> None:
        """A request that was due `due` seconds into the window was not sent."""
        if due < 0:
            return
        self.dropped += 1
        second = self._second(due)
        second.offered += 1
        second.dropped += 1

    def record(
        self, due: float, sent: float, done: float, images: int, error: Exception | None
    ) -> None:
        """A request was answered, or failed with `error`; times in seconds into the window."""
        if due < 0:
            return
        self.lateness.record(sent - due)
        self._second(due).offered += 1
        if error is not None:
            code = error_code(error)
            self.errors[code] += 1
            self.examples.setdefault(code, str(error))
            self._second(done).failed += 1
            return
        self.completed += 1
        self.images += images
        self.latencies.record(done - due)
        self.service.record(done - sent)
        self._second(due).latencies.record(done - due)
        self._second(done).completed += 1

    def add(self, other: "Recorder") -> None:
        """Add what another process recorded in the same window."""
        self.completed += other.completed
        self.images += other.images
        self.dropped += other.dropped
        self.errors.update(other.errors)
        self.examples = {**other.examples, **self.examples}
        self.latencies.add(other.latencies)
        self.service.add(other.service)
        self.lateness.add(other.lateness)
        for number, second in other.timeline.items():
            self.timeline.setdefault(number, Second()).add(second)

    def share_within(self, seconds: float) -> float:
        """Share of the offered requests that were answered correctly within `seconds`."""
        return self.latencies.share_within(seconds) * self.completed / max(1, self.offered)

    def encode(self) -> dict[str, Any]:
        """Everything as values that msgpack and JSON can carry."""
        return {
            "counts": [self.completed, self.images, self.dropped],
            "errors": dict(self.errors),
            "examples": self.examples,
            "latencies": self.latencies.encode(),
            "service": self.service.encode(),
            "lateness": self.lateness.encode(),
            "timeline": [
                [number, s.offered, s.dropped, s.completed, s.failed, s.latencies.encode()]
                for number, s in self.timeline.items()
            ],
        }

    @classmethod
    def decode(cls, raw: Mapping[str, Any]) -> Self:
        """The inverse of `encode`."""
        completed, images, dropped = raw["counts"]
        return cls(
            completed=completed,
            images=images,
            dropped=dropped,
            errors=Counter(raw["errors"]),
            examples=dict(raw["examples"]),
            latencies=Latencies.decode(raw["latencies"]),
            service=Latencies.decode(raw["service"]),
            lateness=Latencies.decode(raw["lateness"]),
            timeline={
                number: Second(offered, dropped, completed, failed, Latencies.decode(encoded))
                for number, offered, dropped, completed, failed, encoded in raw["timeline"]
            },
        )

    def _second(self, at: float) -> Second:
        return self.timeline.setdefault(int(at), Second())


def error_code(error: Exception) -> str:
    """The gRPC status code behind an error of the client, or the error's own name."""
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code
    return type(error).__name__
