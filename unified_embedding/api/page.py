"""The search page: its files, the pictures of rows, and rows to begin with. Nothing is stored.

    GET /              the page, and /app.js, /style.css, /icon.svg
    GET /picture?id=   a row's picture, small
    GET /examples      rows to begin with

Everything else it asks of the routes that every caller has.
"""

import io
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import anyio.to_thread
import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from unified_embedding.api.problems import ApiError
from unified_embedding.api.search import PICTURE_PATH, Current, Search
from unified_embedding.errors import ImageError
from unified_embedding.image import decode

_ASSETS: Final = Path(__file__).resolve().parent / "page_assets"
_FILES: Final = {
    "/": ("index.html", "text/html"),
    "/app.js": ("app.js", "text/javascript"),
    "/style.css": ("style.css", "text/css"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_THUMBNAIL: Final = 320
_KEPT: Final = 1000
_EXAMPLES: Final = 8
_SECURITY: Final = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Page:
    """The page's own routes over the index that is active."""

    def __init__(self, current: Current) -> None:
        self._current = current
        self._search: Search | None = None
        self._thumbnail = lru_cache(_KEPT)(_thumbnail)
        self.routes = [Route(path, _file(name, kind)) for path, (name, kind) in _FILES.items()]
        self.routes += [Route(PICTURE_PATH, self.picture), Route("/examples", self.examples)]

    async def picture(self, request: Request) -> Response:
        """A row's picture as a small WebP; 404 where there is none to show."""
        name = request.query_params.get("id", "")
        search = await self._current.now()
        if search is not self._search:  # The cache would hold an index that is active no longer.
            self._search = search
            self._thumbnail.cache_clear()
        data = await anyio.to_thread.run_sync(self._thumbnail, search, name)
        headers = {**_SECURITY, "Cache-Control": "private, max-age=3600"}
        return Response(data, media_type="image/webp", headers=headers)

    async def examples(self, request: Request) -> Response:
        """Rows spread over the index."""
        search = await self._current.now()
        rows = [search.told(row) for row in search.index.sample(_EXAMPLES)]
        body = msgspec.json.encode({"object": "list", "data": rows})
        return Response(body, media_type="application/json", headers=_SECURITY)


def _thumbnail(search: Search, name: str) -> bytes:
    data = search.pictures.read(search.row(name).metadata)
    try:
        image = decode(data or b"", side=("longer", _THUMBNAIL))
    except ImageError:
        raise ApiError(
            404, "this picture is not on this machine, or not shown", "not_found", "id"
        ) from None
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    file = io.BytesIO()
    image.save(file, "WEBP", quality=82)
    return file.getvalue()


def _file(name: str, kind: str) -> Any:
    data = (_ASSETS / name).read_bytes()

    async def serve(request: Request) -> Response:
        headers = {**_SECURITY, "Cache-Control": "no-cache"}
        return Response(data, media_type=kind, headers=headers)

    return serve
