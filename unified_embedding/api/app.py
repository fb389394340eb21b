"""The ASGI application: routes, keys, limits and the way of a request through them.

POST /v1/embeddings        pictures in, vectors and packed codes out
POST /v1/search            a picture, an id or a vector in, hits of an index out
GET  /v1/index             what is searched
GET  /v1/models[/ID]       what is served: width, version, engine, limits
GET  /v1/health/live       this process answers
GET  /v1/health/ready      a picture was embedded in the last seconds
GET  /metrics              Prometheus
GET  /openapi.json, /docs  these routes, for programs and for people
GET  /                     the search page (`page.py`), where it is switched on
"""

import contextlib
import os
import re
import uuid
from collections.abc import AsyncIterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import UNSET
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from unified_embedding.api import openapi
from unified_embedding.api.bodies import Bodies, BodyLimits, media_type
from unified_embedding.api.gate import Gate, timeout_of
from unified_embedding.api.guard import Guard, Hosts
from unified_embedding.api.keys import Keys
from unified_embedding.api.log import Book, Visit
from unified_embedding.api.pictures import MAX_IMAGES, Picture, parse_input
from unified_embedding.api.problems import ApiError, FailedImage, of_client
from unified_embedding.api.servers import Servers
from unified_embedding.api.wire import (
    MODEL,
    Embeddings,
    EmbeddingsRequest,
    ServedModel,
    ServedModels,
    Status,
    no_model,
    parse,
    rows,
    wanted_version,
)
from unified_embedding.client import Connection, Embedded, ServerInfo
from unified_embedding.errors import ClientError, ImageError, SettingsError
from unified_embedding.image import Box, Limits, parse_crops

if TYPE_CHECKING:
    from unified_embedding.api.search import Current
    from unified_embedding.index import CodeIndex

traceparent: ContextVar[str] = ContextVar("traceparent", default="")
"""The W3C trace context of the request at hand, passed on to the embedding server."""


def _trace() -> dict[str, str]:
    found = traceparent.get()
    return {"traceparent": found} if found else {}


_REQUEST_ID: Final = re.compile(r"[\w.:-]{1,64}")
_OPEN: Final = ("/v1/health/live", "/v1/health/ready", "/metrics", "/openapi.json", "/docs")
_DOCS_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"


@dataclass(frozen=True)
class Settings:
    """How the API serves.

    Attributes:
        urls: gRPC addresses of the embedding servers.
        connection: TLS and token of them.
        keys: file of bearer keys (`keys.py`); None lets everybody in.
        origins: web origins whose pages may call (CORS); "*" for all.
        hosts: names that it answers to; None for every name.
        page: whether the search page is there, which needs an index and has no login.
        roots: folders whose pictures may be read; by default those that the corpus was made from.
        bodies: what request bodies may cost.
        pictures_in_work: most pictures that are being embedded at a time.
        timeout: most seconds that a request may wait for its answer.
    """

    urls: Sequence[str]
    connection: Connection = field(default_factory=Connection)
    keys: Path | None = None
    origins: Sequence[str] = ()
    hosts: Hosts | None = None
    page: bool = False
    roots: Sequence[Path] = ()
    bodies: BodyLimits = field(default_factory=BodyLimits)
    pictures_in_work: int = 1024
    timeout: float = 60.0


class Api:
    """The application: an ASGI callable.

    Attributes:
        draining: set when the process is about to end; it is not ready then.
        search: the routes over the index; None without one.
    """

    def __init__(
        self,
        settings: Settings,
        servers: Servers | None = None,
        book: Book | None = None,
        index: "str | os.PathLike[str] | CodeIndex | None" = None,
    ) -> None:
        """Build the application; with an `index`, or its folder, it has `POST /v1/search`.

        Raises:
            KeyFileError: the file of keys is missing or malformed.
            CodeIndexError: there is no sound index in the folder.
            SettingsError: a page without an index, or beside keys.
        """
        if settings.page and index is None:
            raise SettingsError("the page searches an index: name its folder by --index")
        if settings.page and settings.keys is not None:
            raise SettingsError(
                "the page has no login, so it cannot stand beside --keys: serve it by a process of "
                "its own, behind your own proxy"
            )
        self.settings, self.limits = settings, Limits.from_environment()
        self.servers = servers or Servers(settings.urls, settings.connection, _trace)
        self.book = book or Book()
        self.bodies = Bodies(settings.bodies)
        self.gate = Gate(settings.pictures_in_work)
        self.draining = False
        self.search: Current | None = None
        routes = [
            Route("/v1/embeddings", self.embeddings, methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            Route("/v1/health/live", self.live),
            Route("/v1/health/ready", self.ready),
            Route("/metrics", self.metrics),
            Route("/openapi.json", self.openapi),
            Route("/docs", self.docs),
        ]
        if index is not None:
            self.search = self._searching(index)
            routes += self.search.routes
        if settings.page and self.search is not None:
            from unified_embedding.api.page import Page

            routes += Page(self.search).routes
        cors = Middleware(
            CORSMiddleware,
            allow_origins=list(settings.origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after", "x-should-retry", "server-timing"],
        )
        # CORS outside, so that a browser may read why it was refused.
        middleware = [cors] if settings.origins else []
        if settings.hosts is not None:
            middleware.append(Middleware(Guard, hosts=settings.hosts, origins=settings.origins))
        if settings.keys is not None:
            middleware.append(Middleware(_Door, keys=Keys(settings.keys)))
        handlers: dict[Any, Any] = {ApiError: _problem, HTTPException: _http, Exception: _fault}
        self._app = Starlette(
            routes=routes,
            exception_handlers=handlers,
            lifespan=self._lifespan,
            middleware=middleware,
        )

    def _searching(self, index: "str | os.PathLike[str] | CodeIndex") -> "Current":
        # FAISS and pyarrow are needed for these routes alone.
        from unified_embedding.api.search import Current, Search
        from unified_embedding.index import CodeIndex, RecallMonitor
        from unified_embedding.index.following import Following
        from unified_embedding.search.searching import pictures_of

        def searches(found: CodeIndex) -> Search:
            if found.header.settings.kind != "flat" and found.monitor is None:
                found.monitor = RecallMonitor()
            return Search(
                found,
                pictures_of(found, self.settings.roots),
                self.servers,
                self.bodies,
                self.gate,
                self.settings.timeout,
                self.settings.page,
            )

        if isinstance(index, CodeIndex):
            return Current(searches(index))
        return Current(Following(index, searches, lambda old: old.close()))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request: its id, its trace, its line in the log."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get(b"x-request-id", "")
        visit = Visit(given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex)
        scope.setdefault("state", {})["visit"] = visit
        traceparent.set(headers.get(b"traceparent", ""))
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", visit.id.encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
                if visit.steps:
                    message["headers"].append((b"server-timing", visit.server_timing.encode()))
            await send(message)

        try:
            await self._app(scope, receive, answer)
        finally:
            self.book.close(visit, scope["method"], scope["path"], status)

    async def embeddings(self, request: Request) -> Response:
        """`POST /v1/embeddings`: see docs/api.md."""
        timeout = timeout_of(request.headers, self.settings.timeout)
        kind = media_type(request)
        is_json = kind == "application/json"
        if not is_json and not kind.startswith("image/") and kind != "application/octet-stream":
            raise ApiError(
                415,
                f"content type {kind[:80]!r} is not taken: send application/json, or one picture "
                "as the body with its own type (image/jpeg)",
                "unsupported_media_type",
            )
        most = None if is_json else self.limits.max_bytes
        async with self.bodies.read(request, most) as body:
            request.state.visit.mark("upload")
            if is_json:
                wanted = parse(body, EmbeddingsRequest)
                pictures = parse_input(wanted.input)
            else:
                options, crop = _of_query(request)
                wanted = parse(msgspec.json.encode(options), EmbeddingsRequest)
                if not body:
                    raise ApiError(
                        400, "the body is empty: send the picture's bytes", "empty_input"
                    )
                pictures = [Picture(bytes(body), crop)]
            return await self._embedded(request, wanted, pictures, timeout)

    async def _embedded(
        self,
        request: Request,
        wanted: EmbeddingsRequest,
        pictures: list[Picture],
        timeout: float,
    ) -> Response:
        visit: Visit = request.state.visit
        visit.pictures, visit.bytes = len(pictures), sum(len(one.data) for one in pictures)
        version = wanted_version(wanted.model) or await self._usual_version()
        visit.mark("parse")
        with self.gate.admit(len(pictures)):
            found = await self.servers.embed(
                [one.data for one in pictures],
                [one.crop for one in pictures],
                wanted.outputs,
                timeout,
                version,
            )
        visit.mark("embed")
        self.book.pictures.labels("embedded").inc(len(found.rows))
        self.book.pictures.labels("failed").inc(len(found.errors))
        problems = [_of_picture(index, error) for index, error in sorted(found.errors.items())]
        if problems and (not wanted.partial or not found.rows):
            raise _together(problems, len(pictures))
        answer, width = found.embedded, _width(found.embedded)
        visit.version = answer.version
        if wanted.dimensions not in (None, width):
            raise ApiError(
                400,
                f"dimensions {wanted.dimensions}: this embedder has {width}",
                "invalid_value",
                "dimensions",
            )
        said = Embeddings(
            rows(answer, found.rows, wanted.encoding_format),
            wanted.model,
            answer.version,
            answer.engine,
            {"prompt_tokens": 0, "total_tokens": 0, "images": len(found.rows)},
            [problem.images[0] for problem in problems] if wanted.partial else UNSET,
        )
        return _json(said)

    async def _usual_version(self) -> str | None:
        """The version of vectors when none is asked for: what is searched, if it is served.

        So that callers who store them, or search with them, do not get both of two versions.
        """
        if self.search is None:
            return None
        version = (await self.search.now()).index.header.origin.version
        return version if await self.servers.serves(version) else None

    async def models(self, request: Request) -> Response:
        """`GET /v1/models`."""
        return _json(ServedModels(await self._models()))

    async def model(self, request: Request) -> Response:
        """`GET /v1/models/ID`."""
        name = request.path_params["name"]
        for model in await self._models():
            if model.id == name:
                return _json(model)
        raise no_model(name, "GET /v1/models lists what is")

    async def live(self, request: Request) -> Response:
        """`GET /v1/health/live`."""
        return _json(Status("live"))

    async def ready(self, request: Request) -> Response:
        """`GET /v1/health/ready`: 200 when a picture was embedded a moment ago, else 503."""
        if self.draining:
            raise ApiError(503, "this process is about to end", "draining")
        if not await self.servers.is_ready():
            raise ApiError(503, "no embedding server embeds pictures now", "unavailable")
        return _json(Status("ready"))

    async def metrics(self, request: Request) -> Response:
        """`GET /metrics`."""
        self.book.in_work.set(self.gate.in_work)
        self.book.held.set(self.bodies.held)
        return Response(self.book.page(), media_type="text/plain; version=0.0.4")

    async def openapi(self, request: Request) -> Response:
        """`GET /openapi.json`."""
        return _json(openapi.document(self.search is not None))

    async def docs(self, request: Request) -> Response:
        """`GET /docs`: the same for people, without anything from elsewhere."""
        return HTMLResponse(
            openapi.page(self.search is not None), headers={"Content-Security-Policy": _DOCS_POLICY}
        )

    async def _models(self) -> list[ServedModel]:
        infos = {info.version: info for info in await self.servers.infos()}
        first = next(iter(infos.values()))
        listed = [self._model(MODEL, first)]
        return listed + [self._model(f"{MODEL}@{v}", info) for v, info in infos.items()]

    def _model(self, name: str, info: ServerInfo) -> ServedModel:
        return ServedModel(
            id=name,
            created=0,
            owned_by="unified-embedding",
            version=info.version,
            engine=info.engine,
            compatible_with=info.compatible_with,
            dimensions=info.dim,
            code_bytes=info.code_bytes,
            limits={
                "images": MAX_IMAGES,
                "body_bytes": self.settings.bodies.bytes,
                "image_bytes": self.limits.max_bytes,
                "image_pixels": self.limits.max_pixels,
                "formats": list(self.limits.formats),
            },
        )

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        yield
        await self.servers.close()
        if self.search is not None:
            self.search.get().close()


class _Door:
    """Lets in who has a key."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app, self._keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in _OPEN:
            visit: Visit = scope["state"]["visit"]
            headers = dict(scope["headers"])
            try:
                visit.key = self._keys.name(headers.get(b"authorization", b"").decode("latin-1"))
            except ApiError as problem:
                visit.code = problem.code
                await problem.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _of_query(request: Request) -> tuple[dict[str, Any], Box | None]:
    """The options of a picture that is the body, ?encoding_format=base64&..., and its crop."""
    options: dict[str, Any] = {"input": ""}
    crop = None
    for name, value in request.query_params.items():
        if name == "embedding_type" and "," in value:
            options[name] = value.split(",")
        elif name in ("model", "encoding_format", "embedding_type"):
            options[name] = value
        elif name == "crop":
            try:
                crop = parse_crops(value, 1)[0]
            except ImageError as error:
                raise ApiError(400, str(error), "invalid_crop", "crop") from None
        else:
            raise ApiError(
                400,
                f"?{name[:80]} is not an option; there are model, encoding_format, "
                "embedding_type and crop",
                "invalid_value",
                name[:80],
            )
    return options, crop


def _width(answer: Embedded) -> int:
    if answer.embedding is not None:
        return answer.embedding.shape[1]
    assert answer.code is not None  # one of the two was asked for
    return 8 * answer.code.shape[1]


def _of_picture(index: int, error: ClientError) -> ApiError:
    param = f"input[{index}]"
    problem = of_client(error, param)
    image = FailedImage(index, problem.message, problem.code)
    return ApiError(problem.status, problem.message, problem.code, param, problem.kind, [image])


def _together(problems: Sequence[ApiError], count: int) -> ApiError:
    """The answer to a request of which pictures failed: the gravest of what happened to them."""
    first = max(problems, key=lambda problem: problem.status)
    message = first.message
    if count > 1:
        message = f"{len(problems)} of {count} pictures were not embedded; {first.param}: {message}"
    images = [image for problem in problems for image in problem.images]
    return ApiError(first.status, message, first.code, first.param, first.kind, images)


def _json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")


async def _problem(request: Request, problem: ApiError) -> Response:
    request.state.visit.code = problem.code
    return problem.response()


async def _http(request: Request, error: HTTPException) -> Response:
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    sentence = f"{request.method} {request.url.path[:80]}: {error.detail}"
    response = await _problem(request, ApiError(error.status_code, sentence, code))
    response.headers.update(error.headers or {})
    return response


async def _fault(request: Request, error: Exception) -> Response:
    # Starlette raises the error again when this is sent, so that it stands in the log.
    problem = ApiError(500, "the server failed at this request; its log says why", "internal")
    return await _problem(request, problem)
