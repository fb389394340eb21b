"""Requests for embedding and code that a load generator repeats."""

import itertools
from collections.abc import Sequence
from typing import Final

from unified_embedding.client import AsyncEmbedderClient, Connection, Retry
from unified_embedding.measure.generator import Request

CLOSED_LOOP_TIMEOUT_S: Final = 300.0
"""Nothing is late in a closed loop; this only ends what hangs."""
_UNBOUNDED: Final = 1_000_000


def client_of(
    url: str,
    timeout: float = 30.0,
    connection: Connection = Connection(),  # noqa: B008 - frozen
) -> AsyncEmbedderClient:
    """A client that bounds and retries nothing: the load decides."""
    once = Retry(attempts=1)
    return AsyncEmbedderClient(
        url, max_inflight=_UNBOUNDED, retry=once, timeout=timeout, **connection.options()
    )


def embed_request(
    client: AsyncEmbedderClient, images: Sequence[bytes], per_request: int = 1
) -> Request:
    """Requests for embedding and code of `per_request` pictures, taken in turn."""
    following = itertools.cycle(images)

    async def request() -> int:
        answer = await client.embed([next(following) for _ in range(per_request)])
        return len(answer)

    return request
