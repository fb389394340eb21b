"""The search page's HTTP side: photos in, hits as JSON out. Nothing is stored.

    GET  /                    the page, and /app.js, /style.css
    GET  /api/status          what server and index hold, and the limits
    POST /api/search          a photo as body; crop=x0,y0,x1,y1, k, compare=1
    GET  /api/like?id=...     search from a row of the index; k, compare=1
    GET  /api/picture?id=...  a row's picture, small
    GET  /api/examples        rows to begin with

Errors are JSON {"error": sentence} with a fitting status.
"""

import contextlib
import io
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread
import numpy as np
from _searching import facts, measure_engine, origin_of, picture_file, title
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
    CodeIndexError,
    DeadlineExceeded,
    ImageError,
    IndexMismatch,
    RequestRejected,
    ServerUnavailable,
)
from unified_embedding.image import DEFAULT_LIMITS, decode, parse_crops
from unified_embedding.index import CodeIndex, Hit, Matches, Origin

ASSETS: Final = Path(__file__).resolve().parent / "page_assets"
TYPES: Final = ("image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp", "image/tiff")
MAX_K: Final = 100
TIMEOUT: Final = 15.0
THUMBNAIL: Final = 320
THUMBNAILS_KEPT: Final = 1000
EXAMPLES: Final = 8
# Reading every stored embedding of more rows than this would take longer than anybody waits.
FLOAT_ROWS: Final = 200_000
SECURITY: Final = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}

Json = dict[str, Any]


def make_app(index: CodeIndex, url: str) -> Starlette:
    """The application over one index and one server."""
    page = Page(index, url)
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

    handlers: dict[Any, Any] = {HTTPException: _problem, EmbeddingProblem: _problem}
    return Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)


class EmbeddingProblem(HTTPException):
    """An error to show: a status and a sentence."""


class Page:
    """Handlers of the API, sharing one index, one connection and the thumbnails."""

    def __init__(self, index: CodeIndex, url: str) -> None:
        self.index = index
        self.url = url
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
            index["recall"] = vars(self.index.monitor.recall())
        limits = {"bytes": DEFAULT_LIMITS.max_bytes, "types": TYPES}
        return _json({"server": server, "index": index, "limits": limits})

    async def search(self, request: Request) -> Response:
        """Embed the photo in the body and search with it."""
        k, compare = _options(request)
        crop = _crop(request.query_params.get("crop", ""))
        began = time.perf_counter()
        data = await _body(request)
        uploaded = time.perf_counter()
        try:
            before = await self.client.statistics(timeout=TIMEOUT)
            asked = time.perf_counter()
            answer = await self.client.embed([data], crops=crop)
            answered = time.perf_counter()
            after = await self.client.statistics(timeout=TIMEOUT)
        except RequestRejected as error:
            sentence = str(error).removeprefix("image 0: ").removeprefix("image 0: ")
            raise EmbeddingProblem(422, f"This photo cannot be read: {sentence}.") from error
        except (ServerUnavailable, DeadlineExceeded) as error:
            raise EmbeddingProblem(
                503, f"The embedding server at {self.url} is not answering. Try again in a moment."
            ) from error
        except ClientError as error:
            raise EmbeddingProblem(502, f"The embedding server failed: {error}") from error
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
        try:
            row = self.index.fetch(request.query_params.get("id", ""))
        except CodeIndexError as error:
            raise EmbeddingProblem(404, f"{error}.") from error
        embedding = None if row.embedding is None else row.embedding[None]
        origin = self.index.header.origin
        columns, searched = await self._columns(row.code[None], embedding, origin, k, compare)
        answer = _answer(row.code, columns, {"search": searched}, "")
        said = facts(row.metadata)
        answer["query"] |= {"id": row.id, "title": title(row.id, said)}
        return _json(answer)

    async def picture(self, request: Request) -> Response:
        """A row's picture as a small WebP; 404 where its file cannot be read here."""
        name = request.query_params.get("id", "")
        data = self._thumbnails.get(name)
        if data is None:
            try:
                path = picture_file(facts(self.index.fetch(name).metadata))
                if path is None:
                    raise EmbeddingProblem(404, "The picture's file is not on this machine.")
                data = await anyio.to_thread.run_sync(_thumbnail, path)
            except (CodeIndexError, ImageError, OSError) as error:
                raise EmbeddingProblem(404, f"{error}.") from error
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
            columns = [_column("code", matches, hits)]
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
        return _column("float", matches, matches.hits(0))

    def _reranked(
        self, code: NDArray[np.uint8], embedding: NDArray[np.float32] | None, origin: Origin, k: int
    ) -> Json:
        if embedding is None:
            return {
                "order": "reranked",
                "missing": "Re-ranking needs the query's embedding, and this index stores none.",
            }
        matches = self.index.search(code, origin, k=k, embedding=embedding, rerank="asymmetric")
        return _column("reranked", matches, matches.hits(0))

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
                measure_engine(self.index, client, info)


def _asset(name: str, kind: str) -> Any:
    data = (ASSETS / name).read_bytes()

    async def serve(request: Request) -> Response:
        headers = {**SECURITY, "Cache-Control": "no-cache"}
        return Response(data, media_type=kind, headers=headers)

    return serve


async def _body(request: Request) -> bytes:
    """The photo, refused as early as its size or type is known."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in TYPES:
        named = kind or "a file of unknown type"
        raise EmbeddingProblem(
            415, f"This is {named}. Use a JPEG, PNG, WebP, GIF, BMP or TIFF photo."
        )
    limit = DEFAULT_LIMITS.max_bytes
    stated = request.headers.get("content-length", "0")
    if stated.isdigit() and int(stated) > limit:
        raise EmbeddingProblem(413, _too_large(int(stated)))
    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise EmbeddingProblem(413, _too_large(size))
            parts.append(part)
    except ClientDisconnect:
        raise EmbeddingProblem(400, "The upload was cut off.") from None
    if not size:
        raise EmbeddingProblem(422, "This file is empty.")
    return b"".join(parts)


def _too_large(size: int) -> str:
    limit = DEFAULT_LIMITS.max_bytes
    return f"This photo has {size / 1e6:.1f} MB; the limit is {limit / 1e6:.0f} MB."


def _options(request: Request) -> tuple[int, bool]:
    text = request.query_params.get("k", "12")
    if not text.isdigit() or not 1 <= int(text) <= MAX_K:
        raise EmbeddingProblem(400, f"k must be a number from 1 to {MAX_K}, not {text!r}.")
    return int(text), request.query_params.get("compare", "") == "1"


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


def _column(order: str, matches: Matches, hits: list[Hit]) -> Json:
    codes = matches.snapshot.codes(matches.rows[0][matches.rows[0] >= 0])
    shown = []
    for hit, code in zip(hits, codes, strict=True):
        said = facts(hit.metadata)
        shown.append(
            {
                "id": hit.id,
                "title": title(hit.id, said),
                "distance": hit.distance,
                "score": hit.score,
                "code": code.tobytes().hex(),
                "picture": picture_file(said) is not None,
                "facts": {
                    name: said[name] for name in ("category", "creator", "license") if name in said
                },
            }
        )
    return {"order": order, "hits": shown}


def _answer(
    code: NDArray[np.uint8], columns: list[Json], times: dict[str, float], note: str
) -> Json:
    return {
        "query": {"code": code.tobytes().hex()},
        "columns": columns,
        "times": {name: round(value, 3) for name, value in times.items()},
        "note": note,
    }


def _thumbnail(path: Path) -> bytes:
    image = decode(path.read_bytes(), side=("longer", THUMBNAIL))
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    image.save(file, "WEBP", quality=82)
    return file.getvalue()


def _other_version(server: str, index: str) -> str:
    return (
        f"The server runs embedder {server}, but the index was made with {index}. Their codes "
        "cannot be compared: back-fill the corpus again, or serve the other version."
    )


def _json(value: Json, status: int = 200) -> Response:
    return JSONResponse(value, status, headers={**SECURITY, "Cache-Control": "no-store"})


async def _problem(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    return _json({"error": error.detail}, error.status_code)
