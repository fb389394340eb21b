"""`POST /v1/search` over an index folder: the index's version decides who may be compared.

`GET /v1/index` says what is searched.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import quote

import anyio.to_thread
import msgspec
import numpy as np
from msgspec import UNSET
from msgspec.structs import asdict
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from unified_embedding.api import wire
from unified_embedding.api.bodies import Bodies, media_type
from unified_embedding.api.gate import Gate, timeout_of
from unified_embedding.api.log import Visit
from unified_embedding.api.pictures import parse_picture
from unified_embedding.api.problems import ApiError, of_client
from unified_embedding.api.servers import Servers
from unified_embedding.api.wire import MAX_K, SearchRequest, parse, wanted_version
from unified_embedding.codes import pack
from unified_embedding.errors import CodeIndexError, IndexMismatch, shown
from unified_embedding.index import CodeIndex, Hit, Matches, Origin, Stored, facts
from unified_embedding.index.following import Following
from unified_embedding.search.groups import Group, grouped
from unified_embedding.search.pictures import Pictures
from unified_embedding.search.searching import note_engine, sampled, title

PICTURE_PATH: Final = "/picture"
# Reading every stored embedding of more rows than this would take longer than anybody waits.
FLOAT_ROWS: Final = 200_000
SAME: Final = 24
"""Rows of a hit's code that are listed with it."""
_COMPARE_SECONDS: Final = 15.0
_FORM: Final = "send exactly one of image, id, code (base64) and embedding"


@dataclass(frozen=True)
class _Query:
    """What is searched with: code uint8 [1, D / 8], embedding float32 [1, D] where it is known.

    `row` is the row of the index that it is, which is no hit of its own.
    """

    code: NDArray[np.uint8]
    embedding: NDArray[np.float32] | None
    origin: Origin
    row: Stored | None = None


class Current:
    """The routes over whichever index is active; a request stays with the one it began with."""

    def __init__(self, searches: "Search | Following[Search]") -> None:
        self._searches = searches
        self.routes = [
            Route("/v1/search", self.search, methods=["POST"]),
            Route("/v1/index", self.about),
        ]

    def get(self) -> "Search":
        """The searches of the active index; may open it."""
        return self._searches if isinstance(self._searches, Search) else self._searches.now()

    async def now(self) -> "Search":
        """What `get` gives; opening an index holds up no other request."""
        if isinstance(self._searches, Following):
            found = self._searches.unchanged()
            return await anyio.to_thread.run_sync(self.get) if found is None else found
        return self._searches

    async def search(self, request: Request) -> Response:
        """`POST /v1/search`."""
        return await (await self.now()).search(request)

    async def about(self, request: Request) -> Response:
        """`GET /v1/index`."""
        return await (await self.now()).about(request)


class Search:
    """Searches of one index.

    Attributes:
        index: what is searched.
        pictures: reads the pictures of its rows that may be read.
        shows: whether hits name the address of their picture.
    """

    def __init__(
        self,
        index: CodeIndex,
        pictures: Pictures,
        servers: Servers,
        bodies: Bodies,
        gate: Gate,
        timeout: float,
        shows: bool = False,
    ) -> None:
        self.index, self.pictures, self.shows = index, pictures, shows
        self._servers, self._bodies = servers, bodies
        self._gate, self._timeout = gate, timeout
        self._chance = index.chance()
        self._names = sorted({name for row in index.sample(1) for name in facts(row.metadata)})
        self._compared: set[str] = set()

    async def search(self, request: Request) -> Response:
        """Find the rows nearest to the query."""
        visit: Visit = request.state.visit
        timeout = timeout_of(request.headers, self._timeout)
        kind = media_type(request)
        if kind != "application/json":
            raise ApiError(415, f"content type {kind[:80]!r} is not taken: send application/json",
                          "unsupported_media_type")  # fmt: skip
        async with self._bodies.read(request) as body:
            visit.mark("upload")
            wanted: SearchRequest = parse(body, SearchRequest)
            if not 1 <= wanted.k <= MAX_K:
                raise ApiError(400, f"k {wanted.k} is not from 1 to {MAX_K}", "invalid_value", "k")
            home = self.index.header.origin
            pinned = wanted_version(wanted.model)
            if pinned not in (None, home.version):
                raise _other(pinned, home.version)
            query = await self._query(request, wanted, timeout)
            visit.mark("query")
        warning = await self._warning(query.origin)
        data = await anyio.to_thread.run_sync(self._found, wanted, query)
        visit.mark("search")
        row = {} if query.row is None else asdict(self.told(query.row))
        said = wire.Hits(
            wire.Query(query.code.tobytes(), **row),
            data,
            self._chance,
            home.version,
            home.engine,
            warning or UNSET,
        )
        return Response(msgspec.json.encode(said), media_type="application/json")

    async def about(self, request: Request) -> Response:
        """`GET /v1/index`."""
        header = self.index.header
        said = wire.Index(
            len(self.index),
            header.settings.kind,
            header.dim,
            header.origin.version,
            header.origin.engine,
            header.embeddings,
            self._names,
            self._chance,
        )
        if self.index.monitor is not None:
            recall = self.index.monitor.recall()
            if recall.queries:
                said.recall = vars(recall)
        return Response(msgspec.json.encode(said), media_type="application/json")

    def close(self) -> None:
        """End what goes on beside searches; searches under way are not disturbed."""
        if self.index.monitor is not None:
            self.index.monitor.close()

    def told(self, row: Stored | Hit) -> wire.Row:
        """A row as it is told, with its picture's address if it is shown."""
        metadata = facts(row.metadata)
        said = wire.Row(row.id, title(row.id, metadata), metadata)
        if self.shows and self.pictures.path(row.metadata) is not None:
            said.picture = f"{PICTURE_PATH}?id={quote(row.id, safe='')}"
        return said

    def _found(self, wanted: SearchRequest, query: _Query) -> list[wire.Hit]:
        """The hits, as they are told."""
        own = None if query.row is None else query.row.id
        try:
            self.index.snapshot(wanted.where)
        except CodeIndexError as error:
            raise ApiError(400, str(error), "invalid_value", "where") from error
        try:
            if wanted.group:
                groups = grouped(lambda k: self._matches(wanted, query, k), wanted.k, own)
                return [self._group(group) for group in groups]
            hits = self._matches(wanted, query, wanted.k + (own is not None)).hits(0)
        except IndexMismatch as error:  # Of another width.
            raise ApiError(400, str(error), "invalid_value") from error
        return [self._hit(hit) for hit in hits if hit.id != own][: wanted.k]

    def _matches(self, wanted: SearchRequest, query: _Query, k: int) -> Matches:
        # Of another engine we warn ourselves.
        origin, where = replace(query.origin, engine=self.index.header.origin.engine), wanted.where
        if wanted.order == "code":
            return self.index.search(query.code, origin, k=k, where=where)
        if query.embedding is None:
            raise ApiError(
                400, f"order {wanted.order} needs the query's embedding"
                + ("" if query.row is None else ", and this index stores none"),
                "invalid_value", "order",
            )  # fmt: skip
        if wanted.order == "asymmetric":
            return self.index.search(
                query.code, origin, k=k, where=where,
                embedding=query.embedding, rerank="asymmetric",
            )  # fmt: skip
        if not self.index.header.embeddings:
            raise ApiError(
                400, "this index stores no embeddings; back-fill with --embeddings to compare them",
                "invalid_value", "order",
            )  # fmt: skip
        if len(self.index) > FLOAT_ROWS:
            raise ApiError(
                400, f"comparing {len(self.index):,} embeddings would take too long; at most "
                f"{FLOAT_ROWS:,} are compared", "invalid_value", "order",
            )  # fmt: skip
        return self.index.search_embeddings(query.embedding, origin, k=k, where=where)

    def _hit(self, hit: Hit) -> wire.Hit:
        score = UNSET if hit.score is None else hit.score
        return wire.Hit(**asdict(self.told(hit)), distance=hit.distance, score=score)

    def _group(self, group: Group) -> wire.Hit:
        first, *same = group.hits
        said = self._hit(first)
        said.code, said.same_count = group.code, len(same)
        said.same = [self._hit(hit) for hit in same[:SAME]]
        return said

    async def _query(self, request: Request, wanted: SearchRequest, timeout: float) -> _Query:
        home = self.index.header.origin
        given = [wanted.image is not UNSET, wanted.id is not None, wanted.code is not None,
                 wanted.embedding is not None]  # fmt: skip
        if sum(given) != 1:
            raise ApiError(400, f"the body has {sum(given)} queries; {_FORM}", "invalid_value")
        if wanted.image is not UNSET:
            return await self._embedded(request, wanted, wanted.image, timeout)
        if wanted.id is not None:
            row = self.row(wanted.id)
            embedding = None if row.embedding is None else row.embedding[None]
            return _Query(row.code[None], embedding, home, row)
        if wanted.version is None:
            raise ApiError(
                400, "version is missing: a code or a vector means nothing without the version of "
                "the embedder that computed it", "invalid_value", "version",
            )  # fmt: skip
        origin = Origin(wanted.version, wanted.engine or home.engine)
        if origin.version != home.version:
            origin = replace(origin, compatible_with=await self._declared(origin.version))
        if not origin.may_search(home.version):
            raise _other(origin.version, home.version)
        width = self.index.header.dim
        if wanted.code is not None:
            if len(wanted.code) != width // 8:
                raise _wide("code", len(wanted.code), f"{width // 8} bytes")
            return _Query(np.frombuffer(wanted.code, np.uint8)[None], None, origin)
        vector = _vector(wanted.embedding or ())
        if len(vector) != width:
            raise _wide("embedding", len(vector), f"{width} numbers")
        if not (np.abs(vector) <= np.finfo(np.float32).max).all():
            raise ApiError(400, "embedding has numbers that float32 cannot hold", "invalid_value",
                          "embedding")  # fmt: skip
        single = vector[None].astype(np.float32)
        return _Query(pack(single), single, origin)

    def row(self, name: str) -> Stored:
        """The row of an id. Raises ApiError (404)."""
        if name not in self.index:
            raise ApiError(404, f"no row of the index is called {shown(name)}", "not_found", "id")
        return self.index.fetch(name)

    async def _embedded(
        self, request: Request, wanted: SearchRequest, image: msgspec.Raw, timeout: float
    ) -> _Query:
        picture = parse_picture(image, "image")
        visit: Visit = request.state.visit
        visit.pictures, visit.bytes = 1, len(picture.data)
        outputs = ("code",) if wanted.order == "code" else ("code", "embedding")
        with self._gate.admit(1):
            found = await self._servers.embed(
                [picture.data], [picture.crop], outputs, timeout,
                self.index.header.origin.version, to_search=True,
            )  # fmt: skip
        if found.errors:
            raise of_client(found.errors[0], "image")
        answer = found.embedded
        visit.version = answer.version
        assert answer.code is not None  # it was asked for
        return _Query(answer.code, answer.embedding, answer.origin)

    async def _declared(self, version: str) -> tuple[str, ...]:
        """Whose codes queries of a version may search besides, if it is served now."""
        try:
            infos = await self._servers.infos()
        except ApiError:
            return ()
        return next((info.compatible_with for info in infos if info.version == version), ())

    async def _warning(self, origin: Origin) -> str:
        """What to tell when the query is of another engine than the index, else nothing."""
        home, engine = self.index.header.origin, origin.engine
        if engine == home.engine or origin.version != home.version:
            return ""
        if engine not in self._compared and engine in await self._served(home.version):
            self._compared.add(engine)
            await self._compare(home.version)
        share = self.index.disagreement(engine)
        measured = "" if share is None else f": {share:.1%} of the bits differ"
        return (
            f"the query was computed by engine {engine[:80]}, the index by {home.engine}"
            f"{measured}; near ties may change order"
        )

    async def _served(self, version: str) -> Sequence[str]:
        """The engines that serve a version now."""
        try:
            return [info.engine for info in await self._servers.infos() if info.version == version]
        except ApiError:
            return []

    async def _compare(self, version: str) -> None:
        """Measure how far an engine differs, on pictures of the index that can be read here."""
        there = await anyio.to_thread.run_sync(sampled, self.index, self.pictures)
        if there:
            images = list(there.values())
            try:
                answer = await self._servers.embed(
                    images, [None] * len(images), ("code",), _COMPARE_SECONDS, version
                )
            except ApiError:
                return
            note_engine(self.index, answer, list(there))


def _vector(given: Sequence[float] | bytes) -> NDArray[np.float64]:
    if not isinstance(given, bytes):
        return np.array(given, np.float64)
    if len(given) % 4:
        raise _wide("embedding", len(given), "little-endian float32, 4 bytes a number")
    return np.frombuffer(given, "<f4").astype(np.float64)


def _other(version: str | None, home: str) -> ApiError:
    return ApiError(
        409,
        f"the index holds codes of version {home}, the query is of version {shown(version)}: they "
        "cannot be compared; back-fill the corpus with that version, or serve the index's",
        "version_mismatch",
        "version",
    )


def _wide(name: str, width: int, wanted: str) -> ApiError:
    return ApiError(400, f"{name} has {width}; this index takes {wanted}", "invalid_value", name)
