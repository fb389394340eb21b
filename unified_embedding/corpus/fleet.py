"""Several servers as one: the least busy answers, a lost one is left alone for a while."""

import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final

from unified_embedding import Box
from unified_embedding.client import Connection, EmbeddedEach, EmbedderClient, Retry, ServerInfo
from unified_embedding.client._calls import Deadline
from unified_embedding.client._places import Places
from unified_embedding.client._results import Embedded, join
from unified_embedding.errors import (
    ClientError,
    DeadlineExceeded,
    Overloaded,
    RequestAborted,
    RequestRejected,
    ServerDied,
    ServerUnavailable,
    VersionMismatch,
)

PAUSE: Final = 2.0
"""Seconds that a server which did not answer is left alone."""

# After these a server may answer later, or another one at once.
PASSING: Final = (ServerUnavailable, Overloaded, DeadlineExceeded)

_NO_BOUND: Final = 1_000_000
_FOR_EVER: Final = 1e8


class RateLimiter:
    """Lets at most `rate` pictures a second pass; 0 lets all pass at once."""

    def __init__(
        self,
        rate: float,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._rate, self._now, self._sleep = rate, now, sleep
        self._next = now()
        self._lock = threading.Lock()

    def wait(self, pictures: int) -> None:
        """Wait until `pictures` more may go out."""
        if not self._rate:
            return
        with self._lock:
            start = max(self._next, self._now())
            self._next = start + pictures / self._rate
        self._sleep(max(0.0, start - self._now()))


@dataclass
class _Member:
    client: EmbedderClient
    busy: int = 0
    taken: float = 0.0
    rest_until: float = 0.0


@dataclass(frozen=True)
class _Request:
    """Pictures that travel together, by their rows; suspects were in flight at a death."""

    rows: Sequence[int]
    suspect: bool = False


class Fleet:
    """Servers that run the same embedder version. Safe to use from many threads."""

    def __init__(
        self,
        urls: Sequence[str],
        timeout: float = 60.0,
        patience: float = 300.0,
        connection: Connection = Connection(),  # noqa: B008 - frozen
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        """Name the servers; no call is made yet.

        Args:
            urls: gRPC addresses, host:port.
            timeout: seconds per call.
            patience: seconds during which a call is tried again while no server answers.
            connection: TLS and token of all of them.
            now: the clock.
            sleep: how to wait.
        """
        self._members = [
            _Member(
                EmbedderClient(
                    url,
                    timeout=timeout,
                    max_inflight=_NO_BOUND,
                    retry=Retry(attempts=1),
                    **connection.options(),
                )
            )
            for url in urls
        ]
        self._closed = False
        self._patience, self._now, self._sleep = patience, now, sleep
        self._places = Places(_NO_BOUND)
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
            except PASSING as error:
                failure = error
        if len({info.version for info in found.values()}) > 1:
            told = ", ".join(f"{url} {info.version}" for url, info in found.items())
            raise VersionMismatch(f"the servers run different embedder versions: {told}")
        for info in found.values():
            return info
        raise failure or ServerUnavailable("no server address was given")

    def embed_each(
        self, images: Sequence[bytes], outputs: Collection[str], crop: Box | None = None
    ) -> EmbeddedEach:
        """Embed one request's pictures on whichever server is free.

        What a server did not answer is sent again, to another server or later. Pictures that
        were in flight when a server died are sent again one at a time, with nothing else of
        this fleet in flight; one over which a second process dies is given up (RequestAborted
        in `errors`), so that a picture that kills costs itself alone.

        Raises:
            VersionMismatch: two servers answered with different versions.
            ClientError: no server answered for `patience` seconds, or the fleet was closed.
        """
        salvage = _Salvage(len(images))
        end = self._now() + self._patience
        while salvage.pending:
            request = salvage.pending.pop(0)
            member = self._take()
            try:
                answer = self._ask(member, request, images, outputs, crop)
                problem = salvage.judge(request, answer)
                if answer.rows:
                    end = self._now() + self._patience
            except PASSING as error:
                salvage.pending.insert(0, request)
                problem = error
            finally:
                with self._lock:
                    member.busy -= 1
            if problem is not None:
                if self._now() > end:
                    raise problem
                member.rest_until = self._now() + PAUSE
        return salvage.result()

    def close(self) -> None:
        """Close every connection; calls under way fail at once, if `sleep` returns."""
        self._closed = True
        for member in self._members:
            member.client.close()

    def _ask(
        self,
        member: _Member,
        request: _Request,
        images: Sequence[bytes],
        outputs: Collection[str],
        crop: Box | None,
    ) -> EmbeddedEach:
        with self._places.take(Deadline(_FOR_EVER), alone=request.suspect):
            # Only a process that is there can die over a suspect for a second time.
            if request.suspect and not member.client.is_ready():
                raise ServerUnavailable(f"{member.client.url} is not ready")
            return member.client.embed_each(
                [images[row] for row in request.rows], crops=crop, outputs=outputs
            )

    def _take(self) -> _Member:
        """The least busy server that is not resting, in turn; wait when all rest."""
        while not self._closed:
            with self._lock:
                now = self._now()
                awake = [member for member in self._members if member.rest_until <= now]
                if awake:
                    member = min(awake, key=lambda one: (one.busy, one.taken))
                    member.busy += 1
                    member.taken = now
                    return member
                wait = min(member.rest_until for member in self._members) - now
            self._sleep(max(0.01, wait))
        raise ClientError("this fleet was closed")


class _Salvage:
    """What of one call was answered, what failed for good, and what is still to be sent."""

    def __init__(self, count: int) -> None:
        self.pending = [_Request(range(count))]
        self._answers: list[tuple[list[int], Embedded]] = []
        self._errors: dict[int, ClientError] = {}

    def judge(self, request: _Request, answer: EmbeddedEach) -> ClientError | None:
        """Sort a server's answer; return why part of it has to be sent again, if it has.

        Raises:
            ClientError: a failure that another attempt would not mend.
        """
        self._answers.append(([request.rows[place] for place in answer.rows], answer.embedded))
        again: list[int] = []
        problem: ClientError | None = None
        for place, error in answer.errors.items():
            row = request.rows[place]
            if isinstance(error, RequestRejected):
                self._errors[row] = RequestRejected(error.reason, row)
                continue
            if not isinstance(error, PASSING):
                raise error
            problem = error
            if not isinstance(error, ServerDied):
                again.append(row)
                continue
            if request.suspect and error.was_well:
                self._errors[row] = RequestAborted(
                    "the server died twice while it had this picture, which is not sent again "
                    f"({error})",
                    (row,),
                )
            else:
                self.pending.append(_Request([row], suspect=True))
        if again:
            self.pending.insert(0, _Request(again, request.suspect))
        return problem

    def result(self) -> EmbeddedEach:
        """Everything in the caller's order."""
        rows = [row for several, _ in self._answers for row in several]
        joined = join([embedded for _, embedded in self._answers])
        order = sorted(range(len(rows)), key=rows.__getitem__)
        embedded = replace(
            joined,
            embedding=None if joined.embedding is None else joined.embedding[order],
            code=None if joined.code is None else joined.code[order],
        )
        return EmbeddedEach(
            embedded, tuple(rows[place] for place in order), dict(sorted(self._errors.items()))
        )
