"""The blocking client."""

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar, cast

from unified_embedding.client import _kserve as kserve
from unified_embedding.client._base import PROBES, BaseClient, in_callers_rows, nothing
from unified_embedding.client._calls import Deadline
from unified_embedding.client._job import Crops, Job, Salvage, collect, halves
from unified_embedding.client._kserve import grpc, pb
from unified_embedding.client._metadata import Values, pairs
from unified_embedding.client._places import Places
from unified_embedding.client._results import (
    OUTPUTS,
    Answer,
    Embedded,
    EmbeddedEach,
    ServerInfo,
    StageStatistics,
    join,
)
from unified_embedding.client._retry import Attempts, Retry
from unified_embedding.client._stream import Picture, Stream
from unified_embedding.errors import (
    ClientError,
    RequestRejected,
    ServerDied,
    ServerUnavailable,
)

_T = TypeVar("_T")


class EmbedderClient(BaseClient):
    """Blocking client. Use it as a context manager, or call `close`."""

    def embed(
        self,
        images: Sequence[bytes],
        *,
        crops: Crops = None,
        outputs: Collection[str] = OUTPUTS,
        timeout: float | None = None,
    ) -> Embedded:
        """Embed encoded pictures (JPEG, PNG, WebP, GIF, BMP, TIFF): all of them, or raise.

        Args:
            images: encoded bytes of each picture.
            crops: the part of the upright picture to embed: one Box for all, or one Box or
                None (the whole picture) for each.
            outputs: "embedding", "code" or both; what is not asked for is not computed.
            timeout: seconds for the whole call; by default the client's.

        Raises:
            RequestRejected: the server refused a picture; `row` is its index in `images`.
                With several bad pictures in different requests, the first of them.
            ServerUnavailable: not reachable or not ready, for as long as `retry` waits.
            Overloaded: the server has too much work to answer in time.
            DeadlineExceeded: the list was not answered in time.
            RequestAborted: the server died twice while it had the same request; `rows` are
                that request's pictures.
            VersionMismatch: another version than expected, or two versions in one list.
            ServerError: anything else the server answered.
            TypeError, ValueError: the arguments do not fit each other.
        """
        job, deadline = Job.of(images, crops, outputs), self._deadline(timeout)
        server = self._info(deadline)
        requests = job.split(server.max_batch_size)
        if not requests:
            return nothing(server, job)
        return join(self._map(lambda rows: self._whole(job, rows, deadline), requests))

    def embed_each(
        self,
        images: Sequence[bytes],
        *,
        crops: Crops = None,
        outputs: Collection[str] = OUTPUTS,
        timeout: float | None = None,
    ) -> EmbeddedEach:
        """Embed every picture that can be, and report the others by row.

        The arguments are those of `embed`. A picture the server refuses costs its neighbours
        nothing: they are sent again without it. When the server dies, the pictures it had are
        sent again one at a time, so that one that ends it twice costs itself alone.

        Raises:
            ServerUnavailable, Overloaded, DeadlineExceeded, ServerError: the server could not
                even be asked what it serves; later failures stand in the result.
            VersionMismatch: as `embed`.
            TypeError, ValueError: the arguments do not fit each other.
        """
        job, deadline = Job.of(images, crops, outputs), self._deadline(timeout)
        server = self._info(deadline)
        requests = job.split(server.max_batch_size)
        salvaged = self._map(lambda rows: self._salvage(job, rows, deadline), requests)
        return collect(salvaged, nothing(server, job))

    def embed_iter(
        self,
        images: Iterable[Picture],
        *,
        outputs: Collection[str] = OUTPUTS,
        timeout: float | None = None,
        batch: int | None = None,
    ) -> Iterator[Answer]:
        """Embed a stream of any length: one answer for each picture, in the stream's order.

        >>> for path, answer in zip(paths, client.embed_iter(path.read_bytes() for path in paths)):
        ...     if isinstance(answer, Embedded):
        ...         index.add([path.name], answer.code, answer.origin)
        ...     else:
        ...         print(path, answer.reason)

        At most `max_inflight` requests are read ahead of the answer that is due, so that memory
        stays bounded; `images` is asked for pictures in the caller's thread, between answers.

        Args:
            images: encoded bytes of each picture, or a pair of them and the Box to embed.
            outputs: as of `embed`.
            timeout: seconds for each request from when its last picture was read, not for the
                stream; by default the client's.
            batch: pictures in a request, which is sent when it is full; by default as many as
                the server takes. 1 for a source that delivers seldom.

        Yields:
            Embedded: of one row.
            RequestRejected, RequestAborted: why this picture cannot be embedded; `row` is its
                place in the stream. The stream goes on.

        Raises:
            ServerUnavailable, Overloaded, DeadlineExceeded, VersionMismatch, ServerError: as
                `embed`, where the picture's answer would stand. The stream ends: everything
                before has been answered.
            TypeError, ValueError: a picture is not bytes, or the arguments make no sense.
        """
        stream = Stream(outputs, batch)
        self._deadline(timeout)
        return self._answers(stream, images, timeout)

    def info(self, *, timeout: float | None = None) -> ServerInfo:
        """What the server runs, asked anew. Raises as `embed`."""
        return self._ask(self._deadline(timeout))

    def is_ready(self, *, timeout: float | None = None) -> bool:
        """Whether the server says that the model is ready, without retries.

        A server whose model process died may still say so: only an embedded picture proves it.
        For 30 s after a call of this client has found such a process, the answer is no; then a
        server whose restart was not seen has to embed a few plain pictures first.

        Raises:
            ServerUnavailable, DeadlineExceeded: the server cannot be reached.
        """
        return self._ready(self._deadline(timeout))

    def statistics(self, *, timeout: float | None = None) -> dict[str, StageStatistics]:
        """Running totals of each of the server's models, by name. Raises as `embed`."""
        request = pb.ModelStatisticsRequest()
        return kserve.statistics(self._call("ModelStatistics", request, self._deadline(timeout)))

    def close(self) -> None:
        """Close the connection; calls in flight fail."""
        self._closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _open(self) -> None:
        self._channel = self._channel_of(grpc)
        self._stub = kserve.Stub(grpc.intercept_channel(self._channel, *self._interceptors))
        self._lock = threading.Lock()
        self._places = Places(self._max_inflight)
        self._pool = ThreadPoolExecutor(self._max_inflight, "embedder-client")

    def _info(self, deadline: Deadline) -> ServerInfo:
        with _held(self._lock, deadline):
            self._check_open()
            if self._server is None:
                self._server = self._ask(deadline)
            return self._server

    def _ask(self, deadline: Deadline) -> ServerInfo:
        ensemble, embedder = (
            self._call("ModelConfig", pb.ModelConfigRequest(name=name), deadline)
            for name in (self.names.ensemble, self.names.embedder)
        )
        server = self._call("ServerMetadata", pb.ServerMetadataRequest(), deadline)
        return self._server_info(server, ensemble, embedder)

    def _answers(
        self, stream: Stream, images: Iterable[Picture], timeout: float | None
    ) -> Iterator[Answer]:
        stream.limit(self._info(self._deadline(timeout)).max_batch_size)
        waiting: deque[Future[Salvage]] = deque()
        try:
            for job in stream.jobs(images):
                rows = range(len(job.images))
                work = partial(self._salvage, job, rows, self._deadline(timeout))
                # In the caller's context, which holds its trace.
                waiting.append(self._pool.submit(copy_context().run, work))
                while waiting and (len(waiting) == self._max_inflight or waiting[0].done()):
                    yield from stream.answers(waiting.popleft().result())
            while waiting:
                yield from stream.answers(waiting.popleft().result())
        finally:
            for future in waiting:
                future.cancel()

    def _map(self, work: Callable[[range], _T], requests: Sequence[range]) -> list[_T]:
        if len(requests) < 2:
            return [work(rows) for rows in requests]
        futures = [self._pool.submit(copy_context().run, work, rows) for rows in requests]
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()

    def _whole(self, job: Job, rows: Sequence[int], deadline: Deadline) -> Embedded:
        """All of them, or raise. What is too much for one request is sent as two."""
        try:
            return self._send(job, rows, deadline)
        except RequestRejected as error:
            if error.row is not None or len(rows) < 2:
                raise
        return join([self._whole(job, half, deadline) for half in halves(rows)])

    def _salvage(self, job: Job, rows: Sequence[int], deadline: Deadline) -> Salvage:
        salvage = Salvage(rows, self._retry)
        while salvage.pending:
            rows, death = salvage.pending.pop(0)
            attempts = Attempts(
                self._retry, self._lives, deadline, rows, death, divisible=len(rows) > 1
            )
            try:
                salvage.accept(rows, self._send(job, rows, deadline, attempts))
            except ClientError as error:
                salvage.fail(rows, error)
        return salvage

    def _send(
        self, job: Job, rows: Sequence[int], deadline: Deadline, attempts: Attempts | None = None
    ) -> Embedded:
        attempts = attempts or Attempts(self._retry, self._lives, deadline, rows)
        while True:
            try:
                response = self._infer(job, rows, deadline, attempts.death is not None)
                answer = kserve.embedded(response, job.outputs, len(rows))
                if self._is_news(answer):
                    self._server = self._ask(deadline)
                return self._checked(answer)
            except ServerUnavailable as problem:
                pause = attempts.pause(problem)
            time.sleep(pause)

    def _infer(self, job: Job, rows: Sequence[int], deadline: Deadline, suspect: bool) -> Any:
        """One attempt. A suspect travels alone, so that nothing else can end the server then."""
        with self._places.take(deadline, alone=suspect):
            if suspect:
                self._check_ready(deadline)
            with in_callers_rows(rows):
                request = self._request(job, rows, deadline)
                return self._once("ModelInfer", request, deadline)

    def _check_ready(self, deadline: Deadline) -> None:
        try:
            ready = self._ready(deadline)
        except ServerDied as problem:  # Over a question, not over the suspect.
            raise ServerUnavailable(str(problem)) from problem
        if not ready:
            raise self._not_ready()

    def _ready(self, deadline: Deadline) -> bool:
        """Whether the server says so, and may be believed."""
        request = pb.ModelReadyRequest(name=self.names.ensemble)
        answer = self._once("ModelReady", request, deadline)
        if not answer.ready or self._lives.ill:
            return False
        if self._lives.doubtful:
            try:
                for _ in range(PROBES):
                    self._once("ModelInfer", self._probe(deadline), deadline)
            except ServerDied:
                return False
            self._lives.healed()
        return True

    def _call(
        self, method: str, request: Any, deadline: Deadline, retry: Retry | None = None
    ) -> Any:
        attempts = Attempts(retry or self._retry, self._lives, deadline)
        while True:
            try:
                return self._once(method, request, deadline)
            except ServerUnavailable as problem:
                pause = attempts.pause(problem)
            time.sleep(pause)

    def _once(self, method: str, request: Any, deadline: Deadline) -> Any:
        self._check_open()
        values = self._metadata() if callable(self._metadata) else self._metadata
        metadata = pairs(cast(Values, values))
        sent = self._lives.sent()
        try:
            call = getattr(self._stub, method)
            response = call(request, timeout=deadline.remaining(), metadata=metadata)
        except grpc.RpcError as error:
            raise self._problem(error, sent) from None
        self._note(response, sent)
        return response


@contextmanager
def _held(lock: threading.Lock, deadline: Deadline) -> Iterator[None]:
    if not lock.acquire(timeout=deadline.remaining()):
        raise deadline.exceeded()
    try:
        yield
    finally:
        lock.release()
