"""`POST /v1/search` over an index folder: the index's version decides who may be compared."""

from typing import Any, Final

import anyio.to_thread
import msgspec
import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from unified_embedding.api.bodies import Bodies, media_type
from unified_embedding.api.gate import Gate, timeout_of
from unified_embedding.api.pictures import parse_picture
from unified_embedding.api.problems import ApiError, of_client
from unified_embedding.api.servers import Servers
from unified_embedding.api.wire import MAX_K, SearchRequest, parse, wanted_version
from unified_embedding.codes import pack
from unified_embedding.errors import IndexMismatch, shown
from unified_embedding.index import CodeIndex, Origin, facts
from unified_embedding.index.following import Following

_FORM: Final = "send exactly one of image, id, code (base64) and embedding"


class Current:
    """The route over whichever index is active; a request stays with the one it began with."""

    def __init__(self, following: "Following[Search]") -> None:
        self._following = following
        self.route = Route("/v1/search", self.search, methods=["POST"])

    async def search(self, request: Request) -> Response:
        """Find the rows whose codes differ least from the query's."""
        search = await anyio.to_thread.run_sync(self._following.now)
        return await search.search(request)


class Search:
    """Searches of one index."""

    def __init__(
        self, index: CodeIndex, servers: Servers, bodies: Bodies, gate: Gate, timeout: float
    ) -> None:
        self._index, self._servers, self._bodies = index, servers, bodies
        self._gate, self._timeout = gate, timeout

    async def search(self, request: Request) -> Response:
        """Find the rows whose codes differ least from the query's."""
        timeout = timeout_of(request.headers, self._timeout)
        kind = media_type(request)
        if kind != "application/json":
            raise ApiError(415, f"content type {kind[:80]!r} is not taken: send application/json",
                          "unsupported_media_type")  # fmt: skip
        async with self._bodies.read(request) as body:
            wanted: SearchRequest = parse(body, SearchRequest)
            if not 1 <= wanted.k <= MAX_K:
                raise ApiError(400, f"k {wanted.k} is not from 1 to {MAX_K}", "invalid_value", "k")
            home = self._index.header.origin
            pinned = wanted_version(wanted.model)
            if pinned not in (None, home.version):
                raise _other(pinned, home.version)
            code, origin = await self._query(request, wanted, timeout)
        try:
            matches = await anyio.to_thread.run_sync(
                lambda: self._index.search(code, origin, k=wanted.k)
            )
            hits = await anyio.to_thread.run_sync(lambda: matches.hits(0))
        except IndexMismatch as error:
            if not origin.may_search(home.version):
                raise _other(origin.version, home.version) from error
            raise ApiError(400, str(error), "invalid_value") from error
        data = [
            {"id": hit.id, "distance": int(hit.distance), "metadata": facts(hit.metadata)}
            for hit in hits
        ]
        said: dict[str, Any] = {"object": "list", "data": data, "version": home.version}
        return Response(msgspec.json.encode(said), media_type="application/json")

    async def _query(
        self, request: Request, wanted: SearchRequest, timeout: float
    ) -> tuple[NDArray[np.uint8], Origin]:
        """The query's code [1, D / 8] and who computed it."""
        home = self._index.header.origin
        picture = len(memoryview(wanted.image)) > 0
        given = [picture, wanted.id is not None, wanted.code is not None,
                 wanted.embedding is not None]  # fmt: skip
        if sum(given) != 1:
            raise ApiError(400, f"the body has {sum(given)} queries; {_FORM}", "invalid_value")
        if picture:
            return await self._embedded(request, wanted, timeout)
        if wanted.id is not None:
            if wanted.id not in self._index:
                raise ApiError(404, f"no row of the index is called {shown(wanted.id)}",
                              "not_found", "id")  # fmt: skip
            return self._index.fetch(wanted.id).code[None], home
        if wanted.version is None:
            raise ApiError(
                400, "version is missing: a code or a vector means nothing without the version of "
                "the embedder that computed it", "invalid_value", "version",
            )  # fmt: skip
        origin = Origin(wanted.version, home.engine)
        if wanted.version != home.version:
            raise _other(wanted.version, home.version)
        width = self._index.header.dim
        if wanted.code is not None:
            if len(wanted.code) != width // 8:
                raise _wide("code", len(wanted.code), f"{width // 8} bytes")
            return np.frombuffer(wanted.code, np.uint8)[None], origin
        vector = np.array([wanted.embedding], np.float64)
        if vector.shape[1] != width:
            raise _wide("embedding", vector.shape[1], f"{width} numbers")
        if not (np.abs(vector) <= np.finfo(np.float32).max).all():
            raise ApiError(400, "embedding has numbers that float32 cannot hold", "invalid_value",
                          "embedding")  # fmt: skip
        return pack(vector.astype(np.float32)), origin

    async def _embedded(
        self, request: Request, wanted: SearchRequest, timeout: float
    ) -> tuple[NDArray[np.uint8], Origin]:
        picture = parse_picture(wanted.image, "image")
        visit = request.state.visit
        visit.pictures, visit.bytes = 1, len(picture.data)
        with self._gate.admit(1):
            found = await self._servers.embed(
                [picture.data],
                [picture.crop],
                ("code",),
                timeout,
                self._index.header.origin.version,
                to_search=True,
            )
        if found.errors:
            raise of_client(found.errors[0], "image")
        visit.version = found.embedded.version
        assert found.embedded.code is not None  # it was asked for
        return found.embedded.code, found.embedded.origin


def _other(version: str | None, home: str) -> ApiError:
    return ApiError(
        409,
        f"the index holds codes of version {home}, the query is of version {shown(version)}: they "
        "cannot be compared",
        "version_mismatch",
        "version",
    )


def _wide(name: str, width: int, wanted: str) -> ApiError:
    return ApiError(400, f"{name} has {width}; this index takes {wanted}", "invalid_value", name)
