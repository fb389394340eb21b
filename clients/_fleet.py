"""Several servers as one: the least busy answers, a lost one is left alone for a while."""

import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from unified_embedding.client import EmbeddedEach, EmbedderClient, Retry, ServerInfo
from unified_embedding.errors import (
    ClientError,
    DeadlineExceeded,
    RequestRejected,
    ServerUnavailable,
    VersionMismatch,
)

PAUSE: Final = 2.0


class Pace:
    """Lets at most `rate` pictures a second pass; 0 lets all pass at once."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._next = time.monotonic()
        self._lock = threading.Lock()

    def wait(self, pictures: int) -> None:
        """Wait until `pictures` more may go out."""
        if not self._rate:
            return
        with self._lock:
            start = max(self._next, time.monotonic())
            self._next = start + pictures / self._rate
        time.sleep(max(0.0, start - time.monotonic()))


@dataclass
class _Member:
    client: EmbedderClient
    busy: int = 0
    taken: float = 0.0
    rest_until: float = 0.0


class Fleet:
    """Servers that run the same embedder version. Safe to use from many threads."""

    def __init__(
        self,
        urls: Sequence[str],
        version: str | None = None,
        timeout: float = 60.0,
        patience: float = 300.0,
    ) -> None:
        """Name the servers; no call is made yet.

        Args:
            urls: gRPC addresses, host:port.
            version: the only embedder version that is accepted; None takes the first answer's.
            timeout: seconds per call.
            patience: seconds during which a call is tried again while no server answers.
        """
        options = {"expect_version": version, "timeout": timeout, "retry": Retry(attempts=1)}
        self._members = [_Member(EmbedderClient(url, **options)) for url in urls]  # type: ignore[arg-type]
        self._patience = patience
        self._lock = threading.Lock()

    def info(self) -> ServerInfo:
        """What the servers run.

        Raises:
            VersionMismatch: two of them run different versions.
            ClientError: none answers.
        """
        found: dict[str, ServerInfo] = {}
        failure: ClientError | None = None
        for member in self._members:
            try:
                found[member.client.url] = member.client.info()
            except ServerUnavailable as error:
                failure = error
        if len({info.version for info in found.values()}) > 1:
            told = ", ".join(f"{url} {info.version}" for url, info in found.items())
            raise VersionMismatch(f"the servers run different embedder versions: {told}")
        for info in found.values():
            return info
        raise failure or ServerUnavailable("no server address was given")

    def embed_each(self, images: Sequence[bytes], outputs: Collection[str]) -> EmbeddedEach:
        """Embed one request's pictures on whichever server is free.

        Raises:
            VersionMismatch: a server runs another version.
            ClientError: no server answered for `patience` seconds.
        """
        end = time.monotonic() + self._patience
        while True:
            member = self._take()
            try:
                answer = member.client.embed_each(images, outputs=outputs)
                lost = [
                    error
                    for error in answer.errors.values()
                    if not isinstance(error, RequestRejected)
                ]
                if not lost:
                    return answer
                problem = lost[0]
            except (ServerUnavailable, DeadlineExceeded) as error:
                problem = error
            finally:
                with self._lock:
                    member.busy -= 1
            if not isinstance(problem, (ServerUnavailable, DeadlineExceeded)):
                raise problem
            if time.monotonic() > end:
                raise problem
            member.rest_until = time.monotonic() + PAUSE

    def close(self) -> None:
        """Close every connection."""
        for member in self._members:
            member.client.close()

    def _take(self) -> _Member:
        """The least busy server that is not resting, in turn; wait when all rest."""
        while True:
            with self._lock:
                now = time.monotonic()
                awake = [member for member in self._members if member.rest_until <= now]
                if awake:
                    member = min(awake, key=lambda one: (one.busy, one.taken))
                    member.busy += 1
                    member.taken = now
                    return member
                wait = min(member.rest_until for member in self._members) - now
            time.sleep(max(0.01, wait))
