"""Request bodies: read within a limit, a time and the memory that all of them may take."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from starlette.requests import ClientDisconnect, Request

from unified_embedding.api.problems import ApiError

_LINGER_SECONDS: Final = 1.0


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
        whole: seconds that an upload may take.
    """

    bytes: int = 96_000_000
    held: int = 512_000_000
    stall: float = 30.0
    whole: float = 120.0


class Bodies:
    """Reads bodies; counts what is held."""

    def __init__(self, limits: BodyLimits) -> None:
        self._limits = limits
        self.held = 0

    @asynccontextmanager
    async def read(self, request: Request, most: int | None = None) -> AsyncIterator[bytearray]:
        """The whole body, of at most `most` bytes where that is less, held until the block ends.

        Raises:
            ApiError: 413 too large, 408 too slow, 429 no memory left, 400 the caller went away.
        """
        limit = min(self._limits.bytes, most or self._limits.bytes)
        stated = request.headers.get("content-length", "")
        if stated.isdecimal() and int(stated) > limit:
            raise _too_large(limit)
        # Pieces in a list of their own would take 40 times the bytes of a body that drips.
        body = bytearray()
        held, over = 0, False
        try:
            try:
                now = asyncio.get_running_loop().time
                end = now() + self._limits.whole
                async with asyncio.timeout(self._limits.stall) as clock:
                    async for part in request.stream():
                        if over:
                            continue
                        clock.reschedule(min(end, now() + self._limits.stall))
                        held += len(part)
                        self.held += len(part)
                        if held > limit:
                            # The rest is thrown away for a moment: a caller whose connection is
                            # closed while it sends may lose the answer (RFC 9112, 9.6).
                            over = True
                            clock.reschedule(now() + _LINGER_SECONDS)
                            body.clear()
                            continue
                        if self.held > self._limits.held:
                            raise _ended(
                                429,
                                "the bodies that are being received fill the memory set aside for "
                                "them",
                                "overloaded",
                                "rate_limit_error",
                            )
                        body += part
            except TimeoutError:
                if over:
                    raise _too_large(limit) from None
                raise _ended(
                    408,
                    f"the body took too long to arrive: no byte for {self._limits.stall:g} s, or "
                    f"more than {self._limits.whole:g} s in all",
                    "timeout",
                ) from None
            except ClientDisconnect:
                raise ApiError(400, "the connection was closed by the caller", "gone") from None
            if over:
                raise _too_large(limit)
            yield body
        finally:
            self.held -= held


def _too_large(limit: int) -> ApiError:
    return _ended(
        413,
        f"the body is larger than {limit:,} bytes; send fewer pictures in a request, or smaller "
        "ones",
        "body_too_large",
    )


def _ended(status: int, message: str, code: str, kind: str | None = None) -> ApiError:
    """An error after which the rest of the body is not read: the connection ends with it."""
    problem = ApiError(status, message, code, kind=kind)
    problem.headers["Connection"] = "close"
    return problem
