"""Request bodies: read within a limit, a time and the memory that all of them may take."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from starlette.requests import ClientDisconnect, Request

from unified_embedding.api.problems import ApiError


def media_type(request: Request) -> str:
    """The request's content type without its parameters, in small letters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


@dataclass(frozen=True)
class BodyLimits:
    """What bodies may cost.

    Attributes:
        bytes: of one body.
        held: bytes of all bodies that are read or worked on at a time.
        stall: seconds that an upload may stand still.
    """

    bytes: int = 96_000_000
    held: int = 512_000_000
    stall: float = 30.0


class Bodies:
    """Reads bodies; counts what is held."""

    def __init__(self, limits: BodyLimits) -> None:
        self._limits = limits
        self.held = 0

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """The whole body, held until the block ends.

        Raises:
            ApiError: 413 too large, 408 stalled, 429 no memory left, 400 the caller went away.
        """
        stated = request.headers.get("content-length", "")
        if stated.isdecimal() and int(stated) > self._limits.bytes:
            raise self._too_large()
        parts: list[bytes] = []
        size = 0
        stream = request.stream()
        try:
            while True:
                try:
                    async with asyncio.timeout(self._limits.stall):
                        part = await anext(stream, None)
                except TimeoutError:
                    raise ApiError(
                        408, f"no byte of the body came for {self._limits.stall:g} s", "timeout"
                    ) from None
                except ClientDisconnect:
                    raise ApiError(400, "the connection was closed by the caller", "gone") from None
                if part is None:
                    break
                size += len(part)
                self.held += len(part)
                if size > self._limits.bytes:
                    raise self._too_large()
                if self.held > self._limits.held:
                    raise ApiError(
                        429,
                        "the bodies that are being received fill the memory set aside for them",
                        "overloaded",
                        kind="rate_limit_error",
                    )
                parts.append(part)
            yield parts[0] if len(parts) == 1 else b"".join(parts)
        finally:
            self.held -= size

    def _too_large(self) -> ApiError:
        return ApiError(
            413,
            f"the body is larger than {self._limits.bytes:,} bytes; send fewer pictures in a "
            "request, or smaller ones",
            "body_too_large",
        )
