"""The asyncio client."""

import asyncio
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Sequence,
)
from contextlib import asynccontextmanager
from functools import cached_property
from inspect import isawaitable
from types import TracebackType
from typing import Any, Self, TypeVar

from unified_embedding.client import _kserve as kserve
from unified_embedding.client._base import PROBES, BaseClient, in_callers_rows, nothing
from unified_embedding.client._calls import Deadline
from unified_embedding.client._job import Crops, Job, Salvage, collect, halves
from unified_embedding.client._kserve import grpc, pb
from unified_embedding.client._metadata import pairs
from unified_embedding.client._places import AsyncPlaces
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
from unified_embedding.errors import ClientError, RequestRejected, ServerDied, ServerUnavailable

_T = TypeVar("_T")


class AsyncEmbedderClient(BaseClient):
    """Asyncio client: the methods of EmbedderClient, awaited, with the same results and errors.

    Use it as an asynchronous context manager, or await `close`. A client belongs to the event
    loop of its first call. Cancelling a call cancels its requests.
    """

    async def embed(
        self,
        images: Sequence[bytes],
        *,
        crops: Crops = None,
        outputs: Collection[str] = OUTPUTS,
        timeout: float | None = None,
    ) -> Embedded:
        """Embed encoded pictures: all of them, or raise. See EmbedderClient.embed."""
        job, deadline = Job.of(images, crops, outputs), self._deadline(timeout)
        server = await self._info(deadline)
        requests = job.split(server.max_batch_size)
        if not requests:
            return nothing(server, job)
        return join(await _map(lambda rows: self._whole(job, rows, deadline), requests))

    async def embed_each(
        self,
        images: Sequence[bytes],
        *,
        crops: Crops = None,
        outputs: Collection[str] = OUTPUTS,
        timeout: float | None = None,
    ) -> EmbeddedEach:
        """Embed every picture that can be, report the rest. See EmbedderClient.embed_each."""
        job, deadline = Job.of(images, crops, outputs), self._deadline(timeout)
        server = await self._info(deadline)
        requests = job.split(server.max_batch_size)
        salvaged = await _map(lambda rows: self._salvage(job, rows, deadline), requests)
        return collect(salvaged, nothing(server, job))

    def embed_iter(
        self,
        images: Iterable[Picture] | AsyncIterable[Picture],
        *,
        outputs: Collection[str] = OUTPUTS,
        timeout: float | None = None,
        batch: int | None = None,
    ) -> AsyncGenerator[Answer, None]:
        """Embed a stream of any length. See EmbedderClient.embed_iter.

        An answer that is there is given while the next picture is still waited for.
        """
        stream = Stream(outputs, batch)
        self._deadline(timeout)
        return self._answers(stream, images, timeout)

    async def info(self, *, timeout: float | None = None) -> ServerInfo:
        """What the server runs, asked anew. Raises as `embed`."""
        return await self._ask(self._deadline(timeout))

    async def is_ready(self, *, timeout: float | None = None) -> bool:
        """Whether the server says that the model is ready. See EmbedderClient.is_ready."""
        return await self._ready(self._deadline(timeout))

    async def statistics(self, *, timeout: float | None = None) -> dict[str, StageStatistics]:
        """Running totals of each of the server's models, by name. Raises as `embed`."""
        request = pb.ModelStatisticsRequest()
        answer = await self._call("ModelStatistics", request, self._deadline(timeout))
        return kserve.statistics(answer)

    async def close(self) -> None:
        """Close the connection; calls in flight fail."""
        self._closed = True
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    def _open(self) -> None:
        self._lock = asyncio.Lock()
        self._places = AsyncPlaces(self._max_inflight)

    # An asyncio channel binds to the loop that runs when it is created: not before the first call.
    @cached_property
    def _channel(self) -> Any:
        return self._channel_of(grpc.aio, interceptors=self._interceptors)

    @cached_property
    def _stub(self) -> Any:
        return kserve.Stub(self._channel)

    async def _info(self, deadline: Deadline) -> ServerInfo:
        self._check_open()
        if self._server is not None:
            return self._server
        async with _held(self._lock, deadline):
            self._check_open()
            if self._server is None:
                self._server = await self._ask(deadline)
            return self._server

    async def _ask(self, deadline: Deadline) -> ServerInfo:
        ensemble, embedder = [
            await self._call("ModelConfig", pb.ModelConfigRequest(name=name), deadline)
            for name in (self.names.ensemble, self.names.embedder)
        ]
        server = await self._call("ServerMetadata", pb.ServerMetadataRequest(), deadline)
        return self._server_info(server, ensemble, embedder)

    async def _answers(
        self,
        stream: Stream,
        images: Iterable[Picture] | AsyncIterable[Picture],
        timeout: float | None,
    ) -> AsyncGenerator[Answer, None]:
        stream.limit((await self._info(self._deadline(timeout))).max_batch_size)
        jobs = stream.jobs_async(images)
        reading: asyncio.Future[Job | None] | None = asyncio.ensure_future(anext(jobs, None))
        waiting: deque[asyncio.Future[Salvage]] = deque()
        try:
            while reading or waiting:
                full = len(waiting) == self._max_inflight
                due: list[asyncio.Future[Any]] = [*waiting][:1]
                if reading and not full:
                    due.append(reading)
                await asyncio.wait(due, return_when=asyncio.FIRST_COMPLETED)
                if reading and reading.done() and not full:
                    job, reading = reading.result(), None
                    if job is not None:
                        work = self._salvage(job, range(len(job.images)), self._deadline(timeout))
                        waiting.append(asyncio.ensure_future(work))
                        reading = asyncio.ensure_future(anext(jobs, None))
                while waiting and waiting[0].done():
                    for answer in stream.answers(waiting.popleft().result()):
                        yield answer
        finally:
            await _end([*([reading] if reading else []), *waiting])

    async def _whole(self, job: Job, rows: Sequence[int], deadline: Deadline) -> Embedded:
        """All of them, or raise. What is too much for one request is sent as two."""
        try:
            return await self._send(job, rows, deadline)
        except RequestRejected as error:
            if error.row is not None or len(rows) < 2:
                raise
        return join([await self._whole(job, half, deadline) for half in halves(rows)])

    async def _salvage(self, job: Job, rows: Sequence[int], deadline: Deadline) -> Salvage:
        salvage = Salvage(rows, self._retry)
        while salvage.pending:
            rows, death = salvage.pending.pop(0)
            attempts = Attempts(
                self._retry, self._lives, deadline, rows, death, divisible=len(rows) > 1
            )
            try:
                salvage.accept(rows, await self._send(job, rows, deadline, attempts))
            except ClientError as error:
                salvage.fail(rows, error)
        return salvage

    async def _send(
        self, job: Job, rows: Sequence[int], deadline: Deadline, attempts: Attempts | None = None
    ) -> Embedded:
        attempts = attempts or Attempts(self._retry, self._lives, deadline, rows)
        while True:
            try:
                response = await self._infer(job, rows, deadline, attempts.death is not None)
                answer = kserve.embedded(response, job.outputs, len(rows))
                if self._is_news(answer):
                    self._server = await self._ask(deadline)
                return self._checked(answer)
            except ServerUnavailable as problem:
                pause = attempts.pause(problem)
            await asyncio.sleep(pause)

    async def _infer(self, job: Job, rows: Sequence[int], deadline: Deadline, suspect: bool) -> Any:
        """One attempt. A suspect travels alone, so that nothing else can end the server then."""
        async with self._places.take(deadline, alone=suspect):
            if suspect:
                await self._check_ready(deadline)
            with in_callers_rows(rows):
                request = self._request(job, rows, deadline)
                return await self._once("ModelInfer", request, deadline)

    async def _check_ready(self, deadline: Deadline) -> None:
        try:
            ready = await self._ready(deadline)
        except ServerDied as problem:  # Over a question, not over the suspect.
            raise ServerUnavailable(str(problem)) from problem
        if not ready:
            raise self._not_ready()

    async def _ready(self, deadline: Deadline) -> bool:
        """Whether the server says so, and may be believed."""
        request = pb.ModelReadyRequest(name=self.names.ensemble)
        answer = await self._once("ModelReady", request, deadline)
        if not answer.ready or self._lives.ill:
            return False
        if self._lives.doubtful:
            try:
                for _ in range(PROBES):
                    await self._once("ModelInfer", self._probe(deadline), deadline)
            except ServerDied:
                return False
            self._lives.healed()
        return True

    async def _call(
        self, method: str, request: Any, deadline: Deadline, retry: Retry | None = None
    ) -> Any:
        attempts = Attempts(retry or self._retry, self._lives, deadline)
        while True:
            try:
                return await self._once(method, request, deadline)
            except ServerUnavailable as problem:
                pause = attempts.pause(problem)
            await asyncio.sleep(pause)

    async def _once(self, method: str, request: Any, deadline: Deadline) -> Any:
        self._check_open()
        values = self._metadata() if callable(self._metadata) else self._metadata
        metadata = pairs(await values if isawaitable(values) else values)
        sent, cancelled = self._lives.sent(), _cancellations()
        try:
            call = getattr(self._stub, method)
            response = await call(request, timeout=deadline.remaining(), metadata=metadata)
        except grpc.RpcError as error:
            raise self._problem(error, sent) from None
        except asyncio.CancelledError:
            if self._closed and _cancellations() == cancelled:  # By `close`, not by the caller.
                raise self._closed_error() from None
            raise
        self._note(response, sent)
        return response


async def _map(work: Callable[[range], Awaitable[_T]], requests: Sequence[range]) -> list[_T]:
    if len(requests) < 2:
        return [await work(rows) for rows in requests]
    tasks = [asyncio.ensure_future(work(rows)) for rows in requests]
    try:
        # In order, so that of several bad pictures the first one is reported.
        return [await task for task in tasks]
    finally:
        await _end(tasks)


async def _end(tasks: Sequence[asyncio.Future[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _cancellations() -> int:
    """How often the caller's task was cancelled, cancellations that it has swallowed included."""
    task = asyncio.current_task()
    return task.cancelling() if task else 0


@asynccontextmanager
async def _held(lock: asyncio.Lock, deadline: Deadline) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(deadline.remaining()):
            await lock.acquire()
    except TimeoutError:
        raise deadline.exceeded() from None
    try:
        yield
    finally:
        lock.release()
