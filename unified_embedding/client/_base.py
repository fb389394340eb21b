"""What the blocking and the asyncio client share: configuration, and checks of every answer."""

import io
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any, Final

import numpy as np
from PIL import Image

from unified_embedding.client import _kserve as kserve
from unified_embedding.client import _proxy as proxy
from unified_embedding.client._calls import (
    CHANNEL_OPTIONS,
    DEFAULT_URL,
    TLS,
    Deadline,
    split_url,
)
from unified_embedding.client._job import Job
from unified_embedding.client._kserve import grpc
from unified_embedding.client._metadata import AsyncMetadata, pairs
from unified_embedding.client._results import CODE, EMBEDDING, OUTPUTS, Embedded, ServerInfo
from unified_embedding.client._retry import Lives, Retry, Sent
from unified_embedding.errors import (
    ClientError,
    EngineWarning,
    RequestRejected,
    ServerUnavailable,
    SettingsError,
    VersionMismatch,
    shown,
)
from unified_embedding.names import DEFAULT, Names
from unified_embedding.origin import Origin

# One might be answered by a living process of a model, of which another is dead.
PROBES: Final = 4


class BaseClient(ABC):
    """Configuration of a client. No call is made before the first method is."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        expect_version: str | None = None,
        expect_engine: str | None = None,
        timeout: float = 60.0,
        max_inflight: int = 16,
        retry: Retry | None = None,
        tls: TLS | None = None,
        metadata: AsyncMetadata | None = None,
        interceptors: Sequence[Any] = (),
        send_deadline: bool = True,
        model: str = "",
    ) -> None:
        """Configure a client.

        Args:
            url: the server's gRPC address, host:port. Of a name with several addresses all
                are used in turn. host:port/model names the model too.
            expect_version: version of the stored vectors that the answers are for; from a server
                whose vectors may not be compared with them comes VersionMismatch.
            expect_engine: engine id the vectors should have; by default that of the first
                answer. Another one is accepted with one EngineWarning.
            timeout: seconds a call may take in all, every request and retry included.
            max_inflight: most requests in flight at once, over all callers of this client.
            retry: how long to call again while the server is away; by default until the
                call's deadline, and two seconds when it has never answered.
            tls: certificates; None for an unencrypted connection.
            metadata: sent with every call, for instance `bearer(token)`; or what returns it,
                asked before every call (the asyncio client awaits it where it must be).
            interceptors: gRPC's, the first outermost: grpc.UnaryUnaryClientInterceptor, for
                the asyncio client grpc.aio.UnaryUnaryClientInterceptor.
            send_deadline: tell the server by when an answer is needed, so that it drops in
                time what it cannot answer in time. Needs clocks that differ by much less than
                the timeout; switch it off for a client with an unsynchronised clock.
            model: name of the model to ask, where the server has several embedders; by default
                that of the url, else "unified_embedding".
        """
        Deadline(timeout)
        if max_inflight < 1:
            raise ValueError(f"max_inflight {max_inflight} is not a positive number of requests")
        self.url, named = split_url(url)
        if model and named and model != named:
            raise SettingsError(
                f"the address {shown(url)} names a model, and model is {shown(model)}"
            )
        self.names = Names.of(model or named or DEFAULT.ensemble)
        self._expect_version = expect_version
        self._engine = expect_engine
        self._engine_warned = False
        self._timeout = timeout
        self._max_inflight = max_inflight
        self._retry = retry or Retry()
        self._send_deadline = send_deadline
        self._metadata = metadata or {}
        if not callable(self._metadata):
            pairs(self._metadata)
        self._interceptors = list(interceptors)
        self._credentials = grpc.ssl_channel_credentials(**tls.read()) if tls else None
        self._server: ServerInfo | None = None
        self._compatible: dict[str, tuple[str, ...]] = {}
        self._lives = Lives()
        self._closed = False
        self._proxy = ""
        self._open()

    @abstractmethod
    def _open(self) -> None:
        """Create the channel, or what creates it, and what bounds the calls."""

    def _channel_of(self, channels: Any, **more: Any) -> Any:
        """Open a channel; `channels` is the module grpc or grpc.aio, which may take `more`."""
        self._proxy = proxy.advice(self.url)  # gRPC reads the environment now and never again.
        more["options"] = CHANNEL_OPTIONS
        if self._credentials is None:
            return channels.insecure_channel(self.url, **more)
        return channels.secure_channel(self.url, self._credentials, **more)

    def _deadline(self, timeout: float | None) -> Deadline:
        return Deadline(self._timeout if timeout is None else timeout)

    def _request(self, job: Job, rows: Sequence[int], deadline: Deadline) -> Any:
        told = deadline if self._send_deadline else None
        return kserve.infer_request(self.names.ensemble, job, rows, told)

    def _probe(self, deadline: Deadline) -> Any:
        """A request of one picture that can harm nobody."""
        return self._request(Job.of([plain_picture()], None, OUTPUTS), [0], deadline)

    def _check_open(self) -> None:
        if self._closed:
            raise self._closed_error()

    def _closed_error(self) -> ClientError:
        return ClientError(f"this client of {self.url} was closed")

    def _not_ready(self) -> ServerUnavailable:
        return ServerUnavailable(f"{self.url} answers, but its model is not ready")

    def _note(self, response: Any, sent: Sent) -> None:
        """What an answer tells about the server; one that is not ready is about to end."""
        known = self._lives.answered if getattr(response, "ready", True) else self._lives.lost
        known(sent)

    def _problem(self, error: Any, sent: Sent) -> ClientError:
        """What a failed call means, and what it tells about the server."""
        if self._closed and error.code() == grpc.StatusCode.CANCELLED:
            return self._closed_error()
        advice = "" if self._lives.met else self._proxy
        problem = kserve.client_error(error, self.url, sent.well, advice)
        if kserve.stub_died(error):
            self._lives.fell_ill(sent)
        elif isinstance(problem, ServerUnavailable):
            self._lives.lost(sent)
        return problem

    def _is_news(self, answer: Embedded) -> bool:
        """Whether the server changed its model since it was asked what it serves."""
        return answer.version not in self._compatible

    def _checked(self, answer: Embedded) -> Embedded:
        # Where even the server's description is of another version, nothing is declared.
        compatible = self._compatible.get(answer.version, ())
        answer = replace(answer, compatible_with=compatible)
        self._check(answer.origin)
        return answer

    def _server_info(self, server: Any, ensemble: Any, embedder: Any) -> ServerInfo:
        info = kserve.server_info(self.names, server, ensemble, embedder)
        self._compatible[info.version] = info.compatible_with
        self._check(info.origin)
        return info

    def _check(self, origin: Origin) -> None:
        version, engine = origin.version, origin.engine
        if self._expect_version is not None and not origin.may_search(self._expect_version):
            raise VersionMismatch(
                f"{self.url} serves embedder version {version}, expected {self._expect_version}: "
                "their vectors must not be mixed. Serve the expected version, or embed everything "
                "again with the new one"
            )
        if self._engine is None:
            self._engine = engine
        if engine != self._engine and not self._engine_warned:
            self._engine_warned = True
            warnings.warn(
                f"{self.url} answers with engine {engine}, expected {self._engine}. Both run "
                f"embedder version {version}, so their vectors may be compared, but a few "
                "bits differ (bf16 against fp32: 1.2 % of them on average)",
                EngineWarning,
                stacklevel=2,
            )


@cache
def plain_picture() -> bytes:
    """A small JPEG that every server embeds, to ask whether one does."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    return file.getvalue()


@contextmanager
def in_callers_rows(rows: Sequence[int]) -> Iterator[None]:
    """Let a RequestRejected name the row of the caller's list instead of the request's."""
    try:
        yield
    except RequestRejected as error:
        row = None if error.row is None or error.row >= len(rows) else rows[error.row]
        raise RequestRejected(error.reason, row) from error


def nothing(server: ServerInfo, job: Job) -> Embedded:
    """The answer to an empty list."""
    return Embedded(
        np.empty((0, server.dim), np.float32) if EMBEDDING in job.outputs else None,
        np.empty((0, server.code_bytes), np.uint8) if CODE in job.outputs else None,
        server.version,
        server.engine,
        server.compatible_with,
    )
