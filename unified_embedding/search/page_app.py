"""The search page's HTTP side: photos in, hits as JSON out. Nothing is stored.

    GET  /                    the page, and /app.js, /style.css
    GET  /api/status          what server and index hold, and the limits
    POST /api/search          a photo as body; crop=x0,y0,x1,y1, k, compare=1
    GET  /api/like?id=...     search from a row of the index; k, compare=1
    GET  /api/picture?id=...  a row's picture, small
    GET  /api/examples        rows to begin with

Errors are JSON {"error": sentence} with a fitting status. None names a folder or repeats more
than 80 characters of what was sent.
"""

import contextlib
import io
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread
import numpy as np
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from unified_embedding import Box
from unified_embedding.client import AsyncEmbedderClient, EmbedderClient, Retry, StageStatistics
from unified_embedding.errors import (
    ClientError,
    DeadlineExceeded,
    ImageError,
    IndexMismatch,
    Overloaded,
    RequestAborted,
    RequestRejected,
    ServerUnavailable,
    shown,
)
from unified_embedding.image import Limits, decode, parse_crops
from unified_embedding.index import CodeIndex, Hit, Matches, Origin, Stored, facts
from unified_embedding.search.guard import Guard
from unified_embedding.search.pictures import Pictures
from unified_embedding.search.searching import measure_engine, origin_of, title

ASSETS: Final = Path(__file__).resolve().parent / "page_assets"
MAX_K: Final = 100
TIMEOUT: Final = 15.0
THUMBNAIL: Final = 320
THUMBNAILS_KEPT: Final = 1000
EXAMPLES: Final = 8
# Reading every stored embedding of more rows than this would take longer than anybody waits.
FLOAT_ROWS: Final = 200_000
FACTS: Final = ("category", "creator", "license")
SECURITY: Final = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}

Json = dict[str, Any]


@dataclass(frozen=True)
class Patience:
    """How long an upload may take.

    Attributes:
        stall: seconds without a byte of it.
        whole: seconds for all of it.
    """

    stall: float = 10.0
    whole: float = 120.0


def make_app(
    index: CodeIndex,
    url: str,
    pictures: Pictures,
    host_names: Iterable[str] = (),
    bound: str = "127.0.0.1",
    patience: Patience = Patience(),
) -> Guard:
    """The application over one index and one server.

    Args:
        index: what is searched.
        url: gRPC address of the server.
        pictures: reads the pictures that may be shown.
        host_names: names that it answers to, beside those of loopback.
        bound: the address it listens at.
        patience: how long an upload may take.
    """
    page = Page(index, url, pictures, patience)
    assets = {
        "/": ("index.html", "text/html"),
        "/app.js": ("app.js", "text/javascript"),
        "/style.css": ("style.css", "text/css"),
        "/icon.svg": ("icon.svg", "image/svg+xml"),
    }
    routes = [Route(path, _asset(name, kind)) for path, (name, kind) in assets.items()]
    routes += [
        Route("/api/status", page.status),
        Route("/api/search", page.search, methods=["POST"]),
        Route("/api/like", page.like),
        Route("/api/picture", page.picture),
        Route("/api/examples", page.examples),
    ]

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await page.client.close()

    handlers: dict[Any, Any] = {HTTPException: _problem, Exception: _fault}
    app = Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)
    return Guard(app, host_names, bound)


class EmbeddingProblem(HTTPException):
    """An error to show: a status and a sentence."""


class Page:
    """Handlers of the API, sharing one index, one connection and the thumbnails."""

    def __init__(self, index: CodeIndex, url: str, pictures: Pictures, patience: Patience) -> None:
        self.index = index
        self.url = url
        self.pictures = pictures
        self.patience = patience
        # One quick attempt: a person waits, and a retry is one click away.
        self.client = AsyncEmbedderClient(url, timeout=TIMEOUT, retry=Retry(attempts=1))
        self._thumbnails: OrderedDict[str, bytes] = OrderedDict()
        self._compared: set[str] = set()

    async def status(self, request: Request) -> Response:
        """What server and index hold; the server's part says when it is down."""
        header = self.index.header
        server: Json
        try:
            info = await self.client.info(timeout=3)
            server = {"up": True, "version": info.version, "engine": info.engine}
            if info.version != header.origin.version:
                server["problem"] = _other_version(info.version, header.origin.version)
        except ClientError as error:
            server = {"up": False, "problem": f"The embedding server is not answering. ({error})"}
        index: Json = {
            "rows": len(self.index),
            "kind": header.settings.kind,
            "dim": header.dim,
            "version": header.origin.version,
            "engine": header.origin.engine,
            "embeddings": header.embeddings,
        }
        if self.index.monitor is not None:
            recall = self.index.monitor.recall()
            if recall.queries:
                index["recall"] = vars(recall)
        limits = {"bytes": Limits.from_environment().max_bytes}
        return _json({"server": server, "index": index, "limits": limits})

    async def search(self, request: Request) -> Response:
        """Embed the photo in the body and search with it."""
        k, compare = _options(request)
        crop = _crop(request.query_params.get("crop", ""))
        began = time.perf_counter()
        data = await _body(request, self.patience)
        uploaded = time.perf_counter()
        try:
            before = await self.client.statistics(timeout=TIMEOUT)
            asked = time.perf_counter()
            answer = await self.client.embed([data], crops=crop)
            answered = time.perf_counter()
            after = await self.client.statistics(timeout=TIMEOUT)
        except ClientError as error:
            raise _server_problem(error) from error
        if answer.code is None or answer.embedding is None:
            raise EmbeddingProblem(502, "The embedding server left out an output.")
        origin = Origin(answer.version, answer.engine)
        note = await self._engine_note(origin)
        columns, searched = await self._columns(answer.code, answer.embedding, origin, k, compare)
        times = _server_times(before, after, 1e3 * (answered - asked))
        times = {"upload": 1e3 * (uploaded - began), **times, "search": searched}
        return _json(_answer(answer.code[0], columns, times, note))

    async def like(self, request: Request) -> Response:
        """Search from a row of the index, without the server."""
        k, compare = _options(request)
        row = self._row(request)
        embedding = None if row.embedding is None else row.embedding[None]
        origin = self.index.header.origin
        columns, searched = await self._columns(row.code[None], embedding, origin, k, compare)
        answer = _answer(row.code, columns, {"search": searched}, "")
        said = facts(row.metadata)
        answer["query"] |= {"id": row.id, "title": title(row.id, said)}
        return _json(answer)

    async def picture(self, request: Request) -> Response:
        """A row's picture as a small WebP; 404 where there is none to show."""
        name = request.query_params.get("id", "")
        data = self._thumbnails.get(name)
        if data is None:
            metadata = self._row(request).metadata
            data = await anyio.to_thread.run_sync(self._thumbnail, metadata)
            if data is None:
                raise EmbeddingProblem(404, "This picture is not on this machine, or not shown.")
            self._thumbnails[name] = data
            if len(self._thumbnails) > THUMBNAILS_KEPT:
                self._thumbnails.popitem(last=False)
        headers = {**SECURITY, "Cache-Control": "private, max-age=3600"}
        return Response(data, media_type="image/webp", headers=headers)

    async def examples(self, request: Request) -> Response:
        """Rows spread over the index, to begin with."""
        rows = self.index.sample(EXAMPLES)
        return _json(
            {"examples": [{"id": r.id, "title": title(r.id, facts(r.metadata))} for r in rows]}
        )

    def _row(self, request: Request) -> Stored:
        name = request.query_params.get("id", "")
        if name not in self.index:
            raise EmbeddingProblem(404, f"No picture here is called {shown(name)}.")
        return self.index.fetch(name)

    def _thumbnail(self, metadata: Json) -> bytes | None:
        data = self.pictures.read(metadata)
        if data is None:
            return None
        try:
            image = decode(data, side=("longer", THUMBNAIL))
        except ImageError:
            return None
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        file = io.BytesIO()
        image.save(file, "WEBP", quality=82)
        return file.getvalue()

    async def _columns(
        self,
        code: NDArray[np.uint8],
        embedding: NDArray[np.float32] | None,
        origin: Origin,
        k: int,
        compare: bool,
    ) -> tuple[list[Json], float]:
        """The result columns, and the milliseconds of the search by code."""

        def work() -> tuple[list[Json], float]:
            began = time.perf_counter()
            matches = self.index.search(code, origin, k=k)
            hits = matches.hits(0)
            took = 1e3 * (time.perf_counter() - began)
            columns = [self._column("code", matches, hits)]
            if compare:
                columns = [self._float(embedding, origin, k), *columns]
                columns.append(self._reranked(code, embedding, origin, k))
            return columns, took

        try:
            return await anyio.to_thread.run_sync(work)
        except IndexMismatch as error:
            sentence = _other_version(origin.version, self.index.header.origin.version)
            raise EmbeddingProblem(409, sentence) from error

    def _float(self, embedding: NDArray[np.float32] | None, origin: Origin, k: int) -> Json:
        if not self.index.header.embeddings or embedding is None:
            return {
                "order": "float",
                "missing": "This index stores no embeddings. Back-fill with --embeddings "
                "to compare.",
            }
        if len(self.index) > FLOAT_ROWS:
            return {
                "order": "float",
                "missing": f"Comparing {len(self.index):,} embeddings would take too long.",
            }
        matches = self.index.search_embeddings(embedding, origin, k=k)
        return self._column("float", matches, matches.hits(0))

    def _reranked(
        self, code: NDArray[np.uint8], embedding: NDArray[np.float32] | None, origin: Origin, k: int
    ) -> Json:
        if embedding is None:
            return {
                "order": "reranked",
                "missing": "Re-ranking needs the query's embedding, and this index stores none.",
            }
        matches = self.index.search(code, origin, k=k, embedding=embedding, rerank="asymmetric")
        return self._column("reranked", matches, matches.hits(0))

    def _column(self, order: str, matches: Matches, hits: list[Hit]) -> Json:
        codes = matches.snapshot.codes(matches.rows[0][matches.rows[0] >= 0])
        listed = []
        for hit, code in zip(hits, codes, strict=True):
            said = facts(hit.metadata)
            listed.append(
                {
                    "id": hit.id,
                    "title": title(hit.id, said),
                    "distance": hit.distance,
                    "score": hit.score,
                    "code": code.tobytes().hex(),
                    "picture": self.pictures.path(hit.metadata) is not None,
                    "facts": {name: said[name] for name in FACTS if name in said},
                }
            )
        return {"order": order, "hits": listed}

    async def _engine_note(self, origin: Origin) -> str:
        """What to tell when the server runs another engine than the index was made with."""
        home = self.index.header.origin
        if origin.engine == home.engine or origin.version != home.version:
            return ""
        if origin.engine not in self._compared:
            self._compared.add(origin.engine)
            with contextlib.suppress(ClientError):
                await anyio.to_thread.run_sync(self._measure)
        share = self.index.disagreement(origin.engine)
        measured = "" if share is None else f": {share:.1%} of the bits differ"
        return (
            f"The server runs engine {origin.engine}, the index was made with {home.engine}"
            f"{measured}. Near ties may change order."
        )

    def _measure(self) -> None:
        with EmbedderClient(self.url, timeout=TIMEOUT, retry=Retry(attempts=1)) as client:
            info = client.info()
            if origin_of(info).version == self.index.header.origin.version:
                measure_engine(self.index, client, info, self.pictures)


def _asset(name: str, kind: str) -> Any:
    data = (ASSETS / name).read_bytes()

    async def serve(request: Request) -> Response:
        headers = {**SECURITY, "Cache-Control": "no-cache"}
        return Response(data, media_type=kind, headers=headers)

    return serve


async def _body(request: Request, patience: Patience) -> bytes:
    """The photo, refused as early as its size is known, or when it stops arriving.

    What it is shows in its bytes, not in its label: browsers call a JPEG image/jpg, image/pjpeg
    or nothing at all.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        raise EmbeddingProblem(415, "Send the photo itself as the body, not a form around it.")
    limit = Limits.from_environment().max_bytes
    stated = _number(request.headers.get("content-length", "0"))
    if stated is not None and stated > limit:
        raise EmbeddingProblem(413, _too_large(stated))
    parts, size = [], 0
    stream = request.stream()
    try:
        with anyio.fail_after(patience.whole):
            while True:
                with anyio.fail_after(patience.stall):
                    part = await anext(stream, None)
                if part is None:
                    break
                size += len(part)
                if size > limit:
                    raise EmbeddingProblem(413, _too_large(size), {"Connection": "close"})
                parts.append(part)
    except ClientDisconnect:
        raise EmbeddingProblem(400, "The upload was cut off.") from None
    except TimeoutError:
        raise EmbeddingProblem(
            408, "The photo took too long to arrive. Try again.", {"Connection": "close"}
        ) from None
    if not size:
        raise EmbeddingProblem(422, "This file is empty.")
    return b"".join(parts)


def _server_problem(error: ClientError) -> EmbeddingProblem:
    """What to tell when the embedding server did not answer."""
    again = {"Retry-After": "2"}
    match error:
        case RequestRejected():
            sentence = str(error).removeprefix("image 0: ").removeprefix("image 0: ")
            return EmbeddingProblem(422, f"This photo cannot be read: {sentence}.")
        case Overloaded():
            sentence = "The embedding server has too much work at the moment. Try again soon."
            return EmbeddingProblem(503, sentence, again)
        case ServerUnavailable():
            sentence = "The embedding server is not answering. Try again in a moment."
            return EmbeddingProblem(503, sentence, again)
        case DeadlineExceeded():
            sentence = f"The embedding server did not answer within {TIMEOUT:.0f} s. Try again."
            return EmbeddingProblem(504, sentence, again)
        case RequestAborted():
            return EmbeddingProblem(
                502,
                "The embedding server ended twice while it worked on this photo, which is not "
                "sent again. Use another one.",
            )
        case _:
            return EmbeddingProblem(502, f"The embedding server failed: {error}")


def _too_large(size: int) -> str:
    limit = Limits.from_environment().max_bytes
    return f"This photo has {size / 1e6:.1f} MB; the limit is {limit / 1e6:.0f} MB."


def _number(text: str) -> int | None:
    """A whole number in ASCII digits, else None: `isdigit` also takes a superscript two."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 15 else None


def _options(request: Request) -> tuple[int, bool]:
    text = request.query_params.get("k", "12")
    k = _number(text)
    if k is None or not 1 <= k <= MAX_K:
        raise EmbeddingProblem(400, f"k must be a number from 1 to {MAX_K}, not {shown(text)}.")
    return k, request.query_params.get("compare", "") == "1"


def _crop(text: str) -> Box | None:
    try:
        return parse_crops(text, 1)[0] if text else None
    except ImageError as error:
        raise EmbeddingProblem(400, f"{error}.") from error


def _server_times(
    before: dict[str, StageStatistics], after: dict[str, StageStatistics], whole: float
) -> dict[str, float]:
    """Milliseconds of decoding and of the engine, and the rest of the call.

    Triton counts per model, not per request: with other callers at the same moment the two
    are means over their requests and ours.
    """
    times = {}
    for name, models in (("decode", ("preprocess",)), ("engine", ("embedder", "binarizer"))):
        times[name] = sum(_mean_ms(before, after, model) for model in models)
    times["transport"] = max(0.0, whole - sum(times.values()))
    return times


def _mean_ms(
    before: dict[str, StageStatistics], after: dict[str, StageStatistics], model: str
) -> float:
    stage = after.get(model, StageStatistics()) - before.get(model, StageStatistics())
    return stage.total_ns / stage.requests / 1e6 if stage.requests else 0.0


def _answer(
    code: NDArray[np.uint8], columns: list[Json], times: dict[str, float], note: str
) -> Json:
    return {
        "query": {"code": code.tobytes().hex()},
        "columns": columns,
        "times": {name: round(value, 3) for name, value in times.items()},
        "note": note,
    }


def _other_version(server: str, index: str) -> str:
    return (
        f"The server runs embedder {server}, but the index was made with {index}. Their codes "
        "cannot be compared: back-fill the corpus again, or serve the other version."
    )


def _json(value: Json) -> Response:
    return JSONResponse(value, headers={**SECURITY, "Cache-Control": "no-store"})


async def _problem(request: Request, error: HTTPException) -> Response:
    headers = {**SECURITY, "Cache-Control": "no-store", **(error.headers or {})}
    return JSONResponse({"error": error.detail}, error.status_code, headers)


async def _fault(request: Request, error: Exception) -> Response:
    # Starlette raises the error again when this is sent, so that it stands in the log.
    sentence = "The page failed at this request; what happened is in its log."
    return JSONResponse({"error": sentence}, 500, SECURITY)
